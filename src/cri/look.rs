//! What is on the machine, as the CRI lists it: sandboxes and containers, what they are called, and filters of them.
//!
//! The CRI's sandboxes have IDs and ours do not: theirs are made from the pod's uid and how many sandboxes it has had, so
//! that they are the same at every look, and others once the sandbox is another one.

use super::grpc::Status;
use super::v1::{
    Container, ContainerFilter, ContainerMetadata, ContainerState, ImageSpec, PodSandbox, PodSandboxFilter,
    PodSandboxMetadata, PodSandboxState,
};
use super::{instant, v1};
use crate::pod::{Instance, Key, Present, Sandbox};
use crate::server::Node;
use k8s_openapi::api::core::v1::Container as ApiContainer;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Names and values.
pub(super) type Labels = BTreeMap<String, String>;

/// What kubelet marks sandboxes and containers with, and clients show.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// A pod with its sandbox, or what is left of it.
pub(super) struct Pod {
    /// ID of the sandbox: 64 hex digits.
    pub(super) id: String,
    /// What is on the machine.
    pub(super) present: Present,
}

/// All pods that are on the machine, sorted by namespace and name. Reads files.
pub(super) fn all(node: &Arc<dyn Node>) -> Vec<Pod> {
    let pods = node.pods().into_iter().filter_map(|pod| pod.metadata.uid.clone());
    pods.filter_map(|uid| node.present(&uid)).map(Pod::new).collect()
}

impl Pod {
    pub(super) fn new(present: Present) -> Pod {
        let uid = present.spec.uid();
        let digest = Sha256::digest(format!("sandbox/{uid}/{}", present.record.sandbox_attempts));
        Pod { id: digest.iter().map(|byte| format!("{byte:02x}")).collect(), present }
    }

    pub(super) fn key(&self) -> Key {
        self.present.spec.key()
    }

    pub(super) fn metadata(&self) -> PodSandboxMetadata {
        let Key { namespace, name } = self.key();
        let attempt = self.present.record.sandbox_attempts.saturating_sub(1);
        PodSandboxMetadata { name, uid: self.present.spec.uid().to_owned(), namespace, attempt }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.present.sandbox == Sandbox::Ready
    }

    pub(super) fn state(&self) -> PodSandboxState {
        if self.is_ready() { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
    }

    pub(super) fn created(&self) -> i64 {
        let record = &self.present.record;
        instant(record.sandbox.as_ref().map_or(record.start_time, |sandbox| sandbox.created))
    }

    /// As kubelet: the pod's own, and who it is.
    pub(super) fn labels(&self) -> Labels {
        let mut labels = self.present.spec.pod().metadata.labels.clone().unwrap_or_default();
        labels.extend(self.identity());
        labels
    }

    fn identity(&self) -> [(String, String); 3] {
        let Key { namespace, name } = self.key();
        let uid = self.present.spec.uid().to_owned();
        [(POD_NAME, name), (POD_NAMESPACE, namespace), (POD_UID, uid)].map(|(name, value)| (name.to_owned(), value))
    }

    pub(super) fn annotations(&self) -> Labels {
        self.present.spec.pod().metadata.annotations.clone().unwrap_or_default()
    }

    pub(super) fn listed(&self) -> PodSandbox {
        PodSandbox {
            id: self.id.clone(),
            metadata: Some(self.metadata()),
            state: self.state().into(),
            created_at: self.created(),
            labels: self.labels(),
            annotations: self.annotations(),
            runtime_handler: String::new(),
        }
    }

    /// All runs of its containers that are recorded.
    pub(super) fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.present.containers.values().flatten().map(|run| Run { pod: self, run })
    }
}

/// A run of a container: what the CRI calls a container.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) pod: &'a Pod,
    pub(super) run: &'a Instance,
}

impl<'a> Run<'a> {
    /// The container as its pod has it.
    pub(super) fn container(&self) -> Option<&'a ApiContainer> {
        self.pod.present.spec.all_containers().find(|container| container.name == self.run.container)
    }

    pub(super) fn state(&self) -> ContainerState {
        match self.run {
            Instance { terminated: Some(_), .. } => ContainerState::ContainerExited,
            // It is noted in a moment how it ended.
            _ if !self.pod.is_ready() => ContainerState::ContainerUnknown,
            Instance { started: Some(_), .. } => ContainerState::ContainerRunning,
            _ => ContainerState::ContainerCreated,
        }
    }

    pub(super) fn metadata(&self) -> ContainerMetadata {
        ContainerMetadata { name: self.run.container.clone(), attempt: self.run.attempt }
    }

    /// The name is what people know; what it means by now is in the ID beside it.
    pub(super) fn image(&self) -> ImageSpec {
        let name = &self.run.image;
        ImageSpec {
            image: name.clone(),
            user_specified_image: name.clone(),
            image_ref: self.run.image_id.clone(),
            ..ImageSpec::default()
        }
    }

    /// As kubelet.
    pub(super) fn labels(&self) -> Labels {
        let mut labels = Labels::from_iter(self.pod.identity());
        labels.insert(CONTAINER_NAME.to_owned(), self.run.container.clone());
        labels
    }

    /// As kubelet.
    pub(super) fn annotations(&self) -> Labels {
        let mut annotations =
            Labels::from([("io.kubernetes.container.restartCount".to_owned(), self.run.attempt.to_string())]);
        let container = self.container();
        let path = container.and_then(|container| container.termination_message_path.clone());
        let policy = container.and_then(|container| container.termination_message_policy.clone());
        let grace = self.pod.present.spec.spec().termination_grace_period_seconds.map(|grace| grace.to_string());
        let more = [
            ("io.kubernetes.container.terminationMessagePath", path),
            ("io.kubernetes.container.terminationMessagePolicy", policy),
            ("io.kubernetes.pod.terminationGracePeriod", grace),
        ];
        annotations.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        annotations
    }

    pub(super) fn listed(&self) -> Container {
        Container {
            id: self.run.id.clone(),
            pod_sandbox_id: self.pod.id.clone(),
            metadata: Some(self.metadata()),
            image: Some(self.image()),
            image_ref: self.run.image_id.clone(),
            state: self.state().into(),
            created_at: instant(self.run.created),
            labels: self.labels(),
            annotations: self.annotations(),
            image_id: self.run.image_id.clone(),
        }
    }
}

/// The one that is meant: of this ID, or the only one whose ID begins so.
pub(super) fn pick<T>(what: &str, wanted: &str, all: impl Iterator<Item = T>, id: fn(&T) -> &str) -> Result<T, Status> {
    if wanted.is_empty() {
        return Err(Status::invalid(format!("the ID of a {what} is required")));
    }
    let mut found = None;
    let mut several = false;
    for item in all {
        if id(&item) == wanted {
            return Ok(item);
        }
        if id(&item).starts_with(wanted) {
            several |= found.is_some();
            found = Some(item);
        }
    }
    match found {
        Some(_) if several => Err(Status::invalid(format!("{wanted:?} is the beginning of more than one {what}"))),
        Some(item) => Ok(item),
        None => Err(Status::not_found(format!("{what} {wanted:?} not found"))),
    }
}

/// The pod of a sandbox's ID, or of its beginning.
pub(super) fn sandbox<'a>(pods: &'a [Pod], id: &str) -> Result<&'a Pod, Status> {
    pick("pod sandbox", id, pods.iter(), |pod| &pod.id)
}

/// The run of a container's ID, or of its beginning.
pub(super) fn container<'a>(pods: &'a [Pod], id: &str) -> Result<Run<'a>, Status> {
    pick("container", id, pods.iter().flat_map(Pod::runs), |run| &run.run.id)
}

fn has(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Whether a sandbox is asked for; an empty field asks for all.
pub(super) fn wants_sandbox(filter: Option<&PodSandboxFilter>, pod: &PodSandbox) -> bool {
    let Some(PodSandboxFilter { id, state, label_selector }) = filter else { return true };
    pod.id.starts_with(id.as_str())
        && state.as_ref().is_none_or(|wanted| wanted.state == pod.state)
        && has(&pod.labels, label_selector)
}

/// Whether a container is asked for; an empty field asks for all.
pub(super) fn wants_container(filter: Option<&ContainerFilter>, container: &Container) -> bool {
    let Some(ContainerFilter { id, state, pod_sandbox_id, label_selector }) = filter else { return true };
    container.id.starts_with(id.as_str())
        && state.as_ref().is_none_or(|wanted| wanted.state == container.state)
        && container.pod_sandbox_id.starts_with(pod_sandbox_id.as_str())
        && has(&container.labels, label_selector)
}

/// Whether the usage of a container is asked for; an empty field asks for all.
pub(super) fn wants_usage(filter: Option<&v1::ContainerStatsFilter>, run: &Run<'_>) -> bool {
    let Some(v1::ContainerStatsFilter { id, pod_sandbox_id, label_selector }) = filter else { return true };
    run.run.id.starts_with(id.as_str())
        && run.pod.id.starts_with(pod_sandbox_id.as_str())
        && has(&run.labels(), label_selector)
}

/// Whether the usage of a sandbox is asked for; an empty field asks for all.
pub(super) fn wants_pod_usage(filter: Option<&v1::PodSandboxStatsFilter>, pod: &Pod) -> bool {
    let Some(v1::PodSandboxStatsFilter { id, label_selector }) = filter else { return true };
    pod.id.starts_with(id.as_str()) && has(&pod.labels(), label_selector)
}

#[cfg(test)]
#[path = "look_tests.rs"]
mod tests;
