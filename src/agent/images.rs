//! Imports the archives that people drop into the images folder.

use super::events::Note;
use super::node::Shared;
use crate::image::DropIn;
use jiff::Timestamp;
use notify::{RecursiveMode, Watcher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Look again at the latest after this long: inotify events can be lost.
const RESCAN: Duration = Duration::from_secs(60);
/// While an archive is still being copied.
const PENDING: Duration = Duration::from_secs(2);
/// After an event, wait until the copy has likely ended.
const SETTLE: Duration = Duration::from_millis(200);

/// Watch `dir` for ever, and tell `changed` after each import.
pub async fn watch(shared: Arc<Shared>, dir: PathBuf, changed: Arc<Notify>) {
    let event = Arc::new(Notify::new());
    let wake = Arc::clone(&event);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading an archive is an event too; only changes count.
        if event.is_ok_and(|e| !matches!(e.kind, notify::EventKind::Access(notify::event::AccessKind::Open(_)))) {
            wake.notify_one();
        }
    });
    let mut watcher = match watcher {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "cannot watch the images folder; it is read every minute");
            None
        }
    };
    let drop_in = Arc::new(std::sync::Mutex::new(DropIn::new(&dir, shared.runtime.images())));
    if let Some(watcher) = &mut watcher
        && let Err(error) = watcher.watch(&dir, RecursiveMode::NonRecursive)
    {
        tracing::warn!(%error, "cannot watch the images folder; it is read every minute");
    }
    loop {
        let job = Arc::clone(&drop_in);
        let scan = tokio::task::spawn_blocking(move || {
            let mut drop_in = job.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            (drop_in.scan(), drop_in.pending())
        });
        let Ok((outcomes, pending)) = scan.await else { return };
        let now = Timestamp::now();
        for outcome in outcomes {
            let path = outcome.path.display();
            let note = match &outcome.result {
                Ok(images) => {
                    let names: Vec<&str> = images.iter().flat_map(|i| i.names.iter().map(String::as_str)).collect();
                    shared.metrics.image_imported();
                    changed.notify_one();
                    Note::normal("ImageImported", format!("Imported {} from {path}", names.join(", ")))
                }
                Err(error) => {
                    // Other images of the archive may have come in.
                    changed.notify_one();
                    Note::warning("ImageImportFailed", format!("{path}: {}", crate::runtime::chain(error)))
                }
            };
            shared.note(shared.events.node_reference(), &note, now);
        }
        let pause = if pending { PENDING } else { RESCAN };
        // Cancel-safe: a notification stays with the Notify until it is taken.
        tokio::select! {
            () = event.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
