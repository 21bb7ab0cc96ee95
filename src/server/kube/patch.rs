//! Patches: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386), and Kubernetes' strategic merge patch, which merges lists
//! whose items have names. Pure. What is patched is a manifest as its author wrote it.

use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Most operations of a JSON Patch (as the API server).
const MOST_OPERATIONS: usize = 10_000;

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
    /// `application/apply-patch+yaml`: all that somebody wants to be so.
    Apply,
}

impl Kind {
    /// By its media type, without parameters.
    pub(super) fn of(media_type: &str) -> Option<Kind> {
        match media_type {
            "application/json-patch+json" => Some(Kind::Json),
            "application/merge-patch+json" => Some(Kind::Merge),
            "application/strategic-merge-patch+json" => Some(Kind::Strategic),
            "application/apply-patch+yaml" => Some(Kind::Apply),
            _ => None,
        }
    }
}

/// What a patch makes of a value. [`Kind::Apply`] is merged as a strategic patch.
///
/// # Errors
/// Why it cannot be applied.
pub(super) fn apply(kind: Kind, mut target: Value, patch: Value) -> Result<Value, String> {
    match kind {
        Kind::Json => json_patch(&mut target, &patch)?,
        Kind::Merge => merge(&mut target, patch),
        Kind::Strategic | Kind::Apply => strategic(&mut target, patch)?,
    }
    Ok(target)
}

// ---------------------------------------------------------------------------------------------------------- JSON Patch

fn json_patch(target: &mut Value, patch: &Value) -> Result<(), String> {
    let operations = patch.as_array().ok_or("a JSON patch is a list of operations")?;
    if operations.len() > MOST_OPERATIONS {
        return Err(format!("the patch has {} operations; the limit is {MOST_OPERATIONS}", operations.len()));
    }
    operations.iter().try_for_each(|operation| one_operation(target, operation))
}

fn one_operation(target: &mut Value, operation: &Value) -> Result<(), String> {
    let text = |key: &str| operation[key].as_str().ok_or_else(|| format!("an operation has no {key:?}"));
    let value = || operation.get("value").cloned().ok_or("an operation has no \"value\"".to_owned());
    let path = text("path")?;
    let missing = |path: &str| format!("{path}: there is no such path in the manifest");
    match text("op")? {
        "add" => add(target, path, value()?),
        "remove" => remove(target, path).map(drop),
        "replace" => {
            let value = value()?;
            *target.pointer_mut(path).ok_or_else(|| missing(path))? = value;
            Ok(())
        }
        "copy" => {
            let from = text("from")?;
            let value = target.pointer(from).cloned().ok_or_else(|| missing(from))?;
            add(target, path, value)
        }
        "move" => {
            let from = text("from")?;
            if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                return Err(format!("{from} cannot be moved into itself"));
            }
            let value = remove(target, from)?;
            add(target, path, value)
        }
        "test" if target.pointer(path) == Some(&value()?) => Ok(()),
        "test" => Err(format!("testing value {path} failed")),
        other => Err(format!("unexpected operation {other:?}")),
    }
}

/// A pointer's parent and its last step.
fn last_step<'a>(target: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let (parent, last) = path.rsplit_once('/').ok_or_else(|| format!("{path:?} is no path"))?;
    let parent = target.pointer_mut(parent).ok_or_else(|| format!("{path}: there is no such path in the manifest"))?;
    Ok((parent, last.replace("~1", "/").replace("~0", "~")))
}

/// A position in a list: without signs or zeros before it.
fn position(step: &str, path: &str) -> Result<usize, String> {
    let fits = step == "0" || (!step.starts_with(['0', '+']) && !step.is_empty());
    step.parse().ok().filter(|_| fits).ok_or_else(|| format!("{path}: {step:?} is no position in a list"))
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    let (parent, step) = last_step(target, path)?;
    match parent {
        Value::Object(map) => drop(map.insert(step, value)),
        Value::Array(items) if step == "-" => items.push(value),
        Value::Array(items) => {
            let at = position(&step, path)?;
            if at > items.len() {
                return Err(format!("{path}: the list has {} items", items.len()));
            }
            items.insert(at, value);
        }
        _ => return Err(format!("{path}: there is no such path in the manifest")),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &str) -> Result<Value, String> {
    let (parent, step) = last_step(target, path)?;
    let removed = match parent {
        Value::Object(map) => map.remove(&step),
        Value::Array(items) => {
            let at = position(&step, path)?;
            (at < items.len()).then(|| items.remove(at))
        }
        _ => None,
    };
    removed.ok_or_else(|| format!("{path}: there is no such path in the manifest"))
}

// --------------------------------------------------------------------------------------------------------- Merge Patch

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    let target = object(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// The map that a value is, or becomes.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made one"),
    }
}

// ----------------------------------------------------------------------------------------------------- strategic merge

/// How the list of a field is merged.
enum Lists {
    /// By the value of this key of its items.
    By(&'static str),
    /// As a set of plain values.
    Set,
    /// Not: it is replaced.
    Whole,
}

/// As the tags `patchStrategy` and `patchMergeKey` of the types of the core that are written here: no two fields of one name
/// differ in them.
fn lists(field: &str) -> Lists {
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "env"
        | "volumes"
        | "imagePullSecrets"
        | "resourceClaims"
        | "schedulingGates" => Lists::By("name"),
        "ports" => Lists::By("containerPort"),
        "volumeMounts" => Lists::By("mountPath"),
        "volumeDevices" => Lists::By("devicePath"),
        "hostAliases" | "podIPs" | "hostIPs" => Lists::By("ip"),
        "topologySpreadConstraints" => Lists::By("topologyKey"),
        "conditions" => Lists::By("type"),
        "ownerReferences" => Lists::By("uid"),
        "finalizers" => Lists::Set,
        _ => Lists::Whole,
    }
}

const ORDER: &str = "$setElementOrder/";
const REMOVED: &str = "$deleteFromPrimitiveList/";

fn strategic(target: &mut Value, patch: Value) -> Result<(), String> {
    let Value::Object(mut patch) = patch else { return Err("a strategic merge patch is an object".to_owned()) };
    match patch.remove("$patch").as_ref().map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => {
            *target = Value::Object(patch);
            return Ok(());
        }
        Some(Some("delete")) => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some(other) => return Err(format!("$patch: {other:?} is not merge, replace or delete")),
    }
    let target = object(target);
    if let Some(kept) = patch.remove("$retainKeys") {
        let kept: BTreeSet<&str> =
            kept.as_array().ok_or("$retainKeys: want a list")?.iter().filter_map(Value::as_str).collect();
        target.retain(|key, _| kept.contains(key.as_str()));
    }
    let mut orders = Vec::new();
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(ORDER) {
            orders.push((field.to_owned(), value));
        } else if let Some(field) = key.strip_prefix(REMOVED) {
            let gone = value.as_array().ok_or_else(|| format!("{key}: want a list"))?;
            if let Some(items) = target.get_mut(field).and_then(Value::as_array_mut) {
                items.retain(|item| !gone.contains(item));
            }
        } else if value.is_null() {
            target.remove(&key);
        } else {
            strategic_field(target, key, value)?;
        }
    }
    for (field, order) in orders {
        let order = order.as_array().ok_or_else(|| format!("{ORDER}{field}: want a list"))?;
        if let Some(Value::Array(items)) = target.get_mut(&field) {
            let by = if let Lists::By(key) = lists(&field) { Some(key) } else { None };
            *items = ordered(std::mem::take(items), order, by);
        }
    }
    Ok(())
}

fn strategic_field(target: &mut Map<String, Value>, key: String, value: Value) -> Result<(), String> {
    match value {
        Value::Object(_) => {
            let deletes = value["$patch"] == "delete";
            if deletes {
                target.remove(&key);
                return Ok(());
            }
            strategic(target.entry(key).or_insert(Value::Null), value)
        }
        Value::Array(items) => {
            let by = lists(&key);
            let into = target.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
            if !into.is_array() {
                *into = Value::Array(Vec::new());
            }
            let Value::Array(into) = into else { return Ok(()) };
            match by {
                Lists::Whole => *into = items,
                Lists::Set => {
                    for item in items {
                        if !into.contains(&item) {
                            into.push(item);
                        }
                    }
                }
                Lists::By(merge_key) => {
                    strategic_list(into, items, merge_key).map_err(|why| format!("{key}: {why}"))?
                }
            }
            Ok(())
        }
        plain => {
            target.insert(key, plain);
            Ok(())
        }
    }
}

fn strategic_list(into: &mut Vec<Value>, items: Vec<Value>, by: &str) -> Result<(), String> {
    let directive = |item: &Value, word: &str| item["$patch"] == word;
    if items.iter().any(|item| directive(item, "replace")) {
        *into = items.into_iter().filter(|item| !directive(item, "replace")).collect();
        return Ok(());
    }
    for item in items {
        let Some(key) = item.get(by).filter(|key| !key.is_null()).cloned() else {
            return Err(format!("an item has no {by:?}, by which items are told apart"));
        };
        let deletes = directive(&item, "delete");
        let found = into.iter().position(|present| present.get(by) == Some(&key));
        match (found, deletes) {
            (_, true) => into.retain(|present| present.get(by) != Some(&key)),
            (Some(at), false) => strategic(&mut into[at], item)?,
            (None, false) => {
                // Directives in it are about nothing; what is left is the item.
                let mut new = Value::Null;
                strategic(&mut new, item)?;
                into.push(new);
            }
        }
    }
    Ok(())
}

/// Items in the order wanted. Those that nobody has ordered stay behind the one they stood behind.
fn ordered(items: Vec<Value>, order: &[Value], by: Option<&str>) -> Vec<Value> {
    let id = |item: &Value| by.map_or_else(|| item.clone(), |key| item.get(key).cloned().unwrap_or(Value::Null));
    let wanted: Vec<Value> = order.iter().map(&id).collect();
    let place = |item: &Value| wanted.iter().position(|wanted| *wanted == id(item));
    let mut led: Vec<(Option<usize>, Vec<Value>)> = vec![(None, Vec::new())];
    for item in items {
        match place(&item) {
            Some(at) => led.push((Some(at), vec![item])),
            None => led.last_mut().into_iter().for_each(|(_, group)| group.push(item.clone())),
        }
    }
    led.sort_by_key(|(at, _)| *at);
    led.into_iter().flat_map(|(_, group)| group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn patched(kind: Kind, target: Value, patch: Value) -> Value {
        apply(kind, target, patch).unwrap()
    }

    #[test]
    fn json_patches_follow_the_rfc() {
        let target = json!({"a": {"b~/c": 1}, "l": [1, 2]});
        let patch = json!([
            {"op": "test", "path": "/a/b~0~1c", "value": 1},
            {"op": "replace", "path": "/a/b~0~1c", "value": 2},
            {"op": "add", "path": "/l/1", "value": 9},
            {"op": "add", "path": "/l/-", "value": 3},
            {"op": "remove", "path": "/l/0"},
            {"op": "copy", "from": "/l", "path": "/m"},
            {"op": "move", "from": "/a", "path": "/z"},
        ]);
        assert_eq!(patched(Kind::Json, target, patch), json!({"l": [9, 2, 3], "m": [9, 2, 3], "z": {"b~/c": 2}}));
        for bad in [
            json!({}),
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            json!([{"op": "remove", "path": "/x"}]),
            json!([{"op": "replace", "path": "/x", "value": 1}]),
            json!([{"op": "test", "path": "/l", "value": 1}]),
            json!([{"op": "add", "path": "/l/01", "value": 1}]),
            json!([{"op": "add", "path": "/l/9", "value": 1}]),
            json!([{"op": "move", "from": "/l", "path": "/l/0"}]),
            json!([{"op": "shake", "path": "/l"}]),
            json!([{"op": "add", "path": "l", "value": 1}]),
            json!([{"op": "add", "path": "/l/0"}]),
        ] {
            assert!(apply(Kind::Json, json!({"l": [1]}), bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn merge_patches_follow_the_rfc() {
        let target = json!({"a": "b", "c": {"d": "e", "f": "g"}, "l": [1]});
        let patch = json!({"a": "z", "c": {"f": null}, "l": [2], "n": {"m": null, "o": 1}});
        assert_eq!(patched(Kind::Merge, target, patch), json!({"a": "z", "c": {"d": "e"}, "l": [2], "n": {"o": 1}}));
    }

    #[test]
    fn strategic_patches_merge_what_has_names() {
        let target = json!({"spec": {
            "containers": [{"name": "a", "image": "x", "env": [{"name": "E", "value": "1"}], "args": ["1", "2"]},
                {"name": "b", "image": "y"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "tolerations": [{"key": "k"}],
        }, "metadata": {"finalizers": ["one"], "labels": {"a": "b", "c": "d"}}});
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
            "containers": [
                {"name": "a", "image": "z", "args": ["3"], "env": [{"name": "F", "value": "2"}]},
                {"name": "b", "$patch": "delete"},
                {"name": "c", "image": "w"}],
            "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}, "emptyDir": null}],
            "tolerations": [{"key": "l"}],
        }, "metadata": {"$deleteFromPrimitiveList/finalizers": ["one"], "finalizers": ["two"], "labels": {"a": null}}});
        assert_eq!(
            patched(Kind::Strategic, target, patch),
            json!({"spec": {
            "containers": [{"name": "c", "image": "w"},
                {"name": "a", "image": "z", "args": ["3"],
                    "env": [{"name": "E", "value": "1"}, {"name": "F", "value": "2"}]}],
            "volumes": [{"name": "v", "hostPath": {"path": "/x"}}],
            "tolerations": [{"key": "l"}],
        }, "metadata": {"finalizers": ["two"], "labels": {"c": "d"}}})
        );
    }

    #[test]
    fn lists_and_maps_can_be_replaced_or_deleted_whole() {
        let target = || json!({"labels": {"a": "b"}, "env": [{"name": "E"}, {"name": "F"}], "x": {"y": 1}});
        let patch = json!({"labels": {"$patch": "replace", "c": "d"}, "env": [{"$patch": "replace"}, {"name": "G"}],
            "x": {"$patch": "delete"}});
        assert_eq!(patched(Kind::Strategic, target(), patch), json!({"labels": {"c": "d"}, "env": [{"name": "G"}]}));
        for bad in [json!([]), json!({"env": [{"value": "1"}]}), json!({"x": {"$patch": "shake"}})] {
            assert!(apply(Kind::Strategic, target(), bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_nobody_has_ordered_stays_behind_its_neighbour() {
        let items = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let order = items(&["c", "a"]);
        assert_eq!(ordered(items(&["x", "a", "y", "c", "z"]), &order, Some("name")), items(&["x", "c", "z", "a", "y"]));
        assert_eq!(ordered(vec![json!(1), json!(2)], &[json!(2), json!(1)], None), [json!(2), json!(1)]);
    }

    fn json() -> impl Strategy<Value = Value> {
        let key = prop_oneof![
            Just("name".to_owned()),
            Just("containers".to_owned()),
            Just("$patch".to_owned()),
            Just("op".to_owned()),
            Just("$setElementOrder/containers".to_owned()),
            Just("$retainKeys".to_owned()),
            Just("path".to_owned()),
            "[a-b]",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            Just(json!("delete")),
            Just(json!("replace")),
            Just(json!("add")),
            Just(json!("/a/0")),
            "[a-c]".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key.clone(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_patch_makes_it_panic(target in json(), patch in json()) {
            for kind in [Kind::Json, Kind::Merge, Kind::Strategic] {
                let _ = apply(kind, target.clone(), patch.clone());
            }
        }

        #[test]
        fn merging_twice_is_merging_once(target in json(), patch in json()) {
            let once = patched(Kind::Merge, target, patch.clone());
            prop_assert_eq!(patched(Kind::Merge, once.clone(), patch), once);
        }
    }
}
