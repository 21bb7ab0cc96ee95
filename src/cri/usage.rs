//! What pods and containers use, from the same pass that all others read (`stats`).

use super::images::file_system;
use super::look::{Pod, Run};
use super::nanoseconds;
use super::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage,
    NetworkUsage, PodSandboxAttributes, PodSandboxStats, ProcessUsage, SwapUsage, UInt64Value,
};
use crate::stats::{self, Interface, Snapshot, Usage};
use std::path::Path;

/// Of a container that was measured; `None`: it was not, as it does not run.
pub(super) fn container(run: Run<'_>, snapshot: &Snapshot, root: &Path) -> Option<ContainerStats> {
    let found = snapshot.pods.iter().flat_map(|pod| &pod.containers).find(|container| container.id == run.run.id)?;
    Some(measured(run, found, root))
}

fn measured(run: Run<'_>, found: &stats::ContainerStats, root: &Path) -> ContainerStats {
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: run.run.id.clone(),
            metadata: Some(run.metadata()),
            labels: run.labels(),
            annotations: run.annotations(),
        }),
        cpu: Some(cpu(&found.usage)),
        memory: Some(memory(&found.usage)),
        writable_layer: found.rootfs.as_ref().map(|usage| file_system(usage, root)),
        swap: found.usage.swap_bytes.map(|bytes| SwapUsage {
            timestamp: time(&found.usage),
            swap_available_bytes: None,
            swap_usage_bytes: number(Some(bytes)),
        }),
    }
}

/// Of a pod that was measured.
pub(super) fn pod(pod: &Pod, snapshot: &Snapshot, root: &Path) -> Option<PodSandboxStats> {
    let uid = pod.present.spec.uid();
    let found = snapshot.pods.iter().find(|found| found.uid == uid)?;
    let usage = &found.usage;
    Some(PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: pod.id.clone(),
            metadata: Some(pod.metadata()),
            labels: pod.labels(),
            annotations: pod.annotations(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(cpu(usage)),
            memory: Some(memory(usage)),
            network: network(usage, &found.network),
            process: Some(ProcessUsage { timestamp: time(usage), process_count: number(usage.processes) }),
            containers: pod.runs().filter_map(|run| container(run, snapshot, root)).collect(),
        }),
    })
}

fn number(value: Option<u64>) -> Option<UInt64Value> {
    value.map(|value| UInt64Value { value })
}

fn time(usage: &Usage) -> i64 {
    usage.time.map_or(0, nanoseconds)
}

fn cpu(usage: &Usage) -> CpuUsage {
    CpuUsage {
        timestamp: time(usage),
        usage_core_nano_seconds: number(usage.cpu_nanoseconds),
        usage_nano_cores: number(usage.cpu_nano_cores),
    }
}

fn memory(usage: &Usage) -> MemoryUsage {
    let Some(memory) = usage.memory else { return MemoryUsage { timestamp: time(usage), ..MemoryUsage::default() } };
    let available = memory.limit.map(|limit| limit.saturating_sub(memory.working_set));
    MemoryUsage {
        timestamp: time(usage),
        working_set_bytes: number(Some(memory.working_set)),
        available_bytes: number(available),
        usage_bytes: number(Some(memory.usage)),
        rss_bytes: number(Some(memory.rss)),
        page_faults: number(Some(memory.page_faults)),
        major_page_faults: number(Some(memory.major_page_faults)),
    }
}

/// `eth0` is where a pod's traffic goes, as for the kubelet.
fn network(usage: &Usage, interfaces: &[Interface]) -> Option<NetworkUsage> {
    let shown = |interface: &Interface| NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: number(Some(interface.rx_bytes)),
        rx_errors: number(Some(interface.rx_errors)),
        tx_bytes: number(Some(interface.tx_bytes)),
        tx_errors: number(Some(interface.tx_errors)),
    };
    let own = interfaces.iter().find(|interface| interface.name == "eth0").or(interfaces.first())?;
    let others = interfaces.iter().filter(|interface| interface.name != own.name);
    Some(NetworkUsage {
        timestamp: time(usage),
        default_interface: Some(shown(own)),
        interfaces: others.map(shown).collect(),
    })
}
