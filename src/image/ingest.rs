//! The way into the store: layers are unpacked in a staging folder, then all become visible at once.
//!
//! Order makes it crash-safe: content → `syncfs` → rename of the layer folders → their records → the image's record.
//! A layer without a record, and everything in staging, is nothing; the next [`open`](super::ImageStore::open) removes
//! it. This is all a source of images needs to know: archives use it, and so can a registry.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLockReadGuard};
use std::{io, thread};

use super::archive::Archive;
use super::document::Layer;
use super::store::{ImageRecord, LayerRecord};
use super::unpack::{self, Limits};
use super::{Digest, Error, Image, ImageStore, Origin, Verification, blob, document, seal};
use crate::sys::fs::{self, Dir};

/// Layers unpacked side by side: each keeps two threads busy, one that decompresses and one that writes.
const PARALLEL: usize = 2;

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A layer that is in the store, or staged to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLayer {
    pub diff_id: Digest,
    /// Bytes of file content.
    pub size: u64,
}

/// An image on its way into the store. Dropped before [`Ingest::commit`], it leaves nothing behind.
pub struct Ingest<'a> {
    store: &'a ImageStore,
    /// Keeps layers this image relies on from being removed meanwhile.
    _present: RwLockReadGuard<'a, ()>,
    staging: PathBuf,
    staged: Mutex<BTreeMap<Digest, (PathBuf, LayerRecord)>>,
    /// Set to make all layers of this image stop.
    cancelled: AtomicBool,
}

impl Drop for Ingest<'_> {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_tree(&self.staging) {
            // The next open tries again.
            tracing::warn!(path = %self.staging.display(), %error, "cannot remove staging folder");
        }
    }
}

impl<'a> Ingest<'a> {
    pub(super) fn begin(store: &'a ImageStore, present: RwLockReadGuard<'a, ()>) -> Result<Ingest<'a>, Error> {
        let parent = store.staging_dir();
        // Leftovers of an earlier process with the same PID may still be there.
        let staging = loop {
            let name = format!("{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
            let staging = parent.join(name);
            match std::fs::create_dir(&staging) {
                Ok(()) => break staging,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(Error::Io { action: "create", path: staging, source }),
            }
        };
        Ok(Ingest { store, _present: present, staging, staged: Mutex::default(), cancelled: AtomicBool::new(false) })
    }

    /// A folder for whatever the source needs on the way; it goes away with this.
    pub fn scratch(&self) -> &Path {
        &self.staging
    }

    /// Whether the layer is in the store, or staged here, and need not be fetched.
    pub fn has(&self, diff_id: &Digest) -> Option<StoredLayer> {
        if let Some((_, record)) = self.staged.lock().unwrap_or_else(PoisonError::into_inner).get(diff_id) {
            return Some(StoredLayer { diff_id: diff_id.clone(), size: record.size });
        }
        self.store.layer(diff_id).map(|record| StoredLayer { diff_id: diff_id.clone(), size: record.size })
    }

    /// Unpacks a layer from a stream, plain or packed, while its digests are computed. Several threads may do this for
    /// one image at a time.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the stream hashes to something else than `blob` (its bytes) or `diff_id` (the tar stream
    /// inside), where given; those of [`unpack::layer`].
    pub fn layer(
        &self,
        source: impl Read + Send,
        blob: Option<&Digest>,
        diff_id: Option<&Digest>,
        limits: &Limits,
    ) -> Result<StoredLayer, Error> {
        let folder = self.staging.join(SERIAL.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
        // Headers and padding come on top of the content.
        let stream_limit = limits.bytes.saturating_add(limits.entries.saturating_mul(2048)).saturating_add(1 << 20);
        let recipe = folder.with_extension("recipe");
        let (learnt, digests) = blob::stream(source, stream_limit, &self.cancelled, |pieces| {
            unpack::layer_recorded(pieces, &folder, limits, &recipe)
        })?;
        let (summary, complete) = (learnt.summary, learnt.complete);
        let check = |what, expected: Option<&Digest>, actual: &Digest| match expected {
            Some(expected) if expected != actual => {
                Err(Error::Mismatch { what, expected: expected.clone(), actual: actual.clone() })
            }
            _ => Ok(()),
        };
        check("blob", blob, &digests.blob)?;
        check("layer's tar stream", diff_id, &digests.diff_id)?;
        let layer = StoredLayer { diff_id: digests.diff_id.clone(), size: summary.bytes };
        let length = std::fs::metadata(&recipe).map_err(Error::io("look at", &recipe))?.len();
        let header = seal::Header { recipe: length, complete, size: summary.bytes, entries: summary.entries };
        let sealed = folder.with_extension("seal");
        let bytes = seal::make(&folder, &header, learnt.hashes).map_err(Error::io("seal", &folder))?;
        let written = std::fs::File::create_new(&sealed).and_then(|mut file| file.write_all(&bytes));
        written.map_err(Error::io("write", &sealed))?;
        let record = LayerRecord {
            diff_id: digests.diff_id.clone(),
            size: summary.bytes,
            entries: summary.entries,
            sealed: true,
            complete,
        };
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).insert(digests.diff_id, (folder, record));
        Ok(layer)
    }

    /// Unpacks those layers of an archive that are not here yet, some at a time.
    fn archive_layers(&self, archive: &Archive, layers: &[Layer], limits: &Limits) -> Result<(), Error> {
        let mut missing: VecDeque<&Layer> = VecDeque::new();
        for layer in layers {
            if self.has(&layer.diff_id).is_none() && missing.iter().all(|other| other.diff_id != layer.diff_id) {
                missing.push_back(layer);
            }
        }
        let workers = missing.len().min(PARALLEL);
        let missing = Mutex::new(missing);
        let first_error = Mutex::new(None);
        let work = || {
            loop {
                let next = missing.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(layer) = next else { return };
                let result = archive
                    .read(&layer.member)
                    .and_then(|member| self.layer(member, layer.blob.as_ref(), Some(&layer.diff_id), limits));
                if let Err(error) = result {
                    self.cancelled.store(true, Ordering::Relaxed);
                    missing.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    let error = error.within(archive.path(), &layer.member);
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..workers {
                // Without a second thread it only takes longer.
                let _ = thread::Builder::new().name("image-unpack".into()).spawn_scoped(scope, work);
            }
            work();
        });
        match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Makes the image, with all its layers, part of the store. Names it shares with other images move to it.
    ///
    /// # Errors
    /// [`Error::Missing`] for a layer of `config` that is neither staged nor stored; failures of the disk. The store is
    /// as it was then, except for whole layers that no image uses yet.
    pub fn commit(&self, image: NewImage) -> Result<Arc<Image>, Error> {
        let mut layers: Vec<Digest> = Vec::new();
        let mut size = 0;
        for diff_id in image.config.rootfs().diff_ids() {
            let diff_id: Digest = diff_id.parse()?;
            let layer = self.has(&diff_id).ok_or(Error::Missing)?;
            // A layer that comes again covers its first appearance completely.
            match layers.iter().position(|other| *other == diff_id) {
                Some(earlier) => drop(layers.remove(earlier)),
                None => size += layer.size,
            }
            layers.push(diff_id);
        }
        self.publish_layers()?;
        let record = ImageRecord {
            id: image.id,
            names: image.names,
            digests: image.digests,
            config: image.config,
            layers,
            size,
            added: jiff::Timestamp::now().as_second(),
            pinned: image.pinned,
            origins: image.origin.into_iter().collect(),
            verified: image.verified,
        };
        self.store.publish(record)
    }

    /// Moves what is staged to its final place, durably.
    pub(super) fn publish_layers(&self) -> Result<(), Error> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        if staged.is_empty() {
            return Ok(());
        }
        let staging = Dir::open(&self.staging).map_err(Error::io("open", &self.staging))?;
        staging.sync_filesystem().map_err(Error::io("sync", &self.staging))?;
        let layers = self.store.layers_dir();
        let target = Dir::open(&layers).map_err(Error::io("open", &layers))?;
        for (diff_id, (folder, _)) in staged.iter() {
            let name = folder.file_name().unwrap_or_default();
            loop {
                match staging.rename_new(name, &target, diff_id.hex().as_ref()) {
                    Ok(()) => break,
                    // Somebody else's is as good as ours, if it is whole; a rest of one is not.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        if self.store.layer(diff_id).is_some() {
                            break;
                        }
                        // Not deleted before the next start: a container may still run on it.
                        self.store.discard(&layers.join(diff_id.hex()))?;
                    }
                    Err(source) => return Err(Error::Io { action: "move", path: folder.clone(), source }),
                }
            }
        }
        for (diff_id, (folder, _)) in staged.iter() {
            for kind in ["seal", "recipe"] {
                let (from, to) = (folder.with_extension(kind), layers.join(diff_id.hex()).with_extension(kind));
                // Those of a layer that somebody else brought in meanwhile stay: a seal knows the inodes of its folder.
                if folder.exists() {
                    continue;
                }
                std::fs::rename(&from, &to).map_err(Error::io("move", &from))?;
            }
        }
        target.sync().map_err(Error::io("sync", &layers))?;
        while let Some((diff_id, (folder, record))) = staged.pop_first() {
            // Still staged: that of somebody else, with a record of its own, was there.
            if !folder.exists() {
                self.store.write_layer(&diff_id, &record)?;
            }
        }
        Ok(())
    }
}

/// What [`Ingest::commit`] makes an image of.
#[derive(Debug, Clone)]
pub struct NewImage {
    pub id: Digest,
    /// Normalised.
    pub names: Vec<String>,
    pub digests: Vec<Digest>,
    pub config: oci_spec::image::ImageConfiguration,
    /// Where it can be had again.
    pub origin: Option<Origin>,
    pub verified: Vec<Verification>,
    /// Whether it stays though nothing uses it.
    pub pinned: bool,
}

/// Imports all images of the archive at `path` that can run here.
pub(super) fn archive(store: &ImageStore, path: &Path, limits: &Limits) -> Result<Vec<Arc<Image>>, Error> {
    let ingest = store.ingest()?;
    let archive = Archive::open(path, ingest.scratch())?;
    let candidates = document::candidates(&archive)?;
    let mut images = Vec::new();
    for candidate in candidates {
        ingest.archive_layers(&archive, &candidate.layers, limits)?;
        let image = NewImage {
            id: candidate.id,
            names: candidate.names,
            digests: candidate.digests,
            config: candidate.config,
            origin: path.is_absolute().then(|| Origin::Archive { path: path.into() }),
            verified: Vec::new(),
            pinned: false,
        };
        images.push(ingest.commit(image).map_err(|e| e.within(path, "image"))?);
    }
    Ok(images)
}

/// Brings back, from the archive at `path`, those of the layers `wanted` that it has. Names and records of images stay as
/// they are: the archive may be older than they.
pub(super) fn restore(store: &ImageStore, path: &Path, wanted: &[Digest]) -> Result<(), Error> {
    let ingest = store.ingest()?;
    let archive = Archive::open(path, ingest.scratch())?;
    for candidate in document::candidates(&archive)? {
        let layers: Vec<Layer> = candidate.layers.into_iter().filter(|layer| wanted.contains(&layer.diff_id)).collect();
        ingest.archive_layers(&archive, &layers, store.limits())?;
    }
    ingest.publish_layers()
}
