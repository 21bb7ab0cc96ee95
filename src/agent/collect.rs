//! Removes images that nothing uses, as kubelet: looks every five minutes, and when the node is short of disk.

use super::events::Note;
use super::node::Shared;
use crate::config::Config;
use crate::image::gc::Policy;
use crate::image::{Collected, Collector, Error, Notice, Reason, Users};
use crate::pod::Spec;
use crate::runtime::{Runtime, chain};
use crate::sys::clock;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// Between two looks (as kubelet).
const INTERVAL: Duration = Duration::from_secs(300);
/// Before the first one: what starts at boot comes first.
const FIRST: Duration = Duration::from_secs(5);
/// Before the second attempt while the disk stays full; doubled for each further one, up to [`INTERVAL`].
const SOON: Duration = Duration::from_secs(5);

/// What the source wants; nothing is known before its first word.
#[derive(Debug, Default)]
pub struct Wanted(RwLock<Option<Vec<Arc<Spec>>>>);

impl Wanted {
    /// The source wants these.
    pub fn set(&self, specs: &[Arc<Spec>]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(specs.to_vec());
    }

    fn users(&self, runtime: &Runtime) -> Result<Users, String> {
        let wanted = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let wanted = wanted.ok_or("the manifests have not been read yet")?;
        runtime.image_users(&wanted).map_err(|error| chain(&error))
    }
}

/// The collector of this node's images, and what it tells.
pub fn collector(
    config: &Config,
    runtime: &Arc<Runtime>,
    wanted: &Arc<Wanted>,
) -> (Arc<Collector>, UnboundedReceiver<Notice>) {
    let policy = Policy {
        high_percent: config.images.gc_high_percent,
        low_percent: config.images.gc_low_percent,
        minimum_age: config.images.minimum_gc_age,
        maximum_age: config.images.maximum_gc_age,
    };
    let (sender, notices) = unbounded_channel();
    let users = {
        let (runtime, wanted) = (Arc::clone(runtime), Arc::clone(wanted));
        move || wanted.users(&runtime)
    };
    // At the end nobody listens any more.
    let tell = move |notice| drop(sender.send(notice));
    (Collector::new(runtime.images(), policy, users, tell), notices)
}

/// Collects for ever, and reports what the collector does, whoever asked it to.
pub async fn watch(shared: Arc<Shared>, mut notices: UnboundedReceiver<Notice>) {
    let mut ticks = interval_at(Instant::now() + FIRST, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed_before = false;
    loop {
        // Cancel-safe: a notice stays in the channel, a tick in the interval.
        tokio::select! {
            Some(notice) = notices.recv() => report(&shared, &notice),
            _ = ticks.tick() => {
                let collector = Arc::clone(&shared.collector);
                let Ok(result) = tokio::task::spawn_blocking(move || collector.collect()).await else { return };
                conclude(&shared, result, &mut failed_before);
            }
        }
    }
}

fn report(shared: &Shared, notice: &Notice) {
    let image = &notice.image;
    let name = image.names.first().unwrap_or(&image.id);
    let why = match notice.reason {
        Reason::Age => "nothing has used it for long",
        Reason::Space => "the disk is full and nothing uses it",
        Reason::Asked => "as asked",
    };
    shared.metrics.image_removed(notice.reason);
    let (pulls, id) = (Arc::clone(&shared.pulls), image.id.clone());
    tokio::task::spawn_blocking(move || pulls.removed(&id));
    let note = Note::normal("ImageDeleted", format!("Removed image {name} ({} bytes): {why}", image.size));
    shared.note(shared.events.node_reference(), &note, clock::now());
}

/// Tells of a collection in kubelet's words.
fn conclude(shared: &Shared, result: Result<Collected, Error>, failed_before: &mut bool) {
    let node = || shared.events.node_reference();
    let error = match result {
        Ok(done) if done.capacity == 0 => {
            let message = "invalid capacity 0 on image filesystem".to_owned();
            shared.note(node(), &Note::warning("InvalidDiskCapacity", message.clone()), clock::now());
            Some(message)
        }
        Ok(done) if done.freed < done.needed => {
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {} bytes, but only found {} \
                 bytes eligible to free.",
                done.needed, done.freed
            );
            shared.note(node(), &Note::warning("FreeDiskSpaceFailed", message.clone()), clock::now());
            Some(message)
        }
        Ok(done) => {
            if done.needed > 0 {
                tracing::info!(needed = done.needed, freed = done.freed, "unused images were removed");
            }
            None
        }
        Err(error) => Some(chain(&error)),
    };
    // As kubelet: once may be bad luck.
    match error {
        Some(message) if *failed_before => {
            shared.note(node(), &Note::warning("ImageGCFailed", message), clock::now());
        }
        Some(message) => {
            tracing::warn!("image garbage collection failed: {message}");
            *failed_before = true;
        }
        None => *failed_before = false,
    }
}

/// Under disk pressure: what may go goes at once, and again from time to time as long as the pressure lasts.
#[derive(Debug, Default)]
pub struct Relief {
    next: Option<Instant>,
    pause: Duration,
}

impl Relief {
    /// The disk is short, or is not.
    pub async fn seek(&mut self, shared: &Arc<Shared>, short: bool) {
        if !short {
            *self = Relief::default();
            return;
        }
        if self.next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let collector = Arc::clone(&shared.collector);
        let Ok(result) = tokio::task::spawn_blocking(move || collector.reclaim()).await else { return };
        // What came in a moment ago may be old enough a moment later, but to look at all pods costs something.
        self.pause = self.pause.saturating_mul(2).clamp(SOON, INTERVAL);
        self.next = Some(Instant::now() + self.pause);
        match result {
            Ok(done) if done.removed.is_empty() => {}
            Ok(done) => tracing::info!(freed = done.freed, images = done.removed.len(), "disk pressure"),
            // At the start it is not known yet what is used; soon it is.
            Err(error) => tracing::warn!(error = chain(&error), "cannot remove unused images under disk pressure"),
        }
    }
}
