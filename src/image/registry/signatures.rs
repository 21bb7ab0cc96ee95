//! What cosign has stored beside an image: a manifest under a tag made of the digest, a layer for each signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Error;
use super::client::Session;
use super::manifest::{self, Manifest};
use super::pull::{document, small_blob};
use crate::causes::chain;
use crate::image::Digest;
use crate::image::trust::{Signature, signature_tag};

/// Most signatures of one digest that are looked at, and the largest payload of one in bytes.
const MOST_SIGNATURES: usize = 32;
const LARGEST_PAYLOAD: u64 = 64 << 10;
/// Where cosign keeps the signature of a payload, in base64.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// The signatures of what one name stands for.
#[derive(Debug, Default)]
pub(super) struct Attached {
    pub signatures: Vec<Signature>,
    /// Why others cannot be used, for people.
    pub problems: Vec<String>,
}

impl Attached {
    /// Adds those that a registry has for `digest`. What the registry serves in their place is a problem of these
    /// signatures, and no reason to give up: others may be good.
    ///
    /// # Errors
    /// When the registry does not answer, or lets nobody in. That it has none is none.
    pub fn fetch(&mut self, session: &Session<'_>, digest: &Digest) -> Result<(), Error> {
        let tag = signature_tag(digest);
        let said = |error: &Error| format!("signatures {tag}: {}", chain(error));
        let (content, content_type) = match document(session, &tag, None, None) {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return self.look_for_bundle(session, digest),
            Err(error) if is_of_the_way(&error) => return Err(error),
            Err(error) => {
                self.problem(said(&error));
                return Ok(());
            }
        };
        let layers = match manifest::parse(&content, &content_type) {
            Ok(Manifest::Image { layers, .. }) => layers,
            Ok(Manifest::Index(_)) => {
                self.problem(format!("signatures {tag}: an index, not a manifest of signatures"));
                return Ok(());
            }
            Err(error) => {
                self.problem(said(&error.into()));
                return Ok(());
            }
        };
        let payloads: Vec<_> = layers.iter().filter(|layer| layer.media_type == PAYLOAD).collect();
        if payloads.is_empty() {
            self.problem(format!("signatures {tag}: there is none in it"));
        }
        if payloads.len() > MOST_SIGNATURES {
            self.problem(format!("signatures {tag}: only the first {MOST_SIGNATURES} were looked at"));
        }
        for layer in payloads.into_iter().take(MOST_SIGNATURES) {
            let annotation = layer.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION));
            // One that cannot be read signs nothing; another may.
            let Some(signature) = annotation.and_then(|text| STANDARD.decode(text.trim()).ok()) else {
                self.problem(format!("signature of {}: not base64, or not there", layer.digest));
                continue;
            };
            match small_blob(session, "signature payload", layer, LARGEST_PAYLOAD) {
                Ok(payload) => {
                    let signature = Signature { payload, signature };
                    // Mirrors have the same ones.
                    if !self.signatures.contains(&signature) {
                        self.signatures.push(signature);
                    }
                }
                Err(error) if is_of_the_way(&error) => return Err(error),
                Err(error) => self.problem(format!("signature of {}: {}", layer.digest, chain(&error))),
            }
        }
        Ok(())
    }

    fn problem(&mut self, what: String) {
        if !self.problems.contains(&what) {
            self.problems.push(what);
        }
    }

    /// cosign 3 writes bundles under a tag of their own, unless it is told not to. They do not say what the image is
    /// called, so that no `signedIdentity` can be held against them; whoever made one wants to know why it does not count.
    fn look_for_bundle(&mut self, session: &Session<'_>, digest: &Digest) -> Result<(), Error> {
        match document(session, &format!("sha256-{}", digest.hex()), None, None) {
            Ok(_) => self.problem(
                "there are attachments of the newer kind, and sigstore's bundles among them do not count, for they do not \
                 say what the image is called: sign with cosign sign --new-bundle-format=false --use-signing-config=false"
                    .into(),
            ),
            Err(error @ Error::Cancelled) => return Err(error),
            // Only for the message.
            Err(_) => {}
        }
        Ok(())
    }
}

/// Whether an error says nothing of what was asked for.
fn is_of_the_way(error: &Error) -> bool {
    matches!(error, Error::Cancelled | Error::Unavailable { .. } | Error::Unauthorized { .. } | Error::Settings { .. })
}
