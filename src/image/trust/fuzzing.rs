//! See [`image::fuzzing`](crate::image::fuzzing). The keys below sign nothing else: their private halves are gone.

use std::fs::{self, File};
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Evidence, Settings, Signature, Transport, Trust, Verification, cosign, keys, minisign};
use crate::image::Digest;

const NAME: &str = "host.example/team/app:1";
const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEsGJxJmWrZerejbyuvy6cTCGVV7nS\n\
    OnVqxDRoNjY1nGjKq+8sBs86BnkAJvCNilbybZWwR2PCLTAO7xGctxcfuw==\n\
    -----END PUBLIC KEY-----\n";
/// Of [`PAYLOAD`], by [`KEY`].
const SIGNATURE: &str =
    "MEUCIB4qNPDUtwKG93Aii3xsQ1dgAddGJ+nUXunkEVyziiBmAiEA27wpP7N6MqES/+kWQuXLFfpruNjNt34qmUlsf4zAOfg=";
const PAYLOAD: &str = r#"{"critical":{"identity":{"docker-reference":"host.example/team/app:1"},"image":{"docker-manifest-digest":"sha256:1111111111111111111111111111111111111111111111111111111111111111"},"type":"cosign container image signature"},"optional":{"creator":"fuzz"}}"#;

const MINISIGN_KEY: &str = "RWSNlhCCvAa+ZuFKPNIaiUGx9yAUNMCZgFJVTTZuR9hwWxm6+4hEKt/t";
/// Signatures by [`MINISIGN_KEY`] of `archive`: of its hash, and of the old kind.
const MINISIGN: [&str; 2] = [
    "untrusted comment: signature from minisign secret key\nRUSNlhCCvAa+ZgWJK+Y8gf5zAIoqoUSGVBZnxRrTZ949Qd0Ny6wkXDHvMWOsp9hqsoiHqkKMxOmhewzGq9beap7EgPqkzSDoUgQ=\ntrusted comment: trusted\nx8lYtQ/13VDDNBL3OX6kqI+c3zPQh2H/02TeA0O7y2S7PvFno3wTmotegQVWwv2Moz+kxgH/pTrsYQhWReBDBA==\n",
    "untrusted comment: signature from minisign secret key\nRWSNlhCCvAa+ZiqtHc99JY5YtmAbaPvi2hdIJnJRhF657PlNlTc0iElAFNT3ubP9NK+Hl/Tp+C9l8UXkSFuvJuneW+AwY6xRuAM=\ntrusted comment: t\nANthBYOyIYSZfjAYbtmqvAPaIJtFXU7hpWv/dgnymB4spcfitG/w919hrYEpMAqIBOYRTVq+E0clOHfG7hPnAA==\n",
];

/// Policies, keys, payloads, signatures.
pub(in super::super) fn files(bytes: &[u8], dir: &Path) {
    policy(bytes, dir);
    let _ = keys::parse(bytes, "it");
    if let Ok(payload) = cosign::parse(bytes) {
        assert!(!payload.reference.is_empty());
    }
    signed(bytes, dir);
    archives(bytes, dir);
}

fn digest() -> Digest {
    format!("sha256:{}", "1".repeat(64)).parse().expect("a digest")
}

/// What cannot be read as a policy lets nothing in.
fn policy(bytes: &[u8], dir: &Path) {
    let path = dir.join("policy.json");
    fs::write(&path, bytes).expect("policy");
    let trust = Trust::new(Settings { policy: path, minisign_public_keys: Vec::new() });
    let digests = [digest()];
    let recorded = [Verification { name: NAME.into(), key: digest(), comment: None }];
    let json = serde_json::from_slice::<serde_json::Value>(bytes).is_ok();
    for (name, transport) in [(NAME, Transport::Docker), ("", Transport::OciArchive), (NAME, Transport::OciLayout)] {
        let evidence =
            Evidence { transport, name, digests: &digests, signatures: &[], archive_keys: &[], problems: &[] };
        let admitted = trust.admit(&evidence).is_ok();
        assert!(json || !admitted, "accepted by no policy");
        let still = trust.still_admits(name, &recorded).is_ok();
        assert!(json || !still, "accepted by no policy");
        // Where nothing vouches for an image and signatures are wanted, it stays out.
        assert!(transport != Transport::Docker || !admitted || !trust.wants_signatures(name).unwrap_or(true));
    }
    trust.revision();
}

/// The signature is good for what was signed, and for nothing else.
fn signed(bytes: &[u8], dir: &Path) {
    static SIGNED: LazyLock<(Vec<u8>, String)> = LazyLock::new(|| {
        let key = STANDARD.encode(KEY);
        let policy = format!(r#"{{"default":[{{"type":"sigstoreSigned","keyData":"{key}"}}]}}"#);
        (STANDARD.decode(SIGNATURE).expect("base64"), policy)
    });
    let (signature, policy) = &*SIGNED;
    let path = dir.join("signed.json");
    if !path.exists() {
        fs::write(&path, policy).expect("policy");
    }
    let trust = Trust::new(Settings { policy: path, minisign_public_keys: Vec::new() });
    let admit = |payload: &[u8], signature: &[u8]| {
        let signatures = [Signature { payload: payload.to_vec(), signature: signature.to_vec() }];
        let digests = [digest()];
        let transport = Transport::Docker;
        let evidence = Evidence {
            transport,
            name: NAME,
            digests: &digests,
            signatures: &signatures,
            archive_keys: &[],
            problems: &[],
        };
        trust.admit(&evidence).is_ok()
    };
    assert_eq!(admit(bytes, signature), bytes == PAYLOAD.as_bytes(), "good for something else");
    // ECDSA signatures can be written in more than one way, but none that is this short or long.
    assert!((64..80).contains(&bytes.len()) || !admit(PAYLOAD.as_bytes(), bytes), "signed by nobody");
}

/// The same of archives.
fn archives(bytes: &[u8], dir: &Path) {
    let own = minisign::Keys::new(&[MINISIGN_KEY.to_owned()]);
    assert!(own.unusable().is_empty());
    let path = dir.join("archive.tar");
    let verify = |content: &[u8], signature: &[u8]| {
        fs::write(&path, content).expect("archive");
        fs::write(minisign::signature_path(&path), signature).expect("signature");
        let file = File::open(&path).expect("archive");
        minisign::verify(&own, &path, &file).is_ok_and(|signed| signed.is_some())
    };
    for signature in MINISIGN {
        assert_eq!(verify(bytes, signature.as_bytes()), bytes == b"archive", "good for something else");
    }
    verify(b"archive", bytes);
    let lines: Vec<String> = String::from_utf8_lossy(bytes).lines().take(16).map(str::to_owned).collect();
    let keys = minisign::Keys::new(&lines);
    assert!(keys.none() == lines.is_empty());
}
