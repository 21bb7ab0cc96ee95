//! Ephemeral containers (`kubectl debug`): this node runs none. Whoever adds one is told so in its status, as of a container
//! that could not be started, instead of waiting for it; the pod goes on.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};

/// Exit code of a container that never ran (as of a failed start).
const NEVER_RAN: i32 = 128;

/// What is reported of a pod's ephemeral containers; `None` when it has none.
pub(super) fn statuses(pod: &Pod) -> Option<Vec<ContainerStatus>> {
    let containers = pod.spec.as_ref()?.ephemeral_containers.as_ref().filter(|all| !all.is_empty())?;
    let ended = ContainerStateTerminated {
        exit_code: NEVER_RAN,
        reason: Some("PodFeatureUnsupported".to_owned()),
        message: Some("this node runs no ephemeral containers: use kubectl exec".to_owned()),
        ..ContainerStateTerminated::default()
    };
    let status = |name: &String, image: &Option<String>| ContainerStatus {
        name: name.clone(),
        image: image.clone().unwrap_or_default(),
        state: Some(ContainerState { terminated: Some(ended.clone()), ..ContainerState::default() }),
        ..ContainerStatus::default()
    };
    Some(containers.iter().map(|container| status(&container.name, &container.image)).collect())
}
