//! Reported statuses of pods in the states that people meet.

use super::*;
use crate::pod::{
    Deletion, Eviction, Failure, Finished, Health, HookState, ImageState, Instance, Progress, Record, RefusedResize,
    SandboxRecord, Termination, User, restart,
};
use expect_test::{Expect, expect};
use std::collections::{BTreeMap, BTreeSet};

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
        volume_images: Vec::new(),
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
        user: Some(User { uid: 101, gid: 101, groups: vec![101, 2000] }),
        clock: None,
    }
}

fn seen(spec: &Spec, runs: Vec<Instance>) -> Observed {
    let record = Record {
        pod: spec.pod().clone(),
        start_time: at(0),
        seen: None,
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
        resize_restarts: BTreeSet::new(),
        clock: None,
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
    if status.reason.is_some() || status.message.is_some() {
        text += &format!("{}: {}\n", status.reason.unwrap_or_default(), status.message.unwrap_or_default());
    }
    for c in status.init_container_statuses.into_iter().flatten().chain(status.container_statuses.unwrap()) {
        let state = serde_json::to_string(&c.state).unwrap();
        let last = serde_json::to_string(&c.last_state).unwrap();
        let started = if c.started == Some(true) && !c.ready { " started" } else { "" };
        text += &format!("{} ready={}{started} restarts={} {state} last={last}\n", c.name, c.ready, c.restart_count);
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
    let state = ImageState::Absent { reason: "ErrImagePull".into(), message: "not here".into(), retry_at: None };
    seen.images.insert("web".into(), state);
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

/// An init container, a sidecar with a startup probe, another init container, an app container with all that may be
/// said of one.
fn layered() -> Spec {
    let probe = serde_json::json!({"exec": {"command": ["x"]}});
    let rules =
        serde_json::json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let pod = serde_json::from_value::<Pod>(serde_json::json!({
        "metadata": {"name": "web-n", "namespace": "default", "uid": "u1"},
        "spec": {
            "readinessGates": [{"conditionType": "example.com/lb"}],
            "initContainers": [
                {"name": "i0", "image": "i"},
                {"name": "s0", "image": "i", "restartPolicy": "Always", "startupProbe": probe},
                {"name": "i1", "image": "i"}],
            "containers": [
                {"name": "web", "image": "nginx", "restartPolicy": "Always", "restartPolicyRules": rules,
                    "readinessProbe": probe, "lifecycle": {"postStart": {"exec": {"command": ["x"]}}},
                    "resources": {"requests": {"cpu": "1"}},
                    "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "Enabled"},
                        {"name": "w", "mountPath": "/w"}]}]},
    }));
    Spec::new(pod.unwrap()).unwrap()
}

fn with_runs(spec: &Spec, runs: Vec<(&str, Instance)>) -> Observed {
    let mut seen = seen(spec, vec![]);
    let present = seen.present.as_mut().unwrap();
    for (name, run) in runs {
        let run = Instance { container: name.into(), id: format!("{name}-{}", run.attempt), ..run };
        present.containers.entry(name.into()).or_default().push(run);
    }
    seen
}

fn progress(seen: &mut Observed, id: &str, progress: Progress) {
    seen.present.as_mut().unwrap().progress.insert(id.into(), progress);
}

fn healthy() -> Progress {
    let health = Some(Health { started: true, ready: true, unhealthy: None });
    Progress { post_start: HookState::Done, health, ..Progress::default() }
}

fn done() -> Instance {
    run(0, 0, Some((11, 0, "Completed")))
}

#[test]
fn initializing() {
    let spec = layered();
    let mut seen = with_runs(&spec, vec![("i0", run(0, 0, None))]);
    // Nobody has asked for the app container's image yet.
    let absent = ImageState::Absent { reason: "ErrImagePull".into(), message: "not here".into(), retry_at: None };
    seen.images.insert("web".into(), absent);
    check(
        &spec,
        &seen,
        expect![[r#"
        Pending ip=10.88.0.2 host=192.168.1.5 deleting=false
        i0 ready=false started restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
        s0 ready=false restarts=0 {"waiting":{"reason":"PodInitializing"}} last={}
        i1 ready=false restarts=0 {"waiting":{"reason":"PodInitializing"}} last={}
        web ready=false restarts=0 {"waiting":{"reason":"PodInitializing"}} last={}
        PodReadyToStartContainers=True  
        Initialized=False ContainersNotInitialized containers with incomplete status: [i0 s0 i1]
        Ready=False ContainersNotReady containers with unready status: [s0 web]
        ContainersReady=False ContainersNotReady containers with unready status: [s0 web]
        PodScheduled=True  
        AllContainersRestarting=False  
    "#]],
    );
    let crash = vec![("i0", run(0, 0, Some((11, 1, "Error")))), ("i0", run(1, 10_000, Some((25, 3, "Error"))))];
    check(
        &spec,
        &with_runs(&spec, crash),
        expect![[r#"
        Pending ip=10.88.0.2 host=192.168.1.5 deleting=false
        i0 ready=false restarts=1 {"waiting":{"message":"back-off 10s restarting failed container=i0 pod=web-n_default(u1)","reason":"CrashLoopBackOff"}} last={"terminated":{"containerID":"coracle://i0-1","exitCode":3,"finishedAt":"2023-11-14T22:13:45Z","reason":"Error","startedAt":"2023-11-14T22:13:30Z"}}
        s0 ready=false restarts=0 {"waiting":{"reason":"PodInitializing"}} last={}
        i1 ready=false restarts=0 {"waiting":{"reason":"PodInitializing"}} last={}
        web ready=false restarts=0 {"waiting":{"reason":"PodInitializing"}} last={}
        PodReadyToStartContainers=True  
        Initialized=False ContainersNotInitialized containers with incomplete status: [i0 s0 i1]
        Ready=False ContainersNotReady containers with unready status: [s0 web]
        ContainersReady=False ContainersNotReady containers with unready status: [s0 web]
        PodScheduled=True  
        AllContainersRestarting=False  
    "#]],
    );
    // A sidecar whose startup probe has not passed.
    check(
        &spec,
        &with_runs(&spec, vec![("i0", done()), ("s0", run(0, 0, None))]),
        expect![[r#"
        Pending ip=10.88.0.2 host=192.168.1.5 deleting=false
        i0 ready=true restarts=0 {"terminated":{"containerID":"coracle://i0-0","exitCode":0,"finishedAt":"2023-11-14T22:13:31Z","reason":"Completed","startedAt":"2023-11-14T22:13:30Z"}} last={}
        s0 ready=false restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
        i1 ready=false restarts=0 {"waiting":{"reason":"PodInitializing"}} last={}
        web ready=false restarts=0 {"waiting":{"reason":"PodInitializing"}} last={}
        PodReadyToStartContainers=True  
        Initialized=False ContainersNotInitialized containers with incomplete status: [s0 i1]
        Ready=False ContainersNotReady containers with unready status: [s0 web]
        ContainersReady=False ContainersNotReady containers with unready status: [s0 web]
        PodScheduled=True  
        AllContainersRestarting=False  
    "#]],
    );
}

#[test]
fn initialized() {
    let spec = layered();
    let all = || vec![("i0", done()), ("s0", run(0, 0, None)), ("i1", done()), ("web", run(0, 0, None))];
    let mut seen = with_runs(&spec, all());
    progress(&mut seen, "s0-0", healthy());
    progress(&mut seen, "web-0", Progress { post_start: HookState::Done, ..Progress::default() });
    check(
        &spec,
        &seen,
        expect![[r#"
        Running ip=10.88.0.2 host=192.168.1.5 deleting=false
        i0 ready=true restarts=0 {"terminated":{"containerID":"coracle://i0-0","exitCode":0,"finishedAt":"2023-11-14T22:13:31Z","reason":"Completed","startedAt":"2023-11-14T22:13:30Z"}} last={}
        s0 ready=true restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
        i1 ready=true restarts=0 {"terminated":{"containerID":"coracle://i1-0","exitCode":0,"finishedAt":"2023-11-14T22:13:31Z","reason":"Completed","startedAt":"2023-11-14T22:13:30Z"}} last={}
        web ready=false started restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
        PodReadyToStartContainers=True  
        Initialized=True  
        Ready=False ContainersNotReady containers with unready status: [web]
        ContainersReady=False ContainersNotReady containers with unready status: [web]
        PodScheduled=True  
        AllContainersRestarting=False  
    "#]],
    );
    progress(&mut seen, "web-0", healthy());
    check(
        &spec,
        &seen,
        expect![[r#"
        Running ip=10.88.0.2 host=192.168.1.5 deleting=false
        i0 ready=true restarts=0 {"terminated":{"containerID":"coracle://i0-0","exitCode":0,"finishedAt":"2023-11-14T22:13:31Z","reason":"Completed","startedAt":"2023-11-14T22:13:30Z"}} last={}
        s0 ready=true restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
        i1 ready=true restarts=0 {"terminated":{"containerID":"coracle://i1-0","exitCode":0,"finishedAt":"2023-11-14T22:13:31Z","reason":"Completed","startedAt":"2023-11-14T22:13:30Z"}} last={}
        web ready=true restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
        PodReadyToStartContainers=True  
        Initialized=True  
        Ready=False ReadinessGatesNotReady corresponding condition of pod readiness gate "example.com/lb" does not exist.
        ContainersReady=True  
        PodScheduled=True  
        AllContainersRestarting=False  
    "#]],
    );
    // A lost record of an init container is no news.
    seen.present.as_mut().unwrap().containers.remove("i0");
    let status = report(Some(&spec), &seen, &NodeFacts::default(), None, at(30)).unwrap().status.unwrap();
    let i0 = &status.init_container_statuses.unwrap()[0];
    assert!(i0.ready && i0.state.as_ref().is_some_and(|s| s.terminated.is_some()));
    let web = &status.container_statuses.unwrap()[0];
    expect![[r#"[{"mountPath":"/v","name":"v","readOnly":true,"recursiveReadOnly":"Enabled"},{"mountPath":"/w","name":"w"}] {"cpu":"1"}"#]]
        .assert_eq(&format!(
            "{} {}",
            serde_json::to_string(&web.volume_mounts).unwrap(),
            serde_json::to_string(&web.allocated_resources).unwrap()
        ));
}

#[test]
fn a_failed_post_start_hook() {
    let spec = layered();
    let mut seen = with_runs(
        &spec,
        vec![("i0", done()), ("s0", run(0, 0, None)), ("i1", done()), ("web", run(0, 0, Some((25, 143, "Error"))))],
    );
    progress(&mut seen, "s0-0", healthy());
    let post_start = HookState::Failed("exit code 1".into());
    progress(&mut seen, "web-0", Progress { post_start, ..Progress::default() });
    check(
        &spec,
        &seen,
        expect![[r#"
        Running ip=10.88.0.2 host=192.168.1.5 deleting=false
        i0 ready=true restarts=0 {"terminated":{"containerID":"coracle://i0-0","exitCode":0,"finishedAt":"2023-11-14T22:13:31Z","reason":"Completed","startedAt":"2023-11-14T22:13:30Z"}} last={}
        s0 ready=true restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
        i1 ready=true restarts=0 {"terminated":{"containerID":"coracle://i1-0","exitCode":0,"finishedAt":"2023-11-14T22:13:31Z","reason":"Completed","startedAt":"2023-11-14T22:13:30Z"}} last={}
        web ready=false restarts=0 {"waiting":{"message":"PostStartHook failed: exit code 1","reason":"PostStartHookError"}} last={"terminated":{"containerID":"coracle://web-0","exitCode":143,"finishedAt":"2023-11-14T22:13:45Z","reason":"Error","startedAt":"2023-11-14T22:13:30Z"}}
        PodReadyToStartContainers=True  
        Initialized=True  
        Ready=False ContainersNotReady containers with unready status: [web]
        ContainersReady=False ContainersNotReady containers with unready status: [web]
        PodScheduled=True  
        AllContainersRestarting=False  
    "#]],
    );
}

#[test]
fn restarting_all_containers() {
    let spec = layered();
    let mut seen = with_runs(
        &spec,
        vec![("i0", done()), ("s0", run(0, 0, None)), ("i1", done()), ("web", run(0, 0, Some((25, 42, "Error"))))],
    );
    progress(&mut seen, "s0-0", healthy());
    let record = &mut seen.present.as_mut().unwrap().record;
    (record.round, record.restart_all) = (1, 1);
    check(
        &spec,
        &seen,
        expect![[r#"
        Pending ip=10.88.0.2 host=192.168.1.5 deleting=false
        i0 ready=false restarts=0 {"waiting":{"reason":"RestartingAllContainers"}} last={"terminated":{"containerID":"coracle://i0-0","exitCode":0,"finishedAt":"2023-11-14T22:13:31Z","reason":"Completed","startedAt":"2023-11-14T22:13:30Z"}}
        s0 ready=true restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
        i1 ready=false restarts=0 {"waiting":{"reason":"RestartingAllContainers"}} last={"terminated":{"containerID":"coracle://i1-0","exitCode":0,"finishedAt":"2023-11-14T22:13:31Z","reason":"Completed","startedAt":"2023-11-14T22:13:30Z"}}
        web ready=false restarts=0 {"waiting":{"reason":"RestartingAllContainers"}} last={"terminated":{"containerID":"coracle://web-0","exitCode":42,"finishedAt":"2023-11-14T22:13:45Z","reason":"Error","startedAt":"2023-11-14T22:13:30Z"}}
        PodReadyToStartContainers=True  
        Initialized=False ContainersNotInitialized containers with incomplete status: [i0 i1]
        Ready=False ContainersNotReady containers with unready status: [web]
        ContainersReady=False ContainersNotReady containers with unready status: [web]
        PodScheduled=True  
        AllContainersRestarting=True  
    "#]],
    );
}

#[test]
fn too_long_on_the_node() {
    let spec = spec("Always");
    let mut seen = seen(&spec, vec![run(0, 0, None)]);
    seen.present.as_mut().unwrap().record.finished = Some(Finished {
        phase: "Failed".into(),
        reason: Some("DeadlineExceeded".into()),
        message: Some("too long".into()),
        at: at(20),
        grace_seconds: 30,
    });
    let phase = |seen: &Observed| {
        let status = report(Some(&spec), seen, &NodeFacts::default(), None, at(30)).unwrap().status.unwrap();
        (status.phase.unwrap(), status.reason.unwrap_or_default(), status.message.unwrap_or_default())
    };
    assert_eq!(phase(&seen), ("Running".into(), String::new(), String::new()), "as long as something may run");
    let runs = seen.present.as_mut().unwrap().containers.get_mut("web").unwrap();
    *runs = vec![run(0, 0, Some((25, 143, "Error")))];
    assert_eq!(phase(&seen), ("Failed".into(), "DeadlineExceeded".into(), "too long".into()));
}

#[test]
fn the_identity_of_a_container_is_told() {
    let spec = spec("Always");
    let pod = report(Some(&spec), &seen(&spec, vec![run(0, 0, None)]), &NodeFacts::default(), None, at(30)).unwrap();
    let user = pod.status.unwrap().container_statuses.unwrap()[0].user.clone().unwrap();
    let json = serde_json::to_string(&user).unwrap();
    assert_eq!(json, r#"{"linux":{"gid":101,"supplementalGroups":[101,2000],"uid":101}}"#);
    let absent = report(Some(&spec), &seen(&spec, vec![]), &NodeFacts::default(), None, at(30)).unwrap();
    assert_eq!(absent.status.unwrap().container_statuses.unwrap()[0].user, None, "nothing runs yet");
}

#[test]
fn a_resize_that_has_to_wait() {
    let old = layered();
    let mut bigger = old.pod().clone();
    let web = &mut bigger.spec.as_mut().unwrap().containers[0];
    web.resources = serde_json::from_value(serde_json::json!({"requests": {"cpu": "2"}})).unwrap();
    let new = Spec::new(bigger).unwrap();
    let mut seen = with_runs(&old, vec![("web", run(0, 0, None))]);
    seen.failure = Some(Failure {
        reason: "Deferred".into(),
        message: "Node didn't have enough cpu".into(),
        count: 1,
        retry_at: at(99),
    });
    let pod = report(Some(&new), &seen, &NodeFacts::default(), None, at(30)).unwrap();
    let cpu = |resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>| {
        resources.and_then(|r| r.requests.as_ref()).and_then(|r| r.get("cpu")).map(|q| q.0.clone())
    };
    assert_eq!(cpu(pod.spec.as_ref().unwrap().containers[0].resources.as_ref()).as_deref(), Some("2"));
    let status = pod.status.unwrap();
    assert_eq!(cpu(status.container_statuses.unwrap()[0].resources.as_ref()).as_deref(), Some("1"));
    assert_eq!((status.reason, status.message), (None, None));
    let pending = |conditions: &[k8s_openapi::api::core::v1::PodCondition]| {
        let found = conditions.iter().find(|c| c.type_.starts_with("PodResize")).unwrap();
        format!("{}={} {:?} {:?}", found.type_, found.status, found.reason, found.message)
    };
    expect![[r#"PodResizePending=True Some("Deferred") Some("Node didn't have enough cpu")"#]]
        .assert_eq(&pending(&status.conditions.unwrap()));
    seen.failure = None;
    // Refused before anybody tried: the pod is wanted as it is, and still the wish shows.
    seen.refused_resize =
        Some(RefusedResize { spec: new.clone(), reason: "Infeasible".into(), message: "too big".into() });
    let pod = report(Some(&old), &seen, &NodeFacts::default(), None, at(30)).unwrap();
    assert_eq!(cpu(pod.spec.as_ref().unwrap().containers[0].resources.as_ref()).as_deref(), Some("2"));
    expect![[r#"PodResizePending=True Some("Infeasible") Some("too big")"#]]
        .assert_eq(&pending(&pod.status.unwrap().conditions.unwrap()));
    seen.refused_resize = None;
    seen.present.as_mut().unwrap().record.resize_restarts.insert("web-0".into());
    let status = report(Some(&old), &seen, &NodeFacts::default(), None, at(30)).unwrap().status.unwrap();
    expect![[r#"PodResizeInProgress=True None None"#]].assert_eq(&pending(&status.conditions.unwrap()));
}

#[test]
fn evicted() {
    let spec = spec("Always");
    let mut seen = seen(&spec, vec![run(0, 0, None)]);
    seen.evict = Some(Eviction { reason: "Evicted", message: "The node was low on resource".into(), grace_seconds: 1 });
    seen.present.as_mut().unwrap().record.deletion = Some(Deletion { started: at(29), grace_seconds: 1 });
    check(
        &spec,
        &seen,
        expect![[r#"
        Running ip=10.88.0.2 host=192.168.1.5 deleting=true
        Evicted: The node was low on resource
        web ready=true restarts=0 {"running":{"startedAt":"2023-11-14T22:13:30Z"}} last={}
        PodReadyToStartContainers=True  
        Initialized=True  
        Ready=True  
        ContainersReady=True  
        PodScheduled=True  
        DisruptionTarget=True TerminationByKubelet The node was low on resource
    "#]],
    );
}

#[test]
fn a_refused_pod_says_why() {
    let facts = NodeFacts { host_ips: vec!["192.168.1.5".parse().unwrap()], max_backoff: restart::MAX_BACKOFF };
    let pod = refused(&spec("Always"), "NodePorts", "host port 80 is taken", &facts, at(5));
    expect![[r#"{"hostIP":"192.168.1.5","hostIPs":[{"ip":"192.168.1.5"}],"message":"Pod was rejected: host port 80 is taken","phase":"Failed","qosClass":"BestEffort","reason":"NodePorts","startTime":"2023-11-14T22:13:25Z"}"#]]
        .assert_eq(&serde_json::to_string(&pod.status).unwrap());
}

#[test]
fn readiness_gates_hold_a_pod_back_until_somebody_says_so() {
    let spec = layered();
    let mut seen = with_runs(&spec, vec![("s0", run(0, 0, None)), ("web", run(0, 0, None))]);
    progress(&mut seen, "s0-0", healthy());
    progress(&mut seen, "web-0", healthy());
    let mut pod = report(Some(&spec), &seen, &NodeFacts::default(), None, at(30)).unwrap();
    assert!(!is_ready(&pod));
    let gate = k8s_openapi::api::core::v1::PodCondition {
        type_: "example.com/lb".into(),
        status: "False".into(),
        ..Default::default()
    };
    pod.status.as_mut().unwrap().conditions.as_mut().unwrap().push(gate);
    let mut pod = report(Some(&spec), &seen, &NodeFacts::default(), Some(&pod), at(31)).unwrap();
    let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
    let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.reason.as_deref(), Some("ReadinessGatesNotReady"));
    expect![[r#"the status of pod readiness gate "example.com/lb" is not "True", but False"#]]
        .assert_eq(ready.message.as_deref().unwrap_or_default());
    conditions.iter_mut().find(|c| c.type_ == "example.com/lb").unwrap().status = "True".into();
    assert!(is_ready(&report(Some(&spec), &seen, &NodeFacts::default(), Some(&pod), at(32)).unwrap()));
}

#[test]
fn messages_share_twelve_kibibytes() {
    let spec = layered();
    let mut last = run(0, 0, Some((25, 1, "Error")));
    last.terminated.as_mut().unwrap().message = "ä".repeat(5000);
    let seen = with_runs(&spec, vec![("i0", last)]);
    let status = report(Some(&spec), &seen, &NodeFacts::default(), None, at(26)).unwrap().status.unwrap();
    let i0 = &status.init_container_statuses.unwrap()[0];
    let state = i0.state.iter().chain(&i0.last_state).find_map(|s| s.terminated.as_ref()).unwrap();
    assert_eq!(state.message.as_ref().map(String::len), Some(12 * 1024 / 4));
}
