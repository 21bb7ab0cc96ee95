//! What a pod is made from besides its own document: objects, tokens and services.

use crate::manifest::{ObjectId, Objects};
use k8s_openapi::api::core::v1::{Pod, Service};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// As one immutable value, of one of two kinds: of what the node's own sources define, for static pods; of what the API
/// server gave, for pods that it bound to this node. Neither ever sees what is in the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Supply {
    /// ConfigMaps and Secrets.
    pub objects: Arc<Objects>,
    /// Why an object is not among them, where that is known (`forbidden: …`).
    pub refused: BTreeMap<ObjectId, String>,
    /// Tokens of service accounts.
    pub tokens: BTreeMap<TokenId, Token>,
    /// The cluster's services that have an address of their own; `None` before they were read once: pods of the cluster
    /// wait for that (as kubelet), static pods have no such variables.
    pub services: Option<Arc<Vec<Service>>>,
}

/// Which token: one of a pod's projected sources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId {
    /// UID of the pod that it is bound to.
    pub pod: String,
    /// For whom it is; empty: for the API server.
    pub audience: String,
    /// How long it should be good, in seconds.
    pub expiration_seconds: i64,
}

/// A token. Never shows what it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Whether the API server bound the pod to this node; all others are static.
#[must_use]
pub fn is_from_api(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|all| all.get("kubernetes.io/config.source"));
    source.is_some_and(|source| source == "api")
}

/// The tokens that a pod's volumes are made from.
#[must_use]
pub fn tokens(pod: &Pod) -> Vec<TokenId> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes.filter_map(|volume| volume.projected.as_ref()).flat_map(|p| p.sources.iter().flatten());
    let mut all: Vec<TokenId> = sources
        .filter_map(|source| source.service_account_token.as_ref())
        .map(|token| TokenId {
            pod: uid.clone(),
            audience: token.audience.clone().unwrap_or_default(),
            // As the API server's default.
            expiration_seconds: token.expiration_seconds.unwrap_or(3600),
        })
        .collect();
    all.sort();
    all.dedup();
    all
}
