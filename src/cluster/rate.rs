//! How many requests may be sent: so many a second, and so many at once after a pause.

use jiff::{SignedDuration, Timestamp};

/// A bucket of turns that fills with time. Whoever takes a turn is told how long to wait for it; turns are given in the
/// order in which they are asked for.
#[derive(Debug, Clone)]
pub(super) struct Rate {
    /// Between two turns; `None`: no limit.
    interval: Option<SignedDuration>,
    /// How far ahead of its time a turn may be taken.
    ahead: SignedDuration,
    /// When the next turn is due.
    due: Timestamp,
}

impl Rate {
    /// So many turns a second (0: no limit), and so many at once.
    pub(super) fn new(per_second: u32, burst: u32) -> Rate {
        let interval = (per_second > 0).then(|| SignedDuration::from_nanos(1_000_000_000 / i64::from(per_second)));
        let turns = i32::try_from(burst.max(1) - 1).unwrap_or(i32::MAX);
        let ahead = interval.and_then(|interval| interval.checked_mul(turns)).unwrap_or(SignedDuration::ZERO);
        Rate { interval, ahead, due: Timestamp::MIN }
    }

    /// Takes a turn: how long to wait for it.
    pub(super) fn take(&mut self, now: Timestamp) -> SignedDuration {
        let Some(interval) = self.interval else { return SignedDuration::ZERO };
        let due = self.due.max(now);
        self.due = due.checked_add(interval).unwrap_or(due);
        due.duration_since(now).saturating_sub(self.ahead).max(SignedDuration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn a_burst_is_free_and_the_rest_waits_its_turn() {
        let mut rate = Rate::new(10, 3);
        let waits: Vec<i128> = (0..5).map(|_| rate.take(at(1000)).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
        // What was not taken for long is there again, but never more than a burst.
        let waits: Vec<i128> = (0..4).map(|_| rate.take(at(60_000)).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100]);
        assert!((0..1000).all(|_| Rate::new(0, 0).take(at(0)).is_zero()));
    }

    proptest! {
        #[test]
        fn no_second_has_more_turns_than_the_limit_and_the_burst(
            per_second in 1_u32..20,
            burst in 0_u32..20,
            pauses in proptest::collection::vec(0_i64..400, 1..100),
        ) {
            let mut rate = Rate::new(per_second, burst);
            let mut now = 0;
            let turns: Vec<i64> = pauses.into_iter().map(|pause| {
                now += pause;
                now + i64::try_from(rate.take(at(now)).as_millis()).unwrap()
            }).collect();
            let most = (per_second + burst.max(1)) as usize;
            for from in &turns {
                prop_assert!(turns.iter().filter(|turn| (*from..from + 1000).contains(*turn)).count() <= most);
            }
        }
    }
}
