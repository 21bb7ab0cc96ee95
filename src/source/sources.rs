//! All sources of a node at work: started, merged whenever one of them says something else, and remembered.
//!
//! What the sources say is published at once; records follow, so that no pod waits for the disk. The exception is a
//! revision on trial when the agent starts: that start is written down first, as it may be the last thing the agent does.

use super::history::{By, History, Shelf, Verdict, Writing};
use super::merge::{Merged, Past, Role, Said, Standing, merge};
use super::{Options, Permissions, Rescan, Snapshot, SourceKind, Takes, Verifier, url, watch};
use crate::config::Config;
use crate::manifest::{self, ObjectId};
use crate::pod::{Key, trial};
use crate::sys::clock;
use crate::sys::fs::create_dir_all;
use futures_util::future::select_all;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch::{Receiver, Sender};
use tokio::sync::{Notify, watch as channel};

/// Records are written this long after a change, when the burst that it may be part of is over.
const SAVE_DELAY: Duration = Duration::from_millis(200);
/// Between two attempts to write what could not be written.
const SAVE_RETRY: Duration = Duration::from_secs(10);

/// A source that runs.
#[derive(Debug)]
struct Input {
    role: Role,
    snapshots: Receiver<Arc<Snapshot>>,
}

/// Why a rollback cannot be had; kubectl's words where it has some.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing is known of the name.
    #[error("no rollout history found for pod \"{0}\"")]
    Unknown(String),
    /// No manifest names the pod any more.
    #[error("no manifest has pod \"{0}\" any more: put it back first")]
    Removed(String),
    /// There is no such revision.
    #[error("unable to find specified revision {0} in history")]
    NoRevision(u64),
    /// There is none before the one that runs.
    #[error("no revision before revision {0} found in history")]
    NoEarlier(u64),
    /// The revision cannot be read any more.
    #[error("the record of revision {0} is damaged")]
    Damaged(u64),
    /// What the revision refers to is not there.
    #[error("revision {0} cannot run: {1}")]
    NotAccepted(u64, String),
}

/// What became of a rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rolled {
    /// This revision runs now.
    To(u64),
    /// It runs already.
    Already(u64),
}

/// What follows from a judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// It is about a revision that does not run any more.
    Stale,
    /// It is noted.
    Noted,
    /// The revision was replaced by this one.
    RolledBack(u64),
    /// It should be replaced, but nothing good came before it.
    NoEarlier,
}

/// Talks to the sources.
#[derive(Debug, Clone)]
pub struct Control(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    merged: Sender<Arc<Merged>>,
    shelf: Shelf,
    save: Notify,
    /// Held while records are written, so that an older one never replaces a newer one.
    writing: tokio::sync::Mutex<()>,
    rescans: Vec<Rescan>,
    url_rescans: Vec<url::Rescan>,
}

/// Records to write, and of what they are.
#[derive(Debug)]
pub(super) struct Unsaved {
    pub(super) keys: BTreeSet<Key>,
    pub(super) objects: BTreeSet<ObjectId>,
    additions: Vec<Writing>,
    removals: Vec<Writing>,
}

#[derive(Debug)]
struct State {
    said: Vec<Said>,
    past: Past,
}

/// Starts the manifest directory, the objects folder and the URLs, and merges what they say. The first word of the folders is
/// in what is returned, and what is known of URLs from before.
///
/// # Errors
/// When a thread cannot be started.
pub fn start(config: &Config, verifier: Option<&Arc<Verifier>>) -> io::Result<(Receiver<Arc<Merged>>, Control)> {
    let records = config.root_dir.join("manifests");
    let (node, rescan) = (&config.node_name, config.file_check_frequency);
    let options = |path, state, takes| Options {
        verifier: verifier.cloned(),
        permissions: Permissions::of(config.sources.strict_permissions),
        takes,
        ..Options::new(path, node.clone(), state)
    };
    let (pods, pods_rescan) = watch(options(config.manifest_dir.clone(), records.clone(), Takes::All), rescan)?;
    let folder = config.root_dir.join("objects");
    if let Err(error) = create_dir_all(&folder, 0o700) {
        tracing::warn!(folder = %folder.display(), %error, "cannot make the folder of ConfigMaps and Secrets");
    }
    let (objects, objects_rescan) = watch(options(folder, records.join("objects"), Takes::Objects), rescan)?;
    let mut inputs = vec![
        Input { role: Role::Pods(SourceKind::File), snapshots: pods },
        Input { role: Role::Objects, snapshots: objects },
    ];
    let mut url_rescans = Vec::new();
    for (snapshots, rescan) in url::watch_all(&config.sources, node, records.join("urls"), verifier)? {
        inputs.push(Input { role: Role::Pods(SourceKind::Http), snapshots });
        url_rescans.push(rescan);
    }

    let shelf = Shelf::new(records);
    let (histories, kept) = shelf.load();
    let mut past = Past::new(histories, kept);
    past.count_starts();
    let said = inputs.iter_mut().map(|input| Said {
        role: input.role.clone(),
        snapshot: Arc::clone(&input.snapshots.borrow_and_update()),
        spoken: false,
    });
    let mut state = State { said: said.collect(), past };
    let mut merged = state.merge();
    if state.give_up_trials(&merged) {
        merged = state.merge();
    }
    let tried = state.has_unwritten_trials(&merged);
    let (publish, receiver) = channel::channel(Arc::new(merged));
    let inner = Inner {
        state: Mutex::new(state),
        merged: publish,
        shelf,
        save: Notify::new(),
        writing: tokio::sync::Mutex::default(),
        rescans: vec![pods_rescan, objects_rescan],
        url_rescans,
    };
    let control = Control(Arc::new(inner));
    if tried {
        let unsaved = control.0.unsaved();
        if !control.0.write(&unsaved) {
            control.0.state().past.restore(&unsaved);
        }
    }
    // What was accepted at the start is written down, too.
    control.0.save.notify_one();
    tokio::spawn(follow(Arc::clone(&control.0), inputs));
    tokio::spawn(save(Arc::clone(&control.0)));
    Ok((receiver, control))
}

/// Merges whenever a source says something else.
async fn follow(inner: Arc<Inner>, inputs: Vec<Input>) {
    let mut live: Vec<(usize, Receiver<Arc<Snapshot>>)> =
        inputs.into_iter().map(|input| input.snapshots).enumerate().collect();
    while !live.is_empty() {
        let next =
            live.iter_mut().map(|(index, snapshots)| Box::pin(async move { (*index, snapshots.changed().await) }));
        let ((ended, result), ..) = select_all(next).await;
        if result.is_err() {
            // Its thread is gone: that is a bug, but no reason to touch a pod.
            tracing::error!("a source ended; what it said last stays");
            live.retain(|(index, _)| *index != ended);
            continue;
        }
        {
            let mut state = inner.state();
            for (index, snapshots) in &mut live {
                state.said[*index].snapshot = Arc::clone(&snapshots.borrow_and_update());
            }
            let merged = state.merge();
            if !state.has_unwritten_trials(&merged) {
                inner.tell(merged);
                continue;
            }
        }
        // A revision on trial may be what takes the machine down: nobody hears of it before it is on the disk. A disk that
        // cannot be written to does not hold it up.
        Inner::flush(&inner).await;
        inner.publish(&mut inner.state());
    }
}

/// Writes records after changes.
async fn save(inner: Arc<Inner>) {
    loop {
        inner.save.notified().await;
        tokio::time::sleep(SAVE_DELAY).await;
        while !Inner::flush(&inner).await {
            tokio::time::sleep(SAVE_RETRY).await;
        }
    }
}

impl State {
    fn merge(&mut self) -> Merged {
        for said in &mut self.said {
            said.spoken |= said.snapshot.healthy;
        }
        merge(&self.said, &mut self.past, clock::wall())
    }

    /// Whether a revision is on trial whose record does not say so.
    fn has_unwritten_trials(&self, merged: &Merged) -> bool {
        self.past.changed.iter().any(|key| merged.standings.get(key).is_some_and(|standing| standing.tried))
    }

    /// Revisions during whose trial the agent started again and again are not started once more. Tells whether there
    /// are any.
    fn give_up_trials(&mut self, merged: &Merged) -> bool {
        let mut any = false;
        let worn = |standing: &Standing| standing.tried && standing.starts >= trial::MAX_STARTS;
        for (key, standing) in merged.standings.iter().filter(|(_, standing)| worn(standing)) {
            let why = format!("the agent was started {} times while it was tried", standing.starts);
            if self.judge(key, standing.revision, Verdict::Bad { why }) != Judged::Stale {
                any = true;
            }
        }
        any
    }

    fn judge(&mut self, key: &Key, revision: u64, verdict: Verdict) -> Judged {
        let Some(history) = self.past.histories.get_mut(key).filter(|h| h.running() == Some(revision)) else {
            return Judged::Stale;
        };
        let tried = history.is_tried();
        if !history.judge(revision, verdict.clone()) {
            return Judged::Stale;
        }
        self.past.changed.insert(key.clone());
        match (verdict, history.fallback()) {
            (Verdict::Bad { why }, Some(to)) if tried => {
                history.roll_back(to, By::Gate, why, clock::wall());
                Judged::RolledBack(to)
            }
            (Verdict::Bad { .. }, None) if tried => Judged::NoEarlier,
            _ => Judged::Noted,
        }
    }

    fn roll_back(&mut self, key: &Key, to: Option<u64>) -> Result<Rolled, Refusal> {
        let unknown = || Refusal::Unknown(key.name.clone());
        let available = self.past.available();
        let history = self.past.histories.get_mut(key).ok_or_else(unknown)?;
        let running = history.running().ok_or_else(|| Refusal::Removed(key.name.clone()))?;
        let to = match to {
            Some(number) => number,
            None => history.previous().ok_or(Refusal::NoEarlier(running))?,
        };
        let revision = history.get(to).ok_or(Refusal::NoRevision(to))?;
        if to == running {
            return Ok(Rolled::Already(to));
        }
        let pod = revision.pod().ok_or(Refusal::Damaged(to))?;
        let lacking = manifest::unresolved(&pod, &available);
        if !lacking.is_empty() {
            let words: Vec<String> = lacking.iter().map(ToString::to_string).collect();
            return Err(Refusal::NotAccepted(to, words.join("; ")));
        }
        history.roll_back(to, By::Hand, "rolled back by hand".to_owned(), clock::wall());
        self.past.changed.insert(key.clone());
        Ok(Rolled::To(to))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &mut State) {
        self.tell(state.merge());
    }

    fn tell(&self, merged: Merged) {
        self.merged.send_if_modified(|current| {
            let changed = **current != merged;
            if changed {
                *current = Arc::new(merged);
            }
            changed
        });
        self.save.notify_one();
    }

    /// The records that do not say what is so, as they should be.
    fn unsaved(&self) -> Unsaved {
        let mut state = self.state();
        let past = &mut state.past;
        let (keys, objects) = (std::mem::take(&mut past.changed), std::mem::take(&mut past.changed_objects));
        let histories = keys.iter().map(|key| self.shelf.history(key, past.histories.get(key)));
        let kept = objects.iter().map(|id| self.shelf.kept(&id.to_string(), past.kept.get(id)));
        let all = kept.chain(histories).filter_map(|writing| {
            writing.inspect_err(|error| tracing::error!(%error, "the history of a pod cannot be encoded")).ok()
        });
        // New objects first, old ones last: at any moment the pods on record find what they need.
        let (removals, additions): (Vec<Writing>, Vec<Writing>) = all.partition(Writing::removes);
        Unsaved { keys, objects, additions, removals }
    }

    /// Writes these records; tells whether all could be.
    fn write(&self, unsaved: &Unsaved) -> bool {
        // What a record that could not be written would still refer to is not removed.
        self.carry_out(&unsaved.additions) && self.carry_out(&unsaved.removals)
    }

    fn carry_out(&self, all: &[Writing]) -> bool {
        let mut done = true;
        for writing in all {
            if let Err(error) = writing.carry_out() {
                let error = crate::causes::chain(&error);
                tracing::warn!(error, "the history of a pod cannot be written down");
                done = false;
            }
        }
        done
    }

    /// Writes all that is not written; tells whether it could be. What could not is tried again.
    async fn flush(inner: &Arc<Inner>) -> bool {
        let _turn = inner.writing.lock().await;
        let unsaved = Arc::new(inner.unsaved());
        if unsaved.additions.is_empty() && unsaved.removals.is_empty() {
            return true;
        }
        let (writer, all) = (Arc::clone(inner), Arc::clone(&unsaved));
        // An error here means that the agent is shutting down.
        let done = tokio::task::spawn_blocking(move || writer.write(&all)).await.unwrap_or(true);
        if !done {
            inner.state().past.restore(&unsaved);
            inner.save.notify_one();
        }
        done
    }
}

impl Control {
    /// Has all folders looked at now, and all URLs asked.
    pub fn rescan(&self) {
        self.0.rescans.iter().for_each(Rescan::now);
        self.0.url_rescans.iter().for_each(url::Rescan::now);
    }

    /// What is known of a pod name.
    #[must_use]
    pub fn history(&self, key: &Key) -> Option<History> {
        self.0.state().past.histories.get(key).cloned()
    }

    /// How a pod stands to its manifest.
    #[must_use]
    pub fn standing(&self, key: &Key) -> Option<Standing> {
        self.0.merged.borrow().standings.get(key).cloned()
    }

    /// Has an older revision run (`None`: the one before) until the manifest says something else; the newest one ends
    /// that.
    ///
    /// # Errors
    /// Why it cannot run.
    pub fn roll_back(&self, key: &Key, to: Option<u64>) -> Result<Rolled, Refusal> {
        let mut state = self.0.state();
        let rolled = state.roll_back(key, to)?;
        self.0.publish(&mut state);
        Ok(rolled)
    }

    /// Takes a judgement of a revision that runs; a bad one that was on trial is rolled back.
    pub fn judge(&self, key: &Key, revision: u64, verdict: Verdict) -> Judged {
        let mut state = self.0.state();
        let judged = state.judge(key, revision, verdict);
        if judged != Judged::Stale {
            self.0.publish(&mut state);
        }
        judged
    }

    /// Waits until all that was decided is on the disk, or could not be written.
    pub async fn remember(&self) {
        Inner::flush(&self.0).await;
    }
}
