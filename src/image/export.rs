//! Images as an archive that docker, podman, containerd, skopeo and this program read: an OCI layout in a tar, with docker's
//! `manifest.json` beside it.
//!
//! The layers are the tar streams that came in, byte for byte, and the configurations are as they were: diff IDs and image
//! IDs stay the same, and the same images make the same archive every time. Layers are not packed one by one, as their
//! digests would be others then; the archive as a whole can be.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

use serde_json::{Value, json};

use super::blob::{Compression, Hashing};
use super::tarball::header;
use super::{Digest, Error, Image, ImageStore};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const BLOCK: u64 = 512;
const REGULAR: tar::EntryType = tar::EntryType::Regular;
const FILE_MODE: u32 = 0o644;
const BUFFER: usize = 256 << 10;
/// As every tool does by itself: nearly all of the gain for a fraction of the time.
const ZSTD_LEVEL: i32 = 3;

/// Opens the tar stream of a layer.
type Open<'a, 'l> = &'a dyn Fn(&Digest) -> Result<Box<dyn Read + 'l>, Error>;

/// What an archive of images consists of.
#[derive(Debug)]
pub struct Export {
    /// Members and their content, in order.
    documents: Vec<(String, Vec<u8>)>,
    /// Layers that follow, and their bytes.
    layers: Vec<(Digest, u64)>,
}

/// An image, and its configuration as it came.
struct Part {
    image: Arc<Image>,
    configuration: Vec<u8>,
}

impl ImageStore {
    /// Prepares an archive of these images, under all their names. Every layer is read once, so that what is wrong is known
    /// before the first byte is written.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Document`] for an image whose layers or configuration cannot be given back as they
    /// came; [`Error::Mismatch`] for a layer that is damaged.
    pub fn export(&self, references: &[String]) -> Result<Export, Error> {
        let mut parts: BTreeMap<String, Part> = BTreeMap::new();
        for reference in references {
            let image = self.resolve(reference).ok_or_else(|| Error::NotFound { reference: reference.clone() })?;
            let configuration = self.configuration_of(&image)?;
            parts.insert(image.id.clone(), Part { image, configuration });
        }
        Export::of(&parts.into_values().collect::<Vec<_>>(), &|diff_id| self.open_layer(diff_id))
    }

    /// Writes what [`ImageStore::export`] has prepared.
    ///
    /// # Errors
    /// As writing; what has become of a layer meanwhile. What was written is of no use then.
    pub fn write_export(&self, export: &Export, out: impl Write, packing: Compression) -> Result<(), Error> {
        export.write(&|diff_id| self.open_layer(diff_id), out, packing)
    }

    fn open_layer(&self, diff_id: &Digest) -> Result<Box<dyn Read + '_>, Error> {
        Ok(Box::new(self.layer_tar(diff_id)?))
    }

    /// The configuration as it came: only that has the image's ID for its digest.
    fn configuration_of(&self, image: &Image) -> Result<Vec<u8>, Error> {
        let id: Digest = image.id.parse()?;
        let what = match self.kept_configuration(&id) {
            Ok(kept) => return Ok(kept),
            Err(what) => what,
        };
        let written = serde_json::to_vec(&image.config);
        let written = written.map_err(|source| Error::Parse { what: "image configuration", source })?;
        match Digest::of(&written) == id {
            true => Ok(written),
            false => Err(Error::Document(format!("{id}: its configuration as it came {what}; import it again"))),
        }
    }
}

impl Export {
    fn of(parts: &[Part], open: Open<'_, '_>) -> Result<Export, Error> {
        let mut layers: Vec<(Digest, u64)> = Vec::new();
        let mut blobs: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
        let (mut listed, mut docker) = (Vec::new(), Vec::new());
        for Part { image, configuration } in parts {
            let mut chain = Vec::new();
            for diff_id in image.config.rootfs().diff_ids() {
                let diff_id: Digest = diff_id.parse()?;
                let size = match layers.iter().find(|(known, _)| *known == diff_id) {
                    Some((_, size)) => *size,
                    None => {
                        let size = measure(&diff_id, open(&diff_id)?)?;
                        layers.push((diff_id.clone(), size));
                        size
                    }
                };
                chain.push((diff_id, size));
            }
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": descriptor(CONFIG, &Digest::of(configuration), configuration.len() as u64),
                "layers": chain.iter().map(|(digest, size)| descriptor(LAYER, digest, *size)).collect::<Vec<_>>(),
            });
            let manifest = manifest.to_string().into_bytes();
            let mut entry = descriptor(MANIFEST, &Digest::of(&manifest), manifest.len() as u64);
            entry["platform"] = json!({
                "architecture": image.config.architecture().to_string(),
                "os": image.config.os().to_string(),
            });
            match image.names.is_empty() {
                true => listed.push((String::new(), entry)),
                false => listed.extend(image.names.iter().map(|name| (name.clone(), named(&entry, name)))),
            }
            // A name with a digest is none that docker would take for a tag.
            let tags: Vec<&String> = image.names.iter().filter(|name| !name.contains('@')).collect();
            docker.push(json!({
                "Config": blob_path(&Digest::of(configuration)),
                "RepoTags": tags,
                "Layers": chain.iter().map(|(digest, _)| blob_path(digest)).collect::<Vec<_>>(),
            }));
            blobs.insert(Digest::of(&manifest), manifest);
            blobs.insert(Digest::of(configuration), configuration.clone());
        }
        listed.sort_by(|(a, _), (b, _)| a.cmp(b));
        let listed: Vec<Value> = listed.into_iter().map(|(_, entry)| entry).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": listed });
        // Documents first: who reads the archive as a stream knows what the layers are before they come.
        let mut documents = vec![
            ("oci-layout".to_owned(), json!({ "imageLayoutVersion": "1.0.0" }).to_string().into_bytes()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
            ("manifest.json".to_owned(), Value::from(docker).to_string().into_bytes()),
        ];
        documents.extend(blobs.into_iter().map(|(digest, content)| (blob_path(&digest), content)));
        Ok(Export { documents, layers })
    }

    fn write(&self, open: Open<'_, '_>, out: impl Write, packing: Compression) -> Result<(), Error> {
        let out = BufWriter::with_capacity(BUFFER, out);
        let failed = |source| Error::Stream { source };
        match packing {
            Compression::None => self.write_plain(open, out)?.flush().map_err(failed),
            Compression::Gzip => {
                // No name and no time in the header: the same bytes each time.
                let out = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                self.write_plain(open, out)?.finish().and_then(|mut out| out.flush()).map_err(failed)
            }
            Compression::Zstd => {
                let out = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL).map_err(failed)?;
                self.write_plain(open, out)?.finish().and_then(|mut out| out.flush()).map_err(failed)
            }
        }
    }

    fn write_plain<W: Write>(&self, open: Open<'_, '_>, mut out: W) -> Result<W, Error> {
        let failed = |source| Error::Stream { source };
        for (name, content) in &self.documents {
            out.write_all(&header(name, REGULAR, FILE_MODE, content.len() as u64).map_err(failed)?).map_err(failed)?;
            out.write_all(content).map_err(failed)?;
            pad(&mut out, content.len() as u64).map_err(failed)?;
        }
        for (diff_id, size) in &self.layers {
            out.write_all(&header(&blob_path(diff_id), REGULAR, FILE_MODE, *size).map_err(failed)?).map_err(failed)?;
            let mut layer = Hashing::new(open(diff_id)?.take(*size));
            let count = io::copy(&mut layer, &mut out).map_err(failed)?;
            let actual = layer.finish().map_err(failed)?;
            if count != *size || actual != *diff_id {
                return Err(Error::Mismatch { what: "layer", expected: diff_id.clone(), actual });
            }
            pad(&mut out, *size).map_err(failed)?;
        }
        out.write_all(&[0; 2 * BLOCK as usize]).map_err(failed)?;
        Ok(out)
    }
}

/// The bytes of a layer's tar stream, which must be what it was.
fn measure(diff_id: &Digest, layer: impl Read) -> Result<u64, Error> {
    let mut layer = Hashing::new(layer);
    let mut buffer = vec![0; BUFFER];
    let mut size = 0;
    loop {
        match layer.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => size += count as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Stream { source }),
        }
    }
    let actual = layer.finish().map_err(|source| Error::Stream { source })?;
    match actual == *diff_id {
        true => Ok(size),
        false => Err(Error::Mismatch { what: "layer", expected: diff_id.clone(), actual }),
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.as_str(), "size": size })
}

/// An entry of the index under one name: containerd's annotation, and OCI's, which podman and skopeo read.
fn named(entry: &Value, name: &str) -> Value {
    let mut entry = entry.clone();
    entry["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
    entry
}

fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let rest = size.next_multiple_of(BLOCK) - size;
    out.write_all(&[0; BLOCK as usize][..rest as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::configuration;

    fn part(names: &[&str], layers: &[&[u8]]) -> Part {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let configuration_ = json!({ "architecture": "amd64", "os": "linux", "odd": 1,
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let document = configuration_.to_string().into_bytes();
        let image = Image {
            id: Digest::of(&document).to_string(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            digests: Vec::new(),
            config: configuration(&document).unwrap(),
            layers: Vec::new(),
            size: 0,
            added: 0,
            pinned: false,
            origins: Vec::new(),
            verified: Vec::new(),
        };
        Part { image: Arc::new(image), configuration: document }
    }

    /// A layer that is kept in memory.
    fn open<'a>(layers: &'a [&'a [u8]]) -> impl Fn(&Digest) -> Result<Box<dyn Read + 'a>, Error> {
        move |diff_id| {
            let found = layers.iter().find(|layer| Digest::of(layer) == *diff_id).ok_or(Error::Missing)?;
            Ok(Box::new(*found))
        }
    }

    fn members(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    #[test]
    fn an_archive_is_both_dialects_and_shares_layers() {
        let layers: [&[u8]; 3] = [b"shared", b"one", &[7; 1024]];
        let parts = [part(&["a.example/x:1", "a.example/x:2"], &layers[..2]), part(&[], &[layers[0], layers[2]])];
        let export = {
            let open = open(&layers);
            Export::of(&parts, &open).unwrap()
        };
        let mut archive = Vec::new();
        let from = open(&layers);
        export.write(&from, &mut archive, Compression::None).unwrap();
        let found = members(&archive);
        assert_eq!(found.keys().filter(|name| name.starts_with("blobs/sha256/")).count(), 3 + 2 + 2);
        for (name, content) in found.iter().filter(|(name, _)| name.starts_with("blobs/")) {
            assert_eq!(*name, blob_path(&Digest::of(content)));
        }
        let index: Value = serde_json::from_slice(&found["index.json"]).unwrap();
        let names: Vec<_> = index["manifests"].as_array().unwrap().iter().map(|m| &m["annotations"]).collect();
        assert_eq!(names[0], &Value::Null);
        assert_eq!(names[1]["io.containerd.image.name"], "a.example/x:1");
        assert_eq!(names[2]["org.opencontainers.image.ref.name"], "a.example/x:2");
        let docker: Value = serde_json::from_slice(&found["manifest.json"]).unwrap();
        assert_eq!(docker[0]["RepoTags"], json!(["a.example/x:1", "a.example/x:2"]));
        assert_eq!(docker[1]["Layers"], json!([blob_path(&Digest::of(layers[0])), blob_path(&Digest::of(layers[2]))]));

        // The same bytes again, and packed the same content.
        for packing in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let [one, two] = [(), ()].map(|()| {
                let mut out = Vec::new();
                let from = open(&layers);
                export.write(&from, &mut out, packing).unwrap();
                out
            });
            assert_eq!(one, two);
            let mut plain = Vec::new();
            crate::image::blob::decompress(&one[..]).unwrap().1.read_to_end(&mut plain).unwrap();
            assert_eq!(plain, archive);
        }
    }

    #[test]
    fn a_layer_that_is_not_what_it_was_is_not_exported() {
        let layers: [&[u8]; 1] = [b"layer"];
        let lost: [&[u8]; 0] = [];
        let wrong = |_: &Digest| -> Result<Box<dyn Read>, Error> { Ok(Box::new(&b"Layer"[..])) };
        let parts = [part(&["a:1"], &layers)];
        let none = open(&lost);
        assert!(matches!(Export::of(&parts, &none), Err(Error::Missing)));
        assert!(matches!(Export::of(&parts, &wrong), Err(Error::Mismatch { .. })));
        let export = {
            let open = open(&layers);
            Export::of(&parts, &open).unwrap()
        };
        let written = export.write(&wrong, io::sink(), Compression::None);
        assert!(matches!(written, Err(Error::Mismatch { .. })));
    }
}
