//! Manifest bytes → validated, defaulted Pods with a static pod's identity, and the ConfigMaps and Secrets beside them. Pure.
//!
//! ```text
//! bytes ─ tree ─▶ nodes with lines ─ decode ─┬▶ Pod ─ default ─▶ identity ─▶ validate · references · supported
//!                                            └▶ ConfigMap, Secret ─ data ─▶ validate
//! ```
//!
//! Every step reports what it finds and goes on, so that one call tells all that is wrong with a manifest. Each document
//! (or item of a list) stands alone: one with an error yields no pod, its neighbours do.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod api;
#[cfg(test)]
mod api_tests;
#[cfg(test)]
mod corpus;
mod credentials;
mod data;
mod decode;
mod default;
mod duration;
mod identity;
mod object;
#[cfg(test)]
mod object_tests;
mod pattern;
pub mod places;
pub mod quantity;
mod references;
mod report;
mod resolve;
mod rollback;
mod suggest;
pub mod supported;
#[cfg(test)]
mod tests;
mod tree;
mod validate;

pub use api::{from_api, marked};
pub use credentials::{CredentialsError, credentials};
pub use duration::duration;
pub use identity::REVISION;
pub use object::{CREDENTIALS, Object, ObjectId, ObjectKind, Objects, Reference, Use};
pub use quantity::Quantity;
pub use resolve::{locate, unresolved};
pub use rollback::{ROLLBACK_AFTER, rollback_after};

use decode::Values;
use k8s_openapi::api::core::v1::Pod;
use report::Report;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use tree::{Node, Value};

/// A manifest has to be shorter than this many bytes (as kubelet: reading 10 MiB or more fails).
pub const MAX_BYTES: usize = 10 * 1024 * 1024;

/// Something that a manifest gets wrong, or that will not work as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line of the manifest, from 1.
    pub line: Option<u32>,
    /// Column of the manifest, from 1, in characters.
    pub column: Option<u32>,
    /// Path of the field in the API server's notation (`spec.containers[0].image`); empty for the whole document.
    pub field: String,
    /// What is wrong, in the API server's wording where it has one.
    pub reason: String,
    /// Whether it keeps the document from running.
    pub severity: Severity,
    /// Namespace and full name (with the node's suffix) of the pod it belongs to, as far as that could be read.
    pub pod: Option<(String, String)>,
}

/// How grave a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The pod runs, but not in all points as written.
    Warning,
    /// The document yields no pod.
    Error,
}

impl fmt::Display for Problem {
    /// `line 12: spec.containers[0].image: Required value`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// Where a manifest came from: part of the identity of its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'a> {
    /// Path of a file. Moving a manifest to another path makes another pod of it (as kubelet).
    File(&'a str),
    /// URL. Its pods have the same UID on every node and no toleration of their own (as kubelet).
    Url(&'a str),
}

/// What [`load`] made of a manifest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// Pods of the documents without an error: defaulted, valid, with identity, in the manifest's order.
    pub pods: Vec<Pod>,
    /// ConfigMaps and Secrets of the documents without an error.
    pub objects: Vec<Object>,
    /// All problems, in the manifest's order.
    pub problems: Vec<Problem>,
    /// What could be read of the pods of documents with an error: they never run, but what they refer to can be looked for,
    /// so that all that is wrong with a manifest is told at once.
    pub refused: Vec<Pod>,
    /// Where the fields of all these pods that refer to objects stand: for [`locate`], once the objects of the node are known.
    pub places: Places,
}

/// Line and column of fields, by namespace and full name of their pod and by path. Only of fields that refer to objects.
pub type Places = BTreeMap<(String, String), BTreeMap<String, (u32, u32)>>;

impl Loaded {
    /// Whether a problem is an error, that is: whether some document yielded no pod.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// The places of the pods without an error: who keeps an earlier version of another one must not look for it here.
    #[must_use]
    pub fn places_of_pods(&self) -> Places {
        let name = |pod: &Pod| Some((pod.metadata.namespace.clone()?, pod.metadata.name.clone()?));
        let keys: Vec<_> = self.pods.iter().filter_map(name).collect();
        self.places
            .iter()
            .filter(|(key, _)| keys.contains(*key))
            .map(|(key, fields)| (key.clone(), fields.clone()))
            .collect()
    }
}

/// The ConfigMaps and Secrets that a pod refers to, in the order of its fields. See [`unresolved`].
#[must_use]
pub fn references(pod: &Pod) -> Vec<Reference> {
    references::of(pod)
}

/// Reads a manifest: JSON when it begins as only JSON does, else YAML, which may begin with a brace, too; all documents of
/// it, and lists.
///
/// `node` is the node's name; it becomes the suffix of every pod's name. Never panics; memory and time are bounded
/// whatever `bytes` holds.
pub fn load(bytes: &[u8], origin: Origin<'_>, node: &str) -> Loaded {
    let documents = match tree::parse(bytes) {
        Ok(documents) => documents,
        Err(problem) => return Loaded { problems: vec![*problem], ..Loaded::default() },
    };
    let mut loader =
        Loader { origin, node, loaded: Loaded::default(), names: HashSet::new(), others: HashSet::new(), objects: 0 };
    for document in documents {
        loader.object(document, "", 0, None);
    }
    if loader.objects == 0 && loader.loaded.problems.is_empty() {
        loader.loaded.problems.push(report::document_error(None, "holds no object; a Pod is expected"));
    }
    loader.loaded
}

/// The documents of a text in YAML or JSON as they are written, within the same limits as [`load`]'s.
///
/// # Errors
/// Why it is neither.
pub fn documents(bytes: &[u8]) -> Result<Vec<serde_json::Value>, Box<Problem>> {
    Ok(tree::parse(bytes)?.into_iter().map(serde_json::Value::from).collect())
}

/// Lists within lists: the API has none, but a manifest may; this many levels are followed.
const MAX_LIST_DEPTH: usize = 4;
/// What a document of apiVersion v1 may be.
const KINDS: [&str; 7] = ["ConfigMap", "ConfigMapList", "List", "Pod", "PodList", "Secret", "SecretList"];

struct Loader<'a> {
    origin: Origin<'a>,
    node: &'a str,
    loaded: Loaded,
    names: HashSet<(String, String)>,
    others: HashSet<ObjectId>,
    objects: usize,
}

impl Loader<'_> {
    /// Takes one document or list item; `prefix` is its path in the document (`items[2]`), `kind` what the items of its list
    /// are, which they need not repeat.
    fn object(&mut self, document: Node, prefix: &str, depth: usize, kind: Option<&'static str>) {
        self.objects += 1;
        let mut report = Report::new(&document, prefix);
        if !matches!(document.value, Value::Map(_)) {
            report
                .error("", format!("is {}, but an object with apiVersion and kind is expected", document.value.kind()));
            return self.loaded.problems.extend(report.finish());
        }
        let version = header(&document, "apiVersion", kind.map(|_| "v1"), &mut report);
        let kind = header(&document, "kind", kind, &mut report);
        let (Some(version), Some(kind)) = (version, kind) else {
            return self.loaded.problems.extend(report.finish());
        };
        if version != "v1" {
            let rule = format!("a manifest holds Pods, ConfigMaps and Secrets of apiVersion \"v1\", not a {kind}");
            report.error("apiVersion", format!("Unsupported value: \"{version}\": {rule}"));
            return self.loaded.problems.extend(report.finish());
        }
        let items = match kind.as_str() {
            "List" => Some(None),
            "PodList" => Some(Some("Pod")),
            "ConfigMapList" => Some(Some("ConfigMap")),
            "SecretList" => Some(Some("Secret")),
            _ => None,
        };
        match (kind.as_str(), items) {
            ("Pod", _) => {
                let pod = self.pod(&document, &mut report);
                self.loaded.pods.extend(pod);
            }
            ("ConfigMap", _) => {
                let object = self.data(&document, ObjectKind::ConfigMap, &mut report);
                self.loaded.objects.extend(object);
            }
            ("Secret", _) => {
                let object = self.data(&document, ObjectKind::Secret, &mut report);
                self.loaded.objects.extend(object);
            }
            (_, Some(items)) if depth < MAX_LIST_DEPTH => {
                let problems = report.finish();
                self.loaded.problems.extend(problems);
                return self.list(document, prefix, depth, items);
            }
            (kind, _) => report.unsupported("kind", kind, &KINDS),
        }
        self.loaded.problems.extend(report.finish());
    }

    fn list(&mut self, document: Node, prefix: &str, depth: usize, kind: Option<&'static str>) {
        let Value::Map(entries) = document.value else { return };
        for entry in entries {
            if entry.key != "items" {
                continue;
            }
            let items = match entry.node.value {
                Value::List(items) => items,
                Value::Null => return,
                ref other => {
                    let reason = format!("Invalid value: must be a list, not {}", other.kind());
                    let mut report = Report::new(&entry.node, &join(prefix, "items"));
                    report.error("", reason);
                    self.loaded.problems.extend(report.finish());
                    return;
                }
            };
            for (index, item) in items.into_iter().enumerate() {
                let path = format!("{}[{index}]", join(prefix, "items"));
                self.object(item, &path, depth + 1, kind);
            }
        }
    }

    /// The pod of a document, if it has no error.
    fn pod(&mut self, document: &Node, report: &mut Report<'_>) -> Option<Pod> {
        if report.failed() {
            return None;
        }
        let mut pod: Pod = decode::read(document, Values::Shown, report)?;
        identity::drop_server_fields(&mut pod, document, report);
        let content = identity::content(&pod);
        default::apply(&mut pod);
        validate::name_as_written(&pod, report);
        let identity = identity::assign(&mut pod, &content, self.origin, self.node);
        report.concerns(identity.clone());
        validate::pod(&pod, document, report);
        rollback::check(&pod, report);
        references::check(document, report);
        supported::check(document, report);
        if !report.failed() && !self.names.insert(identity.clone()) {
            report.error(
                "metadata.name",
                format!("Duplicate value: \"{}\": this manifest has a pod of that name already", identity.1),
            );
        }
        let places = references::places(&pod, document);
        if !places.is_empty() {
            self.loaded.places.entry(identity).or_insert(places);
        }
        if report.failed() {
            self.loaded.refused.push(pod);
            return None;
        }
        Some(pod)
    }

    /// The ConfigMap or Secret of a document, if it has no error.
    fn data(&mut self, document: &Node, kind: ObjectKind, report: &mut Report<'_>) -> Option<Object> {
        if report.failed() {
            return None;
        }
        let object = data::read(document, kind, report)?;
        let id = object.id();
        if !report.failed() && !self.others.insert(id.clone()) {
            let reason = format!("Duplicate value: \"{}\": this manifest has a {kind} of that name already", id.name);
            report.error("metadata.name", reason);
        }
        (!report.failed()).then_some(object)
    }
}

/// A string of the document's head; required unless it follows from the list that the document is in.
fn header(document: &Node, key: &str, implied: Option<&str>, report: &mut Report<'_>) -> Option<String> {
    match document.get(key).map(|node| &node.value) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        None | Some(Value::Null) if implied.is_some() => implied.map(str::to_owned),
        None | Some(Value::Null) | Some(Value::String(_)) => {
            report.error(key, "Required value");
            None
        }
        Some(other) => {
            report.error(key, format!("Invalid value: must be a string, not {}", other.kind()));
            None
        }
    }
}

fn join(prefix: &str, field: &str) -> String {
    match (prefix.is_empty(), field.is_empty()) {
        (true, _) => field.to_owned(),
        (_, true) => prefix.to_owned(),
        _ => format!("{prefix}.{field}"),
    }
}
