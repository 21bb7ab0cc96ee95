//! What is seen of a pod on this machine; can be rebuilt from disk and shims alone.

use super::Spec;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One run of one container: the record that the shim keeps on disk, written before the container's first
/// instruction and again, durably, when it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Container ID, 64 hex digits; `coracle://<id>` in the status.
    pub id: String,
    /// Container name of the PodSpec.
    pub container: String,
    /// 0 for the first run; the restart count of the status, and the name of its log file (`<attempt>.log`).
    pub attempt: u32,
    /// Image as the manifest names it.
    pub image: String,
    /// Image ID (`sha256:…`, digest of the image configuration).
    pub image_id: String,
    /// Delay that a restart has to wait after this run ended, in milliseconds (as kubelet: 0, 10s, 20s … 300s).
    #[serde(default)]
    pub backoff_ms: u64,
    /// When the container was created.
    pub created: Timestamp,
    /// PID of the container's init in the machine's PID namespace; 0 when it never ran.
    #[serde(default)]
    pub pid: i32,
    /// Start time of that process in clock ticks since boot (field 22 of `/proc/<pid>/stat`): tells a reused PID.
    #[serde(default)]
    pub pid_start: u64,
    /// Boot ID of the machine during which it ran.
    #[serde(default)]
    pub boot_id: String,
    /// When user code began to run; `None` when it never did.
    #[serde(default)]
    pub started: Option<Timestamp>,
    /// How it ended; `None` while it runs.
    #[serde(default)]
    pub terminated: Option<Termination>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// When it ended (or when that was noticed).
    pub finished: Timestamp,
    /// Exit code as the kubelet reports it: 128 + signal when a signal ended it; 128 for a failed start.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// Text for people (a failed start's cause; the termination message is added by the agent).
    #[serde(default)]
    pub message: String,
}

impl Instance {
    /// Whether it has not ended (as far as the record tells).
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.terminated.is_none()
    }
}

/// What the agent remembers of a pod, in `<root>/pods/<uid>/pod.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The pod as admitted.
    pub pod: Pod,
    /// `status.startTime`: when this node first saw the pod; survives restarts of the agent and the machine.
    pub start_time: Timestamp,
    /// The present or last sandbox.
    #[serde(default)]
    pub sandbox: Option<SandboxRecord>,
    /// How many sandboxes there were.
    #[serde(default)]
    pub sandbox_attempts: u32,
    /// `Succeeded` or `Failed` once the pod is done for good.
    #[serde(default)]
    pub finished: Option<String>,
    /// Set when the pod is to go; never taken back.
    #[serde(default)]
    pub deletion: Option<Deletion>,
}

/// A sandbox: the namespaces, addresses and shim that a pod's containers share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRecord {
    /// When it was made.
    pub created: Timestamp,
    /// Boot during which it was made: it cannot outlive it.
    pub boot_id: String,
    /// Pod addresses; empty under hostNetwork.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Its cgroup, absolute below each hierarchy.
    #[serde(default)]
    pub cgroup: String,
}

/// That a pod is to go, and how long it may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    /// When it was decided.
    pub started: Timestamp,
    /// Grace in seconds counted from then.
    pub grace_seconds: u64,
}

/// The sandbox as it is now.
#[derive(Debug, Clone, PartialEq)]
pub enum Sandbox {
    /// None, and nothing is left of an earlier one.
    Absent,
    /// Its shim answers.
    Ready,
    /// There was one, but its shim is gone (killed, or the machine was restarted): text for people.
    Broken(String),
}

/// Something that did not work and will be tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Waiting reason of the status (`CreateContainerConfigError`, `FailedMount`, …).
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// How many times in a row.
    pub count: u32,
    /// Not before this.
    pub retry_at: Timestamp,
}

/// Whether an image is here.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageState {
    /// In the store, with its ID.
    Present(String),
    /// Not here: waiting reason and message.
    Absent {
        /// `ErrImagePull`, `ErrImageNeverPull` or `InvalidImageName`.
        reason: String,
        /// Why, for people.
        message: String,
    },
}

/// What this machine has under a pod's name.
#[derive(Debug, Clone)]
pub struct Present {
    /// The pod it was made from.
    pub spec: Spec,
    /// What is remembered of it.
    pub record: Record,
    /// Its sandbox.
    pub sandbox: Sandbox,
    /// All recorded runs by container, oldest first.
    pub containers: BTreeMap<String, Vec<Instance>>,
    /// Containers that were asked to stop, by ID, with the instant of their SIGKILL.
    pub stopping: BTreeMap<String, Timestamp>,
}

impl Present {
    /// The newest run of a container.
    #[must_use]
    pub fn latest(&self, container: &str) -> Option<&Instance> {
        self.containers.get(container).and_then(|runs| runs.last())
    }

    /// All runs that have not ended.
    pub fn running(&self) -> impl Iterator<Item = &Instance> {
        self.containers.values().flatten().filter(|i| i.is_running())
    }
}

/// All that is seen of the pods of one name; there is at most one at a time.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// What is on the machine.
    pub present: Option<Present>,
    /// Images of the wanted pod's containers, by the name the manifest uses.
    pub images: BTreeMap<String, ImageState>,
    /// Steps of the pod as a whole that failed.
    pub failure: Option<Failure>,
    /// Containers that could not be made, by name.
    pub container_failures: BTreeMap<String, Failure>,
}
