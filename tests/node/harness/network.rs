//! Namespaces: machines of their own, as far as links, addresses and ports go, and as far as mounts do.

use super::{Out, output, secs};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

/// A network namespace with its loopback up. It ends with this, or with the last process in it.
pub struct Network {
    file: fs::File,
}

impl Network {
    pub fn new() -> Network {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            fs::File::open("/proc/thread-self/ns/net").expect("the namespace")
        });
        let network = Network { file: made.join().expect("a network namespace") };
        network.ip("link set lo up");
        network
    }

    /// Does something in it: commands that are started there stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        // A thread of its own: that of a test may be that of all tests.
        let enter = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
            work()
        };
        match std::thread::scope(|scope| scope.spawn(enter).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs lines of `ip`, which must work.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        self.tool("ip", &["-batch", "-"], lines).ok();
    }

    /// Runs a tool of Debian's in it.
    #[track_caller]
    pub fn tool(&self, program: &str, args: &[&str], stdin: &str) -> Out {
        self.inside(|| output(Command::new(program).args(args), stdin.as_bytes(), secs(30)))
    }

    /// What other processes may call it while this lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

/// Runs `test` on a machine whose mounts spread, as systemd has it.
pub fn where_mounts_spread(test: fn()) {
    // The mount namespace of a thread is its own affair, and that of what it starts.
    let thread = std::thread::spawn(move || {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).expect("shared mounts");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
