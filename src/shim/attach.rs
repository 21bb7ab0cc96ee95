//! Attaching to a running container: the agent's side.

use super::client::{self, Client};
use super::exec::Target;
use super::protocol::{Reply, Request};
use super::socket;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long a shim may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a container cannot be attached to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its shim does not answer.
    #[error("cannot ask the container's shim")]
    Shim(#[from] client::Error),
    /// Its shim refuses.
    #[error("{0}")]
    Refused(String),
    /// The pod's shim is of a version that does not know how.
    #[error("the pod was started by an older version, which cannot attach: restart it")]
    TooOld,
    /// What came is not what was promised.
    #[error("the shim's answer lacks a descriptor")]
    Descriptors,
}

/// A container's streams, as of now. Dropping it is detaching.
#[derive(Debug)]
pub struct Attached {
    /// What the container writes to its standard output, or to its terminal, from now on. A copy: the log has all of it. Its
    /// end is the stream's, or that it was not read for too long.
    pub stdout: Option<OwnedFd>,
    /// The same of standard error; `None` with a terminal.
    pub stderr: Option<OwnedFd>,
    /// The write end of its standard input; `None` when it has none, or a terminal, or no input is wanted.
    pub stdin: Option<OwnedFd>,
    /// The terminal: to be written to and sized, never to be read.
    pub terminal: Option<OwnedFd>,
    /// Whether input is wanted, and the container takes any.
    pub with_input: bool,
    /// Whether the end of the input is to be told with [`Attached::end_input`] (`stdinOnce`).
    pub ends_input: bool,
    connection: OwnedFd,
}

impl Attached {
    /// The container sees the end of its input, now and for ever.
    pub fn end_input(&self) {
        if let Ok(packet) = serde_json::to_vec(&Request::EndInput) {
            // A shim that is gone has closed it.
            let _ = socket::send(&self.connection, &packet, &[]);
        }
    }
}

/// Attaches to a running container. Blocks until its shim has answered.
///
/// # Errors
/// When there is no such container, or it does not run.
pub fn open(target: &Target, with_input: bool) -> Result<Attached, Error> {
    let run_dir = target.state_root.parent().unwrap_or(&target.state_root);
    let shim = Client::connect(run_dir)?;
    let request = Request::Attach { id: target.id.clone(), stdin: with_input };
    let (reply, fds, connection) = shim.ask_for_descriptors(&request, ANSWER)?;
    let (terminal, takes_input, stdin_once) = match reply {
        Reply::Attached { terminal, stdin, stdin_once } => (terminal, stdin, stdin_once),
        // As shims say that do not know the request.
        Reply::Error { message } if message.starts_with("not a request") => return Err(Error::TooOld),
        Reply::Error { message } => return Err(Error::Refused(message)),
        _ => return Err(Error::Descriptors),
    };
    let mut fds = fds.into_iter();
    let stdout = Some(fds.next().ok_or(Error::Descriptors)?);
    let second = fds.next();
    let with_input = with_input && takes_input;
    let (stderr, terminal) = match terminal {
        true => (None, Some(second.ok_or(Error::Descriptors)?)),
        false => (Some(second.ok_or(Error::Descriptors)?), None),
    };
    let stdin = match (with_input, &terminal) {
        (true, None) => Some(fds.next().ok_or(Error::Descriptors)?),
        _ => None,
    };
    let ends_input = with_input && stdin_once && terminal.is_none();
    Ok(Attached { stdout, stderr, stdin, terminal, with_input, ends_input, connection })
}

impl AsFd for Attached {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
