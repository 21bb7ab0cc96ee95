//! Whether the images of the store are still what came in: a quick look at every use, a thorough one when asked.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::blob::Hashing;
use super::heal::Damage;
use super::recipe::Tar;
use super::seal::{self, Depth, Finding, Header, Look, Seal};
use super::store::{ImageRecord, LayerRecord};
use super::{Digest, Error, Image, ImageStore, record};
use crate::causes::chain;
use crate::sys::fs;

/// Layers with more entries than this are not looked at again within [`FRESH`].
const LARGE: u64 = 2_000;
const FRESH: Duration = Duration::from_secs(2);
/// Layers with more entries than this are looked at beside the start of a container, not before it.
const HUGE: u64 = 20_000;

/// How far a verification is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Name of the image, or its ID.
    pub image: String,
    pub message: String,
    pub damaged: bool,
}

/// What is wrong with a layer.
pub(super) enum Verdict {
    Whole,
    /// Its files are right, but not its recipe: it can be used, but not exported or proved.
    NoRecipe(String),
    Damaged(Finding),
}

fn whole(what: impl Into<String>) -> Verdict {
    Verdict::Damaged(Finding { path: PathBuf::new(), what: what.into() })
}

impl ImageStore {
    /// Makes sure that an image is what came in, before a container uses it: every name of its layers is looked at, and
    /// files that something touched are read again. Layers of very many entries are looked at on another thread.
    ///
    /// # Errors
    /// [`Error::Damaged`]: the image cannot be used now, and is brought back by whoever listens to
    /// [`ImageStore::on_damage`]. [`Error::Io`] when it cannot be told.
    pub fn check(self: &Arc<Self>, image: &Image) -> Result<(), Error> {
        self.check_record(image)?;
        for layer in &image.layers {
            let Some(diff_id) = diff_id_of(layer) else { continue };
            let entries = self.layer(&diff_id).map_or(0, |record| record.entries);
            if entries > LARGE && self.checked_lately(&diff_id) {
                continue;
            }
            if entries > HUGE {
                let store = Arc::clone(self);
                let beside = move || {
                    if let Err(error) = store.check_layer(&diff_id) {
                        tracing::warn!(%error, %diff_id, "layer found wrong after its use began");
                    }
                };
                let spawned = thread::Builder::new().name("image-check".into()).spawn(beside);
                spawned.map_err(Error::io("start a thread for", layer))?;
            } else {
                self.check_layer(&diff_id)?;
            }
        }
        Ok(())
    }

    fn checked_lately(&self, diff_id: &Digest) -> bool {
        let mut checked = self.care.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.retain(|_, at| at.elapsed() < FRESH);
        checked.contains_key(diff_id)
    }

    /// The record is in memory: on disk it can be replaced at once. So can the configuration as it came, when it is what
    /// writing it gives; otherwise it has to be had again, which the image's use does not wait for. What was found.
    fn check_record(&self, image: &Image) -> Result<Vec<String>, Error> {
        let id: Digest = image.id.parse()?;
        let mut found = Vec::new();
        let path = self.image_record(&id);
        if let Some(what) = wrong_with(&path, &id) {
            let catalog = self.catalog();
            if let Some(entry) = catalog.images.get(&id) {
                found.push(anew(&what, record::write(&path, &entry.record(&id)).map_err(Error::from)));
            }
        }
        if let Err(what) = self.kept_configuration(&id) {
            let written = serde_json::to_vec(&image.config).unwrap_or_default();
            let what = format!("the configuration as it came {what}");
            if Digest::of(&written) == id {
                let catalog = self.catalog();
                if catalog.images.contains_key(&id) {
                    found.push(anew(&what, self.keep_configuration(&catalog, &id, &written)));
                }
            } else if self.catalog().images.contains_key(&id) && self.care.lacks().configuration(&id) {
                found.push(what);
            }
        }
        for what in &found {
            self.report(Damage::of(&id, image, what.clone()));
        }
        Ok(found)
    }

    /// The copy of an image's record, which only matters when that is damaged.
    fn check_copy(&self, image: &Image) -> Result<Option<String>, Error> {
        let id: Digest = image.id.parse()?;
        let Some(what) = wrong_with(&self.image_copy(&id), &id) else { return Ok(None) };
        let catalog = self.catalog();
        let Some(entry) = catalog.images.get(&id) else { return Ok(None) };
        let written = record::write(&self.image_copy(&id), &entry.record(&id)).map_err(Error::from);
        drop(catalog);
        let what = anew(&format!("its copy {what}"), written);
        self.report(Damage::of(&id, image, what.clone()));
        Ok(Some(what))
    }

    fn check_layer(&self, diff_id: &Digest) -> Result<(), Error> {
        let verdict = self.examine(diff_id, Depth::Quick, &mut |_| {})?;
        match self.act(diff_id, verdict)?.into_iter().next() {
            Some(damage) => Err(Error::Damaged(Box::new(damage))),
            None => {
                let mut checked = self.care.checked.lock().unwrap_or_else(PoisonError::into_inner);
                checked.insert(diff_id.clone(), Instant::now());
                Ok(())
            }
        }
    }

    /// Does what a verdict asks for; gives the damage that takes images out of use.
    fn act(&self, diff_id: &Digest, verdict: Verdict) -> Result<Vec<Damage>, Error> {
        match verdict {
            Verdict::Whole => Ok(Vec::new()),
            Verdict::Damaged(Finding { path, what }) => {
                let file = (!path.as_os_str().is_empty()).then_some(path);
                self.quarantine(diff_id, file, &what)
            }
            // Nothing that runs needs it. It is brought back into what is there.
            Verdict::NoRecipe(what) => {
                if self.care.lacks().recipes.insert(diff_id.clone()) {
                    self.tell_of_layer(diff_id, &what);
                }
                Ok(Vec::new())
            }
        }
    }

    /// Reports something of a layer that takes no image out of use.
    fn tell_of_layer(&self, diff_id: &Digest, what: &str) {
        let has = |image: &Arc<Image>| image.layers.iter().any(|layer| layer.ends_with(diff_id.hex()));
        for image in self.list().into_iter().filter(has) {
            let (image_id, names, layer) = (image.id.clone(), image.names.clone(), Some(diff_id.clone()));
            self.report(Damage { image: image_id, names, layer, file: None, what: what.to_owned() });
        }
    }

    /// Takes the recipe that came with a layer that was unpacked once more, if that of the one here is lost: the same
    /// stream gives the same folder.
    pub(super) fn adopt_recipe(&self, diff_id: &Digest, recipe: &Path) -> Result<(), Error> {
        if !self.care.lacks().recipes.contains(diff_id) {
            return Ok(());
        }
        // A seal that is damaged, too, is found at the next use.
        let Ok(seal) = self.read_seal(diff_id)? else { return Ok(()) };
        let header =
            Header { recipe: std::fs::metadata(recipe).map_err(Error::io("look at", recipe))?.len(), ..seal.header };
        let place = self.layer_file(diff_id, "recipe");
        fs::remove_tree(&place).map_err(Error::io("remove", &place))?;
        std::fs::rename(recipe, &place).map_err(Error::io("move", recipe))?;
        if header != seal.header {
            self.write_seal(diff_id, &seal.with_header(&header))?;
        }
        self.care.lacks().recipes.remove(diff_id);
        Ok(())
    }

    /// From now on the layer is one whose tar stream cannot be had again.
    pub(super) fn give_up_recipe(&self, diff_id: &Digest) -> Result<(), Error> {
        let seal = self.read_seal(diff_id)?.map_err(|broken| Error::Document(broken.to_string()))?;
        let header = Header { recipe: 0, complete: false, ..seal.header };
        let recipe = self.layer_file(diff_id, "recipe");
        fs::remove_tree(&recipe).map_err(Error::io("remove", &recipe))?;
        self.write_seal(diff_id, &seal.with_header(&header))?;
        if let Some(record) = self.layer(diff_id) {
            self.write_layer(diff_id, &LayerRecord { complete: false, ..record })?;
        }
        Ok(())
    }

    fn read_seal(&self, diff_id: &Digest) -> Result<Result<Seal, String>, Error> {
        let path = self.layer_file(diff_id, "seal");
        match fs::read_limited(&path, seal::LARGEST) {
            Ok(bytes) => Ok(Seal::decode(bytes).map_err(|broken| broken.to_string())),
            Err(e) if seal::is_damage(&e) => Ok(Err(format!("its seal cannot be read: {e}"))),
            Err(source) => Err(Error::Io { action: "read", path, source }),
        }
    }

    fn write_seal(&self, diff_id: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.layer_file(diff_id, "seal");
        fs::atomic_write(&path, bytes, 0o600).map_err(Error::io("write", &path))
    }

    /// Looks at a layer. What is right but for its times, or has lost only its record, is put right at once.
    pub(super) fn examine(&self, diff_id: &Digest, depth: Depth, told: &mut dyn FnMut(u64)) -> Result<Verdict, Error> {
        let folder = self.layers_dir().join(diff_id.hex());
        let record = self.layer(diff_id);
        if let Some(record) = record.as_ref().filter(|record| !record.sealed) {
            // From a version that made no seals: what is there now is what counts.
            let header = Header { recipe: 0, complete: false, size: record.size, entries: record.entries };
            let bytes = seal::make(&folder, &header, seal::Hashes::default()).map_err(Error::io("seal", &folder))?;
            self.write_seal(diff_id, &bytes)?;
            self.write_layer(diff_id, &LayerRecord { sealed: true, ..record.clone() })?;
            return Ok(Verdict::Whole);
        }
        let seal = match self.read_seal(diff_id)? {
            Ok(seal) => seal,
            Err(what) => return Ok(whole(what)),
        };
        let Look { findings, fresh } = match seal::look(&folder, &seal, depth, told) {
            Ok(look) => look,
            Err(e) if seal::is_damage(&e) => return Ok(whole(format!("cannot be read: {e}"))),
            Err(source) => return Err(Error::Io { action: "look at", path: folder, source }),
        };
        let more = findings.len().saturating_sub(1);
        if let Some(mut first) = findings.into_iter().next() {
            if more > 0 {
                first.what.push_str(&format!(" (and {more} more)"));
            }
            return Ok(Verdict::Damaged(first));
        }
        if let Some(bytes) = fresh
            && let Err(error) = self.write_seal(diff_id, &bytes)
        {
            // On a full disk, say. The layer is right; the next look is as slow as this one was.
            tracing::warn!(%diff_id, error = chain(&error), "cannot write down that a layer is right");
        }
        let header = seal.header;
        if record.is_none() {
            let record = LayerRecord {
                diff_id: diff_id.clone(),
                size: header.size,
                entries: header.entries,
                sealed: true,
                complete: header.complete,
                // Marks are looked for then.
                unlisted: true,
                blob: None,
            };
            self.write_layer(diff_id, &record)?;
            self.tell_of_layer(diff_id, "its record was missing or damaged (written anew)");
        }
        if !header.complete {
            return Ok(Verdict::Whole);
        }
        let recipe = self.layer_file(diff_id, "recipe");
        match std::fs::symlink_metadata(&recipe) {
            Ok(metadata) if !metadata.is_file() => return Ok(Verdict::NoRecipe("its recipe is no file".to_owned())),
            Ok(metadata) if metadata.len() == header.recipe => {}
            Ok(metadata) => {
                let (is, was) = (metadata.len(), header.recipe);
                return Ok(Verdict::NoRecipe(format!("its recipe has {is} bytes, had {was}")));
            }
            Err(e) if seal::is_damage(&e) => return Ok(Verdict::NoRecipe(format!("its recipe cannot be read: {e}"))),
            Err(source) => return Err(Error::Io { action: "look at", path: recipe, source }),
        }
        if depth == Depth::Thorough {
            return self.prove(diff_id, &folder, &recipe);
        }
        Ok(Verdict::Whole)
    }

    /// Puts the tar stream together and compares its digest.
    fn prove(&self, diff_id: &Digest, folder: &Path, recipe: &Path) -> Result<Verdict, Error> {
        match Tar::open(folder, recipe).and_then(|tar| Hashing::new(tar).finish()) {
            Ok(digest) if digest == *diff_id => Ok(Verdict::Whole),
            // The recipe has a checksum of its own, so this is no accident of it: files and seal were changed together.
            Ok(digest) => Ok(whole(format!("its tar stream has digest {digest}"))),
            Err(e) if seal::is_damage(&e) => Ok(Verdict::NoRecipe(e.to_string())),
            Err(source) => Err(Error::Io { action: "read", path: recipe.into(), source }),
        }
    }

    /// The tar stream of a layer, byte for byte as it came in: its digest is `diff_id`. Reading fails when the layer is
    /// damaged.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Document`] for a layer whose stream cannot be had again; [`Error::Io`].
    pub fn layer_tar(&self, diff_id: &Digest) -> Result<impl io::Read + Send + use<>, Error> {
        let record = self.layer(diff_id).ok_or(Error::Missing)?;
        if !record.complete {
            let why = "its tar stream cannot be put together again: import the image once more";
            return Err(Error::Document(format!("layer {diff_id}: {why}")));
        }
        let recipe = self.layer_file(diff_id, "recipe");
        Tar::open(&self.layers_dir().join(diff_id.hex()), &recipe).map_err(Error::io("read", recipe))
    }

    /// Reads everything of the images `names` (all, if there are none), each layer once: every file against its hash, and
    /// every layer's tar stream against its digest. `told` hears of each layer. What is damaged is taken out of use and
    /// reported, as at use.
    ///
    /// # Errors
    /// [`Error::NotFound`] before anything is read; [`Error::Io`] when something cannot be told.
    pub fn verify(&self, names: &[String], told: &mut dyn FnMut(Step)) -> Result<Vec<Damage>, Error> {
        let mut images = Vec::new();
        for name in names {
            let broken = || self.find_broken(name).and_then(|id| self.known(id.as_str()));
            let not_found = || Error::NotFound { reference: name.clone() };
            images.push(self.resolve(name).or_else(broken).ok_or_else(not_found)?);
        }
        if names.is_empty() {
            images = self.list();
            images.extend(self.broken());
        }
        let mut damages = Vec::new();
        let mut seen = BTreeSet::new();
        for image in images {
            let name = image.names.first().unwrap_or(&image.id).clone();
            let step = |message: String, damaged| Step { image: name.clone(), message, damaged };
            if self.broken().iter().any(|other| other.id == image.id) {
                let what = "it is not brought back yet".to_owned();
                told(step(what.clone(), true));
                damages.push(Damage::of(&image.id.parse()?, &image, what));
                continue;
            }
            let mut found = self.check_record(&image)?;
            found.extend(self.check_copy(&image)?);
            for what in found {
                told(step(format!("its record: {what}"), true));
            }
            for (at, layer) in image.layers.iter().enumerate() {
                let Some(diff_id) = diff_id_of(layer).filter(|diff_id| seen.insert(diff_id.clone())) else { continue };
                let begun = format!("layer {} of {} ({diff_id})", at + 1, image.layers.len());
                let mut next = 100_000;
                let recorded = self.layer(&diff_id).is_some();
                let verdict = self.examine(&diff_id, Depth::Thorough, &mut |count| {
                    if count >= next {
                        next += 100_000;
                        told(step(format!("{begun}: {count} files and folders so far"), false));
                    }
                })?;
                if !recorded && self.layer(&diff_id).is_some() {
                    told(step(format!("{begun}: its record was missing or damaged (written anew)"), true));
                }
                match &verdict {
                    Verdict::Whole => told(step(format!("{begun}: good"), false)),
                    Verdict::NoRecipe(what) => told(step(format!("{begun}: {what}"), true)),
                    Verdict::Damaged(Finding { path, what }) => {
                        told(step(format!("{begun}: {} {what}", path.display()), true));
                    }
                }
                damages.extend(self.act(&diff_id, verdict)?);
            }
        }
        Ok(damages)
    }
}

/// What was found, and what became of it. An image whose record cannot be written now is as good as before.
fn anew(what: &str, written: Result<(), Error>) -> String {
    match written {
        Ok(()) => format!("{what} (written anew)"),
        Err(error) => format!("{what}, and cannot be written anew: {}", chain(&error)),
    }
}

/// What is wrong with the image record at `path`.
fn wrong_with(path: &Path, id: &Digest) -> Option<String> {
    match record::read::<ImageRecord>(path) {
        Ok(Some(record)) if record.id == *id => None,
        Ok(Some(_)) => Some("is of another image".to_owned()),
        Ok(None) => Some("is missing".to_owned()),
        Err(error) => Some(chain(&error)),
    }
}

/// The layer whose folder this is.
fn diff_id_of(folder: &Path) -> Option<Digest> {
    format!("sha256:{}", folder.file_name()?.to_str()?).parse().ok()
}
