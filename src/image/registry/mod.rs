//! Registries: the OCI distribution protocol, from a reference to an image in the store.
//!
//! ```text
//! reference ─ hosts (mirrors, TLS) ─ credentials ─▶ client ─▶ manifest ─▶ layers ─▶ ingest
//! ```

mod auth;
mod client;
pub mod credentials;
mod download;
mod exchange;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzzing;
pub mod hosts;
mod manifest;
mod pull;
#[cfg(test)]
mod scratch;
mod signatures;
#[cfg(test)]
mod tests;
pub mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use credentials::Credentials;
use exchange::Patience;
use hosts::Hosts;
use oci_spec::distribution::Reference;
use pull::Pull;
use serde::{Deserialize, Serialize};
use tls::Connections;

use super::trust::Trust;
use super::{Digest, Image, ImageStore, Origin, reference, trust};
use crate::{config, http};

pub use crate::http::Environment;

/// Where registries are configured.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `registries.conf`, with `registries.conf.d` beside it.
    pub registries_conf: PathBuf,
    /// containerd's and docker's `certs.d`.
    pub certs_dirs: Vec<PathBuf>,
    /// Credentials of the node, in this order; docker's `config.json` format.
    pub auth_files: Vec<PathBuf>,
    /// The kubelet's folder, which may hold a `config.json`.
    pub root_dir: PathBuf,
    /// Homes, certificates and proxies.
    pub environment: Environment,
}

impl Settings {
    /// As configured, and the places where the kubelet looks for credentials.
    pub fn of(config: &config::Config) -> Settings {
        Settings {
            registries_conf: config.images.registries_conf.clone(),
            certs_dirs: config.images.certs_dirs.clone(),
            auth_files: config.images.auth_files.clone(),
            root_dir: config.root_dir.clone(),
            environment: Environment::of_process(),
        }
    }
}

/// A pod's `imagePullSecrets`, opened: content of `.dockerconfigjson` or `.dockercfg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullSecret {
    /// `namespace/name`, for records and messages.
    pub name: String,
    pub content: Vec<u8>,
}

/// What to pull.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// As a person or manifest writes it.
    pub image: &'a str,
    /// Tried before the node's own credentials.
    pub secrets: &'a [PullSecret],
    /// Set by another thread to give up.
    pub cancelled: &'a AtomicBool,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Progress {
    /// The manifest for this machine is known; so many layers.
    Resolved { digest: Digest, layers: usize },
    /// A layer (digest of its blob): `done` of `size` bytes have arrived. Told a few times a second.
    Layer { digest: Digest, size: u64, done: u64, state: LayerState },
    /// Something is tried again: for people.
    Retry { message: String },
}

/// What becomes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LayerState {
    Waiting,
    /// It is in the store already.
    Present,
    Downloading,
    Done,
}

/// What was pulled.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub image: Arc<Image>,
    /// Digest of what the reference named: an index or a manifest.
    pub digest: Digest,
    /// Whether anything but documents was fetched.
    pub fetched: bool,
    /// Whether the image had this name before.
    pub known: bool,
    /// The pull secret that opened the repository; `None`: the node's credentials, or none.
    pub secret: Option<String>,
}

/// Why a pull failed. `reason` is kubelet's word for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Image(#[from] super::Error),
    #[error(transparent)]
    Refused(#[from] trust::Refusal),
    /// No registry answered, or not with anything of use: trying again may help.
    #[error("{url}: {reason}")]
    Unavailable { url: String, reason: String },
    /// 401 or 403 with every credential there is.
    #[error("{url}: {reason}")]
    Unauthorized { url: String, reason: String },
    #[error("{image}: not found")]
    NotFound { image: String },
    /// The registry's answer makes no sense.
    #[error("{url}: {reason}")]
    Protocol { url: String, reason: String },
    /// A file with settings or credentials cannot be used.
    #[error("{}: {reason}", path.display())]
    Settings { path: PathBuf, reason: String },
    #[error("cancelled")]
    Cancelled,
}

impl From<http::Unusable> for Error {
    fn from(http::Unusable { path, reason }: http::Unusable) -> Error {
        Error::Settings { path, reason }
    }
}

impl Error {
    /// Waiting reason of a container whose image could not be pulled (as kubelet).
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Image(super::Error::InvalidImageName { .. }) => "InvalidImageName",
            Error::Refused(_) => "SignatureValidationFailed",
            Error::Unavailable { .. } => "RegistryUnavailable",
            _ => "ErrImagePull",
        }
    }
}

/// All registries, as configured. Files are read anew when they change. Blocking; shared between threads.
#[derive(Debug)]
pub struct Registries {
    trust: Arc<Trust>,
    hosts: Hosts,
    credentials: Credentials,
    connections: Connections,
    patience: Patience,
}

impl Registries {
    pub fn new(settings: Settings, trust: Arc<Trust>) -> Registries {
        Registries {
            trust,
            hosts: Hosts::new(&settings),
            credentials: Credentials::new(&settings),
            connections: Connections::new(&settings),
            patience: Patience::default(),
        }
    }

    /// Brings an image into the store. Layers that are there are not fetched.
    ///
    /// `progress` is called from several threads, and must not block for long.
    ///
    /// # Errors
    /// Why it is not there now. The store is as it was, except for whole layers that no image uses yet.
    pub fn pull(
        &self,
        store: &ImageStore,
        request: &Request<'_>,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Pulled, Error> {
        self.bring(store, &reference::parse(request.image)?, request.secrets, request.cancelled, progress)
    }

    /// Fetches an image again by the digest it came with, for a store that has lost some of it: layers that are missing
    /// come back, and its record, without names if that was lost too. With the node's credentials only.
    ///
    /// # Errors
    /// As [`Registries::pull`]; [`Error::NotFound`] when it did not come from a registry.
    pub fn refetch(
        &self,
        store: &ImageStore,
        origin: &Origin,
        cancelled: &AtomicBool,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Pulled, Error> {
        let Origin::Registry { repository, digest } = origin else {
            return Err(Error::NotFound { image: "an image that no registry has".into() });
        };
        self.bring(store, &reference::parse(&format!("{repository}@{digest}"))?, &[], cancelled, progress)
    }

    fn bring(
        &self,
        store: &ImageStore,
        reference: &Reference,
        secrets: &[PullSecret],
        cancelled: &AtomicBool,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Pulled, Error> {
        let endpoints = self.hosts.endpoints(&pull::repository(reference), reference.digest().is_some())?;
        let pull = Pull {
            store,
            trust: &self.trust,
            reference,
            endpoints,
            hosts: &self.hosts,
            patience: self.patience.clone(),
            connections: &self.connections,
            credentials: &self.credentials,
            secrets,
            cancelled,
            progress,
        };
        pull.run()
    }
}
