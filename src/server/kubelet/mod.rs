//! The kubelet's API, on the node API's port: what an API server, a metrics-server and a Prometheus ask of a node.
//!
//! ```text
//! request ─▶ route: what it needs ─▶ guard: who asks, may they? ─▶ the same functions as for the local API
//! ```
//!
//! Refusals are plain text, as the kubelet's: the API server shows them to people as they are.

mod configz;
mod logs;
mod pages;
mod route;

use super::auth::{Guard, Refusal};
use super::reply::{self, Failure, Reply};
use super::route::Query;
use super::tls::Peer;
use super::{Node, exec, find_pod, forward, http, log, usage};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use route::{Asked, Nothing, Place, Route};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers a request that came through the node API's door.
pub(super) async fn answer(
    node: Arc<dyn Node>,
    guard: Arc<Guard>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Reply {
    let _counted = node.requests().begin(request.method(), request.uri().path(), false);
    let (mut head, body) = request.into_parts();
    let Asked { needs, route } = route::route(&head.method, head.uri.path());
    if let Err(refusal) = guard.admit(&peer, &head.method, &mut head.headers, needs).await {
        return refused(&peer, &refusal);
    }
    let path = head.uri.path().to_owned();
    match serve(node, route, Request::from_parts(head, body)).await {
        Ok(reply) => reply,
        Err(failure) => {
            tracing::debug!(address = %peer.address, path, "refused");
            failure.into_text()
        }
    }
}

/// Answers a request on the port without authentication.
pub(super) async fn answer_read_only(node: Arc<dyn Node>, request: Request<Incoming>) -> Reply {
    let asked = route::route(request.method(), request.uri().path()).route;
    // What is not served here is not there, in whatever way it is asked for.
    let route = match asked {
        Ok(route) if route.is_read_only() => Ok(route),
        Ok(_) | Err(Nothing::Method) => Err(Nothing::Missing),
        Err(nothing) => Err(nothing),
    };
    serve(node, route, request).await.unwrap_or_else(Failure::into_text)
}

fn refused(peer: &Peer, refusal: &Refusal) -> Reply {
    let code = match refusal {
        Refusal::Unauthorized(why) => {
            tracing::debug!(address = %peer.address, why, "unauthorized");
            StatusCode::UNAUTHORIZED
        }
        Refusal::Forbidden { .. } => {
            tracing::debug!(address = %peer.address, "{refusal}");
            StatusCode::FORBIDDEN
        }
        Refusal::Unknown { why, .. } => {
            tracing::warn!(address = %peer.address, %why, "{refusal}");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    reply::with_type(code, "text/plain; charset=utf-8", reply::bytes(refusal.to_string()))
}

async fn serve(
    node: Arc<dyn Node>,
    route: Result<Route, Nothing>,
    request: Request<Incoming>,
) -> Result<Reply, Failure> {
    let route = route.map_err(|nothing| match nothing {
        Nothing::Missing => Failure::not_found("404 page not found"),
        Nothing::Method => Failure::method("405: Method Not Allowed"),
        Nothing::Malformed => Failure::bad_request("the path is not percent-encoded UTF-8"),
    })?;
    let config = node.config();
    let server = &config.server;
    match route.is_for_debugging() {
        Some(true) if !server.debugging_handlers => return Err(Failure::method("Debug endpoints are disabled.")),
        Some(false) if !server.debugging_handlers => return Err(Failure::not_found("404 page not found")),
        _ => {}
    }
    let query = Query::parse(request.uri().query().unwrap_or_default())?;
    match route {
        Route::Health(check) => pages::health(node.as_ref(), check.as_deref(), query.has("verbose")),
        Route::HealthMetrics => Ok(http::metrics(pages::health_metrics(node.as_ref()))),
        Route::Pods => pods(node.pods()),
        Route::RunningPods => Ok(running_pods(&node.pods())),
        Route::Metrics => Ok(http::metrics(node.metrics())),
        Route::ResourceMetrics => usage::answer(node.as_ref(), usage::Asked::Resource, &query).await,
        Route::CadvisorMetrics => usage::answer(node.as_ref(), usage::Asked::Cadvisor, &query).await,
        Route::ProbeMetrics => usage::answer(node.as_ref(), usage::Asked::Probes, &query).await,
        Route::Summary => usage::answer(node.as_ref(), usage::Asked::Summary, &query).await,
        Route::Configz => reply::json(&json!({ "kubeletconfig": configz::kubelet(&config) })),
        Route::Statusz => Ok(reply::text(pages::statusz(node.as_ref()))),
        Route::Flagz => Ok(reply::text(pages::flagz(&configz::kubelet(&config)))),
        Route::Checkpoint(place) => checkpoint(node.as_ref(), &place, &query),
        Route::Logs(_) if !server.system_logs => Err(Failure::method("logs endpoint is disabled.")),
        Route::Logs(path) => logs::serve(path, request.uri().path().ends_with('/')).await,
        Route::Profiling => Err(Failure::method("profiling endpoint is disabled.")),
        Route::DebugFlags => Err(Failure::method("flags endpoint is disabled.")),
        Route::ContainerLogs(place) => container_logs(node, &place, query).await,
        Route::Exec(place) => {
            let (pod, query) = of_container(node.as_ref(), &place, query)?;
            exec::exec(&node, &place.namespace, &pod, &query, request)
        }
        Route::Attach(place) => {
            let (pod, query) = of_container(node.as_ref(), &place, query)?;
            exec::attach(&node, &place.namespace, &pod, &query, request)
        }
        Route::Run(place) => {
            let (pod, query) = of_container(node.as_ref(), &place, query)?;
            exec::run(&node, &place.namespace, &pod, &query).await
        }
        Route::PortForward(place) => {
            let pod = pod_of(node.as_ref(), &place)?;
            let name = pod.metadata.name.clone().unwrap_or_default();
            forward::forward(&node, &place.namespace, &name, request)
        }
    }
}

/// The name of the pod that a path means, and the query with the container in it.
fn of_container(node: &dyn Node, place: &Place, query: Query) -> Result<(String, Query), Failure> {
    let pod = pod_of(node, place)?;
    Ok((pod.metadata.name.clone().unwrap_or_default(), query.with("container", &place.container)))
}

/// The pod that a path means.
fn pod_of(node: &dyn Node, place: &Place) -> Result<Arc<Pod>, Failure> {
    let pod = find_pod(node, &place.namespace, &place.pod);
    let pod = pod.ok_or_else(|| Failure::not_found("pod does not exist"))?;
    if !place.uid.is_empty() && pod.metadata.uid.as_ref() != Some(&place.uid) {
        return Err(Failure::not_found("pod not found"));
    }
    Ok(pod)
}

/// Names of all containers of a pod, of whatever kind.
fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let init = spec.init_containers.iter().flatten();
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
    spec.containers.iter().chain(init).map(|container| &container.name).chain(ephemeral).any(|of| of == name)
}

/// As kubelet: the old name of `tailLines` counts, `all` is no limit.
async fn container_logs(node: Arc<dyn Node>, place: &Place, query: Query) -> Result<Reply, Failure> {
    let query = match query.get("tail").map(str::to_owned) {
        Some(tail) if tail == "all" => query.without("tailLines"),
        Some(tail) => query.without("tailLines").with("tailLines", &tail),
        None => query,
    };
    let missing = || Failure::not_found(format!("pod {:?} does not exist", place.pod));
    let pod = find_pod(node.as_ref(), &place.namespace, &place.pod).ok_or_else(missing)?;
    if !has_container(&pod, &place.container) {
        let message = format!("container {:?} not found in pod {:?}", place.container, place.pod);
        return Err(Failure::not_found(message));
    }
    let name = pod.metadata.name.clone().unwrap_or_default();
    log::log(node, &place.namespace, &name, &query.with("container", &place.container)).await
}

fn pods(pods: Vec<Arc<Pod>>) -> Result<Reply, Failure> {
    let items: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
    let items = serde_json::value::to_raw_value(&items).map_err(|error| Failure::internal(error.to_string()))?;
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct PodList {
        kind: &'static str,
        api_version: &'static str,
        metadata: Value,
        items: Box<serde_json::value::RawValue>,
    }
    reply::json(&PodList { kind: "PodList", api_version: "v1", metadata: json!({}), items })
}

/// As kubelet: what runs, as far as the runtime knows it.
fn running_pods(pods: &[Arc<Pod>]) -> Reply {
    let one = |pod: &Arc<Pod>| {
        let status = pod.status.as_ref()?;
        let all = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
        let running = all
            .into_iter()
            .flatten()
            .flatten()
            .filter(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()));
        let containers: Vec<Value> = running
            .map(|container| json!({ "name": container.name, "image": container.image, "resources": {} }))
            .collect();
        let metadata = &pod.metadata;
        let metadata = json!({ "name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid });
        let is_running = !containers.is_empty();
        is_running.then(|| json!({ "metadata": metadata, "spec": { "containers": containers }, "status": {} }))
    };
    let items: Vec<Value> = pods.iter().filter_map(one).collect();
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items });
    reply::with_type(StatusCode::OK, "application/json", reply::bytes(format!("{list}\n")))
}

/// As kubelet with a runtime that has no checkpoints.
fn checkpoint(node: &dyn Node, place: &Place, query: &Query) -> Result<Reply, Failure> {
    let pod = pod_of(node, place)?;
    if !has_container(&pod, &place.container) {
        return Err(Failure::not_found(format!("container {} does not exist", place.container)));
    }
    if query.all("timeout").last().is_some_and(|text| text.parse::<i64>().is_err()) {
        return Err(Failure::not_found("cannot parse value of timeout parameter"));
    }
    let Place { namespace, pod, container, .. } = place;
    Err(Failure::internal(format!(
        "checkpointing of {namespace}/{pod}/{container} failed (containers cannot be frozen to files here)"
    )))
}
