//! What makes a static pod of a Pod: UID, name with the node's suffix, annotations, toleration.

use super::Origin;
use super::report::Report;
use super::tree::Node;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::io;

const CONFIG_HASH: &str = "kubernetes.io/config.hash";
pub(super) const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Tells an edit, also under a uid that the manifest gives.
pub const REVISION: &str = "coracle.dev/revision";
/// Written by nodes only; in a manifest they come from an exported (mirror) pod.
const NODE_ANNOTATIONS: [&str; 5] =
    [REVISION, CONFIG_HASH, CONFIG_SOURCE, "kubernetes.io/config.seen", "kubernetes.io/config.mirror"];

/// Fields that an API server owns: a manifest may carry them (`kubectl get -o yaml`), they mean nothing here.
const SERVER_FIELDS: [&str; 9] = [
    "metadata.creationTimestamp",
    "metadata.deletionGracePeriodSeconds",
    "metadata.deletionTimestamp",
    "metadata.finalizers",
    "metadata.generateName",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.ownerReferences",
    "metadata.resourceVersion",
];

/// Removes what only an API server may say of any object, with a warning for each.
pub(super) fn drop_server_metadata(metadata: &mut ObjectMeta, document: &Node, report: &mut Report<'_>) {
    SERVER_FIELDS.iter().for_each(|field| ignored(field, document, report));
    let written = std::mem::take(metadata);
    metadata.name = written.name;
    metadata.namespace = written.namespace;
    metadata.uid = written.uid.filter(|uid| !uid.is_empty());
    metadata.labels = written.labels.filter(|labels| !labels.is_empty());
    metadata.annotations = written.annotations.filter(|annotations| !annotations.is_empty());
}

/// Warns of a field that only an API server sets, where it says something.
pub(super) fn ignored(field: &str, document: &Node, report: &mut Report<'_>) {
    for (path, node) in super::pattern::matches(document, field) {
        if !node.value.is_empty() {
            report.warning(path, "is set by the API server only: ignored");
        }
    }
}

/// Removes what only an API server or a node may say of a pod, with a warning for each.
pub(super) fn drop_server_fields(pod: &mut Pod, document: &Node, report: &mut Report<'_>) {
    drop_server_metadata(&mut pod.metadata, document, report);
    ignored("status", document, report);
    pod.status = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        for key in NODE_ANNOTATIONS {
            if annotations.remove(key).is_some() {
                report.warning(format!("metadata.annotations[{key}]"), "is set by the node only: ignored");
            }
        }
    }
    pod.metadata.annotations = pod.metadata.annotations.take().filter(|annotations| !annotations.is_empty());
}

/// What an author wrote, as a hash. Unlike kubelet, which hashes the defaulted pod: a version of coracle that knows one
/// more default must not take all pods for edited ones, and restart them.
#[derive(Clone)]
pub(super) struct Content(Fnv);

/// The content of a pod before it is defaulted.
pub(super) fn content(pod: &Pod) -> Content {
    let mut hash = Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
    // Neither the hash nor the serialisation of API types (all keys are strings; its maps are sorted) has a way to fail.
    let _ = serde_json::to_writer(&mut hash, pod);
    Content(hash)
}

/// Gives a defaulted pod its identity on this node (as kubelet) and returns its namespace and name.
pub(super) fn assign(pod: &mut Pod, content: &Content, origin: Origin<'_>, node: &str) -> (String, String) {
    let node = node.to_lowercase();
    let uid = match pod.metadata.uid.clone() {
        Some(uid) => uid,
        None => uid_of(content, origin, &node),
    };
    let metadata = &mut pod.metadata;
    metadata.uid = Some(uid.clone());
    let name = format!("{}-{node}", metadata.name.as_deref().unwrap_or_default());
    metadata.name = Some(name.clone());
    let namespace = metadata.namespace.get_or_insert_default();
    if namespace.is_empty() {
        "default".clone_into(namespace);
    }
    let namespace = namespace.clone();
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.to_owned(), uid);
    annotations.insert(REVISION.to_owned(), format!("{:032x}", content.0.0));
    let source = match origin {
        Origin::File(_) => "file",
        Origin::Url(_) => "http",
    };
    annotations.insert(CONFIG_SOURCE.to_owned(), source.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node);
    if let Origin::File(_) = origin {
        let everything = Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            ..Toleration::default()
        };
        let tolerations = spec.tolerations.get_or_insert_default();
        if !tolerations.contains(&everything) {
            tolerations.push(everything);
        }
    }
    pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
    (namespace, name)
}

/// FNV-1a, 128 bits, of what was written and of where it came from.
///
/// Only stability matters: the same manifest has to keep its UID over restarts, and another content has to get another.
fn uid_of(content: &Content, origin: Origin<'_>, node: &str) -> String {
    let mut hash = content.0.clone();
    match origin {
        Origin::File(path) => {
            hash.update(b"host:");
            hash.update(node.as_bytes());
            hash.update(b"file:");
            hash.update(path.as_bytes());
        }
        Origin::Url(url) => {
            hash.update(b"url:");
            hash.update(url.as_bytes());
        }
    }
    format!("{:032x}", hash.0)
}

#[derive(Clone)]
struct Fnv(u128);

impl Fnv {
    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}

impl io::Write for Fnv {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_agrees_with_the_published_vectors() {
        let mut hash = Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        hash.update(b"foobar");
        assert_eq!(format!("{:032x}", hash.0), "343e1662793c64bf6f0d3597ba446f18");
    }
}
