//! Where a client streams what it was given an address for: a listener on 127.0.0.1 that is there only while somebody was
//! given one, and knows nobody but by an address that counts once.
//!
//! Who else is on the machine may connect, too: the address has 128 random bits, for a minute, until the first request with
//! it.

use super::grpc::{Code, Status};
use crate::causes::chain;
use crate::shim::exec::{Options, Target};
use crate::stream::forward::{self, Place};
use crate::stream::{self, Client, Refused, Wanted, command};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How long an address counts (as containerd).
const VALID: Duration = Duration::from_secs(60);
/// Most addresses that wait for their client.
const MAX_WAITING: usize = 256;
/// Most connections that have not switched protocols yet.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for a request's head.
const HEADER_TIME: Duration = Duration::from_secs(15);
/// Random bytes of an address.
const TOKEN: usize = 16;

/// What a client is to stream.
pub(super) enum Order {
    /// A command.
    Exec { target: Target, options: Options, wanted: Wanted },
    /// A container's own streams.
    Attach { target: Target, wanted: Wanted },
    /// Ports of a pod.
    Ports(Place),
}

impl Order {
    fn word(&self) -> &'static str {
        match self {
            Order::Exec { .. } => "exec",
            Order::Attach { .. } => "attach",
            Order::Ports(_) => "portforward",
        }
    }
}

/// Addresses that were given out.
pub(super) struct Streams {
    waiting: Mutex<Waiting>,
    /// How long a stream may be silent; zero: for ever.
    idle: Duration,
}

#[derive(Default)]
struct Waiting {
    orders: HashMap<String, (Instant, Order)>,
    /// Where the listener is, while there is one.
    at: Option<SocketAddr>,
}

impl Streams {
    pub(super) fn new(idle: Duration) -> Streams {
        Streams { waiting: Mutex::default(), idle }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address where this is streamed, once.
    pub(super) async fn address(self: &Arc<Self>, order: Order) -> Result<String, Status> {
        let mut token = [0; TOKEN];
        let failed = |_| Status::new(Code::Internal, "there are no random numbers");
        SystemRandom::new().fill(&mut token).map_err(failed)?;
        let token = URL_SAFE_NO_PAD.encode(token);
        let word = order.word();
        let at = loop {
            let known = self.lock().at;
            // Bound without the lock: two who come at once may both do so, and one of them in vain.
            let fresh = if known.is_none() { Some(bind().await?) } else { None };
            let mut waiting = self.lock();
            let at = match (waiting.at, fresh) {
                (Some(at), _) => at,
                (None, Some((listener, at))) => {
                    waiting.at = Some(at);
                    stream::spawn(Arc::clone(self).listen(listener));
                    at
                }
                // It went away between the two looks, as nobody was expected.
                (None, None) => continue,
            };
            waiting.orders.retain(|_, (given, _)| given.elapsed() < VALID);
            if waiting.orders.len() >= MAX_WAITING {
                return Err(Status::new(Code::ResourceExhausted, "too many streams wait for their clients"));
            }
            waiting.orders.insert(token.clone(), (Instant::now(), order));
            break at;
        };
        Ok(format!("http://{at}/{word}/{token}"))
    }

    /// Takes what an address stands for; the second who asks for it gets nothing.
    fn take(&self, path: &str) -> Option<Order> {
        let (word, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut waiting = self.lock();
        waiting.orders.retain(|_, (given, _)| given.elapsed() < VALID);
        // As long as the comparison of hashes takes, which says nothing of the token.
        match waiting.orders.get(token) {
            Some((_, order)) if order.word() == word => waiting.orders.remove(token).map(|(_, order)| order),
            _ => None,
        }
    }

    /// Whether nobody is expected any more; the listener is forgotten then.
    fn is_done(&self) -> bool {
        let mut waiting = self.lock();
        waiting.orders.retain(|_, (given, _)| given.elapsed() < VALID);
        if waiting.orders.is_empty() {
            waiting.at = None;
        }
        waiting.at.is_none()
    }

    /// Serves connections until nobody is expected.
    async fn listen(self: Arc<Self>, listener: std::net::TcpListener) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                self.lock().at = None;
                return tracing::warn!(%error, "cannot listen for streams of the CRI");
            }
        };
        let mut connections = JoinSet::new();
        let mut look = tokio::time::interval_at(tokio::time::Instant::now() + VALID, VALID);
        loop {
            tokio::select! {
                _ = look.tick() => if self.is_done() { break },
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                        connections.spawn(Arc::clone(&self).connection(stream));
                    }
                    // Closed: it is no client of ours, or tries again.
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a stream of the CRI");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(listener);
        // Those that have come are answered.
        while connections.join_next().await.is_some() {}
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(|request| {
            let answer = self.answer(request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a connection for a stream of the CRI ended");
        }
    }

    /// Answers a request: with the switch of protocols, and the stream after it, when it is expected.
    fn answer(&self, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Some(order) = self.take(request.uri().path()) else {
            return plain(StatusCode::NOT_FOUND, "nothing is streamed here: an address counts once, for a minute\n");
        };
        let upgraded = match order {
            Order::Exec { target, options, wanted } => {
                self.switch(&mut request, wanted, |session| command::exec(target, options, session))
            }
            Order::Attach { target, wanted } => {
                self.switch(&mut request, wanted, |session| command::attach(target, session))
            }
            Order::Ports(place) => self.forward(&mut request, place),
        };
        match upgraded {
            Ok(answer) => answer.map(|()| Full::default()),
            Err(refused) => refused.answer().map(|()| Full::from(format!("{refused}\n"))),
        }
    }

    fn forward(&self, request: &mut Request<Incoming>, place: Place) -> Result<Response<()>, Refused> {
        let (answer, client) = forward::upgrade(request, self.idle)?;
        stream::spawn(client.serve(place));
        Ok(answer)
    }

    fn switch<F>(
        &self,
        request: &mut Request<Incoming>,
        wanted: Wanted,
        serve: impl FnOnce(stream::Session) -> F + Send + 'static,
    ) -> Result<Response<()>, Refused>
    where
        F: Future<Output = ()> + Send,
    {
        let (answer, client): (_, Client) = stream::upgrade(request, wanted, self.idle)?;
        stream::spawn(async move {
            match client.session().await {
                Ok(session) => serve(session).await,
                Err(error) => tracing::debug!(error = chain(&error), "CRI: there is no session"),
            }
        });
        Ok(answer)
    }
}

/// A free port; the listener is handed to the loop that serves it.
async fn bind() -> Result<(std::net::TcpListener, SocketAddr), Status> {
    let bound = async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.into_std()?;
        let at = listener.local_addr()?;
        Ok::<_, std::io::Error>((listener, at))
    };
    let failed = |error| Status::new(Code::Unavailable, format!("cannot listen for streams: {error}"));
    bound.await.map_err(failed)
}

fn plain(code: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = code;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_counts_once_for_what_it_was_given_for() {
        let streams = Streams::new(Duration::ZERO);
        let target = Target { state_root: "/s".into(), id: "c".into(), bundle: "/b".into() };
        let wanted = Wanted { stdin: false, stdout: true, stderr: false, tty: false };
        streams.lock().at = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        streams.lock().orders.insert("t0".into(), (Instant::now(), Order::Attach { target, wanted }));
        for wrong in ["", "/", "/attach", "/attach/", "/attach/t", "/attach/t01", "/exec/t0", "attach/t0", "//t0"] {
            assert!(streams.take(wrong).is_none(), "{wrong}");
        }
        assert!(!streams.is_done());
        assert!(matches!(streams.take("/attach/t0"), Some(Order::Attach { .. })));
        assert!(streams.take("/attach/t0").is_none());
        assert!(streams.is_done());
    }
}
