//! What is seen of a pod on this machine; can be rebuilt from disk and shims alone.

use super::Spec;
use super::clock::{Clock, Seen};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

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
    /// IDs of the images that are its volumes; their names may mean others by now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_images: Vec<String>,
    /// The pod's round ([`Record::round`]) in which it ran.
    #[serde(default)]
    pub round: u32,
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
    /// Who its first process is; `None` in records of agents that did not tell.
    #[serde(default)]
    pub user: Option<User>,
    /// By which clock its instants were read.
    #[serde(default)]
    pub clock: Option<Clock>,
}

/// Whose identity a container's first process has, as numbers of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// Supplementary group IDs, the primary one among them.
    pub groups: Vec<u32>,
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
    /// The same as it was read, from which it is told at each look; `None` in records of agents that did not.
    #[serde(default)]
    pub seen: Option<Seen>,
    /// The present or last sandbox.
    #[serde(default)]
    pub sandbox: Option<SandboxRecord>,
    /// How many sandboxes there were.
    #[serde(default)]
    pub sandbox_attempts: u32,
    /// Set once the pod is done for good.
    #[serde(default)]
    pub finished: Option<Finished>,
    /// How many times the pod began anew: with each sandbox after the first, and with each `RestartAllContainers`. Runs of
    /// init containers count only in the round in which they ran.
    #[serde(default)]
    pub round: u32,
    /// Runs of rounds before this one count as removed, app containers' too (`RestartAllContainers`).
    #[serde(default)]
    pub restart_all: u32,
    /// Set when the pod is to go; never taken back.
    #[serde(default)]
    pub deletion: Option<Deletion>,
    /// Runs (by container ID) that have to end so that their containers start with what a resize gave them. Written
    /// together with the resized pod: whoever dies in between, the restart is not forgotten.
    #[serde(default)]
    pub resize_restarts: BTreeSet<String>,
    /// By which clock its other instants were read.
    #[serde(default)]
    pub clock: Option<Clock>,
}

/// A terminal phase, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finished {
    /// `Succeeded` or `Failed`.
    pub phase: String,
    /// `status.reason` (`DeadlineExceeded`), if there is more to say than the containers do.
    #[serde(default)]
    pub reason: Option<String>,
    /// `status.message`.
    #[serde(default)]
    pub message: Option<String>,
    /// When it was decided.
    pub at: Timestamp,
    /// Grace in seconds, from then, for what still runs.
    #[serde(default)]
    pub grace_seconds: u64,
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

/// What the probes say of a running container. A container without an entry in [`Present::health`] has not been probed
/// in this agent's life; [`Health::initial`] holds for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// The startup probe has passed, or there is none.
    pub started: bool,
    /// The readiness probe passes, or there is none, and it is started.
    pub ready: bool,
    /// It failed its liveness or startup probe often enough to be restarted.
    #[serde(default)]
    pub unhealthy: Option<Unhealthy>,
}

impl Health {
    /// Of a container that has just been started: what has no probe passes (as kubelet).
    #[must_use]
    pub fn initial(container: &Container) -> Health {
        let started = container.startup_probe.is_none();
        Health { started, ready: started && container.readiness_probe.is_none(), unhealthy: None }
    }
}

/// A probe that failed for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unhealthy {
    /// [`StopCause::Liveness`] or [`StopCause::Startup`].
    pub probe: StopCause,
    /// The probe's own grace in seconds.
    #[serde(default)]
    pub grace_seconds: Option<u64>,
}

/// Which lifecycle hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookKind {
    /// `lifecycle.postStart`.
    PostStart,
    /// `lifecycle.preStop`.
    PreStop,
}

/// How far a hook is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookState {
    /// Not begun (or begun by an agent that is gone: hooks are delivered at least once).
    #[default]
    Idle,
    /// Under way.
    Running,
    /// Over, well.
    Done,
    /// Over, with this error.
    Failed(String),
}

/// Why a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StopCause {
    /// Its pod goes, or is over.
    Pod,
    /// It failed its liveness probe.
    Liveness,
    /// It failed its startup probe.
    Startup,
    /// Its postStart hook failed.
    PostStart,
    /// A rule restarts all containers of the pod.
    RestartAll,
    /// A resize needs it to start anew.
    Resize,
    /// Its container has another image by now.
    Changed,
}

/// A stop that has begun: preStop hook, then its turn, then the signal, then SIGKILL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stopping {
    /// Why.
    pub cause: StopCause,
    /// When it began: the grace counts from here, the hook included.
    pub begun: Timestamp,
    /// Grace in milliseconds from [`Stopping::begun`].
    pub grace_ms: u64,
    /// When the signal was sent, the instant of SIGKILL.
    #[serde(default)]
    pub kill_at: Option<Timestamp>,
}

/// What the agent did with one run beyond starting it, in `<run>/pods/<uid>/progress/<container>-<attempt>.json`: it must
/// outlive the agent, but not the machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    /// The postStart hook.
    pub post_start: HookState,
    /// The preStop hook.
    pub pre_stop: HookState,
    /// Set once it is being stopped.
    pub stopping: Option<Stopping>,
    /// What the probes last said.
    pub health: Option<Health>,
    /// By which clock its instants were read.
    pub clock: Option<Clock>,
}

/// What was last told of a pod's conditions, in `<run>/pods/<uid>/told.json`: since when they are as they are must not change
/// with a restart of the agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Told {
    /// The conditions.
    pub conditions: Vec<PodCondition>,
    /// By which clock their instants were read.
    pub clock: Option<Clock>,
}

/// That a pod has to leave for what it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// `Evicted` or `Preempting`: the status' reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Grace in seconds.
    pub grace_seconds: u64,
}

/// A resize that the node does not grant.
#[derive(Debug, Clone)]
pub struct RefusedResize {
    /// The pod as it is wanted.
    pub spec: Spec,
    /// `Deferred` (it may be granted later) or `Infeasible`.
    pub reason: String,
    /// Why, for people.
    pub message: String,
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

/// Whether a container can start from its images: its own, and those of the volumes it mounts.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageState {
    /// They are here, and may be used for the container's next start.
    Present,
    /// They have to be pulled for it, and nobody was asked to.
    Wanted,
    /// They are being pulled.
    Pulling,
    /// They are not to be had: waiting reason and message.
    Absent {
        /// `ErrImagePull`, `ImagePullBackOff`, `ErrImageNeverPull`, `InvalidImageName`, …
        reason: String,
        /// Why, for people.
        message: String,
        /// When that may change by itself.
        retry_at: Option<Timestamp>,
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
    /// What was done with runs, by container ID.
    pub progress: BTreeMap<String, Progress>,
}

impl Present {
    /// The newest run of a container.
    #[must_use]
    pub fn latest(&self, container: &str) -> Option<&Instance> {
        self.containers.get(container).and_then(|runs| runs.last())
    }

    /// What was done with a run.
    #[must_use]
    pub fn progress(&self, id: &str) -> &Progress {
        static NOTHING: Progress = Progress {
            post_start: HookState::Idle,
            pre_stop: HookState::Idle,
            stopping: None,
            health: None,
            clock: None,
        };
        self.progress.get(id).unwrap_or(&NOTHING)
    }

    /// What the probes say of a run of `container`.
    #[must_use]
    pub fn health(&self, container: &Container, id: &str) -> Health {
        self.progress(id).health.clone().unwrap_or_else(|| Health::initial(container))
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
    /// Images of the containers that do not run, by container name. One that is not here needs none.
    pub images: BTreeMap<String, ImageState>,
    /// Steps of the pod as a whole that failed.
    pub failure: Option<Failure>,
    /// Containers that could not be made, by name.
    pub container_failures: BTreeMap<String, Failure>,
    /// Set when the pod uses more than it may.
    pub evict: Option<Eviction>,
    /// Set when the pod of a cluster may not stay, as its name is another's, or it is not what the node can run: reason and
    /// message.
    pub displaced: Option<(&'static str, String)>,
    /// How long the pod may take to end, in seconds, as the API server says of one that it wants gone; it may become less
    /// while the pod stops.
    pub removal: Option<u64>,
    /// A resize of the pod that the node has no room for (now).
    pub refused_resize: Option<RefusedResize>,
    /// Whether the node is short of disk space.
    pub short_of_disk: bool,
    /// The pod of the cluster as the API server has it: conditions that others set, and when conditions began.
    pub copy: Option<Arc<Pod>>,
    /// The generation of its spec that this node has acted on.
    pub generation: Option<i64>,
}
