//! `cargo xtask crictl`: crictl from its published Go module, for the tests. `cargo xtask proto`: the CRI's messages anew.

use crate::{cluster, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn modules() -> PathBuf {
    shell::root().join("tests/crictl")
}

/// Has the tests that `command` runs find crictl, which is built where that is due.
pub fn provide(command: &mut Command) -> Result<()> {
    command.env("CORACLE_CRICTL", build()?);
    Ok(())
}

/// What `CORACLE_CRICTL` names, else the program is built where that is due.
pub fn build() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CORACLE_CRICTL").map(PathBuf::from) {
        if !named.is_file() {
            bail!("CORACLE_CRICTL: there is no file {}", named.display());
        }
        return Ok(named);
    }
    let dir = shell::root().join("target/crictl");
    let (out, stamp) = (dir.join("crictl"), dir.join("stamp"));
    let due = cluster::digest(&modules(), FLAGS)?;
    if out.is_file() && fs::read_to_string(&stamp).is_ok_and(|done| done == due) {
        return Ok(out);
    }
    fs::create_dir_all(&dir)?;
    let mut build = Command::new("go");
    build.args(["build", "-trimpath", "-ldflags", FLAGS, "-o"]).arg(&out).arg(PACKAGE).current_dir(modules());
    shell::step(build.env("CGO_ENABLED", "0").env("GOFLAGS", ""))?;
    fs::write(&stamp, due)?;
    Ok(out)
}

const PACKAGE: &str = "sigs.k8s.io/cri-tools/cmd/crictl";
/// `crictl --version` says what it was built from.
const FLAGS: &str = "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=v1.36.0";

/// Writes `src/cri/v1.rs` from the proto of the Kubernetes version that the tests' control plane is.
pub fn proto() -> Result<()> {
    let module = "k8s.io/cri-api";
    let plane = shell::root().join("tests/controlplane");
    shell::read(Command::new("go").args(["mod", "download", module]).current_dir(&plane))?;
    let found = shell::read(Command::new("go").args(["list", "-m", "-f", "{{.Dir}}", module]).current_dir(&plane))?;
    let proto = Path::new(found.trim()).join("pkg/apis/runtime/v1/api.proto");
    if !proto.is_file() {
        bail!("there is no {}", proto.display());
    }
    Command::new(std::env::var_os("PROTOC").unwrap_or_else(|| "protoc".into()))
        .arg("--version")
        .output()
        .context("protoc\nhint: sudo apt-get install protobuf-compiler; or name one: PROTOC=FILE")?;
    let root = shell::root();
    let mut write = shell::cargo();
    write.args(["run", "--quiet", "--manifest-path"]).arg(root.join("xtask/proto/Cargo.toml"));
    write.arg("--target-dir").arg(root.join("target/proto")).arg("--").arg(proto).arg(root.join("src/cri/v1.rs"));
    shell::step(&mut write)
}
