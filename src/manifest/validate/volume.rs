//! Volumes.

use super::super::Quantity;
use super::super::pattern;
use super::super::tree::{Node, Value};
use super::{Report, names, one_of};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Volume};
use std::collections::HashSet;

const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks the volumes and returns their names.
pub(super) fn check<'v>(volumes: &'v [Volume], document: &Node, report: &mut Report<'_>) -> HashSet<&'v str> {
    let mut known = HashSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("spec.volumes[{index}]");
        if volume.name.is_empty() {
            report.required(format!("{path}.name"), "");
        } else {
            names::label(&format!("{path}.name"), &volume.name, report);
            if !known.insert(volume.name.as_str()) {
                report.duplicate(format!("{path}.name"), &volume.name);
            }
        }
        if let Some(source) = &volume.host_path {
            host_path(&format!("{path}.hostPath"), source, report);
        }
        if let Some(source) = &volume.empty_dir {
            empty_dir(&format!("{path}.emptyDir"), source, report);
        }
    }
    sources(document, report);
    known
}

/// A volume has one source. Counted in the document: some thirty kinds, of which few are decoded further.
fn sources(document: &Node, report: &mut Report<'_>) {
    for (path, volume) in pattern::matches(document, "spec.volumes[*]") {
        let Value::Map(entries) = &volume.value else { continue };
        let is_source =
            |entry: &&super::super::tree::Entry| entry.key != "name" && matches!(entry.node.value, Value::Map(_));
        for extra in entries.iter().filter(is_source).skip(1) {
            report.error(format!("{path}.{}", extra.key), "Forbidden: may not specify more than 1 volume type");
        }
    }
}

fn host_path(path: &str, source: &HostPathVolumeSource, report: &mut Report<'_>) {
    let field = format!("{path}.path");
    if source.path.is_empty() {
        report.required(field, "");
    } else if source.path.split('/').any(|part| part == "..") {
        report.invalid(field, &source.path, "must not contain '..'");
    } else if !source.path.starts_with('/') {
        // Ours: it would depend on the agent's working directory.
        report.invalid(field, &source.path, "must be an absolute path");
    } else if source.path.contains('\0') {
        report.invalid(field, &source.path, "must not contain a NUL character");
    }
    one_of(&format!("{path}.type"), source.type_.as_deref().unwrap_or_default(), &HOST_PATH_TYPES, report);
}

fn empty_dir(path: &str, source: &EmptyDirVolumeSource, report: &mut Report<'_>) {
    let Some(limit) = &source.size_limit else { return };
    if source.medium.as_deref() != Some("Memory") {
        report.warning(format!("{path}.sizeLimit"), "is enforced for medium Memory only");
    }
    let field = format!("{path}.sizeLimit");
    match Quantity::parse(&limit.0) {
        Ok(quantity) if quantity.is_negative() => {
            report.error(field, "Forbidden: SizeLimit field must be a valid resource quantity");
        }
        Ok(_) => {}
        Err(error) => report.invalid(field, &limit.0, &error.to_string()),
    }
}
