//! When a pod has to leave for what it uses, and when the node is short of something (as kubelet: `kl/eviction`).

use super::resources;
use crate::config::reserve::{Eviction, Signal, Threshold};
use crate::manifest::Quantity;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::{BTreeMap, BTreeSet};

/// Local storage that a pod uses, in bytes of blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalUsage {
    /// emptyDir volumes on disk, by volume name.
    pub empty_dirs: BTreeMap<String, u64>,
    /// Writable layers and logs, by container name.
    pub containers: BTreeMap<String, u64>,
}

fn limit_of(container: &Container) -> Option<&str> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    limits.get("ephemeral-storage").map(|q| q.0.as_str())
}

/// Whether the pod limits any local storage, so that it has to be measured at all.
#[must_use]
pub fn limits_local_storage(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let sized = |v: &k8s_openapi::api::core::v1::Volume| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some());
    spec.volumes.iter().flatten().any(sized) || containers.into_iter().any(|c| limit_of(c).is_some())
}

fn bytes(quantity: &str) -> Option<u64> {
    let bytes = u64::try_from(Quantity::parse(quantity).ok()?.ceil()).ok()?;
    (bytes > 0).then_some(bytes)
}

/// As Kubernetes writes it.
fn canonical(quantity: &str) -> String {
    Quantity::parse(quantity).map_or_else(|_| quantity.to_owned(), |q| q.to_string())
}

/// Why the pod has to leave for the local storage that it uses; `None`: it may stay. The texts are the kubelet's.
#[must_use]
pub fn local_storage(pod: &Pod, usage: &LocalUsage) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    for volume in spec.volumes.iter().flatten() {
        let limit = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
        let Some((text, limit)) = limit.and_then(|q| Some((&q.0, bytes(&q.0)?))) else { continue };
        if usage.empty_dirs.get(&volume.name).is_some_and(|used| *used > limit) {
            let limit = canonical(text);
            return Some(format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{limit}\". ", volume.name));
        }
    }
    let total = resources::effective(pod).ok()?.limits.ephemeral_storage.filter(|limit| *limit > 0);
    let used = usage.empty_dirs.values().chain(usage.containers.values());
    let used = used.fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
    if let Some(total) = total.and_then(|t| u64::try_from(t).ok()).filter(|total| used > *total) {
        let binary = if total.is_multiple_of(1024) { format!("{}Ki", total / 1024) } else { total.to_string() };
        let limit = canonical(&binary);
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let Some((text, limit)) = limit_of(container).and_then(|text| Some((text, bytes(text)?))) else { continue };
        if usage.containers.get(&container.name).is_some_and(|used| *used > limit) {
            let (name, limit) = (&container.name, canonical(text));
            return Some(format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". "));
        }
    }
    None
}

/// How much is left of something, and how much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observation {
    /// Left, in bytes or pieces.
    pub available: i64,
    /// In all.
    pub capacity: i64,
}

/// What can be seen; signals that cannot be told are missing, and count as well.
pub type Observations = BTreeMap<Signal, Observation>;

/// A condition of the Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pressure {
    /// Short of disk space or inodes.
    Disk,
    /// Short of memory.
    Memory,
    /// Short of process IDs.
    Pid,
}

impl Pressure {
    /// All of them, in the order of a Node's conditions.
    pub const ALL: [Pressure; 3] = [Pressure::Memory, Pressure::Disk, Pressure::Pid];

    /// The type of the condition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Pressure::Disk => "DiskPressure",
            Pressure::Memory => "MemoryPressure",
            Pressure::Pid => "PIDPressure",
        }
    }

    /// Reason and message of the condition (as kubelet).
    #[must_use]
    pub fn words(self, is_bad: bool) -> (&'static str, &'static str) {
        match (self, is_bad) {
            (Pressure::Memory, true) => ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            (Pressure::Memory, false) => ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            (Pressure::Disk, true) => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            (Pressure::Disk, false) => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            (Pressure::Pid, true) => ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            (Pressure::Pid, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
    }
}

/// What a lack of something means for the node.
#[must_use]
pub fn pressure_of(signal: Signal) -> Pressure {
    match signal {
        Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => Pressure::Memory,
        Signal::PidAvailable => Pressure::Pid,
        Signal::NodefsAvailable | Signal::NodefsInodesFree | Signal::ImagefsAvailable | Signal::ImagefsInodesFree => {
            Pressure::Disk
        }
    }
}

/// The resource that has to be won back, as the event names it.
#[must_use]
pub fn resource_of(signal: Signal) -> &'static str {
    match signal {
        Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => "memory",
        Signal::PidAvailable => "pids",
        Signal::NodefsAvailable | Signal::ImagefsAvailable => "ephemeral-storage",
        Signal::NodefsInodesFree | Signal::ImagefsInodesFree => "inodes",
    }
}

/// Watches the thresholds over time.
#[derive(Debug, Default)]
pub struct Monitor {
    /// Since when a threshold (by its index) is crossed.
    since: BTreeMap<usize, Timestamp>,
    /// When a pressure was last there.
    seen: BTreeMap<Pressure, Timestamp>,
}

/// What [`Monitor::observe`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Conditions that hold, those included that have gone only recently.
    pub pressure: BTreeSet<Pressure>,
    /// Signals of thresholds that are crossed for longer than their grace: something has to be done.
    pub crossed: BTreeSet<Signal>,
}

impl Monitor {
    /// Takes in what is seen now.
    pub fn observe(&mut self, eviction: &Eviction, seen: &Observations, now: Timestamp) -> Findings {
        for (index, threshold) in eviction.thresholds.iter().enumerate() {
            let was_crossed = self.since.contains_key(&index);
            if seen.get(&threshold.signal).is_some_and(|o| is_crossed(threshold, *o, was_crossed)) {
                self.since.entry(index).or_insert(now);
                self.seen.insert(pressure_of(threshold.signal), now);
            } else {
                self.since.remove(&index);
            }
        }
        let transition = signed(eviction.pressure_transition);
        // A clock that was set back ends no pressure early, and keeps none for ever: it is seen again or forgotten.
        self.seen.retain(|_, at| (SignedDuration::ZERO..transition).contains(&now.duration_since(*at)));
        let current = self.since.keys().filter_map(|i| eviction.thresholds.get(*i)).map(|t| pressure_of(t.signal));
        let pressure = self.seen.keys().copied().chain(current).collect();
        let overdue = |(index, since): (&usize, &Timestamp)| {
            let threshold = eviction.thresholds.get(*index)?;
            let grace = threshold.grace.map_or(SignedDuration::ZERO, signed);
            (now.duration_since(*since) >= grace).then_some(threshold.signal)
        };
        Findings { pressure, crossed: self.since.iter().filter_map(overdue).collect() }
    }
}

fn signed(duration: std::time::Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// As kubelet: once crossed, a threshold stays so until `evictionMinimumReclaim` is free on top of it.
fn is_crossed(threshold: &Threshold, seen: Observation, was_crossed: bool) -> bool {
    let least = threshold.least.of(seen.capacity);
    let reclaim = threshold.reclaim.filter(|_| was_crossed).map_or(0, |amount| amount.of(seen.capacity));
    seen.available < least.saturating_add(reclaim)
}

/// A pod that could be evicted, with what it uses and requests of the resource in question.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Bytes or processes.
    pub usage: u64,
    /// Bytes; 0 for processes.
    pub request: u64,
}

/// How much a pod requests of what `signal` is about, in bytes; 0 where nothing can be requested.
#[must_use]
pub fn request(signal: Signal, pod: &Pod) -> u64 {
    let Ok(requests) = resources::effective(pod).map(|effective| effective.requests) else { return 0 };
    let request = match signal {
        Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => requests.memory,
        Signal::NodefsAvailable | Signal::ImagefsAvailable => requests.ephemeral_storage,
        Signal::PidAvailable | Signal::NodefsInodesFree | Signal::ImagefsInodesFree => None,
    };
    request.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

/// Who leaves first when the node is short of what `signal` says: those above their request, then those of low priority,
/// then those farthest above it; for process IDs priority, then number. Critical pods never do, static ones among them.
#[must_use]
pub fn rank<'a>(signal: Signal, candidates: &[Candidate<'a>]) -> Vec<&'a Pod> {
    let mut order: Vec<&Candidate<'a>> = candidates.iter().filter(|c| !resources::is_critical(c.pod)).collect();
    let priority = |c: &Candidate<'_>| c.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    if signal == Signal::PidAvailable {
        order.sort_by_key(|c| (priority(c), std::cmp::Reverse(c.usage)));
    } else {
        let above = |c: &Candidate<'_>| i128::from(c.usage) - i128::from(c.request);
        order.sort_by_key(|c| (above(c) <= 0, priority(c), std::cmp::Reverse(above(c))));
    }
    order.into_iter().map(|c| c.pod).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reserve::Amount;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn pod(name: &str, spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("pod")
    }

    fn usage(volume: u64, a: u64, b: u64) -> LocalUsage {
        LocalUsage {
            empty_dirs: [("v".to_owned(), volume)].into(),
            containers: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
        }
    }

    #[test]
    fn local_storage_has_three_limits() {
        let limited = |limit: &str| json!({"limits": {"ephemeral-storage": limit}});
        let p = pod(
            "p",
            json!({
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1024Ki"}}],
                "containers": [{"name": "a", "resources": limited("2Mi")}, {"name": "b", "resources": limited("2Mi")}]
            }),
        );
        assert!(limits_local_storage(&p));
        let mi = 1 << 20;
        assert_eq!(local_storage(&p, &usage(mi, 2 * mi, mi)), None);
        assert_eq!(
            local_storage(&p, &usage(mi + 1, 0, 0)).as_deref(),
            Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ")
        );
        assert_eq!(
            local_storage(&p, &usage(mi, 2 * mi, mi + 1)).as_deref(),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ")
        );
        assert_eq!(
            local_storage(&p, &usage(0, 0, 2 * mi + 1)).as_deref(),
            Some("Container b exceeded its local ephemeral storage limit \"2Mi\". ")
        );
        let free = pod("p", json!({"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "a"}]}));
        assert!(!limits_local_storage(&free));
        assert_eq!(local_storage(&free, &usage(u64::MAX, u64::MAX, 0)), None);
        // A limit of 0 is none (as kubelet).
        let zero = pod("p", json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "0"}}], "containers": []}));
        assert_eq!(local_storage(&zero, &usage(5, 0, 0)), None);
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("time")
    }

    fn memory(available: i64) -> Observations {
        [(Signal::MemoryAvailable, Observation { available, capacity: 1000 })].into()
    }

    #[test]
    fn a_hard_threshold_acts_at_once_and_its_condition_stays_a_while() {
        let eviction = Eviction {
            thresholds: vec![Threshold {
                reclaim: Some(Amount::Absolute(50)),
                ..Threshold::hard(Signal::MemoryAvailable, Amount::Share(0.1))
            }],
            pressure_transition: Duration::from_secs(300),
            max_pod_grace_seconds: 0,
        };
        let mut monitor = Monitor::default();
        let mut step = |available: i64, second: i64| {
            let found = monitor.observe(&eviction, &memory(available), at(second));
            (!found.pressure.is_empty(), !found.crossed.is_empty())
        };
        assert_eq!(step(100, 0), (false, false));
        assert_eq!(step(99, 10), (true, true));
        // 100 is enough, but 50 more have to be won back.
        assert_eq!(step(149, 20), (true, true));
        assert_eq!(step(150, 30), (true, false));
        assert_eq!(step(500, 319), (true, false));
        assert_eq!(step(500, 320), (false, false));
    }

    #[test]
    fn a_soft_threshold_has_a_grace() {
        let soft = Threshold {
            grace: Some(Duration::from_secs(60)),
            ..Threshold::hard(Signal::MemoryAvailable, Amount::Absolute(100))
        };
        let eviction = Eviction { thresholds: vec![soft], ..Eviction::default() };
        let mut monitor = Monitor::default();
        let mut step = |available: i64, second: i64| {
            let found = monitor.observe(&eviction, &memory(available), at(second));
            (!found.pressure.is_empty(), !found.crossed.is_empty())
        };
        assert_eq!(step(50, 0), (true, false));
        assert_eq!(step(50, 59), (true, false));
        assert_eq!(step(50, 60), (true, true));
        assert_eq!(step(200, 61), (true, false));
        assert_eq!(step(50, 62), (true, false), "the grace begins anew");
        // What cannot be seen is no pressure.
        assert_eq!(Monitor::default().observe(&eviction, &Observations::new(), at(0)), Findings::default());
    }

    #[test]
    fn who_leaves_first() {
        let of = |name: &str, priority: i64| pod(name, json!({"priority": priority, "containers": []}));
        let (low, high, modest) = (of("low", 0), of("high", 100), of("modest", 0));
        let (more, mut fixed) = (of("more", 0), of("fixed", 0));
        fixed.metadata.annotations = Some([("kubernetes.io/config.source".into(), "file".into())].into());
        let critical = of("critical", 2_000_000_000);
        let all = [
            Candidate { pod: &high, usage: 900, request: 0 },
            Candidate { pod: &modest, usage: 100, request: 200 },
            Candidate { pod: &low, usage: 50, request: 0 },
            Candidate { pod: &more, usage: 80, request: 10 },
            Candidate { pod: &fixed, usage: 1000, request: 0 },
            Candidate { pod: &critical, usage: 1000, request: 0 },
        ];
        let names = |signal: Signal| -> Vec<String> {
            rank(signal, &all).into_iter().filter_map(|p| p.metadata.name.clone()).collect()
        };
        assert_eq!(names(Signal::MemoryAvailable), ["more", "low", "high", "modest"]);
        assert_eq!(names(Signal::PidAvailable), ["modest", "more", "low", "high"]);
    }
}
