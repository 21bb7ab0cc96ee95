//! Facts of the machine, read once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// What the node is.
#[derive(Debug, Clone)]
pub struct Machine {
    /// GOARCH name.
    pub architecture: &'static str,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The hardware's, or the hypervisor's; the machine ID where it has none (as cAdvisor).
    pub system_uuid: String,
    /// All swap, in bytes.
    pub swap_bytes: u64,
    /// Changes with each boot.
    pub boot_id: String,
    /// Addresses, primary first; never empty.
    pub host_ips: Vec<IpAddr>,
    /// Capabilities this process holds, a bit each.
    pub capabilities: u64,
    /// Hard limit of open files.
    pub nofile: Option<u64>,
    /// Whether AppArmor is enabled.
    pub apparmor: bool,
    /// Addresses as configured, and the name of the node.
    given: (Vec<IpAddr>, String),
}

impl Machine {
    /// Look; what cannot be read is left empty.
    #[must_use]
    pub fn read(configured: &[IpAddr], name: &str) -> Machine {
        let file = |path: &str| std::fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
        let meminfo = file("/proc/meminfo");
        let kib = |field: &str| {
            let line = meminfo.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
            line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let machine_id = ["/etc/machine-id", "/var/lib/dbus/machine-id"].map(file);
        let machine_id = machine_id.into_iter().find(|id| !id.is_empty()).unwrap_or_default();
        let uuids = ["/sys/class/dmi/id/product_uuid", "/proc/device-tree/system-id", "/proc/device-tree/vm,uuid"];
        let uuid = uuids.into_iter().map(|path| file(path).trim_matches('\0').to_owned()).find(|id| !id.is_empty());
        let os_release = file("/etc/os-release");
        let pretty = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
        let host_ips = match configured {
            [] => own_address(name).map_or_else(|| vec![Ipv4Addr::LOCALHOST.into()], |ip| vec![ip]),
            configured => configured.to_vec(),
        };
        Machine {
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kib("MemTotal") * 1024,
            swap_bytes: kib("SwapTotal") * 1024,
            kernel: file("/proc/sys/kernel/osrelease"),
            os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
            system_uuid: uuid.unwrap_or_else(|| machine_id.clone()),
            machine_id,
            boot_id: file("/proc/sys/kernel/random/boot_id"),
            host_ips,
            capabilities: file("/proc/self/status")
                .lines()
                .find_map(|l| u64::from_str_radix(l.strip_prefix("CapPrm:")?.trim(), 16).ok())
                .unwrap_or(0),
            nofile: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
            apparmor: file("/sys/module/apparmor/parameters/enabled") == "Y",
            given: (configured.to_vec(), name.to_owned()),
        }
    }

    /// The addresses that others reach the node by, as they are now; none while there is no network. Of those that are
    /// configured, the ones that the machine has.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        match &self.given {
            (configured, name) if configured.is_empty() => own_address(name).into_iter().collect(),
            (configured, _) => configured.iter().copied().filter(|ip| is_usable(*ip) && is_local(*ip)).collect(),
        }
    }
}

/// As kubelet: the name of the node if it is an address, what it is resolved to, then the source address of the default route;
/// IPv4 first. Names are looked up in /etc/hosts only: a node does not wait for a network to learn who it is.
fn own_address(name: &str) -> Option<IpAddr> {
    let hosts = || std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let named = name.parse().map_or_else(|_| named_in(&hosts(), name), |ip| vec![ip]);
    let of_name = named.into_iter().find(|ip| is_usable(*ip) && is_local(*ip));
    // Addresses of the documentation: nobody has them, so the default route decides on most machines.
    let any4 = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let any6 = (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    of_name.or_else(|| source(any4)).or_else(|| source(any6))
}

/// The address that the machine would send from. Connecting a datagram socket sends nothing.
fn source((any, to): (IpAddr, IpAddr)) -> Option<IpAddr> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| is_usable(*ip))
}

/// Addresses of a name in a file as /etc/hosts, IPv4 first.
fn named_in(hosts: &str, name: &str) -> Vec<IpAddr> {
    let of_line = |line: &str| -> Option<IpAddr> {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    let mut found: Vec<IpAddr> = hosts.lines().filter_map(of_line).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

/// Whether others can reach a machine by it (as kubelet).
fn is_usable(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local)
}

/// Whether the machine has it.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_hosts_and_loopback_is_no_address_of_a_node() {
        let hosts =
            "127.0.0.1 localhost\n127.0.1.1 Edge-1 # 10.0.0.9 edge-1\nfd00::1 edge-1\n10.0.0.1\tx edge-1\nbad edge-1\n";
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(named_in(hosts, "edge-1"), [ip("127.0.1.1"), ip("10.0.0.1"), ip("fd00::1")]);
        assert!(named_in(hosts, "edge").is_empty());
        for bad in ["127.0.1.1", "::1", "0.0.0.0", "169.254.1.1", "fe80::1", "224.0.0.1", "ff02::1"] {
            assert!(!is_usable(ip(bad)), "{bad}");
        }
        assert!(is_usable(ip("10.0.0.1")) && is_usable(ip("fd00::1")));
        assert!(is_local(ip("127.0.0.1")) && !is_local(ip("192.0.2.1")));
        let machine = Machine::read(&[ip("127.0.0.1"), ip("192.0.2.1")], "n");
        assert!(machine.addresses().is_empty(), "neither reaches this machine");
        assert_eq!(machine.host_ips.len(), 2, "pods are told what is configured");
    }
}
