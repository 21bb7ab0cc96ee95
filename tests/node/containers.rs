//! Which containers run again, and how they are stopped: init containers, sidecars, policies, rules, deadlines, hooks,
//! failing probes.

use crate::harness::{BUSYBOX, Node, PATIENCE, PodView, REST, eventually, pod, secs, signal};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::thread::sleep;

/// The node's shared folder at `/share`, in every container.
fn share(node: &Node, manifest: &mut Value) {
    manifest["spec"]["volumes"] = json!([{ "name": "share", "hostPath": { "path": node.dir.join("share") } }]);
    for list in ["initContainers", "containers"] {
        for container in manifest["spec"][list].as_array_mut().into_iter().flatten() {
            container["volumeMounts"] = json!([{ "name": "share", "mountPath": "/share" }]);
        }
    }
}

fn shared(node: &Node, file: &str) -> String {
    fs::read_to_string(node.dir.join("share").join(file)).unwrap_or_default()
}

/// A container that runs has not yet done what it does first.
#[track_caller]
fn comes_to_be(node: &Node, file: &str, want: &str) {
    eventually(&format!("{file} is {want:?}"), PATIENCE, || shared(node, file) == want);
}

fn container(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": BUSYBOX, "command": ["sh", "-c", script] })
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_default().parse().unwrap_or(Timestamp::UNIX_EPOCH)
}

fn condition<'a>(pod: &'a PodView, kind: &str) -> &'a Value {
    static NONE: Value = Value::Null;
    let all = pod.0["status"]["conditions"].as_array();
    all.and_then(|all| all.iter().find(|c| c["type"] == kind)).unwrap_or(&NONE)
}

#[test]
fn an_init_container_is_tried_again_until_it_succeeds() {
    let node = Node::up();
    let mut m = pod("web", &format!("echo app >> /share/order; {REST}"));
    // Fails twice: the first restart is immediate, the second waits for ten seconds.
    let script = "echo try >> /share/order; test $(grep -c try /share/order) -ge 3";
    m["spec"]["initContainers"] = json!([container("setup", script)]);
    share(&node, &mut m);
    node.apply("web.yaml", &m);
    let seen = node.wait_pod("web", "backing off", |p| p.waiting("setup") == "CrashLoopBackOff");
    assert_eq!((seen.phase(), seen.waiting("main")), ("Pending", "PodInitializing"));
    assert!(seen.waiting_message("setup").starts_with("back-off 10s restarting failed container=setup"), "{seen:?}");
    let table = node.cli(&["get", "pods"]).ok();
    assert!(table.contains("Init:CrashLoopBackOff"), "{table}");
    let seen = node.wait_up("web");
    comes_to_be(&node, "order", "try\ntry\ntry\napp\n");
    assert_eq!(seen.restarts("setup"), 2);
    assert_eq!(seen.terminated("setup")["exitCode"], 0);
    assert_eq!(seen.container("setup")["ready"], true);
    node.finish();
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let node = Node::up();
    let mut m = pod("job", "echo app >> /share/order");
    m["spec"]["restartPolicy"] = json!("Never");
    m["spec"]["initContainers"] =
        json!([container("one", "echo one >> /share/order; exit 7"), container("two", "true")]);
    share(&node, &mut m);
    let seen = node.run_to_end(&m);
    assert_eq!(seen.phase(), "Failed");
    assert_eq!(seen.terminated("one")["exitCode"], 7);
    assert_eq!(shared(&node, "order"), "one\n", "nothing after it ran");
    assert_eq!(condition(&seen, "Initialized")["status"], "False");
    let table = node.cli(&["get", "pods"]).ok();
    assert!(table.contains("Init:Error"), "{table}");
    node.finish();
}

#[test]
fn a_job_with_a_sidecar_ends_when_its_app_container_does() {
    let node = Node::up();
    let mut m = pod("job", "sleep 1; echo main >> /share/order");
    m["spec"]["restartPolicy"] = json!("OnFailure");
    m["spec"]["terminationGracePeriodSeconds"] = json!(20);
    let side = format!(
        "trap 'echo side >> /share/order; exit 3' TERM; echo up >> /share/order; {}",
        &REST[REST.find("while").unwrap_or(0)..]
    );
    let mut sidecar = container("side", &side);
    sidecar["restartPolicy"] = json!("Always");
    m["spec"]["initContainers"] = json!([sidecar]);
    share(&node, &mut m);
    let seen = node.run_to_end(&m);
    assert_eq!(seen.phase(), "Succeeded", "the sidecar's exit code does not count");
    eventually("the sidecar was stopped in order", PATIENCE, || shared(&node, "order") == "up\nmain\nside\n");
    node.finish();
}

#[test]
fn a_sidecar_runs_again_whatever_the_pods_policy_is() {
    let node = Node::up();
    let mut m = pod("web", REST);
    m["spec"]["restartPolicy"] = json!("Never");
    let mut sidecar = container("side", "sleep 1; exit 0");
    sidecar["restartPolicy"] = json!("Always");
    m["spec"]["initContainers"] = json!([sidecar]);
    let seen = node.run(&m);
    let app = seen.id("main");
    let seen = node.wait_pod("web", "restarted", |p| p.restarts("side") >= 1);
    assert_eq!((seen.id("main"), seen.restarts("main")), (app, 0));
    assert_eq!(seen.phase(), "Running");
    node.finish();
}

#[test]
fn containers_have_restart_policies_and_rules_of_their_own() {
    let node = Node::up();
    let mut m = pod("web", REST);
    m["spec"]["restartPolicy"] = json!("Never");
    let counted = |name: &str, code: u8| container(name, &format!("echo {name} >> /share/runs; exit {code}"));
    let mut always = counted("always", 0);
    always["restartPolicy"] = json!("Always");
    let mut on_failure = counted("on-failure", 0);
    on_failure["restartPolicy"] = json!("OnFailure");
    let rules = |codes: Value| json!([{ "action": "Restart", "exitCodes": { "operator": "In", "values": codes } }]);
    let mut rule = counted("rule", 42);
    rule["restartPolicy"] = json!("Never");
    rule["restartPolicyRules"] = rules(json!([42]));
    let mut other = counted("other", 42);
    other["restartPolicy"] = json!("Never");
    other["restartPolicyRules"] = rules(json!([7]));
    let list = m["spec"]["containers"].as_array_mut().expect("containers");
    list.extend([always, on_failure, rule, other]);
    share(&node, &mut m);
    node.apply("web.yaml", &m);
    let seen = node.wait_pod("web", "restarted", |p| p.restarts("always") >= 1 && p.restarts("rule") >= 1);
    assert_eq!((seen.restarts("on-failure"), seen.restarts("other")), (0, 0));
    assert_eq!(seen.terminated("on-failure")["reason"], "Completed");
    assert_eq!(seen.terminated("other")["exitCode"], 42);
    assert_eq!(seen.phase(), "Running");
    node.finish();
}

#[test]
fn a_rule_can_restart_all_containers_of_a_pod() {
    let node = Node::up();
    let mut m = pod("web", &format!("echo main >> /share/order; {REST}"));
    m["spec"]["initContainers"] = json!([container("setup", "echo setup >> /share/order")]);
    let trigger = "if test -e /share/once; then while :; do sleep 3600; done; fi; touch /share/once; sleep 1; exit 88";
    let mut second = container("trigger", trigger);
    second["restartPolicy"] = json!("Never");
    second["restartPolicyRules"] =
        json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [88] } }]);
    m["spec"]["containers"].as_array_mut().expect("containers").push(second);
    share(&node, &mut m);
    node.apply("web.yaml", &m);
    let first = node.wait_up("web");
    let seen = node.wait_pod("web", "all again", |p| p.up() && p.restarts("main") == 1 && p.restarts("trigger") == 1);
    comes_to_be(&node, "order", "setup\nmain\nsetup\nmain\n");
    assert_eq!(seen.ip(), first.ip(), "the sandbox stays");
    assert_eq!(seen.uid(), first.uid());
    assert_eq!(seen.restarts("setup"), 1);
    sleep(secs(2));
    assert_eq!(node.pod("web").expect("there").restarts("main"), 1, "once is enough");
    node.finish();
}

#[test]
fn a_pod_past_its_deadline_is_ended_for_good() {
    let mut node = Node::up();
    let mut m = pod("web", "trap 'echo term >> /share/order; exit 0' TERM; while :; do sleep 3600 & wait $!; done");
    m["spec"]["activeDeadlineSeconds"] = json!(3);
    m["spec"]["terminationGracePeriodSeconds"] = json!(10);
    share(&node, &mut m);
    node.run(&m);
    // A restart of the agent does not give it more time.
    node.kill9();
    node.start();
    let seen = node.wait_pod("web", "over", |p| p.phase() == "Failed");
    assert_eq!(seen.0["status"]["reason"], "DeadlineExceeded");
    assert_eq!(seen.0["status"]["message"], "Pod was active on the node longer than the specified deadline");
    eventually("it was asked to stop", PATIENCE, || shared(&node, "order") == "term\n");
    let table = node.cli(&["get", "pods"]).ok();
    assert!(table.contains("DeadlineExceeded") || table.contains("Error") || table.contains("Completed"), "{table}");
    sleep(secs(1));
    assert_eq!(node.pod("web").expect("kept").phase(), "Failed", "and stays so");
    node.finish();
}

#[test]
fn a_failing_post_start_hook_ends_its_container() {
    let node = Node::up();
    let mut m = pod("web", REST);
    m["spec"]["containers"][0]["lifecycle"] =
        json!({ "postStart": { "exec": { "command": ["sh", "-c", "echo why; exit 3"] } } });
    node.apply("web.yaml", &m);
    node.wait_event("the hook's failure", |reason, message| {
        reason == "FailedPostStartHook" && message.contains("main")
    });
    let seen =
        node.wait_pod("web", "backing off", |p| p.restarts("main") >= 1 && p.waiting("main") == "CrashLoopBackOff");
    assert_ne!(seen.condition("Ready"), "True");
    node.finish();
}

#[test]
fn the_pre_stop_hook_takes_from_the_grace() {
    let node = Node::up();
    let script = "trap 'echo term >> /share/order; exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    // One within its grace, one that needs more than there is, one that only sleeps.
    let mut m = pod("web", script);
    m["spec"]["terminationGracePeriodSeconds"] = json!(4);
    m["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": { "exec": { "command": ["sh", "-c", "echo pre >> /share/order; sleep 60; echo never >> /share/order"] } } });
    share(&node, &mut m);
    node.run(&m);
    let mut sleepy = pod("sleepy", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done");
    sleepy["spec"]["terminationGracePeriodSeconds"] = json!(30);
    sleepy["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 2 } } });
    node.run(&sleepy);
    let begin = std::time::Instant::now();
    node.remove("web.yaml");
    node.remove("sleepy.yaml");
    node.wait_gone("sleepy");
    let slept = begin.elapsed();
    assert!(slept >= secs(2) && slept < secs(15), "{slept:?}");
    node.wait_gone("web");
    let took = begin.elapsed();
    assert_eq!(shared(&node, "order"), "pre\nterm\n", "the hook is cut off, the container still gets its signal");
    assert!(took >= secs(4) && took < secs(15), "{took:?}");
    node.finish();
}

#[test]
fn a_container_that_fails_its_liveness_probe_is_stopped_and_restarted() {
    let mut node = Node::up();
    let script = "trap 'echo term >> /share/order; exit 0' TERM; echo start >> /share/order; while :; do sleep 3600 & wait $!; done";
    let mut m = pod("web", script);
    m["spec"]["restartPolicy"] = json!("OnFailure");
    m["spec"]["terminationGracePeriodSeconds"] = json!(30);
    m["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": { "command": ["sh", "-c", "test $(grep -c start /share/order) -ge 2"] },
        "periodSeconds": 1, "failureThreshold": 2,
    });
    share(&node, &mut m);
    node.apply("web.yaml", &m);
    let seen = node.wait_pod("web", "restarted", |p| p.restarts("main") == 1 && p.up());
    comes_to_be(&node, "order", "start\nterm\nstart\n");
    assert_eq!(seen.last("main")["exitCode"], 0, "it failed, however politely it ended");
    let (began, ended) = (time(&seen.last("main")["startedAt"]), time(&seen.last("main")["finishedAt"]));
    assert!(ended.duration_since(began).as_secs() >= 1, "two failures, a second apart: {}", seen.last("main"));
    node.wait_event("unhealthy", |reason, message| {
        reason == "Unhealthy" && message.starts_with("Liveness probe failed")
    });
    node.wait_event("killing", |reason, message| {
        reason == "Killing" && message == "Container main failed liveness probe, will be restarted"
    });
    // Never means never, for a probe's kill too.
    let mut never = pod("never", REST);
    never["spec"]["restartPolicy"] = json!("Never");
    never["spec"]["containers"][0]["livenessProbe"] =
        json!({ "exec": { "command": ["false"] }, "periodSeconds": 1, "failureThreshold": 1 });
    let seen = node.run_to_end(&never);
    assert_eq!(seen.restarts("main"), 0);
    node.wait_event("killing for good", |reason, message| {
        reason == "Killing" && message == "Container main failed liveness probe"
    });
    // A healthy container does not notice that the agent went.
    let before = node.pod("web").expect("there").id("main");
    node.kill9();
    node.start();
    sleep(secs(3));
    let seen = node.pod("web").expect("there");
    assert_eq!((seen.id("main"), seen.restarts("main")), (before, 1));
    node.finish();
}

#[test]
fn a_container_that_never_passes_its_startup_probe_is_restarted() {
    let node = Node::up();
    let mut m = pod("web", REST);
    m["spec"]["containers"][0]["startupProbe"] = json!({
        "exec": { "command": ["false"] }, "periodSeconds": 1, "failureThreshold": 2,
    });
    m["spec"]["containers"][0]["livenessProbe"] = json!({ "exec": { "command": ["touch", "/tmp/live"] } });
    node.apply("web.yaml", &m);
    let seen = node.wait_pod("web", "restarted", |p| p.restarts("main") >= 1);
    assert_ne!(seen.container("main")["started"], true);
    assert_ne!(seen.container("main")["ready"], true);
    node.wait_event("killing", |reason, message| {
        reason == "Killing" && message == "Container main failed startup probe, will be restarted"
    });
    node.finish();
}

#[test]
fn readiness_stays_over_a_restart_of_the_agent() {
    let mut node = Node::up();
    let mut m = pod("web", REST);
    m["spec"]["containers"][0]["readinessProbe"] =
        json!({ "exec": { "command": ["test", "-e", "/share/ready"] }, "periodSeconds": 1 });
    share(&node, &mut m);
    node.apply("web.yaml", &m);
    let seen = node.wait_pod("web", "runs", |p| p.running("main"));
    assert_eq!(
        (seen.condition("Ready"), condition(&seen, "Ready")["reason"].as_str()),
        ("False", Some("ContainersNotReady"))
    );
    assert_eq!(condition(&seen, "Ready")["message"], "containers with unready status: [main]");
    fs::write(node.dir.join("share/ready"), "").expect("ready");
    let ready = node.wait_pod("web", "ready", |p| p.condition("Ready") == "True");
    node.kill9();
    node.start();
    let again = node.pod("web").expect("there");
    assert_eq!(again.condition("Ready"), "True", "at once");
    assert_eq!(
        condition(&again, "Ready")["lastTransitionTime"].is_string(),
        condition(&ready, "Ready")["lastTransitionTime"].is_string()
    );
    fs::remove_file(node.dir.join("share/ready")).expect("not ready");
    node.wait_pod("web", "not ready", |p| p.condition("Ready") == "False" && p.running("main"));
    node.finish();
}

/// The memory limit of a container or of its whole pod, in bytes.
fn memory_limit(node: &Node, id: &str, pod: bool) -> u64 {
    let files = ["memory.limit_in_bytes", "memory.max"];
    let found = files.into_iter().find_map(|file| node.container_cgroup(id, file).map(|dir| (dir, file)));
    let (dir, file) = found.unwrap_or_else(|| panic!("no memory limit of {id}"));
    let path = if pod { dir.join("..").join(file) } else { dir.join(file) };
    fs::read_to_string(&path).unwrap_or_default().trim().parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn a_pod_with_a_pinned_uid_is_resized_in_place() {
    let mut node = Node::up();
    let limits = |memory: &str| json!({ "limits": { "cpu": "100m", "memory": memory } });
    let mut m = pod("sized", REST);
    m["metadata"]["uid"] = json!("6f1c9f5e-3a53-4bb5-9c42-6c1d1e0b7a01");
    m["spec"]["securityContext"] = json!({ "supplementalGroups": [4000] });
    m["spec"]["terminationGracePeriodSeconds"] = json!(3);
    m["spec"]["containers"][0]["resources"] = limits("64Mi");
    let mut strict = container("strict", REST);
    strict["resources"] = limits("64Mi");
    strict["resizePolicy"] = json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    m["spec"]["containers"].as_array_mut().expect("containers").push(strict);
    let first = node.run(&m);
    assert_eq!(
        first.container("main")["user"]["linux"],
        json!({ "uid": 0, "gid": 0, "supplementalGroups": [0, 4000] })
    );
    let (main, strict) = (first.id("main"), first.id("strict"));
    assert_eq!((memory_limit(&node, &main, false), memory_limit(&node, &main, true)), (64 << 20, 128 << 20));
    let settled = |p: &PodView, memory: &str| {
        p.up()
            && p.container("main")["resources"]["limits"]["memory"] == memory
            && p.condition("PodResizePending").is_empty()
    };

    // Up, and down to what it does not use: nobody notices.
    for (memory, bytes) in [("96Mi", 96 << 20), ("32Mi", 32 << 20)] {
        m["spec"]["containers"][0]["resources"] = limits(memory);
        node.apply("sized.yaml", &m);
        let seen = node.wait_pod("sized", "resized", |p| settled(p, memory));
        assert_eq!((seen.id("main"), seen.id("strict")), (main.clone(), strict.clone()));
        assert_eq!(memory_limit(&node, &main, false), bytes);
        assert_eq!(memory_limit(&node, &main, true), bytes + (64 << 20));
    }

    // Down below what it uses: not now. One event says so, however often it is tried.
    node.sh("sized", "dd if=/dev/zero of=/dev/shm/ballast bs=1M count=20 2>/dev/null");
    m["spec"]["containers"][0]["resources"] = limits("16Mi");
    node.apply("sized.yaml", &m);
    let seen = node.wait_pod("sized", "deferred", |p| p.condition("PodResizePending") == "True");
    let pending = condition(&seen, "PodResizePending");
    assert_eq!(pending["reason"], "Deferred");
    assert!(pending["message"].as_str().unwrap_or_default().contains("below its current usage"), "{pending}");
    assert_eq!(seen.container("main")["resources"]["limits"]["memory"], "32Mi", "what is so");
    assert_eq!(seen.0["spec"]["containers"][0]["resources"]["limits"]["memory"], "16Mi", "what is wanted");
    sleep(secs(3));
    let deferred = node.events().iter().filter(|e| e["reason"] == "ResizeDeferred").count();
    assert_eq!(deferred, 1);
    assert_eq!(memory_limit(&node, &main, false), 32 << 20);
    node.sh("sized", "rm /dev/shm/ballast");
    let seen = node.wait_pod("sized", "resized at last", |p| settled(p, "16Mi"));
    assert_eq!((seen.id("main"), memory_limit(&node, &main, false)), (main.clone(), 16 << 20));

    // One that starts anew for it does not have to fit before, and the agent may be killed meanwhile.
    let fill = "dd if=/dev/zero of=/dev/null bs=40M </dev/null >/dev/null 2>&1 &";
    node.cli(&["exec", "sized", "-c", "strict", "--", "sh", "-c", fill]).ok();
    sleep(secs(2));
    m["spec"]["containers"][1]["resources"] = limits("24Mi");
    node.apply("sized.yaml", &m);
    node.wait_event("the resize", |reason, message| reason == "Killing" && message.contains("strict"));
    node.kill9();
    node.start();
    let seen = node.wait_pod("sized", "started anew", |p| p.up() && p.restarts("strict") == 1);
    assert_eq!((seen.id("main"), seen.restarts("main")), (main.clone(), 0));
    assert_eq!(memory_limit(&node, &seen.id("strict"), false), 24 << 20);
    assert_eq!(memory_limit(&node, &main, true), 40 << 20, "the pod shrinks once it has gone");

    // More than the node has: never. The pod stays as it is, and says what is wanted of it.
    let mut greedy = m.clone();
    greedy["spec"]["containers"][0]["resources"]["limits"]["memory"] = json!("1Ei");
    node.apply("sized.yaml", &greedy);
    let seen = node.wait_pod("sized", "infeasible", |p| p.condition("PodResizePending") == "True");
    assert_eq!(condition(&seen, "PodResizePending")["reason"], "Infeasible");
    assert_eq!((seen.id("main"), seen.up()), (main.clone(), true));
    node.apply("sized.yaml", &m);
    let seen = node.wait_pod("sized", "as it was", |p| p.condition("PodResizePending").is_empty());
    assert_eq!((seen.id("main"), seen.restarts("strict")), (main, 1));

    // Whatever else changes makes it another pod.
    m["spec"]["containers"][0]["env"] = json!([{ "name": "A", "value": "b" }]);
    node.apply("sized.yaml", &m);
    node.wait_pod("sized", "replaced", |p| p.up() && p.restarts("strict") == 0);
    assert_eq!(node.sh("sized", "echo $A"), "b");
    node.finish();
}

#[test]
fn what_is_cut_short_still_ends_well() {
    let node = Node::up();
    let shim_of = |pod: &PodView| {
        let all = node.own_processes();
        let found = all.iter().find(|(pid, text)| *pid != node.agent_pid() && text.contains(pod.uid()));
        found.unwrap_or_else(|| panic!("no shim of {}: {all:?}", pod.name())).0
    };
    let hook = |script: &str| json!({ "exec": { "command": ["sh", "-c", script] } });
    let polite = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

    // A postStart hook that never ends.
    let mut stuck = pod("stuck", polite);
    stuck["spec"]["containers"][0]["lifecycle"] = json!({ "postStart": hook("touch /share/hooked; sleep 3600") });
    share(&node, &mut stuck);
    // A preStop hook that asks a port where nobody listens.
    let mut deaf = pod("deaf", polite);
    deaf["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": { "httpGet": { "path": "/", "port": 9 } } });
    // A deadline that passes in an init container, under a sidecar.
    let mut late = pod("late", REST);
    late["spec"]["activeDeadlineSeconds"] = json!(2);
    late["spec"]["terminationGracePeriodSeconds"] = json!(2);
    let mut side = container("side", polite);
    side["restartPolicy"] = json!("Always");
    late["spec"]["initContainers"] = json!([side, container("setup", "sleep 3600")]);
    // Its shim is killed in its init container.
    let mut twice = pod("twice", REST);
    twice["spec"]["restartPolicy"] = json!("OnFailure");
    twice["spec"]["initContainers"] =
        json!([container("setup", "echo go >> /share/setup; test $(grep -c go /share/setup) -ge 2 || sleep 3600")]);
    share(&node, &mut twice);
    // Its shim is killed in its preStop hook.
    let mut halved = pod("halved", polite);
    halved["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": hook("touch /share/stopping; sleep 3600") });
    share(&node, &mut halved);
    // It is removed while all its containers restart.
    let mut whirl = pod("whirl", &format!("trap '' TERM; {}", REST.split_once(';').map_or(REST, |(_, rest)| rest)));
    let mut trigger = container("trigger", "touch /share/whirling; sleep 1; exit 88");
    trigger["restartPolicy"] = json!("Never");
    trigger["restartPolicyRules"] =
        json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [88] } }]);
    whirl["spec"]["containers"].as_array_mut().expect("containers").push(trigger);
    share(&node, &mut whirl);
    for manifest in [&stuck, &deaf, &late, &twice, &halved, &whirl] {
        node.apply(&format!("{}.yaml", manifest["metadata"]["name"].as_str().expect("a name")), manifest);
    }

    let seen =
        node.wait_pod("twice", "in its init container", |p| p.running("setup") && shared(&node, "setup") == "go\n");
    assert_eq!(seen.phase(), "Pending");
    signal(shim_of(&seen), Signal::KILL);
    let seen = node.wait_up("twice");
    assert_eq!((shared(&node, "setup").as_str(), seen.restarts("setup")), ("go\ngo\n", 1));
    assert_eq!(seen.last("setup")["reason"], "ContainerStatusUnknown");

    let seen = node.wait_up("halved");
    node.remove("halved.yaml");
    eventually("the hook runs", PATIENCE, || node.dir.join("share/stopping").exists());
    signal(shim_of(&seen), Signal::KILL);
    node.wait_gone("halved");

    eventually("the hook runs", PATIENCE, || node.dir.join("share/hooked").exists());
    let seen = node.pod("stuck").expect("there");
    assert!(seen.running("main") && seen.condition("Ready") == "True", "as kubelet: only probes wait for the hook");
    let begin = std::time::Instant::now();
    node.remove("stuck.yaml");
    node.wait_gone("stuck");
    assert!(begin.elapsed() < secs(10), "the removal does not wait for the hook: {:?}", begin.elapsed());

    node.wait_up("deaf");
    let begin = std::time::Instant::now();
    node.remove("deaf.yaml");
    node.wait_gone("deaf");
    assert!(begin.elapsed() < secs(10), "{:?}", begin.elapsed());
    node.wait_event("the hook's failure", |reason, message| {
        reason == "FailedPreStopHook" && message.starts_with("PreStopHook of container main failed")
    });

    let seen = node.wait_pod("late", "over", |p| p.phase() == "Failed");
    assert_eq!(seen.0["status"]["reason"], "DeadlineExceeded");
    assert_eq!(condition(&seen, "Initialized")["reason"], "ContainersNotInitialized");
    assert!(!seen.running("side") && !seen.running("setup") && seen.container("main")["containerID"].is_null());

    node.wait_event("the restart of all", |reason, _| reason == "RestartingAllContainers");
    node.remove("whirl.yaml");
    node.wait_gone("whirl");
    node.finish();
}
