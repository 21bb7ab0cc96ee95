//! Imports what people drop into the images folder, and pulls what lists there name.

use super::events::Note;
use super::node::Shared;
use crate::image::{DropIn, Outcome, Wanted};
use crate::runtime::chain;
use crate::sys::clock;
use notify::{RecursiveMode, Watcher};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

/// Look again at the latest after this long: inotify events can be lost.
const RESCAN: Duration = Duration::from_secs(60);
/// While an archive is still being copied.
const PENDING: Duration = Duration::from_secs(2);
/// After an event, wait until the copy has likely ended.
const SETTLE: Duration = Duration::from_millis(200);
/// Between two attempts to pull an image of a list: doubled each time, as the kubelet's back-off of images.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// An image of a list that could not be pulled.
struct Attempt {
    again: Instant,
    pause: Duration,
    /// What was said about it: once is enough.
    error: String,
}

/// A pull that is under way.
type Pull = JoinHandle<(Wanted, Result<String, String>)>;

/// Watch `dir` for ever, and tell `changed` after each import.
pub async fn watch(shared: Arc<Shared>, dir: PathBuf, changed: Arc<Notify>) {
    let event = Arc::new(Notify::new());
    let trust = Arc::clone(shared.runtime.trust());
    let _watcher = watcher(&dir, trust.policy_path(), &event);
    let mut revision = None;
    let drop_in = Arc::new(Mutex::new(DropIn::new(&dir, shared.runtime.images())));
    let mut attempts: BTreeMap<Wanted, Attempt> = BTreeMap::new();
    let mut pull: Option<Pull> = None;
    loop {
        let (job, policy) = (Arc::clone(&drop_in), Arc::clone(&trust));
        let scan = spawn_blocking(move || {
            let mut drop_in = job.lock().unwrap_or_else(PoisonError::into_inner);
            (policy.revision(), drop_in.scan(), drop_in.wanted(), drop_in.pending())
        });
        let Ok((policy, outcomes, wanted, pending)) = scan.await else { return };
        if revision.replace(policy).is_some_and(|before| Some(before) != revision) {
            // What was refused may run now.
            shared.pulls.policy_changed();
        }
        for outcome in outcomes {
            report(&shared, &outcome, &changed);
        }
        attempts.retain(|item, _| wanted.contains(item));
        let now = Instant::now();
        if pull.is_none()
            && let Some(item) = wanted.iter().find(|item| attempts.get(item).is_none_or(|a| a.again <= now))
        {
            pull = Some(begin(&shared, item.clone()));
        }
        let next = attempts.values().map(|attempt| attempt.again).filter(|_| pull.is_none()).min();
        let pause = (now + if pending { PENDING } else { RESCAN }).min(next.unwrap_or(now + RESCAN));
        // Cancel-safe: a notification stays with the Notify until it is taken, a pull with its handle.
        tokio::select! {
            () = event.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep_until(pause) => {}
            Some(ended) = ended(&mut pull) => {
                pull = None;
                if let Ok((item, result)) = ended {
                    finish(&shared, &drop_in, &mut attempts, &dir, item, result, &changed).await;
                }
            }
        }
    }
}

fn watcher(dir: &Path, policy: &Path, event: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let wake = Arc::clone(event);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading an archive is an event too; only changes count.
        if event.is_ok_and(|e| !matches!(e.kind, notify::EventKind::Access(notify::event::AccessKind::Open(_)))) {
            wake.notify_one();
        }
    });
    let watching = watcher.and_then(|mut watcher| {
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
        if let Some(folder) = policy.parent().filter(|folder| folder.is_dir())
            && let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive)
        {
            tracing::warn!(%error, "cannot watch the signature policy; pods that wait hear of a new one within a minute");
        }
        Ok(watcher)
    });
    match watching {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "cannot watch the images folder; it is read every minute");
            None
        }
    }
}

/// The end of the pull that is under way; `None` at once when there is none.
async fn ended(pull: &mut Option<Pull>) -> Option<<Pull as Future>::Output> {
    match pull {
        Some(pull) => Some(pull.await),
        None => None,
    }
}

/// Its end: the ID of the image, or why there is none.
fn begin(shared: &Arc<Shared>, item: Wanted) -> Pull {
    let pulls = Arc::clone(&shared.pulls);
    tokio::spawn(async move {
        let pulled = pulls.listed(&item.image).await;
        (item, pulled)
    })
}

async fn finish(
    shared: &Arc<Shared>,
    drop_in: &Arc<Mutex<DropIn>>,
    attempts: &mut BTreeMap<Wanted, Attempt>,
    dir: &Path,
    item: Wanted,
    result: Result<String, String>,
    changed: &Notify,
) {
    let list = dir.join(&item.list);
    let note = match result {
        Ok(id) => {
            attempts.remove(&item);
            let (job, image) = (Arc::clone(drop_in), item.image.clone());
            let arrived = move || {
                let mut drop_in = job.lock().unwrap_or_else(PoisonError::into_inner);
                drop_in.arrived(&item, &id);
            };
            if spawn_blocking(arrived).await.is_err() {
                return;
            }
            shared.metrics.image_imported();
            changed.notify_one();
            Note::normal("ImageImported", format!("Pulled {image} for {}", list.display()))
        }
        Err(error) => {
            let last = attempts.get(&item);
            let pause = last.map_or(FIRST_PAUSE, |attempt| (attempt.pause * 2).min(LONGEST_PAUSE));
            let known = last.is_some_and(|attempt| attempt.error == error);
            let note = format!("{}: {}: {error}", list.display(), item.image);
            attempts.insert(item, Attempt { again: Instant::now() + pause, pause, error });
            if known {
                return;
            }
            Note::warning("ImageImportFailed", note)
        }
    };
    shared.note(shared.events.node_reference(), &note, clock::now());
}

fn report(shared: &Shared, outcome: &Outcome, changed: &Notify) {
    let path = outcome.path.display();
    let note = match &outcome.result {
        // A list that was read; its images come later.
        Ok(images) if images.is_empty() => return,
        Ok(images) => {
            let names: Vec<&str> = images.iter().flat_map(|i| i.names.iter().map(String::as_str)).collect();
            shared.metrics.image_imported();
            changed.notify_one();
            let mut signed: Vec<&str> =
                images.iter().flat_map(|i| i.verified.iter().filter_map(|by| by.comment.as_deref())).collect();
            signed.dedup();
            let signed = signed.iter().map(|comment| format!(", signed: {comment}")).collect::<String>();
            Note::normal("ImageImported", format!("Imported {} from {path}{signed}", names.join(", ")))
        }
        Err(error) => {
            // Other images of the archive may have come in.
            changed.notify_one();
            Note::warning("ImageImportFailed", format!("{path}: {}", chain(error)))
        }
    };
    shared.note(shared.events.node_reference(), &note, clock::now());
}
