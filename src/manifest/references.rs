//! API objects that a static pod may not refer to: without an API server they could never be resolved, and with one they
//! would let a node's files act with the rights of others (as Kubernetes 1.34 and later).

use super::object::Reference;
use super::pattern;
use super::report::Report;
use super::tree::Node;
use k8s_openapi::api::core::v1::Pod;

/// Fields that refer to an object, in the kubelet's order, and what kind of object that is.
const REFERENCES: &[(&str, &str)] = &[
    ("spec.serviceAccountName", "serviceaccounts"),
    ("spec.serviceAccount", "serviceaccounts"),
    ("spec.imagePullSecrets", "secrets"),
    ("spec.containers[*].env[*].valueFrom.secretKeyRef", "secrets"),
    ("spec.containers[*].envFrom[*].secretRef", "secrets"),
    ("spec.initContainers[*].env[*].valueFrom.secretKeyRef", "secrets"),
    ("spec.initContainers[*].envFrom[*].secretRef", "secrets"),
    ("spec.volumes[*].secret", "secrets"),
    ("spec.volumes[*].projected.sources[*].secret", "secrets"),
    ("spec.volumes[*].azureFile.secretName", "secrets"),
    ("spec.volumes[*].cephfs.secretRef", "secrets"),
    ("spec.volumes[*].cinder.secretRef", "secrets"),
    ("spec.volumes[*].flexVolume.secretRef", "secrets"),
    ("spec.volumes[*].rbd.secretRef", "secrets"),
    ("spec.volumes[*].scaleIO.secretRef", "secrets"),
    ("spec.volumes[*].iscsi.secretRef", "secrets"),
    ("spec.volumes[*].storageos.secretRef", "secrets"),
    ("spec.volumes[*].csi.nodePublishSecretRef", "secrets"),
    ("spec.containers[*].env[*].valueFrom.configMapKeyRef", "configmaps"),
    ("spec.containers[*].envFrom[*].configMapRef", "configmaps"),
    ("spec.initContainers[*].env[*].valueFrom.configMapKeyRef", "configmaps"),
    ("spec.initContainers[*].envFrom[*].configMapRef", "configmaps"),
    ("spec.volumes[*].configMap", "configmaps"),
    ("spec.volumes[*].projected.sources[*].configMap", "configmaps"),
    ("spec.resourceClaims", "resourceclaims"),
    ("spec.volumes[*].csi", "csidrivers (via CSI volumes)"),
    ("spec.volumes[*].glusterfs", "endpoints (via glusterFS volumes)"),
    ("spec.volumes[*].persistentVolumeClaim", "persistentvolumeclaims"),
    ("spec.volumes[*].ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ("spec.volumes[*].projected.sources[*].serviceAccountToken", "serviceaccounts (via projected volumes)"),
    ("spec.volumes[*].projected.sources[*].clusterTrustBundle", "clustertrustbundles"),
    ("spec.volumes[*].projected.sources[*].podCertificate", "podcertificates"),
];

/// Reports every reference to an API object.
pub(super) fn check(document: &Node, report: &mut Report<'_>) {
    for (field, kind) in REFERENCES {
        for (path, node) in pattern::matches(document, field) {
            if !node.value.is_empty() {
                report.error(path, format!("static pods may not reference {kind}"));
            }
        }
    }
}

/// The ConfigMaps and Secrets that a pod refers to; what is refused anyway is not among them.
pub(super) fn of(_pod: &Pod) -> Vec<Reference> {
    Vec::new()
}
