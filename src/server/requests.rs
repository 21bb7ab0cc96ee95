//! Requests to the node's APIs, counted under the kubelet's names.

use hyper::Method;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Instant;

/// Method, path, server and whether it may last: none of them is longer for what a client sends.
type Labels = [(&'static str, &'static str); 4];

/// What is counted of requests; a clone counts for the same metrics.
#[derive(Debug, Clone)]
pub struct Requests {
    all: Family<Labels, Counter>,
    running: Family<Labels, Gauge>,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
}

/// Bounds of the kubelet's histogram, in seconds.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl Default for Requests {
    fn default() -> Requests {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        Requests {
            all: Family::default(),
            running: Family::default(),
            durations: Family::new_with_constructor(histogram),
        }
    }
}

impl Requests {
    /// Has them shown.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Number of the http requests received since the server started";
        registry.register("kubelet_http_requests", help, self.all.clone());
        let help = "Number of the inflight http requests";
        registry.register("kubelet_http_inflight_requests", help, self.running.clone());
        let help = "Duration in seconds to serve http requests";
        registry.register("kubelet_http_requests_duration_seconds", help, self.durations.clone());
    }

    /// A request begins; it lasts until what is returned is dropped. `read_only`: it came through the port without
    /// authentication.
    pub(super) fn begin(&self, method: &Method, path: &str, read_only: bool) -> Counted {
        let path = place(path);
        let lasts = ["exec", "attach", "portForward", "debug"].contains(&path);
        let labels = [
            ("method", verb(method)),
            ("path", path),
            ("server_type", if read_only { "readonly" } else { "readwrite" }),
            ("long_running", if lasts { "true" } else { "false" }),
        ];
        self.all.get_or_create(&labels).inc();
        self.running.get_or_create(&labels).inc();
        Counted { requests: self.clone(), labels, begun: Instant::now() }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Counted {
    requests: Requests,
    labels: Labels,
    begun: Instant,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.requests.running.get_or_create(&self.labels).dec();
        self.requests.durations.get_or_create(&self.labels).observe(self.begun.elapsed().as_secs_f64());
    }
}

fn verb(method: &Method) -> &'static str {
    let known = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    known.into_iter().find(|verb| *verb == method.as_str()).unwrap_or("other")
}

/// As kubelet: the first part of a path, and the second one of metrics. What nobody serves is one place.
fn place(path: &str) -> &'static str {
    const PLACES: [&str; 26] = [
        "metrics/resource",
        "metrics/cadvisor",
        "metrics/probes",
        "metrics/slis",
        "metrics",
        "stats",
        "pods",
        "runningpods",
        "containerLogs",
        "exec",
        "attach",
        "portForward",
        "run",
        "healthz",
        "livez",
        "readyz",
        "configz",
        "statusz",
        "flagz",
        "checkpoint",
        "logs",
        "debug",
        "api",
        "apis",
        "openapi",
        "coracle",
    ];
    let path = path.trim_start_matches('/');
    let within = |place: &&str| path.strip_prefix(*place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    PLACES.into_iter().find(within).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_counted_by_place() {
        let (requests, mut registry) = (Requests::default(), Registry::default());
        requests.register(&mut registry);
        drop(requests.begin(&Method::GET, "/metrics/cadvisor", false));
        let running = requests.begin(&Method::POST, "/exec/ns/p/c", true);
        let show = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
            text
        };
        let text = show();
        let exec = "{method=\"POST\",path=\"exec\",server_type=\"readonly\",long_running=\"true\"} 1\n";
        assert!(text.contains(&format!("kubelet_http_requests_total{exec}")), "{text}");
        assert!(text.contains(&format!("kubelet_http_inflight_requests{exec}")), "{text}");
        assert!(text.contains("path=\"metrics/cadvisor\""), "{text}");
        drop(running);
        assert!(!show().contains(&format!("kubelet_http_inflight_requests{exec}")));
        assert_eq!((place("/metricsx"), place("/"), place("//stats/summary")), ("other", "other", "stats"));
    }

    proptest! {
        #[test]
        fn no_path_makes_a_place_of_its_own(path in "\\PC{0,40}") {
            prop_assert!(place(&path).len() < 20);
        }
    }
}
