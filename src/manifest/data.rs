//! ConfigMap and Secret documents → objects with one map of values each.

use super::credentials::credentials;
use super::decode::{self, Values};
use super::identity;
use super::object::{CREDENTIALS, Object, ObjectKind};
use super::report::Report;
use super::tree::Node;
use super::validate;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, Engine};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A ConfigMap as it is written. Values are decoded here and not by the API's types, which would give up at the first one
/// that is no base64, without its line, and with the value in the message.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMap {
    #[serde(rename = "apiVersion")]
    _api_version: Option<String>,
    #[serde(rename = "kind")]
    _kind: Option<String>,
    metadata: Option<ObjectMeta>,
    immutable: Option<bool>,
    data: Option<BTreeMap<String, String>>,
    binary_data: Option<BTreeMap<String, String>>,
}

/// A Secret as it is written. No `Debug`: it holds values in clear.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenSecret {
    #[serde(rename = "apiVersion")]
    _api_version: Option<String>,
    #[serde(rename = "kind")]
    _kind: Option<String>,
    metadata: Option<ObjectMeta>,
    immutable: Option<bool>,
    #[serde(rename = "type")]
    type_: Option<String>,
    data: Option<BTreeMap<String, String>>,
    string_data: Option<BTreeMap<String, String>>,
}

/// The object of a document: defaulted and checked. `None` when it could not be read at all; what has errors is told by the
/// report.
pub(super) fn read(document: &Node, kind: ObjectKind, report: &mut Report<'_>) -> Option<Object> {
    match kind {
        ObjectKind::ConfigMap => config_map(document, report).map(|map| Object::ConfigMap(Arc::new(map))),
        ObjectKind::Secret => secret(document, report).map(|secret| Object::Secret(Arc::new(secret))),
    }
}

fn config_map(document: &Node, report: &mut Report<'_>) -> Option<ConfigMap> {
    let written: WrittenMap = decode::read(document, Values::Shown, report)?;
    let map = ConfigMap {
        metadata: metadata(written.metadata, document, report),
        immutable: written.immutable,
        data: written.data.filter(|data| !data.is_empty()),
        binary_data: bytes("binaryData", written.binary_data, report),
    };
    if map.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(CREDENTIALS)) {
        report.warning(format!("metadata.annotations[{CREDENTIALS}]"), "is for Secrets only: ignored");
    }
    validate::config_map(&map, report);
    Some(map)
}

fn secret(document: &Node, report: &mut Report<'_>) -> Option<Secret> {
    let written: WrittenSecret = decode::read(document, Values::Hidden, report)?;
    let mut data = bytes("data", written.data, report).unwrap_or_default();
    let texts = written.string_data.unwrap_or_default();
    // As the API server: the text wins.
    data.extend(texts.iter().map(|(key, text)| (key.clone(), ByteString(text.clone().into_bytes()))));
    let secret = Secret {
        metadata: metadata(written.metadata, document, report),
        immutable: written.immutable,
        type_: Some(written.type_.filter(|kind| !kind.is_empty()).unwrap_or_else(|| "Opaque".to_owned())),
        data: Some(data).filter(|data| !data.is_empty()),
        string_data: None,
    };
    let kept = credentials(&secret);
    if let Err(error) = &kept {
        report.error(format!("metadata.annotations[{CREDENTIALS}]"), format!("Invalid value: {error}"));
    }
    validate::secret(&secret, kept.ok().as_ref(), &|key| texts.contains_key(key), report);
    Some(secret)
}

/// What is left of an object's metadata once all that only an API server sets is dropped, its UID included.
fn metadata(written: Option<ObjectMeta>, document: &Node, report: &mut Report<'_>) -> ObjectMeta {
    let mut metadata = written.unwrap_or_default();
    identity::drop_server_metadata(&mut metadata, document, report);
    identity::ignored("metadata.uid", document, report);
    metadata.uid = None;
    if metadata.namespace.as_deref().unwrap_or_default().is_empty() {
        metadata.namespace = Some("default".to_owned());
    }
    metadata
}

/// As Go reads base64: padded, line breaks anywhere, whatever the bits are that the last character has too many.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// The bytes of base64 values; of what is none, nothing.
fn bytes(
    field: &str,
    written: Option<BTreeMap<String, String>>,
    report: &mut Report<'_>,
) -> Option<BTreeMap<String, ByteString>> {
    let mut decoded = BTreeMap::new();
    for (key, text) in written.into_iter().flatten() {
        let packed: Vec<u8> = text.into_bytes().into_iter().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
        let length = packed.len();
        let value = BASE64.decode(packed).unwrap_or_else(|error| {
            // Never the value, nor the error as it is, which shows a byte of it.
            let at = match error {
                DecodeError::InvalidByte(at, _) => at,
                _ => length,
            };
            let remedy = match field {
                "data" => "text as it is belongs in stringData",
                _ => "text as it is belongs in data",
            };
            let reason = format!("Invalid value: illegal base64 data at input byte {at} ({remedy})");
            report.error(format!("{field}[{key}]"), reason);
            Vec::new()
        });
        decoded.insert(key, ByteString(value));
    }
    Some(decoded).filter(|decoded| !decoded.is_empty())
}
