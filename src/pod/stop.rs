//! How containers stop: written down, preStop hook, their turn, the signal, SIGKILL.

use super::plan::{Action, Plan};
use super::{HookKind, HookState, Instance, Present, Role, StopCause, Stopping, order, update};
use jiff::{SignedDuration, Timestamp};

/// Shortest time between the stop signal and SIGKILL, in milliseconds (as kubelet: 2 s).
pub const MIN_STOP_GRACE_MS: u64 = 2_000;
/// How much later than planned a stop may be without being planned anew: what writing it down may take.
const SLACK_MS: u64 = 1_000;

/// Stop every running container of the pod: `grace_seconds` count from `since`. Stops under way may only become
/// shorter. Nothing is planned once all have ended.
pub(super) fn all(have: &Present, since: Timestamp, grace_seconds: u64, now: Timestamp, plan: &mut Plan) {
    // As kubelet: at least one second.
    let left = left_ms(since, grace_seconds.max(1).saturating_mul(1000), now);
    let mut stops = Vec::new();
    for run in in_order(have) {
        let present = have.progress(&run.id).stopping.as_ref();
        let most = left.max(MIN_STOP_GRACE_MS).saturating_add(SLACK_MS);
        let shorter = present.filter(|s| left_ms(s.begun, s.grace_ms, now) <= most);
        stops.push((run, begin(run, shorter, StopCause::Pod, left, now, plan)));
    }
    for (run, stopping) in stops {
        step(have, run, &stopping, true, now, plan);
    }
}

/// Stop the containers that have to go while their pod stays: those of an earlier round, those whose postStart hook
/// failed, those that their probes gave up, those that an edit or a resize restarts, and those whose stop has begun.
pub(super) fn alone(have: &Present, now: Timestamp, plan: &mut Plan) {
    let mut stops = Vec::new();
    for run in in_order(have) {
        let present = have.progress(&run.id).stopping.as_ref();
        let stopping = match (present, cause(have, run)) {
            (Some(present), Some((StopCause::RestartAll, _))) if present.cause != StopCause::RestartAll => {
                let left = left_ms(present.begun, present.grace_ms, now).min(MIN_STOP_GRACE_MS);
                begin(run, None, StopCause::RestartAll, left, now, plan)
            }
            (Some(present), _) => present.clone(),
            (None, Some((cause, grace_ms))) => begin(run, None, cause, grace_ms, now, plan),
            (None, None) => continue,
        };
        stops.push((run, stopping));
    }
    for (run, stopping) in stops {
        step(have, run, &stopping, false, now, plan);
    }
}

/// Why a running container has to go while its pod stays, and its grace in milliseconds.
fn cause(have: &Present, run: &Instance) -> Option<(StopCause, u64)> {
    if order::is_outdated(have, run) {
        return Some((StopCause::RestartAll, MIN_STOP_GRACE_MS));
    }
    let grace_ms = |own: Option<u64>| own.unwrap_or_else(|| have.spec.grace_seconds()).saturating_mul(1000);
    let progress = have.progress(&run.id);
    if let HookState::Failed(_) = progress.post_start {
        return Some((StopCause::PostStart, grace_ms(None)));
    }
    if let Some(unhealthy) = progress.health.as_ref().and_then(|h| h.unhealthy.as_ref()) {
        return Some((unhealthy.probe, grace_ms(unhealthy.grace_seconds)));
    }
    if update::has_other_image(have, run) {
        return Some((StopCause::Changed, grace_ms(None)));
    }
    have.record.resize_restarts.contains(&run.id).then(|| (StopCause::Resize, grace_ms(None)))
}

/// The running containers, in the order of the spec.
fn in_order(have: &Present) -> impl Iterator<Item = &Instance> {
    have.spec.all_containers().flat_map(|c| runs(have, &c.name)).filter(|run| run.is_running())
}

fn runs<'a>(have: &'a Present, container: &str) -> &'a [Instance] {
    have.containers.get(container).map_or(&[], Vec::as_slice)
}

/// What is left of a grace. A clock that jumped back must not make it longer than it was.
fn left_ms(begun: Timestamp, grace_ms: u64, now: Timestamp) -> u64 {
    grace_ms.saturating_sub(u64::try_from(now.duration_since(begun).as_millis()).unwrap_or(0))
}

fn after_ms(at: Timestamp, ms: u64) -> Timestamp {
    let ms = SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
    at.checked_add(ms).unwrap_or(Timestamp::MAX)
}

/// The stop under way, or a new one.
fn begin(
    run: &Instance,
    present: Option<&Stopping>,
    cause: StopCause,
    grace_ms: u64,
    now: Timestamp,
    plan: &mut Plan,
) -> Stopping {
    if let Some(present) = present {
        return present.clone();
    }
    plan.act(Action::BeginStop { container: run.container.clone(), id: run.id.clone(), cause, grace_ms });
    Stopping { cause, begun: now, grace_ms, kill_at: None }
}

/// The next step of a stop; `ordered` when the whole pod stops.
fn step(have: &Present, run: &Instance, stopping: &Stopping, ordered: bool, now: Timestamp, plan: &mut Plan) {
    let left = left_ms(stopping.begun, stopping.grace_ms, now);
    let kill_in = left.max(MIN_STOP_GRACE_MS);
    // A stop that was shortened keeps the instant of the signal that it was sent.
    let kill_at = have.progress(&run.id).stopping.as_ref().and_then(|s| s.kill_at);
    if let Some(kill_at) = kill_at.filter(|at| *at <= after_ms(now, kill_in.saturating_add(SLACK_MS))) {
        let overdue = after_ms(kill_at, SLACK_MS);
        if overdue > now {
            plan.wake(overdue);
            return;
        }
        // The shim has not managed to end it in time: ask again.
    }
    // Not again for a container that was signalled: its deadline moved, that is all.
    if kill_at.is_none() && left > 0 {
        let end = after_ms(now, left);
        if hooks(have, run, stopping) {
            match have.progress(&run.id).pre_stop {
                HookState::Idle => {
                    plan.act(Action::Hook {
                        container: run.container.clone(),
                        id: run.id.clone(),
                        kind: HookKind::PreStop,
                        timeout_ms: Some(left),
                    });
                    plan.wake(end);
                    return;
                }
                HookState::Running => {
                    plan.wake(end);
                    return;
                }
                HookState::Done | HookState::Failed(_) => {}
            }
        }
        if ordered && !is_its_turn(have, run) {
            plan.wake(end);
            return;
        }
    }
    plan.act(Action::Stop { container: run.container.clone(), id: run.id.clone(), grace_ms: kill_in });
}

/// Whether a preStop hook goes before the signal. As kubelet: not where the grace is none, and a restart of all
/// containers gives none.
fn hooks(have: &Present, run: &Instance, stopping: &Stopping) -> bool {
    let has = have.spec.container(&run.container).is_some_and(order::has_pre_stop);
    has && run.started.is_some() && stopping.cause != StopCause::RestartAll
}

/// As kubelet: a sidecar outlives all app containers (and regular init containers, which may need it as well) and
/// every sidecar after it.
fn is_its_turn(have: &Present, run: &Instance) -> bool {
    if have.spec.role(&run.container) != Some(Role::Sidecar) {
        return true;
    }
    let mut after_it = false;
    for container in have.spec.all_containers() {
        let runs = runs(have, &container.name).iter().any(Instance::is_running);
        let waits_for = after_it || have.spec.role(&container.name) != Some(Role::Sidecar);
        if container.name == run.container {
            after_it = true;
        } else if runs && waits_for {
            return false;
        }
    }
    true
}
