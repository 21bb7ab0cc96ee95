//! One request to the API server: within a time, a size and the rate that the configuration allows.

use super::Connection;
use super::context::Context;
use crate::causes::chain;
use crate::sys::clock;
use http_body_util::{BodyExt, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use serde::Deserialize;
use serde_json::Value;
use std::sync::PoisonError;
use std::time::Duration;

/// How long an answer may take.
const TIME: Duration = Duration::from_secs(30);
/// How large it may be, in bytes: an object of the largest size that etcd takes, several times.
const LIMIT: usize = 8 * 1024 * 1024;

/// Why a request came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Error {
    /// There was no answer.
    #[error("{0}")]
    Unreachable(String),
    /// The API server said no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// `reason` of the answer (`NotFound`, `AlreadyExists`, …).
        reason: String,
        /// For people.
        message: String,
        /// Not before so long.
        retry_after: Option<Duration>,
    },
}

impl Error {
    /// The HTTP status; `None` without an answer.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Error::Unreachable(_) => None,
            Error::Refused { code, .. } => Some(*code),
        }
    }

    /// How long the API server asked to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Unreachable(_) => None,
            Error::Refused { retry_after, .. } => *retry_after,
        }
    }
}

/// What is in an answer that says no.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    message: Option<String>,
    reason: Option<String>,
}

/// Where a pod is.
pub(super) fn path(pod: &Pod) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("/api/v1/namespaces/{}/pods/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}

/// Deletes a pod at once, if it is the one of this UID: an end that is told, not one that is asked for.
pub(super) async fn delete(context: &Context, connection: &Connection, path: &str, uid: &str) -> Result<(), Error> {
    let body = serde_json::json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": { "uid": uid },
    });
    send(context, connection, Method::DELETE, path, "application/json", &body).await.map(drop)
}

/// Sends a document, when it is its turn, and returns the answer.
pub(super) async fn send(
    context: &Context,
    connection: &Connection,
    method: Method,
    path: &str,
    media_type: &'static str,
    body: &Value,
) -> Result<Vec<u8>, Error> {
    let wait = context.rate.lock().unwrap_or_else(PoisonError::into_inner).take(clock::now());
    if let Ok(wait) = Duration::try_from(wait)
        && !wait.is_zero()
    {
        tokio::time::sleep(wait).await;
    }
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, media_type)
        .body(Body::from(body.to_string().into_bytes()))
        .map_err(|error| Error::Unreachable(chain(&error)))?;
    let exchange = async {
        let answer = connection.client.send(request).await.map_err(|error| Error::Unreachable(chain(&error)))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LIMIT).collect().await;
        let body = body.map_err(|error| Error::Unreachable(error.to_string()))?.to_bytes();
        if head.status.is_success() {
            return Ok(body.to_vec());
        }
        let after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        Err(refusal(head.status.as_u16(), after, &body))
    };
    match tokio::time::timeout(TIME, exchange).await {
        Ok(result) => result,
        Err(_) => Err(Error::Unreachable(format!("no answer within {} s", TIME.as_secs()))),
    }
}

/// What an answer other than success means.
fn refusal(code: u16, retry_after: Option<&str>, body: &[u8]) -> Error {
    let status: Status = serde_json::from_slice(body).unwrap_or_default();
    // A date is of no use: the clocks need not agree.
    let retry_after = retry_after.and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
    Error::Refused {
        code,
        reason: status.reason.unwrap_or_default(),
        message: status.message.unwrap_or_else(|| format!("the API server answers with status {code}")),
        retry_after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_refusal_says_why_and_when_to_come_back() {
        let body = br#"{"kind":"Status","status":"Failure","message":"slow down","reason":"TooManyRequests","code":429}"#;
        let error = refusal(429, Some(" 7 "), body);
        assert_eq!((error.code(), error.retry_after()), (Some(429), Some(Duration::from_secs(7))));
        assert_eq!(error.to_string(), "slow down");
        let error = refusal(502, Some("Wed, 21 Oct 2015 07:28:00 GMT"), b"<html>");
        assert_eq!((error.to_string().as_str(), error.retry_after()), ("the API server answers with status 502", None));
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(body in proptest::collection::vec(any::<u8>(), 0..200), after in ".{0,20}") {
            prop_assert_eq!(refusal(500, Some(&after), &body).code(), Some(500));
        }
    }
}
