//! Files that say whom to trust: public keys and policies.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A key is some hundred bytes; a file of many is still small.
const LARGEST: u64 = 64 << 10;
/// Opening does not wait.
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// Opens a file; a pipe does not keep everybody waiting.
///
/// # Errors
/// As of opening.
pub fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(NONBLOCK).open(path)
}

/// What is in a file of keys.
///
/// # Errors
/// Why it cannot be used.
pub fn content(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: io::Error| format!("cannot read it: {error}");
    let file = open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err("not a regular file".into());
    }
    check_mode(&metadata)?;
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content).map_err(unreadable)?;
    match content.len() as u64 > LARGEST {
        true => Err(format!("larger than {LARGEST} bytes")),
        false => Ok(content),
    }
}

/// What anybody may write to says nothing of whom to trust.
///
/// # Errors
/// What is wrong with the mode.
pub fn check_mode(metadata: &Metadata) -> Result<(), String> {
    match metadata.mode() & 0o002 {
        0 => Ok(()),
        _ => Err(format!("everybody may write to it (mode {:04o}): chmod o-w", metadata.mode() & 0o7777)),
    }
}
