//! `cargo xtask bench stream`: what coracle and a kubelet with containerd stream, side by side in one run, in turns: the start
//! of a command, bytes in and out of it, bytes through forwarded ports; by client-go, from a client with a certificate, over
//! TLS on the loopback. And what a thousand connections cost that do nothing.

use crate::bench::{Row, Samples, print, pss};
use crate::kubelet::{self, Kubelet};
use crate::node::{Node, running};
use crate::{debian, image, shell};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Commands started in a round.
const STARTS: usize = 100;
/// What goes through a stream in a round, in bytes.
const BYTES: u64 = 256 << 20;
const IDLE: usize = 1000;

/// What is measured as bytes a second: what it is called, the client's word for it, connections at once.
const THROUGHPUT: [(&str, &str, &str); 6] = [
    ("out of a command", "down", "1"),
    ("into a command", "up", "1"),
    ("from a forwarded port", "forward-down", "1"),
    ("to a forwarded port", "forward-up", "1"),
    ("from a forwarded port, 50 connections", "forward-down", "50"),
    ("to a forwarded port, 50 connections", "forward-up", "50"),
];

pub fn run(rounds: u64) -> Result<()> {
    if rounds == 0 {
        bail!("--n must be at least 1");
    }
    debian::install(&[debian::BUILD, &[debian::BUSYBOX, debian::RUNC, debian::CONTAINERD]])?;
    let program = kubelet::build()?;
    let binary = shell::release()?;
    let scratch = Scratch::new()?;
    shell::read(Command::new(&program).arg("certificates").arg(&scratch.0))?;
    let (ours, theirs) = (free_port()?, free_port()?);

    let config = scratch.0.join("coracle.yaml");
    fs::write(&config, kubelet::access(&scratch.0, ours).to_string())?;
    let node = Node::start_with(&binary, "bench", &[format!("--config={}", config.display())])?;
    shell::read(&mut node.cli(&["image", "import", &image::make("busybox")?.display().to_string()]))?;
    node.apply("bench.yaml", &pod().to_string())?;
    node.wait("the pod runs", Duration::from_secs(30), |pods| pods.len() == 1 && pods.iter().all(running))?;
    let kubelet = Kubelet::start(&program, &scratch.0, theirs, &pod())?;

    let client = |port: u16, node: &str| Client {
        program: program.clone(),
        certificates: scratch.0.clone(),
        server: format!("https://127.0.0.1:{port}"),
        pod: format!("default/bench-{node}"),
    };
    let (coracle, other) = (client(ours, "edge"), client(theirs, "bench"));
    let mut rows = Vec::new();
    for (protocol, flag) in [("WebSocket", "--websocket=true"), ("SPDY", "--websocket=false")] {
        println!("{protocol}: starts of commands …");
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            a.extend(coracle.starts(flag)?);
            b.extend(other.starts(flag)?);
        }
        rows.push(start_row(protocol, Samples::of(a), Samples::of(b)));
        for (what, word, connections) in THROUGHPUT {
            println!("{protocol}: {what} …");
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                a.push(coracle.rate(flag, word, connections)?);
                b.push(other.rate(flag, word, connections)?);
            }
            rows.push(rate_row(&format!("{protocol}: {what}"), median(a), median(b)));
        }
    }
    drop(kubelet);
    rows.push(idle(&node, &coracle)?);
    node.finish()?;
    print(&rows);
    Ok(())
}

/// A pod in the host's network, where both have their clients and servers.
fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "bench", "namespace": "default" },
        "spec": {
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": "docker.io/library/busybox:latest",
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"],
            }],
        },
    })
}

struct Client {
    program: PathBuf,
    certificates: PathBuf,
    server: String,
    pod: String,
}

impl Client {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["streams", "--server", &self.server, "--pod", &self.pod, "--certificates"]);
        command.arg(&self.certificates).args(args);
        command
    }

    fn measure(&self, args: &[&str]) -> Result<Value> {
        let text = shell::read(&mut self.command(args))?;
        serde_json::from_str(&text).with_context(|| format!("{}: {text:?}", args.join(" ")))
    }

    fn starts(&self, flag: &str) -> Result<Vec<Duration>> {
        let all = self.measure(&[flag, "--n", &STARTS.to_string(), "start"])?;
        let all = all.as_array().context("times")?.iter().filter_map(Value::as_f64);
        Ok(all.map(|ms| Duration::from_secs_f64(ms / 1e3)).collect())
    }

    /// MB a second.
    fn rate(&self, flag: &str, word: &str, connections: &str) -> Result<f64> {
        let rate = self.measure(&[flag, "--bytes", &BYTES.to_string(), "--connections", connections, word])?;
        Ok(rate.as_f64().context("a rate")? / 1e6)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn start_row(protocol: &str, ours: Samples, theirs: Samples) -> Row {
    let text = |all: &Samples| format!("{:.1} ms (p99 {:.1})", all.quantile(0.5), all.quantile(0.99));
    Row {
        what: format!("{protocol}: dial → first byte of a command"),
        coracle: text(&ours),
        other: format!("kubelet + containerd {}", text(&theirs)),
        budget: "p99 ≤ 30 ms".into(),
        kept: ours.quantile(0.99) <= 30.0,
    }
}

fn rate_row(what: &str, ours: f64, theirs: f64) -> Row {
    Row {
        what: what.into(),
        coracle: format!("{ours:.0} MB/s"),
        other: format!("kubelet + containerd {theirs:.0} MB/s → {:.2} ×", ours / theirs),
        budget: "≥ 1/2".into(),
        kept: ours * 2.0 >= theirs,
    }
}

/// What connections cost that were used once.
fn idle(node: &Node, client: &Client) -> Result<Row> {
    println!("{IDLE} idle connections …");
    // The agent gives memory back after some quiet.
    sleep(Duration::from_secs(35));
    let before = pss(node)?;
    let mut command = client.command(&["--n", &IDLE.to_string(), "idle"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("the client")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
    let after = pss(node);
    drop(child.stdin.take());
    let status = child.wait()?;
    if line != "idle\n" || !status.success() {
        bail!("the idle connections ended: {status}");
    }
    let more = (after? - before) / 1024.0;
    Ok(Row {
        what: format!("memory of {IDLE} idle connections (PSS)"),
        coracle: format!("{more:.1} MiB"),
        other: format!("{:.1} MiB without", before / 1024.0),
        budget: "≤ 20 MiB".into(),
        kept: more <= 20.0,
    })
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A folder that goes with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let dir = std::env::temp_dir().join(format!("coracle-stream-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
