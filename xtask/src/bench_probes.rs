//! `cargo xtask bench probes`: what readiness probes cost the agent: 100 pods, half of them probed by HTTP and half by TCP,
//! each once a second.

use crate::bench::{Row, cpu, empty, print, pss};
use crate::node::{Node, running};
use crate::{debian, image, shell};
use anyhow::Result;
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PODS: usize = 100;

pub fn probes() -> Result<()> {
    debian::install(&[debian::BUILD, &[debian::BUSYBOX]])?;
    let archive = image::make("busybox")?;
    let node = Node::start(&shell::release()?, "bench")?;
    shell::read(&mut node.cli(&["image", "import", &archive.display().to_string()]))?;
    let mut rows = Vec::new();
    println!("{PODS} pods without probes …");
    let without = measure(&node, |_| Value::Null)?;
    println!("{PODS} pods with a readiness probe each second …");
    let with = measure(&node, |i| match i % 2 {
        0 => json!({ "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 }),
        _ => json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1 }),
    })?;
    node.finish()?;
    rows.push(Row {
        what: format!("CPU of agent and shims, {PODS} readiness probes at 1 s"),
        coracle: format!("{:.2} % of a core", with.cpu),
        other: format!("without probes {:.3} %", without.cpu),
        budget: "≤ 2 %".into(),
        kept: with.cpu <= 2.0,
    });
    let per_pod = with.pss / PODS as f64;
    rows.push(Row {
        what: "memory of agent and shims per probed pod (PSS)".into(),
        coracle: format!("{:.3} MiB", per_pod / 1024.0),
        other: format!("without probes {:.3} MiB", without.pss / PODS as f64 / 1024.0),
        budget: "≤ 0.5 MiB".into(),
        kept: per_pod <= 512.0,
    });
    print(&rows);
    Ok(())
}

struct Cost {
    /// Percent of a core.
    cpu: f64,
    /// KiB.
    pss: f64,
}

fn measure(node: &Node, probe: impl Fn(usize) -> Value) -> Result<Cost> {
    for i in 0..PODS {
        node.apply(&format!("p{i}.yaml"), &manifest(&format!("p{i}"), probe(i)))?;
    }
    let ready = |pods: &[Value]| {
        let is_ready = |p: &Value| {
            let conditions = p["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        pods.len() == PODS && pods.iter().all(|p| running(p) && is_ready(p))
    };
    node.wait("all are ready", Duration::from_secs(120), ready)?;
    sleep(Duration::from_secs(35));
    let (before, begin) = (cpu(node), Instant::now());
    sleep(Duration::from_secs(20));
    let cpu = (cpu(node) - before) / begin.elapsed().as_secs_f64() * 100.0;
    let pss = pss(node)?;
    empty(node)?;
    Ok(Cost { cpu, pss })
}

fn manifest(name: &str, probe: Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": "docker.io/library/busybox:latest",
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", "echo ok > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"],
                "readinessProbe": probe,
            }],
        },
    })
    .to_string()
}
