//! From a request to switch protocols to a [`Session`]: which protocol the client speaks, what it is answered, and the rest
//! once the connection is free.

use super::websocket::{self, Protocol};
use super::{Session, Wanted, spdy_command};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

const X_STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const X_ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// How long it may take until a connection is free after the answer, and what the client has to say first has come.
const BEGIN: Duration = Duration::from_secs(30);

/// Why protocols are not switched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The request is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// It offers nothing that is spoken here.
    #[error("unable to upgrade: the client offers {offered:?}, {spoken:?} are spoken here")]
    NoCommonProtocol {
        /// What the client offers.
        offered: Vec<String>,
        /// What is spoken here.
        spoken: Vec<&'static str>,
    },
}

impl Refused {
    /// Status and headers of the answer; its body is the message.
    #[must_use]
    pub fn answer(&self) -> Response<()> {
        let mut answer = Response::new(());
        match self {
            Refused::BadRequest(_) => *answer.status_mut() = StatusCode::BAD_REQUEST,
            Refused::NoCommonProtocol { spoken, .. } => {
                *answer.status_mut() = StatusCode::FORBIDDEN;
                for name in spoken {
                    answer.headers_mut().append(X_ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
                }
            }
        }
        answer
    }
}

/// Why there is no session after all.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The connection broke off.
    #[error("the connection broke off")]
    Connection(#[source] hyper::Error),
    /// The client did not go on.
    #[error("the client did not open its streams in time")]
    Late,
    /// What the client said makes no sense.
    #[error("the client does not follow the protocol: {0}")]
    Protocol(String),
}

/// A client whose connection is being switched.
#[derive(Debug)]
pub struct Client {
    connection: OnUpgrade,
    transport: Transport,
    wanted: Wanted,
    idle: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Transport {
    WebSocket(Protocol),
    Spdy(spdy_command::Protocol),
}

/// Reads a request that wants a command's streams, which are closed once nothing went over them for `idle` (zero: never).
/// Returns the answer (101), and the client, which is there once the answer is sent.
///
/// # Errors
/// When the request is malformed, or offers no protocol that is spoken here.
pub fn upgrade<B>(
    request: &mut Request<B>,
    wanted: Wanted,
    idle: Duration,
) -> Result<(Response<()>, Client), Refused> {
    let (answer, transport) = if wants_websocket(request.headers()) {
        if request.method() != Method::GET {
            return Err(Refused::BadRequest(format!("a WebSocket begins with GET, not {}", request.method())));
        }
        let opening = websocket::opening(request.headers(), &Protocol::names())?;
        let protocol = Protocol::named(opening.protocol)
            .ok_or_else(|| Refused::BadRequest("no common subprotocol".to_owned()))?;
        (websocket_answer(opening), Transport::WebSocket(protocol))
    } else {
        let (answer, name) = spdy_opening(request.headers(), &spdy_command::PROTOCOLS)?;
        let protocol = spdy_command::Protocol::named(name)
            .ok_or_else(|| Refused::BadRequest("no common protocol".to_owned()))?;
        (answer, Transport::Spdy(protocol))
    };
    Ok((answer, Client { connection: hyper::upgrade::on(request), transport, wanted, idle }))
}

/// Whether a request wants to become a WebSocket.
#[must_use]
pub fn wants_websocket(headers: &HeaderMap) -> bool {
    has(headers, UPGRADE.as_str(), "websocket") && has(headers, CONNECTION.as_str(), "upgrade")
}

/// The answer (101) to a WebSocket's opening handshake.
#[must_use]
pub fn websocket_answer(opening: websocket::Opening) -> Response<()> {
    let mut answer = switching("websocket");
    if let Some(protocol) = opening.protocol {
        answer.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
    }
    answer.headers_mut().insert("sec-websocket-accept", opening.accept);
    answer
}

/// Checks a request to switch to SPDY/3.1; returns the answer (101) and the first of the client's protocols that is `spoken`.
///
/// # Errors
/// When the request is malformed, or offers none of them.
pub fn spdy_opening(
    headers: &HeaderMap,
    spoken: &[&'static str],
) -> Result<(Response<()>, &'static str), Refused> {
    if !has(headers, CONNECTION.as_str(), "upgrade") || !has(headers, UPGRADE.as_str(), "spdy/3.1") {
        let text = "unable to upgrade: want the headers Connection: Upgrade and Upgrade: SPDY/3.1 or websocket";
        return Err(Refused::BadRequest(text.to_owned()));
    }
    let offered = listed(headers, X_STREAM_PROTOCOL.as_str());
    if offered.is_empty() {
        return Err(Refused::BadRequest(format!("unable to upgrade: {X_STREAM_PROTOCOL} is missing")));
    }
    let chosen = offered.iter().find_map(|offer| spoken.iter().find(|name| *name == offer).copied());
    let Some(name) = chosen else {
        let offered = offered.into_iter().map(str::to_owned).collect();
        return Err(Refused::NoCommonProtocol { offered, spoken: spoken.to_vec() });
    };
    let mut answer = switching("SPDY/3.1");
    answer.headers_mut().insert(X_STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok((answer, name))
}

fn switching(to: &'static str) -> Response<()> {
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    answer
}

/// What a header lists, over all its lines.
pub(super) fn listed<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|item| !item.is_empty()).collect()
}

fn has(headers: &HeaderMap, name: &str, wanted: &str) -> bool {
    listed(headers, name).iter().any(|item| item.eq_ignore_ascii_case(wanted))
}

impl Client {
    /// The session, once the connection is free and the client has opened its streams. Must be called on the event loop that
    /// is to serve it: see [`super::spawn`].
    ///
    /// # Errors
    /// When the client is gone, or does not go on.
    pub async fn session(self) -> Result<Session, Lost> {
        let begin = async {
            let io = TokioIo::new(self.connection.await.map_err(Lost::Connection)?);
            match self.transport {
                Transport::WebSocket(protocol) => {
                    let config = Some(websocket::config());
                    let socket = WebSocketStream::from_raw_socket(io, Role::Server, config).await;
                    Ok(websocket::serve(socket, protocol, self.wanted, self.idle))
                }
                Transport::Spdy(protocol) => spdy_command::serve(io, protocol, self.wanted, self.idle).await,
            }
        };
        tokio::time::timeout(BEGIN, begin).await.unwrap_or(Err(Lost::Late))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, pairs: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = method;
        for (name, value) in pairs {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request
    }

    fn answer(method: Method, pairs: &[(&'static str, &'static str)]) -> (u16, String) {
        let wanted = Wanted { stdin: false, stdout: true, stderr: true, tty: false };
        let answer = match upgrade(&mut request(method, pairs), wanted, Duration::ZERO) {
            Ok((answer, _)) => answer,
            Err(refused) => refused.answer(),
        };
        let names = ["sec-websocket-protocol", "x-stream-protocol-version", "x-accepted-stream-protocol-versions"];
        let shown = names.iter().flat_map(|name| listed(answer.headers(), name)).collect::<Vec<_>>().join(" ");
        (answer.status().as_u16(), shown)
    }

    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "x3JJHMbDL1EzLkh9GBhXDw=="),
    ];

    #[test]
    fn the_client_s_first_word_that_is_known_is_taken() {
        let websocket = |protocols: &[&'static str]| {
            let mut pairs = WEBSOCKET.to_vec();
            pairs.extend(protocols.iter().map(|protocol| ("sec-websocket-protocol", *protocol)));
            answer(Method::GET, &pairs)
        };
        assert_eq!(websocket(&["v9.channel.k8s.io, base64.channel.k8s.io", "v5.channel.k8s.io"]).1, "base64.channel.k8s.io");
        assert_eq!(websocket(&["v5.channel.k8s.io"]), (101, "v5.channel.k8s.io".to_owned()));
        assert_eq!(websocket(&[]), (101, String::new()));
        assert_eq!(websocket(&["v9.channel.k8s.io"]).0, 400);
        let spdy = |protocols: &[&'static str]| {
            let mut pairs = vec![("connection", "upgrade"), ("upgrade", "SPDY/3.1")];
            pairs.extend(protocols.iter().map(|protocol| ("x-stream-protocol-version", *protocol)));
            answer(Method::POST, &pairs)
        };
        assert_eq!(spdy(&["v5.channel.k8s.io, v4.channel.k8s.io"]), (101, "v4.channel.k8s.io".to_owned()));
        assert_eq!(spdy(&["v2.channel.k8s.io", "v4.channel.k8s.io"]).1, "v2.channel.k8s.io");
        assert_eq!(spdy(&["channel.k8s.io"]).1, "channel.k8s.io");
        assert_eq!(spdy(&[]).0, 400);
        let none = spdy(&["v5.channel.k8s.io"]);
        assert_eq!(none, (403, "v4.channel.k8s.io v3.channel.k8s.io v2.channel.k8s.io channel.k8s.io".to_owned()));
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        assert_eq!(answer(Method::POST, &WEBSOCKET).0, 400);
        assert_eq!(answer(Method::GET, &[]).0, 400);
        for missing in 0..WEBSOCKET.len() {
            let mut pairs = WEBSOCKET.to_vec();
            pairs.remove(missing);
            assert_eq!(answer(Method::GET, &pairs).0, 400, "{missing}");
        }
    }
}
