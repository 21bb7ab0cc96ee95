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

/// What is on the machine of a bound pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing, and there never was.
    Absent,
    /// It is there, and not over, as far as is known.
    Here,
    /// It is there, and over.
    Over,
    /// It was there, or was refused: it never runs again.
    Ended,
}

/// Whose a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// A static pod is wanted under it.
    Static,
    /// A static pod has it whose source has not spoken: nobody knows yet.
    Held,
    /// No static pod's.
    Free,
}

/// Sorts the bound pods.
pub fn orders(bound: &Bound, claim: impl Fn(&Key) -> Claim, presence: impl Fn(&Pod) -> Presence) -> Orders {
    let mut orders = Orders::default();
    let mut pods: Vec<&Arc<Pod>> = bound.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    // As kubelet.
    pods.sort_by_key(|pod| (pod.metadata.creation_timestamp.as_ref().map(|at| at.0), pod.metadata.uid.clone()));
    for pod in pods {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        let here = match presence(pod) {
            Presence::Ended => continue,
            // As kubelet: what has ended never runs again, whoever ended it.
            Presence::Absent | Presence::Here if over => continue,
            Presence::Absent => false,
            Presence::Here | Presence::Over => true,
        };
        let key = Key::of(pod);
        match claim(&key) {
            Claim::Free => {}
            // It neither takes the name from a pod that may have to stay nor fails for good.
            Claim::Held => continue,
            Claim::Static => {
                let message = format!("a static pod of this node has the name {key}");
                orders.refuse.push((Arc::clone(pod), "UnexpectedAdmissionError", message));
                continue;
            }
        }
        match manifest::from_api(pod) {
            Ok(pod) => orders.run.extend(Spec::new(pod).map(Arc::new)),
            // Taken before the agent was another one: what runs is never refused.
            Err(_) if here => orders.run.extend(Spec::new(manifest::marked(pod)).map(Arc::new)),
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
        self.cluster.ended.retain(|departed| departed != uid);
    }

    fn is_present(&self, uid: &str) -> bool {
        self.is_reported(uid)
    }

    fn sources_have_spoken(&self) -> bool {
        self.sources_have_spoken.load(std::sync::atomic::Ordering::Acquire)
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

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
