//! Bound pods beside static ones: which of them the node takes, and what becomes of those that it does not.

use super::cluster::{self, Claim, Orders, Presence};
use super::events::{Note, pod_reference};
use super::{Agent, admission};
use crate::cluster::Bound;
use crate::manifest;
use crate::pod::admission::{NodeView, admit};
use crate::pod::status::refused;
use crate::pod::{Eviction, Key, Spec, is_from_api, preemption, resources};
use crate::source::{Merged, SourceKind};
use crate::sys::clock;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Grace of a pod that the API server wants gone and does not say (as its default).
const GRACE_SECONDS: u64 = 30;

/// How long the pods that the API server wants gone may take, by uid, in seconds.
pub(super) fn removals(bound: &Bound) -> BTreeMap<String, u64> {
    let ends = |pod: &Arc<Pod>| {
        let meta = &pod.metadata;
        meta.deletion_timestamp.as_ref()?;
        let grace = meta.deletion_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        Some((meta.uid.clone()?, grace.unwrap_or(GRACE_SECONDS)))
    };
    bound.pods.iter().filter_map(ends).collect()
}

/// What becomes of a pod that there is no room for.
pub(super) enum Room {
    /// There is some when others have left.
    Soon,
    /// It is critical, and still nobody leaves: why.
    InVain(String),
    /// Nothing changes.
    None,
}

impl Agent {
    /// What follows from what the API server says; `fixed` are the names of the static pods that are wanted.
    pub(super) fn orders(&self, bound: &Bound, fixed: &BTreeSet<Key>, merged: &Merged) -> Orders {
        let mut silent: BTreeSet<SourceKind> = merged.broken.union(&merged.unready).copied().collect();
        silent.remove(&SourceKind::Api);
        let claim = |key: &Key| {
            let is_static = self.gate.taken(key).is_some_and(|spec| !is_from_api(spec.pod()));
            let may_stay = is_static && !self.named.contains(key) && self.may_be_from(key, &silent);
            match fixed.contains(key) {
                true => Claim::Static,
                false if may_stay || merged.refused.contains(key) => Claim::Held,
                false => Claim::Free,
            }
        };
        cluster::orders(bound, claim, |pod| self.presence(pod))
    }

    fn presence(&self, pod: &Pod) -> Presence {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if self.shared.cluster.ended.has(uid) {
            return Presence::Ended;
        }
        let taken = self.gate.taken(&Key::of(pod)).is_some_and(|spec| spec.uid() == uid);
        let report = self.shared.pod_of(uid);
        // It ends though the API server does not say so (any more): the node left its cluster and joined again, say. What the
        // API server is told is its end, so it must not begin anew.
        if report.as_ref().is_some_and(|report| report.metadata.deletion_timestamp.is_some()) {
            return Presence::Ended;
        }
        match report.as_ref().map(|report| report.status.as_ref().and_then(|status| status.phase.as_deref())) {
            Some(Some("Succeeded" | "Failed")) => Presence::Over,
            Some(_) => Presence::Here,
            // Nobody has looked at it since the agent started.
            None if taken => Presence::Over,
            None => Presence::Absent,
        }
    }

    /// The pod, if the node takes it. Else it has failed.
    pub(super) fn take_bound(&mut self, spec: Arc<Spec>, node: &NodeView) -> Option<Arc<Spec>> {
        if self.shared.cluster.ended.has(spec.uid()) {
            return None;
        }
        match self.gate.judge(&spec, &self.shared, node) {
            Ok(()) => Some(spec),
            Err(rejection) => {
                match self.make_room(&spec, node) {
                    Room::Soon => self.gate.set_waiting(true),
                    Room::InVain(message) => self.refuse(spec.pod(), "UnexpectedAdmissionError", &message),
                    Room::None => self.refuse(spec.pod(), &rejection.reason, &rejection.message),
                }
                None
            }
        }
    }

    /// Has other pods leave for a critical one, if that is all that it needs (as kubelet).
    pub(super) fn make_room(&self, spec: &Spec, node: &NodeView) -> Room {
        let pod = spec.pod();
        if !resources::is_critical(pod) {
            return Room::None;
        }
        let others = self.gate.others(&spec.key(), &self.shared);
        let stays = |other: &&&Arc<Spec>| self.shared.eviction(&other.key(), other.uid()).is_none();
        let staying: Vec<&Pod> = others.iter().filter(stays).map(|other| other.pod()).collect();
        if admit(pod, &staying, node).is_ok() {
            return Room::Soon;
        }
        let Some(victims) = preemption::victims(pod, &staying, node) else {
            return preemption::in_vain(pod, &staying, node).map_or(Room::None, Room::InVain);
        };
        for victim in victims {
            let uid = victim.metadata.uid.clone().unwrap_or_default();
            let grace = victim.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
            let eviction = Eviction {
                reason: preemption::REASON,
                message: preemption::MESSAGE.to_owned(),
                grace_seconds: grace.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(GRACE_SECONDS).max(1),
            };
            if self.shared.evict(&Key::of(victim), uid, eviction) {
                self.shared.metrics.work.preempted();
                let note = Note::warning(preemption::REASON, preemption::MESSAGE);
                self.shared.note(pod_reference(victim, None), &note, clock::now());
                if let Some(worker) = self.workers.get(&Key::of(victim)) {
                    worker.wake.notify_one();
                }
            }
        }
        Room::Soon
    }

    /// A pod of the cluster that this node does not run: it has failed, for good (as kubelet). One that is on the machine
    /// already ends first, with its grace.
    pub(super) fn refuse(&mut self, pod: &Pod, reason: &str, message: &str) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let key = Key::of(pod);
        if self.shared.is_reported(uid) || self.gate.taken(&key).is_some_and(|spec| spec.uid() == uid) {
            let reason = admission::reason(reason);
            if self.shared.displace(uid, reason, message.to_owned()) {
                self.shared.note(pod_reference(pod, None), &Note::warning(reason, message), clock::now());
            }
            return;
        }
        let Some(spec) = Spec::new(manifest::marked(pod)) else { return };
        let now = clock::now();
        let note = Note::warning(admission::reason(reason), format!("Pod was rejected: {message}"));
        self.shared.note(pod_reference(pod, None), &note, now);
        let report = refused(&spec, reason, message, &self.shared.facts, now);
        self.shared.cluster.ended.insert(Arc::new(report));
    }

    /// Reports follow what the API server has: of pods that it does not know any more nothing is told, and those that were
    /// refused are shown where their names are free.
    pub(super) fn tidy(&self, bound: &Bound) {
        let known: BTreeSet<&str> = bound.pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        if bound.known {
            for (key, uid) in self.shared.reported_from_api() {
                if !known.contains(&*uid) && !self.workers.contains_key(&key) {
                    self.shared.publish(&key, None);
                }
            }
            self.shared.cluster.ended.retain(|uid| known.contains(uid));
        }
        for pod in bound.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let (key, uid) = (Key::of(pod), pod.metadata.uid.as_deref().unwrap_or_default());
            let Some(report) = self.shared.cluster.ended.get(uid) else { continue };
            let is_over = report.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed");
            if is_over && !self.workers.contains_key(&key) && self.shared.pod(&key).is_none() {
                self.shared.publish(&key, Some(Pod::clone(&report)));
            }
        }
    }
}
