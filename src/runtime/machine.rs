//! Facts of the machine, read once.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

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
}

impl Machine {
    /// Look; what cannot be read is left empty.
    #[must_use]
    pub fn read(configured: &[IpAddr]) -> Machine {
        let file = |path: &str| std::fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
        let memory_kib = file("/proc/meminfo")
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .unwrap_or(0);
        let os_release = file("/etc/os-release");
        let pretty = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
        let host_ips = if configured.is_empty() { vec![primary_ip()] } else { configured.to_vec() };
        Machine {
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib * 1024,
            kernel: file("/proc/sys/kernel/osrelease"),
            os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
            machine_id: file("/etc/machine-id"),
            boot_id: file("/proc/sys/kernel/random/boot_id"),
            host_ips,
            capabilities: file("/proc/self/status")
                .lines()
                .find_map(|l| u64::from_str_radix(l.strip_prefix("CapPrm:")?.trim(), 16).ok())
                .unwrap_or(0),
            nofile: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
            apparmor: file("/sys/module/apparmor/parameters/enabled") == "Y",
        }
    }
}

/// The source address of the default route. Connecting a datagram socket sends nothing; without any route (a node on
/// its own) loopback is what there is.
fn primary_ip() -> IpAddr {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // An address of the documentation: nobody has it, so the default route decides on most machines.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    probe().filter(|ip| !ip.is_unspecified()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}
