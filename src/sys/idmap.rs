//! User namespaces and idmapped mounts: a pod's root that is nobody on the machine, and files that keep their owners.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};

use super::mount::unescape;

/// User and group IDs of a user namespace, as kubelet's `idsPerPod`.
pub const IDS: u32 = 65_536;

/// Name of the bound user namespace beside the others of a pod.
pub const FILE: &str = "user";

/// Makes a user namespace whose IDs 0 to 65535 are `first` and up on the machine, with namespaces of the other `kinds`
/// (names as in `/proc/<pid>/ns`) that belong to it, and binds them to files of these names in `dir`, the user namespace
/// last. `dir` exists, and nothing is bound there. The files `sysctls` (below `/proc/sys`) are written by the root of these
/// namespaces: nobody else may write some, and IDs in others are those of who writes.
///
/// # Errors
/// The failed step's, in words where the machine does not allow user namespaces. What was bound stays for
/// [`super::namespace::delete`].
pub fn create(dir: &Path, kinds: &[(&str, CloneFlags)], first: u32, sysctls: &[(PathBuf, &str)]) -> io::Result<()> {
    let flags = kinds.iter().fold(CloneFlags::CLONE_NEWUSER, |all, (_, flag)| all | *flag);
    let files = sysctls.iter().map(|(path, value)| Ok((CString::new(path.as_os_str().as_bytes())?, value.as_bytes())));
    let mut holder = Holder::start(flags, &files.collect::<io::Result<Vec<_>>>()?)?;
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{map}", holder.pid);
        fs::write(&path, format!("0 {first} {IDS}\n")).map_err(|e| named(e, &format!("cannot write {path}")))?;
    }
    for (path, value) in sysctls {
        holder.write_next().map_err(|e| named(e, &format!("cannot write {value:?} to {}", path.display())))?;
    }
    for name in kinds.iter().map(|(name, _)| *name).chain([FILE]) {
        super::namespace::bind(&format!("/proc/{}/ns/{name}", holder.pid), &dir.join(name))?;
    }
    Ok(())
}

/// A process in new namespaces that does nothing but write files when told, and ends with this value or with the process that
/// started it.
struct Holder {
    pid: i32,
    told: File,
    release: File,
}

impl Holder {
    fn start(flags: CloneFlags, files: &[(CString, &[u8])]) -> io::Result<Holder> {
        let (told, tell) = pipe_with(PipeFlags::CLOEXEC)?;
        let (wait, release) = pipe_with(PipeFlags::CLOEXEC)?;
        let (tell_fd, wait_fd, release_fd) = (tell.as_raw_fd(), wait.as_raw_fd(), release.as_raw_fd());
        // A thread cannot do this itself: the kernel gives a new user namespace to whole processes only.
        // SAFETY: this process may have other threads, so the child makes nothing but system calls on values that it
        // has on its stack or that were made before, until it ends.
        let pid = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                // Its copy of the other end would keep it from seeing that its parent has gone.
                libc::close(release_fd);
                let tell = |failed: bool| {
                    let errno = if failed { *libc::__errno_location() } else { 0 };
                    libc::write(tell_fd, (&raw const errno).cast(), size_of::<i32>());
                };
                let mut byte = 0_u8;
                let mut wait = || libc::read(wait_fd, (&raw mut byte).cast(), 1) == 1;
                tell(libc::unshare(flags.bits()) != 0);
                for (path, value) in files {
                    if !wait() {
                        break;
                    }
                    // As the machine's root, which is nobody here, it could write less.
                    let root = libc::setresgid(0, 0, 0) == 0 && libc::setresuid(0, 0, 0) == 0;
                    let fd = if root { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) } else { -1 };
                    tell(fd < 0 || libc::write(fd, value.as_ptr().cast(), value.len()) < 0);
                    libc::close(fd);
                }
                while wait() {}
                libc::_exit(0);
            }
            pid
        };
        if pid < 0 {
            return Err(named(io::Error::last_os_error(), "cannot fork"));
        }
        let mut holder = Holder { pid, told: told.into(), release: release.into() };
        drop(tell);
        match holder.answer()? {
            0 => Ok(holder),
            errno => Err(refusal(errno)),
        }
    }

    /// Has it write the next of its files, for which it must have its IDs.
    fn write_next(&mut self) -> io::Result<()> {
        self.release.write_all(&[0])?;
        match self.answer()? {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The error number that it tells, or 0.
    fn answer(&mut self) -> io::Result<i32> {
        let mut errno = [0; size_of::<i32>()];
        self.told.read_exact(&mut errno)?;
        Ok(i32::from_ne_bytes(errno))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: the child has not been waited for, so the PID is its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        let mut status = 0;
        loop {
            // SAFETY: a system call with a pointer to a local integer.
            let done = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
            if done >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return;
            }
        }
    }
}

/// Why there is no new user namespace, in words that say what to change.
fn refusal(errno: i32) -> io::Error {
    let error = io::Error::from_raw_os_error(errno);
    let why = match errno {
        libc::ENOSPC | libc::EUSERS => {
            "this node allows no more user namespaces (sysctl user.max_user_namespaces), which hostUsers: false needs"
        }
        libc::EINVAL => "this node's kernel has no user namespaces, which hostUsers: false needs",
        _ => "this node does not allow user namespaces, which hostUsers: false needs",
    };
    named(error, why)
}

fn named(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Why a folder or file cannot be shown with its owners in a user namespace.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The path cannot be opened as a mount.
    #[error("cannot open {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// Its file system, or the one of a mount below it, cannot do it.
    #[error(
        "{} is on a file system ({kind}) that cannot be idmapped on this kernel: with hostUsers: false its files \
         would have the wrong owners",
        path.display()
    )]
    FileSystem {
        /// The mount.
        path: PathBuf,
        /// Type of its file system.
        kind: String,
        /// What the kernel says.
        source: io::Error,
    },
}

/// A detached copy of the mounts at `path` and below, in which IDs are shown and stored as in `userns`: what its root
/// writes is root's on disk. It goes when the descriptor is closed, unless it was attached ([`attach`]).
///
/// # Errors
/// [`CloneError`], naming the mount that cannot be copied so.
pub fn clone(path: &Path, userns: BorrowedFd<'_>) -> Result<OwnedFd, CloneError> {
    let open = |flags| {
        let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, path, flags).map_err(|e| CloneError::Open(path.to_owned(), e.into()))
    };
    let tree = open(OpenTreeFlags::AT_RECURSIVE)?;
    set_idmap(tree.as_fd(), userns, true).map(|()| tree).map_err(|source| culprit(path, userns, source))
}

/// A detached copy of the mount at `path` as it is.
///
/// # Errors
/// [`CloneError::Open`].
pub fn copy(path: &Path) -> Result<OwnedFd, CloneError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).map_err(|e| CloneError::Open(path.to_owned(), e.into()))
}

/// Finds the mount at `path` or below that refuses.
fn culprit(path: &Path, userns: BorrowedFd<'_>, source: io::Error) -> CloneError {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut kind = "unknown".to_owned();
    for (point, of) in mount_points(&mounts) {
        if path.starts_with(&point) {
            kind = of;
        } else if point.starts_with(&path) {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let Ok(tree) = open_tree(CWD, &point, flags) else { continue };
            if let Err(source) = set_idmap(tree.as_fd(), userns, false) {
                // The top itself may be the first that refuses.
                let flags = flags | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
                let top = open_tree(CWD, &path, flags).map_err(io::Error::from);
                if top.and_then(|top| set_idmap(top.as_fd(), userns, false)).is_ok() {
                    return CloneError::FileSystem { path: point, kind: of, source };
                }
            }
        }
    }
    CloneError::FileSystem { path, kind, source }
}

/// Mount points and their file systems' types, in the order of mountinfo: of two at one place the later is on top.
fn mount_points(mountinfo: &str) -> Vec<(PathBuf, String)> {
    let parse = |line: &str| {
        let (place, rest) = line.split_once(" - ")?;
        Some((unescape(place.split(' ').nth(4)?), rest.split(' ').next()?.to_owned()))
    };
    let mut points: Vec<_> = mountinfo.lines().filter_map(parse).collect();
    points.sort_by_key(|(point, _)| point.components().count());
    points
}

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

fn set_idmap(tree: BorrowedFd<'_>, userns: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let userns = userns.as_raw_fd().unsigned_abs();
    let attr = MountAttr { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, userns: u64::from(userns) };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the attributes are of the size told, and the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a detached mount at `target`, a folder or file as the mount is one.
///
/// # Errors
/// What the kernel says.
pub fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    Ok(move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Mounts an empty tmpfs on `place`, which every process may look into.
///
/// # Errors
/// What the kernel says.
pub fn cover(place: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("coracle"), place, Some("tmpfs"), flags, Some("mode=755,size=1m")).map_err(io::Error::from)
}

/// Binds the file `source` over the file `target`.
///
/// # Errors
/// What the kernel says.
pub fn bind_file(source: &Path, target: &Path) -> io::Result<()> {
    nix::mount::mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(io::Error::from)
}

/// A mount namespace to come back to ([`leave`]), while this single-threaded process is in another of its own.
#[derive(Debug)]
pub struct Home(File);

/// Gives this single-threaded process a copy of its mount namespace, in which what it mounts is seen by nobody else.
///
/// # Errors
/// What the kernel says.
pub fn step_aside() -> io::Result<Home> {
    let home = File::open("/proc/self/ns/mnt")?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    Ok(Home(home))
}

/// Goes back to the mount namespace left by [`step_aside`]. The working directory is then `/`.
///
/// # Errors
/// What the kernel says.
pub fn leave(home: Home) -> io::Result<()> {
    Ok(nix::sched::setns(home.0, CloneFlags::CLONE_NEWNS)?)
}

/// Makes this single-threaded process a member of a user namespace, with all capabilities there and none elsewhere.
///
/// # Errors
/// What the kernel says.
pub fn enter(userns: impl AsFd) -> io::Result<()> {
    Ok(nix::sched::setns(userns.as_fd(), CloneFlags::CLONE_NEWUSER)?)
}

/// `SECBIT_NO_SETUID_FIXUP`: a change of user changes no capabilities.
const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

/// Runs `f` with files made by user and group `id`, but all capabilities kept: only such a process can write through an
/// idmapped mount, in which the machine's root does not exist. For single-threaded processes.
///
/// # Errors
/// When the user cannot be changed, or changed back; else what `f` returns.
pub fn as_owner<T>(id: u32, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // SAFETY: system calls on integers, which change this process only.
    unsafe {
        let bits = libc::prctl(libc::PR_GET_SECUREBITS);
        let kept = libc::c_ulong::try_from(bits).map_err(|_| io::Error::last_os_error())?;
        let set = |bits: libc::c_ulong| match libc::prctl(libc::PR_SET_SECUREBITS, bits) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        set(kept | NO_SETUID_FIXUP)?;
        let (user, group) = (libc::setfsuid(id), libc::setfsgid(id));
        // These two report no errors: asking again with an ID that is none tells what is set.
        let changed = libc::setfsuid(u32::MAX) as u32 == id && libc::setfsgid(u32::MAX) as u32 == id;
        let result = if changed { f() } else { Err(Errno::PERM.into()) };
        libc::setfsuid(user as u32);
        libc::setfsgid(group as u32);
        set(kept)?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_outermost_first() {
        let text = "3 2 0:5 / /a/b\\040c rw - tmpfs t rw\n1 0 8:1 / / rw,x shared:1 master:2 - ext4 /dev/sda1 rw\n";
        let expected = [(PathBuf::from("/"), "ext4".to_owned()), (PathBuf::from("/a/b c"), "tmpfs".to_owned())];
        assert_eq!(mount_points(text), expected);
        assert!(mount_points("nonsense\n - \n1 2\n").is_empty());
    }

    #[test]
    fn refusals_say_what_to_change() {
        assert!(refusal(libc::ENOSPC).to_string().contains("user.max_user_namespaces"));
        assert!(refusal(libc::EINVAL).to_string().contains("kernel has no user namespaces"));
    }
}
