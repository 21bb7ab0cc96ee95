//! One worker per pod name: observe, plan, execute, sleep until something changes.

use super::events::{Note, pod_reference};
use super::hooks::{self, Hooks};
use super::hotplug::{self, Hotplug};
use super::node::Shared;
use super::objects::{self, Follower};
use super::prober::{self, Prober};
use super::pulls;
use crate::pod::{
    Action, Eviction, Failure, Health, HookKind, HookState, Instance, Key, Observed, Present, Role, Sandbox, Spec,
    is_from_api, plan, status,
};
use crate::probe;
use crate::runtime;
use crate::shim;
use crate::sys::clock;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};

/// What the sources want of a pod name.
#[derive(Debug, Clone)]
pub enum Wish {
    /// This pod.
    Run(Arc<Spec>),
    /// Whatever is on the machine: its source has not spoken yet, or is not healthy.
    Keep,
    /// Nothing.
    Remove,
}

/// How the agent talks to a worker.
pub struct Handle {
    /// What is wanted.
    pub wish: watch::Sender<Wish>,
    /// Look again now (images changed).
    pub wake: Arc<Notify>,
}

/// Longest pause between two attempts of a step that keeps failing.
const MAX_RETRY: SignedDuration = SignedDuration::from_secs(10);
/// Between two attempts of what will not work until it is wished differently.
const NEVER: SignedDuration = SignedDuration::from_hours(1);
/// Between two looks at a pod whose shim cannot be listened to.
const DEAF: SignedDuration = SignedDuration::from_secs(2);
/// First pause before a pod that had to leave starts again; it doubles with each time.
const EVICTED: SignedDuration = SignedDuration::from_secs(10);
/// The longest one.
const MAX_EVICTED: SignedDuration = SignedDuration::from_secs(300);
/// Longest sleep: the runtime's timers stand still while the machine sleeps, deadlines do not.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// Start a worker; `uid` is the pod that is on the machine under this name already. Its key is sent to `ended` when
/// nothing is left of the pod and nothing is wanted.
pub fn start(
    shared: Arc<Shared>,
    key: Key,
    uid: Option<String>,
    wish: Wish,
    ended: mpsc::UnboundedSender<Key>,
) -> Handle {
    let (sender, receiver) = watch::channel(wish);
    let wake = Arc::new(Notify::new());
    let book = Arc::clone(&shared.metrics.probes);
    let worker = Worker {
        shared,
        key: key.clone(),
        uid,
        wish: receiver,
        wake: Arc::clone(&wake),
        events: None,
        failure: None,
        container_failures: BTreeMap::new(),
        hooks: Hooks::default(),
        prober: Prober::new(Arc::clone(&wake), book),
        hotplug: Hotplug::default(),
        follower: Follower::default(),
        evicted: None,
        told: BTreeSet::new(),
        conditions: Default::default(),
        first: true,
    };
    let span = tracing::info_span!("pod", ns = key.namespace, name = key.name);
    tokio::spawn(tracing::Instrument::instrument(
        async move {
            worker.run().await;
            // The agent is gone when nobody listens; then there is nobody to tell.
            let _ = ended.send(key);
        },
        span,
    ));
    Handle { wish: sender, wake }
}

struct Worker {
    shared: Arc<Shared>,
    key: Key,
    uid: Option<String>,
    wish: watch::Receiver<Wish>,
    wake: Arc<Notify>,
    /// The shim's change notices, and whose shim.
    events: Option<(String, AsyncFd<OwnedFd>)>,
    failure: Option<Failure>,
    container_failures: BTreeMap<String, Failure>,
    hooks: Hooks,
    prober: Prober,
    hotplug: Hotplug,
    follower: Follower,
    /// How many times in a row the pod had to leave, and when it last had.
    evicted: Option<(u32, Timestamp)>,
    /// Ends of runs (by container ID) that were reported.
    told: BTreeSet<String>,
    /// What was written down of the pod's conditions, and of which pod.
    conditions: (String, Vec<PodCondition>),
    first: bool,
}

impl Worker {
    async fn run(mut self) {
        if let Some(uid) = self.uid.clone() {
            let of = uid.clone();
            let told = self.blocking(move |runtime| runtime.told(&of)).await;
            self.conditions = (uid, told.unwrap_or_default());
        }
        loop {
            if self.wish.has_changed().unwrap_or(true) {
                self.failure = None;
                self.evicted = None;
                self.container_failures.clear();
            }
            let wish = self.wish.borrow_and_update().clone();
            let wanted = if let Wish::Run(spec) = &wish { Some(spec.pod()) } else { None };
            if self.follower.is_news(&self.shared.runtime, wanted) {
                self.retry(&["FailedMount", "CreateContainerConfigError"], clock::now());
            }
            let Some(seen) = self.observe(&wish).await else { return };
            // Without a subscription nobody tells when the shim has news: look by ourselves.
            let deaf = self.events.is_none() && seen.present.as_ref().is_some_and(|p| p.sandbox == Sandbox::Ready);
            let desired = match &wish {
                Wish::Run(spec) => Some(Arc::clone(spec)),
                Wish::Keep => seen.present.as_ref().map(|p| Arc::new(p.spec.clone())),
                Wish::Remove => None,
            };
            let now = clock::now();
            self.tell_exits(&seen, now);
            let look_again = self.plug(desired.as_deref(), &seen, now).await;
            let look_again = self.follow(&seen, now).await.into_iter().chain(look_again).min();
            self.publish(desired.as_deref(), &seen, now);
            let mut plan = plan(desired.as_deref(), &seen, self.shared.facts.max_backoff, now);
            if let Some(spec) = seen.present.as_ref().map(|present| &present.spec).or(desired.as_deref())
                && let Some(until) = self.follower.hold_back(&self.shared.runtime, spec, &mut plan.actions, now)
            {
                plan.wake_at = Some(plan.wake_at.map_or(until, |wake| wake.min(until)));
            }
            if plan.actions.is_empty() {
                if desired.is_none() && seen.present.is_none() {
                    self.shared.publish(&self.key, None);
                    return;
                }
                let wake_at = match deaf {
                    true => now.checked_add(DEAF).ok().map(|at| plan.wake_at.map_or(at, |wake| wake.min(at))),
                    false => plan.wake_at,
                };
                let wake_at = wake_at.into_iter().chain(look_again).min();
                self.remember(&seen).await;
                if !self.sleep(wake_at).await {
                    return;
                }
                continue;
            }
            for action in plan.actions {
                if !self.execute(desired.as_ref(), &seen, action).await {
                    break;
                }
            }
        }
    }

    async fn blocking<T: Send + 'static>(&self, f: impl FnOnce(&runtime::Runtime) -> T + Send + 'static) -> Option<T> {
        let runtime = Arc::clone(&self.shared.runtime);
        // An error here means that the agent is shutting down (a panic aborts the process).
        tokio::task::spawn_blocking(move || f(&runtime)).await.ok()
    }

    async fn observe(&mut self, wish: &Wish) -> Option<Observed> {
        let uid = self.uid.clone();
        let wanted = match wish {
            Wish::Run(spec) => Some(Arc::clone(spec)),
            Wish::Keep | Wish::Remove => None,
        };
        let subscribed = self.events.as_ref().map(|(uid, _)| uid.clone());
        // Before the look: what has ended by now is in the records.
        let live = self.hooks.live();
        let (pulls, keep) = (Arc::clone(&self.shared.pulls), matches!(wish, Wish::Keep));
        let (mut seen, events) = self
            .blocking(move |runtime| {
                let mut seen = runtime.observe(uid.as_deref());
                let stays = |p: &&Present| p.record.deletion.is_none() && p.record.finished.is_none();
                let same = |p: &&Present| keep || wanted.as_ref().is_some_and(|want| want.uid() == p.spec.uid());
                let starts = seen.present.as_ref().filter(stays).filter(same);
                match starts {
                    Some(present) => seen.images = pulls.states(&present.spec, Some(present), clock::now()),
                    // Nobody asks for its images before it has a sandbox.
                    None => uid.iter().for_each(|uid| pulls.forget(uid)),
                }
                let fresh = uid.filter(|uid| subscribed.as_ref() != Some(uid));
                let events = fresh.and_then(|uid| runtime.subscribe(&uid).map(|fd| (uid, fd)));
                (seen, events)
            })
            .await?;
        if let Some((uid, fd)) = events {
            match crate::sys::poll::readable(fd) {
                // Something may have happened before the subscription: the loop looks once more.
                Ok(fd) => {
                    self.events = Some((uid, fd));
                    self.wake.notify_one();
                }
                Err(error) => tracing::warn!(%error, "cannot watch the shim"),
            }
        }
        if seen.present.is_none() {
            self.uid = None;
            self.events = None;
        }
        match &mut seen.present {
            Some(present) => {
                seen.evict = self.shared.eviction(&self.key, present.spec.uid());
                seen.displaced = self.shared.displaced(present.spec.uid());
                seen.removal = self.shared.removal(present.spec.uid());
                seen.refused_resize = self.shared.refused_resize(&self.key);
                seen.short_of_disk = self.shared.is_short_of_disk();
                let running: BTreeSet<String> = present.running().map(|run| run.id.clone()).collect();
                self.hooks.keep(&running);
                for (id, progress) in &mut present.progress {
                    let interrupted =
                        |kind, state: &HookState| *state == HookState::Running && !live.contains(&(id.clone(), kind));
                    if interrupted(HookKind::PostStart, &progress.post_start) {
                        progress.post_start = HookState::Idle;
                    }
                    if interrupted(HookKind::PreStop, &progress.pre_stop) {
                        progress.pre_stop = HookState::Idle;
                    }
                }
                self.probe(present).await;
            }
            None => {
                self.hooks.keep(&BTreeSet::new());
                self.prober = Prober::new(Arc::clone(&self.wake), Arc::clone(&self.shared.metrics.probes));
                // An edited pod is another one: it starts at once.
                if let Some((uid, eviction)) = self.shared.take_eviction(&self.key)
                    && matches!(wish, Wish::Run(spec) if spec.uid() == uid)
                {
                    self.hold_back(eviction, clock::now());
                }
            }
        }
        let wanted = match wish {
            Wish::Run(spec) => Some(spec.uid()),
            Wish::Keep | Wish::Remove => None,
        };
        if let Some(uid) = seen.present.as_ref().map(|present| present.spec.uid()).or(wanted) {
            (seen.copy, seen.generation) = self.shared.copy(uid);
        }
        seen.failure.clone_from(&self.failure);
        seen.container_failures.clone_from(&self.container_failures);
        Some(seen)
    }

    /// Keep the probes in step with what runs, and take over what they found.
    async fn probe(&mut self, present: &mut Present) {
        // Without its shim nobody knows what still runs; the plan sees to that first.
        if present.sandbox != Sandbox::Ready {
            return;
        }
        let ips = self.ips(present);
        let runs = present.running().filter_map(|run| {
            let container = present.spec.container(&run.container)?;
            let progress = present.progress(&run.id);
            let hook = container.lifecycle.as_ref().is_some_and(|hooks| hooks.post_start.is_some());
            // As kubelet: nobody asks before the postStart hook is over.
            let early = hook && progress.post_start != HookState::Done;
            if early || !prober::has_probes(container) || present.spec.role(&run.container) == Some(Role::Init) {
                return None;
            }
            Some(prober::Run {
                pod: present.spec.pod(),
                container,
                id: &run.id,
                started: run.started?,
                ips: &ips,
                exec: self.exec_target(present, run),
                stopping: progress.stopping.is_some(),
                last: progress.health.as_ref(),
            })
        });
        let runs: Vec<prober::Run<'_>> = runs.collect();
        let (shared, spec) = (Arc::clone(&self.shared), present.spec.clone());
        let tell: prober::Tell = Arc::new(move |note: Note| {
            shared.note(pod_reference(spec.pod(), note.container.as_deref()), &note, clock::now());
        });
        self.prober.sync(&tell, runs);
        let mut changed: Vec<(Instance, Health)> = Vec::new();
        for (id, health) in self.prober.health() {
            let Some(run) = present.running().find(|run| run.id == id).cloned() else { continue };
            let progress = present.progress.entry(id).or_default();
            if progress.health.as_ref() != Some(&health) {
                progress.health = Some(health.clone());
                changed.push((run, health));
            }
        }
        if changed.is_empty() {
            return;
        }
        // For the next agent: a restart of it must not take the pod out of service.
        let uid = present.spec.uid().to_owned();
        let written = self.blocking(move |runtime| {
            changed.into_iter().try_for_each(|(run, health)| {
                runtime.advance(&uid, &run.container, run.attempt, |progress| progress.health = Some(health))
            })
        });
        if let Some(Err(error)) = written.await {
            tracing::warn!(error = error.chain(), "the health of containers cannot be written down");
        }
    }

    /// Give the running containers the devices that are there now. Returns when to look again at the latest.
    async fn plug(&mut self, desired: Option<&Spec>, seen: &Observed, now: Timestamp) -> Option<Timestamp> {
        let present = seen.present.as_ref();
        let spec = present.map(|p| &p.spec).or(desired)?;
        // Without its shim nobody knows what still runs.
        let ready = present.filter(|p| p.sandbox == Sandbox::Ready);
        let running = ready.into_iter().flat_map(Present::running).filter(|run| run.started.is_some()).cloned();
        let runtime = Arc::clone(&self.shared.runtime);
        let (notes, again) = self.hotplug.sync(&runtime, spec, running.collect()).await;
        for note in notes {
            self.note(spec, &note, now);
        }
        again.then(|| now.checked_add(hotplug::AGAIN).unwrap_or(now))
    }

    /// Have the volumes show the objects that they are made from. Returns when to look again at the latest.
    async fn follow(&mut self, seen: &Observed, now: Timestamp) -> Option<Timestamp> {
        let spec = &seen.present.as_ref()?.spec;
        let runtime = Arc::clone(&self.shared.runtime);
        let (note, again) = self.follower.sync(&runtime, spec).await;
        if let Some(note) = note {
            self.note(spec, &note, now);
        }
        again.then(|| now.checked_add(objects::AGAIN).unwrap_or(now))
    }

    /// What failed for one of these reasons may work now (a device came, an object changed): it is tried at once.
    fn retry(&mut self, reasons: &[&str], now: Timestamp) {
        let failures = self.failure.iter_mut().chain(self.container_failures.values_mut());
        for failure in failures.filter(|failure| reasons.contains(&failure.reason.as_str())) {
            failure.retry_at = failure.retry_at.min(now);
        }
    }

    /// Where probes and hooks of a run go.
    fn target(&self, present: &Present, run: &Instance) -> Option<probe::Target> {
        let container = present.spec.container(&run.container)?;
        Some(probe::Target {
            container: Arc::new(container.clone()),
            ips: self.ips(present),
            exec: self.exec_target(present, run),
        })
    }

    fn exec_target(&self, present: &Present, run: &Instance) -> shim::exec::Target {
        self.shared.runtime.exec_target(present.spec.uid(), &run.container, run.attempt, &run.id)
    }

    /// Where the pod is asked. As kubelet: a hostNetwork pod of a cluster at the node's addresses, which its status tells;
    /// a static one nowhere in particular, which is loopback.
    fn ips(&self, present: &Present) -> Vec<IpAddr> {
        if present.spec.host_network() && is_from_api(present.spec.pod()) {
            return self.shared.runtime.machine().host_ips.clone();
        }
        present.record.sandbox.iter().flat_map(|s| s.ips.clone()).collect()
    }

    /// A pod that had to leave for what it uses starts again, cleanly, but not at once: 10 s, 20 s … 5 min later.
    fn hold_back(&mut self, eviction: Eviction, now: Timestamp) {
        let calm = |at: Timestamp| now.duration_since(at) > MAX_EVICTED * 2;
        let count = self.evicted.filter(|(_, at)| !calm(*at)).map_or(0, |(count, _)| count).saturating_add(1);
        self.evicted = Some((count, now));
        let pause = (EVICTED * (1 << (count - 1).min(5))).min(MAX_EVICTED);
        self.failure = Some(Failure {
            reason: "Evicted".into(),
            message: eviction.message,
            count,
            retry_at: now.checked_add(pause).unwrap_or(now),
        });
    }

    /// Until something changes; false when the agent is going away.
    async fn sleep(&mut self, until: Option<Timestamp>) -> bool {
        let pause = until.map(|at| clock::until(at).saturating_add(Duration::from_millis(1)).min(MAX_SLEEP));
        let timer = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        let shim = async {
            match &self.events {
                Some((_, fd)) => next_event(fd).await,
                None => std::future::pending().await,
            }
        };
        // Each arm only waits; losing the race loses nothing, as the loop looks at everything again.
        tokio::select! {
            changed = self.wish.changed() => {
                if changed.is_err() {
                    return false;
                }
                // `run` reads the change itself.
                self.wish.mark_changed();
            }
            () = self.wake.notified() => {}
            () = timer => {}
            () = self.hotplug.changed() => self.retry(&["FailedMount"], clock::now()),
            event = shim => {
                if event == shim::Event::Gone
                    && let Some((uid, _)) = self.events.take()
                {
                    self.blocking(move |runtime| runtime.lost(&uid)).await;
                }
            }
        }
        true
    }

    async fn execute(&mut self, desired: Option<&Arc<Spec>>, seen: &Observed, action: Action) -> bool {
        let shared = Arc::clone(&self.shared);
        // What may take long takes turns, so that there is always a thread for looking at pods and stopping them.
        let _turn = match action {
            Action::CreateSandbox | Action::Run { .. } => shared.slow.acquire().await.ok(),
            Action::StopSandbox | Action::ResetSandbox { .. } | Action::RemovePod | Action::Forget { .. } => {
                shared.ends.acquire().await.ok()
            }
            _ => None,
        };
        let spec = match (&action, desired, &seen.present) {
            // A creation makes what is wanted, everything else acts on what is there.
            (Action::CreateSandbox | Action::Resize { .. } | Action::Update, Some(spec), _) => Arc::clone(spec),
            (_, _, Some(present)) => Arc::new(present.spec.clone()),
            (_, Some(spec), None) => Arc::clone(spec),
            (_, None, None) => return false,
        };
        if let (Action::Hook { id, kind, timeout_ms, .. }, Some(present)) = (&action, &seen.present) {
            let timeout = timeout_ms.map(Duration::from_millis);
            return self.begin_hook(&spec, present, id, *kind, timeout).await;
        }
        if let (Action::Pull { container, attempt }, true) = (&action, seen.present.is_some()) {
            return self.pull(&spec, container.clone(), *attempt).await;
        }
        if let Action::Run { container, attempt, .. } = &action {
            for note in shared.pulls.starts(&spec, container, *attempt) {
                self.note(&spec, &note, clock::now());
            }
        }
        let started = std::time::Instant::now();
        let (job, what) = (Arc::clone(&spec), action.clone());
        let Some(result) = self.blocking(move |runtime| runtime.execute(&job, &what)).await else { return false };
        let now = clock::now();
        tracing::debug!(?action, took = ?started.elapsed(), ok = result.is_ok(), "action");
        match result {
            Ok(notes) => {
                // A sandbox that fails to be made is undone in between: that is no success.
                let unrelated = match &action {
                    Action::ResetSandbox { .. } => true,
                    Action::Resize { .. } => false,
                    // A resize that has to wait goes on waiting whatever else happens to the pod.
                    _ => self.failure.as_ref().is_some_and(|f| ["Deferred", "Infeasible"].contains(&f.reason.as_str())),
                };
                if !unrelated {
                    self.failure = None;
                }
                match &action {
                    Action::CreateSandbox => self.uid = Some(spec.uid().to_owned()),
                    Action::Run { container, .. } => {
                        self.container_failures.remove(container);
                    }
                    Action::ResetSandbox { .. } | Action::StopSandbox => self.events = None,
                    _ => {}
                }
                for note in notes {
                    self.note(&spec, &note, now);
                }
                true
            }
            Err(error) => {
                self.failed(&spec, &action, &error, now);
                false
            }
        }
    }

    /// Asks for what a container's start needs; how that ends is seen at the next look.
    async fn pull(&self, spec: &Arc<Spec>, container: String, attempt: u32) -> bool {
        let (pulls, wake, shared) = (Arc::clone(&self.shared.pulls), Arc::clone(&self.wake), Arc::clone(&self.shared));
        let spec = Arc::clone(spec);
        let asked = self.blocking(move |_| {
            let tell = || -> pulls::Tell {
                let (shared, spec, container) = (Arc::clone(&shared), Arc::clone(&spec), container.clone());
                Box::new(move |note: Note| {
                    shared.note(pod_reference(spec.pod(), Some(&container)), &note, clock::now());
                })
            };
            let asker = pulls::Asker { spec: &spec, container: &container, attempt, wake: &wake, tell: &tell };
            pulls.ask(&asker, clock::now());
        });
        asked.await.is_some()
    }

    async fn begin_hook(
        &mut self,
        spec: &Arc<Spec>,
        present: &Present,
        id: &str,
        kind: HookKind,
        timeout: Option<Duration>,
    ) -> bool {
        let Some(run) = present.running().find(|run| run.id == id).cloned() else { return false };
        let Some(target) = self.target(present, &run) else { return false };
        let (uid, begun) = (spec.uid().to_owned(), run.clone());
        let written = self.blocking(move |runtime| {
            runtime.advance(&uid, &begun.container, begun.attempt, |progress| match kind {
                HookKind::PostStart => progress.post_start = HookState::Running,
                HookKind::PreStop => progress.pre_stop = HookState::Running,
            })
        });
        match written.await {
            None => return false,
            // Without a note of it, it would be begun again and again.
            Some(Err(error)) => {
                self.failed(
                    spec,
                    &Action::Hook { container: run.container, id: run.id, kind, timeout_ms: None },
                    &error,
                    clock::now(),
                );
                return false;
            }
            Some(Ok(())) => {}
        }
        let job = hooks::Job { spec: Arc::clone(spec), run, kind, timeout, target };
        self.hooks.begin(&self.shared, &self.wake, job);
        true
    }

    fn failed(&mut self, spec: &Spec, action: &Action, error: &runtime::Error, now: Timestamp) {
        if matches!(action, Action::CreateSandbox) {
            // Half-made things are found under this uid.
            self.uid = Some(spec.uid().to_owned());
        }
        let container = match action {
            Action::Run { container, .. } => Some(container.clone()),
            _ => None,
        };
        let last = match &container {
            Some(name) => self.container_failures.get(name),
            None => self.failure.as_ref(),
        };
        let count = last.map_or(0, |f| f.count).saturating_add(1);
        // 0.5 s, 1 s, 2 s … 10 s: quick enough for what heals by itself, slow enough to cost nothing.
        let pause = match error.waiting_reason() {
            // As kubelet: only another wish could change that.
            "Infeasible" => NEVER,
            _ => SignedDuration::from_millis(250_i64 << count.min(10)).min(MAX_RETRY),
        };
        let message = error.chain();
        // What waits for memory to be freed says each time how much is used: one event is enough, the condition has the rest.
        let told = matches!(action, Action::Resize { .. }) && last.is_some_and(|f| f.reason == error.waiting_reason());
        let reason = match (action, error.waiting_reason()) {
            (_, reason @ "Infeasible") | (Action::Resize { .. }, reason @ "Deferred") => reason,
            // Whatever was in its way: the pod goes on without it.
            (Action::Resize { .. }, _) => "Deferred",
            (_, reason) => reason,
        };
        let failure = Failure {
            reason: reason.to_owned(),
            message: message.clone(),
            count,
            retry_at: now.checked_add(pause).unwrap_or(now),
        };
        let mut note = Note::warning(error.event_reason(), message);
        note.container.clone_from(&container);
        if !told {
            self.note(spec, &note, now);
            self.shared.metrics.action_failed();
        }
        match container {
            Some(name) => {
                self.container_failures.insert(name, failure);
            }
            None => self.failure = Some(failure),
        }
    }

    fn note(&self, spec: &Spec, note: &Note, now: Timestamp) {
        self.shared.note(pod_reference(spec.pod(), note.container.as_deref()), note, now);
    }

    /// Report runs that ended since the last look.
    fn tell_exits(&mut self, seen: &Observed, now: Timestamp) {
        let Some(present) = &seen.present else {
            self.told.clear();
            return;
        };
        let mut notes: Vec<Note> = Vec::new();
        let mut known = BTreeSet::new();
        for run in present.containers.values().flatten() {
            if run.is_running() {
                continue;
            }
            known.insert(run.id.clone());
            if !self.told.contains(&run.id) && !self.first {
                notes.extend(exit_note(run));
            }
        }
        for note in notes {
            self.note(&present.spec, &note, now);
            if note.reason != "Completed" {
                self.shared.metrics.container_failed();
            }
        }
        self.told = known;
        self.first = false;
    }

    /// What the agent before this one told of the pod.
    fn remembered(&self) -> Option<Arc<Pod>> {
        let (uid, conditions) = &self.conditions;
        if conditions.is_empty() {
            return None;
        }
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.clone());
        pod.status = Some(PodStatus { conditions: Some(conditions.clone()), ..PodStatus::default() });
        Some(Arc::new(pod))
    }

    /// Write down what was told of the conditions: since when they are as they are is to be known to the next agent.
    async fn remember(&mut self, seen: &Observed) {
        let Some(present) = seen.present.as_ref().filter(|present| present.sandbox == Sandbox::Ready) else { return };
        let Some(pod) = self.shared.pod(&self.key) else { return };
        let uid = present.spec.uid().to_owned();
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        if self.conditions.0 == uid && self.conditions.1 == conditions {
            return;
        }
        self.conditions = (uid.clone(), conditions.clone());
        if let Some(Err(error)) = self.blocking(move |runtime| runtime.remember_told(&uid, conditions)).await {
            tracing::warn!(error = error.chain(), "the conditions of the pod cannot be written down");
        }
    }

    fn publish(&self, desired: Option<&Spec>, seen: &Observed, now: Timestamp) {
        let previous = self.shared.pod(&self.key).or_else(|| self.remembered());
        let pod = status::report(desired, seen, &self.shared.facts, previous.as_deref(), now);
        if let Some(pod) = &pod {
            for note in
                back_off_notes(previous.as_deref(), pod).into_iter().chain(image_notes(previous.as_deref(), pod))
            {
                self.shared.note(pod_reference(pod, note.container.as_deref()), &note, now);
            }
        }
        self.shared.publish(&self.key, pod);
    }
}

fn exit_note(run: &Instance) -> Option<Note> {
    let end = run.terminated.as_ref()?;
    let note = match end.reason.as_str() {
        "Completed" => Note::normal("Completed", format!("Container {} exited with code 0", run.container)),
        "OOMKilled" => Note::warning("OOMKilled", format!("Container {} ran out of memory", run.container)),
        // The failed start has an event of its own.
        "StartError" | "ContainerCannotRun" | "ContainerStatusUnknown" => return None,
        _ => Note::warning("Exited", format!("Container {} exited with code {}", run.container, end.exit_code)),
    };
    Some(note.about(&run.container))
}

/// As kubelet: a warning each time a container begins to wait for its restart.
fn back_off_notes(previous: Option<&Pod>, pod: &Pod) -> Vec<Note> {
    let waits = |pod: &Pod| -> BTreeMap<String, i32> {
        let statuses = pod
            .status
            .iter()
            .flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()));
        let waiting = |c: &&ContainerStatus| {
            let state = c.state.as_ref().and_then(|s| s.waiting.as_ref());
            state.and_then(|w| w.reason.as_deref()) == Some("CrashLoopBackOff")
        };
        statuses.filter(waiting).map(|c| (c.name.clone(), c.restart_count)).collect()
    };
    let before = previous.map(waits).unwrap_or_default();
    let meta = &pod.metadata;
    let part = |p: &Option<String>| p.clone().unwrap_or_default();
    let text = |container: &str| {
        let (name, namespace, uid) = (part(&meta.name), part(&meta.namespace), part(&meta.uid));
        format!("Back-off restarting failed container {container} in pod {name}_{namespace}({uid})")
    };
    let new = waits(pod).into_iter().filter(|(name, count)| before.get(name) != Some(count));
    new.map(|(name, _)| Note::warning("BackOff", text(&name)).about(&name)).collect()
}

/// As kubelet: what a container that cannot have its image says when it begins to wait for another reason.
fn image_notes(previous: Option<&Pod>, pod: &Pod) -> Vec<Note> {
    let waits = |pod: &Pod| -> BTreeMap<String, (String, String, String)> {
        let status = pod.status.iter();
        let all = status
            .flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()));
        let waiting = all.filter_map(|c| {
            let waiting = c.state.as_ref()?.waiting.as_ref()?;
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            Some((c.name.clone(), (text(&waiting.reason), c.image.clone(), text(&waiting.message))))
        });
        waiting.collect()
    };
    let before = previous.map(waits).unwrap_or_default();
    let mut notes = Vec::new();
    for (name, (reason, image, message)) in waits(pod) {
        if before.get(&name).is_some_and(|(was, ..)| *was == reason) {
            continue;
        }
        match reason.as_str() {
            "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed" => {}
            "ImagePullBackOff" => {
                let text = format!("Back-off pulling image {image:?}");
                notes.push(Note::normal("BackOff", text).about(&name));
            }
            "ErrImageNeverPull" => notes.push(Note::warning("ErrImageNeverPull", message).about(&name)),
            "InvalidImageName" => notes.push(Note::warning("InspectFailed", message).about(&name)),
            _ => continue,
        }
        notes.push(Note::warning("Failed", format!("Error: {reason}")).about(&name));
    }
    notes
}

async fn next_event(fd: &AsyncFd<OwnedFd>) -> shim::Event {
    loop {
        let Ok(mut guard) = fd.readable().await else { return shim::Event::Gone };
        match shim::drain(fd.get_ref()) {
            Ok(event) => {
                // Everything was taken: the next packet makes the descriptor ready again.
                guard.clear_ready();
                return event;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => guard.clear_ready(),
            Err(_) => return shim::Event::Gone,
        }
    }
}
