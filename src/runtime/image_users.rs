//! Which images pods use, by their records and by what is wanted.

use super::{Error, Runtime};
use crate::image::{Users, reference};
use crate::pod::{Key, Spec};
use std::path::Path;
use std::sync::Arc;

impl Runtime {
    /// The images that no one may remove, with their pods: of every recorded run, dead ones too (as kubelet), for its
    /// container and its volumes; and what recorded and `wanted` pods name for these. The names, too, are among them.
    ///
    /// # Errors
    /// When a folder of the records cannot be read: then nobody knows.
    pub fn image_users(&self, wanted: &[Arc<Spec>]) -> Result<Users, Error> {
        let mut users = Users::new();
        let mut add = |image: String, pod: &str| {
            users.entry(image).or_default().insert(pod.to_owned());
        };
        for uid in names_in(&self.layout.pods())? {
            let recorded = self.record(&uid).unwrap_or_else(|error| {
                tracing::warn!(uid, error = error.chain(), "a damaged pod record; its runs still count");
                None
            });
            let spec = recorded.and_then(|record| Spec::new(record.pod));
            let name = spec.as_ref().map_or_else(|| uid.clone(), |spec| name_of(&spec.key()));
            for container in names_in(&self.layout.pod(&uid).join("containers"))? {
                for run in self.instances(&uid, &container) {
                    for id in run.volume_images {
                        add(id, &name);
                    }
                    add(run.image_id, &name);
                }
            }
            for image in spec.iter().flat_map(|spec| self.images_of(spec)) {
                add(image, &name);
            }
        }
        for spec in wanted {
            for image in self.images_of(spec) {
                add(image, &name_of(&spec.key()));
            }
        }
        Ok(users)
    }

    /// The full names that a pod has for images, and the IDs of those that are here, be they damaged.
    fn images_of(&self, spec: &Spec) -> Vec<String> {
        let containers = spec.all_containers().filter_map(|container| container.image.as_deref());
        let volumes = spec.spec().volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
        let names = containers.chain(volumes.filter_map(|image| image.reference.as_deref()));
        let both = |name| [reference::normalise(name).ok(), self.images.known_as(name).map(|image| image.id.clone())];
        names.flat_map(both).flatten().collect()
    }
}

fn name_of(key: &Key) -> String {
    format!("{}/{}", key.namespace, key.name)
}

/// What is in a folder; nothing when it is not there.
fn names_in(dir: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::File { what: "list", path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}
