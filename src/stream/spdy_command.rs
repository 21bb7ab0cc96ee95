//! A command's streams over SPDY/3.1: the client opens one per kind, named by the header `streamType`.

use super::outcome::Words;
use super::size::Sizes;
use super::spdy::{self, Connection, Incoming, Limits, Reader, Role, Writer};
use super::upgrade::Lost;
use super::{Outcome, QUEUE, Session, Size, Wanted};
use hyper::body::Bytes;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};

/// What is spoken, the newest first. Version 5 is for WebSockets alone.
pub(super) const PROTOCOLS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// Input that may wait for a command to read it.
const BUFFER: usize = 256 * 1024;
/// Longer than any session.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// More than any client opens.
const MAX_STREAMS: usize = 16;

/// What is agreed on with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Protocol {
    words: Words,
    /// Whether there is a stream for sizes.
    resizes: bool,
}

impl Protocol {
    pub(super) fn named(name: &str) -> Option<Protocol> {
        match name {
            "v4.channel.k8s.io" => Some(Protocol { words: Words::Status, resizes: true }),
            "v3.channel.k8s.io" => Some(Protocol { words: Words::Text, resizes: true }),
            "v2.channel.k8s.io" | "channel.k8s.io" => Some(Protocol { words: Words::Text, resizes: false }),
            _ => None,
        }
    }
}

type Pair = (Reader, Writer);

/// The streams that a client opens.
struct Streams {
    error: Pair,
    stdin: Option<Pair>,
    stdout: Option<Pair>,
    stderr: Option<Pair>,
    resize: Option<Pair>,
}

/// Waits for the client's streams, then serves them on the other side of the session until either has enough.
pub(super) async fn serve(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    protocol: Protocol,
    wanted: Wanted,
    idle: Duration,
) -> Result<Session, Lost> {
    // Input that is thrown away would be lost: whoever does not read it holds up nobody but this client.
    let idle = if idle.is_zero() { FOREVER } else { idle };
    let limits = Limits { buffer: BUFFER, stall: None, streams: MAX_STREAMS, idle };
    let (connection, mut incoming) = spdy::start(io, Role::Server, limits);
    let streams = streams(&mut incoming, protocol, wanted).await?;
    let (stdin, input) = queue(wanted.stdin);
    let (output, stdout) = queue(wanted.stdout);
    let (errors, stderr) = queue(wanted.stderr);
    let (told, size) = watch::channel(None);
    let (outcome, ended) = oneshot::channel();
    let channels = Channels { stdin, stdout, stderr, told, ended };
    // Further streams are refused as long as somebody takes their offers.
    tokio::spawn(async move {
        let gone = connection.clone();
        tokio::select! {
            () = copy(connection, streams, channels, protocol.words) => {}
            () = gone.closed() => {}
            () = refuse(incoming) => {}
        }
    });
    Ok(Session { stdin: input, stdout: output, stderr: errors, size, outcome })
}

fn queue(wanted: bool) -> (Option<mpsc::Sender<Bytes>>, Option<mpsc::Receiver<Bytes>>) {
    if !wanted {
        return (None, None);
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Some(sender), Some(receiver))
}

async fn refuse(mut incoming: Incoming) {
    while let Some(offer) = incoming.next().await {
        drop(offer);
    }
    // A client that opens no more streams may still use those it has.
    std::future::pending().await
}

async fn streams(incoming: &mut Incoming, protocol: Protocol, wanted: Wanted) -> Result<Streams, Lost> {
    let expected = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("resize", wanted.tty && protocol.resizes),
    ];
    let mut opened: [Option<Pair>; 5] = Default::default();
    while expected.iter().zip(&opened).any(|((_, wanted), opened)| *wanted && opened.is_none()) {
        let Some(offer) = incoming.next().await else {
            return Err(Lost::Protocol("it closed before all streams were opened".to_owned()));
        };
        let kind = offer.headers().get("streamtype").unwrap_or_default().to_ascii_lowercase();
        match expected.iter().position(|(name, _)| *name == kind) {
            Some(index) if expected[index].1 && opened[index].is_none() => opened[index] = Some(offer.accept()),
            // Of no use here: refused, by dropping it.
            Some(_) => {}
            None => return Err(Lost::Protocol(format!("it opened a stream of type {kind:?}"))),
        }
    }
    let [error, stdin, stdout, stderr, resize] = opened;
    let error = error.ok_or_else(|| Lost::Protocol("it opened no error stream".to_owned()))?;
    Ok(Streams { error, stdin, stdout, stderr, resize })
}

/// The transport's ends of a session.
struct Channels {
    stdin: Option<mpsc::Sender<Bytes>>,
    stdout: Option<mpsc::Receiver<Bytes>>,
    stderr: Option<mpsc::Receiver<Bytes>>,
    told: watch::Sender<Option<Size>>,
    ended: oneshot::Receiver<Outcome>,
}

async fn copy(connection: Connection, streams: Streams, channels: Channels, words: Words) {
    let Streams { error: (unread, mut error), stdin, stdout, stderr, resize } = streams;
    // Clients half-close it at once.
    drop(unread);
    // Their other halves stay open to the end: kubectl takes the end of such a stream for the end of the session.
    let (typed, stdin_half) = stdin.unzip();
    let (sizes, resize_half) = resize.unzip();
    let mut kept = [stdin_half, resize_half];
    let Channels { stdin: input, stdout: output, stderr: errors, told, ended } = channels;
    let outputs = async { tokio::join!(give(output, stdout), give(errors, stderr)) };
    let aside = async {
        tokio::join!(take(typed, input), follow(sizes, told));
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        (_, outcome) = async { tokio::join!(outputs, ended) } => outcome,
        () = aside => return,
    };
    let outcome = outcome.unwrap_or_else(|_| Outcome::Failed("the session was lost".to_owned()));
    if let Some(text) = outcome.told(words) {
        // A client that is gone needs no word.
        let _ = error.write(Bytes::from(text)).await;
    }
    let _ = error.finish().await;
    for half in kept.iter_mut().flatten() {
        let _ = half.finish().await;
    }
    connection.close().await;
}

/// Output, and its end.
async fn give(from: Option<mpsc::Receiver<Bytes>>, to: Option<Pair>) {
    let (Some(mut from), Some((_unread, mut to))) = (from, to) else { return };
    while let Some(bytes) = from.recv().await {
        if to.write(bytes).await.is_err() {
            return;
        }
    }
    let _ = to.finish().await;
}

/// Input, and its end. What nobody reads is thrown away.
async fn take(from: Option<Reader>, to: Option<mpsc::Sender<Bytes>>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    while let Ok(Some(bytes)) = from.read().await {
        if to.send(bytes).await.is_err() {
            return;
        }
    }
}

async fn follow(from: Option<Reader>, told: watch::Sender<Option<Size>>) {
    let Some(mut from) = from else { return };
    let mut sizes = Sizes::default();
    while let Ok(Some(bytes)) = from.read().await {
        if let Some(size) = sizes.feed(&bytes) {
            told.send_replace(Some(size));
        }
    }
}
