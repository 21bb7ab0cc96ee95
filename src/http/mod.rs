//! Requests to other machines: which proxy, which authorities, which client certificate; and one document within limits.
//!
//! ```text
//! environment ─▶ proxy ─┐
//! files ─ kept ─▶ roots ┴▶ connections ─▶ fetch (a manifest) · image::registry (images)
//! ```

mod connections;
mod environment;
mod fetch;
pub mod kept;
pub mod place;
mod proxy;
mod roots;
mod tls;

use std::path::PathBuf;

pub use connections::{ClientPair, Connections, TlsSettings};
pub use environment::Environment;
pub use fetch::{Answer, Body, Conditions, Error, Kind, Limits, Request, decoded, fetch, unpack};

use tokio_rustls::rustls::{self, ClientConfig};

/// TLS that encrypts and proves nothing, for servers whose certificates nobody could verify: also expired ones are taken.
///
/// # Errors
/// When TLS cannot be set up at all.
pub fn unverified_tls() -> Result<ClientConfig, rustls::Error> {
    tls::config(tls::Trust::All, None)
}

/// A file with settings, certificates or keys, or a variable with a proxy, that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Unusable {
    /// The file, or the name of the variable.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}
