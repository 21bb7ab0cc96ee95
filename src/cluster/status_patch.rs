//! What of a pod's status the API server does not know yet, as a strategic merge patch.

use super::status_end::is_terminal;
use crate::manifest::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Conditions that the node alone speaks about, besides its own (`coracle.dev/…`).
const OWNED: [&str; 8] = [
    "PodScheduled",
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
    "PodResizePending",
    "PodResizeInProgress",
    "AllContainersRestarting",
];
/// One that others speak about, too: it is only ever added.
const SHARED: &str = "DisruptionTarget";

/// What brings the status that the API server has (`theirs`) in line with a report: the body of a PATCH of `pods/status`, good
/// for the pod of that UID only. `None`: nothing differs, or nothing of it may be told: a pod that has ended never runs again,
/// and neither does a container that may not restart.
pub(super) fn patch(report: &Pod, theirs: &Pod) -> Option<Value> {
    let ours = told(report, theirs)?;
    let none = PodStatus::default();
    let known = theirs.status.as_ref().unwrap_or(&none);
    let mut change = Map::new();
    let mut scalar = |name: &str, ours: Value, theirs: Value| {
        if ours != theirs {
            change.insert(name.to_owned(), ours);
        }
    };
    scalar("phase", json!(ours.phase), json!(known.phase));
    scalar("reason", json!(ours.reason), json!(known.reason));
    scalar("message", json!(ours.message), json!(known.message));
    scalar("hostIP", json!(ours.host_ip), json!(known.host_ip));
    // As kubelet: who looks at a pod that has ended still finds where it was.
    let addressed = ours.pod_ip.is_some();
    if addressed {
        scalar("podIP", json!(ours.pod_ip), json!(known.pod_ip));
    }
    if known.start_time.is_none() {
        scalar("startTime", json!(ours.start_time), Value::Null);
    }
    if known.qos_class.is_none() {
        scalar("qosClass", json!(ours.qos_class), Value::Null);
    }
    if ours.observed_generation.is_some() {
        scalar("observedGeneration", json!(ours.observed_generation), json!(known.observed_generation));
    }
    let mut list = |name: &str, ours: Value, theirs: Value, merges: bool| {
        if ours == theirs {
            return;
        }
        // A list that merges by a key is replaced as a whole: its order says which address is the first.
        let directive = merges.then(|| json!({ "$patch": "replace" }));
        let items = ours.as_array().cloned().unwrap_or_default();
        change.insert(name.to_owned(), directive.into_iter().chain(items).collect());
    };
    list("hostIPs", listed(&ours.host_ips), listed(&known.host_ips), true);
    if addressed {
        list("podIPs", listed(&ours.pod_ips), listed(&known.pod_ips), true);
    }
    // A report that says nothing of containers (of a pod that was refused) takes nothing back.
    if ours.container_statuses.is_some() {
        list("containerStatuses", listed(&ours.container_statuses), listed(&known.container_statuses), false);
    }
    if ours.init_container_statuses.is_some() {
        let theirs = listed(&known.init_container_statuses);
        list("initContainerStatuses", listed(&ours.init_container_statuses), theirs, false);
    }
    if ours.ephemeral_container_statuses.is_some() {
        let theirs = listed(&known.ephemeral_container_statuses);
        list("ephemeralContainerStatuses", listed(&ours.ephemeral_container_statuses), theirs, false);
    }
    let conditions = conditions(ours.conditions.as_deref(), known.conditions.as_deref().unwrap_or_default());
    if !conditions.is_empty() {
        change.insert("conditions".to_owned(), Value::Array(conditions));
    }
    (!change.is_empty()).then(|| json!({ "metadata": { "uid": theirs.metadata.uid }, "status": change }))
}

/// What may be told of a report to somebody who knows `theirs`.
fn told(report: &Pod, theirs: &Pod) -> Option<PodStatus> {
    let mut ours = report.status.clone()?;
    whole_seconds(&mut ours);
    if is_terminal(theirs) {
        if !is_terminal(report) {
            return None;
        }
        ours.phase = theirs.status.as_ref().and_then(|status| status.phase.clone());
    }
    let containers = [&ours.init_container_statuses, &ours.container_statuses, &ours.ephemeral_container_statuses];
    let runs = |c: &ContainerStatus| c.state.as_ref().is_some_and(|state| state.running.is_some());
    if is_terminal(report) && !is_terminal(theirs) && containers.into_iter().flatten().flatten().any(runs) {
        // It ends when it has ended.
        let known = theirs.status.as_ref();
        ours.phase = known.and_then(|status| status.phase.clone()).or(Some("Running".to_owned()));
        ours.reason = known.and_then(|status| status.reason.clone());
        ours.message = known.and_then(|status| status.message.clone());
        ours.conditions.iter_mut().for_each(|all| all.retain(|condition| condition.type_ != SHARED));
    }
    if revives(&ours, theirs) {
        return None;
    }
    for status in [&mut ours.init_container_statuses, &mut ours.container_statuses].into_iter().flatten().flatten() {
        canonical(status);
    }
    if let Some(all) = &mut ours.container_statuses {
        all.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Some(ours)
}

/// Whether a container that ended for good would not have, after all. The API server refuses that.
fn revives(ours: &PodStatus, theirs: &Pod) -> bool {
    let Some(spec) = &theirs.spec else { return false };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let for_good = |known: &ContainerStatus| {
        let code = known.state.as_ref().and_then(|state| state.terminated.as_ref()).map(|end| end.exit_code);
        let has_rules = |c: &&Container| c.restart_policy.is_some() || c.restart_policy_rules.is_some();
        let own = spec.containers.iter().find(|c| c.name == known.name).filter(has_rules).is_some();
        !own && (policy == "Never" && code.is_some() || policy == "OnFailure" && code == Some(0))
    };
    let known = theirs.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ended = |name: &str| {
        let status = ours.container_statuses.iter().flatten().find(|c| c.name == name);
        status.is_none_or(|c| c.state.as_ref().is_some_and(|state| state.terminated.is_some()))
    };
    known.filter(|known| for_good(known)).any(|known| !ended(&known.name))
}

/// What differs, condition by condition; those of others are not named.
fn conditions(ours: Option<&[PodCondition]>, theirs: &[PodCondition]) -> Vec<Value> {
    let Some(ours) = ours else { return Vec::new() };
    let is_ours = |type_: &str| OWNED.contains(&type_) || type_.starts_with("coracle.dev/");
    let mut changes = Vec::new();
    for condition in ours.iter().filter(|c| is_ours(&c.type_) || c.type_ == SHARED) {
        let known = theirs.iter().find(|known| known.type_ == condition.type_);
        let mut condition = condition.clone();
        // Who scheduled the pod knows when.
        if let Some(known) = known.filter(|known| known.type_ == "PodScheduled" && known.status == condition.status) {
            condition.last_transition_time.clone_from(&known.last_transition_time);
        }
        let Some(known) = known else {
            changes.push(pruned(&condition));
            continue;
        };
        if condition.observed_generation.is_none() {
            condition.observed_generation = known.observed_generation;
        }
        condition.last_probe_time.clone_from(&known.last_probe_time);
        let mut ours = pruned(&condition);
        let theirs = pruned(known);
        if ours == theirs {
            continue;
        }
        if let (Some(ours), Some(theirs)) = (ours.as_object_mut(), theirs.as_object()) {
            for gone in theirs.keys() {
                ours.entry(gone.clone()).or_insert(Value::Null);
            }
        }
        changes.push(ours);
    }
    let gone = theirs.iter().filter(|known| is_ours(&known.type_) && !ours.iter().any(|c| c.type_ == known.type_));
    changes.extend(gone.map(|known| json!({ "$patch": "delete", "type": known.type_ })));
    changes
}

/// A list as it is compared: without what says nothing.
fn listed<T: Serialize>(list: &Option<Vec<T>>) -> Value {
    list.iter().flatten().map(pruned).collect::<Vec<Value>>().into()
}

fn pruned<T: Serialize>(value: &T) -> Value {
    let mut value = serde_json::to_value(value).unwrap_or_default();
    prune(&mut value);
    value
}

/// Takes out what the API server leaves out: nulls, and objects and lists without anything in them.
fn prune(value: &mut Value) {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(object) => {
            object.retain(|name, value| {
                prune(value);
                // A container waits, even when nobody says for what.
                name == "waiting" && value.is_object() || !is_empty(value)
            });
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}

/// Amounts as the API server writes them.
fn canonical(status: &mut ContainerStatus) {
    let resources = status.resources.iter_mut().flat_map(|r| [&mut r.requests, &mut r.limits]);
    for amounts in resources.chain([&mut status.allocated_resources]).flatten() {
        for amount in amounts.values_mut() {
            if let Ok(quantity) = Quantity::parse(&amount.0) {
                amount.0 = quantity.to_string();
            }
        }
    }
}

/// As the API: it keeps no fractions.
fn whole_seconds(status: &mut PodStatus) {
    let cut = |time: &mut Option<Time>| {
        if let Some(Time(at)) = time {
            *at = Timestamp::from_second(at.as_second()).unwrap_or(*at);
        }
    };
    cut(&mut status.start_time);
    for condition in status.conditions.iter_mut().flatten() {
        cut(&mut condition.last_transition_time);
    }
    let all = [&mut status.init_container_statuses, &mut status.container_statuses];
    for container in all.into_iter().flatten().flatten() {
        for state in [&mut container.state, &mut container.last_state].into_iter().flatten() {
            state.running.iter_mut().for_each(|running| cut(&mut running.started_at));
            if let Some(end) = &mut state.terminated {
                cut(&mut end.started_at);
                cut(&mut end.finished_at);
            }
        }
    }
}

#[cfg(test)]
#[path = "status_patch_tests.rs"]
mod tests;
