//! Processes: fork, signals, exits, identity across PID reuse, and the memory of an idle shim.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It called `exit` with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Leaves all supplementary groups, which libcontainer otherwise passes on from whoever started the agent to containers that
/// have none. For single-threaded processes; without the right to do it there is nothing to leave.
pub fn drop_groups() {
    let _ = nix::unistd::setgroups(&[]);
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Number of threads of this process.
pub fn threads() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// Runs `child` in a forked process, which then exits with the code that it returns (without running exit handlers).
/// Returns the child's PID.
///
/// # Errors
/// When the process has more than one thread: a copy of a lock that another thread holds is never released.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    if threads()? != 1 {
        return Err(io::Error::other("fork in a threaded process"));
    }
    // SAFETY: the process is single-threaded, so the child's copy of memory is consistent and no lock is held by a
    // thread that does not exist there.
    let pid = check(unsafe { libc::fork() })?;
    if pid == 0 {
        let code = child();
        // SAFETY: ends the process; nothing after it runs.
        unsafe { libc::_exit(code) }
    }
    Ok(pid)
}

/// Ends this single-threaded process and its children in so many seconds; 0: not any more. Children do not inherit that.
pub fn end_after(seconds: u32) {
    // SAFETY: sigaction is plain data; the handler is async-signal-safe and lives as long as the program.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = end_with_children as *const () as usize;
        libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
        libc::alarm(seconds);
    }
}

extern "C" fn end_with_children(_signal: libc::c_int) {
    let mut list = [0_u8; 4096];
    // SAFETY: async-signal-safe system calls; `list` has room for what is read.
    let count = unsafe {
        let fd = libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        libc::read(fd, list.as_mut_ptr().cast(), list.len())
    };
    let mut pid = 0_i32;
    for byte in list.into_iter().take(usize::try_from(count).unwrap_or(0)) {
        if byte.is_ascii_digit() {
            pid = pid.saturating_mul(10).saturating_add(i32::from(byte - b'0'));
            continue;
        }
        // Each number is followed by a blank.
        if pid > 1 {
            // SAFETY: plain system call; a child that has not been waited for keeps its PID.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        pid = 0;
    }
    exit_now(1)
}

/// Ends this process at once, without exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing after it runs.
    unsafe { libc::_exit(code) }
}

/// Sends `signal` to a process. 0 only checks.
///
/// # Errors
/// `InvalidInput` for PIDs that would mean a group, everything, or the machine's init.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the PID of a single process"));
    }
    // SAFETY: plain system call without pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Sends `signal` to every process of a group.
///
/// # Errors
/// `InvalidInput` for groups that would mean our own, everything, or that of the machine's init.
pub fn kill_group(group: i32, signal: i32) -> io::Result<()> {
    if group <= 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a process group"));
    }
    // SAFETY: plain system call without pointers.
    check(unsafe { libc::kill(-group, signal) }).map(drop)
}

/// The PID of a child that has ended, which stays a zombie until [`reap`]: its PID cannot be reused before that.
/// `None` when there is none now, also when there are no children.
pub fn ended_child() -> io::Result<Option<i32>> {
    // SAFETY: siginfo_t is plain data, for which zero bytes are a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid for writes for the duration of the call.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) };
    match check(result) {
        // SAFETY: waitid filled in the fields of SIGCHLD, or left zero bytes.
        Ok(_) => Ok(Some(unsafe { info.si_pid() }).filter(|pid| *pid > 0)),
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Waits for a child to end and removes its zombie.
pub fn reap(pid: i32) -> io::Result<Exit> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid for writes for the duration of the call.
        match check(unsafe { libc::waitpid(pid, &mut status, 0) }) {
            Ok(_) if libc::WIFSIGNALED(status) => return Ok(Exit::Signal(libc::WTERMSIG(status))),
            Ok(_) => return Ok(Exit::Code(libc::WEXITSTATUS(status))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Removes the zombie of a child if it has ended; tells whether it had.
pub fn reap_if_ended(pid: i32) -> io::Result<bool> {
    let mut status = 0;
    // SAFETY: `status` is valid for writes for the duration of the call.
    check(unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) }).map(|ended| ended == pid)
}

static CHILD_EVENTS: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note_child(_signal: libc::c_int) {
    let one = 1u64;
    let fd = CHILD_EVENTS.load(Ordering::Relaxed);
    // SAFETY: write is async-signal-safe, `one` is 8 readable bytes; errno is restored for the interrupted code.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd, (&raw const one).cast(), 8);
        *libc::__errno_location() = errno;
    }
}

/// A descriptor that becomes readable (an eventfd) when a child ended. No signal is blocked, so nothing is inherited
/// by containers, and an exit before the wait is not lost. Keep it open for the life of the process.
pub fn child_events() -> io::Result<OwnedFd> {
    // SAFETY: plain system call without pointers; the descriptor returned is ours alone.
    let fd = unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?) };
    CHILD_EVENTS.store(fd.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: sigaction is plain data; the handler is async-signal-safe and lives as long as the program.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note_child as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
        check(libc::sigaction(libc::SIGCHLD, &action, std::ptr::null_mut()))?;
    }
    Ok(fd)
}

/// Ignores these signals from now on.
pub fn ignore_signals(signals: &[i32]) {
    for &signal in signals {
        // SAFETY: SIG_IGN is a valid disposition; for an invalid signal number the call fails and changes nothing.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Every signal to its default disposition, none blocked: what a program may expect of its parent.
pub fn reset_signals() {
    // The kernel's own structure, as glibc keeps two signals from being reset that a parent may have ignored:
    // handler (SIG_DFL is 0), flags, restorer, mask.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: `default` is as large as the kernel's sigaction on 64-bit machines and valid for reads; for SIGKILL
        // and SIGSTOP the call fails and changes nothing.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8) };
    }
    let none = 0u64;
    // SAFETY: `none` is a kernel signal set of the 8 bytes given.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, std::ptr::null_mut::<u64>(), 8)
    };
}

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: only called with options whose argument is a number.
    check(unsafe { libc::prctl(option, argument, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong) })
        .map(drop)
}

/// Orphans of this process's descendants become its children.
pub fn become_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// This process gets SIGKILL when its parent ends. Cleared by executing a set-user-ID program.
pub fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
}

/// Name shown by `ps -o comm` (at most 15 bytes are kept).
pub fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: a NUL-terminated string; the kernel copies at most 16 bytes.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// Field 22 of `/proc/<pid>/stat`: start time in clock ticks since boot. With the PID it names a process for the
/// whole uptime.
///
/// # Errors
/// `NotFound` when there is no such process or it is a zombie.
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the process has ended"))
}

/// `None` for a zombie and for text that is not a `stat` line.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    // The command name may hold spaces and parentheses: what follows the last ')' is unambiguous.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether the process that had `pid` and `start` (see [`start_ticks`]) still runs.
pub fn is_alive(pid: i32, start: u64) -> bool {
    start_ticks(pid).is_ok_and(|ticks| ticks == start)
}

/// The kernel's random ID of this boot.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// This process's `oom_score_adj`.
pub fn oom_score_adj() -> io::Result<i32> {
    fs::read_to_string("/proc/self/oom_score_adj")?.trim_end().parse().map_err(io::Error::other)
}

/// Sets this process's `oom_score_adj` (-1000 to 1000).
///
/// # Errors
/// `PermissionDenied` when it is lowered without CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(value: i32) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj")?.write_all(value.to_string().as_bytes())
}

/// Makes malloc give blocks of 16 KiB and more back to the kernel as soon as they are freed, for processes that are
/// idle nearly always.
pub fn return_freed_memory() {
    // SAFETY: mallopt takes plain numbers; called before other threads exist.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 16 * 1024) };
}

/// Keeps the heap of a threaded process in few places, so that [`release_memory`] finds what is free: glibc gives each
/// thread an arena of its own otherwise, and what is freed there stays.
pub fn share_the_heap() {
    // SAFETY: mallopt takes plain numbers; called before other threads exist.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    return_freed_memory();
}

/// Gives everything back to the kernel that this process does not need while it is idle: free heap and file pages.
pub fn release_memory() {
    // SAFETY: malloc_trim may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
    // Pages stay when their list cannot be read; that costs memory only.
    let _ = drop_file_pages();
}

/// Drops the file-backed pages (code, constants) of this process from memory; they come back from the page cache
/// when touched. Returns the number of mappings dropped.
pub fn drop_file_pages() -> io::Result<usize> {
    let mut dropped = 0;
    let mut mapping = None;
    let mut smaps = BufReader::with_capacity(4096, fs::File::open("/proc/self/smaps")?);
    let mut line = String::with_capacity(256);
    while smaps.read_line(&mut line)? != 0 {
        if let Some(found) = parse_mapping(&line) {
            mapping = found;
        } else if let (Some((start, end)), Some(kib)) = (mapping, line.strip_prefix("Anonymous:")) {
            mapping = None;
            // Relocated constants (RELRO) look the same but for this: their content is not in the file.
            if kib.trim() == "0 kB" {
                // SAFETY: a private, file-backed, non-writable mapping of ours without anonymous pages: its content
                // is the file's, and reads after this fetch it again.
                let result = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
                dropped += usize::from(result == 0);
            }
        }
        line.clear();
    }
    Ok(dropped)
}

/// `None`: not the first line of a mapping. `Some(None)`: one to keep.
fn parse_mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let flags = fields.next()?;
    let file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
    let droppable = file && flags.starts_with('r') && flags.as_bytes().get(1) == Some(&b'-') && flags.ends_with('p');
    Some(droppable.then_some((start, end)))
}

/// A descriptor to execute this program from, whose file cannot be written through `/proc/<pid>/exe`: a container
/// that executes its own `/proc/self/exe` must not get a way to overwrite the program on the machine. It is a
/// detached read-only bind mount, so all processes still share the program's pages.
///
/// # Errors
/// On kernels before 5.12, or without CAP_SYS_ADMIN.
pub fn sealed_program(program: &Path) -> io::Result<OwnedFd> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let tree = open_tree(rustix::fs::CWD, program, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: an empty NUL-terminated path and a mount_attr of the size given, both valid for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_ticks_survive_odd_names() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 10";
        assert_eq!(parse_start_ticks(stat), Some(987654));
        assert_eq!(parse_start_ticks(&stat.replace(") S", ") Z")), None);
        assert_eq!(parse_start_ticks("garbage"), None);
    }

    #[test]
    fn own_start_is_known() {
        let pid = std::process::id() as i32;
        let start = start_ticks(pid).unwrap();
        assert!(is_alive(pid, start));
        assert!(!is_alive(pid, start + 1));
    }

    #[test]
    fn mappings() {
        assert_eq!(
            parse_mapping("00400000-00401000 r-xp 00000000 fe:00 12 /bin/x\n"),
            Some(Some((0x400000, 0x401000)))
        );
        assert_eq!(parse_mapping("00400000-00401000 rw-p 00000000 fe:00 12 /bin/x\n"), Some(None));
        assert_eq!(parse_mapping("00400000-00401000 r--s 00000000 fe:00 12 /bin/x\n"), Some(None));
        assert_eq!(parse_mapping("00400000-00401000 r--p 00000000 00:00 0 [vdso]\n"), Some(None));
        assert_eq!(parse_mapping("Anonymous:             0 kB\n"), None);
    }

    #[test]
    fn groups_and_init_are_never_killed() {
        for pid in [1, 0, -1, -5] {
            assert_eq!(kill(pid, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(kill_group(pid, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
