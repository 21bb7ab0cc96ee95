//! The way into the store: layers are unpacked in a staging folder, then all become visible at once.
//!
//! Order makes it crash-safe: content → `syncfs` → rename of the layer folders → their records → the image's record.
//! A layer without a record, and everything in staging, is nothing; the next [`open`](super::ImageStore::open) removes
//! it. This is all a source of images needs to know: archives and registries use it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use oci_spec::image::ImageConfiguration;

use super::abreast::abreast;
use super::archive::{self, Archive, Found, Opened};
use super::blob::{Digests, Hashing};
use super::document::Layer;
use super::pass::Take;
use super::space::Guarded;
use super::store::{ImageRecord, LayerRecord};
use super::trust::Vetting;
use super::unlisted::{self, Stacked};
use super::unpack::{self, Limits};
use super::{Digest, Error, Image, ImageStore, Origin, Verification, blob, document, pass, seal};
use crate::store;
use crate::sys::clock;
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
    /// The staging folder, open from the beginning: errors of writing back are told to who had something open by then.
    opened: Dir,
    staged: Mutex<BTreeMap<Digest, (PathBuf, LayerRecord)>>,
    /// Read when it is asked for.
    packed: OnceLock<HashMap<Digest, Digest>>,
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
        let opened = match Dir::open(&staging) {
            Ok(opened) => opened,
            Err(source) => {
                // Nothing is in it yet; if it stays, the next open removes it.
                let _ = std::fs::remove_dir(&staging);
                return Err(Error::Io { action: "open", path: staging, source });
            }
        };
        let (claimed, staged) = (Mutex::default(), Mutex::default());
        let (packed, cancelled) = (OnceLock::new(), AtomicBool::new(false));
        Ok(Ingest { store, claimed, staging, opened, staged, packed, cancelled })
    }

    /// Whether the layer is in the store, or staged here, and need not be fetched.
    pub fn has(&self, diff_id: &Digest) -> Option<StoredLayer> {
        if let Some((_, record)) = self.staged.lock().unwrap_or_else(PoisonError::into_inner).get(diff_id) {
            return Some(StoredLayer { diff_id: diff_id.clone(), size: record.size });
        }
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever brings a layer whose recipe is lost brings the recipe, too. What was relied on stays good enough.
        if self.store.care.lacks().recipes.contains(diff_id) && !claimed.contains(diff_id) {
            return None;
        }
        let record = self.store.claim(&mut claimed, diff_id)?;
        Some(StoredLayer { diff_id: diff_id.clone(), size: record.size })
    }

    /// The layer of the store that a blob with this digest unpacks to, if that is known without reading it.
    pub(super) fn known(&self, blob: &Digest) -> Option<Digest> {
        // A blob that is not packed has the digest of what is in it.
        let known = self.has(blob).or_else(|| self.has(self.packed().get(blob)?));
        known.map(|layer| layer.diff_id)
    }

    /// What the packed blobs that layers of the store came as unpack to.
    fn packed(&self) -> &HashMap<Digest, Digest> {
        self.packed.get_or_init(|| {
            let records = store::list(&self.store.layers_dir()).unwrap_or_default();
            let records = records.iter().filter_map(|path| store::read::<LayerRecord>(path).ok()?);
            records.filter_map(|record| Some((record.blob?, record.diff_id))).collect()
        })
    }

    /// Makes sure that `needed` more bytes fit on the disk, so that it is not filled up for nothing; unused images may
    /// have to go.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn room(&self, needed: u64) -> Result<(), Error> {
        self.store.expect_room(needed)
    }

    /// Keeps the configuration of an image as it came, for [`commit`](Ingest::commit): its digest is the image's ID, and
    /// an export has to have it byte for byte.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep_configuration(&self, content: &[u8]) -> Result<Digest, Error> {
        let id = Digest::of(content);
        let path = self.kept_configuration(&id);
        std::fs::write(&path, content).map_err(Error::io("write", &path)).map_err(|error| self.explain(error))?;
        Ok(id)
    }

    fn kept_configuration(&self, id: &Digest) -> PathBuf {
        self.staging.join(format!("{}.config", id.hex()))
    }

    /// Says how full the disk is when that is the reason of an error.
    fn explain(&self, error: Error) -> Error {
        error.or_no_space(self.store.root())
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
        let (record, _) = self.stage(source, blob, diff_id, limits)?;
        Ok(StoredLayer { diff_id: record.diff_id, size: record.size })
    }

    /// As [`Ingest::layer`], of a stream nobody has said anything about yet.
    pub(super) fn unpack(&self, source: impl Read + Send, limits: &Limits) -> Result<(LayerRecord, Digests), Error> {
        self.stage(source, None, None, limits)
    }

    fn stage(
        &self,
        source: impl Read + Send,
        blob: Option<&Digest>,
        diff_id: Option<&Digest>,
        limits: &Limits,
    ) -> Result<(LayerRecord, Digests), Error> {
        let folder = self.staging.join(SERIAL.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&folder)
            .map_err(|source| self.explain(Error::Io { action: "create", path: folder.clone(), source }))?;
        let unpacked = self.layer_into(&folder, source, limits).and_then(|(record, digests)| {
            check(&digests, blob, diff_id)?;
            Ok((record, digests))
        });
        let (record, digests) = match unpacked {
            Ok(unpacked) => unpacked,
            Err(error) => {
                let error = self.explain(error);
                self.clear(&folder);
                return Err(error);
            }
        };
        // From here on it may get into the store, and only later belong to an image.
        self.store.reserve(&mut self.claimed.lock().unwrap_or_else(PoisonError::into_inner), &digests.diff_id);
        let earlier = {
            let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
            staged.insert(digests.diff_id.clone(), (folder, record.clone()))
        };
        if let Some((folder, _)) = earlier {
            self.clear(&folder);
        }
        Ok((record, digests))
    }

    /// Removes a part of the staging folder before the rest goes: its space may be needed.
    fn clear(&self, folder: &Path) {
        for path in [folder.to_path_buf(), folder.with_extension("seal"), folder.with_extension("recipe")] {
            if let Err(error) = fs::remove_tree(&path) {
                tracing::debug!(path = %path.display(), %error, "stays until the end of the import");
            }
        }
    }

    fn layer_into(
        &self,
        folder: &Path,
        source: impl Read + Send,
        limits: &Limits,
    ) -> Result<(LayerRecord, Digests), Error> {
        // Headers and padding come on top of the content.
        let stream_limit = limits.bytes.saturating_add(limits.entries.saturating_mul(2048)).saturating_add(1 << 20);
        let recipe = folder.with_extension("recipe");
        let (mut learnt, digests) = blob::stream(source, stream_limit, &self.cancelled, |pieces| {
            unpack::layer_recorded(&mut Guarded::new(pieces, self.store)?, folder, limits, &recipe)
        })?;
        let (summary, complete) = (learnt.summary, learnt.complete);
        let length = std::fs::metadata(&recipe).map_err(Error::io("look at", &recipe))?.len();
        let header = seal::Header { recipe: length, complete, size: summary.bytes, entries: summary.entries };
        let sealed = folder.with_extension("seal");
        let bytes =
            seal::make(folder, &header, std::mem::take(&mut learnt.hashes)).map_err(Error::io("seal", folder))?;
        let written = File::create_new(&sealed).and_then(|mut file| file.write_all(&bytes));
        written.map_err(Error::io("write", &sealed))?;
        let record = LayerRecord {
            diff_id: digests.diff_id.clone(),
            size: summary.bytes,
            entries: summary.entries,
            sealed: true,
            complete,
            unlisted: learnt.unlisted,
            blob: (digests.blob != digests.diff_id).then(|| digests.blob.clone()),
        };
        Ok((record, digests))
    }

    /// Unpacks those layers of an archive that are not here yet, some at a time.
    fn archive_layers(&self, archive: &Archive, layers: &[Layer], limits: &Limits) -> Result<(), Error> {
        let mut missing: VecDeque<&Layer> = VecDeque::new();
        for layer in layers {
            let in_layer = |error: Error| error.within(archive.path(), &layer.member);
            match archive.find(&layer.member) {
                // What was unpacked before anybody knew what it should be.
                Ok(Found::Unpacked(digests)) => {
                    check(digests, layer.blob.as_ref(), Some(&layer.diff_id)).map_err(in_layer)?;
                }
                Ok(Found::Skipped(named)) if *named != layer.diff_id => {
                    let (expected, actual) = (layer.diff_id.clone(), named.clone());
                    return Err(in_layer(Error::Mismatch { what: "layer, by its name,", expected, actual }));
                }
                _ => {}
            }
            if self.has(&layer.diff_id).is_none() && missing.iter().all(|other| other.diff_id != layer.diff_id) {
                missing.push_back(layer);
            }
        }
        // Packed ones need more: the least is known before anything is written.
        let needed = missing.iter().filter_map(|layer| archive.size(&layer.member));
        self.store.expect_room(needed.fold(0, u64::saturating_add))?;
        let unpack = |layer: &Layer| {
            let result = archive.find(&layer.member).and_then(|found| match found {
                Found::Stream(member) => self.layer(member, layer.blob.as_ref(), Some(&layer.diff_id), limits),
                Found::Broken(error) => Err(archive::taken(error)),
                Found::Unpacked(_) | Found::Skipped(_) => Err(Error::Missing),
            });
            result.map(drop).map_err(|error| error.within(archive.path(), &layer.member))
        };
        abreast("image-unpack", PARALLEL, missing, unpack, || self.cancelled.store(true, Ordering::Relaxed))
    }

    /// Makes the layers that are whole part of the store though their image is not yet: what came over a bad link need not
    /// come again. The collector removes them when no image has wanted them for long, or their space is needed.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn keep_layers(&self) -> Result<(), Error> {
        let staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect::<Vec<_>>();
        self.publish_layers(&staged).map_err(|error| self.explain(error))
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
        // It may be here already, and about to be removed.
        let _expected = self.store.expect(&image.id);
        let mut layers = chain(&image.config)?;
        let mut size = 0;
        for diff_id in &layers {
            size += self.has(diff_id).ok_or(Error::Missing)?.size;
        }
        layers.extend(self.unlisted(&layers)?);
        self.publish_layers(&layers).map_err(|error| self.explain(error))?;
        let configuration = self.configuration_of(&image.id)?;
        let record = ImageRecord {
            id: image.id,
            names: image.names,
            digests: image.digests,
            config: image.config,
            layers,
            size,
            added: clock::wall().as_second(),
            pinned: image.pinned,
            origins: image.origin.into_iter().collect(),
            verified: image.verified,
        };
        self.store.publish(record, configuration.as_deref()).map_err(|error| self.explain(error))
    }

    /// The layer that shows, on top of `layers`, attributes that they hide from each other, staged if it is not here;
    /// `None` if there are no such attributes.
    fn unlisted(&self, layers: &[Digest]) -> Result<Option<Digest>, Error> {
        if layers.len() < 2 {
            return Ok(None);
        }
        let layers = layers.iter().map(|diff_id| self.stacked(diff_id).ok_or(Error::Missing));
        let layers: Vec<Stacked> = layers.collect::<Result<_, _>>()?;
        let path = self.staging.join(format!("{}.tar", SERIAL.fetch_add(1, Ordering::Relaxed)));
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        let any = unlisted::write(&layers, BufWriter::new(file)).map_err(Error::io("read the folders above", &path))?;
        let layer = match any {
            false => None,
            true => {
                let open = || File::open(&path).map_err(Error::io("open", &path));
                let digest = Hashing::new(open()?).finish().map_err(Error::io("read", &path))?;
                match self.has(&digest) {
                    Some(known) => Some(known.diff_id),
                    None => Some(self.layer(open()?, None, None, self.store.limits())?.diff_id),
                }
            }
        };
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        Ok(layer)
    }

    fn stacked(&self, diff_id: &Digest) -> Option<Stacked> {
        if let Some((folder, record)) = self.staged.lock().unwrap_or_else(PoisonError::into_inner).get(diff_id) {
            return Some(Stacked { folder: folder.clone(), unlisted: record.unlisted });
        }
        let folder = self.store.layers_dir().join(diff_id.hex());
        self.store.layer(diff_id).map(|record| Stacked { folder, unlisted: record.unlisted })
    }

    /// What was kept for the image.
    fn configuration_of(&self, id: &Digest) -> Result<Option<Vec<u8>>, Error> {
        let kept = self.kept_configuration(id);
        match std::fs::read(&kept) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { action: "read", path: kept, source }),
        }
    }

    /// Moves those of `layers` that are staged to their final place, durably. Others stay: no image may want them.
    pub(super) fn publish_layers(&self, layers: &[Digest]) -> Result<(), Error> {
        let mut all = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |diff_id: &&Digest| layers.contains(diff_id);
        let staged: Vec<(Digest, PathBuf, LayerRecord)> = (all.iter().filter(|(diff_id, _)| wanted(diff_id)))
            .map(|(diff_id, (folder, record))| (diff_id.clone(), folder.clone(), record.clone()))
            .collect();
        if staged.is_empty() {
            return Ok(());
        }
        let staging = &self.opened;
        staging.sync_filesystem().map_err(Error::io("sync", &self.staging))?;
        let layers = self.store.layers_dir();
        let target = Dir::open(&layers).map_err(Error::io("open", &layers))?;
        for (diff_id, folder, _) in &staged {
            let name = folder.file_name().unwrap_or_default();
            loop {
                match staging.rename_new(name, &target, diff_id.hex().as_ref()) {
                    Ok(()) => break,
                    // Somebody else's is as good as ours, if it is whole; a rest of one is not.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        if self.store.layer(diff_id).is_some() {
                            self.store.adopt_recipe(diff_id, &folder.with_extension("recipe"))?;
                            break;
                        }
                        // Not deleted before the next start: a container may still run on it.
                        self.store.discard(&layers.join(diff_id.hex()))?;
                    }
                    Err(source) => return Err(Error::Io { action: "move", path: folder.clone(), source }),
                }
            }
        }
        for (diff_id, folder, _) in &staged {
            for kind in ["seal", "recipe"] {
                let (from, to) = (folder.with_extension(kind), layers.join(diff_id.hex()).with_extension(kind));
                // Those of a layer that somebody else brought in meanwhile stay: a seal knows the inodes of its folder.
                if folder.exists() {
                    continue;
                }
                let moved = match std::fs::rename(&from, &to) {
                    // Not what belongs there.
                    Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
                        fs::remove_tree(&to).and_then(|()| std::fs::rename(&from, &to))
                    }
                    other => other,
                };
                moved.map_err(Error::io("move", &from))?;
            }
        }
        target.sync().map_err(Error::io("sync", &layers))?;
        for (diff_id, folder, record) in &staged {
            // Still staged: that of somebody else, with a record of its own, was there.
            if !folder.exists() {
                self.store.write_layer(diff_id, record)?;
            }
            all.remove(diff_id);
        }
        Ok(())
    }
}

/// The layers of an image, bottom first, each once: one that comes again covers its first appearance completely.
fn chain(config: &ImageConfiguration) -> Result<Vec<Digest>, Error> {
    let mut layers: Vec<Digest> = Vec::new();
    for diff_id in config.rootfs().diff_ids() {
        let diff_id: Digest = diff_id.parse()?;
        layers.retain(|other| *other != diff_id);
        layers.push(diff_id);
    }
    Ok(layers)
}

/// What [`Ingest::commit`] makes an image of.
#[derive(Debug, Clone)]
pub struct NewImage {
    pub id: Digest,
    /// Normalised.
    pub names: Vec<String>,
    pub digests: Vec<Digest>,
    pub config: ImageConfiguration,
    /// Where it can be had again.
    pub origin: Option<Origin>,
    pub verified: Vec<Verification>,
    /// Whether it stays though nothing uses it.
    pub pinned: bool,
}

/// How the images of an archive come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Manner {
    /// They stay though nothing uses them.
    pub pinned: bool,
    /// Names that other images have stay with them.
    pub modest: bool,
}

/// Imports all images of the archive at `path` that can run here.
pub(super) fn archive(
    store: &ImageStore,
    path: &Path,
    limits: &Limits,
    manner: Manner,
) -> Result<Vec<Arc<Image>>, Error> {
    let opened = archive::open(path)?;
    let file = match &opened {
        Opened::Layout(_) => None,
        Opened::Plain(file) | Opened::Packed(file) => Some(file),
    };
    let vetting = Vetting::begin(store.trust(), path, file)?;
    let ingest = store.ingest()?;
    let archive = read(&ingest, path, opened, limits)?;
    let origin = path.is_absolute().then(|| Origin::Archive { path: path.into() });
    images(&ingest, &archive, limits, origin, manner, vetting)
}

/// The members of an archive; those of a packed one are staged.
fn read(ingest: &Ingest<'_>, path: &Path, opened: Opened, limits: &Limits) -> Result<Archive, Error> {
    match opened {
        Opened::Layout(dir) => Ok(Archive::layout(path, dir)),
        Opened::Plain(file) => Archive::plain(path, file),
        Opened::Packed(file) => {
            let members = pass::read(ingest, path, &file, limits, Take::UntilForeign)?;
            let mut archive = Archive::read_through(path, members);
            let awaited = awaited(ingest, &archive)?;
            if !awaited.is_empty() {
                (&file).rewind().map_err(Error::io("read", path))?;
                archive.finish(pass::read(ingest, path, &file, limits, Take::Only(&awaited))?);
            }
            Ok(archive)
        }
    }
}

/// The members with layers that are not here and that the first pass has left to a second one.
fn awaited(ingest: &Ingest<'_>, archive: &Archive) -> Result<HashSet<String>, Error> {
    if !archive.is_unfinished() {
        return Ok(HashSet::new());
    }
    let candidates = document::candidates(archive)?;
    let layers = candidates.iter().flat_map(|candidate| &candidate.layers);
    let missing = layers.filter(|layer| ingest.has(&layer.diff_id).is_none());
    Ok(missing.filter_map(|layer| archive.awaited(&layer.member)).map(str::to_owned).collect())
}

/// Imports all images of an archive that arrives as a stream. `name` is for messages.
pub(super) fn stream(
    store: &ImageStore,
    name: &Path,
    source: impl Read + Send,
    limits: &Limits,
) -> Result<Vec<Arc<Image>>, Error> {
    let vetting = Vetting::begin(store.trust(), name, None)?;
    let ingest = store.ingest()?;
    let archive = Archive::read_through(name, pass::read(&ingest, name, source, limits, Take::All)?);
    images(&ingest, &archive, limits, None, Manner::default(), vetting)
}

fn images(
    ingest: &Ingest<'_>,
    archive: &Archive,
    limits: &Limits,
    origin: Option<Origin>,
    manner: Manner,
    mut vetting: Vetting<'_>,
) -> Result<Vec<Arc<Image>>, Error> {
    let mut images: Vec<Arc<Image>> = Vec::new();
    vetting.collect(archive);
    for mut candidate in document::candidates(archive)? {
        // One that is refused does not stop the others.
        let Some(verified) = vetting.admit(&mut candidate.names, &candidate.digests) else { continue };
        ingest.archive_layers(archive, &candidate.layers, limits)?;
        if manner.modest {
            let id = candidate.id.as_str();
            candidate.names.retain(|name| ingest.store.resolve(name).is_none_or(|owner| owner.id == id));
        }
        vetting.unchanged()?;
        let committed = ingest.keep_configuration(&candidate.document).and_then(|id| {
            ingest.commit(NewImage {
                id,
                names: candidate.names,
                digests: candidate.digests,
                config: candidate.config,
                origin: origin.clone(),
                verified,
                pinned: manner.pinned,
            })
        });
        let image = committed.map_err(|e| e.within(archive.path(), "image"))?;
        // Listed twice, under other names.
        images.retain(|other| other.id != image.id);
        images.push(image);
    }
    vetting.finish()?;
    Ok(images)
}

/// Whether a stream was what it should be.
fn check(digests: &Digests, blob: Option<&Digest>, diff_id: Option<&Digest>) -> Result<(), Error> {
    let compare = |what, expected: Option<&Digest>, actual: &Digest| match expected {
        Some(expected) if expected != actual => {
            Err(Error::Mismatch { what, expected: expected.clone(), actual: actual.clone() })
        }
        _ => Ok(()),
    };
    compare("blob", blob, &digests.blob)?;
    compare("layer's tar stream", diff_id, &digests.diff_id)
}

/// Brings back, from the archive at `path`, those of the layers `wanted` that it has, and the configuration of the image
/// `id` if that is lost. Names and records of images stay as they are: the archive may be older than they. A layer is
/// checked by its diff ID, a configuration by its digest, so no signature is asked for again.
pub(super) fn restore(store: &ImageStore, path: &Path, wanted: &[Digest], id: &Digest) -> Result<(), Error> {
    let ingest = store.ingest()?;
    let archive = read(&ingest, path, archive::open(path)?, store.limits())?;
    for candidate in document::candidates(&archive)? {
        if candidate.id == *id && Digest::of(&candidate.document) == *id {
            store.keep_configuration(&store.catalog(), id, &candidate.document)?;
        }
        let layers: Vec<Layer> = candidate.layers.into_iter().filter(|layer| wanted.contains(&layer.diff_id)).collect();
        ingest.archive_layers(&archive, &layers, store.limits())?;
    }
    ingest.publish_layers(wanted)
}

/// Brings back, of a damaged image, the layer that is made of its other layers, if all of these are there and it is among
/// the `missing`.
pub(super) fn restore_unlisted(store: &ImageStore, image: &Image, missing: &[Digest]) -> Result<(), Error> {
    let layers = chain(&image.config)?;
    if missing.is_empty() || layers.iter().any(|diff_id| missing.contains(diff_id)) {
        return Ok(());
    }
    let ingest = store.ingest()?;
    match ingest.unlisted(&layers)? {
        Some(layer) => ingest.publish_layers(&[layer]),
        None => Ok(()),
    }
}
