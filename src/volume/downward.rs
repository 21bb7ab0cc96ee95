//! The downward API as files: fields and resources of the pod. Pure.

use super::Error;
use super::payload::{File, Payload};
use crate::pod::resources::{self, Allocatable};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Pod, ResourceFieldSelector};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Mode of files whose volume and item name none.
pub(super) const DEFAULT_MODE: i32 = 0o644;

/// Adds `items` to `payload`; an item's own mode comes before `default_mode`.
///
/// # Errors
/// [`Error::Field`], [`Error::Resources`], [`Error::Payload`].
pub(super) fn add(
    payload: &mut Payload,
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: i32,
    node: &Allocatable,
) -> Result<(), Error> {
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => field_value(pod, &field.field_path)?,
            (None, Some(selector)) => resource_value(pod, selector, node)?,
            (None, None) => return Err(Error::Field(format!("downwardAPI item {:?} refers to nothing", item.path))),
        };
        let mode = u32::try_from(item.mode.unwrap_or(default_mode)).unwrap_or_default() & 0o777;
        payload.add(&item.path, File { bytes: text.into_bytes(), mode, owner: None })?;
    }
    Ok(())
}

/// Value of a `fieldRef` of a volume (as kubelet: `pkg/fieldpath`).
fn field_value(pod: &Pod, path: &str) -> Result<String, Error> {
    let meta = &pod.metadata;
    let unsupported = || Error::Field(format!("unsupported fieldPath: {path}"));
    let map = |name: &str| match name {
        "metadata.labels" => Ok(meta.labels.as_ref()),
        "metadata.annotations" => Ok(meta.annotations.as_ref()),
        _ => Err(unsupported()),
    };
    if let Some((name, rest)) = path.split_once("['") {
        let key = rest.strip_suffix("']").ok_or_else(unsupported)?;
        return Ok(map(name)?.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let text = |v: &Option<String>| Ok(v.clone().unwrap_or_default());
    match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        _ => Ok(map(path)?.map(format_map).unwrap_or_default()),
    }
}

/// Value of a `resourceFieldRef` of a volume: unlike in a variable, the pod's own limits do not count.
fn resource_value(pod: &Pod, selector: &ResourceFieldSelector, node: &Allocatable) -> Result<String, Error> {
    let missing = || Error::Field(format!("resourceFieldRef {}: containerName is required", selector.resource));
    selector.container_name.as_deref().filter(|name| !name.is_empty()).ok_or_else(missing)?;
    let mut pod = pod.clone();
    let spec = pod.spec.get_or_insert_default();
    spec.resources = None;
    let first = spec.containers.first().cloned().unwrap_or_default();
    Ok(resources::field(&pod, &first, selector, node)?)
}

/// `key="value"` lines, sorted.
fn format_map(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

/// A string literal of Go, as its `%q` writes it: programs read these files with a parser of that.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if is_printable(c) => out.push(c),
            // Writing to a String cannot fail.
            c if c < ' ' || c == '\u{7f}' => drop(write!(out, "\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x1_0000 => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => drop(write!(out, "\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// Go's `unicode.IsPrint` and Rust's idea of what needs no escape are both "letters, marks, numbers, punctuation, symbols
/// and the blank"; Rust only tells it through an escaped string, and escapes marks at its beginning.
fn is_printable(c: char) -> bool {
    let pair = ['x', c];
    matches!(c, '\'') || pair.iter().collect::<String>().escape_debug().nth(1) == Some(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "d", "uid": "u-1",
                "labels": {"b": "2", "a": "x \"y\"\n\u{1}é\u{200b}\u{1f600}\u{10ffff}"}, "annotations": {"k/l": "v"}},
            "spec": {
                "resources": {"limits": {"memory": "9Mi"}},
                "containers": [
                    {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}},
                    {"name": "e"}]
            }
        }))
        .expect("pod")
    }

    fn get(item: Value) -> Result<(String, u32), String> {
        let mut item = item;
        item["path"] = json!("f");
        let items = [serde_json::from_value(item).expect("item")];
        let node = Allocatable { cpu_milli: 4000, memory: 1 << 30, ephemeral_storage: 0 };
        let mut payload = Payload::default();
        add(&mut payload, &pod(), &items, 0o440, &node).map_err(|e| e.to_string())?;
        let file = payload.get("f").expect("file");
        Ok((String::from_utf8(file.bytes.clone()).expect("text"), file.mode))
    }

    #[test]
    fn fields() {
        let of = |path: &str| get(json!({"fieldRef": {"fieldPath": path}})).map(|(text, _)| text);
        assert_eq!(of("metadata.name"), Ok("p".into()));
        assert_eq!(of("metadata.namespace"), Ok("d".into()));
        assert_eq!(of("metadata.uid"), Ok("u-1".into()));
        assert_eq!(of("metadata.labels['b']"), Ok("2".into()));
        assert_eq!(of("metadata.annotations['k/l']"), Ok("v".into()));
        assert_eq!(of("metadata.annotations['none']"), Ok(String::new()));
        let all = "a=\"x \\\"y\\\"\\n\\x01é\\u200b😀\\U0010ffff\"\nb=\"2\"";
        assert_eq!(of("metadata.labels"), Ok(all.into()));
        assert_eq!(of("metadata.annotations"), Ok("k/l=\"v\"".into()));
        for bad in ["status.podIP", "spec.nodeName", "metadata.labels['b'", "metadata.name['x']", ""] {
            assert_eq!(of(bad), Err(format!("unsupported fieldPath: {bad}")));
        }
    }

    #[test]
    fn resources() {
        let of = |container: &str, resource: &str, divisor: &str| {
            let selector = json!({"containerName": container, "resource": resource, "divisor": divisor});
            get(json!({"resourceFieldRef": selector})).map(|(text, _)| text)
        };
        assert_eq!(of("c", "limits.cpu", "1"), Ok("2".into()));
        assert_eq!(of("c", "limits.cpu", "1m"), Ok("1500".into()));
        assert_eq!(of("c", "requests.memory", "1Mi"), Ok("64".into()));
        // Not the pod's 9 MiB: that is for variables.
        assert_eq!(of("e", "limits.memory", "1Mi"), Ok("1024".into()));
        assert_eq!(of("e", "requests.memory", "1"), Ok("0".into()));
        assert_eq!(of("none", "limits.cpu", "1"), Err("container none not found".into()));
        assert_eq!(of("", "limits.cpu", "1"), Err("resourceFieldRef limits.cpu: containerName is required".into()));
    }

    #[test]
    fn modes() {
        let field = json!({"fieldPath": "metadata.name"});
        assert_eq!(get(json!({"fieldRef": field})).map(|(_, mode)| mode), Ok(0o440));
        assert_eq!(get(json!({"fieldRef": field, "mode": 256})).map(|(_, mode)| mode), Ok(0o400));
        assert!(get(json!({})).is_err());
    }

    /// Reads what [`quote`] writes, by the rules of Go.
    fn unquote(text: &str) -> Option<String> {
        let mut rest = text.strip_prefix('"')?.strip_suffix('"')?.chars();
        let mut out = String::new();
        while let Some(c) = rest.next() {
            if c == '"' || c == '\n' {
                return None;
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            let (c, digits) = match rest.next()? {
                'a' => ('\u{7}', 0),
                'b' => ('\u{8}', 0),
                'f' => ('\u{c}', 0),
                'n' => ('\n', 0),
                'r' => ('\r', 0),
                't' => ('\t', 0),
                'v' => ('\u{b}', 0),
                c @ ('"' | '\\') => (c, 0),
                'x' => ('x', 2),
                'u' => ('u', 4),
                'U' => ('U', 8),
                _ => return None,
            };
            let hex: String = rest.by_ref().take(digits).collect();
            out.push(if digits == 0 { c } else { char::from_u32(u32::from_str_radix(&hex, 16).ok()?)? });
        }
        Some(out)
    }

    proptest! {
        #[test]
        fn quoted_text_comes_back(text in any::<String>()) {
            prop_assert_eq!(unquote(&quote(&text)), Some(text));
        }

        #[test]
        fn quoted_text_is_one_line(text in "[\\n\\r\"\\\\a-z\\x00-\\x1f]{0,20}") {
            prop_assert!(!quote(&text).contains(['\n', '\r', '\0']));
        }
    }
}
