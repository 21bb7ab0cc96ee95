//! The certificates of this node: whose they are, and until when.

use crate::config::Config;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use std::path::{Path, PathBuf};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Most files that are looked at, of a folder.
const MOST: usize = 64;
/// Largest file, in bytes.
const LARGEST: u64 = 256 << 10;

/// A certificate, without its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Certificate {
    /// Name of the file.
    file: String,
    /// Whose it is.
    subject: String,
    /// Who signed it.
    issuer: String,
    /// From when it is good, in seconds since 1970.
    begins: i64,
    /// Until when.
    ends: i64,
}

/// Where this node keeps its own.
pub(super) fn folders(config: &Config) -> Vec<PathBuf> {
    let mut all = vec![config.cluster.cert_dir.clone(), config.root_dir.join("pki"), config.root_dir.join("pki/local")];
    all.sort();
    all.dedup();
    all
}

/// The first certificate of each file that has one, by name. Of those that were replaced none is told. Blocking.
pub(super) fn all(folders: &[PathBuf]) -> Vec<Certificate> {
    let mut found: Vec<Certificate> = Vec::new();
    for folder in folders {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MOST);
        let paths = files.map(|file| file.path()).filter(|path| is_in_use(path));
        found.extend(paths.filter_map(|path| read(&path)));
    }
    found.sort_by(|a, b| a.file.cmp(&b.file));
    found.dedup();
    found
}

/// As kubelet: `…-current.pem` leads to one of those with a date in their names.
fn is_in_use(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.ends_with("-current.pem") || name.ends_with(".crt")
}

fn read(path: &Path) -> Option<Certificate> {
    let file = path.file_name()?.to_string_lossy().into_owned();
    if std::fs::metadata(path).ok().filter(|file| file.is_file())?.len() > LARGEST {
        return None;
    }
    certificate(file, &std::fs::read(path).ok()?)
}

/// What is told of the first certificate in PEM.
fn certificate(file: String, pem: &[u8]) -> Option<Certificate> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, read) = X509Certificate::from_der(&der).ok()?;
    Some(Certificate {
        file,
        subject: read.subject().to_string(),
        issuer: read.issuer().to_string(),
        begins: read.validity().not_before.timestamp(),
        ends: read.validity().not_after.timestamp(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn those_in_use_are_told_without_their_keys() {
        let folder = std::env::temp_dir().join(format!("coracle-certificates-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("folder.crt")).expect("folder");
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n");
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let own = params.self_signed(&key).expect("certificate").pem();
        let both = format!("{}{own}", key.serialize_pem());
        for (name, text) in [
            ("kubelet-client-current.pem", &*both),
            ("kubelet-client-2026-01-01-00-00-00.pem", &*both),
            ("server.crt", &*own),
            ("server.key", &*key.serialize_pem()),
            ("broken.crt", "no certificate"),
        ] {
            std::fs::write(folder.join(name), text).expect("file");
        }
        let found = all(&[folder.clone(), folder.join("none")]);
        std::fs::remove_dir_all(&folder).expect("folder");
        let names: Vec<&str> = found.iter().map(|found| found.file.as_str()).collect();
        assert_eq!(names, ["kubelet-client-current.pem", "server.crt"]);
        assert_eq!((&*found[0].subject, found[0].ends - found[0].begins), ("CN=system:node:n", 365 * 86400));
        assert!(!serde_json::to_string(&found).expect("JSON").contains("PRIVATE"));
    }

    proptest! {
        #[test]
        fn any_file_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(certificate("f".into(), &bytes), None);
        }
    }
}
