//! When a token is asked for anew. Pure.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// No token gets older than this, however long it is good: the API server issues some for a year (as kubelet).
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);
/// So much earlier at most, so that a thousand nodes do not ask at the same moment (as kubelet).
const MAX_JITTER: SignedDuration = SignedDuration::from_secs(10);
/// Pause after a first failure.
const MIN_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// Longest pause between two attempts.
const MAX_PAUSE: SignedDuration = SignedDuration::from_secs(60);

/// How long a token is good, by this node's clock: a server whose clock is another one must not make it be asked for at each
/// look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// When it came (wall clock).
    pub begun: Timestamp,
    /// For how long it was issued.
    pub seconds: i64,
}

impl Life {
    /// When the next one is asked for: after 80 % of its life, or a day. `spread` chooses among nodes and tokens.
    pub fn refresh_at(&self, spread: u64) -> Timestamp {
        let life = SignedDuration::from_secs(self.seconds.clamp(0, i64::from(u32::MAX)));
        let most = (life * 4 / 5).min(MAX_AGE);
        let jitter = MAX_JITTER.min(most / 2);
        let millis = u64::try_from(jitter.as_millis()).unwrap_or_default();
        let jitter = SignedDuration::from_millis(i64::try_from(spread % (millis + 1)).unwrap_or_default());
        self.begun.checked_add(most - jitter).unwrap_or(Timestamp::MAX)
    }

    /// Whether the next one is asked for now. A clock that was set back says nothing of how old it is.
    pub fn is_due(&self, spread: u64, now: Timestamp) -> bool {
        now < self.begun || now >= self.refresh_at(spread)
    }
}

/// How long to wait after this many failures in a row.
pub fn pause(failures: u32, spread: u64) -> SignedDuration {
    let pause = MIN_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX_PAUSE);
    // Up to a quarter more.
    let millis = i64::try_from(pause.as_millis()).unwrap_or_default();
    pause + SignedDuration::from_millis(i64::try_from(spread % 1000).unwrap_or_default() * millis / 4000)
}

/// Another number for each of these names, the same at each look.
pub fn spread_of(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("instant")
    }

    #[test]
    fn after_most_of_its_life_or_a_day() {
        let refresh = |seconds: i64| Life { begun: at(0), seconds }.refresh_at(0);
        assert_eq!(refresh(600), at(480));
        assert_eq!(refresh(3607), at(2885) + SignedDuration::from_millis(600));
        assert_eq!(refresh(365 * 86400), at(86400));
        assert_eq!(refresh(0), at(0));
        assert_eq!(refresh(i64::MIN), at(0));
        assert_eq!(refresh(i64::MAX), at(86400));
        let life = Life { begun: at(0), seconds: 600 };
        assert_eq!(life.refresh_at(9_999), at(470) + SignedDuration::from_millis(1));
        assert!(!life.is_due(0, at(479)) && life.is_due(0, at(480)) && life.is_due(0, at(10_000)));
        assert!(life.is_due(0, at(-1)), "the clock was set back");
    }

    #[test]
    fn pauses_double() {
        let pauses: Vec<i64> = (0..10).map(|failures| pause(failures, 0).as_secs()).collect();
        assert_eq!(pauses, [1, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause(u32::MAX, 999), SignedDuration::from_millis(74_985));
    }

    proptest! {
        #[test]
        fn never_before_half_of_it_and_never_after_four_fifths(seconds in 1..1_000_000i64, spread in any::<u64>()) {
            let life = Life { begun: at(0), seconds };
            let after = life.refresh_at(spread).duration_since(at(0)).as_secs_f64();
            let most = (seconds as f64 * 0.8).min(86400.0);
            prop_assert!(after <= most + 0.001 && after >= most / 2.0 - 0.002 && after >= most - 10.001);
        }

        #[test]
        fn never_panics(seconds in any::<i64>(), begun in any::<i64>(), spread in any::<u64>()) {
            let begun = Timestamp::from_second(begun % 200_000_000_000).unwrap_or(Timestamp::MAX);
            let life = Life { begun, seconds };
            let _ = life.is_due(spread, at(0));
        }
    }
}
