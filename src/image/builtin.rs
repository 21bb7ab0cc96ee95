//! The image in every binary: this program itself, as a small web page. Demonstrations and smoke tests need no archive.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::ingest::NewImage;
use super::{Digest, Error, Image, ImageStore, Origin, document};
use crate::store;

/// Full name of the image, with this program's version as its tag.
pub const BUILTIN: &str = concat!("coracle.dev/hello:", env!("CARGO_PKG_VERSION"));

const EXECUTABLE: &str = "/proc/self/exe";
const PASSWD: &str = "root:x:0:0:root:/:/coracle\nnobody:x:65534:65534:nobody:/:/coracle\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// Which binary the image was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Source {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    image: Digest,
}

/// Makes the image of the running binary, unless it was made from this very file before.
pub(super) fn ensure(store: &ImageStore, made_from: &mut Option<Source>) -> Result<Arc<Image>, Error> {
    // Opened once: what is described is what is copied, even if the file is replaced meanwhile.
    let file = File::open(EXECUTABLE).map_err(Error::io("open", EXECUTABLE))?;
    let metadata = file.metadata().map_err(Error::io("open", EXECUTABLE))?;
    let record = store.root().join("builtin.json");
    if made_from.is_none() {
        // A damaged record only means that the image is made again.
        *made_from = store::read(&record).unwrap_or_default();
    }
    let same = |source: &&Source| {
        (source.device, source.inode, source.size) == (metadata.dev(), metadata.ino(), metadata.size())
            && source.modified == (metadata.mtime(), metadata.mtime_nsec())
    };
    if let Some(source) = made_from.as_ref().filter(same)
        && let Some(image) = store.list().into_iter().find(|image| image.id == source.image.as_str())
        && image.names.iter().any(|name| name == BUILTIN)
        && !store.is_incomplete(&image)
    {
        return Ok(image);
    }
    let ingest = store.ingest()?;
    let layer = ingest.layer(layer(file, metadata.size())?, None, None, store.limits())?;
    let config = json!({
        "architecture": document::architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/coracle", "hello"],
            "Env": ["PATH=/"],
            "WorkingDir": "/",
            "ExposedPorts": { "8080/tcp": {} },
        },
        "rootfs": { "type": "layers", "diff_ids": [layer.diff_id.as_str()] },
    });
    let config = config.to_string();
    let id = ingest.keep_configuration(config.as_bytes())?;
    let config = document::configuration(config.as_bytes())?;
    let image = ingest.commit(NewImage {
        id: id.clone(),
        names: vec![BUILTIN.into()],
        digests: Vec::new(),
        config,
        origin: Some(Origin::BuiltIn),
        verified: Vec::new(),
        pinned: true,
    })?;
    let source = Source {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        image: id,
    };
    store::write(&record, &source, 0o600)?;
    *made_from = Some(source);
    Ok(image)
}

/// The layer as a tar stream, so that it takes the same way as any other.
fn layer(executable: File, size: u64) -> Result<impl Read + Send, Error> {
    let failed = |source| Error::Io { action: "describe", path: EXECUTABLE.into(), source };
    let header = |path: &str, kind: tar::EntryType, mode: u32, size: u64| -> io::Result<Vec<u8>> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path)?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        Ok(header.as_bytes().to_vec())
    };
    let padding = |size: u64| vec![0; (size.next_multiple_of(512) - size) as usize];
    let mut before = Vec::new();
    for (path, mode) in [("./", 0o755), ("etc/", 0o755), ("tmp/", 0o1777)] {
        before.extend(header(path, tar::EntryType::Directory, mode, 0).map_err(failed)?);
    }
    for (path, content) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
        before.extend(header(path, tar::EntryType::Regular, 0o644, content.len() as u64).map_err(failed)?);
        before.extend(content.as_bytes());
        before.extend(padding(content.len() as u64));
    }
    before.extend(header("coracle", tar::EntryType::Regular, 0o755, size).map_err(failed)?);
    let mut after = padding(size);
    after.resize(after.len() + 1024, 0);
    Ok(Cursor::new(before).chain(executable.take(size)).chain(Cursor::new(after)))
}
