//! Probes and lifecycle hooks: one question to a container, and its answer.
//!
//! Everything runs on the event loop; only an exec starts a process, and only while it lasts. No connection outlives its
//! question. What answers mean is decided in [`crate::pod::probe`].

mod address;
mod connect;
mod exec;
mod grpc;
mod health_proto;
mod hook;
mod http;
mod tcp;
mod tls;
mod url;

#[cfg(test)]
mod tests;

pub use hook::hook;

use crate::shim;
use k8s_openapi::api::core::v1::{Container, Probe};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The container that is asked.
#[derive(Debug, Clone)]
pub struct Target {
    /// As the manifest has it: names of ports, literal variables.
    pub container: Arc<Container>,
    /// Addresses of the pod; none for a static one under hostNetwork (as kubelet: loopback is asked then).
    pub ips: Vec<IpAddr>,
    /// Where to exec.
    pub exec: shim::exec::Target,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It passed.
    Success,
    /// It passed, but look at this.
    Warning(String),
    /// It failed, and how, in the kubelet's words.
    Failure(String),
    /// It could not be made, and why: that says nothing of the container.
    Error(String),
}

/// Longest text of an answer in bytes: it comes from the container, and is kept with the node's events.
const MAX_TEXT: usize = 10 * 1024;
/// How often a probe that cannot be made is tried (as kubelet).
const ATTEMPTS: usize = 3;

/// Asks once; never takes much longer than the probe's time-out. Dropping the future ends all that it began.
pub async fn check(probe: &Probe, target: &Target) -> Answer {
    let mut answer = ask(probe, target).await;
    for _ in 1..ATTEMPTS {
        let Answer::Error(_) = answer else { break };
        answer = ask(probe, target).await;
    }
    if let Answer::Warning(text) | Answer::Failure(text) | Answer::Error(text) = &mut answer {
        cut(text);
    }
    answer
}

fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
}

async fn ask(probe: &Probe, target: &Target) -> Answer {
    let timeout = match probe.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.unsigned_abs().into()),
        _ => Duration::from_secs(1),
    };
    if let Some(action) = &probe.http_get {
        http::probe(action, target, timeout).await
    } else if let Some(action) = &probe.tcp_socket {
        tcp::probe(action, target, timeout).await
    } else if let Some(action) = &probe.grpc {
        grpc::probe(action, target, timeout).await
    } else if let Some(action) = &probe.exec {
        exec::probe(action, target, timeout).await
    } else {
        Answer::Error("missing probe handler".to_owned())
    }
}

/// A duration in the words of Go: `1s`, `1m30s`, `2h0m0s`.
fn words(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    if seconds == 0 && millis > 0 {
        return format!("{millis}ms");
    }
    let rest = match millis {
        0 => format!("{}s", seconds % 60),
        _ => format!("{}.{:03}", seconds % 60, millis).trim_end_matches('0').to_owned() + "s",
    };
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => rest,
        (0, minutes) => format!("{minutes}m{rest}"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
    }
}
