//! emptyDir: a folder that lives as long as its pod, on disk, in memory or in huge pages.

use super::{Error, check_name, fs_group, io_error, is_mount_point};
use crate::pod::resources;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Folder of emptyDir volumes, as kubelet names it.
pub const PLUGIN: &str = "kubernetes.io~empty-dir";
/// What the names of huge page resources and mediums begin with.
const HUGE: (&str, &str) = ("hugepages-", "HugePages");

/// Where an emptyDir's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    Disk,
    Memory,
    /// Pages of this many bytes.
    HugePages(u64),
}

/// Makes the volume unless it is there. `allocatable_memory` (bytes, 0 = unknown) caps one in memory.
///
/// # Errors
/// [`Error::Name`], [`Error::Medium`], [`Error::Resources`], [`Error::Io`].
pub(super) fn set_up(
    pod: &Pod,
    volume: &Volume,
    source: &EmptyDirVolumeSource,
    volumes_dir: &Path,
    allocatable_memory: u64,
) -> Result<PathBuf, Error> {
    let name = check_name(&volume.name)?;
    let medium = medium(pod, source)?;
    let group = fs_group(pod);
    let dir = volumes_dir.join(PLUGIN);
    let made = folder(&dir, name, group)?;
    let path = dir.join(name);
    if medium == Medium::Disk || is_mount_point(&path)? {
        return Ok(path);
    }
    match medium {
        Medium::HugePages(size) => mount_huge(made.as_fd(), &path, size, group)?,
        _ => mount_tmpfs(made.as_fd(), &path, memory_size(pod, source, allocatable_memory)?, group)?,
    }
    Ok(path)
}

/// As kubelet: `HugePages` means the one size that the pod's containers ask for, `HugePages-<size>` one of those.
pub(super) fn medium(pod: &Pod, source: &EmptyDirVolumeSource) -> Result<Medium, Error> {
    let text = source.medium.as_deref().unwrap_or_default();
    let refuse = |why: &'static str| Error::Medium { medium: text.to_owned(), why };
    let rest = match text {
        "" => return Ok(Medium::Disk),
        "Memory" => return Ok(Medium::Memory),
        _ => text.strip_prefix(HUGE.1).ok_or_else(|| refuse("there is no such medium"))?,
    };
    let mut asked = BTreeSet::new();
    let spec = pod.spec.iter();
    for container in spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten())) {
        let resources = container.resources.iter();
        for name in resources.flat_map(|r| [&r.requests, &r.limits]).flatten().flat_map(|list| list.keys()) {
            if let Some(size) = name.strip_prefix(HUGE.0) {
                asked.insert(page_size(size)?);
            }
        }
    }
    if rest.is_empty() {
        let mut sizes = asked.iter();
        return match (sizes.next(), sizes.next()) {
            (Some(size), None) => Ok(Medium::HugePages(*size)),
            (None, _) => Err(refuse("no container requests huge pages")),
            (Some(_), Some(_)) => Err(refuse("the containers request huge pages of more than one size")),
        };
    }
    let size = page_size(rest.strip_prefix('-').ok_or_else(|| refuse("there is no such medium"))?)?;
    match asked.contains(&size) {
        true => Ok(Medium::HugePages(size)),
        false => Err(refuse("no container requests huge pages of this size")),
    }
}

fn page_size(text: &str) -> Result<u64, Error> {
    let bytes = resources::bytes(&Quantity(text.to_owned()))?;
    u64::try_from(bytes).map_err(|_| resources::Error::Quantity(text.to_owned()).into())
}

/// The folder `dir/name`, open to everybody whatever the umask; with a `group`, that group's, and its files too.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn folder(dir: &Path, name: &str, group: Option<u32>) -> Result<OwnedFd, Error> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(io_error("make", dir))?;
    make_open(dir, name, group)
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
pub(super) fn memory_size(pod: &Pod, source: &EmptyDirVolumeSource, allocatable: u64) -> Result<Option<u64>, Error> {
    let own = source.size_limit.as_ref().map(resources::bytes).transpose()?;
    let of_pod = resources::pod_settings(pod, -1)?.memory_limit;
    let positive = |v: Option<i64>| v.and_then(|v| u64::try_from(v).ok());
    let all = [positive(own), positive(of_pod), Some(allocatable)];
    Ok(all.into_iter().flatten().filter(|v| *v > 0).min())
}

/// Mounts a tmpfs, of at most `size` bytes, over the open folder `dir` (`path` is for messages).
pub(super) fn mount_tmpfs(
    dir: BorrowedFd<'_>,
    path: &Path,
    size: Option<u64>,
    group: Option<u32>,
) -> Result<(), Error> {
    let mut options = open_to_all(group);
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let mount = |options: &str| mount(dir, "tmpfs", options);
    // Secrets in memory should not reach a disk by way of swap; kernels before 6.4 do not know how.
    match mount(&format!("{options},noswap")) {
        Err(Errno::INVAL) => mount(&options),
        other => other,
    }
    .map_err(io_error("mount tmpfs at", path))
}

fn mount_huge(dir: BorrowedFd<'_>, path: &Path, page: u64, group: Option<u32>) -> Result<(), Error> {
    mount(dir, "hugetlbfs", &format!("{},pagesize={page}", open_to_all(group)))
        .map_err(io_error("mount hugetlbfs at", path))?;
    // Its option takes no set-group-ID bit.
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_error("change the mode of", path))
}

fn open_to_all(group: Option<u32>) -> String {
    match group {
        Some(gid) => format!("mode=2777,gid={gid}"),
        None => "mode=0777".to_owned(),
    }
}

/// By descriptor: nobody can put something else in its place meanwhile.
fn mount(dir: BorrowedFd<'_>, kind: &str, options: &str) -> Result<(), Errno> {
    let target = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(kind, &target, kind, MountFlags::empty(), options.as_c_str())
}
