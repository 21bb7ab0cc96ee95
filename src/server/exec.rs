//! `GET …/pods/{name}/exec`: a WebSocket with Kubernetes' channels (`v5.channel.k8s.io`, also v4).
//!
//! Binary messages; the first byte is the channel: 0 stdin, 1 stdout, 2 stderr, 3 result (v1 `Status`), 4 resize
//! (`{"Width":…,"Height":…}`), 255 the peer closes the channel named by the second byte (v5).

use super::log::container_name;
use super::reply::{self, Failure, Reply, blocking};
use super::route::Query;
use super::{Node, find_pod};
use crate::shim::exec as shim_exec;
use crate::sys::poll;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

/// Standard input of the command.
pub(crate) const STDIN: u8 = 0;
/// Standard output, or the terminal.
pub(crate) const STDOUT: u8 = 1;
/// Standard error.
pub(crate) const STDERR: u8 = 2;
/// The result.
pub(crate) const RESULT: u8 = 3;
/// Size of the terminal.
pub(crate) const RESIZE: u8 = 4;
/// Half-close.
pub(crate) const CLOSE: u8 = 255;
/// The subprotocol of today's kubectl.
pub(crate) const V5: &str = "v5.channel.k8s.io";

const V4: &str = "v4.channel.k8s.io";
/// Bytes of output a message.
const PIECE: usize = 16 * 1024;
/// How long output may stay silent after the command has ended. A process that it left behind may hold the pipe open
/// for ever; the reference runtimes wait for it for ever, and so do people.
const DRAIN: Duration = Duration::from_millis(250);
/// Most arguments and bytes of a command.
const MAX_COMMAND: (usize, usize) = (1024, 128 * 1024);

/// Buffers sized for a terminal, not for a download: each session costs memory in the agent.
pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(8 * 1024)
        .write_buffer_size(PIECE)
        .max_write_buffer_size(1 << 20)
        .max_message_size(Some(1 << 20))
        .max_frame_size(Some(1 << 20))
}

/// Answers an exec request: checks it, switches protocols, and leaves the session to a task of its own.
pub(super) fn exec(
    node: &Arc<dyn Node>,
    namespace: &str,
    name: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Reply, Failure> {
    let pod = find_pod(node.as_ref(), namespace, name)
        .ok_or_else(|| Failure::not_found(format!("pods {name:?} not found")))?;
    let container = container_name(&pod, query.get("container"))?;
    let options = options(query)?;
    let streams = Wanted {
        stdout: query.flag("stdout")? || query.flag("output")?,
        stderr: query.flag("stderr")? || query.flag("error")?,
    };
    if !options.stdin && !streams.stdout && !streams.stderr {
        return Err(Failure::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let target = node
        .exec_target(namespace, pod.metadata.name.as_deref().unwrap_or(name), &container)
        .map_err(Failure::not_found)?;
    let (key, protocol) = handshake(request.headers())?;
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "exec: the client went away"),
        };
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(websocket_config())).await;
        let started = blocking(move || shim_exec::spawn(&target, &options)).await;
        let process = match started {
            Ok(Ok(child)) => Process::new(child).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error_chain(&error)),
            Err(_) => Err("the worker failed".to_owned()),
        };
        session(socket, process, streams).await;
    });
    let mut answer = reply::with_type(StatusCode::SWITCHING_PROTOCOLS, "text/plain", reply::bytes(Bytes::new()));
    let headers = answer.headers_mut();
    headers.clear();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(HeaderName::from_static("sec-websocket-protocol"), HeaderValue::from_static(protocol));
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| Failure::bad_request("Sec-WebSocket-Key is malformed"))?;
    headers.insert(HeaderName::from_static("sec-websocket-accept"), accept);
    Ok(answer)
}

/// Which outputs the client wants; the others are read and dropped, so that the command does not block.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    stdout: bool,
    stderr: bool,
}

fn options(query: &Query) -> Result<shim_exec::Options, Failure> {
    let argv: Vec<String> = query.all("command").map(str::to_owned).collect();
    if argv.first().is_none_or(String::is_empty) {
        return Err(Failure::bad_request("you must specify a command for the container"));
    }
    if argv.len() > MAX_COMMAND.0 || argv.iter().map(String::len).sum::<usize>() > MAX_COMMAND.1 {
        return Err(Failure::bad_request("the command is too long"));
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err(Failure::bad_request("the command contains a NUL byte"));
    }
    let (tty, stdin) = (query.flag("tty")?, query.flag("stdin")? || query.flag("input")?);
    Ok(shim_exec::Options { argv, env_add: Vec::new(), tty, stdin, size: None })
}

/// Checks the WebSocket handshake (RFC 6455); returns the key and the subprotocol chosen.
fn handshake(headers: &HeaderMap) -> Result<(String, &'static str), Failure> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let lists = |name: &str, wanted: &str| text(name).split(',').any(|item| item.trim().eq_ignore_ascii_case(wanted));
    if !lists("connection", "upgrade") || !lists("upgrade", "websocket") {
        return Err(Failure::bad_request("exec needs a WebSocket: send Connection: Upgrade and Upgrade: websocket"));
    }
    if text("sec-websocket-version") != "13" {
        return Err(Failure::bad_request("only version 13 of the WebSocket protocol is spoken here"));
    }
    let key = text("sec-websocket-key");
    if key.is_empty() {
        return Err(Failure::bad_request("Sec-WebSocket-Key is missing"));
    }
    let offered: Vec<&str> = headers
        .get_all("sec-websocket-protocol")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let chosen = offered.iter().find_map(|offer| [V5, V4].into_iter().find(|known| known == offer));
    match chosen {
        Some(protocol) => Ok((key.to_owned(), protocol)),
        None => Err(Failure::bad_request(format!("no common subprotocol: {V5} and {V4} are spoken here"))),
    }
}

/// A pipe end or terminal on the event loop.
struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    fn new(fd: OwnedFd) -> io::Result<Pipe> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Pipe(poll::both(fd)?))
    }

    /// Reads what is there; 0 is the end. Cancelling loses nothing.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut *buffer)?)) {
                // A terminal whose other side is closed says EIO.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_not_ready) => {}
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => {}
            }
        }
        Ok(())
    }
}

/// The streams of a started command.
struct Process {
    stdin: Option<Arc<Pipe>>,
    stdout: Option<Arc<Pipe>>,
    stderr: Option<Pipe>,
    terminal: Option<Arc<Pipe>>,
    status: Pipe,
    /// Keeps the command alive; `None` in tests without a helper.
    _guard: Option<shim_exec::Guard>,
}

impl Process {
    fn new(child: shim_exec::Child) -> io::Result<Process> {
        let pipe = |fd: Option<OwnedFd>| fd.map(Pipe::new).transpose();
        let terminal = pipe(child.pty)?.map(Arc::new);
        Ok(Process {
            stdin: pipe(child.stdin)?.map(Arc::new).or_else(|| terminal.clone()),
            stdout: pipe(child.stdout)?.map(Arc::new).or_else(|| terminal.clone()),
            stderr: pipe(child.stderr)?,
            terminal,
            status: Pipe::new(child.status)?,
            _guard: Some(child.guard),
        })
    }
}

/// The line that the exec helper writes when the command has ended, or could not begin.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    exit_code: Option<i32>,
    error: Option<String>,
}

/// Serves one session to its end.
async fn session<S>(socket: WebSocketStream<S>, process: Result<Process, String>, wanted: Wanted)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, stream) = socket.split();
    let outcome = match process {
        Err(error) => Outcome { exit_code: None, error: Some(error) },
        Ok(process) => {
            let Process { stdin, stdout, stderr, terminal, status, _guard } = process;
            // As the reference server: an empty message first tells the client that the command's streams are there.
            let first = if wanted.stdout { STDOUT } else { STDERR };
            if send(&mut sink, first, &[]).await.is_err() {
                return;
            }
            let (gone, client_gone) = oneshot::channel();
            let input = tokio::spawn(client_to_process(stream, stdin, terminal, gone));
            let outcome = process_to_client(&mut sink, stdout, stderr, status, wanted, client_gone).await;
            input.abort();
            match outcome {
                Some(outcome) => outcome,
                None => return,
            }
        }
    };
    let result = result_status(&outcome).to_string();
    if send(&mut sink, RESULT, result.as_bytes()).await.is_ok() {
        // Close 1000: kubectl takes anything else for an error.
        let normal = tokio_tungstenite::tungstenite::protocol::CloseFrame {
            code: tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode::Normal,
            reason: "".into(),
        };
        let _ = sink.send(Message::Close(Some(normal))).await;
        let _ = sink.close().await;
    }
}

/// Between two looks whether the client is still there.
const PING: Duration = Duration::from_secs(15);

/// Copies output until the command has ended and its output too. `None`: the client is gone.
async fn process_to_client<S>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    stdout: Option<Arc<Pipe>>,
    stderr: Option<Pipe>,
    status: Pipe,
    wanted: Wanted,
    mut client_gone: oneshot::Receiver<()>,
) -> Option<Outcome>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    async fn read(pipe: Option<&Pipe>, buffer: &mut [u8]) -> io::Result<usize> {
        match pipe {
            Some(pipe) => pipe.read(buffer).await,
            None => std::future::pending().await,
        }
    }
    let (mut stdout, mut stderr) = (stdout, stderr);
    let (mut out, mut err, mut word) = (vec![0; PIECE], vec![0; PIECE], [0; 1024]);
    let mut line = Vec::new();
    let mut outcome = None;
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    while outcome.is_none() || stdout.is_some() || stderr.is_some() {
        tokio::select! {
            count = read(stdout.as_deref(), &mut out) => match count {
                Ok(count @ 1..) if wanted.stdout => send(sink, STDOUT, &out[..count]).await.ok()?,
                Ok(1..) => {}
                Ok(0) | Err(_) => stdout = None,
            },
            count = read(stderr.as_ref(), &mut err) => match count {
                Ok(count @ 1..) if wanted.stderr => send(sink, STDERR, &err[..count]).await.ok()?,
                Ok(1..) => {}
                Ok(0) | Err(_) => stderr = None,
            },
            count = status.read(&mut word), if outcome.is_none() => match count {
                Ok(count @ 1..) if line.len() < 64 * 1024 => line.extend_from_slice(&word[..count]),
                _ => outcome = Some(parse_outcome(&line)),
            },
            _ = &mut client_gone => return None,
            // While the command does not read its input nobody reads the client's messages either: only a write tells
            // that the client has gone.
            _ = ping.tick() => sink.send(Message::Ping(Bytes::new())).await.ok()?,
            () = tokio::time::sleep(DRAIN), if outcome.is_some() => break,
        }
    }
    outcome
}

fn parse_outcome(line: &[u8]) -> Outcome {
    serde_json::from_slice(line).unwrap_or_else(|_| Outcome {
        exit_code: None,
        error: Some("the exec helper ended without a result".to_owned()),
    })
}

/// Copies the client's messages until it closes; dropping `gone` or sending on it tells that it did.
async fn client_to_process<S>(
    mut stream: SplitStream<WebSocketStream<S>>,
    stdin: Option<Arc<Pipe>>,
    terminal: Option<Arc<Pipe>>,
    gone: oneshot::Sender<()>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A queue of its own: a command that does not read its input must not keep a resize from it.
    let mut queue = stdin.map(|stdin| {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(16);
        tokio::spawn(async move {
            while let Some(bytes) = receiver.recv().await {
                if stdin.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        sender
    });
    while let Some(Ok(message)) = stream.next().await {
        let Message::Binary(bytes) = message else {
            if message.is_close() {
                break;
            }
            continue;
        };
        match bytes.first() {
            Some(&STDIN) => {
                if let Some(sender) = &queue
                    && sender.send(bytes.slice(1..)).await.is_err()
                {
                    queue = None;
                }
            }
            Some(&RESIZE) => {
                if let Some(terminal) = &terminal
                    && let Some((rows, columns)) = parse_size(&bytes[1..])
                    && let Err(error) = shim_exec::resize(terminal.0.get_ref(), rows, columns)
                {
                    tracing::debug!(%error, "exec: cannot resize the terminal");
                }
            }
            Some(&CLOSE) if bytes.get(1) == Some(&STDIN) => queue = None,
            _ => {}
        }
    }
    let _ = gone.send(());
}

/// Rows and columns of a resize message.
fn parse_size(json: &[u8]) -> Option<(u16, u16)> {
    #[derive(Deserialize)]
    struct Size {
        #[serde(alias = "width", rename = "Width")]
        width: u16,
        #[serde(alias = "height", rename = "Height")]
        height: u16,
    }
    let size: Size = serde_json::from_slice(json).ok()?;
    Some((size.height, size.width))
}

async fn send<S>(sink: &mut SplitSink<WebSocketStream<S>, Message>, channel: u8, bytes: &[u8]) -> Result<(), ()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    sink.send(Message::Binary(message.into())).await.map_err(|_| ())
}

/// The v1 `Status` of the result channel, as kubelet.
fn result_status(outcome: &Outcome) -> serde_json::Value {
    match outcome {
        Outcome { error: None, exit_code: Some(0) } => json!({"metadata": {}, "status": "Success"}),
        Outcome { error: None, exit_code: Some(code) } => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Outcome { error, .. } => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {}", error.as_deref().unwrap_or("no result")),
            "reason": "InternalError",
            "code": 500,
        }),
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    /// A session over a socket pair with a real process behind it, the status line written by the test.
    async fn run(script: &str, status: &str, input: &[&[u8]]) -> Vec<(u8, String)> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (status_read, status_write) = rustix::pipe::pipe().unwrap();
        let process = Process {
            stdin: child.stdin.take().map(|fd| Arc::new(Pipe::new(fd.into()).unwrap())),
            stdout: child.stdout.take().map(|fd| Arc::new(Pipe::new(fd.into()).unwrap())),
            stderr: child.stderr.take().map(|fd| Pipe::new(fd.into()).unwrap()),
            terminal: None,
            status: Pipe::new(status_read).unwrap(),
            _guard: None,
        };
        let (near, far) = tokio::net::UnixStream::pair().unwrap();
        let server = WebSocketStream::from_raw_socket(near, Role::Server, Some(websocket_config())).await;
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let served = tokio::spawn(session(server, Ok(process), Wanted { stdout: true, stderr: true }));
        for message in input {
            client.send(Message::Binary(message.to_vec().into())).await.unwrap();
        }
        let status = status.to_owned();
        let reaper = tokio::task::spawn_blocking(move || {
            child.wait().unwrap();
            std::fs::File::from(status_write).write_all(status.as_bytes()).unwrap();
        });
        let mut seen: Vec<(u8, String)> = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            if let Message::Binary(bytes) = message {
                let text = String::from_utf8(bytes[1..].to_vec()).unwrap();
                seen.push((bytes[0], text));
            }
        }
        reaper.await.unwrap();
        served.await.unwrap();
        seen.retain(|(_, text)| !text.is_empty());
        seen
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time") })
    }

    #[test]
    fn input_output_and_exit_code_pass() {
        let input: &[&[u8]] = &[b"\0hello\n", &[RESIZE, b'{'], &[9, 9], &[], &[CLOSE, STDIN]];
        let seen = block_on(run("cat; echo oops >&2; exit 3", "{\"exitCode\":3}\n", input));
        assert!(seen.contains(&(STDOUT, "hello\n".to_owned())), "{seen:?}");
        assert!(seen.contains(&(STDERR, "oops\n".to_owned())), "{seen:?}");
        let (channel, status) = seen.last().unwrap();
        assert_eq!(*channel, RESULT);
        expect![[r#"{"details":{"causes":[{"message":"3","reason":"ExitCode"}]},"message":"command terminated with non-zero exit code: exit status 3","metadata":{},"reason":"NonZeroExitCode","status":"Failure"}"#]].assert_eq(status);
    }

    #[test]
    fn a_process_left_behind_does_not_keep_the_session() {
        let seen = block_on(run("sleep 5 & echo done", "{\"exitCode\":0}\n", &[]));
        assert_eq!(seen[0], (STDOUT, "done\n".to_owned()));
        assert!(seen[1].1.contains("Success"), "{seen:?}");
    }

    #[test]
    fn a_helper_that_dies_is_an_error_not_a_success() {
        let seen = block_on(run("true", "", &[&[CLOSE, STDIN]]));
        assert!(seen.last().unwrap().1.contains("ended without a result"), "{seen:?}");
    }

    #[test]
    fn a_failed_start_is_told_on_the_result_channel() {
        block_on(async {
            let (near, far) = tokio::net::UnixStream::pair().unwrap();
            let server = WebSocketStream::from_raw_socket(near, Role::Server, None).await;
            let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
            session::<tokio::net::UnixStream>(
                server,
                Err("no such file".into()),
                Wanted { stdout: true, stderr: true },
            )
            .await;
            let first = client.next().await.unwrap().unwrap().into_data();
            assert_eq!(first[0], RESULT);
            assert!(String::from_utf8_lossy(&first).contains("Internal error occurred: no such file"));
        });
    }

    #[test]
    fn handshakes_without_a_common_word_are_refused() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect::<HeaderMap>()
        };
        let good = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "x3JJHMbDL1EzLkh9GBhXDw=="),
            ("sec-websocket-protocol", "base64.channel.k8s.io, v5.channel.k8s.io"),
        ];
        assert_eq!(handshake(&headers(&good)).unwrap().1, V5);
        for missing in 0..good.len() {
            let mut pairs = good.to_vec();
            pairs.remove(missing);
            assert!(handshake(&headers(&pairs)).is_err(), "{missing}");
        }
    }
}
