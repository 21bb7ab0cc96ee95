//! Many sources, one wish: pods are accepted when all that they refer to is there.

use crate::harness::{Node, PATIENCE, REST, alive, eventually, mode, pod, resting};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// A pod that refers to a key of the ConfigMap `settings`.
fn needy(name: &str, key: &str) -> Value {
    let mut pod = pod(name, REST);
    let source = json!({ "configMapKeyRef": { "name": "settings", "key": key } });
    pod["spec"]["containers"][0]["env"] = json!([{ "name": "V", "valueFrom": source }]);
    pod
}

fn settings(key: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" }, "data": { key: "v" } })
        .to_string()
}

/// Renames a file into the folder of objects.
fn object(node: &Node, file: &str, text: &str) -> PathBuf {
    let (staged, path) = (node.dir.join(format!("staged-{file}")), node.dir.join("root/objects").join(file));
    fs::write(&staged, text).expect("stage an object");
    fs::rename(staged, &path).expect("rename an object into place");
    path
}

const FIELD: &str = "spec.containers[0].env[0].valueFrom.configMapKeyRef";

#[test]
fn a_pod_is_refused_with_the_path_until_its_object_is_there_and_keeps_it() {
    let mut node = Node::up();
    assert_eq!(mode(&node.dir.join("root/objects")), 0o700);
    node.apply("web.yaml", needy("web", "mode"));
    let event = node.wait_event("it is refused", |reason, message| {
        reason == "FailedValidation" && message.contains(&format!("{FIELD}.name: Not found: \"settings\""))
    });
    let message = event["message"].as_str().unwrap_or_default();
    assert!(message.contains(&format!("web.yaml: line 1: {FIELD}")), "{message}");
    assert_eq!(event["involvedObject"]["name"], json!(format!("web-{}", node.name)), "{event}");
    assert!(node.pod("web").is_none());
    // A pod does not belong there.
    object(&node, "stray.yaml", &resting("stray").to_string());
    node.wait_event("pods belong elsewhere", |_, message| {
        message.contains("stray.yaml: ") && message.contains("pods go to the manifest directory")
    });
    let path = object(&node, "settings.yaml", &settings("mode"));
    let before = node.wait_up("web");
    let pid = node.init_pid(&before.id("main"));

    // The object goes: it stays while the pod needs it, over a restart of the agent.
    eventually("it is remembered", PATIENCE, || {
        fs::read_dir(node.dir.join("root/manifests/kept")).is_ok_and(|mut all| all.next().is_some())
    });
    fs::remove_file(path).expect("remove the object");
    let gone = |_: &str, message: &str| {
        message.contains("ConfigMap default/settings is gone from here") && message.contains("default/web-")
    };
    node.wait_event("it is gone", gone);
    node.kill9();
    node.start();
    node.wait_event("it is still gone", gone);
    assert!(alive(pid) && node.wait_up("web").id("main") == before.id("main"));

    // A new revision that lacks something leaves the old one running, also over a restart.
    node.apply("web.yaml", needy("web", "kode"));
    let refused = |reason: &str, message: &str| {
        reason == "FailedValidation"
            && message.contains(&format!("{FIELD}.key: Not found: \"kode\""))
            && message.contains("revision 1 of the pod keeps running")
    };
    node.wait_event("the edit is refused", refused);
    assert!(node.cli(&["get", "pods"]).ok().contains("Running,ManifestHeld"));
    assert!(node.cli(&["history", "web"]).ok().contains("not accepted: "));
    node.restart();
    node.wait_event("it is still refused", refused);
    assert!(alive(pid) && node.wait_up("web").id("main") == before.id("main"));
    // It is accepted as soon as it can be.
    object(&node, "settings.yaml", &settings("kode"));
    node.wait_pod("web", "the new revision", |p| p.up() && p.uid() != before.uid());
    assert!(!node.cli(&["get", "pods"]).ok().contains("ManifestHeld"));
    node.finish();
}

#[test]
fn a_pod_that_only_a_record_names_does_not_flash_up_at_the_next_start() {
    let mut node = Node::up();
    let starts = node.dir.join("share/starts");
    let mut web = pod("web", &format!("echo once >> /share/starts; {REST}"));
    web["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "share", "mountPath": "/share" }]);
    web["spec"]["volumes"] = json!([{ "name": "share", "hostPath": { "path": node.dir.join("share") } }]);
    node.run(&web);
    let records = || -> Vec<(PathBuf, Vec<u8>)> {
        let all = fs::read_dir(node.dir.join("root/manifests")).into_iter().flatten().flatten().map(|e| e.path());
        all.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap_or_default())).collect()
    };
    eventually("it is recorded", PATIENCE, || !records().is_empty());
    let saved = records();
    node.remove("web.yaml");
    node.wait_gone("web");
    eventually("the record is gone", PATIENCE, || records().is_empty());
    node.stop();
    // As if the agent had been killed before it wrote that down.
    for (path, bytes) in saved {
        fs::write(path, bytes).expect("restore a record");
    }
    node.start();
    node.run(&resting("other"));
    assert!(node.pod("web").is_none());
    assert_eq!(fs::read_to_string(starts).expect("starts"), "once\n");
    node.finish();
}
