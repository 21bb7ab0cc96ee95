//! Public keys as cosign and openssl write them: PEM, SubjectPublicKeyInfo.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::{RawPublicKeyEntity, ring};

use super::super::Digest;
use crate::sys::keyfile::content;

/// Most keys in one file.
const MOST_KEYS: usize = 32;

/// What a signature may be made with. As cosign: SHA-256 with every key but Ed25519, and by newer versions the hash
/// that fits the curve.
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    ring::ECDSA_P256_SHA256,
    ring::ECDSA_P384_SHA256,
    ring::ECDSA_P384_SHA384,
    ring::ED25519,
    ring::RSA_PKCS1_2048_8192_SHA256,
    ring::RSA_PKCS1_2048_8192_SHA384,
    ring::RSA_PKCS1_2048_8192_SHA512,
    ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// The shortest encoding of an RSA key of 2048 bits: its modulus takes 256 bytes, what is around it at least 36.
const SHORTEST_RSA: usize = 292;

/// A public key that images may be signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    spki: SubjectPublicKeyInfoDer<'static>,
    /// Digest of its DER form: its name in records and errors.
    pub fingerprint: Digest,
    /// Where it was found, for errors.
    pub from: String,
}

impl Key {
    fn new(spki: SubjectPublicKeyInfoDer<'static>, from: &str) -> Result<Key, String> {
        let entity = RawPublicKeyEntity::try_from(&spki).map_err(|_| "not a SubjectPublicKeyInfo".to_owned())?;
        // No signature is empty, so what is told apart here is only whether an algorithm is for this kind of key.
        let fits: Vec<_> = (ALGORITHMS.iter())
            .filter(|algorithm| {
                !matches!(
                    entity.verify_signature(**algorithm, b"", b""),
                    Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_))
                )
            })
            .collect();
        match fits.first() {
            None => {
                return Err("neither ECDSA on P-256 or P-384, nor Ed25519, nor RSA".to_owned());
            }
            Some(first)
                if first.public_key_alg_id() == ring::RSA_PKCS1_2048_8192_SHA256.public_key_alg_id()
                    && spki.len() < SHORTEST_RSA =>
            {
                return Err("an RSA key of less than 2048 bits".to_owned());
            }
            Some(_) => {}
        }
        Ok(Key { fingerprint: Digest::of(&spki), spki, from: from.to_owned() })
    }

    /// Whether `signature` is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(entity) = RawPublicKeyEntity::try_from(&self.spki) else { return false };
        ALGORITHMS.iter().any(|algorithm| entity.verify_signature(*algorithm, message, signature).is_ok())
    }

    /// For people: enough of the fingerprint to tell keys apart, and where the key is.
    pub fn describe(&self) -> String {
        format!("key sha256:{:.16} ({})", self.fingerprint.hex(), self.from)
    }
}

/// The keys of a PEM text; `from` says where it is.
///
/// # Errors
/// Why there is no key to be had.
pub fn parse(pem: &[u8], from: &str) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for found in SubjectPublicKeyInfoDer::pem_slice_iter(pem) {
        let spki = found.map_err(|_| "malformed PEM".to_owned())?;
        if keys.len() == MOST_KEYS {
            return Err(format!("more than {MOST_KEYS} keys"));
        }
        keys.push(Key::new(spki, from)?);
    }
    for spki in pkcs1(pem) {
        let spki = spki.ok_or("malformed PEM")?;
        if keys.len() == MOST_KEYS {
            return Err(format!("more than {MOST_KEYS} keys"));
        }
        keys.push(Key::new(spki, from)?);
    }
    if keys.is_empty() {
        let private = pem.windows(11).any(|word| word == b"PRIVATE KEY");
        let hint = if private { ": a private key does not belong here" } else { "" };
        return Err(format!("no PEM block \"PUBLIC KEY\" in it{hint}"));
    }
    Ok(keys)
}

/// The keys in the older form that is for RSA only (RFC 8017, A.1.1), made into the general one; `None`: malformed.
fn pkcs1(pem: &[u8]) -> Vec<Option<SubjectPublicKeyInfoDer<'static>>> {
    let text = String::from_utf8_lossy(pem);
    let blocks = text.split("-----BEGIN RSA PUBLIC KEY-----").skip(1);
    let key = |block: &str| {
        let (body, _) = block.split_once("-----END RSA PUBLIC KEY-----")?;
        let body: String = body.split_ascii_whitespace().collect();
        let key = STANDARD.decode(body).ok()?;
        let content = [&[0][..], &key].concat();
        Some(der(0x30, &[RSA_ENCRYPTION, &der(0x03, &content)].concat()).into())
    };
    blocks.map(key).collect()
}

/// `AlgorithmIdentifier` of rsaEncryption, with its NULL.
const RSA_ENCRYPTION: &[u8] = &[0x30, 13, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 0x05, 0];

/// A DER value: tag, length, content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut all = vec![tag];
    let length = content.len().to_be_bytes();
    let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    match content.len() {
        short @ 0..128 => all.push(short as u8),
        _ => {
            all.push(0x80 | significant.len() as u8);
            all.extend(significant);
        }
    }
    all.extend_from_slice(content);
    all
}

/// The keys of a PEM file. Read whenever they are needed, so that a rotated key counts at once.
///
/// # Errors
/// Why there is no key to be had.
pub fn read(path: &Path) -> Result<Vec<Key>, String> {
    parse(&content(path)?, &path.display().to_string())
}
