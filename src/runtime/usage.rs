//! What the node has, what is left of it, and what a pod takes of its disk.

use super::{Error, Layout, Machine, Runtime};
use crate::config::Config;
use crate::config::reserve::{Reserved, Signal};
use crate::pod::admission::NodeAmounts;
use crate::pod::eviction::{LocalUsage, Observation, Observations};
use crate::pod::resources::{self, CgroupSettings, Enforcement, HugePages, Qos};
use crate::sys::cgroup::{Cgroups, Usage};
use crate::volume;
use k8s_openapi::api::core::v1::Pod;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// How long one pod's disk usage may be counted; what was counted until then is what is known.
const COUNTING: Duration = Duration::from_secs(5);

/// What the node has to give, and how it is enforced.
#[derive(Debug)]
pub struct NodeResources {
    /// All there is.
    pub capacity: NodeAmounts,
    /// What pods may request.
    pub allocatable: NodeAmounts,
    /// How limits of pods are enforced.
    pub enforcement: Enforcement,
    /// `singleProcessOOMKill`.
    pub single_process_oom_kill: bool,
    reserved: Reserved,
    enforce_pods: bool,
    /// CPU requests of all active Burstable pods together, in thousandths.
    burstable_milli: AtomicI64,
}

impl NodeResources {
    /// Look at the machine.
    #[must_use]
    pub fn read(config: &Config, machine: &Machine) -> NodeResources {
        let disk = rustix::fs::statvfs(&config.root_dir).ok();
        let capacity = NodeAmounts {
            cpu_milli: i64::try_from(machine.cpus).unwrap_or(i64::MAX).saturating_mul(1000),
            memory: i64::try_from(machine.memory_bytes).unwrap_or(i64::MAX),
            ephemeral_storage: disk.map_or(0, |d| product(d.f_blocks, d.f_frsize)),
            pids: max_pids(),
            pods: i64::from(config.max_pods),
            huge_pages: huge_pages(),
        };
        let reserved = config.kube_reserved.plus(config.system_reserved);
        NodeResources {
            allocatable: capacity.allocatable(reserved, &config.eviction.thresholds),
            capacity,
            enforcement: Enforcement {
                pids_limit: config.pod_pids_limit.and_then(|n| i64::try_from(n).ok()).filter(|n| *n > 0),
                cfs_period: config.cfs_period.and_then(|p| u64::try_from(p.as_micros()).ok()),
            },
            single_process_oom_kill: config.single_process_oom_kill,
            reserved,
            enforce_pods: config.enforce_pods,
            burstable_milli: AtomicI64::new(0),
        }
    }
}

fn product(a: u64, b: u64) -> i64 {
    i64::try_from(a.saturating_mul(b)).unwrap_or(i64::MAX)
}

fn number(path: &str) -> Option<i64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// As kubelet: the smaller of the kernel's two limits.
fn max_pids() -> i64 {
    let limits = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    limits.into_iter().flatten().min().unwrap_or(0)
}

/// The pools of `/sys/kernel/mm/hugepages`, by page size.
fn huge_pages() -> HugePages {
    let mut pools = HugePages::new();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib = name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB")?.parse::<u64>().ok());
        let Some(size) = kib.map(|kib| kib.saturating_mul(1024)) else { continue };
        let count = number(&entry.path().join("nr_hugepages").to_string_lossy()).unwrap_or(0);
        pools.insert(size, i64::try_from(size).unwrap_or(i64::MAX).saturating_mul(count));
    }
    pools
}

impl Runtime {
    /// The machine's control groups.
    #[must_use]
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The group below which all groups of this node are (`cgroupRoot`).
    #[must_use]
    pub fn cgroup_root(&self) -> &str {
        &self.cgroup_root
    }

    /// Where things are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the node has to give.
    #[must_use]
    pub fn resources(&self) -> &NodeResources {
        &self.resources
    }

    /// Whether this machine limits swap per container.
    pub(super) fn limits_swap(&self) -> bool {
        self.cgroups.limits_swap(&resources::kubepods_cgroup(&self.cgroup_root))
    }

    /// Make the groups above a pod's. That they exist is what a pod needs; a setting that the kernel refuses (a limit
    /// below what is in use, say) is no reason to refuse the pod.
    pub(super) fn set_up_node_cgroups(&self, qos: Qos) -> Result<(), Error> {
        let kubepods = resources::kubepods_cgroup(&self.cgroup_root);
        let settings = if self.resources.enforce_pods {
            let all = self.resources.capacity.for_pods(self.resources.reserved);
            CgroupSettings {
                hugetlb: Some(all.huge_pages.clone()).filter(|pages| !pages.is_empty()),
                ..resources::kubepods_settings(all.cpu_milli, all.memory, Some(all.pids).filter(|n| *n > 0))
            }
        } else {
            CgroupSettings::default()
        };
        self.ensure_leniently(&kubepods, &settings)?;
        if qos != Qos::Guaranteed {
            let milli = self.resources.burstable_milli.load(Ordering::Relaxed);
            self.ensure_leniently(
                &resources::qos_cgroup(&self.cgroup_root, qos),
                &resources::qos_settings(qos, milli),
            )?;
        }
        Ok(())
    }

    fn ensure_leniently(&self, path: &str, settings: &CgroupSettings) -> Result<(), Error> {
        let failed = |source| Error::Cgroup { path: path.to_owned(), source };
        let Err(error) = self.cgroups.ensure(path, settings) else { return Ok(()) };
        self.cgroups.ensure(path, &CgroupSettings::default()).map_err(failed)?;
        tracing::warn!(path, error = super::chain(&error), "a cgroup does not take its settings");
        Ok(())
    }

    /// Give the groups above the pods what the present configuration says, where they exist already.
    pub fn refresh_node_cgroups(&self) {
        let kubepods = resources::kubepods_cgroup(&self.cgroup_root);
        if !self.cgroups.exists(&kubepods) {
            return;
        }
        let refreshed = match self.resources.enforce_pods {
            true => self.set_up_node_cgroups(Qos::Guaranteed),
            // Limits of an earlier configuration.
            false => {
                let none = CgroupSettings { memory_limit: Some(-1), pids_limit: Some(-1), ..CgroupSettings::default() };
                self.ensure_leniently(&kubepods, &none)
            }
        };
        if let Err(error) = refreshed {
            tracing::warn!(error = error.chain(), "the cgroup of all pods does not take its settings");
        }
    }

    /// Take in the CPU requests (in thousandths) of all active Burstable pods; true when [`Runtime::share_burstable`] has
    /// something to do.
    pub fn set_burstable(&self, cpu_milli: i64) -> bool {
        self.resources.burstable_milli.swap(cpu_milli, Ordering::Relaxed) != cpu_milli
    }

    /// Give the class of Burstable pods as much of a busy CPU as they request.
    pub fn share_burstable(&self) {
        let path = resources::qos_cgroup(&self.cgroup_root, Qos::Burstable);
        let milli = self.resources.burstable_milli.load(Ordering::Relaxed);
        // A group that is not there yet is made with the first pod of its class.
        if self.cgroups.exists(&path)
            && let Err(error) = self.cgroups.update(&path, &resources::qos_settings(Qos::Burstable, milli), false)
        {
            tracing::warn!(path, error = super::chain(&error), "the share of Burstable pods is not set");
        }
    }

    /// What is left of what the node can run short of.
    #[must_use]
    pub fn observe_node(&self) -> Observations {
        let mut seen = Observations::new();
        if let Some(memory) = memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()) {
            seen.insert(Signal::MemoryAvailable, memory);
        }
        // As kubelet: of what is not reserved, the eviction reserve included.
        let capacity = self.resources.capacity.for_pods(self.resources.reserved).memory;
        let used = match self.cgroups.usage(&resources::kubepods_cgroup(&self.cgroup_root)) {
            Ok(usage) => i64::try_from(usage.memory_bytes).unwrap_or(i64::MAX),
            // No pod yet.
            Err(_) => 0,
        };
        let left = Observation { available: capacity.saturating_sub(used), capacity };
        seen.insert(Signal::AllocatableMemoryAvailable, left);
        // Images are kept on the same file system as pods.
        if let Ok(disk) = rustix::fs::statvfs(&self.layout.root) {
            let bytes = Observation {
                available: product(disk.f_bavail, disk.f_frsize),
                capacity: product(disk.f_blocks, disk.f_frsize),
            };
            seen.insert(Signal::NodefsAvailable, bytes);
            seen.insert(Signal::ImagefsAvailable, bytes);
            // Some file systems do not count inodes.
            if disk.f_files > 0 {
                let inodes = Observation { available: product(disk.f_favail, 1), capacity: product(disk.f_files, 1) };
                seen.insert(Signal::NodefsInodesFree, inodes);
                seen.insert(Signal::ImagefsInodesFree, inodes);
            }
        }
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let capacity = self.resources.capacity.pids;
        if let Some(tasks) = tasks(&load).filter(|_| capacity > 0) {
            seen.insert(Signal::PidAvailable, Observation { available: capacity.saturating_sub(tasks), capacity });
        }
        seen
    }

    /// Memory and processes of a pod; `None` when it has none, or they cannot be told.
    #[must_use]
    pub fn group_usage(&self, pod: &Pod) -> Option<Usage> {
        let qos = resources::qos(pod).ok()?;
        let uid = pod.metadata.uid.as_deref()?;
        self.cgroups.usage(&resources::pod_cgroup(&self.cgroup_root, qos, uid)).ok()
    }

    /// What a pod takes of the disk: its emptyDir volumes there, writable layers and logs.
    #[must_use]
    pub fn local_usage(&self, pod: &Pod) -> LocalUsage {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut usage = LocalUsage::default();
        let Some(spec) = pod.spec.as_ref().filter(|_| !uid.is_empty()) else { return usage };
        let deadline = Instant::now() + COUNTING;
        let count = |path: PathBuf| match disk_usage(&path, deadline) {
            Ok(tree) => tree.bytes,
            Err(Errno::NOENT) => 0,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "disk usage cannot be counted");
                0
            }
        };
        let volumes = self.layout.volumes(uid).join(volume::EMPTY_DIR);
        for volume in spec.volumes.iter().flatten() {
            // In memory, the volume is limited itself.
            let on_disk = |medium: Option<&str>| medium.is_none_or(str::is_empty);
            if volume.empty_dir.as_ref().is_some_and(|e| on_disk(e.medium.as_deref())) {
                usage.empty_dirs.insert(volume.name.clone(), count(volumes.join(&volume.name)));
            }
        }
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let logs = self.layout.pod_log_dir(pod).join(&container.name);
            let layers = count(self.layout.container(uid, &container.name));
            usage.containers.insert(container.name.clone(), layers.saturating_add(count(logs)));
        }
        usage
    }
}

/// As kubelet's working set: what is neither free nor quickly dropped is in use.
fn memory(meminfo: &str) -> Option<Observation> {
    let value = |key: &str| {
        let rest = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
    };
    let (capacity, free) = (value("MemTotal")?, value("MemFree")?);
    Some(Observation { available: free.saturating_add(value("Inactive(file)").unwrap_or(0)).min(capacity), capacity })
}

/// The number of tasks in `/proc/loadavg` (`0.1 0.2 0.3 1/234 5678`).
fn tasks(loadavg: &str) -> Option<i64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// Where a walk is: the folders still to be looked at in one folder, and which folder it is.
struct Level {
    folders: Vec<CString>,
    identity: (u64, u64),
}

/// What a tree takes of its file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tree {
    /// Bytes of the blocks that it occupies.
    pub bytes: u64,
    /// Its files and folders, itself included; hard links count once.
    pub inodes: u64,
}

/// A count under way. What it remembers is bounded, whatever a container makes.
struct Count {
    device: u64,
    tree: Tree,
    deadline: Instant,
    /// Files of more than one name that are counted.
    linked: HashSet<u64>,
    /// Folders that wait in all levels.
    waiting: usize,
}

/// What a tree occupies (as `du -x`): hard links count once, mounts are not entered, links not
/// followed. It walks with one descriptor however deep the tree is, and ends where somebody moves a folder away under it
/// or at `deadline`: then the result is what was counted so far.
///
/// # Errors
/// When `top` cannot be opened.
pub fn disk_usage(top: &Path, deadline: Instant) -> Result<Tree, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(CWD, top, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&dir)?;
    let tree = Tree { bytes: blocks(&stat), inodes: 1 };
    let mut count = Count { device: stat.st_dev, tree, deadline, linked: HashSet::new(), waiting: 0 };
    let mut levels = vec![Level { folders: count.files(&dir)?, identity: (stat.st_dev, stat.st_ino) }];
    while let Some(level) = levels.last_mut() {
        if Instant::now() >= deadline {
            break;
        }
        let Some(name) = level.folders.pop() else {
            levels.pop();
            let Some(parent) = levels.last() else { break };
            // `..` may lead elsewhere by now: only the folder it came from counts.
            let Ok(up) = rustix::fs::openat(&dir, c"..", flags, Mode::empty()) else { break };
            match rustix::fs::fstat(&up) {
                Ok(stat) if (stat.st_dev, stat.st_ino) == parent.identity => dir = up,
                _ => break,
            }
            continue;
        };
        count.waiting = count.waiting.saturating_sub(1);
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        // Gone meanwhile, or a mount.
        let Ok(child) = rustix::fs::openat2(&dir, &name, flags, Mode::empty(), inside) else { continue };
        let Ok(stat) = rustix::fs::fstat(&child) else { continue };
        count.one(blocks(&stat));
        let folders = count.files(&child).unwrap_or_default();
        levels.push(Level { folders, identity: (stat.st_dev, stat.st_ino) });
        dir = child;
    }
    Ok(count.tree)
}

impl Count {
    /// Most folders that wait to be entered; of more only they themselves are counted.
    const MAX_WAITING: usize = 200_000;
    /// Most files of more than one name that are remembered; of more each name counts for its part.
    const MAX_LINKED: usize = 200_000;

    /// Counts what is in a folder but its folders, whose names it returns.
    fn files(&mut self, dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
        let mut folders = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir.as_fd())? {
            if Instant::now() >= self.deadline {
                break;
            }
            let entry = entry?;
            let (name, kind) = (entry.file_name(), entry.file_type());
            if [c".", c".."].contains(&name) {
                continue;
            }
            let room = self.waiting < Count::MAX_WAITING;
            let mut folder = kind == FileType::Directory;
            if !folder || !room {
                let Ok(stat) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) else {
                    continue; // gone meanwhile
                };
                folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !folder || !room {
                    self.add(&stat, folder);
                    continue;
                }
            }
            self.waiting += 1;
            folders.push(name.to_owned());
        }
        Ok(folders)
    }

    fn one(&mut self, bytes: u64) {
        self.tree.bytes = self.tree.bytes.saturating_add(bytes);
        self.tree.inodes = self.tree.inodes.saturating_add(1);
    }

    fn add(&mut self, stat: &rustix::fs::Stat, folder: bool) {
        match stat.st_nlink {
            _ if stat.st_dev != self.device || self.linked.contains(&stat.st_ino) => {}
            links if !folder && links > 1 && self.linked.len() >= Count::MAX_LINKED => {
                // The type differs between architectures.
                self.one(blocks(stat) / usize::try_from(links).unwrap_or(usize::MAX) as u64);
            }
            links => {
                if !folder && links > 1 {
                    self.linked.insert(stat.st_ino);
                }
                self.one(blocks(stat));
            }
        }
    }
}

fn blocks(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_and_tasks() {
        let text = "MemTotal:  1000 kB\nMemFree:   100 kB\nMemAvailable: 5 kB\nInactive(file): 50 kB\n";
        assert_eq!(memory(text), Some(Observation { available: 150 * 1024, capacity: 1000 * 1024 }));
        assert_eq!(memory("MemTotal: 1 kB\n"), None);
        assert_eq!(tasks("0.00 0.01 0.05 2/345 6789\n"), Some(345));
        assert_eq!(tasks("nonsense"), None);
    }

    #[test]
    fn blocks_are_counted_once_and_links_not_followed() {
        let top = std::env::temp_dir().join(format!("coracle-usage-{}", std::process::id()));
        let far = Instant::now() + Duration::from_secs(60);
        let mut deep = top.clone();
        for _ in 0..200 {
            deep = deep.join("d");
        }
        std::fs::create_dir_all(&deep).expect("folders");
        std::os::unix::fs::symlink("/", top.join("root")).expect("link");
        let before = disk_usage(&top, far).expect("usage");
        std::fs::write(deep.join("file"), vec![1; 1 << 20]).expect("file");
        std::fs::hard_link(deep.join("file"), top.join("again")).expect("hard link");
        let after = disk_usage(&top, far).expect("usage");
        let late = disk_usage(&top, Instant::now());
        std::fs::remove_dir_all(&top).expect("removed");
        let grown = after.bytes - before.bytes;
        assert_eq!((before.inodes, after.inodes), (202, 203), "200 folders in one, a link, and a file with two names");
        assert!(((1 << 20)..(1 << 20) + 65_536).contains(&grown), "{grown}");
        assert!(late.is_ok_and(|late| late.bytes < after.bytes), "a deadline ends the walk");
        assert_eq!(disk_usage(&top, far), Err(Errno::NOENT));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,80}") {
            let _ = (memory(&text), tasks(&text));
        }
    }
}
