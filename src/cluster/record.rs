//! What is kept of the cluster for times without it: one file per fact, with a checksum.
//!
//! ```text
//! {"sha256":"<of the rest, up to the last brace>","record":{"name":"<of the fact>","value":…}}
//! ```
//!
//! A disk that fails silently must not make a pod of one that was never bound: what does not have its checksum is set aside.

use crate::store;
use crate::sys::fs;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Longest name that a file has as it is, in bytes: others, and those with anything unusual in them, have their digest.
const MAX_NAME: usize = 200;
const HEAD: &str = "{\"sha256\":\"";
const MIDDLE: &str = "\",\"record\":";
const DIGEST: usize = 64;
/// Where a damaged record goes.
const DAMAGED: &str = "damaged";

/// A folder of records of one kind. All calls wait for the disk: never from the event loop.
#[derive(Debug, Clone)]
pub(super) struct Records {
    folder: PathBuf,
}

/// What [`Records::load_all`] found.
#[derive(Debug)]
pub(super) struct Loaded<T> {
    /// By name.
    pub(super) values: BTreeMap<String, T>,
    /// Whether this is all that was written: the folder was made, could be read, and no record in it was damaged, now or
    /// before ([`Records::settle`]). Else nothing follows from what is missing.
    pub(super) complete: bool,
}

#[derive(Serialize, Deserialize)]
struct Record<N, T> {
    name: N,
    value: T,
}

impl Records {
    /// The records in `folder`, which need not be there yet.
    pub(super) fn new(folder: PathBuf) -> Records {
        Records { folder }
    }

    /// All of them. Damaged ones are set aside (beside the others, `*.damaged`) and told in the log.
    pub(super) fn load_all<T: DeserializeOwned>(&self) -> Loaded<T> {
        let complete = self.folder.is_dir() && self.set_aside().is_empty();
        let mut loaded = Loaded { values: BTreeMap::new(), complete };
        let paths = store::list(&self.folder).unwrap_or_else(|error| {
            tracing::warn!(error = crate::causes::chain(&error), "cannot read what is known of the cluster");
            loaded.complete = false;
            Vec::new()
        });
        for path in paths {
            match read(&path) {
                Ok(Record { name, value }) => drop(loaded.values.insert(name, value)),
                Err(why) => {
                    loaded.complete = false;
                    tracing::warn!(record = %path.display(), why, "a damaged record of the cluster is set aside");
                    if let Err(error) = std::fs::rename(&path, path.with_extension(DAMAGED)) {
                        tracing::warn!(record = %path.display(), %error, "it cannot be set aside");
                    }
                }
            }
        }
        loaded
    }

    /// Makes this the record of `name` (0600), durable when this returns. The folder is made if need be (0700).
    ///
    /// # Errors
    /// What the disk says; the record from before is still there then.
    pub(super) fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), store::Error> {
        self.prepare()?;
        let path = self.path(name);
        let record = serde_json::to_string(&Record { name, value })
            .map_err(|source| store::Error::Encode { path: path.clone(), source })?;
        let content = format!("{HEAD}{}{MIDDLE}{record}}}\n", digest(record.as_bytes()));
        store::replace(&path, content.as_bytes(), 0o600)
    }

    /// Removes the record of `name`, durable when this returns; no error if there is none.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn remove(&self, name: &str) -> Result<(), store::Error> {
        match self.folder.is_dir() {
            true => store::delete(&self.path(name)),
            false => Ok(()),
        }
    }

    /// Makes the folder (0700): from then on, what is not in it is known not to be.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn prepare(&self) -> Result<(), store::Error> {
        fs::create_dir_all(&self.folder, 0o700)
            .map_err(|source| store::Error::Write { path: self.folder.clone(), source })
    }

    /// The records are complete from now on, whatever was damaged before: an API server has said all.
    pub(super) fn settle(&self) {
        for path in self.set_aside() {
            // One that stays costs caution at the next start.
            let _ = std::fs::remove_file(path);
        }
    }

    fn set_aside(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == DAMAGED)).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}.json", file_name(name)))
    }
}

/// Names come from outside: none leads out of the folder, hides a file, or is too long for one.
fn file_name(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    match name.bytes().all(plain) && !name.starts_with('.') && (1..=MAX_NAME).contains(&name.len()) {
        true => name.to_owned(),
        // No name of the first kind looks like this.
        false => format!("_{}", digest(name.as_bytes())),
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(DIGEST), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Record<String, T>, String> {
    let content = store::content(path).map_err(|error| crate::causes::chain(&error))?.ok_or("it is gone")?;
    decode(&content).ok_or_else(|| "it is not what was written".to_owned())
}

fn decode<T: DeserializeOwned>(content: &[u8]) -> Option<Record<String, T>> {
    let rest = content.strip_prefix(HEAD.as_bytes())?;
    let (sum, rest) = rest.split_at_checked(DIGEST)?;
    let record = rest.strip_prefix(MIDDLE.as_bytes())?.strip_suffix(b"}\n")?;
    (digest(record).as_bytes() == sum).then(|| store::decode(record).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("coracle-record-{name}-{}", std::process::id()));
        fs::remove_tree(&folder).expect("no folder");
        folder
    }

    #[test]
    fn records_come_back_and_damaged_ones_are_set_aside() {
        let folder = scratch("all").join("pods");
        let records = Records::new(folder.clone());
        let all = || records.load_all::<Vec<u32>>();
        assert!(!all().complete, "nobody has written anything yet");
        records.remove("none").expect("no folder is no record");
        records.prepare().expect("folder");
        assert!(all().complete && all().values.is_empty());
        let odd = ["../up", ".hidden", "", "Upper", &"x".repeat(300), "_a"];
        for (index, name) in odd.iter().chain(&["plain-1.a"]).enumerate() {
            records.write(name, &vec![index]).expect("written");
        }
        assert_eq!(std::fs::read_dir(&folder).expect("folder").count(), 7, "all in the folder");
        let found = all();
        assert!(found.complete);
        assert_eq!(found.values["plain-1.a"], [6]);
        assert!(
            odd.iter().enumerate().all(|(index, name)| found.values[*name] == [u32::try_from(index).expect("few")])
        );
        let path = folder.join("plain-1.a.json");
        assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::metadata(&folder).expect("folder").permissions().mode() & 0o7777, 0o700);
        // Still JSON, but of another number.
        let text = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, text.replace("[6]", "[7]")).expect("damage");
        let found = all();
        assert!(!found.complete && !found.values.contains_key("plain-1.a") && found.values.len() == 6);
        assert!(folder.join("plain-1.a.damaged").exists());
        assert!(!all().complete, "what was lost stays lost");
        records.settle();
        assert!(all().complete && !folder.join("plain-1.a.damaged").exists());
        for name in odd {
            records.remove(name).expect("removed");
        }
        assert!(all().values.is_empty());
        fs::remove_tree(folder.parent().expect("parent")).expect("clean");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<u32>(&bytes).is_none());
        }

        #[test]
        fn no_bit_may_flip(value in any::<u32>(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let record = serde_json::to_string(&Record { name: "n", value }).expect("JSON");
            let content = format!("{HEAD}{}{MIDDLE}{record}}}\n", digest(record.as_bytes()));
            prop_assert_eq!(decode::<u32>(content.as_bytes()).map(|r| r.value), Some(value));
            let mut damaged = content.into_bytes();
            let at = at.index(damaged.len());
            damaged[at] ^= 1 << bit;
            prop_assert!(decode::<u32>(&damaged).is_none());
        }
    }
}
