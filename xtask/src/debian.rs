//! What a task needs from the system: installed by root on Debian, else named exactly.

use crate::shell;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// Something a package provides: a file, or a command on the PATH.
pub struct Need {
    package: &'static str,
    found: fn() -> bool,
}

fn on_path(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(name).is_file())
}

/// To build: libseccomp is linked statically, and a C compiler drives the linker.
pub const BUILD: &[Need] = &[
    Need { package: "libseccomp-dev", found: || Path::new("/usr/lib/x86_64-linux-gnu/libseccomp.a").is_file() },
    Need { package: "gcc", found: || on_path("cc") },
    Need { package: "libc6-dev", found: || Path::new("/usr/lib/x86_64-linux-gnu/libc.a").is_file() },
];

/// For the privileged tests.
pub const TESTS: &[Need] = &[
    BUSYBOX,
    Need { package: "iproute2", found: || on_path("ip") },
    Need { package: "mount", found: || on_path("mount") },
    // Gives a program a terminal of its own.
    Need { package: "util-linux", found: || on_path("setsid") },
    // Looks at the units. It is on every Debian machine, but not in every container.
    Need { package: "systemd", found: || on_path("systemd-analyze") },
    Need { package: "minisign", found: || on_path("minisign") },
    Need { package: "openssl", found: || on_path("openssl") },
    Need { package: "docker-registry", found: || on_path("docker-registry") },
    Need { package: "skopeo", found: || on_path("skopeo") },
    Need { package: "apache2-utils", found: || on_path("htpasswd") },
    // What layers amount to in the eyes of another.
    Need { package: "umoci", found: || on_path("umoci") },
    // A control plane's database, from kubeadm's manifest.
    Need { package: "etcd-server", found: || on_path("etcd") },
    Need { package: "etcd-client", found: || on_path("etcdctl") },
    // Loses packets on purpose, and is what kube-proxy calls.
    Need { package: "nftables", found: || on_path("nft") },
    // Looks at the status page.
    Need { package: "chromium-headless-shell", found: || on_path("chromium-headless-shell") },
    // Fetches kubectl.
    Need { package: "python3-pip", found: || on_path("pip") || on_path("pip3") },
    // Makes system calls fail.
    Need { package: "strace", found: || on_path("strace") },
];

pub const BUSYBOX: Need = Need {
    package: "busybox-static",
    found: || Path::new("/bin/busybox").is_file() || Path::new("/usr/bin/busybox").is_file(),
};
pub const RUNC: Need = Need { package: "runc", found: || on_path("runc") };
pub const CONTAINERD: Need = Need { package: "containerd", found: || on_path("containerd") && on_path("ctr") };
pub const PODMAN: Need = Need { package: "podman", found: || on_path("podman") };
pub const QEMU: Need = Need { package: "qemu-system-x86", found: || on_path("qemu-system-x86_64") };
pub const CPIO: Need = Need { package: "cpio", found: || on_path("cpio") };
pub const DPKG: Need = Need { package: "dpkg", found: || on_path("dpkg-deb") };

/// Installs what is missing, or says what to type.
pub fn install(needs: &[&[Need]]) -> Result<()> {
    let missing: Vec<&str> = needs.iter().flat_map(|n| n.iter()).filter(|n| !(n.found)()).map(|n| n.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !shell::is_root() || !on_path("apt-get") {
        bail!("missing on this machine: {}\nhint: sudo apt-get install {}", missing.join(", "), missing.join(" "));
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    };
    let mut get = vec!["install", "--yes", "--no-install-recommends"];
    get.extend(&missing);
    if shell::step(&mut apt(&get)).is_err() {
        // The package lists may be old or absent.
        shell::step(&mut apt(&["update"]))?;
        shell::step(&mut apt(&get))?;
    }
    Ok(())
}
