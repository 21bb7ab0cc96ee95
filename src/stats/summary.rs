//! `/stats/summary`: JSON for people and monitors that know the kubelet's. Pure.

use super::{ContainerStats, FsUsage, Interface, Pressure, Snapshot, Stall, Usage, Waited};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The summary of this node, as kubelet (`stats/v1alpha1`). With `only_cpu_and_memory` nothing else is in it.
#[must_use]
pub fn summary(snapshot: &Snapshot, node_name: &str, only_cpu_and_memory: bool) -> Value {
    let all = !only_cpu_and_memory;
    let node = &snapshot.node;
    let mut out = with_usage(&node.usage, all);
    put(&mut out, "nodeName", Some(node_name));
    put(&mut out, "startTime", node.started.map(time));
    let system: Vec<Value> = node.system.iter().map(|part| container(part, false)).collect();
    put(&mut out, "systemContainers", Some(system).filter(|system| !system.is_empty()));
    if all {
        put(&mut out, "network", network(&node.network, node.usage.time));
        put(&mut out, "fs", node.fs.map(fs));
        let layers = snapshot.pods.iter().flat_map(|pod| &pod.containers).filter_map(|container| container.rootfs);
        let container_fs = node.fs.map(|whole| {
            layers.fold(FsUsage { used_bytes: 0, inodes_used: 0, ..whole }, |sum, one| FsUsage {
                used_bytes: sum.used_bytes.saturating_add(one.used_bytes),
                inodes_used: sum.inodes_used.saturating_add(one.inodes_used),
                ..sum
            })
        });
        put(&mut out, "runtime", Some(json!({ "imageFs": node.image_fs.map(fs), "containerFs": container_fs.map(fs) })));
        let rlimit = json!({ "time": node.usage.time.map(time), "maxpid": node.max_processes, "curproc": node.usage.processes });
        put(&mut out, "rlimit", Some(rlimit));
    }
    json!({ "node": out, "pods": snapshot.pods.iter().map(|each| pod(each, all)).collect::<Vec<Value>>() })
}

fn pod(pod: &super::PodStats, all: bool) -> Value {
    let mut out = with_usage(&pod.usage, all);
    let reference = json!({ "name": pod.name, "namespace": pod.namespace, "uid": pod.uid });
    put(&mut out, "podRef", Some(reference));
    put(&mut out, "startTime", pod.started.map(time));
    out["containers"] = pod.containers.iter().map(|each| container(each, all)).collect();
    if all {
        put(&mut out, "network", network(&pod.network, pod.usage.time));
        let volume = |volume: &super::VolumeStats| {
            let mut out = fs(volume.fs);
            put(&mut out, "name", Some(volume.name.as_str()));
            out
        };
        let volumes: Vec<Value> = pod.volumes.iter().map(volume).collect();
        put(&mut out, "volume", Some(volumes).filter(|volumes| !volumes.is_empty()));
        put(&mut out, "ephemeral-storage", pod.ephemeral.map(fs));
        put(&mut out, "process_stats", pod.usage.processes.map(|count| json!({ "process_count": count })));
    }
    out
}

fn container(container: &ContainerStats, all: bool) -> Value {
    let mut out = with_usage(&container.usage, all);
    put(&mut out, "name", Some(container.name.as_str()));
    put(&mut out, "startTime", container.started.map(time));
    if all {
        put(&mut out, "rootfs", container.rootfs.map(fs));
        put(&mut out, "logs", container.logs.map(fs));
    }
    out
}

/// CPU, memory and swap; with `all` also what they waited for.
fn with_usage(usage: &Usage, all: bool) -> Value {
    let at = usage.time.map(time);
    let mut out = json!({});
    if usage.cpu_nanoseconds.is_some() {
        let mut cpu = json!({ "time": at });
        put(&mut cpu, "usageNanoCores", usage.cpu_nano_cores);
        put(&mut cpu, "usageCoreNanoSeconds", usage.cpu_nanoseconds);
        out["cpu"] = cpu;
    }
    if let Some(memory) = usage.memory {
        let mut values = json!({
            "time": at,
            "usageBytes": memory.usage,
            "workingSetBytes": memory.working_set,
            "rssBytes": memory.rss,
            "pageFaults": memory.page_faults,
            "majorPageFaults": memory.major_page_faults,
        });
        // As kubelet: only where there is a limit.
        put(&mut values, "availableBytes", memory.limit.map(|limit| limit.saturating_sub(memory.working_set)));
        out["memory"] = values;
    }
    if let Some(used) = usage.swap_bytes {
        let mut swap = json!({ "time": at, "swapUsageBytes": used });
        put(&mut swap, "swapAvailableBytes", usage.swap_limit.map(|limit| limit.saturating_sub(used)));
        out["swap"] = swap;
    }
    if let Some(Pressure { cpu, memory, io }) = usage.pressure.filter(|_| all) {
        for (name, stall) in [("cpu", cpu), ("memory", memory), ("io", io)] {
            if out[name].is_null() {
                out[name] = json!({ "time": at });
            }
            out[name]["psi"] = psi(&stall);
        }
    }
    out
}

fn psi(stall: &Stall) -> Value {
    // The kernel's word in microseconds; as kubelet in nanoseconds.
    let of = |waited: &Waited| {
        json!({
            "total": waited.total_us.saturating_mul(1000),
            "avg10": waited.avg10,
            "avg60": waited.avg60,
            "avg300": waited.avg300,
        })
    };
    json!({ "full": of(&stall.full), "some": of(&stall.some) })
}

/// Interfaces, with the numbers of the first one, the one that leads outside, in front.
fn network(interfaces: &[Interface], at: Option<Timestamp>) -> Option<Value> {
    let one = |interface: &Interface| {
        json!({
            "name": interface.name,
            "rxBytes": interface.rx_bytes,
            "rxErrors": interface.rx_errors,
            "txBytes": interface.tx_bytes,
            "txErrors": interface.tx_errors,
        })
    };
    let mut out = one(interfaces.first()?);
    put(&mut out, "time", at.map(time));
    put(&mut out, "interfaces", Some(interfaces.iter().map(one).collect::<Vec<Value>>()));
    Some(out)
}

fn fs(fs: FsUsage) -> Value {
    json!({
        "time": fs.time.map(time),
        "availableBytes": fs.available_bytes,
        "capacityBytes": fs.capacity_bytes,
        "usedBytes": fs.used_bytes,
        "inodesFree": fs.inodes_free,
        "inodes": fs.inodes,
        "inodesUsed": fs.inodes_used,
    })
}

/// As the API has times: whole seconds.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A field that is left out when there is nothing in it.
fn put(out: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let (Some(value), Some(map)) = (value, out.as_object_mut() as Option<&mut Map<String, Value>>) {
        map.insert(key.to_owned(), value.into());
    }
}
