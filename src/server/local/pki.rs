//! The authority of the local API, and what it issues: the server's certificate and those in kubeconfigs.
//!
//! One file has the authority and its key. What it issues is not kept: the server's certificate is made when it is needed,
//! and a client's leaves in a kubeconfig. A new authority is therefore the end of all kubeconfigs.

use crate::sys::{clock, fs};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use sha2::{Digest, Sha256};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Name of the file with the authority and its key.
const FILE: &str = "ca.pem";
/// How long an authority is good.
const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// How long a client's certificate is good; the server's is renewed after half of it.
const LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// An authority that ends sooner is replaced: it would issue nothing of use.
const LAST: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Most bytes of the file.
const LIMIT: u64 = 1 << 16;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A key or certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The authority is there but of no use.
    #[error("{} holds no authority with its key: remove it, and all kubeconfigs with it, by coracle kubeconfig --revoke", .0.display())]
    Damaged(PathBuf),
    /// The authority cannot be read.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The authority cannot be kept.
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Who issues certificates.
pub(super) struct Authority {
    pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, as PEM.
pub(super) struct Issued {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// What the certificate of the server is for.
pub(super) struct Serving {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// When it is to be replaced.
    pub(super) due: Timestamp,
}

fn key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
}

/// What every certificate begins with. It is good from long before now: the clock may still be set back.
fn params(ends: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    let date = ends.to_zoned(TimeZone::UTC).date();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(i32::from(date.year()), date.month() as u8, date.day() as u8);
    params.distinguished_name = DistinguishedName::new();
    params
}

/// An authority's own: told by its key, so that two of them cannot be taken for each other.
fn authority_params(key: &KeyPair, ends: Timestamp) -> CertificateParams {
    let print = Sha256::digest(key.public_key_raw());
    let print: String = print.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let mut params = params(ends);
    params.distinguished_name.push(DnType::CommonName, format!("coracle local API {print}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn later(by: SignedDuration) -> Timestamp {
    crate::pod::clock::later(clock::for_certificates(), by)
}

impl Authority {
    /// The authority in a folder, made when there is none or its end is near.
    ///
    /// # Errors
    /// When it cannot be read or made. What is damaged is not replaced: somebody may have a copy.
    pub(super) fn open(dir: &Path) -> Result<Authority, Error> {
        match Authority::read(dir)? {
            Some(authority) if authority.ends() > later(LAST) => Ok(authority),
            _ => Authority::create(dir),
        }
    }

    /// The authority in a folder; `None`: there is none.
    ///
    /// # Errors
    /// As [`Authority::open`].
    pub(super) fn read(dir: &Path) -> Result<Option<Authority>, Error> {
        let path = dir.join(FILE);
        let content = match fs::read_limited(&path, LIMIT) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Read { path, source }),
        };
        let read = || {
            let certificate = CertificateDer::from_pem_slice(&content).ok()?;
            let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_slice(&content).ok()? else { return None };
            Authority::of(KeyPair::try_from(&key).ok()?, certificate)
        };
        read().map(Some).ok_or(Error::Damaged(path))
    }

    fn of(key: KeyPair, certificate: CertificateDer<'static>) -> Option<Authority> {
        let (_, own) = X509Certificate::from_der(&certificate).ok()?;
        if own.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return None;
        }
        let pem = pem("CERTIFICATE", &certificate);
        let issuer = Issuer::new(authority_params(&key, clock::for_certificates()), key);
        Some(Authority { pem, certificate, issuer })
    }

    fn create(dir: &Path) -> Result<Authority, Error> {
        let path = dir.join(FILE);
        let failed = |source| Error::Write { path: path.clone(), source };
        let key = key()?;
        let certificate = authority_params(&key, later(AUTHORITY_LIFE)).self_signed(&key)?;
        fs::create_dir_all(dir, 0o700).map_err(failed)?;
        let content = format!("{}{}", certificate.pem(), key.serialize_pem());
        fs::atomic_write(&path, content.as_bytes(), 0o600).map_err(failed)?;
        let certificate = certificate.der().clone();
        Authority::of(key, certificate).ok_or(Error::Damaged(path))
    }

    /// Forgets the authority: what it has issued counts no more.
    ///
    /// # Errors
    /// [`Error::Write`]
    pub(super) fn remove(dir: &Path) -> Result<(), Error> {
        let path = dir.join(FILE);
        match std::fs::remove_file(&path).and_then(|()| fs::sync_dir(dir)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Write { path, source }),
            _ => Ok(()),
        }
    }

    fn ends(&self) -> Timestamp {
        let ends = X509Certificate::from_der(&self.certificate).map(|(_, own)| own.validity().not_after.timestamp());
        ends.ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::MIN)
    }

    /// Its own certificate, in PEM.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// A client's certificate.
    ///
    /// # Errors
    /// [`Error::Make`]
    pub(super) fn client(&self, name: &str, group: &str) -> Result<Issued, Error> {
        let key = key()?;
        let mut params = params(later(LIFE).min(self.ends()));
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    /// A certificate of the server, for this machine's loopback and for the node's name.
    ///
    /// # Errors
    /// [`Error::Make`]
    pub(super) fn server(&self, node: &str) -> Result<Serving, Error> {
        let key = key()?;
        let mut params = params(later(LIFE).min(self.ends()));
        params.distinguished_name.push(DnType::CommonName, "coracle local API");
        let names = ["localhost", node].into_iter().filter_map(|name| name.try_into().ok().map(SanType::DnsName));
        let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(SanType::IpAddress);
        params.subject_alt_names = names.chain(addresses).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
        Ok(Serving { chain: vec![certificate], key, due: later(LIFE / 2) })
    }

    /// The groups in a certificate that this authority issued to a client and that is good now; else why it is not.
    ///
    /// # Errors
    /// For people.
    pub(super) fn groups(&self, chain: &[CertificateDer<'_>]) -> Result<Vec<String>, String> {
        let own = chain.first().ok_or("no client certificate was shown")?;
        let anchor = webpki::anchor_from_trusted_cert(&self.certificate).map_err(|error| error.to_string())?;
        let end = webpki::EndEntityCert::try_from(own).map_err(|error| error.to_string())?;
        let seconds = u64::try_from(clock::for_certificates().as_second()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let usage = webpki::KeyUsage::client_auth();
        end.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &[anchor], &[], now, usage, None, None)
            .map_err(|error| error.to_string())?;
        let (_, read) = X509Certificate::from_der(own).map_err(|error| error.to_string())?;
        let groups = read.subject().iter_organization().filter_map(|group| group.as_str().ok());
        Ok(groups.map(str::to_owned).collect())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn chain(issued: &Issued) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()]
    }

    #[test]
    fn only_what_the_authority_issued_to_clients_counts() {
        let dir = std::env::temp_dir().join(format!("coracle-local-pki-{}", std::process::id()));
        let first = Authority::open(&dir).unwrap();
        let file = dir.join(FILE);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let client = first.client("coracle:admin", "coracle:admins").unwrap();
        assert_eq!(first.groups(&chain(&client)).unwrap(), ["coracle:admins"]);
        assert!(first.groups(&[]).is_err());
        // The server's is no client's.
        assert!(first.groups(&first.server("n1").unwrap().chain).is_err());
        // It is the same after a restart.
        let again = Authority::open(&dir).unwrap();
        assert_eq!(again.pem(), first.pem());
        assert!(again.groups(&chain(&client)).is_ok());
        assert!(again.groups(&chain(&again.client("a", "b").unwrap())).is_ok());
        // A new one knows nothing of what the old one issued.
        Authority::remove(&dir).unwrap();
        Authority::remove(&dir).unwrap();
        let other = Authority::open(&dir).unwrap();
        assert_ne!(other.pem(), first.pem());
        assert!(other.groups(&chain(&client)).is_err());
        // What is damaged is told, not replaced.
        std::fs::write(&file, "nothing").unwrap();
        assert!(matches!(Authority::open(&dir), Err(Error::Damaged(_))));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
