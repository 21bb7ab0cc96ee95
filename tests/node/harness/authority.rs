//! Certificates, as `kubeadm init phase certs` makes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::json;
use std::fs;
use std::path::Path;

/// Who signs.
pub struct Authority {
    pub pem: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("key");
        let pem = params.self_signed(&key).expect("certificate").pem();
        Authority { pem, key: key.serialize_pem(), issuer: Issuer::new(params, key) }
    }

    /// A certificate for these names, good for both ends of a connection, and its key.
    pub fn issue(&self, name: &str, group: Option<&str>, names: &[&str]) -> (String, String) {
        self.issue_with(name, group, names, |_| {})
    }

    /// The same, with other parameters: another validity, say.
    pub fn issue_with(
        &self,
        name: &str,
        group: Option<&str>,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        (params.signed_by(&key, &self.issuer).expect("certificate").pem(), key.serialize_pem())
    }

    pub fn write(&self, dir: &Path, name: &str) {
        fs::create_dir_all(dir).expect("folder");
        write_pair(dir, name, (self.pem.clone(), self.key.clone()));
    }

    /// A kubeconfig with everything in it, by a new certificate.
    pub fn kubeconfig(&self, server: &str, user: &str, group: Option<&str>) -> String {
        kubeconfig(server, &self.pem, user, self.issue(user, group, &[]))
    }
}

/// A kubeconfig with everything in it.
pub fn kubeconfig(server: &str, authority: &str, user: &str, (certificate, key): (String, String)) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "kubernetes", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(authority),
        } }],
        "users": [{ "name": user, "user": {
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key),
        } }],
        "contexts": [{ "name": "it", "context": { "cluster": "kubernetes", "user": user } }],
        "current-context": "it",
    })
    .to_string()
}

/// `<name>.crt` and `<name>.key`.
pub fn write_pair(dir: &Path, name: &str, (certificate, key): (String, String)) {
    fs::write(dir.join(format!("{name}.crt")), certificate).expect("certificate");
    fs::write(dir.join(format!("{name}.key")), key).expect("key");
}

/// `sa.key` and `sa.pub`, which sign service accounts' tokens.
pub fn write_accounts_key(dir: &Path) {
    let key = KeyPair::generate().expect("key");
    fs::write(dir.join("sa.key"), key.serialize_pem()).expect("key");
    fs::write(dir.join("sa.pub"), key.public_key_pem()).expect("key");
}
