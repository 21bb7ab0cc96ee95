//! The authorities that this machine trusts.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::rustls::RootCertStore;

use super::{Environment, Unusable, kept};
use crate::sys;

/// Most bytes of a bundle; Debian's has some 220 kB.
const LIMIT: u64 = 8 * 1024 * 1024;

/// The bundle on Debian, Alpine and Arch; Fedora; openSUSE; others.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cacert.pem",
];

/// Folders with one authority per file.
const FOLDERS: &[&str] = &["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// The files to read: those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, else the machine's bundle, else its folders. Named
/// ones must be there.
fn places(environment: &Environment) -> Result<Vec<PathBuf>, Unusable> {
    let file = environment.get("SSL_CERT_FILE");
    let folders = environment.get("SSL_CERT_DIR");
    if file.is_some() || folders.is_some() {
        let mut places: Vec<PathBuf> = file.map(PathBuf::from).into_iter().collect();
        for folder in folders.unwrap_or_default().split(':').filter(|folder| !folder.is_empty()) {
            places.extend(files(Path::new(folder))?);
        }
        return Ok(places);
    }
    if let Some(bundle) = BUNDLES.iter().map(PathBuf::from).find(|bundle| bundle.is_file()) {
        return Ok(vec![bundle]);
    }
    Ok(FOLDERS.iter().filter_map(|folder| files(Path::new(folder)).ok()).flatten().collect())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Unusable> {
    let unreadable = |e: std::io::Error| kept::unreadable(folder, &e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The authorities of the machine; `None`: it has none, so those that are built in must do.
pub fn of_machine(environment: &Environment) -> Result<Option<RootCertStore>, Unusable> {
    let mut store = RootCertStore::empty();
    for place in places(environment)? {
        let content = sys::fs::read_limited(&place, LIMIT).map_err(|e| kept::unreadable(&place, &e))?;
        // What one of a hundred files holds besides certificates, or an odd certificate, is no reason to trust none.
        for der in CertificateDer::pem_slice_iter(&content).flatten() {
            let _ = store.add(der);
        }
    }
    Ok(Some(store).filter(|store| !store.is_empty()))
}

/// Those of Mozilla, as of the crate's version.
pub fn built_in() -> RootCertStore {
    webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()
}

/// The authorities in a file that somebody named: all must be usable.
pub fn of_file(path: &Path, store: &mut RootCertStore) -> Result<(), Unusable> {
    for (n, der) in certificates(path)?.into_iter().enumerate() {
        if let Err(e) = store.add(der) {
            let reason = format!("certificate {} is not one of an authority: {e}", n + 1);
            return Err(Unusable { path: path.to_owned(), reason });
        }
    }
    Ok(())
}

/// The certificates in a PEM file, at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let damaged = |reason: String| Unusable { path: path.to_owned(), reason };
    let content = sys::fs::read_limited(path, LIMIT).map_err(|e| kept::unreadable(path, &e))?;
    let found = CertificateDer::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|e| damaged(format!("not PEM: {e}")))?;
    if found.is_empty() {
        return Err(damaged("no certificate in PEM form".into()));
    }
    Ok(found)
}
