//! One pod with everything that has an order: init containers, sidecars, hooks, probes. Its own containers write down what
//! happens; the list must be the same whenever the agent is killed.

use crate::harness::{BUSYBOX, Node, PATIENCE, eventually, secs};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

/// What happens from the first container to the removal of the manifest, in this order. Container `b` stops on its own
/// while `a` still has its preStop hook: it is left out here and looked at for itself.
const UP: &str = "\
i1 start
i1 end
s1 start
s1 started
i2 start
i2 end
s2 start
s2 postStart
s2 postStart end
i3 start
i3 end
a start
a postStart
a postStart end
b start
b started
";
const DOWN: &str = "\
a preStop
a preStop end
a term
a exit
s2 term
s2 exit
s1 term
s1 exit
";

fn say(text: &str) -> String {
    format!("echo {text} >> /share/timeline")
}

/// Writes when it starts, when it is asked to stop, and when it ends.
fn resident(name: &str, first: &str) -> String {
    format!(
        "trap '{}; sleep 0.3; {}; exit 0' TERM; {}; {first} while :; do sleep 3600 & wait $!; done",
        say(&format!("{name} term")),
        say(&format!("{name} exit")),
        say(&format!("{name} start")),
    )
}

fn exec(script: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", script] } })
}

fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name, "image": BUSYBOX, "command": ["sh", "-c", script],
        "volumeMounts": [{ "name": "share", "mountPath": "/share" }],
    })
}

fn everything(node: &Node) -> Value {
    let init = |name: &str| {
        container(name, &format!("{}; sleep 0.4; {}", say(&format!("{name} start")), say(&format!("{name} end"))))
    };
    // The next container waits for its startup probe.
    let started = |name: &str| {
        format!(
            "if test -e /share/{name}.up; then :; else sleep 1.2; {}; touch /share/{name}.up; fi;",
            say(&format!("{name} started"))
        )
    };
    let mut s1 = container("s1", &resident("s1", &started("s1")));
    s1["restartPolicy"] = json!("Always");
    s1["startupProbe"] = exec("test -e /share/s1.up");
    s1["startupProbe"]["periodSeconds"] = json!(1);
    s1["startupProbe"]["failureThreshold"] = json!(60);
    s1["lifecycle"] = json!({ "preStop": exec(&say("s1 preStop")) });
    let mut s2 = container("s2", &resident("s2", ""));
    s2["restartPolicy"] = json!("Always");
    let hook = |name: &str| {
        let after = format!("until grep -q '^{name} start$' /share/timeline; do sleep 0.05; done");
        let (begin, end) = (say(&format!("{name} postStart")), say(&format!("{name} postStart end")));
        exec(&format!("{after}; {begin}; sleep 0.5; {end}"))
    };
    s2["lifecycle"] = json!({ "postStart": hook("s2") });
    s2["livenessProbe"] = exec("true");
    let mut a = container("a", &resident("a", "httpd -p 8080 -h /share;"));
    a["ports"] = json!([{ "name": "http", "containerPort": 8080 }]);
    a["readinessProbe"] = json!({ "httpGet": { "path": "/ready", "port": "http" }, "periodSeconds": 1 });
    a["livenessProbe"] = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1, "failureThreshold": 30 });
    let stop = format!("{}; sleep 0.6; {}", say("a preStop"), say("a preStop end"));
    a["lifecycle"] = json!({ "postStart": hook("a"), "preStop": exec(&stop) });
    let mut b = container("b", &resident("b", &started("b")));
    b["startupProbe"] = exec("test -e /share/b.up");
    b["startupProbe"]["periodSeconds"] = json!(1);
    b["startupProbe"]["failureThreshold"] = json!(60);
    b["readinessProbe"] = exec("test -e /share/ready");
    b["readinessProbe"]["periodSeconds"] = json!(1);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "all" },
        "spec": {
            "terminationGracePeriodSeconds": 60,
            "initContainers": [init("i1"), s1, init("i2"), s2, init("i3")],
            "containers": [a, b],
            "volumes": [{ "name": "share", "hostPath": { "path": node.dir.join("share") } }],
        },
    })
}

fn timeline(node: &Node) -> Vec<String> {
    let text = fs::read_to_string(node.dir.join("share/timeline")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A hook is delivered at least once: a second delivery follows the first, and changes nothing else.
fn without_repeats(lines: &[String]) -> Vec<&str> {
    let mut seen = Vec::new();
    for line in lines {
        let hook = line.contains("postStart") || line.contains("preStop");
        if !(hook && seen.contains(&line.as_str())) {
            seen.push(line.as_str());
        }
    }
    seen
}

/// Runs the pod from its start to its removal; kills the agent with SIGKILL as soon as `kill_at` is in the timeline.
fn live(kill_at: Option<&str>) {
    let mut node = Node::up();
    let mut killed = kill_at.is_none();
    let mut strike = |node: &mut Node, patience: Duration| {
        let Some(line) = kill_at.filter(|_| !killed) else { return };
        let end = std::time::Instant::now() + patience;
        while std::time::Instant::now() < end {
            if timeline(node).iter().any(|l| l == line) {
                killed = true;
                node.kill9();
                std::thread::sleep(Duration::from_millis(400));
                node.start();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        node.fail(&format!("{line:?} never came: {:#?}", timeline(node)));
    };
    node.apply("all.yaml", everything(&node));
    let in_up = kill_at.is_some_and(|line| UP.lines().any(|l| l == line));
    if in_up {
        strike(&mut node, secs(60));
    }
    node.wait_pod("all", "started, not ready", |p| {
        p.running("a") && p.running("b") && timeline(&node).iter().any(|l| l == "b started")
    });
    fs::write(node.dir.join("share/ready"), "").expect("ready");
    let seen = node.wait_pod("all", "ready", |p| p.condition("Ready") == "True");
    assert_eq!(seen.restarts("a") + seen.restarts("b"), 0);
    for name in ["i1", "i2", "i3"] {
        assert_eq!(seen.terminated(name)["reason"], "Completed", "{name}: {}", seen.container(name));
        assert_eq!((&seen.container(name)["ready"], seen.restarts(name)), (&json!(true), 0), "{name}");
    }
    for name in ["s1", "s2"] {
        assert_eq!((&seen.container(name)["started"], seen.restarts(name)), (&json!(true), 0), "{name}");
    }
    let up = timeline(&node);
    let up = without_repeats(&up).join("\n") + "\n";
    assert_eq!(up, UP, "the way up, agent killed at {kill_at:?}");
    node.remove("all.yaml");
    if !in_up {
        strike(&mut node, secs(60));
    }
    node.wait_gone("all");
    let all = timeline(&node);
    let down: Vec<&str> = without_repeats(&all).into_iter().skip(UP.lines().count()).collect();
    let chain: Vec<&str> = down.iter().copied().filter(|l| !l.starts_with("b ") && *l != "s1 preStop").collect();
    assert_eq!(chain.join("\n") + "\n", DOWN, "the way down, agent killed at {kill_at:?}:\n{}", down.join("\n"));
    let at = |line: &str| down.iter().position(|l| *l == line).unwrap_or_else(|| panic!("no {line:?} in {down:?}"));
    assert!(at("b term") < at("b exit") && at("b exit") < at("s2 term"), "{down:?}");
    // A sidecar's preStop hook does not wait for its turn.
    assert!(at("s1 preStop") < at("a exit"), "{down:?}");
    node.finish();
}

/// Nodes do not know of each other.
fn at_once(lines: &[&str]) {
    std::thread::scope(|scope| {
        for line in lines {
            scope.spawn(|| live(Some(line)));
        }
    });
}

#[test]
fn everything_in_one_pod_starts_and_stops_in_order() {
    live(None);
}

#[test]
fn the_order_holds_when_the_agent_is_killed_on_the_way_up() {
    at_once(&["i1 start", "s1 start", "i2 end", "s2 postStart", "i3 start", "a postStart", "b start"]);
}

#[test]
fn the_order_holds_when_the_agent_is_killed_on_the_way_down() {
    at_once(&["a preStop", "a preStop end", "a term", "s2 term", "s1 term"]);
}

#[test]
fn the_status_tells_how_far_the_start_is() {
    let node = Node::up();
    let mut manifest = everything(&node);
    manifest["spec"]["initContainers"][0]["command"] =
        json!(["sh", "-c", "until test -e /share/go; do sleep 0.1; done"]);
    node.apply("all.yaml", manifest);
    let seen = node.wait_pod("all", "in its first init container", |p| {
        p.0["status"]["initContainerStatuses"][0]["state"]["running"].is_object()
    });
    assert_eq!(seen.phase(), "Pending");
    assert_eq!((seen.condition("Initialized"), seen.condition("Ready")), ("False", "False"));
    assert_eq!(seen.waiting("a"), "PodInitializing");
    let conditions = seen.0["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let initialized = conditions.iter().find(|c| c["type"] == "Initialized").cloned().unwrap_or_default();
    assert_eq!(initialized["reason"], "ContainersNotInitialized");
    assert_eq!(initialized["message"], "containers with incomplete status: [i1 s1 i2 s2 i3]");
    let table = node.cli(&["get", "pods"]).ok();
    assert!(table.contains("Init:0/5"), "{table}");
    assert!(table.contains("0/4"), "sidecars count: {table}");
    fs::write(node.dir.join("share/go"), "").expect("go");
    fs::write(node.dir.join("share/ready"), "").expect("ready");
    let seen = node.wait_pod("all", "ready", |p| p.condition("Ready") == "True");
    assert_eq!((seen.phase(), seen.condition("Initialized")), ("Running", "True"));
    eventually("READY counts sidecars", PATIENCE, || node.cli(&["get", "pods"]).ok().contains("4/4"));
    node.finish();
}
