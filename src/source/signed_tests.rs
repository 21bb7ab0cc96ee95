//! A directory whose manifests have to be signed, or may be written by others.

use super::directory::tests::{Bench, pod, shown, step, told};
use super::*;
use crate::minisign::tests::Signer;
use std::fs;
use std::os::unix::fs::PermissionsExt;

impl Bench {
    fn serials(&self) -> std::path::PathBuf {
        self.state().with_extension("serials")
    }

    /// A source that wants signatures of these, as a new agent has it.
    fn signed_by(&self, signers: &[&Signer]) -> Directory {
        let keys: Vec<String> = signers.iter().map(|signer| signer.public()).collect();
        let verifier = Verifier::new(&keys, Some(self.serials())).unwrap();
        Directory::new(Options { verifier, ..self.options() }).impatient()
    }

    fn sign(&self, signer: &Signer, name: &str, text: &str, comment: &str) {
        self.write(&format!("{name}.minisig"), &signer.sign(text.as_bytes(), comment));
        self.write(name, text);
    }
}

#[test]
fn what_is_not_signed_by_us_never_replaces_what_is() {
    let bench = Bench::new();
    let (ours, stranger) = (Signer::new(1), Signer::new(2));
    let mut directory = bench.signed_by(&[&ours]);
    let (one, two) = (pod("a", "app:1"), pod("a", "app:2"));
    bench.sign(&ours, "a.yaml", &one, "serial=4");
    let first = step(&mut directory);
    assert_eq!((shown(&first), told(&first)), (vec!["a app:1".to_owned()], vec![]));
    let refused = |why: &str, directory: &mut Directory| {
        for snapshot in [step(directory), step(&mut bench.signed_by(&[&ours]))] {
            assert_eq!(shown(&snapshot), ["a app:1"], "{why}");
            assert!(told(&snapshot).len() == 1 && told(&snapshot)[0].contains(why), "{why}: {:?}", told(&snapshot));
            assert!(snapshot.healthy);
        }
    };
    bench.write("a.yaml", &two);
    refused("does not fit its signature by key 0101010101010101", &mut directory);
    bench.sign(&stranger, "a.yaml", &two, "serial=9");
    refused("is signed by key 0202020202020202", &mut directory);
    bench.write("a.yaml.minisig", "hello");
    refused("is not a minisign signature", &mut directory);
    fs::remove_file(bench.file("a.yaml.minisig")).unwrap();
    refused("is not signed: there is no a.yaml.minisig", &mut directory);
    fs::create_dir(bench.file("a.yaml.minisig")).unwrap();
    refused("its signature cannot be read: not a regular file", &mut directory);
    fs::remove_dir(bench.file("a.yaml.minisig")).unwrap();
    bench.sign(&ours, "a.yaml", &two, "serial=3");
    refused("serial 3 is older than 4", &mut directory);
    bench.sign(&ours, "a.yaml", &two, "");
    refused("has no serial", &mut directory);
    bench.sign(&ours, "a.yaml", &two, "serial=5");
    let mended = step(&mut directory);
    assert_eq!((shown(&mended), told(&mended)), (vec!["a app:2".to_owned()], vec![]));
    // The old text under another name.
    fs::remove_file(bench.file("a.yaml")).unwrap();
    step(&mut directory);
    bench.sign(&ours, "b.yaml", &one, "serial=4");
    for snapshot in [step(&mut directory), step(&mut bench.signed_by(&[&ours]))] {
        assert_eq!(shown(&snapshot), [""; 0]);
        assert_eq!(told(&snapshot), ["b.yaml: serial 4 is older than 5, which this node accepted for Pod default/a"]);
    }
}

#[test]
fn signatures_are_asked_for_only_with_keys_and_leave_alone_what_runs() {
    let bench = Bench::new();
    let ours = Signer::new(1);
    bench.write("a.yaml", &pod("a", "app:1"));
    bench.write("a.yaml.minisig", "no signature at all");
    bench.write("gone.yaml.minisig", "of nothing");
    let plain = bench.restart();
    assert_eq!((shown(&plain), told(&plain)), (vec!["a app:1".to_owned()], vec![]));
    fs::remove_file(bench.file("a.yaml.minisig")).unwrap();
    let mut directory = bench.signed_by(&[&ours]);
    let asked = step(&mut directory);
    assert_eq!(shown(&asked), ["a app:1"]);
    assert_eq!(told(&asked), ["a.yaml: is not signed: there is no a.yaml.minisig"]);
    bench.sign(&ours, "a.yaml", &pod("a", "app:1"), "");
    let signed = step(&mut directory);
    assert_eq!((shown(&signed), told(&signed)), (vec!["a app:1".to_owned()], vec![]));
    assert!(Arc::ptr_eq(&asked.pods[0].pod, &signed.pods[0].pod), "the same pod");
}

#[test]
fn a_pair_that_is_being_replaced_is_not_reported() {
    let bench = Bench::new();
    let ours = Signer::new(1);
    let keys = [ours.public()];
    let verifier = Verifier::new(&keys, None).unwrap();
    let mut directory = Directory::new(Options { verifier, ..bench.options() });
    let (one, two) = (pod("a", "app:1"), pod("a", "app:2"));
    bench.write("a.yaml", &one);
    let half = step(&mut directory);
    assert_eq!((shown(&half), told(&half)), (vec![], vec![]));
    assert!(directory.retry_in().is_some());
    bench.write("a.yaml.minisig", &ours.sign(one.as_bytes(), ""));
    assert_eq!(shown(&step(&mut directory)), ["a app:1"], "whole: at once");
    for content_first in [true, false] {
        let (text, was) = if content_first { (&two, "a app:1") } else { (&one, "a app:2") };
        let signature = ours.sign(text.as_bytes(), "");
        let files = [("a.yaml", text.as_str()), ("a.yaml.minisig", signature.as_str())];
        let order = if content_first { [0, 1] } else { [1, 0] };
        bench.write(files[order[0]].0, files[order[0]].1);
        let half = step(&mut directory);
        assert_eq!((shown(&half), told(&half)), (vec![was.to_owned()], vec![]));
        bench.write(files[order[1]].0, files[order[1]].1);
        let whole = step(&mut directory);
        assert_ne!(shown(&whole), [was]);
        assert_eq!((told(&whole), directory.retry_in()), (vec![], None));
    }
    // A manifest whose signature is still being written waits, too.
    directory.begin_writing("a.yaml.minisig");
    bench.write("a.yaml.minisig", "half");
    assert_eq!(told(&step(&mut directory)), [""; 0]);
    directory.end_writing("a.yaml.minisig");
    assert_eq!(told(&step(&mut directory)), [""; 0], "it may still be about to change");
}

#[test]
fn keys_are_rotated_without_a_restart() {
    let bench = Bench::new();
    let (old, new) = (Signer::new(1), Signer::new(2));
    let file = bench.state().with_extension("pub");
    // Written, not replaced: its time of change tells.
    let trust = |signers: &[&Signer]| {
        let staged = file.with_extension("staged");
        let lines: Vec<String> = signers.iter().map(|signer| signer.public()).collect();
        fs::write(&staged, lines.join("\n")).unwrap();
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(staged, &file).unwrap();
    };
    let verifier = Verifier::new(&[file.to_string_lossy().into_owned()], None).unwrap();
    let mut directory = Directory::new(Options { verifier, ..bench.options() }).impatient();
    bench.sign(&old, "a.yaml", &pod("a", "app:1"), "serial=1");
    let nothing = step(&mut directory);
    assert_eq!(shown(&nothing), [""; 0]);
    assert!(told(&nothing)[1].contains("cannot be verified") && told(&nothing).len() == 2, "{:?}", told(&nothing));
    trust(&[&old]);
    assert_eq!((shown(&step(&mut directory)), told(&step(&mut directory))), (vec!["a app:1".to_owned()], vec![]));
    trust(&[&old, &new]);
    assert_eq!(told(&step(&mut directory)), [""; 0]);
    // The same text by the other key, with the serial that it has.
    bench.sign(&new, "a.yaml", &pod("a", "app:1"), "serial=1");
    assert_eq!(told(&step(&mut directory)), [""; 0]);
    bench.sign(&old, "b.yaml", &pod("b", "app:1"), "serial=1");
    trust(&[&new]);
    let revoked = step(&mut directory);
    assert_eq!(shown(&revoked), ["a app:1"]);
    assert!(told(&revoked)[0].starts_with("b.yaml: is signed by key 0101010101010101"), "{:?}", told(&revoked));
}

#[test]
fn a_single_file_has_its_signature_beside_it() {
    let bench = Bench::new();
    let ours = Signer::new(1);
    let verifier = Verifier::new(&[ours.public()], None).unwrap();
    let options = Options { verifier, path: bench.file("a.yaml"), ..bench.options() };
    let mut directory = Directory::new(options).impatient();
    bench.write("a.yaml", &pod("a", "app:1"));
    assert_eq!(shown(&step(&mut directory)), [""; 0]);
    bench.sign(&ours, "a.yaml", &pod("a", "app:1"), "");
    assert_eq!(shown(&step(&mut directory)), ["a app:1"]);
}

fn mode(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn files_and_folders_that_others_may_write_are_told_of_or_refused() {
    let bench = Bench::new();
    bench.write("a.yaml", &pod("a", "app:1"));
    bench.write("b.yaml", &pod("b", "app:1"));
    mode(&bench.manifests(), 0o700);
    mode(&bench.file("a.yaml"), 0o644);
    mode(&bench.file("b.yaml"), 0o600);
    let with = |permissions| Directory::new(Options { permissions, ..bench.options() }).impatient();
    let (mut lax, mut strict) = (with(Permissions::Warn), with(Permissions::Refuse));
    for directory in [&mut lax, &mut strict] {
        let snapshot = step(directory);
        assert_eq!((shown(&snapshot).len(), told(&snapshot)), (2, vec![]));
    }
    bench.write("a.yaml", &pod("a", "app:2"));
    mode(&bench.file("a.yaml"), 0o666);
    let said = format!(
        "can be written by everybody (mode 0666), who decides by it what runs as root here: chmod go-w {}",
        bench.file("a.yaml").display()
    );
    let snapshot = step(&mut lax);
    assert_eq!((shown(&snapshot)[0].as_str(), told(&snapshot)), ("a app:2", vec![format!("a.yaml: warning: {said}")]));
    let snapshot = step(&mut strict);
    assert_eq!((shown(&snapshot)[0].as_str(), told(&snapshot)), ("a app:1", vec![format!("a.yaml: {said}")]));
    assert!(snapshot.healthy);

    mode(&bench.file("a.yaml"), 0o600);
    mode(&bench.manifests(), 0o775);
    fs::remove_file(bench.file("b.yaml")).unwrap();
    bench.write("c.yaml", &pod("c", "app:1"));
    let snapshot = step(&mut strict);
    assert_eq!(shown(&snapshot), ["a app:1", "b app:1"], "nothing is taken, nor is anything gone");
    assert!(told(&snapshot)[0].contains("manifests: can be written by its group (mode 0775)"), "{:?}", told(&snapshot));
    assert!(!snapshot.healthy && snapshot.error.is_some_and(|error| error.contains("chmod go-w")));
    let snapshot = step(&mut lax);
    assert_eq!((shown(&snapshot), snapshot.healthy), (vec!["a app:2".to_owned(), "c app:1".to_owned()], true));
    assert!(told(&snapshot)[0].contains("warning: can be written by its group"), "{:?}", told(&snapshot));

    // Whoever may rename the folder decides as well.
    mode(&bench.manifests(), 0o755);
    let around = bench.manifests().parent().unwrap().to_owned();
    mode(&around, 0o777);
    let snapshot = step(&mut strict);
    assert!(told(&snapshot)[0].contains("is in ") && told(&snapshot)[0].contains("by everybody (mode 0777)"));
    mode(&around, 0o1777);
    let snapshot = step(&mut strict);
    assert_eq!((shown(&snapshot), told(&snapshot)), (vec!["a app:2".to_owned(), "c app:1".to_owned()], vec![]));
}

#[test]
fn a_folder_of_objects_takes_no_pods() {
    let bench = Bench::new();
    bench.write("a.yaml", &pod("a", "app:1"));
    let mut directory = Directory::new(Options { takes: Takes::Objects, ..bench.options() }).impatient();
    let snapshot = step(&mut directory);
    assert!(snapshot.pods.is_empty());
    assert_eq!(
        told(&snapshot),
        ["a.yaml: kind: Pod a-n1: only ConfigMaps and Secrets are taken from here; pods go to the manifest directory"]
    );
}
