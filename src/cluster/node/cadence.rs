//! When the Node's status is sent (as kubelet): at once when something of it changed, else seldom, and not by all nodes at
//! the same moment after something happened to all of them.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Decides on each status that was looked at.
#[derive(Debug)]
pub struct Cadence {
    report: Duration,
    next: Option<Timestamp>,
}

impl Cadence {
    /// Nothing was sent yet; `report` is between two reports that say nothing new.
    pub fn new(report: Duration) -> Cadence {
        Cadence { report, next: None }
    }

    /// Whether a status is to be sent; `changed`: it says something that the API server does not know.
    pub fn is_due(&self, changed: bool, now: Timestamp) -> bool {
        changed || self.next.is_none_or(|next| next <= now)
    }

    /// It was sent. The first report after a change is moved by up to half of the time between two, either way: `random`
    /// is any number.
    pub fn sent(&mut self, changed: bool, now: Timestamp, random: u64) {
        let shifted = match changed || self.next.is_none() {
            true => self.report.mul_f64(0.5 + (random % 1000) as f64 / 1000.0),
            false => self.report,
        };
        let wait = SignedDuration::try_from(shifted).unwrap_or(SignedDuration::MAX);
        self.next = now.checked_add(wait).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_goes_at_once_and_the_rest_seldom() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let mut cadence = Cadence::new(Duration::from_secs(300));
        assert!(cadence.is_due(false, at(0)), "the first word");
        cadence.sent(true, at(0), 0);
        assert!(!cadence.is_due(false, at(149)) && cadence.is_due(false, at(150)), "half of it earlier at most");
        cadence.sent(true, at(0), 999);
        assert!(!cadence.is_due(false, at(449)) && cadence.is_due(false, at(450)), "half of it later at most");
        cadence.sent(false, at(450), 0);
        assert!(!cadence.is_due(false, at(749)) && cadence.is_due(false, at(750)), "then in step");
        assert!(cadence.is_due(true, at(451)));
        // A clock at the end of time makes nothing panic.
        cadence.sent(false, Timestamp::MAX, 0);
        assert!(cadence.is_due(false, Timestamp::MAX));
    }
}
