//! Giving a tree to the pod's `fsGroup`, without following links and without recursion in depth of descriptors.

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, fchmod, fchown, fstat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Deepest folder that is entered.
const MAX_DEPTH: usize = 4096;

/// Which permissions the group gets: what is made from objects is read-only, and nothing else is gone through.
const READ: u32 = 0o440;
const SEARCH: u32 = 0o2110;

/// As kubelet (`volume_linux.go`, for read-only volumes): all below `top`, and `top` itself, gets the group, which may read
/// files; folders also become searchable for it, and set-group-ID. Of a link only the owner changes.
///
/// # Errors
/// The first failure; what was done stays.
pub(super) fn apply(top: BorrowedFd<'_>, gid: u32) -> Result<(), Errno> {
    give(top, gid, READ | SEARCH)?;
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
                    give(open_dir(dir.as_fd(), &name)?.as_fd(), gid, READ | SEARCH)?;
                    let mut below = path.clone();
                    below.push(name);
                    queue.push_back(below);
                }
                FileType::RegularFile => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    give(rustix::fs::openat(&dir, &name, flags, Mode::empty())?.as_fd(), gid, READ)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn links_are_given_and_not_followed() {
        assert!(nix::unistd::geteuid().is_root(), "to give files away needs root");
        let scratch = std::env::temp_dir().join(format!("coracle-fsgroup-{}", std::process::id()));
        let _ = fs::remove_dir_all(&scratch);
        let (volume, outside) = (scratch.join("volume"), scratch.join("outside"));
        fs::create_dir_all(volume.join("a/b")).expect("folder");
        fs::create_dir(&outside).expect("folder");
        for file in [volume.join("a/b/file"), outside.join("file")] {
            fs::write(&file, "").expect("file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("mode");
        }
        symlink(&outside, volume.join("a/to-folder")).expect("link");
        symlink(outside.join("file"), volume.join("a/to-file")).expect("link");
        let before = |path: &str| fs::symlink_metadata(scratch.join(path)).expect("metadata");
        let untouched = (before("outside").mode(), before("outside/file").mode());
        fs::set_permissions(volume.join("a/b"), fs::Permissions::from_mode(0o700)).expect("mode");
        apply(fs::File::open(&volume).expect("open").as_fd(), 4242).expect("applied");
        let seen = |path: &str| (before(path).gid(), before(path).mode() & 0o7777);
        assert_eq!((seen("volume/a/b"), seen("volume/a/b/file")), ((4242, 0o2750), (4242, 0o640)));
        assert_eq!((before("volume/a/to-folder").gid(), before("volume/a/to-file").gid()), (4242, 4242));
        assert_eq!((before("outside").gid(), before("outside/file").gid()), (0, 0));
        assert_eq!((before("outside").mode(), before("outside/file").mode()), untouched);
        fs::remove_dir_all(&scratch).expect("removed");
    }
}
