//! The pods of published DaemonSets: what they need a cluster for is all that is refused, and the objects that they refer to
//! are all that is missing.

use super::object_tests::serving;
use super::tree::{self, Node};
use super::{Loaded, Objects, Origin, Problem, Severity, load, unresolved};
use expect_test::{Expect, expect};
use serde_json::Value;

macro_rules! daemonset {
    ($name:literal, $expected:expr) => {
        check($name, include_str!(concat!("../../tests/corpus/daemonsets/", $name, ".yaml")), $expected)
    };
}

/// Compares the refused fields and their reasons, and the objects that are missing once the refused fields are gone. With
/// these objects nothing keeps the pod from running.
fn check(name: &str, text: &str, expected: &Expect) {
    let refused = read(text);
    for problem in &refused.problems {
        assert_eq!(problem.severity, Severity::Error, "{name}: {problem}");
        let cluster = problem.reason.starts_with("static pods may not reference")
            || problem.reason.contains("no service account");
        assert!(cluster, "{name}: {problem}");
    }
    let mut document = json(&tree::parse(text.as_bytes()).unwrap()[0]);
    for problem in &refused.problems {
        remove(&mut document, &problem.field);
    }
    let rest = read(&document.to_string());
    assert_eq!(rest.problems, [], "{name}");
    let [pod] = &rest.pods[..] else { panic!("{name}: {} pods", rest.pods.len()) };
    let missing = unresolved(pod, &Objects::default());
    let told = |title: &str, problems: &[Problem]| {
        let line = |problem: &Problem| {
            let (reason, _) = problem.reason.split_once(';').unwrap_or((&problem.reason, ""));
            format!("{title}: {}: {reason}\n", problem.field)
        };
        problems.iter().map(line).collect::<String>()
    };
    expected.assert_eq(&format!("{}{}", told("refused", &refused.problems), told("missing", &missing)));
    assert_eq!(unresolved(pod, &serving(pod)), [], "{name}");
}

fn read(text: &str) -> Loaded {
    load(text.as_bytes(), Origin::File("/m.yaml"), "edge")
}

pub(super) fn json(node: &Node) -> Value {
    match &node.value {
        tree::Value::Null => Value::Null,
        tree::Value::Bool(value) => (*value).into(),
        tree::Value::Integer(value) => i64::try_from(*value).unwrap().into(),
        tree::Value::Float(value) => (*value).into(),
        tree::Value::String(text) => text.as_str().into(),
        tree::Value::List(items) => items.iter().map(json).collect(),
        tree::Value::Map(entries) => entries.iter().map(|entry| (entry.key.clone(), json(&entry.node))).collect(),
    }
}

/// Takes a field out of a document; with the last one of a list's item the item goes, too.
fn remove(document: &mut Value, field: &str) {
    let pointer = format!("/{}", field.replace(['.', '['], "/").replace(']', ""));
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let object = document.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
    object.remove(name).unwrap();
    if object.is_empty() {
        let (list, index) = parent.rsplit_once('/').unwrap();
        document.pointer_mut(list).and_then(Value::as_array_mut).unwrap().remove(index.parse().unwrap());
    }
}

#[test]
fn kube_proxy() {
    daemonset!(
        "kube-proxy",
        &expect![[r#"
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
            missing: spec.volumes[0].configMap.name: Not found: "kube-proxy": no source defines ConfigMap kube-system/kube-proxy
        "#]]
    );
}

#[test]
fn calico_node() {
    daemonset!(
        "calico-node",
        &expect![[r#"
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
            missing: spec.initContainers[0].env[1].valueFrom.configMapKeyRef.name: Not found: "calico-config": no source defines ConfigMap kube-system/calico-config
            missing: spec.initContainers[1].env[1].valueFrom.configMapKeyRef.name: Not found: "calico-config": no source defines ConfigMap kube-system/calico-config
            missing: spec.containers[0].env[3].valueFrom.configMapKeyRef.name: Not found: "calico-config": no source defines ConfigMap kube-system/calico-config
        "#]]
    );
}

#[test]
fn cilium() {
    daemonset!(
        "cilium",
        &expect![[r#"
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
            refused: spec.automountServiceAccountToken: a static pod has no service account whose token could be mounted
        "#]]
    );
}

#[test]
fn flannel() {
    daemonset!(
        "flannel",
        &expect![[r#"
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
            missing: spec.volumes[3].configMap.name: Not found: "kube-flannel-cfg": no source defines ConfigMap kube-flannel/kube-flannel-cfg
        "#]]
    );
}

#[test]
fn node_exporter() {
    daemonset!(
        "node-exporter",
        &expect![[r#"
            refused: spec.automountServiceAccountToken: a static pod has no service account whose token could be mounted
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
        "#]]
    );
}

#[test]
fn fluentd() {
    daemonset!(
        "fluentd",
        &expect![[r#"
            refused: spec.serviceAccount: static pods may not reference serviceaccounts
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
        "#]]
    );
}

#[test]
fn fluent_bit() {
    daemonset!(
        "fluent-bit",
        &expect![[r#"
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
            missing: spec.volumes[0].configMap.name: Not found: "fluent-bit": no source defines ConfigMap logging/fluent-bit
        "#]]
    );
}

#[test]
fn filebeat() {
    daemonset!(
        "filebeat",
        &expect![[r#"
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
            missing: spec.volumes[0].configMap.name: Not found: "filebeat-config": no source defines ConfigMap kube-system/filebeat-config
        "#]]
    );
}

#[test]
fn datadog_agent() {
    daemonset!(
        "datadog-agent",
        &expect![[r#"
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
            refused: spec.automountServiceAccountToken: a static pod has no service account whose token could be mounted
            missing: spec.initContainers[1].env[0].valueFrom.secretKeyRef.name: Not found: "datadog": no source defines Secret default/datadog
            missing: spec.containers[0].env[0].valueFrom.secretKeyRef.name: Not found: "datadog": no source defines Secret default/datadog
            missing: spec.containers[0].env[2].valueFrom.secretKeyRef.name: Not found: "datadog-cluster-agent": no source defines Secret default/datadog-cluster-agent
            missing: spec.volumes[3].configMap.name: Not found: "datadog-installinfo": no source defines ConfigMap default/datadog-installinfo
            missing: spec.volumes[4].configMap.name: Not found: "datadog-security": no source defines ConfigMap default/datadog-security
        "#]]
    );
}

#[test]
fn csi_hostpath_with_registrar() {
    daemonset!(
        "csi-hostpath",
        &expect![[r#"
        refused: spec.serviceAccountName: static pods may not reference serviceaccounts
    "#]]
    );
}

#[test]
fn glusterd() {
    daemonset!("glusterd", &expect![[""]]);
}

#[test]
fn ceph_csi() {
    daemonset!(
        "ceph-csi",
        &expect![[r#"
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
            refused: spec.volumes[10].projected.sources[0].serviceAccountToken: static pods may not reference serviceaccounts (via projected volumes)
            missing: spec.volumes[7].projected.sources[0].configMap.name: Not found: "rook-ceph-csi-config": no source defines ConfigMap rook-ceph/rook-ceph-csi-config
            missing: spec.volumes[7].projected.sources[1].configMap.name: Not found: "rook-ceph-csi-mapping-config": no source defines ConfigMap rook-ceph/rook-ceph-csi-mapping-config
        "#]]
    );
}

#[test]
fn ceph_osd() {
    daemonset!(
        "ceph-osd",
        &expect![[r#"
            refused: spec.serviceAccountName: static pods may not reference serviceaccounts
            missing: spec.initContainers[0].env[1].valueFrom.secretKeyRef.name: Not found: "rook-ceph-config": no source defines Secret rook-ceph/rook-ceph-config
            missing: spec.volumes[5].projected.sources[0].configMap.name: Not found: "rook-config-override": no source defines ConfigMap rook-ceph/rook-config-override
        "#]]
    );
}
