//! The documents of an archive: what images it holds, under which names, of which layers.
//!
//! Both dialects are read: `manifest.json` of `docker save`, and `index.json` of the OCI image layout. Archives of new
//! dockers hold both; then the OCI one counts, because it has the digests to check, and the names of both.

use std::collections::HashSet;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde_json::Value;

use super::archive::Archive;
use super::{Digest, Error, reference, trust};

/// Deepest nesting of indexes that is followed.
const DEEPEST: u32 = 4;
/// Most manifests looked at in one archive, and layers in one image.
const MOST_MANIFESTS: usize = 1024;
const MOST_LAYERS: usize = 512;
/// Most names of one image in one archive.
const MOST_NAMES: usize = 1024;
/// Most platforms that a message lists, and characters of each.
const MOST_PLATFORMS: usize = 16;
const LONGEST_PLATFORM: usize = 40;

/// An image that an archive holds, as its documents describe it.
#[derive(Debug)]
pub struct Candidate {
    /// Normalised.
    pub names: Vec<String>,
    /// Digests of the manifest, and of the indexes it was chosen from.
    pub digests: Vec<Digest>,
    /// Digest of the configuration: the image's ID.
    pub id: Digest,
    pub config: ImageConfiguration,
    /// The configuration as it is in the archive.
    pub document: Vec<u8>,
    /// Bottom first, one for each of the configuration's `diff_ids`.
    pub layers: Vec<Layer>,
}

/// A layer in the archive.
#[derive(Debug, Clone)]
pub struct Layer {
    pub member: String,
    /// What the bytes must hash to, where the manifest says so.
    pub blob: Option<Digest>,
    /// What the tar stream inside must hash to.
    pub diff_id: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// An OCI index or manifest: told apart by what they have.
#[derive(Deserialize)]
struct OciDocument {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Platform {
    fn name(&self) -> String {
        platform_name(&self.os, &self.architecture)
    }
}

fn platform_name(os: &str, architecture: &str) -> String {
    format!("{os}/{architecture}").chars().take(LONGEST_PLATFORM).collect()
}

/// Notes that there is an image for another platform.
fn note_platform(elsewhere: &mut Vec<String>, name: String) {
    if elsewhere.len() < MOST_PLATFORMS && !elsewhere.contains(&name) {
        elsewhere.push(name);
    }
}

/// This machine's architecture, in Go's words, as images have it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        other => other,
    }
}

/// The images of `archive` that can run on this machine.
///
/// # Errors
/// [`Error::Archive`] when there are none in it, [`Error::Platform`] (in [`Error::Member`]) when they are all for other
/// machines, and what is wrong with a document, with its name.
pub fn candidates(archive: &Archive) -> Result<Vec<Candidate>, Error> {
    let docker = match archive.contains("manifest.json") {
        true => Some(docker_images(archive).map_err(|e| e.within(archive.path(), "manifest.json"))?),
        false => None,
    };
    if archive.contains("index.json") {
        let mut found = oci_candidates(archive)?;
        for candidate in &mut found {
            let also = docker.iter().flatten().filter(|image| image.config.contains(candidate.id.hex()));
            for tag in also.flat_map(|image| image.repo_tags.iter().flatten()) {
                candidate.names.extend(reference::normalise(tag));
            }
            unique(&mut candidate.names);
        }
        return Ok(found);
    }
    let Some(docker) = docker else {
        let reason = "neither manifest.json nor index.json in it: not an image archive".into();
        return Err(Error::Archive { archive: archive.path().into(), reason });
    };
    let mut elsewhere = Vec::new();
    let mut found = Vec::new();
    for image in docker {
        let candidate = docker_candidate(archive, image)?;
        match runs_here(&candidate.config) {
            true => found.push(candidate),
            false => note_platform(&mut elsewhere, platform_of(&candidate.config)),
        }
    }
    if found.is_empty() {
        let error = Error::Platform { wanted: architecture().into(), found: elsewhere.join(", ") };
        return Err(error.within(archive.path(), "manifest.json"));
    }
    Ok(found)
}

/// Whether a document, of whatever kind, is about other machines: an index that lists images for them, or the
/// configuration of one.
pub(super) fn is_about_others(content: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Listed {
        platform: Option<Platform>,
    }
    #[derive(Deserialize)]
    struct Any {
        #[serde(default)]
        manifests: Option<Vec<Listed>>,
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
    }
    let Ok(Any { manifests, os, architecture: machine }) = serde_json::from_slice(content) else { return false };
    let own = Platform { os, architecture: machine };
    // Attestations are for no machine.
    let named = |platform: &Platform| !platform.architecture.is_empty() && platform.architecture != "unknown";
    let listed = manifests.into_iter().flatten().filter_map(|listed| listed.platform);
    listed.chain([own]).any(|platform| named(&platform) && platform.name() != platform_name("linux", architecture()))
}

fn runs_here(config: &ImageConfiguration) -> bool {
    config.os().to_string() == "linux" && config.architecture().to_string() == architecture()
}

fn platform_of(config: &ImageConfiguration) -> String {
    platform_name(&config.os().to_string(), &config.architecture().to_string())
}

fn parse<T: for<'de> Deserialize<'de>>(what: &'static str, content: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(content).map_err(|source| Error::Parse { what, source })
}

fn unique(names: &mut Vec<String>) {
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
}

fn docker_images(archive: &Archive) -> Result<Vec<DockerImage>, Error> {
    let images: Vec<DockerImage> = parse("image list", &archive.document("manifest.json", None)?)?;
    match images.len() {
        0 => Err(Error::Document("lists no images".into())),
        1..=MOST_MANIFESTS => Ok(images),
        _ => Err(Error::Limit { what: "images in an archive", limit: MOST_MANIFESTS as u64 }),
    }
}

fn docker_candidate(archive: &Archive, image: DockerImage) -> Result<Candidate, Error> {
    if image.repo_tags.as_ref().is_some_and(|tags| tags.len() > MOST_NAMES) {
        let limit = Error::Limit { what: "names of an image", limit: MOST_NAMES as u64 };
        return Err(limit.within(archive.path(), "manifest.json"));
    }
    let in_config = |e: Error| e.within(archive.path(), &image.config);
    let content = archive.document(&image.config, None).map_err(in_config)?;
    let id = Digest::of(&content);
    // Named by its digest, it must have that digest: otherwise the diff IDs in it prove nothing.
    let stem = image.config.rsplit(['/', ':']).next().unwrap_or_default().trim_end_matches(".json");
    if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>()
        && expected != id
    {
        return Err(in_config(Error::Mismatch { what: "image configuration", expected, actual: id }));
    }
    let config = configuration(&content).map_err(in_config)?;
    let mut names = Vec::new();
    for tag in image.repo_tags.iter().flatten() {
        names.push(reference::normalise(tag).map_err(|e| e.within(archive.path(), "manifest.json"))?);
    }
    unique(&mut names);
    let members = image.layers.clone().unwrap_or_default().into_iter().map(|member| (member, None)).collect();
    let layers = layers(&config, members).map_err(in_config)?;
    Ok(Candidate { names, digests: Vec::new(), id, config, document: content, layers })
}

/// A manifest to look at, with the names and digests it goes by.
struct Lead {
    digest: Digest,
    names: Vec<String>,
    above: Vec<Digest>,
    depth: u32,
}

fn oci_candidates(archive: &Archive) -> Result<Vec<Candidate>, Error> {
    let index: OciDocument = archive
        .document("index.json", None)
        .and_then(|content| parse("index", &content))
        .map_err(|e| e.within(archive.path(), "index.json"))?;
    let mut elsewhere = Vec::new();
    let mut leads = Vec::new();
    let too_many = |e: Error| e.within(archive.path(), "index.json");
    follow(index.manifests.unwrap_or_default(), &[], &[], 0, &mut leads, &mut elsewhere).map_err(too_many)?;
    let mut found: Vec<Candidate> = Vec::new();
    let mut looked_at = 0;
    while let Some(lead) = leads.pop() {
        looked_at += 1;
        let exceeded = match looked_at > MOST_MANIFESTS {
            true => Some(("manifests in an archive", MOST_MANIFESTS as u64)),
            false => (lead.depth > DEEPEST).then_some(("indexes within another", DEEPEST.into())),
        };
        if let Some((what, limit)) = exceeded {
            return Err(Error::Limit { what, limit }.within(archive.path(), "index.json"));
        }
        let member = blob_path(&lead.digest);
        let document: OciDocument = archive
            .document(&member, Some(&lead.digest))
            .and_then(|content| parse("manifest", &content))
            .map_err(|e| e.within(archive.path(), &member))?;
        let mut above = lead.above;
        above.push(lead.digest);
        if let Some(manifests) = document.manifests {
            follow(manifests, &lead.names, &above, lead.depth + 1, &mut leads, &mut elsewhere).map_err(too_many)?;
            continue;
        }
        let layers = document.layers.unwrap_or_default();
        let Some(config) = document.config else {
            return Err(Error::Document("neither an index nor a manifest".into()).within(archive.path(), &member));
        };
        if let Some(candidate) = oci_candidate(archive, config.digest, &layers, &mut elsewhere)? {
            let candidate = Candidate { names: lead.names, digests: above, ..candidate };
            match found.iter_mut().find(|other| other.id == candidate.id) {
                Some(other) => {
                    other.names.extend(candidate.names);
                    other.digests.extend(candidate.digests);
                }
                None => found.push(candidate),
            }
        }
    }
    if found.is_empty() {
        elsewhere.sort();
        let error = match elsewhere.is_empty() {
            true => Error::Document("lists no images".into()),
            false => Error::Platform { wanted: architecture().into(), found: elsewhere.join(", ") },
        };
        return Err(error.within(archive.path(), "index.json"));
    }
    found.reverse();
    Ok(found)
}

/// Takes in the manifests of an index that may be for this machine.
fn follow(
    manifests: Vec<Descriptor>,
    names: &[String],
    above: &[Digest],
    depth: u32,
    leads: &mut Vec<Lead>,
    elsewhere: &mut Vec<String>,
) -> Result<(), Error> {
    for descriptor in manifests {
        // Attestations and signatures are stored beside images as if they were for a platform of their own.
        if descriptor.platform.as_ref().is_some_and(|platform| platform.os == "unknown") {
            continue;
        }
        // So do signatures that are marked as such.
        if descriptor.annotations.as_ref().is_some_and(trust::holds_signatures) {
            continue;
        }
        if let Some(platform) = &descriptor.platform
            && (platform.os != "linux" || platform.architecture != architecture())
        {
            note_platform(elsewhere, platform.name());
            continue;
        }
        if !descriptor.media_type.is_empty()
            && !descriptor.media_type.contains("manifest")
            && !descriptor.media_type.contains("index")
        {
            continue;
        }
        let mut names = names.to_vec();
        names.extend(names_in(&descriptor));
        unique(&mut names);
        leads.push(Lead { digest: descriptor.digest, names, above: above.to_vec(), depth });
        if leads.len() > MOST_MANIFESTS {
            return Err(Error::Limit { what: "manifests in an archive", limit: MOST_MANIFESTS as u64 });
        }
    }
    Ok(())
}

/// The names an index gives an image, in the annotations of containerd and of OCI. The latter may be only a tag, for
/// tools that keep the repository elsewhere; that alone is no name.
fn names_in(descriptor: &Descriptor) -> Vec<String> {
    let annotation = |key: &str| descriptor.annotations.as_ref().and_then(|annotations| annotations.get(key));
    let full = annotation("io.containerd.image.name");
    let name = annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    full.into_iter().chain(name).filter_map(|name| reference::normalise(name).ok()).collect()
}

/// The image of an OCI manifest; `None` if it is not for this machine.
fn oci_candidate(
    archive: &Archive,
    id: Digest,
    layers_: &[Descriptor],
    elsewhere: &mut Vec<String>,
) -> Result<Option<Candidate>, Error> {
    let member = blob_path(&id);
    let in_config = |e: Error| e.within(archive.path(), &member);
    let content = archive.document(&member, Some(&id)).map_err(in_config)?;
    let config = configuration(&content).map_err(in_config)?;
    if !runs_here(&config) {
        note_platform(elsewhere, platform_of(&config));
        return Ok(None);
    }
    let members = layers_.iter().map(|layer| (blob_path(&layer.digest), Some(layer.digest.clone()))).collect();
    let layers = layers(&config, members).map_err(in_config)?;
    Ok(Some(Candidate { names: Vec::new(), digests: Vec::new(), id, config, document: content, layers }))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Pairs the layers of a manifest with the configuration's diff IDs.
fn layers(config: &ImageConfiguration, members: Vec<(String, Option<Digest>)>) -> Result<Vec<Layer>, Error> {
    let diff_ids = config.rootfs().diff_ids();
    if members.len() != diff_ids.len() {
        let (listed, known) = (members.len(), diff_ids.len());
        return Err(Error::Document(format!("has {known} diff_ids, but the manifest lists {listed} layers")));
    }
    if members.len() > MOST_LAYERS {
        return Err(Error::Limit { what: "layers in an image", limit: MOST_LAYERS as u64 });
    }
    members
        .into_iter()
        .zip(diff_ids)
        .map(|((member, blob), diff_id)| Ok(Layer { member, blob, diff_id: diff_id.parse()? }))
        .collect()
}

/// Parses an image configuration. Writers leave out, or set to null, more than the specification allows.
///
/// # Errors
/// [`Error::Parse`].
pub fn configuration(content: &[u8]) -> Result<ImageConfiguration, Error> {
    let failed = |source| Error::Parse { what: "image configuration", source };
    let mut value: Value = serde_json::from_slice(content).map_err(failed)?;
    strip_nulls(&mut value);
    if let Value::Object(fields) = &mut value {
        fields.entry("architecture").or_insert_with(|| architecture().into());
        fields.entry("os").or_insert_with(|| "linux".into());
        let rootfs = fields.entry("rootfs").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Value::Object(rootfs) = rootfs {
            rootfs.entry("type").or_insert_with(|| "layers".into());
            rootfs.entry("diff_ids").or_insert_with(|| Value::Array(Vec::new()));
        }
    }
    serde_json::from_value(value).map_err(failed)
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_about_other_machines() {
        let here = architecture();
        let config = |os: &str, machine: &str| format!(r#"{{"os":"{os}","architecture":"{machine}","rootfs":{{}}}}"#);
        let index = |machine: &str| {
            let here = format!(r#"{{"digest":"x","platform":{{"os":"linux","architecture":"{here}"}}}}"#);
            format!(
                r#"{{"manifests":[{here},{{"digest":"y","platform":{{"os":"linux","architecture":"{machine}"}}}}]}}"#
            )
        };
        for other in [config("linux", "s390x"), config("windows", here), index("s390x")] {
            assert!(is_about_others(other.as_bytes()), "{other}");
        }
        let plain = r#"{"manifests":[{"digest":"x"}]}"#.to_owned();
        for own in
            [config("linux", here), index(here), index("unknown"), plain, "[]".into(), "{}".into(), "\u{0}".into()]
        {
            assert!(!is_about_others(own.as_bytes()), "{own}");
        }
    }
    use proptest::prelude::*;

    #[test]
    fn configurations_with_gaps() {
        let config = configuration(b"{}").unwrap();
        assert_eq!(config.architecture().to_string(), architecture());
        assert!(config.config().is_none() && config.rootfs().diff_ids().is_empty());
        let docker = br#"{"architecture":"arm64","os":"linux","config":{"Cmd":null,"Env":["A=b"],"ExposedPorts":null,
            "Volumes":{"/data":{}},"Labels":null,"Healthcheck":{"Test":["NONE"]},"OnBuild":null},"history":null,
            "container_config":{"Hostname":""},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = configuration(docker).unwrap();
        assert_eq!(config.architecture().to_string(), "arm64");
        let config = config.config().as_ref().unwrap();
        assert_eq!(config.env().as_deref(), Some(&["A=b".to_owned()][..]));
        assert_eq!(config.volumes().as_deref(), Some(&["/data".to_owned()][..]));
        for bad in [&b""[..], b"[]", b"null", b"{\"config\":7}", b"{\"rootfs\":{\"diff_ids\":{}}}"] {
            assert!(matches!(configuration(bad), Err(Error::Parse { .. })), "{bad:?}");
        }
    }

    #[test]
    fn names_of_annotations() {
        let descriptor = |name: &str| Descriptor {
            media_type: String::new(),
            digest: Digest::of(b""),
            platform: None,
            annotations: Some([("org.opencontainers.image.ref.name".to_owned(), name.to_owned())].into()),
        };
        assert_eq!(names_in(&descriptor("nginx:1")), ["docker.io/library/nginx:1"]);
        assert_eq!(names_in(&descriptor("host.example/app")), ["host.example/app:latest"]);
        assert!(names_in(&descriptor("latest")).is_empty());
        assert!(names_in(&descriptor("Not A:Name")).is_empty());
    }

    proptest! {
        #[test]
        fn documents_never_panic(text in "\\PC{0,64}|[\\[\\]{}\",:a-z0-9]{0,64}") {
            let _ = configuration(text.as_bytes());
            let _ = parse::<Vec<DockerImage>>("image list", text.as_bytes());
            let _ = parse::<OciDocument>("index", text.as_bytes());
        }
    }
}
