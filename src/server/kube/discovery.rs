//! What is served, as clients find out: by version and group, and all at once (`apidiscovery.k8s.io/v2`). Pure.

use super::super::reply::Failure;
use super::resource::{Group, RESOURCES, Resource};
use serde_json::{Value, json};

/// One thing that can be asked for, or what is below it.
struct Served {
    /// `pods`, `pods/log`.
    name: String,
    singular: &'static str,
    kind: &'static str,
    is_namespaced: bool,
    verbs: &'static [&'static str],
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
}

impl Served {
    fn of(resource: Resource, verbs: &'static [&'static str]) -> Served {
        Served {
            name: resource.plural().to_owned(),
            singular: resource.singular(),
            kind: resource.kind(),
            is_namespaced: resource.is_namespaced(),
            verbs,
            short_names: resource.short_names(),
            categories: resource.categories(),
        }
    }

    fn below(resource: Resource, name: &str, verbs: &'static [&'static str]) -> Served {
        let kind = match name {
            "attach" => "PodAttachOptions",
            "exec" => "PodExecOptions",
            "portforward" => "PodPortForwardOptions",
            _ => resource.kind(),
        };
        let name = format!("{}/{name}", resource.plural());
        Served { name, singular: "", kind, short_names: &[], categories: &[], ..Served::of(resource, verbs) }
    }

    /// What is asked and not kept.
    fn other(name: &str, kind: &'static str, is_namespaced: bool, verbs: &'static [&'static str]) -> Served {
        let name = name.to_owned();
        Served { name, singular: "", kind, is_namespaced, verbs, short_names: &[], categories: &[] }
    }
}

/// The groups, the core first, with their versions: each has one.
const GROUPS: [(&str, &str); 5] = [
    ("", "v1"),
    ("authentication.k8s.io", "v1"),
    ("authorization.k8s.io", "v1"),
    ("events.k8s.io", "v1"),
    ("metrics.k8s.io", "v1beta1"),
];

fn served(group: &str) -> Vec<Served> {
    match group {
        "" => {
            let each = RESOURCES.into_iter().flat_map(|resource| {
                let below = resource.subresources().iter();
                let below = below.map(move |(name, verbs)| Served::below(resource, name, verbs));
                std::iter::once(Served::of(resource, resource.verbs())).chain(below)
            });
            each.collect()
        }
        "authentication.k8s.io" => vec![Served::other("selfsubjectreviews", "SelfSubjectReview", false, &["create"])],
        "authorization.k8s.io" => vec![
            Served::other("selfsubjectaccessreviews", "SelfSubjectAccessReview", false, &["create"]),
            Served::other("selfsubjectrulesreviews", "SelfSubjectRulesReview", false, &["create"]),
        ],
        "events.k8s.io" => vec![Served::of(Resource::Events, Resource::Events.verbs())],
        "metrics.k8s.io" => vec![
            Served::other("nodes", "NodeMetrics", false, &["get", "list"]),
            Served::other("pods", "PodMetrics", true, &["get", "list"]),
        ],
        _ => Vec::new(),
    }
}

/// What can be done with `pods` or `pods/log` of a group; `None`: there is no such thing.
pub(super) fn verbs(group: &str, name: &str) -> Option<&'static [&'static str]> {
    served(group).into_iter().find(|served| served.name == name).map(|served| served.verbs)
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Answer to `/api`.
pub(super) fn core() -> Value {
    json!({"kind": "APIVersions", "versions": [Group::Core.api_version()], "serverAddressByClientCIDRs": []})
}

/// Answer to `/apis`.
pub(super) fn groups() -> Value {
    let groups: Vec<Value> = GROUPS.iter().skip(1).map(|(group, version)| one(group, version)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// Answer to `/apis/GROUP`.
///
/// # Errors
/// 404.
pub(super) fn group(name: &str) -> Result<Value, Failure> {
    let found = GROUPS.iter().skip(1).find(|(group, _)| *group == name);
    let (group, version) = found.ok_or_else(unknown)?;
    let mut value = one(group, version);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Ok(value)
}

fn one(group: &str, version: &str) -> Value {
    let version = json!({"groupVersion": group_version(group, version), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

fn unknown() -> Failure {
    Failure::not_found("the server could not find the requested resource")
}

/// Answer to `/api/v1` and `/apis/GROUP/VERSION`.
///
/// # Errors
/// 404.
pub(super) fn resources(group: &str, version: &str) -> Result<Value, Failure> {
    if !GROUPS.contains(&(group, version)) {
        return Err(unknown());
    }
    let each = served(group).into_iter().map(|served| {
        let mut value = json!({
            "name": served.name, "singularName": served.singular, "namespaced": served.is_namespaced,
            "kind": served.kind, "verbs": served.verbs,
        });
        add_names(&mut value, &served);
        value
    });
    let resources: Vec<Value> = each.collect();
    let group_version = group_version(group, version);
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}))
}

fn add_names(value: &mut Value, served: &Served) {
    if !served.short_names.is_empty() {
        value["shortNames"] = json!(served.short_names);
    }
    if !served.categories.is_empty() {
        value["categories"] = json!(served.categories);
    }
}

/// Answers to `/api` (`of_core`) and `/apis` for clients that take all in one.
pub(super) fn all(of_core: bool) -> Value {
    let groups = GROUPS.iter().filter(|(group, _)| group.is_empty() == of_core);
    let items: Vec<Value> = groups
        .map(|(group, version)| {
            let resources = aggregated(group, version);
            let version = json!({"version": version, "resources": resources, "freshness": "Current"});
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": [version]})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated(group: &str, version: &str) -> Vec<Value> {
    let mut resources: Vec<Value> = Vec::new();
    for served in served(group) {
        let kind = json!({"group": group, "version": version, "kind": served.kind});
        match (served.name.split_once('/'), resources.last_mut()) {
            (Some((_, below)), Some(parent)) => {
                let below = json!({"subresource": below, "responseKind": kind, "verbs": served.verbs});
                match parent["subresources"].as_array_mut() {
                    Some(all) => all.push(below),
                    None => parent["subresources"] = json!([below]),
                }
            }
            _ => {
                let scope = if served.is_namespaced { "Namespaced" } else { "Cluster" };
                let mut value = json!({
                    "resource": served.name, "responseKind": kind, "scope": scope,
                    "singularResource": served.singular, "verbs": served.verbs,
                });
                add_names(&mut value, &served);
                resources.push(value);
            }
        }
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_discovery_tell_the_same() {
        for (group, version) in GROUPS {
            let listed = resources(group, version).unwrap();
            let listed: Vec<String> = listed["resources"]
                .as_array()
                .unwrap()
                .iter()
                .map(|r| r["name"].as_str().unwrap().to_owned())
                .collect();
            let all = all(group.is_empty());
            let all = all["items"].as_array().unwrap();
            let of_group = all.iter().find(|item| item["metadata"]["name"] == group).unwrap();
            let mut told = Vec::new();
            for resource in of_group["versions"][0]["resources"].as_array().unwrap() {
                let name = resource["resource"].as_str().unwrap();
                told.push(name.to_owned());
                for below in resource["subresources"].as_array().into_iter().flatten() {
                    told.push(format!("{name}/{}", below["subresource"].as_str().unwrap()));
                }
            }
            assert_eq!(told, listed, "{group}");
        }
        assert!(resources("apps", "v1").is_err() && resources("", "v2").is_err() && super::group("").is_err());
    }
}
