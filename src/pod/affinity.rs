//! Whether a pod's node selector and required node affinity choose this node (as kubelet:
//! `component-helpers/scheduling/corev1/nodeaffinity`).

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};
use std::collections::BTreeMap;

/// Whether the node of this name and with these labels is one the pod wants.
#[must_use]
pub fn matches(pod: &Pod, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    // One term is enough; without any, nothing matches.
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|term| term_matches(term, node, labels)))
}

fn term_matches(term: &NodeSelectorTerm, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // An empty term matches nothing.
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|e| holds(e, labels.get(&e.key).map(String::as_str)))
        && fields.iter().all(|f| f.key == "metadata.name" && field_holds(f, node))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|v| v == value);
    let compared = |than: fn(i64, i64) -> bool| match (values, value.and_then(|v| v.parse().ok())) {
        ([bound], Some(value)) => bound.parse().is_ok_and(|bound| than(value, bound)),
        _ => false,
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        // As kubelet: a node without the label is in no list.
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(|value, bound| value > bound),
        "Lt" => compared(|value, bound| value < bound),
        _ => false,
    }
}

/// Fields know only these two, with exactly one value.
fn field_holds(requirement: &NodeSelectorRequirement, node: &str) -> bool {
    match (requirement.operator.as_str(), requirement.values.as_deref().unwrap_or_default()) {
        ("In", [name]) => name == node,
        ("NotIn", [name]) => name != node,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn wants(terms: Value) -> bool {
        let affinity =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
        let pod: Pod = serde_json::from_value(json!({"spec": {"affinity": affinity, "containers": []}})).expect("pod");
        let labels = [("site", "north"), ("cores", "8"), ("name", "x")];
        matches(&pod, "edge", &labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }

    fn one(key: &str, operator: &str, values: Value) -> bool {
        wants(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
    }

    #[test]
    fn operators() {
        for (key, operator, values, expected) in [
            ("site", "In", json!(["south", "north"]), true),
            ("site", "In", json!(["south"]), false),
            ("none", "In", json!(["north"]), false),
            ("site", "NotIn", json!(["north"]), false),
            ("site", "NotIn", json!(["south"]), true),
            ("none", "NotIn", json!(["north"]), true),
            ("site", "Exists", json!(null), true),
            ("none", "Exists", json!(null), false),
            ("site", "DoesNotExist", json!(null), false),
            ("none", "DoesNotExist", json!(null), true),
            ("cores", "Gt", json!(["7"]), true),
            ("cores", "Gt", json!(["8"]), false),
            ("cores", "Lt", json!(["9"]), true),
            ("cores", "Lt", json!(["8"]), false),
            ("site", "Gt", json!(["1"]), false),
            ("cores", "Gt", json!(["x"]), false),
            ("cores", "Gt", json!([]), false),
            ("site", "Like", json!(["n"]), false),
        ] {
            assert_eq!(one(key, operator, values.clone()), expected, "{key} {operator} {values}");
        }
    }

    #[test]
    fn terms_are_alternatives_and_their_parts_are_not() {
        let north = json!({"key": "site", "operator": "In", "values": ["north"]});
        let south = json!({"key": "site", "operator": "In", "values": ["south"]});
        assert!(wants(json!([{"matchExpressions": [south]}, {"matchExpressions": [north]}])));
        assert!(!wants(json!([{"matchExpressions": [south, north]}])));
        assert!(!wants(json!([])) && !wants(json!([{}])), "no term chooses no node");
        let name = |operator: &str, name: &str| {
            wants(json!([{"matchFields": [{"key": "metadata.name", "operator": operator, "values": [name]}]}]))
        };
        assert!(name("In", "edge") && !name("In", "other") && name("NotIn", "other") && !name("NotIn", "edge"));
        assert!(!wants(json!([{"matchFields": [{"key": "spec.x", "operator": "NotIn", "values": ["y"]}]}])));
    }
}
