//! `cargo xtask cluster`: Kubernetes' own control plane, built from its published Go modules (`tests/controlplane`), and run
//! on the loopback to play with. The tests start theirs themselves.

use crate::shell;
use anyhow::{Context, Result, bail};
use arguments::{AUDIT, PARTS, Place, arguments};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

#[path = "../../tests/node/cluster/arguments.rs"]
mod arguments;

/// Of Kubernetes: 1.`VERSION`.
pub const VERSION: &str = "36.3";
/// What the modules of that Kubernetes want: Go 1.`GO`.
const GO: u32 = 26;
/// Where the API server of `up` listens.
const ENDPOINT: &str = "127.0.0.1:16443";

/// Where the program with the whole control plane is found, or comes to be.
enum Source {
    /// `CORACLE_CONTROLPLANE` names it.
    Named(PathBuf),
    /// It was built from what is there now.
    Cached(PathBuf),
    /// It is to be built, and marked with this digest.
    Due(String),
}

/// `target/<name>`: the program, and beside it what it was made from.
fn built(name: &str) -> (PathBuf, PathBuf) {
    let dir = shell::root().join("target").join(name);
    (dir.join(name), dir.join("stamp"))
}

fn modules() -> PathBuf {
    shell::root().join("tests/controlplane")
}

/// What [`build`] will do; fails, before anything else takes its time, where that cannot work.
fn source() -> Result<Source> {
    if let Some(named) = std::env::var_os("CORACLE_CONTROLPLANE").map(PathBuf::from) {
        if !named.is_file() {
            bail!("CORACLE_CONTROLPLANE: there is no file {}", named.display());
        }
        return Ok(Source::Named(named));
    }
    cached("controlplane", &modules())
}

/// Whether a program of a folder of Go's is to be built.
fn cached(name: &str, modules: &Path) -> Result<Source> {
    let (out, stamp) = built(name);
    let due = digest(modules, &flags())?;
    if out.is_file() && fs::read_to_string(stamp).is_ok_and(|done| done == due) {
        return Ok(Source::Cached(out));
    }
    let mut version = Command::new("go");
    // There, because go.mod may have this Go fetch another one.
    version.args(["env", "GOVERSION"]).current_dir(modules).stdin(Stdio::null());
    let found = version.output().ok().filter(|out| out.status.success());
    let found = found.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    if !found.as_deref().is_some_and(is_new_enough) {
        let found = found.map_or("there is no `go` that works on the PATH".to_owned(), |v| format!("this is {v}"));
        bail!(
            "the tests' {name} is built with Go 1.{GO} or newer, and {found}\n\
             hint: https://go.dev/dl; or name a built one: CORACLE_{}=FILE{}",
            name.to_uppercase(),
            if name == "controlplane" {
                ", or KUBEBUILDER_ASSETS=FOLDER with\n\
                 etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubeadm and kubectl"
            } else {
                ""
            }
        );
    }
    Ok(Source::Due(due))
}

/// Of `go env GOVERSION`: `go1.26.3`, `go1.27rc1`; a development version is taken for new.
fn is_new_enough(version: &str) -> bool {
    let Some(numbers) = version.strip_prefix("go1.") else { return version.starts_with("devel") };
    let minor: String = numbers.chars().take_while(char::is_ascii_digit).collect();
    minor.parse::<u32>().is_ok_and(|minor| minor >= GO)
}

/// Fails where tests against a control plane could not have one; builds nothing.
pub fn check() -> Result<()> {
    if std::env::var_os("CORACLE_CONTROLPLANE").is_none() && std::env::var_os("KUBEBUILDER_ASSETS").is_some() {
        return Ok(());
    }
    source().map(drop)
}

/// Has the tests that `command` runs find a control plane, which is built where that is due.
pub fn provide(command: &mut Command) -> Result<()> {
    // The programs that KUBEBUILDER_ASSETS names are found by the tests themselves.
    if std::env::var_os("KUBEBUILDER_ASSETS").is_none() {
        command.env("CORACLE_CONTROLPLANE", build()?);
    }
    Ok(())
}

/// The program with the whole control plane: what `CORACLE_CONTROLPLANE` names, else it is built where that is due.
pub fn build() -> Result<PathBuf> {
    made("controlplane", &modules(), source()?)
}

/// A program of a folder of Go's, in which Kubernetes' modules are: it is built where that is due.
pub fn go_program(name: &str, modules: &Path) -> Result<PathBuf> {
    made(name, modules, cached(name, modules)?)
}

fn made(name: &str, modules: &Path, source: Source) -> Result<PathBuf> {
    let due = match source {
        Source::Named(path) | Source::Cached(path) => return Ok(path),
        Source::Due(due) => due,
    };
    let (out, stamp) = built(name);
    fs::create_dir_all(shell::root().join("target").join(name))?;
    println!("Kubernetes 1.{VERSION} from its modules: ten minutes the first time");
    let mut build = Command::new("go");
    build.args(["build", "-trimpath", "-ldflags", &flags(), "-o"]).arg(&out).arg(".").current_dir(modules);
    shell::step(build.env("CGO_ENABLED", "0").env("GOFLAGS", ""))?;
    fs::write(&stamp, due)?;
    Ok(out)
}

/// What the programs say of themselves: what a release says, as kubeadm and kubectl look at it.
fn flags() -> String {
    let mut text = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        let minor = VERSION.split('.').next().unwrap_or_default();
        text += &format!(" -X {package}.gitVersion=v1.{VERSION} -X {package}.gitMajor=1 -X {package}.gitMinor={minor}");
    }
    text
}

/// Of everything that the program is made from.
pub fn digest(source: &Path, flags: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(flags);
    let mut files: Vec<PathBuf> = fs::read_dir(source)
        .with_context(|| source.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    for file in files.iter().filter(|file| file.is_file()) {
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(fs::read(file).with_context(|| file.display().to_string())?);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// One of its programs.
pub fn program(built: &Path, name: &str) -> Command {
    let mut command = Command::new(built);
    command.arg(name);
    command
}

/// Runs one of kubeadm's phases, without a word when it works.
pub fn phase(built: &Path, arguments: &str, more: &[String]) -> Result<String> {
    let mut command = program(built, "kubeadm");
    command.args(["init", "phase"]).args(arguments.split_whitespace()).args(more);
    shell::read(&mut command)
}

fn dir() -> PathBuf {
    shell::root().join("target/cluster")
}

/// Starts a control plane on the loopback, which stays.
pub fn up() -> Result<()> {
    let (built, dir) = (build()?, dir());
    if !running()?.is_empty() {
        bail!("it is up already; KUBECONFIG={}/admin.conf\nhint: cargo xtask cluster down", dir.display());
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("audit.yaml"), AUDIT)?;
    // Of the networks for documentation: the API server does not call itself by an address of the loopback.
    let place = Place {
        dir: &dir,
        bind: "127.0.0.1",
        advertise: "192.0.2.1",
        port: 16443,
        etcd: 12379,
        controllers: 11257,
        services: "10.96.0.0/12",
    };
    let common = [
        format!("--kubernetes-version=v1.{VERSION}"),
        format!("--apiserver-advertise-address={}", place.advertise),
        format!("--control-plane-endpoint={ENDPOINT}"),
        format!("--cert-dir={}", dir.display()),
    ];
    let more = |text: &str| [&common[..], &[text.to_owned()]].concat();
    phase(&built, "certs all", &more("--apiserver-cert-extra-sans=127.0.0.1,localhost"))?;
    phase(&built, "kubeconfig all", &more(&format!("--kubeconfig-dir={}", dir.display())))?;
    let config = format!("--kubeconfig={}/super-admin.conf", dir.display());
    for part in PARTS {
        let log = fs::File::create(dir.join(format!("{part}.log")))?;
        let mut command = program(&built, part);
        command.args(arguments(&place, part)).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // It stays when the terminal is closed or Ctrl-C is typed.
        let mut child = command.process_group(0).spawn().with_context(|| part.to_owned())?;
        fs::write(dir.join(format!("{part}.pid")), child.id().to_string())?;
        if part == "kube-apiserver" {
            shell::wait("the API server is ready", Duration::from_secs(120), || {
                if let Some(status) = child.try_wait()? {
                    bail!("{part} ended: {status}\nhint: {}/{part}.log", dir.display());
                }
                let mut ready = program(&built, "kubectl");
                ready.args([&config, "get", "--raw", "/readyz"]).stdout(Stdio::null()).stderr(Stdio::null());
                Ok(ready.status()?.success())
            })?;
        }
    }
    // As kubeadm: who has the first file is a member of a group that may do everything, by a binding.
    let admins = ["create", "clusterrolebinding", "kubeadm:cluster-admins", "--clusterrole=cluster-admin"];
    shell::read(program(&built, "kubectl").arg(&config).args(admins).arg("--group=kubeadm:cluster-admins"))?;
    let file = dir.join("kubeadm.yaml");
    fs::write(&file, kubeadm_config())?;
    phase(&built, "bootstrap-token", &[config.clone(), format!("--config={}", file.display())])?;
    let line = ["token", "create", "--print-join-command"];
    let line = shell::read(program(&built, "kubeadm").args(line).arg(&config))?;
    println!("export KUBECONFIG={}/admin.conf", dir.display());
    println!("{}", line.trim().replacen("kubeadm join", "coracle join", 1));
    println!("(kubectl: {} kubectl; logs: {}; end: cargo xtask cluster down)", built.display(), dir.display());
    Ok(())
}

fn kubeadm_config() -> String {
    format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {{ advertiseAddress: 192.0.2.1 }}\n\
         ---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.{VERSION}\n\
         controlPlaneEndpoint: {ENDPOINT}\n"
    )
}

/// PIDs of the parts that run, by name.
fn running() -> Result<Vec<(&'static str, u32)>> {
    let dir = dir();
    let mark = format!("{}/", dir.display());
    let mut found = Vec::new();
    for part in PARTS {
        let Ok(text) = fs::read_to_string(dir.join(format!("{part}.pid"))) else { continue };
        let pid: u32 = text.trim().parse().with_context(|| format!("{part}.pid"))?;
        // The number may be somebody else's by now.
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(&mark) {
            found.push((part, pid));
        }
    }
    Ok(found)
}

/// Ends it, the database last, and forgets it.
pub fn down() -> Result<()> {
    for (part, _) in running()?.into_iter().rev() {
        let gone = || Ok(!running()?.iter().any(|(name, _)| *name == part));
        for signal in ["-TERM", "-KILL"] {
            let Some((_, pid)) = running()?.into_iter().find(|(name, _)| *name == part) else { break };
            Command::new("kill").args([signal, &pid.to_string()]).status()?;
            // An API server waits for its watches.
            if shell::wait(part, Duration::from_secs(20), gone).is_ok() {
                break;
            }
        }
    }
    match fs::remove_dir_all(dir()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go() {
        for new in ["go1.26", "go1.26.3", "go1.27rc1", "go1.100.1", "devel go1.27-abc"] {
            assert!(is_new_enough(new), "{new}");
        }
        for other in ["go1.25.9", "go1.4", "go1.2.26", "", "gcc"] {
            assert!(!is_new_enough(other), "{other}");
        }
    }
}
