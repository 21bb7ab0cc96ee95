//! Signatures that the real tool made, some that are made here in its old form, and what is none.

use super::*;
use proptest::prelude::*;
use ring::signature::{Ed25519KeyPair, KeyPair};
use std::sync::LazyLock;

/// Signs as `minisign -S -l` does: of the new form, tests have what the tool made.
pub(crate) struct Signer {
    pair: Ed25519KeyPair,
    id: [u8; 8],
}

impl Signer {
    /// The key that this number makes.
    pub(crate) fn new(seed: u8) -> Signer {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a key of any seed");
        Signer { pair, id: [seed; 8] }
    }

    fn with_algorithm(&self, more: &[u8]) -> String {
        STANDARD.encode([b"Ed", &self.id[..], more].concat())
    }

    /// The public key in one line.
    pub(crate) fn public(&self) -> String {
        self.with_algorithm(self.pair.public_key().as_ref())
    }

    /// The text of a `.minisig`.
    pub(crate) fn sign(&self, content: &[u8], comment: &str) -> String {
        let signature = self.pair.sign(content);
        let global = self.pair.sign(&[signature.as_ref(), comment.as_bytes()].concat());
        format!(
            "untrusted comment: made by a test\n{}\ntrusted comment: {comment}\n{}\n",
            self.with_algorithm(signature.as_ref()),
            STANDARD.encode(global.as_ref())
        )
    }
}

/// Made by minisign 0.11 of `archive`, by a key that signs nothing else.
const KEY: &str = "RWSNlhCCvAa+ZuFKPNIaiUGx9yAUNMCZgFJVTTZuR9hwWxm6+4hEKt/t";
const HASHED: &str = "untrusted comment: signature from minisign secret key\nRUSNlhCCvAa+ZgWJK+Y8gf5zAIoqoUSGVBZnxRrTZ949Qd0Ny6wkXDHvMWOsp9hqsoiHqkKMxOmhewzGq9beap7EgPqkzSDoUgQ=\ntrusted comment: trusted\nx8lYtQ/13VDDNBL3OX6kqI+c3zPQh2H/02TeA0O7y2S7PvFno3wTmotegQVWwv2Moz+kxgH/pTrsYQhWReBDBA==\n";
const LEGACY: &str = "untrusted comment: signature from minisign secret key\nRWSNlhCCvAa+ZiqtHc99JY5YtmAbaPvi2hdIJnJRhF657PlNlTc0iElAFNT3ubP9NK+Hl/Tp+C9l8UXkSFuvJuneW+AwY6xRuAM=\ntrusted comment: t\nANthBYOyIYSZfjAYbtmqvAPaIJtFXU7hpWv/dgnymB4spcfitG/w919hrYEpMAqIBOYRTVq+E0clOHfG7hPnAA==\n";

fn good(key: &str, text: &[u8], content: &[u8]) -> bool {
    let keys = Keys::new("keys", &[key.to_owned()]).now();
    Signature::parse(text).is_some_and(|signature| keys.iter().any(|key| signature.is_good(key, content)))
}

#[test]
fn both_forms_of_the_tool_are_good() {
    for (text, legacy, comment) in [(HASHED, false, "trusted"), (LEGACY, true, "t")] {
        let signature = Signature::parse(text.as_bytes()).unwrap();
        assert_eq!(signature.key().to_string(), "66BE06BC8210968D", "as minisign shows it");
        assert_eq!((signature.is_legacy(), signature.trusted_comment()), (legacy, comment));
        assert!(good(KEY, text.as_bytes(), b"archive") && !good(KEY, text.as_bytes(), b"archivf"));
        assert!(good(KEY, text.replace('\n', "\r\n").as_bytes(), b"archive"), "after a mail program");
        assert!(good(KEY, text.trim_end().as_bytes(), b"archive"));
    }
    let own = Signer::new(1);
    assert!(good(&own.public(), own.sign(b"x", "serial=1").as_bytes(), b"x"));
}

#[test]
fn only_one_spelling_of_a_signature_is_one() {
    // Bits that base64 leaves unused, padding that is left out, lines besides.
    for (from, to) in [("UgQ=", "UgR="), ("DBA==", "DBB=="), ("DBA==", "DBA="), ("DBA==", "DBA")] {
        assert!(Signature::parse(HASHED.replace(from, to).as_bytes()).is_none(), "{to}");
    }
    for text in [
        String::new(),
        format!("{HASHED}\n"),
        format!("{HASHED}more\n"),
        format!("\n{HASHED}"),
        HASHED.replacen("untrusted comment", "comment", 1),
        HASHED.replacen("\ntrusted comment: ", "\ntrusted comment:", 1),
        "x".repeat(LARGEST_SIGNATURE as usize + 1),
    ] {
        assert!(Signature::parse(text.as_bytes()).is_none(), "{text:.80}");
    }
}

proptest! {
    #[test]
    fn no_changed_byte_is_accepted(at in any::<prop::sample::Index>(), change in 1u8..=255, legacy: bool) {
        static SIGNED: LazyLock<(String, Vec<u8>, String)> = LazyLock::new(|| {
            let (signer, content) = (Signer::new(3), b"kind: Pod\n".to_vec());
            (signer.public(), content.clone(), signer.sign(&content, "timestamp:1\tserial=7"))
        });
        let (key, content, text) = match legacy {
            true => (SIGNED.0.as_str(), SIGNED.1.as_slice(), SIGNED.2.as_str()),
            false => (KEY, &b"archive"[..], HASHED),
        };
        let mut altered = content.to_vec();
        let place = at.index(altered.len());
        altered[place] ^= change;
        prop_assert!(!good(key, text.as_bytes(), &altered));
        let mut altered = text.as_bytes().to_vec();
        let place = at.index(altered.len());
        altered[place] ^= change;
        if good(key, &altered, content) {
            // What is signed is as it was: the untrusted comment is nobody's word.
            let altered = String::from_utf8(altered).unwrap();
            prop_assert_eq!(altered.lines().skip(1).collect::<Vec<_>>(), text.lines().skip(1).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_text_panics(text in "(untrusted comment: )?[\\PC\n]{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Signature::parse(text.as_bytes());
        let _ = Signature::parse(&bytes);
        let _ = Keys::new("keys", &[text]).now();
        let line = STANDARD.encode(&bytes);
        let _ = Signature::parse(format!("untrusted comment: \n{line}\ntrusted comment: \n{line}\n").as_bytes());
        let _ = Keys::new("keys", &[line]).now();
    }
}
