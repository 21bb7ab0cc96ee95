//! What the API server checks when a Pod is created, in its words and with its paths.

mod bound;
mod container;
mod data;
mod handlers;
mod mounts;
mod names;
mod network;
mod resources;
mod scheduling;
mod security;
#[cfg(test)]
mod tests;
mod volume;

pub(super) use data::{config_map, secret};

use super::report::Report;
use super::tree::Node;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

/// Annotations of one object may not be longer than this, keys and values together, in bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// A UID names folders and sockets; with this many bytes every path of a pod stays within the kernel's limits.
const MAX_UID: usize = 63;

/// Checks the name before it gets the node's suffix, which would hide that it is missing.
pub(super) fn name_as_written(pod: &Pod, report: &mut Report<'_>) {
    name(&pod.metadata, report);
}

fn name(metadata: &ObjectMeta, report: &mut Report<'_>) {
    if metadata.name.as_deref().unwrap_or_default().is_empty() {
        report.required("metadata.name", "");
    }
}

pub(super) use bound::pod as bound;

/// Checks a defaulted pod that has its identity.
pub(super) fn pod(pod: &Pod, document: &Node, report: &mut Report<'_>) {
    metadata(&pod.metadata, report);
    uid(&pod.metadata, report);
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

/// Ours: the API server chooses UIDs itself. This one becomes a folder's name.
fn uid(metadata: &ObjectMeta, report: &mut Report<'_>) {
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let fits = uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if uid.is_empty() || uid.len() > MAX_UID || !fits {
        let rule = "a UID must consist of at most 63 letters, digits, '-' or '_'";
        report.invalid("metadata.uid", uid, rule);
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
    if let Some(name) = spec.node_name.as_deref() {
        names::subdomain("spec.nodeName", name, report);
    }
    if let Some(os) = &spec.os {
        match os.name.as_str() {
            "" => report.required("spec.os.name", ""),
            "linux" => {}
            // As kubelet's PodOSNotSupported, but before anything of the pod is made.
            "windows" => report.invalid("spec.os.name", "windows", "this node runs linux"),
            other => report.unsupported("spec.os.name", other, &["linux", "windows"]),
        }
    }
    security::pod(spec, report);
    network::check(spec, report);
    scheduling::check(spec, report);
    let volumes = volume::check(spec, document, report);
    containers(spec, &volumes, report);
    if let Some(requirements) = &spec.resources {
        resources::pod(spec, requirements, report);
    }
}

fn containers(spec: &PodSpec, volumes: &volume::Known<'_>, report: &mut Report<'_>) {
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
        container::app(app, &path, &scope, report);
        container::host_ports(app, &path, &mut ports, report);
    }
    for (index, init) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{index}]");
        if !init.name.is_empty() && !names.insert(init.name.as_str()) {
            report.duplicate(format!("{path}.name"), &init.name);
        }
        container::init(init, &path, &scope, report);
        container::host_ports(init, &path, &mut HashSet::new(), report);
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

/// Ours: the kernel's strings end at a NUL character, so that the container would see another text.
fn no_nul(field: &str, text: &str, report: &mut Report<'_>) {
    if text.contains('\0') {
        report.invalid(field, text, "must not contain a NUL character");
    }
}
