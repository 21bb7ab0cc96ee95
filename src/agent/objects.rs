//! Volumes follow the ConfigMaps, Secrets and tokens that they are made from.
//!
//! What pods are made from is one immutable value in the runtime for static pods, and one for those of the cluster. A pod's
//! worker notices that it is another one, and has the volumes of its own pod brought up to date on a thread for blocking
//! work: so nothing else acts on the pod meanwhile, and what changed while the agent was down is found at the first look. A
//! pod without such volumes costs nothing.

use super::events::Note;
use crate::manifest::{self, ObjectId, Objects};
use crate::pod::{Action, Spec, Supply, is_from_api, supply};
use crate::runtime::{Error, Runtime};
use crate::volume;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Between two attempts to write a volume for which nothing is missing.
pub const AGAIN: SignedDuration = SignedDuration::from_secs(10);
/// How long a pod that is about to start waits, without a complaint, for what the API server is being asked about.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);

/// Whether `pod` refers to one of these objects, in whatever way.
pub fn concerns(pod: &Pod, changed: &BTreeSet<ObjectId>) -> bool {
    let refers = || manifest::references(pod).iter().any(|reference| changed.contains(&reference.object));
    !changed.is_empty() && !is_from_api(pod) && refers()
}

/// What a worker knows of the objects in its pod's volumes.
#[derive(Default)]
pub struct Follower {
    /// The pod, by uid, and what its volumes show.
    shown: Option<(String, Arc<Supply>)>,
    /// It could not be done: another attempt may help, without another supply.
    failed: bool,
    /// The last complaint.
    told: Option<String>,
    /// What there was for static pods, and for the cluster's, at the last look.
    seen: (Option<Arc<Objects>>, Option<Arc<Supply>>),
    /// The pod, by uid, that waits for what is being asked about, and until when.
    waits: Option<(String, Timestamp)>,
}

impl Follower {
    /// Whether what pods are made from is not what it was when this was asked last. Of a pod that is known, only what it can
    /// be made from counts.
    pub fn is_news(&mut self, runtime: &Runtime, pod: Option<&Pod>) -> bool {
        fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (a, b) => a.is_none() && b.is_none(),
            }
        }
        let now = (runtime.served_objects(), runtime.served_supply());
        let objects = !same(self.seen.0.as_ref(), now.0.as_ref());
        let supply = !same(self.seen.1.as_ref(), now.1.as_ref());
        self.seen = now;
        match pod.map(is_from_api) {
            Some(true) => supply,
            Some(false) => objects,
            None => objects || supply,
        }
    }

    /// Takes out the actions that wait because the API server is being asked about what they need, and says until when they
    /// do; `None`: none does.
    pub fn hold_back(
        &mut self,
        runtime: &Runtime,
        spec: &Spec,
        actions: &mut Vec<Action>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let needs =
            |action: &Action| matches!(action, Action::CreateSandbox | Action::Run { .. } | Action::Pull { .. });
        if !actions.iter().any(needs) || runtime.is_settled(spec.pod()) {
            self.waits = None;
            return None;
        }
        let until = match &self.waits {
            Some((uid, until)) if uid == spec.uid() => *until,
            _ => now.checked_add(PATIENCE).unwrap_or(now),
        };
        self.waits = Some((spec.uid().to_owned(), until));
        if now >= until {
            return None;
        }
        actions.retain(|action| !needs(action));
        Some(until)
    }

    /// Bring the volumes of a pod that is there up to date. Returns what is worth telling, and whether to look again after
    /// [`AGAIN`] without being asked to.
    pub async fn sync(&mut self, runtime: &Arc<Runtime>, spec: &Spec) -> (Option<Note>, bool) {
        // Files must not go because nobody has said yet what is in them.
        let Some(now) = runtime.supply(spec.pod()).filter(|supply| supply.whole || supply.is_settled(spec.pod()))
        else {
            return (None, false);
        };
        let (objects, tokens) = (volume::objects(spec.pod()), supply::tokens(spec.pod()));
        if let Some((uid, shown)) = &mut self.shown
            && uid == spec.uid()
            && !self.failed
            && objects.iter().all(|id| shown.find(id) == now.find(id))
            && tokens.iter().all(|id| shown.token(id) == now.token(id))
        {
            *shown = now;
            return (None, false);
        }
        let result = match objects.is_empty() && tokens.is_empty() {
            true => Ok(0),
            false => {
                let (runtime, pod) = (Arc::clone(runtime), spec.pod().clone());
                let refreshed = tokio::task::spawn_blocking(move || runtime.refresh_volumes(&pod));
                // An error here means that the agent is shutting down.
                let Ok(result) = refreshed.await else { return (None, false) };
                result
            }
        };
        self.shown = Some((spec.uid().to_owned(), now));
        let complaint = result.as_ref().err().map(Error::chain);
        // What is missing comes with another supply.
        self.failed = matches!(&result, Err(error) if !is_missing(error));
        if let Ok(written @ 1..) = result {
            tracing::info!(written, "volumes follow the objects that they are made from");
        }
        let new = complaint.is_some() && complaint != self.told;
        self.told = complaint;
        let note = self
            .told
            .as_ref()
            .filter(|_| new)
            .map(|text| Note::warning("FailedMount", format!("{text}; the files from before stay")));
        (note, self.failed)
    }
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Volume(error) if error.is_missing())
}
