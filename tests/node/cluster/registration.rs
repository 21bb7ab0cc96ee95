//! The Node object in a cluster: registered, kept right, and alive.

use super::{Plane, condition};
use crate::harness::{Node, PATIENCE, eventually, resting};
use serde_json::{Value, json};

/// Every event of an object by its uid, as `reason: message`.
fn events(plane: &Plane, uid: &Value) -> Vec<String> {
    let query = format!("fieldSelector=involvedObject.uid%3D{}", uid.as_str().unwrap_or_default());
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let all = plane.list("Event", "", &query);
    all.iter().map(|event| format!("{}: {}", text(event, "reason"), text(event, "message"))).collect()
}

fn wait_node(plane: &Plane, node: &Node, what: &str, done: impl FnMut(&Value) -> bool) -> Value {
    plane.wait("Node", "", &node.name, what, done)
}

fn wait_lease(plane: &Plane, node: &Node, what: &str, done: impl FnMut(&Value) -> bool) -> Value {
    plane.wait("Lease", "kube-node-lease", &node.name, what, done)
}

/// How often the node has sent its status.
fn reports(plane: &Plane, node: &Node) -> usize {
    let path = format!("/api/v1/nodes/{}/status", node.name);
    let user = format!("system:node:{}", node.name);
    let all = plane.audit();
    let own = all.iter().filter(|event| event["user"]["username"] == *user && event["verb"] == "patch");
    own.filter(|event| event["requestURI"].as_str().is_some_and(|uri| uri.starts_with(&path))).count()
}

#[test]
fn a_node_registers_cordoned_with_all_that_is_known_of_it_and_stays_what_it_is() {
    let plane = Plane::shared();
    let mut node = plane.node();
    node.args.push("--node-labels=site=north,example.com/rack=7".to_owned());
    node.configure(json!({
        "registerWithTaints": [{ "key": "edge", "value": "true", "effect": "NoExecute" }],
        "providerID": "edge://7",
        "nodeLeaseDurationSeconds": 8,
        // As on all of the tests' machines.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%" },
    }));
    node.start();
    let object = plane.wait_node_ready(&node);
    let uid = object["metadata"]["uid"].clone();

    // As kubectl shows it.
    let listed = plane.kubectl(&["get", "node", &node.name, "--no-headers"]).ok();
    assert!(listed.contains("Ready,SchedulingDisabled") && listed.contains("v1.36."), "{listed}");
    let labels = &object["metadata"]["labels"];
    for (key, value) in [
        ("site", "north"),
        ("example.com/rack", "7"),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/hostname", &node.name),
        ("beta.kubernetes.io/os", "linux"),
    ] {
        assert_eq!(labels[key], value, "{labels}");
    }
    assert!(labels["kubernetes.io/arch"].is_string(), "{labels}");
    let annotations = &object["metadata"]["annotations"];
    assert_eq!(annotations["volumes.kubernetes.io/controller-managed-attach-detach"], "true");
    assert_eq!((&object["spec"]["unschedulable"], &object["spec"]["providerID"]), (&json!(true), &json!("edge://7")));
    let tainted = |node: &Value, key: &str| {
        node["spec"]["taints"].as_array().into_iter().flatten().any(|taint| taint["key"] == key)
    };
    assert!(tainted(&object, "edge"), "{}", object["spec"]);

    let status = &object["status"];
    let address = node.args.iter().find_map(|arg| arg.strip_prefix("--node-ip=")).expect("an address");
    assert_eq!(
        status["addresses"],
        json!([{ "type": "InternalIP", "address": address }, { "type": "Hostname", "address": node.name }])
    );
    for resource in ["cpu", "memory", "pods", "ephemeral-storage"] {
        assert!(status["capacity"][resource].is_string() && status["allocatable"][resource].is_string(), "{status}");
    }
    for (kind, healthy) in
        [("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False"), ("Ready", "True")]
    {
        assert_eq!(condition(&object, kind), healthy, "{kind}");
    }
    let all = status["conditions"].as_array().expect("conditions");
    assert!(all.iter().all(|c| c["lastHeartbeatTime"].is_string() && c["lastTransitionTime"].is_string()), "{all:?}");
    let info = &status["nodeInfo"];
    for field in ["bootID", "machineID", "systemUUID", "kernelVersion", "osImage", "architecture"] {
        assert!(info[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {info}");
    }
    assert!(info["containerRuntimeVersion"].as_str().is_some_and(|text| text.starts_with("coracle://")), "{info}");
    assert!(status["runtimeHandlers"][0]["features"]["userNamespaces"].is_boolean(), "{status}");
    assert_eq!(status["features"]["supplementalGroupsPolicy"], true);
    let images =
        wait_node(plane, &node, "images", |node| node["status"]["images"].as_array().is_some_and(|l| !l.is_empty()));
    let sizes: Vec<i64> =
        images["status"]["images"].as_array().into_iter().flatten().filter_map(|i| i["sizeBytes"].as_i64()).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");

    // Alive.
    let lease = wait_lease(plane, &node, "there", |lease| !lease.is_null());
    assert_eq!(
        lease["metadata"]["ownerReferences"],
        json!([{ "apiVersion": "v1", "kind": "Node", "name": node.name, "uid": uid }])
    );
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 8);
    assert_eq!(lease["spec"]["holderIdentity"], *node.name);
    wait_lease(plane, &node, "renewed", |now| now["spec"]["renewTime"] != lease["spec"]["renewTime"]);

    // Its events, where kubectl looks for them.
    eventually("the node's events are told", PATIENCE, || {
        let all = events(plane, &uid);
        ["Starting: ", "NodeReady: ", "NodeHasSufficientMemory: "].iter().all(|e| all.iter().any(|o| o.starts_with(e)))
    });
    let described = plane.kubectl(&["describe", "node", &node.name]).ok();
    let told = format!("Node {} status is now: NodeReady", node.name);
    assert!(described.contains(&told) && described.contains("kubelet"), "{described}");

    // What others say of the node stays; what is the node's own is said again.
    let before = reports(plane, &node);
    let path = format!("/api/v1/nodes/{}/status", node.name);
    let others = json!({ "status": {
        "capacity": { "example.com/dongle": "4" },
        "conditions": [
            { "type": "example.com/Checked", "status": "True", "reason": "Checked", "message": "by hand" },
            { "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown" },
        ],
    } });
    plane.must("PATCH", &path, "application/strategic-merge-patch+json", &others);
    let after = wait_node(plane, &node, "Ready again", |node| {
        condition(node, "Ready") == "True" && node["status"]["allocatable"]["example.com/dongle"] == "4"
    });
    assert_eq!(condition(&after, "example.com/Checked"), "True");
    // Nothing else makes it talk: neither what it says itself, nor that the API server writes amounts in its own way.
    eventually("the report is in the audit log", PATIENCE, || reports(plane, &node) > before);
    let sent = reports(plane, &node) - before;
    assert!(sent <= 3, "{sent} reports for one change");
    plane.finish(node);
}

#[test]
fn a_node_that_was_deleted_comes_back_and_labels_taints_and_cordon_are_whose_they_are() {
    let plane = Plane::shared();
    let mut node = plane.node();
    node.args.push("--node-labels=site=north,example.com/rack=7".to_owned());
    node.start();
    let first = plane.wait_node_ready(&node);
    plane.uncordon(&node);
    wait_node(plane, &node, "uncordoned", |node| node["spec"]["unschedulable"].is_null());

    // A label by others is theirs, and pods of this node are admitted by it; one of ours is ours.
    let mut pod = resting("picky");
    pod["spec"]["nodeSelector"] = json!({ "team": "a" });
    node.apply("picky.json", &pod);
    let refused = node.wait_pod("picky", "refused", |pod| pod.phase() == "Failed");
    // Its events are about the static pod, as its mirror pod says.
    eventually("the refusal is told", PATIENCE, || {
        events(plane, &json!(refused.uid())).iter().any(|event| event.starts_with("NodeAffinity: "))
    });
    // A namespace that does not exist holds no other event up, and is told when it does.
    let late = format!("late-{}", node.name);
    let mut early = resting("early");
    early["metadata"]["namespace"] = json!(late);
    node.apply("early.json", &early);
    let early = node.wait_up("early");
    plane.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": late } }));
    eventually("the events of before are told", 2 * PATIENCE, || {
        events(plane, &json!(early.uid())).iter().any(|event| event.starts_with("Started: "))
    });
    node.remove("early.json");
    node.wait_gone("early");
    plane.patch("Node", "", &node.name, &json!({ "metadata": { "labels": { "team": "a", "site": "south" } } }));
    wait_node(plane, &node, "site is north again", |node| node["metadata"]["labels"]["site"] == "north");
    node.wait_up("picky");

    // The configuration says less: what was ours goes, what is others' stays. What was uncordoned stays so.
    node.stop();
    node.args.retain(|arg| !arg.starts_with("--node-labels"));
    node.args.push("--node-labels=site=east".to_owned());
    node.start();
    let object = wait_node(plane, &node, "site is east", |node| node["metadata"]["labels"]["site"] == "east");
    let labels = &object["metadata"]["labels"];
    assert_eq!((&labels["team"], &labels["example.com/rack"]), (&json!("a"), &Value::Null), "{labels}");
    assert_eq!(
        (&object["spec"]["unschedulable"], &object["metadata"]["uid"]),
        (&Value::Null, &first["metadata"]["uid"])
    );

    // Without an API server the node knows what it was last.
    plane.unplug(&node);
    node.restart();
    let mut pod = resting("offline");
    pod["spec"]["nodeSelector"] = json!({ "team": "a" });
    node.apply("offline.json", &pod);
    node.wait_up("offline");
    plane.plug(&node);

    // Cordoned by hand, whether or not anybody listens at the moment.
    plane.cordon(&node);
    let uid = &first["metadata"]["uid"];
    eventually("NodeNotSchedulable is told", PATIENCE, || {
        events(plane, uid).iter().any(|event| event.starts_with("NodeNotSchedulable"))
    });

    // Deleted: another Node, new as the first was, with a lease of its own.
    plane.uncordon(&node);
    plane.delete("Node", "", &node.name);
    let second = wait_node(plane, &node, "made again", |node| {
        condition(node, "Ready") == "True" && node["metadata"]["uid"] != first["metadata"]["uid"]
    });
    assert_eq!(
        (&second["spec"]["unschedulable"], &second["metadata"]["labels"]["site"]),
        (&json!(true), &json!("east"))
    );
    wait_lease(plane, &node, "the new Node's", |lease| {
        lease["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"]
    });
    // The pod that runs does not care.
    assert_eq!(node.wait_up("picky").restarts("main"), 0);

    // Not to be registered, and not there: nobody makes it, and static pods do not care.
    node.stop();
    plane.delete("Node", "", &node.name);
    node.args.push("--register-node=false".to_owned());
    node.start();
    node.wait_up("picky");
    assert!(plane.get("Node", "", &node.name).is_null());
    // Whoever makes it has it filled in.
    plane.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node.name } }));
    let third = plane.wait_node_ready(&node);
    assert_eq!((&third["spec"]["unschedulable"], &third["metadata"]["labels"]["site"]), (&Value::Null, &json!("east")));

    let refused = plane.refused(&node.name);
    assert!(refused.is_empty(), "{refused:#?}");
    plane.delete("Namespace", "", &late);
    plane.finish(node);
}
