//! What pods, containers and the node use. Read from cgroups (v1 and v2), `/proc` and file systems, in one pass; what is
//! shown of it (summary, metrics, `top`, CRI, the status page) is made from a [`Snapshot`].
//!
//! Cumulative values are counters of the kernel; rates come from two passes. A value that the machine cannot tell is
//! `None`, never 0.

use jiff::Timestamp;

/// All of it, as of one pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
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
    /// Image as the status has it.
    pub image: String,
    /// When it was started.
    pub started: Option<Timestamp>,
    /// Of its cgroup.
    pub usage: Usage,
    /// Its writable layer.
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
    /// CPU in use between the last two passes, in billionths of a core.
    pub cpu_nano_cores: Option<u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Swap in use, in bytes.
    pub swap_bytes: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
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
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Errors while sending.
    pub tx_errors: u64,
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
