//! What all sources say together, against what was accepted before: the pods that run. Pure.
//!
//! A pod is *accepted* when all that it refers to is there. A revision that is not accepted changes nothing: the one before
//! it runs on, by its [`History`]. Objects that accepted pods need stay while they need them, whatever became of their
//! source.

use super::history::{History, Kept, Rollback, Verdict};
use super::sources::Unsaved;
use super::{Desired, DesiredObject, Snapshot, SourceKind, SourceProblem};
use crate::manifest::{self, Object, ObjectId, Objects, Places, Problem, Severity};
use crate::pod::Key;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The histories of this many names that no manifest has any more are kept.
const MAX_REMOVED: usize = 50;

/// What a source is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// Pods, and objects for them.
    Pods(SourceKind),
    /// Objects only.
    Objects,
}

/// What one source says.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) role: Role,
    pub(super) snapshot: Arc<Snapshot>,
    /// Whether it could be read once since the agent started.
    pub(super) spoken: bool,
}

impl Said {
    fn kind(&self) -> Option<SourceKind> {
        match self.role {
            Role::Pods(kind) => Some(kind),
            Role::Objects => None,
        }
    }

    /// Whether what it does not name is not wanted.
    fn is_ready(&self) -> bool {
        match self.role {
            // What it says may be all that was said last; the machine may have more.
            Role::Pods(SourceKind::File) => self.snapshot.healthy,
            // A server may be away for ever; what it said last counts, if only that there is nothing to run.
            Role::Pods(SourceKind::Http | SourceKind::Api) => self.spoken || self.snapshot.recorded,
            Role::Objects => true,
        }
    }
}

/// What is known from before.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) histories: BTreeMap<Key, History>,
    pub(super) kept: BTreeMap<ObjectId, Kept>,
    /// Where the objects that are served came from.
    owners: HashMap<ObjectId, String>,
    served: Arc<Objects>,
    /// Histories whose records do not say what is so.
    pub(super) changed: BTreeSet<Key>,
    /// The same of objects.
    pub(super) changed_objects: BTreeSet<ObjectId>,
}

/// Why a pod does not follow its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What keeps the manifest's pod from being accepted.
    pub why: String,
}

/// Which revision of a pod runs, and how that stands to its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The revision that runs.
    pub revision: u64,
    /// What the manifest said when it was accepted last.
    pub latest: u64,
    /// UID of the pod that runs.
    pub uid: String,
    /// What became of the revision.
    pub verdict: Verdict,
    /// Whether it is replaced if it does not work.
    pub tried: bool,
    /// How often the agent started while it was tried.
    pub starts: u32,
    /// What would run if it failed.
    pub fallback: Option<u64>,
    /// It is an older one, and why.
    pub rollback: Option<Rollback>,
    /// The manifest says something that is not accepted.
    pub held: Option<Held>,
}

/// What all sources want to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Merged {
    /// One per name, in the order of the sources.
    pub pods: Vec<Desired>,
    /// What pods may refer to.
    pub objects: Arc<Objects>,
    /// How each of the pods stands to its manifest.
    pub standings: BTreeMap<Key, Standing>,
    /// Pods that a manifest names and that cannot be accepted, without a revision that could run: what is on the machine
    /// under their names stays.
    pub refused: BTreeSet<Key>,
    /// All that is wrong at present.
    pub problems: Vec<SourceProblem>,
    /// Kinds of sources of which some have not spoken: pods from there go for no reason.
    pub unready: BTreeSet<SourceKind>,
    /// Kinds of sources in which some manifest is broken: it may be any pod's.
    pub broken: BTreeSet<SourceKind>,
    /// Why some source cannot be read: all of `errors`.
    pub error: Option<String>,
    /// Why sources cannot be read, one each.
    pub errors: Vec<String>,
}

impl Past {
    /// What the records say.
    pub(super) fn new(histories: Vec<History>, kept: Vec<Kept>) -> Past {
        let objects: Objects = kept.iter().map(|kept| kept.object.clone()).collect();
        Past {
            histories: histories.into_iter().map(|history| (history.key.clone(), history)).collect(),
            owners: kept.iter().map(|kept| (kept.object.id(), kept.origin.clone())).collect(),
            kept: kept.into_iter().map(|kept| (kept.object.id(), kept)).collect(),
            served: Arc::new(objects),
            ..Past::default()
        }
    }

    /// The agent starts: trials under way are counted.
    pub(super) fn count_starts(&mut self) {
        let tried = self.histories.values_mut().filter_map(|h| h.count_start().then(|| h.key.clone()));
        self.changed.extend(tried);
    }

    /// These records could not be written.
    pub(super) fn restore(&mut self, unsaved: &Unsaved) {
        self.changed.extend(unsaved.keys.iter().cloned());
        self.changed_objects.extend(unsaved.objects.iter().cloned());
    }

    /// The objects that a revision may refer to.
    pub(super) fn available(&self) -> Arc<Objects> {
        Arc::clone(&self.served)
    }

    /// Of names that no manifest has, the oldest go.
    fn forget_removed(&mut self) {
        let mut removed: Vec<(Timestamp, Key)> =
            self.histories.values().filter_map(|history| Some((history.removed()?, history.key.clone()))).collect();
        if removed.len() <= MAX_REMOVED {
            return;
        }
        removed.sort();
        removed.truncate(removed.len() - MAX_REMOVED);
        for (_, key) in removed {
            self.histories.remove(&key);
            self.changed.insert(key);
        }
    }
}

/// Brings together what the sources say, in their order. `past` follows what is accepted.
pub(super) fn merge(said: &[Said], past: &mut Past, now: Timestamp) -> Merged {
    let mut problems: Vec<SourceProblem> = said.iter().flat_map(|s| s.snapshot.problems.iter().cloned()).collect();
    let ready = |kind| said.iter().filter(|s| s.kind() == Some(kind)).all(Said::is_ready);
    let kinds = [SourceKind::File, SourceKind::Http];
    let unready: BTreeSet<SourceKind> = kinds.into_iter().filter(|kind| !ready(*kind)).collect();
    let is_broken = |s: &&Said| s.snapshot.problems.iter().any(|p| p.problem.severity == Severity::Error);
    let broken = said.iter().filter(is_broken).filter_map(Said::kind).collect();
    let errors: Vec<String> = said.iter().filter_map(|s| s.snapshot.error.clone()).collect();
    let error = (!errors.is_empty()).then(|| errors.join("; "));

    let offered = offered(said, past, &mut problems);
    let mut available: Objects = offered.values().map(|offer| offer.object.clone()).collect();
    for kept in past.kept.values().filter(|kept| !offered.contains_key(&kept.object.id())) {
        available.insert(kept.object.clone());
    }

    let mut merged = Merged { unready, broken, error, errors, ..Merged::default() };
    let mut named = BTreeSet::new();
    for (kind, desired) in candidates(said, past, &mut problems) {
        let key = Key::of(&desired.pod);
        named.insert(key.clone());
        let accepted = past.histories.get(&key).is_some_and(|history| history.has_accepted(&desired.pod));
        let refusals = match accepted {
            true => Vec::new(),
            false => {
                let places = said.iter().find_map(|s| s.snapshot.places.get(&desired.origin));
                refusals(&desired, places, &available)
            }
        };
        if refusals.is_empty() {
            let new = || History::new(key.clone(), kind);
            let history = past.histories.entry(key.clone()).or_insert_with(new);
            if history.accept(&desired, kind, now) {
                past.changed.insert(key.clone());
            }
        }
        let runs = past.histories.get_mut(&key).and_then(|history| Some((history.effective()?, history)));
        let held = (!refusals.is_empty()).then(|| Held { why: words(&refusals) });
        let stays = runs.as_ref().and_then(|(_, history)| history.running());
        for mut problem in refusals {
            if let Some(number) = stays {
                problem.reason = format!("{}; revision {number} of the pod keeps running", problem.reason);
            }
            let pod = Some((key.namespace.clone(), key.name.clone()));
            problems.push(SourceProblem { origin: desired.origin.clone(), pod, problem });
        }
        let Some((runs, history)) = runs else {
            merged.refused.insert(key);
            continue;
        };
        merged.standings.extend(standing(history, &runs, held).map(|standing| (key, standing)));
        merged.pods.push(runs);
    }
    for (key, history) in &mut past.histories {
        if history.running().is_some() && !named.contains(key) && !merged.unready.contains(&history.kind()) {
            history.remove(now);
            past.changed.insert(key.clone());
        }
    }
    past.forget_removed();
    merged.objects = serve(&merged.pods, offered, past, &mut problems);
    problems.sort_by(|a, b| (&a.origin, a.problem.line).cmp(&(&b.origin, b.problem.line)));
    merged.problems = problems;
    merged
}

fn standing(history: &History, runs: &Desired, held: Option<Held>) -> Option<Standing> {
    let revision = history.get(history.running()?)?;
    Some(Standing {
        revision: revision.number,
        latest: history.latest()?.number,
        uid: runs.pod.metadata.uid.clone().unwrap_or_default(),
        verdict: revision.verdict.clone(),
        tried: history.is_tried(),
        starts: history.starts(),
        fallback: history.fallback(),
        rollback: history.rollback().cloned(),
        held,
    })
}

/// What keeps a pod from being accepted.
fn refusals(desired: &Desired, places: Option<&Arc<Places>>, available: &Objects) -> Vec<Problem> {
    let mut refusals = manifest::unresolved(&desired.pod, available);
    if let Some(places) = places {
        manifest::locate(&mut refusals, places);
    }
    refusals
}

/// Refusals in one line.
fn words(refusals: &[Problem]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn problem(field: impl Into<String>, reason: String, severity: Severity) -> Problem {
    Problem { line: None, column: None, field: field.into(), reason, severity, pod: None }
}

/// One pod per name and per UID; of two, the one that ran already, else the first.
fn candidates(said: &[Said], past: &Past, problems: &mut Vec<SourceProblem>) -> Vec<(SourceKind, Desired)> {
    let mut all: Vec<(SourceKind, &Desired)> = Vec::new();
    for source in said {
        // Pods among objects were reported by their source.
        all.extend(source.kind().into_iter().flat_map(|kind| source.snapshot.pods.iter().map(move |pod| (kind, pod))));
    }
    let ran = |desired: &Desired| {
        let history = past.histories.get(&Key::of(&desired.pod));
        history.is_some_and(|h| h.running().is_some() && h.owner() == Some(desired.origin.as_str()))
    };
    let mut names: HashMap<Key, usize> = HashMap::new();
    let mut uids: HashMap<&str, usize> = HashMap::new();
    for owned in [true, false] {
        for (index, (_, desired)) in all.iter().enumerate().filter(|(_, (_, desired))| ran(desired) == owned) {
            let key = Key::of(&desired.pod);
            let uid = desired.pod.metadata.uid.as_deref().unwrap_or_default();
            let (field, value, winner) = match (names.get(&key), uids.get(uid)) {
                (Some(winner), _) => ("metadata.name", key.name.clone(), *winner),
                (None, Some(winner)) => ("metadata.uid", uid.to_owned(), *winner),
                (None, None) => {
                    names.insert(key, index);
                    uids.insert(uid, index);
                    continue;
                }
            };
            let mut report = |desired: &Desired, severity, reason| {
                let pod = Some((key.namespace.clone(), key.name.clone()));
                let problem = problem(field, reason, severity);
                problems.push(SourceProblem { origin: desired.origin.clone(), pod, problem });
            };
            let (first, second) = (&all[winner].1, desired);
            let reason = format!("Duplicate value: {value:?}: {} has a pod with it, which runs", first.origin);
            report(second, Severity::Error, reason);
            let reason = format!("Duplicate value: {value:?}: {} has a pod with it, too: ignored", second.origin);
            report(first, Severity::Warning, reason);
        }
    }
    let chosen: BTreeSet<usize> = names.into_values().collect();
    chosen.into_iter().map(|index| (all[index].0, all[index].1.clone())).collect()
}

/// One object per name; of two, the one that was served already, else the first. What may never change is as it was.
fn offered(said: &[Said], past: &Past, problems: &mut Vec<SourceProblem>) -> BTreeMap<ObjectId, DesiredObject> {
    let all: Vec<&DesiredObject> = said.iter().flat_map(|source| &source.snapshot.objects).collect();
    let mut offered: BTreeMap<ObjectId, DesiredObject> = BTreeMap::new();
    for owned in [true, false] {
        for desired in &all {
            let id = desired.object.id();
            if (past.owners.get(&id) == Some(&desired.origin)) != owned {
                continue;
            }
            if let Some(first) = offered.get(&id) {
                let reason =
                    format!("Duplicate value: {:?}: {} has it, too: this one is ignored", id.name, first.origin);
                let problem = problem("metadata.name", reason, Severity::Error);
                problems.push(SourceProblem { origin: desired.origin.clone(), pod: None, problem });
                continue;
            }
            let before = past.served.get(&id).filter(|before| before.is_immutable());
            let changes = before.map(|before| forbidden(before, &desired.object)).unwrap_or_default();
            let object = match (before, changes.is_empty()) {
                (Some(before), false) => before.clone(),
                _ => desired.object.clone(),
            };
            for field in changes {
                // As the API server, and what it is about: a manifest may hold many.
                let reason = format!("Forbidden: field is immutable when `immutable` is set; {id} stays as it was");
                let problem = problem(field, reason, Severity::Error);
                problems.push(SourceProblem { origin: desired.origin.clone(), pod: None, problem });
            }
            offered.insert(id, DesiredObject { object, origin: desired.origin.clone() });
        }
    }
    offered
}

/// Fields of an immutable object that another version of it has otherwise.
fn forbidden(before: &Object, after: &Object) -> Vec<&'static str> {
    let mut fields = Vec::new();
    if !after.is_immutable() {
        fields.push("immutable");
    }
    match (before, after) {
        (Object::ConfigMap(before), Object::ConfigMap(after)) => {
            if before.data.clone().unwrap_or_default() != after.data.clone().unwrap_or_default() {
                fields.push("data");
            }
            if before.binary_data.clone().unwrap_or_default() != after.binary_data.clone().unwrap_or_default() {
                fields.push("binaryData");
            }
        }
        (Object::Secret(before), Object::Secret(after))
            if before.data.clone().unwrap_or_default() != after.data.clone().unwrap_or_default() =>
        {
            fields.push("data");
        }
        _ => {}
    }
    fields
}

/// The objects that pods are served: what the sources offer, and instead what was before where an accepted pod could not do
/// without.
fn serve(
    pods: &[Desired],
    offered: BTreeMap<ObjectId, DesiredObject>,
    past: &mut Past,
    problems: &mut Vec<SourceProblem>,
) -> Arc<Objects> {
    // A pod on trial may have to go back to what needs other objects.
    let tried = past.histories.values().filter(|history| history.is_tried());
    let fallbacks: Vec<Arc<Pod>> = tried.filter_map(|history| history.get(history.fallback()?)?.pod()).collect();
    let dependants: Vec<&Pod> =
        pods.iter().map(|desired| &*desired.pod).chain(fallbacks.iter().map(|p| &**p)).collect();
    let mut served: Objects = offered.values().map(|offer| offer.object.clone()).collect();
    let missing = |objects: &Objects| dependants.iter().map(|pod| manifest::unresolved(pod, objects).len()).sum();
    let mut lacking: usize = missing(&served);
    let mut stand_in: BTreeSet<ObjectId> = BTreeSet::new();
    if lacking > 0 {
        for kept in past.kept.values() {
            let mut with = served.clone();
            with.insert(kept.object.clone());
            let left = missing(&with);
            if left < lacking {
                (served, lacking) = (with, left);
                stand_in.insert(kept.object.id());
            }
        }
    }
    let mut needed: BTreeMap<ObjectId, (String, String)> = BTreeMap::new();
    for pod in &dependants {
        let references = manifest::references(pod).into_iter().filter(|reference| !reference.optional);
        for reference in references {
            needed.entry(reference.object).or_insert_with(|| (Key::of(pod).to_string(), reference.field));
        }
    }
    for id in &stand_in {
        let (Some(kept), Some((pod, field))) = (past.kept.get(id), needed.get(id)) else { continue };
        let (origin, reason, severity) = match offered.get(id) {
            Some(offer) => (
                &offer.origin,
                format!("{id} lacks what pod {pod} needs ({field}): the version before stays"),
                Severity::Error,
            ),
            None => (
                &kept.origin,
                format!("{id} is gone from here: it is kept while pod {pod} needs it ({field})"),
                Severity::Warning,
            ),
        };
        problems.push(SourceProblem { origin: origin.clone(), pod: None, problem: problem("", reason, severity) });
    }
    if lacking > 0 {
        // Accepted once, and what it refers to is nowhere: it runs as long as it needs no restart.
        for desired in pods {
            for mut problem in manifest::unresolved(&desired.pod, &served) {
                let held = |p: &SourceProblem| p.problem.field == problem.field && p.problem.pod == problem.pod;
                if problems.iter().any(held) {
                    continue;
                }
                problem.severity = Severity::Warning;
                let pod = problem.pod.clone();
                problems.push(SourceProblem { origin: desired.origin.clone(), pod, problem });
            }
        }
    }

    let origin_of = |id: &ObjectId| match offered.get(id) {
        Some(offer) => Some(offer.origin.clone()),
        None => past.kept.get(id).map(|kept| kept.origin.clone()),
    };
    let mut kept = BTreeMap::new();
    let mut owners = HashMap::new();
    for object in served.iter() {
        let id = object.id();
        let Some(origin) = origin_of(&id) else { continue };
        owners.insert(id.clone(), origin.clone());
        if needed.contains_key(&id) || object.is_immutable() {
            kept.insert(id, Kept { object: object.clone(), origin });
        }
    }
    let differs = |id: &&ObjectId| past.kept.get(*id) != kept.get(*id);
    let changed: Vec<ObjectId> = past.kept.keys().chain(kept.keys()).filter(differs).cloned().collect();
    past.changed_objects.extend(changed);
    past.kept = kept;
    past.owners = owners;
    if *past.served != served {
        past.served = Arc::new(served);
    }
    Arc::clone(&past.served)
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
