//! Whether a container that ended runs again: its role, its own policy and rules, the pod's policy.

use super::restart;
use super::{Instance, Progress, RestartPolicy, Role, Spec, StopCause};
use k8s_openapi::api::core::v1::Container;

/// What follows from the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stays ended.
    Done,
    /// It runs again.
    Restart,
    /// All containers of the pod run again.
    RestartAll,
}

const RESTART_ALL: &str = "RestartAllContainers";

/// Whether some rule of the pod restarts all its containers.
pub(super) fn may_restart_all(spec: &Spec) -> bool {
    let rules = |c: &Container| c.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL);
    spec.all_containers().any(rules)
}

/// Whether a run did what an init container is for (as kubelet: killed for its memory is a failure, whatever the code).
pub(super) fn succeeded(run: &Instance) -> bool {
    run.terminated.as_ref().is_some_and(|end| end.exit_code == 0 && end.reason != "OOMKilled")
}

/// Whether the node itself ended the run to start the container anew: no crash, and no rule has a say.
pub(super) fn was_recycled(progress: &Progress) -> bool {
    let cause = progress.stopping.as_ref().map(|s| s.cause);
    matches!(cause, Some(StopCause::Resize | StopCause::RestartAll | StopCause::Changed))
}

/// What follows from the end of `run`, which was done with as `progress` tells. A run that goes on is [`Verdict::Done`].
pub(super) fn after(spec: &Spec, container: &Container, run: &Instance, progress: &Progress) -> Verdict {
    let Some(end) = &run.terminated else { return Verdict::Done };
    if was_recycled(progress) {
        return Verdict::Restart;
    }
    // As kubelet: what its probes gave up has failed, however politely it ended; rules judge what the container did.
    if matches!(progress.stopping.as_ref().map(|s| s.cause), Some(StopCause::Liveness | StopCause::Startup)) {
        return if restarts_failed(spec, container) { Verdict::Restart } else { Verdict::Done };
    }
    let rule = container
        .restart_policy_rules
        .iter()
        .flatten()
        .filter(|_| container.restart_policy.is_some())
        .find(|rule| {
            rule.exit_codes.as_ref().is_some_and(|codes| {
                let listed = codes.values.iter().flatten().any(|code| *code == end.exit_code);
                match codes.operator.as_str() {
                    "In" => listed,
                    "NotIn" => !listed,
                    _ => false,
                }
            })
        })
        .map(|rule| rule.action.as_str());
    match rule {
        Some(RESTART_ALL) => return Verdict::RestartAll,
        Some("Restart") => return Verdict::Restart,
        _ => {}
    }
    let role = spec.role(&container.name).unwrap_or(Role::App);
    // What was cut off before its first instruction has not run at all.
    let never_ran = run.started.is_none() && end.reason == "ContainerStatusUnknown";
    if role == Role::Sidecar || never_ran {
        return Verdict::Restart;
    }
    if role == Role::Init && succeeded(run) {
        return Verdict::Done;
    }
    if restart::wanted(policy(spec, container), run) { Verdict::Restart } else { Verdict::Done }
}

/// A container's own policy, or its pod's.
fn policy(spec: &Spec, container: &Container) -> RestartPolicy {
    match container.restart_policy.as_deref() {
        Some(own) => RestartPolicy::named(own),
        None => spec.restart_policy(),
    }
}

/// Whether a container that its probes gave up runs again.
#[must_use]
pub fn restarts_failed(spec: &Spec, container: &Container) -> bool {
    policy(spec, container) != RestartPolicy::Never
}
