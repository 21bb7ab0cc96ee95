//! What is on the machine: records, shims.

use super::{Error, Runtime, message};
use crate::pod::clock::Seen;
use crate::pod::{Instance, Key, Observed, Present, Record, Sandbox, Spec};
use crate::store;
use crate::sys::clock;
use std::collections::BTreeMap;

impl Runtime {
    /// All pods that have a record, by name; whatever else is left of pods that are no more is removed.
    ///
    /// # Errors
    /// When the pods' folder cannot be read.
    pub fn scan(&self) -> Result<BTreeMap<Key, String>, Error> {
        let pods = self.layout.pods();
        let listed = |source| Error::File { what: "list", path: pods.clone(), source };
        let mut found: BTreeMap<Key, String> = BTreeMap::new();
        let mut live = Vec::new();
        for entry in std::fs::read_dir(&pods).map_err(listed)? {
            let uid = entry.map_err(listed)?.file_name().to_string_lossy().into_owned();
            match self.record(&uid) {
                Ok(Some(record)) => {
                    let key = Key::of(&record.pod);
                    live.push(uid.clone());
                    if let Some(first) = found.get(&key) {
                        tracing::warn!(pod = %key, uid = first, other = uid, "two pods of one name; the other is removed");
                        self.clear(&uid);
                    } else {
                        found.insert(key, uid);
                    }
                }
                Ok(None) => tracing::debug!(uid, "a pod folder without a record: kept for the pod of this uid"),
                Err(error) => tracing::warn!(uid, error = error.chain(), "a damaged pod record is set aside"),
            }
        }
        self.sweep(&live);
        Ok(found)
    }

    /// The recorded pod of this uid.
    #[must_use]
    pub fn recorded(&self, uid: &str) -> Option<Spec> {
        Spec::new(self.record(uid).ok()??.pod)
    }

    /// A pod's record, or its copy when it is damaged. Without either, its containers' records tell the rest.
    pub(super) fn record(&self, uid: &str) -> Result<Option<Record>, Error> {
        let own = |record: &Record| record.pod.metadata.uid.as_deref() == Some(uid);
        let copy = || match store::read::<Record>(&self.layout.record_copy(uid)) {
            Ok(Some(record)) if own(&record) => Some(recalled(record)),
            _ => None,
        };
        match store::read::<Record>(&self.layout.record(uid)) {
            Ok(Some(record)) => Ok(Some(record).filter(own).map(recalled)),
            // On a full disk the copy is all there is.
            Ok(None) => Ok(copy()),
            Err(error) => match copy() {
                Some(record) => {
                    tracing::warn!(error = super::chain(&error), "a damaged pod record is replaced by its copy");
                    Ok(Some(record))
                }
                None => Err(error.into()),
            },
        }
    }

    /// Look at the pod `uid`.
    #[must_use]
    pub fn observe(&self, uid: Option<&str>) -> Observed {
        Observed { present: uid.and_then(|uid| self.present(uid)), ..Observed::default() }
    }

    fn present(&self, uid: &str) -> Option<Present> {
        let record = match self.record(uid) {
            Ok(record) => record?,
            Err(error) => {
                tracing::warn!(error = error.chain(), "the pod's record is damaged; it is written anew");
                return None;
            }
        };
        let spec = Spec::new(record.pod.clone())?;
        let sandbox = match &record.sandbox {
            None => Sandbox::Absent,
            Some(s) if s.boot_id != self.machine.boot_id => Sandbox::Broken("the machine was restarted".into()),
            Some(_) => match self.shim(uid) {
                Some(_) => Sandbox::Ready,
                None => Sandbox::Broken("the pod's shim is gone".into()),
            },
        };
        let mut containers = BTreeMap::new();
        let mut progress = BTreeMap::new();
        for container in spec.all_containers() {
            let mut runs = self.instances(uid, &container.name);
            self.complete_messages(&spec, container, &mut runs);
            for run in runs.iter().rev().take(2) {
                if let Some(done) = self.progress(uid, run) {
                    progress.insert(run.id.clone(), done);
                }
            }
            if !runs.is_empty() {
                containers.insert(container.name.clone(), runs);
            }
        }
        Some(Present { spec, record, sandbox, containers, progress })
    }

    /// The recorded runs of a container, oldest first, with their termination messages.
    pub(super) fn instances(&self, uid: &str, container: &str) -> Vec<Instance> {
        let dir = self.layout.container(uid, container);
        let Ok(entries) = std::fs::read_dir(&dir) else { return Vec::new() };
        let mut runs = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let attempt = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u32>().ok());
            if attempt.is_none() || path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match store::read::<Instance>(&path) {
                Ok(Some(run)) => {
                    let mut run = clock::recall(run);
                    message::add_file(&dir.join(format!("{}.message", run.attempt)), &mut run);
                    runs.push(run);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(error = super::chain(&error), "a damaged record of a run is ignored"),
            }
        }
        runs.sort_by_key(|r| r.attempt);
        runs
    }
}

/// A record as it was read, by this process' time.
fn recalled(record: Record) -> Record {
    let mut record = clock::recall(record);
    let start_time = record.start_time;
    let seen = record.seen.get_or_insert_with(|| Seen { at: start_time, clock: clock::present() });
    record.start_time = clock::recall_seen(seen);
    record
}
