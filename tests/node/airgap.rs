//! Images without a registry: archives that are read once, drop-ins and their pins, pull lists, export.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use coracle::image::unpack::Limits;
use coracle::image::{Digest, DropIn, Error, ImageStore, Outcome, architecture};
use serde_json::json;

use crate::harness::{BUSYBOX, Node, output, secs};
use crate::images::{
    Scratch, Tar, archive_of, config, docker_archive, docker_archive_of, explain, gzip, names_in, oci_layout,
    write_members, zstd,
};

/// Nothing of an import may be left but what the store has taken in.
#[track_caller]
fn assert_empty(store: &ImageStore, what: &str) {
    for dir in ["images", "layers", "staging"] {
        assert!(names_in(&store.root().join(dir)).is_empty(), "{what}: {dir}: {:?}", names_in(&store.root().join(dir)));
    }
}

fn layer(name: &str, size: usize) -> Vec<u8> {
    Tar::default().dir("etc/").file(&format!("etc/{name}"), &vec![b'x'; size]).end()
}

/// The members of an archive by `docker save` of two images that share a layer, the second time as a link, with what
/// belongs to no image among them.
fn docker_members() -> Vec<(String, Vec<u8>, Option<&'static str>)> {
    let layers = [layer("shared", 3000), layer("one", 100_000), layer("two", 10)];
    let images = [[0, 1], [0, 2]].map(|chain| chain.map(|i: usize| layers[i].clone()));
    let mut members: Vec<(String, Vec<u8>, Option<&'static str>)> = Vec::new();
    let mut manifest = Vec::new();
    for (i, image) in images.iter().enumerate() {
        let config = config(image);
        let name = format!("{}.json", Digest::of(&config).hex());
        let tags = [format!("app{i}:1"), format!("app{i}:2")];
        manifest.push(
            json!({ "Config": name, "RepoTags": tags, "Layers": [format!("{i}/layer.tar"), format!("own{i}.tar")] }),
        );
        // The same image once more, under another tag.
        manifest.push(json!({ "Config": name, "RepoTags": [format!("more{i}:3")],
            "Layers": [format!("{i}/layer.tar"), format!("own{i}.tar")] }));
        members.push((name, config, None));
        members.push((format!("own{i}.tar"), image[1].clone(), None));
    }
    members.push(("0/layer.tar".into(), layers[0].clone(), None));
    members.push(("1/layer.tar".into(), Vec::new(), Some("../0/layer.tar")));
    members.push(("nobody/layer.tar".into(), layer("unwanted", 50_000), None));
    members.push(("nobody/broken.tar".into(), b"\x1f\x8bnot gzip at all".to_vec(), None));
    members.push(("README".into(), b"hello".to_vec(), None));
    members.push(("manifest.json".into(), json!(manifest).to_string().into_bytes(), None));
    members
}

fn tar_of(members: &[(String, Vec<u8>, Option<&str>)]) -> Vec<u8> {
    let all = members.iter().fold(Tar::default(), |tar, (name, content, link)| match link {
        Some(target) => tar.symlink(name, target),
        None => tar.file(name, content),
    });
    all.end()
}

#[test]
fn packed_archives_arrive_whatever_the_order_of_their_members() {
    let scratch = Scratch::new();
    let mut members = docker_members();
    fs::write(scratch.path("plain.tar"), tar_of(&members)).unwrap();
    let plain = ImageStore::open(&scratch.path("plain")).unwrap();
    let mut expected: Vec<_> = plain.import(&scratch.path("plain.tar")).unwrap();
    expected.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(expected.len(), 2);
    let oci: Vec<_> =
        oci_layout("oci:1", &[layer("a", 10), layer("b", 2000)], gzip).into_iter().map(|(n, c)| (n, c, None)).collect();
    for turn in 0..members.len() {
        // Each member comes first once, and neighbours change.
        members.rotate_left(1);
        let step = 1 + turn % 3;
        let order = |members: &[(String, Vec<u8>, Option<&'static str>)]| -> Vec<u8> {
            let strided = (0..step).flat_map(|from| members.iter().skip(from).step_by(step).cloned());
            tar_of(&strided.collect::<Vec<_>>())
        };
        let store = ImageStore::open(&scratch.path(&format!("store{turn}"))).unwrap();
        let path = scratch.path("packed");
        match turn % 3 {
            0 => fs::write(&path, gzip(&order(&members))).unwrap(),
            1 => fs::write(&path, zstd(&order(&members))).unwrap(),
            _ => {}
        }
        let mut images = match turn % 3 {
            2 => store.import_stream(Path::new("stdin"), &order(&members)[..]),
            _ => store.import(&path),
        }
        .unwrap_or_else(|e| panic!("turn {turn}: {}", explain(&e)));
        images.sort_by(|a, b| a.id.cmp(&b.id));
        for (image, expected) in images.iter().zip(&expected) {
            assert_eq!((&image.id, &image.names, image.size), (&expected.id, &expected.names, expected.size));
            assert_eq!(image.names.len(), 3);
        }
        // What no image wants is not there: three layers with their records, and whatever else belongs to them.
        let layers = names_in(&store.root().join("layers"));
        assert_eq!(layers.iter().filter(|name| !name.contains('.')).count(), 3, "{layers:?}");
        assert!(names_in(&store.root().join("staging")).is_empty());
        fs::write(&path, gzip(&order(&oci))).unwrap();
        let image = &store.import(&path).unwrap()[0];
        assert_eq!((image.digests.len(), fs::read(image.layers[1].join("etc/b")).unwrap().len()), (2, 2000));
    }
}

#[test]
fn what_breaks_off_or_does_not_match_leaves_nothing() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let whole = tar_of(&docker_members());
    let path = scratch.path("cut.tar");
    for (packed, kind) in [(gzip(&whole), "gzip"), (zstd(&whole), "zstd")] {
        for part in 1..20 {
            let cut = packed.len() * part / 20;
            fs::write(&path, &packed[..cut]).unwrap();
            let error = explain(&store.import(&path).expect_err(&format!("{kind} cut at {cut}")));
            assert!(error.contains("cut.tar"), "{error}");
            assert_empty(&store, &format!("{kind} cut at {cut}"));
        }
        // Only the check sum is missing.
        fs::write(&path, &packed[..packed.len() - 2]).unwrap();
        assert!(store.import(&path).is_err(), "{kind}");
        assert_empty(&store, kind);
    }
    for cut in (0..whole.len() - 1024).step_by(whole.len() / 37) {
        assert!(store.import_stream(Path::new("stdin"), &whole[..cut]).is_err(), "cut at {cut}");
        assert_empty(&store, &format!("cut at {cut}"));
    }
    let good = oci_layout("x", &[layer("a", 10)], gzip);
    for name in good.keys().filter(|name| name.starts_with("blobs/")) {
        let mut members = good.clone();
        members.remove(name);
        fs::write(&path, gzip(&archive_of(&members))).unwrap();
        let error = explain(&store.import(&path).unwrap_err());
        assert!(error.contains(name.as_str()) && error.contains("missing"), "{error}");
        let mut members = good.clone();
        let blob = members.get_mut(name).unwrap();
        // The same inside, but not the same bytes.
        if blob.starts_with(&[0x1f, 0x8b]) {
            blob.extend(gzip(b""))
        } else {
            blob.push(b' ')
        }
        fs::write(&path, gzip(&archive_of(&members))).unwrap();
        let error = explain(&store.import(&path).unwrap_err());
        assert!(error.contains(name.as_str()) && error.contains("has digest"), "{error}");
        assert_empty(&store, name);
    }
    // Still of use.
    store.import_stream(Path::new("stdin"), &whole[..]).unwrap();
}

#[test]
fn hostile_archives_get_clear_errors() {
    let scratch = Scratch::new();
    let limits = Limits { entries: 1000, bytes: 1 << 20, ..Limits::default() };
    let store = ImageStore::open_with(&scratch.path("store"), limits).unwrap();
    let manifest = |tags: serde_json::Value, config: &str, layers: &[&str]| {
        json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]).to_string().into_bytes()
    };
    let one = |name: &str, content: &[u8]| Tar::default().file(name, content).end();
    let many: Vec<String> = (0..5000).map(|i| format!("x:{i}")).collect();
    let entries: Vec<_> = (0..5000)
        .map(|i| json!({ "digest": Digest::of(format!("{i}").as_bytes()).as_str(), "mediaType": "manifest" }))
        .collect();
    let platforms: Vec<_> = (0..5000)
        .map(|i| json!({ "digest": Digest::of(b"").as_str(), "platform": { "os": "x".repeat(500), "architecture": i.to_string() } }))
        .collect();
    let circle = Tar::default().symlink("manifest.json", "a").symlink("a", "b").symlink("b", "manifest.json");
    let outside = Tar::default().symlink("manifest.json", "../../../etc/passwd");
    let bomb = docker_archive(&["x"], &[layer("big", 2 << 20)]);
    let crowd = (0..2000).fold(Tar::default(), |tar, i| tar.file(&format!("f{i}"), b"")).end();
    // Layers that no image asks for count, too: each is within the limit, all are not.
    let unwanted = (0..3).fold(Tar::default(), |tar, i| tar.file(&format!("l{i}"), &layer("part", 500_000))).end();
    let documents = (0..12).fold(Tar::default(), |tar, i| tar.file(&format!("d{i}.json"), &vec![b' '; 4 << 20]));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("cannot parse image list", one("manifest.json", "[".repeat(100_000).as_bytes())),
        ("cannot parse", one("index.json", b"{\"manifests\":7}")),
        ("more than 1024 names", one("manifest.json", &manifest(json!(many), "c", &[])).to_vec()),
        ("more than 1024 manifests", one("index.json", json!({ "manifests": entries }).to_string().as_bytes())),
        ("only for xxxx", one("index.json", json!({ "manifests": platforms }).to_string().as_bytes())),
        ("more than 4194304 bytes", one("manifest.json", &vec![b' '; 5 << 20])),
        ("links in a circle", circle.end()),
        ("nothing in it", outside.end()),
        ("a layer, not a document", one("manifest.json", &layer("x", 1))),
        ("more than 1048576 bytes", bomb),
        ("more than 1000 entries", docker_archive(&["x"], &[crowd])),
        ("bytes in a layer", unwanted),
        ("all documents of an archive", documents.file("manifest.json", b"[]").end()),
        ("not a sha256 digest", one("index.json", b"{\"manifests\":[{\"digest\":\"sha256:../../x\"}]}")),
    ];
    for (why, content) in cases {
        let error = explain(&store.import_stream(Path::new("x.tar"), &gzip(&content)[..]).expect_err(why));
        // The two cases that only have a limit when all is read are words alone.
        let config_missing = why == "all documents of an archive";
        assert!(error.contains(why) || config_missing && error.contains("x.tar"), "{why}: {error}");
        assert!(error.len() < 2000 && error.contains("x.tar"), "{why}: {} characters", error.len());
        assert_empty(&store, why);
    }
    // A bomb in a bomb stops where the disk is still empty.
    let nested = gzip(&gzip(&layer("zeros", 64 << 20)));
    let archive = gzip(&docker_archive_of(&["x"], &config(&[]), &[nested]));
    assert!(store.import_stream(Path::new("x.tar"), &archive[..]).is_err());
    assert_empty(&store, "nested");
}

#[test]
fn a_layer_that_is_here_already_is_not_unpacked_again_on_the_word_of_its_name() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let (known, other) = (layer("known", 1000), layer("other", 1000));
    store.import_stream(Path::new("first"), &docker_archive(&["first"], std::slice::from_ref(&known))[..]).unwrap();
    let member = format!("{}.tar", Digest::of(&known).hex());
    let archive = |config: &[u8], content: &[u8]| {
        let manifest = json!([{ "Config": "c.json", "RepoTags": ["second"], "Layers": [member] }]);
        let tar = Tar::default().file(&member, content).file("c.json", config);
        gzip(&tar.file("manifest.json", manifest.to_string().as_bytes()).end())
    };
    // The member is skipped: what it holds instead is never looked at.
    let with = json!({ "architecture": architecture(), "os": "linux", "variant": "v9",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&known).as_str()] } });
    let images = store.import_stream(Path::new("x"), &archive(with.to_string().as_bytes(), &other)[..]).unwrap();
    assert!(images[0].layers[0].join("etc/known").exists());
    // And a name that lies does not put a layer where another belongs.
    let error =
        store.import_stream(Path::new("x"), &archive(&config(std::slice::from_ref(&other)), &other)[..]).unwrap_err();
    assert!(explain(&error).contains("by its name, has digest"), "{}", explain(&error));
    assert_eq!(store.list().len(), 2);
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    /// A small file system of one's own, gone afterwards.
    struct Small(std::path::PathBuf);
    impl Drop for Small {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
    let scratch = Scratch::new();
    let dir = scratch.dir("store");
    let data = c"size=40m,mode=0700";
    rustix::mount::mount("tmpfs", &dir, "tmpfs", rustix::mount::MountFlags::empty(), data).unwrap();
    let small = Small(dir.clone());
    let store = ImageStore::open(&dir).unwrap();
    // Said to be small, but it unpacks to more than there is.
    let packed =
        gzip(&docker_archive_of(&["x"], &config(&[layer("zeros", 60 << 20)]), &[gzip(&layer("zeros", 60 << 20))]));
    for _ in 0..2 {
        let error = explain(&store.import_stream(Path::new("x"), &packed[..]).unwrap_err());
        assert!(error.contains("free"), "{error}");
        assert_empty(&store, "filled up");
    }
    // Too large by its size alone: not even begun.
    let plain = docker_archive(&["x"], &[layer("zeros", 60 << 20)]);
    let error = store.import_stream(Path::new("x"), &plain[..]).unwrap_err();
    assert!(explain(&error).contains("free"), "{}", explain(&error));
    assert_empty(&store, "no room");
    store.import_stream(Path::new("x"), &gzip(&docker_archive(&["x"], &[layer("small", 1000)]))[..]).unwrap();
    drop(store);
    drop(small);
}

fn told(outcomes: &[Outcome]) -> Vec<(String, bool)> {
    outcomes.iter().map(|o| (o.path.file_name().unwrap().to_str().unwrap().to_owned(), o.result.is_ok())).collect()
}

#[test]
fn images_stay_as_long_as_a_drop_in_holds_them() {
    let scratch = Scratch::new();
    let dir = scratch.dir("images");
    let open = || {
        let store = Arc::new(scratch.store());
        (DropIn::new(&dir, store.clone()), store)
    };
    let (mut drop_in, store) = open();
    let (one, two) = ([layer("one", 10)], [layer("two", 10)]);
    fs::write(dir.join("a.tar"), docker_archive(&["app:1", "app:stable"], &one)).unwrap();
    fs::write(dir.join("b.tgz"), gzip(&docker_archive(&["app:1b"], &one))).unwrap();
    write_members(&dir.join("c"), &oci_layout("other:1", &two, zstd));
    assert_eq!(told(&drop_in.scan()).len(), 3);
    let first = store.resolve("app:1").unwrap();
    assert_eq!(first.names, ["app:1", "app:1b", "app:stable"].map(|name| format!("docker.io/library/{name}")));
    assert!(store.list().iter().all(|image| image.pinned));

    // Once, also over a restart; the pins are on disk.
    drop((drop_in, store));
    let (mut drop_in, store) = open();
    assert!(drop_in.scan().is_empty() && store.list().iter().all(|image| image.pinned));

    // Two files hold it: the last that goes lets go of it.
    fs::remove_file(dir.join("a.tar")).unwrap();
    assert!(drop_in.scan().is_empty() && store.resolve("app:1").unwrap().pinned);
    fs::remove_file(dir.join("b.tgz")).unwrap();
    assert!(drop_in.scan().is_empty() && !store.resolve("app:1").unwrap().pinned);
    assert!(store.resolve("other:1").unwrap().pinned);

    // A newer file has the name now; the image before is kept, but not pinned.
    fs::write(dir.join("d.tar"), docker_archive(&["moved:1"], &one)).unwrap();
    drop_in.scan();
    fs::write(dir.join("a.tar"), docker_archive(&["moved:1"], &[layer("three", 1)])).unwrap();
    drop_in.scan();
    let third = store.resolve("moved:1").unwrap();
    assert!(third.pinned && third.id != first.id);
    // Replaced: what the old version held goes free.
    fs::write(dir.join("d.tar"), docker_archive(&["replaced:1"], &[layer("four", 1)])).unwrap();
    assert_eq!(told(&drop_in.scan()), [("d.tar".to_owned(), true)]);
    assert!(!store.resolve(&first.id).unwrap().pinned && store.resolve("replaced:1").unwrap().pinned);

    // A folder that is not there tells nothing, least of all that its files were removed.
    fs::rename(&dir, scratch.path("away")).unwrap();
    assert!(drop_in.scan().is_empty() && store.resolve("moved:1").unwrap().pinned);
    fs::rename(scratch.path("away"), &dir).unwrap();

    // Removed on purpose: gone, until the file is another one.
    let id = third.id.clone();
    store.remove(&id, &[]).unwrap();
    assert!(drop_in.scan().is_empty());
    drop((drop_in, store));
    let (mut drop_in, store) = open();
    assert!(drop_in.scan().is_empty() && store.resolve(&id).is_none());
    fs::write(dir.join("a.tar"), [docker_archive(&["moved:1"], &[layer("three", 1)]), vec![0; 512]].concat()).unwrap();
    assert_eq!(told(&drop_in.scan()), [("a.tar".to_owned(), true)]);
    assert!(store.resolve(&id).unwrap().pinned);
}

#[test]
fn an_image_that_was_lost_comes_back_without_taking_names() {
    let scratch = Scratch::new();
    let dir = scratch.dir("images");
    let store = Arc::new(scratch.store());
    let mut drop_in = DropIn::new(&dir, store.clone());
    fs::write(dir.join("old.tar.zst"), zstd(&docker_archive(&["app:1", "app:old"], &[layer("old", 10)]))).unwrap();
    drop_in.scan();
    let id = store.resolve("app:old").unwrap().id.clone();
    fs::write(dir.join("new.tar"), docker_archive(&["app:1"], &[layer("new", 10)])).unwrap();
    drop_in.scan();
    let newer = store.resolve("app:1").unwrap();
    drop((drop_in, store));
    // As after a crash of a file system that has lost a record.
    let hex = id.strip_prefix("sha256:").unwrap();
    for folder in ["store/images", "store/copies"] {
        fs::remove_file(scratch.path(folder).join(format!("{hex}.json"))).unwrap();
    }
    let store = Arc::new(scratch.store());
    let mut drop_in = DropIn::new(&dir, store.clone());
    assert_eq!(told(&drop_in.scan()), [("old.tar.zst".to_owned(), true)]);
    let back = store.resolve(&id).unwrap();
    assert_eq!((&back.names[..], back.pinned), (&["docker.io/library/app:old".to_owned()][..], true));
    assert_eq!(store.resolve("app:1").unwrap().id, newer.id);
}

#[test]
fn lists_name_images_to_pull_each_once() {
    let scratch = Scratch::new();
    let dir = scratch.dir("images");
    let open = || {
        let store = Arc::new(scratch.store());
        (DropIn::new(&dir, store.clone()), store)
    };
    let (mut drop_in, store) = open();
    fs::write(dir.join("edge.txt"), "# what this site runs\n\nregistry.example/app:1\napp\nregistry.example/app:1\n")
        .unwrap();
    assert_eq!(told(&drop_in.scan()), [("edge.txt".to_owned(), true)]);
    let images = |drop_in: &mut DropIn| drop_in.wanted().into_iter().map(|w| w.image).collect::<Vec<_>>();
    assert_eq!(images(&mut drop_in), ["docker.io/library/app:latest", "registry.example/app:1"]);
    assert!(drop_in.scan().is_empty());

    // One comes in by another way, the other is pulled.
    store.import_stream(Path::new("x"), &docker_archive(&["app"], &[layer("x", 1)])[..]).unwrap();
    let wanted = drop_in.wanted();
    assert_eq!(wanted.len(), 1);
    assert!(store.resolve("app").unwrap().pinned);
    let pulled = &store.import_stream(Path::new("y"), &docker_archive(&["z"], &[layer("y", 1)])[..]).unwrap()[0];
    drop_in.arrived(&wanted[0], &pulled.id);
    assert!(store.resolve("z").unwrap().pinned && drop_in.wanted().is_empty());
    drop((drop_in, store));
    let (mut drop_in, store) = open();
    assert!(drop_in.scan().is_empty() && drop_in.wanted().is_empty());

    // Removed by somebody: not asked for again. A line that goes lets go of its image.
    store.remove("z", &[]).unwrap();
    assert!(drop_in.scan().is_empty() && drop_in.wanted().is_empty());
    fs::write(dir.join("edge.txt"), "registry.example/app:1\n").unwrap();
    drop_in.scan();
    assert!(drop_in.wanted().is_empty() && !store.resolve("app").unwrap().pinned);
    fs::write(dir.join("edge.txt"), "registry.example/app:1\nnot a name\n").unwrap();
    let mut outcomes = Vec::new();
    crate::images::eventually("the failure is reported", || {
        outcomes.extend(drop_in.scan());
        !outcomes.is_empty()
    });
    let error = explain(outcomes[0].result.as_ref().unwrap_err());
    assert!(error.contains("edge.txt: line 2: invalid image name"), "{error}");
}

/// Drives the agent: what the command line and the socket add to the above.
#[test]
fn archives_go_in_by_standard_input_and_come_out_by_export() {
    let mut node = Node::new();
    let imported = |node: &Node| {
        let url = format!("http://127.0.0.1:{}/metrics", node.healthz);
        let text = output(Command::new("curl").args(["-sS", &url]), b"", secs(10)).ok();
        text.lines().find(|line| line.starts_with("coracle_images_imported_total")).unwrap_or_default().to_owned()
    };
    fs::write(node.dir.join("root/images/list.txt"), "127.0.0.1:1/never/there:1\n").unwrap();
    node.start();
    node.wait_for_images();
    node.wait_event("the registry is away", |reason, message| {
        reason == "ImageImportFailed" && message.contains("list.txt: 127.0.0.1:1/never/there:1: ")
    });
    let archive = gzip(&docker_archive(&["piped:1", "piped:2"], &[layer("a", 200_000), layer("b", 5)]));
    let said = node.cli_with(&["image", "import", "-"], &archive).ok();
    assert!(said.contains("docker.io/library/piped:1 imported"), "{said}");
    let broken = node.cli_with(&["image", "import", "-"], &archive[..archive.len() / 2]).fails(1);
    assert!(broken.contains("cannot import -: standard input"), "{broken}");
    assert!(
        node.cli_with(&["image", "import", "-"], &b"#!/bin/sh\n".repeat(99)).fails(1).contains("not a tar archive")
    );
    let id = |node: &Node, name: &str| -> String {
        let list: serde_json::Value = serde_json::from_str(&node.cli(&["get", "images", "-o", "json"]).ok()).unwrap();
        let items = list["items"].as_array().unwrap().clone();
        let found = items.iter().find(|item| item["names"].to_string().contains(name));
        found.map(|item| item["id"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    let piped = id(&node, "piped:1");

    // The drop-ins are not imported again at the next start.
    let before = imported(&node);
    assert!(before.ends_with(" 1"), "{before}");
    node.restart();
    node.wait_event("the list is tried again", |reason, _| reason == "ImageImportFailed");
    assert!(imported(&node).ends_with(" 0") && !node.events().iter().any(|event| event["reason"] == "ImageImported"));

    // Out, into other tools, and in again.
    let out = |name: &str| node.dir.join(name).display().to_string();
    let (plain, packed) = (out("out.tar"), out("out.tar.zst"));
    node.cli(&["image", "export", "piped:1", BUSYBOX, "-o", &plain]).ok();
    let content = fs::read(&plain).unwrap();
    node.cli(&["image", "export", BUSYBOX, "piped:2", "-o", &plain]).ok();
    assert!(fs::read(&plain).unwrap() == content, "the same images make the same archive");
    node.cli(&["image", "export", "piped:2", "-o", &packed]).ok();
    assert!(fs::metadata(&packed).unwrap().size() < 100_000);
    assert!(fs::read(&packed).unwrap().starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "packed as the name of the file says");
    // What is no file is written to, and stays what it is.
    let pipe = out("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    node.cli(&["image", "export", "piped:1", BUSYBOX, "-o", &pipe]).ok();
    assert!(reader.join().unwrap() == content);
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    let missing = node.cli(&["image", "export", "never:1", "-o", &out("never.tar")]).fails(1);
    assert!(missing.contains("no image \"never:1\""), "{missing}");
    assert!(!names_in(&node.dir).iter().any(|name| name.contains("never") || name.ends_with(".part")));
    for (source, target) in [
        (format!("docker-archive:{plain}:docker.io/library/piped:2"), "docker"),
        (format!("oci-archive:{plain}:docker.io/library/piped:1"), "oci"),
    ] {
        let target = out(target);
        // As it is: another format would be another configuration.
        let place = if source.starts_with("oci") { format!("oci:{target}:x") } else { format!("dir:{target}") };
        let copy = ["copy", "--insecure-policy", &source, &place];
        output(Command::new("skopeo").args(copy), b"", secs(30)).ok();
        let read = |path: &str| -> serde_json::Value {
            serde_json::from_slice(&fs::read(Path::new(&target).join(path)).unwrap()).unwrap()
        };
        let blob = |digest: &serde_json::Value| digest.as_str().unwrap().replace("sha256:", "blobs/sha256/");
        let manifest = match source.starts_with("oci") {
            true => read(&blob(&read("index.json")["manifests"][0]["digest"])),
            false => read("manifest.json"),
        };
        assert_eq!(manifest["config"]["digest"], json!(piped), "{source}");
    }
    let names: BTreeMap<String, ()> = names_in(&node.dir).into_iter().map(|name| (name, ())).collect();
    assert!(names.contains_key("out.tar"));
    node.cli(&["image", "rm", &piped]).ok();
    assert_eq!(id(&node, "piped:1"), "");
    let mut stream = Vec::new();
    fs::File::open(&packed).unwrap().read_to_end(&mut stream).unwrap();
    node.cli_with(&["image", "import", "-"], &stream).ok();
    assert_eq!((id(&node, "piped:1"), id(&node, "piped:2")), (piped.clone(), piped));
    node.finish();
}

#[test]
fn an_error_about_space_tells_what_is_free() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let error = store.ingest().unwrap().room(u64::MAX / 2).unwrap_err();
    assert!(matches!(error, Error::NoSpace { needed, .. } if needed > 0), "{error}");
}
