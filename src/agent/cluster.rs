//! The cluster's side of the agent: which bound pods are wanted, and what the cluster is told.

use super::events::Note;
use super::node::Shared;
use super::shown;
use crate::cluster::{Bound, Machine};
use crate::manifest;
use crate::pod::{Key, Spec};
use crate::server;
use crate::sys::clock;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;

/// What follows from what the API server has bound to this node.
#[derive(Debug, Default)]
pub struct Orders {
    /// To run, in the order of their creation.
    pub run: Vec<Arc<Spec>>,
    /// Not to run, and why: reason and message of a Failed status.
    pub refuse: Vec<(Arc<Pod>, &'static str, String)>,
}

/// Sorts the bound pods; `fixed` are the names of static pods, which no other pod takes away, `present` tells which pods are
/// on the machine.
pub fn orders(bound: &Bound, fixed: &BTreeSet<Key>, present: impl Fn(&str) -> bool) -> Orders {
    let mut orders = Orders::default();
    let mut pods: Vec<&Arc<Pod>> = bound.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    pods.sort_by_key(|pod| (pod.metadata.creation_timestamp.as_ref().map(|at| at.0), pod.metadata.uid.clone()));
    for pod in pods {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        // As kubelet: what has ended never runs again.
        if matches!(phase, Some("Succeeded" | "Failed")) && !present(uid) {
            continue;
        }
        let key = Key::of(pod);
        if fixed.contains(&key) {
            let message = format!("a static pod of this node has the name {key}");
            orders.refuse.push((Arc::clone(pod), "UnexpectedAdmissionError", message));
            continue;
        }
        match manifest::from_api(pod) {
            Ok(pod) => orders.run.extend(Spec::new(pod).map(Arc::new)),
            Err(problems) => {
                let message: Vec<String> = problems.iter().map(ToString::to_string).collect();
                orders.refuse.push((Arc::clone(pod), "PodFeatureUnsupported", message.join("; ")));
            }
        }
    }
    orders
}

impl Machine for Shared {
    fn reports(&self) -> Vec<Arc<Pod>> {
        server::Node::pods(self)
    }

    fn departed(&self, uid: &str) -> Option<Arc<Pod>> {
        self.departed_pod(uid)
    }

    fn forget(&self, uid: &str) {
        self.forget_departed(|departed| departed == uid);
    }

    fn is_present(&self, uid: &str) -> bool {
        self.is_reported(uid)
    }

    fn acted_on(&self) -> u64 {
        self.acted_on.load(std::sync::atomic::Ordering::Acquire)
    }

    fn node(&self) -> Node {
        shown::node(self.own_node())
    }

    fn events(&self) -> Vec<Event> {
        server::Node::events(self)
    }

    fn events_after(&self, number: u64) -> Vec<Event> {
        shown::events(self.events.after(number))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        server::Node::changes(self)
    }

    fn note(&self, warning: bool, reason: &'static str, message: String) {
        let note = Note { warning, reason, message, container: None };
        Shared::note(self, self.events.node_reference(), &note, clock::now());
    }
}
