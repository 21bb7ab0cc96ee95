//! TLS that encrypts and proves nothing, as the API wants it for probes: containers have certificates that nobody else
//! could verify.

use crate::http;
use std::io;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, InvalidMessage};

/// Why there is no session.
pub(super) enum Error {
    /// The server does not speak TLS.
    NotTls,
    /// Anything else, for people.
    Failed(String),
}

/// One configuration for all probes of the process: it has tables of several KiB.
fn config() -> Result<Arc<ClientConfig>, Error> {
    static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| http::unverified_tls().ok().map(Arc::new));
    config.clone().ok_or_else(|| Error::Failed("TLS is not available".to_owned()))
}

/// Makes a connection a TLS session.
pub(super) async fn connect(stream: TcpStream, host: &str) -> Result<TlsStream<TcpStream>, Error> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Error::Failed(format!("tls: {host:?} is no name of a server")))?;
    TlsConnector::from(config()?).connect(name, stream).await.map_err(|error| failure(&error))
}

fn failure(error: &io::Error) -> Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        // The first byte of a record is no TLS record's: in practice `H` of `HTTP/1.1 400`.
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Error::NotTls,
        Some(cause) => Error::Failed(format!("tls: {cause}")),
        None => Error::Failed(format!("tls: {}", super::connect::reason(error))),
    }
}
