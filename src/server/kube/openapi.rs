//! As little OpenAPI as kubectl accepts: that the server checks fields itself (`fieldValidation`), so that kubectl does not
//! want to. Pure.

use super::super::reply::Failure;
use super::resource::{RESOURCES, Resource};
use serde_json::{Map, Value, json};

/// Type of the answer to `/openapi/v2`.
pub(super) const V2_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The document of [`v2`] for whoever wants JSON.
pub(super) fn v2_json() -> Value {
    json!({"swagger": "2.0", "info": {"title": "coracle", "version": "v1"}, "paths": {}})
}

/// A document of OpenAPI 2 without definitions, in the one form that kubectl reads: protobuf, `swagger: "2.0"` and
/// `info: {title, version}`.
pub(super) fn v2() -> Vec<u8> {
    let field = |number: u8, content: &[u8]| {
        // Contents are shorter than 128 bytes, so that their length is one byte.
        let mut out = vec![number << 3 | 2, content.len() as u8];
        out.extend_from_slice(content);
        out
    };
    let info = [field(1, b"coracle"), field(2, b"v1")].concat();
    [field(1, b"2.0"), field(2, &info), field(8, &[])].concat()
}

/// Answer to `/openapi/v3`.
pub(super) fn v3() -> Value {
    json!({"paths": {
        "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"},
        "apis/events.k8s.io/v1": {"serverRelativeURL": "/openapi/v3/apis/events.k8s.io/v1"},
    }})
}

/// Answer to `/openapi/v3/api/v1` and its like: the paths, without schemas.
///
/// # Errors
/// 404.
pub(super) fn v3_of(path: &str) -> Result<Value, Failure> {
    let resources = match path {
        "api/v1" => &RESOURCES[..],
        "apis/events.k8s.io/v1" => &[Resource::Events],
        _ => return Err(Failure::not_found(format!("no OpenAPI document of {path:?}"))),
    };
    let (group, version) = path.trim_start_matches("apis/").rsplit_once('/').unwrap_or_default();
    let group = if group == "api" { "" } else { group };
    let mut paths = Map::new();
    for resource in resources {
        let below = if resource.is_namespaced() { "namespaces/{namespace}/" } else { "" };
        let kind = json!({"group": group, "version": version, "kind": resource.kind()});
        let operation = |action: &str, parameters: &[&str]| {
            let parameter = |name: &&str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
            let parameters: Vec<Value> = parameters.iter().map(parameter).collect();
            json!({
                "parameters": parameters,
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": kind,
            })
        };
        let mut one = json!({"get": operation("get", &[])});
        let mut all = json!({"get": operation("list", &["fieldSelector", "labelSelector", "limit", "continue"])});
        // A namespace, too: what kubectl looks at where it does not know the kind.
        if resource.is_written() || *resource == Resource::Namespaces {
            let written = ["dryRun", "fieldManager", "fieldValidation"];
            one["put"] = operation("put", &written);
            one["patch"] = operation("patch", &["dryRun", "fieldManager", "fieldValidation", "force"]);
            one["delete"] = operation("delete", &["dryRun"]);
            all["post"] = operation("post", &written);
        }
        paths.insert(format!("/{path}/{below}{}/{{name}}", resource.plural()), one);
        paths.insert(format!("/{path}/{below}{}", resource.plural()), all);
    }
    let info = json!({"title": "coracle", "version": "v1"});
    Ok(json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_fields_are_checked_is_told() {
        let document = v3_of("api/v1").unwrap();
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "", "version": "v1", "kind": "Pod"}));
        assert!(patch["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation"));
        for path in v3()["paths"].as_object().unwrap().keys() {
            assert!(v3_of(path).is_ok(), "{path}");
        }
        assert!(v3_of("apis/apps/v1").is_err());
    }

    #[test]
    fn the_older_document_is_well_formed() {
        assert_eq!(v2(), b"\x0a\x032.0\x12\x0d\x0a\x07coracle\x12\x02v1\x42\x00");
    }
}
