//! The files of a volume that is made from objects (ConfigMap, Secret, the pod itself): pure data, for
//! [`super::atomic`] to write.

use std::collections::BTreeMap;
use std::fmt;

/// Longest name of a file or folder, and longest path, in bytes.
const MAX: (usize, usize) = (255, 4096);

/// A file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Whose it is; `None`: root's.
    pub owner: Option<u32>,
}

/// Never shows the content, which may be secret.
impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({} bytes, {:o})", self.bytes.len(), self.mode)
    }
}

/// Files by path: relative, without `..`, and no file is also a folder of another's path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload(BTreeMap<String, File>);

/// A path that a payload cannot have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid path {path:?}: {why}")]
pub struct PathError {
    path: String,
    why: &'static str,
}

impl Payload {
    /// Adds a file; one of the same path is replaced (as kubelet: later sources override).
    ///
    /// # Errors
    /// [`PathError`] for a path that is empty, absolute, too long, begins with `..` or has a part `..`, or that cannot be
    /// beside the ones that are there.
    pub fn add(&mut self, path: &str, file: File) -> Result<(), PathError> {
        let clean = clean(path)?;
        let fail = |why| Err(PathError { path: path.to_owned(), why });
        let below = format!("{clean}/");
        // The first path after `clean/` in the order of bytes is one below it, if there is any.
        if self.0.range(below.clone()..).next().is_some_and(|(other, _)| other.starts_with(&below)) {
            return fail("it is a folder of another file");
        }
        if clean.match_indices('/').any(|(at, _)| self.0.contains_key(&clean[..at])) {
            return fail("one of its folders is another file");
        }
        self.0.insert(clean, file);
        Ok(())
    }

    /// The files, sorted by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &File)> {
        self.0.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// The file at `path`.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&File> {
        self.0.get(path)
    }

    /// How many files there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The path without empty and `.` parts.
fn clean(path: &str) -> Result<String, PathError> {
    let fail = |why| Err(PathError { path: path.to_owned(), why });
    if path.starts_with('/') {
        return fail("must not be absolute");
    }
    if path.len() > MAX.1 {
        return fail("must not be longer than 4096 bytes");
    }
    if path.contains('\0') {
        return fail("must not hold a NUL byte");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return fail("must not contain '..'");
    }
    match parts.first() {
        None => return fail("must not be empty"),
        // Names like this are the writer's own.
        Some(first) if first.starts_with("..") => return fail("must not start with '..'"),
        Some(_) => {}
    }
    if parts.iter().any(|part| part.len() > MAX.0) {
        return fail("must have no name longer than 255 bytes");
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> File {
        File { bytes: b"x".to_vec(), mode: 0o644, owner: None }
    }

    #[test]
    fn paths() {
        let mut payload = Payload::default();
        for good in ["a", "b/c/d", "./e", "b//c/f", ".hidden", "x..y", "a/..z"] {
            let result = payload.add(good, file());
            assert_eq!(result.is_ok(), good != "a/..z", "{good}: {result:?}");
        }
        let paths: Vec<&str> = payload.files().map(|(path, _)| path).collect();
        assert_eq!(paths, [".hidden", "a", "b/c/d", "b/c/f", "e", "x..y"]);
        let long = "n".repeat(256);
        let deep = "d/".repeat(2100) + "f";
        for (bad, why) in [
            ("", "must not be empty"),
            ("./", "must not be empty"),
            ("/a", "must not be absolute"),
            ("g/../h", "must not contain '..'"),
            ("..", "must not contain '..'"),
            ("..data", "must not start with '..'"),
            ("..data/x", "must not start with '..'"),
            ("x\0", "must not hold a NUL byte"),
            (&long, "must have no name longer than 255 bytes"),
            (&deep, "must not be longer than 4096 bytes"),
            ("b", "it is a folder of another file"),
            ("b/c", "it is a folder of another file"),
            ("a/b", "one of its folders is another file"),
        ] {
            let error = payload.add(bad, file()).expect_err(bad);
            assert_eq!(error.why, why, "{bad:?}");
        }
    }

    #[test]
    fn a_later_file_replaces_an_earlier_one() {
        let mut payload = Payload::default();
        payload.add("a", file()).expect("added");
        payload.add("./a", File { bytes: b"new".to_vec(), mode: 0o600, owner: None }).expect("added");
        assert_eq!(payload.len(), 1);
        assert_eq!(payload.get("a"), Some(&File { bytes: b"new".to_vec(), mode: 0o600, owner: None }));
    }

    proptest! {
        #[test]
        fn what_is_taken_stays_inside(paths in proptest::collection::vec("[a./]{0,6}", 0..12)) {
            let mut payload = Payload::default();
            for path in &paths {
                let _ = payload.add(path, file());
            }
            let all: Vec<String> = payload.files().map(|(path, _)| path.to_owned()).collect();
            for path in &all {
                prop_assert!(!path.starts_with('/') && !path.starts_with(".."));
                prop_assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")));
                let below = format!("{path}/");
                prop_assert!(!all.iter().any(|other| other.starts_with(&below)));
            }
        }
    }
}
