//! Containers.

use super::{Report, ip, names, not_negative, one_of, range, resources, seccomp};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EnvVar, HTTPGetAction, PodSpec, Probe, SecurityContext, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::HashSet;

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

/// What the kernel knows, without `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// What a container may refer to.
pub(super) struct Scope<'s> {
    pub(super) spec: &'s PodSpec,
    pub(super) volumes: &'s HashSet<&'s str>,
}

pub(super) fn check(container: &Container, path: &str, scope: &Scope<'_>, report: &mut Report<'_>) {
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
        mountable(&format!("{path}.terminationMessagePath"), message, report);
    }
    for (field, words) in [("command", &container.command), ("args", &container.args)] {
        for (index, word) in words.iter().flatten().enumerate() {
            no_nul(&format!("{path}.{field}[{index}]"), word, report);
        }
    }
    no_nul(&format!("{path}.workingDir"), container.working_dir.as_deref().unwrap_or_default(), report);
    ports(container, path, scope, report);
    for (index, variable) in container.env.iter().flatten().enumerate() {
        env(&format!("{path}.env[{index}]"), variable, scope, report);
    }
    mounts(container.volume_mounts.as_deref().unwrap_or_default(), path, scope, report);
    if let Some(requirements) = &container.resources {
        resources::check(&format!("{path}.resources"), requirements, report);
    }
    if let Some(context) = &container.security_context {
        security(&format!("{path}.securityContext"), context, report);
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (field, probe) in probes {
        if let Some(probe) = probe {
            self::probe(&format!("{path}.{field}"), probe, field == "readinessProbe", report);
        }
    }
}

fn ports(container: &Container, path: &str, scope: &Scope<'_>, report: &mut Report<'_>) {
    let mut names = HashSet::new();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let path = format!("{path}.ports[{index}]");
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
    let printable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
    if variable.name.is_empty() {
        report.required(format!("{path}.name"), "");
    } else if !variable.name.bytes().all(printable) {
        let rule = "a valid environment variable name must consist only of printable ASCII characters other than '='";
        report.invalid(format!("{path}.name"), &variable.name, rule);
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
        field_path(&format!("{path}.fieldPath"), &field.field_path, report);
    }
    if let Some(selector) = &source.resource_field_ref {
        let path = format!("{path}.resourceFieldRef");
        resources::field_ref(&path, selector, report);
        let name = selector.container_name.as_deref().unwrap_or_default();
        let mut others = scope.spec.containers.iter().chain(scope.spec.init_containers.iter().flatten());
        if !name.is_empty() && !others.any(|container| container.name == name) {
            report.error(format!("{path}.containerName"), format!("Not found: {name:?}"));
        }
    }
}

fn field_path(field: &str, path: &str, report: &mut Report<'_>) {
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
    one_of(field, path, &ENV_FIELDS, report);
}

/// What no runtime could mount at: told here, or the pod would try for ever.
fn mountable(field: &str, path: &str, report: &mut Report<'_>) {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        report.invalid(field, path, "must not contain '..'");
    } else if parts.is_empty() {
        report.invalid(field, path, "must not be the root of the container");
    } else if parts == ["dev"] {
        let reason = "mounting over /dev itself is not supported: mount what is needed below it; privileged containers have all devices";
        report.invalid(field, path, reason);
    }
}

fn mounts(mounts: &[VolumeMount], path: &str, scope: &Scope<'_>, report: &mut Report<'_>) {
    let mut places = HashSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if mount.name.is_empty() {
            report.required(format!("{path}.name"), "");
        } else if !scope.volumes.contains(mount.name.as_str()) {
            report.error(format!("{path}.name"), format!("Not found: {:?}", mount.name));
        }
        let field = format!("{path}.mountPath");
        if mount.mount_path.is_empty() {
            report.required(&field, "");
        } else if !places.insert(mount.mount_path.as_str()) {
            report.invalid(&field, &mount.mount_path, "must be unique");
        } else {
            mountable(&field, &mount.mount_path, report);
        }
        no_nul(&field, &mount.mount_path, report);
        let sub = mount.sub_path.as_deref().unwrap_or_default();
        let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
        if !sub.is_empty() && !expression.is_empty() {
            report.invalid(format!("{path}.subPathExpr"), expression, "subPathExpr and subPath are mutually exclusive");
        }
        for (field, value) in [("subPath", sub), ("subPathExpr", expression)] {
            if value.starts_with('/') {
                report.invalid(format!("{path}.{field}"), value, "must be a relative path");
            } else if value.split('/').any(|part| part == "..") {
                report.invalid(format!("{path}.{field}"), value, "must not contain '..'");
            }
        }
        let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
        one_of(&format!("{path}.mountPropagation"), propagation, &["Bidirectional", "HostToContainer", "None"], report);
        let recursive = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
        one_of(&format!("{path}.recursiveReadOnly"), recursive, &["Disabled", "Enabled", "IfPossible"], report);
    }
}

fn security(path: &str, context: &SecurityContext, report: &mut Report<'_>) {
    for (field, id) in [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)] {
        if let Some(id) = id {
            range(&format!("{path}.{field}"), id, 0, i32::MAX.into(), report);
        }
    }
    if let Some(mount) = context.proc_mount.as_deref().filter(|mount| !mount.is_empty()) {
        one_of(&format!("{path}.procMount"), mount, &["Default", "Unmasked"], report);
    }
    if context.allow_privilege_escalation == Some(false) {
        if context.privileged == Some(true) {
            let rule = "Invalid value: cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            report.error(path, rule);
        }
        let added = context.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
        if added.into_iter().flatten().any(|capability| capability == "CAP_SYS_ADMIN") {
            let rule =
                "Invalid value: cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            report.error(path, rule);
        }
    }
    if let Some(set) = &context.capabilities {
        capabilities(&format!("{path}.capabilities"), set, report);
    }
    if let Some(profile) = &context.seccomp_profile {
        seccomp(&format!("{path}.seccompProfile"), profile, report);
    }
}

/// Ours: the API server takes any word, and the container then fails to start.
fn capabilities(path: &str, set: &Capabilities, report: &mut Report<'_>) {
    for (field, names) in [("add", &set.add), ("drop", &set.drop)] {
        for (index, name) in names.iter().flatten().enumerate() {
            let upper = name.to_ascii_uppercase();
            let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if bare != "ALL" && !CAPABILITIES.contains(&bare) {
                report.invalid(format!("{path}.{field}[{index}]"), name, "is no capability");
            }
        }
    }
}

fn probe(path: &str, probe: &Probe, readiness: bool, report: &mut Report<'_>) {
    let numbers = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    for (field, number) in numbers {
        not_negative(&format!("{path}.{field}"), number.unwrap_or(0), report);
    }
    if !readiness && probe.success_threshold.unwrap_or(1) > 1 {
        let number = probe.success_threshold.unwrap_or(1);
        report.invalid_number(format!("{path}.successThreshold"), number, "must be 1");
    }
    if let Some(seconds) = probe.termination_grace_period_seconds {
        let field = format!("{path}.terminationGracePeriodSeconds");
        if readiness {
            report.invalid_number(field, seconds, "must not be set for readinessProbes");
        } else if seconds <= 0 {
            report.invalid_number(field, seconds, "must be greater than 0");
        }
    }
    let set = [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
    match set.iter().filter(|set| **set).count() {
        0 => report.required(path, "must specify a handler type"),
        1 => {}
        _ => report.error(path, "Forbidden: may not specify more than 1 handler type"),
    }
    if let Some(action) = &probe.exec
        && action.command.as_deref().unwrap_or_default().is_empty()
    {
        report.required(format!("{path}.exec.command"), "");
    }
    if let Some(action) = &probe.http_get {
        http(&format!("{path}.httpGet"), action, report);
    }
    if let Some(action) = &probe.tcp_socket {
        port_reference(&format!("{path}.tcpSocket.port"), &action.port, report);
    }
    if let Some(action) = &probe.grpc {
        range(&format!("{path}.grpc.port"), action.port, 1, 65535, report);
    }
}

fn http(path: &str, action: &HTTPGetAction, report: &mut Report<'_>) {
    port_reference(&format!("{path}.port"), &action.port, report);
    one_of(&format!("{path}.scheme"), action.scheme.as_deref().unwrap_or_default(), &["HTTP", "HTTPS"], report);
}

fn port_reference(field: &str, port: &IntOrString, report: &mut Report<'_>) {
    match port {
        IntOrString::Int(number) => range(field, *number, 1, 65535, report),
        IntOrString::String(name) => {
            if let Err(rule) = names::port_name(name) {
                report.invalid(field, name, rule);
            }
        }
    }
}

/// Ours: the kernel's strings end at a NUL character, so that the container would see another text.
fn no_nul(field: &str, text: &str, report: &mut Report<'_>) {
    if text.contains('\0') {
        report.invalid(field, text, "must not contain a NUL character");
    }
}
