//! Volumes follow the ConfigMaps and Secrets that they are made from.
//!
//! The set of objects is one immutable value in the runtime. A pod's worker notices that it is another one, and has the
//! volumes of its own pod brought up to date on a thread for blocking work: so nothing else acts on the pod meanwhile, and
//! what changed while the agent was down is found at the first look. A pod without such volumes costs nothing.

use super::events::Note;
use crate::manifest::{self, ObjectId, Objects};
use crate::pod::Spec;
use crate::runtime::{Error, Runtime};
use crate::volume;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Between two attempts to write a volume for which nothing is missing.
pub const AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// Whether `pod` refers to one of these objects, in whatever way.
pub fn concerns(pod: &Pod, changed: &BTreeSet<ObjectId>) -> bool {
    !changed.is_empty() && manifest::references(pod).iter().any(|reference| changed.contains(&reference.object))
}

/// What a worker knows of the objects in its pod's volumes.
#[derive(Default)]
pub struct Follower {
    /// The pod, by uid, and the objects that its volumes show.
    shown: Option<(String, Arc<Objects>)>,
    /// It could not be done: another attempt may help, without another set.
    failed: bool,
    /// The last complaint.
    told: Option<String>,
    /// The set at the last look.
    seen: Option<Arc<Objects>>,
}

impl Follower {
    /// Whether the set is another one than when this was asked last.
    pub fn is_news(&mut self, runtime: &Runtime) -> bool {
        let now = runtime.served_objects();
        let same = match (&self.seen, &now) {
            (Some(seen), Some(now)) => Arc::ptr_eq(seen, now),
            (seen, now) => seen.is_none() && now.is_none(),
        };
        self.seen = now;
        !same
    }

    /// Bring the volumes of a pod that is there up to date. Returns what is worth telling, and whether to look again after
    /// [`AGAIN`] without being asked to.
    pub async fn sync(&mut self, runtime: &Arc<Runtime>, spec: &Spec) -> (Option<Note>, bool) {
        // Files must not go because nobody has said yet what is in them.
        let Some(now) = runtime.served_objects() else { return (None, false) };
        if let Some((uid, shown)) = &mut self.shown
            && uid == spec.uid()
            && !self.failed
            && (Arc::ptr_eq(shown, &now) || volume::objects(spec.pod()).iter().all(|id| shown.get(id) == now.get(id)))
        {
            *shown = now;
            return (None, false);
        }
        let result = match volume::objects(spec.pod()).is_empty() {
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
        // What is missing comes with another set of objects.
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
