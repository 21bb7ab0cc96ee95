//! What is on disk, and how it is found again.
//!
//! | In the store | What |
//! |---|---|
//! | `images/<hex of the ID>.json` | an image: names, configuration, layers |
//! | `copies/<hex of the ID>.json` | the same once more: nothing else knows the names |
//! | `layers/<hex of the diff ID>/` | an unpacked layer, shared between images |
//! | `layers/<hex of the diff ID>.json` | says that the layer is whole |
//! | `layers/<hex of the diff ID>.seal` | what its folder was like ([`seal`](super::seal)) |
//! | `layers/<hex of the diff ID>.recipe` | the rest of its tar stream ([`recipe`](super::recipe)) |
//! | `quarantine/` | damaged layers that containers may still run on |
//! | `staging/` | what is being unpacked or removed |
//! | `images/<hex of the ID>.config` | the image's configuration as it came |
//! | `images/<hex of the ID>.removed` | says that somebody removed the image, though it was pinned |
//! | `*.damaged` | records set aside |

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use std::{io, thread};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::heal::Care;
use super::holds::Holds;
use super::ingest::{self, Ingest, Manner};
use super::load::clear;
use super::trust::Trust;
use super::unpack::Limits;
use super::{Collector, Digest, Error, Image, Origin, Verification, builtin, record, reference};
use crate::store;
use crate::sys::fs::{self, Dir};

/// State is for root only.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;
/// Largest configuration of an image that is read, in bytes; as for records.
const LARGEST_CONFIGURATION: u64 = 16 << 20;

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// An image as it is recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub id: Digest,
    pub names: Vec<String>,
    #[serde(default)]
    pub digests: Vec<Digest>,
    pub config: ImageConfiguration,
    /// Bottom first.
    pub layers: Vec<Digest>,
    /// Bytes of file content.
    pub size: u64,
    /// Seconds since 1970.
    #[serde(default)]
    pub added: i64,
    #[serde(default)]
    pub pinned: bool,
    #[serde(default)]
    pub origins: Vec<Origin>,
    #[serde(default)]
    pub verified: Vec<Verification>,
}

/// A layer as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub diff_id: Digest,
    /// Bytes of file content.
    pub size: u64,
    pub entries: u64,
    /// Whether it has a seal; those of older versions get theirs at first use.
    #[serde(default)]
    pub sealed: bool,
    /// Whether its tar stream can be had again from folder and recipe.
    #[serde(default)]
    pub complete: bool,
    /// Whether it may have marked folders besides its root; see [`unlisted`](super::unlisted).
    #[serde(default)]
    pub unlisted: bool,
    /// Digest of the packed blob it came as, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Digest>,
}

/// A record that could not be used and was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    pub path: PathBuf,
    pub reason: String,
}

/// The image store. Blocking; shared between threads.
pub struct ImageStore {
    root: PathBuf,
    limits: Limits,
    catalog: Mutex<Catalog>,
    /// How many images on their way in rely on a layer. Locked while layers are removed: none of these is.
    pub(super) claims: Mutex<HashMap<Digest, usize>>,
    /// Images that are being taken, or are coming in.
    pub(super) holds: Holds,
    /// Who makes room when the disk is full.
    pub(super) collector: OnceLock<Weak<Collector>>,
    /// Keeps two threads from making the built-in image at a time.
    builtin: Mutex<Option<builtin::Source>>,
    pub(super) damaged: Vec<Damaged>,
    trust: Arc<Trust>,
    pub(super) care: Care,
    /// Locked as long as this is open: two processes would remove each other's staging.
    _lock: File,
}

#[derive(Default)]
pub(super) struct Catalog {
    pub images: BTreeMap<Digest, Entry>,
    /// Damaged ones: not to be used, but not forgotten either.
    pub broken: BTreeMap<Digest, Entry>,
    /// From full names, of images that can be used.
    names: HashMap<String, Digest>,
}

#[derive(Clone)]
pub(super) struct Entry {
    pub image: Arc<Image>,
    pub layers: Vec<Digest>,
}

impl ImageStore {
    /// Opens the store in the folder `root`, which is created if needed. Reads the records and checks that the layers
    /// they name are there; does not look into layers. What a crash has left is removed in the background.
    ///
    /// # Errors
    /// [`Error::Locked`]; [`Error::Io`] when the folder cannot be used. A damaged image is no error: it is set aside, see
    /// [`ImageStore::damaged`].
    pub fn open(root: &Path) -> Result<ImageStore, Error> {
        ImageStore::open_with(root, Limits::default())
    }

    /// As [`ImageStore::open`], with other limits for what is unpacked.
    ///
    /// # Errors
    /// As [`ImageStore::open`].
    pub fn open_with(root: &Path, limits: Limits) -> Result<ImageStore, Error> {
        for dir in ["", "images", "copies", "layers", "staging", "quarantine"].map(|name| root.join(name)) {
            fs::create_dir_all(&dir, DIR_MODE).map_err(Error::io("create", &dir))?;
        }
        let mut store = ImageStore {
            root: root.into(),
            limits,
            catalog: Mutex::default(),
            claims: Mutex::default(),
            holds: Holds::default(),
            collector: OnceLock::new(),
            builtin: Mutex::default(),
            damaged: Vec::new(),
            trust: Arc::default(),
            care: Care::default(),
            _lock: lock(root)?,
        };
        store.load()?;
        store.clean();
        Ok(store)
    }

    /// The store that takes in only what `trust` accepts; without this, everything.
    #[must_use]
    pub fn trusting(self, trust: Arc<Trust>) -> ImageStore {
        ImageStore { trust, ..self }
    }

    /// What is accepted.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Imports the images of a docker-archive, an oci-archive (either may be packed with gzip or zstd) or an OCI layout
    /// folder. What is in the store already is not unpacked again.
    ///
    /// # Errors
    /// What is wrong with the archive, with the member it is in. Images before it in the archive are imported then; of
    /// the one that failed nothing is left.
    pub fn import(&self, archive: &Path) -> Result<Vec<Arc<Image>>, Error> {
        self.with_room(|| ingest::archive(self, archive, &self.limits, Manner::default()))
    }

    /// Imports the images of an archive that can only be read once, from its beginning. `name` is for messages.
    ///
    /// # Errors
    /// As [`ImageStore::import`].
    pub fn import_stream(&self, name: &Path, source: impl io::Read + Send) -> Result<Vec<Arc<Image>>, Error> {
        ingest::stream(self, name, source, &self.limits)
    }

    /// Keeps the image of this ID though nothing uses it, or no longer does so. Nothing happens when there is none.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn pin(&self, id: &str, pinned: bool) -> Result<(), Error> {
        let Some(id) = self.by_id(id) else { return Ok(()) };
        let mut catalog = self.catalog();
        match catalog.images.get(&id) {
            Some(entry) if entry.image.pinned != pinned => {
                let record = ImageRecord { pinned, ..entry.record(&id) };
                self.store_record(&mut catalog, record)
            }
            _ => Ok(()),
        }
    }

    /// Whether the record of this image was set aside, and it has not come in again since.
    pub(super) fn is_damaged(&self, id: &str) -> bool {
        id.parse().is_ok_and(|id: Digest| self.image_record(&id).with_extension("json.damaged").exists())
    }

    /// Whether somebody has removed the (pinned) image of this ID, and it has not come in again since.
    pub(super) fn was_removed(&self, id: &str) -> bool {
        id.parse().is_ok_and(|id: Digest| self.removed_mark(&id).exists())
    }

    /// Forgets that the image of this ID was removed.
    pub(super) fn forget_removed(&self, id: &str) -> Result<(), Error> {
        match id.parse::<Digest>() {
            Ok(id) => Ok(store::delete(&self.removed_mark(&id))?),
            Err(_) => Ok(()),
        }
    }

    /// Starts to bring in an image from any source.
    ///
    /// # Errors
    /// [`Error::Io`] when there can be no staging folder.
    pub fn ingest(&self) -> Result<Ingest<'_>, Error> {
        Ingest::begin(self)
    }

    /// The image of this name, in any form a person may write it, by digest, or by ID. The built-in image is made when
    /// it is asked for the first time.
    pub fn resolve(&self, reference: &str) -> Option<Arc<Image>> {
        if self.by_id(reference).is_none() && reference::normalise(reference).is_ok_and(|name| name == builtin::BUILTIN)
        {
            match self.ensure_builtin() {
                Ok(image) => return Some(image),
                Err(error) => tracing::error!(%error, "cannot make the built-in image"),
            }
        }
        self.lookup(reference)
    }

    /// As [`ImageStore::resolve`], but makes nothing.
    pub fn lookup(&self, reference: &str) -> Option<Arc<Image>> {
        self.find(reference).map(|id| self.get(&id)).unwrap_or_default()
    }

    fn get(&self, id: &Digest) -> Option<Arc<Image>> {
        self.catalog().images.get(id).map(|entry| entry.image.clone())
    }

    fn by_id(&self, reference: &str) -> Option<Digest> {
        let id = match reference.starts_with("sha256:") {
            true => reference.parse::<Digest>().ok()?,
            false => format!("sha256:{reference}").parse().ok()?,
        };
        self.catalog().images.contains_key(&id).then_some(id)
    }

    fn find(&self, reference: &str) -> Option<Digest> {
        if let Some(id) = self.by_id(reference) {
            return Some(id);
        }
        let parsed = reference::parse(reference).ok()?;
        let catalog = self.catalog();
        match parsed.digest() {
            None => catalog.names.get(&parsed.whole()).cloned(),
            // The digest says it all: a tag beside it is a comment, as for kubelet.
            Some(digest) => catalog
                .images
                .iter()
                .find(|(_, entry)| entry.image.digests.iter().any(|known| known == digest))
                .map(|(id, _)| id.clone()),
        }
    }

    /// All images, sorted by ID.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.catalog().images.values().map(|entry| entry.image.clone()).collect()
    }

    /// What could not be used when the store was opened.
    pub fn damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    /// Removes a name; with its last name, or when asked by ID, the image with the layers that no other image has.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InUse`] when the image would go but its ID is among `in_use`.
    pub fn remove(&self, reference: &str, in_use: &[String]) -> Result<(), Error> {
        let not_found = || Error::NotFound { reference: reference.into() };
        let id = self.find(reference).or_else(|| self.find_broken(reference)).ok_or_else(not_found)?;
        // Not found by a name: asked by ID or by digest.
        let name = reference::normalise(reference).ok();
        if let Some(name) = name
            && self.untag(&id, &name)?
        {
            return Ok(());
        }
        if in_use.iter().any(|used| used == id.as_str()) {
            return Err(Error::InUse { id: id.to_string() });
        }
        self.remove_for_good(&id, Holds::has_now).map(drop)
    }

    /// Takes a name from an image that has others; whether it did.
    pub(super) fn untag(&self, id: &Digest, name: &str) -> Result<bool, Error> {
        let mut catalog = self.catalog();
        let Some(entry) = catalog.images.get(id).or_else(|| catalog.broken.get(id)) else { return Ok(false) };
        let mut left = entry.image.names.clone();
        left.retain(|other| other != name);
        if left.is_empty() || left.len() == entry.image.names.len() {
            return Ok(false);
        }
        let record = ImageRecord { names: left, ..entry.record(id) };
        catalog.names.remove(name);
        self.store_record(&mut catalog, record).map(|()| true)
    }

    /// As [`ImageStore::remove_image`], because somebody wants that: a pinned one does not come back by itself.
    pub(super) fn remove_for_good(&self, id: &Digest, is_held: fn(&Holds, &Digest) -> bool) -> Result<u64, Error> {
        let pinned = {
            let catalog = self.catalog();
            catalog.images.get(id).or_else(|| catalog.broken.get(id)).is_some_and(|entry| entry.image.pinned)
        };
        if pinned {
            // Before the record goes: lost, it would be imported again from where it is kept.
            store::write(&self.removed_mark(id), &(), FILE_MODE)?;
        }
        let removed = self.remove_image(id, is_held);
        if pinned && matches!(removed, Err(Error::InUse { .. })) {
            store::delete(&self.removed_mark(id))?;
        }
        removed
    }

    /// Forgets an image, and removes those of its layers that no other image has and nothing uses; how many bytes that
    /// freed.
    ///
    /// # Errors
    /// [`Error::InUse`] when somebody holds the image, as `is_held` says; failures of the disk.
    pub(super) fn remove_image(&self, id: &Digest, is_held: fn(&Holds, &Digest) -> bool) -> Result<u64, Error> {
        let mut catalog = self.catalog();
        if is_held(&self.holds, id) {
            return Err(Error::InUse { id: id.to_string() });
        }
        // The copy first: without the record it says that that was lost.
        store::delete(&self.image_copy(id))?;
        store::delete(&self.image_record(id))?;
        let gone = catalog.remove(id);
        self.holds.forget(id);
        drop(catalog);
        self.care.lacks().configurations.remove(id);
        // Without its record it means nothing.
        clear(&self.configuration_path(id));
        self.remove_layers(gone)
    }

    /// All images with their layers, damaged ones too.
    pub(super) fn contents(&self) -> Vec<(Digest, Arc<Image>, Vec<Digest>)> {
        let catalog = self.catalog();
        let all = catalog.images.iter().chain(&catalog.broken);
        all.map(|(id, entry)| (id.clone(), entry.image.clone(), entry.layers.clone())).collect()
    }

    /// Whether an image has the layer, be it a damaged one that is being brought back.
    pub(super) fn has_owner(&self, diff_id: &Digest) -> bool {
        let catalog = self.catalog();
        catalog.images.values().chain(catalog.broken.values()).any(|entry| entry.layers.contains(diff_id))
    }

    /// Moves a folder to staging, from where it is never used again; returns its path there.
    pub(super) fn discard(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            // What it was is told, as it may not be deleted while it is mounted.
            let was = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("removed-{}-{serial}-{was}", std::process::id());
            let to = self.staging_dir().join(&name);
            let renamed = Dir::open(&self.staging_dir()).and_then(|staging| {
                Dir::open(path.parent().unwrap_or(path))?.rename_new(
                    path.file_name().unwrap_or_default(),
                    &staging,
                    OsStr::new(&name),
                )
            });
            match renamed {
                Ok(()) => return Ok(Some(to)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(Error::Io { action: "move", path: path.into(), source }),
            }
        }
    }

    /// Makes the image of this binary, unless it is there already; see [`builtin`].
    ///
    /// # Errors
    /// As bringing in any image.
    pub fn ensure_builtin(&self) -> Result<Arc<Image>, Error> {
        let mut made_from = self.builtin.lock().unwrap_or_else(PoisonError::into_inner);
        builtin::ensure(self, &mut made_from)
    }

    /// Takes in an image whose layers are all there, with its configuration as it came.
    pub(super) fn publish(&self, mut record: ImageRecord, configuration: Option<&[u8]>) -> Result<Arc<Image>, Error> {
        let mut catalog = self.catalog();
        let id = record.id.clone();
        // A damaged layer may have left after it was looked for.
        if record.layers.iter().any(|diff_id| self.layer(diff_id).is_none()) {
            return Err(Error::Missing);
        }
        if let Some(known) = catalog.images.get(&id).or_else(|| catalog.broken.get(&id)) {
            record.names.extend(known.image.names.iter().cloned());
            let known = known.record(&id);
            record.digests.extend(known.digests);
            record.pinned |= known.pinned;
            record.added = known.added;
            let newest = std::mem::replace(&mut record.origins, known.origins);
            record.origins.retain(|origin| !newest.contains(origin));
            record.origins.extend(newest);
            // Signed anew by the same, only the comment is another.
            let new = record.verified.clone();
            let is_new = |old: &Verification| new.iter().any(|new| (&new.name, &new.key) == (&old.name, &old.key));
            record.verified.extend(known.verified.into_iter().filter(|old| !is_new(old)));
        }
        record.names.sort();
        record.names.dedup();
        record.digests.sort();
        record.digests.dedup();
        record.verified.sort();
        record.verified.dedup();
        let same = |entry: &Entry| {
            let old = entry.record(&id);
            (old.names, old.digests, old.layers)
                == (record.names.clone(), record.digests.clone(), record.layers.clone())
                && (old.pinned, old.origins, old.verified)
                    == (record.pinned, record.origins.clone(), record.verified.clone())
        };
        if let Some(content) = configuration {
            self.keep_configuration(&catalog, &id, content)?;
        }
        if !catalog.images.get(&id).is_some_and(same) {
            // The new owner of a name first: a crash in between leaves two, of which `insert` takes one, never none.
            let names = record.names.clone();
            self.store_record(&mut catalog, record)?;
            let losers: Vec<ImageRecord> = catalog
                .images
                .iter()
                .chain(&catalog.broken)
                .filter(|(other, entry)| **other != id && entry.image.names.iter().any(|name| names.contains(name)))
                .map(|(other, entry)| entry.record(other))
                .collect();
            for mut loser in losers {
                loser.names.retain(|name| !names.contains(name));
                self.store_record(&mut catalog, loser)?;
            }
            for name in names {
                catalog.names.insert(name, id.clone());
            }
            // The image is here, whatever becomes of these: that it was removed once, a damaged record that is healed now.
            clear(&self.removed_mark(&id));
            clear(&self.image_record(&id).with_extension("json.damaged"));
        }
        self.holds.arrived(&id);
        catalog.images.get(&id).map(|entry| entry.image.clone()).ok_or(Error::Missing)
    }

    /// Writes the configuration of an image as it came, unless it is there.
    pub(super) fn keep_configuration(&self, catalog: &Catalog, id: &Digest, content: &[u8]) -> Result<(), Error> {
        if !matches!(self.kept_configuration(id), Ok(kept) if kept == content) {
            let path = self.configuration_path(id);
            if let Err(error) = store::replace(&path, content, FILE_MODE) {
                if !catalog.has(id) {
                    clear(&path);
                }
                return Err(error.into());
            }
        }
        self.care.lacks().configurations.remove(id);
        Ok(())
    }

    /// The configuration of an image as it came.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn kept_configuration(&self, id: &Digest) -> Result<Vec<u8>, String> {
        match fs::read_limited(&self.configuration_path(id), LARGEST_CONFIGURATION) {
            Ok(kept) if Digest::of(&kept) == *id => Ok(kept),
            Ok(kept) => Err(format!("is damaged ({} bytes with digest {})", kept.len(), Digest::of(&kept))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err("is missing".to_owned()),
            Err(e) => Err(format!("cannot be read: {e}")),
        }
    }

    fn store_record(&self, catalog: &mut Catalog, record: ImageRecord) -> Result<(), Error> {
        if let Err(error) = record::write(&self.image_record(&record.id), &record) {
            self.withdraw(catalog, &record.id);
            return Err(error.into());
        }
        self.copy_record(&record);
        // Whether its layers are there does not change with a record.
        let broken = catalog.broken.contains_key(&record.id)
            && record.layers.iter().any(|diff_id| self.layer(diff_id).is_none());
        catalog.remove(&record.id);
        match broken {
            true => drop(catalog.insert_broken(self, record)),
            false => catalog.insert(self, record),
        }
        Ok(())
    }

    /// What failed may be on disk all the same (a folder's fsync comes after the rename), but is not to be.
    fn withdraw(&self, catalog: &Catalog, id: &Digest) {
        let undone = match catalog.images.get(id).or_else(|| catalog.broken.get(id)) {
            Some(known) => record::write(&self.image_record(id), &known.record(id)),
            None => {
                clear(&self.configuration_path(id));
                store::delete(&self.image_copy(id)).and_then(|()| store::delete(&self.image_record(id)))
            }
        };
        if let Err(error) = undone {
            tracing::warn!(image = %id, %error, "cannot take back a record");
        }
    }

    /// Writes the second copy of a record. The image is as good without it.
    pub(super) fn copy_record(&self, record: &ImageRecord) {
        if let Err(error) = record::write(&self.image_copy(&record.id), record) {
            tracing::warn!(image = %record.id, %error, "cannot write the copy of a record");
        }
    }

    /// The record of a layer that is whole.
    pub(super) fn layer(&self, diff_id: &Digest) -> Option<LayerRecord> {
        let record: LayerRecord = record::read(&self.layer_record(diff_id)).ok()??;
        (record.diff_id == *diff_id && self.layers_dir().join(diff_id.hex()).is_dir()).then_some(record)
    }

    pub(super) fn write_layer(&self, diff_id: &Digest, record: &LayerRecord) -> Result<(), Error> {
        Ok(record::write(&self.layer_record(diff_id), record)?)
    }

    pub(super) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        // The catalog is changed only after the disk, in steps that cannot fail.
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(super) fn copies_dir(&self) -> PathBuf {
        self.root.join("copies")
    }

    /// The configuration of an image as it came.
    pub(super) fn configuration_path(&self, id: &Digest) -> PathBuf {
        self.images_dir().join(format!("{}.config", id.hex()))
    }

    /// Says that a pinned image is gone because somebody wanted that.
    fn removed_mark(&self, id: &Digest) -> PathBuf {
        self.images_dir().join(format!("{}.removed", id.hex()))
    }

    pub(super) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(super) fn staging_dir(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(super) fn image_record(&self, id: &Digest) -> PathBuf {
        self.images_dir().join(format!("{}.json", id.hex()))
    }

    /// Its copy.
    pub(super) fn image_copy(&self, id: &Digest) -> PathBuf {
        self.copies_dir().join(format!("{}.json", id.hex()))
    }

    pub(super) fn layer_record(&self, diff_id: &Digest) -> PathBuf {
        self.layer_file(diff_id, "json")
    }

    /// Something beside a layer's folder.
    pub(super) fn layer_file(&self, diff_id: &Digest, extension: &str) -> PathBuf {
        self.layers_dir().join(format!("{}.{extension}", diff_id.hex()))
    }
}

impl Catalog {
    /// Whether there is such an image, whole or damaged.
    pub(super) fn has(&self, id: &Digest) -> bool {
        self.images.contains_key(id) || self.broken.contains_key(id)
    }

    pub(super) fn insert(&mut self, store: &ImageStore, record: ImageRecord) {
        let (id, entry) = Entry::of(store, record);
        for name in &entry.image.names {
            self.names.insert(name.clone(), id.clone());
        }
        self.images.insert(id, entry);
    }

    /// Keeps a record whose layers are not all there.
    pub(super) fn insert_broken(&mut self, store: &ImageStore, record: ImageRecord) -> (Digest, Entry) {
        let (id, entry) = Entry::of(store, record);
        self.broken.insert(id.clone(), entry.clone());
        (id, entry)
    }

    /// Forgets an image; gives its layers.
    fn remove(&mut self, id: &Digest) -> Vec<Digest> {
        self.names.retain(|_, owner| owner != id);
        let entry = self.images.remove(id).or_else(|| self.broken.remove(id));
        entry.map(|entry| entry.layers).unwrap_or_default()
    }

    /// Puts an image where it cannot be used.
    pub(super) fn set_broken(&mut self, id: &Digest) {
        self.names.retain(|_, owner| owner != id);
        if let Some(entry) = self.images.remove(id) {
            self.broken.insert(id.clone(), entry);
        }
    }

    /// The image can be used again.
    pub(super) fn set_whole(&mut self, id: &Digest) {
        if let Some(entry) = self.broken.remove(id) {
            for name in &entry.image.names {
                self.names.entry(name.clone()).or_insert_with(|| id.clone());
            }
            self.images.insert(id.clone(), entry);
        }
    }
}

impl Entry {
    fn of(store: &ImageStore, record: ImageRecord) -> (Digest, Entry) {
        let layers = store.layers_dir();
        let image = Image {
            id: record.id.to_string(),
            names: record.names,
            digests: record.digests.iter().map(Digest::to_string).collect(),
            config: record.config,
            layers: record.layers.iter().map(|diff_id| layers.join(diff_id.hex())).collect(),
            size: record.size,
            added: record.added,
            pinned: record.pinned,
            origins: record.origins,
            verified: record.verified,
        };
        (record.id, Entry { image: Arc::new(image), layers: record.layers })
    }

    pub(super) fn record(&self, id: &Digest) -> ImageRecord {
        ImageRecord {
            id: id.clone(),
            names: self.image.names.clone(),
            digests: self.image.digests.iter().filter_map(|digest| digest.parse().ok()).collect(),
            config: self.image.config.clone(),
            layers: self.layers.clone(),
            size: self.image.size,
            added: self.image.added,
            pinned: self.image.pinned,
            origins: self.image.origins.clone(),
            verified: self.image.verified.clone(),
        }
    }
}

/// Locks the store for this process.
fn lock(root: &Path) -> Result<File, Error> {
    let path = root.join("lock");
    let file = File::options().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
    // A child between fork and exec holds the lock of a store that was closed just now a moment longer.
    for _ in 0..50 {
        match fs::try_lock(&file) {
            Ok(()) => return Ok(file),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(20)),
            Err(source) => return Err(Error::Io { action: "lock", path, source }),
        }
    }
    Err(Error::Locked { path: root.into() })
}
