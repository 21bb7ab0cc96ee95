//! Texts, signatures and serials without a directory.

use super::*;
use crate::manifest::{self, Origin};
use crate::minisign::tests::Signer;
use crate::source::directory::tests::{Bench, pod};
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

const ORIGIN: &str = "/etc/m/a.yaml";

fn verifier(signers: &[&Signer], serials: Option<PathBuf>) -> Arc<Verifier> {
    let keys: Vec<String> = signers.iter().map(|signer| signer.public()).collect();
    Verifier::new(&keys, serials).unwrap().expect("there are keys")
}

/// What becomes of a text of this origin; it is remembered when it is taken.
fn offer(verifier: &Verifier, origin: &str, text: &str, signed: &str) -> Result<(), String> {
    let take = || {
        let signed = verifier.verify(text.as_bytes(), signed.as_bytes())?;
        let loaded = manifest::load(text.as_bytes(), Origin::File(origin), "n1");
        let text = Text { origin, bytes: text.as_bytes(), loaded: &loaded, node: "N1" };
        verifier.check(&text, &signed)?;
        verifier.accept(&text, &signed);
        Ok(())
    };
    take().map_err(|error: SignatureError| error.to_string())
}

#[test]
fn only_our_keys_signatures_of_these_bytes_are_accepted() {
    let (ours, second, stranger) = (Signer::new(1), Signer::new(2), Signer::new(3));
    let both = verifier(&[&ours, &second], None);
    for signer in [&ours, &second] {
        let signed = both.verify(b"x", signer.sign(b"x", "timestamp:5\tfile:x\tserial=7").as_bytes()).unwrap();
        assert_eq!((signed.serial, signed.comment.as_str()), (Some(7), "timestamp:5 file:x serial=7"));
    }
    let said = |content: &[u8], text: &str| both.verify(content, text.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        said(b"x", &stranger.sign(b"x", "")),
        "is signed by key 0303030303030303, which is not among manifestVerification.publicKeys (0101010101010101, 0202020202020202)"
    );
    assert!(said(b"y", &ours.sign(b"x", "")).starts_with("does not fit its signature by key 0101010101010101"));
    assert!(said(b"x", &ours.sign(b"x", "a").replace("comment: a", "comment: b")).starts_with("does not fit"));
    assert_eq!(said(b"x", "hello"), "its signature is not a minisign signature");
    assert_eq!(
        said(b"x", &ours.sign(b"x", "serial=\u{7}one")),
        "the trusted comment of its signature says \"serial= one\": want serial=NUMBER, once"
    );
    // Somebody else's key under our key's number.
    let mut forged = stranger.sign(b"x", "");
    let theirs = forged.lines().nth(1).unwrap()[..12].to_owned();
    let number = ours.sign(b"x", "").lines().nth(1).unwrap()[..12].to_owned();
    forged = forged.replacen(&theirs, &number, 1);
    assert!(both.verify(b"x", forged.as_bytes()).is_err());
}

#[test]
fn a_wrong_key_is_an_error_and_a_missing_file_of_keys_is_not() {
    let bench = Bench::new();
    let ours = Signer::new(1);
    assert!(Verifier::new(&[], None).unwrap().is_none());
    let error = Verifier::new(&[ours.public(), "no sense".into(), "AAAA".into()], None).unwrap_err().to_string();
    assert_eq!(
        error,
        "manifestVerification.publicKeys[1]: not a minisign public key: not base64; \
         manifestVerification.publicKeys[2]: not a minisign public key"
    );
    let file = bench.state().with_extension("pub");
    let keys = Verifier::new(&[file.to_string_lossy().into_owned()], None).unwrap().unwrap();
    let text = ours.sign(b"x", "");
    let said = keys.verify(b"x", text.as_bytes()).unwrap_err().to_string();
    assert!(said.starts_with("cannot be verified: minisign key ") && said.contains("No such file"), "{said}");
    assert_eq!(keys.troubles().len(), 1);
    let before = keys.revision();
    fs::write(&file, format!("untrusted comment: minisign public key\n{}\n", ours.public())).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_ne!(keys.revision(), before);
    keys.verify(b"x", text.as_bytes()).unwrap();
    assert!(keys.troubles().is_empty());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(keys.verify(b"x", text.as_bytes()).unwrap_err().to_string().contains("everybody may write to it"));
}

#[test]
fn serials_do_not_go_back_wherever_the_text_comes_from() {
    let bench = Bench::new();
    let path = bench.state().join("serials.json");
    let ours = Signer::new(1);
    let (old, new) = (pod("web", "app:1"), pod("web", "app:2"));
    let sign = |text: &str, comment: &str| ours.sign(text.as_bytes(), comment);
    let first = verifier(&[&ours], Some(path.clone()));
    offer(&first, ORIGIN, &old, &sign(&old, "")).unwrap();
    first.save().unwrap();
    assert!(!path.exists(), "nothing to remember");
    offer(&first, ORIGIN, &old, &sign(&old, "serial=4")).unwrap();
    offer(&first, ORIGIN, &new, &sign(&new, "serial=7")).unwrap();
    first.save().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    for verifier in [first, verifier(&[&ours], Some(path.clone()))] {
        let offer = |origin: &str, text: &str, comment: &str| offer(&verifier, origin, text, &sign(text, comment));
        assert_eq!(
            offer(ORIGIN, &old, "serial=4").unwrap_err(),
            "serial 4 is older than 7, which this node accepted for /etc/m/a.yaml"
        );
        assert_eq!(
            offer("/etc/m/b.yaml", &old, "serial=4").unwrap_err(),
            "serial 4 is older than 7, which this node accepted for Pod default/web"
        );
        let other = pod("other", "app:1");
        assert!(offer(ORIGIN, &other, "serial=6").unwrap_err().contains("/etc/m/a.yaml"));
        assert_eq!(
            offer(ORIGIN, &old, "").unwrap_err(),
            "its signature has no serial, but this node accepted serial 7 for /etc/m/a.yaml"
        );
        assert_eq!(
            offer(ORIGIN, &old, "serial=7").unwrap_err(),
            "serial 7 was accepted for /etc/m/a.yaml with another text: sign this one with a higher serial"
        );
        offer(ORIGIN, &new, "serial=7").unwrap();
        offer("/etc/m/b.yaml", &new, "serial=7").unwrap();
    }
}

#[test]
fn a_broken_text_does_not_bind_those_after_it() {
    let ours = Signer::new(1);
    let verifier = verifier(&[&ours], None);
    let sign = |text: &str, comment: &str| ours.sign(text.as_bytes(), comment);
    let text = pod("web", "app:1");
    offer(&verifier, ORIGIN, "kind: [", &sign("kind: [", "serial=9")).unwrap();
    offer(&verifier, ORIGIN, &text, &sign(&text, "serial=8")).unwrap();
}

#[test]
fn a_damaged_record_is_set_aside_and_told_of() {
    let bench = Bench::new();
    fs::create_dir_all(bench.state()).unwrap();
    let path = bench.state().join("serials.json");
    fs::write(&path, "{\"count\":").unwrap();
    let ours = Signer::new(1);
    let keys = verifier(&[&ours], Some(path.clone()));
    let troubles = keys.troubles().join("\n");
    assert!(troubles.contains("forgotten") && troubles.contains("serials.json.damaged"), "{troubles}");
    let text = pod("web", "app:1");
    offer(&keys, ORIGIN, &text, &ours.sign(text.as_bytes(), "serial=3")).unwrap();
    keys.save().unwrap();
    assert_eq!(fs::read_to_string(bench.state().join("serials.json.damaged")).unwrap(), "{\"count\":");
    assert!(verifier(&[&ours], Some(path)).troubles().is_empty());
}

#[test]
fn a_record_that_cannot_be_written_is_told_of_and_tried_again() {
    let bench = Bench::new();
    let folder = bench.state();
    fs::write(&folder, "a file in its place").unwrap();
    let ours = Signer::new(1);
    let keys = verifier(&[&ours], Some(folder.join("serials.json")));
    let text = pod("web", "app:1");
    offer(&keys, ORIGIN, &text, &ours.sign(text.as_bytes(), "serial=3")).unwrap();
    assert!(keys.save().is_err() && !keys.troubles().is_empty());
    fs::remove_file(&folder).unwrap();
    keys.save().unwrap();
    assert!(folder.join("serials.json").exists());
}

#[test]
fn serials_are_numbers_among_other_tokens() {
    assert_eq!(serial("timestamp:1700000000\tfile:x.yaml\thashed"), Ok(None));
    assert_eq!(serial("serial=7"), Ok(Some(7)));
    assert_eq!(serial("  release serial=18446744073709551615\tx"), Ok(Some(u64::MAX)));
    assert_eq!(serial("myserial=7"), Ok(None));
    for bad in ["serial=", "serial=x", "serial=-1", "serial=+1", "serial=18446744073709551616", "serial=1 serial=1"] {
        assert!(serial(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn the_comment_s_parser_is_total(text in "\\PC*|([ \t]|serial=|[0-9]{1,25}|\\PC){0,20}", number: u64) {
        let _ = serial(&text);
        let clean: String = text.replace("serial=", "");
        prop_assert_eq!(serial(&format!("{clean} serial={number} {clean}")), Ok(Some(number)));
    }
}
