//! Tells of damaged images and brings them back, with patience.

use super::events::Note;
use super::node::Shared;
use crate::image::{Image, ImageStore, Origin};
use crate::runtime::chain;
use crate::sys::clock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Between attempts: doubled each time, up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// How often it is looked whether quarantined layers are still in use.
const PURGE: Duration = Duration::from_secs(600);

/// Brings back an image of which an origin is a registry; blocking.
pub type Refetch = Arc<dyn Fn(&ImageStore, &Image, &Origin) -> Result<(), String> + Send + Sync>;

/// Watch over the image store for ever, and tell `changed` when an image can be used again.
pub async fn watch(shared: Arc<Shared>, refetch: Refetch, changed: Arc<Notify>) {
    let store = shared.runtime.images();
    let found = Arc::new(Notify::new());
    let wake = Arc::clone(&found);
    store.on_damage(move || wake.notify_one());
    // By ID, the first name of what is broken.
    let mut broken: BTreeMap<String, String> = BTreeMap::new();
    let mut pause = FIRST_PAUSE;
    loop {
        for damage in store.take_damage() {
            shared.metrics.image_damaged();
            let note = Note::warning("ImageDamaged", damage.to_string());
            shared.note(shared.events.node_reference(), &note, clock::now());
            pause = FIRST_PAUSE;
        }
        let (job, refetch) = (Arc::clone(&store), Arc::clone(&refetch));
        let heal = tokio::task::spawn_blocking(move || {
            let attempt = |image: Arc<Image>| {
                let name = image.names.first().unwrap_or(&image.id).clone();
                let result = job.heal(&image.id, &*refetch).map(drop);
                (image.id.clone(), name, result)
            };
            let attempts: Vec<_> = job.to_heal().into_iter().map(attempt).collect();
            (attempts, job.to_heal())
        });
        let Ok((attempts, left)) = heal.await else { return };
        for (id, name, result) in attempts {
            if let Err(error) = result {
                let note = Note::warning("ImageHealFailed", chain(&error));
                shared.note(shared.events.node_reference(), &note, clock::now());
                // Something that it can do without, and that nobody has any more.
                if left.iter().all(|image| image.id != id) {
                    broken.remove(&id);
                    continue;
                }
            }
            broken.insert(id, name);
        }
        // Some were imported or pulled again meanwhile: that counts too.
        let healed: Vec<(String, String)> = broken
            .iter()
            .filter(|(id, _)| left.iter().all(|i| i.id != **id))
            .map(|(i, n)| (i.clone(), n.clone()))
            .collect();
        for (id, name) in healed {
            broken.remove(&id);
            if store.known(&id).is_some() {
                shared.metrics.image_healed();
                let note = Note::normal("ImageHealed", format!("Brought back image {name}"));
                shared.note(shared.events.node_reference(), &note, clock::now());
                changed.notify_one();
            }
        }
        if broken.is_empty() {
            pause = FIRST_PAUSE;
            // Cancel-safe: a notification stays with the Notify until it is taken.
            tokio::select! {
                () = found.notified() => {}
                () = tokio::time::sleep(PURGE) => purge(&shared).await,
            }
        } else {
            tokio::select! {
                () = found.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
}

/// Removes quarantined layers that no container can run on any more.
async fn purge(shared: &Arc<Shared>) {
    let (store, collector) = (shared.runtime.images(), Arc::clone(&shared.collector));
    let purged = tokio::task::spawn_blocking(move || {
        let in_use: Vec<String> = collector.users()?.into_keys().filter(|id| id.starts_with("sha256:")).collect();
        store.purge_quarantine(&in_use)
    })
    .await;
    if let Ok(Err(error)) = purged {
        tracing::warn!(error = chain(&error), "cannot remove damaged layers");
    }
}
