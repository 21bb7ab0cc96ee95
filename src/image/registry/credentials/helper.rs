//! Credential helpers: programs `docker-credential-NAME` that the node's configuration names.
//!
//! They are asked with `get` and the registry on standard input, and answer with JSON or exit with an error.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::Login;
use crate::http::Environment;
use crate::sys::process;

/// How long an answer may take: some helpers ask a cloud.
const PATIENCE: Duration = Duration::from_secs(20);

/// Most bytes of an answer: tokens have a few thousand.
const LONGEST: usize = 64 * 1024;

/// What a helper says when it knows nothing of a registry.
const UNKNOWN: &str = "credentials not found in native keychain";

/// Why a helper was of no help. Shows nothing of what it said, which may be secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("not a name of a helper")]
    Name,
    #[error("not found in PATH")]
    Missing,
    #[error("cannot {action}")]
    Io { action: &'static str, source: io::Error },
    #[error("no answer in {} s", PATIENCE.as_secs())]
    Late,
    #[error("its answer is longer than {LONGEST} bytes")]
    Long,
    #[error("{0}")]
    Failed(ExitStatus),
    #[error("its answer has no Username and Secret")]
    Answer,
}

/// Asks a helper about a host (`docker.io` for the hub). `None`: it knows nothing of it.
pub(super) fn get(name: &str, host: &str, environment: &Environment) -> Result<Option<Login>, Error> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(Error::Name);
    }
    let program = find(&format!("docker-credential-{name}"), environment.get("PATH")).ok_or(Error::Missing)?;
    // As docker, which keeps the hub under its oldest name.
    let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let (status, answer) = ask(&program, server, PATIENCE)?;
    if !status.success() {
        let unknown = String::from_utf8_lossy(&answer).contains(UNKNOWN);
        return if unknown { Ok(None) } else { Err(Error::Failed(status)) };
    }
    let answer: Value = serde_json::from_slice(&answer).map_err(|_| Error::Answer)?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(username), Some(secret)) = (text("Username"), text("Secret")) else { return Err(Error::Answer) };
    Ok(match (username.as_str(), secret.is_empty()) {
        ("", true) => None,
        ("<token>", _) => Some(Login::IdentityToken(secret)),
        _ => Some(Login::Password { username, password: secret }),
    })
}

/// A program in the folders of `PATH`; relative folders are not looked at.
fn find(program: &str, path: Option<&str>) -> Option<PathBuf> {
    let folders = path.unwrap_or_default().split(':').map(Path::new).filter(|folder| folder.is_absolute());
    folders.map(|folder| folder.join(program)).find(|candidate| {
        std::fs::metadata(candidate).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// A process group that is ended with this value, unless the helper itself has ended: some leave a daemon behind.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let (Ok(None), Ok(group)) = (self.0.try_wait(), i32::try_from(self.0.id())) {
            _ = process::kill_group(group, libc::SIGKILL);
            _ = self.0.wait();
        }
    }
}

/// Runs the helper: how it ended and what it said.
pub(super) fn ask(program: &Path, server: &str, patience: Duration) -> Result<(ExitStatus, Vec<u8>), Error> {
    let io = |action| move |source| Error::Io { action, source };
    let deadline = Instant::now() + patience;
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut group = Group(command.spawn().map_err(io("start it"))?);
    if let Some(mut stdin) = group.0.stdin.take() {
        // It fits into the pipe. A helper that does not read it has its reasons.
        match stdin.write_all(server.as_bytes()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(io("write to it")(e)),
            _ => {}
        }
    }
    let answer = match group.0.stdout.take() {
        Some(stdout) => read(stdout, deadline)?,
        None => Vec::new(),
    };
    loop {
        if let Some(status) = group.0.try_wait().map_err(io("wait for it"))? {
            return Ok((status, answer));
        }
        if Instant::now() >= deadline {
            return Err(Error::Late);
        }
        // It has closed its output, so it is about to end.
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn read(mut stdout: ChildStdout, deadline: Instant) -> Result<Vec<u8>, Error> {
    let io = |source: io::Error| Error::Io { action: "read from it", source };
    let mut answer = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let ready = match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            ready => ready.map_err(|e| io(e.into()))?,
        };
        if ready == 0 {
            return Err(Error::Late);
        }
        let mut buffer = [0; 4096];
        match stdout.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io(e)),
        }
        if answer.len() > LONGEST {
            return Err(Error::Long);
        }
    }
}
