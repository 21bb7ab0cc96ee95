//! The machine's device nodes, which privileged containers get all of.

use crate::bundle::cdi::HostNode;
use crate::bundle::devices::{Kind, Number};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

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

#[cfg(test)]
mod tests {
    use super::*;

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
