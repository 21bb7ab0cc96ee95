//! The pods that the API server has bound to this node: listed, watched, and kept for when nobody answers.

use super::context::{Context, Known};
use super::{Bound, Connection, Machine};
use crate::causes::chain;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What tells a mirror pod.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Until it is dropped.
pub(super) async fn run(context: &Arc<Context>, _machine: &Arc<dyn Machine>, connection: &Connection) {
    let api: Api<Pod> = Api::all(connection.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.node_name)).streaming_lists();
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut listed = BTreeMap::new();
    while let Some(event) = events.next().await {
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        let mut known = Known::clone(&context.known.borrow());
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => drop(listed.insert(uid(&pod), Arc::new(pod))),
            Ok(watcher::Event::InitDone) => {
                known = Known { synced: true, pods: std::mem::take(&mut listed) };
                tell(context, known);
            }
            Ok(watcher::Event::Apply(pod)) => {
                known.pods.insert(uid(&pod), Arc::new(pod));
                tell(context, known);
            }
            Ok(watcher::Event::Delete(pod)) => {
                known.pods.remove(&uid(&pod));
                tell(context, known);
            }
            Err(error) => tracing::warn!(error = chain(&error), "the watch on pods broke off"),
        }
    }
}

fn tell(context: &Context, known: Known) {
    let mirror = |pod: &Pod| pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR));
    let pods: Vec<Arc<Pod>> = known.pods.values().filter(|pod| !mirror(pod)).cloned().collect();
    context.bound.send_if_modified(|bound| {
        let changed = !bound.known || bound.pods != pods;
        if changed {
            *bound = Arc::new(Bound { generation: bound.generation + 1, known: true, pods });
        }
        changed
    });
    context.known.send_replace(Arc::new(known));
}
