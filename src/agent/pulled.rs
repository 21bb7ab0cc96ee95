//! What this node has pulled and with what, on disk: who may use an image without pulling it anew (as kubelet's
//! `image_manager/{pulling,pulled}`).
//!
//! | Below the store | What |
//! |---|---|
//! | `pulling/<digest of the name>.json` | an intent: a pull of this name has begun and not ended |
//! | `pulled/<hex of the image ID>.json` | a [`Record`] |

use crate::image::{Digest, ImageStore};
use crate::pod::pull::{Access, Record, Secret};
use crate::store;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// State is for root only.
const FILE_MODE: u32 = 0o600;

/// A pull that began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intent {
    /// Full name.
    image: String,
    /// Whether there were pull secrets that may have opened the repository.
    with_secrets: bool,
}

/// All records; blocking, shared between threads.
#[derive(Debug)]
pub struct Records {
    pulling: PathBuf,
    pulled: PathBuf,
    /// By image ID.
    known: Mutex<HashMap<String, Record>>,
    /// How many pulls of a name are under way, and whether any has secrets: one that was given up may still be ending when
    /// the next begins, and pods with other secrets have pulls of their own.
    under_way: Mutex<HashMap<String, (usize, bool)>>,
}

impl Records {
    /// Reads the records below `root` (the store's folder), forgets those of images that are gone, and settles what a
    /// crash has left open. A record that cannot be read counts as one that lets nobody in.
    pub fn open(root: &Path, images: &ImageStore) -> Records {
        let (pulling, pulled) = (root.join("pulling"), root.join("pulled"));
        let records = Records { pulling, pulled, known: Mutex::default(), under_way: Mutex::default() };
        for dir in [&records.pulling, &records.pulled] {
            if let Err(error) = crate::sys::fs::create_dir_all(dir, 0o700) {
                tracing::warn!(%error, path = %dir.display(), "cannot make the folder of pull records");
            }
        }
        for path in listed(&records.pulled) {
            let hex = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let id = format!("sha256:{hex}");
            // A damaged image is brought back without asking anybody: who may use it must not be forgotten meanwhile.
            if images.known(&id).is_none() {
                forget(&path);
                continue;
            }
            let record = match store::read::<Record>(&path) {
                Ok(Some(record)) if record.image == id => record,
                Ok(_) => Record { image: id.clone(), repositories: Default::default() },
                Err(error) => {
                    let error = crate::runtime::chain(&error);
                    images.tell_damaged_record(&path, format!("who may use it: {error}; it has to be pulled again"));
                    Record { image: id.clone(), repositories: Default::default() }
                }
            };
            records.lock().insert(id, record);
        }
        for path in listed(&records.pulling) {
            match store::read::<Intent>(&path) {
                Ok(Some(intent)) => records.settle(&intent, images),
                Ok(None) => {}
                Err(error) => tracing::warn!(error = crate::runtime::chain(&error), "a damaged pull intent is dropped"),
            }
            forget(&path);
        }
        records
    }

    /// A pull may have ended without a record of it. Better than kubelet: without pull secrets there is no doubt about
    /// who may use what it brought, so a device that lost its power in between starts offline, too.
    fn settle(&self, intent: &Intent, images: &ImageStore) {
        let Some(image) = images.resolve(&intent.image) else { return };
        let repository = repository(&intent.image);
        let mut record =
            self.of(&image.id).unwrap_or(Record { image: image.id.clone(), repositories: Default::default() });
        if !intent.with_secrets {
            record.repositories.entry(repository).or_default().node = true;
        }
        self.write(record);
    }

    /// The record of an image.
    pub fn of(&self, id: &str) -> Option<Record> {
        self.lock().get(id).cloned()
    }

    /// A pull of this full name begins; durable when this returns.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn begin(&self, image: &str, with_secrets: bool) -> Result<(), store::Error> {
        let written = {
            // Locked: of two that begin, the one without secrets must not be what is written last.
            let mut under_way = self.under_way();
            let (count, any) = under_way.entry(image.to_owned()).or_default();
            (*count, *any) = (*count + 1, *any || with_secrets);
            let intent = Intent { image: image.to_owned(), with_secrets: *any };
            store::write(&self.intent(image), &intent, FILE_MODE)
        };
        if written.is_err() {
            self.failed(image);
        }
        written
    }

    /// It failed, or was cancelled.
    pub fn failed(&self, image: &str) {
        let mut under_way = self.under_way();
        if let Some((count, _)) = under_way.get_mut(image)
            && *count > 1
        {
            *count -= 1;
            return;
        }
        under_way.remove(image);
        // Locked: the next one must not write its own just before this.
        forget(&self.intent(image));
    }

    /// This image was removed from the store, unless it is there again: its record goes.
    pub fn removed(&self, id: &str, images: &ImageStore) {
        let mut known = self.lock();
        if images.known(id).is_none() && known.remove(id).is_some() {
            forget(&self.path(id));
        }
    }

    /// It brought this image, opened by this pull secret or by what the node has.
    pub fn done(&self, image: &str, id: &str, secret: Option<&Secret>) {
        let mut record = self.of(id).unwrap_or(Record { image: id.to_owned(), repositories: Default::default() });
        let access: &mut Access = record.repositories.entry(repository(image)).or_default();
        match secret {
            None => access.node = true,
            Some(secret) => {
                // Of one object only what is in it now.
                access.secrets.retain(|known| known.to_string() != secret.to_string());
                access.secrets.insert(secret.clone());
            }
        }
        self.write(record);
        self.failed(image);
    }

    /// What cannot be written is known until the agent ends; then the image has to be pulled again.
    fn write(&self, record: Record) {
        if self.of(&record.image).as_ref() == Some(&record) {
            return;
        }
        let mut known = self.lock();
        if let Err(error) = store::write(&self.path(&record.image), &record, FILE_MODE) {
            tracing::warn!(error = crate::runtime::chain(&error), "a pull cannot be written down");
        }
        known.insert(record.image.clone(), record);
    }

    fn path(&self, id: &str) -> PathBuf {
        self.pulled.join(format!("{}.json", id.strip_prefix("sha256:").unwrap_or(id)))
    }

    fn under_way(&self) -> std::sync::MutexGuard<'_, HashMap<String, (usize, bool)>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn intent(&self, image: &str) -> PathBuf {
        self.pulling.join(format!("{}.json", Digest::of(image.as_bytes()).hex()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Record>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A full name without its tag and digest.
pub fn repository(full: &str) -> String {
    let name = full.split_once('@').map_or(full, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let end = name[last..].find(':').map_or(name.len(), |colon| last + colon);
    name[..end].to_owned()
}

fn listed(dir: &Path) -> Vec<PathBuf> {
    store::list(dir).unwrap_or_else(|error| {
        tracing::warn!(error = crate::runtime::chain(&error), "cannot list pull records");
        Vec::new()
    })
}

fn forget(path: &Path) {
    if let Err(error) = store::delete(path) {
        tracing::warn!(error = crate::runtime::chain(&error), "a pull record cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_tag_and_digest_but_not_the_port() {
        for (full, name) in [
            ("docker.io/library/nginx:1", "docker.io/library/nginx"),
            ("h:5000/a/b", "h:5000/a/b"),
            ("h:5000/a/b:c", "h:5000/a/b"),
            ("h:5000/a:c@sha256:00", "h:5000/a"),
        ] {
            assert_eq!(repository(full), name);
        }
    }

    #[test]
    fn records_last_as_long_as_their_image_and_damage_lets_nobody_in() {
        let dir = std::env::temp_dir().join(format!("coracle-pulled-{}", std::process::id()));
        crate::sys::fs::remove_tree(&dir).unwrap();
        let images = ImageStore::open(&dir).unwrap();
        // Offline, the only image there is: this program's.
        let image = images.ensure_builtin().unwrap();
        let name = "r.example/a:1";
        let records = Records::open(&dir, &images);
        assert_eq!(records.of(&image.id), None);
        records.begin(name, true).unwrap();
        let secret = |hash: &str| Secret {
            namespace: "n".into(),
            name: "s".into(),
            uid: "1".into(),
            credential_hash: hash.into(),
        };
        records.done(name, &image.id, Some(&secret("old")));
        records.done(name, &image.id, Some(&secret("new")));
        records.done("r.example/b:1", &image.id, None);
        records.done(name, "sha256:00", None);
        let again = Records::open(&dir, &images);
        let record = again.of(&image.id).unwrap();
        assert_eq!(record, records.of(&image.id).unwrap());
        assert!(record.repositories["r.example/b"].node && !record.repositories["r.example/a"].node);
        assert_eq!(record.repositories["r.example/a"].secrets, [secret("new")].into());
        assert_eq!(again.of("sha256:00"), None, "its image is not in the store");
        let file = dir.join("pulled").join(format!("{}.json", image.id.trim_start_matches("sha256:")));
        std::fs::write(file, b"[").unwrap();
        let last = Records::open(&dir, &images);
        assert!(last.of(&image.id).unwrap().repositories.is_empty());
        // An image that is there keeps its record, one that was removed does not.
        last.removed(&image.id, &images);
        assert!(last.of(&image.id).is_some());
        images.remove(&image.id, &[]).unwrap();
        last.removed(&image.id, &images);
        assert!(last.of(&image.id).is_none() && listed(&dir.join("pulled")).is_empty());
        crate::sys::fs::remove_tree(&dir).unwrap();
    }

    #[test]
    fn a_pull_that_was_given_up_takes_no_intent_of_the_next_one() {
        let dir = std::env::temp_dir().join(format!("coracle-intents-{}", std::process::id()));
        crate::sys::fs::remove_tree(&dir).unwrap();
        let records = Records::open(&dir, &ImageStore::open(&dir).unwrap());
        records.begin("r.example/a:1", false).unwrap();
        records.begin("r.example/a:1", false).unwrap();
        records.failed("r.example/a:1");
        assert_eq!(listed(&dir.join("pulling")).len(), 1);
        records.failed("r.example/a:1");
        assert!(listed(&dir.join("pulling")).is_empty());
        crate::sys::fs::remove_tree(&dir).unwrap();
    }

    #[test]
    fn an_intent_that_a_crash_left_opens_only_what_needed_no_secret() {
        for with_secrets in [false, true] {
            let dir = std::env::temp_dir().join(format!("coracle-intent-{}-{with_secrets}", std::process::id()));
            crate::sys::fs::remove_tree(&dir).unwrap();
            let images = ImageStore::open(&dir).unwrap();
            let image = images.ensure_builtin().unwrap();
            Records::open(&dir, &images).begin(crate::image::BUILTIN, with_secrets).unwrap();
            let records = Records::open(&dir, &images);
            let record = records.of(&image.id).unwrap();
            assert_eq!(record.repositories.values().any(|access| access.node), !with_secrets);
            assert!(listed(&dir.join("pulling")).is_empty());
            crate::sys::fs::remove_tree(&dir).unwrap();
        }
    }
}
