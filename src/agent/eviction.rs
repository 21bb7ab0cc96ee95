//! Looks every ten seconds at what pods take of the disk and at what is left of the node (as kubelet's eviction manager;
//! a node of static pods evicts nobody for its own shortage, as all of them are critical).

use super::events::{Note, pod_reference};
use super::node::Shared;
use crate::config::reserve;
use crate::pod::eviction::{Monitor, limits_local_storage, local_storage, resource_of};
use crate::pod::{Eviction, Key};
use crate::server;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Between two looks (as kubelet).
const INTERVAL: Duration = Duration::from_secs(10);
/// Grace of a pod that leaves for what it uses (as kubelet: 1; its containers get two seconds in any case).
const GRACE_SECONDS: u64 = 1;

/// Watch for ever; `changed` is told when pods have to leave.
pub async fn watch(shared: Arc<Shared>, thresholds: reserve::Eviction, changed: Arc<Notify>) {
    // Beside each other: to count what pods take may take long, and whoever wants that has only to make many files.
    tokio::join!(watch_node(&shared, &thresholds), watch_pods(&shared, &changed));
}

fn ticks() -> Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn watch_node(shared: &Arc<Shared>, thresholds: &reserve::Eviction) {
    let mut ticks = ticks();
    let mut monitor = Monitor::default();
    let mut crossed = BTreeSet::new();
    loop {
        ticks.tick().await;
        let runtime = Arc::clone(&shared.runtime);
        // An error means that the agent is shutting down.
        let Ok(seen) = tokio::task::spawn_blocking(move || runtime.observe_node()).await else { return };
        let now = Timestamp::now();
        let findings = monitor.observe(thresholds, &seen, now);
        for signal in findings.crossed.difference(&crossed) {
            let left = seen.get(signal).copied().unwrap_or_default();
            let message = format!(
                "Attempting to reclaim {} ({signal}: {} of {} left)",
                resource_of(*signal),
                left.available,
                left.capacity
            );
            shared.note(shared.events.node_reference(), &Note::warning("EvictionThresholdMet", message), now);
        }
        crossed = findings.crossed;
        shared.set_pressure(&findings.pressure, now);
    }
}

async fn watch_pods(shared: &Arc<Shared>, changed: &Notify) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        for pod in server::Node::pods(&**shared).into_iter().filter(|pod| is_limited(pod)) {
            let (runtime, measured) = (Arc::clone(&shared.runtime), Arc::clone(&pod));
            let job = tokio::task::spawn_blocking(move || local_storage(&measured, &runtime.local_usage(&measured)));
            // As above.
            let Ok(found) = job.await else { return };
            let Some(message) = found else { continue };
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let eviction = Eviction { message: message.clone(), grace_seconds: GRACE_SECONDS };
            if shared.evict(&Key::of(&pod), uid, eviction) {
                shared.note(pod_reference(&pod, None), &Note::warning("Evicted", message), Timestamp::now());
                changed.notify_one();
            }
        }
    }
}

/// Whether a pod has to be measured: it limits local storage, and has not ended.
fn is_limited(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Running" | "Pending"))
        && pod.metadata.deletion_timestamp.is_none()
        && limits_local_storage(pod)
}
