//! Images of every shape that occurs, as a container would see them, against what `umoci` unpacks: byte for byte, mode for
//! mode. Where umoci is not right, or where layers that are folders of their own cannot be as one folder that all of
//! them were unpacked into, the case says so, with the expected value.

use crate::harness::{Node, output, secs};
use coracle::image::{Digest, architecture};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// When everything was changed that does not say otherwise.
const THEN: i64 = 1_000_000_000;

/// An entry of a layer, without the checks of a well-meaning writer.
#[derive(Clone)]
pub struct Item {
    kind: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    data: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    modified: i64,
    device: (u32, u32),
    pax: Vec<(String, Vec<u8>)>,
    /// Bytes that are put into the header as they are.
    raw: Vec<(usize, Vec<u8>)>,
}

pub fn item(kind: u8, path: impl AsRef<[u8]>, mode: u32) -> Item {
    Item {
        kind,
        path: path.as_ref().to_vec(),
        link: Vec::new(),
        data: Vec::new(),
        mode,
        owner: (0, 0),
        modified: THEN,
        device: (0, 0),
        pax: Vec::new(),
        raw: Vec::new(),
    }
}

pub fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Item {
    Item { data: data.as_ref().to_vec(), ..item(b'0', path, 0o644) }
}

pub fn dir(path: impl AsRef<[u8]>) -> Item {
    item(b'5', path, 0o755)
}

pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { link: target.as_ref().to_vec(), ..item(b'2', path, 0o777) }
}

pub fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item { link: target.as_ref().to_vec(), ..item(b'1', path, 0o644) }
}

pub fn fifo(path: &str) -> Item {
    item(b'6', path, 0o640)
}

pub fn char_device(path: &str, major: u32, minor: u32) -> Item {
    Item { device: (major, minor), ..item(b'3', path, 0o620) }
}

pub fn block_device(path: &str, major: u32, minor: u32) -> Item {
    Item { device: (major, minor), ..item(b'4', path, 0o660) }
}

impl Item {
    pub fn mode(self, mode: u32) -> Item {
        Item { mode, ..self }
    }

    pub fn owner(self, uid: u64, gid: u64) -> Item {
        Item { owner: (uid, gid), ..self }
    }

    pub fn modified(self, modified: i64) -> Item {
        Item { modified, ..self }
    }

    /// A PAX record for this entry.
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Item {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }

    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Item {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    pub fn raw(mut self, offset: usize, bytes: impl AsRef<[u8]>) -> Item {
        self.raw.push((offset, bytes.as_ref().to_vec()));
        self
    }
}

/// A layer as a tar stream.
pub fn layer(items: impl IntoIterator<Item = Item>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        append(&mut bytes, &item);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn append(bytes: &mut Vec<u8>, item: &Item) {
    let padded = |bytes: &mut Vec<u8>, data: &[u8]| {
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    };
    let said = |key: &str| item.pax.iter().any(|(name, _)| name == key);
    if !item.pax.is_empty() {
        let mut records = Vec::new();
        for (key, value) in &item.pax {
            // The length counts itself.
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
            records.extend_from_slice(format!("{length} {key}=").as_bytes());
            records.extend_from_slice(value);
            records.push(b'\n');
        }
        append(bytes, &Item { data: records, ..self::item(b'x', "pax", 0o644) });
    }
    for (flag, text, key) in [(b'L', &item.path, "path"), (b'K', &item.link, "linkpath")] {
        if text.len() > 100 && !said(key) {
            let data = [text.as_slice(), b"\0"].concat();
            append(bytes, &Item { data, ..self::item(flag, "././@LongLink", 0o644) });
        }
    }
    let mut header = tar::Header::new_gnu();
    let cut = |text: &[u8]| text[..text.len().min(100)].to_vec();
    header.as_old_mut().name[..cut(&item.path).len()].copy_from_slice(&cut(&item.path));
    header.as_old_mut().linkname[..cut(&item.link).len()].copy_from_slice(&cut(&item.link));
    header.set_entry_type(tar::EntryType::new(item.kind));
    header.set_mode(item.mode);
    header.set_uid(item.owner.0);
    header.set_gid(item.owner.1);
    header.set_size(item.data.len() as u64);
    match u64::try_from(item.modified) {
        Ok(modified) => header.set_mtime(modified),
        Err(_) => {
            let mut field = [0xff; 12];
            field[4..].copy_from_slice(&item.modified.to_be_bytes());
            header.as_old_mut().mtime = field;
        }
    }
    header.set_device_major(item.device.0).unwrap();
    header.set_device_minor(item.device.1).unwrap();
    for (offset, raw) in &item.raw {
        header.as_mut_bytes()[*offset..][..raw.len()].copy_from_slice(raw);
    }
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    padded(bytes, &item.data);
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

/// Members of an archive, by name.
pub type Members = BTreeMap<String, Vec<u8>>;

pub fn archive_of(members: &Members) -> Vec<u8> {
    layer(members.iter().map(|(name, content)| file(name, content)))
}

pub fn write_members(dir: &Path, members: &Members) {
    for (name, content) in members {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn config(layers: &[Vec<u8>], machine: &str) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({
        "architecture": machine, "os": "linux", "config": { "Cmd": ["/app"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    config.to_string().into_bytes()
}

pub fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config(layers, architecture());
    let id = format!("{}.json", Digest::of(&config).hex());
    let mut members: Members = layers.iter().enumerate().map(|(i, l)| (format!("{i}/layer.tar"), l.clone())).collect();
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = json!([{ "Config": id, "RepoTags": [name], "Layers": names }]);
    members.insert(id, config);
    members.insert("manifest.json".into(), manifest.to_string().into_bytes());
    archive_of(&members)
}

/// How the blobs of a layout are packed, and their media type.
pub type Packing = (fn(&[u8]) -> Vec<u8>, &'static str);
pub const PLAIN: Packing = (plain, "application/vnd.oci.image.layer.v1.tar");
pub const GZIP: Packing = (gzip, "application/vnd.oci.image.layer.v1.tar+gzip");
pub const ZSTD: Packing = (zstd, "application/vnd.oci.image.layer.v1.tar+zstd");

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub fn blob(members: &mut Members, content: Vec<u8>, media_type: &str) -> Value {
    let digest = Digest::of(&content);
    let descriptor = json!({ "mediaType": media_type, "digest": digest.as_str(), "size": content.len() });
    members.insert(format!("blobs/sha256/{}", digest.hex()), content);
    descriptor
}

/// The descriptor of a manifest whose layers are packed in turns by `packings`.
pub fn manifest(members: &mut Members, layers: &[Vec<u8>], packings: &[Packing], machine: &str) -> Value {
    let config = blob(members, config(layers, machine), "application/vnd.oci.image.config.v1+json");
    let packed = layers.iter().zip(packings.iter().cycle());
    let layers: Vec<_> = packed.map(|(layer, (pack, media))| blob(members, pack(layer), media)).collect();
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let mut descriptor = blob(members, manifest.to_string().into_bytes(), MANIFEST);
    descriptor["platform"] = json!({ "os": "linux", "architecture": machine });
    descriptor
}

pub fn layout_of(mut members: Members, mut top: Value, name: &str) -> Members {
    top["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    members.insert("index.json".into(), json!({ "schemaVersion": 2, "manifests": [top] }).to_string().into_bytes());
    members.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    members
}

pub fn oci_layout(name: &str, layers: &[Vec<u8>], packings: &[Packing]) -> Members {
    let mut members = Members::new();
    let top = manifest(&mut members, layers, packings, architecture());
    layout_of(members, top, name)
}

/// What is at one path of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Type and permission bits.
    mode: u32,
    owner: (u32, u32),
    pub modified: (i64, i64),
    /// Size and digest of a file, target of a symlink, number of a device.
    content: String,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path of the same file, if it has several.
    same_as: Option<String>,
}

impl Fact {
    /// What hides a name from overlayfs.
    pub fn is_whiteout(&self) -> bool {
        self.mode & 0o170000 == 0o020000 && self.content == "0"
    }
}

pub type Tree = BTreeMap<String, Fact>;

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let size = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..size].split(|b| *b == 0).filter(|name| !name.is_empty());
    let mut all = BTreeMap::new();
    for name in names.map(OsStr::from_bytes) {
        let mut value = vec![0; 64 << 10];
        let size = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        value.truncate(size);
        all.insert(name.to_string_lossy().into_owned(), value);
    }
    all
}

/// All there is to know of the tree at `root`, by escaped path; the root itself is `.`. What is mounted on a folder in it
/// is not looked into.
pub fn tree(root: &Path) -> Tree {
    let mut paths = vec![PathBuf::from(".")];
    let mut all = Tree::new();
    let mut found: Vec<(PathBuf, fs::Metadata)> = Vec::new();
    let mut device = None;
    while let Some(below) = paths.pop() {
        let meta = fs::symlink_metadata(root.join(&below)).unwrap();
        if meta.is_dir() && *device.get_or_insert(meta.dev()) == meta.dev() {
            paths.extend(fs::read_dir(root.join(&below)).unwrap().map(|e| below.join(e.unwrap().file_name())));
        }
        found.push((below, meta));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let mut first: HashMap<u64, String> = HashMap::new();
    for (below, meta) in found {
        let path = root.join(&below);
        let name = below.as_os_str().as_bytes().escape_ascii().to_string();
        let content = match meta.file_type() {
            t if t.is_dir() => String::new(),
            t if t.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_vec().escape_ascii().to_string(),
            t if t.is_file() => format!("{} {}", meta.len(), Digest::of(&fs::read(&path).unwrap())),
            _ => meta.rdev().to_string(),
        };
        // Of links only those count that are in the tree: the store's own are nobody's business.
        let same_as = (!meta.is_dir()).then(|| first.entry(meta.ino()).or_insert_with(|| name.clone()).clone());
        let fact = Fact {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            content,
            xattrs: xattrs(&path),
            same_as: same_as.filter(|other| *other != name),
        };
        all.insert(name, fact);
    }
    all
}

/// A read-only overlay of layers, bottom first, as the shim mounts them. Not attached anywhere: it goes when the handle
/// does, whatever happens.
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

    fn tree(&self) -> Tree {
        tree(Path::new(&format!("/proc/self/fd/{}/", self.0.as_raw_fd())))
    }
}

/// The folders of an image's layers, bottom first, from its record.
pub fn layers_of(node: &Node, image: &str) -> Vec<PathBuf> {
    let store = node.dir.join("root/store");
    let records = fs::read_dir(store.join("images")).unwrap().map(|entry| entry.unwrap().path());
    for path in records.filter(|path| path.extension() == Some(OsStr::new("json"))) {
        let record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        if record["names"].as_array().unwrap().iter().any(|name| name == image) {
            let layers = record["layers"].as_array().unwrap().iter();
            return layers.map(|id| store.join("layers").join(&id.as_str().unwrap()["sha256:".len()..])).collect();
        }
    }
    panic!("no record of {image}");
}

/// What a container of the image sees.
fn merged(node: &Node, image: &str) -> Tree {
    let empty = node.dir.join("empty");
    fs::create_dir_all(&empty).unwrap();
    Overlay::mount(&layers_of(node, image), &empty).tree()
}

/// What `umoci unpack` makes of the image.
pub fn unpacked(node: &Node, name: &str, layers: &[Vec<u8>]) -> Tree {
    let layout = node.dir.join(format!("share/{name}-layout"));
    write_members(&layout, &oci_layout("it", layers, &[GZIP, PLAIN]));
    let bundle = node.dir.join(format!("share/{name}-bundle"));
    let mut umoci = Command::new("umoci");
    umoci.arg("unpack").arg("--keep-dirlinks").arg("--image").arg(format!("{}:it", layout.display())).arg(&bundle);
    output(&mut umoci, b"", secs(60)).ok();
    tree(&bundle.join("rootfs"))
}

#[track_caller]
pub fn same(name: &str, ours: &Tree, theirs: &Tree) {
    let mut report = String::new();
    for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
        let (a, b) = (ours.get(path), theirs.get(path));
        if a != b {
            report += &format!("{path}\n    is        {a:?}\n    should be {b:?}\n");
        }
    }
    assert!(report.is_empty(), "{name}: other than umoci's:\n{report}");
}

pub struct Shape {
    pub name: &'static str,
    pub layers: Vec<Vec<u8>>,
    /// Where umoci does not know a format: the same in another one.
    pub for_umoci: Option<Vec<Vec<u8>>>,
    /// Changes what umoci made to what is right.
    pub right: fn(&mut Tree),
}

fn shape(name: &'static str, layers: impl IntoIterator<Item = Vec<Item>>, right: fn(&mut Tree)) -> Shape {
    // The root is listed, as builders do: without, every tool has an idea of its own of its mode and time.
    let root = || dir("./").mode(0o751);
    let layers = layers.into_iter().map(|items| layer([root()].into_iter().chain(items))).collect();
    Shape { name, layers, for_umoci: None, right }
}

fn as_umoci(_: &mut Tree) {}

/// A sparse file in GNU tar's old format: three pieces, of which the header holds the map.
fn gnu_sparse() -> Item {
    let octal = |n: u64| format!("{n:011o}\0");
    let map: String = [(0, 512), (1 << 20, 512), (3 << 20, 0)].map(|(at, n)| octal(at) + &octal(n)).concat();
    let data = [[b'a'; 512], [b'b'; 512]].concat();
    Item { kind: b'S', ..file("sparse/gnu", data) }.raw(386, map).raw(483, octal(3 << 20))
}

fn gnu_content() -> Vec<u8> {
    let mut content = vec![0; 3 << 20];
    content[..512].fill(b'a');
    content[1 << 20..][..512].fill(b'b');
    content
}

/// One in the format that GNU tar writes today: the map is the first block of the data.
fn pax_sparse() -> Item {
    let mut data = b"2\n4096\n512\n2097152\n0\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(&[b'c'; 512]);
    let item = file("sparse/GNUSparseFile.0/pax", data);
    let item = item.pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
    item.pax("GNU.sparse.name", "sparse/pax").pax("GNU.sparse.realsize", "2097152")
}

const CAPABILITY: &[u8] = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

pub fn shapes() -> Vec<Shape> {
    let long = "n".repeat(255);
    let deep = (0..60).map(|i| format!("level-{i:02}-of-a-path")).collect::<Vec<_>>();
    // Every folder is listed: see `layers_stand_for_themselves`.
    let folders_to =
        |path: &str| -> Vec<Item> { path.match_indices('/').map(|(end, _)| dir(&path[..end + 1])).collect() };
    let deep_file = format!("{}/file", deep.join("/"));
    vec![
        shape(
            "whiteouts",
            [
                vec![
                    dir("etc/"),
                    file("etc/keep", "bottom"),
                    file("etc/gone", "x"),
                    dir("whole/"),
                    dir("whole/sub/"),
                    file("whole/sub/x", "x"),
                    dir("anew/"),
                    file("anew/old", "x"),
                    symlink("link", "etc"),
                    fifo("pipe"),
                    char_device("null", 1, 3),
                    dir("opaque/"),
                    file("opaque/hidden", "x"),
                    dir("opaque/dir/"),
                    file("opaque/dir/hidden", "x"),
                    dir("late/"),
                    file("late/hidden", "x"),
                ],
                vec![
                    dir("etc/"),
                    file("etc/.wh.gone", ""),
                    file("etc/.wh.never-there", ""),
                    file("etc/new", "top"),
                    file(".wh.whole", ""),
                    file(".wh.link", ""),
                    file(".wh.pipe", ""),
                    file(".wh.null", ""),
                    dir("opaque/").mode(0o700),
                    file("opaque/.wh..wh..opq", ""),
                    file("opaque/seen", "top"),
                    // After the content: hides only what the layers below have.
                    dir("late/"),
                    file("late/seen", "top"),
                    dir("late/sub/"),
                    file("late/sub/seen", "top"),
                    file("late/.wh..wh..opq", ""),
                ],
                vec![
                    file(".wh.anew", ""),
                    // What was hidden comes back as something else.
                    file("whole", "a file"),
                    dir("link/"),
                    file("link/inside", "x"),
                    dir("etc/"),
                    file("etc/gone", "back"),
                    dir("opaque/"),
                    dir("opaque/dir/"),
                    file("opaque/dir/new", "x"),
                ],
                vec![dir("anew/").mode(0o711), file("anew/fresh", "top"), file("null", "a file")],
            ],
            as_umoci,
        ),
        shape(
            "replaced",
            [
                vec![
                    file("file-dir-file", "1"),
                    dir("dir-file-dir/"),
                    file("dir-file-dir/first", "1"),
                    dir("dir-link/"),
                    file("dir-link/x", "1"),
                    symlink("link-file", "dir-link/x"),
                    file("file-link", "1"),
                    fifo("pipe-file"),
                    dir("target/"),
                    file("target/x", "1"),
                    file("mode", "1").mode(0o600),
                ],
                vec![
                    dir("file-dir-file/"),
                    file("file-dir-file/x", "2"),
                    file("dir-file-dir", "2"),
                    symlink("dir-link", "target"),
                    file("link-file", "2"),
                    symlink("file-link", "target"),
                    file("pipe-file", "2"),
                    file("mode", "1").mode(0o4711).owner(7, 8),
                ],
                vec![file("file-dir-file", "3"), dir("dir-file-dir/"), file("dir-file-dir/third", "3")],
            ],
            as_umoci,
        ),
        shape(
            "links",
            [
                vec![
                    dir("a/"),
                    file("a/one", "linked").mode(0o4755).owner(3, 4),
                    link("a/two", "a/one"),
                    dir("b/"),
                    link("b/three", "/a/two"),
                    link("b/four", "./b/three"),
                    symlink("sym", "nowhere").owner(9, 9),
                    link("sym-too", "sym"),
                    fifo("pipe"),
                    link("pipe-too", "pipe"),
                    symlink("absolute", "/a/one"),
                    symlink("dangling", "../../../../outside"),
                    file("own", "1"),
                    link("own-too", "own"),
                ],
                // One name of a linked file is written anew, the other stays what it was.
                vec![file("own", "2"), dir("a/"), file("a/.wh.one", ""), link("own-three", "own")],
            ],
            as_umoci,
        ),
        Shape {
            // umoci 0.4: "unknown typeflag 'S'".
            for_umoci: Some(
                shape("", [vec![dir("sparse/"), file("sparse/gnu", gnu_content()), pax_sparse()]], as_umoci).layers,
            ),
            ..shape("sparse", [vec![dir("sparse/"), gnu_sparse(), pax_sparse()]], as_umoci)
        },
        shape(
            "attributes",
            [
                vec![
                    file("capable", "x").mode(0o755).xattr("security.capability", CAPABILITY),
                    file("owned", "x").owner(1000, 1000).mode(0o6755).xattr("security.capability", CAPABILITY),
                    file("user", "x").xattr("user.note", "line\nline=\0end").xattr("user.empty", ""),
                    dir("dir/").mode(0o2775).owner(0, 50).xattr("user.dir", "x"),
                    file("trusted", "x").xattr("trusted.some", "x"),
                    dir("tmp/").mode(0o1777),
                    file("none", "x").mode(0),
                    file("all", "x").mode(0o7777),
                    file("rich", "x").owner(4_000_000_000, 3_000_000),
                    file("pax-owner", "x").pax("uid", "123456789").pax("gid", "42"),
                    symlink("link", "target").owner(11, 12).modified(5),
                    char_device("zero", 1, 5).owner(0, 5),
                    char_device("large", 511, 1_000_000),
                    block_device("disk", 8, 17).owner(0, 6).mode(0o660),
                    fifo("fifo").owner(1, 1),
                ],
                vec![dir("dir/").mode(0o700).owner(1, 1)],
            ],
            |tree| {
                // Go's reader takes an empty value for none at all, as POSIX says of its own keywords; those who write
                // attributes of files mean what they write.
                tree.get_mut("./user").unwrap().xattrs.insert("user.empty".into(), Vec::new());
            },
        ),
        shape(
            "times",
            [vec![
                file("epoch", "x").modified(0),
                file("before", "x").modified(-86_400),
                file("nano", "x").pax("mtime", "1234567890.123456789"),
                file("short", "x").pax("mtime", "1234567890.5"),
                file("before-nano", "x").pax("mtime", "-1.25"),
                file("future", "x").modified(4_102_444_800),
                dir("dir/").pax("mtime", "1111111111.25"),
                file("dir/x", "x"),
                dir("dir/sub/").modified(77),
                file("dir/sub/y", "y"),
                symlink("link", "x").pax("mtime", "1222222222.75"),
                fifo("pipe").modified(99),
            ]],
            as_umoci,
        ),
        shape(
            "names",
            [[
                folders_to(&deep_file),
                vec![
                    file(&deep_file, "deep"),
                    file(&long, "long"),
                    dir(format!("{}/", "d".repeat(255))),
                    file(format!("{}/{long}", "d".repeat(255)), "both"),
                    file("pax", "x").pax("path", format!("p{}", "x".repeat(200))),
                    symlink("to-deep", &deep_file),
                    link("also-deep", &deep_file),
                    file(b"latin-\xe9\xff", "not UTF-8"),
                    dir(b"dir-\xfe/"),
                    file(b"dir-\xfe/\x80", "x"),
                    symlink("to-latin", b"latin-\xe9\xff"),
                    file("new\nline \t\"quotes\" \\ \u{1f980}", "odd"),
                    file(" ", "space"),
                    file("...", "dots"),
                    file("-rf", "option"),
                    file("wh.not", "x"),
                    dir(".whole/"),
                ],
            ]
            .concat()],
            as_umoci,
        ),
        shape(
            "forty",
            (0..40).map(|i| {
                let mut items = vec![
                    dir("d/").modified(i),
                    file(format!("d/f{i}"), format!("{i}")),
                    file("d/always", format!("{i}")).modified(i),
                    dir(format!("own{i}/")).mode(0o700 + i as u32 % 8),
                ];
                if i % 3 == 2 {
                    items.push(file(format!("d/.wh.f{}", i - 2), ""));
                    items.push(file(format!(".wh.own{}", i - 1), ""));
                }
                if i == 20 {
                    items.push(file("d/.wh..wh..opq", ""));
                }
                items
            }),
            as_umoci,
        ),
        shape(
            // Of the entries of one name in a layer the last counts.
            "twice",
            [vec![
                file("file", "first").mode(0o777),
                file("file", "second").owner(1, 1),
                dir("dir/").mode(0o700),
                file("dir/x", "1"),
                dir("dir/").mode(0o711).owner(2, 2),
                file("link", "x"),
                symlink("link", "file"),
                symlink("was-link", "file"),
                file("was-link", "not through it"),
            ]],
            as_umoci,
        ),
    ]
}

/// Each of these is the same image; how it is packed is nobody's business but the reader's.
fn pack(node: &Node, number: usize, name: &str, layers: &[Vec<u8>]) -> PathBuf {
    let path = node.dir.join(format!("share/{name}-{number}"));
    let bytes = match number % 6 {
        0 => docker_archive(name, layers),
        1 => archive_of(&oci_layout(name, layers, &[GZIP])),
        2 => archive_of(&oci_layout(name, layers, &[ZSTD])),
        3 => zstd(&archive_of(&oci_layout(name, layers, &[PLAIN, ZSTD, GZIP]))),
        4 => gzip(&docker_archive(name, layers)),
        _ => {
            write_members(&path, &oci_layout(name, layers, &[ZSTD, GZIP, PLAIN]));
            return path;
        }
    };
    fs::write(&path, bytes).unwrap();
    path
}

/// Imports with the command that a person would type.
fn import(node: &Node, path: &Path) -> String {
    node.cli(&["image", "import", &path.display().to_string()]).ok()
}

#[test]
fn images_of_every_shape_are_what_umoci_unpacks() {
    let mut node = Node::new();
    fs::remove_file(node.dir.join("root/images/images.tar")).unwrap();
    node.start();
    for (number, shape) in shapes().into_iter().enumerate() {
        let name = format!("{}:1", shape.name);
        import(&node, &pack(&node, number, &name, &shape.layers));
        let mut right = unpacked(&node, shape.name, shape.for_umoci.as_ref().unwrap_or(&shape.layers));
        (shape.right)(&mut right);
        same(shape.name, &merged(&node, &format!("docker.io/library/{name}")), &right);
    }
    // What is sparse in the archive takes no space on disk.
    let layers = layers_of(&node, "docker.io/library/sparse:1");
    for name in ["gnu", "pax"] {
        let blocks = fs::metadata(layers[0].join("sparse").join(name)).unwrap().blocks();
        assert!(blocks * 512 < 64 << 10, "{name}: {blocks} blocks");
    }
    // One of them in every packing, without the layers that are there already.
    let layers = &shapes()[0].layers;
    let right = merged(&node, "docker.io/library/whiteouts:1");
    for number in 0..6 {
        node.cli(&["image", "rm", "whiteouts:1"]).ok();
        import(&node, &pack(&node, number, "whiteouts:1", layers));
        same("every packing", &merged(&node, "docker.io/library/whiteouts:1"), &right);
    }
    node.finish();
}

/// One image for several machines: this one's is taken. For other machines only: the error says for which.
#[test]
fn of_several_machines_only_this_ones_image_is_taken() {
    let mut node = Node::new();
    fs::remove_file(node.dir.join("root/images/images.tar")).unwrap();
    node.start();
    let here = [layer([file("here", "x")])];
    let foreign = [layer([file("foreign", "x")])];
    let mut members = Members::new();
    let list = [
        manifest(&mut members, &foreign, &[GZIP], "s390x"),
        manifest(&mut members, &here, &[GZIP], architecture()),
        manifest(&mut members, &foreign, &[ZSTD], "mips64le"),
    ];
    let index = json!({ "schemaVersion": 2, "manifests": list }).to_string().into_bytes();
    let top = blob(&mut members, index, "application/vnd.oci.image.index.v1+json");
    let path = node.dir.join("share/several.tar");
    fs::write(&path, archive_of(&layout_of(members, top, "several:1"))).unwrap();
    import(&node, &path);
    let tree = merged(&node, "docker.io/library/several:1");
    assert!(tree.contains_key("./here") && !tree.contains_key("./foreign"), "{:?}", tree.keys());

    let mut members = Members::new();
    let top = manifest(&mut members, &foreign, &[GZIP], "s390x");
    let path = node.dir.join("share/foreign.tar");
    fs::write(&path, archive_of(&layout_of(members, top, "foreign:1"))).unwrap();
    let error = node.cli(&["image", "import", &path.display().to_string()]).fails(1);
    assert!(error.contains("s390x"), "{error}");
    assert!(!node.cli(&["image", "ls"]).ok().contains("foreign"));
    node.finish();
}

/// Where layers are folders of their own, umoci's one folder for all of them cannot be had: what is expected here is
/// what podman makes; containerd differs in the second case.
#[test]
fn layers_stand_for_themselves() {
    let mut node = Node::new();
    fs::remove_file(node.dir.join("root/images/images.tar")).unwrap();
    node.start();
    // A link to a file of a layer below: containerd and podman refuse it too (the layer may lie on other ones).
    let layers = [layer([dir("d/"), file("d/a", "x")]), layer([dir("d/"), link("d/b", "d/a")])];
    let path = node.dir.join("share/across.tar");
    fs::write(&path, docker_archive("across:1", &layers)).unwrap();
    let error = node.cli(&["image", "import", &path.display().to_string()]).fails(1);
    assert!(error.contains("no such file in this layer"), "{error}");
    assert!(fs::read_dir(node.dir.join("root/store/layers")).unwrap().next().is_none(), "nothing is left of it");

    // A folder that a layer does not list is root's, 0755, also where a layer below says otherwise.
    let layers = [layer([dir("d/").mode(0o700).owner(5, 6), file("d/a", "x")]), layer([file("d/b", "x")])];
    let path = node.dir.join("share/unlisted.tar");
    fs::write(&path, docker_archive("unlisted:1", &layers)).unwrap();
    import(&node, &path);
    let tree = merged(&node, "docker.io/library/unlisted:1");
    assert!(tree.contains_key("./d/a") && tree.contains_key("./d/b"));
    assert_eq!((tree["./d"].mode & 0o7777, tree["./d"].owner), (0o755, (0, 0)));
    node.finish();
}
