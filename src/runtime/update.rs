//! Takes over what was edited of a bound pod: its record says so from then on, and the volumes that show its labels and
//! annotations follow. Nothing restarts here: which containers start anew is seen from the record.

use super::{Error, Note, Runtime, chain};
use crate::pod::{Spec, adopted};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;

impl Runtime {
    /// Write down the edited pod, with the resources that it has (as only a resize changes those).
    ///
    /// # Errors
    /// When there is no record, or it cannot be written. Volumes that cannot be written are told of, no more: they are
    /// written again with the next edit or object that changes.
    pub(super) fn update(&self, wanted: &Spec) -> Result<Vec<Note>, Error> {
        let uid = wanted.uid();
        let mut record = self.record(uid)?.ok_or_else(|| Error::Missing(format!("the record of pod {uid}")))?;
        let edited = adopted(&record.pod, wanted.pod());
        let mut notes = Vec::new();
        for name in debuggers(&edited).difference(&debuggers(&record.pod)) {
            let text = format!("Ephemeral container {name} is not run: this node does not do that; use kubectl exec");
            notes.push(Note::warning("PodFeatureUnsupported", text));
        }
        record.pod = edited;
        self.save(&record)?;
        match crate::volume::refresh(&record.pod, &self.layout.volumes(uid), &self.given(&record.pod)) {
            // Whoever follows the pod's objects tells of what is missing.
            Err(error) if !error.is_missing() => notes.push(Note::warning("FailedMount", chain(&error))),
            _ => {}
        }
        Ok(notes)
    }
}

/// Ephemeral containers, by name.
fn debuggers(pod: &Pod) -> BTreeSet<&str> {
    let containers = pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    containers.map(|container| container.name.as_str()).collect()
}
