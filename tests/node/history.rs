//! Revisions of pods: what is refused changes nothing, what does not work is rolled back, and people can go back by hand.

use crate::harness::{Node, PATIENCE, REST, eventually, mode, pod, resting};
use serde_json::{Value, json};
use std::fs;

/// A resting pod whose revision is told by a variable, and that is rolled back unless it works in time.
fn gated(revision: &str, script: &str, limit: &str) -> Value {
    let mut pod = pod("web", script);
    pod["metadata"]["annotations"] = json!({ "coracle.dev/rollback-after": limit });
    pod["spec"]["containers"][0]["env"] = json!([{ "name": "REVISION", "value": revision }]);
    pod
}

#[track_caller]
fn wait_revision(node: &Node, revision: &str) {
    node.wait_pod("web", &format!("revision {revision}"), |p| {
        p.up() && p.0["spec"]["containers"][0]["env"][0]["value"] == revision
    });
}

/// `coracle history pod web -o json`.
#[track_caller]
fn history(node: &Node) -> Vec<Value> {
    let text = node.cli(&["history", "pod", "web", "-o", "json"]).ok();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    value["items"].as_array().expect("items").clone()
}

/// Waits until revision `number` is said to be `verdict`, in the answer and on the disk.
#[track_caller]
fn wait_verdict(node: &Node, number: u64, verdict: &str) {
    eventually(&format!("revision {number} is {verdict}"), PATIENCE, || {
        history(node).iter().any(|item| item["revision"] == number && item["verdict"] == verdict)
    });
    let records = node.dir.join("root/manifests/history");
    let says = |text: &str| {
        let Ok(record) = serde_json::from_str::<Value>(text) else { return false };
        let all = record["revisions"].as_array().cloned().unwrap_or_default();
        all.iter().any(|r| r["number"] == number && r["verdict"]["is"] == verdict.to_lowercase())
    };
    eventually("the record says so", PATIENCE, || {
        let files = fs::read_dir(&records).into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).any(|text| says(&text))
    });
}

/// Reasons of the events about the pod, in their order.
fn story(node: &Node) -> Vec<String> {
    let told = ["TrialBegun", "TrialPassed", "TrialFailed", "RolledBack", "RollbackImpossible", "ManifestApplied"];
    let reasons = node.events().into_iter().filter_map(|e| e["reason"].as_str().map(str::to_owned));
    reasons.filter(|reason| told.contains(&reason.as_str())).collect()
}

#[test]
fn a_revision_that_crash_loops_is_replaced_by_the_last_good_one_in_time() {
    let node = Node::up();
    node.apply("web.yaml", gated("one", REST, "6s"));
    wait_revision(&node, "one");
    wait_verdict(&node, 1, "Good");
    assert_eq!(story(&node), ["TrialBegun", "TrialPassed"]);

    node.apply("web.yaml", gated("two", "sleep 0.1; exit 3", "4s"));
    node.wait_event("the trial failed", |reason, message| {
        reason == "TrialFailed"
            && message.contains("revision 2 does not work")
            && message.contains("not Ready within 4s")
    });
    wait_revision(&node, "one");
    assert_eq!(story(&node), ["TrialBegun", "TrialPassed", "TrialBegun", "TrialFailed", "RolledBack"]);
    wait_verdict(&node, 2, "Bad");
    let all = history(&node);
    assert_eq!((&all[0]["running"], &all[0]["verdict"]), (&json!(true), &json!("Good")), "{all:?}");
    assert_eq!((&all[1]["running"], &all[1]["manifest"]), (&json!(false), &json!(true)), "{all:?}");

    // Everybody can see it.
    let view = node.pod("web").expect("web");
    assert_eq!(view.condition("coracle.dev/ManifestApplied"), "False");
    assert!(node.cli(&["get", "pods"]).ok().contains("Running,RolledBack"));
    let described = node.cli(&["describe", "pod", "web"]).ok();
    assert!(described.contains("revision 2 did not work: not Ready within 4s"), "{described}");
    let table = node.cli(&["history", "web"]).ok();
    assert!(table.contains("failed: not Ready within 4s") && table.contains("running, rolled back, good"), "{table}");

    // The manifest is not tried again: not by a rescan, not by another agent.
    let uid = view.uid().to_owned();
    let mut node = node;
    node.restart();
    wait_revision(&node, "one");
    assert_eq!(node.pod("web").expect("web").uid(), uid);
    assert_eq!(story(&node), ["RolledBack"], "the new agent tells it, too");
    // Another manifest is.
    node.apply("web.yaml", gated("three", REST, "6s"));
    wait_revision(&node, "three");
    wait_verdict(&node, 3, "Good");
    assert_eq!(story(&node), ["RolledBack", "ManifestApplied", "TrialBegun", "TrialPassed"]);
    assert_eq!(node.pod("web").expect("web").condition("coracle.dev/ManifestApplied"), "");
    node.finish();
}

#[test]
fn a_trial_outlives_the_agent_and_three_starts_of_it_end_the_trial() {
    let mut node = Node::up();
    // The manifest gives the uid: revisions are told by what they say alone.
    let with_uid = |revision: &str, script: &str, limit: &str| {
        let mut pod = gated(revision, script, limit);
        pod["metadata"]["uid"] = json!("11111111-2222-3333-4444-555555555555");
        pod
    };
    node.apply("web.yaml", with_uid("one", REST, "6s"));
    wait_revision(&node, "one");
    wait_verdict(&node, 1, "Good");
    node.apply("web.yaml", with_uid("two", "exit 1", "6s"));
    node.wait_event("the trial began", |reason, message| reason == "TrialBegun" && message.contains("revision 2"));
    wait_verdict(&node, 2, "Unknown");
    node.kill9();
    node.start();
    node.wait_event("it goes on", |reason, message| reason == "TrialBegun" && message.contains("started 1 times"));
    wait_revision(&node, "one");
    assert_eq!(story(&node), ["TrialBegun", "TrialFailed", "RolledBack"]);

    // What takes the agent down with it is not started for ever.
    node.apply("web.yaml", with_uid("three", REST, "1h"));
    wait_revision(&node, "three");
    wait_verdict(&node, 3, "Unknown");
    for _ in 0..3 {
        wait_revision(&node, "three");
        node.kill9();
        node.start();
    }
    wait_revision(&node, "one");
    let all = history(&node);
    let last = all.last().expect("revisions");
    assert!(last["message"].as_str().is_some_and(|why| why.contains("started 3 times")), "{last}");
    node.finish();
}

#[test]
fn without_a_good_revision_nothing_is_rolled_back() {
    let node = Node::up();
    node.apply("web.yaml", gated("one", "exit 1", "2s"));
    node.wait_event("there is nothing to go back to", |reason, message| {
        reason == "RollbackImpossible" && message.contains("no revision before it was good")
    });
    let view = node.pod("web").expect("it stays");
    assert_eq!(view.condition("coracle.dev/ManifestApplied"), "");
    assert!(node.cli(&["rollback", "web"]).fails(1).contains("no revision before revision 1"));
    node.finish();
}

#[test]
fn people_go_back_and_forth_between_revisions() {
    let mut node = Node::up();
    let plain = |revision: &str| {
        let mut pod = resting("web");
        pod["spec"]["containers"][0]["env"] = json!([{ "name": "REVISION", "value": revision }]);
        pod
    };
    assert!(node.cli(&["history", "pod", "web"]).fails(1).contains("no rollout history found for pod \"web\""));
    for revision in ["one", "two", "three"] {
        node.apply("web.yaml", plain(revision));
        wait_revision(&node, revision);
    }
    let name = format!("web-{}", node.name);
    assert_eq!(node.cli(&["rollback", "pod", "web"]).ok(), format!("pod/{name} rolled back to revision 2\n"));
    wait_revision(&node, "two");
    assert_eq!(
        node.cli(&["rollback", "pod/web", "--to-revision", "2"]).ok(),
        format!("pod/{name} skipped rollback (current template already matches revision 2)\n")
    );
    assert!(node.cli(&["rollback", "web", "--to-revision=7"]).fails(1).contains("unable to find specified revision 7"));
    node.wait_event("it is told", |reason, message| reason == "RolledBack" && message.contains("by hand"));
    assert!(node.cli(&["get", "pods"]).ok().contains("Running,RolledBack"));

    // What was said to be done is done, also for an agent that ends at once.
    assert!(node.cli(&["rollback", "web", "--to-revision=1"]).ok().contains("rolled back to revision 1"));
    node.kill9();
    node.start();
    wait_revision(&node, "one");
    let records = node.dir.join("root/manifests/history");
    assert_eq!(mode(&records), 0o700);
    for file in fs::read_dir(&records).expect("records").flatten() {
        assert_eq!(mode(&file.path()), 0o600, "{}", file.path().display());
    }
    let whole = node.cli(&["history", "web", "--revision", "2", "-o", "json"]).ok();
    let whole: Value = serde_json::from_str(&whole).expect("a pod");
    assert_eq!(whole["spec"]["containers"][0]["env"][0]["value"], "two");
    assert!(node.cli(&["history", "web", "--revision", "3"]).ok().contains("value: three"));

    // Back to what the manifest says.
    assert!(node.cli(&["rollback", "web", "--to-revision=3"]).ok().contains("rolled back to revision 3"));
    wait_revision(&node, "three");
    assert!(!node.cli(&["get", "pods"]).ok().contains("RolledBack"));
    // A manifest that changes ends a rollback.
    node.cli(&["rollback", "web", "--to-revision=1"]).ok();
    wait_revision(&node, "one");
    node.apply("web.yaml", plain("four"));
    wait_revision(&node, "four");
    // A pod that comes back goes on counting, and a damaged record costs the way back only.
    node.remove("web.yaml");
    node.wait_gone("web");
    assert!(node.cli(&["rollback", "web"]).fails(1).contains("no manifest has pod"));
    node.apply("web.yaml", plain("five"));
    wait_revision(&node, "five");
    assert_eq!(history(&node).last().expect("revisions")["revision"], 5);
    eventually("the record is written", PATIENCE, || {
        let files = fs::read_dir(&records).expect("records").flatten();
        files.map(|f| fs::read_to_string(f.path()).unwrap_or_default()).any(|text| text.contains("\"running\":5"))
    });
    node.stop();
    for file in fs::read_dir(&records).expect("records").flatten() {
        fs::write(file.path(), b"{\"namespace\":").expect("damage");
    }
    node.start();
    wait_revision(&node, "five");
    assert_eq!(history(&node).len(), 1);
    node.finish();
}
