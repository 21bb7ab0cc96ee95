//! One layer: a tar stream in, a folder for overlayfs out.
//!
//! Whiteouts become what overlayfs takes for them: `.wh.NAME` a character device 0/0, `.wh..wh..opq` the attribute
//! `trusted.overlay.opaque`. Everything else becomes what the entry says, with owner, mode, times and attributes.
//!
//! No entry can reach outside the folder. Folders are opened by the kernel with the layer as their root (`openat2`), so
//! symlinks that earlier entries planted lead back into the layer, and the last component is never followed. The folder
//! is private to the caller while this runs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::recipe::{Recorder, Shared, Tap};
use super::seal::{ContentHash, Hashes};
use super::tarball::{Forward, Kind, Member, Reader, Sparse};
use super::{Error, unlisted};
use crate::sys::fs::{self, Dir, Node, Status, Time};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of AUFS' own bookkeeping, which docker leaves out too.
const AUFS: &[u8] = b".wh..wh.";
pub(super) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Most symlinks followed to find one folder, as the kernel does.
const MOST_LINKS: u32 = 40;
/// Largest numbers of a device that Linux has: 12 and 20 bits.
const MOST_MAJOR: u32 = (1 << 12) - 1;
const MOST_MINOR: u32 = (1 << 20) - 1;

/// What an honest layer stays below.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of file content in one layer.
    pub bytes: u64,
    /// Bytes of memory for the attributes of folders, which can only be set when their content is complete.
    pub folders: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { entries: 4_000_000, bytes: 256 << 30, folders: 24 << 20 }
    }
}

/// What a layer amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
}

/// Unpacks the uncompressed tar stream `reader` into the existing, empty folder `dest`. Reads up to the end of the
/// archive, which may be short of the end of the stream. Nothing is synced to disk.
///
/// # Errors
/// The first problem of the stream ([`Error::Tar`], [`Error::Stream`], [`Error::Limit`]), of an entry ([`Error::Entry`])
/// or of the system with it ([`Error::Apply`]). What was unpacked so far is left in `dest`.
pub fn layer(reader: impl Read, dest: &Path, limits: &Limits) -> Result<Summary, Error> {
    layer_buffered(&mut BufReader::with_capacity(128 << 10, reader), dest, limits)
}

/// As [`layer`], without another copy of what is buffered already.
pub(super) fn layer_buffered(reader: &mut impl BufRead, dest: &Path, limits: &Limits) -> Result<Summary, Error> {
    unpack(reader, dest, limits, None).map(|learnt| learnt.summary)
}

/// What is learnt of a layer while it is unpacked, to be able to prove later that it is still the same.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    pub summary: Summary,
    pub hashes: Hashes,
    /// Whether the tar stream can be had again from the folder and the recipe.
    pub complete: bool,
    /// Whether it puts files in folders, besides its root, that it does not list.
    pub unlisted: bool,
}

/// As [`layer_buffered`], with a recipe of the whole stream, up to its end, written to the file `recipe`.
pub(super) fn layer_recorded(
    reader: &mut impl BufRead,
    dest: &Path,
    limits: &Limits,
    recipe: &Path,
) -> Result<Learnt, Error> {
    let recorder = std::fs::File::create_new(recipe).and_then(Recorder::new).map_err(Error::io("write", recipe))?;
    let recorder = Rc::new(RefCell::new(recorder));
    let learnt = unpack(reader, dest, limits, Some(recorder.clone()))?;
    let recorder = Rc::into_inner(recorder).map(RefCell::into_inner);
    let complete = recorder.map_or(Ok(false), Recorder::finish).map_err(Error::io("write", recipe))?;
    Ok(Learnt { complete, ..learnt })
}

fn unpack(reader: &mut impl BufRead, dest: &Path, limits: &Limits, recorder: Option<Shared>) -> Result<Learnt, Error> {
    let root = Dir::open(dest).map_err(Error::io("open", dest))?;
    let base = root.real_path().map_err(Error::io("find", dest))?;
    let mut unpacker = Unpacker {
        root: Rc::new(root),
        base: base.into_os_string().into_vec(),
        place: None,
        recorder: recorder.clone(),
        hashes: Hashes::default(),
        limits,
        owner: fs::effective_owner(),
        current: None,
        folders: HashMap::new(),
        folder_bytes: 0,
        sparse: 0,
        summary: Summary::default(),
    };
    unpacker.implicit_root().map_err(Error::io("prepare", dest))?;
    let recorded = recorder.is_some();
    let mut archive = Reader::new(Forward(Tap::new(reader, recorder)));
    while let Some(member) = archive.next_member()? {
        unpacker.entry(&member, &mut archive)?;
    }
    let unlisted = unpacker.finish()?;
    if recorded {
        // What follows the end of the archive is part of the stream.
        io::copy(&mut archive.into_source(), &mut io::sink()).map_err(|source| Error::Stream { source })?;
    }
    Ok(Learnt { summary: unpacker.summary, hashes: unpacker.hashes, complete: false, unlisted })
}

/// What is set on a folder once everything is in it.
struct Folder {
    path: Box<[u8]>,
    mode: u32,
    modified: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether no entry is about it; see [`unlisted`].
    unlisted: bool,
}

impl Folder {
    /// One that no entry is about. Its time is no real one, so that it is the same on every machine.
    fn unlisted(path: Vec<u8>) -> Folder {
        let path = path.into_boxed_slice();
        Folder { path, mode: 0o755, modified: Time::default(), xattrs: Vec::new(), unlisted: true }
    }
}

struct Unpacker<'a> {
    root: Rc<Dir>,
    /// Where the root is.
    base: Vec<u8>,
    /// Where the folder of the last file is, relative to the root; known only while `current` is.
    place: Option<Vec<u8>>,
    recorder: Option<Shared>,
    hashes: Hashes,
    limits: &'a Limits,
    /// Who owns what this process creates.
    owner: (u32, u32),
    /// The folder of the last entry: archives list a folder's content in a row.
    current: Option<(Vec<u8>, Rc<Dir>)>,
    /// By inode: a folder may have several paths (through symlinks) and a path several folders (one after another).
    folders: HashMap<u64, Folder>,
    folder_bytes: usize,
    /// Bytes of all sparse files, holes and all.
    sparse: u64,
    summary: Summary,
}

/// Turns an I/O error into one that says what was done to which entry.
fn failed(member: &Member, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    let entry = display(&member.path);
    move |source| Error::Apply { entry, action, source }
}

/// A path for messages: of bounded length.
fn display(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(300)]).into_owned()
}

/// The components of a path below the layer's root. A leading `/` and `.` mean nothing.
///
/// # Errors
/// Why no honest archive has such a path.
fn components(path: &[u8]) -> Result<Vec<&OsStr>, &'static str> {
    if path.len() > 4095 {
        return Err("path longer than 4095 bytes");
    }
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("path contains '..'"),
            part if part.len() > 255 => return Err("name longer than 255 bytes"),
            part if part.contains(&0) => return Err("path contains a NUL byte"),
            part => parts.push(OsStr::from_bytes(part)),
        }
    }
    Ok(parts)
}

/// What a name means in a layer.
#[derive(Debug, PartialEq, Eq)]
enum Name<'a> {
    Plain,
    /// Hides this name of the layers below.
    Whiteout(&'a OsStr),
    /// Hides everything the layers below have in the folder.
    Opaque,
    /// Bookkeeping of a storage driver.
    Ignored,
}

fn classify(name: &OsStr) -> Result<Name<'_>, &'static str> {
    match name.as_bytes() {
        OPAQUE => Ok(Name::Opaque),
        aufs if aufs.starts_with(AUFS) => Ok(Name::Ignored),
        other => match other.strip_prefix(WHITEOUT) {
            None => Ok(Name::Plain),
            Some(b"" | b"." | b"..") => Err("whiteout of nothing"),
            Some(hidden) => Ok(Name::Whiteout(OsStr::from_bytes(hidden))),
        },
    }
}

/// Attributes that are the host's business: overlayfs would take its own for instructions (redirects to other folders),
/// and labels of another system's policy are wrong on this one.
pub(super) fn is_foreign(xattr: &[u8]) -> bool {
    xattr.starts_with(b"trusted.overlay.") || xattr.starts_with(b"user.overlay.") || xattr == b"security.selinux"
}

fn join(components: &[&OsStr]) -> Vec<u8> {
    let bytes: Vec<&[u8]> = components.iter().map(|part| part.as_bytes()).collect();
    bytes.join(&b'/')
}

impl Unpacker<'_> {
    fn implicit_root(&mut self) -> io::Result<()> {
        let inode = self.root.own_status()?.inode;
        self.folders.insert(inode, Folder::unlisted(Vec::new()));
        Ok(())
    }

    fn entry(&mut self, member: &Member, data: &mut impl BufRead) -> Result<(), Error> {
        self.summary.entries += 1;
        if self.summary.entries > self.limits.entries {
            return Err(Error::Limit { what: "entries in a layer", limit: self.limits.entries });
        }
        let bad = |reason: &str| Error::Entry { entry: display(&member.path), reason: reason.into() };
        let parts = components(&member.path).map_err(bad)?;
        // To the kernel this number means that the owner stays as it is.
        if member.uid == u32::MAX || member.gid == u32::MAX {
            return Err(bad(&format!("no such owner: {}:{}", member.uid, member.gid)));
        }
        let Some((&name, above)) = parts.split_last() else {
            return match member.kind {
                Kind::Directory => self.root_folder(member),
                _ => Err(bad("the root of the layer is not a directory")),
            };
        };
        // A component that hides something cannot hold anything.
        if above.iter().any(|part| part.as_bytes().starts_with(WHITEOUT)) {
            return match above.iter().any(|part| part.as_bytes().starts_with(AUFS)) {
                true => Ok(()),
                false => Err(bad("path through a whiteout")),
            };
        }
        let meaning = classify(name).map_err(bad)?;
        if meaning == Name::Ignored {
            return Ok(());
        }
        let dir = self.parent(above).map_err(failed(member, "open the folder of"))?;
        match meaning {
            Name::Opaque => return make_opaque(&dir).map_err(failed(member, "mark opaque")),
            Name::Whiteout(hidden) => return self.whiteout(&dir, hidden).map_err(failed(member, "create whiteout")),
            Name::Plain | Name::Ignored => {}
        }
        match member.kind {
            Kind::File => self.file(&dir, name, member, data),
            Kind::Directory => self.folder(&dir, name, &parts, member).map_err(failed(member, "create directory")),
            Kind::Link => self.link(&dir, name, member),
            Kind::Symlink => {
                if member.link.is_empty() || member.link.contains(&0) {
                    return Err(bad("symlink without a valid target"));
                }
                let target = OsStr::from_bytes(&member.link);
                self.place(&dir, name, || dir.symlink(target, name)).map_err(failed(member, "create symlink"))?;
                self.attributes(&dir, name, member, false).map_err(failed(member, "set the attributes of"))
            }
            // The kernel would take only the lower bits, which are another device.
            Kind::Char | Kind::Block if member.major > MOST_MAJOR || member.minor > MOST_MINOR => {
                Err(bad(&format!("no such device number: {}:{}", member.major, member.minor)))
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                let node = match member.kind {
                    Kind::Char => Node::Char { major: member.major, minor: member.minor },
                    Kind::Block => Node::Block { major: member.major, minor: member.minor },
                    _ => Node::Fifo,
                };
                self.place(&dir, name, || dir.mknod(name, node, 0o600)).map_err(failed(member, "create"))?;
                self.attributes(&dir, name, member, true).map_err(failed(member, "set the attributes of"))
            }
            Kind::Other(flag) => Err(bad(&format!("unknown type {:?}", char::from(flag)))),
        }
    }

    /// Runs `create`; what is in its way (the last entry of a name wins) is removed first.
    fn place<T>(&mut self, dir: &Dir, name: &OsStr, create: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match create() {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.clear(dir, name)?;
                create()
            }
            other => other,
        }
    }

    fn clear(&mut self, dir: &Dir, name: &OsStr) -> io::Result<()> {
        // The remembered folder may be below what goes away, or be reached through it.
        self.current = None;
        if let Some(recorder) = &self.recorder {
            let status = dir.status(name)?;
            let empty = match status.kind {
                FileType::RegularFile => status.size == 0,
                FileType::Directory => false,
                _ => true,
            };
            if !empty {
                recorder.borrow_mut().lost();
            }
        }
        dir.remove_tree(name)
    }

    fn file(&mut self, dir: &Dir, name: &OsStr, member: &Member, data: &mut impl BufRead) -> Result<(), Error> {
        self.summary.bytes = self.summary.bytes.saturating_add(member.stored);
        if self.summary.bytes > self.limits.bytes {
            return Err(Error::Limit { what: "bytes in a layer", limit: self.limits.bytes });
        }
        let mut file = self.place(dir, name, || dir.create_new(name)).map_err(failed(member, "create"))?;
        self.content_begins(dir, name, member);
        let mut hash = None;
        match &member.sparse {
            None => {
                hash = self.recorder.is_some().then(ContentHash::default);
                copy(data, &mut file, member.stored, member, hash.as_mut())?;
            }
            Some(Sparse { size, segments }) => {
                // Holes take no space, but all who read the files later have to read them.
                self.sparse = self.sparse.saturating_add(*size);
                if self.sparse > self.limits.bytes {
                    return Err(Error::Limit {
                        what: "bytes in the sparse files of a layer",
                        limit: self.limits.bytes,
                    });
                }
                file.set_len(*size).map_err(failed(member, "extend"))?;
                for &(offset, length) in segments {
                    file.seek(SeekFrom::Start(offset)).map_err(failed(member, "write"))?;
                    copy(data, &mut file, length, member, None)?;
                }
            }
        }
        if let Some(recorder) = &self.recorder {
            recorder.borrow_mut().content_ends();
        }
        if self.recorder.is_some() {
            let inode = dir.status(name).map_err(failed(member, "look at"))?.inode;
            match hash {
                Some(hash) => self.hashes.insert(inode, hash.finish()),
                // The inode may be that of a file that is gone.
                None => self.hashes.forget(inode),
            }
        }
        let attributes = || -> io::Result<()> {
            // Owner first: a change of owner takes setuid bits and capabilities away.
            if (member.uid, member.gid) != self.owner {
                fs::chown_file(&file, member.uid, member.gid)?;
            }
            fs::chmod_file(&file, member.mode)?;
            for (key, value) in member.xattrs.iter().filter(|(key, _)| !is_foreign(key)) {
                tolerate(fs::set_file_xattr(&file, OsStr::from_bytes(key), value))?;
            }
            fs::set_file_times(&file, member.modified)
        };
        attributes().map_err(failed(member, "set the attributes of"))
    }

    /// Tells the recorder that the content of the file just made follows.
    fn content_begins(&mut self, dir: &Dir, name: &OsStr, member: &Member) {
        let Some(recorder) = &self.recorder else { return };
        if member.stored == 0 {
            return;
        }
        if self.current.is_none() || self.place.is_none() {
            // Symlinks of the layer may have led here: the path of the entry is not that of the file.
            self.place = dir.real_path().ok().and_then(|path| {
                let path = path.into_os_string().into_vec();
                let below = path.strip_prefix(self.base.as_slice())?;
                Some(below.strip_prefix(b"/").unwrap_or(below).to_vec())
            });
        }
        let mut recorder = recorder.borrow_mut();
        let mut path = match &self.place {
            Some(place) => place.clone(),
            None => {
                recorder.lost();
                Vec::new()
            }
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        match &member.sparse {
            None => recorder.content_begins(&path, std::iter::once((0, member.stored))),
            Some(sparse) => recorder.content_begins(&path, sparse.segments.iter().copied()),
        }
    }

    fn attributes(&self, dir: &Dir, name: &OsStr, member: &Member, mode: bool) -> io::Result<()> {
        if (member.uid, member.gid) != self.owner {
            dir.chown(name, member.uid, member.gid)?;
        }
        if mode {
            dir.chmod(name, member.mode)?;
        }
        for (key, value) in member.xattrs.iter().filter(|(key, _)| !is_foreign(key)) {
            tolerate(dir.set_xattr(name, OsStr::from_bytes(key), value))?;
        }
        dir.set_times(name, member.modified)
    }

    fn folder(&mut self, dir: &Dir, name: &OsStr, parts: &[&OsStr], member: &Member) -> io::Result<()> {
        let existed = self.make_folder(dir, name)?;
        if existed || (member.uid, member.gid) != self.owner {
            dir.chown(name, member.uid, member.gid)?;
        }
        let inode = dir.status(name)?.inode;
        self.remember_listed(inode, join(parts), member)
    }

    /// Makes sure `name` is a folder, and says whether it was one.
    fn make_folder(&mut self, dir: &Dir, name: &OsStr) -> io::Result<bool> {
        match dir.mkdir(name, 0o700) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|()| false),
        }
        let old = dir.status(name)?;
        if old.kind == FileType::Directory {
            return Ok(true);
        }
        self.clear(dir, name)?;
        dir.mkdir(name, 0o700)?;
        // Deleted and made anew in the same layer: what the layers below have in it stays hidden.
        if old.is_whiteout() {
            make_opaque(&dir.child(name)?)?;
        }
        Ok(false)
    }

    /// Sets the attributes of a folder later, when all is in it.
    fn remember(&mut self, inode: u64, folder: Folder) -> io::Result<()> {
        let attributes: usize = folder.xattrs.iter().map(|(key, value)| key.len() + value.len() + 48).sum();
        self.folder_bytes += folder.path.len() + attributes + size_of::<(u64, Folder)>();
        if self.folder_bytes > self.limits.folders {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many folders in one layer"));
        }
        self.folders.insert(inode, folder);
        Ok(())
    }

    /// As [`Unpacker::remember`], with what its entry says.
    fn remember_listed(&mut self, inode: u64, path: Vec<u8>, member: &Member) -> io::Result<()> {
        let xattrs = member.xattrs.iter().filter(|(key, _)| !is_foreign(key)).cloned().collect();
        let (path, modified) = (path.into_boxed_slice(), member.modified);
        self.remember(inode, Folder { path, mode: member.mode, modified, xattrs, unlisted: false })
    }

    fn root_folder(&mut self, member: &Member) -> Result<(), Error> {
        let mut apply = || -> io::Result<()> {
            let status = self.root.own_status()?;
            if (status.uid, status.gid) != (member.uid, member.gid) {
                self.root.chown(OsStr::new("."), member.uid, member.gid)?;
            }
            self.remember_listed(status.inode, Vec::new(), member)
        };
        apply().map_err(failed(member, "set the attributes of"))
    }

    fn link(&mut self, dir: &Dir, name: &OsStr, member: &Member) -> Result<(), Error> {
        let bad = |reason: String| Error::Entry { entry: display(&member.path), reason };
        let wrong = |why: &str| bad(format!("hard link to {:?}: {why}", display(&member.link)));
        let parts = components(&member.link).map_err(wrong)?;
        let Some((&target, above)) = parts.split_last() else {
            return Err(wrong("not a file"));
        };
        let missing = |e: io::Error| match Errno::from_io_error(&e) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => wrong("no such file in this layer"),
            _ => failed(member, "find the target of")(e),
        };
        let from = self.root.in_root(OsStr::from_bytes(&join(above))).map_err(missing)?;
        let status = from.status(target).map_err(missing)?;
        if status.kind == FileType::Directory || status.is_whiteout() {
            return Err(wrong("not a file"));
        }
        match dir.status(name) {
            // A link to itself: nothing to do, and clearing the name would lose the file.
            Ok(Status { inode, device, .. }) if (inode, device) == (status.inode, status.device) => return Ok(()),
            // The folder in the way may hold the target.
            Ok(Status { kind: FileType::Directory, .. }) => return Err(wrong("a directory is in its place")),
            _ => {}
        }
        self.place(dir, name, || dir.link(&from, target, name)).map_err(failed(member, "create hard link"))
    }

    /// The folder an entry is in; made, with root as owner, where the archive does not list it.
    fn parent(&mut self, parts: &[&OsStr]) -> io::Result<Rc<Dir>> {
        let path = join(parts);
        if let Some((known, dir)) = &self.current
            && *known == path
        {
            return Ok(dir.clone());
        }
        let dir = match self.root.in_root(OsStr::from_bytes(&path)) {
            Ok(dir) => dir,
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NOTDIR)) => self.walk(parts)?,
            Err(e) => return Err(e),
        };
        let dir = Rc::new(dir);
        self.place = None;
        self.current = Some((path, dir.clone()));
        Ok(dir)
    }

    /// The folder at `parts`, step by step, making what is missing; also behind symlinks whose target is only in a layer
    /// below.
    fn walk(&mut self, parts: &[&OsStr]) -> io::Result<Dir> {
        let mut ahead: Vec<OsString> = parts.iter().rev().map(|&part| part.to_owned()).collect();
        // Free of symlinks and `..`, since every component was opened without following.
        let mut done: Vec<OsString> = Vec::new();
        let mut links = 0;
        let open = |this: &Self, done: &[OsString]| {
            let parts: Vec<&OsStr> = done.iter().map(OsString::as_os_str).collect();
            this.root.in_root(OsStr::from_bytes(&join(&parts)))
        };
        while let Some(name) = ahead.pop() {
            if name == ".." {
                done.pop();
                continue;
            }
            let dir = open(self, &done)?;
            let status = match dir.status(&name) {
                Ok(status) => Some(status),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(e),
            };
            match status {
                Some(Status { kind: FileType::Symlink, .. }) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = dir.read_link(&name)?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        done.clear();
                    }
                    let parts = target.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
                    ahead.extend(parts.rev().map(|part| OsStr::from_bytes(part).to_owned()));
                }
                Some(Status { kind: FileType::Directory, .. }) => done.push(name),
                Some(status) if !status.is_whiteout() => return Err(Errno::NOTDIR.into()),
                hidden => {
                    self.make_folder(&dir, &name)?;
                    let inode = dir.status(&name)?.inode;
                    done.push(name);
                    let parts: Vec<&OsStr> = done.iter().map(OsString::as_os_str).collect();
                    // Deleted and made anew, it has nothing to do with that of the layers below.
                    let unlisted = hidden.is_none();
                    self.remember(inode, Folder { unlisted, ..Folder::unlisted(join(&parts)) })?;
                }
            }
        }
        open(self, &done)
    }

    /// Hides `name` of the layers below. What this layer has of that name stays: a whiteout is only about layers below.
    fn whiteout(&mut self, dir: &Dir, name: &OsStr) -> io::Result<()> {
        match dir.mknod(name, Node::Char { major: 0, minor: 0 }, 0) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other,
        }
        let status = dir.status(name)?;
        if status.kind == FileType::Directory {
            make_opaque(&dir.child(name)?)?;
            if let Some(folder) = self.folders.get_mut(&status.inode) {
                folder.unlisted = false;
            }
        }
        Ok(())
    }

    /// Sets what changes while a folder is filled, or would change how; says whether there are unlisted ones besides the
    /// root.
    fn finish(&mut self) -> Result<bool, Error> {
        self.current = None;
        let mut unlisted = false;
        for (inode, folder) in self.folders.drain() {
            let mut apply = || -> io::Result<()> {
                let dir = match self.root.in_root(OsStr::from_bytes(&folder.path)) {
                    Ok(dir) => dir,
                    // A later entry took its place.
                    Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {
                        return Ok(());
                    }
                    Err(e) => return Err(e),
                };
                if dir.own_status()?.inode != inode {
                    return Ok(());
                }
                for (key, value) in &folder.xattrs {
                    tolerate(fs::set_file_xattr(&dir, OsStr::from_bytes(key), value))?;
                }
                if folder.unlisted {
                    unlisted::mark(&dir)?;
                    unlisted |= !folder.path.is_empty();
                }
                fs::chmod_file(&dir, folder.mode)?;
                fs::set_file_times(&dir, folder.modified)
            };
            apply().map_err(|source| Error::Apply {
                entry: display(&folder.path),
                action: "set the attributes of",
                source,
            })?;
        }
        Ok(unlisted)
    }
}

/// Attributes the file system does not know are left out, as docker and tar do; all else counts.
fn tolerate(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn make_opaque(dir: &Dir) -> io::Result<()> {
    fs::set_file_xattr(dir, OsStr::new(OPAQUE_XATTR), b"y")
}

/// Copies exactly `length` bytes, in the pieces that `data` has buffered.
fn copy(
    data: &mut impl BufRead,
    file: &mut std::fs::File,
    mut length: u64,
    member: &Member,
    mut hash: Option<&mut ContentHash>,
) -> Result<(), Error> {
    while length > 0 {
        let piece = match data.fill_buf() {
            Ok(piece) => piece,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Error::Stream { source }),
        };
        if piece.is_empty() {
            return Err(Error::Stream { source: io::ErrorKind::UnexpectedEof.into() });
        }
        let count = (piece.len() as u64).min(length) as usize;
        file.write_all(&piece[..count]).map_err(failed(member, "write"))?;
        if let Some(hash) = &mut hash {
            hash.update(&piece[..count]);
        }
        data.consume(count);
        length -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_whiteouts() {
        let classify = |name: &'static str| classify(OsStr::new(name));
        assert_eq!(classify("file"), Ok(Name::Plain));
        assert_eq!(classify(".wh"), Ok(Name::Plain));
        assert_eq!(classify(".wh.file"), Ok(Name::Whiteout(OsStr::new("file"))));
        assert_eq!(classify(".wh..hidden"), Ok(Name::Whiteout(OsStr::new(".hidden"))));
        assert_eq!(classify(".wh..wh..opq"), Ok(Name::Opaque));
        assert_eq!(classify(".wh..wh.plnk"), Ok(Name::Ignored));
        for bad in [".wh.", ".wh..", ".wh..."] {
            assert!(classify(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_stay_below() {
        let parts = |path: &'static str| components(path.as_bytes()).map(|parts| join(&parts));
        assert_eq!(parts("./a//b/"), Ok(b"a/b".to_vec()));
        assert_eq!(parts("/etc/passwd"), Ok(b"etc/passwd".to_vec()));
        assert_eq!(parts("./"), Ok(Vec::new()));
        assert_eq!(parts("..."), Ok(b"...".to_vec()));
        for bad in ["..", "../a", "a/../b", "/..", "a\0b"] {
            assert!(parts(bad).is_err(), "{bad:?}");
        }
        assert!(components(&[b'a'; 256]).is_err());
        assert!(components("a/".repeat(2048).as_bytes()).is_err());
    }

    #[test]
    fn attributes_of_the_host_are_left_out() {
        assert!(is_foreign(b"trusted.overlay.redirect") && is_foreign(b"user.overlay.opaque"));
        assert!(!is_foreign(b"security.capability") && !is_foreign(b"user.mime_type"));
    }

    proptest! {
        #[test]
        fn components_are_single_names(path in proptest::collection::vec(any::<u8>(), 0..64)) {
            for part in components(&path).unwrap_or_default() {
                let part = part.as_bytes();
                prop_assert!(!part.is_empty() && part != b"." && part != b".." && !part.contains(&b'/'));
            }
        }
    }
}
