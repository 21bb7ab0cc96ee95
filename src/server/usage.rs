//! What pods and the node use, in the forms that people and programs ask for.

use super::Node;
use super::reply::{self, Failure, Reply};
use super::route::{Query, Resource};
use super::selector::{Fields, Selector};
use crate::stats::{self, Snapshot, Usage, text};
use hyper::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How old what is told may be, for those who reckon with the time of each sample.
const SCRAPED: Duration = Duration::from_secs(1);
/// How long after a pass the next one is made when there was none before to make rates of.
const BETWEEN: Duration = Duration::from_secs(1);

/// What is asked of what is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// `/stats/summary`.
    Summary,
    /// `/metrics/resource`.
    Resource,
    /// `/metrics/cadvisor`.
    Cadvisor,
    /// `/metrics/probes`.
    Probes,
    /// `/apis/metrics.k8s.io/v1beta1/nodes[/NAME]`.
    Nodes { name: Option<String> },
    /// `/apis/metrics.k8s.io/v1beta1[/namespaces/NAMESPACE]/pods[/NAME]`.
    Pods { namespace: Option<String>, name: Option<String> },
}

impl Asked {
    /// Reads a path, split and decoded; `None`: it is about something else.
    pub(super) fn of(segments: &[&str]) -> Option<Asked> {
        let owned = |name: &&str| Some((*name).to_owned());
        Some(match segments {
            ["stats", "summary"] => Asked::Summary,
            ["metrics", "resource"] => Asked::Resource,
            ["metrics", "cadvisor"] => Asked::Cadvisor,
            ["metrics", "probes"] => Asked::Probes,
            ["apis", "metrics.k8s.io", "v1beta1", rest @ ..] => match rest {
                ["nodes"] => Asked::Nodes { name: None },
                ["nodes", name] => Asked::Nodes { name: owned(name) },
                ["pods"] => Asked::Pods { namespace: None, name: None },
                ["namespaces", namespace, "pods"] => Asked::Pods { namespace: owned(namespace), name: None },
                ["namespaces", namespace, "pods", name] => {
                    Asked::Pods { namespace: owned(namespace), name: owned(name) }
                }
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// Answers it.
pub(super) async fn answer(node: &dyn Node, asked: Asked, query: &Query) -> Result<Reply, Failure> {
    let metrics = |content: String| Ok(reply::with_type(StatusCode::OK, text::CONTENT_TYPE, reply::bytes(content)));
    match asked {
        Asked::Summary => {
            let only = query.flag("only_cpu_and_memory")?;
            reply::json(&stats::summary(&*node.stats(SCRAPED).await, node.name(), only))
        }
        Asked::Resource => metrics(stats::resource(&*node.stats(SCRAPED).await)),
        Asked::Cadvisor => metrics(stats::cadvisor(&*node.stats(SCRAPED).await)),
        Asked::Probes => metrics(node.probe_metrics()),
        Asked::Nodes { name } => nodes(node, name.as_deref(), query).await,
        Asked::Pods { namespace, name } => pods(node, namespace.as_deref(), name.as_deref(), query).await,
    }
}

/// What is used, with rates: those who ask now and then, people, wait a second for them.
pub(super) async fn measured(node: &dyn Node) -> Arc<Snapshot> {
    let snapshot = node.stats(BETWEEN).await;
    let has_rate = |usage: &Usage| usage.cpu_nano_cores.is_some();
    let mut all = snapshot.pods.iter().flat_map(|pod| &pod.containers).map(|container| &container.usage);
    if has_rate(&snapshot.node.usage) && all.all(has_rate) {
        return snapshot;
    }
    tokio::time::sleep(BETWEEN).await;
    node.stats(Duration::ZERO).await
}

async fn nodes(node: &dyn Node, name: Option<&str>, query: &Query) -> Result<Reply, Failure> {
    let this = node.node();
    if let Some(name) = name.filter(|name| *name != node.name()) {
        return Err(not_found("nodemetrics", name));
    }
    let selector = Selector::parse(Resource::Nodes, query.get("fieldSelector"), query.get("labelSelector"))?;
    let metrics = stats::node_metrics(&*measured(node).await, node.name(), &this.metadata.labels);
    match name {
        Some(name) => reply::json(&metrics.ok_or_else(|| not_found("nodemetrics", name))?),
        None => {
            let items = metrics.filter(|_| selector.fits(&Meta(&this.metadata))).into_iter().collect();
            reply::json(&stats::metrics_list("NodeMetricsList", items))
        }
    }
}

async fn pods(node: &dyn Node, namespace: Option<&str>, name: Option<&str>, query: &Query) -> Result<Reply, Failure> {
    let selector = Selector::parse(Resource::Pods, query.get("fieldSelector"), query.get("labelSelector"))?;
    let snapshot = measured(node).await;
    let is_asked = |pod: &stats::PodStats| {
        namespace.is_none_or(|namespace| pod.namespace == namespace) && name.is_none_or(|name| pod.name == name)
    };
    let known = node.pods();
    let mut items: Vec<Value> = Vec::new();
    for pod in snapshot.pods.iter().filter(|pod| is_asked(pod)) {
        // Gone since.
        let Some(known) = known.iter().find(|known| known.metadata.uid.as_ref() == Some(&pod.uid)) else { continue };
        if selector.fits(&Meta(&known.metadata)) {
            items.extend(stats::pod_metrics(&snapshot, pod, &known.metadata.labels));
        }
    }
    match name {
        Some(name) => {
            let full = || format!("{}/{name}", namespace.unwrap_or_default());
            reply::json(&items.pop().ok_or_else(|| not_found("podmetrics", &full()))?)
        }
        None => reply::json(&stats::metrics_list("PodMetricsList", items)),
    }
}

/// What metrics can be selected by: what they have of the object that they are about.
struct Meta<'a>(&'a ObjectMeta);

impl Fields for Meta<'_> {
    fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => self.0.name.as_deref(),
            "metadata.namespace" => self.0.namespace.as_deref(),
            _ => None,
        }
    }

    fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.0.labels.as_ref()
    }
}

/// As metrics-server.
fn not_found(plural: &str, name: &str) -> Failure {
    Failure::not_found(format!("{plural}.metrics.k8s.io \"{name}\" not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read() {
        let of = |path: &str| Asked::of(&path.split('/').collect::<Vec<_>>());
        assert_eq!(of("metrics/resource"), Some(Asked::Resource));
        assert_eq!(of("metrics"), None);
        assert_eq!(of("apis/metrics.k8s.io/v1beta1/nodes/n"), Some(Asked::Nodes { name: Some("n".into()) }));
        let (namespace, name) = (Some("a".to_owned()), Some("p".to_owned()));
        assert_eq!(of("apis/metrics.k8s.io/v1beta1/namespaces/a/pods/p"), Some(Asked::Pods { namespace, name }));
        assert_eq!(of("apis/metrics.k8s.io/v1beta1"), None, "discovery is told elsewhere");
    }
}
