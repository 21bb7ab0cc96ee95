//! `run`: pods in the foreground. The manifest goes to the node's agent under a name of its own; when this command
//! ends, by Ctrl-C or because the pods have completed, the pods are removed and waited for.

use super::client::{Client, decode};
use super::error::Error;
use super::manifests;
use super::{print_bytes, terminal};
use crate::server::encode;
use crate::server::types::{Applied, PodName};
use hyper::Method;
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Longest wait for pods to stop; they have grace periods of their own, this only ends a wait for a dead agent.
const STOP_TIME: Duration = Duration::from_secs(3600);
/// Colours of prefixes, in turn.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Why the foreground ended.
enum End {
    Interrupted,
    Completed { failed: Vec<String> },
}

/// Runs `run`.
pub(super) async fn run(client: &Client, source: &str, until_complete: bool) -> Result<i32, Error> {
    let signals = |kind| signal(kind).map_err(|error| Error::new("cannot watch for signals", error));
    // Before anything is started, so that nothing is left behind.
    let (mut interrupt, mut terminate) = (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
    let manifest = manifests::read(source).await?;
    let file = format!("run-{}", std::process::id());
    let applied = manifests::send(client, source, manifest, &format!("?file={file}")).await?;
    let end = tokio::select! {
        end = foreground(client, &applied.pods, until_complete) => end,
        _ = interrupt.recv() => Ok(End::Interrupted),
        _ = terminate.recv() => Ok(End::Interrupted),
    };
    if matches!(end, Ok(End::Interrupted)) {
        eprintln!("stopping {}", names(&applied.pods));
    }
    let stopped = tokio::select! {
        stopped = stop(client, &file) => stopped,
        // A second Ctrl-C: the file is removed already, the agent stops the pods without anybody watching.
        _ = interrupt.recv() => Err(Error::new("not waiting for the pods to stop", "interrupted")),
    };
    // What is left behind must not be a secret, whatever else went wrong.
    stopped.map_err(|error| error.hint(format!("the pods stay as long as the node has {}", applied.file)))?;
    let end = end?;
    match end {
        End::Interrupted => Ok(i32::from(until_complete)),
        End::Completed { failed } if failed.is_empty() => Ok(0),
        End::Completed { failed } => Err(Error::new("failed", failed.join(", "))),
    }
}

fn names(pods: &[PodName]) -> String {
    pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>().join(", ")
}

async fn stop(client: &Client, file: &str) -> Result<(), Error> {
    let path = format!("/coracle/v1/delete?file={}", encode(file));
    let answer = client.try_send(Method::POST, &path, Bytes::new()).await.map_err(|(error, _)| error)?;
    let removed: Vec<Applied> = decode(&answer)?;
    let pods = removed.into_iter().flat_map(|applied| applied.pods).map(|pod| (pod.namespace, pod.name)).collect();
    manifests::wait_until_gone(client, pods, STOP_TIME).await
}

/// Streams logs until the pods have completed (if that is asked for) or the agent is gone.
async fn foreground(client: &Client, pods: &[PodName], until_complete: bool) -> Result<End, Error> {
    let mut prefixes = Prefixes::new(terminal::is_output());
    let mut followed: HashSet<(String, String, String)> = HashSet::new();
    let mut phases: HashMap<(String, String), String> = HashMap::new();
    let mut logs = JoinSet::new();
    let mut watch = client.stream("/api/v1/pods?watch=1").await?;
    while let Some(line) = watch.line().await? {
        let event: Value = decode(&line)?;
        let pod: Pod = serde_json::from_value(event["object"].clone())
            .map_err(|error| Error::new("the agent's answer makes no sense", error))?;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let key = (text(&pod.metadata.namespace), text(&pod.metadata.name));
        if !pods.iter().any(|name| name.namespace == key.0 && name.name == key.1) {
            continue;
        }
        if event["type"] == "DELETED" {
            return Err(Error::new(format!("pod {} was removed", key.1), "its manifest is gone"));
        }
        let status = pod.status.clone().unwrap_or_default();
        let statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        for container in statuses.into_iter().filter(|container| has_begun(container)) {
            if followed.insert((key.0.clone(), key.1.clone(), container.name.clone())) {
                let (client, key, name) = (client.clone(), key.clone(), container.name.clone());
                let prefix = prefixes.of(&key.1, &name);
                logs.spawn(async move { follow(&client, &key, &name, &prefix).await });
            }
        }
        let phase = text(&status.phase);
        if phase == "Failed" && phases.get(&key).is_none_or(|old| *old != phase) {
            eprintln!("pod {} failed: {}", key.1, failure(&status));
        }
        phases.insert(key, phase);
        let is_over = |phase: &String| phase == "Succeeded" || phase == "Failed";
        if until_complete && phases.len() == pods.len() && phases.values().all(is_over) {
            // The logs end by themselves now; what they still hold belongs to the output.
            while let Some(log) = logs.join_next().await {
                report(log);
            }
            let failed = phases.into_iter().filter(|(_, phase)| phase == "Failed").map(|((_, name), _)| name).collect();
            return Ok(End::Completed { failed });
        }
        while let Some(log) = logs.try_join_next() {
            report(log);
        }
    }
    Err(Error::new("the agent closed the connection", "is it being restarted?"))
}

/// A log that breaks off is no reason to stop the pods, but not a secret either.
fn report(log: Result<Result<(), Error>, tokio::task::JoinError>) {
    if let Ok(Err(error)) = log {
        eprintln!("{error}");
    }
}

/// Whether a container has a log.
fn has_begun(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    state.is_some_and(|state| state.running.is_some() || state.terminated.is_some()) || status.restart_count > 0
}

async fn follow(client: &Client, (namespace, pod): &(String, String), name: &str, prefix: &str) -> Result<(), Error> {
    let path = format!("/api/v1/namespaces/{}/pods/{}/log", encode(namespace), encode(pod));
    let mut stream = client.stream(&format!("{path}?follow=true&container={}", encode(name))).await?;
    while let Some(line) = stream.line().await? {
        // In one piece, so that lines of two containers do not mix.
        print_bytes(&[prefix.as_bytes(), &line].concat())?;
    }
    Ok(())
}

/// `[pod/container]`, each in a colour of its own on a terminal.
struct Prefixes {
    colour: bool,
    given: usize,
}

impl Prefixes {
    fn new(on_terminal: bool) -> Prefixes {
        // https://no-color.org
        Prefixes { colour: on_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()), given: 0 }
    }

    fn of(&mut self, pod: &str, container: &str) -> String {
        let colour = COLOURS[self.given % COLOURS.len()];
        self.given += 1;
        if self.colour {
            format!("\u{1b}[{colour}m[{pod}/{container}]\u{1b}[0m ")
        } else {
            format!("[{pod}/{container}] ")
        }
    }
}

/// Why a pod failed: its own reason, or how its containers ended.
fn failure(status: &PodStatus) -> String {
    if status.reason.is_some() || status.message.is_some() {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        return format!("{} {}", text(&status.reason), text(&status.message)).trim().to_owned();
    }
    let ends = status.container_statuses.iter().flatten().filter_map(|container| {
        let end = container.state.as_ref()?.terminated.as_ref().filter(|end| end.exit_code != 0)?;
        let reason = end.reason.as_deref().unwrap_or("Error");
        Some(format!("container {} exited with code {} ({reason})", container.name, end.exit_code))
    });
    ends.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_coloured_on_a_terminal_only() {
        assert_eq!(Prefixes { colour: false, given: 0 }.of("p", "c"), "[p/c] ");
        let mut prefixes = Prefixes { colour: true, given: 0 };
        assert_ne!(prefixes.of("p", "c"), prefixes.of("p", "c"));
    }
}
