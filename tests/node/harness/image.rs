//! Images for the tests, as docker-archives: busybox in several guises.

use super::{output, secs};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// An image with busybox in `/bin` and no entry point.
pub const BUSYBOX: &str = "busybox:1";

/// The machine's static busybox.
pub fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|p| p.is_file())
}

/// One image of the test archive: name and the `config` part of its configuration.
fn image_configs() -> Vec<(&'static str, Value)> {
    let env = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "FROM_IMAGE=yes"]);
    vec![
        ("busybox:1", json!({ "Env": env, "Cmd": ["sh"] })),
        ("stop-usr1:1", json!({ "Env": env, "StopSignal": "SIGUSR1" })),
        ("user-1000:1", json!({ "Env": env, "User": "1000:1000" })),
        ("user-named:1", json!({ "Env": env, "User": "app" })),
        (
            "entry:1",
            json!({ "Env": env, "Entrypoint": ["echo", "entry"], "Cmd": ["default"], "WorkingDir": "/home/app" }),
        ),
    ]
}

/// A docker-archive with all test images, made once per run.
pub fn test_images() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let layer = busybox_layer();
        docker_archive("images", &image_configs(), &layer)
    })
}

/// An archive with one image named `name`, made of the busybox layer.
pub fn image_archive(name: &'static str) -> PathBuf {
    let file = name.replace([':', '/'], "-");
    docker_archive(&file, &[(name, json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] }))], &busybox_layer())
}

/// A docker-archive of images that all have one layer.
pub fn docker_archive(file: &str, images: &[(&str, Value)], layer: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{file}.tar"));
    // Other runs may be reading it.
    let staged = path.with_extension(format!("{}-{:?}", std::process::id(), std::thread::current().id()));
    let mut builder = tar::Builder::new(fs::File::create(&staged).expect("archive"));
    let digest = hex(&Sha256::digest(layer));
    let layer_name = format!("{digest}/layer.tar");
    append(&mut builder, &layer_name, layer, 0o644);
    let mut manifest = Vec::new();
    for (name, config) in images {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
            // A comment per image keeps their IDs apart.
            "history": [{ "created_by": format!("test image {name}") }],
        })
        .to_string();
        let config_name = format!("{}.json", hex(&Sha256::digest(config.as_bytes())));
        append(&mut builder, &config_name, config.as_bytes(), 0o644);
        manifest.push(json!({ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }));
    }
    append(&mut builder, "manifest.json", Value::from(manifest).to_string().as_bytes(), 0o644);
    builder.into_inner().expect("archive");
    fs::rename(staged, &path).expect("archive");
    path
}

/// A layer with busybox, a link per applet, users and a few folders.
fn busybox_layer() -> Vec<u8> {
    let program = busybox().expect("busybox");
    let applets = output(Command::new(&program).arg("--list"), b"", secs(10)).ok();
    let mut builder = tar::Builder::new(Vec::new());
    for (dir, mode) in [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("home", 0o755), ("home/app", 0o755)] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        builder.append_data(&mut header, format!("{dir}/"), std::io::empty()).expect("folder");
    }
    append(&mut builder, "bin/busybox", &fs::read(&program).expect("busybox"), 0o755);
    for applet in applets.lines().filter(|a| *a != "busybox" && !a.contains('/')) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        builder.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("link");
    }
    let users = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:1234:app:/home/app:/bin/sh\n";
    append(&mut builder, "etc/passwd", users.as_bytes(), 0o644);
    append(&mut builder, "etc/group", b"root:x:0:\napp:x:1234:\nextra:x:4321:app\n", 0o644);
    builder.into_inner().expect("layer")
}

/// Adds a file to an archive.
pub fn append<W: Write>(builder: &mut tar::Builder<W>, path: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    builder.append_data(&mut header, path, bytes).expect("archive entry");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
