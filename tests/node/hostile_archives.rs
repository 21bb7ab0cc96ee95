//! Hostile archives where [`hostile_images`](crate::hostile_images) has hostile layers: as drop-ins, cut off anywhere,
//! bombs on a small disk, documents that lie, pipes where signatures should be.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink as make_symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle::image::{Digest, architecture};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use crate::harness::{Node, Out, eventually, output, secs};
use crate::hostile_images::{End, cases};
use crate::shapes::{
    GZIP, Members, PLAIN, archive_of, docker_archive, file, gzip, layer, layers_of, link, oci_layout, symlink, tree,
    write_members, zstd,
};

const MIB: usize = 1 << 20;

/// A node whose store is empty, and something beside it that must stay as it is.
fn empty_node() -> (Node, PathBuf) {
    let node = Node::new();
    fs::remove_file(node.dir.join("root/images/images.tar")).unwrap();
    let canary = node.dir.join("share/canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "precious").unwrap();
    (node, canary)
}

fn import(node: &Node, path: &Path) -> Out {
    node.cli(&["image", "import", &path.display().to_string()])
}

/// Nothing of an image may be in the store.
#[track_caller]
fn assert_clean(node: &Node, what: &str) {
    for sub in ["staging", "layers", "images", "quarantine"] {
        let dir = node.dir.join("root/store").join(sub);
        let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{what}: {sub}: {left:?}");
    }
}

#[test]
fn hostile_layers_that_are_dropped_in_are_refused_with_an_event() {
    let (mut node, canary) = empty_node();
    let before = tree(&canary);
    let mut expected = BTreeMap::new();
    for (at, (name, layers, end)) in cases(&canary).into_iter().enumerate() {
        let layers: Vec<_> = layers.into_iter().map(layer).collect();
        let archive = docker_archive(&format!("case{at}:1"), &layers);
        let (file, bytes) = match at % 3 {
            0 => (format!("{at}.tar"), archive),
            1 => (format!("{at}.tar.gz"), gzip(&archive)),
            _ => (format!("{at}.tar.zst"), zstd(&archive)),
        };
        fs::write(node.dir.join("root/images").join(&file), bytes).unwrap();
        expected.insert(file, (name, end));
    }
    node.start();
    let agent = node.agent_pid();
    let told = || -> BTreeMap<String, (bool, String)> {
        let events = node.events().into_iter().filter_map(|event| {
            let message = event["message"].as_str()?.to_owned();
            let file = message.split("root/images/").nth(1)?.split(": ").next()?.to_owned();
            Some((file, (event["reason"] == "ImageImported", message)))
        });
        events.collect()
    };
    eventually("an event for each", secs(60), || told().len() == expected.len());
    let told = told();
    for (file, (name, end)) in &expected {
        let (imported, message) = &told[file];
        match end {
            End::Any => {}
            End::Inside => assert!(imported, "{name}: {message}"),
            End::Refused(words) => assert!(!imported && message.contains(words), "{name}: not {words:?}: {message}"),
        }
    }
    assert_eq!(tree(&canary), before);
    assert_eq!(node.agent_pid(), agent);
    let listed = node.cli(&["image", "ls", "-o", "json"]).ok();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let here = |name: &Value| name.as_str().unwrap().trim_start_matches("docker.io/library/case").to_owned();
    for image in listed["items"].as_array().unwrap().iter().filter(|image| image["names"][0] != "coracle.dev/pause:1") {
        let at = here(&image["names"][0]).trim_end_matches(":1").to_owned();
        let found = expected.iter().find(|(file, _)| file.split('.').next() == Some(at.as_str()));
        assert!(found.is_none_or(|(_, (_, end))| !matches!(end, End::Refused(_))), "{image}");
    }
    node.finish();
}

#[test]
fn archives_that_end_anywhere_are_refused_whole() {
    let (mut node, _) = empty_node();
    node.start();
    let agent = node.agent_pid();
    let layers = [layer([file("a", "x".repeat(700)), symlink("s", "a")]), layer([file("b", "y")])];
    let path = node.dir.join("share/cut.tar");
    let whole = docker_archive("cut:1", &layers);
    let members = whole.len() - 1024;
    let oci = archive_of(&oci_layout("cut:1", &layers, &[GZIP, PLAIN]));
    // Nobody needs the last member of the OCI one.
    let last = oci.len() - 1024;
    for (kind, bytes, good) in [("docker", &whole, vec![members]), ("OCI", &oci, vec![last - 1024, last])] {
        for cut in (0..bytes.len()).step_by(512).flat_map(|at| [at, at + 1]) {
            fs::write(&path, &bytes[..cut]).unwrap();
            let out = import(&node, &path);
            let what = format!("{kind}, {cut} of {} bytes: {out:?}", bytes.len());
            // Without its end mark an archive is as whole as any, and the first block of the mark is enough.
            if good.contains(&cut) || cut >= bytes.len() - 512 {
                assert_eq!(out.code, Some(0), "{what}");
                node.cli(&["image", "rm", "cut:1"]).ok();
            } else {
                assert_eq!(out.code, Some(1), "{what}");
                assert!(out.stderr.contains(&path.display().to_string()), "{what}");
            }
            assert_clean(&node, &what);
        }
    }
    // Packed, its check sum tells as well.
    for (kind, bytes) in [("gzip", gzip(&whole)), ("zstd", zstd(&whole))] {
        for cut in (0..bytes.len()).step_by(97) {
            fs::write(&path, &bytes[..cut]).unwrap();
            let out = import(&node, &path);
            let what = format!("{kind}, {cut} of {} bytes: {out:?}", bytes.len());
            assert!(out.code == Some(1) && out.stderr.contains(&path.display().to_string()), "{what}");
            assert_clean(&node, &what);
        }
    }
    // Layers that are cut and have the digest of that: as whole as they say, or refused.
    for cut in (0..layers[0].len()).step_by(512) {
        fs::write(&path, docker_archive("cut:1", &[layers[0][..cut].to_vec()])).unwrap();
        let out = import(&node, &path);
        match out.code {
            Some(0) => drop(node.cli(&["image", "rm", "cut:1"]).ok()),
            _ => assert!(out.stderr.contains("0/layer.tar: "), "{cut}: {out:?}"),
        }
        assert_clean(&node, &format!("{cut}"));
    }
    // A byte in the header of each member, and one in the check sum itself.
    let mut at = 0;
    while at < members {
        for place in [at + 5, at + 149] {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x01;
            fs::write(&path, bytes).unwrap();
            let out = import(&node, &path);
            let words = format!("malformed tar at byte {at}: wrong header checksum");
            assert!(out.code == Some(1) && out.stderr.contains(&words), "{place}: {out:?}");
            assert_clean(&node, &words);
        }
        let size = std::str::from_utf8(&whole[at + 124..at + 135]).unwrap();
        at += 512 + usize::from_str_radix(size, 8).unwrap().next_multiple_of(512);
    }
    assert_eq!(node.agent_pid(), agent);
    node.finish();
}

/// `count` zeros behind `head`, packed, without ever being in memory.
fn packed_zeros(head: &[u8], mut count: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(head).unwrap();
    let zeros = vec![0; MIB];
    while count > 0 {
        let some = count.min(MIB);
        encoder.write_all(&zeros[..some]).unwrap();
        count -= some;
    }
    encoder.finish().unwrap()
}

/// A docker-archive whose layer is this blob. Its diff ID is never come to.
fn archive_with(blob: Vec<u8>) -> Vec<u8> {
    let config = json!({ "architecture": architecture(), "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"never").as_str()] } });
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["bomb:1"], "Layers": ["layer.tar.gz"] }]);
    let members: Members = [
        ("config.json".to_owned(), config.to_string().into_bytes()),
        ("layer.tar.gz".to_owned(), blob),
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
    ]
    .into();
    archive_of(&members)
}

#[test]
fn bombs_meet_limits_and_leave_a_small_disk_as_it_was() {
    let mut node = Node::new();
    let root = node.dir.join("root");
    let options = CString::new("size=48m,nr_inodes=3000,mode=755").unwrap();
    mount("tmpfs", &root, "tmpfs", MountFlags::empty(), options.as_c_str()).expect("mount a small disk");
    node.disk = Some(root.clone());
    fs::create_dir(root.join("images")).unwrap();
    node.start();
    let agent = node.agent_pid();
    let free = || {
        let found = rustix::fs::statvfs(&root).unwrap();
        (found.f_bavail, found.f_ffree)
    };
    let size = 200 * MIB;
    let head = &layer([file("zeros", "").raw(124, format!("{size:011o}\0"))])[..512];
    let bomb = packed_zeros(head, size);
    let twice = gzip(&bomb);
    let many = layer((0..5000).map(|n| file(format!("{n}"), "")));
    let nowhere = layer([file("f", "x")]);
    let whole = docker_archive("bomb:1", std::slice::from_ref(&nowhere));
    let document = |size: usize| {
        let spaces = " ".repeat(size);
        layer([file("index.json", format!("{{{spaces}}}")), file("oci-layout", "{}")])
    };
    let wide = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.write_all(head).unwrap();
        for _ in 0..200 {
            encoder.write_all(&vec![0; MIB]).unwrap();
        }
        encoder.finish().unwrap()
    };
    let bombs = [
        ("a packed layer", archive_with(bomb.clone()), "not enough space"),
        ("a packed layer in a packed archive", gzip(&archive_with(bomb)), "not enough space"),
        ("a layer packed twice", archive_with(twice), "wrong header checksum"),
        ("a layer packed with zstd", archive_with(wide.clone()), "not enough space"),
        ("a layer that no image wants", zstd(&layer([file("nobody.tar", wide)])), "not enough space"),
        ("more files than the disk has", archive_with(many), "not enough space"),
        ("zeros behind the end", packed_zeros(&whole, 64 * MIB), "bytes after the end of an archive"),
        ("nothing but zeros", packed_zeros(&[], 64 * MIB), "bytes after the end of an archive"),
        ("a document of 5 MiB", document(5 * MIB), "more than 4194304 bytes in a document"),
        ("a packed document of 100 MiB", gzip(&document(100 * MIB)), "more than 4194304 bytes in a document"),
    ];
    let path = node.dir.join("share/bomb.tar");
    assert_clean(&node, "before");
    let before = free();
    for (name, bytes, words) in bombs {
        fs::write(&path, bytes).unwrap();
        let out = import(&node, &path);
        assert!(out.code == Some(1) && out.stderr.contains(words), "{name}: {out:?}");
        assert_clean(&node, name);
        let after = free();
        // What the agent itself writes down is little.
        assert!(after.0 + 64 > before.0 && after.1 + 16 > before.1, "{name}: {before:?} {after:?}");
        let status = fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
        let kib: usize = peak.split(' ').next().unwrap().parse().unwrap();
        assert!(kib < 128 << 10, "{name}: the agent took {peak}");
    }
    assert_eq!(node.agent_pid(), agent);
    fs::write(&path, whole).unwrap();
    import(&node, &path).ok();
    assert_eq!(layers_of(&node, "docker.io/library/bomb:1").len(), 1);
    node.finish();
}

/// An OCI index of `manifests`, as a document.
fn index(manifests: Vec<Value>) -> Vec<u8> {
    json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes()
}

#[test]
fn documents_that_lie_are_refused_by_name() {
    let (mut node, canary) = empty_node();
    let before = tree(&canary);
    node.start();
    let good = [layer([file("f", "x")])];
    let diff_id = Digest::of(&good[0]);
    let config = |ids: usize| {
        let ids = vec![diff_id.as_str(); ids];
        json!({ "architecture": architecture(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } })
    };
    let docker = |config: Value, image: Value| {
        layer([
            file("config.json", config.to_string()),
            file("layer.tar", &good[0]),
            file("manifest.json", image.to_string()),
        ])
    };
    let image =
        |layers: Vec<&str>, tags: Vec<String>| json!([{ "Config": "config.json", "RepoTags": tags, "Layers": layers }]);
    let one = || vec!["app:1".to_owned()];
    let missing = Digest::of(b"missing");
    let unknown = || {
        json!({ "architecture": architecture(), "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [missing.as_str()] } })
    };
    let evil = "\u{1b}]0;evil\u{7}\nerror: all is well";
    // Indexes within indexes, one more than is followed; and one that cannot be, as it would hold its own digest.
    let nested = |depth: usize| {
        let mut members = oci_layout("app:1", &good, &[PLAIN]);
        for _ in 0..depth {
            let inner = members.remove("index.json").unwrap();
            let digest = Digest::of(&inner);
            let media_type = "application/vnd.oci.image.index.v1+json";
            let above = json!({ "mediaType": media_type, "digest": digest.as_str(), "size": inner.len() });
            members.insert(format!("blobs/sha256/{}", digest.hex()), inner);
            members.insert("index.json".into(), index(vec![above]));
        }
        archive_of(&members)
    };
    let pointing = |digest: &str| {
        let manifest =
            json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 5 });
        layer([file("index.json", index(vec![manifest])), file("oci-layout", "{}")])
    };
    let mut twice = oci_layout("app:1", &good, &[PLAIN]);
    let real = twice.remove("index.json").unwrap();
    let second = |last: &[u8]| {
        let members = twice.iter().map(|(name, content)| file(name, content));
        layer(members.chain([file("index.json", "{}"), file("./index.json", last)]))
    };
    let cases: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
        ("a layer that is not there", docker(unknown(), image(vec!["no.tar"], one())), Some("no.tar: missing")),
        (
            "a layer whose name writes to the terminal",
            docker(unknown(), image(vec![evil], one())),
            Some(r"\u{1b}]0;evil\u{7}\nerror: all is well: missing"),
        ),
        (
            "a platform that does",
            docker(json!({ "architecture": evil, "os": "linux" }), image(vec![], one())),
            Some(r"only for linux/\u{1b}]0;evil\u{7}\nerror"),
        ),
        ("a tag that does", docker(config(1), image(vec!["layer.tar"], vec![evil.into()])), Some("invalid image name")),
        (
            "more layers than diff IDs",
            docker(config(1), image(vec!["layer.tar"; 2], one())),
            Some("config.json: has 1 diff_ids, but the manifest lists 2 layers"),
        ),
        (
            "a thousand layers",
            docker(config(1000), image(vec!["layer.tar"; 1000], one())),
            Some("config.json: more than 512 layers in an image"),
        ),
        (
            "two thousand names",
            docker(config(1), image(vec!["layer.tar"], (0..2000).map(|n| format!("app:{n}")).collect())),
            Some("manifest.json: more than 1024 names of an image"),
        ),
        (
            "another layer than its diff ID",
            docker(unknown(), image(vec!["layer.tar"], one())),
            Some("layer.tar: layer's tar stream has digest sha256:"),
        ),
        (
            "a diff ID that leads outside",
            docker(
                json!({ "architecture": architecture(), "os": "linux",
                    "rootfs": { "type": "layers", "diff_ids": ["sha256:../../../share/canary"] } }),
                image(vec!["layer.tar"], one()),
            ),
            Some("config.json: "),
        ),
        (
            "an image list that is a link to itself",
            layer([symlink("manifest.json", "manifest.json")]),
            Some("manifest.json: links in a circle"),
        ),
        (
            "links in a circle",
            layer([link("manifest.json", "a"), symlink("a", "b"), symlink("b", "manifest.json")]),
            Some("manifest.json: links in a circle"),
        ),
        (
            "an image list that is a link to outside",
            layer([symlink("manifest.json", canary.join("file").display().to_string())]),
            Some("manifest.json: missing"),
        ),
        ("a manifest outside", pointing("sha256:../../../etc/passwd"), Some("index.json: ")),
        ("a manifest that is not there", pointing(missing.as_str()), Some(": missing")),
        ("indexes nested as deep as they may be", nested(4), None),
        ("indexes nested deeper", nested(9), Some("index.json: more than 4 indexes within another")),
        (
            "seventy thousand members",
            layer((0..70_000).map(|n| file(format!("{n}"), ""))),
            Some("more than 65536 members"),
        ),
        ("two indexes, the last of them good", second(&real), None),
        ("two indexes, the last of them not", second(b"[]"), Some("index.json: ")),
    ];
    let path = node.dir.join("share/lies.tar");
    for (name, bytes, words) in cases {
        for packed in [false, true] {
            fs::write(&path, if packed { gzip(&bytes) } else { bytes.clone() }).unwrap();
            let out = import(&node, &path);
            match words {
                None => drop(node.cli(&["image", "rm", "app:1"]).ok()),
                Some(words) => assert!(out.code == Some(1) && out.stderr.contains(words), "{name} {packed}: {out:?}"),
            }
            assert!(!out.stderr.contains(['\u{1b}', '\u{7}']) && !out.stderr.contains("\nerror"), "{name}: {out:?}");
            assert_clean(&node, name);
        }
    }
    // A folder whose blobs are elsewhere.
    let folder = node.dir.join("share/folder");
    write_members(&folder, &oci_layout("app:1", &good, &[PLAIN]));
    fs::rename(folder.join("blobs"), canary.parent().unwrap().join("elsewhere")).unwrap();
    make_symlink("../elsewhere", folder.join("blobs")).unwrap();
    let out = import(&node, &folder);
    assert!(out.code == Some(1) && out.stderr.contains("blobs/sha256/"), "{out:?}");
    assert_eq!(tree(&canary), before);
    node.finish();
}

#[test]
fn a_pipe_for_a_signature_is_not_waited_for() {
    let (mut node, _) = empty_node();
    let config = node.dir.join("coracle.yaml");
    // Of a key that nobody has any more.
    let key = "RWSNlhCCvAa+ZuFKPNIaiUGx9yAUNMCZgFJVTTZuR9hwWxm6+4hEKt/t";
    let settings = json!({ "apiVersion": "coracle.dev/v1alpha1", "kind": "CoracleConfiguration",
        "images": { "minisignPublicKeys": [key] } });
    fs::write(&config, settings.to_string()).unwrap();
    node.args.extend(["--config".to_owned(), config.display().to_string()]);
    let archive = docker_archive("signed:1", &[layer([file("f", "x")])]);
    let places = [node.dir.join("share/signed.tar"), node.dir.join("root/images/signed.tar")];
    for path in &places {
        fs::write(path, &archive).unwrap();
        output(Command::new("mkfifo").arg(format!("{}.minisig", path.display())), b"", secs(5)).ok();
    }
    node.start();
    let out = import(&node, &places[0]);
    let words = "signed.tar.minisig is not a regular file";
    assert!(out.code == Some(1) && out.stderr.contains(words), "{out:?}");
    node.wait_event("a refusal", |reason, message| reason == "ImageImportFailed" && message.contains(words));
    assert_clean(&node, "a pipe");
    for path in &places {
        fs::remove_file(format!("{}.minisig", path.display())).unwrap();
    }
    node.wait_event("an import", |reason, message| reason == "ImageImported" && message.contains("signed.tar"));
    node.finish();
}
