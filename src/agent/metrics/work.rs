//! What the agent does, counted under the kubelet's names: starts, stops, evictions, refusals.

use crate::pod::{Action, Role};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

type Label = [(&'static str, &'static str); 1];
type Text = [(&'static str, String); 1];
type Error = [(&'static str, String); 2];

/// Counters of work.
#[derive(Debug)]
pub struct Work {
    pods: Counter,
    pod_errors: Counter,
    containers: Family<Label, Counter>,
    container_errors: Family<Error, Counter>,
    operations: Family<Label, Counter>,
    operation_errors: Family<Label, Counter>,
    durations: Family<Label, Histogram>,
    pod_starts: Histogram,
    pod_starts_in_all: Histogram,
    evictions: Family<Text, Gauge>,
    preemptions: Family<Text, Gauge>,
    rejections: Family<Text, Counter>,
}

/// Bounds of the kubelet's histograms of pod starts, in seconds.
const START_BUCKETS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
impl Work {
    pub(super) fn register(registry: &mut Registry) -> Work {
        let work = Work {
            pods: Counter::default(),
            pod_errors: Counter::default(),
            containers: Family::default(),
            container_errors: Family::default(),
            operations: Family::default(),
            operation_errors: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.5, 14))),
            pod_starts: Histogram::new(START_BUCKETS),
            pod_starts_in_all: Histogram::new(START_BUCKETS),
            evictions: Family::default(),
            preemptions: Family::default(),
            rejections: Family::default(),
        };
        registry.register("kubelet_started_pods", "Cumulative number of pods started", work.pods.clone());
        let help = "Cumulative number of errors when starting pods";
        registry.register("kubelet_started_pods_errors", help, work.pod_errors.clone());
        registry.register(
            "kubelet_started_containers",
            "Cumulative number of containers started",
            work.containers.clone(),
        );
        let help = "Cumulative number of errors when starting containers";
        registry.register("kubelet_started_containers_errors", help, work.container_errors.clone());
        let help = "Cumulative number of runtime operations by operation type";
        registry.register("kubelet_runtime_operations", help, work.operations.clone());
        let help = "Cumulative number of runtime operation errors by operation type";
        registry.register("kubelet_runtime_operations_errors", help, work.operation_errors.clone());
        let help = "Duration in seconds of runtime operations. Broken down by operation type";
        registry.register("kubelet_runtime_operations_duration_seconds", help, work.durations.clone());
        let help = "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run";
        registry.register("kubelet_pod_start_duration_seconds", help, work.pod_starts.clone());
        let help = "Duration in seconds to start a pod since creation, including time to pull images and run init \
                    containers, measured from pod creation timestamp to when all its containers are reported as started";
        registry.register("kubelet_pod_start_total_duration_seconds", help, work.pod_starts_in_all.clone());
        // As kubelet, where these two are counters without the ending that this format gives to counters.
        let help = "Cumulative number of pod evictions by eviction signal";
        registry.register("kubelet_evictions", help, work.evictions.clone());
        let help = "Cumulative number of pod preemptions by preemption resource";
        registry.register("kubelet_preemptions", help, work.preemptions.clone());
        let help = "Cumulative number pod admission rejections by the Kubelet";
        registry.register("kubelet_admission_rejections", help, work.rejections.clone());
        work
    }

    /// An action on a pod is over; `role` is that of the container it was about, and `error` the reason it failed for.
    pub fn done(&self, action: &Action, role: Option<Role>, took: Duration, error: Option<&str>) {
        let Some(operation) = operation(action) else { return };
        let label = [("operation_type", operation)];
        self.operations.get_or_create(&label).inc();
        self.durations.get_or_create(&label).observe(took.as_secs_f64());
        if error.is_some() {
            self.operation_errors.get_or_create(&label).inc();
        }
        match action {
            Action::CreateSandbox => {
                self.pods.inc();
                if error.is_some() {
                    self.pod_errors.inc();
                }
            }
            Action::Run { .. } => {
                // As kubelet: a sidecar is an init container.
                let kind = if role == Some(Role::App) { "container" } else { "init_container" };
                self.containers.get_or_create(&[("container_type", kind)]).inc();
                if let Some(error) = error {
                    let labels = [("container_type", kind.to_owned()), ("code", error.to_owned())];
                    self.container_errors.get_or_create(&labels).inc();
                }
            }
            _ => {}
        }
    }

    /// A pod is told to be so, after it was told otherwise: what is new of its start is measured, from when it was first
    /// seen.
    pub fn told(&self, before: &Pod, pod: &Pod, now: Timestamp) {
        let (Some(old), Some(new)) = (&before.status, &pod.status) else { return };
        let Some(seen) = new.start_time.as_ref().filter(|_| before.metadata.uid == pod.metadata.uid) else { return };
        let took = || now.duration_since(seen.0).as_secs_f64().max(0.0);
        let is_running = |status: &PodStatus| status.phase.as_deref() == Some("Running");
        if old.phase.as_deref() == Some("Pending") && is_running(new) {
            self.pod_starts.observe(took());
        }
        let is_whole = |status: &PodStatus| {
            let mut all = status.container_statuses.iter().flatten();
            // A restart is no start.
            is_running(status) && all.all(|c| c.started == Some(true) && c.restart_count == 0)
        };
        if !is_whole(old) && is_whole(new) {
            self.pod_starts_in_all.observe(took());
        }
    }

    /// A pod has to leave for this signal.
    pub fn evicted(&self, signal: &str) {
        self.evictions.get_or_create(&[("eviction_signal", signal.to_owned())]).inc();
    }

    /// A pod has to leave for a critical one.
    pub fn preempted(&self) {
        self.preemptions.get_or_create(&[("preemption_signal", String::new())]).inc();
    }

    /// A pod was not taken.
    pub fn rejected(&self, reason: &str) {
        self.rejections.get_or_create(&[("reason", reason.to_owned())]).inc();
    }
}

/// The kubelet's name of what an action asks of the runtime; `None`: nothing.
fn operation(action: &Action) -> Option<&'static str> {
    Some(match action {
        Action::CreateSandbox => "run_podsandbox",
        Action::Run { .. } => "start_container",
        Action::Stop { .. } => "stop_container",
        Action::Forget { .. } => "remove_container",
        Action::ResetSandbox { .. } | Action::StopSandbox => "stop_podsandbox",
        Action::RemovePod => "remove_podsandbox",
        Action::Resize { .. } => "update_container_resources",
        _ => return None,
    })
}
