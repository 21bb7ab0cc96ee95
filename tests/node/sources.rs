//! What people and programs do to the manifest directory, wrong and right.

use crate::harness::{
    BUSYBOX, Node, PATIENCE, PodView, REST, alive, eventually, free_port, image_archive, pod, resting, secs,
};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread::sleep;

/// A running pod, and the proof that it is left alone.
struct Untouched {
    before: PodView,
    pid: i32,
}

impl Untouched {
    #[track_caller]
    fn start(node: &Node) -> Untouched {
        let before = node.run(&resting("web"));
        Untouched { pid: node.init_pid(&before.id("main")), before }
    }

    #[track_caller]
    fn check(&self, node: &Node) {
        let now = node.pod("web").unwrap_or_else(|| node.fail("the pod is gone"));
        assert_eq!(now.id("main"), self.before.id("main"), "another container");
        assert_eq!(now.uid(), self.before.uid());
        assert_eq!(now.restarts("main"), 0);
        assert!(now.up() && alive(self.pid), "it does not run any more");
    }
}

/// Overwrites `web.yaml` with `content`, expects an event that names the file (and `text`), the error in the log and
/// the metrics, and the pod left alone; then that the repaired file is taken.
#[track_caller]
fn broken_edit(content: &[u8], text: &str) {
    let node = Node::up();
    let untouched = Untouched::start(&node);
    fs::write(node.manifest("web.yaml"), content).expect("edit");
    let event = node.wait_event(&format!("web.yaml and {text:?}"), |_, message| {
        message.contains("web.yaml") && message.contains(text)
    });
    assert_eq!(event["type"], "Warning", "{event}");
    assert!(event["message"].as_str().is_some_and(|m| m.len() < 4096), "an event is no dump of the file");
    untouched.check(&node);
    // The next rescan must not remove it either.
    sleep(secs(2));
    untouched.check(&node);
    let log = fs::read_to_string(node.dir.join("agent.log")).expect("log");
    assert!(log.contains("web.yaml"), "{log}");
    let metrics = crate::harness::http(("127.0.0.1", node.healthz), "/metrics").expect("metrics").1;
    let counted = metrics.lines().any(|l| {
        l.contains("manifest") && !l.starts_with('#') && l.rsplit(' ').next().is_some_and(|v| v.parse() != Ok(0.0))
    });
    assert!(counted, "the error is counted: {metrics}");
    node.apply("web.yaml", pod("web", &format!("echo repaired; {REST}")));
    node.wait_pod("web", "repaired", |p| p.up() && p.uid() != untouched.before.uid());
    node.finish();
}

#[test]
fn a_broken_edit_leaves_the_pod_running() {
    broken_edit(
        b"apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: main\n   image: x\n",
        "8",
    );
}

#[test]
fn an_invalid_edit_names_the_field() {
    broken_edit(
        b"apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: Main_\n    image: x\n",
        "spec.containers[0].name",
    );
}

#[test]
fn an_emptied_file_leaves_the_pod_running() {
    let node = Node::up();
    let untouched = Untouched::start(&node);
    fs::write(node.manifest("web.yaml"), b"").expect("empty");
    sleep(secs(2));
    untouched.check(&node);
    node.wait_event("the empty file", |_, message| message.contains("web.yaml"));
    node.finish();
}

#[test]
fn binary_garbage_leaves_the_pod_running() {
    let garbage: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    broken_edit(&garbage, "");
}

#[test]
fn twenty_mebibytes_are_refused_unread() {
    let mut big = b"apiVersion: v1\nkind: Pod\n".to_vec();
    big.resize(20 << 20, b'#');
    broken_edit(&big, "10");
}

#[test]
fn a_yaml_bomb_is_defused() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..30 {
        let prev = format!("*a{}", i - 1);
        bomb.push_str(&format!("a{i}: &a{i} [{}]\n", [prev.as_str(); 10].join(",")));
    }
    broken_edit(bomb.as_bytes(), "");
}

#[test]
fn deep_nesting_is_refused() {
    broken_edit("[".repeat(200_000).as_bytes(), "");
}

#[test]
fn backups_and_editors_files_are_no_manifests() {
    let node = Node::up();
    let untouched = Untouched::start(&node);
    let other = pod("web", "exit 1").to_string();
    for name in ["web.yaml.bak", "web.yaml~", ".web.yaml.swp", "#web.yaml#", "4913", ".web.yaml", "web.yaml.rpmsave"] {
        fs::write(node.manifest(name), &other).expect("write");
    }
    node.wait_event("the backup is reported", |_, message| message.contains("web.yaml.bak"));
    sleep(secs(2));
    untouched.check(&node);
    assert_eq!(node.pods().len(), 1);
    let reports = |events: &[serde_json::Value]| -> i64 {
        let of_bak = events.iter().filter(|e| e["message"].as_str().is_some_and(|m| m.contains("web.yaml.bak")));
        of_bak.map(|e| e["count"].as_i64().unwrap_or(1).max(1)).sum()
    };
    assert_eq!(reports(&node.events()), 1, "reported once");
    node.finish();
}

#[test]
fn unreadable_entries_do_no_harm() {
    let node = Node::up();
    let untouched = Untouched::start(&node);
    symlink("/nonexistent/web.yaml", node.manifest("dangling.yaml")).expect("link");
    symlink("loop.yaml", node.manifest("loop.yaml")).expect("link");
    fs::create_dir(node.manifest("folder.yaml")).expect("folder");
    assert!(Command::new("mkfifo").arg(node.manifest("pipe.yaml")).status().expect("mkfifo").success());
    let _socket = std::os::unix::net::UnixListener::bind(node.manifest("socket.yaml")).expect("socket");
    symlink("/dev/zero", node.manifest("endless.yaml")).expect("link");
    node.apply("next.yaml", resting("next"));
    node.wait_up("next");
    untouched.check(&node);
    // The running pod's own file becomes unreadable.
    fs::remove_file(node.manifest("web.yaml")).expect("remove");
    symlink("/proc/self/mem", node.manifest("web.yaml")).expect("link");
    node.wait_event("the unreadable file", |_, message| message.contains("web.yaml"));
    node.finish();
}

#[test]
fn a_vanished_directory_keeps_everything_running() {
    let mut node = Node::up();
    let untouched = Untouched::start(&node);
    let (here, away) = (node.dir.join("manifests"), node.dir.join("away"));
    fs::rename(&here, &away).expect("take the directory away");
    node.wait_event("the directory", |_, message| message.contains("manifests"));
    sleep(secs(2));
    untouched.check(&node);
    // Also across a restart of the agent.
    node.kill9();
    node.start();
    sleep(secs(2));
    untouched.check(&node);
    fs::rename(&away, &here).expect("bring it back");
    node.apply("next.yaml", resting("next"));
    node.wait_up("next");
    untouched.check(&node);
    node.remove("web.yaml");
    node.wait_gone("web");
    node.finish();
}

#[test]
fn a_replaced_directory_is_watched_again() {
    let node = Node::up();
    node.run(&resting("web"));
    let here = node.dir.join("manifests");
    let fresh = node.dir.join("fresh");
    fs::create_dir(&fresh).expect("folder");
    fs::write(fresh.join("new.yaml"), resting("new").to_string()).expect("manifest");
    fs::rename(&here, node.dir.join("old")).expect("rename");
    fs::rename(&fresh, &here).expect("rename");
    node.wait_up("new");
    node.wait_gone("web");
    node.apply("again.yaml", resting("again"));
    node.wait_up("again");
    node.finish();
}

#[test]
fn touching_or_rewriting_a_file_changes_nothing() {
    let node = Node::up();
    let untouched = Untouched::start(&node);
    for _ in 0..3 {
        fs::write(node.manifest("web.yaml"), resting("web").to_string()).expect("rewrite");
        node.apply("web.yaml", resting("web"));
        sleep(secs(1));
        untouched.check(&node);
    }
    node.finish();
}

#[test]
fn a_half_written_file_is_not_believed() {
    let node = Node::up();
    let untouched = Untouched::start(&node);
    let text = format!(
        r#"apiVersion: v1
kind: Pod
metadata:
  name: slow
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, "{REST}"]
  - name: second
    image: {BUSYBOX}
    command: [sh, -c, "{REST}"]
"#
    );
    let half = text.find("  - name: second").expect("second container") - 20;
    fs::write(node.manifest("slow.yaml"), &text[..half]).expect("first half");
    sleep(secs(1));
    untouched.check(&node);
    fs::write(node.manifest("slow.yaml"), &text).expect("all of it");
    let seen = node.wait_up("slow");
    assert_eq!(seen.0["spec"]["containers"].as_array().map(Vec::len), Some(2));
    untouched.check(&node);
    node.finish();
}

#[test]
fn all_documents_of_a_file_count() {
    let node = Node::up();
    let documents = format!("---\n{}\n---\n# nothing here\n---\n{}\n", resting("one"), resting("two"));
    node.apply("both.yaml", documents);
    node.wait_up("one");
    let two = node.wait_up("two");
    // One document breaks: the other one goes on, and the broken one's pod is kept.
    node.apply("both.yaml", format!("---\n{}\n---\nkind: Pod\napiVersion: v1\nspec: 7\n", resting("one")));
    node.wait_event("the broken document", |_, message| message.contains("both.yaml"));
    sleep(secs(1));
    assert_eq!(node.pod("two").map(|p| p.id("main")), Some(two.id("main")), "last known good");
    node.apply("both.yaml", resting("one"));
    node.wait_gone("two");
    node.wait_up("one");
    node.finish();
}

#[test]
fn lists_and_json_are_read() {
    let node = Node::up();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [resting("one"), resting("two")] });
    node.apply("list.json", &list);
    node.wait_up("one");
    node.wait_up("two");
    let pods = json!({ "apiVersion": "v1", "kind": "PodList", "items": [resting("three")] });
    node.apply("pods.yml", &pods);
    node.wait_up("three");
    node.finish();
}

#[test]
fn a_refused_field_refuses_the_pod_with_its_path() {
    let node = Node::up();
    let mut m = resting("web");
    m["spec"]["runtimeClassName"] = json!("kata");
    node.apply("web.yaml", &m);
    node.wait_event("the refused field", |_, message| message.contains("spec.runtimeClassName"));
    assert!(node.pod("web").is_none_or(|p| !p.up()));
    let mut m = resting("two");
    m["spec"]["imagePullSecrets"] = json!([{ "name": "s" }]);
    node.apply("two.yaml", &m);
    node.wait_event("the reference", |_, message| message.contains("two.yaml") && message.contains("secret"));
    let mut m = resting("three");
    m["spec"]["containers"][0]["comand"] = json!(["typo"]);
    node.apply("three.yaml", &m);
    node.wait_event("the typo", |_, message| message.contains("comand"));
    node.finish();
}

#[test]
fn a_time_to_become_ready_that_cannot_be_is_refused_before_it_is_written() {
    let mut node = Node::new();
    node.start();
    let mut bad = resting("web");
    bad["metadata"]["annotations"] = json!({ "coracle.dev/rollback-after": "soon" });
    let said = node.cli_with(&["apply", "-f", "-"], bad.to_string().as_bytes()).fails(1);
    assert!(said.contains("metadata.annotations[coracle.dev/rollback-after]"), "{said}");
    assert_eq!(fs::read_dir(node.dir.join("manifests")).expect("manifests").count(), 0);
    node.finish();
}

#[test]
fn a_source_that_is_away_is_told_once_whatever_others_say() {
    let mut node = Node::new();
    let away = format!("http://127.0.0.1:{}/pods.yaml", free_port());
    node.args.extend(["--manifest-url".to_owned(), away]);
    node.start();
    node.wait_for_images();
    node.wait_event("the URL is away", |reason, _| reason == "SourceUnhealthy");
    for name in ["a", "b", "c"] {
        node.run(&resting(name));
    }
    let log = fs::read_to_string(node.dir.join("agent.log")).expect("agent.log");
    assert_eq!(log.matches("SourceUnhealthy").count(), 1, "{log}");
    node.finish();
}

#[test]
fn of_two_files_with_one_pod_name_the_first_keeps_running() {
    let node = Node::up();
    let untouched = Untouched::start(&node);
    node.apply("zzz.yaml", pod("web", "exit 1"));
    node.wait_event("the duplicate", |_, message| message.contains("zzz.yaml") && message.contains("web.yaml"));
    node.apply("aaa.yaml", pod("web", "exit 1"));
    node.wait_event("the other duplicate", |_, message| message.contains("aaa.yaml"));
    sleep(secs(2));
    untouched.check(&node);
    assert_eq!(node.pods().len(), 1);
    node.finish();
}

#[test]
fn an_image_that_arrives_later_is_used() {
    let node = Node::up();
    let mut m = resting("web");
    m["spec"]["containers"][0]["image"] = json!("late:1");
    node.apply("web.yaml", &m);
    let seen = node.wait_pod("web", "no image", |p| ["ErrImagePull", "ImagePullBackOff"].contains(&p.waiting("main")));
    assert_eq!(seen.phase(), "Pending");
    let message = seen.waiting_message("main");
    assert!(message.contains("late:1"), "the reason names the image: {message}");
    let begin = std::time::Instant::now();
    node.drop_image(&image_archive("late:1"), "late.tar");
    node.wait_up("web");
    assert!(begin.elapsed() < secs(15), "an import wakes the pods that wait for it: {:?}", begin.elapsed());
    node.finish();
}

#[test]
fn never_pulled_means_never() {
    let node = Node::up();
    let mut m = resting("web");
    m["spec"]["containers"][0]["image"] = json!("absent:1");
    m["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    node.apply("web.yaml", &m);
    node.wait_pod("web", "refused", |p| p.waiting("main") == "ErrImageNeverPull");
    m["spec"]["containers"][0]["image"] = json!("Not A Reference");
    node.apply("web.yaml", &m);
    node.wait("an invalid name is told", PATIENCE, |pods| {
        pods.iter().any(|p| p.waiting("main") == "InvalidImageName")
            || node.events().iter().any(|e| e["message"].as_str().is_some_and(|m| m.contains("image")))
    });
    node.finish();
}

#[test]
fn manifests_may_be_links_that_are_switched() {
    let mut node = Node::new();
    node.configure(json!({ "fileCheckFrequency": "2s" }));
    node.start();
    node.wait_for_images();
    let data = node.dir.join("data");
    for v in ["v1", "v2"] {
        fs::create_dir_all(data.join(v)).expect("folder");
        fs::write(data.join(v).join("web.yaml"), pod("web", &format!("echo {v}; {REST}")).to_string()).expect("write");
    }
    symlink("v1", data.join("current")).expect("link");
    symlink(data.join("current/web.yaml"), node.manifest("web.yaml")).expect("link");
    node.wait_up("web");
    symlink("v2", data.join("next")).expect("link");
    fs::rename(data.join("next"), data.join("current")).expect("switch");
    // Nothing in the directory changed: seen at the latest at the next rescan.
    eventually("the new target is read", PATIENCE, || node.cli(&["logs", "web"]).stdout == "v2\n");
    node.finish();
}

#[test]
fn yaml_as_kubectl_reads_it() {
    let node = Node::up();
    let text = format!(
        r#"apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {{on: "yes", version: '1.10'}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: &cmd ["sh", "-c"]
    args:
    - |
      echo "$MSG"
      {REST}
    env:
    - name: MSG
      value: >-
        folded
        text
  - name: second
    image: {BUSYBOX}
    command: *cmd
    args: ["{REST}"]
"#
    );
    node.apply("web.yaml", text);
    let seen = node.wait_up("web");
    assert_eq!(seen.0["metadata"]["labels"], json!({ "on": "yes", "version": "1.10" }));
    eventually("its output", PATIENCE, || node.cli(&["logs", "web", "-c", "main"]).stdout == "folded text\n");
    node.finish();
}
