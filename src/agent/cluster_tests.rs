use super::*;
use serde_json::{Value, json};

fn pod(name: &str, more: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}"), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}
    });
    for (part, fields) in more.as_object().expect("object") {
        let target = pod.as_object_mut().expect("object").entry(part.clone()).or_insert_with(|| json!({}));
        target.as_object_mut().expect("object").extend(fields.as_object().expect("object").clone());
    }
    Arc::new(serde_json::from_value(pod).expect("pod"))
}

fn bound(pods: &[&Arc<Pod>]) -> Bound {
    Bound { generation: 1, known: true, pods: pods.iter().map(|pod| Arc::clone(pod)).collect() }
}

fn names(orders: &Orders) -> String {
    let run = orders.run.iter().map(|spec| spec.key().name).collect::<Vec<_>>().join(" ");
    let refuse = orders.refuse.iter().map(|(pod, reason, _)| format!("{}:{reason}", Key::of(pod).name));
    format!("{run}|{}", refuse.collect::<Vec<_>>().join(" "))
}

#[test]
fn what_is_to_end_or_has_ended_does_not_run() {
    let phase = |phase: &str| json!({"status": {"phase": phase}});
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let (a, b, c, d) = (pod("a", json!({})), pod("b", phase("Failed")), pod("c", phase("Succeeded")), pod("d", going));
    let all = bound(&[&a, &b, &c, &d]);
    let with = |presence: Presence| names(&orders(&all, |_| Claim::Free, |_| presence));
    assert_eq!(with(Presence::Absent), "a|");
    assert_eq!(with(Presence::Here), "a|", "whoever ended them");
    assert_eq!(with(Presence::Over), "a b c|", "what is over stays until its object goes");
    assert_eq!(with(Presence::Ended), "|");
}

#[test]
fn a_static_pod_keeps_its_name() {
    let (a, b) = (pod("a", json!({})), pod("b", json!({})));
    let all = bound(&[&a, &b]);
    let with = |claim: Claim| {
        let claims = |key: &Key| if key.name == "a" { claim } else { Claim::Free };
        names(&orders(&all, claims, |_| Presence::Absent))
    };
    assert_eq!(with(Claim::Free), "a b|");
    assert_eq!(with(Claim::Static), "b|a:UnexpectedAdmissionError");
    assert_eq!(with(Claim::Held), "b|", "nothing is decided before its source has spoken");
}

#[test]
fn the_oldest_comes_first() {
    let young = pod("a", json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:01Z"}}));
    let old = pod("b", json!({}));
    assert_eq!(names(&orders(&bound(&[&young, &old]), |_| Claim::Free, |_| Presence::Absent)), "b a|");
}
