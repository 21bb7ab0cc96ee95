//! Where an image comes from on disk: a tar archive, packed or not, or an OCI layout folder.
//!
//! Archives list their members in any order (`docker save` writes the manifest last), so an index is made first, by
//! seeking over the data, and members are then read by their offset, several at once.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::blob::{self, Compression};
use super::tarball::{Kind, Reader};
use super::{Digest, Error};
use crate::sys::fs::{self, Dir};

/// Most members of an image archive. Its members are blobs, not files.
const MOST_MEMBERS: usize = 65_536;
/// Largest document (manifest, configuration) that is read into memory, in bytes: the registries' limit.
const LARGEST_DOCUMENT: u64 = 4 << 20;
/// Bytes of all documents that are read of one archive.
const MOST_DOCUMENTS: u64 = 32 << 20;
/// Most bytes a packed archive may unpack to; it is unpacked to a temporary file.
const LARGEST_ARCHIVE: u64 = 256 << 30;
/// `docker save` of old versions links equal layers; chains are never longer than one.
const MOST_LINKS: usize = 8;

/// An opened archive.
pub struct Archive {
    path: PathBuf,
    content: Content,
    /// Bytes of documents read so far.
    documents: AtomicU64,
}

enum Content {
    Tar { file: Arc<File>, members: HashMap<String, Place> },
    Layout(Dir),
}

enum Place {
    Data { offset: u64, size: u64 },
    Link(String),
}

impl Archive {
    /// Opens the archive or OCI layout folder at `path`. A packed archive is unpacked into an unnamed file in `scratch`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Archive`] when it is not an archive, or breaks off.
    pub fn open(path: &Path, scratch: &Path) -> Result<Archive, Error> {
        let not_one = |reason: String| Error::Archive { archive: path.into(), reason };
        // A pipe that somebody left there is not waited for.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(Error::io("open", path))?;
        let metadata = file.metadata().map_err(Error::io("open", path))?;
        if metadata.is_dir() {
            let dir = Dir::open(path).map_err(Error::io("open", path))?;
            return Ok(Archive { path: path.into(), content: Content::Layout(dir), documents: AtomicU64::new(0) });
        }
        if !metadata.is_file() {
            return Err(not_one("neither a file nor a folder".into()));
        }
        let mut start = [0; 6];
        let filled = file.read_at(&mut start, 0).map_err(Error::io("read", path))?;
        if filled == 0 {
            return Err(not_one("the file is empty".into()));
        }
        let file = match Compression::detect(&start[..filled]).map_err(|e| not_one(e.to_string()))? {
            Compression::None => file,
            _ => unpack_whole(file, path, scratch)?,
        };
        let members = index(&file, path)?;
        let content = Content::Tar { file: Arc::new(file), members };
        Ok(Archive { path: path.into(), content, documents: AtomicU64::new(0) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn contains(&self, member: &str) -> bool {
        match &self.content {
            Content::Tar { members, .. } => members.contains_key(member),
            Content::Layout(dir) => dir.open_beneath(OsStr::new(member)).is_ok(),
        }
    }

    /// The member as a stream.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none, [`Error::Stream`].
    pub fn read(&self, member: &str) -> Result<Member, Error> {
        let (file, offset, size) = match &self.content {
            Content::Layout(dir) => {
                let file = dir.open_beneath(OsStr::new(member)).map_err(|source| match source.kind() {
                    io::ErrorKind::NotFound => Error::Missing,
                    _ => Error::Stream { source },
                })?;
                let metadata = file.metadata().map_err(|source| Error::Stream { source })?;
                if !metadata.is_file() {
                    return Err(Error::Document("not a regular file".into()));
                }
                (Arc::new(file), 0, metadata.len())
            }
            Content::Tar { file, members } => {
                let mut name = member;
                let mut links = 0;
                loop {
                    match members.get(name) {
                        None => return Err(Error::Missing),
                        Some(Place::Data { offset, size }) => break (file.clone(), *offset, *size),
                        Some(Place::Link(target)) if links < MOST_LINKS => {
                            links += 1;
                            name = target;
                        }
                        Some(Place::Link(_)) => return Err(Error::Document("links in a circle".into())),
                    }
                }
            }
        };
        Ok(Member { file, offset, remaining: size })
    }

    /// The member as a document in memory.
    ///
    /// # Errors
    /// As [`Archive::read`]; [`Error::Limit`] when it is too large for one; [`Error::Mismatch`] when it has not the digest
    /// `expected`.
    pub fn document(&self, member: &str, expected: Option<&Digest>) -> Result<Vec<u8>, Error> {
        let reader = self.read(member)?;
        if reader.remaining > LARGEST_DOCUMENT {
            return Err(Error::Limit { what: "bytes in a document", limit: LARGEST_DOCUMENT });
        }
        // An archive may name one document a thousand times; all of them together have to fit in memory, too.
        let before = self.documents.fetch_add(reader.remaining, Ordering::Relaxed);
        if before.saturating_add(reader.remaining) > MOST_DOCUMENTS {
            return Err(Error::Limit { what: "bytes in all documents of an archive", limit: MOST_DOCUMENTS });
        }
        let mut content = Vec::with_capacity(reader.remaining as usize);
        reader.take(LARGEST_DOCUMENT).read_to_end(&mut content).map_err(|source| Error::Stream { source })?;
        if let Some(expected) = expected {
            let actual = Digest::of(&content);
            if actual != *expected {
                return Err(Error::Mismatch { what: "document", expected: expected.clone(), actual });
            }
        }
        Ok(content)
    }
}

/// The data of a member. Reads by position: several can be read from one archive at a time.
pub struct Member {
    file: Arc<File>,
    offset: u64,
    remaining: u64,
}

impl Read for Member {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = self.remaining.min(buf.len() as u64) as usize;
        let count = self.file.read_at(&mut buf[..wanted], self.offset)?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a member"));
        }
        self.offset += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}

/// Unpacks a packed archive: its members can only be found, and read side by side, in the plain one.
fn unpack_whole(file: File, path: &Path, scratch: &Path) -> Result<File, Error> {
    let broken = |source| Error::Member { archive: path.into(), member: "archive".into(), source: Box::new(source) };
    let dir = Dir::open(scratch).map_err(Error::io("open", scratch))?;
    let mut plain = dir.unnamed_file().map_err(Error::io("create a temporary file in", scratch))?;
    let (_, content) = blob::decompress(BufReader::with_capacity(256 << 10, file)).map_err(broken)?;
    let mut content = content.take(LARGEST_ARCHIVE + 1);
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0u64;
    loop {
        let count = match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(broken(Error::Stream { source })),
        };
        size += count as u64;
        io::Write::write_all(&mut plain, &buffer[..count]).map_err(Error::io("write a temporary file in", scratch))?;
    }
    if size > LARGEST_ARCHIVE {
        return Err(broken(Error::Limit { what: "bytes in an archive", limit: LARGEST_ARCHIVE }));
    }
    Ok(plain)
}

/// Finds the members of a plain archive.
fn index(file: &File, path: &Path) -> Result<HashMap<String, Place>, Error> {
    let not_one = |reason: String| Error::Archive { archive: path.into(), reason };
    let length = file.metadata().map_err(Error::io("open", path))?.len();
    let mut start = file;
    io::Seek::rewind(&mut start).map_err(Error::io("read", path))?;
    let mut reader = Reader::new(BufReader::with_capacity(4096, file));
    let mut members = HashMap::new();
    while let Some(member) = reader.next_member().map_err(|source| source.within(path, "archive"))? {
        // Names of blobs are plain text; what is not cannot be asked for.
        let Ok(name) = std::str::from_utf8(&member.path) else { continue };
        let Some(name) = clean(name) else { continue };
        let place = match member.kind {
            Kind::File if member.sparse.is_none() => {
                if member.offset.checked_add(member.stored).is_none_or(|end| end > length) {
                    return Err(not_one(format!("breaks off within {name}")));
                }
                Place::Data { offset: member.offset, size: member.stored }
            }
            Kind::Symlink | Kind::Link => {
                let Ok(target) = std::str::from_utf8(&member.link) else { continue };
                // Symlinks are relative to where they are, hard links to the archive.
                let folder = name.rfind('/').map_or("", |slash| &name[..slash]);
                let target = match member.kind {
                    Kind::Symlink if !target.starts_with('/') => clean(&format!("{folder}/{target}")),
                    _ => clean(target),
                };
                match target {
                    Some(target) => Place::Link(target),
                    None => continue,
                }
            }
            _ => continue,
        };
        members.insert(name, place);
        if members.len() > MOST_MEMBERS {
            return Err(not_one(format!("more than {MOST_MEMBERS} members")));
        }
    }
    Ok(members)
}

/// A member's name without `.` and `..`; `None` when it leads out of the archive.
fn clean(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Whether the folder `path` looks like an OCI layout.
pub fn is_layout(path: &Path) -> bool {
    path.join("index.json").is_file() && fs::status(&path.join("blobs")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn member_names() {
        assert_eq!(clean("./blobs//sha256/ab"), Some("blobs/sha256/ab".into()));
        assert_eq!(clean("a/../b/layer.tar"), Some("b/layer.tar".into()));
        assert_eq!(clean("../x"), None);
        assert_eq!(clean("a/../../x"), None);
    }
}
