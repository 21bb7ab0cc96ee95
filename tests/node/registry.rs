//! Images out of a real registry: every way to get in, every shape of manifest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use coracle::image::registry::{Error, LayerState, Progress, PullSecret, Pulled, Registries, Request, Settings};
use coracle::image::trust::{self, Trust};
use coracle::image::{Digest, ImageStore, Origin, architecture};
use coracle::sys::fs::remove_tree;
use serde_json::{Value, json};

use super::harness::{output, secs};
use super::registry_server::{Auth, IDENTITY, PASSWORD, Registry, USER};

/// A store and settings of its own for each test, gone afterwards.
struct Client {
    dir: PathBuf,
    registries: Registries,
    store: ImageStore,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = remove_tree(&self.dir);
    }
}

impl Client {
    fn new() -> Client {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!("coracle-registry-client-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        let _ = remove_tree(&dir);
        fs::create_dir_all(dir.join("certs.d")).unwrap();
        let settings = Settings {
            registries_conf: dir.join("registries.conf"),
            certs_dirs: vec![dir.join("certs.d")],
            auth_files: vec![dir.join("auth.json")],
            root_dir: dir.clone(),
            ..Settings::default()
        };
        let registries = Registries::new(settings, Arc::new(Trust::new(trust::Settings::default())));
        let store = ImageStore::open(&dir.join("store")).unwrap();
        Client { dir, registries, store }
    }

    /// Makes it trust an authority for a registry's certificates, and no other.
    fn trust(&self, registry: &Registry, ca: &Path) {
        let folder = self.dir.join("certs.d").join(registry.address());
        fs::create_dir_all(&folder).unwrap();
        fs::copy(ca, folder.join("ca.crt")).unwrap();
    }

    fn pull(&self, image: &str, secrets: &[PullSecret]) -> Result<Pulled, Error> {
        self.told(image, secrets).0
    }

    fn told(&self, image: &str, secrets: &[PullSecret]) -> (Result<Pulled, Error>, Vec<Progress>) {
        let told = Mutex::new(Vec::new());
        let cancelled = AtomicBool::new(false);
        let request = Request { image, secrets, cancelled: &cancelled };
        let result = self.registries.pull(&self.store, &request, &|event| told.lock().unwrap().push(event));
        (result, told.into_inner().unwrap())
    }
}

fn secret(registry: &Registry, name: &str, entry: Value) -> PullSecret {
    PullSecret { name: name.into(), content: json!({ "auths": { registry.address(): entry } }).to_string().into() }
}

/// A docker-archive of an image for a machine, with layers of one small file each.
fn archive(path: &Path, machine: &str, layers: usize) {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let (mut diff_ids, mut names) = (Vec::new(), Vec::new());
    for n in 0..layers {
        let mut layer = tar::Builder::new(Vec::new());
        let content = format!("layer {n} for {machine}");
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(1000 + n as u64);
        layer.append_data(&mut header, format!("file-{n}"), content.as_bytes()).unwrap();
        let layer = layer.into_inner().unwrap();
        names.push(format!("{n}/layer.tar"));
        add(&names[n], &layer);
        diff_ids.push(Digest::of(&layer));
    }
    let config = json!({
        "architecture": machine, "os": "linux", "config": { "Cmd": ["true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    add(&config_name, config.as_bytes());
    let manifest = json!([{ "Config": config_name, "RepoTags": ["sample:1"], "Layers": names }]);
    add("manifest.json", manifest.to_string().as_bytes());
    builder.finish().unwrap();
}

#[test]
fn registries_let_in_who_shows_what_they_ask_for() {
    let client = Client::new();
    let sample = client.dir.join("sample.tar");
    archive(&sample, architecture(), 2);
    let mut ids = Vec::new();
    for auth in [Auth::Plain, Auth::Tls, Auth::Basic, Auth::Token] {
        let registry = Registry::start(auth);
        registry.push(&sample, "team/app:1");
        let name = registry.reference("team/app:1");
        let good = secret(&registry, "ns/good", json!({ "username": USER, "password": PASSWORD }));
        let bad = secret(&registry, "ns/bad", json!({ "username": USER, "password": "guess" }));
        let pulled = match auth {
            Auth::Plain => client.pull(&name, &[bad]).unwrap(),
            Auth::Tls => {
                let stranger = Registry::start(Auth::Tls);
                client.trust(&registry, &stranger.ca());
                let error = client.pull(&name, &[]).unwrap_err();
                assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
                assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
                client.trust(&registry, &registry.ca());
                client.pull(&name, &[]).unwrap()
            }
            Auth::Basic | Auth::Token => {
                let error = client.pull(&name, &[]).unwrap_err();
                assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
                let error = client.pull(&name, std::slice::from_ref(&bad)).unwrap_err();
                assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
                assert!(error.to_string().contains("ns/bad") && !error.to_string().contains("guess"), "{error}");
                client.pull(&name, &[bad, good]).unwrap()
            }
        };
        let asked = matches!(auth, Auth::Basic | Auth::Token);
        assert_eq!(pulled.secret.as_deref(), asked.then_some("ns/good"), "{auth:?}");
        // The same layers under another name are not fetched again.
        assert_eq!(pulled.fetched, auth == Auth::Plain);
        assert!(pulled.image.names.contains(&name));
        ids.push(pulled.image.id.clone());
        if auth == Auth::Token {
            assert!(registry.tokens() >= 2);
            let identity = secret(&registry, "ns/identity", json!({ "identitytoken": IDENTITY }));
            let fresh = Client::new();
            let pulled = fresh.pull(&name, &[identity]).unwrap();
            assert!(pulled.fetched && pulled.secret.as_deref() == Some("ns/identity"));
            // The node's own, and a name that is not there.
            let node = json!({ "auths": { registry.address(): { "username": USER, "password": PASSWORD } } });
            fs::write(fresh.dir.join("auth.json"), node.to_string()).unwrap();
            assert!(fresh.pull(&name, &[]).unwrap().secret.is_none());
            let missing = registry.reference("team/app:none");
            assert_eq!(fresh.pull(&missing, &[]).unwrap_err().to_string(), format!("{missing}: not found"));
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(client.store.list()[0].names.len(), 4);
}

#[test]
fn images_of_every_dialect_and_packing_are_the_same_in_the_end() {
    let scratch = Client::new();
    let sample = scratch.dir.join("sample.tar");
    archive(&sample, architecture(), 40);
    let from = format!("docker-archive:{}", sample.display());
    let mut seen = Vec::new();
    for (tag, options) in [
        ("docker", &["--format", "v2s2"][..]),
        ("oci", &["--format", "oci"]),
        ("zstd", &["--format", "oci", "--dest-compress-format", "zstd"]),
    ] {
        // One for each: skopeo would take layers it has pushed before, packed as they were then.
        let registry = Registry::start(Auth::Plain);
        registry.push_with(&from, &format!("team/{tag}:1"), options);
        let client = Client::new();
        let (pulled, told) = client.told(&registry.reference(&format!("team/{tag}:1")), &[]);
        let pulled = pulled.unwrap();
        assert_eq!(pulled.image.layers.len(), 40, "{tag}");
        for (n, layer) in pulled.image.layers.iter().enumerate() {
            let content = fs::read_to_string(layer.join(format!("file-{n}"))).unwrap();
            assert_eq!(content, format!("layer {n} for {}", architecture()), "{tag}");
        }
        let done = |event: &&Progress| matches!(event, Progress::Layer { state: LayerState::Done, .. });
        assert_eq!(told.iter().filter(done).count(), 40, "{tag}");
        assert!(matches!(&told[0], Progress::Resolved { layers: 40, digest } if *digest == pulled.digest));
        seen.push((pulled.image.id.clone(), pulled.digest.clone()));

        // By digest, in another registry client: it is what it is, and has no name.
        let other = Client::new();
        let by_digest = format!("{}@{}", registry.reference(&format!("team/{tag}")), pulled.digest);
        let again = other.pull(&by_digest, &[]).unwrap();
        assert!(again.image.names.is_empty() && again.image.id == pulled.image.id);
        assert!(other.store.resolve(&by_digest).is_some());
        let repository = registry.reference(&format!("team/{tag}"));
        assert_eq!(again.image.origins, [Origin::Registry { repository, digest: pulled.digest }]);
    }
    // Dialects have manifests of their own; docker's configuration is not OCI's.
    assert_eq!(seen.iter().map(|(_, digest)| digest).collect::<std::collections::BTreeSet<_>>().len(), seen.len());
    assert!(seen[1..].iter().all(|(id, _)| *id == seen[1].0), "{seen:?}");
}

/// Makes an OCI layout of several machines' images with one index over them.
fn layout(dir: &Path, machines: &[&str]) -> PathBuf {
    let layout = dir.join(format!("layout-{}", machines.join("-")));
    let mut manifests = Vec::new();
    for machine in machines {
        let single = dir.join(format!("{machine}.tar"));
        archive(&single, machine, 1);
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--override-arch", machine, "--format", "oci"]);
        command.arg(format!("docker-archive:{}", single.display()));
        command.arg(format!("oci:{}:{machine}", layout.display()));
        output(&mut command, b"", secs(60)).ok();
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let mut entry = index["manifests"].as_array().unwrap().last().unwrap().clone();
        entry["platform"] = json!({ "os": "linux", "architecture": machine });
        entry.as_object_mut().unwrap().remove("annotations");
        manifests.push(entry);
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
    })
    .to_string();
    let digest = Digest::of(index.as_bytes());
    fs::write(layout.join("blobs/sha256").join(digest.hex()), &index).unwrap();
    let top = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": index.len(),
        "annotations": { "org.opencontainers.image.ref.name": "all" },
    }]});
    fs::write(layout.join("index.json"), top.to_string()).unwrap();
    layout
}

#[test]
fn a_registry_that_is_away_or_damaged_gives_nothing_wrong() {
    let mut registry = Registry::start(Auth::Plain);
    let client = Client::new();
    let sample = client.dir.join("sample.tar");
    archive(&sample, architecture(), 1);
    registry.push(&sample, "team/app:1");
    let name = registry.reference("team/app:1");
    registry.stop();
    let error = client.pull(&name, &[]).unwrap_err();
    assert_eq!(error.reason(), "RegistryUnavailable", "{error}");
    registry.restart();
    let pulled = client.pull(&name, &[]).unwrap();
    // Its configuration and its one layer.
    assert_eq!(registry.requests("GET /v2/team/app/blobs/"), 2, "{}", registry.log());

    let hex = pulled.image.id.strip_prefix("sha256:").unwrap();
    let blob = registry.data().join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
    let damaged = fs::read_to_string(&blob).unwrap().replace("linux", "Linux");
    fs::write(&blob, damaged).unwrap();
    let fresh = Client::new();
    let error = fresh.pull(&name, &[]).unwrap_err();
    assert!(error.to_string().contains("expected sha256:"), "{error}");
    assert!(fresh.store.list().is_empty());
}

#[test]
fn an_index_gives_this_machines_image_or_says_whose_there_are() {
    let registry = Registry::start(Auth::Plain);
    let client = Client::new();
    let here = architecture();
    let many = layout(&client.dir, &["s390x", here, "riscv64"]);
    let foreign = layout(&client.dir, &["s390x", "riscv64"]);
    for (name, layout) in [("team/many:1", &many), ("team/foreign:1", &foreign)] {
        registry.push_with(&format!("oci:{}:all", layout.display()), name, &["--all"]);
    }
    let pulled = client.pull(&registry.reference("team/many:1"), &[]).unwrap();
    assert_eq!(pulled.image.config.architecture().to_string(), here);
    assert_eq!(pulled.image.digests.len(), 2);
    assert!(pulled.image.digests.contains(&pulled.digest.to_string()));
    let content = fs::read_to_string(pulled.image.layers[0].join("file-0")).unwrap();
    assert_eq!(content, format!("layer 0 for {here}"));

    let error = client.pull(&registry.reference("team/foreign:1"), &[]).unwrap_err();
    assert_eq!(error.to_string(), format!("no image for linux/{here}, only for linux/riscv64, linux/s390x"));
    assert_eq!(error.reason(), "ErrImagePull");

    // What the store has lost comes back from where it came, by the digest of the manifest.
    let origin = pulled.image.origins.last().unwrap().clone();
    client.store.remove(&pulled.image.id, &[]).unwrap();
    assert!(client.store.list().is_empty());
    let cancelled = AtomicBool::new(false);
    let again = client.registries.refetch(&client.store, &origin, &cancelled, &|_| {}).unwrap();
    assert_eq!((again.image.id.as_str(), again.fetched), (pulled.image.id.as_str(), true));
    assert!(again.image.layers[0].join("file-0").is_file());
}
