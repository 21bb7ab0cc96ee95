//! Whether a file system can hold overlays: many of those that an appliance boots from cannot.

use super::fs::remove_tree;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Tries, in a folder of its own in `dir`, all that images need of overlayfs. Nothing is mounted where anybody could see it,
/// and nothing is left. A kernel that is too old to be asked passes.
///
/// # Errors
/// What the kernel refused, with what to do about it as far as that is known.
pub fn probe(dir: &Path) -> io::Result<()> {
    let folder = dir.join("overlay-probe");
    remove_tree(&folder)?;
    let outcome = attempt(&folder);
    // The next start tries again.
    let _ = remove_tree(&folder);
    outcome.map_err(|error| explain(error, dir))
}

fn attempt(folder: &Path) -> io::Result<()> {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| folder.join(name));
    for path in [folder, &lower, &upper, &work] {
        std::fs::create_dir(path)?;
    }
    // What layers are unpacked with: a deleted file, and a folder that hides those below it.
    mknodat(CWD, lower.join("deleted"), FileType::CharacterDevice, Mode::empty(), 0)?;
    setxattr(&lower, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
    let special =
        |path: &Path| path.as_os_str().len() > 255 || path.as_os_str().as_bytes().iter().any(|b| b":,\\".contains(b));
    if special(&lower) {
        // Would have to be written otherwise; the first container tells.
        return Ok(());
    }
    let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NOSYS) => return Ok(()),
        other => other?,
    };
    fsconfig_set_string(&context, "lowerdir", &lower)?;
    fsconfig_set_string(&context, "upperdir", &upper)?;
    fsconfig_set_string(&context, "workdir", &work)?;
    fsconfig_create(&context)?;
    // It is gone with its descriptor.
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(())
}

/// An error of an overlay that was to have its writable layer in `dir`, with the reason, if it is the file system.
pub fn explain(error: io::Error, dir: &Path) -> io::Error {
    if Errno::from_io_error(&error) == Some(Errno::NODEV) {
        return io::Error::new(error.kind(), "this kernel has no overlayfs (module overlay)");
    }
    let Some(name) = rustix::fs::statfs(dir).ok().and_then(|found| unfit(found.f_type as u64)) else { return error };
    let advice = "put the root directory on ext4, xfs, btrfs or tmpfs";
    let dir = dir.display();
    io::Error::new(error.kind(), format!("{error}: overlayfs does not work on {name}, which {dir} is on; {advice}"))
}

/// The name of a file system that overlayfs cannot write on, by its number in statfs(2).
fn unfit(number: u64) -> Option<&'static str> {
    // The number is 32 bits wide, and its sign may have been spread.
    match number & 0xffff_ffff {
        0x794c_7630 => Some("another overlay"),
        0x0000_6969 => Some("NFS"),
        0x0000_4d44 => Some("FAT"),
        0x2011_bab0 => Some("exFAT"),
        0x5346_544e | 0x7366_746e => Some("NTFS"),
        0x0102_1997 => Some("9P"),
        0xff53_4d42 | 0xfe53_4d42 => Some("CIFS"),
        0x6573_5546 => Some("FUSE"),
        0x0000_f15f => Some("eCryptfs"),
        0x7371_7368 => Some("SquashFS"),
        0xe0f5_e1e2 => Some("EROFS"),
        0x0000_9660 => Some("ISO 9660"),
        0x8584_58f6 => Some("ramfs"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_kernel_s_or_the_file_system_s() {
        let error = || io::Error::from(Errno::INVAL);
        // What is in /proc is on none of those.
        assert_eq!(explain(error(), Path::new("/proc")).to_string(), error().to_string());
        let none = explain(io::Error::from(Errno::NODEV), Path::new("/proc"));
        assert!(none.to_string().contains("no overlayfs"), "{none}");
        assert_eq!(unfit(0xffff_ffff_ff53_4d42), Some("CIFS"));
        assert_eq!(unfit(0xef53), None);
    }
}
