//! The way into the store: layers are unpacked in a staging folder, then all become visible at once.
//!
//! Order makes it crash-safe: content → `syncfs` → rename of the layer folders → their records → the image's record.
//! A layer without a record, and everything in staging, is nothing; the next [`open`](super::ImageStore::open) removes
//! it. This is all a source of images needs to know: archives use it, and so can a registry.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use super::archive::Archive;
use super::document::Layer;
use super::space::Guarded;
use super::store::{ImageRecord, LayerRecord};
use super::unpack::{self, Limits};
use super::{Digest, Error, Image, ImageStore, Origin, Verification, blob, document};
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
    /// Layers this image relies on, and which are not removed meanwhile.
    claimed: Mutex<BTreeSet<Digest>>,
    staging: PathBuf,
    staged: Mutex<BTreeMap<Digest, (PathBuf, LayerRecord)>>,
    /// Set to make all layers of this image stop.
    cancelled: AtomicBool,
}

impl Drop for Ingest<'_> {
    fn drop(&mut self) {
        self.store.release(self.claimed.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = fs::remove_tree(&self.staging) {
            // The next open tries again.
            tracing::warn!(path = %self.staging.display(), %error, "cannot remove staging folder");
        }
    }
}

impl<'a> Ingest<'a> {
    pub(super) fn begin(store: &'a ImageStore) -> Result<Ingest<'a>, Error> {
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
        let (claimed, staged) = (Mutex::default(), Mutex::default());
        Ok(Ingest { store, claimed, staging, staged, cancelled: AtomicBool::new(false) })
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
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let record = self.store.claim(&mut claimed, diff_id)?;
        Some(StoredLayer { diff_id: diff_id.clone(), size: record.size })
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
        let (summary, digests) = blob::stream(source, stream_limit, &self.cancelled, |pieces| {
            unpack::layer_buffered(&mut Guarded::new(pieces, self.store.root())?, &folder, limits)
        })
        .map_err(|error| error.or_no_space(self.store.root()))?;
        let check = |what, expected: Option<&Digest>, actual: &Digest| match expected {
            Some(expected) if expected != actual => {
                Err(Error::Mismatch { what, expected: expected.clone(), actual: actual.clone() })
            }
            _ => Ok(()),
        };
        check("blob", blob, &digests.blob)?;
        check("layer's tar stream", diff_id, &digests.diff_id)?;
        let layer = StoredLayer { diff_id: digests.diff_id.clone(), size: summary.bytes };
        let record = LayerRecord { diff_id: digests.diff_id.clone(), size: summary.bytes, entries: summary.entries };
        // From here on it may get into the store, and only later belong to an image.
        self.store.reserve(&mut self.claimed.lock().unwrap_or_else(PoisonError::into_inner), &digests.diff_id);
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
        // Packed ones need more: the least is known before anything is written.
        let needed = missing.iter().filter_map(|layer| Some(archive.read(&layer.member).ok()?.len()));
        self.store.expect_room(needed.fold(0, u64::saturating_add))?;
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
        self.commit_checked(image).map_err(|error| error.or_no_space(self.store.root()))
    }

    fn commit_checked(&self, image: NewImage) -> Result<Arc<Image>, Error> {
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
    fn publish_layers(&self) -> Result<(), Error> {
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
        target.sync().map_err(Error::io("sync", &layers))?;
        while let Some((diff_id, (_, record))) = staged.pop_first() {
            self.store.write_layer(&diff_id, &record)?;
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
