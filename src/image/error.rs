//! What can go wrong with images, each with the archive, blob or entry it happened in.

use std::io;
use std::path::PathBuf;

use super::{Digest, trust};
use crate::store;

/// Most characters of a member's name in a message.
const LONGEST_MEMBER: usize = 300;

/// The error of everything in [`image`](super).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// As kubelet's reason `InvalidImageName`.
    #[error("invalid image name {name:?}: {reason}")]
    InvalidImageName { name: String, reason: String },
    #[error("no image {reference:?}")]
    NotFound { reference: String },
    /// The beginning of more than one ID.
    #[error("{reference:?} may be any of {}", ids.join(", "))]
    Ambiguous { reference: String, ids: Vec<String> },
    #[error("image {id} is in use")]
    InUse { id: String },
    #[error("image {id} is used by {}", pods.join(", "))]
    UsedBy { id: String, pods: Vec<String> },
    #[error("image {id} is pinned: it stays though nothing uses it, unless it is removed by force")]
    Pinned { id: String },
    /// The disk is full, or would be; `needed` is zero where nobody knows it.
    #[error("{}", super::space::describe(path, *needed, *free, *reserve))]
    NoSpace { path: PathBuf, needed: u64, free: u64, reserve: u64 },
    /// As long as it is not known what is used nothing may be removed.
    #[error("cannot tell which images are in use: {0}")]
    Users(String),
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// The archive as a whole is not what it should be.
    #[error("{}: {}", archive.display(), shown(reason))]
    Archive { archive: PathBuf, reason: String },
    /// Something in the archive cannot be used; `source` says what.
    #[error("{}: {}", archive.display(), shown(member))]
    Member { archive: PathBuf, member: String, source: Box<Error> },
    #[error("no image for linux/{wanted}, only for {}", shown(found))]
    Platform { wanted: String, found: String },
    #[error("cannot parse {what}")]
    Parse { what: &'static str, source: serde_json::Error },
    /// A document (manifest, configuration) says something that cannot be.
    #[error("{}", shown(.0))]
    Document(String),
    #[error("missing")]
    Missing,
    #[error("{what} has digest {actual}, expected {expected}")]
    Mismatch { what: &'static str, expected: Digest, actual: Digest },
    /// The stream broke off or does not decompress.
    #[error("cannot read")]
    Stream { source: io::Error },
    /// The tar stream itself is malformed, `offset` bytes into it.
    #[error("malformed tar at byte {offset}: {reason}")]
    Tar { offset: u64, reason: String },
    /// An entry that no honest archive holds.
    #[error("entry {entry:?}: {reason}")]
    Entry { entry: String, reason: String },
    /// An entry that the system refused.
    #[error("entry {entry:?}: cannot {action}")]
    Apply { entry: String, action: &'static str, source: io::Error },
    #[error("more than {limit} {what}")]
    Limit { what: &'static str, limit: u64 },
    /// Signatures that are required are not there, or are no good. What else is in the archive has come in.
    #[error("{}: refused: {}", archive.display(), reasons(refusals))]
    Refused { archive: PathBuf, refusals: Vec<trust::Refusal> },
    /// An image of the store is not what came in; it is not used until it has been brought back.
    #[error("{0}; it is being brought back")]
    Damaged(Box<super::Damage>),
    /// A damaged image could not be brought back from anywhere it came from.
    #[error("cannot bring back image {image}: {reason}")]
    Lost { image: String, reason: String },
    #[error("another process uses the image store {}", path.display())]
    Locked { path: PathBuf },
    #[error(transparent)]
    Record(#[from] store::Error),
}

impl Error {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }

    /// Says in which part of an archive the error happened.
    pub(super) fn within(self, archive: &std::path::Path, member: &str) -> Error {
        let member = match member.char_indices().nth(LONGEST_MEMBER) {
            Some((end, _)) => format!("{}…", &member[..end]),
            None => member.to_owned(),
        };
        Error::Member { archive: archive.into(), member, source: Box::new(self) }
    }
}

fn reasons(refusals: &[trust::Refusal]) -> String {
    let texts: Vec<String> = refusals.iter().map(trust::Refusal::to_string).collect();
    texts.join("; ")
}

/// What an archive or registry calls something, for people: it must not write to their terminal, nor begin a line that
/// looks like ours.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn names_of_others_stay_on_their_line() {
        let error = Error::Missing.within(Path::new("/a.tar"), "\u{1b}[2Jb\nerror: all is well\u{9b}1m");
        assert_eq!(error.to_string(), r"/a.tar: \u{1b}[2Jb\nerror: all is well\u{9b}1m");
        let error = Error::Missing.within(Path::new("/a.tar"), &"ä".repeat(1 << 20));
        assert_eq!(error.to_string().chars().count(), "/a.tar: ".len() + LONGEST_MEMBER + 1);
        let error = Error::Platform { wanted: "amd64".into(), found: "linux/\r\u{7}".into() };
        assert_eq!(error.to_string(), r"no image for linux/amd64, only for linux/\r\u{7}");
    }
}
