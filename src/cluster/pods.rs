//! The pods that the API server has bound to this node: listed, watched, and kept for when nobody answers.

use super::context::{Context, Known};
use super::{Bound, Connection, Machine, request};
use crate::causes::chain;
use crate::pod::affinity;
use futures_util::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// What tells a mirror pod.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
/// Between two attempts to write down a pod that the disk does not take.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the own Node may take to be read again.
const NODE: Duration = Duration::from_secs(5);
/// How long the API server may take to say all that it knows, as a stream. One that has never heard of such streams says
/// nothing at all.
const STREAM: Duration = Duration::from_secs(30);

type Word = Result<Event<DynamicObject>, watcher::Error>;
type Events = Pin<Box<dyn Stream<Item = Word> + Send>>;

/// Until it is dropped.
pub(super) async fn run(context: &Arc<Context>, _machine: &Arc<dyn Machine>, connection: &Connection) {
    // What this session knows is what it has heard itself.
    context.known.send_if_modified(|known| {
        let Known { synced, pods } = &**known;
        let was = *synced;
        if was {
            *known = Arc::new(Known { synced: false, pods: pods.clone() });
        }
        was
    });
    // Without types, see `store::decode`.
    let api: Api<DynamicObject> = Api::all_with(connection.client.clone(), &ApiResource::erase::<Pod>(&()));
    let watch = |stream: bool| -> Events {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.node_name));
        let config = if stream { config.streaming_lists() } else { config };
        // 0.8 s, doubled up to 30 s, jittered (as kubelet).
        watcher(api.clone(), config).default_backoff().boxed()
    };
    let mut follower = Follower { context, connection, listed: BTreeMap::new(), listing: false, failing: false };
    let (mut events, mut streams, mut unwritten) = (watch(true), true, false);
    loop {
        let waits_for_list = streams && follower.listing;
        let mut next = match (waits_for_list, unwritten) {
            (true, _) => timeout(STREAM, events.next()).await.ok().flatten(),
            (false, true) => timeout(AGAIN, events.next()).await.ok().flatten(),
            (false, false) => events.next().await,
        };
        let is_refused = next.as_ref().is_some_and(|event| event.as_ref().is_err_and(is_unknown));
        if streams && is_refused || waits_for_list && next.is_none() {
            tracing::info!("the API server does not stream lists: pods are listed, then watched");
            (events, streams) = (watch(false), false);
            continue;
        }
        let mut known = Known::clone(&context.known.borrow());
        let mut changed = unwritten;
        // All that is there already, so that many changes are one.
        while let Some(event) = next {
            changed |= follower.take(&mut known, event);
            next = events.next().now_or_never().flatten();
        }
        if changed && known.synced {
            unwritten = follower.tell(known).await;
        }
    }
}

/// Whether the API server refuses to stream a list: it is too old for that, or was told not to.
fn is_unknown(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        _ => return false,
    };
    matches!(status.code, 400 | 422)
}

struct Follower<'a> {
    context: &'a Arc<Context>,
    connection: &'a Connection,
    /// What a list has given so far.
    listed: BTreeMap<String, Arc<Pod>>,
    /// Whether one is under way.
    listing: bool,
    /// Whether nobody answers, and people know.
    failing: bool,
}

impl Follower<'_> {
    /// Takes in an event; tells whether there is any change.
    fn take(&mut self, known: &mut Known, event: Word) -> bool {
        self.listing = matches!(event, Ok(Event::Init | Event::InitApply(_)));
        let event = match event {
            Ok(event) => event,
            Err(error) if self.failing => {
                tracing::debug!(error = chain(&error), "pods cannot be watched");
                return false;
            }
            Err(error) => {
                self.failing = true;
                tracing::warn!(error = chain(&error), "pods cannot be watched; what is known of them holds");
                return false;
            }
        };
        if std::mem::take(&mut self.failing) {
            tracing::info!("pods are watched again");
        }
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => self.listed.extend(read(pod).and_then(entry)),
            Event::InitDone => *known = Known { synced: true, pods: std::mem::take(&mut self.listed) },
            Event::Apply(pod) => known.pods.extend(read(pod).and_then(entry)),
            Event::Delete(pod) => drop(pod.metadata.uid.and_then(|uid| known.pods.remove(&uid))),
        }
        true
    }

    /// First to the disk, then to all who want to know. Tells whether the disk did not take all.
    async fn tell(&self, known: Known) -> bool {
        let context = self.context;
        let mut bound: BTreeMap<String, Arc<Pod>> = known
            .pods
            .iter()
            .filter(|(_, pod)| !is_mirror(pod))
            .map(|(uid, pod)| (uid.clone(), Arc::clone(pod)))
            .collect();
        let old = Arc::clone(&context.bound.borrow());
        let new = bound.values().filter(|pod| !old.pods.iter().any(|known| known.metadata.uid == pod.metadata.uid));
        if is_doubtful(new.map(|pod| &**pod), context.node.borrow().as_deref(), &context.node_name) {
            self.look_at_node().await;
        }
        let (kept, pods) = (Arc::clone(&context.kept), bound.clone());
        let written =
            tokio::task::spawn_blocking(move || kept.lock().unwrap_or_else(PoisonError::into_inner).keep(&pods));
        // An error means that the agent is shutting down.
        let Ok(change) = written.await else { return false };
        bound.retain(|uid, _| !change.unwritten.contains(uid));
        let pods: Vec<Arc<Pod>> = bound.into_values().collect();
        context.bound.send_if_modified(|bound| {
            let uids = |pods: &[Arc<Pod>]| pods.iter().map(|pod| pod.metadata.uid.clone()).collect::<Vec<_>>();
            let changed = change.changed || !bound.known || uids(&bound.pods) != uids(&pods);
            if changed {
                *bound = Arc::new(Bound { generation: bound.generation + 1, known: true, pods });
            }
            changed
        });
        context.known.send_replace(Arc::new(known));
        !change.unwritten.is_empty()
    }

    /// As kubelet: labels that the scheduler went by may be newer than what is known here.
    async fn look_at_node(&self) {
        let path = format!("/api/v1/nodes/{}", self.context.node_name);
        let found = match timeout(NODE, request::get(self.connection, &path)).await {
            Ok(Ok(node)) => serde_json::from_value::<Node>(node).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        match found {
            Ok(node) => drop(self.context.node.send_replace(Some(Arc::new(node)))),
            Err(error) => tracing::debug!(error, "the node cannot be read again"),
        }
    }
}

/// A pod that is none is passed over: nothing follows from it.
fn read(object: DynamicObject) -> Option<Pod> {
    let name = object.metadata.name.clone();
    let pod = serde_json::to_value(object).and_then(serde_json::from_value);
    pod.inspect_err(|error| tracing::warn!(name, %error, "the API server sent a pod that cannot be read")).ok()
}

/// By UID. What is not needed here and makes up half of a pod is left out.
fn entry(mut pod: Pod) -> Option<(String, Arc<Pod>)> {
    if is_mirror(&pod) {
        // Who wrote to a mirror pod tells an edit of it.
        pod.metadata.managed_fields.iter_mut().for_each(|all| all.retain(|entry| entry.subresource.is_none()));
    } else {
        pod.metadata.managed_fields = None;
    }
    Some((pod.metadata.uid.clone()?, Arc::new(pod)))
}

fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR))
}

/// Whether what is known of the own Node would refuse one of these pods for its labels, or nothing is known.
fn is_doubtful<'a>(mut pods: impl Iterator<Item = &'a Pod>, node: Option<&Node>, name: &str) -> bool {
    let Some(node) = node else { return pods.next().is_some() };
    let nothing = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&nothing);
    pods.any(|pod| !affinity::matches(pod, name, labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_node_is_read_again_when_it_would_refuse_a_pod() {
        let pod = |selector: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [], "nodeSelector": selector}})).expect("pod")
        };
        let node: Node = serde_json::from_value(json!({"metadata": {"labels": {"site": "north"}}})).expect("node");
        let (here, there) = (pod(json!({"site": "north"})), pod(json!({"site": "south"})));
        assert!(!is_doubtful([&here].into_iter(), Some(&node), "n"));
        assert!(is_doubtful([&here, &there].into_iter(), Some(&node), "n"));
        assert!(is_doubtful([&here].into_iter(), None, "n"));
        assert!(!is_doubtful([].into_iter(), None, "n"));
    }
}
