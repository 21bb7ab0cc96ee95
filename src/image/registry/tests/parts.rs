//! What a pull that failed has fetched already.

use super::*;

/// A server of an image with two layers. Of the second there is nothing until `fixed`, and its absence is only told once
/// the first is whole, in the store at `root`.
fn two_layers(root: PathBuf, fixed: Arc<AtomicBool>) -> (Server, String, String) {
    let sample = Sample::new(architecture());
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    tar.append_data(&mut header, "folder", &[][..]).unwrap();
    let second = tar.into_inner().unwrap();
    let mut config: Value = serde_json::from_str(&sample.config).unwrap();
    config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(json!(Digest::of(&second)));
    let config = config.to_string();
    let mut manifest: Value = serde_json::from_str(&sample.manifest).unwrap();
    manifest["config"]["digest"] = json!(Digest::of(config.as_bytes()));
    manifest["config"]["size"] = json!(config.len());
    manifest["layers"].as_array_mut().unwrap().push(json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar",
        "digest": Digest::of(&second), "size": second.len(),
    }));
    let manifest = manifest.to_string();
    let path = |content: &[u8]| format!("/v2/team/app/blobs/{}", Digest::of(content));
    let (first_path, second_path, config_path) = (sample.layer_path(), path(&second), path(config.as_bytes()));
    let returned = (first_path.clone(), second_path.clone());
    let server = Server::start(move |seen, _| match &seen.path {
        asked if *asked == first_path => Reply::new(200, &sample.layer),
        asked if *asked == config_path => Reply::new(200, config.as_bytes()),
        asked if asked.contains("/manifests/") => Reply::new(200, manifest.as_bytes()).with("Content-Type", MANIFEST),
        asked if *asked == second_path => {
            if fixed.load(Ordering::Relaxed) {
                return Reply::new(200, &second);
            }
            let list =
                |dir: &std::path::Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let is_seal = |path: PathBuf| path.extension().is_some_and(|kind| kind == "seal");
            let staged = || list(&root.join("staging")).any(|folder| list(&folder).any(is_seal));
            for _ in 0..20_000 {
                if staged() || list(&root.join("layers")).any(is_seal) {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
            Reply::new(404, b"")
        }
        _ => Reply::new(404, b""),
    });
    (server, returned.0, returned.1)
}

#[test]
fn whole_layers_of_a_pull_that_failed_are_not_fetched_again() {
    let mut client = Client::new();
    client.registries.patience.stall = Duration::from_secs(30);
    let fixed = Arc::new(AtomicBool::new(false));
    let (server, first, second) = two_layers(client.dir.join("store"), fixed.clone());
    let name = format!("{}/team/app:1", server.address());
    for _ in 0..2 {
        let error = client.pull(&name).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        assert_eq!(server.count(&first), 1, "what is whole is kept");
        // Also by the one that comes after a restart or a power cut.
        let elsewhere = client.dir.join("other");
        let now = ImageStore::open(&elsewhere).unwrap();
        drop(std::mem::replace(&mut client.store, now));
        client.store = ImageStore::open(&client.dir.join("store")).unwrap();
    }
    fixed.store(true, Ordering::Relaxed);
    let pulled = client.pull(&name).unwrap();
    assert_eq!((server.count(&first), server.count(&second)), (1, 3));
    assert!(pulled.image.layers.iter().any(|layer| layer.join("content").is_file()));
    assert!(pulled.image.layers.iter().any(|layer| layer.join("folder").is_dir()));
}
