//! Pods as API servers give them: what is added there passes, what this node does not do is refused with its path.

use super::{Problem, from_api, tree};
use crate::pod::{Spec, is_from_api};
use expect_test::expect;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A pod of a DaemonSet, as `kubectl get -o json` prints it before its node has said anything.
pub(crate) const DAEMON: &str = include_str!("../../tests/corpus/bound/node-exporter.json");

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

fn daemon(edit: impl FnOnce(&mut Value)) -> Pod {
    let mut value: Value = serde_json::from_str(DAEMON).unwrap();
    edit(&mut value);
    pod(value)
}

fn told(pod: &Pod) -> String {
    from_api(pod).unwrap_err().iter().map(|problem| format!("{problem}\n")).collect()
}

#[test]
fn what_an_api_server_adds_to_a_pod_passes() {
    let given = daemon(|_| ());
    let taken = from_api(&given).unwrap();
    // It keeps its name and its uid, and all that it asks for.
    assert_eq!(taken.metadata.name, given.metadata.name);
    assert_eq!(taken.metadata.uid, given.metadata.uid);
    assert_eq!(taken.metadata.owner_references, given.metadata.owner_references);
    assert_eq!(taken.metadata.generation, Some(1));
    assert_eq!(
        (&taken.status, &taken.metadata.managed_fields, &taken.metadata.resource_version),
        (&None, &None, &None)
    );
    assert_eq!(taken.spec, given.spec, "nothing is left to default");
    assert!(is_from_api(&taken) && Spec::new(taken.clone()).is_some());
    assert_eq!(from_api(&taken).unwrap(), taken, "once more changes nothing");
    let more = daemon(|pod| {
        pod["spec"]["schedulingGates"] = json!([]);
        pod["spec"]["automountServiceAccountToken"] = json!(true);
        pod["spec"]["overhead"] = json!({"cpu": "10m", "memory": "1Mi"});
        pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/ready"}]);
        pod["spec"]["hostUsers"] = json!(true);
        pod["spec"]["topologySpreadConstraints"] =
            json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]);
        for list in ["limits", "requests"] {
            pod["spec"]["containers"][0]["resources"][list]["example.com/widget"] = json!("1");
        }
        pod["spec"]["ephemeralContainers"] =
            json!([{"name": "debugger", "image": "busybox", "targetContainerName": "x"}]);
    });
    assert!(from_api(&more) == Ok(super::marked(&more)), "{:?}", from_api(&more).err());
}

#[test]
fn the_published_daemon_sets_run_as_they_are() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/daemonsets");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let document = tree::parse(&std::fs::read(&path).unwrap()).unwrap().remove(0);
        let mut value = super::corpus::json(&document);
        value["metadata"]["uid"] = json!("3f0c1f0e-7a5e-4c0e-9f43-0a4b7d1c2e55");
        value["metadata"]["namespace"] = json!("default");
        let taken = from_api(&pod(value)).unwrap_or_else(|problems| panic!("{}: {problems:?}", path.display()));
        assert!(Spec::new(taken).is_some(), "{}", path.display());
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn what_this_node_does_not_do_is_refused_with_its_path_and_a_reason() {
    let volumes = daemon(|pod| {
        let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
        volumes.extend([
            json!({"name": "a", "persistentVolumeClaim": {"claimName": "data"}}),
            json!({"name": "b", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {}}}}}),
            json!({"name": "c", "csi": {"driver": "example.com"}}),
            json!({"name": "d", "nfs": {"server": "192.0.2.1", "path": "/"}}),
            json!({"name": "e", "iscsi": {"targetPortal": "t", "iqn": "i", "lun": 0}}),
            json!({"name": "f", "projected": {"sources": [{"clusterTrustBundle": {"path": "x"}},
                {"podCertificate": {"signerName": "e.com/s", "keyType": "ED25519"}}]}}),
            json!({"name": "g", "glusterfs": {"endpoints": "e", "path": "p"}}),
        ]);
    });
    expect![[r#"
        spec.volumes[4].csi: needs a CSI driver on the node, which coracle does not talk to: use hostPath on what the node mounts
        spec.volumes[3].ephemeral: this node does not mount PersistentVolumeClaims: use hostPath on what the node mounts, or emptyDir, image, configMap or secret
        spec.volumes[8].glusterfs: Kubernetes has removed the driver of this type of volume: use hostPath on what the node mounts
        spec.volumes[6].iscsi: needs programs on the node that coracle does not start: mount it on the node and use hostPath
        spec.volumes[5].nfs: needs programs on the node that coracle does not start: mount it on the node and use hostPath
        spec.volumes[2].persistentVolumeClaim: this node does not mount PersistentVolumeClaims: use hostPath on what the node mounts, or emptyDir, image, configMap or secret
        spec.volumes[7].projected.sources[0].clusterTrustBundle: this node does not read ClusterTrustBundles: put the certificates into a ConfigMap
        spec.volumes[7].projected.sources[1].podCertificate: this node does not request certificates for pods: put one into a Secret
    "#]]
    .assert_eq(&told(&volumes));
    let others = daemon(|pod| {
        pod["spec"]["runtimeClassName"] = json!("gvisor");
        pod["spec"]["resourceClaims"] = json!([{"name": "gpu", "resourceClaimName": "g"}]);
        pod["spec"]["containers"][0]["resources"]["claims"] = json!([{"name": "gpu"}]);
        pod["spec"]["containers"][0]["volumeDevices"] = json!([{"name": "root", "devicePath": "/dev/x"}]);
        pod["spec"]["securityContext"]["windowsOptions"] = json!({"hostProcess": true});
        pod["spec"]["containers"][0]["lifecycle"] = json!({"stopSignal": "SIGUSR1"});
    });
    expect![[r#"
        spec.resourceClaims: needs a driver for dynamic resource allocation, and this node has none
        spec.runtimeClassName: this node has one runtime, and no handlers that a RuntimeClass could choose from
        spec.containers[0].volumeDevices: needs a PersistentVolumeClaim, which this node does not do: use a hostPath volume of type BlockDevice
        spec.containers[0].resources.claims: needs a driver for dynamic resource allocation, and this node has none
        spec.containers[0].lifecycle.stopSignal: Forbidden: the feature is off in Kubernetes 1.36: the image's STOPSIGNAL counts
        spec.securityContext.windowsOptions: this node runs linux
    "#]].assert_eq(&told(&others));
}

#[test]
fn what_would_harm_the_machine_is_refused_whoever_has_validated_it() {
    let pod = daemon(|pod| {
        pod["metadata"]["uid"] = json!("../../etc");
        pod["metadata"]["name"] = json!("../x");
        pod["spec"]["containers"][0]["name"] = json!("../../c");
        pod["spec"]["volumes"][0]["name"] = json!("..");
        pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = json!("/dev");
        pod["spec"]["containers"][0]["volumeMounts"][1]["mountPath"] = json!("/proc/sys");
        pod["spec"]["containers"][0]["resources"]["limits"]["memory"] = json!("much");
    });
    expect![[r#"
        metadata.uid: Invalid value: "../../etc": a UID must consist of at most 63 letters, digits, '-' or '_'
        metadata.name: Invalid value: "../x": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        spec.volumes[0].name: Invalid value: "..": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        spec.containers[0].name: Invalid value: "../../c": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        spec.containers[0].resources.limits[memory]: Invalid value: "much": is not a quantity
        spec.containers[0].volumeMounts[0].name: Not found: "root"
        spec.containers[0].volumeMounts[0].mountPath: Invalid value: "/dev": must not be /dev, unless a hostPath of /dev is mounted there: mount what is needed below it
        spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/proc/sys": what is in /proc is the kernel's (only a hostPath of /proc may be mounted at /proc, and files over those that say how much the machine has)
    "#]].assert_eq(&told(&pod));
    let problems: Vec<Problem> = from_api(&Pod::default()).unwrap_err();
    assert!(problems.iter().any(|problem| problem.field == "spec"), "{problems:?}");
    assert!(problems.iter().all(|problem| problem.line.is_none() && problem.column.is_none()));
}

/// JSON of some shape, as deep as a hostile server could send it within a field.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z./*\\[\\]0-9-]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z./-]{0,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Where in a pod a value can be, as JSON pointers.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| pointers(item, &format!("{at}/{index}"), found));
        }
        Value::Object(map) => map.iter().for_each(|(key, item)| {
            let key = key.replace('~', "~0").replace('/', "~1");
            pointers(item, &format!("{at}/{key}"), found);
        }),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn no_object_of_an_api_server_is_a_reason_to_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 0..5),
    ) {
        let mut value: Value = serde_json::from_str(DAEMON).unwrap();
        for (place, new) in changes {
            let mut all = Vec::new();
            pointers(&value, "", &mut all);
            let pointer = place.get(&all).clone();
            *value.pointer_mut(&pointer).unwrap() = new;
        }
        // What is no pod never gets here.
        if let Ok(given) = serde_json::from_value::<Pod>(value) {
            match from_api(&given) {
                Ok(taken) => {
                    prop_assert!(is_from_api(&taken));
                    prop_assert!(Spec::new(taken.clone()).is_some(), "{:?}", taken.metadata);
                    prop_assert_eq!(from_api(&taken), Ok(taken));
                }
                Err(problems) => prop_assert!(problems.iter().all(|problem| !problem.reason.is_empty())),
            }
        }
    }
}
