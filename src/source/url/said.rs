//! What a URL said last: the pods and objects of its manifests, whatever happens to the URL.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::super::directory::key;
use super::super::known::Good;
use super::super::look::whole_file;
use super::super::{Desired, DesiredObject, Snapshot, SourceProblem};
use super::answer::Failure;
use super::content::Contents;
use crate::manifest::{self, Loaded, Origin, Places, Problem, Severity};

/// What a URL said last, and what is wrong with it.
#[derive(Debug)]
pub(super) struct Said {
    /// The URL that the pods' identity is made of.
    identity: String,
    /// The URL for people.
    shown: String,
    node: String,
    /// By name in the archive; the manifest that is none has no name.
    entries: BTreeMap<String, Entry>,
    /// Names in the archive that are no manifests.
    ignored: Vec<(String, &'static str)>,
    /// Whether it said anything since the start.
    heard: bool,
    /// Whether there is a record of what it said before.
    recorded: bool,
    failure: Option<Failure>,
    /// What people should know of the document, though it is taken.
    warning: Option<String>,
}

/// One manifest.
#[derive(Debug, Default)]
struct Entry {
    good: Good,
    /// Where fields of the pods stand that were loaded last.
    places: Arc<Places>,
    problems: Vec<Problem>,
    /// It is not in the archive any more, but another of its manifests is broken, and may be this one.
    gone: bool,
}

impl Said {
    /// For a URL of which nothing is known but these records.
    pub(super) fn new(identity: String, shown: String, node: String, known: BTreeMap<String, Good>) -> Said {
        let entry = |(name, good)| (name, Entry { good, ..Entry::default() });
        let entries = known.into_iter().map(entry).collect();
        let (ignored, recorded) = (Vec::new(), false);
        Said { identity, shown, node, entries, ignored, heard: false, recorded, failure: None, warning: None }
    }

    /// Whether it said something before the start, if only that there is nothing to run.
    pub(super) fn recorded(self, recorded: bool) -> Said {
        Said { recorded, ..self }
    }

    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// The URL for people.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// What it says, read.
    pub(super) fn read(&self, contents: &Contents) -> BTreeMap<String, Loaded> {
        let load = |bytes: &[u8]| manifest::load(bytes, Origin::Url(&self.identity), &self.node);
        contents.manifests.iter().map(|(name, bytes)| (name.clone(), load(bytes))).collect()
    }

    /// It said this. What is broken keeps what it gave before; only if nothing is broken are manifests gone that are not
    /// there any more.
    pub(super) fn hear(&mut self, manifests: BTreeMap<String, Loaded>, ignored: Vec<(String, &'static str)>) {
        for entry in self.entries.values_mut() {
            entry.gone = true;
        }
        for (name, loaded) in manifests {
            let entry = self.entries.entry(name).or_default();
            entry.gone = false;
            entry.take(loaded);
        }
        let broken = self.entries.values().any(|entry| !entry.gone && entry.is_broken());
        self.entries.retain(|_, entry| {
            if entry.gone {
                entry.problems.clear();
            }
            !entry.gone || broken
        });
        self.ignored = ignored;
        self.hold();
    }

    /// It said that what it said last still holds.
    pub(super) fn hold(&mut self) {
        self.heard = true;
        self.failure = None;
    }

    /// It said nothing of use. Returns whether that is news: another failure than the last one.
    pub(super) fn fail(&mut self, failure: Failure) -> bool {
        let news = self.failure.as_ref().is_none_or(|last| last.kind != failure.kind);
        if news {
            // Of one kind the first is told: a reason that changes with each try is no news.
            self.failure = Some(failure);
        }
        news
    }

    /// Sets what people should know of the document, though it is taken.
    pub(super) fn warn(&mut self, warning: Option<String>) {
        self.warning = warning;
    }

    /// Whether it failed the last time.
    pub(super) fn is_failing(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether people have nothing to be told of its manifests.
    pub(super) fn is_clean(&self) -> bool {
        self.ignored.is_empty() && self.entries.values().all(|entry| entry.problems.is_empty() && !entry.gone)
    }

    /// What to remember.
    pub(super) fn good(&self) -> BTreeMap<String, Good> {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.good.clone())).collect()
    }

    /// What it wants to run now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            healthy: self.heard && self.failure.is_none(),
            error: self.failure.as_ref().map(|failure| format!("{}: {}", self.shown, failure.reason)),
            recorded: self.recorded,
            ..Snapshot::default()
        };
        let mut names: HashMap<(String, String), String> = HashMap::new();
        let mut uids: HashMap<String, String> = HashMap::new();
        let mut objects: HashMap<manifest::ObjectId, String> = HashMap::new();
        // What is there goes before what only might be.
        let (there, gone): (Vec<_>, Vec<_>) = self.entries.iter().partition(|(_, entry)| !entry.gone);
        for (name, entry) in there.into_iter().chain(gone) {
            let origin = self.origin(name);
            if !entry.places.is_empty() {
                snapshot.places.insert(origin.clone(), Arc::clone(&entry.places));
            }
            let only = match &entry.good.pods[..] {
                [pod] => Some(key(pod)),
                _ => None,
            };
            for problem in &entry.problems {
                let pod = problem.pod.clone().or_else(|| only.clone());
                snapshot.problems.push(SourceProblem { origin: origin.clone(), pod, problem: problem.clone() });
            }
            let mut twice = |pod: Option<(String, String)>, field: &str, value: &str, other: &str| {
                if entry.gone {
                    // It has moved to where it is now.
                    return;
                }
                let reason = format!("Duplicate value: \"{value}\": {other} has it, too: this one is ignored");
                let problem = Problem { field: field.to_owned(), ..whole_file(reason, Severity::Error) };
                snapshot.problems.push(SourceProblem { origin: origin.clone(), pod, problem });
            };
            for pod in &entry.good.pods {
                let key = key(pod);
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                if let Some(other) = names.get(&key) {
                    twice(Some(key.clone()), "metadata.name", &key.1, other);
                } else if let Some(other) = uids.get(&uid) {
                    twice(Some(key), "metadata.uid", &uid, other);
                } else {
                    names.insert(key, origin.clone());
                    uids.insert(uid, origin.clone());
                    snapshot.pods.push(Desired { pod: Arc::clone(pod), origin: origin.clone() });
                }
            }
            for object in &entry.good.objects {
                let id = object.id();
                if let Some(other) = objects.get(&id) {
                    twice(None, "metadata.name", &id.to_string(), other);
                    continue;
                }
                objects.insert(id, origin.clone());
                snapshot.objects.push(DesiredObject { object: object.clone(), origin: origin.clone() });
            }
        }
        if let Some(warning) = &self.warning {
            let problem = whole_file(warning.clone(), Severity::Warning);
            snapshot.problems.push(SourceProblem { origin: self.shown.clone(), pod: None, problem });
        }
        for (name, reason) in &self.ignored {
            let problem = whole_file((*reason).to_owned(), Severity::Warning);
            snapshot.problems.push(SourceProblem { origin: self.origin(name), pod: None, problem });
        }
        snapshot
    }

    fn origin(&self, name: &str) -> String {
        if name.is_empty() { self.shown.clone() } else { format!("{}#{name}", self.shown) }
    }
}

impl Entry {
    fn is_broken(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Takes over what the manifest says now. What is broken keeps what it gave before.
    fn take(&mut self, loaded: Loaded) {
        let broken = loaded.has_errors();
        self.places = Arc::new(loaded.places_of_pods());
        self.good.take(loaded.pods, loaded.objects, broken);
        self.problems = loaded.problems;
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::{Kind, Verdict, judge};
    use super::super::content::{contents, tests::tar};
    use super::*;
    use crate::http::{self, Answer, Body};
    use proptest::prelude::*;
    use tar::EntryType;

    fn said() -> Said {
        let url = "https://host.example/pods".to_owned();
        Said::new(url.clone(), url, "node".into(), BTreeMap::new())
    }

    fn pod(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: \"{image}\"}}]}}\n"
        )
    }

    /// As the thread does it.
    fn tell(said: &mut Said, answer: Result<Answer, http::Error>) {
        match judge(answer, true) {
            Verdict::Unchanged => said.hold(),
            Verdict::Failed(failure) => drop(said.fail(failure)),
            Verdict::Document(bytes, _) => match contents(&bytes) {
                Ok(contents) => said.hear(said.read(&contents), contents.ignored),
                Err(failure) => drop(said.fail(failure)),
            },
        }
    }

    fn document(bytes: impl Into<Vec<u8>>) -> Result<Answer, http::Error> {
        Ok(Answer { status: 200, body: Body { bytes: bytes.into(), delimited: true }, ..Answer::default() })
    }

    fn names(said: &Said) -> Vec<String> {
        said.snapshot().pods.iter().map(|desired| desired.pod.metadata.name.clone().unwrap()).collect()
    }

    #[test]
    fn a_list_without_a_pod_removes_it_and_nothing_else_does() {
        let mut said = said();
        assert!(!said.snapshot().healthy, "nothing is known yet");
        tell(&mut said, document(format!("{}---\n{}", pod("a", "x"), pod("b", "x"))));
        assert_eq!(names(&said), ["a-node", "b-node"]);
        assert!(said.snapshot().healthy);

        // A broken document keeps its last good, and those that it might be.
        tell(&mut said, document(format!("{}---\nkind: [Pod\n", pod("a", "y"))));
        let snapshot = said.snapshot();
        assert_eq!(names(&said), ["a-node", "b-node"]);
        assert!(snapshot.healthy && !snapshot.problems.is_empty());
        assert!(!said.is_clean());
        tell(&mut said, document(format!("{}---\n{}", pod("a", "y"), pod("b", ""))));
        assert_eq!(names(&said), ["a-node", "b-node"]);
        let image = |said: &Said, at: usize| {
            said.snapshot().pods[at].pod.spec.clone().unwrap().containers[0].image.clone().unwrap_or_default()
        };
        assert_eq!((image(&said, 0), image(&said, 1)), ("y".into(), "x".into()), "the others are taken");

        for nothing in
            ["# a comment\n", "---\n", "null", "some text", "- a\n- b", "{}", "kind: PodList", "apiVersion: v1"]
        {
            tell(&mut said, document(nothing));
            assert_eq!(names(&said), ["a-node", "b-node"], "{nothing:?}");
            assert!(!said.snapshot().problems.is_empty(), "{nothing:?}");
        }
        tell(
            &mut said,
            document(format!("apiVersion: v1\nkind: List\nitems:\n- {}", pod("b", "x").replace('\n', "\n  "))),
        );
        assert_eq!(names(&said), ["b-node"]);
        assert!(said.is_clean());
        tell(&mut said, document("apiVersion: v1\nkind: PodList\nitems: []\n"));
        assert!(names(&said).is_empty());
        assert!(said.snapshot().healthy);
    }

    #[test]
    fn manifests_of_an_archive_stand_alone() {
        let mut said = said();
        let (a, b) = (pod("a", "x"), pod("b", "x"));
        let archive = |members: &[(&str, &str)]| {
            let members: Vec<_> = members.iter().map(|(n, text)| (*n, EntryType::Regular, text.as_bytes())).collect();
            document(tar(&members))
        };
        tell(&mut said, archive(&[("a.yaml", &a), ("b.yaml", &b)]));
        assert_eq!(names(&said), ["a-node", "b-node"]);
        assert_eq!(said.snapshot().pods[1].origin, "https://host.example/pods#b.yaml");

        tell(&mut said, archive(&[("a.yaml", "kind: ["), ("c.yaml", &b)]));
        let snapshot = said.snapshot();
        assert_eq!(names(&said), ["a-node", "b-node"], "one is broken, one has moved");
        assert_eq!(snapshot.problems.len(), 1, "{:?}", snapshot.problems);
        assert_eq!(snapshot.problems[0].origin, "https://host.example/pods#a.yaml");
        assert_eq!(snapshot.pods[1].origin, "https://host.example/pods#c.yaml");

        tell(&mut said, archive(&[("c.yaml", &b), ("d.yaml", &b)]));
        assert_eq!(names(&said), ["b-node"]);
        let snapshot = said.snapshot();
        assert!(snapshot.problems[0].problem.reason.contains("#c.yaml has it, too"), "{:?}", snapshot.problems);

        // No archive any more: the pod is the same one.
        let uid = snapshot.pods[0].pod.metadata.uid.clone();
        tell(&mut said, document(b));
        assert_eq!(said.snapshot().pods[0].pod.metadata.uid, uid);
    }

    #[test]
    fn failures_are_told_once_for_each_kind() {
        let mut said = said();
        tell(&mut said, document(pod("a", "x")));
        let told = said.snapshot().pods[0].pod.clone();
        assert!(said.fail(Failure::new(Kind::Status(404), "not found")));
        assert!(!said.fail(Failure::new(Kind::Status(404), "not found at 12:01")));
        assert_eq!(said.snapshot().error.as_deref(), Some("https://host.example/pods: not found"));
        assert!(said.fail(Failure::new(Kind::Status(500), "error")));
        let snapshot = said.snapshot();
        assert!(!snapshot.healthy && said.is_failing());
        assert!(Arc::ptr_eq(&snapshot.pods[0].pod, &told));
        said.hold();
        assert!(said.snapshot().healthy && said.snapshot().error.is_none());
    }

    /// Answers of all sorts, none of which is a valid manifest.
    fn nonsense() -> impl Strategy<Value = Result<Answer, http::Error>> {
        let good = || format!("{}---\n{}", pod("a", "x"), pod("b", "x"));
        let archive = tar(&[("a.yaml", EntryType::Regular, pod("a", "x").as_bytes())]);
        let bytes = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "\\PC{0,80}".prop_map(String::into_bytes),
            "[ \n#-]{0,9}(<html>|kind: PodList\n|items: \\[\\]\n|kind: Pod\n|a: b\n){0,3}".prop_map(String::into_bytes),
            // A pod's text that lost its end. What is left may be a smaller, valid one only with less of its last line.
            (0..good().len() / 2 - 30).prop_map(move |cut| good().as_bytes()[..cut].to_vec()),
            (0..archive.len()).prop_map(move |cut| archive[..cut].to_vec()),
        ];
        (prop_oneof![Just(200_u16), 100..600_u16], bytes, any::<bool>()).prop_map(|(status, bytes, delimited)| {
            Ok(Answer { status, body: Body { bytes, delimited }, ..Answer::default() })
        })
    }

    proptest! {
        #[test]
        fn no_answer_drops_a_pod_unless_it_is_a_valid_document(answers in proptest::collection::vec(nonsense(), 1..8)) {
            let mut said = said();
            tell(&mut said, document(format!("{}---\n{}", pod("a", "x"), pod("b", "x"))));
            let before = said.snapshot().pods;
            for answer in answers {
                tell(&mut said, answer);
                let now = said.snapshot().pods;
                prop_assert!(before.iter().all(|desired| now.contains(desired)), "{:?}", said);
            }
        }
    }
}
