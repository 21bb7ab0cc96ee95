//! A registry for the tests: Debian's `docker-registry` on a free port of the loopback, filled by `skopeo`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use super::harness::{PATIENCE, eventually, output, secs};

/// Who may use a registry that asks.
pub const USER: &str = "edge";
pub const PASSWORD: &str = "s3cret:with a colon";
/// What [`Auth::Token`] takes in place of the two.
pub const IDENTITY: &str = "identity-token-of-edge";

/// What a registry asks of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Nothing: plain HTTP.
    Plain,
    /// To trust [`Registry::ca`].
    Tls,
    /// [`USER`] and [`PASSWORD`] with every request; plain HTTP.
    Basic,
    /// A token of a server of its own, which asks for [`USER`] and [`PASSWORD`]; plain HTTP.
    Token,
}

/// A registry that runs; ends with this.
pub struct Registry {
    child: Child,
    port: u16,
    dir: PathBuf,
    auth: Auth,
    tokens: Option<TokenServer>,
}

impl Registry {
    #[track_caller]
    pub fn start(auth: Auth) -> Registry {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!("coracle-registry-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("data")).expect("folder of the registry");
        let tokens = (auth == Auth::Token).then(|| TokenServer::start(&dir));
        // Between the choice of a port and its use somebody else may take it.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
            let child = spawn(&dir, port, auth, tokens.as_ref());
            let mut registry = Registry { child, port, dir: dir.clone(), auth, tokens: None };
            if registry.answers() {
                registry.tokens = tokens;
                return registry;
            }
            // Only the process: the folder is used again.
            registry.stop();
            registry.dir = PathBuf::new();
        }
        panic!("docker-registry does not start: {}", fs::read_to_string(dir.join("log")).unwrap_or_default());
    }

    /// Whether it listens, before it ends.
    fn answers(&mut self) -> bool {
        let mut up = false;
        eventually("docker-registry listens or ends", PATIENCE, || {
            up = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            up || self.child.try_wait().expect("wait for the registry").is_some()
        });
        // Somebody else's listener is not ours.
        thread::sleep(std::time::Duration::from_millis(50));
        up && self.child.try_wait().expect("wait for the registry").is_none()
    }

    /// `127.0.0.1:PORT`: the host part of references.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The full reference of an image in here.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address())
    }

    /// PEM of the certificate authority of [`Auth::Tls`].
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// How many lines of the log hold `text`: `GET /v2/app/blobs/` counts downloads.
    pub fn requests(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains("\" ") && line.contains(text)).count()
    }

    /// How many tokens its token server gave.
    pub fn tokens(&self) -> usize {
        self.tokens.as_ref().map_or(0, |tokens| tokens.given.load(Ordering::Relaxed))
    }

    /// Where it keeps blobs and manifests, for tests that damage them.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Pushes the image of a docker-archive as `name` (`team/app:1`).
    #[track_caller]
    pub fn push(&self, archive: &Path, name: &str) {
        self.push_with(&format!("docker-archive:{}", archive.display()), name, &[]);
    }

    /// Pushes from any of skopeo's transports, with more of its options (`--format oci`, `--all`).
    #[track_caller]
    pub fn push_with(&self, from: &str, name: &str, options: &[&str]) {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]).args(options);
        match self.auth {
            Auth::Basic | Auth::Token => drop(command.arg(format!("--dest-creds={USER}:{PASSWORD}"))),
            Auth::Plain | Auth::Tls => drop(command.arg("--dest-no-creds")),
        }
        command.arg(from).arg(format!("docker://{}", self.reference(name)));
        output(&mut command, b"", secs(120)).ok();
    }

    /// Ends it; its data stay until it is dropped.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after [`Registry::stop`], at the same address with the same data.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.child = spawn(&self.dir, self.port, self.auth, self.tokens.as_ref());
        assert!(self.answers(), "docker-registry does not start again: {}", self.log());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
        if !self.dir.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn spawn(dir: &Path, port: u16, auth: Auth, tokens: Option<&TokenServer>) -> Child {
    let mut config = json!({
        "version": 0.1,
        "log": { "level": "info", "accesslog": { "disabled": false } },
        "storage": {
            "filesystem": { "rootdirectory": dir.join("data") },
            "delete": { "enabled": true },
        },
        "http": { "addr": format!("127.0.0.1:{port}") },
    });
    match auth {
        Auth::Plain => {}
        Auth::Tls => config["http"]["tls"] = certificates(dir),
        Auth::Basic => {
            let file = output(Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]), b"", secs(30)).ok();
            fs::write(dir.join("htpasswd"), file).expect("htpasswd");
            config["auth"] = json!({ "htpasswd": { "realm": "the basics", "path": dir.join("htpasswd") } });
        }
        Auth::Token => {
            let port = tokens.expect("a token server").port;
            config["auth"] = json!({ "token": {
                "realm": format!("http://127.0.0.1:{port}/token"),
                "service": "coracle test",
                "issuer": "coracle test tokens",
                "rootcertbundle": dir.join("tokens.pem"),
            }});
        }
    }
    // JSON is YAML.
    fs::write(dir.join("config.yml"), config.to_string()).expect("configuration of the registry");
    let log = fs::File::options().create(true).append(true).open(dir.join("log")).expect("log of the registry");
    Command::new("docker-registry")
        .arg("serve")
        .arg(dir.join("config.yml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .spawn()
        .expect("docker-registry (Debian: docker-registry)")
}

/// A certificate for 127.0.0.1 and localhost by a new authority, once per folder.
fn certificates(dir: &Path) -> Value {
    let files = json!({ "certificate": dir.join("server.pem"), "key": dir.join("server.key") });
    if dir.join("server.key").exists() {
        return files;
    }
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).expect("parameters");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "coracle test authority");
    let authority_key = rcgen::KeyPair::generate().expect("key");
    let ca = authority.self_signed(&authority_key).expect("certificate");
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let server = rcgen::CertificateParams::new(names).expect("parameters");
    let key = rcgen::KeyPair::generate().expect("key");
    let certificate = server.signed_by(&key, &issuer).expect("certificate");
    fs::write(dir.join("ca.pem"), ca.pem()).expect("certificate");
    fs::write(dir.join("server.pem"), certificate.pem()).expect("certificate");
    fs::write(dir.join("server.key"), key.serialize_pem()).expect("key");
    files
}

/// Gives tokens by docker's protocol, both ways of it, to who knows the password or the identity token.
struct TokenServer {
    port: u16,
    given: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TokenServer {
    fn start(dir: &Path) -> TokenServer {
        let key = rcgen::KeyPair::generate().expect("key");
        let params = rcgen::CertificateParams::new(vec!["tokens".to_owned()]).expect("parameters");
        let certificate = params.self_signed(&key).expect("certificate");
        fs::write(dir.join("tokens.pem"), certificate.pem()).expect("certificate");
        let signer = Signer {
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der(), &SystemRandom::new())
                .expect("key"),
            certificate: STANDARD.encode(certificate.der()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("address").port();
        let (given, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, ended) = (given.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                if signer.answer(&stream).unwrap_or(false) {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        TokenServer { port, given, stop, thread: Some(thread) }
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Signer {
    key: EcdsaKeyPair,
    /// DER, in base64.
    certificate: String,
}

impl Signer {
    /// Answers one request; true: with a token.
    fn answer(&self, stream: &TcpStream) -> std::io::Result<bool> {
        stream.set_read_timeout(Some(secs(10)))?;
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let header = |name: &str| {
            let found = head.iter().find_map(|line| {
                line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
            });
            found.unwrap_or_default().to_owned()
        };
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let request = head.first().cloned().unwrap_or_default();
        let posted = request.starts_with("POST ");
        let query = match posted {
            true => String::from_utf8_lossy(&body).into_owned(),
            false => request.split([' ', '?']).nth(2).unwrap_or_default().to_owned(),
        };
        let fields = form(&query);
        let field = |name: &str| fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
        let known = match posted {
            true => {
                (field("grant_type"), field("refresh_token")) == ("refresh_token", IDENTITY)
                    || (field("username"), field("password")) == (USER, PASSWORD)
            }
            false => header("authorization") == format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}"))),
        };
        let (status, content) = match known && field("service") == "coracle test" {
            true => {
                let scopes = fields.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
                let name = if posted { "access_token" } else { "token" };
                ("200 OK", json!({ name: self.token(scopes), "expires_in": 300 }))
            }
            false => ("401 Unauthorized", json!({ "details": "who are you?" })),
        };
        let content = content.to_string();
        let mut writer = stream;
        write!(
            writer,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{content}",
            content.len()
        )?;
        Ok(known)
    }

    fn token<'a>(&self, scopes: impl Iterator<Item = &'a str>) -> String {
        let access: Vec<Value> = scopes
            .filter_map(|scope| {
                let (kind, rest) = scope.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                Some(json!({ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }))
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock").as_secs();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": "coracle test tokens", "sub": USER, "aud": "coracle test", "jti": "1",
            "iat": now, "nbf": now - 60, "exp": now + 300, "access": access,
        });
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The fields of a query or a form.
fn form(text: &str) -> Vec<(String, String)> {
    text.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (decode(key), decode(value))).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
