//! Manifests and indexes as registries serve them, and which of an index's images this machine can run.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::image::{Digest, Error, architecture};

/// What a registry is asked for: it would convert, or refuse, what is not named.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Most layers of an image, as of archives.
const MOST_LAYERS: usize = 512;
/// Most characters of a platform's name.
const LONGEST_PLATFORM: usize = 60;
/// Most manifests that an index may list.
const MOST_MANIFESTS: usize = 1024;

/// What a document points to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Where foreign layers are.
    #[serde(default)]
    pub urls: Option<Vec<String>>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// Whether its makers do not allow registries to hand it on: it may have to be fetched from where they have it.
    pub fn is_foreign(&self) -> bool {
        self.media_type.contains("nondistributable") || self.media_type.contains(".foreign.")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    fn name(&self) -> String {
        let name = match self.variant.as_deref().unwrap_or_default() {
            "" => format!("{}/{}", self.os, self.architecture),
            variant => format!("{}/{}/{variant}", self.os, self.architecture),
        };
        // Whoever made the index chose it.
        name.chars().map(|c| if c.is_control() { '?' } else { c }).take(LONGEST_PLATFORM).collect()
    }
}

/// What a registry has under a tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Manifest {
    Index(Vec<Descriptor>),
    Image { config: Descriptor, layers: Vec<Descriptor> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// Reads a document that came as `content_type`.
///
/// # Errors
/// [`Error::Parse`], [`Error::Document`] when it is none of the kinds that are known, [`Error::Limit`].
pub(super) fn parse(content: &[u8], content_type: &str) -> Result<Manifest, Error> {
    let what = "manifest";
    // Schema 1 has neither sizes nor digests of configurations, and cannot be read as the others.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        schema_version: Option<u64>,
    }
    let version: Version = serde_json::from_slice(content).map_err(|source| Error::Parse { what, source })?;
    if version.schema_version == Some(1) || content_type.contains("docker.distribution.manifest.v1") {
        let reason = "a manifest of docker's schema 1, which nobody should trust any more: push the image again";
        return Err(Error::Document(reason.into()));
    }
    let fields: Fields = serde_json::from_slice(content).map_err(|source| Error::Parse { what, source })?;
    if fields.schema_version.is_some_and(|version| version != 2) {
        return Err(Error::Document("a manifest of a schema that is not known".into()));
    }
    let says_index = |media_type: &str| media_type.contains("index") || media_type.contains("manifest.list");
    let media_type = fields.media_type.unwrap_or_default();
    match (fields.manifests, fields.config, fields.layers) {
        // One digest must not mean two things, by how it is read: CVE-2021-41190.
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(Error::Document("both an index and a manifest".into())),
        (Some(_), None, None) if !media_type.is_empty() && !says_index(&media_type) => {
            Err(Error::Document(format!("an index that calls itself {media_type:?}")))
        }
        (None, Some(_), _) if says_index(&media_type) => {
            Err(Error::Document(format!("a manifest that calls itself {media_type:?}")))
        }
        (Some(manifests), None, None) if manifests.len() > MOST_MANIFESTS => {
            Err(Error::Limit { what: "manifests in an index", limit: MOST_MANIFESTS as u64 })
        }
        (Some(manifests), None, None) => Ok(Manifest::Index(manifests)),
        (None, Some(config), layers) => {
            let layers = layers.unwrap_or_default();
            if layers.len() > MOST_LAYERS {
                return Err(Error::Limit { what: "layers in an image", limit: MOST_LAYERS as u64 });
            }
            Ok(Manifest::Image { config, layers })
        }
        (None, None, _) => Err(Error::Document("neither an index nor a manifest".into())),
    }
}

/// Checks that `config` and `layers` are of a container image: registries hold charts, policies and signatures, too.
///
/// # Errors
/// [`Error::Document`] with what it is instead.
pub(super) fn check_image(config: &Descriptor, layers: &[Descriptor]) -> Result<(), Error> {
    const CONFIGS: [&str; 5] = [
        "",
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        // Of builders long gone.
        "application/octet-stream",
        "application/json",
    ];
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Err(Error::Document(format!("not a container image, but {:?}", config.media_type)));
    }
    for layer in layers {
        if layer.media_type.contains("+encrypted") {
            return Err(Error::Document(format!("layer {} is encrypted, which is not supported", layer.digest)));
        }
        // How it is packed is seen in its first bytes; a file system it must be.
        if !matches!(layer.media_type.as_str(), "" | "application/octet-stream") && !layer.media_type.contains(".tar") {
            let reason = format!("layer {} is {:?}, not of a container image", layer.digest, layer.media_type);
            return Err(Error::Document(reason));
        }
    }
    Ok(())
}

/// Those of an index's manifests that may run on this machine, the best first, and the names of the others' platforms.
pub(super) fn choose(manifests: Vec<Descriptor>, variant: Option<&str>) -> (Vec<Descriptor>, Vec<String>) {
    let mut chosen = Vec::new();
    let mut elsewhere = Vec::new();
    for descriptor in manifests {
        let known = descriptor.media_type.contains("manifest") || descriptor.media_type.contains("index");
        if !descriptor.media_type.is_empty() && !known {
            continue;
        }
        match &descriptor.platform {
            // Attestations and signatures are stored beside images as if they were for a platform of their own.
            Some(platform) if platform.os == "unknown" => {}
            Some(platform) => match rank(platform, variant) {
                Some(rank) => chosen.push((rank, descriptor)),
                None => elsewhere.push(platform.name()),
            },
            // It has to be looked at.
            None => chosen.push((u8::MAX, descriptor)),
        }
    }
    // Stable: among equals the first counts.
    chosen.sort_by_key(|(rank, _)| *rank);
    (chosen.into_iter().map(|(_, descriptor)| descriptor).collect(), elsewhere)
}

/// How well an image of this platform suits a machine of this program's architecture and `variant`; 0 is best, `None`:
/// it does not run.
fn rank(platform: &Platform, variant: Option<&str>) -> Option<u8> {
    if platform.os != "linux" || platform.architecture != architecture() {
        return None;
    }
    let wanted = platform.variant.as_deref().unwrap_or_default();
    match architecture() {
        "arm" => arm_rank(wanted, variant.unwrap_or("v7")),
        // The base variant runs everywhere, and is what everybody builds.
        "amd64" => match wanted {
            "" | "v1" => Some(0),
            "v2" | "v3" if Some(wanted) <= variant => Some(1),
            _ => None,
        },
        "arm64" => matches!(wanted, "" | "v8").then_some(0),
        _ => Some(u8::from(!wanted.is_empty())),
    }
}

/// An arm machine runs what is for older ones; the newest of those is best. Nothing said means v7, as in containerd.
fn arm_rank(wanted: &str, machine: &str) -> Option<u8> {
    let level = |variant: &str| match variant {
        "" => Some(7),
        _ => variant.strip_prefix('v').and_then(|level| level.parse::<u8>().ok()),
    };
    let (wanted, machine) = (level(wanted)?, level(machine)?);
    machine.checked_sub(wanted)
}

/// This machine's variant of its architecture, in the words of images; `None`: none to tell.
pub(super) fn machine_variant() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let v2 = std::arch::is_x86_feature_detected!("sse4.2") && std::arch::is_x86_feature_detected!("popcnt");
        let v3 = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("bmi2")
            && std::arch::is_x86_feature_detected!("fma");
        match (v2, v3) {
            (true, true) => Some("v3"),
            (true, false) => Some("v2"),
            _ => Some("v1"),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let uname = rustix::system::uname();
        let machine = uname.machine().to_bytes();
        match machine {
            _ if machine.starts_with(b"armv6") => Some("v6"),
            _ if machine.starts_with(b"armv5") => Some("v5"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn descriptor(media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": Digest::of(media_type.as_bytes()), "size": 7 })
    }

    fn why(document: Value, content_type: &str) -> String {
        parse(document.to_string().as_bytes(), content_type).unwrap_err().to_string()
    }

    #[test]
    fn documents_are_what_they_say() {
        let config = descriptor("application/vnd.oci.image.config.v1+json");
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar+zstd");
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        let Manifest::Image { config: parsed, layers } = parse(manifest.to_string().as_bytes(), "").unwrap() else {
            panic!("not an image");
        };
        check_image(&parsed, &layers).unwrap();
        let index = json!({ "schemaVersion": 2, "manifests": [layer] });
        assert!(matches!(parse(index.to_string().as_bytes(), "").unwrap(), Manifest::Index(list) if list.len() == 1));

        let both = json!({ "schemaVersion": 2, "manifests": [], "layers": [] });
        assert!(why(both, "").contains("both an index and a manifest"));
        let lying = json!({ "mediaType": "application/vnd.oci.image.index.v1+json", "config": config, "layers": [] });
        assert!(why(lying, "").contains("calls itself"));
        let old = json!({ "schemaVersion": 1, "fsLayers": [], "history": [] });
        assert!(why(old, "application/vnd.docker.distribution.manifest.v1+prettyjws").contains("schema 1"));
        assert!(why(json!({}), "").contains("neither"));
        assert!(why(json!({ "schemaVersion": 3 }), "").contains("not known"));
        let many: Vec<&Value> = std::iter::repeat_n(&layer, 513).collect();
        assert!(why(json!({ "config": config, "layers": many }), "").contains("more than 512"));
        assert!(parse(b"<html>", "text/html").is_err());
        let negative = json!({ "config": { "digest": Digest::of(b""), "size": -1 } });
        assert!(matches!(parse(negative.to_string().as_bytes(), ""), Err(Error::Parse { .. })));
    }

    #[test]
    fn other_artifacts_are_no_images() {
        let of = |media_type: &str| serde_json::from_value::<Descriptor>(descriptor(media_type)).unwrap();
        let chart = of("application/vnd.cncf.helm.config.v1+json");
        assert!(check_image(&chart, &[]).unwrap_err().to_string().contains("helm"));
        let config = of("application/vnd.docker.container.image.v1+json");
        let encrypted = of("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        assert!(check_image(&config, &[encrypted]).unwrap_err().to_string().contains("encrypted"));
        assert!(of("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip").is_foreign());
        assert!(of("application/vnd.oci.image.layer.nondistributable.v1.tar").is_foreign());
    }

    #[test]
    fn an_index_is_searched_for_this_machine() {
        let of = |os: &str, architecture: &str, variant: Option<&str>| {
            let platform = json!({ "os": os, "architecture": architecture, "variant": variant });
            json!({ "digest": Digest::of(platform.to_string().as_bytes()), "size": 1, "platform": platform })
        };
        let ours = of("linux", architecture(), None);
        let mut nothing_said = descriptor("application/vnd.oci.image.manifest.v1+json");
        nothing_said["platform"] = Value::Null;
        let list = json!([
            of("unknown", "unknown", None),
            descriptor("application/vnd.example.thing"),
            nothing_said,
            of("windows", architecture(), None),
            of("linux", "mips", Some("softfloat")),
            ours,
        ]);
        let (chosen, elsewhere) = choose(serde_json::from_value(list).unwrap(), None);
        let digests: Vec<&str> = chosen.iter().map(|descriptor| descriptor.digest.as_str()).collect();
        assert_eq!(digests, [ours["digest"].as_str().unwrap(), nothing_said["digest"].as_str().unwrap()]);
        assert_eq!(elsewhere, [&format!("windows/{}", architecture()), "linux/mips/softfloat"]);
    }

    #[test]
    fn arm_machines_run_what_is_for_older_ones() {
        let ranks = |machine| ["v8", "v7", "", "v6", "v5", "x"].map(|wanted| arm_rank(wanted, machine));
        assert_eq!(ranks("v7"), [None, Some(0), Some(0), Some(1), Some(2), None]);
        assert_eq!(ranks("v6"), [None, None, None, Some(0), Some(1), None]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,64}|[\\[\\]{}\",:a-z0-9]{0,64}") {
            let _ = parse(text.as_bytes(), "application/json");
        }
    }
}
