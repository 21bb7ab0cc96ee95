//! One process per pod: the only caller of libcontainer.
//!
//! The agent starts a shim with [`Client::spawn`] and talks to it over a socket ([`protocol`]). The shim mounts the
//! containers' root file systems in a mount namespace of its own, creates the containers through throwaway children
//! ([`start`]), writes their logs ([`log`]), and records how they end ([`record`]). It outlives the agent, which
//! finds it again with [`Client::connect`]; what a killed shim leaves is removed by [`reap_orphans`].
//!
//! [`exec`] joins a running container, without the shim; [`attach`] gets a copy of its output from the shim.

pub mod attach;
mod cgroup;
mod client;
mod console;
mod container;
mod devices;
pub mod exec;
mod exec_process;
mod hotplug;
mod log;
mod pause;
mod program;
pub mod protocol;
mod record;
mod role;
mod service;
mod socket;
mod start;
mod tap;
mod trace;
mod volumes;
mod userns;

pub use cgroup::prewarm;
pub use client::{Client, Error, Event, SpawnOptions, drain, reap_orphans};
pub use service::main;

/// Name of the shim's socket in its run folder.
const SOCKET: &str = "shim.sock";
/// Name of the file that tells which process serves the socket.
const IDENTITY: &str = "shim.json";
/// Name of libcontainer's root in the run folder.
const STATE: &str = "state";

/// Content of `shim.json`.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    pid: i32,
    /// Clock ticks since boot: see [`crate::sys::process::start_ticks`].
    start: u64,
    boot_id: String,
    /// Version of the program that the shim runs.
    version: String,
    /// The shim's own cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cgroup: Option<String>,
}
