//! Which of the wanted pods this node takes. What runs already is never refused; a refused pod is reported as Failed and
//! tried again whenever the wanted pods change, or one has left.

use super::events::{Note, pod_reference};
use super::node::Shared;
use crate::bundle::profile::apparmor_rejection;
use crate::pod::admission::{NodeView, Rejection, admit, admit_resize};
use crate::pod::status::{self, NodeFacts};
use crate::pod::{Key, RefusedResize, Spec, is_resize, resources};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The pods that the node has taken, and those that it has refused.
#[derive(Debug, Default)]
pub struct Gate {
    /// The pod that runs, or is to run, under each name.
    taken: BTreeMap<Key, Arc<Spec>>,
    refused: BTreeMap<Key, (Arc<Spec>, Rejection)>,
    /// Whether a bound pod waits for others that have to make room for it.
    waiting: bool,
}

impl Gate {
    /// With the pods that are on the machine already.
    #[must_use]
    pub fn new(present: BTreeMap<Key, Arc<Spec>>) -> Gate {
        Gate { taken: present, refused: BTreeMap::new(), waiting: false }
    }

    /// Whether the node has taken this very pod.
    #[must_use]
    pub fn has(&self, spec: &Spec) -> bool {
        self.taken.get(&spec.key()).is_some_and(|taken| same(taken, spec))
    }

    /// Whether this pod runs here with other resources.
    #[must_use]
    pub fn is_resize(&self, spec: &Spec) -> bool {
        self.taken.get(&spec.key()).is_some_and(|taken| is_resize(taken, spec))
    }

    /// The pod that runs, or is to run, under this name.
    #[must_use]
    pub fn taken(&self, key: &Key) -> Option<&Arc<Spec>> {
        self.taken.get(key)
    }

    /// Whether any pod waits for room.
    #[must_use]
    pub fn refuses_any(&self) -> bool {
        !self.refused.is_empty() || self.waiting
    }

    /// Whether a bound pod waits for others to make room.
    pub fn set_waiting(&mut self, waiting: bool) {
        self.waiting = waiting;
    }

    /// The other pods that use what the node has.
    #[must_use]
    pub fn others<'a>(&'a self, key: &Key, shared: &'a Shared) -> Vec<&'a Arc<Spec>> {
        self.active(shared).filter(|(other, _)| *other != key).map(|(_, spec)| spec).collect()
    }

    /// A pod is to go, or has gone: it does not count any more.
    pub fn release(&mut self, key: &Key) {
        self.taken.remove(key);
    }

    /// Of the refused pods, those whose names nobody wants any more.
    pub fn forget_refused(&mut self, wanted: &BTreeSet<Key>) -> Vec<Key> {
        let gone: Vec<Key> = self.refused.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for key in &gone {
            self.refused.remove(key);
        }
        gone
    }

    /// A pod that was taken is wanted as it is: what was refused under its name is not wanted any more. Tells whether
    /// anything was.
    pub fn withdraw(&mut self, key: &Key, shared: &Shared) -> bool {
        shared.refuse_resize(key, None);
        self.refused.remove(key).is_some()
    }

    /// Ask for room for a bound pod, as [`Gate::ask`]; nothing is remembered of a refusal, which is for good. One that was
    /// taken stays so, whatever is edited.
    ///
    /// # Errors
    /// Why there is none.
    pub fn judge(&mut self, spec: &Arc<Spec>, shared: &Shared, node: &NodeView) -> Result<(), Rejection> {
        let key = spec.key();
        if self.taken.get(&key).is_none_or(|taken| taken.uid() != spec.uid()) {
            let others: Vec<&Pod> = self.active(shared).filter(|(k, _)| **k != key).map(|(_, s)| s.pod()).collect();
            admit(spec.pod(), &others, node)?;
            apparmor_rejection(spec.pod(), shared.runtime.machine().apparmor).map_or(Ok(()), Err)?;
        }
        self.refused.remove(&key);
        shared.refuse_resize(&key, None);
        self.taken.insert(key, Arc::clone(spec));
        Ok(())
    }

    /// Ask for room for a pod beside all others that have not finished; the one of the same name, which it would
    /// replace, does not count. Tells of a refusal once.
    pub fn ask(&mut self, spec: &Arc<Spec>, shared: &Shared, node: &NodeView, now: Timestamp) -> bool {
        let key = spec.key();
        let others: Vec<&Pod> = self.active(shared).filter(|(k, _)| **k != key).map(|(_, s)| s.pod()).collect();
        let apparmor = shared.runtime.machine().apparmor;
        let profile = || apparmor_rejection(spec.pod(), apparmor).map_or(Ok(()), Err);
        match admit(spec.pod(), &others, node).and_then(|()| profile()) {
            Ok(()) => {
                // What was reported of it says Failed, which would read as finished.
                if self.refused.remove(&key).is_some() && !self.taken.contains_key(&key) {
                    shared.publish(&key, Some(waiting(spec)));
                }
                shared.refuse_resize(&key, None);
                self.taken.insert(key, Arc::clone(spec));
                true
            }
            Err(rejection) => {
                // Only what it may use changes: the words for that are others.
                let resize = self.taken.get(&key).filter(|old| is_resize(old, spec));
                let resize = resize.and_then(|_| admit_resize(spec.pod(), &others, node).err());
                let refused = resize.as_ref().map(|r| RefusedResize {
                    spec: Spec::clone(spec),
                    reason: r.reason.clone(),
                    message: r.message.clone(),
                });
                shared.refuse_resize(&key, refused);
                let known = self.refused.get(&key).is_some_and(|(s, r)| same(s, spec) && *r == rejection);
                if !known {
                    let note = match (resize, self.taken.get(&key)) {
                        (Some(r), _) if r.reason == "Infeasible" => Note::warning("ResizeInfeasible", r.message),
                        (Some(r), _) => Note::warning("ResizeDeferred", r.message),
                        (None, None) => Note::warning(reason(&rejection.reason), rejection.status_message()),
                        (None, Some(_)) => Note::warning(reason(&rejection.reason), kept(&rejection)),
                    };
                    shared.note(pod_reference(spec.pod(), None), &note, now);
                    self.refused.insert(key, (Arc::clone(spec), rejection));
                }
                false
            }
        }
    }

    /// What is reported of a refused pod of this name.
    #[must_use]
    pub fn refusal(&self, key: &Key, facts: &NodeFacts, now: Timestamp) -> Option<Pod> {
        self.refused
            .get(key)
            .map(|(spec, rejection)| status::refused(spec, &rejection.reason, &rejection.message, facts, now))
    }

    /// CPU requests of the active Burstable pods together, in thousandths.
    #[must_use]
    pub fn burstable_milli(&self, shared: &Shared) -> i64 {
        let burstable = |pod: &&Pod| resources::qos(pod).is_ok_and(|qos| qos == resources::Qos::Burstable);
        let request = |pod: &Pod| resources::effective(pod).ok().and_then(|r| r.requests.cpu_milli).unwrap_or(0);
        let pods = self.active(shared).map(|(_, spec)| spec.pod()).filter(burstable);
        pods.fold(0, |sum: i64, pod| sum.saturating_add(request(pod)))
    }

    /// The pods that use what the node has: finished ones do not.
    fn active<'a>(&'a self, shared: &'a Shared) -> impl Iterator<Item = (&'a Key, &'a Arc<Spec>)> {
        self.taken.iter().filter(|(key, spec)| {
            let report = shared.pod(key).filter(|pod| pod.metadata.uid.as_deref() == Some(spec.uid()));
            let phase = report.as_ref().and_then(|pod| pod.status.as_ref()?.phase.as_deref());
            !matches!(phase, Some("Succeeded" | "Failed"))
        })
    }
}

fn same(a: &Spec, b: &Spec) -> bool {
    a.uid() == b.uid() && a.revision() == b.revision()
}

fn kept(rejection: &Rejection) -> String {
    format!("{}; the pod that it would replace keeps running", rejection.status_message())
}

/// Events have fixed reasons; all that pods are refused for.
pub(super) fn reason(reason: &str) -> &'static str {
    const KNOWN: [&str; 17] = [
        "AppArmor",
        "Evicted",
        "NodeAffinity",
        "NodePorts",
        "OutOfcpu",
        "OutOfephemeral-storage",
        // The sizes of pages that x86-64 has.
        "OutOfhugepages-1Gi",
        "OutOfhugepages-2Mi",
        "OutOfmemory",
        "OutOfpods",
        "PodFeatureUnsupported",
        "PodOSNotSupported",
        "PodOSSelectorNodeLabelDoesNotMatch",
        "SupplementalGroupsPolicyNotSupported",
        "SysctlForbidden",
        "TaintToleration",
        "UnexpectedAdmissionError",
    ];
    KNOWN.into_iter().find(|known| *known == reason).unwrap_or("FailedAdmission")
}

/// A pod that was refused and has room now, until its worker speaks for it.
pub(super) fn waiting(spec: &Spec) -> Pod {
    let status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
    Pod { status, ..spec.pod().clone() }
}
