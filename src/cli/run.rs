//! `run`: pods in the foreground. The manifest goes to the node's agent under a name of its own; when this command
//! ends, by Ctrl-C or because the pods have completed, the pods are removed and waited for.
//!
//! With `--until-complete` it is what a oneshot unit needs: the name stays the same from one attempt to the next, so that a
//! run after a power cut takes up what the one before it left behind; the exit code is the pods' result; and with
//! `--wait-for-agent` an agent that comes late, or is restarted meanwhile, disturbs nothing.

use super::client::{Client, decode};
use super::error::Error;
use super::manifests;
use super::{print_bytes, terminal};
use crate::manifest::{self, Origin};
use crate::server::encode;
use crate::server::types::{Applied, PodName};
use hyper::Method;
use hyper::body::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Longest wait for pods to stop; they have grace periods of their own, this only ends a wait for a dead agent.
const STOP_TIME: Duration = Duration::from_secs(3600);
/// Between two attempts to reach an agent.
const RETRY: Duration = Duration::from_millis(200);
/// Colours of prefixes, in turn.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];
/// Stands in for the node's name, where only the pods' own names count.
const ANY_NODE: &str = "node";

/// What `run` is asked to do.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// End when all pods have completed; the exit code is 0, or that of the first container that failed
    #[arg(long)]
    pub until_complete: bool,
    /// How long to wait for an agent that is not up yet, or is restarted meanwhile
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = crate::config::duration)]
    pub wait_for_agent: Duration,
}

/// Why the foreground ended.
enum End {
    /// By a signal of that number.
    Interrupted(i32),
    Completed(Vec<Failed>),
}

/// A pod that failed.
struct Failed {
    name: String,
    code: i32,
}

/// Runs `run`.
pub(super) async fn run(client: &Client, source: &str, options: Options) -> Result<i32, Error> {
    let signals = |kind| signal(kind).map_err(|error| Error::new("cannot watch for signals", error));
    // Before anything is started, so that nothing is left behind.
    let (mut interrupt, mut terminate) = (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
    let mut hang_up = signals(SignalKind::hangup())?;
    let mut stopped_by = async || {
        tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
            _ = hang_up.recv() => 1,
        }
    };
    let code_of = |signal: i32| if options.until_complete { 128 + signal } else { 0 };
    let manifest = manifests::read(source).await?;
    let mut file = format!("run-{}", std::process::id());
    let loaded = manifest::load(&manifest, Origin::File(source), ANY_NODE);
    if loaded.pods.is_empty() && !loaded.has_errors() {
        return Err(Error::new("nothing to run", "the manifest defines no pod"));
    }
    if options.until_complete {
        let pods = loaded.pods;
        if let Some(why) = pods.iter().find_map(endless) {
            let hint = "with --until-complete, restartPolicy must be OnFailure or Never";
            return Err(Error::new(why, "restartPolicy is Always").hint(hint));
        }
        // What is wrong with a manifest that defines no pod, the agent says.
        file = pods.first().map_or(file, stem);
    }
    tokio::select! {
        reached = reach(client, options.wait_for_agent) => reached?,
        signal = stopped_by() => return Ok(code_of(signal)),
    }
    // Who waits for an end must not wait for ever.
    let query = format!("?file={file}&strict={}", options.until_complete);
    let applied = manifests::send(client, source, manifest, &query).await?;
    let mut seen = Seen::default();
    let end = tokio::select! {
        end = foreground(client, &applied.pods, options, &mut seen) => end,
        signal = stopped_by() => Ok(End::Interrupted(signal)),
    };
    if matches!(end, Ok(End::Interrupted(_))) {
        eprintln!("stopping {}", names(&applied.pods));
    }
    let stopped = tokio::select! {
        stopped = stop(client, &file) => stopped,
        // A second Ctrl-C: the file is removed already, the agent stops the pods without anybody watching.
        _ = stopped_by() => Err(Error::new("not waiting for the pods to stop", "interrupted")),
    };
    // What is left behind must not be a secret, whatever else went wrong.
    stopped.map_err(|error| error.hint(format!("the pods stay as long as the node has {}", applied.file)))?;
    match end? {
        End::Interrupted(signal) => Ok(code_of(signal)),
        End::Completed(failed) => match failed.first() {
            None => Ok(0),
            Some(first) => {
                let names: Vec<&str> = failed.iter().map(|failed| failed.name.as_str()).collect();
                Err(Error::new("failed", names.join(", ")).with_code(first.code))
            }
        },
    }
}

/// Why a pod never completes.
fn endless(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.restart_policy.as_deref().unwrap_or("Always");
    let always = |own: &Option<String>| own.as_deref().unwrap_or(of_pod) == "Always";
    let container = spec.containers.iter().find(|container| always(&container.restart_policy))?;
    let (_, name) = own_name(pod);
    Some(match container.restart_policy {
        None => format!("pod {name} never completes"),
        Some(_) => format!("pod {name} never completes: container {}", container.name),
    })
}

/// Namespace and name as its manifest has them.
fn own_name(pod: &Pod) -> (&str, &str) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let name = name.strip_suffix(ANY_NODE).and_then(|name| name.strip_suffix('-')).unwrap_or(name);
    (pod.metadata.namespace.as_deref().unwrap_or("default"), name)
}

/// The name of the manifest on the node: that of its first pod, so that the next attempt finds what this one left.
fn stem(first: &Pod) -> String {
    let (namespace, name) = own_name(first);
    // File names are limited, pods' names go up to 253 bytes; both are ASCII, as they are valid.
    format!("run-{namespace}_{name}").chars().take(200).collect()
}

/// Waits until somebody listens on the agent's socket.
async fn reach(client: &Client, limit: Duration) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        match client.probe().await {
            Err(error) if error.is_absent && started.elapsed() < limit => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(error.error),
            Ok(()) => return Ok(()),
        }
    }
}

fn names(pods: &[PodName]) -> String {
    pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>().join(", ")
}

async fn stop(client: &Client, file: &str) -> Result<(), Error> {
    let path = format!("/coracle/v1/delete?file={}", encode(file));
    let answer = match client.try_send(Method::POST, &path, Bytes::new()).await {
        Ok(answer) => answer,
        // Another run of the same manifest has ended before this one.
        Err((_, status)) if status.code == 404 => return Ok(()),
        Err((error, _)) => return Err(error),
    };
    let removed: Vec<Applied> = decode(&answer)?;
    let pods = removed.into_iter().flat_map(|applied| applied.pods).map(|pod| (pod.namespace, pod.name)).collect();
    manifests::wait_until_gone(client, pods, STOP_TIME).await
}

/// Namespace and name of a pod.
type PodKey = (String, String);
/// When the last line of a log was written that has been printed.
type Printed = Arc<Mutex<Option<Timestamp>>>;

/// What was seen of the pods, across restarts of the agent.
#[derive(Default)]
struct Seen {
    prefixes: Prefixes,
    logs: HashMap<(PodKey, String), (String, Printed)>,
    statuses: HashMap<PodKey, PodStatus>,
    /// Pod, container and reason of what has been told.
    waits: HashSet<(PodKey, String, String)>,
}

/// Streams logs until the pods have completed (if that is asked for) or the agent is gone for good.
async fn foreground(client: &Client, pods: &[PodName], options: Options, seen: &mut Seen) -> Result<End, Error> {
    let mut heard = Instant::now();
    loop {
        let lost = match follow_pods(client, pods, options.until_complete, seen, &mut heard).await {
            Ok(end) => return Ok(end),
            Err(Broken::Off(error)) => error,
            Err(Broken::ForGood(error)) => return Err(error),
        };
        let Some(left) = options.wait_for_agent.checked_sub(heard.elapsed()).filter(|left| !left.is_zero()) else {
            return Err(lost);
        };
        tokio::time::sleep(RETRY.min(left)).await;
        reach(client, left).await?;
    }
}

/// How a watch of pods broke.
enum Broken {
    /// With the connection: another one may do better.
    Off(Error),
    ForGood(Error),
}

async fn follow_pods(
    client: &Client,
    pods: &[PodName],
    until_complete: bool,
    seen: &mut Seen,
    heard: &mut Instant,
) -> Result<End, Broken> {
    // Those of another connection went with it.
    let mut running: JoinSet<Result<(), Error>> = JoinSet::new();
    let mut begun = HashSet::new();
    let mut watch = client.stream("/api/v1/pods?watch=1").await.map_err(Broken::Off)?;
    while let Some(line) = watch.line().await.map_err(Broken::Off)? {
        *heard = Instant::now();
        let event: Value = decode(&line).map_err(Broken::ForGood)?;
        let pod: Pod = serde_json::from_value(event["object"].clone())
            .map_err(|error| Broken::ForGood(Error::new("the agent's answer makes no sense", error)))?;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let key = (text(&pod.metadata.namespace), text(&pod.metadata.name));
        if !pods.iter().any(|name| name.namespace == key.0 && name.name == key.1) {
            continue;
        }
        if event["type"] == "DELETED" {
            return Err(Broken::ForGood(Error::new(format!("pod {} was removed", key.1), "its manifest is gone")));
        }
        let status = pod.status.clone().unwrap_or_default();
        let statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let statuses: Vec<&ContainerStatus> = statuses.collect();
        for container in &statuses {
            if let Some((reason, why)) = trouble(container)
                && seen.waits.insert((key.clone(), container.name.clone(), reason.to_owned()))
            {
                eprintln!("pod {}: container {} waits: {why}", key.1, container.name);
            }
        }
        for container in statuses.into_iter().filter(|container| has_begun(container)) {
            let log = (key.clone(), container.name.clone());
            if begun.insert(log.clone()) {
                let new = || (seen.prefixes.of(&key.1, &container.name), Printed::default());
                let (prefix, printed) = seen.logs.entry(log).or_insert_with(new).clone();
                let (client, key, name) = (client.clone(), key.clone(), container.name.clone());
                running.spawn(async move { follow(&client, &key, &name, &prefix, &printed).await });
            }
        }
        let phase = |status: &PodStatus| text(&status.phase);
        if phase(&status) == "Failed" && seen.statuses.get(&key).is_none_or(|old| phase(old) != "Failed") {
            eprintln!("pod {} failed: {}", key.1, failure(&status));
        }
        seen.statuses.insert(key, status);
        let ended = pods.iter().map(|name| {
            let status = seen.statuses.get(&(name.namespace.clone(), name.name.clone()))?;
            ["Succeeded", "Failed"].contains(&phase(status).as_str()).then_some((&name.name, status))
        });
        if let Some(over) = ended.collect::<Option<Vec<_>>>().filter(|_| until_complete) {
            // The logs end by themselves now; what they still hold belongs to the output.
            while let Some(log) = running.join_next().await {
                report(log);
            }
            let failed = over.into_iter().filter(|(_, status)| phase(status) == "Failed");
            let failed = failed.map(|(name, status)| Failed { name: name.clone(), code: exit_code(status) });
            return Ok(End::Completed(failed.collect()));
        }
        while let Some(log) = running.try_join_next() {
            report(log);
        }
    }
    Err(Broken::Off(Error::new("the agent closed the connection", "is it being restarted?")))
}

/// The exit code that stands for a failed pod: that of the first container that failed.
fn exit_code(status: &PodStatus) -> i32 {
    let statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let codes = statuses.filter_map(|container| Some(container.state.as_ref()?.terminated.as_ref()?.exit_code));
    codes.into_iter().find(|code| (1..=255).contains(code)).unwrap_or(1)
}

/// A log that breaks off is no reason to stop the pods, but not a secret either.
fn report(log: Result<Result<(), Error>, tokio::task::JoinError>) {
    if let Ok(Err(error)) = log {
        eprintln!("{error}");
    }
}

/// Why a container waits, where that is not the way of things: the reason, and all of it in words.
fn trouble(status: &ContainerStatus) -> Option<(&str, String)> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason =
        waiting.reason.as_deref().filter(|reason| !["ContainerCreating", "PodInitializing"].contains(reason))?;
    let message = waiting.message.as_deref().filter(|message| !message.is_empty());
    Some((reason, message.map_or_else(|| reason.to_owned(), |message| format!("{reason}: {message}"))))
}

/// Whether a container has a log.
fn has_begun(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    state.is_some_and(|state| state.running.is_some() || state.terminated.is_some()) || status.restart_count > 0
}

/// Prints a log from where an earlier connection left off.
async fn follow(
    client: &Client,
    (namespace, pod): &PodKey,
    name: &str,
    prefix: &str,
    printed: &Printed,
) -> Result<(), Error> {
    let since = *printed.lock().unwrap_or_else(PoisonError::into_inner);
    let path = format!("/api/v1/namespaces/{}/pods/{}/log", encode(namespace), encode(pod));
    let mut query = format!("follow=true&timestamps=true&container={}", encode(name));
    if let Some(since) = since {
        query.push_str(&format!("&sinceTime={}", encode(&since.to_string())));
    }
    let mut stream = client.stream(&format!("{path}?{query}")).await?;
    while let Some(line) = stream.line().await? {
        let (stamp, text) = stamped(&line);
        if since.is_some_and(|since| stamp.is_some_and(|stamp| stamp <= since)) {
            continue;
        }
        // In one piece, so that lines of two containers do not mix.
        print_bytes(&[prefix.as_bytes(), text].concat())?;
        if stamp.is_some() {
            *printed.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
        }
    }
    Ok(())
}

/// A line and the time before it.
fn stamped(line: &[u8]) -> (Option<Timestamp>, &[u8]) {
    let end = line.iter().position(|byte| *byte == b' ');
    let stamp = end.and_then(|end| std::str::from_utf8(&line[..end]).ok()?.parse().ok());
    match (stamp, end) {
        (Some(stamp), Some(end)) => (Some(stamp), &line[end + 1..]),
        _ => (None, line),
    }
}

/// `[pod/container]`, each in a colour of its own on a terminal.
struct Prefixes {
    colour: bool,
    given: usize,
}

impl Default for Prefixes {
    fn default() -> Prefixes {
        Prefixes::new(terminal::is_output())
    }
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

    fn pods(manifest: &str) -> Vec<Pod> {
        manifest::load(manifest.as_bytes(), Origin::File("m"), ANY_NODE).pods
    }

    #[test]
    fn pods_that_never_complete_are_known_before_they_run() {
        let of = |policies: &str| {
            let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: job-node}}\nspec: {{{policies}}}\n");
            let pods = pods(&text);
            assert_eq!(pods.len(), 1, "{text}");
            endless(&pods[0])
        };
        let two = |own: &str| format!("containers: [{{name: a, image: i}}, {{name: b, image: i{own}}}]");
        assert_eq!(of(&two("")), Some("pod job-node never completes".to_owned()));
        assert_eq!(of(&format!("restartPolicy: Never, {}", two(""))), None);
        assert_eq!(of(&format!("restartPolicy: OnFailure, {}", two(""))), None);
        let own = of(&format!("restartPolicy: Never, {}", two(", restartPolicy: Always")));
        assert_eq!(own, Some("pod job-node never completes: container b".to_owned()));
        // A sidecar goes with the containers that it serves.
        let sidecar = "restartPolicy: Never, initContainers: [{name: s, image: i, restartPolicy: Always}]";
        assert_eq!(of(&format!("{sidecar}, {}", two(""))), None);
    }

    #[test]
    fn a_manifest_has_the_same_file_name_each_time() {
        let head = "apiVersion: v1\nkind: Pod\nmetadata: {name: a.b, namespace: ns}\n";
        let pods = pods(&format!("{head}spec: {{containers: [{{name: a, image: i}}]}}\n"));
        assert_eq!(stem(&pods[0]), "run-ns_a.b");
        let mut long = pods[0].clone();
        long.metadata.name = Some("x".repeat(253));
        assert_eq!(stem(&long).len(), 200);
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_container_that_failed() {
        let status = |codes: &[i32]| {
            let containers: Vec<Value> = codes
                .iter()
                .map(|code| serde_json::json!({ "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": { "terminated": { "exitCode": code } } }))
                .collect();
            serde_json::from_value::<PodStatus>(serde_json::json!({ "containerStatuses": containers })).unwrap()
        };
        assert_eq!(exit_code(&status(&[0, 7, 9])), 7);
        // Evicted, say, or past its deadline.
        assert_eq!(exit_code(&status(&[0])), 1);
        assert_eq!(exit_code(&status(&[-1, 4096])), 1);
    }

    #[test]
    fn lines_are_told_from_their_times() {
        let (stamp, text) = stamped(b"2026-01-02T03:04:05.000000006Z hello you\n");
        assert_eq!((stamp.unwrap().subsec_nanosecond(), text), (6, &b"hello you\n"[..]));
        for odd in [&b"no time\n"[..], b"", b"2026-01-02T03:04:05Z", b"\xff x"] {
            assert_eq!(stamped(odd), (None, odd));
        }
    }
}
