//! Nobody answers: bound pods are managed all the same, across restarts and reboots, and nothing of it shows afterwards.

use super::{Plane, on};
use crate::harness::{Node, PATIENCE, PodView, eventually, pod, resting, secs, signal};
use crate::power::cut_the_power;
use rustix::process::Signal;
use serde_json::{Value, json};

const SERVER: &str = "kube-apiserver";

/// The pod of that very name: a bound one bears no node's.
fn bound<'a>(pods: &'a [PodView], name: &str) -> Option<&'a PodView> {
    pods.iter().find(|p| p.name() == name)
}

/// The pods on the machine, as `name uid container-ID restarts`.
fn runs(node: &Node) -> Vec<String> {
    let mut all: Vec<String> = node
        .pods()
        .iter()
        .map(|p| format!("{} {} {} {}", p.name(), p.uid(), p.id("main"), p.restarts("main")))
        .collect();
    all.sort();
    all
}

/// Once the agent has looked at all: nothing was started or stopped.
#[track_caller]
fn run_on(node: &Node, before: &[String]) {
    eventually("the same runs as before", secs(10), || runs(node) == before);
}

/// Waits until the API server has what the node reports, and nothing else of it.
#[track_caller]
fn reconciled(plane: &Plane, node: &Node, namespace: &str, count: usize) {
    eventually("the API server knows how things are", 4 * PATIENCE, || {
        let mut told: Vec<String> = plane
            .list("Pod", namespace, "")
            .into_iter()
            .map(PodView)
            .filter(|p| p.up() && p.condition("Ready") == "True")
            .map(|p| format!("{} {} {} {}", p.name(), p.uid(), p.id("main"), p.restarts("main")))
            .collect();
        told.sort();
        let pods = node.pods();
        let here: Vec<&PodView> = pods.iter().filter(|p| p.0["metadata"]["namespace"] == namespace).collect();
        let mut here: Vec<String> =
            here.iter().map(|p| format!("{} {} {} {}", p.name(), p.uid(), p.id("main"), p.restarts("main"))).collect();
        here.sort();
        told == here && told.len() == count
    });
}

#[test]
fn bound_pods_are_managed_without_an_api_server_and_across_reboots() {
    let plane = Plane::own();
    let mut node = plane.up();
    let namespace = plane.namespace("offline");
    node.run(&resting("fixed"));
    let mut spec = resting("x")["spec"].clone();
    spec["automountServiceAccountToken"] = json!(false);
    spec["nodeSelector"] = on(&node);
    plane.apply(&json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "daemon", "namespace": *namespace },
        "spec": {
            "selector": { "matchLabels": { "app": "daemon" } },
            "template": { "metadata": { "labels": { "app": "daemon" } }, "spec": spec },
        },
    }));
    let script = "trap 'exit 0' TERM; echo $COLOUR > /dev/null; while :; do sleep 3600 & wait $!; done";
    for name in ["lone", "forced"] {
        plane.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": *namespace },
            "data": { "colour": "blue" },
        }));
        let mut lone = pod(name, script);
        lone["metadata"]["namespace"] = json!(*namespace);
        lone["spec"]["nodeName"] = json!(node.name);
        lone["spec"]["automountServiceAccountToken"] = json!(false);
        lone["spec"]["containers"][0]["env"] = json!([{ "name": "COLOUR", "valueFrom":
            { "configMapKeyRef": { "name": name, "key": "colour" } } }]);
        plane.apply(&lone);
        plane.wait_pod_ready(&namespace, name);
    }
    reconciled(&plane, &node, &namespace, 3);
    let before = runs(&node);
    assert_eq!(before.len(), 4, "{before:?}");

    // The agent starts again and finds nobody: the same runs, and what ends is started again.
    plane.kill(SERVER);
    node.kill9();
    node.start();
    run_on(&node, &before);
    let was = bound(&node.pods(), "lone").expect("lone").id("main");
    signal(node.init_pid(&was), Signal::KILL);
    node.wait("lone is started again", PATIENCE, |pods| {
        bound(pods, "lone").is_some_and(|p| p.up() && p.restarts("main") == 1)
    });
    let before = runs(&node);
    plane.start(SERVER);
    plane.wait_ready();
    reconciled(&plane, &node, &namespace, 3);
    assert_eq!(runs(&node), before, "nothing was touched");

    // A reboot, still without an API server.
    plane.kill(SERVER);
    cut_the_power(&mut node);
    node.start();
    let name = |run: &String| run.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
    let same = |runs: &[String]| runs.iter().map(name).collect::<Vec<_>>();
    let anew = |p: &PodView| p.up() && !before.iter().any(|run| run.contains(&p.id("main")));
    node.wait("all run again", 2 * PATIENCE, |pods| pods.len() == 4 && pods.iter().all(anew));
    let rebooted = runs(&node);
    assert_eq!(same(&rebooted), same(&before), "the same pods");
    plane.start(SERVER);
    plane.wait_ready();
    reconciled(&plane, &node, &namespace, 3);
    assert_eq!(runs(&node), rebooted, "nothing was touched");

    // Packets are lost without a word, and pods are deleted meanwhile, one of them by force: nothing is asked any more of what
    // it was made from, which would be refused. What the agent before had said would still arrive, long after its end, so
    // that one ends first.
    node.kill9();
    plane.lose(&node, 100);
    plane.kubectl(&["delete", "pod", "lone", "-n", &namespace, "--wait=false"]).ok();
    plane.kubectl(&["delete", "pod", "forced", "-n", &namespace, "--force", "--grace-period=0"]).ok();
    node.start();
    run_on(&node, &rebooted);
    plane.lose(&node, 0);
    plane.wait("Pod", &namespace, "lone", "gone", Value::is_null);
    node.wait("both are gone", PATIENCE, |pods| ["lone", "forced"].iter().all(|name| bound(pods, name).is_none()));
    let deleted = |run: &&String| run.starts_with("lone ") || run.starts_with("forced ");
    let left: Vec<String> = rebooted.iter().filter(|run| !deleted(run)).cloned().collect();
    run_on(&node, &left);
    let pods = plane.list("Pod", &namespace, "");
    assert_eq!(pods.len(), 1, "no duplicate");

    // Every fifth packet is lost: all takes longer, and nothing else follows.
    plane.lose(&node, 20);
    node.kill9();
    node.start();
    run_on(&node, &left);
    let daemon = pods[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let was = bound(&node.pods(), &daemon).expect("the daemon").id("main");
    signal(node.init_pid(&was), Signal::KILL);
    let restarts = |run: &str| run.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok());
    eventually("it is started again", PATIENCE, || {
        let now = runs(&node);
        now.len() == 2 && now.iter().zip(&left).any(|(now, was)| restarts(now) > restarts(was))
    });
    reconciled(&plane, &node, &namespace, 1);
    plane.lose(&node, 0);
    reconciled(&plane, &node, &namespace, 1);
    let uid = |pod: &Value| pod["metadata"]["uid"].clone();
    assert_eq!(plane.list("Pod", &namespace, "").iter().map(uid).collect::<Vec<_>>(), [uid(&pods[0])]);

    assert_eq!(plane.refused(&node.name), Vec::<String>::new());
    namespace.end();
    plane.finish(node);
}
