//! A request in, an answer out.

use super::apply::MAX_MANIFEST;
use super::reply::{self, Body, Failure, Reply, blocking};
use super::route::{Query, Route, route};
use super::types::NodeSummary;
use super::{Node, apply, cluster, exec, forward, history, images, kube, kubelet, local, log, page, usage, verify};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method, Request, StatusCode};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Who may ask what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The socket, root's: everything.
    Socket,
    /// Loopback: health and metrics.
    Loopback,
    /// Loopback: the status page.
    Page,
    /// The local Kubernetes API: what the certificate allows.
    Local(kube::Who),
    /// The kubelet's port without authentication: health, pods and metrics.
    ReadOnly,
}

/// Answers a request; never fails, a refusal is an answer too.
pub(super) async fn handle(
    node: Arc<dyn Node>,
    door: Door,
    request: Request<Incoming>,
) -> Result<hyper::Response<Body>, Infallible> {
    let _counted = node.requests().begin(request.method(), request.uri().path(), door == Door::ReadOnly);
    if door == Door::ReadOnly {
        return Ok(kubelet::answer_read_only(node, request).await);
    }
    Ok(answer(node, door, request).await.unwrap_or_else(Failure::into_reply))
}

async fn answer(node: Arc<dyn Node>, door: Door, request: Request<Incoming>) -> Result<Reply, Failure> {
    if door == Door::Page {
        return page::loopback(node, &request).await;
    }
    let asked = route(request.method(), request.uri().path())?;
    let query = Query::parse(request.uri().query().unwrap_or_default())?;
    if door == Door::Loopback && !matches!(asked, Route::Health | Route::Ready | Route::Metrics) {
        return Err(Failure::not_found("only health and metrics are served here"));
    }
    if let Door::Local(who) = door {
        kube::check_identity(who, request.headers())?;
        kube::check(who, &asked)?;
    }
    match asked {
        Route::Health => Ok(reply::text("ok")),
        Route::Ready => Ok(ready(node.as_ref())),
        Route::Metrics => Ok(metrics(node.metrics())),
        Route::Status => status(node).await,
        Route::Kube(asked) => {
            let who = if let Door::Local(who) = door { Some(who) } else { None };
            kube::answer(node, who, asked, &query, Sent::of(request)).await
        }
        Route::Log { namespace, pod } => log::log(node, &namespace, &pod, &query).await,
        Route::Exec { namespace, pod } => exec::exec(&node, &namespace, &pod, &query, request),
        Route::Attach { namespace, pod } => exec::attach(&node, &namespace, &pod, &query, request),
        Route::Copy { namespace, pod } => exec::copy(&node, &namespace, &pod, &query, request),
        Route::PortForward { namespace, pod } => forward::forward(&node, &namespace, &pod, request),
        Route::Apply => {
            let manifest = body(request).await?;
            apply::apply(node, &query, manifest).await
        }
        Route::Delete => apply::delete(node, &query).await,
        Route::Images if request.method() == Method::DELETE => images::remove(node, &query).await,
        Route::Images => images::list(node).await,
        Route::PullImage => images::pull(node, &query),
        Route::PruneImages => images::prune(node, &query).await,
        Route::ImportImage => images::import(node, &query, request).await,
        Route::ExportImages => images::export(node, &query).await,
        Route::History { namespace, pod } => history::history(node.as_ref(), &namespace, &pod, &query),
        Route::Rollback { namespace, pod } => history::roll_back(node.as_ref(), &namespace, &pod, &query).await,
        Route::VerifyImages => verify::verify(node, &query).await,
        Route::Cluster => cluster::show(node.as_ref()),
        Route::LookForCluster => cluster::look(node.as_ref()),
        Route::Kubeconfig if request.method() == Method::DELETE => local::revoke(node).await,
        Route::Kubeconfig => local::kubeconfig(node, query.number("port")?, query.flag("readOnly")?).await,
        Route::LeaveCluster => cluster::leave(node.as_ref()).await,
        Route::Page(part) => page::answer(node, part, &query).await,
        Route::Usage(asked) => usage::answer(node.as_ref(), asked, &query).await,
    }
}

/// A request's headers, and its body for who wants it.
pub(super) struct Sent {
    pub(super) headers: HeaderMap,
    request: Request<Incoming>,
}

impl Sent {
    fn of(request: Request<Incoming>) -> Sent {
        Sent { headers: request.headers().clone(), request }
    }

    /// The body, and its type without parameters (none: empty).
    pub(super) async fn body(self) -> Result<(String, Bytes), Failure> {
        let kind = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        body(self.request).await.map(|bytes| (kind, bytes))
    }
}

async fn body(request: Request<Incoming>) -> Result<Bytes, Failure> {
    let limit = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
    let too_large = || Failure::too_large(format!("the manifest is larger than {} MiB", MAX_MANIFEST >> 20));
    // A client that says so beforehand need not send it all.
    if hyper::body::Body::size_hint(request.body()).lower() > MAX_MANIFEST {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(request.into_body(), limit).collect()).await;
    match collected {
        Err(_) => Err(Failure::timeout("the body did not arrive in time")),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Failure::bad_request(format!("the body could not be read: {error}"))),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

/// Status and message of the node's Ready condition.
fn ready_condition(node: &dyn Node) -> (bool, String) {
    let conditions = node.node().status.and_then(|status| status.conditions).unwrap_or_default();
    match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
        Some(condition) => (condition.status == "True", condition.message.unwrap_or_default()),
        None => (false, "the node has not reported yet".to_owned()),
    }
}

fn ready(node: &dyn Node) -> Reply {
    match ready_condition(node) {
        (true, _) => reply::text("ok"),
        (false, why) => {
            let body = reply::bytes(format!("not ready: {why}"));
            reply::with_type(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", body)
        }
    }
}

pub(super) fn metrics(text: String) -> Reply {
    // Scrapers choose the parser by the type; the end mark is what tells OpenMetrics from the older format.
    let content_type = if text.ends_with("# EOF\n") {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    };
    reply::with_type(StatusCode::OK, content_type, reply::bytes(text))
}

async fn status(node: Arc<dyn Node>) -> Result<Reply, Failure> {
    let (ready, message) = ready_condition(node.as_ref());
    let mut pods = std::collections::BTreeMap::new();
    for pod in node.pods() {
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_else(|| "Pending".to_owned());
        *pods.entry(phase).or_insert(0) += 1;
    }
    let store = node.images();
    let (images, image_bytes) = blocking(move || (store.list(), store.bytes().unwrap_or(0))).await?;
    let mut warnings: Vec<String> = node
        .events()
        .iter()
        .rev()
        .filter(|event| event.type_.as_deref() == Some("Warning"))
        .take(5)
        .map(|event| {
            let object = &event.involved_object;
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            let kind = text(&object.kind).to_lowercase();
            format!("{kind}/{} {}: {}", text(&object.name), text(&event.reason), text(&event.message))
        })
        .collect();
    warnings.reverse();
    // What is wrong still, after what was wrong lately.
    let conditions = node.node().status.and_then(|status| status.conditions).unwrap_or_default();
    let source = conditions.into_iter().find(|c| c.type_ == "ManifestSourceHealthy" && c.status == "False");
    warnings.extend(source.map(|c| format!("SourceUnhealthy (now): {}", c.message.unwrap_or_default())));
    reply::json(&NodeSummary {
        node: node.name().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        ready,
        message,
        manifest_dir: node.manifest_dir().display().to_string(),
        pods,
        images: images.len(),
        image_bytes,
        warnings,
        cluster: node.cluster().map(|handle| cluster::summary(node.name(), &handle)),
    })
}
