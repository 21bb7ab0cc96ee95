//! Signatures that come with archives: minisign's beside them, cosign's inside.
//!
//! `cosign save` and copies of whole repositories put signatures into OCI layouts as manifests of their own: marked by an
//! annotation, or named by a tag made from the digest of what is signed.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::super::archive::Archive;
use super::super::{Digest, Error, Verification};
use super::minisign::{self, SignedFile, Signer};
use super::{Evidence, Refusal, Signature, Transport, Trust};

/// Where a layer of a signature manifest has the signature, in base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// What `cosign save` marks such manifests with.
const KIND: (&str, &str) = ("kind", "dev.cosignproject.cosign/sigs");
/// Where layouts keep tags.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Most signatures that are taken from one archive, and from one manifest.
const MOST_SIGNATURES: usize = 1024;

/// A signature that a manifest lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The blob that was signed.
    pub payload: Digest,
    /// Not base64.
    pub signature: Vec<u8>,
}

/// The tag under which cosign keeps the signatures of what has this digest.
pub fn signature_tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// Whether a manifest that an index describes with these annotations holds signatures, and is no image.
pub(in super::super) fn holds_signatures(annotations: &HashMap<String, String>) -> bool {
    let tag = annotations.get(REF_NAME).map(|name| name.rsplit(':').next().unwrap_or_default());
    let named =
        tag.and_then(|tag| tag.strip_prefix("sha256-")?.strip_suffix(".sig")).is_some_and(|hex| hex.len() == 64);
    named || annotations.get(KIND.0).is_some_and(|kind| kind == KIND.1)
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// The signatures in a manifest of cosign's. Layers without one (attestations, say) are not for us.
///
/// # Errors
/// What is wrong with it.
pub fn listed_signatures(manifest: &[u8]) -> Result<Vec<Listed>, String> {
    let manifest: Manifest =
        serde_json::from_slice(manifest).map_err(|error| format!("cannot read the manifest of signatures: {error}"))?;
    let mut listed = Vec::new();
    for layer in manifest.layers {
        let Some(text) = layer.annotations.as_ref().and_then(|annotations| annotations.get(SIGNATURE)) else {
            continue;
        };
        let signature = STANDARD.decode(text.trim()).map_err(|error| format!("a signature is not base64: {error}"))?;
        if listed.len() == MOST_SIGNATURES {
            return Err(format!("more than {MOST_SIGNATURES} signatures"));
        }
        listed.push(Listed { payload: layer.digest, signature });
    }
    Ok(listed)
}

/// Everything that vouches for what is in one archive, and what came of it.
#[derive(Debug)]
pub(in super::super) struct Vetting<'a> {
    trust: &'a Trust,
    path: PathBuf,
    /// The archive, if it is signed as a whole.
    signed: Option<SignedFile>,
    archive_keys: Vec<Signer>,
    transport: Transport,
    signatures: Vec<Signature>,
    /// Why signatures in the archive could not be used.
    problems: Vec<String>,
    refused: Vec<Refusal>,
}

impl<'a> Vetting<'a> {
    /// Begins with the archive at `path`, opened as `file`; `None` for what has nothing beside it: folders, streams.
    ///
    /// # Errors
    /// [`Error::Refused`] for a signature of the whole archive that is no good, whatever the policy says.
    pub fn begin(trust: &'a Trust, path: &Path, file: Option<&File>) -> Result<Vetting<'a>, Error> {
        let mut vetting = Vetting {
            trust,
            path: path.into(),
            signed: None,
            archive_keys: Vec::new(),
            transport: Transport::OciLayout,
            signatures: Vec::new(),
            problems: Vec::new(),
            refused: Vec::new(),
        };
        if let Some(file) = file {
            vetting.signed =
                minisign::verify(&trust.minisign, path, file).map_err(|reason| vetting.refuse_all(reason))?;
            vetting.archive_keys = vetting.signed.iter().map(|signed| signed.signer.clone()).collect();
        }
        Ok(vetting)
    }

    fn refuse_all(&self, reason: String) -> Error {
        let refusal = Refusal::Unsigned { name: self.path.display().to_string(), reason };
        Error::Refused { archive: self.path.clone(), refusals: vec![refusal] }
    }

    /// Takes the signatures out of the archive. What is wrong with them matters only to images that need one.
    pub fn collect(&mut self, archive: &Archive) {
        self.transport = match (archive.contains("index.json"), archive.is_folder()) {
            (false, _) => Transport::DockerArchive,
            (true, false) => Transport::OciArchive,
            (true, true) => Transport::OciLayout,
        };
        if self.transport == Transport::DockerArchive {
            return;
        }
        let Ok(content) = archive.document("index.json", None) else { return };
        let Ok(index) = serde_json::from_slice::<Index>(&content) else { return };
        for descriptor in index.manifests {
            if descriptor.annotations.as_ref().is_some_and(holds_signatures) {
                self.collect_from(archive, &descriptor.digest);
            }
        }
    }

    fn collect_from(&mut self, archive: &Archive, manifest: &Digest) {
        let blob = |digest: &Digest| {
            archive.document(&format!("blobs/sha256/{}", digest.hex()), Some(digest)).map_err(|error| error.to_string())
        };
        let listed = blob(manifest).and_then(|manifest| listed_signatures(&manifest));
        let take = || {
            for Listed { payload, signature } in listed? {
                if self.signatures.len() == MOST_SIGNATURES {
                    return Err(format!("more than {MOST_SIGNATURES} signatures in the archive"));
                }
                self.signatures.push(Signature { payload: blob(&payload)?, signature });
            }
            Ok(())
        };
        let taken: Result<(), String> = take();
        if let Err(reason) = taken {
            self.problems.push(format!("signatures {manifest}: {reason}"));
        }
    }

    /// Decides on an image of the archive; `names` keeps those it is accepted under. `None`: it is refused altogether.
    pub fn admit(&mut self, names: &mut Vec<String>, digests: &[Digest]) -> Option<Vec<Verification>> {
        let mut verified = Vec::new();
        let mut accepted = Vec::new();
        let nameless = [String::new()];
        let asked = if names.is_empty() { &nameless[..] } else { names.as_slice() };
        // Signatures of the other images in the archive say nothing of this one, and would fill the message.
        let about = |signature: &&Signature| {
            super::cosign::parse(&signature.payload).map_or(true, |payload| digests.contains(&payload.digest))
        };
        let own: Vec<Signature> = self.signatures.iter().filter(about).cloned().collect();
        let signatures = if own.is_empty() { &self.signatures } else { &own };
        for name in asked {
            let evidence = Evidence {
                transport: self.transport,
                name,
                digests,
                signatures,
                archive_keys: &self.archive_keys,
                problems: &self.problems,
            };
            // As it is recorded where the image comes from; links to folders are followed by neither.
            match self.trust.admit_from(&evidence, Some(&self.path)) {
                Ok(found) => {
                    verified.extend(found);
                    accepted.push(name.clone());
                }
                Err(refusal) => self.refused.push(refusal),
            }
        }
        if accepted.is_empty() {
            return None;
        }
        names.retain(|name| accepted.contains(name));
        verified.sort();
        verified.dedup();
        Some(verified)
    }

    /// To be asked after an image was read and before it becomes usable: whether what was read is what was verified.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn unchanged(&self) -> Result<(), Error> {
        match &self.signed {
            Some(signed) if !signed.is_unchanged() => {
                Err(self.refuse_all("the archive was changed after its signature was verified".into()))
            }
            _ => Ok(()),
        }
    }

    /// What was refused.
    ///
    /// # Errors
    /// [`Error::Refused`] if anything was.
    pub fn finish(self) -> Result<(), Error> {
        match self.refused.is_empty() {
            true => Ok(()),
            false => Err(Error::Refused { archive: self.path, refusals: self.refused }),
        }
    }
}
