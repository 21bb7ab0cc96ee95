//! Who may do what with a node from outside: the audit of the node API, each path for each identity.
//!
//! "Let in" is any answer but 401 and 403: what is let in may find no such pod, and is told so. Whoever is not let in gets the
//! same answer for paths that exist and for those that do not.

use crate::cluster::Plane;
use crate::harness::{Authority, Node, eventually, free_port, http, pod, secs};
use base64::Engine;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// All paths: method, path, and the subresources of which any is enough.
const PATHS: [(&str, &str, &str); 38] = [
    ("GET", "/healthz", "healthz proxy"),
    ("GET", "/healthz/ping", "healthz proxy"),
    ("GET", "/healthz/syncloop", "healthz proxy"),
    ("GET", "/pods", "pods proxy"),
    ("GET", "/pods/", "pods proxy"),
    ("GET", "/runningpods/", "pods proxy"),
    ("GET", "/metrics", "metrics"),
    ("GET", "/metrics/cadvisor", "metrics"),
    ("GET", "/metrics/resource", "metrics"),
    ("GET", "/metrics/probes", "metrics"),
    ("GET", "/metrics/slis", "metrics"),
    ("GET", "/stats/summary", "stats"),
    ("POST", "/stats/summary", "stats"),
    ("GET", "/configz", "configz proxy"),
    ("GET", "/flagz", "configz"),
    ("GET", "/statusz", "statusz"),
    ("POST", "/checkpoint/default/web/main", "checkpoint"),
    ("GET", "/logs/", "log"),
    ("GET", "/logs/none", "log"),
    ("GET", "/containerLogs/default/web/main", "proxy"),
    ("GET", "/exec/default/web/main?command=true&output=1", "proxy"),
    ("POST", "/exec/default/web/main?command=true&output=1", "proxy"),
    ("POST", "/exec/default/web/uid/main?command=true&output=1", "proxy"),
    ("GET", "/attach/default/web/main?output=1", "proxy"),
    ("POST", "/attach/default/web/main?output=1", "proxy"),
    ("GET", "/portForward/default/web", "proxy"),
    ("POST", "/portForward/default/web", "proxy"),
    ("POST", "/run/default/web/main?cmd=true", "proxy"),
    ("GET", "/debug/pprof/heap", "proxy"),
    ("PUT", "/debug/flags/v", "proxy"),
    // Ways around: none of them may need less than what they lead to.
    ("GET", "/", "proxy"),
    ("GET", "/nothing", "proxy"),
    ("GET", "//exec/default/web/main", "proxy"),
    ("GET", "/%65xec/default/web/main?command=true&output=1", "proxy"),
    ("GET", "/Exec/default/web/main", "proxy"),
    ("GET", "/api/v1/pods", "proxy"),
    ("GET", "/coracle/v1/status", "proxy"),
    ("DELETE", "/exec/default/web/main", "proxy"),
];

/// Whoever the node is.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Somebody who asks.
#[derive(Clone, Default)]
struct Identity {
    certificate: Option<(String, String)>,
    token: Option<String>,
}

impl Identity {
    fn certificate(pair: (String, String)) -> Identity {
        Identity { certificate: Some(pair), token: None }
    }

    fn token(token: &str) -> Identity {
        Identity { certificate: None, token: Some(token.to_owned()) }
    }

    fn connect(&self, address: SocketAddr) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
        let config = match &self.certificate {
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(|c| c.expect("certificate")).collect();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
            None => builder.with_no_client_auth(),
        };
        let tcp = TcpStream::connect_timeout(&address, secs(5))?;
        tcp.set_read_timeout(Some(secs(30)))?;
        let name = ServerName::from(address.ip());
        let tls = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
        Ok(StreamOwned::new(tls, tcp))
    }

    /// Status code and body.
    fn ask(&self, node: &Node, address: SocketAddr, method: &str, path: &str) -> std::io::Result<(u16, String)> {
        node.inside(|| {
            let mut stream = self.connect(address)?;
            let token =
                self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
            // Of HTTP/1.0, so that no answer comes in chunks.
            let head = format!("{method} {path} HTTP/1.0\r\nHost: node\r\nContent-Length: 0\r\n{token}\r\n");
            stream.write_all(head.as_bytes())?;
            let mut bytes = Vec::new();
            match stream.read_to_end(&mut bytes) {
                Err(error) if bytes.is_empty() => return Err(error),
                _ => {}
            }
            let text = String::from_utf8_lossy(&bytes);
            let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
            Ok((code, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
        })
    }
}

/// One row of the audit: what an identity gets for each path, in one line a path.
#[track_caller]
fn audit(who: &str, identity: &Identity, node: &Node, address: SocketAddr, expected: impl Fn(&str, &str) -> u16) {
    let mut wrong = Vec::new();
    for (method, path, needs) in PATHS {
        let (code, body) = identity.ask(node, address, method, path).unwrap_or_else(|e| panic!("{who} {path}: {e}"));
        let want = expected(method, needs);
        let is = if code == 401 || code == 403 { code } else { 200 };
        // An error of ours is nobody's right: no answer may be one, but of what is known not to be there.
        if is != want || (code >= 500 && !path.starts_with("/checkpoint")) {
            wrong.push(format!("{method} {path}: {code} instead of {want}: {body}"));
        }
        if want == 401 && body != "Unauthorized" {
            wrong.push(format!("{method} {path}: says {body:?}"));
        }
    }
    assert!(wrong.is_empty(), "{who}\n{}", wrong.join("\n"));
}

fn standalone(fields: Value) -> (Node, SocketAddr) {
    let (mut node, port) = (Node::new(), free_port());
    let mut all = json!({ "address": "127.0.0.1", "port": port });
    all.as_object_mut().expect("a mapping").extend(fields.as_object().expect("a mapping").clone());
    node.configure(all);
    (node, SocketAddr::from(([127, 0, 0, 1], port)))
}

#[track_caller]
fn wait_open(node: &Node, address: SocketAddr) {
    eventually("the node API is open", secs(20), || Identity::default().ask(node, address, "GET", "/").is_ok());
}

/// A node that stands alone: who is vouched for by the configured authority may do everything, and nobody else anything.
#[test]
fn a_node_that_stands_alone_lets_in_whom_its_authority_vouches_for() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let (mut node, address) = standalone(json!({ "authorization": { "mode": "AlwaysAllow" } }));
    let file = node.dir.join("client-ca.crt");
    fs::write(&file, &ours.pem).expect("authority");
    let flag = format!("--client-ca-file={}", file.display());
    node.args.push(flag);
    node.start();
    node.wait_for_images();
    node.run(&pod("web", "echo said; sleep 1000"));
    wait_open(&node, address);

    let admin = Identity::certificate(ours.issue("ann", Some("admins"), &[]));
    let server_only = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    };
    let expired = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let nameless = |params: &mut rcgen::CertificateParams| params.distinguished_name = rcgen::DistinguishedName::new();
    let strangers = [
        ("nothing", Identity::default()),
        ("a token", Identity::token("abc")),
        ("an empty token", Identity::token("")),
        ("another authority's", Identity::certificate(other.issue("ann", Some("system:masters"), &[]))),
        ("one of a server", Identity::certificate(ours.issue_with("ann", None, &[], server_only))),
        ("an expired one", Identity::certificate(ours.issue_with("ann", None, &[], expired))),
        ("a nameless one", Identity::certificate(ours.issue_with("", None, &[], nameless))),
        (
            "another's with a token",
            Identity { token: Some("abc".to_owned()), ..Identity::certificate(other.issue("ann", None, &[])) },
        ),
    ];
    for (who, identity) in &strangers {
        audit(who, identity, &node, address, |_, _| 401);
    }
    audit("an administrator", &admin, &node, address, |_, _| 200);

    // What they get is what it should be.
    let get = |path: &str| admin.ask(&node, address, "GET", path).expect(path);
    assert_eq!(get("/healthz"), (200, "ok".to_owned()));
    assert!(get("/healthz?verbose").1.contains("[+]syncloop ok"));
    assert_eq!(get("/healthz/none").0, 404);
    let (code, body) = get("/pods");
    let list: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((code, &list["kind"], &list["apiVersion"]), (200, &json!("PodList"), &json!("v1")));
    let name = format!("web-{}", node.name);
    assert_eq!(list["items"][0]["metadata"]["name"], name.as_str());
    assert_eq!(list["items"][0]["status"]["phase"], "Running");
    let (_, body) = get("/runningpods/");
    let running: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(running["items"][0]["spec"]["containers"][0]["name"], "main", "{body}");
    assert_eq!(get(&format!("/containerLogs/default/{name}/main")), (200, "said\n".to_owned()));
    assert_eq!(get(&format!("/containerLogs/default/{name}/none")).0, 404);
    assert_eq!(get("/containerLogs/default/none/main"), (404, "pod \"none\" does not exist".to_owned()));
    let ran =
        admin.ask(&node, address, "POST", &format!("/run/default/{name}/main?cmd=echo%20hello%20there")).expect("run");
    assert_eq!(ran, (200, "hello there\n".to_owned()));
    let (_, body) = get("/configz");
    let config: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(config["kubeletconfig"]["port"], address.port());
    assert_eq!(config["kubeletconfig"]["authorization"]["mode"], "AlwaysAllow");
    let (_, body) = get("/stats/summary");
    assert_eq!(serde_json::from_str::<Value>(&body).expect("JSON")["node"]["nodeName"], node.name.as_str());
    assert!(get("/metrics/slis").1.contains("kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1"));
    assert_eq!(get("/debug/pprof/"), (405, "profiling endpoint is disabled.".to_owned()));

    // Another authority counts at once, also on a connection that is open; a broken file leaves the one before.
    fs::write(&file, "nothing").expect("authority");
    assert_eq!(get("/healthz").0, 200);
    fs::write(&file, &other.pem).expect("authority");
    eventually("the other authority counts", secs(20), || get("/healthz").0 == 401);
    assert_eq!(strangers[3].1.ask(&node, address, "GET", "/healthz").expect("healthz").0, 200);

    // Nonsense and silence are nobody's, and disturb nobody.
    for nonsense in [&b"GET /healthz HTTP/1.0\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 4096], b""] {
        let mut stream = TcpStream::connect(address).expect("connect");
        let _ = stream.write_all(nonsense);
        let mut answer = Vec::new();
        if !nonsense.is_empty() {
            let _ = stream.set_read_timeout(Some(secs(1)));
            let _ = stream.read_to_end(&mut answer);
        }
        assert!(!String::from_utf8_lossy(&answer).contains("200"), "{answer:?}");
    }
    assert_eq!(strangers[3].1.ask(&node, address, "GET", "/healthz").expect("healthz").0, 200);
    node.finish();
}

/// What is turned off is off for everybody, and what is open is open for what it is meant for.
#[test]
fn what_is_turned_off_is_off_for_everybody() {
    let authority = Authority::new("ours");
    let read_only = free_port();
    let (mut node, address) = standalone(json!({
        "authorization": { "mode": "AlwaysAllow" },
        "authentication": { "anonymous": { "enabled": true } },
        "enableDebuggingHandlers": false,
        "readOnlyPort": read_only,
    }));
    fs::write(node.dir.join("client-ca.crt"), &authority.pem).expect("authority");
    node.args.push(format!("--client-ca-file={}", node.dir.join("client-ca.crt").display()));
    let pair = authority.issue("node", None, &["127.0.0.1"]);
    let [chain, key] = ["tls.crt", "tls.key"].map(|name| node.dir.join(name));
    fs::write(&chain, &pair.0).expect("certificate");
    fs::write(&key, &pair.1).expect("key");
    node.args.push(format!("--tls-cert-file={}", chain.display()));
    node.args.push(format!("--tls-private-key-file={}", key.display()));
    node.start();
    wait_open(&node, address);
    let nobody = Identity::default();
    let get = |path: &str| nobody.ask(&node, address, "GET", path).expect(path);
    assert_eq!(get("/healthz"), (200, "ok".to_owned()));
    for path in [
        "/exec/default/web/main?command=a&output=1",
        "/attach/a/b/c",
        "/portForward/a/b",
        "/containerLogs/a/b/c",
        "/runningpods/",
        "/logs/",
    ] {
        assert_eq!(get(path), (405, "Debug endpoints are disabled.".to_owned()), "{path}");
    }
    assert_eq!(get("/configz").0, 404);
    // Who shows something that is no good is not taken for somebody who shows nothing.
    let other = Authority::new("other");
    let wrong = Identity::certificate(other.issue("ann", None, &[]));
    assert_eq!(wrong.ask(&node, address, "GET", "/healthz").expect("healthz").0, 401);
    assert_eq!(Identity::token("abc").ask(&node, address, "GET", "/healthz").expect("healthz").0, 401);

    // The certificate is the one of the files, as they are now.
    let shown = || {
        let mut stream = nobody.connect(address).expect("connect");
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").expect("ask");
        let _ = stream.read(&mut [0; 16]);
        stream.conn.peer_certificates().expect("certificates")[0].to_vec()
    };
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("certificate").to_vec();
    assert_eq!(shown(), der(&pair.0));
    let next = authority.issue("node", None, &["127.0.0.1"]);
    fs::write(&chain, &next.0).expect("certificate");
    // Half of a change changes nothing.
    assert_eq!(shown(), der(&pair.0));
    fs::write(&key, &next.1).expect("key");
    eventually("the new certificate is shown", secs(20), || shown() == der(&next.0));

    for (path, code) in [
        ("/healthz", 200),
        ("/pods", 200),
        ("/metrics", 200),
        ("/metrics/resource", 200),
        ("/stats/summary", 200),
        ("/configz", 404),
        ("/runningpods/", 404),
        ("/exec/default/web/main?command=true&output=1", 404),
        ("/run/default/web/main?cmd=true", 404),
        ("/containerLogs/default/web/main", 404),
        ("/logs/", 404),
        ("/api/v1/pods", 404),
        ("/coracle/v1/status", 404),
    ] {
        assert_eq!(http(("127.0.0.1", read_only), path).expect(path).0, code, "{path}");
    }
    node.finish();
}

/// Paths of the local API: method, path, and what somebody has to be allowed to: look, enter, change; `-`: not served there,
/// whoever asks.
const LOCAL_PATHS: [(&str, &str, &str); 33] = [
    ("GET", "/api", "look"),
    ("GET", "/apis", "look"),
    ("GET", "/version", "look"),
    ("GET", "/healthz", "look"),
    ("GET", "/api/v1/pods", "look"),
    ("GET", "/api/v1/nodes", "look"),
    ("GET", "/api/v1/namespaces", "look"),
    ("GET", "/api/v1/events", "look"),
    ("GET", "/api/v1/configmaps", "look"),
    ("GET", "/api/v1/namespaces/default/pods", "look"),
    ("GET", "/api/v1/namespaces/default/pods/web", "look"),
    ("GET", "/api/v1/namespaces/default/pods/web/log", "look"),
    ("GET", "/api/v1/namespaces/default/pods/web/exec?command=true&stdout=1", "enter"),
    ("POST", "/api/v1/namespaces/default/pods/web/exec?command=true&stdout=1", "enter"),
    ("GET", "/api/v1/namespaces/default/pods/web/attach?stdout=1", "enter"),
    ("POST", "/api/v1/namespaces/default/pods/web/attach?stdout=1", "enter"),
    ("GET", "/api/v1/namespaces/default/pods/web/portforward", "enter"),
    ("POST", "/api/v1/namespaces/default/pods/web/portforward", "enter"),
    ("POST", "/api/v1/namespaces/default/pods", "change"),
    ("PUT", "/api/v1/namespaces/default/pods/none", "change"),
    ("PATCH", "/api/v1/namespaces/default/pods/none", "change"),
    ("DELETE", "/api/v1/namespaces/default/pods/none", "change"),
    ("DELETE", "/api/v1/namespaces/none/pods", "change"),
    // coracle's own and the kubelet's are not behind this door.
    ("GET", "/coracle/v1/status", "-"),
    ("POST", "/coracle/v1/apply", "-"),
    ("POST", "/coracle/v1/kubeconfig", "-"),
    ("DELETE", "/coracle/v1/kubeconfig", "-"),
    ("POST", "/coracle/v1/images/prune", "-"),
    ("POST", "/coracle/v1/cluster/leave", "-"),
    ("GET", "/exec/default/web/main?command=true&output=1", "-"),
    ("POST", "/run/default/web/main?cmd=true", "-"),
    ("GET", "/containerLogs/default/web/main", "-"),
    ("GET", "/logs/", "-"),
];

/// The local API on loopback knows whom it has given a certificate, and nobody else: not whom the cluster knows either.
#[test]
fn the_local_api_lets_in_whom_the_node_has_given_a_certificate() {
    let node = Node::up();
    node.run(&pod("web", "sleep 1000"));
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let port = address.port().to_string();
    let given = |args: &[&str]| {
        let text = node.cli(&[&["kubeconfig"], args].concat()).ok();
        let data = |key: &str| {
            let line =
                text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_else(|| panic!("{key} {text}"));
            let decoded = base64::engine::general_purpose::STANDARD.decode(line.trim().trim_matches(['"', '\'']));
            String::from_utf8(decoded.expect("base64")).expect("PEM")
        };
        Identity::certificate((data("client-certificate-data:"), data("client-key-data:")))
    };
    let (admin, reader) = (given(&["--port", &port]), given(&["--read-only"]));
    let other = Authority::new("coracle");
    let nobodies = [
        ("nothing", Identity::default()),
        ("a token", Identity::token("abc")),
        ("another authority's", Identity::certificate(other.issue("coracle:admin", Some("coracle:admins"), &[]))),
    ];
    let mut wrong = Vec::new();
    let mut look = |who: &str, identity: &Identity, want: &dyn Fn(&str) -> &'static [u16]| {
        for (method, path, needs) in LOCAL_PATHS {
            let (code, body) =
                identity.ask(&node, address, method, path).unwrap_or_else(|e| panic!("{who} {path}: {e}"));
            let want = want(needs);
            // Empty: whatever it is, it was let in.
            let right =
                if want.is_empty() { ![401, 403, 0].contains(&code) && code < 500 } else { want.contains(&code) };
            if !right {
                wrong.push(format!("{who}: {method} {path}: {code} instead of {want:?}: {body}"));
            }
        }
    };
    for (who, identity) in &nobodies {
        look(who, identity, &|_| &[401]);
    }
    look("a reader", &reader, &|needs| match needs {
        "look" => &[],
        "-" => &[403, 404, 405],
        _ => &[403],
    });
    look("an administrator", &admin, &|needs| if needs == "-" { &[403, 404, 405] } else { &[] });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    node.finish();
}

/// A node that stands alone and was not asked to listens on nothing but loopback.
#[test]
fn a_node_that_stands_alone_has_no_node_api_unless_it_was_asked_for() {
    let mut node = Node::new();
    node.network = Some(crate::harness::Network::new());
    node.start();
    let listening = || {
        let mut found = String::new();
        for file in ["tcp", "tcp6"] {
            found += &fs::read_to_string(format!("/proc/{}/net/{file}", node.agent_pid())).expect("sockets");
        }
        let ports = found.lines().filter(|line| line.split_whitespace().nth(3) == Some("0A"));
        ports.filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect::<Vec<_>>()
    };
    let health = format!("0100007F:{:04X}", node.healthz);
    assert_eq!(listening(), [health]);
    node.finish();
}

/// In a cluster the API server decides, by subresource; what it said counts for a while when it is away, and no more.
#[test]
fn in_a_cluster_the_api_server_says_who_may_do_what() {
    let plane = Plane::shared();
    let namespace = plane.namespace("access");
    let mut node = plane.node();
    node.start();
    let object = plane.wait_node_ready(&node);
    assert_eq!(object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    let ip = object["status"]["addresses"][0]["address"].as_str().expect("an address");
    let address = SocketAddr::new(ip.parse().expect("an address"), 10250);
    wait_open(&node, address);

    let grant = |user: &Value, name: &str, subresources: &[&str], verbs: &[&str]| {
        let name = format!("{}-{name}", node.name);
        let resources: Vec<String> = subresources.iter().map(|of| format!("nodes/{of}")).collect();
        plane.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name },
            "rules": [{ "apiGroups": [""], "resources": resources, "verbs": verbs }],
        }));
        plane.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [user],
        }));
    };
    let all = ["proxy", "pods", "healthz", "configz", "metrics", "stats", "log", "checkpoint", "statusz"];
    for subresource in all {
        let user = format!("{}-only-{subresource}", node.name);
        let subject = json!({ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user });
        grant(&subject, &format!("only-{subresource}"), &[subresource], &["get"]);
    }
    let group =
        json!({ "kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": format!("{}-admins", node.name) });
    grant(&group, "admins", &all, &["*"]);
    plane.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "scraper", "namespace": &*namespace },
    }));
    let account = json!({ "kind": "ServiceAccount", "name": "scraper", "namespace": &*namespace });
    grant(&account, "scraper", &["metrics"], &["get"]);
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/scraper/token");
    let asked = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let token =
        plane.must("POST", &path, "application/json", &asked)["status"]["token"].as_str().expect("a token").to_owned();

    // The API server needs a moment to know of roles.
    let admin = Identity::certificate(plane.authority.issue("ann", Some(&format!("{}-admins", node.name)), &[]));
    let let_in = |identity: &Identity, method: &str, path: &str| {
        !matches!(identity.ask(&node, address, method, path).expect(path).0, 401 | 403)
    };
    eventually("roles count", secs(60), || let_in(&admin, "GET", "/configz"));

    let other = Authority::new("other");
    for (who, identity) in [
        ("nothing", Identity::default()),
        ("a token that is none", Identity::token("abc")),
        ("half a token", Identity::token(&token[..token.len() - 4])),
        ("another authority's", Identity::certificate(other.issue("ann", Some("system:masters"), &[]))),
    ] {
        audit(who, &identity, &node, address, |_, _| 401);
    }
    let nobody = Identity::certificate(plane.authority.issue("nobody", None, &[]));
    audit("somebody without rights", &nobody, &node, address, |_, _| 403);
    audit("an administrator", &admin, &node, address, |_, _| 200);
    let has = |needs: &str, one: &str| needs.split(' ').any(|need| need == one);
    for subresource in all {
        let user = plane.authority.issue(&format!("{}-only-{subresource}", node.name), None, &[]);
        // They may get, not create.
        let expected = |method: &str, needs: &str| if method == "GET" && has(needs, subresource) { 200 } else { 403 };
        audit(subresource, &Identity::certificate(user), &node, address, expected);
    }
    let scraper = Identity::token(&token);
    let expected = |method: &str, needs: &str| if method == "GET" && has(needs, "metrics") { 200 } else { 403 };
    audit("a service account", &scraper, &node, address, expected);
    let (_, refusal) = scraper.ask(&node, address, "GET", "/pods").expect("pods");
    let account = format!("system:serviceaccount:{namespace}:scraper");
    assert_eq!(refusal, format!("Forbidden (user={account}, verb=get, resource=nodes, subresource(s)=[pods proxy])"));

    // Without an API server what it said counts still, and nothing is let in that it was not asked about.
    plane.unplug(&node);
    let late = Identity::certificate(plane.authority.issue("late", Some("system:masters"), &[]));
    assert_eq!(scraper.ask(&node, address, "GET", "/metrics/resource").expect("metrics").0, 200);
    assert_eq!(scraper.ask(&node, address, "GET", "/pods").expect("pods").0, 403);
    let (code, body) = late.ask(&node, address, "GET", "/pods").expect("pods");
    assert_eq!(
        (code, body.as_str()),
        (500, "Authorization error (user=late, verb=get, resource=nodes, subresource=pods)")
    );
    assert_eq!(Identity::token("new").ask(&node, address, "GET", "/pods").expect("pods").0, 401);
    plane.plug(&node);
    for name in all.iter().map(|of| format!("only-{of}")).chain(["admins".to_owned(), "scraper".to_owned()]) {
        for kind in ["ClusterRoleBinding", "ClusterRole"] {
            plane.delete(kind, "", &format!("{}-{name}", node.name));
        }
    }
    namespace.end();
    plane.finish(node);
}
