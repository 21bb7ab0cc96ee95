//! What the store finds when it is opened: records and their copies, and what a crash has left.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::{io, thread};

use super::heal::Damage;
use super::store::{Catalog, Damaged, ImageRecord, LayerRecord};
use super::{Digest, Error, ImageStore, record};
use crate::causes::chain;
use crate::store;
use crate::sys::fs::{self, Dir};

impl ImageStore {
    /// Reads the records, and checks that the layers they name are there.
    ///
    /// # Errors
    /// [`Error::Record`] when they cannot be listed: then nothing is known, and nothing may be removed.
    pub(super) fn load(&mut self) -> Result<(), Error> {
        let mut catalog = Catalog::default();
        for path in store::list(&self.images_dir())? {
            match read_image(&path) {
                Ok(record) => {
                    if !self.image_copy(&record.id).exists() {
                        self.copy_record(&record);
                    }
                    self.load_image(&mut catalog, record);
                }
                Err(reason) => match read_image(&self.copies_dir().join(path.file_name().unwrap_or_default())) {
                    Ok(record) => {
                        self.restore_record(&record, &reason);
                        self.load_image(&mut catalog, record);
                    }
                    Err(_) => self.set_record_aside(path, reason),
                },
            }
        }
        let copies = store::list(&self.copies_dir()).unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "cannot look for records that are lost");
            Vec::new()
        });
        for path in copies {
            let record = read_image(&path);
            match record {
                Ok(record) if catalog.has(&record.id) => {}
                // Its layers go after its record when it is removed: it was not removed, it was lost.
                Ok(record) if record.layers.iter().all(|diff_id| self.layer(diff_id).is_some()) => {
                    self.restore_record(&record, "it is missing");
                    self.load_image(&mut catalog, record);
                }
                _ => {
                    // Where the record itself is right, it is written anew at the next start.
                    if let Err(error) = store::delete(&path) {
                        tracing::warn!(path = %path.display(), %error, "cannot remove the copy of a record");
                    }
                }
            }
        }
        *self.catalog() = catalog;
        Ok(())
    }

    /// Takes in a recorded image; as a broken one if a layer is not there.
    fn load_image(&mut self, catalog: &mut Catalog, record: ImageRecord) {
        let Some(layer) = record.layers.iter().find(|diff_id| self.layer(diff_id).is_none()).cloned() else {
            return catalog.insert(self, record);
        };
        let path = self.image_record(&record.id);
        let reason = format!("layer {layer} is missing or damaged");
        let (id, entry) = catalog.insert_broken(self, record);
        let what = "its folder or record is missing or damaged".to_owned();
        self.report(Damage { layer: Some(layer), ..Damage::of(&id, &entry.image, what) });
        self.damaged.push(Damaged { path, reason });
    }

    /// Puts a record back that was lost.
    fn restore_record(&self, record: &ImageRecord, reason: &str) {
        let path = self.image_record(&record.id);
        let what = match record::write(&path, record) {
            Ok(()) => format!("{reason} (written anew from its copy)"),
            // The copy is still there at the next start.
            Err(error) => format!("{reason}, and it cannot be written anew: {error}"),
        };
        self.report(Damage { names: record.names.clone(), ..Damage::of_record(&path, what) });
    }

    /// Keeps a record that cannot be used for who wants to look at it.
    fn set_record_aside(&mut self, path: PathBuf, reason: String) {
        let aside = path.with_extension("json.damaged");
        self.report(Damage::of_record(&path, reason.clone()));
        // A disk that does not even do this must not stop what it still can do.
        match fs::remove_tree(&aside).and_then(|()| std::fs::rename(&path, &aside)) {
            Ok(()) => self.damaged.push(Damaged { path: aside, reason }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot set a damaged record aside");
                self.damaged.push(Damaged { path, reason });
            }
        }
    }

    /// Removes what an earlier process did not finish. Only what was never part of an image: whole layers without an
    /// image stay, since a container may still use those of an image whose record was damaged. What cannot be removed
    /// stays until the next time, and stops nothing.
    pub(super) fn clean(&self) {
        let (images, layers) = (self.images_dir(), self.layers_dir());
        let others = ["", "pulled", "pulling"].map(|name| self.root().join(name));
        for dir in others.iter().chain([&images, &self.copies_dir(), &layers]) {
            for name in names(dir).iter().filter(|name| fs::is_temporary(name)) {
                clear(&dir.join(name));
            }
        }
        for name in names(&images) {
            self.clean_configuration(&images.join(name));
        }
        for name in names(&layers) {
            let path = layers.join(&name);
            let Some(diff_id) = layer_of(&name).filter(|diff_id| !self.has_owner(diff_id)) else { continue };
            if !matches!(record::read::<LayerRecord>(&self.layer_record(&diff_id)), Ok(None)) {
                continue;
            }
            // Renamed into place, but the record that says that it is whole did not follow; or the record went first.
            if name.to_str() != Some(diff_id.hex()) {
                clear(&path);
            } else if let Err(error) = self.discard(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a layer that is not whole");
            }
        }
        let staging = self.staging_dir();
        let leftovers = names(&staging);
        if leftovers.is_empty() {
            return;
        }
        tracing::info!(count = leftovers.len(), "removing what an interrupted import left");
        // A large tree takes seconds, and nothing waits for it.
        let remove = move || leftovers.iter().for_each(|name| clear(&staging.join(name)));
        if let Err(error) = thread::Builder::new().name("image-clean".into()).spawn(remove) {
            tracing::warn!(%error, "what an interrupted import left stays until the next start");
        }
    }

    /// Removes a kept configuration whose image did not come in, or is gone.
    fn clean_configuration(&self, path: &Path) {
        if path.extension() != Some(OsStr::new("config")) {
            return;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        // Held, so that it does not come in just now.
        let catalog = self.catalog();
        let known = format!("sha256:{stem}").parse().is_ok_and(|id: Digest| catalog.has(&id));
        let recorded = ["json", "json.damaged"].iter().any(|kind| path.with_extension(kind).exists());
        if !known && !recorded {
            clear(path);
        }
    }

    /// Removes what belongs to no image beside the images; see [`ImageStore::clean`].
    pub(super) fn clean_configurations(&self) {
        let images = self.images_dir();
        names(&images).iter().for_each(|name| self.clean_configuration(&images.join(name)));
    }

    /// All layers of which there is anything: a folder, a record, what lies beside them.
    pub(super) fn any_layers(&self) -> BTreeSet<Digest> {
        names(&self.layers_dir()).iter().filter_map(|name| layer_of(name)).collect()
    }
}

/// The image record at `path`, or its copy.
fn read_image(path: &Path) -> Result<ImageRecord, String> {
    let read = record::read::<ImageRecord>(path);
    let record = read.map_err(|error| chain(&error))?.ok_or_else(|| "record vanished".to_owned())?;
    match path.file_stem() == Some(OsStr::new(record.id.hex())) {
        true => Ok(record),
        false => Err(format!("record is of image {}", record.id)),
    }
}

/// Everything in a folder of the store; nothing when it cannot be listed.
fn names(dir: &Path) -> Vec<OsString> {
    match Dir::open(dir).and_then(|dir| dir.entries()) {
        Ok(entries) => entries.into_iter().map(|(name, _)| name).collect(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %dir.display(), %error, "cannot look for leftovers");
            }
            Vec::new()
        }
    }
}

/// The layer that a name in the layers' folder is of.
fn layer_of(name: &OsStr) -> Option<Digest> {
    let hex = name.to_str()?.split('.').next()?;
    format!("sha256:{hex}").parse().ok()
}

/// Removes a leftover. One that stays is found again.
pub(super) fn clear(path: &Path) {
    if let Err(error) = fs::remove_tree(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove leftover");
    }
}
