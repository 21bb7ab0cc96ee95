//! So many at once, and then so many a second.

use crate::sys::clock;
use jiff::Timestamp;
use std::time::Duration;
use tokio::sync::Mutex;

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

/// Who wants to do something waits for its turn here.
#[derive(Debug)]
pub struct Throttle(Option<Mutex<Bucket>>);

impl Throttle {
    /// So many a second, and so many at once; 0 a second: no limit.
    pub fn new((per_second, burst): (u32, u32)) -> Throttle {
        let bucket = || Bucket::new(f64::from(per_second), f64::from(burst.max(1)), clock::now());
        Throttle((per_second > 0).then(|| Mutex::new(bucket())))
    }

    /// Returns when it is one's turn; who came first goes first.
    pub async fn turn(&self) {
        let Some(bucket) = &self.0 else { return };
        let mut bucket = bucket.lock().await;
        while !bucket.take(clock::now()) {
            tokio::time::sleep(bucket.wait()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

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

    #[tokio::test]
    async fn a_turn_comes_at_once_as_long_as_there_is_one() {
        let free = Throttle::new((0, 0));
        let few = Throttle(Some(Mutex::new(Bucket::new(1e-6, 3.0, clock::now()))));
        for _ in 0..3 {
            free.turn().await;
            few.turn().await;
        }
        assert_eq!(few.turn().now_or_never(), None);
        free.turn().await;
    }
}
