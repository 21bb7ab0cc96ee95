//! `/metrics/resource`: what metrics-server, and so `kubectl top` and autoscalers, read. Pure.

use super::text::{Kind, Text, float, instant, seconds};
use super::{ContainerStats, PodStats, Snapshot, Usage};
use jiff::Timestamp;

/// The metrics, as kubelet has them. Reading begins anew with each pass, so all samples have its time.
#[must_use]
pub fn resource(snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    let node = &snapshot.node.usage;
    for (family, value) in NODE.iter().zip(values(node)) {
        text.family(family.0, family.1, family.2).sample(&[], value, node.time);
    }
    let containers = || snapshot.pods.iter().flat_map(|pod| complete(pod).map(move |container| (pod, container)));
    let labels = |pod: &PodStats, container: &ContainerStats| {
        [("container", container.name.clone()), ("pod", pod.name.clone()), ("namespace", pod.namespace.clone())]
    };
    text.family("container_start_time_seconds", "Start time of the container since unix epoch in seconds", Kind::Gauge);
    for (pod, container) in containers() {
        text.sample(&borrowed(&labels(pod, container)), container.started.map(instant), None);
    }
    let mut each = |family: &Family, value: &dyn Fn(&Usage) -> Option<f64>| {
        text.family(family.0, family.1, family.2);
        for (pod, container) in containers() {
            let usage = &container.usage;
            text.sample(&borrowed(&labels(pod, container)), value(usage), usage.time);
        }
    };
    for (index, family) in CONTAINER.iter().enumerate() {
        each(family, &|usage| values(usage)[index]);
    }
    each(&SWAP_LIMIT, &|usage| usage.swap_limit.map(float));
    for (index, family) in POD.iter().enumerate() {
        text.family(family.0, family.1, family.2);
        for pod in snapshot.pods.iter().filter(|pod| is_complete(&pod.usage)) {
            let labels = [("pod", pod.name.as_str()), ("namespace", pod.namespace.as_str())];
            text.sample(&labels, values(&pod.usage)[index], pod.usage.time);
        }
    }
    // Without the node's numbers there was no pass.
    let failed = f64::from(u8::from(!is_complete(node)));
    for name in ["scrape_error", "resource_scrape_error"] {
        let help = "1 if there was an error while getting container metrics, 0 otherwise";
        text.family(name, help, Kind::Gauge).sample(&[], Some(failed), None::<Timestamp>);
    }
    text.finish()
}

type Family = (&'static str, &'static str, Kind);

const NODE: [Family; 3] = [
    ("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", Kind::Counter),
    ("node_memory_working_set_bytes", "Current working set of the node in bytes", Kind::Gauge),
    ("node_swap_usage_bytes", "Current swap usage of the node in bytes", Kind::Gauge),
];

const CONTAINER: [Family; 3] = [
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", Kind::Counter),
    ("container_memory_working_set_bytes", "Current working set of the container in bytes", Kind::Gauge),
    ("container_swap_usage_bytes", "Current amount of the container swap usage in bytes", Kind::Gauge),
];

const SWAP_LIMIT: Family =
    ("container_swap_limit_bytes", "Current amount of the container swap limit in bytes", Kind::Gauge);

const POD: [Family; 3] = [
    ("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", Kind::Counter),
    ("pod_memory_working_set_bytes", "Current working set of the pod in bytes", Kind::Gauge),
    ("pod_swap_usage_bytes", "Current amount of the pod swap usage in bytes", Kind::Gauge),
];

/// CPU, memory, swap.
fn values(usage: &Usage) -> [Option<f64>; 3] {
    [
        usage.cpu_nanoseconds.map(seconds),
        usage.memory.map(|memory| float(memory.working_set)),
        usage.swap_bytes.map(float),
    ]
}

/// metrics-server leaves out a whole pod if CPU or memory of one of its containers is 0 or missing, and a node likewise:
/// better that one container, of which there is nothing to tell yet, is left out.
pub(super) fn is_complete(usage: &Usage) -> bool {
    usage.cpu_nanoseconds.is_some_and(|cpu| cpu > 0) && usage.memory.is_some_and(|memory| memory.working_set > 0)
}

/// The containers of which there is something to tell.
pub(super) fn complete(pod: &PodStats) -> impl Iterator<Item = &ContainerStats> {
    pod.containers.iter().filter(|container| is_complete(&container.usage))
}

fn borrowed<'a>(labels: &'a [(&'a str, String); 3]) -> [(&'a str, &'a str); 3] {
    labels.each_ref().map(|(name, value)| (*name, value.as_str()))
}
