//! What hostile images try: to write outside the store, to fill the machine, to hang or end the agent. Every one of them
//! is either refused in clear words or does what it does inside its own layer.

use crate::harness::{Node, output, secs};
use crate::shapes::{
    GZIP, Item, PLAIN, block_device, char_device, dir, docker_archive, fifo, file, gzip, item, layer, layers_of, link,
    oci_layout, symlink, tree, write_members,
};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink as make_symlink;
use std::path::Path;
use std::process::Command;

/// What must come of it.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// Refused, with these words.
    Refused(&'static str),
    /// Unpacked, with all it does inside.
    Inside,
    /// Either: what counts is that nothing else happens.
    Any,
}
use End::{Any, Inside, Refused};

type Case = (&'static str, Vec<Item>, End);

/// The same of several layers, bottom first.
pub type Layered = (&'static str, Vec<Vec<Item>>, End);

/// All hostile layers there are.
pub fn cases(canary: &Path) -> Vec<Layered> {
    let canary = canary.display().to_string();
    let alone = [paths(&canary), numbers(), extensions(), names_and_devices()].into_iter().flatten();
    alone.map(|(name, items, end)| (name, vec![items], end)).chain(across(&canary)).collect()
}

/// A size in the GNU form of large numbers.
fn binary(number: i128) -> [u8; 12] {
    let bytes = number.to_be_bytes();
    let mut field = [0; 12];
    field.copy_from_slice(&bytes[4..]);
    field[0] |= 0x80;
    field
}

const SIZE: usize = 124;
const MODIFIED: usize = 136;
const UID: usize = 108;

fn paths(canary: &str) -> Vec<Case> {
    let victim = format!("{canary}/file");
    let up = format!("{}share/canary/file", "../".repeat(5));
    vec![
        ("dot-dot", vec![file(&up, "bad")], Refused("'..'")),
        ("dot-dot behind a folder", vec![dir("a/"), file(format!("a/../{up}"), "bad")], Refused("'..'")),
        ("dot-dot as a PAX path", vec![file("x", "bad").pax("path", &up)], Refused("'..'")),
        ("an absolute name", vec![file(&victim, "bad")], Inside),
        ("an absolute PAX path", vec![file("x", "bad").pax("path", &victim)], Inside),
        ("through a symlink", vec![symlink("l", canary), file("l/file", "bad")], Inside),
        ("through a symlink to /", vec![symlink("l", "/"), file(format!("l{victim}"), "bad")], Inside),
        (
            "through a relative symlink",
            vec![symlink("l", "../../../../../share/canary"), file("l/file", "bad")],
            Inside,
        ),
        (
            "through a chain",
            vec![symlink("a", "b"), symlink("b", "c/d"), dir("c/"), symlink("c/d", canary), file("a/file", "bad")],
            Inside,
        ),
        ("in place of a symlink", vec![symlink("f", &victim), file("f", "bad")], Inside),
        ("a folder in place of a symlink", vec![symlink("d", canary), dir("d/").mode(0), file("d/new", "bad")], Inside),
        ("owner of a symlink's target", vec![symlink("s", &victim).owner(7, 7).mode(0)], Inside),
        ("device behind a symlink", vec![symlink("l", canary), char_device("l/null", 1, 3)], Inside),
        (
            "links in a circle",
            vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "bad")],
            Refused("symbolic links"),
        ),
        ("a link to itself", vec![symlink("a", "a/a"), file("a/x", "bad")], Refused("symbolic links")),
        ("hard link to outside", vec![link("h", &victim), file("h", "bad")], Refused("no such file in this layer")),
        ("hard link up", vec![link("h", &up)], Refused("'..'")),
        (
            "hard link by a symlink",
            vec![symlink("l", canary), link("h", "l/file")],
            Refused("no such file in this layer"),
        ),
        ("hard link to a symlink", vec![symlink("s", &victim), link("h", "s"), file("h", "bad")], Inside),
        ("hard link to a folder", vec![dir("d/"), link("h", "d")], Refused("not a file")),
        ("hard link to nothing", vec![link("h", "")], Refused("not a file")),
        ("symlink to nothing", vec![symlink("s", "")], Refused("symlink without a valid target")),
        ("symlink of 64 KiB", vec![symlink("s", "x".repeat(1 << 16))], Refused("too long")),
        ("a name of 256 bytes", vec![file("n".repeat(256), "x")], Refused("longer than 255")),
        ("a path of 5000 bytes", vec![file("d/".repeat(2500) + "x", "x")], Refused("longer than 4095")),
        ("a NUL in a PAX path", vec![file("x", "x").pax("path", "a\0b")], Refused("NUL")),
        ("no name", vec![file("", "x")], Refused("root of the layer is not a directory")),
        ("the root as a file", vec![file("./", "x").raw(156, "2")], Refused("root of the layer is not a directory")),
        ("through a file", vec![file("f", ""), file("f/x", "bad")], Refused("Not a directory")),
    ]
}

fn numbers() -> Vec<Case> {
    let sized = |field: [u8; 12]| vec![file("f", "x").raw(SIZE, field)];
    vec![
        ("a negative size", sized(binary(-1)), Refused("size is not a number")),
        ("a size of 2^64", sized(binary(1 << 64)), Refused("size is not a number")),
        ("a size of 2^64 - 1", sized(binary((1 << 64) - 1)), Refused("18446744073709551615 bytes")),
        ("a size of 2^63", sized(binary(1 << 63)), Refused("bytes in a layer")),
        ("a size that is not octal", sized(*b"0000000009x\0"), Refused("size is not a number")),
        ("a size of all sevens", sized(*b"777777777777"), Refused("ends within")),
        ("a negative PAX size", vec![file("f", "x").pax("size", "-1")], Refused("malformed PAX record")),
        ("a PAX size of 10^20", vec![file("f", "x").pax("size", "1".repeat(21))], Refused("malformed PAX record")),
        (
            "a PAX size of eight exabytes",
            vec![file("f", "x").pax("size", i64::MAX.to_string())],
            Refused("bytes in a layer"),
        ),
        ("a PAX size that swallows the end", vec![file("f", "x").pax("size", "1000")], Any),
        (
            "a long name of a terabyte",
            vec![item(b'L', "x", 0).raw(SIZE, binary(1 << 40))],
            Refused("extension header of"),
        ),
        (
            "an extension that is too large",
            vec![item(b'x', "x", 0).raw(SIZE, binary(1 << 40))],
            Refused("extension header of"),
        ),
        ("a negative owner", vec![file("f", "x").raw(UID, [0xff; 8])], Refused("uid is not a number")),
        (
            "an owner that means none",
            vec![file("f", "x").owner(0xffff_ffff, 0)],
            Refused("no such owner: 4294967295:0"),
        ),
        ("a group that means none", vec![dir("d/").pax("gid", "4294967295")], Refused("no such owner: 0:4294967295")),
        ("an owner beyond all", vec![symlink("s", "x").raw(UID, *b"\x80\0\0\x01\0\0\0\0")], Refused("no such owner")),
        ("a time of 2^80", vec![file("f", "x").raw(MODIFIED, binary(1 << 80))], Refused("mtime is not a number")),
        ("the last of all times", vec![file("f", "x").pax("mtime", i64::MAX.to_string())], Any),
        ("a sparse file of 2^62 bytes", vec![sparse(1 << 62, "0,0")], Refused("bytes in the sparse files")),
        ("a sparse file of 8 TiB", vec![sparse(8 << 40, "0,0")], Refused("bytes in the sparse files")),
        (
            "sparse files that together are too large",
            (0..300).map(|n| Item::pax(sparse(1 << 30, "0,0"), "path", format!("{n}"))).collect(),
            Refused("bytes in the sparse files"),
        ),
        ("sparse pieces that overlap", vec![sparse(100, "0,1,0,1")], Refused("out of order")),
        ("sparse pieces behind the end", vec![sparse(1, "4096,2")], Refused("out of order")),
        ("sparse pieces that overflow", vec![sparse(100, "18446744073709551615,2")], Refused("out of order")),
        ("half a million sparse pieces", vec![sparse(100, &"1,".repeat(500_000))], Refused("too many pieces")),
        (
            "sparse format 7.7",
            vec![sparse(100, "").pax("GNU.sparse.major", "7").pax("GNU.sparse.minor", "7")],
            Refused("sparse format 7.7"),
        ),
        ("a device that cannot be", vec![char_device("d", 4097, 3)], Refused("no such device number")),
    ]
}

fn sparse(size: u64, map: &str) -> Item {
    file("sparse", "").pax("GNU.sparse.size", size.to_string()).pax("GNU.sparse.map", map)
}

fn extensions() -> Vec<Case> {
    let names = |flag: u8, count: usize| (0..count).map(move |_| item(flag, "././@LongLink", 0));
    let many = (0..30_000).fold(file("f", "x"), |f, i| f.xattr(&format!("user.{i}"), "x"));
    vec![
        (
            "long names without end",
            names(b'L', 40).chain([file("f", "x")]).collect(),
            Refused("too many extension headers"),
        ),
        (
            "long links without end",
            names(b'K', 40).chain([file("f", "x")]).collect(),
            Refused("too many extension headers"),
        ),
        (
            "global records without end",
            names(b'g', 40).chain([file("f", "x")]).collect(),
            Refused("too many extension headers"),
        ),
        ("nothing behind an extension", names(b'L', 1).collect(), Refused("ends after an extension header")),
        ("thirty thousand attributes", vec![many], Refused("more than 1024 attributes")),
        (
            "an attribute of 900 KB",
            vec![file("f", "x").xattr("user.x", vec![b'x'; 900_000])],
            Refused("set the attributes of"),
        ),
        ("an attribute without a name", vec![file("f", "x").xattr("", "x")], Any),
        (
            "overlayfs' own attributes",
            vec![
                dir("d/").xattr("trusted.overlay.redirect", "/").xattr("trusted.overlay.opaque", "y"),
                dir("e/").xattr("trusted.overlay.opaque", "x").xattr("trusted.overlay.overlay.opaque", "y"),
                file("f", "x").xattr("trusted.overlay.metacopy", "").xattr("user.overlay.redirect", "/etc/shadow"),
                file("g", "").xattr("trusted.overlay.whiteout", "y").xattr("user.overlay.whiteout", "y"),
                dir("./").xattr("trusted.overlay.origin", "x").xattr("trusted.overlay.impure", "y"),
            ],
            Inside,
        ),
        ("a path of a megabyte", vec![file("f", "x").pax("path", "x".repeat(1 << 20))], Refused("extension header of")),
        ("a path of 900 KB", vec![file("f", "x").pax("path", "x/".repeat(450_000))], Refused("longer than 4095")),
        ("a type of its own", vec![item(b'Z', "z", 0)], Refused("unknown type 'Z'")),
    ]
}

fn names_and_devices() -> Vec<Case> {
    vec![
        ("a file in place of a pipe", vec![fifo("p"), file("p", "not into it")], Inside),
        ("a file in place of a device", vec![char_device("d", 1, 3), file("d", "not into it")], Inside),
        ("a hard link to a device, written", vec![char_device("d", 1, 3), link("h", "d"), file("h", "x")], Inside),
        ("a whiteout as a device", vec![char_device("w", 0, 0), link("h", "w")], Refused("not a file")),
        ("through a whiteout as a device", vec![char_device("w", 0, 0), file("w/x", "x")], Inside),
        ("a whiteout of nothing", vec![file(".wh.", "")], Refused("whiteout of nothing")),
        ("a whiteout of the folder", vec![file("d/.wh..", "")], Refused("whiteout of nothing")),
        ("a whiteout of the folder above", vec![file("d/.wh...", "")], Refused("whiteout of nothing")),
        ("a whiteout as a folder", vec![dir(".wh.w/"), file(".wh.w/x", "x")], Refused("path through a whiteout")),
        ("a whiteout with content", vec![file(".wh.w", "content")], Inside),
        ("a whiteout behind a symlink", vec![symlink("l", "/"), file("l/.wh.etc", "")], Inside),
        ("a link to a whiteout", vec![file(".wh.w", ""), link("h", ".wh.w")], Refused("no such file in this layer")),
        ("a link named as a whiteout", vec![file("f", "x"), link(".wh.f", "f")], Inside),
        ("opaque as a symlink", vec![symlink(".wh..wh..opq", "/etc")], Inside),
        ("whiteout of a whiteout", vec![file(".wh..wh.x", ""), file(".wh..wh..wh.x", "")], Inside),
        (
            "one name a thousand times",
            (0..1000)
                .map(|i| match i % 4 {
                    0 => dir("n/"),
                    1 => symlink("n", "/"),
                    2 => fifo("n"),
                    _ => file("n", "x"),
                })
                .collect(),
            Inside,
        ),
        (
            "a whiteout in a whiteout of the folder above",
            vec![file(".wh.../x", "")],
            Refused("path through a whiteout"),
        ),
        ("an opaque root", vec![file(".wh..wh..opq", ""), file("./.wh..wh..opq", "")], Inside),
        ("set-user-ID for everybody", vec![file("s", "x").mode(0o7777), dir("t/").mode(0o7777)], Inside),
        ("disks and memory", vec![block_device("sda", 8, 0), char_device("mem", 1, 1), link("m", "mem")], Inside),
        (
            "names that are no text",
            vec![dir(b"\xff/"), file(b"\xff/\xfe\n", "x"), file("\x1b[2J\r\n", ""), file(b".wh.\x80\x9b", "")],
            Inside,
        ),
        ("an error in such a name", vec![link(b"\x1b[2J\n\xff", "nothing")], Refused(r#""\u{1b}[2J\n"#)),
        ("two thousand folders deep", vec![dir("d/".repeat(2000)), file("d/".repeat(2000) + "x", "x")], Inside),
        ("folders of folders, deeper than any path", deep(), Refused("File name too long")),
    ]
}

/// Layers that prepare what the ones above them do.
fn across(canary: &str) -> Vec<Layered> {
    let trap = || vec![symlink("l", canary)];
    vec![
        ("through a symlink of the layer below", vec![trap(), vec![file("l/file", "bad")]], Inside),
        ("a whiteout through it", vec![trap(), vec![file("l/.wh.file", "")]], Inside),
        ("opaque through it", vec![trap(), vec![file("l/.wh..wh..opq", "")]], Inside),
        ("an owner through it", vec![trap(), vec![dir("l/").owner(7, 7).mode(0)]], Inside),
        ("a hard link through it", vec![trap(), vec![link("h", "l/file")]], Refused("no such file in this layer")),
        (
            "a hard link to the layer below",
            vec![vec![file("f", "x")], vec![link("h", "f"), file("h", "bad")]],
            Refused("no such file in this layer"),
        ),
        (
            "a parent that is swapped and swapped back",
            vec![
                vec![dir("l/"), file("l/file", "x")],
                trap(),
                vec![file("l/file", "bad")],
                vec![file(".wh.l", ""), symlink("l", "/")],
                vec![file(format!("l{canary}/file"), "bad")],
            ],
            Inside,
        ),
        (
            "a device in place of a folder, and back",
            vec![vec![dir("d/"), file("d/x", "x")], vec![char_device("d", 1, 3)], vec![file("d/x", "y")]],
            Inside,
        ),
        ("the same layer again and again", vec![trap(), trap(), vec![file("l/file", "bad")], trap()], Inside),
    ]
}

/// Attributes by which overlayfs would be told something, of everything in a layer.
fn overlay_attributes(layer: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut ahead = vec![layer.to_path_buf()];
    while let Some(path) = ahead.pop() {
        let mut names = vec![0; 4096];
        // Paths longer than the kernel takes are of no interest here.
        let size = rustix::fs::llistxattr(&path, &mut names).unwrap_or(0);
        let names = names[..size].split(|b| *b == 0).map(String::from_utf8_lossy);
        found.extend(
            names.filter(|name| name.contains(".overlay.")).map(|name| format!("{name} of {}", path.display())),
        );
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            ahead.extend(fs::read_dir(&path).into_iter().flatten().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// Symlinks make longer paths than the kernel takes.
fn deep() -> Vec<Item> {
    let path = "d/".repeat(1500);
    let mut items = vec![dir(&path)];
    for hop in 1..6 {
        let before = if hop == 1 { String::new() } else { format!("l{}/", hop - 1) };
        items.push(symlink(format!("l{hop}"), format!("{before}{path}")));
        items.push(dir(format!("l{hop}/{path}")));
    }
    items
}

#[test]
fn hostile_layers_do_nothing_outside_their_own() {
    let mut node = Node::new();
    fs::remove_file(node.dir.join("root/images/images.tar")).unwrap();
    let canary = node.dir.join("share/canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "precious").unwrap();
    node.start();
    let agent = node.agent_pid();
    let before = tree(&canary);
    let around = || {
        let mut names: Vec<_> = ["", "root", "share", "root/store"]
            .iter()
            .flat_map(|sub| fs::read_dir(node.dir.join(sub)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names
    };
    let archive = node.dir.join("share/hostile.tar");
    fs::write(&archive, "").unwrap();
    let (beside, null) = (around(), fs::symlink_metadata("/dev/null").unwrap());
    let mut wrong = Vec::new();
    for (name, layers, end) in cases(&canary) {
        let count = layers.len();
        let layers: Vec<_> = layers.into_iter().map(layer).collect();
        fs::write(&archive, docker_archive("hostile:1", &layers)).unwrap();
        let out = node.cli(&["image", "import", &archive.display().to_string()]);
        match (end, out.code) {
            (Any, _) | (Inside, Some(0)) => {}
            // In which layer, and what of it.
            (Refused(words), Some(1))
                if out.stderr.contains(words) && out.stderr.contains(&format!("{}/layer.tar: ", count - 1)) =>
            {
                let places = ["entry \"", "malformed tar at byte ", "more than ", "the archive ends within a member"];
                if !places.iter().any(|place| out.stderr.contains(place)) || out.stderr.trim_end().lines().count() > 1 {
                    wrong.push(format!("{name}: {}", out.stderr));
                }
            }
            (Refused(words), _) => wrong.push(format!("{name}: not {words:?}, but {:?} {}", out.code, out.stderr)),
            (Inside, _) => wrong.push(format!("{name}: {:?} {}", out.code, out.stderr)),
        }
        if out.code == Some(0) {
            let mut told: Vec<_> =
                layers_of(&node, "docker.io/library/hostile:1").iter().flat_map(|l| overlay_attributes(l)).collect();
            // But for what whiteouts say, and the mark of folders that nobody listed, which is ours.
            told.retain(|name| !name.starts_with("trusted.overlay.coracle.unlisted of "));
            assert!(told.iter().all(|name| name.starts_with("trusted.overlay.opaque of ")), "{name}: {told:?}");
            assert!(told.is_empty() || !name.starts_with("overlayfs"), "{name}: {told:?}");
            node.cli(&["image", "rm", "hostile:1"]).ok();
        }
        assert_eq!(tree(&canary), before, "{name}");
        assert_eq!(around(), beside, "{name}");
        for sub in ["staging", "layers", "images"] {
            let left = fs::read_dir(node.dir.join("root/store").join(sub)).unwrap().count();
            assert_eq!(left, 0, "{name}: {sub}");
        }
    }
    use std::os::unix::fs::MetadataExt;
    let after = fs::symlink_metadata("/dev/null").unwrap();
    assert_eq!((after.mode(), after.uid(), after.rdev()), (null.mode(), null.uid(), null.rdev()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(node.agent_pid(), agent);
    node.finish();
}

/// A zstd frame that wants 2 GiB of memory for its window, with one block of `data`.
fn wide_zstd(data: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3];
    frame.extend_from_slice(&((data.len() as u32) << 3 | 1).to_le_bytes()[..3]);
    frame.extend_from_slice(data);
    frame
}

#[test]
fn hostile_archives_are_refused_in_clear_words() {
    let mut node = Node::new();
    fs::remove_file(node.dir.join("root/images/images.tar")).unwrap();
    let canary = node.dir.join("share/canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "precious").unwrap();
    let before = tree(&canary);
    node.start();
    let agent = node.agent_pid();
    let good = [layer([file("f", "x")])];
    let manifest = |layers: serde_json::Value, config: &str| {
        let manifest = json!([{ "Config": config, "RepoTags": ["hostile:1"], "Layers": layers }]);
        layer([
            file("manifest.json", manifest.to_string()),
            symlink("config.json", canary.join("file").display().to_string()),
        ])
    };
    let secret = canary.join("file").display().to_string();
    let nested = format!("[{}1{}]", "[".repeat(100_000), "]".repeat(100_000));
    let whole = docker_archive("hostile:1", &good);
    let mut flipped = gzip(&whole);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let tar = |name: &str, bytes: Vec<u8>| {
        let path = node.dir.join("share").join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let folder = |name: &str, spoil: &dyn Fn(&Path)| {
        let path = node.dir.join("share").join(name);
        write_members(&path, &oci_layout("hostile:1", &good, &[GZIP, PLAIN]));
        spoil(&path);
        path
    };
    let each_blob = |path: &Path, with: &dyn Fn(&Path)| {
        for entry in fs::read_dir(path.join("blobs/sha256")).unwrap() {
            let blob = entry.unwrap().path();
            fs::remove_file(&blob).unwrap();
            with(&blob);
        }
    };
    let make_fifo = |path: &Path| {
        output(Command::new("mkfifo").arg(path), b"", secs(5)).ok();
    };
    let pipe = node.dir.join("share/pipe.tar");
    make_fifo(&pipe);
    let cases = [
        ("a document outside", tar("a.tar", manifest(json!([]), &secret)), "canary/file: missing"),
        (
            "a document up and out",
            tar("b.tar", manifest(json!([]), "../../../../etc/passwd")),
            "../../../../etc/passwd: missing",
        ),
        ("a document by a symlink", tar("c.tar", manifest(json!([]), "config.json")), "config.json: missing"),
        (
            "layers that are no list",
            tar("d.tar", manifest(json!({ "0": 1 }), "c")),
            "manifest.json: cannot parse image list: invalid type: map",
        ),
        (
            "documents nested deeply",
            tar("e.tar", layer([file("manifest.json", &nested)])),
            "manifest.json: cannot parse image list",
        ),
        (
            "an index nested deeply",
            tar("f.tar", layer([file("index.json", &nested), file("oci-layout", "{}")])),
            "index.json: cannot parse index",
        ),
        ("nothing", tar("g.tar", Vec::new()), "the file is empty"),
        ("zeros", tar("h.tar", vec![0; 4096]), "neither manifest.json nor index.json in it"),
        (
            "noise",
            tar("i.tar", (0..20_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect()),
            "malformed tar at byte 0: wrong header checksum",
        ),
        (
            "a gzip that breaks off",
            tar("j.tar", gzip(&whole)[..100].to_vec()),
            "archive: cannot read: incomplete deflate stream",
        ),
        ("a gzip with a flipped bit", tar("k.tar", flipped), "cannot read: corrupt gzip stream"),
        ("a zstd window of 2 GiB", tar("l.tar", wide_zstd(&whole)), "cannot read: Frame requires too much memory"),
        ("bzip2", tar("m.tar", b"BZh91AY&SY".to_vec()), "bzip2 compression is not supported"),
        ("a pipe", pipe, "neither a file nor a folder"),
        ("a device", "/dev/zero".into(), "/dev/zero: neither a file nor a folder"),
        (
            "blobs that lead outside",
            folder("n", &|path| each_blob(path, &|blob| make_symlink(&secret, blob).unwrap())),
            ": leads out of the folder",
        ),
        (
            "blobs that are pipes",
            folder("o", &|path| each_blob(path, &|blob| make_fifo(blob))),
            ": cannot read: not a regular file",
        ),
        (
            "blobs that are folders",
            folder("p", &|path| each_blob(path, &|blob| fs::create_dir(blob).unwrap())),
            ": cannot read: not a regular file",
        ),
        (
            "an index that is a pipe",
            folder("q", &|path| {
                fs::remove_file(path.join("index.json")).unwrap();
                make_fifo(&path.join("index.json"));
            }),
            "index.json: cannot read: not a regular file",
        ),
        (
            "an index that leads outside",
            folder("r", &|path| {
                fs::remove_file(path.join("index.json")).unwrap();
                make_symlink(&secret, path.join("index.json")).unwrap();
            }),
            "index.json: leads out of the folder",
        ),
    ];
    for (name, path, words) in cases {
        let out = node.cli(&["image", "import", &path.display().to_string()]);
        assert!(out.code == Some(1) && out.stderr.contains(words), "{name}: not {words:?}: {out:?}");
        assert!(!out.stderr.contains("precious"), "{name}: {}", out.stderr);
        assert_eq!(tree(&canary), before, "{name}");
    }
    assert_eq!(fs::read_dir(node.dir.join("root/store/staging")).unwrap().count(), 0);
    assert_eq!(node.agent_pid(), agent);
    // And the good one is good.
    let path = tar("good.tar", whole);
    node.cli(&["image", "import", &path.display().to_string()]).ok();
    assert_eq!(layers_of(&node, "docker.io/library/hostile:1").len(), 1);
    node.finish();
}
