//! `cargo xtask demo`: a node in a temporary folder, one pod, seen from all sides, and everything put away again.

use crate::node::{Node, running};
use crate::{cluster, debian, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Runs a CLI command against the node and shows what it says.
fn show(node: &Node, args: &[&str]) -> Result<()> {
    let begin = Instant::now();
    println!("\n\x1b[1m$ coracle {}\x1b[0m", args.join(" "));
    print!("{}", shell::read(&mut node.cli(args))?);
    println!("  ({:.0} ms)", begin.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

pub fn run() -> Result<()> {
    let begin = Instant::now();
    debian::install(&[debian::BUILD])?;
    let binary = shell::release()?;
    println!("  {:.1} MB, everything in it", fs::metadata(&binary)?.len() as f64 / 1e6);
    println!();
    let node = Node::start(&binary, "demo")?;
    let manifest = fs::read_to_string(shell::root().join("examples/hello.yaml")).context("examples/hello.yaml")?;
    println!("\n\x1b[1m$ mv hello.yaml {}/manifests/\x1b[0m", node.dir.display());
    let dropped = node.apply("hello.yaml", &manifest)?;
    let pods = node.wait("hello runs", Duration::from_secs(30), |pods| pods.len() == 1 && running(&pods[0]))?;
    println!("  (running after {:.0} ms)", dropped.elapsed().as_secs_f64() * 1e3);
    show(&node, &["ps"])?;
    let ip = pods[0]["status"]["podIP"].as_str().context("the pod has no address")?;
    let port = pods[0]["spec"]["containers"][0]["ports"][0]["containerPort"].as_u64().unwrap_or(80);
    println!("\n\x1b[1m$ curl http://{ip}:{port}/\x1b[0m");
    let page = fetch(&format!("{ip}:{port}"))?;
    println!("{}", page.trim_end());
    show(&node, &["logs", "hello"])?;
    println!("\n\x1b[1m$ rm {}/manifests/hello.yaml\x1b[0m", node.dir.display());
    let removed = Instant::now();
    node.remove("hello.yaml")?;
    node.wait("hello is gone", Duration::from_secs(60), |pods| pods.is_empty())?;
    println!("  (gone after {:.0} ms)", removed.elapsed().as_secs_f64() * 1e3);
    let dir = node.dir.clone();
    node.finish()?;
    if dir.exists() {
        bail!("{} was not removed", dir.display());
    }
    println!("\nstopped and cleaned up; {:.1} s in all", begin.elapsed().as_secs_f64());
    Ok(())
}

/// The chicken and the egg: the test of it, aloud.
pub fn bootstrap() -> Result<()> {
    if !shell::is_root() {
        bail!("a node needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN)\nhint: sudo -E cargo xtask demo bootstrap");
    }
    debian::install(&[debian::BUILD, debian::TESTS])?;
    let test = "cluster::bootstrap::kubeadms_control_plane_runs_as_static_pods_and_its_node_joins_it";
    let mut tests = shell::cargo();
    cluster::provide(&mut tests)?;
    shell::step(tests.args(["test", "--package", "coracle", "--test", "node", "--", "--exact", test, "--nocapture"]))
}

/// The page's body; the server gets two seconds to come up.
fn fetch(address: &str) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(2);
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {address}")),
        }
    };
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") && !head.starts_with("HTTP/1.0 200") {
        bail!("http://{address}/: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
