//! The defaults that an API server applies to a Pod. Idempotent.

use super::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, EnvVar, HTTPGetAction, Lifecycle, Pod, PodSpec, Probe, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::{BTreeMap, BTreeSet};

/// Mode of files in secret, configMap, downwardAPI and projected volumes.
const DEFAULT_MODE: i32 = 0o644;

/// Fills in what the manifest leaves out.
pub(super) fn apply(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    text(&mut spec.restart_policy, "Always");
    text(&mut spec.dns_policy, "ClusterFirst");
    text(&mut spec.scheduler_name, "default-scheduler");
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_default();
    let grace = spec.termination_grace_period_seconds.get_or_insert(30);
    if *grace < 0 {
        *grace = 1;
    }
    service_account(spec);
    let host_network = spec.host_network.unwrap_or(false);
    for init in spec.init_containers.iter_mut().flatten() {
        container(init, host_network);
    }
    for app in &mut spec.containers {
        container(app, host_network);
    }
    for entry in spec.volumes.iter_mut().flatten() {
        volume(entry);
    }
    amounts(spec.overhead.as_mut());
    pod_resources(spec);
}

/// Resources of the whole pod, where it sets some: limits of huge pages add up from the containers', and what has a
/// limit but no request gets what the containers request, else its limit (as the API server).
fn pod_resources(spec: &mut PodSpec) {
    let Some(mut resources) = spec.resources.take() else { return };
    amounts(resources.limits.as_mut());
    amounts(resources.requests.as_mut());
    let mut limits = resources.limits.take().unwrap_or_default();
    let mut requests = resources.requests.take().unwrap_or_default();
    if !limits.is_empty() || !requests.is_empty() {
        let everyone = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let pages: BTreeSet<String> = everyone()
            .filter_map(|container| container.resources.as_ref()?.limits.as_ref())
            .flat_map(BTreeMap::keys)
            .filter(|name| name.starts_with("hugepages-"))
            .cloned()
            .collect();
        for name in pages {
            if limits.contains_key(&name) || requests.contains_key(&name) {
                continue;
            }
            // A container's request of huge pages is its limit.
            if let Some(sum) = aggregate(spec, &name) {
                limits.insert(name, ApiQuantity(sum.to_string()));
            }
        }
        for (name, limit) in &limits {
            if !requests.contains_key(name) {
                let sum = aggregate(spec, name).map(|sum| ApiQuantity(sum.to_string()));
                requests.insert(name.clone(), sum.unwrap_or_else(|| limit.clone()));
            }
        }
    }
    resources.limits = (!limits.is_empty()).then_some(limits);
    resources.requests = (!requests.is_empty()).then_some(requests);
    spec.resources = Some(resources);
}

/// What the containers of a pod request of a resource at most at one time: the app's and the sidecars together, or one
/// init container with the sidecars before it. `None` when nobody requests it.
pub(super) fn aggregate(spec: &PodSpec, name: &str) -> Option<Quantity> {
    let request = |container: &Container| {
        let requests = container.resources.as_ref()?.requests.as_ref()?;
        Quantity::parse(&requests.get(name)?.0).ok()
    };
    let add = |sum: Option<Quantity>, amount: Option<Quantity>| match (sum, amount) {
        (Some(sum), Some(amount)) => Some(sum.plus(&amount)),
        (sum, amount) => sum.or(amount),
    };
    let (mut sidecars, mut peak) = (None, None);
    for init in spec.init_containers.iter().flatten() {
        let own = request(init);
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = add(sidecars, own);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(add(sidecars, own));
        }
    }
    let running = spec.containers.iter().fold(sidecars, |sum, container| add(sum, request(container)));
    running.max(peak)
}

/// `serviceAccount` is the old name of `serviceAccountName`; the new field wins.
fn service_account(spec: &mut PodSpec) {
    let name = [&spec.service_account_name, &spec.service_account].into_iter().flatten().find(|name| !name.is_empty());
    let name = name.cloned();
    spec.service_account_name.clone_from(&name);
    spec.service_account = name;
}

fn container(container: &mut Container, host_network: bool) {
    let pull = pull_policy(container.image.as_deref().unwrap_or_default());
    text(&mut container.image_pull_policy, pull);
    text(&mut container.termination_message_path, "/dev/termination-log");
    text(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        text(&mut port.protocol, "TCP");
        if host_network && port.host_port.unwrap_or(0) == 0 {
            port.host_port = Some(port.container_port);
        }
    }
    for variable in container.env.iter_mut().flatten() {
        env(variable);
    }
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    for probe in probes.into_iter().flatten() {
        self::probe(probe);
    }
    if let Some(lifecycle) = &mut container.lifecycle {
        hooks(lifecycle);
    }
    let resources = container.resources.get_or_insert_default();
    amounts(resources.limits.as_mut());
    amounts(resources.requests.as_mut());
    if let Some(limits) = &resources.limits
        && !limits.is_empty()
    {
        let requests = resources.requests.get_or_insert_default();
        // One that is no amount is told once, where it was written.
        for (name, limit) in limits.iter().filter(|(_, limit)| Quantity::parse(&limit.0).is_ok()) {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
}

fn env(variable: &mut EnvVar) {
    let Some(source) = &mut variable.value_from else { return };
    if let Some(field) = &mut source.field_ref {
        text(&mut field.api_version, "v1");
    }
    if let Some(key) = &mut source.file_key_ref {
        key.optional.get_or_insert(false);
    }
    if let Some(resource) = &mut source.resource_field_ref
        && let Some(divisor) = &mut resource.divisor
    {
        canonical(divisor);
    }
}

fn probe(probe: &mut Probe) {
    number(&mut probe.timeout_seconds, 1);
    number(&mut probe.period_seconds, 10);
    number(&mut probe.success_threshold, 1);
    number(&mut probe.failure_threshold, 3);
    if let Some(action) = &mut probe.http_get {
        http(action);
    }
    if let Some(action) = &mut probe.grpc {
        action.service.get_or_insert_default();
    }
}

fn hooks(lifecycle: &mut Lifecycle) {
    for handler in [&mut lifecycle.post_start, &mut lifecycle.pre_stop].into_iter().flatten() {
        if let Some(action) = &mut handler.http_get {
            http(action);
        }
    }
}

fn http(action: &mut HTTPGetAction) {
    text(&mut action.path, "/");
    text(&mut action.scheme, "HTTP");
}

fn volume(volume: &mut Volume) {
    let bare = Volume { name: volume.name.clone(), ..Volume::default() };
    if *volume == bare {
        volume.empty_dir = Some(Default::default());
    }
    if let Some(source) = &mut volume.empty_dir
        && let Some(limit) = &mut source.size_limit
    {
        canonical(limit);
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(source) = &mut volume.secret {
        source.default_mode.get_or_insert(DEFAULT_MODE);
    }
    if let Some(source) = &mut volume.config_map {
        source.default_mode.get_or_insert(DEFAULT_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        source.default_mode.get_or_insert(DEFAULT_MODE);
        source.items.iter_mut().flatten().for_each(file);
    }
    if let Some(source) = &mut volume.projected {
        source.default_mode.get_or_insert(DEFAULT_MODE);
        for projection in source.sources.iter_mut().flatten() {
            if let Some(token) = &mut projection.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
            let items = projection.downward_api.iter_mut().filter_map(|source| source.items.as_mut()).flatten();
            items.for_each(file);
        }
    }
    if let Some(source) = &mut volume.image {
        let pull = pull_policy(source.reference.as_deref().unwrap_or_default());
        text(&mut source.pull_policy, pull);
    }
    if let Some(source) = &mut volume.iscsi {
        text(&mut source.iscsi_interface, "default");
    }
    if let Some(source) = &mut volume.rbd {
        text(&mut source.pool, "rbd");
        text(&mut source.user, "admin");
        text(&mut source.keyring, "/etc/ceph/keyring");
    }
}

/// A file of a downwardAPI volume.
fn file(item: &mut DownwardAPIVolumeFile) {
    if let Some(field) = &mut item.field_ref {
        text(&mut field.api_version, "v1");
    }
    if let Some(divisor) = item.resource_field_ref.as_mut().and_then(|resource| resource.divisor.as_mut()) {
        canonical(divisor);
    }
}

/// `Always` when the tag is `latest` or there is neither tag nor digest.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    // A colon before the last slash belongs to a registry's port.
    let tag = name.rsplit('/').next().unwrap_or_default().split_once(':').map(|(_, tag)| tag);
    match (tag, digest) {
        (Some("latest"), None) => "Always",
        (None, None) if !image.is_empty() => "Always",
        _ => "IfNotPresent",
    }
}

fn text(field: &mut Option<String>, default: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(default.to_owned());
    }
}

/// Zero counts as unset.
fn number(field: &mut Option<i32>, default: i32) {
    if field.unwrap_or(0) == 0 {
        *field = Some(default);
    }
}

/// Amounts in canonical form, rounded up to thousandths. What is no quantity stays for the validation to name.
fn amounts(amounts: Option<&mut BTreeMap<String, ApiQuantity>>) {
    for amount in amounts.into_iter().flat_map(BTreeMap::values_mut) {
        if let Ok(quantity) = Quantity::parse(&amount.0) {
            amount.0 = quantity.rounded_to_milli().to_string();
        }
    }
}

fn canonical(amount: &mut ApiQuantity) {
    if let Ok(quantity) = Quantity::parse(&amount.0) {
        amount.0 = quantity.to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("registry:5000/nginx", "Always"),
            ("nginx:1.29", "IfNotPresent"),
            ("registry:5000/nginx:1.29", "IfNotPresent"),
            ("nginx@sha256:0000", "IfNotPresent"),
            ("nginx:latest@sha256:0000", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
