//! What a container is given of the machine beyond folders: device nodes of hostPath volumes, and security profiles
//! that are files.

use super::{Error, Note, Runtime};
use crate::bundle::devices::{self, Kind, Rule};
use crate::bundle::profile::{self, AppArmorFacts};
use crate::bundle::{self, seccomp_file};
use crate::pod::{Instance, Spec as PodSpec};
use crate::shim::protocol::{Devices, Node, Reply, Request};
use crate::sys::fs;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a shim may take to change a container's devices: a little longer than it gives itself.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
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

/// Paths of the machine's devices that a pod has as volumes.
#[must_use]
pub fn device_paths(pod: &Pod) -> Vec<PathBuf> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(host_device(volume)?.0.into())).collect()
}

/// The devices that a container has of its pod's volumes, as they are now.
///
/// # Errors
/// When the machine does not tell what is there.
pub fn device_nodes(pod: &Pod, container: &Container) -> Result<Vec<Node>, Error> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let mut nodes = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.and_then(|all| all.iter().find(|v| v.name == mount.name));
        let Some((path, kind)) = volume.and_then(host_device) else { continue };
        let found = crate::volume::devices::find(Path::new(path), kind)
            .map_err(|e| bundle::Error::Device { path: path.into(), reason: e.to_string() })?;
        nodes.push(Node {
            destination: bundle::destination(&mount.mount_path)?,
            source: path.into(),
            read_only: mount.read_only == Some(true),
            found,
        });
    }
    Ok(nodes)
}

/// It was there a moment ago, when the volume was set up.
fn gone(path: &Path) -> bundle::Error {
    bundle::Error::Device { path: path.to_owned(), reason: "it has just gone".into() }
}

impl Runtime {
    /// Adds to a container's spec what its pod asks of devices: the right to use those of its hostPath volumes (the nodes
    /// are mounted with the volumes), and CDI devices. Returns what may change of that while it runs.
    pub(super) fn give_devices(&self, pod: &Pod, container: &Container, oci: &mut Spec) -> Result<Devices, Error> {
        super::cdi::give(pod, &self.cdi_dirs, oci)?;
        let nodes = device_nodes(pod, container)?;
        if nodes.is_empty() {
            return Ok(Devices::default());
        }
        let rules = devices::rules(oci)?;
        for node in &nodes {
            let Some(found) = node.found else {
                return Err(gone(&node.source).into());
            };
            devices::allow(oci, Rule::device(found.number, node.read_only))?;
        }
        Ok(Devices { rules, nodes })
    }

    /// Lets a running container see and use the devices that are there now: `nodes`, of [`device_nodes`].
    ///
    /// # Errors
    /// [`Error::Devices`] when the shim could not do it.
    pub fn change_devices(&self, spec: &PodSpec, run: &Instance, nodes: &[Node]) -> Result<Vec<Note>, Error> {
        let uid = spec.uid();
        let shim = self.shim(uid).ok_or_else(|| Error::Missing(format!("the shim of pod {}", spec.key())))?;
        let found = nodes.iter().map(|node| (node.destination.clone(), node.found)).collect();
        let reply = shim.call(&Request::Devices { id: run.id.clone(), found }, CHANGE_TIMEOUT)?;
        let (gone, back) = match reply {
            Reply::Devices { gone, back } => (gone, back),
            Reply::Error { message } => return Err(Error::Devices(message)),
            _ => return Err(Error::Devices("the shim gave a wrong answer".into())),
        };
        let name = &run.container;
        let told = |node: &&Node| gone.contains(&node.destination) || back.contains(&node.destination);
        let note = |node: &Node| {
            let (path, at) = (node.source.display(), node.destination.display());
            let note = match node.found {
                None => Note::warning("DeviceGone", format!("{path} is gone: container {name} cannot open {at}")),
                Some(found) => {
                    let number = found.number;
                    Note::normal("DeviceBack", format!("{path} is {number} now: container {name} has it at {at}"))
                }
            };
            note.about(name)
        };
        Ok(nodes.iter().filter(told).map(note).collect())
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
