//! The bound pods on disk: what a start without an API server goes by.

use super::record::Records;
use crate::causes::chain;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// One record per bound pod, named by its UID.
#[derive(Debug)]
pub(super) struct Kept {
    records: Records,
    /// What is on the disk: a digest of each record.
    written: BTreeMap<String, [u8; 32]>,
    /// Whether the disk does not take records, and people know.
    told: bool,
}

/// What [`Kept::keep`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Whether any pod is another one than before, as far as records tell.
    pub(super) changed: bool,
    /// New pods that the disk did not take: they do not count yet.
    pub(super) unwritten: BTreeSet<String>,
}

impl Kept {
    /// What is known from before, and whether that is all.
    pub(super) fn open(folder: PathBuf) -> (Kept, Vec<Arc<Pod>>, bool) {
        let records = Records::new(folder);
        let loaded = records.load_all::<Pod>();
        let written = loaded.values.iter().map(|(uid, pod)| (uid.clone(), digest(pod))).collect();
        let pods = loaded.values.into_values().map(Arc::new).collect();
        (Kept { records, written, told: false }, pods, loaded.complete)
    }

    /// These are bound now, and no others; waits for the disk.
    pub(super) fn keep(&mut self, pods: &BTreeMap<String, Arc<Pod>>) -> Change {
        let mut result = Change::default();
        let mut failed = self.records.prepare().err();
        for (uid, pod) in pods {
            let record = essence(pod);
            let digest = digest(&record);
            if self.written.get(uid) == Some(&digest) {
                continue;
            }
            result.changed = true;
            match self.records.write(uid, &record) {
                Ok(()) => drop(self.written.insert(uid.clone(), digest)),
                Err(error) => {
                    failed = Some(error);
                    // The old record of a known pod says enough to manage it.
                    if !self.written.contains_key(uid) {
                        result.unwritten.insert(uid.clone());
                    }
                }
            }
        }
        let gone: Vec<String> = self.written.keys().filter(|uid| !pods.contains_key(*uid)).cloned().collect();
        for uid in gone {
            result.changed = true;
            // What is left of it on the disk is removed at the next change.
            match self.records.remove(&uid) {
                Ok(()) => drop(self.written.remove(&uid)),
                Err(error) => failed = Some(error),
            }
        }
        match &failed {
            Some(error) if !self.told => tracing::warn!(error = chain(error), "bound pods cannot be written down"),
            Some(_) => {}
            None => self.records.settle(),
        }
        self.told = failed.is_some();
        result
    }
}

/// What has to be known of a pod to manage it: its status only as far as others wrote it, or it says that the pod is over.
/// What the node itself reports changes all the time, and a flash disk wears out.
fn essence(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    (pod.metadata.managed_fields, pod.metadata.resource_version) = (None, None);
    let gates: BTreeSet<String> = pod
        .spec
        .iter()
        .flat_map(|s| s.readiness_gates.iter().flatten())
        .map(|gate| gate.condition_type.clone())
        .collect();
    pod.status = pod.status.map(|status| {
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let conditions = status.conditions.unwrap_or_default().into_iter().filter(|c| gates.contains(&c.type_));
        let conditions: Vec<_> = conditions.collect();
        PodStatus {
            phase: status.phase.filter(|_| over),
            reason: status.reason.filter(|_| over),
            message: status.message.filter(|_| over),
            conditions: Some(conditions).filter(|all| !all.is_empty()),
            ..PodStatus::default()
        }
    });
    pod
}

fn digest(pod: &Pod) -> [u8; 32] {
    // Text from the API always is JSON; a pod that was not would be written each time.
    Sha256::digest(serde_json::to_vec(pod).unwrap_or_default()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(uid: &str, status: Value) -> (String, Arc<Pod>) {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": uid, "resourceVersion": "7", "managedFields": [{}]},
            "spec": {"containers": [{"name": "c"}], "readinessGates": [{"conditionType": "lb"}]},
            "status": status
        });
        (uid.to_owned(), Arc::new(serde_json::from_value(pod).expect("pod")))
    }

    #[test]
    fn what_the_node_itself_reports_is_not_written_down() {
        let folder = std::env::temp_dir().join(format!("coracle-kept-{}", std::process::id()));
        crate::sys::fs::remove_tree(&folder).expect("no folder");
        let (mut kept, found, complete) = Kept::open(folder.clone());
        assert!(found.is_empty() && !complete);
        let mut keep = |pods: &[(String, Arc<Pod>)]| {
            let found = kept.keep(&pods.iter().cloned().collect());
            assert!(found.unwritten.is_empty());
            found.changed
        };
        assert!(keep(&[pod("a", json!({})), pod("b", json!({}))]));
        assert!(!keep(&[pod("a", json!({"phase": "Running", "podIP": "10.0.0.1"})), pod("b", json!({}))]));
        let gate = json!({"conditions": [{"type": "lb", "status": "True"}, {"type": "Ready", "status": "True"}]});
        assert!(keep(&[pod("a", gate.clone()), pod("b", json!({}))]));
        assert!(keep(&[pod("a", gate), pod("b", json!({"phase": "Failed", "reason": "Evicted"}))]));
        let (mut kept, found, complete) = Kept::open(folder.clone());
        assert!(complete);
        let status = |pod: &Pod| serde_json::to_value(&pod.status).expect("JSON");
        assert_eq!(status(&found[0]), json!({"conditions": [{"type": "lb", "status": "True"}]}));
        assert_eq!(status(&found[1]), json!({"phase": "Failed", "reason": "Evicted"}));
        assert_eq!(kept.keep(&BTreeMap::from([pod("b", json!({"phase": "Failed", "reason": "Evicted"}))])), {
            Change { changed: true, ..Change::default() }
        });
        assert_eq!(Kept::open(folder.clone()).1.len(), 1);
        crate::sys::fs::remove_tree(&folder).expect("clean");
    }

    #[test]
    fn a_pod_that_the_disk_does_not_take_does_not_count() {
        let file = std::env::temp_dir().join(format!("coracle-kept-file-{}", std::process::id()));
        std::fs::write(&file, "no folder").expect("file");
        let (mut kept, ..) = Kept::open(file.join("pods"));
        let found = kept.keep(&BTreeMap::from([pod("a", json!({}))]));
        assert_eq!(found, Change { changed: true, unwritten: ["a".to_owned()].into() });
        std::fs::remove_file(&file).expect("clean");
        let found = kept.keep(&BTreeMap::from([pod("a", json!({}))]));
        assert_eq!(found, Change { changed: true, ..Change::default() });
        crate::sys::fs::remove_tree(&file).expect("clean");
    }
}
