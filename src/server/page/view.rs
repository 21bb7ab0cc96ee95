//! What there is → what the page shows of it. Pure.
//!
//! Environment, commands and mounts stay away: they may hold what is not for everybody who may see that a pod runs.

use super::super::columns::pod_row;
use super::super::types::ImageItem;
use super::super::{Node, cluster};
use crate::pod::is_from_api;
use crate::stats::{FsUsage, Snapshot, Usage};
use crate::sys::{clock, ntp};
use jiff::{Timestamp, Unit};
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Event, Node as ApiNode, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Most events that are shown, the newest.
const EVENTS: usize = 200;
/// What a pod's name bears on the page: conditions that say what keeps its manifest from being what runs.
const APPLIED: &str = "coracle.dev/ManifestApplied";

fn seconds(time: Option<&Time>) -> Option<i64> {
    time.map(|time| time.0.as_second())
}

/// The node itself.
pub(super) fn node(node: &dyn Node) -> Value {
    let object = node.node();
    let cluster = node.cluster().map(|handle| cluster::summary(node.name(), &handle));
    let mut value = object_of_node(&object);
    value["name"] = json!(node.name());
    value["version"] = json!(env!("CARGO_PKG_VERSION"));
    value["manifestDir"] = json!(node.manifest_dir().display().to_string());
    value["cluster"] = json!(cluster);
    value
}

fn object_of_node(object: &ApiNode) -> Value {
    let status = object.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let is_bad = |type_: &str, status: &str| match type_ {
        "Ready" => status != "True",
        _ if type_.ends_with("Pressure") => status != "False",
        _ => status == "False",
    };
    let problems: Vec<Value> = conditions
        .iter()
        .filter(|condition| is_bad(&condition.type_, &condition.status))
        .map(|c| json!({ "what": c.type_, "reason": c.reason, "message": c.message }))
        .collect();
    let info = status.node_info.unwrap_or_default();
    let amount = |name: &str| status.capacity.as_ref().and_then(|all| all.get(name)).map(|quantity| quantity.0.clone());
    let addresses: Vec<String> = status
        .addresses
        .unwrap_or_default()
        .into_iter()
        .filter(|address| address.type_ == "InternalIP")
        .map(|address| address.address)
        .collect();
    json!({
        "ready": ready.is_some_and(|condition| condition.status == "True"),
        "problems": problems,
        "os": info.os_image,
        "kernel": info.kernel_version,
        "architecture": info.architecture,
        "cpus": amount("cpu"),
        "memory": amount("memory"),
        "addresses": addresses,
    })
}

/// All pods.
pub(super) fn pods<P: AsRef<Pod>>(pods: &[P]) -> Value {
    pods.iter().map(|pod| one(pod.as_ref())).collect()
}

fn one(pod: &Pod) -> Value {
    let status = pod.status.clone().unwrap_or_default();
    // Ages are the page's own; of the row only what does not change with the time is taken.
    let row = pod_row(pod, false, Timestamp::UNIX_EPOCH);
    let cell = |index: usize| row.get(index).cloned().unwrap_or_default();
    let restarts = cell(3).split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let statuses: BTreeMap<&str, &ContainerStatus> =
        lists.into_iter().flatten().flatten().map(|status| (status.name.as_str(), status)).collect();
    let applied = status.conditions.iter().flatten().find(|c| c.type_ == APPLIED && c.status == "False");
    json!({
        "namespace": pod.metadata.namespace,
        "name": pod.metadata.name,
        "uid": pod.metadata.uid,
        "ready": cell(1),
        "status": cell(2),
        "tone": tone(pod, &cell(2), applied.is_none()),
        "restarts": restarts,
        "created": seconds(pod.metadata.creation_timestamp.as_ref()),
        "ip": status.pod_ip,
        "source": if is_from_api(pod) { "cluster" } else { "manifest" },
        "message": status.message,
        "problem": applied.and_then(|condition| condition.message.clone()),
        "containers": containers(pod, &statuses),
    })
}

/// How to feel about it: `good`, `wait`, `bad` or `done`.
fn tone(pod: &Pod, word: &str, is_as_written: bool) -> &'static str {
    let status = pod.status.as_ref();
    let is_ready =
        status.is_some_and(|s| s.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"));
    match status.and_then(|status| status.phase.as_deref()) {
        Some("Failed") => "bad",
        Some("Succeeded") => "done",
        _ if pod.metadata.deletion_timestamp.is_some() => "wait",
        _ if ["Err", "BackOff", "Error", "Invalid", "OOM", "Failed", "Unavailable"]
            .iter()
            .any(|bad| word.contains(bad)) =>
        {
            "bad"
        }
        _ if is_ready && is_as_written => "good",
        _ => "wait",
    }
}

fn containers(pod: &Pod, statuses: &BTreeMap<&str, &ContainerStatus>) -> Vec<Value> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let kind_of = |container: &Container| match container.restart_policy.as_deref() {
        Some("Always") => "sidecar",
        _ => "init",
    };
    let init = spec.init_containers.iter().flatten().map(|c| (&c.name, &c.image, kind_of(c)));
    let main = spec.containers.iter().map(|c| (&c.name, &c.image, ""));
    let debug = spec.ephemeral_containers.iter().flatten().map(|c| (&c.name, &c.image, "debug"));
    let shown = |(name, image, kind): (&String, &Option<String>, &str)| {
        let status = statuses.get(name.as_str());
        let last = status.and_then(|status| status.last_state.as_ref());
        json!({
            "name": name,
            "image": image,
            "kind": kind,
            "ready": status.is_some_and(|status| status.ready),
            "restarts": status.map_or(0, |status| status.restart_count),
            "state": status.and_then(|status| status.state.as_ref()).map(state),
            "last": last.filter(|last| last.terminated.is_some()).map(state),
        })
    };
    init.chain(main).chain(debug).map(shown).collect()
}

fn state(state: &ContainerState) -> Value {
    if let Some(running) = &state.running {
        return json!({ "word": "Running", "since": seconds(running.started_at.as_ref()) });
    }
    if let Some(ended) = &state.terminated {
        return json!({
            "word": ended.reason.clone().unwrap_or_else(|| "Terminated".to_owned()),
            "message": ended.message,
            "exit": ended.exit_code,
            "since": seconds(ended.finished_at.as_ref()),
        });
    }
    let waiting = state.waiting.clone().unwrap_or_default();
    json!({ "word": waiting.reason.unwrap_or_else(|| "Waiting".to_owned()), "message": waiting.message })
}

/// The newest events, newest first.
pub(super) fn events(events: &[Event]) -> Value {
    let shown = |event: &Event| {
        let object = &event.involved_object;
        json!({
            "type": event.type_,
            "reason": event.reason,
            "message": event.message,
            "kind": object.kind,
            "namespace": object.namespace,
            "name": object.name,
            "count": event.count.unwrap_or(1),
            "last": seconds(event.last_timestamp.as_ref().or(event.first_timestamp.as_ref())),
        })
    };
    events.iter().rev().take(EVENTS).map(shown).collect()
}

/// The images of the store.
pub(super) fn images(items: &[ImageItem]) -> Value {
    let shown = |image: &ImageItem| {
        json!({
            "id": image.id,
            "names": image.names,
            "size": image.size,
            "added": (image.added > 0).then_some(image.added),
            "usedBy": image.used_by,
            "inUse": image.in_use,
            "pinned": image.pinned,
            "damaged": image.damaged,
            "verified": image.verified.len(),
        })
    };
    items.iter().map(shown).collect()
}

/// What is used, and what time it is.
pub(super) fn usage(stats: &Snapshot) -> Value {
    let now = clock::wall();
    let ahead = clock::ahead().round(Unit::Second).map_or(0, |ahead| ahead.as_secs());
    let pods: BTreeMap<&str, Value> = stats
        .pods
        .iter()
        .map(|pod| {
            let mut value = amounts(&pod.usage);
            let each = pod.containers.iter().map(|container| (container.name.as_str(), amounts(&container.usage)));
            value["containers"] = json!(each.collect::<BTreeMap<&str, Value>>());
            (pod.uid.as_str(), value)
        })
        .collect();
    let mut node = amounts(&stats.node.usage);
    node["started"] = json!(stats.node.started.map(Timestamp::as_second));
    node["fs"] = json!(stats.node.fs.as_ref().map(space));
    node["imageFs"] = json!(stats.node.image_fs.as_ref().map(space));
    json!({
        "now": now.as_millisecond(),
        // Since the agent started.
        "set": ahead,
        "synchronised": ntp::is_synchronised(),
        "node": node,
        "pods": pods,
    })
}

/// Billionths of a core, and bytes.
fn amounts(usage: &Usage) -> Value {
    json!({ "cpu": usage.cpu_nano_cores, "memory": usage.memory.map(|memory| memory.working_set) })
}

/// Bytes.
fn space(fs: &FsUsage) -> Value {
    json!({ "capacity": fs.capacity_bytes, "available": fs.available_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{ContainerStats, Memory, PodStats};

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).expect("pod")
    }

    #[test]
    fn a_pod_is_shown_with_all_its_containers_and_nothing_that_may_be_secret() {
        let pod = pod(json!({
            "metadata": {"name": "web-n", "namespace": "shop", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "initContainers": [{"name": "setup", "image": "i:1"}, {"name": "proxy", "image": "p:1", "restartPolicy": "Always"}],
                "containers": [{"name": "app", "image": "a:1", "command": ["run", "--password=hush"],
                    "env": [{"name": "TOKEN", "value": "hush"}]}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.7",
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "coracle.dev/ManifestApplied", "status": "False",
                    "reason": "ManifestInvalid", "message": "line 3: what"}],
                "initContainerStatuses": [
                    {"name": "setup", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                        "state": {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": "2026-01-01T00:00:02Z"}}},
                    {"name": "proxy", "image": "", "imageID": "", "ready": true, "started": true, "restartCount": 0,
                        "state": {"running": {"startedAt": "2026-01-01T00:00:03Z"}}}],
                "containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 4,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                    "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": "2026-01-01T00:00:09Z"}}}],
            },
        }));
        let shown = one(&pod);
        assert_eq!(
            shown,
            json!({
                "namespace": "shop", "name": "web-n", "uid": "u", "ready": "1/2", "status": "CrashLoopBackOff,ManifestInvalid",
                "tone": "bad", "restarts": 4, "created": 1_767_225_600, "ip": "10.0.0.7", "source": "manifest",
                "message": null, "problem": "line 3: what",
                "containers": [
                    {"name": "setup", "image": "i:1", "kind": "init", "ready": true, "restarts": 0,
                        "state": {"word": "Completed", "message": null, "exit": 0, "since": 1_767_225_602}, "last": null},
                    {"name": "proxy", "image": "p:1", "kind": "sidecar", "ready": true, "restarts": 0,
                        "state": {"word": "Running", "since": 1_767_225_603}, "last": null},
                    {"name": "app", "image": "a:1", "kind": "", "ready": false, "restarts": 4,
                        "state": {"word": "CrashLoopBackOff", "message": "back-off 10s"},
                        "last": {"word": "Error", "message": null, "exit": 3, "since": 1_767_225_609}},
                ],
            })
        );
        assert!(!shown.to_string().contains("hush"), "{shown}");
        assert_eq!(one(&Pod::default())["tone"], "wait", "a pod of which nothing is known yet");
    }

    #[test]
    fn what_is_wrong_with_the_node_is_told() {
        let condition =
            |type_: &str, status: &str| json!({"type": type_, "status": status, "reason": "R", "message": "m"});
        let node: ApiNode = serde_json::from_value(json!({"metadata": {}, "status": {
            "conditions": [condition("MemoryPressure", "False"), condition("DiskPressure", "True"),
                condition("ManifestSourceHealthy", "False"), condition("Ready", "True")],
            "capacity": {"cpu": "2", "memory": "100Ki"}}}))
        .expect("node");
        let shown = object_of_node(&node);
        assert_eq!(shown["ready"], true);
        let what: Vec<&str> = shown["problems"].as_array().unwrap().iter().filter_map(|p| p["what"].as_str()).collect();
        assert_eq!(what, ["DiskPressure", "ManifestSourceHealthy"]);
        assert_eq!((&shown["cpus"], &shown["memory"]), (&json!("2"), &json!("100Ki")));
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let usage = Usage {
            cpu_nano_cores: Some(5),
            memory: Some(Memory { working_set: 7, ..Memory::default() }),
            ..Usage::default()
        };
        let container = ContainerStats { name: "c".into(), usage, ..ContainerStats::default() };
        let pod = PodStats { uid: "u".into(), containers: vec![container], ..PodStats::default() };
        let shown = super::usage(&Snapshot { pods: vec![pod], ..Snapshot::default() });
        assert_eq!(
            shown["pods"]["u"],
            json!({"cpu": null, "memory": null, "containers": {"c": {"cpu": 5, "memory": 7}}})
        );
        assert_eq!(shown["node"]["fs"], Value::Null);
        assert!(shown["now"].as_i64().is_some_and(|now| now > 0));
    }

    #[test]
    fn the_newest_events_come_first() {
        let event = |n: usize| -> Event {
            let object = json!({"kind": "Pod", "name": n.to_string(), "namespace": "n"});
            serde_json::from_value(json!({"metadata": {}, "involvedObject": object, "type": "Normal"})).expect("event")
        };
        let all: Vec<Event> = (0..EVENTS + 5).map(event).collect();
        let shown = events(&all);
        assert_eq!(shown.as_array().map(Vec::len), Some(EVENTS));
        assert_eq!((&shown[0]["name"], &shown[0]["count"]), (&json!((EVENTS + 4).to_string()), &json!(1)));
    }
}
