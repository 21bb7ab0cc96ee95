//! The heart: from what is wanted and what is seen to what to do next. Total and deterministic.
//!
//! A worker observes, plans, executes the actions in order until one fails, and starts over; when the plan is empty it
//! sleeps until something changes or [`Plan::wake_at`]. Every action is idempotent, so a plan that was cut off at any
//! point is simply made again.

use super::restart;
use super::{Failure, HookKind, ImageState, Instance, Observed, Present, Sandbox, Spec, StopCause};
use jiff::{SignedDuration, Timestamp};

/// Shortest time between the stop signal and SIGKILL (as kubelet: 2 s).
pub const MIN_STOP_GRACE_MS: u64 = 2_000;

/// One step. Executing it returns observations, never decisions.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Record the pod, make its folders, cgroup, volumes, namespaces, network, and start its shim.
    CreateSandbox,
    /// Create and start a container.
    Run {
        /// Its name.
        container: String,
        /// Attempt number, 0 for the first.
        attempt: u32,
        /// Delay that its own restart will have to wait, in milliseconds.
        backoff_ms: u64,
    },
    /// Write down that a container is being stopped ([`Progress::stopping`](super::Progress)).
    BeginStop {
        /// Container name.
        container: String,
        /// Container ID.
        id: String,
        /// Why.
        cause: StopCause,
        /// Milliseconds from now until SIGKILL, hook included.
        grace_ms: u64,
    },
    /// Start a lifecycle hook; it goes on by itself, and how it ends is observed.
    Hook {
        /// Container name.
        container: String,
        /// Container ID.
        id: String,
        /// Which.
        kind: HookKind,
        /// Milliseconds it may take; `None`: as long as it likes.
        timeout_ms: Option<u64>,
    },
    /// Send the stop signal, and SIGKILL after the grace.
    Stop {
        /// Container name.
        container: String,
        /// Container ID.
        id: String,
        /// Milliseconds until SIGKILL.
        grace_ms: u64,
    },
    /// Remove an old run: its writable layer, record and log.
    Forget {
        /// Container name.
        container: String,
        /// Which run.
        attempt: u32,
    },
    /// Write down that the pod is to go.
    MarkDeleting {
        /// Grace in seconds from now.
        grace_seconds: u64,
    },
    /// Clean up after a sandbox whose shim is gone: kill what is left of it, and record the runs that were cut off.
    ResetSandbox {
        /// What happened, for the event.
        why: String,
    },
    /// End the shim, give back addresses and namespaces; all containers have ended.
    StopSandbox,
    /// Begin the pod's next round: all its containers start over (`RestartAllContainers`).
    RestartAll {
        /// The container whose end asked for it.
        trigger: String,
    },
    /// Take over the wanted pod's resources, which differ from the present ones in nothing else: cgroups in the right
    /// order, then the record.
    Resize,
    /// Write down the terminal phase.
    Finish {
        /// `Succeeded` or `Failed`.
        phase: &'static str,
        /// `status.reason`.
        reason: Option<String>,
        /// `status.message`.
        message: Option<String>,
        /// Grace in seconds for what still runs.
        grace_seconds: u64,
    },
    /// Remove volumes, cgroup and folders: nothing of the pod is left.
    RemovePod,
}

/// What to do now, and when to look again if nothing else happens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// In order; a failed one ends the round.
    pub actions: Vec<Action>,
    /// Look again at this instant at the latest.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// What to do about the pods of one name; `max_backoff` is the longest crash back-off of the node.
///
/// Guarantees (property-tested): following the plan converges to an empty one; there are never two running instances
/// of a container, nor two pods of one name; no container runs before its sandbox; a removal that failed at some step
/// goes on from there.
#[must_use]
pub fn plan(desired: Option<&Spec>, seen: &Observed, max_backoff: SignedDuration, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let stays = match (desired, &seen.present) {
        (_, None) => None,
        (None, Some(_)) => None,
        (Some(want), Some(have)) => {
            (have.record.deletion.is_none() && want.uid() == have.spec.uid() && want.revision() == have.spec.revision())
                .then_some((want, have))
        }
    };
    if desired.is_none() && seen.present.is_none() {
        return plan;
    }
    // The worker forgets the failure when the wish changes, so a removal never waits for a creation's retry.
    if let Some(failure) = held_back(seen.failure.as_ref(), now) {
        plan.wake(failure.retry_at);
        return plan;
    }
    match (stays, &seen.present) {
        (Some((want, have)), _) => converge(want, have, seen, max_backoff, now, &mut plan),
        (None, Some(have)) => tear_down(have, now, &mut plan),
        (None, None) => plan.act(Action::CreateSandbox),
    }
    plan
}

fn held_back(failure: Option<&Failure>, now: Timestamp) -> Option<&Failure> {
    failure.filter(|f| f.retry_at > now)
}

fn converge(
    want: &Spec,
    have: &Present,
    seen: &Observed,
    max_backoff: SignedDuration,
    now: Timestamp,
    plan: &mut Plan,
) {
    if let Sandbox::Broken(why) = &have.sandbox {
        plan.act(Action::ResetSandbox { why: why.clone() });
        return;
    }
    if have.record.finished.is_some() {
        if have.sandbox == Sandbox::Ready {
            stop_all(have, MIN_STOP_GRACE_MS, now, plan);
            if plan.actions.is_empty() && plan.wake_at.is_none() {
                plan.act(Action::StopSandbox);
            }
        }
        return;
    }
    if let Some(eviction) = &seen.evict {
        // It leaves as a removed pod does; being still wanted, it starts again with nothing of what it had.
        plan.act(Action::MarkDeleting { grace_seconds: eviction.grace_seconds });
        return;
    }
    if let Some(phase) = outcome(want, have) {
        plan.act(Action::Finish { phase, reason: None, message: None, grace_seconds: 0 });
        return;
    }
    if have.sandbox == Sandbox::Absent {
        plan.act(Action::CreateSandbox);
        return;
    }
    for container in want.containers() {
        let name = &container.name;
        let next = match have.latest(name) {
            None => restart::Next { attempt: 0, not_before: now, backoff: SignedDuration::ZERO },
            Some(run) if restart::wanted(want.restart_policy(), run) => restart::next(run, now, max_backoff),
            Some(_) => continue,
        };
        if next.not_before > now {
            plan.wake(next.not_before);
            continue;
        }
        if let Some(failure) = held_back(seen.container_failures.get(name), now) {
            plan.wake(failure.retry_at);
            continue;
        }
        let image = container.image.as_deref().unwrap_or_default();
        if let Some(ImageState::Absent { .. }) = seen.images.get(image) {
            continue; // the worker is woken when images change
        }
        let backoff_ms = u64::try_from(next.backoff.as_millis()).unwrap_or(0);
        plan.act(Action::Run { container: name.clone(), attempt: next.attempt, backoff_ms });
    }
    for (name, runs) in &have.containers {
        // As kubelet: the present run and one before it stay readable.
        let old = runs.len().saturating_sub(2);
        for run in runs.iter().take(old).filter(|r| !r.is_running()) {
            plan.act(Action::Forget { container: name.clone(), attempt: run.attempt });
        }
    }
}

/// The terminal phase, when every container has ended and none may run again (as kubelet: all exit codes 0 is
/// Succeeded).
fn outcome(want: &Spec, have: &Present) -> Option<&'static str> {
    let mut failed = false;
    for container in want.containers() {
        let run = have.latest(&container.name)?;
        let ended = run.terminated.as_ref()?;
        if restart::wanted(want.restart_policy(), run) {
            return None;
        }
        failed |= ended.exit_code != 0;
    }
    Some(if failed { "Failed" } else { "Succeeded" })
}

fn tear_down(have: &Present, now: Timestamp, plan: &mut Plan) {
    let Some(deletion) = &have.record.deletion else {
        plan.act(Action::MarkDeleting { grace_seconds: have.spec.grace_seconds() });
        return;
    };
    if let Sandbox::Broken(why) = &have.sandbox {
        plan.act(Action::ResetSandbox { why: why.clone() });
        return;
    }
    if have.sandbox == Sandbox::Ready {
        let grace = SignedDuration::from_secs(i64::try_from(deletion.grace_seconds).unwrap_or(i64::MAX));
        // A clock that jumped back must not make the grace longer than it was.
        let spent = now.duration_since(deletion.started).max(SignedDuration::ZERO);
        let left = u64::try_from((grace.saturating_sub(spent)).as_millis()).unwrap_or(0).max(MIN_STOP_GRACE_MS);
        stop_all(have, left, now, plan);
        if plan.actions.is_empty() && plan.wake_at.is_none() {
            plan.act(Action::StopSandbox);
        }
        return;
    }
    plan.act(Action::RemovePod);
}

/// Ask every running container to stop that was not asked yet, and look again when its time is up.
fn stop_all(have: &Present, grace_ms: u64, now: Timestamp, plan: &mut Plan) {
    for run in have.running() {
        let slack = SignedDuration::from_secs(1);
        match have.progress(&run.id).stopping.as_ref().and_then(|s| s.kill_at) {
            Some(deadline) if deadline.checked_add(slack).is_ok_and(|d| d > now) => {
                plan.wake(deadline.checked_add(slack).unwrap_or(now));
            }
            // Never asked, or the shim has not managed to end it in time: ask (again).
            _ => plan.act(stop(run, grace_ms)),
        }
    }
}

fn stop(run: &Instance, grace_ms: u64) -> Action {
    Action::Stop { container: run.container.clone(), id: run.id.clone(), grace_ms }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
