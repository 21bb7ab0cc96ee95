//! Exec into a running container: the caller's side.
//!
//! A fresh process (the role `exec-helper`) joins the container, as libcontainer must not be called in a threaded
//! one. It ends, and kills what it started, when the [`Child`] is dropped or its owner dies.

use super::role::{self, Offspring};
use super::socket;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

pub use super::exec_process::helper_main;

/// How long a terminal may take to come.
const TERMINAL: Duration = Duration::from_secs(30);

/// Where to exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// libcontainer's root: `<run>/pods/<uid>/state`.
    pub state_root: PathBuf,
    /// Container ID.
    pub id: String,
    /// The container's bundle, with its `config.json`.
    pub bundle: PathBuf,
}

/// What to execute.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Options {
    /// Command and arguments.
    pub argv: Vec<String>,
    /// `NAME=value` entries on top of the container's environment.
    #[serde(default)]
    pub env_add: Vec<String>,
    /// Give it a terminal; its output is then one stream.
    #[serde(default)]
    pub tty: bool,
    /// Connect its standard input; else it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// The command is this program, not one of the container's: `argv` is its role and what follows.
    #[serde(default)]
    pub own: bool,
    /// Rows and columns of the terminal.
    #[serde(default)]
    pub size: Option<(u16, u16)>,
}

/// Why nothing could be executed. That the *command* cannot run is a [`Status`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No command given.
    #[error("no command to execute")]
    NoCommand,
    /// A system call failed.
    #[error("cannot {what}")]
    Io { what: &'static str, source: io::Error },
    /// The command was not started, and why.
    #[error("{message}")]
    Refused {
        message: String,
        /// 127 not found, 126 not executable; `None` for other causes.
        exit_code: Option<i32>,
    },
    /// The helper ended without a word.
    #[error("the exec helper died")]
    Died,
}

/// The one line that [`Child::status`] delivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Exit code; 128 + signal when a signal ended it; 127/126 when the command is not found or not executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it was not started; `None` when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A command that runs in a container. Dropping it kills the command's process group.
#[derive(Debug)]
pub struct Child {
    /// Write end; `None` without [`Options::stdin`] or with a terminal.
    pub stdin: Option<OwnedFd>,
    /// Read end of a pipe; `None` with a terminal.
    pub stdout: Option<OwnedFd>,
    /// Read end of a pipe; `None` with a terminal.
    pub stderr: Option<OwnedFd>,
    /// Master of the terminal.
    pub pty: Option<OwnedFd>,
    /// Read end of a pipe that delivers one line of JSON ([`Status`]) when the command ended. End-of-file without
    /// it: the helper was killed, and the command with it.
    pub status: OwnedFd,
    /// To be kept as long as the command may run, also by whoever takes the descriptors out.
    pub guard: Guard,
}

/// Dropping it kills the command's process group.
#[derive(Debug)]
pub struct Guard {
    /// Its end-of-file tells the helper to kill the command.
    _control: OwnedFd,
    _helper: Offspring,
}

/// First packet to the helper; with it come the write end of the status pipe and, without a terminal, standard
/// output and error, and standard input if wanted.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) target: Target,
    pub(super) options: Options,
}

/// Answer of the helper when a terminal was asked for and is there: the descriptor comes with it.
pub(super) const TERMINAL_READY: &[u8] = b"terminal";

/// Executes a command in a container.
///
/// # Errors
/// Without a command, or when processes and pipes cannot be made. With a terminal it waits for the command to be
/// started, and returns [`Error::Refused`] when it is not; without, that is told by [`Child::status`].
pub fn spawn(target: &Target, options: &Options) -> Result<Child, Error> {
    spawn_from(None, target, options)
}

/// As [`spawn`], with another program in the helper's role.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_from(program: Option<&std::path::Path>, target: &Target, options: &Options) -> Result<Child, Error> {
    let cannot = |what| move |e: rustix::io::Errno| Error::Io { what, source: e.into() };
    if options.argv.first().is_none_or(String::is_empty) {
        return Err(Error::NoCommand);
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(cannot("make a pipe"));
    let (control, helper_control) = socket::pair().map_err(|source| Error::Io { what: "make a socket", source })?;
    let (status, status_end) = pipe()?;
    let mut theirs = vec![status_end];
    let (mut stdin, mut stdout, mut stderr) = (None, None, None);
    if !options.tty {
        for kept in [&mut stdout, &mut stderr] {
            let (read, write) = pipe()?;
            *kept = Some(read);
            theirs.push(write);
        }
        if options.stdin {
            let (read, write) = pipe()?;
            stdin = Some(write);
            theirs.push(read);
        }
    }
    let order = Order { target: target.clone(), options: options.clone() };
    let order = serde_json::to_vec(&order)
        .map_err(|e| Error::Io { what: "encode the command", source: io::Error::other(e) })?;
    let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    socket::send(&control, &order, &fds).map_err(|source| Error::Io { what: "send the command", source })?;
    drop(theirs);
    let helper = role::start(program, "exec-helper", &[], helper_control, Stdio::null())
        .map_err(|source| Error::Io { what: "start the exec helper", source })?;
    let mut child =
        Child { stdin, stdout, stderr, pty: None, status, guard: Guard { _control: control, _helper: helper } };
    if options.tty {
        let master = child.terminal()?;
        if let Some((rows, columns)) = options.size {
            resize(&master, rows, columns).map_err(|source| Error::Io { what: "size the terminal", source })?;
        }
        child.pty = Some(master);
    }
    Ok(child)
}

impl Child {
    fn terminal(&self) -> Result<OwnedFd, Error> {
        let cannot = |source| Error::Io { what: "get the terminal", source };
        socket::set_timeout(&self.guard._control, TERMINAL).map_err(cannot)?;
        let (packet, mut fds) = socket::receive(&self.guard._control, 64).map_err(cannot)?;
        match fds.pop() {
            Some(master) if packet == TERMINAL_READY => Ok(master),
            // The helper has ended: why is in its status.
            _ => match self.wait()? {
                Status { error: Some(message), exit_code } => Err(Error::Refused { message, exit_code }),
                _ => Err(Error::Died),
            },
        }
    }

    /// Waits for the command to end.
    ///
    /// # Errors
    /// [`Error::Died`] when the helper was killed.
    pub fn wait(&self) -> Result<Status, Error> {
        let cannot = |source| Error::Io { what: "read the status", source };
        let mut line = Vec::new();
        BufReader::new(File::from(self.status.try_clone().map_err(cannot)?))
            .read_until(b'\n', &mut line)
            .map_err(cannot)?;
        serde_json::from_slice(&line).map_err(|_| Error::Died)
    }
}

/// Sets the size of a terminal, which tells its foreground processes with SIGWINCH.
///
/// # Errors
/// When `pty` is not a terminal.
pub fn resize(pty: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    Ok(tcsetwinsize(pty, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}
