//! Pods and containers as they are, counted under the kubelet's names, and the process itself.

use crate::pod::is_from_api;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

type Label = [(&'static str, &'static str); 1];

/// Gauges that are set when somebody asks.
#[derive(Debug)]
pub struct Census {
    pods: Gauge,
    containers: Family<Label, Gauge>,
    restarts: Gauge,
    desired: Family<Label, Gauge>,
    active: Family<Label, Gauge>,
    working: Family<[(&'static str, &'static str); 3], Gauge>,
    cpu: Counter<f64, AtomicU64>,
    started: Gauge<f64, AtomicU64>,
    resident: Gauge,
    virtual_memory: Gauge,
    files: Gauge,
    max_files: Gauge,
    threads: Gauge,
}

impl Census {
    pub(super) fn register(registry: &mut Registry) -> Census {
        let census = Census {
            pods: Gauge::default(),
            containers: Family::default(),
            restarts: Gauge::default(),
            desired: Family::default(),
            active: Family::default(),
            working: Family::default(),
            cpu: Counter::default(),
            started: Gauge::default(),
            resident: Gauge::default(),
            virtual_memory: Gauge::default(),
            files: Gauge::default(),
            max_files: Gauge::default(),
            threads: Gauge::default(),
        };
        registry.register("kubelet_running_pods", "Pods that have a running sandbox", census.pods.clone());
        registry.register("kubelet_running_containers", "Containers by their state", census.containers.clone());
        let help = "Restart counts of all containers, added up";
        registry.register("coracle_container_restarts", help, census.restarts.clone());
        let help = "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the \
                    apiserver";
        registry.register("kubelet_desired_pods", help, census.desired.clone());
        let help = "The number of pods the kubelet considers active and which are being considered when admitting new pods. \
                    static is true if the pod is not from the apiserver";
        registry.register("kubelet_active_pods", help, census.active.clone());
        let help = "Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is \
                    desired, orphaned, or runtime only, and whether the pod is static";
        registry.register("kubelet_working_pods", help, census.working.clone());
        let help = "Total user and system CPU time spent in seconds";
        registry.register("process_cpu_seconds", help, census.cpu.clone());
        let help = "Start time of the process since unix epoch in seconds";
        registry.register("process_start_time_seconds", help, census.started.clone());
        registry.register("process_resident_memory_bytes", "Resident memory size in bytes", census.resident.clone());
        registry.register(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes",
            census.virtual_memory.clone(),
        );
        registry.register("process_open_fds", "Number of open file descriptors", census.files.clone());
        registry.register("process_max_fds", "Maximum number of open file descriptors", census.max_files.clone());
        registry.register("process_threads", "Number of threads", census.threads.clone());
        census
    }

    /// Takes the pods as they are reported now, and a look at the process.
    pub(super) fn take(&self, pods: &[Arc<Pod>]) {
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        let is_over = |pod: &Pod| matches!(phase(pod).as_str(), "Succeeded" | "Failed");
        let leaves = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.pods.set(number(pods.iter().filter(|pod| phase(pod) == "Running").count()));
        let containers = || pods.iter().flat_map(|pod| statuses(pod));
        let states = |is: fn(&ContainerStatus) -> bool| number(containers().filter(|status| is(status)).count());
        let running = states(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
        let exited = states(|status| status.state.as_ref().is_some_and(|state| state.terminated.is_some()));
        self.containers.get_or_create(&[("container_state", "running")]).set(running);
        self.containers.get_or_create(&[("container_state", "exited")]).set(exited);
        self.restarts.set(containers().map(|status| i64::from(status.restart_count)).sum());
        // As kubelet: no word for those of the API server.
        for (label, from_api) in [("true", false), ("", true)] {
            let of = || pods.iter().filter(move |pod| is_from_api(pod) == from_api);
            let label = ("static", label);
            self.desired.get_or_create(&[label]).set(number(of().filter(|pod| !leaves(pod)).count()));
            self.active.get_or_create(&[label]).set(number(of().filter(|pod| !is_over(pod)).count()));
            let mut counts = [("sync", 0), ("terminating", 0), ("terminated", 0)];
            for pod in of() {
                counts[if is_over(pod) { 2 } else { usize::from(leaves(pod)) }].1 += 1;
            }
            for (lifecycle, count) in counts {
                self.working.get_or_create(&[("lifecycle", lifecycle), ("config", "desired"), label]).set(count);
            }
        }
        self.look_at_process();
    }

    fn look_at_process(&self) {
        let Some(own) = crate::stats::agent() else { return };
        let usage = &own.usage;
        let seconds = usage.cpu_nanoseconds.unwrap_or(0) as f64 / 1e9;
        self.cpu.inner().store(seconds.to_bits(), std::sync::atomic::Ordering::Relaxed);
        self.started.set(own.started.map_or(0.0, |at| at.as_millisecond() as f64 / 1e3));
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.resident.set(usage.memory.map_or(0, |memory| number(memory.usage)));
        self.threads.set(usage.processes.map_or(0, number));
        let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = status.split(' ').next().and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
        self.virtual_memory.set(number(pages.saturating_mul(rustix::param::page_size() as u64)));
        // Less the one that the list itself is read by.
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
        self.files.set(i64::try_from(files).unwrap_or(i64::MAX));
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        self.max_files.set(most.map_or(i64::MAX, number));
    }
}

/// Of all containers, init containers first.
fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let lists = pod.status.iter().flat_map(|status| [&status.init_container_statuses, &status.container_statuses]);
    lists.flatten().flatten()
}

/// What never changes of a node.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Its name.
    pub node: &'a str,
    /// As its status has it.
    pub kubelet_version: &'a str,
    /// As Go names it.
    pub architecture: &'a str,
    /// 1 or 2.
    pub cgroup_version: i64,
}

/// Tells it.
pub(super) fn introduce(registry: &mut Registry, about: &About<'_>) {
    let names = Family::<[(&'static str, String); 1], Gauge>::default();
    names.get_or_create(&[("node", about.node.to_owned())]).set(1);
    registry.register("kubelet_node_name", "The node's name. The count is always 1", names);
    let version = about.kubelet_version.trim_start_matches('v');
    let mut parts = version.split('.');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    let builds = Family::<[(&'static str, String); 4], Gauge>::default();
    let labels = [
        ("major", part()),
        ("minor", part()),
        ("git_version", about.kubelet_version.to_owned()),
        ("platform", format!("linux/{}", about.architecture)),
    ];
    builds.get_or_create(&labels).set(1);
    let help = "A metric with a constant '1' value labeled by the version of Kubernetes that this node speaks";
    registry.register("kubernetes_build_info", help, builds);
    let own = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    own.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
    registry.register("coracle_build_info", "A metric with a constant '1' value labeled by coracle's version", own);
    let cgroups: Gauge = Gauge::default();
    cgroups.set(about.cgroup_version);
    registry.register("kubelet_cgroup_version", "cgroup version on the hosts", cgroups);
}
