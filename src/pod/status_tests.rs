//! Reported statuses of pods in the states that people meet.

use super::*;
use crate::pod::{Deletion, Failure, Finished, Record, SandboxRecord, Termination};
use expect_test::{Expect, expect};
use std::collections::BTreeMap;

fn at(s: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + s).unwrap()
}

fn spec(policy: &str) -> Spec {
    let pod = serde_json::from_value::<Pod>(serde_json::json!({
        "metadata": {"name": "web-n", "namespace": "default", "uid": "u1"},
        "spec": {"restartPolicy": policy, "containers": [{"name": "web", "image": "nginx"}]},
    }));
    Spec::new(pod.unwrap()).unwrap()
}

fn run(attempt: u32, backoff_ms: u64, end: Option<(i64, i32, &str)>) -> Instance {
    Instance {
        id: format!("id{attempt}"),
        container: "web".into(),
        attempt,
        image: "nginx".into(),
        image_id: "sha256:1".into(),
        round: 0,
        backoff_ms,
        created: at(10),
        pid: 1,
        pid_start: 1,
        boot_id: "b".into(),
        started: Some(at(10)),
        terminated: end.map(|(finished, exit_code, reason)| Termination {
            finished: at(finished),
            exit_code,
            signal: None,
            reason: reason.into(),
            message: String::new(),
        }),
    }
}

fn seen(spec: &Spec, runs: Vec<Instance>) -> Observed {
    let record = Record {
        pod: spec.pod().clone(),
        start_time: at(0),
        sandbox: Some(SandboxRecord {
            created: at(1),
            boot_id: "b".into(),
            ips: vec!["10.88.0.2".parse().unwrap()],
            cgroup: "/kubepods/x".into(),
        }),
        sandbox_attempts: 1,
        finished: None,
        deletion: None,
        round: 0,
        restart_all: 0,
    };
    let containers = if runs.is_empty() { BTreeMap::new() } else { BTreeMap::from([("web".to_owned(), runs)]) };
    let present =
        Present { spec: spec.clone(), record, sandbox: Sandbox::Ready, containers, progress: BTreeMap::new() };
    Observed { present: Some(present), ..Observed::default() }
}

/// The parts of a status that tell its story, in one line each.
fn check(spec: &Spec, seen: &Observed, expected: Expect) {
    let facts = NodeFacts { host_ips: vec!["192.168.1.5".parse().unwrap()], max_backoff: restart::MAX_BACKOFF };
    let pod = report(Some(spec), seen, &facts, None, at(30)).unwrap();
    let status = pod.status.unwrap();
    let mut text = format!(
        "{} ip={} host={} deleting={}\n",
        status.phase.unwrap(),
        status.pod_ip.unwrap_or_default(),
        status.host_ip.unwrap_or_default(),
        pod.metadata.deletion_timestamp.is_some()
    );
    for c in status.container_statuses.unwrap() {
        let state = serde_json::to_string(&c.state).unwrap();
        let last = serde_json::to_string(&c.last_state).unwrap();
        text += &format!("{} ready={} restarts={} {state} last={last}\n", c.name, c.ready, c.restart_count);
    }
    for c in status.conditions.unwrap() {
        text +=
            &format!("{}={} {} {}\n", c.type_, c.status, c.reason.unwrap_or_default(), c.message.unwrap_or_default());
    }
    expected.assert_eq(&text);
}

#[test]
fn running() {
    let spec = spec("Always");
    check(
        &spec,
        &seen(&spec, vec![run(0, 0, None)]),
        expect![[r#"
            Running ip=10.88.0.2 host=192.168.1.5 deleting=false
            web ready=true restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
            PodReadyToStartContainers=True  
            Initialized=True  
            Ready=True  
            ContainersReady=True  
            PodScheduled=True  
        "#]],
    );
}

#[test]
fn waiting_for_its_image() {
    let spec = spec("Always");
    let mut seen = seen(&spec, vec![]);
    let state = ImageState::Absent { reason: "ErrImagePull".into(), message: "not here".into() };
    seen.images.insert("nginx".into(), state);
    check(
        &spec,
        &seen,
        expect![[r#"
            Pending ip=10.88.0.2 host=192.168.1.5 deleting=false
            web ready=false restarts=0 {"waiting":{"message":"not here","reason":"ErrImagePull"}} last={}
            PodReadyToStartContainers=True  
            Initialized=True  
            Ready=False ContainersNotReady containers with unready status: [web]
            ContainersReady=False ContainersNotReady containers with unready status: [web]
            PodScheduled=True  
        "#]],
    );
}

#[test]
fn crash_loop() {
    let spec = spec("Always");
    check(
        &spec,
        &seen(&spec, vec![run(0, 0, Some((11, 1, "Error"))), run(1, 10_000, Some((25, 2, "Error")))]),
        expect![[r#"
            Running ip=10.88.0.2 host=192.168.1.5 deleting=false
            web ready=false restarts=1 {"waiting":{"message":"back-off 10s restarting failed container=web pod=web-n_default(u1)","reason":"CrashLoopBackOff"}} last={"terminated":{"containerID":"coracle://id1","exitCode":2,"finishedAt":"2023-11-14T22:13:45Z","reason":"Error","startedAt":"2023-11-14T22:13:30Z"}}
            PodReadyToStartContainers=True  
            Initialized=True  
            Ready=False ContainersNotReady containers with unready status: [web]
            ContainersReady=False ContainersNotReady containers with unready status: [web]
            PodScheduled=True  
        "#]],
    );
}

#[test]
fn cannot_be_configured() {
    let spec = spec("Always");
    let mut seen = seen(&spec, vec![]);
    let failure =
        Failure { reason: "CreateContainerConfigError".into(), message: "no".into(), count: 1, retry_at: at(40) };
    seen.container_failures.insert("web".into(), failure);
    check(
        &spec,
        &seen,
        expect![[r#"
            Pending ip=10.88.0.2 host=192.168.1.5 deleting=false
            web ready=false restarts=0 {"waiting":{"message":"no","reason":"CreateContainerConfigError"}} last={}
            PodReadyToStartContainers=True  
            Initialized=True  
            Ready=False ContainersNotReady containers with unready status: [web]
            ContainersReady=False ContainersNotReady containers with unready status: [web]
            PodScheduled=True  
        "#]],
    );
}

#[test]
fn finished_and_leaving() {
    let spec = spec("Never");
    let mut seen = seen(&spec, vec![run(0, 0, Some((25, 3, "Error")))]);
    let present = seen.present.as_mut().unwrap();
    present.record.finished =
        Some(Finished { phase: "Failed".into(), reason: None, message: None, at: at(20), grace_seconds: 0 });
    present.sandbox = Sandbox::Absent;
    present.record.deletion = Some(Deletion { started: at(29), grace_seconds: 30 });
    check(
        &spec,
        &seen,
        expect![[r#"
            Failed ip= host=192.168.1.5 deleting=true
            web ready=false restarts=0 {"terminated":{"containerID":"coracle://id0","exitCode":3,"finishedAt":"2023-11-14T22:13:45Z","reason":"Error","startedAt":"2023-11-14T22:13:30Z"}} last={}
            PodReadyToStartContainers=False  
            Initialized=True  
            Ready=False PodFailed 
            ContainersReady=False PodFailed 
            PodScheduled=True  
        "#]],
    );
}

#[test]
fn a_wanted_pod_that_is_not_there_yet_is_pending() {
    let spec = spec("Always");
    let facts = NodeFacts::default();
    let pod = report(Some(&spec), &Observed::default(), &facts, None, at(0)).unwrap();
    assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Pending"));
    assert!(report(None, &Observed::default(), &facts, None, at(0)).is_none());
}

#[test]
fn transition_times_move_only_with_the_status() {
    let spec = spec("Always");
    let facts = NodeFacts { host_ips: vec![], max_backoff: restart::MAX_BACKOFF };
    let up = seen(&spec, vec![run(0, 0, None)]);
    let first = report(Some(&spec), &up, &facts, None, at(30)).unwrap();
    let later = report(Some(&spec), &up, &facts, Some(&first), at(99)).unwrap();
    assert_eq!(first.status, later.status);
    let down = seen(&spec, vec![run(0, 0, Some((98, 1, "Error"))), run(1, 10_000, Some((98, 1, "Error")))]);
    let changed = report(Some(&spec), &down, &facts, Some(&first), at(99)).unwrap();
    let ready = changed.status.unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.last_transition_time.unwrap().0), ("False", at(99)));
}
