use super::columns::*;
use super::table::Table;
use crate::server::types::ImageItem;
use expect_test::expect;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn container(name: &str, ready: bool, restarts: i32, state: Value, last: Value) -> Value {
    json!({"name": name, "image": "x", "imageID": "x", "ready": ready, "restartCount": restarts, "state": state,
        "lastState": last})
}

fn running() -> Value {
    json!({"running": {"startedAt": "2026-11-21T11:00:00Z"}})
}

fn ended(code: i32, reason: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "finishedAt": "2026-11-21T11:57:55Z"}})
}

fn waiting(reason: &str) -> Value {
    json!({"waiting": {"reason": reason}})
}

fn pod(name: &str, phase: &str, init: Vec<Value>, containers: Vec<Value>) -> Pod {
    let names = |list: &[Value]| list.iter().map(|c| json!({"name": c["name"]})).collect::<Vec<_>>();
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "creationTimestamp": "2026-11-19T08:00:00Z"},
        "spec": {"nodeName": "n1", "initContainers": names(&init), "containers": names(&containers)},
        "status": {"phase": phase, "podIP": "10.88.0.2", "podIPs": [{"ip": "10.88.0.2"}],
            "initContainerStatuses": init, "containerStatuses": containers,
            "conditions": [{"type": "Ready", "status": "True"}]}
    }))
    .unwrap()
}

fn table(pods: &[Pod], wide: bool) -> String {
    let mut rows = vec![pod_header(wide)];
    rows.extend(pods.iter().map(|pod| pod_row(pod, wide, now())));
    Table::default().rows(&rows)
}

#[test]
fn pods_read_as_in_kubectl() {
    let none = json!({});
    let mut sidecar = pod(
        "sidecar",
        "Running",
        vec![container("s", true, 1, running(), ended(1, "Error"))],
        vec![container("c", true, 0, running(), none.clone())],
    );
    let spec = sidecar.spec.as_mut().unwrap();
    spec.init_containers.as_mut().unwrap()[0].restart_policy = Some("Always".into());
    sidecar.status.as_mut().unwrap().init_container_statuses.as_mut().unwrap()[0].started = Some(true);
    let mut leaving = pod("leaving", "Running", vec![], vec![container("c", true, 0, running(), none.clone())]);
    leaving.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time("2026-11-21T11:59:00Z".parse().unwrap()));
    let mut refused = pod("refused", "Failed", vec![], vec![]);
    refused.status.as_mut().unwrap().reason = Some("OutOfcpu".into());
    let pods = [
        pod("web", "Running", vec![], vec![container("c", true, 0, running(), none.clone())]),
        pod("crash", "Running", vec![], vec![container("c", false, 3, waiting("CrashLoopBackOff"), ended(1, "Error"))]),
        pod("done", "Succeeded", vec![], vec![container("c", false, 0, ended(0, "Completed"), none.clone())]),
        pod(
            "half",
            "Running",
            vec![],
            vec![
                container("a", false, 0, ended(0, "Completed"), none.clone()),
                container("b", true, 0, running(), none.clone()),
            ],
        ),
        pod("failed", "Failed", vec![], vec![container("c", false, 0, ended(137, "OOMKilled"), none.clone())]),
        pod("code", "Failed", vec![], vec![container("c", false, 0, ended(7, ""), none.clone())]),
        pod(
            "init",
            "Pending",
            vec![
                container("i", false, 0, ended(0, "Completed"), none.clone()),
                container("j", false, 0, running(), none.clone()),
            ],
            vec![container("c", false, 0, waiting("PodInitializing"), none.clone())],
        ),
        pod(
            "init-bad",
            "Pending",
            vec![container("i", false, 2, waiting("CrashLoopBackOff"), ended(1, "Error"))],
            vec![container("c", false, 0, waiting("PodInitializing"), none.clone())],
        ),
        pod("new", "Pending", vec![], vec![container("c", false, 0, waiting("ContainerCreating"), none.clone())]),
        sidecar,
        leaving,
        refused,
        serde_json::from_value(json!({"metadata": {"name": "bare"}})).unwrap(),
    ];
    expect![[r#"
        NAME       READY   STATUS                  RESTARTS       AGE
        web        1/1     Running                 0              2d4h
        crash      0/1     CrashLoopBackOff        3 (2m5s ago)   2d4h
        done       0/1     Completed               0              2d4h
        half       1/2     Running                 0              2d4h
        failed     0/1     OOMKilled               0              2d4h
        code       0/1     ExitCode:7              0              2d4h
        init       0/1     Init:1/2                0              2d4h
        init-bad   0/1     Init:CrashLoopBackOff   2 (2m5s ago)   2d4h
        new        0/1     ContainerCreating       0              2d4h
        sidecar    2/2     Running                 1 (2m5s ago)   2d4h
        leaving    1/1     Terminating             0              2d4h
        refused    0/0     OutOfcpu                0              2d4h
        bare       0/0     Unknown                 0              <unknown>
    "#]]
    .assert_eq(&table(&pods, false));
    expect![[r#"
        NAME    READY   STATUS             RESTARTS       AGE    IP          NODE   NOMINATED NODE   READINESS GATES
        web     1/1     Running            0              2d4h   10.88.0.2   n1     <none>           <none>
        crash   0/1     CrashLoopBackOff   3 (2m5s ago)   2d4h   10.88.0.2   n1     <none>           <none>
    "#]]
    .assert_eq(&table(&pods[..2], true));
}

/// What a pod's row says besides its name and age.
fn row(pod: &Pod) -> String {
    pod_row(pod, false, now())[1..4].join(" ")
}

fn with_sidecars(mut pod: Pod, names: &[&str]) -> Pod {
    for container in pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap() {
        if names.contains(&container.name.as_str()) {
            container.restart_policy = Some("Always".into());
        }
    }
    for status in pod.status.as_mut().unwrap().init_container_statuses.as_mut().unwrap() {
        status.started = Some(status.state.as_ref().is_some_and(|s| s.running.is_some()));
    }
    pod
}

#[test]
fn the_first_init_container_that_is_not_done_speaks_for_the_pod() {
    let none = || json!({});
    let web = || vec![container("c", false, 0, waiting("PodInitializing"), none())];
    let of = |state: Value| pod("p", "Pending", vec![container("i", false, 0, state, none())], web());
    let signal = json!({"terminated": {"exitCode": 137, "signal": 9, "finishedAt": "2026-11-21T11:57:55Z"}});
    for (state, word) in [
        (waiting("PodInitializing"), "Init:0/1"),
        (running(), "Init:0/1"),
        (waiting("ErrImagePull"), "Init:ErrImagePull"),
        (waiting("CrashLoopBackOff"), "Init:CrashLoopBackOff"),
        (ended(1, "Error"), "Init:Error"),
        (ended(3, ""), "Init:ExitCode:3"),
        (signal, "Init:Signal:9"),
        (ended(0, "Completed"), "PodInitializing"),
    ] {
        assert_eq!(row(&of(state)), format!("0/1 {word} 0"));
    }
    // A sidecar counts among the containers, and its restarts do once all are initialized.
    let init = || {
        vec![
            container("i", false, 4, ended(0, "Completed"), none()),
            container("s", true, 2, running(), ended(1, "Error")),
            container("j", false, 1, running(), ended(1, "Error")),
        ]
    };
    assert_eq!(row(&with_sidecars(pod("p", "Pending", init(), web()), &["s"])), "1/2 Init:2/3 7 (2m5s ago)");
    let mut initialized = init();
    initialized[2] = container("j", true, 1, ended(0, "Completed"), none());
    let up = pod("p", "Running", initialized, vec![container("c", true, 1, running(), none())]);
    assert_eq!(row(&with_sidecars(up, &["s"])), "2/2 Running 3 (2m5s ago)");
}

#[test]
fn a_pods_own_reason_comes_before_its_phase() {
    let none = || json!({});
    for reason in ["Evicted", "NodePorts", "DeadlineExceeded"] {
        let mut refused = pod("p", "Failed", vec![], vec![]);
        refused.status.as_mut().unwrap().reason = Some(reason.into());
        assert_eq!(row(&refused), format!("0/0 {reason} 0"));
    }
    let mut half = pod(
        "p",
        "Running",
        vec![],
        vec![container("a", false, 0, ended(0, "Completed"), none()), container("b", true, 0, running(), none())],
    );
    half.status.as_mut().unwrap().conditions = None;
    assert_eq!(row(&half), "1/2 NotReady 0");
}

#[test]
fn nodes_read_as_in_kubectl() {
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": "n1", "creationTimestamp": "2026-11-21T08:30:00Z",
            "labels": {"node-role.kubernetes.io/edge": "", "a": "b"}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0-coracle.0.1.0", "architecture": "amd64", "bootID": "", "containerRuntimeVersion":
                "coracle://0.1.0", "kernelVersion": "6.18", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "linux",
                "osImage": "Debian", "systemUUID": ""}}
    }))
    .unwrap();
    let text = Table::default().rows(&[node_header(true), node_row(&node, true, now())]);
    expect![[r#"
        NAME   STATUS                     ROLES   AGE     VERSION                 INTERNAL-IP   EXTERNAL-IP   OS-IMAGE   KERNEL-VERSION   CONTAINER-RUNTIME
        n1     Ready,SchedulingDisabled   edge    3h30m   v1.36.0-coracle.0.1.0   10.0.0.1      <none>        Debian     6.18             coracle://0.1.0
    "#]].assert_eq(&text);
}

#[test]
fn events_read_as_in_kubectl() {
    let event: Event = serde_json::from_value(json!({
        "metadata": {"name": "web.1", "namespace": "default"}, "type": "Warning", "reason": "BackOff", "count": 4,
        "message": "Back-off\nrestarting", "firstTimestamp": "2026-11-21T11:00:00Z",
        "lastTimestamp": "2026-11-21T11:59:30Z", "source": {"component": "kubelet", "host": "n1"},
        "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{c}"}
    }))
    .unwrap();
    for (wide, golden) in [
        (
            false,
            expect![[r#"
        LAST SEEN   TYPE      REASON    OBJECT    MESSAGE
        30s         Warning   BackOff   pod/web   Back-off...
    "#]],
        ),
        (
            true,
            expect![[r#"
        LAST SEEN   TYPE      REASON    OBJECT    SUBOBJECT            SOURCE        MESSAGE       FIRST SEEN   COUNT   NAME
        30s         Warning   BackOff   pod/web   spec.containers{c}   kubelet, n1   Back-off...   60m          4       web.1
    "#]],
        ),
    ] {
        golden.assert_eq(&Table::default().rows(&[event_header(wide), event_row(&event, wide, now())]));
    }
}

#[test]
fn images_are_one_row_a_name() {
    let image = ImageItem {
        id: format!("sha256:{}", "0123456789abcdef".repeat(4)),
        names: vec!["docker.io/library/nginx:latest".into(), "host:5000/a/b".into(), "x@sha256:12".into()],
        size: 187_654_321,
        created: Some("2026-11-20T00:00:00Z".into()),
        added: 0,
        pinned: true,
        unique: 1_234_567,
        damaged: false,
        in_use: true,
        verified: Vec::new(),
        used_by: vec!["default/a".into(), "default/b".into()],
    };
    let nameless = ImageItem { names: vec![], in_use: false, pinned: false, used_by: vec![], ..image.clone() };
    let mut rows = vec![image_header(false)];
    rows.extend(image_rows(&image, false, now()));
    rows.extend(image_rows(&nameless, false, now()));
    expect![[r#"
        NAME                             IMAGE ID        SIZE    ADDED       PINNED   USED BY
        docker.io/library/nginx:latest   0123456789abc   188MB   <unknown>   yes      default/a + 1 more...
        host:5000/a/b                    0123456789abc   188MB   <unknown>   yes      default/a + 1 more...
        x@sha256:12                      0123456789abc   188MB   <unknown>   yes      default/a + 1 more...
        <none>                           0123456789abc   188MB   <unknown>   no       <none>
    "#]]
    .assert_eq(&Table::default().rows(&rows));
}
