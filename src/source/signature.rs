//! Signed manifests: who signed these bytes, and whether this node has taken newer ones already.
//!
//! ```text
//! bytes, signature ─ verify ─▶ Signed ─ check(origin, what it defines) ─▶ taken ─ accept ─▶ serials
//! ```
//!
//! Signatures are minisign's. A key that is written into the configuration and is none keeps the agent from starting, as
//! any other wrong value does; it could never become right. A *file* of keys that is missing or broken does not: it may
//! come later, no restart is needed then, and until it does nothing is accepted while all that ran goes on.

use super::serial::{Order, Serials};
use crate::manifest::Loaded;
use crate::minisign::{KeyId, Keys, Signature, plain};
use k8s_openapi::api::core::v1::Pod;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

/// The field of the configuration with the keys.
const FIELD: &str = "manifestVerification.publicKeys";

/// Keys of the configuration that are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct KeyError(Vec<String>);

/// Who has signed a text, and what they say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Number of the key.
    pub key: KeyId,
    /// `serial=N` of the trusted comment.
    pub serial: Option<u64>,
    /// The trusted comment, fit for a terminal.
    pub comment: String,
}

/// Why a manifest is not accepted. Written to follow the manifest's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No signature beside it.
    #[error("is not signed: there is no {0}")]
    Missing(String),
    /// The signature is there, but cannot be had.
    #[error("its signature cannot be read: {0}")]
    Unreadable(String),
    /// Not a signature at all.
    #[error("its signature is not a minisign signature")]
    Malformed,
    /// There is no key to hold it against.
    #[error("cannot be verified: {0}")]
    NoKeys(String),
    /// By somebody else.
    #[error("is signed by key {key}, which is not among {FIELD} ({known})")]
    UnknownKey {
        /// The key that made it.
        key: KeyId,
        /// The keys that count, and those that cannot be had.
        known: String,
    },
    /// The key is one of ours, the signature is not for this.
    #[error("does not fit its signature by key {0}: one of them was altered, or the signature is of another text")]
    Altered(KeyId),
    /// What the trusted comment says makes no sense.
    #[error("the trusted comment of its signature says {0:?}: want serial=NUMBER, once")]
    Comment(String),
    /// An old text again.
    #[error("serial {serial} is older than {accepted}, which this node accepted for {subject}")]
    Older {
        /// Of this text.
        serial: u64,
        /// Of the text that was accepted.
        accepted: u64,
        /// Whose serial that is.
        subject: String,
    },
    /// Two texts that cannot be told apart by age.
    #[error("serial {serial} was accepted for {subject} with another text: sign this one with a higher serial")]
    SameSerial {
        /// Of both texts.
        serial: u64,
        /// Whose serial that is.
        subject: String,
    },
    /// No serial any more.
    #[error("its signature has no serial, but this node accepted serial {accepted} for {subject}")]
    NoSerial {
        /// Of the text that was accepted.
        accepted: u64,
        /// Whose serial that is.
        subject: String,
    },
}

/// Decides which texts are accepted. One for all sources: what one of them has accepted, no other takes back.
#[derive(Debug)]
pub struct Verifier {
    keys: Keys,
    serials: Serials,
}

/// Tells whether the keys may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revision(Vec<Option<FileState>>);

/// Device, inode, and the time of change: it cannot be set, and a file that takes the place of another has its own.
type FileState = (u64, u64, (i64, i64));

impl Verifier {
    /// A verifier with these keys (see [`Keys::new`]); `None`: there are none, manifests need no signature. `serials` is
    /// the record of serials that were accepted; `None`: none are remembered.
    ///
    /// # Errors
    /// What is no key, by the number of its entry.
    pub fn new(keys: &[String], serials: Option<PathBuf>) -> Result<Option<Arc<Verifier>>, KeyError> {
        let keys = Keys::new(FIELD, keys);
        let malformed = keys.malformed();
        if !malformed.is_empty() {
            return Err(KeyError(malformed));
        }
        if keys.none() {
            return Ok(None);
        }
        for reason in keys.unusable() {
            tracing::warn!(%reason, "nothing that is signed by this key is accepted until it can be read");
        }
        Ok(Some(Arc::new(Verifier { keys, serials: Serials::open(serials) })))
    }

    /// Whether one of the keys has signed exactly these bytes. `signature` is the text of the `.minisig`.
    ///
    /// # Errors
    /// Why they are not accepted.
    pub fn verify(&self, bytes: &[u8], signature: &[u8]) -> Result<Signed, SignatureError> {
        let keys = self.keys.now();
        if keys.is_empty() {
            return Err(SignatureError::NoKeys(self.keys.unusable().join("; ")));
        }
        let signature = Signature::parse(signature).ok_or(SignatureError::Malformed)?;
        let id = signature.key();
        let mut named = keys.iter().filter(|key| key.id() == id).peekable();
        if named.peek().is_none() {
            let known = keys.iter().map(|key| key.id().to_string()).chain(self.keys.unusable());
            return Err(SignatureError::UnknownKey { key: id, known: known.collect::<Vec<_>>().join(", ") });
        }
        if !named.any(|key| signature.is_good(key, bytes)) {
            return Err(SignatureError::Altered(id));
        }
        let comment = signature.trusted_comment();
        let serial = serial(comment).map_err(SignatureError::Comment)?;
        Ok(Signed { key: id, serial, comment: plain(comment) })
    }

    /// Whether a signed text is at least as new as what was accepted from this origin, and of all that it defines.
    ///
    /// # Errors
    /// Which newer text was accepted.
    pub fn check(&self, text: &Text<'_>, signed: &Signed) -> Result<(), SignatureError> {
        let subjects = text.subjects();
        let found = self.serials.compare(subjects.iter().map(String::as_str), signed.serial, text.bytes);
        let Some((subject, accepted, order)) = found else { return Ok(()) };
        let subject = subject.to_owned();
        Err(match (order, signed.serial) {
            (Order::Older, Some(serial)) => SignatureError::Older { serial, accepted, subject },
            (Order::Other, Some(serial)) => SignatureError::SameSerial { serial, subject },
            (_, None) => SignatureError::NoSerial { accepted, subject },
        })
    }

    /// Remembers that a signed text was taken; [`Verifier::save`] makes it durable.
    pub fn accept(&self, text: &Text<'_>, signed: &Signed) {
        if let Some(serial) = signed.serial {
            self.serials.raise(text.subjects(), serial, text.bytes);
        }
    }

    /// Makes durable what was accepted. Does nothing when it is already.
    ///
    /// # Errors
    /// When the record cannot be written; the next call tries again.
    pub fn save(&self) -> io::Result<()> {
        self.serials.save()
    }

    /// What is wrong with keys and serials at present, for people.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        self.keys.unusable().into_iter().chain(self.serials.trouble()).collect()
    }

    /// What changes whenever a file of keys does: what was refused may be accepted then, and the other way round.
    #[must_use]
    pub fn revision(&self) -> Revision {
        let of = |path| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.dev(), file.ino(), (file.ctime(), file.ctime_nsec())))
        };
        Revision(self.keys.files().map(of).collect())
    }
}

/// A text that somebody signed, and what became of it.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    /// Path or URL.
    pub origin: &'a str,
    /// What was signed.
    pub bytes: &'a [u8],
    /// What it says.
    pub loaded: &'a Loaded,
    /// Name of the node, which is the suffix of the pods' names.
    pub node: &'a str,
}

impl Text<'_> {
    /// Whose serials count: those of all that it defines. That of the place it is from only counts when all of it can be
    /// taken: who has signed a broken text may go back to the one before it.
    fn subjects(&self) -> Vec<String> {
        let pod = |pod: &Pod| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let suffix = format!("-{}", self.node.to_lowercase());
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            format!("Pod {namespace}/{}", name.strip_suffix(&suffix).unwrap_or(name))
        };
        let origin = (!self.loaded.has_errors()).then(|| self.origin.to_owned());
        let pods = self.loaded.pods.iter().map(pod);
        let objects = self.loaded.objects.iter().map(|object| object.id().to_string());
        origin.into_iter().chain(pods).chain(objects).collect()
    }
}

/// The serial in a trusted comment: tokens between white space, one of them `serial=N`. minisign's own tokens
/// (`timestamp:…`, `file:…`, `hashed`) say nothing here.
///
/// # Errors
/// The token that is none, or is one too many.
fn serial(comment: &str) -> Result<Option<u64>, String> {
    let mut found = None;
    for token in comment.split_whitespace() {
        let Some(value) = token.strip_prefix("serial=") else { continue };
        // Not what `parse` takes besides: a sign.
        let number = value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten();
        match (number, found) {
            (Some(number), None) => found = Some(number),
            _ => return Err(plain(token)),
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "signature_tests.rs"]
pub(in crate::source) mod tests;
