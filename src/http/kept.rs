//! Files of settings, parsed once and again when they change.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::Unusable;
use crate::sys;

/// Most bytes of a file with settings.
pub const LIMIT: u64 = 1024 * 1024;

/// What tells one state of a file from another: times of content and of inode, size, inode. The size alone or the time
/// alone would miss a rewrite within a tick of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
    inode: u64,
}

impl Stamp {
    /// `None`: there is no such file.
    pub fn of(path: &Path) -> Result<Option<Stamp>, Unusable> {
        match std::fs::metadata(path) {
            Ok(meta) => Ok(Some(Stamp {
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
                size: meta.size(),
                inode: meta.ino(),
            })),
            Err(e) if absent(&e) => Ok(None),
            Err(e) => Err(unreadable(path, &e)),
        }
    }
}

/// A parsed file, or why it cannot be used.
type Parsed<T> = Result<Arc<T>, String>;

/// What files of one format say, by path.
pub struct Kept<T> {
    parse: fn(&Path, &[u8]) -> Result<T, String>,
    files: Mutex<HashMap<PathBuf, (Stamp, Parsed<T>)>>,
}

impl<T> Kept<T> {
    /// `parse` is given the file's path and content; its error is the reason that people read.
    pub fn new(parse: fn(&Path, &[u8]) -> Result<T, String>) -> Kept<T> {
        Kept { parse, files: Mutex::default() }
    }

    /// `None`: there is no such file.
    ///
    /// # Errors
    /// [`Unusable`] for a file that cannot be read or parsed.
    pub fn get(&self, path: &Path) -> Result<Option<Arc<T>>, Unusable> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stamp) = Stamp::of(path)? else {
            files.remove(path);
            return Ok(None);
        };
        let damaged = |reason: &String| Unusable { path: path.to_owned(), reason: reason.clone() };
        if let Some((seen, parsed)) = files.get(path)
            && *seen == stamp
        {
            return parsed.as_ref().map(|value| Some(value.clone())).map_err(damaged);
        }
        // The stamp is older than the content: a change in between is seen the next time.
        let content = match sys::fs::read_limited(path, LIMIT) {
            Ok(content) => content,
            Err(e) if absent(&e) => return Ok(None),
            Err(e) => return Err(unreadable(path, &e)),
        };
        let parsed = (self.parse)(path, &content).map(Arc::new);
        let answer = parsed.as_ref().map(|value| Some(value.clone())).map_err(damaged);
        files.insert(path.to_owned(), (stamp, parsed));
        answer
    }
}

impl<T> fmt::Debug for Kept<T> {
    /// Only paths: the files may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(files.keys()).finish()
    }
}

/// Whether there is nothing at the path.
pub fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

pub fn unreadable(path: &Path, error: &io::Error) -> Unusable {
    Unusable { path: path.to_owned(), reason: format!("cannot read: {error}") }
}

/// The text of a file of settings.
pub fn text(content: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(content).map_err(|e| {
        let line = content[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        format!("line {line}: not UTF-8")
    })
}

/// Number of the line at a byte of a text.
pub fn line(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1
}

/// A TOML document.
pub fn toml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|e| match e.span() {
        Some(span) => format!("line {}: {}", line(text, span.start), e.message()),
        None => e.message().to_owned(),
    })
}
