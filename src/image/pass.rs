//! An archive that can only be read forward, taken in one pass and never written anywhere as a whole.
//!
//! What the members mean is only known when all have gone by: manifests come last, and in any order. So each is judged by
//! its first bytes. What looks like a layer is unpacked into the staging folder at once, links are remembered, and small
//! rest is kept in memory. Which of the layers become part of an image is decided afterwards; staging goes, and with it
//! what no image wants. An archive of images for several machines is the exception: once that is seen, its layers wait for
//! a second pass, if there can be one.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use super::archive::{self, LARGEST_DOCUMENT, MOST_DOCUMENTS, MOST_MEMBERS, Place};
use super::blob::{self, Compression};
use super::ingest::Ingest;
use super::tarball::{Forward, Reader};
use super::unpack::Limits;
use super::{Digest, Error, document};

/// Most bytes of the archive, unpacked once.
const LARGEST_ARCHIVE: u64 = 256 << 30;
/// Most bytes after the end mark of the archive: writers fill up their last record.
const LARGEST_REST: u64 = 16 << 20;
/// An archive holds the layers of several images: this many times the entries of one layer.
const MANY_LAYERS: u64 = 8;
const BUFFER: usize = 256 << 10;
/// A tar header.
const BLOCK: usize = 512;

/// What a pass unpacks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Take<'a> {
    /// All layers: there is no second pass.
    All,
    /// All layers until a document is about other machines than this one. From there on they are left for a second pass,
    /// which knows which of them are wanted; most archives need none.
    UntilForeign,
    /// These members, and nothing else.
    Only(&'a HashSet<String>),
}

/// Reads an archive, plain or packed: its members. `path` is for messages.
///
/// # Errors
/// [`Error::Member`] and [`Error::Archive`] for what is wrong with the archive as a whole; [`Error::NoSpace`] and other
/// failures of the disk. A member that is damaged is an error only when an image needs it.
pub(super) fn read(
    ingest: &Ingest<'_>,
    path: &Path,
    source: impl Read + Send,
    limits: &Limits,
    take: Take<'_>,
) -> Result<HashMap<String, Place>, Error> {
    let broken = |error: Error| error.within(path, "archive");
    let (_, content) = blob::decompress(BufReader::with_capacity(BUFFER, source)).map_err(broken)?;
    let bounded = Bounded { inner: content, left: LARGEST_ARCHIVE };
    let left = Limits { entries: limits.entries.saturating_mul(MANY_LAYERS), ..limits.clone() };
    let mut pass = Pass { ingest, documents: 0, left, limits, take, foreign: false };
    // Unpacking the archive, hashing a layer and writing its files: a thread for each.
    blob::ahead(bounded, |pieces| pass.members(path, pieces)).map_err(|error| match error {
        error @ Error::Stream { .. } => broken(error),
        error => error,
    })
}

struct Pass<'a> {
    ingest: &'a Ingest<'a>,
    /// Bytes of all documents kept.
    documents: u64,
    /// What all layers together may still amount to.
    left: Limits,
    /// What one may.
    limits: &'a Limits,
    take: Take<'a>,
    /// Whether a document was about other machines.
    foreign: bool,
}

impl Pass<'_> {
    fn members(&mut self, path: &Path, content: impl BufRead + Send) -> Result<HashMap<String, Place>, Error> {
        let broken = |error: Error| error.within(path, "archive");
        let mut reader = Reader::new(Forward(content));
        let mut members = HashMap::new();
        while let Some(member) = reader.next_member().map_err(broken)? {
            let (name, place) = match archive::classify(&member) {
                None => continue,
                Some((name, _)) if self.leaves(&name) => continue,
                Some((name, Some(target))) => (name, Place::Link(target)),
                Some((name, None)) => {
                    let place = self.member(&name, member.stored, &mut reader).map_err(|e| e.within(path, &name))?;
                    (name, place)
                }
            };
            members.insert(name, place);
            if members.len() > MOST_MEMBERS {
                let reason = format!("more than {MOST_MEMBERS} members");
                return Err(Error::Archive { archive: path.into(), reason });
            }
        }
        // The check sum of a packed stream is at its end, and so is what tells a whole stream from a broken one.
        let mut rest = reader.into_source().take(LARGEST_REST + 1);
        let rest = io::copy(&mut rest, &mut io::sink()).map_err(|source| broken(Error::Stream { source }))?;
        if rest > LARGEST_REST {
            return Err(broken(Error::Limit { what: "bytes after the end of an archive", limit: LARGEST_REST }));
        }
        if members.is_empty() {
            return Err(Error::Archive { archive: path.into(), reason: "nothing in it".into() });
        }
        Ok(members)
    }

    fn leaves(&self, name: &str) -> bool {
        matches!(self.take, Take::Only(wanted) if !wanted.contains(name))
    }

    /// Takes in the data of the member `name`, which has `size` bytes.
    fn member(&mut self, name: &str, size: u64, data: &mut (impl Read + Send)) -> Result<Place, Error> {
        let mut start = Vec::with_capacity(BLOCK);
        data.by_ref().take(BLOCK as u64).read_to_end(&mut start).map_err(|source| Error::Stream { source })?;
        if is_layer(&start) {
            return self.layer(name, size, Cursor::new(start).chain(data));
        }
        if size > LARGEST_DOCUMENT {
            return Ok(Place::broken(Error::Limit { what: "bytes in a document", limit: LARGEST_DOCUMENT }));
        }
        if self.documents.saturating_add(size) > MOST_DOCUMENTS {
            let what = "bytes in all documents of an archive";
            return Ok(Place::broken(Error::Limit { what, limit: MOST_DOCUMENTS }));
        }
        self.documents += size;
        start.reserve_exact((size as usize).saturating_sub(start.len()));
        data.read_to_end(&mut start).map_err(|source| Error::Stream { source })?;
        self.foreign |= document::is_about_others(&start);
        Ok(Place::Document(start))
    }

    fn layer(&mut self, name: &str, size: u64, data: impl Read + Send) -> Result<Place, Error> {
        // The name is only a claim: whether it is the layer an image means by it is checked with the image.
        if let Some(digest) = digest_in(name)
            && let Some(diff_id) = self.ingest.known(&digest)
        {
            return Ok(Place::Skipped(diff_id));
        }
        if self.foreign && matches!(self.take, Take::UntilForeign) {
            return Ok(Place::Later);
        }
        self.ingest.room(size)?;
        let limits = Limits {
            entries: self.limits.entries.min(self.left.entries),
            bytes: self.limits.bytes.min(self.left.bytes),
            folders: self.limits.folders,
        };
        match self.ingest.unpack(data, &limits) {
            Ok((record, digests)) => {
                self.left.entries = self.left.entries.saturating_sub(record.entries);
                self.left.bytes = self.left.bytes.saturating_sub(record.size);
                Ok(Place::Unpacked(digests))
            }
            Err(error) if is_fatal(&error) => Err(error),
            Err(error) => Ok(Place::broken(error)),
        }
    }
}

/// Whether going on would be of no use.
fn is_fatal(error: &Error) -> bool {
    match error {
        Error::NoSpace { .. } | Error::Io { .. } | Error::Record(_) => true,
        Error::Apply { source, .. } => {
            matches!(source.kind(), io::ErrorKind::ReadOnlyFilesystem)
                || source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
        }
        // Else members that no image wants could fill the disk, one limit after the other.
        Error::Limit { .. } => true,
        _ => false,
    }
}

/// Whether a member that begins like this is a layer: packed, or a tar archive itself.
fn is_layer(start: &[u8]) -> bool {
    if !matches!(Compression::detect(start), Ok(Compression::None)) {
        return true;
    }
    let Some(header) = start.get(..BLOCK) else { return false };
    // An empty archive is all zeros.
    if &header[257..262] == b"ustar" || header.iter().all(|&byte| byte == 0) {
        return true;
    }
    // Before ustar there was no mark, but the check sum.
    let field = header[148..156].iter().copied().filter(u8::is_ascii_digit).map(u64::from);
    let stated = field.fold(0, |sum: u64, digit| sum * 8 + (digit - u64::from(b'0')));
    let bytes = header.iter().enumerate();
    let actual: u64 = bytes.map(|(i, &byte)| if (148..156).contains(&i) { 32 } else { u64::from(byte) }).sum();
    stated == actual
}

/// The digest that a member is named by: `blobs/sha256/<hex>`, `<hex>.tar` or `<hex>`, as `docker save`, podman and skopeo
/// write them.
fn digest_in(name: &str) -> Option<Digest> {
    let hex = name.strip_prefix("blobs/sha256/").unwrap_or(name);
    format!("sha256:{}", hex.strip_suffix(".tar").unwrap_or(hex)).parse().ok()
}

/// Breaks off when there is more than there may be.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other(format!("more than {LARGEST_ARCHIVE} bytes in an archive")))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layers_by_their_first_bytes() {
        let mut header = tar::Header::new_old();
        header.set_path("etc/passwd").unwrap();
        header.set_size(3);
        header.set_cksum();
        assert!(is_layer(header.as_bytes()));
        let mut ustar = tar::Header::new_ustar();
        ustar.set_cksum();
        assert!(is_layer(ustar.as_bytes()));
        assert!(is_layer(&[0; 512]));
        assert!(is_layer(&[0x1f, 0x8b, 8]));
        assert!(is_layer(&[0x28, 0xb5, 0x2f, 0xfd]));
        let document = format!("{{\"a\":\"{}\"}}", "x".repeat(1000));
        for no in [&b""[..], b"{}", b"[]", &document.as_bytes()[..512], &[0; 100], &[b'0'; 512]] {
            assert!(!is_layer(no), "{no:?}");
        }
    }

    #[test]
    fn digests_in_names() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for name in [format!("blobs/sha256/{hex}"), format!("{hex}.tar"), hex.to_owned()] {
            assert_eq!(digest_in(&name).unwrap().hex(), hex);
        }
        for name in [format!("blobs/sha512/{hex}"), format!("{hex}/layer.tar"), "layer.tar".into(), String::new()] {
            assert!(digest_in(&name).is_none(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_first_bytes_are_judged(start in prop::collection::vec(any::<u8>(), 0..600), name in "\\PC{0,80}") {
            let _ = is_layer(&start);
            let _ = digest_in(&name);
        }
    }
}
