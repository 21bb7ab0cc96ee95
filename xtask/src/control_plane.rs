//! `cargo xtask control-plane`: Kubernetes' own control plane, built from its Go modules, for the test that runs it from
//! kubeadm's manifests. It takes a Go toolchain and a good while, so nothing else depends on it.
//!
//! `k8s.io/kubernetes` refers to its staging modules by path, which only its own repository can follow: a module of ours
//! names their published versions instead.

use crate::shell;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Of Kubernetes; its staging modules are `v0` of the same.
const VERSION: &str = "36.3";
const PROGRAMS: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];

pub fn run() -> Result<()> {
    let dir = shell::root().join("target/control-plane");
    let work = dir.join("go");
    fs::create_dir_all(&work)?;
    let version = format!("k8s.io/kubernetes@v1.{VERSION}");
    // Outside of any module: the first one is only to learn what the others are.
    let told = shell::read(go(&work).args(["mod", "download", "-json", &version]).env("GOWORK", "off"))?;
    let told: serde_json::Value = serde_json::from_str(&told).context("go mod download -json")?;
    let path = told["GoMod"].as_str().context("go mod download names no go.mod")?;
    fs::write(work.join("go.mod"), module(&fs::read_to_string(path).with_context(|| path.to_owned())?))?;
    for program in PROGRAMS {
        let out = dir.join(program);
        let stamp = format!("-s -w -X k8s.io/component-base/version.gitVersion=v1.{VERSION}");
        let mut build = go(&work);
        build.args(["build", "-mod=mod", "-trimpath", "-ldflags", &stamp, "-o"]).arg(&out);
        shell::step(build.arg(format!("k8s.io/kubernetes/cmd/{program}")))?;
    }
    println!("CORACLE_CONTROL_PLANE={} cargo test --test node kubeadms_control_plane -- --ignored", dir.display());
    Ok(())
}

fn go(dir: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(dir).env("CGO_ENABLED", "0").env("GOFLAGS", "");
    command
}

/// Our `go.mod`, by Kubernetes'.
fn module(theirs: &str) -> String {
    let line = |word: &str| theirs.lines().find(|line| line.starts_with(word)).unwrap_or_default().to_owned();
    let mut text = format!(
        "module coracle.dev/control-plane\n\n{}\n\n{}\n\nrequire k8s.io/kubernetes v1.{VERSION}\n\nreplace (\n",
        line("go "),
        line("godebug "),
    );
    for staged in theirs.lines().filter(|line| line.contains("=> ./staging/src/")) {
        let name = staged.split_whitespace().next().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\t{name} => {name} v0.{VERSION}");
    }
    text.push_str(")\n");
    text
}
