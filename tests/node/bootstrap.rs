//! `coracle run`: pods in the foreground, and `--until-complete` as what a oneshot unit runs before a kubelet starts.

use crate::harness::{BUSYBOX, Node, PATIENCE, REST, eventually, output, pod, resting, secs, signal, wait_child};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A pod that runs `script` once.
fn job(name: &str, script: &str) -> Value {
    let mut job = pod(name, script);
    job["spec"]["restartPolicy"] = json!("Never");
    job
}

/// Writes a manifest outside of the manifest directory.
fn file(node: &Node, documents: &[Value]) -> String {
    let name = documents[0]["metadata"]["name"].as_str().expect("a name");
    let path = node.dir.join(format!("{name}.yaml"));
    let text: Vec<String> = documents.iter().map(Value::to_string).collect();
    // What begins with a brace would be one document of JSON.
    fs::write(&path, format!("---\n{}\n", text.join("\n---\n"))).expect("manifest");
    path.display().to_string()
}

fn manifests(node: &Node) -> Vec<PathBuf> {
    fs::read_dir(node.dir.join("manifests")).expect("folder").flatten().map(|entry| entry.path()).collect()
}

/// `coracle run` in the background; what it prints goes to a file that is returned too.
fn spawn(node: &Node, args: &[&str]) -> (Child, PathBuf) {
    let path = node.dir.join("run.out");
    let out = fs::File::create(&path).expect("file");
    let mut command = node.command(&[&["run"], args].concat());
    let child = command.stdin(Stdio::null()).stdout(out.try_clone().expect("file")).stderr(out).spawn().expect("run");
    (child, path)
}

fn code(child: &mut Child, what: &str) -> Option<i32> {
    let status = wait_child(child, PATIENCE);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{what}: did not end");
    }
    status.expect("ended").code()
}

#[test]
fn run_until_complete_ends_with_the_pods_result() {
    let node = Node::up();
    let run = |documents: &[Value]| node.cli(&["run", "--until-complete", &file(&node, documents)]);

    let said = run(&[job("one", "echo first"), job("two", "sleep 1; echo second")]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let name = |pod: &str| format!("[{pod}-{}/main]", node.name);
    let mut lines: Vec<&str> = said.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, [format!("{} first", name("one")), format!("{} second", name("two"))]);

    // An init container counts as any other.
    let mut setup = job("setup", "echo not reached");
    setup["spec"]["initContainers"] =
        json!([{ "name": "init", "image": BUSYBOX, "command": ["sh", "-c", "echo no; exit 7"] }]);
    let said = run(&[job("fine", "true"), setup]);
    assert_eq!(said.code, Some(7), "{}", said.stderr);
    assert!(said.stderr.contains(&format!("error: failed: setup-{}", node.name)), "{}", said.stderr);
    assert!(said.stdout.contains("no\n") && !said.stdout.contains("not reached"), "{}", said.stdout);

    // A pod that failed before its container could have a code.
    let mut late = job("late", REST);
    late["spec"]["activeDeadlineSeconds"] = json!(1);
    let said = run(&[late]);
    assert!(said.stderr.contains("DeadlineExceeded"), "{}", said.stderr);
    said.fails(1);

    // OnFailure completes once it succeeded.
    let mut again = job("again", "test -e /share/x && exit 0; touch /share/x; exit 3");
    again["spec"]["restartPolicy"] = json!("OnFailure");
    again["spec"]["volumes"] = json!([{ "name": "share", "emptyDir": {} }]);
    again["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "share", "mountPath": "/share" }]);
    run(&[again]).ok();

    // Standard input as any other source.
    let input = job("piped", "echo piped").to_string();
    assert!(node.cli_with(&["run", "--until-complete", "-"], input.as_bytes()).ok().contains("piped"));

    // What would never complete is refused before anything runs.
    let said = run(&[job("fine", "true"), resting("web")]).fails(1);
    let want = "error: pod web never completes: restartPolicy is Always\nhint: with --until-complete, restartPolicy must be OnFailure or Never\n";
    assert_eq!(said, want);
    let invalid = node.dir.join("invalid.yaml");
    fs::write(&invalid, "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}\n").expect("manifest");
    let said = node.cli(&["run", "--until-complete", &invalid.display().to_string()]).fails(1);
    assert!(said.contains("spec.containers: Required value"), "{said}");

    assert_eq!(manifests(&node), Vec::<PathBuf>::new());
    assert!(node.pods().is_empty());
    node.finish();
}

#[test]
fn a_signal_ends_run_and_its_pods() {
    let node = Node::up();
    let path = file(&node, &[job("slow", &format!("trap 'echo asked; exit 0' TERM; echo up; {REST}"))]);
    for (sent, args, want) in [
        (Signal::TERM, &["--until-complete", &path][..], 143),
        (Signal::INT, &["--until-complete", &path], 130),
        (Signal::HUP, &[&path], 0),
    ] {
        let (mut child, out) = spawn(&node, args);
        eventually("the log is shown", PATIENCE, || fs::read_to_string(&out).is_ok_and(|text| text.contains(" up\n")));
        signal(child.id() as i32, sent);
        assert_eq!(code(&mut child, "a signal"), Some(want), "{sent:?}: {}", fs::read_to_string(&out).expect("output"));
        let said = fs::read_to_string(&out).expect("output");
        assert!(said.contains(&format!("stopping slow-{}", node.name)), "{said}");
        assert!(node.pods().is_empty() && manifests(&node).is_empty(), "nothing is left behind");
    }
    node.finish();
}

#[test]
fn a_bootstrap_waits_for_the_agent_and_outlives_its_restart() {
    let mut node = Node::new();
    let go = node.dir.join("share/go");
    let mut steady = job("steady", "echo begun; n=0; while ! test -e /share/go; do sleep 0.1; done; echo done; exit 0");
    steady["spec"]["volumes"] = json!([{ "name": "share", "hostPath": { "path": node.dir.join("share") } }]);
    steady["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "share", "mountPath": "/share" }]);
    let path = file(&node, &[steady]);

    // Nobody there, and nobody to wait for.
    let said = node.cli(&["run", "--until-complete", &path]).fails(1);
    assert!(said.contains("cannot reach the agent") && said.contains("no such socket"), "{said}");
    let said = node.cli(&["run", "--until-complete", "--wait-for-agent=300ms", &path]).fails(1);
    assert!(said.contains("cannot reach the agent"), "{said}");
    // A wait can be ended.
    let (mut child, _) = spawn(&node, &["--until-complete", "--wait-for-agent=10m", &path]);
    eventually("it has its handlers", PATIENCE, || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("status");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).expect("SigCgt");
        u64::from_str_radix(caught, 16).expect("hex") & (1 << 14) != 0
    });
    signal(child.id() as i32, Signal::TERM);
    assert_eq!(code(&mut child, "a wait"), Some(143));

    let (mut child, out) = spawn(&node, &["--until-complete", "--wait-for-agent=2m", &path]);
    node.start();
    let said = || fs::read_to_string(&out).expect("output");
    eventually("the log is shown", PATIENCE, || said().contains("begun"));
    let container = node.wait_up("steady").id("main");
    node.kill9();
    assert!(wait_child(&mut child, secs(1)).is_none(), "it waits for the next agent: {}", said());
    node.start();
    assert_eq!(node.wait_up("steady").id("main"), container);
    fs::write(&go, "").expect("go");
    assert_eq!(code(&mut child, "an agent's restart"), Some(0), "{}", said());
    // Each line once, though it came over two connections.
    let prefix = format!("[steady-{}/main] ", node.name);
    assert_eq!(said(), format!("{prefix}begun\n{prefix}done\n"));
    assert!(node.pods().is_empty() && manifests(&node).is_empty());

    // Ended without a word, as by a power cut: the next attempt takes up what is there.
    fs::remove_file(&go).expect("go");
    let (mut child, _) = spawn(&node, &["--until-complete", &path]);
    let container = node.wait_up("steady").id("main");
    child.kill().expect("kill");
    child.wait().expect("reap");
    assert_eq!(manifests(&node).len(), 1);
    let (mut child, out) = spawn(&node, &["--until-complete", &path]);
    eventually("it has joined", PATIENCE, || fs::read_to_string(&out).is_ok_and(|text| text.contains("begun")));
    assert_eq!(node.wait_up("steady").id("main"), container);
    fs::write(&go, "").expect("go");
    assert_eq!(code(&mut child, "a second attempt"), Some(0));
    assert!(node.pods().is_empty() && manifests(&node).is_empty());
    node.finish();
}

#[test]
fn drop_ins_configure_the_agent_and_their_faults_are_named() {
    let mut node = Node::new();
    let dir = node.dir.join("conf.d");
    fs::create_dir(&dir).expect("folder");
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    node.configure(json!({ "maxPods": 100, "clusterDomain": "main.test", "cgroupDriver": "systemd" }));
    fs::write(dir.join("10-a.conf"), format!("{head}maxPods: 5\nmakeIPTablesUtilChains: true\n")).expect("drop-in");
    fs::write(dir.join("20-b.conf"), format!("{head}maxPods: 1\nclusterDomain: late.test\n")).expect("drop-in");
    fs::write(dir.join("30-c.yaml"), "no: drop-in").expect("file");
    node.args.push(format!("--config-dir={}", dir.display()));
    node.start();
    node.wait_for_images();
    let mut seen = pod("web", REST);
    seen["spec"]["dnsPolicy"] = json!("ClusterFirst");
    node.run(&seen);
    node.apply("other.yaml", resting("other"));
    let event = node.wait_event("only one pod fits", |reason, _| reason == "OutOfpods");
    assert!(event["message"].as_str().is_some_and(|text| text.contains("capacity: 1")), "{event}");
    let log = fs::read_to_string(node.dir.join("agent.log")).expect("log");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("have no effect here")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].ends_with("have no effect here: cgroupDriver, makeIPTablesUtilChains"), "{}", lines[0]);
    let listed = format!("drop-ins, in their order: {0}/10-a.conf, {0}/20-b.conf", dir.display());
    assert!(log.lines().any(|line| line.ends_with(&listed)), "{log}");
    node.stop();
    node.args.push("--max-pods=2".to_owned());
    node.start();
    node.wait_up("web");
    node.wait_up("other");
    node.stop();

    fs::write(dir.join("20-b.conf"), format!("{head}maxPod: 1\n")).expect("drop-in");
    let said = node.second_agent().fails(1);
    let want = format!(
        "error: cannot use the configuration: {}/20-b.conf: KubeletConfiguration.maxPod: unknown field (did you mean maxPods?)",
        dir.display()
    );
    assert!(said.contains(&want), "{said}");
    fs::write(dir.join("20-b.conf"), "").expect("drop-in");
    assert!(node.second_agent().fails(1).contains("20-b.conf: says nothing: apiVersion and kind are required"));
    fs::remove_file(dir.join("20-b.conf")).expect("remove");
    node.start();
    node.finish();
}

#[test]
fn examples_are_what_a_node_takes() {
    let node = Node::new();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).expect("examples").flatten() {
        // The node's configuration has a test of its own, and folders are for others than the node.
        if entry.path().is_file() && entry.file_name() != "coracle.yaml" {
            node.cli(&["validate", "--strict", &entry.path().display().to_string()]).ok();
        }
    }
}

/// What systemd itself makes of the units. Without systemd on the machine there is nothing to ask.
#[test]
fn systemd_takes_the_units() {
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd");
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("units-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("folder");
    let mut names = Vec::new();
    for entry in fs::read_dir(units).expect("systemd/").flatten() {
        // The binary is not installed where the tests run.
        let text = fs::read_to_string(entry.path()).expect("unit").replace("/usr/local/bin/coracle", "/bin/true");
        let name = entry.file_name().into_string().expect("a name").replace("@.", "@setup.");
        fs::write(dir.join(&name), text).expect("unit");
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["coracle-bootstrap@setup.service", "coracle.service"]);
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).args(names.iter().map(|name| dir.join(name)));
    let said = output(&mut verify, b"", secs(30));
    let both = format!("{}{}", said.stdout, said.stderr);
    assert_eq!((said.code, both.as_str()), (Some(0), ""));
    fs::remove_dir_all(&dir).expect("remove");
}
