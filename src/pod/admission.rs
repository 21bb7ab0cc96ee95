//! Whether this node takes a pod: what it has to give, and the kubelet's checks in the kubelet's order and words
//! (`kl/lifecycle/predicate.go`, `scheduler/framework/plugins/{noderesources,nodeaffinity,nodeports}`).

use super::affinity;
use super::resources::{self, HUGE_PAGES, HugePages};
use crate::config::reserve::{Reserved, Signal, Threshold};
use k8s_openapi::api::core::v1::{Container, Pod, Taint};
use std::collections::BTreeMap;

/// Amounts that a node has, or can give to pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAmounts {
    /// CPU in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Local storage in bytes.
    pub ephemeral_storage: i64,
    /// Process IDs.
    pub pids: i64,
    /// Number of pods.
    pub pods: i64,
    /// Huge pages in bytes by page size in bytes.
    pub huge_pages: HugePages,
}

impl NodeAmounts {
    /// What the cgroup of all pods is limited to: the capacity less what is reserved.
    #[must_use]
    pub fn for_pods(&self, reserved: Reserved) -> NodeAmounts {
        let less = |all: i64, part: i64| all.saturating_sub(part).max(0);
        NodeAmounts {
            cpu_milli: less(self.cpu_milli, reserved.cpu_milli),
            memory: less(self.memory, reserved.memory),
            ephemeral_storage: less(self.ephemeral_storage, reserved.ephemeral_storage),
            pids: less(self.pids, reserved.pids),
            pods: self.pods,
            huge_pages: self.huge_pages.clone(),
        }
    }

    /// What pods may request: besides, the hard eviction thresholds stay free, and huge pages are no ordinary memory.
    #[must_use]
    pub fn allocatable(&self, reserved: Reserved, thresholds: &[Threshold]) -> NodeAmounts {
        let mut left = self.for_pods(reserved);
        let hard = |signal: Signal, capacity: i64| {
            let found = thresholds.iter().find(|t| t.signal == signal && t.grace.is_none());
            found.map_or(0, |t| t.least.of(capacity))
        };
        let pages = self.huge_pages.values().fold(0_i64, |sum, bytes| sum.saturating_add(*bytes));
        left.memory =
            left.memory.saturating_sub(hard(Signal::MemoryAvailable, self.memory)).saturating_sub(pages).max(0);
        left.ephemeral_storage =
            left.ephemeral_storage.saturating_sub(hard(Signal::NodefsAvailable, self.ephemeral_storage)).max(0);
        left
    }

    /// For references to resources (`resourceFieldRef`).
    #[must_use]
    pub fn of_fields(&self) -> resources::Allocatable {
        resources::Allocatable {
            cpu_milli: self.cpu_milli,
            memory: self.memory,
            ephemeral_storage: self.ephemeral_storage,
        }
    }
}

/// What must be known of the node.
#[derive(Debug, Clone, Default)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// Its taints, as far as a cluster says so.
    pub taints: Vec<Taint>,
    /// What pods may request.
    pub allocatable: NodeAmounts,
    /// Sysctls beyond the safe ones that pods may set (`allowedUnsafeSysctls`).
    pub unsafe_sysctls: Vec<String>,
    /// Release of its kernel.
    pub kernel: String,
    /// Its conditions that are bad: `MemoryPressure`, `DiskPressure`, `PIDPressure`, sorted.
    pub pressure: Vec<&'static str>,
}

/// Why a pod is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// `status.reason` and the event's reason.
    pub reason: String,
    /// The sentence; the status' message is this after `Pod was rejected: `.
    pub message: String,
}

impl Rejection {
    /// A refusal.
    #[must_use]
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Rejection {
        Rejection { reason: reason.into(), message: message.into() }
    }

    /// `status.message`.
    #[must_use]
    pub fn status_message(&self) -> String {
        format!("Pod was rejected: {}", self.message)
    }
}

/// What every check is asked: the pod, the other pods that count, the node.
type Check = fn(&Pod, &[&Pod], &NodeView) -> Result<(), Rejection>;

/// In the kubelet's order: the first refusal counts.
const CHECKS: &[Check] = &[pressure, sysctls, os_label, os_name, fits, node_affinity, host_ports];

/// Whether the node takes `pod` beside the pods that are `active` on it already.
///
/// # Errors
/// Why not.
pub fn admit(pod: &Pod, active: &[&Pod], node: &NodeView) -> Result<(), Rejection> {
    CHECKS.iter().try_for_each(|check| check(pod, active, node))
}

/// As kubelet: under pressure only critical pods are taken; short of nothing but memory, also those that are not
/// BestEffort or that tolerate it.
fn pressure(pod: &Pod, _: &[&Pod], node: &NodeView) -> Result<(), Rejection> {
    if node.pressure.is_empty() || resources::is_critical(pod) {
        return Ok(());
    }
    if node.pressure == ["MemoryPressure"] {
        let best_effort = resources::qos(pod).is_ok_and(|qos| qos == resources::Qos::BestEffort);
        let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
        let tolerated = tolerations.into_iter().any(|t| {
            let effect = t.effect.as_deref().unwrap_or_default();
            let key = t.key.as_deref().unwrap_or_default();
            let exists = t.operator.as_deref() == Some("Exists");
            ["", "NoSchedule"].contains(&effect)
                && (key == "node.kubernetes.io/memory-pressure" || key.is_empty() && exists)
                && (exists || t.value.as_deref().unwrap_or_default().is_empty())
        });
        if !best_effort || tolerated {
            return Ok(());
        }
    }
    Err(Rejection::new("Evicted", format!("The node had condition: [{}]. ", node.pressure.join(" "))))
}

fn sysctls(pod: &Pod, _: &[&Pod], node: &NodeView) -> Result<(), Rejection> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    super::sysctl::check(spec, &node.unsafe_sysctls, &node.kernel).map(drop)
}

fn os_label(pod: &Pod, _: &[&Pod], node: &NodeView) -> Result<(), Rejection> {
    const LABEL: &str = "kubernetes.io/os";
    let wanted = pod.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL));
    match wanted {
        Some(os) if node.labels.get(LABEL) != Some(os) => Err(Rejection::new(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        )),
        _ => Ok(()),
    }
}

fn os_name(pod: &Pod, _: &[&Pod], _: &NodeView) -> Result<(), Rejection> {
    match pod.spec.as_ref().and_then(|s| s.os.as_ref()) {
        Some(os) if os.name != "linux" => {
            Err(Rejection::new("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"))
        }
        _ => Ok(()),
    }
}

/// Requests by resource name: cpu in thousandths, all else in bytes.
fn requests(pod: &Pod) -> Result<BTreeMap<String, i64>, Rejection> {
    let unreadable = |error: resources::Error| Rejection::new("UnexpectedAdmissionError", error.to_string());
    let total = resources::effective(pod).map_err(unreadable)?.requests;
    let mut all = BTreeMap::from([
        ("cpu".to_owned(), total.cpu_milli.unwrap_or(0)),
        ("memory".to_owned(), total.memory.unwrap_or(0)),
        ("ephemeral-storage".to_owned(), total.ephemeral_storage.unwrap_or(0)),
    ]);
    for (size, bytes) in resources::pod_huge_pages(pod).map_err(unreadable)? {
        all.insert(huge_page_resource(size), bytes);
    }
    Ok(all)
}

/// `hugepages-2Mi`.
#[must_use]
pub fn huge_page_resource(size: u64) -> String {
    let size = match size {
        s if s >= 1 << 30 && s.is_multiple_of(1 << 30) => format!("{}Gi", s >> 30),
        s if s >= 1 << 20 && s.is_multiple_of(1 << 20) => format!("{}Mi", s >> 20),
        s => format!("{}Ki", s >> 10),
    };
    format!("{HUGE_PAGES}{size}")
}

fn fits(pod: &Pod, active: &[&Pod], node: &NodeView) -> Result<(), Rejection> {
    let lacks = |resource: &str, requested: i64, used: i64, capacity: i64| {
        Rejection::new(
            format!("OutOf{resource}"),
            format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        )
    };
    let has = &node.allocatable;
    let count = i64::try_from(active.len()).unwrap_or(i64::MAX);
    if count >= has.pods {
        return Err(lacks("pods", 1, count, has.pods));
    }
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    for other in active {
        // A pod that runs can be read.
        for (resource, amount) in requests(other).unwrap_or_default() {
            let sum = used.entry(resource).or_default();
            *sum = sum.saturating_add(amount);
        }
    }
    let wanted = requests(pod)?;
    let rank = |resource: &str| match resource {
        "cpu" => 0,
        "memory" => 1,
        "ephemeral-storage" => 2,
        _ => 3,
    };
    let mut order: Vec<&String> = wanted.keys().collect();
    order.sort_by_key(|resource| rank(resource));
    for resource in order {
        let capacity = match resource.as_str() {
            "cpu" => has.cpu_milli,
            "memory" => has.memory,
            "ephemeral-storage" => has.ephemeral_storage,
            _ => {
                let size = has.huge_pages.iter().find(|(size, _)| huge_page_resource(**size) == *resource);
                size.map_or(0, |(_, bytes)| *bytes)
            }
        };
        let (request, used) = (wanted[resource], used.get(resource).copied().unwrap_or(0));
        if request > 0 && request > capacity.saturating_sub(used) {
            return Err(lacks(resource, request, used, capacity));
        }
    }
    Ok(())
}

fn node_affinity(pod: &Pod, _: &[&Pod], node: &NodeView) -> Result<(), Rejection> {
    if affinity::matches(pod, &node.name, &node.labels) {
        return Ok(());
    }
    Err(Rejection::new(
        "NodeAffinity",
        "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
    ))
}

/// Ports on the node that a pod takes: address, protocol, port. Regular init containers have none (as kubelet).
fn ports_of(pod: &Pod) -> Vec<(&str, &str, i32)> {
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let spec = pod.spec.as_ref();
    let sidecars = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten()).filter(sidecar);
    let containers = spec.into_iter().flat_map(|s| &s.containers).chain(sidecars);
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    let taken = ports.filter(|p| p.host_port.unwrap_or(0) > 0);
    let filled = |text: &'_ Option<String>| text.as_ref().is_some_and(|t| !t.is_empty());
    taken
        .map(|p| {
            let ip = if filled(&p.host_ip) { p.host_ip.as_deref().unwrap_or(ANY) } else { ANY };
            let protocol = if filled(&p.protocol) { p.protocol.as_deref().unwrap_or("TCP") } else { "TCP" };
            (ip, protocol, p.host_port.unwrap_or(0))
        })
        .collect()
}

/// All addresses.
const ANY: &str = "0.0.0.0";

fn host_ports(pod: &Pod, active: &[&Pod], _: &NodeView) -> Result<(), Rejection> {
    let wanted = ports_of(pod);
    if wanted.is_empty() {
        return Ok(());
    }
    let clash = |(ip, protocol, port): &(&str, &str, i32)| {
        active.iter().flat_map(|other| ports_of(other)).any(|(other_ip, other_protocol, other_port)| {
            *port == other_port && *protocol == other_protocol && (*ip == ANY || other_ip == ANY || *ip == other_ip)
        })
    };
    if wanted.iter().any(clash) {
        return Err(Rejection::new(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ));
    }
    Ok(())
}

/// Whether a resize fits: the pod's new requests beside the others'. As kubelet: what can never fit is `Infeasible`,
/// what does not fit now is `Deferred`.
///
/// # Errors
/// Reason and message of the condition `PodResizePending`.
pub fn admit_resize(wanted: &Pod, others: &[&Pod], node: &NodeView) -> Result<(), Rejection> {
    if let Err(rejection) = fits(wanted, &[], node) {
        return Err(Rejection::new("Infeasible", rejection.message));
    }
    // The pod itself is one of those that are counted already.
    let node = NodeView { allocatable: NodeAmounts { pods: i64::MAX, ..node.allocatable.clone() }, ..node.clone() };
    fits(wanted, others, &node).map_err(|rejection| Rejection::new("Deferred", rejection.message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("pod")
    }

    fn asks(resources: Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": resources}}]}))
    }

    fn node() -> NodeView {
        NodeView {
            name: "edge".into(),
            labels: BTreeMap::from([("kubernetes.io/os".into(), "linux".into()), ("site".into(), "north".into())]),
            allocatable: NodeAmounts {
                cpu_milli: 2000,
                memory: 1 << 30,
                ephemeral_storage: 1000,
                pids: 100,
                pods: 3,
                huge_pages: [(2 << 20, 4 << 20)].into(),
            },
            kernel: "6.12.0".into(),
            ..NodeView::default()
        }
    }

    fn refusal(pod: &Pod, active: &[&Pod]) -> (String, String) {
        let rejection = admit(pod, active, &node()).expect_err("must be refused");
        (rejection.reason, rejection.message)
    }

    #[test]
    fn what_is_left_is_what_can_be_had() {
        let other = asks(json!({"cpu": "1", "memory": "512Mi"}));
        assert_eq!(admit(&asks(json!({"cpu": "1", "memory": "512Mi"})), &[&other], &node()), Ok(()));
        // Whoever asks for nothing fits in any case.
        let greedy = asks(json!({"cpu": "100"}));
        assert_eq!(admit(&asks(json!({})), &[&greedy], &node()), Ok(()));
        let text = |r: &str, requested: i64, used: i64, capacity: i64| {
            (
                format!("OutOf{r}"),
                format!(
                    "Node didn't have enough resource: {r}, requested: {requested}, used: {used}, capacity: {capacity}"
                ),
            )
        };
        assert_eq!(refusal(&asks(json!({"cpu": "1001m"})), &[&other]), text("cpu", 1001, 1000, 2000));
        assert_eq!(refusal(&asks(json!({"memory": "1Gi"})), &[&other]), text("memory", 1 << 30, 1 << 29, 1 << 30));
        let storage = asks(json!({"ephemeral-storage": "1001"}));
        assert_eq!(refusal(&storage, &[]), text("ephemeral-storage", 1001, 0, 1000));
        let pages = asks(json!({"hugepages-2Mi": "6Mi"}));
        assert_eq!(refusal(&pages, &[]), text("hugepages-2Mi", 6 << 20, 0, 4 << 20));
        assert_eq!(refusal(&asks(json!({"hugepages-1Gi": "1Gi"})), &[]).0, "OutOfhugepages-1Gi");
        let idle = asks(json!({}));
        assert_eq!(refusal(&idle, &[&idle, &idle, &idle]), text("pods", 1, 3, 3));
    }

    #[test]
    fn the_operating_system_must_be_this_one() {
        let mut labelled = asks(json!({}));
        labelled.metadata.labels = Some(BTreeMap::from([("kubernetes.io/os".into(), "windows".into())]));
        assert_eq!(refusal(&labelled, &[]).0, "PodOSSelectorNodeLabelDoesNotMatch");
        let other = pod(json!({"os": {"name": "windows"}, "containers": []}));
        assert_eq!(refusal(&other, &[]).0, "PodOSNotSupported");
    }

    #[test]
    fn selectors_come_after_resources_and_before_ports() {
        let away = pod(json!({"nodeSelector": {"site": "south"}, "containers": []}));
        let (reason, message) = refusal(&away, &[]);
        assert_eq!(reason, "NodeAffinity");
        assert_eq!(message, "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector");
        let here = pod(json!({"nodeSelector": {"site": "north"}, "containers": []}));
        assert_eq!(admit(&here, &[], &node()), Ok(()));
    }

    #[test]
    fn host_ports_clash_by_address_protocol_and_number() {
        let port = |ip: &str, protocol: &str, port: i32| {
            let port = json!({"containerPort": 80, "hostIP": ip, "protocol": protocol, "hostPort": port});
            pod(json!({"containers": [{"name": "c", "ports": [port]}]}))
        };
        let taken = port("10.0.0.1", "TCP", 80);
        for (candidate, free) in [
            (port("10.0.0.1", "TCP", 80), false),
            (port("", "TCP", 80), false),
            (port("0.0.0.0", "", 80), false),
            (port("10.0.0.2", "TCP", 80), true),
            (port("10.0.0.1", "UDP", 80), true),
            (port("10.0.0.1", "TCP", 81), true),
        ] {
            assert_eq!(admit(&candidate, &[&taken], &node()).is_ok(), free, "{candidate:?}");
        }
        let init = |policy: Value| {
            let port = json!([{"containerPort": 80, "hostPort": 80}]);
            pod(json!({
                "initContainers": [{"name": "i", "restartPolicy": policy, "ports": port}], "containers": []
            }))
        };
        assert_eq!(admit(&init(json!(null)), &[&taken], &node()), Ok(()));
        let (reason, message) = refusal(&init(json!("Always")), &[&taken]);
        assert_eq!(reason, "NodePorts");
        assert_eq!(message, "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports");
    }

    #[test]
    fn under_pressure_only_what_is_critical() {
        let short = |of: &[&'static str]| NodeView { pressure: of.to_vec(), ..node() };
        let idle = asks(json!({}));
        let busy = asks(json!({"cpu": "1"}));
        let rejection = admit(&idle, &[], &short(&["MemoryPressure"])).expect_err("refused");
        assert_eq!(rejection.reason, "Evicted");
        assert_eq!(rejection.status_message(), "Pod was rejected: The node had condition: [MemoryPressure]. ");
        assert_eq!(admit(&busy, &[], &short(&["MemoryPressure"])), Ok(()));
        assert!(admit(&busy, &[], &short(&["DiskPressure"])).is_err());
        let tolerant = pod(json!({"containers": [], "tolerations": [{"operator": "Exists"}]}));
        assert_eq!(admit(&tolerant, &[], &short(&["MemoryPressure"])), Ok(()));
        let mut fixed = asks(json!({}));
        fixed.metadata.annotations = Some([("kubernetes.io/config.source".into(), "file".into())].into());
        assert_eq!(admit(&fixed, &[], &short(&["DiskPressure", "MemoryPressure"])), Ok(()));
    }

    #[test]
    fn reserves_come_off() {
        let capacity = NodeAmounts {
            cpu_milli: 4000,
            memory: 1000 << 20,
            ephemeral_storage: 10_000,
            pids: 1000,
            pods: 110,
            huge_pages: [(2 << 20, 100 << 20)].into(),
        };
        let reserved = Reserved { cpu_milli: 500, memory: 200 << 20, ephemeral_storage: 1000, pids: 100 };
        let thresholds = crate::config::reserve::Eviction::default().thresholds;
        let limit = capacity.for_pods(reserved);
        assert_eq!((limit.cpu_milli, limit.memory, limit.pids), (3500, 800 << 20, 900));
        let left = capacity.allocatable(reserved, &thresholds);
        // 1000 − 200 reserved − 100 eviction − 100 huge pages; 10000 − 1000 − 10 %.
        assert_eq!((left.cpu_milli, left.memory, left.ephemeral_storage), (3500, 600 << 20, 8000));
        let all = capacity.allocatable(Reserved { memory: i64::MAX, ..reserved }, &thresholds);
        assert_eq!(all.memory, 0);
    }

    #[test]
    fn a_resize_that_never_fits_is_infeasible() {
        let other = asks(json!({"cpu": "1500m"}));
        let wanted = |cpu: &str| asks(json!({"cpu": cpu}));
        let reason = |pod: &Pod| admit_resize(pod, &[&other], &node()).map_err(|r| r.reason);
        assert_eq!(reason(&wanted("500m")), Ok(()));
        assert_eq!(reason(&wanted("501m")), Err("Deferred".into()));
        assert_eq!(reason(&wanted("2001m")), Err("Infeasible".into()));
    }
}
