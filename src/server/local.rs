//! The door of the local Kubernetes API: `127.0.0.1:PORT`, for who has a certificate of its authority.
//!
//! It is closed until somebody asks for a kubeconfig, or its port is configured; that it was asked for is remembered.

mod pki;

use super::http::{self, Door};
use super::reply::{self, Failure, Reply};
use super::tls::{self, Peer};
use super::{Node, kube};
use crate::causes::chain;
use crate::config::server::LocalApi as Configured;
use crate::store;
use crate::sys::clock;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use pki::Authority;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::rustls::ServerConfig;

/// The port when nobody says which: near the kubelet's, and nobody's since schedulers have given it up.
const PORT: u16 = 10251;
/// Most connections at once; a kubectl has one or two.
const MOST: usize = 64;
/// How often a port that is taken is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Name of the record that it is on.
const RECORD: &str = "listening.json";

/// What is remembered.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    port: u16,
}

/// The local Kubernetes API on loopback, whether it is served or not.
pub struct LocalApi {
    /// Folder of the authority and the record.
    dir: PathBuf,
    configured: Configured,
    /// Turns true when the agent ends.
    end: OnceLock<watch::Receiver<bool>>,
    open: tokio::sync::Mutex<Option<Open>>,
}

/// A door that is open.
struct Open {
    port: u16,
    authority: Arc<Authority>,
    /// Dropping it closes the door.
    close: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Open {
    /// Closes the door; its port is free then.
    async fn close(self) {
        drop(self.close);
        // It ends at once, and cannot panic.
        let _ = self.task.await;
    }
}

impl LocalApi {
    /// Of a node whose state is below `root`. Nothing is opened.
    #[must_use]
    pub fn new(root: &std::path::Path, configured: Configured) -> LocalApi {
        let dir = root.join("pki/local");
        LocalApi { dir, configured, end: OnceLock::new(), open: tokio::sync::Mutex::default() }
    }

    /// Opens the door if it was open when the agent ended, or is configured to be; in the background, and again and again
    /// while its port is taken: pods do not wait for it. It is closed when `end` turns true.
    pub fn resume(self: &Arc<Self>, node: &Arc<dyn Node>, end: &watch::Receiver<bool>) {
        // Once an agent.
        let _ = self.end.set(end.clone());
        let Some(port) = self.wanted() else { return };
        let (api, node, mut end) = (Arc::clone(self), Arc::clone(node), end.clone());
        tokio::spawn(async move {
            while let Err(error) = api.open(&node, port).await {
                tracing::warn!(port, "the local API is not served yet: {}", chain(&error));
                tokio::select! {
                    () = tokio::time::sleep(AGAIN) => {}
                    _ = end.wait_for(|down| *down) => return,
                }
                // It may have been revoked, or opened elsewhere, meanwhile.
                if api.wanted() != Some(port) {
                    return;
                }
            }
        });
    }

    /// The port that is configured, or was asked for.
    fn wanted(&self) -> Option<u16> {
        if self.configured.port != 0 {
            return Some(self.configured.port);
        }
        match store::read::<Record>(&self.dir.join(RECORD)) {
            Ok(record) => record.map(|record| record.port),
            Err(error) => {
                tracing::warn!("whether the local API is to be served is not known: {}", chain(&error));
                None
            }
        }
    }

    /// Opens the door on a port, if it is not open there; 0: on any. Tells which, and whose certificates open it.
    async fn open(&self, node: &Arc<dyn Node>, port: u16) -> Result<(u16, Arc<Authority>), Error> {
        let mut open = self.open.lock().await;
        if let Some(open) = open.as_ref().filter(|open| port == 0 || open.port == port) {
            return Ok((open.port, Arc::clone(&open.authority)));
        }
        let Some(end) = self.end.get().cloned() else { return Err(Error::NotYet) };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let dir = self.dir.clone();
        let authority = tokio::task::spawn_blocking(move || Authority::open(&dir)).await;
        let authority = Arc::new(authority.map_err(|error| Error::Worker(error.to_string()))??);
        let certificate =
            Certificate { authority: Arc::clone(&authority), node: node.name().to_owned(), made: Mutex::default() };
        let (close, closed) = watch::channel(false);
        let served = serve(listener, Arc::clone(node), Arc::new(certificate), self.configured.read_only, closed, end);
        let task = tokio::spawn(served);
        if let Some(before) = open.replace(Open { port, authority: Arc::clone(&authority), close, task }) {
            before.close().await;
        }
        tracing::info!(port, "the local Kubernetes API is served on loopback");
        Ok((port, authority))
    }

    /// What is in a kubeconfig.
    async fn kubeconfig(&self, node: &Arc<dyn Node>, wanted: Option<u16>, reader: bool) -> Result<Value, Error> {
        if let Some(port) = wanted.filter(|port| self.configured.port != 0 && *port != self.configured.port) {
            return Err(Error::Configured { port, configured: self.configured.port });
        }
        let port = wanted.or_else(|| self.wanted()).unwrap_or(PORT);
        let (port, authority) = self.open(node, port).await?;
        let who = if reader { kube::Who::Reader } else { kube::Who::Admin { changes: true } };
        let (dir, configured) = (self.dir.clone(), self.configured.port);
        let made = tokio::task::spawn_blocking(move || {
            let issued = authority.client(who.name(), who.group())?;
            if configured == 0 {
                store::write(&dir.join(RECORD), &Record { port }, 0o600)?;
            }
            Ok::<_, Error>((authority.pem().to_owned(), issued))
        });
        let (authority, issued) = made.await.map_err(|error| Error::Worker(error.to_string()))??;
        let name = node.name();
        let user = format!("{name}-{}", if reader { "reader" } else { "admin" });
        Ok(json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{"name": name, "cluster": {
                "certificate-authority-data": STANDARD.encode(authority),
                "server": format!("https://{}", SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": STANDARD.encode(issued.certificate),
                "client-key-data": STANDARD.encode(issued.key),
            }}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
            "current-context": name,
        }))
    }

    /// Closes the door and forgets the authority. A port that is configured is opened again, for those who get a new
    /// kubeconfig.
    async fn revoke(self: &Arc<Self>, node: &Arc<dyn Node>) -> Result<(), Error> {
        let mut open = self.open.lock().await;
        let dir = self.dir.clone();
        let done = tokio::task::spawn_blocking(move || {
            // The authority first: what it issued must not count, whatever happens then.
            Authority::remove(&dir)?;
            store::delete(&dir.join(RECORD))?;
            Ok::<_, Error>(())
        });
        done.await.map_err(|error| Error::Worker(error.to_string()))??;
        if let Some(open) = open.take() {
            open.close().await;
        }
        drop(open);
        if let Some(end) = self.end.get().filter(|_| self.configured.port != 0) {
            self.resume(node, end);
        }
        Ok(())
    }
}

/// Why the local API is not served, or there is no kubeconfig.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Pki(#[from] pki::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("a worker failed: {0}")]
    Worker(String),
    #[error("the agent is starting")]
    NotYet,
    #[error("port {port} is not the one that is configured (localAPI.port: {configured})")]
    Configured { port: u16, configured: u16 },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match &error {
            Error::Configured { .. } => Failure::bad_request(error.to_string()),
            Error::Listen { .. } => Failure::conflict(chain(&error)),
            _ => Failure::internal(chain(&error)),
        }
    }
}

/// The server's certificate, made anew in time.
struct Certificate {
    authority: Arc<Authority>,
    node: String,
    made: Mutex<Option<(Timestamp, Arc<ServerConfig>)>>,
}

impl Certificate {
    fn current(&self) -> Option<Arc<ServerConfig>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((due, terms)) = made.as_ref()
            && clock::for_certificates() < *due
        {
            return Some(Arc::clone(terms));
        }
        let issue = || {
            let serving = self.authority.server(&self.node).map_err(|error| chain(&error))?;
            let terms = tls::terms(serving.chain, serving.key).map_err(|error| error.to_string())?;
            Ok::<_, String>((serving.due, terms))
        };
        match issue() {
            Ok((due, terms)) => {
                *made = Some((due, Arc::clone(&terms)));
                Some(terms)
            }
            Err(error) => {
                tracing::warn!(error, "the local API has no certificate");
                None
            }
        }
    }
}

impl tls::Shown for Certificate {
    fn terms(&self) -> BoxFuture<'_, Option<Arc<ServerConfig>>> {
        Box::pin(async { self.current() })
    }
}

/// Serves until the door is closed or the agent ends.
async fn serve(
    listener: TcpListener,
    node: Arc<dyn Node>,
    certificate: Arc<Certificate>,
    read_only: bool,
    mut closed: watch::Receiver<bool>,
    end: watch::Receiver<bool>,
) {
    let authority = Arc::clone(&certificate.authority);
    let answer = move |peer: Arc<Peer>, request| -> BoxFuture<'static, Reply> {
        let who = identify(&authority, &peer, read_only);
        let node = Arc::clone(&node);
        Box::pin(async move {
            match who {
                Ok(who) => http::handle(node, Door::Local(who), request).await.unwrap_or_else(|never| match never {}),
                Err(why) => {
                    tracing::debug!(address = %peer.address, why, "nobody the local API knows");
                    Failure::unauthorized("Unauthorized").into_reply()
                }
            }
        })
    };
    tokio::select! {
        () = tls::serve(&listener, MOST, certificate, Arc::new(answer), end) => {}
        // An error is the sender that is gone.
        _ = closed.wait_for(|closed| *closed) => {}
    }
}

/// Who a peer is, by its certificate.
fn identify(authority: &Authority, peer: &Peer, read_only: bool) -> Result<kube::Who, String> {
    let groups = authority.groups(&peer.chain)?;
    let has = |group: &str| groups.iter().any(|of| of == group);
    let who = if has(kube::ADMINS) {
        kube::Who::Admin { changes: !read_only }
    } else if has(kube::READERS) {
        kube::Who::Reader
    } else {
        return Err("the certificate is of no group that may do anything".to_owned());
    };
    peer.recognise();
    Ok(who)
}

/// Answers `POST /coracle/v1/kubeconfig[?port=N][&readOnly=true]` with a kubeconfig as JSON. The door is open then.
pub(super) fn kubeconfig(
    node: Arc<dyn Node>,
    port: Option<u64>,
    is_reader: bool,
) -> BoxFuture<'static, Result<Reply, Failure>> {
    // Boxed, as what is behind the door leads here again.
    Box::pin(async move {
        let port =
            port.map(|port| u16::try_from(port).map_err(|_| Failure::bad_request(format!("port: {port} is none"))));
        let api = Arc::clone(node.local_api());
        reply::json(&api.kubeconfig(&node, port.transpose()?, is_reader).await?)
    })
}

/// Answers `DELETE /coracle/v1/kubeconfig`: no kubeconfig counts any more.
pub(super) fn revoke(node: Arc<dyn Node>) -> BoxFuture<'static, Result<Reply, Failure>> {
    Box::pin(async move {
        Arc::clone(node.local_api()).revoke(&node).await?;
        reply::json(&json!({}))
    })
}
