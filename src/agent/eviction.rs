//! Looks every ten seconds at what pods take of the disk and at what is left of the node (as kubelet's eviction manager).
//! For the node's own shortage bound pods leave, for good: static ones are critical, all of them.

use super::collect::Relief;
use super::events::{Note, pod_reference};
use super::node::Shared;
use crate::config::reserve::{self, Signal};
use crate::pod::eviction::{
    self, Candidate, Monitor, Observation, limits_local_storage, local_storage, rank, resource_of,
};
use crate::pod::{Eviction, Key, is_from_api};
use crate::server;
use crate::sys::clock;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Between two looks (as kubelet).
const INTERVAL: Duration = Duration::from_secs(10);
/// The longest pause between two counts of what a pod takes of the disk (as kubelet's `volumeStatsAggPeriod`).
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How many times as long as a count took nothing is counted again: a twentieth of one CPU at most per large pod.
const REST: u32 = 20;
/// How long a pod that was evicted may take before the next one is (as kubelet).
const CLEAN_UP: Duration = Duration::from_secs(30);
/// Grace of a pod that leaves for what it uses (as kubelet: 1; its containers get two seconds in any case).
const GRACE_SECONDS: u64 = 1;

/// Watch for ever; `changed` is told when pods have to leave.
pub async fn watch(shared: Arc<Shared>, thresholds: reserve::Eviction, changed: Arc<Notify>) {
    // Beside each other: to count what pods take may take long, and whoever wants that has only to make many files.
    tokio::join!(watch_node(&shared, &thresholds, &changed), watch_pods(&shared, &changed));
}

fn ticks() -> Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn watch_node(shared: &Arc<Shared>, thresholds: &reserve::Eviction, changed: &Notify) {
    let mut ticks = ticks();
    let mut monitor = Monitor::default();
    let mut crossed = BTreeSet::new();
    let mut relief = Relief::default();
    let mut leaving: Option<Leaving> = None;
    loop {
        ticks.tick().await;
        let runtime = Arc::clone(&shared.runtime);
        // An error means that the agent is shutting down.
        let Ok(seen) = tokio::task::spawn_blocking(move || runtime.observe_node()).await else { return };
        let now = clock::now();
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
        let before = std::mem::replace(&mut crossed, findings.crossed);
        let was_short = shared.is_short_of_disk();
        shared.set_pressure(&findings.pressure, now);
        if !was_short && shared.is_short_of_disk() {
            // What is left of earlier runs goes.
            changed.notify_one();
        }
        relief.seek(shared, crossed.iter().any(is_of_disk)).await;
        // As kubelet: images that nothing uses go before any pod does.
        let urgent = crossed.iter().find(|signal| !is_of_disk(signal) || before.contains(signal));
        if let Some(signal) = urgent.filter(|_| !leaving.as_ref().is_some_and(|leaving| leaving.is_awaited(shared))) {
            leaving =
                lighten(shared, thresholds, *signal, seen.get(signal).copied().unwrap_or_default(), changed).await;
        }
    }
}

/// A pod that was evicted for the node.
struct Leaving {
    uid: String,
    since: Instant,
}

impl Leaving {
    /// As kubelet: one pod at a time, so that none leaves in vain.
    fn is_awaited(&self, shared: &Shared) -> bool {
        self.since.elapsed() < CLEAN_UP && shared.pod_of(&self.uid).is_some_and(|pod| is_active(&pod))
    }
}

/// Have the pod leave that is the first to, if there is one.
async fn lighten(
    shared: &Arc<Shared>,
    thresholds: &reserve::Eviction,
    signal: Signal,
    seen: Observation,
    changed: &Notify,
) -> Option<Leaving> {
    let mut pods = server::Node::pods(&**shared);
    pods.retain(|pod| is_from_api(pod) && is_active(pod));
    let runtime = Arc::clone(&shared.runtime);
    let measured = move || -> Option<Arc<Pod>> {
        let usage = |pod: &Pod| match signal {
            Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => {
                runtime.group_usage(pod).map_or(0, |usage| usage.memory_bytes)
            }
            Signal::PidAvailable => runtime.group_usage(pod).map_or(0, |usage| usage.pids),
            _ => {
                let usage = runtime.local_usage(pod);
                usage.empty_dirs.values().chain(usage.containers.values()).fold(0_u64, |sum, n| sum.saturating_add(*n))
            }
        };
        let candidates: Vec<Candidate<'_>> = pods
            .iter()
            .map(|pod| Candidate { pod, usage: usage(pod), request: eviction::request(signal, pod) })
            .collect();
        let first = rank(signal, &candidates).first().and_then(|pod| pod.metadata.uid.clone())?;
        pods.iter().find(|pod| pod.metadata.uid.as_ref() == Some(&first)).cloned()
    };
    // An error means that the agent is shutting down.
    let pod = tokio::task::spawn_blocking(measured).await.ok()??;
    let of_signal = || thresholds.thresholds.iter().filter(|threshold| threshold.signal == signal);
    let hard = of_signal().find(|t| t.grace.is_none() && seen.available < t.least.of(seen.capacity));
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
    let grace_seconds = match hard {
        Some(_) => GRACE_SECONDS,
        None => u64::try_from(own).unwrap_or(GRACE_SECONDS).min(thresholds.max_pod_grace_seconds).max(GRACE_SECONDS),
    };
    let least = hard.or_else(|| of_signal().next()).map_or(0, |threshold| threshold.least.of(seen.capacity));
    let message = format!(
        "The node was low on resource: {}. Threshold quantity: {least}, available: {}. ",
        resource_of(signal),
        seen.available
    );
    let since = Instant::now();
    let eviction = Eviction { reason: "Evicted", message: message.clone(), grace_seconds };
    if shared.evict(&Key::of(&pod), uid(&pod), eviction) {
        shared.metrics.work.evicted(&signal.to_string());
        shared.note(pod_reference(&pod, None), &Note::warning("Evicted", message), clock::now());
        changed.notify_one();
    }
    Some(Leaving { uid: uid(&pod), since })
}

/// Whether unused images are in the way of what is short.
fn is_of_disk(signal: &Signal) -> bool {
    use Signal::{ImagefsAvailable, ImagefsInodesFree, NodefsAvailable, NodefsInodesFree};
    matches!(signal, NodefsAvailable | NodefsInodesFree | ImagefsAvailable | ImagefsInodesFree)
}

async fn watch_pods(shared: &Arc<Shared>, changed: &Notify) {
    let mut ticks = ticks();
    let mut rests = Rests::default();
    loop {
        ticks.tick().await;
        let mut limited = server::Node::pods(&**shared);
        limited.retain(|pod| is_limited(pod));
        for pod in rests.due(limited, Instant::now()) {
            let (runtime, measured) = (Arc::clone(&shared.runtime), Arc::clone(&pod));
            let begin = Instant::now();
            let job = tokio::task::spawn_blocking(move || local_storage(&measured, &runtime.local_usage(&measured)));
            // As above.
            let Ok(found) = job.await else { return };
            rests.counted(vec![(uid(&pod), begin.elapsed())], Instant::now());
            let Some(message) = found else { continue };
            let eviction = Eviction { reason: "Evicted", message: message.clone(), grace_seconds: GRACE_SECONDS };
            if shared.evict(&Key::of(&pod), uid(&pod), eviction) {
                shared.metrics.work.evicted(local_signal(&message));
                shared.note(pod_reference(&pod, None), &Note::warning("Evicted", message), clock::now());
                changed.notify_one();
            }
        }
    }
}

/// The kubelet's name of the limit of local storage that a message is about.
fn local_signal(message: &str) -> &'static str {
    match message.split(' ').next() {
        Some("Usage") => "emptydirfs.limit",
        Some("Pod") => "ephemeralpodfs.limit",
        _ => "ephemeralcontainerfs.limit",
    }
}

/// When pods, by uid, that took long to be counted are counted again.
#[derive(Debug, Default)]
struct Rests(BTreeMap<String, Instant>);

impl Rests {
    /// Of these pods, those to be counted now; what is known of others is forgotten.
    fn due(&mut self, mut pods: Vec<Arc<Pod>>, now: Instant) -> Vec<Arc<Pod>> {
        let present: BTreeSet<String> = pods.iter().map(|pod| uid(pod)).collect();
        self.0.retain(|uid, _| present.contains(uid));
        pods.retain(|pod| self.0.get(&uid(pod)).is_none_or(|next| *next <= now));
        pods
    }

    fn counted(&mut self, took: Vec<(String, Duration)>, now: Instant) {
        for (uid, took) in took {
            self.0.insert(uid, now + took.saturating_mul(REST).min(MAX_PAUSE));
        }
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// Whether a pod has to be measured: it limits local storage, and has not ended.
fn is_limited(pod: &Pod) -> bool {
    is_active(pod) && limits_local_storage(pod)
}

fn is_active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Running" | "Pending")) && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_takes_long_to_count_is_counted_less_often() {
        let pod = |uid: &str| {
            let mut pod = Pod::default();
            pod.metadata.uid = Some(uid.to_owned());
            Arc::new(pod)
        };
        let names = |pods: Vec<Arc<Pod>>| pods.iter().map(|pod| uid(pod)).collect::<Vec<_>>().join(" ");
        let (mut rests, begin) = (Rests::default(), Instant::now());
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let all = || vec![pod("small"), pod("large"), pod("huge")];
        assert_eq!(names(rests.due(all(), begin)), "small large huge");
        let took = |uid: &str, millis: u64| (uid.to_owned(), Duration::from_millis(millis));
        rests.counted(vec![took("small", 1), took("large", 1000), took("huge", 5000)], begin);
        assert_eq!(names(rests.due(all(), at(10))), "small");
        assert_eq!(names(rests.due(all(), at(20))), "small large");
        assert_eq!(names(rests.due(all(), at(60))), "small large huge", "never less than once a minute");
        // A pod that has gone is unknown when it comes back.
        assert_eq!(names(rests.due(vec![pod("small")], at(1))), "small");
        assert_eq!(names(rests.due(all(), at(1))), "small large huge");
    }
}
