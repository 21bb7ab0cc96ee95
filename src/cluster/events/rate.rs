//! So many at once, and then so many a second.

use jiff::Timestamp;
use std::time::Duration;

/// A bucket of tokens that fills up again.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Timestamp,
}

impl Bucket {
    /// A full one.
    pub fn new(per_second: f64, burst: f64, now: Timestamp) -> Bucket {
        Bucket { per_second, burst, tokens: burst, at: now }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Timestamp) -> bool {
        let passed = now.duration_since(self.at).as_secs_f64();
        // A clock that was set back fills nothing, and takes nothing away.
        self.tokens = (self.tokens + passed.max(0.0) * self.per_second).min(self.burst);
        self.at = now;
        let is_there = self.tokens >= 1.0;
        if is_there {
            self.tokens -= 1.0;
        }
        is_there
    }

    /// How long until there is a token, as of the last [`Bucket::take`].
    pub fn wait(&self) -> Duration {
        let missing = (1.0 - self.tokens).max(0.0);
        Duration::try_from_secs_f64(missing / self.per_second).unwrap_or(Duration::MAX)
    }

    /// When it was used last.
    pub fn used(&self) -> Timestamp {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let mut bucket = Bucket::new(1.0 / 300.0, 25.0, at(0));
        assert_eq!((0..30).filter(|_| bucket.take(at(0))).count(), 25);
        assert_eq!(bucket.wait().as_secs(), 300);
        assert!(!bucket.take(at(299)));
        assert!(bucket.take(at(301)) && !bucket.take(at(301)));
        // The clock was set back, and goes on.
        assert!(!bucket.take(at(-1000)) && !bucket.take(at(-800)));
        assert!(bucket.take(at(-600)));
    }
}
