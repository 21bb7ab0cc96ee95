//! Revisions of a pod: what there is, and going back to one.

use super::Node;
use super::reply::{self, Failure, Reply};
use super::route::Query;
use super::types::{PodHistory, PodName, PodRevision, RolledBack};
use crate::source::history::{History, Revision, Verdict};
use crate::source::sources::{Refusal, Rolled};

const API_VERSION: &str = "coracle.dev/v1alpha1";

/// `GET …/history[?revision=N]`.
pub(super) fn history(node: &dyn Node, namespace: &str, name: &str, query: &Query) -> Result<Reply, Failure> {
    let known = node.history(namespace, name).filter(|history| !history.revisions().is_empty());
    let known = known.ok_or_else(|| refused(&Refusal::Unknown(name.to_owned())))?;
    let wanted = query.number("revision")?;
    let items: Vec<PodRevision> = (known.revisions().iter())
        .filter(|revision| wanted.is_none_or(|number| number == revision.number))
        .map(|revision| item(&known, revision, wanted.is_some()))
        .collect();
    if let Some(number) = wanted.filter(|_| items.is_empty()) {
        return Err(refused(&Refusal::NoRevision(number)));
    }
    reply::json(&PodHistory {
        kind: "PodHistory".to_owned(),
        api_version: API_VERSION.to_owned(),
        pod: PodName { namespace: known.key.namespace.clone(), name: known.key.name.clone() },
        held: node.standing(namespace, name).and_then(|standing| standing.held).map(|held| held.why),
        items,
    })
}

fn item(history: &History, revision: &Revision, whole: bool) -> PodRevision {
    let running = history.running() == Some(revision.number);
    let verdict = match revision.verdict {
        Verdict::Unknown => "Unknown",
        Verdict::Good => "Good",
        Verdict::Bad { .. } => "Bad",
    };
    let message = match &revision.verdict {
        Verdict::Bad { why } => Some(why.clone()),
        _ => history.rollback().filter(|_| running).map(|rollback| rollback.why.clone()),
    };
    PodRevision {
        revision: revision.number,
        accepted: revision.accepted.to_string(),
        running,
        manifest: history.running().is_some() && history.latest().is_some_and(|l| l.number == revision.number),
        verdict: verdict.to_owned(),
        message,
        source: revision.origin.clone(),
        content: revision.content.clone(),
        template: revision.pod().filter(|_| whole).and_then(|pod| serde_json::to_value(&*pod).ok()),
    }
}

/// `POST …/rollback[?toRevision=N]`.
pub(super) async fn roll_back(node: &dyn Node, namespace: &str, name: &str, query: &Query) -> Result<Reply, Failure> {
    // As kubectl: 0 is the revision before.
    let to = query.number("toRevision")?.filter(|number| *number != 0);
    let (key, rolled) = node.roll_back(namespace, name, to).await.map_err(|refusal| refused(&refusal))?;
    let (revision, unchanged) = match rolled {
        Rolled::To(number) => (number, false),
        Rolled::Already(number) => (number, true),
    };
    reply::json(&RolledBack {
        kind: "RolledBack".to_owned(),
        api_version: API_VERSION.to_owned(),
        pod: PodName { namespace: key.namespace, name: key.name },
        revision,
        unchanged,
    })
}

fn refused(refusal: &Refusal) -> Failure {
    let message = refusal.to_string();
    match refusal {
        Refusal::Unknown(_) | Refusal::NoRevision(_) | Refusal::NoEarlier(_) => Failure::not_found(message),
        Refusal::Removed(_) | Refusal::Damaged(_) | Refusal::NotAccepted(..) => Failure::conflict(message),
    }
}
