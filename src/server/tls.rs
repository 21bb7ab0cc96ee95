//! TLS in front of a door: who connects shows a certificate if they have one, and has to be recognised soon.
//!
//! ```text
//! accept ─▶ handshake (10 s) ─▶ Peer: address, certificates ─▶ requests ─▶ whoever is behind the door
//!                                  └ a stranger: leaves after 20 s, and makes room for others before that
//! ```
//!
//! The handshake proves that a peer has the key of the certificate that it shows, and nothing else: whether anybody vouches
//! for it is the question of each request, so that an authority that is replaced and a certificate that expires count at
//! once, also for connections that are open, and the answer is 401, which people understand.

use super::listen::asked_to_stop;
use super::reply::Reply;
use futures_util::future::BoxFuture;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{self, CryptoProvider, ring};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{NoServerSessionStorage, ServerConfig};
use tokio_rustls::rustls::{self, DigitallySignedStruct, DistinguishedName, SignatureScheme};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a peer may stay whom nobody knows, the handshake included.
const STRANGER: Duration = Duration::from_secs(20);
/// How long a connection may be idle between requests, and a request's head take (as kubelet: 90 s).
const IDLE: Duration = Duration::from_secs(90);
/// Largest request head, in bytes; a long `exec` command has to fit.
const MAX_HEAD: usize = 160 * 1024;

/// Who is at the other end of a connection, as far as TLS tells.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where it comes from.
    pub(super) address: SocketAddr,
    /// The certificates that it shows, its own first; it has that one's key. Nobody has vouched for them yet.
    pub(super) chain: Vec<CertificateDer<'static>>,
    known: AtomicBool,
    recognised: Notify,
}

impl Peer {
    fn new(address: SocketAddr, chain: Vec<CertificateDer<'static>>) -> Peer {
        Peer { address, chain, known: AtomicBool::new(false), recognised: Notify::new() }
    }

    /// Whoever is behind the door knows this peer: it may stay.
    pub(super) fn recognise(&self) {
        if !self.known.swap(true, Ordering::Relaxed) {
            self.recognised.notify_one();
        }
    }

    fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }
}

/// What the door shows of itself.
pub(super) trait Shown: Send + Sync + 'static {
    /// How to speak TLS with a peer that has just connected; `None`: there is no certificate yet, so with nobody.
    fn terms(&self) -> BoxFuture<'_, Option<Arc<ServerConfig>>>;
}

impl Shown for watch::Receiver<Option<Arc<ServerConfig>>> {
    fn terms(&self) -> BoxFuture<'_, Option<Arc<ServerConfig>>> {
        let terms = self.borrow().clone();
        Box::pin(async move { terms })
    }
}

/// Who answers requests. A refusal is an answer, too. To be called with everything that comes through the door.
pub(super) type Answer = dyn Fn(Arc<Peer>, Request<Incoming>) -> BoxFuture<'static, Reply> + Send + Sync;

/// How to speak TLS with this certificate and its key: 1.2 and 1.3, HTTP/1.1, without resumption (who resumes a session
/// shows no certificate, and sessions that are kept cost memory).
///
/// # Errors
/// When the key does not fit the certificate, or is of a kind that is not supported.
pub(super) fn terms(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(Possession(provider)))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Asks for a certificate, and has the peer prove that it has the key. Who vouches for it is not asked here.
#[derive(Debug)]
struct Possession(Arc<CryptoProvider>);

impl ClientCertVerifier for Possession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // As kubelet, in effect: clients that choose by the hints choose among all they have.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection that is open and may be a stranger's.
struct Open {
    peer: Arc<OnceLock<Arc<Peer>>>,
    task: AbortHandle,
}

impl Open {
    fn is_a_strangers(&self) -> bool {
        !self.task.is_finished() && !self.peer.get().is_some_and(|peer| peer.is_known())
    }
}

/// A connection with its place among those that may be open at once; streams that it is upgraded to keep the place.
struct Placed<S> {
    stream: S,
    _place: OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts connections on `listener`, at most `most` at once with the streams that came of them, until `shutdown` turns true
/// or its sender is gone; all but streams end with this call. When there are too many, the stranger who came first leaves;
/// when there is none, nobody else comes in.
pub(super) async fn serve(
    listener: &TcpListener,
    most: usize,
    shown: Arc<dyn Shown>,
    answer: Arc<Answer>,
    mut shutdown: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(most));
    let mut connections = JoinSet::new();
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        tokio::select! {
            () = asked_to_stop(&mut shutdown) => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    // Those who are known, or gone, need not be looked at again.
                    if open.len() >= 2 * most || places.available_permits() == 0 {
                        open.retain(|connection| connection.is_a_strangers());
                    }
                    let place = match Arc::clone(&places).try_acquire_owned() {
                        Ok(place) => place,
                        Err(_) => {
                            let Some(stranger) = open.pop_front() else {
                                tracing::warn!(%address, "too many connections: refused");
                                continue;
                            };
                            stranger.task.abort();
                            // The place is free as soon as the task has ended, which is soon.
                            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                            place
                        }
                    };
                    let stream = Placed { stream, _place: place };
                    let peer = Arc::default();
                    let served = connection(stream, address, Arc::clone(&peer), Arc::clone(&shown), Arc::clone(&answer));
                    open.push_back(Open { peer, task: connections.spawn(served) });
                }
                Err(error) => {
                    // Out of file descriptors: trying at once again would spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn connection(
    stream: Placed<TcpStream>,
    address: SocketAddr,
    known_as: Arc<OnceLock<Arc<Peer>>>,
    shown: Arc<dyn Shown>,
    answer: Arc<Answer>,
) {
    let deadline = tokio::time::Instant::now() + STRANGER;
    // Streams may be silent for hours: the kernel tells when the other side is gone.
    crate::sys::socket::keep_alive(&stream.stream);
    let _ = stream.stream.set_nodelay(true);
    let Some(terms) = shown.terms().await else {
        tracing::debug!(%address, "there is no certificate to show yet");
        return;
    };
    let stream = match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(terms).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "no TLS"),
        Err(_) => return tracing::debug!(%address, "the handshake took too long"),
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let peer = Arc::new(Peer::new(address, chain));
    let _ = known_as.set(Arc::clone(&peer));
    let service = service_fn(|request| {
        let answered = answer(Arc::clone(&peer), request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(served);
    let leaves = async {
        tokio::select! {
            () = peer.recognised.notified() => std::future::pending().await,
            () = tokio::time::sleep_until(deadline) => {}
        }
    };
    tokio::select! {
        ended = &mut served => if let Err(error) = ended {
            tracing::debug!(%address, %error, "connection ended");
        },
        () = leaves => tracing::debug!(%address, "a stranger had to leave"),
    }
}
