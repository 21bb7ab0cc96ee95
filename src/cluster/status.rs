//! Statuses of pods, and the ends of those that the API server wants gone.

use super::context::{Context, Known};
use super::request::{self, Failure, STRATEGIC_MERGE};
use super::status_work::{Line, Rest, Said, Work, is_decided, work};
use super::{Connection, Machine};
use crate::sys::clock;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// All is compared so often, whatever happens (as kubelet).
const RECONCILE: Duration = Duration::from_secs(10);
/// Between two looks at a pod whose end is not decided yet.
const UNDECIDED: SignedDuration = SignedDuration::from_millis(100);

/// What a request came to.
struct Landed {
    uid: String,
    result: Result<Option<Arc<Pod>>, Failure>,
    /// What was told; `None`: the object was deleted.
    report: Option<Arc<Pod>>,
}

/// Until it is dropped.
pub(super) async fn run(context: &Arc<Context>, machine: &Arc<dyn Machine>, connection: &Connection) {
    let (mut known, mut changes) = (context.known.subscribe(), machine.changes());
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    let mut flights = FuturesUnordered::new();
    loop {
        known.mark_unchanged();
        changes.mark_unchanged();
        let all = Arc::clone(&context.known.borrow());
        let mut wake = None;
        if all.synced {
            let (due, next) = due(context, machine, &all, &mut lines);
            wake = next;
            for (theirs, work) in due {
                flights.push(tell(context, connection, theirs, work));
            }
        }
        tokio::select! {
            Ok(()) = known.changed() => {}
            Ok(()) = changes.changed() => {}
            Some(landed) = flights.next() => land(machine, &mut lines, landed),
            () = tokio::time::sleep(wake.map_or(RECONCILE, |at| clock::until(at).min(RECONCILE))) => {}
        }
    }
}

/// What is to be sent now, and when to look again.
fn due(
    context: &Context,
    machine: &Arc<dyn Machine>,
    known: &Known,
    lines: &mut BTreeMap<String, Line>,
) -> (Vec<(Arc<Pod>, Work)>, Option<Timestamp>) {
    let now = clock::now();
    // Instants of what is told are those of the wall clock.
    let wall = clock::shown(now);
    let said = Said::new(machine.reports());
    lines.retain(|uid, line| line.busy || known.pods.contains_key(uid));
    let (mut due, mut wake) = (Vec::new(), None);
    let mut wake_at = |at: Timestamp| wake = Some(wake.map_or(at, |wake: Timestamp| wake.min(at)));
    for (uid, shown) in &known.pods {
        let line = lines.entry(uid.clone()).or_default();
        if line.busy {
            continue;
        }
        if let Some(at) = line.retry().filter(|at| *at > now) {
            wake_at(at);
            continue;
        }
        let theirs = line.newest(shown);
        let mut undecided = false;
        let rest = || {
            let leaves = theirs.metadata.deletion_timestamp.is_some();
            if machine.is_present(uid) || leaves && !is_decided(&context.bound.borrow(), machine.acted_on(), uid) {
                undecided = leaves;
                return Rest::Some;
            }
            Rest::None(machine.departed(uid))
        };
        if let Some(work) = work(&theirs, &said, rest, line.rejected(now), wall) {
            line.busy = true;
            due.push((theirs, work));
        } else if undecided {
            wake_at(now.checked_add(UNDECIDED).unwrap_or(now));
        }
    }
    (due, wake)
}

/// Sends it.
async fn tell(context: &Context, connection: &Connection, theirs: Arc<Pod>, work: Work) -> Landed {
    let uid = theirs.metadata.uid.clone().unwrap_or_default();
    let path = request::path_of(&theirs);
    request::turn(context).await;
    match work {
        Work::Delete => {
            let result = request::delete(connection, &path, &uid).await.map(|_| None);
            Landed { uid, result, report: None }
        }
        Work::Patch { body, report } => {
            let path = format!("{path}/status?fieldManager={}", super::mirror_copy::WRITER);
            let answer = request::patch(connection, &path, STRATEGIC_MERGE, &body).await;
            let result = answer.map(|answer| serde_json::from_value(answer).ok().map(Arc::new));
            Landed { uid, result, report: Some(report) }
        }
    }
}

/// What came of it.
fn land(machine: &Arc<dyn Machine>, lines: &mut BTreeMap<String, Line>, landed: Landed) {
    let Landed { uid, result, report } = landed;
    let deleted = report.is_none();
    let line = lines.entry(uid.clone()).or_default();
    line.busy = false;
    let now = clock::now();
    match result {
        Ok(answer) => {
            line.succeeded(answer, report.as_deref(), now);
            if deleted {
                machine.forget(&uid);
                // The watch says that it is gone in a moment, or once somebody's finalizer is.
                line.failed(true, Some(SignedDuration::from_secs(30)), now);
            }
        }
        // It is gone, or another pod has its name: the watch tells.
        Err(failure) if failure.is_missing() || failure.is_conflict() => {
            if deleted {
                machine.forget(&uid);
            }
            line.failed(true, None, now);
        }
        Err(failure) => {
            let asked = failure.after().and_then(|after| SignedDuration::try_from(after).ok());
            line.failed(failure.code() != 0, asked, now);
            let message = failure.to_string();
            if !failure.may_pass() && line.told.as_ref() != Some(&message) {
                tracing::warn!(uid, "the API server does not take the status of a pod: {message}");
                line.told = Some(message);
            }
        }
    }
}
