//! Policies, keys and signatures together. Keys and signatures are made here; those that openssl and minisign make are
//! checked from outside, in `tests/node/trust.rs`.

use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use expect_test::expect;
use proptest::prelude::*;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use serde_json::{Value, json};

use super::*;

const APP: &str = "registry.example/team/app:1";

/// A folder with a policy.
struct Scene(PathBuf);

impl Scene {
    fn new() -> Scene {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!("coracle-trust-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        Scene(dir)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn policy(&self, policy: &Value) -> Trust {
        let policy = self.write("policy.json", policy.to_string());
        Trust::new(Settings { policy, minisign_public_keys: Vec::new() })
    }

    /// Without this machine's own names in it.
    fn plain(&self, text: impl ToString) -> String {
        text.to_string().replace(&self.0.display().to_string(), "DIR")
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn fingerprint(key: &KeyPair) -> Digest {
    Digest::of(&key.subject_public_key_info())
}

fn payload(reference: &str, digest: &str) -> Vec<u8> {
    json!({
        "critical": {
            "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
    .into_bytes()
}

fn sign(key: &KeyPair, reference: &str, digest: &Digest) -> Signature {
    let payload = payload(reference, digest.as_str());
    Signature { signature: key.sign(&payload).unwrap(), payload }
}

fn evidence<'a>(name: &'a str, digests: &'a [Digest], signatures: &'a [Signature]) -> Evidence<'a> {
    Evidence { transport: Transport::Docker, name, digests, signatures, archive_keys: &[], problems: &[] }
}

fn signed_policy(keys: Value) -> Value {
    let mut requirement = json!({ "type": "sigstoreSigned" });
    requirement.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    json!({ "default": [{ "type": "reject" }], "transports": { "docker": { "registry.example": [requirement] } } })
}

#[test]
fn no_policy_accepts_everything() {
    let scene = Scene::new();
    let trust = Trust::new(Settings { policy: scene.0.join("none"), minisign_public_keys: Vec::new() });
    assert!(trust.admit(&evidence(APP, &[], &[])).unwrap().is_empty());
    assert!(!trust.wants_signatures(APP).unwrap());
    trust.still_admits(APP, &[]).unwrap();
    assert!(Trust::default().still_admits(APP, &[]).is_ok());
}

#[test]
fn a_signature_by_any_of_the_keys_is_needed() {
    let scene = Scene::new();
    let algorithms = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519].map(key);
    let stranger = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let digests = [Digest::of(b"manifest"), Digest::of(b"index")];
    let paths: Vec<PathBuf> = (algorithms.iter().enumerate())
        .map(|(number, key)| scene.write(&format!("{number}.pub"), key.public_key_pem()))
        .collect();
    let trust = scene.policy(&signed_policy(json!({ "keyPaths": paths })));
    assert!(trust.wants_signatures(APP).unwrap() && !trust.wants_signatures("docker.io/library/a:1").unwrap());
    for key in &algorithms {
        for digest in &digests {
            let good = sign(key, APP, digest);
            let other = sign(&stranger, APP, digest);
            let verified = trust.admit(&evidence(APP, &digests, &[other, good])).unwrap();
            assert_eq!(verified, [Verification { name: APP.into(), key: fingerprint(key), comment: None }]);
            trust.still_admits(APP, &verified).unwrap();
            assert!(trust.still_admits("registry.example/team/app:2", &verified).is_err());
            // The keys that are wanted may change: other files, or other content.
            let only = scene.policy(&signed_policy(json!({ "keyData": STANDARD.encode(stranger.public_key_pem()) })));
            assert!(only.still_admits(APP, &verified).is_err());
            scene.policy(&signed_policy(json!({ "keyPaths": paths })));
        }
    }
    let verified = trust.admit(&evidence(APP, &digests, &[sign(&algorithms[0], APP, &digests[0])])).unwrap();
    scene.write("0.pub", stranger.public_key_pem());
    assert!(trust.still_admits(APP, &verified).is_err(), "a key that is gone counts no more");
    scene.write("0.pub", format!("{}{}", stranger.public_key_pem(), algorithms[0].public_key_pem()));
    trust.still_admits(APP, &verified).unwrap();
}

#[test]
fn whatever_was_tampered_with_is_refused_with_the_reason() {
    let scene = Scene::new();
    let (pair, stranger) = (key(&rcgen::PKCS_ECDSA_P256_SHA256), key(&rcgen::PKCS_ECDSA_P256_SHA256));
    let path = scene.write("key.pub", pair.public_key_pem());
    let trust = scene.policy(&signed_policy(json!({ "keyPath": path })));
    let digest = Digest::of(b"manifest");
    let digests = [digest.clone()];
    let good = sign(&pair, APP, &digest);
    trust.admit(&evidence(APP, &digests, std::slice::from_ref(&good))).unwrap();

    let signed = |payload: Vec<u8>| Signature { signature: pair.sign(&payload).unwrap(), payload };
    let document = |change: fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&good.payload).unwrap();
        change(&mut value);
        signed(value.to_string().into_bytes())
    };
    let mut altered = good.clone();
    altered.payload.push(b' ');
    let mut cut = good.clone();
    cut.signature.truncate(20);
    let mut flipped = good.clone();
    flipped.signature[10] ^= 1;
    let cases = [
        ("none", vec![]),
        ("altered payload", vec![altered]),
        ("truncated", vec![cut]),
        ("flipped", vec![flipped]),
        ("empty", vec![Signature { signature: Vec::new(), ..good.clone() }]),
        ("another key", vec![sign(&stranger, APP, &digest)]),
        ("another digest", vec![sign(&pair, APP, &Digest::of(b"other"))]),
        ("another repository", vec![sign(&pair, "registry.example/team/other:1", &digest)]),
        ("another tag", vec![sign(&pair, "registry.example/team/app:2", &digest)]),
        ("only a repository", vec![sign(&pair, "registry.example/team/app", &digest)]),
        ("no name", vec![sign(&pair, "", &digest)]),
        ("no reference", vec![sign(&pair, "Not A Name", &digest)]),
        ("another type", vec![document(|v| v["critical"]["type"] = json!("attestation"))]),
        ("a critical field", vec![document(|v| v["critical"]["until"] = json!("tomorrow"))]),
        ("not JSON", vec![signed(b"\xff{".to_vec())]),
    ];
    let fingerprint = format!("{:.16}", fingerprint(&pair).hex());
    let mut said = String::new();
    for (case, signatures) in cases {
        let refusal = trust.admit(&evidence(APP, &digests, &signatures)).unwrap_err();
        let text = scene.plain(refusal).replace(&fingerprint, "FINGERPRINT");
        let text = text.strip_prefix("registry.example/team/app:1: no good signature, which transports.docker.\"registry.example\" of the signature policy requires: ");
        said.push_str(&format!("{case}: {}\n", text.unwrap()));
    }
    expect![[r#"
        none: the image comes with no signature
        altered payload: signature 1: does not verify with key sha256:FINGERPRINT (DIR/key.pub)
        truncated: signature 1: does not verify with key sha256:FINGERPRINT (DIR/key.pub)
        flipped: signature 1: does not verify with key sha256:FINGERPRINT (DIR/key.pub)
        empty: signature 1: does not verify with key sha256:FINGERPRINT (DIR/key.pub)
        another key: signature 1: does not verify with key sha256:FINGERPRINT (DIR/key.pub)
        another digest: signature 1: is for another image, sha256:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa
        another repository: signature 1: is for registry.example/team/other:1
        another tag: signature 1: is for registry.example/team/app:2
        only a repository: signature 1: is for registry.example/team/app without a tag, as cosign signs: such signatures need "signedIdentity": {"type": "matchRepository"}
        no name: signature 1: its payload names no image
        no reference: signature 1: is for "Not A Name", which is not an image's name
        another type: signature 1: its payload is of type "attestation", not "cosign container image signature"
        a critical field: signature 1: its payload cannot be read: unknown field `until`, expected one of `type`, `identity`, `image` at line 1 column 233
        not JSON: signature 1: its payload cannot be read: expected value at line 1 column 1
    "#]].assert_eq(&said);
    // The optional part may say anything, and the older type is as good.
    for fine in [
        document(|v| v["optional"] = json!({ "creator": "me", "n": [1] })),
        document(|v| drop(v.as_object_mut().unwrap().remove("optional"))),
        document(|v| v["critical"]["type"] = json!("atomic container signature")),
    ] {
        trust.admit(&evidence(APP, &digests, &[fine])).unwrap();
    }
}

#[test]
fn identities() {
    let digest = Digest::of(b"manifest");
    let by_digest = format!("registry.example/team/app@{digest}");
    let both = format!("{APP}@{digest}");
    let mirror = "mirror.example/cache/team/app:1";
    let repository = "registry.example/team/app";
    let table = [
        (json!({ "type": "matchExact" }), APP, APP, true),
        (json!({ "type": "matchExact" }), APP, repository, false),
        (json!({ "type": "matchExact" }), by_digest.as_str(), APP, false),
        (json!({ "type": "matchExact" }), by_digest.as_str(), by_digest.as_str(), true),
        (json!({ "type": "matchExact" }), APP, "registry.example/team/app:2", false),
        (json!({ "type": "matchRepoDigestOrExact" }), APP, APP, true),
        (json!({ "type": "matchRepoDigestOrExact" }), APP, repository, false),
        (json!({ "type": "matchRepoDigestOrExact" }), by_digest.as_str(), repository, true),
        (json!({ "type": "matchRepoDigestOrExact" }), by_digest.as_str(), APP, true),
        (json!({ "type": "matchRepoDigestOrExact" }), both.as_str(), "registry.example/team/app:9", true),
        (json!({ "type": "matchRepoDigestOrExact" }), by_digest.as_str(), "registry.example/other", false),
        (json!({ "type": "matchRepository" }), APP, repository, true),
        (json!({ "type": "matchRepository" }), APP, "registry.example/team/app:2", true),
        (json!({ "type": "matchRepository" }), APP, "registry.example/team/apps", false),
        (json!({ "type": "matchRepository" }), "docker.io/library/nginx:1", "nginx", true),
        (json!({ "type": "exactReference", "dockerReference": "a.example/b:1" }), APP, "a.example/b:1", true),
        (json!({ "type": "exactReference", "dockerReference": "a.example/b:1" }), APP, APP, false),
        (json!({ "type": "exactReference", "dockerReference": "a.example/b:1" }), APP, "a.example/b", false),
        (json!({ "type": "exactRepository", "dockerRepository": "a.example/b" }), APP, "a.example/b:7", true),
        (json!({ "type": "exactRepository", "dockerRepository": "a.example/b" }), APP, APP, false),
        (
            json!({ "type": "remapIdentity", "prefix": "mirror.example/cache", "signedPrefix": "registry.example" }),
            mirror,
            APP,
            true,
        ),
        (
            json!({ "type": "remapIdentity", "prefix": "mirror.example/cache", "signedPrefix": "registry.example" }),
            mirror,
            mirror,
            false,
        ),
        (
            json!({ "type": "remapIdentity", "prefix": "mirror.example/ca", "signedPrefix": "registry.example" }),
            mirror,
            mirror,
            true,
        ),
        (
            json!({ "type": "remapIdentity", "prefix": "mirror.example/cache/team/app", "signedPrefix": "registry.example/team/app" }),
            mirror,
            APP,
            true,
        ),
    ];
    for (identity, image, signed, accepted) in table {
        let parsed: identity::Identity = serde_json::from_value(identity.clone()).unwrap();
        let image = Named::parse(image);
        assert_eq!(parsed.check(image.as_ref(), signed).is_ok(), accepted, "{identity} {image:?} {signed}");
    }
}

#[test]
fn the_longest_scope_counts() {
    let digest = Digest::of(b"manifest");
    let scopes = [
        "registry.example:5000/team/app:1".to_owned(),
        format!("registry.example:5000/team/app@{digest}"),
        "registry.example:5000/team/app".to_owned(),
        "registry.example:5000/team".to_owned(),
        "registry.example:5000".to_owned(),
        "*.example".to_owned(),
        "*.b.example".to_owned(),
        "docker.io/library".to_owned(),
        String::new(),
    ];
    let any = json!([{ "type": "insecureAcceptAnything" }]);
    let docker: serde_json::Map<String, Value> = scopes.iter().map(|scope| (scope.clone(), any.clone())).collect();
    let policy = json!({
        "default": any,
        "transports": {
            "docker": docker,
            "docker-archive": { "": any },
            "oci-archive": { "/srv/images": any, "/srv/images/app.tar": any },
            "docker-daemon": { "": any },
        },
    });
    let policy = Policy::parse(policy.to_string().as_bytes()).unwrap();
    let by_digest = format!("registry.example:5000/team/app:1@{digest}");
    let mut said = String::new();
    for (transport, name, archive) in [
        (Transport::Docker, "registry.example:5000/team/app:1", None),
        (Transport::Docker, by_digest.as_str(), None),
        (Transport::Docker, "registry.example:5000/team/app:2", None),
        (Transport::Docker, "registry.example:5000/team/apple:1", None),
        (Transport::Docker, "registry.example:5000/other/app:1", None),
        (Transport::Docker, "registry.example/team/app:1", None),
        (Transport::Docker, "a.b.example:80/team/app:1", None),
        (Transport::Docker, "b.example/app:1", None),
        (Transport::Docker, "example/app:1", None),
        (Transport::Docker, "nginx", None),
        (Transport::Docker, "other.test/app", None),
        (Transport::DockerArchive, "nginx", Some("/srv/images/app.tar")),
        (Transport::OciArchive, "nginx", Some("/srv/images/app.tar")),
        (Transport::OciArchive, "nginx", Some("/srv/images/more/other.tar")),
        (Transport::OciArchive, "nginx", Some("/srv/app.tar")),
        (Transport::OciLayout, "nginx", Some("/srv/images/app.tar")),
    ] {
        let found = policy.find(transport, Named::parse(name).as_ref(), archive.map(Path::new));
        said.push_str(&format!("{transport:?} {name} {}: {found}\n", archive.unwrap_or_default()));
    }
    expect![[r#"
        Docker registry.example:5000/team/app:1 : transports.docker."registry.example:5000/team/app:1"
        Docker registry.example:5000/team/app:1@DIGEST : transports.docker."registry.example:5000/team/app@DIGEST"
        Docker registry.example:5000/team/app:2 : transports.docker."registry.example:5000/team/app"
        Docker registry.example:5000/team/apple:1 : transports.docker."registry.example:5000/team"
        Docker registry.example:5000/other/app:1 : transports.docker."registry.example:5000"
        Docker registry.example/team/app:1 : transports.docker."*.example"
        Docker a.b.example:80/team/app:1 : transports.docker."*.b.example"
        Docker b.example/app:1 : transports.docker."*.example"
        Docker example/app:1 : transports.docker.""
        Docker nginx : transports.docker."docker.io/library"
        Docker other.test/app : transports.docker.""
        DockerArchive nginx /srv/images/app.tar: transports.docker-archive.""
        OciArchive nginx /srv/images/app.tar: transports.oci-archive."/srv/images/app.tar"
        OciArchive nginx /srv/images/more/other.tar: transports.oci-archive."/srv/images"
        OciArchive nginx /srv/app.tar: transports.docker."docker.io/library"
        OciLayout nginx /srv/images/app.tar: transports.docker."docker.io/library"
    "#]]
    .assert_eq(&said.replace(digest.as_str(), "DIGEST"));
    let bare = Policy::parse(br#"{"default":[{"type":"reject"}]}"#).unwrap();
    assert_eq!(bare.find(Transport::OciLayout, None, None).to_string(), "default");
}

#[test]
fn policies_are_read_strictly() {
    let key = STANDARD.encode(key(&rcgen::PKCS_ED25519).public_key_pem());
    let reject = r#"[{"type":"reject"}]"#;
    let mut said = String::new();
    for text in [
        String::new(),
        "{}".into(),
        r#"{"default":[]}"#.into(),
        r#"{"default":{"type":"reject"}}"#.into(),
        r#"{"default":[{"type":"rejekt"}]}"#.into(),
        r#"{"default":[{"type":"reject","keyPath":"/k"}]}"#.into(),
        r#"{"default":[{"type":"reject","comment":""}]}"#.into(),
        r#"{"default":[{"type":"reject","type":"reject"}]}"#.into(),
        format!("{{\"default\":{reject},\n\"default\":{reject}}}"),
        format!("{{\"default\":{reject},\n\"extra\":1}}"),
        format!("{{\"default\":{reject},\n\"transports\":{{\"docker\":{{\"a.b\":{reject},\n\"a.b\":{reject}}}}}}}"),
        format!("{{\"default\":{reject},\n\"transports\":{{\"oci\":{{\"a.b\":{reject}}}}}}}"),
        format!("{{\"default\":{reject},\n\"transports\":{{\"docker\":{{\"a.b\":[]}}}}}}"),
        r#"{"default":[{"type":"sigstoreSigned"}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","keyPaths":["/b"]}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyPaths":[]}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyDatas":[]}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"keys/a.pub"}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyData":"!"}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyData":"aGVsbG8="}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyType":"GPGKeys","keyPath":"/a"}]}"#.into(),
        format!(r#"{{"default":[{{"type":"sigstoreSigned","keyData":"{key}","signedIdentity":{{"type":"any"}}}}]}}"#),
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"matchExact","prefix":"a"}}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"exactReference"}}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"exactReference","dockerReference":"a.b/c"}}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"exactRepository","dockerRepository":"a.b/c:1"}}]}"#.into(),
        r#"{"default":[{"type":"sigstoreSigned","keyPath":"/a","signedIdentity":{"type":"remapIdentity","prefix":"a.b/","signedPrefix":"c.d"}}]}"#.into(),
    ] {
        let error = Policy::parse(text.as_bytes()).unwrap_err();
        said.push_str(&format!("{error}\n"));
    }
    expect![[r#"
        EOF while parsing a value at line 1 column 0
        missing field `default` at line 1 column 2
        a list of requirements must not be empty at line 1 column 14
        invalid type: map, expected a sequence at line 1 column 11
        unknown type of requirement "rejekt" at line 1 column 30
        a requirement of type reject has no field keyPath at line 1 column 45
        unknown field `comment`, expected one of `type`, `keyType`, `keyPath`, `keyPaths`, `keyData`, `keyDatas`, `fulcio`, `pki`, `rekorPublicKeyPath`, `rekorPublicKeyPaths`, `rekorPublicKeyData`, `rekorPublicKeyDatas`, `signedIdentity` at line 1 column 38
        duplicate field `type` at line 1 column 35
        duplicate field `default` at line 2 column 9
        unknown field `extra`, expected `default` or `transports` at line 2 column 7
        "a.b" is there twice at line 3 column 5
        transports.oci: "a.b" is not an absolute path of an archive or folder (without a name of an image), nor ""
        a list of requirements must not be empty at line 2 column 33
        a requirement of type sigstoreSigned needs exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio, pki, not 0 at line 1 column 38
        a requirement of type sigstoreSigned needs exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio, pki, not 2 at line 1 column 71
        keyPaths must not be empty at line 1 column 52
        keyDatas must not be empty at line 1 column 52
        the path of a key must be absolute, not keys/a.pub at line 1 column 61
        keyData is not base64: Invalid symbol 33, offset 0. at line 1 column 52
        keyData: no PEM block "PUBLIC KEY" in it at line 1 column 59
        a requirement of type sigstoreSigned has no field keyType at line 1 column 73
        unknown type of signedIdentity "any" at line 1 column 234
        signedIdentity of type matchExact has no field prefix at line 1 column 104
        signedIdentity of type exactReference needs dockerReference at line 1 column 95
        dockerReference: "a.b/c" has neither tag nor digest at line 1 column 121
        dockerRepository: "a.b/c:1" is not a repository at line 1 column 125
        prefix: "a.b/" is neither a host nor the beginning of a repository at line 1 column 131
    "#]].assert_eq(&said);
    let fine = json!({ "default": [{ "type": "insecureAcceptAnything" }], "transports": {
        "docker": { "a.b": [{ "type": "sigstoreSigned", "keyData": key, "signedIdentity": { "type": "matchRepository" } }] },
        "docker-daemon": { "": [{ "type": "insecureAcceptAnything" }] },
    } });
    Policy::parse(fine.to_string().as_bytes()).unwrap();
}

/// As Fedora ships: signed by GPG for its own registry, anything for others.
#[test]
fn what_is_not_supported_refuses_only_what_it_is_for() {
    let scene = Scene::new();
    let trust = scene.policy(&json!({
        "default": [{ "type": "insecureAcceptAnything" }],
        "transports": { "docker": {
            "registry.example": [{ "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/etc/pki/key" }],
            "fulcio.example": [{ "type": "sigstoreSigned", "fulcio": { "caPath": "/a" }, "rekorPublicKeyPath": "/b" }],
            "rekor.example": [{ "type": "sigstoreSigned", "keyPath": "/a", "rekorPublicKeyPath": "/b" }],
        } },
    }));
    trust.admit(&evidence("docker.io/library/nginx:1", &[], &[])).unwrap();
    for name in [APP, "fulcio.example/a:1", "rekor.example/a:1"] {
        let refusal = trust.admit(&evidence(name, &[], &[])).unwrap_err();
        assert!(matches!(&refusal, Refusal::Policy { reason, .. } if reason.contains("not supported")), "{refusal}");
        assert!(trust.still_admits(name, &[]).is_err());
    }
}

#[test]
fn a_policy_that_cannot_be_used_refuses_everything_until_it_is_mended() {
    let scene = Scene::new();
    let trust = scene.policy(&json!({ "default": [{ "type": "insecureAcceptAnything" }] }));
    trust.still_admits(APP, &[]).unwrap();
    scene.write("policy.json", "{\n  \"default\": [}");
    let refusals = [trust.still_admits(APP, &[]).unwrap_err(), trust.admit(&evidence(APP, &[], &[])).unwrap_err()];
    for refusal in refusals {
        let text = scene.plain(refusal);
        assert_eq!(text, "cannot use the signature policy DIR/policy.json: expected value at line 2 column 15");
    }
    assert!(trust.wants_signatures(APP).is_err());
    // The same size, within the same tick of the clock.
    let mut policy = json!({ "default": [{ "type": "reject" }], "transports": {} }).to_string();
    scene.write("policy.json", &policy);
    assert_eq!(trust.still_admits(APP, &[]).unwrap_err(), Refusal::Rejected { name: APP.into() });
    policy = policy.replace("reject", "rejekt");
    scene.write("policy.json", &policy);
    assert!(matches!(trust.still_admits(APP, &[]), Err(Refusal::Policy { .. })));
    fs::remove_file(scene.0.join("policy.json")).unwrap();
    trust.still_admits(APP, &[]).unwrap();
    fs::create_dir(scene.0.join("policy.json")).unwrap();
    assert!(matches!(trust.still_admits(APP, &[]), Err(Refusal::Policy { .. })));
}

#[test]
fn all_requirements_of_a_list_must_hold() {
    let scene = Scene::new();
    let keys = [key(&rcgen::PKCS_ECDSA_P256_SHA256), key(&rcgen::PKCS_ED25519)];
    let requirement =
        |key: &KeyPair| json!({ "type": "sigstoreSigned", "keyData": STANDARD.encode(key.public_key_pem()) });
    let trust = scene.policy(&json!({ "default": [
        { "type": "insecureAcceptAnything" }, requirement(&keys[0]), requirement(&keys[1]),
    ] }));
    let digests = [Digest::of(b"manifest")];
    let signatures = keys.each_ref().map(|key| sign(key, APP, &digests[0]));
    assert!(trust.admit(&evidence(APP, &digests, &signatures[..1])).is_err());
    let verified = trust.admit(&evidence(APP, &digests, &signatures)).unwrap();
    assert_eq!(verified.len(), 2);
    trust.still_admits(APP, &verified).unwrap();
    assert!(trust.still_admits(APP, &verified[..1]).is_err());
}

#[test]
fn bad_keys_say_why() {
    let scene = Scene::new();
    let private = key(&rcgen::PKCS_ED25519).serialize_pem();
    for (content, why) in [
        ("", "no PEM block \"PUBLIC KEY\" in it"),
        ("-----BEGIN PUBLIC KEY-----\naGVsbG8=\n-----END PUBLIC KEY-----\n", "not a SubjectPublicKeyInfo"),
        ("-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----\n", "malformed PEM"),
        ("-----BEGIN PUBLIC KEY-----\naGVsbG8=\n", "malformed PEM"),
        (&private, "a private key does not belong here"),
        (WEAK_RSA, "less than 2048 bits"),
        (&"x".repeat(70_000), "larger than"),
    ] {
        let path = scene.write("key.pub", content);
        let error = keys::read(&path).unwrap_err();
        assert!(error.contains(why), "{content:.40}: {error}");
    }
    assert!(keys::read(&scene.0).unwrap_err().contains("not a regular file"));
    assert!(keys::read(&scene.0.join("none")).unwrap_err().contains("cannot read it"));
    let trust = scene.policy(&signed_policy(json!({ "keyPath": scene.0.join("none") })));
    let digests = [Digest::of(b"manifest")];
    let pair = key(&rcgen::PKCS_ED25519);
    let refusal = trust.admit(&evidence(APP, &digests, &[sign(&pair, APP, &digests[0])])).unwrap_err();
    assert!(scene.plain(&refusal).contains("key DIR/none: cannot read it: No such file"), "{refusal}");
}

/// `openssl genrsa 1024 | openssl rsa -pubout`
const WEAK_RSA: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCtRR5pTStMwMxdG5tWiOM52owM
D8YCG7aOR6aQwbshJCQyPattz9pamFw3Ow1fIFe7/Dy1W1529KQRS/UMK8RrRB2O
WOJI63ZvNFdcRsvHmIBRvD0JN1BgxFy8FCoKV3toW/6Sc6KQsrhUHHo2gS6ZJBXf
QKFH0Lsk7KHmQvO72wIDAQAB
-----END PUBLIC KEY-----
";

/// `openssl genrsa 2048`, its public half by `openssl rsa -pubout` and `openssl rsa -RSAPublicKey_out`.
const RSA_BOTH: [&str; 2] = [
    "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAteoMkcbt9n+haay1xWDU
bHGuFhl/Y69AXMaNZjdDkH0hbbGsYq2qCHUajM0lu/JwNLEsjAtctGRvcwy1MhFg
wGbAiJIbhSqGCY+oRXmjAlq8Hzw1THE8uPFUkUDKzKFrf/00bo3fs4CxOmDyDARy
DufefdfEGBXe71x46P0Ef4f/9hu6PW/1LnqDeDpY8EBxgbRZn5ybkq7KeLrlXwFl
ehZ9C63QFLONfAHAHEQGWZBWQnoe72ZMnPiz7dHNG+k53sjW05J0cBcwaf9cgNQR
qTuPsCDdvRBzME9LvBGDRaTp1xkoKtf5jkmAdAtQRmC7Q/bYs9t1qYHWcmor02sQ
UQIDAQAB
-----END PUBLIC KEY-----
",
    "-----BEGIN RSA PUBLIC KEY-----
MIIBCgKCAQEAteoMkcbt9n+haay1xWDUbHGuFhl/Y69AXMaNZjdDkH0hbbGsYq2q
CHUajM0lu/JwNLEsjAtctGRvcwy1MhFgwGbAiJIbhSqGCY+oRXmjAlq8Hzw1THE8
uPFUkUDKzKFrf/00bo3fs4CxOmDyDARyDufefdfEGBXe71x46P0Ef4f/9hu6PW/1
LnqDeDpY8EBxgbRZn5ybkq7KeLrlXwFlehZ9C63QFLONfAHAHEQGWZBWQnoe72ZM
nPiz7dHNG+k53sjW05J0cBcwaf9cgNQRqTuPsCDdvRBzME9LvBGDRaTp1xkoKtf5
jkmAdAtQRmC7Q/bYs9t1qYHWcmor02sQUQIDAQAB
-----END RSA PUBLIC KEY-----
",
];

#[test]
fn an_rsa_key_is_the_same_in_both_forms() {
    let [general, older] = RSA_BOTH.map(|pem| keys::parse(pem.as_bytes(), "here").unwrap());
    assert_eq!(general, older);
    assert_eq!(keys::parse(RSA_BOTH.concat().as_bytes(), "here").unwrap().len(), 2);
    let cut = RSA_BOTH[1].replace("-----END RSA PUBLIC KEY-----", "");
    assert_eq!(keys::parse(cut.as_bytes(), "here").unwrap_err(), "malformed PEM");
    let short = "-----BEGIN RSA PUBLIC KEY-----\naGVsbG8=\n-----END RSA PUBLIC KEY-----\n";
    assert!(keys::parse(short.as_bytes(), "here").is_err());
}

#[test]
fn files_that_anybody_may_write_to_and_links_to_nothing_are_not_trusted() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let scene = Scene::new();
    let pair = key(&rcgen::PKCS_ED25519);
    let path = scene.write("key.pub", pair.public_key_pem());
    let trust = scene.policy(&signed_policy(json!({ "keyPath": path })));
    let digests = [Digest::of(b"manifest")];
    let signatures = [sign(&pair, APP, &digests[0])];
    trust.admit(&evidence(APP, &digests, &signatures)).unwrap();
    let open = |name: &str, mode| fs::set_permissions(scene.0.join(name), fs::Permissions::from_mode(mode)).unwrap();
    open("key.pub", 0o646);
    let said = scene.plain(trust.admit(&evidence(APP, &digests, &signatures)).unwrap_err());
    assert!(said.contains("key DIR/key.pub: everybody may write to it (mode 0646): chmod o-w"), "{said}");
    open("key.pub", 0o664);
    trust.admit(&evidence(APP, &digests, &signatures)).unwrap();
    open("policy.json", 0o666);
    let said = scene.plain(trust.admit(&evidence(APP, &digests, &signatures)).unwrap_err());
    assert_eq!(
        said,
        "cannot use the signature policy DIR/policy.json: everybody may write to it (mode 0666): chmod o-w"
    );
    // Where a policy is wanted, its absence is no policy.
    fs::remove_file(scene.0.join("policy.json")).unwrap();
    symlink(scene.0.join("not-mounted/policy.json"), scene.0.join("policy.json")).unwrap();
    assert!(matches!(trust.still_admits(APP, &[]), Err(Refusal::Policy { reason, .. }) if reason.contains("symbolic")));
    // Nobody waits for who writes to a pipe.
    fs::remove_file(scene.0.join("policy.json")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        scene.0.join("policy.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(matches!(trust.still_admits(APP, &[]), Err(Refusal::Policy { reason, .. }) if reason.contains("regular")));
}

#[test]
fn keys_are_never_told() {
    for secret in [
        json!([{ "type": "sigstoreSigned", "keyDatas": "SECRET" }]),
        json!([{ "type": "sigstoreSigned", "keyData": ["SECRET"] }]),
        json!([{ "type": "sigstoreSigned", "keyDatas": ["c2VjcmV0", { "SECRET": 1 }] }]),
        json!([{ "type": "sigstoreSigned", "keyData": "SECRET!" }]),
    ] {
        let error = Policy::parse(json!({ "default": secret }).to_string().as_bytes()).unwrap_err();
        assert!(error.contains("keyData") && !error.contains("SECRET"), "{error}");
    }
    let pem = STANDARD.encode(key(&rcgen::PKCS_ED25519).serialize_pem());
    let error =
        Policy::parse(json!({ "default": [{ "type": "sigstoreSigned", "keyData": pem }] }).to_string().as_bytes());
    assert!(error.unwrap_err().contains("a private key does not belong here"));
    let secret = STANDARD.encode([7; 158]);
    for (entry, why) in [
        (secret.clone(), "minisignPublicKeys[0]: a secret key does not belong here"),
        (format!("untrusted comment: minisign encrypted secret key\n{secret}\n"), "a secret key does not belong here"),
        ("U0VDUkVU".into(), "minisignPublicKeys[0]: not a minisign public key"),
        ("not a key".into(), "minisignPublicKeys[0]: not a minisign public key: not base64"),
        (String::new(), "minisignPublicKeys[0]: no minisign public key in it"),
        ("/none/key.pub".into(), "minisign key /none/key.pub: cannot read it: No such file"),
    ] {
        let keys = minisign::Keys::new(std::slice::from_ref(&entry));
        let said = keys.unusable().join("\n");
        assert!(said.contains(why) && !said.contains(&secret) && !said.contains("U0VD"), "{entry}: {said}");
        assert!(!keys.none());
    }
}

/// The names of images may end in anything: whoever asks for one does not ask for an ID.
#[test]
fn only_a_whole_id_asks_for_an_image_under_any_of_its_names() {
    let scene = Scene::new();
    let trust = scene.policy(&json!({ "default": [{ "type": "reject" }], "transports": {
        "docker": { "free.example": [{ "type": "insecureAcceptAnything" }] } } }));
    let id = Digest::of(b"config");
    let image = Image {
        id: id.to_string(),
        names: vec!["free.example/a:1".into()],
        digests: Vec::new(),
        config: super::super::configuration(b"{}").unwrap(),
        layers: Vec::new(),
        size: 0,
        added: 0,
        pinned: false,
        origins: vec![Origin::Registry { repository: "free.example/a".into(), digest: id.clone() }],
        verified: Vec::new(),
    };
    for asked in [id.as_str(), id.hex(), &format!("docker.io/library/sha256:{}", id.hex()), "free.example/a:1"] {
        trust.admits_use(asked, &image).unwrap();
    }
    for asked in [format!("closed.example/a:{}", id.hex()), format!("closed.example/{}", id.hex())] {
        assert_eq!(
            trust.admits_use(&asked, &image).unwrap_err(),
            Refusal::Rejected { name: reference::normalise(&asked).unwrap_or(asked) }
        );
    }
    let trust =
        scene.policy(&signed_policy(json!({ "keyData": STANDARD.encode(key(&rcgen::PKCS_ED25519).public_key_pem()) })));
    let mut image = Image { names: vec![APP.into()], ..image };
    for (origins, advice) in [
        (image.origins.clone(), "by: coracle image pull registry.example/team/app:1"),
        (vec![Origin::Archive { path: "/srv/a.tar".into() }], "by: coracle image import /srv/a.tar"),
        (Vec::new(), "by: coracle image import FILE"),
    ] {
        image.origins = origins;
        let said = trust.admits_use(APP, &image).unwrap_err().to_string();
        assert!(said.contains("none was verified when the image came in") && said.ends_with(advice), "{said}");
    }
}

#[test]
fn what_is_wrong_with_signatures_is_said_in_place_of_that_there_are_none() {
    let scene = Scene::new();
    let pair = key(&rcgen::PKCS_ED25519);
    let trust = scene.policy(&signed_policy(json!({ "keyData": STANDARD.encode(pair.public_key_pem()) })));
    let digests = [Digest::of(b"manifest")];
    let problems: Vec<String> = (0..20).map(|n| format!("broken {n}")).collect();
    let damaged = Evidence { problems: &problems, ..evidence(APP, &digests, &[]) };
    let said = trust.admit(&damaged).unwrap_err().to_string();
    assert!(said.contains("broken 0") && said.ends_with("and 12 more") && !said.contains("no signature;"), "{said}");
    // They do no harm to a good one.
    let signatures = [sign(&pair, APP, &digests[0])];
    trust.admit(&Evidence { signatures: &signatures, ..damaged }).unwrap();
}

#[test]
fn the_image_of_this_binary_is_trusted_unless_the_policy_has_a_scope_for_it() {
    let scene = Scene::new();
    let image = |origins: Vec<Origin>| Image {
        id: Digest::of(b"config").to_string(),
        names: vec![BUILTIN.into()],
        digests: Vec::new(),
        config: super::super::configuration(b"{}").unwrap(),
        layers: Vec::new(),
        size: 0,
        added: 0,
        pinned: true,
        origins,
        verified: Vec::new(),
    };
    let own = image(vec![Origin::BuiltIn]);
    let foreign = image(vec![Origin::Archive { path: "/srv/a.tar".into() }]);
    let trust = scene.policy(&json!({ "default": [{ "type": "reject" }] }));
    trust.admits_use(BUILTIN, &own).unwrap();
    trust.admits_use(&own.id, &own).unwrap();
    assert!(trust.admits_use("registry.example/other:1", &own).is_err(), "only under its own name");
    assert!(trust.admits_use(BUILTIN, &foreign).is_err());
    assert!(trust.admits_use(&foreign.id, &foreign).is_err());
    let trust = scene.policy(&json!({ "default": [{ "type": "insecureAcceptAnything" }],
        "transports": { "docker": { "coracle.dev": [{ "type": "reject" }] } } }));
    assert!(trust.admits_use(BUILTIN, &own).is_err());
    let trust = scene.policy(&json!({ "default": [{ "type": "reject" }],
        "transports": { "docker-archive": { "": [{ "type": "insecureAcceptAnything" }] } } }));
    trust.admits_use(BUILTIN, &foreign).unwrap();
    let broken = scene.write("policy.json", "{");
    let trust = Trust::new(Settings { policy: broken, minisign_public_keys: Vec::new() });
    trust.admits_use(BUILTIN, &own).unwrap();
    assert!(trust.admits_use(BUILTIN, &foreign).is_err());
}

#[test]
fn manifests_of_signatures() {
    let digest = Digest::of(b"payload");
    let annotated = |signature: &str| {
        json!({ "layers": [
            { "digest": digest, "annotations": { "dev.cosignproject.cosign/signature": signature } },
            { "digest": digest, "annotations": {} },
            { "digest": digest },
        ] })
        .to_string()
    };
    let listed = listed_signatures(annotated("aGVsbG8=").as_bytes()).unwrap();
    assert_eq!(listed, [Listed { payload: digest.clone(), signature: b"hello".to_vec() }]);
    assert!(listed_signatures(annotated("aGVsbG8").as_bytes()).unwrap_err().contains("not base64"));
    assert!(listed_signatures(b"7").is_err() && listed_signatures(b"{}").unwrap().is_empty());
    let named =
        |name: &str| holds_signatures(&[(String::from("org.opencontainers.image.ref.name"), name.to_owned())].into());
    assert!(named(&signature_tag(&digest)) && named(&format!("a.example/b:{}", signature_tag(&digest))));
    assert!(!named("a.example/b:1") && !named("sha256-ab.sig") && !named(digest.as_str()));
    assert!(holds_signatures(&[("kind".to_owned(), "dev.cosignproject.cosign/sigs".to_owned())].into()));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "[\\[\\]{}\",:a-zA-Z/.*0-9]{0,80}") {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            let _ = Policy::parse(bytes);
            let _ = cosign::parse(bytes);
            let _ = keys::parse(bytes, "here");
            let _ = listed_signatures(bytes);
        }
        for kind in ["PUBLIC KEY", "RSA PUBLIC KEY"] {
            let pem = format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(&bytes));
            let _ = keys::parse(pem.as_bytes(), "here");
        }
        let _ = holds_signatures(&[("org.opencontainers.image.ref.name".to_owned(), text.clone())].into());
        let lines = minisign::Keys::new(&[text.clone(), STANDARD.encode(&bytes)]);
        let _ = lines.none();
        let _ = Named::parse(&text);
        let _ = identity::Identity::default().check(Named::parse(&text).as_ref(), &text);
    }

    /// No change of a signed document, or of its signature, is accepted.
    #[test]
    fn no_changed_bit_is_accepted(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        static KEY: LazyLock<KeyPair> = LazyLock::new(|| key(&rcgen::PKCS_ED25519));
        let mut signature = sign(&KEY, APP, &Digest::of(b"manifest"));
        let all = signature.payload.len() + signature.signature.len();
        let at = at.index(all);
        match signature.payload.get_mut(at) {
            Some(byte) => *byte ^= 1 << bit,
            None => signature.signature[at - signature.payload.len()] ^= 1 << bit,
        }
        let keys = keys::parse(KEY.public_key_pem().as_bytes(), "here").unwrap();
        prop_assert!(!keys[0].verifies(&signature.payload, &signature.signature));
    }
}
