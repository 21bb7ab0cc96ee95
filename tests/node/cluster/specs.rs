//! What bound pods may have, and what follows from edits of them.

use super::{Namespace, Plane};
use crate::harness::{BUSYBOX, Node, PodView, REST, eventually, image_archive, pod, resting, secs};
use crate::resources::lowest_oom_score_adj;
use crate::resources::memory;
use serde_json::{Value, json};
use std::fs;

const OTHER: &str = "other:1";

/// A pod that is bound already, without what admission would add to it.
pub fn bound(node: &Node, namespace: &Namespace<'_>, mut pod: Value) -> Value {
    pod["metadata"]["namespace"] = json!(**namespace);
    pod["spec"]["nodeName"] = json!(node.name);
    pod["spec"]["automountServiceAccountToken"] = json!(false);
    pod
}

/// The pod, once it is `done`.
pub fn wait(plane: &Plane, namespace: &str, name: &str, what: &str, done: impl Fn(&PodView) -> bool) -> PodView {
    PodView(plane.wait("Pod", namespace, name, what, |pod| done(&PodView(pod.clone()))))
}

/// A node that runs and takes pods, however full the machine's disk is.
fn up(plane: &Plane) -> Node {
    let mut node = plane.node();
    node.configure(json!({ "evictionHard": { "memory.available": "1Mi" } }));
    node.start();
    node.wait_for_images();
    plane.wait_node_ready(&node);
    plane.uncordon(&node);
    node
}

/// The same, with one more image.
fn node(plane: &Plane) -> Node {
    let node = up(plane);
    node.drop_image(&image_archive(OTHER), "other.tar");
    eventually("the other image", secs(30), || node.cli(&["get", "images"]).ok().contains("other"));
    node
}

#[test]
fn an_edit_of_a_bound_pod_restarts_only_what_it_changes() {
    let plane = Plane::shared();
    let mut node = node(plane);
    let namespace = plane.namespace("edits");
    let mut manifest = resting("edited");
    manifest["metadata"]["labels"] = json!({ "colour": "red" });
    let container = |name: &str| {
        json!({
            "name": name, "image": BUSYBOX, "command": ["sh", "-c", REST],
            "resources": { "requests": { "cpu": "10m" }, "limits": { "memory": "32Mi" } },
        })
    };
    manifest["spec"]["containers"] = json!([container("main"), container("beside")]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "info", "mountPath": "/info" }]);
    let item = json!({ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } });
    manifest["spec"]["volumes"] = json!([{ "name": "info", "downwardAPI": { "items": [item] } }]);
    plane.apply(&bound(&node, &namespace, manifest));
    let first = wait(plane, &namespace, "edited", "runs", PodView::up);
    assert_eq!(first.name(), "edited");
    let kubectl = |args: &[&str]| plane.kubectl(&[&["-n", &namespace], args].concat()).ok();
    let said = |node: &Node, script: &str| {
        let args = ["exec", "edited", "-n", &namespace, "-c", "main", "--", "sh", "-c", script];
        node.cli(&args).stdout.trim().to_owned()
    };
    assert_eq!(said(&node, "cat /info/labels"), "colour=\"red\"");

    // Labels, annotations, tolerations and the deadline: the file follows, nothing restarts.
    kubectl(&["label", "pod", "edited", "colour=blue", "--overwrite"]);
    kubectl(&["annotate", "pod", "edited", "example.com/note=x"]);
    let mut spec = plane.get("Pod", &namespace, "edited")["spec"].clone();
    spec["tolerations"]
        .as_array_mut()
        .expect("tolerations")
        .push(json!({ "key": "example.com/x", "operator": "Exists" }));
    let patch = json!({ "spec": { "tolerations": spec["tolerations"], "activeDeadlineSeconds": 100_000 } });
    let generation = plane.patch("Pod", &namespace, "edited", &patch)["metadata"]["generation"].clone();
    eventually("the labels in the volume", secs(30), || said(&node, "cat /info/labels") == "colour=\"blue\"");
    let same = wait(plane, &namespace, "edited", "acted on", |p| p.0["status"]["observedGeneration"] == generation);
    for container in ["main", "beside"] {
        assert_eq!((same.id(container), same.restarts(container)), (first.id(container), 0));
    }

    // An image: that container, and no other.
    kubectl(&["set", "image", "pod/edited", &format!("main={OTHER}")]);
    let other = wait(plane, &namespace, "edited", "one restart", |p| p.up() && p.restarts("main") == 1);
    assert!(other.container("main")["image"].as_str().expect("image").ends_with(OTHER), "{}", other.container("main"));
    assert_eq!((other.id("beside"), other.restarts("beside")), (first.id("beside"), 0));
    assert_eq!(other.last("main")["exitCode"], 0, "it was asked to end");
    node.wait_event("why", |_, message| message == "Container main definition changed, will be restarted");

    // More memory: in place.
    let group = format!("kubepods/burstable/pod{}/{}", other.uid(), other.id("main"));
    assert_eq!(memory(&node, &group), (32_u64 << 20).to_string());
    let resize = json!({ "spec": { "containers": [{ "name": "main", "resources": { "limits": { "memory": "64Mi" },
        "requests": { "memory": "32Mi" } } }] } });
    kubectl(&["patch", "pod", "edited", "--subresource", "resize", "--patch", &resize.to_string()]);
    eventually("the new limit", secs(30), || memory(&node, &group) == (64_u64 << 20).to_string());
    let resized =
        wait(plane, &namespace, "edited", "told", |p| p.container("main")["resources"]["limits"]["memory"] == "64Mi");
    assert_eq!((resized.id("main"), resized.id("beside")), (other.id("main"), other.id("beside")));

    // A debugger is refused, and disturbs nobody.
    kubectl(&["debug", "edited", "--image", BUSYBOX, "-c", "debugger", "--", "true"]);
    let debugged = wait(plane, &namespace, "edited", "told", |p| {
        p.0["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["reason"] == "PodFeatureUnsupported"
    });
    assert_eq!((debugged.id("main"), debugged.id("beside")), (other.id("main"), other.id("beside")));

    // All this is on the disk: another agent finds nothing to do.
    node.restart();
    plane.wait_node_ready(&node);
    kubectl(&["label", "pod", "edited", "colour=green", "--overwrite"]);
    eventually("the labels in the volume", secs(30), || said(&node, "cat /info/labels") == "colour=\"green\"");
    let last = wait(plane, &namespace, "edited", "runs", PodView::up);
    assert_eq!((last.id("main"), last.id("beside")), (other.id("main"), other.id("beside")));
    namespace.end();
    plane.finish(node);
}

#[test]
fn a_bound_pod_ends_as_its_fields_say_or_is_refused_with_a_reason() {
    let plane = Plane::shared();
    let node = up(plane);
    let namespace = plane.namespace("ends");
    let apply = |manifest: Value| plane.apply(&bound(&node, &namespace, manifest));
    let status = |name: &str, what: &str, done: &dyn Fn(&PodView) -> bool| wait(plane, &namespace, name, what, done);

    // What this node does not do.
    let mut claims = resting("claims");
    claims["spec"]["volumes"] = json!([{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }]);
    apply(claims);
    let refused = status("claims", "refused", &|p| p.phase() == "Failed").0;
    assert_eq!(refused["status"]["reason"], "PodFeatureUnsupported");
    let message = refused["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("spec.volumes[0].persistentVolumeClaim: "), "{message}");

    // Ends of its own, by a deadline, by what it fills.
    let mut done = pod("done", "exit 0");
    done["spec"]["restartPolicy"] = json!("Never");
    let mut fails = pod("fails", "exit 3");
    fails["spec"]["restartPolicy"] = json!("Never");
    let mut late = resting("late");
    late["spec"]["activeDeadlineSeconds"] = json!(3);
    let mut full = pod("full", &format!("head -c 3m /dev/zero > /data/x; {REST}"));
    full["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": { "sizeLimit": "1Mi" } }]);
    full["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    for manifest in [done, fails, late, full] {
        apply(manifest);
    }
    status("done", "Succeeded", &|p| p.phase() == "Succeeded");
    let failed = status("fails", "Failed", &|p| p.phase() == "Failed");
    assert_eq!(failed.terminated("main")["exitCode"], 3);
    let late = status("late", "Failed", &|p| p.phase() == "Failed");
    assert_eq!(late.0["status"]["reason"], "DeadlineExceeded");
    let full = status("full", "Failed", &|p| p.phase() == "Failed");
    assert_eq!((&full.0["status"]["reason"], full.condition("DisruptionTarget")), (&json!("Evicted"), "True"));

    // The kernel's killer takes ordinary pods first.
    let mut critical = resting("critical");
    critical["spec"]["priorityClassName"] = json!("system-node-critical");
    apply(critical);
    apply(resting("ordinary"));
    let score = |name: &str| {
        let id = status(name, "runs", &PodView::up).id("main");
        let file = format!("/proc/{}/oom_score_adj", node.init_pid(&id));
        fs::read_to_string(file).expect("oom_score_adj").trim().to_owned()
    };
    let least = lowest_oom_score_adj().max(-997);
    assert_eq!((score("critical"), score("ordinary")), (least.to_string(), "1000".to_owned()));

    // The grace is what kubectl says; a pod that never started goes at once.
    let mut stubborn = pod("stubborn", "trap '' TERM; while :; do sleep 1; done");
    stubborn["spec"]["terminationGracePeriodSeconds"] = json!(3600);
    let mut absent = resting("absent");
    absent["spec"]["containers"][0]["image"] = json!("none.invalid/absent:1");
    absent["spec"]["terminationGracePeriodSeconds"] = json!(3600);
    apply(stubborn);
    apply(absent);
    status("stubborn", "runs", &PodView::up);
    status("absent", "waits", &|p| ["ErrImagePull", "ImagePullBackOff"].contains(&p.waiting("main")));
    let kubectl = |args: &[&str]| plane.kubectl(&[&["-n", &namespace], args].concat()).ok();
    kubectl(&["delete", "pod", "absent", "--wait=false"]);
    plane.wait("Pod", &namespace, "absent", "gone", Value::is_null);
    kubectl(&["delete", "pod", "stubborn", "--wait=false"]);
    status("stubborn", "ends", &|p| !p.0["metadata"]["deletionTimestamp"].is_null());
    kubectl(&["delete", "pod", "stubborn", "--wait=false", "--grace-period=2"]);
    plane.wait("Pod", &namespace, "stubborn", "gone", Value::is_null);
    namespace.end();
    plane.finish(node);
}
