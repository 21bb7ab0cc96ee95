//! Metrics in the Prometheus text format: kubelet names where they exist, `coracle_*` for the rest.

use super::probed::Book;
use crate::image::Reason;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The node's counters and gauges.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    running_pods: Gauge,
    running_containers: Gauge,
    restarts: Gauge,
    manifest_problems: Gauge,
    source_healthy: Gauge,
    departures: Gauge,
    certificate_ttl: Gauge<f64, AtomicU64>,
    renewals_failed: Gauge,
    action_failures: Counter,
    container_failures: Counter,
    images_imported: Counter,
    images_damaged: Counter,
    images_healed: Counter,
    images_collected: Family<[(&'static str, &'static str); 1], Counter>,
    /// Of pulls.
    pub pulls: PullMetrics,
    /// Of probes, which have a page of their own.
    pub probes: Arc<Book>,
}

/// Counts pulls; a clone counts for the same metrics.
#[derive(Debug, Clone)]
pub struct PullMetrics {
    durations: Family<[(&'static str, &'static str); 1], Histogram>,
    results: Family<[(&'static str, String); 1], Counter>,
}

/// Bounds of the kubelet's histogram of pulls, in seconds.
const PULL_BUCKETS: [f64; 14] =
    [1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0];

impl PullMetrics {
    fn register(registry: &mut Registry) -> PullMetrics {
        let pulls = PullMetrics {
            durations: Family::new_with_constructor(|| Histogram::new(PULL_BUCKETS)),
            results: Family::default(),
        };
        let help = "Duration in seconds to pull an image";
        registry.register("kubelet_image_pull_duration_seconds", help, pulls.durations.clone());
        registry.register("coracle_image_pulls", "Pulls that ended, by result", pulls.results.clone());
        pulls
    }

    /// An image of this size came in.
    pub fn pulled(&self, took: Duration, size: u64) {
        self.durations.get_or_create(&[("image_size_in_bytes", size_class(size))]).observe(took.as_secs_f64());
        self.results.get_or_create(&[("result", "success".to_owned())]).inc();
    }

    /// A pull failed for this reason.
    pub fn failed(&self, reason: &str) {
        self.results.get_or_create(&[("result", reason.to_owned())]).inc();
    }
}

/// As kubelet, so that the label has few values.
fn size_class(size: u64) -> &'static str {
    const MB: u64 = 1024 * 1024;
    match size / MB {
        0..10 => "0-10MB",
        10..100 => "10MB-100MB",
        100..500 => "100MB-500MB",
        500..1024 => "500MB-1GB",
        1024..5120 => "1GB-5GB",
        5120..10240 => "5GB-10GB",
        10240..20480 => "10GB-20GB",
        20480..30720 => "20GB-30GB",
        30720..40960 => "30GB-40GB",
        40960..61440 => "40GB-60GB",
        61440..102400 => "60GB-100GB",
        _ => "GT100GB",
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::default();
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let running_pods = gauge("kubelet_running_pods", "Pods that have a running sandbox");
        let running_containers = gauge("kubelet_running_containers", "Containers that run");
        let restarts = gauge("coracle_container_restarts", "Restart counts of all containers, added up");
        let manifest_problems = gauge("coracle_manifest_problems", "Errors in the manifests as they are now");
        let source_healthy = gauge("coracle_manifest_source_healthy", "1 when the manifest directory can be read");
        let departures = gauge("coracle_pods_not_as_manifest", "Pods that do not run what their manifests say");
        // As kubelet, where it is a counter without the ending that this format gives to counters.
        let help = "Counter of certificate renewal errors";
        let renewals_failed = gauge("kubelet_certificate_manager_client_expiration_renew_errors", help);
        let certificate_ttl = Gauge::<f64, AtomicU64>::default();
        let help = "Gauge of the TTL (time-to-live) of the Kubelet's client certificate. The value is in seconds until \
                    certificate expiry (negative if already expired). If client certificate is invalid or unused, the \
                    value will be +INF";
        registry.register("kubelet_certificate_manager_client_ttl_seconds", help, certificate_ttl.clone());
        let images_collected = Family::<[(&'static str, &'static str); 1], Counter>::default();
        // As kubelet, which counts what was removed for age and for space.
        let help = "Total number of images garbage collected by the kubelet, whether through disk usage or image age";
        registry.register("kubelet_image_garbage_collected", help, images_collected.clone());
        let mut counter = |name: &str, help: &str| {
            let counter: Counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Metrics {
            action_failures: counter("coracle_action_failures", "Steps that failed and are tried again"),
            container_failures: counter("coracle_container_failures", "Containers that ended with a failure"),
            images_imported: counter("coracle_images_imported", "Images imported from archives"),
            images_damaged: counter("coracle_images_damaged", "Damage found in the image store"),
            images_healed: counter("coracle_images_healed", "Damaged images that were brought back"),
            images_collected,
            pulls: PullMetrics::register(&mut registry),
            probes: Arc::default(),
            registry: Mutex::new(registry),
            running_pods,
            running_containers,
            restarts,
            manifest_problems,
            source_healthy,
            departures,
            certificate_ttl,
            renewals_failed,
        }
    }
}

impl Metrics {
    /// A step of a plan failed.
    pub fn action_failed(&self) {
        self.action_failures.inc();
    }

    /// A container ended with a failure.
    pub fn container_failed(&self) {
        self.container_failures.inc();
    }

    /// An image was imported.
    pub fn image_imported(&self) {
        self.images_imported.inc();
    }

    /// Damage was found in the image store.
    pub fn image_damaged(&self) {
        self.images_damaged.inc();
    }

    /// A damaged image was brought back.
    pub fn image_healed(&self) {
        self.images_healed.inc();
    }

    /// An image was removed. What a person asked for is no collection.
    pub fn image_removed(&self, reason: Reason) {
        let reason = match reason {
            Reason::Age => "age",
            Reason::Space => "space",
            Reason::Asked => return,
        };
        self.images_collected.get_or_create(&[("reason", reason)]).inc();
    }

    /// The state of the manifest source.
    pub fn source(&self, problems: usize, healthy: bool) {
        self.manifest_problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
        self.source_healthy.set(i64::from(healthy));
    }

    /// How long the node's client certificate is good (`None`: there is none), and how often a new one could not be had.
    pub fn certificate(&self, ttl: Option<SignedDuration>, failures: u64) {
        self.certificate_ttl.set(ttl.map_or(f64::INFINITY, |ttl| ttl.as_secs_f64().round()));
        self.renewals_failed.set(i64::try_from(failures).unwrap_or(i64::MAX));
    }

    /// How many pods do not run what their manifests say.
    pub fn departures(&self, pods: usize) {
        self.departures.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    /// All of them as text, with the pods as they are reported now.
    #[must_use]
    pub fn render(&self, pods: &[Arc<Pod>]) -> String {
        let statuses = || {
            let each = |s: &'_ Arc<Pod>| s.status.clone().unwrap_or_default();
            pods.iter().map(each).flat_map(|s| {
                s.init_container_statuses.into_iter().flatten().chain(s.container_statuses.into_iter().flatten())
            })
        };
        let running = statuses().filter(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())).count();
        let up = pods.iter().filter(|p| p.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running")));
        self.running_pods.set(i64::try_from(up.count()).unwrap_or(i64::MAX));
        self.running_containers.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.restarts.set(statuses().map(|c| i64::from(c.restart_count)).sum());
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_was_counted() {
        let metrics = Metrics::default();
        metrics.action_failed();
        metrics.source(3, false);
        metrics.image_removed(Reason::Asked);
        metrics.image_removed(Reason::Space);
        metrics.pulls.pulled(Duration::from_secs(2), 11 << 20);
        metrics.pulls.failed("ErrImagePull");
        metrics.certificate(Some(SignedDuration::from_secs(-3)), 2);
        let text = metrics.render(&[]);
        assert!(text.contains("coracle_action_failures_total 1"), "{text}");
        assert!(text.contains("kubelet_image_garbage_collected_total{reason=\"space\"} 1"), "{text}");
        assert!(text.contains("kubelet_certificate_manager_client_ttl_seconds -3.0\n"), "{text}");
        assert!(text.contains("kubelet_certificate_manager_client_expiration_renew_errors 2\n"), "{text}");
        assert!(text.contains("coracle_manifest_problems 3"), "{text}");
        assert!(text.contains("coracle_image_pulls_total{result=\"ErrImagePull\"} 1"), "{text}");
        let size = "image_size_in_bytes=\"10MB-100MB\"";
        assert!(text.contains(&format!("kubelet_image_pull_duration_seconds_bucket{{le=\"5.0\",{size}}} 1")), "{text}");
        assert!(text.contains("coracle_manifest_source_healthy 0"), "{text}");
    }
}
