//! Room on the disk: how much is left, and who stops before nothing is.
//!
//! A disk that is full to the last byte takes no record either, so that not even a pod's end could be written down.
//! Unpacking therefore stops while a reserve is left: one hundredth of the file system, at least 32 MiB and at most 256,
//! but never more than a twentieth of a small one.

use std::io::{self, BufRead, Read};
use std::path::Path;

use super::{Error, ImageStore};
use crate::store;

const MIB: u64 = 1 << 20;
const RESERVE: std::ops::RangeInclusive<u64> = 32 * MIB..=256 * MIB;
/// Bytes unpacked between two looks at the disk.
const STEP: usize = 4 << 20;

/// A file system's room, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub capacity: u64,
    /// Left for this process.
    pub available: u64,
}

impl Space {
    /// Of the file system that `path` is on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of(path: &Path) -> Result<Space, Error> {
        let found = rustix::fs::statvfs(path).map_err(|e| Error::io("measure the file system of", path)(e.into()))?;
        Ok(Space {
            capacity: found.f_blocks.saturating_mul(found.f_frsize),
            available: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    /// What images leave alone.
    pub fn reserve(&self) -> u64 {
        (self.capacity / 100).clamp(*RESERVE.start(), *RESERVE.end()).min(self.capacity / 20)
    }

    /// What images may take.
    pub fn usable(&self) -> u64 {
        self.available.saturating_sub(self.reserve())
    }

    /// What is missing for `bytes` more.
    pub fn short_of(&self, bytes: u64) -> u64 {
        // The sum first: a disk that is below its reserve lacks that, too.
        bytes.saturating_add(self.reserve()).saturating_sub(self.available)
    }
}

/// The sentence of [`Error::NoSpace`].
pub(super) fn describe(path: &Path, needed: u64, free: u64, reserve: u64) -> String {
    let needs = match needed {
        0 => "needs more".to_owned(),
        needed => format!("needs ~{}", amount(needed)),
    };
    let (free, reserve) = (amount(free), amount(reserve));
    format!("not enough space on {}: {needs}, {free} free beside the reserve of {reserve}", path.display())
}

/// Bytes for people.
fn amount(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..units.len() - 1).find(|unit| bytes >> (10 * unit) < 1024).unwrap_or(units.len() - 1);
    match unit {
        0 => format!("{bytes} B"),
        unit => {
            let tenths = (bytes >> (10 * (unit - 1))) * 10 / 1024;
            format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
        }
    }
}

impl Error {
    /// Whether the disk, or this user's part of it, is full.
    pub fn is_no_space(&self) -> bool {
        self.space_needed().is_some()
    }

    /// How many bytes did not fit; zero: some; `None`: this is not about space.
    pub(super) fn space_needed(&self) -> Option<u64> {
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded).then_some(0)
        };
        match self {
            Error::NoSpace { needed, .. } => Some(*needed),
            Error::Io { source, .. } | Error::Stream { source } | Error::Apply { source, .. } => full(source),
            Error::Record(store::Error::Write { source, .. }) => full(source),
            Error::Member { source, .. } => source.space_needed(),
            _ => None,
        }
    }

    /// A full disk in plain words; any other error as it is.
    pub(super) fn or_no_space(self, root: &Path) -> Error {
        match self {
            error @ Error::NoSpace { .. } => error,
            Error::Member { source, .. } if source.is_no_space() => source.or_no_space(root),
            error if error.is_no_space() => no_space(root, 0),
            error => error,
        }
    }
}

/// The file system at `root` has no room for `needed` bytes (zero: nobody knows how many).
pub(super) fn no_space(root: &Path, needed: u64) -> Error {
    let (free, reserve) = Space::of(root).map_or((0, 0), |space| (space.usable(), space.reserve()));
    Error::NoSpace { path: root.into(), needed, free, reserve }
}

/// Passes on what is unpacked as long as there is room for it; unused images go when there is none.
pub(super) struct Guarded<'a, R> {
    inner: R,
    store: &'a ImageStore,
    /// Bytes until the next look.
    left: usize,
}

impl<'a, R: BufRead> Guarded<'a, R> {
    /// # Errors
    /// [`Error::NoSpace`] when the disk is full already.
    pub(super) fn new(inner: R, store: &'a ImageStore) -> Result<Guarded<'a, R>, Error> {
        let guarded = Guarded { inner, store, left: STEP };
        match guarded.has_room()? {
            true => Ok(guarded),
            false => Err(no_space(store.root(), 0)),
        }
    }

    /// Whether a step fits, if need be after something has gone for it.
    fn has_room(&self) -> Result<bool, Error> {
        if Space::of(self.store.root())?.short_of(0) == 0 {
            return Ok(true);
        }
        match self.store.expect_room(STEP as u64) {
            Err(Error::NoSpace { .. }) => Ok(false),
            Err(error) => Err(error),
            // It could not be told what may go.
            Ok(()) => Ok(Space::of(self.store.root())?.short_of(0) == 0),
        }
    }
}

impl<R: BufRead> Read for Guarded<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let content = self.fill_buf()?;
        let count = content.len().min(buf.len());
        buf[..count].copy_from_slice(&content[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Guarded<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            self.left = STEP;
            // What cannot be measured is no reason to stop: a write to a full disk fails by itself.
            if self.has_room().is_ok_and(|room| !room) {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.left = self.left.saturating_sub(amount);
        self.inner.consume(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    #[test]
    fn a_reserve_fits_the_disk() {
        let reserve = |capacity| Space { capacity, available: 0 }.reserve() / MIB;
        assert_eq!(reserve(100 * MIB), 5);
        assert_eq!(reserve(1 << 30), 32);
        assert_eq!(reserve(8 << 30), 81);
        assert_eq!(reserve(1 << 40), 256);
        let space = Space { capacity: 1000 * MIB, available: 100 * MIB };
        assert_eq!((space.usable() / MIB, space.short_of(60 * MIB), space.short_of(70 * MIB) / MIB), (68, 0, 2));
        assert_eq!(Space { available: 2 * MIB, ..space }.short_of(0) / MIB, 30);
        assert_eq!(Space { capacity: 0, available: 0 }.short_of(0), 0);
    }

    #[test]
    fn a_full_disk_is_told_in_plain_words() {
        let entry = |code: i32| Error::Apply {
            entry: "usr/bin/x".into(),
            action: "write",
            source: io::Error::from_raw_os_error(code),
        };
        let (archive, layer) = (Path::new("/a.tar"), "0/layer.tar");
        for code in [libc::ENOSPC, libc::EDQUOT] {
            assert!(entry(code).within(archive, layer).is_no_space());
            assert!(matches!(entry(code).or_no_space(Path::new("/")), Error::NoSpace { needed: 0, .. }));
        }
        assert!(!entry(libc::EIO).within(archive, layer).is_no_space());
        assert!(matches!(entry(libc::EIO).or_no_space(Path::new("/")), Error::Apply { .. }));
        let error = Error::NoSpace { path: "/var/lib".into(), needed: 1_500 << 20, free: 300 << 10, reserve: 32 << 20 };
        assert_eq!(
            error.to_string(),
            "not enough space on /var/lib: needs ~1.4 GiB, 300.0 KiB free beside the reserve of 32.0 MiB"
        );
        let error = Error::NoSpace { path: "/var/lib".into(), needed: 0, free: 0, reserve: 0 };
        assert_eq!(error.to_string(), "not enough space on /var/lib: needs more, 0 B free beside the reserve of 0 B");
    }

    #[test]
    fn what_is_guarded_passes_whole() {
        let content: Vec<u8> = (0..3 * STEP + 5).map(|n| n as u8).collect();
        let dir = std::env::temp_dir().join(format!("coracle-guarded-{}", std::process::id()));
        let store = ImageStore::open(&dir).unwrap();
        let mut guarded = Guarded::new(BufReader::new(&content[..]), &store).unwrap();
        let mut passed = Vec::new();
        guarded.read_to_end(&mut passed).unwrap();
        assert!(passed == content);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
