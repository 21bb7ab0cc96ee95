//! A pod's `/etc/resolv.conf`: kubelet's choice of what goes in, in the form containerd writes it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

/// As kubelet, which follows what old resolvers read.
const NAMESERVERS_MOST: usize = 3;
const SEARCHES_MOST: usize = 32;
const SEARCH_LINE_MOST: usize = 2048;
/// Longer search domains make some resolvers abort (glibc 2.28).
const SEARCH_MOST: usize = 253;

/// What the node knows about names.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The text of the node's own file (`resolvConf`); `None` if that is configured to be empty.
    pub node_resolv_conf: Option<&'a str>,
    /// The node's addresses: their families decide what stands in for an empty `resolvConf`.
    pub node_ips: &'a [IpAddr],
    /// `clusterDNS`.
    pub cluster_dns: &'a [IpAddr],
    /// `clusterDomain`; empty if there is none.
    pub cluster_domain: &'a str,
}

/// A rendered file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolv {
    /// The file's text.
    pub text: String,
    /// What was left out or replaced, for the pod's events.
    pub warnings: Vec<Warning>,
}

/// An event to be recorded for the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The event's reason: `MissingClusterDNS` or `DNSConfigForming`.
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Dns {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<Setting>,
}

/// A resolver option: its name, and its value if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    name: String,
    value: Option<String>,
}

impl Setting {
    fn parse(text: &str) -> Setting {
        match text.split_once(':') {
            Some((name, value)) => Setting { name: name.to_owned(), value: Some(value.to_owned()) },
            None => Setting { name: text.to_owned(), value: None },
        }
    }

    fn render(&self) -> String {
        match self.value.as_deref() {
            Some(value) if !value.is_empty() => format!("{}:{value}", self.name),
            _ => self.name.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Nothing,
    Cluster,
    Node,
}

/// The file's text for a pod in `namespace`.
pub fn render(spec: &PodSpec, namespace: &str, facts: &Facts<'_>) -> Resolv {
    let mut warnings = Vec::new();
    let mut dns = match base(spec) {
        Base::Nothing => Dns::default(),
        Base::Cluster if !facts.cluster_dns.is_empty() => of_cluster(namespace, facts),
        Base::Cluster => {
            warnings.push(Warning {
                reason: "MissingClusterDNS",
                message: "no clusterDNS is configured, so a pod cannot have dnsPolicy \"ClusterFirst\": \
                          falling back to \"Default\""
                    .to_owned(),
            });
            of_node(facts)
        }
        Base::Node => of_node(facts),
    };
    if let Some(config) = &spec.dns_config {
        append(&mut dns, config);
    }
    limit(&mut dns, &mut warnings);
    Resolv { text: text(&dns), warnings }
}

/// As kubelet, where an unknown policy (which validation refuses) counts as `ClusterFirst`.
fn base(spec: &PodSpec) -> Base {
    match spec.dns_policy.as_deref() {
        Some("None") => Base::Nothing,
        Some("Default") => Base::Node,
        Some("ClusterFirstWithHostNet") => Base::Cluster,
        _ if spec.host_network == Some(true) => Base::Node,
        _ => Base::Cluster,
    }
}

fn of_cluster(namespace: &str, facts: &Facts<'_>) -> Dns {
    let node = facts.node_resolv_conf.map(parse).unwrap_or_default();
    let mut searches = Vec::new();
    if !facts.cluster_domain.is_empty() {
        let domain = facts.cluster_domain;
        searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    }
    extend(&mut searches, node.searches);
    Dns {
        nameservers: facts.cluster_dns.iter().map(IpAddr::to_string).collect(),
        searches,
        options: vec![Setting { name: "ndots".to_owned(), value: Some("5".to_owned()) }],
    }
}

fn of_node(facts: &Facts<'_>) -> Dns {
    if let Some(text) = facts.node_resolv_conf {
        return parse(text);
    }
    let mut nameservers = Vec::new();
    for ip in facts.node_ips {
        extend(&mut nameservers, [if ip.is_ipv6() { "::1" } else { "127.0.0.1" }.to_owned()]);
    }
    if nameservers.is_empty() {
        nameservers.push("127.0.0.1".to_owned());
    }
    Dns { nameservers, searches: vec![".".to_owned()], options: Vec::new() }
}

/// Reads a node's file as kubelet does: the last `search` wins, a lone `.` is dropped and trailing dots are trimmed,
/// options are merged by name.
fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.nameservers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                dns.searches = words
                    .map(|word| word.strip_suffix('.').unwrap_or(word))
                    .filter(|w| !w.is_empty())
                    .map(str::to_owned)
                    .collect();
            }
            Some("options") => merge(&mut dns.options, words.map(Setting::parse)),
            _ => {}
        }
    }
    dns
}

fn append(dns: &mut Dns, config: &PodDNSConfig) {
    let nameservers = std::mem::take(&mut dns.nameservers);
    extend(&mut dns.nameservers, nameservers);
    extend(&mut dns.nameservers, config.nameservers.iter().flatten().cloned());
    let searches = std::mem::take(&mut dns.searches);
    extend(&mut dns.searches, searches);
    extend(&mut dns.searches, config.searches.iter().flatten().cloned());
    let options = config
        .options
        .iter()
        .flatten()
        .filter_map(|option| Some(Setting { name: option.name.clone()?, value: option.value.clone() }));
    merge(&mut dns.options, options);
}

/// Adds what is not there yet.
fn extend(to: &mut Vec<String>, from: impl IntoIterator<Item = String>) {
    for item in from {
        if !to.contains(&item) {
            to.push(item);
        }
    }
}

/// Later options replace earlier ones of their name. Kubelet's order is random; ours is that of appearance.
fn merge(to: &mut Vec<Setting>, from: impl IntoIterator<Item = Setting>) {
    for option in from {
        match to.iter_mut().find(|have| have.name == option.name) {
            Some(have) => *have = option,
            None => to.push(option),
        }
    }
}

fn limit(dns: &mut Dns, warnings: &mut Vec<Warning>) {
    let mut forming = |message| warnings.push(Warning { reason: "DNSConfigForming", message });
    if dns.nameservers.len() > NAMESERVERS_MOST {
        dns.nameservers.truncate(NAMESERVERS_MOST);
        forming(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            dns.nameservers.join(" ")
        ));
    }
    let given = dns.searches.len();
    dns.searches.truncate(SEARCHES_MOST);
    dns.searches.retain(|search| search.len() <= SEARCH_MOST);
    // Each search but the first comes with a space before it.
    let mut length = 0;
    let fitting = dns.searches.iter().enumerate().take_while(|(at, search)| {
        length += search.len() + usize::from(*at > 0);
        length <= SEARCH_LINE_MOST
    });
    let fitting = fitting.count();
    dns.searches.truncate(fitting);
    if dns.searches.len() < given {
        forming(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            dns.searches.join(" ")
        ));
    }
}

fn text(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for nameserver in &dns.nameservers {
        text.push_str(&format!("nameserver {nameserver}\n"));
    }
    if !dns.options.is_empty() {
        let options: Vec<String> = dns.options.iter().map(Setting::render).collect();
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use k8s_openapi::api::core::v1::PodDNSConfigOption;
    use proptest::prelude::*;

    const NODE: &str = "\
# from dhcp
search old.example
nameserver 192.0.2.53
nameserver
search lan. . corp.example
options timeout:2 rotate timeout:3
";

    fn spec(policy: &str, host_network: bool) -> PodSpec {
        PodSpec { dns_policy: Some(policy.into()), host_network: Some(host_network), ..PodSpec::default() }
    }

    fn check(spec: &PodSpec, cluster_dns: &[&str], node: Option<&str>, expected: &Expect) {
        let cluster_dns: Vec<IpAddr> = cluster_dns.iter().map(|ip| ip.parse().unwrap()).collect();
        let facts = Facts {
            node_resolv_conf: node,
            node_ips: &["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            cluster_dns: &cluster_dns,
            cluster_domain: "cluster.local",
        };
        let resolv = render(spec, "team", &facts);
        let warnings: String = resolv.warnings.iter().map(|w| format!("! {}: {}\n", w.reason, w.message)).collect();
        expected.assert_eq(&(resolv.text + &warnings));
    }

    #[test]
    fn policies() {
        let node = expect![[r#"
            search lan corp.example
            nameserver 192.0.2.53
            options timeout:3 rotate
        "#]];
        let cluster = expect![[r#"
            search team.svc.cluster.local svc.cluster.local cluster.local lan corp.example
            nameserver 10.96.0.10
            options ndots:5
        "#]];
        check(&spec("Default", false), &["10.96.0.10"], Some(NODE), &node);
        check(&spec("ClusterFirst", true), &["10.96.0.10"], Some(NODE), &node);
        check(&spec("ClusterFirst", false), &["10.96.0.10"], Some(NODE), &cluster);
        check(&spec("ClusterFirstWithHostNet", true), &["10.96.0.10"], Some(NODE), &cluster);
        check(&spec("None", false), &["10.96.0.10"], Some(NODE), &expect![""]);
    }

    #[test]
    fn without_cluster_dns_the_nodes_file_and_an_event() {
        check(
            &spec("ClusterFirst", false),
            &[],
            Some(NODE),
            &expect![[r#"
            search lan corp.example
            nameserver 192.0.2.53
            options timeout:3 rotate
            ! MissingClusterDNS: no clusterDNS is configured, so a pod cannot have dnsPolicy "ClusterFirst": falling back to "Default"
        "#]],
        );
    }

    #[test]
    fn an_empty_resolv_conf_setting_means_the_node_itself() {
        check(
            &spec("Default", false),
            &[],
            None,
            &expect![[r#"
            search .
            nameserver 127.0.0.1
            nameserver ::1
        "#]],
        );
    }

    #[test]
    fn dns_config_is_appended_and_options_override() {
        let option = |name: &str, value: Option<&str>| PodDNSConfigOption {
            name: Some(name.into()),
            value: value.map(str::to_owned),
        };
        let mut spec = spec("ClusterFirst", false);
        spec.dns_config = Some(PodDNSConfig {
            nameservers: Some(vec!["10.96.0.10".into(), "192.0.2.1".into()]),
            searches: Some(vec!["lan".into(), "my.example".into()]),
            options: Some(vec![option("ndots", Some("2")), option("edns0", None)]),
        });
        check(
            &spec,
            &["10.96.0.10"],
            Some(NODE),
            &expect![[r#"
            search team.svc.cluster.local svc.cluster.local cluster.local lan corp.example my.example
            nameserver 10.96.0.10
            nameserver 192.0.2.1
            options ndots:2 edns0
        "#]],
        );
    }

    #[test]
    fn limits_cut_and_say_so() {
        let mut pod = spec("None", false);
        pod.dns_config = Some(PodDNSConfig {
            nameservers: Some((1..=4).map(|n| format!("192.0.2.{n}")).collect()),
            searches: Some(vec!["x".repeat(254), "ok.example".into()]),
            options: None,
        });
        check(
            &pod,
            &[],
            None,
            &expect![[r#"
            search ok.example
            nameserver 192.0.2.1
            nameserver 192.0.2.2
            nameserver 192.0.2.3
            ! DNSConfigForming: Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 192.0.2.1 192.0.2.2 192.0.2.3
            ! DNSConfigForming: Search Line limits were exceeded, some search paths have been omitted, the applied search line is: ok.example
        "#]],
        );
        let searches = |count: usize, length: usize| {
            let mut pod = spec("None", false);
            let searches = (0..count).map(|n| format!("{n:0length$}")).collect();
            pod.dns_config = Some(PodDNSConfig { searches: Some(searches), ..PodDNSConfig::default() });
            let resolv = render(&pod, "team", &Facts::default());
            (resolv.text.split_whitespace().count() - 1, resolv.warnings.len())
        };
        assert_eq!(searches(32, 10), (32, 0));
        assert_eq!(searches(33, 10), (32, 1));
        assert_eq!(searches(8, 253), (8, 0), "8 * 253 + 7 = 2031 characters fit");
        assert_eq!(searches(9, 253), (8, 1));
    }

    proptest! {
        /// Whatever the node's file holds: no panic, and what comes out stays within the limits and reads back.
        #[test]
        fn any_node_file(text in "(?s)(nameserver|search|options|#)?[ \\t.:\\PC\\n]{0,200}", host in any::<bool>()) {
            let facts = Facts { node_resolv_conf: Some(&text), ..Facts::default() };
            let resolv = render(&spec("Default", host), "ns", &facts);
            let dns = parse(&resolv.text);
            prop_assert!(dns.nameservers.len() <= NAMESERVERS_MOST && dns.searches.len() <= SEARCHES_MOST);
        }
    }
}
