//! What goes wrong: the agent or a shim killed at a bad moment, a power cut, broken records, a full disk.

use crate::harness::{Node, PATIENCE, REST, alive, eventually, pod, resting, secs, signal};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

#[test]
fn twenty_pods_do_not_notice_that_the_agent_was_killed() {
    let mut node = Node::up();
    for i in 0..20 {
        node.apply(&format!("p{i}.yaml"), resting(&format!("p{i}")));
    }
    let pids = |node: &Node| -> BTreeMap<String, i32> {
        let pods = node.wait("all run", secs(60), |pods| pods.len() == 20 && pods.iter().all(|p| p.up()));
        pods.iter().map(|p| (p.name().to_owned(), node.init_pid(&p.id("main")))).collect()
    };
    let before = pids(&node);
    node.kill9();
    sleep(Duration::from_millis(500));
    assert!(before.values().all(|pid| alive(*pid)), "containers live on without the agent");
    let begin = Instant::now();
    node.start();
    node.wait("adopted", secs(10), |pods| pods.len() == 20 && pods.iter().all(|p| p.up()));
    let took = begin.elapsed();
    assert!(took < secs(3), "adoption took {took:?}");
    assert_eq!(pids(&node), before, "the same processes");
    let restarts: u64 = node.pods().iter().map(|p| p.restarts("main")).sum();
    assert_eq!(restarts, 0);
    assert_eq!(node.shims().len(), 20);
    node.finish();
}

#[test]
fn an_exit_while_the_agent_was_away_is_reported_with_its_code() {
    let mut node = Node::up();
    let mut m = pod(
        "web",
        "if [ -e /data/again ]; then trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done; fi; touch /data/again; sleep 2; exit 42",
    );
    m["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    m["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    node.run(&m);
    let mut once = pod("once", "sleep 2; exit 9");
    once["spec"]["restartPolicy"] = json!("Never");
    node.run(&once);
    node.kill9();
    sleep(secs(3));
    node.start();
    let seen = node.wait_pod("web", "restarted", |p| p.up() && p.restarts("main") == 1);
    assert_eq!(seen.last("main")["exitCode"], 42);
    let seen = node.wait_pod("once", "ended", |p| p.phase() == "Failed");
    assert_eq!(seen.terminated("main")["exitCode"], 9);
    assert_eq!(seen.restarts("main"), 0);
    node.finish();
}

#[test]
fn a_stopped_agent_leaves_its_pods_running() {
    let mut node = Node::up();
    let seen = node.run(&resting("web"));
    let pid = node.init_pid(&seen.id("main"));
    node.stop();
    sleep(secs(1));
    assert!(alive(pid));
    node.start();
    let again = node.wait_up("web");
    assert_eq!(again.id("main"), seen.id("main"));
    assert_eq!(again.ip(), seen.ip());
    assert_eq!(again.0["status"]["startTime"], seen.0["status"]["startTime"]);
    assert_eq!(again.restarts("main"), 0);
    node.finish();
}

#[test]
fn logs_go_on_while_the_agent_is_away() {
    let mut node = Node::up();
    node.run(&pod("web", "i=0; while :; do echo tick-$i; i=$((i+1)); sleep 0.1; done"));
    node.kill9();
    sleep(secs(2));
    node.start();
    let text = node.cli(&["logs", "web"]).ok();
    let ticks: Vec<u32> = text.lines().filter_map(|l| l.strip_prefix("tick-")?.parse().ok()).collect();
    assert!(ticks.len() > 15, "{text}");
    assert!(ticks.windows(2).all(|w| w[1] == w[0] + 1), "none is missing: {ticks:?}");
    node.finish();
}

#[test]
fn a_killed_shim_means_a_clean_restart_of_its_pod() {
    let node = Node::up();
    let seen = node.run(&resting("web"));
    node.run(&resting("bystander"));
    let bystander = node.pod("bystander").expect("runs");
    let pid = node.init_pid(&seen.id("main"));
    let shim = node
        .own_processes()
        .into_iter()
        .find(|(p, text)| *p != node.agent_pid() && text.contains(seen.uid()))
        .map(|p| p.0)
        .unwrap_or_else(|| panic!("no shim names pod {}: {:?}", seen.uid(), node.own_processes()));
    signal(shim, Signal::KILL);
    let again = node.wait_pod("web", "restarted", |p| p.up() && p.id("main") != seen.id("main"));
    eventually("the old container is gone", secs(5), || !alive(pid));
    assert_eq!(again.restarts("main"), 1);
    assert!([137, 255].contains(&again.last("main")["exitCode"].as_i64().unwrap_or(0)), "{}", again.last("main"));
    node.wait_event("the shim's death", |reason, message| {
        reason == "SandboxChanged" || message.to_lowercase().contains("shim")
    });
    assert_eq!(node.shims().len(), 2);
    assert_eq!(node.pod("bystander").expect("runs").id("main"), bystander.id("main"), "others are not touched");
    node.finish();
}

#[test]
fn a_shim_killed_while_the_agent_is_away_is_noticed() {
    let mut node = Node::up();
    let seen = node.run(&resting("web"));
    let pid = node.init_pid(&seen.id("main"));
    node.kill9();
    for shim in node.shims() {
        signal(shim, Signal::KILL);
    }
    node.start();
    let again = node.wait_pod("web", "restarted", |p| p.up() && p.id("main") != seen.id("main"));
    eventually("the old container is gone", secs(5), || !alive(pid));
    assert_eq!(again.restarts("main"), 1);
    assert_eq!(node.shims().len(), 1);
    node.finish();
}

#[test]
fn a_stop_that_the_shim_could_not_hear_is_asked_for_again() {
    let node = Node::up();
    let mut m = pod("web", "trap 'exit 0' TERM; while :; do sleep 0.1; done");
    m["spec"]["terminationGracePeriodSeconds"] = json!(600);
    let seen = node.run(&m);
    let [shim] = node.shims()[..] else { panic!("one shim: {:?}", node.shims()) };
    signal(shim, Signal::STOP);
    // As many connections as may wait: the agent's is one too many.
    let folder = fs::File::open(node.dir.join("run/pods").join(seen.uid())).expect("run folder of the pod");
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/shim.sock", folder.as_raw_fd())).expect("address");
    let connect = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socket");
        rustix::net::connect(&socket, &address).map(|()| socket)
    };
    let waiting: Vec<OwnedFd> = std::iter::from_fn(|| connect().ok()).collect();
    assert!(waiting.len() > 1);
    node.remove("web.yaml");
    node.wait_event("the stop failed", |_, message| message.contains("the shim did not answer"));
    drop(waiting);
    signal(shim, Signal::CONT);
    node.wait_gone("web");
    node.finish();
}

#[test]
fn after_a_power_cut_everything_comes_back() {
    let mut node = Node::new();
    // Back-off is another test's.
    node.configure(json!({ "crashLoopBackOff": { "maxContainerRestartPeriod": "1s" } }));
    node.start();
    node.wait_for_images();
    let mut m = resting("web");
    m["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    m["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    let seen = node.run(&m);
    node.sh("web", "echo kept > /data/file; sync");
    signal(node.init_pid(&seen.id("main")), Signal::KILL);
    node.wait_pod("web", "restarted", |p| p.restarts("main") == 1 && p.up());
    let mut once = pod("once", "echo run >> /share/runs; exit 6");
    once["spec"]["restartPolicy"] = json!("Never");
    once["spec"]["volumes"] = json!([{ "name": "share", "hostPath": { "path": node.dir.join("share") } }]);
    once["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "share", "mountPath": "/share" }]);
    assert_eq!(node.run_to_end(&once).phase(), "Failed");

    node.kill_everything();
    node.forget_kernel_state();
    fs::remove_dir_all(node.dir.join("run")).expect("a reboot empties /run");
    fs::create_dir(node.dir.join("run")).expect("run");
    node.start();

    let again = node.wait_pod("web", "back", |p| p.up() && p.restarts("main") == 2);
    assert_eq!(again.uid(), seen.uid());
    assert_eq!(node.sh("web", "cat /data/file"), "kept", "volumes survive");
    let once = node.wait_pod("once", "still ended", |p| p.phase() == "Failed");
    assert_eq!(once.terminated("main")["exitCode"], 6);
    sleep(secs(1));
    assert_eq!(fs::read_to_string(node.dir.join("share/runs")).expect("runs"), "run\n", "it is not run again");
    node.finish();
}

#[test]
fn the_agent_may_be_killed_at_any_moment_of_a_start() {
    let mut node = Node::up();
    for i in 0..6 {
        node.apply(&format!("p{i}.yaml"), resting(&format!("p{i}")));
    }
    for pause in [3, 10, 20, 35, 60, 90, 140, 200] {
        sleep(Duration::from_millis(pause));
        node.kill9();
        node.start();
    }
    node.wait("all run", secs(60), |pods| pods.len() == 6 && pods.iter().all(|p| p.up()));
    assert_eq!(node.shims().len(), 6, "{:?}", node.own_processes());
    for pod in node.pods() {
        node.init_pid(&pod.id("main"));
    }
    let scripts = node.container_pids().into_iter().filter(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|l| l.starts_with("NSpid:") && l.ends_with("\t1"))
    });
    assert_eq!(scripts.count(), 6, "never two instances of a container");
    node.finish();
}

#[test]
fn the_agent_may_be_killed_at_any_moment_of_a_removal() {
    let mut node = Node::up();
    for round in 0..4u64 {
        for i in 0..3 {
            node.apply(&format!("p{i}.yaml"), resting(&format!("p{i}")));
        }
        node.wait("all run", PATIENCE, |pods| pods.len() == 3 && pods.iter().all(|p| p.up()));
        for i in 0..3 {
            node.remove(&format!("p{i}.yaml"));
        }
        sleep(Duration::from_millis(5 + round * 25));
        node.kill9();
        node.start();
        node.wait("all gone", PATIENCE, |pods| pods.is_empty());
    }
    node.finish();
}

#[test]
fn a_manifest_removed_or_edited_while_the_agent_was_away() {
    let mut node = Node::up();
    let removed = node.run(&resting("removed"));
    let pid = node.init_pid(&removed.id("main"));
    let version = |v: u32| {
        let mut m = pod(
            "edited",
            &format!(
                "echo start{v} >> /share/order; trap 'sleep 1; echo stop{v} >> /share/order; exit 0' TERM; while :; do sleep 3600 & wait $!; done"
            ),
        );
        m["spec"]["terminationGracePeriodSeconds"] = json!(20);
        m["spec"]["volumes"] = json!([{ "name": "share", "hostPath": { "path": node.dir.join("share") } }]);
        m["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "share", "mountPath": "/share" }]);
        m
    };
    let (first, second) = (version(1), version(2));
    let order = node.dir.join("share/order");
    let old = node.run(&first);
    eventually("the old one runs", PATIENCE, || fs::read_to_string(&order).is_ok());
    node.kill9();
    node.remove("removed.yaml");
    node.apply("edited.yaml", second);
    node.start();
    node.wait_gone("removed");
    assert!(!alive(pid));
    node.wait_pod("edited", "replaced", |p| p.up() && p.uid() != old.uid());
    eventually("the new one runs", PATIENCE, || fs::read_to_string(&order).is_ok_and(|t| t.contains("start2")));
    assert_eq!(fs::read_to_string(&order).expect("order"), "start1\nstop1\nstart2\n", "same grace, no overlap");
    node.finish();
}

#[test]
fn broken_records_do_not_stop_the_agent() {
    let mut node = Node::up();
    let seen = node.run(&resting("web"));
    node.run(&resting("other"));
    node.stop();
    let folder = node.dir.join("root/pods").join(seen.uid());
    fs::write(folder.join("pod.json"), b"{\"half\":").expect("break a record");
    let stray = node.dir.join("root/pods/not-a-pod");
    fs::create_dir(&stray).expect("stray folder");
    fs::write(stray.join("pod.json"), [0xff, 0, 1]).expect("stray file");
    node.start();
    node.wait_up("other");
    node.wait_up("web");
    assert_eq!(node.shims().len(), 2, "{:?}", node.own_processes());
    node.finish();
}

#[test]
fn a_half_made_image_import_is_not_taken_for_whole() {
    let mut node = Node::new();
    let whole = fs::read(crate::harness::test_images()).expect("archive");
    fs::write(node.dir.join("root/images/images.tar"), &whole[..whole.len() / 2]).expect("a truncated archive");
    node.start();
    node.apply("web.yaml", resting("web"));
    node.wait_pod("web", "no image", |p| ["ErrImagePull", "ImagePullBackOff"].contains(&p.waiting("main")));
    assert!(!node.cli(&["image", "ls"]).ok().contains("busybox"));
    // A crash in the middle of an import, several times, then the real thing.
    for pause in [1, 5, 15] {
        node.kill9();
        node.drop_image(crate::harness::test_images(), "images.tar");
        node.start();
        sleep(Duration::from_millis(pause));
    }
    node.wait_up("web");
    assert_eq!(node.sh("web", "busybox echo whole"), "whole");
    node.finish();
}

#[test]
fn a_full_disk_is_survived() {
    let mut node = Node::new();
    let root = node.dir.join("root");
    let images = fs::read(root.join("images/images.tar")).expect("archive");
    rustix::mount::mount("none", &root, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=48m"))
        .expect("a small disk");
    fs::create_dir(root.join("images")).expect("folder");
    fs::write(root.join("images/images.tar"), images).expect("archive");
    node.start();
    node.wait_for_images();
    let seen = node.run(&resting("before"));
    let ballast = root.join("ballast");
    let full = std::io::copy(&mut std::io::repeat(0), &mut fs::File::create(&ballast).expect("ballast"));
    assert!(full.is_err(), "the disk is full now");
    node.apply("during.yaml", resting("during"));
    sleep(secs(2));
    assert!(alive(node.agent_pid()), "the agent lives");
    assert_eq!(node.wait_up("before").id("main"), seen.id("main"), "running pods are not touched");
    fs::remove_file(&ballast).expect("make room");
    node.wait_up("during");
    // The disk itself is no leak.
    for entry in fs::read_dir(node.dir.join("manifests")).expect("manifests").flatten() {
        fs::remove_file(entry.path()).expect("remove a manifest");
    }
    node.wait("all gone", PATIENCE, |pods| pods.is_empty());
    node.stop();
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::empty()).expect("nothing holds the disk");
    node.finish();
}

/// A container, or a live system: its root is an overlay itself.
#[test]
fn where_overlays_cannot_be_the_reason_is_said_at_once() {
    let mut node = Node::new();
    let root = node.dir.join("root");
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| node.dir.join("share").join(name));
    for dir in [&lower, &upper, &work] {
        fs::create_dir_all(dir).expect("folder");
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let options = std::ffi::CString::new(options).expect("options");
    rustix::mount::mount("overlay", &root, "overlay", rustix::mount::MountFlags::empty(), Some(options.as_c_str()))
        .expect("an overlay");
    node.disk = Some(root.clone());
    node.start();
    let reason = format!("overlayfs does not work on another overlay, which {}", root.display());
    let log = || fs::read_to_string(node.dir.join("agent.log")).expect("log");
    eventually("the agent warns", secs(20), || log().contains(&reason) && log().contains("put the root directory on"));
    let mut pod = resting("waits");
    pod["spec"]["containers"][0]["image"] = json!("coracle.dev/hello:0.1.0");
    node.apply("waits.yaml", pod);
    node.wait_event("the pod tells", |kind, message| kind == "Failed" && message.contains("does not work on another"));
    assert!(!root.join("overlay-probe").exists());
    node.finish();
}

#[test]
fn a_second_agent_on_the_same_folders_is_refused() {
    let node = Node::up();
    let seen = node.run(&resting("web"));
    let text = node.second_agent().fails(1);
    assert!(text.contains("error:"), "{text}");
    assert_eq!(node.wait_up("web").id("main"), seen.id("main"));
    node.finish();
}

#[test]
fn a_container_that_writes_much_does_not_hurt_the_node() {
    let mut node = Node::new();
    node.configure(json!({ "containerLogMaxSize": "1Mi", "containerLogMaxFiles": 2 }));
    node.start();
    node.wait_for_images();
    node.apply("flood.yaml", pod("flood", "yes 0123456789abcdef | head -c 100000000; echo; echo finished; sleep 3600"));
    node.wait_up("flood");
    let begin = Instant::now();
    node.run(&pod("web", &format!("echo fine; {REST}")));
    assert!(begin.elapsed() < secs(10), "other pods start meanwhile");
    eventually("it is not blocked by its log", secs(60), || {
        node.cli(&["logs", "flood", "--tail=1"]).stdout.trim() == "finished"
    });
    let size: u64 = walk(&node.dir.join("log/pods")).iter().map(|p| fs::metadata(p).map_or(0, |m| m.len())).sum();
    assert!(size < 64 << 20, "logs are limited: {size} bytes");
    node.finish();
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            files.extend(walk(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

/// Namespaces of a removed pod must not live on in the shims of others, also where `/` is no shared mount.
#[test]
fn a_removed_pod_leaves_nothing_in_the_shims_of_others() {
    let node = Node::up();
    let first = node.run(&resting("first"));
    node.run(&resting("second"));
    let kept = |uid: &str| {
        node.shims().into_iter().any(|pid| {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            let own = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains(uid);
            !own && mounts.contains(&format!("/pods/{uid}/"))
        })
    };
    eventually("no shim holds another pod's mounts", PATIENCE, || !kept(first.uid()));
    node.finish();
}
