//! What the fuzz targets do with bytes where the parsers are nobody else's business: only fuzzing and tests see this, so
//! that each seed, among them what fuzzing has found, is a unit test too.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::recipe::Tar;
use super::seal::{self, ContentHash, Depth, Seal};
use super::unpack::Limits;
use super::{DropIn, ImageStore, document, dropin, reference, registry, trust, unpack};

/// What no answer and no stream may ever hold.
const SECRET: &str = "precious, and outside";
/// The image and the layer that records are of.
const IMAGE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const LAYER: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// A folder of this process for one target at a time.
fn arena(name: &str) -> (PathBuf, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = std::env::temp_dir().join(format!("coracle-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("arena");
    (dir, turn)
}

/// What honest layers of fuzzing stay below.
const LIMITS: Limits = Limits { entries: 1000, bytes: 1 << 20, folders: 1 << 16 };

/// A layer: nothing is ever made outside the destination.
pub fn layer_unpack(bytes: &[u8]) {
    let (dir, _turn) = arena("layer");
    let (canary, dest) = (dir.join("canary"), dir.join("layer"));
    fs::write(&canary, SECRET).expect("canary");
    fs::create_dir(&dest).expect("destination");
    // Refusing is as good as unpacking; what counts is the state of the disk.
    let _ = unpack::layer(bytes, &dest, &LIMITS);
    assert_eq!(fs::read_to_string(&canary).expect("canary"), SECRET);
    assert_eq!(names(&dir), ["canary", "layer"], "something was made outside the destination");
    fs::remove_dir_all(&dest).expect("clean up");
}

/// An archive, packed or not: nothing is made outside the store, and the store is clean afterwards.
pub fn image_archive(bytes: &[u8]) {
    static STORE: OnceLock<ImageStore> = OnceLock::new();
    let (dir, _turn) = arena("archive");
    let root = dir.join("store");
    let store = STORE.get_or_init(|| ImageStore::open_with(&root, LIMITS).expect("store"));
    let (canary, archive) = (dir.join("canary"), dir.join("archive"));
    fs::write(&canary, SECRET).expect("canary");
    fs::write(&archive, bytes).expect("archive");
    let _ = store.import(&archive);
    for image in store.list() {
        store.remove(&image.id, &[]).expect("what was imported can be removed");
    }
    for sub in ["staging", "layers", "images"] {
        let left = names(&root.join(sub));
        // Whole layers of an image that was refused later may stay: they are nobody's until an image names them.
        assert!(sub == "layers" || left.is_empty(), "left in {sub}: {left:?}");
        for name in left {
            let path = root.join(sub).join(name);
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
    assert_eq!(fs::read_to_string(&canary).expect("canary"), SECRET);
    assert_eq!(names(&dir), ["archive", "canary", "store"], "something was made outside the store");
}

/// What is in a folder.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("folder").flatten();
    let mut names: Vec<_> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What a registry answers: challenges, ranges, redirects, tokens, errors, manifests, configurations, lists of signatures.
pub fn registry_answers(bytes: &[u8]) {
    registry::fuzzing::answers(bytes);
    let _ = document::configuration(bytes);
    let _ = trust::listed_signatures(bytes);
}

/// What a person, or a program of theirs, puts on the node: settings of registries, credentials, policies, signatures.
pub fn image_config_files(bytes: &[u8]) {
    let (dir, _turn) = arena("config-files");
    registry::fuzzing::settings(bytes, &dir);
    trust::fuzzing::files(bytes, &dir);
}

/// What the store keeps, after whatever happened to it; and lists of images.
pub fn store_files(bytes: &[u8]) {
    let (dir, _turn) = arena("store-files");
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| folder(&dir));
    for name in dropin::references(bytes).unwrap_or_default() {
        assert_eq!(reference::normalise(&name).ok(), Some(name));
    }
    seals(bytes, folder);
    recipes(bytes, folder, &dir.join("recipe"));
    if bytes.first() == Some(&b'{') {
        records(bytes, &dir);
    }
    assert_eq!(fs::read_to_string(dir.join("secret")).expect("canary"), SECRET);
}

/// A layer's folder with something of everything, and what is not in it beside it.
fn folder(dir: &Path) -> PathBuf {
    let folder = dir.join("folder");
    fs::create_dir_all(folder.join("sub")).expect("folder");
    fs::write(dir.join("secret"), SECRET).expect("canary");
    fs::write(folder.join("a"), "content").expect("file");
    fs::write(folder.join("sub/b"), "other").expect("file");
    for (link, target) in [("out", "../secret"), ("up", "../"), ("round", "round")] {
        let _ = std::os::unix::fs::symlink(target, folder.join(link));
    }
    let _ = rustix::fs::mknodat(rustix::fs::CWD, folder.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0);
    folder
}

fn seals(bytes: &[u8], folder: &Path) {
    let mut hash = ContentHash::default();
    hash.update(bytes);
    let whole = [bytes, &hash.finish().to_le_bytes()].concat();
    for bytes in [bytes.to_vec(), whole] {
        let Ok(seal) = Seal::decode(bytes) else { continue };
        let again = Seal::decode(seal.with_header(&seal.header)).expect("what is written is read");
        assert_eq!(again.header, seal.header);
        for depth in [Depth::Quick, Depth::Thorough] {
            if let Ok(Some(fresh)) = seal::look(folder, &seal, depth, &mut |_| {}).map(|look| look.fresh) {
                assert!(Seal::decode(fresh).is_ok(), "a renewed seal is one");
            }
        }
    }
}

fn recipes(bytes: &[u8], folder: &Path, path: &Path) {
    let packed = [b"recipe1\n", zstd::encode_all(bytes, 1).expect("packed").as_slice()].concat();
    for content in [bytes, &packed] {
        fs::write(path, content).expect("recipe");
        let Ok(tar) = Tar::open(folder, path) else { continue };
        let mut stream = Vec::new();
        let _ = std::io::Read::read_to_end(&mut std::io::Read::take(tar, 4 << 20), &mut stream);
        // The recipe itself may say so: only the folder may not.
        let own = content.windows(SECRET.len()).chain(bytes.windows(SECRET.len())).any(|w| w == SECRET.as_bytes());
        assert!(own || !stream.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "read outside the folder");
    }
}

/// Whatever a record says, the store opens, and what it gives is its own.
fn records(bytes: &[u8], dir: &Path) {
    let root = dir.join("store");
    let _ = fs::remove_dir_all(&root);
    for sub in ["images", "layers", &format!("layers/{LAYER}")] {
        fs::create_dir_all(root.join(sub)).expect("store");
    }
    for record in [format!("images/{IMAGE}.json"), format!("layers/{LAYER}.json"), "dropin.json".into()] {
        fs::write(root.join(record), bytes).expect("record");
    }
    let store = Arc::new(ImageStore::open_with(&root, LIMITS).expect("a store opens whatever its records say"));
    let layers = root.join("layers");
    for image in store.list() {
        assert!(image.layers.iter().all(|layer| layer.parent() == Some(&layers)), "a layer of elsewhere");
        assert!(store.lookup(&image.id).is_some_and(|found| found.id == image.id));
        for name in image.names.iter().chain(&image.digests) {
            let _ = store.lookup(name);
        }
        if let Ok(export) = store.export(std::slice::from_ref(&image.id)) {
            let _ = store.write_export(&export, std::io::sink(), super::blob::Compression::None);
        }
    }
    let _ = store.verify(&[], &mut |_| {});
    let mut drop_in = DropIn::new(&dir.join("drop-in"), store.clone());
    drop_in.scan();
    drop_in.wanted();
    let _ = store.remove(IMAGE, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every seed of a target goes through it.
    fn seeds(target: &str, run: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
        let mut count = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display());
            run(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{}: no seeds", dir.display());
        for name in ["layer", "archive", "config-files", "store-files"] {
            let (dir, _turn) = arena(name);
            fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn seeds_of_fuzzing() {
        seeds("layer_unpack", layer_unpack);
        seeds("image_archive", image_archive);
        seeds("registry_answers", registry_answers);
        seeds("image_config_files", image_config_files);
        seeds("store_files", store_files);
    }
}
