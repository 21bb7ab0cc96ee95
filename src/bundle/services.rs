//! Variables that tell a container where the cluster's services are (as kubelet: `kl/envvars`).

use crate::pod::supply::{Service, ServicePort};
use std::collections::BTreeMap;

/// What all pods are told of, whatever they want: by it programs find the API server.
const ALWAYS: (&str, &str) = ("default", "kubernetes");

/// The variables of a container of a pod in `namespace`, which wants to know about the services beside it (`links`), or does
/// not. A service of the pod's own namespace hides the API server's of the same name.
#[must_use]
pub fn variables(services: &[Service], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    let has_address = |service: &&Service| !matches!(service.cluster_ip.as_str(), "" | "None");
    for service in services.iter().filter(has_address) {
        if (service.namespace.as_str(), service.name.as_str()) == ALWAYS {
            chosen.entry(&service.name).or_insert(service);
        } else if links && service.namespace == namespace {
            chosen.insert(&service.name, service);
        }
    }
    let mut variables = BTreeMap::new();
    for service in chosen.into_values() {
        add(&mut variables, service);
    }
    variables
}

fn add(variables: &mut BTreeMap<String, String>, service: &Service) {
    let prefix = variable(&service.name);
    let mut set = |name: String, value: &str| drop(variables.insert(name, value.to_owned()));
    // One without ports has no variables but this one; the API server lets none in but headless ones.
    set(format!("{prefix}_SERVICE_HOST"), &service.cluster_ip);
    if let Some(first) = service.ports.first() {
        set(format!("{prefix}_SERVICE_PORT"), &first.port.to_string());
        set(format!("{prefix}_PORT"), &url(service, first));
    }
    for port in &service.ports {
        let number = port.port.to_string();
        if !port.name.is_empty() {
            set(format!("{prefix}_SERVICE_PORT_{}", variable(&port.name)), &number);
        }
        let of_port = format!("{prefix}_PORT_{number}_{}", protocol(port).to_uppercase());
        set(format!("{of_port}_PROTO"), &protocol(port).to_lowercase());
        set(format!("{of_port}_PORT"), &number);
        set(format!("{of_port}_ADDR"), &service.cluster_ip);
        set(of_port, &url(service, port));
    }
}

fn variable(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

fn protocol(port: &ServicePort) -> &str {
    if port.protocol.is_empty() { "TCP" } else { &port.protocol }
}

/// `tcp://10.0.0.1:53`, `udp://[fd00::1]:53`.
fn url(service: &Service, port: &ServicePort) -> String {
    let protocol = protocol(port).to_lowercase();
    match service.cluster_ip.contains(':') {
        true => format!("{protocol}://[{}]:{}", service.cluster_ip, port.port),
        false => format!("{protocol}://{}:{}", service.cluster_ip, port.port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn service(namespace: &str, name: &str, ip: &str, ports: &[(&str, i32, &str)]) -> Service {
        let port = |(name, port, protocol): &(&str, i32, &str)| ServicePort {
            name: (*name).into(),
            port: *port,
            protocol: (*protocol).into(),
        };
        Service {
            namespace: namespace.into(),
            name: name.into(),
            cluster_ip: ip.into(),
            ports: ports.iter().map(port).collect(),
        }
    }

    fn lines(variables: BTreeMap<String, String>) -> Vec<String> {
        variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn as_the_kubelet_makes_them() {
        let services = [
            service("default", "kubernetes", "10.96.0.1", &[("https", 443, "TCP")]),
            service("n", "my-dns", "fd00::a", &[("dns-udp", 53, "UDP"), ("dns-tcp", 53, "TCP")]),
            service("n", "plain", "10.0.0.7", &[("", 80, "")]),
            service("n", "headless", "None", &[("", 80, "TCP")]),
            service("n", "external", "", &[("", 80, "TCP")]),
            service("other", "there", "10.0.0.9", &[("", 80, "TCP")]),
        ];
        let api = [
            "KUBERNETES_PORT=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
            "KUBERNETES_PORT_443_TCP_PORT=443",
            "KUBERNETES_PORT_443_TCP_PROTO=tcp",
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
        ];
        assert_eq!(lines(variables(&services, "n", false)), api);
        let own = [
            "MY_DNS_PORT=udp://[fd00::a]:53",
            "MY_DNS_PORT_53_TCP=tcp://[fd00::a]:53",
            "MY_DNS_PORT_53_TCP_ADDR=fd00::a",
            "MY_DNS_PORT_53_TCP_PORT=53",
            "MY_DNS_PORT_53_TCP_PROTO=tcp",
            "MY_DNS_PORT_53_UDP=udp://[fd00::a]:53",
            "MY_DNS_PORT_53_UDP_ADDR=fd00::a",
            "MY_DNS_PORT_53_UDP_PORT=53",
            "MY_DNS_PORT_53_UDP_PROTO=udp",
            "MY_DNS_SERVICE_HOST=fd00::a",
            "MY_DNS_SERVICE_PORT=53",
            "MY_DNS_SERVICE_PORT_DNS_TCP=53",
            "MY_DNS_SERVICE_PORT_DNS_UDP=53",
            "PLAIN_PORT=tcp://10.0.0.7:80",
            "PLAIN_PORT_80_TCP=tcp://10.0.0.7:80",
            "PLAIN_PORT_80_TCP_ADDR=10.0.0.7",
            "PLAIN_PORT_80_TCP_PORT=80",
            "PLAIN_PORT_80_TCP_PROTO=tcp",
            "PLAIN_SERVICE_HOST=10.0.0.7",
            "PLAIN_SERVICE_PORT=80",
        ];
        assert_eq!(lines(variables(&services, "n", true)), [&api[..], &own[..]].concat());
        assert_eq!(lines(variables(&services, "default", true)), api);
        assert!(variables(&services[1..], "elsewhere", true).is_empty());
    }

    #[test]
    fn a_service_beside_the_pod_hides_the_one_of_the_api_server() {
        let mut services = [
            service("default", "kubernetes", "10.96.0.1", &[("", 443, "TCP")]),
            service("n", "kubernetes", "10.0.0.7", &[("", 80, "TCP")]),
        ];
        for _ in 0..2 {
            assert_eq!(variables(&services, "n", true)["KUBERNETES_SERVICE_HOST"], "10.0.0.7");
            assert_eq!(variables(&services, "n", false)["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
            services.reverse();
        }
    }

    proptest! {
        #[test]
        fn names_are_variables_and_order_does_not_matter(
            names in proptest::collection::btree_set("[a-z]([-a-z0-9]{0,5}[a-z0-9])?", 0..6), port in 1..65536i32,
        ) {
            let mut services: Vec<Service> =
                names.iter().map(|name| service("n", name, "10.0.0.1", &[("p-1", port, "SCTP")])).collect();
            let all = variables(&services, "n", true);
            services.reverse();
            prop_assert_eq!(&all, &variables(&services, "n", true));
            for name in all.keys() {
                prop_assert!(name.bytes().all(|b| b == b'_' || b.is_ascii_uppercase() || b.is_ascii_digit()), "{}", name);
            }
        }
    }
}
