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
    let Some(content) = content(path)? else { return Ok(None) };
    decode(&content).map(Some).map_err(|source| Error::Damaged { path: path.into(), source })
}

/// What a JSON text holds. By way of a [`serde_json::Value`], as everything of the API's types is read: each way to read them is
/// a third of a megabyte of code.
///
/// # Errors
/// When it is no JSON, or no `T`.
pub fn decode<T: DeserializeOwned>(text: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_value(serde_json::from_slice(text)?)
}

/// The bytes of the record at `path`; `None` if there is none.
///
/// # Errors
/// [`Error::Read`].
pub fn content(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read_limited(path, LIMIT) {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.into(), source }),
    }
}

/// Replaces the record at `path`, durable when this returns. The folder exists already.
///
/// # Errors
/// [`Error::Write`]; the old record is still there then.
pub fn write<T: Serialize + ?Sized>(path: &Path, value: &T, mode: u32) -> Result<(), Error> {
    let mut content = serde_json::to_vec(value).map_err(|source| Error::Encode { path: path.into(), source })?;
    content.push(b'\n');
    replace(path, &content, mode)
}

/// Replaces whatever is at `path` by a file with this content, durable when this returns.
///
/// # Errors
/// [`Error::Write`]; the old record is still there then.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let written = match fs::atomic_write(path, content, mode) {
        // Nobody makes a folder where a record belongs but by mistake, and a rename does not replace it.
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
            fs::remove_tree(path).and_then(|()| fs::atomic_write(path, content, mode))
        }
        other => other,
    };
    written.map_err(|source| Error::Write { path: path.into(), source })
}

/// Deletes the record at `path`, durable when this returns; no error if there is none.
///
/// # Errors
/// [`Error::Delete`].
pub fn delete(path: &Path) -> Result<(), Error> {
    let deleted = match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => fs::remove_tree(path),
        other => other,
    };
    let deleted = match deleted {
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
        // A folder that got there is no obstacle.
        for _ in 0..2 {
            std::fs::create_dir_all(path.join("a/b")).unwrap();
            assert!(matches!(read::<Vec<u32>>(&path), Err(Error::Read { .. })));
            delete(&path).unwrap();
            std::fs::create_dir_all(path.join("a/b")).unwrap();
            write(&path, &[1u32], 0o600).unwrap();
            delete(&path).unwrap();
        }
        assert!(list(&dir).unwrap().is_empty());
        fs::remove_tree(&dir).unwrap();
    }
}
