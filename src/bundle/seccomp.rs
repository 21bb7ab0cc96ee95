//! The `RuntimeDefault` seccomp profile: what a well-behaved program needs, and nothing that reaches past its container.
//!
//! The set follows the public default profile of Docker and containerd. Two things differ in form, not in substance:
//!
//! - Only the native architecture is in the filter, as it is compiled at each start of a container. A 32-bit program on a
//!   64-bit machine is killed by its first system call (SIGSYS): to have x86 in the filter takes 8 to 10 ms more per start
//!   instead of 2 in all. Such a container needs `seccompProfile: {type: Unconfined}`.
//! - A system call that is in no list fails with `ENOSYS`, one that is forbidden with `EPERM`. A C library takes
//!   `ENOSYS` as "old kernel" and falls back; `EPERM` for a call that came after this list breaks it (`clone3`,
//!   `fchmodat2`). Names that libseccomp 2.5.4 does not know are left out: the filter could not hold them.

use super::capabilities::Set;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator as Operator, LinuxSyscall, LinuxSyscallBuilder,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Allowed to every container, on every architecture.
const ALLOWED: &str = "
    accept accept4 adjtimex bind brk cachestat capget capset chdir clock_adjtime clock_getres clock_gettime
    clock_nanosleep close close_range connect copy_file_range dup dup3 epoll_create1 epoll_ctl epoll_pwait
    epoll_pwait2 eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark
    fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
    fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake get_robust_list
    getcpu getcwd getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpid getppid
    getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday
    getuid getxattr inotify_add_watch inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
    io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lgetxattr linkat listen listxattr llistxattr lremovexattr lseek lsetxattr madvise
    map_shadow_stack membarrier memfd_create memfd_secret mincore mkdirat mknodat mlock mlock2 mlockall mmap
    mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap msgctl msgget msgrcv
    msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat openat openat2 pidfd_open
    pidfd_send_signal pipe2 pkey_alloc pkey_free pkey_mprotect ppoll prctl pread64 preadv preadv2 prlimit64
    process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead
    readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr renameat renameat2 restart_syscall rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list
    set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid
    setreuid setrlimit setsid setsockopt setuid setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd4
    socketpair splice statfs statx symlinkat sync sync_file_range syncfs sysinfo tee tgkill timer_create
    timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times
    tkill truncate umask uname unlinkat utimensat vmsplice wait4 waitid write writev
";

/// Allowed to every container: what only x86-64 has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_NATIVE: &str = "
    access alarm arch_prctl chmod chown creat dup2 epoll_create epoll_wait eventfd fork futimesat get_thread_area
    getdents getpgrp inotify_init lchown link lstat mkdir mknod modify_ldt open pause pipe poll readlink rename
    rmdir select set_thread_area signalfd stat symlink time unlink utime utimes vfork
";

/// Allowed to every container: what only this architecture has.
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_NATIVE: &str = "";

/// Forbidden, unless [`WITH_CAPABILITY`] allows it.
const FORBIDDEN: &str = "
    acct add_key bpf chroot clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick
    get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup kcmp kexec_file_load kexec_load keyctl
    lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages open_by_handle_at open_tree
    perf_event_open pidfd_getfd pivot_root process_madvise quotactl quotactl_fd reboot request_key set_mempolicy
    set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon syslog umount2 unshare
    userfaultfd vhangup
";

/// Forbidden too: what only x86-64 has.
#[cfg(target_arch = "x86_64")]
const FORBIDDEN_NATIVE: &str = "ioperm iopl sysfs ustat";

/// Forbidden too: what only this architecture has.
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_NATIVE: &str = "";

/// Allowed to those who hold a capability: without it the kernel would refuse most of these anyway.
const WITH_CAPABILITY: [(&str, &str); 13] = [
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    (
        "SYS_ADMIN",
        "bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree \
         perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime settimeofday"),
    ("SYS_TTY_CONFIG", "vhangup"),
];

/// `CLONE_NEW*`: flags of `clone` that make namespaces.
const NAMESPACE_FLAGS: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
/// Values `personality` may set: Linux, with and without address randomisation of old, 32 bit; and "ask".
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x20000, 0x20008, 0xffff_ffff];
const AF_VSOCK: u64 = 40;

#[cfg(target_arch = "x86_64")]
const NATIVE: Option<Arch> = Some(Arch::ScmpArchX86_64);
#[cfg(target_arch = "aarch64")]
const NATIVE: Option<Arch> = Some(Arch::ScmpArchAarch64);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const NATIVE: Option<Arch> = None;

/// The names a container with these capabilities may call, whatever the arguments.
fn allowed(capabilities: Set) -> Vec<&'static str> {
    let mut names: Vec<&str> = ALLOWED.split_whitespace().chain(ALLOWED_NATIVE.split_whitespace()).collect();
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.has(capability) {
            names.extend(calls.split_whitespace());
        }
    }
    if capabilities.has("SYSLOG") {
        names.push("syslog");
    }
    if capabilities.has("SYS_ADMIN") {
        names.extend(["clone", "clone3"]);
    }
    names.sort_unstable();
    names.dedup();
    names
}

fn rule(
    names: &[&str],
    action: Action,
    errno: Option<u32>,
    arg: Option<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    let mut builder =
        LinuxSyscallBuilder::default().names(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if let Some(arg) = arg {
        builder = builder.args(vec![arg]);
    }
    builder.build()
}

/// A condition on the first argument.
fn first(op: Operator, value: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default().index(0_usize).op(op).value(value).build()
}

/// The condition that of an argument `value` is left behind `mask`. libcontainer takes `valueTwo` for the mask and
/// `value` for what is left, the runtime spec (as runc) has it the other way round.
pub(super) fn masked_equal(index: usize, mask: u64, value: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default().index(index).op(Operator::ScmpCmpMaskedEq).value(value).value_two(mask).build()
}

/// The profile of a container with these capabilities.
pub(super) fn runtime_default(capabilities: Set) -> Result<LinuxSeccomp, OciSpecError> {
    let allow = allowed(capabilities);
    let deny: Vec<&str> = FORBIDDEN
        .split_whitespace()
        .chain(FORBIDDEN_NATIVE.split_whitespace())
        .filter(|name| allow.binary_search(name).is_err())
        .collect();
    let mut rules = vec![rule(&allow, Action::ScmpActAllow, None, None)?];
    if !deny.is_empty() {
        rules.push(rule(&deny, Action::ScmpActErrno, Some(EPERM), None)?);
    }
    for persona in PERSONALITIES {
        rules.push(rule(&["personality"], Action::ScmpActAllow, None, Some(first(Operator::ScmpCmpEq, persona)?))?);
    }
    rules.push(rule(&["socket"], Action::ScmpActAllow, None, Some(first(Operator::ScmpCmpNe, AF_VSOCK)?))?);
    let vsock = first(Operator::ScmpCmpEq, AF_VSOCK)?;
    rules.push(rule(&["socket"], Action::ScmpActErrno, Some(EPERM), Some(vsock))?);
    if !capabilities.has("SYS_ADMIN") {
        let mask = NAMESPACE_FLAGS.iter().fold(0, |mask, flag| mask | flag);
        let none = masked_equal(0, mask, 0)?;
        rules.push(rule(&["clone"], Action::ScmpActAllow, None, Some(none))?);
        for flag in NAMESPACE_FLAGS {
            let set = masked_equal(0, flag, flag)?;
            rules.push(rule(&["clone"], Action::ScmpActErrno, Some(EPERM), Some(set))?);
        }
    }
    let mut builder =
        LinuxSeccompBuilder::default().default_action(Action::ScmpActErrno).default_errno_ret(ENOSYS).syscalls(rules);
    if let Some(native) = NATIVE {
        builder = builder.architectures(vec![native]);
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::super::capabilities::resolve;
    use super::*;

    fn names(action: Action, privileged: bool) -> Vec<String> {
        let set = resolve(None, privileged, u64::MAX, true).expect("capabilities");
        let profile = runtime_default(set).expect("profile");
        let rules = profile.syscalls().clone().expect("rules");
        rules.iter().filter(|r| r.action() == action && r.args().is_none()).flat_map(|r| r.names().clone()).collect()
    }

    #[test]
    fn an_ordinary_container() {
        let (allow, deny) = (names(Action::ScmpActAllow, false), names(Action::ScmpActErrno, false));
        let has = |list: &[String], name: &str| list.iter().any(|n| n == name);
        for name in ["read", "execve", "futex", "chroot", "openat2", "ptrace", "rseq"] {
            assert!(has(&allow, name), "{name} must be allowed");
        }
        for name in ["mount", "bpf", "setns", "unshare", "io_uring_setup", "kexec_load", "keyctl", "userfaultfd"] {
            assert!(has(&deny, name) && !has(&allow, name), "{name} must be forbidden");
        }
        // Not known to the filter: glibc then falls back to clone, whose flags can be looked at.
        assert!(!has(&allow, "clone3") && !has(&deny, "clone3"));
    }

    #[test]
    fn no_namespace_is_made_by_clone() {
        let set = resolve(None, false, u64::MAX, true).expect("capabilities");
        let rules = runtime_default(set).expect("profile").syscalls().clone().expect("rules");
        // As libcontainer reads a condition: of the argument, `value` is left behind the mask `valueTwo`.
        let fits = |rule: &LinuxSyscall, flags: u64| {
            let args = rule.args().as_ref().expect("a condition");
            args.iter().all(|a| flags & a.value_two().expect("a mask") == a.value())
        };
        let verdicts = |flags: u64| -> Vec<Action> {
            rules.iter().filter(|r| r.names() == &["clone"] && fits(r, flags)).map(|r| r.action()).collect()
        };
        const THREAD: u64 = 0x003d_0f00;
        assert_eq!(verdicts(17), [Action::ScmpActAllow], "fork");
        assert_eq!(verdicts(THREAD), [Action::ScmpActAllow]);
        for flag in NAMESPACE_FLAGS {
            assert_eq!(verdicts(flag | 17), [Action::ScmpActErrno], "{flag:#x}");
        }
    }

    #[test]
    fn capabilities_open_doors() {
        let allow = names(Action::ScmpActAllow, true);
        for name in ["mount", "bpf", "clone", "clone3", "reboot", "syslog"] {
            assert!(allow.iter().any(|n| n == name), "{name} must be allowed");
        }
    }

    #[test]
    fn every_call_is_in_one_list_only() {
        let mut all: Vec<&str> =
            [ALLOWED, ALLOWED_NATIVE, FORBIDDEN, FORBIDDEN_NATIVE].iter().flat_map(|l| l.split_whitespace()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(count, all.len());
        for (_, calls) in WITH_CAPABILITY {
            for call in calls.split_whitespace().filter(|c| !matches!(*c, "ioperm" | "iopl")) {
                assert!(FORBIDDEN.split_whitespace().any(|f| f == call), "{call} would be allowed to nobody else");
            }
        }
    }
}
