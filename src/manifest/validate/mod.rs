//! What the API server checks when a Pod is created, in its words and with its paths.

mod container;
mod names;
mod resources;
mod volume;

use super::report::Report;
use super::tree::Node;
use k8s_openapi::api::core::v1::{Pod, PodDNSConfig, PodSecurityContext, PodSpec, SeccompProfile, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

/// Annotations of one object may not be longer than this, keys and values together, in bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// A UID names folders and sockets; with this many bytes every path of a pod stays within the kernel's limits.
const MAX_UID: usize = 63;

/// Checks the name before it gets the node's suffix, which would hide that it is missing.
pub(super) fn name_as_written(pod: &Pod, report: &mut Report<'_>) {
    if pod.metadata.name.as_deref().unwrap_or_default().is_empty() {
        report.required("metadata.name", "");
    }
}

/// Checks a defaulted pod that has its identity.
pub(super) fn pod(pod: &Pod, document: &Node, report: &mut Report<'_>) {
    metadata(&pod.metadata, report);
    if let Some(spec) = &pod.spec {
        self::spec(spec, document, report);
    }
}

fn metadata(metadata: &ObjectMeta, report: &mut Report<'_>) {
    let name = metadata.name.as_deref().unwrap_or_default();
    if !report.has_error("metadata.name") {
        names::subdomain("metadata.name", name, report);
    }
    names::label("metadata.namespace", metadata.namespace.as_deref().unwrap_or_default(), report);
    // Ours: the API server chooses UIDs itself. This one becomes a folder's name.
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let fits = uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if uid.is_empty() || uid.len() > MAX_UID || !fits {
        let rule = "a UID must consist of at most 63 letters, digits, '-' or '_'";
        report.invalid("metadata.uid", uid, rule);
    }
    for (key, value) in metadata.labels.iter().flatten() {
        labels_entry("metadata.labels", key, value, report);
    }
    let mut total = 0;
    for (key, value) in metadata.annotations.iter().flatten() {
        total += key.len() + value.len();
        names::qualified("metadata.annotations", key, &key.to_lowercase(), report);
    }
    if total > MAX_ANNOTATIONS {
        report.error("metadata.annotations", format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes"));
    }
}

fn labels_entry(field: &str, key: &str, value: &str, report: &mut Report<'_>) {
    names::qualified(field, key, key, report);
    names::label_value(field, key, value, report);
}

fn spec(spec: &PodSpec, document: &Node, report: &mut Report<'_>) {
    let restart = spec.restart_policy.as_deref().unwrap_or_default();
    one_of("spec.restartPolicy", restart, &["Always", "Never", "OnFailure"], report);
    if let Some(seconds) = spec.active_deadline_seconds {
        range("spec.activeDeadlineSeconds", seconds, 1, i32::MAX.into(), report);
    }
    for (field, name) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if let Some(name) = name.as_deref().filter(|name| !name.is_empty()) {
            names::label(field, name, report);
        }
    }
    if let Some(name) = spec.node_name.as_deref() {
        names::subdomain("spec.nodeName", name, report);
    }
    for (key, value) in spec.node_selector.iter().flatten() {
        labels_entry("spec.nodeSelector", key, value, report);
    }
    if let Some(context) = &spec.security_context {
        pod_security(context, report);
    }
    let policy = spec.dns_policy.as_deref().unwrap_or_default();
    one_of("spec.dnsPolicy", policy, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], report);
    dns(spec.dns_config.as_ref(), policy, report);
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        ip(&format!("spec.hostAliases[{index}].ip"), &alias.ip, report);
        for (position, name) in alias.hostnames.iter().flatten().enumerate() {
            names::subdomain(&format!("spec.hostAliases[{index}].hostnames[{position}]"), name, report);
        }
    }
    for (index, toleration) in spec.tolerations.iter().flatten().enumerate() {
        self::toleration(&format!("spec.tolerations[{index}]"), toleration, report);
    }
    let volumes = volume::check(spec.volumes.as_deref().unwrap_or_default(), document, report);
    containers(spec, &volumes, report);
}

fn containers(spec: &PodSpec, volumes: &HashSet<&str>, report: &mut Report<'_>) {
    if spec.containers.is_empty() {
        report.required("spec.containers", "");
    }
    let scope = container::Scope { spec, volumes };
    let mut names = HashSet::new();
    let mut ports = HashSet::new();
    for (index, app) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{index}]");
        if !app.name.is_empty() && !names.insert(app.name.as_str()) {
            report.duplicate(format!("{path}.name"), &app.name);
        }
        container::check(app, &path, &scope, report);
        container::host_ports(app, &path, &mut ports, report);
    }
    for (index, init) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{index}]");
        if !init.name.is_empty() && !names.insert(init.name.as_str()) {
            report.duplicate(format!("{path}.name"), &init.name);
        }
        container::check(init, &path, &scope, report);
        container::host_ports(init, &path, &mut HashSet::new(), report);
    }
}

fn pod_security(context: &PodSecurityContext, report: &mut Report<'_>) {
    let path = "spec.securityContext";
    let ids = [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group), ("fsGroup", context.fs_group)];
    for (field, id) in ids {
        if let Some(id) = id {
            range(&format!("{path}.{field}"), id, 0, i32::MAX.into(), report);
        }
    }
    for (index, group) in context.supplemental_groups.iter().flatten().enumerate() {
        range(&format!("{path}.supplementalGroups[{index}]"), *group, 0, i32::MAX.into(), report);
    }
    if let Some(profile) = &context.seccomp_profile {
        seccomp(&format!("{path}.seccompProfile"), profile, report);
    }
}

fn seccomp(path: &str, profile: &SeccompProfile, report: &mut Report<'_>) {
    let localhost = profile.localhost_profile.as_deref().unwrap_or_default();
    match profile.type_.as_str() {
        "" => report.required(format!("{path}.type"), ""),
        "Localhost" if localhost.is_empty() => {
            report.required(format!("{path}.localhostProfile"), "must be set when seccomp type is Localhost");
        }
        "Localhost" => {}
        "RuntimeDefault" | "Unconfined" if localhost.is_empty() => {}
        "RuntimeDefault" | "Unconfined" => {
            let rule = "can only be set when seccomp type is Localhost";
            report.invalid(format!("{path}.localhostProfile"), localhost, rule);
        }
        other => report.unsupported(format!("{path}.type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

fn dns(config: Option<&PodDNSConfig>, policy: &str, report: &mut Report<'_>) {
    const SERVERS: usize = 3;
    const SEARCHES: usize = 32;
    const SEARCH_CHARS: usize = 2048;
    let Some(config) = config else {
        if policy == "None" {
            report.required("spec.dnsConfig", "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let servers = config.nameservers.as_deref().unwrap_or_default();
    if policy == "None" && servers.is_empty() {
        let rule = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        report.required("spec.dnsConfig.nameservers", rule);
    }
    if servers.len() > SERVERS {
        let reason = format!("Invalid value: must not have more than {SERVERS} nameservers");
        report.error("spec.dnsConfig.nameservers", reason);
    }
    for (index, server) in servers.iter().enumerate() {
        ip(&format!("spec.dnsConfig.nameservers[{index}]"), server, report);
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    if searches.len() > SEARCHES {
        let reason = format!("Invalid value: must not have more than {SEARCHES} search paths");
        report.error("spec.dnsConfig.searches", reason);
    }
    if searches.iter().map(|search| search.len() + 1).sum::<usize>() > SEARCH_CHARS + 1 {
        let reason = format!(
            "Invalid value: must not have more than {SEARCH_CHARS} characters (including spaces) in the search list"
        );
        report.error("spec.dnsConfig.searches", reason);
    }
    for (index, search) in searches.iter().enumerate() {
        // As the API server: a lone dot is fine, so are a trailing dot and underscores.
        let name = search.strip_suffix('.').unwrap_or(search);
        if search != "." {
            names::subdomain(&format!("spec.dnsConfig.searches[{index}]"), &name.replace('_', "-"), report);
        }
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            report.required(format!("spec.dnsConfig.options[{index}]"), "must not be empty");
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
        names::qualified(&format!("{path}.key"), key, key, report);
    }
    match operator {
        "" | "Equal" => names::label_value(&format!("{path}.operator"), key, value, report),
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

/// `Unsupported value` unless it is one of these.
fn one_of(field: &str, value: &str, supported: &[&str], report: &mut Report<'_>) {
    if !supported.contains(&value) {
        report.unsupported(field, value, supported);
    }
}

/// `must be between 1 and 65535, inclusive`.
fn range(field: &str, value: impl Into<i64>, min: i64, max: i64, report: &mut Report<'_>) {
    let value = value.into();
    if !(min..=max).contains(&value) {
        report.invalid_number(field, value, &format!("must be between {min} and {max}, inclusive"));
    }
}

fn not_negative(field: &str, value: impl Into<i64>, report: &mut Report<'_>) {
    let value = value.into();
    if value < 0 {
        report.invalid_number(field, value, "must be greater than or equal to 0");
    }
}

fn ip(field: &str, value: &str, report: &mut Report<'_>) {
    if value.parse::<IpAddr>().is_err() {
        report.invalid(field, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

/// The texts of a map's quantities that are none are reported; the others come back by name.
fn quantities<'q>(
    field: &str,
    amounts: Option<&'q BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
    report: &mut Report<'_>,
) -> BTreeMap<&'q str, super::Quantity> {
    let mut parsed = BTreeMap::new();
    for (name, amount) in amounts.into_iter().flatten() {
        match super::Quantity::parse(&amount.0) {
            Ok(quantity) => {
                parsed.insert(name.as_str(), quantity);
            }
            Err(error) => report.invalid(format!("{field}[{name}]"), &amount.0, &error.to_string()),
        }
    }
    parsed
}
