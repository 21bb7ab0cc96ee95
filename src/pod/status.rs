//! What is reported of a pod: its `status`, from what is wanted and seen.

use super::restart;
use super::{ImageState, Instance, Observed, Present, Sandbox, Spec};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
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
    let previous = previous.filter(|p| p.metadata.uid == pod.metadata.uid).and_then(|p| p.status.as_ref());
    let present = seen.present.as_ref();
    if let Some(deletion) = present.and_then(|p| p.record.deletion.as_ref()) {
        pod.metadata.deletion_timestamp = Some(Time(seconds(deletion.started)));
        pod.metadata.deletion_grace_period_seconds = i64::try_from(deletion.grace_seconds).ok();
    }
    let start = present.map_or(now, |p| p.record.start_time);
    if present.is_some() {
        pod.metadata.creation_timestamp = Some(Time(seconds(start)));
    }
    let containers: Vec<ContainerStatus> =
        spec.containers().iter().map(|c| container_status(spec, c, present, seen, node, now)).collect();
    let phase = phase(present, &containers);
    let ips = pod_ips(spec, present, node);
    let failure = seen.failure.as_ref();
    pod.status = Some(PodStatus {
        conditions: Some(conditions(present, &containers, &phase, previous, start, now)),
        host_ip: node.host_ips.first().map(ToString::to_string),
        host_ips: (!node.host_ips.is_empty())
            .then(|| node.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: ips.first().map(ToString::to_string),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        message: failure.map(|f| f.message.clone()),
        reason: failure.map(|f| f.reason.clone()),
        // A quantity that cannot be read was refused long before.
        qos_class: super::resources::qos(spec.pod()).ok().map(|qos| qos.as_str().to_owned()),
        start_time: present.is_some().then(|| Time(seconds(start))),
        phase: Some(phase),
        container_statuses: Some(containers),
        ..PodStatus::default()
    });
    Some(pod)
}

/// Whether all containers are ready, by a reported status.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

fn pod_ips(spec: &Spec, present: Option<&Present>, node: &NodeFacts) -> Vec<IpAddr> {
    match present {
        Some(_) if spec.host_network() => node.host_ips.clone(),
        Some(p) if p.sandbox == Sandbox::Ready => p.record.sandbox.iter().flat_map(|s| s.ips.clone()).collect(),
        _ => Vec::new(),
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message }),
        ..ContainerState::default()
    }
}

fn ended(run: &Instance) -> Option<ContainerState> {
    let end = run.terminated.as_ref()?;
    Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("coracle://{}", run.id)),
            exit_code: end.exit_code,
            finished_at: Some(Time(seconds(end.finished))),
            message: (!end.message.is_empty()).then(|| end.message.clone()),
            reason: Some(end.reason.clone()),
            signal: end.signal,
            started_at: run.started.map(|t| Time(seconds(t))),
        }),
        ..ContainerState::default()
    })
}

/// Why a container that should be made is not, if something is in the way.
fn obstacle(container: &Container, seen: &Observed) -> Option<ContainerState> {
    if let Some(failure) = seen.container_failures.get(&container.name) {
        return Some(waiting(&failure.reason, Some(failure.message.clone())));
    }
    match seen.images.get(container.image.as_deref().unwrap_or_default()) {
        Some(ImageState::Absent { reason, message }) => Some(waiting(reason, Some(message.clone()))),
        _ => None,
    }
}

fn container_status(
    spec: &Spec,
    container: &Container,
    present: Option<&Present>,
    seen: &Observed,
    node: &NodeFacts,
    now: Timestamp,
) -> ContainerStatus {
    let runs = present.and_then(|p| p.containers.get(&container.name)).map_or(&[][..], Vec::as_slice);
    let latest = runs.last();
    let leaving = present.is_some_and(|p| p.record.deletion.is_some() || p.record.finished.is_some());
    let before = runs.len().checked_sub(2).and_then(|i| runs.get(i)).and_then(ended);
    let (state, last_state) = match latest {
        None => (obstacle(container, seen).unwrap_or_else(|| waiting("ContainerCreating", None)), None),
        Some(run) => match (ended(run), run.started) {
            (None, Some(started)) => (
                ContainerState {
                    running: Some(ContainerStateRunning { started_at: Some(Time(seconds(started))) }),
                    ..ContainerState::default()
                },
                before,
            ),
            (None, None) => (waiting("ContainerCreating", None), before),
            (Some(end), _) if leaving || !restart::wanted(spec.restart_policy(), run) => (end, before),
            (Some(end), _) => {
                let next = restart::next(run, now, node.max_backoff);
                if let Some(state) = obstacle(container, seen) {
                    (state, Some(end))
                } else if next.not_before > now {
                    (waiting("CrashLoopBackOff", Some(back_off_message(spec, container, run))), Some(end))
                } else {
                    (end, before)
                }
            }
        },
    };
    let running = state.running.is_some();
    ContainerStatus {
        allocated_resources: container.resources.as_ref().and_then(|r| r.requests.clone()),
        container_id: latest.map(|r| format!("coracle://{}", r.id)),
        image: container.image.clone().unwrap_or_default(),
        image_id: latest.map(|r| r.image_id.clone()).unwrap_or_default(),
        last_state: Some(last_state.unwrap_or_default()),
        name: container.name.clone(),
        ready: running,
        resources: container.resources.clone(),
        restart_count: latest.map_or(0, |r| i32::try_from(r.attempt).unwrap_or(i32::MAX)),
        started: Some(running),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

/// As kubelet: `back-off 10s restarting failed container=web pod=web-node_default(uid)`.
fn back_off_message(spec: &Spec, container: &Container, run: &Instance) -> String {
    let key = spec.key();
    let seconds = run.backoff_ms / 1000;
    let delay = match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    };
    format!(
        "back-off {delay} restarting failed container={} pod={}_{}({})",
        container.name,
        key.name,
        key.namespace,
        spec.uid()
    )
}

/// As kubelet (getPhase), for pods without init containers.
fn phase(present: Option<&Present>, containers: &[ContainerStatus]) -> String {
    let Some(present) = present else { return "Pending".into() };
    if let Some(finished) = &present.record.finished {
        return finished.phase.clone();
    }
    let never_ran = |c: &ContainerStatus| {
        let waits = c.state.as_ref().is_some_and(|s| s.waiting.is_some());
        waits && c.last_state.as_ref().is_none_or(|s| s.terminated.is_none())
    };
    if containers.iter().any(never_ran) {
        return "Pending".into();
    }
    if containers.iter().any(|c| c.started == Some(true)) {
        return "Running".into();
    }
    // Between two runs, or all ended: a terminal phase is published only once it is recorded.
    "Running".into()
}

fn conditions(
    present: Option<&Present>,
    containers: &[ContainerStatus],
    phase: &str,
    previous: Option<&PodStatus>,
    start: Timestamp,
    now: Timestamp,
) -> Vec<PodCondition> {
    let unready: Vec<&str> = containers.iter().filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
    let (ready, reason, message) = match phase {
        "Succeeded" => (false, Some("PodCompleted"), None),
        "Failed" => (false, Some("PodFailed"), None),
        _ if unready.is_empty() => (true, None, None),
        _ => (
            false,
            Some("ContainersNotReady"),
            Some(format!("containers with unready status: [{}]", unready.join(" "))),
        ),
    };
    let sandbox = present.is_some_and(|p| p.sandbox == Sandbox::Ready);
    let completed = (phase == "Succeeded").then_some("PodCompleted");
    let since_ready = containers
        .iter()
        .filter_map(|c| c.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(|t| t.0))
        .max()
        .filter(|_| ready);
    let make = |type_: &str, status: bool, reason: Option<&str>, message: Option<String>, first: Timestamp| {
        let status = if status { "True" } else { "False" };
        let old = previous.and_then(|s| s.conditions.as_ref()).into_iter().flatten().find(|c| c.type_ == type_);
        let since = match old {
            Some(old) if old.status == status => old.last_transition_time.as_ref().map_or(first, |t| t.0),
            Some(_) => now,
            None => first,
        };
        PodCondition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.map(Into::into),
            message,
            last_transition_time: Some(Time(seconds(since))),
            ..PodCondition::default()
        }
    };
    let changed = since_ready.unwrap_or(now);
    vec![
        make("PodReadyToStartContainers", sandbox, None, None, if sandbox { start } else { now }),
        make("Initialized", true, completed, None, start),
        make("Ready", ready, reason, message.clone(), changed),
        make("ContainersReady", ready, reason, message, changed),
        make("PodScheduled", true, None, None, start),
    ]
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
