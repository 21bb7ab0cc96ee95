//! Answers: bodies, JSON, and errors as v1 `Status`.

use super::types::{Cause, Status, StatusDetails};
use futures_util::stream::unfold;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use std::io;
use tokio::sync::mpsc;

/// Body of an answer; an error cuts the connection so that a reader cannot take half a stream for whole.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
/// Answer to a request.
pub(super) type Reply = Response<Body>;

/// A refusal: becomes a v1 `Status`.
#[derive(Debug)]
pub(crate) struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
    causes: Vec<Cause>,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure { code, reason, message: message.into(), causes: Vec::new() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn unauthorized(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub(super) fn method(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub(super) fn conflict(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::CONFLICT, "Conflict", message)
    }

    pub(super) fn already_exists(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::CONFLICT, "AlreadyExists", message)
    }

    pub(super) fn not_acceptable(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub(super) fn unsupported_type(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub(super) fn gone(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::GONE, "Expired", message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    pub(super) fn timeout(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::REQUEST_TIMEOUT, "Timeout", message)
    }

    pub(super) fn invalid(message: impl Into<String>, causes: Vec<Cause>) -> Failure {
        Failure { causes, ..Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message) }
    }

    pub(super) fn internal(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.code == StatusCode::NOT_FOUND
    }

    /// The v1 `Status` object.
    pub(crate) fn status(self) -> serde_json::Value {
        let details = (!self.causes.is_empty()).then_some(StatusDetails { causes: self.causes });
        let status = Status {
            status: "Failure".to_owned(),
            message: self.message,
            reason: self.reason.to_owned(),
            code: self.code.as_u16(),
            details,
        };
        let mut value = serde_json::to_value(status).unwrap_or_default();
        value["kind"] = "Status".into();
        value["apiVersion"] = "v1".into();
        value["metadata"] = serde_json::json!({});
        if value["details"].is_null() {
            // As the API server: kubectl looks into it without asking whether it is there.
            value["details"] = serde_json::json!({});
        }
        value
    }

    /// As the kubelet refuses: the message alone.
    pub(super) fn into_text(self) -> Reply {
        let code = self.code;
        with_type(code, "text/plain; charset=utf-8", bytes(self.message))
    }

    pub(super) fn into_reply(self) -> Reply {
        let code = self.code;
        with_type(code, "application/json", bytes(format!("{}\n", self.status())))
    }
}

/// A body of bytes that are all there.
pub(super) fn bytes(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that lasts until the sender is dropped.
pub(super) fn stream(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    let frames = unfold(receiver, |mut receiver| async move {
        let next = receiver.recv().await?;
        Some((next.map(Frame::data), receiver))
    });
    StreamBody::new(frames).boxed_unsync()
}

pub(super) fn with_type(code: StatusCode, content_type: &'static str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = code;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

pub(super) fn text(content: impl Into<Bytes>) -> Reply {
    with_type(StatusCode::OK, "text/plain; charset=utf-8", bytes(content))
}

pub(super) fn json(value: &impl Serialize) -> Result<Reply, Failure> {
    let mut content = serde_json::to_vec(value).map_err(|error| Failure::internal(error.to_string()))?;
    content.push(b'\n');
    Ok(with_type(StatusCode::OK, "application/json", bytes(content)))
}

/// Runs blocking work on the blocking pool.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::internal(format!("worker failed: {error}")))
}
