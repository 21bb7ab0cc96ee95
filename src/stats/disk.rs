//! What trees of files take of the disk. To count one takes as long as it has files, so a count is kept for a while, and
//! the longer it took, the longer.

use crate::image::ImageStore;
use crate::runtime::{Tree, disk_usage};
use crate::sys::clock;
use jiff::Timestamp;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A count is good for so long at least.
const LEAST: Duration = Duration::from_secs(10);
/// … and no longer than that (as kubelet's `volumeStatsAggPeriod`), if anybody asks.
const MOST: Duration = Duration::from_secs(60);
/// How many times as long as a count took it is kept: a twentieth of one CPU at most.
const REST: u32 = 20;
/// How long one tree may be counted; what was counted until then is what is known (as for eviction).
const ONE: Duration = Duration::from_secs(5);

/// A tree as it was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    /// What it takes.
    pub tree: Tree,
    /// When, by the wall clock.
    pub time: Timestamp,
    next: Instant,
}

/// What is known of trees, and of the image store.
#[derive(Debug, Default)]
pub struct Disk {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    trees: HashMap<PathBuf, Counted>,
    images: Option<(u64, Instant)>,
}

impl Disk {
    /// Counts those of the trees whose counts are old, and the images; forgets other trees. Blocks, for long perhaps: what
    /// is known meanwhile can be asked for.
    pub fn count(&self, trees: &BTreeSet<PathBuf>, images: &ImageStore) {
        self.known().trees.retain(|path, _| trees.contains(path));
        for path in trees {
            let begin = Instant::now();
            if self.known().trees.get(path).is_some_and(|counted| begin < counted.next) {
                continue;
            }
            let time = clock::wall();
            // What is not there takes nothing, and may be there next time.
            let Ok(tree) = disk_usage(path, begin + ONE) else {
                self.known().trees.remove(path);
                continue;
            };
            let end = Instant::now();
            self.known().trees.insert(path.clone(), Counted { tree, time, next: end + rest(end - begin) });
        }
        let begin = Instant::now();
        if self.known().images.is_none_or(|(_, next)| next <= begin)
            && let Ok(bytes) = images.bytes()
        {
            let end = Instant::now();
            self.known().images = Some((bytes, end + rest(end - begin)));
        }
    }

    /// What was counted of a tree; `None`: nothing yet, or it is not there.
    pub(super) fn of(&self, path: &Path) -> Option<Counted> {
        self.known().trees.get(path).copied()
    }

    /// What the images take, in bytes; `None` before it was counted.
    pub(super) fn images(&self) -> Option<u64> {
        self.known().images.map(|(bytes, _)| bytes)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a count is kept that took so long.
fn rest(took: Duration) -> Duration {
    took.saturating_mul(REST).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_is_kept_long() {
        assert_eq!(rest(Duration::from_millis(1)), LEAST);
        assert_eq!(rest(Duration::from_secs(1)), Duration::from_secs(20));
        assert_eq!(rest(Duration::from_secs(5)), MOST);
    }
}
