//! Starting this program again in another role, from a threaded process.

use crate::sys::{clock, process};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

const SELF: &str = "/proc/self/exe";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program that was started first, and the descriptor through which containers cannot overwrite it (see
/// [`process::sealed_program`]). Kept open: to close it would wait for an RCU grace period.
static SEALED: OnceLock<(PathBuf, Option<OwnedFd>)> = OnceLock::new();

/// Children that nobody waits for any more, until they have ended.
static FORGOTTEN: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// A child whose zombie is removed some time after it ended, also when this is dropped before.
#[derive(Debug)]
pub(super) struct Offspring(Option<Child>);

impl Offspring {
    pub(super) fn pid(&self) -> i32 {
        self.0.as_ref().map_or(0, |child| child.id() as i32)
    }
}

impl Drop for Offspring {
    fn drop(&mut self) {
        let mut forgotten = FORGOTTEN.lock().unwrap_or_else(PoisonError::into_inner);
        forgotten.extend(self.0.take());
        forgotten.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

/// Starts `<program> <role> <args…>` with `stdin` as its standard input. What it needs else comes over that
/// descriptor: inheriting others would race with other threads that start processes.
pub(super) fn start(
    program: Option<&Path>,
    role: &str,
    args: &[OsString],
    stdin: OwnedFd,
    stderr: Stdio,
) -> io::Result<Offspring> {
    let program = program.unwrap_or(Path::new(SELF));
    let (sealed, descriptor) = SEALED.get_or_init(|| (program.to_owned(), process::sealed_program(program).ok()));
    let path = match descriptor {
        Some(fd) if sealed == program => PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
        _ => program.to_owned(),
    };
    let mut command = Command::new(path);
    command.arg0("coracle").arg(role).args(args).stdin(stdin).stdout(Stdio::null()).stderr(stderr).env_clear();
    // Without HOME a static glibc looks for users with libraries out of the container.
    command.env("HOME", std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()));
    if let Some(backtrace) = std::env::var_os("RUST_BACKTRACE") {
        command.env("RUST_BACKTRACE", backtrace);
    }
    if let Some(file) = std::env::var_os(clock::TEST_CLOCK) {
        command.env(clock::TEST_CLOCK, file);
    }
    FORGOTTEN.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    command.spawn().map(|child| Offspring(Some(child)))
}
