//! What a container sees of file systems beyond its image.

use super::{CgroupFs, Error, Input, env};
use crate::manifest::places;
use k8s_openapi::api::core::v1::{Container, VolumeMount};
use oci_spec::runtime::{Mount as SpecMount, MountBuilder};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
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
    /// Whether it is a volume mount of the PodSpec (and not one of the node's own).
    pub volume: bool,
    /// The part of the volume that is mounted.
    pub sub_path: SubPath,
    /// The image that the volume shows; `source` means nothing then.
    pub image: Option<String>,
}

/// `subPath` and `subPathExpr` of a volume mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SubPath {
    /// All of the volume.
    #[default]
    Whole,
    /// This file or folder in it.
    Path(String),
    /// As `Path`, once `$(NAME)` is replaced ([`expand_sub_paths`]).
    Expression(String),
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
    /// The image whose content it shows, instead of `path`.
    pub image: Option<String>,
}

/// The container's `volumeMounts` as bind mounts, given the pod's volumes by name.
///
/// # Errors
/// [`Error::NoVolume`] for a name the pod does not have, [`Error::Destination`], [`Error::RecursiveReadOnly`],
/// [`Error::Unsupported`] for a propagation that there is not.
pub fn of_container(container: &Container, volumes: &BTreeMap<String, Volume>) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&mount.name).ok_or_else(|| Error::NoVolume(mount.name.clone()))?;
        let set = |v: &Option<String>| v.clone().filter(|v| !v.is_empty());
        let sub_path = match (set(&mount.sub_path), set(&mount.sub_path_expr)) {
            (Some(path), _) => SubPath::Path(path),
            (None, Some(expression)) => SubPath::Expression(expression),
            (None, None) => SubPath::Whole,
        };
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
            recursive_read_only: recursive_read_only(mount, propagation)?,
            propagation,
            volume: true,
            sub_path,
            image: volume.image.clone(),
        });
    }
    Ok(mounts)
}

/// As kubelet: only for a mount that is read-only and keeps to itself. (That the kernel can do it is certain: libcontainer
/// needs `mount_setattr` for every bind mount.)
fn recursive_read_only(mount: &VolumeMount, propagation: Propagation) -> Result<bool, Error> {
    let refuse = |why: &'static str| Err(Error::RecursiveReadOnly { volume: mount.name.clone(), why });
    match mount.recursive_read_only.as_deref() {
        None | Some("" | "Disabled") => Ok(false),
        Some("IfPossible" | "Enabled") if mount.read_only != Some(true) => refuse("it is not read-only"),
        Some("IfPossible" | "Enabled") if propagation != Propagation::Private => {
            refuse("it is not compatible with its mountPropagation")
        }
        Some("IfPossible" | "Enabled") => Ok(true),
        Some(_) => refuse("there is no such mode"),
    }
}

/// The container's mounts with every `subPathExpr` replaced by the path that it means in the container's environment.
///
/// # Errors
/// [`Error::SubPathExpr`] for a variable that is missing or empty; those of the environment.
pub fn expand_sub_paths(input: &Input<'_>) -> Result<Vec<Mount>, Error> {
    let mut mounts = input.mounts.to_vec();
    if !mounts.iter().any(|m| matches!(m.sub_path, SubPath::Expression(_))) {
        return Ok(mounts);
    }
    let declared = env::declared(input)?;
    for mount in &mut mounts {
        let SubPath::Expression(expression) = &mount.sub_path else { continue };
        let missing = RefCell::new(BTreeSet::new());
        let path = env::expand(expression, |name| {
            let value = env::lookup(input, &declared, name).filter(|value| !value.is_empty());
            if value.is_none() {
                missing.borrow_mut().insert(name.to_owned());
            }
            value
        });
        let missing: Vec<String> = missing.into_inner().into_iter().collect();
        if !missing.is_empty() {
            return Err(Error::SubPathExpr { expression: expression.clone(), missing: missing.join(", ") });
        }
        mount.sub_path = SubPath::Path(path);
    }
    Ok(mounts)
}

/// An absolute, normal form of a mount path (a relative one counts from `/`, as kubelet does).
///
/// # Errors
/// [`Error::Destination`] for one with `..`, or that is `/`.
pub fn destination(path: &str) -> Result<PathBuf, Error> {
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
        if let Some(taken) = places::taken(&m.destination, Some(&m.source).filter(|_| m.volume).map(PathBuf::as_path)) {
            return Err(Error::Place { place: m.destination.clone(), rule: taken.rule() });
        }
        given.push(m);
        if !m.destination.is_absolute() || m.destination == Path::new("/") {
            return Err(Error::Destination(m.destination.clone()));
        }
        // It would be all of the volume that the container gets.
        if m.sub_path != SubPath::Whole || m.image.is_some() {
            return Err(Error::NotStaged(m.destination.clone()));
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

    fn mounted(mount: serde_json::Value) -> Result<Mount, String> {
        let mut mount = mount;
        mount["name"] = "v".into();
        mount["mountPath"] = "/m".into();
        let container =
            serde_json::from_value(serde_json::json!({"name": "c", "volumeMounts": [mount]})).expect("container");
        let volume = Volume { path: "/v".into(), read_only: false, image: None };
        let mounts = of_container(&container, &BTreeMap::from([("v".to_owned(), volume)]));
        mounts.map(|mut all| all.remove(0)).map_err(|e| e.to_string())
    }

    #[test]
    fn recursive_read_only_needs_more() {
        use serde_json::json;
        let of = |mount| mounted(mount).map(|m| m.recursive_read_only);
        for mode in ["Enabled", "IfPossible"] {
            let text = |why: &str| Err(format!("volume \"v\" requested recursive read-only mode, but {why}"));
            assert_eq!(of(json!({"recursiveReadOnly": mode, "readOnly": true})), Ok(true));
            assert_eq!(of(json!({"recursiveReadOnly": mode})), text("it is not read-only"));
            let spread = json!({"recursiveReadOnly": mode, "readOnly": true, "mountPropagation": "HostToContainer"});
            assert_eq!(of(spread), text("it is not compatible with its mountPropagation"));
        }
        assert_eq!(of(json!({"recursiveReadOnly": "Disabled"})), Ok(false));
    }

    #[test]
    fn sub_paths() {
        use serde_json::json;
        let of = |mount| mounted(mount).expect("mount").sub_path;
        assert_eq!(of(json!({"subPath": "a/b"})), SubPath::Path("a/b".into()));
        assert_eq!(of(json!({"subPathExpr": "$(A)"})), SubPath::Expression("$(A)".into()));
        assert_eq!(of(json!({"subPath": "", "subPathExpr": ""})), SubPath::Whole);
    }

    #[test]
    fn destinations() {
        assert_eq!(destination("/a//b/./c/").expect("path"), Path::new("/a/b/c"));
        assert_eq!(destination("a").expect("path"), Path::new("/a"));
        for bad in ["", "/", "/a/../b", "..", "/a\0b"] {
            assert!(matches!(destination(bad), Err(Error::Destination(_))), "{bad:?}");
        }
    }
}
