//! A request in, an answer out.

use super::apply::MAX_MANIFEST;
use super::reply::{self, Body, Failure, Reply, blocking};
use super::route::{Query, Route, route};
use super::types::NodeSummary;
use super::exec::{self, Named};
use super::{Node, apply, cluster, forward, history, images, lists, log, usage, verify};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, StatusCode};
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
}

/// Answers a request; never fails, a refusal is an answer too.
pub(super) async fn handle(
    node: Arc<dyn Node>,
    door: Door,
    request: Request<Incoming>,
) -> Result<hyper::Response<Body>, Infallible> {
    Ok(answer(node, door, request).await.unwrap_or_else(Failure::into_reply))
}

async fn answer(node: Arc<dyn Node>, door: Door, request: Request<Incoming>) -> Result<Reply, Failure> {
    let asked = route(request.method(), request.uri().path())?;
    let query = Query::parse(request.uri().query().unwrap_or_default())?;
    if door == Door::Loopback && !matches!(asked, Route::Health | Route::Ready | Route::Metrics) {
        return Err(Failure::not_found("only health and metrics are served here"));
    }
    match asked {
        Route::Health => Ok(reply::text("ok")),
        Route::Ready => Ok(ready(node.as_ref())),
        Route::Metrics => Ok(metrics(node.metrics())),
        Route::Status => status(node).await,
        Route::List { resource, namespace } => lists::list(node, resource, namespace, &query),
        Route::Get { resource, namespace, name } => lists::get(&node, resource, namespace.as_deref(), &name),
        Route::Log { namespace, pod } => log::log(node, &namespace, &pod, &query).await,
        Route::Exec { namespace, pod } => exec::exec(&node, &Named::of(&namespace, &pod, &query), &query, request),
        Route::Attach { namespace, pod } => exec::attach(&node, &Named::of(&namespace, &pod, &query), &query, request),
        Route::PortForward { namespace, pod } => {
            forward::forward(&node, &Named::of(&namespace, &pod, &query), request)
        }
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
        Route::LeaveCluster => cluster::leave(node.as_ref()).await,
        Route::Usage(asked) => usage::answer(node.as_ref(), asked, &query).await,
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

fn metrics(text: String) -> Reply {
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
