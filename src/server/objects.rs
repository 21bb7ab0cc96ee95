//! ConfigMaps and Secrets as they are shown. Pure.
//!
//! A Secret's values are not: whoever may open the socket may exec into the pod that has them, but what is printed ends up
//! in terminals, tickets and logs. There is no flag for it either; the manifest has the values.

use crate::manifest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;

/// Annotation in which kubectl keeps the manifest, values and all.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object with sizes in place of what is secret.
#[derive(Clone, PartialEq)]
pub(super) struct Shown {
    pub(super) metadata: ObjectMeta,
    pub(super) value: Value,
}

impl Shown {
    /// With asterisks for what is secret, as many as there are bytes: kubectl wants Base64, and tells sizes itself.
    pub(super) fn masked(object: &manifest::Object) -> Shown {
        let mut shown = Shown::of(object);
        if let manifest::Object::Secret(secret) = object {
            let mask =
                |(key, value): (&String, &ByteString)| (key.clone(), STANDARD.encode(mask(value.0.len())).into());
            shown.value["data"] = Value::Object(secret.data.iter().flatten().map(mask).collect());
        }
        shown
    }

    /// With sizes for what is secret.
    pub(super) fn of(object: &manifest::Object) -> Shown {
        let (metadata, value) = match object {
            manifest::Object::ConfigMap(map) => (&map.metadata, serde_json::to_value(map.as_ref())),
            manifest::Object::Secret(secret) => (&secret.metadata, serde_json::to_value(secret.as_ref())),
        };
        let mut shown = Shown { metadata: metadata.clone(), value: value.unwrap_or_default() };
        if let manifest::Object::Secret(secret) = object {
            shown.metadata.annotations.iter_mut().for_each(|annotations| drop(annotations.remove(LAST_APPLIED)));
            // Plain data serialises.
            shown.value["metadata"] = serde_json::to_value(&shown.metadata).unwrap_or_default();
            let sizes = secret.data.iter().flatten().map(|(key, value)| {
                let unit = if value.0.len() == 1 { "byte" } else { "bytes" };
                (key.clone(), format!("<{} {unit}>", value.0.len()).into())
            });
            shown.value["data"] = Value::Object(sizes.collect());
            if let Some(fields) = shown.value.as_object_mut() {
                fields.remove("stringData");
            }
        }
        shown
    }
}

fn mask(length: usize) -> Vec<u8> {
    vec![b'*'; length]
}

/// Whether a value of a Secret is what is shown in place of one, of that length.
pub(super) fn is_mask(value: &str, length: usize) -> bool {
    STANDARD.decode(value).is_ok_and(|bytes| bytes == mask(length))
}

impl Serialize for Shown {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn a_secret_shows_sizes_for_values() {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": "s", "annotations": {"a": "b", LAST_APPLIED: "{\"stringData\": {\"p\": \"hunter2\"}}"}},
            "data": {"p": "aHVudGVyMg==", "q": "AA=="}, "stringData": {"p": "hunter2"},
        });
        let secret = manifest::Object::Secret(Arc::new(serde_json::from_value(secret).unwrap()));
        let want = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": "s", "annotations": {"a": "b"}}, "data": {"p": "<7 bytes>", "q": "<1 byte>"},
        });
        assert_eq!(serde_json::to_value(Shown::of(&secret)).unwrap(), want);
        let masked = serde_json::to_value(Shown::masked(&secret)).unwrap();
        assert_eq!(masked["data"], json!({"p": "KioqKioqKg==", "q": "Kg=="}));
        assert!(is_mask("KioqKioqKg==", 7) && !is_mask("KioqKioqKg==", 6) && !is_mask("aHVudGVyMg==", 7));
    }

    #[test]
    fn a_config_map_is_shown_as_it_is() {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "1"}});
        let object = manifest::Object::ConfigMap(Arc::new(serde_json::from_value(map.clone()).unwrap()));
        assert_eq!(serde_json::to_value(Shown::of(&object)).unwrap(), map);
    }
}
