//! The node's API on a unix socket (`coracle.sock`, 0600), and health and metrics on loopback.
//!
//! Paths are Kubernetes' own where Kubernetes has a word for the thing, so that kubectl fits later; the rest is below
//! `/coracle/v1`. Everything that blocks (files, the image store) runs on the blocking pool in short steps: a follower
//! of a log never holds a thread.

pub(crate) mod age;
mod apply;
mod auth;
mod cluster;
pub(crate) mod columns;
mod exec;
mod forward;
mod history;
mod http;
mod images;
mod kube;
mod kubelet;
mod listen;
pub mod local;
mod log;
mod logfile;
mod objects;
pub(crate) mod page;
mod reply;
mod requests;
mod route;
mod secure;
mod tls;
pub mod types;
mod usage;
mod verify;

pub use kube::Lists;
pub use listen::{Listener, await_healthz, bind_healthz, serve, serve_healthz, serve_page, serve_read_only};
pub use local::LocalApi;
pub use logfile::{Line, Tag};
pub use requests::Requests;
pub(crate) use route::encode;
pub use secure::{bind_read_only, serve_node_api};

use crate::cluster::Handle;
use crate::config::Config;
use crate::image::{Collector, ImageStore};
use crate::manifest::Objects;
use crate::pod::{Key, Present};
use crate::shim::exec::Target;
use crate::source::history::History;
use crate::source::sources::{Refusal, Rolled};
use crate::source::{Standing, Verifier};
use crate::stats::Snapshot;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Node as ApiNode, Pod};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What the server needs of the node; the agent implements it. Calls are quick and never block on I/O.
pub trait Node: Send + Sync + 'static {
    /// Node name (lowercase host name or `--hostname-override`).
    fn name(&self) -> &str;
    /// All pods of this node, with their status as of now, sorted by namespace and name.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// The Node object with its status.
    fn node(&self) -> ApiNode;
    /// Recent events, oldest first.
    fn events(&self) -> Vec<Event>;
    /// ConfigMaps and Secrets that pods may refer to.
    fn objects(&self) -> Arc<Objects>;
    /// A revision that grows with every change of pods, objects or events; also the `resourceVersion` of lists.
    fn changes(&self) -> watch::Receiver<u64>;
    /// The image store (its calls block: use them on the blocking pool).
    fn images(&self) -> Arc<ImageStore>;
    /// Who removes images (its calls block, too).
    fn collector(&self) -> Arc<Collector>;
    /// Pulls an image; what happens is told until it ends, with a [`PullEnd`](types::PullEnd) last. Dropping the
    /// receiver gives it up.
    fn pull(&self, image: &str) -> mpsc::UnboundedReceiver<types::PullLine>;
    /// The folder that `apply` writes to.
    fn manifest_dir(&self) -> PathBuf;
    /// What has to accept a manifest that `apply` writes; `None`: manifests need no signature.
    fn verifier(&self) -> Option<Arc<Verifier>>;
    /// The log file of a container's present (`previous`: last but one) run; `Err` says why there is none.
    fn log_file(&self, namespace: &str, pod: &str, container: &str, previous: bool) -> Result<PathBuf, String>;
    /// Where to exec; `Err` says why not (kubelet's wording: `container not found ("x")`).
    fn exec_target(&self, namespace: &str, pod: &str, container: &str) -> Result<Target, String>;
    /// The network namespace of a pod, for its ports; `None`: the machine's. `Err` says why there is none.
    fn network(&self, namespace: &str, pod: &str) -> Result<Option<PathBuf>, String>;
    /// What pods and the node use, from a pass that is at most that old (metrics are scraped by several; one pass serves
    /// them all).
    fn stats(&self, max_age: Duration) -> BoxFuture<'static, Arc<Snapshot>>;
    /// What the node was told.
    fn config(&self) -> Arc<Config>;
    /// What is on the machine of the pod of this uid, as it is recorded (it reads files: use it on the blocking pool).
    fn present(&self, uid: &str) -> Option<Present>;
    /// Why no container can start, and why none gets a network, if that is so.
    fn problems(&self) -> [Option<String>; 2];
    /// Metrics in the Prometheus text format.
    fn metrics(&self) -> String;
    /// How often probes came out how (`/metrics/probes`), in the Prometheus text format.
    fn probe_metrics(&self) -> String {
        String::new()
    }
    /// Where requests are counted.
    fn requests(&self) -> Requests {
        Requests::default()
    }
    /// Ask every source to look again now (after `apply` and `delete`).
    fn rescan(&self);
    /// What is known of a pod name, given with or without the node's suffix.
    fn history(&self, namespace: &str, name: &str) -> Option<History>;
    /// How a pod that runs stands to its manifest.
    fn standing(&self, namespace: &str, name: &str) -> Option<Standing>;
    /// Has an older revision of a pod run (`None`: the one before). What comes out is on the disk then.
    fn roll_back(
        &self,
        namespace: &str,
        name: &str,
        to: Option<u64>,
    ) -> BoxFuture<'static, Result<(Key, Rolled), Refusal>>;
    /// What was listed lately, for watches.
    fn lists(&self) -> &Lists;
    /// The local Kubernetes API on loopback.
    fn local_api(&self) -> &Arc<LocalApi>;
    /// Images came in: pods that wait for one look now (after `image import`).
    fn images_changed(&self);
    /// When the agent started, by its own time.
    fn started(&self) -> Timestamp;
    /// How long the agent's loop has given no sign of life: seconds, unless something is wrong.
    fn quiet_for(&self) -> Duration;
    /// How the node stands to a cluster; `None`: it never can be in one.
    fn cluster(&self) -> Option<Handle>;
}

/// Why the node's API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket or port cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// Path of the socket, or address and port.
        address: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// Another agent answers on the socket.
    #[error("{} is in use: another agent runs on this run directory", .0.display())]
    InUse(PathBuf),
}

impl Error {
    /// Whether the machine does not have the address, which may change: an interface that is not up yet.
    #[must_use]
    pub fn is_no_address(&self) -> bool {
        matches!(self, Error::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrNotAvailable)
    }
}

/// The pod of that name, given with or without the node's suffix.
pub(crate) fn find_pod(node: &dyn Node, namespace: &str, name: &str) -> Option<Arc<Pod>> {
    let pods = node.pods();
    let named = |wanted: &str| {
        let fits = |pod: &&Arc<Pod>| {
            pod.metadata.name.as_deref() == Some(wanted) && pod.metadata.namespace.as_deref() == Some(namespace)
        };
        pods.iter().find(fits).cloned()
    };
    named(name).or_else(|| named(&format!("{name}-{}", node.name())))
}

#[cfg(test)]
mod tests;
