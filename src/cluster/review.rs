//! Who somebody is, and what they may do, as the API server says: TokenReview and SubjectAccessReview.

use super::Connection;
use super::request::{self, Failure};
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

const TOKENS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// Somebody who was recognised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// What tells them from earlier ones of that name; may be empty.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// More about them, for whoever decides.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What somebody wants to do with this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access<'a> {
    /// `get`, `create`, …; empty for methods that have no verb.
    pub verb: &'a str,
    /// Name of the Node.
    pub node: &'a str,
    /// Subresource of `nodes`.
    pub subresource: &'a str,
}

/// Why the API server did not say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The node is in no cluster.
    #[error("there is no API server to ask")]
    Alone,
    /// No answer, or an answer that is no review.
    #[error("{0}")]
    Request(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::Request(failure.to_string())
    }
}

/// How to ask the API server who somebody is. Stands for one set of credentials: what was answered over another counts no
/// more.
#[derive(Clone)]
pub struct Reviewer {
    pub(super) connection: Connection,
    /// Grows with each set of credentials.
    pub epoch: u64,
    /// The cluster's authorities, if the kubeconfig names them.
    pub authorities: Arc<Vec<CertificateDer<'static>>>,
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviewer").field("server", &self.connection.server).field("epoch", &self.epoch).finish()
    }
}

impl Reviewer {
    /// Whose token this is; `None`: nobody's.
    ///
    /// # Errors
    /// When the API server does not answer within 10 s, or not with a review. The token is not in them.
    pub async fn token(&self, token: &str) -> Result<Option<User>, Error> {
        let asked = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "metadata": {},
            "spec": {"token": token},
        });
        let answer = request::post(&self.connection, TOKENS, &asked).await.map_err(Error::from)?;
        whose(&answer)
    }

    /// Whether the user may do that.
    ///
    /// # Errors
    /// When the API server does not answer within 10 s, or not with a review.
    pub async fn access(&self, user: &User, access: Access<'_>) -> Result<bool, Error> {
        let answer = request::post(&self.connection, ACCESS, &question(user, access)).await.map_err(Error::from)?;
        may(&answer)
    }
}

/// What a TokenReview says.
fn whose(review: &Value) -> Result<Option<User>, Error> {
    let status = review["status"].as_object().ok_or_else(|| Error::Request("not a TokenReview".to_owned()))?;
    if status.get("authenticated") != Some(&Value::Bool(true)) {
        return match status.get("error").and_then(Value::as_str).filter(|error| !error.is_empty()) {
            // As kubelet: it could not be found out, which is not the same as no.
            Some(error) => Err(Error::Request(error.chars().take(200).collect())),
            None => Ok(None),
        };
    }
    let user = &status.get("user").cloned().unwrap_or_default();
    let text = |field: &str| user[field].as_str().unwrap_or_default().to_owned();
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let name = text("username");
    if name.is_empty() {
        return Err(Error::Request("a TokenReview without a name".to_owned()));
    }
    let extra = user["extra"].as_object().map(|extra| {
        let read = |(key, value): (&String, &Value)| (key.clone(), texts(value));
        extra.iter().map(read).collect()
    });
    Ok(Some(User { name, uid: text("uid"), groups: texts(&user["groups"]), extra: extra.unwrap_or_default() }))
}

/// The SubjectAccessReview that asks it.
fn question(user: &User, access: Access<'_>) -> Value {
    let mut spec = Map::new();
    spec.insert(
        "resourceAttributes".to_owned(),
        json!({
            "verb": access.verb,
            "version": "v1",
            "resource": "nodes",
            "subresource": access.subresource,
            "name": access.node,
        }),
    );
    spec.insert("user".to_owned(), json!(user.name));
    if !user.uid.is_empty() {
        spec.insert("uid".to_owned(), json!(user.uid));
    }
    if !user.groups.is_empty() {
        spec.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".to_owned(), json!(user.extra));
    }
    json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "metadata": {},
        "spec": spec,
    })
}

/// What a SubjectAccessReview says. Neither yes nor no is no (as kubelet), also where a reviewer had trouble besides.
fn may(review: &Value) -> Result<bool, Error> {
    let status = review["status"].as_object().ok_or_else(|| Error::Request("not a SubjectAccessReview".to_owned()))?;
    let is = |field: &str| status.get(field) == Some(&Value::Bool(true));
    Ok(is("allowed") && !is("denied"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_review_names_a_user_or_nobody() {
        let review = json!({"status": {"authenticated": true, "user": {
            "username": "system:serviceaccount:a:b", "uid": "u", "groups": ["g", "h"], "extra": {"k/x": ["1"]},
        }}});
        let user = User {
            name: "system:serviceaccount:a:b".to_owned(),
            uid: "u".to_owned(),
            groups: vec!["g".to_owned(), "h".to_owned()],
            extra: BTreeMap::from([("k/x".to_owned(), vec!["1".to_owned()])]),
        };
        assert_eq!(whose(&review), Ok(Some(user)));
        assert_eq!(whose(&json!({"status": {}})), Ok(None));
        assert_eq!(whose(&json!({"status": {"authenticated": "true"}})), Ok(None));
        for wrong in [
            json!({"status": {"authenticated": false, "error": "down"}}),
            json!({"status": {"authenticated": true, "user": {"username": ""}}}),
            json!({"status": {"authenticated": true}}),
            json!({"kind": "TokenReview"}),
            json!(null),
        ] {
            assert!(whose(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn access_is_asked_for_as_the_kubelet_asks() {
        let user = User { name: "ann".to_owned(), groups: vec!["g".to_owned()], ..User::default() };
        let asked = question(&user, Access { verb: "get", node: "edge-1", subresource: "proxy" });
        assert_eq!(
            asked["spec"],
            json!({
                "user": "ann",
                "groups": ["g"],
                "resourceAttributes":
                    {"verb": "get", "version": "v1", "resource": "nodes", "subresource": "proxy", "name": "edge-1"},
            })
        );
    }

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        for (status, allowed) in [
            (json!({"allowed": true}), true),
            (json!({"allowed": true, "denied": true}), false),
            (json!({"allowed": false}), false),
            (json!({"allowed": "true"}), false),
            (json!({"evaluationError": "x"}), false),
        ] {
            assert_eq!(may(&json!({ "status": status })), Ok(allowed), "{status}");
        }
        assert!(may(&json!({})).is_err());
    }

    proptest! {
        #[test]
        fn any_answer_is_read(text in "\\PC{0,40}", flag: bool) {
            let review = json!({"status": {"authenticated": flag, "allowed": &text, "user": {"username": &text}, "error": text}});
            let _ = whose(&review);
            prop_assert_eq!(may(&review), Ok(false));
        }
    }
}
