//! A machine without a battery for its clock: power cuts, cold boots in 1970, and a clock that is set while pods run.

use crate::harness::{self, Node, PATIENCE, PodView, REST, eventually, pod, resting, secs};
use coracle::sys::namespace;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The longest crash back-off of these nodes.
const BACK_OFF: Duration = Duration::from_secs(4);
/// What a loaded machine may add to a wait.
const LATE: Duration = Duration::from_secs(12);

/// A node whose wall clock the test sets.
pub struct Clock<'a>(&'a Path);

impl Clock<'_> {
    /// Prepares a node that is not started yet.
    pub fn give(node: &mut Node) {
        let file = node.dir.join("clock").display().to_string();
        node.env.push(("CORACLE_TEST_CLOCK".into(), file));
        node.configure(json!({ "crashLoopBackOff": { "maxContainerRestartPeriod": "4s" } }));
    }

    pub fn of(node: &Node) -> Clock<'_> {
        Clock(&node.dir)
    }

    /// Sets it.
    pub fn set(&self, now: Timestamp) {
        let ahead = now.duration_since(Timestamp::now()).as_secs();
        let staged = self.0.join("clock.new");
        fs::write(&staged, ahead.to_string()).expect("clock");
        fs::rename(staged, self.0.join("clock")).expect("clock");
    }

    pub fn now(&self) -> Timestamp {
        let ahead = fs::read_to_string(self.0.join("clock")).map_or(0, |text| text.parse().expect("seconds"));
        Timestamp::now() + SignedDuration::from_secs(ahead)
    }
}

/// A clock without a battery, some seconds after the machine was switched on.
fn epoch() -> Timestamp {
    Timestamp::from_second(40).expect("1970")
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_default().parse().unwrap_or_else(|e| panic!("{value}: {e}"))
}

/// Which run of which container runs.
fn runs(node: &Node, but: &[&str]) -> BTreeMap<String, String> {
    let pods = node.pods();
    let kept = pods.iter().filter(|p| !but.iter().any(|name| p.name().starts_with(name)));
    let each = kept.flat_map(|p| {
        let statuses =
            ["initContainerStatuses", "containerStatuses"].map(|list| p.0["status"][list].as_array().cloned());
        let all = statuses.into_iter().flatten().flatten();
        all.map(|c| (format!("{}/{}", p.name(), c["name"]), c["containerID"].to_string())).collect::<Vec<_>>()
    });
    each.collect()
}

/// Nothing that a pod reports lies in the future, or further back than `most`.
fn times_make_sense(seen: &PodView, clock: &Clock<'_>, most: SignedDuration) {
    let now = clock.now() + SignedDuration::from_secs(2);
    let status = &seen.0["status"];
    let mut times = vec![("startTime", time(&status["startTime"]))];
    for c in status["containerStatuses"].as_array().into_iter().flatten() {
        for (what, at) in [
            ("startedAt", &c["state"]["running"]["startedAt"]),
            ("finishedAt", &c["lastState"]["terminated"]["finishedAt"]),
        ] {
            times.extend((!at.is_null()).then(|| (what, time(at))));
        }
    }
    times.extend(
        status["conditions"].as_array().into_iter().flatten().map(|c| ("condition", time(&c["lastTransitionTime"]))),
    );
    for (what, at) in times {
        assert!(at <= now && at >= now - most, "{what} of {} is {at}, it is {now}: {status}", seen.name());
    }
}

/// What a script wrote to the node's folder: seconds since the boot, a line each.
fn uptimes(node: &Node, file: &str) -> Vec<f64> {
    let text = fs::read_to_string(node.dir.join("share").join(file)).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

fn sharing(node: &Node, mut manifest: Value) -> Value {
    manifest["spec"]["volumes"] = json!([{ "name": "share", "hostPath": { "path": node.dir.join("share") } }]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "share", "mountPath": "/share" }]);
    manifest
}

/// A pod that does not end when asked.
fn stubborn(node: &Node, name: &str, grace: u64) -> Value {
    let script = format!("trap 'touch /share/{name}' TERM; while :; do sleep 3600 & wait $!; done");
    let mut manifest = sharing(node, pod(name, &script));
    manifest["spec"]["terminationGracePeriodSeconds"] = json!(grace);
    manifest
}

/// Sets the clock while a pod is being stopped: it has its whole grace, and no more.
fn stop_across(node: &Node, name: &str, set: impl FnOnce()) {
    const GRACE: u64 = 5;
    node.run(&stubborn(node, name, GRACE));
    node.remove(&format!("{name}.yaml"));
    eventually("it is asked to stop", PATIENCE, || node.dir.join("share").join(name).exists());
    let begin = Instant::now();
    set();
    node.wait_gone(name);
    let took = begin.elapsed();
    assert!(took >= secs(GRACE - 1) && took <= secs(GRACE) + LATE, "{name} was stopped in {took:?}");
}

/// The back-off of a pod that crashes for ever is its own, whatever was done to the clock meanwhile.
fn crashes_on(node: &Node, before: usize) {
    eventually("it crashes on", BACK_OFF + LATE, || uptimes(node, "crashes").len() > before + 1);
    let starts = uptimes(node, "crashes");
    for pair in starts[before - 1..].windows(2) {
        let pause = pair[1] - pair[0];
        assert!(pause > 3.5 && pause < (BACK_OFF + LATE).as_secs_f64(), "after {pause} s: {starts:?}");
    }
}

/// As a machine that was switched off comes up: nothing but the disk is left, and the clock has no battery. Returns when,
/// by the clock that was right, the pods were first seen.
pub fn cut_the_power(node: &mut Node) -> Timestamp {
    node.kill_everything();
    node.forget_kernel_state();
    fs::remove_dir_all(node.dir.join("run")).expect("a reboot empties /run");
    fs::create_dir(node.dir.join("run")).expect("run");
    // Its records are of another boot, and older than this one: the machine that tests was up before them.
    let uptime = fs::read_to_string("/proc/uptime").expect("uptime");
    let uptime: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("uptime");
    let seen = Timestamp::now() - SignedDuration::from_secs(uptime as i64) - SignedDuration::from_hours(1);
    let seen = Timestamp::from_second(seen.as_second()).expect("time");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot ID");
    another_boot(&node.dir.join("root/pods"), boot.trim(), seen);
    seen
}

fn another_boot(dir: &Path, boot: &str, seen: Timestamp) {
    for entry in fs::read_dir(dir).expect("records").flatten() {
        let path = entry.path();
        let is = |what: fn(&fs::FileType) -> bool| entry.file_type().is_ok_and(|t| what(&t));
        if is(fs::FileType::is_dir) && !["volumes", "upper", "work"].iter().any(|name| path.ends_with(name)) {
            another_boot(&path, boot, seen);
        } else if is(fs::FileType::is_file) && path.extension().is_some_and(|e| e == "json") {
            let text = fs::read_to_string(&path).expect("record");
            let text = text.replace(boot, "00000000-0000-4000-8000-000000000000");
            let mut record: Value = serde_json::from_str(&text).expect("record");
            if !record["seen"].is_null() {
                record["seen"]["at"] = json!(seen);
            }
            fs::write(&path, record.to_string()).expect("record");
        }
    }
}

#[test]
fn after_a_power_cut_everything_comes_back_in_1970_and_nothing_notices_when_the_clock_is_set() {
    let mut node = Node::new();
    Clock::give(&mut node);
    node.start();
    node.wait_for_images();

    let mut web = resting("web");
    web["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    web["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    web["spec"]["containers"][0]["command"] = json!(["sh", "-c", format!("echo begun; {REST}")]);
    web["spec"]["containers"][0]["readinessProbe"] = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1 });
    let web_seen = node.run(&web);
    node.sh("web", "echo kept > /data/file; sync");
    let mut layered = resting("layered");
    layered["spec"]["initContainers"] = json!([
        { "name": "first", "image": layered["spec"]["containers"][0]["image"], "command": ["sh", "-c", "exit 0"] },
        { "name": "side", "image": layered["spec"]["containers"][0]["image"], "restartPolicy": "Always",
            "command": ["sh", "-c", REST] },
    ]);
    node.run(&layered);
    let mut host = resting("host");
    host["spec"]["hostNetwork"] = json!(true);
    node.run(&host);
    let mut timed = resting("timed");
    // Twenty years: more than this machine has been up, less than the clock will jump.
    timed["spec"]["activeDeadlineSeconds"] = json!(20 * 365 * 24 * 3600);
    node.run(&timed);
    let mut once = sharing(&node, pod("once", "echo run >> /share/once"));
    once["spec"]["restartPolicy"] = json!("Never");
    assert_eq!(node.run_to_end(&once).phase(), "Succeeded");
    let mut tries = sharing(&node, pod("tries", "cut -d' ' -f1 /proc/uptime >> /share/crashes; exit 3"));
    tries["spec"]["restartPolicy"] = json!("OnFailure");
    node.apply("tries.yaml", &tries);
    // It failed, and failed again, and waits.
    node.wait_pod("tries", "waits", |p| p.restarts("main") >= 1 && p.waiting("main") == "CrashLoopBackOff");

    let first_seen = cut_the_power(&mut node);
    let tried = uptimes(&node, "crashes").len() as u64;
    let log_was = fs::read_to_string(node.dir.join("agent.log")).expect("log").len();
    Clock::of(&node).set(epoch());
    node.start();

    let again = node.wait_pod("web", "back", |p| p.up() && p.restarts("main") == 1 && p.condition("Ready") == "True");
    assert_eq!(again.uid(), web_seen.uid());
    assert_eq!(node.sh("web", "cat /data/file"), "kept", "volumes survive");
    let back = node.wait_pod("layered", "back", |p| p.up() && p.restarts("main") == 1);
    let inits = &back.0["status"]["initContainerStatuses"];
    assert_eq!((&inits[0]["restartCount"], &inits[1]["restartCount"]), (&json!(1), &json!(1)), "{inits}");
    for name in ["host", "timed"] {
        node.wait_pod(name, "back", |p| p.up() && p.restarts("main") == 1);
    }
    // As under the kubelet, whose back-off is forgotten: at once, then it waits again.
    eventually("it is tried again", LATE, || uptimes(&node, "crashes").len() as u64 > tried);
    node.wait_pod("tries", "counts on", |p| p.restarts("main") >= tried && p.waiting("main") == "CrashLoopBackOff");
    node.wait_pod("once", "still ended", |p| p.phase() == "Succeeded" && p.restarts("main") == 0);
    for seen in node.pods().iter().filter(|p| p.name() != "once-node") {
        // The machine that tests has been up for a while, so its 1970 began in 1969.
        times_make_sense(seen, &Clock::of(&node), SignedDuration::from_hours(24 * 365));
    }
    assert!(node.cli(&["logs", "--since=5m", "web"]).ok().contains("begun"));

    // The network is there at last, and with it the time.
    let before = runs(&node, &["tries"]);
    let crashes = uptimes(&node, "crashes").len();
    stop_across(&node, "slow", || Clock::of(&node).set(Timestamp::now()));
    crashes_on(&node, crashes);
    assert_eq!(runs(&node, &["tries"]), before, "nothing was restarted");
    let truly = |p: &PodView| time(&p.0["status"]["startTime"]) == first_seen;
    node.wait_pod("web", "is told when it was truly seen first", truly);
    for seen in node.pods() {
        times_make_sense(&seen, &Clock::of(&node), SignedDuration::from_hours(24 * 365));
        if let Some(started) = seen.container("main")["state"]["running"]["startedAt"].as_str() {
            let age = Timestamp::now().duration_since(time(&json!(started)));
            assert!(age > SignedDuration::from_secs(-2) && age < SignedDuration::from_mins(10), "{started}");
        }
    }
    assert!(node.cli(&["logs", "--since=5m", "web"]).ok().contains("begun"), "written by the other clock");
    for event in node.events() {
        let age = Timestamp::now().duration_since(time(&event["lastTimestamp"]));
        assert!(age > SignedDuration::from_secs(-2) && age < SignedDuration::from_hours(1), "{event}");
    }

    // Another agent takes over; then the clock fails again.
    node.kill9();
    node.start();
    let crashes = uptimes(&node, "crashes").len();
    stop_across(&node, "later", || Clock::of(&node).set(epoch()));
    crashes_on(&node, crashes);
    assert_eq!(runs(&node, &["tries"]), before, "nothing was restarted");

    // And while there is none, it is set by years.
    node.kill9();
    Clock::of(&node).set(Timestamp::now() + SignedDuration::from_hours(24 * 3650));
    node.start();
    node.run(&resting("fresh"));
    assert_eq!(runs(&node, &["tries", "fresh"]), before, "nothing was restarted");
    for name in ["web", "timed", "fresh"] {
        let seen = node.pod(name).expect("there");
        let started = time(&seen.container("main")["state"]["running"]["startedAt"]);
        let age = Clock::of(&node).now().duration_since(started);
        assert!(age > SignedDuration::from_secs(-2) && age < SignedDuration::from_hours(1), "{name}: {started}");
    }
    assert_eq!(fs::read_to_string(node.dir.join("share/once")).expect("runs"), "run\n", "it is not run again");

    // A few words about each pod, no more.
    let log = fs::read_to_string(node.dir.join("agent.log")).expect("log");
    let mut said: BTreeMap<&str, usize> = BTreeMap::new();
    for line in log[log_was..].lines().filter(|l| l.contains("WARN") || l.contains("ERROR")) {
        let words = line.split_once(' ').map_or(line, |(_, words)| words);
        *said.entry(words).or_default() += 1;
    }
    said.retain(|words, count| *count > 3 && !words.contains("tries"));
    assert!(said.is_empty(), "{said:#?}");
    node.finish();
}

/// A network namespace of the test's own.
struct Offline(PathBuf);

impl Offline {
    fn beside(node: &Node) -> Offline {
        let offline = Offline(node.dir.with_extension("offline"));
        let net = namespace::Kinds { net: true, ipc: false, uts: false };
        namespace::create(&offline.0, net, None, &[]).expect("a network namespace");
        offline
    }

    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        namespace::with_netns(&self.0.join("net"), f).expect("enter the network namespace")
    }

    fn ip(&self, args: &str) {
        let done = self.run(|| Command::new("ip").args(args.split(' ')).status());
        assert!(done.expect("ip").success(), "ip {args}");
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        let _ = namespace::delete(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_node_with_nothing_but_a_loopback_that_is_down_starts_its_pods() {
    let mut node = Node::new();
    let offline = Offline::beside(&node);
    offline.ip("addr flush dev lo");
    offline.ip("link set lo down");
    node.apply("web.yaml", resting("web"));
    let mut host = resting("host");
    host["spec"]["hostNetwork"] = json!(true);
    node.apply("host.yaml", &host);
    offline.run(|| node.start());
    for name in ["web", "host"] {
        let seen = node.wait_up(name);
        assert!(!seen.ip().is_empty() && seen.restarts("main") == 0, "{seen:?}");
    }
    // What was not to be had at the start is had later.
    let address = format!("127.0.0.1:{}", node.healthz);
    let healthy = || harness::http(&address, "/healthz").is_ok_and(|(status, _)| status == 200);
    assert!(!offline.run(healthy));
    offline.ip("link set lo up");
    eventually("the agent says that it is well", PATIENCE, || offline.run(healthy));
    node.finish();
}
