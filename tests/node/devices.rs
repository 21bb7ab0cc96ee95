//! Devices without privilege, CDI, and security profiles: what a container may do, and what it may not.

use crate::harness::{BUSYBOX, Node, PodView, REST, eventually, pod, resting, secs};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const DENIED: &str = "Operation not permitted";

/// A shell function that says how opening a file went: `try MODE FILE`, MODE being `r` or `w`.
const TRY: &str =
    r#"try() { case $1 in r) (: < "$2") 2>&1 && echo ok;; w) (: >> "$2") 2>&1 && echo ok;; esac; true; }; "#;

fn with_profile(name: &str, security: Value) -> Value {
    let mut pod = resting(name);
    pod["spec"]["containers"][0]["securityContext"] = security;
    pod
}

#[track_caller]
fn waits(node: &Node, manifest: &Value, text: &str) -> PodView {
    let name = manifest["metadata"]["name"].as_str().expect("a name");
    node.apply(&format!("{name}.yaml"), manifest);
    node.wait_pod(name, text, |p| {
        p.waiting("main") == "CreateContainerConfigError" && p.waiting_message("main").contains(text)
    })
}

#[test]
fn a_container_opens_the_devices_it_was_given_and_no_others() {
    let node = Node::up();
    let link = node.dir.join("share/by-id");
    symlink("/dev/fuse", &link).expect("link");
    for needed in ["/dev/fuse", "/dev/loop0"] {
        assert!(Path::new(needed).exists(), "this test needs {needed} (modprobe fuse loop)");
    }

    // Making nodes is a default capability; opening what was made is another matter.
    let script = format!("{TRY} mknod /dev/sda b 8 0 && try r /dev/sda > /tmp/first; {REST}");
    let mut manifest = pod("plain", &script);
    manifest["spec"]["volumes"] = json!([{"name": "fuse", "hostPath": {"path": "/dev/fuse"}}]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "fuse", "mountPath": "/dev/fuse"}]);
    node.run(&manifest);
    let nodes = "mknod /dev/mem c 1 1; mknod /dev/tun c 10 200; mknod /dev/nil c 1 3; ";
    let tried = node.sh(
        "plain",
        &format!(
            "{TRY}{nodes} cat /tmp/first; for f in /dev/sda /dev/mem /dev/tun /dev/fuse /dev/nil; do try r $f; done"
        ),
    );
    let tried: Vec<&str> = tried.lines().collect();
    assert_eq!(tried.len(), 6, "{tried:?}");
    assert!(tried[..5].iter().all(|line| line.contains(DENIED)), "{tried:?}");
    assert_eq!(tried[5], "ok", "a node of a standard device");

    let volume = |name: &str, path: &str, kind: &str| json!({"name": name, "hostPath": {"path": path, "type": kind}});
    let mut manifest = resting("given");
    manifest["spec"]["volumes"] = json!([
        volume("serial", &link.display().to_string(), "CharDevice"),
        volume("disk", "/dev/loop0", "BlockDevice"),
    ]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "serial", "mountPath": "/dev/serial/one", "readOnly": true},
        {"name": "disk", "mountPath": "/dev/disk"},
    ]);
    // Another container of the same pod is given nothing.
    manifest["spec"]["containers"]
        .as_array_mut()
        .expect("containers")
        .push(json!({"name": "other", "image": BUSYBOX, "command": ["sh", "-c", REST]}));
    node.run(&manifest);
    let sh = |container: &str, script: &str| {
        let out = node.cli(&["exec", "given", "-c", container, "--", "sh", "-c", &format!("{TRY}{script}")]);
        out.ok().trim_end().to_owned()
    };
    assert_eq!(sh("main", "try r /dev/serial/one; try r /dev/disk; try w /dev/disk"), "ok\nok\nok");
    let written = sh("main", "try w /dev/serial/one");
    assert!(written.contains(DENIED), "read-only: {written}");
    let other = sh("other", "mknod /dev/loop0 b 7 0; try r /dev/loop0");
    assert!(other.contains(DENIED), "{other}");
    node.finish();
}

/// Devices that the standard rules do not permit: fuse, tun and loop-control.
const FUSE: (u32, u32) = (10, 229);
const TUN: (u32, u32) = (10, 200);
const LOOP: (u32, u32) = (10, 237);

/// A folder of device nodes with stable links, as udev keeps one.
struct Devices(PathBuf);

impl Devices {
    fn plug(&self, name: &str, (major, minor): (u32, u32), link: &str) {
        let mode = rustix::fs::Mode::from_raw_mode(0o660);
        let kind = rustix::fs::FileType::CharacterDevice;
        let number = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(rustix::fs::CWD, self.0.join(name), kind, mode, number).expect("mknod");
        let temporary = self.0.join(".link");
        symlink(format!("../{name}"), &temporary).expect("link");
        fs::create_dir_all(self.0.join("by-id")).expect("folder");
        fs::rename(temporary, self.0.join("by-id").join(link)).expect("rename");
    }

    fn unplug(&self, name: &str) {
        fs::remove_file(self.0.join(name)).expect("remove the node");
        // udev removes its folders with the last link in them.
        fs::remove_dir_all(self.0.join("by-id")).expect("remove the links");
    }

    fn volume(&self, link: &str) -> Value {
        json!({"name": link, "hostPath": {"path": self.0.join("by-id").join(link), "type": "CharDevice"}})
    }
}

#[test]
fn a_device_that_comes_back_is_seen_at_its_path_without_a_restart() {
    let mut node = Node::up();
    let devices = Devices(node.dir.join("dev"));
    fs::create_dir(&devices.0).expect("folder");
    devices.plug("ttyA", FUSE, "sensor");

    let container = |name: &str, at: &str, read_only: bool| {
        json!({"name": name, "image": BUSYBOX, "command": ["sh", "-c", REST],
            "volumeMounts": [{"name": "sensor", "mountPath": at, "readOnly": read_only}]})
    };
    let mut manifest = resting("plugged");
    manifest["spec"]["volumes"] = json!([devices.volume("sensor")]);
    manifest["spec"]["containers"] =
        json!([container("main", "/dev/sensor", false), container("reader", "/opt/in/sensor", true)]);
    let before = node.run(&manifest);
    let sh = |node: &Node, container: &str, script: &str| {
        let out = node.cli(&["exec", "plugged", "-c", container, "--", "sh", "-c", &format!("{TRY}{script}")]);
        out.ok().trim_end().to_owned()
    };
    let number = |node: &Node, path: &str| {
        let container = if path == "/dev/sensor" { "main" } else { "reader" };
        sh(node, container, &format!("stat -c %t:%T {path}"))
    };
    let nodes = "mknod /dev/fuse c 10 229; mknod /dev/tun c 10 200; mknod /dev/loop c 10 237; ";
    assert_eq!(number(&node, "/dev/sensor"), "a:e5");
    assert_eq!(sh(&node, "main", &format!("{nodes}try w /dev/sensor; try r /dev/fuse")), "ok\nok");
    sh(&node, "reader", nodes);

    devices.unplug("ttyA");
    node.wait_event("the device went", |reason, message| reason == "DeviceGone" && message.contains("/dev/sensor"));
    let gone = sh(&node, "main", "try r /dev/sensor; try r /dev/fuse; stat -c %F /dev/sensor");
    assert_eq!(gone.matches(DENIED).count(), 2, "whoever has the number now, it is not the sensor: {gone}");
    assert!(gone.ends_with("character special file"), "never the file below: {gone}");

    devices.plug("ttyB", TUN, "sensor");
    eventually("the container sees the device", secs(2), || number(&node, "/dev/sensor") == "a:c8");
    let tried =
        sh(&node, "main", "try w /dev/sensor; try r /dev/tun; try r /dev/fuse; grep -c /dev/sensor /proc/mounts");
    let tried: Vec<&str> = tried.lines().collect();
    assert_eq!((tried[0], tried[1], tried[3]), ("ok", "ok", "1"), "{tried:?}");
    assert!(tried[2].contains(DENIED), "{tried:?}");
    node.wait_event("the device came", |reason, message| {
        reason == "DeviceBack" && message.contains("character device 10:200") && message.contains("reader")
    });
    let tried = sh(&node, "reader", "try r /opt/in/sensor; try w /opt/in/sensor; grep /opt/in/sensor /proc/mounts");
    let tried: Vec<&str> = tried.lines().collect();
    assert!(tried[0] == "ok" && tried[1].contains(DENIED) && tried[2].contains(" ro,"), "{tried:?}");

    // While there is no agent nobody follows; the next one makes up for it.
    node.kill9();
    devices.unplug("ttyB");
    devices.plug("ttyC", LOOP, "sensor");
    node.start();
    eventually("the next agent repairs it", secs(5), || number(&node, "/dev/sensor") == "a:ed");
    let tried = sh(&node, "main", "try r /dev/loop; try r /dev/tun");
    assert!(tried.starts_with("ok\n") && tried.contains(DENIED), "{tried}");

    // What a container does to its files is its own affair, and nobody else's.
    eventually("the reader too", secs(2), || number(&node, "/opt/in/sensor") == "a:ed");
    sh(&node, "reader", "mv /opt/in /opt/moved && mkdir /opt/in && mknod /opt/in/sensor c 10 237");
    devices.unplug("ttyC");
    devices.plug("ttyD", FUSE, "sensor");
    node.wait_event("the reader's device is not found", |reason, message| {
        reason == "FailedDevice" && message.contains("/opt/in/sensor: what is there is not the device")
    });
    eventually("the other container has it", secs(2), || number(&node, "/dev/sensor") == "a:e5");
    sh(&node, "reader", "rm -r /opt/in && mv /opt/moved /opt/in");
    eventually("the reader has it, too", secs(5), || number(&node, "/opt/in/sensor") == "a:e5");

    let after = node.pod("plugged").expect("the pod");
    for name in ["main", "reader"] {
        assert_eq!((after.id(name), after.restarts(name)), (before.id(name), 0), "{name} was not restarted");
    }
    node.finish();
}

#[test]
fn a_pod_starts_as_soon_as_its_device_comes() {
    let node = Node::up();
    let devices = Devices(node.dir.join("dev"));
    let watches = || {
        let open = fs::read_dir(format!("/proc/{}/fd", node.agent_pid())).expect("descriptors").flatten();
        open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|of| of.ends_with("anon_inode:inotify"))).count()
    };
    let before = watches();
    let mut manifest = resting("plain");
    manifest["spec"]["volumes"] = json!([{"name": "dev", "hostPath": {"path": "/dev", "type": "Directory"}}]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "dev", "mountPath": "/mnt"}]);
    node.run(&manifest);
    assert_eq!((watches(), before > 0), (before, true), "only a pod with devices is watched");

    let mut manifest = resting("early");
    manifest["spec"]["volumes"] = json!([devices.volume("late")]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "late", "mountPath": "/dev/late"}]);
    node.apply("early.yaml", &manifest);
    // By then the next attempt would be seconds away.
    eventually("four attempts", secs(15), || {
        let events = node.events();
        let failed = events.iter().filter(|event| event["reason"] == "FailedMount");
        failed.filter_map(|event| event["count"].as_i64()).sum::<i64>() >= 4
    });
    fs::create_dir(&devices.0).expect("folder");
    devices.plug("ttyA", FUSE, "late");
    eventually("the pod is up", secs(2), || node.pod("early").is_some_and(|pod| pod.up()));
    assert_eq!(node.sh("early", &format!("{TRY}try r /dev/late")).trim_end(), "ok");
    assert_eq!(watches(), before + 1);
    node.remove("early.yaml");
    node.wait_gone("early");
    eventually("its watch is gone", secs(2), || watches() == before);
    node.finish();
}

#[test]
fn cdi_devices_change_the_container() {
    let mut node = Node::new();
    let dir = node.dir.join("cdi");
    fs::create_dir(&dir).expect("folder");
    let config = node.dir.join("config.yaml");
    let text = format!(
        "apiVersion: coracle.dev/v1alpha1\nkind: CoracleConfiguration\ncdiSpecDirs: [/nonexistent, {}]\n",
        dir.display()
    );
    fs::write(&config, text).expect("config");
    node.args.extend(["--config".to_owned(), config.display().to_string()]);
    fs::write(node.dir.join("share/library"), "from the vendor").expect("file");
    let share = node.dir.join("share").display().to_string();
    let hook = format!("cat > {share}/hooked");
    let edits = json!({
        "env": ["CAM=front"],
        "deviceNodes": [{"path": "/dev/cams/front", "hostPath": "/dev/fuse", "permissions": "r"}],
        "mounts": [{"hostPath": share, "containerPath": "/opt/cam", "options": ["ro", "nosuid"]}],
        "hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", hook], "env": ["PATH=/bin:/usr/bin"]}],
        "additionalGids": [4242],
    });
    let file = json!({"cdiVersion": "0.7.0", "kind": "vendor.com/cam", "devices": [
        {"name": "front", "containerEdits": edits},
        {"name": "lost", "containerEdits": {"deviceNodes": [{"path": "/dev/none-such"}]}},
    ]});
    fs::write(dir.join("cam.json"), file.to_string()).expect("CDI file");
    fs::write(dir.join("broken.yaml"), "cdiVersion: [").expect("CDI file");
    node.start();
    node.wait_for_images();

    let ask = |name: &str, device: &str| {
        let mut manifest = resting(name);
        manifest["metadata"]["annotations"] = json!({"cdi.k8s.io/test": device});
        manifest
    };
    node.run(&ask("cam", "vendor.com/cam=front"));
    let seen = node.sh("cam", &format!("{TRY}echo $CAM; cat /opt/cam/library; echo; id -G; try r /dev/cams/front"));
    let seen: Vec<&str> = seen.lines().collect();
    assert_eq!((seen[0], seen[1], seen[3]), ("front", "from the vendor", "ok"), "{seen:?}");
    assert!(seen[2].split(' ').any(|gid| gid == "4242"), "{seen:?}");
    let denied = node.sh("cam", &format!("{TRY}try w /dev/cams/front; try w /opt/cam/library"));
    assert!(denied.contains(DENIED) && denied.contains("Read-only"), "{denied}");
    let state: Value =
        serde_json::from_slice(&fs::read(node.dir.join("share/hooked")).expect("the hook ran")).expect("state");
    assert!(state["id"].is_string(), "{state}");

    let unknown = waits(&node, &ask("unknown", "vendor.com/cam=rear"), "unresolvable CDI device vendor.com/cam=rear");
    let message = unknown.waiting_message("main");
    assert!(message.contains("/nonexistent") && message.contains("broken.yaml"), "{message}");
    waits(&node, &ask("lost", "vendor.com/cam=lost"), "/dev/none-such: No such file");
    waits(&node, &ask("garbled", "vendor.com"), "\"vendor.com\" is not a CDI device name");
    node.finish();
}

#[test]
fn security_profiles_are_the_ones_asked_for() {
    let node = Node::up();
    let profiles = node.dir.join("root/seccomp");
    fs::create_dir(&profiles).expect("folder");
    let no_folders = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ]});
    fs::write(profiles.join("no-folders.json"), no_folders.to_string()).expect("profile");
    fs::write(profiles.join("broken.json"), "{}").expect("profile");
    symlink("/etc/passwd", profiles.join("out.json")).expect("link");
    let local = |name: &str| json!({"seccompProfile": {"type": "Localhost", "localhostProfile": name}});

    let mut manifest = pod("filtered", &format!("mkdir /tmp/a 2> /tmp/said; {REST}"));
    manifest["spec"]["containers"][0]["securityContext"] = local("no-folders.json");
    node.run(&manifest);
    let said = node.sh("filtered", "cat /tmp/said; mkdir /tmp/b 2>&1; ls -d /tmp/a /tmp/b 2>/dev/null; true");
    assert_eq!(said.matches(DENIED).count(), 2, "inside and by exec: {said}");
    assert_eq!(said.lines().count(), 2, "no folder was made: {said}");

    // The pod's profile is the container's, unless it has one of its own.
    let mut manifest = resting("mixed");
    manifest["spec"]["securityContext"] = local("no-folders.json");
    manifest["spec"]["containers"].as_array_mut().expect("containers").push(json!({
        "name": "free", "image": BUSYBOX, "command": ["sh", "-c", REST],
        "securityContext": {"seccompProfile": {"type": "Unconfined"}},
    }));
    node.run(&manifest);
    let status = |container: &str| {
        let script = "mkdir /tmp/x 2>/dev/null && echo made; grep Seccomp: /proc/self/status";
        node.cli(&["exec", "mixed", "-c", container, "--", "sh", "-c", script])
            .ok()
            .split_whitespace()
            .collect::<String>()
    };
    assert_eq!((status("main").as_str(), status("free").as_str()), ("Seccomp:2", "madeSeccomp:0"));

    waits(&node, &with_profile("missing", local("none.json")), "seccomp/none.json cannot be used: No such file");
    waits(&node, &with_profile("broken", local("broken.json")), "missing field `defaultAction`");
    waits(&node, &with_profile("out", local("out.json")), "it is outside the folder of profiles");

    if fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default().trim() != "Y" {
        let asks = with_profile("armoured", json!({"appArmorProfile": {"type": "RuntimeDefault"}}));
        let refused = node.run_to_end(&asks);
        assert_eq!(refused.0["status"]["reason"], "AppArmor");
        let message = refused.0["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("Cannot enforce AppArmor: AppArmor is not enabled on the host"), "{message}");
        node.run(&with_profile("bare", json!({"appArmorProfile": {"type": "Unconfined"}})));
    }
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        let asks = with_profile("labelled", json!({"seLinuxOptions": {"level": "s0:c1"}}));
        waits(&node, &asks, "seLinuxOptions: SELinux is not enabled on the host");
    }

    let held = |add: Value, drop: Value| json!({"capabilities": {"add": add, "drop": drop}});
    node.run(&with_profile("caps", held(json!(["NET_ADMIN", "CAP_SYS_TIME"]), json!(["ALL"]))));
    let bits = node.sh("caps", "grep CapBnd /proc/1/status");
    assert!(bits.ends_with(&format!("{:016x}", 1_u64 << 12 | 1 << 25)), "{bits}");
    node.finish();
}
