//! The pods of published DaemonSets: what they need a cluster for is all that is refused.

use super::{Origin, Severity, load};
use expect_test::{Expect, expect};

macro_rules! daemonset {
    ($name:literal, $expected:expr) => {
        check($name, include_str!(concat!("../../tests/corpus/daemonsets/", $name, ".yaml")), $expected)
    };
}

/// Compares the refused fields and their reasons; there may be no warning.
fn check(name: &str, text: &str, expected: &Expect) {
    let loaded = load(text.as_bytes(), Origin::File("/m.yaml"), "edge");
    let warned: Vec<_> = loaded.problems.iter().filter(|problem| problem.severity == Severity::Warning).collect();
    assert!(warned.is_empty(), "{name}: {warned:?}");
    let refused: String =
        loaded.problems.iter().map(|problem| format!("{}: {}\n", problem.field, problem.reason)).collect();
    expected.assert_eq(&refused);
    for problem in &loaded.problems {
        let cluster = problem.reason.starts_with("static pods may not reference")
            || problem.reason.contains("no service account");
        assert!(cluster, "{name}: {problem}");
    }
}

#[test]
fn kube_proxy() {
    daemonset!(
        "kube-proxy",
        &expect![[r#"
        spec.serviceAccountName: static pods may not reference serviceaccounts
        spec.volumes[0].configMap: static pods may not reference configmaps
    "#]]
    );
}

#[test]
fn calico_node() {
    daemonset!(
        "calico-node",
        &expect![[r#"
        spec.serviceAccountName: static pods may not reference serviceaccounts
        spec.initContainers[0].envFrom[0].configMapRef: static pods may not reference configmaps
        spec.initContainers[0].env[1].valueFrom.configMapKeyRef: static pods may not reference configmaps
        spec.initContainers[1].envFrom[0].configMapRef: static pods may not reference configmaps
        spec.initContainers[1].env[1].valueFrom.configMapKeyRef: static pods may not reference configmaps
        spec.containers[0].envFrom[0].configMapRef: static pods may not reference configmaps
        spec.containers[0].env[3].valueFrom.configMapKeyRef: static pods may not reference configmaps
    "#]]
    );
}

#[test]
fn cilium() {
    daemonset!(
        "cilium",
        &expect![[r#"
        spec.serviceAccountName: static pods may not reference serviceaccounts
        spec.automountServiceAccountToken: a static pod has no service account whose token could be mounted
        spec.initContainers[3].env[0].valueFrom.configMapKeyRef: static pods may not reference configmaps
        spec.volumes[11].projected.sources[0].secret: static pods may not reference secrets
        spec.volumes[11].projected.sources[1].secret: static pods may not reference secrets
        spec.volumes[14].projected.sources[0].secret: static pods may not reference secrets
    "#]]
    );
}

#[test]
fn flannel() {
    daemonset!(
        "flannel",
        &expect![[r#"
        spec.serviceAccountName: static pods may not reference serviceaccounts
        spec.volumes[3].configMap: static pods may not reference configmaps
    "#]]
    );
}

#[test]
fn node_exporter() {
    daemonset!(
        "node-exporter",
        &expect![[r#"
        spec.automountServiceAccountToken: a static pod has no service account whose token could be mounted
        spec.serviceAccountName: static pods may not reference serviceaccounts
    "#]]
    );
}

#[test]
fn fluentd() {
    daemonset!(
        "fluentd",
        &expect![[r#"
        spec.serviceAccount: static pods may not reference serviceaccounts
        spec.serviceAccountName: static pods may not reference serviceaccounts
    "#]]
    );
}

#[test]
fn fluent_bit() {
    daemonset!(
        "fluent-bit",
        &expect![[r#"
        spec.serviceAccountName: static pods may not reference serviceaccounts
        spec.volumes[0].configMap: static pods may not reference configmaps
    "#]]
    );
}

#[test]
fn filebeat() {
    daemonset!(
        "filebeat",
        &expect![[r#"
        spec.serviceAccountName: static pods may not reference serviceaccounts
        spec.volumes[0].configMap: static pods may not reference configmaps
    "#]]
    );
}

#[test]
fn datadog_agent() {
    daemonset!(
        "datadog-agent",
        &expect![[r#"
        spec.serviceAccountName: static pods may not reference serviceaccounts
        spec.automountServiceAccountToken: a static pod has no service account whose token could be mounted
        spec.initContainers[1].env[0].valueFrom.secretKeyRef: static pods may not reference secrets
        spec.containers[0].env[0].valueFrom.secretKeyRef: static pods may not reference secrets
        spec.containers[0].env[2].valueFrom.secretKeyRef: static pods may not reference secrets
        spec.volumes[3].configMap: static pods may not reference configmaps
        spec.volumes[4].configMap: static pods may not reference configmaps
    "#]]
    );
}

#[test]
fn csi_hostpath_with_registrar() {
    daemonset!(
        "csi-hostpath",
        &expect![[r#"
        spec.serviceAccountName: static pods may not reference serviceaccounts
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
        spec.serviceAccountName: static pods may not reference serviceaccounts
        spec.volumes[7].projected.sources[0].configMap: static pods may not reference configmaps
        spec.volumes[7].projected.sources[1].configMap: static pods may not reference configmaps
        spec.volumes[10].projected.sources[0].serviceAccountToken: static pods may not reference serviceaccounts (via projected volumes)
    "#]]
    );
}

#[test]
fn ceph_osd() {
    daemonset!(
        "ceph-osd",
        &expect![[r#"
        spec.serviceAccountName: static pods may not reference serviceaccounts
        spec.initContainers[0].env[1].valueFrom.secretKeyRef: static pods may not reference secrets
        spec.containers[0].envFrom[0].configMapRef: static pods may not reference configmaps
        spec.volumes[5].projected.sources[0].configMap: static pods may not reference configmaps
    "#]]
    );
}
