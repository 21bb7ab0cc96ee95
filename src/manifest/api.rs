//! Pods that an API server bound to this node. It has defaulted and validated them; what this node cannot do of them is
//! told here, as for a manifest.

use super::report::Report;
use super::tree::Node;
use super::{Problem, default, supported, validate};
use k8s_openapi::api::core::v1::Pod;

/// The pod as this node runs it: without what only the API server is concerned with, and marked as one of its pods
/// (annotation `kubernetes.io/config.source: api`, which is in no object of the API). What an older API server has left to
/// defaults has them.
///
/// # Errors
/// Everything in it that this node does not do.
pub fn from_api(pod: &Pod) -> Result<Pod, Vec<Problem>> {
    // What an API server cannot have sent is no reason to panic: then there is nothing in it that works.
    let spec = serde_json::to_value(&pod.spec).unwrap_or_default();
    let document = Node::from(serde_json::json!({ "spec": spec }));
    let mut report = Report::new(&document, "");
    validate::bound(pod, &mut report);
    supported::check_bound(&document, &mut report);
    let mut problems = report.finish();
    if !problems.is_empty() {
        // Nobody has a text that they could be looked up in.
        problems.iter_mut().for_each(|problem| (problem.line, problem.column) = (None, None));
        return Err(problems);
    }
    let mut pod = marked(pod);
    default::apply(&mut pod);
    Ok(pod)
}

/// The same, whatever is in it: for reports of a pod that cannot run.
#[must_use]
pub fn marked(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.status = None;
    let meta = &mut pod.metadata;
    // The generation stays: reports say which one they are of.
    (meta.managed_fields, meta.resource_version) = (None, None);
    (meta.deletion_timestamp, meta.deletion_grace_period_seconds) = (None, None);
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(super::identity::CONFIG_SOURCE.to_owned(), "api".to_owned());
    pod
}
