//! Resizes in place, and a node that runs short.

use crate::harness::{BUSYBOX, Node, PodView, REST, eventually, free_port, pod, resting, secs};
use crate::resources::{memory, quota, setting, with};
use serde_json::{Value, json};
use std::fs;

const UID: &str = "5c0a1b2e-0000-4000-8000-000000000005";

/// Two containers of these amounts each; the second one starts anew when its memory changes.
fn elastic(cpu: &str, memory: &str) -> Value {
    let container = |name: &str| {
        json!({
            "name": name, "image": BUSYBOX, "command": ["sh", "-c", REST],
            "resources": { "limits": { "cpu": cpu, "memory": memory } },
        })
    };
    let mut manifest = pod("elastic", REST);
    manifest["metadata"]["uid"] = json!(UID);
    manifest["spec"]["containers"] = json!([container("stays"), container("restarts")]);
    manifest["spec"]["containers"][1]["resizePolicy"] =
        json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    let item =
        json!({ "path": "memory", "resourceFieldRef": { "containerName": "stays", "resource": "limits.memory" } });
    manifest["spec"]["volumes"] = json!([{ "name": "info", "downwardAPI": { "items": [item] } }]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "info", "mountPath": "/info" }]);
    manifest
}

/// Reason and message of `PodResizePending`.
fn pending(pod: &PodView) -> Option<(String, String)> {
    let all = pod.0["status"]["conditions"].as_array()?;
    let found = all.iter().find(|c| c["type"] == "PodResizePending")?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("reason"), text("message")))
}

#[test]
fn a_pinned_pod_is_resized_in_place() {
    let node = Node::up();
    let group = format!("kubepods/pod{UID}");
    let mi = |n: u64| (n << 20).to_string();
    node.apply("elastic.yaml", elastic("100m", "32Mi"));
    let first = node.wait_up("elastic");
    let own = format!("{group}/{}", first.id("stays"));
    let pid = node.init_pid(&first.id("stays"));
    assert_eq!((quota(&node, &group), memory(&node, &group)), ("20000 100000".to_owned(), mi(64)));

    node.apply("elastic.yaml", elastic("200m", "64Mi"));
    let grown = node.wait_pod("elastic", "one restart", |p| p.up() && p.restarts("restarts") == 1);
    assert_eq!((quota(&node, &group), memory(&node, &group)), ("40000 100000".to_owned(), mi(128)));
    assert_eq!((quota(&node, &own), memory(&node, &own)), ("20000 100000".to_owned(), mi(64)));
    assert_eq!(memory(&node, &format!("{group}/{}", grown.id("restarts"))), mi(64));
    assert_eq!((grown.id("stays"), grown.restarts("stays")), (first.id("stays"), 0));
    assert_eq!(node.init_pid(&grown.id("stays")), pid);
    assert_eq!(grown.container("stays")["resources"]["limits"]["memory"], "64Mi");
    node.wait_event("the resize", |reason, _| reason == "ResizeCompleted");
    let cat = ["exec", "elastic", "-c", "stays", "--", "cat", "/info/memory"];
    assert_eq!(node.cli(&cat).ok(), mi(64), "the volume follows");

    // CPU alone restarts nobody.
    node.apply("elastic.yaml", elastic("50m", "64Mi"));
    eventually("less CPU", secs(15), || quota(&node, &group) == "10000 100000" && quota(&node, &own) == "5000 100000");
    let slow = node.wait_up("elastic");
    assert_eq!((slow.id("stays"), slow.id("restarts")), (grown.id("stays"), grown.id("restarts")));

    // Below what is in use: not now.
    let sh = |script: &str| node.cli(&["exec", "elastic", "-c", "stays", "--", "sh", "-c", script]).ok();
    sh("head -c 40m /dev/zero > /dev/shm/full");
    node.apply("elastic.yaml", elastic("50m", "32Mi"));
    let waits = node.wait_pod("elastic", "a resize that waits", |p| pending(p).is_some());
    let (reason, message) = pending(&waits).expect("pending");
    assert!(reason == "Deferred" && message.contains("below its current usage"), "{reason} {message}");
    assert_eq!((memory(&node, &group), waits.id("restarts")), (mi(128), grown.id("restarts")));
    sh("rm /dev/shm/full");
    let shrunk = node.wait_pod("elastic", "two restarts", |p| p.up() && p.restarts("restarts") == 2);
    assert_eq!((memory(&node, &group), memory(&node, &own)), (mi(64), mi(32)));
    assert_eq!((pending(&shrunk), node.init_pid(&shrunk.id("stays"))), (None, pid));

    // More than the machine has: never. It stays as it is, and may become what it was.
    node.apply("elastic.yaml", elastic("2048", "32Mi"));
    node.wait_event("the refusal", |reason, _| reason == "ResizeInfeasible");
    let refused = node.wait_pod("elastic", "a resize that cannot be", |p| pending(p).is_some());
    let (reason, message) = pending(&refused).expect("pending");
    assert!(reason == "Infeasible" && message.contains("cpu, requested: 4096000"), "{reason} {message}");
    assert_eq!((quota(&node, &group), refused.id("stays")), ("10000 100000".to_owned(), first.id("stays")));
    node.apply("elastic.yaml", elastic("50m", "32Mi"));
    node.wait_pod("elastic", "nothing wanted", |p| pending(p).is_none());

    // More than the others leave: as soon as they leave it.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    node.run(&with("other", json!({ "requests": { "cpu": format!("{}m", cores * 1000 - 200) } })));
    node.apply("elastic.yaml", elastic("150m", "32Mi"));
    let waits = node.wait_pod("elastic", "a resize that waits", |p| pending(p).is_some());
    assert_eq!(pending(&waits).expect("pending").0, "Deferred");
    node.remove("other.yaml");
    eventually("more CPU", secs(20), || quota(&node, &group) == "30000 100000");
    let last = node.wait_pod("elastic", "nothing wanted", |p| pending(p).is_none() && p.up());
    assert_eq!((last.id("stays"), last.id("restarts")), (first.id("stays"), shrunk.id("restarts")));

    // What a container uses that starts anew for it goes with it, and is not in the way.
    let fill = "(x=$(head -c 14m /dev/zero | tr '\\0' x); sleep 1000) < /dev/null > /dev/null 2>&1 &";
    node.cli(&["exec", "elastic", "-c", "restarts", "--", "sh", "-c", fill]).ok();
    let its = format!("{group}/{}", last.id("restarts"));
    let in_use = || setting(&node, &its, "memory.usage_in_bytes", "memory.current").parse::<u64>().unwrap_or(0);
    eventually("14 MiB in use", secs(10), || in_use() > 14 << 20);
    node.apply("elastic.yaml", elastic("150m", "12Mi"));
    let lean = node.wait_pod("elastic", "three restarts", |p| p.up() && p.restarts("restarts") == 3);
    assert_eq!(memory(&node, &format!("{group}/{}", lean.id("restarts"))), mi(12));
    assert_eq!((memory(&node, &group), memory(&node, &own)), (mi(24), mi(12)));
    assert_eq!((pending(&lean), lean.id("stays")), (None, first.id("stays")));

    // Of two new pods in one file that want the same port, one gets it, and then the other.
    let port = json!([{ "containerPort": 80, "hostPort": free_port() }]);
    let [one, two] = ["one", "two"].map(|name| {
        let mut manifest = resting(name);
        manifest["spec"]["containers"][0]["ports"] = port.clone();
        manifest
    });
    node.apply("pair.yaml", format!("---\n{one}\n---\n{two}"));
    node.wait_up("one");
    let refused = node.wait_pod("two", "refused", |p| p.phase() == "Failed");
    assert_eq!(refused.0["status"]["reason"], "NodePorts");
    node.apply("pair.yaml", &two);
    node.wait_up("two");
    node.finish();
}

/// Status and reason of a condition of the Node.
fn condition(node: &Node, kind: &str) -> String {
    let list: Value = serde_json::from_str(&node.cli(&["get", "nodes", "-o", "json"]).ok()).expect("nodes");
    let object = if list["items"].is_array() { &list["items"][0] } else { &list };
    let all = object["status"]["conditions"].as_array().expect("conditions");
    let found = all.iter().find(|c| c["type"] == kind).expect("condition");
    format!("{} {}", found["status"].as_str().unwrap_or_default(), found["reason"].as_str().unwrap_or_default())
}

#[test]
fn a_node_that_runs_short_says_so_and_keeps_its_pods() {
    let mut node = Node::new();
    node.configure(json!({
        "evictionHard": { "memory.available": "99%", "nodefs.available": "99%" },
        "evictionPressureTransitionPeriod": "0s",
        "crashLoopBackOff": { "maxContainerRestartPeriod": "1s" },
    }));
    node.start();
    node.wait_for_images();
    node.wait_event("memory", |r, m| {
        r == "EvictionThresholdMet" && m.starts_with("Attempting to reclaim memory (memory.available")
    });
    node.wait_event("disk", |r, m| r == "EvictionThresholdMet" && m.contains("ephemeral-storage (nodefs.available"));
    eventually("DiskPressure", secs(5), || condition(&node, "DiskPressure") == "True KubeletHasDiskPressure");
    assert_eq!(condition(&node, "MemoryPressure"), "True KubeletHasInsufficientMemory");
    assert_eq!(condition(&node, "PIDPressure"), "False KubeletHasSufficientPID");
    // Static pods are critical: they start, and stay.
    let calm = node.run(&resting("calm"));
    node.apply("ending.yaml", pod("ending", "head -c 1m /dev/zero > /layer; exit 3"));
    let ending = node.wait_pod("ending", "two restarts", |p| p.restarts("main") >= 2);
    let runs = node.dir.join("root/pods").join(ending.uid()).join("containers/main");
    eventually("what is left of earlier runs goes", secs(10), || {
        let layers = fs::read_dir(&runs).expect("runs").flatten().filter(|e| e.path().is_dir());
        layers.count() == 1
    });
    assert_eq!(node.wait_up("calm").id("main"), calm.id("main"));

    // Enough again.
    node.reconfigure(json!({ "evictionHard": { "memory.available": "1Mi" }, "maxPods": 1 }));
    node.restart();
    eventually("no pressure", secs(15), || condition(&node, "DiskPressure") == "False KubeletHasNoDiskPressure");
    // More pods run than the node takes now: they stay, and none is added.
    node.apply("more.yaml", resting("more"));
    let more = node.wait_pod("more", "refused", |p| p.phase() == "Failed");
    let message = more.0["status"]["message"].as_str().unwrap_or_default();
    assert!(message.ends_with("pods, requested: 1, used: 2, capacity: 1"), "{message}");
    assert_eq!(node.wait_up("calm").id("main"), calm.id("main"));
    assert!(node.pod("ending").is_some_and(|p| p.phase() == "Running"));
    node.finish();
}

#[test]
fn an_eviction_goes_on_without_the_agent() {
    let mut node = Node::up();
    // Does not listen to SIGTERM: there is time for the agent to be killed in the middle.
    let script = "trap '' TERM; mkdir /share/once && head -c 3m /dev/zero > /data/big; while :; do sleep 1; done";
    let mut manifest = pod("full", script);
    manifest["spec"]["volumes"] = json!([
        { "name": "share", "hostPath": { "path": node.dir.join("share") } },
        { "name": "data", "emptyDir": { "sizeLimit": "1Mi" } },
    ]);
    manifest["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "share", "mountPath": "/share" }, { "name": "data", "mountPath": "/data" }]);
    node.apply("full.yaml", &manifest);
    let full = node.wait_up("full");
    let pid = node.init_pid(&full.id("main"));
    node.wait_pod("full", "on its way out", |p| p.0["metadata"]["deletionTimestamp"].is_string());
    node.kill9();
    node.start();
    let stays = |p: &PodView| p.up() && p.0["metadata"]["deletionTimestamp"].is_null();
    let again = node.wait_pod("full", "started anew", stays);
    assert_eq!((again.uid(), again.restarts("main")), (full.uid(), 0));
    assert_ne!(node.init_pid(&again.id("main")), pid);
    assert_eq!(node.sh("full", "ls /data"), "", "its volume is a new one");

    // An edit is another pod: it does not pay for the one that had to leave.
    node.sh("full", "head -c 3m /dev/zero > /data/big");
    node.wait_pod("full", "on its way out", |p| p.0["metadata"]["deletionTimestamp"].is_string());
    manifest["metadata"]["labels"] = json!({ "edited": "yes" });
    node.apply("full.yaml", &manifest);
    let begin = std::time::Instant::now();
    node.wait_pod("full", "the edited one", |p| p.up() && p.uid() != full.uid());
    assert!(begin.elapsed() < secs(9), "{:?}", begin.elapsed());

    // One that is to go does not come back for having been evicted.
    node.sh("full", "head -c 3m /dev/zero > /data/big");
    node.wait_pod("full", "on its way out", |p| p.0["metadata"]["deletionTimestamp"].is_string());
    node.remove("full.yaml");
    node.wait_gone("full");
    node.finish();
}
