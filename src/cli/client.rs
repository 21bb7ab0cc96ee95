//! The agent's socket, seen from the command line. One connection a request: nothing to keep alive, nothing to leak.

use super::error::Error;
use crate::config::SOCKET_NAME;
use crate::server::types::Status;
use crate::stream::websocket::{self, V5};
use futures_util::stream::unfold;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Largest answer read into memory, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// A WebSocket to the agent.
pub(super) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Where the agent is.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(run_dir: &Path) -> Client {
        Client { socket: run_dir.join(SOCKET_NAME) }
    }

    /// Whether somebody listens on the agent's socket.
    pub(super) async fn probe(&self) -> Result<(), Unreached> {
        let reached = UnixStream::connect(&self.socket).await;
        reached.map(drop).map_err(|error| Unreached {
            is_absent: matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused),
            error: self.not_there(&error),
        })
    }

    /// Sends a request; an answer that is no success becomes an error with the server's words.
    pub(super) async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Error> {
        let request = Request::builder().method(method).uri(path).header(HOST, "coracle");
        let answer = self.exchange(request.body(Full::new(body))).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(refusal(answer).await.0) }
    }

    /// As [`Client::send`], for callers that look at the refusal themselves.
    pub(super) async fn try_send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, (Error, Status)> {
        let request = Request::builder().method(method).uri(path).header(HOST, "coracle");
        let answer = self.exchange(request.body(Full::new(body))).await.map_err(|error| (error, Status::default()))?;
        if answer.status().is_success() {
            collect(answer).await.map_err(|error| (error, Status::default()))
        } else {
            Err(refusal(answer).await)
        }
    }

    /// Posts a body that arrives piece by piece; an error among them breaks the request off.
    pub(super) async fn upload(
        &self,
        path: &str,
        body: mpsc::Receiver<io::Result<Bytes>>,
    ) -> Result<Bytes, (Error, Status)> {
        let frames = unfold(body, |mut body| async move {
            let next = body.recv().await?;
            Some((next.map(Frame::data), body))
        });
        let request = Request::builder().method(Method::POST).uri(path).header(HOST, "coracle");
        let answer = self.exchange(request.body(Box::pin(StreamBody::new(frames)))).await;
        let answer = answer.map_err(|error| (error, Status::default()))?;
        if answer.status().is_success() {
            collect(answer).await.map_err(|error| (error, Status::default()))
        } else {
            Err(refusal(answer).await)
        }
    }

    /// Gets and decodes JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let bytes = collect(self.send(Method::GET, path, Bytes::new()).await?).await?;
        decode(&bytes)
    }

    /// Gets a stream.
    pub(super) async fn stream(&self, path: &str) -> Result<Stream, Error> {
        Ok(Stream { body: self.send(Method::GET, path, Bytes::new()).await?.into_body(), rest: Vec::new() })
    }

    /// Gets the stream that an order answers with.
    pub(super) async fn stream_post(&self, path: &str) -> Result<Stream, Error> {
        Ok(Stream { body: self.send(Method::POST, path, Bytes::new()).await?.into_body(), rest: Vec::new() })
    }

    /// Opens a WebSocket with Kubernetes' streaming protocol.
    pub(super) async fn upgrade(&self, path: &str) -> Result<Socket, Error> {
        let key = generate_key();
        let request = Request::builder()
            .uri(path)
            .header(HOST, "coracle")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", V5)
            .header("sec-websocket-key", &key)
            .body(Full::new(Bytes::new()));
        let answer = self.exchange(request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(answer).await.0);
        }
        let accept = answer.headers().get("sec-websocket-accept").and_then(|value| value.to_str().ok());
        if accept != Some(derive_accept_key(key.as_bytes()).as_str()) {
            return Err(self.unreachable("it does not speak WebSocket"));
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(|error| self.unreachable(error))?;
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(websocket::config())).await)
    }

    /// Switches to SPDY/3.1 and a protocol above it; returns the connection.
    pub(super) async fn upgrade_spdy(
        &self,
        path: &str,
        protocol: &str,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, Error> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, "coracle")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "SPDY/3.1")
            .header("x-stream-protocol-version", protocol)
            .body(Full::new(Bytes::new()));
        let answer = self.exchange(request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(answer).await.0);
        }
        hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(|error| self.unreachable(error))
    }

    async fn exchange<B>(&self, request: hyper::http::Result<Request<B>>) -> Result<Response<Incoming>, Error>
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let request = request.map_err(|error| Error::new("cannot ask the agent", error))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.not_there(&error))?;
        let handshake = hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.unreachable(error))?;
        tokio::spawn(async move {
            // An error here is seen by the one who waits for the answer.
            let _ = connection.with_upgrades().await;
        });
        sender.send_request(request).await.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> Error {
        Error::new(format!("cannot talk to the agent at {}", self.socket.display()), why)
    }

    fn not_there(&self, error: &io::Error) -> Error {
        // The system's words carry a number that tells nobody anything.
        let why = match error.kind() {
            io::ErrorKind::NotFound => "no such socket".to_owned(),
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        let failed = Error::new(format!("cannot reach the agent at {}", self.socket.display()), why);
        match error.kind() {
            io::ErrorKind::PermissionDenied => failed.hint("the socket is root's: try sudo"),
            _ => failed.hint("is it running? systemctl status coracle, or start it with: coracle agent"),
        }
    }
}

/// Why nobody was reached.
pub(super) struct Unreached {
    /// Nobody listens, which may change.
    pub(super) is_absent: bool,
    pub(super) error: Error,
}

/// A streamed answer.
pub(super) struct Stream {
    body: Incoming,
    rest: Vec<u8>,
}

impl Stream {
    /// The next piece; `None` at the end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(error)) => return Err(Error::caused("the agent broke off", &error)),
            }
        }
    }

    /// The next line; `None` at the end. Cancelling loses nothing.
    pub(super) async fn line(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let tail = self.rest.split_off(end + 1);
                return Ok(Some(std::mem::replace(&mut self.rest, tail)));
            }
            if self.rest.len() > MAX_ANSWER {
                return Err(Error::new("the agent's answer is too long", ""));
            }
            match self.piece().await? {
                Some(bytes) => self.rest.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

async fn collect(answer: Response<Incoming>) -> Result<Bytes, Error> {
    match Limited::new(answer.into_body(), MAX_ANSWER).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(Error::new("the agent broke off", error)),
    }
}

/// Decodes an answer.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    crate::store::decode(bytes).map_err(|error| Error::new("the agent's answer makes no sense", error))
}

async fn refusal(answer: Response<Incoming>) -> (Error, Status) {
    let code = answer.status();
    let body = match collect(answer).await {
        Ok(body) => body,
        Err(error) => return (error, Status::default()),
    };
    match serde_json::from_slice::<Status>(&body) {
        Ok(status) if !status.message.is_empty() => {
            // kubectl's form: Error from server (NotFound): …
            let error = Error::new("the agent refused", format!("{} ({})", status.message, status.reason));
            (error, status)
        }
        _ => (
            Error::new("the agent refused", format!("{code}: {}", String::from_utf8_lossy(&body).trim())),
            Status::default(),
        ),
    }
}
