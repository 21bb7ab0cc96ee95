//! The node API's door: its port, and the certificate that it shows.
//!
//! | Certificate | When |
//! |---|---|
//! | `tlsCertFile`, `tlsPrivateKeyFile` | configured; read again when they change |
//! | issued by the cluster | `serverTLSBootstrap`; until it is, no handshake succeeds (as kubelet) |
//! | signed by itself | else; kept in `<cert-dir>/kubelet-self-signed.pem`, and renewed in time |

use super::auth::Guard;
use super::listen::asked_to_stop;
use super::tls::{self, Shown};
use super::{Error, Node, kubelet};
use crate::causes;
use crate::cluster::{Serving, State};
use crate::config::Config;
use crate::http::kept::Kept;
use crate::sys::{clock, fs};
use futures_util::future::BoxFuture;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Most connections at once, streams included: with a thousand that are idle the agent takes less than 20 MiB more.
const MAX_CONNECTIONS: usize = 1024;
/// Between two attempts at a port that is taken.
const AGAIN: Duration = Duration::from_secs(5);
/// Between two looks at certificates on the disk.
const LOOK: Duration = Duration::from_secs(1);
/// File of the certificate that the node has signed itself.
const OWN: &str = "kubelet-self-signed.pem";
/// How long that is good (as kubelet: a year), and how long before its end there is another one.
const LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
const EARLY: SignedDuration = SignedDuration::from_hours(60 * 24);
/// Others' clocks may be slow.
const BACKDATE: SignedDuration = SignedDuration::from_hours(1);
/// Most bytes of a file with a certificate.
const LIMIT: u64 = 1 << 20;

/// Serves the node API while it is wanted, until `shutdown` turns true: always where its port or how it authenticates is
/// configured, else while there are credentials of a cluster. A port that is taken is told and waited for; pods do not wait.
pub async fn serve_node_api(node: Arc<dyn Node>, mut shutdown: watch::Receiver<bool>) {
    let config = node.config();
    if config.port == 0 {
        return;
    }
    let guard = match Guard::new(Arc::clone(&node)) {
        Ok(guard) => Arc::new(guard),
        Err(error) => return tracing::error!(%error, "the node API is not served"),
    };
    let certificate: Arc<dyn Shown> = Arc::new(Certificate::new(node.as_ref(), &config));
    let answer: Arc<tls::Answer> = {
        let node = Arc::clone(&node);
        Arc::new(move |peer, request| Box::pin(kubelet::answer(Arc::clone(&node), Arc::clone(&guard), peer, request)))
    };
    loop {
        tokio::select! {
            () = wanted(node.as_ref(), &config, true) => {}
            () = asked_to_stop(&mut shutdown) => return,
        }
        let listener = tokio::select! {
            listener = bind(&config) => listener,
            () = asked_to_stop(&mut shutdown) => return,
        };
        tracing::info!(address = %config.server.address, port = config.port, "the node API is served");
        tokio::select! {
            () = tls::serve(&listener, MAX_CONNECTIONS, Arc::clone(&certificate), Arc::clone(&answer), shutdown.clone()) => return,
            () = wanted(node.as_ref(), &config, false) => tracing::info!("the node API is closed: the node is in no cluster"),
        }
    }
}

/// Until the node API is wanted, or is not.
async fn wanted(node: &dyn Node, config: &Config, is: bool) {
    let cluster = node.cluster();
    match (config.server.standalone, cluster) {
        (true, _) if is => {}
        (false, Some(mut handle)) => {
            let reached = handle.state.wait_for(|state| (*state != State::Alone) == is).await.is_ok();
            if !reached {
                // The agent is ending.
                std::future::pending::<()>().await;
            }
        }
        _ => std::future::pending().await,
    }
}

async fn bind(config: &Config) -> TcpListener {
    let address = SocketAddr::new(config.server.address, config.port);
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !told => {
                tracing::warn!(%address, %error, "the node API waits for its address");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Binds the port without authentication.
///
/// # Errors
/// [`Error::Listen`].
pub async fn bind_read_only(config: &Config) -> Result<TcpListener, Error> {
    let address = SocketAddr::new(config.server.address, config.server.read_only_port);
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address: address.to_string(), source })
}

/// Where the certificate comes from.
enum Origin {
    Files { chain: PathBuf, key: PathBuf, kept: Arc<Kept<Vec<u8>>> },
    Cluster(watch::Receiver<Option<Arc<Serving>>>),
    Own { path: PathBuf, name: String },
}

/// What TLS is spoken with, and what that was made from.
#[derive(Default)]
struct Made {
    looked: Option<Instant>,
    terms: Option<Arc<ServerConfig>>,
    files: Option<(Arc<Vec<u8>>, Arc<Vec<u8>>)>,
    issued: Option<Arc<Serving>>,
    /// When there is to be another one.
    due: Option<Timestamp>,
    told: bool,
}

struct Certificate {
    origin: Origin,
    made: Mutex<Made>,
}

impl Certificate {
    fn new(node: &dyn Node, config: &Config) -> Certificate {
        let server = &config.server;
        let origin = match (&server.tls_cert_file, &server.tls_private_key_file, node.cluster()) {
            (Some(chain), Some(key), _) => Origin::Files {
                chain: chain.clone(),
                key: key.clone(),
                kept: Arc::new(Kept::new(|_, content| Ok(content.to_vec()))),
            },
            (_, _, Some(handle)) if server.server_tls_bootstrap => Origin::Cluster(handle.serving),
            _ => Origin::Own { path: config.cluster.cert_dir.join(OWN), name: node.name().to_owned() },
        };
        Certificate { origin, made: Mutex::default() }
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_cluster(&self, issued: &watch::Receiver<Option<Arc<Serving>>>) -> Option<Arc<ServerConfig>> {
        let issued = issued.borrow().clone()?;
        let mut made = self.made();
        if made.issued.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &issued)) {
            let (chain, key) = issued.identity();
            match tls::terms(chain, key) {
                Ok(terms) => made.terms = Some(terms),
                Err(error) => tracing::warn!(%error, "the certificate that was issued cannot be used"),
            }
            made.issued = Some(issued);
        }
        made.terms.clone()
    }

    /// Whether it is time to look at the disk again.
    fn looks(&self) -> bool {
        let mut made = self.made();
        let looks = made.looked.is_none_or(|at| at.elapsed() >= LOOK);
        if looks {
            made.looked = Some(Instant::now());
        }
        looks
    }

    async fn of_files(&self, chain: &Path, key: &Path, kept: &Arc<Kept<Vec<u8>>>) {
        let (kept, chain, key) = (Arc::clone(kept), chain.to_owned(), key.to_owned());
        let read = tokio::task::spawn_blocking(move || {
            let get = |path: &Path| {
                kept.get(path)
                    .map_err(|error| error.to_string())?
                    .ok_or_else(|| format!("{}: there is no such file", path.display()))
            };
            Ok((get(&chain)?, get(&key)?))
        });
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        let mut made = self.made();
        let problem = match read {
            Ok((chain, key)) => {
                let same =
                    |known: &(Arc<Vec<u8>>, Arc<Vec<u8>>)| Arc::ptr_eq(&known.0, &chain) && Arc::ptr_eq(&known.1, &key);
                if made.files.as_ref().is_some_and(same) {
                    return;
                }
                let terms = terms_of(&chain, &key);
                made.files = Some((chain, key));
                match terms {
                    Ok(terms) => {
                        made.terms = Some(terms);
                        made.told = false;
                        return;
                    }
                    Err(why) => why,
                }
            }
            Err(why) => why,
        };
        // What was good before stays (as kubelet): perhaps one of the two files is new, and the other is about to be.
        if !std::mem::replace(&mut made.told, true) {
            tracing::warn!("tlsCertFile cannot be used: {problem}");
        }
    }

    async fn own(&self, path: &Path, name: &str) {
        let now = clock::for_certificates();
        if self.made().due.is_some_and(|due| now < due) {
            return;
        }
        let (path, name) = (path.to_owned(), name.to_owned());
        let found = tokio::task::spawn_blocking(move || own(&path, &name, now)).await;
        let mut made = self.made();
        match found.unwrap_or_else(|error| Err(error.to_string())) {
            Ok((terms, due)) => {
                made.terms = Some(terms);
                made.due = Some(due);
            }
            Err(problem) => tracing::warn!("there is no certificate for the node API: {problem}"),
        }
    }
}

impl Shown for Certificate {
    fn terms(&self) -> BoxFuture<'_, Option<Arc<ServerConfig>>> {
        Box::pin(async move {
            match &self.origin {
                Origin::Cluster(issued) => return self.of_cluster(issued),
                Origin::Files { chain, key, kept } if self.looks() => self.of_files(chain, key, kept).await,
                Origin::Own { path, name } if self.looks() => self.own(path, name).await,
                _ => {}
            }
            self.made().terms.clone()
        })
    }
}

fn terms_of(chain: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, String> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|error| format!("not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("no certificate in PEM form".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "no private key in PEM form".to_owned())?;
    tls::terms(chain, key).map_err(|error| causes::chain(&error))
}

/// The certificate that the node has signed itself, a new one where there is none that is good for long enough; and when
/// there is to be another one. Blocks.
fn own(path: &Path, name: &str, now: Timestamp) -> Result<(Arc<ServerConfig>, Timestamp), String> {
    if let Ok(kept) = fs::read_limited(path, LIMIT)
        && let Some(due) = due(&kept, name)
        && now < due
        && let Ok(terms) = terms_of(&kept, &kept)
    {
        return Ok((terms, due));
    }
    let pem = sign(name, now).map_err(|error| error.to_string())?;
    let terms = terms_of(pem.as_bytes(), pem.as_bytes())?;
    let write = || -> io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")), 0o700)?;
        fs::atomic_write(path, pem.as_bytes(), 0o600)
    };
    if let Err(error) = write() {
        // It is as good as one on the disk, until the next start.
        tracing::warn!(path = %path.display(), %error, "cannot keep the certificate of the node API");
    }
    Ok((terms, due(pem.as_bytes(), name).unwrap_or(now)))
}

/// A certificate for `name`, as the kubelet's, and its key.
fn sign(name: &str, now: Timestamp) -> Result<String, rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{name}@{}", now.as_second()));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let day = |at: Timestamp| {
        let date = at.to_zoned(TimeZone::UTC).date();
        rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = day(now.checked_sub(BACKDATE).unwrap_or(now));
    params.not_after = day(now.checked_add(LIFE).unwrap_or(now));
    let certificate = params.self_signed(&key)?;
    Ok(certificate.pem() + &key.serialize_pem())
}

/// When a certificate in PEM for `name` is to be replaced; `None`: it is none.
fn due(pem: &[u8], name: &str) -> Option<Timestamp> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, read) = X509Certificate::from_der(&der).ok()?;
    let names = read.subject_alternative_name().ok()??;
    let is_for = |of: &x509_parser::prelude::GeneralName<'_>| matches!(of, x509_parser::prelude::GeneralName::DNSName(of) if *of == name);
    let ends = Timestamp::from_second(read.validity().not_after.timestamp()).ok()?;
    names.value.general_names.iter().any(is_for).then(|| ends.checked_sub(EARLY).unwrap_or(ends))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_own_certificate_is_kept_until_it_is_time_for_another() {
        let dir = std::env::temp_dir().join(format!("coracle-own-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let path = dir.join("pki").join(OWN);
        let read = || std::fs::read_to_string(&path).unwrap();
        let (_, due) = own(&path, "edge-1", at("2026-11-22T10:00:00Z")).unwrap();
        assert!(due > at("2027-09-20T00:00:00Z") && due < at("2027-09-26T00:00:00Z"), "{due}");
        let first = read();
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        own(&path, "edge-1", at("2027-09-01T00:00:00Z")).unwrap();
        assert_eq!(read(), first);
        own(&path, "edge-1", due).unwrap();
        let second = read();
        assert_ne!(second, first);
        own(&path, "edge-2", due).unwrap();
        assert_ne!(read(), second);
        // What is broken is replaced, and where nothing can be kept it is made all the same.
        std::fs::write(&path, "x").unwrap();
        own(&path, "edge-2", due).unwrap();
        assert!(read().contains("BEGIN CERTIFICATE"));
        own(Path::new("/proc/none/own.pem"), "edge-2", due).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_pair_that_does_not_fit_is_refused() {
        let (one, two) =
            (sign("a", at("2026-11-22T10:00:00Z")).unwrap(), sign("a", at("2026-11-22T10:00:00Z")).unwrap());
        terms_of(one.as_bytes(), one.as_bytes()).unwrap();
        assert!(terms_of(one.as_bytes(), two.as_bytes()).is_err());
        assert!(terms_of(b"", one.as_bytes()).is_err() && terms_of(one.as_bytes(), b"").is_err());
    }
}
