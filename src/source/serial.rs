//! The highest serial that was accepted of each origin and object, over restarts.
//!
//! A damaged record is set aside and told of, and the first serials that come count then. The other choice, to accept
//! nothing, would leave a node that nobody can drive to with what it runs for ever, after a failure of its disk; and who
//! can damage the record on purpose is root already. What runs goes on either way, and is never replaced by a text that
//! nobody has signed.

use crate::store;
use crate::sys::fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// More than this many are not remembered: those go that were accepted the longest ago. Only who signs manifests can add
/// to them.
const MOST: usize = 4096;

/// The record and its copy in memory.
#[derive(Debug)]
pub(super) struct Serials {
    /// `None`: in memory only.
    path: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    accepted: Record,
    unsaved: bool,
    /// What went wrong with the record, until the agent is started anew or it could be written again.
    damage: Option<String>,
    failure: Option<String>,
}

/// As it is written.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// Counts what was accepted: tells which is the oldest.
    count: u64,
    serials: BTreeMap<String, Accepted>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Accepted {
    serial: u64,
    /// SHA-256 of the text.
    content: String,
    /// [`Record::count`] of then.
    at: u64,
}

/// How a text that is not accepted compares with the one that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Its serial is lower, or it has none.
    Older,
    /// Its serial is the same, its content is not.
    Other,
}

impl Serials {
    pub(super) fn open(path: Option<PathBuf>) -> Serials {
        let mut state = State::default();
        if let Some(path) = &path {
            match store::read::<Record>(path) {
                Ok(record) => state.accepted = record.unwrap_or_default(),
                Err(error) => {
                    let aside = aside(path);
                    let kept = match std::fs::rename(path, &aside) {
                        Ok(()) => format!("it is kept as {}", aside.display()),
                        Err(error) => format!("it cannot be set aside: {error}"),
                    };
                    let cause = crate::causes::chain(&error);
                    let damage = format!("which serials were accepted is forgotten: {cause}; {kept}");
                    tracing::error!("{damage}");
                    state.damage = Some(damage);
                }
            }
        }
        Serials { path, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first of these subjects that does not take a text with this serial, with the serial that it has.
    pub(super) fn compare<'a>(
        &self,
        mut subjects: impl Iterator<Item = &'a str>,
        serial: Option<u64>,
        content: &[u8],
    ) -> Option<(&'a str, u64, Order)> {
        let state = self.state();
        let content = digest(content);
        subjects.find_map(|subject| {
            let known = state.accepted.serials.get(subject)?;
            match serial {
                Some(serial) if serial > known.serial => None,
                Some(serial) if serial == known.serial && content == known.content => None,
                Some(serial) if serial == known.serial => Some((subject, known.serial, Order::Other)),
                _ => Some((subject, known.serial, Order::Older)),
            }
        })
    }

    /// Remembers a serial of all these subjects.
    pub(super) fn raise(&self, subjects: Vec<String>, serial: u64, content: &[u8]) {
        let mut state = self.state();
        let content = digest(content);
        let at = state.accepted.count + 1;
        let mut changed = false;
        for subject in subjects {
            let known = state.accepted.serials.get(&subject);
            if known.is_some_and(|known| known.serial >= serial) {
                continue;
            }
            state.accepted.serials.insert(subject, Accepted { serial, content: content.clone(), at });
            changed = true;
        }
        if changed {
            state.accepted.count = at;
            state.accepted.trim();
            state.unsaved = true;
        }
    }

    pub(super) fn save(&self) -> io::Result<()> {
        let mut state = self.state();
        let Some(path) = self.path.as_deref().filter(|_| state.unsaved) else { return Ok(()) };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let written = fs::create_dir_all(folder, 0o700)
            .and_then(|()| store::write(path, &state.accepted, 0o600).map_err(io::Error::other));
        state.unsaved = written.is_err();
        state.failure = written.as_ref().err().map(|error| {
            let cause = crate::causes::chain(error);
            format!("accepted serials are forgotten when the agent ends: {cause}")
        });
        written
    }

    /// What is wrong with the record, for people.
    pub(super) fn trouble(&self) -> Vec<String> {
        let state = self.state();
        state.damage.iter().chain(&state.failure).cloned().collect()
    }
}

impl Record {
    /// Forgets the oldest.
    fn trim(&mut self) {
        let excess = self.serials.len().saturating_sub(MOST);
        if excess == 0 {
            return;
        }
        let mut ages: Vec<(u64, &String)> = self.serials.iter().map(|(subject, known)| (known.at, subject)).collect();
        ages.sort();
        let oldest: HashSet<String> = ages.into_iter().take(excess).map(|(_, subject)| subject.clone()).collect();
        self.serials.retain(|subject, _| !oldest.contains(subject));
    }
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a damaged record goes.
fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    name.into()
}
