//! A private node per test: its own folders, bridge, pod network, cgroup root and health port, so that tests run side
//! by side. It is driven from outside only: manifests are renamed into place, everything else goes through the built
//! binary. A drop guard ends and removes whatever a failed test left behind, [`Node::finish`] asserts that nothing was.

mod authority;
pub mod browser;
mod image;
mod kubectl;
mod network;
pub mod nft;
mod terminal;

pub use authority::{Authority, kubeconfig, write_accounts_key, write_pair};
pub use image::{BUSYBOX, append, busybox, docker_archive, image_archive, test_images};
pub use kubectl::{Kubectl, Running, kubectl};
pub use network::{Network, where_mounts_spread};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};
pub use terminal::Terminal;

/// The program under test: the one that cargo built with the tests, or the one that `CORACLE_TEST_BINARY` names (a release
/// build, say).
pub fn binary() -> &'static str {
    static BINARY: OnceLock<String> = OnceLock::new();
    BINARY.get_or_init(|| {
        std::env::var("CORACLE_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_coracle").to_owned())
    })
}
/// Long enough for anything that is not a matter of seconds by contract, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Shorthand for a duration.
pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// What a finished command said.
#[derive(Debug)]
pub struct Out {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub command: String,
}

impl Out {
    /// The standard output of a command that must have worked.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "`{}` failed\nstdout: {}\nstderr: {}", self.command, self.stdout, self.stderr);
        self.stdout
    }

    /// Both streams of a command that must have ended with `code`.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        let both = format!("{}{}", self.stdout, self.stderr);
        assert_eq!(self.code, Some(code), "`{}` should have ended with {code}\n{both}", self.command);
        both
    }
}

/// Runs `command` to its end; one that takes longer than `limit` is killed and fails the test.
#[track_caller]
pub fn output(command: &mut Command, stdin: &[u8], limit: Duration) -> Out {
    let text = format!("{command:?}").replace('"', "");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{text}: {e}"));
    let drain = |mut stream: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // A stream that breaks off ends what was said, no more.
            let _ = stream.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = drain(Box::new(child.stdout.take().expect("piped")));
    let stderr = drain(Box::new(child.stderr.take().expect("piped")));
    let mut pipe = child.stdin.take().expect("piped");
    let input = stdin.to_vec();
    let feeder = std::thread::spawn(move || drop(pipe.write_all(&input)));
    let Some(status) = wait_child(&mut child, limit) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("`{text}` was still running after {limit:?}\nstdout: {}", stdout.join().expect("reader"));
    };
    let _ = feeder.join();
    Out {
        code: status.code(),
        stdout: stdout.join().expect("reader"),
        stderr: stderr.join().expect("reader"),
        command: text,
    }
}

/// The status of `child` once it ended, `None` when it still runs after `limit`.
pub fn wait_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        sleep(Duration::from_millis(5));
    }
}

/// Waits until `done`, or fails with `what`.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(30));
    }
}

/// One pod of `coracle get pods -o json`.
#[derive(Debug, Clone)]
pub struct PodView(pub Value);

impl PodView {
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }
    pub fn uid(&self) -> &str {
        self.0["metadata"]["uid"].as_str().unwrap_or_default()
    }
    pub fn phase(&self) -> &str {
        self.0["status"]["phase"].as_str().unwrap_or_default()
    }
    pub fn ip(&self) -> &str {
        self.0["status"]["podIP"].as_str().unwrap_or_default()
    }
    /// The container's entry of the status, init containers' included; `Null` without one.
    pub fn container(&self, name: &str) -> &Value {
        static NONE: Value = Value::Null;
        let lists = ["initContainerStatuses", "containerStatuses"].map(|list| self.0["status"][list].as_array());
        lists.into_iter().flatten().flatten().find(|c| c["name"] == name).unwrap_or(&NONE)
    }
    pub fn running(&self, container: &str) -> bool {
        self.container(container)["state"]["running"].is_object()
    }
    pub fn restarts(&self, container: &str) -> u64 {
        self.container(container)["restartCount"].as_u64().unwrap_or(0)
    }
    pub fn waiting(&self, container: &str) -> &str {
        self.container(container)["state"]["waiting"]["reason"].as_str().unwrap_or_default()
    }
    pub fn waiting_message(&self, container: &str) -> &str {
        self.container(container)["state"]["waiting"]["message"].as_str().unwrap_or_default()
    }
    pub fn terminated(&self, container: &str) -> &Value {
        &self.container(container)["state"]["terminated"]
    }
    pub fn last(&self, container: &str) -> &Value {
        &self.container(container)["lastState"]["terminated"]
    }
    /// The runtime's ID of the container, without `coracle://`.
    pub fn id(&self, container: &str) -> String {
        let id = self.container(container)["containerID"].as_str().unwrap_or_default();
        id.rsplit('/').next().unwrap_or_default().to_owned()
    }
    pub fn condition(&self, kind: &str) -> &str {
        let all = self.0["status"]["conditions"].as_array();
        let found = all.and_then(|all| all.iter().find(|c| c["type"] == kind));
        found.and_then(|c| c["status"].as_str()).unwrap_or_default()
    }
    /// The phase is Running and every container runs.
    pub fn up(&self) -> bool {
        let containers = self.0["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.phase() == "Running"
            && !containers.is_empty()
            && containers.iter().all(|c| self.running(c["name"].as_str().unwrap_or_default()))
    }
}

/// A pod with one container `main` that runs `script` in busybox's shell.
pub fn pod(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "main", "image": BUSYBOX, "command": ["sh", "-c", script] }],
        },
    })
}

/// A script that does nothing until SIGTERM, and then ends at once with 0.
pub const REST: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// A pod that only rests; it ends at once when asked.
pub fn resting(name: &str) -> Value {
    pod(name, REST)
}

/// A node of one's own.
pub struct Node {
    pub dir: PathBuf,
    pub name: String,
    pub bridge: String,
    pub cidr: String,
    pub cgroup_root: String,
    pub healthz: u16,
    /// More arguments for the agent.
    pub args: Vec<String>,
    /// More environment for the agent.
    pub env: Vec<(String, String)>,
    /// A file system of the test's own below the node's folder; it goes with the node.
    pub disk: Option<PathBuf>,
    /// A network of the node's own; without one it is in the machine's.
    pub network: Option<Network>,
    agent: Option<Child>,
}

impl Node {
    /// A started node whose image store holds the test images.
    #[track_caller]
    pub fn up() -> Node {
        let mut node = Node::new();
        node.start();
        node.wait_for_images();
        node
    }

    /// Waits until the dropped-in test images can be used.
    #[track_caller]
    pub fn wait_for_images(&self) {
        let end = Instant::now() + PATIENCE;
        while !self.cli(&["image", "ls"]).stdout.contains("busybox") {
            if Instant::now() > end {
                self.fail("the test images were not imported");
            }
            sleep(Duration::from_millis(30));
        }
    }

    /// The folders of a node, with the test images dropped in; nothing runs yet.
    #[track_caller]
    pub fn new() -> Node {
        require();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let dir = PathBuf::from(format!("/tmp/coracle-t{pid}-{n}"));
        fs::DirBuilder::new().mode(0o755).create(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for sub in ["root", "root/images", "run", "log", "log/pods", "manifests", "share"] {
            fs::create_dir(dir.join(sub)).expect("folder");
        }
        let node = Node {
            name: format!("node{n}"),
            bridge: format!("ct{pid}-{n}"),
            cidr: free_network(pid, n),
            cgroup_root: format!("/coracle-t{pid}-{n}"),
            healthz: free_port(),
            args: Vec::new(),
            env: Vec::new(),
            disk: None,
            network: None,
            agent: None,
            dir,
        };
        assert!(node.bridge.len() <= 15, "link name too long: {}", node.bridge);
        node.drop_image(test_images(), "images.tar");
        node
    }

    /// Renames an archive into the drop-in folder.
    pub fn drop_image(&self, archive: &Path, name: &str) {
        let staged = self.dir.join(format!("staged-{name}"));
        fs::copy(archive, &staged).expect("copy an image archive");
        fs::rename(staged, self.dir.join("root/images").join(name)).expect("drop an image");
    }

    /// A `KubeletConfiguration` with these fields.
    pub fn configure(&mut self, fields: Value) {
        self.reconfigure(fields);
        let flag = format!("--config={}", self.dir.join("config.yaml").display());
        if !self.args.contains(&flag) {
            self.args.push(flag);
        }
    }

    /// Other fields for the next start.
    pub fn reconfigure(&self, mut fields: Value) {
        fields["apiVersion"] = json!("kubelet.config.k8s.io/v1beta1");
        fields["kind"] = json!("KubeletConfiguration");
        fs::write(self.dir.join("config.yaml"), fields.to_string()).expect("config");
    }

    /// Does something in the node's network.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.network {
            Some(network) => network.inside(work),
            None => work(),
        }
    }

    /// What starts the agent, for tests that start it in a way of their own.
    pub fn agent_command(&self) -> Command {
        let d = self.dir.display();
        let mut command = Command::new(binary());
        command
            .arg("agent")
            .arg(format!("--root-dir={d}/root"))
            .arg(format!("--run-dir={d}/run"))
            .arg(format!("--pod-manifest-path={d}/manifests"))
            .arg(format!("--pod-logs-dir={d}/log/pods"))
            .arg(format!("--cgroup-root={}", self.cgroup_root))
            .arg(format!("--bridge={}", self.bridge))
            .arg(format!("--pod-cidr={}", self.cidr))
            .arg(format!("--healthz-port={}", self.healthz))
            .arg(format!("--hostname-override={}", self.name))
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .env("RUST_BACKTRACE", "1");
        command
    }

    /// Starts the agent and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.agent.is_none(), "already started");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("agent.log")).expect("agent.log");
        let mut command = self.agent_command();
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("agent.log")).stderr(log);
        let child = self.inside(|| command.spawn()).expect("start the agent");
        self.agent = Some(child);
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.agent.as_mut().and_then(|c| c.try_wait().expect("agent")) {
                self.agent = None;
                self.fail(&format!("the agent ended at its start: {status}"));
            }
            if self.cli(&["get", "pods", "-A", "-o", "json"]).code == Some(0) {
                return;
            }
            if Instant::now() > end {
                self.fail("the agent does not answer");
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// A second agent on the same folders, to its end.
    pub fn second_agent(&self) -> Out {
        output(&mut self.agent_command(), b"", secs(10))
    }

    /// Whether an agent was started and not stopped.
    pub fn runs(&self) -> bool {
        self.agent.is_some()
    }

    pub fn agent_pid(&self) -> i32 {
        self.agent.as_ref().map(|c| c.id() as i32).expect("the agent runs")
    }

    /// The agent as a power cut would leave it: gone without a word.
    #[track_caller]
    pub fn kill9(&mut self) {
        let mut child = self.agent.take().expect("the agent runs");
        child.kill().expect("kill the agent");
        child.wait().expect("reap the agent");
    }

    /// Asks the agent to end (SIGTERM); its pods stay.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut child = self.agent.take().expect("the agent runs");
        signal(child.id() as i32, Signal::TERM);
        match wait_child(&mut child, secs(15)) {
            Some(status) if status.success() => {}
            Some(status) => self.fail(&format!("the agent's end was not clean: {status}")),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                self.fail("the agent did not end within 15 s of SIGTERM");
            }
        }
    }

    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// `coracle` with these arguments, against this node.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Out {
        self.cli_with(args, b"")
    }

    #[track_caller]
    pub fn cli_with(&self, args: &[&str], stdin: &[u8]) -> Out {
        output(&mut self.command(args), stdin, secs(40))
    }

    /// The command itself, for tests that need more than its output.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).env("CORACLE_RUN_DIR", self.dir.join("run")).env("NO_COLOR", "1");
        command
    }

    /// Runs a shell script in a container, which must work; trimmed standard output.
    #[track_caller]
    pub fn sh(&self, pod: &str, script: &str) -> String {
        self.cli(&["exec", pod, "--", "sh", "-c", script]).ok().trim_end().to_owned()
    }

    pub fn manifest(&self, file: &str) -> PathBuf {
        self.dir.join("manifests").join(file)
    }

    /// Renames a manifest into place.
    pub fn apply(&self, file: &str, manifest: impl ToString) {
        let staged = self.dir.join(format!("staged-{file}"));
        fs::write(&staged, manifest.to_string()).expect("stage a manifest");
        fs::rename(staged, self.manifest(file)).expect("rename a manifest into place");
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.manifest(file)).expect("remove a manifest");
    }

    /// All pods as the CLI shows them.
    #[track_caller]
    pub fn pods(&self) -> Vec<PodView> {
        let text = self.cli(&["get", "pods", "-A", "-o", "json"]).ok();
        let list: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("get pods -o json: {e}\n{text}"));
        list["items"].as_array().expect("items").iter().cloned().map(PodView).collect()
    }

    /// The pod of that name (without the node's suffix).
    #[track_caller]
    pub fn pod(&self, name: &str) -> Option<PodView> {
        let full = format!("{name}-{}", self.name);
        self.pods().into_iter().find(|p| p.name() == full)
    }

    /// Waits for a state of all pods.
    #[track_caller]
    pub fn wait(&self, what: &str, limit: Duration, mut done: impl FnMut(&[PodView]) -> bool) -> Vec<PodView> {
        let end = Instant::now() + limit;
        loop {
            let pods = self.pods();
            if done(&pods) {
                return pods;
            }
            if Instant::now() > end {
                self.fail(&format!("not within {limit:?}: {what}"));
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits for a state of one pod.
    #[track_caller]
    pub fn wait_pod(&self, name: &str, what: &str, mut done: impl FnMut(&PodView) -> bool) -> PodView {
        let full = format!("{name}-{}", self.name);
        let pods =
            self.wait(&format!("{name}: {what}"), PATIENCE, |pods| pods.iter().any(|p| p.name() == full && done(p)));
        pods.into_iter().find(|p| p.name() == full).expect("just seen")
    }

    /// Waits until the pod and all its containers run.
    #[track_caller]
    pub fn wait_up(&self, name: &str) -> PodView {
        self.wait_pod(name, "running", PodView::up)
    }

    /// Drops a pod and waits until it runs.
    #[track_caller]
    pub fn run(&self, manifest: &Value) -> PodView {
        let name = manifest["metadata"]["name"].as_str().expect("a name").to_owned();
        self.apply(&format!("{name}.yaml"), manifest);
        self.wait_up(&name)
    }

    /// Drops a pod and waits until it ended.
    #[track_caller]
    pub fn run_to_end(&self, manifest: &Value) -> PodView {
        let name = manifest["metadata"]["name"].as_str().expect("a name").to_owned();
        self.apply(&format!("{name}.yaml"), manifest);
        self.wait_pod(&name, "ended", |p| ["Succeeded", "Failed"].contains(&p.phase()))
    }

    #[track_caller]
    pub fn wait_gone(&self, name: &str) {
        let full = format!("{name}-{}", self.name);
        self.wait(&format!("{name} is gone"), PATIENCE, |pods| !pods.iter().any(|p| p.name() == full));
    }

    /// Recent events (v1 Events), oldest first.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let text = self.cli(&["get", "events", "-A", "-o", "json"]).ok();
        let list: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("get events -o json: {e}\n{text}"));
        list["items"].as_array().expect("items").clone()
    }

    /// Waits for an event for which `matches(reason, message)` holds.
    #[track_caller]
    pub fn wait_event(&self, what: &str, matches: impl Fn(&str, &str) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = self
                .events()
                .into_iter()
                .find(|e| matches(e["reason"].as_str().unwrap_or_default(), e["message"].as_str().unwrap_or_default()));
            if let Some(event) = found {
                return event;
            }
            if Instant::now() > end {
                self.fail(&format!("no event: {what}"));
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Everything that explains a failure.
    #[track_caller]
    pub fn fail(&self, what: &str) -> ! {
        let log = fs::read(self.dir.join("agent.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        let say = |args: &[&str]| {
            let out = Command::new(binary()).args(args).env("CORACLE_RUN_DIR", self.dir.join("run")).output();
            out.map(|o| format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr)))
                .unwrap_or_else(|e| e.to_string())
        };
        let statuses: Vec<String> = serde_json::from_str::<Value>(&say(&["get", "pods", "-A", "-o", "json"]))
            .ok()
            .and_then(|list| list["items"].as_array().cloned())
            .unwrap_or_default()
            .iter()
            .map(|p| format!("{} {}", p["metadata"]["name"], p["status"]))
            .collect();
        panic!(
            "{what}\n--- pods\n{}\n{}\n--- events\n{}\n--- agent log\n{tail}",
            say(&["get", "pods", "-A"]),
            statuses.join("\n"),
            say(&["get", "events", "-A"]),
        );
    }

    // --- what the kernel knows of this node

    /// This node's folder in every cgroup hierarchy that has one.
    fn cgroups(&self) -> Vec<PathBuf> {
        let below = self.cgroup_root.trim_start_matches('/');
        hierarchies().into_iter().map(|h| h.join(below)).filter(|p| p.is_dir()).collect()
    }

    /// PIDs in this node's cgroups.
    pub fn cgroup_pids(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for root in self.cgroups() {
            for dir in folders_below(&root) {
                pids.extend(pids_of(&dir));
            }
        }
        pids
    }

    /// The cgroup of a container that holds `file`, for example `memory.max`.
    pub fn container_cgroup(&self, id: &str, file: &str) -> Option<PathBuf> {
        assert_eq!(id.len(), 64, "container ID {id:?}");
        let all = self.cgroups().into_iter().flat_map(|root| folders_below(&root));
        all.filter(|dir| dir.file_name().is_some_and(|n| n.to_string_lossy().contains(id)))
            .find(|dir| dir.join(file).exists())
    }

    /// The init process of a container.
    #[track_caller]
    pub fn init_pid(&self, id: &str) -> i32 {
        let dir = self.container_cgroup(id, "cgroup.procs").unwrap_or_else(|| panic!("no cgroup of container {id}"));
        let is_init = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ns = status.lines().find(|l| l.starts_with("NSpid:")).unwrap_or_default().to_owned();
            ns.split_whitespace().next_back() == Some("1")
        };
        pids_of(&dir).into_iter().find(is_init).unwrap_or_else(|| panic!("no init in {}", dir.display()))
    }

    /// Processes whose command line names this node's folder: agent, shims, helpers.
    pub fn own_processes(&self) -> Vec<(i32, String)> {
        let mark = format!("{}/", self.dir.display());
        let me = std::process::id() as i32;
        processes()
            .into_iter()
            .filter(|pid| *pid != me)
            .filter_map(|pid| {
                let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
                (text.contains(&mark) && text.contains("coracle")).then_some((pid, text))
            })
            .collect()
    }

    /// The shims, by PID, without the short-lived copies that they fork to make containers.
    pub fn shims(&self) -> Vec<i32> {
        let own = self.own_processes();
        let shims: BTreeSet<i32> = own.iter().filter(|(_, text)| text.contains(" shim ")).map(|p| p.0).collect();
        let forked = |pid: &i32| parent(*pid).is_some_and(|p| shims.contains(&p));
        shims.iter().copied().filter(|pid| !forked(pid)).collect()
    }

    /// PIDs of processes inside containers: those with a PID namespace of their own.
    pub fn container_pids(&self) -> BTreeSet<i32> {
        let ours = fs::read_link("/proc/self/ns/pid").expect("own PID namespace");
        let inside = |pid: &i32| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns != ours);
        self.cgroup_pids().into_iter().filter(inside).collect()
    }

    /// Mount points below this node's folder.
    fn mounts(&self) -> Vec<PathBuf> {
        // Of this thread: a test may have a mount namespace of its own.
        let text = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
        let points = text.lines().filter_map(|l| l.split(' ').nth(4)).map(|p| PathBuf::from(p.replace("\\040", " ")));
        points.filter(|p| p.starts_with(&self.dir)).collect()
    }

    /// The bridge and what is plugged into it.
    fn links(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(network) = &self.network {
            // sysfs shows the network in which it was mounted.
            let all: Value = serde_json::from_str(&network.tool("ip", &["-json", "link"], "").ok()).unwrap_or_default();
            let all = all.as_array().map(Vec::as_slice).unwrap_or_default();
            let ours = all.iter().filter(|l| l["ifname"] == *self.bridge || l["master"] == *self.bridge);
            found.extend(ours.filter_map(|link| Some(link["ifname"].as_str()?.to_owned())));
        } else {
            for entry in fs::read_dir("/sys/class/net").expect("sysfs").flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let master = fs::read_link(entry.path().join("master")).ok();
                if master.is_some_and(|m| m.ends_with(&self.bridge)) || name == self.bridge {
                    found.push(name);
                }
            }
        }
        found.sort();
        found
    }

    /// What is left of this node in the kernel and on disk, in words.
    pub fn leaks(&self) -> Vec<String> {
        let mut found = Vec::new();
        found.extend(self.own_processes().into_iter().map(|(pid, text)| format!("process {pid}: {text}")));
        found.extend(self.cgroup_pids().into_iter().map(|pid| format!("process {pid} in the node's cgroups")));
        let mounts = self.mounts().into_iter().filter(|p| Some(p) != self.disk.as_ref());
        found.extend(mounts.map(|p| format!("mount {}", p.display())));
        found.extend(self.links().into_iter().filter(|l| *l != self.bridge).map(|l| format!("link {l}")));
        // The bridge and the table are the node's own and may stay for its next pod; what was a pod's may not.
        let of_ports = self
            .inside(nft::chains)
            .into_iter()
            .filter(|(table, chain)| table.contains(&self.bridge) && chain == "hostports");
        found.extend(of_ports.map(|(table, chain)| format!("nf_tables chain {chain} of table {table}")));
        for root in self.cgroups() {
            let pods = folders_below(&root)
                .into_iter()
                .filter(|d| d.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pod") || n.len() == 64));
            found.extend(pods.map(|d| format!("cgroup {}", d.display())));
        }
        for sub in ["root/pods", "run/pods"] {
            let rest = fs::read_dir(self.dir.join(sub)).into_iter().flatten().flatten();
            found.extend(rest.map(|e| format!("folder {}", e.path().display())));
        }
        found.sort();
        found.dedup();
        found
    }

    /// Ends a test: all manifests go, all pods must follow, the agent stops, and nothing may be left.
    #[track_caller]
    pub fn finish(mut self) {
        fs::create_dir_all(self.dir.join("manifests")).expect("manifests");
        for entry in fs::read_dir(self.dir.join("manifests")).expect("manifests").flatten() {
            let path = entry.path();
            let _ = if entry.file_type().is_ok_and(|t| t.is_dir()) {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
        }
        if self.agent.is_none() {
            self.start();
        }
        self.wait("all pods are gone", PATIENCE, |pods| pods.is_empty());
        self.stop();
        let end = Instant::now() + secs(5);
        loop {
            let leaks = self.leaks();
            if leaks.is_empty() {
                break;
            }
            if Instant::now() > end {
                self.fail(&format!("left behind:\n  {}", leaks.join("\n  ")));
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Ends every process of this node at once, as a power cut does.
    pub fn kill_everything(&mut self) {
        if let Some(mut child) = self.agent.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for _ in 0..100 {
            let mut left: BTreeSet<i32> = self.cgroup_pids();
            left.extend(self.own_processes().into_iter().map(|p| p.0));
            if left.is_empty() {
                return;
            }
            for pid in left {
                signal(pid, Signal::KILL);
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Removes all that lives in the kernel or in `/run` only, as a reboot does.
    pub fn forget_kernel_state(&self) {
        for _ in 0..20 {
            let mounts = self.mounts();
            if mounts.is_empty() {
                break;
            }
            for point in mounts.iter().rev() {
                let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
            }
        }
        for link in self.links() {
            let mut delete = Command::new("ip");
            delete.args(["link", "del", &link]).stderr(Stdio::null());
            let _ = self.inside(|| delete.status());
        }
        for table in self.inside(nft::tables).into_iter().filter(|t| t.contains(&self.bridge)) {
            self.inside(|| nft::delete_table(&table));
        }
        for root in self.cgroups() {
            for dir in folders_below(&root).iter().rev() {
                let _ = fs::remove_dir(dir);
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill_everything();
        self.forget_kernel_state();
        if std::thread::panicking() && std::env::var_os("CORACLE_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.display());
        } else if self.mounts().is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Sends a signal; a process that has ended is no error.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|s| s.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
}

fn processes() -> Vec<i32> {
    let all = fs::read_dir("/proc").expect("proc").flatten();
    all.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

fn pids_of(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).collect()
}

/// `root` and all folders below it, parents first.
fn folders_below(root: &Path) -> Vec<PathBuf> {
    let mut all = vec![root.to_owned()];
    let mut next = 0;
    while next < all.len() {
        let entries = fs::read_dir(&all[next]).into_iter().flatten().flatten();
        let subs: Vec<PathBuf> =
            entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
        all.extend(subs);
        next += 1;
    }
    all
}

/// Mount points of all cgroup hierarchies, both versions.
pub fn hierarchies() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let of_cgroups = text.lines().filter(|l| l.contains(" - cgroup ") || l.contains(" - cgroup2 "));
    of_cgroups.filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// A port nobody listens on just now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("address").port()
}

/// A /24 of 10.0.0.0/8 that no route of this machine touches.
fn free_network(pid: u32, n: u32) -> String {
    let routes = fs::read_to_string("/proc/net/route").expect("routes");
    let used: Vec<u32> = routes
        .lines()
        .skip(1)
        .filter_map(|l| u32::from_str_radix(l.split_whitespace().nth(1)?, 16).ok())
        .map(u32::swap_bytes)
        .collect();
    let candidates = (0..256).map(|i| (64 + (pid + i) % 128, n % 256));
    let (b, c) = candidates
        .into_iter()
        .find(|(b, c)| !used.iter().any(|net| net >> 8 == (10 << 16 | b << 8 | c) || *net == 10 << 24))
        .expect("a free /24 in 10.0.0.0/8");
    format!("10.{b}.{c}.0/24")
}

/// GET over a plain socket: status code and body.
pub fn http(address: impl ToSocketAddrs, path: &str) -> std::io::Result<(u16, String)> {
    let address = address.to_socket_addrs()?.next().ok_or_else(|| std::io::Error::other("no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, secs(2))?;
    stream.set_read_timeout(Some(secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let code = text.split(' ').nth(1).and_then(|c| c.parse().ok()).unwrap_or(0);
    Ok((code, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// Waits until a page answers 200.
#[track_caller]
pub fn page(address: &str, path: &str) -> String {
    let end = Instant::now() + secs(10);
    loop {
        match http(address, path) {
            Ok((200, body)) => return body,
            other if Instant::now() > end => panic!("http://{address}{path}: {other:?}"),
            _ => sleep(Duration::from_millis(50)),
        }
    }
}

/// Fails with its name for everything the suite cannot do without.
fn require() {
    static ONCE: OnceLock<Vec<String>> = OnceLock::new();
    let missing = ONCE.get_or_init(|| {
        let mut missing = Vec::new();
        if !rustix::process::geteuid().is_root() {
            missing.push("root (run the tests with sudo)".to_owned());
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map(str::trim).unwrap_or_default();
        let effective = u64::from_str_radix(effective, 16).unwrap_or(0);
        for (bit, name) in [
            (0, "CAP_CHOWN"),
            (1, "CAP_DAC_OVERRIDE"),
            (5, "CAP_KILL"),
            (12, "CAP_NET_ADMIN"),
            (18, "CAP_SYS_CHROOT"),
            (21, "CAP_SYS_ADMIN"),
            (27, "CAP_MKNOD"),
        ] {
            if effective & (1 << bit) == 0 {
                missing.push(name.to_owned());
            }
        }
        let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !filesystems.contains("overlay") {
            missing.push("overlayfs (modprobe overlay)".to_owned());
        }
        if hierarchies().is_empty() {
            missing.push("a mounted cgroup hierarchy".to_owned());
        }
        if image::busybox().is_none() {
            missing.push("a static busybox (apt-get install busybox-static)".to_owned());
        }
        if Command::new("ip").arg("-V").stdout(Stdio::null()).status().is_err() {
            missing.push("ip (apt-get install iproute2)".to_owned());
        }
        missing
    });
    assert!(missing.is_empty(), "the privileged tests need: {}", missing.join(", "));
}

/// Permission bits of a file.
pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o7777
}
