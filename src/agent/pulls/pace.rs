//! How often pulls may begin.

use std::time::{Duration, Instant};

/// Lets `qps` pulls begin in a second, and `burst` at once after a rest. The kubelet fails a pull that comes too early;
/// here it waits.
pub(super) struct Bucket {
    qps: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(qps: u32, burst: u32) -> Bucket {
        let burst = f64::from(burst.max(1));
        Bucket { qps: f64::from(qps), burst, tokens: burst, filled: Instant::now() }
    }

    /// Waits until the next pull may begin.
    pub(super) async fn take(&mut self) {
        if self.qps > 0.0 {
            let pause = self.claim(self.filled.elapsed());
            self.filled = Instant::now();
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Takes a token after `rest` without a pull: how long to wait for it.
    fn claim(&mut self, rest: Duration) -> Duration {
        self.tokens = (self.tokens + rest.as_secs_f64() * self.qps).min(self.burst) - 1.0;
        Duration::from_secs_f64((-self.tokens / self.qps).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_begin_in_bursts_and_then_in_step() {
        let mut bucket = Bucket::new(5, 2);
        let at_once = Duration::ZERO;
        assert_eq!((bucket.claim(at_once), bucket.claim(at_once)), (at_once, at_once));
        assert_eq!(bucket.claim(at_once), Duration::from_millis(200));
        // The time that was waited counts as rest.
        assert_eq!(bucket.claim(Duration::from_millis(200)), Duration::from_millis(200));
        assert_eq!(bucket.claim(Duration::from_secs(60)), at_once);
    }
}
