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

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// TLS that encrypts and proves nothing, for servers whose certificates nobody could verify: also expired ones are taken.
///
/// # Errors
/// When TLS cannot be set up at all.
pub fn unverified_tls() -> Result<ClientConfig, rustls::Error> {
    tls::config(tls::Trust::All, None)
}

/// TLS to a server that these authorities vouch for, with a client certificate and its key where there is one.
///
/// # Errors
/// When an authority is none, or the key does not fit the certificate.
pub fn tls_of(
    authorities: &[CertificateDer<'static>],
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    authorities.iter().try_for_each(|authority| roots.add(authority.clone()))?;
    tls::config(tls::Trust::Roots(roots), client)
}

/// TLS to a server that this machine's authorities vouch for, with a client certificate and its key where there is one.
///
/// # Errors
/// When the key does not fit the certificate, or the machine's authorities cannot be read.
pub fn tls_of_machine(client: Option<Identity>) -> Result<ClientConfig, TlsError> {
    let roots = roots::of_machine(&Environment::of_process())?.unwrap_or_else(roots::built_in);
    Ok(tls::config(tls::Trust::Roots(roots), client)?)
}

/// As [`unverified_tls`], with a client certificate and its key where there is one.
///
/// # Errors
/// When the key does not fit the certificate.
pub fn unverified_tls_as(client: Option<Identity>) -> Result<ClientConfig, rustls::Error> {
    tls::config(tls::Trust::All, client)
}

/// A client certificate with its chain, and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authorities of the machine cannot be read.
    #[error(transparent)]
    Roots(#[from] Unusable),
    /// The key does not fit the certificate.
    #[error(transparent)]
    Client(#[from] rustls::Error),
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
