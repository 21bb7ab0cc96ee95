//! Any bytes taken for a layer are unpacked or refused; nothing is ever made outside the destination.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// A folder of this process, with a canary beside the destination. `cargo xtask fuzz` gives one in memory, and removes it.
fn arena() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("layer-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("arena");
        fs::write(dir.join("canary"), "untouched").expect("canary");
        dir
    })
}

fuzz_target!(|bytes: &[u8]| {
    let dir = arena();
    let dest = dir.join("layer");
    fs::create_dir(&dest).expect("destination");
    let limits = coracle::image::unpack::Limits { entries: 1000, bytes: 1 << 20, folders: 1 << 16 };
    // Refusing is as good as unpacking; what counts is the state of the disk.
    let _ = coracle::image::unpack::layer(bytes, &dest, &limits);
    assert_eq!(fs::read_to_string(dir.join("canary")).expect("canary"), "untouched");
    let names: Vec<_> = fs::read_dir(dir).expect("arena").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.len(), 2, "something was made outside the destination: {names:?}");
    fs::remove_dir_all(&dest).expect("clean up");
});
