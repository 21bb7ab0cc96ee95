//! Images that pods and people pull: policies, back-off, events, and what happens without a registry.

use super::harness::{Node, image_archive, resting};
use super::registry_server::{Auth, Registry};
use serde_json::{Value, json};

/// A resting pod with this image and policy.
fn with_image(name: &str, image: &str, policy: &str) -> Value {
    let mut pod = resting(name);
    pod["spec"]["containers"][0]["image"] = json!(image);
    pod["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
    pod
}

/// Where nobody listens: a reference to an image of a registry that is down.
fn nowhere(name: &str) -> String {
    format!("127.0.0.1:{}/{name}", super::harness::free_port())
}

#[test]
fn a_pod_s_image_is_pulled_once_and_always_means_at_each_start() {
    let registry = Registry::start(Auth::Plain);
    registry.push(&image_archive("pulled:1"), "team/app:1");
    let image = registry.reference("team/app:1");
    let node = Node::up();
    node.apply("once.yaml", with_image("once", &image, "IfNotPresent"));
    node.wait_up("once");
    let quoted = format!("\"{image}\"");
    node.wait_event("the pull begins", |reason, text| reason == "Pulling" && text.contains(&quoted));
    let pulled = node.wait_event("the pull ends", |reason, text| {
        reason == "Pulled" && text.starts_with(&format!("Successfully pulled image {quoted} in "))
    });
    assert!(pulled["message"].as_str().is_some_and(|m| m.contains(" including waiting). Image size: ")), "{pulled}");
    assert_eq!(pulled["involvedObject"]["fieldPath"], "spec.containers{main}");
    let fetched = registry.requests("GET /v2/team/app/blobs/");
    node.apply("again.yaml", with_image("again", &image, "IfNotPresent"));
    node.wait_up("again");
    node.wait_event("no second pull", |reason, text| reason == "Pulled" && text.contains("already present on machine"));
    assert_eq!(registry.requests("GET /v2/team/app/blobs/"), fetched, "what is here is not fetched");
    let asked = registry.requests("/v2/team/app/manifests/");
    node.apply("always.yaml", with_image("always", &image, "Always"));
    node.wait_up("always");
    let first = registry.requests("/v2/team/app/manifests/");
    assert!(first > asked, "Always asks though the image is here");
    node.cli(&["exec", "always", "--", "sh", "-c", "kill 1"]);
    node.wait_pod("always", "started again", |p| p.restarts("main") == 1 && p.running("main"));
    assert!(registry.requests("/v2/team/app/manifests/") > first, "and at the restart");
    let list = node.cli(&["image", "ls"]).ok();
    let row = list.lines().find(|line| line.contains(&image)).unwrap_or_default();
    assert!(row.contains("default/again-") && row.contains("2 more"), "{list}");
    node.finish();
}

#[test]
fn a_registry_that_comes_up_late_is_found_and_one_that_goes_away_stops_nobody() {
    let mut registry = Registry::start(Auth::Plain);
    registry.push(&image_archive("late:1"), "team/late:1");
    registry.stop();
    let image = registry.reference("team/late:1");
    let mut node = Node::up();
    node.apply("web.yaml", with_image("web", &image, "Always"));
    let seen = node.wait_pod("web", "waits for its next pull", |p| p.waiting("main") == "ImagePullBackOff");
    let message = seen.waiting_message("main");
    assert!(message.starts_with(&format!("Back-off pulling image \"{image}\": RegistryUnavailable: ")), "{message}");
    node.wait_event("it failed", |reason, text| reason == "Failed" && text.starts_with("Failed to pull image"));
    node.wait_event("its reason", |reason, text| reason == "Failed" && text == "Error: RegistryUnavailable");
    node.wait_event("it waits", |reason, text| {
        reason == "BackOff" && text == format!("Back-off pulling image \"{image}\"")
    });
    registry.restart();
    node.wait_up("web");
    // A device that boots without its network.
    registry.stop();
    node.remove("web.yaml");
    node.wait_gone("web");
    node.restart();
    node.apply("web.yaml", with_image("web", &image, "Always"));
    node.wait_up("web");
    node.wait_event("people are told", |reason, text| reason == "RegistryUnavailable" && text.contains(&image));
    node.finish();
}

#[test]
fn nobody_waits_for_an_image_that_nobody_can_have_or_that_nobody_wants_any_more() {
    let mut node = Node::up();
    let absent = nowhere("app:1");
    node.apply("never.yaml", with_image("never", &absent, "Never"));
    let seen = node.wait_pod("never", "never pulled", |p| p.waiting("main") == "ErrImageNeverPull");
    assert!(seen.waiting_message("main").contains("is not present with pull policy of Never"));
    node.wait_event("told", |reason, _| reason == "ErrImageNeverPull");
    // Another container of the pod is not held back.
    let mut two = with_image("two", &absent, "IfNotPresent");
    let other = resting("x")["spec"]["containers"][0].clone();
    two["spec"]["containers"].as_array_mut().expect("a list").push(other);
    two["spec"]["containers"][1]["name"] = json!("other");
    node.apply("two.yaml", &two);
    let seen = node.wait_pod("two", "the other runs", |p| p.running("other") && !p.waiting("main").is_empty());
    assert!(!seen.running("main"));
    // An edit ends the wait.
    node.apply("two.yaml", resting("two"));
    node.wait_up("two");
    node.kill9();
    node.start();
    node.wait_pod("never", "the same after a crash", |p| p.waiting("main") == "ErrImageNeverPull");
    node.finish();
}

#[test]
fn people_pull_and_read_what_happened() {
    let mut registry = Registry::start(Auth::Plain);
    registry.push(&image_archive("hand:1"), "team/hand:1");
    let image = registry.reference("team/hand:1");
    let node = Node::up();
    let said = node.cli(&["image", "pull", &image]).ok();
    assert!(said.contains(" layer") && said.contains(&format!("{image} pulled (sha256:")), "{said}");
    let said = node.cli(&["image", "pull", &image]).ok();
    assert!(said.contains(&format!("{image} is up to date (sha256:")), "{said}");
    assert!(node.cli(&["image", "ls"]).ok().contains(&image));
    let said = node.cli(&["image", "pull", &registry.reference("team/none:1")]).fails(1);
    assert!(said.contains("error: cannot pull") && said.contains("not found"), "{said}");
    let said = node.cli(&["image", "pull", "Not/Valid"]).fails(1);
    assert!(said.contains("InvalidImageName"), "{said}");
    registry.stop();
    let said = node.cli(&["image", "pull", &registry.reference("team/other:1")]).fails(1);
    assert!(said.contains("RegistryUnavailable") && said.contains("hint: "), "{said}");
    let metrics = super::harness::http(("127.0.0.1", node.healthz), "/metrics").expect("metrics").1;
    assert!(metrics.contains("coracle_image_pulls_total{result=\"success\"} 2"), "{metrics}");
    assert!(metrics.contains("coracle_image_pulls_total{result=\"RegistryUnavailable\"} 1"), "{metrics}");
    let record = node.dir.join("root/store/pulled");
    assert_eq!(std::fs::read_dir(record).expect("records").count(), 1);
    assert_eq!(std::fs::read_dir(node.dir.join("root/store/pulling")).expect("intents").count(), 0);
    node.finish();
}
