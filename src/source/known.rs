//! Last known good pods on disk: one record per manifest file.
//!
//! Records hold pods as they were accepted, not the manifest's bytes: a newer version of the agent that reads manifests
//! more strictly must not lose a pod that runs.

use super::directory::key;
use crate::manifest::Object;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No record that this module writes is larger, in bytes: a manifest is not, and defaults add little to it.
const MAX_RECORD: u64 = 64 << 20;

/// A folder of records.
#[derive(Debug)]
pub(super) struct Known {
    folder: PathBuf,
    node: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record<P, C, S> {
    /// Path of the manifest.
    path: String,
    /// Node whose suffix the pods carry.
    node: String,
    pods: Vec<P>,
    // Records of earlier versions have none.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    config_maps: Vec<C>,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<S>,
}

/// What a manifest gave last. Clones share the pods and objects, so that what has not changed is told by the pointer.
#[derive(Debug, Clone, Default)]
pub(super) struct Good {
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) objects: Vec<Object>,
}

impl Good {
    /// Takes over what a manifest says now. With an error somewhere in it, what it does not name stays, too: an error need
    /// not tell which document it means. What has not changed keeps its allocation, which tells everyone downstream so.
    pub(super) fn take(&mut self, pods: Vec<Pod>, objects: Vec<Object>, broken: bool) {
        let mut before = std::mem::take(self);
        for pod in pods {
            let known = before.pods.iter().position(|known| key(known) == key(&pod));
            let known = known.map(|index| before.pods.remove(index));
            self.pods.push(known.filter(|known| **known == pod).unwrap_or_else(|| Arc::new(pod)));
        }
        for object in objects {
            let known = before.objects.iter().position(|known| known.id() == object.id());
            let known = known.map(|index| before.objects.remove(index));
            self.objects.push(known.filter(|known| *known == object).unwrap_or(object));
        }
        if broken {
            self.pods.extend(before.pods);
            self.objects.extend(before.objects);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.objects.is_empty()
    }

    /// Whether nothing changed since the other one: the very same pods and objects.
    pub(super) fn is(&self, other: &Good) -> bool {
        let same = |(a, b): (&Object, &Object)| match (a, b) {
            (Object::ConfigMap(a), Object::ConfigMap(b)) => Arc::ptr_eq(a, b),
            (Object::Secret(a), Object::Secret(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        self.pods.len() == other.pods.len()
            && self.objects.len() == other.objects.len()
            && self.pods.iter().zip(&other.pods).all(|(a, b)| Arc::ptr_eq(a, b))
            && self.objects.iter().zip(&other.objects).all(same)
    }
}

impl Known {
    pub(super) fn new(folder: PathBuf, node: String) -> Known {
        Known { folder, node }
    }

    /// Pods by file name, of the manifests in `directory`. What is no record of this node is passed over with a log line:
    /// it can only be missed when its manifest is broken, too.
    pub(super) fn load(&self, directory: &Path) -> BTreeMap<String, Good> {
        let mut found = BTreeMap::new();
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "cannot read the last known good pods");
                return found;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // A record that a crash left half-written.
                let _ = fs::remove_file(&path);
                continue;
            }
            match read(&path) {
                Ok(record) if record.node == self.node => {
                    let manifest = Path::new(&record.path);
                    if let (Some(parent), Some(name)) =
                        (manifest.parent(), manifest.file_name().and_then(|name| name.to_str()))
                        && parent == directory
                    {
                        let maps = record.config_maps.into_iter().map(|map| Object::ConfigMap(Arc::new(map)));
                        let secrets = record.secrets.into_iter().map(|secret| Object::Secret(Arc::new(secret)));
                        let objects = maps.chain(secrets).collect();
                        let pods = record.pods.into_iter().map(Arc::new).collect();
                        found.insert(name.to_owned(), Good { pods, objects });
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(record = %path.display(), %error, "passed over: not a record of pods"),
            }
        }
        found
    }

    /// Makes this the record of a manifest; nothing: no record. [`Known::sync`] makes it durable.
    pub(super) fn store(&self, manifest: &Path, good: &Good) -> io::Result<()> {
        let manifest = manifest.to_string_lossy().into_owned();
        let name = self.record_name(&manifest);
        let path = self.folder.join(format!("{name}.json"));
        if good.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let mut record: Writing<'_> = Record {
            path: manifest,
            node: self.node.clone(),
            pods: good.pods.iter().map(|pod| &**pod).collect(),
            config_maps: Vec::new(),
            secrets: Vec::new(),
        };
        for object in &good.objects {
            match object {
                Object::ConfigMap(map) => record.config_maps.push(map),
                Object::Secret(secret) => record.secrets.push(secret),
            }
        }
        let staged = self.folder.join(format!("{name}.tmp"));
        let result = write(&staged, &record).and_then(|()| fs::rename(&staged, &path));
        if result.is_err() {
            let _ = fs::remove_file(&staged);
        }
        result
    }

    /// Waits until the disk has all records that were stored and removed.
    pub(super) fn sync(&self) -> io::Result<()> {
        match File::open(&self.folder) {
            Ok(folder) => folder.sync_all(),
            // Nothing was ever stored.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn record_name(&self, manifest: &str) -> String {
        Sha256::digest(manifest.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// As it is written.
type Writing<'a> = Record<&'a Pod, &'a ConfigMap, &'a Secret>;

fn read(path: &Path) -> io::Result<Record<Pod, ConfigMap, Secret>> {
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    file.take(MAX_RECORD).read_to_end(&mut bytes)?;
    Ok(crate::store::decode(&bytes)?)
}

fn write(path: &Path, record: &Writing<'_>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(path)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()
}
