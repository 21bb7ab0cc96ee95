//! Kubernetes' channels over a WebSocket (RFC 6455).
//!
//! In each message the first byte is the channel: 0 input, 1 output, 2 error output, 3 how it ended, 4 size of the terminal;
//! 255 says that the peer closes the channel named by the second byte (version 5 only). The base64 variants are text, the
//! channel being a digit.

use super::idle::Idle;
use super::outcome::Words;
use super::upgrade::Refused;
use super::{Outcome, QUEUE, Session, Size, Wanted};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};

/// Standard input of the command.
pub const STDIN: u8 = 0;
/// Standard output, or the terminal.
pub const STDOUT: u8 = 1;
/// Standard error.
pub const STDERR: u8 = 2;
/// How it ended.
pub const RESULT: u8 = 3;
/// Size of the terminal.
pub const RESIZE: u8 = 4;
/// Half-close.
pub const CLOSE: u8 = 255;
/// The subprotocol of today's kubectl.
pub const V5: &str = "v5.channel.k8s.io";

/// Between two looks whether the client is still there: while nobody reads its messages, as the command does not read its
/// input, only a write tells that it has gone.
const PING: Duration = Duration::from_secs(15);
/// How long a client may take to close after it was told how the command ended. Closing before it does could cost it the
/// last words: unread input makes the kernel break the connection off.
const LINGER: Duration = Duration::from_secs(5);
/// Largest message or frame of a client (kubelet: 32 MiB, more than a small machine should hold for one client).
const MAX_MESSAGE: usize = 8 << 20;

/// What is agreed on with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Protocol {
    /// The subprotocol; `None`: the client named none.
    pub(super) name: Option<&'static str>,
    base64: bool,
    words: Words,
    /// Whether [`CLOSE`] is known.
    closes: bool,
}

const fn protocol(name: &'static str, base64: bool, words: Words) -> Protocol {
    Protocol { name: Some(name), base64, words, closes: false }
}

const KNOWN: [Protocol; 5] = [
    Protocol { closes: true, ..protocol(V5, false, Words::Status) },
    protocol("v4.channel.k8s.io", false, Words::Status),
    protocol("v4.base64.channel.k8s.io", true, Words::Status),
    protocol("channel.k8s.io", false, Words::Text),
    protocol("base64.channel.k8s.io", true, Words::Text),
];

impl Protocol {
    /// The protocol for a command's streams of that name.
    pub(super) fn named(name: Option<&str>) -> Option<Protocol> {
        match name {
            None => Some(Protocol { name: None, ..protocol("", false, Words::Text) }),
            Some(name) => KNOWN.into_iter().find(|protocol| protocol.name == Some(name)),
        }
    }

    /// Names of all.
    pub(super) fn names() -> [&'static str; 5] {
        KNOWN.map(|protocol| protocol.name.unwrap_or_default())
    }

    pub(super) fn message(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            BASE64_STANDARD.encode_string(bytes, &mut text);
            return Message::Text(text.into());
        }
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        Message::Binary(message.into())
    }

    /// Channel and content of a client's message; `None`: it has none, or is not in the protocol.
    pub(super) fn content(self, message: Message) -> Option<(u8, Bytes)> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        let channel = *bytes.first()?;
        let content = bytes.slice(1..);
        match self.base64 {
            false => Some((channel, content)),
            true => Some((channel.checked_sub(b'0')?, BASE64_STANDARD.decode(&content).ok()?.into())),
        }
    }
}

/// Buffers sized for a terminal, not for a download: each session costs memory in the agent.
#[must_use]
pub fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(super::PIECE)
        .max_write_buffer_size(1 << 20)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// A client's good opening handshake.
#[derive(Debug)]
pub struct Opening {
    /// What proves that it was understood (`Sec-WebSocket-Accept`).
    pub accept: HeaderValue,
    /// The first of the client's subprotocols that is known; `None`: it named none.
    pub protocol: Option<&'static str>,
}

/// Checks an opening handshake.
///
/// # Errors
/// What is wrong with it.
pub fn opening(headers: &HeaderMap, known: &[&'static str]) -> Result<Opening, Refused> {
    let bad = |text: &str| Refused::BadRequest(text.to_owned());
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if text("sec-websocket-version") != "13" {
        return Err(bad("only version 13 of the WebSocket protocol is spoken here"));
    }
    let key = text("sec-websocket-key");
    if key.is_empty() {
        return Err(bad("Sec-WebSocket-Key is missing"));
    }
    let accept =
        HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| bad("Sec-WebSocket-Key is malformed"))?;
    let offered = super::upgrade::listed(headers, "sec-websocket-protocol");
    let protocol = offered.iter().find_map(|offer| known.iter().find(|known| *known == offer).copied());
    if protocol.is_none() && !offered.is_empty() {
        let (offered, known) = (offered.join(", "), known.join(", "));
        return Err(Refused::BadRequest(format!("no common subprotocol: {offered} offered, {known} are spoken here")));
    }
    Ok(Opening { accept, protocol })
}

/// Serves a client on the other side of the session, until either has enough.
pub(super) fn serve<S>(socket: WebSocketStream<S>, protocol: Protocol, wanted: Wanted, idle: Duration) -> Session
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stdin, input) = queue(wanted.stdin);
    let (output, stdout) = queue(wanted.stdout);
    let (errors, stderr) = queue(wanted.stderr);
    let (told, size) = watch::channel(None);
    let (outcome, ended) = oneshot::channel();
    let idle = Idle::new(idle);
    tokio::spawn(async move {
        let (sink, mut stream) = socket.split();
        let mut to = To { sink, protocol, idle: &idle };
        let from = From { protocol, idle: &idle };
        let done = {
            let mut sending = std::pin::pin!(to.copy(stdout, stderr, ended));
            tokio::select! {
                done = &mut sending => done.is_ok(),
                () = from.copy(&mut stream, stdin, told) => false,
                () = idle.over() => false,
            }
        };
        // Everything else is dropped by now: whoever runs the command sees that the client is gone.
        if done {
            let _ = tokio::time::timeout(LINGER, async { while let Some(Ok(_)) = stream.next().await {} }).await;
        }
    });
    Session { stdin: input, stdout: output, stderr: errors, size, outcome }
}

type Queue = (Option<mpsc::Sender<Bytes>>, Option<mpsc::Receiver<Bytes>>);

fn queue(wanted: bool) -> Queue {
    match wanted {
        true => {
            let (sender, receiver) = mpsc::channel(QUEUE);
            (Some(sender), Some(receiver))
        }
        false => (None, None),
    }
}

/// The way to the client.
struct To<'a, S> {
    sink: SplitSink<WebSocketStream<S>, Message>,
    protocol: Protocol,
    idle: &'a Idle,
}

/// The client is gone.
struct Gone;

impl<S: AsyncRead + AsyncWrite + Unpin> To<'_, S> {
    async fn send(&mut self, message: Message) -> Result<(), Gone> {
        self.sink.send(message).await.map_err(|_| Gone)
    }

    /// Until all is said and closed.
    async fn copy(
        &mut self,
        mut stdout: Option<mpsc::Receiver<Bytes>>,
        mut stderr: Option<mpsc::Receiver<Bytes>>,
        outcome: oneshot::Receiver<Outcome>,
    ) -> Result<(), Gone> {
        async fn next(queue: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
            match queue {
                Some(receiver) => receiver.recv().await,
                None => std::future::pending().await,
            }
        }
        // As the reference server: an empty message first tells the client that the streams are there.
        let first = if stdout.is_some() {
            STDOUT
        } else if stderr.is_some() {
            STDERR
        } else {
            RESULT
        };
        self.send(self.protocol.message(first, &[])).await?;
        let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
        let mut outcome = std::pin::pin!(outcome);
        let mut ended = None;
        while ended.is_none() || stdout.is_some() || stderr.is_some() {
            let (channel, piece) = tokio::select! {
                piece = next(&mut stdout) => match piece {
                    Some(piece) => (STDOUT, piece),
                    None => {
                        stdout = None;
                        continue;
                    }
                },
                piece = next(&mut stderr) => match piece {
                    Some(piece) => (STDERR, piece),
                    None => {
                        stderr = None;
                        continue;
                    }
                },
                outcome = &mut outcome, if ended.is_none() => {
                    ended = Some(outcome.unwrap_or_else(|_| Outcome::Failed("the session was lost".to_owned())));
                    continue;
                }
                _ = ping.tick() => {
                    self.send(Message::Ping(Bytes::new())).await?;
                    continue;
                }
            };
            self.send(self.protocol.message(channel, &piece)).await?;
            self.idle.touch();
        }
        if let Some(text) = ended.and_then(|outcome| outcome.told(self.protocol.words)) {
            self.send(self.protocol.message(RESULT, &text)).await?;
        }
        // kubectl takes anything but 1000 for an error.
        self.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await
    }
}

/// The way from the client.
struct From<'a> {
    protocol: Protocol,
    idle: &'a Idle,
}

impl From<'_> {
    /// Until the client closes.
    async fn copy<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut SplitStream<WebSocketStream<S>>,
        mut stdin: Option<mpsc::Sender<Bytes>>,
        size: watch::Sender<Option<Size>>,
    ) {
        while let Some(Ok(message)) = stream.next().await {
            if message.is_close() {
                return;
            }
            if !message.is_pong() {
                self.idle.touch();
            }
            match self.protocol.content(message) {
                Some((STDIN, bytes)) => {
                    // In pieces, so that the queue's length is a bound of bytes.
                    let mut rest = bytes;
                    while !rest.is_empty()
                        && let Some(sender) = &stdin
                    {
                        let piece = rest.split_to(rest.len().min(super::PIECE));
                        // The rest of an input that nobody reads is thrown away.
                        if sender.send(piece).await.is_err() {
                            stdin = None;
                        }
                    }
                }
                Some((RESIZE, bytes)) => {
                    if let Some(told) = Size::parse(&bytes) {
                        size.send_replace(Some(told));
                    }
                }
                Some((CLOSE, bytes)) if self.protocol.closes && *bytes == [STDIN] => stdin = None,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "websocket_tests.rs"]
mod tests;
