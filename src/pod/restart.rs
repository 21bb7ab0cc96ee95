//! When a container that ended may run again.

use super::{Instance, RestartPolicy};
use jiff::{SignedDuration, Timestamp};

/// First delay of the crash back-off (as kubelet: 10 s).
pub const INITIAL_BACKOFF: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay by default (as kubelet: 300 s).
pub const MAX_BACKOFF: SignedDuration = SignedDuration::from_secs(300);
/// A run that lasted longer than this starts over with no delay (as kubelet: fixed, 10 min).
pub const RESET_AFTER: SignedDuration = SignedDuration::from_secs(600);

/// The next run of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// Its attempt number.
    pub attempt: u32,
    /// Not before this instant.
    pub not_before: Timestamp,
    /// The delay that its own restart will have to wait.
    pub backoff: SignedDuration,
}

/// Whether `policy` wants a container that ended this way to run again.
#[must_use]
pub fn wanted(policy: RestartPolicy, instance: &Instance) -> bool {
    match (&instance.terminated, policy) {
        (None, _) | (_, RestartPolicy::Never) => false,
        (Some(_), RestartPolicy::Always) => true,
        (Some(t), RestartPolicy::OnFailure) => t.exit_code != 0 || t.reason == "OOMKilled",
    }
}

/// The run after `last`, which has ended (as kubelet: the first restart is immediate, then 10 s doubling to `max`,
/// measured from the end of the run, forgotten after a run of more than 10 minutes). A run that was cut off by a
/// power cut or a lost shim (`ContainerStatusUnknown`) is not the container's fault: it waits for nothing, unless that
/// happens again and again right after the start.
///
/// A clock that jumped cannot make the wait longer than the delay itself.
#[must_use]
pub fn next(last: &Instance, now: Timestamp, max: SignedDuration) -> Next {
    let attempt = last.attempt.saturating_add(1);
    let initial = INITIAL_BACKOFF.min(max);
    let waited = SignedDuration::from_millis(i64::try_from(last.backoff_ms).unwrap_or(i64::MAX / 2_000_000)).min(max);
    let Some(ended) = &last.terminated else { return Next { attempt, not_before: now, backoff: initial } };
    let lasted = ended.finished.duration_since(last.created);
    if ended.reason == "ContainerStatusUnknown" && lasted > INITIAL_BACKOFF {
        return Next { attempt, not_before: now, backoff: waited };
    }
    if lasted > RESET_AFTER {
        return Next { attempt, not_before: now, backoff: initial };
    }
    let latest = now.checked_add(waited).unwrap_or(now);
    let not_before = ended.finished.checked_add(waited).unwrap_or(now).min(latest);
    let backoff = if waited.is_zero() { initial } else { waited.checked_mul(2).unwrap_or(max).min(max) };
    Next { attempt, not_before, backoff }
}

/// The run after `last`, when nothing is held against it: as the first restart of all.
#[must_use]
pub fn anew(last: &Instance, now: Timestamp, max: SignedDuration) -> Next {
    Next { attempt: last.attempt.saturating_add(1), not_before: now, backoff: INITIAL_BACKOFF.min(max) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Termination;

    pub(crate) fn ended(attempt: u32, backoff_ms: u64, created: i64, finished: i64, code: i32) -> Instance {
        let at = |s| Timestamp::from_second(s).unwrap();
        Instance {
            id: "id".into(),
            container: "c".into(),
            attempt,
            image: "i".into(),
            image_id: "sha256:0".into(),
            volume_images: Vec::new(),
            round: 0,
            backoff_ms,
            created: at(created),
            pid: 1,
            pid_start: 1,
            boot_id: "b".into(),
            started: Some(at(created)),
            terminated: Some(Termination {
                finished: at(finished),
                exit_code: code,
                signal: None,
                reason: if code == 0 { "Completed" } else { "Error" }.into(),
                message: String::new(),
            }),
            user: None,
            clock: None,
        }
    }

    #[test]
    fn back_off_doubles_from_ten_seconds_to_the_maximum() {
        let mut delays = Vec::new();
        let mut run = ended(0, 0, 1000, 1001, 1);
        for _ in 0..8 {
            let finished = run.terminated.as_ref().unwrap().finished;
            let next = next(&run, finished, MAX_BACKOFF);
            delays.push(next.not_before.duration_since(finished).as_secs());
            let at = next.not_before.as_second();
            run = ended(next.attempt, next.backoff.as_millis() as u64, at, at + 1, 1);
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_forgets_the_back_off() {
        let run = ended(7, 300_000, 1000, 1000 + 601, 1);
        let next = next(&run, Timestamp::from_second(1700).unwrap(), MAX_BACKOFF);
        assert_eq!((next.not_before.as_second(), next.backoff.as_secs()), (1700, 10));
    }

    #[test]
    fn a_clock_that_jumped_back_never_waits_longer_than_the_delay() {
        let run = ended(3, 40_000, 1_000_000, 1_000_001, 1);
        let next = next(&run, Timestamp::from_second(50).unwrap(), MAX_BACKOFF);
        assert_eq!(next.not_before.as_second(), 90);
    }

    #[test]
    fn policies() {
        let (good, bad) = (ended(0, 0, 1, 2, 0), ended(0, 0, 1, 2, 3));
        assert!(wanted(RestartPolicy::Always, &good) && wanted(RestartPolicy::Always, &bad));
        assert!(!wanted(RestartPolicy::OnFailure, &good) && wanted(RestartPolicy::OnFailure, &bad));
        assert!(!wanted(RestartPolicy::Never, &good) && !wanted(RestartPolicy::Never, &bad));
    }
}
