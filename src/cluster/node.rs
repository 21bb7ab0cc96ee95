//! The Node object: registered, reconciled, kept up to date.

mod cadence;
mod labels;
mod status;

use super::context::Context;
use super::request::{self, Failure, MERGE, STRATEGIC_MERGE};
use super::{Connection, Machine};
use crate::store;
use crate::sys::{clock, fs};
use cadence::Cadence;
use futures_util::TryStreamExt;
use hyper::Request;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::WatchEvent;
use serde_json::{Value, json};
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Between attempts to register: at first, and at most (as kubelet).
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(7);
/// How long a watch is asked for, how much later it is given up, and how long its first answer may take.
const WATCH: Duration = Duration::from_secs(300);
const WATCH_GRACE: Duration = Duration::from_secs(30);
const WATCH_BEGIN: Duration = Duration::from_secs(10);
/// Between two watches, and between two corrections of labels: others may want them otherwise.
const LEAST_WATCH: Duration = Duration::from_secs(1);
const LEAST_CORRECTION: Duration = Duration::from_secs(5);
/// Between two looks at the status: while the API server does not know the node as ready (as kubelet), and after that.
const FAST: Duration = Duration::from_millis(100);
const LEAST_LOOK: Duration = Duration::from_secs(1);
/// How often a status is sent before the next look (as kubelet), and the pause between.
const TRIES: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_millis(500);

/// What the node's own events have told already; outlives sessions.
#[derive(Debug, Default)]
pub(super) struct Told {
    starting: bool,
    rebooted: bool,
    unschedulable: Option<bool>,
}

impl Told {
    /// With what was known of the Node when the agent ended.
    pub(super) fn before(node: Option<&Node>) -> Told {
        Told { unschedulable: node.map(is_cordoned), ..Told::default() }
    }
}

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

/// Until it is dropped.
pub(super) async fn run(context: &Arc<Context>, machine: &Arc<dyn Machine>, connection: &Connection) {
    let registered = watch::Sender::new(false);
    let upkeep = Upkeep { context, machine, connection, registered, gone: Notify::new() };
    tokio::join!(upkeep.follow(), upkeep.report());
}

/// What is kept of the own Node for times without an API server: what pods are admitted by. Not its uid: by then it may be
/// another one's.
pub(super) fn recalled(records: &Path) -> Option<Node> {
    match store::read(&record(records)) {
        Ok(node) => node,
        Err(error) => {
            tracing::warn!("what was known of the Node object is lost: {}", crate::causes::chain(&error));
            None
        }
    }
}

fn record(records: &Path) -> PathBuf {
    records.join("node.json")
}

/// The part of a Node that is kept.
fn essence(node: &Node) -> Node {
    Node {
        metadata: ObjectMeta {
            name: node.metadata.name.clone(),
            labels: node.metadata.labels.clone(),
            ..ObjectMeta::default()
        },
        spec: node.spec.as_ref().map(|spec| NodeSpec {
            taints: spec.taints.clone(),
            unschedulable: spec.unschedulable,
            ..NodeSpec::default()
        }),
        status: None,
    }
}

struct Upkeep<'a> {
    context: &'a Context,
    machine: &'a Arc<dyn Machine>,
    connection: &'a Connection,
    /// Whether the Node was seen in this session.
    registered: watch::Sender<bool>,
    /// The API server has no Node any more.
    gone: Notify,
}

impl Upkeep<'_> {
    fn path(&self) -> String {
        format!("/api/v1/nodes/{}", self.context.node_name)
    }

    /// Registers the Node, again when somebody deleted it, and knows what others make of it.
    async fn follow(&self) {
        let (mut pause, mut last) = (FIRST_PAUSE, None);
        loop {
            match self.register().await {
                Ok(node) => self.tell(node).await,
                Err(failure) => {
                    if last.as_ref() != Some(&failure) {
                        tracing::warn!("the node is not registered: {failure}");
                    }
                    last = Some(failure);
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
            }
            (pause, last) = (FIRST_PAUSE, None);
            self.greet();
            self.registered.send_replace(true);
            let begun = Instant::now();
            self.watch().await;
            sleep_until(begun + LEAST_WATCH).await;
        }
    }

    /// The Node as the API server has it, made if there is none.
    async fn register(&self) -> Result<Node, Failure> {
        let found = match request::get(self.connection, &self.path()).await {
            Err(failure) if failure.is_missing() && self.context.config.register_node => {
                let status = self.status();
                let new = json!(self.new_node(status));
                match request::post(self.connection, "/api/v1/nodes", &new).await {
                    Ok(made) => {
                        tracing::info!(node = self.context.node_name, "registered");
                        let node = read(made)?;
                        self.note_turns(&status::report(self.status(), None, clock::wall()).turns);
                        return Ok(node);
                    }
                    // As kubelet: somebody else made it, or only somebody else may.
                    Err(failure) if failure.is_conflict() || failure.code() == 403 => {
                        request::get(self.connection, &self.path()).await.map_err(|_| failure)?
                    }
                    Err(failure) => return Err(failure),
                }
            }
            other => other?,
        };
        read(found)
    }

    fn new_node(&self, status: NodeStatus) -> Node {
        let config = &self.context.config;
        let labels = self.machine.node().metadata.labels.unwrap_or_default();
        Node {
            metadata: ObjectMeta {
                name: Some(self.context.node_name.clone()),
                annotations: Some(labels::annotations(&labels)),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                provider_id: Some(config.provider_id.clone()).filter(|id| !id.is_empty()),
                taints: Some(config.register_with_taints.clone()).filter(|taints| !taints.is_empty()),
                unschedulable: config.register_unschedulable.then_some(true),
                ..NodeSpec::default()
            }),
            status: Some(status::timed(status, None, clock::wall())),
        }
    }

    /// The node's own view of its status.
    fn status(&self) -> NodeStatus {
        let mut status = self.machine.node().status.unwrap_or_default();
        if let (Some(images), Some(most)) = (&mut status.images, self.context.config.status_max_images) {
            images.truncate(most);
        }
        status
    }

    /// What is told of the node when a session begins: once.
    fn greet(&self) {
        let mut told = self.context.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut told.starting, true) {
            self.machine.note(false, "Starting", "Starting coracle.".to_owned());
        }
        let boot_id = |status: &NodeStatus| status.node_info.as_ref().map(|info| info.boot_id.clone());
        let known = self.context.node.borrow().as_ref().and_then(|node| node.status.as_ref().and_then(boot_id));
        let own = boot_id(&self.status()).unwrap_or_default();
        if known.is_some_and(|known| !known.is_empty() && known != own) && !std::mem::replace(&mut told.rebooted, true)
        {
            let message = format!("Node {} has been rebooted, boot id: {own}", self.context.node_name);
            self.machine.note(true, "Rebooted", message);
        }
    }

    fn note_turns(&self, turns: &[&'static str]) {
        for reason in turns {
            let message = format!("Node {} status is now: {reason}", self.context.node_name);
            self.machine.note(false, reason, message);
        }
    }

    /// Tells all parts what the Node is like, and keeps what is to be known later. What is older than what is known, which
    /// may come over another way, is not told.
    async fn tell(&self, node: Node) {
        let known = self.context.node.borrow().clone();
        if known.as_ref().is_some_and(|known| is_older(&node, known)) {
            return;
        }
        let essence_now = essence(&node);
        let is_new = known.is_none_or(|known| essence(&known) != essence_now);
        self.context.node.send_replace(Some(Arc::new(node)));
        if is_new {
            let records = self.context.records.clone();
            let keep = move || -> Result<(), store::Error> {
                // If this fails, so does what follows, which tells.
                let _ = fs::create_dir_all(&records, 0o700);
                store::write(&record(&records), &essence_now, 0o600)
            };
            // An outer error means that the agent is shutting down.
            if let Ok(Err(error)) = tokio::task::spawn_blocking(keep).await {
                tracing::warn!("cannot keep the Node: {}", crate::causes::chain(&error));
            }
        }
    }

    /// Follows the Node until it is gone or the watch ends, and corrects labels.
    async fn watch(&self) {
        // From whatever the API server has: it may not know any more what became of the Node since its last change, which may be
        // long ago (410 Gone), and what it says first is read above.
        let uri = format!(
            "/api/v1/nodes?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&fieldSelector=metadata.name%3D{}\
             &resourceVersion=0",
            WATCH.as_secs(),
            self.context.node_name,
        );
        let Ok(request) = Request::get(uri).body(Vec::new()) else { return };
        let events = match timeout(WATCH_BEGIN, self.connection.client.request_events::<Value>(request)).await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return tracing::debug!("no watch on the Node: {}", crate::causes::chain(&error)),
            Err(_) => return,
        };
        let mut events = std::pin::pin!(events);
        let end = Instant::now() + WATCH + WATCH_GRACE;
        let mut correction = Some(Instant::now());
        loop {
            let due = async {
                match correction {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(WatchEvent::Added(node) | WatchEvent::Modified(node))) => {
                        let Ok(node) = read(node) else { continue };
                        self.tell(node).await;
                        correction = correction.or_else(|| Some(Instant::now()));
                    }
                    Ok(Some(WatchEvent::Bookmark(_))) => {}
                    Ok(Some(WatchEvent::Deleted(_))) => {
                        tracing::warn!(node = self.context.node_name, "the Node object was deleted");
                        self.context.node.send_replace(None);
                        return;
                    }
                    Ok(Some(WatchEvent::Error(_)) | None) | Err(_) => return,
                },
                () = self.gone.notified() => return,
                () = due => match self.correct().await {
                    Ok(false) => correction = None,
                    Ok(true) => correction = Some(Instant::now() + LEAST_CORRECTION),
                    Err(failure) if failure.is_missing() || failure.is_conflict() => return,
                    Err(failure) => {
                        tracing::warn!("the Node's labels cannot be set: {failure}");
                        correction = Some(Instant::now() + WATCH_GRACE);
                    }
                },
                () = sleep_until(end) => return,
            }
        }
    }

    /// Sets labels and annotations right; tells whether they were not.
    async fn correct(&self) -> Result<bool, Failure> {
        let Some(node) = self.context.node.borrow().clone() else { return Ok(false) };
        let wanted = self.machine.node().metadata.labels.unwrap_or_default();
        let Some(patch) = labels::patch(&node, &wanted) else { return Ok(false) };
        let node = request::patch(self.connection, &self.path(), MERGE, &patch).await?;
        self.tell(read(node)?).await;
        Ok(true)
    }

    /// Sends the status whenever it says something new, and now and then.
    async fn report(&self) {
        // The sender is a field of ours.
        let _ = self.registered.subscribe().wait_for(|registered| *registered).await;
        let (mut node, mut changes) = (self.context.node.subscribe(), self.machine.changes());
        let mut cadence = Cadence::new(self.context.config.status_report_frequency);
        let mut is_ready = false;
        loop {
            changes.mark_unchanged();
            let known = node.borrow_and_update().clone();
            if let Some(known) = known {
                self.note_cordon(&known);
                is_ready |= known.status.as_ref().is_some_and(says_ready);
                let report = status::report(self.status(), known.status.as_ref(), clock::wall());
                if cadence.is_due(report.changed, clock::now()) {
                    match self.send(&report.patch).await {
                        Ok(node) => {
                            cadence.sent(report.changed, clock::now(), random());
                            self.note_turns(&report.turns);
                            self.tell(node).await;
                        }
                        Err(failure) if failure.is_missing() => self.gone.notify_one(),
                        Err(failure) => tracing::warn!("the node's status cannot be sent: {failure}"),
                    }
                }
            }
            sleep(if is_ready { LEAST_LOOK } else { FAST }).await;
            tokio::select! {
                () = sleep(self.context.config.status_update_frequency) => {}
                Ok(()) = changes.changed() => {}
                Ok(()) = node.changed() => {}
            }
        }
    }

    async fn send(&self, patch: &Value) -> Result<Node, Failure> {
        let path = format!("{}/status", self.path());
        let mut tries = 0;
        loop {
            tries += 1;
            match request::patch(self.connection, &path, STRATEGIC_MERGE, patch).await {
                Err(failure) if tries < TRIES && (failure.may_pass() || failure.is_conflict()) => {
                    sleep(TRY_PAUSE).await
                }
                other => return read(other?),
            }
        }
    }

    /// As kubelet: whether pods are placed on the node is told when it changes.
    fn note_cordon(&self, node: &Node) {
        let now = is_cordoned(node);
        let mut told = self.context.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.unschedulable.replace(now) {
            Some(before) if before != now => {
                self.note_turns(&[if now { "NodeNotSchedulable" } else { "NodeSchedulable" }]);
            }
            _ => {}
        }
    }
}

fn says_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether this is the same Node at an earlier time. Versions are compared as the API server has documented since 1.35.
fn is_older(node: &Node, known: &Node) -> bool {
    let version = |node: &Node| node.metadata.resource_version.as_ref().and_then(|text| text.parse::<u64>().ok());
    node.metadata.uid == known.metadata.uid && version(node).zip(version(known)).is_some_and(|(a, b)| a < b)
}

fn read(node: Value) -> Result<Node, Failure> {
    serde_json::from_value(node).map_err(|error| Failure::Lost(format!("the Node is not understood: {error}")))
}

/// Some number.
fn random() -> u64 {
    std::hash::RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_word_about_the_same_node_is_told_from_a_new_node() {
        let node = |uid: &str, version: &str| -> Node {
            serde_json::from_value(json!({ "metadata": { "uid": uid, "resourceVersion": version } })).unwrap()
        };
        assert!(is_older(&node("a", "9"), &node("a", "10")));
        assert!(!is_older(&node("a", "10"), &node("a", "10")));
        assert!(!is_older(&node("b", "9"), &node("a", "10")), "made again");
        assert!(!is_older(&node("a", "x"), &node("a", "10")), "not understood, so believed");
    }

    #[test]
    fn of_a_node_is_kept_what_pods_are_admitted_by() {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": "n", "uid": "u", "resourceVersion": "1", "labels": { "a": "b" }, "annotations": { "c": "d" } },
            "spec": { "unschedulable": true, "taints": [{ "key": "k", "effect": "NoExecute" }], "providerID": "p" },
            "status": { "addresses": [{ "type": "Hostname", "address": "n" }] },
        }))
        .unwrap();
        assert_eq!(
            json!(essence(&node)),
            json!({ "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": "n", "labels": { "a": "b" } },
                "spec": { "unschedulable": true, "taints": [{ "key": "k", "effect": "NoExecute" }] } })
        );
        let folder = std::env::temp_dir().join(format!("coracle-node-{}", std::process::id()));
        assert_eq!(recalled(&folder), None);
        fs::create_dir_all(&folder, 0o700).unwrap();
        store::write(&record(&folder), &essence(&node), 0o600).unwrap();
        assert_eq!(recalled(&folder), Some(essence(&node)));
        assert_eq!(Told::before(recalled(&folder).as_ref()).unschedulable, Some(true));
        std::fs::write(record(&folder), "{").unwrap();
        assert_eq!(recalled(&folder), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
