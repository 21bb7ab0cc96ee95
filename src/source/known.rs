//! Last known good pods on disk: one record per manifest file.
//!
//! Records hold pods as they were accepted, not the manifest's bytes: a newer version of the agent that reads manifests
//! more strictly must not lose a pod that runs.

use k8s_openapi::api::core::v1::Pod;
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
struct Record<P> {
    /// Path of the manifest.
    path: String,
    /// Node whose suffix the pods carry.
    node: String,
    pods: Vec<P>,
}

impl Known {
    pub(super) fn new(folder: PathBuf, node: String) -> Known {
        Known { folder, node }
    }

    /// Pods by file name, of the manifests in `directory`. What is no record of this node is passed over with a log line:
    /// it can only be missed when its manifest is broken, too.
    pub(super) fn load(&self, directory: &Path) -> BTreeMap<String, Vec<Arc<Pod>>> {
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
                        found.insert(name.to_owned(), record.pods.into_iter().map(Arc::new).collect());
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(record = %path.display(), %error, "passed over: not a record of pods"),
            }
        }
        found
    }

    /// Makes `pods` the record of a manifest; no pods: no record. [`Known::sync`] makes it durable.
    pub(super) fn store(&self, manifest: &Path, pods: &[Arc<Pod>]) -> io::Result<()> {
        let manifest = manifest.to_string_lossy().into_owned();
        let name = self.record_name(&manifest);
        let path = self.folder.join(format!("{name}.json"));
        if pods.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let pods = pods.iter().map(|pod| &**pod).collect();
        let record = Record::<&Pod> { path: manifest, node: self.node.clone(), pods };
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

fn read(path: &Path) -> io::Result<Record<Pod>> {
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    file.take(MAX_RECORD).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn write(path: &Path, record: &Record<&Pod>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(path)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()
}
