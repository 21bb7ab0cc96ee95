//! A directory over real files in a temporary folder.

use super::*;
use crate::manifest;
use crate::source::Snapshot;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// A temporary folder with `manifests/` and `state/`, removed at the end.
pub(in crate::source) struct Bench {
    root: PathBuf,
}

impl Bench {
    pub(in crate::source) fn new() -> Bench {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("coracle-source-{}-{number}", std::process::id()));
        fs::create_dir_all(root.join("manifests")).unwrap();
        Bench { root }
    }

    pub(in crate::source) fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    pub(in crate::source) fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    pub(in crate::source) fn file(&self, name: &str) -> PathBuf {
        self.manifests().join(name)
    }

    pub(in crate::source) fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    /// Where the temporary folder is, is not looked at.
    pub(in crate::source) fn options(&self) -> Options {
        let permissions = Permissions::Ignore;
        Options { permissions, ..Options::new(self.manifests(), "n1".to_owned(), self.state()) }
    }

    pub(in crate::source) fn directory(&self) -> Directory {
        Directory::new(self.options()).impatient()
    }

    /// Scans and saves with a fresh agent.
    pub(in crate::source) fn restart(&self) -> Snapshot {
        let mut directory = self.directory();
        step(&mut directory)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

pub(in crate::source) fn step(directory: &mut Directory) -> Snapshot {
    let snapshot = directory.scan();
    directory.save().unwrap();
    snapshot
}

pub(in crate::source) fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: \"{image}\"}}]}}\n"
    )
}

/// `name image` of each pod.
pub(in crate::source) fn shown(snapshot: &Snapshot) -> Vec<String> {
    let show = |desired: &Desired| {
        let image = desired.pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
        let name = desired.pod.metadata.name.clone().unwrap();
        format!("{} {image}", name.strip_suffix("-n1").unwrap())
    };
    snapshot.pods.iter().map(show).collect()
}

/// `file: problem` of each problem.
pub(in crate::source) fn told(snapshot: &Snapshot) -> Vec<String> {
    let file = |origin: &str| Path::new(origin).file_name().unwrap().to_string_lossy().into_owned();
    snapshot.problems.iter().map(|told| format!("{}: {}", file(&told.origin), told.problem)).collect()
}

#[test]
fn follows_files_as_they_come_change_and_go() {
    let bench = Bench::new();
    let mut directory = bench.directory();
    assert_eq!(step(&mut directory), Snapshot { healthy: true, ..Snapshot::default() });
    bench.write("b.yaml", &pod("b", "app:1"));
    bench.write("a.json", r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"app:1"}]}}"#);
    let first = step(&mut directory);
    assert_eq!(shown(&first), ["a app:1", "b app:1"]);
    assert_eq!(first.pods[1].origin, bench.file("b.yaml").to_str().unwrap());
    bench.write("b.yaml", &format!("{}---\n{}", pod("b", "app:1"), pod("c", "app:2")));
    let second = step(&mut directory);
    assert_eq!(shown(&second), ["a app:1", "b app:1", "c app:2"]);
    assert!(Arc::ptr_eq(&first.pods[1].pod, &second.pods[1].pod), "an unchanged pod stays the same object");
    fs::remove_file(bench.file("b.yaml")).unwrap();
    assert_eq!(shown(&step(&mut directory)), ["a app:1"]);
}

#[test]
fn a_broken_edit_keeps_what_ran() {
    let bench = Bench::new();
    let mut directory = bench.directory();
    bench.write("a.yaml", &pod("a", "app:1"));
    step(&mut directory);
    let broken = [
        "",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {",
        "\u{0}\u{1}binary",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {runtimeClassName: x, containers: [{name: c, image: \"app:2\"}]}\n",
        "apiVersion: v1\nkind: ConfigMap\n",
    ];
    for text in broken {
        bench.write("a.yaml", text);
        let snapshot = step(&mut directory);
        assert_eq!(shown(&snapshot), ["a app:1"], "{text:?}");
        assert!(!snapshot.problems.is_empty() && snapshot.healthy);
        let whose = snapshot.problems[0].pod.clone();
        assert_eq!(whose, Some(("default".to_owned(), "a-n1".to_owned())), "the event belongs to the pod that runs");
        assert_eq!(shown(&bench.restart()), ["a app:1"], "{text:?} after a restart");
    }
    bench.write("a.yaml", &pod("a", "app:3"));
    let mended = step(&mut directory);
    assert_eq!((shown(&mended), told(&mended)), (vec!["a app:3".to_owned()], vec![]));
}

#[test]
fn a_broken_document_keeps_its_own_pod_only() {
    let bench = Bench::new();
    let mut directory = bench.directory();
    bench.write("a.yaml", &format!("{}---\n{}", pod("a", "app:1"), pod("b", "app:1")));
    step(&mut directory);
    bench.write("a.yaml", &format!("{}---\n{}", pod("a", "app:2"), pod("b", "").replace("image", "imag")));
    let snapshot = step(&mut directory);
    assert_eq!(shown(&snapshot), ["a app:2", "b app:1"]);
    assert_eq!(shown(&bench.restart()), ["a app:2", "b app:1"]);
    bench.write("a.yaml", &pod("a", "app:2"));
    assert_eq!(shown(&step(&mut directory)), ["a app:2"]);
}

#[test]
fn a_file_that_is_gone_takes_its_pods_along_for_good() {
    let bench = Bench::new();
    bench.write("a.yaml", &pod("a", "app:1"));
    bench.restart();
    assert_eq!(fs::read_dir(bench.state()).unwrap().count(), 1);
    fs::remove_file(bench.file("a.yaml")).unwrap();
    assert_eq!(shown(&bench.restart()), [""; 0]);
    assert_eq!(fs::read_dir(bench.state()).unwrap().count(), 0, "its record is gone, too");
    bench.write("a.yaml", "broken: [");
    assert_eq!(shown(&bench.restart()), [""; 0], "not resurrected");
}

#[test]
fn what_was_removed_while_no_agent_ran_does_not_come_back_for_a_moment() {
    let bench = Bench::new();
    bench.write("a.yaml", &pod("a", "app:1"));
    bench.restart();
    fs::remove_file(bench.file("a.yaml")).unwrap();
    let mut patient = Directory::new(bench.options());
    assert_eq!(shown(&patient.scan()), [""; 0]);
}

#[test]
fn a_vanished_directory_keeps_everything() {
    let bench = Bench::new();
    let mut directory = bench.directory();
    bench.write("a.yaml", &pod("a", "app:1"));
    step(&mut directory);
    fs::rename(bench.manifests(), bench.root.join("away")).unwrap();
    for snapshot in [step(&mut directory), bench.restart()] {
        assert_eq!(shown(&snapshot), ["a app:1"]);
        assert!(!snapshot.healthy && snapshot.error.unwrap().contains("No such file"));
    }
    fs::write(bench.manifests(), "a file in its place").unwrap();
    assert_eq!(shown(&step(&mut directory)), [""; 0], "then it is a manifest of its own");
    fs::remove_file(bench.manifests()).unwrap();
    fs::rename(bench.root.join("away"), bench.manifests()).unwrap();
    let back = step(&mut directory);
    assert_eq!((shown(&back), back.healthy), (vec!["a app:1".to_owned()], true));
}

#[test]
fn what_is_no_manifest_is_told_and_scratch_files_are_not() {
    let bench = Bench::new();
    for name in [".a.yaml", ".a.yaml.swp", "a.yaml~", "#a.yaml#", "4913", "a.yaml.tmp", "a.yaml.part"] {
        bench.write(name, &pod("no", "app:1"));
    }
    bench.write("a.yaml.bak", &pod("no", "app:1"));
    bench.write("README", "no");
    fs::create_dir(bench.file("sub.yaml")).unwrap();
    fs::write(bench.manifests().join(std::ffi::OsStr::from_bytes(b"\xff.yaml")), pod("no", "x")).unwrap();
    let status = std::process::Command::new("mkfifo").arg(bench.file("fifo.yaml")).status().unwrap();
    assert!(status.success());
    symlink("/dev/zero", bench.file("zero.yaml")).unwrap();
    let snapshot = bench.restart();
    assert_eq!(shown(&snapshot), [""; 0]);
    assert_eq!(
        told(&snapshot),
        [
            "README: warning: ignored: manifests are named .yaml, .yml or .json",
            "a.yaml.bak: warning: ignored: manifests are named .yaml, .yml or .json",
            "fifo.yaml: warning: ignored: is not a regular file",
            "sub.yaml: warning: ignored: is a directory",
            "zero.yaml: warning: ignored: is not a regular file",
            "\u{fffd}.yaml: warning: ignored: its name is not UTF-8",
        ]
    );
    assert!(snapshot.healthy);
    for number in 0..100 {
        bench.write(&format!("x{number}"), "");
    }
    let many = bench.restart();
    assert_eq!(many.problems.len(), MAX_STRANGERS + 1);
    assert!(told(&many)[0].ends_with("more files here are no manifests: ignored"), "{:?}", told(&many));
}

#[test]
fn links_are_followed_and_dangling_ones_told() {
    let bench = Bench::new();
    let mut directory = bench.directory();
    fs::write(bench.root.join("target"), pod("a", "app:1")).unwrap();
    symlink("../target", bench.file("a.yaml")).unwrap();
    symlink("nowhere", bench.file("b.yaml")).unwrap();
    symlink("c.yaml", bench.file("c.yaml")).unwrap();
    let snapshot = step(&mut directory);
    assert_eq!(shown(&snapshot), ["a app:1"]);
    assert_eq!(told(&snapshot)[0], "b.yaml: is a link to a file that does not exist");
    assert!(told(&snapshot)[1].starts_with("c.yaml: cannot be read: "), "{:?}", told(&snapshot));
    fs::write(bench.root.join("target"), pod("a", "app:22")).unwrap();
    assert_eq!(shown(&step(&mut directory)), ["a app:22"]);
    fs::remove_file(bench.root.join("target")).unwrap();
    assert_eq!(shown(&step(&mut directory)), ["a app:22"], "the file itself is still named");
}

#[test]
fn a_file_that_is_too_long_keeps_its_pods() {
    let bench = Bench::new();
    let mut directory = bench.directory();
    bench.write("a.yaml", &pod("a", "app:1"));
    step(&mut directory);
    let file = OpenOptions::new().write(true).open(bench.file("a.yaml")).unwrap();
    file.set_len(20 << 20).unwrap();
    let snapshot = step(&mut directory);
    assert_eq!(shown(&snapshot), ["a app:1"]);
    assert_eq!(told(&snapshot), ["a.yaml: is 20971520 bytes long; the limit is 10485759 bytes"]);
    let text = format!("{}#", pod("a", "app:2"));
    let fill = manifest::MAX_BYTES - 1 - text.len();
    bench.write("a.yaml", &format!("{text}{}", "x".repeat(fill)));
    assert_eq!(shown(&step(&mut directory)), ["a app:2"], "one byte less than the limit");
}

#[test]
fn of_two_files_with_one_object_the_one_that_served_goes_on() {
    let bench = Bench::new();
    let mut directory = bench.directory();
    let map =
        |value: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{from: {value}}}\n");
    bench.write("b.yaml", &map("b"));
    step(&mut directory);
    bench.write("a.yaml", &map("a"));
    for snapshot in [step(&mut directory), bench.restart()] {
        let from: Vec<&str> = snapshot.objects.iter().map(|object| object.origin.as_str()).collect();
        assert!(matches!(from[..], [only] if only.ends_with("b.yaml")), "{from:?}");
        assert_eq!(
            told(&snapshot),
            [
                "a.yaml: metadata.name: Duplicate value: \"ConfigMap default/m\": b.yaml has it, too: this one is ignored"
            ]
        );
    }
}

#[test]
fn of_two_files_with_one_pod_the_one_that_ran_goes_on() {
    let bench = Bench::new();
    let mut directory = bench.directory();
    bench.write("b.yaml", &pod("p", "from:b"));
    step(&mut directory);
    bench.write("a.yaml", &pod("p", "from:a"));
    for snapshot in [step(&mut directory), bench.restart()] {
        assert_eq!(shown(&snapshot), ["p from:b"]);
        assert_eq!(
            told(&snapshot),
            [
                "a.yaml: metadata.name: Duplicate value: \"p-n1\": b.yaml has a pod with it, which keeps running",
                "b.yaml: warning: metadata.name: Duplicate value: \"p-n1\": a.yaml has a pod with it, too, which is ignored",
            ]
        );
    }
    fs::remove_file(bench.file("b.yaml")).unwrap();
    let snapshot = step(&mut directory);
    assert_eq!((shown(&snapshot), told(&snapshot)), (vec!["p from:a".to_owned()], vec![]));

    let fresh = Bench::new();
    fresh.write("b.yaml", &pod("p", "from:b"));
    fresh.write("a.yaml", &pod("p", "from:a"));
    assert_eq!(shown(&fresh.restart()), ["p from:a"], "the first when none ran");
}

#[test]
fn one_uid_is_one_pod() {
    let bench = Bench::new();
    let with_uid = |name: &str| pod(name, "app:1").replacen("{name:", "{uid: u-1, name:", 1);
    bench.write("a.yaml", &with_uid("a"));
    bench.write("b.yaml", &with_uid("b"));
    let snapshot = bench.restart();
    assert_eq!(shown(&snapshot), ["a app:1"]);
    assert!(told(&snapshot)[1].starts_with("b.yaml: metadata.uid: Duplicate value"), "{:?}", told(&snapshot));
}

#[test]
fn a_file_that_settles_is_not_reported_before() {
    let bench = Bench::new();
    let mut directory = Directory::new(bench.options());
    bench.write("a.yaml", "apiVersion: v1\nkind: Po");
    let snapshot = step(&mut directory);
    assert_eq!((told(&snapshot), shown(&snapshot)), (vec![], vec![]));
    assert!(!snapshot.healthy, "what runs since before the agent was started may be its pod");
    assert!(directory.retry_in().is_some_and(|wait| wait <= SETTLE));
    bench.write("a.yaml", &pod("a", "app:1"));
    let snapshot = step(&mut directory);
    assert_eq!((shown(&snapshot), snapshot.healthy), (vec!["a app:1".to_owned()], true), "whole: at once");
    assert_eq!(directory.retry_in(), None);
    bench.write("a.yaml", "apiVersion: v1\nkind: Po");
    let file = File::open(bench.file("a.yaml")).unwrap();
    file.set_modified(SystemTime::now() - 2 * SETTLE).unwrap();
    let snapshot = step(&mut directory);
    assert_eq!((snapshot.problems.len(), shown(&snapshot)), (1, vec!["a app:1".to_owned()]), "broken for good");
}

#[test]
fn a_file_that_is_being_written_waits_for_its_writer() {
    let bench = Bench::new();
    let mut directory = Directory::new(bench.options());
    directory.begin_writing("a.yaml");
    bench.write("a.yaml", &pod("a", "app:1"));
    assert_eq!(shown(&step(&mut directory)), [""; 0]);
    assert!(directory.retry_in().is_some());
    directory.end_writing("a.yaml");
    assert_eq!(shown(&step(&mut directory)), ["a app:1"]);
}

#[test]
fn unchanged_files_are_not_read_again() {
    let bench = Bench::new();
    let mut directory = bench.directory();
    bench.write("a.yaml", &pod("a", "app:1"));
    let old = SystemTime::now() - Duration::from_secs(60);
    File::open(bench.file("a.yaml")).unwrap().set_modified(old).unwrap();
    step(&mut directory);
    let seen = directory.files["a.yaml"].seen;
    assert!(seen.is_some());
    assert!(matches!(look(&bench.file("a.yaml"), seen, false, Duration::ZERO, &bench.options()), Outcome::Same));
    // Same size, same time of modification: the time of change tells.
    bench.write("a.yaml", &pod("a", "app:2"));
    File::open(bench.file("a.yaml")).unwrap().set_modified(old).unwrap();
    assert_eq!(shown(&step(&mut directory)), ["a app:2"]);
}

#[test]
fn a_single_file_is_a_source_too() {
    let bench = Bench::new();
    bench.write("only.yaml", &pod("a", "app:1"));
    bench.write("other.yaml", &pod("b", "app:1"));
    let source = || Directory::new(Options { path: bench.file("only.yaml"), ..bench.options() }).impatient();
    let mut directory = source();
    assert_eq!(shown(&step(&mut directory)), ["a app:1"]);
    bench.write("only.yaml", "broken: [");
    assert_eq!(shown(&step(&mut directory)), ["a app:1"]);
    assert_eq!(shown(&step(&mut source())), ["a app:1"], "after a restart");
    fs::remove_file(bench.file("only.yaml")).unwrap();
    assert_eq!(shown(&step(&mut directory)), [""; 0]);
}

#[test]
fn records_are_private_and_bad_ones_passed_over() {
    let bench = Bench::new();
    bench.write("a.yaml", &pod("a", "app:1"));
    bench.restart();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.state()), 0o700);
    let record = fs::read_dir(bench.state()).unwrap().next().unwrap().unwrap().path();
    assert_eq!(mode(&record), 0o600);
    fs::write(&record, "{\"path\": 5").unwrap();
    fs::write(bench.state().join("left-over.tmp"), "x").unwrap();
    bench.write("a.yaml", "broken: [");
    assert_eq!(shown(&bench.restart()), [""; 0]);
    assert!(!bench.state().join("left-over.tmp").exists());
    let other = Directory::new(Options { node: "n2".to_owned(), ..bench.options() }).impatient().scan();
    assert!(other.pods.is_empty(), "another node's records are not this node's");
}

#[test]
fn an_editor_that_moves_the_old_file_away_first_stops_nothing() {
    let bench = Bench::new();
    bench.write("web.yaml", &pod("web", "app:1"));
    let mut directory = Directory::new(bench.options());
    directory.settle = Duration::from_millis(50);
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(directory.scan().pods.len(), 1);
    fs::rename(bench.file("web.yaml"), bench.file("web.yaml~")).unwrap();
    assert_eq!(directory.scan().pods.len(), 1, "kept for a moment");
    assert!(directory.retry_in().is_some());
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(directory.scan().pods.len(), 0, "really gone");
}

#[test]
fn the_lines_of_a_pod_are_those_of_the_text_that_it_is_from() {
    let bench = Bench::new();
    let needy = pod("web", "a").replace("image: \"a\"", "image: \"a\", envFrom: [{secretRef: {name: db}}]");
    let mut directory = bench.directory();
    let line = |snapshot: &Snapshot| {
        let places = snapshot.places.get(bench.file("web.yaml").to_str().unwrap())?;
        let fields = places.get(&("default".to_owned(), "web-n1".to_owned()))?;
        fields.get("spec.containers[0].envFrom[0].secretRef.name").map(|(line, _)| *line)
    };
    bench.write("web.yaml", &needy);
    assert_eq!(line(&step(&mut directory)), Some(4));
    bench.write("web.yaml", &format!("# a comment\n{needy}"));
    assert_eq!(line(&step(&mut directory)), Some(5));
    // What runs on is not what the broken text says.
    bench.write("web.yaml", &needy.replace("name: c", "name: C_"));
    let snapshot = step(&mut directory);
    assert_eq!((shown(&snapshot), line(&snapshot)), (vec!["web a".to_owned()], None));
    assert!(!snapshot.problems.is_empty());
}
