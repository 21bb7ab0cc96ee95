//! `grpc`: `grpc.health.v1.Health/Check` over HTTP/2 in clear. Whatever goes wrong is a failure (as kubelet).

use super::connect::connect;
use super::health_proto::{self as proto, Status};
use super::{Answer, Target, address, words};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::GRPCAction;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// Longest answer in bytes: the real one has seven.
const MAX_ANSWER: usize = 64 * 1024;
/// `UNIMPLEMENTED`
const UNIMPLEMENTED: u32 = 12;
/// `DEADLINE_EXCEEDED`
const DEADLINE_EXCEEDED: u32 = 4;

/// Runs what a connection needs beside it, and ends it with the connection.
#[derive(Clone, Default)]
struct Beside(Arc<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Beside
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
            future.await;
        });
    }
}

/// Why there was no health.
enum Error {
    /// A gRPC status other than OK.
    Status(u32, String),
    /// What came is no gRPC.
    Protocol(String),
}

pub(super) async fn probe(action: &GRPCAction, target: &Target, timeout: Duration) -> Answer {
    let Some(port) = u16::try_from(action.port).ok().filter(|&port| port > 0) else {
        return Answer::Error(format!("invalid port number: {}", action.port));
    };
    let host = address::host(None, target);
    let address = address::join(&host, port);
    let Some(request) = proto::request(action.service.as_deref().unwrap_or_default()) else {
        return Answer::Error("the service's name is too long".to_owned());
    };
    let deadline = tokio::time::Instant::now() + timeout;
    // Dropped, and all that it runs with it, when this function is left.
    let beside = Beside::default();
    let dial = async {
        let stream = connect(&host, port).await?;
        let (sender, connection) = http2::Builder::new(beside.clone())
            .max_header_list_size(16 * 1024)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| crate::runtime::chain(&error))?;
        hyper::rt::Executor::execute(&beside, async {
            // Its error is the request's.
            let _ = connection.await;
        });
        Ok::<_, String>(sender)
    };
    let sender = match tokio::time::timeout_at(deadline, dial).await {
        Ok(Ok(sender)) => sender,
        Ok(Err(error)) => {
            return Answer::Failure(format!("error: failed to connect service at {address:?}: {error}"));
        }
        Err(_) => {
            let timeout = words(timeout);
            return Answer::Failure(format!(
                "timeout: failed to connect service {address:?} within {timeout}: context deadline exceeded"
            ));
        }
    };
    let late = || Answer::Failure(format!("timeout: health rpc did not complete within {}", words(timeout)));
    match tokio::time::timeout_at(deadline, check(sender, &address, request, timeout)).await {
        Err(_) => late(),
        Ok(Ok(Status::SERVING)) => Answer::Success,
        Ok(Ok(status)) => Answer::Failure(format!("service unhealthy (responded with \"{status}\")")),
        Ok(Err(Error::Status(DEADLINE_EXCEEDED, _))) => late(),
        Ok(Err(Error::Status(UNIMPLEMENTED, message))) => Answer::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        )),
        Ok(Err(Error::Status(code, message))) => {
            let name = code_name(code);
            Answer::Failure(format!("error: health rpc probe failed: rpc error: code = {name} desc = {message}"))
        }
        Ok(Err(Error::Protocol(text))) => Answer::Failure(format!("error: health rpc probe failed: {text}")),
    }
}

async fn check(
    mut sender: http2::SendRequest<Full<Bytes>>,
    address: &str,
    message: Vec<u8>,
    timeout: Duration,
) -> Result<Status, Error> {
    let protocol = |error: &hyper::Error| Error::Protocol(crate::runtime::chain(error));
    let mut request = Request::new(Full::new(Bytes::from(message)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("http://{address}/grpc.health.v1.Health/Check")
        .parse()
        .map_err(|_| Error::Protocol(format!("invalid address {address:?}")))?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, HeaderValue::from_static("kube-probe/1.36"));
    if let Ok(value) = HeaderValue::try_from(format!("{}m", timeout.as_millis().min(99_999_999))) {
        headers.insert(HeaderName::from_static("grpc-timeout"), value);
    }
    let response = sender.send_request(request).await.map_err(|e| protocol(&e))?;
    let (head, body) = response.into_parts();
    // An answer without a message has its status in the head.
    if let Some(error) = refusal(&head.headers)? {
        return Err(error);
    }
    if head.status != StatusCode::OK {
        return Err(Error::Protocol(format!("unexpected HTTP status code received from server: {}", head.status)));
    }
    let (bytes, trailers) = read(body).await?;
    match refusal(&trailers)? {
        Some(error) => Err(error),
        None => proto::response(&bytes).map_err(|error| Error::Protocol(error.to_string())),
    }
}

async fn read(mut body: Incoming) -> Result<(Vec<u8>, HeaderMap), Error> {
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::Protocol(crate::runtime::chain(&error)))?;
        match frame.into_data() {
            Ok(data) if bytes.len() + data.len() > MAX_ANSWER => {
                return Err(Error::Protocol("the answer is too long".to_owned()));
            }
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok((bytes, trailers))
}

/// A `grpc-status` other than 0, if there is one.
fn refusal(headers: &HeaderMap) -> Result<Option<Error>, Error> {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let Some(status) = text("grpc-status") else { return Ok(None) };
    let code: u32 = status.parse().map_err(|_| Error::Protocol(format!("malformed grpc-status {status:?}")))?;
    Ok((code != 0).then(|| Error::Status(code, text("grpc-message").unwrap_or_default())))
}

fn code_name(code: u32) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    name.map_or_else(|| format!("Code({code})"), |name| (*name).to_owned())
}
