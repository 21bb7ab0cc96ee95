//! Crash-safe records: one JSON value per file.
//!
//! A record is replaced as a whole and durably ([`write`]), so a crash or a power cut leaves the old or the new one. One
//! that cannot be read nevertheless (a failing disk, a person's edit) is an error that names the file, for the caller to
//! set aside; it never stops more than what it describes.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::fs;

/// Largest record that is read, in bytes. The longest we write (an image's configuration) stay far below.
const LIMIT: u64 = 16 << 20;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The content is not what was written: damaged, or from an incompatible version.
    #[error("damaged record {}", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("cannot read record {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write record {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot encode record {}", path.display())]
    Encode { path: PathBuf, source: serde_json::Error },
    #[error("cannot delete record {}", path.display())]
    Delete { path: PathBuf, source: io::Error },
}

/// The record at `path`; `None` if there is none.
///
/// # Errors
/// [`Error::Damaged`] when the content is no `T`, [`Error::Read`] when the file cannot be read.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let content = match fs::read_limited(path, LIMIT) {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Read { path: path.into(), source }),
    };
    serde_json::from_slice(&content).map(Some).map_err(|source| Error::Damaged { path: path.into(), source })
}

/// Replaces the record at `path`, durable when this returns. The folder exists already.
///
/// # Errors
/// [`Error::Write`]; the old record is still there then.
pub fn write<T: Serialize + ?Sized>(path: &Path, value: &T, mode: u32) -> Result<(), Error> {
    let mut content = serde_json::to_vec(value).map_err(|source| Error::Encode { path: path.into(), source })?;
    content.push(b'\n');
    fs::atomic_write(path, &content, mode).map_err(|source| Error::Write { path: path.into(), source })
}

/// Deletes the record at `path`, durable when this returns; no error if there is none.
///
/// # Errors
/// [`Error::Delete`].
pub fn delete(path: &Path) -> Result<(), Error> {
    let deleted = match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
        Ok(()) => fs::sync_dir(path.parent().unwrap_or(Path::new("."))),
    };
    deleted.map_err(|source| Error::Delete { path: path.into(), source })
}

/// The records (`*.json`) in the folder `dir`, sorted by name; none if there is no folder. Unfinished temporary files of
/// an earlier crash are not listed.
///
/// # Errors
/// [`Error::Read`].
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read { path: dir.into(), source };
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let temporary = path.file_name().is_none_or(fs::is_temporary);
        if !temporary && path.extension().is_some_and(|extension| extension == "json") {
            records.push(path);
        }
    }
    records.sort();
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_damage_is_named() {
        let dir = std::env::temp_dir().join(format!("coracle-store-{}", std::process::id()));
        fs::remove_tree(&dir).unwrap();
        assert!(list(&dir).unwrap().is_empty());
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("a.json");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
        write(&path, &vec![1u32, 2], 0o600).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![1, 2]));
        std::fs::write(dir.join(".b.json.tmp-1-2"), b"[").unwrap();
        std::fs::write(dir.join("c.txt"), b"[").unwrap();
        assert_eq!(list(&dir).unwrap(), std::slice::from_ref(&path));
        for damage in [&b""[..], b"[1,", b"\0\0\0\0", b"{}", &[0xff; 64]] {
            std::fs::write(&path, damage).unwrap();
            let error = read::<Vec<u32>>(&path).unwrap_err();
            assert!(matches!(&error, Error::Damaged { .. }), "{error:?}");
            assert!(error.to_string().contains("a.json"));
        }
        delete(&path).unwrap();
        delete(&path).unwrap();
        assert!(list(&dir).unwrap().is_empty());
        fs::remove_tree(&dir).unwrap();
    }
}
