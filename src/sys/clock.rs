//! What time it is: for waits, a clock that nobody sets; for people, the one on the wall.
//!
//! [`now`] is the time by which everything is decided: what the wall clock said when this process first asked, plus the time
//! that has passed since, by `CLOCK_BOOTTIME`. It never jumps. Instants come in from records by [`recall`], which brings
//! them to this time by whatever clock they were written, go back by [`inscribe`], and out to people by [`shown`]: at that
//! moment the wall clock is looked at, and not before. So nothing has to notice that it was set.

use crate::pod::clock::{Clock, EARLIEST, LEAST_STEP, Seen, Timed, later};
use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

/// A file with a number of seconds, by which the wall clock is ahead of the machine's, for tests of what happens when it is
/// set: read at each look. Honoured by debug builds only, which nobody runs; and whoever may set the agent's environment
/// is root, who may set the clock itself.
pub const TEST_CLOCK: &str = "CORACLE_TEST_CLOCK";

/// In milliseconds: two clocks are never read at one moment.
const INEXACT: i64 = 50;

/// The time by which everything is decided. Nobody sets it; it goes on while the machine sleeps.
#[must_use]
pub fn now() -> Timestamp {
    later(own().boot, since_boot())
}

/// What the wall clock says.
#[must_use]
pub fn wall() -> Timestamp {
    later(real(), test_offset())
}

/// The time by which certificates are checked: the wall clock's, unless that is wrong for certain (before [`EARLIEST`],
/// when there was no coracle). Then it is the latest time of which we know that it has passed: that date, what this process
/// has counted since its clock was right, and the times of our own records ([`learn`]). So a node that boots in 1970 can
/// speak TLS before anybody sets its clock, and what had expired when it was last on stays refused.
///
/// A clock that may be right is not overruled by a later record: one year with a clock far ahead would leave records that
/// have all certificates expired, on a node that nobody can drive to.
#[must_use]
pub fn for_certificates() -> Timestamp {
    known_passed(wall(), now(), Timestamp::from_second(LEARNED.load(Ordering::Relaxed)).unwrap_or(EARLIEST))
}

fn known_passed(wall: Timestamp, counted: Timestamp, learned: Timestamp) -> Timestamp {
    if wall >= EARLIEST { wall } else { EARLIEST.max(counted).max(learned) }
}

/// The newest of our records when this process began, in seconds.
static LEARNED: AtomicI64 = AtomicI64::new(i64::MIN);

/// Remembers when the newest file in one of these folders was written, for [`for_certificates`]: folders that we alone
/// write to, and before we do. A clock that may be right needs none of this, and nothing is read then. What cannot be read
/// teaches nothing.
pub fn learn<'a>(folders: impl IntoIterator<Item = &'a Path>) {
    if wall() >= EARLIEST {
        return;
    }
    if let Some(newest) = newest(folders) {
        LEARNED.fetch_max(newest, Ordering::Relaxed);
    }
}

fn newest<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Option<i64> {
    let entries = folders.into_iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.mtime())).max()
}

/// The wall clock as it is set now.
#[must_use]
pub fn present() -> Clock {
    /// What was found last, so that all who ask get the very same until the clock is set.
    static LAST: AtomicI64 = AtomicI64::new(i64::MIN);
    let boot = wall().duration_since(Timestamp::UNIX_EPOCH) - since_boot();
    let found = i64::try_from(boot.as_millis()).unwrap_or(i64::MAX);
    let last = LAST.load(Ordering::Relaxed);
    let boot = match found.abs_diff(last) <= INEXACT.unsigned_abs() {
        true => last,
        false => {
            LAST.store(found, Ordering::Relaxed);
            found
        }
    };
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    let boot_id = BOOT_ID.get_or_init(|| super::process::boot_id().unwrap_or_default()).clone();
    Clock { boot_id, boot: later(Timestamp::UNIX_EPOCH, SignedDuration::from_millis(boot)) }
}

/// By which [`now`] goes.
fn own() -> &'static Clock {
    static OWN: LazyLock<Clock> = LazyLock::new(present);
    &OWN
}

/// A record from the disk, with instants of this process' time.
#[must_use]
pub fn recall<T: Timed>(mut record: T) -> T {
    // What is known of an earlier boot is told best by the clock as it is now.
    record.express(&present());
    record.express(own());
    record
}

/// A record for the disk, with instants of the wall clock as it is now.
#[must_use]
pub fn inscribe<T: Timed>(mut record: T) -> T {
    record.express(&present());
    record
}

/// The present instant, to be kept for good.
#[must_use]
pub fn seen() -> Seen {
    Seen { at: wall(), clock: present() }
}

/// When that was by this process' time.
#[must_use]
pub fn recall_seen(seen: &Seen) -> Timestamp {
    let present = present();
    let at = seen.by(&present);
    later(at, own().ahead_of(Some(&present), at))
}

/// How much later than [`now`] the wall clock is; zero unless it was set while this process ran.
#[must_use]
pub fn ahead() -> SignedDuration {
    let ahead = present().boot.duration_since(own().boot);
    if ahead.abs() < LEAST_STEP { SignedDuration::ZERO } else { ahead }
}

/// An instant of this process' time as the wall clock tells it.
#[must_use]
pub fn shown(at: Timestamp) -> Timestamp {
    later(at, ahead())
}

fn since_boot() -> SignedDuration {
    let (seconds, nanoseconds) = read(ClockId::CLOCK_BOOTTIME);
    SignedDuration::new(seconds, nanoseconds)
}

fn real() -> Timestamp {
    let (seconds, nanoseconds) = read(ClockId::CLOCK_REALTIME);
    later(Timestamp::UNIX_EPOCH, SignedDuration::new(seconds, nanoseconds))
}

/// Seconds and nanoseconds. Linux has had both clocks since 2.6.39, and reading them cannot fail.
fn read(clock: ClockId) -> (i64, i32) {
    let time = clock_gettime(clock).unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
    (time.tv_sec(), i32::try_from(time.tv_nsec()).unwrap_or(0))
}

fn test_offset() -> SignedDuration {
    if !cfg!(debug_assertions) {
        return SignedDuration::ZERO;
    }
    static FILE: LazyLock<Option<std::ffi::OsString>> = LazyLock::new(|| std::env::var_os(TEST_CLOCK));
    let Some(file) = FILE.as_ref() else { return SignedDuration::ZERO };
    let text = std::fs::read_to_string(file).unwrap_or_default();
    SignedDuration::from_secs(text.trim().parse().unwrap_or(0))
}

/// How long until an instant of this process' time; zero when it has passed.
#[must_use]
pub fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now())).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Progress;
    use crate::pod::{StopCause, Stopping};

    #[test]
    fn the_own_time_only_grows_and_is_the_walls_as_long_as_that_is_not_set() {
        let (wall, first, second) = (wall(), now(), now());
        assert!(first <= second);
        assert!(second.duration_since(wall).abs() < SignedDuration::from_secs(60));
        assert_eq!(ahead(), SignedDuration::ZERO);
    }

    #[test]
    fn certificates_are_checked_by_a_time_that_has_passed_for_certain() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let (unset, year_later) = (at(40), later(EARLIEST, SignedDuration::from_hours(8760)));
        for (wall, counted, learned, expected) in [
            // A clock that may be right is believed, whatever was written by one that was not.
            (EARLIEST, unset, year_later, EARLIEST),
            (year_later, year_later, EARLIEST, year_later),
            // A first boot without a battery; one with records; a clock that is set back while we run.
            (unset, unset, Timestamp::MIN, EARLIEST),
            (unset, unset, year_later, year_later),
            (unset, year_later, Timestamp::MIN, year_later),
            (Timestamp::MIN, Timestamp::MIN, Timestamp::MIN, EARLIEST),
        ] {
            assert_eq!(known_passed(wall, counted, learned), expected, "{wall} {counted} {learned}");
        }
        assert!(for_certificates() >= EARLIEST);
    }

    #[test]
    fn the_newest_record_is_found_where_there_is_one() {
        let folder = std::env::temp_dir().join(format!("coracle-clock-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(newest([folder.as_path()]), None);
        for (name, seconds) in [("old", 1_800_000_000), ("new", 1_900_000_000), ("1970", 5)] {
            let at = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
            std::fs::File::create(folder.join(name)).unwrap().set_modified(at).unwrap();
        }
        assert_eq!(newest([Path::new("/nowhere"), &folder]), Some(1_900_000_000));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_record_of_a_clock_that_was_wrong_is_recalled_as_it_was() {
        let begun = now();
        let wrong = Clock { boot: Timestamp::from_second(1000).unwrap(), ..present() };
        let stopping = Stopping { cause: StopCause::Pod, begun, grace_ms: 1, kill_at: None };
        let mut progress = Progress { stopping: Some(stopping), clock: Some(present()), ..Progress::default() };
        progress.express(&wrong);
        let recalled = recall(progress);
        assert_eq!(recalled.stopping.map(|s| s.begun), Some(begun));
    }
}
