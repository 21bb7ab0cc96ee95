use super::*;
use crate::cluster::mirror_copy::copy;
use serde_json::{Value, json};

fn node(uid: &str) -> Node {
    serde_json::from_value(json!({ "metadata": { "name": "edge", "uid": uid } })).unwrap()
}

/// A report of a static pod.
fn report(name: &str, hash: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": "n", "uid": hash, "labels": { "app": "web" },
            "annotations": { HASH: hash, REVISION: "r1", "kubernetes.io/config.source": "file", "who": "me" },
        },
        "spec": { "containers": [{ "name": "a", "image": "i" }] },
        "status": { "phase": "Running" },
    }))
    .unwrap()
}

/// What the API server makes of its mirror.
fn mirror(report: &Pod, uid: &str) -> Pod {
    let mut pod = copy(report, &node("node"), Timestamp::UNIX_EPOCH, true).unwrap();
    pod.metadata.uid = Some(uid.to_owned());
    pod.metadata.generation = Some(1);
    pod.status = Some(serde_json::from_value(json!({ "phase": "Pending" })).unwrap());
    pod
}

/// Steps as `delete UID`, `create`, both, or nothing.
fn told(reports: &[Pod], mirrors: &[Pod], node: &Node, spoken: bool) -> Vec<String> {
    let arcs = |pods: &[Pod]| pods.iter().cloned().map(Arc::new).collect::<Vec<_>>();
    let steps = mirror_plan(&arcs(reports), &arcs(mirrors), node, spoken);
    let step = |(key, step): (Key, Step)| {
        let delete = step.delete.map(|uid| format!("delete {uid}: {}", step.why));
        let create = step.create.map(|_| format!("create {}", key.name));
        delete.into_iter().chain(create).collect::<Vec<_>>().join(", ")
    };
    steps.into_iter().map(step).collect()
}

use super::steps as mirror_plan;

fn edited(mirror: &Pod, edit: impl FnOnce(&mut Value)) -> Pod {
    let mut value = serde_json::to_value(mirror).unwrap();
    edit(&mut value);
    serde_json::from_value(value).unwrap()
}

#[test]
fn each_static_pod_has_one_mirror() {
    let (a, b) = (report("a", "1"), report("b", "2"));
    let node = node("node");
    assert_eq!(told(&[a.clone(), b.clone()], &[], &node, false), ["create a", "create b"]);
    assert_eq!(told(&[a.clone(), b.clone()], &[mirror(&a, "u")], &node, true), ["create b"]);
    assert_eq!(
        told(std::slice::from_ref(&a), &[mirror(&a, "u"), mirror(&b, "v")], &node, true),
        ["delete v: there is no such static pod"]
    );
    // A source that has not spoken may still name it.
    assert_eq!(told(std::slice::from_ref(&a), &[mirror(&a, "u"), mirror(&b, "v")], &node, false), [""; 0]);
}

#[test]
fn pods_of_the_cluster_have_none_whatever_they_say_of_themselves() {
    let mut pod = report("a", "1");
    pod.metadata.annotations.as_mut().unwrap().insert("kubernetes.io/config.source".into(), "api".into());
    assert_eq!(told(&[pod], &[], &node("node"), true), [""; 0]);
}

#[test]
fn a_mirror_that_is_not_right_any_more_is_replaced() {
    let pod = report("a", "1");
    let right = mirror(&pod, "u");
    let all = |mirror: Pod| told(std::slice::from_ref(&pod), &[mirror], &node("node"), true).join("");
    let is = |why: &str, edit: &dyn Fn(&mut Value)| {
        assert_eq!(all(edited(&right, edit)), format!("delete u: {why}, create a"));
    };
    assert_eq!(all(right.clone()), "");
    is("it shows an earlier version of the pod", &|m| m["metadata"]["annotations"][MIRROR] = json!("0"));
    is("it shows an earlier version of the pod", &|m| m["metadata"]["annotations"][REVISION] = json!("r0"));
    is("it was deleted", &|m| m["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    is("it belongs to an earlier Node", &|m| m["metadata"]["ownerReferences"][0]["uid"] = json!("old"));
    is("it belongs to an earlier Node", &|m| m["metadata"]["ownerReferences"] = json!([]));
    is("somebody edited it", &|m| m["metadata"]["labels"]["app"] = json!("other"));
    is("somebody edited it", &|m| m["metadata"]["annotations"]["who"] = json!("you"));
    is("somebody edited it", &|m| m["metadata"]["generation"] = json!(2));
    is("the pod runs again", &|m| m["status"]["phase"] = json!("Failed"));
    let wrote = |manager: &'static str, sub: Value, fields: Value| {
        move |m: &mut Value| {
            m["metadata"]["labels"]["more"] = json!("x");
            m["metadata"]["managedFields"] = json!([{ "manager": manager, "subresource": sub, "fieldsV1": fields }]);
        }
    };
    let labels = json!({ "f:metadata": { "f:labels": { "f:more": {} } } });
    is("somebody edited it", &wrote("kubectl-label", Value::Null, labels.clone()));
    // What admission added when we made it, and what others say in the status.
    assert_eq!(all(edited(&right, wrote("coracle", Value::Null, labels.clone()))), "");
    assert_eq!(all(edited(&right, wrote("lb", json!("status"), labels))), "");
    assert_eq!(all(edited(&right, wrote("gc", Value::Null, json!({ "f:metadata": { "f:ownerReferences": {} } })))), "");
}

#[test]
fn a_pod_that_goes_is_shown_until_it_is_gone_but_not_anew() {
    let mut pod = report("a", "1");
    let shown = mirror(&pod, "u");
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    let node = node("node");
    assert_eq!(told(std::slice::from_ref(&pod), std::slice::from_ref(&shown), &node, true), [""; 0]);
    assert_eq!(told(&[pod.clone()], &[], &node, true), [""; 0]);
    let deleted = edited(&shown, |m| m["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    assert_eq!(told(&[pod], &[deleted], &node, true), ["delete u: it was deleted"]);
}

#[test]
fn nothing_is_made_under_a_node_that_goes() {
    let mut node = node("node");
    node.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    assert_eq!(told(&[report("a", "1")], &[], &node, true), [""; 0]);
}

#[test]
fn two_who_undo_what_the_other_does_get_slower() {
    let mut pace = Pace::default();
    let mut now = Timestamp::UNIX_EPOCH;
    let mut waits = Vec::new();
    for _ in 0..14 {
        let next = pace.next(now).max(now);
        waits.push(next.duration_since(now).as_secs());
        now = next;
        pace.replaced(now);
    }
    assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
    let later = now + SignedDuration::from_mins(6);
    assert!(!pace.counts(later));
    pace.replaced(later);
    assert_eq!(pace.next(later), later);
}
