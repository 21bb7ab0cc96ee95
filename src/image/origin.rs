//! Where an image came from, and what vouches for it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Digest;

/// A place to fetch an image from again when it is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Origin {
    /// An archive or OCI layout folder on this machine; absolute.
    Archive { path: PathBuf },
    /// A registry: normalised repository (`docker.io/library/nginx`) and digest of the image's manifest there.
    Registry { repository: String, digest: Digest },
    /// This binary.
    BuiltIn,
}

/// A signature that was found good when the image came in. The keys that are wanted may change: what is recorded is
/// compared with them at every use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// What the signature says the image is called (often only a repository): held against the name that is asked for
    /// at every use. Empty: it is good for every name (a signed archive).
    pub name: String,
    /// Digest (`sha256:…`) of the public key, of its DER form; of minisign keys, of the key's 42 bytes.
    pub key: Digest,
    /// What the signer wrote into the signature of an archive (minisign's trusted comment), for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}
