//! `agent`: from flags and files to a running agent.

use super::error::Error;
use crate::agent;
use crate::config::{self, Config, DEFAULT_FILE, Facts, File, Flags, LogFormat};
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Largest configuration file, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// Most drop-ins. Each costs time at every start.
const MAX_DROP_INS: usize = 256;
/// Folders of drop-ins within each other.
const MAX_DEPTH: usize = 8;

/// A configuration file that was read.
struct Read {
    name: String,
    text: String,
}

/// Resolves the configuration and runs the agent until it is told to stop.
pub(super) fn agent(flags: &Flags) -> Result<i32, Error> {
    let (config, told) = resolve(flags)?;
    log_to_stderr(&config);
    if !told.drop_ins.is_empty() {
        tracing::info!("configuration drop-ins, in their order: {}", told.drop_ins.join(", "));
    }
    for warning in &told.warnings {
        tracing::warn!("{warning}");
    }
    agent::run(config).map_err(|error| Error::caused("the agent failed", &error))?;
    Ok(0)
}

/// What is worth telling of a configuration.
pub(super) struct Told {
    drop_ins: Vec<String>,
    warnings: Vec<config::Warning>,
}

/// The configuration of an agent with these flags on this machine.
pub(super) fn resolve(flags: &Flags) -> Result<(Config, Told), Error> {
    let path = flags.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let main = read_config(&path, flags.config.is_some())?;
    let drop_ins = flags.config_dir.as_deref().map(drop_ins).transpose()?.unwrap_or_default();
    let mut files: Vec<File<'_>> = main.iter().map(|read| File::main(&read.name, &read.text)).collect();
    files.extend(drop_ins.iter().map(|read| File::drop_in(&read.name, &read.text)));
    let facts = Facts { hostname: hostname() };
    let (config, warnings) = Config::resolve(flags, &files, &facts).map_err(|error| {
        let failed = Error::caused("cannot use the configuration", &error);
        // What follows from several fields together is in no one file.
        if matches!(error, config::Error::In { .. }) || files.is_empty() {
            return failed;
        }
        let names: Vec<&str> = files.iter().map(|file| file.name).collect();
        failed.hint(format!("it was read from {}", names.join(", ")))
    })?;
    let drop_ins = drop_ins.iter().map(|read| read.name.clone()).collect();
    Ok((config, Told { drop_ins, warnings }))
}

/// Sets up the log: one line an event on standard error, without colours and, below journald, without the time that
/// journald adds itself.
fn log_to_stderr(config: &Config) {
    // klog's scale: 4 is "debug level verbosity", 6 shows every request.
    let level = match config.verbosity {
        0..=3 => tracing::Level::INFO,
        4..=5 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false).with_target(false);
    let log = match (config.log_format, std::env::var_os("JOURNAL_STREAM")) {
        (LogFormat::Json, _) => log.json().flatten_event(true).boxed(),
        (LogFormat::Text, Some(_)) => log.without_time().boxed(),
        (LogFormat::Text, None) => log.boxed(),
    };
    // It would show answers that it cannot read, Secrets among them; what it has to say, its errors say.
    let targets = Targets::new().with_default(level).with_target("kube_client", LevelFilter::OFF);
    // An error says that a subscriber is set already: then that one is meant.
    let _ = tracing_subscriber::registry().with(log).with(targets).try_init();
}

/// The configuration file. Only a file that nobody asked for may be missing.
fn read_config(path: &Path, is_asked_for: bool) -> Result<Option<Read>, Error> {
    match read_file(path) {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_asked_for => Ok(None),
        Err(error) => Err(Error::new(format!("cannot read the configuration file {}", path.display()), error)),
    }
}

/// The drop-ins below `dir`: as kubelet, `*.conf` in the order in which a walk comes by, links to files followed, links to
/// folders not.
fn drop_ins(dir: &Path) -> Result<Vec<Read>, Error> {
    let mut read = Vec::new();
    walk(dir, 0, &mut read)?;
    Ok(read)
}

fn walk(dir: &Path, depth: usize, read: &mut Vec<Read>) -> Result<(), Error> {
    let failed = |path: &Path, why: &dyn fmt::Display| {
        Error::new(format!("cannot read the configuration drop-ins of {}", path.display()), why)
    };
    if depth > MAX_DEPTH {
        return Err(failed(dir, &format!("more than {MAX_DEPTH} folders within each other")));
    }
    let entries = std::fs::read_dir(dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let mut entries = entries.map_err(|error| failed(dir, &error))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().map_err(|error| failed(&path, &error))?.is_dir() {
            walk(&path, depth + 1, read)?;
        } else if entry.file_name().as_encoded_bytes().ends_with(b".conf") {
            if read.len() == MAX_DROP_INS {
                return Err(failed(dir, &format!("more than {MAX_DROP_INS} files")));
            }
            let file = read_file(&path);
            let what = || format!("cannot read the configuration drop-in {}", path.display());
            read.push(file.map_err(|error| Error::new(what(), error))?);
        }
    }
    Ok(())
}

/// A text file of bounded size.
fn read_file(path: &Path) -> io::Result<Read> {
    // Before it is opened: opening a FIFO would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    // Nobody promises that the file is not growing.
    std::fs::File::open(path)?.take(MAX_CONFIG + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8 text"))?;
    Ok(Read { name: path.display().to_string(), text })
}

/// Host name as the kernel reports it.
pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_was_asked_for_must_exist() {
        let path = Path::new("/nonexistent/config.yaml");
        assert!(read_config(path, false).unwrap().is_none());
        let error = read_config(path, true).err().unwrap().to_string();
        assert!(error.contains("No such file"), "{error}");
        assert!(drop_ins(Path::new("/nonexistent/conf.d")).is_err());
    }

    #[test]
    fn drop_ins_come_in_the_order_of_a_walk() {
        let dir = std::env::temp_dir().join(format!("coracle-drop-ins-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("20-more.d")).unwrap();
        for (name, text) in
            [("30.conf", "c"), ("10.conf", "a"), ("10.conf~", "x"), ("10.yaml", "x"), ("20-more.d/99.conf", "b")]
        {
            std::fs::write(dir.join(name), text).unwrap();
        }
        std::os::unix::fs::symlink("10.conf", dir.join("40.conf")).unwrap();
        // A link to a folder is neither entered nor, by this name, looked at.
        std::os::unix::fs::symlink("20-more.d", dir.join("50.d")).unwrap();
        let read = drop_ins(&dir).unwrap();
        assert_eq!(read.iter().map(|read| read.text.as_str()).collect::<String>(), "abca");
        assert!(read[1].name.ends_with("/20-more.d/99.conf"));

        let refused = |what: &str| {
            let error = drop_ins(&dir).err().unwrap().to_string();
            assert!(error.contains("/60.conf") && error.contains(what), "{error}");
            std::fs::remove_file(dir.join("60.conf")).unwrap();
        };
        std::os::unix::fs::symlink("nowhere", dir.join("60.conf")).unwrap();
        refused("No such file");
        std::os::unix::fs::symlink("20-more.d", dir.join("60.conf")).unwrap();
        refused("not a regular file");
        std::fs::write(dir.join("60.conf"), vec![b'#'; MAX_CONFIG as usize + 1]).unwrap();
        refused("larger than 1 MiB");
        std::fs::write(dir.join("60.conf"), [0xff, 0xfe]).unwrap();
        refused("not UTF-8");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
