//! What of a PodSpec works, in one table: everything else refuses the pod, or is ignored with a warning.
//!
//! A test compares the table with the fields that the API's types have, so that no field, new ones included, can be
//! ignored in silence. Whoever implements a field changes its row.

use super::pattern;
use super::report::Report;
use super::tree::{Node, Value};
use Support::{Ignored, Refused, Works};
use When::{False, KeyOtherThan, OtherThan, Present, Set, True};

/// What happens to a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Done, or without effect on a node alone (scheduling).
    Works,
    /// A manifest with it runs, as if it were not there; the reason goes into a warning.
    Ignored(When, &'static str),
    /// A manifest with it is refused, for this reason.
    Refused(When, &'static str),
}

/// When a field counts as set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Neither null nor empty.
    Set,
    /// Not null: an empty object chooses it too.
    Present,
    /// `true`.
    True,
    /// `false`.
    False,
    /// A string that is not one of these.
    OtherThan(&'static [&'static str]),
    /// A map with keys besides these.
    KeyOtherThan(&'static [&'static str]),
}

const NOT_YET: &str = "is not implemented yet";
const NO_VOLUME: &str = "this type of volume is not implemented yet";
const PROBE: &str = "probes are not implemented yet: ignored";
const NO_ACCOUNT: &str = "a static pod has no service account whose token could be mounted";
const NO_RESOURCE: &str = "this resource is not implemented yet";
const AMOUNTS: &[&str] = &["cpu", "memory", "ephemeral-storage"];
const NOT_ENFORCED: &str = "a limit of ephemeral storage is not enforced";

const NOT_CHECKED: &str = "is not checked against this node yet: the pod runs in any case";

/// Every field of a PodSpec (a field inside a refused one needs no row of its own). `[*]` is any index.
pub const TABLE: &[(&str, Support)] = &[
    // Pod
    ("spec.activeDeadlineSeconds", Refused(Set, NOT_YET)),
    ("spec.affinity", Ignored(Set, NOT_CHECKED)),
    ("spec.automountServiceAccountToken", Refused(True, NO_ACCOUNT)),
    ("spec.containers", Works),
    ("spec.dnsConfig", Works),
    ("spec.dnsConfig.nameservers", Works),
    ("spec.dnsConfig.options", Works),
    ("spec.dnsConfig.searches", Works),
    ("spec.dnsPolicy", Works),
    ("spec.enableServiceLinks", Works),
    ("spec.ephemeralContainers", Refused(Set, "Forbidden: cannot be set on create")),
    ("spec.hostAliases", Works),
    ("spec.hostAliases[*].hostnames", Works),
    ("spec.hostAliases[*].ip", Works),
    ("spec.hostIPC", Refused(True, NOT_YET)),
    ("spec.hostNetwork", Works),
    ("spec.hostPID", Refused(True, NOT_YET)),
    ("spec.hostUsers", Works),
    ("spec.hostname", Works),
    ("spec.hostnameOverride", Refused(Set, NOT_YET)),
    ("spec.imagePullSecrets", Refused(Set, NOT_YET)),
    ("spec.initContainers", Refused(Set, NOT_YET)),
    ("spec.nodeName", Works),
    ("spec.nodeSelector", Ignored(Set, NOT_CHECKED)),
    ("spec.os", Works),
    ("spec.os.name", Refused(OtherThan(&["", "linux"]), "this node runs linux")),
    ("spec.overhead", Refused(Set, NOT_YET)),
    ("spec.preemptionPolicy", Works),
    ("spec.priority", Works),
    ("spec.priorityClassName", Works),
    ("spec.readinessGates", Refused(Set, NOT_YET)),
    ("spec.resourceClaims", Refused(Set, NOT_YET)),
    ("spec.resources", Refused(Set, NOT_YET)),
    ("spec.restartPolicy", Works),
    ("spec.runtimeClassName", Refused(Set, NOT_YET)),
    ("spec.schedulerName", Works),
    ("spec.schedulingGates", Refused(Set, "Forbidden: a static pod is never scheduled")),
    ("spec.schedulingGroup", Refused(Set, "Forbidden: a static pod is never scheduled")),
    ("spec.securityContext", Works),
    ("spec.serviceAccount", Refused(Set, NOT_YET)),
    ("spec.serviceAccountName", Refused(Set, NOT_YET)),
    ("spec.setHostnameAsFQDN", Refused(True, NOT_YET)),
    ("spec.shareProcessNamespace", Refused(True, NOT_YET)),
    ("spec.subdomain", Refused(Set, NOT_YET)),
    ("spec.terminationGracePeriodSeconds", Works),
    ("spec.tolerations", Works),
    ("spec.topologySpreadConstraints", Works),
    ("spec.volumes", Works),
    // Pod security context
    ("spec.securityContext.appArmorProfile", Refused(Set, NOT_YET)),
    ("spec.securityContext.fsGroup", Refused(Set, NOT_YET)),
    ("spec.securityContext.fsGroupChangePolicy", Refused(Set, NOT_YET)),
    ("spec.securityContext.runAsGroup", Works),
    ("spec.securityContext.runAsNonRoot", Works),
    ("spec.securityContext.runAsUser", Works),
    ("spec.securityContext.seLinuxChangePolicy", Refused(Set, NOT_YET)),
    ("spec.securityContext.seLinuxOptions", Refused(Set, NOT_YET)),
    ("spec.securityContext.seccompProfile", Works),
    ("spec.securityContext.seccompProfile.localhostProfile", Refused(Set, NOT_YET)),
    ("spec.securityContext.seccompProfile.type", Refused(OtherThan(&["", "RuntimeDefault", "Unconfined"]), NOT_YET)),
    ("spec.securityContext.supplementalGroups", Works),
    ("spec.securityContext.supplementalGroupsPolicy", Refused(OtherThan(&["", "Merge"]), NOT_YET)),
    ("spec.securityContext.sysctls", Refused(Set, NOT_YET)),
    ("spec.securityContext.windowsOptions", Refused(Set, "this node runs linux")),
    // Containers
    ("spec.containers[*].args", Works),
    ("spec.containers[*].command", Works),
    ("spec.containers[*].env", Works),
    ("spec.containers[*].env[*].name", Works),
    ("spec.containers[*].env[*].value", Works),
    ("spec.containers[*].env[*].valueFrom", Works),
    ("spec.containers[*].env[*].valueFrom.configMapKeyRef", Refused(Set, NOT_YET)),
    ("spec.containers[*].env[*].valueFrom.fieldRef", Works),
    ("spec.containers[*].env[*].valueFrom.fileKeyRef", Refused(Set, NOT_YET)),
    ("spec.containers[*].env[*].valueFrom.resourceFieldRef", Works),
    ("spec.containers[*].env[*].valueFrom.secretKeyRef", Refused(Set, NOT_YET)),
    ("spec.containers[*].envFrom", Refused(Set, NOT_YET)),
    ("spec.containers[*].image", Works),
    ("spec.containers[*].imagePullPolicy", Works),
    ("spec.containers[*].lifecycle", Refused(Set, NOT_YET)),
    ("spec.containers[*].livenessProbe", Ignored(Set, PROBE)),
    ("spec.containers[*].name", Works),
    ("spec.containers[*].ports", Works),
    ("spec.containers[*].ports[*].containerPort", Works),
    ("spec.containers[*].ports[*].hostIP", Works),
    ("spec.containers[*].ports[*].hostPort", Works),
    ("spec.containers[*].ports[*].name", Works),
    (
        "spec.containers[*].ports[*].protocol",
        Refused(OtherThan(&["", "TCP", "UDP"]), "this protocol is not implemented yet"),
    ),
    ("spec.containers[*].readinessProbe", Ignored(Set, PROBE)),
    ("spec.containers[*].resizePolicy", Refused(Set, NOT_YET)),
    ("spec.containers[*].resources", Works),
    ("spec.containers[*].resources.claims", Refused(Set, NOT_YET)),
    ("spec.containers[*].resources.limits", Refused(KeyOtherThan(AMOUNTS), NO_RESOURCE)),
    ("spec.containers[*].resources.limits.ephemeral-storage", Ignored(Set, NOT_ENFORCED)),
    ("spec.containers[*].resources.requests", Refused(KeyOtherThan(AMOUNTS), NO_RESOURCE)),
    ("spec.containers[*].restartPolicy", Refused(Set, NOT_YET)),
    ("spec.containers[*].restartPolicyRules", Refused(Set, NOT_YET)),
    ("spec.containers[*].securityContext", Works),
    ("spec.containers[*].startupProbe", Ignored(Set, PROBE)),
    ("spec.containers[*].stdin", Works),
    ("spec.containers[*].stdinOnce", Works),
    ("spec.containers[*].terminationMessagePath", Works),
    ("spec.containers[*].terminationMessagePolicy", Refused(OtherThan(&["", "File"]), NOT_YET)),
    ("spec.containers[*].tty", Works),
    ("spec.containers[*].volumeDevices", Refused(Set, NOT_YET)),
    ("spec.containers[*].volumeMounts", Works),
    ("spec.containers[*].volumeMounts[*].mountPath", Works),
    ("spec.containers[*].volumeMounts[*].mountPropagation", Refused(OtherThan(&["", "None"]), NOT_YET)),
    ("spec.containers[*].volumeMounts[*].name", Works),
    ("spec.containers[*].volumeMounts[*].readOnly", Works),
    ("spec.containers[*].volumeMounts[*].recursiveReadOnly", Refused(OtherThan(&["", "Disabled"]), NOT_YET)),
    ("spec.containers[*].volumeMounts[*].subPath", Refused(Set, NOT_YET)),
    ("spec.containers[*].volumeMounts[*].subPathExpr", Refused(Set, NOT_YET)),
    ("spec.containers[*].workingDir", Works),
    // Container security context
    ("spec.containers[*].securityContext.allowPrivilegeEscalation", Works),
    ("spec.containers[*].securityContext.appArmorProfile", Refused(Set, NOT_YET)),
    ("spec.containers[*].securityContext.capabilities", Works),
    ("spec.containers[*].securityContext.capabilities.add", Works),
    ("spec.containers[*].securityContext.capabilities.drop", Works),
    ("spec.containers[*].securityContext.privileged", Works),
    ("spec.containers[*].securityContext.procMount", Works),
    ("spec.containers[*].securityContext.readOnlyRootFilesystem", Works),
    ("spec.containers[*].securityContext.runAsGroup", Works),
    ("spec.containers[*].securityContext.runAsNonRoot", Works),
    ("spec.containers[*].securityContext.runAsUser", Works),
    ("spec.containers[*].securityContext.seLinuxOptions", Refused(Set, NOT_YET)),
    ("spec.containers[*].securityContext.seccompProfile", Works),
    ("spec.containers[*].securityContext.seccompProfile.localhostProfile", Refused(Set, NOT_YET)),
    (
        "spec.containers[*].securityContext.seccompProfile.type",
        Refused(OtherThan(&["", "RuntimeDefault", "Unconfined"]), NOT_YET),
    ),
    ("spec.containers[*].securityContext.windowsOptions", Refused(Set, "this node runs linux")),
    // Volumes
    ("spec.volumes[*].awsElasticBlockStore", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].azureDisk", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].azureFile", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].cephfs", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].cinder", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].configMap", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].csi", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].downwardAPI", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].emptyDir", Works),
    ("spec.volumes[*].emptyDir.medium", Refused(OtherThan(&["", "Memory"]), "this medium is not implemented yet")),
    ("spec.volumes[*].emptyDir.sizeLimit", Works),
    ("spec.volumes[*].ephemeral", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].fc", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].flexVolume", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].flocker", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].gcePersistentDisk", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].gitRepo", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].glusterfs", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].hostPath", Works),
    ("spec.volumes[*].hostPath.path", Works),
    ("spec.volumes[*].hostPath.type", Works),
    ("spec.volumes[*].image", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].iscsi", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].name", Works),
    ("spec.volumes[*].nfs", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].persistentVolumeClaim", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].photonPersistentDisk", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].portworxVolume", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].projected", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].quobyte", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].rbd", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].scaleIO", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].secret", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].storageos", Refused(Present, NO_VOLUME)),
    ("spec.volumes[*].vsphereVolume", Refused(Present, NO_VOLUME)),
];

/// Reports every field of the document that the table refuses or ignores.
pub(super) fn check(document: &Node, report: &mut Report<'_>) {
    for (field, support) in TABLE {
        let (when, reason, refused) = match *support {
            Works => continue,
            Ignored(when, reason) => (when, reason, false),
            Refused(when, reason) => (when, reason, true),
        };
        for (path, node) in pattern::matches(document, field) {
            for path in set(when, path, node) {
                // What is wrong with it in any case is the better answer.
                if report.has_error(&path) {
                    continue;
                }
                match refused {
                    true => report.error(path, reason),
                    false => report.warning(path, reason),
                }
            }
        }
    }
}

/// The paths that count as set: the field's own, or those of its keys.
fn set(when: When, path: String, node: &Node) -> Vec<String> {
    let own = |set: bool, path: String| if set { vec![path] } else { Vec::new() };
    match (when, &node.value) {
        (Set, value) => own(!value.is_empty(), path),
        (Present, value) => own(*value != Value::Null, path),
        (True, value) => own(*value == Value::Bool(true), path),
        (False, value) => own(*value == Value::Bool(false), path),
        (OtherThan(values), Value::String(text)) => own(!values.contains(&text.as_str()), path),
        (KeyOtherThan(keys), Value::Map(entries)) => {
            let others = entries.iter().filter(|entry| !keys.contains(&entry.key.as_str()));
            others.map(|entry| format!("{path}[{}]", entry.key)).collect()
        }
        (OtherThan(_) | KeyOtherThan(_), _) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1 as api;
    use serde::de::{self, Deserialize, Deserializer, Visitor};
    use std::collections::BTreeSet;

    /// Asks a type for its fields: a deserializer that fails with them.
    #[derive(Debug)]
    struct Fields(&'static [&'static str]);

    impl std::fmt::Display for Fields {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{:?}", self.0)
        }
    }

    impl std::error::Error for Fields {}

    impl de::Error for Fields {
        fn custom<T: std::fmt::Display>(_: T) -> Fields {
            Fields(&[])
        }
    }

    struct Ask;

    impl<'de> Deserializer<'de> for Ask {
        type Error = Fields;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fields> {
            Err(Fields(&[]))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Fields> {
            Err(Fields(fields))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    fn fields<T: for<'de> Deserialize<'de>>(path: &str) -> Vec<String> {
        let Err(Fields(fields)) = T::deserialize(Ask) else { return Vec::new() };
        assert!(!fields.is_empty(), "{path} has no fields");
        fields.iter().map(|field| format!("{path}.{field}")).collect()
    }

    #[test]
    fn every_field_of_the_api_has_a_row_and_every_row_a_field() {
        let seccomp = "securityContext.seccompProfile";
        let mut expected = BTreeSet::new();
        expected.extend(fields::<api::PodSpec>("spec"));
        expected.extend(fields::<api::PodDNSConfig>("spec.dnsConfig"));
        expected.extend(fields::<api::HostAlias>("spec.hostAliases[*]"));
        expected.extend(fields::<api::PodOS>("spec.os"));
        expected.extend(fields::<api::PodSecurityContext>("spec.securityContext"));
        expected.extend(fields::<api::SeccompProfile>(&format!("spec.{seccomp}")));
        expected.extend(fields::<api::Container>("spec.containers[*]"));
        expected.extend(fields::<api::EnvVar>("spec.containers[*].env[*]"));
        expected.extend(fields::<api::EnvVarSource>("spec.containers[*].env[*].valueFrom"));
        expected.extend(fields::<api::ContainerPort>("spec.containers[*].ports[*]"));
        expected.extend(fields::<api::ResourceRequirements>("spec.containers[*].resources"));
        expected.extend(fields::<api::VolumeMount>("spec.containers[*].volumeMounts[*]"));
        expected.extend(fields::<api::SecurityContext>("spec.containers[*].securityContext"));
        expected.extend(fields::<api::Capabilities>("spec.containers[*].securityContext.capabilities"));
        expected.extend(fields::<api::SeccompProfile>(&format!("spec.containers[*].{seccomp}")));
        expected.extend(fields::<api::Volume>("spec.volumes[*]"));
        expected.extend(fields::<api::EmptyDirVolumeSource>("spec.volumes[*].emptyDir"));
        expected.extend(fields::<api::HostPathVolumeSource>("spec.volumes[*].hostPath"));
        expected.insert("spec.containers[*].resources.limits.ephemeral-storage".to_owned());

        let table: BTreeSet<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(table.len(), TABLE.len(), "a field has two rows");
        let missing: Vec<_> = expected.difference(&table).collect();
        let unknown: Vec<_> = table.difference(&expected).collect();
        assert!(missing.is_empty() && unknown.is_empty(), "without a row: {missing:?}; without a field: {unknown:?}");
    }
}
