//! What a container is given of the machine beyond folders: device nodes of hostPath volumes, and security profiles
//! that are files.

use super::{Error, Runtime};
use crate::bundle::devices::{self, Kind, Rule};
use crate::bundle::profile::{self, AppArmorFacts};
use crate::bundle::{self, seccomp_file};
use crate::sys::fs;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

/// Folder of `Localhost` seccomp profiles below the root folder (as kubelet).
const SECCOMP_DIR: &str = "seccomp";
/// Loaded AppArmor profiles, a line each: name and mode.
const APPARMOR_PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// A hostPath volume that is a device: its path and kind.
fn host_device(volume: &Volume) -> Option<(&str, Kind)> {
    let source = volume.host_path.as_ref()?;
    match source.type_.as_deref() {
        Some("CharDevice") => Some((&source.path, Kind::Char)),
        Some("BlockDevice") => Some((&source.path, Kind::Block)),
        _ => None,
    }
}

impl Runtime {
    /// Adds to a container's spec what its pod asks of devices: the right to use those of its hostPath volumes (the nodes
    /// are mounted with the volumes), and CDI devices.
    pub(super) fn give_devices(&self, pod: &Pod, container: &Container, oci: &mut Spec) -> Result<(), Error> {
        let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
        for mount in container.volume_mounts.iter().flatten() {
            let volume = volumes.and_then(|all| all.iter().find(|v| v.name == mount.name));
            let Some((path, kind)) = volume.and_then(host_device) else { continue };
            let failed = |reason: String| bundle::Error::Device { path: path.into(), reason };
            let node = crate::volume::devices::look(Path::new(path)).map_err(|e| failed(e.to_string()))?;
            if node.number.kind != kind {
                return Err(failed("it is of the other type (character or block)".into()).into());
            }
            devices::allow(oci, Rule::device(node.number, mount.read_only == Some(true)))?;
        }
        super::cdi::give(pod, &self.cdi_dirs, oci)
    }

    /// The `Localhost` seccomp profile that a container names, read anew for each start.
    pub(super) fn seccomp_profiles(
        &self,
        pod: &Pod,
        container: &Container,
    ) -> Result<BTreeMap<String, LinuxSeccomp>, Error> {
        let profile::Seccomp::Localhost(name) = profile::seccomp_of(pod, container)? else {
            return Ok(BTreeMap::new());
        };
        let dir = self.layout.root.join(SECCOMP_DIR);
        let read = || -> Result<LinuxSeccomp, String> {
            let dir = fs::Dir::open(&dir).map_err(|e| e.to_string())?;
            let file = dir.open_beneath(OsStr::new(name)).map_err(|e| match e.raw_os_error() {
                Some(libc::EXDEV) => "it is outside the folder of profiles".to_owned(),
                _ => e.to_string(),
            })?;
            let text = fs::read_file_limited(file, seccomp_file::MAX_BYTES).map_err(|e| e.to_string())?;
            seccomp_file::parse(&text).map_err(|e| e.to_string())
        };
        match read() {
            Ok(profile) => Ok(BTreeMap::from([(name.to_owned(), profile)])),
            Err(reason) => Err(bundle::Error::Seccomp { path: dir.join(name), reason }.into()),
        }
    }

    /// What the node knows of AppArmor; the loaded profiles are read for those only who ask for one.
    pub(super) fn apparmor_facts(&self, pod: &Pod, container: &Container) -> AppArmorFacts {
        let enabled = self.machine.apparmor;
        let asked = profile::apparmor_of(pod, container).is_ok_and(|profile| profile.is_some());
        if !enabled || !asked {
            return AppArmorFacts { enabled, loaded: Vec::new() };
        }
        let text = std::fs::read_to_string(APPARMOR_PROFILES).unwrap_or_default();
        // "name (mode)", and names may hold spaces.
        let name = |line: &str| line.rsplit_once(" (").map_or(line, |(name, _)| name).to_owned();
        AppArmorFacts { enabled, loaded: text.lines().map(name).collect() }
    }
}

/// Whether the machine's SELinux is on.
pub(super) fn selinux() -> bool {
    Path::new(SELINUX).exists()
}

/// Whether device rules are in force: the devices controller of cgroup v1, or programs on v2. Without them containers
/// cannot make device nodes.
pub(super) fn rules_enforced(cgroups: &bundle::CgroupFs) -> bool {
    match cgroups {
        bundle::CgroupFs::V1(controllers) => {
            let enforced = controllers.iter().any(|(name, _)| name == "devices");
            if !enforced {
                tracing::warn!("the devices controller is not mounted: containers do without CAP_MKNOD");
            }
            enforced
        }
        bundle::CgroupFs::V2 => match crate::sys::bpf::probe() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "device rules cannot be enforced: containers do without CAP_MKNOD");
                false
            }
        },
    }
}
