//! Whom a critical pod may push off the node when there is no room for it (as kubelet: `kl/preemption`).

use super::admission::{NodeView, shortages};
use super::is_from_api;
use super::resources::{self, Qos};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;

/// The event's reason, and the status'.
pub const REASON: &str = "Preempting";
/// The event's message, and the status'.
pub const MESSAGE: &str = "Preempted in order to admit critical pod";

/// Amounts by resource that are still lacking.
type Lacking = BTreeMap<String, i64>;

/// Those of the `active` pods that have to go so that there is room for `pod`: few, of the lowest class, as near as possible to
/// what is needed. `None`: it is not critical, something else than room is missing, or all of them would not do.
///
/// Static pods are never among them: whoever wrote them down on the node wants them there.
#[must_use]
pub fn victims<'a>(pod: &Pod, active: &[&'a Pod], node: &NodeView) -> Option<Vec<&'a Pod>> {
    if !resources::is_critical(pod) {
        return None;
    }
    let lacking = shortages(pod, active, node);
    let mut classes = [Qos::BestEffort, Qos::Burstable, Qos::Guaranteed].map(|class| {
        let of_class = |other: &&&Pod| resources::qos(other).is_ok_and(|qos| qos == class) && yields(pod, other);
        active.iter().filter(of_class).copied().collect::<Vec<&Pod>>()
    });
    let [best_effort, burstable, guaranteed] = &mut classes;
    if lacking.is_empty() {
        return None;
    }
    // Those of a higher class only as far as all lower ones would not do; then of the lower ones what is missing beside them.
    let all_lower: Vec<&Pod> = best_effort.iter().chain(burstable.iter()).copied().collect();
    let guaranteed = nearest(guaranteed, without(&lacking, &all_lower))?;
    let beside: Vec<&Pod> = best_effort.iter().chain(&guaranteed).copied().collect();
    let burstable = nearest(burstable, without(&lacking, &beside))?;
    let beside: Vec<&Pod> = burstable.iter().chain(&guaranteed).copied().collect();
    let best_effort = nearest(best_effort, without(&lacking, &beside))?;
    Some(best_effort.into_iter().chain(burstable).chain(guaranteed).collect())
}

/// Why nobody could be found (as kubelet); `None` when it is not for lack of room that the pod is not taken.
#[must_use]
pub fn in_vain(pod: &Pod, active: &[&Pod], node: &NodeView) -> Option<String> {
    let lacking = shortages(pod, active, node);
    if lacking.is_empty() {
        return None;
    }
    let each: String = lacking.iter().map(|(resource, amount)| format!("(res: {resource}, q: {amount}), ")).collect();
    Some(format!(
        "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to \
         preempt: no set of running pods found to reclaim resources: [{each}]"
    ))
}

/// Whether `other` has to make room for `pod`.
fn yields(pod: &Pod, other: &Pod) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    let lower = || priority(pod).zip(priority(other)).is_some_and(|(own, other)| own > other);
    is_from_api(other) && (!resources::is_critical(other) || lower())
}

fn request(pod: &Pod, resource: &str) -> i64 {
    match resource {
        "pods" => 1,
        _ => super::admission::requests(pod).unwrap_or_default().get(resource).copied().unwrap_or(0),
    }
}

fn without(lacking: &Lacking, pods: &[&Pod]) -> Lacking {
    let left = |(resource, amount): (&String, &i64)| {
        let freed = pods.iter().fold(0_i64, |sum, pod| sum.saturating_add(request(pod, resource)));
        let left = amount.saturating_sub(freed);
        (left > 0).then(|| (resource.clone(), left))
    };
    lacking.iter().filter_map(left).collect()
}

/// The pods that together free what is lacking, each time the one that comes nearest; of two the smaller one. `None`: all of
/// them do not.
fn nearest<'a>(pods: &[&'a Pod], mut lacking: Lacking) -> Option<Vec<&'a Pod>> {
    let (mut pods, mut chosen) = (pods.to_vec(), Vec::new());
    while !lacking.is_empty() {
        let best = (0..pods.len()).min_by(|a, b| {
            let (a, b) = (pods[*a], pods[*b]);
            distance(&lacking, a).total_cmp(&distance(&lacking, b)).then_with(|| size(a).cmp(&size(b)))
        })?;
        let pod = pods.swap_remove(best);
        lacking = without(&lacking, &[pod]);
        chosen.push(pod);
    }
    Some(chosen)
}

/// How far a pod's requests are from what is lacking: 0 is enough of everything.
#[allow(clippy::cast_precision_loss)] // only compared
fn distance(lacking: &Lacking, pod: &Pod) -> f64 {
    let missing = |(resource, amount): (&String, &i64)| {
        let left = amount.saturating_sub(request(pod, resource)).max(0);
        (left as f64 / *amount as f64).powi(2)
    };
    lacking.iter().map(missing).sum()
}

fn size(pod: &Pod) -> (i64, i64) {
    (request(pod, "memory"), request(pod, "cpu"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::admission::NodeAmounts;
    use serde_json::{Value, json};

    fn pod(name: &str, source: &str, priority: i64, requests: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {"kubernetes.io/config.source": source}},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": requests}}]}
        }))
        .expect("pod")
    }

    fn node() -> NodeView {
        let allocatable = NodeAmounts { cpu_milli: 1000, memory: 1000, pods: 4, ..NodeAmounts::default() };
        NodeView { allocatable, ..NodeView::default() }
    }

    fn chosen(pod: &Pod, active: &[&Pod]) -> Option<String> {
        let names = |pods: Vec<&Pod>| pods.iter().filter_map(|p| p.metadata.name.clone()).collect::<Vec<_>>().join(" ");
        victims(pod, active, &node()).map(names)
    }

    #[test]
    fn few_of_the_lowest_class_that_come_nearest() {
        let critical = |cpu: &str| pod("critical", "api", 2_000_000_000, json!({"cpu": cpu}));
        let of = |name: &str, cpu: &str| pod(name, "api", 0, json!({"cpu": cpu}));
        let (small, middle, large) = (of("small", "100m"), of("middle", "300m"), of("large", "600m"));
        let all = [&small, &middle, &large];
        assert_eq!(chosen(&critical("100m"), &all).as_deref(), Some("small"));
        assert_eq!(chosen(&critical("200m"), &all).as_deref(), Some("middle"));
        assert_eq!(chosen(&critical("900m"), &all).as_deref(), Some("large middle"));
        assert_eq!(chosen(&critical("1001m"), &all), None, "not even an empty node would do");
        assert_eq!(chosen(&of("ordinary", "200m"), &all), None, "it is not critical");
        // A pod that requests nothing gives nothing but its place.
        let idle = ["a", "b", "c", "d"].map(|name| pod(name, "api", 0, json!({})));
        let full = idle.each_ref();
        assert_eq!(chosen(&critical("1"), &full).as_deref(), Some("a"));
    }

    #[test]
    fn who_is_critical_or_static_stays() {
        let critical = pod("critical", "api", 2_000_000_000, json!({"cpu": "500m"}));
        let highest = pod("highest", "api", 2_000_001_000, json!({"cpu": "500m"}));
        let (fixed, peer) = (
            pod("fixed", "file", 0, json!({"cpu": "600m"})),
            pod("peer", "api", 2_000_000_000, json!({"cpu": "400m"})),
        );
        assert_eq!(chosen(&critical, &[&fixed, &peer]), None);
        assert_eq!(chosen(&highest, &[&fixed, &peer]), None, "the static pod is too large");
        let fixed = pod("fixed", "file", 0, json!({"cpu": "100m"}));
        assert_eq!(chosen(&highest, &[&fixed, &peer]), None, "there is room");
        let peer = pod("peer", "api", 2_000_000_000, json!({"cpu": "700m"}));
        assert_eq!(chosen(&highest, &[&fixed, &peer]).as_deref(), Some("peer"));
    }
}
