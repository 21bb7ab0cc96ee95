//! Security contexts of pods and containers, and what they may not be combined with.

use super::{Report, one_of, range};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, PodSecurityContext, PodSpec, SELinuxOptions, SeccompProfile, SecurityContext, Sysctl,
};
use std::collections::HashSet;

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

/// Namespaced system settings of the kernel's network and of its inter-process communication.
const IPC_SYSCTLS: [&str; 4] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];

const LONGEST_APPARMOR: usize = 4095;
const LONGEST_SYSCTL: usize = 253;

pub(super) fn pod(spec: &PodSpec, report: &mut Report<'_>) {
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let rule = "Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled";
        report.error("spec.shareProcessNamespace", rule);
    }
    if spec.host_users == Some(false) {
        let shared = [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
        for (field, _) in shared.into_iter().filter(|(_, set)| *set == Some(true)) {
            report.error(format!("spec.{field}"), "Forbidden: when `hostUsers` is false");
        }
    }
    let Some(context) = &spec.security_context else { return };
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
    let policies: [(&str, &Option<String>, &[&str]); 3] = [
        ("fsGroupChangePolicy", &context.fs_group_change_policy, &["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", &context.supplemental_groups_policy, &["Merge", "Strict"]),
        ("seLinuxChangePolicy", &context.se_linux_change_policy, &["MountOption", "Recursive"]),
    ];
    for (field, policy, supported) in policies {
        if let Some(policy) = policy {
            one_of(&format!("{path}.{field}"), policy, supported, report);
        }
    }
    profiles(path, context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), report);
    se_linux(path, context.se_linux_options.as_ref(), report);
    sysctls(spec, context, report);
}

fn sysctls(spec: &PodSpec, context: &PodSecurityContext, report: &mut Report<'_>) {
    let mut known = HashSet::new();
    for (index, Sysctl { name, value }) in context.sysctls.iter().flatten().enumerate() {
        let field = format!("spec.securityContext.sysctls[{index}].name");
        if name.is_empty() {
            report.required(field, "");
            continue;
        }
        if name.len() > LONGEST_SYSCTL || !is_sysctl(name) {
            let rule = "must have at most 253 characters and match regex \
                        ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            report.invalid(&field, name, rule);
        }
        let dotted = name.replace('/', ".");
        if spec.host_network == Some(true) && dotted.starts_with("net.") {
            report.invalid(&field, name, "may not be set when 'hostNetwork' is true");
        }
        if spec.host_ipc == Some(true) && IPC_SYSCTLS.iter().any(|prefix| dotted.starts_with(prefix)) {
            report.invalid(&field, name, "may not be set when 'hostIPC' is true");
        }
        if !known.insert(dotted) {
            report.duplicate(&field, name);
        }
        super::no_nul(&format!("spec.securityContext.sysctls[{index}].value"), value, report);
    }
}

fn is_sysctl(name: &str) -> bool {
    name.split(['.', '/']).all(|part| {
        let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        edge(part.as_bytes().first()) && edge(part.as_bytes().last()) && part.bytes().all(inner)
    })
}

pub(super) fn container(path: &str, context: &SecurityContext, spec: &PodSpec, report: &mut Report<'_>) {
    for (field, id) in [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)] {
        if let Some(id) = id {
            range(&format!("{path}.{field}"), id, 0, i32::MAX.into(), report);
        }
    }
    if let Some(mount) = context.proc_mount.as_deref().filter(|mount| !mount.is_empty()) {
        let field = format!("{path}.procMount");
        one_of(&field, mount, &["Default", "Unmasked"], report);
        if mount == "Unmasked" && spec.host_users != Some(false) {
            report.invalid(field, mount, "`hostUsers` must be false to use `Unmasked`");
        }
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
    profiles(path, context.seccomp_profile.as_ref(), context.app_armor_profile.as_ref(), report);
    se_linux(path, context.se_linux_options.as_ref(), report);
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

fn profiles(path: &str, seccomp: Option<&SeccompProfile>, apparmor: Option<&AppArmorProfile>, report: &mut Report<'_>) {
    if let Some(SeccompProfile { localhost_profile, type_ }) = seccomp {
        let path = format!("{path}.seccompProfile");
        let localhost = localhost_profile.as_deref().unwrap_or_default();
        if profile(&path, "seccomp", type_, localhost, report) {
            let field = format!("{path}.localhostProfile");
            if localhost.starts_with('/') {
                report.invalid(field, localhost, "must be a relative path");
            } else if localhost.split('/').any(|part| part == "..") {
                report.invalid(field, localhost, "must not contain '..'");
            }
        }
    }
    if let Some(AppArmorProfile { localhost_profile, type_ }) = apparmor {
        let path = format!("{path}.appArmorProfile");
        let localhost = localhost_profile.as_deref().unwrap_or_default();
        if profile(&path, "AppArmor", type_, localhost, report) {
            let field = format!("{path}.localhostProfile");
            if localhost.trim() != localhost {
                report.invalid(&field, localhost, "must not be padded with whitespace");
            }
            if localhost.len() > LONGEST_APPARMOR {
                report.error(field, format!("Too long: may not be more than {LONGEST_APPARMOR} bytes"));
            }
        }
    }
}

/// Whether a profile of the host is named, and has to be checked further.
fn profile(path: &str, what: &str, kind: &str, localhost: &str, report: &mut Report<'_>) -> bool {
    match kind {
        "" => report.required(format!("{path}.type"), ""),
        "Localhost" if localhost.trim().is_empty() => {
            report.required(format!("{path}.localhostProfile"), &format!("must be set when {what} type is Localhost"));
        }
        "Localhost" => return true,
        "RuntimeDefault" | "Unconfined" if localhost.is_empty() => {}
        "RuntimeDefault" | "Unconfined" => {
            let rule = format!("can only be set when {what} type is Localhost");
            report.invalid(format!("{path}.localhostProfile"), localhost, &rule);
        }
        other => report.unsupported(format!("{path}.type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    false
}

/// Ours: a label is made of its parts, separated by colons.
fn se_linux(path: &str, options: Option<&SELinuxOptions>, report: &mut Report<'_>) {
    let Some(options) = options else { return };
    let parts = [("user", &options.user), ("role", &options.role), ("type", &options.type_), ("level", &options.level)];
    for (field, part) in parts {
        let Some(part) = part else { continue };
        // Only a level has colons of its own (`s0:c1,c2`).
        if part.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b':' && field != "level") {
            report.invalid(format!("{path}.seLinuxOptions.{field}"), part, "is no part of an SELinux label");
        }
    }
}
