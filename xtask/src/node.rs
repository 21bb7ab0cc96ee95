//! A private node in a temporary folder, for the demo and the benchmarks. Whatever happens, it is ended and removed.

use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub struct Node {
    pub dir: PathBuf,
    binary: PathBuf,
    cgroup_root: String,
    bridge: String,
    arguments: Vec<String>,
    agent: Option<Child>,
}

impl Node {
    /// Makes the folders and starts the agent.
    pub fn start(binary: &Path, purpose: &str) -> Result<Node> {
        Node::start_with(binary, purpose, &[])
    }

    /// The same with more arguments.
    pub fn start_with(binary: &Path, purpose: &str, more: &[String]) -> Result<Node> {
        if !shell::is_root() {
            bail!("a node needs root (namespaces, mounts, links)\nhint: sudo -E cargo xtask {purpose}");
        }
        let pid = std::process::id();
        let dir = std::env::temp_dir().join(format!("coracle-{purpose}-{pid}"));
        for sub in ["root/images", "run", "log/pods", "manifests", "share"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| dir.display().to_string())?;
        }
        let mut node = Node {
            binary: binary.to_owned(),
            cgroup_root: format!("/coracle-{purpose}-{pid}"),
            bridge: format!("cor{}", pid % 1_000_000),
            arguments: Vec::new(),
            agent: None,
            dir,
        };
        let d = node.dir.display();
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        node.arguments = vec![
            "agent".to_owned(),
            format!("--root-dir={d}/root"),
            format!("--run-dir={d}/run"),
            format!("--pod-manifest-path={d}/manifests"),
            format!("--pod-logs-dir={d}/log/pods"),
            format!("--cgroup-root={}", node.cgroup_root),
            format!("--bridge={}", node.bridge),
            format!("--pod-cidr=10.{}.{}.0/24", 192 + pid % 60, pid / 60 % 256),
            format!("--healthz-port={port}"),
            "--hostname-override=edge".to_owned(),
        ];
        node.arguments.extend_from_slice(more);
        println!("\x1b[1m$ coracle {}\x1b[0m", node.arguments.join(" "));
        let begin = node.launch()?;
        node.wait_for_agent()?;
        println!("  (up after {:.0} ms)", begin.elapsed().as_secs_f64() * 1e3);
        Ok(node)
    }

    /// Starts the agent; the moment just before.
    pub fn launch(&mut self) -> Result<Instant> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("agent.log"))?;
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let begin = Instant::now();
        self.agent = Some(command.spawn().context("the agent")?);
        Ok(begin)
    }

    /// Waits until the agent answers.
    pub fn wait_for_agent(&mut self) -> Result<()> {
        shell::wait("the agent answers", Duration::from_secs(15), || {
            if let Some(status) = self.agent.as_mut().and_then(|a| a.try_wait().ok().flatten()) {
                bail!("the agent ended: {status}\n{}", self.log());
            }
            Ok(self.cli(&["get", "pods"]).output()?.status.success())
        })
    }

    /// What a reboot leaves: no process, no mount, no link, no cgroup, nothing in the run directory.
    pub fn power_cut(&mut self) -> Result<()> {
        self.clear();
        let run = self.dir.join("run");
        fs::remove_dir_all(&run).with_context(|| run.display().to_string())?;
        fs::create_dir(&run).with_context(|| run.display().to_string())
    }

    /// `coracle` with these arguments, against this node.
    pub fn cli(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env("CORACLE_RUN_DIR", self.dir.join("run"));
        command
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().map_or(0, Child::id)
    }

    /// Renames a manifest into place; the moment just before.
    pub fn apply(&self, file: &str, text: &str) -> Result<Instant> {
        let staged = self.dir.join(file);
        fs::write(&staged, text)?;
        let begin = Instant::now();
        fs::rename(&staged, self.dir.join("manifests").join(file))?;
        Ok(begin)
    }

    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.dir.join("manifests").join(file)).with_context(|| file.to_owned())
    }

    pub fn pods(&self) -> Result<Vec<Value>> {
        let text = shell::read(&mut self.cli(&["get", "pods", "-A", "-o", "json"]))?;
        let list: Value = serde_json::from_str(&text).context("get pods -o json")?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits for a state of all pods.
    pub fn wait(&self, what: &str, limit: Duration, done: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let mut last = Vec::new();
        let waited = shell::wait(what, limit, || {
            last = self.pods()?;
            Ok(done(&last))
        });
        if let Err(error) = waited {
            let events = self.cli(&["get", "events", "-A"]).output()?;
            bail!("{error}\n{}\n{}", String::from_utf8_lossy(&events.stdout), self.log());
        }
        Ok(last)
    }

    /// Processes of the built binary that belong to this node: the agent and its shims.
    pub fn processes(&self) -> Vec<u32> {
        let Ok(binary) = self.binary.canonicalize() else { return Vec::new() };
        let mark = self.dir.display().to_string();
        let ours = |pid: &u32| {
            let path = format!("/proc/{pid}");
            let same = fs::read_link(format!("{path}/exe")).is_ok_and(|exe| exe == binary);
            let named = fs::read(format!("{path}/cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(&mark));
            let inside = fs::read_to_string(format!("{path}/cgroup")).is_ok_and(|c| c.contains(&self.cgroup_root));
            same && (named || inside || *pid == self.agent_pid())
        };
        pids().into_iter().filter(ours).collect()
    }

    /// Processes in this node's cgroups, containers included.
    fn members(&self) -> Vec<u32> {
        let inside = |pid: &u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            text.lines().any(|l| l.split(':').nth(2).is_some_and(|p| p.starts_with(&self.cgroup_root)))
        };
        pids().into_iter().filter(inside).collect()
    }

    /// Removes all pods and stops the agent in order.
    pub fn finish(mut self) -> Result<()> {
        for entry in fs::read_dir(self.dir.join("manifests"))? {
            fs::remove_file(entry?.path())?;
        }
        self.wait("all pods are gone", Duration::from_secs(60), <[Value]>::is_empty)?;
        if let Some(mut agent) = self.agent.take() {
            Command::new("kill").arg(agent.id().to_string()).status()?;
            shell::wait("the agent ended", Duration::from_secs(15), || Ok(agent.try_wait()?.is_some()))?;
        }
        Ok(())
    }
}

impl Node {
    /// Ends and removes everything but files.
    fn clear(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        for _ in 0..50 {
            // Shims first: none of them shall see its containers end, as in a power cut.
            let mut left = self.processes();
            left.extend(self.members());
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
            }
            sleep(Duration::from_millis(20));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = format!("{}/", self.dir.display());
        for point in mounts.lines().rev().filter_map(|l| l.split(' ').nth(4)).filter(|p| p.starts_with(&below)) {
            let _ = Command::new("umount").args(["--lazy", point]).stderr(Stdio::null()).status();
        }
        let _ = Command::new("ip").args(["link", "del", &self.bridge]).stderr(Stdio::null()).status();
        for hierarchy in mounts.lines().filter(|l| l.contains(" - cgroup")).filter_map(|l| l.split(' ').nth(4)) {
            remove_cgroups(&Path::new(hierarchy).join(self.cgroup_root.trim_start_matches('/')));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.clear();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

fn pids() -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Whether all containers of a pod run.
pub fn running(pod: &Value) -> bool {
    let statuses = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    pod["status"]["phase"] == "Running"
        && !statuses.is_empty()
        && statuses.iter().all(|c| c["state"]["running"].is_object())
}
