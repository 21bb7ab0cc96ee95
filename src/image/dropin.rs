//! The folder people drop archives into.
//!
//! Every version of a file is imported once. What was imported is remembered over restarts; what failed is reported once,
//! and tried again when the file changes or at the next start. A file that is still being copied fails too, so a failure
//! only counts once the file has been left alone for a moment.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::archive::is_layout;
use super::{Error, Image, ImageStore};
use crate::store;
use crate::sys::fs::{self, Status};

/// How long a file must not have changed for its failure to count.
const SETTLED: Duration = Duration::from_secs(2);

/// What became of one archive in a scan.
#[derive(Debug)]
pub struct Outcome {
    pub path: PathBuf,
    pub result: Result<Vec<Arc<Image>>, Error>,
}

/// One version of a file: it changes when the content does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, u32),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Imported {
    version: Version,
    /// IDs of the images that were in it.
    images: Vec<String>,
}

/// The drop-in folder. Call [`DropIn::scan`] when something in it changed, and now and then.
pub struct DropIn {
    dir: PathBuf,
    store: Arc<ImageStore>,
    /// By file name.
    imported: BTreeMap<String, Imported>,
    failed: BTreeMap<String, Version>,
    pending: bool,
    started: bool,
}

impl DropIn {
    /// The folder `dir`, which may not exist yet, of `store`.
    pub fn new(dir: &Path, store: Arc<ImageStore>) -> DropIn {
        let imported = store::read(&record(&store)).unwrap_or_else(|error| {
            tracing::warn!(%error, "drop-in archives will be looked at again");
            None
        });
        DropIn {
            dir: dir.into(),
            store,
            imported: imported.unwrap_or_default(),
            failed: BTreeMap::new(),
            pending: false,
            started: false,
        }
    }

    /// Whether the last scan has met a file that is still being written, and the next should follow in a few seconds
    /// even if nothing is heard of the folder.
    pub fn pending(&self) -> bool {
        self.pending
    }

    /// Imports what is new, in the order of names. Only what happened now is reported: nothing for an archive that was
    /// imported or has failed before. The first scan imports archives again whose images have left the store since.
    pub fn scan(&mut self) -> Vec<Outcome> {
        let first = !std::mem::replace(&mut self.started, true);
        self.pending = false;
        let mut names = match self.names() {
            Ok(names) => names,
            Err(error) => return vec![Outcome { path: self.dir.clone(), result: Err(error) }],
        };
        names.sort();
        let before = self.imported.len();
        self.imported.retain(|name, _| names.contains(name));
        self.failed.retain(|name, _| names.contains(name));
        let mut changed = self.imported.len() != before;
        let mut outcomes = Vec::new();
        for name in names {
            let path = self.dir.join(&name);
            let Some((version, settled)) = look_at(&path) else { continue };
            if self.failed.get(&name) == Some(&version) {
                continue;
            }
            let present = |id: &String| self.store.resolve(id).is_some();
            if let Some(known) = self.imported.get(&name)
                && known.version == version
                && (!first || known.images.iter().all(present))
            {
                continue;
            }
            let result = self.store.import(&path);
            match &result {
                Ok(images) => {
                    let images = images.iter().map(|image| image.id.clone()).collect();
                    self.failed.remove(&name);
                    // Written to meanwhile, it is another version at the next scan.
                    self.imported.insert(name, Imported { version, images });
                    changed = true;
                }
                Err(error) if !settled || look_at(&path).is_none_or(|(now, _)| now != version) => {
                    tracing::debug!(path = %path.display(), %error, "archive is not complete yet");
                    self.pending = true;
                    continue;
                }
                Err(_) => {
                    self.failed.insert(name, version);
                }
            }
            outcomes.push(Outcome { path, result });
        }
        if changed && let Err(error) = store::write(&record(&self.store), &self.imported, 0o600) {
            // Then archives are looked at again after a restart, which costs little.
            tracing::warn!(%error, "cannot remember which archives were imported");
        }
        outcomes
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let failed = |source| Error::Io { action: "list", path: self.dir.clone(), source };
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            // Dot files are what copying programs write to before they rename.
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            if let Some(name) = name.to_str()
                && (is_archive(name) || is_layout(&self.dir.join(name)))
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// Where it is remembered what was imported.
fn record(store: &ImageStore) -> PathBuf {
    store.root().join("dropin.json")
}

fn is_archive(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"].iter().any(|end| name.len() > end.len() && name.ends_with(end))
}

/// The version of an archive and whether it has settled; `None` if it is gone, or never was one.
fn look_at(path: &Path) -> Option<(Version, bool)> {
    // A layout folder changes with its index.
    let index = path.join("index.json");
    let status = match fs::status(&index) {
        Ok(status) => status,
        Err(_) => fs::status(path).ok().filter(|status| status.kind == rustix::fs::FileType::RegularFile)?,
    };
    let modified = (status.modified.seconds, status.modified.nanoseconds);
    let version = Version { inode: status.inode, size: status.size, modified };
    Some((version, is_settled(&status, SystemTime::now())))
}

/// Whether nobody has touched the file lately. Changes from the future say nothing: the clock was set back.
fn is_settled(status: &Status, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let recent = |time: fs::Time| {
        let time = Duration::new(u64::try_from(time.seconds).unwrap_or_default(), time.nanoseconds);
        now.checked_sub(time).is_some_and(|age| age < SETTLED)
    };
    !recent(status.modified) && !recent(status.changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_by_name() {
        for name in ["a.tar", "a.tar.gz", "a.tgz", "a.tar.zst", "a.b.tzst"] {
            assert!(is_archive(name), "{name}");
        }
        for name in ["a.zip", "tar", ".tar", "a.tar.part", "a.tar~", "a.txt"] {
            assert!(!is_archive(name), "{name}");
        }
    }

    #[test]
    fn settled_files() {
        let path = std::env::temp_dir().join(format!("coracle-settled-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let status = fs::status(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs((status.changed.seconds + seconds) as u64);
        assert!(!is_settled(&status, at(1)));
        assert!(is_settled(&status, at(4)));
        assert!(is_settled(&status, at(-100)));
    }
}
