//! Creating a container: the life of the throwaway process that calls libcontainer.
//!
//! libcontainer changes the working directory, the OOM score and dumpability of its caller and leaks descriptors and
//! zombies; all of that ends with the child that runs [`run`]. The container's init becomes the shim's own child.

use super::program::{Program, Refusal};
use super::protocol::{Rootfs, Run};
use super::userns::{Stage, Users};
use super::{devices, record, trace, volumes};
use crate::causes::distinct;
use crate::pod::Instance;
use crate::sys::fs::Dir;
use crate::sys::{clock, idmap, mount, process};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::LinuxDeviceCgroup;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// What the child tells the shim, one line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
pub(super) enum Report {
    /// The container will be in this cgroup.
    Cgroup { path: String },
    /// libcontainer, or the process that becomes the container, logged this error.
    Detail { text: String },
    /// User code runs.
    Started { instance: Box<Instance> },
    /// It does not, and why.
    Failed { reason: String, code: i32, message: String },
}

/// The container's ends of its standard streams.
pub(super) enum Stdio {
    /// Pipes, or /dev/null.
    Streams { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    /// Folder-independent path of the socket that wants the terminal's master.
    Terminal { console: PathBuf },
}

pub(super) struct Order<'a> {
    pub(super) run: &'a Run,
    /// libcontainer's root folder.
    pub(super) state: &'a Path,
    pub(super) boot_id: &'a str,
    /// What a container gets that asks for none.
    pub(super) oom_score_adj: i32,
    pub(super) stdio: Stdio,
    pub(super) report: OwnedFd,
    /// Where the machine's mounts are as the machine has them.
    pub(super) machine: &'a mount::Namespace,
}

/// What we need of `config.json`; libcontainer reads all of it.
#[derive(Deserialize)]
struct Config {
    process: ConfigProcess,
    linux: ConfigLinux,
}

#[derive(Deserialize)]
struct ConfigProcess {
    #[serde(default)]
    user: ConfigUser,
    #[serde(default)]
    cwd: PathBuf,
}

#[derive(Deserialize, Default)]
struct ConfigUser {
    #[serde(default)]
    uid: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigLinux {
    cgroups_path: Option<String>,
    #[serde(default)]
    namespaces: Vec<ConfigNamespace>,
    #[serde(default)]
    resources: ConfigResources,
}

#[derive(Deserialize, Default)]
struct ConfigResources {
    #[serde(default)]
    devices: Vec<LinuxDeviceCgroup>,
}

#[derive(Deserialize)]
struct ConfigNamespace {
    #[serde(rename = "type")]
    kind: String,
}

/// Mounts, creates, starts, reports. Returns the exit code of the throwaway child.
pub(super) fn run(order: Order<'_>) -> i32 {
    process::reset_signals();
    process::drop_groups();
    let report = match order.report.try_clone() {
        Ok(fd) => fs::File::from(fd),
        Err(_) => return 1,
    };
    if let Ok(fd) = order.report.try_clone() {
        trace::send_errors_to(fd);
    }
    let result = match start(order) {
        Ok(instance) => Report::Started { instance: Box::new(instance) },
        Err(failure) => failure,
    };
    match tell(&report, &result) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn tell(mut pipe: &fs::File, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    pipe.write_all(&line)
}

fn failed(what: &str, error: &dyn Error) -> Report {
    let text = distinct(error);
    match Refusal::find(&text) {
        Some(refusal) => {
            Report::Failed { reason: "ContainerCannotRun".into(), code: refusal.code, message: refusal.message }
        }
        None => Report::Failed { reason: "StartError".into(), code: 128, message: format!("{what}: {text}") },
    }
}

fn start(order: Order<'_>) -> Result<Instance, Report> {
    let run = order.run;
    // Raising is always allowed: a container must not inherit the shim's protection.
    let _ = process::set_oom_score_adj(order.oom_score_adj);
    prepare_root(&run.rootfs)?;
    let path = run.bundle.join("config.json");
    let text = fs::read(&path).map_err(|e| failed(&format!("cannot read {}", path.display()), &e))?;
    let unread = |e| failed(&format!("cannot read {}", path.display()), &e);
    let config: Config = serde_json::from_slice(&text).map_err(unread)?;
    let prepare = "cannot prepare the container for its user namespace";
    let mut users = None;
    if config.linux.namespaces.iter().any(|namespace| namespace.kind == "user") {
        let spec = serde_json::from_slice(&text).map_err(unread)?;
        users = Users::of(&spec).map_err(|e| failed(prepare, &e))?.map(|users| (users, spec));
    }
    let namespace = users.as_ref().map(|(users, _)| users.path.as_path());
    volumes::stage(&run.stage, order.machine, namespace).map_err(|e| failed("cannot prepare the volumes", &e))?;
    let (users, stage) = match users {
        Some((users, spec)) => {
            let stage = Stage::set(run, order.state, &users, spec).map_err(|e| failed(prepare, &e))?;
            (Some(users), Some(stage))
        }
        None => {
            mount_root(&run.rootfs)?;
            (None, None)
        }
    };
    let rootfs = stage.as_ref().map_or(&run.rootfs.target, |stage| &stage.root);
    refuse_linked_dev(rootfs)?;
    let make_cwd = || make_working_dir(rootfs, &config.process.cwd);
    users
        .as_ref()
        .map_or_else(make_cwd, |users| idmap::as_owner(users.first, make_cwd))
        .map_err(|e| failed(&format!("cannot make the working directory {}", config.process.cwd.display()), &e))?;
    let owner = users.as_ref().map_or(config.process.user.uid, |users| users.on_the_machine(config.process.user.uid));
    let cgroup = config.linux.cgroups_path;
    if let Some(path) = cgroup.clone() {
        tell(&fs::File::from(dup(&order.report)?), &Report::Cgroup { path }).map_err(|e| failed("report", &e))?;
    }
    let mut builder = ContainerBuilder::new(run.instance.id.clone(), SyscallType::default())
        .with_root_path(order.state)
        .and_then(ContainerBuilder::validate_id)
        .map_err(|e| failed("cannot create the container", &e))?
        .with_executor(Program::default());
    match order.stdio {
        Stdio::Streams { stdin, stdout, stderr } => {
            // So that a process of another user can open /dev/stdout, as under runc.
            for stream in [&stdin, &stdout, &stderr] {
                give(stream, owner);
            }
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
        Stdio::Terminal { console } => builder = builder.with_console_socket(Some(console)),
    }
    let mut container = builder
        .as_init(&run.bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(|e| failed("cannot create the container", &e))?;
    if let Some(stage) = stage {
        stage.leave().map_err(|e| failed("cannot go on after creating the container", &e))?;
    }
    let mut instance = run.instance.clone();
    instance.created = clock::wall();
    instance.clock = Some(clock::present());
    instance.boot_id = order.boot_id.to_owned();
    instance.pid = container.pid().map_or(0, |pid| pid.as_raw());
    instance.pid_start = process::start_ticks(instance.pid).map_err(|e| failed("the container's init ended", &e))?;
    record::write(&run.record, &instance, false).map_err(|e| failed("cannot write the container's record", &e))?;
    // Before user code runs, and after libcontainer has made the container's device nodes.
    if let Some(cgroup) = &cgroup {
        devices::enforce(cgroup, &config.linux.resources.devices)
            .map_err(|e| failed("cannot enforce the container's device rules", &e))?;
    }
    container.start().map_err(|e| failed("cannot start the container", &e))?;
    instance.started = Some(clock::wall());
    Ok(instance)
}

/// libcontainer makes links and files below `<rootfs>/dev` by plain path, before it changes the root: through an image's
/// link at `/dev` it would make them on the machine.
fn refuse_linked_dev(rootfs: &Path) -> Result<(), Report> {
    match fs::symlink_metadata(rootfs.join("dev")) {
        Ok(metadata) if !metadata.is_dir() => {
            let message =
                "the image's /dev is not a directory: that is refused, for it could lead out of the container";
            Err(Report::Failed { reason: "StartError".into(), code: 128, message: message.into() })
        }
        _ => Ok(()),
    }
}

/// As runc: a working directory that the image lacks is made, owned by root. Links are followed inside the root only.
fn make_working_dir(rootfs: &Path, cwd: &Path) -> io::Result<()> {
    let root = Dir::open(rootfs)?;
    let mut path = OsString::from("/");
    let mut parent = root.try_clone()?;
    for part in cwd.components() {
        let Component::Normal(name) = part else { continue };
        path.push(name);
        parent = match root.in_root(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                parent.mkdir(name, 0o755)?;
                root.in_root(&path)?
            }
            other => other?,
        };
        path.push("/");
    }
    Ok(())
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd, Report> {
    fd.try_clone().map_err(|e| failed("cannot duplicate a descriptor", &e))
}

/// Makes `uid` the owner of a pipe; /dev/null and the like keep theirs.
pub(super) fn give(stream: &OwnedFd, uid: u32) {
    let is_pipe = rustix::fs::fstat(stream)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo);
    if is_pipe && uid != 0 {
        let _ = rustix::fs::fchown(stream.as_fd(), Some(rustix::fs::Uid::from_raw(uid)), None);
    }
}

/// Makes the folders of a root file system.
fn prepare_root(rootfs: &Rootfs) -> Result<(), Report> {
    let make = |dir: &Path| {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| failed(&format!("cannot make {}", dir.display()), &e))
    };
    if !rootfs.upper.is_dir() {
        make(&rootfs.upper)?;
        // The merged root shows the upper folder's mode and owner: they must be the image's.
        if let Some(meta) = rootfs.layers.last().and_then(|top| fs::metadata(top).ok()) {
            let set = fs::set_permissions(&rootfs.upper, fs::Permissions::from_mode(meta.mode() & 0o7777))
                .and_then(|()| std::os::unix::fs::chown(&rootfs.upper, Some(meta.uid()), Some(meta.gid())));
            set.map_err(|e| failed("cannot prepare the writable layer", &e))?;
        }
    }
    make(&rootfs.work)?;
    make(&rootfs.target)
}

fn mount_root(rootfs: &Rootfs) -> Result<(), Report> {
    mount::overlay(&rootfs.layers, &rootfs.upper, &rootfs.work, &rootfs.target)
        .map_err(|e| failed("cannot mount the root file system", &e))
}
