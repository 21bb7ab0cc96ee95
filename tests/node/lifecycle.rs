//! A pod from its manifest to its end: running, restarting, stopping, and what a container finds inside.

use crate::harness::{BUSYBOX, Node, PATIENCE, REST, eventually, http, page, pod, resting, secs, signal};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::Instant;

/// The node's shared folder as a hostPath volume at `/share`.
fn share(node: &Node, manifest: &mut Value) {
    manifest["spec"]["volumes"] = json!([{ "name": "share", "hostPath": { "path": node.dir.join("share") } }]);
    for container in manifest["spec"]["containers"].as_array_mut().expect("containers") {
        container["volumeMounts"] = json!([{ "name": "share", "mountPath": "/share" }]);
    }
}

fn shared(node: &Node, file: &str) -> String {
    fs::read_to_string(node.dir.join("share").join(file)).unwrap_or_default()
}

#[test]
fn a_dropped_manifest_runs_and_its_output_is_readable() {
    let node = Node::up();
    let seen = node.run(&pod("web", &format!("echo to-stdout; echo to-stderr >&2; {REST}")));
    assert_eq!(seen.name(), format!("web-{}", node.name));
    assert_eq!(seen.0["metadata"]["namespace"], "default");
    assert_eq!(seen.0["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
    assert_eq!(seen.0["metadata"]["annotations"]["kubernetes.io/config.hash"], seen.uid());
    assert_eq!(seen.0["spec"]["nodeName"], node.name.as_str());
    for condition in ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        assert_eq!(seen.condition(condition), "True", "{condition}");
    }
    assert_eq!(seen.container("main")["ready"], true);
    assert_eq!(seen.container("main")["started"], true);
    assert_eq!(seen.restarts("main"), 0);
    assert!(!seen.0["status"]["hostIP"].as_str().unwrap_or_default().is_empty(), "hostIP is known without a cluster");
    assert!(!seen.0["status"]["startTime"].is_null());
    eventually("both streams are in the log", PATIENCE, || {
        let text = node.cli(&["logs", "web"]).ok();
        text.contains("to-stdout") && text.contains("to-stderr")
    });
    node.finish();
}

#[test]
fn a_removed_manifest_stops_the_pod_and_frees_all_it_had() {
    let node = Node::up();
    let seen = node.run(&resting("web"));
    let pid = node.init_pid(&seen.id("main"));
    node.remove("web.yaml");
    node.wait_gone("web");
    eventually("its process is gone", secs(5), || !crate::harness::alive(pid));
    eventually("nothing is left of it", secs(5), || {
        node.leaks().iter().all(|l| l.starts_with("process") && l.contains("agent"))
    });
    node.finish();
}

#[test]
fn an_edit_replaces_the_pod_without_an_overlap() {
    let node = Node::up();
    let version = |v: u32| {
        let script = format!(
            "echo start{v} >> /share/order; trap 'sleep 1; echo stop{v} >> /share/order; exit 0' TERM; \
             while :; do sleep 3600 & wait $!; done"
        );
        let mut manifest = pod("web", &script);
        manifest["spec"]["terminationGracePeriodSeconds"] = json!(20);
        share(&node, &mut manifest);
        manifest
    };
    let old = node.run(&version(1));
    eventually("the old one runs", PATIENCE, || shared(&node, "order").contains("start1"));
    node.apply("web.yaml", version(2));
    let new = node.wait_pod("web", "replaced", |p| p.uid() != old.uid() && p.up());
    eventually("the new one runs", PATIENCE, || shared(&node, "order").contains("start2"));
    assert_eq!(shared(&node, "order"), "start1\nstop1\nstart2\n");
    assert_eq!(new.restarts("main"), 0, "a new pod counts from zero");
    assert_eq!(node.pods().len(), 1);
    node.finish();
}

#[test]
fn two_quick_edits_end_with_the_last_one() {
    let node = Node::up();
    node.run(&pod("web", &format!("echo v0; {REST}")));
    for v in 1..=5 {
        node.apply("web.yaml", pod("web", &format!("echo v{v}; {REST}")));
        sleep(std::time::Duration::from_millis(40));
    }
    eventually("the last edit runs", PATIENCE, || {
        let out = node.cli(&["logs", "web"]);
        out.code == Some(0) && out.stdout.trim() == "v5"
    });
    assert_eq!(node.pods().len(), 1);
    assert_eq!(node.shims().len(), 1, "one shim for one pod: {:?}", node.own_processes());
    node.finish();
}

#[test]
fn always_restarts_also_after_success() {
    let node = Node::up();
    node.apply("web.yaml", pod("web", "echo run; exit 0"));
    let seen = node.wait_pod("web", "backing off", |p| p.waiting("main") == "CrashLoopBackOff");
    assert_eq!(seen.phase(), "Running");
    assert_eq!(seen.last("main")["exitCode"], 0);
    assert_eq!(seen.last("main")["reason"], "Completed");
    assert_eq!(seen.restarts("main"), 1, "the first restart is immediate, the second waits");
    let message = seen.waiting_message("main");
    assert!(message.contains("back-off 10s restarting failed container=main pod=web-"), "{message}");
    assert_eq!(seen.condition("Ready"), "False");
    node.finish();
}

#[test]
fn on_failure_restarts_until_it_succeeds() {
    let node = Node::up();
    let mut manifest = pod("job", "if [ -e /share/tried ]; then exit 0; fi; touch /share/tried; exit 3");
    manifest["spec"]["restartPolicy"] = json!("OnFailure");
    share(&node, &mut manifest);
    let seen = node.run_to_end(&manifest);
    assert_eq!(seen.phase(), "Succeeded");
    assert_eq!(seen.restarts("main"), 1);
    assert_eq!(seen.terminated("main")["exitCode"], 0);
    assert_eq!(seen.last("main")["exitCode"], 3);
    assert_eq!(seen.last("main")["reason"], "Error");
    node.finish();
}

#[test]
fn never_keeps_the_first_result() {
    let node = Node::up();
    for (name, code, phase, reason) in [("good", 0, "Succeeded", "Completed"), ("bad", 7, "Failed", "Error")] {
        let mut manifest = pod(name, &format!("echo bye; exit {code}"));
        manifest["spec"]["restartPolicy"] = json!("Never");
        let seen = node.run_to_end(&manifest);
        assert_eq!(seen.phase(), phase);
        assert_eq!(seen.terminated("main")["exitCode"], code);
        assert_eq!(seen.terminated("main")["reason"], reason);
        assert_eq!(seen.restarts("main"), 0);
        assert_eq!(node.cli(&["logs", name]).ok().trim(), "bye", "a finished pod keeps its log");
    }
    node.finish();
}

#[test]
fn the_pod_ends_with_its_last_container() {
    let node = Node::up();
    let mut manifest = pod("pair", "exit 4");
    manifest["spec"]["restartPolicy"] = json!("Never");
    let other = json!({ "name": "slow", "image": BUSYBOX, "command": ["sh", "-c", "sleep 2; exit 0"] });
    manifest["spec"]["containers"].as_array_mut().expect("containers").push(other);
    node.apply("pair.yaml", &manifest);
    node.wait_pod("pair", "one ended, one runs", |p| {
        p.terminated("main")["exitCode"] == 4 && p.running("slow") && p.phase() == "Running"
    });
    let seen = node.wait_pod("pair", "ended", |p| p.phase() == "Failed");
    assert_eq!(seen.terminated("slow")["exitCode"], 0);
    node.finish();
}

#[test]
fn the_crash_back_off_is_none_then_ten_then_twenty_seconds() {
    let node = Node::up();
    let mut manifest = pod("crash", "cut -d' ' -f1 /proc/uptime >> /share/starts; exit 1");
    share(&node, &mut manifest);
    node.apply("crash.yaml", &manifest);
    let starts = || -> Vec<f64> { shared(&node, "starts").lines().filter_map(|l| l.parse().ok()).collect() };
    eventually("four runs", secs(60), || starts().len() >= 4);
    let at = starts();
    let gaps: Vec<f64> = at.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps[0] < 2.0, "first restart is immediate: {gaps:?}");
    assert!((9.8..12.5).contains(&gaps[1]), "then 10 s: {gaps:?}");
    assert!((19.8..22.5).contains(&gaps[2]), "then 20 s: {gaps:?}");
    let seen = node.wait_pod("crash", "backing off", |p| p.waiting("main") == "CrashLoopBackOff");
    assert_eq!(seen.restarts("main"), 3);
    assert!(seen.waiting_message("main").contains("back-off 40s"), "{}", seen.waiting_message("main"));
    assert_eq!(seen.last("main")["exitCode"], 1);
    node.wait_event("the back-off", |reason, message| {
        reason == "BackOff" && message.contains("restarting failed container")
    });
    node.finish();
}

#[test]
fn sigterm_comes_first_and_the_grace_is_waited_for() {
    let node = Node::up();
    let mut manifest = pod(
        "web",
        "trap 'echo term >> /share/end; sleep 2; echo done >> /share/end; exit 0' TERM; touch /share/up; while :; do sleep 3600 & wait $!; done",
    );
    manifest["spec"]["terminationGracePeriodSeconds"] = json!(20);
    share(&node, &mut manifest);
    node.run(&manifest);
    eventually("the trap is set", PATIENCE, || node.dir.join("share/up").exists());
    let begin = Instant::now();
    node.remove("web.yaml");
    node.wait_gone("web");
    assert_eq!(shared(&node, "end"), "term\ndone\n");
    let took = begin.elapsed();
    assert!(took >= secs(2) && took < secs(10), "the pod goes when its container ended, not at the deadline: {took:?}");
    node.finish();
}

#[test]
fn sigkill_ends_what_ignores_sigterm_after_the_grace() {
    let node = Node::up();
    let mut manifest = pod("stubborn", "trap '' TERM; while :; do sleep 1; done");
    manifest["spec"]["terminationGracePeriodSeconds"] = json!(3);
    node.run(&manifest);
    let begin = Instant::now();
    node.remove("stubborn.yaml");
    node.wait_gone("stubborn");
    let took = begin.elapsed();
    assert!(took >= secs(3) && took < secs(8), "{took:?}");
    node.finish();
}

#[test]
fn the_image_names_the_stop_signal() {
    let node = Node::up();
    let mut manifest = pod(
        "web",
        "trap 'echo usr1 >> /share/end; exit 0' USR1; trap 'echo term >> /share/end' TERM; touch /share/up; while :; do sleep 3600 & wait $!; done",
    );
    manifest["spec"]["containers"][0]["image"] = json!("stop-usr1:1");
    manifest["spec"]["terminationGracePeriodSeconds"] = json!(10);
    share(&node, &mut manifest);
    node.run(&manifest);
    eventually("the traps are set", PATIENCE, || node.dir.join("share/up").exists());
    node.remove("web.yaml");
    node.wait_gone("web");
    assert_eq!(shared(&node, "end"), "usr1\n");
    node.finish();
}

#[test]
fn a_container_killed_from_outside_is_restarted_with_its_signal_told() {
    let node = Node::up();
    let seen = node.run(&resting("web"));
    signal(node.init_pid(&seen.id("main")), Signal::KILL);
    let seen = node.wait_pod("web", "restarted", |p| p.restarts("main") == 1 && p.up());
    assert_eq!(seen.last("main")["exitCode"], 137);
    assert_eq!(seen.last("main")["reason"], "Error", "killed, but not for memory");
    node.finish();
}

#[test]
fn a_container_out_of_memory_says_so() {
    let node = Node::up();
    let mut manifest = pod("hog", "exec tail /dev/zero");
    manifest["spec"]["restartPolicy"] = json!("Never");
    manifest["spec"]["containers"][0]["resources"] = json!({ "limits": { "memory": "32Mi" } });
    let seen = node.run_to_end(&manifest);
    assert_eq!(seen.phase(), "Failed");
    assert_eq!(seen.terminated("main")["reason"], "OOMKilled");
    assert_eq!(seen.terminated("main")["exitCode"], 137);
    node.finish();
}

#[test]
fn limits_reach_the_kernel() {
    let mut node = Node::new();
    node.configure(json!({ "podPidsLimit": 77 }));
    node.start();
    node.wait_for_images();
    let mut manifest = resting("web");
    manifest["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "cpu": "250m" }, "limits": { "cpu": "500m", "memory": "64Mi" } });
    let seen = node.run(&manifest);
    assert_eq!(seen.0["status"]["qosClass"], "Burstable");
    let read = |v2: &str, v1: &str| -> String {
        let dir = node.container_cgroup(&seen.id("main"), v2).map(|d| d.join(v2));
        let path = dir.or_else(|| node.container_cgroup(&seen.id("main"), v1).map(|d| d.join(v1)));
        let path = path.unwrap_or_else(|| panic!("neither {v2} nor {v1} in the container's cgroup"));
        let inside = path.display().to_string();
        assert!(inside.contains(&format!("{}/kubepods/burstable/pod{}/", node.cgroup_root, seen.uid())), "{inside}");
        fs::read_to_string(path).expect("a limit").trim().to_owned()
    };
    assert_eq!(read("memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
    let cpu = read("cpu.max", "cpu.cfs_quota_us");
    assert!(cpu == "50000 100000" || cpu == "50000", "{cpu}");
    let shares = read("cpu.weight", "cpu.shares");
    assert!(["10", "256", "40", "35"].contains(&shares.as_str()), "{shares}");
    let pids = node.container_cgroup(&seen.id("main"), "pids.max").expect("pids cgroup");
    let pod_pids = fs::read_to_string(pids.parent().expect("pod cgroup").join("pids.max")).expect("pids.max");
    assert_eq!(pod_pids.trim(), "77");
    node.finish();
}

#[test]
fn containers_of_a_pod_share_network_and_hostname_but_not_processes() {
    let node = Node::up();
    let mut manifest =
        pod("pair", &format!("mkdir /tmp/w; echo hello > /tmp/w/i; httpd -p 127.0.0.1:8000 -h /tmp/w; {REST}"));
    let other = json!({ "name": "other", "image": BUSYBOX, "command": ["sh", "-c", REST] });
    manifest["spec"]["containers"].as_array_mut().expect("containers").push(other);
    node.run(&manifest);
    let in_other = |script: &str| node.cli(&["exec", "pair", "-c", "other", "--", "sh", "-c", script]);
    eventually("localhost is shared", PATIENCE, || in_other("wget -qO- http://127.0.0.1:8000/i").stdout == "hello\n");
    assert_eq!(in_other("hostname").ok().trim(), format!("pair-{}", node.name));
    let processes = in_other("ps | grep -c '[h]ttpd -p'; true").ok();
    assert_eq!(processes.trim(), "0", "PID namespaces are per container");
    node.finish();
}

#[test]
fn empty_dirs_are_shared_and_survive_a_container_restart() {
    let node = Node::up();
    let mut manifest = pod("web", &format!("echo run >> /data/log; {REST}"));
    manifest["spec"]["volumes"] = json!([
        { "name": "data", "emptyDir": {} },
        { "name": "fast", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } },
    ]);
    let mounts = json!([{ "name": "data", "mountPath": "/data" }, { "name": "fast", "mountPath": "/fast" }]);
    manifest["spec"]["containers"][0]["volumeMounts"] = mounts;
    let other = json!({
        "name": "reader", "image": BUSYBOX, "command": ["sh", "-c", REST],
        "volumeMounts": [{ "name": "data", "mountPath": "/in", "readOnly": true }],
    });
    manifest["spec"]["containers"].as_array_mut().expect("containers").push(other);
    let seen = node.run(&manifest);
    let reader = |script: &str| node.cli(&["exec", "web", "-c", "reader", "--", "sh", "-c", script]);
    eventually("the reader sees it", PATIENCE, || reader("cat /in/log").stdout == "run\n");
    assert_ne!(reader("touch /in/x").code, Some(0), "a read-only mount is read-only");
    let main = |script: &str| node.cli(&["exec", "web", "-c", "main", "--", "sh", "-c", script]);
    assert_eq!(main("stat -c %a /data").ok().trim(), "777");
    let fast = main("grep ' /fast ' /proc/mounts").ok();
    assert!(fast.contains("tmpfs") && (fast.contains("size=8192k") || fast.contains("size=8m")), "{fast}");
    signal(node.init_pid(&seen.id("main")), Signal::KILL);
    node.wait_pod("web", "restarted", |p| p.restarts("main") == 1 && p.up());
    eventually("both runs wrote", PATIENCE, || reader("cat /in/log").stdout == "run\nrun\n");
    node.finish();
}

#[test]
fn the_writable_layer_starts_afresh_with_each_run() {
    let node = Node::up();
    let seen = node.run(&resting("web"));
    node.sh("web", "echo mine > /home/file; rm /etc/group; cat /home/file");
    signal(node.init_pid(&seen.id("main")), Signal::KILL);
    node.wait_pod("web", "restarted", |p| p.restarts("main") == 1 && p.up());
    assert_eq!(node.sh("web", "ls /home/file /etc/group 2>/dev/null; true"), "/etc/group");
    node.finish();
}

#[test]
fn host_paths_are_checked_by_type() {
    let node = Node::up();
    let d = node.dir.join("share");
    fs::write(d.join("file"), "content").expect("file");
    let manifest = |name: &str, path: &str, kind: &str| {
        let mut m = resting(name);
        m["spec"]["volumes"] = json!([{ "name": "v", "hostPath": { "path": d.join(path), "type": kind } }]);
        m["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
        m
    };
    for (n, path, kind, text) in [
        ("a", "file", "Directory", "is not a directory"),
        ("b", "", "File", "is not a file"),
        ("c", "file", "Socket", "is not a socket file"),
        ("d", "file", "CharDevice", "is not a character device"),
        ("e", "file", "BlockDevice", "is not a block device"),
        ("f", "missing", "Directory", "is not a directory"),
    ] {
        node.apply(&format!("{n}.yaml"), manifest(n, path, kind));
        node.wait_event(text, |reason, message| {
            reason == "FailedMount" && message.contains("hostPath type check failed") && message.contains(text)
        });
        let seen = node.wait_pod(n, "waiting", |p| p.phase() == "Pending");
        assert!(!seen.running("main"), "{n} must not run");
        node.remove(&format!("{n}.yaml"));
    }
    node.run(&manifest("ok", "file", "File"));
    assert_eq!(node.sh("ok", "cat /v"), "content");
    node.run(&manifest("made", "new/deep", "DirectoryOrCreate"));
    assert_eq!(crate::harness::mode(&d.join("new/deep")), 0o755);
    node.run(&manifest("made-file", "new/f", "FileOrCreate"));
    assert_eq!(crate::harness::mode(&d.join("new/f")), 0o644);
    node.finish();
}

#[test]
fn a_volume_that_becomes_possible_lets_the_pod_start() {
    let node = Node::up();
    let path = node.dir.join("share/late");
    let mut m = resting("web");
    m["spec"]["volumes"] = json!([{ "name": "v", "hostPath": { "path": path, "type": "Directory" } }]);
    m["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
    node.apply("web.yaml", &m);
    node.wait_event("refused first", |reason, _| reason == "FailedMount");
    fs::create_dir(&path).expect("folder");
    node.wait_up("web");
    node.finish();
}

#[test]
fn environment_is_expanded_and_knows_the_pod() {
    let node = Node::up();
    let mut m = resting("web");
    m["metadata"]["labels"] = json!({ "app": "shop" });
    let main = &mut m["spec"]["containers"][0];
    main["resources"] = json!({ "limits": { "memory": "64Mi", "cpu": "1500m" } });
    main["args"] = json!(["$(A)", "$$(A)", "$(MISSING)"]);
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    main["env"] = json!([
        { "name": "A", "value": "1" },
        { "name": "B", "value": "$(A)-$(C)-$$(A)" },
        { "name": "C", "value": "3" },
        { "name": "POD", "valueFrom": field("metadata.name") },
        { "name": "NS", "valueFrom": field("metadata.namespace") },
        { "name": "UID_", "valueFrom": field("metadata.uid") },
        { "name": "LABEL", "valueFrom": field("metadata.labels['app']") },
        { "name": "NODE", "valueFrom": field("spec.nodeName") },
        { "name": "IP", "valueFrom": field("status.podIP") },
        { "name": "HOST", "valueFrom": field("status.hostIP") },
        { "name": "MEM", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
        { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } },
        { "name": "OTHER", "valueFrom": { "resourceFieldRef": {
            "containerName": "before", "resource": "requests.memory", "divisor": "1Mi",
        } } },
        { "name": "HOME", "value": "/somewhere" },
    ]);
    m["spec"]["initContainers"] = json!([{
        "name": "before", "image": BUSYBOX, "command": ["true"], "resources": { "requests": { "memory": "8Mi" } },
    }]);
    let seen = node.run(&m);
    let get = |name: &str| node.sh("web", &format!("tr '\\0' '\\n' < /proc/1/environ | sed -n 's/^{name}=//p'"));
    assert_eq!(get("B"), "1-$(C)-$(A)", "only what comes before is known; $$ is a dollar");
    assert_eq!(get("POD"), seen.name());
    assert_eq!(get("NS"), "default");
    assert_eq!(get("UID_"), seen.uid());
    assert_eq!(get("LABEL"), "shop");
    assert_eq!(get("NODE"), node.name);
    assert_eq!(get("IP"), seen.ip());
    assert_eq!(get("HOST"), seen.0["status"]["hostIP"].as_str().unwrap_or_default());
    assert_eq!(get("MEM"), "64");
    assert_eq!(get("CPU"), "2", "rounded up");
    assert_eq!(get("OTHER"), "8", "what another container asks for");
    assert_eq!(get("HOME"), "/somewhere");
    assert_eq!(get("FROM_IMAGE"), "yes");
    assert_eq!(get("HOSTNAME"), seen.name());
    let args = node.sh("web", "tr '\\0' '|' < /proc/1/cmdline");
    assert!(args.ends_with("|1|$(A)|$(MISSING)|"), "{args}");
    node.finish();
}

#[test]
fn command_and_args_override_the_image_as_kubernetes_says() {
    let node = Node::up();
    let run = |name: &str, command: Value, args: Value| {
        let mut m = pod(name, "");
        m["spec"]["restartPolicy"] = json!("Never");
        let main = &mut m["spec"]["containers"][0];
        main["image"] = json!("entry:1");
        main["command"] = command;
        main["args"] = args;
        assert_eq!(node.run_to_end(&m).phase(), "Succeeded");
        node.cli(&["logs", name]).ok().trim_end().to_owned()
    };
    assert_eq!(run("neither", Value::Null, Value::Null), "entry default");
    assert_eq!(run("args", Value::Null, json!(["mine"])), "entry mine");
    assert_eq!(run("command", json!(["echo", "only"]), Value::Null), "only");
    assert_eq!(run("both", json!(["pwd"]), json!(["-P"])), "/home/app", "working directory of the image");
    node.finish();
}

#[test]
fn users_and_groups_are_as_asked() {
    let node = Node::up();
    let with = |name: &str, image: &str, pod_context: Value, context: Value| {
        let mut m = resting(name);
        m["spec"]["securityContext"] = pod_context;
        m["spec"]["containers"][0]["image"] = json!(image);
        m["spec"]["containers"][0]["securityContext"] = context;
        m
    };
    node.run(&with("root", BUSYBOX, json!({}), json!({})));
    assert_eq!(node.sh("root", "id -u; id -g").replace('\n', " "), "0 0");
    node.run(&with("image", "user-1000:1", json!({}), json!({})));
    assert_eq!(node.sh("image", "id -u; id -g").replace('\n', " "), "1000 1000");
    node.run(&with("named", "user-named:1", json!({}), json!({})));
    assert_eq!(node.sh("named", "id -u; id -g").replace('\n', " "), "1234 1234");
    let asked = json!({ "runAsUser": 2000, "runAsGroup": 3000, "supplementalGroups": [4000] });
    node.run(&with("asked", BUSYBOX, asked, json!({ "runAsUser": 2001 })));
    assert_eq!(node.sh("asked", "id -u; id -g").replace('\n', " "), "2001 3000", "the container wins over the pod");
    let groups = node.sh("asked", "grep Groups: /proc/1/status");
    assert!(groups.contains("4000"), "{groups}");
    node.finish();
}

#[test]
fn run_as_non_root_is_enforced_in_the_kubelets_words() {
    let node = Node::up();
    for (name, image, user, text) in [
        ("a", BUSYBOX, Value::Null, "container has runAsNonRoot and image will run as root"),
        ("b", BUSYBOX, json!(0), "container's runAsUser breaks non-root policy"),
        (
            "c",
            "user-named:1",
            Value::Null,
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root",
        ),
    ] {
        let mut m = resting(name);
        m["spec"]["containers"][0]["image"] = json!(image);
        m["spec"]["containers"][0]["securityContext"] = json!({ "runAsNonRoot": true, "runAsUser": user });
        node.apply(&format!("{name}.yaml"), &m);
        let seen = node.wait_pod(name, "refused", |p| p.waiting("main") == "CreateContainerConfigError");
        let message = seen.waiting_message("main");
        assert!(message.contains(text), "{message}");
        assert!(
            message.contains(&format!("(pod: \"{}", seen.name())) && message.contains("container: main)"),
            "{message}"
        );
    }
    let mut m = resting("ok");
    m["spec"]["containers"][0]["image"] = json!("user-1000:1");
    m["spec"]["containers"][0]["securityContext"] = json!({ "runAsNonRoot": true });
    node.run(&m);
    node.finish();
}

#[test]
fn a_container_is_confined_by_default() {
    let node = Node::up();
    node.run(&resting("web"));
    let status = node.sh("web", "cat /proc/1/status");
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(&format!("{name}:"))).unwrap_or_else(|| panic!("{name}"));
        line.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(field("Seccomp"), "2", "RuntimeDefault filter");
    assert_eq!(field("CapEff"), "00000000a80425fb", "the default set of container runtimes");
    assert_eq!(field("CapBnd"), field("CapEff"));
    assert_eq!(field("CapInh"), "0000000000000000");
    assert_eq!(field("CapAmb"), "0000000000000000");
    assert_eq!(field("NoNewPrivs"), "0", "only when asked for");
    let refused = |script: &str| {
        let out = node.cli(&["exec", "web", "--", "sh", "-c", script]);
        assert_ne!(out.code, Some(0), "`{script}` must fail: {}{}", out.stdout, out.stderr);
    };
    let root = node.sh("web", "grep ' / overlay ' /proc/mounts");
    assert!(root.contains("nodev"), "devices of an image must not open: {root}");
    refused("mount -t tmpfs none /home");
    refused("echo 1 > /proc/sys/kernel/sysrq");
    refused("echo 1 > /proc/sysrq-trigger");
    refused("touch /sys/x");
    refused("ip link set lo down");
    refused("mknod /home/mem c 1 1 && head -c1 /home/mem");
    refused("mknod /home/disk b 254 0 && head -c1 /home/disk");
    refused("unshare -m true");
    refused("for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/escape && exit 0; done; exit 1");
    assert_eq!(node.sh("web", "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c"), "0", "masked");
    assert_eq!(node.sh("web", "ls /sys/firmware | wc -l"), "0", "masked");
    assert_eq!(node.sh("web", "ls /dev/mem /dev/kmsg /dev/vda /dev/sda 2>/dev/null | wc -l"), "0");
    assert_eq!(node.sh("web", "for f in null zero full random urandom tty; do [ -c /dev/$f ] || echo $f; done"), "");
    assert_eq!(node.sh("web", "head -c3 /dev/zero | wc -c; echo x > /dev/null"), "3");
    let in_exec = node.sh("web", "grep -E 'Seccomp:|CapEff' /proc/self/status");
    assert!(
        in_exec.contains("Seccomp:\t2") && in_exec.contains("00000000a80425fb"),
        "exec is confined alike: {in_exec}"
    );
    node.finish();
}

#[test]
fn security_contexts_tighten_and_loosen() {
    let node = Node::up();
    let mut m = resting("tight");
    m["spec"]["containers"][0]["securityContext"] = json!({
        "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
        "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
    });
    node.run(&m);
    let status = node.sh("tight", "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/1/status");
    assert_eq!(status.matches("0000000000000400").count(), 2, "{status}");
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    assert_ne!(node.cli(&["exec", "tight", "--", "touch", "/home/x"]).code, Some(0), "the root is read-only");

    let mut m = resting("free");
    m["spec"]["containers"][0]["securityContext"] = json!({ "seccompProfile": { "type": "Unconfined" } });
    node.run(&m);
    assert_eq!(node.sh("free", "grep Seccomp: /proc/1/status"), "Seccomp:\t0");

    let mut m = resting("privileged");
    m["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    node.run(&m);
    let status = node.sh("privileged", "grep -E 'CapEff|Seccomp:' /proc/1/status");
    let ours = fs::read_to_string("/proc/self/status").expect("status");
    let bounding = ours.lines().find_map(|l| l.strip_prefix("CapBnd:\t")).expect("CapBnd");
    assert!(status.contains(bounding), "all of the machine's capabilities ({bounding}): {status}");
    assert!(status.contains("Seccomp:\t0"), "{status}");
    node.sh("privileged", "mount -t tmpfs none /home && umount /home && [ -c /dev/kmsg ]");
    node.finish();
}

#[test]
fn network_files_are_written_for_the_pod() {
    let node = Node::up();
    let mut m = resting("web");
    m["spec"]["dnsPolicy"] = json!("None");
    m["spec"]["dnsConfig"] =
        json!({ "nameservers": ["10.9.8.7"], "searches": ["a.test"], "options": [{ "name": "ndots", "value": "3" }] });
    m["spec"]["hostAliases"] = json!([{ "ip": "10.1.1.1", "hostnames": ["one", "uno"] }]);
    m["spec"]["hostname"] = json!("front");
    let seen = node.run(&m);
    let resolv = node.sh("web", "cat /etc/resolv.conf");
    assert!(resolv.contains("nameserver 10.9.8.7"), "{resolv}");
    assert!(resolv.contains("search a.test") && resolv.contains("options ndots:3"), "{resolv}");
    let hosts = node.sh("web", "cat /etc/hosts");
    assert!(hosts.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{hosts}");
    assert!(hosts.contains(&format!("{}\tfront\n", seen.ip())), "{hosts}");
    assert!(hosts.contains("10.1.1.1\tone\tuno"), "{hosts}");
    assert_eq!(node.sh("web", "hostname; cat /etc/hostname"), "front\nfront");
    node.finish();
}

#[test]
fn a_pod_has_an_address_that_answers_and_a_host_port() {
    let node = Node::up();
    let port = crate::harness::free_port();
    let serve = "mkdir -p /www; echo it works > /www/index.html; exec httpd -f -p 80 -h /www";
    let mut m = pod("static-web", serve);
    m["metadata"]["labels"] = json!({ "role": "myrole" });
    m["spec"]["containers"][0]["ports"] =
        json!([{ "name": "web", "containerPort": 80, "hostPort": port, "protocol": "TCP" }]);
    let seen = node.run(&m);
    let prefix = node.cidr.rsplit_once('.').expect("a network").0;
    assert!(seen.ip().starts_with(prefix), "{} of {}", seen.ip(), node.cidr);
    assert_eq!(seen.0["status"]["podIPs"][0]["ip"], seen.ip());
    assert_eq!(page(&format!("{}:80", seen.ip()), "/"), "it works\n");
    assert_eq!(page(&format!("{prefix}.1:{port}"), "/"), "it works\n", "the node's address on the bridge");
    assert_eq!(page(&format!("127.0.0.1:{port}"), "/"), "it works\n", "loopback of the node");
    // From another pod, on the pod address and through the node.
    node.run(&resting("client"));
    assert_eq!(node.sh("client", &format!("wget -qO- http://{}/", seen.ip())), "it works");
    assert_eq!(node.sh("client", &format!("wget -qO- http://{prefix}.1:{port}/")), "it works");
    assert!(node.sh("client", "ip route").contains(&format!("default via {prefix}.1")));
    node.remove("static-web.yaml");
    node.wait_gone("static-web");
    assert!(http(format!("127.0.0.1:{port}"), "/").is_err(), "the port goes with the pod");
    node.finish();
}

#[test]
fn host_network_is_the_nodes_network() {
    let node = Node::up();
    let port = crate::harness::free_port();
    let serve =
        format!("mkdir -p /tmp/www; echo host > /tmp/www/index.html; exec httpd -f -p 127.0.0.1:{port} -h /tmp/www");
    let mut m = pod("web", &serve);
    m["spec"]["hostNetwork"] = json!(true);
    let seen = node.run(&m);
    assert_eq!(page(&format!("127.0.0.1:{port}"), "/"), "host\n");
    assert_eq!(seen.0["status"]["podIP"], seen.0["status"]["hostIP"], "known without a cluster");
    let ours = fs::read_link("/proc/self/ns/net").expect("namespace").display().to_string();
    assert_eq!(node.sh("web", "readlink /proc/self/ns/net"), ours);
    let hosts = node.sh("web", "cat /etc/hosts");
    assert!(hosts.starts_with("# Kubernetes-managed hosts file (host network).\n"), "{hosts}");
    node.finish();
}

#[test]
fn logs_are_cri_files_with_links() {
    let node = Node::up();
    let script = format!("echo one; echo two >&2; printf partial; head -c 20000 /dev/zero | tr '\\0' x; echo; {REST}");
    let seen = node.run(&pod("web", &script));
    let folder = format!("default_{}_{}", seen.name(), seen.uid());
    let file = node.dir.join("log/pods").join(folder).join("main/0.log");
    eventually("all lines", PATIENCE, || fs::read_to_string(&file).unwrap_or_default().lines().count() >= 4);
    let text = fs::read_to_string(&file).expect("log");
    let mut joined = String::new();
    for line in text.lines() {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        assert!(
            parts[0].parse::<jiff::Timestamp>().is_ok() && parts[0].contains('.'),
            "RFC 3339 with fractions: {line}"
        );
        assert!(["stdout", "stderr"].contains(&parts[1]) && ["F", "P"].contains(&parts[2]), "{line:.60}");
        assert!(parts[3].len() <= 16 << 10, "lines are split at 16 KiB");
        if parts[1] == "stdout" {
            joined.push_str(parts[3]);
            if parts[2] == "F" {
                joined.push('\n');
            }
        }
    }
    assert!(text.contains(" stdout F one\n") && text.contains(" stderr F two\n"), "{text:.200}");
    assert!(joined.contains(&format!("partial{}\n", "x".repeat(20000))), "the long line can be put together");
    let link = node.dir.join(format!("log/containers/{}_default_main-{}.log", seen.name(), seen.id("main")));
    assert_eq!(fs::canonicalize(&link).expect("link"), fs::canonicalize(&file).expect("log"));
    assert_eq!(fs::metadata(file.parent().expect("folder")).expect("folder").uid(), 0);
    node.remove("web.yaml");
    node.wait_gone("web");
    eventually("the link goes with the pod", secs(5), || fs::symlink_metadata(&link).is_err());
    node.finish();
}

#[test]
fn logs_are_rotated_and_limited() {
    let mut node = Node::new();
    node.configure(json!({
        "containerLogMaxSize": "64Ki", "containerLogMaxFiles": 3, "containerLogMonitorInterval": "3s",
    }));
    node.start();
    node.wait_for_images();
    let script = format!(
        "i=0; while [ $i -lt 12000 ]; do echo line-$i-0123456789012345678901234567890; i=$((i+1)); done; echo end; {REST}"
    );
    let seen = node.run(&pod("chatty", &script));
    let folder = node.dir.join("log/pods").join(format!("default_{}_{}/main", seen.name(), seen.uid()));
    let files = || -> Vec<(String, u64)> {
        let all = fs::read_dir(&folder).into_iter().flatten().flatten();
        all.map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().map_or(0, |m| m.len()))).collect()
    };
    eventually("the container is through", PATIENCE, || node.cli(&["logs", "chatty", "--tail=1"]).stdout == "end\n");
    eventually("at most three files", PATIENCE, || (2..=3).contains(&files().len()));
    for (name, size) in files() {
        assert!(name.starts_with("0.log"), "{name}");
        assert!(size < 1 << 20, "{name} has {size} bytes");
    }
    node.finish();
}

#[test]
fn the_termination_message_is_told() {
    let node = Node::up();
    let mut m = pod("job", "echo -n because of this > /dev/termination-log; exit 5");
    m["spec"]["restartPolicy"] = json!("Never");
    let seen = node.run_to_end(&m);
    assert_eq!(seen.terminated("main")["message"], "because of this");
    assert_eq!(seen.terminated("main")["exitCode"], 5);
    node.finish();
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    let node = Node::up();
    let mut m = resting("web");
    m["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    m["spec"]["restartPolicy"] = json!("Never");
    node.apply("web.yaml", &m);
    let seen =
        node.wait_pod("web", "failed", |p| !p.terminated("main").is_null() || !p.waiting_message("main").is_empty());
    let text = seen.0["status"].to_string();
    assert!(text.contains("/no/such/program"), "{text}");
    assert!(!seen.up());
    node.finish();
}

#[test]
fn one_broken_container_does_not_stop_its_siblings() {
    let node = Node::up();
    let mut m = resting("pair");
    m["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    let other = json!({ "name": "good", "image": BUSYBOX, "command": ["sh", "-c", REST] });
    m["spec"]["containers"].as_array_mut().expect("containers").push(other);
    node.apply("pair.yaml", &m);
    node.wait_pod("pair", "the good one runs", |p| p.running("good"));
    node.finish();
}

#[test]
fn twenty_pods_at_once_all_run() {
    let node = Node::up();
    for i in 0..20 {
        node.apply(&format!("p{i}.yaml"), resting(&format!("p{i}")));
    }
    let pods = node.wait("all run", secs(60), |pods| pods.len() == 20 && pods.iter().all(|p| p.up()));
    let ips: std::collections::BTreeSet<&str> = pods.iter().map(|p| p.ip()).collect();
    assert_eq!(ips.len(), 20, "an address each: {ips:?}");
    assert_eq!(node.shims().len(), 20);
    assert!(pods.iter().all(|p| p.restarts("main") == 0));
    node.finish();
}

#[test]
fn the_well_known_static_web_serves_nginxs_page() {
    let made = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images/nginx.tar");
    let archive = std::env::var_os("CORACLE_NGINX_IMAGE").map_or(made, std::path::PathBuf::from);
    assert!(archive.is_file(), "an image of nginx is missing: cargo xtask image nginx");
    let node = Node::up();
    node.apply("static-web.yaml", include_str!("../../examples/static-web.yaml"));
    // The image arrives after the manifest, as on a device that is being set up.
    node.drop_image(&archive, "nginx.tar");
    let seen = node.wait_up("static-web");
    assert_eq!(seen.0["metadata"]["labels"]["role"], "myrole");
    let address = format!("{}:80", seen.ip());
    assert!(page(&address, "/").contains("Welcome to nginx!"));
    eventually("the request is in the log", PATIENCE, || node.cli(&["logs", "static-web"]).stdout.contains("GET / "));
    // The variant with a port of the node replaces it.
    let port = crate::harness::free_port();
    let text = include_str!("../../examples/static-web.yaml");
    node.apply(
        "static-web.yaml",
        text.replace("containerPort: 80", &format!("containerPort: 80\n      hostPort: {port}")),
    );
    let new = node.wait_pod("static-web", "replaced", |p| p.up() && p.uid() != seen.uid());
    assert!(page(&format!("127.0.0.1:{port}"), "/").contains("Welcome to nginx!"));
    let begin = Instant::now();
    node.remove("static-web.yaml");
    node.wait_gone("static-web");
    assert!(begin.elapsed() < secs(10), "SIGQUIT, the image's stop signal, ends nginx: {:?}", begin.elapsed());
    assert!(http(format!("{}:80", new.ip()), "/").is_err());
    node.finish();
}
