//! A pod's volumes on disk: emptyDir and hostPath; other kinds are refused with the manifest. Set up before the pod's
//! first container, torn down after its last. Both can be done again at any time.

pub mod devices;
mod remove;

pub use crate::bundle::Volume as Resolved;

use crate::pod::resources;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, Pod, Volume};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Folder of emptyDir volumes, as kubelet names it.
pub const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
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

fn io_error<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source: source.into() }
}

/// Sets up all volumes of a pod below `volumes_dir` (`<root>/pods/<uid>/volumes`) and says where they are. What is
/// already there stays as it is, content and permissions. `allocatable_memory` (bytes, 0 = unknown) caps volumes in
/// memory that have no other limit.
///
/// # Errors
/// The first volume that fails; those before it stay set up.
pub fn set_up(pod: &Pod, volumes_dir: &Path, allocatable_memory: u64) -> Result<BTreeMap<String, Resolved>, Error> {
    let mut resolved = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let path = match (&volume.empty_dir, &volume.host_path) {
            (Some(source), None) => empty_dir(pod, volume, source, volumes_dir, allocatable_memory)?,
            (None, Some(source)) => host_path(source)?,
            _ => {
                let what = "a source other than emptyDir and hostPath".into();
                return Err(Error::Unsupported { name: volume.name.clone(), what });
            }
        };
        resolved.insert(volume.name.clone(), Resolved { path, read_only: false });
    }
    Ok(resolved)
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

fn empty_dir(
    pod: &Pod,
    volume: &Volume,
    source: &EmptyDirVolumeSource,
    volumes_dir: &Path,
    allocatable_memory: u64,
) -> Result<PathBuf, Error> {
    let name = volume.name.as_str();
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(Error::Name(name.to_owned()));
    }
    let in_memory = match source.medium.as_deref() {
        None | Some("") => false,
        Some("Memory") => true,
        Some(other) => {
            return Err(Error::Unsupported { name: name.to_owned(), what: format!("emptyDir medium {other}") });
        }
    };
    let fs_group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()?.fs_group);
    let group = fs_group.and_then(|g| u32::try_from(g).ok());
    let dir = volumes_dir.join(EMPTY_DIR);
    fs::DirBuilder::new().recursive(true).mode(0o750).create(&dir).map_err(io_error("make", &dir))?;
    let path = dir.join(name);
    let made = make_open(&dir, name, group)?;
    if in_memory && !is_mount_point(&path)? {
        let size = memory_size(pod, source, allocatable_memory)?;
        mount_tmpfs(made.as_fd(), &path, size, group)?;
    }
    Ok(path)
}

fn open_dir(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// The folder `name` in `parent`, open to everybody whatever the umask. It gets its name only when it is ready, so
/// that an interrupted set-up is never taken for a finished one, and permissions a container set later are kept.
fn make_open(parent: &Path, name: &str, group: Option<u32>) -> Result<OwnedFd, Error> {
    let path = parent.join(name);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(io_error("open", parent))?;
    match open_dir(dir.as_fd(), name) {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) => {}
        Err(e) => return Err(io_error("open", &path)(e)),
    }
    let draft = format!(".{name}.new");
    match rustix::fs::mkdirat(&dir, &draft, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(io_error("make", &path)(e)),
    }
    let fd = open_dir(dir.as_fd(), &draft).map_err(io_error("open", &path))?;
    if let Some(group) = group {
        let gid = rustix::fs::Gid::from_raw(group);
        rustix::fs::fchown(&fd, None, Some(gid)).map_err(io_error("change the group of", &path))?;
    }
    let mode = Mode::from_raw_mode(if group.is_some() { 0o2777 } else { 0o777 });
    rustix::fs::fchmod(&fd, mode).map_err(io_error("change the mode of", &path))?;
    rustix::fs::renameat(&dir, &draft, &dir, name).map_err(io_error("make", &path))?;
    Ok(fd)
}

/// Size of a volume in memory: the smallest of its own limit, the pod's memory limit and what the node has.
fn memory_size(pod: &Pod, source: &EmptyDirVolumeSource, allocatable: u64) -> Result<Option<u64>, Error> {
    let own = source.size_limit.as_ref().map(resources::bytes).transpose()?;
    let of_pod = resources::pod_settings(pod, -1)?.memory_limit;
    let positive = |v: Option<i64>| v.and_then(|v| u64::try_from(v).ok());
    let all = [positive(own), positive(of_pod), Some(allocatable)];
    Ok(all.into_iter().flatten().filter(|v| *v > 0).min())
}

fn mount_tmpfs(dir: BorrowedFd<'_>, path: &Path, size: Option<u64>, group: Option<u32>) -> Result<(), Error> {
    let mut options = match group {
        Some(gid) => format!("mode=2777,gid={gid}"),
        None => "mode=0777".to_owned(),
    };
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    // By descriptor: nobody can put something else in its place meanwhile.
    let target = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mount = |options: &str| {
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("tmpfs", &target, "tmpfs", MountFlags::empty(), options.as_c_str())
    };
    // Secrets in memory should not reach a disk by way of swap; kernels before 6.4 do not know how.
    match mount(&format!("{options},noswap")) {
        Err(Errno::INVAL) => mount(&options),
        other => other,
    }
    .map_err(io_error("mount tmpfs at", path))
}

/// Whether something is mounted at `path` itself.
fn is_mount_point(path: &Path) -> Result<bool, Error> {
    match rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::BASIC_STATS) {
        Ok(stat) => Ok(stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(io_error("look at", path)(e)),
    }
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, Error> {
    let text = source.path.as_str();
    let path = Path::new(text);
    let up = path.components().any(|c| c == Component::ParentDir);
    if !path.is_absolute() || up || text.contains('\0') {
        return Err(Error::HostPath(text.to_owned()));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    // Links are followed: the path is the administrator's.
    let mut found = file_type(path)?;
    match (kind, found) {
        // As containerd: a bind mount needs something to bind.
        ("" | "DirectoryOrCreate", None) => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(io_error("make", path))?;
            found = file_type(path)?;
        }
        ("FileOrCreate", None) => {
            create_file(path)?;
            found = file_type(path)?;
        }
        _ => {}
    }
    let expected = match (kind, found) {
        ("", _) | ("Directory" | "DirectoryOrCreate", Some(FileType::Directory)) => return Ok(path.to_owned()),
        // As kubelet: whatever is no folder is a file.
        ("File" | "FileOrCreate", Some(t)) if t != FileType::Directory => return Ok(path.to_owned()),
        ("Socket", Some(FileType::Socket)) => return Ok(path.to_owned()),
        ("CharDevice", Some(FileType::CharacterDevice)) => return Ok(path.to_owned()),
        ("BlockDevice", Some(FileType::BlockDevice)) => return Ok(path.to_owned()),
        ("Directory" | "DirectoryOrCreate", _) => "a directory",
        ("File" | "FileOrCreate", _) => "a file",
        ("Socket", _) => "a socket file",
        ("CharDevice", _) => "a character device",
        ("BlockDevice", _) => "a block device",
        (other, _) => {
            return Err(Error::Unsupported { name: text.to_owned(), what: format!("hostPath type {other}") });
        }
    };
    Err(Error::HostPathType { path: text.to_owned(), expected })
}

fn file_type(path: &Path) -> Result<Option<FileType>, Error> {
    match fs::metadata(path) {
        Ok(meta) => {
            let t = meta.file_type();
            Ok(Some(match () {
                () if t.is_dir() => FileType::Directory,
                () if t.is_socket() => FileType::Socket,
                () if t.is_char_device() => FileType::CharacterDevice,
                () if t.is_block_device() => FileType::BlockDevice,
                () if t.is_fifo() => FileType::Fifo,
                () => FileType::RegularFile,
            }))
        }
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(io_error("look at", path)(e)),
    }
}

fn create_file(path: &Path) -> Result<(), Error> {
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    match made {
        Ok(file) => file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(io_error("create", path)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(io_error("create", path)(e)),
    }
}

#[cfg(test)]
mod tests;
