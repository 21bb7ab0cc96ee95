//! A pod's `/etc/hosts`, as kubelet writes it.

use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::PodSpec;

use super::hostname::Hostname;

const MANAGED: &str = "\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
";
const MANAGED_HOST_NETWORK: &str = "# Kubernetes-managed hosts file (host network).\n";

/// The file's text: with the node's own file (`node_hosts`) under `hostNetwork`, else made from the pod's addresses
/// and name. `None` when there is nothing to write: neither an address nor `hostNetwork`.
///
/// Containers that mount something at `/etc/hosts` themselves do not get it; that is for the caller to see.
pub fn render(spec: &PodSpec, name: &Hostname, ips: &[IpAddr], node_hosts: &str) -> Option<String> {
    let mut text = if spec.host_network == Some(true) {
        let mut text = format!("{MANAGED_HOST_NETWORK}{node_hosts}");
        // Unlike kubelet: a node's file without a final newline must not swallow the first alias.
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    } else if ips.is_empty() {
        return None;
    } else {
        let mut text = MANAGED.to_owned();
        let host = &name.host;
        for ip in ips {
            // Writing to a String cannot fail.
            let _ = match &name.domain {
                Some(domain) => writeln!(text, "{ip}\t{host}.{domain}\t{host}"),
                None => writeln!(text, "{ip}\t{host}"),
            };
        }
        text
    };
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::hostname;
    use expect_test::expect;
    use k8s_openapi::api::core::v1::HostAlias;

    fn rendered(spec: &PodSpec, ips: &[&str], node: &str) -> Option<String> {
        let name = hostname(spec, "web-node1", "default", "cluster.local").unwrap();
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        render(spec, &name, &ips, node)
    }

    fn aliases() -> Option<Vec<HostAlias>> {
        let alias = |ip: &str, names: &[&str]| HostAlias {
            ip: ip.into(),
            hostnames: Some(names.iter().map(|n| n.to_string()).collect()),
        };
        Some(vec![alias("192.0.2.7", &["db", "db.local"]), alias("192.0.2.8", &["cache"])])
    }

    #[test]
    fn pod_network() {
        expect![[r#"
            # Kubernetes-managed hosts file.
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            fe00::0	ip6-localnet
            fe00::0	ip6-mcastprefix
            fe00::1	ip6-allnodes
            fe00::2	ip6-allrouters
            10.88.0.2	web-node1
        "#]]
        .assert_eq(&rendered(&PodSpec::default(), &["10.88.0.2"], "node's").unwrap());
        assert_eq!(rendered(&PodSpec::default(), &[], "node's"), None);
    }

    #[test]
    fn domain_dual_stack_and_aliases() {
        let spec = PodSpec {
            hostname: Some("web".into()),
            subdomain: Some("sub".into()),
            host_aliases: aliases(),
            ..PodSpec::default()
        };
        expect![[r#"
            # Kubernetes-managed hosts file.
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            fe00::0	ip6-localnet
            fe00::0	ip6-mcastprefix
            fe00::1	ip6-allnodes
            fe00::2	ip6-allrouters
            10.88.0.2	web.sub.default.svc.cluster.local	web
            fd00::2	web.sub.default.svc.cluster.local	web

            # Entries added by HostAliases.
            192.0.2.7	db	db.local
            192.0.2.8	cache
        "#]]
        .assert_eq(&rendered(&spec, &["10.88.0.2", "fd00::2"], "").unwrap());
    }

    #[test]
    fn host_network_keeps_the_nodes_file() {
        let spec = PodSpec { host_network: Some(true), host_aliases: aliases(), ..PodSpec::default() };
        expect![[r#"
            # Kubernetes-managed hosts file (host network).
            127.0.0.1 localhost
            192.0.2.1 node1

            # Entries added by HostAliases.
            192.0.2.7	db	db.local
            192.0.2.8	cache
        "#]]
        .assert_eq(&rendered(&spec, &[], "127.0.0.1 localhost\n192.0.2.1 node1").unwrap());
    }
}
