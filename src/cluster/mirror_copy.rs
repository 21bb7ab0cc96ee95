//! The copy of a static pod that the API server is given.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, EnvVar, Node, Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeSet;

/// Which static pod it is: its UID.
pub(super) const HASH: &str = "kubernetes.io/config.hash";
/// When the node first saw it.
pub(super) const SEEN: &str = "kubernetes.io/config.seen";
/// What of the node's own objects the pod is made from, as `secrets/NAME, …`: a mirror pod may not name them.
pub(super) const LOCAL: &str = "coracle.dev/local-references";
/// Who wrote it, as the API server notes it.
pub(super) const WRITER: &str = "coracle";

/// The static pod that a mirror pod shows, or that a report is of.
pub(super) fn hash(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(HASH).map(String::as_str)
}

/// The mirror of a static pod; `None` while it cannot have any: the Node has no UID. `seen` is what is told when the pod does
/// not say since when it is known. Without `class` it names no priority class: there is none of that name.
pub(super) fn copy(pod: &Pod, node: &Node, seen: Timestamp, class: bool) -> Option<Pod> {
    let meta = &pod.metadata;
    let (node_name, node_uid) = (node.metadata.name.clone()?, node.metadata.uid.clone()?);
    let hash = hash(pod)?.to_owned();
    let mut spec = pod.spec.clone()?;
    spec.node_name = Some(node_name.clone());
    let mut taken = strip(&mut spec);
    // Resolved from the class by the API server, which takes no other value.
    (spec.priority, spec.preemption_policy) = (None, None);
    if !class && let Some(name) = spec.priority_class_name.take() {
        taken.insert(format!("priorityclasses/{name}"));
    }
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    let seen = meta.creation_timestamp.as_ref().map_or(seen, |at| at.0);
    annotations.insert(super::pods::MIRROR.to_owned(), hash);
    annotations.insert(SEEN.to_owned(), seen.to_string());
    annotations.remove(LOCAL);
    if !taken.is_empty() {
        annotations.insert(LOCAL.to_owned(), taken.into_iter().collect::<Vec<_>>().join(", "));
    }
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node_name,
        uid: node_uid,
        controller: Some(true),
        block_owner_deletion: None,
    };
    Some(Pod {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            labels: meta.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

/// Takes out what `NodeRestriction` refuses in a mirror pod: all that names another object of the API. Returns what that was.
fn strip(spec: &mut PodSpec) -> BTreeSet<String> {
    let mut taken = BTreeSet::new();
    for name in [spec.service_account_name.take(), spec.service_account.take()].into_iter().flatten() {
        if !name.is_empty() {
            taken.insert(format!("serviceaccounts/{name}"));
        }
    }
    for secret in spec.image_pull_secrets.take().into_iter().flatten() {
        taken.insert(format!("secrets/{}", secret.name));
    }
    for claim in spec.resource_claims.take().into_iter().flatten() {
        taken.insert(format!("resourceclaims/{}", claim.name));
    }
    spec.volumes.iter_mut().flatten().for_each(|volume| strip_volume(volume, &mut taken));
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        strip_container(container, &mut taken);
    }
    spec.ephemeral_containers = None;
    taken
}

fn strip_container(container: &mut Container, taken: &mut BTreeSet<String>) {
    for source in container.env_from.take().into_iter().flatten() {
        taken.extend(source.config_map_ref.map(|of| format!("configmaps/{}", of.name)));
        taken.extend(source.secret_ref.map(|of| format!("secrets/{}", of.name)));
    }
    for variable in container.env.iter_mut().flatten() {
        strip_variable(variable, taken);
    }
    if let Some(resources) = &mut container.resources {
        resources.claims = None;
    }
}

/// Where the value comes from is told in its place; what it is, never.
fn strip_variable(variable: &mut EnvVar, taken: &mut BTreeSet<String>) {
    let Some(source) = &mut variable.value_from else { return };
    let from = match (source.config_map_key_ref.take(), source.secret_key_ref.take()) {
        (Some(of), _) => (format!("configmaps/{}", of.name), format!("(key {} of ConfigMap {})", of.key, of.name)),
        (_, Some(of)) => (format!("secrets/{}", of.name), format!("(key {} of Secret {})", of.key, of.name)),
        (None, None) => return,
    };
    taken.insert(from.0);
    variable.value = Some(from.1);
    variable.value_from = None;
}

fn strip_volume(volume: &mut Volume, taken: &mut BTreeSet<String>) {
    let mut gone = BTreeSet::new();
    gone.extend(volume.config_map.as_ref().map(|of| format!("configmaps/{}", of.name)));
    let secret = volume.secret.as_ref().and_then(|of| of.secret_name.as_ref());
    gone.extend(secret.map(|name| format!("secrets/{name}")));
    let claim = volume.persistent_volume_claim.as_ref();
    gone.extend(claim.map(|of| format!("persistentvolumeclaims/{}", of.claim_name)));
    gone.extend(volume.csi.as_ref().map(|of| format!("csidrivers/{}", of.driver)));
    gone.extend(volume.azure_file.as_ref().map(|of| format!("secrets/{}", of.secret_name)));
    gone.extend(volume.glusterfs.as_ref().map(|of| format!("endpoints/{}", of.endpoints)));
    gone.extend(volume.ephemeral.as_ref().map(|_| format!("persistentvolumeclaims/{}", volume.name)));
    if let Some(projected) = &mut volume.projected {
        let sources = projected.sources.take().unwrap_or_default();
        let mut kept = Vec::new();
        for source in sources {
            let names: Vec<String> = [
                source.config_map.as_ref().map(|of| format!("configmaps/{}", of.name)),
                source.secret.as_ref().map(|of| format!("secrets/{}", of.name)),
                source.service_account_token.as_ref().map(|_| "serviceaccounts/token".to_owned()),
                source.cluster_trust_bundle.as_ref().map(|of| {
                    let name = of.name.as_ref().or(of.signer_name.as_ref());
                    format!("clustertrustbundles/{}", name.map_or("", String::as_str))
                }),
                source.pod_certificate.as_ref().map(|of| format!("podcertificates/{}", of.signer_name)),
            ]
            .into_iter()
            .flatten()
            .collect();
            if names.is_empty() {
                kept.push(source);
            }
            taken.extend(names);
        }
        if !kept.is_empty() {
            projected.sources = Some(kept);
            return;
        }
    }
    // Those that need nothing of the API.
    let own = volume.host_path.is_some() || volume.downward_api.is_some() || volume.image.is_some();
    if gone.is_empty() && volume.projected.is_none() && (own || volume.empty_dir.is_some() || volume.nfs.is_some()) {
        return;
    }
    taken.extend(gone);
    *volume = Volume {
        name: std::mem::take(&mut volume.name),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
}

#[cfg(test)]
#[path = "mirror_copy_tests.rs"]
mod tests;
