//! What is checked of a pod that an API server has validated: what its names become on this machine, that its amounts can be
//! read, and where its volumes would be mounted. All else is its business, and that of its version.

use super::container::Scope;
use super::{Report, mounts, names, volume};
use crate::manifest::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use std::collections::HashSet;

pub(in crate::manifest) fn pod(pod: &Pod, report: &mut Report<'_>) {
    super::uid(&pod.metadata, report);
    names::subdomain("metadata.name", pod.metadata.name.as_deref().unwrap_or_default(), report);
    names::label("metadata.namespace", pod.metadata.namespace.as_deref().unwrap_or_default(), report);
    match &pod.spec {
        Some(spec) => self::spec(spec, report),
        None => report.required("spec", ""),
    }
}

fn spec(spec: &PodSpec, report: &mut Report<'_>) {
    let mut volumes = volume::Known::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let field = format!("spec.volumes[{index}].name");
        names::label(&field, &volume.name, report);
        if volumes.insert(&volume.name, volume).is_some() {
            report.duplicate(field, &volume.name);
        }
    }
    if spec.containers.is_empty() {
        report.required("spec.containers", "");
    }
    amounts("spec.resources", spec.resources.as_ref(), report);
    let scope = Scope { spec, volumes: &volumes };
    let mut known = HashSet::new();
    for (index, init) in spec.init_containers.iter().flatten().enumerate() {
        container(&format!("spec.initContainers[{index}]"), init, &scope, &mut known, report);
    }
    for (index, app) in spec.containers.iter().enumerate() {
        container(&format!("spec.containers[{index}]"), app, &scope, &mut known, report);
    }
}

fn container<'c>(
    path: &str,
    container: &'c Container,
    scope: &Scope<'_>,
    known: &mut HashSet<&'c str>,
    report: &mut Report<'_>,
) {
    let field = format!("{path}.name");
    names::label(&field, &container.name, report);
    if !known.insert(&container.name) {
        report.duplicate(field, &container.name);
    }
    amounts(&format!("{path}.resources"), container.resources.as_ref(), report);
    let privileged = container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true));
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if !scope.volumes.contains_key(mount.name.as_str()) {
            report.error(format!("{path}.name"), format!("Not found: {:?}", mount.name));
        }
        mounts::place(&path, mount, privileged, scope, report);
    }
    if let Some(file) = container.termination_message_path.as_deref().filter(|file| !file.is_empty()) {
        mounts::mountable(&format!("{path}.terminationMessagePath"), file, report);
    }
}

fn amounts(path: &str, resources: Option<&ResourceRequirements>, report: &mut Report<'_>) {
    let Some(resources) = resources else { return };
    for (list, all) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for (name, amount) in all.iter().flatten() {
            if Quantity::parse(&amount.0).is_err() {
                report.invalid(format!("{path}.{list}[{name}]"), &amount.0, "is not a quantity");
            }
        }
    }
}
