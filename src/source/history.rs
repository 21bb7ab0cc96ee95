//! What was accepted of each pod name: a bounded number of revisions, which of them runs, and why.
//!
//! Pure but for [`Shelf`], which has the records on disk.

use super::{Desired, SourceKind};
use crate::manifest::{Object, REVISION, rollback_after};
use crate::pod::Key;
use crate::store;
use crate::sys::fs::{create_dir_all, read_limited, sync_dir};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// This many revisions of a pod are kept (as kubectl of a Deployment).
pub const MAX_REVISIONS: usize = 10;
/// Revisions of one pod together take no more than this on disk, in bytes; the newest one and the one that runs are kept
/// whatever they take.
const MAX_BYTES: usize = 8 << 20;
/// No record is larger, in bytes: it holds [`MAX_BYTES`], or three manifests of the largest size.
const MAX_RECORD: u64 = 64 << 20;

/// What became of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "is")]
pub enum Verdict {
    /// It was not seen for long enough.
    #[default]
    Unknown,
    /// It was Ready and stayed so, or completed.
    Good,
    /// It was not Ready in its time, or failed.
    Bad {
        /// What was the matter.
        why: String,
    },
}

/// Who had an older revision run in place of the manifest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum By {
    /// A person.
    Hand,
    /// `coracle.dev/rollback-after`.
    Gate,
}

/// An older revision runs in place of the manifest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollback {
    /// Who wanted it.
    pub by: By,
    /// Why.
    pub why: String,
    /// Since when.
    pub at: Timestamp,
}

/// A pod as it was accepted once.
#[derive(Debug, Clone)]
pub struct Revision {
    /// Grows with each change of the manifest; a content that comes back gets a new one (as kubectl of a Deployment).
    pub number: u64,
    /// When it was accepted first, by the machine's clock.
    pub accepted: Timestamp,
    /// What tells its content: the pod's annotation [`REVISION`].
    pub content: String,
    /// Path or URL of the manifest.
    pub origin: String,
    /// What became of it.
    pub verdict: Verdict,
    body: Body,
}

/// Older revisions are text: as structures they would take the memory of an idle node many times over.
#[derive(Debug, Clone)]
enum Body {
    Pod(Arc<Pod>),
    Text(Arc<RawValue>),
}

impl Revision {
    /// The pod; `None` when the record holds none that can be read.
    #[must_use]
    pub fn pod(&self) -> Option<Arc<Pod>> {
        match &self.body {
            Body::Pod(pod) => Some(Arc::clone(pod)),
            Body::Text(text) => store::decode(text.get().as_bytes()).map(Arc::new).ok(),
        }
    }

    fn pack(&mut self) {
        if let Body::Pod(pod) = &self.body
            && let Ok(text) = serde_json::value::to_raw_value(&**pod)
        {
            self.body = Body::Text(Arc::from(text));
        }
    }

    fn unpack(&mut self) -> Option<Arc<Pod>> {
        let pod = self.pod()?;
        self.body = Body::Pod(Arc::clone(&pod));
        Some(pod)
    }
}

/// All that is known of a pod name.
#[derive(Debug, Clone)]
pub struct History {
    /// Namespace and full name.
    pub key: Key,
    /// Oldest first. The last one is what the manifest said when it was accepted last.
    revisions: Vec<Revision>,
    next: u64,
    /// Which one runs; `None`: no manifest names the pod any more.
    running: Option<u64>,
    rollback: Option<Rollback>,
    /// When the manifest went.
    removed: Option<Timestamp>,
    /// How often the agent started while the newest revision was being tried.
    starts: u32,
    /// What kind of source the manifest is in.
    kind: SourceKind,
}

impl History {
    /// Of a pod that was never accepted.
    #[must_use]
    pub(super) fn new(key: Key, kind: SourceKind) -> History {
        let (revisions, running, rollback, removed) = (Vec::new(), None, None, None);
        History { key, revisions, next: 1, running, rollback, removed, starts: 0, kind }
    }

    /// Oldest first.
    #[must_use]
    pub fn revisions(&self) -> &[Revision] {
        &self.revisions
    }

    /// The revision of that number.
    #[must_use]
    pub fn get(&self, number: u64) -> Option<&Revision> {
        self.revisions.iter().find(|revision| revision.number == number)
    }

    /// The number of the revision that runs.
    #[must_use]
    pub fn running(&self) -> Option<u64> {
        self.running
    }

    /// What the manifest said when it was accepted last.
    #[must_use]
    pub fn latest(&self) -> Option<&Revision> {
        self.revisions.last()
    }

    /// Why an older revision runs, if one does.
    #[must_use]
    pub fn rollback(&self) -> Option<&Rollback> {
        self.rollback.as_ref()
    }

    /// How often the agent started while the newest revision was being tried.
    #[must_use]
    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// When the manifest went, if it did.
    #[must_use]
    pub(super) fn removed(&self) -> Option<Timestamp> {
        self.removed
    }

    /// What kind of source the manifest is in.
    #[must_use]
    pub(super) fn kind(&self) -> SourceKind {
        self.kind
    }

    /// Where the manifest is that the pod runs from, or ran from.
    #[must_use]
    pub(super) fn owner(&self) -> Option<&str> {
        self.latest().map(|revision| revision.origin.as_str())
    }

    /// Whether the pod of this content runs, or would if it had not been rolled back: it needs not be accepted again.
    #[must_use]
    pub(super) fn has_accepted(&self, pod: &Pod) -> bool {
        self.running.is_some() && self.latest().is_some_and(|latest| latest.content == content(pod))
    }

    /// What would run if the newest revision failed: the newest good one before it.
    #[must_use]
    pub fn fallback(&self) -> Option<u64> {
        let (_, earlier) = self.revisions.split_last()?;
        earlier.iter().rev().find(|revision| revision.verdict == Verdict::Good).map(|revision| revision.number)
    }

    /// Whether the newest revision runs on trial: its pod says so, and nothing is known of it yet.
    #[must_use]
    pub fn is_tried(&self) -> bool {
        let Some(latest) = self.latest().filter(|latest| self.running == Some(latest.number)) else { return false };
        latest.verdict == Verdict::Unknown
            && latest.pod().is_some_and(|pod| matches!(rollback_after(&pod), Ok(Some(_))))
    }

    /// Takes over an accepted manifest: another content than before is a new revision, which runs. Tells whether
    /// anything changed that a record should say.
    pub(super) fn accept(&mut self, desired: &Desired, kind: SourceKind, now: Timestamp) -> bool {
        let content = content(&desired.pod);
        let back = self.running.is_none();
        self.kind = kind;
        if let Some(latest) = self.revisions.last_mut().filter(|latest| latest.content == content) {
            // The manifest was moved, or a newer agent reads it in another way.
            let same = |pod: Arc<Pod>| Arc::ptr_eq(&pod, &desired.pod) || pod == desired.pod;
            let moved = latest.origin != desired.origin || !latest.pod().is_some_and(same);
            latest.origin.clone_from(&desired.origin);
            latest.body = Body::Pod(Arc::clone(&desired.pod));
            if back {
                self.running = Some(latest.number);
                self.removed = None;
                // Whoever puts back what was rolled back wants it tried once more, not run untried.
                if matches!(latest.verdict, Verdict::Bad { .. }) {
                    latest.verdict = Verdict::Unknown;
                    self.starts = 0;
                }
            }
            return moved || back;
        }
        // The manifest says again what never stopped running, after a rollback: what is known of that holds.
        let runs_on = |r: &&Revision| Some(r.number) == self.running && r.content == content;
        let verdict = self.revisions.iter().find(runs_on).map(|revision| revision.verdict.clone()).unwrap_or_default();
        self.revisions.retain(|revision| revision.content != content);
        for revision in &mut self.revisions {
            revision.pack();
        }
        let body = Body::Pod(Arc::clone(&desired.pod));
        let origin = desired.origin.clone();
        self.revisions.push(Revision { number: self.next, accepted: now, content, origin, verdict, body });
        self.running = Some(self.next);
        self.next += 1;
        self.rollback = None;
        self.removed = None;
        self.starts = 0;
        self.trim();
        true
    }

    /// Makes room: the oldest go, but not what runs, nor what would be gone back to.
    fn trim(&mut self) {
        let fallback = self.fallback();
        while self.revisions.len() > MAX_REVISIONS {
            let (running, last) = (self.running, self.latest().map(|latest| latest.number));
            let spare = |r: &Revision| ![running, fallback, last].contains(&Some(r.number));
            let Some(oldest) = self.revisions.iter().position(spare) else { return };
            self.revisions.remove(oldest);
        }
    }

    /// The pod that runs and where its manifest is or was. A rollback to what cannot be read any more is none.
    pub(super) fn effective(&mut self) -> Option<Desired> {
        let number = self.running?;
        let found = self.revisions.iter_mut().find(|revision| revision.number == number);
        let found = found.and_then(|revision| Some((revision.unpack()?, revision.origin.clone())));
        if found.is_none() && self.rollback.take().is_some() {
            self.running = self.latest().map(|latest| latest.number);
            return self.effective();
        }
        found.map(|(pod, origin)| Desired { pod, origin })
    }

    /// Has an older revision run, or the newest again. Nothing happens without a revision of that number.
    pub(super) fn roll_back(&mut self, to: u64, by: By, why: String, now: Timestamp) {
        if self.get(to).is_none() {
            return;
        }
        let newest = self.latest().is_some_and(|latest| latest.number == to);
        self.running = Some(to);
        self.rollback = (!newest).then_some(Rollback { by, why, at: now });
        // By hand, it is tried once more.
        if newest && let Some(latest) = self.revisions.last_mut() {
            latest.verdict = Verdict::Unknown;
            self.starts = 0;
        }
    }

    /// What a person means who names no number: the revision before the one that runs, passing over bad ones where there
    /// are others.
    #[must_use]
    pub fn previous(&self) -> Option<u64> {
        let running = self.running?;
        let earlier = || self.revisions.iter().rev().filter(|revision| revision.number < running);
        let sound = earlier().find(|revision| !matches!(revision.verdict, Verdict::Bad { .. }));
        sound.or_else(|| earlier().next()).map(|revision| revision.number)
    }

    /// Notes what became of a revision.
    pub(super) fn judge(&mut self, number: u64, verdict: Verdict) -> bool {
        let found = self.revisions.iter_mut().find(|revision| revision.number == number);
        let Some(revision) = found.filter(|revision| revision.verdict != verdict) else { return false };
        revision.verdict = verdict;
        true
    }

    /// The agent starts: one more start within a trial. Tells whether there is one.
    pub(super) fn count_start(&mut self) -> bool {
        let tried = self.is_tried();
        self.starts += u32::from(tried);
        tried
    }

    /// No manifest names the pod any more.
    pub(super) fn remove(&mut self, now: Timestamp) {
        self.running = None;
        self.rollback = None;
        self.removed = Some(now);
        self.revisions.iter_mut().for_each(Revision::pack);
    }

    /// What a record says.
    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut revisions = Vec::with_capacity(self.revisions.len());
        for revision in &self.revisions {
            let pod = match &revision.body {
                Body::Pod(pod) => serde_json::value::to_raw_value(&**pod)?,
                Body::Text(text) => RawValue::from_string(text.get().to_owned())?,
            };
            revisions.push(RevisionRecord {
                number: revision.number,
                accepted: revision.accepted,
                content: revision.content.clone(),
                origin: revision.origin.clone(),
                verdict: revision.verdict.clone(),
                pod,
            });
        }
        let mut size: usize = revisions.iter().map(|revision| revision.pod.get().len()).sum();
        let keep = [self.running, self.fallback(), self.latest().map(|latest| latest.number)];
        revisions.retain(|revision| {
            let goes = size > MAX_BYTES && !keep.contains(&Some(revision.number));
            size -= if goes { revision.pod.get().len() } else { 0 };
            !goes
        });
        serde_json::to_vec(&Record {
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
            kind: self.kind,
            next: self.next,
            running: self.running,
            rollback: self.rollback.clone(),
            removed: self.removed,
            starts: self.starts,
            revisions,
        })
    }

    fn decode(bytes: &[u8]) -> serde_json::Result<History> {
        let record: Record = serde_json::from_slice(bytes)?;
        let mut revisions: Vec<Revision> = record
            .revisions
            .into_iter()
            .map(|r| Revision {
                number: r.number,
                accepted: r.accepted,
                content: r.content,
                origin: r.origin,
                verdict: r.verdict,
                body: Body::Text(Arc::from(r.pod)),
            })
            .collect();
        revisions.sort_by_key(|revision| revision.number);
        let known = |number: &u64| revisions.iter().any(|revision| revision.number == *number);
        let running = record.running.filter(known);
        let last = revisions.last().map_or(0, |revision| revision.number);
        Ok(History {
            key: Key { namespace: record.namespace, name: record.name },
            next: record.next.max(last.saturating_add(1)),
            rollback: record.rollback.filter(|_| running.is_some_and(|number| number != last)),
            running,
            removed: record.removed,
            starts: record.starts,
            kind: record.kind,
            revisions,
        })
    }
}

/// What tells a pod's content from that of another revision.
fn content(pod: &Pod) -> String {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(REVISION)).cloned().unwrap_or_default()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    namespace: String,
    name: String,
    kind: SourceKind,
    next: u64,
    running: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rollback: Option<Rollback>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    removed: Option<Timestamp>,
    #[serde(default)]
    starts: u32,
    revisions: Vec<RevisionRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RevisionRecord {
    number: u64,
    accepted: Timestamp,
    content: String,
    origin: String,
    #[serde(default)]
    verdict: Verdict,
    pod: Box<RawValue>,
}

/// An object that an accepted pod needs, or that may never change, as it was served last.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    pub(super) object: Object,
    /// Path or URL of the manifest that it was in.
    pub(super) origin: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptRecord<C, S> {
    origin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config_map: Option<C>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<S>,
}

/// The records on disk: `history/` has one per pod name, `kept/` one per object.
#[derive(Debug)]
pub(super) struct Shelf {
    folder: PathBuf,
}

/// A record that is to be written; without content, removed.
#[derive(Debug)]
pub(super) struct Writing {
    path: PathBuf,
    content: Option<Vec<u8>>,
}

impl Writing {
    /// Whether the record is removed.
    pub(super) fn removes(&self) -> bool {
        self.content.is_none()
    }

    /// Durable when this returns.
    pub(super) fn carry_out(&self) -> Result<(), store::Error> {
        let Some(content) = &self.content else { return store::delete(&self.path) };
        if let Some(folder) = self.path.parent().filter(|folder| !folder.is_dir()) {
            let made = create_dir_all(folder, 0o700).and_then(|()| sync_dir(folder.parent().unwrap_or(folder)));
            made.map_err(|source| store::Error::Write { path: folder.into(), source })?;
        }
        store::replace(&self.path, content, 0o600)
    }
}

impl Shelf {
    /// In this folder, which is made when it is first needed.
    pub(super) fn new(folder: PathBuf) -> Shelf {
        Shelf { folder }
    }

    /// All records that can be read. A damaged one is set aside with a log line: it costs the way back, never a pod.
    pub(super) fn load(&self) -> (Vec<History>, Vec<Kept>) {
        let histories = load(&self.folder.join("history"), History::decode);
        let kept = load(&self.folder.join("kept"), |bytes| {
            let record: KeptRecord<ConfigMap, Secret> = store::decode(bytes)?;
            let map = record.config_map.map(|map| Object::ConfigMap(Arc::new(map)));
            let object = map.or_else(|| record.secret.map(|secret| Object::Secret(Arc::new(secret))));
            Ok(object.map(|object| Kept { object, origin: record.origin }))
        });
        (histories, kept.into_iter().flatten().collect())
    }

    /// The record of a pod name.
    pub(super) fn history(&self, key: &Key, history: Option<&History>) -> serde_json::Result<Writing> {
        let content = history.map(History::encode).transpose()?;
        Ok(Writing { path: self.path("history", &format!("{key}")), content })
    }

    /// The record of an object.
    pub(super) fn kept(&self, id: &str, kept: Option<&Kept>) -> serde_json::Result<Writing> {
        let encode = |kept: &Kept| {
            let (config_map, secret) = match &kept.object {
                Object::ConfigMap(map) => (Some(&**map), None),
                Object::Secret(secret) => (None, Some(&**secret)),
            };
            serde_json::to_vec(&KeptRecord { origin: kept.origin.clone(), config_map, secret })
        };
        Ok(Writing { path: self.path("kept", id), content: kept.map(encode).transpose()? })
    }

    /// Names may be longer together than a file's may be.
    fn path(&self, folder: &str, name: &str) -> PathBuf {
        let digest: String = Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(folder).join(format!("{digest}.json"))
    }
}

fn load<T>(folder: &Path, decode: impl Fn(&[u8]) -> serde_json::Result<T>) -> Vec<T> {
    let paths = match store::list(folder) {
        Ok(paths) => paths,
        Err(error) => {
            tracing::warn!("the history of pods cannot be read: {}", crate::causes::chain(&error));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for path in paths {
        let read = read_limited(&path, MAX_RECORD);
        match read.and_then(|bytes| decode(&bytes).map_err(io::Error::from)) {
            Ok(record) => found.push(record),
            Err(error) => {
                tracing::warn!(record = %path.display(), %error, "a damaged record of a pod's history is set aside");
                if let Err(error) = fs::rename(&path, path.with_extension("damaged")) {
                    tracing::warn!(record = %path.display(), %error, "it cannot be moved away");
                }
            }
        }
    }
    found
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
