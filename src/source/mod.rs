//! Where pods come from: a directory of manifests (or one file), as a desired state that survives bad edits.
//!
//! ```text
//! inotify · rescan ─▶ watch ─▶ Directory::scan ─▶ Snapshot ─▶ agent
//!                                  │    ▲
//!                                  ▼    │ at start
//!                              last known good
//! ```
//!
//! With keys, a text is taken only with the signature of one of them, and never an older one than was taken already
//! (see [`Verifier`]). Who else could write to manifests is looked at (see [`Permissions`]).
//!
//! A file that cannot be read or understood, or may not be taken, keeps the pods that it gave last, also over a restart of the agent, and so
//! does a directory that vanished. Only a file that is gone from a readable directory takes its pods along.

mod directory;
pub mod history;
mod known;
mod look;
mod merge;
mod permissions;
mod serial;
mod signature;
pub mod sources;
pub mod url;
mod watch;

#[cfg(test)]
mod signed_tests;

pub use directory::{Directory, Options, Takes};
pub use merge::{Held, Merged, Standing};
pub use permissions::Permissions;
pub use signature::{KeyError, Revision, SignatureError, Signed, Text, Verifier};
pub use watch::{Rescan, watch};

use crate::manifest::{Object, Places, Problem};
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Kinds of sources that pods come from, by the annotation `kubernetes.io/config.source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// The manifest directory.
    File,
    /// URLs.
    Http,
    /// The API server.
    Api,
}

impl SourceKind {
    /// Where a pod came from; `None` when it does not say.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<SourceKind> {
        match pod.metadata.annotations.as_ref()?.get("kubernetes.io/config.source")?.as_str() {
            "file" => Some(SourceKind::File),
            "http" => Some(SourceKind::Http),
            "api" => Some(SourceKind::Api),
            _ => None,
        }
    }
}

/// A pod that should run.
#[derive(Debug, Clone)]
pub struct Desired {
    /// The pod: defaulted, valid, with identity. The same `Arc` as before while it is unchanged.
    pub pod: Arc<Pod>,
    /// Path of its manifest.
    pub origin: String,
}

impl PartialEq for Desired {
    fn eq(&self, other: &Desired) -> bool {
        self.origin == other.origin && (Arc::ptr_eq(&self.pod, &other.pod) || self.pod == other.pod)
    }
}

/// A ConfigMap or Secret that pods may refer to.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredObject {
    /// The object. The same `Arc` as before while it is unchanged.
    pub object: Object,
    /// Path of its manifest.
    pub origin: String,
}

/// What is wrong with a manifest, or with a file that might be one.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceProblem {
    /// Path of the manifest.
    pub origin: String,
    /// Namespace and name of the pod that it concerns, when that is known.
    pub pod: Option<(String, String)>,
    /// What is wrong, and where.
    pub problem: Problem,
}

/// What a source wants to run, as of one scan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// By file name, then in the order of each file.
    pub pods: Vec<Desired>,
    /// ConfigMaps and Secrets, in the same order.
    pub objects: Vec<DesiredObject>,
    /// All that is wrong at present; a problem stays until it is mended.
    pub problems: Vec<SourceProblem>,
    /// Whether everything could be read. While it is false, `pods` holds what was known last of the rest.
    pub healthy: bool,
    /// Why the source is not healthy.
    pub error: Option<String>,
    /// Where fields of the pods stand, by the path of their manifest: for what is found wrong with them later.
    pub places: BTreeMap<String, Arc<Places>>,
    /// Of a URL: whether it is known from before the start what it wants, if only that there is nothing to run.
    pub recorded: bool,
}
