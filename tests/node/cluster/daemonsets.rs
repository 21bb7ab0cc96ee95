//! DaemonSets and Deployments: what lands on a node, what leaves it, and how.

use super::{Namespace, Plane, condition, on};
use crate::harness::{BUSYBOX, Node, PATIENCE, PodView, REST, eventually, pod, resting, secs};
use serde_json::{Value, json};
use std::fs;
use std::time::Instant;

fn daemon_set(namespace: &Namespace<'_>, name: &str, script: &str, node: &Node) -> Value {
    let mut spec = pod(name, script)["spec"].clone();
    spec["automountServiceAccountToken"] = json!(false);
    spec["nodeSelector"] = on(node);
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": name, "namespace": **namespace },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": spec },
        },
    })
}

/// The pods of an application that are not about to end.
fn pods(plane: &Plane, namespace: &str, app: &str) -> Vec<Value> {
    let all = plane.list("Pod", namespace, &format!("labelSelector=app%3D{app}"));
    all.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
}

#[track_caller]
fn wait_ready(plane: &Plane, node: &Node, namespace: &str, app: &str) -> Value {
    let mut found = Value::Null;
    let end = Instant::now() + 2 * PATIENCE;
    while found.is_null() {
        let all = pods(plane, namespace, app);
        found = all.iter().find(|pod| condition(pod, "Ready") == "True").cloned().unwrap_or_default();
        if found.is_null() && Instant::now() > end {
            node.fail(&format!("{app} is not Ready: {all:#?}"));
        }
    }
    assert_eq!(found["spec"]["nodeName"], json!(node.name));
    found
}

#[test]
fn a_daemon_set_is_here_exactly_when_its_rules_say_so() {
    let plane = Plane::shared();
    let node = plane.up();
    let namespace = plane.namespace("rules");
    let is_on_machine = |app: &str| node.pods().iter().any(|p| p.name().starts_with(app));
    let gone = |app: &str| {
        eventually(&format!("{app} has gone"), 2 * PATIENCE, || {
            pods(plane, &namespace, app).is_empty() && !is_on_machine(app)
        });
    };

    // A selector: with the label, without, with.
    let mut selected = daemon_set(&namespace, "selected", REST, &node);
    selected["spec"]["template"]["spec"]["nodeSelector"]["example.com/site"] = json!("north");
    plane.apply(&selected);
    // An affinity that names what the node has not.
    let mut affine = daemon_set(&namespace, "affine", REST, &node);
    let elsewhere = json!({ "key": "example.com/site", "operator": "NotIn", "values": ["north"] });
    affine["spec"]["template"]["spec"]["affinity"] = json!({ "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{ "matchExpressions": [elsewhere] }] } } });
    plane.apply(&affine);
    wait_ready(plane, &node, &namespace, "affine");
    assert!(pods(plane, &namespace, "selected").is_empty());
    plane.patch("Node", "", &node.name, &json!({ "metadata": { "labels": { "example.com/site": "north" } } }));
    wait_ready(plane, &node, &namespace, "selected");
    gone("affine");
    plane.patch("Node", "", &node.name, &json!({ "metadata": { "labels": { "example.com/site": null } } }));
    wait_ready(plane, &node, &namespace, "affine");
    gone("selected");

    // Taints: NoSchedule leaves what runs, NoExecute does not; who tolerates it stays.
    let mut tolerant = daemon_set(&namespace, "tolerant", REST, &node);
    tolerant["spec"]["template"]["spec"]["tolerations"] = json!([{ "key": "example.com/x", "operator": "Exists" }]);
    plane.apply(&tolerant);
    let stays = wait_ready(plane, &node, &namespace, "tolerant");
    let taint = |effect: &str| {
        plane.kubectl(&["taint", "node", &node.name, &format!("example.com/x=y:{effect}")]).ok();
    };
    let first = wait_ready(plane, &node, &namespace, "affine");
    taint("NoSchedule");
    plane.apply(&daemon_set(&namespace, "late", REST, &node));
    plane.wait("DaemonSet", &namespace, "late", "looked at", |set| set["status"]["observedGeneration"] == 1);
    assert!(pods(plane, &namespace, "late").is_empty());
    assert_eq!(wait_ready(plane, &node, &namespace, "affine")["metadata"]["uid"], first["metadata"]["uid"]);
    taint("NoExecute");
    gone("affine");
    assert_eq!(wait_ready(plane, &node, &namespace, "tolerant")["metadata"]["uid"], stays["metadata"]["uid"]);
    plane.kubectl(&["taint", "node", &node.name, "example.com/x-"]).ok();
    wait_ready(plane, &node, &namespace, "affine");
    wait_ready(plane, &node, &namespace, "late");

    // A node that is cordoned takes DaemonSets, and nothing else.
    plane.cordon(&node);
    plane.apply(&daemon_set(&namespace, "cordoned", REST, &node));
    wait_ready(plane, &node, &namespace, "cordoned");
    let mut deployment = daemon_set(&namespace, "deployed", REST, &node);
    deployment["kind"] = json!("Deployment");
    plane.apply(&deployment);
    eventually("it waits for a node", 2 * PATIENCE, || {
        let all = pods(plane, &namespace, "deployed");
        all.iter().any(|pod| condition(pod, "PodScheduled") == "False")
    });
    assert!(!is_on_machine("deployed"));
    plane.uncordon(&node);
    wait_ready(plane, &node, &namespace, "deployed");

    assert_eq!(plane.refused(&node.name), Vec::<String>::new());
    namespace.end();
    plane.finish(node);
}

#[test]
fn what_daemons_are_made_from_follows_and_nothing_of_it_restarts_them() {
    let plane = Plane::shared();
    let node = plane.up();
    let namespace = plane.namespace("live");
    let object = |kind: &str, field: &str, value: &str| {
        json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": "live", "namespace": *namespace },
            field: { "value": value } })
    };
    plane.apply(&object("ConfigMap", "data", "one"));
    plane.apply(&object("Secret", "stringData", "two"));
    let mut set = daemon_set(&namespace, "live", REST, &node);
    let spec = &mut set["spec"]["template"]["spec"];
    spec["volumes"] = json!([{ "name": "all", "projected": { "sources": [
        { "configMap": { "name": "live", "items": [{ "key": "value", "path": "map" }] } },
        { "secret": { "name": "live", "items": [{ "key": "value", "path": "secret" }] } },
        { "downwardAPI": { "items": [{ "path": "label", "fieldRef": { "fieldPath": "metadata.labels['value']" } }] } },
        { "serviceAccountToken": { "path": "token", "audience": "elsewhere" } },
    ] } }]);
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "all", "mountPath": "/all" }]);
    set["spec"]["template"]["metadata"]["labels"]["value"] = json!("three");
    plane.apply(&set);
    let before = PodView(wait_ready(plane, &node, &namespace, "live"));
    let cat = |files: &str| node.cli(&["exec", "-n", &namespace, before.name(), "--", "sh", "-c", files]).ok();
    let all = "cd /all; for f in map secret label; do cat $f; echo; done";
    assert_eq!(cat(all), "one\ntwo\nthree\n");
    let token = cat("cat /all/token");
    assert_eq!(token.split('.').count(), 3, "a token: {token}");

    plane.apply(&object("ConfigMap", "data", "1"));
    plane.apply(&object("Secret", "stringData", "2"));
    plane.patch("Pod", &namespace, before.name(), &json!({ "metadata": { "labels": { "value": "3" } } }));
    eventually("the files follow", 2 * PATIENCE, || cat(all) == "1\n2\n3\n");
    let after = PodView(wait_ready(plane, &node, &namespace, "live"));
    let run = |pod: &PodView| (pod.uid().to_owned(), pod.id("main"), pod.restarts("main"));
    assert_eq!(run(&after), run(&before));

    assert_eq!(plane.refused(&node.name), Vec::<String>::new());
    namespace.end();
    plane.finish(node);
}

#[test]
fn a_rolling_update_completes_and_an_end_is_graceful() {
    let plane = Plane::shared();
    let node = plane.up();
    let namespace = plane.namespace("rolling");
    let share = node.dir.join("share");
    fs::create_dir_all(&share).expect("share");
    for (name, strategy) in
        [("unavailable", json!({ "maxUnavailable": 1 })), ("surge", json!({ "maxUnavailable": 0, "maxSurge": 1 }))]
    {
        let mut set = daemon_set(&namespace, name, REST, &node);
        set["spec"]["updateStrategy"] = json!({ "type": "RollingUpdate", "rollingUpdate": strategy });
        set["spec"]["minReadySeconds"] = json!(1);
        let container = &mut set["spec"]["template"]["spec"]["containers"][0];
        container["readinessProbe"] = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1 });
        plane.apply(&set);
        let old = wait_ready(plane, &node, &namespace, name);
        // Of a pod that surges while the old one is not available yet, the controller may never look again.
        plane.wait("DaemonSet", &namespace, name, "available", |set| set["status"]["numberAvailable"] == 1);
        set["spec"]["template"]["metadata"]["annotations"] = json!({ "example.com/version": "2" });
        plane.apply(&set);
        plane.wait("DaemonSet", &namespace, name, "rolled out", |set| {
            let status = &set["status"];
            status["observedGeneration"] == set["metadata"]["generation"]
                && status["updatedNumberScheduled"] == 1
                && status["numberAvailable"] == 1
        });
        eventually("only the new pod", 2 * PATIENCE, || {
            let all = plane.list("Pod", &namespace, &format!("labelSelector=app%3D{name}"));
            all.len() == 1 && all[0]["metadata"]["uid"] != old["metadata"]["uid"]
        });
    }

    // A preStop hook within the grace, then SIGTERM; the object stays until nothing is left.
    let script = "trap 'echo term >> /share/log; exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    let mut graceful = pod("graceful", script);
    graceful["metadata"]["namespace"] = json!(*namespace);
    let spec = &mut graceful["spec"];
    spec["nodeName"] = json!(node.name);
    spec["automountServiceAccountToken"] = json!(false);
    spec["terminationGracePeriodSeconds"] = json!(60);
    spec["volumes"] = json!([{ "name": "share", "hostPath": { "path": share } }]);
    spec["containers"][0]["image"] = json!(BUSYBOX);
    spec["containers"][0]["volumeMounts"] = json!([{ "name": "share", "mountPath": "/share" }]);
    let hook = "echo hook >> /share/log; while ! [ -e /share/go ]; do sleep 0.1; done";
    spec["containers"][0]["lifecycle"] = json!({ "preStop": { "exec": { "command": ["sh", "-c", hook] } } });
    plane.apply(&graceful);
    plane.wait_pod_ready(&namespace, "graceful");
    plane.delete("Pod", &namespace, "graceful");
    let log = || fs::read_to_string(share.join("log")).unwrap_or_default();
    eventually("the hook runs", PATIENCE, || log() == "hook\n");
    let going = plane.get("Pod", &namespace, "graceful");
    assert!(going["metadata"]["deletionTimestamp"].is_string(), "{going:#}");
    assert!(going["status"]["containerStatuses"][0]["state"]["running"].is_object(), "{going:#}");
    fs::write(share.join("go"), "").expect("go");
    plane.wait("Pod", &namespace, "graceful", "gone", Value::is_null);
    assert_eq!(log(), "hook\nterm\n");
    assert!(!node.pods().iter().any(|p| p.name() == "graceful"));

    // A grace that shrinks on the way counts.
    let mut stubborn = pod("stubborn", "trap '' TERM; while :; do sleep 3600 & wait $!; done");
    stubborn["metadata"]["namespace"] = json!(*namespace);
    stubborn["spec"]["nodeName"] = json!(node.name);
    stubborn["spec"]["automountServiceAccountToken"] = json!(false);
    stubborn["spec"]["terminationGracePeriodSeconds"] = json!(3600);
    plane.apply(&stubborn);
    plane.wait_pod_ready(&namespace, "stubborn");
    plane.delete("Pod", &namespace, "stubborn");
    plane.kubectl(&["delete", "pod", "stubborn", "-n", &namespace, "--grace-period=2", "--wait=false"]).ok();
    plane.wait("Pod", &namespace, "stubborn", "gone", Value::is_null);

    assert_eq!(plane.refused(&node.name), Vec::<String>::new());
    namespace.end();
    plane.finish(node);
}

#[test]
fn a_static_pod_keeps_its_name_and_what_is_refused_has_failed_for_good() {
    let plane = Plane::shared();
    let mut node = plane.up();
    let namespace = plane.namespace("names");
    let bound = |name: &str, node: &Node| {
        let mut pod = resting(name);
        pod["metadata"]["namespace"] = json!(*namespace);
        pod["spec"]["nodeName"] = json!(node.name);
        pod["spec"]["automountServiceAccountToken"] = json!(false);
        pod
    };
    let failed = |name: &str, reason: &str| {
        plane.wait("Pod", &namespace, name, reason, |pod| {
            pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == reason
        })
    };

    // The bound pod was first: it leaves, the static one stays.
    let name = format!("taken-{}", node.name);
    plane.apply(&bound(&name, &node));
    let first = plane.wait_pod_ready(&namespace, &name);
    let mut fixed = resting("taken");
    fixed["metadata"]["namespace"] = json!(*namespace);
    node.apply("taken.yaml", fixed);
    failed(&name, "UnexpectedAdmissionError");
    let uid = first["metadata"]["uid"].as_str().expect("uid").to_owned();
    let fixed = node.wait_pod("taken", "the static one", |p| p.up() && p.uid() != uid);

    // No such label: refused, also after a restart and when the label comes.
    let mut picky = bound("picky", &node);
    picky["spec"]["nodeSelector"] = json!({ "example.com/none": "here" });
    plane.apply(&picky);
    failed("picky", "NodeAffinity");
    plane.patch("Node", "", &node.name, &json!({ "metadata": { "labels": { "example.com/none": "here" } } }));
    node.restart();
    let after = node.wait_up("taken");
    assert_eq!((after.id("main"), after.uid()), (fixed.id("main"), fixed.uid()));
    plane.apply(&bound("after", &node));
    plane.wait_pod_ready(&namespace, "after");
    failed("picky", "NodeAffinity");
    plane.delete("Pod", &namespace, "picky");
    plane.wait("Pod", &namespace, "picky", "gone", Value::is_null);
    assert!(!node.pods().iter().any(|p| p.name() == "picky"));
    plane.delete("Pod", &namespace, &name);
    node.remove("taken.yaml");
    eventually("the name is free", PATIENCE + secs(30), || {
        !node.pods().iter().any(|p| p.name() == name) && plane.get("Pod", &namespace, &name).is_null()
    });
    namespace.end();
    plane.finish(node);
}
