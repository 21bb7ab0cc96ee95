//! Fields and promises of the kubelet that no other story here proves, each by what the kernel, a peer, or the API says
//! of a pod that was dropped into a real node.

use crate::harness::{
    BUSYBOX, Node, PATIENCE, PodView, REST, eventually, free_port, hierarchies, nft, page, pod, resting, secs,
};
use coracle::sys::namespace::with_netns;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

fn container(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": BUSYBOX, "command": ["sh", "-c", script] })
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_default().parse().unwrap_or_else(|e| panic!("{value}: {e}"))
}

/// What an HTTP server on loopback was asked; it answers 500 to everything.
struct Rude {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Rude {
    fn new() -> Rude {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("address").port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&requests);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
                let request: Vec<String> = lines.collect();
                shared.lock().expect("requests").push(request.join("\n"));
                // A client that is gone has had its answer.
                let _ = stream.write_all(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        Rude { port, requests }
    }

    fn asked(&self, path: &str) -> Option<String> {
        let start = format!("GET {path} ");
        self.requests.lock().expect("requests").iter().find(|request| request.starts_with(&start)).cloned()
    }
}

#[test]
fn hooks_of_every_kind_are_delivered() {
    let (node, rude) = (Node::up(), Rude::new());
    let mut manifest = pod("hooked", REST);
    manifest["spec"]["hostNetwork"] = json!(true);
    manifest["spec"]["terminationGracePeriodSeconds"] = json!(5);
    let get = |path: &str| {
        json!({ "httpGet": {
            "host": "127.0.0.1", "port": rude.port, "path": path, "httpHeaders": [{ "name": "X-Test", "value": "hook" }],
        } })
    };
    manifest["spec"]["containers"][0]["lifecycle"] =
        json!({ "postStart": get("/started?by=hook"), "preStop": get("/stopping") });
    let mut sleepy = container("sleepy", REST);
    sleepy["lifecycle"] =
        json!({ "postStart": { "sleep": { "seconds": 2 } }, "preStop": { "tcpSocket": { "port": 1 } } });
    manifest["spec"]["containers"].as_array_mut().expect("list").extend([sleepy, container("after", REST)]);
    let seen = node.run(&manifest);
    let asked = rude.asked("/started?by=hook").expect("the postStart hook asked").to_lowercase();
    assert!(asked.contains("x-test: hook") && asked.contains("user-agent: kube-lifecycle/1.36"), "{asked}");
    assert_eq!(seen.restarts("main"), 0, "any answer is a success");
    let started = |name: &str| time(&seen.container(name)["state"]["running"]["startedAt"]);
    let waited = started("after").duration_since(started("sleepy")).as_secs();
    assert!(waited >= 1, "the next container waits for the hook: {waited} s");
    assert!(rude.asked("/stopping").is_none());

    // No TCP hook can succeed: it ends its container after the start, and changes nothing at the end.
    let mut knocking = resting("knocking");
    knocking["spec"]["containers"][0]["lifecycle"] = json!({ "postStart": { "tcpSocket": { "port": 1 } } });
    node.apply("knocking.yaml", &knocking);
    let failed = "PostStartHook of container main failed: invalid handler: tcpSocket";
    node.wait_event("the failed hook", |r, m| r == "FailedPostStartHook" && m.starts_with(failed));
    node.wait_pod("knocking", "restarted", |p| p.restarts("main") >= 1);

    node.remove("hooked.yaml");
    node.wait_event("the failed hook", |r, m| {
        r == "FailedPreStopHook" && m.starts_with("PreStopHook of container sleepy")
    });
    node.wait_gone("hooked");
    assert!(rude.asked("/stopping").is_some(), "the preStop hook asked");
    node.finish();
}

#[test]
fn a_resize_changes_what_runs_and_restarts_only_who_asks_for_it() {
    let mut node = Node::up();
    let amounts = |cpu: &str, memory: &str| json!({ "limits": { "cpu": cpu, "memory": memory } });
    let sized = |cpu: &str, memory: &str| {
        let mut manifest = resting("sized");
        manifest["metadata"]["uid"] = json!(format!("sized-{}", std::process::id()));
        let restart = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
        let mut strict = container("strict", REST);
        strict["resizePolicy"] = restart;
        strict["resources"] = amounts(cpu, memory);
        manifest["spec"]["containers"][0]["resources"] = amounts(cpu, memory);
        manifest["spec"]["containers"].as_array_mut().expect("list").push(strict);
        manifest
    };
    let root = node.cgroup_root.trim_start_matches('/').to_owned();
    let read = |group: &str, files: [&str; 2]| {
        let below = format!("{root}/kubepods/{group}");
        let mut found = hierarchies().into_iter().flat_map(|mount| files.map(|file| mount.join(&below).join(file)));
        let text =
            found.find_map(|path| fs::read_to_string(path).ok()).unwrap_or_else(|| panic!("{files:?} of {group}"));
        text.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let limits = |group: &str| {
        let memory = read(group, ["memory.limit_in_bytes", "memory.max"]);
        (read(group, ["cpu.cfs_quota_us", "cpu.max"]), memory)
    };
    let bytes = |mib: u64| (mib << 20).to_string();
    let first = node.run(&sized("100m", "32Mi"));
    let group = format!("pod{}", first.uid());
    let of = |id: &str| format!("{group}/{id}");
    assert_eq!(limits(&group), ("20000".into(), bytes(64)));
    assert_eq!(limits(&of(&first.id("main"))), ("10000".into(), bytes(32)));
    let init = node.init_pid(&first.id("main"));

    node.apply("sized.yaml", sized("200m", "48Mi"));
    node.wait_event("the resize", |reason, _| reason == "ResizeCompleted");
    let seen = node.wait_pod("sized", "one restarted", |p| p.restarts("strict") == 1 && p.up());
    assert_eq!((seen.id("main"), seen.restarts("main")), (first.id("main"), 0), "no restart was asked for");
    assert_eq!(node.init_pid(&seen.id("main")), init);
    assert_ne!(seen.id("strict"), first.id("strict"));
    assert_eq!((seen.uid(), seen.ip()), (first.uid(), first.ip()), "it is the same pod");
    assert_eq!(limits(&group), ("40000".into(), bytes(96)));
    for name in ["main", "strict"] {
        assert_eq!(limits(&of(&seen.id(name))), ("20000".into(), bytes(48)), "{name}");
        assert_eq!(seen.container(name)["resources"]["limits"], json!({ "cpu": "200m", "memory": "48Mi" }), "{name}");
    }

    // Less, of the one that restarts nobody; also for an agent that has just started.
    node.kill9();
    node.start();
    node.apply("sized.yaml", sized("50m", "48Mi"));
    eventually("the smaller quota", PATIENCE, || {
        limits(&of(&seen.id("main"))).0 == "5000" && limits(&group).0 == "10000"
    });
    let small = node.wait_up("sized");
    assert_eq!((small.restarts("main"), small.restarts("strict")), (0, 1));

    // What can never be leaves all as it is, and is said.
    node.apply("sized.yaml", sized("4096", "48Mi"));
    node.wait_event("the refusal", |reason, message| reason == "ResizeInfeasible" && message.contains("cpu"));
    let kept = node.wait_up("sized");
    assert_eq!((kept.id("main"), kept.id("strict")), (small.id("main"), small.id("strict")));
    assert_eq!(limits(&group), ("10000".into(), bytes(96)));
    node.finish();
}

/// The network namespace of a container.
fn netns(node: &Node, pod: &PodView) -> PathBuf {
    Path::new("/proc").join(node.init_pid(&pod.id("main")).to_string()).join("ns/net")
}

#[test]
fn a_host_port_is_one_of_an_address_and_a_protocol() {
    let node = Node::up();
    let (both, sctp) = (free_port(), free_port());
    let serve = "mkdir -p /tmp/www; echo tcp > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www";
    let mut manifest = pod("ports", serve);
    manifest["spec"]["containers"][0]["ports"] = json!([
        { "containerPort": 80, "hostPort": both, "hostIP": "127.0.0.1" },
        { "containerPort": 53, "hostPort": both, "protocol": "UDP" },
        { "containerPort": 36412, "hostPort": sctp, "protocol": "SCTP" },
    ]);
    let seen = node.run(&manifest);
    assert_eq!(page(&format!("127.0.0.1:{both}"), "/"), "tcp\n");
    let gateway = format!("{}.1", node.cidr.rsplit_once('.').expect("a network").0);
    assert!(TcpStream::connect((gateway.as_str(), both)).is_err(), "only the address that was asked for");

    let server = with_netns(&netns(&node, &seen), || UdpSocket::bind("0.0.0.0:53").expect("bind")).expect("enter");
    let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(secs(5))).expect("time-out");
    }
    client.send_to(b"ping", ("127.0.0.1", both)).expect("send");
    let mut buffer = [0; 16];
    let (length, peer) = server.recv_from(&mut buffer).expect("what was sent to the same port by UDP");
    assert_eq!(&buffer[..length], b"ping");
    server.send_to(b"pong", peer).expect("send");
    assert_eq!(client.recv(&mut buffer).map(|length| buffer[..length].to_vec()).expect("the answer"), b"pong");

    // Few kernels have SCTP: the rule is looked at, protocol 132 and the two ports.
    let rules = nft::rules();
    let of = |port: u16| [&[6, 0, 1, 0][..], &port.to_be_bytes()].concat();
    let holds = |rule: &[u8], part: &[u8]| rule.windows(part.len()).any(|window| window == part);
    let found = |protocol: u8, port: u16| {
        rules.iter().any(|rule| holds(rule, &[5, 0, 1, 0, protocol]) && holds(rule, &of(port)))
    };
    assert!(found(132, sctp) && !found(6, sctp) && !found(17, sctp), "SCTP, and nothing else");
    assert!(found(6, both) && found(17, both) && !found(132, both), "TCP and UDP");
    node.finish();
}

#[test]
fn stdin_is_at_its_end_or_stays_open_and_a_terminal_is_one() {
    let node = Node::up();
    let mut manifest = pod("streams", "cat; echo over");
    manifest["spec"]["restartPolicy"] = json!("Never");
    let mut waits = container("waits", "cat; echo over");
    waits["stdin"] = json!(true);
    waits["stdinOnce"] = json!(true);
    let mut terminal = container("terminal", "test -t 0 && test -t 1 && test -t 2 && echo terminal");
    terminal["tty"] = json!(true);
    terminal["stdin"] = json!(true);
    let plain = container("plain", "test -t 0 || test -t 1 || echo none");
    manifest["spec"]["containers"].as_array_mut().expect("list").extend([waits, terminal, plain]);
    node.apply("streams.yaml", &manifest);
    let seen = node.wait_pod("streams", "three ended", |p| {
        ["main", "terminal", "plain"].iter().all(|name| p.terminated(name).is_object())
    });
    assert!(seen.running("waits"), "whoever writes to its stdin may still come");
    for (name, said) in [("main", "over\n"), ("terminal", "terminal\r\n"), ("plain", "none\n"), ("waits", "")] {
        assert_eq!(node.cli(&["logs", "streams", "-c", name]).ok(), said, "{name}");
    }
    assert_eq!(seen.terminated("terminal")["exitCode"], 0);
    node.finish();
}

#[test]
fn a_pod_tells_when_and_in_which_order_all_came() {
    let mut node = Node::up();
    let mut manifest = pod("told", REST);
    manifest["metadata"]["labels"] = json!({ "app": "told" });
    manifest["spec"]["readinessGates"] = json!([{ "conditionType": "example.com/ready" }]);
    let mut side = container("side", REST);
    side["restartPolicy"] = json!("Always");
    manifest["spec"]["initContainers"] = json!([container("setup", "sleep 1.1"), side]);
    manifest["spec"]["containers"].as_array_mut().expect("list").push(container("second", REST));
    let begin = Timestamp::now();
    let seen = node.run(&manifest);
    let seen = node.wait_pod(seen.name().trim_end_matches(&format!("-{}", node.name)), "containers are ready", |p| {
        p.condition("ContainersReady") == "True"
    });

    // The gate of somebody who is not here.
    let all = seen.0["status"]["conditions"].as_array().expect("conditions").clone();
    let condition = |kind: &str| all.iter().find(|c| c["type"] == kind).unwrap_or_else(|| panic!("no {kind}: {all:?}"));
    let ready = condition("Ready");
    assert_eq!((ready["status"].as_str(), ready["reason"].as_str()), (Some("False"), Some("ReadinessGatesNotReady")));
    let words = "corresponding condition of pod readiness gate \"example.com/ready\" does not exist.";
    assert_eq!(ready["message"], words);

    // Conditions, in the order in which they came true; a second apart, as the init container took one.
    let at = |kind: &str| time(&condition(kind)["lastTransitionTime"]);
    let start = time(&seen.0["status"]["startTime"]);
    assert!(begin.as_second() <= start.as_second() && start <= at("PodReadyToStartContainers"), "{start}");
    assert!(at("PodReadyToStartContainers") < at("Initialized"), "{all:?}");
    assert!(at("Initialized") <= at("ContainersReady"), "{all:?}");
    assert_eq!(condition("PodScheduled")["status"], "True");

    // Containers: one after the other.
    let began = |name: &str| {
        let state = &seen.container(name)["state"];
        time(if state["running"].is_object() {
            &state["running"]["startedAt"]
        } else {
            &state["terminated"]["startedAt"]
        })
    };
    let ended = time(&seen.terminated("setup")["finishedAt"]);
    assert!(began("setup") < ended && ended <= began("side"), "{}", seen.container("setup"));
    assert!(began("side") <= began("main") && began("main") <= began("second"));

    // Events say the same.
    let events = |node: &Node| -> Vec<(String, String, Timestamp)> {
        let own = node.events().into_iter().filter(|e| e["involvedObject"]["uid"] == seen.uid());
        own.map(|e| {
            assert_eq!(e["involvedObject"]["kind"], "Pod", "{e}");
            assert!(time(&e["firstTimestamp"]) <= time(&e["lastTimestamp"]), "{e}");
            assert!(e["count"].as_u64() >= Some(1) && e["type"].is_string(), "{e}");
            let path = e["involvedObject"]["fieldPath"].as_str().unwrap_or_default();
            let name = path.split(['{', '}']).nth(1).unwrap_or_default().to_owned();
            (name, e["reason"].as_str().unwrap_or_default().to_owned(), time(&e["firstTimestamp"]))
        })
        .collect()
    };
    let order = |events: &[(String, String, Timestamp)], reasons: &[&str]| -> Vec<String> {
        let wanted = events.iter().filter(|(name, reason, _)| !name.is_empty() && reasons.contains(&reason.as_str()));
        wanted.map(|(name, reason, _)| format!("{reason} {name}")).collect()
    };
    let up = events(&node);
    let names = ["setup", "side", "main", "second"];
    let expected: Vec<String> =
        names.iter().flat_map(|name| ["Created", "Started"].map(|reason| format!("{reason} {name}"))).collect();
    assert_eq!(order(&up, &["Created", "Started"]), expected, "{up:?}");
    assert!(up.windows(2).all(|pair| pair[0].2 <= pair[1].2), "oldest first: {up:?}");

    // A new agent changes no time of anything.
    node.kill9();
    node.start();
    let again = node.wait_up("told");
    assert_eq!(again.0["status"]["startTime"], seen.0["status"]["startTime"]);
    assert_eq!(again.0["status"]["conditions"], seen.0["status"]["conditions"]);

    node.remove("told.yaml");
    node.wait_gone("told");
    let down = events(&node);
    // Each is told before its own hooks and its turn, as by the kubelet; the turns themselves are the timeline's.
    let mut killing = order(&down, &["Killing"]);
    killing.sort();
    assert_eq!(killing, ["Killing main", "Killing second", "Killing side"], "{down:?}");
    assert!(down.windows(2).all(|pair| pair[0].2 <= pair[1].2), "oldest first: {down:?}");
    node.finish();
}

#[test]
fn what_a_pod_says_of_itself_is_in_its_files() {
    let mut node = Node::up();
    let limited = |cpu: &str| {
        let mut manifest = resting("files");
        manifest["metadata"]["uid"] = json!(format!("files-{}", std::process::id()));
        manifest["metadata"]["labels"] = json!({ "app": "one" });
        manifest["metadata"]["annotations"] = json!({ "example.com/note": "a \"b\"" });
        let field = |path: &str, of: &str| json!({ "path": path, "fieldRef": { "fieldPath": of } });
        let amount = json!({
            "path": "deep/cpu", "mode": 0o440,
            "resourceFieldRef": { "containerName": "main", "resource": "limits.cpu", "divisor": "1m" },
        });
        manifest["spec"]["securityContext"] = json!({ "fsGroup": 4242, "fsGroupChangePolicy": "OnRootMismatch" });
        manifest["spec"]["volumes"] = json!([
            { "name": "down", "downwardAPI": { "defaultMode": 0o400, "items": [field("labels", "metadata.labels"), amount] } },
            { "name": "all", "projected": { "defaultMode": 0o600, "sources": [
                { "downwardAPI": { "items": [field("note", "metadata.annotations['example.com/note']")] } },
                { "downwardAPI": { "items": [field("name", "metadata.name"), field("labels", "metadata.labels")] } },
            ] } },
            { "name": "data", "emptyDir": {} },
        ]);
        let main = &mut manifest["spec"]["containers"][0];
        main["resources"] = json!({ "limits": { "cpu": cpu } });
        main["volumeMounts"] = json!([
            { "name": "down", "mountPath": "/down" }, { "name": "all", "mountPath": "/all" }, { "name": "data", "mountPath": "/data" },
        ]);
        manifest
    };
    let first = node.run(&limited("250m"));
    let sh = |node: &Node, script: &str| node.sh("files", script);
    assert_eq!(
        sh(&node, "cat /down/labels; echo; cat /down/deep/cpu; echo; cat /all/note"),
        "app=\"one\"\n250\na \"b\""
    );
    assert_eq!(sh(&node, "cat /all/name"), first.name());
    // A group that owns the volume may read it, whatever the mode.
    assert_eq!(sh(&node, "stat -L -c '%a %g' /down/labels /down/deep/cpu /all/note"), "440 4242\n440 4242\n640 4242");
    assert_eq!(sh(&node, "readlink /down/labels; readlink /all/deep 2>/dev/null; true"), "..data/labels");
    for point in ["/down", "/all"] {
        let line = sh(&node, &format!("grep ' {point} ' /proc/mounts"));
        assert!(line.starts_with("tmpfs ") && line.contains(" ro"), "{line}");
    }
    assert_eq!(
        sh(&node, "stat -c '%a %g' /data; mkdir /data/sub; touch /data/sub/f; stat -c %g /data/sub/f"),
        "2777 4242\n4242"
    );

    // What a resize changes is told there, too, without a new pod; what stays is not written again.
    let before = sh(&node, "readlink /down/..data; readlink /all/..data");
    node.kill9();
    node.start();
    assert_eq!(sh(&node, "readlink /down/..data; readlink /all/..data"), before);
    node.apply("files.yaml", limited("500m"));
    eventually("the new limit", PATIENCE, || sh(&node, "cat /down/deep/cpu") == "500");
    let after = sh(&node, "readlink /down/..data; readlink /all/..data");
    assert_ne!(after.lines().next(), before.lines().next());
    assert_eq!(after.lines().nth(1), before.lines().nth(1));
    assert_eq!(node.wait_up("files").id("main"), first.id("main"));
    node.finish();
}
