//! What the API server's copy of a pod says that its report depends on: conditions that others set, and its generation.

use crate::cluster::Bound;
use crate::pod::Key;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;

/// The pods of whose copies something changed that their reports depend on.
pub fn changed(before: &Bound, now: &Bound) -> Vec<Key> {
    let before: BTreeMap<Option<&str>, &Pod> =
        before.pods.iter().map(|pod| (pod.metadata.uid.as_deref(), &**pod)).collect();
    let differs = |pod: &Pod| {
        let uid = pod.metadata.uid.as_deref();
        before
            .get(&uid)
            .is_none_or(|old| old.metadata.generation != pod.metadata.generation || gates(old) != gates(pod))
    };
    now.pods.iter().filter(|pod| differs(pod)).map(|pod| Key::of(pod)).collect()
}

/// The statuses of a pod's readiness gates.
fn gates(pod: &Pod) -> Vec<(&str, Option<&str>)> {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let status = |type_: &str| conditions.iter().find(|c| c.type_ == type_).map(|c| c.status.as_str());
    gates.map(|gate| (gate.condition_type.as_str(), status(&gate.condition_type))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn pod(uid: &str, generation: i64, gate: Option<&str>) -> Arc<Pod> {
        let condition = gate.map(|status| json!({ "type": "lb", "status": status }));
        let other = json!({ "type": "Ready", "status": "True", "lastTransitionTime": format!("2026-01-01T00:00:0{generation}Z") });
        let conditions: Vec<_> = condition.into_iter().chain([other]).collect();
        let pod = json!({
            "metadata": { "name": uid, "namespace": "n", "uid": uid, "generation": generation },
            "spec": { "containers": [], "readinessGates": [{ "conditionType": "lb" }] },
            "status": { "conditions": conditions },
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn only_what_reports_depend_on_counts() {
        let bound = |pods| Bound { generation: 1, known: true, pods };
        let before = bound(vec![pod("a", 1, None), pod("b", 1, Some("False")), pod("c", 1, Some("True"))]);
        let now =
            bound(vec![pod("a", 2, None), pod("b", 1, Some("True")), pod("c", 1, Some("True")), pod("d", 1, None)]);
        let names: Vec<String> = changed(&before, &now).into_iter().map(|key| key.name).collect();
        assert_eq!(names, ["a", "b", "d"]);
        assert_eq!(changed(&now, &now), []);
    }
}
