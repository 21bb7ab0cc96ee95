//! `cargo xtask bench start`: coracle and `runc run` on the same root file system, side by side in one run, in turns,
//! so that both see the same machine. Seconds differ from machine to machine; the ratios count.

use crate::node::{Node, running};
use crate::{debian, image, shell};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// kubelet 1.36 + containerd, measured on a machine of two cores (the project's design, section 8).
const KUBELET_HOST_MS: f64 = 414.0;
const KUBELET_POD_MS: f64 = 444.0;
const KUBELET_FIFTY_S: f64 = 11.8;

/// Says that it runs, and then only rests.
pub const REST: &str = "echo > /share/fifo; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// A FIFO into which a container's first instruction writes; a thread notes when.
pub struct Signal {
    arrivals: Receiver<(Instant, usize)>,
}

impl Signal {
    pub fn new(path: &Path) -> Result<Signal> {
        shell::read(Command::new("mkfifo").args(["-m", "666"]).arg(path))?;
        // Open for writing too: the end of one writer is then no end of file.
        let mut reader = fs::OpenOptions::new().read(true).write(true).open(path)?;
        let (sender, arrivals) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = reader.read(&mut buffer) {
                let lines = buffer[..n].iter().filter(|b| **b == b'\n').count();
                if sender.send((Instant::now(), lines)).is_err() {
                    break;
                }
            }
        });
        Ok(Signal { arrivals })
    }

    /// Waits for `count` containers; the time from `begin` to the last one.
    pub fn wait(&self, count: usize, begin: Instant) -> Result<Duration> {
        let mut left = count;
        loop {
            let (at, lines) = self
                .arrivals
                .recv_timeout(Duration::from_secs(60))
                .with_context(|| format!("{left} of {count} containers did not start within a minute"))?;
            left = left.saturating_sub(lines);
            if left == 0 {
                return Ok(at - begin);
            }
        }
    }
}

/// Milliseconds, sorted.
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn of(mut times: Vec<Duration>) -> Samples {
        times.sort();
        Samples(times.iter().map(|t| t.as_secs_f64() * 1e3).collect())
    }

    pub fn quantile(&self, q: f64) -> f64 {
        let at = ((self.0.len() as f64 * q).ceil() as usize).saturating_sub(1);
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    pub fn text(&self) -> String {
        format!("{:.1} ms (p90 {:.1})", self.quantile(0.5), self.quantile(0.9))
    }
}

/// One line of the result.
pub struct Row {
    pub what: String,
    pub coracle: String,
    pub other: String,
    pub budget: String,
    pub kept: bool,
}

pub fn start(n: u64) -> Result<()> {
    if n == 0 {
        bail!("--n must be at least 1");
    }
    debian::install(&[debian::BUILD, &[debian::BUSYBOX, debian::RUNC]])?;
    let archive = image::make("busybox")?;
    let binary = shell::release()?;
    let node = Node::start(&binary, "bench")?;
    shell::read(&mut node.cli(&["image", "import", &archive.display().to_string()]))?;
    let runc = Runc::new(&node.dir)?;
    let signal = Signal::new(&node.dir.join("share/fifo"))?;
    let mut rows = Vec::new();

    // The machine's caches are warm for both.
    for host in [true, false] {
        one_pod(&node, &signal, host)?;
    }
    runc.one(&signal)?;

    println!("start latency, {n} rounds in turns, 250 ms apart …");
    let (mut host, mut network, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..n {
        host.push(one_pod(&node, &signal, true)?);
        alone.push(runc.one(&signal)?);
        network.push(one_pod(&node, &signal, false)?);
    }
    let (host, network, alone) = (Samples::of(host), Samples::of(network), Samples::of(alone));
    let ratio = host.quantile(0.5) / alone.quantile(0.5);
    rows.push(Row {
        what: "manifest → first instruction, host network".into(),
        coracle: host.text(),
        other: format!("runc run {} → {ratio:.2} ×", alone.text()),
        budget: "≤ 1.5 × runc".into(),
        kept: ratio <= 1.5,
    });
    rows.push(against("… as part of kubelet's", host.quantile(0.5), KUBELET_HOST_MS, 10.0, "ms"));
    rows.push(against("manifest → first instruction, pod network", network.quantile(0.5), KUBELET_POD_MS, 8.0, "ms"));

    println!("memory …");
    // Idle means idle: the agent gives memory back after some quiet.
    sleep(Duration::from_secs(32));
    let idle = pss(&node)?;
    rows.push(Row {
        what: "idle memory (PSS)".into(),
        coracle: format!("{:.2} MiB", idle / 1024.0),
        other: "kubelet + containerd 125 MiB".into(),
        budget: "≤ 12 MiB".into(),
        kept: idle <= 12.0 * 1024.0,
    });
    fill(&node, &signal, 20)?;
    sleep(Duration::from_secs(32));
    let per_pod = (pss(&node)? - idle) / 20.0;
    rows.push(Row {
        what: "more memory per pod (PSS, of 20)".into(),
        coracle: format!("{:.2} MiB", per_pod / 1024.0),
        other: "kubelet + containerd 3.8 MiB".into(),
        budget: "≤ 0.5 MiB".into(),
        kept: per_pod <= 512.0,
    });
    empty(&node)?;

    println!("50 pods at once …");
    let took = fill(&node, &signal, 50)?;
    rows.push(against("50 pods at once → all running", took.as_secs_f64(), KUBELET_FIFTY_S, 6.0, "s"));
    println!("idle CPU with 50 pods, 20 s …");
    // Settling costs some 35 ms once (memory is given back, what runs is looked at); it is over then.
    sleep(Duration::from_secs(32));
    let (before, begin) = (cpu(&node), Instant::now());
    sleep(Duration::from_secs(20));
    let share = (cpu(&node) - before) / begin.elapsed().as_secs_f64() * 100.0;
    rows.push(Row {
        what: "CPU with 50 idle pods".into(),
        coracle: format!("{share:.3} % of a core"),
        other: "kubelet + containerd 3.3 %".into(),
        budget: "≤ 0.1 %".into(),
        kept: share <= 0.1,
    });
    let size = fs::metadata(&binary)?.len() as f64 / 1e6;
    rows.push(Row {
        what: "binary".into(),
        coracle: format!("{size:.1} MB"),
        other: "kubelet 82 + containerd 45 MB".into(),
        budget: "≤ 20 MB".into(),
        kept: size <= 20.0,
    });
    empty(&node)?;
    node.finish()?;
    print(&rows);
    println!("kubelet's figures are of another machine (two cores, November 2026); runc's of this run.");
    Ok(())
}

fn against(what: &str, ours: f64, kubelet: f64, part: f64, unit: &str) -> Row {
    Row {
        what: what.into(),
        coracle: format!("{ours:.1} {unit}"),
        other: format!("kubelet + containerd {kubelet} {unit} → 1/{:.1}", kubelet / ours),
        budget: format!("≤ 1/{part}"),
        kept: ours <= kubelet / part,
    }
}

pub fn print(rows: &[Row]) {
    let width = |of: fn(&Row) -> &str| rows.iter().map(|r| of(r).chars().count()).max().unwrap_or(0);
    let (a, b, c) = (width(|r| &r.what), width(|r| &r.coracle), width(|r| &r.other));
    println!("\n| {:a$} | {:b$} | {:c$} | budget |", "what", "coracle", "compared with");
    println!("|{:-<1$}|{2:-<3$}|{4:-<5$}|---|", "", a + 2, "", b + 2, "", c + 2);
    for Row { what, coracle, other, budget, kept } in rows {
        println!("| {what:a$} | {coracle:b$} | {other:c$} | {budget} {} |", if *kept { "kept" } else { "MISSED" });
    }
    println!();
}

pub fn manifest(node: &Node, name: &str, script: &str, host: bool) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "hostNetwork": host,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "volumes": [{ "name": "share", "hostPath": { "path": node.dir.join("share") } }],
            "containers": [{
                "name": "main",
                "image": "docker.io/library/busybox:latest",
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", script],
                "volumeMounts": [{ "name": "share", "mountPath": "/share" }],
            }],
        },
    })
}

/// Rename of a manifest → first instruction of its container; then the pod is removed.
fn one_pod(node: &Node, signal: &Signal, host: bool) -> Result<Duration> {
    sleep(Duration::from_millis(250));
    let begin = node.apply("one.yaml", &manifest(node, "one", "echo > /share/fifo", host).to_string())?;
    let took = signal.wait(1, begin)?;
    node.wait("the pod ended", Duration::from_secs(30), |pods| {
        pods.iter().all(|p| p["status"]["phase"] == "Succeeded") && !pods.is_empty()
    })?;
    node.remove("one.yaml")?;
    node.wait("the pod is gone", Duration::from_secs(30), |pods| pods.is_empty())?;
    Ok(took)
}

/// Drops `count` resting pods at once; the time until the last one's first instruction.
fn fill(node: &Node, signal: &Signal, count: usize) -> Result<Duration> {
    let begin = Instant::now();
    for i in 0..count {
        node.apply(&format!("p{i}.yaml"), &manifest(node, &format!("p{i}"), REST, false).to_string())?;
    }
    let took = signal.wait(count, begin)?;
    node.wait("all run", Duration::from_secs(60), |pods| pods.len() == count && pods.iter().all(running))?;
    Ok(took)
}

pub fn empty(node: &Node) -> Result<()> {
    for entry in fs::read_dir(node.dir.join("manifests"))? {
        fs::remove_file(entry?.path())?;
    }
    node.wait("all pods are gone", Duration::from_secs(120), |pods| pods.is_empty()).map(drop)
}

/// Proportional set size of agent and shims, in KiB.
pub fn pss(node: &Node) -> Result<f64> {
    let mut sum = 0.0;
    for pid in node.processes() {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("smaps_rollup")?;
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss line")?;
        sum += line.split_whitespace().next().and_then(|v| v.parse::<f64>().ok()).context("Pss")?;
    }
    Ok(sum)
}

/// CPU seconds of agent and shims so far: by the scheduler's nanoseconds, as ticks are too coarse for what is asked.
pub fn cpu(node: &Node) -> f64 {
    let mut nanoseconds = 0u64;
    for pid in node.processes() {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text.split(' ').next().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    nanoseconds as f64 / 1e9
}

/// `runc run` on the same root file system.
struct Runc {
    bundle: PathBuf,
}

impl Runc {
    fn new(dir: &Path) -> Result<Runc> {
        let bundle = dir.join("bundle");
        fs::create_dir_all(bundle.join("rootfs/share"))?;
        image::busybox_rootfs(&bundle.join("rootfs"))?;
        shell::read(Command::new("runc").arg("spec").current_dir(&bundle))?;
        let path = bundle.join("config.json");
        let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["/bin/sh", "-c", "echo > /share/fifo"]);
        spec["root"]["readonly"] = json!(false);
        let share = json!({
            "destination": "/share", "type": "bind", "source": dir.join("share"), "options": ["rbind", "rw"],
        });
        spec["mounts"].as_array_mut().context("mounts")?.push(share);
        // The host's network, as the pod it is compared with.
        spec["linux"]["namespaces"].as_array_mut().context("namespaces")?.retain(|n| n["type"] != "network");
        fs::write(path, spec.to_string())?;
        Ok(Runc { bundle })
    }

    fn one(&self, signal: &Signal) -> Result<Duration> {
        sleep(Duration::from_millis(250));
        let id = format!("runc-beside-coracle-{}", std::process::id());
        let mut command = Command::new("runc");
        command.args(["run", "--bundle"]).arg(&self.bundle).arg(&id).stdin(Stdio::null());
        let begin = Instant::now();
        let mut child = command.spawn().context("runc")?;
        let took = signal.wait(1, begin);
        let status = child.wait()?;
        if !status.success() {
            bail!("runc run failed: {status}");
        }
        took
    }
}
