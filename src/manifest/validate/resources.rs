//! Requests and limits, and references to them.

use super::{Report, quantities};
use crate::manifest::Quantity;
use k8s_openapi::api::core::v1::{ResourceFieldSelector, ResourceRequirements};

/// Divisors of memory and storage amounts.
const SIZES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub(super) fn check(path: &str, resources: &ResourceRequirements, report: &mut Report<'_>) {
    let limits = quantities(&format!("{path}.limits"), resources.limits.as_ref(), report);
    let requests = quantities(&format!("{path}.requests"), resources.requests.as_ref(), report);
    for (kind, amounts) in [("limits", &limits), ("requests", &requests)] {
        for (name, amount) in amounts {
            let field = format!("{path}.{kind}[{name}]");
            if amount.is_negative() {
                report.invalid(&field, &amount.to_string(), "must be greater than or equal to 0");
            }
            if !name.contains('/') && !is_standard(name) {
                report.invalid(&field, name, "must be a standard resource for containers");
            }
            if *name != "cpu" && !amount.is_integer() && !amount.is_negative() && name.contains('/') {
                report.invalid(&field, &amount.to_string(), "must be an integer");
            }
        }
    }
    for (name, request) in &requests {
        if let Some(limit) = limits.get(name)
            && request > limit
            && !limit.is_negative()
        {
            let rule = format!("must be less than or equal to {name} limit of {limit}");
            report.invalid(format!("{path}.requests[{name}]"), &request.to_string(), &rule);
        }
    }
}

fn is_standard(name: &str) -> bool {
    ["cpu", "memory", "ephemeral-storage"].contains(&name) || name.starts_with("hugepages-")
}

/// `resourceFieldRef` of an environment variable.
pub(super) fn field_ref(path: &str, selector: &ResourceFieldSelector, report: &mut Report<'_>) {
    let resource = selector.resource.as_str();
    if resource.is_empty() {
        report.required(format!("{path}.resource"), "");
        return;
    }
    let name = resource.strip_prefix("limits.").or_else(|| resource.strip_prefix("requests."));
    let Some(name) = name.filter(|name| is_standard(name)) else {
        let supported = [
            "limits.cpu",
            "limits.ephemeral-storage",
            "limits.memory",
            "requests.cpu",
            "requests.ephemeral-storage",
            "requests.memory",
        ];
        report.unsupported(format!("{path}.resource"), resource, &supported);
        return;
    };
    let Some(divisor) = &selector.divisor else { return };
    let field = format!("{path}.divisor");
    let parsed = match Quantity::parse(&divisor.0) {
        Ok(parsed) => parsed,
        Err(error) => return report.invalid(field, &divisor.0, &error.to_string()),
    };
    let allowed: &[&str] = if name == "cpu" { &["1m", "1"] } else { &SIZES };
    // "0" is what an unset divisor is written as.
    let fits = parsed == Quantity::ZERO || allowed.iter().any(|text| Quantity::parse(text) == Ok(parsed));
    if !fits {
        let list = match allowed {
            [first, last] => format!("{first} and {last}"),
            _ => allowed.join(", "),
        };
        report.invalid(
            field,
            &divisor.0,
            &format!("only divisor's values {list} are supported with the {name} resource"),
        );
    }
}
