//! `v4.channel.k8s.io`: ports named by the query, each with one connection and two channels of a WebSocket, 2i for data and
//! 2i + 1 for what went wrong. The first message of each channel is its port, little-endian. There is no half-close.

use super::copy::read;
use super::dial::dial;
use super::{Place, STALL};
use crate::stream::QUEUE;
use crate::stream::idle::Idle;
use crate::stream::upgrade::Refused;
use crate::stream::websocket::Protocol;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

/// Most ports of a request; a channel is one byte, or one character.
const MAX_PORTS: usize = 32;
/// While nobody reads a client's messages, only a write tells that it has gone.
const PING: Duration = Duration::from_secs(15);
/// How long a client may take to close.
const LINGER: Duration = Duration::from_secs(5);

/// Ports of a query: `port=80&port=81`, also `port=80,81` and, as the API server's clients say it, `ports`.
pub(super) fn ports(query: &str) -> Result<Vec<u16>, Refused> {
    let bad = |text: String| Refused::BadRequest(text);
    let mut ports = Vec::new();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    for (_, value) in pairs.filter(|(key, _)| matches!(*key, "port" | "ports")) {
        let value = value.replace("%2C", ",").replace("%2c", ",");
        for port in value.split(',') {
            match port.parse() {
                Ok(number) if number > 0 => ports.push(number),
                _ => return Err(bad(format!("unable to parse {port:?} as a port from 1 to 65535"))),
            }
        }
    }
    match ports.len() {
        0 => Err(bad("query parameter \"port\" is required".to_owned())),
        1..=MAX_PORTS => Ok(ports),
        more => Err(bad(format!("{more} ports; the most is {MAX_PORTS}"))),
    }
}

/// Connects to all ports, and copies until all connections have ended or the client is gone.
pub(super) async fn serve<S>(
    socket: WebSocketStream<S>,
    protocol: Protocol,
    ports: &[u16],
    place: Place,
    idle: Duration,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (place, idle) = (Arc::new(place), Idle::new(idle));
    let (sink, mut stream) = socket.split();
    let (out, queue) = mpsc::channel(QUEUE);
    let mut inputs = Vec::new();
    // Dropped with all in it when the client is gone.
    let mut running = tokio::task::JoinSet::new();
    for (index, port) in (0u8..).zip(ports) {
        let (input, pieces) = mpsc::channel(QUEUE);
        inputs.push(Some(input));
        let channel = Channels { out: out.clone(), data: 2 * index, error: 2 * index + 1 };
        running.spawn(connection(*port, channel, pieces, Arc::clone(&place)));
    }
    drop(out);
    let done = tokio::select! {
        done = send(sink, protocol, queue, &idle) => done,
        () = receive(&mut stream, protocol, inputs, &idle) => false,
        () = idle.over() => false,
    };
    if done {
        let _ = tokio::time::timeout(LINGER, async { while let Some(Ok(_)) = stream.next().await {} }).await;
    }
}

/// Until all connections have ended; whether the client was told all of it.
async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    protocol: Protocol,
    mut queue: mpsc::Receiver<(u8, Bytes)>,
    idle: &Idle,
) -> bool {
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    loop {
        let message = tokio::select! {
            piece = queue.recv() => match piece {
                Some((channel, bytes)) => {
                    idle.touch();
                    protocol.message(channel, &bytes)
                }
                None => break,
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        if sink.send(message).await.is_err() {
            return false;
        }
    }
    sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await.is_ok()
}

/// Until the client closes.
async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut SplitStream<WebSocketStream<S>>,
    protocol: Protocol,
    mut inputs: Vec<Option<mpsc::Sender<Bytes>>>,
    idle: &Idle,
) {
    while let Some(Ok(message)) = stream.next().await {
        if message.is_close() {
            return;
        }
        if !message.is_pong() {
            idle.touch();
        }
        let Some((channel, bytes)) = protocol.content(message) else { continue };
        if channel % 2 == 1 || bytes.is_empty() {
            continue;
        }
        let alone = inputs.len() == 1;
        let Some(input) = inputs.get_mut(usize::from(channel / 2)) else { continue };
        let Some(sender) = input else { continue };
        let sent = match alone {
            true => sender.send(bytes).await.is_ok(),
            // A server that does not read must not hold up the others for ever.
            false => sender.send_timeout(bytes, STALL).await.is_ok(),
        };
        if !sent {
            *input = None;
        }
    }
}

/// The channels of a port.
struct Channels {
    out: mpsc::Sender<(u8, Bytes)>,
    data: u8,
    error: u8,
}

/// One port's connection, to its end.
async fn connection(port: u16, channels: Channels, pieces: mpsc::Receiver<Bytes>, place: Arc<Place>) {
    let Channels { out, data, error } = channels;
    let name = Bytes::copy_from_slice(&port.to_le_bytes());
    // A client that is gone needs no word.
    let _ = out.send((data, name.clone())).await;
    let _ = out.send((error, name)).await;
    let tcp = match dial(place.network.clone(), port).await {
        Ok(tcp) => tcp,
        Err(failed) => return drop(out.send((error, Bytes::from(place.told(port, &failed)))).await),
    };
    let (from, to) = tcp.into_split();
    let outwards = async {
        while let Ok(Some(bytes)) = read(from.as_ref()).await {
            if out.send((data, bytes)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = outwards => {}
        () = inwards(pieces, to) => {
            let _ = out.send((error, Bytes::from(place.told(port, &NotRead)))).await;
        }
    }
}

/// The server in the pod has held up others.
#[derive(Debug, thiserror::Error)]
#[error("it did not read for {STALL:?} while others waited")]
struct NotRead;

/// Returns when the server was given up; not when it reads no more, for it may still have something to say.
async fn inwards(mut pieces: mpsc::Receiver<Bytes>, mut to: OwnedWriteHalf) {
    while let Some(bytes) = pieces.recv().await {
        if to.write_all(&bytes).await.is_err() {
            // Thrown away from here on.
            while pieces.recv().await.is_some() {}
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        assert_eq!(ports("port=80&x=1&port=81%2C82,83").unwrap(), [80, 81, 82, 83]);
        assert_eq!(ports("ports=80").unwrap(), [80]);
        for bad in ["", "port=", "port=0", "port=65536", "port=80,", "port=-1", "port=http", &"port=1&".repeat(33)] {
            assert!(matches!(ports(bad), Err(Refused::BadRequest(_))), "{bad}");
        }
    }
}
