//! What a pod asks for and may use: QoS class, requests and limits, cgroup names and settings, OOM score.
//! As kubelet: `kl/cm/helpers_linux.go`, `core/v1/helper/qos`, `kl/qos/policy.go`.

use crate::manifest;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// Smallest value the kernel takes for `cpu.shares`.
pub const MIN_SHARES: u64 = 2;
/// Largest value the kernel takes for `cpu.shares`.
pub const MAX_SHARES: u64 = 262_144;
/// CFS period in microseconds (as kubelet's `cpuCFSQuotaPeriod` default).
pub const CFS_PERIOD_US: u64 = 100_000;
/// Smallest CFS quota in microseconds.
const MIN_QUOTA_US: i64 = 1000;

/// Why a pod's resources cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A quantity that is none.
    #[error("{0:?} is not a resource quantity")]
    Quantity(String),
    /// A `resourceFieldRef` to a container that the pod does not have.
    #[error("container {0} not found")]
    Container(String),
    /// A `resourceFieldRef` to something else than limits and requests.
    #[error("unsupported container resource: {0}")]
    Field(String),
}

/// Quality of service of a pod: who is throttled and killed first when the node runs short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// Every container limits cpu and memory and requests as much.
    Guaranteed,
    /// Something in between.
    Burstable,
    /// Nothing requested, nothing limited.
    BestEffort,
}

impl Qos {
    /// The value of `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// An amount of cpu, memory and local storage; `None` where the pod says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// CPU in thousandths of a core.
    pub cpu_milli: Option<i64>,
    /// Memory in bytes.
    pub memory: Option<i64>,
    /// Local storage in bytes: writable layers, logs, emptyDir volumes on disk.
    pub ephemeral_storage: Option<i64>,
}

/// Requests and limits; a request that is missing is the limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// What is set aside.
    pub requests: Amounts,
    /// What may not be exceeded.
    pub limits: Amounts,
}

/// What this node can give to pods (capacity less what is reserved).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// CPU in thousandths of a core.
    pub cpu_milli: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Local storage in bytes.
    pub ephemeral_storage: i64,
}

/// Bytes by page size in bytes.
pub type HugePages = BTreeMap<u64, i64>;

/// Settings of one cgroup; `None` leaves the kernel's (or the present) value alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupSettings {
    /// `cpu.shares` as in cgroup v1, 2..=262144 ([`weight_linear`] makes a v2 weight of it).
    pub cpu_shares: Option<u64>,
    /// CPU time per period in microseconds; −1 = unlimited.
    pub cpu_quota: Option<i64>,
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// Memory limit in bytes; −1 = unlimited.
    pub memory_limit: Option<i64>,
    /// Largest number of tasks; −1 = unlimited.
    pub pids_limit: Option<i64>,
    /// Limits of huge pages; sizes of the machine that are not named get 0.
    pub hugetlb: Option<HugePages>,
}

/// How the node enforces what pods ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enforcement {
    /// Most processes of a pod (`podPidsLimit`); `None`: no limit.
    pub pids_limit: Option<i64>,
    /// CFS period in microseconds (`cpuCFSQuotaPeriod`); `None`: CPU limits are not enforced (`cpuCFSQuota: false`).
    pub cfs_period: Option<u64>,
}

impl Default for Enforcement {
    /// As kubelet.
    fn default() -> Enforcement {
        Enforcement { pids_limit: None, cfs_period: Some(CFS_PERIOD_US) }
    }
}

fn quantity(quantity: &Quantity) -> Result<manifest::Quantity, Error> {
    manifest::Quantity::parse(&quantity.0).map_err(|_| Error::Quantity(quantity.0.clone()))
}

/// A quantity as thousandths, rounded up.
fn milli(amount: &Quantity) -> Result<i64, Error> {
    Ok(saturate(quantity(amount)?.milli_ceil()))
}

/// A quantity as whole units, rounded up.
fn whole(amount: &Quantity) -> Result<i64, Error> {
    Ok(saturate(quantity(amount)?.ceil()))
}

/// A quantity in bytes (or pieces), rounded up.
///
/// # Errors
/// [`Error::Quantity`] when the text is no quantity.
pub fn bytes(quantity: &Quantity) -> Result<i64, Error> {
    whole(quantity)
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn ceil_div(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

type List = BTreeMap<String, Quantity>;

fn amounts(list: Option<&List>) -> Result<Amounts, Error> {
    let Some(list) = list else { return Ok(Amounts::default()) };
    Ok(Amounts {
        cpu_milli: list.get("cpu").map(milli).transpose()?,
        memory: list.get("memory").map(whole).transpose()?,
        ephemeral_storage: list.get("ephemeral-storage").map(whole).transpose()?,
    })
}

fn read(requirements: Option<&ResourceRequirements>) -> Result<Resources, Error> {
    let limits = amounts(requirements.and_then(|r| r.limits.as_ref()))?;
    let requests = amounts(requirements.and_then(|r| r.requests.as_ref()))?;
    Ok(Resources { requests: requests.or(limits), limits })
}

impl Amounts {
    fn or(self, other: Amounts) -> Amounts {
        Amounts {
            cpu_milli: self.cpu_milli.or(other.cpu_milli),
            memory: self.memory.or(other.memory),
            ephemeral_storage: self.ephemeral_storage.or(other.ephemeral_storage),
        }
    }

    fn combine(self, other: Amounts, f: fn(i64, i64) -> i64) -> Amounts {
        let pick = |a: Option<i64>, b: Option<i64>| match (a, b) {
            (None, None) => None,
            (a, b) => Some(f(a.unwrap_or(0), b.unwrap_or(0))),
        };
        Amounts {
            cpu_milli: pick(self.cpu_milli, other.cpu_milli),
            memory: pick(self.memory, other.memory),
            ephemeral_storage: pick(self.ephemeral_storage, other.ephemeral_storage),
        }
    }

    fn plus(self, other: Amounts) -> Amounts {
        self.combine(other, i64::saturating_add)
    }

    fn max(self, other: Amounts) -> Amounts {
        self.combine(other, i64::max)
    }
}

/// Requests and limits of one container; the pod's own limits stand in for limits the container does not have.
///
/// # Errors
/// [`Error::Quantity`].
pub fn container(pod: &Pod, container: &Container) -> Result<Resources, Error> {
    let own = read(container.resources.as_ref())?;
    let pod_level = read(pod.spec.as_ref().and_then(|s| s.resources.as_ref()))?;
    Ok(Resources { requests: own.requests, limits: own.limits.or(pod_level.limits) })
}

fn app(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |s| &s.containers)
}

fn init(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What the pod as a whole requests and may use, overhead included: the larger of all that run together and the
/// hungriest moment of initialisation; pod-level values override (as kubelet: `component-helpers/resource`).
///
/// # Errors
/// [`Error::Quantity`].
pub fn effective(pod: &Pod) -> Result<Resources, Error> {
    let mut running = Resources::default();
    for c in app(pod) {
        let r = read(c.resources.as_ref())?;
        running = Resources { requests: running.requests.plus(r.requests), limits: running.limits.plus(r.limits) };
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for c in init(pod) {
        let r = read(c.resources.as_ref())?;
        let with = Resources { requests: sidecars.requests.plus(r.requests), limits: sidecars.limits.plus(r.limits) };
        if is_sidecar(c) {
            sidecars = with;
        }
        peak = Resources { requests: peak.requests.max(with.requests), limits: peak.limits.max(with.limits) };
    }
    let spec = pod.spec.as_ref();
    let pod_level = read(spec.and_then(|s| s.resources.as_ref()))?;
    let overhead = amounts(spec.and_then(|s| s.overhead.as_ref()))?;
    let requests = pod_level.requests.or(running.requests.plus(sidecars.requests).max(peak.requests));
    let limits = pod_level.limits.or(running.limits.plus(sidecars.limits).max(peak.limits));
    // Overhead limits nothing by itself: it only widens limits that are there.
    let widen = |limit: Option<i64>, by: Option<i64>| limit.map(|l| l.saturating_add(by.unwrap_or(0)));
    Ok(Resources {
        requests: requests.plus(overhead),
        limits: Amounts {
            cpu_milli: widen(limits.cpu_milli, overhead.cpu_milli),
            memory: widen(limits.memory, overhead.memory),
            ephemeral_storage: widen(limits.ephemeral_storage, overhead.ephemeral_storage),
        },
    })
}

/// Prefix of the names of huge page resources; the page size follows.
pub const HUGE_PAGES: &str = "hugepages-";

/// Huge pages of a list of amounts.
fn huge_pages(list: Option<&List>) -> Result<HugePages, Error> {
    let mut pages = HugePages::new();
    for (name, amount) in list.into_iter().flatten() {
        let Some(size) = name.strip_prefix(HUGE_PAGES) else { continue };
        let size = u64::try_from(whole(&Quantity(size.to_owned()))?).map_err(|_| Error::Field(name.clone()))?;
        pages.insert(size, whole(amount)?);
    }
    Ok(pages)
}

/// Huge pages that the pod as a whole may use, by page size. Request and limit are the same (validated).
///
/// # Errors
/// [`Error::Quantity`].
pub fn pod_huge_pages(pod: &Pod) -> Result<HugePages, Error> {
    let of = |c: &Container| {
        let resources = c.resources.as_ref();
        let mut pages = huge_pages(resources.and_then(|r| r.requests.as_ref()))?;
        pages.extend(huge_pages(resources.and_then(|r| r.limits.as_ref()))?);
        Ok::<_, Error>(pages)
    };
    let add = |to: &mut HugePages, pages: &HugePages| {
        for (size, amount) in pages {
            let sum = to.entry(*size).or_default();
            *sum = sum.saturating_add(*amount);
        }
    };
    let raise = |to: &mut HugePages, pages: &HugePages| {
        for (size, amount) in pages {
            let most = to.entry(*size).or_default();
            *most = (*most).max(*amount);
        }
    };
    let (mut running, mut sidecars, mut peak) = (HugePages::new(), HugePages::new(), HugePages::new());
    for c in app(pod) {
        add(&mut running, &of(c)?);
    }
    for c in init(pod) {
        let mut with = sidecars.clone();
        add(&mut with, &of(c)?);
        raise(&mut peak, &with);
        if is_sidecar(c) {
            sidecars = with;
        }
    }
    add(&mut running, &sidecars);
    raise(&mut running, &peak);
    // As kubelet: what the pod says for itself counts.
    running.extend(huge_pages(pod.spec.as_ref().and_then(|s| s.resources.as_ref()?.limits.as_ref()))?);
    Ok(running)
}

/// Name of a huge page size as cgroup files and OCI specs have it (`2MB`, `1GB`).
#[must_use]
pub fn huge_page_name(size: u64) -> String {
    match size {
        s if s >= 1 << 30 && s.is_multiple_of(1 << 30) => format!("{}GB", s >> 30),
        s if s >= 1 << 20 && s.is_multiple_of(1 << 20) => format!("{}MB", s >> 20),
        s => format!("{}KB", s >> 10),
    }
}

/// The pod's QoS class (as kubelet: cpu and memory of all app and init containers, zero counts as unset; a pod with
/// `spec.resources` is judged by those alone).
///
/// # Errors
/// [`Error::Quantity`].
pub fn qos(pod: &Pod) -> Result<Qos, Error> {
    let set = |v: Option<i64>| v.filter(|v| *v > 0);
    let parts: Vec<Resources> = match pod.spec.as_ref().and_then(|s| s.resources.as_ref()) {
        Some(pod_level) => vec![read(Some(pod_level))?],
        None => app(pod).iter().chain(init(pod)).map(|c| read(c.resources.as_ref())).collect::<Result<_, _>>()?,
    };
    let mut any = false;
    let mut all_limited = true;
    let (mut requests, mut limits) = (Amounts::default(), Amounts::default());
    for part in parts {
        // Only these two count.
        let of = |a: Amounts| Amounts { cpu_milli: set(a.cpu_milli), memory: set(a.memory), ephemeral_storage: None };
        let (r, l) = (of(part.requests), of(part.limits));
        any |= r != Amounts::default() || l != Amounts::default();
        all_limited &= l.cpu_milli.is_some() && l.memory.is_some();
        requests = requests.plus(r);
        limits = limits.plus(l);
    }
    Ok(match (any, all_limited && requests == limits) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    })
}

/// `cpu.shares` for a CPU request in thousandths of a core.
pub fn shares(cpu_milli: i64) -> u64 {
    let milli = u64::try_from(cpu_milli).unwrap_or(0);
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota in microseconds for a CPU limit; `None` (unlimited) for a limit of zero.
pub fn quota(cpu_milli: i64, period_us: u64) -> Option<i64> {
    if cpu_milli <= 0 {
        return None;
    }
    let quota = i128::from(cpu_milli) * i128::from(period_us) / 1000;
    Some(saturate(quota).max(MIN_QUOTA_US))
}

/// v1 shares as a v2 weight, for kubepods, QoS and pod cgroups (as kubelet: linear; 1024 → 39).
pub fn weight_linear(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    1 + (shares - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// v1 shares as a v2 weight, for containers (as newer runc, and libcontainer: 1024 → 100).
pub fn weight_quadratic(shares: u64) -> u64 {
    match shares {
        0..=MIN_SHARES => 1,
        MAX_SHARES.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            // A weight is at most 10000: the cast cannot lose anything.
            (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// Name of the cgroup of all pods under `root` (`""` or `/prefix`).
pub fn kubepods_cgroup(root: &str) -> String {
    format!("{}/kubepods", root.trim_end_matches('/'))
}

/// Name of the cgroup that holds the pods of one class.
pub fn qos_cgroup(root: &str, qos: Qos) -> String {
    let kubepods = kubepods_cgroup(root);
    match qos {
        Qos::Guaranteed => kubepods,
        Qos::Burstable => format!("{kubepods}/burstable"),
        Qos::BestEffort => format!("{kubepods}/besteffort"),
    }
}

/// Name of a pod's cgroup (kubelet's cgroupfs driver); a container's is this + `/<container id>`.
pub fn pod_cgroup(root: &str, qos: Qos, uid: &str) -> String {
    format!("{}/pod{uid}", qos_cgroup(root, qos))
}

/// Name of a container's cgroup.
pub fn container_cgroup(pod_cgroup: &str, id: &str) -> String {
    format!("{pod_cgroup}/{id}")
}

/// Settings of the cgroup of all pods: what the node can give them, before the eviction reserve is taken off.
pub fn kubepods_settings(cpu_milli: i64, memory: i64, pids_limit: Option<i64>) -> CgroupSettings {
    CgroupSettings {
        cpu_shares: Some(shares(cpu_milli)),
        memory_limit: Some(memory).filter(|m| *m > 0),
        pids_limit,
        ..CgroupSettings::default()
    }
}

/// Settings of the cgroup of one QoS class; `requested_milli` is the sum of the requests of its pods.
pub fn qos_settings(qos: Qos, requested_milli: i64) -> CgroupSettings {
    let cpu_shares = match qos {
        Qos::Guaranteed => None,
        Qos::Burstable => Some(shares(requested_milli)),
        Qos::BestEffort => Some(MIN_SHARES),
    };
    CgroupSettings { cpu_shares, ..CgroupSettings::default() }
}

/// Settings of a pod's cgroup; `pids_limit` is the node's `podPidsLimit` (unset when not positive).
///
/// # Errors
/// [`Error::Quantity`].
pub fn pod_settings(pod: &Pod, pids_limit: i64) -> Result<CgroupSettings, Error> {
    Enforcement { pids_limit: Some(pids_limit).filter(|l| *l > 0), ..Enforcement::default() }.pod(pod)
}

impl Enforcement {
    /// Settings of a pod's cgroup.
    ///
    /// # Errors
    /// [`Error::Quantity`].
    pub fn pod(&self, pod: &Pod) -> Result<CgroupSettings, Error> {
        let class = qos(pod)?;
        let total = effective(pod)?;
        let pod_level = read(pod.spec.as_ref().and_then(|s| s.resources.as_ref()))?.limits;
        let (mut cpu_limited, mut memory_limited) = (true, true);
        for c in app(pod).iter().chain(init(pod)) {
            let limits = read(c.resources.as_ref())?.limits;
            cpu_limited &= limits.cpu_milli.is_some_and(|v| v > 0);
            memory_limited &= limits.memory.is_some_and(|v| v > 0);
        }
        let mut settings = CgroupSettings {
            cpu_shares: Some(shares(total.requests.cpu_milli.unwrap_or(0))),
            pids_limit: self.pids_limit,
            hugetlb: Some(pod_huge_pages(pod)?),
            ..CgroupSettings::default()
        };
        match class {
            Qos::BestEffort => settings.cpu_shares = Some(MIN_SHARES),
            Qos::Guaranteed | Qos::Burstable => {
                if cpu_limited || pod_level.cpu_milli.is_some() {
                    self.set_quota(&mut settings, total.limits.cpu_milli);
                }
                if memory_limited || pod_level.memory.is_some() {
                    settings.memory_limit = total.limits.memory.filter(|m| *m > 0);
                }
            }
        }
        Ok(settings)
    }

    /// Settings of a container's cgroup. Its huge pages are named only when there are any: the pod's group above it
    /// refuses all others.
    ///
    /// # Errors
    /// [`Error::Quantity`].
    pub fn container(&self, pod: &Pod, c: &Container) -> Result<CgroupSettings, Error> {
        let resources = container(pod, c)?;
        let pages = huge_pages(c.resources.as_ref().and_then(|r| r.limits.as_ref()))?;
        let mut settings = CgroupSettings {
            cpu_shares: Some(shares(resources.requests.cpu_milli.unwrap_or(0))),
            memory_limit: resources.limits.memory.filter(|m| *m > 0),
            hugetlb: Some(pages).filter(|pages| !pages.is_empty()),
            ..CgroupSettings::default()
        };
        self.set_quota(&mut settings, resources.limits.cpu_milli);
        Ok(settings)
    }

    fn set_quota(&self, settings: &mut CgroupSettings, limit_milli: Option<i64>) {
        let Some(period) = self.cfs_period else { return };
        settings.cpu_quota = limit_milli.and_then(|milli| quota(milli, period));
        settings.cpu_period = settings.cpu_quota.map(|_| period);
    }
}

/// Whether the node must keep this pod whatever happens: static pods and priorities of two thousand million and more.
pub fn is_critical(pod: &Pod) -> bool {
    let annotation = |key: &str| pod.metadata.annotations.as_ref().and_then(|a| a.get(key));
    let is_static = annotation("kubernetes.io/config.source").is_some_and(|source| source != "api");
    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    is_static || annotation("kubernetes.io/config.mirror").is_some() || priority >= 2_000_000_000
}

/// `oom_score_adj` of a container, −997..=1000 (as kubelet: `kl/qos/policy.go`).
///
/// # Errors
/// [`Error::Quantity`].
pub fn oom_score_adj(pod: &Pod, c: &Container, node_memory: i64) -> Result<i32, Error> {
    const GUARANTEED: i64 = -997;
    let node_critical = is_critical(pod)
        && pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref()) == Some("system-node-critical");
    let class = qos(pod)?;
    if node_critical || class == Qos::Guaranteed {
        return Ok(GUARANTEED as i32);
    }
    if class == Qos::BestEffort {
        return Ok(1000);
    }
    let request = |c: &Container| Ok(read(c.resources.as_ref())?.requests.memory.unwrap_or(0));
    let pod_level = read(pod.spec.as_ref().and_then(|s| s.resources.as_ref()))?.requests.memory;
    let share = match pod_level {
        None => 0,
        // What the pod requests beyond its containers is shared out equally.
        Some(total) => {
            let members: Vec<&Container> = app(pod).iter().chain(init(pod).iter().filter(|c| is_sidecar(c))).collect();
            let mut assigned = 0_i64;
            for member in &members {
                assigned = assigned.saturating_add(request(member)?);
            }
            total.saturating_sub(assigned).max(0) / i64::try_from(members.len().max(1)).unwrap_or(1)
        }
    };
    let score = |memory: i64| {
        let memory = i128::from(memory.saturating_add(share));
        saturate(1000 - 1000 * memory / i128::from(node_memory.max(1)))
    };
    let mut adjust = score(request(c)?);
    if is_sidecar(c) && init(pod).iter().any(|i| i.name == c.name) {
        // A sidecar must not be killed before the app that needs it.
        let smallest = app(pod).iter().map(request).collect::<Result<Vec<_>, _>>()?.into_iter().min();
        adjust = adjust.min(score(smallest.unwrap_or(0)));
    }
    Ok(adjust.clamp(1000 + GUARANTEED, 999) as i32)
}

/// Value of a `resourceFieldRef`: `ceil(quantity / divisor)`; an unset limit is the pod's, then the node's.
///
/// # Errors
/// Any of [`Error`].
pub fn field(
    pod: &Pod,
    own: &Container,
    selector: &ResourceFieldSelector,
    node: &Allocatable,
) -> Result<String, Error> {
    let c = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        None => own,
        Some(name) => (app(pod).iter().chain(init(pod)).find(|c| c.name == name))
            .ok_or_else(|| Error::Container(name.to_owned()))?,
    };
    let unsupported = || Error::Field(selector.resource.clone());
    let (kind, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    if !matches!(resource, "cpu" | "memory" | "ephemeral-storage") && !resource.starts_with("hugepages-") {
        return Err(unsupported());
    }
    let unit = if resource == "cpu" { milli } else { whole };
    let get = |list: Option<&List>| list.and_then(|l| l.get(resource)).map(unit).transpose();
    let own = c.resources.as_ref();
    let pod_level = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    let limit = get(own.and_then(|r| r.limits.as_ref()))?;
    let amount = match kind {
        "requests" => get(own.and_then(|r| r.requests.as_ref()))?.or(limit).unwrap_or(0),
        "limits" => match limit.filter(|v| *v > 0).or(get(pod_level.and_then(|r| r.limits.as_ref()))?) {
            Some(limit) => limit,
            None => match resource {
                "cpu" => node.cpu_milli,
                "memory" => node.memory,
                "ephemeral-storage" => node.ephemeral_storage,
                _ => 0,
            },
        },
        _ => return Err(unsupported()),
    };
    let one = if resource == "cpu" { 1000 } else { 1 };
    let divisor = selector.divisor.as_ref().map(unit).transpose()?.filter(|d| *d > 0).unwrap_or(one);
    Ok(ceil_div(i128::from(amount), i128::from(divisor)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec
        }))
        .expect("pod")
    }

    fn of(resources: serde_json::Value) -> Pod {
        pod(serde_json::json!({"containers": [{"name": "c", "resources": resources}]}))
    }

    fn first(pod: &Pod) -> &Container {
        &pod.spec.as_ref().expect("spec").containers[0]
    }

    #[test]
    fn quantities() {
        let milli = |s: &str| milli(&Quantity(s.into()));
        let whole = |s: &str| whole(&Quantity(s.into()));
        assert_eq!(milli("100m"), Ok(100));
        assert_eq!(milli("1.5"), Ok(1500));
        assert_eq!(milli("100u"), Ok(1));
        assert_eq!(whole("64Mi"), Ok(64 << 20));
        assert_eq!(whole("1.5Gi"), Ok(3 << 29));
        assert_eq!(whole("1e3"), Ok(1000));
        assert_eq!(whole("1E"), Ok(1_000_000_000_000_000_000));
        assert_eq!(whole("100m"), Ok(1));
        assert_eq!(whole("-1"), Ok(-1));
        assert_eq!(whole("9999999999999999999999999999999"), Ok(i64::MAX));
        for bad in ["", "-", ".", "1.2.3", "Mi", "1 Mi", "0x1", "1ki"] {
            assert_eq!(whole(bad), Err(Error::Quantity(bad.into())));
        }
    }

    #[test]
    fn shares_weights_and_quotas() {
        assert_eq!((shares(0), shares(1), shares(100), shares(1000), shares(i64::MAX)), (2, 2, 102, 1024, 262_144));
        assert_eq!((weight_linear(2), weight_linear(1024), weight_linear(262_144)), (1, 39, 10_000));
        assert_eq!((weight_quadratic(2), weight_quadratic(1024), weight_quadratic(262_144)), (1, 100, 10_000));
        assert_eq!((quota(0, 100_000), quota(5, 100_000), quota(1500, 100_000)), (None, Some(1000), Some(150_000)));
    }

    #[test]
    fn classes() {
        assert_eq!(qos(&of(serde_json::json!({}))), Ok(Qos::BestEffort));
        assert_eq!(qos(&of(serde_json::json!({"requests": {"cpu": "0"}}))), Ok(Qos::BestEffort));
        assert_eq!(qos(&of(serde_json::json!({"requests": {"cpu": "1"}}))), Ok(Qos::Burstable));
        assert_eq!(qos(&of(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), Ok(Qos::Guaranteed));
        let less = serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        assert_eq!(qos(&of(less)), Ok(Qos::Burstable));
        let pod_level = pod(serde_json::json!({
            "resources": {}, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]
        }));
        assert_eq!(qos(&pod_level), Ok(Qos::BestEffort));
    }

    #[test]
    fn effective_counts_sidecars_and_the_peak_of_initialisation() {
        let r = |cpu: &str| serde_json::json!({"requests": {"cpu": cpu}});
        let p = pod(serde_json::json!({
            "overhead": {"cpu": "10m"},
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": r("100m")},
                {"name": "init", "resources": r("900m")}
            ],
            "containers": [{"name": "a", "resources": r("200m")}, {"name": "b", "resources": r("300m")}]
        }));
        assert_eq!(effective(&p).map(|r| r.requests.cpu_milli), Ok(Some(1010)));
    }

    #[test]
    fn pod_limits_need_every_container_to_have_one() {
        let p = pod(serde_json::json!({"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "64Mi"}}},
            {"name": "b", "resources": {"limits": {"memory": "64Mi"}}}
        ]}));
        let settings = pod_settings(&p, -1).expect("settings");
        assert_eq!(settings.cpu_quota, None);
        assert_eq!(settings.memory_limit, Some(128 << 20));
        assert_eq!(settings.cpu_shares, Some(1024));
        assert_eq!(settings.pids_limit, None);
    }

    #[test]
    fn the_table_of_pod_settings() {
        let both = |cpu: &str, memory: &str| serde_json::json!({"cpu": cpu, "memory": memory});
        let node = Enforcement { pids_limit: Some(64), cfs_period: Some(10_000) };
        let set = |p: &Pod| {
            let s = node.pod(p).expect("settings");
            assert_eq!((s.pids_limit, s.hugetlb), (Some(64), Some(HugePages::new())));
            (s.cpu_shares, s.cpu_quota, s.cpu_period, s.memory_limit)
        };
        let guaranteed = of(serde_json::json!({"limits": both("500m", "64Mi")}));
        assert_eq!(set(&guaranteed), (Some(512), Some(5000), Some(10_000), Some(64 << 20)));
        let burstable = of(serde_json::json!({"requests": both("250m", "32Mi")}));
        assert_eq!(set(&burstable), (Some(256), None, None, None));
        assert_eq!(set(&of(serde_json::json!({}))), (Some(2), None, None, None));
        // The pod's own limit counts even where no container has one.
        let pod_level = pod(serde_json::json!({
            "resources": {"requests": {"cpu": "1"}, "limits": both("2", "1Gi")},
            "containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "250m"}}}]
        }));
        assert_eq!(set(&pod_level), (Some(1024), Some(20_000), Some(10_000), Some(1 << 30)));
        let a = node.container(&pod_level, first(&pod_level)).expect("settings");
        assert_eq!((a.cpu_shares, a.cpu_quota, a.memory_limit), (Some(2), Some(20_000), Some(1 << 30)));
        // The smallest quota; and none at all without enforcement.
        let tiny = of(serde_json::json!({"limits": both("1m", "64Mi")}));
        assert_eq!(set(&tiny).1, Some(1000));
        let off = Enforcement { cfs_period: None, ..node };
        let s = off.pod(&guaranteed).expect("settings");
        assert_eq!((s.cpu_quota, s.cpu_period, s.memory_limit), (None, None, Some(64 << 20)));
        assert_eq!(off.container(&guaranteed, first(&guaranteed)).map(|s| s.cpu_quota), Ok(None));
    }

    #[test]
    fn huge_pages_are_limited_by_size() {
        let r = |two: &str, one: &str| serde_json::json!({"limits": {"hugepages-2Mi": two, "hugepages-1Gi": one}});
        let p = pod(serde_json::json!({
            "initContainers": [{"name": "init", "resources": r("64Mi", "0")}],
            "containers": [{"name": "a", "resources": r("4Mi", "1Gi")}, {"name": "b", "resources": r("4Mi", "1Gi")}]
        }));
        let pages: HugePages = [(2 << 20, 64 << 20), (1 << 30, 2 << 30)].into();
        assert_eq!(pod_huge_pages(&p), Ok(pages.clone()));
        assert_eq!(Enforcement::default().pod(&p).map(|s| s.hugetlb), Ok(Some(pages)));
        let own = Enforcement::default().container(&p, first(&p)).expect("settings").hugetlb;
        assert_eq!(own, Some([(2 << 20, 4 << 20), (1 << 30, 1 << 30)].into()));
        assert_eq!([2 << 20, 1 << 30, 64 << 10].map(huge_page_name), ["2MB", "1GB", "64KB"]);
    }

    #[test]
    fn cgroup_names() {
        assert_eq!(pod_cgroup("", Qos::Guaranteed, "u"), "/kubepods/podu");
        assert_eq!(pod_cgroup("/", Qos::Burstable, "u"), "/kubepods/burstable/podu");
        assert_eq!(pod_cgroup("/x", Qos::BestEffort, "u"), "/x/kubepods/besteffort/podu");
        assert_eq!(container_cgroup("/kubepods/podu", "id"), "/kubepods/podu/id");
    }

    #[test]
    fn oom_scores() {
        let gib = 1 << 30;
        let adj = |p: &Pod| oom_score_adj(p, first(p), 4 * gib);
        assert_eq!(adj(&of(serde_json::json!({}))), Ok(1000));
        assert_eq!(adj(&of(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), Ok(-997));
        assert_eq!(adj(&of(serde_json::json!({"requests": {"memory": "1Gi"}}))), Ok(750));
        assert_eq!(adj(&of(serde_json::json!({"requests": {"memory": "1Ki"}}))), Ok(999));
        assert_eq!(adj(&of(serde_json::json!({"requests": {"memory": "1Ti"}}))), Ok(3));
        let mut critical = of(serde_json::json!({}));
        critical.spec.as_mut().expect("spec").priority_class_name = Some("system-node-critical".into());
        assert_eq!(adj(&critical), Ok(1000));
        critical.metadata.annotations = Some([("kubernetes.io/config.source".into(), "file".into())].into());
        assert_eq!(adj(&critical), Ok(-997));
    }

    #[test]
    fn resource_fields() {
        let node = Allocatable { cpu_milli: 1900, memory: 1 << 30, ephemeral_storage: 7 };
        let p = of(serde_json::json!({"limits": {"cpu": "1500m"}, "requests": {"memory": "1500Ki"}}));
        let get = |resource: &str, divisor: Option<&str>| {
            let divisor = divisor.map(|d| Quantity(d.into()));
            let selector = ResourceFieldSelector { container_name: None, divisor, resource: resource.into() };
            field(&p, first(&p), &selector, &node)
        };
        assert_eq!(get("limits.cpu", None).as_deref(), Ok("2"));
        assert_eq!(get("limits.cpu", Some("1m")).as_deref(), Ok("1500"));
        assert_eq!(get("requests.cpu", None).as_deref(), Ok("2"));
        assert_eq!(get("requests.memory", Some("1Mi")).as_deref(), Ok("2"));
        assert_eq!(get("limits.memory", Some("0")).as_deref(), Ok("1073741824"));
        assert_eq!(get("limits.ephemeral-storage", None).as_deref(), Ok("7"));
        assert_eq!(get("requests.ephemeral-storage", None).as_deref(), Ok("0"));
        assert_eq!(get("limits.gpu", None), Err(Error::Field("limits.gpu".into())));
    }

    proptest! {
        #[test]
        fn quantities_never_panic(text in "\\PC*") {
            let _ = (milli(&Quantity(text.clone())), whole(&Quantity(text)));
        }

        #[test]
        fn weights_grow_with_shares(a in 0_u64..300_000, b in 0_u64..300_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(weight_linear(low) <= weight_linear(high));
            prop_assert!(weight_quadratic(low) <= weight_quadratic(high));
        }
    }
}
