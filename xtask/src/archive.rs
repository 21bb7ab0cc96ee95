//! Docker archives (`docker save` format) of one layer.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Writes `out` with an image named `name`: the tree below `rootfs` (owned by root) and this `config`.
pub fn write(out: &Path, name: &str, rootfs: &Path, config: &Value) -> Result<()> {
    let layer = layer(rootfs)?;
    let diff_id = digest(&layer);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
        "history": [{ "created_by": "cargo xtask image" }],
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let layer_name = format!("{diff_id}/layer.tar");
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }]).to_string();
    let staged = out.with_extension("part");
    let mut builder = tar::Builder::new(fs::File::create(&staged).with_context(|| staged.display().to_string())?);
    for (path, bytes) in [
        (&layer_name, layer.as_slice()),
        (&config_name, config.as_bytes()),
        (&"manifest.json".into(), manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes)?;
    }
    builder.into_inner()?.flush()?;
    fs::rename(&staged, out).with_context(|| out.display().to_string())
}

/// The tree as an uncompressed layer. Times are left out, so that the same packages give the same digest.
fn layer(rootfs: &Path) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder, rootfs, Path::new(""))?;
    Ok(builder.into_inner()?)
}

fn add(builder: &mut tar::Builder<Vec<u8>>, rootfs: &Path, below: &Path) -> Result<()> {
    let dir = rootfs.join(below);
    let mut names: Vec<_> = fs::read_dir(&dir)?.map(|e| e.map(|e| e.file_name())).collect::<std::io::Result<_>>()?;
    names.sort();
    for name in names {
        let inside = below.join(&name);
        let path = rootfs.join(&inside);
        let facts = path.symlink_metadata()?;
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&facts);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let added = if facts.is_symlink() {
            builder.append_link(&mut header, &inside, fs::read_link(&path)?)
        } else if facts.is_dir() {
            builder.append_data(&mut header, &inside, std::io::empty())
        } else {
            builder.append_data(&mut header, &inside, fs::File::open(&path)?)
        };
        added.with_context(|| path.display().to_string())?;
        if facts.is_dir() {
            add(builder, rootfs, &inside)?;
        }
    }
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
