//! `activeDeadlineSeconds`.

use super::Present;
use jiff::{SignedDuration, Timestamp};

/// Status reason of a pod that ran too long.
pub(super) const REASON: &str = "DeadlineExceeded";
/// Its message (as kubelet).
pub(super) const MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

/// When the pod is over; `None` when it may run for ever. Counts from `status.startTime`; a clock that jumped back
/// only makes it later.
pub(super) fn of(have: &Present) -> Option<Timestamp> {
    let seconds = have.spec.spec().active_deadline_seconds?;
    have.record.start_time.checked_add(SignedDuration::from_secs(seconds)).ok()
}
