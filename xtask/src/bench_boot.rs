//! `cargo xtask bench boot`: a cold start. Twenty pods run; then the machine is as a reboot leaves it (no process, mount,
//! link or cgroup, an empty run directory), but with what is on disk in the page cache, and the agent starts.

use crate::bench::{REST, Row, Samples, Signal, manifest, print};
use crate::node::{Node, running};
use crate::{debian, image, shell};
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const PODS: usize = 20;
/// Agent start to the first pod's first instruction, in milliseconds.
const BUDGET_MS: f64 = 300.0;

pub fn run(n: u64) -> Result<()> {
    if n == 0 {
        bail!("--n must be at least 1");
    }
    debian::install(&[debian::BUILD, &[debian::BUSYBOX]])?;
    let archive = image::make("busybox")?;
    let binary = shell::release()?;
    let mut node = Node::start(&binary, "boot")?;
    shell::read(&mut node.cli(&["image", "import", &archive.display().to_string()]))?;
    let signal = Signal::new(&node.dir.join("share/fifo"))?;
    for i in 0..PODS {
        let mut pod = manifest(&node, &format!("p{i}"), REST, false);
        // A container that was cut off runs again.
        pod["spec"]["restartPolicy"] = json!("Always");
        node.apply(&format!("p{i}.yaml"), &pod.to_string())?;
    }
    signal.wait(PODS, Instant::now())?;
    let all_run = |pods: &[Value]| pods.len() == PODS && pods.iter().all(running);
    node.wait("all run", Duration::from_secs(60), all_run)?;

    println!("{n} cold starts with {PODS} manifests …");
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for round in 1..=n {
        // A run that is cut off at its very beginning counts as a crash, and would have to wait for its back-off.
        sleep(Duration::from_secs(11));
        node.power_cut()?;
        // What was written is on its way to the disk; that is not what is measured.
        shell::read(&mut Command::new("sync"))?;
        let begin = node.launch()?;
        first.push(signal.wait(1, begin)?);
        last.push(signal.wait(PODS - 1, begin)?);
        node.wait_for_agent()?;
        let pods = node.wait("all run", Duration::from_secs(60), all_run)?;
        let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        if let Some(wrong) = pods.iter().find(|pod| restarts(pod) != Some(round)) {
            bail!("after {round} power cuts a container has {:?} restarts", restarts(wrong));
        }
    }
    node.finish()?;
    let (first, last) = (Samples::of(first), Samples::of(last));
    print(&[
        Row {
            what: "agent start → first pod's first instruction".into(),
            coracle: first.text(),
            other: format!("{PODS} manifests, warm page cache"),
            budget: format!("≤ {BUDGET_MS} ms"),
            kept: first.quantile(0.5) <= BUDGET_MS,
        },
        Row {
            what: "agent start → last pod's first instruction".into(),
            coracle: last.text(),
            other: "the same".into(),
            budget: "≤ 50 ms a pod more".into(),
            kept: last.quantile(0.5) <= BUDGET_MS + 50.0 * (PODS - 1) as f64,
        },
    ]);
    Ok(())
}
