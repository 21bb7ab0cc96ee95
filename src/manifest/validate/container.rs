//! Containers.

use super::volume::{self, Known};
use super::{Report, data, handlers, ip, mounts, names, no_nul, one_of, range, resources, security};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerRestartRule, ContainerRestartRuleOnExitCodes, EnvFromSource, EnvVar,
    FileKeySelector, PodSpec, Probe,
};
use std::collections::{HashMap, HashSet};

/// Fields of the pod that an environment variable can take its value from, besides single labels and annotations.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// What a container may refer to.
pub(super) struct Scope<'s> {
    pub(super) spec: &'s PodSpec,
    pub(super) volumes: &'s Known<'s>,
}

/// A container of the app.
pub(super) fn app(container: &Container, path: &str, scope: &Scope<'_>, report: &mut Report<'_>) {
    check(container, path, scope, report);
    running(container, path, scope, report);
}

/// An init container: one that is not restarted for ever has to end, hence nothing is done while it runs.
pub(super) fn init(container: &Container, path: &str, scope: &Scope<'_>, report: &mut Report<'_>) {
    check(container, path, scope, report);
    if container.restart_policy.as_deref() == Some("Always") {
        return running(container, path, scope, report);
    }
    let probes = probes(container).map(|(field, probe)| (field, probe.is_some()));
    for (field, set) in probes.into_iter().chain([("lifecycle", container.lifecycle.is_some())]) {
        if set {
            let rule = "Forbidden: may not be set for init containers without restartPolicy=Always";
            report.error(format!("{path}.{field}"), rule);
        }
    }
    if container.resize_policy.as_ref().is_some_and(|policies| !policies.is_empty()) {
        let rule = "Forbidden: may not be set for init containers without restartPolicy=Always";
        report.error(format!("{path}.resizePolicy"), rule);
    }
}

fn check(container: &Container, path: &str, scope: &Scope<'_>, report: &mut Report<'_>) {
    if container.name.is_empty() {
        report.required(format!("{path}.name"), "");
    } else {
        names::label(&format!("{path}.name"), &container.name, report);
    }
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        report.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        report.invalid(format!("{path}.image"), image, "must not have leading or trailing whitespace");
    }
    let pull = container.image_pull_policy.as_deref().unwrap_or_default();
    one_of(&format!("{path}.imagePullPolicy"), pull, &["Always", "IfNotPresent", "Never"], report);
    let message = container.termination_message_policy.as_deref().unwrap_or_default();
    one_of(&format!("{path}.terminationMessagePolicy"), message, &["FallbackToLogsOnError", "File"], report);
    if let Some(message) = container.termination_message_path.as_deref().filter(|path| !path.is_empty()) {
        mounts::mountable(&format!("{path}.terminationMessagePath"), message, report);
    }
    for (field, words) in [("command", &container.command), ("args", &container.args)] {
        for (index, word) in words.iter().flatten().enumerate() {
            no_nul(&format!("{path}.{field}[{index}]"), word, report);
        }
    }
    no_nul(&format!("{path}.workingDir"), container.working_dir.as_deref().unwrap_or_default(), report);
    ports(container, path, scope, report);
    let mut variables = HashSet::new();
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        env_from(&format!("{path}.envFrom[{index}]"), source, report);
    }
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{index}]");
        env(&path, variable, scope, report);
        if !variable.name.is_empty() && !variables.insert(variable.name.as_str()) {
            report.warning(path, format!("hides previous definition of {:?}", variable.name));
        }
    }
    mounts::check(container, path, scope, report);
    if let Some(requirements) = &container.resources {
        resources::check(&format!("{path}.resources"), requirements, report);
    }
    if let Some(context) = &container.security_context {
        security::container(&format!("{path}.securityContext"), context, scope.spec, report);
    }
    restart(container, path, report);
}

/// Probes, hooks and what else the kubelet does while a container runs.
fn running(container: &Container, path: &str, scope: &Scope<'_>, report: &mut Report<'_>) {
    for (field, probe) in probes(container) {
        if let Some(probe) = probe {
            handlers::probe(&format!("{path}.{field}"), probe, field == "readinessProbe", report);
        }
    }
    if let Some(hooks) = &container.lifecycle {
        let grace = scope.spec.termination_grace_period_seconds.unwrap_or(30);
        handlers::lifecycle(&format!("{path}.lifecycle"), hooks, grace, report);
    }
    resources::resize(container, path, scope.spec, report);
}

fn probes(container: &Container) -> [(&'static str, Option<&Probe>); 3] {
    [
        ("livenessProbe", container.liveness_probe.as_ref()),
        ("readinessProbe", container.readiness_probe.as_ref()),
        ("startupProbe", container.startup_probe.as_ref()),
    ]
}

/// The container's own restart policy, and its rules.
fn restart(container: &Container, path: &str, report: &mut Report<'_>) {
    const MOST_RULES: usize = 20;
    const MOST_CODES: usize = 255;
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    let field = format!("{path}.restartPolicy");
    match container.restart_policy.as_deref() {
        Some(policy) => one_of(&field, policy, &["Always", "Never", "OnFailure"], report),
        None if !rules.is_empty() => report.required(field, "must specify restartPolicy when restart rules are used"),
        None => {}
    }
    let path = format!("{path}.restartPolicyRules");
    if rules.len() > MOST_RULES {
        report.error(&path, format!("Too many: {}: must have at most {MOST_RULES} items", rules.len()));
    }
    for (index, ContainerRestartRule { action, exit_codes }) in rules.iter().enumerate().take(MOST_RULES) {
        let path = format!("{path}[{index}]");
        one_of(&format!("{path}.action"), action, &["Restart", "RestartAllContainers"], report);
        let Some(ContainerRestartRuleOnExitCodes { operator, values }) = exit_codes else {
            report.required(format!("{path}.exitCodes"), "must be specified");
            continue;
        };
        one_of(&format!("{path}.exitCodes.operator"), operator, &["In", "NotIn"], report);
        let values = values.as_deref().unwrap_or_default();
        let field = format!("{path}.exitCodes.values");
        if values.is_empty() {
            report.required(&field, "must have at least one exit code");
        }
        if values.len() > MOST_CODES {
            report.error(&field, format!("Too many: {}: must have at most {MOST_CODES} items", values.len()));
        }
        // Ours: no container ends with another code.
        for (index, code) in values.iter().enumerate().take(MOST_CODES) {
            range(&format!("{field}[{index}]"), *code, 0, 255, report);
        }
    }
}

fn ports(container: &Container, path: &str, scope: &Scope<'_>, report: &mut Report<'_>) {
    let mut names = HashSet::new();
    let mut first = HashMap::new();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let list = format!("{path}.ports");
        let path = format!("{list}[{index}]");
        let earlier =
            *first.entry((port.container_port, &port.protocol, &port.host_port, &port.host_ip)).or_insert(index);
        // One with a host port is an error of its own.
        if earlier != index && port.container_port != 0 && port.host_port.unwrap_or(0) == 0 {
            report.warning(&path, format!("duplicate port definition with {list}[{earlier}]"));
        }
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            if let Err(rule) = names::port_name(name) {
                report.invalid(format!("{path}.name"), name, rule);
            } else if !names.insert(name) {
                report.duplicate(format!("{path}.name"), name);
            }
        }
        self::port(&path, port, scope.spec.host_network.unwrap_or(false), report);
    }
}

fn port(path: &str, port: &ContainerPort, host_network: bool, report: &mut Report<'_>) {
    if port.container_port == 0 {
        report.required(format!("{path}.containerPort"), "");
    } else {
        range(&format!("{path}.containerPort"), port.container_port, 1, 65535, report);
    }
    let host_port = port.host_port.unwrap_or(0);
    // Equal to the container's port, which has been checked, it is most likely a default.
    if host_port != 0 && host_port != port.container_port {
        range(&format!("{path}.hostPort"), host_port, 1, 65535, report);
    }
    if host_network && host_port != port.container_port {
        let rule = "must match `hostPort` when `hostNetwork` is true";
        report.invalid_number(format!("{path}.containerPort"), port.container_port, rule);
    }
    if let Some(address) = port.host_ip.as_deref().filter(|address| !address.is_empty()) {
        ip(&format!("{path}.hostIP"), address, report);
    }
    one_of(&format!("{path}.protocol"), port.protocol.as_deref().unwrap_or_default(), &["SCTP", "TCP", "UDP"], report);
}

/// Reports host ports that another container of `taken` has already.
pub(super) fn host_ports(container: &Container, path: &str, taken: &mut HashSet<String>, report: &mut Report<'_>) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let Some(number) = port.host_port.filter(|number| *number != 0) else { continue };
        let protocol = port.protocol.as_deref().unwrap_or_default();
        let key = format!("{protocol}/{}/{number}", port.host_ip.as_deref().unwrap_or_default());
        if taken.contains(&key) {
            report.duplicate(format!("{path}.ports[{index}].hostPort"), &key);
        }
        taken.insert(key);
    }
}

fn env(path: &str, variable: &EnvVar, scope: &Scope<'_>, report: &mut Report<'_>) {
    if variable.name.is_empty() {
        report.required(format!("{path}.name"), "");
    } else {
        env_name(&format!("{path}.name"), &variable.name, report);
    }
    no_nul(&format!("{path}.value"), variable.value.as_deref().unwrap_or_default(), report);
    let Some(source) = &variable.value_from else { return };
    let path = format!("{path}.valueFrom");
    if !variable.value.as_deref().unwrap_or_default().is_empty() {
        report.invalid(&path, "", "may not be specified when `value` is not empty");
    }
    let set = [
        source.field_ref.is_some(),
        source.resource_field_ref.is_some(),
        source.config_map_key_ref.is_some(),
        source.secret_key_ref.is_some(),
        source.file_key_ref.is_some(),
    ];
    match set.iter().filter(|set| **set).count() {
        0 => {
            let kinds = "fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef or fileKeyRef";
            report.invalid(&path, "", &format!("must specify one of: {kinds}"));
        }
        1 => {}
        _ => report.invalid(&path, "", "may not have more than one field specified at a time"),
    }
    if let Some(field) = &source.field_ref {
        let path = format!("{path}.fieldRef");
        one_of(&format!("{path}.apiVersion"), field.api_version.as_deref().unwrap_or_default(), &["v1"], report);
        field_path(&format!("{path}.fieldPath"), &field.field_path, &ENV_FIELDS, report);
    }
    if let Some(selector) = &source.resource_field_ref {
        let path = format!("{path}.resourceFieldRef");
        resources::field_ref(&path, selector, report);
        let name = selector.container_name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            container_name(&path, name, scope.spec, report);
        }
    }
    if let Some(selector) = &source.config_map_key_ref {
        object_key(&format!("{path}.configMapKeyRef"), &selector.name, &selector.key, report);
    }
    if let Some(selector) = &source.secret_key_ref {
        object_key(&format!("{path}.secretKeyRef"), &selector.name, &selector.key, report);
    }
    if let Some(file) = &source.file_key_ref {
        file_key(&format!("{path}.fileKeyRef"), file, scope, report);
    }
}

/// Variables of all keys of an object.
fn env_from(path: &str, source: &EnvFromSource, report: &mut Report<'_>) {
    env_name(&format!("{path}.prefix"), source.prefix.as_deref().unwrap_or_default(), report);
    match (&source.config_map_ref, &source.secret_ref) {
        (None, None) => report.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
        (Some(_), Some(_)) => report.invalid(path, "", "may not have more than one field specified at a time"),
        _ => {}
    }
    if let Some(map) = &source.config_map_ref {
        object_name(&format!("{path}.configMapRef.name"), &map.name, report);
    }
    if let Some(secret) = &source.secret_ref {
        object_name(&format!("{path}.secretRef.name"), &secret.name, report);
    }
}

fn object_key(path: &str, name: &str, key: &str, report: &mut Report<'_>) {
    object_name(&format!("{path}.name"), name, report);
    let field = format!("{path}.key");
    if key.is_empty() {
        report.required(field, "");
    } else {
        data::key(&field, key, report);
    }
}

fn object_name(field: &str, name: &str, report: &mut Report<'_>) {
    if name.is_empty() {
        report.required(field, "");
    } else {
        names::subdomain(field, name, report);
    }
}

/// `resourceFieldRef.containerName` has to be that of a container of the pod.
pub(super) fn container_name(path: &str, name: &str, spec: &PodSpec, report: &mut Report<'_>) {
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    if !all.any(|container| container.name == name) {
        report.error(format!("{path}.containerName"), format!("Not found: {name:?}"));
    }
}

/// `fieldRef.fieldPath`; `whole` are the fields that it may name, besides single labels and annotations.
pub(super) fn field_path(field: &str, path: &str, whole: &[&str], report: &mut Report<'_>) {
    if path.is_empty() {
        return report.required(field, "");
    }
    if let Some((map, rest)) = path.split_once("['") {
        let key = rest.strip_suffix("']");
        match (map, key) {
            ("metadata.labels", Some(key)) => return names::qualified(field, key, key, report),
            ("metadata.annotations", Some(key)) => return names::qualified(field, key, &key.to_lowercase(), report),
            _ => {}
        }
    }
    one_of(field, path, whole, report);
}

fn file_key(path: &str, file: &FileKeySelector, scope: &Scope<'_>, report: &mut Report<'_>) {
    let field = format!("{path}.volumeName");
    match scope.volumes.get(file.volume_name.as_str()) {
        _ if file.volume_name.is_empty() => report.required(field, ""),
        None => report.error(field, format!("Not found: {:?}", file.volume_name)),
        Some(volume) if volume.empty_dir.is_none() => {
            report.invalid(field, &file.volume_name, "referenced volume must be of type emptyDir");
        }
        Some(_) => {}
    }
    volume::local_path(&format!("{path}.path"), &file.path, report);
    if file.key.is_empty() {
        report.required(format!("{path}.key"), "");
    } else {
        env_name(&format!("{path}.key"), &file.key, report);
    }
}

fn env_name(field: &str, name: &str, report: &mut Report<'_>) {
    let printable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
    if !name.bytes().all(printable) {
        let rule = "a valid environment variable name must consist only of printable ASCII characters other than '='";
        report.invalid(field, name, rule);
    }
}
