//! Which containers run again, and how they are stopped: init containers, sidecars, policies, rules, deadlines, hooks,
//! failing probes.

use crate::harness::{BUSYBOX, Node, PATIENCE, PodView, REST, eventually, pod, secs};
use jiff::Timestamp;
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
    assert_eq!(shared(&node, "order"), "try\ntry\ntry\napp\n");
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
    assert_eq!(shared(&node, "order"), "setup\nmain\nsetup\nmain\n");
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
    m["spec"]["terminationGracePeriodSeconds"] = json!(30);
    m["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": { "command": ["sh", "-c", "test $(grep -c start /share/order) -ge 2"] },
        "periodSeconds": 1, "failureThreshold": 2,
    });
    share(&node, &mut m);
    node.apply("web.yaml", &m);
    let seen = node.wait_pod("web", "restarted", |p| p.restarts("main") == 1 && p.up());
    assert_eq!(shared(&node, "order"), "start\nterm\nstart\n");
    assert_eq!(seen.last("main")["exitCode"], 0, "Always restarts it, however it ended");
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
