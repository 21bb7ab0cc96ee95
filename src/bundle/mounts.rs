//! What a container sees of file systems beyond its image.

use super::{CgroupFs, Error, Input};
use k8s_openapi::api::core::v1::Container;
use oci_spec::runtime::{Mount as SpecMount, MountBuilder};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// A bind mount into the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// File or folder of the machine.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Whether the container may not write to it.
    pub read_only: bool,
    /// With `read_only`: whether that also holds for the mounts below it.
    pub recursive_read_only: bool,
    /// Whether mounts made later on one side appear on the other.
    pub propagation: Propagation,
}

/// `mountPropagation` of a volume mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Propagation {
    /// `None`: neither way.
    #[default]
    Private,
    /// `HostToContainer`.
    HostToContainer,
    /// `Bidirectional`; for privileged containers only.
    Bidirectional,
}

/// A volume of the pod that is ready to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where it is on this machine.
    pub path: PathBuf,
    /// Whether no container may write to it.
    pub read_only: bool,
}

/// The container's `volumeMounts` as bind mounts, given the pod's volumes by name.
///
/// # Errors
/// [`Error::NoVolume`] for a name the pod does not have, [`Error::Unsupported`] for subPath, [`Error::Destination`].
pub fn of_container(container: &Container, volumes: &BTreeMap<String, Volume>) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&mount.name).ok_or_else(|| Error::NoVolume(mount.name.clone()))?;
        let set = |v: &Option<String>| v.as_ref().is_some_and(|v| !v.is_empty());
        if set(&mount.sub_path) || set(&mount.sub_path_expr) {
            return Err(Error::Unsupported(format!("subPath of volume mount {}", mount.name)));
        }
        let propagation = match mount.mount_propagation.as_deref() {
            None | Some("" | "None") => Propagation::Private,
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            Some(other) => return Err(Error::Unsupported(format!("mountPropagation {other}"))),
        };
        mounts.push(Mount {
            source: volume.path.clone(),
            destination: destination(&mount.mount_path)?,
            read_only: volume.read_only || mount.read_only == Some(true),
            recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("IfPossible" | "Enabled")),
            propagation,
        });
    }
    Ok(mounts)
}

/// An absolute, normal form of a mount path (a relative one counts from `/`, as kubelet does).
fn destination(path: &str) -> Result<PathBuf, Error> {
    let mut out = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => out.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(Error::Destination(path.into())),
        }
    }
    if path.contains('\0') || out == Path::new("/") {
        return Err(Error::Destination(path.into()));
    }
    Ok(out)
}

fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> Result<SpecMount, Error> {
    Ok(MountBuilder::default()
        .typ(kind)
        .source(source)
        .destination(destination)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()?)
}

/// All mounts, in the order in which they are made.
pub(super) fn all(input: &Input<'_>, privileged: bool) -> Result<Vec<SpecMount>, Error> {
    let sys_mode = if privileged { "rw" } else { "ro" };
    let mut defaults = vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", sys_mode])?,
    ];
    if input.namespaces.ipc.is_none() {
        // The machine's own IPC namespace comes with its shared memory.
        defaults.retain(|m| m.destination() != Path::new("/dev/shm"));
        defaults.push(mount("bind", "/dev/shm", "/dev/shm", &["rbind", "rw"])?);
    }
    match &input.node.cgroups {
        CgroupFs::V2 => {
            let options = ["nosuid", "noexec", "nodev", "relatime", sys_mode];
            defaults.push(mount("cgroup", "cgroup", "/sys/fs/cgroup", &options)?);
        }
        CgroupFs::V1(controllers) if !controllers.is_empty() => {
            // Binds of the container's own groups: a mount of type cgroup could not be made read-only.
            defaults.push(mount(
                "tmpfs",
                "tmpfs",
                "/sys/fs/cgroup",
                &["nosuid", "noexec", "nodev", "mode=755", "size=64k"],
            )?);
            for (name, root) in controllers {
                let source = format!("{}{}", root.display(), input.cgroup_path);
                let target = format!("/sys/fs/cgroup/{name}");
                defaults.push(mount("bind", &source, &target, &["bind", "nosuid", "noexec", "nodev", sys_mode])?);
            }
        }
        CgroupFs::V1(_) => {}
    }

    let mut given: Vec<&Mount> = Vec::new();
    for m in input.mounts {
        if given.iter().any(|earlier| earlier.destination == m.destination) {
            continue;
        }
        // libcontainer replaces /dev/ptmx and makes links below whatever /dev is: on the machine's own /dev that
        // would break every terminal of the machine.
        if m.destination == Path::new("/dev") {
            // A privileged container has all devices of the machine in its own /dev.
            if privileged && Path::new(&m.source) == Path::new("/dev") {
                continue;
            }
            return Err(Error::MountOverDev);
        }
        given.push(m);
        if !m.destination.is_absolute() || m.destination == Path::new("/") {
            return Err(Error::Destination(m.destination.clone()));
        }
        if m.propagation == Propagation::Bidirectional && !privileged {
            return Err(Error::BidirectionalUnprivileged(m.destination.clone()));
        }
        // What the pod mounts at a place replaces what would be there, and all below it.
        defaults.retain(|d| !d.destination().starts_with(&m.destination));
    }
    // A folder is mounted before what lies in it; the order is otherwise the pod's.
    given.sort_by_key(|m| m.destination.components().count());
    for m in given {
        let options: &[&str] = match (m.read_only, m.recursive_read_only) {
            (false, _) => &["rbind", "rw"],
            (true, false) => &["rbind", "ro"],
            (true, true) => &["rbind", "ro", "rro"],
        };
        defaults.push(
            MountBuilder::default()
                .typ("bind")
                .source(m.source.clone())
                .destination(m.destination.clone())
                .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
                .build()?,
        );
    }
    Ok(defaults)
}

/// Propagation of the container's whole mount tree: libcontainer ignores that of single mounts.
pub(super) fn root_propagation(mounts: &[Mount]) -> &'static str {
    match mounts.iter().map(|m| m.propagation).max().unwrap_or_default() {
        Propagation::Private => "private",
        Propagation::HostToContainer => "slave",
        Propagation::Bidirectional => "shared",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        assert_eq!(destination("/a//b/./c/").expect("path"), Path::new("/a/b/c"));
        assert_eq!(destination("a").expect("path"), Path::new("/a"));
        for bad in ["", "/", "/a/../b", "..", "/a\0b"] {
            assert!(matches!(destination(bad), Err(Error::Destination(_))), "{bad:?}");
        }
    }
}
