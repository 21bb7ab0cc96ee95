//! Mirror pods: what the API server shows of static pods.

use super::context::Context;
use super::mirror_copy::{self, WRITER};
use super::mirror_plan::{self, Pace, Step};
use super::pods::MIRROR;
use super::request::{self, Failure};
use super::{Connection, Machine};
use crate::pod::Key;
use crate::sys::clock;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// First pause before what failed is tried again; it doubles.
const PAUSE: SignedDuration = SignedDuration::from_millis(250);
/// The longest one: somebody may have made the namespace, or room in it.
const MAX_PAUSE: SignedDuration = SignedDuration::from_secs(10);
/// How long the watch may take to show what was made.
const ECHO: SignedDuration = SignedDuration::from_secs(10);
/// All is looked at so often, whatever happens.
const LOOK: Duration = Duration::from_secs(10);

/// Until it is dropped.
pub(super) async fn run(context: &Arc<Context>, machine: &Arc<dyn Machine>, connection: &Connection) {
    let (mut known, mut node) = (context.known.subscribe(), context.node.subscribe());
    let mut changes = machine.changes();
    let mut names: BTreeMap<Key, Name> = BTreeMap::new();
    let mut flights = FuturesUnordered::new();
    loop {
        known.mark_unchanged();
        node.mark_unchanged();
        changes.mark_unchanged();
        let now = clock::now();
        let mut wake = None;
        let own = context.node.borrow().clone();
        if let Some(own) = own
            && context.known.borrow().synced
        {
            let mirrors = mirrors(context, &mut names, now);
            let steps = mirror_plan::steps(&machine.reports(), &mirrors, &own, machine.sources_have_spoken());
            names.retain(|key, name| {
                name.busy || name.made.is_some() || name.pace.counts(now) || steps.contains_key(key)
            });
            for (key, step) in steps {
                let name = names.entry(key.clone()).or_default();
                if name.busy {
                    continue;
                }
                let at = name.due(&step, now);
                if at > now {
                    wake = Some(wake.map_or(at, |wake: Timestamp| wake.min(at)));
                    continue;
                }
                name.busy = true;
                if step.delete.is_some() && step.create.is_some() {
                    name.pace.replaced(now);
                }
                let (own, class) = (Arc::clone(&own), !name.without_class);
                flights.push(async move {
                    let result = take(context, connection, &key, &step, &own, class).await;
                    (key, result)
                });
            }
        }
        tokio::select! {
            Ok(()) = known.changed() => {}
            Ok(()) = node.changed() => {}
            Ok(()) = changes.changed() => {}
            Some((key, result)) = flights.next() => landed(machine, &mut names, key, result),
            () = tokio::time::sleep(wake.map_or(LOOK, |at| clock::until(at).min(LOOK))) => {}
        }
    }
}

/// What is remembered of one name.
#[derive(Debug, Default)]
struct Name {
    /// A request is under way.
    busy: bool,
    /// What was made, while the watch has not shown it, and since when.
    made: Option<(Arc<Pod>, Timestamp)>,
    /// How many times in a row it came to nothing, and when that may be different.
    failures: u32,
    retry: Option<Timestamp>,
    /// What was told of it.
    told: Option<String>,
    /// The API server does not know the pod's priority class.
    without_class: bool,
    pace: Pace,
}

impl Name {
    /// When the step may be taken.
    fn due(&self, step: &Step, now: Timestamp) -> Timestamp {
        let pace = if step.delete.is_some() && step.create.is_some() { self.pace.next(now) } else { now };
        self.retry.map_or(pace, |retry| retry.max(pace))
    }
}

/// The mirror pods of this node: those that the watch shows, and those that it does not show yet.
fn mirrors(context: &Context, names: &mut BTreeMap<Key, Name>, now: Timestamp) -> Vec<Arc<Pod>> {
    let known = Arc::clone(&context.known.borrow());
    let is_mirror = |pod: &Pod| pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR));
    let mut mirrors: BTreeMap<Key, Arc<Pod>> =
        known.pods.values().filter(|pod| is_mirror(pod)).map(|pod| (Key::of(pod), Arc::clone(pod))).collect();
    for (key, name) in names {
        let Some((made, since)) = &name.made else { continue };
        let shown = made.metadata.uid.as_ref().is_some_and(|uid| known.pods.contains_key(uid));
        if shown || now.duration_since(*since) > ECHO {
            name.made = None;
        } else {
            mirrors.insert(key.clone(), Arc::clone(made));
        }
    }
    mirrors.into_values().collect()
}

/// Takes a step. Returns what was made.
async fn take(
    context: &Context,
    connection: &Connection,
    key: &Key,
    step: &Step,
    node: &Node,
    class: bool,
) -> Result<Option<Pod>, Failure> {
    let folder = format!("/api/v1/namespaces/{}/pods", key.namespace);
    if let Some(uid) = &step.delete {
        tracing::info!(ns = key.namespace, name = key.name, "mirror pod goes: {}", step.why);
        request::turn(context).await;
        match request::delete(connection, &format!("{folder}/{}", key.name), uid).await {
            // It is gone, or another one is in its place.
            Err(failure) if !failure.is_missing() && !failure.is_conflict() => return Err(failure),
            Err(_) | Ok(_) => {}
        }
    }
    let Some(pod) = &step.create else { return Ok(None) };
    let Some(copy) = mirror_copy::copy(pod, node, clock::wall(), class) else { return Ok(None) };
    let body = serde_json::to_value(&copy).unwrap_or_default();
    request::turn(context).await;
    let answer = request::post(connection, &format!("{folder}?fieldManager={WRITER}"), &body).await?;
    tracing::info!(ns = key.namespace, name = key.name, "mirror pod made");
    Ok(serde_json::from_value(answer).ok())
}

/// What came of a step.
fn landed(machine: &Arc<dyn Machine>, names: &mut BTreeMap<Key, Name>, key: Key, result: Result<Option<Pod>, Failure>) {
    let name = names.entry(key.clone()).or_default();
    name.busy = false;
    let now = clock::now();
    let failure = match result {
        Ok(made) => {
            name.made = made.map(|pod| (Arc::new(pod), now));
            (name.failures, name.retry, name.told) = (0, None, None);
            return;
        }
        Err(failure) => failure,
    };
    let message = failure.to_string();
    if failure.code() == 403 && message.contains("no PriorityClass with name") {
        name.without_class = true;
    }
    let pause = PAUSE.saturating_mul(1 << name.failures.min(10)).min(MAX_PAUSE);
    let asked = failure.after().and_then(|after| SignedDuration::try_from(after).ok()).unwrap_or_default();
    name.failures = name.failures.saturating_add(1);
    name.retry = now.checked_add(pause.max(asked)).ok();
    // The watch tells of it in a moment, if it is ours.
    let stale = failure.is_conflict() && name.failures < 3;
    // Who cannot be reached says nothing about the pod; who is busy, neither.
    if !failure.may_pass() && !stale && name.told.as_ref() != Some(&message) {
        machine.note(true, "FailedCreateMirrorPod", format!("the API server cannot show static pod {key}: {message}"));
        name.told = Some(message);
    }
}
