//! What all tasks of a session share. It outlives sessions: what was learned holds while nobody answers.

use super::ended::Ended;
use super::kept::Kept;
use super::rate::Rate;
use super::review::Reviewer;
use super::serving::Serving;
use super::supply::Shelf;
use super::{Bound, Handle, State, events, leave, node};
use crate::config::{Cluster, Config};
use crate::pod::Supply;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, mpsc, watch};

/// Pods of this node as the API server has them, mirror pods included.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Whether this is all of them: the first list of this session is complete.
    pub(super) synced: bool,
    /// By UID.
    pub(super) pods: BTreeMap<String, Arc<Pod>>,
}

/// Common ground.
pub(super) struct Context {
    pub(super) node_name: String,
    pub(super) config: Cluster,
    /// Below it is what is kept for times without an API server (0700).
    pub(super) records: PathBuf,
    /// The bound pods on disk.
    pub(super) kept: Arc<Mutex<Kept>>,
    /// What bound pods are made from, on disk.
    pub(super) shelf: Arc<Shelf>,
    /// Told by [`super::pods`].
    pub(super) known: watch::Sender<Arc<Known>>,
    /// Told by [`super::pods`].
    pub(super) bound: watch::Sender<Arc<Bound>>,
    /// Told by [`super::supply`].
    pub(super) supply: watch::Sender<Option<Arc<Supply>>>,
    /// Told by [`super::node`].
    pub(super) node: watch::Sender<Option<Arc<Node>>>,
    /// Told by [`super::connection`].
    pub(super) state: watch::Sender<State>,
    /// Told by [`super::connection`].
    pub(super) reviewer: watch::Sender<Option<Reviewer>>,
    /// Told by [`super::serving`].
    pub(super) serving: watch::Sender<Option<Arc<Serving>>>,
    /// Whether the cluster is asked for a certificate to serve with (`serverTLSBootstrap`).
    pub(super) wants_serving: bool,
    /// Look for credentials now.
    pub(super) look: Arc<Notify>,
    /// Turns for requests (`kubeAPIQPS`, `kubeAPIBurst`).
    pub(super) rate: Mutex<Rate>,
    /// Which events were sent.
    pub(super) events: Mutex<events::Ledger>,
    /// What was told of the node itself.
    pub(super) told: Mutex<node::Told>,
    /// No certificate is renewed before this, by the time that nobody sets.
    pub(super) rests_until: Mutex<Option<Timestamp>>,
    /// How many times a new certificate could not be had.
    pub(super) renewals_failed: Arc<AtomicU64>,
}

impl Context {
    /// With what is known from before.
    pub(super) fn open(config: &Config) -> (Context, Handle, mpsc::Receiver<leave::Order>) {
        let records = config.root_dir.join("cluster");
        let alone = [&records, &config.cluster.kubeconfig, &config.cluster.bootstrap_kubeconfig];
        // Where there never was a cluster, no pod on the machine is one of its.
        let alone = alone.iter().all(|path| !path.exists());
        let (pods_kept, pods, complete) = Kept::open(records.join("pods"));
        let known = alone || complete;
        let (bound, bound_receiver) = watch::channel(Arc::new(Bound { generation: 0, known, pods }));
        let (shelf, supply) = Shelf::open(records.join("objects"), config.cluster.sealing_key_file.as_deref());
        let (supply, supply_receiver) = watch::channel(supply.map(Arc::new));
        let recalled = node::recalled(&records);
        let told = node::Told::before(recalled.as_ref());
        let (node, node_receiver) = watch::channel(recalled.map(Arc::new));
        let (state, state_receiver) = watch::channel(State::default());
        let (reviewer, reviewer_receiver) = watch::channel(None);
        let wants_serving = config.server.server_tls_bootstrap;
        let kept = wants_serving.then(|| Serving::kept(&config.cluster.cert_dir)).flatten();
        let (serving, serving_receiver) = watch::channel(kept.map(Arc::new));
        let look = Arc::new(Notify::new());
        let ended = Ended::open(records.join("ended"));
        let renewals_failed = Arc::new(AtomicU64::new(0));
        let (leaves, leave_receiver) = mpsc::channel(1);
        let context = Context {
            node_name: config.node_name.clone(),
            config: config.cluster.clone(),
            records,
            kept: Arc::new(Mutex::new(pods_kept)),
            shelf: Arc::new(shelf),
            known: watch::Sender::default(),
            bound,
            supply,
            node,
            state,
            reviewer,
            serving,
            wants_serving,
            look: Arc::clone(&look),
            rate: Mutex::new(Rate::new(config.cluster.request_rate.0, config.cluster.request_rate.1)),
            events: Mutex::default(),
            told: Mutex::new(told),
            rests_until: Mutex::default(),
            renewals_failed: Arc::clone(&renewals_failed),
        };
        let handle = Handle {
            bound: bound_receiver,
            supply: supply_receiver,
            node: node_receiver,
            state: state_receiver,
            reviewer: reviewer_receiver,
            serving: serving_receiver,
            config: Arc::new(config.cluster.clone()),
            ended,
            look,
            leaves,
            renewals_failed,
        };
        (context, handle, leave_receiver)
    }
}
