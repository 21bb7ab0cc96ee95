//! The local Kubernetes API: what kubectl needs of an API server, on a node that has none.
//!
//! ```text
//! method, path ─ asked ─▶ Asked ─ access ─▶ discovery · openapi · list ─▶ table ─▶ JSON
//!                                                        │         └ watch
//!                                                        └ write ─▶ patch ─▶ a file of the manifest directory
//! ```
//!
//! It shows what the node has, and keeps nothing: what is created is a manifest, what is deleted is a manifest that goes.

mod accept;
mod access;
mod asked;
mod discovery;
mod list;
mod object;
mod openapi;
mod patch;
mod protobuf;
mod resource;
mod selector;
mod table;
mod watch;
mod write;

pub(super) use access::{ADMINS, READERS, Who, check, check_identity};
pub(super) use asked::{Asked, asked};
pub(super) use resource::Resource;
pub(super) use selector::{Fields, Selector};
pub use watch::Lists;

use super::Node;
use super::http::Sent;
use super::reply::{self, Failure, Reply};
use super::route::Query;
use crate::manifest;
use asked::{Objects, Review, Verb};
use hyper::header::ACCEPT;
use hyper::{HeaderMap, StatusCode};
use list::Scope;
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers what was asked. `who`: through which door it came, `None`: the socket, whose owner may do everything.
pub(super) async fn answer(
    node: Arc<dyn Node>,
    who: Option<Who>,
    asked: Asked,
    query: &Query,
    sent: Sent,
) -> Result<Reply, Failure> {
    let accept = header(&sent.headers, ACCEPT);
    match asked {
        Asked::Version => reply::json(&version(node.as_ref())),
        Asked::Core if accept::wants_all(accept) => all(true),
        Asked::Core => reply::json(&discovery::core()),
        Asked::Groups if accept::wants_all(accept) => all(false),
        Asked::Groups => reply::json(&discovery::groups()),
        Asked::Group(group) => reply::json(&discovery::group(&group)?),
        Asked::Resources { group, version } => reply::json(&discovery::resources(&group, &version)?),
        Asked::OpenApi2 if accept.is_some_and(|types| types.trim_start().starts_with("application/json")) => {
            reply::json(&openapi::v2_json())
        }
        Asked::OpenApi2 => Ok(reply::with_type(StatusCode::OK, openapi::V2_TYPE, reply::bytes(openapi::v2()))),
        Asked::OpenApi3(None) => reply::json(&openapi::v3()),
        Asked::OpenApi3(Some(of)) => reply::json(&openapi::v3_of(&of)?),
        Asked::Review(review) => answer_review(who, review, sent).await,
        Asked::Objects(objects) => answer_objects(node, who, objects, query, sent).await,
    }
}

async fn answer_objects(
    node: Arc<dyn Node>,
    who: Option<Who>,
    asked: Objects,
    query: &Query,
    sent: Sent,
) -> Result<Reply, Failure> {
    // The socket's clients want real names, and sizes in words.
    let for_kubectl = who.is_some();
    let shape = accept::shape(header(&sent.headers, ACCEPT), query.get("includeObject"))?;
    match (asked.verb, &asked.name) {
        (Verb::Read, None) => list::list(Scope::new(node, &asked, shape, query, for_kubectl)?, query),
        (Verb::Read, Some(name)) => list::get(&node, &asked, name, shape, for_kubectl),
        _ => write::write(write::Request { node, asked, query, shape, for_kubectl }, sent).await,
    }
}

fn header(headers: &HeaderMap, name: hyper::header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A body in JSON, or in YAML, which has room for it.
///
/// # Errors
/// 415 for another type, 400 for what is no single document.
fn document(kind: &str, body: &[u8]) -> Result<Value, Failure> {
    if !matches!(kind, "" | "application/json" | "application/yaml") {
        return Err(Failure::unsupported_type(format!("the body is {kind:?}: want application/json")));
    }
    one_document(body)
}

/// The one document of a text.
fn one_document(text: &[u8]) -> Result<Value, Failure> {
    let mut documents = manifest::documents(text).map_err(|problem| Failure::bad_request(problem.to_string()))?;
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) => Ok(document),
        _ => Err(Failure::bad_request("the body has to be one object")),
    }
}

/// All of discovery in one.
fn all(of_core: bool) -> Result<Reply, Failure> {
    const TYPE: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    Ok(reply::with_type(StatusCode::OK, TYPE, reply::bytes(discovery::all(of_core).to_string())))
}

/// The Kubernetes that this node is like.
fn version(node: &dyn Node) -> Value {
    let info = node.node().status.and_then(|status| status.node_info).unwrap_or_default();
    let full = info.kubelet_version;
    let mut parts = full.trim_start_matches('v').splitn(3, '.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    json!({
        "major": major, "minor": minor, "gitVersion": full, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", info.architecture),
    })
}

async fn answer_review(who: Option<Who>, review: Review, sent: Sent) -> Result<Reply, Failure> {
    let who = who.unwrap_or(Who::Admin { changes: true });
    let (kind, body) = sent.body().await?;
    let unread = || Failure::bad_request("the body is no review");
    let body = match kind.as_str() {
        protobuf::TYPE => protobuf::review(&body).ok_or_else(unread)?,
        kind => document(kind, &body)?,
    };
    let answer = match review {
        Review::Access => access::review(who, &body, discovery::verbs),
        Review::Rules => access::rules(who, &body),
        Review::Subject => access::subject(who),
    };
    let mut reply = reply::json(&answer)?;
    *reply.status_mut() = StatusCode::CREATED;
    Ok(reply)
}
