//! Who speaks with servers: TLS, proxies, how long to wait.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::rustls::RootCertStore;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, TcpConnector};

use super::kept::{self, Stamp};
use super::proxy::{self, Proxies};
use super::tls::{self, Client, Tls, Trust};
use super::{Environment, Unusable, roots};
use crate::sys;

/// For finding the host's address.
const RESOLVE: Duration = Duration::from_secs(15);
/// For the connection, by way of a proxy and with TLS.
const CONNECT: Duration = Duration::from_secs(30);
/// For the head of an answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Between two pieces of an answer, or of a request. The whole of a large layer may take hours.
const STALL: Duration = Duration::from_secs(60);

/// Most connections that are kept for later, and for how long: an idle agent keeps nothing.
const IDLE_CONNECTIONS: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(30);

/// Most agents that are kept; a machine talks to a few servers.
const AGENTS: usize = 32;

/// A client certificate with its chain, and its key; PEM files, perhaps the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientPair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// How to be sure of a place, and the place of us.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TlsSettings {
    /// PEM files with authorities besides the machine's.
    pub ca: Vec<PathBuf>,
    /// Whether those of `ca` are trusted alone, where there are any.
    pub ca_alone: bool,
    pub clients: Vec<ClientPair>,
    /// Take whatever certificate is shown.
    pub skip_verify: bool,
}

/// What two agents differ in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    tls: TlsSettings,
    /// Whether plain HTTP is never spoken.
    https_only: bool,
    /// Whether TLS is spoken to nobody, not even to a proxy: hundreds of authorities need not be read then.
    plain: bool,
    /// Variable with the URL of the proxy.
    proxy: Option<&'static str>,
    /// States of the files that `tls` names.
    stamps: Vec<Option<Stamp>>,
}

/// Makes connections to servers, and keeps them open for a while. Blocking; shared between threads.
#[derive(Debug)]
pub struct Connections {
    environment: Environment,
    proxies: Proxies,
    agents: Mutex<HashMap<Key, ureq::Agent>>,
}

impl Connections {
    pub fn new(environment: Environment) -> Connections {
        Connections { proxies: Proxies::of(&environment), environment, agents: Mutex::default() }
    }

    /// For requests to the server at an authority (`host[:port]`), by plain HTTP or TLS; `https_only`: never by anything
    /// but TLS, whatever is asked. Statuses are no errors, redirects are not followed, and the time for a whole body is
    /// not limited, only for each piece.
    ///
    /// # Errors
    /// For certificates, keys or proxies that cannot be used.
    pub fn agent(
        &self,
        tls: TlsSettings,
        https_only: bool,
        plain: bool,
        authority: &str,
    ) -> Result<ureq::Agent, Unusable> {
        let proxy = self.proxies.choose(plain, authority);
        let files = tls.ca.iter().chain(tls.clients.iter().flat_map(|pair| [&pair.certificate, &pair.key]));
        let stamps = files.map(|file| Stamp::of(file)).collect::<Result<_, _>>()?;
        let all_plain = plain && !https_only && proxy.is_none_or(|(_, url)| !url.starts_with("https:"));
        let key = Key { tls, https_only, plain: all_plain, proxy: proxy.map(|(variable, _)| variable), stamps };
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let proxy = proxy.map(|(variable, url)| proxy::parse(variable, url)).transpose()?;
        let agent = self.build(&key, proxy)?;
        if agents.len() >= AGENTS {
            agents.clear();
        }
        // Those of the same place with older files are of no use any more.
        agents.retain(|other, _| other.tls != key.tls || other.stamps == key.stamps);
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    /// How many agents are kept, and may be at most.
    #[cfg(test)]
    pub fn kept(&self) -> (usize, usize) {
        (self.agents.lock().unwrap_or_else(PoisonError::into_inner).len(), AGENTS)
    }

    fn build(&self, key: &Key, proxy: Option<ureq::Proxy>) -> Result<ureq::Agent, Unusable> {
        let trust = match key.tls.skip_verify {
            true => Trust::All,
            false if key.plain => Trust::Roots(RootCertStore::empty()),
            false => Trust::Roots(self.roots(&key.tls)?),
        };
        // rustls shows one certificate: the first, as it would be with a server that takes any.
        let pair = key.tls.clients.first();
        let tls = tls::config(trust, pair.map(client).transpose()?).map_err(|e| match pair {
            Some(pair) => damaged(&pair.key, format!("no key for {}: {e}", pair.certificate.display())),
            None => damaged(Path::new("TLS"), e.to_string()),
        })?;
        let config = ureq::Agent::config_builder()
            .proxy(proxy)
            .https_only(key.https_only)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("")
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_age(IDLE_TIME)
            .timeout_resolve(Some(RESOLVE))
            .timeout_connect(Some(CONNECT))
            .timeout_send_request(Some(STALL))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(STALL))
            .timeout_per_write(Some(STALL));
        let chain = ().chain(ConnectProxyConnector::default()).chain(TcpConnector::default()).chain(Tls(Arc::new(tls)));
        Ok(ureq::Agent::with_parts(config.build(), chain, DefaultResolver::default()))
    }

    fn roots(&self, tls: &TlsSettings) -> Result<RootCertStore, Unusable> {
        let alone = tls.ca_alone && !tls.ca.is_empty();
        let machine = if alone { None } else { roots::of_machine(&self.environment)? };
        if tls.ca.is_empty() {
            return Ok(machine.unwrap_or_else(roots::built_in));
        }
        let mut all = machine.unwrap_or_else(RootCertStore::empty);
        for file in &tls.ca {
            roots::of_file(file, &mut all)?;
        }
        Ok(all)
    }
}

/// A client certificate and its key.
fn client(pair: &ClientPair) -> Result<Client, Unusable> {
    let chain = roots::certificates(&pair.certificate)?;
    let content = sys::fs::read_limited(&pair.key, kept::LIMIT).map_err(|e| kept::unreadable(&pair.key, &e))?;
    let key = PrivateKeyDer::from_pem_slice(&content).map_err(|_| {
        let encrypted = content.windows(9).any(|w| w == b"ENCRYPTED");
        let reason =
            if encrypted { "the key is encrypted: there is nobody to ask" } else { "no private key in PEM form" };
        damaged(&pair.key, reason.into())
    })?;
    Ok((chain, key))
}

fn damaged(path: &Path, reason: String) -> Unusable {
    Unusable { path: path.to_owned(), reason }
}
