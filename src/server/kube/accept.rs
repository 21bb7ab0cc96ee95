//! `Accept` → the shape of an answer. Pure.

use super::super::reply::Failure;

/// The shape in which objects are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// As they are.
    Whole,
    /// Their metadata only.
    Metadata,
    /// As rows, ready to be printed.
    Table(Include),
}

/// What of the object comes with its row (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Include {
    Nothing,
    Metadata,
    Object,
}

/// The forms of a type, of those that a client takes, in its order: what is before the parameters, and the parameters.
fn ranges(accept: &str) -> impl Iterator<Item = (&str, Vec<(&str, &str)>)> {
    accept.split(',').map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        (kind, parts.filter_map(|part| part.split_once('=')).collect())
    })
}

fn is_json(kind: &str) -> bool {
    matches!(kind, "application/json" | "application/*" | "*/*")
}

/// The first form that there is here. No header: JSON.
///
/// # Errors
/// 406 when a client takes none, 400 when it wants a part of an object that there is not.
pub(super) fn shape(accept: Option<&str>, include: Option<&str>) -> Result<Shape, Failure> {
    let include = match include {
        None | Some("Metadata") => Include::Metadata,
        Some("None") => Include::Nothing,
        Some("Object") => Include::Object,
        Some(other) => {
            return Err(Failure::bad_request(format!("includeObject: {other:?} is not None, Metadata or Object")));
        }
    };
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else { return Ok(Shape::Whole) };
    for (kind, parameters) in ranges(accept) {
        let get = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        match (is_json(kind), get("as"), get("v"), get("g")) {
            (true, None, ..) => return Ok(Shape::Whole),
            (true, Some("Table"), Some("v1"), Some("meta.k8s.io")) => return Ok(Shape::Table(include)),
            (true, Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1"), Some("meta.k8s.io")) => {
                return Ok(Shape::Metadata);
            }
            _ => {}
        }
    }
    Err(Failure::not_acceptable("only the following media types are supported: application/json"))
}

/// Whether a client takes all of discovery in one (`apidiscovery.k8s.io/v2`), and would rather.
pub(super) fn wants_all(accept: Option<&str>) -> bool {
    for (kind, parameters) in ranges(accept.unwrap_or_default()) {
        let has = |name: &str, value: &str| parameters.contains(&(name, value));
        let is_discovery = has("g", "apidiscovery.k8s.io") && has("as", "APIGroupDiscoveryList");
        match (is_json(kind), is_discovery) {
            (true, true) if has("v", "v2") => return true,
            (true, false) if !parameters.iter().any(|(name, _)| *name == "as") => return false,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_form_that_there_is_is_taken() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,\
            application/json";
        let shape = |accept| shape(accept, None).ok();
        assert_eq!(shape(Some(kubectl)), Some(Shape::Table(Include::Metadata)));
        assert_eq!(shape(Some("application/vnd.kubernetes.protobuf, application/json")), Some(Shape::Whole));
        assert_eq!(shape(Some("application/json;as=Table;v=v2;g=meta.k8s.io, */*")), Some(Shape::Whole));
        assert_eq!(
            shape(Some("application/json; as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")),
            Some(Shape::Metadata)
        );
        assert_eq!(shape(None), Some(Shape::Whole));
        assert_eq!(shape(Some("application/json;q=0.9")), Some(Shape::Whole));
        assert_eq!(shape(Some("application/vnd.kubernetes.protobuf")), None);
        assert!(super::shape(None, Some("Everything")).is_err());
    }

    #[test]
    fn discovery_comes_in_one_for_who_asks_for_it() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
            application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert!(wants_all(Some(kubectl)));
        assert!(!wants_all(Some("application/json")) && !wants_all(None));
        assert!(!wants_all(Some("application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList")));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(accept in "\\PC{0,80}") {
            let _ = (shape(Some(&accept), None), wants_all(Some(&accept)));
        }
    }
}
