//! Giving a tree to the pod's `fsGroup`, without following links and without recursion in depth of descriptors.

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, fchmod, fchown, fstat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Deepest folder that is entered.
const MAX_DEPTH: usize = 4096;

/// As kubelet (`volume_linux.go`): all below `top`, and `top` itself, gets the group; files become readable and (unless
/// `read_only`) writable for it, folders also searchable and set-group-ID. Of a link only the owner changes.
///
/// # Errors
/// The first failure; what was done stays.
pub(super) fn apply(top: BorrowedFd<'_>, gid: u32, read_only: bool) -> Result<(), Errno> {
    let bits = if read_only { 0o440 } else { 0o660 };
    give(top, gid, bits | 0o2110)?;
    // Paths from `top`, walked component by component: a name that becomes a link meanwhile is an error, never followed.
    let mut queue: VecDeque<Vec<CString>> = VecDeque::from([Vec::new()]);
    while let Some(path) = queue.pop_front() {
        if path.len() > MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        let dir = walk(top, &path)?;
        for entry in Dir::read_from(&dir)? {
            let name = entry?.file_name().to_owned();
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    give(open_dir(dir.as_fd(), &name)?.as_fd(), gid, bits | 0o2110)?;
                    let mut below = path.clone();
                    below.push(name);
                    queue.push_back(below);
                }
                FileType::RegularFile => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    give(rustix::fs::openat(&dir, &name, flags, Mode::empty())?.as_fd(), gid, bits)?;
                }
                // To open anything else may do something; kubelet changes its mode, we its owner alone.
                _ => rustix::fs::chownat(&dir, &name, None, Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?,
            }
        }
    }
    Ok(())
}

fn open_dir(dir: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn walk(top: BorrowedFd<'_>, path: &[CString]) -> Result<OwnedFd, Errno> {
    let mut dir = open_dir(top, &CString::from(c"."))?;
    for name in path {
        dir = open_dir(dir.as_fd(), name)?;
    }
    Ok(dir)
}

/// The group first: to change it takes the set-group-ID bit away.
fn give(file: BorrowedFd<'_>, gid: u32, bits: u32) -> Result<(), Errno> {
    fchown(file, None, Some(Gid::from_raw(gid)))?;
    let mode = fstat(file)?.st_mode & 0o7777;
    fchmod(file, Mode::from_raw_mode(mode | bits))
}
