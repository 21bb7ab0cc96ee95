//! The Node object as this node sees itself.

use super::node::Shared;
use crate::image::Image;
use crate::pod::admission::{NodeAmounts, huge_page_resource};
use crate::pod::eviction::Pressure;
use crate::runtime::Machine;
use crate::sys::clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The Kubernetes whose kubelet this node behaves like, as the API server and kubeadm read versions; what follows the `+` is
/// for people.
pub const KUBELET_VERSION: &str = concat!("v1.36.3+coracle-", env!("CARGO_PKG_VERSION"));
/// Most names of an image (as kubelet).
const NAMES: usize = 5;

impl Shared {
    /// The Node object, with the labels that are configured. Instants are of this process' time.
    pub(super) fn own_node(&self) -> Node {
        let machine = self.runtime.machine();
        Node {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                uid: Some(self.name.clone()),
                labels: Some(self.own_labels()),
                creation_timestamp: Some(Time(self.started)),
                ..ObjectMeta::default()
            },
            spec: None,
            status: Some(NodeStatus {
                addresses: Some(self.addresses()),
                allocatable: Some(quantities(&self.runtime.resources().allocatable)),
                capacity: Some(quantities(&self.runtime.resources().capacity)),
                conditions: Some(self.conditions(clock::now())),
                features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
                images: Some(images(self.runtime.images().list())),
                daemon_endpoints: self.daemon_endpoints(),
                // Sorted. What the API server need not translate for this node.
                declared_features: Some(vec!["ExtendWebSocketsToKubelet".to_owned()]),
                node_info: Some(node_info(machine)),
                runtime_handlers: Some(vec![handler(&machine.kernel)]),
                ..NodeStatus::default()
            }),
        }
    }

    /// The labels that every node has, and those that are configured.
    pub(super) fn own_labels(&self) -> BTreeMap<String, String> {
        let architecture = self.runtime.machine().architecture;
        let mut labels: BTreeMap<String, String> = [
            ("beta.kubernetes.io/arch", architecture),
            ("beta.kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture),
            ("kubernetes.io/hostname", &self.name),
            ("kubernetes.io/os", "linux"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
        labels.extend(self.labels.clone());
        labels
    }

    /// Those that others reach the node by, as they are now: it may have come up before its network.
    fn addresses(&self) -> Vec<NodeAddress> {
        let of = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
        let ips = self.runtime.machine().addresses();
        let ips = ips.iter().map(|ip| of("InternalIP", ip.to_string()));
        ips.chain([of("Hostname", self.name.clone())]).collect()
    }

    /// Where the node API is; `None`: nowhere. The API server takes 10250 then, where nobody answers.
    fn daemon_endpoints(&self) -> Option<NodeDaemonEndpoints> {
        let port = self.config.port;
        let endpoint = DaemonEndpoint { port: i32::from(port) };
        (port != 0).then_some(NodeDaemonEndpoints { kubelet_endpoint: Some(endpoint) })
    }

    /// Ready last (as kubelet).
    fn conditions(&self, now: Timestamp) -> Vec<NodeCondition> {
        let condition = |since: Timestamp, type_: &str, status: bool, reason: &str, message: &str| NodeCondition {
            type_: type_.into(),
            status: if status { "True" } else { "False" }.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(Time(since)),
        };
        let mut conditions = Vec::new();
        for (pressure, is_bad, since) in self.pressures() {
            let (reason, message) = pressure.words(is_bad);
            conditions.push(condition(since, pressure.as_str(), is_bad, reason, message));
        }
        if let Some(error) = self.source_error() {
            conditions.push(condition(self.started, "ManifestSourceHealthy", false, "SourceUnhealthy", &error));
        }
        let (problem, since) = self.readiness(now);
        conditions.push(match problem {
            None => condition(since, "Ready", true, "KubeletReady", "coracle is posting ready status"),
            Some(problem) => condition(since, "Ready", false, "KubeletNotReady", &problem),
        });
        conditions
    }
}

/// Amounts as a Node lists them.
fn quantities(amounts: &NodeAmounts) -> BTreeMap<String, Quantity> {
    let bytes = |n: i64| match n % 1024 {
        0 => format!("{}Ki", n / 1024),
        _ => n.to_string(),
    };
    let cpu = match amounts.cpu_milli % 1000 {
        0 => (amounts.cpu_milli / 1000).to_string(),
        _ => format!("{}m", amounts.cpu_milli),
    };
    let mut list = BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpu)),
        ("ephemeral-storage".to_owned(), Quantity(bytes(amounts.ephemeral_storage))),
        ("memory".to_owned(), Quantity(bytes(amounts.memory))),
        ("pods".to_owned(), Quantity(amounts.pods.to_string())),
    ]);
    list.extend(amounts.huge_pages.iter().map(|(size, n)| (huge_page_resource(*size), Quantity(bytes(*n)))));
    list
}

fn node_info(machine: &Machine) -> NodeSystemInfo {
    let swap = i64::try_from(machine.swap_bytes).unwrap_or(i64::MAX);
    NodeSystemInfo {
        architecture: machine.architecture.to_owned(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: format!("coracle://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: machine.kernel.clone(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".into(),
        os_image: machine.os_image.clone(),
        // As kubelet: none where there is none.
        swap: (swap > 0).then_some(NodeSwapStatus { capacity: Some(swap) }),
        system_uuid: machine.system_uuid.clone(),
        ..NodeSystemInfo::default()
    }
}

/// The largest first (as kubelet): the scheduler places pods where large images are already.
fn images(mut all: Vec<Arc<Image>>) -> Vec<ContainerImage> {
    all.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let shown = |image: &Arc<Image>| {
        let by_digest = image.names.iter().flat_map(|name| {
            let repository = repository(name);
            image.digests.iter().map(move |digest| format!("{repository}@{digest}"))
        });
        let mut names: Vec<String> = image.names.clone();
        names.extend(by_digest);
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names.truncate(NAMES);
        let size = i64::try_from(image.size).unwrap_or(i64::MAX);
        (!names.is_empty()).then_some(ContainerImage { names: Some(names), size_bytes: Some(size) })
    };
    all.iter().filter_map(shown).collect()
}

/// A full name without tag and digest.
fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// The one way to run pods: what this kernel can do of it.
fn handler(kernel: &str) -> NodeRuntimeHandler {
    NodeRuntimeHandler {
        name: Some(String::new()),
        features: Some(NodeRuntimeHandlerFeatures {
            // mount_setattr, and idmapped overlays.
            recursive_read_only_mounts: Some(is_at_least(kernel, (5, 12))),
            user_namespaces: Some(is_at_least(kernel, (5, 19))),
        }),
    }
}

fn is_at_least(kernel: &str, least: (u32, u32)) -> bool {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= least
}

impl Shared {
    fn pressures(&self) -> Vec<(Pressure, bool, Timestamp)> {
        Pressure::ALL.into_iter().map(|pressure| self.pressure_of(pressure)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_names_without_what_tells_versions_apart() {
        for (name, repository_of) in [
            ("docker.io/library/nginx:1.27", "docker.io/library/nginx"),
            ("localhost:5000/a/b", "localhost:5000/a/b"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b"),
            ("a.example/b:c@sha256:0", "a.example/b"),
        ] {
            assert_eq!(repository(name), repository_of);
        }
    }

    #[test]
    fn kernels_are_compared_by_number() {
        for (kernel, least, is) in [
            ("5.19.0-arch1", (5, 19), true),
            ("5.9.1", (5, 19), false),
            ("6.1.0-18-amd64", (5, 19), true),
            ("6", (5, 12), true),
            ("", (5, 12), false),
        ] {
            assert_eq!(is_at_least(kernel, least), is, "{kernel}");
        }
    }
}
