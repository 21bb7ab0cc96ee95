//! Watches new revisions of pods and tells the sources what becomes of them; tells people when a pod does not run what its
//! manifest says.

use super::events::{Note, pod_reference};
use super::node::{MANIFEST_APPLIED, Shared};
use crate::manifest::{REVISION, rollback_after};
use crate::pod::Key;
use crate::pod::trial::{Judgement, MAX_STARTS, Trial};
use crate::server;
use crate::source::history::{By, Verdict};
use crate::source::sources::Judged;
use crate::source::{Merged, Standing};
use crate::sys::clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

/// Follows all pods until the agent ends.
pub async fn watch(shared: Arc<Shared>, mut wishes: Receiver<Arc<Merged>>) {
    let mut changes = server::Node::changes(&*shared);
    let mut watching = Watching { shared, epoch: Instant::now(), trials: BTreeMap::new(), told: BTreeMap::new() };
    let mut merged = Arc::clone(&wishes.borrow_and_update());
    watching.tell(&merged);
    loop {
        changes.mark_unchanged();
        let open = watching.look(&merged).await;
        let deadline = async {
            match open.iter().flatten().min() {
                Some(at) => sleep_until(watching.epoch + *at).await,
                None => std::future::pending().await,
            }
        };
        // Cancel-safe: a channel's next value and a point in time.
        tokio::select! {
            changed = wishes.changed() => {
                if changed.is_err() {
                    return;
                }
                merged = Arc::clone(&wishes.borrow_and_update());
                watching.tell(&merged);
            }
            // Nothing is awaited of pods of which everything is known.
            _ = changes.changed(), if !open.is_empty() => {}
            () = deadline => {}
        }
    }
}

struct Watching {
    shared: Arc<Shared>,
    /// What times are counted from, on a clock that nobody sets.
    epoch: Instant,
    /// Of the revisions of which nothing is known yet and that are on the machine.
    trials: BTreeMap<Key, (Attempt, Trial)>,
    /// What was told of pods that do not follow their manifests.
    told: BTreeMap<Key, Departure>,
}

/// Which revision is watched, and whether it failed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    revision: u64,
    failed_before: bool,
}

/// How a pod does not follow its manifest.
#[derive(Debug, Clone, PartialEq)]
struct Departure {
    reason: &'static str,
    message: String,
    since: Timestamp,
}

impl Departure {
    fn of(standing: &Standing, now: Timestamp) -> Option<Departure> {
        let (revision, latest) = (standing.revision, standing.latest);
        let rolled_back = standing.rollback.as_ref().map(|rollback| {
            let why = match rollback.by {
                By::Hand => format!("rolled back to revision {revision} by hand; the manifest says revision {latest}"),
                By::Gate => {
                    format!("rolled back to revision {revision}: revision {latest} did not work: {}", rollback.why)
                }
            };
            (why, rollback.at)
        });
        match (rolled_back, &standing.held) {
            (Some((message, since)), None) => Some(Departure { reason: "RolledBack", message, since }),
            (rolled_back, Some(held)) => {
                let before = rolled_back.map(|(why, _)| format!("; {why}")).unwrap_or_default();
                let message =
                    format!("revision {revision} runs; the manifest cannot be accepted: {}{before}", held.why);
                Some(Departure { reason: "ManifestHeld", message, since: now })
            }
            (None, None) => None,
        }
    }

    fn condition(&self) -> PodCondition {
        PodCondition {
            type_: MANIFEST_APPLIED.to_owned(),
            status: "False".to_owned(),
            reason: Some(self.reason.to_owned()),
            message: Some(self.message.clone()),
            last_transition_time: Timestamp::from_second(self.since.as_second()).ok().map(Time),
            ..PodCondition::default()
        }
    }
}

impl Watching {
    /// Reports pods that do not follow their manifests, with an event once.
    fn tell(&mut self, merged: &Merged) {
        let now = clock::now();
        let mut departures = BTreeMap::new();
        for (key, standing) in &merged.standings {
            let Some(mut departure) = Departure::of(standing, now) else { continue };
            let before = self.told.get(key);
            if let Some(before) = before.filter(|b| b.reason == departure.reason && b.message == departure.message) {
                departure.since = before.since;
            } else if departure.reason == "RolledBack" {
                // What is held has an event of its own.
                self.note(key, &Note::warning("RolledBack", departure.message.clone()));
            }
            departures.insert(key.clone(), departure);
        }
        for key in self.told.keys().filter(|key| !departures.contains_key(*key)) {
            if let Some(standing) = merged.standings.get(key) {
                let message = format!("revision {} runs, as the manifest says", standing.revision);
                self.note(key, &Note::normal("ManifestApplied", message));
            }
        }
        let conditions = departures.iter().map(|(key, departure)| (key.clone(), departure.condition())).collect();
        self.shared.set_departures(conditions);
        let behind = departures.len();
        self.shared.metrics.departures(behind);
        self.told = departures;
    }

    /// Looks at the revisions of which nothing is known yet. Returns when to look again: one entry for each of them.
    async fn look(&mut self, merged: &Merged) -> Vec<Option<Duration>> {
        let mut open = Vec::new();
        let mut judged = false;
        // What failed and runs on, for want of something to go back to, may work one day: else nothing could go back to it.
        let runs_on = |s: &Standing| matches!(s.verdict, Verdict::Bad { .. }) && s.rollback.is_none();
        let is_open = |s: &Standing| s.verdict == Verdict::Unknown || runs_on(s);
        let unknown: BTreeSet<&Key> = merged.standings.iter().filter(|(_, s)| is_open(s)).map(|(key, _)| key).collect();
        self.trials.retain(|key, _| unknown.contains(key));
        for key in unknown {
            let Some(standing) = merged.standings.get(key) else { continue };
            let report = self.shared.pod(key).filter(|pod| is_of(pod, standing, merged, key));
            let Some(pod) = report else {
                open.push(None);
                continue;
            };
            let now = self.epoch.elapsed();
            let limit = if standing.tried { rollback_after(&pod).ok().flatten() } else { None };
            let attempt = Attempt { revision: standing.revision, failed_before: runs_on(standing) };
            let known = self.trials.get(key).is_some_and(|(known, _)| *known == attempt);
            if !known {
                let trial = match attempt.failed_before {
                    false => Trial::begin(limit, &pod, now),
                    true => Trial::second(rollback_after(&pod).ok().flatten(), &pod, now),
                };
                self.trials.insert(key.clone(), (attempt, trial));
                self.given_up(key, standing);
                if let Some(limit) = limit {
                    self.begin(key, standing, limit);
                }
            }
            let Some((_, trial)) = self.trials.get_mut(key) else { continue };
            let (verdict, why) = match trial.look(&pod, now) {
                Judgement::Open(at) => {
                    open.push(at);
                    continue;
                }
                Judgement::Good => (Verdict::Good, None),
                // It is known to be bad; the first reason is the one that counts.
                Judgement::Bad(_) if attempt.failed_before => {
                    open.push(None);
                    continue;
                }
                Judgement::Bad(why) => (Verdict::Bad { why: why.clone() }, Some(why)),
            };
            let revision = standing.revision;
            let outcome = self.shared.sources.judge(key, revision, verdict);
            judged |= outcome != Judged::Stale;
            let note = match (outcome, why) {
                (Judged::Stale, _) => continue,
                (_, None) if limit.is_some() => {
                    Note::normal("TrialPassed", format!("revision {revision} is Ready and stable"))
                }
                (Judged::RolledBack(_), Some(why)) => {
                    Note::warning("TrialFailed", format!("revision {revision} does not work: {why}"))
                }
                (Judged::NoEarlier, Some(why)) => impossible(revision, &why),
                _ => continue,
            };
            self.note(key, &note);
        }
        if judged {
            let sources = self.shared.sources.clone();
            tokio::spawn(async move { sources.remember().await });
        }
        open
    }

    /// Tells of a revision whose trial ended when the agent started once more, and that stays: nobody heard of that yet.
    fn given_up(&self, key: &Key, standing: &Standing) {
        let Verdict::Bad { why } = &standing.verdict else { return };
        if standing.starts >= MAX_STARTS && standing.fallback.is_none() {
            self.note(key, &impossible(standing.revision, why));
        }
    }

    /// Tells that a revision is on trial.
    fn begin(&self, key: &Key, standing: &Standing, limit: Duration) {
        let then = match standing.fallback {
            Some(number) => format!("else revision {number} comes back"),
            None => "no revision before it was good, so it stays whatever becomes of it".to_owned(),
        };
        let again = match standing.starts {
            0 => String::new(),
            starts => format!(" (the agent was started {starts} times meanwhile)"),
        };
        let message = format!("revision {} has {limit:?} to become Ready{again}; {then}", standing.revision);
        self.note(key, &Note::normal("TrialBegun", message));
    }

    fn note(&self, key: &Key, note: &Note) {
        let pod = self.shared.pod(key).unwrap_or_else(|| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(key.name.clone());
            pod.metadata.namespace = Some(key.namespace.clone());
            Arc::new(pod)
        });
        self.shared.note(pod_reference(&pod, None), note, clock::now());
    }
}

fn impossible(revision: u64, why: &str) -> Note {
    let message = format!("revision {revision} does not work: {why}; no revision before it was good, so it stays");
    Note::warning("RollbackImpossible", message)
}

/// Whether a report is about the very revision that is to run, not about the one that leaves for it.
fn is_of(report: &Pod, standing: &Standing, merged: &Merged, key: &Key) -> bool {
    let content = |pod: &Pod| pod.metadata.annotations.as_ref().and_then(|all| all.get(REVISION)).cloned();
    let wanted = merged.pods.iter().find(|desired| Key::of(&desired.pod) == *key);
    report.metadata.deletion_timestamp.is_none()
        && report.metadata.uid.as_deref() == Some(standing.uid.as_str())
        && wanted.is_some_and(|desired| content(&desired.pod) == content(report))
}
