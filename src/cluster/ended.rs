//! How pods of the cluster ended of which nothing is left on the machine, until the API server knows it.

use super::record::Records;
use crate::causes::chain;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The last reports of such pods, by UID. A pod that is here never runs again. They outlive the agent.
#[derive(Debug, Clone)]
pub struct Ended(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    records: Records,
    reports: Mutex<BTreeMap<String, Arc<Pod>>>,
    /// Held while the disk is brought in line, so that the last word is the one that stays.
    disk: Mutex<()>,
}

impl Ended {
    /// What is known from before.
    pub(super) fn open(folder: PathBuf) -> Ended {
        let records = Records::new(folder);
        let reports = records.load_all::<Pod>().values.into_iter().map(|(uid, pod)| (uid, Arc::new(pod))).collect();
        Ended(Arc::new(Inner { records, reports: Mutex::new(reports), disk: Mutex::default() }))
    }

    /// The last report of a pod.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.0.reports.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Whether the pod has ended.
    #[must_use]
    pub fn has(&self, uid: &str) -> bool {
        self.get(uid).is_some()
    }

    /// This is how a pod ended. One that has no UID is none of the cluster's.
    pub fn insert(&self, report: Arc<Pod>) {
        let Some(uid) = report.metadata.uid.clone() else { return };
        self.0.reports.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone(), report);
        self.write(vec![uid]);
    }

    /// Nobody asks any more for those of which `known` is false.
    pub fn retain(&self, known: impl Fn(&str) -> bool) {
        let mut gone = Vec::new();
        self.0.reports.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| {
            let stays = known(uid);
            if !stays {
                gone.push(uid.clone());
            }
            stays
        });
        if !gone.is_empty() {
            self.write(gone);
        }
    }

    /// Brings the disk in line, in the background: a crash before that costs the details of an end.
    fn write(&self, uids: Vec<String>) {
        let inner = Arc::clone(&self.0);
        let job = move || {
            let _turn = inner.disk.lock().unwrap_or_else(PoisonError::into_inner);
            for uid in uids {
                let report = inner.reports.lock().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned();
                let written = match report {
                    Some(report) => inner.records.write(&uid, &*report),
                    None => inner.records.remove(&uid),
                };
                if let Err(error) = written {
                    tracing::warn!(uid, error = chain(&error), "how the pod ended cannot be written down");
                }
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(executor) => drop(executor.spawn_blocking(job)),
            Err(_) => job(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_outlive_the_agent_until_nobody_asks() {
        let folder = std::env::temp_dir().join(format!("coracle-ended-{}", std::process::id()));
        crate::sys::fs::remove_tree(&folder).expect("no folder");
        let pod = |uid: &str| {
            let mut pod = Pod::default();
            pod.metadata.uid = Some(uid.to_owned());
            Arc::new(pod)
        };
        let ended = Ended::open(folder.clone());
        ended.insert(pod("a"));
        ended.insert(pod("b"));
        let next = Ended::open(folder.clone());
        assert!(next.has("a") && next.has("b") && !next.has("c"));
        next.retain(|uid| uid == "b");
        assert!(!next.has("a"));
        let last = Ended::open(folder.clone());
        assert_eq!((last.has("a"), last.get("b")), (false, Some(pod("b"))));
        crate::sys::fs::remove_tree(&folder).expect("clean");
    }
}
