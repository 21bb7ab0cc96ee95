//! Removing a tree that somebody else filled: however deep it is, whatever links it holds, and without ever entering
//! a mount. Uses a fixed number of descriptors and no recursion.

use super::{Error, io_error};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Removes `path` and all below it; something that does not exist is removed.
///
/// Folders found deeper than one level are first moved up to the top, so the work is always one level deep.
///
/// # Errors
/// [`Error::MountPoint`] when something is mounted at or below `path`; [`Error::Io`].
pub(super) fn tree(path: &Path) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        // Not a folder (or a link): the name is all there is to remove.
        Err(Errno::NOTDIR | Errno::LOOP) => return std::fs::remove_file(path).map_err(io_error("remove", path)),
        Err(e) => return Err(io_error("open", path)(e)),
    };
    let mut moved = 0_u64;
    // One name at a time: a list of all of them could be larger than this process may become. What the file system does not
    // show of a folder that changes meanwhile, it shows the next time.
    loop {
        let mut empty = true;
        for entry in Dir::read_from(&top).map_err(io_error("list", path))? {
            let entry = entry.map_err(io_error("list", path))?;
            if let Some(name) = proper(entry.file_name()) {
                empty = false;
                remove_entry(top.as_fd(), name, &mut moved).map_err(|e| explain(e, path, name))?;
            }
        }
        if empty {
            break;
        }
    }
    std::fs::remove_dir(path).map_err(io_error("remove", path))
}

fn explain(e: Errno, path: &Path, name: &CStr) -> Error {
    let path = path.join(std::ffi::OsStr::new(&*name.to_string_lossy()));
    // BUSY: unlink or rename of a mount point; XDEV: openat2 refused to cross into one.
    match e {
        Errno::BUSY | Errno::XDEV => Error::MountPoint(path),
        e => io_error("remove", &path)(e),
    }
}

/// A name that is not the folder itself or its parent.
fn proper(name: &CStr) -> Option<&CStr> {
    (name != c"." && name != c"..").then_some(name)
}

/// Removes one entry of `top`; folders that it holds end up in `top`.
fn remove_entry(top: BorrowedFd<'_>, name: &CStr, moved: &mut u64) -> Result<(), Errno> {
    if unlink(top, name)? {
        return Ok(());
    }
    let dir = enter(top, name)?;
    for child in Dir::read_from(&dir)? {
        let child = child?;
        let Some(child) = proper(child.file_name()) else { continue };
        if unlink(dir.as_fd(), child)? {
            continue;
        }
        loop {
            *moved += 1;
            let target = format!(".removing.{moved}");
            match rustix::fs::renameat_with(&dir, child, top, &target, rustix::fs::RenameFlags::NOREPLACE) {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
        }
    }
    match rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR) {
        // It is looked at again.
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Removes a file, a link or an empty folder; says whether it is gone, or a folder that holds something.
fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        // PERM is what POSIX says for folders; Linux says ISDIR. An immutable file gives PERM again below.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(Errno::NOTDIR) => Err(Errno::PERM),
        Err(e) => Err(e),
    }
}

fn enter(top: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match rustix::fs::openat2(top, name, flags, Mode::empty(), resolve) {
        // A folder that its owner closed to everybody: root may enter all the same, others open it first.
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(top, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat2(top, name, flags, Mode::empty(), resolve)
        }
        other => other,
    }
}
