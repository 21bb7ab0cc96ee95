//! The cgroup of a container: all its processes, whatever namespaces and sessions they hide in.

use crate::sys::process;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Mount points of all cgroup hierarchies: one on pure cgroup v2, one per controller on v1.
fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let mount_point = line.split(' ').nth(4);
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        if let (Some(path), Some("cgroup" | "cgroup2")) = (mount_point, kind)
            && !found.iter().any(|known| known == Path::new(path))
        {
            found.push(path.into());
        }
    }
    Ok(found)
}

/// Checks that `path` names a cgroup below the root: the root's processes are the whole machine.
fn relative(path: &str) -> io::Result<&Path> {
    let relative = Path::new(path.trim_start_matches('/'));
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if path.starts_with('/') && plain && relative.components().next().is_some() {
        return Ok(relative);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is not the path of a cgroup below the root")))
}

/// The folders of cgroup `path` that exist, one per hierarchy.
pub(super) fn folders(path: &str) -> io::Result<Vec<PathBuf>> {
    let relative = relative(path)?;
    Ok(hierarchies()?.into_iter().map(|root| root.join(relative)).filter(|dir| dir.is_dir()).collect())
}

/// `dir` and all cgroups below it, deepest first.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(tree(&entry.path()));
        }
    }
    all.push(dir.to_owned());
    all
}

/// Sends SIGKILL to every process in the cgroup and those below. Returns how many were seen in it.
pub(super) fn kill(path: &str) -> io::Result<usize> {
    let own = std::process::id() as i32;
    let mut seen = 0;
    for dir in folders(path)? {
        // v2: at once, also those that fork meanwhile.
        let _ = fs::write(dir.join("cgroup.kill"), "1");
        for dir in tree(&dir) {
            for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                // 0 is a process of another PID namespace that we have no name for.
                if let Ok(pid) = pid.parse::<i32>()
                    && pid > 1
                    && pid != own
                {
                    seen += 1;
                    let _ = process::kill(pid, libc::SIGKILL);
                }
            }
        }
    }
    Ok(seen)
}

/// Kills what runs in the cgroup and removes it and those below, in every hierarchy. No error when there is none.
///
/// # Errors
/// `TimedOut` when something in it did not die (uninterruptible I/O).
pub(super) fn clear(path: &str, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_micros(200);
    loop {
        let mut busy = false;
        for dir in folders(path)? {
            for dir in tree(&dir) {
                match fs::remove_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => busy = true,
                    _ => {}
                }
            }
        }
        if !busy {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("cgroup {path} still has processes")));
        }
        kill(path)?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether the kernel's OOM killer ended a process in the cgroup.
pub(super) fn oom_killed(path: &str) -> bool {
    let count = |text: &str| {
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    folders(path).unwrap_or_default().iter().any(|dir| {
        ["memory.oom_control", "memory.events"]
            .iter()
            .any(|file| fs::read_to_string(dir.join(file)).is_ok_and(|text| count(&text) > 0))
    })
}

/// Moves this process into cgroup `path`, which is made: on v1 in the hierarchies that account what a shim uses.
pub(super) fn join(path: &str) -> io::Result<()> {
    let relative = relative(path)?;
    for root in hierarchies()? {
        let unified = root.join("cgroup.controllers").exists() && root == Path::new("/sys/fs/cgroup");
        let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if unified || name.split(',').any(|controller| matches!(controller, "memory" | "pids" | "cpu")) {
            let dir = root.join(relative);
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("cgroup.procs"), std::process::id().to_string())?;
        }
    }
    Ok(())
}

/// Begins, in a thread of its own, the RCU grace period (5 to 20 ms) that the first move of a process between cgroups
/// has to wait for; those within about 10 ms after it do not wait again. Moving this process to where it is already
/// is enough. To be called when a container is likely to start soon: the wait then overlaps with its preparation.
pub fn prewarm() {
    static RUNNING: AtomicBool = AtomicBool::new(false);
    if RUNNING.swap(true, Ordering::Relaxed) {
        return;
    }
    let write = || {
        if let Some(path) = own_processes() {
            let _ = fs::write(path, std::process::id().to_string());
        }
        RUNNING.store(false, Ordering::Relaxed);
    };
    // Only speed is lost without the thread.
    if std::thread::Builder::new().stack_size(32 * 1024).spawn(write).is_err() {
        RUNNING.store(false, Ordering::Relaxed);
    }
}

/// `cgroup.procs` of a cgroup that this process is in.
fn own_processes() -> Option<PathBuf> {
    fs::read_to_string("/proc/self/cgroup").ok()?.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let root = Path::new("/sys/fs/cgroup").join(controllers.trim_start_matches("name="));
        let file = root.join(path.trim_start_matches('/')).join("cgroup.procs");
        let own = std::process::id().to_string();
        let here = fs::read_to_string(&file).is_ok_and(|pids| pids.lines().any(|pid| pid == own));
        here.then_some(file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_and_escapes_are_refused() {
        for path in ["/", "", "a", "//", "/..", "/a/../..", "/./"] {
            assert!(kill(path).is_err(), "{path:?}");
            assert!(clear(path, Duration::ZERO).is_err(), "{path:?}");
            assert!(join(path).is_err(), "{path:?}");
        }
        assert_eq!(relative("/a/b").unwrap(), Path::new("a/b"));
    }

    #[test]
    fn the_own_cgroup_is_found() {
        let path = own_processes().expect("this process is in a cgroup");
        assert!(path.ends_with("cgroup.procs"));
    }

    #[test]
    fn absent_cgroups_are_clear() {
        clear("/coracle-test-absent/x", Duration::ZERO).unwrap();
        assert!(!oom_killed("/coracle-test-absent/x"));
    }
}
