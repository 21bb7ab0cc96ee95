//! Where an image comes from: a tar archive, a stream of one, or an OCI layout folder.
//!
//! Archives list their members in any order (`docker save` writes the manifest last). Of a plain one an index is made
//! first, by seeking over the data, and members are then read by their offset, several at once. What can only be read
//! forward (a packed file, standard input) is taken in one [`pass`](super::pass).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::blob::{Compression, Digests};
use super::tarball::{self, Kind, Reader};
use super::{Digest, Error};
use crate::sys::fs::{self, Dir};

/// Most members of an image archive. Its members are blobs, not files.
pub(super) const MOST_MEMBERS: usize = 65_536;
/// Largest document (manifest, configuration) that is read into memory, in bytes: the registries' limit.
pub(super) const LARGEST_DOCUMENT: u64 = 4 << 20;
/// Bytes of all documents that are read of one archive.
pub(super) const MOST_DOCUMENTS: u64 = 32 << 20;
/// `docker save` of old versions links equal layers; chains are never longer than one.
const MOST_LINKS: usize = 8;

/// What a path turned out to be.
pub(super) enum Opened {
    /// An archive that can be read at any place.
    Plain(File),
    /// An archive that has to be unpacked from its beginning.
    Packed(File),
    /// An OCI layout folder.
    Layout(Dir),
}

/// Opens the archive or OCI layout folder at `path`. What vouches for an archive as a whole is checked on the file that
/// this gives, before anything else reads it: the path may name another file by then.
///
/// # Errors
/// [`Error::Io`]; [`Error::Archive`] when it is none.
pub(super) fn open(path: &Path) -> Result<Opened, Error> {
    let not_one = |reason: String| Error::Archive { archive: path.into(), reason };
    // A pipe that somebody left there is not waited for.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("open", path))?;
    if metadata.is_dir() {
        return Dir::open(path).map(Opened::Layout).map_err(Error::io("open", path));
    }
    if !metadata.is_file() {
        return Err(not_one("neither a file nor a folder".into()));
    }
    let mut start = [0; 6];
    let filled = file.read_at(&mut start, 0).map_err(Error::io("read", path))?;
    if filled == 0 {
        return Err(not_one("the file is empty".into()));
    }
    match Compression::detect(&start[..filled]).map_err(|e| not_one(e.to_string()))? {
        Compression::None => Ok(Opened::Plain(file)),
        Compression::Gzip | Compression::Zstd => Ok(Opened::Packed(file)),
    }
}

/// An archive whose members are known.
pub(super) struct Archive {
    path: PathBuf,
    content: Content,
    /// Bytes of documents read so far.
    documents: AtomicU64,
}

enum Content {
    Plain {
        file: Arc<File>,
        members: HashMap<String, Place>,
    },
    /// What was kept of a stream.
    Read(HashMap<String, Place>),
    Layout(Dir),
}

/// Where a member is.
pub(super) enum Place {
    /// In the file.
    Data { offset: u64, size: u64 },
    /// Under this name.
    Link(String),
    /// Here: it is small, and no layer.
    Document(Vec<u8>),
    /// In staging, as a layer with these digests.
    Unpacked(Digests),
    /// Nowhere: by its name it is this layer, which the store has.
    Skipped(Digest),
    /// Nowhere yet: a layer that was left for another pass.
    Later,
    /// Nowhere: it was not usable.
    Broken(Mutex<Option<Error>>),
}

impl Place {
    pub(super) fn broken(error: Error) -> Place {
        Place::Broken(Mutex::new(Some(error)))
    }
}

/// A member as a layer.
pub(super) enum Found<'a> {
    Stream(Box<dyn Read + Send + 'a>),
    Unpacked(&'a Digests),
    Skipped(&'a Digest),
    Broken(&'a Mutex<Option<Error>>),
}

impl Archive {
    pub(super) fn layout(path: &Path, dir: Dir) -> Archive {
        Archive { path: path.into(), content: Content::Layout(dir), documents: AtomicU64::new(0) }
    }

    /// The members of a plain archive.
    ///
    /// # Errors
    /// [`Error::Archive`] when it is not an archive, or breaks off.
    pub(super) fn plain(path: &Path, file: File) -> Result<Archive, Error> {
        let members = index(&file, path)?;
        let content = Content::Plain { file: Arc::new(file), members };
        Ok(Archive { path: path.into(), content, documents: AtomicU64::new(0) })
    }

    /// What a pass over a stream has kept.
    pub(super) fn read_through(path: &Path, members: HashMap<String, Place>) -> Archive {
        Archive { path: path.into(), content: Content::Read(members), documents: AtomicU64::new(0) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a folder.
    pub(super) fn is_folder(&self) -> bool {
        matches!(self.content, Content::Layout(_))
    }

    pub(super) fn contains(&self, member: &str) -> bool {
        match &self.content {
            Content::Plain { members, .. } | Content::Read(members) => members.contains_key(member),
            // What is there and cannot be read is an error that names it, not an absence.
            Content::Layout(dir) => !matches!(in_layout(dir, member), Err(Error::Missing)),
        }
    }

    /// A member's own name and where it is, at the end of its links.
    fn place<'a>(members: &'a HashMap<String, Place>, member: &str) -> Result<(&'a str, &'a Place), Error> {
        let mut name = member;
        for _ in 0..=MOST_LINKS {
            match members.get_key_value(name).ok_or(Error::Missing)? {
                (_, Place::Link(target)) => name = target,
                (name, place) => return Ok((name.as_str(), place)),
            }
        }
        Err(Error::Document("links in a circle".into()))
    }

    /// Whether layers were left for another pass.
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(&self.content, Content::Read(members) if members.values().any(|place| matches!(place, Place::Later)))
    }

    /// The name of the member that another pass has to bring for `member`, if it has to.
    pub(super) fn awaited(&self, member: &str) -> Option<&str> {
        let Content::Read(members) = &self.content else { return None };
        match Archive::place(members, member) {
            Ok((name, Place::Later)) => Some(name),
            _ => None,
        }
    }

    /// Takes in what another pass has brought.
    pub(super) fn finish(&mut self, more: HashMap<String, Place>) {
        if let Content::Read(members) = &mut self.content {
            members.extend(more);
        }
    }

    /// The member as a layer.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none, [`Error::Stream`].
    pub(super) fn find(&self, member: &str) -> Result<Found<'_>, Error> {
        let (file, members) = match &self.content {
            Content::Layout(dir) => return Ok(Found::Stream(Box::new(in_layout(dir, member)?))),
            Content::Plain { file, members } => (Some(file), members),
            Content::Read(members) => (None, members),
        };
        match (Archive::place(members, member)?.1, file) {
            (Place::Data { offset, size }, Some(file)) => {
                Ok(Found::Stream(Box::new(Member { file: file.clone(), offset: *offset, remaining: *size })))
            }
            (Place::Document(content), _) => Ok(Found::Stream(Box::new(Cursor::new(content.as_slice())))),
            (Place::Unpacked(digests), _) => Ok(Found::Unpacked(digests)),
            (Place::Skipped(diff_id), _) => Ok(Found::Skipped(diff_id)),
            (Place::Broken(error), _) => Ok(Found::Broken(error)),
            (Place::Data { .. } | Place::Link(_) | Place::Later, _) => Err(Error::Missing),
        }
    }

    /// Bytes of a member that can be read, where that is known.
    pub(super) fn size(&self, member: &str) -> Option<u64> {
        match &self.content {
            Content::Layout(dir) => Some(in_layout(dir, member).ok()?.remaining),
            Content::Plain { members, .. } => match Archive::place(members, member).ok()?.1 {
                Place::Data { size, .. } => Some(*size),
                _ => None,
            },
            Content::Read(_) => None,
        }
    }

    /// The member as a document in memory.
    ///
    /// # Errors
    /// As [`Archive::find`]; [`Error::Limit`] when it is too large for one; [`Error::Mismatch`] when it has not the digest
    /// `expected`.
    pub(super) fn document(&self, member: &str, expected: Option<&Digest>) -> Result<Vec<u8>, Error> {
        let (reader, size): (Box<dyn Read + '_>, u64) = match &self.content {
            Content::Layout(dir) => {
                let member = in_layout(dir, member)?;
                let size = member.remaining;
                (Box::new(member), size)
            }
            Content::Plain { members, .. } | Content::Read(members) => {
                let size = match Archive::place(members, member)?.1 {
                    Place::Data { size, .. } => *size,
                    Place::Document(content) => content.len() as u64,
                    Place::Unpacked(_) | Place::Skipped(_) | Place::Later => {
                        return Err(Error::Document("a layer, not a document".into()));
                    }
                    Place::Broken(error) => return Err(taken(error)),
                    Place::Link(_) => return Err(Error::Missing),
                };
                match self.find(member)? {
                    Found::Stream(reader) => (reader, size),
                    _ => return Err(Error::Missing),
                }
            }
        };
        if size > LARGEST_DOCUMENT {
            return Err(Error::Limit { what: "bytes in a document", limit: LARGEST_DOCUMENT });
        }
        // An archive may name one document a thousand times; all of them together have to fit in memory, too.
        let before = self.documents.fetch_add(size, Ordering::Relaxed);
        if before.saturating_add(size) > MOST_DOCUMENTS {
            return Err(Error::Limit { what: "bytes in all documents of an archive", limit: MOST_DOCUMENTS });
        }
        let mut content = Vec::with_capacity(size as usize);
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

/// The error a member failed with; only its first reader is given it, all others what it says.
pub(super) fn taken(error: &Mutex<Option<Error>>) -> Error {
    let mut error = error.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut text = error.as_ref().map_or_else(|| "not usable".to_owned(), Error::to_string);
    let mut source = error.as_ref().and_then(std::error::Error::source);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let again = Error::Document(text.clone());
    error.replace(again).unwrap_or(Error::Document(text))
}

fn in_layout(dir: &Dir, member: &str) -> Result<Member, Error> {
    let file = dir.open_beneath(OsStr::new(member)).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing,
        io::ErrorKind::CrossesDevices => Error::Document("leads out of the folder".into()),
        _ => Error::Stream { source },
    })?;
    let metadata = file.metadata().map_err(|source| Error::Stream { source })?;
    if !metadata.is_file() {
        return Err(Error::Document("not a regular file".into()));
    }
    Ok(Member { file: Arc::new(file), offset: 0, remaining: metadata.len() })
}

/// The data of a member. Reads by position: several can be read from one archive at a time.
struct Member {
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

/// Finds the members of a plain archive.
fn index(file: &File, path: &Path) -> Result<HashMap<String, Place>, Error> {
    let not_one = |reason: String| Error::Archive { archive: path.into(), reason };
    let length = file.metadata().map_err(Error::io("open", path))?.len();
    let mut start = file;
    io::Seek::rewind(&mut start).map_err(Error::io("read", path))?;
    let mut reader = Reader::new(BufReader::with_capacity(4096, file));
    let mut members = HashMap::new();
    while let Some(member) = reader.next_member().map_err(|source| source.within(path, "archive"))? {
        let (name, place) = match classify(&member) {
            None => continue,
            Some((name, Some(target))) => (name, Place::Link(target)),
            Some((name, None)) => {
                if member.offset.checked_add(member.stored).is_none_or(|end| end > length) {
                    return Err(not_one(format!("breaks off within {name}")));
                }
                (name, Place::Data { offset: member.offset, size: member.stored })
            }
        };
        members.insert(name, place);
        if members.len() > MOST_MEMBERS {
            return Err(not_one(format!("more than {MOST_MEMBERS} members")));
        }
    }
    Ok(members)
}

/// The name of a member and, of a link, the name it leads to; `None` for what cannot be part of an image.
pub(super) fn classify(member: &tarball::Member) -> Option<(String, Option<String>)> {
    // Names of blobs are plain text; what is not cannot be asked for.
    let name = clean(std::str::from_utf8(&member.path).ok()?)?;
    match member.kind {
        Kind::File if member.sparse.is_none() => Some((name, None)),
        Kind::Symlink | Kind::Link => {
            let target = std::str::from_utf8(&member.link).ok()?;
            // Symlinks are relative to where they are, hard links to the archive.
            let folder = name.rfind('/').map_or("", |slash| &name[..slash]);
            let target = match member.kind {
                Kind::Symlink if !target.starts_with('/') => clean(&format!("{folder}/{target}"))?,
                _ => clean(target)?,
            };
            Some((name, Some(target)))
        }
        _ => None,
    }
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
    use super::{Error, Mutex, clean, taken};

    #[test]
    fn a_broken_member_tells_every_reader_why() {
        let limit = Error::Limit { what: "bytes", limit: 7 };
        let error = Mutex::new(Some(limit.within("/a.tar".as_ref(), "layer.tar")));
        assert!(matches!(taken(&error), Error::Member { .. }));
        for _ in 0..2 {
            assert_eq!(taken(&error).to_string(), "/a.tar: layer.tar: more than 7 bytes");
        }
    }

    #[test]
    fn member_names() {
        assert_eq!(clean("./blobs//sha256/ab"), Some("blobs/sha256/ab".into()));
        assert_eq!(clean("a/../b/layer.tar"), Some("b/layer.tar".into()));
        assert_eq!(clean("../x"), None);
        assert_eq!(clean("a/../../x"), None);
    }
}
