//! One pass over the machine: cgroups, network namespaces, file systems.

use super::disk::{Counted, Disk};
use super::{
    ContainerStats, FsUsage, Interface, Memory, NodeStats, PodStats, Snapshot, Usage, VolumeStats, cgroup, proc,
};
use crate::pod::resources::{Qos, container_cgroup, kubepods_cgroup, pod_cgroup, qos};
use crate::runtime::{Layout, Runtime};
use crate::sys::{clock, namespace};
use crate::volume::EMPTY_DIR;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rates are made of passes that are no further apart: what was before is another story. Longer than whoever scrapes waits.
const LATELY: Duration = Duration::from_secs(150);
/// The least life of a container that says anything about the CPU that it uses.
const YOUNG: Duration = Duration::from_millis(500);

/// What is to be looked at of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    namespace: String,
    name: String,
    uid: String,
    qos: Qos,
    started: Option<Timestamp>,
    own_network: bool,
    /// Those that run.
    running: Vec<SubjectContainer>,
    /// Folders of writable layers, logs and volumes.
    places: Places,
}

/// What is to be looked at of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SubjectContainer {
    name: String,
    id: String,
    attempt: u32,
    image: String,
    started: Option<Timestamp>,
}

/// Where a pod's files are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Places {
    /// By container: its layers and its logs.
    containers: Vec<(String, PathBuf, PathBuf)>,
    /// By volume: where, and whether it is a file system of its own (in memory).
    volumes: Vec<(String, PathBuf, bool)>,
}

impl Subject {
    /// Of a pod as it is reported; `None` for one that has no uid or whose resources are none.
    #[must_use]
    pub fn of(pod: &Pod, layout: &Layout) -> Option<Subject> {
        let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
        let uid = meta.uid.clone().filter(|uid| !uid.is_empty())?;
        let status = pod.status.as_ref();
        let statuses = status.into_iter().flat_map(|status| {
            let lists = [&status.init_container_statuses, &status.container_statuses];
            lists.into_iter().flatten().flatten()
        });
        Some(Subject {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            qos: qos(pod).ok()?,
            started: status.and_then(|status| status.start_time.as_ref()).map(|time| time.0),
            own_network: spec.host_network != Some(true),
            running: statuses.filter_map(SubjectContainer::of).collect(),
            places: Places::of(pod, layout, &uid),
            uid,
        })
    }

    /// The trees of files that are counted for it.
    #[must_use]
    pub fn trees(&self) -> Vec<PathBuf> {
        let containers = self.places.containers.iter().flat_map(|(_, layers, logs)| [layers.clone(), logs.clone()]);
        let volumes = self.places.volumes.iter().filter(|(_, _, own)| !own).map(|(_, path, _)| path.clone());
        containers.chain(volumes).collect()
    }
}

impl SubjectContainer {
    fn of(status: &ContainerStatus) -> Option<SubjectContainer> {
        let running = status.state.as_ref()?.running.as_ref()?;
        let id = status.container_id.as_deref()?;
        Some(SubjectContainer {
            name: status.name.clone(),
            id: id.split_once("://").map_or(id, |(_, id)| id).to_owned(),
            attempt: u32::try_from(status.restart_count).unwrap_or(0),
            image: status.image.clone(),
            started: running.started_at.as_ref().map(|time| time.0),
        })
    }
}

impl Places {
    fn of(pod: &Pod, layout: &Layout, uid: &str) -> Places {
        let Some(spec) = &pod.spec else { return Places::default() };
        let (logs, volumes) = (layout.pod_log_dir(pod), layout.volumes(uid));
        let names = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| &container.name);
        let containers = names.map(|name| (name.clone(), layout.container(uid, name), logs.join(name)));
        let of_volume = |volume: &k8s_openapi::api::core::v1::Volume| {
            let medium = volume.empty_dir.as_ref()?.medium.as_deref().unwrap_or_default();
            let path = volumes.join(EMPTY_DIR).join(&volume.name);
            Some((volume.name.clone(), path, !medium.is_empty()))
        };
        Places {
            containers: containers.collect(),
            volumes: spec.volumes.iter().flatten().filter_map(of_volume).collect(),
        }
    }
}

/// Passes, one after the other; remembers what it saw last, for rates.
pub struct Meter {
    runtime: Arc<Runtime>,
    disk: Arc<Disk>,
    /// CPU time by cgroup, and when it was read.
    before: HashMap<String, (Instant, u64)>,
    last: Option<Instant>,
}

impl Meter {
    /// That has not seen anything yet.
    #[must_use]
    pub fn new(runtime: Arc<Runtime>, disk: Arc<Disk>) -> Meter {
        Meter { runtime, disk, before: HashMap::new(), last: None }
    }

    /// Looks at the machine and these pods; those without a cgroup are left out. Blocks for milliseconds.
    pub fn look(&mut self, pods: &[Subject]) -> Snapshot {
        let begin = Instant::now();
        let window = self.last.replace(begin).map(|last| begin - last).filter(|window| *window <= LATELY);
        if window.is_none() {
            self.before.clear();
        }
        let mut seen = HashMap::with_capacity(self.before.len());
        let node = self.node(&mut seen);
        let mut found: Vec<PodStats> = pods.iter().filter_map(|subject| self.pod(subject, &mut seen)).collect();
        let networks: Vec<(String, PathBuf)> = pods
            .iter()
            .filter(|subject| subject.own_network)
            .filter_map(|subject| Some((subject.uid.clone(), self.runtime.network_namespace(&subject.uid)?)))
            .collect();
        let mut networks = interfaces_of(networks);
        for pod in &mut found {
            pod.network = networks.remove(&pod.uid).unwrap_or_default();
        }
        self.before = seen;
        Snapshot { window, node, pods: found }
    }

    /// What a group uses, with its rate. What began after the last pass has the rate of its life.
    fn usage(
        &self,
        path: &str,
        started: Option<Timestamp>,
        seen: &mut HashMap<String, (Instant, u64)>,
    ) -> Option<Usage> {
        let (at, time) = (Instant::now(), clock::wall());
        let mut usage = cgroup::usage(self.runtime.cgroups(), path, time)?;
        self.rate(path, &mut usage, at, seen);
        if usage.cpu_nano_cores.is_none()
            && let (Some(cpu), Some(started)) = (usage.cpu_nanoseconds, started)
        {
            let age = Duration::try_from(time.duration_since(started)).unwrap_or_default();
            usage.cpu_nano_cores = Some(age).filter(|age| (YOUNG..LATELY).contains(age)).map(|age| rate(cpu, age));
        }
        Some(usage)
    }

    fn rate(&self, key: &str, usage: &mut Usage, at: Instant, seen: &mut HashMap<String, (Instant, u64)>) {
        let Some(cpu) = usage.cpu_nanoseconds else { return };
        // A group of this name that has used less is another one.
        let before = self.before.get(key).filter(|(_, before)| *before <= cpu);
        usage.cpu_nano_cores = before.map(|(then, before)| rate(cpu - before, at - *then));
        seen.insert(key.to_owned(), (at, cpu));
    }

    fn node(&self, seen: &mut HashMap<String, (Instant, u64)>) -> NodeStats {
        let layout = self.runtime.layout();
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let stat = file("/proc/stat");
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        let mut usage = self.usage("/", None, seen).unwrap_or_default();
        usage.time = Some(clock::wall());
        if usage.cpu_nanoseconds.is_none() {
            usage.cpu_nanoseconds = proc::cpu(&stat, tick_ns);
            self.rate("/", &mut usage, Instant::now(), seen);
        }
        if let Some((memory, (swap, all))) = proc::memory(&file("/proc/meminfo"), &file("/proc/vmstat")) {
            (usage.memory, usage.swap_bytes, usage.swap_limit) = (Some(memory), Some(swap), Some(all));
        }
        usage.processes = proc::tasks(&file("/proc/loadavg"));
        let root = self.runtime.cgroup_root().trim_end_matches('/');
        let groups = [("pods", kubepods_cgroup(root)), ("runtime", format!("{root}/coracle-shim"))];
        let boot = proc::boot(&stat);
        let group = |(name, path): (&str, String)| {
            let usage = self.usage(&path, None, seen)?;
            Some(ContainerStats { name: name.to_owned(), started: boot, usage, ..ContainerStats::default() })
        };
        let mut system: Vec<ContainerStats> = groups.into_iter().filter_map(group).collect();
        system.extend(self.agent(boot, tick_ns, seen));
        let mut network = proc::interfaces(&file("/proc/net/dev"));
        let routes = file("/proc/net/route");
        if let Some(default) = proc::default_interface(&routes) {
            network.sort_by_key(|interface| interface.name != default);
        }
        let fs = space(&layout.root);
        NodeStats {
            started: boot,
            usage,
            network,
            fs,
            image_fs: fs.zip(self.disk.images()).map(|(fs, used_bytes)| FsUsage { used_bytes, ..fs }),
            max_processes: u64::try_from(self.runtime.resources().capacity.pids).ok().filter(|n| *n > 0),
            cpus: self.runtime.machine().cpus as u64,
            system,
        }
    }

    /// The agent itself, which need not have a group of its own.
    fn agent(
        &self,
        boot: Option<Timestamp>,
        tick_ns: u64,
        seen: &mut HashMap<String, (Instant, u64)>,
    ) -> Option<ContainerStats> {
        let own = proc::process(&std::fs::read_to_string("/proc/self/stat").ok()?)?;
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let of = |key| proc::kib(&status, key).unwrap_or(0);
        let nanoseconds = |ticks: u64| ticks.saturating_mul(tick_ns);
        let mut usage = Usage {
            time: Some(clock::wall()),
            cpu_nanoseconds: Some(nanoseconds(own.user.saturating_add(own.system))),
            cpu_user_nanoseconds: Some(nanoseconds(own.user)),
            cpu_system_nanoseconds: Some(nanoseconds(own.system)),
            memory: Some(Memory {
                usage: of("VmRSS"),
                working_set: of("VmRSS"),
                rss: of("RssAnon"),
                mapped: of("RssFile"),
                peak: Some(of("VmHWM")),
                page_faults: own.minor_faults.saturating_add(own.major_faults),
                major_page_faults: own.major_faults,
                ..Memory::default()
            }),
            swap_bytes: Some(of("VmSwap")),
            processes: Some(own.threads),
            ..Usage::default()
        };
        self.rate("agent", &mut usage, Instant::now(), seen);
        let since = jiff::SignedDuration::try_from(Duration::from_nanos(nanoseconds(own.started))).unwrap_or_default();
        let started = boot.map(|boot| crate::pod::clock::later(boot, since));
        Some(ContainerStats { name: "kubelet".to_owned(), started, usage, ..ContainerStats::default() })
    }

    fn pod(&self, subject: &Subject, seen: &mut HashMap<String, (Instant, u64)>) -> Option<PodStats> {
        let cgroup = pod_cgroup(self.runtime.cgroup_root(), subject.qos, &subject.uid);
        let usage = self.usage(&cgroup, subject.started, seen)?;
        let layout = self.runtime.layout();
        let (disk, logs) = (space(&layout.root), space(&layout.pod_logs));
        let counted = |fs: Option<FsUsage>, path: &Path| fs.zip(self.disk.of(path)).map(|(fs, n)| of_tree(fs, n));
        let mut containers = Vec::new();
        let mut ephemeral: Option<FsUsage> = None;
        let mut add = |fs: Option<FsUsage>| {
            let Some(fs) = fs else { return };
            let sum = ephemeral.get_or_insert(FsUsage { used_bytes: 0, inodes_used: 0, ..fs });
            sum.used_bytes = sum.used_bytes.saturating_add(fs.used_bytes);
            sum.inodes_used = sum.inodes_used.saturating_add(fs.inodes_used);
        };
        for (name, layers, log) in &subject.places.containers {
            let (rootfs, logs) = (counted(disk, layers), counted(logs, log));
            add(rootfs);
            add(logs);
            let Some(running) = subject.running.iter().find(|container| container.name == *name) else { continue };
            // It may have ended since it was reported.
            let path = container_cgroup(&cgroup, &running.id);
            let Some(usage) = self.usage(&path, running.started, seen) else { continue };
            containers.push(ContainerStats {
                name: running.name.clone(),
                id: running.id.clone(),
                attempt: running.attempt,
                image: running.image.clone(),
                started: running.started,
                usage,
                rootfs,
                logs,
            });
        }
        let mut volumes = Vec::new();
        for (name, path, own) in &subject.places.volumes {
            let fs = if *own { space(path) } else { counted(disk, path) };
            if !own {
                add(fs);
            }
            volumes.extend(fs.map(|fs| VolumeStats { name: name.clone(), fs }));
        }
        Some(PodStats {
            namespace: subject.namespace.clone(),
            name: subject.name.clone(),
            uid: subject.uid.clone(),
            started: subject.started,
            cgroup,
            usage,
            network: Vec::new(),
            containers,
            volumes,
            ephemeral,
        })
    }
}

/// Billionths of a core.
fn rate(nanoseconds: u64, time: Duration) -> u64 {
    let rate = u128::from(nanoseconds).saturating_mul(1_000_000_000) / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// The interfaces in network namespaces, by what these are called.
fn interfaces_of(networks: Vec<(String, PathBuf)>) -> HashMap<String, Vec<Interface>> {
    let (names, paths): (Vec<String>, Vec<PathBuf>) = networks.into_iter().unzip();
    if paths.is_empty() {
        return HashMap::new();
    }
    let texts = namespace::in_each_netns(&paths, |_| std::fs::read_to_string("/proc/thread-self/net/dev"));
    let texts = texts.unwrap_or_else(|error| {
        tracing::warn!(%error, "what pods send and receive cannot be read");
        Vec::new()
    });
    // One that is gone meanwhile has none.
    names.into_iter().zip(texts).filter_map(|(name, text)| Some((name, proc::interfaces(&text.ok()?)))).collect()
}

/// A file system as a whole.
fn space(path: &Path) -> Option<FsUsage> {
    let fs = rustix::fs::statvfs(path).ok()?;
    Some(FsUsage {
        time: Some(clock::wall()),
        available_bytes: fs.f_bavail.saturating_mul(fs.f_frsize),
        capacity_bytes: fs.f_blocks.saturating_mul(fs.f_frsize),
        used_bytes: fs.f_blocks.saturating_sub(fs.f_bfree).saturating_mul(fs.f_frsize),
        inodes_free: fs.f_ffree,
        inodes: fs.f_files,
        inodes_used: fs.f_files.saturating_sub(fs.f_ffree),
    })
}

/// What a tree takes of it.
fn of_tree(fs: FsUsage, counted: Counted) -> FsUsage {
    let (time, tree) = (Some(counted.time), counted.tree);
    FsUsage { time, used_bytes: tree.bytes, inodes_used: tree.inodes, ..fs }
}

/// All trees that are counted for these pods.
#[must_use]
pub fn trees(pods: &[Subject]) -> BTreeSet<PathBuf> {
    pods.iter().flat_map(Subject::trees).collect()
}
