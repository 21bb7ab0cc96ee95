//! Images that go: by thresholds, under disk pressure, for room, and by a person's word; on a small disk of their own.

use super::harness::{BUSYBOX, Node, eventually, http, image_archive, resting, secs};
use coracle::image::{Digest, ImageStore, NewImage, Origin};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const MIB: usize = 1 << 20;

/// A node with its state on a tmpfs of its own.
struct Small {
    node: Node,
    root: PathBuf,
}

impl Small {
    fn new(mib: usize) -> Small {
        let mut node = Node::new();
        let root = node.dir.join("root");
        let options = std::ffi::CString::new(format!("size={mib}m,mode=755")).unwrap();
        mount("tmpfs", &root, "tmpfs", MountFlags::empty(), options.as_c_str()).expect("mount a small disk");
        fs::create_dir(root.join("images")).unwrap();
        // Not dropped in, as those are pinned: what goes and what stays is said by each test.
        node.disk = Some(root.clone());
        Small { node, root }
    }

    /// Puts an image into the store while no agent runs.
    fn put(&self, name: &str, mib: usize, pinned: bool, origin: Option<Origin>) -> String {
        self.put_as(&[name], mib, pinned, origin)
    }

    /// The same under several names, of which the first makes the content.
    fn put_as(&self, names: &[&str], mib: usize, pinned: bool, origin: Option<Origin>) -> String {
        let name = names[0];
        let store = ImageStore::open(&self.root.join("store")).unwrap();
        let ingest = store.ingest().unwrap();
        let layer = ingest.layer(&layer(name, mib)[..], None, None, &Default::default()).unwrap();
        let config = json!({ "architecture": coracle::image::architecture(), "os": "linux", "config": { "Cmd": [name] },
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id.as_str()] } });
        let id = Digest::of(config.to_string().as_bytes());
        let image = NewImage {
            id,
            names: names.iter().map(|name| format!("docker.io/library/{name}:1")).collect(),
            digests: Vec::new(),
            config: serde_json::from_value(config).unwrap(),
            origin,
            verified: Vec::new(),
            pinned,
        };
        ingest.commit(image).unwrap().id.clone()
    }

    /// How much of the disk is used, in percent as kubelet counts.
    fn usage(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.root).unwrap();
        100 - found.f_bavail * 100 / found.f_blocks
    }

    /// Says how many seconds ago images were last used. The agent reads it when it starts.
    fn put_times(&self, ago: &[(&String, u64)]) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let times: BTreeMap<&String, u64> = ago.iter().map(|(id, seconds)| (*id, now - seconds)).collect();
        fs::write(self.root.join("store/used.json"), json!({ "images": times }).to_string()).unwrap();
    }
}

/// A tar stream with one file that no other has.
fn layer(name: &str, mib: usize) -> Vec<u8> {
    let mut content = vec![0; mib * MIB];
    content[..name.len()].copy_from_slice(name.as_bytes());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "content", &content[..]).unwrap();
    builder.into_inner().unwrap()
}

/// A docker-archive of one image, outside of the small disk.
fn archive(dir: &Path, name: &str, mib: usize) -> PathBuf {
    let layer = layer(name, mib);
    let config = json!({ "architecture": coracle::image::architecture(), "os": "linux", "config": { "Cmd": [name] },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).as_str()] } })
    .to_string();
    let manifest = json!([{ "Config": "config.json", "RepoTags": [format!("{name}:1")], "Layers": ["layer.tar"] }]);
    let path = dir.join(format!("{name}.tar"));
    let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
    let members =
        [("config.json", config.into_bytes()), ("layer.tar", layer), ("manifest.json", manifest.to_string().into())];
    for (member, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, member, &content[..]).unwrap();
    }
    builder.finish().unwrap();
    path
}

fn images(node: &Node) -> Vec<String> {
    let list: Value = serde_json::from_str(&node.cli(&["image", "ls", "-o", "json"]).ok()).unwrap();
    let names = list["items"].as_array().unwrap().iter();
    let mut names: Vec<String> = names.map(|i| i["names"][0].as_str().unwrap_or("<none>").to_owned()).collect();
    names.retain(|name| !name.starts_with("coracle.dev/"));
    names.iter().map(|name| name.trim_start_matches("docker.io/library/").to_owned()).collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Layers on disk, each with its record.
fn layers(root: &Path) -> usize {
    let names = entries(&root.join("store/layers"));
    // Folder, record, seal and recipe of each.
    assert_eq!(names.len() % 4, 0, "{names:?}");
    names.len() / 4
}

fn metric(node: &Node, name: &str) -> u64 {
    let (_, text) = http(("127.0.0.1", node.healthz), "/metrics").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn thresholds_take_the_least_recently_used_images_and_no_more() {
    let mut small = Small::new(128);
    let busybox = image_archive(BUSYBOX);
    // 4 of 128 MiB are for the rest.
    let first = small.put("first", 20, false, None);
    small.put("kept", 20, true, None);
    let second = small.put("second", 20, false, None);
    // What an earlier version brought with it is pinned, and goes all the same.
    let earlier = small.put("earlier", 20, true, Some(Origin::BuiltIn));
    let orphan = small.put("orphan", 4, false, None);
    for folder in ["store/images", "store/copies"] {
        fs::remove_file(small.root.join(folder).join(format!("{}.json", &orphan[7..]))).unwrap();
    }
    let aside = small.root.join("store/images/0123.json.damaged");
    fs::write(&aside, "{").unwrap();
    let root = small.root.clone();
    let never = json!({ "imageGCHighThresholdPercent": 100, "imageMinimumGCAge": "1ms", "evictionHard": { "memory.available": "1Mi" } });
    small.node.configure(never.clone());
    small.node.start();
    small.node.cli(&["image", "import", busybox.to_str().unwrap()]).ok();
    let before = small.node.run(&resting("runs"));
    let pid = before.id("main");
    assert_eq!(images(&small.node), ["busybox:1", "earlier:1", "first:1", "kept:1", "second:1"]);
    let mut on = never;
    // 60 MiB and more are wanted back to 50 %: two images, as the times say.
    on["imageGCHighThresholdPercent"] = json!(65);
    on["imageGCLowThresholdPercent"] = json!(50);
    assert!(small.usage() > 65, "{}", small.usage());
    small.node.stop();
    small.put_times(&[(&earlier, 300), (&second, 200), (&first, 100)]);
    small.node.reconfigure(on.clone());
    small.node.start();
    small
        .node
        .wait_event("the first to go", |reason, message| reason == "ImageDeleted" && message.contains("earlier:1"));
    small
        .node
        .wait_event("the second to go", |reason, message| reason == "ImageDeleted" && message.contains("second:1"));
    eventually("two images are gone", secs(30), || images(&small.node) == ["busybox:1", "first:1", "kept:1"]);
    assert!(small.usage() <= 51, "{}", small.usage());
    assert_eq!(metric(&small.node, "kubelet_image_garbage_collected_total{reason=\"space\"}"), 2);
    // A record that was set aside keeps layers without an image, for it may be theirs.
    assert_eq!(layers(&root), 4);
    assert!(aside.exists());
    fs::remove_file(&aside).unwrap();

    // More is wanted than may go.
    on["imageGCHighThresholdPercent"] = json!(10);
    on["imageGCLowThresholdPercent"] = json!(1);
    small.node.reconfigure(on);
    small.node.restart();
    small.node.wait_event("too little may go", |reason, message| {
        reason == "FreeDiskSpaceFailed"
            && message.starts_with("Failed to garbage collect required amount of images. Attempted to free ")
            && message.ends_with(" bytes eligible to free.")
    });
    assert_eq!(images(&small.node), ["busybox:1", "kept:1"]);
    assert_eq!(layers(&root), 2, "also what no image has is gone");
    assert_eq!(entries(&root.join("store/staging")), [""; 0]);

    // The pod never noticed.
    let after = small.node.pod("runs").unwrap();
    assert_eq!((after.id("main"), after.restarts("main")), (pid, 0));
    assert_eq!(small.node.sh("runs", "echo here"), "here");
    small.node.finish();
}

#[test]
fn a_person_prunes_what_is_unused_and_removes_by_force_what_is_pinned() {
    let mut small = Small::new(64);
    small.put("kept", 2, true, None);
    small.put("spare", 2, false, None);
    small.put("other", 2, false, None);
    let root = small.root.clone();
    let node = &mut small.node;
    node.start();
    node.cli(&["image", "import", image_archive(BUSYBOX).to_str().unwrap()]).ok();
    let mut pod = resting("mounts");
    pod["spec"]["volumes"] = json!([{ "name": "data", "image": { "reference": "other:1", "pullPolicy": "Never" } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    node.run(&pod);
    let full = format!("default/mounts-{}", node.name);
    for name in ["busybox:1", "other:1"] {
        let refusal = node.cli(&["image", "rm", "--force", name]).fails(1);
        assert!(refusal.contains(&format!("is used by {full}")), "{refusal}");
    }
    let refusal = node.cli(&["image", "rm", "kept:1"]).fails(1);
    assert!(refusal.contains("is pinned"), "{refusal}");

    let would = node.cli(&["image", "prune", "--dry-run"]).ok();
    assert!(would.contains("spare:1 would be removed (2.10MB)") && would.contains("2.10MB would be freed"), "{would}");
    assert_eq!(images(node), ["busybox:1", "kept:1", "other:1", "spare:1"]);
    let did = node.cli(&["image", "prune"]).ok();
    assert!(did.contains("spare:1 removed (2.10MB)") && did.contains("2.10MB freed") && !did.contains("kept"), "{did}");
    assert_eq!(node.cli(&["image", "prune"]).ok(), "0B freed\n");
    node.wait_event("the removal", |reason, message| reason == "ImageDeleted" && message.contains("spare:1"));
    let would = node.cli(&["image", "prune", "--all", "--dry-run"]).ok();
    assert!(would.contains("kept:1 would be removed"), "{would}");
    node.cli(&["image", "rm", "--force", "kept:1"]).ok();
    assert_eq!(images(node), ["busybox:1", "other:1"]);

    // An ended container still counts, until its pod is gone.
    assert_eq!(node.sh("mounts", "head -c 5 /data/content"), "other");
    node.remove("mounts.yaml");
    node.wait_gone("mounts");
    node.cli(&["image", "prune"]).ok();
    assert_eq!(images(node), [""; 0]);
    assert_eq!(entries(&root.join("store/staging")), [""; 0]);
    small.node.finish();
}

#[test]
fn a_full_disk_stops_an_import_cleanly_and_unused_images_make_room() {
    let mut small = Small::new(96);
    small.put("kept", 20, true, None);
    let root = small.root.clone();
    let archives = small.node.dir.join("share");
    let (large, larger) = (archive(&archives, "large", 40), archive(&archives, "larger", 60));
    // It unpacks to a hundred times its size: what it needs is only seen when it is written.
    let packed = archives.join("packed.tar.gz");
    let mut encoder = flate2::write::GzEncoder::new(fs::File::create(&packed).unwrap(), flate2::Compression::fast());
    std::io::copy(&mut fs::File::open(archive(&archives, "packed", 30)).unwrap(), &mut encoder).unwrap();
    encoder.finish().unwrap();
    let node = &mut small.node;
    node.configure(json!({ "imageGCHighThresholdPercent": 100, "imageMinimumGCAge": "1ms",
        "evictionHard": { "memory.available": "1Mi" } }));
    node.start();
    node.cli(&["image", "import", image_archive(BUSYBOX).to_str().unwrap()]).ok();
    let id = node.run(&resting("runs")).id("main");
    let clean = |node: &Node, images_now: &[&str]| {
        assert_eq!(images(node), images_now);
        assert_eq!(layers(&root), images_now.len());
        assert_eq!(entries(&root.join("store/staging")), [""; 0]);
    };
    node.cli(&["image", "import", large.to_str().unwrap()]).ok();
    clean(node, &["busybox:1", "kept:1", "large:1"]);

    // It would not fit if all went that may go: nothing goes.
    fs::write(root.join("ballast"), vec![1; 20 * MIB]).unwrap();
    let refusal = node.cli(&["image", "import", larger.to_str().unwrap()]).fails(1);
    assert!(refusal.contains("not enough space on ") && refusal.contains("needs ~60.0 MiB, "), "{refusal}");
    assert!(refusal.contains(" free"), "{refusal}");
    clean(node, &["busybox:1", "kept:1", "large:1"]);

    // One image is in the way of another.
    fs::remove_file(root.join("ballast")).unwrap();
    // Once it is old enough to go, by the clock's whole seconds.
    let import = |node: &Node, path: &Path| {
        let import = || node.cli(&["image", "import", path.to_str().unwrap()]).code == Some(0);
        eventually("it is imported", secs(30), import);
    };
    import(node, &larger);
    node.wait_event("room was made", |reason, message| {
        reason == "ImageDeleted" && message.contains("large:1") && message.contains("the disk is full")
    });
    clean(node, &["busybox:1", "kept:1", "larger:1"]);

    // Seen only while it is unpacked: then, too, what is unused goes, and it is tried once more.
    import(node, &packed);
    clean(node, &["busybox:1", "kept:1", "packed:1"]);
    fs::write(root.join("ballast"), vec![1; 20 * MIB]).unwrap();
    node.cli(&["image", "rm", "packed:1"]).ok();
    fs::write(root.join("more"), vec![1; 20 * MIB]).unwrap();
    let refusal = node.cli(&["image", "import", packed.to_str().unwrap()]).fails(1);
    assert!(refusal.contains("not enough space on "), "{refusal}");
    clean(node, &["busybox:1", "kept:1"]);

    // Nothing else was disturbed, and once there is room it works.
    assert_eq!(node.pod("runs").unwrap().id("main"), id);
    assert_eq!(node.sh("runs", "echo here"), "here");
    fs::remove_file(root.join("ballast")).unwrap();
    fs::remove_file(root.join("more")).unwrap();
    node.cli(&["image", "import", packed.to_str().unwrap()]).ok();
    clean(node, &["busybox:1", "kept:1", "packed:1"]);

    // Under disk pressure what is unused goes, as under the kubelet.
    node.stop();
    node.reconfigure(json!({ "imageGCHighThresholdPercent": 100, "imageMinimumGCAge": "1ms",
        "evictionHard": { "nodefs.available": "60%" } }));
    node.start();
    eventually("pressure takes what is unused", secs(40), || images(node) == ["busybox:1", "kept:1"]);
    node.wait_up("runs");
    small.node.finish();
}

/// A pod that rests with the image `data:1` as a volume.
fn with_volume(name: &str) -> Value {
    let mut pod = resting(name);
    pod["spec"]["volumes"] = json!([{ "name": "data", "image": { "reference": "data:1", "pullPolicy": "Never" } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    pod
}

/// The image in `image ls` whose ID this is.
fn listed(node: &Node, id: &str) -> Value {
    let list: Value = serde_json::from_str(&node.cli(&["image", "ls", "-o", "json"]).ok()).unwrap();
    list["items"].as_array().unwrap().iter().find(|image| image["id"] == id).cloned().unwrap_or_default()
}

#[test]
fn an_image_that_runs_stays_though_its_name_moved_on_and_its_records_are_lost() {
    let mut small = Small::new(96);
    let data = small.put("data", 2, false, None);
    let root = small.root.clone();
    let archives = small.node.dir.join("share");
    let newer = archive(&archives, "data", 3);
    let node = &mut small.node;
    node.start();
    node.cli(&["image", "import", image_archive(BUSYBOX).to_str().unwrap()]).ok();
    let plain = node.run(&with_volume("plain"));
    // Its copies of layers have other owners, and other paths.
    let mut own = with_volume("own");
    own["spec"]["hostUsers"] = json!(false);
    let own = node.run(&own);
    let size = |pod: &str| node.sh(pod, "wc -c < /data/content");
    assert_eq!((size("plain"), size("own")), ((2 * MIB).to_string(), (2 * MIB).to_string()));

    // The name means another image now; what the pods have mounted is the one before.
    node.cli(&["image", "import", newer.to_str().unwrap()]).ok();
    assert_eq!(images(node), ["<none>", "busybox:1", "data:1"]);
    assert_eq!(node.cli(&["image", "prune", "--dry-run"]).ok(), "0B would be freed\n");
    assert_eq!(node.cli(&["image", "prune", "--all"]).ok(), "0B freed\n");
    let refusal = node.cli(&["image", "rm", "--force", &data[7..20]]).fails(1);
    let users = [format!("default/own-{}", node.name), format!("default/plain-{}", node.name)];
    assert!(refusal.contains(&format!("is used by {}", users.join(", "))), "{refusal}");
    let old = listed(node, &data);
    assert_eq!(
        (&old["usedBy"], &old["inUse"], old["unique"].as_u64()),
        (&json!(users), &json!(true), Some(2 * MIB as u64))
    );

    // The worst case: the image's record is gone, and no run says that it had it. Only the mounts tell.
    node.stop();
    for end in ["json", "config"] {
        let path = root.join("store/images").join(format!("{}.{end}", &data[7..]));
        let _ = fs::remove_file(path);
    }
    fs::remove_file(root.join("store/copies").join(format!("{}.json", &data[7..]))).unwrap();
    let forget = |uid: &str| {
        let path = root.join("pods").join(uid).join("containers/main/0.json");
        let mut run: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(run["volumeImages"], json!([&data]));
        run["volumeImages"] = json!([]);
        fs::write(&path, run.to_string()).unwrap();
    };
    forget(plain.uid());
    forget(own.uid());
    node.start();
    node.wait_up("own");
    assert_eq!(listed(node, &data), Value::Null);
    node.remove("plain.yaml");
    node.wait_gone("plain");
    node.cli(&["image", "prune"]).ok();
    assert_eq!(layers(&root), 3, "the layer is mounted by the pod with its own users");
    assert_eq!(node.sh("own", "wc -c < /data/content"), (2 * MIB).to_string());
    node.remove("own.yaml");
    node.wait_gone("own");
    let freed = node.cli(&["image", "prune"]).ok();
    // Not all layers: busybox' may be mounted by a pod of another test's node.
    let old = Digest::of(&layer("data", 2));
    assert!(!root.join("store/layers").join(&old.as_str()[7..]).exists(), "{freed}");
    assert_eq!(entries(&root.join("store/staging")), [""; 0]);
    small.node.finish();
}

#[test]
fn what_pods_wait_for_stays_and_before_the_manifests_are_read_everything_does() {
    let mut small = Small::new(96);
    let later = small.put("later", 2, false, None);
    let twice = small.put_as(&["twice", "other-name"], 2, false, None);
    small.put("spare", 2, false, None);
    let ends = small.put("ends", 1, false, None);
    let manifests = small.node.dir.join("manifests");
    let away = small.node.dir.join("away");
    let node = &mut small.node;
    // Everything may go, and has to.
    node.configure(
        json!({ "imageGCHighThresholdPercent": 2, "imageGCLowThresholdPercent": 1, "imageMinimumGCAge": "1ms",
        "evictionHard": { "memory.available": "1Mi" } }),
    );
    fs::rename(&manifests, &away).unwrap();
    node.start();
    let log = node.dir.join("agent.log");
    eventually("the collection is put off", secs(30), || {
        fs::read_to_string(&log).unwrap().contains("the manifests have not been read yet")
    });
    let refusal = node.cli(&["image", "prune"]).fails(1);
    assert!(refusal.contains("cannot tell which images are in use: the manifests have not been read yet"), "{refusal}");
    assert!(node.cli(&["image", "rm", "spare:1"]).fails(1).contains("have not been read yet"));
    assert_eq!(images(node), ["ends:1", "later:1", "other-name:1", "spare:1"]);
    node.stop();
    let mut on: Value = serde_json::from_slice(&fs::read(node.dir.join("config.yaml")).unwrap()).unwrap();
    on["imageGCHighThresholdPercent"] = json!(100);
    node.reconfigure(on);

    // One waits for its init container, one cannot start, one has ended; a manifest is broken.
    let mut waits = resting("waits");
    waits["spec"]["initContainers"] = json!([waits["spec"]["containers"][0].clone()]);
    waits["spec"]["initContainers"][0]["name"] = json!("first");
    waits["spec"]["containers"][0]["image"] = json!("later:1");
    let mut stuck = resting("stuck");
    stuck["spec"]["containers"][0]["image"] = json!("twice:1");
    stuck["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    let mut ended = resting("ended");
    ended["spec"]["restartPolicy"] = json!("Never");
    ended["spec"]["containers"][0]["image"] = json!("ends:1");
    for pod in [&waits, &stuck, &ended] {
        let name = pod["metadata"]["name"].as_str().unwrap();
        fs::write(away.join(format!("{name}.yaml")), pod.to_string()).unwrap();
    }
    fs::write(away.join("broken.yaml"), "kind: [").unwrap();
    fs::rename(&away, &manifests).unwrap();
    node.start();
    node.cli(&["image", "import", image_archive(BUSYBOX).to_str().unwrap()]).ok();
    node.wait_pod("waits", "waits", |pod| pod.running("first"));
    // There is no program in these images.
    node.wait_pod("ended", "ended", |pod| pod.phase() == "Failed");
    node.wait_pod("stuck", "tried", |pod| {
        pod.restarts("main") > 0 || !pod.terminated("main").is_null() || !pod.last("main").is_null()
    });
    // The broken manifest may be half-written for a second.
    eventually("the manifests are read", secs(30), || node.cli(&["image", "prune", "--dry-run"]).code == Some(0));
    let would = node.cli(&["image", "prune", "--dry-run", "--all"]).ok();
    assert_eq!(would, "docker.io/library/spare:1 would be removed (2.10MB)\n2.10MB would be freed\n");

    // Several at a time: what is wrong with one does not keep the others.
    let full = |name: &str| format!("default/{name}-{}", node.name);
    let out = node.cli(&["image", "rm", "twice:1", "nowhere:1", "other-name:1", "ends:1", &later[7..19], "spare:1"]);
    assert_eq!(out.code, Some(1));
    assert_eq!(
        out.stdout,
        "docker.io/library/other-name:1 removed, the image stays as docker.io/library/twice:1\n\
         docker.io/library/spare:1 removed (2.10MB freed)\n"
    );
    let errors: Vec<&str> = out.stderr.lines().collect();
    let used = |name: &str, pod: &str| format!("image docker.io/library/{name}:1 is used by {}", full(pod));
    assert_eq!(
        errors,
        [
            format!("error: cannot remove twice:1: {}", used("twice", "stuck")),
            "error: cannot remove nowhere:1: no such image".to_owned(),
            format!("error: cannot remove ends:1: {}", used("ends", "ended")),
            format!("error: cannot remove {}: {}", &later[7..19], used("later", "waits")),
        ]
    );
    assert_eq!(images(node), ["busybox:1", "ends:1", "later:1", "twice:1"]);
    for id in [&later, &twice, &ends] {
        assert_eq!(listed(node, id)["inUse"], true);
    }
    assert!(node.cli(&["image", "rm"]).fails(2).contains("Usage"));

    // A power cut, and nothing of the last boot in memory: what is recorded and wanted stays.
    node.kill9();
    node.start();
    node.cli(&["image", "prune", "--all"]).ok();
    assert_eq!(images(node), ["busybox:1", "ends:1", "later:1", "twice:1"]);
    small.node.finish();
}

#[test]
fn an_archive_that_did_not_fit_comes_in_once_it_does() {
    let mut small = Small::new(96);
    let root = small.root.clone();
    let dir = small.node.dir.join("share");
    let pack = |name: &str, mib: usize| {
        let packed = dir.join(format!("{name}.tar.gz"));
        let mut encoder =
            flate2::write::GzEncoder::new(fs::File::create(&packed).unwrap(), flate2::Compression::fast());
        std::io::copy(&mut fs::File::open(archive(&dir, name, mib)).unwrap(), &mut encoder).unwrap();
        encoder.finish().unwrap();
        packed
    };
    let node = &mut small.node;
    node.configure(json!({ "imageGCHighThresholdPercent": 100, "imageMinimumGCAge": "1ms",
        "evictionHard": { "memory.available": "1Mi" } }));
    fs::write(root.join("ballast"), vec![1; 40 * MIB]).unwrap();
    node.start();
    // Nothing may go: it is told once, and the store is clean.
    let part = root.join("images/.part");
    fs::copy(pack("dropped", 60), &part).unwrap();
    fs::rename(part, root.join("images/dropped.tar.gz")).unwrap();
    node.wait_event("there is no room", |reason, message| {
        reason == "ImageImportFailed" && message.contains("dropped.tar.gz: not enough space on ")
    });
    assert_eq!((images(node).len(), entries(&root.join("store/staging"))), (0, Vec::new()));
    fs::remove_file(root.join("ballast")).unwrap();
    let nudge = root.join("images/.nudge");
    eventually("it comes in", secs(30), || {
        // What happens in the folder makes the agent look.
        fs::write(&nudge, "").unwrap();
        images(node) == ["dropped:1"]
    });
    fs::remove_file(&nudge).unwrap();

    // What comes through a pipe can be read only once: room is made while it is unpacked.
    fs::remove_file(root.join("images/dropped.tar.gz")).unwrap();
    eventually("it is not held any more", secs(30), || !node.cli(&["image", "ls"]).ok().contains(" yes "));
    let piped = fs::read(pack("piped", 50)).unwrap();
    let did = node.cli_with(&["image", "import", "-"], &piped).ok();
    assert!(did.contains("piped:1 imported"), "{did}");
    assert_eq!(images(node), ["piped:1"]);
    node.wait_event("room was made", |reason, message| reason == "ImageDeleted" && message.contains("dropped:1"));
    assert_eq!((layers(&root), entries(&root.join("store/staging"))), (1, Vec::new()));
    small.node.finish();
}

#[test]
fn what_nothing_uses_for_long_goes_by_a_clock_that_nobody_sets() {
    let mut small = Small::new(64);
    let future = small.put("future", 1, false, None);
    small.put("spare", 1, false, None);
    small.put("kept", 1, true, None);
    small.put("wanted", 1, false, None);
    // It came in by a clock that was wrong, and was used by one.
    let record = small.root.join("store/images").join(format!("{}.json", &future[7..]));
    let mut image: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    image["added"] = json!(4_000_000_000_i64);
    fs::write(&record, image.to_string()).unwrap();
    let node = &mut small.node;
    let mut pod = resting("waits");
    pod["spec"]["containers"][0]["image"] = json!("wanted:1");
    pod["spec"]["initContainers"] = json!([{ "name": "never", "image": "nowhere:1", "imagePullPolicy": "Never" }]);
    node.apply("waits.yaml", &pod);
    node.configure(json!({ "imageGCHighThresholdPercent": 100, "imageMinimumGCAge": "1ms", "imageMaximumGCAge": "1s",
        "evictionHard": { "memory.available": "1Mi" } }));
    node.start();
    for name in ["spare:1", "future:1"] {
        node.wait_event("unused for long", |reason, message| {
            reason == "ImageDeleted" && message.contains(name) && message.contains("nothing has used it for long")
        });
    }
    assert_eq!(images(node), ["kept:1", "wanted:1"]);
    assert_eq!(metric(node, "kubelet_image_garbage_collected_total{reason=\"age\"}"), 2);
    small.node.finish();
}
