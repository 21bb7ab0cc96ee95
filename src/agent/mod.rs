//! The event loop: one worker per pod; the only place that wires layers.
//!
//! The agent itself holds no truth: everything that it knows of pods is on disk and in shims, so it can be killed at
//! any instant, upgraded and started again without touching a container.

mod admission;
mod bound;
mod cluster;
mod collect;
mod events;
mod gates;
mod heal;
mod hooks;
mod hotplug;
mod eviction;
mod images;
mod listeners;
mod metrics;
mod node;
mod objects;
mod own;
mod probed;
mod prober;
mod pulled;
mod pulls;
mod readiness;
mod shown;
mod trial;
mod usage;
mod worker;

use crate::cluster as api;
use crate::config::Config;
use crate::manifest::{Object, Objects};
use crate::pod::status::NodeFacts;
use crate::pod::{Key, Spec, Supply, is_from_api};
use crate::runtime::{self, Runtime};
use crate::server;
use crate::source::{KeyError, Merged, SourceKind, Verifier, sources};
use crate::sys::clock;
use events::{Note, pod_reference};
use jiff::SignedDuration;
use node::{Parts, Shared};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use worker::{Handle, Wish};

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call of the set-up failed.
    #[error("cannot set up the agent: {what}")]
    SetUp {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The runtime cannot start.
    #[error("cannot start the runtime")]
    Runtime(#[from] runtime::Error),
    /// A listener cannot be opened.
    #[error("cannot serve the API")]
    Server(#[from] server::Error),
    /// Keys of manifests that are none.
    #[error("cannot verify manifests")]
    Keys(#[from] KeyError),
    /// Another agent uses the same run directory.
    #[error("another agent runs with the run directory {}", .0.display())]
    Running(PathBuf),
}

/// Threads for blocking work; they end when idle.
const BLOCKING_THREADS: usize = 24;
/// How long a thread for blocking work stays when there is none.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Stack of such a thread: reading YAML recurses.
const THREAD_STACK: usize = 2 * 1024 * 1024;
/// How long the API waits for the pods that were there before.
const ADOPTION: Duration = Duration::from_secs(3);
/// Between two looks at finished log files.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// Run the node until SIGTERM or SIGINT; pods keep running when it returns.
///
/// # Errors
/// When the set-up fails; whatever goes wrong with a pod later is an event of that pod instead.
pub fn run(config: Config) -> Result<(), Error> {
    crate::sys::process::share_the_heap();
    let set_up = |what| move |source| Error::SetUp { what, source };
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .thread_stack_size(THREAD_STACK)
        .thread_name("coracle-work")
        .build()
        .map_err(set_up("the event loop"))?;
    let result = executor.block_on(serve(config));
    executor.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: Config) -> Result<(), Error> {
    let config = Arc::new(config);
    let set_up = |what| move |source| Error::SetUp { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(set_up("the SIGTERM handler"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(set_up("the SIGINT handler"))?;
    let records = ["manifests", "manifests/urls", "pods"].map(|folder| config.root_dir.join(folder));
    clock::learn(records.iter().map(PathBuf::as_path));
    let runtime = Arc::new(Runtime::open(&config)?);
    let _lock = runtime
        .lock_run_dir()
        .map_err(set_up("the lock of the run directory"))?
        .ok_or_else(|| Error::Running(config.run_dir.clone()))?;
    // Pods of other file systems would fail one by one, and late.
    let overlays = crate::sys::overlay::probe(&config.root_dir);
    if let Err(error) = &overlays {
        tracing::warn!("containers cannot start: {error}");
    }
    let max_backoff =
        SignedDuration::try_from(config.max_container_restart_period).unwrap_or(crate::pod::restart::MAX_BACKOFF);
    let found = runtime.scan()?;
    let verifier = Verifier::new(&config.sources.public_keys, Some(config.root_dir.join("serials.json")))?;
    let (mut wishes, sources) = sources::start(&config, verifier.as_ref()).map_err(set_up("the manifest sources"))?;
    let cluster = api::start(&config);
    let api::Handle { mut bound, mut supply, node: mut own_node, .. } = cluster.handle.clone();
    let wanted = Arc::new(collect::Wanted::default());
    let (collector, removals) = collect::collector(&config, &runtime, &wanted);
    let images_changed = Arc::new(Notify::new());
    let shared = Arc::new(Shared::new(Parts {
        collector,
        images: config.images.clone(),
        images_changed: Arc::clone(&images_changed),
        name: config.node_name.clone(),
        facts: NodeFacts { host_ips: runtime.machine().host_ips.clone(), max_backoff },
        runtime: Arc::clone(&runtime),
        config: Arc::clone(&config),
        labels: config.node_labels.clone(),
        manifest_dir: config.manifest_dir.clone(),
        sources,
        verifier,
        cluster: cluster.handle.clone(),
    }));
    if let Err(error) = overlays {
        tokio::spawn(readiness::watch(Arc::clone(&shared), config.root_dir.clone(), error.to_string()));
    }
    let (shutdown, shutting_down) = watch::channel(false);
    let api: Arc<dyn server::Node> = Arc::clone(&shared) as Arc<dyn server::Node>;
    let socket = config.run_dir.join("coracle.sock");
    let listener = server::Listener::bind(&socket)?;
    listeners::open(&config, &api, &shutting_down).await?;
    tokio::spawn(images::watch(Arc::clone(&shared), config.root_dir.join("images"), Arc::clone(&images_changed)));

    let registries = Arc::clone(runtime.registries());
    let refetch: heal::Refetch = Arc::new(move |store, _, origin| {
        // Nobody gives up on an image that was here: its requests have time-outs of their own.
        let fetched = registries.refetch(store, origin, &AtomicBool::new(false), &|_| {});
        fetched.map(drop).map_err(|error| runtime::chain(&error))
    });
    tokio::spawn(heal::watch(Arc::clone(&shared), refetch, Arc::clone(&images_changed)));

    let evicted = Arc::new(Notify::new());
    let thresholds = config.eviction.clone();
    let thresholds = if config.enforce_pods { thresholds.with_memory_of_pods() } else { thresholds };
    tokio::spawn(eviction::watch(Arc::clone(&shared), thresholds, Arc::clone(&evicted)));

    let (ended_sender, mut ended) = mpsc::unbounded_channel();
    let present = found.iter().filter_map(|(key, uid)| Some((key.clone(), Arc::new(runtime.recorded(uid)?))));
    let mut agent = Agent {
        shared,
        gate: admission::Gate::new(present.collect()),
        shown: wanted,
        wanted: Vec::new(),
        workers: BTreeMap::new(),
        ended: ended_sender,
        problems: BTreeSet::new(),
        unclaimed: BTreeSet::new(),
        named: BTreeSet::new(),
        settled: false,
        merged: Arc::default(),
        bound: Arc::default(),
    };
    let adopted: Vec<Key> = found.keys().cloned().collect();
    agent.shared.adopt(found.iter().map(|(key, uid)| (key.clone(), uid.clone())).collect());
    for (key, uid) in found {
        agent.start(key, Some(uid), Wish::Keep);
    }
    agent.unclaimed = adopted.iter().cloned().collect();
    // The first scan is done already.
    agent.merged = Arc::clone(&wishes.borrow_and_update());
    agent.bound = Arc::clone(&bound.borrow_and_update());
    agent.supply(supply.borrow_and_update().clone());
    agent.apply();
    tokio::spawn(trial::watch(Arc::clone(&agent.shared), wishes.clone()));
    agent.reported(&adopted).await;
    if !agent.bound.pods.is_empty() {
        // Which of them are over is known only now.
        agent.apply();
    }
    tokio::spawn(collect::watch(Arc::clone(&agent.shared), removals));
    tokio::spawn(listener.serve(api, shutting_down));
    cluster.run(Arc::clone(&agent.shared) as Arc<dyn api::Machine>);
    // The configuration may be another one than when they were made.
    tokio::task::spawn_blocking(move || runtime.refresh_node_cgroups());
    tracing::info!(
        node = config.node_name,
        manifests = %config.manifest_dir.display(),
        pods = agent.workers.len(),
        "coracle {} is up",
        env!("CARGO_PKG_VERSION")
    );
    notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status("running")]);
    let mut watchdog = watchdog_interval().map(tokio::time::interval);
    let (mut seen_revision, mut trimmed_revision) = (0, 0);
    let mut ahead = clock::ahead();
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let tick = async {
            match &mut watchdog {
                Some(interval) => {
                    interval.tick().await;
                }
                None => std::future::pending().await,
            }
        };
        // Cancel-safe: every arm waits on a channel, a signal or an interval, none of which loses what it has not
        // handed out.
        tokio::select! {
            // It never ends: what talks to the sources holds the other end.
            Ok(()) = wishes.changed() => {
                agent.merged = Arc::clone(&wishes.borrow_and_update());
                agent.apply();
            }
            Ok(()) = bound.changed() => {
                let before = std::mem::replace(&mut agent.bound, Arc::clone(&bound.borrow_and_update()));
                agent.apply();
                for worker in gates::changed(&before, &agent.bound).iter().filter_map(|key| agent.workers.get(key)) {
                    worker.wake.notify_one();
                }
            }
            Ok(()) = supply.changed() => agent.supply(supply.borrow_and_update().clone()),
            Ok(()) = own_node.changed() => {
                own_node.mark_unchanged();
                agent.admit_again();
            }
            Some(key) = ended.recv() => agent.ended(key),
            () = images_changed.notified() => agent.wake_all(),
            () = evicted.notified() => agent.wake_all(),
            _ = housekeeping.tick() => {
                // A pod may have finished, or the pressure be over.
                agent.admit_again();
                agent.share_burstable();
                let now_ahead = clock::ahead();
                let by = now_ahead - std::mem::replace(&mut ahead, now_ahead);
                if !by.is_zero() {
                    // No wait hangs on it. But when a pod was first seen, in an earlier boot, may be told better now.
                    tracing::info!(seconds = by.as_secs(), "the clock was set");
                    agent.wake_all();
                }
                let runtime = Arc::clone(&agent.shared.runtime);
                let revision = *server::Node::changes(&*agent.shared).borrow();
                // After something happened and it is quiet again; what is needed comes back from the page cache.
                let quiet = revision == seen_revision && trimmed_revision != revision;
                (seen_revision, trimmed_revision) = (revision, if quiet { revision } else { trimmed_revision });
                tokio::task::spawn_blocking(move || {
                    runtime.tidy_logs();
                    if quiet {
                        crate::sys::process::release_memory();
                    }
                });
            }
            () = tick => notify(&[sd_notify::NotifyState::Watchdog]),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("stopping; {} pods keep running", agent.workers.len());
    notify(&[sd_notify::NotifyState::Stopping]);
    agent.shared.sources.remember().await;
    // Nobody listens any more when the servers have ended already.
    let _ = shutdown.send(true);
    Ok(())
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Half of the service manager's limit, as its documentation advises.
fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|d| !d.is_zero())
}

struct Agent {
    shared: Arc<Shared>,
    workers: BTreeMap<Key, Handle>,
    ended: mpsc::UnboundedSender<Key>,
    /// Which pods the node takes.
    gate: admission::Gate,
    /// What the source wants, in its order.
    wanted: Vec<Arc<Spec>>,
    /// The same, for those who ask which images are used.
    shown: Arc<collect::Wanted>,
    /// Problems that were reported and are still there.
    problems: BTreeSet<String>,
    /// Pods that ran when the agent started and that no manifest has named since. While some manifest is broken, it may
    /// be theirs.
    unclaimed: BTreeSet<Key>,
    /// Pods that some source has named since the agent started.
    named: BTreeSet<Key>,
    /// Whether the source was healthy once since the start.
    settled: bool,
    /// What the sources say.
    merged: Arc<Merged>,
    /// What the API server says.
    bound: Arc<api::Bound>,
}

impl Agent {
    fn start(&mut self, key: Key, uid: Option<String>, wish: Wish) {
        let handle = worker::start(Arc::clone(&self.shared), key.clone(), uid, wish, self.ended.clone());
        self.workers.insert(key, handle);
    }

    /// Wait until all these pods are reported, so that nobody who asks takes them for gone; not for long, though: a pod
    /// that hangs must not keep the others from being managed.
    async fn reported(&self, pods: &[Key]) {
        let mut changes = server::Node::changes(&*self.shared);
        let all = async {
            while !pods.iter().all(|key| self.shared.pod(key).is_some()) && changes.changed().await.is_ok() {}
        };
        if tokio::time::timeout(ADOPTION, all).await.is_err() {
            tracing::warn!("some pods are slow to be looked at; going on without them");
        }
    }

    /// Bring the workers in line with what the sources say.
    fn apply(&mut self) {
        let merged = &*Arc::clone(&self.merged);
        let bound = Arc::clone(&self.bound);
        self.serve(Arc::clone(&merged.objects));
        if !merged.pods.is_empty() || !bound.pods.is_empty() {
            // Something may start soon; the kernel's part of that can begin now.
            crate::shim::prewarm();
        }
        let mut wanted = BTreeSet::new();
        self.wanted = (merged.pods.iter())
            .filter_map(|desired| Spec::new(Arc::clone(&desired.pod)))
            .filter(|spec| wanted.insert(spec.key())) // the sources report duplicates themselves
            .map(Arc::new)
            .collect();
        let orders = self.orders(&bound, &wanted, merged);
        for spec in orders.run {
            wanted.insert(spec.key());
            self.wanted.push(spec);
        }
        self.shared.set_removals(bound::removals(&bound));
        let mut unready = merged.unready.clone();
        self.shared.sources_have_spoken.store(unready.is_empty(), Ordering::Release);
        if !bound.known {
            unready.insert(SourceKind::Api);
        }
        // Images do not wait for URLs that have never said anything, which may be for ever, on a disk that fills up: pods of
        // theirs that are on the machine keep their images, and what else such a URL may want was pulled and can be again.
        if !unready.contains(&SourceKind::File) {
            self.shown.set(&self.wanted);
        }
        if unready.is_empty() {
            self.settle(merged, &bound);
        }
        let unclaimed = std::mem::take(&mut self.unclaimed);
        // What a source that has not spoken will say may be broken.
        let doubtful: BTreeSet<SourceKind> = merged.broken.union(&unready).copied().collect();
        let may_be_broken = |key: &Key| self.may_be_from(key, &doubtful);
        self.unclaimed = unclaimed.into_iter().filter(|key| !wanted.contains(key) && may_be_broken(key)).collect();
        self.named.extend(wanted.iter().cloned());
        self.remove_unwanted(&wanted, merged, &unready);
        self.named.retain(|key| self.workers.contains_key(key) || wanted.contains(key));
        for (pod, reason, message) in orders.refuse {
            self.refuse(&pod, reason, &message);
        }
        self.admit();
        self.report(merged);
        self.tidy(&bound);
        self.shared.acted_on.store(bound.generation, Ordering::Release);
    }

    /// Whether a pod on the machine may be from a source that has not spoken. Not one that some source named since the
    /// agent started: sources keep what they said last, so that one has taken it back.
    fn may_be_of_the_silent(&self, key: &Key, unready: &BTreeSet<SourceKind>) -> bool {
        !self.named.contains(key) && self.may_be_from(key, unready)
    }

    /// Whether a pod on the machine may be from one of these kinds of sources.
    fn may_be_from(&self, key: &Key, kinds: &BTreeSet<SourceKind>) -> bool {
        match self.gate.taken(key).and_then(|spec| SourceKind::of(spec.pod())) {
            Some(kind) => kinds.contains(&kind),
            None => !kinds.is_empty(),
        }
    }

    /// Have pods find these objects: volumes follow them, and a pod that waits for one of them goes on.
    fn serve(&self, set: Arc<Objects>) {
        let runtime = &self.shared.runtime;
        let changed = match runtime.served_objects() {
            Some(served) => served.changed(&set),
            None => set.iter().map(Object::id).collect(),
        };
        if changed.is_empty() && runtime.served_objects().is_some() {
            return;
        }
        runtime.set_objects(set);
        self.shared.objects_changed();
        for worker in self.workers.values() {
            let concerned = match &*worker.wish.borrow() {
                Wish::Run(spec) => objects::concerns(spec.pod(), &changed),
                // Nobody here knows what is on the machine.
                Wish::Keep | Wish::Remove => true,
            };
            if concerned {
                worker.wake.notify_one();
            }
        }
    }

    /// What the cluster's pods are made from changed.
    fn supply(&self, supply: Option<Arc<Supply>>) {
        let Some(supply) = supply else { return };
        let before = self.shared.runtime.served_supply().unwrap_or_default();
        self.shared.runtime.set_supply(Arc::clone(&supply));
        self.shared.objects_changed();
        for worker in self.workers.values() {
            let concerned = match &*worker.wish.borrow() {
                Wish::Run(spec) => is_from_api(spec.pod()) && supply.differs(&before, spec.pod()),
                Wish::Keep | Wish::Remove => true,
            };
            if concerned {
                worker.wake.notify_one();
            }
        }
    }

    /// Pods that no manifest names go, and no longer count: when all that could name them have spoken.
    fn remove_unwanted(&mut self, wanted: &BTreeSet<Key>, merged: &Merged, unready: &BTreeSet<SourceKind>) {
        let named = |key: &Key| wanted.contains(key) || merged.refused.contains(key);
        let stays: BTreeSet<&Key> = (self.workers.keys())
            .filter(|key| named(key) || self.unclaimed.contains(*key) || self.may_be_of_the_silent(key, unready))
            .collect();
        for (key, worker) in &self.workers {
            if !stays.contains(key) {
                self.gate.release(key);
                self.shared.refuse_resize(key, None);
                worker.wish.send_if_modified(|wish| {
                    let new = !matches!(wish, Wish::Remove);
                    *wish = Wish::Remove;
                    new
                });
                // It may have to go faster than it was told before.
                worker.wake.notify_one();
            }
        }
        for key in self.gate.forget_refused(wanted) {
            if !self.workers.contains_key(&key) {
                self.shared.publish(&key, None);
            }
        }
    }

    /// Take the wanted pods: first those that the node has taken before, then the others in their order, as far as
    /// there is room. What is refused changes nothing of what runs.
    fn admit(&mut self) {
        let (known, new): (Vec<Arc<Spec>>, Vec<_>) = self.wanted.iter().cloned().partition(|spec| self.gate.has(spec));
        let (node, now) = (self.shared.view(), clock::now());
        self.gate.set_waiting(false);
        for spec in &known {
            let key = spec.key();
            if self.gate.withdraw(&key, &self.shared)
                && let Some(worker) = self.workers.get(&key)
            {
                worker.wake.notify_one();
            }
        }
        let mut run = known;
        for spec in new {
            if is_from_api(spec.pod()) && !self.gate.is_resize(&spec) {
                run.extend(self.take_bound(spec, &node));
                continue;
            }
            if self.gate.ask(&spec, &self.shared, &node, now) {
                run.push(spec);
                continue;
            }
            // A static pod is tried again when there is room.
            self.make_room(&spec, &node);
            if let Some(worker) = self.workers.get(&spec.key()) {
                // What is refused is part of what is reported.
                worker.wake.notify_one();
            } else if !self.workers.contains_key(&spec.key()) {
                let key = spec.key();
                let since = self.shared.pod(&key).filter(|p| p.metadata.uid.as_deref() == Some(spec.uid()));
                let since = since.and_then(|p| p.status.as_ref()?.start_time.as_ref().map(|t| t.0));
                self.shared.publish(&key, self.gate.refusal(&key, &self.shared.facts, since.unwrap_or(now)));
            }
        }
        // Before the first of them starts, so that its group is made with the right share.
        self.share_burstable();
        for spec in run {
            let key = spec.key();
            match self.workers.get(&key) {
                Some(worker) => {
                    worker.wish.send_if_modified(|wish| {
                        let same = matches!(wish, Wish::Run(old) if old.is(&spec));
                        if !same {
                            *wish = Wish::Run(spec);
                        }
                        !same
                    });
                }
                None => {
                    if is_from_api(spec.pod()) {
                        // Until its worker speaks for it: who ends the pod must know that it is about to start.
                        self.shared.publish(&key, Some(admission::waiting(&spec)));
                    }
                    self.start(key, None, Wish::Run(spec));
                }
            }
        }
    }

    /// Refused pods get another chance.
    fn admit_again(&mut self) {
        if self.gate.refuses_any() {
            self.admit();
        }
    }

    /// The class of Burstable pods gets as much of a busy CPU as its pods request.
    fn share_burstable(&self) {
        let runtime = Arc::clone(&self.shared.runtime);
        if runtime.set_burstable(self.gate.burstable_milli(&self.shared)) {
            tokio::task::spawn_blocking(move || runtime.share_burstable());
        }
    }

    /// The first word of a healthy source tells which folders nobody owns.
    fn settle(&mut self, merged: &Merged, bound: &api::Bound) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let pods = merged.pods.iter().map(|desired| &desired.pod).chain(&bound.pods);
        let wanted: Vec<String> = pods.filter_map(|pod| pod.metadata.uid.clone()).collect();
        let runtime = Arc::clone(&self.shared.runtime);
        tokio::task::spawn_blocking(move || runtime.remove_strays(&wanted));
    }

    /// Tell of problems once, when they appear.
    fn report(&mut self, merged: &Merged) {
        let now = clock::now();
        let mut present = BTreeSet::new();
        for problem in &merged.problems {
            let text = format!("{}: {}", problem.origin, problem.problem);
            if !present.insert(text.clone()) || self.problems.contains(&text) {
                continue;
            }
            let pod =
                problem.pod.as_ref().map(|(namespace, name)| Key { namespace: namespace.clone(), name: name.clone() });
            let object = match &pod {
                Some(key) => match self.shared.pod(key) {
                    Some(pod) => pod_reference(&pod, None),
                    None => k8s_openapi::api::core::v1::ObjectReference {
                        api_version: Some("v1".into()),
                        kind: Some("Pod".into()),
                        namespace: Some(key.namespace.clone()),
                        name: Some(key.name.clone()),
                        ..Default::default()
                    },
                },
                None => self.shared.events.node_reference(),
            };
            let warning = problem.problem.severity == crate::manifest::Severity::Error;
            let reason = if warning { "FailedValidation" } else { "ManifestWarning" };
            self.shared.note(object, &Note { warning, reason, message: text, container: None }, now);
        }
        for error in &merged.errors {
            if present.insert(error.clone()) && !self.problems.contains(error) {
                let note = Note::warning("SourceUnhealthy", format!("{error}; running pods are kept"));
                self.shared.note(self.shared.events.node_reference(), &note, now);
            }
        }
        self.problems = present;
        self.shared.set_source_error(merged.error.clone());
        let errors = merged.problems.iter().filter(|p| p.problem.severity == crate::manifest::Severity::Error).count();
        self.shared.metrics.source(errors, merged.error.is_none());
    }

    /// A worker found nothing left to do; the wish may have changed at the same moment.
    fn ended(&mut self, key: Key) {
        if let Some(handle) = self.workers.remove(&key) {
            self.shared.refuse_resize(&key, None);
            let wish = handle.wish.borrow().clone();
            if let Wish::Run(_) = wish {
                self.start(key, None, wish);
            } else {
                self.gate.release(&key);
                let bound = Arc::clone(&self.bound);
                self.tidy(&bound);
                self.admit_again();
                self.share_burstable();
            }
        }
    }

    fn wake_all(&self) {
        for worker in self.workers.values() {
            worker.wake.notify_one();
        }
    }
}
