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
use rustix::net::Shutdown;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, ready};
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
use tokio_rustls::server::TlsStream;

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

/// A connection with its place among those that may be open at once; streams that it is upgraded to keep the place. Whoever
/// else holds the socket can only close it.
struct Placed {
    socket: Arc<TcpStream>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Placed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read(into.initialize_unfilled()) {
                Ok(count) => {
                    into.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Placed {
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        send: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match send(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncWrite for Placed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |socket| socket.try_write(from))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |socket| socket.try_write_vectored(from))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&*self.socket, Shutdown::Write)?))
    }
}

/// The sockets that are open; they are closed with it, streams included: who may come in no longer may not stay.
#[derive(Default)]
struct Sockets(Vec<Weak<TcpStream>>);

impl Sockets {
    fn add(&mut self, socket: &Arc<TcpStream>) {
        // As often as it pays: each time half of them may be gone.
        if self.0.len() == self.0.capacity() {
            self.0.retain(|socket| socket.strong_count() > 0);
        }
        self.0.push(Arc::downgrade(socket));
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for socket in self.0.iter().filter_map(Weak::upgrade) {
            let _ = rustix::net::shutdown(&*socket, Shutdown::Both);
        }
    }
}

/// Accepts connections on `listener`, at most `most` at once with the streams that came of them, until `shutdown` turns true
/// or its sender is gone; all end with this call, streams too. When there are too many, the stranger who came first leaves;
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
    let mut sockets = Sockets::default();
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
                    let socket = Arc::new(stream);
                    sockets.add(&socket);
                    let stream = Placed { socket, _place: place };
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
    stream: Placed,
    address: SocketAddr,
    known_as: Arc<OnceLock<Arc<Peer>>>,
    shown: Arc<dyn Shown>,
    answer: Arc<Answer>,
) {
    let deadline = tokio::time::Instant::now() + STRANGER;
    // Streams may be silent for hours: the kernel tells when the other side is gone.
    crate::sys::socket::keep_alive(&*stream.socket);
    let _ = stream.socket.set_nodelay(true);
    let Some(terms) = shown.terms().await else {
        tracing::debug!(%address, "there is no certificate to show yet");
        return;
    };
    // What a handshake takes is given back when it is over: idle connections are many.
    let accepted = Box::pin(tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(terms).accept(stream))).await;
    let stream = match accepted {
        Ok(Ok(stream)) => Box::new(stream),
        Ok(Err(error)) => return tracing::debug!(%address, %error, "no TLS"),
        Err(_) => return tracing::debug!(%address, "the handshake took too long"),
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let peer = Arc::new(Peer::new(address, chain));
    let _ = known_as.set(Arc::clone(&peer));
    let leaves = async {
        tokio::select! {
            () = peer.recognised.notified() => std::future::pending().await,
            () = tokio::time::sleep_until(deadline) => {}
        }
    };
    tokio::select! {
        () = Box::pin(requests(stream, Arc::clone(&peer), answer)) => {}
        () = leaves => tracing::debug!(%address, "a stranger had to leave"),
    }
}

/// Answers requests until the connection ends, or is no more one of HTTP.
async fn requests(stream: Box<TlsStream<Placed>>, peer: Arc<Peer>, answer: Arc<Answer>) {
    let address = peer.address;
    let service = service_fn(move |request| {
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
    if let Err(error) = served.await {
        tracing::debug!(%address, %error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::reply;
    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsConnector, client};

    type Stream = client::TlsStream<TcpStream>;

    async fn connect(address: SocketAddr) -> io::Result<Stream> {
        let terms = Arc::new(crate::http::unverified_tls().unwrap());
        let tcp = TcpStream::connect(address).await?;
        TlsConnector::from(terms).connect(ServerName::from(address.ip()), tcp).await
    }

    /// The status line of an answer; empty where the connection is gone.
    async fn ask(stream: &mut Stream, path: &str) -> String {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        if stream.write_all(head.as_bytes()).await.is_err() {
            return String::new();
        }
        let mut bytes = [0; 512];
        let count = stream.read(&mut bytes).await.unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).lines().next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn when_there_are_too_many_the_stranger_who_came_first_leaves() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["n1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let terms = terms(vec![certificate.der().clone()], key).unwrap();
        let answer: Arc<Answer> = Arc::new(|peer, request| {
            Box::pin(async move {
                if request.uri().path() == "/known" {
                    peer.recognise();
                }
                reply::text("ok")
            })
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (down, shutdown) = watch::channel(false);
        // Whoever holds the other end may show another certificate later.
        let (_shows, shown) = watch::channel(Some(terms));
        let served = tokio::spawn(async move { serve(&listener, 2, Arc::new(shown), answer, shutdown).await });
        const OK: &str = "HTTP/1.1 200 OK";
        let mut first = connect(address).await.unwrap();
        assert_eq!(ask(&mut first, "/").await, OK);
        let mut second = connect(address).await.unwrap();
        assert_eq!(ask(&mut second, "/known").await, OK);
        let mut third = connect(address).await.unwrap();
        assert_eq!(ask(&mut third, "/known").await, OK);
        assert_eq!(ask(&mut first, "/").await, "");
        // All are known now: nobody leaves for somebody else.
        assert!(connect(address).await.is_err());
        for stream in [&mut second, &mut third] {
            assert_eq!(ask(stream, "/").await, OK);
        }
        drop(second);
        let mut fourth = loop {
            match connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(ask(&mut fourth, "/").await, OK);
        down.send(true).unwrap();
        served.await.unwrap();
        assert_eq!(ask(&mut third, "/").await, "");
    }

    #[tokio::test]
    async fn who_does_not_speak_tls_is_told_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_down, shutdown) = watch::channel(false);
        let (shows, shown) = watch::channel(None);
        let answer: Arc<Answer> = Arc::new(|_, _| Box::pin(async { reply::text("ok") }));
        tokio::spawn(async move { serve(&listener, 2, Arc::new(shown), answer, shutdown).await });
        // Not while there is no certificate either.
        assert!(connect(address).await.is_err());
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["n1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        shows.send_replace(Some(terms(vec![certificate.der().clone()], key).unwrap()));
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        assert_eq!(ask(&mut connect(address).await.unwrap(), "/").await, "HTTP/1.1 200 OK");
    }
}
