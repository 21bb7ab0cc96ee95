//! When to ask again.

use std::time::Duration;

/// What fails is asked for again at least this often, unless it is asked for less often anyway.
const LONGEST: Duration = Duration::from_secs(300);
/// Nobody is asked more often than this.
const SHORTEST: Duration = Duration::from_millis(100);

/// The pace of one URL.
#[derive(Debug)]
pub(super) struct Pace {
    frequency: Duration,
    /// Failures in a row.
    failures: u32,
}

impl Pace {
    pub(super) fn new(frequency: Duration) -> Pace {
        Pace { frequency: frequency.max(SHORTEST), failures: 0 }
    }

    /// How long to wait after an answer.
    pub(super) fn heard(&mut self) -> Duration {
        self.failures = 0;
        self.frequency
    }

    /// How long to wait after a failure: twice as long each time, at most five minutes, and no more than half of it less
    /// by chance (`random`), as a thousand nodes that lost one server must not find it again at the same instant.
    pub(super) fn failed(&mut self, retry_after: Option<Duration>, random: u32) -> Duration {
        let longest = self.frequency.max(LONGEST);
        let whole = self.frequency.saturating_mul(1 << self.failures.min(24)).min(longest);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        let wait = half + half.mul_f64(f64::from(random) / f64::from(u32::MAX));
        wait.max(retry_after.unwrap_or_default().min(longest)).max(SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn failures_slow_it_down_to_five_minutes_and_an_answer_ends_that() {
        let mut pace = Pace::new(Duration::from_secs(20));
        let waits: Vec<u64> = (0..7).map(|_| pace.failed(None, u32::MAX).as_secs()).collect();
        assert_eq!(waits, [20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(pace.failed(None, 0).as_secs(), 150);
        assert_eq!(pace.heard().as_secs(), 20);
        assert_eq!(pace.failed(None, 0).as_secs(), 10);
        assert_eq!(pace.failed(Some(Duration::from_secs(100)), 0).as_secs(), 100);
        assert_eq!(pace.failed(Some(Duration::from_secs(u64::MAX)), 0).as_secs(), 300);
        let mut slow = Pace::new(Duration::from_secs(3600));
        assert_eq!(slow.failed(None, u32::MAX).as_secs(), 3600, "never faster for failing");
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_promised(
            frequency in 0_u64..10_000_000_000_000,
            steps in proptest::collection::vec((any::<bool>(), proptest::option::of(any::<u64>()), any::<u32>()), 0..60),
        ) {
            let frequency = Duration::from_nanos(frequency);
            let mut pace = Pace::new(frequency);
            for (heard, retry, random) in steps {
                let wait = match heard {
                    true => pace.heard(),
                    false => pace.failed(retry.map(Duration::from_secs), random),
                };
                prop_assert!(wait >= SHORTEST && wait <= frequency.max(LONGEST));
            }
        }
    }
}
