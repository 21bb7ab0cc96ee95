//! Whether what a signature calls an image is what it is wanted to be: `signedIdentity`.

use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::super::reference;
use super::object::Object;

/// A reference taken apart. Unlike a completed one, it knows whether there was a tag: cosign signs repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// With the host: `docker.io/library/nginx`.
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

impl Named {
    /// Takes a reference apart, completing the repository, but not the tag. `None`: not a reference.
    pub fn parse(name: &str) -> Option<Named> {
        let parsed = reference::parse(name).ok()?;
        let plain = name.split('@').next().unwrap_or_default();
        let tagged = plain.rsplit('/').next().is_some_and(|last| last.contains(':'));
        Some(Named {
            repository: format!("{}/{}", parsed.registry(), parsed.repository()),
            tag: parsed.tag().filter(|_| tagged).map(str::to_owned),
            digest: parsed.digest().map(str::to_owned),
        })
    }

    fn is_only_repository(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }
}

/// `signedIdentity`, as containers-policy.json(5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Identity {
    /// The same tag, or the same digest.
    Exact,
    /// The same tag; for an image by digest, any signature for its repository.
    #[default]
    RepoDigestOrExact,
    /// The same repository, whatever the tag.
    Repository,
    /// This, whatever the image is called.
    ExactReference(Named),
    /// This repository, whatever the image is called.
    ExactRepository(String),
    /// As [`Identity::RepoDigestOrExact`], with the beginning of the image's name replaced: for mirrors.
    Remap { prefix: String, signed_prefix: String },
}

impl Identity {
    /// Whether a signature for `signed` speaks for the image called `image` (`None`: has no name).
    ///
    /// # Errors
    /// Why not, for people.
    pub fn check(&self, image: Option<&Named>, signed: &str) -> Result<(), String> {
        let Some(signature) = Named::parse(signed) else {
            return Err(format!("is for {signed:?}, which is not an image's name"));
        };
        let mut other = format!("is for {signed}");
        let accepted = match (self, image) {
            (Identity::ExactReference(wanted), _) => {
                other.push_str(", not the dockerReference that the policy wants");
                !wanted.is_only_repository() && signature == *wanted
            }
            (Identity::ExactRepository(wanted), _) => {
                other.push_str(&format!(", not {wanted}"));
                signature.repository == *wanted
            }
            (_, None) => return Err("is for an image with a name".into()),
            (Identity::Exact, Some(image)) => {
                (image.tag.is_some() || image.digest.is_some()) && same(image, &signature)
            }
            (Identity::Repository, Some(image)) => image.repository == signature.repository,
            (Identity::RepoDigestOrExact, Some(image)) => same_or_by_digest(image, &signature),
            (Identity::Remap { prefix, signed_prefix }, Some(image)) => {
                let mut image = image.clone();
                if let Some(rest) = image.repository.strip_prefix(prefix.as_str())
                    && (rest.is_empty() || rest.starts_with('/'))
                {
                    image.repository = format!("{signed_prefix}{rest}");
                }
                same_or_by_digest(&image, &signature)
            }
        };
        if accepted {
            return Ok(());
        }
        let repository_matters = matches!(self, Identity::Exact | Identity::RepoDigestOrExact);
        if repository_matters && signature.is_only_repository() && image.is_some_and(|i| i.repository == signature.repository) {
            other.push_str(
                " without a tag, as cosign signs: such signatures need \"signedIdentity\": {\"type\": \"matchRepository\"}",
            );
        }
        Err(other)
    }
}

/// The same reference. A tag beside a digest is a comment, as everywhere on this node.
fn same(image: &Named, signature: &Named) -> bool {
    let same_version = match &image.digest {
        Some(digest) => signature.digest.as_ref() == Some(digest),
        None => signature.digest.is_none() && signature.tag == image.tag,
    };
    image.repository == signature.repository && same_version
}

fn same_or_by_digest(image: &Named, signature: &Named) -> bool {
    match image.digest {
        // That the signature is of this very digest is checked apart from this.
        Some(_) => image.repository == signature.repository,
        None => image.tag.is_some() && same(image, signature),
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Identity, D::Error> {
        Object::<RawIdentity>::deserialize(deserializer)?.0.check().map_err(de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawIdentity {
    r#type: String,
    docker_reference: Option<String>,
    docker_repository: Option<String>,
    prefix: Option<String>,
    signed_prefix: Option<String>,
}

impl RawIdentity {
    fn check(self) -> Result<Identity, String> {
        let mut fields = [
            ("dockerReference", self.docker_reference),
            ("dockerRepository", self.docker_repository),
            ("prefix", self.prefix),
            ("signedPrefix", self.signed_prefix),
        ];
        let mut take = |name: &str| {
            let (_, field) = fields.iter_mut().find(|(known, _)| *known == name)?;
            field.take()
        };
        let missing = |name: &str| format!("signedIdentity of type {} needs {name}", self.r#type);
        let identity = match self.r#type.as_str() {
            "matchExact" => Identity::Exact,
            "matchRepoDigestOrExact" => Identity::RepoDigestOrExact,
            "matchRepository" => Identity::Repository,
            "exactReference" => {
                let text = take("dockerReference").ok_or_else(|| missing("dockerReference"))?;
                match Named::parse(&text) {
                    Some(named) if !named.is_only_repository() => Identity::ExactReference(named),
                    Some(_) => return Err(format!("dockerReference: {text:?} has neither tag nor digest")),
                    None => return Err(format!("dockerReference: {text:?} is not an image's name")),
                }
            }
            "exactRepository" => {
                let text = take("dockerRepository").ok_or_else(|| missing("dockerRepository"))?;
                match Named::parse(&text) {
                    Some(named) if named.is_only_repository() => Identity::ExactRepository(named.repository),
                    _ => return Err(format!("dockerRepository: {text:?} is not a repository")),
                }
            }
            "remapIdentity" => {
                let mut prefix = |name: &str| {
                    let text = take(name).ok_or_else(|| missing(name))?;
                    // With something after it, it is a repository and not changed by completion.
                    let whole = format!("{text}/a/b");
                    match Named::parse(&whole) {
                        Some(named) if named.repository == whole => Ok(text),
                        _ => Err(format!("{name}: {text:?} is neither a host nor the beginning of a repository")),
                    }
                };
                Identity::Remap { prefix: prefix("prefix")?, signed_prefix: prefix("signedPrefix")? }
            }
            other => return Err(format!("unknown type of signedIdentity {other:?}")),
        };
        match fields.iter().find(|(_, field)| field.is_some()) {
            Some((name, _)) => Err(format!("signedIdentity of type {} has no field {name}", self.r#type)),
            None => Ok(identity),
        }
    }
}
