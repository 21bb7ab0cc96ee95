//! From a bootstrap token to a cluster that can be trusted, as kubeadm does it.
//!
//! Everybody may read `cluster-info`: where the cluster is, and its authority. That it is the right cluster is proved
//! twice: it is signed with the token, which both sides know; and the authority's key is the one that `sha256:…` names,
//! which an administrator read off.

use super::kubeconfig::{self, Access, Pem};
use super::{certificates, transport};
use crate::http;
use crate::http::place::Place;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::{Method, Uri};
use ring::hmac;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use tokio_rustls::rustls::ClientConfig;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The API's path of `cluster-info`.
const PATH: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
/// Port of an API server that names none, as kubeadm has it.
const PORT: u16 = 6443;

/// Why a cluster is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody answers there, or not with cluster-info. That may change.
    #[error("{server}: {why}")]
    Unreached {
        /// URL.
        server: String,
        /// Why.
        why: String,
    },
    /// The cluster does not know the token. That may change: the signature comes a moment after the token.
    #[error("the cluster does not know the token {0}, or it has expired")]
    Token(String),
    /// Somebody signed with another secret.
    #[error(
        "cluster-info is not signed with this token: its second part is wrong, or this is not the cluster that it is for"
    )]
    Signature,
    /// What was signed makes no sense.
    #[error("cluster-info makes no sense: {0}")]
    Kubeconfig(String),
    /// Another authority.
    #[error("the cluster's authority is another one: its key is {found}")]
    Pin {
        /// What its key really is.
        found: String,
    },
    /// Somebody answered differently to each of two questions.
    #[error("cluster-info was another one when it was asked for again with the cluster's authority")]
    Changed,
}

impl Error {
    /// Whether trying again may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Error::Unreached { .. } | Error::Token(_))
    }
}

/// A bootstrap token: `abcdef.0123456789abcdef`. Only its first part is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
}

impl Token {
    /// Its first part, which is no secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Token, String> {
        let sound = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        match text.split_once('.') {
            Some((id, secret)) if sound(id, 6) && sound(secret, 16) => {
                Ok(Token { id: id.to_owned(), secret: secret.to_owned() })
            }
            // It is secret even if it is wrong.
            _ => Err("want 6 and 16 small letters or digits with a dot between (abcdef.0123456789abcdef)".to_owned()),
        }
    }
}

/// What the key of a cluster's authority must be: `sha256:` and 64 hex digits, of its SubjectPublicKeyInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Pin, String> {
        let wrong = || "want sha256: and 64 hex digits".to_owned();
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64).ok_or_else(wrong)?;
        let mut pin = [0; 32];
        for (byte, pair) in pin.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).ok().filter(|p| p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(wrong)?;
        }
        Ok(Pin(pin))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where an API server is asked for `cluster-info`: `host`, `host:port` or a URL of https.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Uri);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let wrong = || "want HOST:PORT of an API server".to_owned();
        let bare = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        // An IPv6 address without a port needs brackets for one.
        let is_v6 = bare.parse::<std::net::Ipv6Addr>().is_ok();
        let bare = if is_v6 { format!("[{bare}]") } else { bare.to_owned() };
        if bare.is_empty() || bare.contains(['/', '?', '#', '@', ' ']) {
            return Err(wrong());
        }
        let bare = if http::place::split_port(&bare).1.is_some() { bare } else { format!("{bare}:{PORT}") };
        let url = format!("https://{bare}");
        let place = Place::of(&url).filter(|place| place.port != 0).ok_or_else(wrong)?;
        format!("https://{}:{}", place.host, place.port).parse().map(Endpoint).map_err(|_| wrong())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_string().trim_end_matches('/'))
    }
}

/// A cluster that can be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// URL of its API server, as the cluster itself names it.
    pub server: String,
    /// Its authority, PEM.
    pub authority: Vec<u8>,
}

impl Cluster {
    /// A kubeconfig with which a certificate can be asked for.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn bootstrap_kubeconfig(&self, token: &Token) -> Result<String, Error> {
        let access = Access {
            server: self.server.clone(),
            authority: Some(Pem::Data(self.authority.clone())),
            insecure: false,
            server_name: None,
            certificate: None,
            token: None,
        };
        kubeconfig::bootstrap(&access, &format!("{}.{}", token.id, token.secret))
            .map_err(|e| Error::Kubeconfig(e.to_string()))
    }
}

/// Asks once for the cluster at `endpoint`. Without `pins` the token alone must do: then whoever has it may be taken for the
/// cluster.
///
/// # Errors
/// [`Error`].
pub async fn discover(endpoint: &Endpoint, token: &Token, pins: &[Pin]) -> Result<Cluster, Error> {
    let unreached = |why: String| Error::Unreached { server: endpoint.to_string(), why };
    let unverified = http::unverified_tls().map_err(|e| unreached(e.to_string()))?;
    let first = cluster_info(endpoint, unverified).await?;
    let signed = signed(&first, token)?;
    let (server, authority) = kubeconfig::cluster_of(signed).map_err(|e| Error::Kubeconfig(e.to_string()))?;
    let certificates = certificates::certificates(&authority).map_err(Error::Kubeconfig)?;
    if !pins.is_empty() {
        pinned(&certificates, pins)?;
        let verified = http::tls_of(&certificates, None).map_err(|e| Error::Kubeconfig(e.to_string()))?;
        let second = cluster_info(endpoint, verified).await?;
        if second.pointer("/data/kubeconfig").and_then(Value::as_str) != Some(signed) {
            return Err(Error::Changed);
        }
    }
    Ok(Cluster { server, authority })
}

async fn cluster_info(endpoint: &Endpoint, tls: ClientConfig) -> Result<Value, Error> {
    let client = transport::anonymous(&Arc::new(tls), endpoint.0.clone());
    let unreached = |why: String| Error::Unreached { server: endpoint.to_string(), why };
    transport::ask(&client, Method::GET, PATH, None).await.map_err(|error| match error.code {
        Some(401 | 403 | 404) => {
            unreached(format!("no cluster-info is published there, which kubeadm init does: {error}"))
        }
        _ => unreached(error.to_string()),
    })
}

/// The kubeconfig in `cluster-info`, if it is signed with the token.
fn signed<'a>(info: &'a Value, token: &Token) -> Result<&'a str, Error> {
    let data = |key: &str| info.pointer("/data").and_then(|data| data.get(key)).and_then(Value::as_str);
    let text = data("kubeconfig").filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| Error::Kubeconfig("there is no kubeconfig in it".to_owned()))?;
    let jws = data(&format!("jws-kubeconfig-{}", token.id)).ok_or_else(|| Error::Token(token.id.clone()))?;
    if is_signed(jws, text, token) { Ok(text) } else { Err(Error::Signature) }
}

/// Whether `jws` (`header..signature`) is the token's signature of `text`: JWS of RFC 7515, appendix F.
fn is_signed(jws: &str, text: &str, token: &Token) -> bool {
    let Some((header, signature)) = jws.split_once("..") else { return false };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let Some(read) = decode(header).and_then(|header| serde_json::from_slice::<Value>(&header).ok()) else {
        return false;
    };
    let Some(signature) = decode(signature) else { return false };
    if read["alg"] != "HS256" || read["kid"] != token.id.as_str() {
        return false;
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.secret.as_bytes());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(text));
    hmac::verify(&key, signed.as_bytes(), &signature).is_ok()
}

/// Whether one of the authorities is one of those that are wanted.
fn pinned(authorities: &[CertificateDer<'_>], pins: &[Pin]) -> Result<(), Error> {
    let mut found = Vec::new();
    for authority in authorities {
        let (_, read) = X509Certificate::from_der(authority)
            .map_err(|_| Error::Kubeconfig("the authority is no certificate".to_owned()))?;
        let pin = Pin(Sha256::digest(read.public_key().raw).into());
        if pins.contains(&pin) {
            return Ok(());
        }
        found.push(pin.to_string());
    }
    Err(Error::Pin { found: found.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn token() -> Token {
        "abcdef.0123456789abcdef".parse().unwrap()
    }

    /// As go-jose signs.
    fn sign(header: &Value, text: &str, secret: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(header.to_string());
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let tag = hmac::sign(&key, format!("{header}.{}", URL_SAFE_NO_PAD.encode(text)).as_bytes());
        format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag))
    }

    #[test]
    fn tokens_and_pins_are_read_and_kept_secret() {
        assert_eq!(token().id(), "abcdef");
        assert!(!format!("{:?}", token()).contains("0123"));
        for wrong in ["", "abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde", "abcde.f0123456789abcdef"] {
            let error = wrong.parse::<Token>().unwrap_err();
            assert!(wrong.is_empty() || !error.contains(&format!("{wrong} ")), "{error}");
        }
        let pin = format!("sha256:{}", "0aF9".repeat(16));
        assert_eq!(pin.parse::<Pin>().unwrap().to_string(), pin.to_lowercase());
        for wrong in ["sha256:", "md5:00", &pin[..70], &pin.replace('F', "+"), &format!("{pin}00")] {
            assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn endpoints_are_hosts_with_ports() {
        for (text, url) in [
            ("10.0.0.1", "https://10.0.0.1:6443"),
            ("api.example.org:443", "https://api.example.org:443"),
            ("https://api:8443/", "https://api:8443"),
            ("fd00::1", "https://[fd00::1]:6443"),
            ("[fd00::1]:7443", "https://[fd00::1]:7443"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), url);
        }
        for wrong in ["", "http://a", "a/b", "u:p@a", "a b", "a:port", "a:0", "https://"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cluster_info_counts_when_the_token_signed_it() {
        let (text, secret) = ("kind: Config\n", "0123456789abcdef");
        let header = json!({"alg": "HS256", "kid": "abcdef"});
        let info = |jws: &str| json!({"data": {"kubeconfig": text, "jws-kubeconfig-abcdef": jws}});
        let good = sign(&header, text, secret);
        assert_eq!(signed(&info(&good), &token()), Ok(text));
        for wrong in [
            sign(&header, text, "0123456789abcdee"),
            sign(&header, "kind: other\n", secret),
            sign(&json!({"alg": "none", "kid": "abcdef"}), text, secret),
            sign(&json!({"alg": "HS256", "kid": "abcdee"}), text, secret),
            good.replace("..", "."),
            format!("{good}="),
            String::new(),
        ] {
            assert_eq!(signed(&info(&wrong), &token()), Err(Error::Signature), "{wrong}");
        }
        let other = json!({"data": {"kubeconfig": text}});
        assert_eq!(signed(&other, &token()), Err(Error::Token("abcdef".to_owned())));
        assert!(matches!(signed(&json!({"data": {}}), &token()), Err(Error::Kubeconfig(_))));
        assert!(Error::Token(String::new()).may_pass() && !Error::Signature.may_pass());
    }

    #[test]
    fn the_authority_is_the_one_that_was_named() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        let authority = [certificate.der().clone()];
        let Err(Error::Pin { found }) = pinned(&authority, &[Pin([7; 32])]) else { panic!("not another one") };
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        assert_eq!(found, Pin(Sha256::digest(spki).into()).to_string());
        pinned(&authority, &[Pin([7; 32]), found.parse().unwrap()]).unwrap();
        assert!(pinned(&[CertificateDer::from(vec![1, 2])], &[Pin([7; 32])]).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in "\\PC{0,80}", jws in "[A-Za-z0-9._=-]{0,60}") {
            let _ = text.parse::<Token>();
            let _ = text.parse::<Pin>();
            let _ = text.parse::<Endpoint>();
            let _ = format!("sha256:{text}").parse::<Pin>();
            prop_assert!(!is_signed(&text, &text, &token()));
            prop_assert!(!is_signed(&jws, &text, &token()));
        }
    }
}
