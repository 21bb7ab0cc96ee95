//! Commands and containers at the process' end of a [`Session`]: exec, attach, and a command's output as a whole.

use super::pipe::Pipe;
use super::{Outcome, PIECE, QUEUE, Session, Size};
use crate::causes::chain;
use crate::shim::attach;
use crate::shim::exec::{self as helper, Options, Status, Target};
use hyper::body::Bytes;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How long output may stay silent after the command has ended. A process that it left behind may hold the pipe open for
/// ever; the reference runtimes wait for it for ever, and so do people.
const DRAIN: Duration = Duration::from_millis(250);
/// How long an attached client whose input has ended is shown output, when nothing tells which is the last.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Longest line of the helper's status.
const MAX_STATUS: usize = 64 * 1024;

/// Runs a command in a container until it ends or the client is gone, which kills it.
pub async fn exec(target: Target, options: Options, session: Session) {
    // An error of the join means that the agent is going away.
    let started = tokio::task::spawn_blocking(move || helper::spawn(&target, &options)).await;
    let process = match started {
        Ok(Ok(child)) => Process::of_command(child).map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(chain(&error)),
        Err(error) => Err(error.to_string()),
    };
    serve(process, session).await;
}

/// Connects a client with a container until the container ends or the client is gone, of which the container sees nothing
/// but the end of its input if it has `stdinOnce`.
pub async fn attach(target: Target, session: Session) {
    let with_input = session.stdin.is_some();
    let attached = tokio::task::spawn_blocking(move || attach::open(&target, with_input)).await;
    let process = match attached {
        Ok(Ok(attached)) => Process::of_container(attached).map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(chain(&error)),
        Err(error) => Err(error.to_string()),
    };
    serve(process, session).await;
}

/// What a command said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit code; of a signal 128 and its number.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// Why there is no [`Output`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It was not run.
    #[error("{0}")]
    NotRun(String),
    /// It was killed after so long.
    #[error("timed out after {0:?}")]
    TimedOut(Duration),
}

/// Runs a command and collects what it says, of each stream at most `limit` bytes; the rest is read and thrown away. When the
/// future is dropped, the command is killed.
///
/// # Errors
/// When it cannot be run, or has not ended after `timeout`.
pub async fn output(target: Target, argv: Vec<String>, limit: usize, timeout: Option<Duration>) -> Result<Output, Error> {
    let (stdout, out) = mpsc::channel(QUEUE);
    let (stderr, err) = mpsc::channel(QUEUE);
    let (outcome, ended) = oneshot::channel();
    let (_, size) = watch::channel(None);
    let session = Session { stdin: None, stdout: Some(stdout), stderr: Some(stderr), size, outcome };
    let options = Options { argv, ..Options::default() };
    let all = async {
        let run = exec(target, options, session);
        let ((), stdout, stderr, ended) = tokio::join!(run, collect(out, limit), collect(err, limit), ended);
        match ended {
            Ok(Outcome::Exited(code)) => Ok(Output { code, stdout, stderr }),
            Ok(Outcome::Failed(why)) => Err(Error::NotRun(why)),
            Err(_) => Err(Error::NotRun("the session was lost".to_owned())),
        }
    };
    match timeout {
        None => all.await,
        Some(limit) => tokio::time::timeout(limit, all).await.unwrap_or(Err(Error::TimedOut(limit))),
    }
}

async fn collect(mut pieces: mpsc::Receiver<Bytes>, limit: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    while let Some(piece) = pieces.recv().await {
        let room = limit.saturating_sub(kept.len()).min(piece.len());
        kept.extend_from_slice(&piece[..room]);
    }
    kept
}

/// The near ends of a process' streams.
struct Process {
    stdin: Option<Pipe>,
    stdout: Option<Arc<Pipe>>,
    stderr: Option<Arc<Pipe>>,
    /// What a size is set on.
    terminal: Option<Arc<Pipe>>,
    end: End,
}

/// What tells that it is over.
enum End {
    /// The line of the helper, which is killed without its guard.
    Command { status: Pipe, _guard: Option<helper::Guard> },
    /// The end of all output.
    Container(attach::Attached),
}

impl Process {
    fn of_command(child: helper::Child) -> io::Result<Process> {
        let terminal = child.pty.map(Pipe::new).transpose()?.map(Arc::new);
        let pipe = |fd: Option<OwnedFd>| fd.map(Pipe::new).transpose();
        // Its own descriptor, as it is dropped at the end of the input, and registered once each.
        let typed = terminal.as_ref().map(|terminal| terminal.fd().try_clone()).transpose()?;
        Ok(Process {
            stdin: pipe(child.stdin.or(typed))?,
            stdout: pipe(child.stdout)?.map(Arc::new).or_else(|| terminal.clone()),
            stderr: pipe(child.stderr)?.map(Arc::new),
            terminal,
            end: End::Command { status: Pipe::new(child.status)?, _guard: Some(child.guard) },
        })
    }

    fn of_container(mut attached: attach::Attached) -> io::Result<Process> {
        let pipe = |fd: Option<OwnedFd>| fd.map(Pipe::new).transpose();
        let terminal = attached.terminal.take();
        let typed = match (&terminal, attached.with_input) {
            (Some(terminal), true) => Some(terminal.try_clone()?),
            _ => None,
        };
        Ok(Process {
            stdin: pipe(attached.stdin.take().or(typed))?,
            stdout: pipe(attached.stdout.take())?.map(Arc::new),
            stderr: pipe(attached.stderr.take())?.map(Arc::new),
            terminal: pipe(terminal)?.map(Arc::new),
            end: End::Container(attached),
        })
    }
}

/// Serves a session to its end.
async fn serve(process: Result<Process, String>, session: Session) {
    let process = match process {
        Ok(process) => process,
        Err(why) => {
            // Nobody to tell is no trouble.
            let _ = session.outcome.send(Outcome::Failed(why));
            return;
        }
    };
    let Session { stdin, stdout, stderr, size, mut outcome } = session;
    let Process { stdin: input, stdout: output, stderr: errors, terminal, end } = process;
    let (over, ended) = watch::channel(false);
    let work = async {
        let outputs = async {
            tokio::join!(copy(output, stdout, ended.clone()), copy(errors, stderr, ended.clone()));
        };
        let sizes = resize(terminal, size);
        match end {
            End::Command { status, _guard } => {
                let helper = async {
                    let status = read_status(&status).await;
                    over.send_replace(true);
                    status
                };
                let done = async { tokio::join!(outputs, helper).1 };
                tokio::select! {
                    status = done => status,
                    never = aside(feed(input, stdin), sizes) => never,
                }
            }
            End::Container(attached) => {
                let once = attached.ends_input;
                let typed = async {
                    let has_input = input.is_some();
                    feed(input, stdin).await;
                    match (has_input, once) {
                        (false, _) => {}
                        (true, true) => attached.end_input(),
                        // As containerd: what is typed is all that the client came for.
                        (true, false) => {
                            over.send_replace(true);
                            tokio::time::sleep(LAST_WORDS).await;
                            return;
                        }
                    }
                    std::future::pending().await
                };
                tokio::select! {
                    () = outputs => {}
                    () = typed => {}
                    never = aside(std::future::ready(()), sizes) => never,
                }
                Outcome::Exited(0)
            }
        }
    };
    let told = tokio::select! {
        told = work => told,
        () = outcome.closed() => return,
    };
    let _ = outcome.send(told);
}

/// Both, and never an end.
async fn aside(input: impl Future<Output = ()>, sizes: impl Future<Output = ()>) -> ! {
    tokio::join!(input, sizes);
    std::future::pending().await
}

/// Copies output until its end, or until it is silent after `ended` has turned true. What nobody wants is read all the same,
/// so that the process does not block.
async fn copy(from: Option<Arc<Pipe>>, mut to: Option<mpsc::Sender<Bytes>>, mut ended: watch::Receiver<bool>) {
    let Some(from) = from else { return };
    let mut room = vec![0; PIECE];
    loop {
        let piece = tokio::select! {
            biased;
            piece = from.read(&mut room) => piece,
            () = silence(&mut ended) => return,
        };
        match piece {
            Ok(piece) if !piece.is_empty() => {
                if let Some(sender) = &to
                    && sender.send(piece).await.is_err()
                {
                    to = None;
                }
            }
            _ => return,
        }
    }
}

async fn silence(ended: &mut watch::Receiver<bool>) {
    if ended.wait_for(|ended| *ended).await.is_err() {
        // Nobody can tell any more.
        return std::future::pending().await;
    }
    tokio::time::sleep(DRAIN).await;
}

/// Copies input until its end, or until the process reads no more; the process sees the end with the pipe's.
async fn feed(to: Option<Pipe>, from: Option<mpsc::Receiver<Bytes>>) {
    let (Some(to), Some(mut from)) = (to, from) else { return };
    while let Some(bytes) = from.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Sets the sizes that the client tells.
async fn resize(terminal: Option<Arc<Pipe>>, mut size: watch::Receiver<Option<Size>>) {
    let Some(terminal) = terminal else { return };
    loop {
        let told = *size.borrow_and_update();
        if let Some(Size { width, height }) = told
            && let Err(error) = helper::resize(terminal.fd(), height, width)
        {
            tracing::debug!(%error, "cannot resize the terminal");
        }
        if size.changed().await.is_err() {
            return;
        }
    }
}

/// The helper's word of how the command ended.
async fn read_status(status: &Pipe) -> Outcome {
    let (mut line, mut room) = (Vec::new(), vec![0; 4096]);
    while line.len() < MAX_STATUS {
        match status.read(&mut room).await {
            Ok(piece) if !piece.is_empty() => line.extend_from_slice(&piece),
            _ => break,
        }
        if line.ends_with(b"\n") {
            break;
        }
    }
    match serde_json::from_slice(&line) {
        Ok(Status { error: Some(why), .. }) => Outcome::Failed(why),
        Ok(Status { exit_code: Some(code), .. }) => Outcome::Exited(code),
        _ => Outcome::Failed("the exec helper ended without a result".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// A session with a real process behind it; the status line is written by the test once the process has ended.
    async fn run(script: &str, status: &str, input: &[&[u8]]) -> (String, String, Option<Outcome>) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (status_read, status_write) = rustix::pipe::pipe().unwrap();
        let process = Process {
            stdin: child.stdin.take().map(|fd| Pipe::new(fd.into()).unwrap()),
            stdout: child.stdout.take().map(|fd| Arc::new(Pipe::new(fd.into()).unwrap())),
            stderr: child.stderr.take().map(|fd| Arc::new(Pipe::new(fd.into()).unwrap())),
            terminal: None,
            end: End::Command { status: Pipe::new(status_read).unwrap(), _guard: None },
        };
        let status = status.to_owned();
        let reaper = tokio::task::spawn_blocking(move || {
            child.wait().unwrap();
            std::fs::File::from(status_write).write_all(status.as_bytes()).unwrap();
        });
        let (typed, stdin) = mpsc::channel(QUEUE);
        let (stdout, out) = mpsc::channel(QUEUE);
        let (stderr, err) = mpsc::channel(QUEUE);
        let (outcome, ended) = oneshot::channel();
        let (_, size) = watch::channel(None);
        let session = Session { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), size, outcome };
        let typing = async {
            for bytes in input {
                // What the process does not read is refused.
                let _ = typed.send(Bytes::copy_from_slice(bytes)).await;
            }
            drop(typed);
        };
        let limit = usize::MAX;
        let ((), (), out, err, ended) =
            tokio::join!(serve(Ok(process), session), typing, collect(out, limit), collect(err, limit), ended);
        reaper.await.unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), ended.ok())
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time") })
    }

    #[test]
    fn input_output_and_exit_code_pass() {
        let (out, err, outcome) = block_on(run("cat; echo oops >&2; exit 3", "{\"exitCode\":3}\n", &[b"hel", b"lo\n"]));
        assert_eq!((out.as_str(), err.as_str(), outcome), ("hello\n", "oops\n", Some(Outcome::Exited(3))));
    }

    #[test]
    fn more_than_all_queues_hold_passes_both_ways() {
        let input = vec![b'x'; 100_000];
        let pieces: Vec<&[u8]> = std::iter::repeat_n(input.as_slice(), 40).collect();
        let (out, _, outcome) = block_on(run("cat", "{\"exitCode\":0}\n", &pieces));
        assert_eq!((out.len(), outcome), (4_000_000, Some(Outcome::Exited(0))));
    }

    #[test]
    fn a_process_left_behind_does_not_keep_the_session() {
        let (out, _, outcome) = block_on(run("sleep 5 & echo done", "{\"exitCode\":0}\n", &[]));
        assert_eq!((out.as_str(), outcome), ("done\n", Some(Outcome::Exited(0))));
    }

    #[test]
    fn a_helper_that_dies_is_an_error_not_a_success() {
        let (_, _, outcome) = block_on(run("true", "", &[]));
        assert_eq!(outcome, Some(Outcome::Failed("the exec helper ended without a result".to_owned())));
    }

    #[test]
    fn a_client_that_is_gone_ends_the_session() {
        block_on(async {
            let (status, writer) = rustix::pipe::pipe().unwrap();
            let (out, silent) = rustix::pipe::pipe().unwrap();
            let process = Process {
                stdin: None,
                stdout: Some(Arc::new(Pipe::new(out).unwrap())),
                stderr: None,
                terminal: None,
                end: End::Command { status: Pipe::new(status).unwrap(), _guard: None },
            };
            let (outcome, ended) = oneshot::channel();
            let (_, size) = watch::channel(None);
            let session = Session { stdin: None, stdout: None, stderr: None, size, outcome };
            let serving = tokio::spawn(serve(Ok(process), session));
            tokio::task::yield_now().await;
            drop(ended);
            serving.await.unwrap();
            drop((writer, silent));
        });
    }
}
