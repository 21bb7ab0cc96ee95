//! The certificate that the node shows to who asks it, issued by the cluster (`serverTLSBootstrap`).
//!
//! Nobody approves the request by default: somebody has to, and until then the node has nothing to show. A new one is asked
//! for late in its life, as for the client certificate, and when the node's addresses are others.

use super::certificates::{self, Pair, Purpose};
use super::context::Context;
use super::csr::{self, Wanted};
use super::{Connection, Machine};
use crate::causes;
use crate::pod::clock::later;
use crate::sys::{clock, fs};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Between two looks at whether the certificate is to be renewed, or the addresses are others.
const CHECK: Duration = Duration::from_secs(30);
/// Between two attempts at a certificate: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// A certificate to show, and its key.
pub struct Serving(Pair);

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("life", &self.0.life).finish_non_exhaustive()
    }
}

impl Serving {
    /// The one that was issued before; `None`: none, or none that can be read. Blocks.
    pub(super) fn kept(dir: &Path) -> Option<Serving> {
        let path = Purpose::Server.current(dir);
        let content = fs::read_limited(&path, certificates::LIMIT).ok()?;
        match Pair::read(&content, &content, &path.display().to_string()) {
            Ok(pair) => Some(Serving(pair)),
            Err(error) => {
                tracing::warn!("the serving certificate cannot be used: {error}");
                None
            }
        }
    }

    /// The chain, the node's own certificate first, and its key.
    #[must_use]
    pub fn identity(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.0.chain.clone(), self.0.key.clone_key())
    }

    /// When it ends.
    #[must_use]
    pub fn ends(&self) -> Timestamp {
        self.0.life.ends
    }

    /// Whether it is time for another one.
    fn is_due(&self, now: Timestamp) -> bool {
        // Of the certificate, so that it is the same after a restart.
        let random = self.0.chain.first().and_then(|own| own.last()).copied().unwrap_or_default();
        now >= self.0.life.due(random)
    }

    /// Whether it is for these addresses.
    fn is_for(&self, wanted: &Addresses) -> bool {
        self.0.chain.first().and_then(|own| Addresses::of_certificate(own)).as_ref() == Some(wanted)
    }
}

/// What others reach the node by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Addresses {
    names: BTreeSet<String>,
    ips: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Of the Node object (as kubelet: names that are addresses count as such).
    fn of(node: &Node) -> Addresses {
        let mut found = Addresses::default();
        let listed = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        for address in listed.iter().filter(|address| !address.address.is_empty()) {
            match (address.type_.as_str(), address.address.parse()) {
                ("InternalIP" | "ExternalIP" | "Hostname", Ok(ip)) => drop(found.ips.insert(ip)),
                ("Hostname" | "InternalDNS" | "ExternalDNS", _) => drop(found.names.insert(address.address.clone())),
                _ => {}
            }
        }
        found
    }

    fn of_certificate(der: &CertificateDer<'_>) -> Option<Addresses> {
        let (_, read) = X509Certificate::from_der(der).ok()?;
        let mut found = Addresses::default();
        let listed = read.subject_alternative_name().ok()?.map(|names| names.value.general_names.as_slice());
        for name in listed.unwrap_or_default() {
            match name {
                GeneralName::DNSName(name) => drop(found.names.insert((*name).to_owned())),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok();
                    found.ips.extend(v4.or_else(|| <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok()));
                }
                _ => {}
            }
        }
        Some(found)
    }
}

/// Until it is dropped.
pub(super) async fn run(context: &Arc<Context>, machine: &Arc<dyn Machine>, connection: &Connection) {
    if !context.wants_serving {
        return std::future::pending().await;
    }
    let mut pause = FIRST_PAUSE;
    // By the time that nobody sets: a clock that is years ahead would have every new certificate renewed at once.
    let mut rests_until = None;
    loop {
        let wanted = Addresses::of(&machine.node());
        let have = context.serving.borrow().clone();
        let rests = rests_until.is_some_and(|until| clock::now() < until);
        let fits = have.as_ref().is_some_and(|have| have.is_for(&wanted) && (rests || !have.is_due(clock::wall())));
        // As kubelet: the signer takes none without an IP address.
        if fits || wanted.ips.is_empty() {
            tokio::time::sleep(CHECK).await;
            continue;
        }
        match obtain(context, connection, &wanted).await {
            Ok(issued) => {
                tracing::info!("the cluster issued a serving certificate");
                rests_until = Some(later(clock::now(), issued.0.life.least()));
                context.serving.send_replace(Some(Arc::new(issued)));
                pause = FIRST_PAUSE;
            }
            Err(why) => {
                machine.note(true, "ServingCertificateNotIssued", format!("there is no serving certificate: {why}"));
                tokio::time::sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }
}

/// Asks for a certificate with a new key, and keeps it.
async fn obtain(context: &Context, connection: &Connection, addresses: &Addresses) -> Result<Serving, String> {
    let failed = |error: csr::Error| causes::chain(&error);
    let wanted = Wanted::serving(&context.node_name, &addresses.names, &addresses.ips).map_err(failed)?;
    let told = watch::Sender::new(String::new());
    let tell = |what: String| {
        // Once each: it may take days.
        if *told.borrow() != what {
            tracing::info!("no serving certificate yet: {what}");
            told.send_replace(what);
        }
    };
    let chain = wanted.obtain(&connection.client, tell).await.map_err(failed)?;
    let dir = context.config.cert_dir.clone();
    let kept = tokio::task::spawn_blocking(move || {
        let pair = Pair::read(chain.as_bytes(), wanted.key.as_bytes(), "the certificate")?;
        certificates::keep(Purpose::Server, &dir, &chain, &wanted.key, clock::wall())?;
        Ok(Serving(pair))
    });
    let kept = kept.await.map_err(|error| error.to_string())?;
    kept.map_err(|error: certificates::Error| causes::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeAddress, NodeStatus};

    fn addresses(listed: &[(&str, &str)]) -> Addresses {
        let listed = listed
            .iter()
            .map(|(type_, address)| NodeAddress { type_: (*type_).to_owned(), address: (*address).to_owned() });
        let status = NodeStatus { addresses: Some(listed.collect()), ..NodeStatus::default() };
        Addresses::of(&Node { status: Some(status), ..Node::default() })
    }

    #[test]
    fn a_certificate_is_for_the_addresses_of_the_node() {
        let listed = [("InternalIP", "10.0.0.1"), ("InternalIP", "fd00::1"), ("Hostname", "edge-1"), ("Other", "x")];
        let wanted = addresses(&listed);
        assert_eq!((wanted.names.len(), wanted.ips.len()), (1, 2));
        assert_eq!(addresses(&[("Hostname", "10.0.0.9")]).ips.len(), 1);
        let names = ["edge-1".to_owned(), "10.0.0.1".to_owned(), "fd00::1".to_owned()];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let pair = Pair::read(certificate.pem().as_bytes(), key.serialize_pem().as_bytes(), "it").unwrap();
        let serving = Serving(pair);
        assert!(serving.is_for(&wanted));
        assert!(!serving.is_for(&addresses(&listed[1..])));
        assert!(serving.is_due(serving.ends()) && !serving.is_due(serving.0.life.begins));
        assert!(!format!("{serving:?}").contains("key"));
    }
}
