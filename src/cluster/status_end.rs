//! The last status of a pod of which nothing is left on the machine.

use crate::pod::Role;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// As kubelet: what is said of a container that ended while nobody looked.
const UNKNOWN: &str = "ContainerStatusUnknown";

/// Whether a pod is in a phase that it never leaves.
pub(super) fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// The pod as it ended: from its last report, or from what the API server has where there is none. As kubelet: what is not
/// known to have ended well has failed. `theirs` is what the API server has: since when a condition is as it is, is told once.
pub(super) fn ended(last: &Pod, theirs: &Pod, now: Timestamp) -> Pod {
    let mut pod = last.clone();
    let spec = pod.spec.clone().unwrap_or_default();
    let terminal = is_terminal(&pod);
    let status = pod.status.get_or_insert_default();
    let inits: &[Container] = spec.init_containers.as_deref().unwrap_or_default();
    let named = |all: &[Container]| all.iter().map(blank).collect::<Vec<_>>();
    let app = status.container_statuses.get_or_insert_with(|| named(&spec.containers));
    let init = status.init_container_statuses.get_or_insert_with(|| named(inits));
    // As kubelet: containers whose turn never came have not failed.
    let began = |c: &ContainerStatus| {
        let has_ended = |state: &Option<ContainerState>| state.as_ref().is_some_and(|s| s.terminated.is_some());
        let runs = c.state.as_ref().is_some_and(|state| state.running.is_some());
        runs || has_ended(&c.state) || has_ended(&c.last_state)
    };
    let initialized = inits.is_empty()
        || app.iter().any(began)
        || inits.iter().zip(init.iter()).all(|(container, c)| match Role::of_init(container) {
            Role::Sidecar => c.started == Some(true),
            _ => ended_well(c),
        });
    let reached = init.iter().rposition(began).map_or(0, |last| last + 1);
    init.iter_mut().take(reached).for_each(lose);
    if initialized {
        app.iter_mut().for_each(lose);
    }
    for c in init.iter_mut().chain(app.iter_mut()) {
        let stays = c.state.as_ref().is_some_and(|state| state.terminated.is_some());
        let is_init = inits.iter().any(|i| i.name == c.name && Role::of_init(i) == Role::Init);
        // An init container that has done its work stays ready, as long as it is one.
        (c.ready, c.started) = (c.ready && stays && is_init, Some(false));
    }
    let well = app.iter().all(ended_well) && !app.is_empty();
    if init.is_empty() {
        status.init_container_statuses = None;
    }
    if !terminal {
        status.phase = Some(if well { "Succeeded" } else { "Failed" }.to_owned());
    }
    let reason = if status.phase.as_deref() == Some("Succeeded") { "PodCompleted" } else { "PodFailed" };
    let conditions = status.conditions.get_or_insert_default();
    let known = theirs.status.as_ref().and_then(|status| status.conditions.as_ref());
    for type_ in ["Ready", "ContainersReady"] {
        let known = known.into_iter().flatten().find(|known| known.type_ == type_ && known.status == "False");
        let since = known.map_or(Some(Time(now)), |known| known.last_transition_time.clone());
        match conditions.iter_mut().find(|condition| condition.type_ == type_) {
            Some(condition) => {
                if condition.status != "False" {
                    condition.last_transition_time = since;
                }
                (condition.status, condition.reason, condition.message) =
                    ("False".to_owned(), Some(reason.to_owned()), None);
            }
            None => conditions.push(PodCondition {
                type_: type_.to_owned(),
                status: "False".to_owned(),
                reason: Some(reason.to_owned()),
                last_transition_time: since,
                ..PodCondition::default()
            }),
        }
    }
    pod
}

fn blank(container: &Container) -> ContainerStatus {
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        ..ContainerStatus::default()
    }
}

fn ended_well(status: &ContainerStatus) -> bool {
    let end = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    end.is_some_and(|end| end.exit_code == 0)
}

/// What is not known to have ended is lost.
fn lose(status: &mut ContainerStatus) {
    let state = status.state.take().unwrap_or_default();
    if state.terminated.is_some() {
        status.state = Some(state);
        return;
    }
    let end = ContainerStateTerminated {
        container_id: status.container_id.clone(),
        exit_code: 137,
        reason: Some(UNKNOWN.to_owned()),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        started_at: state.running.and_then(|running| running.started_at),
        ..ContainerStateTerminated::default()
    };
    status.state = Some(ContainerState { terminated: Some(end), ..ContainerState::default() });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-11-22T00:01:00Z";

    fn end(pod: Value) -> Value {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let once = ended(&pod, &pod, NOW.parse().unwrap());
        assert_eq!(ended(&once, &once, Timestamp::MAX), once, "an end is the end");
        assert!(is_terminal(&once));
        serde_json::to_value(once.status).unwrap()
    }

    fn reason<'a>(status: &'a Value, which: &str, at: usize) -> &'a Value {
        &status[which][at]["state"]["terminated"]["reason"]
    }

    #[test]
    fn a_pod_of_which_nothing_is_known_has_failed() {
        let status = end(json!({ "metadata": {}, "spec": { "containers": [{ "name": "a" }, { "name": "b" }] } }));
        assert_eq!(status["phase"], "Failed");
        assert_eq!(reason(&status, "containerStatuses", 0), UNKNOWN);
        assert_eq!(status["containerStatuses"][1]["state"]["terminated"]["exitCode"], 137);
        let ready = &status["conditions"][0];
        assert_eq!(
            (&ready["type"], &ready["status"], &ready["reason"]),
            (&json!("Ready"), &json!("False"), &json!("PodFailed"))
        );
        assert_eq!(ready["lastTransitionTime"], NOW);
    }

    #[test]
    fn what_is_known_of_an_end_is_kept() {
        let done = json!({ "terminated": { "exitCode": 0, "reason": "Completed" } });
        let of = |state: &Value| json!({ "name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 2, "state": state });
        let pod = |state: &Value| {
            json!({ "metadata": {}, "spec": { "containers": [{ "name": "a" }] }, "status": {
            "phase": "Running", "containerStatuses": [of(state)],
            "conditions": [{ "type": "Ready", "status": "False", "lastTransitionTime": "2026-11-21T00:00:00Z" }],
        } })
        };
        let status = end(pod(&done));
        assert_eq!(
            (&status["phase"], reason(&status, "containerStatuses", 0)),
            (&json!("Succeeded"), &json!("Completed"))
        );
        assert_eq!(status["conditions"][0]["reason"], "PodCompleted");
        // It was not ready before: nothing changed then.
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2026-11-21T00:00:00Z");
        let status = end(pod(&json!({ "running": { "startedAt": "2026-11-21T00:00:00Z" } })));
        assert_eq!((&status["phase"], reason(&status, "containerStatuses", 0)), (&json!("Failed"), &json!(UNKNOWN)));
        assert_eq!(status["containerStatuses"][0]["ready"], false);
        assert_eq!(status["containerStatuses"][0]["restartCount"], 2);
    }

    #[test]
    fn containers_whose_turn_never_came_have_not_failed() {
        let of = |name: &str, state: Value| json!({ "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state });
        let status = end(json!({ "metadata": {},
            "spec": { "initContainers": [{ "name": "i" }, { "name": "j" }], "containers": [{ "name": "a" }] },
            "status": { "phase": "Pending",
                "initContainerStatuses": [of("i", json!({ "running": {} })), of("j", json!({ "waiting": {} }))],
                "containerStatuses": [of("a", json!({ "waiting": { "reason": "PodInitializing" } }))] },
        }));
        assert_eq!(status["phase"], "Failed");
        assert_eq!(reason(&status, "initContainerStatuses", 0), UNKNOWN);
        assert!(reason(&status, "initContainerStatuses", 1).is_null());
        assert!(reason(&status, "containerStatuses", 0).is_null());
    }

    /// What is told at each look must be the same, or it would be told for ever.
    #[test]
    fn an_end_is_told_once() {
        let refused =
            json!({ "metadata": {}, "spec": { "containers": [{ "name": "a" }] }, "status": { "phase": "Failed" } });
        let refused: Pod = serde_json::from_value(refused).unwrap();
        let first = ended(&refused, &refused, NOW.parse().unwrap());
        assert_eq!(ended(&refused, &first, Timestamp::MAX), first);
    }

    #[test]
    fn a_terminal_phase_stays() {
        let status = end(json!({ "metadata": {}, "spec": { "containers": [{ "name": "a" }] },
            "status": { "phase": "Failed", "reason": "Evicted", "message": "used too much" } }));
        assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("Evicted")));
    }
}
