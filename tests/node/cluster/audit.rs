//! What the API server's audit log says of a node: it asks for nothing that it may not have.

use super::{Plane, on};
use crate::harness::{BUSYBOX, REST, eventually, resting, secs};
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[test]
fn nothing_that_a_node_does_in_normal_operation_is_refused() {
    let plane = Plane::shared();
    let mut node = plane.up();
    let space = plane.namespace("audit");
    node.apply("lone.yaml", resting("lone"));
    for (kind, data) in [("ConfigMap", "data"), ("Secret", "stringData")] {
        plane.apply(&json!({
            "apiVersion": "v1", "kind": kind, "metadata": { "name": "settings", "namespace": &*space },
            data: { "key": "before" },
        }));
    }
    let template = |revision: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "agent", "namespace": &*space },
            "spec": {
                "selector": { "matchLabels": { "app": "agent" } },
                "template": {
                    "metadata": { "labels": { "app": "agent" }, "annotations": { "revision": revision } },
                    "spec": {
                        "nodeSelector": on(&node),
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{
                            "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
                            "command": ["sh", "-c", REST],
                            "envFrom": [{ "secretRef": { "name": "settings" } }],
                            "volumeMounts": [{ "name": "settings", "mountPath": "/settings" }],
                        }],
                        "volumes": [{ "name": "settings", "configMap": { "name": "settings" } }],
                    },
                },
            },
        })
    };
    let rolled_out = |set: &Value| {
        let status = &set["status"];
        status["observedGeneration"] == set["metadata"]["generation"]
            && status["updatedNumberScheduled"] == 1
            && status["numberReady"] == 1
    };
    plane.apply(&template("1"));
    plane.wait("DaemonSet", &space, "agent", "rolled out", rolled_out);
    plane.wait_pod_ready("default", &format!("lone-{}", node.name));
    let agents = || -> Vec<String> {
        let pods = plane.list("Pod", &space, "");
        pods.iter().filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect()
    };
    let first = agents().pop().expect("a pod");
    let inside = |pod: &str, path: &str| node.cli(&["exec", "-n", &space, pod, "--", "cat", path]).stdout;
    assert_eq!(inside(&first, "/settings/key"), "before");
    assert!(!inside(&first, "/var/run/secrets/kubernetes.io/serviceaccount/token").is_empty());
    plane.patch("ConfigMap", &space, "settings", &json!({ "data": { "key": "after" } }));
    eventually("the file follows the ConfigMap", secs(60), || inside(&first, "/settings/key") == "after");

    // A roll-out, an agent that starts again, an edit of the mirror pod, and its end.
    plane.apply(&template("2"));
    plane.wait("DaemonSet", &space, "agent", "rolled out again", |set| rolled_out(set) && !agents().contains(&first));
    node.restart();
    let lone = format!("lone-{}", node.name);
    plane.delete("Pod", "default", &lone);
    plane.wait_pod_ready("default", &lone);
    node.remove("lone.yaml");
    plane.wait("Pod", "default", &lone, "gone", Value::is_null);

    // The log has seen it all, and nothing of it was refused.
    let user = format!("system:node:{}", node.name);
    let done: BTreeSet<String> = plane
        .audit()
        .iter()
        .filter(|event| event["user"]["username"] == *user)
        .map(|event| {
            let of = &event["objectRef"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let sub = of["subresource"].as_str().map(|sub| format!("/{sub}")).unwrap_or_default();
            format!("{} {}{sub}", text(&event["verb"]), text(&of["resource"]))
        })
        .collect();
    for known in ["create nodes", "patch nodes/status", "watch pods", "create pods", "patch pods/status", "delete pods"]
    {
        assert!(done.contains(known), "{known}: {done:#?}");
    }
    assert!(done.contains("create serviceaccounts/token"), "{done:#?}");
    assert_eq!(plane.refused(&node.name), Vec::<String>::new());
    space.end();
    plane.finish(node);
}
