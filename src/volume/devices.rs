//! The machine's device nodes, which privileged containers get all of.

use crate::bundle::cdi::HostNode;
use crate::bundle::devices::{Kind, Number};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Most links of a path that are followed (as the kernel).
const MAX_LINKS: usize = 40;
/// Below `/dev`: what every container has its own of, or nobody's business (as containerd).
const SKIPPED: [&str; 6] = ["pts", "shm", "fd", "mqueue", ".udev", "console"];
/// Deepest folder below `/dev` that is looked into.
const MAX_DEPTH: usize = 8;

/// All block and character devices below `dev` (`/dev`), sorted by path. Links are left out.
///
/// # Errors
/// When `dev` itself cannot be listed; what vanishes meanwhile is left out.
pub fn list(dev: &Path) -> io::Result<Vec<LinuxDevice>> {
    let mut found = Vec::new();
    let mut queue = vec![(dev.to_owned(), 0)];
    while let Some((dir, depth)) = queue.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if depth == 0 => return Err(e),
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            let kind = meta.file_type();
            let skipped = depth == 0 && SKIPPED.iter().any(|s| entry.file_name() == *s);
            if skipped {
                continue;
            }
            if kind.is_dir() && depth < MAX_DEPTH {
                queue.push((entry.path(), depth + 1));
            } else if kind.is_block_device() || kind.is_char_device() {
                let typ = if kind.is_block_device() { LinuxDeviceType::B } else { LinuxDeviceType::C };
                let device = LinuxDeviceBuilder::default()
                    .path(entry.path())
                    .typ(typ)
                    .major(i64::from(rustix::fs::major(meta.rdev())))
                    .minor(i64::from(rustix::fs::minor(meta.rdev())))
                    .file_mode(meta.permissions().mode() & 0o7777)
                    .uid(meta.uid())
                    .gid(meta.gid())
                    .build()
                    .map_err(io::Error::other)?;
                found.push(device);
            }
        }
    }
    found.sort_by(|a, b| a.path().cmp(b.path()));
    Ok(found)
}

/// The device at `path`; links are followed.
///
/// # Errors
/// When nothing is there, or no device.
pub fn look(path: &Path) -> io::Result<HostNode> {
    let meta = fs::metadata(path)?;
    let kind = match meta.file_type() {
        kind if kind.is_block_device() => Kind::Block,
        kind if kind.is_char_device() => Kind::Char,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a device")),
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    Ok(HostNode { number: Number { kind, major, minor }, mode: meta.permissions().mode() & 0o7777 })
}

/// A device node as it is now: the same device at the same path may be another node tomorrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// Which device.
    pub number: Number,
    /// File system and inode of the node.
    pub node: (u64, u64),
}

impl Found {
    /// What a file is, if it is a device.
    #[must_use]
    pub fn of(mode: u32, rdev: u64, node: (u64, u64)) -> Option<Found> {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFCHR => Kind::Char,
            libc::S_IFBLK => Kind::Block,
            _ => return None,
        };
        let number = Number { kind, major: rustix::fs::major(rdev), minor: rustix::fs::minor(rdev) };
        Some(Found { number, node })
    }
}

/// The device of this kind at `path`, links followed; `None` while there is none.
///
/// # Errors
/// When that cannot be told.
pub fn find(path: &Path, kind: Kind) -> io::Result<Option<Found>> {
    match fs::metadata(path) {
        Ok(meta) => {
            let found = Found::of(meta.mode(), meta.rdev(), (meta.dev(), meta.ino()));
            Ok(found.filter(|found| found.number.kind == kind))
        }
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Adds to `folders` the folders (without links in their own paths) in which the kernel looks something up when it follows
/// the absolute `path`, with the names that it looks up there; as far as the path leads at present.
pub fn lookups(path: &Path, folders: &mut BTreeMap<PathBuf, BTreeSet<OsString>>) {
    let parts = |path: &Path| -> Vec<OsString> {
        let named = |part: Component<'_>| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        };
        path.components().filter_map(named).collect()
    };
    let mut left: VecDeque<OsString> = parts(path).into();
    let mut folder = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            folder.pop();
            continue;
        }
        let next = folder.join(&name);
        folders.entry(folder.clone()).or_default().insert(name);
        let Ok(meta) = fs::symlink_metadata(&next) else { return };
        if meta.is_symlink() {
            links += 1;
            let Some(target) = fs::read_link(&next).ok().filter(|_| links <= MAX_LINKS) else { return };
            if target.is_absolute() {
                folder = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                left.push_front(part);
            }
        } else if meta.is_dir() {
            folder = next;
        } else {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_device_is_found_as_what_it_is() {
        let null = find(Path::new("/dev/null"), Kind::Char).expect("look").expect("/dev/null");
        assert_eq!(null.number, Number { kind: Kind::Char, major: 1, minor: 3 });
        assert_eq!(find(Path::new("/dev/null"), Kind::Block).expect("look"), None, "of the other kind");
        for none in ["/dev", "/none/such", "/dev/null/x"] {
            assert_eq!(find(Path::new(none), Kind::Char).expect("look"), None, "{none}");
        }
    }

    #[test]
    fn every_folder_on_the_way_to_a_device_is_named() {
        let dir = std::env::temp_dir().join(format!("coracle-lookups-{}", std::process::id()));
        let dir = fs::create_dir_all(&dir).and_then(|()| fs::canonicalize(&dir)).expect("folder");
        fs::create_dir_all(dir.join("serial/by-id")).expect("folders");
        fs::create_dir_all(dir.join("real")).expect("folders");
        let looked_up = |path: PathBuf| {
            let mut folders = BTreeMap::new();
            lookups(&path, &mut folders);
            let inside = |path: &PathBuf| path.strip_prefix(&dir).map(Path::to_owned).ok();
            let names = |names: BTreeSet<OsString>| -> Vec<String> {
                names.into_iter().map(|n| n.to_string_lossy().into_owned()).collect()
            };
            let all = folders.into_iter().filter_map(|(folder, of)| Some((inside(&folder)?, names(of))));
            all.map(|(folder, names)| format!("{}: {}", folder.display(), names.join(" "))).collect::<Vec<_>>()
        };
        let link = dir.join("serial/by-id/port");
        assert_eq!(looked_up(link.clone()), [": serial", "serial: by-id", "serial/by-id: port"]);
        symlink("../../usb", &link).expect("link");
        assert_eq!(looked_up(link.clone()), [": serial usb", "serial: by-id", "serial/by-id: port"]);
        symlink(dir.join("real/node"), dir.join("usb")).expect("link");
        let whole = [": real serial usb", "real: node", "serial: by-id", "serial/by-id: port"];
        assert_eq!(looked_up(link.clone()), whole, "as far as it leads");
        fs::write(dir.join("real/node"), "").expect("file");
        assert_eq!(looked_up(link), whole);
        symlink("loop", dir.join("loop")).expect("link");
        assert_eq!(looked_up(dir.join("loop")), [": loop"], "has an end");
        fs::remove_dir_all(&dir).expect("remove");
    }

    #[test]
    fn a_device_is_found_by_its_path() {
        let null = look(Path::new("/dev/null")).expect("/dev/null");
        assert_eq!(null.number, Number { kind: Kind::Char, major: 1, minor: 3 });
        assert!(look(Path::new("/dev")).is_err());
        assert!(look(Path::new("/none")).is_err());
    }

    #[test]
    fn the_machine_has_a_null_device() {
        let all = list(Path::new("/dev")).expect("devices");
        let null = all.iter().find(|d| d.path() == Path::new("/dev/null")).expect("/dev/null");
        assert_eq!((null.typ(), null.major(), null.minor()), (LinuxDeviceType::C, 1, 3));
        assert!(all.iter().all(|d| !d.path().starts_with("/dev/pts")));
        assert!(list(Path::new("/none")).is_err());
    }
}
