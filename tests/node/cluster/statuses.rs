//! What the API server is told of pods, and how they end.

use super::mirrors::roomy;
use super::specs::{bound, wait};
use super::{Plane, condition};
use crate::harness::{Node, PodView, REST, eventually, pod, resting, secs};
use serde_json::{Value, json};

fn reason(pod: &PodView, kind: &str) -> String {
    let all = pod.0["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
    found["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn live_statuses_reach_the_api_server_and_others_words_stay() {
    let plane = Plane::shared();
    let node = roomy(plane);
    let namespace = plane.namespace("statuses");

    // A static pod that crashes again and again.
    let mut crashing = pod("crashing", "echo bye > /dev/termination-log; exit 3");
    crashing["metadata"]["namespace"] = json!(*namespace);
    node.apply("crashing.yaml", &crashing);
    let full = format!("crashing-{}", node.name);
    let told = wait(plane, &namespace, &full, "backs off", |p| {
        p.waiting("main") == "CrashLoopBackOff" && p.restarts("main") > 0
    });
    assert_eq!((&told.last("main")["exitCode"], &told.last("main")["message"]), (&json!(3), &json!("bye\n")));
    assert_eq!((told.condition("Ready"), reason(&told, "Ready").as_str()), ("False", "ContainersNotReady"));
    assert!(told.waiting_message("main").contains(&full), "{}", told.waiting_message("main"));
    node.remove("crashing.yaml");

    // A pod that runs to its end.
    let mut job = pod("job", "exit 0");
    job["spec"]["restartPolicy"] = json!("Never");
    plane.apply(&bound(&node, &namespace, job));
    let done = wait(plane, &namespace, "job", "succeeded", |p| p.phase() == "Succeeded");
    assert_eq!((reason(&done, "Ready").as_str(), &done.terminated("main")["exitCode"]), ("PodCompleted", &json!(0)));

    // A readiness gate holds a pod back until somebody says so; whoever said it is heard at once, and not overruled.
    let mut gated = resting("gated");
    gated["spec"]["readinessGates"] = json!([{ "conditionType": "example.com/lb" }]);
    let generation = plane.apply(&bound(&node, &namespace, gated))["metadata"]["generation"].clone();
    let held = wait(plane, &namespace, "gated", "held back", |p| p.condition("ContainersReady") == "True");
    assert_eq!((held.condition("Ready"), reason(&held, "Ready").as_str()), ("False", "ReadinessGatesNotReady"));
    assert_eq!(held.0["status"]["observedGeneration"], generation);
    assert_eq!(held.0["status"]["qosClass"], "BestEffort");
    let say = |status: &str| {
        let body = json!({ "status": { "conditions": [{ "type": "example.com/lb", "status": status }] } });
        let args = ["patch", "pod", "gated", "-n", &namespace, "--subresource=status", "--type=strategic", "-p"];
        plane.kubectl(&[&args[..], &[&body.to_string()]].concat()).ok();
    };
    say("True");
    let ready = wait(plane, &namespace, "gated", "let go", |p| p.condition("Ready") == "True");
    assert_eq!((ready.condition("example.com/lb"), ready.id("main")), ("True", held.id("main")));

    // While the cable is out: what still matters then is told when it is in again, with its own times.
    plane.unplug(&node);
    let run = node.pods().into_iter().find(|p| p.name() == "gated").expect("the pod");
    assert_eq!(run.condition("Ready"), "True", "nobody took it back");
    node.cli(&["exec", "gated", "-n", &namespace, "--", "kill", "1"]);
    node.wait("a restart", secs(30), |pods| {
        pods.iter().any(|p| p.name() == "gated" && p.restarts("main") == 1 && p.up())
    });
    plane.plug(&node);
    let back = wait(plane, &namespace, "gated", "one restart, and Ready", |p| {
        p.restarts("main") == 1 && p.condition("Ready") == "True" && p.up()
    });
    assert_eq!(back.condition("example.com/lb"), "True");
    assert_eq!(plane.refused(&node.name), [""; 0]);
    plane.finish(node);
}

#[test]
fn pods_end_in_the_order_of_the_protocol() {
    let plane = Plane::shared();
    let mut node = roomy(plane);
    let namespace = plane.namespace("ends");
    let gone = |name: &str| plane.wait("Pod", &namespace, name, "gone", Value::is_null);

    // Gracefully: told as it goes, and gone once nothing is left.
    let mut slow = pod("slow", "trap 'sleep 3; exit 0' TERM; while :; do sleep 3600 & wait $!; done");
    slow["spec"]["terminationGracePeriodSeconds"] = json!(20);
    // Whoever looks at its last state needs it to stay.
    slow["metadata"]["finalizers"] = json!(["example.com/look"]);
    plane.apply(&bound(&node, &namespace, slow));
    wait(plane, &namespace, "slow", "runs", PodView::up);
    plane.delete("Pod", &namespace, "slow");
    let ended = wait(plane, &namespace, "slow", "ended", |p| p.phase() == "Succeeded");
    assert_eq!(ended.terminated("main")["exitCode"], 0);
    assert_eq!((condition(&ended.0, "Ready"), reason(&ended, "Ready").as_str()), ("False", "PodCompleted"));
    eventually("nothing on the machine", secs(30), || !node_has(&node, "slow"));
    plane.patch("Pod", &namespace, "slow", &json!({ "metadata": { "finalizers": null } }));
    gone("slow");

    // By force: the object goes at once, the containers with it.
    plane.apply(&bound(&node, &namespace, resting("forced")));
    wait(plane, &namespace, "forced", "runs", PodView::up);
    plane.kubectl(&["delete", "pod", "forced", "-n", &namespace, "--force", "--grace-period=0", "--wait=false"]).ok();
    gone("forced");
    eventually("nothing of the forced pod", secs(30), || !node_has(&node, "forced"));

    // One that never started.
    let mut never = pod("never", REST);
    never["spec"]["containers"][0]["image"] = json!("127.0.0.1:1/none:1");
    plane.apply(&bound(&node, &namespace, never));
    wait(plane, &namespace, "never", "waits", |p| !p.waiting("main").is_empty());
    plane.delete("Pod", &namespace, "never");
    gone("never");

    // While the agent is away.
    plane.apply(&bound(&node, &namespace, resting("away")));
    wait(plane, &namespace, "away", "runs", PodView::up);
    node.stop();
    plane.delete("Pod", &namespace, "away");
    node.start();
    gone("away");
    eventually("nothing is left", secs(30), || !node_has(&node, "away"));
    assert_eq!(plane.refused(&node.name), [""; 0]);
    plane.finish(node);
}

fn node_has(node: &Node, name: &str) -> bool {
    node.pods().iter().any(|pod| pod.name() == name)
}
