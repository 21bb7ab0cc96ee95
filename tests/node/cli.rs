//! What a person types, and what other programs ask: commands, exit codes, health, readiness.

use crate::harness::{
    BUSYBOX, Node, PATIENCE, REST, binary, eventually, http, image_archive, mode, output, pod, resting, secs,
};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn get_prints_kubectls_columns_and_formats() {
    let node = Node::up();
    let seen = node.run(&resting("web"));
    let name = seen.name();
    let table = node.cli(&["get", "pods"]).ok();
    let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(lines[1][..4], [name, "1/1", "Running", "0"]);
    assert_eq!(node.cli(&["ps"]).ok().lines().next(), table.lines().next(), "ps is get pods");
    let wide = node.cli(&["get", "pods", "-A", "-o", "wide"]).ok();
    let head: Vec<&str> = wide.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(head[..8], ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]);
    assert!(wide.contains(seen.ip()) && wide.contains(&node.name), "{wide}");
    let list: Value = serde_json::from_str(&node.cli(&["get", "pods", "-o", "json"]).ok()).expect("JSON");
    assert_eq!(list["apiVersion"], "v1");
    assert!(list["kind"] == "List" || list["kind"] == "PodList", "{}", list["kind"]);
    let yaml = node.cli(&["get", "pods", "-o", "yaml"]).ok();
    assert!(yaml.contains("kind: ") && yaml.contains(&format!("name: {name}")), "{yaml}");
    // One pod, with and without the node's suffix, is the object itself.
    for given in ["web", name] {
        let one: Value = serde_json::from_str(&node.cli(&["get", "pod", given, "-o", "json"]).ok()).expect("JSON");
        assert_eq!((one["kind"].as_str(), one["metadata"]["name"].as_str()), (Some("Pod"), Some(name)));
    }
    assert!(node.cli(&["get", "pods", "-n", "elsewhere"]).ok().lines().count() <= 1);
    let text = node.cli(&["get", "pod", "absent"]).fails(1);
    assert!(text.starts_with("error: ") && text.contains("absent"), "{text}");
    let nodes: Value = serde_json::from_str(&node.cli(&["get", "nodes", "-o", "json"]).ok()).expect("JSON");
    assert_eq!(nodes["items"][0]["metadata"]["name"], node.name.as_str());
    assert!(node.cli(&["get", "nodes"]).ok().contains("Ready"));
    assert!(node.cli(&["get", "images"]).ok().contains("busybox"));
    assert!(node.cli(&["get", "events"]).ok().contains("Started"));
    node.finish();
}

#[test]
fn get_watches() {
    let node = Node::up();
    let mut child = node.command(&["get", "pods", "-w"]).stdout(Stdio::piped()).spawn().expect("watch");
    let lines = BufReader::new(child.stdout.take().expect("piped"));
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.lines().map_while(Result::ok).for_each(|l| drop(sender.send(l))));
    node.run(&resting("web"));
    let mut seen = Vec::new();
    let end = Instant::now() + PATIENCE;
    while !seen.iter().any(|l: &String| l.contains("web-") && l.contains("Running")) {
        assert!(Instant::now() < end, "{seen:?}");
        seen.extend(receiver.recv_timeout(secs(1)));
    }
    child.kill().expect("stop watching");
    child.wait().expect("reap");
    node.finish();
}

#[test]
fn describe_tells_the_whole_story() {
    let node = Node::up();
    let seen = node.run(&resting("web"));
    let text = node.cli(&["describe", "pod", "web"]).ok();
    for part in [
        "Name:",
        seen.name(),
        "Namespace:",
        "default",
        "Node:",
        "Status:",
        "Running",
        "IP:",
        seen.ip(),
        "Containers:",
        "main:",
        "Container ID:",
        "coracle://",
        BUSYBOX,
        "State:",
        "Restart Count:",
        "Conditions:",
        "Ready",
        "Events:",
        "Started",
    ] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
    assert!(node.cli(&["describe", "pod", "absent"]).fails(1).contains("absent"));
    node.finish();
}

#[test]
fn logs_follow_tail_and_remember_the_previous_run() {
    let node = Node::up();
    let seen = node.run(&pod(
        "web",
        &format!("echo run-$(cat /proc/sys/kernel/random/uuid); for i in 1 2 3; do echo line-$i; done; {REST}"),
    ));
    eventually("all lines", PATIENCE, || node.cli(&["logs", "web"]).stdout.lines().count() == 4);
    let first = node.cli(&["logs", "web"]).ok();
    assert_eq!(node.cli(&["logs", "web", "--tail", "2"]).ok(), "line-2\nline-3\n");
    assert_eq!(node.cli(&["logs", "web", "--tail=0"]).ok(), "");
    assert_eq!(node.cli(&["logs", "web", "--since", "1h"]).ok(), first);
    assert_eq!(node.cli(&["logs", "web", "-c", "main"]).ok(), first);
    assert!(node.cli(&["logs", "web", "-p"]).fails(1).contains("previous"), "there is no previous run yet");
    assert!(node.cli(&["logs", "web", "-c", "absent"]).fails(1).contains("absent"));
    crate::harness::signal(node.init_pid(&seen.id("main")), rustix::process::Signal::KILL);
    node.wait_pod("web", "restarted", |p| p.restarts("main") == 1 && p.up());
    assert_eq!(node.cli(&["logs", "web", "-p"]).ok(), first, "the previous run's log");
    eventually("the new run's log", PATIENCE, || {
        let text = node.cli(&["logs", "web"]).stdout;
        text.contains("line-3") && text != first
    });
    node.finish();
}

#[test]
fn logs_can_be_followed_to_the_end() {
    let node = Node::up();
    let mut m = pod("job", "for i in 1 2 3 4 5; do echo tick-$i; sleep 0.3; done");
    m["spec"]["restartPolicy"] = json!("Never");
    node.run(&m);
    let text = node.cli(&["logs", "-f", "job"]).ok();
    assert_eq!(text, "tick-1\ntick-2\ntick-3\ntick-4\ntick-5\n", "follow ends with the container");
    node.finish();
}

#[test]
fn a_pod_with_two_containers_asks_which() {
    let node = Node::up();
    let mut m = pod("pair", &format!("echo first; {REST}"));
    let other = json!({ "name": "other", "image": BUSYBOX, "command": ["sh", "-c", format!("echo second; {REST}")] });
    m["spec"]["containers"].as_array_mut().expect("containers").push(other);
    node.run(&m);
    eventually("both logs", PATIENCE, || node.cli(&["logs", "pair", "-c", "other"]).stdout == "second\n");
    // kubectl takes the first container and says so on stderr.
    let out = node.cli(&["logs", "pair"]);
    assert!(out.stdout == "first\n" || (out.code == Some(1) && out.stderr.contains("other")), "{out:?}");
    let out = node.cli(&["exec", "pair", "-c", "other", "--", "echo", "here"]);
    assert_eq!(out.ok(), "here\n");
    node.finish();
}

#[test]
fn exec_passes_streams_and_the_exit_code() {
    let node = Node::up();
    node.run(&resting("web"));
    let out = node.cli(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((out.code, out.stdout.as_str(), out.stderr.contains("err")), (Some(7), "out\n", true), "{out:?}");
    assert!(!out.stdout.contains("err"));
    let out = node.cli_with(&["exec", "-i", "web", "--", "cat"], &vec![b'x'; 300_000]);
    assert_eq!(out.ok().len(), 300_000, "stdin reaches the process, and its end too");
    let out = node.cli_with(&["exec", "web", "--", "cat"], b"not sent");
    assert_eq!(out.ok(), "", "without -i there is no stdin");
    assert_eq!(node.sh("web", "head -c 3000000 /dev/zero | wc -c"), "3000000");
    let big = node.cli(&["exec", "web", "--", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' y"]).ok();
    assert_eq!(big.len(), 3_000_000, "no output is lost at the end");
    let out = node.cli(&["exec", "web", "--", "/no/such"]);
    assert!(out.code.is_some_and(|c| c != 0) && out.stderr.contains("/no/such"), "{out:?}");
    assert!(node.cli(&["exec", "absent", "--", "true"]).fails(1).contains("absent"));
    assert!(node.cli(&["exec", "web", "-c", "nope", "--", "true"]).fails(1).contains("nope"));
    assert_eq!(node.sh("web", "echo $FROM_IMAGE"), "yes", "the container's environment");
    let killed = node.cli(&["exec", "web", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.code, Some(137));
    let many: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|i| {
                let node = &node;
                scope.spawn(move || node.sh("web", &format!("echo {i}")))
            })
            .collect();
        runs.into_iter().map(|r| r.join().expect("exec")).collect()
    });
    assert_eq!(many, (0..8).map(|i| i.to_string()).collect::<Vec<_>>());
    assert_eq!(node.pod("web").expect("runs").restarts("main"), 0);
    node.finish();
}

#[test]
fn exec_gives_a_terminal() {
    let node = Node::up();
    node.run(&resting("web"));
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("grantpt");
    unlockpt(&master).expect("unlockpt");
    let path = ptsname(&master, Vec::new()).expect("ptsname");
    let slave = fs::OpenOptions::new().read(true).write(true).open(path.to_str().expect("path")).expect("slave");
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size).expect("size");
    let mut child = node
        .command(&["exec", "-it", "web", "--", "sh"])
        .stdin(slave.try_clone().expect("slave"))
        .stdout(slave.try_clone().expect("slave"))
        .stderr(slave)
        .spawn()
        .expect("exec");
    let master = fs::File::from(master);
    let mut reader = master.try_clone().expect("master");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = reader.read(&mut buffer) {
            if n == 0 || sender.send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut seen = String::new();
    let mut until = |what: &str| {
        let end = Instant::now() + secs(15);
        while !seen.contains(what) {
            assert!(Instant::now() < end, "{what:?} was not seen: {seen:?}");
            if let Ok(bytes) = receiver.recv_timeout(Duration::from_millis(100)) {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        std::mem::take(&mut seen)
    };
    // The answers are computed, so that an echo of what was typed is not taken for one.
    let type_in = |text: &str| (&master).write_all(text.as_bytes()).expect("type");
    // A shell throws away what was typed before it took over the terminal.
    until("/ # ");
    type_in("test -t 0 && test -t 1 && echo tty-$((40+2))\n");
    until("tty-42");
    type_in("stty size; echo done-$((1+1))\n");
    let text = until("done-2");
    assert!(text.contains("33 101"), "the window's size: {text:?}");
    // Ctrl-C interrupts what runs inside, not the session.
    type_in("sleep 1000\n");
    std::thread::sleep(Duration::from_millis(500));
    type_in("\u{3}");
    type_in("echo alive-$((2+3))\n");
    until("alive-5");
    type_in("exit 5\n");
    let status = crate::harness::wait_child(&mut child, secs(10));
    let status = status.unwrap_or_else(|| {
        let _ = child.kill();
        panic!("exec did not end")
    });
    assert_eq!(status.code(), Some(5));
    node.finish();
}

#[test]
fn apply_and_delete_write_and_remove_a_manifest() {
    let node = Node::up();
    let file = node.dir.join("mine.yaml");
    fs::write(&file, resting("web").to_string()).expect("manifest");
    let path = file.to_str().expect("path");
    node.cli(&["apply", "-f", path]).ok();
    let seen = node.wait_up("web");
    let files: Vec<_> = fs::read_dir(node.dir.join("manifests")).expect("folder").flatten().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    node.cli(&["apply", "-f", path]).ok();
    std::thread::sleep(secs(1));
    assert_eq!(node.wait_up("web").id("main"), seen.id("main"), "unchanged");
    fs::write(&file, "kind: Pod\napiVersion: v1\nmetadata: {name: web}\nspec: {containers: []}\n").expect("manifest");
    assert!(node.cli(&["apply", "-f", path]).fails(1).contains("spec.containers"));
    assert_eq!(node.wait_up("web").id("main"), seen.id("main"), "a refused manifest is not written");
    node.cli(&["delete", "pod", "web"]).ok();
    node.wait_gone("web");
    assert_eq!(fs::read_dir(node.dir.join("manifests")).expect("folder").count(), 0);
    assert!(node.cli(&["delete", "pod", "web"]).fails(1).contains("web"));
    node.cli_with(&["apply", "-f", "-"], resting("piped").to_string().as_bytes()).ok();
    node.wait_up("piped");
    fs::write(&file, resting("piped").to_string()).expect("manifest");
    node.cli(&["delete", "-f", path]).ok();
    node.wait_gone("piped");
    node.finish();
}

#[test]
fn apply_and_delete_know_config_maps_and_secrets() {
    let node = Node::up();
    let write = |name: &str, documents: &[serde_json::Value]| {
        let path = node.dir.join(name);
        let text: String = documents.iter().map(|document| format!("---\n{document}\n")).collect();
        fs::write(&path, text).expect("manifest");
        path.display().to_string()
    };
    let files = || {
        let all = fs::read_dir(node.dir.join("manifests")).into_iter().flatten().flatten();
        let mut names: Vec<String> = all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let settings =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"k": "v"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}, "stringData": {"p": "x"}});
    let mut web = resting("web");
    web["spec"]["containers"][0]["env"] =
        json!([{"name": "V", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "k"}}}]);

    // A pod whose object is nowhere is taken, and waits.
    let pod = write("web.yaml", &[web]);
    let said = node.cli(&["apply", "-f", &pod]);
    assert!(
        said.stderr
            .contains("web.yaml:2: warning: spec.containers[0].env[0].valueFrom.configMapKeyRef.name: Not found"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("until it is there this version of the pod waits"), "{}", said.stderr);
    assert_eq!(said.ok(), format!("pod/web-{} created\n", node.name));
    // With --until-complete that would be for ever.
    let mut job = resting("job");
    job["spec"]["restartPolicy"] = json!("Never");
    job["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "db"}}]);
    let job = write("job.yaml", &[job]);
    let said = node.cli(&["run", "--until-complete", &job]).fails(1);
    assert!(said.contains("job.yaml:2: spec.containers[0].envFrom[0].secretRef.name: Not found: \"db\""), "{said}");
    assert_eq!(files(), ["default_web.yaml"], "nothing is left behind");

    let objects = write("objects.yaml", &[settings.clone(), secret.clone()]);
    let said = node.cli(&["apply", "-f", &objects]).ok();
    assert_eq!(said, "configmap/settings created\nsecret/db created\n");
    assert_eq!(files(), ["configmap_default_settings.yaml", "default_web.yaml"]);
    node.wait_up("web");
    assert_eq!(node.cli(&["apply", "-f", &pod]).stderr, "", "it is there now");
    // Another file must not define it too; what is in a file with others is not deleted alone.
    let again = write("again.yaml", &[resting("other"), settings]);
    let said = node.cli(&["apply", "-f", &again]).fails(1);
    assert!(said.contains("ConfigMap default/settings is already defined by"), "{said}");
    let said = node.cli(&["delete", "configmap", "settings"]).fails(1);
    assert!(said.contains("also defines Secret default/db"), "{said}");

    // The pod keeps what it needs.
    let said = node.cli(&["delete", "-f", &objects]);
    let want = format!("warning: ConfigMap default/settings stays as long as pod default/web-{} needs it", node.name);
    assert!(said.stderr.contains(&want) && !said.stderr.contains("Secret"), "{}", said.stderr);
    assert_eq!(said.ok(), "configmap/settings deleted\nsecret/db deleted\n");
    assert!(node.cli(&["get", "configmap"]).ok().contains("settings"));
    let secret = write("secret.yaml", &[secret]);
    assert_eq!(node.cli(&["apply", "-f", &secret]).ok(), "secret/db created\n");
    assert_eq!(node.cli(&["delete", "secret/db"]).ok(), "secret/db deleted\n");
    assert!(node.cli(&["delete", "secret", "db"]).fails(1).contains("no file in"));
    node.cli(&["delete", "web"]).ok();
    assert_eq!(files(), Vec::<String>::new());
    node.finish();
}

#[test]
fn validate_names_line_field_and_reason() {
    let node = Node::new();
    let good = node.dir.join("good.yaml");
    fs::write(&good, resting("web").to_string()).expect("manifest");
    let validate = |path: &std::path::Path| node.cli(&["validate", path.to_str().expect("path")]);
    validate(&good).ok();
    let bad = node.dir.join("bad.yaml");
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  restartPolicy: Sometimes\n  containers:\n  - name: a\n    image: x\n    ports:\n    - containerPort: 99999\n";
    fs::write(&bad, text).expect("manifest");
    let said = validate(&bad).fails(1);
    for (line, field) in [("6", "spec.restartPolicy"), ("11", "spec.containers[0].ports[0].containerPort")] {
        let told = said.lines().find(|l| l.contains(field)).unwrap_or_else(|| panic!("{field} is not named:\n{said}"));
        assert!(told.contains("bad.yaml") && told.contains(line), "line {line}: {told}");
    }
    let both = node.cli(&["validate", good.to_str().expect("path"), bad.to_str().expect("path")]);
    both.fails(1);
    assert!(node.cli(&["validate", "/no/such/file.yaml"]).fails(1).contains("/no/such/file.yaml"));
    fs::write(&bad, [0u8, 159, 146, 150]).expect("garbage");
    validate(&bad).fails(1);
    fs::write(&bad, "").expect("empty");
    validate(&bad).fails(1);
}

#[test]
fn validate_explains_the_fields() {
    let node = Node::new();
    let all = node.cli(&["validate", "--explain"]).ok();
    assert!(all.starts_with("FIELD ") && all.lines().count() > 500, "{} lines", all.lines().count());
    let said = node.cli(&["validate", "--explain", "spec.containers[0].livenessProbe.grpc"]).ok();
    assert_eq!(said.lines().count(), 4, "{said}");
    assert!(said.contains("spec.containers[*].livenessProbe.grpc.service") && !said.contains("refused"), "{said}");
    let said = node.cli(&["validate", "--explain", "runtimeClassName"]).ok();
    assert!(said.contains("refused") && said.contains("RuntimeClass object"), "{said}");
    let json = node.cli(&["validate", "--explain", "spec.hostPID", "-o", "json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[0]["field"], "spec.hostPID");
    assert_eq!(json[0]["works"], true);
    let unknown = node.cli(&["validate", "--explain", "spec.readynessGates"]).fails(1);
    assert!(unknown.contains("readinessGates"), "{unknown}");
}

#[test]
fn validate_tells_what_a_daemonsets_pod_needs_a_cluster_for() {
    let node = Node::new();
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let said = node.cli(&["validate", &format!("{corpus}/daemonsets/kube-proxy.yaml")]).fails(1);
    assert_eq!(said.lines().filter(|line| line.contains("kube-proxy.yaml:")).count(), 2, "{said}");
    assert!(said.contains("spec.serviceAccountName") && said.contains("spec.volumes[0].configMap"), "{said}");
    node.cli(&["validate", &format!("{corpus}/kubeadm/etcd.yaml")]).ok();
}

#[test]
fn validate_looks_for_what_pods_refer_to_in_all_manifests_named() {
    let node = Node::new();
    let folder = node.dir.join("all");
    fs::create_dir(&folder).expect("folder");
    let mut web = resting("web");
    web["spec"]["containers"][0]["envFrom"] = json!([{ "secretRef": { "name": "db" } }]);
    let (pod, all) = (folder.join("web.json"), folder.display().to_string());
    let pod_alone = pod.display().to_string();
    fs::write(&pod, serde_json::to_string_pretty(&web).expect("JSON")).expect("manifest");
    let said = node.cli(&["validate", &pod_alone]).ok();
    assert!(said.contains("warning: spec.containers[0].envFrom[0].secretRef.name: Not found: \"db\""), "{said}");
    assert!(said.lines().next().is_some_and(|line| line.contains("web.json:1")), "no line: {said}");
    node.cli(&["validate", "--strict", &pod_alone]).fails(1);
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: db}\nstringData: {password: hunter2}\n";
    fs::write(folder.join("db.yaml"), secret).expect("manifest");
    let said = node.cli(&["validate", "--strict", &all]).ok();
    assert!(said.contains("valid: Secret default/db") && said.contains("valid: default/web"), "{said}");
    fs::write(folder.join("db.yaml"), secret.replace("stringData", "data")).expect("manifest");
    let said = node.cli(&["validate", &all]).fails(1);
    assert!(said.contains("db.yaml:4: data[password]: Invalid value: illegal base64"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn images_are_listed_imported_and_removed() {
    let node = Node::up();
    let archive = image_archive("extra:1");
    node.cli(&["image", "import", archive.to_str().expect("path")]).ok();
    assert!(node.cli(&["image", "ls"]).ok().contains("extra"));
    let mut m = resting("web");
    m["spec"]["containers"][0]["image"] = json!("extra:1");
    let seen = node.run(&m);
    let image_id = seen.container("main")["imageID"].as_str().unwrap_or_default().to_owned();
    assert!(image_id.contains("sha256:"), "{image_id}");
    let text = node.cli(&["image", "rm", "extra:1"]).fails(1);
    assert!(text.contains("extra"), "an image in use stays: {text}");
    node.remove("web.yaml");
    node.wait_gone("web");
    node.cli(&["image", "rm", "extra:1"]).ok();
    assert!(!node.cli(&["image", "ls"]).ok().contains("extra"));
    assert!(node.cli(&["image", "rm", "extra:1"]).fails(1).contains("extra"));
    let broken = node.dir.join("broken.tar");
    fs::write(&broken, b"not an archive").expect("write");
    assert!(node.cli(&["image", "import", broken.to_str().expect("path")]).fails(1).contains("broken.tar"));
    node.run(&resting("still"));
    node.finish();
}

#[test]
fn without_an_agent_the_error_says_what_to_do() {
    let node = Node::new();
    for args in
        [&["get", "pods"][..], &["logs", "x"], &["exec", "x", "--", "true"], &["describe", "pod", "x"], &["status"]]
    {
        let out = node.cli(args);
        assert_eq!(out.code, Some(1), "{out:?}");
        assert!(out.stderr.starts_with("error: ") && out.stderr.contains("hint: "), "{}", out.stderr);
        assert!(out.stderr.contains("coracle.sock"), "{}", out.stderr);
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let node = Node::new();
    for args in [
        &["get"][..],
        &["no-such-command"],
        &["logs"],
        &["exec", "x"],
        &["get", "pods", "-o", "nonsense"],
        &["agent", "--no-such-flag"],
    ] {
        node.cli(args).fails(2);
    }
    for args in [&["--help"][..], &["help"], &["get", "--help"], &["agent", "--help"]] {
        assert!(node.cli(args).ok().contains("Usage"), "{args:?}");
    }
}

#[test]
fn version_and_completion_need_no_agent() {
    let version = output(Command::new(binary()).arg("version"), b"", secs(5)).ok();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let flag = output(Command::new(binary()).arg("--version"), b"", secs(5)).ok();
    assert!(flag.contains(env!("CARGO_PKG_VERSION")), "{flag}");
    for shell in ["bash", "zsh", "fish"] {
        let text = output(Command::new(binary()).args(["completion", shell]), b"", secs(5)).ok();
        assert!(text.contains("coracle") && text.contains("describe"), "{shell}");
    }
    // A reader that goes away early is no crash.
    let pipe =
        Command::new("sh").args(["-c", &format!("{} completion bash | head -c 1", binary())]).output().expect("sh");
    assert!(pipe.stderr.is_empty(), "{}", String::from_utf8_lossy(&pipe.stderr));
}

#[test]
fn health_metrics_and_status_answer() {
    let node = Node::up();
    node.run(&resting("web"));
    let (code, body) = http(("127.0.0.1", node.healthz), "/healthz").expect("healthz");
    assert_eq!((code, body.trim()), (200, "ok"));
    let (code, body) = http(("127.0.0.1", node.healthz), "/metrics").expect("metrics");
    assert_eq!(code, 200);
    for metric in ["kubelet_running_pods 1", "# TYPE", "coracle_"] {
        assert!(body.contains(metric), "{metric:?} is missing:\n{body}");
    }
    assert_eq!(http(("127.0.0.1", node.healthz), "/nothing").expect("answer").0, 404);
    let status = node.cli(&["status"]).ok();
    assert!(status.contains(&node.name) && status.contains('1'), "{status}");
    // Rubbish on the port does not disturb it.
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", node.healthz)).expect("connect");
    stream.write_all(&[0xff; 70_000]).ok();
    drop(stream);
    assert_eq!(http(("127.0.0.1", node.healthz), "/healthz").expect("healthz").0, 200);
    node.finish();
}

#[test]
fn state_is_for_root_only() {
    let node = Node::up();
    node.run(&resting("web"));
    assert_eq!(mode(&node.dir.join("run/coracle.sock")), 0o600);
    for (path, forbidden) in [("root/pods", 0o027), ("root/store", 0o022), ("run/pods", 0o077)] {
        let bits = mode(&node.dir.join(path));
        assert_eq!(bits & forbidden, 0, "{path} has mode {bits:o}");
    }
    let seen = node.pod("web").expect("runs");
    let record = node.dir.join("root/pods").join(seen.uid()).join("pod.json");
    assert_eq!(mode(&record), 0o600);
    node.finish();
}

#[test]
fn systemd_is_told_about_readiness_and_the_end() {
    let mut node = Node::new();
    let path = node.dir.join("notify.sock");
    let socket = UnixDatagram::bind(&path).expect("socket");
    socket.set_read_timeout(Some(secs(10))).expect("timeout");
    node.env.push(("NOTIFY_SOCKET".to_owned(), path.display().to_string()));
    node.env.push(("WATCHDOG_USEC".to_owned(), "1000000".to_owned()));
    node.start();
    let mut buffer = [0; 4096];
    let mut until = |what: &str| {
        for _ in 0..50 {
            let n = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{what} did not come: {e}"));
            if String::from_utf8_lossy(&buffer[..n]).lines().any(|l| l == what) {
                return;
            }
        }
        panic!("{what} did not come");
    };
    until("READY=1");
    until("WATCHDOG=1");
    until("WATCHDOG=1");
    node.stop();
    until("STOPPING=1");
    node.finish();
}

#[test]
fn a_node_can_be_stopped_and_started_in_a_row() {
    let mut node = Node::up();
    let seen = node.run(&resting("web"));
    for _ in 0..3 {
        node.restart();
        assert_eq!(node.wait_up("web").id("main"), seen.id("main"));
    }
    node.finish();
}

#[test]
fn wrong_settings_are_refused_at_the_start() {
    let node = Node::new();
    let config = node.dir.join("config.yaml");
    for (text, named) in [
        ("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: many\n", "maxPods"),
        ("apiVersion: v1\nkind: Pod\n", "Pod"),
        ("{{{", "config.yaml"),
    ] {
        fs::write(&config, text).expect("config");
        let d = node.dir.display();
        let out = output(
            Command::new(binary()).args([
                "agent",
                &format!("--config={d}/config.yaml"),
                &format!("--root-dir={d}/root"),
                &format!("--run-dir={d}/run"),
            ]),
            b"",
            secs(5),
        );
        let code = out.code;
        assert!(code == Some(1) || code == Some(2), "{out:?}");
        assert!(out.stderr.contains("error: ") && out.stderr.contains(named), "{}", out.stderr);
    }
    let d = node.dir.display();
    let own = [format!("--root-dir={d}/root"), format!("--run-dir={d}/run"), "--pod-cidr=10.0.0.0/99".to_owned()];
    let out = output(Command::new(binary()).arg("agent").args(own), b"", secs(5));
    assert!(out.code == Some(1) || out.code == Some(2), "{out:?}");
}

#[test]
fn a_broken_client_does_not_disturb_the_socket() {
    let node = Node::up();
    let seen = node.run(&resting("web"));
    for bytes in
        [&b"\0\xff\0\xff"[..], b"GET /", b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", &[b'A'; 100_000]]
    {
        let mut stream = std::os::unix::net::UnixStream::connect(node.dir.join("run/coracle.sock")).expect("connect");
        stream.write_all(bytes).ok();
    }
    let idle: Vec<_> =
        (0..50).map(|_| std::os::unix::net::UnixStream::connect(node.dir.join("run/coracle.sock"))).collect();
    assert_eq!(node.wait_up("web").id("main"), seen.id("main"));
    drop(idle);
    node.finish();
}
