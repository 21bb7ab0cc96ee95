//! The first process of a PID namespace that several containers share: it does nothing but be there, takes in orphans,
//! and ends the namespace with itself.
//!
//! Whoever may trace processes in the namespace may trace this one too, so it holds nothing worth having: no
//! capabilities, no user of the machine, an empty root, one descriptor, and a filter that allows to read, write and
//! exit.
#![allow(unsafe_code)]

use super::process;
use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::convert::Infallible;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Its name, and all of its command line.
const NAME: &str = "pause";
/// User and group that nobody has (as the pause image of Kubernetes).
const NOBODY: u32 = 65535;
/// How long it may take to get ready.
const READY: Duration = Duration::from_secs(10);

/// A started one. It ends when this is dropped, or when the process that started it ends.
#[derive(Debug)]
pub struct Paused {
    pid: i32,
    /// Its end-of-file ends the process.
    _lifeline: OwnedFd,
}

impl Paused {
    /// Its PID as this process sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

/// What it needs.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Files of namespaces to join; those that do not exist are left out.
    pub namespaces: &'a [(PathBuf, CloneFlags)],
    /// The user namespace that is to own the new PID namespace: who joins it joins both. `None` for the machine's.
    pub users: Option<PathBuf>,
    /// Any folder: an empty file system is mounted over it, in a mount namespace of the new process only.
    pub folder: &'a Path,
}

/// Starts it, as a child of this (single-threaded) process: `before` runs in it first, with all rights.
///
/// # Errors
/// With more than one thread; when the process cannot be made, or says that something does not work.
pub fn start(setup: &Setup<'_>, before: impl FnOnce() -> io::Result<()>) -> io::Result<Paused> {
    if process::threads()? != 1 {
        return Err(io::Error::other("clone in a threaded process"));
    }
    let (lifeline, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let pid = match &setup.users {
        Some(users) => start_in(users, setup, before, &lifeline, &theirs)?,
        None => spawn(0, || run(setup, before, &theirs), &theirs)?,
    };
    drop(theirs);
    match ready(&lifeline) {
        Ok(()) => Ok(Paused { pid, _lifeline: lifeline }),
        Err(e) => {
            let _ = process::kill(pid, libc::SIGKILL);
            let _ = process::reap(pid);
            Err(e)
        }
    }
}

/// Makes the process with new PID and mount namespaces, as a child of this process, or with `CLONE_PARENT` in `flags` of this
/// one's parent. It says on `theirs` what `life` could not do.
fn spawn(flags: i32, life: impl FnOnce() -> io::Result<Infallible>, theirs: &OwnedFd) -> io::Result<i32> {
    let flags = flags | libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::SIGCHLD;
    // SAFETY: as fork: without CLONE_VM and a stack of its own the child goes on with a copy of everything, and this
    // process has no other thread that could hold a lock.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, 0, 0, 0) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        let Err(e) = life();
        let _ = rustix::io::write(theirs, e.to_string().as_bytes());
        process::exit_now(1)
    }
    Ok(pid as i32)
}

/// As [`start`], in the user namespace `users`. A process cannot come back from one, so a child goes there and makes the
/// process as its own sibling.
fn start_in(
    users: &Path,
    setup: &Setup<'_>,
    before: impl FnOnce() -> io::Result<()>,
    lifeline: &OwnedFd,
    theirs: &OwnedFd,
) -> io::Result<i32> {
    let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let child = process::fork(|| {
        let made = (|| {
            let namespace = fs::File::open(users)?;
            // On the machine's side: the cgroup is not the namespace's to enter.
            before()?;
            setns(namespace, CloneFlags::CLONE_NEWUSER)?;
            let pid = spawn(libc::CLONE_PARENT, || run(setup, || Ok(()), theirs), theirs)?;
            Ok(rustix::io::write(&tell, &pid.to_ne_bytes())?)
        })();
        made.map_err(|e: io::Error| rustix::io::write(theirs, format!("in the pod's user namespace: {e}").as_bytes()))
            .map_or(1, |_| 0)
    })?;
    drop(tell);
    let mut pid = [0; size_of::<i32>()];
    let read = fs::File::from(told).read_exact(&mut pid);
    process::reap(child)?;
    match read {
        Ok(()) => Ok(i32::from_ne_bytes(pid)),
        // It has said why, and nothing but this process keeps it from being read to the end.
        Err(e) => ready(lifeline).and(Err(e)),
    }
}

/// Waits for the one byte that says that all went well; anything else says what did not.
fn ready(lifeline: &OwnedFd) -> io::Result<()> {
    rustix::net::sockopt::set_socket_timeout(lifeline, rustix::net::sockopt::Timeout::Recv, Some(READY))?;
    let mut said = Vec::new();
    let mut stream = fs::File::from(lifeline.try_clone()?);
    let mut buffer = [0; 512];
    while said.is_empty() || (said[0] != b'\n' && said.len() < 4096) {
        match stream.read(&mut buffer)? {
            0 => break,
            n => said.extend_from_slice(&buffer[..n]),
        }
    }
    match said.first() {
        Some(b'\n') => Ok(()),
        Some(_) => Err(io::Error::other(String::from_utf8_lossy(&said).into_owned())),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it died at its start")),
    }
}

/// The whole life of the process; it returns only with what went wrong at its start.
fn run(setup: &Setup<'_>, before: impl FnOnce() -> io::Result<()>, lifeline: &OwnedFd) -> io::Result<Infallible> {
    let step = |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    process::set_name(NAME);
    before().map_err(|e| step("its cgroup", e))?;
    // Zombies of orphans go without anybody waking up; signals from inside cannot harm the namespace's first process.
    process::ignore_signals(&[libc::SIGCHLD, libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE]);
    let _ = process::drop_file_pages();
    rename_command_line().map_err(|e| step("its command line", e))?;
    for (path, kind) in setup.namespaces {
        match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => setns(file, *kind).map_err(|e| step(&path.display().to_string(), e.into()))?,
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(step(&path.display().to_string(), e.into())),
        }
    }
    empty_root(setup.folder).map_err(|e| step("an empty root", e))?;
    only_descriptor(lifeline)?;
    become_nobody()?;
    // After the change of user, which clears it.
    process::die_with_parent()?;
    wait_for_the_end()
}

/// What `ps` shows: the command line of the process that this is a copy of would tell paths of the machine.
fn rename_command_line() -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let Some((start, end)) = parse_arguments(&stat) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no arguments in /proc/self/stat"));
    };
    let length = end.saturating_sub(start);
    if start == 0 || length <= NAME.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no room for arguments"));
    }
    // SAFETY: the kernel keeps the arguments of this program there, in writable memory of its stack; nothing in this
    // process reads them any more.
    unsafe {
        std::ptr::write_bytes(start as *mut u8, 0, length);
        std::ptr::copy_nonoverlapping(NAME.as_ptr(), start as *mut u8, NAME.len());
    }
    Ok(())
}

/// Fields 48 and 49 of `/proc/<pid>/stat`: where the arguments begin and end.
fn parse_arguments(stat: &str) -> Option<(usize, usize)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let start = fields.nth(45)?.parse().ok()?;
    Some((start, fields.next()?.parse().ok()?))
}

/// Leaves nothing to be seen through `/proc/1/root`.
fn empty_root(folder: &Path) -> io::Result<()> {
    use rustix::mount::{mount, mount_change, mount_move, unmount};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(NAME, folder, "tmpfs", flags, Some(c"size=4k,nr_inodes=1,mode=555"))?;
    rustix::process::chdir(folder)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH)?,
        // A machine that runs from its initial RAM file system: that root cannot be replaced, but covered.
        Err(rustix::io::Errno::INVAL) => {
            mount_move(".", "/")?;
            rustix::process::chroot(".")?;
        }
        Err(e) => return Err(e.into()),
    }
    Ok(rustix::process::chdir("/")?)
}

/// Keeps `fd` as descriptor 0 and closes all others.
fn only_descriptor(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain system calls without pointers; what owned the other descriptors is never used again, as this
    // process ends without running destructors.
    unsafe {
        if libc::dup2(fd.as_raw_fd(), 0) < 0 || libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives up every right. With the user go all capabilities, but not those in a user namespace that was joined as the
/// machine's root: there that one is nobody already.
fn become_nobody() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let (header, none) = ([VERSION_3, 0], [0_u32; 6]);
    // SAFETY: plain system calls on numbers, an empty list that is not read, and a header (version, own PID) with two
    // sets of three words as that version has them, which the kernel only reads.
    let failed = unsafe {
        libc::setgroups(0, std::ptr::null()) < 0
            || libc::setresgid(NOBODY, NOBODY, NOBODY) < 0
            || libc::setresuid(NOBODY, NOBODY, NOBODY) < 0
            || libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) < 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0
            || libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says on descriptor 0 that all is well, and reads from it until its other end is closed.
fn wait_for_the_end() -> ! {
    const STRICT: libc::c_ulong = 1;
    let mut byte = [b'\n'];
    // SAFETY: plain system calls; `byte` is one byte that may be read and written. In the strict mode of seccomp only
    // read, write, exit and the return from a signal handler are allowed; a kernel without it changes nothing.
    unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, STRICT, 0, 0, 0);
        libc::write(0, byte.as_ptr().cast(), 1);
        while libc::read(0, byte.as_mut_ptr().cast(), 1) != 0 {}
        loop {
            libc::syscall(libc::SYS_exit, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found_behind_odd_names() {
        let fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b) S {}", fields.join(" "));
        assert_eq!(parse_arguments(&stat), Some((48, 49)));
        assert_eq!(parse_arguments("7 (a) S 1 2 3"), None);
        assert_eq!(parse_arguments(""), None);
        let own = parse_arguments(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        assert!(own.0 > 0 && own.1 > own.0);
    }

    #[test]
    fn a_threaded_process_starts_none() {
        let setup = Setup { namespaces: &[], users: None, folder: Path::new("/") };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| start(&setup, || Ok(())).unwrap_err().to_string());
            assert_eq!(other.join().unwrap(), "clone in a threaded process");
        });
    }
}
