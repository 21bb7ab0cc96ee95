//! What the runtime says of itself: version, state, how it divides cgroups.

use super::v1::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigResponse, RuntimeFeatures, RuntimeHandler,
    RuntimeHandlerFeatures, RuntimeStatus, StatusResponse, VersionResponse,
};
use crate::server::Node;
use serde_json::json;
use std::collections::BTreeMap;

/// The version of the API for kubelets, as every runtime says.
const KUBELET_API: &str = "0.1.0";

pub(super) fn version() -> VersionResponse {
    VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: "coracle".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// Whether containers can start, and have a network; with `verbose`, how the node is set up.
pub(super) fn status(node: &dyn Node, verbose: bool) -> StatusResponse {
    let [runtime, network] = node.problems();
    let features = node.node().status.unwrap_or_default();
    let handler = |handler: k8s_openapi::api::core::v1::NodeRuntimeHandler| {
        let features = handler.features.unwrap_or_default();
        RuntimeHandler {
            name: handler.name.unwrap_or_default(),
            features: Some(RuntimeHandlerFeatures {
                recursive_read_only_mounts: features.recursive_read_only_mounts == Some(true),
                user_namespaces: features.user_namespaces == Some(true),
            }),
        }
    };
    let groups = features.features.and_then(|features| features.supplemental_groups_policy);
    StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", "RuntimeNotReady", runtime),
                condition("NetworkReady", "NetworkPluginNotReady", network),
            ],
        }),
        info: if verbose { info(node) } else { BTreeMap::new() },
        runtime_handlers: features.runtime_handlers.into_iter().flatten().map(handler).collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: groups == Some(true),
            user_namespaces_host_network: false,
        }),
    }
}

fn condition(name: &str, trouble: &str, problem: Option<String>) -> RuntimeCondition {
    RuntimeCondition {
        r#type: name.to_owned(),
        status: problem.is_none(),
        reason: if problem.is_some() { trouble.to_owned() } else { String::new() },
        message: problem.unwrap_or_default(),
    }
}

fn info(node: &dyn Node) -> BTreeMap<String, String> {
    let config = node.config();
    let shown = json!({
        "node": node.name(),
        "rootDir": config.root_dir,
        "runDir": config.run_dir,
        "podLogsDir": config.pod_logs_dir,
        "cgroupRoot": config.cgroup_root,
        "podCIDR": config.pod_cidr.to_string(),
        "bridge": config.bridge,
    });
    BTreeMap::from([("config".to_owned(), shown.to_string())])
}

/// cgroups are made by writing files, also where systemd is: a subtree is delegated to us.
pub(super) fn runtime_config() -> RuntimeConfigResponse {
    RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() }) }
}
