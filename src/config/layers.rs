//! The configuration file and its drop-ins, laid over each other.
//!
//! As kubelet's `--config-dir`: a JSON merge patch (RFC 7386) a file, in order. Mappings are merged key by key, lists and
//! everything else are replaced whole, `null` takes a field out again, and a zero that somebody wrote down counts. Defaults
//! come afterwards, so that a field which was taken out has its default. Ours besides: a drop-in may also hold a
//! `CoracleConfiguration`.

use serde_json::{Map, Value};

use super::Error;
use super::file::type_of;
use super::{KUBELET_API_VERSION, OWN_API_VERSION};

/// A configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File<'a> {
    /// What errors call it: its path.
    pub name: &'a str,
    /// What is in it.
    pub text: &'a str,
    /// Whether it is a drop-in: those must say something.
    pub is_drop_in: bool,
}

impl<'a> File<'a> {
    /// The file that `--config` names.
    #[must_use]
    pub fn main(name: &'a str, text: &'a str) -> File<'a> {
        File { name, text, is_drop_in: false }
    }

    /// A file of `--config-dir`.
    #[must_use]
    pub fn drop_in(name: &'a str, text: &'a str) -> File<'a> {
        File { name, text, is_drop_in: true }
    }
}

/// The documents of one file, or of all of them together.
#[derive(Debug, Default)]
pub(super) struct Documents {
    pub(super) kubelet: Option<Map<String, Value>>,
    pub(super) own: Option<Map<String, Value>>,
}

/// All files, laid over each other.
#[derive(Debug, Default)]
pub(super) struct Layers<'a> {
    pub(super) merged: Documents,
    files: Vec<(&'a str, Documents)>,
}

impl<'a> Layers<'a> {
    /// Reads the files, a later one over those before it.
    ///
    /// # Errors
    /// The first file that cannot be read as configuration.
    pub(super) fn read(files: &[File<'a>]) -> Result<Layers<'a>, Error> {
        let mut layers = Layers::default();
        for file in files {
            let documents = documents(file).map_err(|error| error.in_file(file.name))?;
            for (over, into) in
                [(&documents.kubelet, &mut layers.merged.kubelet), (&documents.own, &mut layers.merged.own)]
            {
                if let Some(over) = over {
                    patch(into.get_or_insert_default(), over);
                }
            }
            layers.files.push((file.name, documents));
        }
        Ok(layers)
    }

    /// Adds the file that an error is about: the last one that has the field, or most of the way to it.
    pub(super) fn blame(&self, error: Error) -> Error {
        let (Error::Unknown { field, .. } | Error::Invalid { field, .. }) = &error else { return error };
        let depth_in = |documents: &Documents| {
            let (kind, rest) = field.split_once('.')?;
            let map = match kind {
                "KubeletConfiguration" => documents.kubelet.as_ref(),
                "CoracleConfiguration" => documents.own.as_ref(),
                _ => None,
            };
            map.map(|map| depth(map, rest))
        };
        let depths = self.files.iter().filter_map(|(name, documents)| Some((depth_in(documents)?, *name)));
        // `max_by_key` takes the last of equals.
        match depths.max_by_key(|(depth, _)| *depth).filter(|(depth, _)| *depth > 0) {
            Some((_, name)) => error.in_file(name),
            None => error,
        }
    }
}

/// RFC 7386.
fn patch(into: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (key, value) in over {
        match value {
            Value::Null => drop(into.remove(key)),
            Value::Object(over) => {
                let slot = into.entry(key).or_insert(Value::Null);
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(into) = slot {
                    patch(into, over);
                }
            }
            other => drop(into.insert(key.clone(), other.clone())),
        }
    }
}

/// How many steps of `path` (`a.b[2].c`; keys may hold dots themselves) lead into `map`.
fn depth(map: &Map<String, Value>, path: &str) -> usize {
    let begins = |key: &str| {
        path.strip_prefix(key)
            .filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            .map(|rest| (key.len(), rest))
    };
    let step = map.iter().filter_map(|(key, value)| begins(key).map(|(length, rest)| (length, rest, value)));
    let Some((_, rest, value)) = step.max_by_key(|(length, ..)| *length) else { return 0 };
    1 + below(value, rest)
}

fn below(value: &Value, rest: &str) -> usize {
    match value {
        Value::Object(map) => rest.strip_prefix('.').map_or(0, |rest| depth(map, rest)),
        Value::Array(list) => {
            let Some((index, rest)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { return 0 };
            index.parse().ok().and_then(|index: usize| list.get(index)).map_or(0, |value| 1 + below(value, rest))
        }
        _ => 0,
    }
}

/// The documents of a file. Empty documents are skipped.
fn documents(file: &File<'_>) -> Result<Documents, Error> {
    // One line of it: the others quote the file, which may hold credentials.
    let not_yaml = |error: serde_yaml::Error| {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        // What follows is for programmers.
        Error::Yaml(line.split(", set DuplicateKeyPolicy").next().unwrap_or_default().to_owned())
    };
    let all: Vec<Value> = serde_yaml::from_multiple(file.text).map_err(not_yaml)?;
    let mut read = Documents::default();
    for (index, document) in all.into_iter().enumerate() {
        let document_error = |reason: String| Error::Document { document: index + 1, reason };
        let map = match document {
            Value::Null => continue,
            Value::Object(map) => map,
            other => return Err(document_error(format!("{} instead of a mapping", type_of(&other)))),
        };
        let text_of = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let slot = match (text_of("apiVersion").as_str(), text_of("kind").as_str()) {
            (KUBELET_API_VERSION, "KubeletConfiguration") => &mut read.kubelet,
            (OWN_API_VERSION, "CoracleConfiguration") => &mut read.own,
            ("", _) | (_, "") => return Err(document_error("apiVersion and kind are required".to_owned())),
            (version, kind) => {
                let reason = format!(
                    "{kind} of {version} is not known here: want KubeletConfiguration of {KUBELET_API_VERSION} or \
                     CoracleConfiguration of {OWN_API_VERSION}"
                );
                return Err(document_error(reason));
            }
        };
        if slot.is_some() {
            return Err(document_error(format!("a second {}", text_of("kind"))));
        }
        *slot = Some(map);
    }
    // As kubelet. A file that a power cut emptied must not pass for one that says nothing.
    if file.is_drop_in && read.kubelet.is_none() && read.own.is_none() {
        return Err(Error::Empty);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn patched(into: Value, over: Value) -> Value {
        let (Value::Object(mut into), Value::Object(over)) = (into, over) else { panic!("two mappings") };
        patch(&mut into, &over);
        Value::Object(into)
    }

    #[test]
    fn mappings_merge_and_all_else_is_replaced() {
        let base = json!({ "a": { "x": 1, "y": { "deep": true } }, "list": [1, 2], "s": "text", "gone": 1, "n": 3 });
        let over = json!({ "a": { "y": { "more": 0 }, "x": null }, "list": [3], "s": { "new": { "null": null } }, "gone": null, "n": 0 });
        let want = json!({ "a": { "y": { "deep": true, "more": 0 } }, "list": [3], "s": { "new": {} }, "n": 0 });
        assert_eq!(patched(base, over), want);
    }

    #[test]
    fn paths_lead_as_far_as_they_lead() {
        let Value::Object(map) = json!({ "evictionHard": { "nodefs.available": "1%" }, "list": [{ "a": 1 }] }) else {
            panic!("a mapping")
        };
        for (path, steps) in [
            ("evictionHard.nodefs.available", 2),
            ("evictionHard.nodefs.free", 1),
            ("evictionHardly", 0),
            ("list[0].a", 3),
            ("list[0].b", 2),
            ("list[7].a", 1),
            ("list[x", 1),
            ("", 0),
        ] {
            assert_eq!(depth(&map, path), steps, "{path}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
            proptest::collection::vec(any::<u8>().prop_map(Value::from), 0..3).prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            proptest::collection::btree_map("[a-d.]{1,2}", inner, 0..4).prop_map(|map| json!(map))
        })
    }

    fn mapping() -> impl Strategy<Value = Map<String, Value>> {
        proptest::collection::btree_map("[a-d]", value(), 0..4).prop_map(|map| map.into_iter().collect())
    }

    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Object(map) => map.values().any(has_null),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_patch_changes_what_it_names_and_nothing_else(base in mapping(), over in mapping()) {
            let mut merged = base.clone();
            patch(&mut merged, &over);
            for (key, value) in &merged {
                match over.get(key) {
                    None => prop_assert_eq!(Some(value), base.get(key)),
                    Some(named @ Value::Object(_)) => prop_assert!(value.is_object(), "{}", named),
                    Some(named) => prop_assert_eq!(value, named),
                }
            }
            for (key, value) in &base {
                prop_assert!(merged.contains_key(key) || over.get(key).is_some_and(Value::is_null), "{}: {}", key, value);
            }
            // Twice is once, and nothing laid over nothing leaves no null behind.
            let mut twice = merged.clone();
            patch(&mut twice, &over);
            prop_assert_eq!(&twice, &merged);
            let mut alone = Map::new();
            patch(&mut alone, &over);
            prop_assert!(!has_null(&Value::Object(alone)));
        }

        #[test]
        fn no_path_makes_blame_panic(map in mapping(), path in "[a-d.\\[\\]0-9]{0,12}") {
            let _ = depth(&map, &path);
        }
    }
}
