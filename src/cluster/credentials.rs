//! From kubeconfigs and certificates on the disk to what a connection needs.

use super::certificates::{self, Life, Pair};
use super::kubeconfig::{self, Access, Pem};
use crate::config;
use crate::http;
use crate::http::place::{Place, is_loopback};
use crate::sys::fs;
use hyper::Uri;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::ClientConfig;

/// Most bytes of a kubeconfig.
const LIMIT: u64 = 4 << 20;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The kubeconfig is none, or not one for a node.
    #[error("{}", path.display())]
    Kubeconfig { path: PathBuf, source: kubeconfig::Error },
    /// Something in it, or a file that it names, makes no sense.
    #[error("{}: {why}", path.display())]
    Unusable { path: PathBuf, why: String },
    /// A certificate is none.
    #[error("{}", path.display())]
    Certificate { path: PathBuf, source: certificates::Error },
}

/// All that a connection needs.
pub(super) struct Credentials {
    pub(super) access: Access,
    pub(super) server: Uri,
    pub(super) tls: Arc<ClientConfig>,
    /// Those that the kubeconfig has the API server vouched for by; empty: it names none.
    pub(super) authorities: Arc<Vec<CertificateDer<'static>>>,
    /// Of the client certificate, where there is one.
    pub(super) life: Option<Life>,
    /// The client certificate and its key in PEM, when they are not in the folder of certificates yet.
    pub(super) foreign: Option<(Vec<u8>, Vec<u8>)>,
    /// Of everything that makes them: the same credentials have the same.
    pub(super) digest: [u8; 32],
}

/// What is on the disk.
pub(super) enum Found {
    /// No credentials.
    Nothing,
    /// Some that cannot be used: why.
    Unusable(String),
    /// Some that are good for asking for a certificate only.
    Bootstrap(Box<Credentials>),
    /// The node's own.
    Ready(Box<Credentials>),
}

impl Found {
    /// Whether both are the same.
    pub(super) fn is(&self, other: &Found) -> bool {
        match (self, other) {
            (Found::Nothing, Found::Nothing) => true,
            (Found::Unusable(a), Found::Unusable(b)) => a == b,
            (Found::Bootstrap(a), Found::Bootstrap(b)) | (Found::Ready(a), Found::Ready(b)) => a.digest == b.digest,
            _ => false,
        }
    }
}

/// What was found, and how the files looked then.
pub(super) struct Survey {
    pub(super) found: Found,
    /// Where the node has credentials of its own: those to ask for others with.
    pub(super) spare: Option<Box<Credentials>>,
    pub(super) stamps: Stamps,
}

/// How files looked: whether they are the same still can be told cheaply.
#[derive(Debug, Clone, Default)]
pub(super) struct Stamps(BTreeMap<PathBuf, Option<Stamp>>);

impl Stamps {
    /// Whether the files look otherwise now.
    pub(super) fn are_outdated(&self) -> bool {
        self.0.iter().any(|(path, known)| stamp(path) != *known)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

fn stamp(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some(Stamp(found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

impl Survey {
    /// Looks at the disk; blocks. `now` is by which certificates expire; `None`: they do not, for the clock is wrong.
    pub(super) fn of(config: &config::Cluster, now: Option<Timestamp>) -> Survey {
        let mut reader = Reader::default();
        let own = reader.load(&config.kubeconfig, config.rotate_certificates.then_some(&*config.cert_dir));
        let spare = reader.load(&config.bootstrap_kubeconfig, None);
        let stamps = reader.stamps;
        let (found, spare) = choose(own, spare, now, config.rotate_certificates);
        Survey { found, spare, stamps }
    }
}

type Loaded = Result<Option<Credentials>, Error>;

/// As kubelet: credentials to ask for others with count when the own ones cannot be used, and not before.
fn choose(own: Loaded, spare: Loaded, now: Option<Timestamp>, renews: bool) -> (Found, Option<Box<Credentials>>) {
    let expired = |own: &Credentials| now.is_some_and(|now| own.life.is_some_and(|life| life.ends < now));
    let spare = spare.map(|spare| spare.map(Box::new));
    match (own, spare) {
        (Ok(Some(own)), Ok(Some(spare))) if expired(&own) => (Found::Bootstrap(spare), None),
        (Ok(Some(own)), spare) => (Found::Ready(Box::new(own)), spare.ok().flatten().filter(|_| renews)),
        (_, Ok(Some(spare))) => (Found::Bootstrap(spare), None),
        (Err(error), _) => (Found::Unusable(crate::causes::chain(&error)), None),
        (Ok(None), Err(error)) => (Found::Unusable(crate::causes::chain(&error)), None),
        (Ok(None), Ok(None)) => (Found::Nothing, None),
    }
}

/// Reads files, and remembers how they looked.
#[derive(Default)]
struct Reader {
    stamps: Stamps,
}

impl Reader {
    fn file(&mut self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        // Before it is read: what changes meanwhile is seen the next time.
        self.stamps.0.insert(path.to_owned(), stamp(path));
        fs::read_limited(path, limit)
    }

    fn pem(&mut self, pem: &Pem) -> Result<Vec<u8>, Error> {
        match pem {
            Pem::Data(data) => Ok(data.clone()),
            Pem::File(path) => {
                self.file(path, certificates::LIMIT).map_err(|source| Error::Read { path: path.clone(), source })
            }
        }
    }

    /// What the kubeconfig at `path` amounts to; `None`: there is no such file. A certificate in the folder `store` counts
    /// more, unless the kubeconfig's begins later: then somebody gave the node a new one.
    fn load(&mut self, path: &Path, store: Option<&Path>) -> Loaded {
        let text = match self.file(path, LIMIT) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        };
        let unusable = |why: String| Error::Unusable { path: path.to_owned(), why };
        let text = String::from_utf8(text).map_err(|_| unusable("not UTF-8 text".to_owned()))?;
        let folder = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let folder = folder.parent().unwrap_or(Path::new("/"));
        let access =
            Access::read(&text, folder).map_err(|source| Error::Kubeconfig { path: path.to_owned(), source })?;
        let server = server(&access).map_err(unusable)?;
        let mut digest = Sha256::new();
        digest.update(format!("{access:?}"));
        let authority = access.authority.as_ref().map(|pem| self.pem(pem)).transpose()?;
        let mut client = None;
        let mut foreign = None;
        if let Some((chain, key)) = &access.certificate {
            let what = || "client-certificate".to_owned();
            let (chain, key) = (self.pem(chain)?, self.pem(key)?);
            let certificate = |source| Error::Certificate { path: path.to_owned(), source };
            let mut pair = Pair::read(&chain, &key, &what()).map_err(certificate)?;
            if let Some(store) = store {
                let kept = self.file(&certificates::current(store), certificates::LIMIT).ok();
                let kept = kept.and_then(|kept| Pair::read(&kept, &kept, &what()).ok());
                let mark = self.file(&certificates::taken_over(store), LIMIT).ok();
                let is_known = mark.is_some_and(|mark| mark == certificates::print(&pair.chain[0]).as_bytes());
                let is_same = kept.as_ref().is_some_and(|kept| kept.chain[0] == pair.chain[0]);
                match kept {
                    // It was replaced by one of the node's own, whenever that begins: signers date back.
                    Some(kept) if is_known && !is_same => pair = kept,
                    Some(kept) if !is_known && kept.life.begins >= pair.life.begins => pair = kept,
                    _ => foreign = Some((chain, key)),
                }
            }
            digest.update(&pair.chain[0]);
            client = Some(pair);
        }
        let life = client.as_ref().map(|pair| pair.life);
        let identity = client.map(|pair| (pair.chain, pair.key));
        let mut authorities = Vec::new();
        let tls = if access.insecure {
            http::unverified_tls_as(identity).map_err(|e| unusable(e.to_string()))
        } else if let Some(authority) = &authority {
            let wrong = |why: String| unusable(format!("certificate-authority: {why}"));
            digest.update(authority);
            let roots = certificates::certificates(authority).map_err(wrong)?;
            let tls = http::tls_of(&roots, identity).map_err(|e| unusable(e.to_string()));
            authorities = roots;
            tls
        } else {
            http::tls_of_machine(identity).map_err(|e| unusable(e.to_string()))
        }?;
        // The text of a token, which `Access` does not show.
        digest.update(&text);
        let (tls, authorities) = (Arc::new(tls), Arc::new(authorities));
        Ok(Some(Credentials { access, server, tls, authorities, life, foreign, digest: digest.finalize().into() }))
    }
}

/// Where requests go. What says who we are never goes over the network without TLS.
fn server(access: &Access) -> Result<Uri, String> {
    let wrong = |why: &str| format!("cluster.server: {}: {why}", http::place::show(&access.server));
    let place = Place::of(&access.server).ok_or_else(|| wrong("not a URL of http or https"))?;
    if place.plain && !is_loopback(&place.host) {
        return Err(wrong("credentials are not sent without TLS; want https"));
    }
    access.server.parse().map_err(|_| wrong("not a URL"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    struct Disk(PathBuf, config::Cluster);

    impl Disk {
        fn new(name: &str) -> Disk {
            let dir = std::env::temp_dir().join(format!("coracle-credentials-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).unwrap();
            let config = config::Cluster {
                kubeconfig: dir.join("kubeconfig"),
                bootstrap_kubeconfig: dir.join("bootstrap"),
                cert_dir: dir.join("pki"),
                ..config::Cluster::default()
            };
            Disk(dir, config)
        }

        fn write(&self, name: &str, user: &str) {
            let text = format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                 clusters: [{{name: k, cluster: {{server: 'https://127.0.0.1:1', insecure-skip-tls-verify: true}}}}]\n\
                 users: [{{name: u, user: {{{user}}}}}]\n"
            );
            std::fs::write(self.0.join(name), text).unwrap();
        }

        fn survey(&self, now: &str) -> Survey {
            Survey::of(&self.1, Some(now.parse().unwrap()))
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn certificate(years: [i32; 2]) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(years[0], 1, 1);
        params.not_after = rcgen::date_time_ymd(years[1], 1, 1);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    const NOW: &str = "2027-06-01T00:00:00Z";
    const BY_FILE: &str =
        "client-certificate: pki/kubelet-client-current.pem, client-key: pki/kubelet-client-current.pem";

    #[test]
    fn own_credentials_count_as_long_as_they_are_good() {
        let disk = Disk::new("own");
        assert!(matches!(disk.survey(NOW).found, Found::Nothing));
        disk.write("bootstrap", "token: abcdef.0123456789abcdef");
        assert!(matches!(disk.survey(NOW).found, Found::Bootstrap(_)));
        // The kubeconfig is written before there is a certificate.
        disk.write("kubeconfig", BY_FILE);
        assert!(matches!(disk.survey(NOW).found, Found::Bootstrap(_)));
        let (chain, key) = certificate([2027, 2028]);
        certificates::keep(certificates::Purpose::Client, &disk.1.cert_dir, &chain, &key, NOW.parse().unwrap())
            .unwrap();
        let survey = disk.survey(NOW);
        assert!(matches!(&survey.found, Found::Ready(own) if own.foreign.is_none()) && survey.spare.is_some());
        assert!(matches!(disk.survey("2029-01-01T00:00:00Z").found, Found::Bootstrap(_)));
        // As one is that was issued a moment ago.
        assert!(matches!(Survey::of(&disk.1, None).found, Found::Ready(_)));
        // Without anything else, an expired certificate is used: it may be the clock that is wrong.
        std::fs::remove_file(disk.0.join("bootstrap")).unwrap();
        assert!(matches!(disk.survey("2029-01-01T00:00:00Z").found, Found::Ready(_)));
        std::fs::remove_dir_all(disk.0.join("pki")).unwrap();
        let Found::Unusable(why) = disk.survey(NOW).found else { panic!("not usable") };
        assert!(why.contains("cannot read") && why.contains("kubelet-client-current.pem"), "{why}");
    }

    #[test]
    fn of_two_certificates_the_one_that_begins_later_is_used() {
        let disk = Disk::new("two");
        let (chain, key) = certificate([2027, 2028]);
        std::fs::write(disk.0.join("own.pem"), format!("{chain}{key}")).unwrap();
        disk.write("kubeconfig", "client-certificate: own.pem, client-key: own.pem");
        let ready = |survey: Survey| match survey.found {
            Found::Ready(own) => own,
            Found::Unusable(why) => panic!("{why}"),
            _ => panic!("not ready"),
        };
        let begins = |own: &Credentials| own.life.unwrap().begins.strftime("%Y").to_string();
        assert!(ready(disk.survey(NOW)).foreign.is_some());
        for (year, used, foreign) in [(2026, "2027", true), (2028, "2028", false)] {
            let (chain, key) = certificate([year, 2030]);
            certificates::keep(certificates::Purpose::Client, &disk.1.cert_dir, &chain, &key, NOW.parse().unwrap())
                .unwrap();
            let own = ready(disk.survey(NOW));
            assert_eq!((begins(&own).as_str(), own.foreign.is_some()), (used, foreign));
        }
    }

    #[test]
    fn a_certificate_that_was_taken_over_and_replaced_does_not_come_back() {
        let disk = Disk::new("replaced");
        let (chain, key) = certificate([2027, 2028]);
        std::fs::write(disk.0.join("own.pem"), format!("{chain}{key}")).unwrap();
        disk.write("kubeconfig", "client-certificate: own.pem, client-key: own.pem");
        let now: Timestamp = NOW.parse().unwrap();
        let used = || match disk.survey(NOW).found {
            Found::Ready(own) => (own.life.unwrap().begins.strftime("%Y").to_string(), own.foreign.is_some()),
            _ => panic!("not ready"),
        };
        assert_eq!(used(), ("2027".to_owned(), true));
        certificates::take_over(&disk.1.cert_dir, &chain, &key, now).unwrap();
        assert_eq!(used(), ("2027".to_owned(), true), "still to be replaced");
        // The signer dates back.
        let (chain, key) = certificate([2026, 2030]);
        certificates::keep(
            certificates::Purpose::Client,
            &disk.1.cert_dir,
            &chain,
            &key,
            now + jiff::SignedDuration::from_secs(60),
        )
        .unwrap();
        assert_eq!(used(), ("2026".to_owned(), false));
        // Somebody gives the node a new one.
        let (chain, key) = certificate([2028, 2031]);
        std::fs::write(disk.0.join("own.pem"), format!("{chain}{key}")).unwrap();
        assert_eq!(used(), ("2028".to_owned(), true));
        certificates::remove_all(&disk.1.cert_dir).unwrap();
        assert_eq!(std::fs::read_dir(&disk.1.cert_dir).unwrap().count(), 0);
    }

    #[test]
    fn changes_on_the_disk_are_seen_and_the_same_content_is_no_change() {
        let disk = Disk::new("changes");
        disk.write("kubeconfig", "tokenFile: token");
        let first = disk.survey(NOW);
        assert!(!first.stamps.are_outdated());
        disk.write("kubeconfig.new", "tokenFile: token");
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().append(true).open(disk.0.join("kubeconfig.new")).unwrap().set_modified(later).unwrap();
        std::fs::rename(disk.0.join("kubeconfig.new"), disk.0.join("kubeconfig")).unwrap();
        assert!(first.stamps.are_outdated() && first.found.is(&disk.survey(NOW).found));
        disk.write("kubeconfig", "token: other");
        assert!(!first.found.is(&disk.survey(NOW).found));
        disk.write("bootstrap", "token: abcdef.0123456789abcdef");
        std::fs::remove_file(disk.0.join("kubeconfig")).unwrap();
        assert!(!first.found.is(&disk.survey(NOW).found));
    }

    #[test]
    fn nothing_secret_goes_without_tls() {
        let disk = Disk::new("plain");
        for (server, fine) in [
            ("http://10.0.0.1:6443", false),
            ("http://127.0.0.1:8080", true),
            ("https://10.0.0.1:6443/k8s/clusters/a", true),
            ("ftp://a", false),
            ("https://user:secret@a", false),
        ] {
            disk.write("kubeconfig", "token: t");
            let path = disk.0.join("kubeconfig");
            let text = std::fs::read_to_string(&path).unwrap().replace("https://127.0.0.1:1", server);
            std::fs::write(&path, text).unwrap();
            match disk.survey(NOW).found {
                Found::Ready(_) => assert!(fine, "{server}"),
                Found::Unusable(why) => assert!(!fine && !why.contains("secret"), "{why}"),
                _ => panic!("{server}"),
            }
        }
    }
}
