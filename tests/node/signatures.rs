//! Signatures in a registry and what becomes of them: good ones, every kind of bad one, keys that are taken back, and a
//! registry that is gone.

use super::harness::{Node, PATIENCE, eventually, image_archive, secs};
use super::registry_server::{Auth, Registry};
use super::trust::{Layout, configured, key, openssl_signature, payload, pod_of, policy, run, text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle::image::Digest;
use coracle::image::trust::{Evidence, Settings, Signature, Transport, Trust};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// One request to a registry without TLS: status line and headers of the answer.
fn request(registry: &Registry, method: &str, path: &str, media: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(registry.address()).expect("the registry");
    stream.set_read_timeout(Some(secs(30))).expect("time-out");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {media}\r\nContent-Length: {}\r\n\r\n",
        registry.address(),
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).expect("request");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
    answer
}

/// Stores a blob in a repository; gives its descriptor.
fn push_blob(registry: &Registry, repository: &str, content: &[u8], media: &str) -> Value {
    let digest = Digest::of(content).to_string();
    let begun = request(registry, "POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
    let location = begun.lines().find_map(|line| line.strip_prefix("Location: ")).expect("location").trim();
    let path = &location[location.find("/v2/").expect("path")..];
    request(registry, "PUT", &format!("{path}&digest={digest}"), "application/octet-stream", content);
    json!({ "mediaType": media, "digest": digest, "size": content.len() })
}

/// A payload and its signature, as a layer of cosign's.
fn signature(registry: &Registry, repository: &str, payload: &str, signature: &[u8]) -> Value {
    let media = "application/vnd.dev.cosign.simplesigning.v1+json";
    let mut layer = push_blob(registry, repository, payload.as_bytes(), media);
    layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": STANDARD.encode(signature) });
    layer
}

/// Stores signatures of `digest` where cosign does.
fn attach(registry: &Registry, repository: &str, digest: &str, layers: &[Value]) {
    let config = push_blob(registry, repository, b"{}", "application/vnd.oci.image.config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let path = format!("/v2/{repository}/manifests/{}.sig", digest.replace(':', "-"));
    request(registry, "PUT", &path, MANIFEST, manifest.to_string().as_bytes());
}

/// An image that runs, with a layer that no other test image has: pushed under all these names; gives the digests of its
/// manifest and of that layer unpacked.
fn push_image(registry: &Registry, dir: &Path, mark: &str, names: &[&str]) -> (String, String) {
    let mut layout = Layout::new(dir.join(mark));
    let marked = dir.join(format!("mark-{mark}"));
    fs::write(&marked, mark).expect("mark");
    let tar = dir.join(format!("{mark}.layer"));
    run("tar", &["-cf", text(&tar), "-C", text(dir), &format!("mark-{mark}")]);
    let digest = layout.image_above(&image_archive("signed:1"), mark, &fs::read(&tar).expect("layer"));
    layout.archive();
    for name in names {
        push_layout(registry, &layout.dir, mark, name);
    }
    (digest, Digest::of(&fs::read(&tar).expect("layer")).to_string())
}

/// Pushes an image of a layout as it is, so that its digest stays.
fn push_layout(registry: &Registry, layout: &Path, image: &str, name: &str) {
    registry.push_with(&format!("oci:{}:{image}", layout.display()), name, &["--preserve-digests"]);
}

/// All that the image store keeps for images.
fn kept(node: &Node) -> BTreeSet<PathBuf> {
    let store = node.dir.join("root/store");
    let folders = fs::read_dir(&store).expect("store").map(|entry| entry.expect("entry").path()).filter(|p| p.is_dir());
    folders
        .filter(|folder| !folder.ends_with("pulling"))
        .flat_map(|folder| fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()))
        .collect()
}

fn signed(identity: Value, key: &Path) -> Value {
    json!([{ "type": "sigstoreSigned", "keyPath": key, "signedIdentity": identity }])
}

#[test]
fn images_of_a_registry_run_only_with_a_good_signature_and_nothing_is_kept_of_others() {
    let registry = Registry::start(Auth::Plain);
    let mut node = configured(&[]);
    let (private, public) = key(&node.dir, "good");
    let (strange, _) = key(&node.dir, "strange");
    let scope = |name: &str| registry.reference(name);
    let any = json!({ "type": "matchRepository" });
    policy(
        &node,
        json!({
            scope("signed"): signed(any.clone(), &public),
            scope("signed/loose"): [{ "type": "insecureAcceptAnything" }],
            scope("signed/closed"): [{ "type": "reject" }],
            scope("signed/app:2"): [{ "type": "reject" }],
            scope("signed/gpg"): [{ "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/none.gpg" }],
            scope("exact"): signed(json!({ "type": "matchRepoDigestOrExact" }), &public),
            scope("mirror"): signed(json!({
                "type": "remapIdentity", "prefix": scope("mirror"), "signedPrefix": "origin.example/team",
            }), &public),
        }),
    );
    node.start();
    node.wait_for_images();
    let bad = ["none", "strange", "digest", "repository", "payload", "base64", "garbage", "bundle", "closed", "gpg"];
    let mut names: Vec<String> = bad.iter().map(|name| format!("signed/{name}:1")).collect();
    names.extend(["exact/bare:1".to_owned(), "mirror/other:1".to_owned()]);
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let (digest, mark) = push_image(&registry, &node.dir, "refused", &all);
    let sign = |content: &str, by: &Path| openssl_signature(&node.dir.join("scratch"), content.as_bytes(), by, &[]);
    let put = |repository: &str, called: &str, of: &str, by: &Path| {
        let content = payload(of, called);
        let layer = signature(&registry, repository, &content, &sign(&content, by));
        attach(&registry, repository, &digest, &[layer]);
    };
    put("signed/strange", &scope("signed/strange"), &digest, &strange);
    put("signed/digest", &scope("signed/digest"), &Digest::of(b"other").to_string(), &private);
    put("signed/repository", &scope("signed/other"), &digest, &private);
    put("signed/gpg", &scope("signed/gpg"), &digest, &private);
    put("signed/closed", &scope("signed/closed"), &digest, &private);
    put("exact/bare", &scope("exact/bare"), &digest, &private);
    put("mirror/other", "origin.example/other:1", &digest, &private);
    let content = payload(&digest, &scope("signed/base64"));
    let mut layer = signature(&registry, "signed/base64", &content, b"");
    layer["annotations"]["dev.cosignproject.cosign/signature"] = json!("not base64!");
    attach(&registry, "signed/base64", &digest, &[layer]);
    // Damaged where it lies.
    let content = payload(&digest, &scope("signed/payload"));
    let layer = signature(&registry, "signed/payload", &content, &sign(&content, &private));
    attach(&registry, "signed/payload", &digest, std::slice::from_ref(&layer));
    let hex = layer["digest"].as_str().expect("digest").trim_start_matches("sha256:").to_owned();
    let stored = registry.data().join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(&hex).join("data");
    fs::write(stored, content.replace("cosign container", "COSIGN container")).expect("blob");
    // An index under the name of signatures, and a bundle of cosign 3, which lists it in an index of its own.
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] });
    for (repository, end) in [("signed/garbage", ".sig"), ("signed/bundle", "")] {
        let path = format!("/v2/{repository}/manifests/{}{end}", digest.replace(':', "-"));
        request(&registry, "PUT", &path, "application/vnd.oci.image.index.v1+json", index.to_string().as_bytes());
    }

    node.wait_event("all test images are in", |reason, _| reason == "ImageImported");
    let before = kept(&node);
    for name in &names {
        let pod = name.replace(['/', ':'], "-");
        node.apply(&format!("{pod}.yaml"), pod_of(&pod, &registry.reference(name)));
    }
    for (name, why) in [
        ("signed-none-1", "the image comes with no signature"),
        ("signed-strange-1", "does not verify with key sha256:"),
        ("signed-digest-1", "is for another image, sha256:"),
        ("signed-repository-1", "signed/other"),
        ("signed-payload-1", "signature payload has digest sha256:"),
        ("signed-base64-1", "not base64"),
        ("signed-garbage-1", "not a manifest of signatures"),
        ("signed-bundle-1", "cosign sign --new-bundle-format=false"),
        ("signed-closed-1", "the signature policy rejects it"),
        ("signed-gpg-1", "signedBy (GPG signatures) is not supported"),
        ("exact-bare-1", "such signatures need \"signedIdentity\": {\"type\": \"matchRepository\"}"),
        ("mirror-other-1", "is for origin.example/other:1"),
    ] {
        let seen = node.wait_pod(name, "is refused", |pod| pod.waiting_message("main").contains(why));
        let (reason, message) = (seen.waiting("main"), seen.waiting_message("main"));
        assert!(
            reason == "SignatureValidationFailed" || message.contains(": SignatureValidationFailed: "),
            "{name}: {reason}: {message}"
        );
        let image = names.iter().find(|image| image.replace(['/', ':'], "-") == name).expect("name");
        assert!(message.contains(&scope(image)), "{name}: {message}");
    }
    node.wait_event("people are told", |reason, text| reason == "Failed" && text == "Error: SignatureValidationFailed");
    let layers = || kept(&node).iter().any(|path| path.to_string_lossy().contains(mark.trim_start_matches("sha256:")));
    assert!(!layers(), "not unpacked");
    assert_eq!(kept(&node), before, "nothing is kept of what was refused");
    assert!(!node.cli(&["image", "ls"]).ok().contains(&registry.address()));
    for name in &names {
        let pod = name.replace(['/', ':'], "-");
        node.remove(&format!("{pod}.yaml"));
    }

    // The same image where it is signed as it should be, and where nobody asks for that.
    let good = ["signed/app:1", "exact/app:1", "mirror/app:1", "signed/loose/app:1"];
    for name in good {
        push_layout(&registry, &node.dir.join("refused"), "refused", name);
    }
    put("signed/app", &scope("signed/app"), &digest, &private);
    put("exact/app", &scope("exact/app:1"), &digest, &private);
    put("mirror/app", "origin.example/team/app:1", &digest, &private);
    for name in good {
        let pod = name.replace(['/', ':'], "-");
        node.apply(&format!("{pod}.yaml"), pod_of(&pod, &registry.reference(name)));
    }
    for name in good {
        node.wait_up(&name.replace(['/', ':'], "-"));
    }
    assert!(layers());
    node.finish();
}

#[test]
fn what_was_verified_counts_without_the_registry_and_as_long_as_its_key_does() {
    let mut registry = Registry::start(Auth::Plain);
    let mut node = configured(&[]);
    let (private, public) = key(&node.dir, "first");
    let (second, successor) = key(&node.dir, "second");
    let image = registry.reference("signed/app:1");
    let required = |key: &Path| {
        json!({
            registry.reference("signed"): signed(json!({ "type": "matchRepository" }), key),
        })
    };
    let rules = [required(&public), required(&successor)];
    node.start();
    node.wait_for_images();
    let (digest, _) = push_image(&registry, &node.dir, "kept", &["signed/app:1"]);
    let content = payload(&digest, &registry.reference("signed/app"));
    let sign = |by: &Path| openssl_signature(&node.dir.join("scratch"), content.as_bytes(), by, &[]);
    let layer = |by: &Path| signature(&registry, "signed/app", &content, &sign(by));
    let both = [layer(&private), layer(&second)];

    // It came in before anybody asked for signatures: they are fetched when they are, and no layer is.
    node.apply("early.yaml", pod_of("early", &image));
    node.wait_up("early");
    policy(&node, rules[0].clone());
    node.apply("app.yaml", pod_of("app", &image));
    let seen = node.wait_pod("app", "is refused", |pod| pod.waiting_message("main").contains("no signature"));
    assert!(!seen.running("main"));
    attach(&registry, "signed/app", &digest, &both[..1]);
    let said = node.cli(&["image", "pull", &image]).ok();
    assert!(said.contains("is up to date"), "{said}");
    node.wait_up("app");
    assert!(node.pod("early").is_some_and(|pod| pod.running("main")), "what runs goes on");

    // Without the registry it starts again, also after the node did.
    registry.stop();
    node.restart();
    node.apply("late.yaml", pod_of("late", &image));
    node.wait_up("late");

    // Its key is wanted no more: nothing starts, and the message says both why and what to do about it.
    policy(&node, rules[1].clone());
    node.apply("next.yaml", pod_of("next", &image));
    let next = node.wait_pod("next", "is refused", |pod| {
        pod.waiting("main") == "SignatureValidationFailed"
            && pod.waiting_message("main").contains("RegistryUnavailable")
    });
    let message = next.waiting_message("main");
    assert!(message.contains("none of those verified when the image came in fits"), "{message}");
    assert!(message.contains(&format!("coracle image pull {image}")), "{message}");
    assert!(node.pod("late").is_some_and(|pod| pod.running("main")), "what runs goes on");
    node.cli(&["exec", "late", "--", "sh", "-c", "kill 1"]);
    node.wait_pod("late", "does not start again", |pod| pod.waiting("main") == "SignatureValidationFailed");

    // Signed by the new key: fetched without anybody's hand as soon as the registry is there.
    registry.restart();
    attach(&registry, "signed/app", &digest, &both);
    let fetched = registry.requests("GET /v2/signed/app/blobs/");
    node.cli(&["image", "pull", &image]).ok();
    node.wait_up("next");
    node.wait_up("late");
    assert!(registry.requests("GET /v2/signed/app/blobs/") > fetched, "payloads");
    let list: Value = serde_json::from_str(&node.cli(&["image", "ls", "-o", "json"]).ok()).expect("JSON");
    let items = list["items"].as_array().expect("items");
    let item = items.iter().find(|item| item["names"][0] == image).expect("the image");
    assert_eq!(item["verified"].as_array().map(Vec::len), Some(2), "{item}");
    // The key is taken away, not the policy: the same.
    fs::rename(&successor, node.dir.join("gone.pub")).expect("key");
    node.apply("last.yaml", pod_of("last", &image));
    node.wait_pod("last", "is refused", |pod| pod.waiting_message("main").contains("second.pub: cannot read it"));
    fs::rename(node.dir.join("gone.pub"), &successor).expect("key");
    node.cli(&["image", "pull", &image]).ok();
    node.wait_up("last");
    node.finish();
}

#[test]
fn signatures_copied_into_a_layout_count_and_packed_archives_leave_nothing() {
    let registry = Registry::start(Auth::Plain);
    let mut node = configured(&[]);
    let (private, public) = key(&node.dir, "good");
    let name = registry.reference("signed/app:1");
    node.start();
    node.wait_for_images();
    let (digest, mark) = push_image(&registry, &node.dir, "copied", &["signed/app:1"]);
    let content = payload(&digest, &registry.reference("signed/app"));
    let signed_content = openssl_signature(&node.dir.join("scratch"), content.as_bytes(), &private, &[]);
    attach(&registry, "signed/app", &digest, &[signature(&registry, "signed/app", &content, &signed_content)]);
    let layout = node.dir.join("layout");
    let copy = |from: &str, to: &str| {
        let (from, to) = (format!("docker://{}", registry.reference(from)), format!("oci:{}:{to}", layout.display()));
        let options = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--src-no-creds"];
        run("skopeo", &[&options[..], &["--preserve-digests", from.as_str(), to.as_str()]].concat());
    };
    copy("signed/app:1", &name);
    policy(&node, json!({ registry.reference("signed"): signed(json!({ "type": "matchRepository" }), &public) }));
    node.wait_event("all test images are in", |reason, _| reason == "ImageImported");
    let before = kept(&node);
    for (end, flag) in [("tar", "-cf"), ("tar.gz", "-czf"), ("tar.zst", "--zstd -cf")] {
        let archive = node.dir.join(format!("unsigned.{end}"));
        let mut args: Vec<&str> = flag.split(' ').collect();
        args.extend([text(&archive), "-C", text(&layout), "."]);
        run("tar", &args);
        let said = node.cli(&["image", "import", text(&archive)]).fails(1);
        assert!(said.contains("comes with no signature"), "{said}");
        assert_eq!(kept(&node), before, "{end}: nothing is kept of what was refused");
        let bytes = fs::read(&archive).expect("archive");
        node.cli_with(&["image", "import", "-"], &bytes).fails(1);
        assert_eq!(kept(&node), before, "{end} as a stream: nothing is kept");
    }
    let sig = format!("{}.sig", digest.replace(':', "-"));
    copy(&format!("signed/app:{sig}"), &sig);
    let archive = node.dir.join("signed.tar.gz");
    run("tar", &["-czf", text(&archive), "-C", text(&layout), "."]);
    // Dropped in before anybody asks for signatures: they are looked for again when somebody does.
    fs::remove_file(node.dir.join("etc/policy.json")).expect("policy");
    drop(registry);
    node.drop_image(&archive, "signed.tar.gz");
    eventually("it came in", PATIENCE, || node.cli(&["image", "ls"]).stdout.contains("signed/app"));
    policy(&node, json!({ name.replace("/app:1", ""): signed(json!({ "type": "matchRepository" }), &public) }));
    node.apply("app.yaml", pod_of("app", &name));
    node.wait_up("app");
    assert!(kept(&node).iter().any(|path| path.to_string_lossy().contains(mark.trim_start_matches("sha256:"))));
    node.finish();
}

#[test]
fn keys_of_every_kind_that_cosign_makes_verify_what_openssl_signs() {
    let dir = std::env::temp_dir().join(format!("coracle-signatures-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("folder");
    let policy_file = dir.join("policy.json");
    let digests = [Digest::of(b"manifest")];
    let name = "registry.example/app:1";
    let content = payload(digests[0].as_str(), name);
    let admit = |requirement: Value, signature: Vec<u8>| {
        let policy = json!({ "default": [requirement] });
        fs::write(&policy_file, policy.to_string()).expect("policy");
        let trust = Trust::new(Settings { policy: policy_file.clone(), minisign_public_keys: Vec::new() });
        let signatures = [Signature { payload: content.clone().into_bytes(), signature }];
        let transport = Transport::Docker;
        let evidence =
            Evidence { transport, name, digests: &digests, signatures: &signatures, archive_keys: &[], problems: &[] };
        trust.admit(&evidence).map_err(|refusal| refusal.to_string())
    };
    let mut publics: Vec<PathBuf> = Vec::new();
    let mut last: Vec<u8> = Vec::new();
    for (kind, generate) in [
        ("p256", "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"),
        ("p384", "-algorithm EC -pkeyopt ec_paramgen_curve:P-384"),
        ("rsa2048", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048"),
        ("rsa4096", "-algorithm RSA -pkeyopt rsa_keygen_bits:4096"),
        ("ed25519", "-algorithm ED25519"),
    ] {
        let (private, public) = (dir.join(format!("{kind}.key")), dir.join(format!("{kind}.pub")));
        let mut args: Vec<&str> = vec!["genpkey"];
        args.extend(generate.split(' '));
        args.extend(["-out", text(&private)]);
        run("openssl", &args);
        run("openssl", &["pkey", "-in", text(&private), "-pubout", "-out", text(&public)]);
        let signatures = match kind {
            "ed25519" => {
                let (file, out) = (dir.join("content"), dir.join("ed.sig"));
                fs::write(&file, &content).expect("content");
                let args =
                    ["pkeyutl", "-sign", "-rawin", "-inkey", text(&private), "-in", text(&file), "-out", text(&out)];
                run("openssl", &args);
                vec![fs::read(out).expect("signature")]
            }
            _ if kind.starts_with("rsa") => {
                let pss: &[&str] = &["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"];
                let signed =
                    |options: &[&str]| openssl_signature(&dir.join("rsa"), content.as_bytes(), &private, options);
                vec![signed(&[]), signed(pss)]
            }
            _ => vec![openssl_signature(&dir.join("ec"), content.as_bytes(), &private, &[])],
        };
        let pem = fs::read_to_string(&public).expect("key");
        let windows = dir.join(format!("{kind}.crlf.pub"));
        fs::write(&windows, format!("cosign's key\r\n{}\r\n", pem.replace('\n', "\r\n"))).expect("key");
        for signature in signatures {
            let signed = |key: Value| {
                let mut requirement = json!({ "type": "sigstoreSigned" });
                requirement.as_object_mut().expect("object").extend(key.as_object().expect("object").clone());
                requirement
            };
            for keys in [
                json!({ "keyPath": public }),
                json!({ "keyPath": windows }),
                json!({ "keyPaths": [public] }),
                json!({ "keyData": STANDARD.encode(&pem) }),
                json!({ "keyDatas": [STANDARD.encode(&pem)] }),
            ] {
                let verified =
                    admit(signed(keys.clone()), signature.clone()).unwrap_or_else(|e| panic!("{kind} {keys}: {e}"));
                assert_eq!((verified.len(), verified[0].name.as_str()), (1, name), "{kind} {keys}");
            }
            // Any of several keys; none of the others.
            if !publics.is_empty() {
                let refused = admit(signed(json!({ "keyPaths": publics })), signature.clone()).expect_err("other keys");
                assert!(refused.contains("does not verify with key sha256:"), "{refused}");
                let mut all = publics.clone();
                all.push(public.clone());
                admit(signed(json!({ "keyPaths": all })), signature.clone()).unwrap_or_else(|e| panic!("{kind}: {e}"));
            }
            if kind == "rsa2048" {
                let older = dir.join("older.pub");
                run("openssl", &["rsa", "-in", text(&private), "-RSAPublicKey_out", "-out", text(&older)]);
                assert!(fs::read_to_string(&older).expect("key").starts_with("-----BEGIN RSA PUBLIC KEY-----"));
                let one = admit(signed(json!({ "keyPath": older })), signature.clone()).expect("PKCS #1");
                let other = admit(signed(json!({ "keyPath": public })), signature.clone()).expect("the same key");
                assert_eq!(one, other, "one key has one fingerprint");
            }
            last = signature;
        }
        publics.push(public);
    }
    // Keys that nobody should rely on.
    let requirement = |path: &Path| json!({ "type": "sigstoreSigned", "keyPath": path });
    run("chmod", &["666", text(&publics[4])]);
    let refused = admit(requirement(&publics[4]), last.clone()).expect_err("a mode");
    assert!(refused.contains("everybody may write to it (mode 0666): chmod o-w"), "{refused}");
    for (file, why) in [("ed25519.key", "a private key does not belong here"), ("none.pub", "No such file")] {
        let refused = admit(requirement(&dir.join(file)), last.clone()).expect_err(file);
        assert!(refused.contains(why) && refused.contains(file), "{refused}");
    }
    fs::remove_dir_all(dir).expect("folder");
}
