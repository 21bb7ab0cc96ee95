//! The record of a container's run on disk: replaced as a whole, and made durable when it says how the run ended.

use crate::pod::Instance;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Replaces the file at `path` in one step. With `durable` it and its name have reached the disk on return.
pub(super) fn write(path: &Path, instance: &Instance, durable: bool) -> io::Result<()> {
    replace(path, &serde_json::to_vec(instance)?, durable)
}

/// As [`write`], for any content.
pub(super) fn replace(path: &Path, content: &[u8], durable: bool) -> io::Result<()> {
    let (dir, temporary) = names(path)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = match options.open(&temporary) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(dir)?;
            options.open(&temporary)?
        }
        other => other?,
    };
    file.write_all(content)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durable { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Makes durable what [`write`] wrote without.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    let (dir, _) = names(path)?;
    File::open(path)?.sync_all()?;
    File::open(dir)?.sync_all()
}

fn names(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not the path of a file", path.display()),
        ));
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok((dir, dir.join(temporary)))
}
