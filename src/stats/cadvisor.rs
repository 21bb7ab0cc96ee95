//! `/metrics/cadvisor`: what dashboards of the kubelet's read. Pure.

use super::resource::complete;
use super::text::{Kind, Text, float, instant, seconds};
use super::{FsUsage, Interface, Memory, Snapshot, Throttling, Usage};
use jiff::Timestamp;

/// One row of dashboards: a cgroup, or a pod's network.
struct Row<'a> {
    /// Name of the cgroup; `/` is the machine.
    id: String,
    /// ID of the container; empty for what is none.
    name: &'a str,
    image: &'a str,
    container: &'a str,
    pod: &'a str,
    namespace: &'a str,
    started: Option<Timestamp>,
    usage: &'a Usage,
    network: &'a [Interface],
    rootfs: Option<FsUsage>,
}

impl Row<'_> {
    fn labels(&self) -> [(&str, &str); 6] {
        [
            ("container", self.container),
            ("id", &self.id),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ]
    }
}

/// The metrics, with cAdvisor's names and the kubelet's labels: the machine (`id="/"`), pods (no container) and containers.
#[must_use]
pub fn cadvisor(snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    let node = &snapshot.node;
    let about = "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & \
                 cadvisor revision.";
    let labels = [("cadvisorVersion", ""), ("dockerVersion", ""), ("kernelVersion", ""), ("osVersion", "")];
    text.family("cadvisor_version_info", about, Kind::Gauge).sample(&labels, Some(1.0), None);
    let rows = rows(snapshot);
    for (name, help, kind, value) in USAGE {
        text.family(name, help, *kind);
        for row in &rows {
            let mut labels = row.labels().to_vec();
            if *name == "container_cpu_usage_seconds_total" {
                labels.push(("cpu", "total"));
            }
            text.sample(&labels, value(row.usage), row.usage.time);
        }
    }
    for (name, help, value) in THROTTLING {
        text.family(name, help, Kind::Counter);
        for row in &rows {
            text.sample(&row.labels(), row.usage.throttling.as_ref().map(value), row.usage.time);
        }
    }
    for (name, help, kind, value) in MEMORY {
        text.family(name, help, *kind);
        for row in &rows {
            text.sample(&row.labels(), row.usage.memory.as_ref().map(value), row.usage.time);
        }
    }
    text.family("container_memory_failures_total", "Cumulative count of memory allocation failures.", Kind::Counter);
    for row in &rows {
        let Some(memory) = row.usage.memory else { continue };
        for (kind, count) in [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)] {
            let mut labels = row.labels().to_vec();
            // Groups below a group are counted with it.
            labels.extend([("failure_type", kind), ("scope", "hierarchy")]);
            text.sample(&labels, Some(float(count)), row.usage.time);
        }
    }
    for (name, help, value) in NETWORK {
        text.family(name, help, Kind::Counter);
        for row in &rows {
            for interface in row.network {
                let mut labels = row.labels().to_vec();
                labels.push(("interface", &interface.name));
                text.sample(&labels, Some(float(value(interface))), row.usage.time);
            }
        }
    }
    for (name, help, value) in FILES {
        text.family(name, help, Kind::Gauge);
        for row in &rows {
            let mut labels = row.labels().to_vec();
            labels.push(("device", ""));
            text.sample(&labels, row.rootfs.as_ref().map(|fs| float(value(fs))), row.rootfs.and_then(|fs| fs.time));
        }
    }
    text.family("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", Kind::Gauge);
    for row in &rows {
        text.sample(&row.labels(), row.started.map(instant), None);
    }
    text.family("container_last_seen", "Last time a container was seen by the exporter", Kind::Gauge);
    for row in &rows {
        text.sample(&row.labels(), row.usage.time.map(instant), None);
    }
    let total = node.usage.memory.and_then(|memory| memory.limit).map(float);
    text.family("machine_cpu_cores", "Number of logical CPU cores.", Kind::Gauge).sample(&[], Some(float(node.cpus)), None);
    text.family("machine_memory_bytes", "Amount of memory installed on the machine.", Kind::Gauge).sample(&[], total, None);
    let swap = node.usage.swap_limit.map(float);
    text.family("machine_swap_bytes", "Amount of swap memory available on the machine.", Kind::Gauge).sample(&[], swap, None);
    let failed = f64::from(u8::from(node.usage.memory.is_none()));
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    text.family("container_scrape_error", help, Kind::Gauge).sample(&[], Some(failed), None);
    text.finish()
}

fn rows(snapshot: &Snapshot) -> Vec<Row<'_>> {
    let node = &snapshot.node;
    let mut rows = vec![Row {
        id: "/".to_owned(),
        name: "",
        image: "",
        container: "",
        pod: "",
        namespace: "",
        started: node.started,
        usage: &node.usage,
        network: &node.network,
        rootfs: node.fs,
    }];
    for pod in &snapshot.pods {
        let of_pod = |container| Row {
            id: pod.cgroup.clone(),
            name: "",
            image: "",
            container,
            pod: &pod.name,
            namespace: &pod.namespace,
            started: pod.started,
            usage: &pod.usage,
            network: &[],
            rootfs: None,
        };
        // As cAdvisor with containerd, where the network is the sandbox's; dashboards add it up by pod.
        rows.push(Row { network: &pod.network, ..of_pod("") });
        rows.extend(complete(pod).map(|container| Row {
            id: format!("{}/{}", pod.cgroup, container.id),
            name: &container.id,
            image: &container.image,
            started: container.started,
            usage: &container.usage,
            rootfs: container.rootfs,
            ..of_pod(container.name.as_str())
        }));
    }
    rows
}

type OfUsage = (&'static str, &'static str, Kind, fn(&Usage) -> Option<f64>);
const USAGE: &[OfUsage] = &[
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", Kind::Counter, |u| {
        u.cpu_nanoseconds.map(seconds)
    }),
    ("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", Kind::Counter, |u| {
        u.cpu_user_nanoseconds.map(seconds)
    }),
    ("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", Kind::Counter, |u| {
        u.cpu_system_nanoseconds.map(seconds)
    }),
    ("container_spec_cpu_period", "CPU period of the container.", Kind::Gauge, |u| {
        u.throttling.map(|t| float(t.period_us))
    }),
    ("container_spec_cpu_quota", "CPU quota of the container.", Kind::Gauge, |u| u.throttling.map(|t| float(t.quota_us))),
    ("container_memory_swap", "Container swap usage in bytes.", Kind::Gauge, |u| u.swap_bytes.map(float)),
    ("container_oom_events_total", "Count of out of memory events observed for the container", Kind::Counter, |u| {
        u.oom_kills.map(float)
    }),
    ("container_threads", "Number of threads running inside the container", Kind::Gauge, |u| u.processes.map(float)),
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read", Kind::Counter, |u| {
        u.io.map(|io| float(io.read_bytes))
    }),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written", Kind::Counter, |u| {
        u.io.map(|io| float(io.written_bytes))
    }),
    ("container_fs_reads_total", "Cumulative count of reads completed", Kind::Counter, |u| u.io.map(|io| float(io.reads))),
    ("container_fs_writes_total", "Cumulative count of writes completed", Kind::Counter, |u| {
        u.io.map(|io| float(io.writes))
    }),
    (
        "container_pressure_cpu_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to CPU congestion.",
        Kind::Counter,
        |u| u.pressure.map(|p| waited(p.cpu.some.total_us)),
    ),
    (
        "container_pressure_cpu_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
        Kind::Counter,
        |u| u.pressure.map(|p| waited(p.cpu.full.total_us)),
    ),
    (
        "container_pressure_memory_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to memory congestion.",
        Kind::Counter,
        |u| u.pressure.map(|p| waited(p.memory.some.total_us)),
    ),
    (
        "container_pressure_memory_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to memory congestion.",
        Kind::Counter,
        |u| u.pressure.map(|p| waited(p.memory.full.total_us)),
    ),
    (
        "container_pressure_io_waiting_seconds_total",
        "Total time duration tasks in the container have waited due to IO congestion.",
        Kind::Counter,
        |u| u.pressure.map(|p| waited(p.io.some.total_us)),
    ),
    (
        "container_pressure_io_stalled_seconds_total",
        "Total time duration no tasks in the container could make progress due to IO congestion.",
        Kind::Counter,
        |u| u.pressure.map(|p| waited(p.io.full.total_us)),
    ),
];

fn waited(micros: u64) -> f64 {
    micros as f64 / 1e6
}

type OfThrottling = (&'static str, &'static str, fn(&Throttling) -> f64);
const THROTTLING: &[OfThrottling] = &[
    ("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", |t| float(t.periods)),
    ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", |t| {
        float(t.throttled_periods)
    }),
    ("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", |t| {
        seconds(t.throttled_nanoseconds)
    }),
];

type OfMemory = (&'static str, &'static str, Kind, fn(&Memory) -> f64);
const MEMORY: &[OfMemory] = &[
    (
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        Kind::Gauge,
        |m| float(m.usage),
    ),
    ("container_memory_working_set_bytes", "Current working set in bytes.", Kind::Gauge, |m| float(m.working_set)),
    ("container_memory_rss", "Size of RSS in bytes.", Kind::Gauge, |m| float(m.rss)),
    ("container_memory_cache", "Number of bytes of page cache memory.", Kind::Gauge, |m| float(m.cache)),
    ("container_memory_mapped_file", "Size of memory mapped files in bytes.", Kind::Gauge, |m| float(m.mapped)),
    ("container_memory_failcnt", "Number of memory usage hits limits", Kind::Counter, |m| float(m.failures)),
    ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", Kind::Gauge, |m| {
        float(m.peak.unwrap_or(m.usage))
    }),
    // As cAdvisor: 0 is no limit.
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", Kind::Gauge, |m| {
        float(m.limit.unwrap_or(0))
    }),
];

type OfInterface = (&'static str, &'static str, fn(&Interface) -> u64);
const NETWORK: &[OfInterface] = &[
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.rx_bytes),
    ("container_network_receive_packets_total", "Cumulative count of packets received", |i| i.rx_packets),
    ("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", |i| {
        i.rx_dropped
    }),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", |i| i.rx_errors),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.tx_bytes),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", |i| i.tx_packets),
    ("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting", |i| {
        i.tx_dropped
    }),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", |i| {
        i.tx_errors
    }),
];

type OfFiles = (&'static str, &'static str, fn(&FsUsage) -> u64);
const FILES: &[OfFiles] = &[
    ("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", |fs| {
        fs.used_bytes
    }),
    ("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", |fs| {
        fs.capacity_bytes
    }),
    ("container_fs_inodes_free", "Number of available Inodes", |fs| fs.inodes_free),
    ("container_fs_inodes_total", "Number of Inodes", |fs| fs.inodes),
];
