//! What the agent and a shim say to each other over `<run-dir>/pods/<uid>/shim.sock` (`SOCK_SEQPACKET`): one JSON
//! [`Request`] a packet, answered by one JSON [`Reply`]. A connection that sent [`Request::Subscribe`] gets one
//! packet (an empty JSON object) each time any record changed; its end-of-file means that the shim is gone. Events
//! are hints, the truth is in the records on disk.

use crate::bundle::devices::Rule;
use crate::pod::Instance;
use crate::volume::Stage;
use crate::volume::devices::Found;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Largest packet either side accepts, in bytes.
pub const MAX_PACKET: usize = 128 * 1024;

/// What a shim is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Request {
    /// Create and start a container. Answered by [`Reply::Started`] once user code runs, by [`Reply::Error`] when it
    /// could not (then the record holds a `StartError` termination). Asking again for the same `instance.id` answers
    /// with its present record and starts nothing.
    Run(Box<Run>),
    /// Send `signal` to the container's init now, and SIGKILL to all its processes after `grace_ms` milliseconds.
    /// Asked again: the deadline may only come nearer. Answered by [`Reply::Done`] at once, also when it has ended.
    Stop { id: String, signal: i32, grace_ms: u64 },
    /// Forget an ended container: unmount its root, delete its cgroup and runtime state (the record stays).
    Delete { id: String },
    /// All records of this shim's containers.
    List,
    /// Close and open the log file again (after a rotation by name).
    ReopenLog { id: String },
    /// The machine's devices that a container was given ([`Run::devices`]) are now these, by path in the container; `None`
    /// is one that is away. Answered by [`Reply::Devices`] once the container sees and may open them, and no longer those
    /// that went. Asking again is harmless; for a container that has ended nothing is done.
    Devices { id: String, found: BTreeMap<PathBuf, Option<Found>> },
    /// From now on this connection gets a packet per change.
    Subscribe,
    /// Give a copy of what a running container writes from now on, and with `stdin` its input. Answered by
    /// [`Reply::Attached`]; lasts until this connection is closed.
    Attach { id: String, stdin: bool },
    /// Of an attached connection: the container's input has ended (`stdinOnce`). Not answered.
    EndInput,
    /// Kill everything, delete everything, answer, exit.
    Shutdown,
}

/// A container to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// The record to keep; `created`, `pid*`, `started`, `terminated` are the shim's to fill in.
    pub instance: Instance,
    /// Where the record goes.
    pub record: PathBuf,
    /// Folder with `config.json` (OCI runtime spec, `root.path` = `rootfs.target`).
    pub bundle: PathBuf,
    /// Root file system to mount.
    pub rootfs: Rootfs,
    /// What the mounts of `config.json` are made of.
    #[serde(default)]
    pub stage: Stage,
    /// Devices that may go and come back.
    #[serde(default)]
    pub devices: Devices,
    /// CRI log file (`<podLogsDir>/<ns>_<pod>_<uid>/<container>/<attempt>.log`).
    pub log: PathBuf,
    /// Rotate the log when it reaches this many bytes (0 = never).
    pub log_max_bytes: u64,
    /// Log files to keep of a run, the live one included.
    pub log_max_files: u32,
    /// Keep stdin open (`stdin: true`).
    pub stdin: bool,
    /// Close stdin after the first attach session (`stdinOnce`).
    pub stdin_once: bool,
    /// Allocate a terminal.
    pub tty: bool,
}

/// What may change about a container's devices while it runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Devices {
    /// Its rules without those for `nodes`; none when none are enforced.
    pub rules: Vec<Rule>,
    /// Device nodes of the machine that are mounted in it.
    pub nodes: Vec<Node>,
}

/// A device node of the machine, mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Path in the container.
    pub destination: PathBuf,
    /// Path on the machine, which stays; links are followed anew each time.
    pub source: PathBuf,
    /// Mounted read-only, and may only be read.
    pub read_only: bool,
    /// What is there; `None` when nothing is.
    pub found: Option<Found>,
}

/// An overlay mount: the shim mounts it in its own mount namespace, so that it vanishes with the pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rootfs {
    /// Unpacked layers, bottom first.
    pub layers: Vec<PathBuf>,
    /// Writable layer; made when missing.
    pub upper: PathBuf,
    /// overlayfs work folder, on the same file system as `upper`.
    pub work: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
}

/// What a shim answers.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack, for as long as it takes to read it")]
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Reply {
    Started {
        instance: Instance,
    },
    Done,
    List {
        instances: Vec<Instance>,
    },
    /// Paths in the container of devices that went, and that came (back).
    Devices {
        gone: Vec<PathBuf>,
        back: Vec<PathBuf>,
    },
    /// With it come a pipe to read of each output: one with a terminal, else two. Then the terminal's master, to be written
    /// to and sized, or the write end of the input if it was asked for.
    Attached {
        terminal: bool,
        /// Whether the container takes input.
        stdin: bool,
        /// Whether the container's input is to end with the first client's.
        stdin_once: bool,
    },
    Error {
        message: String,
    },
}
