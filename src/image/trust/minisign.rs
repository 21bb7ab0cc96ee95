//! minisign signatures of whole archives: `app.tar.minisig` beside `app.tar`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use minisign_verify::StreamVerifier;

use super::super::Digest;
use crate::minisign::{self, EXTENSION, Key, LARGEST_SIGNATURE, Signature, plain};
use crate::sys::keyfile;

/// Signatures of the old kind are over the content itself, which has to be in memory then, in bytes.
const LARGEST_LEGACY: u64 = 64 << 20;
/// Read at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// The keys that sign archives.
#[derive(Debug, Clone, Default)]
pub struct Keys(minisign::Keys);

/// A key's name in records and errors.
fn fingerprint(key: &Key) -> Digest {
    Digest::of(key.bytes())
}

impl Keys {
    /// The keys of `minisignPublicKeys`; see [`minisign::Keys::new`].
    pub fn new(entries: &[String]) -> Keys {
        Keys(minisign::Keys::new("minisignPublicKeys", entries))
    }

    /// Entries that give no keys, with why.
    pub fn unusable(&self) -> Vec<String> {
        self.0.unusable()
    }

    /// Files that keys come from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.files()
    }

    /// Whether no key was configured, not even a wrong one: then nobody cares for such signatures.
    pub fn none(&self) -> bool {
        self.0.none()
    }

    /// Whether there is a key with this fingerprint.
    pub fn has(&self, known: &Digest) -> bool {
        self.0.now().iter().any(|key| fingerprint(key) == *known)
    }

    /// The key whose signature of all of `content` this is.
    ///
    /// # Errors
    /// Why it is no good signature, with the keys that were tried.
    fn verify(&self, signature: &[u8], content: &File) -> Result<Signer, String> {
        let keys = self.0.now();
        let signature = Signature::parse(signature).ok_or("is not a minisign signature")?;
        let tried = || {
            let known = keys.iter().map(|key| format!("sha256:{:.16}", fingerprint(key).hex()));
            let all: Vec<String> = known.chain(self.unusable()).collect();
            format!("(tried: {})", all.join(", "))
        };
        let unreadable = |error: io::Error| format!("cannot be checked: {error}");
        let by = |key: &Key| Signer { key: fingerprint(key), comment: plain(signature.trusted_comment()) };
        let named: Vec<&Key> = keys.iter().filter(|key| key.id() == signature.key()).collect();
        if named.is_empty() {
            return Err(format!("is by a key that is not among {} {}", self.0.field(), tried()));
        }
        if signature.is_legacy() {
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
            let good = named.into_iter().find(|key| signature.is_good(key, &bytes));
            return good.map(by).ok_or_else(|| format!("does not fit the archive {}", tried()));
        }
        let mut streams: Vec<(StreamVerifier<'_>, &Key)> =
            named.into_iter().filter_map(|key| Some((signature.stream(key)?, key))).collect();
        for_each_chunk(content, |chunk| {
            streams.iter_mut().for_each(|(verifier, _)| verifier.update(chunk));
            Ok(())
        })
        .map_err(unreadable)?;
        let good = streams.into_iter().find_map(|(mut verifier, key)| verifier.finalize().is_ok().then_some(key));
        good.map(by).ok_or_else(|| format!("does not fit the archive {}", tried()))
    }
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
    path.push(EXTENSION);
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
    let signature = match keyfile::open(&beside) {
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
    let cannot = |error: io::Error| failed(format!("cannot be checked: {error}"));
    let file = archive.try_clone().map_err(cannot)?;
    let version = Version::of(&file).map_err(cannot)?;
    let signer = keys.verify(&text, &file).map_err(failed)?;
    tracing::info!(archive = %path.display(), key = %signer.key, comment = signer.comment, "the archive is signed");
    Ok(Some(SignedFile { file, version, signer }))
}
