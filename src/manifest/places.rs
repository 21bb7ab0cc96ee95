//! Places in a container that volumes cannot be mounted at.

use std::path::Path;

/// Why a place is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// A device or link that every container has: libcontainer makes it after it has mounted the volumes, and would fail.
    Device,
    /// It is in `/proc`, where a mount could hide what confines the container (as runc).
    Kernel,
}

impl Taken {
    /// The rule in words, to follow the path.
    #[must_use]
    pub fn rule(self) -> &'static str {
        match self {
            Taken::Device => "every container has a device or link of its own there",
            Taken::Kernel => {
                "what is in /proc is the kernel's (only a hostPath of /proc may be mounted at /proc, and files over those \
                 that say how much the machine has)"
            }
        }
    }
}

const IN_DEV: [&str; 11] =
    ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr"];
/// Files that nothing of the container's confinement hangs on, as runc allows: lxcfs covers them.
const IN_PROC: [&str; 9] =
    ["cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime", "sys/kernel/ns_last_pid"];

/// Whether the place (an absolute path in normal form) is not free for what is mounted from `source` of the machine; `None`
/// for a volume that is not of the machine.
#[must_use]
pub fn taken(place: &Path, source: Option<&Path>) -> Option<Taken> {
    if let Ok(name) = place.strip_prefix("/proc") {
        let whole = name.as_os_str().is_empty() && source == Some(Path::new("/proc"));
        let allowed = whole || IN_PROC.iter().any(|allowed| name == Path::new(allowed));
        return (!allowed).then_some(Taken::Kernel);
    }
    let name = place.strip_prefix("/dev").ok()?;
    IN_DEV.iter().any(|made| name.starts_with(made)).then_some(Taken::Device)
}
