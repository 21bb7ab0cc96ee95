//! Which labels and annotations of the Node are this node's to set, and what has to be sent so that they are right.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Keys of the labels that came from the node's configuration, sorted, separated by commas: so that one which is taken out of
/// it goes from the Node, too, and nobody else's does.
pub const REMEMBERED: &str = "coracle.dev/labels";
/// Tells the controllers that volumes are theirs to attach (as kubelet).
const ATTACH_DETACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// Whether every node has a label of this key; those never go.
fn is_default(key: &str) -> bool {
    matches!(
        key,
        "kubernetes.io/arch"
            | "kubernetes.io/hostname"
            | "kubernetes.io/os"
            | "beta.kubernetes.io/arch"
            | "beta.kubernetes.io/os"
    )
}

/// Annotations of a new Node with these labels.
pub fn annotations(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let keys: Vec<&str> = labels.keys().map(String::as_str).filter(|key| !is_default(key)).collect();
    let mut annotations = BTreeMap::from([(ATTACH_DETACH.to_owned(), "true".to_owned())]);
    if !keys.is_empty() {
        annotations.insert(REMEMBERED.to_owned(), keys.join(","));
    }
    annotations
}

/// A merge patch that makes an existing Node's labels and annotations right; `None`: they are. It holds for this very Node
/// only, by its uid.
pub fn patch(node: &Node, wanted: &BTreeMap<String, String>) -> Option<Value> {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = node.metadata.annotations.as_ref().unwrap_or(&empty);
    let remembered = annotations.get(REMEMBERED).map(String::as_str).unwrap_or_default();
    let ours: BTreeSet<&str> = remembered.split(',').filter(|key| !key.is_empty()).collect();

    let mut change = Map::new();
    for (key, value) in wanted.iter().filter(|(key, value)| labels.get(*key) != Some(*value)) {
        change.insert(key.clone(), json!(value));
    }
    for key in ours.iter().filter(|key| !wanted.contains_key(**key) && labels.contains_key(**key)) {
        change.insert((*key).to_owned(), Value::Null);
    }
    // A label that somebody else had set already stays theirs.
    let set = |key: &&str| wanted.contains_key(*key) && !is_default(key);
    let changed = change.keys().map(String::as_str);
    let remember: BTreeSet<&str> = ours.iter().copied().chain(changed).filter(set).collect();

    let mut note = Map::new();
    if annotations.get(ATTACH_DETACH).map(String::as_str) != Some("true") {
        note.insert(ATTACH_DETACH.to_owned(), json!("true"));
    }
    if remember != ours {
        let text = remember.into_iter().collect::<Vec<_>>().join(",");
        note.insert(REMEMBERED.to_owned(), if text.is_empty() { Value::Null } else { json!(text) });
    }
    if change.is_empty() && note.is_empty() {
        return None;
    }
    Some(json!({ "metadata": { "uid": node.metadata.uid, "labels": change, "annotations": note } }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn node(labels: BTreeMap<String, String>, annotations: BTreeMap<String, String>) -> Node {
        let mut node = Node::default();
        node.metadata.uid = Some("u".to_owned());
        node.metadata.labels = Some(labels);
        node.metadata.annotations = Some(annotations);
        node
    }

    /// What the API server makes of a patch.
    fn patched(node: &Node, patch: &Value) -> Node {
        let apply = |into: &mut Option<BTreeMap<String, String>>, change: &Value| {
            for (key, value) in change.as_object().into_iter().flatten() {
                let into = into.get_or_insert_default();
                match value.as_str() {
                    Some(text) => drop(into.insert(key.clone(), text.to_owned())),
                    None => drop(into.remove(key)),
                }
            }
        };
        let mut node = node.clone();
        apply(&mut node.metadata.labels, &patch["metadata"]["labels"]);
        apply(&mut node.metadata.annotations, &patch["metadata"]["annotations"]);
        node
    }

    #[test]
    fn a_label_that_is_configured_no_more_goes_if_it_was_ours() {
        let first = map(&[("kubernetes.io/os", "linux"), ("site", "north"), ("rack", "7")]);
        let new = node(first.clone(), annotations(&first));
        assert_eq!(patch(&new, &first), None);
        let second = map(&[("kubernetes.io/os", "linux"), ("site", "south")]);
        let patch_two = patch(&new, &second).unwrap();
        assert_eq!(
            patch_two,
            json!({ "metadata": { "uid": "u", "labels": { "site": "south", "rack": null },
                "annotations": { REMEMBERED: "site" } } })
        );
        let third = map(&[("kubernetes.io/os", "linux")]);
        let patch_three = patch(&patched(&new, &patch_two), &third).unwrap();
        assert_eq!(patch_three["metadata"]["labels"], json!({ "site": null }));
        assert_eq!(patch_three["metadata"]["annotations"], json!({ REMEMBERED: null }));
    }

    #[test]
    fn what_others_have_set_stays() {
        let others = node(map(&[("team", "a"), ("site", "north")]), BTreeMap::new());
        // The same value was there before: it is still theirs when it is configured no more.
        let wanted = map(&[("site", "north")]);
        let taken = patched(&others, &patch(&others, &wanted).unwrap());
        assert_eq!(taken.metadata.annotations, Some(map(&[(ATTACH_DETACH, "true")])));
        assert_eq!(patch(&taken, &BTreeMap::new()), None);
        // Another value: what was configured counts, and goes when it is not.
        let taken = patched(&others, &patch(&others, &map(&[("site", "south")])).unwrap());
        let gone = patched(&taken, &patch(&taken, &BTreeMap::new()).unwrap());
        assert_eq!(gone.metadata.labels, Some(map(&[("team", "a")])));
    }

    #[test]
    fn an_annotation_that_somebody_wrote_takes_no_default_label_away() {
        let labels = map(&[("kubernetes.io/os", "linux"), ("team", "a")]);
        let edited = node(labels, map(&[(REMEMBERED, ",kubernetes.io/os,,nowhere"), (ATTACH_DETACH, "true")]));
        let patch = patch(&edited, &map(&[("kubernetes.io/os", "linux")])).unwrap();
        assert_eq!(patch["metadata"]["labels"], json!({}));
    }

    proptest! {
        #[test]
        fn one_patch_is_enough_and_touches_nothing_of_others(
            there in proptest::collection::btree_map("[a-c]", "[x-z]", 0..3),
            ours in proptest::collection::btree_set("[a-d]", 0..3),
            wanted in proptest::collection::btree_map("[a-d]", "[x-z]", 0..4),
        ) {
            let remembered = ours.iter().cloned().collect::<Vec<_>>().join(",");
            let before = node(there.clone(), BTreeMap::from([(REMEMBERED.to_owned(), remembered)]));
            let after = patch(&before, &wanted).map_or(before.clone(), |patch| patched(&before, &patch));
            prop_assert_eq!(patch(&after, &wanted), None);
            let labels = after.metadata.labels.unwrap();
            for (key, value) in &wanted {
                prop_assert_eq!(labels.get(key), Some(value));
            }
            for (key, value) in there.iter().filter(|(key, _)| !wanted.contains_key(*key) && !ours.contains(*key)) {
                prop_assert_eq!(labels.get(key), Some(value));
            }
        }
    }
}
