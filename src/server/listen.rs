//! Listening: the socket, the loopback port, limits of connections.

use super::http::{Door, handle};
use super::{Error, Node};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Most connections at once on the socket; one more is told to come back later.
const MAX_CONNECTIONS: usize = 256;
/// Most connections at once on loopback.
const MAX_LOOPBACK_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head, and an idle connection may stay.
const HEADER_TIME: Duration = Duration::from_secs(15);
/// Largest request head, in bytes; a long `exec` command has to fit.
const MAX_HEAD: usize = 160 * 1024;

/// A bound socket that nobody answers on yet.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl Listener {
    /// Binds the socket with mode 0600. A socket that nobody answers on is replaced.
    ///
    /// # Errors
    /// [`Error::InUse`] when another agent answers there, [`Error::Listen`] for what the system refuses. Must be called
    /// on a tokio runtime.
    pub fn bind(path: &Path) -> Result<Listener, Error> {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(Error::InUse(path.to_owned())),
            // EAGAIN: somebody is there but busy.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Error::InUse(path.to_owned())),
            Err(_) => {}
        }
        Listener::bind_over(path).map_err(|source| Error::Listen { address: path.display().to_string(), source })
    }

    /// Binds under another name and renames: the socket appears with its final mode, never wider.
    fn bind_over(path: &Path) -> io::Result<Listener> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        let socket = UnixListener::bind(&temporary)?;
        let finish = || {
            std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
            let metadata = std::fs::metadata(&temporary)?;
            std::fs::rename(&temporary, path)?;
            Ok::<_, io::Error>((metadata.dev(), metadata.ino()))
        };
        let identity = finish().inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })?;
        Ok(Listener { socket, path: path.to_owned(), identity })
    }

    /// Serves the node until `shutdown` turns true or its sender is gone, then removes the socket.
    pub async fn serve(self, node: Arc<dyn Node>, shutdown: watch::Receiver<bool>) {
        run(node, Door::Socket, MAX_CONNECTIONS, &self.socket, shutdown).await;
        self.remove();
    }

    /// For who serves something else on it.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Removes the socket.
    pub fn remove(self) {
        // Another agent may have taken the name over meanwhile.
        let ours = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        if std::fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds and serves the node's API on a unix socket until `shutdown` turns true or its sender is gone.
///
/// # Errors
/// As [`Listener::bind`].
pub async fn serve(node: Arc<dyn Node>, socket: &Path, shutdown: watch::Receiver<bool>) -> Result<(), Error> {
    Listener::bind(socket)?.serve(node, shutdown).await;
    Ok(())
}

/// How often it is looked whether there is an address (as kubelet: every 5 s).
const AGAIN: Duration = Duration::from_secs(5);

/// Binds the health endpoint; port 0 is refused by the caller, not here (it binds a free port).
///
/// # Errors
/// [`Error::Listen`] when the address or port cannot be had.
pub async fn bind_healthz(bind: IpAddr, port: u16) -> Result<TcpListener, Error> {
    let address = SocketAddr::new(bind, port);
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address: address.to_string(), source })
}

/// As [`bind_healthz`], for an address that the machine does not have yet: waits until it has.
pub async fn await_healthz(bind: IpAddr, port: u16) -> TcpListener {
    loop {
        tokio::time::sleep(AGAIN).await;
        if let Ok(listener) = bind_healthz(bind, port).await {
            return listener;
        }
    }
}

/// Serves `/healthz`, `/livez`, `/readyz` and `/metrics` on a bound port until `shutdown` turns true.
pub async fn serve_healthz(node: Arc<dyn Node>, listener: TcpListener, shutdown: watch::Receiver<bool>) {
    run(node, Door::Loopback, MAX_LOOPBACK_CONNECTIONS, &listener, shutdown).await;
}

/// Serves the status page on a bound port of loopback until `shutdown` turns true.
pub async fn serve_page(node: Arc<dyn Node>, listener: TcpListener, shutdown: watch::Receiver<bool>) {
    run(node, Door::Page, MAX_LOOPBACK_CONNECTIONS, &listener, shutdown).await;
}

/// Serves health, pods and metrics to everybody on a bound port until `shutdown` turns true.
pub async fn serve_read_only(node: Arc<dyn Node>, listener: TcpListener, shutdown: watch::Receiver<bool>) {
    run(node, Door::ReadOnly, MAX_LOOPBACK_CONNECTIONS, &listener, shutdown).await;
}

/// What connections come from.
trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<TcpStream> {
        TcpListener::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Accepts connections and serves each in a task; all end with this call.
async fn run(
    node: Arc<dyn Node>,
    door: Door,
    most: usize,
    listener: &impl Accept,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = asked_to_stop(&mut shutdown) => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(stream) if connections.len() < most => {
                    connections.spawn(connection(node.clone(), door, stream));
                }
                Ok(stream) => refuse(stream).await,
                Err(error) => {
                    // Out of file descriptors: trying at once again would spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

pub(super) async fn asked_to_stop(shutdown: &mut watch::Receiver<bool>) {
    // An error is a dropped sender: the agent is going down too.
    let _ = shutdown.wait_for(|down| *down).await;
}

async fn connection<S>(node: Arc<dyn Node>, door: Door, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| handle(node.clone(), door, request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

/// Tells a client that there are too many, without keeping anything of it.
async fn refuse<S: AsyncWrite + Unpin>(mut stream: S) {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 1\r\n\
        content-length: 21\r\nconnection: close\r\n\r\ntoo many connections\n";
    let _ = tokio::time::timeout(Duration::from_millis(50), stream.write_all(ANSWER)).await;
}
