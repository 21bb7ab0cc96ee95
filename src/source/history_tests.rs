use super::*;
use crate::manifest::{self, Origin};
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// The pod `web`, whose content is told by its image.
fn desired(image: &str) -> Desired {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, annotations: {{coracle.dev/rollback-after: 60s}}}}\nspec: {{containers: [{{name: c, image: \"{image}\"}}]}}\n"
    );
    let loaded = manifest::load(text.as_bytes(), Origin::File("/m/web.yaml"), "n");
    let pod = loaded.pods.into_iter().next().unwrap_or_else(|| panic!("{:?}", loaded.problems));
    Desired { pod: Arc::new(pod), origin: "/m/web.yaml".to_owned() }
}

fn fresh() -> History {
    History::new(Key { namespace: "default".into(), name: "web-n".into() }, SourceKind::File)
}

fn accept(history: &mut History, image: &str) -> bool {
    history.accept(&desired(image), SourceKind::File, at(0))
}

fn numbers(history: &History) -> Vec<u64> {
    history.revisions().iter().map(|revision| revision.number).collect()
}

fn image(history: &mut History) -> String {
    let pod = history.effective().unwrap().pod;
    pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap()
}

#[test]
fn each_content_is_a_revision_and_one_that_comes_back_gets_a_new_number() {
    let mut history = fresh();
    assert!(accept(&mut history, "a"));
    assert!(!accept(&mut history, "a"), "nothing changed");
    assert!(accept(&mut history, "b") && accept(&mut history, "c") && accept(&mut history, "a"));
    assert_eq!(numbers(&history), [2, 3, 4]);
    assert_eq!((history.running(), image(&mut history).as_str()), (Some(4), "a"));
    assert_eq!(history.previous(), Some(3));
}

#[test]
fn a_rollback_lasts_until_the_manifest_changes() {
    let mut history = fresh();
    accept(&mut history, "a");
    accept(&mut history, "b");
    history.roll_back(1, By::Hand, "by hand".into(), at(1));
    assert!(!accept(&mut history, "b"), "the manifest says what it said");
    assert_eq!((history.running(), image(&mut history).as_str()), (Some(1), "a"));
    assert!(history.rollback().is_some() && !history.is_tried());
    history.roll_back(9, By::Hand, String::new(), at(1));
    assert_eq!(history.running(), Some(1), "there is no such revision");
    // Back to what the manifest says.
    history.roll_back(2, By::Hand, String::new(), at(2));
    assert!(history.rollback().is_none() && image(&mut history) == "b");
    history.roll_back(1, By::Gate, "bad".into(), at(3));
    accept(&mut history, "c");
    assert!(history.rollback().is_none() && history.running() == Some(3));
}

#[test]
fn what_is_gone_back_to_was_good() {
    let mut history = fresh();
    for image in ["a", "b", "c", "d"] {
        accept(&mut history, image);
    }
    assert_eq!(history.fallback(), None);
    assert!(history.judge(1, Verdict::Good) && history.judge(2, Verdict::Good) && !history.judge(2, Verdict::Good));
    history.judge(3, Verdict::Bad { why: "x".into() });
    assert_eq!(history.fallback(), Some(2));
    assert_eq!(history.previous(), Some(2), "a bad one is passed over");
    // Ten more: what would be gone back to stays.
    for image in 0..10 {
        accept(&mut history, &format!("i{image}"));
    }
    assert_eq!(history.revisions().len(), MAX_REVISIONS);
    assert_eq!((numbers(&history)[0], history.fallback()), (2, Some(2)));
}

#[test]
fn a_name_that_comes_back_goes_on_counting() {
    let mut history = fresh();
    accept(&mut history, "a");
    accept(&mut history, "b");
    history.remove(at(5));
    assert!(history.effective().is_none() && history.removed() == Some(at(5)));
    assert!(!history.has_accepted(&desired("b").pod), "it may not be acceptable any more");
    assert!(accept(&mut history, "c"));
    assert_eq!((numbers(&history), history.removed()), (vec![1, 2, 3], None));
}

#[test]
fn starts_are_counted_while_a_revision_is_tried() {
    let mut history = fresh();
    accept(&mut history, "a");
    assert!(history.count_start() && history.count_start());
    assert_eq!(history.starts(), 2);
    history.judge(1, Verdict::Good);
    assert!(!history.count_start() && history.starts() == 2);
    accept(&mut history, "b");
    assert_eq!(history.starts(), 0);
}

/// A shelf of its own, removed at the end.
struct Bench(Shelf);

impl Bench {
    fn new(name: &str) -> Bench {
        let folder = std::env::temp_dir().join(format!("coracle-history-{}-{name}", std::process::id()));
        crate::sys::fs::remove_tree(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        Bench(Shelf::new(folder))
    }

    fn save(&self, history: &History) -> PathBuf {
        let writing = self.0.history(&history.key, Some(history)).unwrap();
        writing.carry_out().unwrap();
        writing.path
    }

    fn load(&self) -> Vec<History> {
        self.0.load().0
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What is left lies below the folder for temporary files.
        let _ = crate::sys::fs::remove_tree(&self.0.folder);
    }
}

#[test]
fn records_bring_back_what_was() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new("records");
    let mut history = fresh();
    accept(&mut history, "a");
    accept(&mut history, "b");
    history.judge(1, Verdict::Good);
    history.judge(2, Verdict::Bad { why: "it crashed".into() });
    history.roll_back(1, By::Gate, "it crashed".into(), at(7));
    let path = bench.save(&history);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    let mut again = bench.load().pop().unwrap();
    assert_eq!((&again.key, again.running(), again.rollback()), (&history.key, Some(1), history.rollback()));
    assert_eq!(again.get(2).unwrap().verdict, Verdict::Bad { why: "it crashed".into() });
    assert_eq!(again.effective(), history.effective());
    assert!(!again.accept(&desired("b"), SourceKind::File, at(9)), "nothing new");
    assert_eq!(image(&mut again), "a");
    bench.0.history(&history.key, None).unwrap().carry_out().unwrap();
    assert!(bench.load().is_empty() && !path.exists());
}

#[test]
fn a_damaged_record_is_set_aside_and_costs_no_other() {
    let bench = Bench::new("damage");
    let mut history = fresh();
    accept(&mut history, "a");
    let whole = fs::read(bench.save(&history)).unwrap();
    let other = History { key: Key { namespace: "x".into(), name: "y".into() }, ..history.clone() };
    for damage in [&b""[..], &whole[..whole.len() / 2], b"{}", &[0; 300], b"\xff\xfe"] {
        let (path, _) = (bench.save(&history), bench.save(&other));
        fs::write(&path, damage).unwrap();
        assert_eq!(bench.load().len(), 1, "{damage:?}");
        assert!(!path.exists() && path.with_extension("damaged").exists());
    }
}

#[test]
fn a_rollback_to_what_cannot_be_read_is_none() {
    let mut history = fresh();
    accept(&mut history, "a");
    accept(&mut history, "b");
    history.roll_back(1, By::Hand, String::new(), at(1));
    history.revisions[0].body = Body::Text(Arc::from(RawValue::from_string("[1]".to_owned()).unwrap()));
    assert_eq!(image(&mut history), "b");
    assert!(history.rollback().is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Accept(u8),
    Back(u64),
    Judge(u64, bool),
    Remove,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..20).prop_map(Step::Accept),
        2 => (1u64..30).prop_map(Step::Back),
        2 => ((1u64..30), any::<bool>()).prop_map(|(n, good)| Step::Judge(n, good)),
        1 => Just(Step::Remove),
        2 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_one_revision_runs_and_numbers_only_grow(steps in steps()) {
        let mut history = fresh();
        let (mut newest, mut wanted) = (0, None);
        for step in steps {
            match step {
                Step::Accept(image) => {
                    accept(&mut history, &image.to_string());
                    wanted = Some(image);
                }
                Step::Back(number) if wanted.is_some() => history.roll_back(number, By::Hand, String::new(), at(1)),
                Step::Back(_) => {}
                Step::Judge(number, good) => {
                    let verdict = if good { Verdict::Good } else { Verdict::Bad { why: String::new() } };
                    history.judge(number, verdict);
                }
                Step::Remove => {
                    history.remove(at(2));
                    wanted = None;
                }
                Step::Restart => history = History::decode(&history.encode().unwrap()).unwrap(),
            }
            let all = numbers(&history);
            prop_assert!(all.is_sorted_by(|a, b| a < b) && all.len() <= MAX_REVISIONS);
            let last = all.last().copied().unwrap_or_default();
            prop_assert!(last >= newest);
            newest = last;
            prop_assert_eq!(history.running().is_some(), wanted.is_some());
            if let Some(wanted) = wanted {
                let running = history.running().unwrap();
                prop_assert!(history.get(running).is_some());
                prop_assert_eq!(history.rollback().is_some(), running != last);
                let said = history.latest().unwrap().pod().unwrap();
                prop_assert_eq!(said.spec.as_ref().unwrap().containers[0].image.clone().unwrap(), wanted.to_string());
                prop_assert!(history.effective().is_some());
            }
        }
    }

    #[test]
    fn no_bytes_make_a_record_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = History::decode(&bytes);
    }
}

#[test]
fn what_was_rolled_back_is_tried_again_when_its_manifest_went_and_came_back() {
    let mut history = fresh();
    accept(&mut history, "a");
    history.judge(1, Verdict::Good);
    accept(&mut history, "b");
    history.judge(2, Verdict::Bad { why: "x".into() });
    history.roll_back(1, By::Gate, "x".into(), at(1));
    history.remove(at(2));
    assert!(accept(&mut history, "b"));
    assert_eq!((history.running(), history.is_tried(), history.fallback()), (Some(2), true, Some(1)));
}

#[test]
fn what_runs_after_a_rollback_stays_good_when_the_manifest_says_it_again() {
    let mut history = fresh();
    accept(&mut history, "a");
    history.judge(1, Verdict::Good);
    accept(&mut history, "b");
    history.judge(2, Verdict::Bad { why: "x".into() });
    history.roll_back(1, By::Gate, "x".into(), at(1));
    accept(&mut history, "a");
    assert_eq!((history.running(), history.is_tried()), (Some(3), false));
    accept(&mut history, "c");
    assert_eq!((history.is_tried(), history.fallback()), (true, Some(3)), "there is something to go back to");
    // What did not run any more is tried anew.
    accept(&mut history, "a");
    assert!(history.is_tried());
}
