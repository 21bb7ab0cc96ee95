use super::*;
use serde_json::json;

fn pod(value: Value) -> Arc<Pod> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn bound(phase: &str, leaves: bool) -> Arc<Pod> {
    pod(json!({
        "metadata": {
            "name": "p", "namespace": "n", "uid": "u", "resourceVersion": "10",
            "annotations": { "kubernetes.io/config.source": "api" },
            "deletionTimestamp": leaves.then_some("2026-01-01T00:00:00Z"),
        },
        "spec": { "containers": [{ "name": "a" }], "restartPolicy": "Never" },
        "status": { "phase": phase },
    }))
}

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn nothing() -> Said {
    Said::new(Vec::new())
}

fn phase(work: Option<Work>) -> Value {
    match work {
        Some(Work::Patch { body, .. }) => body["status"]["phase"].clone(),
        Some(Work::Delete) => json!("delete"),
        None => Value::Null,
    }
}

#[test]
fn a_pod_that_is_to_go_is_told_as_ended_and_then_deleted() {
    let gone = || Rest::None(None);
    assert_eq!(phase(work(&bound("Running", true), &nothing(), gone, None, NOW)), "Failed");
    // Once the API server knows all of it.
    let Some(Work::Patch { report, .. }) = work(&bound("Running", true), &nothing(), gone, None, NOW) else { panic!() };
    assert_eq!(work(&report, &nothing(), gone, None, NOW + SignedDuration::from_hours(1)), Some(Work::Delete));
    // What the last report said counts.
    let mut last = Pod::clone(&bound("Running", true));
    let end = json!([{ "name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "terminated": { "exitCode": 0 } } }]);
    last.status.as_mut().unwrap().container_statuses = serde_json::from_value(end).unwrap();
    let last = Some(Arc::new(last));
    assert_eq!(phase(work(&bound("Running", true), &nothing(), || Rest::None(last), None, NOW)), "Succeeded");
}

#[test]
fn nothing_is_deleted_while_anything_is_there() {
    assert_eq!(work(&bound("Failed", true), &nothing(), || Rest::Some, None, NOW), None);
    let said = Said::new(vec![bound("Failed", true)]);
    assert_eq!(work(&bound("Failed", true), &said, || unreachable!(), None, NOW), None);
    // It may be about to start.
    assert_eq!(work(&bound("Pending", false), &nothing(), || Rest::None(None), None, NOW), None);
    // It has ended, and was not to: its object stays.
    let left = || Rest::None(Some(bound("Running", false)));
    assert_eq!(phase(work(&bound("Running", false), &nothing(), left, None, NOW)), "Failed");
}

#[test]
fn the_end_of_a_mirror_pod_is_not_told_here() {
    let mut mirror = Pod::clone(&bound("Running", true));
    mirror.metadata.annotations.as_mut().unwrap().insert(MIRROR.into(), "h".into());
    assert_eq!(work(&mirror, &nothing(), || unreachable!(), None, NOW), None);
}

#[test]
fn a_static_pod_is_told_under_its_mirror() {
    let report = pod(json!({
        "metadata": { "name": "p", "namespace": "n", "uid": "h",
            "annotations": { "kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "h" } },
        "status": { "phase": "Running" },
    }));
    let said = Said::new(vec![report]);
    let mut mirror = Pod::clone(&bound("Pending", false));
    let annotations = mirror.metadata.annotations.as_mut().unwrap();
    annotations.insert(MIRROR.into(), "h".into());
    annotations.insert("kubernetes.io/config.hash".into(), "h".into());
    let Some(Work::Patch { body, .. }) = work(&mirror, &said, || unreachable!(), None, NOW) else { panic!() };
    assert_eq!(body, json!({ "metadata": { "uid": "u" }, "status": { "phase": "Running" } }));
    // The mirror of an earlier version says nothing of this one.
    mirror.metadata.annotations.as_mut().unwrap().insert("kubernetes.io/config.hash".into(), "old".into());
    assert_eq!(work(&mirror, &said, || unreachable!(), None, NOW), None);
    // And neither does a pod of the API server that has its name.
    assert_eq!(phase(work(&bound("Pending", false), &said, || Rest::None(None), None, NOW)), Value::Null);
}

#[test]
fn an_end_is_decided_once_the_agent_has_acted_on_it() {
    let bound = Bound { generation: 3, known: true, pods: vec![bound("Running", true)] };
    assert!(is_decided(&bound, 3, "u"));
    assert!(!is_decided(&bound, 2, "u"), "it has not seen it yet");
    assert!(!is_decided(&bound, 3, "other"), "nobody told it");
}

#[test]
fn what_was_answered_counts_until_the_watch_has_caught_up() {
    let mut line = Line::default();
    let at = |version: &str| pod(json!({ "metadata": { "uid": "u", "resourceVersion": version } }));
    line.succeeded(Some(at("12")), None, NOW);
    assert_eq!(line.newest(&at("9")).metadata.resource_version.as_deref(), Some("12"));
    assert_eq!(line.newest(&at("13")).metadata.resource_version.as_deref(), Some("13"));
    assert!(line.answer.is_none());
}

#[test]
fn what_the_api_server_does_not_keep_is_not_told_again_and_again() {
    let report = pod(json!({ "metadata": { "uid": "u", "annotations": { "kubernetes.io/config.source": "api" } },
        "status": { "phase": "Running", "observedGeneration": 3 } }));
    let theirs = pod(json!({ "metadata": { "uid": "u" }, "status": { "phase": "Running" } }));
    let said = Said::new(vec![Arc::clone(&report)]);
    let mut line = Line::default();
    let next = |line: &Line, now| work(&theirs, &said, || unreachable!(), line.rejected(now), now);
    assert!(next(&line, NOW).is_some());
    line.succeeded(Some(Arc::clone(&theirs)), Some(&report), NOW);
    assert_eq!(next(&line, NOW), None);
    assert!(next(&line, NOW + AGAIN).is_some());
}

#[test]
fn failures_come_slower_and_never_before_they_are_asked_for() {
    let mut line = Line::default();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        line.failed(false, None, NOW);
        pauses.push(line.retry().unwrap().duration_since(NOW).as_millis());
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 4000, 4000]);
    line.failed(true, Some(SignedDuration::from_secs(30)), NOW);
    assert_eq!(line.retry().unwrap().duration_since(NOW).as_secs(), 30);
    line.succeeded(None, None, NOW);
    assert_eq!(line.retry(), None);
}
