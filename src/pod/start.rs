//! What starts next: init containers one after the other, sidecars in their turn, then the app containers; each start
//! waits for the postStart hook of the one before (as kubelet, which starts them one by one).

use super::plan::{Action, Plan};
use super::rules::{self, Verdict};
use super::{HookKind, HookState, ImageState, Instance, Observed, Present, Role, order, restart, update};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

/// Where one container stands once the plan has done for it what can be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It runs, and its postStart hook is over.
    Up,
    /// It has just been started, or its postStart hook is under way: nothing after it starts.
    Busy,
    /// It was just asked to start; it has no hook.
    Launched,
    /// It is being stopped, waits, or has ended for good.
    Down,
}

/// Plan the starts and postStart hooks that are due.
pub(super) fn start(have: &Present, seen: &Observed, max_backoff: SignedDuration, now: Timestamp, plan: &mut Plan) {
    let starts = Starts { have, seen, max_backoff, now };
    let serves = order::serves(have);
    for container in have.spec.init_containers() {
        match Role::of_init(container) {
            Role::Sidecar => match starts.bring_up(container, Role::Sidecar, plan) {
                Standing::Busy => return,
                // Under running app containers, sidecars come back each by itself.
                _ if serves || order::sidecar_started(have, container) => {}
                _ => return,
            },
            _ if serves || order::init_done(have, &container.name) => {}
            _ => {
                starts.bring_up(container, Role::Init, plan);
                return;
            }
        }
    }
    for container in have.spec.containers() {
        if starts.bring_up(container, Role::App, plan) == Standing::Busy {
            return;
        }
    }
}

/// The image that a container cannot start without and that is not here (its own or an image volume's): waiting reason
/// and message.
pub(super) fn missing_image<'a>(container: &Container, seen: &'a Observed) -> Option<(&'a str, &'a str)> {
    match seen.images.get(&container.name)? {
        ImageState::Absent { reason, message, .. } => Some((reason.as_str(), message.as_str())),
        ImageState::Present | ImageState::Wanted | ImageState::Pulling => None,
    }
}

/// When a container runs next and how long its back-off is then; `None` when it runs or stays ended.
pub(super) fn due(
    have: &Present,
    container: &Container,
    role: Role,
    max_backoff: SignedDuration,
    now: Timestamp,
) -> Option<restart::Next> {
    let Some(last) = have.latest(&container.name) else {
        return Some(restart::Next { attempt: 0, not_before: now, backoff: SignedDuration::ZERO });
    };
    let end = last.terminated.as_ref()?;
    // As kubelet, which remembers back-off no longer than it lives: after a restart of the machine it begins anew. When a
    // run of an earlier boot ended, by the clock of this one, nobody knows anyway.
    let forget = have.record.sandbox.as_ref().is_some_and(|s| !last.boot_id.is_empty() && s.boot_id != last.boot_id);
    let progress = have.progress(&last.id);
    let verdict = rules::after(&have.spec, container, last, progress);
    let crashed = if order::counted(have, role, &container.name).is_none() {
        // Only what made the pod begin anew waits: a loop of such rounds must not spin.
        verdict == Verdict::RestartAll || end.reason == "ContainerStatusUnknown"
    } else if verdict == Verdict::Done {
        return None;
    } else {
        // As kubelet: what crashed was another container than the one that starts.
        !rules::was_recycled(progress) && !update::has_other_image(have, last)
    };
    Some(match crashed {
        true if forget => restart::anew(last, now, max_backoff),
        true => restart::next(last, now, max_backoff),
        false => at_once(last, now),
    })
}

/// A start that is not the container's fault: it waits for nothing, and what it had to wait for is not forgotten.
fn at_once(last: &Instance, now: Timestamp) -> restart::Next {
    let backoff = SignedDuration::from_millis(i64::try_from(last.backoff_ms).unwrap_or(0));
    restart::Next { attempt: last.attempt.saturating_add(1), not_before: now, backoff }
}

struct Starts<'a> {
    have: &'a Present,
    seen: &'a Observed,
    max_backoff: SignedDuration,
    now: Timestamp,
}

impl Starts<'_> {
    fn bring_up(&self, container: &Container, role: Role, plan: &mut Plan) -> Standing {
        if let Some(run) = self.have.latest(&container.name).filter(|run| run.is_running()) {
            return self.post_start(container, run, plan);
        }
        let Some(next) = due(self.have, container, role, self.max_backoff, self.now) else { return Standing::Down };
        let failure = self.seen.container_failures.get(&container.name).map(|f| f.retry_at);
        if let Some(at) = Some(next.not_before).max(failure).filter(|at| *at > self.now) {
            plan.wake(at);
            return Standing::Down;
        }
        match self.seen.images.get(&container.name) {
            None | Some(ImageState::Present) => {}
            Some(ImageState::Wanted) => {
                plan.act(Action::Pull { container: container.name.clone(), attempt: next.attempt });
                return Standing::Down;
            }
            // The worker is woken when images change.
            Some(ImageState::Pulling) => return Standing::Down,
            Some(ImageState::Absent { retry_at, .. }) => {
                if let Some(at) = *retry_at {
                    plan.wake(at);
                }
                return Standing::Down;
            }
        }
        let backoff_ms = u64::try_from(next.backoff.as_millis()).unwrap_or(0);
        plan.act(Action::Run { container: container.name.clone(), attempt: next.attempt, backoff_ms });
        if order::has_post_start(container) { Standing::Busy } else { Standing::Launched }
    }

    fn post_start(&self, container: &Container, run: &Instance, plan: &mut Plan) -> Standing {
        let progress = self.have.progress(&run.id);
        if progress.stopping.is_some() {
            return Standing::Down;
        }
        if !order::has_post_start(container) {
            return Standing::Up;
        }
        match progress.post_start {
            HookState::Idle => {
                plan.act(Action::Hook {
                    container: run.container.clone(),
                    id: run.id.clone(),
                    kind: HookKind::PostStart,
                    timeout_ms: None,
                });
                Standing::Busy
            }
            HookState::Running => Standing::Busy,
            HookState::Done => Standing::Up,
            HookState::Failed(_) => Standing::Down,
        }
    }
}
