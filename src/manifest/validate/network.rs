//! Names and name resolution of a pod.

use super::{Report, ip, names, one_of};
use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

/// The kernel's limit of a hostname, in bytes.
const LONGEST_HOSTNAME: usize = 64;

pub(super) fn check(spec: &PodSpec, report: &mut Report<'_>) {
    for (field, name) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if let Some(name) = name.as_deref().filter(|name| !name.is_empty()) {
            names::label(field, name, report);
        }
    }
    if let Some(name) = &spec.hostname_override {
        let field = "spec.hostnameOverride";
        names::subdomain(field, name, report);
        if name.len() > LONGEST_HOSTNAME {
            report.invalid(field, name, "must be no more than 64 bytes");
        }
        if spec.host_network == Some(true) {
            report.error(field, "Forbidden: may not be set when `hostNetwork` is true");
        }
        if spec.set_hostname_as_fqdn == Some(true) {
            report.error(field, "Forbidden: may not be set when `setHostnameAsFQDN` is true");
        }
    }
    let policy = spec.dns_policy.as_deref().unwrap_or_default();
    one_of("spec.dnsPolicy", policy, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], report);
    dns(spec.dns_config.as_ref(), policy, report);
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        ip(&format!("spec.hostAliases[{index}].ip"), &alias.ip, report);
        for (position, name) in alias.hostnames.iter().flatten().enumerate() {
            names::subdomain(&format!("spec.hostAliases[{index}].hostnames[{position}]"), name, report);
        }
    }
}

fn dns(config: Option<&PodDNSConfig>, policy: &str, report: &mut Report<'_>) {
    const SERVERS: usize = 3;
    const SEARCHES: usize = 32;
    const SEARCH_CHARS: usize = 2048;
    let Some(config) = config else {
        if policy == "None" {
            report.required("spec.dnsConfig", "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let servers = config.nameservers.as_deref().unwrap_or_default();
    if policy == "None" && servers.is_empty() {
        let rule = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        report.required("spec.dnsConfig.nameservers", rule);
    }
    if servers.len() > SERVERS {
        let reason = format!("Invalid value: must not have more than {SERVERS} nameservers");
        report.error("spec.dnsConfig.nameservers", reason);
    }
    for (index, server) in servers.iter().enumerate() {
        ip(&format!("spec.dnsConfig.nameservers[{index}]"), server, report);
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    if searches.len() > SEARCHES {
        let reason = format!("Invalid value: must not have more than {SEARCHES} search paths");
        report.error("spec.dnsConfig.searches", reason);
    }
    if searches.iter().map(|search| search.len() + 1).sum::<usize>() > SEARCH_CHARS + 1 {
        let reason = format!(
            "Invalid value: must not have more than {SEARCH_CHARS} characters (including spaces) in the search list"
        );
        report.error("spec.dnsConfig.searches", reason);
    }
    for (index, search) in searches.iter().enumerate() {
        // As the API server: a lone dot is fine, so are a trailing dot and underscores.
        let name = search.strip_suffix('.').unwrap_or(search);
        if search != "." {
            names::subdomain(&format!("spec.dnsConfig.searches[{index}]"), &name.replace('_', "-"), report);
        }
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            report.required(format!("spec.dnsConfig.options[{index}]"), "must not be empty");
        }
    }
}
