//! Any bytes taken for an image archive, packed or not, are imported or refused; nothing is made outside the store, and
//! the store is clean afterwards.
#![no_main]

use coracle::image::ImageStore;
use coracle::image::unpack::Limits;
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// A store of this process, with a canary beside it. `cargo xtask fuzz` gives a folder in memory, and removes it.
fn arena() -> &'static (PathBuf, ImageStore) {
    static ARENA: OnceLock<(PathBuf, ImageStore)> = OnceLock::new();
    ARENA.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("archive-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("arena");
        fs::write(dir.join("canary"), "untouched").expect("canary");
        let limits = Limits { entries: 1000, bytes: 1 << 20, folders: 1 << 16 };
        let store = ImageStore::open_with(&dir.join("store"), limits).expect("store");
        (dir, store)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let (dir, store) = arena();
    let archive = dir.join("archive");
    fs::write(&archive, bytes).expect("archive");
    // Refusing is as good as importing; what counts is the state of the store.
    let _ = store.import(&archive);
    for image in store.list() {
        store.remove(&image.id, &[]).expect("what was imported can be removed");
    }
    for sub in ["staging", "layers", "images"] {
        let left: Vec<_> = fs::read_dir(dir.join("store").join(sub)).expect("store").flatten().collect();
        // Whole layers of an image that was refused later may stay: they are nobody's until an image names them.
        assert!(sub == "layers" || left.is_empty(), "left in {sub}: {left:?}");
        for entry in left {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
    assert_eq!(fs::read_to_string(dir.join("canary")).expect("canary"), "untouched");
    let names: Vec<_> = fs::read_dir(dir).expect("arena").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 3, "something was made outside the store: {names:?}");
});
