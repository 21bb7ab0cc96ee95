//! What all workers share, and what the server sees of the node.

use super::events::{EventLog, Note};
use super::metrics::{About, Metrics};
use super::pulls::Pulls;
use super::readiness::Readiness;
use super::shown;
use super::usage::Usage;
use crate::cluster;
use crate::config::{self, Config};
use crate::image::{Collector, ImageStore};
use crate::manifest::Objects;
use crate::pod::admission::NodeView;
use crate::pod::eviction::Pressure;
use crate::pod::status::NodeFacts;
use crate::pod::{Eviction, Key, Present, RefusedResize, is_from_api};
use crate::runtime::Runtime;
use crate::server;
use crate::server::types::PullLine;
use crate::shim::exec::Target;
use crate::source::history::History;
use crate::source::sources::{Control, Refusal, Rolled};
use crate::source::{Standing, Verifier};
use crate::stats::Snapshot;
use crate::sys::clock;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerStatus, Event, Node as ApiNode, ObjectReference, Pod, PodCondition, PodSpec, PodStatus,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

/// Condition of a pod that does not run what its manifest says.
pub const MANIFEST_APPLIED: &str = "coracle.dev/ManifestApplied";

/// How many starts may be under way at once: enough to keep two cores busy.
const SLOW_ACTIONS: usize = 6;
/// How many ends: a pod may leave millions of files behind, or processes that do not go.
const SLOW_ENDS: usize = 10;

/// The agent's common ground.
pub struct Shared {
    /// Node name.
    pub name: String,
    /// For statuses.
    pub facts: NodeFacts,
    /// Executes.
    pub runtime: Arc<Runtime>,
    /// Removes images.
    pub collector: Arc<Collector>,
    /// Recent events.
    pub events: EventLog,
    /// Counters.
    pub metrics: Metrics,
    /// What is used.
    usage: Arc<Usage>,
    /// What the node was told.
    pub config: Arc<Config>,
    /// Labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// When the agent started.
    pub started: Timestamp,
    /// When its loop went round last, of those rounds that come by themselves.
    pub alive: Mutex<Timestamp>,
    /// The manifest directory.
    pub manifest_dir: PathBuf,
    /// Talks to the sources.
    pub sources: Control,
    /// Decides which manifests are accepted; `None`: they need no signature.
    pub verifier: Option<Arc<Verifier>>,
    /// Pulls images.
    pub pulls: Arc<Pulls>,
    /// Turns for actions that may take long.
    pub slow: Semaphore,
    /// Turns for what ends sandboxes and removes files.
    pub ends: Semaphore,
    pods: RwLock<BTreeMap<Key, Arc<Pod>>>,
    revision: watch::Sender<u64>,
    /// The source's state, for the Node's condition: `None` is well.
    source_error: RwLock<Option<String>>,
    /// Whether anything can start.
    readiness: Mutex<Readiness>,
    /// Whether the node is short of something, and since when (or since when not).
    pressure: RwLock<BTreeMap<Pressure, (bool, Timestamp)>>,
    /// Pods that have to leave for what they use: uid and why.
    evictions: Mutex<BTreeMap<Key, (String, Eviction)>>,
    /// What is reported of pods that do not run what their manifests say.
    departures: RwLock<BTreeMap<Key, PodCondition>>,
    /// Resizes that there is no room for.
    refused_resizes: Mutex<BTreeMap<Key, RefusedResize>>,
    /// Why pods of the cluster that are on the machine may not stay, by uid: reason and message.
    displaced: Mutex<BTreeMap<String, (&'static str, String)>>,
    /// The grace with which pods of the cluster are to end, by uid, in seconds.
    removals: Mutex<BTreeMap<String, u64>>,
    /// What was last acted on of what the cluster wants.
    pub acted_on: AtomicU64,
    /// Whether all sources of static pods have said what they want.
    pub sources_have_spoken: AtomicBool,
    /// Pods that were on the machine when the agent started, and were not looked at yet.
    adopted: Mutex<BTreeMap<Key, String>>,
    /// The cluster: what it says of the Node, how it is reached.
    pub cluster: cluster::Handle,
    /// What was listed lately.
    lists: server::Lists,
    /// The local Kubernetes API on loopback.
    local_api: Arc<server::LocalApi>,
}

/// What [`Shared::new`] takes besides what it makes.
pub struct Parts {
    /// Removes images.
    pub collector: Arc<Collector>,
    /// Node name.
    pub name: String,
    /// For statuses.
    pub facts: NodeFacts,
    /// Executes.
    pub runtime: Arc<Runtime>,
    /// How images are pulled.
    pub images: config::Images,
    /// Told when images came in.
    pub images_changed: Arc<Notify>,
    /// What the node was told.
    pub config: Arc<Config>,
    /// Labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// The manifest directory.
    pub manifest_dir: PathBuf,
    /// Talks to the sources.
    pub sources: Control,
    /// Decides which manifests are accepted; `None`: they need no signature.
    pub verifier: Option<Arc<Verifier>>,
    /// The cluster: what it says of the Node, how it is reached.
    pub cluster: cluster::Handle,
}

impl Shared {
    /// Of a node that starts now.
    #[must_use]
    pub fn new(parts: Parts) -> Shared {
        let metrics = Metrics::of(&About {
            node: &parts.name,
            kubelet_version: super::own::KUBELET_VERSION,
            architecture: parts.runtime.machine().architecture,
            cgroup_version: parts.runtime.cgroups().version().number(),
        });
        let local_api = server::LocalApi::new(&parts.config.root_dir, parts.config.server.local_api);
        let pulls = Pulls::open(&parts.runtime, parts.images, metrics.pulls.clone(), parts.images_changed);
        Shared {
            usage: Arc::new(Usage::new(&parts.runtime)),
            pulls: Arc::new(pulls),
            events: EventLog::new(&parts.name),
            name: parts.name,
            facts: parts.facts,
            runtime: parts.runtime,
            collector: parts.collector,
            metrics,
            config: parts.config,
            labels: parts.labels,
            started: clock::now(),
            alive: Mutex::new(clock::now()),
            manifest_dir: parts.manifest_dir,
            sources: parts.sources,
            verifier: parts.verifier,
            slow: Semaphore::new(SLOW_ACTIONS),
            ends: Semaphore::new(SLOW_ENDS),
            pods: RwLock::default(),
            revision: watch::Sender::new(first_revision()),
            source_error: RwLock::default(),
            readiness: Mutex::new(Readiness::new(clock::now())),
            pressure: RwLock::default(),
            evictions: Mutex::default(),
            departures: RwLock::default(),
            refused_resizes: Mutex::default(),
            displaced: Mutex::default(),
            removals: Mutex::default(),
            acted_on: AtomicU64::new(0),
            sources_have_spoken: AtomicBool::new(false),
            adopted: Mutex::default(),
            cluster: parts.cluster,
            lists: server::Lists::default(),
            local_api: Arc::new(local_api),
        }
    }

    /// The last report of a pod.
    #[must_use]
    pub fn pod(&self, key: &Key) -> Option<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Tell watchers that there are other ConfigMaps or Secrets.
    pub fn objects_changed(&self) {
        self.revision.send_modify(|r| *r += 1);
    }

    /// Report a pod; `None`: it is gone. A report that says nothing new changes nothing.
    pub fn publish(&self, key: &Key, pod: Option<Pod>) {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        match pod {
            None => match pods.remove(key) {
                None => return,
                Some(old) => self.depart(old),
            },
            Some(mut pod) => {
                self.add_departure(key, &mut pod);
                if let Some(old) = pods.get(key) {
                    pod.metadata.resource_version.clone_from(&old.metadata.resource_version);
                    if **old == pod {
                        return;
                    }
                    self.metrics.work.told(old, &pod, clock::now());
                }
                pod.metadata.resource_version = Some((*self.revision.borrow() + 1).to_string());
                let uid = pod.metadata.uid.clone();
                if let Some(old) = pods.insert(key.clone(), Arc::new(pod)).filter(|old| old.metadata.uid != uid) {
                    self.depart(old);
                }
            }
        }
        drop(pods);
        self.revision.send_modify(|r| *r += 1);
    }

    /// A pod is gone: the API server is told how it ended.
    fn depart(&self, pod: Arc<Pod>) {
        let Some(uid) = pod.metadata.uid.as_deref().filter(|_| is_from_api(&pod)) else { return };
        self.removals.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        let displaced = self.displaced.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        let ended = &self.cluster.ended;
        // What was refused is not a pod that was here.
        if !ended.has(uid) {
            // By the wall clock, as it may outlive this agent.
            let mut pod = shown::pod(pod);
            if let Some((reason, message)) = displaced {
                let status = Arc::make_mut(&mut pod).status.get_or_insert_default();
                // What was over before has ended as it did.
                if status.phase.as_deref() != Some("Succeeded") {
                    status.phase = Some("Failed".to_owned());
                    (status.reason, status.message) = (Some(reason.to_owned()), Some(message));
                }
            }
            ended.insert(pod);
        }
    }

    /// A pod of the cluster that is on the machine has to leave, and has failed then. Tells whether that is new.
    pub fn displace(&self, uid: &str, reason: &'static str, message: String) -> bool {
        let mut displaced = self.displaced.lock().unwrap_or_else(PoisonError::into_inner);
        displaced.insert(uid.to_owned(), (reason, message)).is_none()
    }

    /// Why a pod of the cluster has to leave, if it has: reason and message.
    #[must_use]
    pub fn displaced(&self, uid: &str) -> Option<(&'static str, String)> {
        self.displaced.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// The last report of a pod of the cluster that is gone, by the clock on the wall.
    pub fn departed_pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.cluster.ended.get(uid)
    }

    /// These pods were on the machine before the agent was: they are, until they are looked at.
    pub fn adopt(&self, found: BTreeMap<Key, String>) {
        *self.adopted.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// The pod of this uid as the API server has it, and the generation of its spec if that was acted on.
    #[must_use]
    pub fn copy(&self, uid: &str) -> (Option<Arc<Pod>>, Option<i64>) {
        let bound = Arc::clone(&self.cluster.bound.borrow());
        let copy = bound.pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(uid)).cloned();
        let current = self.acted_on.load(Ordering::Acquire) >= bound.generation;
        let generation = copy.as_ref().and_then(|pod| pod.metadata.generation).filter(|_| current);
        (copy.map(shown::taken_in), generation)
    }

    /// The report of the pod of this uid.
    pub fn pod_of(&self, uid: &str) -> Option<Arc<Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().find(|pod| pod.metadata.uid.as_deref() == Some(uid)).cloned()
    }

    /// Whether anything of the pod is on the machine, or about to be.
    pub fn is_reported(&self, uid: &str) -> bool {
        if self.adopted.lock().unwrap_or_else(PoisonError::into_inner).values().any(|adopted| adopted == uid) {
            return true;
        }
        self.pod_of(uid).is_some() && !self.cluster.ended.has(uid)
    }

    /// The names of reported pods of the cluster, with their uids.
    pub fn reported_from_api(&self) -> Vec<(Key, String)> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let from_api = pods.iter().filter(|(_, pod)| is_from_api(pod));
        from_api.filter_map(|(key, pod)| Some((key.clone(), pod.metadata.uid.clone()?))).collect()
    }

    /// How long pods of the cluster may take to end, by uid: those that the API server wants gone.
    pub fn set_removals(&self, removals: BTreeMap<String, u64>) {
        *self.removals.lock().unwrap_or_else(PoisonError::into_inner) = removals;
    }

    /// How long the pod may take to end, in seconds, when the API server has said so.
    #[must_use]
    pub fn removal(&self, uid: &str) -> Option<u64> {
        self.removals.lock().unwrap_or_else(PoisonError::into_inner).get(uid).copied()
    }

    /// How the manifest is not followed, as a condition of the pod.
    fn add_departure(&self, key: &Key, pod: &mut Pod) {
        let departures = self.departures.read().unwrap_or_else(PoisonError::into_inner);
        let Some(status) = &mut pod.status else { return };
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|condition| condition.type_ != MANIFEST_APPLIED);
        }
        if let Some(condition) = departures.get(key) {
            status.conditions.get_or_insert_default().push(condition.clone());
        }
    }

    /// These pods do not run what their manifests say; all others do.
    pub fn set_departures(&self, departures: BTreeMap<Key, PodCondition>) {
        let mut known = self.departures.write().unwrap_or_else(PoisonError::into_inner);
        let concerned: BTreeSet<Key> = known.keys().chain(departures.keys()).cloned().collect();
        let changed: Vec<Key> = concerned.into_iter().filter(|key| known.get(key) != departures.get(key)).collect();
        *known = departures;
        drop(known);
        for key in changed {
            if let Some(pod) = self.pod(&key) {
                self.publish(&key, Some(Pod::clone(&pod)));
            }
        }
    }

    /// Record an event, and log it.
    pub fn note(&self, object: ObjectReference, note: &Note, now: Timestamp) {
        let (reason, message, container) = (note.reason, &note.message, note.container.as_deref());
        if message.starts_with("Pod was rejected: ") {
            self.metrics.work.rejected(reason);
        }
        if note.warning {
            tracing::warn!(reason, container, "{message}");
        } else {
            tracing::info!(reason, container, "{message}");
        }
        self.events.record(object, note, now);
        self.revision.send_modify(|r| *r += 1);
    }

    /// Whether the source is well.
    pub fn set_source_error(&self, error: Option<String>) {
        *self.source_error.write().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// What the node is short of now.
    pub fn set_pressure(&self, bad: &BTreeSet<Pressure>, now: Timestamp) {
        let mut known = self.pressure.write().unwrap_or_else(PoisonError::into_inner);
        for pressure in Pressure::ALL {
            let is_bad = bad.contains(&pressure);
            let state = known.entry(pressure).or_insert((false, self.started));
            if state.0 != is_bad {
                *state = (is_bad, now);
                self.revision.send_modify(|r| *r += 1);
            }
        }
    }

    /// A resize of the pod of this name is refused; `None`: none is. What was refused before is forgotten.
    pub fn refuse_resize(&self, key: &Key, refused: Option<RefusedResize>) {
        let mut all = self.refused_resizes.lock().unwrap_or_else(PoisonError::into_inner);
        match refused {
            Some(refused) => all.insert(key.clone(), refused),
            None => all.remove(key),
        };
    }

    /// The resize of the pod of this name that is refused.
    #[must_use]
    pub fn refused_resize(&self, key: &Key) -> Option<RefusedResize> {
        self.refused_resizes.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Have a pod leave; false when it has to already, or is leaving or gone: a word that nobody takes would meet the next
    /// pod of its name.
    pub fn evict(&self, key: &Key, uid: String, eviction: Eviction) -> bool {
        let stays = |pod: &Pod| pod.metadata.uid.as_deref() == Some(&uid) && pod.metadata.deletion_timestamp.is_none();
        if !self.pod(key).is_some_and(|pod| stays(&pod)) {
            return false;
        }
        let mut all = self.evictions.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get(key) {
            Some((known, _)) if *known == uid => false,
            _ => {
                all.insert(key.clone(), (uid, eviction));
                true
            }
        }
    }

    /// Why the pod of this uid has to leave, if it has to. A word about an earlier pod of the name is forgotten.
    #[must_use]
    pub fn eviction(&self, key: &Key, uid: &str) -> Option<Eviction> {
        let mut all = self.evictions.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(key).is_some_and(|(of, _)| of != uid) {
            all.remove(key);
        }
        all.get(key).map(|(_, eviction)| eviction.clone())
    }

    /// The pod of this name has left: its uid and why it had to, once.
    pub fn take_eviction(&self, key: &Key) -> Option<(String, Eviction)> {
        self.evictions.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }

    /// Whether the node is short of disk space.
    #[must_use]
    pub fn is_short_of_disk(&self) -> bool {
        let pressure = self.pressure.read().unwrap_or_else(PoisonError::into_inner);
        pressure.get(&Pressure::Disk).is_some_and(|(bad, _)| *bad)
    }

    /// The node as admission sees it.
    #[must_use]
    pub fn view(&self) -> NodeView {
        let pressure = self.pressure.read().unwrap_or_else(PoisonError::into_inner);
        let api = self.api_node();
        NodeView {
            name: self.name.clone(),
            labels: api.as_ref().and_then(|node| node.metadata.labels.clone()).unwrap_or_else(|| self.own_labels()),
            taints: api.and_then(|node| node.spec.as_ref()?.taints.clone()).unwrap_or_default(),
            allocatable: self.runtime.resources().allocatable.clone(),
            unsafe_sysctls: self.runtime.unsafe_sysctls().to_vec(),
            kernel: self.runtime.machine().kernel.clone(),
            pressure: pressure.iter().filter(|(_, (bad, _))| *bad).map(|(p, _)| p.as_str()).collect(),
        }
    }

    /// The Node object as the API server has it; `None`: there is no cluster, or it has none.
    fn api_node(&self) -> Option<Arc<ApiNode>> {
        self.cluster.node.borrow().clone()
    }

    /// Whether the node is short of something, and since when (or since when not).
    pub(super) fn pressure_of(&self, pressure: Pressure) -> (Pressure, bool, Timestamp) {
        let known = self.pressure.read().unwrap_or_else(PoisonError::into_inner);
        let (is_bad, since) = known.get(&pressure).copied().unwrap_or((false, self.started));
        (pressure, is_bad, since)
    }

    /// What is wrong with the manifest sources.
    pub(super) fn source_error(&self) -> Option<String> {
        self.source_error.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why no pod can start, and since when that is so, or not so.
    pub(super) fn readiness(&self, now: Timestamp) -> (Option<String>, Timestamp) {
        let mut readiness = self.readiness.lock().unwrap_or_else(PoisonError::into_inner);
        readiness.look(self.runtime.network_problem(), now)
    }

    /// Why containers cannot start; `None`: they can.
    pub(super) fn set_runtime_problem(&self, problem: Option<String>) {
        self.readiness.lock().unwrap_or_else(PoisonError::into_inner).set_runtime(problem);
        self.revision.send_modify(|r| *r += 1);
    }
}

/// The revision that a node begins with: one that it has not had before, so that who was here before a restart is told that
/// what they know is old. A clock that was set back is caught by clients at their next list.
fn first_revision() -> u64 {
    u64::try_from(clock::wall().as_millisecond()).unwrap_or(1).max(1)
}

impl server::Node for Shared {
    fn name(&self) -> &str {
        &self.name
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().map(shown::pod).collect()
    }

    fn node(&self) -> ApiNode {
        let mut node = self.own_node();
        node.metadata.resource_version = Some(self.revision.borrow().to_string());
        // Events of the node have its name for a UID (as kubelet's), and so must not be told twice by who asks for both.
        node.metadata.uid = Some(format!("{}-node", self.name));
        if let Some(api) = self.api_node() {
            // What others made of it.
            node.metadata.uid.clone_from(&api.metadata.uid);
            node.metadata.labels = api.metadata.labels.clone().or(node.metadata.labels);
            node.spec.clone_from(&api.spec);
        }
        shown::node(node)
    }

    fn events(&self) -> Vec<Event> {
        shown::events(self.events.list())
    }

    fn objects(&self) -> Arc<Objects> {
        self.runtime.objects()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn images(&self) -> Arc<ImageStore> {
        self.runtime.images()
    }

    fn collector(&self) -> Arc<Collector> {
        Arc::clone(&self.collector)
    }

    fn pull(&self, image: &str) -> mpsc::UnboundedReceiver<PullLine> {
        self.pulls.by_hand(image)
    }

    fn manifest_dir(&self) -> PathBuf {
        self.manifest_dir.clone()
    }

    fn verifier(&self) -> Option<Arc<Verifier>> {
        self.verifier.clone()
    }

    fn log_file(&self, namespace: &str, pod: &str, container: &str, previous: bool) -> Result<PathBuf, String> {
        let (pod, status) = self.container(namespace, pod, container)?;
        let Some(status) = status.filter(|s| s.container_id.is_some()) else {
            return Err(format!("container \"{container}\" in pod \"{}\" is waiting to start", name_of(&pod)));
        };
        let attempt = u32::try_from(status.restart_count).unwrap_or(0);
        let attempt = if previous {
            attempt.checked_sub(1).ok_or_else(|| {
                format!("previous terminated container \"{container}\" in pod \"{}\" not found", name_of(&pod))
            })?
        } else {
            attempt
        };
        Ok(self.runtime.log_file(&pod, container, attempt))
    }

    fn exec_target(&self, namespace: &str, pod: &str, container: &str) -> Result<Target, String> {
        let (pod, status) = self.container(namespace, pod, container)?;
        let running = status.and_then(|s| {
            s.state.as_ref()?.running.as_ref()?;
            s.container_id.clone().map(|id| (id, s.restart_count))
        });
        let Some((id, attempt)) = running else {
            return Err(format!("container not found (\"{container}\")"));
        };
        let id = id.trim_start_matches("coracle://");
        let attempt = u32::try_from(attempt).unwrap_or(0);
        Ok(self.runtime.exec_target(pod.metadata.uid.as_deref().unwrap_or_default(), container, attempt, id))
    }

    fn network(&self, namespace: &str, pod: &str) -> Result<Option<PathBuf>, String> {
        // By its whole name, as a container is found: pods of the cluster have no source with a history.
        let key = Key { namespace: namespace.to_owned(), name: pod.to_owned() };
        let pod = self.pod(&key).ok_or_else(|| format!("pods \"{pod}\" not found"))?;
        if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
            return Ok(None);
        }
        let netns = self.runtime.network_namespace(pod.metadata.uid.as_deref().unwrap_or_default());
        netns.map(Some).ok_or_else(|| format!("pod \"{}\" has no sandbox", name_of(&pod)))
    }

    fn stats(&self, max_age: std::time::Duration) -> BoxFuture<'static, Arc<Snapshot>> {
        let (usage, pods) = (Arc::clone(&self.usage), server::Node::pods(self));
        Box::pin(async move { usage.look(max_age, pods).await })
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config)
    }

    fn started(&self) -> Timestamp {
        self.started
    }

    fn quiet_for(&self) -> std::time::Duration {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        clock::now().duration_since(*alive).try_into().unwrap_or_default()
    }

    fn present(&self, uid: &str) -> Option<Present> {
        self.runtime.observe(Some(uid)).present
    }

    fn problems(&self) -> [Option<String>; 2] {
        let runtime = self.readiness.lock().unwrap_or_else(PoisonError::into_inner).runtime_problem();
        [runtime, self.runtime.network_problem()]
    }

    fn cluster(&self) -> Option<cluster::Handle> {
        Some(self.cluster.clone())
    }

    fn metrics(&self) -> String {
        let expires = self.cluster.state.borrow().membership().and_then(|membership| membership.expires);
        self.metrics.certificate(expires.map(|at| at.duration_since(clock::wall())), self.cluster.renewals_failed());
        let serving = self.cluster.serving.borrow().as_ref().map(|serving| serving.ends());
        self.metrics.serving(serving.map(|ends| ends.duration_since(clock::wall())));
        self.metrics.render(&server::Node::pods(self))
    }

    fn requests(&self) -> server::Requests {
        self.metrics.requests.clone()
    }

    fn probe_metrics(&self) -> String {
        self.metrics.probes.render()
    }

    fn rescan(&self) {
        self.sources.rescan();
    }

    fn history(&self, namespace: &str, name: &str) -> Option<History> {
        self.named(namespace, name).and_then(|key| self.sources.history(&key))
    }

    fn standing(&self, namespace: &str, name: &str) -> Option<Standing> {
        self.named(namespace, name).and_then(|key| self.sources.standing(&key))
    }

    fn roll_back(
        &self,
        namespace: &str,
        name: &str,
        to: Option<u64>,
    ) -> BoxFuture<'static, Result<(Key, Rolled), Refusal>> {
        let (sources, key) = (self.sources.clone(), self.named(namespace, name));
        let name = name.to_owned();
        Box::pin(async move {
            let key = key.ok_or(Refusal::Unknown(name))?;
            let rolled = sources.roll_back(&key, to)?;
            // Whoever is told that it is done relies on it.
            sources.remember().await;
            Ok((key, rolled))
        })
    }

    fn lists(&self) -> &server::Lists {
        &self.lists
    }

    fn local_api(&self) -> &Arc<server::LocalApi> {
        &self.local_api
    }

    fn images_changed(&self) {
        self.pulls.images_changed();
    }
}

/// Of all containers, init containers first.
fn statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
}

fn name_of(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

type StatusOf = Option<ContainerStatus>;

impl Shared {
    /// The pod name with a history, given with or without the node's suffix.
    fn named(&self, namespace: &str, name: &str) -> Option<Key> {
        let full = [name.to_owned(), format!("{name}-{}", self.name)];
        let keys = full.into_iter().map(|name| Key { namespace: namespace.to_owned(), name });
        keys.into_iter().find(|key| self.sources.history(key).is_some())
    }

    fn container(&self, namespace: &str, name: &str, container: &str) -> Result<(Arc<Pod>, StatusOf), String> {
        let key = Key { namespace: namespace.to_owned(), name: name.to_owned() };
        let pod = self.pod(&key).ok_or_else(|| format!("pods \"{name}\" not found"))?;
        let all = |s: &PodSpec| s.init_containers.iter().flatten().chain(&s.containers).any(|c| c.name == container);
        let known = pod.spec.as_ref().is_some_and(all);
        if !known {
            return Err(format!("container {container} is not valid for pod {name}"));
        }
        let status = pod.status.iter().flat_map(statuses).find(|s| s.name == container).cloned();
        Ok((pod, status))
    }
}
