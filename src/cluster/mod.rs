//! The node as part of a cluster: what the API server wants of it, and what it tells the API server.
//!
//! ```text
//!              ┌─ connection (kubeconfig, certificate, rotation) ◀─ join
//! API server ──┤
//!              └─ session, anew with each connection
//!                   node · lease ········ the Node object
//!                   pods ──▶ Bound ─────▶ agent ─▶ workers        (kept on disk: what was said last holds offline)
//!                   supply ▶ Supply ────▶ runtime: objects, tokens, services
//!                   status · mirror ◀──── reports of the agent    (statuses, ends, mirror pods)
//!                   events ◀───────────── the agent's events
//!                   review · serving ◀─── the server: who asks the node, and what it shows them
//! ```
//!
//! Nothing of what runs depends on any of this: while no API server answers, everything goes on with what is known, and
//! static pods need none of it at all.

mod calls;
mod certificates;
mod connection;
mod context;
mod ended;
mod credentials;
mod csr;
pub mod discovery;
mod events;
mod kept;
mod kubeconfig;
mod lease;
mod leave;
mod mirror;
mod mirror_copy;
mod mirror_plan;
mod node;
mod pods;
mod rate;
mod record;
mod request;
mod review;
mod serving;
mod session;
mod status;
mod status_end;
mod status_patch;
mod status_work;
mod supply;
mod transport;
mod trouble;

pub use calls::{Calls, calls};
pub use connection::{Connection, Membership, State};
pub use ended::Ended;
pub use leave::{Left, forget, forget_certificates};
pub use review::{Access, Error as ReviewError, Reviewer, User};
pub use serving::Serving;

use crate::config::{self, Config};
use crate::pod::Supply;
use context::Context;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// What the cluster needs of the node; the agent implements it. Calls are quick and never block on I/O. All instants are
/// those of the wall clock, as people are shown them.
pub trait Machine: Send + Sync + 'static {
    /// The last reports of all pods that are wanted or on the machine, static ones and the cluster's.
    fn reports(&self) -> Vec<Arc<Pod>>;
    /// The last report of a pod of the cluster of which nothing is left on the machine; kept until
    /// [`Machine::forget`].
    fn departed(&self, uid: &str) -> Option<Arc<Pod>>;
    /// The API server knows how the pod ended.
    fn forget(&self, uid: &str);
    /// Whether anything of the pod is on the machine, or about to be.
    fn is_present(&self, uid: &str) -> bool;
    /// Whether all that may name static pods has said what it wants: one that is not reported is not wanted, either.
    fn sources_have_spoken(&self) -> bool;
    /// The `generation` of the last [`Bound`] that the agent has acted on.
    fn acted_on(&self) -> u64;
    /// The Node object as this node sees itself: labels, addresses, capacity, conditions, nodeInfo.
    fn node(&self) -> Node;
    /// Recent events, oldest first; a repeated one comes back with a higher count.
    fn events(&self) -> Vec<Event>;
    /// Those that happened, or happened again, after the one of this number (its resourceVersion).
    fn events_after(&self, number: u64) -> Vec<Event>;
    /// A number that grows with every change of reports and events.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Records an event of the node itself.
    fn note(&self, warning: bool, reason: &'static str, message: String);
}

/// The pods that the API server has bound to this node, without mirror pods.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bound {
    /// Grows with each change.
    pub generation: u64,
    /// Whether an API server said so, now or before the start. Else nothing follows from a pod that is missing here.
    pub known: bool,
    /// As the API server has them, status included. Those with a deletionTimestamp are to end.
    pub pods: Vec<Arc<Pod>>,
}

/// What comes from the cluster, and how to talk about it. Ends with its last clone.
#[derive(Debug, Clone)]
pub struct Handle {
    /// What should run.
    pub bound: watch::Receiver<Arc<Bound>>,
    /// What it is made from; `None` before anything is known.
    pub supply: watch::Receiver<Option<Arc<Supply>>>,
    /// The own Node object as the API server has it: labels and taints that others set.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// How the node stands to the cluster.
    pub state: watch::Receiver<State>,
    /// Who says who others are and what they may do; `None`: there is no API server to ask.
    pub reviewer: watch::Receiver<Option<Reviewer>>,
    /// The certificate that the cluster issued to be shown to others; `None`: none yet, or none was asked for.
    pub serving: watch::Receiver<Option<Arc<Serving>>>,
    /// How pods ended of which nothing is left.
    pub ended: Ended,
    /// Where credentials are looked for, and what else is configured.
    pub config: Arc<config::Cluster>,
    look: Arc<Notify>,
    leaves: mpsc::Sender<leave::Order>,
    renewals_failed: Arc<AtomicU64>,
}

impl Handle {
    /// Look for credentials now: somebody put them there, or took them away.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Leave the cluster: its pods end, credentials and all that is known of it go. `None`: the agent is ending.
    pub async fn leave(&self) -> Option<Left> {
        let (order, left) = oneshot::channel();
        self.leaves.send(order).await.ok()?;
        left.await.ok()
    }

    /// How many times a new certificate could not be had.
    #[must_use]
    pub fn renewals_failed(&self) -> u64 {
        self.renewals_failed.load(Ordering::Relaxed)
    }
}

/// What is known of the cluster from before, and tasks that keep up with it from now on: at once when there are credentials,
/// else as soon as there are.
#[must_use]
pub fn start(config: &Config) -> Starting {
    let (context, handle, leaves) = Context::open(config);
    Starting { context: Arc::new(context), handle, leaves }
}

/// What is known before anything was asked.
pub struct Starting {
    context: Arc<Context>,
    /// What is known from before.
    pub handle: Handle,
    leaves: mpsc::Receiver<leave::Order>,
}

impl Starting {
    /// Talk to the API server from now on, about this machine.
    pub fn run(self, machine: Arc<dyn Machine>) {
        tokio::spawn(connection::follow(self.context, machine, self.leaves));
    }
}
