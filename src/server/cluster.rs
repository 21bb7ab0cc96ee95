//! How the node stands to a cluster, and leaving it.

use super::Node;
use super::reply::{self, Failure, Reply};
use super::types::{ClusterState, ClusterSummary, LeftCluster};
use crate::cluster::{Handle, State};
use crate::sys::clock;
use jiff::{Timestamp, Unit};

fn handle(node: &dyn Node) -> Result<Handle, Failure> {
    node.cluster().ok_or_else(|| Failure::not_found("this node cannot be part of a cluster"))
}

/// `GET /coracle/v1/cluster`.
pub(super) fn show(node: &dyn Node) -> Result<Reply, Failure> {
    reply::json(&summary(node.name(), &handle(node)?))
}

/// `POST /coracle/v1/cluster/look`: somebody put credentials there, or took them away.
pub(super) fn look(node: &dyn Node) -> Result<Reply, Failure> {
    handle(node)?.look();
    show(node)
}

/// `POST /coracle/v1/cluster/leave`.
pub(super) async fn leave(node: &dyn Node) -> Result<Reply, Failure> {
    let left = handle(node)?.leave().await;
    let left = left.ok_or_else(|| Failure::internal("the agent is ending"))?;
    reply::json(&LeftCluster {
        node: node.name().to_owned(),
        mirrors: left.mirrors,
        pods: left.pods,
        problems: left.problems,
    })
}

pub(super) fn summary(node: &str, handle: &Handle) -> ClusterSummary {
    let state = handle.state.borrow().clone();
    let membership = state.membership().cloned();
    let (state, message, since) = match state {
        State::Alone => (ClusterState::Alone, None, None),
        State::Waiting(why) => (ClusterState::Waiting, Some(why), None),
        State::Joined(_) => (ClusterState::Joined, None, None),
        State::Unreachable { since, why, .. } => (ClusterState::Unreachable, Some(why), Some(clock::shown(since))),
    };
    ClusterSummary {
        node: node.to_owned(),
        state,
        message,
        since: since.map(text),
        certificate_expires: membership.as_ref().and_then(|of| of.expires).map(text),
        server: membership.map(|of| of.server),
        registered: handle.node.borrow().is_some(),
        registers: handle.config.register_node,
        kubeconfig: handle.config.kubeconfig.clone(),
        bootstrap_kubeconfig: handle.config.bootstrap_kubeconfig.clone(),
        cert_dir: handle.config.cert_dir.clone(),
    }
}

/// RFC 3339, of whole seconds.
fn text(at: Timestamp) -> String {
    at.round(Unit::Second).unwrap_or(at).to_string()
}
