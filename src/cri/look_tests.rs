use super::*;
use crate::pod::{Record, SandboxRecord, Spec, Termination};
use jiff::Timestamp;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn run(id: &str, attempt: u32, started: bool, exit_code: Option<i32>) -> Instance {
    let ended = |exit_code| Termination {
        finished: at(9),
        exit_code,
        signal: None,
        reason: "Error".into(),
        message: String::new(),
    };
    let mut run: Instance = serde_json::from_value(json!({
        "id": id, "container": "main", "attempt": attempt, "image": "docker.io/library/busybox:1",
        "imageId": "sha256:00", "created": at(1),
    }))
    .unwrap();
    run.started = started.then(|| at(2));
    run.terminated = exit_code.map(ended);
    run
}

fn pod(name: &str, sandbox: Sandbox, attempts: u32, runs: Vec<Instance>) -> Pod {
    let api = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "terminationMessagePath": "/dev/termination-log"}]},
    }));
    let api: k8s_openapi::api::core::v1::Pod = api.unwrap();
    let spec = Spec::new(api.clone()).unwrap();
    let mut record: Record = serde_json::from_value(json!({"pod": api, "startTime": at(0)})).unwrap();
    record.sandbox_attempts = attempts;
    record.sandbox =
        Some(SandboxRecord { created: at(0), boot_id: String::new(), ips: Vec::new(), cgroup: String::new() });
    let containers = BTreeMap::from([("main".to_owned(), runs)]);
    Pod::new(Present { spec, record, sandbox, containers, progress: BTreeMap::new() })
}

#[test]
fn a_sandbox_is_called_the_same_until_it_is_another_one() {
    let id = pod("a", Sandbox::Ready, 1, vec![]).id;
    assert_eq!(id.len(), 64);
    assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(pod("a", Sandbox::Absent, 1, vec![]).id, id);
    assert_ne!(pod("a", Sandbox::Ready, 2, vec![]).id, id);
    assert_ne!(pod("b", Sandbox::Ready, 1, vec![]).id, id);
}

#[test]
fn runs_are_listed_with_their_states_and_marks() {
    let runs = vec![run("aa01", 0, true, Some(3)), run("aa02", 1, true, None), run("bb03", 2, false, None)];
    let ready = pod("a", Sandbox::Ready, 1, runs.clone());
    let listed: Vec<Container> = ready.runs().map(|run| run.listed()).collect();
    let states: Vec<ContainerState> = listed.iter().map(Container::state).collect();
    assert_eq!(
        states,
        [ContainerState::ContainerExited, ContainerState::ContainerRunning, ContainerState::ContainerCreated]
    );
    let first = &listed[0];
    assert_eq!((&*first.pod_sandbox_id, first.created_at), (&*ready.id, 1_800_000_001_000_000_000));
    assert_eq!(first.labels["io.kubernetes.pod.name"], "a");
    assert_eq!(first.labels["io.kubernetes.pod.uid"], "uid-a");
    assert_eq!(first.labels["io.kubernetes.container.name"], "main");
    assert_eq!(first.annotations["io.kubernetes.container.terminationMessagePath"], "/dev/termination-log");
    assert_eq!(listed[1].annotations["io.kubernetes.container.restartCount"], "1");
    assert_eq!(ready.listed().labels["app"], "a");

    let broken = pod("a", Sandbox::Broken("gone".into()), 1, runs);
    assert_eq!(broken.listed().state(), PodSandboxState::SandboxNotready);
    let states: Vec<ContainerState> = broken.runs().map(|run| run.state()).collect();
    assert_eq!(states[1..], [ContainerState::ContainerUnknown; 2]);
}

#[test]
fn filters_are_applied_together_and_empty_ones_want_all() {
    let pods = [
        pod("a", Sandbox::Ready, 1, vec![run("aa01", 0, true, Some(3)), run("aa02", 1, true, None)]),
        pod("b", Sandbox::Ready, 1, vec![run("bb01", 0, true, None)]),
    ];
    let ask = |filter: Option<ContainerFilter>| -> Vec<String> {
        let all = pods.iter().flat_map(Pod::runs).map(|run| run.listed());
        all.filter(|container| wants_container(filter.as_ref(), container)).map(|container| container.id).collect()
    };
    let running = Some(v1::ContainerStateValue { state: ContainerState::ContainerRunning.into() });
    assert_eq!(ask(None), ["aa01", "aa02", "bb01"]);
    assert_eq!(ask(Some(ContainerFilter::default())).len(), 3);
    assert_eq!(ask(Some(ContainerFilter { id: "aa".into(), ..Default::default() })), ["aa01", "aa02"]);
    assert_eq!(ask(Some(ContainerFilter { state: running, ..Default::default() })), ["aa02", "bb01"]);
    assert_eq!(ask(Some(ContainerFilter { id: "aa".into(), state: running, ..Default::default() })), ["aa02"]);
    let of_b = ContainerFilter { pod_sandbox_id: pods[1].id[..13].to_owned(), ..Default::default() };
    assert_eq!(ask(Some(of_b)), ["bb01"]);
    let label = |value: &str| Labels::from([("io.kubernetes.pod.name".to_owned(), value.to_owned())]);
    assert_eq!(ask(Some(ContainerFilter { label_selector: label("b"), ..Default::default() })), ["bb01"]);
    assert!(ask(Some(ContainerFilter { label_selector: label("c"), ..Default::default() })).is_empty());

    let ask = |filter: PodSandboxFilter| -> Vec<String> {
        let all = pods.iter().map(Pod::listed).filter(|pod| wants_sandbox(Some(&filter), pod));
        all.filter_map(|pod| Some(pod.metadata?.name)).collect()
    };
    let app = Labels::from([("app".to_owned(), "a".to_owned())]);
    assert_eq!(ask(PodSandboxFilter { label_selector: app, ..Default::default() }), ["a"]);
    let not_ready = Some(v1::PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() });
    assert!(ask(PodSandboxFilter { state: not_ready, ..Default::default() }).is_empty());
}

#[test]
fn an_id_may_be_shortened_as_long_as_it_means_one() {
    let pods = [
        pod("a", Sandbox::Ready, 1, vec![run("aa01", 0, true, Some(3)), run("aa012", 1, true, None)]),
        pod("b", Sandbox::Ready, 1, vec![run("bb01", 0, true, None)]),
    ];
    let find = |id: &str| container(&pods, id).map(|run| run.run.id.clone()).map_err(|status| status.code);
    assert_eq!(find("b"), Ok("bb01".into()));
    assert_eq!(find("aa01"), Ok("aa01".into()), "the whole ID counts more than a beginning");
    assert_eq!(find("aa"), Err(crate::cri::grpc::Code::InvalidArgument));
    assert_eq!(find(""), Err(crate::cri::grpc::Code::InvalidArgument));
    assert_eq!(find("cc"), Err(crate::cri::grpc::Code::NotFound));
    assert_eq!(sandbox(&pods, &pods[1].id[..13]).ok().map(|pod| pod.key().name), Some("b".into()));
}
