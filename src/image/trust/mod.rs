//! Which images this node accepts: containers' `policy.json`, cosign signatures by public key, minisign for archives.
//! Nothing here needs a network.
//!
//! ```text
//! policy ── scope of the name ──▶ requirements ─┐
//! evidence: cosign ─ digest ─ key ─ identity ───┼─▶ admitted, with what vouched for it ─▶ record ─▶ still admitted?
//!           minisign of the archive ────────────┘
//! ```
//!
//! Signatures are verified when an image comes in, and what was found is recorded with it. Before each start of a
//! container the record is held against the policy and the keys of then: editing either takes effect without fetching
//! anything. A policy that cannot be used refuses everything.

mod collect;
mod cosign;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzzing;
mod identity;
mod keys;
mod minisign;
mod object;
mod policy;

#[cfg(test)]
mod tests;

use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{BUILTIN, Digest, Image, Origin, Verification, reference};
use crate::config;
use crate::sys::keyfile;
pub use collect::{Listed, listed_signatures, signature_tag};
pub(super) use collect::{Vetting, holds_signatures};
use identity::Named;
use keys::Key;
pub(super) use minisign::signature_path;
use policy::{Found, KeySource, Policy, Requirement, Signed};

/// Largest policy, in bytes: keys may be in it.
const LARGEST_POLICY: u64 = 4 << 20;
/// A file that was changed so recently may change again without its times telling.
const RACY: Duration = Duration::from_secs(2);
/// Most signatures of one image that are looked at, and told of.
const MOST_SIGNATURES: usize = 256;
const MOST_REASONS: usize = 8;

/// Where trust is configured.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `policy.json`; no such file: everything is accepted.
    pub policy: PathBuf,
    /// minisign public keys, one line each, or absolute paths of files of them.
    pub minisign_public_keys: Vec<String>,
}

impl Settings {
    /// As configured.
    pub fn of(images: &config::Images) -> Settings {
        Settings { policy: images.policy.clone(), minisign_public_keys: images.minisign_public_keys.clone() }
    }
}

/// By which way an image comes in; policies may differ (`policy.json`: `transports`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Docker,
    DockerArchive,
    OciArchive,
    OciLayout,
}

const ARCHIVES: [Transport; 3] = [Transport::DockerArchive, Transport::OciArchive, Transport::OciLayout];

/// A cosign signature: what was signed (the simple signing JSON) and the signature over it, not base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
}

/// What speaks for an image under one name.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    pub transport: Transport,
    /// Normalised; empty: the image has none.
    pub name: &'a str,
    /// Digests of its manifest and of the indexes that listed it: a signature of any of them counts.
    pub digests: &'a [Digest],
    pub signatures: &'a [Signature],
    /// Keys whose minisign signature of the whole archive was good.
    pub archive_keys: &'a [minisign::Signer],
    /// Why what may have been a signature is not among them, for people.
    pub problems: &'a [String],
}

/// Why an image is not accepted: kubelet's reason `SignatureValidationFailed`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The policy itself, or what it asks for, cannot be used; nothing is accepted by it then.
    #[error("cannot use the signature policy {}: {reason}", path.display())]
    Policy { path: PathBuf, reason: String },
    #[error("{name}: the signature policy rejects it")]
    Rejected { name: String },
    #[error("{name}: {reason}")]
    Unsigned { name: String, reason: String },
}

/// The node's policy, read anew whenever its file changes.
#[derive(Debug, Default)]
pub struct Trust {
    settings: Settings,
    minisign: minisign::Keys,
    policy: Mutex<Option<Loaded>>,
}

/// A policy as it was read, and of which version of the file.
#[derive(Debug, Clone)]
struct Loaded {
    version: Version,
    policy: Result<Arc<Policy>, String>,
}

/// A state of the policy and of the keys that it names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revision(Vec<Option<Version>>);

/// Of a file: device, inode, size, times of its last change.
type Version = (u64, u64, u64, (i64, i64), (i64, i64));

/// What requirements are held against.
enum Proof<'a> {
    /// Signatures that come with the image.
    Fresh(&'a Evidence<'a>),
    /// What was found good then.
    Recorded(&'a [Verification]),
}

impl Trust {
    pub fn new(settings: Settings) -> Trust {
        let minisign = minisign::Keys::new(&settings.minisign_public_keys);
        for reason in minisign.unusable() {
            tracing::warn!(%reason, "archives cannot be signed with this key");
        }
        Trust { settings, minisign, policy: Mutex::default() }
    }

    /// Whether signatures have to be fetched for this (normalised) name from a registry.
    ///
    /// # Errors
    /// [`Refusal::Policy`].
    pub fn wants_signatures(&self, name: &str) -> Result<bool, Refusal> {
        let Some(policy) = self.policy()? else { return Ok(false) };
        let found = policy.find(Transport::Docker, Named::parse(name).as_ref(), None);
        Ok(found.requirements.iter().any(|requirement| matches!(requirement, Requirement::Signed(_))))
    }

    /// Decides on an image that is about to come in; what vouches for it is recorded with it.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn admit(&self, evidence: &Evidence<'_>) -> Result<Vec<Verification>, Refusal> {
        self.admit_from(evidence, None)
    }

    /// As [`Trust::admit`], of an image in the archive or folder at `archive`.
    fn admit_from(&self, evidence: &Evidence<'_>, archive: Option<&Path>) -> Result<Vec<Verification>, Refusal> {
        let whole = |signer: &minisign::Signer| Verification {
            name: String::new(),
            key: signer.key.clone(),
            comment: Some(signer.comment.clone()).filter(|comment| !comment.is_empty()),
        };
        let mut verified: Vec<Verification> = evidence.archive_keys.iter().map(whole).collect();
        if let Some(policy) = self.policy()? {
            let name = Named::parse(evidence.name);
            let found = policy.find(evidence.transport, name.as_ref(), archive);
            verified.extend(self.judge(&found, evidence.name, name.as_ref(), &Proof::Fresh(evidence))?);
        }
        verified.sort();
        verified.dedup();
        Ok(verified)
    }

    /// Decides on an image of the store by what was recorded when it came in from a registry.
    ///
    /// # Errors
    /// Why it is refused under the policy of now.
    pub fn still_admits(&self, name: &str, recorded: &[Verification]) -> Result<(), Refusal> {
        let Some(policy) = self.policy()? else { return Ok(()) };
        let named = Named::parse(name);
        let found = policy.find(Transport::Docker, named.as_ref(), None);
        self.judge(&found, name, named.as_ref(), &Proof::Recorded(recorded)).map(drop)
    }

    /// Decides whether a container that asks for `asked` may run this image of the store. It may by the rules of any way
    /// it came in. The image of this binary needs nobody to vouch for it, unless the policy has a scope for it.
    ///
    /// # Errors
    /// Why it is refused under the policy of now.
    pub fn admits_use(&self, asked: &str, image: &Image) -> Result<(), Refusal> {
        let policy = match self.policy() {
            Ok(None) => return Ok(()),
            Ok(Some(policy)) => Ok(policy),
            Err(refusal) => Err(refusal),
        };
        let asked = reference::normalise(asked).unwrap_or_else(|_| asked.to_owned());
        // Asked for by its ID: by whatever name it is accepted.
        let by_id = is_id(&asked, &image.id);
        let names = match by_id {
            true if image.names.is_empty() => vec![String::new()],
            true => image.names.clone(),
            false => vec![asked],
        };
        let mut refused = None;
        for name in &names {
            let named = Named::parse(name);
            if image.origins.contains(&Origin::BuiltIn) && name == BUILTIN {
                let explicit = policy.as_ref().is_ok_and(|policy| {
                    let found = policy.find(Transport::Docker, named.as_ref(), None);
                    found.by.is_some_and(|(_, scope)| !scope.is_empty())
                });
                if !explicit {
                    return Ok(());
                }
            }
            let policy = policy.clone()?;
            let mut ways: Vec<(Transport, Option<&Path>)> = Vec::new();
            for origin in &image.origins {
                match origin {
                    // Of which kind it was is not known any more; its rules were met when it came in.
                    Origin::Archive { path } => {
                        ways.extend(ARCHIVES.map(|transport| (transport, Some(path.as_path()))));
                    }
                    Origin::Registry { .. } | Origin::BuiltIn => ways.push((Transport::Docker, None)),
                }
            }
            if ways.is_empty() {
                // From a stream: there is no path to come back to.
                ways.extend(ARCHIVES.map(|transport| (transport, None)));
            }
            let mut tried: Vec<Found<'_>> = Vec::new();
            for (transport, archive) in ways {
                let found = policy.find(transport, named.as_ref(), archive);
                if tried.contains(&found) {
                    continue;
                }
                match self.judge(&found, name, named.as_ref(), &Proof::Recorded(&image.verified)) {
                    Ok(_) => return Ok(()),
                    Err(refusal) => drop(refused.get_or_insert(refusal)),
                }
                tried.push(found);
            }
        }
        // There is a name at least, so there is an answer.
        refused.map_or(Ok(()), |refusal| Err(advise(refusal, &image.origins)))
    }

    /// Holds all requirements against what there is; gives what was found good.
    fn judge(
        &self,
        found: &Found<'_>,
        name: &str,
        named: Option<&Named>,
        proof: &Proof<'_>,
    ) -> Result<Vec<Verification>, Refusal> {
        let name = if name.is_empty() { "an image without a name" } else { name };
        let mut verified = Vec::new();
        for requirement in found.requirements {
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => return Err(Refusal::Rejected { name: name.into() }),
                Requirement::Unsupported(what) => {
                    let reason = format!("{found}, which {name} has to meet: {what}");
                    return Err(Refusal::Policy { path: self.settings.policy.clone(), reason });
                }
                Requirement::Signed(signed) => {
                    let good = self.signed(signed, named, proof).map_err(|reason| Refusal::Unsigned {
                        name: name.into(),
                        reason: format!("no good signature, which {found} of the signature policy requires: {reason}"),
                    })?;
                    verified.extend(good);
                }
            }
        }
        Ok(verified)
    }

    fn signed(&self, wanted: &Signed, name: Option<&Named>, proof: &Proof<'_>) -> Result<Vec<Verification>, String> {
        let mut reasons = Vec::new();
        let keys = match &wanted.keys {
            KeySource::Inline(keys) => keys.clone(),
            KeySource::Files(paths) => {
                let mut keys = Vec::new();
                for path in paths {
                    match keys::read(path) {
                        Ok(found) => keys.extend(found),
                        Err(reason) => reasons.push(format!("key {}: {reason}", path.display())),
                    }
                }
                keys
            }
        };
        let good = match proof {
            Proof::Fresh(evidence) => {
                let signed_whole = evidence.transport != Transport::Docker
                    && evidence.archive_keys.iter().any(|signer| self.minisign.has(&signer.key));
                let good = fresh(&keys, wanted, name, evidence, &mut reasons);
                if signed_whole || !good.is_empty() {
                    return Ok(good);
                }
                good
            }
            Proof::Recorded(recorded) => (recorded.iter())
                .filter(|record| match record.name.as_str() {
                    "" => self.minisign.has(&record.key),
                    signed => {
                        keys.iter().any(|key| key.fingerprint == record.key)
                            && wanted.identity.check(name, signed).is_ok()
                    }
                })
                .cloned()
                .collect(),
        };
        if !good.is_empty() {
            return Ok(good);
        }
        if let Proof::Recorded(recorded) = proof {
            let tried: Vec<String> = keys.iter().map(Key::describe).collect();
            reasons.push(match recorded.is_empty() {
                true => "none was verified when the image came in".into(),
                false => format!("none of those verified when the image came in fits ({})", tried.join(", ")),
            });
        }
        let more = reasons.len().saturating_sub(MOST_REASONS);
        reasons.truncate(MOST_REASONS);
        if more > 0 {
            reasons.push(format!("and {more} more"));
        }
        Err(reasons.join("; "))
    }

    /// Where the policy is, or would be.
    pub fn policy_path(&self) -> &Path {
        &self.settings.policy
    }

    /// What changes whenever the policy or a key that it names does: what was refused may be accepted then.
    pub fn revision(&self) -> Revision {
        let of = |path: &Path| std::fs::metadata(path).ok().as_ref().map(version);
        let policy = self.policy().ok().flatten();
        let keys = policy.iter().flat_map(|policy| policy.key_files());
        let files = [self.settings.policy.as_path()].into_iter().chain(keys).chain(self.minisign.files());
        Revision(files.map(of).collect())
    }

    /// The policy of now; `None`: there is none.
    fn policy(&self) -> Result<Option<Arc<Policy>>, Refusal> {
        let path = &self.settings.policy;
        let failed = |reason: String| Refusal::Policy { path: path.clone(), reason };
        let unreadable = |error: io::Error| failed(format!("cannot read it: {error}"));
        let mut cached = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match keyfile::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Whoever made the link wanted a policy: its disk may only not be there yet.
                if std::fs::symlink_metadata(path).is_ok() {
                    return Err(failed("it is a symbolic link to nothing".into()));
                }
                if cached.take().is_some() {
                    tracing::warn!(policy = %path.display(), "the signature policy is gone: all images are accepted");
                }
                return Ok(None);
            }
            other => other.map_err(unreadable)?,
        };
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(failed("it is not a regular file".into()));
        }
        keyfile::check_mode(&metadata).map_err(failed)?;
        let version = version(&metadata);
        if let Some(loaded) = cached.as_ref().filter(|loaded| loaded.version == version && !racy(metadata.ctime())) {
            return loaded.policy.clone().map(Some).map_err(failed);
        }
        let mut content = Vec::new();
        file.take(LARGEST_POLICY + 1).read_to_end(&mut content).map_err(unreadable)?;
        let policy = match content.len() as u64 > LARGEST_POLICY {
            true => Err(format!("it is larger than {LARGEST_POLICY} bytes")),
            false => Policy::parse(&content).map(Arc::new),
        };
        if cached.as_ref().is_none_or(|loaded| loaded.version != version) {
            match &policy {
                Ok(policy) => {
                    for reason in policy.unsupported() {
                        tracing::warn!(policy = %path.display(), %reason, "no image can meet this; those it is for are refused");
                    }
                }
                Err(reason) => {
                    tracing::error!(policy = %path.display(), %reason, "the signature policy cannot be used: all images are refused");
                }
            }
        }
        *cached = Some(Loaded { version, policy: policy.clone() });
        policy.map(Some).map_err(failed)
    }
}

/// Whether this (normalised) is how an image is asked for by its ID: all of it, for names may end in anything.
fn is_id(asked: &str, id: &str) -> bool {
    let hex = id.trim_start_matches("sha256:");
    let asked = asked.strip_prefix("docker.io/library/").unwrap_or(asked);
    asked == id || asked == hex || asked.strip_suffix(":latest") == Some(hex)
}

/// Says what to do about an image of the store whose signatures were not verified when it came in.
fn advise(refusal: Refusal, origins: &[Origin]) -> Refusal {
    let Refusal::Unsigned { name, mut reason } = refusal else { return refusal };
    let again = match origins.iter().rev().find(|origin| !matches!(origin, Origin::BuiltIn)) {
        Some(Origin::Registry { .. }) => format!("coracle image pull {name}"),
        Some(Origin::Archive { path }) => format!("coracle image import {}", path.display()),
        _ => "coracle image import FILE".to_owned(),
    };
    reason.push_str(&format!("; its signatures are looked at again by: {again}"));
    Refusal::Unsigned { name, reason }
}

fn version(metadata: &Metadata) -> Version {
    let (modified, changed) = ((metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec()));
    (metadata.dev(), metadata.ino(), metadata.size(), modified, changed)
}

/// Whether a file of this time (seconds since 1970) may have been written to again within the granularity of times.
fn racy(changed: i64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let changed = Duration::from_secs(u64::try_from(changed).unwrap_or_default());
    now.checked_sub(changed).is_none_or(|age| age < RACY)
}

/// The signatures that come with the image and are good; `reasons` says what is wrong with the others.
fn fresh(
    keys: &[Key],
    wanted: &Signed,
    name: Option<&Named>,
    evidence: &Evidence<'_>,
    reasons: &mut Vec<String>,
) -> Vec<Verification> {
    let mut good = Vec::new();
    if evidence.signatures.is_empty() && evidence.problems.is_empty() {
        reasons.push("the image comes with no signature".into());
    }
    reasons.extend(evidence.problems.iter().cloned());
    if evidence.signatures.len() > MOST_SIGNATURES {
        reasons.push(format!("only the first {MOST_SIGNATURES} signatures were looked at"));
    }
    for (number, signature) in evidence.signatures.iter().enumerate().take(MOST_SIGNATURES) {
        // What it says is believed only after a key is found for it; what it is not about needs no key.
        let outcome = cosign::parse(&signature.payload).and_then(|payload| {
            if !evidence.digests.contains(&payload.digest) {
                return Err(format!("is for another image, {}", payload.digest));
            }
            let Some(key) = keys.iter().find(|key| key.verifies(&signature.payload, &signature.signature)) else {
                let tried: Vec<String> = keys.iter().map(Key::describe).collect();
                return Err(match tried.is_empty() {
                    true => "there is no key to verify it with".into(),
                    false => format!("does not verify with {}", tried.join(", nor with ")),
                });
            };
            wanted.identity.check(name, &payload.reference)?;
            Ok(Verification { name: payload.reference, key: key.fingerprint.clone(), comment: None })
        });
        match outcome {
            Ok(verification) => good.push(verification),
            Err(reason) => reasons.push(format!("signature {}: {reason}", number + 1)),
        }
    }
    good
}
