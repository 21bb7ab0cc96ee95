//! `exec`: a command in the container, by the exec helper; its pipes are read on the event loop.

use super::{Answer, Target, words};
use crate::bundle;
use crate::shim::exec::{Child, Options, Status, spawn};
use crate::sys::poll;
use k8s_openapi::api::core::v1::{Container, ExecAction};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Most output that is kept, in bytes (as kubelet); the rest is read, so that the command does not block.
const MAX_OUTPUT: usize = 10 * 1024;
/// Longest line of the helper's status.
const MAX_STATUS: usize = 64 * 1024;

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: i32,
    /// Both streams as they came.
    pub(super) output: String,
}

/// Why there is no exit code.
#[derive(Debug)]
pub(super) enum Error {
    /// It was killed after so long.
    TimedOut(Duration),
    /// It was not run.
    NotRun(String),
}

pub(super) async fn probe(action: &ExecAction, target: &Target, timeout: Duration) -> Answer {
    let argv = expanded(action, &target.container);
    let text = argv.join(" ");
    match run(argv, target, Some(timeout)).await {
        Ok(Ended { code: 0, .. }) => Answer::Success,
        Ok(Ended { output, .. }) => Answer::Failure(output),
        Err(Error::TimedOut(after)) => {
            Answer::Failure(format!("command timed out: {text:?} timed out after {}", words(after)))
        }
        Err(Error::NotRun(why)) => Answer::Error(why),
    }
}

/// As kubelet: `$(NAME)` stands for what is literally in `env`, and for nothing where that refers to something else.
pub(super) fn expanded(action: &ExecAction, container: &Container) -> Vec<String> {
    let value = |name: &str| {
        let mut all = container.env.iter().flatten().rev();
        all.find(|variable| variable.name == name).map(|variable| variable.value.as_deref().unwrap_or_default())
    };
    action.command.iter().flatten().map(|text| bundle::expand(text, value)).collect()
}

/// Runs a command; when the future is dropped, the command is killed.
pub(super) async fn run(argv: Vec<String>, target: &Target, timeout: Option<Duration>) -> Result<Ended, Error> {
    let place = target.exec.clone();
    let options = Options { argv, ..Options::default() };
    let all = async {
        // An error of the join means that the agent is going away.
        let child = tokio::task::spawn_blocking(move || spawn(&place, &options)).await;
        let child = child.map_err(|error| Error::NotRun(error.to_string()))?;
        let child = child.map_err(|error| Error::NotRun(crate::runtime::chain(&error)))?;
        wait(child).await
    };
    match timeout {
        None => all.await,
        Some(limit) => match tokio::time::timeout(limit, all).await {
            Ok(ended) => ended,
            Err(_) => Err(Error::TimedOut(limit)),
        },
    }
}

async fn wait(child: Child) -> Result<Ended, Error> {
    let Child { stdout, stderr, status, guard, .. } = child;
    let ended = follow(stdout, stderr, status).await;
    // Only now: it is what keeps the command alive.
    drop(guard);
    let (status, output) = ended.map_err(|error| Error::NotRun(format!("cannot read from the command: {error}")))?;
    match serde_json::from_slice::<Status>(&status) {
        Ok(Status { error: Some(why), .. }) => Err(Error::NotRun(why)),
        Ok(Status { exit_code: Some(code), .. }) => {
            Ok(Ended { code, output: String::from_utf8_lossy(&output).into_owned() })
        }
        _ => Err(Error::NotRun("the exec helper ended without a result".to_owned())),
    }
}

/// The status line and the output. The command's end is the end, also when a process that it left behind holds the pipes.
async fn follow(stdout: Option<OwnedFd>, stderr: Option<OwnedFd>, status: OwnedFd) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut streams = [stdout.map(pipe).transpose()?, stderr.map(pipe).transpose()?];
    let status = pipe(status)?;
    let (mut line, mut output) = (Vec::new(), Vec::new());
    loop {
        let ([out, err], mut first, mut second, mut word) = (&streams, [0; PIECE], [0; PIECE], [0; PIECE]);
        tokio::select! {
            count = read(out.as_ref(), &mut first) => match count? {
                0 => streams[0] = None,
                count => keep(&mut output, &first[..count], MAX_OUTPUT),
            },
            count = read(err.as_ref(), &mut second) => match count? {
                0 => streams[1] = None,
                count => keep(&mut output, &second[..count], MAX_OUTPUT),
            },
            count = read(Some(&status), &mut word) => {
                let count = count?;
                keep(&mut line, &word[..count], MAX_STATUS);
                if count == 0 || line.ends_with(b"\n") {
                    break;
                }
            }
        }
    }
    // What the command wrote before its end is in the pipes, which hold no more than this.
    for stream in streams.iter().flatten() {
        let mut piece = [0; PIECE];
        for _ in 0..PIPE / PIECE {
            match rustix::io::read(stream.get_ref(), &mut piece) {
                Ok(count @ 1..) => keep(&mut output, &piece[..count], MAX_OUTPUT),
                _ => break,
            }
        }
    }
    Ok((line, output))
}

/// Bytes of one read.
const PIECE: usize = 1024;
/// What a pipe holds, in bytes.
const PIPE: usize = 64 * 1024;

fn keep(kept: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    let room = limit.saturating_sub(kept.len()).min(bytes.len());
    kept.extend_from_slice(&bytes[..room]);
}

fn pipe(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    poll::readable(fd)
}

/// Reads what is there; 0 is the end. Cancelling loses nothing.
async fn read(pipe: Option<&AsyncFd<OwnedFd>>, buffer: &mut [u8]) -> io::Result<usize> {
    let Some(pipe) = pipe else { return std::future::pending().await };
    loop {
        let mut ready = pipe.readable().await?;
        match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut *buffer)?)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_not_ready) => {}
        }
    }
}
