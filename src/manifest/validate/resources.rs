//! Requests and limits, and references to them.

use super::{Report, names, one_of, quantities};
use crate::manifest::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceFieldSelector, ResourceRequirements};
use std::collections::{BTreeMap, HashSet};

type Amounts<'r> = BTreeMap<&'r str, Quantity>;

/// Divisors of memory and storage amounts.
const SIZES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// What one container requests and may use at most.
pub(super) fn check(path: &str, resources: &ResourceRequirements, report: &mut Report<'_>) {
    let (limits, requests) = amounts(path, resources, report);
    for (kind, amounts) in [("limits", &limits), ("requests", &requests)] {
        for name in amounts.keys().filter(|name| !is_standard(name)) {
            let field = format!("{path}.{kind}[{name}]");
            if name.contains('/') {
                names::qualified_value(&field, name, report);
            } else {
                report.invalid(field, name, "must be a standard resource for containers");
            }
        }
    }
    huge_pages(path, &limits, &requests, report);
}

/// The amounts of a container or pod, each checked by itself, and requests against limits.
fn amounts<'r>(path: &str, resources: &'r ResourceRequirements, report: &mut Report<'_>) -> (Amounts<'r>, Amounts<'r>) {
    let limits = quantities(&format!("{path}.limits"), resources.limits.as_ref(), report);
    let requests = quantities(&format!("{path}.requests"), resources.requests.as_ref(), report);
    for (kind, amounts) in [("limits", &limits), ("requests", &requests)] {
        for (name, amount) in amounts {
            let field = format!("{path}.{kind}[{name}]");
            if amount.is_negative() {
                report.invalid(&field, &amount.to_string(), "must be greater than or equal to 0");
            } else if !is_divisible(name) && !amount.is_integer() {
                report.invalid(&field, &amount.to_string(), "must be an integer");
            }
            // A request that repeats its limit, as a default does, need not be told again.
            let repeated = kind == "requests" && limits.contains_key(name);
            if ["memory", "ephemeral-storage"].contains(name) && !amount.is_integer() && !repeated {
                // Most likely `m` was meant as mega: it is a thousandth of a byte.
                report.warning(&field, format!("fractional byte value \"{amount}\" is invalid, must be an integer"));
            }
            if let Some(size) = name.strip_prefix(HUGE_PAGES).filter(|_| !repeated) {
                match page_size(size) {
                    None => report.invalid(&field, name, "must name a page size, as in hugepages-2Mi"),
                    Some(size) if amount.ceil() % size.ceil() != 0 => {
                        let rule = format!("must be a multiple of the page size {size}");
                        report.invalid(field, &amount.to_string(), &rule);
                    }
                    Some(_) => {}
                }
            }
        }
    }
    for (name, request) in &requests {
        let field = format!("{path}.requests[{name}]");
        match limits.get(name) {
            Some(limit) if !is_overcommitted(name) && request != limit => {
                report.invalid(field, &request.to_string(), &format!("must be equal to {name} limit of {limit}"));
            }
            Some(limit) if request > limit && !limit.is_negative() => {
                let rule = format!("must be less than or equal to {name} limit of {limit}");
                report.invalid(field, &request.to_string(), &rule);
            }
            None if !is_overcommitted(name) => {
                report.required(format!("{path}.limits"), "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    (limits, requests)
}

fn huge_pages(path: &str, limits: &Amounts<'_>, requests: &Amounts<'_>, report: &mut Report<'_>) {
    let names = || limits.keys().chain(requests.keys());
    let huge = names().any(|name| name.starts_with(HUGE_PAGES));
    if huge && !names().any(|name| ["cpu", "memory"].contains(name)) {
        report.error(path, "Forbidden: HugePages require cpu or memory");
    }
}

/// What all containers of a pod request together and may use at most.
pub(super) fn pod(spec: &PodSpec, resources: &ResourceRequirements, report: &mut Report<'_>) {
    let path = "spec.resources";
    let (limits, requests) = amounts(path, resources, report);
    for (kind, amounts) in [("limits", &limits), ("requests", &requests)] {
        for name in amounts.keys() {
            let repeated = kind == "requests" && limits.contains_key(name);
            if !["cpu", "memory"].contains(name) && !name.starts_with(HUGE_PAGES) && !repeated {
                report.unsupported(format!("{path}.{kind}[{name}]"), name, &["cpu", "hugepages-*", "memory"]);
            }
        }
    }
    huge_pages(path, &limits, &requests, report);
    for (name, request) in &requests {
        let sum = super::super::default::aggregate(spec, name);
        if let Some(sum) = sum.filter(|sum| sum > request) {
            let rule = format!("must be greater than or equal to aggregate container requests of {sum}");
            report.invalid(format!("{path}.requests[{name}]"), &request.to_string(), &rule);
        }
    }
    let lists = [("containers", Some(&spec.containers)), ("initContainers", spec.init_containers.as_ref())];
    for (list, containers) in lists {
        for (index, container) in containers.into_iter().flatten().enumerate() {
            let own = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
            for (name, text) in own.into_iter().flatten() {
                let (Some(most), Ok(own)) = (limits.get(name.as_str()), Quantity::parse(&text.0)) else { continue };
                if own > *most {
                    let field = format!("spec.{list}[{index}].resources.limits[{name}]");
                    report.invalid(field, &text.0, &format!("must be less than or equal to pod limits of {most}"));
                }
            }
        }
    }
}

/// `resizePolicy` of a container.
pub(super) fn resize(container: &Container, path: &str, spec: &PodSpec, report: &mut Report<'_>) {
    let mut known = HashSet::new();
    for (index, policy) in container.resize_policy.iter().flatten().enumerate() {
        let path = format!("{path}.resizePolicy[{index}]");
        one_of(&format!("{path}.resourceName"), &policy.resource_name, &["cpu", "memory"], report);
        let restart = policy.restart_policy.as_str();
        let field = format!("{path}.restartPolicy");
        one_of(&field, restart, &["NotRequired", "RestartContainer"], report);
        if restart == "RestartContainer" && spec.restart_policy.as_deref() == Some("Never") {
            report.invalid(field, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
        if !known.insert(policy.resource_name.as_str()) {
            report.duplicate(path, &policy.resource_name);
        }
    }
}

const HUGE_PAGES: &str = "hugepages-";

fn is_standard(name: &str) -> bool {
    ["cpu", "memory", "ephemeral-storage"].contains(&name) || name.starts_with(HUGE_PAGES)
}

/// Whether parts of one can be asked for.
fn is_divisible(name: &str) -> bool {
    ["cpu", "memory", "ephemeral-storage"].contains(&name)
}

/// Whether more can be promised than there is, so that a request may be below its limit.
fn is_overcommitted(name: &str) -> bool {
    !name.contains('/') && !name.starts_with(HUGE_PAGES)
}

/// Whether this is a size of pages, as in `hugepages-2Mi`.
pub(super) fn is_page_size(text: &str) -> bool {
    page_size(text).is_some()
}

fn page_size(text: &str) -> Option<Quantity> {
    Quantity::parse(text).ok().filter(|size| size.is_integer() && *size > Quantity::ZERO)
}

/// `resourceFieldRef` of an environment variable or a file.
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
