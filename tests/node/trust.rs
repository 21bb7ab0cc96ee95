//! Signatures from outside: keys of openssl and minisign, signatures as cosign makes them, on a node without a registry.

use super::harness::{BUSYBOX, Node, PATIENCE, REST, eventually, image_archive, output, pod, secs};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a signed image is called.
const SIGNED: &str = "registry.example/signed/app:1";

pub(super) fn run(program: &str, args: &[&str]) -> String {
    output(Command::new(program).args(args), b"", secs(60)).ok()
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("plain path")
}

/// An ECDSA key of openssl; the second path is its public half.
pub(super) fn key(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (private, public) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pub")));
    run("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", text(&private)]);
    run("openssl", &["ec", "-in", text(&private), "-pubout", "-out", text(&public)]);
    (private, public)
}

/// What cosign signs.
pub(super) fn payload(digest: &str, reference: &str) -> String {
    json!({
        "critical": {
            "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
}

/// As openssl signs, with more of its options. `scratch` is the beginning of names of files for it.
pub(super) fn openssl_signature(scratch: &Path, content: &[u8], key: &Path, options: &[&str]) -> Vec<u8> {
    let (file, signature) = (scratch.with_extension("payload"), scratch.with_extension("sig"));
    fs::write(&file, content).expect("payload");
    let mut args = vec!["dgst", "-sha256", "-sign", text(key), "-out", text(&signature)];
    args.extend(options);
    args.push(text(&file));
    run("openssl", &args);
    fs::read(&signature).expect("signature")
}

/// An OCI layout in the making.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) manifests: Vec<Value>,
}

impl Layout {
    pub(super) fn new(dir: PathBuf) -> Layout {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("layout");
        Layout { dir, manifests: Vec::new() }
    }

    pub(super) fn blob(&self, content: &[u8]) -> Value {
        let hex: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
        fs::write(self.dir.join("blobs/sha256").join(&hex), content).expect("blob");
        json!({ "digest": format!("sha256:{hex}"), "size": content.len() })
    }

    pub(super) fn manifest(&mut self, config: &Value, layers: &[Value], name: &str) -> String {
        let descriptor = |content: &[u8], media: &str| {
            let mut blob = self.blob(content);
            blob["mediaType"] = json!(media);
            blob
        };
        let config = descriptor(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        let mut manifest = descriptor(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        let digest = manifest["digest"].as_str().expect("digest").to_owned();
        self.manifests.push(manifest);
        digest
    }

    /// An image with the layer of a docker-archive; gives the digest of its manifest.
    pub(super) fn image(&mut self, archive: &Path, name: &str) -> String {
        self.image_of(archive, name, &[])
    }

    /// As [`Layout::image`], with one more layer on it.
    pub(super) fn image_above(&mut self, archive: &Path, name: &str, layer: &[u8]) -> String {
        self.image_of(archive, name, &[layer])
    }

    fn image_of(&mut self, archive: &Path, name: &str, more: &[&[u8]]) -> String {
        let listed = run("tar", &["-tf", text(archive)]);
        let member = listed.lines().find(|line| line.ends_with("layer.tar")).expect("layer").to_owned();
        run("tar", &["-xf", text(archive), "-C", text(&self.dir), &member]);
        let content = fs::read(self.dir.join(&member)).expect("layer");
        fs::remove_dir_all(self.dir.join(member.split('/').next().expect("folder"))).expect("layer");
        let mut layers: Vec<Value> =
            [content.as_slice()].iter().chain(more).map(|content| self.blob(content)).collect();
        for layer in &mut layers {
            layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar");
        }
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": layers.iter().map(|_| json!({ "created_by": name })).collect::<Vec<_>>(),
        });
        self.manifest(&config, &layers, name)
    }

    /// A signature as cosign stores it: a manifest under a tag made of the digest.
    pub(super) fn sign(&mut self, digest: &str, reference: &str, key: &Path) {
        let payload = payload(digest, reference);
        let mut layer = self.blob(payload.as_bytes());
        layer["mediaType"] = json!("application/vnd.dev.cosign.simplesigning.v1+json");
        let signature = STANDARD.encode(openssl_signature(&self.dir, payload.as_bytes(), key, &[]));
        layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": signature });
        let config = json!({ "architecture": "", "os": "", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] } });
        self.manifest(&config, &[layer], &format!("{}.sig", digest.replace(':', "-")));
    }

    pub(super) fn archive(&self) -> PathBuf {
        fs::write(self.dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("layout");
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).expect("layout");
        let archive = self.dir.with_extension("tar");
        run("tar", &["-cf", text(&archive), "-C", text(&self.dir), "."]);
        archive
    }
}

/// Writes a policy as careful editors do.
pub(super) fn policy(node: &Node, docker: Value) {
    let staged = node.dir.join("etc/policy.staged");
    let policy = json!({
        "default": [{ "type": "insecureAcceptAnything" }],
        "transports": { "docker": docker },
    });
    fs::write(&staged, policy.to_string()).expect("policy");
    fs::rename(staged, node.dir.join("etc/policy.json")).expect("policy");
}

pub(super) fn signed_by(key: &Path) -> Value {
    json!({ "registry.example/signed": [{
        "type": "sigstoreSigned", "keyPath": key, "signedIdentity": { "type": "matchRepository" },
    }] })
}

pub(super) fn configured(minisign: &[String]) -> Node {
    let mut node = Node::new();
    fs::create_dir(node.dir.join("etc")).expect("etc");
    let path = node.dir.join("coracle.yaml");
    let config = json!({
        "apiVersion": "coracle.dev/v1alpha1",
        "kind": "CoracleConfiguration",
        "images": { "policy": node.dir.join("etc/policy.json"), "minisignPublicKeys": minisign },
    });
    fs::write(&path, config.to_string()).expect("config");
    node.args.extend(["--config".to_owned(), path.display().to_string()]);
    node
}

pub(super) fn pod_of(name: &str, image: &str) -> Value {
    let mut pod = pod(name, REST);
    pod["spec"]["containers"][0]["image"] = json!(image);
    pod["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    pod
}

#[test]
fn images_run_only_with_the_signatures_that_the_policy_of_now_wants() {
    let mut node = configured(&[]);
    let (private, public) = key(&node.dir, "good");
    let (strange, stranger) = key(&node.dir, "strange");
    policy(&node, signed_by(&public));
    node.start();
    node.wait_for_images();
    let busybox = image_archive("signed:1");

    // Unsigned, signed by a stranger, signed for something else: refused, with the reason; others in the archive come in.
    let mut layout = Layout::new(node.dir.join("unsigned"));
    layout.image(&busybox, SIGNED);
    layout.image(&busybox, "registry.example/free/app:1");
    let said = node.cli(&["image", "import", text(&layout.archive())]).fails(1);
    assert!(said.contains(SIGNED) && said.contains("comes with no signature"), "{said}");
    assert!(!said.contains("registry.example/free"), "{said}");
    let list = node.cli(&["image", "ls"]).ok();
    assert!(list.contains("registry.example/free/app") && !list.contains("signed/app"), "{list}");
    let mut layout = Layout::new(node.dir.join("strange"));
    let digest = layout.image(&busybox, SIGNED);
    layout.sign(&digest, "registry.example/signed/app", &strange);
    let said = node.cli(&["image", "import", text(&layout.archive())]).fails(1);
    assert!(said.contains("does not verify with key sha256:") && said.contains("good.pub"), "{said}");
    let mut layout = Layout::new(node.dir.join("other"));
    let digest = layout.image(&busybox, SIGNED);
    layout.sign(&digest, "registry.example/signed/other", &private);
    let said = node.cli(&["image", "import", text(&layout.archive())]).fails(1);
    assert!(said.contains("is for registry.example/signed/other"), "{said}");

    // Dropped in with a good signature: imported, recorded, and it runs.
    let mut layout = Layout::new(node.dir.join("good"));
    let digest = layout.image(&busybox, SIGNED);
    layout.sign(&digest, "registry.example/signed/app", &private);
    node.drop_image(&layout.archive(), "good.tar");
    eventually("the signed image came in", PATIENCE, || node.cli(&["image", "ls"]).stdout.contains("signed/app"));
    let list: Value = serde_json::from_str(&node.cli(&["image", "ls", "-o", "json"]).ok()).expect("JSON");
    let items = list["items"].as_array().expect("items");
    let image = items.iter().find(|item| item["names"][0] == SIGNED).expect("the image");
    assert_eq!(image["verified"][0]["name"], "registry.example/signed/app", "{image}");
    node.apply("app.yaml", pod_of("app", SIGNED));
    node.wait_up("app");

    // Another key is wanted from now on: what runs goes on, nothing starts any more, until the policy is edited back.
    policy(&node, signed_by(&stranger));
    node.apply("late.yaml", pod_of("late", SIGNED));
    let late = node.wait_pod("late", "is refused", |p| p.waiting("main") == "SignatureValidationFailed");
    let message = late.waiting_message("main");
    assert!(message.contains(SIGNED) && message.contains("none of those verified"), "{message}");
    let again = format!("coracle image import {}", node.dir.join("root/images/good.tar").display());
    assert!(message.ends_with(&again), "{message}");
    assert!(node.pod("app").is_some_and(|app| app.running("main")), "what runs goes on");
    // Nor when the policy is damaged: not even what needed no signature.
    fs::write(node.dir.join("etc/policy.json"), "{").expect("policy");
    node.apply("free.yaml", pod_of("free", BUSYBOX));
    let free = node.wait_pod("free", "is refused", |p| p.waiting("main") == "SignatureValidationFailed");
    let message = free.waiting_message("main");
    assert!(message.contains("policy.json") && message.contains("line 1"), "{message}");
    policy(&node, signed_by(&public));
    node.wait_up("late");
    node.wait_up("free");
    node.restart();
    node.wait_up("late");
    node.finish();
}

#[test]
fn archives_are_vouched_for_by_minisign() {
    let keys = tempfile();
    let (public, secret) = (keys.join("a.pub"), keys.join("a.key"));
    run("minisign", &["-G", "-W", "-f", "-p", text(&public), "-s", text(&secret)]);
    let line = fs::read_to_string(&public).expect("key").lines().nth(1).expect("key").to_owned();
    let (file, second) = (keys.join("b.pub"), keys.join("b.key"));
    run("minisign", &["-G", "-W", "-f", "-p", text(&file), "-s", text(&second)]);
    let mut node = configured(&[line, text(&file).to_owned()]);
    let (_, other) = key(&node.dir, "other");
    policy(&node, signed_by(&other));
    node.start();
    node.wait_for_images();
    let source = {
        let mut layout = Layout::new(node.dir.join("plain"));
        layout.image(&image_archive("signed:1"), SIGNED);
        layout.archive()
    };
    let archive = node.dir.join("share/app.tar");
    let signature = node.dir.join("share/app.tar.minisig");
    fs::copy(&source, &archive).expect("archive");
    let import = || node.cli(&["image", "import", text(&archive)]);
    import().fails(1);

    // Altered after it was signed, and cut signatures: refused even where nothing is asked for.
    run("minisign", &["-S", "-s", text(&secret), "-m", text(&archive), "-x", text(&signature)]);
    let good = fs::read_to_string(&signature).expect("signature");
    let mut bytes = fs::read(&archive).expect("archive");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&archive, &bytes).expect("archive");
    fs::remove_file(node.dir.join("etc/policy.json")).expect("policy");
    let said = import().fails(1);
    assert!(said.contains("app.tar.minisig does not fit the archive"), "{said}");
    fs::copy(&source, &archive).expect("archive");
    fs::write(&signature, &good[..good.len() / 2]).expect("signature");
    let said = import().fails(1);
    assert!(said.contains("is not a minisign signature"), "{said}");
    policy(&node, signed_by(&other));

    // Dropped in: refused without the signature, taken when that arrives, and it satisfies the policy.
    node.drop_image(&source, "app.tar");
    node.wait_event("a refusal", |reason, message| reason == "ImageImportFailed" && message.contains(SIGNED));
    let staged = node.dir.join("staged.minisig");
    fs::write(&staged, &good).expect("signature");
    fs::rename(&staged, node.dir.join("root/images/app.tar.minisig")).expect("signature");
    eventually("the signed image came in", PATIENCE, || node.cli(&["image", "ls"]).stdout.contains("signed/app"));
    node.apply("app.yaml", pod_of("app", SIGNED));
    node.wait_up("app");
    // Signatures of minisign's old kind count, too.
    run("minisign", &["-S", "-l", "-s", text(&secret), "-m", text(&archive), "-x", text(&signature)]);
    import().ok();
    // By the key of the file, too; what the signer says can be read. Until that key is taken away.
    let sign = ["-S", "-t", "release 7\u{1b}[31m", "-s", text(&second), "-m", text(&archive), "-x", text(&signature)];
    run("minisign", &sign);
    import().ok();
    let list = node.cli(&["image", "ls", "-o", "json"]).ok();
    assert!(list.contains("release 7 [31m") && !list.contains("u001b"), "{list}");
    fs::rename(&file, keys.join("away.pub")).expect("key");
    let said = import().fails(1);
    assert!(said.contains("is by a key that is not among minisignPublicKeys") && said.contains("b.pub"), "{said}");
    node.finish();
    fs::remove_dir_all(keys).expect("folder");
}

pub(super) fn tempfile() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("coracle-minisign-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("folder");
    dir
}
