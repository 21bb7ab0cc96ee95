//! From credentials on disk to a connection, and from one certificate to the next.

use super::context::Context;
use super::kubeconfig::Kubeconfig;
use super::{Machine, session};
use crate::http;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::Body;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls;

/// Between two looks for credentials while there are none.
const LOOK: Duration = Duration::from_secs(5);
/// How long a TCP connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// An API server that does not answer a ping for this long is gone.
const PING: Duration = Duration::from_secs(15);

/// How the node stands to the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum State {
    /// There are no credentials: the node stands alone.
    #[default]
    Alone,
    /// There are, but nothing came of them yet, or they cannot be used: why.
    Waiting(String),
    /// The API server at this URL was talked to.
    Joined(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The kubeconfig cannot be read.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It says nothing useful.
    #[error("{}: {why}", path.display())]
    Unusable { path: PathBuf, why: String },
}

/// A connection to the API server, with credentials of the node.
#[derive(Clone)]
pub struct Connection {
    /// Requests.
    pub(super) client: Client,
    /// Where it goes.
    pub(super) server: String,
}

/// Talks to the API server whenever there are credentials, for ever.
pub(super) async fn follow(context: Arc<Context>, machine: Arc<dyn Machine>) {
    loop {
        let connection = match connect(&context.config.kubeconfig) {
            Ok(Some(connection)) => connection,
            Ok(None) => {
                pause(&context).await;
                continue;
            }
            Err(error) => {
                let error = crate::causes::chain(&error);
                let state = State::Waiting(error);
                if context.state.send_if_modified(|old| std::mem::replace(old, state.clone()) != state) {
                    tracing::warn!("cannot join the cluster: {state:?}");
                }
                pause(&context).await;
                continue;
            }
        };
        context.state.send_replace(State::Joined(connection.server.clone()));
        session::run(&context, &machine, &connection).await;
    }
}

async fn pause(context: &Context) {
    tokio::select! {
        () = tokio::time::sleep(LOOK) => {}
        () = context.look.notified() => {}
    }
}

/// The connection of a kubeconfig; `None`: there is no such file.
fn connect(path: &Path) -> Result<Option<Connection>, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    let unusable = |why: String| Error::Unusable { path: path.to_owned(), why };
    let read: Kubeconfig = serde_yaml::from_str(&text).map_err(|e| unusable(e.to_string()))?;
    let named = read.contexts.iter().find(|context| context.name == read.current_context);
    let context = &named.ok_or_else(|| unusable("no current context".to_owned()))?.context;
    let cluster = read.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let cluster = &cluster.ok_or_else(|| unusable("the current context has no cluster".to_owned()))?.cluster;
    let user = read.users.iter().find(|user| user.name == context.user);
    let user = &user.ok_or_else(|| unusable("the current context has no user".to_owned()))?.user;
    let pem = |data: &Option<String>, file: &Option<String>| -> Result<Option<Vec<u8>>, Error> {
        match (data, file) {
            (Some(data), _) => STANDARD.decode(data).map(Some).map_err(|e| unusable(e.to_string())),
            (None, Some(file)) => {
                let file = path.parent().unwrap_or(Path::new("/")).join(file);
                std::fs::read(&file).map(Some).map_err(|e| unusable(format!("{}: {e}", file.display())))
            }
            (None, None) => Ok(None),
        }
    };
    let authority = pem(&cluster.certificate_authority_data, &cluster.certificate_authority)?;
    let chain = pem(&user.client_certificate_data, &user.client_certificate)?;
    let key = pem(&user.client_key_data, &user.client_key)?;
    let certificates = |pem: &[u8]| -> Result<Vec<CertificateDer<'static>>, Error> {
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| unusable(e.to_string()))
    };
    let roots = certificates(authority.as_deref().unwrap_or_default())?;
    let client = match (chain, key) {
        (Some(chain), Some(key)) => {
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| unusable(e.to_string()))?;
            Some((certificates(&chain)?, key))
        }
        _ => None,
    };
    let tls = http::tls_of(&roots, client).map_err(|e| unusable(e.to_string()))?;
    let uri: Uri = cluster.server.parse().map_err(|_| unusable("the server is no URL".to_owned()))?;
    Ok(Some(Connection { client: client_of(tls, uri), server: cluster.server.clone() }))
}

/// One connection for all requests and watches, as long as it answers.
fn client_of(tls: rustls::ClientConfig, server: Uri) -> Client {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp);
    let http = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING)
        .http2_keep_alive_while_idle(true)
        .build(https);
    let service = tower::ServiceBuilder::new()
        .map_request(move |mut request: Request<Body>| {
            let mut parts = request.uri().clone().into_parts();
            parts.scheme = server.scheme().cloned();
            parts.authority = server.authority().cloned();
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
            request
        })
        .service(http);
    Client::new(service, "default")
}
