//! The phase of a pod.

use super::{Observed, Present, Role, is_from_api, order};
use k8s_openapi::api::core::v1::ContainerStatus;

/// As kubelet (getPhase): the first that matches. A terminal phase is published only once it is recorded and no
/// container can be running any more.
pub(super) fn of(seen: &Observed, containers: &[ContainerStatus]) -> &'static str {
    let Some(have) = &seen.present else { return "Pending" };
    if let Some(finished) = &have.record.finished
        && have.running().next().is_none()
    {
        return if finished.phase == "Succeeded" { "Succeeded" } else { "Failed" };
    }
    if let Some(phase) = deleted(have, containers) {
        // However it ended: what was refused has failed.
        return if seen.displaced.is_some() { "Failed" } else { phase };
    }
    if is_pending(have, containers) { "Pending" } else { "Running" }
}

/// As kubelet: of a pod that the API server wants gone, once all its containers have ended. Static pods are told of as long as
/// they are there.
fn deleted(have: &Present, containers: &[ContainerStatus]) -> Option<&'static str> {
    if have.record.deletion.is_none() || !is_from_api(have.spec.pod()) || have.running().next().is_some() {
        return None;
    }
    let code = |c: &ContainerStatus| c.state.as_ref()?.terminated.as_ref().map(|end| end.exit_code);
    let app = containers.iter().filter(|c| have.spec.role(&c.name) == Some(Role::App));
    let codes: Vec<i32> = app.map(code).collect::<Option<_>>()?;
    Some(if codes.iter().all(|code| *code == 0) { "Succeeded" } else { "Failed" })
}

/// `containers`: the statuses of sidecars and app containers.
fn is_pending(have: &Present, containers: &[ContainerStatus]) -> bool {
    if !order::serves(have) {
        let unfinished = have.spec.init_containers().iter().any(|c| match Role::of_init(c) {
            Role::Sidecar => !order::was_initialized(have) && !order::sidecar_started(have, c),
            _ => !order::init_done(have, &c.name),
        });
        // The sidecars of a pod that is over are none that anybody waits for.
        if unfinished && (have.record.finished.is_none() || !order::was_initialized(have)) {
            return true;
        }
    }
    let never_ran = |c: &ContainerStatus| {
        let waits = c.state.as_ref().is_some_and(|s| s.waiting.is_some());
        waits && c.last_state.as_ref().is_none_or(|s| s.terminated.is_none())
    };
    containers.iter().any(never_ran)
}
