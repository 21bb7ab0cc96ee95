//! Images that are being taken into use, or brought in: what is decided to be removed is not removed under them.
//!
//! Between the look at what is used and the removal of an image time passes, in which a container may start: it has taken
//! the image, and its record is not written yet; or was written after the look. So whoever takes an image says so here,
//! and a removal goes by everybody who did since its look.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Digest, Image, ImageStore};

/// Who holds what.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many hold an image.
    now: HashMap<Digest, usize>,
    /// What was held at some time since the last look.
    since: HashSet<Digest>,
    /// When images came in, by a clock that nobody sets. Those that were here before are not listed.
    arrived: HashMap<Digest, Instant>,
}

impl Holds {
    fn begin(&self, id: &Digest) {
        let mut state = self.lock();
        *state.now.entry(id.clone()).or_default() += 1;
        state.since.insert(id.clone());
    }

    fn end(&self, id: &Digest) {
        let mut state = self.lock();
        if let Some(count) = state.now.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                state.now.remove(id);
            }
        }
    }

    /// Who removes images looks now at what is used.
    pub(super) fn look(&self) {
        let mut state = self.lock();
        state.since = state.now.keys().cloned().collect();
    }

    /// Whether somebody has taken the image since the last look.
    pub(super) fn had_since_look(&self, id: &Digest) -> bool {
        self.lock().since.contains(id)
    }

    /// Whether somebody holds the image now.
    pub(super) fn has_now(&self, id: &Digest) -> bool {
        self.lock().now.contains_key(id)
    }

    /// The image has come in, or has come in again.
    pub(super) fn arrived(&self, id: &Digest) {
        self.lock().arrived.insert(id.clone(), Instant::now());
    }

    /// How long ago the image came in; `None`: it was here from the beginning.
    pub(super) fn since_arrival(&self, id: &Digest) -> Option<Duration> {
        self.lock().arrived.get(id).map(Instant::elapsed)
    }

    /// The image is gone.
    pub(super) fn forget(&self, id: &Digest) {
        self.lock().arrived.remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An image that is not removed as long as this is there.
pub struct Held {
    image: Arc<Image>,
    id: Digest,
    store: Arc<ImageStore>,
}

impl Deref for Held {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.holds.end(&self.id);
    }
}

/// An image that is on its way in, and may be here already.
pub(super) struct Expected<'a> {
    id: Digest,
    holds: &'a Holds,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.holds.end(&self.id);
    }
}

impl ImageStore {
    /// As [`ImageStore::resolve`], of an image that is then kept for as long as the answer is.
    pub fn hold(self: &Arc<Self>, reference: &str) -> Option<Held> {
        let id: Digest = self.resolve(reference)?.id.parse().ok()?;
        // A removal has this lock, too: the image is gone before, or stays.
        let catalog = self.catalog();
        let image = Arc::clone(&catalog.images.get(&id)?.image);
        self.holds.begin(&id);
        drop(catalog);
        Some(Held { image, id, store: Arc::clone(self) })
    }

    /// Keeps what there is of an image that is coming in.
    pub(super) fn expect(&self, id: &Digest) -> Expected<'_> {
        // With the lock, as above.
        let _catalog = self.catalog();
        self.holds.begin(id);
        Expected { id: id.clone(), holds: &self.holds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_since_the_look_stays() {
        let (holds, a, b) = (Holds::default(), Digest::of(b"a"), Digest::of(b"b"));
        holds.look();
        assert!(!holds.had_since_look(&a));
        holds.begin(&a);
        holds.begin(&a);
        holds.begin(&b);
        holds.end(&a);
        holds.end(&b);
        assert!(holds.had_since_look(&a) && holds.had_since_look(&b), "the look was before");
        assert!(holds.has_now(&a) && !holds.has_now(&b));
        holds.look();
        assert!(holds.had_since_look(&a) && !holds.had_since_look(&b));
        holds.end(&a);
        assert!(holds.had_since_look(&a));
        holds.look();
        assert!(!holds.had_since_look(&a));
        holds.end(&a);
        assert_eq!(holds.since_arrival(&a), None);
        holds.arrived(&a);
        assert!(holds.since_arrival(&a).is_some());
        holds.forget(&a);
        assert_eq!(holds.since_arrival(&a), None);
    }
}
