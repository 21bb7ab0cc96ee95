//! The node's certificates: when they begin, when they are to be renewed, and where they are kept.
//!
//! The folder is the kubelet's: each certificate with its key is a file `kubelet-client-<when>.pem` (the one that others are
//! shown: `kubelet-server-<when>.pem`), and the link `kubelet-client-current.pem` leads to the one in use.

use crate::pod::clock::later;
use crate::sys::fs;
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a certificate is for, as the names of its files begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To say who the node is when it asks.
    Client,
    /// To say who it is when it is asked.
    Server,
}

impl Purpose {
    const ALL: [Purpose; 2] = [Purpose::Client, Purpose::Server];

    fn prefix(self) -> &'static str {
        match self {
            Purpose::Client => "kubelet-client-",
            Purpose::Server => "kubelet-server-",
        }
    }

    /// The link to the certificate in use, in the folder `dir`.
    pub(super) fn current(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}current.pem", self.prefix()))
    }

    /// The link before it is renamed.
    fn updated(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}updated.pem", self.prefix()))
    }

    /// `kubelet-client-2026-01-31-23-59-59.pem`.
    fn is_issued(self, name: &str) -> bool {
        let when = name.strip_prefix(self.prefix()).and_then(|rest| rest.strip_suffix(".pem"));
        when.is_some_and(|when| when.len() == 19 && when.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
    }
}

/// Most bytes of a file with certificates.
pub(super) const LIMIT: u64 = 1 << 20;
/// How many certificates are kept, the one in use included. Those before it are of use to nobody but thieves.
const KEPT: usize = 2;
/// By how much the signer has a certificate begin before it was made.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// Why a certificate cannot be used or kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It is none.
    #[error("{what}: {why}")]
    Unusable { what: String, why: String },
    /// It cannot be kept.
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// Somebody put a file there.
    #[error("{}: want a link, found something else; remove it", .0.display())]
    NoLink(PathBuf),
}

/// A client certificate's chain and key.
pub(super) struct Pair {
    /// The client's own comes first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    /// From when to when it is good.
    pub(super) life: Life,
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) begins: Timestamp,
    pub(super) ends: Timestamp,
}

impl Life {
    fn length(self) -> SignedDuration {
        self.ends.duration_since(self.begins).max(SignedDuration::ZERO)
    }

    /// When the certificate is to be renewed: as kubelet, after 70 to 90 percent of its life. Which of them is told by
    /// `random`, of the certificate, so that it is the same after a restart.
    pub(super) fn due(self, random: u8) -> Timestamp {
        let share = 0.7 + 0.2 * f64::from(random) / 255.0;
        later(self.begins, self.length().mul_f64(share))
    }

    /// The least time from one certificate to the next, by a clock that nobody sets: else a clock that is years ahead
    /// would have every new certificate renewed at once.
    pub(super) fn least(self) -> SignedDuration {
        (self.length() - BACKDATE).max(self.length() / 10) / 2
    }
}

impl Pair {
    /// Reads PEM. The key may stand among the certificates.
    ///
    /// # Errors
    /// [`Error::Unusable`]; `what` names it there.
    pub(super) fn read(chain: &[u8], key: &[u8], what: &str) -> Result<Pair, Error> {
        let unusable = |why: String| Error::Unusable { what: what.to_owned(), why };
        let chain = certificates(chain).map_err(unusable)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| unusable("no private key in PEM form".to_owned()))?;
        let life = life(&chain[0]).map_err(unusable)?;
        Ok(Pair { chain, key, life })
    }
}

/// The certificates in PEM: at least one.
///
/// # Errors
/// Why there is none.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| format!("not PEM: {e}"))?;
    if found.is_empty() { Err("no certificate in PEM form".to_owned()) } else { Ok(found) }
}

/// From when to when a certificate is good.
///
/// # Errors
/// That it is none.
pub(super) fn life(certificate: &CertificateDer<'_>) -> Result<Life, String> {
    let (_, read) = X509Certificate::from_der(certificate).map_err(|e| format!("not a certificate: {e}"))?;
    let at = |seconds| Timestamp::from_second(seconds).map_err(|_| "not a certificate: odd dates".to_owned());
    let validity = read.validity();
    Ok(Life { begins: at(validity.not_before.timestamp())?, ends: at(validity.not_after.timestamp())? })
}

/// The link to the client certificate in use, in the folder `dir`.
pub(super) fn current(dir: &Path) -> PathBuf {
    Purpose::Client.current(dir)
}

/// The file, in the folder `dir`, that names the kubeconfig's certificate that was taken over: by [`print`].
pub(super) fn taken_over(dir: &Path) -> PathBuf {
    dir.join("kubelet-client-taken-over")
}

/// What tells a certificate from all others: SHA-256 in hex.
pub(super) fn print(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes over a certificate that somebody gave the node, as [`keep`], until there is one of its own.
///
/// # Errors
/// As [`keep`].
pub(super) fn take_over(dir: &Path, chain: &str, key: &str, now: Timestamp) -> Result<(), Error> {
    keep(Purpose::Client, dir, chain, key, now)?;
    let Some(first) = certificates(chain.as_bytes()).ok().and_then(|all| all.into_iter().next()) else { return Ok(()) };
    // After the certificate: a name alone would vouch for whatever was kept before.
    let path = taken_over(dir);
    fs::atomic_write(&path, print(&first).as_bytes(), 0o600).map_err(|source| Error::Write { path, source })
}

/// Keeps a certificate and its key, both PEM, as the one in use from now on. Durable when this returns.
///
/// # Errors
/// [`Error::NoLink`] and [`Error::Write`]; the one that was in use is untouched then.
pub(super) fn keep(purpose: Purpose, dir: &Path, chain: &str, key: &str, now: Timestamp) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    let (current, updated) = (purpose.current(dir), purpose.updated(dir));
    for link in [&current, &updated] {
        match std::fs::symlink_metadata(link) {
            Ok(found) if !found.file_type().is_symlink() => return Err(Error::NoLink(link.clone())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Read { path: link.clone(), source }),
        }
    }
    fs::create_dir_all(dir, 0o700).map_err(failed(dir))?;
    let path = dir.join(format!("{}{}.pem", purpose.prefix(), now.strftime("%Y-%m-%d-%H-%M-%S")));
    let mut content = chain.trim_end().to_owned();
    content.push('\n');
    content.push_str(key);
    fs::atomic_write(&path, content.as_bytes(), 0o600).map_err(failed(&path))?;
    match std::fs::remove_file(&updated) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&updated)(error)),
        _ => {}
    }
    let target = std::path::absolute(&path).map_err(failed(&path))?;
    std::os::unix::fs::symlink(&target, &updated).map_err(failed(&updated))?;
    std::fs::rename(&updated, &current).map_err(failed(&current))?;
    fs::sync_dir(dir).map_err(failed(dir))?;
    tidy(purpose, dir, &path);
    Ok(())
}

/// Removes certificates that nothing leads to any more, but the last ones.
fn tidy(purpose: Purpose, dir: &Path, used: &Path) {
    let mut old: Vec<PathBuf> = issued(purpose, dir).into_iter().filter(|path| path != used).collect();
    old.sort();
    for path in old.iter().rev().skip(KEPT - 1) {
        // The next time, if not now.
        let _ = std::fs::remove_file(path);
    }
}

/// The certificates that were kept in a folder.
fn issued(purpose: Purpose, dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| purpose.is_issued(name)))
        .collect()
}

/// Removes all certificates and their keys that were kept in a folder, and the links.
///
/// # Errors
/// [`Error::Write`], after all that could be removed is.
pub(super) fn remove_all(dir: &Path) -> Result<(), Error> {
    let mut result = Ok(());
    let of = |purpose: Purpose| [purpose.current(dir), purpose.updated(dir)].into_iter().chain(issued(purpose, dir));
    for path in Purpose::ALL.into_iter().flat_map(of).chain([taken_over(dir)]) {
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => result = Err(Error::Write { path, source }),
            _ => {}
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_certificate_is_renewed_late_in_its_life() {
        let life = Life { begins: at("2026-01-01T00:00:00Z"), ends: at("2026-01-11T00:00:00Z") };
        assert_eq!(life.due(0), at("2026-01-08T00:00:00Z"));
        assert_eq!(life.due(255), at("2026-01-10T00:00:00Z"));
        assert!(life.least() < SignedDuration::from_hours(5 * 24));
        // A minute, and five before it began.
        let short = Life { begins: at("2026-01-01T00:00:00Z"), ends: at("2026-01-01T00:06:00Z") };
        assert_eq!(short.least(), SignedDuration::from_secs(30));
        let none = Life { begins: short.ends, ends: short.begins };
        assert_eq!((none.due(9), none.least()), (none.begins, SignedDuration::ZERO));
    }

    fn certificate() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn certificates_are_kept_as_the_kubelet_keeps_them() {
        let dir = std::env::temp_dir().join(format!("coracle-certificates-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (chain, key) = certificate();
        for (n, when) in ["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"].iter().enumerate() {
            keep(Purpose::Client, &dir, &chain, &key, at(when)).unwrap();
            let name = format!("kubelet-client-2026-0{}-01-00-00-00.pem", n + 1);
            assert_eq!(std::fs::read_link(dir.join("kubelet-client-current.pem")).unwrap(), dir.join(name));
        }
        let content = std::fs::read(dir.join("kubelet-client-current.pem")).unwrap();
        Pair::read(&content, &content, "it").unwrap();
        assert_eq!(issued(Purpose::Client, &dir).len(), KEPT);
        // What is not a link was put there by somebody else.
        let other = dir.join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("kubelet-client-current.pem"), "x").unwrap();
        let error = keep(Purpose::Client, &other, &chain, &key, at("2026-01-01T00:00:00Z")).unwrap_err();
        assert!(matches!(error, Error::NoLink(_)), "{error}");
        std::fs::write(dir.join("kubelet.crt"), "x").unwrap();
        remove_all(&dir).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["kubelet.crt", "other"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let (chain, key) = certificate();
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (chain, key, why) in [
            (key.as_str(), key.as_str(), "it: no certificate in PEM form"),
            (&chain, &chain, "it: no private key in PEM form"),
            (broken, &key, "it: not a certificate"),
            ("", "", "it: no certificate"),
        ] {
            let error = Pair::read(chain.as_bytes(), key.as_bytes(), "it").err().unwrap().to_string();
            assert!(error.starts_with(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Pair::read(&bytes, &bytes, "it");
            let _ = life(&CertificateDer::from(bytes.clone()));
            let pem = format!(
                "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
                base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes)
            );
            let _ = Pair::read(pem.as_bytes(), pem.as_bytes(), "it");
        }
    }
}
