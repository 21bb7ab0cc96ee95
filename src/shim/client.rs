//! The agent's side of a shim.

use super::protocol::{MAX_PACKET, Reply, Request};
use super::role::{self, Offspring};
use super::{IDENTITY, Identity, SOCKET, STATE, cgroup, socket};
use crate::sys::process;
use rustix::fs::OFlags;
use rustix::net::SocketType;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// Why a shim could not be started or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such process any more.
    #[error("the shim is gone")]
    Gone,
    /// It runs, but does not answer in time.
    #[error("the shim did not answer within {0:?}")]
    Timeout(Duration),
    /// What it sent is not an answer.
    #[error("the shim's answer is not understood")]
    Answer(#[source] serde_json::Error),
    /// A system call failed.
    #[error("cannot {what}")]
    Io { what: &'static str, source: io::Error },
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { what, source }
}

/// How to start a shim.
#[derive(Debug, Clone, Default)]
pub struct SpawnOptions {
    /// The program; by default the one that runs now.
    pub exe: Option<PathBuf>,
    /// `<run-dir>/pods/<uid>`; made (0700) when missing. Must be absolute.
    pub run_dir: PathBuf,
    /// The pod's UID: for people who look at the process list.
    pub uid: String,
    /// Where its standard error is appended; by default nowhere.
    pub log: Option<PathBuf>,
    /// Absolute path of the cgroup that it moves itself to once a container runs; by default it stays in the agent's.
    pub cgroup: Option<String>,
    /// Absolute path of a cgroup: the containers share a PID namespace (`<run_dir>/ns/pid`), whose first process is
    /// there; by default each has its own.
    pub pause: Option<String>,
}

/// A running shim. Requests may be made from several threads at once.
#[derive(Debug)]
pub struct Client {
    run_dir: PathBuf,
    pid: i32,
    start: u64,
    /// Present when this process started it: removes the zombie.
    _process: Option<Offspring>,
}

impl Client {
    /// Starts a shim. Does not wait for it: its socket takes requests at once, which it answers when it is up.
    ///
    /// # Errors
    /// [`Error::Io`] when the socket or the process cannot be made. A shim that fails later answers [`Error::Gone`].
    pub fn spawn(options: SpawnOptions) -> Result<Client, Error> {
        cgroup::prewarm();
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&options.run_dir).map_err(cannot("make the shim's folder"))?;
        let listener = socket::listen_at(&options.run_dir, SOCKET, SocketType::SEQPACKET)
            .map_err(cannot("make the shim's socket"))?;
        let mut args: Vec<OsString> =
            vec!["--run-dir".into(), options.run_dir.clone().into(), "--uid".into(), options.uid.into()];
        if let Some(cgroup) = options.cgroup {
            args.extend(["--cgroup".into(), cgroup.into()]);
        }
        if let Some(pause) = options.pause {
            args.extend(["--pause".into(), pause.into()]);
        }
        let stderr = match &options.log {
            Some(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .map_err(cannot("open the shim's log"))?
                .into(),
            None => Stdio::null(),
        };
        let process =
            role::start(options.exe.as_deref(), "shim", &args, listener, stderr).map_err(cannot("start the shim"))?;
        let pid = process.pid();
        // It is our child and not yet waited for, so this is its start even if it has ended.
        let start = process::start_ticks(pid).unwrap_or(0);
        Ok(Client { run_dir: options.run_dir, pid, start, _process: Some(process) })
    }

    /// Finds the shim that an earlier agent started.
    ///
    /// # Errors
    /// [`Error::Gone`] when there is none, or not that process any more: then see [`reap_orphans`].
    pub fn connect(run_dir: &Path) -> Result<Client, Error> {
        let identity = identity(run_dir)?;
        let boot_id = process::boot_id().map_err(cannot("read the boot ID"))?;
        if identity.boot_id != boot_id || !process::is_alive(identity.pid, identity.start) {
            return Err(Error::Gone);
        }
        Ok(Client { run_dir: run_dir.to_owned(), pid: identity.pid, start: identity.start, _process: None })
    }

    /// The shim's PID.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether its process still runs.
    pub fn is_alive(&self) -> bool {
        process::is_alive(self.pid, self.start)
    }

    /// Asks and waits for the answer, for about `timeout` at most.
    ///
    /// # Errors
    /// [`Error::Gone`] when the shim ended, before or meanwhile; [`Error::Timeout`] when it is stuck. Refusals of the
    /// shim are no errors here but a [`Reply::Error`].
    pub fn call(&self, request: &Request, timeout: Duration) -> Result<Reply, Error> {
        if matches!(request, Request::Run(_)) {
            cgroup::prewarm();
        }
        let connection = self.ask(request, timeout)?;
        self.answer(&connection, timeout)
    }

    /// A non-blocking descriptor that becomes readable when a record changed or the shim ended: see [`drain`].
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn subscribe(&self) -> Result<OwnedFd, Error> {
        let timeout = Duration::from_secs(10);
        let connection = self.ask(&Request::Subscribe, timeout)?;
        self.answer(&connection, timeout)?;
        rustix::fs::fcntl_getfl(&connection)
            .and_then(|flags| rustix::fs::fcntl_setfl(&connection, flags | OFlags::NONBLOCK))
            .map_err(|e| cannot("subscribe")(e.into()))?;
        Ok(connection)
    }

    /// Ends the shim and all its containers, waits for its process to be gone, and removes its cgroup.
    ///
    /// # Errors
    /// As [`Client::call`], except that a shim that is gone is none. After an error see [`reap_orphans`].
    pub fn shutdown(self, timeout: Duration) -> Result<Option<Reply>, Error> {
        let identity = identity(&self.run_dir).ok();
        let reply = match self.call(&Request::Shutdown, timeout) {
            Ok(reply) => Some(reply),
            Err(Error::Gone) => None,
            Err(e) => return Err(e),
        };
        wait_until_gone(self.pid, self.start, timeout)?;
        if let Some(path) = identity.and_then(|identity| identity.cgroup) {
            cgroup::clear(&path, timeout).map_err(cannot("remove the shim's cgroup"))?;
        }
        Ok(reply)
    }

    /// As [`Client::call`], for answers that come with descriptors; also returns the connection.
    pub(super) fn ask_for_descriptors(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>, OwnedFd), Error> {
        let connection = self.ask(request, timeout)?;
        let (reply, fds) = self.answer_with_descriptors(&connection, timeout)?;
        Ok((reply, fds, connection))
    }

    fn ask(&self, request: &Request, timeout: Duration) -> Result<OwnedFd, Error> {
        let packet = serde_json::to_vec(request).map_err(Error::Answer)?;
        if packet.len() > MAX_PACKET {
            let e = io::Error::new(io::ErrorKind::InvalidInput, format!("it has more than {MAX_PACKET} bytes"));
            return Err(cannot("send the request")(e));
        }
        let connection =
            socket::connect_to(&self.run_dir, SOCKET, timeout).map_err(|e| lost(e, timeout, "connect to the shim"))?;
        socket::send(&connection, &packet, &[]).map_err(|e| lost(e, timeout, "send the request"))?;
        Ok(connection)
    }

    fn answer(&self, connection: &OwnedFd, timeout: Duration) -> Result<Reply, Error> {
        self.answer_with_descriptors(connection, timeout).map(|(reply, _)| reply)
    }

    fn answer_with_descriptors(
        &self,
        connection: &OwnedFd,
        timeout: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let (packet, fds) =
            socket::receive(connection, MAX_PACKET).map_err(|e| lost(e, timeout, "receive the answer"))?;
        if packet.is_empty() {
            return Err(Error::Gone);
        }
        let reply = serde_json::from_slice(&packet).map_err(Error::Answer)?;
        Ok((reply, fds))
    }
}

fn lost(e: io::Error, timeout: Duration, what: &'static str) -> Error {
    use io::ErrorKind as Kind;
    match e.kind() {
        Kind::NotFound | Kind::ConnectionRefused | Kind::ConnectionReset | Kind::BrokenPipe | Kind::NotConnected => {
            Error::Gone
        }
        Kind::WouldBlock | Kind::TimedOut => Error::Timeout(timeout),
        _ => cannot(what)(e),
    }
}

fn identity(run_dir: &Path) -> Result<Identity, Error> {
    let content = match fs::read(run_dir.join(IDENTITY)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::Gone),
        other => other.map_err(cannot("read shim.json"))?,
    };
    serde_json::from_slice(&content).map_err(Error::Answer)
}

fn wait_until_gone(pid: i32, start: u64, timeout: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + timeout;
    while process::is_alive(pid, start) {
        if Instant::now() >= deadline {
            return Err(Error::Timeout(timeout));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What a subscription tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Some record changed since the last time.
    Changed,
    /// The shim ended.
    Gone,
}

/// Takes everything that a descriptor of [`Client::subscribe`] has to tell.
///
/// # Errors
/// `WouldBlock` when there is nothing.
pub fn drain(subscription: impl AsFd) -> io::Result<Event> {
    let mut changed = false;
    loop {
        match socket::receive(&subscription, 64) {
            Ok((packet, _)) if packet.is_empty() => return Ok(Event::Gone),
            Ok(_) => changed = true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && changed => return Ok(Event::Changed),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(Event::Gone),
            Err(e) => return Err(e),
        }
    }
}

/// Removes what a killed shim left: its process if there still is one, every process in the containers' cgroups
/// (absolute paths) and these cgroups, its own cgroup, its socket and libcontainer's state. Its mounts have gone with
/// its processes. Records stay. Can be repeated; takes at most about `timeout` per cgroup.
///
/// # Errors
/// The first thing that could not be removed, after everything was tried.
pub fn reap_orphans(run_dir: &Path, cgroup_paths: &[String], timeout: Duration) -> Result<(), Error> {
    let mut result = Ok(());
    let mut keep = |outcome: Result<(), Error>| {
        if result.is_ok() {
            result = outcome;
        }
    };
    let identity = identity(run_dir).ok().filter(|identity| process::boot_id().is_ok_and(|id| id == identity.boot_id));
    if let Some(identity) = &identity
        && process::is_alive(identity.pid, identity.start)
    {
        let _ = process::kill(identity.pid, libc::SIGKILL);
        keep(wait_until_gone(identity.pid, identity.start, timeout));
    }
    let own = identity.and_then(|identity| identity.cgroup);
    for path in cgroup_paths.iter().chain(&own) {
        keep(cgroup::clear(path, timeout).map_err(cannot("clear a cgroup")));
    }
    let absent_is_fine = |result: io::Result<()>| match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(cannot("remove the shim's files")(e)),
        _ => Ok(()),
    };
    keep(absent_is_fine(fs::remove_dir_all(run_dir.join(STATE))));
    for name in [SOCKET, IDENTITY] {
        keep(absent_is_fine(fs::remove_file(run_dir.join(name))));
    }
    result
}
