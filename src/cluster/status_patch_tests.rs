use super::*;
use proptest::prelude::*;

fn pod(status: Value) -> Pod {
    let spec = json!({ "containers": [{ "name": "a" }], "restartPolicy": "Always" });
    serde_json::from_value(json!({ "metadata": { "uid": "u" }, "spec": spec, "status": status })).unwrap()
}

fn change(report: Value, theirs: Value) -> Value {
    let patch = patch(&pod(report), &pod(theirs));
    patch.map_or(Value::Null, |patch| {
        assert_eq!(patch["metadata"], json!({ "uid": "u" }), "another pod of the name must not get it");
        patch["status"].clone()
    })
}

fn condition(type_: &str, status: &str, time: &str) -> Value {
    json!({ "type": type_, "status": status, "lastTransitionTime": time })
}

const T1: &str = "2026-11-22T10:00:00Z";
const T2: &str = "2026-11-22T11:00:00Z";

fn container(state: Value) -> Value {
    json!({ "name": "a", "image": "i", "imageID": "x", "ready": true, "restartCount": 0, "state": state })
}

#[test]
fn only_what_differs_is_told() {
    let status = json!({ "phase": "Running", "hostIP": "10.0.0.1", "hostIPs": [{ "ip": "10.0.0.1" }],
        "conditions": [condition("Ready", "True", T1)], "containerStatuses": [container(json!({ "running": {} }))] });
    assert_eq!(change(status.clone(), status.clone()), Value::Null);
    let mut other = status.clone();
    other["conditions"][0] = json!({ "type": "Ready", "status": "False", "reason": "ContainersNotReady",
        "message": "containers with unready status: [a]", "lastTransitionTime": T2 });
    assert_eq!(change(other.clone(), status.clone()), json!({ "conditions": [other["conditions"][0]] }));
    // What is over is taken back, by name: an absent field would stay.
    assert_eq!(
        change(status.clone(), other),
        json!({ "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": T1, "reason": null, "message": null }] })
    );
    let mut moved = status.clone();
    moved["hostIPs"] = json!([{ "ip": "10.0.0.2" }, { "ip": "fd00::2" }]);
    assert_eq!(
        change(moved, status),
        json!({ "hostIPs": [{ "$patch": "replace" }, { "ip": "10.0.0.2" }, { "ip": "fd00::2" }] })
    );
}

#[test]
fn what_others_say_stays_theirs() {
    let ours = json!({ "phase": "Running", "conditions": [condition("Ready", "True", T1), condition("example.com/lb", "True", T1)] });
    let theirs = json!({ "phase": "Running", "nominatedNodeName": "n", "conditions": [
        condition("Ready", "True", T1), condition("example.com/lb", "False", T2), condition("DisruptionTarget", "True", T1),
        condition("PodResizePending", "True", T1), condition("coracle.dev/ManifestApplied", "False", T1),
    ] });
    assert_eq!(
        change(ours, theirs),
        json!({ "conditions": [
            { "$patch": "delete", "type": "PodResizePending" },
            { "$patch": "delete", "type": "coracle.dev/ManifestApplied" },
        ] })
    );
}

#[test]
fn first_things_stay_as_they_were_told_first() {
    let ours = json!({ "phase": "Running", "startTime": T2, "qosClass": "Burstable", "conditions": [condition("PodScheduled", "True", T2)] });
    let theirs = json!({ "phase": "Running", "startTime": T1, "qosClass": "BestEffort", "podIP": "10.1.1.1",
        "podIPs": [{ "ip": "10.1.1.1" }], "conditions": [condition("PodScheduled", "True", T1)] });
    assert_eq!(change(ours.clone(), theirs), Value::Null);
    assert_eq!(change(ours.clone(), json!({})), ours);
}

#[test]
fn no_pod_leaves_its_end() {
    let runs = json!({ "phase": "Running", "containerStatuses": [container(json!({ "running": {} }))] });
    assert_eq!(change(runs.clone(), json!({ "phase": "Failed" })), Value::Null);
    assert_eq!(change(json!({ "phase": "Succeeded" }), json!({ "phase": "Failed" })), Value::Null);
    // And none is at its end while something of it may run.
    let mut early = runs.clone();
    early["phase"] = json!("Failed");
    early["reason"] = json!("Evicted");
    early["conditions"] = json!([condition("DisruptionTarget", "True", T1), condition("Ready", "False", T1)]);
    assert_eq!(change(early, runs), json!({ "conditions": [condition("Ready", "False", T1)] }));
}

#[test]
fn a_container_that_ended_for_good_does_not_run_again() {
    let of = |policy: &str, status: Value| {
        let mut pod = pod(status);
        pod.spec.as_mut().unwrap().restart_policy = Some(policy.to_owned());
        pod
    };
    let ended = |code: i32| json!({ "phase": "Running", "containerStatuses": [container(json!({ "terminated": { "exitCode": code } }))] });
    let runs = || json!({ "phase": "Running", "containerStatuses": [container(json!({ "running": {} }))] });
    let told = |policy, code| patch(&of(policy, runs()), &of(policy, ended(code))).is_some();
    assert!(!told("Never", 1) && !told("Never", 0) && !told("OnFailure", 0));
    assert!(told("OnFailure", 1) && told("Always", 0));
}

#[test]
fn times_and_amounts_are_told_as_the_api_server_keeps_them() {
    let mut running = container(json!({ "running": { "startedAt": "2026-11-22T10:00:00.9Z" } }));
    running["resources"] = json!({ "requests": { "cpu": "0.5", "memory": "1024Mi" }, "limits": {} });
    running["lastState"] = json!({});
    let mut kept = container(json!({ "running": { "startedAt": T1 } }));
    kept["resources"] = json!({ "requests": { "cpu": "500m", "memory": "1Gi" } });
    let of = |container: &Value| json!({ "phase": "Running", "containerStatuses": [container] });
    assert_eq!(change(of(&running), of(&kept)), Value::Null);
    assert_eq!(change(of(&running), json!({ "phase": "Running" })), json!({ "containerStatuses": [kept] }));
}

#[test]
fn who_waits_for_nothing_waits_all_the_same() {
    let of = |container: Value| json!({ "phase": "Pending", "containerStatuses": [container] });
    let waits = of(container(json!({ "waiting": {} })));
    assert_eq!(
        change(waits.clone(), json!({ "phase": "Pending" }))["containerStatuses"][0]["state"],
        json!({ "waiting": {} })
    );
    assert_eq!(change(waits.clone(), waits), Value::Null);
}

#[test]
fn a_generation_is_told_where_it_is_known() {
    let of = |generation: Option<i64>| {
        let mut ready = condition("Ready", "True", T1);
        ready["observedGeneration"] = json!(generation);
        json!({ "phase": "Running", "observedGeneration": generation, "conditions": [ready] })
    };
    assert_eq!(change(of(None), of(Some(1))), Value::Null);
    let told = change(of(Some(2)), of(Some(1)));
    assert_eq!((&told["observedGeneration"], &told["conditions"][0]["observedGeneration"]), (&json!(2), &json!(2)));
}

/// A strategic merge of a pod's status, as the API server does it.
fn merged(theirs: &Pod, patch: &Value) -> Pod {
    let mut status = serde_json::to_value(&theirs.status).unwrap();
    for (name, change) in patch["status"].as_object().unwrap() {
        let key = match name.as_str() {
            "conditions" => "type",
            "hostIPs" | "podIPs" => "ip",
            _ => {
                status[name] = change.clone();
                continue;
            }
        };
        let mut list = status[name].as_array().cloned().unwrap_or_default();
        let changes = change.as_array().unwrap();
        if changes.iter().any(|item| item["$patch"] == "replace") {
            list.clear();
        }
        for item in changes {
            match item["$patch"].as_str() {
                Some("replace") => {}
                Some("delete") => list.retain(|old| old[key] != item[key]),
                _ => match list.iter_mut().find(|old| old[key] == item[key]) {
                    Some(old) => item.as_object().unwrap().iter().for_each(|(name, value)| old[name] = value.clone()),
                    None => list.push(item.clone()),
                },
            }
        }
        status[name] = Value::Array(list);
    }
    Pod { status: serde_json::from_value(status).unwrap(), ..theirs.clone() }
}

fn any_condition() -> impl Strategy<Value = Value> {
    let types = ["Ready", "ContainersReady", "PodScheduled", "PodResizePending", "DisruptionTarget", "example.com/lb"];
    (proptest::sample::select(types.to_vec()), any::<bool>(), proptest::option::of("[a-c]"), 0_i64..4).prop_map(
        |(type_, holds, reason, at)| {
            json!({ "type": type_, "status": if holds { "True" } else { "False" }, "reason": reason,
            "lastTransitionTime": format!("2026-11-22T10:00:0{at}Z") })
        },
    )
}

fn any_status() -> impl Strategy<Value = Value> {
    let state = prop_oneof![
        Just(json!({ "waiting": { "reason": "ContainerCreating" } })),
        Just(json!({ "waiting": {} })),
        Just(json!({ "running": { "startedAt": T1 } })),
        (0..3).prop_map(|code| json!({ "terminated": { "exitCode": code, "finishedAt": T2 } })),
    ];
    let ips = proptest::collection::vec(proptest::sample::select(vec!["10.0.0.1", "10.0.0.2", "fd00::1"]), 0..3);
    (
        proptest::sample::select(vec!["Pending", "Running"]),
        proptest::option::of("[a-c]"),
        proptest::collection::vec(any_condition(), 0..5),
        proptest::collection::vec(state, 0..2),
        ips,
    )
        .prop_map(|(phase, reason, mut conditions, states, mut ips)| {
            conditions.sort_by_key(|c| c["type"].to_string());
            conditions.dedup_by_key(|c| c["type"].to_string());
            ips.dedup();
            let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
            json!({ "phase": phase, "reason": reason, "conditions": conditions, "hostIPs": ips, "podIPs": ips,
                "hostIP": ips.first().map(|ip| &ip["ip"]), "podIP": ips.first().map(|ip| &ip["ip"]),
                "containerStatuses": states.into_iter().map(container).collect::<Vec<_>>() })
        })
}

proptest! {
    /// Whatever the API server has: once it took a patch there is nothing left to tell, and what is others' is as it was.
    #[test]
    fn one_patch_is_enough(report in any_status(), theirs in any_status()) {
        let (report, theirs) = (pod(report), pod(theirs));
        let after = patch(&report, &theirs).map_or(theirs.clone(), |patch| merged(&theirs, &patch));
        prop_assert_eq!(patch(&report, &after), None);
        let others = |pod: &Pod| {
            let all = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            all.filter(|c| c.type_ == "example.com/lb").cloned().collect::<Vec<_>>()
        };
        prop_assert_eq!(others(&after), others(&theirs));
    }
}
