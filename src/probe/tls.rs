//! TLS that encrypts and proves nothing, as the API wants it for probes: containers have certificates that nobody else
//! could verify.

use std::io;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, InvalidMessage, SignatureScheme};

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
    let config = CONFIG.get_or_init(|| {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        let mut config =
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate)).with_no_client_auth();
        config.resumption = Resumption::disabled();
        Some(Arc::new(config))
    });
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

/// Takes any certificate, also expired and self-signed ones.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // A signature by a key that proves nothing.
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
