//! What has to be done so that the API server shows the static pods as they are.

use super::mirror_copy::{HASH, LOCAL, SEEN, WRITER, hash};
use super::pods::MIRROR;
use crate::manifest::REVISION;
use crate::pod::{Key, is_from_api};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A mirror pod is replaced so often without a pause: by hand, that is.
const FREE: u32 = 5;
/// The first pause before a mirror pod is replaced again; it doubles.
const PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// The longest one.
const MAX_PAUSE: SignedDuration = SignedDuration::from_secs(60);
/// After this time of peace all is forgotten.
const PEACE: SignedDuration = SignedDuration::from_mins(5);

/// One step for one name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    /// The mirror pod of this UID is to go first.
    pub(super) delete: Option<String>,
    /// Why, for the log.
    pub(super) why: &'static str,
    /// Then this static pod gets a new one.
    pub(super) create: Option<Arc<Pod>>,
}

/// What to do, by name. `reports` are all the node's reports, `mirrors` its mirror pods as the API server has them;
/// `spoken`: no source can name any further pod.
pub(super) fn steps(reports: &[Arc<Pod>], mirrors: &[Arc<Pod>], node: &Node, spoken: bool) -> BTreeMap<Key, Step> {
    let mut steps = BTreeMap::new();
    // Nothing may be made under a Node that goes, and what is there goes with it.
    if node.metadata.deletion_timestamp.is_some() {
        return steps;
    }
    let statics: BTreeMap<Key, &Arc<Pod>> =
        reports.iter().filter(|pod| !is_from_api(pod) && hash(pod).is_some()).map(|pod| (Key::of(pod), pod)).collect();
    let mut shown = BTreeSet::new();
    for mirror in mirrors {
        let key = Key::of(mirror);
        let uid = mirror.metadata.uid.clone().unwrap_or_default();
        let (create, why) = match statics.get(&key) {
            Some(pod) => match fault(pod, mirror, node) {
                None => {
                    shown.insert(key);
                    continue;
                }
                // What goes is shown until it is gone, but not anew.
                Some(why) => (Some(Arc::clone(pod)).filter(|pod| pod.metadata.deletion_timestamp.is_none()), why),
            },
            None if spoken => (None, "there is no such static pod"),
            None => {
                shown.insert(key);
                continue;
            }
        };
        steps.insert(key, Step { delete: Some(uid), why, create });
    }
    for (key, pod) in statics {
        let leaves = pod.metadata.deletion_timestamp.is_some();
        if !leaves && !shown.contains(&key) && !steps.contains_key(&key) {
            steps.insert(key, Step { delete: None, why: "", create: Some(Arc::clone(pod)) });
        }
    }
    steps
}

/// What is wrong with a mirror pod.
fn fault(pod: &Pod, mirror: &Pod, node: &Node) -> Option<&'static str> {
    if hash(pod) != annotation(mirror, MIRROR) || hash(pod) != hash(mirror) {
        return Some("it shows an earlier version of the pod");
    }
    if annotation(pod, REVISION) != annotation(mirror, REVISION) {
        return Some("it shows an earlier version of the pod");
    }
    if mirror.metadata.deletion_timestamp.is_some() {
        return Some("it was deleted");
    }
    let owners = mirror.metadata.owner_references.as_deref().unwrap_or_default();
    if !matches!(owners, [owner] if owner.kind == "Node" && Some(&owner.uid) == node.metadata.uid.as_ref()) {
        return Some("it belongs to an earlier Node");
    }
    if is_edited(pod, mirror) {
        return Some("somebody edited it");
    }
    if has_ended(mirror) && !has_ended(pod) {
        // No pod of the API leaves a terminal phase.
        return Some("the pod runs again");
    }
    None
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether somebody changed what the node wrote. What admission adds at the creation is no edit.
fn is_edited(pod: &Pod, mirror: &Pod) -> bool {
    // As the API server counts: it grows with each change of the spec.
    if mirror.metadata.generation.is_some_and(|generation| generation > 1) {
        return true;
    }
    let kept = |ours: &Option<BTreeMap<String, String>>, theirs: &Option<BTreeMap<String, String>>| {
        let theirs = theirs.as_ref();
        ours.iter().flatten().all(|(name, value)| theirs.and_then(|all| all.get(name)) == Some(value))
    };
    // What is told differently at each creation is nobody's edit.
    let told = |name: &str| [HASH, SEEN, LOCAL, MIRROR].contains(&name);
    let annotations = pod.metadata.annotations.clone().map(|mut all| {
        all.retain(|name, _| !told(name));
        all
    });
    if !kept(&pod.metadata.labels, &mirror.metadata.labels) || !kept(&annotations, &mirror.metadata.annotations) {
        return true;
    }
    // What was added tells itself by its writer.
    mirror.metadata.managed_fields.iter().flatten().any(|entry| {
        let whole = entry.subresource.as_deref().unwrap_or_default().is_empty();
        whole && entry.manager.as_deref().is_some_and(|manager| manager != WRITER) && touches_meta(entry)
    })
}

/// Whether an entry is about labels, annotations or the spec; owners and finalizers are the API's own business.
fn touches_meta(entry: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry) -> bool {
    let Some(fields) = &entry.fields_v1 else { return false };
    let meta = &fields.0["f:metadata"];
    !meta["f:labels"].is_null() || !meta["f:annotations"].is_null() || !fields.0["f:spec"].is_null()
}

/// How often a mirror pod was replaced, and when it may be again: two who each undo what the other does get slower.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    count: u32,
    last: Option<Timestamp>,
}

impl Pace {
    /// When it may be replaced (again).
    pub(super) fn next(&self, now: Timestamp) -> Timestamp {
        let Some(last) = self.last else { return now };
        let pause = match self.count.checked_sub(FREE) {
            None => SignedDuration::ZERO,
            Some(more) => PAUSE.saturating_mul(1 << more.min(10)).min(MAX_PAUSE),
        };
        last.checked_add(pause).unwrap_or(now)
    }

    /// Whether what happened to it still matters.
    pub(super) fn counts(&self, now: Timestamp) -> bool {
        self.last.is_some_and(|last| now.duration_since(last) <= PEACE)
    }

    /// It is replaced now.
    pub(super) fn replaced(&mut self, now: Timestamp) {
        if !self.counts(now) {
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.last = Some(now);
    }
}

#[cfg(test)]
#[path = "mirror_plan_tests.rs"]
mod tests;
