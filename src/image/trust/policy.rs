//! `policy.json` as containers-policy.json(5) describes it: which requirements are for which images. Pure: files that
//! it names are read when an image is judged.
//!
//! As containers/image, it is read strictly: unknown and repeated fields, and lists of no requirements, are errors.
//! Requirements that need what this node cannot do (GPG, Fulcio, Rekor, X.509) are kept as [`Requirement::Unsupported`],
//! which no image meets: a distribution's own policy may have them for its registry, and must not stop all others.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::Transport;
use super::identity::{Identity, Named};
use super::keys::{self, Key};
use super::object::Object;

/// What images have to meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// `insecureAcceptAnything`.
    Accept,
    /// `reject`.
    Reject,
    /// `sigstoreSigned` with keys.
    Signed(Signed),
    /// Nothing meets it; says what it is.
    Unsupported(&'static str),
}

/// A signature by one of some keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub keys: KeySource,
    /// What the signature must say that the image is called.
    pub identity: Identity,
}

/// Where the keys of a requirement are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    Files(Vec<PathBuf>),
    Inline(Vec<Key>),
}

/// A whole policy.
#[derive(Debug, PartialEq, Eq)]
pub struct Policy {
    default: Vec<Requirement>,
    transports: HashMap<String, HashMap<String, Vec<Requirement>>>,
}

/// The requirements for an image, and by which part of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    pub requirements: &'a [Requirement],
    /// Transport and scope; `None`: the policy's default.
    pub by: Option<(&'a str, &'a str)>,
}

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            None => f.write_str("default"),
            Some((transport, scope)) => write!(f, "transports.{transport}.{scope:?}"),
        }
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// What is wrong with it, and in which line.
    pub fn parse(content: &[u8]) -> Result<Policy, String> {
        let Object(raw): Object<RawPolicy> = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        let plain = |Unique(scopes): Unique<Requirements>| {
            scopes.into_iter().map(|(scope, requirements)| (scope, requirements.0)).collect::<HashMap<_, _>>()
        };
        let transports: HashMap<_, _> =
            raw.transports.unwrap_or_default().0.into_iter().map(|(name, scopes)| (name, plain(scopes))).collect();
        for name in ["oci", "oci-archive", "docker-archive"] {
            for scope in transports.get(name).into_iter().flat_map(HashMap::keys) {
                // A scope that could never match would be a hole in the policy.
                if !scope.is_empty() && (!scope.starts_with('/') || scope.contains(':') || scope.ends_with('/')) {
                    return Err(format!(
                        "transports.{name}: {scope:?} is not an absolute path of an archive or folder (without a name \
                         of an image), nor \"\""
                    ));
                }
            }
        }
        Ok(Policy { default: raw.default.0, transports })
    }

    /// What an image of this name that comes this way has to meet: the longest scope that matches. Archives are judged
    /// by the rules of their own transport if there are some for them, otherwise by those of `docker` for the names in
    /// them. Images without a name (`None`) only by rules for all.
    pub fn find(&self, transport: Transport, name: Option<&Named>, archive: Option<&Path>) -> Found<'_> {
        let own = (transport != Transport::Docker)
            .then(|| self.lookup(transport_name(transport), &archive.map(path_scopes).unwrap_or_default()))
            .flatten();
        own.or_else(|| self.lookup("docker", &name.map(docker_scopes).unwrap_or_default()))
            .unwrap_or(Found { requirements: &self.default, by: None })
    }

    fn lookup(&self, transport: &str, scopes: &[String]) -> Option<Found<'_>> {
        let (transport, known) = self.transports.get_key_value(transport)?;
        let found = scopes.iter().map(String::as_str).chain([""]).find_map(|scope| known.get_key_value(scope));
        found.map(|(scope, requirements)| Found { requirements, by: Some((transport, scope)) })
    }

    fn all(&self) -> impl Iterator<Item = Found<'_>> {
        let scopes = self.transports.iter().flat_map(|(transport, scopes)| {
            scopes.iter().map(move |(scope, requirements)| Found { requirements, by: Some((transport, scope)) })
        });
        scopes.chain([Found { requirements: &self.default, by: None }])
    }

    /// The files of keys that it names.
    pub fn key_files(&self) -> BTreeSet<&Path> {
        let files = self.all().flat_map(|found| found.requirements).filter_map(|requirement| match requirement {
            Requirement::Signed(Signed { keys: KeySource::Files(paths), .. }) => Some(paths),
            _ => None,
        });
        files.flatten().map(PathBuf::as_path).collect()
    }

    /// What is in it that nothing can meet here, to be told once.
    pub fn unsupported(&self) -> Vec<String> {
        let mut said = Vec::new();
        for found in self.all() {
            for requirement in found.requirements {
                if let Requirement::Unsupported(what) = requirement {
                    said.push(format!("{found}: {what}"));
                }
            }
        }
        said.sort();
        said
    }
}

fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Docker => "docker",
        Transport::DockerArchive => "docker-archive",
        Transport::OciArchive => "oci-archive",
        Transport::OciLayout => "oci",
    }
}

/// The scopes an image of a registry is in, the most specific first. As containers/image: the whole reference, the
/// repository, what is above it up to the host, then `*.` and the domains above the host, without port.
fn docker_scopes(name: &Named) -> Vec<String> {
    let repository = name.repository.as_str();
    let mut scopes = Vec::new();
    // A tag beside a digest is a comment, yet whoever wrote a scope for it means this image.
    scopes.extend(name.digest.as_ref().map(|digest| format!("{repository}@{digest}")));
    scopes.extend(name.tag.as_ref().map(|tag| format!("{repository}:{tag}")));
    let mut rest = repository;
    loop {
        scopes.push(rest.to_owned());
        let Some(slash) = rest.rfind('/') else { break };
        rest = &rest[..slash];
    }
    let mut host = rest.split(':').next().unwrap_or_default();
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes
}

/// The path of an archive, and the folders above it but for the root.
fn path_scopes(path: &Path) -> Vec<String> {
    path.ancestors().filter(|path| path.parent().is_some()).map(|path| path.to_string_lossy().into_owned()).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    default: Requirements,
    #[serde(default)]
    transports: Option<Unique<Unique<Requirements>>>,
}

#[derive(Deserialize)]
#[serde(try_from = "Vec<Requirement>")]
struct Requirements(Vec<Requirement>);

impl TryFrom<Vec<Requirement>> for Requirements {
    type Error = &'static str;

    fn try_from(list: Vec<Requirement>) -> Result<Requirements, &'static str> {
        match list.is_empty() {
            true => Err("a list of requirements must not be empty"),
            false => Ok(Requirements(list)),
        }
    }
}

impl<'de> Deserialize<'de> for Requirement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Requirement, D::Error> {
        Object::<RawRequirement>::deserialize(deserializer)?.0.check().map_err(de::Error::custom)
    }
}

/// All fields of all types of requirements; which may be there depends on the type.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRequirement {
    r#type: String,
    key_type: Option<de::IgnoredAny>,
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    // Not typed: serde's errors would say what it is, which may be a private key by mistake.
    key_data: Option<Value>,
    key_datas: Option<Value>,
    fulcio: Option<de::IgnoredAny>,
    pki: Option<de::IgnoredAny>,
    rekor_public_key_path: Option<de::IgnoredAny>,
    rekor_public_key_paths: Option<de::IgnoredAny>,
    rekor_public_key_data: Option<de::IgnoredAny>,
    rekor_public_key_datas: Option<de::IgnoredAny>,
    signed_identity: Option<Identity>,
}

impl RawRequirement {
    fn check(self) -> Result<Requirement, String> {
        let rekor = self.rekor_public_key_path.is_some()
            || self.rekor_public_key_paths.is_some()
            || self.rekor_public_key_data.is_some()
            || self.rekor_public_key_datas.is_some();
        let present = [
            ("keyType", self.key_type.is_some()),
            ("keyPath", self.key_path.is_some()),
            ("keyPaths", self.key_paths.is_some()),
            ("keyData", self.key_data.is_some()),
            ("keyDatas", self.key_datas.is_some()),
            ("fulcio", self.fulcio.is_some()),
            ("pki", self.pki.is_some()),
            ("rekorPublicKey…", rekor),
            ("signedIdentity", self.signed_identity.is_some()),
        ];
        let allowed: &[&str] = match self.r#type.as_str() {
            "insecureAcceptAnything" | "reject" => &[],
            "signedBy" => &["keyType", "keyPath", "keyPaths", "keyData", "signedIdentity"],
            "sigstoreSigned" => {
                &["keyPath", "keyPaths", "keyData", "keyDatas", "fulcio", "pki", "rekorPublicKey…", "signedIdentity"]
            }
            other => return Err(format!("unknown type of requirement {other:?}")),
        };
        if let Some((field, _)) = present.iter().find(|(field, there)| *there && !allowed.contains(field)) {
            return Err(format!("a requirement of type {} has no field {field}", self.r#type));
        }
        let sources = ["keyPath", "keyPaths", "keyData", "keyDatas", "fulcio", "pki"];
        let count = present.iter().filter(|(field, there)| *there && sources.contains(field)).count();
        if !allowed.is_empty() && count != 1 {
            return Err(format!(
                "a requirement of type {} needs exactly one of keyPath, keyPaths, keyData{}, not {count}",
                self.r#type,
                if self.r#type == "sigstoreSigned" { ", keyDatas, fulcio, pki" } else { "" },
            ));
        }
        match self.r#type.as_str() {
            "insecureAcceptAnything" => return Ok(Requirement::Accept),
            "reject" => return Ok(Requirement::Reject),
            "signedBy" => return Ok(Requirement::Unsupported("signedBy (GPG signatures) is not supported")),
            _ => {}
        }
        if self.fulcio.is_some() {
            return Ok(Requirement::Unsupported("sigstoreSigned by fulcio is not supported: use a key"));
        }
        if self.pki.is_some() {
            return Ok(Requirement::Unsupported("sigstoreSigned by pki is not supported: use a key"));
        }
        if rekor {
            return Ok(Requirement::Unsupported("sigstoreSigned with rekor is not supported"));
        }
        let paths = self.key_path.map(|path| vec![path]).or(self.key_paths);
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            _ => Err("keyData must be text, keyDatas a list of texts"),
        };
        let data = match (self.key_data, self.key_datas) {
            (Some(data), _) => Some(vec![text(data)?]),
            (None, Some(Value::Array(list))) => Some(list.into_iter().map(text).collect::<Result<Vec<_>, _>>()?),
            (None, Some(_)) => return Err("keyDatas must be a list of texts".into()),
            (None, None) => None,
        };
        let keys = match (paths, data) {
            (Some(paths), _) => {
                if paths.is_empty() {
                    return Err("keyPaths must not be empty".into());
                }
                // There is no folder that it could be relative to.
                if let Some(path) = paths.iter().find(|path| !path.is_absolute()) {
                    return Err(format!("the path of a key must be absolute, not {}", path.display()));
                }
                KeySource::Files(paths)
            }
            (None, data) => {
                let mut found = Vec::new();
                for data in data.unwrap_or_default() {
                    let pem = STANDARD.decode(&data).map_err(|error| format!("keyData is not base64: {error}"))?;
                    found.extend(keys::parse(&pem, "keyData").map_err(|reason| format!("keyData: {reason}"))?);
                }
                if found.is_empty() {
                    return Err("keyDatas must not be empty".into());
                }
                KeySource::Inline(found)
            }
        };
        Ok(Requirement::Signed(Signed { keys, identity: self.signed_identity.unwrap_or_default() }))
    }
}

/// A JSON object whose names are all different. serde_json itself would silently take the last of two scopes.
struct Unique<V>(HashMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Unique<V> {
        Unique(HashMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique<V>, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
                let mut entries = HashMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if entries.contains_key(&name) {
                        return Err(de::Error::custom(format!("{name:?} is there twice")));
                    }
                    let value = map.next_value()?;
                    entries.insert(name, value);
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}
