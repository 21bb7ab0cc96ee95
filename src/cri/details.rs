//! The status of one sandbox or container: what lists do not tell.
//!
//! What a container was made with is in its OCI bundle, as long as it is there: mounts and limits are read from it, not
//! worked out again.

use super::instant;
use super::look::{Pod, Run};
use super::v1::{
    ContainerResources, ContainerStatus, ContainerUser, LinuxContainerResources, LinuxContainerUser,
    LinuxPodSandboxStatus, Mount, MountPropagation, Namespace, NamespaceMode, NamespaceOption, PodIp,
    PodSandboxNetworkStatus, PodSandboxStatus, UserNamespace,
};
use crate::runtime::Layout;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Largest `config.json` that is read, in bytes: it has the environment of the container.
const LARGEST_BUNDLE: u64 = 16 << 20;
/// Mounts of a bundle that kubelet or the CRI's client do not ask for: the runtime makes them for every container.
const OWN_MOUNTS: &[&str] = &["/proc", "/sys", "/dev"];
/// … and all below this.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Information beyond the status, by name: JSON.
pub(super) type Info = BTreeMap<String, String>;

/// The status of a sandbox.
pub(super) fn sandbox(pod: &Pod) -> PodSandboxStatus {
    let ips = pod.present.record.sandbox.iter().flat_map(|sandbox| &sandbox.ips).map(ToString::to_string);
    let mut ips = ips.filter(|_| pod.is_ready());
    PodSandboxStatus {
        id: pod.id.clone(),
        metadata: Some(pod.metadata()),
        state: pod.state().into(),
        created_at: pod.created(),
        network: Some(PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(namespaces(pod)) }) }),
        labels: pod.labels(),
        annotations: pod.annotations(),
        runtime_handler: String::new(),
    }
}

/// Whose namespaces its containers are in.
fn namespaces(pod: &Pod) -> NamespaceOption {
    let spec = pod.present.spec.spec();
    let node_or = |node: Option<bool>, other: NamespaceMode| -> i32 {
        (if node == Some(true) { NamespaceMode::Node } else { other }).into()
    };
    let own = if spec.share_process_namespace == Some(true) { NamespaceMode::Pod } else { NamespaceMode::Container };
    let users = (spec.host_users == Some(false)).then(UserNamespace::default);
    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod),
        pid: node_or(spec.host_pid, own),
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod),
        target_id: String::new(),
        userns_options: users,
    }
}

/// What is told of a sandbox when more is asked for.
pub(super) fn sandbox_info(pod: &Pod, layout: &Layout) -> Info {
    let uid = pod.present.spec.uid();
    let host = pod.present.spec.host_network();
    let netns = (!host && pod.is_ready()).then(|| layout.namespaces(uid).join("net"));
    let sandbox = pod.present.record.sandbox.as_ref();
    let info = json!({
        "cgroup": sandbox.map(|sandbox| &sandbox.cgroup),
        "netns": netns,
        "folder": layout.pod(uid),
        "logs": layout.pod_log_dir(pod.present.spec.pod()),
    });
    Info::from([("info".to_owned(), info.to_string())])
}

/// The status of a container; `bundle` is what it was made with, if that is still there.
pub(super) fn container(run: Run<'_>, layout: &Layout, bundle: Option<&Value>) -> ContainerStatus {
    let instance = run.run;
    let ended = instance.terminated.as_ref();
    let log = layout.log(run.pod.present.spec.pod(), &instance.container, instance.attempt);
    let user = instance.user.as_ref().map(|user| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|&group| group.into()).collect(),
        }),
    });
    ContainerStatus {
        id: instance.id.clone(),
        metadata: Some(run.metadata()),
        state: run.state().into(),
        created_at: instant(instance.created),
        started_at: instance.started.map_or(0, instant),
        finished_at: ended.map_or(0, |ended| instant(ended.finished)),
        exit_code: ended.map_or(0, |ended| ended.exit_code),
        image: Some(run.image()),
        image_ref: instance.image_id.clone(),
        reason: ended.map_or_else(String::new, |ended| ended.reason.clone()),
        message: ended.map_or_else(String::new, |ended| ended.message.clone()),
        labels: run.labels(),
        annotations: run.annotations(),
        mounts: bundle.map_or_else(Vec::new, mounts),
        log_path: log.to_string_lossy().into_owned(),
        resources: bundle.map(resources),
        image_id: instance.image_id.clone(),
        user,
    }
}

/// What is told of a container when more is asked for: its bundle too, in which the environment is.
pub(super) fn container_info(run: Run<'_>, layout: &Layout, bundle: Option<Value>) -> Info {
    let pod = &run.pod.present;
    let pid = (run.run.terminated.is_none() && run.pod.is_ready()).then_some(run.run.pid).filter(|&pid| pid > 0);
    let cgroup = bundle.as_ref().map(|bundle| bundle["linux"]["cgroupsPath"].clone());
    let info = json!({
        "sandboxID": run.pod.id,
        "pid": pid,
        "cgroup": cgroup,
        "bundle": layout.bundle(pod.spec.uid(), &run.run.container, run.run.attempt),
        "runtimeSpec": bundle,
    });
    Info::from([("info".to_owned(), info.to_string())])
}

/// The `config.json` of a run, if it is still there. Reads files.
pub(super) fn bundle(run: Run<'_>, layout: &Layout) -> Option<Value> {
    let folder = layout.bundle(run.pod.present.spec.uid(), &run.run.container, run.run.attempt);
    read(&folder.join("config.json"))
}

fn read(path: &Path) -> Option<Value> {
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(LARGEST_BUNDLE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What of the machine the container sees.
fn mounts(bundle: &Value) -> Vec<Mount> {
    let all = bundle["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let bound = all.iter().filter(|mount| {
        let place = mount["destination"].as_str().unwrap_or_default();
        let of_the_machine = mount["source"].as_str().is_some_and(|source| source.starts_with('/'));
        of_the_machine && !OWN_MOUNTS.contains(&place) && !Path::new(place).starts_with(CGROUPS)
    });
    let mount = |mount: &Value| {
        let options: Vec<&str> = mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let has = |names: &[&str]| options.iter().any(|option| names.contains(option));
        let propagation = match () {
            () if has(&["shared", "rshared"]) => MountPropagation::PropagationBidirectional,
            () if has(&["slave", "rslave"]) => MountPropagation::PropagationHostToContainer,
            () => MountPropagation::PropagationPrivate,
        };
        Mount {
            container_path: text(&mount["destination"]),
            host_path: text(&mount["source"]),
            readonly: has(&["ro", "rro"]),
            recursive_read_only: has(&["rro"]),
            propagation: propagation.into(),
            ..Mount::default()
        }
    };
    bound.map(mount).collect()
}

/// What the container may use.
fn resources(bundle: &Value) -> ContainerResources {
    let (given, number) = (&bundle["linux"]["resources"], |value: &Value| value.as_i64().unwrap_or(0));
    let unified = given["unified"].as_object().into_iter().flatten();
    ContainerResources {
        linux: Some(LinuxContainerResources {
            cpu_period: number(&given["cpu"]["period"]),
            cpu_quota: number(&given["cpu"]["quota"]),
            cpu_shares: number(&given["cpu"]["shares"]),
            memory_limit_in_bytes: number(&given["memory"]["limit"]),
            oom_score_adj: number(&bundle["process"]["oomScoreAdj"]),
            cpuset_cpus: text(&given["cpu"]["cpus"]),
            cpuset_mems: text(&given["cpu"]["mems"]),
            unified: unified.map(|(name, value)| (name.clone(), text(value))).collect(),
            memory_swap_limit_in_bytes: number(&given["memory"]["swap"]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_limits_are_those_of_the_bundle() {
        let bundle = json!({
            "process": {"oomScoreAdj": 999},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]},
                {"destination": "/sys/fs/cgroup/cpu", "type": "bind", "source": "/sys/fs/cgroup/cpu/a"},
                {"destination": "/dev/shm", "type": "bind", "source": "/run/shm", "options": ["rbind", "rw"]},
                {"destination": "/data", "source": "/var/data", "options": ["rbind", "ro", "rslave"]},
                {"destination": "/all", "source": "/", "options": ["rbind", "rro", "rshared"]},
            ],
            "linux": {"resources": {
                "cpu": {"shares": 102, "quota": 10000, "period": 100_000},
                "memory": {"limit": 1 << 20},
                "unified": {"memory.high": "max"},
            }},
        });
        let seen = mounts(&bundle);
        let seen: Vec<(&str, &str, bool, bool, i32)> = seen
            .iter()
            .map(|m| (&*m.container_path, &*m.host_path, m.readonly, m.recursive_read_only, m.propagation))
            .collect();
        let all = [
            ("/dev/shm", "/run/shm", false, false, 0),
            ("/data", "/var/data", true, false, 1),
            ("/all", "/", true, true, 2),
        ];
        assert_eq!(seen, all);
        let given = resources(&bundle).linux.unwrap();
        assert_eq!((given.cpu_shares, given.cpu_quota, given.cpu_period), (102, 10000, 100_000));
        assert_eq!((given.memory_limit_in_bytes, given.oom_score_adj), (1 << 20, 999));
        assert_eq!(given.unified["memory.high"], "max");
        assert!(mounts(&json!({"mounts": 3})).is_empty());
    }
}
