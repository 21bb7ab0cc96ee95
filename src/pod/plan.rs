//! The heart: from what is wanted and what is seen to what to do next. Total and deterministic.
//!
//! A worker observes, plans, executes the actions in order until one fails, and starts over; when the plan is empty it
//! sleeps until something changes or [`Plan::wake_at`]. Every action is idempotent, so a plan that was cut off at any
//! point is simply made again.

use super::{Failure, HookKind, Observed, Present, Sandbox, Spec, StopCause};
use super::{deadline, is_from_api, order, resize, start, stop, update};
use jiff::{SignedDuration, Timestamp};

/// One step. Executing it returns observations, never decisions.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Record the pod, make its folders, cgroup, volumes, namespaces, network, and start its shim.
    CreateSandbox,
    /// Have the images pulled that a container needs for a start; it goes on by itself, and how it ends is observed.
    Pull {
        /// Its name.
        container: String,
        /// Attempt number of the start.
        attempt: u32,
    },
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
    Resize {
        /// Runs (by container ID) that have to end for it, as their `resizePolicy` says; recorded with the resize.
        restart: Vec<String>,
    },
    /// Take over what was edited of a bound pod and needs no other step: the record, and the volumes that show it.
    Update,
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
    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// What to do about the pods of one name; `max_backoff` is the longest crash back-off of the node.
///
/// Guarantees (property-tested): following the plan converges to an empty one; there are never two running instances
/// of a container, nor two pods of one name; no container runs before its sandbox, nor an app container before the init
/// containers; sidecars stop last; a removal that failed at some step goes on from there.
#[must_use]
pub fn plan(desired: Option<&Spec>, seen: &Observed, max_backoff: SignedDuration, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(have) = &seen.present else {
        if desired.is_some() && !held_back(seen, now, &mut plan) {
            plan.act(Action::CreateSandbox);
        }
        return plan;
    };
    let resized = desired.filter(|want| have.record.finished.is_none() && resize::is_resize(&have.spec, want));
    let same = |want: &Spec| {
        update::is_one(&have.spec, want) || want.uid() == have.spec.uid() && want.revision() == have.spec.revision()
    };
    let stays = have.record.deletion.is_none() && (resized.is_some() || desired.is_some_and(same));
    // A resize that has to wait keeps nothing else from going on, least of all the pod's end.
    let postponed = |f: &Failure| matches!(f.reason.as_str(), "Deferred" | "Infeasible");
    // The worker forgets the failure when the wish changes, so a removal never waits for a creation's retry.
    if held_back(seen, now, &mut plan) && !seen.failure.as_ref().is_some_and(postponed) {
        return plan;
    }
    let edited = desired.filter(|want| have.record.finished.is_none() && update::is_update(&have.spec, want));
    match stays {
        true => converge(have, Edits { edited: edited.is_some(), resized }, seen, max_backoff, now, &mut plan),
        false => tear_down(have, seen.removal, now, &mut plan),
    }
    plan
}

/// Whether a step of the pod as a whole failed and has to wait.
fn held_back(seen: &Observed, now: Timestamp, plan: &mut Plan) -> bool {
    let until = seen.failure.as_ref().map(|f| f.retry_at).filter(|at| *at > now);
    until.inspect(|at| plan.wake(*at)).is_some()
}

/// What is wanted differently of a pod that stays.
struct Edits<'a> {
    /// What needs only to be written down.
    edited: bool,
    /// The pod with the resources that it is to have.
    resized: Option<&'a Spec>,
}

/// Towards a pod that runs, or is over. The pod as it is recorded counts; `edits` are what it is to become.
fn converge(
    have: &Present,
    edits: Edits<'_>,
    seen: &Observed,
    max_backoff: SignedDuration,
    now: Timestamp,
    plan: &mut Plan,
) {
    if let Sandbox::Broken(why) = &have.sandbox {
        plan.act(Action::ResetSandbox { why: why.clone() });
        return;
    }
    if let Some(finished) = &have.record.finished {
        wind_up(have, finished.at, finished.grace_seconds, now, plan);
        return;
    }
    let finish = |phase, reason: Option<&str>, message: Option<&str>| Action::Finish {
        phase,
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        grace_seconds: have.spec.grace_seconds(),
    };
    if let Some(phase) = order::outcome(have) {
        plan.act(finish(phase, None, None));
        return;
    }
    match deadline::of(have) {
        Some(at) if at <= now => {
            plan.act(finish("Failed", Some(deadline::REASON), Some(deadline::MESSAGE)));
            return;
        }
        Some(at) => plan.wake(at),
        None => {}
    }
    if let Some(evict) = &seen.evict {
        plan.act(match is_from_api(have.spec.pod()) {
            // As kubelet: it has failed, and whoever made it makes another one, here or elsewhere.
            true => Action::Finish {
                phase: "Failed",
                reason: Some("Evicted".to_owned()),
                message: Some(evict.message.clone()),
                grace_seconds: evict.grace_seconds,
            },
            false => Action::MarkDeleting { grace_seconds: evict.grace_seconds },
        });
        return;
    }
    if let Some(trigger) = order::restart_trigger(have) {
        plan.act(Action::RestartAll { trigger: trigger.to_owned() });
        return;
    }
    if have.sandbox == Sandbox::Absent {
        // It is made for the wanted pod: that settles all edits.
        plan.act(Action::CreateSandbox);
        return;
    }
    stop::alone(have, now, plan);
    if !have.running().any(|run| order::is_outdated(have, run)) {
        start::start(have, seen, max_backoff, now, plan);
    }
    forget(have, seen.short_of_disk, plan);
    // Last, as what comes after a failed action has to wait.
    if edits.edited {
        plan.act(Action::Update);
        return;
    }
    if let Some(want) = edits.resized.filter(|_| seen.failure.as_ref().is_none_or(|f| f.retry_at <= now)) {
        resize(have, want, plan);
    }
}

/// The containers that start anew for it are stopped only once it
/// is done, from the record.
fn resize(have: &Present, want: &Spec, plan: &mut Plan) {
    let runs = resize::restarts(&have.spec, want).filter_map(|container| have.latest(&container.name));
    plan.act(Action::Resize { restart: runs.filter(|run| run.is_running()).map(|run| run.id.clone()).collect() });
}

/// As kubelet: the present run and one before it stay readable. What is left of the latter goes when the disk is nearly
/// full.
fn forget(have: &Present, short_of_disk: bool, plan: &mut Plan) {
    let keep = if short_of_disk { 1 } else { 2 };
    for (name, runs) in &have.containers {
        let old = runs.len().saturating_sub(keep);
        for run in runs.iter().take(old).filter(|r| !r.is_running()) {
            plan.act(Action::Forget { container: name.clone(), attempt: run.attempt });
        }
    }
}

/// `removal` is the grace that the API server gives. Without its word the pod has its own: also a bound one that is gone
/// from there, as nobody who forces its object away can have meant to cut it short (as kubelet).
fn tear_down(have: &Present, removal: Option<u64>, now: Timestamp, plan: &mut Plan) {
    let removal = removal.map(|seconds| seconds.max(1));
    let Some(deletion) = &have.record.deletion else {
        plan.act(Action::MarkDeleting { grace_seconds: removal.unwrap_or_else(|| have.spec.grace_seconds()) });
        return;
    };
    if let Sandbox::Broken(why) = &have.sandbox {
        plan.act(Action::ResetSandbox { why: why.clone() });
        return;
    }
    if have.sandbox == Sandbox::Ready {
        let grace_seconds = removal.map_or(deletion.grace_seconds, |less| less.min(deletion.grace_seconds));
        wind_up(have, deletion.started, grace_seconds, now, plan);
        return;
    }
    plan.act(Action::RemovePod);
}

/// Stop all containers, then give the sandbox back.
fn wind_up(have: &Present, since: Timestamp, grace_seconds: u64, now: Timestamp, plan: &mut Plan) {
    if have.sandbox != Sandbox::Ready {
        return;
    }
    stop::all(have, since, grace_seconds, now, plan);
    if have.running().next().is_none() {
        plan.act(Action::StopSandbox);
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
