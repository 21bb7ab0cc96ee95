//! Records of the image store: as all records, with a checksum that finds what still parses though a bit of it flipped.
//!
//! The checksum is the last field of the object, an XXH3 of all bytes before it, in hexadecimal digits. Records without
//! one, of earlier versions, are taken as they are; earlier versions do not mind the field.

use std::path::Path;

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};

use super::seal::ContentHash;
use crate::store::{self, Error};

const FIELD: &[u8] = b",\"xxh3\":\"";
const DIGITS: usize = 16;
const END: &[u8] = b"\"}";
/// State is for root only.
const MODE: u32 = 0o600;

/// The record at `path`; `None` if there is none.
///
/// # Errors
/// As [`store::read`]; [`Error::Damaged`] for a wrong checksum, too.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let Some(content) = store::content(path)? else { return Ok(None) };
    let parsed = match is_intact(&content) {
        true => serde_json::from_slice(&content),
        false => Err(serde_json::Error::custom("wrong checksum")),
    };
    parsed.map(Some).map_err(|source| Error::Damaged { path: path.into(), source })
}

/// Replaces the record at `path`, durable when this returns.
///
/// # Errors
/// As [`store::write`].
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let mut content = serde_json::to_vec(value).map_err(|source| Error::Encode { path: path.into(), source })?;
    // Of an object with fields: all records are.
    content.pop();
    let sum = checksum(&content);
    content.extend_from_slice(FIELD);
    content.extend_from_slice(&sum);
    content.extend_from_slice(END);
    content.push(b'\n');
    store::replace(path, &content, MODE)
}

fn checksum(bytes: &[u8]) -> [u8; DIGITS] {
    let mut hash = ContentHash::default();
    hash.update(bytes);
    let mut digits = [0; DIGITS];
    for (at, digit) in digits.iter_mut().enumerate() {
        let nibble = (hash.finish() >> (60 - 4 * at) & 0xf) as u8;
        *digit = b"0123456789abcdef"[usize::from(nibble)];
    }
    digits
}

/// Whether the checksum is right, if there is one.
fn is_intact(content: &[u8]) -> bool {
    let split = || {
        let content = content.strip_suffix(b"\n").unwrap_or(content).strip_suffix(END)?;
        let (rest, sum) = content.split_at_checked(content.len().checked_sub(DIGITS)?)?;
        Some((rest.strip_suffix(FIELD)?, sum))
    };
    split().is_none_or(|(body, sum)| checksum(body) == sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
    struct Value {
        a: Vec<u32>,
    }

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("coracle-record-{}-{name}", std::process::id()));
        crate::sys::fs::remove_tree(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
        dir.join("a.json")
    }

    #[test]
    fn records_without_a_checksum_are_read_and_folders_in_their_place_replaced() {
        let path = scratch("old");
        assert_eq!(read::<Value>(&path).unwrap(), None);
        std::fs::write(&path, br#"{"a":[1]}"#).unwrap();
        let value = Value { a: vec![1] };
        assert_eq!(read(&path).unwrap(), Some(value.clone()));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir_all(path.join("deep/er")).unwrap();
        assert!(matches!(read::<Value>(&path), Err(Error::Read { .. })));
        write(&path, &value).unwrap();
        assert_eq!(read(&path).unwrap(), Some(value));
        crate::sys::fs::remove_tree(path.parent().unwrap()).unwrap();
    }

    proptest! {
        #[test]
        fn no_flipped_bit_gives_another_value(
            numbers in prop::collection::vec(any::<u32>(), 0..8),
            at: prop::sample::Index,
            bit in 0..8,
        ) {
            let path = scratch("bits");
            let value = Value { a: numbers };
            write(&path, &value).unwrap();
            let mut content = std::fs::read(&path).unwrap();
            let at = at.index(content.len());
            content[at] ^= 1u8 << bit;
            std::fs::write(&path, &content).unwrap();
            match read::<BTreeMap<String, serde_json::Value>>(&path) {
                Err(Error::Damaged { .. }) => {}
                // In the checksum's own name or the last byte: the rest is right.
                Ok(Some(found)) => prop_assert_eq!(&found["a"], &serde_json::to_value(&value.a).unwrap()),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
