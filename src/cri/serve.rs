//! The socket: HTTP/2 in clear, calls within limits of number, size and time.

use super::grpc::{self, Code, Reply, Status};
use super::methods::Methods;
use crate::server::{Listener, Node};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 32;
/// Most calls at once on a connection.
const MAX_CALLS: u32 = 16;
/// How long a client may take for a request's message.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long a connection may stay without a new call, unless one is under way: clients connect anew by themselves.
const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take to leave when it is asked to, and for the rest of an answer.
const PARTING: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const MAX_HEAD: u32 = 16 * 1024;

/// Serves the CRI of the node until `shutdown` turns true or its sender is gone, then removes the socket.
pub async fn serve(node: Arc<dyn Node>, listener: Listener, mut shutdown: watch::Receiver<bool>) {
    let methods = Arc::new(Methods::new(node));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = asked_to_stop(&mut shutdown) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.socket().accept() => match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(connection(Arc::clone(&methods), stream));
                }
                // A client finds its connection closed, and tries again.
                Ok(_) => {}
                Err(error) => {
                    // Out of file descriptors: trying at once again would spin.
                    tracing::warn!(%error, "cannot accept a connection of the CRI");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    listener.remove();
}

async fn asked_to_stop(shutdown: &mut watch::Receiver<bool>) {
    // An error is a dropped sender: the agent is going down too.
    let _ = shutdown.wait_for(|down| *down).await;
}

/// How many calls of a connection are under way; each change is seen.
type Busy = Arc<watch::Sender<usize>>;

/// Counts a call as long as it lasts.
struct Guard(Busy);

impl Guard {
    fn new(busy: &Busy) -> Guard {
        busy.send_modify(|calls| *calls += 1);
        Guard(Arc::clone(busy))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

async fn connection(methods: Arc<Methods>, stream: UnixStream) {
    let busy: Busy = Arc::new(watch::Sender::new(0));
    let calls = busy.subscribe();
    let service = service_fn(move |request| {
        let (methods, guard) = (Arc::clone(&methods), Guard::new(&busy));
        async move {
            let _guard = guard;
            Ok::<_, Infallible>(call(&methods, request).await)
        }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CALLS)
        .max_header_list_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = idle(calls) => {
            served.as_mut().graceful_shutdown();
            match tokio::time::timeout(PARTING, served).await {
                Ok(ended) => ended,
                Err(_) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the CRI ended");
    }
}

/// Until no call was begun or under way for long.
async fn idle(mut calls: watch::Receiver<usize>) {
    loop {
        match tokio::time::timeout(IDLE, calls.changed()).await {
            Ok(Ok(())) => {}
            Err(_) if *calls.borrow() > 0 => {}
            // An error is a dropped sender, which the connection owns.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

async fn call(methods: &Arc<Methods>, request: Request<Incoming>) -> Response<Reply> {
    match grpc::refusal(&request) {
        Some(code) => grpc::plain(code),
        None => grpc::response(answer(methods, request).await),
    }
}

async fn answer(methods: &Arc<Methods>, request: Request<Incoming>) -> Result<Bytes, Status> {
    let limit = grpc::timeout(request.headers())?;
    let path = request.uri().path().to_owned();
    let work = async {
        let body = Limited::new(request.into_body(), grpc::MAX_REQUEST).collect();
        let body = match tokio::time::timeout(REQUEST_TIME, body).await {
            Err(_) => return Err(Status::new(Code::DeadlineExceeded, "the request did not arrive in time")),
            Ok(Err(error)) => return Err(Status::new(Code::ResourceExhausted, format!("the request: {error}"))),
            Ok(Ok(body)) => body.to_bytes(),
        };
        methods.call(&path, grpc::unframe(&body)?).await
    };
    let late = |_| Err(Status::new(Code::DeadlineExceeded, "context deadline exceeded"));
    match limit {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(late),
    }
}
