//! Leaving the cluster: what it knows of this node's static pods goes, and what this node knows of the cluster.

use super::context::{Context, Known};
use super::transport::ask;
use super::{Bound, State, certificates, events, node};
use crate::config;
use crate::pod::Supply;
use crate::store;
use crate::sys::fs;
use hyper::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// An order to leave, and who waits for how it went.
pub(super) type Order = oneshot::Sender<Left>;

/// How leaving went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// How many mirror pods were removed from the API server.
    pub mirrors: usize,
    /// Pods of the cluster that end now.
    pub pods: usize,
    /// What could not be done, and why.
    pub problems: Vec<String>,
}

/// How long the API server may take to remove mirror pods: it may be gone for good.
const MIRRORS: Duration = Duration::from_secs(10);

/// Removes mirror pods where somebody answers, credentials and records. Pods of the cluster end; static ones go on.
pub(super) async fn leave(context: &Arc<Context>, client: Option<&Client>, order: Order) {
    let mut left = Left::default();
    let known = Arc::clone(&context.known.borrow());
    let mirrors: Vec<&Arc<Pod>> = known.pods.values().filter(|pod| is_mirror(pod)).collect();
    match client {
        Some(client) => {
            let all = async {
                for pod in &mirrors {
                    match remove(client, pod).await {
                        Ok(()) => left.mirrors += 1,
                        Err(problem) => left.problems.push(problem),
                    }
                }
            };
            if tokio::time::timeout(MIRRORS, all).await.is_err() {
                left.problems.push("the API server does not answer: mirror pods may be left there".to_owned());
            }
        }
        None if mirrors.is_empty() => {}
        None => left.problems.push("there are no usable credentials: mirror pods are left".to_owned()),
    }
    let (config, records) = (context.config.clone(), context.records.clone());
    let removed = tokio::task::spawn_blocking(move || forget(&config, &records)).await;
    left.problems.extend(removed.unwrap_or_else(|_| vec!["credentials are left".to_owned()]));
    context.known.send_replace(Arc::new(Known::default()));
    context.node.send_replace(None);
    context.serving.send_replace(None);
    context.reviewer.send_replace(None);
    // Another cluster has been told nothing.
    *context.told.lock().unwrap_or_else(PoisonError::into_inner) = node::Told::default();
    *context.events.lock().unwrap_or_else(PoisonError::into_inner) = events::Ledger::default();
    context.supply.send_replace(Some(Arc::new(Supply::default())));
    context.bound.send_modify(|bound| {
        left.pods = bound.pods.len();
        // Nobody wants any: an answer as good as the API server's.
        *bound = Arc::new(Bound { generation: bound.generation + 1, known: true, pods: Vec::new() });
    });
    context.state.send_replace(State::Alone);
    tracing::info!("left the cluster: {} mirror pods removed, {} pods end", left.mirrors, left.pods);
    // Who asked may have gone.
    let _ = order.send(left);
}

fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"))
}

async fn remove(client: &Client, pod: &Pod) -> Result<(), String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (namespace, name) = (text(&pod.metadata.namespace), text(&pod.metadata.name));
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let options: Value = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}});
    match ask(client, Method::DELETE, &path, Some(&options)).await {
        Ok(_) => Ok(()),
        // It is gone, or another one is there, which is none of this session's.
        Err(error) if matches!(error.code, Some(404 | 409)) => Ok(()),
        Err(error) => Err(format!("mirror pod {namespace}/{name} is left: {error}")),
    }
}

/// Removes the certificates of the folder `dir`. Blocks.
///
/// # Errors
/// What is left, and why.
pub fn forget_certificates(dir: &Path) -> Result<(), String> {
    certificates::remove_all(dir).map_err(|error| crate::causes::chain(&error))
}

/// Removes credentials and records of the cluster from the disk, and says what could not be removed. Blocks.
pub fn forget(config: &config::Cluster, records: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for path in [&config.kubeconfig, &config.bootstrap_kubeconfig] {
        if let Err(error) = store::delete(path) {
            problems.push(crate::causes::chain(&error));
        }
    }
    if let Err(error) = certificates::remove_all(&config.cert_dir) {
        problems.push(crate::causes::chain(&error));
    }
    if let Err(error) = fs::remove_tree(records) {
        problems.push(format!("cannot remove {}: {error}", records.display()));
    }
    problems
}
