//! How long a stream may be silent.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// When something last went over a connection.
#[derive(Debug)]
pub(super) struct Idle {
    last: Mutex<Instant>,
    limit: Duration,
}

impl Idle {
    /// From now on; a limit of zero means none.
    pub(super) fn new(limit: Duration) -> Idle {
        Idle { last: Mutex::new(Instant::now()), limit }
    }

    /// Something went over it.
    pub(super) fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns once nothing went over it for as long as the limit.
    pub(super) async fn over(&self) {
        if self.limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            // A limit beyond what a clock can tell is none.
            let Some(end) = last.checked_add(self.limit) else { return std::future::pending().await };
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}
