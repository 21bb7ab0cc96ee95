//! What a cosign signature says: the simple signing document.

use serde::Deserialize;
use serde_json::Value;

use super::super::Digest;
use super::object::Object;

/// Largest document that is looked at, in bytes. They are some hundred bytes long.
const LARGEST: usize = 1 << 20;

/// Types of the document: cosign's, and the one it has from the signatures before it.
const TYPES: [&str; 2] = ["cosign container image signature", "atomic container signature"];

/// What was signed. Nothing in it can be relied on before the signature over it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// What the signer calls the image; often only its repository.
    pub reference: String,
    /// Of the image's manifest or index.
    pub digest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    critical: Object<Critical>,
    /// Anything the signer likes to add.
    #[serde(default, rename = "optional")]
    _optional: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    r#type: String,
    identity: Object<RawIdentity>,
    image: Object<RawImage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawIdentity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawImage {
    docker_manifest_digest: Digest,
}

/// Reads a payload. As containers/image: unknown fields in what is critical are errors, for they may limit what is said.
///
/// # Errors
/// What is wrong with it.
pub fn parse(payload: &[u8]) -> Result<Payload, String> {
    if payload.len() > LARGEST {
        return Err(format!("its payload is larger than {LARGEST} bytes"));
    }
    let Object(document): Object<Document> =
        serde_json::from_slice(payload).map_err(|error| format!("its payload cannot be read: {error}"))?;
    let Object(Critical { r#type, identity: Object(identity), image: Object(image) }) = document.critical;
    if !TYPES.contains(&r#type.as_str()) {
        return Err(format!("its payload is of type {:?}, not {:?}", r#type, TYPES[0]));
    }
    // An empty name has a meaning of its own in what is recorded.
    if identity.docker_reference.is_empty() {
        return Err("its payload names no image".into());
    }
    Ok(Payload { reference: identity.docker_reference, digest: image.docker_manifest_digest })
}
