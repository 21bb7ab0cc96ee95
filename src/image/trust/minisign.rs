//! minisign signatures of whole archives: `app.tar.minisig` beside `app.tar`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{PublicKey, Signature, StreamVerifier};

use super::super::Digest;

/// Four lines, two of them comments.
const LARGEST_SIGNATURE: u64 = 64 << 10;
/// Signatures of the old kind are over the content itself, which has to be in memory then, in bytes.
const LARGEST_LEGACY: u64 = 64 << 20;
/// Bytes of a secret key.
const SECRET_KEY: usize = 158;
/// Most keys in one entry.
const MOST_KEYS: usize = 32;
/// Of a trusted comment, in characters.
const LONGEST_COMMENT: usize = 256;
/// Read at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// The keys that sign archives.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// Entries of the configuration: keys, or files of keys.
    entries: Vec<Entry>,
}

/// An entry of `minisignPublicKeys`.
#[derive(Debug, Clone)]
enum Entry {
    Keys(Vec<Key>),
    /// Read whenever keys are needed, so that a rotated key counts at once.
    File(PathBuf),
    /// Not keys, and why.
    Unusable(String),
}

type Key = (PublicKey, Digest);

impl Keys {
    /// Takes keys in minisign's one-line form, the texts of its `.pub` files, or absolute paths of such files.
    pub fn new(entries: &[String]) -> Keys {
        let entry = |(number, text): (usize, &String)| match text.trim() {
            path if path.starts_with('/') => Entry::File(path.into()),
            text => match parse(text) {
                Ok(keys) => Entry::Keys(keys),
                // Not what it is: it may be a secret key by mistake.
                Err(reason) => Entry::Unusable(format!("minisignPublicKeys[{number}]: {reason}")),
            },
        };
        Keys { entries: entries.iter().enumerate().map(entry).collect() }
    }

    /// The keys of now.
    fn now(&self) -> Vec<Key> {
        let keys = |entry: &Entry| match entry {
            Entry::Keys(keys) => keys.clone(),
            Entry::File(path) => read(path).unwrap_or_default(),
            Entry::Unusable(_) => Vec::new(),
        };
        self.entries.iter().flat_map(keys).collect()
    }

    /// Entries that give no keys, with why.
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

    /// Whether no key was configured, not even a wrong one: then nobody cares for such signatures.
    pub fn none(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether there is a key with this fingerprint.
    pub fn has(&self, fingerprint: &Digest) -> bool {
        self.now().iter().any(|(_, known)| known == fingerprint)
    }

    /// The key whose signature of all of `content` this is.
    ///
    /// # Errors
    /// Why it is no good signature, with the keys that were tried.
    fn verify(&self, signature: &str, content: &File) -> Result<Signer, String> {
        let keys = self.now();
        let signature = Signature::decode(signature).map_err(|_| "is not a minisign signature".to_owned())?;
        let tried = || {
            let known = keys.iter().map(|(_, fingerprint)| format!("sha256:{:.16}", fingerprint.hex()));
            let all: Vec<String> = known.chain(self.unusable()).collect();
            format!("(tried: {})", all.join(", "))
        };
        let unreadable = |error: io::Error| format!("cannot be checked: {error}");
        let by = |key: &Digest| Signer { key: key.clone(), comment: plain(signature.trusted_comment()) };
        let mut streams: Vec<(StreamVerifier<'_>, &Digest)> = Vec::new();
        let mut legacy = Vec::new();
        for (key, fingerprint) in &keys {
            match key.verify_stream(&signature) {
                Ok(verifier) => streams.push((verifier, fingerprint)),
                Err(minisign_verify::Error::UnsupportedLegacyMode) => legacy.push((key, fingerprint)),
                // Made with another key, by the key's number.
                Err(_) => {}
            }
        }
        if streams.is_empty() && legacy.is_empty() {
            return Err(format!("is by a key that is not among minisignPublicKeys {}", tried()));
        }
        if !legacy.is_empty() {
            let size = content.metadata().map_err(unreadable)?.len();
            if size > LARGEST_LEGACY {
                return Err(format!("is of minisign's old kind, which is for up to {LARGEST_LEGACY} bytes only"));
            }
            let mut bytes = Vec::new();
            for_each_chunk(content, |chunk| match bytes.len() + chunk.len() > LARGEST_LEGACY as usize {
                true => Err(io::Error::other("it grows")),
                false => {
                    bytes.extend_from_slice(chunk);
                    Ok(())
                }
            })
            .map_err(unreadable)?;
            let good = legacy.into_iter().find(|(key, _)| key.verify(&bytes, &signature, true).is_ok());
            return good
                .map(|(_, fingerprint)| by(fingerprint))
                .ok_or_else(|| format!("does not fit the archive {}", tried()));
        }
        for_each_chunk(content, |chunk| {
            streams.iter_mut().for_each(|(verifier, _)| verifier.update(chunk));
            Ok(())
        })
        .map_err(unreadable)?;
        let good = streams.into_iter().find_map(|(mut verifier, key)| verifier.finalize().is_ok().then_some(key));
        good.map(by).ok_or_else(|| format!("does not fit the archive {}", tried()))
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
        let key = PublicKey::from_base64(line).map_err(|_| "not a minisign public key".to_owned())?;
        if keys.len() == MOST_KEYS {
            return Err(format!("more than {MOST_KEYS} keys"));
        }
        keys.push((key, Digest::of(&bytes)));
    }
    match keys.is_empty() {
        true => Err("no minisign public key in it".into()),
        false => Ok(keys),
    }
}

fn read(path: &Path) -> Result<Vec<Key>, String> {
    let content = super::keys::content(path)?;
    parse(std::str::from_utf8(&content).map_err(|_| "not a minisign public key: not text".to_owned())?)
}

/// A comment in one line that no terminal takes for commands.
fn plain(comment: &str) -> String {
    comment.chars().take(LONGEST_COMMENT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// All of a file, without moving its cursor.
fn for_each_chunk(file: &File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                take(&buffer[..count])?;
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What changes when a file's content does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(file: &File) -> io::Result<Version> {
        let metadata = file.metadata()?;
        Ok(Version {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// An archive whose signature was good when it was read.
#[derive(Debug)]
pub struct SignedFile {
    file: File,
    version: Version,
    pub signer: Signer,
}

/// Who has signed an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    pub key: Digest,
    /// The trusted comment: signed along with the archive.
    pub comment: String,
}

impl SignedFile {
    /// Whether nobody has written to it since.
    pub fn is_unchanged(&self) -> bool {
        Version::of(&self.file).is_ok_and(|now| now == self.version)
    }
}

/// Where the signature of an archive is.
pub fn signature_path(archive: &Path) -> PathBuf {
    let mut path = OsString::from(archive);
    path.push(".minisig");
    path.into()
}

/// Verifies the archive at `path`, opened as `archive`, if a signature lies beside it. The file that was opened is what
/// counts: the path may lead to another one by now.
///
/// # Errors
/// Why the signature that is there cannot be accepted.
pub fn verify(keys: &Keys, path: &Path, archive: &File) -> Result<Option<SignedFile>, String> {
    if keys.none() {
        return Ok(None);
    }
    let beside = signature_path(path);
    let failed = |reason: String| format!("signature {} {reason}", beside.display());
    let unreadable = |error: io::Error| failed(format!("cannot be read: {error}"));
    // A pipe that somebody left there is not waited for.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let signature = match File::options().read(true).custom_flags(nonblocking).open(&beside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(unreadable)?,
    };
    if !signature.metadata().map_err(unreadable)?.is_file() {
        return Err(failed("is not a regular file".into()));
    }
    let mut text = Vec::new();
    signature.take(LARGEST_SIGNATURE + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LARGEST_SIGNATURE {
        return Err(failed("is too large for one".into()));
    }
    let text = String::from_utf8(text).map_err(|_| failed("is not a minisign signature".into()))?;
    let cannot = |error: io::Error| failed(format!("cannot be checked: {error}"));
    let file = archive.try_clone().map_err(cannot)?;
    let version = Version::of(&file).map_err(cannot)?;
    let signer = keys.verify(&text, &file).map_err(failed)?;
    tracing::info!(archive = %path.display(), key = %signer.key, comment = signer.comment, "the archive is signed");
    Ok(Some(SignedFile { file, version, signer }))
}
