//! What a container must not be able to do to the node, or get from it.

use crate::harness::{Node, PATIENCE, REST, alive, eventually, pod, wait_child};
use serde_json::json;
use std::fs;

#[test]
fn containers_hold_no_descriptors_but_their_streams() {
    let node = Node::up();
    // The shell's own, listed by another process.
    let list = "ls /proc/$$/fd; echo end";
    // In manifests two dollars stand for one.
    let manifest = |name: &str| pod(name, &format!("{}; {REST}", list.replace('$', "$$")));
    let mut own_users = manifest("users");
    own_users["spec"]["hostUsers"] = json!(false);
    let mut shared = manifest("shared");
    shared["spec"]["shareProcessNamespace"] = json!(true);
    let mut parts = manifest("parts");
    parts["spec"]["volumes"] =
        json!([{ "name": "data", "emptyDir": {} }, { "name": "tmp", "emptyDir": { "medium": "Memory" } }]);
    parts["spec"]["containers"][0]["volumeMounts"] = json!([
        { "name": "data", "mountPath": "/data", "subPath": "a/b" },
        { "name": "tmp", "mountPath": "/tmp", "subPath": "c" },
    ]);
    let mut privileged = manifest("privileged");
    privileged["spec"]["containers"][0]["securityContext"] = json!({ "privileged": true });
    for manifest in [manifest("plain"), own_users, shared, parts, privileged] {
        let running = node.run(&manifest);
        let name = running.name();
        eventually("it has listed them", PATIENCE, || node.cli(&["logs", name]).stdout.ends_with("end\n"));
        assert_eq!(node.cli(&["logs", name]).ok(), "0\n1\n2\nend\n", "{name}");
        assert_eq!(node.sh(name, list), "0\n1\n2\nend", "exec in {name}");
    }
    // The first process of a shared PID namespace belongs to nobody.
    assert_eq!(node.sh("shared", "ls /proc/1/fd 2>&1 | grep -c . ; cat /proc/1/cmdline | tr -d '\\0'"), "1\npause");
    node.finish();
}

#[test]
fn what_a_killed_exec_helper_leaves_is_removed_by_the_next() {
    let node = Node::up();
    let running = node.run(&pod("web", REST));
    let state = node.dir.join("run/pods").join(running.uid()).join("state");
    // PIDs end at 4194304; this process lives.
    let (dead, live) = (".exec-4194305".to_owned(), format!(".exec-{}", std::process::id()));
    for view in [&dead, &live] {
        fs::create_dir_all(state.join(view).join(running.id("main"))).expect("folder");
    }
    assert_eq!(node.sh("web", "echo here"), "here");
    assert!(!state.join(dead).exists());
    assert!(state.join(live).exists(), "another helper's");
    node.finish();
}

#[test]
fn an_exec_that_cannot_begin_does_not_last() {
    let node = Node::up();
    let running = node.run(&pod("web", REST));
    let (file, frozen, thawed) = match node.container_cgroup(&running.id("main"), "freezer.state") {
        Some(dir) => (dir.join("freezer.state"), "FROZEN", "THAWED"),
        None => {
            let dir = node.container_cgroup(&running.id("main"), "cgroup.freeze").expect("a freezer");
            (dir.join("cgroup.freeze"), "1", "0")
        }
    };
    let state = node.dir.join("run/pods").join(running.uid()).join("state");
    let helper = || {
        let names = fs::read_dir(&state).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.to_str()?.strip_prefix(".exec-")?.parse::<i32>().ok()).next()
    };
    fs::write(&file, frozen).expect("freeze");
    let mut client = node.command(&["exec", "web", "--", "true"]).spawn().expect("exec");
    eventually("the helper has begun", PATIENCE, || helper().is_some());
    let pid = helper().expect("PID");
    eventually("the helper gives up", PATIENCE, || !alive(pid));
    fs::write(&file, thawed).expect("thaw");
    let ended = wait_child(&mut client, PATIENCE).expect("the client ends");
    assert!(!ended.success());
    // Nothing of it is left in the container: its shell, the sleep, and what looks for others.
    eventually("all is gone", PATIENCE, || node.sh("web", "ps | grep -c '[e]xec-helper'; true") == "0");
    assert_eq!(helper(), None);
    node.finish();
}
