//! By which clock an instant was read, and what it is by another.
//!
//! The wall clock of a machine may be set at any moment, by 56 years. Between two settings, and as long as the machine is
//! not restarted, it is a fixed distance ahead of the time since the boot. So a record says, besides its instants, by which
//! clock they were read: which boot, and what the clock gives as the moment of that boot. That is enough to say what the
//! same instants are by the clock as it is now, however often it was set since.

use super::{Instance, Progress, Record, Told};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A wall clock between two settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clock {
    /// The boot during which it went so (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// When, by this clock, the machine was started.
    pub boot: Timestamp,
}

/// Smaller settings are not followed: they change no wait that matters, and reading two clocks is never exact.
pub const LEAST_STEP: SignedDuration = SignedDuration::from_secs(1);

/// A clock that says less than this is wrong: coracle did not record anything before (2026-11-01T00:00:00Z).
pub const EARLIEST: Timestamp = Timestamp::constant(1_793_491_200, 0);

/// When this node first saw a pod, as it was read, for good: what is told from it may get better once the clock is right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// The instant.
    pub at: Timestamp,
    /// By which clock.
    pub clock: Clock,
}

impl Seen {
    /// The instant by another clock.
    #[must_use]
    pub fn by(&self, clock: &Clock) -> Timestamp {
        later(self.at, clock.ahead_of(Some(&self.clock), self.at))
    }
}

impl Clock {
    /// How much later than by `other` the same instant is by this clock; `newest` is the last instant of those that are
    /// translated together, so that what lies between them stays as it was.
    ///
    /// Of another boot nobody knows how far its clock was ahead of this one: its instants are believed, but they lie
    /// before this boot, and where this clock knows better, not in a time before there was anything to record. Of
    /// a record that does not say its clock nothing is known at all.
    #[must_use]
    pub fn ahead_of(&self, other: Option<&Clock>, newest: Timestamp) -> SignedDuration {
        match other {
            None => SignedDuration::ZERO,
            Some(other) if other.boot_id == self.boot_id => self.boot.duration_since(other.boot),
            Some(_) if newest > self.boot || (newest < EARLIEST && self.boot >= EARLIEST) => {
                self.boot.duration_since(newest)
            }
            Some(_) => SignedDuration::ZERO,
        }
    }
}

/// A record with instants, all of them read by one clock.
pub trait Timed {
    /// The clock; `None` in records of versions that did not tell.
    fn clock(&mut self) -> &mut Option<Clock>;
    /// The instants.
    fn instants(&mut self) -> Vec<&mut Timestamp>;

    /// Give all instants by another clock. A record that does not say its clock is taken to be by this one.
    fn express(&mut self, clock: &Clock) {
        let from = self.clock().clone();
        let Some(newest) = self.instants().into_iter().map(|at| *at).max() else {
            *self.clock() = Some(clock.clone());
            return;
        };
        let ahead = clock.ahead_of(from.as_ref(), newest);
        let same_boot = from.as_ref().is_some_and(|from| from.boot_id == clock.boot_id);
        if same_boot && ahead.abs() < LEAST_STEP {
            // It keeps its clock, or else many small steps would add up to a large one that nobody saw.
            return;
        }
        for at in self.instants() {
            *at = later(*at, ahead);
        }
        *self.clock() = Some(clock.clone());
    }
}

impl Timed for Instance {
    fn clock(&mut self) -> &mut Option<Clock> {
        &mut self.clock
    }

    fn instants(&mut self) -> Vec<&mut Timestamp> {
        let end = self.terminated.iter_mut().map(|end| &mut end.finished);
        end.chain(&mut self.started).chain([&mut self.created]).collect()
    }
}

impl Timed for Record {
    fn clock(&mut self) -> &mut Option<Clock> {
        &mut self.clock
    }

    /// All but [`Record::start_time`], which has a clock of its own.
    fn instants(&mut self) -> Vec<&mut Timestamp> {
        let sandbox = self.sandbox.iter_mut().map(|sandbox| &mut sandbox.created);
        let finished = self.finished.iter_mut().map(|finished| &mut finished.at);
        let deletion = self.deletion.iter_mut().map(|deletion| &mut deletion.started);
        sandbox.chain(finished).chain(deletion).collect()
    }
}

impl Timed for Progress {
    fn clock(&mut self) -> &mut Option<Clock> {
        &mut self.clock
    }

    fn instants(&mut self) -> Vec<&mut Timestamp> {
        let stopping = self.stopping.iter_mut();
        stopping.flat_map(|stop| [&mut stop.begun].into_iter().chain(&mut stop.kill_at)).collect()
    }
}

impl Timed for Told {
    fn clock(&mut self) -> &mut Option<Clock> {
        &mut self.clock
    }

    fn instants(&mut self) -> Vec<&mut Timestamp> {
        self.conditions.iter_mut().flat_map(|c| &mut c.last_transition_time).map(|at| &mut at.0).collect()
    }
}

/// `at`, so much later; the ends of time are not passed.
#[must_use]
pub fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    let end = if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(by).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::{StopCause, Stopping};
    use proptest::prelude::*;

    fn clock(boot_id: &str, boot: i64) -> Clock {
        Clock { boot_id: boot_id.into(), boot: Timestamp::from_second(boot).unwrap() }
    }

    fn stop(begun: i64, kill_at: Option<i64>, clock: Option<Clock>) -> Progress {
        let at = |s| Timestamp::from_second(s).unwrap();
        let stopping = Stopping { cause: StopCause::Pod, begun: at(begun), grace_ms: 30_000, kill_at: kill_at.map(at) };
        Progress { stopping: Some(stopping), clock, ..Progress::default() }
    }

    #[test]
    fn instants_of_this_boot_follow_the_clock_when_it_is_set() {
        let (wrong, right) = (clock("b", 0), clock("b", 1_800_000_000));
        let mut progress = stop(100, Some(130), Some(wrong.clone()));
        progress.express(&right);
        assert_eq!(progress, stop(1_800_000_100, Some(1_800_000_130), Some(right)));
        progress.express(&wrong);
        assert_eq!(progress, stop(100, Some(130), Some(wrong)));
    }

    #[test]
    fn instants_of_another_boot_lie_before_this_one() {
        let before = Some(clock("a", 1_800_000_000));
        for (now, newest) in [
            // A clock that is right, or as good as the other.
            (clock("b", 1_800_500_000), 1_800_000_030),
            // A dead battery.
            (clock("b", 0), 0),
            // The clock was far ahead then.
            (clock("b", 1_799_000_000), 1_799_000_000),
        ] {
            let mut progress = stop(1_800_000_000, Some(1_800_000_030), before.clone());
            progress.express(&now);
            assert_eq!(progress, stop(newest - 30, Some(newest), Some(now)));
        }
        // A dead battery then.
        let mut progress = stop(70, Some(100), Some(clock("a", 0)));
        progress.express(&clock("b", 1_800_000_000));
        assert_eq!(progress, stop(1_799_999_970, Some(1_800_000_000), Some(clock("b", 1_800_000_000))));
        // A dead battery then and now.
        let mut progress = stop(70, Some(100), Some(clock("a", 0)));
        progress.express(&clock("b", 0));
        assert_eq!(progress, stop(-30, Some(0), Some(clock("b", 0))));
    }

    /// Whatever instant a record holds, it is translated with the others.
    #[test]
    fn no_instant_of_a_record_is_forgotten() {
        const THEN: &str = "1970-01-01T00:01:00Z";
        const NOW: &str = "2027-01-15T08:01:00Z";
        fn check<T: Timed + Serialize + for<'a> Deserialize<'a>>(record: impl Fn(&str, &Clock) -> serde_json::Value) {
            let (wrong, right) = (clock("b", 0), clock("b", 1_800_000_000));
            let mut read: T = serde_json::from_value(record(THEN, &wrong)).unwrap();
            read.express(&right);
            let expected: T = serde_json::from_value(record(NOW, &right)).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&expected).unwrap());
        }
        check::<Instance>(|at, clock| {
            serde_json::json!({
                "id": "i", "container": "c", "attempt": 0, "image": "i", "imageId": "i", "clock": clock,
                "created": at, "started": at,
                "terminated": { "finished": at, "exitCode": 0, "reason": "Completed" },
            })
        });
        check::<Record>(|at, clock| {
            serde_json::json!({
                "pod": {}, "startTime": THEN, "clock": clock,
                "sandbox": { "created": at, "bootId": "b" },
                "finished": { "phase": "Failed", "at": at },
                "deletion": { "started": at, "graceSeconds": 1 },
            })
        });
        check::<Progress>(|at, clock| {
            let stopping = serde_json::json!({ "cause": "pod", "begun": at, "graceMs": 1, "killAt": at });
            serde_json::json!({ "stopping": stopping, "clock": clock })
        });
        check::<Told>(|at, clock| {
            let ready = serde_json::json!({ "type": "Ready", "status": "True", "lastTransitionTime": at });
            serde_json::json!({ "conditions": [ready], "clock": clock })
        });
    }

    #[test]
    fn the_first_sight_is_told_truly_again_once_the_clock_is_right() {
        let seen = Seen { at: Timestamp::from_second(1_800_000_500).unwrap(), clock: clock("a", 1_800_000_000) };
        assert_eq!(seen.by(&clock("b", 0)).as_second(), 0);
        assert_eq!(seen.by(&clock("b", 1_800_100_000)).as_second(), 1_800_000_500);
        assert_eq!(seen.by(&clock("a", 0)).as_second(), 500);
    }

    #[test]
    fn a_record_that_does_not_say_its_clock_is_taken_as_it_is() {
        let mut progress = stop(100, None, None);
        progress.express(&clock("b", 1_800_000_000));
        assert_eq!(progress, stop(100, None, Some(clock("b", 1_800_000_000))));
    }

    proptest! {
        /// However often the clock was set in between, what is left of a wait is what it was.
        #[test]
        fn settings_of_the_clock_change_no_wait(
            begun in 0i64..1_000_000,
            grace in 0i64..100_000,
            boots in proptest::collection::vec(-2_000_000_000i64..4_000_000_000, 1..10),
            first in 0i64..4_000_000_000,
        ) {
            let mut progress = stop(first + begun, Some(first + begun + grace), Some(clock("b", first)));
            for boot in boots {
                progress.express(&clock("b", boot));
                let stopping = progress.stopping.clone().unwrap();
                let by = progress.clock.clone().unwrap();
                prop_assert_eq!(stopping.begun.duration_since(by.boot).as_secs(), begun);
                prop_assert_eq!(stopping.kill_at.unwrap().duration_since(stopping.begun).as_secs(), grace);
                prop_assert!(clock("b", boot).boot.duration_since(by.boot).abs() < LEAST_STEP);
            }
        }

        /// The back-off after a crash is as long by any clock, and no longer than its maximum.
        #[test]
        fn settings_of_the_clock_change_no_back_off(
            ran in 0i64..600,
            waited in 0i64..300,
            since in 0i64..400,
            boots in proptest::collection::vec(-2_000_000_000i64..4_000_000_000, 1..10),
        ) {
            let own = clock("b", 1_800_000_000);
            let at = |s: i64| Timestamp::from_second(1_800_000_000 + s).unwrap();
            let mut run: Instance = serde_json::from_value(serde_json::json!({
                "id": "i", "container": "c", "attempt": 3, "image": "i", "imageId": "i", "clock": own,
                "created": at(1000), "started": at(1000), "backoffMs": waited * 1000,
                "terminated": { "finished": at(1000 + ran), "exitCode": 1, "reason": "Error" },
            })).unwrap();
            for boot in boots {
                run.express(&clock("b", boot));
            }
            run.express(&own);
            let now = at(1000 + ran + since);
            let next = crate::pod::restart::next(&run, now, crate::pod::restart::MAX_BACKOFF);
            let wait = next.not_before.duration_since(run.terminated.unwrap().finished).as_secs();
            // Clocks that differ by less than a step are not told apart.
            prop_assert!((wait - waited).abs() <= 1 && wait <= 300);
        }

        /// What an earlier boot recorded never lies in this one's future, and stays in one piece.
        #[test]
        fn nothing_of_an_earlier_boot_lies_ahead(
            begun in any::<u32>(), grace in 0i64..100_000, then in any::<u32>(), boot in any::<u32>(),
        ) {
            let (begun, then, boot) = (i64::from(begun), i64::from(then), i64::from(boot));
            let mut progress = stop(begun, Some(begun + grace), Some(clock("a", then)));
            progress.express(&clock("b", boot));
            let stopping = progress.stopping.unwrap();
            prop_assert!(stopping.kill_at.unwrap().as_second() <= boot);
            prop_assert_eq!(stopping.kill_at.unwrap().duration_since(stopping.begun).as_secs(), grace);
        }

        #[test]
        fn the_ends_of_time_are_not_passed(at in any::<i64>(), by in any::<i64>()) {
            let at = Timestamp::from_second(at.clamp(-300_000_000_000, 200_000_000_000)).unwrap();
            let moved = later(at, SignedDuration::from_secs(by));
            prop_assert!((moved >= at) == (by >= 0));
        }
    }
}
