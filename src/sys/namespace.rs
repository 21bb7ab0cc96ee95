//! A pod's network, IPC and UTS namespaces, kept alive by bind mounts instead of a process.
//!
//! Namespaces are made by a thread that lives for that only: `unshare` changes the calling thread alone, and the
//! namespaces outlive it once `/proc/…/ns/<kind>` is bind-mounted to a file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

use super::netlink;

/// The loopback device is the first link of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Which namespaces a pod gets for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
}

/// A kind's file name under `<dir>` and in `/proc/<pid>/ns`, and its flag.
const KINDS: [(&str, CloneFlags); 3] =
    [("net", CloneFlags::CLONE_NEWNET), ("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)];

impl Kinds {
    fn flags(self) -> CloneFlags {
        let mut flags = CloneFlags::empty();
        flags.set(CloneFlags::CLONE_NEWNET, self.net);
        flags.set(CloneFlags::CLONE_NEWIPC, self.ipc);
        flags.set(CloneFlags::CLONE_NEWUTS, self.uts);
        flags
    }
}

/// Makes the namespaces asked for and binds them to `<dir>/{net,ipc,uts}` (0600 in a 0700 directory), brings up
/// `lo`, sets the hostname (with its own UTS namespace only) and writes sysctls in `sysctl(8)` notation.
///
/// Idempotent: a namespace that is already bound is kept, entered, and set up again.
///
/// # Errors
///
/// `InvalidInput` for a sysctl that does not belong to one of the namespaces asked for: it would change the whole
/// machine. Otherwise the failed step's error, naming the step; what was made so far stays for [`delete`].
pub fn create(dir: &Path, kinds: Kinds, hostname: Option<&str>, sysctls: &[(String, String)]) -> io::Result<()> {
    let sysctls = sysctl_files(sysctls, kinds)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| context(e, "creating", dir))?;
    let wanted = || KINDS.into_iter().filter(|(_, flag)| kinds.flags().contains(*flag));
    let mut missing = CloneFlags::empty();
    let mut bound = Vec::new();
    for (name, flag) in wanted() {
        let path = dir.join(name);
        match is_bound(&path)? {
            true => bound.push((File::open(&path).map_err(|e| context(e, "opening", &path))?, flag)),
            false => missing |= flag,
        }
    }
    in_thread("namespaces", || {
        for (file, flag) in bound {
            nix::sched::setns(file, flag).map_err(|e| context(e.into(), "entering", dir))?;
        }
        if !missing.is_empty() {
            nix::sched::unshare(missing)
                .map_err(|e| context(e.into(), &format!("unsharing namespaces ({missing:?}) for"), dir))?;
        }
        if kinds.net {
            loopback_up().map_err(|e| io::Error::other(Sourced("bringing up lo".into(), Box::new(e))))?;
        }
        if let (true, Some(hostname)) = (kinds.uts, hostname) {
            nix::unistd::sethostname(hostname)
                .map_err(|e| io::Error::other(Sourced(format!("setting the hostname {hostname}"), Box::new(e))))?;
        }
        for (path, value) in sysctls {
            fs::write(&path, value).map_err(|e| context(e, &format!("writing {value:?} to"), &path))?;
        }
        // Bound last: a namespace under its name is one that was set up completely.
        for (name, _) in wanted().filter(|(_, flag)| missing.contains(*flag)) {
            bind(&format!("/proc/thread-self/ns/{name}"), &dir.join(name))?;
        }
        Ok(())
    })?
}

/// Binds the namespace `source` (a file of `/proc`) to the file `target` (0600), made when missing: it then lives without a
/// process.
///
/// # Errors
/// As the system calls, with the path.
pub fn bind(source: &str, target: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(target)
        .map_err(|e| context(e, "creating", target))?;
    nix::mount::mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|e| context(e.into(), "binding a namespace to", target))
}

/// Makes the namespaces asked for as [`create`], but as those of a new user namespace, which is bound to `<dir>/user`: its
/// IDs 0 to 65535 are `first` and up on the machine. What was bound in `dir` is unbound first: nothing may run there.
///
/// # Errors
/// As [`create`] and [`super::idmap::create`].
pub fn create_owned(
    dir: &Path,
    kinds: Kinds,
    first: u32,
    hostname: Option<&str>,
    sysctls: &[(String, String)],
) -> io::Result<()> {
    delete(dir)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| context(e, "creating", dir))?;
    let wanted: Vec<_> = KINDS.into_iter().filter(|(_, flag)| kinds.flags().contains(*flag)).collect();
    super::idmap::create(dir, &wanted, first, &sysctl_files(sysctls, kinds)?)?;
    create(dir, kinds, hostname, &[])
}

/// Unbinds and removes `<dir>/{net,ipc,uts,pid,user}` and `<dir>`. Idempotent, and good for leftovers of any kind: stacked
/// mounts, files that never became mounts, a missing directory.
pub fn delete(dir: &Path) -> io::Result<()> {
    // A PID namespace is bound by the shim, where only the shim sees it: here it is a mere file.
    for name in KINDS.map(|(name, _)| name).into_iter().chain(["pid", super::idmap::FILE]) {
        let path = dir.join(name);
        loop {
            match nix::mount::umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                // EINVAL: not a mount point (any more).
                Err(nix::Error::EINVAL | nix::Error::ENOENT | nix::Error::ENOTDIR) => break,
                Err(e) => return Err(context(e.into(), "unmounting", &path)),
            }
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound && e.kind() != io::ErrorKind::NotADirectory => {
                return Err(context(e, "removing", &path));
            }
            _ => {}
        }
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(context(e, "removing", dir)),
        _ => Ok(()),
    }
}

/// Runs `f` in a thread that has entered the network namespace bound at `path`.
///
/// # Errors
///
/// The namespace cannot be opened or entered; `f` has then not run.
pub fn with_netns<T: Send>(path: &Path, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(path).map_err(|e| context(e, "opening the network namespace", path))?;
    in_thread("netns", || {
        nix::sched::setns(file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| context(e.into(), "entering the network namespace", path))?;
        Ok(f())
    })?
}

/// Runs `f` in each of the network namespaces bound at `paths`, one after the other, in one thread; an error stands for one
/// that cannot be entered.
///
/// # Errors
///
/// There is no thread to be had.
pub fn in_each_netns<T: Send>(
    paths: &[PathBuf],
    f: impl Fn(&Path) -> io::Result<T> + Sync,
) -> io::Result<Vec<io::Result<T>>> {
    let one = |path: &PathBuf| {
        let file = File::open(path).map_err(|e| context(e, "opening the network namespace", path))?;
        nix::sched::setns(file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| context(e.into(), "entering the network namespace", path))?;
        f(path)
    };
    in_thread("netns", || paths.iter().map(one).collect())
}

/// Whether `path` is a live namespace bind mount.
pub fn is_bound(path: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(path) {
        Ok(found) => Ok(found.f_type as u64 == NSFS_MAGIC),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
        Err(e) => Err(context(e.into(), "looking at", path)),
    }
}

/// Runs `f` in a fresh thread, whose namespaces may be changed without anybody noticing.
fn in_thread<T: Send>(name: &str, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, f)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn loopback_up() -> Result<(), netlink::Error> {
    let mut message = LinkMessage::default();
    message.header.index = LOOPBACK_INDEX;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink::Socket::open(netlink::Protocol::Route)?.execute(RouteNetlinkMessage::SetLink(message), 0, "setting lo up")
}

fn sysctl_files(sysctls: &[(String, String)], kinds: Kinds) -> io::Result<Vec<(PathBuf, &str)>> {
    sysctls.iter().map(|(name, value)| Ok((sysctl_path(name, kinds)?, value.as_str()))).collect()
}

/// The file of a sysctl, named as `sysctl(8)` does: whichever of `.` and `/` comes first separates, and stands for
/// the other one elsewhere.
///
/// Only what the pod's own namespaces hold may be written, as kubelet's namespaced groups: `net.*`, `kernel.shm*`,
/// `kernel.msg*`, `kernel.sem`, `fs.mqueue.*`.
fn sysctl_path(name: &str, kinds: Kinds) -> io::Result<PathBuf> {
    let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("sysctl {name:?}: {why}"));
    let slashed: String = match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('.') => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    };
    let sound = |part: &str| {
        !matches!(part, "" | "." | "..") && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.@:".contains(&b))
    };
    if !slashed.split('/').all(sound) {
        return Err(refused("not a sysctl name"));
    }
    let of_net = slashed.starts_with("net/");
    let of_ipc = ["kernel/shm", "kernel/msg", "fs/mqueue/"].iter().any(|group| slashed.starts_with(group))
        || slashed == "kernel/sem";
    if !of_net && !of_ipc {
        return Err(refused("not namespaced: it would change the whole machine"));
    }
    if of_net && !kinds.net {
        return Err(refused("needs a pod network, and the pod uses the host's"));
    }
    if of_ipc && !kinds.ipc {
        return Err(refused("needs a pod IPC namespace, and the pod uses the host's"));
    }
    Ok(Path::new("/proc/sys").join(slashed))
}

fn context(source: io::Error, doing: &str, path: &Path) -> io::Error {
    let kind = source.kind();
    io::Error::new(kind, Sourced(format!("{doing} {}", path.display()), Box::new(source)))
}

/// What was being done when `1` happened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Sourced(String, #[source] Box<dyn std::error::Error + Send + Sync>);

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Kinds = Kinds { net: true, ipc: true, uts: true };

    #[test]
    fn sysctl_names_in_both_notations() {
        let path = |name: &str| sysctl_path(name, ALL).unwrap().to_str().unwrap().to_owned();
        assert_eq!(path("net.ipv4.ip_unprivileged_port_start"), "/proc/sys/net/ipv4/ip_unprivileged_port_start");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding"), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding"), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("kernel.shm_rmid_forced"), "/proc/sys/kernel/shm_rmid_forced");
        assert_eq!(path("fs.mqueue.msg_max"), "/proc/sys/fs/mqueue/msg_max");
    }

    #[test]
    fn sysctls_of_the_machine_are_refused() {
        for name in ["kernel.panic", "vm.swappiness", "net", "", "net/../kernel/panic", "net.ipv4..x", "kernel.semx"] {
            let error = sysctl_path(name, ALL).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        let host = Kinds { net: false, ipc: false, uts: true };
        assert!(sysctl_path("net.core.somaxconn", host).is_err());
        assert!(sysctl_path("kernel.sem", host).is_err());
    }
}
