//! A web server for the tests that plays what servers do on bad days, on a free port of the loopback.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::harness::secs;

/// What a path answers.
#[derive(Clone)]
pub enum Play {
    /// 200 with this body, and 304 to who knows it by its ETag.
    Body(Vec<u8>),
    /// The same with more header lines, and without an ETag.
    With(&'static str, Vec<u8>),
    /// These bytes, then the connection ends.
    Raw(Vec<u8>),
    /// Nothing, for ever.
    Loris,
    /// 200, and a byte now and then, for ever.
    Drip,
    /// 200, and as many bytes as are taken.
    Flood,
}

impl Play {
    /// An answer of a status without more.
    pub fn status(line: &str, more: &str) -> Play {
        Play::Raw(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n{more}\r\n").into_bytes())
    }
}

/// What was asked: path, and headers in lower case.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub headers: HashMap<String, String>,
}

#[derive(Default)]
struct Shared {
    plays: Mutex<HashMap<String, Play>>,
    asked: Mutex<Vec<Asked>>,
    ended: AtomicBool,
}

/// Runs until it is stopped or dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    tls: Option<Arc<ServerConfig>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// By plain HTTP.
    pub fn plain() -> Server {
        Server::start("127.0.0.1:0".parse().expect("address"), Arc::default(), None)
    }

    /// By TLS.
    pub fn tls(config: ServerConfig) -> Server {
        Server::start("127.0.0.1:0".parse().expect("address"), Arc::default(), Some(Arc::new(config)))
    }

    fn start(address: SocketAddr, shared: Arc<Shared>, tls: Option<Arc<ServerConfig>>) -> Server {
        let (address, thread) = listen(address, &shared, tls.clone());
        Server { address, shared, tls, thread: Some(thread) }
    }

    /// Nobody listens any more.
    pub fn stop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes it.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }

    /// At the same address as before, with the same plays.
    pub fn restart(&mut self) {
        self.stop();
        self.thread = Some(listen(self.address, &self.shared, self.tls.clone()).1);
    }

    pub fn url(&self, path: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.address)
    }

    pub fn play(&self, path: &str, play: Play) {
        self.shared.plays.lock().expect("plays").insert(path.to_owned(), play);
    }

    /// What was asked for at a path so far.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.shared.asked.lock().expect("asked").iter().filter(|asked| asked.path == path).cloned().collect()
    }
}

/// Serves on a thread of its own, until it has ended.
fn listen(address: SocketAddr, shared: &Arc<Shared>, tls: Option<Arc<ServerConfig>>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).expect("a free port");
    let address = listener.local_addr().expect("address");
    shared.ended.store(false, Ordering::SeqCst);
    let (own, config) = (Arc::clone(shared), tls);
    let thread = thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if own.ended.load(Ordering::SeqCst) {
                return;
            }
            let (own, config) = (Arc::clone(&own), config.clone());
            thread::spawn(move || {
                // Who hangs up in the middle is what the tests are about.
                let _ = stream.set_read_timeout(Some(secs(60)));
                let _ = match config {
                    Some(config) => {
                        let session = ServerConnection::new(config).expect("session");
                        serve(&own, StreamOwned::new(session, stream))
                    }
                    None => serve(&own, stream),
                };
            });
        }
    });
    (address, thread)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve<S: Read + Write>(shared: &Shared, stream: S) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
    }
    let known = headers.get("if-none-match").cloned();
    let play = shared.plays.lock().expect("plays").get(&path).cloned();
    shared.asked.lock().expect("asked").push(Asked { path, headers });
    let stream = reader.get_mut();
    let nap = || {
        thread::sleep(Duration::from_millis(200));
        !shared.ended.load(Ordering::SeqCst)
    };
    match play {
        None => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        Some(Play::Body(body)) => {
            let tag =
                format!("\"{:x}\"", body.iter().fold(7_u64, |sum, b| sum.wrapping_mul(31).wrapping_add((*b).into())));
            if known.as_ref() == Some(&tag) {
                write!(stream, "HTTP/1.1 304 Not Modified\r\nETag: {tag}\r\n\r\n")?;
            } else {
                write!(stream, "HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {}\r\n\r\n", body.len())?;
                stream.write_all(&body)?;
            }
        }
        Some(Play::With(more, body)) => {
            write!(stream, "HTTP/1.1 200 OK\r\n{more}Content-Length: {}\r\n\r\n", body.len())?;
            stream.write_all(&body)?;
        }
        Some(Play::Raw(bytes)) => stream.write_all(&bytes)?,
        Some(Play::Loris) => while nap() {},
        Some(Play::Drip) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")?;
            while nap() {
                stream.write_all(b"#")?;
                stream.flush()?;
            }
        }
        Some(Play::Flood) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            let chunk = [b"10000\r\n".to_vec(), vec![b'#'; 0x10000], b"\r\n".to_vec()].concat();
            while !shared.ended.load(Ordering::SeqCst) {
                stream.write_all(&chunk)?;
            }
        }
    }
    stream.flush()
}

/// A certificate authority with files in a folder.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().expect("key");
        let pem = params.self_signed(&key).expect("certificate").pem();
        Authority { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// Writes its certificate.
    pub fn write(&self, file: &Path) {
        fs::write(file, &self.pem).expect("certificate");
    }

    /// Certificate and key for these names.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        self.issue_for(names, |_| ())
    }

    fn issue_for(&self, names: &[&str], change: fn(&mut rcgen::CertificateParams)) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = rcgen::KeyPair::generate().expect("key");
        // They are valid from 1975 to 4096.
        let mut params = rcgen::CertificateParams::new(names).expect("parameters");
        change(&mut params);
        (params.signed_by(&key, &self.issuer).expect("certificate").pem(), key.serialize_pem())
    }

    /// For a server on the loopback that shows its clients a certificate of this authority, and wants one of `clients`.
    pub fn server(&self, clients: Option<&Authority>) -> ServerConfig {
        self.server_with(clients, |_| ())
    }

    /// The same, with a certificate that was valid from 1975 to 2019.
    pub fn expired_server(&self) -> ServerConfig {
        self.server_with(None, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }

    fn server_with(&self, clients: Option<&Authority>, change: fn(&mut rcgen::CertificateParams)) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).expect("PEM")).expect("an authority");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("verifier"))
            }
        };
        let (certificate, key) = self.issue_for(&["127.0.0.1", "localhost"], change);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
        builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM")).expect("key")
    }
}
