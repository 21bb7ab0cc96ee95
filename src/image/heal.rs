//! Damaged images: taken out of use, reported, and brought back.
//!
//! A damaged layer goes in this order: its record (so that nothing takes it for whole), its folder to `quarantine/` (where
//! containers that run on it keep it), the images that have it (they count as absent). The records of these images stay,
//! as they know where the layers can be had again: from the quarantined folder itself, when only modes, owners or names
//! were changed and its tar stream still has the right digest; from the archive it came from; from this binary; or from
//! its registry, which the caller asks.
//!
//! What is lost beside a layer (its recipe) or an image (its configuration as it came) takes nothing out of use: it runs
//! as well as ever, but cannot be exported. It is brought back from the same places, into what is there.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::recipe::Tar;
use super::seal::Depth;
use super::store::Entry;
use super::verify::Verdict;
use super::{Digest, Error, Image, ImageStore, Origin, collector, ingest};
use crate::causes::chain;
use crate::store;
use crate::sys::fs::{self, Dir};

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Something in the store that is not as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// ID of the image; of a record that cannot be read, what its file name says.
    pub image: String,
    pub names: Vec<String>,
    /// The layer it is in; `None`: the image's record.
    pub layer: Option<Digest>,
    /// The file of the layer, relative to its folder.
    pub file: Option<PathBuf>,
    /// What differs.
    pub what: String,
}

impl Damage {
    pub(super) fn of(id: &Digest, image: &Image, what: String) -> Damage {
        Damage { image: id.to_string(), names: image.names.clone(), layer: None, file: None, what }
    }

    pub(super) fn of_record(path: &Path, what: String) -> Damage {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Damage { image: format!("sha256:{stem}"), names: Vec::new(), layer: None, file: None, what }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {} is damaged: ", self.names.first().unwrap_or(&self.image))?;
        match &self.layer {
            Some(layer) => write!(f, "layer {layer}: ")?,
            None => f.write_str("its record: ")?,
        }
        if let Some(file) = &self.file {
            write!(f, "{} ", file.display())?;
        }
        f.write_str(&self.what)
    }
}

type Listener = Box<dyn Fn() + Send + Sync>;

/// What the store knows of its own state.
#[derive(Default)]
pub(super) struct Care {
    /// Not yet taken by [`ImageStore::take_damage`].
    reports: Mutex<Vec<Damage>>,
    listener: OnceLock<Listener>,
    /// Large layers that were looked at, and when.
    pub checked: Mutex<HashMap<Digest, Instant>>,
    lacks: Mutex<Lacks>,
    /// One healing at a time: it takes disk and processor from what runs.
    healing: Mutex<()>,
}

/// What is lost of images that can be used all the same.
#[derive(Default)]
pub(super) struct Lacks {
    /// Layers without their recipe.
    pub recipes: BTreeSet<Digest>,
    /// Images without their configuration as it came.
    pub configurations: BTreeSet<Digest>,
    /// Those of them that cannot be had again; told once.
    lost: BTreeSet<Digest>,
}

impl Lacks {
    /// Whether the loss of this image's configuration is news.
    pub fn configuration(&mut self, id: &Digest) -> bool {
        !self.lost.contains(id) && self.configurations.insert(id.clone())
    }
}

impl Care {
    pub(super) fn lacks(&self) -> MutexGuard<'_, Lacks> {
        self.lacks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageStore {
    /// Has `listener` called, from any thread, when there is damage to take or to heal. Only the first one counts.
    pub fn on_damage(&self, listener: impl Fn() + Send + Sync + 'static) {
        let _ = self.care.listener.set(Box::new(listener));
    }

    /// What was found since the last call, for an event each.
    pub fn take_damage(&self) -> Vec<Damage> {
        std::mem::take(&mut *self.care.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn report(&self, damage: Damage) {
        tracing::warn!(image = damage.image, "{damage}");
        self.care.reports.lock().unwrap_or_else(PoisonError::into_inner).push(damage);
        if let Some(listener) = self.care.listener.get() {
            listener();
        }
    }

    /// Images that cannot be used before they have been brought back, sorted by ID.
    pub fn broken(&self) -> Vec<Arc<Image>> {
        self.catalog().broken.values().map(|entry| entry.image.clone()).collect()
    }

    /// What there is to do for [`ImageStore::heal`]: broken images, and those of which something is lost that their use
    /// does not need.
    pub fn to_heal(&self) -> Vec<Arc<Image>> {
        let mut images = self.broken();
        images.extend(self.list().into_iter().filter(|image| self.is_incomplete(image)));
        images
    }

    /// Whether something is lost of an image that can be used all the same.
    pub(super) fn is_incomplete(&self, image: &Image) -> bool {
        let lacks = self.care.lacks();
        let lacking = |layer: &PathBuf| lacks.recipes.iter().any(|diff_id| layer.ends_with(diff_id.hex()));
        lacks.configurations.iter().any(|id| id.as_str() == image.id) || image.layers.iter().any(lacking)
    }

    /// Tells of a record about an image, kept by somebody else, that cannot be used.
    pub fn tell_damaged_record(&self, path: &Path, what: String) {
        let damage = Damage::of_record(path, what);
        let names = self.known(&damage.image).map(|image| image.names.clone()).unwrap_or_default();
        self.report(Damage { names, ..damage });
    }

    /// An image that has this ID and was here, whole or damaged: for containers that run already.
    pub fn known(&self, id: &str) -> Option<Arc<Image>> {
        let id = id.parse::<Digest>().ok()?;
        let catalog = self.catalog();
        catalog.images.get(&id).or_else(|| catalog.broken.get(&id)).map(|entry| entry.image.clone())
    }

    /// Whether there is such an image, whole or damaged; see [`ImageStore::resolve`].
    pub fn has(&self, reference: &str) -> bool {
        self.resolve(reference).is_some() || self.find_broken(reference).is_some()
    }

    pub(super) fn find_broken(&self, reference: &str) -> Option<Digest> {
        let name = super::reference::normalise(reference).ok();
        let catalog = self.catalog();
        let named = |entry: &Entry| {
            entry.image.id == reference
                || entry.image.id.strip_prefix("sha256:") == Some(reference)
                || name.as_ref().is_some_and(|name| entry.image.names.contains(name))
        };
        catalog.broken.iter().find(|(_, entry)| named(entry)).map(|(id, _)| id.clone())
    }

    /// Takes a damaged layer, and the images that have it, out of use. Nothing happens if no image has it (any more).
    pub(super) fn quarantine(&self, diff_id: &Digest, file: Option<PathBuf>, what: &str) -> Result<Vec<Damage>, Error> {
        let mut catalog = self.catalog();
        let has = |(_, entry): &(&Digest, &Entry)| entry.layers.contains(diff_id);
        let hit: Vec<(Digest, Arc<Image>)> =
            catalog.images.iter().filter(has).map(|(id, entry)| (id.clone(), entry.image.clone())).collect();
        if hit.is_empty() {
            return Ok(Vec::new());
        }
        store::delete(&self.layer_record(diff_id))?;
        if let Err(error) = self.set_aside(diff_id) {
            // On a full disk, say. Without its record it is not used, and what brings it back tries again.
            tracing::warn!(%diff_id, error = chain(&error), "a damaged layer stays where it is");
        }
        self.care.lacks().recipes.remove(diff_id);
        let mut damages = Vec::new();
        for (id, image) in &hit {
            catalog.set_broken(id);
            let damage = Damage::of(id, image, what.to_owned());
            damages.push(Damage { layer: Some(diff_id.clone()), file: file.clone(), ..damage });
        }
        drop(catalog);
        for damage in &damages {
            self.report(damage.clone());
        }
        Ok(damages)
    }

    fn quarantine_dir(&self) -> PathBuf {
        self.root().join("quarantine")
    }

    /// Moves a layer's folder and what is beside it out of the way.
    fn set_aside(&self, diff_id: &Digest) -> Result<(), Error> {
        let target = loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let target = self.quarantine_dir().join(format!("{}.{}-{serial}", diff_id.hex(), std::process::id()));
            match std::fs::create_dir(&target) {
                Ok(()) => break target,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(Error::Io { action: "create", path: target, source }),
            }
        };
        let folder = self.layers_dir().join(diff_id.hex());
        let moves = [(folder, "folder"), (self.layer_file(diff_id, "recipe"), "recipe")];
        for (from, name) in moves {
            match std::fs::rename(&from, target.join(name)) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                other => other.map_err(Error::io("move", &from))?,
            }
        }
        let seal = self.layer_file(diff_id, "seal");
        fs::remove_tree(&seal).map_err(Error::io("remove", &seal))
    }

    /// What is in quarantine: of which layer, and where.
    fn quarantined(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let dir = self.quarantine_dir();
        let entries = Dir::open(&dir).and_then(|dir| dir.entries()).map_err(Error::io("list", &dir))?;
        let named = |name: &std::ffi::OsStr| name.to_string_lossy().split('.').next().unwrap_or_default().to_owned();
        Ok(entries.iter().map(|(name, _)| (named(name), dir.join(name))).collect())
    }

    /// Removes quarantined layers that no image among `in_use` (IDs) has; says whether some are left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn purge_quarantine(&self, in_use: &[String]) -> Result<bool, Error> {
        let mut left = false;
        let quarantined = self.quarantined()?;
        if quarantined.is_empty() {
            return Ok(false);
        }
        let images: Option<Vec<Arc<Image>>> = in_use.iter().map(|id| self.known(id)).collect();
        // A second net: what a mount shows stays, whoever knows of it.
        let mounted = collector::mounted()?;
        let healing = self.broken();
        let needs = |hex: &str, image: &Arc<Image>| image.layers.iter().any(|layer| layer.ends_with(hex));
        for (hex, path) in quarantined {
            // A container of an image that is not known may run on any layer.
            let used = images.as_ref().is_none_or(|images| images.iter().any(|image| needs(&hex, image)));
            if used || mounted.contains(&hex) || healing.iter().any(|image| needs(&hex, image)) {
                left = true;
            } else {
                fs::remove_tree(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(left)
    }

    /// Brings a damaged image back, from the best place there is; `refetch` is asked for origins in registries.
    ///
    /// # Errors
    /// [`Error::Lost`] when no origin has it now, with what each said.
    pub fn heal(
        &self,
        id: &str,
        refetch: &dyn Fn(&ImageStore, &Image, &Origin) -> Result<(), String>,
    ) -> Result<Arc<Image>, Error> {
        let _one = self.care.healing.lock().unwrap_or_else(PoisonError::into_inner);
        let id: Digest = id.parse()?;
        let broken = self.catalog().broken.get(&id).cloned();
        let Some(entry) = broken else { return self.complete(&id, refetch) };
        let missing = || -> Vec<Digest> {
            entry.layers.iter().filter(|diff_id| self.layer(diff_id).is_none()).cloned().collect()
        };
        let mut reasons = Vec::new();
        for diff_id in missing() {
            if let Err(error) = self.heal_from_itself(&diff_id) {
                reasons.push(format!("what is left of it: {}", chain(&error)));
            }
        }
        let wanted = || Some(missing()).filter(|missing| !missing.is_empty());
        reasons.extend(self.ask_origins(&id, &entry, &wanted, refetch));
        let lost = missing();
        let mut catalog = self.catalog();
        if lost.is_empty() && lost == missing() {
            catalog.set_whole(&id);
            return catalog.images.get(&id).map(|entry| entry.image.clone()).ok_or(Error::Missing);
        }
        drop(catalog);
        let name = entry.image.names.first().unwrap_or(&entry.image.id).clone();
        if reasons.is_empty() {
            reasons.push("it is not known where it came from: import it again".to_owned());
        }
        Err(Error::Lost { image: name, reason: reasons.join("; ") })
    }

    /// Asks the origins of an image, the newest first, until nothing is `wanted` of them; what each said that did not help.
    fn ask_origins(
        &self,
        id: &Digest,
        entry: &Entry,
        wanted: &dyn Fn() -> Option<Vec<Digest>>,
        refetch: &dyn Fn(&ImageStore, &Image, &Origin) -> Result<(), String>,
    ) -> Vec<String> {
        let mut reasons = Vec::new();
        // One that no origin has: it is made of the others.
        let mend = || match wanted() {
            Some(missing) => ingest::restore_unlisted(self, &entry.image, &missing).map_err(|e| chain(&e)),
            None => Ok(()),
        };
        if let Err(reason) = mend() {
            reasons.push(format!("attributes of folders: {reason}"));
        }
        for origin in entry.image.origins.iter().rev() {
            let Some(layers) = wanted() else { break };
            let (place, result) = match origin {
                Origin::Archive { path } => {
                    (path.display().to_string(), ingest::restore(self, path, &layers, id).map_err(|e| chain(&e)))
                }
                Origin::BuiltIn => ("this program".to_owned(), self.ensure_builtin().map(drop).map_err(|e| chain(&e))),
                Origin::Registry { repository, digest } => {
                    (format!("{repository}@{digest}"), refetch(self, &entry.image, origin))
                }
            };
            match result.and_then(|()| mend()) {
                Err(reason) => reasons.push(format!("{place}: {reason}")),
                Ok(()) if wanted().is_some() => reasons.push(format!("{place}: does not have it any more")),
                Ok(()) => {}
            }
        }
        reasons
    }

    /// Brings back what an image can be used without. When nobody has it any more that is accepted, and told once.
    fn complete(
        &self,
        id: &Digest,
        refetch: &dyn Fn(&ImageStore, &Image, &Origin) -> Result<(), String>,
    ) -> Result<Arc<Image>, Error> {
        let entry = self.catalog().images.get(id).cloned().ok_or(Error::Missing)?;
        let lacking = || {
            let lacks = self.care.lacks();
            let layers = entry.layers.iter().filter(|diff_id| lacks.recipes.contains(*diff_id)).cloned();
            (layers.collect::<Vec<Digest>>(), lacks.configurations.contains(id))
        };
        let wanted = || match lacking() {
            (layers, false) if layers.is_empty() => None,
            (layers, _) => Some(layers),
        };
        let mut reasons = self.ask_origins(id, &entry, &wanted, refetch);
        let (layers, configuration) = lacking();
        if layers.is_empty() && !configuration {
            return Ok(entry.image);
        }
        let gone = |image: &Image| {
            image.origins.iter().all(|origin| matches!(origin, Origin::Archive { path } if !path.exists()))
        };
        let nobody_has = |diff_id: &Digest| {
            let has = |image: &&Arc<Image>| image.layers.iter().any(|layer| layer.ends_with(diff_id.hex()));
            self.list().iter().filter(has).all(|image| gone(image))
        };
        if gone(&entry.image) {
            for diff_id in layers.into_iter().filter(nobody_has) {
                self.give_up_recipe(&diff_id)?;
                self.care.lacks().recipes.remove(&diff_id);
            }
            let mut lacks = self.care.lacks();
            if lacks.configurations.remove(id) {
                lacks.lost.insert(id.clone());
            }
            reasons.push("it runs, but cannot be exported; import or pull it again".to_owned());
        }
        let image = entry.image.names.first().unwrap_or(&entry.image.id).clone();
        Err(Error::Lost { image, reason: reasons.join("; ") })
    }

    /// Makes a layer whole that lost its record, or unpacks it anew from its own files, if these still give the tar stream
    /// it came as.
    fn heal_from_itself(&self, diff_id: &Digest) -> Result<(), Error> {
        if self.layers_dir().join(diff_id.hex()).exists() {
            // Its record is gone, or was never written: all the rest may be right.
            if matches!(self.examine(diff_id, Depth::Thorough, &mut |_| {}), Ok(Verdict::Whole | Verdict::NoRecipe(_)))
                && self.layer(diff_id).is_some()
            {
                return Ok(());
            }
            let catalog = self.catalog();
            if self.layer(diff_id).is_none() {
                store::delete(&self.layer_record(diff_id))?;
                self.set_aside(diff_id)?;
            }
            drop(catalog);
        }
        let mut result = Err(Error::Missing);
        for (hex, path) in self.quarantined()? {
            if hex != diff_id.hex() {
                continue;
            }
            let recipe = path.join("recipe");
            result = Tar::open(&path.join("folder"), &recipe).map_err(Error::io("read", &recipe)).and_then(|tar| {
                let ingest = self.ingest()?;
                ingest.layer(tar, None, Some(diff_id), self.limits())?;
                ingest.publish_layers(std::slice::from_ref(diff_id))
            });
            if result.is_ok() {
                break;
            }
        }
        result
    }
}
