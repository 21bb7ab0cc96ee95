//! Files: durable writes, and directories as handles.
//!
//! A path is a question that the file system answers anew each time; a [`Dir`] is an answer that stays. Everything that
//! handles names from outside (image layers, volumes) works with a `Dir` and single names below it, or asks the kernel
//! (`openat2`) to resolve a path as if the `Dir` were `/`, so that no symlink and no `..` can lead out of it.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Distinguishes temporary names made by this process.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A name that no other caller in this process gets; the PID keeps other processes apart.
fn temporary_name(stem: &OsStr) -> OsString {
    let mut name = OsString::from(".");
    name.push(stem);
    name.push(format!(".tmp-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)));
    name
}

/// Whether `name` is one that [`atomic_write`] gives to a file it has not finished; only a crash leaves one.
pub fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.first() == Some(&b'.') && name.windows(5).any(|part| part == b".tmp-")
}

/// Replaces the content of `path` so that a reader, and the disk after a power cut, has either the old or the new
/// content: temporary file in the same folder, fsync, rename, fsync of the folder. `mode` is exact (no umask).
///
/// # Errors
/// Any failure of the file system; the temporary file is gone then and the old content is untouched, except after a
/// failed fsync of the folder, where either content may be what a power cut leaves.
pub fn atomic_write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path has no file name"))?;
    let dir = Dir::open(parent_of(path))?;
    let temporary = temporary_name(name);
    let result = (|| {
        let mut file = dir.create_new(&temporary)?;
        file.write_all(content)?;
        fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
        file.sync_all()?;
        fs::renameat(&dir, temporary.as_os_str(), &dir, name)?;
        dir.sync()
    })();
    if result.is_err() {
        // It may be renamed already, then this does nothing.
        let _ = fs::unlinkat(&dir, temporary.as_os_str(), AtFlags::empty());
    }
    result
}

/// The folder that holds `path`; `.` for a bare name.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The content of the regular file `path`, at most `limit` bytes.
///
/// # Errors
/// `FileTooLarge` when there is more, `InvalidInput` when it is not a regular file; never blocks on a FIFO.
pub fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let fd = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?;
    read_file_limited(File::from(fd), limit)
}

/// As [`read_limited`], from an open file.
pub fn read_file_limited(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut content = Vec::with_capacity(meta.len().min(limit) as usize);
    file.take(limit.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes")));
    }
    Ok(content)
}

/// Makes names created in, or removed from, the folder `path` durable.
///
/// # Errors
/// As `open` and `fsync`.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    Dir::open(path)?.sync()
}

/// Creates `path` and what is missing above it with exactly `mode`; an existing folder keeps its mode.
///
/// # Errors
/// As `mkdir`.
pub fn create_dir_all(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Removes `path` and everything below it, if it exists. Symlinks are removed, never followed; the depth of the tree
/// does not matter.
///
/// # Errors
/// The first failure; a later call goes on where this one stopped.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path has no file name"))?;
    match Dir::open(parent_of(path)) {
        Ok(parent) => parent.remove_tree(name),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// What a file system still takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    pub bytes: u64,
    /// `u64::MAX` where the file system has no fixed number of them.
    pub inodes: u64,
}

/// What is free, for this process, on the file system of `path`.
///
/// # Errors
/// As `statvfs`.
pub fn room(path: &Path) -> io::Result<Room> {
    let status = fs::statvfs(path)?;
    let inodes = if status.f_files == 0 { u64::MAX } else { status.f_favail };
    Ok(Room { bytes: status.f_bavail.saturating_mul(status.f_frsize), inodes })
}

/// A point in time as files have it: seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    pub seconds: i64,
    /// 0 to 999,999,999
    pub nanoseconds: u32,
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// What a name in a directory is, symlinks not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub kind: FileType,
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    pub modified: Time,
    pub changed: Time,
}

impl Status {
    /// Whether it is what overlayfs takes for "deleted here": a character device 0/0.
    pub fn is_whiteout(&self) -> bool {
        self.kind == FileType::CharacterDevice && self.rdev == 0
    }
}

impl From<Stat> for Status {
    fn from(stat: Stat) -> Status {
        Status {
            kind: FileType::from_raw_mode(stat.st_mode),
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev,
            modified: Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
            changed: Time { seconds: stat.st_ctime, nanoseconds: stat.st_ctime_nsec as u32 },
        }
    }
}

/// The status of `path`, symlinks followed.
///
/// # Errors
/// As `stat`.
pub fn status(path: &Path) -> io::Result<Status> {
    Ok(fs::stat(path)?.into())
}

/// Device nodes and pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// An open directory. Methods that take a `name` take one component: no `/`, never followed if it is a symlink.
#[derive(Debug)]
pub struct Dir(OwnedFd);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Dir {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// As `open`.
    pub fn open(path: &Path) -> io::Result<Dir> {
        Ok(Dir(fs::openat(CWD, path, DIRECTORY, Mode::empty())?))
    }

    /// The directory `path` names for a process whose `/` is this directory: symlinks are followed, absolute ones and
    /// `..` stay inside.
    ///
    /// # Errors
    /// As `openat2`; `ELOOP` for cycles.
    pub fn in_root(&self, path: &OsStr) -> io::Result<Dir> {
        if path.is_empty() {
            return self.try_clone();
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(Dir(again(|| fs::openat2(&self.0, path, DIRECTORY, Mode::empty(), resolve))?))
    }

    /// The regular file `path` below this directory, for reading. Symlinks are followed as long as they stay below.
    ///
    /// # Errors
    /// As `openat2`; `EXDEV` for what would lead out; `InvalidInput` for what is no regular file.
    pub fn open_beneath(&self, path: &OsStr) -> io::Result<File> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = again(|| fs::openat2(&self.0, path, flags, Mode::empty(), resolve))?;
        // Looked at before it is opened: opening a device does something (a watchdog, a tape).
        if FileType::from_raw_mode(fs::fstat(&found)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        Ok(File::from(fs::open(format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty())?))
    }

    /// The directory that `fd` is open on.
    ///
    /// # Errors
    /// Out of file descriptors; `ENOTDIR`.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Dir> {
        Ok(Dir(fs::openat(fd, ".", DIRECTORY, Mode::empty())?))
    }

    /// A handle (`O_PATH`) on whatever `path` names below this directory. Symlinks are followed as long as they stay below;
    /// nothing is opened, so nothing can block or happen.
    ///
    /// # Errors
    /// As `openat2`; `EXDEV` for what would lead out.
    pub fn find_beneath(&self, path: &Path) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        again(|| fs::openat2(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve))
    }

    /// As [`Dir::find_beneath`]; directories that are missing on the way, and at its end, are made with exactly `mode`.
    ///
    /// # Errors
    /// As `openat2` and `mkdirat`; `InvalidInput` for `..`.
    pub fn make_beneath(&self, path: &Path, mode: u32) -> io::Result<OwnedFd> {
        let mut known = PathBuf::from(".");
        for part in path.components() {
            let name = match part {
                std::path::Component::Normal(name) => name,
                std::path::Component::CurDir => continue,
                _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path below a folder")),
            };
            let next = known.join(name);
            match self.find_beneath(&next) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                    let parent = Dir(again(|| fs::openat2(&self.0, &known, DIRECTORY, Mode::empty(), resolve))?);
                    match parent.mkdir(name, 0o700) {
                        Ok(()) => chmod_file(parent.child(name)?, mode)?,
                        // Somebody was faster; a link to nowhere fails when it is looked up again.
                        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                        Err(e) => return Err(e),
                    }
                }
                other => drop(other?),
            }
            known = next;
        }
        self.find_beneath(&known)
    }

    /// The subdirectory `name`; a symlink is an error (`ENOTDIR`).
    ///
    /// # Errors
    /// As `openat`.
    pub fn child(&self, name: &OsStr) -> io::Result<Dir> {
        Ok(Dir(fs::openat(&self.0, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// A second handle on the same directory.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn try_clone(&self) -> io::Result<Dir> {
        Ok(Dir(self.0.try_clone()?))
    }

    /// Creates the file `name`, readable and writable for its owner, and opens it for writing.
    ///
    /// # Errors
    /// `EEXIST` if there is anything of that name.
    pub fn create_new(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(fs::openat(&self.0, name, flags, Mode::from_raw_mode(0o600))?))
    }

    /// A file without a name, for reading and writing, gone when it is closed.
    ///
    /// # Errors
    /// As `open` with `O_TMPFILE`; some file systems have none (`EOPNOTSUPP`).
    pub fn unnamed_file(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(File::from(fs::openat(&self.0, ".", flags, Mode::from_raw_mode(0o600))?))
    }

    /// # Errors
    /// As `mkdirat`. The umask applies.
    pub fn mkdir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        Ok(fs::mkdirat(&self.0, name, Mode::from_raw_mode(mode))?)
    }

    /// # Errors
    /// As `mknodat`. The umask applies.
    pub fn mknod(&self, name: &OsStr, node: Node, mode: u32) -> io::Result<()> {
        let (kind, device) = match node {
            Node::Char { major, minor } => (FileType::CharacterDevice, fs::makedev(major, minor)),
            Node::Block { major, minor } => (FileType::BlockDevice, fs::makedev(major, minor)),
            Node::Fifo => (FileType::Fifo, 0),
        };
        Ok(fs::mknodat(&self.0, name, kind, Mode::from_raw_mode(mode), device)?)
    }

    /// # Errors
    /// As `symlinkat`.
    pub fn symlink(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        Ok(fs::symlinkat(target, &self.0, name)?)
    }

    /// # Errors
    /// As `readlinkat`.
    pub fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        use std::os::unix::ffi::OsStringExt;
        Ok(OsString::from_vec(fs::readlinkat(&self.0, name, Vec::new())?.into_bytes()))
    }

    /// Gives `source_name` in `source` the additional name `name` here; a symlink is linked itself.
    ///
    /// # Errors
    /// As `linkat`.
    pub fn link(&self, source: &Dir, source_name: &OsStr, name: &OsStr) -> io::Result<()> {
        Ok(fs::linkat(&source.0, source_name, &self.0, name, AtFlags::empty())?)
    }

    /// # Errors
    /// As `fstatat`.
    pub fn status(&self, name: &OsStr) -> io::Result<Status> {
        Ok(fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?.into())
    }

    /// The status of the directory itself.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn own_status(&self) -> io::Result<Status> {
        Ok(fs::fstat(&self.0)?.into())
    }

    /// # Errors
    /// As `fchownat`.
    pub fn chown(&self, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(fs::chownat(&self.0, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets permission bits exactly. The caller knows that `name` is not a symlink: there is no call that would refuse
    /// one.
    ///
    /// # Errors
    /// As `fchmodat`.
    pub fn chmod(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        Ok(fs::chmodat(&self.0, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?)
    }

    /// Sets access and modification time.
    ///
    /// # Errors
    /// As `utimensat`.
    pub fn set_times(&self, name: &OsStr, time: Time) -> io::Result<()> {
        Ok(fs::utimensat(&self.0, name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets an extended attribute of `name`, of the symlink itself if it is one.
    ///
    /// # Errors
    /// As `lsetxattr`.
    pub fn set_xattr(&self, name: &OsStr, key: &OsStr, value: &[u8]) -> io::Result<()> {
        // There is no lsetxattrat before Linux 6.13; the handle's entry in /proc is a safe prefix, `name` one component.
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(name);
        Ok(fs::lsetxattr(path, key, value, XattrFlags::empty())?)
    }

    /// # Errors
    /// As `unlinkat`.
    pub fn unlink(&self, name: &OsStr) -> io::Result<()> {
        Ok(fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    /// Renames `name` to `new_name` in `new_dir`.
    ///
    /// # Errors
    /// As `renameat2` with `RENAME_NOREPLACE`: `EEXIST` if the new name is taken.
    pub fn rename_new(&self, name: &OsStr, new_dir: &Dir, new_name: &OsStr) -> io::Result<()> {
        Ok(fs::renameat_with(&self.0, name, &new_dir.0, new_name, RenameFlags::NOREPLACE)?)
    }

    /// The names in the directory, with their type where the file system tells it.
    ///
    /// # Errors
    /// As `getdents`.
    pub fn entries(&self) -> io::Result<Vec<(OsString, FileType)>> {
        let mut entries = Vec::new();
        for entry in fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                entries.push((name.to_owned(), entry.file_type()));
            }
        }
        Ok(entries)
    }

    /// Makes names created in, or removed from, this directory durable.
    ///
    /// # Errors
    /// As `fsync`.
    pub fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.0)?)
    }

    /// Writes out everything that is dirty on this directory's file system: one call for any number of files.
    ///
    /// # Errors
    /// As `syncfs`: also a write error of a file long closed, so that lost data is noticed.
    pub fn sync_filesystem(&self) -> io::Result<()> {
        Ok(fs::syncfs(&self.0)?)
    }

    /// Removes `name` and everything below it, if it exists; see [`remove_tree`].
    ///
    /// # Errors
    /// The first failure.
    pub fn remove_tree(&self, name: &OsStr) -> io::Result<()> {
        match fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Linux says EISDIR, POSIX EPERM; the latter also for immutable files, which `child` then finds out.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
        let top = self.child(name)?;
        // Depth costs neither stack nor descriptors: a subdirectory two levels down is first moved up one level. Nor do names
        // cost memory: there may be more of them than this process may hold. What the file system does not show of a
        // directory that changes meanwhile, it shows in the next round.
        let mut serial = 0u64;
        loop {
            let mut empty = true;
            for entry in fs::Dir::read_from(&top.0)? {
                let entry = entry?;
                let Some(entry) = proper(entry.file_name()) else { continue };
                empty = false;
                if top.unlink_or_rmdir(entry)? {
                    continue;
                }
                let dir = top.child(entry)?;
                for inner in fs::Dir::read_from(&dir.0)? {
                    let inner = inner?;
                    let Some(inner) = proper(inner.file_name()) else { continue };
                    if dir.unlink_or_rmdir(inner)? {
                        continue;
                    }
                    loop {
                        serial += 1;
                        match dir.rename_new(inner, &top, OsStr::new(&format!("{serial}"))) {
                            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                            other => break other?,
                        }
                    }
                }
                drop(dir);
                match fs::unlinkat(&top.0, entry, AtFlags::REMOVEDIR) {
                    // Not empty: it is looked at again in the next round.
                    Ok(()) | Err(Errno::NOTEMPTY | Errno::NOENT) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            if empty {
                break;
            }
        }
        drop(top);
        match fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a file or an empty directory; `false` for a directory with content.
    fn unlink_or_rmdir(&self, name: &OsStr) -> io::Result<bool> {
        match fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::ISDIR | Errno::PERM) => match fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => Ok(true),
                Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
                Err(e) => Err(e.into()),
            },
            Err(e) => Err(e.into()),
        }
    }
}

/// A name in a directory that is not the directory itself or its parent.
fn proper(name: &CStr) -> Option<&OsStr> {
    (name != c"." && name != c"..").then(|| OsStr::from_bytes(name.to_bytes()))
}

/// `openat2` gives `EAGAIN` when a rename anywhere on the system raced with a resolution that has to stay inside.
fn again<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    for _ in 0..64 {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Ok(call()?)
}

/// Owner of an open file.
///
/// # Errors
/// As `fchown`.
pub fn chown_file(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    Ok(fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// Permission bits of an open file or directory, exactly.
///
/// # Errors
/// As `fchmod`.
pub fn chmod_file(file: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Access and modification time of an open file or directory.
///
/// # Errors
/// As `futimens`.
pub fn set_file_times(file: impl AsFd, time: Time) -> io::Result<()> {
    Ok(fs::futimens(file, &timestamps(time))?)
}

/// Extended attribute of an open file or directory.
///
/// # Errors
/// As `fsetxattr`.
pub fn set_file_xattr(file: impl AsFd, key: &OsStr, value: &[u8]) -> io::Result<()> {
    Ok(fs::fsetxattr(file, key, value, XattrFlags::empty())?)
}

/// Takes an exclusive lock on an open file, released when the last copy of its descriptor is closed.
///
/// # Errors
/// `WouldBlock` when someone else has it.
pub fn try_lock(file: &File) -> io::Result<()> {
    Ok(fs::flock(file, fs::FlockOperation::NonBlockingLockExclusive)?)
}

/// Effective user and group of this process.
pub fn effective_owner() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn scratch(test: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("coracle-fs-{test}-{}", std::process::id()));
        remove_tree(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn what_lies_beneath_is_found_and_made() {
        let dir = scratch("beneath");
        std::fs::create_dir_all(dir.join("in/a")).unwrap();
        std::fs::create_dir(dir.join("out")).unwrap();
        for (link, to) in [("in/up", "../out"), ("in/abs", "/"), ("in/ok", "a"), ("in/none", "nowhere")] {
            symlink(to, dir.join(link)).unwrap();
        }
        let root = Dir::open(&dir.join("in")).unwrap();
        let mode = |path: &str| std::fs::metadata(dir.join(path)).unwrap().permissions().mode() & 0o7777;
        root.make_beneath(Path::new("ok/b/c"), 0o2751).unwrap();
        assert_eq!((mode("in/a/b"), mode("in/a/b/c")), (0o2751, 0o2751));
        std::fs::write(dir.join("in/a/file"), "x").unwrap();
        assert!(root.make_beneath(Path::new("ok/file"), 0o700).is_ok());
        assert!(root.make_beneath(Path::new("ok/file/x"), 0o700).is_err());
        for bad in ["up", "up/x", "abs", "abs/etc", "none", "none/x", "..", "/etc"] {
            assert!(root.make_beneath(Path::new(bad), 0o700).is_err(), "{bad}");
            assert!(root.find_beneath(Path::new(bad)).is_err(), "{bad}");
        }
        assert_eq!(std::fs::read_dir(dir.join("out")).unwrap().count(), 0);
        remove_tree(&dir).unwrap();
    }

    /// Whoever can write below a directory may exchange names at any moment.
    #[test]
    fn a_race_never_leads_out() {
        let dir = scratch("race");
        let (inside, outside) = (dir.join("in"), dir.join("out"));
        std::fs::create_dir_all(inside.join("x")).unwrap();
        std::fs::create_dir_all(outside.join("sub")).unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        let root = Dir::open(&inside).unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let exchange = || fs::renameat_with(&root, "x", &root, "link", RenameFlags::EXCHANGE).unwrap();
                while !over.load(Ordering::Relaxed) {
                    exchange();
                }
            });
            let device = std::os::unix::fs::MetadataExt::ino;
            let forbidden = [outside.clone(), outside.join("sub")].map(|p| device(&std::fs::metadata(p).unwrap()));
            let mut found = 0;
            for _ in 0..20_000 {
                for result in [root.find_beneath(Path::new("x/sub")), root.make_beneath(Path::new("x/sub"), 0o755)] {
                    let Ok(fd) = result else { continue };
                    found += 1;
                    assert!(!forbidden.contains(&fs::fstat(&fd).unwrap().st_ino));
                }
            }
            over.store(true, Ordering::Relaxed);
            assert!(found > 0, "the race was never won by the honest side");
        });
        assert_eq!(std::fs::read_dir(outside.join("sub")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        remove_tree(&dir).unwrap();
    }

    #[test]
    fn atomic_write_replaces_and_leaves_no_temporary() {
        let dir = scratch("atomic");
        let file = dir.join("record.json");
        atomic_write(&file, b"one", 0o600).unwrap();
        atomic_write(&file, b"two", 0o644).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        std::fs::create_dir(dir.join("occupied")).unwrap();
        assert!(atomic_write(&dir.join("occupied"), b"x", 0o600).is_err());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        remove_tree(&dir).unwrap();
    }

    #[test]
    fn temporary_names_are_recognised() {
        assert!(is_temporary(&temporary_name(OsStr::new("a.json"))));
        assert!(!is_temporary(OsStr::new("a.json")));
        assert!(!is_temporary(OsStr::new(".hidden")));
    }

    #[test]
    fn reads_are_limited_to_regular_files() {
        let dir = scratch("limited");
        std::fs::write(dir.join("f"), b"12345").unwrap();
        assert_eq!(read_limited(&dir.join("f"), 5).unwrap(), b"12345");
        assert_eq!(read_limited(&dir.join("f"), 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_limited(&dir, 4).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        Dir::open(&dir).unwrap().mknod(OsStr::new("p"), Node::Fifo, 0o600).unwrap();
        assert_eq!(read_limited(&dir.join("p"), 4).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        remove_tree(&dir).unwrap();
    }

    #[test]
    fn remove_tree_is_not_led_away_and_copes_with_depth() {
        let dir = scratch("remove");
        std::fs::create_dir(dir.join("keep")).unwrap();
        std::fs::write(dir.join("keep/file"), b"x").unwrap();
        let tree = dir.join("tree");
        std::fs::create_dir(&tree).unwrap();
        symlink(dir.join("keep"), tree.join("link")).unwrap();
        // Deeper than PATH_MAX and than the usual number of descriptors.
        let mut at = Dir::open(&tree).unwrap();
        for depth in 0..3000 {
            at.mkdir(OsStr::new("d"), 0o700).unwrap();
            at.create_new(OsStr::new(if depth % 2 == 0 { "f" } else { "1" })).unwrap();
            at = at.child(OsStr::new("d")).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(dir.join("keep/file").exists());
        remove_tree(&tree).unwrap();
        symlink(dir.join("keep"), dir.join("top-link")).unwrap();
        remove_tree(&dir.join("top-link")).unwrap();
        assert!(dir.join("keep/file").exists());
        remove_tree(&dir).unwrap();
    }

    #[test]
    fn in_root_keeps_links_inside() {
        let dir = scratch("inroot");
        std::fs::create_dir_all(dir.join("root/etc")).unwrap();
        symlink("/etc", dir.join("root/abs")).unwrap();
        symlink("../../../../etc", dir.join("root/up")).unwrap();
        symlink("loop", dir.join("root/loop")).unwrap();
        let root = Dir::open(&dir.join("root")).unwrap();
        let etc = root.child(OsStr::new("etc")).unwrap().own_status().unwrap().inode;
        for way in ["abs", "up", "/etc", "../../etc"] {
            assert_eq!(root.in_root(OsStr::new(way)).unwrap().own_status().unwrap().inode, etc, "{way}");
        }
        assert_eq!(root.in_root(OsStr::new("loop")).unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert!(root.open_beneath(OsStr::new("up/passwd")).is_err());
        remove_tree(&dir).unwrap();
    }
}
