//! Secrets at rest: sealed by a key that is not on the same disk. ChaCha20-Poly1305, as ring has it; each record has a
//! nonce of its own and is bound to what it is a record of, so that none can be put in the place of another.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::fmt;

/// Bytes of a key.
pub const KEY: usize = 32;
/// The first byte of what is sealed: how.
const VERSION: u8 = 1;

/// Why something cannot be sealed or opened. Says nothing of what is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key is none.
    #[error("a sealing key has {KEY} bytes, this one has {0}")]
    Key(usize),
    /// It is too short, or of a version that is not known here.
    #[error("it is not of the form that this version writes")]
    Form,
    /// Another key, or other bytes than were written.
    #[error("it was sealed with another key, or is damaged")]
    Damaged,
    /// The system gives no random numbers.
    #[error("there are no random numbers")]
    Random,
}

/// A key. Never shows what it is.
pub struct Key(LessSafeKey);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// A key of exactly [`KEY`] bytes.
    pub fn new(bytes: &[u8]) -> Result<Key, Error> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).map_err(|_| Error::Key(bytes.len()))?;
        Ok(Key(LessSafeKey::new(key)))
    }

    /// Seals `content` as that of `name`, with a `nonce` that is never used twice (96 random bits: four billion records are
    /// far from a collision).
    pub fn seal(&self, name: &str, content: &[u8], nonce: [u8; NONCE_LEN]) -> Result<Vec<u8>, Error> {
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + content.len() + CHACHA20_POLY1305.tag_len());
        sealed.push(VERSION);
        sealed.extend(nonce);
        let mut body = content.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.seal_in_place_append_tag(nonce, bound_to(name), &mut body).map_err(|_| Error::Form)?;
        sealed.extend(body);
        Ok(sealed)
    }

    /// The content that was sealed as that of `name`.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let (&version, rest) = sealed.split_first().ok_or(Error::Form)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Error::Form)?;
        if version != VERSION {
            return Err(Error::Form);
        }
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let content = self.0.open_in_place(nonce, bound_to(name), &mut body).map_err(|_| Error::Damaged)?;
        let length = content.len();
        body.truncate(length);
        Ok(body)
    }
}

fn bound_to(name: &str) -> Aad<String> {
    Aad::from(format!("coracle record {VERSION}\n{name}"))
}

/// Random bytes for one record.
pub fn nonce() -> Result<[u8; NONCE_LEN], Error> {
    use ring::rand::SecureRandom;
    let mut nonce = [0; NONCE_LEN];
    ring::rand::SystemRandom::new().fill(&mut nonce).map_err(|_| Error::Random)?;
    Ok(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> Key {
        Key::new(&[byte; KEY]).expect("key")
    }

    #[test]
    fn keys_have_thirty_two_bytes() {
        for length in [0, 16, 31, 33, 64] {
            assert_eq!(Key::new(&vec![0; length]).err(), Some(Error::Key(length)));
        }
        assert_eq!(format!("{:?}", key(7)), "Key");
        assert_ne!(nonce(), nonce());
    }

    #[test]
    fn two_of_the_same_do_not_look_the_same() {
        let seal = || key(1).seal("a", b"secret", nonce().expect("nonce")).expect("sealed");
        assert_ne!(seal(), seal());
    }

    proptest! {
        #[test]
        fn what_was_sealed_comes_back(name in ".{0,20}", content in any::<Vec<u8>>(), nonce in any::<[u8; NONCE_LEN]>()) {
            let sealed = key(1).seal(&name, &content, nonce).expect("sealed");
            prop_assert_eq!(key(1).open(&name, &sealed), Ok(content.clone()));
            prop_assert_eq!(key(2).open(&name, &sealed), Err(Error::Damaged));
            prop_assert_eq!(key(1).open(&format!("{name}x"), &sealed), Err(Error::Damaged));
            let found = sealed.windows(content.len().max(8)).any(|part| content.len() >= 8 && part == content);
            prop_assert!(!found);
        }

        #[test]
        fn damage_is_found(content in any::<Vec<u8>>(), at in any::<prop::sample::Index>(), bit in 0..8u8, cut in 1..40usize) {
            let sealed = key(1).seal("a", &content, [3; NONCE_LEN]).expect("sealed");
            let mut damaged = sealed.clone();
            damaged[at.index(sealed.len())] ^= 1 << bit;
            prop_assert!(key(1).open("a", &damaged).is_err());
            prop_assert!(key(1).open("a", &sealed[..sealed.len().saturating_sub(cut)]).is_err());
        }

        #[test]
        fn anything_may_come(bytes in any::<Vec<u8>>()) {
            prop_assert!(key(1).open("a", &bytes).is_err());
        }
    }
}
