//! A container: from the pod's spec and the image to a request to the shim.

use super::sandbox::{SHIM_TIMEOUT, machine_name, remove_file, remove_tree, shares_processes, write_private};
use super::{Error, Note, Runtime, make_dir, variables};
use crate::bundle::user::ResolvedUser;
use crate::bundle::{self, Mount, Namespaces, NodeFacts, PidNamespace};
use crate::image::{Held, Image};
use crate::pod::{Instance, Spec, StopCause, Stopping, User, is_from_api, resources};
use crate::shim::protocol::{Devices, Reply, Request, Rootfs, Run};
use crate::sys::{clock, fs};
use crate::volume;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long creating and starting a container may take.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of an image's `/etc/passwd` or `/etc/group` that are read.
const ACCOUNTS_MAX: u64 = 4 * 1024 * 1024;

/// A container's spec, and what goes to the shim besides it.
struct Made {
    oci: oci_spec::runtime::Spec,
    stage: volume::Stage,
    user: ResolvedUser,
    devices: Devices,
    /// The images of its volumes, kept until the run's record names them.
    volumes: Vec<Held>,
}

impl Runtime {
    pub(super) fn run_container(
        &self,
        spec: &Spec,
        name: &str,
        attempt: u32,
        backoff_ms: u64,
    ) -> Result<Vec<Note>, Error> {
        let container = spec.container(name).ok_or_else(|| Error::Missing(format!("container {name}")))?;
        let uid = spec.uid();
        let reference = container.image.clone().unwrap_or_default();
        // Nothing removes it before the run's record says that it is used.
        let image = self.images.hold(&reference).ok_or_else(|| Error::NoImage(reference.clone()))?;
        self.images.check(&image)?;
        let shim = self.shim(uid).ok_or_else(|| Error::Missing(format!("the shim of pod {}", spec.key())))?;
        let pod = self.record(uid)?;
        let seen = pod.as_ref().map(|record| record.seen.as_ref().map_or(record.start_time, |seen| seen.at));
        let id = container_id(uid, seen, name, attempt);
        let round = pod.as_ref().map_or(0, |record| record.round);
        if let Some(pod) = pod.filter(|pod| !pod.resize_restarts.is_empty()) {
            self.settle_resize(pod)?;
        }
        let record = self.layout.instance(uid, name, attempt);
        let dir = self.layout.container(uid, name);
        make_dir(&dir, 0o750)?;
        let log = self.layout.log(spec.pod(), name, attempt);
        make_dir(log.parent().unwrap_or(Path::new("/")), 0o755)?;
        let target = self.layout.rootfs(uid, name, attempt);
        let bundle = self.layout.bundle(uid, name, attempt);
        make_dir(&bundle, 0o700)?;
        let Made { oci, stage, user, devices, volumes } =
            self.oci_spec(spec, container, &image, &id, attempt, &target)?;
        // Variables may hold what is secret.
        let config = bundle.join("config.json");
        let saved =
            serde_json::to_vec(&oci).map_err(std::io::Error::from).and_then(|text| write_private(&config, &text));
        saved.map_err(|source| Error::File { what: "write", path: config.clone(), source })?;
        let request = Request::Run(Box::new(Run {
            instance: Instance {
                id: id.clone(),
                container: name.to_owned(),
                attempt,
                image: reference,
                image_id: image.id.clone(),
                volume_images: volumes.iter().map(|image| image.id.clone()).collect(),
                round,
                backoff_ms,
                created: clock::wall(),
                pid: 0,
                pid_start: 0,
                boot_id: String::new(),
                started: None,
                terminated: None,
                user: Some(User { uid: user.uid, gid: user.gid, groups: user.groups }),
                clock: Some(clock::present()),
            },
            record,
            bundle,
            rootfs: Rootfs {
                layers: image.layers.clone(),
                upper: dir.join(attempt.to_string()).join("upper"),
                work: dir.join(attempt.to_string()).join("work"),
                target,
            },
            stage,
            devices,
            log: log.clone(),
            log_max_bytes: self.log_max_bytes,
            log_max_files: self.log_max_files,
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
        }));
        let reply = shim.call(&request, RUN_TIMEOUT)?;
        self.link_log(spec, name, &id, &log);
        self.release_ended(spec, name, attempt);
        match reply {
            // Without a record the plan would start it again and again.
            Reply::Started { .. } if !self.instances(uid, name).iter().any(|run| run.id == id) => {
                Err(Error::Missing(format!("the record of run {attempt} of container {name}")))
            }
            Reply::Started { .. } => Ok(vec![
                Note::normal("Created", format!("Container created: {name}")).about(name),
                Note::normal("Started", format!("Container started: {name}")).about(name),
            ]),
            // The failure is in the record: the plan treats it as a run that ended.
            Reply::Error { message } if self.layout.instance(uid, name, attempt).exists() => {
                Ok(vec![Note::warning("Failed", format!("Error: {message}")).about(name)])
            }
            Reply::Error { message } => Err(Error::Start(message)),
            Reply::Done | Reply::List { .. } | Reply::Devices { .. } | Reply::Attached { .. } => {
                Err(Error::Start("the shim gave a wrong answer".into()))
            }
        }
    }

    /// A convenience for people and log collectors: a container runs without it.
    fn link_log(&self, spec: &Spec, name: &str, id: &str, log: &Path) {
        let link = self.layout.container_link(spec.pod(), name, id);
        match std::os::unix::fs::symlink(log, &link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                tracing::warn!(link = %link.display(), %error, "cannot link the log");
            }
            _ => {}
        }
    }

    /// The ID of a run that has a record.
    fn recorded_id(&self, uid: &str, name: &str, attempt: u32) -> Option<String> {
        self.instances(uid, name).into_iter().find(|run| run.attempt == attempt).map(|run| run.id)
    }

    /// Earlier runs need no root file system any more; their records and logs stay.
    fn release_ended(&self, spec: &Spec, name: &str, attempt: u32) {
        let Some(before) = attempt.checked_sub(1) else { return };
        let Some(id) = self.recorded_id(spec.uid(), name, before) else { return };
        if let Some(shim) = self.shim(spec.uid())
            && let Err(error) = shim.call(&Request::Delete { id }, SHIM_TIMEOUT)
        {
            tracing::debug!(error = super::chain(&error), "an ended run is not released yet");
        }
    }

    pub(super) fn stop_container(&self, spec: &Spec, name: &str, id: &str, grace_ms: u64) -> Result<Vec<Note>, Error> {
        let shim = self.shim(spec.uid()).ok_or_else(|| Error::Missing(format!("the shim of pod {}", spec.key())))?;
        let run = self.instances(spec.uid(), name).into_iter().find(|r| r.id == id);
        let image = run.as_ref().and_then(|r| self.images.known(&r.image_id));
        let signal = image.and_then(|i| stop_signal(&i)).unwrap_or(libc::SIGTERM);
        // Asked before it is written down: an agent that dies in between asks again, and the shim, which has sent the
        // signal already, does not send it twice. The other way round the signal would be lost.
        let asked = clock::now();
        let reply = shim.call(&Request::Stop { id: id.to_owned(), signal, grace_ms }, SHIM_TIMEOUT)?;
        if let Reply::Error { message } = reply {
            // A record of a run that the shim never saw, or has forgotten, is wrong.
            let run = self.instances(spec.uid(), name).into_iter().find(|r| r.id == id && r.is_running());
            if let Some(run) = run {
                self.end_unseen(spec.uid(), run, &message)?;
            }
            return Ok(vec![Note::warning("Failed", format!("Error stopping container: {message}")).about(name)]);
        }
        if let Some(run) = run {
            let grace = SignedDuration::from_millis(i64::try_from(grace_ms).unwrap_or(i64::MAX / 2));
            self.advance(spec.uid(), name, run.attempt, |progress| {
                let begun = Stopping { cause: StopCause::Pod, begun: asked, grace_ms, kill_at: None };
                let kill_at = asked.checked_add(grace).unwrap_or(Timestamp::MAX);
                progress.stopping.get_or_insert(begun).kill_at = Some(kill_at);
            })?;
        }
        // Why it stops was told when that began.
        Ok(Vec::new())
    }

    pub(super) fn forget(&self, spec: &Spec, name: &str, attempt: u32) -> Result<Vec<Note>, Error> {
        let uid = spec.uid();
        let Some(id) = self.recorded_id(uid, name, attempt) else { return Ok(Vec::new()) };
        if let Some(shim) = self.shim(uid) {
            // An error is a run that the shim has forgotten already.
            shim.call(&Request::Delete { id: id.clone() }, SHIM_TIMEOUT)?;
        }
        let dir = self.layout.container(uid, name);
        remove_tree(&dir.join(attempt.to_string()))?;
        remove_tree(&self.layout.bundle(uid, name, attempt))?;
        remove_file(&dir.join(format!("{attempt}.message")))?;
        remove_file(&self.layout.progress(uid, name, attempt))?;
        remove_file(&self.layout.container_link(spec.pod(), name, &id))?;
        let log = self.layout.log(spec.pod(), name, attempt);
        let prefix = format!("{attempt}.log");
        let logs = log.parent().and_then(|dir| std::fs::read_dir(dir).ok());
        for entry in logs.into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            if file == prefix || file.starts_with(&format!("{prefix}.")) {
                remove_file(&entry.path())?;
            }
        }
        // Last: while the record is there, this is done again.
        remove_file(&self.layout.instance(uid, name, attempt))?;
        Ok(Vec::new())
    }

    fn oci_spec(
        &self,
        spec: &Spec,
        container: &Container,
        image: &Image,
        id: &str,
        attempt: u32,
        rootfs: &Path,
    ) -> Result<Made, Error> {
        let (uid, pod) = (spec.uid(), spec.pod());
        let record = self.record(uid)?.ok_or_else(|| Error::Missing(format!("the record of pod {uid}")))?;
        let sandbox = record.sandbox.ok_or_else(|| Error::Missing(format!("the sandbox of pod {uid}")))?;
        let ips = if spec.host_network() { &self.machine.host_ips } else { &sandbox.ips };
        let volumes = volume::set_up(pod, &self.layout.volumes(uid), &self.given(pod))?;
        let mut mounts = bundle::of_container(container, &volumes)?;
        let taken: Vec<PathBuf> = mounts.iter().map(|m| m.destination.clone()).collect();
        let mut add = |source: PathBuf, destination: &str| {
            if !taken.iter().any(|t| t == Path::new(destination)) {
                mounts.push(Mount { source, destination: destination.into(), ..Mount::default() });
            }
        };
        let dir = self.layout.pod(uid);
        if let Some(hosts) = self.write_hosts(spec, if spec.host_network() { &[] } else { ips })? {
            add(hosts, "/etc/hosts");
        }
        add(dir.join("resolv.conf"), "/etc/resolv.conf");
        add(dir.join("hostname"), "/etc/hostname");
        if spec.spec().host_ipc != Some(true) {
            add(self.layout.run_pod(uid).join("shm"), "/dev/shm");
        }
        if let Some(path) = container.termination_message_path.as_deref().filter(|p| !p.is_empty()) {
            let message = self.layout.container(uid, &container.name).join(format!("{attempt}.message"));
            write_shared(&message)?;
            add(message, path);
        }
        let config = image.config.config().as_ref();
        let image_user = config.and_then(|c| c.user().clone()).unwrap_or_default();
        let user = bundle::user::resolve(
            pod,
            container,
            &image_user,
            &read_accounts(&image.layers, "etc/passwd"),
            &read_accounts(&image.layers, "etc/group"),
        )?;
        let ns = self.layout.namespaces(uid);
        let own_net = !spec.host_network();
        let users = self.user_namespace(spec)?;
        if let Some(users) = &users {
            super::userns::check(users, &user, &mounts)?;
        }
        let own_users = users.is_some();
        let namespaces = Namespaces {
            net: own_net.then(|| ns.join("net")),
            ipc: (spec.spec().host_ipc != Some(true)).then(|| ns.join("ipc")),
            uts: own_net.then(|| ns.join("uts")),
            pid: match spec.spec().host_pid {
                Some(true) => PidNamespace::Host,
                _ if shares_processes(spec) => PidNamespace::Shared(ns.join("pid")),
                _ => PidNamespace::Private,
            },
            user: users,
        };
        let privileged = container.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
        let devices = if privileged {
            let dev = Path::new("/dev");
            let failed = |source| Error::File { what: "list", path: dev.to_owned(), source };
            volume::devices::list(dev).map_err(failed)?
        } else {
            Vec::new()
        };
        let mut node = NodeFacts {
            seccomp_profiles: self.seccomp_profiles(pod, container)?,
            apparmor: self.apparmor_facts(pod, container),
            ..self.node_facts(devices)
        };
        if own_users {
            // Devices are bound there, as none can be made, and libcontainer could not replace this one by its link.
            node.devices.retain(|device| device.path() != Path::new("/dev/ptmx"));
            // Whoever joins a user namespace holds all capabilities in it, whatever it held outside.
            node.capabilities = u64::MAX;
        }
        let hostname = if own_net { self.hostname(spec)?.for_kernel()? } else { machine_name() };
        let supply = self.supply_or_none(pod);
        if supply.services.is_none() && is_from_api(pod) {
            // As kubelet.
            let why = "services have not yet been read at least once, cannot construct envvars";
            return Err(bundle::Error::Reference(why.to_owned()).into());
        }
        let sources = variables::sources(pod, container, &volumes, &supply);
        let input = bundle::Input {
            pod,
            container,
            image: &image.config,
            user: &user,
            hostname: &hostname,
            ips,
            host_ips: &self.machine.host_ips,
            node_name: &self.node_name,
            sources: &sources,
            mounts: &mounts,
            namespaces: &namespaces,
            cgroup_path: &resources::container_cgroup(&sandbox.cgroup, id),
            rootfs,
            node: &node,
        };
        let mut mounts = bundle::expand_sub_paths(&input)?;
        let volumes = RefCell::new(Vec::new());
        let stage = volume::stage(&mut mounts, &self.layout.stage(uid), |reference| {
            let image = self.images.hold(reference).ok_or_else(|| absent(spec, reference))?;
            self.images.check(&image)?;
            let layers = image.layers.clone();
            volumes.borrow_mut().push(image);
            Ok::<_, Error>(layers)
        })?;
        let mut oci = bundle::build(&bundle::Input { mounts: &mounts, ..input })?;
        let devices = self.give_devices(pod, container, &mut oci)?;
        Ok(Made { oci, stage, user, devices, volumes: volumes.into_inner() })
    }

    pub(super) fn node_facts(&self, devices: Vec<oci_spec::runtime::LinuxDevice>) -> NodeFacts {
        NodeFacts {
            cpus: u32::try_from(self.machine.cpus).unwrap_or(u32::MAX),
            memory: self.resources.capacity.memory,
            allocatable: self.resources.allocatable.of_fields(),
            cgroups: self.container_cgroups.clone(),
            swap_limits: self.limits_swap(),
            enforcement: self.resources.enforcement,
            single_process_oom_kill: self.resources.single_process_oom_kill,
            capabilities: self.machine.capabilities,
            min_oom_score_adj: self.min_oom_score_adj,
            nofile: self.machine.nofile,
            selinux: self.selinux,
            device_rules: self.device_rules,
            seccomp_unconfined: !self.seccomp_default,
            devices,
            ..NodeFacts::default()
        }
    }
}

/// As kubelet: the containers that mount it wait for the image of a volume as for their own.
fn absent(spec: &Spec, reference: &str) -> Error {
    let mut images = spec.spec().volumes.iter().flatten().filter_map(|v| v.image.as_ref());
    let never = |i: &ImageVolumeSource| i.pull_policy.as_deref() == Some("Never");
    match images.find(|i| i.reference.as_deref() == Some(reference)).is_some_and(never) {
        true => Error::NeverPull(reference.to_owned()),
        false => Error::NoImage(reference.to_owned()),
    }
}

/// Stable, so that asking twice makes nothing twice; another one when a pod of the same uid begins anew (`seen`: when the
/// node first saw it), as logs and metrics are told apart by it.
fn container_id(uid: &str, seen: Option<Timestamp>, container: &str, attempt: u32) -> String {
    let seen = seen.map_or(0, Timestamp::as_nanosecond);
    let digest = Sha256::digest(format!("{uid}/{seen}/{container}/{attempt}"));
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// The image's STOPSIGNAL, by name or number.
fn stop_signal(image: &Image) -> Option<i32> {
    let text = image.config.config().as_ref()?.stop_signal().clone()?;
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset.parse::<i32>().ok().filter(|n| (0..=30).contains(n)).map(|n| 34 + n);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

/// A file of the image, from the topmost layer that has it; empty when none has.
fn read_accounts(layers: &[PathBuf], path: &str) -> String {
    for layer in layers.iter().rev() {
        let Ok(dir) = fs::Dir::open(layer) else { continue };
        let file = match dir.open_beneath(OsStr::new(path)) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            // A whiteout: the layers below do not count. Anything else is no file to believe.
            Err(_) => return String::new(),
        };
        let bytes = fs::read_file_limited(file, ACCOUNTS_MAX).unwrap_or_default();
        return String::from_utf8_lossy(&bytes).into_owned();
    }
    String::new()
}

/// The termination message's file: as kubelet, 0666, because the container's user writes to it.
fn write_shared(path: &Path) -> Result<(), Error> {
    let write = || {
        std::fs::write(path, "")?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
    };
    write().map_err(|source| Error::File { what: "write", path: path.to_owned(), source })
}
