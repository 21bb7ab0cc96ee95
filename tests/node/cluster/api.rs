//! Requests to an API server as its administrator: cheaper than a `kubectl` for each look.

use crate::harness::{Network, secs};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Of one user.
pub struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Client {
    pub fn new(address: SocketAddr, authority: &str, (certificate, key): &(String, String)) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).expect("an authority")).expect("an authority");
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("a client certificate");
        Client { address, config: Arc::new(config) }
    }

    /// Status code and body of the answer.
    pub fn ask(
        &self,
        network: &Network,
        method: &str,
        path: &str,
        content: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        network.inside(|| {
            let tcp = TcpStream::connect_timeout(&self.address, secs(5))?;
            tcp.set_read_timeout(Some(secs(20)))?;
            tcp.set_write_timeout(Some(secs(20)))?;
            let name = ServerName::from(self.address.ip());
            let tls = ClientConnection::new(Arc::clone(&self.config), name).map_err(std::io::Error::other)?;
            let mut stream = StreamOwned::new(tls, tcp);
            // HTTP/1.0: an answer that ends with the connection, in one piece.
            let head = format!(
                "{method} {path} HTTP/1.0\r\nHost: api\r\nAccept: application/json\r\nContent-Type: {content}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes())?;
            stream.write_all(body.as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
            Ok((code, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
        })
    }
}

/// Kinds by what people call them: API version, plural, whether in a namespace.
const KINDS: [(&str, &str, &str, bool); 26] = [
    ("Pod", "v1", "pods", true),
    ("Node", "v1", "nodes", false),
    ("Namespace", "v1", "namespaces", false),
    ("ConfigMap", "v1", "configmaps", true),
    ("Secret", "v1", "secrets", true),
    ("Service", "v1", "services", true),
    ("ServiceAccount", "v1", "serviceaccounts", true),
    ("Event", "v1", "events", true),
    ("Endpoints", "v1", "endpoints", true),
    ("LimitRange", "v1", "limitranges", true),
    ("PersistentVolume", "v1", "persistentvolumes", false),
    ("PersistentVolumeClaim", "v1", "persistentvolumeclaims", true),
    ("DaemonSet", "apps/v1", "daemonsets", true),
    ("Deployment", "apps/v1", "deployments", true),
    ("ReplicaSet", "apps/v1", "replicasets", true),
    ("StatefulSet", "apps/v1", "statefulsets", true),
    ("Job", "batch/v1", "jobs", true),
    ("Lease", "coordination.k8s.io/v1", "leases", true),
    ("EndpointSlice", "discovery.k8s.io/v1", "endpointslices", true),
    ("PriorityClass", "scheduling.k8s.io/v1", "priorityclasses", false),
    ("RuntimeClass", "node.k8s.io/v1", "runtimeclasses", false),
    ("Role", "rbac.authorization.k8s.io/v1", "roles", true),
    ("RoleBinding", "rbac.authorization.k8s.io/v1", "rolebindings", true),
    ("ClusterRole", "rbac.authorization.k8s.io/v1", "clusterroles", false),
    ("ClusterRoleBinding", "rbac.authorization.k8s.io/v1", "clusterrolebindings", false),
    ("CertificateSigningRequest", "certificates.k8s.io/v1", "certificatesigningrequests", false),
];

/// Where an object of a kind (`Pod`, `pod` or `pods`) is, or all of them with an empty name; an empty namespace: all.
#[track_caller]
pub fn path(kind: &str, namespace: &str, name: &str) -> String {
    let found = KINDS.iter().find(|(one, _, plural, _)| one.eq_ignore_ascii_case(kind) || *plural == kind);
    let (_, version, plural, namespaced) = found.unwrap_or_else(|| panic!("{kind}: no kind that the tests know"));
    let root = if version.contains('/') { "/apis" } else { "/api" };
    let within = if *namespaced && !namespace.is_empty() { format!("/namespaces/{namespace}") } else { String::new() };
    let name = if name.is_empty() { String::new() } else { format!("/{name}") };
    format!("{root}/{version}{within}/{plural}{name}")
}

/// Where an object is by what it says of itself.
#[track_caller]
pub fn path_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
    let namespace = if namespace.is_empty() { "default".to_owned() } else { namespace };
    path(object["kind"].as_str().expect("a kind"), &namespace, &name)
}
