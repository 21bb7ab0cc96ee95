//! What of a PodSpec works, in one table: a field works, with the test that proves it, or it refuses the pod, with the
//! reason. There is no third state. Some have another one in static pods than in those that an API server bound to this node.
//!
//! A field that the kubelet of a lone node reads over as well (what only a scheduler acts on) works, and its note says
//! so. A test compares the table with the fields that the API's types have, so that no field, new ones included, can be
//! ignored in silence; another looks for the proofs. Whoever implements a field changes its row.

mod cluster;
mod proof;
mod table;
#[cfg(test)]
mod tests;

pub use cluster::CLUSTER_GROUPS;
pub use table::GROUPS;

use super::pattern;
use super::report::Report;
use super::tree::{Node, Value};
use std::fmt::Write;

/// What happens to a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Does what the API's documentation says; the test that proves it, as `module::name`.
    Works(&'static str),
    /// A manifest with it is refused, for this reason.
    Refused(When, &'static str),
}

/// When a field counts as set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Neither null nor empty.
    Set,
    /// Not null: an empty object chooses it too.
    Present,
    /// `true`.
    True,
    /// Never for the pod: what it stands for is refused by itself, and the pod goes on.
    Apart,
}

/// A field of a type of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name. In a map of amounts: a pattern of keys, in which `*` stands for any text.
    pub name: &'static str,
    /// What happens to it.
    pub support: Support,
    /// What is worth knowing of it; most often empty.
    pub note: &'static str,
    /// What happens to it in pods that an API server bound to this node, with a note, where that is something else.
    pub bound: Option<(Support, &'static str)>,
}

/// A type of the API, and where in a Pod it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Name of the type.
    pub kind: &'static str,
    /// Its places; `[*]` is any index.
    pub places: &'static [&'static str],
    /// All its fields, in alphabetical order. What is inside one that is refused everywhere has no row of its own.
    pub fields: &'static [Field],
}

/// One field at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its whole path; `[*]` is any index.
    pub path: String,
    /// What happens to it.
    pub field: &'static Field,
}

impl Field {
    /// Whether a manifest may have it.
    pub fn works(&self) -> bool {
        matches!(self.support, Support::Works(_))
    }

    /// The reason or the note, in one line.
    pub fn remark(&self) -> String {
        remark(self.support, self.note)
    }

    /// What happens to it in bound pods.
    pub fn bound_support(&self) -> Support {
        self.bound.map_or(self.support, |(support, _)| support)
    }

    /// Whether a bound pod may have it.
    pub fn works_bound(&self) -> bool {
        matches!(self.bound_support(), Support::Works(_))
    }

    /// The reason or the note of bound pods, in one line, where it is another one.
    pub fn bound_remark(&self) -> Option<String> {
        self.bound.map(|(support, note)| remark(support, note))
    }

    /// Both remarks, told apart where they differ.
    pub fn remarks(&self) -> String {
        match self.bound_remark() {
            None => self.remark(),
            Some(bound) if bound.is_empty() => format!("static: {}", self.remark()),
            Some(bound) if self.remark().is_empty() => format!("bound: {bound}"),
            Some(bound) => format!("static: {}; bound: {bound}", self.remark()),
        }
    }

    /// The same field, which works in bound pods.
    const fn bound_works(self, proof: &'static str, note: &'static str) -> Field {
        Field { bound: Some((Support::Works(proof), note)), ..self }
    }

    /// The same field, which is refused in bound pods for another reason.
    const fn bound_refused(self, reason: &'static str) -> Field {
        let when = match self.support {
            Support::Refused(when, _) => when,
            Support::Works(_) => When::Set,
        };
        Field { bound: Some((Support::Refused(when, reason), "")), ..self }
    }
}

fn remark(support: Support, note: &str) -> String {
    match support {
        Support::Works(_) => note.to_owned(),
        Support::Refused(When::True, reason) => format!("if true: {reason}"),
        Support::Refused(_, reason) => reason.to_owned(),
    }
}

/// Every field at every place, in the table's order.
pub fn rows() -> impl Iterator<Item = Row> {
    GROUPS.iter().chain(CLUSTER_GROUPS).flat_map(|group| {
        group
            .places
            .iter()
            .flat_map(|place| group.fields.iter().map(move |field| Row { path: path_of(place, field), field }))
    })
}

fn path_of(place: &str, field: &Field) -> String {
    if field.name.contains('*') { format!("{place}[{}]", field.name) } else { format!("{place}.{}", field.name) }
}

/// The rows of a field and of all inside it, in alphabetical order. Indices may be left out (`spec.containers.env`);
/// what is no path from the root is looked for as the end of one (`readinessProbe`).
pub fn explain(prefix: &str) -> Vec<Row> {
    let wanted = plain(prefix.trim_matches('.'));
    let mut found: Vec<Row> = rows().filter(|row| begins(&plain(&row.path), &wanted)).collect();
    if found.is_empty() {
        let inner = format!(".{wanted}");
        found = rows()
            .filter(|row| {
                let path = plain(&row.path);
                path.match_indices(&inner).any(|(at, _)| begins(&path[at..], &inner))
            })
            .collect();
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The known field name that is closest to the last one of a path.
pub fn closest(path: &str) -> Option<&'static str> {
    let plain = plain(path);
    let name = plain.rsplit('.').next().unwrap_or_default();
    let names: Vec<&'static str> = GROUPS.iter().flat_map(|group| group.fields).map(|field| field.name).collect();
    super::suggest::closest(name, &names)
}

fn begins(path: &str, prefix: &str) -> bool {
    prefix.is_empty() || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A path without its indices (keys of maps stay).
fn plain(path: &str) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('[') {
        let Some((index, after)) = after.split_once(']') else { break };
        out.push_str(before);
        if index != "*" && !index.bytes().all(|byte| byte.is_ascii_digit()) {
            let _ = write!(out, "[{index}]");
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The table as a document: one section a type.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Fields of a Pod\n\n\
         Written by `cargo xtask fields` from `src/manifest/supported/table.rs`; `coracle validate --explain` prints the same.\n\n\
         A field works, and the test that proves it is named, or a pod with it is refused for the reason given: static pods,\n\
         which come from manifests, and bound pods, which an API server bound to this node. Nothing is ignored in silence.\n\
         Tests are in `tests/node` and `src`.\n",
    );
    for group in GROUPS.iter().chain(CLUSTER_GROUPS) {
        let _ = write!(out, "\n## {}\n\n", group.kind);
        for place in group.places {
            let _ = writeln!(out, "- `{place}`");
        }
        out.push_str("\n| Field | Static | Bound | Proof | Remark |\n|---|---|---|---|---|\n");
        for field in group.fields {
            let state = |support| match support {
                Support::Works(_) => "works",
                Support::Refused(..) => "refused",
            };
            let (here, there) = (state(field.support), state(field.bound_support()));
            let proofs: Vec<String> = [Some(field.support), field.bound.map(|(support, _)| support)]
                .into_iter()
                .filter_map(|support| match support? {
                    Support::Works(test) => Some(format!("`{test}`")),
                    Support::Refused(..) => None,
                })
                .collect();
            let proof = proofs.join("<br>");
            let _ = writeln!(out, "| `{}` | {here} | {there} | {proof} | {} |", field.name, field.remarks());
        }
    }
    out
}

/// Reports every field of the document that the table refuses.
pub(super) fn check(document: &Node, report: &mut Report<'_>) {
    refuse(document, GROUPS, |field| field.support, report);
}

/// Reports every field of a bound pod that the table refuses.
pub(super) fn check_bound(document: &Node, report: &mut Report<'_>) {
    refuse(document, GROUPS, Field::bound_support, report);
    refuse(document, CLUSTER_GROUPS, Field::bound_support, report);
}

fn refuse(document: &Node, groups: &[Group], support: fn(&Field) -> Support, report: &mut Report<'_>) {
    for group in groups {
        for field in group.fields {
            let Support::Refused(when, reason) = support(field) else { continue };
            for place in group.places {
                for (path, node) in found(document, place, field) {
                    // What is wrong with it in any case is the better answer.
                    let told = match when {
                        When::Present | When::True | When::Apart => report.has_error(&path),
                        When::Set => report.has_error_within(&path),
                    };
                    if is_set(when, node) && !told {
                        report.error(path, reason);
                    }
                }
            }
        }
    }
}

/// The nodes of a document that are this field at this place.
fn found<'d>(document: &'d Node, place: &str, field: &Field) -> Vec<(String, &'d Node)> {
    if !field.name.contains('*') {
        return pattern::matches(document, &format!("{place}.{}", field.name));
    }
    let mut found = Vec::new();
    for (path, node) in pattern::matches(document, place) {
        let Value::Map(entries) = &node.value else { continue };
        let keys = entries.iter().filter(|entry| is_like(&entry.key, field.name));
        found.extend(keys.map(|entry| (format!("{path}[{}]", entry.key), &entry.node)));
    }
    found
}

/// Whether a key fits a pattern of at most two literal parts around `*`, as in `hugepages-*` and `*/*`.
fn is_like(key: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = key.strip_prefix(first) else { return false };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    pattern.ends_with('*') || rest.is_empty()
}

fn is_set(when: When, node: &Node) -> bool {
    match when {
        When::Set => !node.value.is_empty(),
        When::Present => node.value != Value::Null,
        When::True => node.value == Value::Bool(true),
        When::Apart => false,
    }
}
