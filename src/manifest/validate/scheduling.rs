//! What schedulers act on. The node itself heeds the node's selector and required node affinity only; the rest is
//! checked like an API server does, so that a manifest stays portable.

use super::{Report, labels_entry, names, one_of};
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSpec, Toleration,
    TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::HashSet;

const NO_VALUES: &str = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
const SOME_VALUES: &str = "must be specified when `operator` is 'In' or 'NotIn'";
const ONE_VALUE: &str = "must be specified single value when `operator` is 'Lt' or 'Gt'";
const NO_OPERATOR: &str = "not a valid selector operator";

pub(super) fn check(spec: &PodSpec, report: &mut Report<'_>) {
    for (key, value) in spec.node_selector.iter().flatten() {
        labels_entry("spec.nodeSelector", key, value, report);
    }
    if let Some(affinity) = &spec.affinity {
        self::affinity("spec.affinity", affinity, report);
    }
    for (index, toleration) in spec.tolerations.iter().flatten().enumerate() {
        self::toleration(&format!("spec.tolerations[{index}]"), toleration, report);
    }
    if let Some(class) = spec.priority_class_name.as_deref().filter(|class| !class.is_empty()) {
        names::subdomain("spec.priorityClassName", class, report);
    }
    spread(spec.topology_spread_constraints.as_deref().unwrap_or_default(), report);
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        names::qualified_value(&format!("spec.readinessGates[{index}].conditionType"), &gate.condition_type, report);
    }
}

fn affinity(path: &str, affinity: &Affinity, report: &mut Report<'_>) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = &affinity.node_affinity {
        let path = format!("{path}.nodeAffinity");
        if let Some(selector) = &node.required_during_scheduling_ignored_during_execution {
            let path = format!("{path}.{REQUIRED}.nodeSelectorTerms");
            if selector.node_selector_terms.is_empty() {
                report.required(&path, "must have at least one node selector term");
            }
            for (index, term) in selector.node_selector_terms.iter().enumerate() {
                node_term(&format!("{path}[{index}]"), term, report);
            }
        }
        for (index, term) in node.preferred_during_scheduling_ignored_during_execution.iter().flatten().enumerate() {
            let path = format!("{path}.{PREFERRED}[{index}]");
            weight(&path, term.weight, report);
            node_term(&format!("{path}.preference"), &term.preference, report);
        }
    }
    let pods = [
        (
            "podAffinity",
            affinity.pod_affinity.as_ref().map(|pods| {
                (
                    &pods.required_during_scheduling_ignored_during_execution,
                    &pods.preferred_during_scheduling_ignored_during_execution,
                )
            }),
        ),
        (
            "podAntiAffinity",
            affinity.pod_anti_affinity.as_ref().map(|pods| {
                (
                    &pods.required_during_scheduling_ignored_during_execution,
                    &pods.preferred_during_scheduling_ignored_during_execution,
                )
            }),
        ),
    ];
    for (field, terms) in pods {
        let Some((required, preferred)) = terms else { continue };
        for (index, term) in required.iter().flatten().enumerate() {
            pod_term(&format!("{path}.{field}.{REQUIRED}[{index}]"), term, report);
        }
        for (index, WeightedPodAffinityTerm { pod_affinity_term, weight }) in preferred.iter().flatten().enumerate() {
            let path = format!("{path}.{field}.{PREFERRED}[{index}]");
            self::weight(&path, *weight, report);
            pod_term(&format!("{path}.podAffinityTerm"), pod_affinity_term, report);
        }
    }
}

fn weight(path: &str, weight: i32, report: &mut Report<'_>) {
    if !(1..=100).contains(&weight) {
        report.invalid_number(format!("{path}.weight"), weight, "must be in the range 1-100");
    }
}

fn node_term(path: &str, term: &NodeSelectorTerm, report: &mut Report<'_>) {
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        node_expression(&format!("{path}.matchExpressions[{index}]"), requirement, report);
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = format!("{path}.matchFields[{index}]");
        if requirement.key != "metadata.name" {
            report.invalid(format!("{path}.key"), &requirement.key, "not a valid field selector key");
        }
        if !["In", "NotIn"].contains(&requirement.operator.as_str()) {
            report.invalid(format!("{path}.operator"), &requirement.operator, NO_OPERATOR);
        } else if requirement.values.as_deref().unwrap_or_default().len() != 1 {
            let rule = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            report.required(format!("{path}.values"), rule);
        }
    }
}

fn node_expression(path: &str, requirement: &NodeSelectorRequirement, report: &mut Report<'_>) {
    let values = requirement.values.as_deref().unwrap_or_default();
    names::qualified_value(&format!("{path}.key"), &requirement.key, report);
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => report.required(format!("{path}.values"), SOME_VALUES),
        "In" | "NotIn" => {
            for (index, value) in values.iter().enumerate() {
                names::value(&format!("{path}.values[{index}]"), value, report);
            }
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            report.error(format!("{path}.values"), format!("Forbidden: {NO_VALUES}"));
        }
        "Exists" | "DoesNotExist" => {}
        "Gt" | "Lt" => match values {
            [value] if value.parse::<i64>().is_ok() => {}
            // Ours: the API server takes any text, and the pod then fits no node.
            [value] => report.invalid(format!("{path}.values[0]"), value, "must be an integer"),
            _ => report.required(format!("{path}.values"), ONE_VALUE),
        },
        other => report.invalid(format!("{path}.operator"), other, NO_OPERATOR),
    }
}

fn pod_term(path: &str, term: &PodAffinityTerm, report: &mut Report<'_>) {
    topology_key(path, &term.topology_key, report);
    for (field, selector) in [("labelSelector", &term.label_selector), ("namespaceSelector", &term.namespace_selector)]
    {
        if let Some(selector) = selector {
            label_selector(&format!("{path}.{field}"), selector, report);
        }
    }
    for (index, name) in term.namespaces.iter().flatten().enumerate() {
        names::label(&format!("{path}.namespaces[{index}]"), name, report);
    }
}

fn topology_key(path: &str, key: &str, report: &mut Report<'_>) {
    let field = format!("{path}.topologyKey");
    if key.is_empty() {
        report.required(field, "can not be empty");
    } else {
        names::qualified_value(&field, key, report);
    }
}

fn label_selector(path: &str, selector: &LabelSelector, report: &mut Report<'_>) {
    for (key, value) in selector.match_labels.iter().flatten() {
        labels_entry(&format!("{path}.matchLabels"), key, value, report);
    }
    for (index, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = requirement.values.as_deref().unwrap_or_default();
        match requirement.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => report.required(format!("{path}.values"), SOME_VALUES),
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                report.error(format!("{path}.values"), format!("Forbidden: {NO_VALUES}"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => report.invalid(format!("{path}.operator"), other, NO_OPERATOR),
        }
        names::qualified_value(&format!("{path}.key"), &requirement.key, report);
        for (index, value) in values.iter().enumerate() {
            names::value(&format!("{path}.values[{index}]"), value, report);
        }
    }
}

fn spread(constraints: &[TopologySpreadConstraint], report: &mut Report<'_>) {
    let mut known = HashSet::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = format!("spec.topologySpreadConstraints[{index}]");
        if constraint.max_skew <= 0 {
            report.invalid_number(format!("{path}.maxSkew"), constraint.max_skew, "must be greater than zero");
        }
        topology_key(&path, &constraint.topology_key, report);
        let unsatisfiable = constraint.when_unsatisfiable.as_str();
        one_of(&format!("{path}.whenUnsatisfiable"), unsatisfiable, &["DoNotSchedule", "ScheduleAnyway"], report);
        if !known.insert((constraint.topology_key.as_str(), unsatisfiable)) {
            let pair = format!("{{{}, {unsatisfiable}}}", constraint.topology_key);
            report.duplicate(format!("{path}.{{topologyKey, whenUnsatisfiable}}"), &pair);
        }
        if let Some(domains) = constraint.min_domains {
            let field = format!("{path}.minDomains");
            if domains <= 0 {
                report.invalid_number(&field, domains, "must be greater than 0");
            }
            if unsatisfiable != "DoNotSchedule" {
                let rule = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
                report.invalid_number(&field, domains, rule);
            }
        }
        let policies = [
            ("nodeAffinityPolicy", &constraint.node_affinity_policy),
            ("nodeTaintsPolicy", &constraint.node_taints_policy),
        ];
        for (field, policy) in policies {
            if let Some(policy) = policy {
                one_of(&format!("{path}.{field}"), policy, &["Honor", "Ignore"], report);
            }
        }
        if let Some(selector) = &constraint.label_selector {
            label_selector(&format!("{path}.labelSelector"), selector, report);
        }
    }
}

fn toleration(path: &str, toleration: &Toleration, report: &mut Report<'_>) {
    let key = toleration.key.as_deref().unwrap_or_default();
    let operator = toleration.operator.as_deref().unwrap_or_default();
    let value = toleration.value.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if key.is_empty() {
        if operator != "Exists" {
            let rule = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            report.invalid(format!("{path}.operator"), operator, rule);
        }
    } else {
        names::qualified_value(&format!("{path}.key"), key, report);
    }
    match operator {
        "" | "Equal" => names::value(&format!("{path}.operator"), value, report),
        "Exists" if value.is_empty() => {}
        "Exists" => {
            report.invalid(format!("{path}.operator"), value, "value must be empty when `operator` is 'Exists'")
        }
        other => report.unsupported(format!("{path}.operator"), other, &["Equal", "Exists"]),
    }
    if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
        let rule = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        report.invalid(format!("{path}.effect"), effect, rule);
    }
    if !effect.is_empty() {
        one_of(&format!("{path}.effect"), effect, &["NoExecute", "NoSchedule", "PreferNoSchedule"], report);
    }
}
