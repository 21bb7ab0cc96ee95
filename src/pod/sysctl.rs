//! Which sysctls a pod may set (as kubelet: `kl/sysctl`): what lives in its own namespaces, and is known to be harmless
//! or was allowed by the node's configuration.

use super::admission::Rejection;
use crate::config::{SysctlGroup, sysctl_group};
use k8s_openapi::api::core::v1::PodSpec;

/// Names that any pod may set, and the kernel version from which on they are namespaced.
const SAFE: [(&str, (u32, u32)); 12] = [
    ("kernel.shm_rmid_forced", (0, 0)),
    ("net.ipv4.ip_local_port_range", (0, 0)),
    ("net.ipv4.tcp_syncookies", (0, 0)),
    ("net.ipv4.ping_group_range", (0, 0)),
    ("net.ipv4.ip_unprivileged_port_start", (0, 0)),
    ("net.ipv4.ip_local_reserved_ports", (3, 16)),
    ("net.ipv4.tcp_keepalive_time", (4, 5)),
    ("net.ipv4.tcp_keepalive_intvl", (4, 5)),
    ("net.ipv4.tcp_keepalive_probes", (4, 5)),
    ("net.ipv4.tcp_fin_timeout", (4, 6)),
    ("net.ipv4.tcp_rmem", (4, 15)),
    ("net.ipv4.tcp_wmem", (4, 15)),
];

/// `status.reason` of a pod with a sysctl that it may not set.
pub const REASON: &str = "SysctlForbidden";

/// The pod's sysctls with their names in dots, in its order. `allowlist` is `allowedUnsafeSysctls` (names, or prefixes
/// that end in `*`), `kernel` the kernel's release (`6.12.3-arm64`).
///
/// # Errors
/// The first one that may not be set: not safe and not allowed, or of a namespace that the pod shares with the machine.
pub fn check(spec: &PodSpec, allowlist: &[String], kernel: &str) -> Result<Vec<(String, String)>, Rejection> {
    let wanted = spec.security_context.as_ref().and_then(|c| c.sysctls.as_deref()).unwrap_or_default();
    let version = version(kernel);
    let mut checked = Vec::with_capacity(wanted.len());
    for sysctl in wanted {
        let name = normalize(&sysctl.name);
        let forbidden = |why: String| Rejection::new(REASON, format!("forbidden sysctl: {name:?} {why}"));
        let allowed = allowlist.iter().any(|pattern| match normalize(pattern).strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => normalize(pattern) == name,
        });
        if !allowed && !is_safe(&name, version) {
            return Err(forbidden("not allowlisted".to_owned()));
        }
        let shared = match sysctl_group(&name) {
            Some(SysctlGroup::Net) => (spec.host_network == Some(true)).then_some("Net"),
            Some(SysctlGroup::Ipc) => (spec.host_ipc == Some(true)).then_some("IPC"),
            // Allowed by a prefix of a group without being of it, such as `kernel.sem*`: it would be the machine's.
            None => return Err(forbidden("not allowlisted".to_owned())),
        };
        if let Some(namespace) = shared {
            return Err(forbidden(format!("not allowed with host {namespace} enabled")));
        }
        checked.push((name, sysctl.value.clone()));
    }
    Ok(checked)
}

fn is_safe(name: &str, kernel: (u32, u32)) -> bool {
    SAFE.iter().any(|(safe, since)| *safe == name && kernel >= *since)
}

/// Major and minor number; zeros when the text is no release, so that nothing counts as namespaced that may not be.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => (0, 0),
    }
}

/// As `sysctl(8)`: whichever of `.` and `/` comes first separates, and stands for the other one elsewhere. The result
/// has dots as separators.
pub fn normalize(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(names: &[&str], more: serde_json::Value) -> PodSpec {
        let sysctls: Vec<_> = names.iter().map(|n| serde_json::json!({"name": n, "value": "1"})).collect();
        let mut spec = serde_json::json!({"containers": [], "securityContext": {"sysctls": sysctls}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    fn outcome(names: &[&str], more: serde_json::Value, allowed: &[&str], kernel: &str) -> String {
        let allowed: Vec<String> = allowed.iter().map(|a| (*a).to_owned()).collect();
        match check(&spec(names, more), &allowed, kernel) {
            Ok(list) => list.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" "),
            Err(e) => format!("{}: {}", e.reason, e.message),
        }
    }

    #[test]
    fn safe_ones_are_let_through_and_others_need_the_configuration() {
        let plain = || serde_json::json!({});
        let host = || serde_json::json!({"hostNetwork": true, "hostIPC": true});
        let safe: Vec<&str> = SAFE.iter().map(|(name, _)| *name).collect();
        assert_eq!(check(&spec(&safe, plain()), &[], "6.18.0").unwrap().len(), SAFE.len());
        let lines = [
            outcome(&["net/ipv4/tcp_syncookies", "kernel.shm_rmid_forced"], plain(), &[], "6.18.0-rc1"),
            outcome(&["net.core.somaxconn"], plain(), &[], "6.18.0"),
            outcome(&["net.core.somaxconn"], plain(), &["net.core.*"], "6.18.0"),
            outcome(&["net/ipv4/conf/eth0.1/forwarding"], plain(), &["net/ipv4/conf/*"], "6.18.0"),
            outcome(&["kernel.msgmax"], plain(), &["kernel.msgmax"], "6.18.0"),
            outcome(&["kernel.semi"], plain(), &["kernel.sem*"], "6.18.0"),
            outcome(&["vm.swappiness"], plain(), &[], "6.18.0"),
            outcome(&["net.ipv4.tcp_rmem"], plain(), &[], "4.14.336"),
            outcome(&["net.ipv4.tcp_rmem"], plain(), &[], "odd"),
            outcome(&["net.ipv4.tcp_syncookies"], host(), &[], "6.18.0"),
            outcome(&["kernel.shm_rmid_forced"], host(), &[], "6.18.0"),
            outcome(&["net.core.somaxconn"], host(), &["net.*"], "6.18.0"),
        ];
        expect_test::expect![[r#"
            net.ipv4.tcp_syncookies=1 kernel.shm_rmid_forced=1
            SysctlForbidden: forbidden sysctl: "net.core.somaxconn" not allowlisted
            net.core.somaxconn=1
            net.ipv4.conf.eth0/1.forwarding=1
            kernel.msgmax=1
            SysctlForbidden: forbidden sysctl: "kernel.semi" not allowlisted
            SysctlForbidden: forbidden sysctl: "vm.swappiness" not allowlisted
            SysctlForbidden: forbidden sysctl: "net.ipv4.tcp_rmem" not allowlisted
            SysctlForbidden: forbidden sysctl: "net.ipv4.tcp_rmem" not allowlisted
            SysctlForbidden: forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host Net enabled
            SysctlForbidden: forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host IPC enabled
            SysctlForbidden: forbidden sysctl: "net.core.somaxconn" not allowed with host Net enabled"#]]
        .assert_eq(&lines.join("\n"));
    }

    proptest! {
        /// Whatever is asked for: only names of the pod's own namespaces come out.
        #[test]
        fn nothing_of_the_machine_comes_through(name in "(net|kernel|fs|vm)?[./a-z0-9_*]{0,30}", kernel in "\\PC{0,10}") {
            let all = ["*", "net.*", "kernel.*", "fs.*", "vm.*"].map(str::to_owned);
            if let Ok(list) = check(&spec(&[&name], serde_json::json!({})), &all, &kernel) {
                prop_assert!(list.iter().all(|(name, _)| sysctl_group(name).is_some()));
            }
        }
    }
}
