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
/// Read at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// The keys that sign archives.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    keys: Vec<(PublicKey, Digest)>,
    /// Lines that are not keys, with why.
    unusable: Vec<String>,
}

impl Keys {
    /// Reads keys in minisign's one-line form.
    pub fn new(lines: &[String]) -> Keys {
        let mut keys = Keys::default();
        for line in lines {
            let line = line.trim();
            match (PublicKey::from_base64(line), STANDARD.decode(line)) {
                (Ok(key), Ok(bytes)) => keys.keys.push((key, Digest::of(&bytes))),
                (Err(error), _) => keys.unusable.push(format!("minisign key {line:?}: {error}")),
                (_, Err(error)) => keys.unusable.push(format!("minisign key {line:?}: {error}")),
            }
        }
        keys
    }

    /// Lines that are not keys.
    pub fn unusable(&self) -> &[String] {
        &self.unusable
    }

    /// Whether no key was configured, not even a wrong one: then nobody cares for such signatures.
    pub fn none(&self) -> bool {
        self.keys.is_empty() && self.unusable.is_empty()
    }

    /// Whether there is a key with this fingerprint.
    pub fn has(&self, fingerprint: &Digest) -> bool {
        self.keys.iter().any(|(_, known)| known == fingerprint)
    }

    /// The key whose signature of all of `content` this is.
    ///
    /// # Errors
    /// Why it is no good signature, with the keys that were tried.
    fn verify(&self, signature: &str, content: &File) -> Result<Digest, String> {
        let signature = Signature::decode(signature).map_err(|_| "is not a minisign signature".to_owned())?;
        let tried = || {
            let known = self.keys.iter().map(|(_, fingerprint)| format!("sha256:{:.16}", fingerprint.hex()));
            let all: Vec<String> = known.chain(self.unusable.iter().cloned()).collect();
            format!("(tried: {})", all.join(", "))
        };
        let unreadable = |error: io::Error| format!("cannot be checked: {error}");
        let mut streams: Vec<(StreamVerifier<'_>, &Digest)> = Vec::new();
        let mut legacy = Vec::new();
        for (key, fingerprint) in &self.keys {
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
                .map(|(_, fingerprint)| fingerprint.clone())
                .ok_or_else(|| format!("does not fit the archive {}", tried()));
        }
        for_each_chunk(content, |chunk| {
            streams.iter_mut().for_each(|(verifier, _)| verifier.update(chunk));
            Ok(())
        })
        .map_err(unreadable)?;
        let good = streams.into_iter().find_map(|(mut verifier, key)| verifier.finalize().is_ok().then_some(key));
        good.cloned().ok_or_else(|| format!("does not fit the archive {}", tried()))
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
    /// Whose signature it is.
    pub key: Digest,
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
    let key = keys.verify(&text, &file).map_err(failed)?;
    Ok(Some(SignedFile { file, version, key }))
}
