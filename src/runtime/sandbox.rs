//! A pod's sandbox: folders, volumes, cgroup, namespaces, network, shim; made in this order, undone in reverse.

use super::{Error, Note, Runtime, make_dir};
use crate::net::hostname::Hostname;
use crate::net::{PortMapping, Protocol, hosts, resolv};
use crate::pod::{Deletion, Finished, Instance, Key, Record, SandboxRecord, Spec, Termination, resources, sysctl};
use crate::shim::{
    self,
    protocol::{Reply, Request},
};
use crate::store;
use crate::sys::{clock, fs, namespace};
use crate::volume;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a shim may take to answer a request that is not about starting a container.
pub(super) const SHIM_TIMEOUT: Duration = Duration::from_secs(10);
/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

impl Runtime {
    pub(super) fn create_sandbox(&self, spec: &Spec) -> Result<Vec<Note>, Error> {
        let (uid, pod) = (spec.uid(), spec.pod());
        let now = clock::now();
        let sysctls = sysctl::check(spec.spec(), &self.allowed_sysctls, &self.machine.kernel)?;
        make_dir(&self.layout.pod(uid), 0o750)?;
        make_dir(&self.layout.run_pod(uid), 0o700)?;
        let mut record = self.record(uid).ok().flatten().unwrap_or_else(|| Record {
            pod: pod.clone(),
            start_time: now,
            seen: Some(clock::seen()),
            sandbox: None,
            sandbox_attempts: 0,
            finished: None,
            deletion: None,
            round: 0,
            restart_all: 0,
            resize_restarts: std::collections::BTreeSet::new(),
            clock: None,
        });
        record = clock::recall(record);
        if Key::of(&record.pod) != spec.key() {
            // Two names with one pinned uid: the paths are the other's until it is gone.
            return Err(Error::UidInUse(Key::of(&record.pod).to_string()));
        }
        record.pod = pod.clone();
        // As kubelet: when the pod was first seen, with nine digits.
        let seen = format!("{:.9}", record.seen.as_ref().map_or(now, |seen| seen.at));
        record.pod.metadata.annotations.get_or_insert_default().insert("kubernetes.io/config.seen".into(), seen);
        let qos = resources::qos(pod)?;
        let cgroup = resources::pod_cgroup(&self.cgroup_root, qos, uid);
        if record.sandbox_attempts > 0 {
            // As kubelet: with a new sandbox, init containers run again.
            record.round = record.round.saturating_add(1);
        }
        record.sandbox_attempts = record.sandbox_attempts.saturating_add(1);
        record.sandbox = Some(SandboxRecord {
            created: now,
            boot_id: self.machine.boot_id.clone(),
            ips: Vec::new(),
            cgroup: cgroup.clone(),
        });
        // Whatever the records say: before there is a sandbox, nothing of this pod runs.
        self.cut_off(spec, "its sandbox is gone")?;
        // Written before anything is made, so that whatever exists after a crash belongs to a recorded sandbox.
        self.save(&record)?;
        volume::set_up(pod, &self.layout.volumes(uid), &self.given(pod))?;
        self.set_up_cgroups(spec, qos, &cgroup)?;
        let host_network = spec.host_network();
        let kinds =
            namespace::Kinds { net: !host_network, ipc: spec.spec().host_ipc != Some(true), uts: !host_network };
        let name = self.hostname(spec)?;
        let kernel_name = if host_network { machine_name() } else { name.for_kernel()? };
        let ns = self.layout.namespaces(uid);
        let kernel_hostname = (!host_network).then_some(kernel_name.as_str());
        match self.allocate_users(spec)? {
            Some(first) => namespace::create_owned(&ns, kinds, first, kernel_hostname, &sysctls),
            None => namespace::create(&ns, kinds, kernel_hostname, &sysctls),
        }
        .map_err(Error::Namespace)?;
        if spec.spec().host_ipc != Some(true) {
            mount_shm(&self.layout.run_pod(uid).join("shm"))?;
        }
        let mut notes = Vec::new();
        if !host_network {
            let attachment = self.net.attach(uid, &ns.join("net"), &port_mappings(spec))?;
            if let Some(sandbox) = &mut record.sandbox {
                sandbox.ips = attachment.ips;
            }
            self.save(&record)?;
        }
        notes.extend(self.write_names(spec, &kernel_name)?);
        let client = shim::Client::spawn(shim::SpawnOptions {
            exe: None,
            run_dir: self.layout.run_pod(uid),
            uid: uid.to_owned(),
            log: Some(self.layout.run_pod(uid).join("shim.log")),
            cgroup: Some(self.shim_cgroup(uid)),
            pause: shares_processes(spec).then(|| format!("{cgroup}/pause")),
        })?;
        self.remember(uid, &Arc::new(client));
        Ok(notes)
    }

    fn set_up_cgroups(&self, spec: &Spec, qos: resources::Qos, cgroup: &str) -> Result<(), Error> {
        self.set_up_node_cgroups(qos)?;
        let settings = self.resources.enforcement.pod(spec.pod())?;
        self.cgroups.ensure(cgroup, &settings).map_err(|source| Error::Cgroup { path: cgroup.to_owned(), source })
    }

    /// `hostname` and `resolv.conf` of the pod. (`etc-hosts` is written at each container start, as kubelet.)
    fn write_names(&self, spec: &Spec, hostname: &str) -> Result<Vec<Note>, Error> {
        let dir = self.layout.pod(spec.uid());
        let node_resolv = self.resolv_conf.as_ref().map(|path| std::fs::read_to_string(path).unwrap_or_default());
        let resolv = resolv::render(
            spec.spec(),
            &spec.key().namespace,
            &resolv::Facts {
                node_resolv_conf: node_resolv.as_deref(),
                node_ips: &self.machine.host_ips,
                cluster_dns: &self.cluster_dns,
                cluster_domain: &self.cluster_domain,
            },
        );
        write_file(&dir.join("resolv.conf"), resolv.text.as_bytes())?;
        write_file(&dir.join("hostname"), format!("{hostname}\n").as_bytes())?;
        // A node on its own has no cluster DNS, and ClusterFirst is the default: nothing that needs attention.
        let alone = self.cluster_dns.is_empty();
        let warnings = resolv.warnings.into_iter().filter(|w| !(alone && w.reason == "MissingClusterDNS"));
        Ok(warnings.map(|w| Note::warning(w.reason, w.message)).collect())
    }

    /// The pod's name and domain.
    pub(super) fn hostname(&self, spec: &Spec) -> Result<Hostname, Error> {
        let key = spec.key();
        Ok(crate::net::hostname(spec.spec(), &key.name, &key.namespace, &self.cluster_domain)?)
    }

    /// The pod's `/etc/hosts`; `None` when the pod gets none.
    pub(super) fn write_hosts(
        &self,
        spec: &Spec,
        ips: &[std::net::IpAddr],
    ) -> Result<Option<std::path::PathBuf>, Error> {
        let node = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let text = hosts::render(spec.spec(), &self.hostname(spec)?, ips, &node);
        let Some(text) = text else { return Ok(None) };
        let path = self.layout.pod(spec.uid()).join("etc-hosts");
        write_file(&path, text.as_bytes())?;
        Ok(Some(path))
    }

    pub(super) fn mark_deleting(&self, spec: &Spec, grace_seconds: u64) -> Result<Vec<Note>, Error> {
        self.change(spec.uid(), |record| {
            record.deletion = Some(Deletion { started: clock::now(), grace_seconds });
        })?;
        Ok(Vec::new())
    }

    /// All runs so far count as removed: the pod's containers start over, init containers first.
    pub(super) fn restart_all(&self, spec: &Spec, trigger: &str) -> Result<Vec<Note>, Error> {
        self.change(spec.uid(), |record| {
            record.round = record.round.saturating_add(1);
            record.restart_all = record.round;
        })?;
        let message = format!("Container {trigger} ended as its restartPolicyRules foresee: all containers restart");
        Ok(vec![Note::normal("RestartingAllContainers", message).about(trigger)])
    }

    pub(super) fn finish(&self, spec: &Spec, finished: Finished) -> Result<Vec<Note>, Error> {
        let Some(mut record) = self.record(spec.uid())? else { return Ok(Vec::new()) };
        record.finished = Some(finished);
        // Acknowledged once it is seen: a finished job must not run again after a power cut.
        store::write(&self.layout.record(spec.uid()), &inscribed(&record), 0o600)?;
        Ok(Vec::new())
    }

    /// Kill what a lost shim left, record what was cut off, and free the sandbox's names.
    pub(super) fn reset_sandbox(&self, spec: &Spec, why: &str) -> Result<Vec<Note>, Error> {
        let uid = spec.uid();
        self.lost(uid);
        let last_words = last_words(&self.layout.run_pod(uid).join("shim.log"));
        self.kill_leftovers(uid, spec)?;
        let lost = self.cut_off(spec, why)?;
        // Its containers may all have been seen to end before the sandbox was.
        let round = self.record(uid)?.map(|record| record.round);
        let ran =
            spec.all_containers().any(|c| self.instances(uid, &c.name).iter().any(|run| Some(run.round) == round));
        let removed = self.free_sandbox(uid)?;
        let mut message = format!("Pod sandbox changed, it will be killed and re-created: {why}");
        if !lost.is_empty() {
            message += &format!("; containers cut off: {}", lost.join(", "));
        }
        if !last_words.is_empty() {
            message += &format!("; the shim's last words: {last_words}");
        }
        if removed {
            self.remove_pod(spec)?;
        }
        // A sandbox in which nothing ever ran is no news: its failure has been told.
        Ok(if !ran || removed { Vec::new() } else { vec![Note::warning("SandboxChanged", message)] })
    }

    /// Record that all runs which seem to go on have ended with nobody there to see it; returns their containers.
    fn cut_off(&self, spec: &Spec, why: &str) -> Result<Vec<String>, Error> {
        let mut lost = Vec::new();
        for container in spec.all_containers() {
            for run in self.instances(spec.uid(), &container.name).into_iter().filter(Instance::is_running) {
                self.end_unseen(spec.uid(), run, why)?;
                lost.push(container.name.clone());
            }
        }
        Ok(lost)
    }

    /// As kubelet: a container that was running and is not there any more.
    pub(super) fn end_unseen(&self, uid: &str, mut run: Instance, why: &str) -> Result<(), Error> {
        run.terminated = Some(Termination {
            finished: clock::now(),
            exit_code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".into(),
            message: format!("The container could not be located when the pod was checked: {why}"),
        });
        let run = clock::inscribe(run);
        Ok(store::write(&self.layout.instance(uid, &run.container, run.attempt), &run, 0o600)?)
    }

    fn kill_leftovers(&self, uid: &str, spec: &Spec) -> Result<(), Error> {
        let cgroup = self.pod_cgroup(uid, spec)?;
        shim::reap_orphans(&self.layout.run_pod(uid), &[self.shim_cgroup(uid)], KILL_TIMEOUT)?;
        self.cgroups
            .kill_all(&cgroup, Instant::now() + KILL_TIMEOUT)
            .map_err(|source| Error::Cgroup { path: cgroup, source })
    }

    fn shim_cgroup(&self, uid: &str) -> String {
        format!("{}/coracle-shim/{uid}", self.cgroup_root.trim_end_matches('/'))
    }

    pub(super) fn pod_cgroup(&self, uid: &str, spec: &Spec) -> Result<String, Error> {
        let recorded = self.record(uid).ok().flatten().and_then(|r| r.sandbox).map(|s| s.cgroup);
        Ok(match recorded.filter(|c| !c.is_empty()) {
            Some(cgroup) => cgroup,
            None => resources::pod_cgroup(&self.cgroup_root, resources::qos(spec.pod())?, uid),
        })
    }

    pub(super) fn stop_sandbox(&self, spec: &Spec) -> Result<Vec<Note>, Error> {
        let uid = spec.uid();
        if let Some(client) = self.shim(uid) {
            match client.call(&Request::Shutdown, SHIM_TIMEOUT) {
                Ok(Reply::Error { message }) => tracing::warn!("the shim of pod {}: {message}", spec.key()),
                Ok(_) => {}
                Err(error) => {
                    // Whatever is wrong with it, its processes must go.
                    tracing::warn!(error = super::chain(&error), "the shim does not shut down; it is killed");
                    self.kill_leftovers(uid, spec)?;
                }
            }
        }
        self.lost(uid);
        // A pod that is to go goes at once: on a full disk there may be no way to write down that its sandbox has gone.
        if self.free_sandbox(uid)? {
            self.remove_pod(spec)?;
        }
        Ok(Vec::new())
    }

    /// Give back cgroup, addresses and namespaces; no process is left. The record goes last: until then the next
    /// observation finds a broken sandbox and comes here again. Tells whether the pod is to go as a whole.
    fn free_sandbox(&self, uid: &str) -> Result<bool, Error> {
        let record = self.record(uid)?;
        if let Some(sandbox) = record.as_ref().and_then(|r| r.sandbox.as_ref()).filter(|s| !s.cgroup.is_empty()) {
            let cgroup = &sandbox.cgroup;
            self.cgroups.remove(cgroup).map_err(|source| Error::Cgroup { path: cgroup.clone(), source })?;
        }
        let shim = self.shim_cgroup(uid);
        self.cgroups.remove(&shim).map_err(|source| Error::Cgroup { path: shim.clone(), source })?;
        self.net.detach(uid)?;
        namespace::delete(&self.layout.namespaces(uid)).map_err(Error::Namespace)?;
        unmount_shm(&self.layout.run_pod(uid).join("shm"))?;
        remove_tree(&self.layout.run_pod(uid))?;
        match record {
            Some(mut record) => {
                record.sandbox = None;
                let deleted = record.deletion.is_some();
                match self.save(&record) {
                    // Removal does not wait for space.
                    Err(error) if deleted && error.is_full() => Ok(true),
                    other => other.map(|()| deleted),
                }
            }
            None => Ok(false),
        }
    }

    pub(super) fn remove_pod(&self, spec: &Spec) -> Result<Vec<Note>, Error> {
        let uid = spec.uid();
        for container in spec.all_containers() {
            for run in self.instances(uid, &container.name) {
                remove_file(&self.layout.container_link(spec.pod(), &container.name, &run.id))?;
            }
        }
        remove_tree(&self.layout.pod_log_dir(spec.pod()))?;
        self.remove_folders(uid)?;
        Ok(Vec::new())
    }

    fn remove_folders(&self, uid: &str) -> Result<(), Error> {
        volume::tear_down(&self.layout.volumes(uid))?;
        // The record goes last: as long as anything of the pod is there, so is the pod.
        let pod = self.layout.pod(uid);
        remove_tree(&pod.join("containers"))?;
        for entry in std::fs::read_dir(&pod).into_iter().flatten().flatten() {
            if entry.file_name() != "pod.json" {
                remove_tree(&entry.path())?;
            }
        }
        remove_tree(&pod)
    }

    /// Remove a pod at once, whatever state it is in: only for what should not exist.
    pub(super) fn clear(&self, uid: &str) {
        let Ok(Some(record)) = self.record(uid) else { return };
        let Some(spec) = Spec::new(record.pod) else { return };
        let cleared = self
            .stop_sandbox(&spec)
            .and_then(|_| self.reset_sandbox(&spec, "its name belongs to another pod"))
            .and_then(|_| self.remove_pod(&spec));
        if let Err(error) = cleared {
            tracing::error!(uid, error = error.chain(), "a stray pod cannot be removed");
        }
    }

    /// Remove folders of pods that have no record (their removal was cut off, or the record was damaged) and are not
    /// wanted: called once the sources have spoken.
    pub fn remove_strays(&self, wanted: &[String]) {
        for entry in std::fs::read_dir(self.layout.pods()).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if wanted.contains(&uid) || matches!(self.record(&uid), Ok(Some(_))) {
                continue;
            }
            tracing::warn!(uid, "removing the folder of a pod without a record");
            if let Err(error) = self.remove_folders(&uid) {
                tracing::error!(uid, error = error.chain(), "the folder of a pod cannot be removed");
            }
        }
    }

    /// At start: free what belongs to no recorded pod.
    pub(super) fn sweep(&self, live: &[String]) {
        let entries = std::fs::read_dir(self.layout.run.join("pods"));
        for entry in entries.into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if live.contains(&uid) {
                continue;
            }
            tracing::warn!(uid, "removing what is left of a pod without a record");
            let freed = shim::reap_orphans(&self.layout.run_pod(&uid), &[], KILL_TIMEOUT)
                .map_err(Error::from)
                .and_then(|()| self.kill_unrecorded(&uid))
                .and_then(|()| self.free_sandbox(&uid).map(drop));
            if let Err(error) = freed {
                tracing::error!(uid, error = error.chain(), "what is left of a pod cannot be removed");
            }
        }
        if let Err(error) = self.net.retain(live) {
            tracing::error!(error = super::chain(&error), "unused addresses cannot be given back");
        }
    }

    fn kill_unrecorded(&self, uid: &str) -> Result<(), Error> {
        for qos in [resources::Qos::Guaranteed, resources::Qos::Burstable, resources::Qos::BestEffort] {
            let cgroup = resources::pod_cgroup(&self.cgroup_root, qos, uid);
            let failed = |source| Error::Cgroup { path: cgroup.clone(), source };
            self.cgroups.kill_all(&cgroup, Instant::now() + KILL_TIMEOUT).map_err(failed)?;
            self.cgroups.remove(&cgroup).map_err(failed)?;
        }
        Ok(())
    }

    fn change(&self, uid: &str, f: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut record = self.record(uid)?.ok_or_else(|| Error::Missing(format!("the record of pod {uid}")))?;
        f(&mut record);
        self.save(&record)
    }

    /// Write a record without waiting for the disk: what it says beyond the manifest is worth a rename, not the
    /// milliseconds of an fsync before the first container runs. A crash of the machine leaves the old one or none.
    pub(super) fn save(&self, record: &Record) -> Result<(), Error> {
        let uid = record.pod.metadata.uid.as_deref().unwrap_or_default();
        let path = self.layout.record(uid);
        let failed = |source| Error::File { what: "write", path: path.clone(), source };
        let text = serde_json::to_vec(&inscribed(record)).map_err(|e| failed(e.into()))?;
        let write = |path: &Path| {
            let staged = path.with_extension("json.new");
            write_private(&staged, &text)?;
            std::fs::rename(&staged, path)
        };
        // The copy beside the shim serves when the other one cannot be read: the pod of a damaged record runs on.
        match write(&self.layout.record_copy(uid)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        match write(&path).map_err(failed) {
            // The disk is full, and what is on it is older than the copy: better none.
            Err(error) if error.is_full() && self.layout.record_copy(uid).exists() => {
                tracing::warn!(error = error.chain(), "a pod record is kept in memory only");
                remove_file(&path.with_extension("json.new"))?;
                remove_file(&path)
            }
            other => other,
        }
    }
}

/// Whether the pod's containers share a PID namespace of their own.
pub(super) fn shares_processes(spec: &Spec) -> bool {
    spec.spec().share_process_namespace == Some(true) && spec.spec().host_pid != Some(true)
}

/// What `uname -n` says on the machine: the name of pods on its network.
pub(super) fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The end of what a shim wrote before it went, for the event.
fn last_words(log: &Path) -> String {
    const MOST: usize = 512;
    let text = fs::read_limited(log, 1 << 20).unwrap_or_default();
    let end = &text[text.len().saturating_sub(MOST)..];
    String::from_utf8_lossy(end).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A record for the disk.
fn inscribed(record: &Record) -> Record {
    let mut record = clock::inscribe(record.clone());
    if let Some(seen) = &record.seen {
        record.start_time = seen.by(&clock::present());
    }
    record
}

fn port_mappings(spec: &Spec) -> Vec<PortMapping> {
    let ports = spec.all_containers().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let host_port = u16::try_from(p.host_port.unwrap_or(0)).ok().filter(|p| *p != 0)?;
            Some(PortMapping {
                host_ip: p.host_ip.as_deref().filter(|ip| !ip.is_empty()).and_then(|ip| ip.parse().ok()),
                host_port,
                container_port: u16::try_from(p.container_port).ok()?,
                protocol: match p.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
            })
        })
        .collect()
}

/// The pod's `/dev/shm`, shared by its containers (64 MiB, as every runtime).
fn mount_shm(path: &Path) -> Result<(), Error> {
    use rustix::mount::{MountFlags, mount};
    if path.exists() {
        unmount_shm(path)?;
    }
    make_dir(path, 0o755)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("shm", path, "tmpfs", flags, Some(c"mode=1777,size=65536k")).map_err(|e| Error::File {
        what: "mount",
        path: path.to_owned(),
        source: e.into(),
    })
}

fn unmount_shm(path: &Path) -> Result<(), Error> {
    use rustix::mount::{UnmountFlags, unmount};
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Not a mount point, or nothing at all.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::File { what: "unmount", path: path.to_owned(), source: e.into() }),
    }
}

pub(super) fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(content)
}

/// A file that containers read: 0644, written anew in place because it may be bind-mounted.
fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let write = || {
        std::fs::write(path, content)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
    };
    write().map_err(|source| Error::File { what: "write", path: path.to_owned(), source })
}

pub(super) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_tree(path) {
        Err(error) if !cannot_exist(&error) => {
            Err(Error::File { what: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Whether there is no such file: also one whose name no file can have (the log folder of a pod with a long name).
fn cannot_exist(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidFilename)
}

pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if !cannot_exist(&error) => {
            Err(Error::File { what: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_there_is_gone() {
        let path = std::env::temp_dir().join("x".repeat(300));
        assert!(remove_tree(&path).is_ok() && remove_file(&path).is_ok());
        assert!(remove_file(Path::new("/proc/self/status")).is_err());
    }
}
