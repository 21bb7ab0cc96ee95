//! What this node has pulled and with what, on disk: who may use an image without pulling it anew (as kubelet's
//! `image_manager/{pulling,pulled}`).
//!
//! | Below the store | What |
//! |---|---|
//! | `pulling/<digest of the name>.json` | an intent: a pull of this name has begun and not ended |
//! | `pulled/<hex of the image ID>.json` | a [`Record`] |

use crate::image::{Digest, ImageStore};
use crate::pod::pull::{Access, Record};
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
}

impl Records {
    /// Reads the records below `root` (the store's folder), forgets those of images that are gone, and settles what a
    /// crash has left open. A record that cannot be read counts as one that lets nobody in.
    pub fn open(root: &Path, images: &ImageStore) -> Records {
        let records = Records { pulling: root.join("pulling"), pulled: root.join("pulled"), known: Mutex::default() };
        for dir in [&records.pulling, &records.pulled] {
            if let Err(error) = crate::sys::fs::create_dir_all(dir, 0o700) {
                tracing::warn!(%error, path = %dir.display(), "cannot make the folder of pull records");
            }
        }
        for path in listed(&records.pulled) {
            let hex = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let id = format!("sha256:{hex}");
            // One that is damaged comes back, and may be used then as before.
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
        let intent = Intent { image: image.to_owned(), with_secrets };
        store::write(&self.intent(image), &intent, FILE_MODE)
    }

    /// It failed, or was cancelled.
    pub fn failed(&self, image: &str) {
        forget(&self.intent(image));
    }

    /// It brought this image, opened by this pull secret or by what the node has.
    pub fn done(&self, image: &str, id: &str, secret: Option<&str>) {
        let mut record = self.of(id).unwrap_or(Record { image: id.to_owned(), repositories: Default::default() });
        let access: &mut Access = record.repositories.entry(repository(image)).or_default();
        match secret {
            None => access.node = true,
            Some(secret) => {
                access.secrets.insert(secret.to_owned());
            }
        }
        self.write(record);
        forget(&self.intent(image));
    }

    /// The image is gone, and with it who may use it: what comes in under its ID later comes in anew (as kubelet).
    pub fn removed(&self, id: &str, images: &ImageStore) {
        let mut known = self.lock();
        // It may have come back already, with a record of its own.
        if known.contains_key(id) && images.known(id).is_none() {
            known.remove(id);
            forget(&self.record(id));
        }
    }

    /// What cannot be written is known until the agent ends; then the image has to be pulled again.
    fn write(&self, record: Record) {
        if self.of(&record.image).as_ref() == Some(&record) {
            return;
        }
        let mut known = self.lock();
        if let Err(error) = store::write(&self.record(&record.image), &record, FILE_MODE) {
            tracing::warn!(error = crate::runtime::chain(&error), "a pull cannot be written down");
        }
        known.insert(record.image.clone(), record);
    }

    fn record(&self, id: &str) -> PathBuf {
        self.pulled.join(format!("{}.json", id.strip_prefix("sha256:").unwrap_or(id)))
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
        records.done(name, &image.id, Some("n/s"));
        records.done("r.example/b:1", &image.id, None);
        records.done(name, "sha256:00", None);
        let again = Records::open(&dir, &images);
        let record = again.of(&image.id).unwrap();
        assert_eq!(record, records.of(&image.id).unwrap());
        assert!(record.repositories["r.example/b"].node && !record.repositories["r.example/a"].node);
        assert_eq!(again.of("sha256:00"), None, "its image is not in the store");
        let file = dir.join("pulled").join(format!("{}.json", image.id.trim_start_matches("sha256:")));
        again.removed(&image.id, &images);
        assert!(again.of(&image.id).is_some(), "it is here");
        again.removed("sha256:00", &images);
        std::fs::write(&file, b"[").unwrap();
        let damaged = Records::open(&dir, &images);
        assert!(damaged.of(&image.id).unwrap().repositories.is_empty());
        images.remove(&image.id, &[]).unwrap();
        damaged.removed(&image.id, &images);
        assert_eq!((damaged.of(&image.id), file.exists()), (None, false));
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
