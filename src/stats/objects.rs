//! The `metrics.k8s.io/v1beta1` API of this node, which `kubectl top` reads. Pure.

use super::resource::complete;
use super::{PodStats, Snapshot, Usage};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Version of the API.
pub const API_VERSION: &str = "metrics.k8s.io/v1beta1";

/// Labels of an object.
type Labels = Option<BTreeMap<String, String>>;

/// The NodeMetrics of this node; `None` while there is no rate: two passes are needed.
#[must_use]
pub fn node_metrics(snapshot: &Snapshot, name: &str, labels: &Labels) -> Option<Value> {
    let usage = &snapshot.node.usage;
    Some(json!({
        "kind": "NodeMetrics",
        "apiVersion": API_VERSION,
        "metadata": metadata(name, None, usage.time?, labels),
        "timestamp": time(usage.time?),
        "window": window(snapshot),
        "usage": amounts(usage)?,
    }))
}

/// The PodMetrics of a pod; `None` while one of its containers has no rate.
#[must_use]
pub fn pod_metrics(snapshot: &Snapshot, pod: &PodStats, labels: &Labels) -> Option<Value> {
    let containers: Option<Vec<Value>> = complete(pod)
        .map(|container| Some(json!({ "name": container.name, "usage": amounts(&container.usage)? })))
        .collect();
    let containers = containers.filter(|containers| !containers.is_empty())?;
    let at = pod.usage.time?;
    Some(json!({
        "kind": "PodMetrics",
        "apiVersion": API_VERSION,
        "metadata": metadata(&pod.name, Some(&pod.namespace), at, labels),
        "timestamp": time(at),
        "window": window(snapshot),
        "containers": containers,
    }))
}

/// A list of them: `kind` is `NodeMetricsList` or `PodMetricsList`.
#[must_use]
pub fn list(kind: &str, items: Vec<Value>) -> Value {
    json!({ "kind": kind, "apiVersion": API_VERSION, "metadata": {}, "items": items })
}

fn metadata(name: &str, namespace: Option<&str>, at: Timestamp, labels: &Labels) -> Value {
    let mut out = json!({ "name": name, "creationTimestamp": time(at) });
    if let Some(namespace) = namespace {
        out["namespace"] = namespace.into();
    }
    if let Some(labels) = labels.as_ref().filter(|labels| !labels.is_empty()) {
        out["labels"] = json!(labels);
    }
    out
}

/// As metrics-server: CPU in nanocores, memory in kibibytes.
fn amounts(usage: &Usage) -> Option<Value> {
    let memory = usage.memory?.working_set.div_ceil(1024);
    let mut out = json!({ "cpu": format!("{}n", usage.cpu_nano_cores?), "memory": format!("{memory}Ki") });
    if let Some(swap) = usage.swap_bytes {
        out["swap"] = format!("{}Ki", swap / 1024).into();
    }
    Some(out)
}

/// As Go writes durations.
fn window(snapshot: &Snapshot) -> String {
    // What has a rate without a pass before is young.
    let window = snapshot.window.unwrap_or(Duration::from_secs(1));
    format!("{}.{:03}s", window.as_secs(), window.subsec_millis())
}

/// As the API has times: whole seconds.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
