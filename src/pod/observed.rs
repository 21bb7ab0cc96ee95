//! What is seen of a pod on this machine; can be rebuilt from disk and shims alone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

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
