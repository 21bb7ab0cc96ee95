//! Facts of the machine, read once.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

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

/// Device nodes of the machine, for privileged containers: all below `/dev` but terminals, which belong to somebody,
/// and what a container has of its own.
#[must_use]
pub fn devices() -> Vec<LinuxDevice> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
            let kind = meta.file_type();
            if kind.is_dir() {
                if !["pts", "shm", "mqueue", "fd"].iter().any(|skip| path == Path::new("/dev").join(skip)) {
                    folders.push(path);
                }
                continue;
            }
            let typ = match (kind.is_char_device(), kind.is_block_device()) {
                (true, _) => LinuxDeviceType::C,
                (_, true) => LinuxDeviceType::B,
                _ => continue,
            };
            if ["console", "ptmx", "tty", "null", "zero", "full", "random", "urandom"]
                .iter()
                .any(|own| path == Path::new("/dev").join(own))
            {
                continue;
            }
            let device = LinuxDeviceBuilder::default()
                .path(path)
                .typ(typ)
                .major(i64::from(rustix::fs::major(meta.rdev())))
                .minor(i64::from(rustix::fs::minor(meta.rdev())))
                .file_mode(meta.mode() & 0o7777)
                .uid(meta.uid())
                .gid(meta.gid())
                .build();
            found.extend(device);
        }
    }
    found
}

/// The source address of the default route. Connecting a datagram socket sends nothing; without any route (a node on
/// its own) loopback is what there is.
fn primary_ip() -> IpAddr {
    let probe = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // TEST-NET-1: never a local subnet, so the default route decides.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    probe().filter(|ip| !ip.is_unspecified()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}
