//! What counts of the past, and how far the pod's start has come.

use super::rules::{self, Verdict};
use super::{HookState, Instance, Present, Role, Sandbox};
use k8s_openapi::api::core::v1::Container;

/// The newest run of a container, as far as it counts: init containers and sidecars begin anew with every round, app
/// containers only when all containers are restarted.
pub(super) fn counted<'a>(have: &'a Present, role: Role, name: &str) -> Option<&'a Instance> {
    have.latest(name).filter(|run| match role {
        Role::App => run.round >= have.record.restart_all,
        Role::Init | Role::Sidecar => run.round == have.record.round,
    })
}

/// Whether a run is left over from before all containers were restarted.
pub(super) fn is_outdated(have: &Present, run: &Instance) -> bool {
    run.round < have.record.restart_all
}

/// Whether an app container runs: then the pod is initialized, whatever became of the records.
pub(super) fn serves(have: &Present) -> bool {
    let up = |c: &Container| have.latest(&c.name).is_some_and(|run| run.is_running() && !is_outdated(have, run));
    have.spec.containers().iter().any(up)
}

/// Whether an app container was started in this round.
pub(super) fn was_initialized(have: &Present) -> bool {
    let began = |c: &Container| have.latest(&c.name).is_some_and(|run| run.round == have.record.round);
    have.spec.containers().iter().any(began)
}

/// Whether a regular init container has done its work in this round.
pub(super) fn init_done(have: &Present, name: &str) -> bool {
    match counted(have, Role::Init, name) {
        Some(run) => rules::succeeded(run),
        // As kubelet: a lost record is no reason to run it under app containers that took its work for done.
        None => was_initialized(have),
    }
}

/// Whether the container's postStart hook, if it has one, is over, and well.
pub(super) fn post_start_done(have: &Present, container: &Container, run: &Instance) -> bool {
    !has_post_start(container) || have.progress(&run.id).post_start == HookState::Done
}

/// Whether a container has a postStart hook.
pub(super) fn has_post_start(container: &Container) -> bool {
    container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some())
}

/// Whether a container has a preStop hook.
pub(super) fn has_pre_stop(container: &Container) -> bool {
    container.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some())
}

/// Whether a sidecar runs, its postStart hook is over, and its startup probe has passed: what comes after it may start.
pub(super) fn sidecar_started(have: &Present, container: &Container) -> bool {
    counted(have, Role::Sidecar, &container.name).is_some_and(|run| {
        run.is_running()
            && run.started.is_some()
            && have.progress(&run.id).stopping.is_none()
            && post_start_done(have, container, run)
            && have.health(container, &run.id).started
    })
}

/// A regular init container that failed in this round and is not run again.
pub(super) fn failed_init(have: &Present) -> Option<&Container> {
    if was_initialized(have) {
        return None;
    }
    have.spec.init_containers().iter().find(|c| {
        Role::of_init(c) == Role::Init
            && counted(have, Role::Init, &c.name).is_some_and(|run| {
                let ended = run.terminated.is_some() && !rules::succeeded(run);
                ended && rules::after(&have.spec, c, run, have.progress(&run.id)) == Verdict::Done
            })
    })
}

/// The terminal phase, once the containers leave nothing else to do (as kubelet: a regular init container that failed
/// for good fails the pod; else the app containers decide, and all exit codes 0 is success).
pub(super) fn outcome(have: &Present) -> Option<&'static str> {
    if failed_init(have).is_some() {
        return Some("Failed");
    }
    let mut failed = false;
    for container in have.spec.containers() {
        let run = counted(have, Role::App, &container.name)?;
        let end = run.terminated.as_ref()?;
        if rules::after(&have.spec, container, run, have.progress(&run.id)) != Verdict::Done {
            return None;
        }
        failed |= end.exit_code != 0;
    }
    Some(if failed { "Failed" } else { "Succeeded" })
}

/// The container whose end asks for a restart of all, if it was not granted yet.
pub(super) fn restart_trigger(have: &Present) -> Option<&str> {
    let asks = |c: &&Container| {
        have.latest(&c.name).is_some_and(|run| {
            !is_outdated(have, run) && rules::after(&have.spec, c, run, have.progress(&run.id)) == Verdict::RestartAll
        })
    };
    have.spec.all_containers().find(asks).map(|c| c.name.as_str())
}

/// Whether it is a container's turn to start: its sandbox is there, and so is all that has to come before it.
pub(super) fn is_reached(have: &Present, name: &str) -> bool {
    if have.sandbox != Sandbox::Ready {
        return false;
    }
    let mut before = have.spec.init_containers().iter().take_while(|c| c.name != name);
    serves(have)
        || before.all(|c| match Role::of_init(c) {
            Role::Sidecar => sidecar_started(have, c),
            _ => init_done(have, &c.name),
        })
}
