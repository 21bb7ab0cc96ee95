//! Volumes.

use super::super::Quantity;
use super::super::pattern;
use super::super::tree::{Node, Value};
use super::{Report, container, names, no_nul, one_of, resources};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, ImageVolumeSource, KeyToPath, PodSpec,
    ProjectedVolumeSource, Volume,
};
use std::collections::{HashMap, HashSet};

/// The volumes of a pod, by name.
pub(super) type Known<'v> = HashMap<&'v str, &'v Volume>;

/// Fields of the pod that a file can hold, besides single labels and annotations.
const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks the volumes and returns those with a name.
pub(super) fn check<'v>(spec: &'v PodSpec, document: &Node, report: &mut Report<'_>) -> Known<'v> {
    let mut known = HashMap::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{index}]");
        if volume.name.is_empty() {
            report.required(format!("{path}.name"), "");
        } else {
            names::label(&format!("{path}.name"), &volume.name, report);
            if known.insert(volume.name.as_str(), volume).is_some() {
                report.duplicate(format!("{path}.name"), &volume.name);
            }
        }
        if let Some(source) = &volume.host_path {
            host_path(&format!("{path}.hostPath"), source, report);
        }
        if let Some(source) = &volume.empty_dir {
            empty_dir(&format!("{path}.emptyDir"), source, report);
        }
        if let Some(source) = &volume.image {
            image(&format!("{path}.image"), source, report);
        }
        if let Some(source) = &volume.config_map {
            let path = format!("{path}.configMap");
            if source.name.is_empty() {
                report.required(format!("{path}.name"), "");
            }
            object_files(&path, source.default_mode, source.items.as_deref(), report);
        }
        if let Some(source) = &volume.secret {
            let path = format!("{path}.secret");
            if source.secret_name.as_deref().unwrap_or_default().is_empty() {
                report.required(format!("{path}.secretName"), "");
            }
            object_files(&path, source.default_mode, source.items.as_deref(), report);
        }
        if let Some(source) = &volume.downward_api {
            let path = format!("{path}.downwardAPI");
            if let Some(mode) = source.default_mode {
                self::mode(&format!("{path}.defaultMode"), mode, report);
            }
            downward(&path, source.items.as_deref(), spec, &mut HashSet::new(), report);
        }
        if let Some(source) = &volume.projected {
            projected(&format!("{path}.projected"), source, spec, report);
        }
    }
    sources(document, report);
    known
}

fn image(path: &str, source: &ImageVolumeSource, report: &mut Report<'_>) {
    let reference = source.reference.as_deref().unwrap_or_default();
    if reference.is_empty() {
        report.required(format!("{path}.reference"), "");
    } else if reference.trim() != reference {
        report.invalid(format!("{path}.reference"), reference, "must not have leading or trailing whitespace");
    }
    let pull = source.pull_policy.as_deref().unwrap_or_default();
    one_of(&format!("{path}.pullPolicy"), pull, &["Always", "IfNotPresent", "Never"], report);
}

/// The files that a volume makes of an object's keys.
fn object_files(path: &str, default_mode: Option<i32>, items: Option<&[KeyToPath]>, report: &mut Report<'_>) {
    if let Some(mode) = default_mode {
        self::mode(&format!("{path}.defaultMode"), mode, report);
    }
    keys(path, items, &mut HashSet::new(), report);
}

/// The keys of an object that become files, and where; `taken` are the paths that the volume has already.
fn keys<'f>(path: &str, items: Option<&'f [KeyToPath]>, taken: &mut HashSet<&'f str>, report: &mut Report<'_>) {
    for (index, item) in items.into_iter().flatten().enumerate() {
        let path = format!("{path}.items[{index}]");
        if item.key.is_empty() {
            report.required(format!("{path}.key"), "");
        }
        let field = format!("{path}.path");
        local_path(&field, &item.path, report);
        if !item.path.is_empty() && !taken.insert(item.path.as_str()) {
            // Of a volume of one object ours: one of the two files would be lost without a word.
            report.duplicate(field, &item.path);
        }
        if let Some(mode) = item.mode {
            self::mode(&format!("{path}.mode"), mode, report);
        }
    }
}

/// The files of one source; `taken` are the paths that the volume has already.
fn downward<'f>(
    path: &str,
    items: Option<&'f [DownwardAPIVolumeFile]>,
    spec: &PodSpec,
    taken: &mut HashSet<&'f str>,
    report: &mut Report<'_>,
) {
    for (index, item) in items.into_iter().flatten().enumerate() {
        let path = format!("{path}.items[{index}]");
        let field = format!("{path}.path");
        local_path(&field, &item.path, report);
        if !item.path.is_empty() && !taken.insert(item.path.as_str()) {
            // Ours: one of the two files would be lost without a word.
            report.duplicate(field, &item.path);
        }
        if let Some(mode) = item.mode {
            self::mode(&format!("{path}.mode"), mode, report);
        }
        match (&item.field_ref, &item.resource_field_ref) {
            (Some(_), Some(_)) => {
                let rule = "Invalid value: fieldRef and resourceFieldRef can not be specified simultaneously";
                report.error(&path, rule);
            }
            (None, None) => report.required(&path, "one of fieldRef and resourceFieldRef is required"),
            (Some(field), None) => {
                let path = format!("{path}.fieldRef");
                let version = field.api_version.as_deref().unwrap_or_default();
                one_of(&format!("{path}.apiVersion"), version, &["v1"], report);
                container::field_path(&format!("{path}.fieldPath"), &field.field_path, &FILE_FIELDS, report);
            }
            (None, Some(selector)) => {
                let path = format!("{path}.resourceFieldRef");
                match selector.container_name.as_deref().unwrap_or_default() {
                    "" => report.required(format!("{path}.containerName"), ""),
                    name => container::container_name(&path, name, spec, report),
                }
                resources::field_ref(&path, selector, report);
            }
        }
    }
}

fn projected(path: &str, source: &ProjectedVolumeSource, spec: &PodSpec, report: &mut Report<'_>) {
    if let Some(mode) = source.default_mode {
        self::mode(&format!("{path}.defaultMode"), mode, report);
    }
    let mut taken = HashSet::new();
    for (index, projection) in source.sources.iter().flatten().enumerate() {
        let path = format!("{path}.sources[{index}]");
        let kinds = [
            ("clusterTrustBundle", projection.cluster_trust_bundle.is_some()),
            ("configMap", projection.config_map.is_some()),
            ("downwardAPI", projection.downward_api.is_some()),
            ("podCertificate", projection.pod_certificate.is_some()),
            ("secret", projection.secret.is_some()),
            ("serviceAccountToken", projection.service_account_token.is_some()),
        ];
        let mut set = kinds.iter().filter(|(_, set)| *set);
        if set.next().is_none() {
            report.required(&path, "must specify a source");
        }
        for (field, _) in set {
            let rule = "Forbidden: may not specify more than 1 volume type per source";
            report.error(format!("{path}.{field}"), rule);
        }
        if let Some(source) = &projection.config_map {
            let path = format!("{path}.configMap");
            if source.name.is_empty() {
                report.required(format!("{path}.name"), "");
            }
            keys(&path, source.items.as_deref(), &mut taken, report);
        }
        if let Some(source) = &projection.secret {
            let path = format!("{path}.secret");
            if source.name.is_empty() {
                report.required(format!("{path}.name"), "");
            }
            keys(&path, source.items.as_deref(), &mut taken, report);
        }
        if let Some(source) = &projection.downward_api {
            downward(&format!("{path}.downwardAPI"), source.items.as_deref(), spec, &mut taken, report);
        }
    }
}

fn mode(field: &str, mode: i32, report: &mut Report<'_>) {
    if !(0..=0o777).contains(&mode) {
        report.invalid_number(field, mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

/// The path of a file within a volume.
pub(super) fn local_path(field: &str, path: &str, report: &mut Report<'_>) {
    const LONGEST: usize = 4096;
    const LONGEST_NAME: usize = 255;
    if path.is_empty() {
        report.required(field, "");
    } else if path.starts_with('/') {
        report.invalid(field, path, "must be a relative path");
    } else if path.split('/').any(|part| part == "..") {
        report.invalid(field, path, "must not contain '..'");
    } else if path.starts_with("..") {
        report.invalid(field, path, "must not start with '..'");
    } else if path.len() > LONGEST || path.split('/').any(|part| part.len() > LONGEST_NAME) {
        // Ours: the volume could never be written.
        report.error(field, format!("Too long: may not be more than {LONGEST} bytes, its parts {LONGEST_NAME}"));
    }
    no_nul(field, path, report);
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
    let medium = source.medium.as_deref().unwrap_or_default();
    // Ours: the API server takes any word, and the volume can then never be made.
    match medium.strip_prefix("HugePages-") {
        Some(size) => {
            if !resources::is_page_size(size) {
                report.invalid(format!("{path}.medium"), medium, "must name a page size, as in HugePages-2Mi");
            }
        }
        None => one_of(&format!("{path}.medium"), medium, &["", "HugePages", "HugePages-<size>", "Memory"], report),
    }
    let Some(limit) = &source.size_limit else { return };
    let field = format!("{path}.sizeLimit");
    match Quantity::parse(&limit.0) {
        Ok(quantity) if quantity.is_negative() => {
            report.error(field, "Forbidden: SizeLimit field must be a valid resource quantity");
        }
        Ok(_) => {}
        Err(error) => report.invalid(field, &limit.0, &error.to_string()),
    }
}
