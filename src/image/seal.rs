//! What a layer's folder was like when it was unpacked, to find out what somebody or something did to it since.
//!
//! A quick look compares what `lstat` tells of every name: what is missing, new, of another kind, size, mode or owner. A
//! file with another change time, modification time or inode is read again, so that a store that was moved or restored
//! is right after one slow look. A thorough look reads every file. Times of folders mean nothing (reading changes them).
//!
//! The file is a magic line, a header, one block for every folder (its entries sorted by name), the folders in the order
//! of a tree walk, and an XXH3 of everything before it. Numbers are LEB128, hashes and times little-endian.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;
use twox_hash::xxhash3_64::{RawHasher, SecretBuffer};

use super::recipe::put_number;
use crate::sys::fs::{Dir, Status, Time};

const MAGIC: &[u8; 13] = b"coracle seal\n";
const VERSION: u8 = 1;
/// Largest seal that is read, in bytes: several million entries.
pub const LARGEST: u64 = 1 << 30;
/// Most hashes that are remembered while a layer is unpacked; files beyond are read again.
const MOST_HASHES: usize = 100_000;
/// Most findings that are told of one layer.
const MOST_FINDINGS: usize = 10;
/// How much of a file is read at a time.
const PIECE: usize = 128 << 10;

const END: u8 = 0;
const FILE: u8 = 1;
const DIRECTORY: u8 = 2;

/// XXH3 of the content of a file: finds damage, not forgery. Proof is the digest of the whole layer.
pub struct ContentHash(RawHasher<&'static [u8; 192]>);

impl Default for ContentHash {
    fn default() -> ContentHash {
        ContentHash(RawHasher::new(SecretBuffer::default()))
    }
}

impl ContentHash {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub fn finish(&self) -> u64 {
        self.0.finish()
    }
}

/// Hashes of content by inode, as many as fit.
#[derive(Debug, Default)]
pub struct Hashes(HashMap<u64, u64>);

impl Hashes {
    pub fn insert(&mut self, inode: u64, hash: u64) {
        // An inode that is used again is another file.
        if self.0.len() < MOST_HASHES || self.0.contains_key(&inode) {
            self.0.insert(inode, hash);
        } else {
            self.0.remove(&inode);
        }
    }

    pub fn forget(&mut self, inode: u64) {
        self.0.remove(&inode);
    }
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Length of the layer's recipe in bytes.
    pub recipe: u64,
    /// Whether the recipe gives the whole tar stream.
    pub complete: bool,
    /// As the layer's record has them.
    pub size: u64,
    pub entries: u64,
}

/// A seal that is whole.
pub struct Seal {
    pub header: Header,
    bytes: Vec<u8>,
    /// Where the blocks start.
    start: usize,
}

/// Something of a folder that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Relative to the folder; empty for the folder itself.
    pub path: PathBuf,
    pub what: String,
}

/// What a look at a folder has shown.
#[derive(Debug, Default)]
pub struct Look {
    /// The first ones, if there are many.
    pub findings: Vec<Finding>,
    /// The seal with the times and inodes of now, when they are others though all else is right.
    pub fresh: Option<Vec<u8>>,
}

/// How thorough a look is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Reads only files whose times or inode changed.
    Quick,
    /// Reads every file, and every attribute.
    Thorough,
}

/// Why a seal cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("damaged seal: {0}")]
pub struct Broken(&'static str);

/// One name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: u8,
    name: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    xattrs: u64,
    /// Not of a folder.
    node: Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Node {
    size: u64,
    rdev: u64,
    inode: u64,
    modified: Time,
    changed: Time,
    /// Of a file's content or a symlink's target.
    hash: u64,
}

fn kind_of(kind: FileType) -> u8 {
    match kind {
        FileType::RegularFile => FILE,
        FileType::Directory => DIRECTORY,
        FileType::Symlink => 3,
        FileType::CharacterDevice => 4,
        FileType::BlockDevice => 5,
        FileType::Fifo => 6,
        _ => 7,
    }
}

fn kind_name(kind: u8) -> &'static str {
    match kind {
        FILE => "a file",
        DIRECTORY => "a directory",
        3 => "a symlink",
        4 => "a character device",
        5 => "a block device",
        6 => "a pipe",
        _ => "something else",
    }
}

fn put_time(out: &mut Vec<u8>, time: Time) {
    out.extend_from_slice(&time.seconds.to_le_bytes());
    out.extend_from_slice(&time.nanoseconds.to_le_bytes());
}

impl Entry {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.kind);
        put_number(out, self.name.len() as u64);
        out.extend_from_slice(&self.name);
        for number in [self.mode, self.uid, self.gid] {
            put_number(out, number.into());
        }
        out.extend_from_slice(&self.xattrs.to_le_bytes());
        if self.kind != DIRECTORY {
            for number in [self.node.size, self.node.rdev, self.node.inode] {
                put_number(out, number);
            }
            put_time(out, self.node.modified);
            put_time(out, self.node.changed);
            out.extend_from_slice(&self.node.hash.to_le_bytes());
        }
    }
}

/// Reads what [`Entry::put`] and the header wrote.
struct Cursor<'a> {
    bytes: &'a [u8],
}

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], Broken> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Broken("too short"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Broken> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u64, Broken> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Broken("number too large"))
    }

    fn number32(&mut self) -> Result<u32, Broken> {
        u32::try_from(self.number()?).map_err(|_| Broken("number too large"))
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        self.take(N)?.try_into().map_err(|_| Broken("too short"))
    }

    fn hash(&mut self) -> Result<u64, Broken> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    fn time(&mut self) -> Result<Time, Broken> {
        Ok(Time { seconds: i64::from_le_bytes(self.fixed()?), nanoseconds: u32::from_le_bytes(self.fixed()?) })
    }

    /// The next entry of a block; `None` at its end.
    fn entry(&mut self) -> Result<Option<Entry>, Broken> {
        let kind = self.byte()?;
        match kind {
            END => return Ok(None),
            1..=7 => {}
            _ => return Err(Broken("unknown kind")),
        }
        let length = self.number()?;
        if length > 255 {
            return Err(Broken("name too long"));
        }
        let name = self.take(length as usize)?.to_vec();
        let (mode, uid, gid) = (self.number32()?, self.number32()?, self.number32()?);
        let xattrs = self.hash()?;
        let node = match kind {
            DIRECTORY => Node::default(),
            _ => Node {
                size: self.number()?,
                rdev: self.number()?,
                inode: self.number()?,
                modified: self.time()?,
                changed: self.time()?,
                hash: self.hash()?,
            },
        };
        Ok(Some(Entry { kind, name, mode, uid, gid, xattrs, node }))
    }
}

fn head(header: &Header) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.push(u8::from(header.complete));
    for number in [header.recipe, header.size, header.entries] {
        put_number(&mut out, number);
    }
    out
}

fn finish(mut out: Vec<u8>) -> Vec<u8> {
    let mut hash = ContentHash::default();
    hash.update(&out);
    out.extend_from_slice(&hash.finish().to_le_bytes());
    out
}

impl Seal {
    /// # Errors
    /// [`Broken`] for anything but what [`make`] gives.
    pub fn decode(mut bytes: Vec<u8>) -> Result<Seal, Broken> {
        let body = bytes.len().checked_sub(8).ok_or(Broken("too short"))?;
        let mut hash = ContentHash::default();
        hash.update(&bytes[..body]);
        if bytes[body..] != hash.finish().to_le_bytes() {
            return Err(Broken("wrong checksum"));
        }
        bytes.truncate(body);
        let mut cursor = Cursor { bytes: &bytes };
        if cursor.fixed()? != *MAGIC {
            return Err(Broken("unknown format"));
        }
        if cursor.byte()? != VERSION {
            return Err(Broken("unknown version"));
        }
        let complete = cursor.byte()? == 1;
        let header = Header { complete, recipe: cursor.number()?, size: cursor.number()?, entries: cursor.number()? };
        let start = body - cursor.bytes.len();
        Ok(Seal { header, bytes, start })
    }

    /// The same with another header.
    pub fn with_header(&self, header: &Header) -> Vec<u8> {
        let mut out = head(header);
        out.extend_from_slice(&self.bytes[self.start..]);
        finish(out)
    }
}

/// Whether an error says that something on disk is wrong, and not that this process or machine is short of something.
pub fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotADirectory, NotFound, UnexpectedEof};
    // The last: what Linux gives for a damaged file system.
    matches!(error.kind(), NotFound | NotADirectory | InvalidData | InvalidInput | UnexpectedEof)
        || matches!(
            Errno::from_io_error(error),
            Some(Errno::IO | Errno::LOOP | Errno::STALE | Errno::UCLEAN | Errno::BADMSG)
        )
}

/// What is read of a file to hash it; one buffer for many.
struct Content {
    buffer: Vec<u8>,
}

impl Content {
    fn hash(&mut self, mut file: File) -> io::Result<u64> {
        self.buffer.resize(PIECE, 0);
        let mut hash = ContentHash::default();
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => return Ok(hash.finish()),
                Ok(count) => hash.update(&self.buffer[..count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

fn hash_link(target: &OsStr) -> u64 {
    let mut hash = ContentHash::default();
    hash.update(target.as_bytes());
    hash.finish()
}

fn hash_xattrs(dir: &Dir, name: &OsStr) -> io::Result<u64> {
    let mut hash = ContentHash::default();
    let mut any = false;
    for (key, value) in dir.xattrs(name)? {
        // A label belongs to the host's policy, which may be another one now.
        if key == "security.selinux" {
            continue;
        }
        any = true;
        for part in [key.as_bytes(), &value] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(if any { hash.finish() } else { 0 })
}

fn described(name: &OsStr, status: &Status, xattrs: u64, hash: u64) -> Entry {
    let kind = kind_of(status.kind);
    let node = match kind {
        DIRECTORY => Node::default(),
        _ => Node {
            size: status.size,
            rdev: status.rdev,
            inode: status.inode,
            modified: status.modified,
            changed: status.changed,
            hash,
        },
    };
    let (mode, uid, gid) = (status.mode, status.uid, status.gid);
    Entry { kind, name: name.as_bytes().to_vec(), mode, uid, gid, xattrs, node }
}

fn sorted(dir: &Dir) -> io::Result<Vec<OsString>> {
    let mut names: Vec<OsString> = dir.entries()?.into_iter().map(|(name, _)| name).collect();
    names.sort();
    Ok(names)
}

fn within(above: &[u8], name: &[u8]) -> Vec<u8> {
    match above {
        b"" => name.to_vec(),
        above => [above, b"/", name].concat(),
    }
}

/// Describes the folder as it is; `hashes` are of files as they were just written.
///
/// # Errors
/// As reading it.
pub fn make(folder: &Path, header: &Header, mut hashes: Hashes) -> io::Result<Vec<u8>> {
    let root = Dir::open(folder)?;
    let mut out = head(header);
    let mut content = Content { buffer: Vec::new() };
    let dot = OsStr::new(".");
    described(OsStr::new(""), &root.own_status()?, hash_xattrs(&root, dot)?, 0).put(&mut out);
    let mut ahead = vec![Vec::new()];
    while let Some(path) = ahead.pop() {
        let dir = root.in_root(OsStr::from_bytes(&path))?;
        let below = ahead.len();
        for name in sorted(&dir)? {
            let status = dir.status(&name)?;
            let hash = match status.kind {
                FileType::RegularFile => match hashes.0.get(&status.inode) {
                    Some(hash) => *hash,
                    None => {
                        let hash = content.hash(dir.open_file(&name)?)?;
                        hashes.insert(status.inode, hash);
                        hash
                    }
                },
                FileType::Symlink => hash_link(&dir.read_link(&name)?),
                _ => 0,
            };
            described(&name, &status, hash_xattrs(&dir, &name)?, hash).put(&mut out);
            if status.kind == FileType::Directory {
                ahead.push(within(&path, name.as_bytes()));
            }
        }
        out.push(END);
        ahead[below..].reverse();
    }
    Ok(finish(out))
}

/// Looks at `folder`, of which `seal` was made. `told` hears now and then how many entries were seen.
///
/// # Errors
/// As reading the folder; `InvalidData` for a seal that makes no sense though its checksum is right. A file that cannot be
/// read is a finding, no error.
pub fn look(folder: &Path, seal: &Seal, depth: Depth, told: &mut dyn FnMut(u64)) -> io::Result<Look> {
    let mut looker = Looker {
        root: Dir::open(folder)?,
        depth,
        findings: Vec::new(),
        fresh: head(&seal.header),
        stale: false,
        content: Content { buffer: Vec::new() },
        known: HashMap::new(),
    };
    let broken = |e: Broken| io::Error::new(io::ErrorKind::InvalidData, e);
    let mut cursor = Cursor { bytes: &seal.bytes[seal.start..] };
    let entry = cursor.entry().map_err(broken)?.ok_or_else(|| broken(Broken("no root")))?;
    let status = looker.root.own_status()?;
    let root = looker.root.try_clone()?;
    looker.compare(&root, OsStr::new("."), b"", entry, &status)?;
    // With whether it is there.
    let mut ahead = vec![(Vec::new(), true)];
    let mut seen = 0;
    while let Some((path, present)) = ahead.pop() {
        let dir = if present { Some(looker.root.in_root(OsStr::from_bytes(&path))?) } else { None };
        let mut names = match &dir {
            Some(dir) => sorted(dir)?.into_iter().peekable(),
            None => Vec::new().into_iter().peekable(),
        };
        let below = ahead.len();
        while let Some(entry) = cursor.entry().map_err(broken)? {
            seen += 1;
            if seen % 1024 == 0 {
                told(seen);
            }
            let is_folder = entry.kind == DIRECTORY;
            let whole = within(&path, &entry.name);
            let mut there = false;
            if let Some(dir) = &dir {
                let name = OsString::from_vec(entry.name.clone());
                while let Some(extra) = names.next_if(|other| *other < name) {
                    looker.find(&within(&path, extra.as_bytes()), "is not of the layer");
                }
                let status = match names.next_if(|other| *other == name) {
                    Some(_) => dir.status(&name).ok(),
                    None => None,
                };
                match status {
                    Some(status) => there = looker.compare(dir, &name, &whole, entry, &status)?,
                    None => looker.find(&whole, "is missing"),
                }
            }
            if is_folder {
                ahead.push((whole, there));
            }
            if looker.findings.len() >= MOST_FINDINGS {
                return Ok(Look { findings: looker.findings, fresh: None });
            }
        }
        for extra in names {
            looker.find(&within(&path, extra.as_bytes()), "is not of the layer");
        }
        looker.fresh.push(END);
        ahead[below..].reverse();
    }
    if !cursor.bytes.is_empty() {
        return Err(broken(Broken("goes on after its end")));
    }
    told(seen);
    let fresh = (looker.stale && looker.findings.is_empty()).then(|| finish(looker.fresh));
    looker.findings.truncate(MOST_FINDINGS);
    Ok(Look { findings: looker.findings, fresh })
}

struct Looker {
    root: Dir,
    depth: Depth,
    findings: Vec<Finding>,
    fresh: Vec<u8>,
    stale: bool,
    content: Content,
    /// Hashes of what was read, by inode: a file may have many names.
    known: HashMap<u64, u64>,
}

impl Looker {
    fn find(&mut self, path: &[u8], what: impl Into<String>) {
        self.findings.push(Finding { path: OsStr::from_bytes(path).into(), what: what.into() });
    }

    /// Compares one name with what it was; says whether it is still a folder if it was one.
    fn compare(&mut self, dir: &Dir, name: &OsStr, path: &[u8], entry: Entry, status: &Status) -> io::Result<bool> {
        let kind = kind_of(status.kind);
        if kind != entry.kind {
            self.find(path, format!("is {}, was {}", kind_name(kind), kind_name(entry.kind)));
            return Ok(false);
        }
        // The mode of a symlink is nobody's choice.
        if status.mode != entry.mode && kind != 3 {
            self.find(path, format!("has mode {:04o}, had {:04o}", status.mode, entry.mode));
        }
        if (status.uid, status.gid) != (entry.uid, entry.gid) {
            let (uid, gid) = (status.uid, status.gid);
            self.find(path, format!("belongs to {uid}:{gid}, did to {}:{}", entry.uid, entry.gid));
        }
        let old = entry.node;
        let moved = kind != DIRECTORY
            && (status.inode, status.changed, status.modified) != (old.inode, old.changed, old.modified);
        let differs = kind != DIRECTORY && (status.size, status.rdev) != (old.size, old.rdev);
        if differs && kind == FILE {
            self.find(path, format!("has {} bytes, had {}", status.size, old.size));
        } else if differs && kind != 3 {
            self.find(path, "is another device");
        } else if moved || self.depth == Depth::Thorough {
            match self.read(dir, name, kind, status) {
                Err(error) if is_damage(&error) => self.find(path, format!("cannot be read: {error}")),
                Err(error) => return Err(error),
                Ok((hash, _)) if kind != DIRECTORY && hash != old.hash => self.find(path, "has other content"),
                Ok((_, xattrs)) if xattrs != entry.xattrs => self.find(path, "has other extended attributes"),
                Ok(_) => {}
            }
        }
        self.stale |= moved;
        let name = OsStr::from_bytes(&entry.name);
        described(name, status, entry.xattrs, old.hash).put(&mut self.fresh);
        Ok(kind == DIRECTORY)
    }

    /// Hashes of content and attributes.
    fn read(&mut self, dir: &Dir, name: &OsStr, kind: u8, status: &Status) -> io::Result<(u64, u64)> {
        let hash = match (kind, self.known.get(&status.inode)) {
            (FILE, Some(hash)) => *hash,
            (FILE, None) => {
                let hash = self.content.hash(dir.open_file(name)?)?;
                if self.known.len() < MOST_HASHES {
                    self.known.insert(status.inode, hash);
                }
                hash
            }
            (3, _) => hash_link(&dir.read_link(name)?),
            _ => 0,
        };
        Ok((hash, hash_xattrs(dir, name)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::remove_tree;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Scratch {
            static SERIAL: AtomicU32 = AtomicU32::new(0);
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("coracle-seal-{}-{serial}", std::process::id()));
            remove_tree(&path).unwrap();
            std::fs::create_dir_all(path.join("a/b/c")).unwrap();
            std::fs::create_dir(path.join("z")).unwrap();
            for (name, content) in [("a/b/file", "content"), ("a/b.txt", "x"), ("z/last", ""), ("m", "middle")] {
                std::fs::write(path.join(name), content).unwrap();
            }
            symlink("b/file", path.join("a/link")).unwrap();
            std::fs::hard_link(path.join("m"), path.join("z/m")).unwrap();
            Scratch(path)
        }

        fn seal(&self) -> Seal {
            Seal::decode(make(&self.0, &HEADER, Hashes::default()).unwrap()).unwrap()
        }

        fn look(&self, seal: &Seal, depth: Depth) -> Vec<String> {
            let look = look(&self.0, seal, depth, &mut |_| {}).unwrap();
            look.findings.iter().map(|f| format!("{} {}", f.path.display(), f.what)).collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = remove_tree(&self.0);
        }
    }

    const HEADER: Header = Header { recipe: 300, complete: true, size: 14, entries: 9 };

    #[test]
    fn every_change_is_found_and_named() {
        type Change = fn(&Path) -> io::Result<()>;
        let changes: [(Change, &[&str]); 9] = [
            (|p| std::fs::write(p.join("a/b/file"), "CONTENT"), &["a/b/file has other content"]),
            (|p| std::fs::write(p.join("a/b/file"), "more content"), &["a/b/file has 12 bytes, had 7"]),
            (|p| std::fs::remove_file(p.join("a/b/file")), &["a/b/file is missing"]),
            (|p| std::fs::write(p.join("a/b/c/new"), ""), &["a/b/c/new is not of the layer"]),
            (|p| std::fs::create_dir(p.join("zz")), &["zz is not of the layer"]),
            (|p| std::fs::remove_dir_all(p.join("a")), &["a is missing"]),
            (
                |p| std::fs::remove_file(p.join("a/link")).and_then(|()| symlink("b/other", p.join("a/link"))),
                &["a/link has other content"],
            ),
            (
                |p| std::fs::remove_dir_all(p.join("a")).and_then(|()| std::fs::write(p.join("a"), "")),
                &["a is a file, was a directory"],
            ),
            (
                |p| std::fs::set_permissions(p.join("m"), PermissionsExt::from_mode(0o4755)),
                &["m has mode 4755, had 0640", "z/m has mode 4755, had 0640"],
            ),
        ];
        for (change, expected) in changes {
            let scratch = Scratch::new();
            std::fs::set_permissions(scratch.0.join("m"), PermissionsExt::from_mode(0o640)).unwrap();
            let seal = scratch.seal();
            assert!(scratch.look(&seal, Depth::Quick).is_empty());
            change(&scratch.0).unwrap();
            assert_eq!(scratch.look(&seal, Depth::Quick), expected);
            assert_eq!(scratch.look(&seal, Depth::Thorough), expected);
        }
    }

    #[test]
    fn a_folder_that_was_moved_is_right_and_gets_a_fresh_seal() {
        let (old, new) = (Scratch::new(), Scratch::new());
        let seal = old.seal();
        let seen = look(&new.0, &seal, Depth::Quick, &mut |_| {}).unwrap();
        assert!(seen.findings.is_empty(), "{:?}", seen.findings);
        let fresh = Seal::decode(seen.fresh.unwrap()).unwrap();
        assert_eq!(fresh.header, HEADER);
        let again = look(&new.0, &fresh, Depth::Thorough, &mut |_| {}).unwrap();
        assert!(again.findings.is_empty() && again.fresh.is_none());
        let header = Header { complete: false, ..HEADER };
        let other = Seal::decode(fresh.with_header(&header)).unwrap();
        assert_eq!(other.header, header);
        assert!(new.look(&other, Depth::Quick).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300), headed in any::<bool>()) {
            let scratch = Scratch::new();
            let mut bytes = if headed { head(&HEADER) } else { Vec::new() };
            bytes.extend(body.iter().map(|&b| if b < 100 { b % 9 } else { b }));
            prop_assert!(Seal::decode(bytes.clone()).is_err());
            if let Ok(seal) = Seal::decode(finish(bytes)) {
                for depth in [Depth::Quick, Depth::Thorough] {
                    let seen = look(&scratch.0, &seal, depth, &mut |_| {});
                    prop_assert!(seen.map_or(true, |seen| !seen.findings.is_empty()));
                }
            }
        }

        #[test]
        fn a_damaged_seal_is_noticed(at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<bool>()) {
            let scratch = Scratch::new();
            let mut bytes = make(&scratch.0, &HEADER, Hashes::default()).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
            prop_assert!(Seal::decode(bytes).is_err());
        }
    }
}
