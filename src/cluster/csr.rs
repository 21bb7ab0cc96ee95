//! Asking the cluster for the node's certificates.

use super::transport::ask;
use crate::pod::clock::later;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The API's path of certificate signing requests.
const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// Signers of client certificates of nodes, and of those that they show to others.
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVER_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// As kubelet: a request that nobody has answered by then is given up, and another one is made.
const PATIENCE: SignedDuration = SignedDuration::from_mins(15);
/// How long a request is looked at often.
const SOON: SignedDuration = SignedDuration::from_secs(15);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No key or request can be made.
    #[error("cannot make a certificate request: {0}")]
    Make(String),
    /// The API server does not take the request, or nobody answers.
    #[error("cannot ask for a certificate: {0}")]
    Ask(String),
    /// Somebody, or something, decided against it.
    #[error("{name} was {how}: {why}")]
    Refused { name: String, how: &'static str, why: String },
    /// Nobody decided.
    #[error("nobody approved {0} in 15 minutes")]
    Late(String),
    /// What was issued is not what was asked for.
    #[error("{name}: what was issued cannot be used: {why}")]
    Unfit { name: String, why: String },
}

fn made(error: rcgen::Error) -> Error {
    Error::Make(error.to_string())
}

/// A key, and a request for a certificate for it.
pub(super) struct Wanted {
    /// PEM, `EC PRIVATE KEY`.
    pub(super) key: String,
    request: String,
    public: Vec<u8>,
    user: String,
    signer: &'static str,
    usage: &'static str,
}

impl Wanted {
    /// A new key, ECDSA P-256, for a client certificate of the node of this name.
    ///
    /// # Errors
    /// [`Error::Make`].
    pub(super) fn new(node: &str) -> Result<Wanted, Error> {
        Wanted::with(node, CertificateParams::default(), CLIENT_SIGNER, "client auth")
    }

    /// As [`Wanted::new`], for a certificate that the node shows to those who reach it by these addresses.
    ///
    /// # Errors
    /// [`Error::Make`].
    pub(super) fn serving(node: &str, names: &BTreeSet<String>, ips: &BTreeSet<IpAddr>) -> Result<Wanted, Error> {
        let name = |name: &String| name.as_str().try_into().map(SanType::DnsName);
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(name).collect::<Result<_, _>>().map_err(made)?;
        params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
        Wanted::with(node, params, SERVER_SIGNER, "server auth")
    }

    fn with(
        node: &str,
        mut params: CertificateParams,
        signer: &'static str,
        usage: &'static str,
    ) -> Result<Wanted, Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let user = format!("system:node:{node}");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, user.as_str());
        let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(made)?;
        let public = key.public_key_raw().to_vec();
        let secret = sec1(key.serialized_der(), &public).ok_or_else(|| Error::Make("an odd key".to_owned()))?;
        Ok(Wanted { key: pem("EC PRIVATE KEY", &secret), request, public, user, signer, usage })
    }

    /// The object that asks for it.
    fn object(&self) -> Value {
        json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "csr-"},
            "spec": {
                "request": STANDARD.encode(&self.request),
                "signerName": self.signer,
                "usages": ["digital signature", self.usage],
            },
        })
    }

    /// Whether a certificate is for this key and node.
    fn fits(&self, chain: &str) -> Result<(), String> {
        let chain = super::certificates::certificates(chain.as_bytes())?;
        let (_, own) = X509Certificate::from_der(&chain[0]).map_err(|e| format!("not a certificate: {e}"))?;
        if own.public_key().subject_public_key.data.as_ref() != self.public.as_slice() {
            return Err("it is for another key".to_owned());
        }
        let mut names = own.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        if names.any(|name| name == self.user) { Ok(()) } else { Err(format!("it is not for {}", self.user)) }
    }

    /// Asks for the certificate, and waits until it is issued (PEM, the own one first). `tell` is told what is waited for.
    ///
    /// # Errors
    /// [`Error`]; there is an end to each wait.
    pub(super) async fn obtain(&self, client: &Client, tell: impl Fn(String)) -> Result<String, Error> {
        let asked =
            ask(client, Method::POST, PATH, Some(&self.object())).await.map_err(|e| Error::Ask(e.to_string()))?;
        let text = |path: &str| asked.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (name, uid) = (text("/metadata/name"), text("/metadata/uid"));
        let begun = crate::sys::clock::now();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)) {
            return Err(Error::Ask("the API server answered with a request without a name".to_owned()));
        }
        let path = format!("{PATH}/{name}");
        let mut last = "nobody answered".to_owned();
        while crate::sys::clock::now() < later(begun, PATIENCE) {
            match ask(client, Method::GET, &path, None).await {
                Ok(object) => match judge(&object, &uid) {
                    Verdict::Issued(chain) => {
                        self.fits(&chain).map_err(|why| Error::Unfit { name, why })?;
                        return Ok(chain);
                    }
                    Verdict::Refused(how, why) => return Err(Error::Refused { name, how, why }),
                    Verdict::Pending => {
                        let approve = format!("(kubectl certificate approve {name})");
                        last = format!("{name} waits to be approved {approve}");
                    }
                    Verdict::Approved => last = format!("{name} is approved, and waits to be signed"),
                },
                Err(error) => last = format!("{name}: {error}"),
            }
            tell(last.clone());
            tokio::time::sleep(pause(crate::sys::clock::now(), begun)).await;
        }
        tracing::debug!("{last}");
        Err(Error::Late(name))
    }
}

/// Between two looks at a request.
fn pause(now: Timestamp, begun: Timestamp) -> Duration {
    if now < later(begun, SOON) { Duration::from_millis(500) } else { Duration::from_secs(5) }
}

/// How a request stands.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Pending,
    Approved,
    Issued(String),
    Refused(&'static str, String),
}

fn judge(object: &Value, uid: &str) -> Verdict {
    if object.pointer("/metadata/uid").and_then(Value::as_str) != Some(uid) {
        return Verdict::Refused("replaced", "there is another request of that name now".to_owned());
    }
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array).map(Vec::as_slice);
    let find = |kind: &str| conditions.unwrap_or_default().iter().find(|c| c["type"] == kind);
    for (kind, how) in [("Denied", "denied"), ("Failed", "not signed")] {
        if let Some(condition) = find(kind) {
            let text = |field: &str| condition[field].as_str().unwrap_or_default();
            return Verdict::Refused(how, format!("{} {}", text("reason"), text("message")).trim().to_owned());
        }
    }
    if find("Approved").is_none() {
        return Verdict::Pending;
    }
    let chain = object.pointer("/status/certificate").and_then(Value::as_str).unwrap_or_default();
    match STANDARD.decode(chain).ok().and_then(|chain| String::from_utf8(chain).ok()).filter(|c| !c.is_empty()) {
        Some(chain) => Verdict::Issued(chain),
        None => Verdict::Approved,
    }
}

/// An ECDSA P-256 key as RFC 5915 has it, from the form of RFC 5958 that it was made in. `None`: it is of another form.
fn sec1(pkcs8: &[u8], public: &[u8]) -> Option<Vec<u8>> {
    /// `SEQUENCE { INTEGER 1, OCTET STRING (32) {`.
    const BEFORE: [u8; 7] = [0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
    /// `}, [0] { prime256v1 }, [1] { BIT STRING (65) {`.
    const BETWEEN: [u8; 17] =
        [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0xa1, 0x44, 0x03, 0x42, 0x00];
    // As in BEFORE, but without the curve, which the outer form names: shorter by 12 bytes.
    let inner = [0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20];
    let at = pkcs8.windows(inner.len()).position(|window| window == inner)? + inner.len();
    let secret = pkcs8.get(at..at + 32)?;
    if public.len() != 65 || !pkcs8.ends_with(public) {
        return None;
    }
    Some([&BEFORE, secret, &BETWEEN, public].concat())
}

fn pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::certificates::Pair;
    use rustls_pki_types::CertificateSigningRequestDer;
    use rustls_pki_types::pem::PemObject;
    use x509_parser::prelude::X509CertificationRequest;

    struct Public<'a>(&'a [u8]);

    impl rcgen::PublicKeyData for Public<'_> {
        fn der_bytes(&self) -> &[u8] {
            self.0
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &rcgen::PKCS_ECDSA_P256_SHA256
        }
    }

    fn issue(wanted: &Wanted) -> String {
        let issuer = rcgen::Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, wanted.user.as_str());
        params.signed_by(&Public(&wanted.public), &issuer).unwrap().pem()
    }

    #[test]
    fn the_request_is_one_that_the_signer_of_nodes_takes() {
        let wanted = Wanted::new("edge-1").unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(wanted.request.as_bytes()).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        let subject = request.certification_request_info.subject.to_string();
        assert!(subject == "O=system:nodes, CN=system:node:edge-1", "{subject}");
        assert_eq!(request.certification_request_info.attributes().len(), 0);
        let object = wanted.object();
        assert_eq!(object["spec"]["usages"], json!(["digital signature", "client auth"]));
        assert!(object["spec"].get("expirationSeconds").is_none());
    }

    #[test]
    fn the_request_for_serving_names_all_addresses_and_only_those() {
        let names = BTreeSet::from(["edge-1".to_owned()]);
        let ips = BTreeSet::from(["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        let wanted = Wanted::serving("edge-1", &names, &ips).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(wanted.request.as_bytes()).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        let shown = format!("{:?}", request.requested_extensions().unwrap().collect::<Vec<_>>());
        assert!(shown.contains("DNSName(\"edge-1\")"), "{shown}");
        assert!(shown.contains("[10, 0, 0, 1]") && shown.contains("[253, 0, 0"), "{shown}");
        assert_eq!(wanted.object()["spec"]["signerName"], "kubernetes.io/kubelet-serving");
        assert_eq!(wanted.object()["spec"]["usages"], json!(["digital signature", "server auth"]));
        assert!(Wanted::serving("edge-1", &BTreeSet::from(["bücher".to_owned()]), &ips).is_err());
    }

    #[test]
    fn a_key_is_written_as_the_kubelet_writes_it_and_fits_its_certificate() {
        let (wanted, other) = (Wanted::new("edge-1").unwrap(), Wanted::new("edge-1").unwrap());
        assert!(wanted.key.starts_with("-----BEGIN EC PRIVATE KEY-----\n"), "{}", wanted.key.len());
        let chain = issue(&wanted);
        wanted.fits(&chain).unwrap();
        let pair = Pair::read(chain.as_bytes(), wanted.key.as_bytes(), "it").unwrap();
        crate::http::tls_of(&[], Some((pair.chain, pair.key))).unwrap();
        assert_eq!(wanted.fits(&issue(&other)).unwrap_err(), "it is for another key");
        let mut renamed = wanted;
        renamed.user = "system:node:edge-2".to_owned();
        assert_eq!(renamed.fits(&chain).unwrap_err(), "it is not for system:node:edge-2");
        assert!(renamed.fits("x").is_err());
        let pair = Pair::read(chain.as_bytes(), other.key.as_bytes(), "it").unwrap();
        assert!(crate::http::tls_of(&[], Some((pair.chain, pair.key))).is_err());
    }

    #[test]
    fn a_request_is_done_when_it_is_approved_and_signed() {
        let object = |status: Value| json!({"metadata": {"uid": "u"}, "status": status});
        let approved = json!([{"type": "Approved", "reason": "AutoApproved"}]);
        for (status, verdict) in [
            (json!({}), Verdict::Pending),
            (json!({"certificate": STANDARD.encode("c")}), Verdict::Pending),
            (json!({"conditions": approved}), Verdict::Approved),
            (json!({"conditions": approved, "certificate": "*"}), Verdict::Approved),
            (json!({"conditions": approved, "certificate": STANDARD.encode("c")}), Verdict::Issued("c".into())),
            (
                json!({"conditions": [{"type": "Denied", "reason": "No", "message": "not you"}]}),
                Verdict::Refused("denied", "No not you".into()),
            ),
            (
                json!({"conditions": [{"type": "Approved"}, {"type": "Failed", "reason": "SignerValidationFailure"}]}),
                Verdict::Refused("not signed", "SignerValidationFailure".into()),
            ),
        ] {
            assert_eq!(judge(&object(status.clone()), "u"), verdict, "{status}");
        }
        assert!(matches!(judge(&object(json!({})), "other"), Verdict::Refused("replaced", _)));
    }
}
