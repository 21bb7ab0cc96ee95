//! Mounts: a private mount namespace and overlay file systems.

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, move_mount, unmount,
};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Gives this (single-threaded) process a mount namespace of its own: what it mounts is seen nowhere else and goes
/// with its last process; what the machine mounts still comes in.
pub fn private_namespace() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    Ok(())
}

/// Mounts an overlay of `layers` (bottom first) with `upper` as its writable layer on `target`.
///
/// Changes the working directory for the time of the call when the paths are long: call it in a single-threaded
/// process.
///
/// # Errors
/// `InvalidInput` without layers, or when the paths are too long for this kernel; else what the kernel says.
pub fn overlay(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    if layers.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an overlay needs at least one layer"));
    }
    match overlay_by_parts(layers, upper, work, target) {
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::TOOBIG) => {
            overlay_by_options(layers, upper, work, target)
        }
        other => Ok(other?),
    }
}

/// The mount API of kernel 6.5 and later: one call per layer, so that their number is not limited by a page of options.
fn overlay_by_parts(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<(), Errno> {
    // The kernel's limit of a string parameter.
    let long = |path: &Path| path.as_os_str().len() > 255;
    if long(upper) || long(work) || layers.iter().any(|layer| long(layer)) {
        return Err(Errno::TOOBIG);
    }
    let context: OwnedFd = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers.iter().rev() {
        fsconfig_set_string(&context, "lowerdir+", layer)?;
    }
    fsconfig_set_string(&context, "upperdir", upper)?;
    fsconfig_set_string(&context, "workdir", work)?;
    fsconfig_create(&context)?;
    // An image may hold device nodes: they must not open the machine's disks. A container's devices are in its `/dev`.
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// mount(2), with names relative to the layers' common folder, as its options must fit in a page.
fn overlay_by_options(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let base = common_parent(layers);
    let relative: Vec<&Path> = layers.iter().map(|layer| layer.strip_prefix(&base).unwrap_or(layer)).collect();
    let options = CString::new(overlay_options(&relative, upper, work))?;
    if options.as_bytes().len() >= 4096 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the {} layers' paths are longer than a page; kernel 6.5 or later is needed", layers.len()),
        ));
    }
    let before = std::env::current_dir()?;
    std::env::set_current_dir(&base)?;
    let result = mount("overlay", target, "overlay", MountFlags::NODEV, options.as_c_str());
    std::env::set_current_dir(before)?;
    Ok(result?)
}

fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let mut base = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("/"));
    while !paths.iter().all(|path| path.starts_with(base) && path != base) {
        match base.parent() {
            Some(parent) => base = parent,
            None => break,
        }
    }
    base.to_owned()
}

/// `layers` bottom first. overlayfs splits lists at colons and options at commas; a backslash keeps either.
fn overlay_options(layers: &[&Path], upper: &Path, work: &Path) -> Vec<u8> {
    fn push(out: &mut Vec<u8>, path: &Path) {
        for &byte in path.as_os_str().as_bytes() {
            if matches!(byte, b'\\' | b':' | b',') {
                out.push(b'\\');
            }
            out.push(byte);
        }
    }
    let mut out = b"lowerdir=".to_vec();
    for (i, layer) in layers.iter().rev().enumerate() {
        if i > 0 {
            out.push(b':');
        }
        push(&mut out, layer);
    }
    out.extend_from_slice(b",upperdir=");
    push(&mut out, upper);
    out.extend_from_slice(b",workdir=");
    push(&mut out, work);
    out
}

/// Detaches the mount at `target` (and everything mounted below); no error when nothing is mounted there.
pub fn detach(target: &Path) -> io::Result<()> {
    match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Detaches everything that is mounted below `dir` but not at or below `own`. To be called in a mount namespace of one's
/// own ([`private_namespace`]): a copy of a mount there keeps what is mounted alive after the machine unmounted it, unless
/// the machine's mounts are shared.
///
/// # Errors
/// When the mounts cannot be listed, or one cannot be detached.
pub fn detach_others(dir: &Path, own: &Path) -> io::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    for target in others(&mounts, dir, own).iter().rev() {
        detach(target)?;
    }
    Ok(())
}

fn others(mountinfo: &str, dir: &Path, own: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| Some(unescape(line.split(' ').nth(4)?)));
    points.filter(|point| point != dir && point.starts_with(dir) && !point.starts_with(own)).collect()
}

/// mountinfo writes blanks and backslashes as `\ooo`.
pub(super) fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (byte, code) {
            (b'\\', Some(code)) => {
                out.push(code);
                rest = &after[3..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_others() {
        let mountinfo = "1 0 8:1 / / rw - ext4 x rw\n\
                         2 1 0:4 net:[1] /run/pods/a/ns/net rw - nsfs nsfs rw\n\
                         3 1 0:4 / /run/pods/b/shm rw - tmpfs shm rw\n\
                         4 1 0:4 / /run/pods/b\\040c/shm rw - tmpfs shm rw\n\
                         5 1 0:4 / /run/podsies rw - tmpfs x rw\n";
        let found = others(mountinfo, Path::new("/run/pods"), Path::new("/run/pods/a"));
        assert_eq!(found, [Path::new("/run/pods/b/shm"), Path::new("/run/pods/b c/shm")]);
    }

    #[test]
    fn options_are_escaped_and_top_first() {
        let options = overlay_options(&[Path::new("a:b"), Path::new("c,d\\e")], Path::new("/u"), Path::new("/w"));
        assert_eq!(String::from_utf8(options).unwrap(), r"lowerdir=c\,d\\e:a\:b,upperdir=/u,workdir=/w");
    }

    #[test]
    fn common_parents() {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(common_parent(&paths(&["/a/b/c", "/a/b/d"])), Path::new("/a/b"));
        assert_eq!(common_parent(&paths(&["/a/b/c", "/a/x/d"])), Path::new("/a"));
        assert_eq!(common_parent(&paths(&["/a", "/b"])), Path::new("/"));
        assert_eq!(common_parent(&paths(&["/a/b", "/a/b/c"])), Path::new("/a"));
        assert_eq!(common_parent(&paths(&["/a/b"])), Path::new("/a"));
    }
}
