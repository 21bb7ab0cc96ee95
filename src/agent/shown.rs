//! What the agent reports, by the clock on the wall: inside, all instants are of a time that nobody sets
//! ([`clock::now`]). Nothing is done as long as the two agree.

use crate::sys::clock;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Event, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::sync::Arc;

/// A pod as it is shown.
pub fn pod(pod: Arc<Pod>) -> Arc<Pod> {
    let ahead = clock::ahead();
    if ahead.is_zero() {
        return pod;
    }
    let mut pod = Arc::unwrap_or_clone(pod);
    move_pod(&mut pod, ahead);
    Arc::new(pod)
}

/// A pod that was shown, by the time inside.
pub fn taken_in(pod: Arc<Pod>) -> Arc<Pod> {
    let ahead = clock::ahead();
    if ahead.is_zero() {
        return pod;
    }
    let mut pod = Arc::unwrap_or_clone(pod);
    move_pod(&mut pod, -ahead);
    Arc::new(pod)
}

/// Events as they are shown.
pub fn events(mut events: Vec<Event>) -> Vec<Event> {
    let ahead = clock::ahead();
    if !ahead.is_zero() {
        events.iter_mut().for_each(|event| move_event(event, ahead));
    }
    events
}

/// The node as it is shown.
pub fn node(mut node: Node) -> Node {
    let ahead = clock::ahead();
    if !ahead.is_zero() {
        move_node(&mut node, ahead);
    }
    node
}

fn move_pod(pod: &mut Pod, by: SignedDuration) {
    move_meta(&mut pod.metadata, by);
    let Some(status) = &mut pod.status else { return };
    move_time(&mut status.start_time, by);
    for condition in status.conditions.iter_mut().flatten() {
        move_time(&mut condition.last_transition_time, by);
        move_time(&mut condition.last_probe_time, by);
    }
    let all =
        [&mut status.init_container_statuses, &mut status.container_statuses, &mut status.ephemeral_container_statuses];
    all.into_iter().flatten().flatten().for_each(|status| move_container(status, by));
}

fn move_container(status: &mut ContainerStatus, by: SignedDuration) {
    for state in [&mut status.state, &mut status.last_state].into_iter().flatten() {
        let ContainerState { running, terminated, waiting: _ } = state;
        if let Some(running) = running {
            move_time(&mut running.started_at, by);
        }
        if let Some(terminated) = terminated {
            move_time(&mut terminated.started_at, by);
            move_time(&mut terminated.finished_at, by);
        }
    }
}

fn move_event(event: &mut Event, by: SignedDuration) {
    move_meta(&mut event.metadata, by);
    move_time(&mut event.first_timestamp, by);
    move_time(&mut event.last_timestamp, by);
}

fn move_node(node: &mut Node, by: SignedDuration) {
    move_meta(&mut node.metadata, by);
    for condition in node.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten()) {
        move_time(&mut condition.last_heartbeat_time, by);
        move_time(&mut condition.last_transition_time, by);
    }
}

fn move_meta(meta: &mut ObjectMeta, by: SignedDuration) {
    move_time(&mut meta.creation_timestamp, by);
    move_time(&mut meta.deletion_timestamp, by);
}

fn move_time(time: &mut Option<Time>, by: SignedDuration) {
    if let Some(Time(at)) = time {
        *at = crate::pod::clock::later(*at, by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Every instant in a report is told by the same clock: none may be forgotten.
    #[test]
    fn all_times_of_a_report_move() {
        const THEN: &str = "1970-01-01T00:01:00Z";
        const NOW: &str = "2026-11-22T00:01:00Z";
        let report = |at: &str| {
            let ended = json!({ "exitCode": 1, "startedAt": at, "finishedAt": at });
            let of = |state: Value| {
                json!([{ "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 1,
                    "state": state, "lastState": { "terminated": ended } }])
            };
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": "p", "creationTimestamp": at, "deletionTimestamp": at },
                "spec": { "containers": [{ "name": "c" }] },
                "status": {
                    "startTime": at,
                    "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": at, "lastProbeTime": at }],
                    "containerStatuses": of(json!({ "running": { "startedAt": at } })),
                    "initContainerStatuses": of(json!({ "terminated": ended })),
                },
            })
        };
        let by = NOW.parse::<jiff::Timestamp>().unwrap().duration_since(THEN.parse().unwrap());
        let mut pod: Pod = serde_json::from_value(report(THEN)).unwrap();
        move_pod(&mut pod, by);
        assert_eq!(serde_json::to_value(&pod).unwrap(), report(NOW));

        let event = |at: &str| {
            json!({
                "apiVersion": "v1", "kind": "Event", "metadata": { "name": "e", "creationTimestamp": at },
                "involvedObject": {}, "firstTimestamp": at, "lastTimestamp": at,
            })
        };
        let mut moved: Event = serde_json::from_value(event(THEN)).unwrap();
        move_event(&mut moved, by);
        assert_eq!(serde_json::to_value(&moved).unwrap(), event(NOW));
    }
}
