//! What pods may use and what they take from each other: cgroup settings, admission, eviction.

use crate::harness::{BUSYBOX, Node, PodView, REST, eventually, free_port, hierarchies, pod, resting, secs};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The content of a setting of a cgroup below the node's, under its v1 or its v2 name, whichever this machine has.
pub fn setting(node: &Node, group: &str, v1: &str, v2: &str) -> String {
    let below = format!("{}/{group}", node.cgroup_root.trim_start_matches('/'));
    let found = hierarchies()
        .into_iter()
        .find_map(|mount| [v1, v2].iter().find_map(|file| fs::read_to_string(mount.join(&below).join(file)).ok()));
    found.unwrap_or_else(|| panic!("no {v1} or {v2} in {group}")).trim().to_owned()
}

pub fn unified() -> bool {
    !hierarchies().iter().any(|mount| mount.join("cpu.shares").exists())
}

/// As the kernel shows it: shares of v1, or the kubelet's weight of them.
pub fn shares(shares: u64) -> String {
    if unified() { (1 + (shares - 2) * 9999 / 262_142).to_string() } else { shares.to_string() }
}

pub fn cpu(node: &Node, group: &str) -> String {
    setting(node, group, "cpu.shares", "cpu.weight")
}

pub fn memory(node: &Node, group: &str) -> String {
    setting(node, group, "memory.limit_in_bytes", "memory.max")
}

/// Quota and period.
pub fn quota(node: &Node, group: &str) -> String {
    if unified() {
        return setting(node, group, "", "cpu.max");
    }
    let both = ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|file| setting(node, group, file, file));
    both.join(" ").replace("-1 ", "max ")
}

pub fn with(name: &str, resources: Value) -> Value {
    let mut manifest = resting(name);
    manifest["spec"]["containers"][0]["resources"] = resources;
    manifest
}

/// The lowest `oom_score_adj` that a child of this process can be given.
pub fn lowest_oom_score_adj() -> i64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let capabilities = status.lines().find_map(|l| l.strip_prefix("CapEff:")).expect("CapEff");
    let sys_resource = u64::from_str_radix(capabilities.trim(), 16).expect("hex") & (1 << 24) != 0;
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("score");
    if sys_resource { -1000 } else { own.trim().parse().expect("number") }
}

#[test]
fn cgroups_say_what_the_manifest_says() {
    let mut node = Node::new();
    node.configure(json!({
        "podPidsLimit": 77,
        "cpuCFSQuotaPeriod": "50ms",
        "kubeReserved": { "cpu": "100m", "memory": "64Mi", "ephemeral-storage": "1Gi" },
        "evictionHard": { "memory.available": "36Mi" },
    }));
    node.start();
    node.wait_for_images();
    let amounts = |cpu: &str, memory: &str| json!({ "cpu": cpu, "memory": memory });
    let guaranteed = node.run(&with("sure", json!({ "limits": amounts("100m", "32Mi") })));
    let burstable = node.run(&with("some", json!({ "requests": amounts("250m", "16Mi") })));
    let free = node.run(&resting("free"));
    let mut manifest = resting("whole");
    manifest["spec"]["resources"] = json!({ "requests": { "cpu": "150m" }, "limits": amounts("200m", "64Mi") });
    let whole = node.run(&manifest);
    let of = |pod: &PodView| match pod.0["status"]["qosClass"].as_str() {
        Some("Burstable") => format!("kubepods/burstable/pod{}", pod.uid()),
        Some("BestEffort") => format!("kubepods/besteffort/pod{}", pod.uid()),
        _ => format!("kubepods/pod{}", pod.uid()),
    };
    let mut critical = with("critical", json!({ "requests": amounts("10m", "16Mi") }));
    critical["spec"]["priorityClassName"] = json!("system-node-critical");
    let critical = node.run(&critical);
    let no_limit = |text: String| text == "max" || text.parse::<u64>().is_ok_and(|n| n > 1 << 60);

    let group = of(&guaranteed);
    assert_eq!(guaranteed.0["status"]["qosClass"], "Guaranteed");
    assert_eq!((cpu(&node, &group), quota(&node, &group)), (shares(102), "5000 50000".to_owned()));
    assert_eq!(memory(&node, &group), (32 << 20).to_string());
    assert_eq!(setting(&node, &group, "pids.max", "pids.max"), "77");
    let own = format!("{group}/{}", guaranteed.id("main"));
    assert_eq!(memory(&node, &own), (32 << 20).to_string());
    assert_eq!(quota(&node, &own), "5000 50000");

    let group = of(&burstable);
    assert_eq!(cpu(&node, &group), shares(256));
    assert!(quota(&node, &group).starts_with("max ") && no_limit(memory(&node, &group)));

    let group = of(&free);
    assert_eq!((cpu(&node, &group), cpu(&node, "kubepods/besteffort")), (shares(2), shares(2)));
    assert!(no_limit(memory(&node, &group)));

    let group = of(&whole);
    assert_eq!(whole.0["status"]["qosClass"], "Burstable");
    assert_eq!((cpu(&node, &group), quota(&node, &group)), (shares(153), "10000 50000".to_owned()));
    assert_eq!(memory(&node, &group), (64 << 20).to_string());
    // A container without a limit inherits the pod's.
    assert_eq!(memory(&node, &format!("{group}/{}", whole.id("main"))), (64 << 20).to_string());

    // How dear a container is to the kernel when memory runs out; nothing below our own value without CAP_SYS_RESOURCE.
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let held = status.lines().find_map(|l| l.strip_prefix("CapEff:\t")).expect("capabilities").to_owned();
    let own: i64 = fs::read_to_string("/proc/self/oom_score_adj").expect("own").trim().parse().expect("a number");
    let least = if u64::from_str_radix(&held, 16).expect("bits") & 1 << 24 == 0 { own } else { -1000 };
    let memory_total = {
        let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).expect("MemTotal").to_owned();
        line.trim().trim_end_matches(" kB").parse::<i64>().expect("kB") * 1024
    };
    let small = (1000 - 1000 * (16 << 20) / memory_total).clamp(3, 999);
    for (pod, wanted) in [(&guaranteed, -997), (&critical, -997), (&free, 1000), (&burstable, small)] {
        let pid = node.init_pid(&pod.id("main"));
        let adj = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("score");
        assert_eq!(adj.trim().parse::<i64>().expect("a number"), wanted.max(least), "{}", pod.name());
    }
    node.remove("critical.yaml");
    node.wait_gone("critical");

    // 250m and 150m.
    eventually("the share of Burstable pods", secs(15), || cpu(&node, "kubepods/burstable") == shares(409));
    node.remove("some.yaml");
    node.wait_gone("some");
    eventually("the share of the one that is left", secs(15), || cpu(&node, "kubepods/burstable") == shares(153));

    let list: Value = serde_json::from_str(&node.cli(&["get", "nodes", "-o", "json"]).ok()).expect("nodes");
    let status = list["items"][0]["status"].as_object().or(list["status"].as_object()).expect("a node").clone();
    let kib = |list: &str| {
        let text = status[list]["memory"].as_str().expect("memory");
        text.trim_end_matches("Ki").parse::<u64>().expect("Ki")
    };
    assert_eq!(kib("capacity") - kib("allocatable"), (64 + 36) * 1024);
    assert_eq!(memory(&node, "kubepods").parse::<u64>().expect("bytes") >> 12, (kib("capacity") - 64 * 1024) / 4);
    let cores = status["capacity"]["cpu"].as_str().and_then(|n| n.parse::<u64>().ok()).expect("cores");
    assert_eq!(cpu(&node, "kubepods"), shares((cores * 1000 - 100) * 1024 / 1000));
    assert_eq!(status["allocatable"]["cpu"], format!("{}m", cores * 1000 - 100));
    assert!(status["allocatable"]["ephemeral-storage"].is_string());
    for condition in ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"] {
        let all = status["conditions"].as_array().expect("conditions");
        assert!(all.iter().any(|c| c["type"] == condition), "{condition}");
    }

    // Who is killed first when the machine runs out of memory, as far as this process may say so.
    let least = lowest_oom_score_adj();
    let score = |pod: &PodView| {
        let pid = node.init_pid(&pod.id("main"));
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("score");
        text.trim().parse::<i64>().expect("number")
    };
    assert_eq!((score(&guaranteed), score(&free)), ((-997).max(least), 1000));
    // It requests nothing for memory but has the pod's limit, of which there is much more on the machine.
    assert!((least.max(3)..1000).contains(&score(&whole)), "{}", score(&whole));

    // Another configuration counts for the groups that are there already.
    node.reconfigure(json!({ "kubeReserved": { "cpu": "200m", "memory": "128Mi" } }));
    node.restart();
    eventually("other reserves", secs(10), || {
        memory(&node, "kubepods").parse::<u64>().is_ok_and(|n| n >> 12 == (kib("capacity") - 128 * 1024) / 4)
            && cpu(&node, "kubepods") == shares((cores * 1000 - 200) * 1024 / 1000)
    });
    node.reconfigure(json!({ "enforceNodeAllocatable": ["none"] }));
    node.restart();
    eventually("no limit", secs(10), || no_limit(memory(&node, "kubepods")));
    assert_eq!(node.wait_up("sure").id("main"), guaranteed.id("main"));
    node.finish();
}

#[test]
fn what_does_not_fit_is_refused_in_the_kubelet_s_words_and_taken_once_there_is_room() {
    let mut node = Node::new();
    node.configure(json!({ "maxPods": 2 }));
    node.args.push("--node-labels=site=north".to_owned());
    node.start();
    node.wait_for_images();
    let refused = |name: &str, reason: &str| {
        let seen = node.wait_pod(name, "refused", |p| p.0["status"]["reason"] == reason);
        assert_eq!(seen.phase(), "Failed");
        node.wait_event(reason, |r, m| r == reason && m.starts_with("Pod was rejected: "));
        seen.0["status"]["message"].as_str().unwrap_or_default().to_owned()
    };
    node.apply("big.yaml", with("big", json!({ "requests": { "cpu": "4096" } })));
    let message = refused("big", "OutOfcpu");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(
        message,
        format!(
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 4096000, used: 0, capacity: {}",
            cores * 1000
        )
    );
    // More huge pages than any machine has.
    let pages = json!({ "limits": { "hugepages-2Mi": "64Ti", "memory": "16Mi", "cpu": "10m" } });
    node.apply("pages.yaml", with("pages", pages));
    let message = refused("pages", "OutOfhugepages-2Mi");
    assert!(message.contains(&format!("resource: hugepages-2Mi, requested: {}", 64_u64 << 40)), "{message}");
    // Required affinity counts as the selector does.
    let term = |kind: &str, key: &str, value: &str| {
        let wanted = json!({ "key": key, "operator": "In", "values": [value] });
        json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ kind: [wanted] }] } } })
    };
    for (name, affinity) in [
        ("label", term("matchExpressions", "site", "south")),
        ("field", term("matchFields", "metadata.name", "another")),
    ] {
        let mut manifest = resting(name);
        manifest["spec"]["affinity"] = affinity;
        node.apply(&format!("{name}.yaml"), &manifest);
        refused(name, "NodeAffinity");
        node.remove(&format!("{name}.yaml"));
    }
    let mut away = resting("away");
    away["spec"]["nodeSelector"] = json!({ "site": "south" });
    node.apply("away.yaml", &away);
    let message = refused("away", "NodeAffinity");
    assert_eq!(
        message,
        "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
    );
    // An edit of a refused pod is a new question.
    away["spec"]["nodeSelector"] = json!({ "site": "north" });
    away["spec"]["affinity"] = term("matchFields", "metadata.name", &node.name);
    away["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 80, "hostPort": free_port() }]);
    node.apply("away.yaml", &away);
    let first = node.wait_up("away");

    let mut clash = resting("clash");
    clash["spec"]["containers"][0]["ports"] = away["spec"]["containers"][0]["ports"].clone();
    node.apply("clash.yaml", &clash);
    let message = refused("clash", "NodePorts");
    assert_eq!(
        message,
        "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    );
    node.run(&resting("second"));
    node.apply("third.yaml", resting("third"));
    let message = refused("third", "OutOfpods");
    assert!(message.ends_with("resource: pods, requested: 1, used: 2, capacity: 2"), "{message}");

    // An edit that does not fit leaves the pod that runs alone.
    let mut greedy = away.clone();
    greedy["spec"]["containers"][0]["resources"] = json!({ "requests": { "memory": "1Ei" } });
    node.apply("away.yaml", &greedy);
    node.wait_event("the refused edit", |r, m| {
        r == "OutOfmemory" && m.ends_with("the pod that it would replace keeps running")
    });
    assert_eq!(node.wait_up("away").id("main"), first.id("main"));
    // Nor does a restart of the agent refuse what runs.
    node.restart();
    assert_eq!(node.wait_up("away").id("main"), first.id("main"));
    assert_eq!(node.wait_pod("third", "refused", |p| p.phase() == "Failed").0["status"]["reason"], "OutOfpods");
    // Room for one: the first in order gets it.
    node.remove("away.yaml");
    node.wait_up("clash");
    assert_eq!(node.pod("third").map(|p| p.phase().to_owned()).as_deref(), Some("Failed"));
    node.remove("third.yaml");
    node.wait_gone("third");
    node.finish();
}

#[test]
fn a_pod_above_its_storage_limit_leaves_and_starts_again_empty() {
    let node = Node::up();
    let script = format!("if mkdir /share/once; then dd if=/dev/zero of=/data/big bs=1M count=3; fi; {REST}");
    let mut manifest = pod("full", &script);
    manifest["spec"]["volumes"] = json!([
        { "name": "share", "hostPath": { "path": node.dir.join("share") } },
        { "name": "data", "emptyDir": { "sizeLimit": "1Mi" } },
    ]);
    manifest["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "share", "mountPath": "/share" }, { "name": "data", "mountPath": "/data" }]);
    // The same for what a container writes to its own layer.
    let mut layer = pod("layer", &format!("dd if=/dev/zero of=/big bs=1M count=3; {REST}"));
    layer["spec"]["containers"][0]["resources"] = json!({ "limits": { "ephemeral-storage": "1Mi" } });
    node.apply("full.yaml", &manifest);
    node.apply("layer.yaml", &layer);
    let first = node.wait_pod("layer", "runs", |p| p.running("main")).id("main");
    node.wait_event("the eviction", |reason, message| {
        reason == "Evicted" && message == "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "
    });
    node.wait_event("the eviction", |reason, message| {
        reason == "Evicted"
            && message == "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "
    });
    let seen = node.wait_pod("full", "held back", |p| p.phase() == "Pending" && p.0["status"]["reason"] == "Evicted");
    assert!(seen.container("main")["containerID"].is_null(), "nothing is left of the pod");
    let again = node.wait_up("full");
    assert_eq!(again.uid(), seen.uid());
    assert_eq!(node.sh("full", "ls /data"), "", "its volume is a new one");
    let layer = node.wait_pod("layer", "runs again", |p| p.running("main") && p.id("main") != first);
    assert_eq!(layer.restarts("main"), 0, "it is the first run of a pod that began anew, and has an ID of its own");
    node.finish();
}

#[test]
fn a_container_above_its_memory_limit_is_oom_killed() {
    let node = Node::up();
    let mut manifest = pod("hog", "dd if=/dev/zero of=/dev/null bs=128M count=1");
    manifest["spec"]["restartPolicy"] = json!("Never");
    manifest["spec"]["containers"][0]["resources"] = json!({ "limits": { "memory": "16Mi" } });
    // Its neighbour is not touched.
    let calm = json!({ "name": "calm", "image": BUSYBOX, "command": ["sh", "-c", "sleep 3"] });
    manifest["spec"]["containers"].as_array_mut().expect("containers").push(calm);
    let seen = node.run_to_end(&manifest);
    assert_eq!(seen.terminated("main")["reason"], "OOMKilled");
    assert_eq!(seen.terminated("calm")["exitCode"], 0);
    if Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists() {
        let _ = node.wait_event("the event", |reason, _| reason == "OOMKilled");
    }
    node.finish();
}
