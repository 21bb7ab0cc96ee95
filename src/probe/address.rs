//! Which host and port a handler means.

use super::Target;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Where to ask: the handler's own host, else the pod's first address, else (hostNetwork) loopback, as kubelet.
pub(super) fn host(host: Option<&str>, target: &Target) -> String {
    match (host.filter(|host| !host.is_empty()), target.ips.first()) {
        (Some(host), _) => host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        (None, Some(ip)) => ip.to_string(),
        (None, None) => "127.0.0.1".to_owned(),
    }
}

/// A port by number, by its name in this container (not its siblings), or by a number in quotes.
pub(super) fn port(port: &IntOrString, target: &Target) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => {
            let mut ports = target.container.ports.iter().flatten();
            match ports.find(|port| port.name.as_ref() == Some(name)) {
                Some(port) => i64::from(port.container_port),
                None => name
                    .parse()
                    .map_err(|_| format!("container {:?} has no port named {name:?}", target.container.name))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|&port| port > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// `host:port`, an IPv6 address in brackets.
pub(super) fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
