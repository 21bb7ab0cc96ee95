use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn node() -> Node {
    serde_json::from_value(json!({ "metadata": { "name": "edge", "uid": "node-uid" } })).unwrap()
}

fn copied(pod: Value, class: bool) -> Value {
    let pod: Pod = serde_json::from_value(pod).unwrap();
    serde_json::to_value(copy(&pod, &node(), Timestamp::UNIX_EPOCH, class).unwrap()).unwrap()
}

fn web(spec: Value) -> Value {
    json!({
        "metadata": {
            "name": "web-edge", "namespace": "shop", "uid": "abc", "resourceVersion": "7",
            "creationTimestamp": "2026-11-22T10:00:00Z", "deletionGracePeriodSeconds": 3,
            "labels": { "app": "web" },
            "annotations": { "kubernetes.io/config.hash": "abc", "kubernetes.io/config.source": "file", "who": "me" },
        },
        "spec": spec,
        "status": { "phase": "Running" },
    })
}

#[test]
fn a_mirror_pod_is_the_pod_with_its_hash_and_its_owner() {
    let mirror = copied(web(json!({ "containers": [{ "name": "a", "image": "i" }], "priority": 7 })), true);
    assert_eq!(
        mirror,
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web-edge", "namespace": "shop", "labels": { "app": "web" },
                "annotations": {
                    "kubernetes.io/config.hash": "abc", "kubernetes.io/config.mirror": "abc",
                    "kubernetes.io/config.seen": "2026-11-22T10:00:00Z", "kubernetes.io/config.source": "file",
                    "who": "me",
                },
                "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Node", "name": "edge", "uid": "node-uid", "controller": true }
                ],
            },
            "spec": { "containers": [{ "name": "a", "image": "i" }], "nodeName": "edge" },
        })
    );
}

#[test]
fn what_is_the_nodes_own_is_named_and_never_shown() {
    let spec = json!({
        "serviceAccountName": "robot",
        "imagePullSecrets": [{ "name": "login" }],
        "priorityClassName": "mine",
        "initContainers": [{ "name": "i", "envFrom": [{ "configMapRef": { "name": "all" } }, { "secretRef": { "name": "s" } }] }],
        "containers": [{
            "name": "a",
            "env": [
                { "name": "PLAIN", "value": "1" },
                { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                { "name": "LEVEL", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "level" } } },
                { "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "db", "key": "pw" } } },
            ],
            "volumeMounts": [{ "name": "c", "mountPath": "/c" }],
        }],
        "volumes": [
            { "name": "c", "configMap": { "name": "settings", "items": [{ "key": "level", "path": "l" }] } },
            { "name": "s", "secret": { "secretName": "tls" } },
            { "name": "h", "hostPath": { "path": "/srv" } },
            { "name": "p", "projected": { "sources": [
                { "secret": { "name": "tls" } }, { "downwardAPI": { "items": [] } }, { "configMap": { "name": "more" } }
            ] } },
            { "name": "q", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } },
            { "name": "d", "persistentVolumeClaim": { "claimName": "data" } },
        ],
    });
    let mirror = copied(web(spec), false);
    assert_eq!(
        mirror["metadata"]["annotations"][LOCAL],
        "configmaps/all, configmaps/more, configmaps/settings, persistentvolumeclaims/data, priorityclasses/mine, \
         secrets/db, secrets/login, secrets/s, secrets/tls, serviceaccounts/robot, serviceaccounts/token"
    );
    assert_eq!(
        mirror["spec"],
        json!({
            "nodeName": "edge",
            "initContainers": [{ "name": "i" }],
            "containers": [{
                "name": "a",
                "env": [
                    { "name": "PLAIN", "value": "1" },
                    { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                    { "name": "LEVEL", "value": "(key level of ConfigMap settings)" },
                    { "name": "PASSWORD", "value": "(key pw of Secret db)" },
                ],
                "volumeMounts": [{ "name": "c", "mountPath": "/c" }],
            }],
            "volumes": [
                { "name": "c", "emptyDir": {} },
                { "name": "s", "emptyDir": {} },
                { "name": "h", "hostPath": { "path": "/srv" } },
                { "name": "p", "projected": { "sources": [{ "downwardAPI": { "items": [] } }] } },
                { "name": "q", "emptyDir": {} },
                { "name": "d", "emptyDir": {} },
            ],
        })
    );
}

#[test]
fn without_a_node_there_is_no_mirror() {
    let pod: Pod = serde_json::from_value(web(json!({ "containers": [] }))).unwrap();
    assert!(copy(&pod, &Node::default(), Timestamp::UNIX_EPOCH, true).is_none());
}

/// One way of naming an object of the API, as a volume, a variable or a source of them.
fn reference() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({ "volume": { "name": "v", "configMap": { "name": "hidden" } } })),
        Just(json!({ "volume": { "name": "v", "secret": { "secretName": "hidden" } } })),
        Just(json!({ "volume": { "name": "v", "csi": { "driver": "hidden" } } })),
        Just(json!({ "volume": { "name": "v", "ephemeral": {} } })),
        Just(json!({ "volume": { "name": "v", "iscsi": { "targetPortal": "", "iqn": "", "lun": 1 } } })),
        Just(json!({ "volume": { "name": "v", "azureFile": { "secretName": "hidden", "shareName": "" } } })),
        Just(json!({ "volume": { "name": "v", "projected": { "sources": [{ "secret": { "name": "hidden" } }] } } })),
        Just(json!({ "volume": { "name": "v", "projected": { "sources":
            [{ "clusterTrustBundle": { "path": "p", "name": "hidden" } }] } } })),
        Just(json!({ "env": { "name": "E", "valueFrom": { "secretKeyRef": { "name": "hidden", "key": "k" } } } })),
        Just(json!({ "env": { "name": "E", "valueFrom": { "configMapKeyRef": { "name": "hidden", "key": "k" } } } })),
        Just(json!({ "envFrom": { "secretRef": { "name": "hidden" } } })),
    ]
}

proptest! {
    /// `NodeRestriction` refuses a mirror pod for a single one of them.
    #[test]
    fn no_reference_is_left(references in proptest::collection::vec(reference(), 0..8), init: bool) {
        let all = |kind: &str| -> Vec<Value> { references.iter().filter_map(|r| r.get(kind).cloned()).collect() };
        let container = json!({ "name": "a", "env": all("env"), "envFrom": all("envFrom") });
        let which = if init { "initContainers" } else { "containers" };
        let mut spec = json!({ "containers": [], "volumes": all("volume") });
        spec[which] = json!([container]);
        let mirror = copied(web(spec), true);
        let text = mirror["spec"].to_string();
        for word in ["KeyRef", "secretRef", "configMap\"", "secret\"", "csi", "ephemeral", "iscsi", "azureFile", "projected"] {
            prop_assert!(!text.contains(word), "{} in {}", word, text);
        }
        prop_assert_eq!(mirror["spec"]["volumes"].as_array().map_or(0, Vec::len), all("volume").len());
    }
}
