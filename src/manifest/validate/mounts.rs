//! Volume mounts of a container.

use super::container::Scope;
use super::{Report, no_nul, one_of};
use crate::manifest::places;
use k8s_openapi::api::core::v1::{Container, VolumeMount};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// What no runtime could mount at: told here, or the pod would try for ever.
pub(super) fn mountable(field: &str, path: &str, report: &mut Report<'_>) {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        report.invalid(field, path, "must not contain '..'");
    } else if parts.is_empty() {
        report.invalid(field, path, "must not be the root of the container");
    }
}

/// Ours: what is at /dev belongs to the container, which writes into it. Only a privileged container may ask for the
/// machine's, as storage and network daemons do: it has all devices of the machine in its own.
fn over_dev(path: &str, mount: &VolumeMount, privileged: bool, scope: &Scope<'_>, report: &mut Report<'_>) {
    let source = scope.volumes.get(mount.name.as_str()).and_then(|volume| volume.host_path.as_ref());
    let is_dev = |path: &str| path.split('/').filter(|part| !part.is_empty() && *part != ".").eq(["dev"]);
    if !is_dev(&mount.mount_path) {
        return;
    }
    let field = format!("{path}.mountPath");
    let part = [&mount.sub_path, &mount.sub_path_expr].into_iter().flatten().any(|path| !path.is_empty());
    if part || !source.is_some_and(|source| is_dev(&source.path)) {
        let rule = "must not be /dev, unless a hostPath of /dev is mounted there: mount what is needed below it";
        report.invalid(field, &mount.mount_path, rule);
    } else if !privileged {
        let rule = "only a privileged container may have all devices: mount those that are needed below /dev";
        report.invalid(field, &mount.mount_path, rule);
    }
}

/// Ours: told here, as the container would never start.
fn over_own(field: &str, mount: &VolumeMount, scope: &Scope<'_>, report: &mut Report<'_>) {
    let parts = |path: &str| Path::new("/").join(path).components().collect::<PathBuf>();
    let volume = scope.volumes.get(mount.name.as_str());
    let source = volume.and_then(|volume| volume.host_path.as_ref()).map(|source| parts(&source.path));
    if let Some(taken) = places::taken(&parts(&mount.mount_path), source.as_deref()) {
        report.invalid(field, &mount.mount_path, taken.rule());
    }
}

/// What this node cannot mount, or must not, whoever has validated the pod.
pub(super) fn place(path: &str, mount: &VolumeMount, privileged: bool, scope: &Scope<'_>, report: &mut Report<'_>) {
    let field = format!("{path}.mountPath");
    mountable(&field, &mount.mount_path, report);
    over_dev(path, mount, privileged, scope, report);
    over_own(&field, mount, scope, report);
}

pub(super) fn check(container: &Container, path: &str, scope: &Scope<'_>, report: &mut Report<'_>) {
    let privileged = container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true));
    let mut places = HashSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if mount.name.is_empty() {
            report.required(format!("{path}.name"), "");
        } else if !scope.volumes.contains_key(mount.name.as_str()) {
            report.error(format!("{path}.name"), format!("Not found: {:?}", mount.name));
        }
        let field = format!("{path}.mountPath");
        if mount.mount_path.is_empty() {
            report.required(&field, "");
        } else if !places.insert(mount.mount_path.as_str()) {
            report.invalid(&field, &mount.mount_path, "must be unique");
        } else {
            place(&path, mount, privileged, scope, report);
        }
        no_nul(&field, &mount.mount_path, report);
        sub_path(&path, mount, report);
        propagation(&path, mount, privileged, report);
    }
}

fn sub_path(path: &str, mount: &VolumeMount, report: &mut Report<'_>) {
    let sub = mount.sub_path.as_deref().unwrap_or_default();
    let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
    if !sub.is_empty() && !expression.is_empty() {
        report.invalid(format!("{path}.subPathExpr"), expression, "subPathExpr and subPath are mutually exclusive");
    }
    for (field, value) in [("subPath", sub), ("subPathExpr", expression)] {
        let field = format!("{path}.{field}");
        if value.starts_with('/') {
            report.invalid(&field, value, "must be a relative path");
        } else if value.split('/').any(|part| part == "..") {
            report.invalid(&field, value, "must not contain '..'");
        }
        no_nul(&field, value, report);
    }
}

fn propagation(path: &str, mount: &VolumeMount, privileged: bool, report: &mut Report<'_>) {
    let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
    let field = format!("{path}.mountPropagation");
    one_of(&field, propagation, &["Bidirectional", "HostToContainer", "None"], report);
    if propagation == "Bidirectional" && !privileged {
        let rule = "Forbidden: Bidirectional mount propagation is available only to privileged containers";
        report.error(field, rule);
    }
    let recursive = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    let field = format!("{path}.recursiveReadOnly");
    one_of(&field, recursive, &["Disabled", "Enabled", "IfPossible"], report);
    if ["Enabled", "IfPossible"].contains(&recursive) {
        if mount.read_only != Some(true) {
            report.error(&field, "Forbidden: may only be specified when readOnly is true");
        }
        if propagation != "None" {
            let rule = "Forbidden: may only be specified when mountPropagation is None or not specified";
            report.error(field, rule);
        }
    }
}
