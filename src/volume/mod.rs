//! A pod's volumes. Set up before the pod's first container, torn down after its last; both can be done again at any time.
//!
//! | | |
//! |---|---|
//! | [`empty_dir`] | on disk, in memory (tmpfs) or in huge pages (hugetlbfs) |
//! | [`host_path`] | checked against its type |
//! | [`projected`], [`downward`] → [`payload`] → [`atomic`] | files made from objects: pure data, then an atomic swap on a tmpfs |
//! | [`stage`] | sub paths, images and propagation: put together when a container starts |
//!
//! Other kinds are refused with the manifest.

mod atomic;
pub mod devices;
mod downward;
mod empty_dir;
mod fs_group;
mod host_path;
mod payload;
mod projected;
mod remove;
mod stage;

pub use crate::bundle::Volume as Resolved;
pub use empty_dir::PLUGIN as EMPTY_DIR;
pub use payload::{File, PathError, Payload};
pub use projected::objects;
pub use stage::{Item, Source, Spread, Stage, stage};

use crate::manifest::{Object, ObjectId, Objects};
use crate::pod::resources::{self, Allocatable};
use crate::pod::{Token, TokenId};
use k8s_openapi::api::core::v1::{Pod, Volume};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Most mounts that may lie on top of each other at one volume.
const MAX_STACKED: usize = 16;

/// Why a volume could not be set up or torn down; kubelet's event for it is `FailedMount`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine's file is not of the type the manifest asks for.
    #[error("hostPath type check failed: {path} is not {expected}")]
    HostPathType { path: String, expected: &'static str },
    /// A hostPath with `..` in it, or a relative one.
    #[error("hostPath {0:?} must be an absolute path without '..'")]
    HostPath(String),
    /// A name that cannot be a folder's.
    #[error("{0:?} is not a volume name")]
    Name(String),
    /// A kind of volume that is not implemented.
    #[error("volume {name}: {what} is not supported")]
    Unsupported { name: String, what: String },
    /// A medium that an emptyDir cannot have.
    #[error("emptyDir medium {medium:?}: {why}")]
    Medium { medium: String, why: &'static str },
    /// A `fieldRef` or `resourceFieldRef` that a volume cannot have.
    #[error("{0}")]
    Field(String),
    /// An object or a key of it that is not there, in kubelet's words.
    #[error("volume {volume:?}: {what}")]
    Missing { volume: String, what: String },
    /// A path of a file in a volume.
    #[error(transparent)]
    Payload(#[from] PathError),
    /// A sub path that is none, or leads out of its volume.
    #[error("subPath {path:?} cannot be used")]
    SubPath { path: String, source: io::Error },
    /// Mounts cannot spread from (or to) there.
    #[error("path {path:?} is mounted on {mount:?} but it is not {what}")]
    NotShared { path: PathBuf, mount: PathBuf, what: &'static str },
    /// A resource quantity.
    #[error(transparent)]
    Resources(#[from] resources::Error),
    /// Something is mounted where files should be removed.
    #[error("{0:?} is a mount point: nothing below it is removed")]
    MountPoint(PathBuf),
    /// A file operation.
    #[error("cannot {action} {path:?}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// The waiting reason of a container that cannot start for it; `None` when the volume itself is at fault.
    #[must_use]
    pub fn container_reason(&self) -> Option<&'static str> {
        match self {
            Error::SubPath { .. } => Some("CreateContainerConfigError"),
            Error::NotShared { .. } => Some("CreateContainerError"),
            _ => None,
        }
    }

    /// Whether what the volume is made from is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Missing { .. })
    }
}

/// What volumes are made from, besides the pod.
#[derive(Debug, Default)]
pub struct Given {
    /// What the node has.
    pub node: Allocatable,
    /// ConfigMaps and Secrets: those of [`objects`], as far as they are there.
    pub objects: Objects,
    /// Objects that are there but whose values cannot be had, and why.
    pub unavailable: BTreeMap<ObjectId, String>,
    /// Objects of which it is not known whether they are there, and why: also a volume that could do without waits.
    pub unread: BTreeMap<ObjectId, String>,
    /// The pod's tokens, or why one is not there.
    pub tokens: BTreeMap<TokenId, Result<Token, String>>,
}

impl Given {
    /// The object, if there is one, or why its values cannot be had: for those who must have them, or for all.
    fn find(&self, id: &ObjectId) -> Result<Option<&Object>, Unavailable<'_>> {
        match (self.unread.get(id), self.unavailable.get(id)) {
            (Some(why), _) => Err(Unavailable { why, for_all: true }),
            (None, Some(why)) => Err(Unavailable { why, for_all: false }),
            (None, None) => Ok(self.objects.get(id)),
        }
    }
}

/// Why the values of an object cannot be had.
struct Unavailable<'a> {
    why: &'a str,
    /// Whether it also stops who could do without.
    for_all: bool,
}

fn io_error<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source: source.into() }
}

/// Sets up all volumes of a pod below `volumes_dir` (`<root>/pods/<uid>/volumes`) and says where they are. What is
/// already there stays as it is, content and permissions; volumes made from objects are brought up to date, as far as
/// their objects are there: a container of a running pod starts again also without them, with the files from before.
///
/// # Errors
/// The first volume that fails; those before it stay set up.
pub fn set_up(pod: &Pod, volumes_dir: &Path, given: &Given) -> Result<BTreeMap<String, Resolved>, Error> {
    let memory = u64::try_from(given.node.memory).unwrap_or_default();
    let mut resolved = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let name = check_name(&volume.name)?;
        let writable = |path| Resolved { path, read_only: false, image: None };
        let ready = match (&volume.empty_dir, &volume.host_path, &volume.image) {
            (Some(source), None, None) => writable(empty_dir::set_up(pod, volume, source, volumes_dir, memory)?),
            (None, Some(source), None) => writable(host_path::set_up(source)?),
            // Its image may still be on its way: each container that mounts it asks for it.
            (None, None, Some(source)) => {
                let image = Some(source.reference.clone().unwrap_or_default());
                Resolved { path: PathBuf::new(), read_only: true, image }
            }
            _ => match projected::plugin(volume) {
                Some(plugin) => {
                    let path = publish(pod, volume, name, &volumes_dir.join(plugin), given)?;
                    Resolved { path, read_only: true, image: None }
                }
                None => {
                    let what = "this type of volume".into();
                    return Err(Error::Unsupported { name: volume.name.clone(), what });
                }
            },
        };
        resolved.insert(volume.name.clone(), ready);
    }
    Ok(resolved)
}

/// Brings the volumes that are made from objects up to date, while containers read them: after the objects, or the pod's
/// labels, annotations or resources changed. Volumes that are not set up stay so. Tells how many were written anew.
///
/// # Errors
/// The first that fails; its readers keep the old files. The others are brought up to date all the same.
pub fn refresh(pod: &Pod, volumes_dir: &Path, given: &Given) -> Result<usize, Error> {
    let mut result = Ok(0);
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let Some(plugin) = projected::plugin(volume) else { continue };
        let refreshed = check_name(&volume.name).and_then(|name| {
            let path = volumes_dir.join(plugin).join(name);
            if !is_mount_point(&path)? {
                return Ok(false);
            }
            atomic::write(&path, &projected::payload(pod, volume, given)?, fs_group(pod))
        });
        result = match (result, refreshed) {
            (Ok(written), Ok(new)) => Ok(written + usize::from(new)),
            (Ok(_), Err(error)) => Err(error),
            (failed, _) => failed,
        };
    }
    result
}

/// Writes a volume that is made from objects into `dir`. In memory: what is in a Secret never gets to a disk.
fn publish(pod: &Pod, volume: &Volume, name: &str, dir: &Path, given: &Given) -> Result<PathBuf, Error> {
    let (path, group) = (dir.join(name), fs_group(pod));
    let payload = match projected::payload(pod, volume, given) {
        // Running containers go on with these files: so does one of them that starts again.
        Err(error) if error.is_missing() && is_mount_point(&path)? && atomic::is_written(&path)? => {
            tracing::warn!(volume = name, "{error}: the files from before stay");
            return Ok(path);
        }
        other => other?,
    };
    let made = empty_dir::folder(dir, name, group)?;
    if !is_mount_point(&path)? {
        empty_dir::mount_tmpfs(made.as_fd(), &path, None, group)?;
    }
    atomic::write(&path, &payload, group)?;
    Ok(path)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// A name that can be a folder's.
fn check_name(name: &str) -> Result<&str, Error> {
    match name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        true => Err(Error::Name(name.to_owned())),
        false => Ok(name),
    }
}

/// Unmounts and removes all that [`set_up`] made below `volumes_dir`, and the folder itself. A folder that does not
/// exist is torn down. Whatever is mounted inside a volume, hostPaths above all, is never entered: it is an error.
///
/// # Errors
/// The first that occurs; the other volumes are torn down all the same.
pub fn tear_down(volumes_dir: &Path) -> Result<(), Error> {
    let mut result = Ok(());
    for plugin in list(volumes_dir)? {
        for volume in list(&plugin)? {
            result = result.and(tear_down_one(&volume));
        }
        if result.is_ok() {
            result = remove_empty(&plugin);
        }
    }
    result?;
    remove_empty(volumes_dir)
}

fn tear_down_one(volume: &Path) -> Result<(), Error> {
    for _ in 0..MAX_STACKED {
        if !is_mount_point(volume)? {
            break;
        }
        match rustix::mount::unmount(volume, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(io_error("unmount", volume)(e)),
        }
    }
    if is_mount_point(volume)? {
        return Err(Error::MountPoint(volume.to_owned()));
    }
    remove::tree(volume)
}

/// The entries of a folder of ours; none when it does not exist.
fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("list", dir)(e)),
    };
    entries.map(|e| e.map(|e| e.path()).map_err(io_error("list", dir))).collect()
}

fn remove_empty(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io_error("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Whether something is mounted at `path` itself.
fn is_mount_point(path: &Path) -> Result<bool, Error> {
    match rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS) {
        Ok(stat) => Ok(stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(io_error("look at", path)(e)),
    }
}

#[cfg(test)]
mod tests;
