//! Port-forward: TCP connections to ports of a pod, over whatever the client speaks.
//!
//! | Client | Begins with |
//! |---|---|
//! | kubectl through an API server, crictl | `POST`, SPDY/3.1, `portforward.k8s.io` |
//! | kubectl, directly | `GET`, WebSocket, `SPDY/3.1+portforward.k8s.io`: the same within binary messages |
//! | clients of old | `GET`, WebSocket, `v4.channel.k8s.io`: two channels a port |
//!
//! # Back-pressure
//!
//! Neither protocol has windows. A connection's bytes wait in a buffer that all connections of a client share; when it is
//! full, the client is held up. A server in the pod that does not read holds up its own connection; when others wait for it,
//! it is reset after [`STALL`]. What comes out of the pod waits in the pod's socket.

mod channels;
mod copy;
mod dial;
mod pairs;
#[cfg(test)]
mod tests;

pub(crate) use copy::copy;

use super::spdy::{self, Limits, Role};
use super::tunnel::{self, Tunnel};
use super::upgrade::{Refused, spdy_opening, wants_websocket, websocket_answer};
use super::websocket;
use crate::causes;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{self, WebSocketConfig};

/// What is spoken over SPDY.
pub const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: [&str; 2] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// Bytes from a client that may wait for servers in the pod.
const BUFFER: usize = 4 << 20;
/// How long a server that does not read may hold up others.
const STALL: Duration = Duration::from_secs(10);
/// Most streams of a client at once: two for every connection.
const MAX_STREAMS: usize = 2048;
/// How long it may take until a connection is free after the answer.
const BEGIN: Duration = Duration::from_secs(30);

/// Where ports are.
#[derive(Debug, Clone)]
pub struct Place {
    /// The pod's network namespace; `None`: the machine's.
    pub network: Option<PathBuf>,
    /// The pod's name, for messages.
    pub pod: String,
}

impl Place {
    /// What a client is told of a connection that failed (kubelet's words).
    fn told(&self, port: u16, error: &dyn std::error::Error) -> String {
        format!("error forwarding port {port} to pod {}: {}", self.pod, causes::chain(error))
    }
}

/// A client whose connection is being switched.
#[derive(Debug)]
pub struct Client {
    connection: OnUpgrade,
    transport: Transport,
    idle: Duration,
}

#[derive(Debug)]
enum Transport {
    Spdy,
    Tunnel,
    Channels { protocol: websocket::Protocol, ports: Vec<u16> },
}

/// Reads a request that wants ports forwarded, until nothing went over the connection for `idle` (zero: for ever). Returns
/// the answer (101), and the client, which is there once the answer is sent.
///
/// # Errors
/// When the request is malformed, or offers no protocol that is spoken here.
pub fn upgrade<B>(request: &mut Request<B>, idle: Duration) -> Result<(Response<()>, Client), Refused> {
    let (answer, transport) = if wants_websocket(request.headers()) {
        if request.method() != Method::GET {
            return Err(Refused::BadRequest(format!("a WebSocket begins with GET, not {}", request.method())));
        }
        let opening = websocket::opening(request.headers(), &[TUNNEL, CHANNELS[0], CHANNELS[1]])?;
        let transport = match opening.protocol {
            Some(TUNNEL) => Transport::Tunnel,
            other => {
                let protocol = websocket::Protocol::named(other)
                    .ok_or_else(|| Refused::BadRequest("no common subprotocol".to_owned()))?;
                Transport::Channels { protocol, ports: channels::ports(request.uri().query().unwrap_or_default())? }
            }
        };
        (websocket_answer(opening), transport)
    } else {
        (spdy_opening(request.headers(), &[PROTOCOL])?.0, Transport::Spdy)
    };
    Ok((answer, Client { connection: hyper::upgrade::on(request), transport, idle }))
}

impl Client {
    /// Forwards connections until the client is gone. Must be called on the event loop that is to serve it: see
    /// [`super::spawn`].
    pub async fn serve(self, place: Place) {
        let io = match tokio::time::timeout(BEGIN, self.connection).await {
            Ok(Ok(io)) => TokioIo::new(io),
            Ok(Err(error)) => {
                return tracing::debug!(error = causes::chain(&error), "port-forward: the connection broke off");
            }
            Err(_) => return tracing::debug!("port-forward: the client did not go on"),
        };
        match self.transport {
            Transport::Spdy => pairs(io, place, self.idle).await,
            Transport::Tunnel => pairs(Tunnel::new(socket(io, tunnel::config()).await), place, self.idle).await,
            Transport::Channels { protocol, ports } => {
                channels::serve(socket(io, websocket::config()).await, protocol, &ports, place, self.idle).await;
            }
        }
    }
}

async fn socket<S: AsyncRead + AsyncWrite + Unpin>(io: S, config: WebSocketConfig) -> WebSocketStream<S> {
    WebSocketStream::from_raw_socket(io, protocol::Role::Server, Some(config)).await
}

async fn pairs(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, place: Place, idle: Duration) {
    let limits = Limits { buffer: BUFFER, stall: Some(STALL), streams: MAX_STREAMS, idle };
    let (connection, incoming) = spdy::start(io, Role::Server, limits);
    pairs::serve(connection, incoming, Arc::new(place)).await;
}
