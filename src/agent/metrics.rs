//! Metrics in the Prometheus text format: kubelet names where they exist, `coracle_*` for the rest.

use k8s_openapi::api::core::v1::Pod;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex, PoisonError};

/// The node's counters and gauges.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    running_pods: Gauge,
    running_containers: Gauge,
    restarts: Gauge,
    manifest_problems: Gauge,
    source_healthy: Gauge,
    action_failures: Counter,
    container_failures: Counter,
    images_imported: Counter,
    images_damaged: Counter,
    images_healed: Counter,
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
            registry: Mutex::new(registry),
            running_pods,
            running_containers,
            restarts,
            manifest_problems,
            source_healthy,
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

    /// The state of the manifest source.
    pub fn source(&self, problems: usize, healthy: bool) {
        self.manifest_problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
        self.source_healthy.set(i64::from(healthy));
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
        let text = metrics.render(&[]);
        assert!(text.contains("coracle_action_failures_total 1"), "{text}");
        assert!(text.contains("coracle_manifest_problems 3"), "{text}");
        assert!(text.contains("coracle_manifest_source_healthy 0"), "{text}");
    }
}
