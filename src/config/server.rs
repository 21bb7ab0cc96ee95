//! Who is served what, and where: the node API, the local Kubernetes API, CRI, the status page.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What of the configuration is about serving. Ports are with [`Config`](super::Config): `port` is the node API's.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Whether the node API is served although the node is in no cluster: its port or how it authenticates was configured.
    pub standalone: bool,
    /// Address of the node API (`address`); unspecified: all.
    pub address: IpAddr,
    /// Certificate of the node API, hot-reloaded (`tlsCertFile`); without: issued by the cluster or signed by itself.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key (`tlsPrivateKeyFile`).
    pub tls_private_key_file: Option<PathBuf>,
    /// Ask the cluster for the serving certificate (`serverTLSBootstrap`).
    pub server_tls_bootstrap: bool,
    /// Authority of clients' certificates, hot-reloaded (`authentication.x509.clientCAFile`).
    pub client_ca_file: Option<PathBuf>,
    /// Whether who shows nothing is `system:anonymous` (`authentication.anonymous.enabled`).
    pub anonymous: bool,
    /// Whether bearer tokens are reviewed by the API server (`authentication.webhook.enabled`), and for how long that
    /// counts (`cacheTTL`).
    pub token_webhook: Option<Duration>,
    /// Who may do what.
    pub authorization: Authorization,
    /// Port without authentication, for health, pods and metrics (`readOnlyPort`); 0: off.
    pub read_only_port: u16,
    /// Whether logs, exec and their like are served (`enableDebuggingHandlers`).
    pub debugging_handlers: bool,
    /// How long a streaming connection may be silent (`streamingConnectionIdleTimeout`).
    pub streaming_idle: Duration,
    /// The local Kubernetes API on loopback (ours: `localAPI`).
    pub local_api: LocalApi,
    /// Port of the status page on 127.0.0.1 (ours: `statusPagePort`); 0: off.
    pub status_page_port: u16,
    /// Whether `cri.sock` is served (ours: `criSocket`; on).
    pub cri_socket: bool,
}

/// `authorization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorization {
    /// Whoever is authenticated may do everything (`AlwaysAllow`).
    AlwaysAllow,
    /// The API server is asked (`Webhook`).
    Webhook {
        /// How long a yes counts (`cacheAuthorizedTTL`).
        authorized: Duration,
        /// How long a no counts (`cacheUnauthorizedTTL`).
        unauthorized: Duration,
    },
}

/// `localAPI`: what kubectl talks to on a node without a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalApi {
    /// Port on 127.0.0.1, from the start of the agent; 0: only once `coracle kubeconfig` asks for it.
    pub port: u16,
    /// Whether nobody may create, change or delete pods there, whatever their certificate says.
    pub read_only: bool,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            standalone: false,
            address: IpAddr::from([0, 0, 0, 0]),
            tls_cert_file: None,
            tls_private_key_file: None,
            server_tls_bootstrap: false,
            client_ca_file: None,
            anonymous: false,
            token_webhook: Some(Duration::from_secs(120)),
            authorization: Authorization::Webhook {
                authorized: Duration::from_secs(300),
                unauthorized: Duration::from_secs(30),
            },
            read_only_port: 0,
            debugging_handlers: true,
            streaming_idle: Duration::from_secs(4 * 3600),
            local_api: LocalApi { port: 0, read_only: false },
            status_page_port: 0,
            cri_socket: true,
        }
    }
}
