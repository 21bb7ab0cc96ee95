//! What the API server is to be told of one pod next, and when.

use super::Bound;
use super::mirror_copy::hash;
use super::pods::MIRROR;
use super::status_end::{ended, is_terminal};
use super::status_patch::patch;
use crate::pod::{Key, is_from_api};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// First pause after a request that came to nothing; it doubles.
const PAUSE: SignedDuration = SignedDuration::from_millis(250);
/// The longest one while nobody answers: who comes back should hear at once how things are.
const MAX_UNREACHABLE: SignedDuration = SignedDuration::from_secs(4);
/// The longest one for what is refused.
const MAX_REFUSED: SignedDuration = SignedDuration::from_secs(10);
/// What the API server took without keeping it is told again after so long.
const AGAIN: SignedDuration = SignedDuration::from_mins(5);

/// A request about one pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Work {
    /// Its status is another one.
    Patch {
        /// What differs.
        body: Value,
        /// All of it.
        report: Arc<Pod>,
    },
    /// It is over and was to go: its object can go.
    Delete,
}

/// What the node says of its pods.
pub(super) struct Said {
    by_uid: BTreeMap<String, Arc<Pod>>,
    statics: BTreeMap<Key, Arc<Pod>>,
}

impl Said {
    /// By the node's reports.
    pub(super) fn new(reports: Vec<Arc<Pod>>) -> Said {
        let (bound, statics): (Vec<_>, Vec<_>) = reports.into_iter().partition(|pod| is_from_api(pod));
        let uid = |pod: &Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
        Said {
            by_uid: bound.into_iter().map(|pod| (uid(&pod), pod)).collect(),
            statics: statics.into_iter().map(|pod| (Key::of(&pod), pod)).collect(),
        }
    }

    /// The report of a pod of the API server.
    pub(super) fn of(&self, theirs: &Pod) -> Option<&Arc<Pod>> {
        if is_mirror(theirs) {
            return self.statics.get(&Key::of(theirs)).filter(|pod| hash(pod).is_some() && hash(pod) == hash(theirs));
        }
        self.by_uid.get(theirs.metadata.uid.as_deref()?)
    }
}

/// Whether it shows a static pod.
pub(super) fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR))
}

/// What is on the machine of a pod without a report.
pub(super) enum Rest {
    /// Something, or it is not decided yet.
    Some,
    /// Nothing: the last report, if any is known.
    None(Option<Arc<Pod>>),
}

/// What is to be told of a pod of the API server now; `rest` is asked only for those that are not reported. `rejected` is what
/// the API server took last without keeping it.
pub(super) fn work(
    theirs: &Pod,
    said: &Said,
    rest: impl FnOnce() -> Rest,
    rejected: Option<&Value>,
    now: Timestamp,
) -> Option<Work> {
    let news = |report: &Arc<Pod>| {
        let body = patch(report, theirs).filter(|patch| Some(patch) != rejected)?;
        Some(Work::Patch { body, report: Arc::clone(report) })
    };
    if let Some(report) = said.of(theirs) {
        return news(report);
    }
    if is_mirror(theirs) {
        return None;
    }
    let leaves = theirs.metadata.deletion_timestamp.is_some();
    let last = match rest() {
        Rest::Some => return None,
        Rest::None(last) => last,
    };
    let last = match last {
        Some(last) => ended(&last, theirs, now),
        // It is there to be started, or never was.
        None if !leaves => return None,
        None => ended(theirs, theirs, now),
    };
    if let Some(work) = news(&Arc::new(last)) {
        return Some(work);
    }
    (leaves && is_terminal(theirs)).then_some(Work::Delete)
}

/// Whether the node has seen that this pod is to go, and acted on it.
pub(super) fn is_decided(bound: &Bound, acted_on: u64, uid: &str) -> bool {
    let leaves = |pod: &&Arc<Pod>| pod.metadata.deletion_timestamp.is_some();
    let told = bound.pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(uid)).filter(leaves);
    told.is_some() && acted_on >= bound.generation
}

/// What is remembered of a pod while it is in the API.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// A request is under way.
    pub(super) busy: bool,
    /// What the API server answered last, while the watch has not caught up.
    pub(super) answer: Option<Arc<Pod>>,
    /// A patch that it took without keeping it, and until when that counts.
    rejected: Option<(Value, Timestamp)>,
    failures: u32,
    retry: Option<Timestamp>,
    /// What was logged of failures.
    pub(super) told: Option<String>,
}

impl Line {
    /// The newer one of what the watch shows and what was answered.
    pub(super) fn newest(&mut self, shown: &Arc<Pod>) -> Arc<Pod> {
        let version =
            |pod: &Pod| pod.metadata.resource_version.as_ref().and_then(|version| version.parse::<u64>().ok());
        match &self.answer {
            Some(answer) if version(answer) > version(shown) => Arc::clone(answer),
            _ => {
                self.answer = None;
                Arc::clone(shown)
            }
        }
    }

    /// What is not to be sent again.
    pub(super) fn rejected(&self, now: Timestamp) -> Option<&Value> {
        self.rejected.as_ref().filter(|(_, until)| *until > now).map(|(patch, _)| patch)
    }

    /// Until when nothing is to be sent.
    pub(super) fn retry(&self) -> Option<Timestamp> {
        self.retry
    }

    /// The API server answered: what it has now. What a report still differs in it does not keep.
    pub(super) fn succeeded(&mut self, answer: Option<Arc<Pod>>, report: Option<&Pod>, now: Timestamp) {
        let left = answer.as_deref().zip(report).and_then(|(theirs, report)| patch(report, theirs));
        self.rejected = left.map(|patch| (patch, now.checked_add(AGAIN).unwrap_or(now)));
        self.answer = answer;
        (self.failures, self.retry, self.told) = (0, None, None);
    }

    /// It did not, or said no; `asked`: not before so long.
    pub(super) fn failed(&mut self, reachable: bool, asked: Option<SignedDuration>, now: Timestamp) {
        let most = if reachable { MAX_REFUSED } else { MAX_UNREACHABLE };
        let pause = PAUSE.saturating_mul(1 << self.failures.min(10)).min(most);
        self.failures = self.failures.saturating_add(1);
        self.retry = now.checked_add(pause.max(asked.unwrap_or_default())).ok();
    }
}

#[cfg(test)]
#[path = "status_work_tests.rs"]
mod tests;
