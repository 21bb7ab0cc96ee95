//! The objects that a pod refers to: ConfigMaps and Secrets, which manifests define, and those of an API server, which a
//! static pod may not refer to (as Kubernetes 1.34 and later): without one they could never be resolved, and with one they
//! would let a node's files act with the rights of others.

use super::object::{ObjectId, ObjectKind, Reference, Use};
use super::pattern;
use super::report::Report;
use super::tree::Node;
use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, KeyToPath, Pod, Volume, VolumeProjection};
use std::collections::BTreeMap;

/// Fields that refer to an object that no manifest can define, in the kubelet's order, and what kind of object that is.
const REFERENCES: &[(&str, &str)] = &[
    ("spec.serviceAccountName", "serviceaccounts"),
    ("spec.serviceAccount", "serviceaccounts"),
    ("spec.imagePullSecrets", "secrets"),
    ("spec.volumes[*].azureFile.secretName", "secrets"),
    ("spec.volumes[*].cephfs.secretRef", "secrets"),
    ("spec.volumes[*].cinder.secretRef", "secrets"),
    ("spec.volumes[*].flexVolume.secretRef", "secrets"),
    ("spec.volumes[*].rbd.secretRef", "secrets"),
    ("spec.volumes[*].scaleIO.secretRef", "secrets"),
    ("spec.volumes[*].iscsi.secretRef", "secrets"),
    ("spec.volumes[*].storageos.secretRef", "secrets"),
    ("spec.volumes[*].csi.nodePublishSecretRef", "secrets"),
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

/// The ConfigMaps and Secrets that a pod refers to.
pub(super) fn of(pod: &Pod) -> Vec<Reference> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut found = Found { namespace: pod.metadata.namespace.as_deref().unwrap_or_default(), references: Vec::new() };
    for (index, init) in spec.init_containers.iter().flatten().enumerate() {
        found.container(&format!("spec.initContainers[{index}]"), init);
    }
    for (index, app) in spec.containers.iter().enumerate() {
        found.container(&format!("spec.containers[{index}]"), app);
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        found.volume(index, volume);
    }
    found.references
}

/// Where the fields that refer to objects stand in the pod's document.
pub(super) fn places(pod: &Pod, document: &Node) -> BTreeMap<String, (u32, u32)> {
    let mut places = BTreeMap::new();
    for reference in of(pod) {
        let keys = (0..reference.keys.len()).map(|index| reference.key_field(index));
        for field in keys.chain([reference.name_field()]) {
            let place = document.find(&field);
            places.insert(field, (place.line, place.column));
        }
    }
    places
}

struct Found<'p> {
    namespace: &'p str,
    references: Vec<Reference>,
}

impl Found<'_> {
    fn add(
        &mut self,
        field: String,
        usage: Use,
        kind: ObjectKind,
        name: &str,
        optional: Option<bool>,
    ) -> &mut Reference {
        let object = ObjectId { kind, namespace: self.namespace.to_owned(), name: name.to_owned() };
        let optional = optional.unwrap_or(false);
        let index = self.references.len();
        self.references.push(Reference { field, usage, object, keys: Vec::new(), optional });
        &mut self.references[index]
    }

    fn container(&mut self, path: &str, container: &Container) {
        for (index, source) in container.env_from.iter().flatten().enumerate() {
            self.variables(&format!("{path}.envFrom[{index}]"), source);
        }
        for (index, variable) in container.env.iter().flatten().enumerate() {
            self.variable(&format!("{path}.env[{index}].valueFrom"), variable);
        }
    }

    fn variables(&mut self, path: &str, source: &EnvFromSource) {
        if let Some(map) = &source.config_map_ref {
            let field = format!("{path}.configMapRef");
            self.add(field, Use::Variables, ObjectKind::ConfigMap, &map.name, map.optional);
        }
        if let Some(secret) = &source.secret_ref {
            let field = format!("{path}.secretRef");
            self.add(field, Use::Variables, ObjectKind::Secret, &secret.name, secret.optional);
        }
    }

    fn variable(&mut self, path: &str, variable: &EnvVar) {
        let Some(source) = &variable.value_from else { return };
        if let Some(selector) = &source.config_map_key_ref {
            let field = format!("{path}.configMapKeyRef");
            let found = self.add(field, Use::Variable, ObjectKind::ConfigMap, &selector.name, selector.optional);
            found.keys.push(selector.key.clone());
        }
        if let Some(selector) = &source.secret_key_ref {
            let field = format!("{path}.secretKeyRef");
            let found = self.add(field, Use::Variable, ObjectKind::Secret, &selector.name, selector.optional);
            found.keys.push(selector.key.clone());
        }
    }

    fn volume(&mut self, index: usize, volume: &Volume) {
        let path = format!("spec.volumes[{index}]");
        if let Some(source) = &volume.config_map {
            let field = format!("{path}.configMap");
            let found = self.add(field, Use::Volume, ObjectKind::ConfigMap, &source.name, source.optional);
            found.keys = keys(source.items.as_deref());
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let found = self.add(format!("{path}.secret"), Use::Volume, ObjectKind::Secret, name, source.optional);
            found.keys = keys(source.items.as_deref());
        }
        let sources = volume.projected.iter().filter_map(|source| source.sources.as_ref()).flatten();
        for (index, projection) in sources.enumerate() {
            self.projection(&format!("{path}.projected.sources[{index}]"), projection);
        }
    }

    fn projection(&mut self, path: &str, projection: &VolumeProjection) {
        if let Some(source) = &projection.config_map {
            let field = format!("{path}.configMap");
            let found = self.add(field, Use::Projection, ObjectKind::ConfigMap, &source.name, source.optional);
            found.keys = keys(source.items.as_deref());
        }
        if let Some(source) = &projection.secret {
            let field = format!("{path}.secret");
            let found = self.add(field, Use::Projection, ObjectKind::Secret, &source.name, source.optional);
            found.keys = keys(source.items.as_deref());
        }
    }
}

fn keys(items: Option<&[KeyToPath]>) -> Vec<String> {
    items.into_iter().flatten().map(|item| item.key.clone()).collect()
}
