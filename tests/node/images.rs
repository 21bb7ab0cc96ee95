//! The image store on a real file system: owners, devices, attributes, overlay mounts, hostile archives.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use coracle::image::unpack::{self, Limits};
use coracle::image::{BUILTIN, Digest, DropIn, Error, ImageStore, architecture};
use coracle::sys::fs::remove_tree;
use proptest::prelude::*;
use serde_json::json;

/// A folder of its own for each test, gone afterwards.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!("coracle-images-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        remove_tree(&path).unwrap();
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn store(&self) -> ImageStore {
        ImageStore::open(&self.path("store")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = remove_tree(&self.0);
    }
}

/// A tar archive, entry by entry, without the checks of a well-meaning writer.
#[derive(Default, Clone)]
pub struct Tar(pub Vec<u8>);

struct Entry<'a> {
    kind: u8,
    path: &'a [u8],
    link: &'a [u8],
    data: &'a [u8],
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    device: (u32, u32),
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Entry {
            kind: b'0',
            path: b"",
            link: b"",
            data: b"",
            mode: 0o644,
            owner: (0, 0),
            mtime: 1_000_000_000,
            device: (0, 0),
        }
    }
}

impl Tar {
    fn add(mut self, entry: Entry<'_>) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..entry.path.len()].copy_from_slice(entry.path);
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link);
        header.set_entry_type(tar::EntryType::new(entry.kind));
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(entry.mtime);
        header.set_size(entry.data.len() as u64);
        header.set_device_major(entry.device.0).unwrap();
        header.set_device_minor(entry.device.1).unwrap();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(entry.data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Tar {
        self.add(Entry { path: path.as_bytes(), data, ..Entry::default() })
    }

    pub fn dir(self, path: &str) -> Tar {
        self.add(Entry { kind: b'5', path: path.as_bytes(), mode: 0o755, ..Entry::default() })
    }

    pub fn symlink(self, path: &str, target: &str) -> Tar {
        self.add(Entry { kind: b'2', path: path.as_bytes(), link: target.as_bytes(), mode: 0o777, ..Entry::default() })
    }

    pub fn link(self, path: &str, target: &str) -> Tar {
        self.add(Entry { kind: b'1', path: path.as_bytes(), link: target.as_bytes(), ..Entry::default() })
    }

    /// PAX records for the next entry.
    fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut builder = tar::Builder::new(self.0);
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let mut bytes = std::mem::take(builder.get_mut());
        // Without the end that dropping the builder would write.
        std::mem::forget(builder);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Tar(bytes)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({
        "architecture": architecture(), "os": "linux", "config": { "Cmd": ["/bin/app"], "Env": null },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    config.to_string().into_bytes()
}

pub fn docker_archive(names: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
    docker_archive_of(names, &config(layers), layers)
}

pub fn docker_archive_of(names: &[&str], config: &[u8], layers: &[Vec<u8>]) -> Vec<u8> {
    let id = Digest::of(config);
    let members: Vec<_> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = json!([{ "Config": format!("{}.json", id.hex()), "RepoTags": names, "Layers": members }]);
    let mut tar = Tar::default().file(&format!("{}.json", id.hex()), config);
    for (member, layer) in members.iter().zip(layers) {
        tar = tar.file(member, layer);
    }
    tar.file("manifest.json", manifest.to_string().as_bytes()).end()
}

/// An OCI layout: members by name. The blobs are `layers` packed by `pack`, behind a nested index.
pub fn oci_layout(name: &str, layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>) -> BTreeMap<String, Vec<u8>> {
    let mut members = BTreeMap::new();
    let mut blob = |content: Vec<u8>, media_type: &str| {
        let digest = Digest::of(&content);
        let descriptor = json!({ "mediaType": media_type, "digest": digest.as_str(), "size": content.len() });
        members.insert(format!("blobs/sha256/{}", digest.hex()), content);
        descriptor
    };
    let config = blob(config(layers), "application/vnd.oci.image.config.v1+json");
    // The media type lies on purpose: only the content counts.
    let layers: Vec<_> = layers.iter().map(|l| blob(pack(l), "application/vnd.oci.image.layer.v1.tar")).collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut here = blob(manifest.to_string().into_bytes(), "application/vnd.oci.image.manifest.v1+json");
    here["platform"] = json!({ "os": "linux", "architecture": architecture() });
    let foreign = json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
        "digest": Digest::of(b"not in the archive").as_str(), "platform": { "os": "linux", "architecture": "pdp11" } });
    let attestation = json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
        "digest": Digest::of(b"nor this").as_str(), "platform": { "os": "unknown", "architecture": "unknown" } });
    let nested = json!({ "schemaVersion": 2, "manifests": [foreign, attestation, here] });
    let mut top = blob(nested.to_string().into_bytes(), "application/vnd.oci.image.index.v1+json");
    top["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    members.insert("index.json".into(), json!({ "schemaVersion": 2, "manifests": [top] }).to_string().into_bytes());
    members.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    members
}

pub fn archive_of(members: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    members.iter().fold(Tar::default(), |tar, (name, content)| tar.file(name, content)).end()
}

pub fn write_members(dir: &Path, members: &BTreeMap<String, Vec<u8>>) {
    for (name, content) in members {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// A read-only overlay of layers, bottom first. Not attached anywhere: it goes when the handle does, whatever happens.
struct Overlay(OwnedFd);

impl Overlay {
    fn mount(layers: &[PathBuf], empty: &Path) -> Overlay {
        use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        // A second layer at least, or overlayfs wants an upper one.
        for layer in layers.iter().rev().map(PathBuf::as_path).chain([empty]) {
            rustix::mount::fsconfig_set_string(&context, "lowerdir+", layer).unwrap();
        }
        rustix::mount::fsconfig_create(&context).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        Overlay(rustix::mount::fsmount(&context, flags, MountAttrFlags::empty()).unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(path)
    }

    fn names(&self, path: &str) -> Vec<String> {
        names_in(&self.path(path))
    }
}

pub fn names_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let size = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(size);
    Some(value)
}

pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

fn unpacked(tar: Vec<u8>) -> (Scratch, PathBuf, Result<unpack::Summary, Error>) {
    let scratch = Scratch::new();
    let dest = scratch.dir("layer");
    let result = unpack::layer(&tar[..], &dest, &Limits::default());
    (scratch, dest, result)
}

#[test]
fn a_docker_archive_becomes_an_image() {
    let scratch = Scratch::new();
    let bottom = Tar::default()
        .dir("etc/")
        .file("etc/keep", b"bottom")
        .file("etc/gone", b"x")
        .dir("opaque/")
        .file("opaque/hidden", b"x")
        .dir("whole/")
        .file("whole/x", b"x")
        .file("replaced", b"file")
        .dir("anew/")
        .file("anew/old", b"x")
        .end();
    let top = Tar::default()
        .dir("etc/")
        .file("etc/.wh.gone", b"")
        .file("etc/.wh.never-there", b"")
        .file("etc/new", b"top")
        .dir("opaque/")
        .file("opaque/seen", b"top")
        .file("opaque/.wh..wh..opq", b"")
        .file(".wh.whole", b"")
        .file(".wh.replaced", b"")
        .file("replaced", b"again")
        .file(".wh.anew", b"")
        .dir("anew/")
        .file("anew/fresh", b"top")
        .file(".wh..wh.plnk", b"")
        .end();
    let names = ["app:1", "host.example:5000/team/app:2"];
    let archive = scratch.path("app.tar");
    fs::write(&archive, docker_archive(&names, &[bottom.clone(), top.clone()])).unwrap();

    let store = scratch.store();
    let images = store.import(&archive).unwrap();
    assert_eq!(images.len(), 1);
    let image = &images[0];
    assert_eq!(image.names, ["docker.io/library/app:1", "host.example:5000/team/app:2"]);
    assert_eq!(image.id, Digest::of(&config(&[bottom, top])).as_str());
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_deref(), Some(&["/bin/app".to_owned()][..]));
    for way in ["app:1", "docker.io/app:1", "host.example:5000/team/app:2", &image.id, &image.id["sha256:".len()..]] {
        assert_eq!(store.resolve(way).unwrap().id, image.id, "{way}");
    }
    assert!(store.resolve("app").is_none() && store.resolve("not a name").is_none());

    let overlay = Overlay::mount(&image.layers, &scratch.dir("empty"));
    assert_eq!(overlay.names(""), ["anew", "etc", "opaque", "replaced"]);
    assert_eq!(overlay.names("etc"), ["keep", "new"]);
    assert_eq!(overlay.names("opaque"), ["seen"]);
    assert_eq!(overlay.names("anew"), ["fresh"]);
    assert_eq!(fs::read(overlay.path("replaced")).unwrap(), b"again");
    drop(overlay);

    // Again: nothing to do. And after a restart, everything is still there.
    let inode = fs::metadata(&image.layers[0]).unwrap().ino();
    let again = store.import(&archive).unwrap();
    assert_eq!(again[0], *image);
    assert_eq!(fs::metadata(&image.layers[0]).unwrap().ino(), inode);
    assert!(names_in(&scratch.path("store/staging")).is_empty());
    drop(store);
    assert_eq!(scratch.store().list(), images);
}

#[test]
fn oci_archives_and_layouts_in_every_packing() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let layers = [Tar::default().file("a", b"1").end(), Tar::default().file("b", &[7; 300_000]).end()];
    type Pack = fn(&[u8]) -> Vec<u8>;
    let plain: Pack = |bytes| bytes.to_vec();
    for (i, pack) in [plain, gzip as Pack, zstd as Pack].into_iter().enumerate() {
        for (j, whole) in [plain, gzip as Pack, zstd as Pack].into_iter().enumerate() {
            let name = format!("packed:{i}{j}");
            let path = scratch.path(&format!("{i}{j}"));
            let layers = [layers[0].clone(), Tar::default().file("b", name.as_bytes()).end()];
            fs::write(&path, whole(&archive_of(&oci_layout(&name, &layers, pack)))).unwrap();
            let images = store.import(&path).unwrap_or_else(|e| panic!("{name}: {}", explain(&e)));
            assert_eq!(images[0].names, [format!("docker.io/library/{name}")]);
            assert_eq!(fs::read(images[0].layers[1].join("b")).unwrap(), name.as_bytes());
            // By the digest of the manifest, and of the index above it.
            assert_eq!(images[0].digests.len(), 2);
            for digest in &images[0].digests {
                assert_eq!(store.resolve(&format!("packed@{digest}")).unwrap().id, images[0].id);
            }
        }
    }
    // The first layer is shared by all.
    // Folder, record, seal and recipe of each.
    assert_eq!(names_in(&scratch.path("store/layers")).len(), 4 * (1 + 9));

    let layout = scratch.dir("layout");
    write_members(&layout, &oci_layout("host.example/from/folder:1", &layers, gzip));
    let image = &store.import(&layout).unwrap()[0];
    assert_eq!(image.names, ["host.example/from/folder:1"]);
    assert_eq!(image.size, 300_001);
}

#[test]
fn an_archive_in_both_dialects_has_the_names_of_both() {
    let scratch = Scratch::new();
    let layers = [Tar::default().file("a", b"1").end()];
    let mut members = oci_layout("first:1", &layers, |bytes| bytes.to_vec());
    let id = Digest::of(&config(&layers));
    let manifest = json!([{ "Config": format!("blobs/sha256/{}", id.hex()), "RepoTags": ["second:2"],
        "Layers": [format!("blobs/sha256/{}", Digest::of(&layers[0]).hex())] }]);
    members.insert("manifest.json".into(), manifest.to_string().into_bytes());
    fs::write(scratch.path("a.tar"), archive_of(&members)).unwrap();
    let image = &scratch.store().import(&scratch.path("a.tar")).unwrap()[0];
    assert_eq!(image.names, ["docker.io/library/first:1", "docker.io/library/second:2"]);
}

#[test]
fn an_image_for_other_machines_says_for_which() {
    let scratch = Scratch::new();
    let foreign = br#"{"architecture":"pdp11","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    fs::write(scratch.path("a.tar"), docker_archive_of(&["a"], foreign, &[])).unwrap();
    let error = explain(&scratch.store().import(&scratch.path("a.tar")).unwrap_err());
    assert!(error.contains("only for linux/pdp11"), "{error}");
}

#[test]
fn what_does_not_match_its_digest_leaves_nothing() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let layer = Tar::default().file("a", b"1").end();
    let other = Tar::default().file("a", b"2").end();
    let mut cases: Vec<(&str, Vec<u8>)> = Vec::new();
    cases.push(("expected", docker_archive_of(&["x"], &config(from_ref(&layer)), from_ref(&other))));
    cases.push(("diff_ids", docker_archive_of(&["x"], &config(from_ref(&layer)), &[])));
    let manifest = |config: &str| json!([{ "Config": config, "RepoTags": ["x"], "Layers": [] }]).to_string();
    let named = format!("{}.json", Digest::of(b"something else").hex());
    let renamed = Tar::default().file(&named, &config(&[])).file("manifest.json", manifest(&named).as_bytes());
    cases.push(("image configuration has digest", renamed.end()));
    cases.push(("c.json: missing", Tar::default().file("manifest.json", manifest("c.json").as_bytes()).end()));
    let good = oci_layout("x", from_ref(&layer), gzip);
    for name in good.keys().filter(|name| name.starts_with("blobs/")) {
        let mut members = good.clone();
        members.remove(name);
        cases.push(("missing", archive_of(&members)));
        let mut members = good.clone();
        let blob = members.get_mut(name).unwrap();
        match blob.starts_with(&[0x1f, 0x8b]) {
            // The same layer inside, but not the same bytes.
            true => blob.extend(gzip(b"")),
            false => blob.push(b' '),
        }
        cases.push(("has digest", archive_of(&members)));
    }
    let whole = docker_archive(&["x"], &[layer]);
    cases.push(("breaks off", whole[..whole.len() - 2048 - 512].to_vec()));
    cases.push(("incomplete deflate stream", gzip(&whole)[..200].to_vec()));
    cases.push(("empty", Vec::new()));
    cases.push(("not a tar archive", b"#!/bin/sh\n".repeat(100)));
    cases.push(("neither manifest.json nor index.json", Tar::default().file("a", b"").end()));
    cases.push(("xz compression", b"\xfd7zXZ\0\0\0".to_vec()));
    cases.push(("image list", Tar::default().file("manifest.json", b"{").end()));
    cases.push(("lists no images", Tar::default().file("manifest.json", b"[]").end()));
    for (why, content) in cases {
        let path = scratch.path("bad.tar");
        fs::write(&path, content).unwrap();
        let error = explain(&store.import(&path).expect_err(why));
        assert!(error.contains(why), "{why}: {error}");
        assert!(error.contains("bad.tar"), "{error}");
        for dir in ["images", "layers", "staging"] {
            assert!(names_in(&scratch.path("store").join(dir)).is_empty(), "{why}: {dir}");
        }
    }
    assert!(matches!(store.import(&scratch.path("absent.tar")), Err(Error::Io { .. })));
    assert!(matches!(store.import(Path::new("/dev/null")), Err(Error::Archive { .. })));
}

#[test]
fn entries_arrive_with_all_their_attributes() {
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let newline = b"with\na newline";
    let tar = Tar::default()
        .add(Entry { kind: b'5', path: b"home/", mode: 0o2750, owner: (1000, 2000), mtime: 5, ..Entry::default() })
        .file("home/file", b"content")
        .add(Entry { path: b"suid", data: b"x", mode: 0o6755, owner: (1000, 2000), ..Entry::default() })
        .pax(&[("SCHILY.xattr.security.capability", capability), ("mtime", b"1234567890.123456789")])
        .add(Entry { path: b"capable", data: b"x", owner: (7, 8), mode: 0o755, ..Entry::default() })
        .pax(&[("SCHILY.xattr.user.note", newline), ("SCHILY.xattr.trusted.overlay.redirect", b"/")])
        .file("noted", b"")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.kept", b"1")])
        .dir("foreign/")
        .add(Entry { kind: b'3', path: b"null", mode: 0o666, device: (1, 3), ..Entry::default() })
        .add(Entry { kind: b'4', path: b"disk", mode: 0o660, device: (8, 0), owner: (0, 6), ..Entry::default() })
        .add(Entry { kind: b'6', path: b"fifo", mode: 0o622, owner: (3, 4), ..Entry::default() })
        .add(Entry { kind: b'2', path: b"link", link: b"home/file", owner: (5, 6), mtime: 77, ..Entry::default() })
        .link("hard", "home/file")
        .link("hard-to-symlink", "link")
        .file("made/up/parents/file", b"x")
        .end();
    let (_scratch, dest, result) = unpacked(tar);
    assert_eq!(result.unwrap().entries, 13);
    let meta = |path: &str| fs::symlink_metadata(dest.join(path)).unwrap();
    let owned = |path: &str| (meta(path).uid(), meta(path).gid(), meta(path).mode() & 0o7777);
    assert_eq!(owned("home"), (1000, 2000, 0o2750));
    assert_eq!(meta("home").mtime(), 5);
    // Not inherited from the setgid folder.
    assert_eq!(owned("home/file"), (0, 0, 0o644));
    assert_eq!(owned("suid"), (1000, 2000, 0o6755));
    assert_eq!(owned("capable"), (7, 8, 0o755));
    assert_eq!((meta("capable").mtime(), meta("capable").mtime_nsec()), (1234567890, 123456789));
    assert_eq!(xattr(&dest.join("capable"), "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(xattr(&dest.join("noted"), "user.note").as_deref(), Some(&newline[..]));
    assert_eq!(xattr(&dest.join("noted"), "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&dest.join("foreign"), "trusted.overlay.opaque"), None);
    assert_eq!(xattr(&dest.join("foreign"), "user.kept").as_deref(), Some(&b"1"[..]));
    assert!(meta("null").file_type().is_char_device());
    assert_eq!((meta("null").rdev(), owned("null")), (0x103, (0, 0, 0o666)));
    assert!(meta("disk").file_type().is_block_device());
    assert_eq!((meta("disk").rdev(), owned("disk")), (0x800, (0, 6, 0o660)));
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!(owned("fifo"), (3, 4, 0o622));
    assert_eq!((meta("link").uid(), meta("link").gid(), meta("link").mtime()), (5, 6, 77));
    assert_eq!(fs::read_link(dest.join("link")).unwrap(), Path::new("home/file"));
    assert_eq!(meta("hard").ino(), meta("home/file").ino());
    assert_eq!(meta("hard-to-symlink").ino(), meta("link").ino());
    assert_eq!(owned("made/up/parents"), (0, 0, 0o755));
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let tar = Tar::default()
        .file("a", b"first")
        .file("a", b"second")
        .dir("d/")
        .file("d/inner", b"x")
        .file("d", b"now a file")
        .file("f", b"x")
        .dir("f/")
        .file("f/inner", b"y")
        .symlink("s", "elsewhere")
        .file("s", b"not through the link")
        .file("h1", b"one")
        .link("h2", "h1")
        .file("h1", b"two")
        .dir("kept/")
        .file("kept/x", b"1")
        .add(Entry { kind: b'5', path: b"kept/", mode: 0o700, owner: (9, 9), ..Entry::default() })
        .dir("t/")
        .file("t/x", b"old")
        .symlink("t", "kept")
        .file("t/y", b"through the link")
        .end();
    let (_scratch, dest, result) = unpacked(tar);
    result.unwrap();
    let read = |path: &str| String::from_utf8(fs::read(dest.join(path)).unwrap()).unwrap();
    assert_eq!(read("a"), "second");
    assert_eq!(read("d"), "now a file");
    assert_eq!(read("f/inner"), "y");
    assert_eq!(read("s"), "not through the link");
    assert!(!dest.join("elsewhere").exists());
    assert_eq!((read("h1"), read("h2")), ("two".into(), "one".into()));
    assert_eq!(read("kept/x"), "1");
    assert_eq!(read("kept/y"), "through the link");
    let kept = fs::metadata(dest.join("kept")).unwrap();
    assert_eq!((kept.uid(), kept.mode() & 0o777), (9, 0o700));
}

/// As every archive is unpacked by GNU tar, so by us: formats, sparse files, long names, times, links.
#[test]
fn trees_are_what_tar_unpacks() {
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    let long = "long-name-".repeat(20);
    for dir in ["a/b/c", &format!("{}/{}", "d".repeat(120), "e".repeat(120))] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    fs::write(tree.join("a/file"), [1; 100_000]).unwrap();
    fs::write(tree.join("a").join(&long), b"x").unwrap();
    fs::write(tree.join(format!("{}/{}/{}", "d".repeat(120), "e".repeat(120), long)), b"y").unwrap();
    fs::hard_link(tree.join("a/file"), tree.join("a/b/hard")).unwrap();
    std::os::unix::fs::symlink(format!("../{long}"), tree.join("a/b/sym")).unwrap();
    std::os::unix::fs::chown(tree.join("a/b/c"), Some(3_000_000), Some(4_000_000)).unwrap();
    fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o1711)).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    for i in 0..30u64 {
        use std::os::unix::fs::FileExt;
        sparse.write_all_at(b"data", i * 1_000_003).unwrap();
    }
    sparse.set_len(40_000_000).unwrap();
    drop(sparse);
    fs::File::create(tree.join("hole")).unwrap().set_len(10_000_000).unwrap();
    rustix::fs::setxattr(tree.join("a/file"), "user.x", b"\n=\0", rustix::fs::XattrFlags::empty()).unwrap();
    let formats: [&[&str]; 5] = [
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--xattrs"],
        &["--format=pax", "--sparse", "--xattrs"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
    ];
    for (i, format) in formats.iter().enumerate() {
        let archive = scratch.path("tree.tar");
        let tar = |args: &[&OsStr]| assert!(Command::new("tar").args(args).status().unwrap().success());
        let mut args: Vec<&OsStr> = format.iter().map(OsStr::new).collect();
        args.extend(["-cf".as_ref(), archive.as_os_str(), "-C".as_ref(), tree.as_os_str(), ".".as_ref()]);
        tar(&args);
        let theirs = scratch.dir(&format!("theirs{i}"));
        let ours = scratch.dir(&format!("ours{i}"));
        let flags: [&OsStr; 4] =
            ["--xattrs".as_ref(), "--numeric-owner".as_ref(), "-pxf".as_ref(), archive.as_os_str()];
        tar(&[&flags[..], &["-C".as_ref(), theirs.as_os_str()]].concat());
        unpack::layer(fs::File::open(&archive).unwrap(), &ours, &Limits::default()).unwrap();
        assert_eq!(describe(&ours), describe(&theirs), "{format:?}");
        if format.contains(&"--sparse") {
            assert!(fs::metadata(ours.join("sparse")).unwrap().blocks() < 2000);
        }
    }
}

/// Everything about a tree that should be equal, by path.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut queue = vec![root.to_path_buf()];
    while let Some(path) = queue.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_path_buf();
        let content = match meta.file_type() {
            t if t.is_dir() => {
                let mut children: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
                children.sort();
                children.reverse();
                queue.extend(children);
                String::new()
            }
            t if t.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
            t if t.is_file() => format!("{} {}", meta.len(), Digest::of(&fs::read(&path).unwrap())),
            _ => meta.rdev().to_string(),
        };
        let first = match meta.is_dir() {
            true => name.clone(),
            false => inodes.entry(meta.ino()).or_insert(name.clone()).clone(),
        };
        let (user, mode) = (xattr(&path, "user.x"), meta.mode());
        let time = (meta.mtime(), meta.mtime_nsec());
        all.insert(name, format!("{mode:o} {}:{} {time:?} {user:?} {first:?} {content}", meta.uid(), meta.gid()));
    }
    all
}

#[test]
fn hostile_layers_stay_inside_and_say_why() {
    type Case = (&'static str, fn(Tar) -> Tar, Option<&'static str>);
    let cases: [Case; 17] = [
        ("dot-dot", |t| t.file("../outside/file", b"bad"), Some("'..'")),
        ("dot-dot within", |t| t.dir("a/").file("a/../../outside/file", b"bad"), Some("'..'")),
        ("absolute name", |t| t.file("/outside/file", b"inside"), None),
        ("absolute symlink", |t| t.symlink("l", "/").file("l/outside/file", b"inside"), None),
        ("relative symlink", |t| t.symlink("l", "../../..").file("l/outside/file", b"inside"), None),
        ("symlink to outside", |t| t.symlink("l", "../outside").file("l/file", b"inside"), None),
        ("symlink as the file", |t| t.symlink("f", "../outside/file").file("f", b"inside"), None),
        ("symlink as a folder", |t| t.symlink("d", "../outside").dir("d/").file("d/file", b"inside"), None),
        ("chain", |t| t.symlink("a", "b").symlink("b", "c").symlink("c", "../outside").file("a/file", b"x"), None),
        ("hard link out", |t| t.link("h", "../outside/file"), Some("'..'")),
        ("hard link absolute", |t| t.link("h", "/outside/file"), Some("no such file in this layer")),
        (
            "hard link by symlink",
            |t| t.symlink("l", "../outside").link("h", "l/file").file("h", b"bad"),
            Some("no such"),
        ),
        ("whiteout out", |t| t.file(".wh...", b""), Some("whiteout of nothing")),
        ("whiteout by symlink", |t| t.symlink("l", "../outside").file("l/.wh.file", b""), None),
        ("opaque by symlink", |t| t.symlink("l", "../outside").file("l/.wh..wh..opq", b""), None),
        ("cycle", |t| t.symlink("a", "b").symlink("b", "a").file("a/x", b"bad"), Some("symbolic links")),
        ("through a file", |t| t.file("f", b"").file("f/x", b"bad"), Some("Not a directory")),
    ];
    for (name, build, expected) in cases {
        let scratch = Scratch::new();
        let outside = scratch.dir("outside");
        fs::write(outside.join("file"), b"precious").unwrap();
        let before = describe(&outside);
        let dest = scratch.dir("layer");
        let result = unpack::layer(&build(Tar::default()).end()[..], &dest, &Limits::default());
        assert_eq!(describe(&outside), before, "{name}");
        assert_eq!(xattr(&outside, "trusted.overlay.opaque"), None, "{name}");
        assert_eq!(names_in(&scratch.0), ["layer", "outside"], "{name}");
        match (expected, result) {
            (None, result) => drop(result.unwrap_or_else(|e| panic!("{name}: {}", explain(&e)))),
            (Some(why), Ok(_)) => panic!("{name}: accepted, expected {why}"),
            (Some(why), Err(error)) => assert!(explain(&error).contains(why), "{name}: {}", explain(&error)),
        }
    }
}

#[test]
fn links_in_circles_lose_nothing() {
    let (_scratch, dest, result) =
        unpacked(Tar::default().file("a", b"x").link("a", "a").link("b", "a").link("a", "b").end());
    result.unwrap();
    assert_eq!(fs::read(dest.join("a")).unwrap(), b"x");
    let (_scratch, _, result) = unpacked(Tar::default().link("a", "a").end());
    assert!(explain(&result.unwrap_err()).contains("no such file in this layer"));
    let (_scratch, dest, result) = unpacked(Tar::default().dir("d/").file("d/f", b"x").link("d", "d/f").end());
    assert!(explain(&result.unwrap_err()).contains("a directory is in its place"));
    assert!(dest.join("d/f").exists());
}

#[test]
fn bombs_stop_at_the_limits() {
    let scratch = Scratch::new();
    let limits = Limits { entries: 10, bytes: 1000, folders: 4096 };
    let run = |name: &str, tar: Vec<u8>| {
        let error = unpack::layer(&tar[..], &scratch.dir(name), &limits).expect_err(name);
        explain(&error)
    };
    let many = (0..11).fold(Tar::default(), |tar, i| tar.file(&i.to_string(), b""));
    assert!(run("entries", many.end()).contains("more than 10 entries"));
    assert!(
        run("bytes", Tar::default().file("a", &[0; 600]).file("b", &[0; 600]).end()).contains("more than 1000 bytes")
    );
    let deep = Tar::default().file("a/".repeat(45).trim_end_matches('/'), b"");
    assert!(run("folders", deep.end()).contains("too many folders"));
    // A header that promises more than there is, and one that promises more than there can be.
    let mut huge = Tar::default().file("a", b"").end();
    huge[124..136].copy_from_slice(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
    let sum: u32 =
        huge[..512].iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { *b as u32 }).sum();
    huge[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(run("huge", huge).contains("18446744073709551615 bytes"));

    // A stream that never ends, behind the end of the archive.
    let store = ImageStore::open_with(&scratch.path("store"), limits).unwrap();
    let mut bomb = Tar::default().file("a", b"").end();
    bomb.resize(64 << 20, 0);
    let bombs = config(&[bomb.clone()]);
    fs::write(scratch.path("bomb.tar"), docker_archive_of(&["bomb"], &bombs, &[gzip(&bomb)])).unwrap();
    let error = explain(&store.import(&scratch.path("bomb.tar")).unwrap_err());
    assert!(error.contains("bytes in a layer's tar stream"), "{error}");

    // A small archive that names one large document many times.
    let layer = Tar::default().end();
    let mut config = config(std::slice::from_ref(&layer));
    config.resize(3 << 20, b' ');
    let id = Digest::of(&config);
    let image = json!({ "Config": format!("{}.json", id.hex()), "RepoTags": ["x"], "Layers": ["0/layer.tar"] });
    let tar = Tar::default().file(&format!("{}.json", id.hex()), &config).file("0/layer.tar", &layer);
    let archive = tar.file("manifest.json", json!(vec![image; 100]).to_string().as_bytes()).end();
    fs::write(scratch.path("many.tar"), archive).unwrap();
    let error = explain(&store.import(&scratch.path("many.tar")).unwrap_err());
    assert!(error.contains("bytes in all documents of an archive"), "{error}");
    assert!(names_in(&scratch.path("store/staging")).is_empty());
}

fn hostile_path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        "/",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        ".wh.",
        "outside",
        "file",
        "layer",
    ]);
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_never_reach_outside(
        entries in prop::collection::vec(
            (prop::sample::select(b"0012235566".to_vec()), hostile_path(), hostile_path()), 1..14),
    ) {
        let scratch = Scratch::new();
        let outside = scratch.dir("outside");
        fs::write(outside.join("file"), b"precious").unwrap();
        fs::create_dir(outside.join("a")).unwrap();
        let before = describe(&outside);
        let dest = scratch.dir("layer");
        // One layer for each entry as well: the first bad entry ends a layer.
        let mut tar = Tar::default();
        for (kind, path, link) in &entries {
            let entry = Entry { kind: *kind, path: path.as_bytes(), link: link.as_bytes(), owner: (9, 9), mode: 0o4777,
                data: if *kind == b'0' { b"data" } else { b"" }, ..Entry::default() };
            let single = Tar::default().add(Entry { path: path.as_bytes(), link: link.as_bytes(), ..entry });
            let _ = unpack::layer(&single.end()[..], &dest, &Limits::default());
            tar = tar.add(Entry { path: path.as_bytes(), link: link.as_bytes(), kind: *kind, ..Entry::default() });
        }
        let _ = unpack::layer(&tar.end()[..], &scratch.dir("second"), &Limits::default());
        prop_assert_eq!(describe(&outside), before);
        prop_assert_eq!(xattr(&outside, "trusted.overlay.opaque"), None);
        prop_assert_eq!(names_in(&scratch.0), ["layer", "outside", "second"]);
    }
}

#[test]
fn what_a_crash_leaves_is_never_taken_for_whole() {
    let scratch = Scratch::new();
    let layers = [Tar::default().file("a", b"1").end(), Tar::default().file("b", b"2").end()];
    let archive = scratch.path("a.tar");
    fs::write(&archive, docker_archive(&["a"], &layers)).unwrap();
    let store = scratch.store();
    let image = store.import(&archive).unwrap().remove(0);
    drop(store);
    let root = scratch.path("store");
    let hex = Digest::of(b"some other layer").hex().to_owned();
    fs::create_dir_all(root.join("staging/1-0/0/usr/bin")).unwrap();
    fs::create_dir_all(root.join("layers").join(&hex).join("half")).unwrap();
    fs::write(root.join("images/.x.json.tmp-1-1"), b"{").unwrap();
    fs::write(root.join("layers/.x.json.tmp-1-1"), b"").unwrap();
    let store = scratch.store();
    assert_eq!(store.list(), from_ref(&image));
    assert!(!root.join("layers").join(hex).exists());
    // Its record and its configuration.
    assert_eq!(names_in(&root.join("images")).len(), 2);
    // Folder, record, seal and recipe of each.
    assert_eq!(names_in(&root.join("layers")).len(), 8);
    eventually("leftovers are removed", || names_in(&root.join("staging")).is_empty());
    drop(store);

    // Every way to damage an image: it is set aside, the store opens, and the archive heals it.
    let record = root.join("images").join(format!("{}.json", &image.id["sha256:".len()..]));
    let layer = image.layers[1].clone();
    let layer_record = layer.with_extension("json");
    let damages: [&dyn Fn(); 6] = [
        &|| fs::write(&record, b"").unwrap(),
        &|| fs::write(&record, b"{\"id\":").unwrap(),
        &|| fs::rename(&record, record.with_file_name(format!("{}.json", "0".repeat(64)))).unwrap(),
        &|| remove_tree(&layer).unwrap(),
        &|| fs::remove_file(&layer_record).unwrap(),
        &|| fs::write(&layer_record, b"\0\0\0").unwrap(),
    ];
    for (i, damage) in damages.iter().enumerate() {
        damage();
        // With the copies of the records it is as if nothing had happened.
        remove_tree(&root.join("copies")).unwrap();
        let store = scratch.store();
        assert!(store.list().is_empty() && store.resolve("a").is_none(), "damage {i}");
        assert_eq!(store.damaged().len(), 1, "damage {i}");
        let healed = store.import(&archive).unwrap().remove(0);
        assert_eq!(healed, image);
        assert_eq!(fs::read(healed.layers[1].join("b")).unwrap(), b"2", "damage {i}");
        drop(store);
        let store = scratch.store();
        assert_eq!((store.list().len(), store.damaged().len()), (1, 0), "damage {i}");
        eventually("leftovers are removed", || names_in(&root.join("staging")).is_empty());
    }
}

/// Kills the importing process at ever later moments, until one import survives.
#[test]
fn kill_9_at_any_moment_of_an_import() {
    const CHILD: &str = "CORACLE_TEST_IMPORT";
    if let Some(root) = std::env::var_os(CHILD).map(PathBuf::from) {
        ImageStore::open(&root.join("store")).unwrap().import(&root.join("a.tar")).unwrap();
        return;
    }
    let scratch = Scratch::new();
    let layer = |name: u8| {
        let files = (0..300).fold(Tar::default(), |tar, i| tar.file(&format!("d{}/f{i}", i % 20), &[name; 2000]));
        files.end()
    };
    let layers = [layer(1), layer(2), layer(3)];
    fs::write(scratch.path("a.tar"), gzip(&docker_archive(&["a"], &layers))).unwrap();
    let test = "images::kill_9_at_any_moment_of_an_import";
    let mut delay = Duration::from_millis(1);
    let (mut killed, mut with_leftovers) = (0, 0);
    loop {
        let mut child = Command::new("/proc/self/exe")
            .args([test, "--exact", "--test-threads=1"])
            .env(CHILD, &scratch.0)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(delay);
        let _ = child.kill();
        let status = child.wait().unwrap();
        let leftovers = fs::read_dir(scratch.path("store/staging")).map_or(0, |entries| entries.count());
        with_leftovers += usize::from(leftovers > 0);
        let store = scratch.store();
        assert!(store.damaged().is_empty());
        let image = store.resolve("a");
        assert_eq!(store.list().len(), usize::from(image.is_some()));
        for image in image.iter() {
            for (layer, content) in image.layers.iter().zip(1..) {
                assert_eq!(fs::read(layer.join("d19/f299")).unwrap(), [content; 2000]);
            }
        }
        eventually("leftovers are removed", || names_in(&scratch.path("store/staging")).is_empty());
        if status.success() {
            assert!(image.is_some());
            break;
        }
        killed += 1;
        delay += Duration::from_millis(2).max(delay / 4);
    }
    assert!(killed >= 5 && with_leftovers >= 2, "{killed} kills, {with_leftovers} with leftovers");
}

#[test]
fn one_process_at_a_time() {
    let scratch = Scratch::new();
    let store = scratch.store();
    assert!(matches!(ImageStore::open(store.root()), Err(Error::Locked { .. })));
    drop(store);
    scratch.store();
}

#[test]
fn names_move_and_shared_layers_stay() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let shared = Tar::default().file("shared", b"1").end();
    let import = |names: &[&str], own: &[u8]| {
        let layers = [shared.clone(), Tar::default().file("own", own).end(), shared.clone()];
        let archive = scratch.path("x.tar");
        fs::write(&archive, docker_archive(names, &layers)).unwrap();
        store.import(&archive).unwrap().remove(0)
    };
    let first = import(&["app:1", "app:latest"], b"1");
    // The repeated layer is there once, where it counts.
    assert_eq!(first.layers.len(), 2);
    assert!(first.layers[1].join("shared").exists());
    let second = import(&["app:latest"], b"2");
    assert_eq!(store.resolve("app").unwrap().id, second.id);
    assert_eq!(store.resolve("app:1").unwrap().names, ["docker.io/library/app:1"]);

    let in_use = [second.id.clone()];
    assert!(matches!(store.remove("app", &in_use), Err(Error::InUse { .. })));
    assert!(matches!(store.remove("other", &[]), Err(Error::NotFound { .. })));
    store.remove("app:1", &in_use).unwrap();
    assert!(store.resolve(&first.id).is_none() && !first.layers[0].exists());
    assert!(second.layers.iter().all(|layer| layer.exists()));
    import(&["app:3"], b"2");
    store.remove("app:3", &in_use).unwrap();
    assert!(store.resolve("app:3").is_none() && store.resolve("app").is_some());
    store.remove(&second.id, &[]).unwrap();
    for dir in ["images", "layers", "staging"] {
        assert!(names_in(&scratch.path("store").join(dir)).is_empty(), "{dir}");
    }
}

#[test]
fn archives_dropped_in_are_imported_once() {
    let scratch = Scratch::new();
    let dir = scratch.path("images");
    let store = Arc::new(scratch.store());
    let mut drop_in = DropIn::new(&dir, store.clone());
    assert!(drop_in.scan().is_empty());
    fs::create_dir(&dir).unwrap();
    let layer = [Tar::default().file("a", b"1").end()];
    fs::write(dir.join("a.tar"), docker_archive(&["a"], &layer)).unwrap();
    fs::write(dir.join("b.tgz"), gzip(&docker_archive(&["b"], &layer))).unwrap();
    write_members(&dir.join("c"), &oci_layout("c:1", &layer, zstd));
    fs::write(dir.join(".d.tar"), b"still copying").unwrap();
    fs::write(dir.join("e.zip"), b"not an archive").unwrap();
    let outcomes = drop_in.scan();
    let seen: Vec<_> =
        outcomes.iter().map(|o| (o.path.file_name().unwrap().to_str().unwrap(), o.result.is_ok())).collect();
    assert_eq!(seen, [("a.tar", true), ("b.tgz", true), ("c", true)]);
    assert!(["a", "b", "c:1"].iter().all(|name| store.resolve(name).is_some()));
    assert!(drop_in.scan().is_empty() && !drop_in.pending());

    // Half-copied: nothing is said until it is complete, or has been left so.
    let whole = docker_archive(&["f"], &[Tar::default().file("f", b"1").end()]);
    fs::write(dir.join("f.tar"), &whole[..1000]).unwrap();
    assert!(drop_in.scan().is_empty());
    assert!(drop_in.pending());
    fs::write(dir.join("f.tar"), &whole).unwrap();
    assert!(drop_in.scan().iter().all(|outcome| outcome.result.is_ok()));
    assert!(store.resolve("f").is_some() && !drop_in.pending());
    fs::write(dir.join("g.tar"), b"never an archive").unwrap();
    let mut outcomes = Vec::new();
    eventually("the failure is reported", || {
        outcomes.extend(drop_in.scan());
        !outcomes.is_empty()
    });
    assert!(outcomes.len() == 1 && outcomes[0].result.is_err() && drop_in.scan().is_empty());

    // After a restart: known archives are left alone, failures are tried again, what somebody removed stays away.
    store.remove("f", &[]).unwrap();
    assert!(drop_in.scan().is_empty());
    drop((drop_in, store));
    let store = Arc::new(scratch.store());
    let mut drop_in = DropIn::new(&dir, store.clone());
    let outcomes = drop_in.scan();
    let seen: Vec<_> =
        outcomes.iter().map(|o| (o.path.file_name().unwrap().to_str().unwrap(), o.result.is_ok())).collect();
    assert_eq!(seen, [("g.tar", false)]);
    assert!(store.resolve("f").is_none());
}

#[test]
fn the_binary_is_an_image_of_itself() {
    let scratch = Scratch::new();
    let store = scratch.store();
    assert!(store.list().is_empty());
    let image = store.resolve(BUILTIN).unwrap();
    assert_eq!(image.names, [BUILTIN]);
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.entrypoint().as_deref().unwrap(), ["/coracle", "hello"]);
    assert_eq!(config.exposed_ports().as_deref().unwrap(), ["8080/tcp"]);
    let layer = &image.layers[0];
    assert_eq!(names_in(layer), ["coracle", "etc", "tmp"]);
    assert_eq!(fs::metadata(layer.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(layer.join("coracle")).unwrap().mode() & 0o7777, 0o755);
    let exe = fs::read("/proc/self/exe").unwrap();
    assert!(fs::read(layer.join("coracle")).unwrap() == exe);
    // Made once, also over a restart.
    let inode = fs::metadata(layer).unwrap().ino();
    drop(store);
    let store = scratch.store();
    let start = SystemTime::now();
    assert_eq!(store.resolve(BUILTIN).unwrap(), image);
    assert!(start.elapsed().unwrap() < Duration::from_millis(200));
    assert_eq!(fs::metadata(layer).unwrap().ino(), inode);
}
