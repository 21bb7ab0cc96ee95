//! Lifecycle hooks under way: tasks of a pod's worker. A hook goes on while other things happen to the pod; how it ends is
//! written into the run's [`Progress`](crate::pod::Progress), where the next look finds it.

use super::events::{Note, pod_reference};
use super::node::Shared;
use crate::pod::{HookKind, HookState, Instance, Spec};
use crate::probe;
use crate::sys::clock;
use k8s_openapi::api::core::v1::LifecycleHandler;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Between two attempts to write down how a hook ended.
const REWRITE: Duration = Duration::from_secs(2);

/// A run and which of its hooks.
type Id = (String, HookKind);

/// The hooks of one pod.
#[derive(Default)]
pub struct Hooks(BTreeMap<Id, JoinHandle<()>>);

/// All that a hook needs.
pub struct Job {
    /// The pod it belongs to.
    pub spec: Arc<Spec>,
    /// The run it belongs to.
    pub run: Instance,
    /// Which hook.
    pub kind: HookKind,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// Where probes and hooks go.
    pub target: probe::Target,
}

impl Hooks {
    /// Which hooks are under way. Asked before looking at the records: what has ended by now is written there.
    pub fn live(&self) -> BTreeSet<Id> {
        self.0.iter().filter(|(_, task)| !task.is_finished()).map(|(id, _)| id.clone()).collect()
    }

    /// Forget the hooks of runs that are over, and end them: there is nothing left for them to act on.
    pub fn keep(&mut self, running: &BTreeSet<String>) {
        self.0.retain(|(id, _), task| {
            let keep = running.contains(id) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
    }

    /// Begin a hook; `wake` is notified when it is over.
    pub fn begin(&mut self, shared: &Arc<Shared>, wake: &Arc<Notify>, job: Job) {
        let id = (job.run.id.clone(), job.kind);
        if self.0.get(&id).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (shared, wake) = (Arc::clone(shared), Arc::clone(wake));
        let task = tokio::spawn(async move {
            let state = deliver(&shared, &job).await;
            let runtime = Arc::clone(&shared.runtime);
            let (uid, run, kind) = (job.spec.uid().to_owned(), job.run, job.kind);
            loop {
                let (runtime, uid, run, state) = (Arc::clone(&runtime), uid.clone(), run.clone(), state.clone());
                let written = tokio::task::spawn_blocking(move || {
                    runtime.advance(&uid, &run.container, run.attempt, |progress| match kind {
                        HookKind::PostStart => progress.post_start = state,
                        HookKind::PreStop => progress.pre_stop = state,
                    })
                });
                let Ok(Err(error)) = written.await else { break };
                // As long as the task lives the hook counts as under way: it is not delivered again and again.
                tracing::warn!(error = error.chain(), "the end of a hook cannot be written down yet");
                tokio::time::sleep(REWRITE).await;
            }
            wake.notify_one();
        });
        self.0.insert(id, task);
    }
}

async fn deliver(shared: &Shared, job: &Job) -> HookState {
    let Some(handler) = handler(&job.spec, &job.run.container, job.kind) else { return HookState::Done };
    match probe::hook(handler, &job.target, job.timeout).await {
        Ok(()) => HookState::Done,
        Err(message) => {
            let (reason, name) = match job.kind {
                HookKind::PostStart => ("FailedPostStartHook", "PostStartHook"),
                HookKind::PreStop => ("FailedPreStopHook", "PreStopHook"),
            };
            let container = job.run.container.as_str();
            let note = Note::warning(reason, format!("{name} of container {container} failed: {message}"));
            shared.note(pod_reference(job.spec.pod(), Some(container)), &note.about(container), clock::now());
            HookState::Failed(message)
        }
    }
}

fn handler<'a>(spec: &'a Spec, container: &str, kind: HookKind) -> Option<&'a LifecycleHandler> {
    let lifecycle = spec.container(container)?.lifecycle.as_ref()?;
    match kind {
        HookKind::PostStart => lifecycle.post_start.as_ref(),
        HookKind::PreStop => lifecycle.pre_stop.as_ref(),
    }
}
