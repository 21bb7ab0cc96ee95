//! Finished log files: compressed and counted (the shim rotates the live one).

use super::Runtime;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

impl Runtime {
    /// As kubelet: of each run's log keep the live file, the newest rotated one plain, and older ones gzipped, in
    /// all at most `containerLogMaxFiles`.
    pub fn tidy_logs(&self) {
        for pod in folders(&self.layout.pod_logs) {
            for container in folders(&pod) {
                if let Err(error) = tidy(&container, self.log_max_files) {
                    tracing::warn!(dir = %container.display(), %error, "rotated logs cannot be tidied");
                }
            }
        }
    }
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn tidy(dir: &Path, max_files: u32) -> io::Result<()> {
    let mut rotated: Vec<(String, String)> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".tmp") {
            std::fs::remove_file(dir.join(name))?; // a compression that was cut off
            continue;
        }
        // `<attempt>.log.<timestamp>[.gz]`
        let Some((run, _)) = name.split_once(".log.") else { continue };
        rotated.push((run.to_owned(), name.clone()));
    }
    // Newest first within a run: the timestamp sorts by name.
    rotated.sort_by(|a, b| b.cmp(a));
    let keep = usize::try_from(max_files.saturating_sub(1)).unwrap_or(usize::MAX);
    let mut run = String::new();
    let mut seen = 0;
    for (of, name) in rotated {
        if of != run {
            (run, seen) = (of, 0);
        }
        let path = dir.join(&name);
        if seen >= keep {
            std::fs::remove_file(&path)?;
        } else if seen > 0 && !name.ends_with(".gz") {
            compress(&path)?;
        }
        seen += 1;
    }
    Ok(())
}

fn compress(path: &Path) -> io::Result<()> {
    let target = PathBuf::from(format!("{}.gz", path.display()));
    let staged = PathBuf::from(format!("{}.tmp", target.display()));
    let mut encoder = GzEncoder::new(File::create(&staged)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?;
    std::fs::rename(&staged, &target)?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_rotated_file_stays_plain_and_old_ones_go() {
        let dir = std::env::temp_dir().join(format!("coracle-logs-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("0.log"), "live").unwrap();
        for day in 1..=6 {
            std::fs::write(dir.join(format!("0.log.2026010{day}-000000")), "old").unwrap();
        }
        std::fs::write(dir.join("1.log.20260101-000000"), "other run").unwrap();
        tidy(&dir, 5).unwrap();
        tidy(&dir, 5).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            names,
            [
                "0.log",
                "0.log.20260103-000000.gz",
                "0.log.20260104-000000.gz",
                "0.log.20260105-000000.gz",
                "0.log.20260106-000000",
                "1.log.20260101-000000"
            ]
        );
    }
}
