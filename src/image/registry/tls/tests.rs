//! Agents against a real TLS server, a plain one and a proxy, on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::super::hosts::{Capabilities, ClientPair};
use super::super::scratch::Scratch;
use super::*;
use crate::http::Environment;
use crate::http::place::Place;

/// An authority, and PEM files with what it signed.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key.
    fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        (params.signed_by(&key, &*self.0).unwrap().pem(), key.serialize_pem())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }
}

/// Answers every request on every connection, until the test ends.
fn serve<S: Read + Write>(mut connect: impl FnMut(TcpStream) -> S + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(connect(stream));
            let mut request = String::new();
            while matches!(reader.read_line(&mut request), Ok(length) if length > 2) {}
            if request.starts_with("GET ") {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
                _ = reader.get_mut().write_all(answer.as_bytes());
            } else if !request.is_empty() {
                // As servers say to a TLS hello on their plain port.
                _ = reader.get_mut().write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            }
            _ = reader.get_mut().flush();
        }
    });
    address
}

fn serve_tls(authority: &Authority, clients: Option<&Authority>) -> String {
    let (certificate, key) = authority.issue(&["127.0.0.1", "localhost", "registry.example"]);
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(clients) => config.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(clients.roots(), provider).build().unwrap(),
        ),
    };
    let chain = rustls_pki_types::CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = Arc::new(config.with_single_cert(chain, key).unwrap());
    serve(move |stream| StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream))
}

fn endpoint(base: &str, tls: TlsSettings) -> Endpoint {
    Endpoint {
        base: format!("{base}/v2"),
        repository: "app".into(),
        tls,
        insecure: false,
        headers: Vec::new(),
        host: "host.example".into(),
        namespace: None,
        capabilities: Capabilities { pull: true, resolve: true },
        dial_timeout: None,
    }
}

fn connections(variables: Environment) -> Connections {
    Connections::new(&Settings { environment: variables, ..Settings::default() })
}

/// Status of the answer, or what went wrong.
fn ask(agent: &ureq::Agent, base: &str) -> Result<u16, ureq::Error> {
    let mut answer = agent.get(format!("{base}/v2/")).call()?;
    assert_eq!(answer.body_mut().read_to_string()?, "ok");
    Ok(answer.status().as_u16())
}

fn with_ca(file: &Path) -> TlsSettings {
    TlsSettings { ca: vec![file.to_owned()], ..TlsSettings::default() }
}

#[test]
fn a_server_is_trusted_by_the_right_authority_alone() {
    let scratch = Scratch::new();
    let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
    let ca = scratch.write("ca.crt", format!("A comment\n{}{}", wrong.pem(), right.pem()));
    let wrong = scratch.write("wrong.crt", wrong.pem());
    let base = format!("https://{}", serve_tls(&right, None));
    let connections = connections(Environment::default());
    let try_with = |tls: TlsSettings| ask(&connections.agent(&endpoint(&base, tls)).unwrap(), &base);

    assert_eq!(try_with(with_ca(&ca)).unwrap(), 200);
    for tls in [with_ca(&wrong), TlsSettings::default()] {
        let error = try_with(tls).unwrap_err();
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
        assert!(!may_be_plain(&error), "a certificate that is not trusted must never lead to plain HTTP");
    }
    assert_eq!(try_with(TlsSettings { skip_verify: true, ..TlsSettings::default() }).unwrap(), 200);

    // Another name of the same server is not in its certificate.
    let other = base.replace("127.0.0.1", "127.0.0.2");
    assert!(ask(&connections.agent(&endpoint(&base, with_ca(&ca))).unwrap(), &other).is_err());

    // The authority changes in place.
    scratch.write("wrong.crt", right.pem());
    assert_eq!(try_with(with_ca(&wrong)).unwrap(), 200);

    // One of the whole machine.
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        let place = if name == "SSL_CERT_FILE" { ca.as_path() } else { scratch.path() };
        let machine = self::connections(Environment::from([(name, place.to_str().unwrap())]));
        let agent = machine.agent(&endpoint(&base, TlsSettings::default())).unwrap();
        assert_eq!(ask(&agent, &base).unwrap(), 200);
    }
}

#[test]
fn a_server_may_ask_for_a_client_certificate() {
    let scratch = Scratch::new();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let base = format!("https://{}", serve_tls(&servers, Some(&clients)));
    let ca = scratch.write("ca.crt", servers.pem());
    let (certificate, key) = clients.issue(&["node"]);
    let both = scratch.write("both.pem", format!("{key}{certificate}"));
    let (_, other_key) = clients.issue(&["other"]);
    let pair =
        ClientPair { certificate: scratch.write("client.cert", &certificate), key: scratch.write("client.key", &key) };
    let connections = connections(Environment::default());
    let with = |pairs: &[&ClientPair]| {
        let tls = TlsSettings { clients: pairs.iter().copied().cloned().collect(), ..with_ca(&ca) };
        endpoint(&base, tls)
    };

    assert_eq!(ask(&connections.agent(&with(&[&pair])).unwrap(), &base).unwrap(), 200);
    let in_one = ClientPair { certificate: both.clone(), key: both };
    assert_eq!(ask(&connections.agent(&with(&[&in_one])).unwrap(), &base).unwrap(), 200);
    let error = ask(&connections.agent(&with(&[])).unwrap(), &base).unwrap_err();
    assert!(!may_be_plain(&error), "{error}");

    // The same place by another URL of its own sees it, another host does not.
    let own = with(&[&pair]);
    let led = |target: &str| connections.agent_for(&own, None, &Place::of(target).unwrap()).unwrap();
    assert_eq!(ask(&led(&format!("{base}/token")), &base).unwrap(), 200);
    assert!(ask(&led("https://localhost:1/"), &base).is_err());

    // What cannot be used is told with the file, before anything is sent; ureq would panic.
    for (name, content, reason) in [
        ("other.key", other_key, "no key for"),
        ("empty.key", String::new(), "no private key in PEM form"),
        ("odd.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned(), "no key for"),
        (
            "locked.key",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n".to_owned(),
            "the key is encrypted",
        ),
    ] {
        let key = scratch.write(name, content);
        let pair = ClientPair { certificate: pair.certificate.clone(), key };
        let error = connections.agent(&with(&[&pair])).unwrap_err().to_string();
        assert!(scratch.blank(&error).starts_with(&format!("/{name}: {reason}")), "{error}");
    }
}

#[test]
fn a_place_that_a_registry_leads_to_is_trusted_for_what_it_is() {
    let scratch = Scratch::new();
    let (right, wrong) = (Authority::new("right"), Authority::new("wrong"));
    let (ca, wrong) = (scratch.write("ca.crt", right.pem()), scratch.write("wrong.crt", wrong.pem()));
    let base = format!("https://{}", serve_tls(&right, None));
    let connections = connections(Environment::default());
    let target = Place::of(&base).unwrap();
    let skip = || TlsSettings { skip_verify: true, ..TlsSettings::default() };
    let led = |from: &str, tls: TlsSettings, named: Option<&Endpoint>| {
        let agent = connections.agent_for(&endpoint(from, tls), named, &target).unwrap();
        ask(&agent, &base).map_err(|e| e.to_string())
    };
    // Nobody vouches for another host by not looking at his own certificate; another port is the same host.
    let refused = led("https://registry.example", skip(), None).unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    assert_eq!(led("https://127.0.0.1:1", skip(), None), Ok(200));
    // An authority is one wherever it leads.
    assert_eq!(led("https://registry.example", with_ca(&ca), None), Ok(200));
    assert!(led("https://registry.example", with_ca(&wrong), None).is_err());
    // What the settings say of the place itself.
    assert_eq!(led("https://registry.example", with_ca(&wrong), Some(&endpoint(&base, with_ca(&ca)))), Ok(200));
    assert_eq!(led("https://registry.example", TlsSettings::default(), Some(&endpoint(&base, skip()))), Ok(200));
}

#[test]
fn damaged_authorities_are_told_with_their_file() {
    let scratch = Scratch::new();
    let connections = connections(Environment::default());
    let told = |file: &Path| {
        let error = connections.agent(&endpoint("https://host.example", with_ca(file))).unwrap_err();
        scratch.blank(&error.to_string())
    };
    assert!(told(&scratch.path().join("absent.crt")).starts_with("/absent.crt: cannot read: No such file"));
    assert_eq!(told(&scratch.write("empty.crt", "")), "/empty.crt: no certificate in PEM form");
    let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(told(&scratch.write("odd.crt", odd)).starts_with("/odd.crt: certificate 1 is not one of an authority"));
    assert!(told(&scratch.write("cut.crt", &odd[..30])).starts_with("/cut.crt: "));
    assert!(told(scratch.path()).ends_with(": cannot read: not a regular file"));

    let machine = self::connections(Environment::from([("SSL_CERT_FILE", "/nonexistent/ca.pem")]));
    let error = machine.agent(&endpoint("https://host.example", TlsSettings::default())).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/ca.pem: cannot read: "), "{error}");
}

#[test]
fn plain_http_is_spoken_only_where_allowed() {
    let address = serve(|stream| stream);
    let (secure, plain) = (format!("https://{address}"), format!("http://{address}"));
    let connections = connections(Environment::default());
    let skip = TlsSettings { skip_verify: true, ..TlsSettings::default() };
    let insecure = Endpoint { insecure: true, ..endpoint(&secure, skip.clone()) };

    let error = ask(&connections.agent(&insecure).unwrap(), &secure).unwrap_err();
    assert!(may_be_plain(&error), "{error:?}");
    let fallback = insecure.plain().unwrap();
    assert_eq!(ask(&connections.agent(&fallback).unwrap(), &plain).unwrap(), 200);
    let target = Place::of(&plain).unwrap();
    assert_eq!(ask(&connections.agent_for(&fallback, None, &target).unwrap(), &plain).unwrap(), 200);

    // An endpoint by TLS alone, and who leads it elsewhere.
    let strict = endpoint(&secure, skip);
    for agent in [&insecure, &strict]
        .map(|endpoint| connections.agent_for(endpoint, None, &target).unwrap())
        .into_iter()
        .chain([connections.agent(&strict).unwrap()])
    {
        assert!(matches!(ask(&agent, &plain), Err(ureq::Error::RequireHttpsOnly(_))));
    }

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let base = format!("https://{closed}");
    let error = ask(&connections.agent(&endpoint(&base, TlsSettings::default())).unwrap(), &base).unwrap_err();
    assert!(may_be_plain(&error), "{error:?}");
}

/// A proxy that sends every connection to one address, and tells what was asked of it.
fn serve_proxy(target: String) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut request = String::new();
            while matches!(reader.read_line(&mut request), Ok(length) if length > 2) {}
            tell.send(request).unwrap();
            let (mut near, mut far) = (stream, TcpStream::connect(&target).unwrap());
            near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut back, mut to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || {
                _ = std::io::copy(&mut back, &mut to);
                _ = to.shutdown(std::net::Shutdown::Both);
            });
            _ = std::io::copy(&mut near, &mut far);
        }
    });
    (address, told)
}

#[test]
fn a_proxy_is_asked_for_what_is_not_excepted() {
    let scratch = Scratch::new();
    let authority = Authority::new("right");
    let ca = scratch.write("ca.crt", authority.pem());
    let server = serve_tls(&authority, None);
    let (proxy, told) = serve_proxy(server.clone());
    let url = format!("http://user:pa%40ss@{proxy}");
    let connections = connections(Environment::from([("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "direct.example")]));

    // The proxy finds the host, not this machine: there is no such name.
    let base = "https://registry.example";
    assert_eq!(ask(&connections.agent(&endpoint(base, with_ca(&ca))).unwrap(), base).unwrap(), 200);
    let asked = told.recv().unwrap();
    assert!(asked.starts_with("CONNECT registry.example:443 "), "{asked}");
    assert!(asked.to_ascii_lowercase().contains("proxy-authorization: basic"), "{asked}");

    // This machine itself is asked directly.
    let base = format!("https://{server}");
    assert_eq!(ask(&connections.agent(&endpoint(&base, with_ca(&ca))).unwrap(), &base).unwrap(), 200);
    assert!(told.try_recv().is_err());

    // So is what is excepted; the one URL of an endpoint may be by proxy and another not.
    let through = |url: &str| {
        let target = Place::of(url).unwrap();
        let agent = connections.agent_for(&endpoint("https://registry.example", with_ca(&ca)), None, &target).unwrap();
        agent.config().proxy().is_some()
    };
    assert!(through("https://blobs.example/x"));
    assert!(!through("https://a.direct.example/x"));
    assert!(!through("http://blobs.example/x"));

    let bad = self::connections(Environment::from([("HTTPS_PROXY", "socks5://user:hunter2@proxy.example")]));
    let error = bad.agent(&endpoint("https://registry.example", TlsSettings::default())).unwrap_err().to_string();
    assert_eq!(error, "HTTPS_PROXY: only http:// and https:// proxies can be used");
}

#[test]
fn agents_are_kept_while_nothing_changes() {
    let scratch = Scratch::new();
    let ca = scratch.write("ca.crt", Authority::new("one").pem());
    let connections = connections(Environment::default());
    let count = || connections.0.kept().0;
    for host in ["https://a.example", "https://b.example", "https://a.example"] {
        connections.agent(&endpoint(host, with_ca(&ca))).unwrap();
        assert_eq!(count(), 1);
    }
    connections.agent(&endpoint("https://a.example", TlsSettings::default())).unwrap();
    assert_eq!(count(), 2);
    scratch.write("ca.crt", format!("{}\n", Authority::new("two").pem()));
    connections.agent(&endpoint("https://a.example", with_ca(&ca))).unwrap();
    assert_eq!(count(), 2, "the agent with the older authority is gone");
    for number in 0..2 * connections.0.kept().1 {
        let ca = scratch.write(&format!("{number}.crt"), std::fs::read(&ca).unwrap());
        connections.agent(&endpoint("https://a.example", with_ca(&ca))).unwrap();
        assert!(count() <= connections.0.kept().1);
    }
}
