//! As much of Kubernetes' protobuf as `kubectl auth` sends, which takes answers in JSON but asks in this. Pure.

use serde_json::{Value, json};

/// What a body in protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";

/// The media type.
pub(super) const TYPE: &str = "application/vnd.kubernetes.protobuf";

/// The first field of this number that has bytes; what else is there is skipped. `None`: there is none, or it is cut off.
fn field(mut message: &[u8], wanted: u64) -> Option<&[u8]> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let length = match tag & 7 {
            0 => {
                varint(&mut message)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (content, rest) = message.split_at_checked(length)?;
        if tag == wanted << 3 | 2 {
            return Some(content);
        }
        message = rest;
    }
    None
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for at in 0..10 {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn text(message: &[u8], number: u64) -> &str {
    field(message, number).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
}

/// The `spec` of a review, as JSON has it: of a `SelfSubjectAccessReview` or `SelfSubjectRulesReview`. `None`: it is neither.
pub(super) fn review(body: &[u8]) -> Option<Value> {
    let envelope = body.strip_prefix(MAGIC)?;
    let kind = text(field(envelope, 1)?, 2).to_owned();
    let spec = field(envelope, 2).and_then(|raw| field(raw, 2)).unwrap_or_default();
    let spec = match kind.as_str() {
        "SelfSubjectAccessReview" => match (field(spec, 1), field(spec, 2)) {
            (Some(of), _) => json!({"resourceAttributes": {
                "namespace": text(of, 1), "verb": text(of, 2), "group": text(of, 3), "version": text(of, 4),
                "resource": text(of, 5), "subresource": text(of, 6), "name": text(of, 7),
            }}),
            (None, Some(of)) => json!({"nonResourceAttributes": {"path": text(of, 1), "verb": text(of, 2)}}),
            (None, None) => json!({}),
        },
        "SelfSubjectRulesReview" => json!({"namespace": text(spec, 1)}),
        "SelfSubjectReview" => json!({}),
        _ => return None,
    };
    Some(json!({"kind": kind, "spec": spec}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8][..], content].concat()
    }

    fn body(kind: &str, spec: &[u8]) -> Vec<u8> {
        let meta = [put(1, b"authorization.k8s.io/v1"), put(2, kind.as_bytes())].concat();
        let raw = [put(1, b""), put(2, spec), put(3, b"\x08\x00")].concat();
        [MAGIC.to_vec(), put(1, &meta), put(2, &raw), put(3, b""), put(4, b"")].concat()
    }

    #[test]
    fn reviews_are_read() {
        // A number stands before what is looked for.
        let of = [put(1, b"default"), b"\x78\x96\x01".to_vec(), put(2, b"create"), put(5, b"pods"), put(6, b"exec")]
            .concat();
        let read = review(&body("SelfSubjectAccessReview", &put(1, &of))).unwrap();
        let of = &read["spec"]["resourceAttributes"];
        assert_eq!(
            (&of["verb"], &of["resource"], &of["subresource"]),
            (&json!("create"), &json!("pods"), &json!("exec"))
        );
        let path = put(2, &[put(1, b"/healthz"), put(2, b"get")].concat());
        let read = review(&body("SelfSubjectAccessReview", &path)).unwrap();
        assert_eq!(read["spec"]["nonResourceAttributes"], json!({"path": "/healthz", "verb": "get"}));
        let read = review(&body("SelfSubjectRulesReview", &put(1, b"default"))).unwrap();
        assert_eq!(read["spec"], json!({"namespace": "default"}));
        assert!(review(&body("Pod", b"")).is_none() && review(b"{}").is_none() && review(b"k8s\0").is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = review(&[MAGIC, &bytes].concat());
            let _ = review(&body("SelfSubjectAccessReview", &bytes));
        }
    }
}
