//! The PID namespace that a pod's containers share, and the process that keeps it.

use super::cgroup;
use crate::sys::idmap;
use crate::sys::namespace;
use crate::sys::pause::{self, Paused, Setup};
use crate::sys::process;
use nix::sched::CloneFlags;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long [`Pause::end`] waits for the namespace's processes to be gone.
const END: Duration = Duration::from_secs(5);

/// A pod's shared PID namespace. When its process ends, the kernel ends all others in it.
pub(super) struct Pause {
    process: Paused,
    cgroup: String,
}

impl Pause {
    /// Makes the namespace, in the pod's other namespaces (`<run_dir>/ns`, its user namespace as the owner) and the cgroup `cgroup`, and binds it to
    /// `<run_dir>/ns/pid` in this process' mount namespace, which is where containers are made.
    ///
    /// # Errors
    /// When it cannot be made; then nothing of it is left but the cgroup.
    pub(super) fn start(run_dir: &Path, cgroup: &str) -> io::Result<Pause> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot make the pod's PID namespace: {e}"));
        let namespaces = run_dir.join("ns");
        let joined = [
            (namespaces.join("net"), CloneFlags::CLONE_NEWNET),
            (namespaces.join("ipc"), CloneFlags::CLONE_NEWIPC),
            (namespaces.join("uts"), CloneFlags::CLONE_NEWUTS),
        ];
        let users = Some(namespaces.join(idmap::FILE)).filter(|path| path.exists());
        let setup = Setup { namespaces: &joined, users, folder: run_dir };
        let process = pause::start(&setup, || cgroup::join(cgroup)).map_err(named)?;
        let started = Pause { process, cgroup: cgroup.to_owned() };
        match namespace::bind(&format!("/proc/{}/ns/pid", started.pid()), &namespaces.join("pid")) {
            Ok(()) => Ok(started),
            Err(e) => {
                started.end();
                Err(named(e))
            }
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Ends the namespace with all that is left in it, and removes the cgroup.
    pub(super) fn end(self) {
        let pid = self.process.pid();
        let _ = process::kill(pid, libc::SIGKILL);
        let deadline = Instant::now() + END;
        // Its end waits for all others in the namespace, and one of those may hang in a system call.
        while !matches!(process::reap_if_ended(pid), Ok(true) | Err(_)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = cgroup::clear(&self.cgroup, Duration::from_secs(1));
    }
}
