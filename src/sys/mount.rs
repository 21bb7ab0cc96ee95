//! Mounts: private mount namespaces, overlay file systems, detached trees of mounts.
#![allow(unsafe_code)]

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, mount_change, move_mount, open_tree,
    unmount,
};
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Gives this (single-threaded) process a mount namespace of its own: what it mounts is seen nowhere else and goes
/// with its last process; what the machine mounts still comes in.
pub fn private_namespace() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    Ok(())
}

/// Gives this (single-threaded) process a copy of its mount namespace, which goes with its last process. Nothing is
/// changed but the namespace: mounts are in the same peer groups as before.
pub fn copied_namespace() -> io::Result<()> {
    Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?)
}

/// A mount namespace that can be entered again.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// The one of this process.
    pub fn current() -> io::Result<Namespace> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Namespace(rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty())?))
    }

    /// The one of another process.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: i32) -> io::Result<Namespace> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Namespace(rustix::fs::open(format!("/proc/{pid}/ns/mnt"), flags, Mode::empty())?))
    }

    /// Moves this single-threaded process into it for good. Its working directory and root are then the namespace's root.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN.
    pub fn enter(&self) -> io::Result<()> {
        Ok(nix::sched::setns(&self.0, nix::sched::CloneFlags::CLONE_NEWNS)?)
    }

    /// Runs `work` in it, then returns to the one from before. For a single-threaded process only; its working directory is
    /// `/` afterwards.
    ///
    /// # Errors
    /// Of `work`. When there is no way back, the process is in the wrong namespace and has to end.
    pub fn visit<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let own = Namespace::current()?;
        nix::sched::setns(&self.0, nix::sched::CloneFlags::CLONE_NEWNS)?;
        let result = work();
        nix::sched::setns(&own.0, nix::sched::CloneFlags::CLONE_NEWNS)?;
        result
    }
}

/// How mounts spread below a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// To nowhere, from nowhere.
    None,
    /// From the group of what it was copied from.
    Receive,
}

/// A copy of a mount and all below it, attached nowhere yet; gone with the value.
#[derive(Debug)]
pub struct Tree(OwnedFd);

impl Tree {
    /// A copy of what is visible at `place` (a folder or file, `O_PATH` will do) in the present namespace. Copies of shared
    /// mounts are in the same peer group.
    pub fn copy(place: BorrowedFd<'_>) -> io::Result<Tree> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(Tree(open_tree(place, "", flags | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE)?))
    }

    /// Changes how mounts spread.
    pub fn set_peers(&self, peers: Peers) -> io::Result<()> {
        let propagation = match peers {
            Peers::None => libc::MS_PRIVATE,
            Peers::Receive => libc::MS_SLAVE,
        };
        self.set(libc::mount_attr { attr_set: 0, attr_clr: 0, propagation, userns_fd: 0 })
    }

    /// Makes all of it read-only.
    pub fn set_read_only(&self) -> io::Result<()> {
        self.set(libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 })
    }

    /// Puts it in the place of what is mounted at `name` in the folder `parent`; links are not followed. That something is
    /// mounted there is the caller's to know. The working directory is `parent` afterwards.
    ///
    /// There is no moment with nothing mounted there, unless the kernel is older than 6.5. What cannot be taken off, for
    /// it belongs to a more powerful user namespace, is covered.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn replace(&self, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        // MOVE_MOUNT_BENEATH, which the library does not know yet.
        self.replace_with(parent, name, MoveMountFlags::from_bits_retain(0x200))
    }

    fn replace_with(&self, parent: BorrowedFd<'_>, name: &OsStr, beneath: MoveMountFlags) -> io::Result<()> {
        let put = |flags| move_mount(&self.0, "", parent, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | flags);
        rustix::process::fchdir(parent)?;
        let take_off = || unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        match put(beneath) {
            Ok(()) => Ok(take_off()?),
            Err(Errno::INVAL) => {
                match take_off() {
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(e) => return Err(e.into()),
                }
                Ok(put(MoveMountFlags::empty())?)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn set(&self, attributes: libc::mount_attr) -> io::Result<()> {
        // SAFETY: an empty NUL-terminated path and a mount_attr of the size given, both valid for the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Mounts it at `target`, which is made: a folder or a file, as the tree's root is.
    pub fn attach(&self, target: &Path) -> io::Result<()> {
        let stat = rustix::fs::fstat(&self.0)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => std::fs::create_dir(target)?,
            _ => drop(std::fs::File::create_new(target)?),
        }
        Ok(move_mount(&self.0, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }
}

impl From<OwnedFd> for Tree {
    /// Of a detached mount.
    fn from(tree: OwnedFd) -> Tree {
        Tree(tree)
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How mounts spread from and to the mount that holds a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Propagation {
    /// Where it is mounted.
    pub point: PathBuf,
    /// It has peers: both ways.
    pub shared: bool,
    /// It has a master: from there.
    pub slave: bool,
}

/// Looks up the mount that holds `path` (links followed) in the present namespace.
///
/// # Errors
/// As `statx`; `Unsupported` on kernels before 5.8.
pub fn propagation(path: &Path) -> io::Result<Propagation> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let missing = || io::Error::new(io::ErrorKind::Unsupported, "the kernel does not tell its mount");
    parse_propagation(&mounts, stat.stx_mnt_id).ok_or_else(missing)
}

fn parse_propagation(mountinfo: &str, id: u64) -> Option<Propagation> {
    let line = mountinfo.lines().find(|line| line.split(' ').next().and_then(|n| n.parse().ok()) == Some(id))?;
    let (head, _) = line.split_once(" - ")?;
    let has = |tag: &str| head.split(' ').skip(6).any(|field| field.starts_with(tag));
    Some(Propagation { point: unescape(line.split(' ').nth(4)?), shared: has("shared:"), slave: has("master:") })
}

/// Mounts a small tmpfs for mount points, for root only, at `target`.
pub fn scratch(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("tmpfs", target, "tmpfs", flags, Some(c"mode=0700,size=1m"))?)
}

/// A name for a copy of the `index`th layer that is mounted elsewhere. It holds the layer's own, so that mountinfo shows
/// which layers an overlay is made of even where these are copies.
pub fn copy_name(index: usize, layer: &Path) -> String {
    format!("{index}.{}", layer.file_name().unwrap_or_default().to_string_lossy())
}

/// Mounts an overlay of `layers` (bottom first, at least two) on `target`, read-only and with nothing in it to execute.
/// Changes the working directory as [`overlay`] does.
///
/// # Errors
/// As [`overlay`].
pub fn overlay_read_only(layers: &[PathBuf], target: &Path) -> io::Result<()> {
    let (attributes, flags) = (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV);
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    match overlay_by_parts(layers, None, attributes, target) {
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::TOOBIG) => {
            overlay_by_options(layers, None, flags | MountFlags::RDONLY | MountFlags::NOEXEC, target)
        }
        other => Ok(other?),
    }
}

/// Mounts an overlay of `layers` (bottom first) with `upper` as its writable layer on `target`.
///
/// Changes the working directory for the time of the call when the paths are long: call it in a single-threaded
/// process.
///
/// # Errors
/// `InvalidInput` without layers, or when the paths are too long for this kernel; else what the kernel says, and why it
/// may say so.
pub fn overlay(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    if layers.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an overlay needs at least one layer"));
    }
    // An image may hold device nodes: they must not open the machine's disks. A container's devices are in its `/dev`.
    let (attributes, flags) = (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV);
    match overlay_by_parts(layers, Some((upper, work)), attributes, target) {
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::TOOBIG) => {
            overlay_by_options(layers, Some((upper, work)), flags, target)
        }
        other => Ok(other?),
    }
    .map_err(|error| super::overlay::explain(error, upper))
}

/// The mount API of kernel 6.5 and later: one call per layer, so that their number is not limited by a page of options.
fn overlay_by_parts(
    layers: &[PathBuf],
    writable: Option<(&Path, &Path)>,
    attributes: MountAttrFlags,
    target: &Path,
) -> Result<(), Errno> {
    // The kernel's limit of a string parameter.
    let long = |path: &Path| path.as_os_str().len() > 255;
    if writable.is_some_and(|(upper, work)| long(upper) || long(work)) || layers.iter().any(|layer| long(layer)) {
        return Err(Errno::TOOBIG);
    }
    let context: OwnedFd = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers.iter().rev() {
        fsconfig_set_string(&context, "lowerdir+", layer)?;
    }
    if let Some((upper, work)) = writable {
        fsconfig_set_string(&context, "upperdir", upper)?;
        fsconfig_set_string(&context, "workdir", work)?;
    }
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// mount(2), with names relative to the layers' common folder, as its options must fit in a page.
fn overlay_by_options(
    layers: &[PathBuf],
    writable: Option<(&Path, &Path)>,
    flags: MountFlags,
    target: &Path,
) -> io::Result<()> {
    let base = common_parent(layers);
    let relative: Vec<&Path> = layers.iter().map(|layer| layer.strip_prefix(&base).unwrap_or(layer)).collect();
    let options = CString::new(overlay_options(&relative, writable))?;
    if options.as_bytes().len() >= 4096 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the {} layers' paths are longer than a page; kernel 6.5 or later is needed", layers.len()),
        ));
    }
    let before = std::env::current_dir()?;
    std::env::set_current_dir(&base)?;
    let result = mount("overlay", target, "overlay", flags, options.as_c_str());
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
fn overlay_options(layers: &[&Path], writable: Option<(&Path, &Path)>) -> Vec<u8> {
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
    if let Some((upper, work)) = writable {
        out.extend_from_slice(b",upperdir=");
        push(&mut out, upper);
        out.extend_from_slice(b",workdir=");
        push(&mut out, work);
    }
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
    fn a_mount_takes_the_place_of_another_also_on_old_kernels() {
        assert!(nix::unistd::geteuid().is_root(), "to mount needs root");
        let dir = std::env::temp_dir().join(format!("coracle-replace-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("folder");
        for name in ["one", "two", "place"] {
            std::fs::write(dir.join(name), name).expect("file");
        }
        let (known, unknown) = (MoveMountFlags::from_bits_retain(0x200), MoveMountFlags::from_bits_retain(1 << 30));
        for beneath in [known, unknown] {
            let dir = dir.clone();
            // A namespace of the thread's own.
            let thread = std::thread::spawn(move || {
                private_namespace().expect("namespace");
                let place = dir.join("place");
                let read = || std::fs::read_to_string(&place).expect("read");
                let tree = |name: &str| {
                    let open =
                        |path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("open");
                    (Tree::copy(open(dir.join(name)).as_fd()).expect("copy"), open(dir.clone()))
                };
                let (one, _) = tree("one");
                move_mount(&one, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).expect("mount");
                assert_eq!(read(), "one");
                let (two, parent) = tree("two");
                two.set_peers(Peers::None).expect("private");
                two.set_read_only().expect("read-only");
                two.replace_with(parent.as_fd(), OsStr::new("place"), beneath).expect("replace");
                assert_eq!(read(), "two");
                let written = std::fs::write(&place, "").expect_err("read-only");
                assert_eq!(written.kind(), io::ErrorKind::ReadOnlyFilesystem);
                unmount(&place, UnmountFlags::DETACH).expect("unmount");
                assert_eq!(read(), "place", "the first one is gone");
            });
            thread.join().expect("the thread");
        }
        std::fs::remove_dir_all(&dir).expect("remove");
    }

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
    fn propagation_of_a_mount() {
        let mountinfo = "27 1 8:1 / / rw - ext4 x rw\n\
                         3 27 0:4 / /a\\040b rw,noexec shared:7 master:2 - tmpfs shared:x rw\n\
                         4 27 0:4 / /c rw master:2 - tmpfs x rw\n";
        let of = |id| parse_propagation(mountinfo, id).map(|p| (p.point, p.shared, p.slave));
        assert_eq!(of(27), Some(("/".into(), false, false)));
        assert_eq!(of(3), Some(("/a b".into(), true, true)));
        assert_eq!(of(4), Some(("/c".into(), false, true)));
        assert_eq!(of(5), None);
        assert!(propagation(Path::new("/proc/self")).is_ok());
    }

    #[test]
    fn options_are_escaped_and_top_first() {
        let options =
            overlay_options(&[Path::new("a:b"), Path::new("c,d\\e")], Some((Path::new("/u"), Path::new("/w"))));
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
