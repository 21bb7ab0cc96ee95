use super::super::history::By;
use super::*;
use crate::manifest::Origin;
use proptest::prelude::*;

fn now() -> Timestamp {
    Timestamp::from_second(0).unwrap()
}

/// A pod that refers to a ConfigMap's key, or to nothing.
fn pod(name: &str, image: &str, needs: Option<(&str, &str)>) -> String {
    let env = needs
        .map(|(map, key)| format!(", env: [{{name: V, valueFrom: {{configMapKeyRef: {{name: {map}, key: {key}}}}}}}]"));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: \"{image}\"{}}}]}}\n",
        env.unwrap_or_default()
    )
}

fn map(name: &str, key: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{{key}: {value:?}}}\n")
}

fn immutable(name: &str, key: &str, value: &str) -> String {
    format!("{}immutable: true\n", map(name, key, value))
}

/// What a source with these documents says.
fn says(role: Role, origin: &str, documents: &[String]) -> Said {
    let from = match role {
        Role::Pods(SourceKind::Http) => Origin::Url(origin),
        _ => Origin::File(origin),
    };
    let text = documents.join("---\n");
    let loaded = match text.is_empty() {
        true => manifest::Loaded::default(),
        false => manifest::load(text.as_bytes(), from, "n"),
    };
    let origin = origin.to_owned();
    let snapshot = Snapshot {
        pods: loaded.pods.into_iter().map(|pod| Desired { pod: Arc::new(pod), origin: origin.clone() }).collect(),
        objects: (loaded.objects.into_iter()).map(|object| DesiredObject { object, origin: origin.clone() }).collect(),
        healthy: true,
        places: BTreeMap::from([(origin.clone(), Arc::new(loaded.places))]),
        problems: (loaded.problems.into_iter())
            .map(|problem| SourceProblem { origin: origin.clone(), pod: None, problem })
            .collect(),
        ..Snapshot::default()
    };
    assert_eq!(snapshot.problems, [], "the test's own manifests are sound");
    Said { role, snapshot: Arc::new(snapshot), spoken: true }
}

fn file(documents: &[String]) -> Said {
    says(Role::Pods(SourceKind::File), "/m/a.yaml", documents)
}

fn url(origin: &str, documents: &[String]) -> Said {
    says(Role::Pods(SourceKind::Http), origin, documents)
}

/// A source that could not be read yet.
fn silent(kind: SourceKind) -> Said {
    let snapshot = Snapshot { error: Some("away".into()), ..Snapshot::default() };
    Said { role: Role::Pods(kind), snapshot: Arc::new(snapshot), spoken: false }
}

fn images(merged: &Merged) -> Vec<String> {
    let image = |desired: &Desired| desired.pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
    merged.pods.iter().map(image).collect()
}

fn reasons(merged: &Merged) -> Vec<String> {
    merged.problems.iter().map(|p| format!("{}: {}", p.origin, p.problem)).collect()
}

fn key(name: &str) -> Key {
    Key { namespace: "default".into(), name: format!("{name}-n") }
}

/// The agent starts anew with what its records say.
fn restart(past: Past) -> Past {
    Past::new(past.histories.into_values().collect(), past.kept.into_values().collect())
}

fn value(merged: &Merged, name: &str, key: &str) -> Option<String> {
    merged.objects.config_map("default", name)?.data.as_ref()?.get(key).cloned()
}

#[test]
fn a_pod_waits_for_what_it_refers_to_and_runs_as_soon_as_it_is_there() {
    let mut past = Past::default();
    let web = pod("web", "a", Some(("settings", "mode")));
    let merged = merge(&[file(std::slice::from_ref(&web))], &mut past, now());
    assert_eq!((merged.pods.len(), merged.refused.len()), (0, 1));
    let [problem] = &merged.problems[..] else { panic!("{:?}", merged.problems) };
    assert_eq!(problem.problem.field, "spec.containers[0].env[0].valueFrom.configMapKeyRef.name");
    assert_eq!(problem.pod, Some(("default".into(), "web-n".into())));
    assert!(past.histories.is_empty(), "it was never accepted");
    // From another source.
    let objects = says(Role::Objects, "/o/settings.yaml", &[map("settings", "mode", "x")]);
    let merged = merge(&[file(&[web]), objects], &mut past, now());
    assert_eq!((images(&merged), reasons(&merged)), (vec!["a".to_owned()], vec![]));
    assert_eq!(merged.standings[&key("web")].revision, 1);
}

#[test]
fn a_revision_that_is_not_accepted_leaves_the_one_before_running_also_over_a_restart() {
    let mut past = Past::default();
    merge(&[file(&[pod("web", "a", None)])], &mut past, now());
    let bad = file(&[pod("web", "b", Some(("settings", "mode")))]);
    for restarted in [false, true, true] {
        if restarted {
            past = restart(past);
        }
        let merged = merge(std::slice::from_ref(&bad), &mut past, now());
        assert_eq!(images(&merged), ["a"]);
        let standing = &merged.standings[&key("web")];
        assert_eq!((standing.revision, standing.latest), (1, 1));
        let why = &standing.held.as_ref().unwrap().why;
        let want = "line 4: spec.containers[0].env[0].valueFrom.configMapKeyRef.name: Not found";
        assert!(why.starts_with(want), "{why}");
        assert!(reasons(&merged)[0].ends_with("revision 1 of the pod keeps running"), "{:?}", reasons(&merged));
    }
}

#[test]
fn an_object_that_vanished_stays_while_a_pod_needs_it() {
    let web = pod("web", "a", Some(("settings", "mode")));
    let mut past = Past::default();
    merge(&[file(&[web.clone(), map("settings", "mode", "x"), map("other", "k", "y")])], &mut past, now());
    for restarted in [false, true, true] {
        if restarted {
            past = restart(past);
        }
        let merged = merge(&[file(std::slice::from_ref(&web))], &mut past, now());
        assert_eq!((images(&merged), value(&merged, "settings", "mode")), (vec!["a".into()], Some("x".into())));
        assert_eq!(value(&merged, "other", "k"), None, "nobody needs it");
        let text = "/m/a.yaml: warning: ConfigMap default/settings is gone from here: it is kept while pod \
            default/web-n needs it (spec.containers[0].env[0].valueFrom.configMapKeyRef)";
        assert_eq!(reasons(&merged), [text]);
    }
    // A version that lacks what the pod needs does not take its place; one that has it does.
    let merged = merge(&[file(&[web.clone(), map("settings", "kode", "z")])], &mut past, now());
    assert_eq!(value(&merged, "settings", "mode"), Some("x".into()));
    assert!(reasons(&merged)[0].contains("lacks what pod default/web-n needs"), "{:?}", reasons(&merged));
    let merged = merge(&[file(&[web, map("settings", "mode", "z")])], &mut past, now());
    assert_eq!((value(&merged, "settings", "mode"), reasons(&merged)), (Some("z".into()), vec![]));
    // The pod goes, and with it what only it needed.
    let merged = merge(&[file(&[])], &mut past, now());
    assert_eq!((merged.pods.len(), merged.objects.iter().count(), past.kept.len()), (0, 0, 0));
}

#[test]
fn an_edit_of_pod_and_object_in_two_files_meets_no_half() {
    let mut past = Past::default();
    let (old, new) = (pod("web", "a", Some(("s", "old"))), pod("web", "b", Some(("s", "new"))));
    merge(&[file(&[old.clone(), map("s", "old", "1")])], &mut past, now());
    // The object first: the pod that runs keeps its version.
    let merged = merge(&[file(&[old, map("s", "new", "2")])], &mut past, now());
    assert_eq!((images(&merged), value(&merged, "s", "old")), (vec!["a".into()], Some("1".into())));
    // Then the pod, which is held against what the source says, not what is served.
    let merged = merge(&[file(&[new, map("s", "new", "2")])], &mut past, now());
    assert_eq!((images(&merged), value(&merged, "s", "new")), (vec!["b".into()], Some("2".into())));
    assert_eq!(reasons(&merged), [""; 0]);
}

#[test]
fn what_may_never_change_does_not() {
    let mut past = Past::default();
    merge(&[file(&[immutable("s", "k", "1")])], &mut past, now());
    past = restart(past);
    let merged = merge(&[file(&[immutable("s", "k", "2")])], &mut past, now());
    assert_eq!(value(&merged, "s", "k"), Some("1".into()));
    assert_eq!(
        reasons(&merged),
        ["/m/a.yaml: data: Forbidden: field is immutable when `immutable` is set; ConfigMap default/s stays as it was"]
    );
    let merged = merge(&[file(&[map("s", "k", "1")])], &mut past, now());
    assert_eq!(
        reasons(&merged),
        [
            "/m/a.yaml: immutable: Forbidden: field is immutable when `immutable` is set; ConfigMap default/s stays as it was"
        ]
    );
    // As in a cluster: removed and made anew it is another one.
    merge(&[file(&[])], &mut past, now());
    let merged = merge(&[file(&[immutable("s", "k", "2")])], &mut past, now());
    assert_eq!((value(&merged, "s", "k"), reasons(&merged)), (Some("2".into()), vec![]));
}

#[test]
fn of_two_sources_with_a_pod_the_one_that_ran_goes_on() {
    let mut past = Past::default();
    let (a, b) = (url("http://a/", &[pod("web", "a", None)]), url("http://b/", &[pod("web", "b", None)]));
    let first = file(&[pod("web", "c", None)]);
    assert_eq!(images(&merge(std::slice::from_ref(&b), &mut past, now())), ["b"]);
    for _ in 0..2 {
        let merged = merge(&[first.clone(), a.clone(), b.clone()], &mut past, now());
        assert_eq!(images(&merged), ["b"]);
        let told = reasons(&merged);
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(
            told.iter().any(|t| t
                == "http://a/: metadata.name: Duplicate value: \"web-n\": http://b/ has a pod with it, which runs"),
            "{told:?}"
        );
        assert!(told.iter().any(|t| t == "http://b/: warning: metadata.name: Duplicate value: \"web-n\": /m/a.yaml has a pod with it, too: ignored"), "{told:?}");
        past = restart(past);
    }
    // Once it is gone, the first of the others.
    assert_eq!(images(&merge(&[first, a], &mut past, now())), ["c"]);
    // The same in one go, without anything that ran.
    let merged = merge(
        &[url("http://a/", &[pod("x", "1", None)]), url("http://b/", &[pod("x", "2", None)])],
        &mut Past::default(),
        now(),
    );
    assert_eq!(images(&merged), ["1"]);
}

#[test]
fn kinds_of_sources_do_not_wait_for_each_other() {
    let mut past = Past::default();
    let merged = merge(&[file(&[]), silent(SourceKind::Http)], &mut past, now());
    assert_eq!((merged.unready, merged.error.as_deref()), (BTreeSet::from([SourceKind::Http]), Some("away")));
    let merged = merge(&[silent(SourceKind::File), url("http://a/", &[])], &mut past, now());
    assert_eq!(merged.unready, BTreeSet::from([SourceKind::File]));
    // What is only remembered of a URL counts as said, as its server may be away for ever.
    let remembered = |documents: &[String]| {
        let said = url("http://a/", documents);
        let snapshot = Snapshot { healthy: false, recorded: true, ..(*said.snapshot).clone() };
        Said { snapshot: Arc::new(snapshot), spoken: false, ..said }
    };
    let one = remembered(&[pod("web", "a", None)]);
    assert_eq!(merge(&[file(&[]), one], &mut past, now()).unready, BTreeSet::new());
    // So does that there is nothing to run.
    assert_eq!(merge(&[file(&[]), remembered(&[])], &mut Past::default(), now()).unready, BTreeSet::new());
    // A pod of a kind that has not spoken keeps its place in the history.
    let merged = merge(&[file(&[]), silent(SourceKind::Http)], &mut past, now());
    assert_eq!((merged.pods.len(), past.histories[&key("web")].running()), (0, Some(1)));
    merge(&[file(&[]), url("http://a/", &[])], &mut past, now());
    assert_eq!(past.histories[&key("web")].running(), None);
    // And so without URLs at all.
    assert_eq!(merge(&[file(&[])], &mut past, now()).unready, BTreeSet::new());
}

#[test]
fn a_source_of_objects_has_no_pods() {
    let said = says(Role::Objects, "/o/web.yaml", &[pod("web", "a", None), map("s", "k", "v")]);
    let merged = merge(&[file(&[]), said], &mut Past::default(), now());
    assert_eq!((merged.pods.len(), value(&merged, "s", "k")), (0, Some("v".into())));
}

#[test]
fn names_that_are_gone_are_forgotten_one_day() {
    let mut past = Past::default();
    for index in 0..MAX_REMOVED + 3 {
        let at = Timestamp::from_second(i64::try_from(index).unwrap()).unwrap();
        merge(&[file(&[pod(&format!("p{index}"), "a", None)])], &mut past, at);
    }
    merge(&[file(&[])], &mut past, Timestamp::from_second(1000).unwrap());
    assert_eq!(past.histories.len(), MAX_REMOVED);
    assert!(!past.histories.contains_key(&key("p0")) && past.histories.contains_key(&key("p9")));
    assert!(past.changed.contains(&key("p0")), "its record goes, too");
}

#[test]
fn a_trial_keeps_what_the_good_revision_needs() {
    let mut past = Past::default();
    let gated = |image: &str, needs| {
        pod("web", image, needs).replace("{name: web}", "{name: web, annotations: {coracle.dev/rollback-after: 60s}}")
    };
    merge(&[file(&[gated("a", Some(("s", "k"))), map("s", "k", "v")])], &mut past, now());
    past.histories.get_mut(&key("web")).unwrap().judge(1, Verdict::Good);
    // The manifest drops the object with the revision that needed it.
    for _ in 0..2 {
        let merged = merge(&[file(&[gated("b", None)])], &mut past, now());
        let standing = &merged.standings[&key("web")];
        assert!(standing.tried && standing.fallback == Some(1));
        assert_eq!((images(&merged), value(&merged, "s", "k")), (vec!["b".into()], Some("v".into())));
        past = restart(past);
    }
    past.histories.get_mut(&key("web")).unwrap().roll_back(1, By::Gate, "bad".into(), now());
    let merged = merge(&[file(&[gated("b", None)])], &mut past, now());
    assert_eq!((images(&merged), value(&merged, "s", "k")), (vec!["a".into()], Some("v".into())));
    assert!(merged.standings[&key("web")].rollback.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever sources come to say: a pod that was accepted runs, in some revision, for as long as a source names it, and
    /// nothing runs that a source does not name.
    #[test]
    fn an_accepted_pod_is_never_lost(
        steps in proptest::collection::vec((0u8..4, 0u8..4, 0u8..4, any::<bool>(), any::<bool>()), 1..12),
    ) {
        let mut past = Past::default();
        let mut ran = false;
        for (revision, needs, has, named, restarted) in steps {
            if restarted {
                past = restart(past);
            }
            let key = |n: u8| format!("k{n}");
            let needed = (needs > 0).then(|| key(needs));
            let mut documents = Vec::new();
            if named {
                let needs = needed.as_ref().map(|key| ("s", key.as_str()));
                documents.push(pod("web", &format!("i{revision}"), needs));
            }
            if has > 0 {
                documents.push(map("s", &key(has), "v"));
            }
            let merged = merge(&[file(&documents)], &mut past, now());
            let acceptable = needs == 0 || needs == has;
            ran = named && (ran || acceptable || !merged.pods.is_empty());
            prop_assert_eq!(merged.pods.len(), usize::from(ran));
            prop_assert_eq!(merged.refused.len(), usize::from(named && !ran));
            for desired in &merged.pods {
                prop_assert_eq!(manifest::unresolved(&desired.pod, &merged.objects), vec![]);
            }
            if named && acceptable {
                prop_assert_eq!(images(&merged), vec![format!("i{revision}")]);
            }
        }
    }
}
