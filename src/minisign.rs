//! minisign: public keys as a configuration names them, and signatures by one of them.
//!
//! Signatures are read more strictly than the tool does: what is not exactly what it writes is none. So nobody can
//! change a byte of one, outside the untrusted comment, and have it accepted still.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{PublicKey, StreamVerifier};

use crate::sys::keyfile;

/// Largest signature, in bytes: it is four lines, two of them comments.
pub const LARGEST_SIGNATURE: u64 = 64 << 10;
/// What a signature's name ends in, after the whole name of what it signs.
pub const EXTENSION: &str = ".minisig";

/// Bytes of a secret key.
const SECRET_KEY: usize = 158;
/// Most keys in one entry.
const MOST_KEYS: usize = 32;
/// Of a comment that is shown, in characters.
const LONGEST_COMMENT: usize = 256;

/// The number of a key, which is in all of its signatures: what minisign shows as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

/// A public key.
#[derive(Debug, Clone)]
pub struct Key {
    public: PublicKey,
    id: KeyId,
    bytes: Vec<u8>,
}

impl Key {
    /// Its number. Two keys may have the same: it is chosen by who makes the key.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// All of it: algorithm, number and key, 42 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The keys that a field of the configuration names.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    field: &'static str,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Keys(Vec<Key>),
    /// Read whenever keys are needed, so that a rotated key counts at once.
    File(PathBuf),
    /// Not keys, and why.
    Unusable(String),
}

impl Keys {
    /// Takes keys in minisign's one-line form, the texts of its `.pub` files, or absolute paths of such files. `field`
    /// is where they are configured, for errors.
    #[must_use]
    pub fn new(field: &'static str, entries: &[String]) -> Keys {
        let entry = |(number, text): (usize, &String)| match text.trim() {
            path if path.starts_with('/') => Entry::File(path.into()),
            text => match parse(text) {
                Ok(keys) => Entry::Keys(keys),
                // Not what it is: it may be a secret key by mistake.
                Err(reason) => Entry::Unusable(format!("{field}[{number}]: {reason}")),
            },
        };
        Keys { field, entries: entries.iter().enumerate().map(entry).collect() }
    }

    /// The field that they are configured in.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The keys of now.
    #[must_use]
    pub fn now(&self) -> Vec<Key> {
        let keys = |entry: &Entry| match entry {
            Entry::Keys(keys) => keys.clone(),
            Entry::File(path) => read(path).unwrap_or_default(),
            Entry::Unusable(_) => Vec::new(),
        };
        self.entries.iter().flat_map(keys).collect()
    }

    /// Entries that are no keys and never will be, with why: what is written in the configuration itself.
    #[must_use]
    pub fn malformed(&self) -> Vec<String> {
        let reason = |entry: &Entry| match entry {
            Entry::Unusable(reason) => Some(reason.clone()),
            _ => None,
        };
        self.entries.iter().filter_map(reason).collect()
    }

    /// Entries that give no keys at present, with why: the malformed ones, and files.
    #[must_use]
    pub fn unusable(&self) -> Vec<String> {
        let reason = |entry: &Entry| match entry {
            Entry::Keys(_) => None,
            Entry::File(path) => read(path).err().map(|reason| format!("minisign key {}: {reason}", path.display())),
            Entry::Unusable(reason) => Some(reason.clone()),
        };
        self.entries.iter().filter_map(reason).collect()
    }

    /// Files that keys come from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::File(path) => Some(path.as_path()),
            _ => None,
        })
    }

    /// Whether no key was configured, not even a wrong one: then nobody cares for signatures.
    #[must_use]
    pub fn none(&self) -> bool {
        self.entries.is_empty()
    }
}

/// The keys of minisign's one-line form, or of a file that it writes: comments and keys.
fn parse(text: &str) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("untrusted comment:")) {
        let bytes = STANDARD.decode(line).map_err(|_| "not a minisign public key: not base64".to_owned())?;
        if bytes.len() == SECRET_KEY {
            return Err("a secret key does not belong here".into());
        }
        let public = PublicKey::from_base64(line).map_err(|_| "not a minisign public key".to_owned())?;
        if keys.len() == MOST_KEYS {
            return Err(format!("more than {MOST_KEYS} keys"));
        }
        let id = key_id(&bytes).ok_or("not a minisign public key")?;
        keys.push(Key { public, id, bytes });
    }
    match keys.is_empty() {
        true => Err("no minisign public key in it".into()),
        false => Ok(keys),
    }
}

fn read(path: &Path) -> Result<Vec<Key>, String> {
    let content = keyfile::content(path)?;
    parse(std::str::from_utf8(&content).map_err(|_| "not a minisign public key: not text".to_owned())?)
}

/// The number in what a key or signature decodes to: it is behind the two letters of the algorithm.
fn key_id(bytes: &[u8]) -> Option<KeyId> {
    bytes.get(2..10)?.try_into().ok().map(KeyId)
}

/// A signature that was read, but not held against anything yet.
#[derive(Clone)]
pub struct Signature {
    signature: minisign_verify::Signature,
    key: KeyId,
    legacy: bool,
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature by {}", self.key)
    }
}

impl Signature {
    /// Reads the text of a `.minisig` file: four lines, as minisign writes them. `None`: it is something else.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Signature> {
        if text.len() as u64 > LARGEST_SIGNATURE {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        let lines: Vec<&str> = text.lines().collect();
        let [untrusted, signature, comment, global] = lines[..] else { return None };
        if !untrusted.starts_with("untrusted comment: ") || !comment.starts_with("trusted comment: ") {
            return None;
        }
        // Only the canonical base64: the library below takes other spellings of the same bytes, too.
        let bytes = STANDARD.decode(signature).ok()?;
        STANDARD.decode(global).ok()?;
        let key = key_id(&bytes)?;
        let signature = minisign_verify::Signature::decode(text).ok()?;
        Some(Signature { signature, key, legacy: bytes.starts_with(b"Ed") })
    }

    /// The number of the key that made it.
    #[must_use]
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// Whether it is of the content itself (`minisign -l`), not of its hash: all of the content is needed at once then.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.legacy
    }

    /// The comment that is signed along with the content; to be trusted once the signature was found good.
    #[must_use]
    pub fn trusted_comment(&self) -> &str {
        self.signature.trusted_comment()
    }

    /// Whether this key made it of this content.
    #[must_use]
    pub fn is_good(&self, key: &Key, content: &[u8]) -> bool {
        key.public.verify(content, &self.signature, true).is_ok()
    }

    /// As [`Signature::is_good`], of content in pieces; `None`: made by another key, or legacy.
    #[must_use]
    pub fn stream<'a>(&'a self, key: &'a Key) -> Option<StreamVerifier<'a>> {
        key.public.verify_stream(&self.signature).ok()
    }
}

/// A comment in one line that no terminal takes for commands.
#[must_use]
pub fn plain(comment: &str) -> String {
    comment.chars().take(LONGEST_COMMENT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
pub(crate) mod tests;
