//! Static pods as the API server shows them.

use super::{Plane, condition};
use crate::harness::{Node, PATIENCE, PodView, REST, eventually, pod, resting, secs};
use serde_json::{Value, json};
use std::fs;
use std::time::Instant;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn uid(pod: &Value) -> String {
    text(&pod["metadata"]["uid"])
}

/// A node that runs and takes pods, however full the machine's disk is.
pub(super) fn roomy(plane: &Plane) -> Node {
    let mut node = plane.node();
    node.configure(json!({ "imageGCHighThresholdPercent": 100, "evictionHard": { "memory.available": "1Mi" } }));
    node.start();
    node.wait_for_images();
    plane.wait_node_ready(&node);
    plane.uncordon(&node);
    node
}

/// The mirror of a static pod, once it is told of as ready, and another one than `before`.
fn mirror(plane: &Plane, namespace: &str, name: &str, before: &str) -> Value {
    plane.wait("Pod", namespace, name, "a mirror pod that is Ready", |pod| {
        uid(pod) != before && pod["metadata"]["deletionTimestamp"].is_null() && condition(pod, "Ready") == "True"
    })
}

/// Nothing of it was touched.
fn same(node: &Node, before: &PodView, name: &str) {
    let now = node.pod(name).expect("the pod");
    assert_eq!((now.id("main"), now.restarts("main")), (before.id("main"), 0));
}

#[test]
fn a_static_pod_is_shown_and_its_containers_are_nobodys_to_touch() {
    let plane = Plane::shared();
    let node = roomy(plane);
    let namespace = plane.namespace("mirrors");
    let mut manifest = resting("web");
    manifest["metadata"]["namespace"] = json!(*namespace);
    manifest["metadata"]["labels"] = json!({ "app": "web" });
    let full = format!("web-{}", node.name);
    let dropped = Instant::now();
    node.apply("web.yaml", &manifest);
    let shown = mirror(plane, &namespace, &full, "");
    // Two seconds on a machine that has nothing else to do.
    assert!(dropped.elapsed() < PATIENCE, "{:?}", dropped.elapsed());
    let running = node.pod("web").expect("the pod");
    let listed = plane.kubectl(&["get", "pods", "-A", "-o", "wide", "--show-labels"]).ok();
    let line = listed.lines().find(|line| line.contains(&full)).unwrap_or_else(|| panic!("{listed}"));
    for word in ["1/1", "Running", &node.name, running.ip(), "app=web"] {
        assert!(line.contains(word), "{word}: {line}");
    }

    let meta = &shown["metadata"];
    let annotations = &meta["annotations"];
    assert_eq!(annotations["kubernetes.io/config.mirror"], running.uid());
    assert_eq!(annotations["kubernetes.io/config.hash"], running.uid());
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert!(annotations["kubernetes.io/config.seen"].is_string());
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": node.name, "controller": true,
        "uid": plane.get("Node", "", &node.name)["metadata"]["uid"] }]);
    assert_eq!(meta["ownerReferences"], owner);
    assert_eq!(PodView(shown.clone()).id("main"), running.id("main"));
    let described = plane.kubectl(&["describe", "pod", &full, "-n", &namespace]).ok();
    assert!(described.contains("Static pod") || described.contains("Controlled By:  Node/"), "{described}");

    // Deleted, gracefully and by force: it is there again, another one, and nothing was touched.
    plane.kubectl(&["delete", "pod", &full, "-n", &namespace, "--wait=false"]).ok();
    let again = mirror(plane, &namespace, &full, &uid(&shown));
    same(&node, &running, "web");
    plane.kubectl(&["delete", "pod", &full, "-n", &namespace, "--force", "--grace-period=0", "--wait=false"]).ok();
    let again = mirror(plane, &namespace, &full, &uid(&again));
    same(&node, &running, "web");

    // Edits are undone, whatever they are about.
    let edits: [&[&str]; 3] = [
        &["label", "pod", &full, "app=other", "--overwrite"],
        &["annotate", "pod", &full, "example.com/more=x"],
        &["set", "image", &format!("pod/{full}"), "main=other:1"],
    ];
    let mut last = again;
    for edit in edits {
        plane.kubectl(&[&["-n", &namespace], edit].concat()).ok();
        last = mirror(plane, &namespace, &full, &uid(&last));
        assert_eq!(last["metadata"]["labels"], json!({ "app": "web" }), "{edit:?}");
        assert!(last["metadata"]["annotations"]["example.com/more"].is_null(), "{edit:?}");
        assert_eq!(last["spec"]["containers"][0]["image"], manifest["spec"]["containers"][0]["image"], "{edit:?}");
        same(&node, &running, "web");
    }

    // What is told stays so over a restart of the agent, and the mirror is the same one.
    let since = |pod: &Value| {
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == "Ready").map(|c| c["lastTransitionTime"].clone())
    };
    let ready = since(&last);
    let mut node = node;
    node.restart();
    eventually("a sign of life", PATIENCE, || node.pod("web").is_some_and(|pod| pod.up()));
    let kept = mirror(plane, &namespace, &full, "");
    assert_eq!((uid(&kept), since(&kept)), (uid(&last), ready));
    same(&node, &running, "web");

    // An edit of the manifest is another pod, and another mirror.
    manifest["metadata"]["labels"] = json!({ "app": "web", "version": "2" });
    node.apply("web.yaml", &manifest);
    let edited = plane.wait("Pod", &namespace, &full, "the edited pod", |pod| {
        pod["metadata"]["labels"]["version"] == "2" && condition(pod, "Ready") == "True"
    });
    assert_ne!(uid(&edited), uid(&last));

    node.remove("web.yaml");
    plane.wait("Pod", &namespace, &full, "gone", Value::is_null);
    assert_eq!(plane.refused(&node.name), [""; 0]);
    plane.finish(node);
}

#[test]
fn what_only_the_node_knows_is_not_shown_and_what_is_refused_runs_all_the_same() {
    let plane = Plane::shared();
    let node = roomy(plane);
    let namespace = plane.namespace("local");
    let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "level": "secret-level" },
        "metadata": { "name": "settings", "namespace": *namespace } });
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "stringData": { "pw": "hunter2" },
        "metadata": { "name": "keys", "namespace": *namespace } });
    let mut manifest = pod("user", REST);
    manifest["metadata"]["namespace"] = json!(*namespace);
    let container = &mut manifest["spec"]["containers"][0];
    container["env"] = json!([
        { "name": "LEVEL", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "level" } } },
        { "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "pw" } } },
    ]);
    container["envFrom"] = json!([{ "secretRef": { "name": "keys" } }]);
    container["volumeMounts"] = json!([{ "name": "s", "mountPath": "/s" }, { "name": "p", "mountPath": "/p" }]);
    manifest["spec"]["volumes"] = json!([
        { "name": "s", "configMap": { "name": "settings" } },
        { "name": "p", "projected": { "sources": [{ "secret": { "name": "keys" } }] } },
    ]);
    node.apply("user.yaml", format!("---\n{config}\n---\n{secret}\n---\n{manifest}\n"));
    let full = format!("user-{}", node.name);
    let shown = mirror(plane, &namespace, &full, "");
    let local = "configmaps/settings, secrets/keys";
    assert_eq!(shown["metadata"]["annotations"]["coracle.dev/local-references"], local);
    assert_eq!(shown["spec"]["volumes"][0]["emptyDir"], json!({}));
    let whole = shown.to_string();
    assert!(!whole.contains("hunter2") && !whole.contains("secret-level"), "{whole}");

    // A namespace that does not exist: the pod runs, an event says it once, and the mirror is there as soon as it can be.
    let mut early = resting("early");
    let later = format!("later-{}", node.name);
    early["metadata"]["namespace"] = json!(later);
    let running = node.run(&early);
    let refused = || {
        let events = node.events().into_iter().filter(|event| event["reason"] == "FailedCreateMirrorPod");
        events.filter(|event| text(&event["message"]).contains("early")).count()
    };
    eventually("the event", PATIENCE, || refused() == 1);
    plane.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": later } }));
    mirror(plane, &later, &format!("early-{}", node.name), "");
    same(&node, &running, "early");
    assert_eq!(refused(), 1);

    // A Node that is made again owns the mirrors anew.
    plane.delete("Node", "", &node.name);
    let owner = |pod: &Value| text(&pod["metadata"]["ownerReferences"][0]["uid"]);
    let again = plane.wait("Pod", &namespace, &full, "another owner", |pod| {
        !pod.is_null() && owner(pod) != owner(&shown) && owner(pod) == uid(&plane.get("Node", "", &node.name))
    });
    assert_ne!(uid(&again), uid(&shown));

    // What was removed while nobody was there to say so is no orphan for long.
    let mut node = node;
    node.stop();
    fs::remove_file(node.manifest("user.yaml")).expect("the manifest");
    node.start();
    plane.wait("Pod", &namespace, &full, "gone", Value::is_null);
    node.remove("early.yaml");
    plane.wait("Pod", &later, &format!("early-{}", node.name), "gone", Value::is_null);
    plane.delete("Namespace", "", &later);
    eventually("nothing of it", secs(30), || node.pods().is_empty());
    plane.finish(node);
}
