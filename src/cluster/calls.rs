//! Requests to the API server, counted under the names that all clients of Kubernetes use.

use hyper::Method;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::LazyLock;
use std::time::Duration;

/// What is counted: code, method and host of all, verb and host of how long they took.
#[derive(Debug)]
pub struct Calls {
    all: Family<[(&'static str, String); 3], Counter>,
    durations: Family<[(&'static str, String); 2], Histogram, fn() -> Histogram>,
}

/// Bounds of the histogram (as client-go), in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// Those of this process: connections come and go, and are counted together.
pub fn calls() -> &'static Calls {
    static CALLS: LazyLock<Calls> = LazyLock::new(|| {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        Calls { all: Family::default(), durations: Family::new_with_constructor(histogram) }
    });
    &CALLS
}

impl Calls {
    /// Has them shown.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Number of HTTP requests, partitioned by status code, method, and host";
        registry.register("rest_client_requests", help, self.all.clone());
        let help = "Request latency in seconds. Broken down by verb, and host";
        registry.register("rest_client_request_duration_seconds", help, self.durations.clone());
    }

    /// A request was answered; `code`: `None`, it was not.
    pub(super) fn answered(&self, method: &Method, host: &str, code: Option<u16>, took: Duration) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        let (method, host) = (method.to_string(), host.to_owned());
        self.durations.get_or_create(&[("verb", method.clone()), ("host", host.clone())]).observe(took.as_secs_f64());
        self.all.get_or_create(&[("code", code), ("method", method), ("host", host)]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_code() {
        let mut registry = Registry::default();
        calls().register(&mut registry);
        calls().answered(&Method::GET, "a.test:6443", Some(200), Duration::from_millis(7));
        calls().answered(&Method::GET, "a.test:6443", None, Duration::from_secs(10));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"a.test:6443\"} 1",
            "rest_client_requests_total{code=\"<error>\",method=\"GET\",host=\"a.test:6443\"} 1",
            "rest_client_request_duration_seconds_bucket{le=\"0.025\",verb=\"GET\",host=\"a.test:6443\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
        }
    }
}
