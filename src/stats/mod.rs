//! What pods, containers and the node use. Read from cgroups (v1 and v2), `/proc` and file systems, in one pass; what is
//! shown of it (summary, metrics, `top`, CRI, the status page) is made from a [`Snapshot`].
//!
//! Cumulative values are counters of the kernel; rates come from two passes. A value that the machine cannot tell is
//! `None`, never 0.

mod cadvisor;
mod cgroup;
mod disk;
mod objects;
mod pass;
mod proc;
mod resource;
mod summary;
pub mod text;

pub use cadvisor::cadvisor;
pub use disk::Disk;
pub use objects::{list as metrics_list, node_metrics, pod_metrics};
pub use pass::{Meter, Subject, trees};
pub use resource::resource;
pub use summary::summary;

use jiff::Timestamp;
use std::time::Duration;

/// All of it, as of one pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Between this pass and the one before, which rates are made of; `None`: there was none lately, so there are no rates.
    pub window: Option<Duration>,
    /// The machine.
    pub node: NodeStats,
    /// Pods with a sandbox, by namespace and name.
    pub pods: Vec<PodStats>,
}

/// The machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeStats {
    /// When it was started.
    pub started: Option<Timestamp>,
    /// CPU, memory, processes.
    pub usage: Usage,
    /// Interfaces of the machine.
    pub network: Vec<Interface>,
    /// The file system with the node's state.
    pub fs: Option<FsUsage>,
    /// The file system with the images, and what they take of it.
    pub image_fs: Option<FsUsage>,
    /// Most processes that the machine can have.
    pub max_processes: Option<u64>,
    /// CPUs.
    pub cpus: u64,
    /// What the node consists of besides its pods' containers, by the kubelet's names: `pods` (all of them together),
    /// `runtime` (the shims) and `kubelet` (the agent).
    pub system: Vec<ContainerStats>,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodStats {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// When it was started.
    pub started: Option<Timestamp>,
    /// Name of its cgroup.
    pub cgroup: String,
    /// Of its cgroup: all its containers and the sandbox.
    pub usage: Usage,
    /// Interfaces in its network namespace; empty on the machine's network.
    pub network: Vec<Interface>,
    /// Containers that run.
    pub containers: Vec<ContainerStats>,
    /// Its volumes that take space of their own.
    pub volumes: Vec<VolumeStats>,
    /// Writable layers, logs and disk-backed emptyDirs together.
    pub ephemeral: Option<FsUsage>,
}

/// A container that runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerStats {
    /// Name in the pod.
    pub name: String,
    /// ID, without `coracle://`.
    pub id: String,
    /// Which of its runs it is, counted from 0.
    pub attempt: u32,
    /// Image as the status has it.
    pub image: String,
    /// When it was started.
    pub started: Option<Timestamp>,
    /// Of its cgroup.
    pub usage: Usage,
    /// Its writable layer, and those of earlier runs that are kept.
    pub rootfs: Option<FsUsage>,
    /// Its logs.
    pub logs: Option<FsUsage>,
}

/// A volume.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VolumeStats {
    /// Name in the pod.
    pub name: String,
    /// What it takes.
    pub fs: FsUsage,
}

/// CPU, memory and processes of a cgroup.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// When it was read, by the wall clock.
    pub time: Option<Timestamp>,
    /// CPU time used since the start, in nanoseconds.
    pub cpu_nanoseconds: Option<u64>,
    /// … of it by programs.
    pub cpu_user_nanoseconds: Option<u64>,
    /// … by the kernel for them.
    pub cpu_system_nanoseconds: Option<u64>,
    /// How its CPU limit held it back; `None`: it has none.
    pub throttling: Option<Throttling>,
    /// CPU in use between the last two passes, in billionths of a core.
    pub cpu_nano_cores: Option<u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Swap in use, in bytes.
    pub swap_bytes: Option<u64>,
    /// Most swap that it may use, in bytes; `None`: that cannot be told.
    pub swap_limit: Option<u64>,
    /// How often the kernel killed one of its processes for want of memory.
    pub oom_kills: Option<u64>,
    /// Read from and written to block devices.
    pub io: Option<Io>,
    /// What it had to wait for.
    pub pressure: Option<Pressure>,
    /// Processes and threads.
    pub processes: Option<u64>,
}

/// A CPU limit (CFS quota) and what came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// CPU time in each period, in microseconds.
    pub quota_us: u64,
    /// The period, in microseconds.
    pub period_us: u64,
    /// Periods in which it ran.
    pub periods: u64,
    /// … in which it used all it may.
    pub throttled_periods: u64,
    /// How long it had to wait then, in nanoseconds.
    pub throttled_nanoseconds: u64,
}

/// Block devices, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Io {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// How long something waited for each of these since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// CPU.
    pub cpu: Stall,
    /// Memory.
    pub memory: Stall,
    /// Input and output.
    pub io: Stall,
}

/// Pressure stall information of the kernel for one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Some of its tasks waited.
    pub some: Waited,
    /// All of them did.
    pub full: Waited,
}

/// Waiting: parts of the last 10, 60 and 300 seconds in percent, and all of it in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Waited {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_us: u64,
}

/// Memory of a cgroup, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it, caches too.
    pub usage: u64,
    /// Without file pages that were not used lately: what eviction and `top` look at.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Its limit; `None`: no limit but the machine.
    pub limit: Option<u64>,
    /// Most that was ever used, where the kernel tells.
    pub peak: Option<u64>,
    /// Cached files.
    pub cache: u64,
    /// Files that are mapped.
    pub mapped: u64,
    /// How often the limit was hit.
    pub failures: u64,
    /// Page faults since the start.
    pub page_faults: u64,
    /// … that needed the disk.
    pub major_page_faults: u64,
}

/// A network interface; counters since it exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Errors while receiving.
    pub rx_errors: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets dropped on arrival.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Errors while sending.
    pub tx_errors: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets dropped instead of sent.
    pub tx_dropped: u64,
}

/// A file system, or what something takes of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FsUsage {
    /// When it was measured, by the wall clock.
    pub time: Option<Timestamp>,
    /// Bytes free for others.
    pub available_bytes: u64,
    /// Size of the file system in bytes.
    pub capacity_bytes: u64,
    /// Bytes taken.
    pub used_bytes: u64,
    /// Inodes free.
    pub inodes_free: u64,
    /// Inodes there are.
    pub inodes: u64,
    /// Inodes taken.
    pub inodes_used: u64,
}
