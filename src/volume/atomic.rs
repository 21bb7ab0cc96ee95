//! Writing a [`Payload`] so that a reader sees all of the old files or all of the new ones.
//!
//! As kubelet's atomic writer lays it out, because programs know it (they watch `..data`):
//!
//! ```text
//! ..2026_01_02_03_04_05.123456789/    the files
//! ..data -> ..2026_01_02_03_04_05.123456789
//! name -> ..data/name                 for each first part of a path
//! ```
//!
//! The one step that changes what readers see is a rename over `..data`. Whatever an interrupted write has left is
//! found and removed by the next one.

use super::payload::{File, Payload};
use super::{Error, fs_group, io_error};
use crate::sys::clock;
use jiff::tz::TimeZone;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
/// How many names are tried for a new folder.
const TRIES: u32 = 100;

/// Makes the folder `path` show `payload`; tells whether anything had to be written. With a `group`, all becomes that
/// group's, which may read it.
///
/// # Errors
/// [`Error::Io`]; readers see the old files then, or already the new ones.
pub(super) fn write(path: &Path, payload: &Payload, group: Option<u32>) -> Result<bool, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io_error("open", path))?;
    let root = root.as_fd();
    let current = current(root).map_err(io_error("read", path))?;
    let same = match &current {
        Some(dir) => unchanged(root, dir, payload, group).map_err(io_error("read", path))?,
        None => false,
    };
    let shown = match current.filter(|_| same) {
        Some(dir) => dir,
        None => {
            let dir = new_folder(root).map_err(io_error("make a folder in", path))?;
            fill(root, &dir, payload, group).map_err(io_error("write", path))?;
            swap(root, &dir).map_err(io_error("publish", path))?;
            dir
        }
    };
    // Also when nothing was written: an earlier write may have ended before this.
    link(root, payload).map_err(io_error("link", path))?;
    sweep(root, &shown, payload).map_err(io_error("tidy", path))?;
    Ok(!same)
}

/// Whether the folder `path` shows a payload, whichever.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn is_written(path: &Path) -> Result<bool, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io_error("open", path))?;
    Ok(current(root.as_fd()).map_err(io_error("read", path))?.is_some())
}

/// The folder that `..data` names, if it is one of ours.
fn current(root: BorrowedFd<'_>) -> Result<Option<OsString>, Errno> {
    let target = match rustix::fs::readlinkat(root, DATA, Vec::new()) {
        Ok(target) => OsString::from_vec(target.into_bytes()),
        Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
        Err(e) => return Err(e),
    };
    let single = Path::new(&target).components().count() == 1;
    let ours = single && target.as_bytes().starts_with(b"..") && target.as_bytes().len() > 2;
    Ok((ours && open_dir(root, &target).is_ok()).then_some(target))
}

fn open_dir(parent: BorrowedFd<'_>, name: &std::ffi::OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Mode of a file as it is written: its group may read it.
fn mode(file: &File, group: Option<u32>) -> u32 {
    file.mode | if group.is_some() { 0o440 } else { 0 }
}

/// Whether the folder `dir` holds exactly `payload`.
fn unchanged(root: BorrowedFd<'_>, dir: &OsString, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    let dir = open_dir(root, dir)?;
    for (path, file) in payload.files() {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(found) = rustix::fs::openat(&dir, path, flags, Mode::empty()) else { return Ok(false) };
        let stat = rustix::fs::fstat(&found)?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let right = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_mode & 0o7777 == mode(file, group)
            && group.is_none_or(|gid| gid == stat.st_gid)
            && stat.st_uid == file.owner.unwrap_or(0)
            && size == file.bytes.len() as u64;
        if !right {
            return Ok(false);
        }
        let mut bytes = Vec::with_capacity(file.bytes.len());
        std::fs::File::from(found).read_to_end(&mut bytes)?;
        if bytes != file.bytes {
            return Ok(false);
        }
    }
    Ok(count(dir.as_fd())? == payload.len())
}

/// How many files lie below `dir`, which only this module writes.
fn count(dir: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut files = 0;
    for (name, kind) in names(dir)? {
        files += match kind {
            FileType::Directory => count(open_dir(dir, &name)?.as_fd())?,
            _ => 1,
        };
    }
    Ok(files)
}

fn names(dir: BorrowedFd<'_>) -> Result<Vec<(OsString, FileType)>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        if name != "." && name != ".." {
            let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            names.push((name, FileType::from_raw_mode(stat.st_mode)));
        }
    }
    Ok(names)
}

fn new_folder(root: BorrowedFd<'_>) -> Result<OsString, Errno> {
    let now = clock::wall();
    let stamp = now.to_zoned(TimeZone::UTC).strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let serial = now.subsec_nanosecond().unsigned_abs();
    for i in 0..TRIES {
        let name = OsString::from(format!("{stamp}.{}", serial.wrapping_add(i)));
        match rustix::fs::mkdirat(root, &name, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            other => return other.map(|()| name),
        }
    }
    Err(Errno::EXIST)
}

fn fill(root: BorrowedFd<'_>, name: &OsString, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    let dir = open_dir(root, name)?;
    let open = Mode::from_raw_mode(0o755);
    rustix::fs::fchmod(&dir, open)?;
    for (path, file) in payload.files() {
        let path = Path::new(path);
        let mut parent = dir.try_clone()?;
        for part in path.parent().into_iter().flat_map(Path::components) {
            let Component::Normal(part) = part else { continue };
            match rustix::fs::mkdirat(&parent, part, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            parent = open_dir(parent.as_fd(), part)?;
            rustix::fs::fchmod(&parent, open)?;
        }
        let leaf = path.file_name().unwrap_or_default();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut out = std::fs::File::from(rustix::fs::openat(&parent, leaf, flags, Mode::RUSR | Mode::WUSR)?);
        out.write_all(&file.bytes)?;
        if let Some(uid) = file.owner {
            rustix::fs::fchown(&out, Some(rustix::fs::Uid::from_raw(uid)), None)?;
        }
        rustix::fs::fchmod(&out, Mode::from_raw_mode(file.mode))?;
    }
    // Before anybody can see them: no reader finds a file that it may not read yet.
    if let Some(gid) = group {
        fs_group::apply(dir.as_fd(), gid)?;
    }
    Ok(())
}

fn swap(root: BorrowedFd<'_>, dir: &OsString) -> Result<(), Errno> {
    match rustix::fs::unlinkat(root, DATA_NEW, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    rustix::fs::symlinkat(dir, root, DATA_NEW)?;
    rustix::fs::renameat(root, DATA_NEW, root, DATA)
}

/// The first parts of the payload's paths: the names that readers use.
fn tops(payload: &Payload) -> BTreeSet<&str> {
    payload.files().map(|(path, _)| path.split('/').next().unwrap_or(path)).collect()
}

fn link(root: BorrowedFd<'_>, payload: &Payload) -> Result<(), Errno> {
    for name in tops(payload) {
        match rustix::fs::symlinkat(format!("{DATA}/{name}"), root, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Removes links to files that are no more, then all folders but the one that is shown.
fn sweep(root: BorrowedFd<'_>, shown: &OsString, payload: &Payload) -> io::Result<()> {
    let tops = tops(payload);
    let all = names(root)?;
    let stale = |name: &OsString| name.to_str().is_none_or(|n| !n.starts_with("..") && !tops.contains(n));
    for (name, kind) in &all {
        if name == DATA_NEW || (*kind != FileType::Directory && stale(name)) {
            rustix::fs::unlinkat(root, name, AtFlags::empty())?;
        }
    }
    let dir = crate::sys::fs::Dir::of(root)?;
    for (name, kind) in &all {
        if *kind == FileType::Directory && name != shown && name.as_bytes().starts_with(b"..") {
            dir.remove_tree(name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("coracle-atomic-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("folder");
            Scratch(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).expect("list");
            let mut names: Vec<String> =
                entries.map(|e| e.expect("entry").file_name().into_string().expect("name")).collect();
            names.sort();
            names
        }

        fn data(&self) -> String {
            fs::read_link(self.0.join(DATA)).expect("..data").to_str().expect("name").to_owned()
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).expect(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        let mut payload = Payload::default();
        for (path, text, mode) in files {
            payload.add(path, File { bytes: text.as_bytes().to_vec(), mode: *mode, owner: None }).expect("path");
        }
        payload
    }

    #[test]
    fn the_layout_is_kubelets() {
        let scratch = Scratch::new("layout");
        let files = payload(&[("a", "1", 0o644), ("d/e/f", "2", 0o400)]);
        assert!(write(&scratch.0, &files, None).expect("written"));
        let data = scratch.data();
        assert_eq!(scratch.names(), [data.as_str(), DATA, "a", "d"]);
        let shape: String = data.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert!(shape.starts_with("..0000_00_00_00_00_00.0"), "{data}");
        assert_eq!(fs::read_link(scratch.0.join("a")).expect("link"), Path::new("..data/a"));
        assert_eq!((scratch.read("a"), scratch.read("d/e/f")), ("1".into(), "2".into()));
        let mode = |path: &str| fs::metadata(scratch.0.join(path)).expect("metadata").permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("d/e/f"), mode(DATA), mode("d/e")), (0o644, 0o400, 0o755, 0o755));
    }

    #[test]
    fn what_has_not_changed_is_not_written() {
        let scratch = Scratch::new("same");
        let files = [("a", "1", 0o644), ("d/e", "2", 0o400)];
        assert!(write(&scratch.0, &payload(&files), None).expect("written"));
        let before = scratch.data();
        assert!(!write(&scratch.0, &payload(&files), None).expect("looked at"));
        assert_eq!(scratch.data(), before);
        for other in [
            [("a", "2", 0o644), ("d/e", "2", 0o400)],
            [("a", "2", 0o600), ("d/e", "2", 0o400)],
            [("a", "2", 0o600), ("d/f", "2", 0o400)],
        ] {
            assert!(write(&scratch.0, &payload(&other), None).expect("written"), "{other:?}");
        }
        assert!(write(&scratch.0, &payload(&[("a", "2", 0o600)]), None).expect("written"));
        assert_eq!(scratch.names(), [scratch.data().as_str(), DATA, "a"]);
        assert!(write(&scratch.0, &Payload::default(), None).expect("written"));
        assert_eq!(scratch.names(), [scratch.data().as_str(), DATA]);
        assert!(!write(&scratch.0, &Payload::default(), None).expect("looked at"));
    }

    #[test]
    fn an_open_file_keeps_its_content_and_a_new_reader_gets_the_new_one() {
        let scratch = Scratch::new("open");
        write(&scratch.0, &payload(&[("a", "old", 0o644)]), None).expect("written");
        let mut open = fs::File::open(scratch.0.join("a")).expect("open");
        write(&scratch.0, &payload(&[("a", "new", 0o644)]), None).expect("written");
        let mut text = String::new();
        open.read_to_string(&mut text).expect("read");
        assert_eq!((text.as_str(), scratch.read("a").as_str()), ("old", "new"));
    }

    /// Every state that a write can be interrupted in, one after the other.
    #[test]
    fn an_interrupted_write_is_finished() {
        let (old, new) = (payload(&[("a", "old", 0o644), ("gone", "x", 0o644)]), payload(&[("a", "new", 0o644)]));
        for step in 0..6 {
            let scratch = Scratch::new(&format!("cut-{step}"));
            write(&scratch.0, &old, None).expect("written");
            let before = scratch.data();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let root = rustix::fs::openat(CWD, &scratch.0, flags, Mode::empty()).expect("open");
            let root = root.as_fd();
            if step > 0 {
                let dir = new_folder(root).expect("folder");
                if step > 1 {
                    fill(root, &dir, &new, None).expect("filled");
                }
                match step {
                    0..=2 => {}
                    3 => rustix::fs::symlinkat(&dir, root, DATA_NEW).expect("link"),
                    _ => swap(root, &dir).expect("swapped"),
                }
                if step > 4 {
                    link(root, &new).expect("linked");
                }
            }
            let seen = if step < 4 { "old" } else { "new" };
            assert_eq!(scratch.read("a"), seen, "step {step}");
            assert_eq!(scratch.data() == before, step < 4, "step {step}");
            write(&scratch.0, &new, None).expect("written");
            assert_eq!(scratch.read("a"), "new", "step {step}");
            assert_eq!(scratch.names(), [scratch.data().as_str(), DATA, "a"], "step {step}");
        }
    }

    #[test]
    fn a_data_link_to_elsewhere_is_not_followed() {
        let scratch = Scratch::new("elsewhere");
        let outside = Scratch::new("outside");
        fs::write(outside.0.join("a"), "1").expect("file");
        for target in [outside.0.to_str().expect("path"), "../x", "..", "."] {
            let _ = fs::remove_file(scratch.0.join(DATA));
            std::os::unix::fs::symlink(target, scratch.0.join(DATA)).expect("link");
            assert!(write(&scratch.0, &payload(&[("a", "1", 0o644)]), None).expect("written"), "{target}");
        }
        assert_eq!(outside.names(), ["a"]);
    }

    #[test]
    fn a_group_may_read_and_no_more() {
        assert!(nix::unistd::geteuid().is_root(), "to give files away needs root");
        let scratch = Scratch::new("group");
        let files = payload(&[("a", "1", 0o600), ("d/x", "2", 0o400)]);
        assert!(write(&scratch.0, &files, Some(4242)).expect("written"));
        assert!(!write(&scratch.0, &files, Some(4242)).expect("looked at"));
        let meta = |path: &str| {
            let meta = fs::metadata(scratch.0.join(path)).expect("metadata");
            (meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!((meta("a"), meta("d/x")), ((4242, 0o640), (4242, 0o440)));
        assert_eq!((meta(DATA), meta("d")), ((4242, 0o2755), (4242, 0o2755)));
        assert!(write(&scratch.0, &files, Some(4243)).expect("written"));
        assert_eq!(meta("a"), (4243, 0o640));
    }
}
