//! What is reported of a pod: its `status`, from what is wanted and seen.

use super::conditions::Conditions;
use super::container_status::View;
use super::{Observed, Present, Role, Sandbox, Spec, ephemeral, is_from_api, phase, resize, resources};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::net::IpAddr;

/// What the node itself adds to a pod's status.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// The node's addresses, primary first.
    pub host_ips: Vec<IpAddr>,
    /// The longest crash back-off.
    pub max_backoff: SignedDuration,
}

/// The pod as the node reports it: the one that is on the machine (with `deletionTimestamp` while it goes), else the
/// one that is wanted. `previous` is the last report, for the transition times of conditions.
#[must_use]
pub fn report(
    desired: Option<&Spec>,
    seen: &Observed,
    node: &NodeFacts,
    previous: Option<&Pod>,
    now: Timestamp,
) -> Option<Pod> {
    let spec = seen.present.as_ref().map(|p| &p.spec).or(desired)?;
    let mut pod = spec.pod().clone();
    let same = |p: &&Pod| p.metadata.uid == pod.metadata.uid;
    let copy = seen.copy.as_deref().filter(same).and_then(|p| p.status.as_ref());
    // What was told before this agent began is in the API server's copy.
    let previous = previous.filter(same).and_then(|p| p.status.as_ref()).filter(|s| s.conditions.is_some()).or(copy);
    let present = seen.present.as_ref();
    if let Some(deletion) = present.and_then(|p| p.record.deletion.as_ref()) {
        pod.metadata.deletion_timestamp = Some(Time(seconds(deletion.started)));
        pod.metadata.deletion_grace_period_seconds = i64::try_from(deletion.grace_seconds).ok();
    }
    let start = present.map_or(now, |p| p.record.start_time);
    // The API server's own says when the pod was made.
    if present.is_some() && !is_from_api(&pod) {
        pod.metadata.creation_timestamp = Some(Time(seconds(start)));
    }
    let leaving = present.is_some_and(|p| p.record.deletion.is_some() || p.record.finished.is_some());
    let wanted = seen.refused_resize.as_ref().map(|refused| &refused.spec).or(desired);
    let resized = wanted.filter(|want| !leaving && resize::is_resize(spec, want));
    if let Some(want) = resized {
        // As kubelet: what is wanted is the spec, what is so is in the status.
        pod.spec.clone_from(&want.pod().spec);
    }
    let view = View { spec, seen, node, now };
    let init: Vec<ContainerStatus> = spec.init_containers().iter().map(|c| view.status(c, Role::of_init(c))).collect();
    let app: Vec<ContainerStatus> = spec.containers().iter().map(|c| view.status(c, Role::App)).collect();
    let sidecars = init.iter().filter(|c| spec.role(&c.name) == Some(Role::Sidecar));
    let phase = phase::of(seen, &sidecars.chain(&app).cloned().collect::<Vec<_>>());
    let ips = pod_ips(spec, present, node);
    let (reason, message) = why(seen, phase, resized.is_some());
    let conditions = Conditions {
        spec,
        seen,
        init: &init,
        app: &app,
        phase,
        resizing: resized.is_some(),
        previous,
        copy,
        start,
        now,
    };
    pod.status = Some(PodStatus {
        conditions: Some(conditions.all()),
        observed_generation: seen.generation,
        pod_ip: ips.first().map(ToString::to_string),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        message,
        reason,
        start_time: present.is_some().then(|| Time(seconds(start))),
        phase: Some(phase.to_owned()),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(app),
        ephemeral_container_statuses: ephemeral::statuses(spec.pod()),
        ..of_node(spec, node)
    });
    Some(pod)
}

/// What is reported of a pod that the node does not take (as kubelet): `reason` is a word such as `OutOfcpu`, `message`
/// says why; `now` is when it was refused.
#[must_use]
pub fn refused(spec: &Spec, reason: &str, message: &str, node: &NodeFacts, now: Timestamp) -> Pod {
    let mut pod = spec.pod().clone();
    if !is_from_api(&pod) {
        pod.metadata.creation_timestamp = Some(Time(seconds(now)));
    }
    pod.status = Some(PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(format!("Pod was rejected: {message}")),
        start_time: Some(Time(seconds(now))),
        ..of_node(spec, node)
    });
    pod
}

/// What holds for every pod on this node.
fn of_node(spec: &Spec, node: &NodeFacts) -> PodStatus {
    PodStatus {
        host_ip: node.host_ips.first().map(ToString::to_string),
        host_ips: (!node.host_ips.is_empty())
            .then(|| node.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        // A quantity that cannot be read was refused long before.
        qos_class: resources::qos(spec.pod()).ok().map(|qos| qos.as_str().to_owned()),
        ..PodStatus::default()
    }
}

/// Reason and message of the pod as a whole.
fn why(seen: &Observed, phase: &str, resizing: bool) -> (Option<String>, Option<String>) {
    let record = seen.present.as_ref().map(|p| &p.record);
    let finished = record.and_then(|r| r.finished.as_ref());
    if let Some(finished) = finished.filter(|_| matches!(phase, "Succeeded" | "Failed")) {
        return (finished.reason.clone(), finished.message.clone());
    }
    if let Some(evict) = seen.evict.as_ref().filter(|_| record.is_some_and(|r| r.deletion.is_some())) {
        return (Some("Evicted".to_owned()), Some(evict.message.clone()));
    }
    if let Some((reason, message)) = &seen.displaced {
        return (Some((*reason).to_owned()), Some(message.clone()));
    }
    // A resize that waits has a condition of its own.
    let failure = seen.failure.as_ref().filter(|_| !resizing || seen.refused_resize.is_some());
    (failure.map(|f| f.reason.clone()), failure.map(|f| f.message.clone()))
}

/// Whether all containers are ready, by a reported status.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// As the API: whole seconds.
pub(super) fn seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

fn pod_ips(spec: &Spec, present: Option<&Present>, node: &NodeFacts) -> Vec<IpAddr> {
    match present {
        Some(_) if spec.host_network() => node.host_ips.clone(),
        Some(p) if p.sandbox == Sandbox::Ready => p.record.sandbox.iter().flat_map(|s| s.ips.clone()).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
