//! The shim: containers started, stopped, logged and recorded for real, from a busybox root file system.

use coracle::pod::Instance;
use coracle::shim::exec::{self, Options, Target};
use coracle::shim::protocol::{Reply, Request, Rootfs, Run};
use coracle::shim::{Client, Error, Event, SpawnOptions, drain, reap_orphans};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(30);
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "sleep", "yes", "head", "dd", "grep", "id", "stty", "kill", "ls", "nproc", "seq", "true",
    "tail", "touch", "mkdir", "printf", "test", "setsid", "pwd", "mount", "tr", "wc", "readlink",
];

fn exe() -> PathBuf {
    PathBuf::from(crate::harness::binary())
}

/// A pod of its own folder and cgroup, which takes everything along when dropped.
struct Pod {
    dir: PathBuf,
    cgroup: String,
    client: Option<Client>,
    attempts: u32,
}

impl Pod {
    fn new() -> Pod {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(is_root(), "the privileged tests need root");
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("coracle-shim-{name}"));
        let layer = dir.join("layer");
        for folder in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(layer.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox-static is installed");
        for applet in APPLETS {
            symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
        let mut pod = Pod { dir, cgroup: format!("/coracle-test-{name}"), client: None, attempts: 0 };
        pod.spawn();
        pod
    }

    fn spawn(&mut self) {
        let options = SpawnOptions {
            exe: Some(exe()),
            run_dir: self.run_dir(),
            uid: "test".into(),
            log: Some(self.dir.join("shim.err")),
            cgroup: Some(format!("{}/shim", self.cgroup)),
            pause: None,
        };
        self.client = Some(Client::spawn(options).unwrap());
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn client(&self) -> &Client {
        self.client.as_ref().unwrap()
    }

    fn call(&self, request: &Request) -> Reply {
        self.client().call(request, LONG).unwrap()
    }

    fn prepare(&mut self, args: &[&str], change: impl FnOnce(&mut Value, &mut Run)) -> Run {
        let attempt = self.attempts;
        self.attempts += 1;
        let bundle = self.run_dir().join(format!("bundles/c-{attempt}"));
        let rootfs = Rootfs {
            layers: vec![self.dir.join("layer")],
            upper: self.dir.join(format!("rw/{attempt}/upper")),
            work: self.dir.join(format!("rw/{attempt}/work")),
            target: self.run_dir().join(format!("rootfs/c-{attempt}")),
        };
        let mut config = config(args, &rootfs.target, &format!("{}/c{attempt}", self.cgroup));
        let mut run = Run {
            instance: Instance {
                id: format!("{:064x}", u64::from(std::process::id()) << 32 | u64::from(attempt)),
                container: "c".into(),
                attempt,
                image: "busybox".into(),
                image_id: "sha256:0".into(),
                volume_images: Vec::new(),
                round: 0,
                backoff_ms: 0,
                created: Timestamp::UNIX_EPOCH,
                pid: 0,
                pid_start: 0,
                boot_id: String::new(),
                started: None,
                terminated: None,
                user: None,
                clock: None,
            },
            record: self.dir.join(format!("records/{attempt}.json")),
            bundle,
            rootfs,
            devices: Default::default(),
            stage: coracle::volume::Stage::default(),
            log: self.dir.join(format!("logs/{attempt}.log")),
            log_max_bytes: 0,
            log_max_files: 5,
            stdin: false,
            stdin_once: false,
            tty: false,
        };
        change(&mut config, &mut run);
        fs::create_dir_all(&run.bundle).unwrap();
        fs::write(run.bundle.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        run
    }

    fn start(&mut self, args: &[&str]) -> Run {
        let run = self.prepare(args, |_, _| {});
        self.started(&run);
        run
    }

    fn started(&self, run: &Run) -> Instance {
        match self.call(&Request::Run(Box::new(run.clone()))) {
            Reply::Started { instance } => instance,
            other => panic!("not started: {other:?}"),
        }
    }

    fn refused(&self, run: &Run) -> String {
        match self.call(&Request::Run(Box::new(run.clone()))) {
            Reply::Error { message } => message,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn exec(&self, run: &Run, options: &Options) -> exec::Child {
        exec::spawn_from(Some(&exe()), &self.target(run), options).unwrap()
    }

    fn target(&self, run: &Run) -> Target {
        Target { state_root: self.run_dir().join("state"), id: run.instance.id.clone(), bundle: run.bundle.clone() }
    }

    fn stop(&self, run: &Run, grace_ms: u64) {
        let reply = self.call(&Request::Stop { id: run.instance.id.clone(), signal: 15, grace_ms });
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }

    fn delete(&self, run: &Run) {
        let reply = self.call(&Request::Delete { id: run.instance.id.clone() });
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        cgroup_folders(&self.cgroup)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let paths: Vec<String> = (0..self.attempts).map(|attempt| format!("{}/c{attempt}", self.cgroup)).collect();
        if let Some(client) = self.client.take() {
            let _ = client.shutdown(LONG);
        }
        let reaped = reap_orphans(&self.run_dir(), &paths, LONG);
        for dir in self.cgroups() {
            let _ = fs::remove_dir(dir);
        }
        if std::thread::panicking() {
            eprintln!("shim said: {}", fs::read_to_string(self.dir.join("shim.err")).unwrap_or_default());
        } else {
            reaped.unwrap();
            assert!(self.cgroups().is_empty(), "cgroups are left: {:?}", self.cgroups());
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

fn cgroup_folders(path: &str) -> Vec<PathBuf> {
    let below = path.trim_start_matches('/');
    let mut all = vec![Path::new("/sys/fs/cgroup").join(below)];
    for entry in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.push(entry.path().join(below));
        }
    }
    all.retain(|dir| dir.is_dir());
    all
}

fn config(args: &[&str], root: &Path, cgroup: &str) -> Value {
    let capabilities = json!(["CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "hostname": "c",
        "root": { "path": root, "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin", "HOME=/", "FROM=spec"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 999, "soft": 999 }],
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
        },
    })
}

fn seccomp() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    })
}

/// Waits until `check` gives something.
fn wait<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn record(run: &Run) -> Option<Instance> {
    serde_json::from_slice(&fs::read(&run.record).ok()?).ok()
}

/// The record, once it says how the run ended.
fn ended(run: &Run) -> Instance {
    wait("the end of a run", || record(run).filter(|instance| instance.terminated.is_some()))
}

fn end(run: &Run) -> (i32, String) {
    let end = ended(run).terminated.unwrap();
    (end.exit_code, end.reason)
}

fn log(run: &Run) -> String {
    fs::read_to_string(&run.log).unwrap_or_default()
}

/// The log without its times.
fn lines(run: &Run) -> Vec<String> {
    let strip = |line: &str| line.split_once(' ').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    log(run).lines().map(strip).collect()
}

fn wait_log(run: &Run, text: &str) {
    wait(&format!("{text:?} in the log"), || log(run).contains(text).then_some(()));
}

fn read_all(fd: Option<std::os::fd::OwnedFd>) -> String {
    let mut text = String::new();
    // A terminal ends with EIO.
    let mut bytes = Vec::new();
    let _ = File::from(fd.unwrap()).read_to_end(&mut bytes);
    text.push_str(&String::from_utf8_lossy(&bytes));
    text
}

fn argv(args: &[&str]) -> Options {
    Options { argv: args.iter().map(|arg| arg.to_string()).collect(), ..Options::default() }
}

fn shell(script: &str) -> Options {
    argv(&["sh", "-c", script])
}

#[test]
fn output_and_exit_code_are_kept() {
    let mut pod = Pod::new();
    let run = pod.start(&["sh", "-c", "echo out; echo err >&2; printf partial; exit 7"]);
    assert_eq!(end(&run), (7, "Error".into()));
    let mut seen = lines(&run);
    seen.sort();
    assert_eq!(seen, ["stderr F err", "stdout F out", "stdout P partial"]);
    let instance = ended(&run);
    assert!(instance.pid > 1 && instance.pid_start > 0 && !instance.boot_id.is_empty());
    assert!(instance.created <= instance.started.unwrap());
    assert_eq!(instance.terminated.unwrap().signal, None);
    let run = pod.start(&["true"]);
    assert_eq!(end(&run), (0, "Completed".into()));
}

#[test]
fn the_record_is_there_when_user_code_runs() {
    let mut pod = Pod::new();
    let run = pod.prepare(&["sleep", "60"], |_, _| {});
    let instance = pod.started(&run);
    assert_eq!(record(&run).unwrap(), instance);
    assert_eq!(fs::metadata(&run.record).unwrap().permissions().mode() & 0o777, 0o600);
    // Asked again, it starts nothing.
    assert_eq!(pod.started(&run), instance);
    match pod.call(&Request::List) {
        Reply::List { instances } => assert_eq!(instances, [instance]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn long_lines_are_split() {
    let mut pod = Pod::new();
    let run = pod.start(&["sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo"]);
    ended(&run);
    let lengths: Vec<_> = lines(&run)
        .iter()
        .map(|line| {
            let mut fields = line.splitn(3, ' ');
            fields.next();
            (fields.next().unwrap().to_owned(), fields.next().unwrap().len())
        })
        .collect();
    assert_eq!(lengths, [("P".into(), 16384), ("P".into(), 16384), ("F".into(), 40000 - 2 * 16384)]);
}

#[test]
fn logs_rotate_and_reopen() {
    let mut pod = Pod::new();
    let run = pod.prepare(&["sh", "-c", "seq 1 20000; sleep 60"], |_, run| run.log_max_bytes = 64 * 1024);
    pod.started(&run);
    wait_log(&run, " F 20000\n");
    let dir = run.log.parent().unwrap();
    let files = fs::read_dir(dir).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().starts_with("0.log"));
    let sizes: Vec<u64> = files.map(|entry| entry.metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 5);
    assert!(sizes.iter().all(|size| *size <= 64 * 1024), "{sizes:?}");
    fs::rename(&run.log, dir.join("moved")).unwrap();
    assert!(matches!(pod.call(&Request::ReopenLog { id: run.instance.id.clone() }), Reply::Done));
    assert_eq!(fs::metadata(&run.log).unwrap().len(), 0);
}

#[test]
fn a_container_gets_a_clean_process() {
    let mut pod = Pod::new();
    let script = "yes | head -1; grep -E 'SigBlk|SigIgn' /proc/self/status; cat /proc/self/oom_score_adj; \
                  cat /proc/self/cmdline >/dev/null; ls /proc/self/fd | wc -l; echo $LISTEN_FDS-$RUST_BACKTRACE; \
                  echo >/dev/stdout";
    let run = pod.start(&["sh", "-c", script]);
    assert_eq!(end(&run).0, 0);
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let zero = "0000000000000000";
    let expected = format!(
        "stdout F y\nstdout F SigBlk:\t{zero}\nstdout F SigIgn:\t{zero}\nstdout F {}\nstdout F 4\nstdout F -\nstdout F ",
        own.trim()
    );
    assert_eq!(lines(&run).join("\n"), expected);
}

#[test]
fn other_users_may_open_their_output() {
    let mut pod = Pod::new();
    let run = pod.prepare(&["sh", "-c", "echo hello > /dev/stdout; id -u"], |config, _| {
        config["process"]["user"] = json!({ "uid": 1234, "gid": 1234 });
    });
    pod.started(&run);
    assert_eq!(end(&run).0, 0);
    assert_eq!(lines(&run), ["stdout F hello", "stdout F 1234"]);
}

#[test]
fn stop_asks_first() {
    let mut pod = Pod::new();
    let run = pod.start(&["sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"]);
    wait_log(&run, "ready");
    pod.stop(&run, 20_000);
    assert_eq!(end(&run), (3, "Error".into()));
    assert!(log(&run).contains("bye"));
    // It has ended: still no error.
    pod.stop(&run, 1);
}

#[test]
fn stop_kills_at_the_deadline_which_only_comes_nearer() {
    let mut pod = Pod::new();
    let run = pod.start(&["sleep", "600"]);
    pod.stop(&run, 200);
    let asked = Instant::now();
    // Later deadlines change nothing. (PID 1 ignores SIGTERM unless it handles it.)
    pod.stop(&run, 3_600_000);
    assert_eq!(end(&run), (137, "Error".into()));
    assert_eq!(ended(&run).terminated.unwrap().signal, Some(9));
    assert!(asked.elapsed() >= Duration::from_millis(190), "{:?}", asked.elapsed());
    let run = pod.start(&["sleep", "600"]);
    pod.stop(&run, 3_600_000);
    pod.stop(&run, 0);
    assert_eq!(end(&run).0, 137);
}

#[test]
fn a_start_can_be_stopped() {
    let mut pod = Pod::new();
    // Requests are answered while a start is under way, and its own answer comes when it is over.
    for round in 0..10 {
        let run = pod.prepare(&["sleep", "600"], |_, _| {});
        let request = Request::Run(Box::new(run.clone()));
        std::thread::scope(|scope| {
            let client = pod.client();
            let start = scope.spawn(move || client.call(&request, LONG).unwrap());
            wait("the start", || {
                let Reply::List { instances } = pod.call(&Request::List) else { return None };
                instances.iter().any(|instance| instance.id == run.instance.id).then_some(())
            });
            std::thread::sleep(Duration::from_millis(round));
            pod.stop(&run, 0);
            assert!(matches!(start.join().unwrap(), Reply::Started { .. } | Reply::Error { .. }));
        });
        let (code, reason) = end(&run);
        assert!(matches!((code, reason.as_str()), (137, "Error") | (128, "StartError")), "{code} {reason}");
        pod.delete(&run);
    }
    let children = format!("/proc/{0}/task/{0}/children", pod.client().pid());
    wait("all children's end", || fs::read_to_string(&children).unwrap().is_empty().then_some(()));
}

#[test]
fn stragglers_die_with_an_init_that_shares_the_pid_namespace() {
    let mut pod = Pod::new();
    let run = pod.prepare(&["sh", "-c", "setsid sleep 987 & setsid sleep 987 & sleep 0.1; exit 4"], |config, _| {
        config["hostname"].take();
        config["linux"]["namespaces"] = json!([{ "type": "mount" }]);
    });
    pod.started(&run);
    assert_eq!(end(&run).0, 4);
    pod.delete(&run);
    let left = cgroup_folders(&format!("{}/c0", pod.cgroup));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn why_a_program_cannot_run_is_said() {
    let mut pod = Pod::new();
    let layer = pod.dir.join("layer");
    fs::write(layer.join("script"), "#!/bin/bash\n").unwrap();
    fs::set_permissions(layer.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(layer.join("data"), "x").unwrap();
    fs::set_permissions(layer.join("data"), fs::Permissions::from_mode(0o644)).unwrap();
    let cases = [
        ("nosuch", 127, r#"exec: "nosuch": executable file not found in $PATH"#),
        ("/no/such", 127, r#"exec: "/no/such": stat /no/such: no such file or directory"#),
        ("/script", 127, r#"exec: "/script": its interpreter /bin/bash does not exist in the image"#),
        ("/data", 126, r#"exec: "/data": permission denied"#),
        ("/etc", 126, r#"exec: "/etc": is a directory"#),
    ];
    for (command, code, text) in cases {
        let run = pod.prepare(&[command], |_, _| {});
        assert_eq!(pod.refused(&run), text);
        let end = record(&run).unwrap().terminated.unwrap();
        assert_eq!((end.exit_code, end.reason.as_str(), end.message.as_str()), (code, "ContainerCannotRun", text));
        assert!(record(&run).unwrap().started.is_none());
        pod.delete(&run);
    }
}

#[test]
fn why_a_start_failed_is_said() {
    let mut pod = Pod::new();
    let mount = json!({ "destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"] });
    let run = pod.prepare(&["true"], |config, _| config["mounts"].as_array_mut().unwrap().push(mount));
    let message = pod.refused(&run);
    assert!(message.contains("/no/such/source"), "{message}");
    let run_without_layer = pod.prepare(&["true"], |_, run| run.rootfs.layers = vec!["/no/such/layer".into()]);
    let message = pod.refused(&run_without_layer);
    assert!(message.contains("cannot mount the root file system"), "{message}");
    let end = record(&run).unwrap().terminated.unwrap();
    assert_eq!((end.exit_code, end.reason.as_str()), (128, "StartError"));
    // Nothing is left of either.
    assert!(cgroup_folders(&format!("{}/c0", pod.cgroup)).is_empty());
    assert_eq!(fs::read_dir(pod.run_dir().join("state")).unwrap().count(), 0);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", pod.client().pid())).unwrap();
    assert!(!mounts.contains("rootfs/c-"), "{mounts}");
}

#[test]
fn the_oom_killer_is_recognised() {
    let mut pod = Pod::new();
    let run = pod.prepare(&["sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1"], |config, _| {
        config["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
        config["process"]["args"] = json!(["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    });
    pod.started(&run);
    assert_eq!(end(&run), (137, "OOMKilled".into()));
}

#[test]
fn many_layers_are_mounted() {
    let mut pod = Pod::new();
    let long = "x".repeat(100);
    let layers: Vec<PathBuf> = (0..60)
        .map(|i| {
            let dir = pod.dir.join(format!("layers/{long}-{i}/fs"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("layer-{i}")), "").unwrap();
            fs::write(dir.join("top"), format!("{i}\n")).unwrap();
            dir
        })
        .collect();
    let run = pod.prepare(&["sh", "-c", "ls -d /layer-* | wc -l; cat /top; touch /written"], |_, run| {
        run.rootfs.layers.extend(layers);
    });
    pod.started(&run);
    assert_eq!(end(&run).0, 0);
    assert_eq!(lines(&run), ["stdout F 60", "stdout F 59"]);
    assert!(run.rootfs.upper.join("written").exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(pod.dir.to_str().unwrap()), "a mount is seen outside of the shim");
}

#[test]
fn another_agent_takes_over() {
    let mut pod = Pod::new();
    let lives = pod.start(&["sleep", "600"]);
    let ends = pod.start(&["sh", "-c", "sleep 0.3; exit 5"]);
    let pid = pod.client().pid();
    pod.client = None;
    // It ends while no agent is there.
    assert_eq!(end(&ends), (5, "Error".into()));
    let client = Client::connect(&pod.run_dir()).unwrap();
    assert_eq!(client.pid(), pid);
    pod.client = Some(client);
    match pod.call(&Request::List) {
        Reply::List { instances } => {
            assert_eq!(instances.len(), 2);
            assert!(instances[0].terminated.is_none());
            assert_eq!(instances[1].terminated.as_ref().unwrap().exit_code, 5);
        }
        other => panic!("{other:?}"),
    }
    let subscription = pod.client().subscribe().unwrap();
    assert_eq!(drain(&subscription).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    pod.stop(&lives, 0);
    assert_eq!(wait("news", || drain(&subscription).ok()), Event::Changed);
    ended(&lives);
    pod.client.take().unwrap().shutdown(LONG).unwrap();
    assert_eq!(wait("the end of the shim", || drain(&subscription).ok().filter(|e| *e == Event::Gone)), Event::Gone);
    assert!(matches!(Client::connect(&pod.run_dir()), Err(Error::Gone)));
    assert!(!pod.run_dir().join("shim.sock").exists());
}

#[test]
fn a_killed_shim_leaves_nothing_that_cannot_be_removed() {
    let mut pod = Pod::new();
    let run = pod.start(&["sh", "-c", "sleep 700 & sleep 700"]);
    let host = pod.prepare(&["sh", "-c", "setsid sleep 700 & sleep 700"], |config, _| {
        config["hostname"].take();
        config["linux"]["namespaces"] = json!([{ "type": "mount" }]);
    });
    pod.started(&host);
    let (first, second) = (record(&run).unwrap(), record(&host).unwrap());
    let shim = pod.client().pid();
    // Until it has moved itself to its cgroup, which has to go as well.
    wait("the shim's cgroup", || {
        let dirs = cgroup_folders(&format!("{}/shim", pod.cgroup));
        dirs.iter()
            .any(|dir| fs::read_to_string(dir.join("cgroup.procs")).unwrap().contains(&shim.to_string()))
            .then_some(())
    });
    coracle::sys::process::kill(shim, 9).unwrap();
    wait("the shim's end", || (!pod.client().is_alive()).then_some(()));
    assert!(matches!(pod.client().call(&Request::List, LONG), Err(Error::Gone)));
    assert!(matches!(Client::connect(&pod.run_dir()), Err(Error::Gone)));
    let paths = [format!("{}/c0", pod.cgroup), format!("{}/c1", pod.cgroup)];
    for _ in 0..2 {
        reap_orphans(&pod.run_dir(), &paths, LONG).unwrap();
    }
    for instance in [&first, &second] {
        assert!(!coracle::sys::process::is_alive(instance.pid, instance.pid_start));
    }
    for path in paths.iter().chain([&format!("{}/shim", pod.cgroup)]) {
        assert!(cgroup_folders(path).is_empty(), "{path}");
    }
    let names: Vec<_> = fs::read_dir(pod.run_dir()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(names.iter().all(|name| name == "bundles" || name == "rootfs"), "{names:?}");
    pod.client = None;
    // The same folder serves a new shim.
    pod.spawn();
    let run = pod.start(&["true"]);
    assert_eq!(end(&run).0, 0);
}

#[test]
fn bad_requests_get_answers() {
    let pod = Pod::new();
    let unknown = || "0".repeat(64);
    for request in [Request::Stop { id: unknown(), signal: 15, grace_ms: 0 }, Request::ReopenLog { id: unknown() }] {
        assert!(matches!(pod.call(&request), Reply::Error { message } if message.contains("no container")));
    }
    assert!(matches!(pod.call(&Request::Delete { id: unknown() }), Reply::Done));
    assert!(matches!(pod.call(&Request::List), Reply::List { instances } if instances.is_empty()));
}

#[test]
fn a_stuck_shim_is_no_reason_to_hang() {
    let pod = Pod::new();
    let pid = pod.client().pid();
    pod.call(&Request::List);
    coracle::sys::process::kill(pid, 19).unwrap();
    let asked = Instant::now();
    let result = pod.client().call(&Request::List, Duration::from_millis(100));
    coracle::sys::process::kill(pid, 18).unwrap();
    assert!(matches!(result, Err(Error::Timeout(_))), "{result:?}");
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert!(matches!(pod.call(&Request::List), Reply::List { .. }));
}

#[test]
fn a_terminal_is_logged() {
    let mut pod = Pod::new();
    let run = pod.prepare(&["sh", "-c", "test -t 0 && test -t 1 && echo terminal; exit 6"], |config, run| {
        config["process"]["terminal"] = json!(true);
        run.tty = true;
    });
    pod.started(&run);
    assert_eq!(end(&run).0, 6);
    assert!(log(&run).ends_with(" stdout F terminal\r\n"), "{:?}", log(&run));
}

#[test]
fn stdin_is_empty_or_waits() {
    let mut pod = Pod::new();
    let empty = pod.start(&["cat"]);
    assert_eq!(end(&empty).0, 0);
    let waits = pod.prepare(&["cat"], |_, run| run.stdin = true);
    pod.started(&waits);
    std::thread::sleep(Duration::from_millis(100));
    assert!(record(&waits).unwrap().terminated.is_none());
}

#[test]
fn exec_joins_the_container() {
    let mut pod = Pod::new();
    let run = pod.prepare(&["sleep", "600"], |config, _| config["linux"]["seccomp"] = seccomp());
    pod.started(&run);
    let script = "echo $FROM-$EXTRA-$HOME; pwd; cat /proc/1/cmdline | tr '\\0' ' '; echo; \
                  grep -E '^(Seccomp|CapEff|CapBnd|NoNewPrivs|SigIgn):' /proc/self/status; \
                  grep 'open files' /proc/self/limits | tr -s ' '; grep pids /proc/self/cgroup; \
                  mkdir /tmp/x; echo err >&2; exit 9";
    let mut child = pod.exec(&run, &Options { env_add: vec!["EXTRA=yes".into()], ..shell(script) });
    let output = read_all(child.stdout.take()).replace(&pod.cgroup, "CGROUP");
    let errors = read_all(child.stderr.take());
    assert_eq!(child.wait().unwrap().exit_code, Some(9), "{output}{errors}");
    let own_oom = output.lines().filter(|line| !line.contains(":pids:")).collect::<Vec<_>>().join("\n");
    expect_test::expect![[r#"
        spec-yes-/
        /
        sleep 600 
        SigIgn:	0000000000000000
        CapEff:	00000000000004e1
        CapBnd:	00000000000004e1
        NoNewPrivs:	0
        Seccomp:	2
        Max open files 999 999 files "#]]
    .assert_eq(&own_oom);
    assert!(output.contains(":pids:CGROUP/c0") || output.contains(":pids:/"), "{output}");
    assert!(errors.contains("err") && errors.contains("mkdir: can't create directory"), "{errors}");
    // Nothing stays in the container's state.
    let state = pod.run_dir().join("state");
    let names: Vec<_> = fs::read_dir(&state).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, [std::ffi::OsString::from(&run.instance.id)]);
}

#[test]
fn exec_keeps_user_and_no_new_privileges() {
    let mut pod = Pod::new();
    let run = pod.prepare(&["sleep", "600"], |config, _| {
        config["linux"]["seccomp"] = seccomp();
        config["process"]["noNewPrivileges"] = json!(true);
        config["process"]["user"] = json!({ "uid": 1234, "gid": 5678, "additionalGids": [42] });
    });
    pod.started(&run);
    let mut child = pod.exec(
        &run,
        &shell("id -u; id -g; id -G; grep -E '^(Seccomp|CapEff|NoNewPrivs):' /proc/self/status; echo > /dev/stdout"),
    );
    let output = read_all(child.stdout.take());
    assert_eq!(child.wait().unwrap().exit_code, Some(0), "{output}");
    assert_eq!(output, "1234\n5678\n5678 42\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\n");
    // The same user without it: the filter needs rights that must not stay.
    let run = pod.prepare(&["sleep", "600"], |config, _| {
        config["linux"]["seccomp"] = seccomp();
        config["process"]["user"] = json!({ "uid": 1234, "gid": 5678 });
    });
    pod.started(&run);
    let mut child = pod.exec(&run, &shell("grep -E '^(Seccomp|CapEff|CapBnd|NoNewPrivs):' /proc/self/status"));
    let output = read_all(child.stdout.take());
    assert_eq!(output, "CapEff:\t0000000000000000\nCapBnd:\t00000000000004e1\nNoNewPrivs:\t0\nSeccomp:\t2\n");
}

#[test]
fn exec_streams_input() {
    let mut pod = Pod::new();
    let run = pod.start(&["sleep", "600"]);
    let mut child = pod.exec(&run, &Options { stdin: true, ..argv(&["cat"]) });
    File::from(child.stdin.take().unwrap()).write_all(&vec![b'x'; 50_000]).unwrap();
    assert_eq!(read_all(child.stdout.take()).len(), 50_000);
    assert_eq!(child.wait().unwrap().exit_code, Some(0));
    let child = pod.exec(&run, &argv(&["cat"]));
    assert_eq!(child.wait().unwrap().exit_code, Some(0));
    let child = pod.exec(&run, &shell("kill -9 $$"));
    assert_eq!(child.wait().unwrap().exit_code, Some(137));
}

#[test]
fn exec_with_a_terminal() {
    let mut pod = Pod::new();
    let run = pod.start(&["sleep", "600"]);
    let options = Options { tty: true, stdin: true, size: Some((33, 77)), ..argv(&["sh"]) };
    let mut child = pod.exec(&run, &options);
    let mut pty = File::from(child.pty.take().unwrap());
    pty.write_all(b"stty size; echo $TERM; test -t 2 && echo three\n").unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 512];
    while !seen.contains("xterm\r\nthree\r\n") {
        let n = pty.read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    assert!(seen.contains("33 77\r\nxterm\r\n"), "{seen:?}");
    exec::resize(&pty, 10, 20).unwrap();
    pty.write_all(b"stty size; exit 11\n").unwrap();
    assert!(read_all(Some(pty.try_clone().unwrap().into())).contains("10 20"));
    assert_eq!(child.wait().unwrap().exit_code, Some(11));
}

#[test]
fn exec_says_why_not() {
    let mut pod = Pod::new();
    let run = pod.start(&["sleep", "600"]);
    let text = r#"exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH"#;
    let status = pod.exec(&run, &argv(&["nosuch"])).wait().unwrap();
    assert_eq!((status.exit_code, status.error.as_deref()), (Some(127), Some(text)));
    let status = pod.exec(&run, &argv(&["/proc"])).wait().unwrap();
    assert_eq!(status.exit_code, Some(126), "{status:?}");
    let tty = Options { tty: true, ..argv(&["nosuch"]) };
    match exec::spawn_from(Some(&exe()), &pod.target(&run), &tty) {
        Err(exec::Error::Refused { message, exit_code: Some(127) }) => assert_eq!(message, text),
        other => panic!("{other:?}"),
    }
    assert!(matches!(exec::spawn(&pod.target(&run), &Options::default()), Err(exec::Error::NoCommand)));
    pod.stop(&run, 0);
    ended(&run);
    let status = pod.exec(&run, &argv(&["true"])).wait().unwrap();
    assert_eq!(status.error.as_deref(), Some("exec failed: the container is not running"));
}

#[test]
fn a_dropped_exec_is_killed() {
    let mut pod = Pod::new();
    let run = pod.start(&["sleep", "600"]);
    let mut child = pod.exec(&run, &shell("echo $$; exec sleep 500"));
    let mut stdout = File::from(child.stdout.take().unwrap());
    let mut buffer = [0; 32];
    assert!(stdout.read(&mut buffer).unwrap() > 0);
    drop(child);
    // The last writer is gone: it was killed.
    assert_eq!(stdout.read(&mut buffer).unwrap(), 0);
    wait("the exec's end", || {
        let mut child = pod.exec(&run, &shell("ls -d /proc/[0-9]* | wc -l"));
        // The container's init, the shell, ls and wc.
        read_all(child.stdout.take()).trim().parse::<u32>().ok().filter(|n| *n <= 4)
    });
}

#[test]
fn many_execs_at_once() {
    let mut pod = Pod::new();
    let run = pod.start(&["sleep", "600"]);
    let mut children: Vec<_> = (0..16).map(|i| (i, pod.exec(&run, &shell(&format!("echo {i}; exit {i}"))))).collect();
    for (i, child) in &mut children {
        assert_eq!(read_all(child.stdout.take()).trim(), i.to_string());
        assert_eq!(child.wait().unwrap().exit_code, Some(*i));
    }
}

#[test]
fn a_hundred_runs_leak_nothing() {
    let mut pod = Pod::new();
    let pid = pod.client().pid();
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let one = |pod: &mut Pod, i: i32| {
        let run = pod.start(&["sh", "-c", &format!("echo {i}; exit {}", i % 100)]);
        assert_eq!(end(&run).0, i % 100);
        pod.delete(&run);
    };
    one(&mut pod, 0);
    let before = (count("fd"), count("task"));
    for i in 1..=100 {
        one(&mut pod, i);
    }
    wait("the end of connections", || (count("fd") <= before.0 && count("task") <= before.1).then_some(()));
    // Zombies are children too.
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children, "");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(!mounts.contains("rootfs/c-"));
}

#[test]
fn a_full_disk_does_not_stop_a_container() {
    let mut pod = Pod::new();
    pod.client.take().unwrap().shutdown(LONG).unwrap();
    // A log folder on a file system of 64 KiB, there before the shim: `/` need not be shared on this machine.
    let small = pod.dir.join("small");
    fs::create_dir_all(&small).unwrap();
    let mounted = Mounted::tmpfs(&small, "size=64k");
    pod.spawn();
    let run = pod.prepare(&["sh", "-c", "seq 1 100000; exit 3"], |_, run| run.log = small.join("0.log"));
    pod.started(&run);
    assert_eq!(end(&run).0, 3);
    assert!(fs::metadata(&run.log).unwrap().len() <= 64 * 1024);
    drop(mounted);
}

struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path, options: &str) -> Mounted {
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str()).unwrap();
        Mounted(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn the_program_cannot_be_written_through_a_shim() {
    let mut pod = Pod::new();
    pod.start(&["sleep", "600"]);
    let path = format!("/proc/{}/exe", pod.client().pid());
    // Writing is refused as "text file busy" while it runs; what stays refused afterwards is seen by a change that
    // changes nothing.
    let same = fs::metadata(&path).unwrap().permissions();
    let error = fs::set_permissions(&path, same).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
}

/// Proportional set size in KiB.
fn pss(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap()
}

#[test]
fn twenty_shims_are_small() {
    let mut pods: Vec<Pod> = (0..20).map(|_| Pod::new()).collect();
    for pod in &mut pods {
        pod.start(&["sleep", "600"]);
    }
    std::thread::sleep(Duration::from_millis(1500));
    let sizes: Vec<u64> = pods.iter().map(|pod| pss(pod.client().pid())).collect();
    let average = sizes.iter().sum::<u64>() / 20;
    println!("PSS of each of 20 idle shims: {average} KiB");
    assert!(average <= 512, "{sizes:?}");
}

#[test]
fn start_times_for_information() {
    let mut pod = Pod::new();
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let timed = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    let warm = median((0..31).map(|_| timed(&mut || drop(pod.start(&["true"])))).collect());
    let mut pods = Vec::new();
    let cold = median(
        (0..11)
            .map(|_| {
                pods.push(Pod::new());
                let pod = pods.last_mut().unwrap();
                pod.client.take().unwrap().shutdown(LONG).unwrap();
                let run = pod.prepare(&["true"], |_, _| {});
                timed(&mut || {
                    pod.spawn();
                    pod.started(&run);
                })
            })
            .collect(),
    );
    println!("run: {warm:?}; with a new shim: {cold:?}");
    let root = pod.dir.join("layer");
    let bundle = pod.dir.join("runc");
    fs::create_dir_all(&bundle).unwrap();
    let config = config(&["true"], &root, &format!("{}/runc", pod.cgroup));
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let mut i = 0;
    let runc = median(
        (0..31)
            .map(|_| {
                timed(&mut || {
                    i += 1;
                    let status = std::process::Command::new("runc")
                        .arg("--root")
                        .arg(pod.dir.join("runc-state"))
                        .args(["run", "--bundle"])
                        .arg(&bundle)
                        .arg(format!("coracle-test-{i}-{}", std::process::id()))
                        .stdin(std::process::Stdio::null())
                        .status();
                    assert!(status.is_ok_and(|status| status.success()), "runc is installed and runs");
                })
            })
            .collect(),
    );
    println!("runc run (to the end, with its delete): {runc:?}");
}
