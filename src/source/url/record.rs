//! What a URL said last, on disk: one record per URL, with which a node boots offline.
//!
//! As with manifest files a record holds pods as they were accepted, not bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::known::Good;
use crate::http::Conditions;
use crate::manifest::Object;
use crate::sys;

/// No record is larger, in bytes: a document is not, and defaults add little to it.
const LIMIT: u64 = 64 << 20;

/// Where the record of one URL is.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    node: String,
    /// Who reads manifests the way that the record was made: this version, with these keys.
    reader: String,
}

/// What is known of a URL from before.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) manifests: BTreeMap<String, Good>,
    pub(super) version: Version,
    /// Whether there is a record: the URL has spoken, if only to say that there is nothing to run.
    pub(super) spoken: bool,
}

/// Which version of the document that was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) conditions: Conditions,
    /// SHA-256 of the document in hexadecimal digits; empty where it has to be read again.
    pub(super) digest: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record<P, C, S> {
    /// For people.
    url: String,
    /// Node whose suffix the pods carry.
    node: String,
    reader: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_modified: Option<String>,
    digest: String,
    manifests: BTreeMap<String, Manifest<P, C, S>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<P, C, S> {
    pods: Vec<P>,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    config_maps: Vec<C>,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<S>,
}

/// SHA-256 in hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn name(identity: &str) -> String {
    format!("{}.json", digest(identity.as_bytes()))
}

impl Place {
    /// Of the URL with this identity, in a folder of records; `keys`: those that its document must be signed with.
    pub(super) fn new(folder: &Path, identity: &str, node: &str, keys: &[String]) -> Place {
        let keys = digest(keys.join("\n").as_bytes());
        let reader = format!("{}/{}", env!("CARGO_PKG_VERSION"), &keys[..16]);
        Place { path: folder.join(name(identity)), node: node.to_lowercase(), reader }
    }

    /// What was known last. A record that is none of this node is passed over with a log line.
    pub(super) fn load(&self) -> Known {
        let read = || -> io::Result<Option<Record<Pod, ConfigMap, Secret>>> {
            match sys::fs::read_limited(&self.path, LIMIT) {
                Ok(bytes) => Ok(Some(crate::store::decode(&bytes)?)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        let record = match read() {
            Ok(Some(record)) if record.node == self.node => record,
            Ok(_) => return Known::default(),
            Err(error) => {
                tracing::warn!(record = %self.path.display(), %error, "passed over: not a record of a manifest URL");
                return Known::default();
            }
        };
        let version = match record.reader == self.reader {
            true => Version {
                conditions: Conditions { etag: record.etag, last_modified: record.last_modified },
                digest: record.digest,
            },
            // Who reads it now may see other things in it.
            false => Version::default(),
        };
        let good = |manifest: Manifest<Pod, ConfigMap, Secret>| {
            let maps = manifest.config_maps.into_iter().map(|map| Object::ConfigMap(Arc::new(map)));
            let secrets = manifest.secrets.into_iter().map(|secret| Object::Secret(Arc::new(secret)));
            Good { pods: manifest.pods.into_iter().map(Arc::new).collect(), objects: maps.chain(secrets).collect() }
        };
        let manifests = record.manifests.into_iter().map(|(name, manifest)| (name, good(manifest))).collect();
        Known { manifests, version, spoken: true }
    }

    /// Makes this what is known, durably. `shown` is the URL for people.
    ///
    /// # Errors
    /// When it cannot be written; the record of before is still there.
    pub(super) fn store(&self, shown: &str, manifests: &BTreeMap<String, Good>, version: &Version) -> io::Result<()> {
        let entry = |(name, good): (&String, &Good)| {
            let mut manifest: Manifest<Pod, ConfigMap, Secret> =
                Manifest { pods: Vec::new(), config_maps: Vec::new(), secrets: Vec::new() };
            manifest.pods.extend(good.pods.iter().map(|pod| (**pod).clone()));
            for object in &good.objects {
                match object {
                    Object::ConfigMap(map) => manifest.config_maps.push((**map).clone()),
                    Object::Secret(secret) => manifest.secrets.push((**secret).clone()),
                }
            }
            (name.clone(), manifest)
        };
        let record = Record {
            url: shown.to_owned(),
            node: self.node.clone(),
            reader: self.reader.clone(),
            etag: version.conditions.etag.clone(),
            last_modified: version.conditions.last_modified.clone(),
            digest: version.digest.clone(),
            manifests: manifests.iter().map(entry).collect(),
        };
        if let Some(folder) = self.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        sys::fs::atomic_write(&self.path, &serde_json::to_vec(&record)?, 0o600)
    }
}

/// Removes the records of all other URLs: one that was taken out of the configuration must not come back with what it said
/// years ago. Fails silently: what stays is not read.
pub(super) fn forget_others(folder: &Path, identities: &[String]) {
    let names: BTreeSet<String> = identities.iter().map(|identity| name(identity)).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_none_or(|name| !names.contains(name)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn records_are_private_and_come_back_as_they_were() {
        let folder = std::env::temp_dir().join(format!("coracle-url-record-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let place = Place::new(&folder, "https://host.example/x", "Node", &[]);
        assert!(!place.load().spoken);
        let mut pod = Pod::default();
        pod.metadata.name = Some("a-node".into());
        let mut secret = Secret::default();
        secret.metadata.name = Some("s".into());
        let good = Good { pods: vec![Arc::new(pod)], objects: vec![Object::Secret(Arc::new(secret))] };
        let manifests = BTreeMap::from([(String::new(), good)]);
        let conditions = Conditions { etag: Some("\"1\"".into()), last_modified: None };
        let version = Version { conditions, digest: digest(b"x") };
        place.store("https://host.example/x", &manifests, &version).unwrap();
        assert_eq!(fs::metadata(&place.path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
        let known = place.load();
        assert!(known.spoken);
        assert_eq!(known.version, version);
        assert_eq!(known.manifests[""].pods, manifests[""].pods);
        assert_eq!(known.manifests[""].objects, manifests[""].objects);

        // Other keys: the document has to be read again, and runs until then. Another node: nothing.
        let other = Place::new(&folder, "https://host.example/x", "node", &["key".into()]).load();
        assert_eq!(other.version, Version::default());
        assert_eq!(other.manifests[""].pods, manifests[""].pods);
        assert!(!Place::new(&folder, "https://host.example/x", "other", &[]).load().spoken);

        // That nothing is to run is known, too.
        place.store("x", &BTreeMap::new(), &version).unwrap();
        assert!(place.load().spoken && place.load().manifests.is_empty());
        for damage in [&b""[..], b"{", b"{\"node\": 1}", &[0; 100]] {
            fs::write(&place.path, damage).unwrap();
            assert!(!place.load().spoken);
        }
        forget_others(&folder, &["https://host.example/x".into()]);
        assert!(place.path.exists());
        forget_others(&folder, &["https://host.example/y".into()]);
        assert!(!place.path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
