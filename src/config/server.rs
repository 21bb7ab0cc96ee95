//! Who is served what, and where: the node API, the local Kubernetes API, CRI, the status page.

use super::file::Section;
use super::{Config, Error, Flags};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Fields of a `KubeletConfiguration` that are read here.
pub(super) const KUBELET_FIELDS: &[&str] = &[
    "address",
    "authentication",
    "authorization",
    "enableDebuggingHandlers",
    "enableServer",
    "enableSystemLogHandler",
    "port",
    "readOnlyPort",
    "serverTLSBootstrap",
    "streamingConnectionIdleTimeout",
    "tlsCertFile",
    "tlsPrivateKeyFile",
];

/// How long a token that was reviewed counts, and a yes and a no (as kubelet).
const TOKEN: Duration = Duration::from_secs(120);
const AUTHORIZED: Duration = Duration::from_secs(300);
const UNAUTHORIZED: Duration = Duration::from_secs(30);

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
    /// Whether the machine's own logs are served (`enableSystemLogHandler`), where the former are.
    pub system_logs: bool,
    /// How long a streaming connection may be silent (`streamingConnectionIdleTimeout`).
    pub streaming_idle: Duration,
    /// The local Kubernetes API on loopback (ours: `localAPI`).
    pub local_api: LocalApi,
    /// Port of the status page on 127.0.0.1 (ours: `statusPagePort`); 0: off.
    pub status_page_port: u16,
    /// Whether `cri.sock` is served (ours: `criSocket`; on).
    pub cri_socket: bool,
}

/// `--authorization-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AuthorizationMode {
    /// Whoever is authenticated may do everything.
    #[value(name = "AlwaysAllow")]
    AlwaysAllow,
    /// The API server is asked.
    #[value(name = "Webhook")]
    Webhook,
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

/// The fields of a `KubeletConfiguration`.
pub(super) fn kubelet_fields(document: &Section<'_>, config: &mut Config) -> Result<(), Error> {
    if let Some(port) = document.integer("port", 0, 65535)? {
        config.port = port as u16;
    }
    if document.boolean("enableServer")? == Some(false) {
        config.port = 0;
    }
    let server = &mut config.server;
    // What kubeadm writes names both; who sets neither has not asked for it.
    server.standalone = ["port", "authentication", "authorization"].iter().any(|field| document.get(field).is_some());
    if let Some(text) = document.text("address")?.filter(|text| !text.is_empty()) {
        server.address = document.parsed("address", text, "an IP address")?;
    }
    for (field, into) in
        [("tlsCertFile", &mut server.tls_cert_file), ("tlsPrivateKeyFile", &mut server.tls_private_key_file)]
    {
        *into = document.text(field)?.filter(|text| !text.is_empty()).map(PathBuf::from);
    }
    if let Some(port) = document.integer("readOnlyPort", 0, 65535)? {
        server.read_only_port = port as u16;
    }
    for (field, into) in [
        ("serverTLSBootstrap", &mut server.server_tls_bootstrap),
        ("enableDebuggingHandlers", &mut server.debugging_handlers),
        ("enableSystemLogHandler", &mut server.system_logs),
    ] {
        *into = document.boolean(field)?.unwrap_or(*into);
    }
    document.duration_into("streamingConnectionIdleTimeout", &mut server.streaming_idle)?;
    authentication(document, server)?;
    authorization(document, server)
}

fn authentication(document: &Section<'_>, server: &mut Server) -> Result<(), Error> {
    let Some(map) = document.section("authentication")? else { return Ok(()) };
    let section = Section { path: "KubeletConfiguration.authentication", map };
    section.reject_unknown(&["anonymous", "webhook", "x509"], &[])?;
    if let Some(map) = section.section("anonymous")? {
        let anonymous = Section { path: "KubeletConfiguration.authentication.anonymous", map };
        anonymous.reject_unknown(&["enabled"], &[])?;
        server.anonymous = anonymous.boolean("enabled")?.unwrap_or(server.anonymous);
    }
    if let Some(map) = section.section("webhook")? {
        let webhook = Section { path: "KubeletConfiguration.authentication.webhook", map };
        webhook.reject_unknown(&["cacheTTL", "enabled"], &[])?;
        let mut counts = server.token_webhook.unwrap_or(TOKEN);
        webhook.duration_into("cacheTTL", &mut counts)?;
        server.token_webhook = webhook.boolean("enabled")?.unwrap_or(true).then_some(counts);
    }
    if let Some(map) = section.section("x509")? {
        let x509 = Section { path: "KubeletConfiguration.authentication.x509", map };
        x509.reject_unknown(&["clientCAFile"], &[])?;
        server.client_ca_file = x509.text("clientCAFile")?.filter(|text| !text.is_empty()).map(PathBuf::from);
    }
    Ok(())
}

fn authorization(document: &Section<'_>, server: &mut Server) -> Result<(), Error> {
    let Some(map) = document.section("authorization")? else { return Ok(()) };
    let section = Section { path: "KubeletConfiguration.authorization", map };
    section.reject_unknown(&["mode", "webhook"], &[])?;
    let (mut authorized, mut unauthorized) = (AUTHORIZED, UNAUTHORIZED);
    if let Some(map) = section.section("webhook")? {
        let webhook = Section { path: "KubeletConfiguration.authorization.webhook", map };
        webhook.reject_unknown(&["cacheAuthorizedTTL", "cacheUnauthorizedTTL"], &[])?;
        webhook.duration_into("cacheAuthorizedTTL", &mut authorized)?;
        webhook.duration_into("cacheUnauthorizedTTL", &mut unauthorized)?;
    }
    server.authorization = match section.text("mode")? {
        None | Some("" | "Webhook") => Authorization::Webhook { authorized, unauthorized },
        Some("AlwaysAllow") => Authorization::AlwaysAllow,
        Some(other) => {
            let reason = format!("{other:?} is not Webhook or AlwaysAllow");
            return Err(Error::invalid(section.at("mode"), reason));
        }
    };
    Ok(())
}

/// The flags.
pub(super) fn flags(flags: &Flags, config: &mut Config) -> Result<(), Error> {
    let server = &mut config.server;
    if let Some(port) = flags.port {
        config.port = port;
        server.standalone = true;
    }
    server.address = flags.address.unwrap_or(server.address);
    server.read_only_port = flags.read_only_port.unwrap_or(server.read_only_port);
    if let Some(path) = &flags.client_ca_file {
        server.client_ca_file = Some(path.clone());
        server.standalone = true;
    }
    for (flag, into) in [
        (&flags.tls_cert_file, &mut server.tls_cert_file),
        (&flags.tls_private_key_file, &mut server.tls_private_key_file),
    ] {
        if let Some(path) = flag {
            *into = Some(path.clone());
        }
    }
    if let Some(mode) = flags.authorization_mode {
        server.authorization = match (mode, server.authorization) {
            (AuthorizationMode::AlwaysAllow, _) => Authorization::AlwaysAllow,
            (AuthorizationMode::Webhook, Authorization::AlwaysAllow) => Server::default().authorization,
            (AuthorizationMode::Webhook, configured) => configured,
        };
        server.standalone = true;
    }
    server.anonymous = flags.anonymous_auth.unwrap_or(server.anonymous);
    server.server_tls_bootstrap = flags.rotate_server_certificates.unwrap_or(server.server_tls_bootstrap);
    Ok(())
}

/// What one value cannot tell.
pub(super) fn check(config: &Config) -> Result<(), Error> {
    let server = &config.server;
    if server.tls_cert_file.is_some() != server.tls_private_key_file.is_some() {
        return Err(Error::invalid("tlsCertFile and tlsPrivateKeyFile", "one is of no use without the other"));
    }
    if server.tls_cert_file.is_some() && server.server_tls_bootstrap {
        return Err(Error::invalid("serverTLSBootstrap", "tlsCertFile is set: which certificate is it to be?"));
    }
    let ports = [
        ("port", config.port),
        ("readOnlyPort", server.read_only_port),
        ("healthzPort", config.healthz_port),
        ("localAPI.port", server.local_api.port),
        ("statusPagePort", server.status_page_port),
    ];
    for (index, (name, port)) in ports.iter().enumerate() {
        if let Some((other, _)) = ports[..index].iter().find(|(_, other)| *port != 0 && other == port) {
            return Err(Error::invalid(*name, format!("{port} is the {other} already")));
        }
    }
    Ok(())
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
            token_webhook: Some(TOKEN),
            authorization: Authorization::Webhook { authorized: AUTHORIZED, unauthorized: UNAUTHORIZED },
            read_only_port: 0,
            debugging_handlers: true,
            system_logs: true,
            streaming_idle: Duration::from_secs(4 * 3600),
            local_api: LocalApi { port: 0, read_only: false },
            status_page_port: 0,
            cri_socket: true,
        }
    }
}
