//! One request to the API server: within a time, an answer within a size, and a refusal that tells what to do about it.

use super::Connection;
use super::context::Context;
use crate::sys::clock;
use http_body_util::{BodyExt, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use serde_json::Value;
use std::sync::PoisonError;
use std::time::Duration;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, in bytes: what etcd takes at most, several times.
const LARGEST: usize = 8 << 20;

/// Formats of patches.
pub(super) const MERGE: &str = "application/merge-patch+json";
/// The same, by the rules of the object's lists.
pub(super) const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json";
/// Of each object only what it is called and how it stands.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json";

/// Why a request did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The API server said no.
    #[error("{message} ({code})")]
    Refused {
        /// HTTP status.
        code: u16,
        /// Of the `Status`; the code in words where there is none.
        message: String,
    },
    /// It said no, and when to ask again.
    #[error("{message} ({code})")]
    Later {
        /// HTTP status.
        code: u16,
        /// Of the `Status`; the code in words where there is none.
        message: String,
        /// Not before so long.
        after: Duration,
    },
    /// No answer, or half of one.
    #[error("no answer: {0}")]
    Lost(String),
}

impl Failure {
    /// Whether the object, or the namespace, does not exist.
    pub(super) fn is_missing(&self) -> bool {
        self.code() == 404
    }

    /// Whether there is one already, or it is not what it was.
    pub(super) fn is_conflict(&self) -> bool {
        self.code() == 409
    }

    /// Whether the same request may succeed later, as it is.
    pub(super) fn may_pass(&self) -> bool {
        // 401: a certificate is being renewed.
        matches!(self.code(), 0 | 401 | 408 | 429 | 500..)
    }

    /// HTTP status; 0 without an answer.
    pub(super) fn code(&self) -> u16 {
        match self {
            Failure::Refused { code, .. } | Failure::Later { code, .. } => *code,
            Failure::Lost(_) => 0,
        }
    }

    /// How long the API server asked to be left alone.
    pub(super) fn after(&self) -> Option<Duration> {
        match self {
            Failure::Later { after, .. } => Some(*after),
            Failure::Refused { .. } | Failure::Lost(_) => None,
        }
    }
}

/// An object as the API server has it.
pub(super) async fn get(connection: &Connection, path: &str) -> Result<Value, Failure> {
    send(connection, Method::GET, path, JSON, JSON, None).await
}

/// Objects as the API server has them, of each its metadata at least.
pub(super) async fn list_metadata(connection: &Connection, path: &str) -> Result<Value, Failure> {
    send(connection, Method::GET, path, METADATA, JSON, None).await
}

/// Creates an object.
pub(super) async fn post(connection: &Connection, path: &str, object: &Value) -> Result<Value, Failure> {
    send(connection, Method::POST, path, JSON, JSON, Some(object)).await
}

/// Replaces an object.
pub(super) async fn put(connection: &Connection, path: &str, object: &Value) -> Result<Value, Failure> {
    send(connection, Method::PUT, path, JSON, JSON, Some(object)).await
}

/// Changes an object by a patch of this format.
pub(super) async fn patch(
    connection: &Connection,
    path: &str,
    format: &'static str,
    patch: &Value,
) -> Result<Value, Failure> {
    send(connection, Method::PATCH, path, JSON, format, Some(patch)).await
}

/// Deletes a pod at once, if it is the one of this UID: an end that is told, not one that is asked for.
pub(super) async fn delete(connection: &Connection, path: &str, uid: &str) -> Result<Value, Failure> {
    let options = serde_json::json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": { "uid": uid },
    });
    send(connection, Method::DELETE, path, JSON, JSON, Some(&options)).await
}

/// Where a pod is.
pub(super) fn path_of(pod: &Pod) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("/api/v1/namespaces/{}/pods/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}

/// Waits for a turn, as the configuration allows them (`kubeAPIQPS`, `kubeAPIBurst`).
pub(super) async fn turn(context: &Context) {
    let wait = context.rate.lock().unwrap_or_else(PoisonError::into_inner).take(clock::now());
    if let Ok(wait) = Duration::try_from(wait)
        && !wait.is_zero()
    {
        tokio::time::sleep(wait).await;
    }
}

async fn send(
    connection: &Connection,
    method: Method,
    path: &str,
    accept: &'static str,
    format: &'static str,
    body: Option<&Value>,
) -> Result<Value, Failure> {
    let lost = |error: &dyn std::error::Error| Failure::Lost(crate::causes::chain(error));
    let body = body.map(ToString::to_string).unwrap_or_default().into_bytes();
    let request = Request::builder().method(method).uri(path).header(ACCEPT, accept).header(CONTENT_TYPE, format);
    let request = request.body(Body::from(body)).map_err(|error| lost(&error))?;
    let answer = async {
        let answer = connection.client.send(request).await.map_err(|error| lost(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LARGEST).collect().await.map_err(|error| lost(error.as_ref()))?;
        let after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(seconds);
        Ok((head.status.as_u16(), after, body.to_bytes()))
    };
    let (code, after, body) = tokio::time::timeout(TIMEOUT, answer)
        .await
        .map_err(|_| Failure::Lost(format!("none within {} s", TIMEOUT.as_secs())))??;
    match (read(code, &body), after) {
        (Err(Failure::Refused { code, message }), Some(after)) => Err(Failure::Later { code, message, after }),
        (result, _) => result,
    }
}

/// How long a `Retry-After` is; a date is of no use, as the clocks need not agree.
fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

/// What an answer says.
fn read(code: u16, body: &[u8]) -> Result<Value, Failure> {
    let value: Result<Value, _> = serde_json::from_slice(body);
    if (200..300).contains(&code) {
        return value.map_err(|error| Failure::Lost(format!("not understood: {error}")));
    }
    let message = value.ok().and_then(|status| status["message"].as_str().map(str::to_owned));
    let message = message.unwrap_or_else(|| "refused without a reason".to_owned());
    Err(Failure::Refused { code, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_answer_is_an_object_or_a_reason() {
        assert_eq!(read(201, br#"{"kind":"Node"}"#).unwrap()["kind"], "Node");
        let refused = read(404, br#"{"kind":"Status","message":"nodes \"n\" not found","code":404}"#).unwrap_err();
        assert_eq!(refused.to_string(), "nodes \"n\" not found (404)");
        assert!(refused.is_missing() && !refused.is_conflict() && !refused.may_pass());
        let proxy = read(502, b"<html>").unwrap_err();
        assert_eq!(proxy.to_string(), "refused without a reason (502)");
        assert!(proxy.may_pass());
        assert!(read(200, b"<html>").unwrap_err().may_pass());
    }

    #[test]
    fn who_says_when_to_come_back_is_heard() {
        assert_eq!(seconds(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:00 GMT"), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_read(code in 0_u16..1000, body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let read = read(code, &body);
            prop_assert!(read.is_err() || (200..300).contains(&code));
        }
    }
}
