//! `cargo xtask test`: everything that must hold before a change lands. Quick checks first, test summaries last.

use crate::{cluster, crictl, debian, image, kubectl, shell, tidy};
use anyhow::{Result, bail};

pub fn run(filter: &[&str]) -> Result<()> {
    debian::install(&[debian::BUILD, debian::TESTS])?;
    // Before the checks, which take minutes.
    cluster::check()?;
    if filter.is_empty() {
        shell::step(shell::cargo().args(["fmt", "--all", "--check"]))?;
        println!("tidy: the layers and rules of src/");
        tidy::run()?;
        shell::step(shell::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    }
    if !shell::is_root() {
        bail!(
            "the privileged tests need root (CAP_SYS_ADMIN, CAP_NET_ADMIN)\nhint: sudo -E cargo xtask test; or: cargo test --lib"
        );
    }
    // More than there are cores: each test has a node of its own, and waits more than it works.
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let threads = std::env::var("CORACLE_TEST_THREADS").unwrap_or_else(|_| (2 * cores).clamp(4, 16).to_string());
    shell::step(shell::cargo().args(["test", "--package", "xtask", "--"]).args(filter))?;
    shell::step(shell::cargo().args(["test", "--package", "coracle", "--lib", "--"]).args(filter))?;
    let mut tests = shell::cargo();
    tests.env("CORACLE_NGINX_IMAGE", image::make("nginx")?);
    tests.env("CORACLE_NODE_EXPORTER_IMAGE", image::make("node-exporter")?);
    cluster::provide(&mut tests)?;
    tests.env("CORACLE_KUBECTL", kubectl::fetch()?);
    crictl::provide(&mut tests)?;
    shell::step(
        tests
            .args(["test", "--package", "coracle", "--test", "node", "--"])
            .arg(format!("--test-threads={threads}"))
            .args(filter),
    )
}
