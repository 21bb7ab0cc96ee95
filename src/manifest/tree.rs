//! YAML or JSON bytes → one tree of values per document, each value with its place in the text.
//!
//! The limits hold for any input: size, depth, number of values and bytes of text, with YAML aliases counted as often
//! as they are used, so that a few lines cannot grow into gigabytes.

use super::report::document_error;
use super::{MAX_BYTES, Problem};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_yaml::Spanned;
use serde_yaml::budget::BudgetBreach;
use serde_yaml::options::DuplicateKeyPolicy;
use std::collections::HashSet;
use std::fmt;

/// Levels of nesting. The deepest path of a Pod has about 15; each costs the parser up to 35 KiB of stack
/// (in a debug build), of which a thread has 2 MiB.
const MAX_DEPTH: usize = 32;
/// Values in all documents together; a kubeadm manifest has about 200.
const MAX_NODES: usize = 200_000;
/// Bytes of text in all documents together, aliases expanded.
const MAX_TEXT: usize = 2 * MAX_BYTES;

/// Anchors, and aliases of them.
const MAX_ALIASES: usize = 10_000;
/// Merge keys (`<<`).
const MAX_MERGES: usize = 1_000;
/// Documents of a stream.
const MAX_DOCUMENTS: usize = 10_000;

/// Line and column, both from 1; 0 when unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A JSON value; maps keep their order and are free of duplicate keys.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    String(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key stands (in JSON: where its value does).
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Value {
    /// What it is, with an article, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Integer(_) | Value::Float(_) => "a number",
            Value::String(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "an object",
        }
    }

    /// Whether it says nothing: null, `""`, `[]`, `{}`.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }
}

impl From<serde_json::Value> for Node {
    /// A value that stands nowhere.
    fn from(value: serde_json::Value) -> Node {
        use serde_json::Value as Json;
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(is) => Value::Bool(is),
            Json::Number(number) => match number.as_i128() {
                Some(whole) => Value::Integer(whole),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::String(text),
            Json::Array(items) => Value::List(items.into_iter().map(Node::from).collect()),
            Json::Object(map) => {
                let entry = |(key, value)| Entry { key, place: Place::default(), node: Node::from(value) };
                Value::Map(map.into_iter().map(entry).collect())
            }
        };
        Node { place: Place::default(), value }
    }
}

impl From<Node> for serde_json::Value {
    /// The value without its place. A number that JSON has no room for is null.
    fn from(node: Node) -> serde_json::Value {
        match node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(is) => is.into(),
            Value::Integer(whole) => serde_json::Number::from_i128(whole).map_or(serde_json::Value::Null, Into::into),
            Value::Float(number) => number.into(),
            Value::String(text) => text.into(),
            Value::List(items) => items.into_iter().map(serde_json::Value::from).collect(),
            Value::Map(entries) => {
                entries.into_iter().map(|entry| (entry.key, serde_json::Value::from(entry.node))).collect()
            }
        }
    }
}

impl Node {
    /// The value of a key of this map.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// Where the field of this path stands; where it is missing, the nearest thing around it that is there.
    pub(super) fn find(&self, path: &str) -> Place {
        let (mut node, mut place) = (self, self.place);
        let mut rest = path;
        while !rest.is_empty() {
            let step;
            if let Some(inner) = rest.strip_prefix('[') {
                // A key in brackets may hold dots and slashes, never a closing bracket.
                let Some((index, after)) = inner.split_once(']') else { break };
                (step, rest) = (index, after.strip_prefix('.').unwrap_or(after));
            } else {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                step = &rest[..end];
                rest = rest[end..].strip_prefix('.').unwrap_or(&rest[end..]);
            }
            match &node.value {
                Value::List(items) => match step.parse::<usize>().ok().and_then(|index| items.get(index)) {
                    Some(item) => (node, place) = (item, item.place),
                    None => break,
                },
                _ => match node.entry(step) {
                    Some(entry) => (node, place) = (&entry.node, entry.place),
                    None => break,
                },
            }
        }
        place
    }
}

/// The documents of a manifest; empty ones are left out.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Node>, Box<Problem>> {
    if bytes.len() >= MAX_BYTES {
        let reason = format!("is {} bytes long; the limit is {} bytes", bytes.len(), MAX_BYTES - 1);
        return Err(Box::new(document_error(None, reason)));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let reason = format!(
                "is not UTF-8 text: invalid byte 0x{:02x} at offset {}",
                bytes[error.valid_up_to()],
                error.valid_up_to()
            );
            let place = place_of(&bytes[..error.valid_up_to()]);
            return Err(Box::new(document_error(Some(place), reason)));
        }
    };
    match text.trim_start_matches([' ', '\t', '\r', '\n']).as_bytes().first() {
        None => Ok(Vec::new()),
        Some(b'{') if is_json(text) => json(text),
        Some(_) => yaml(text),
    }
}

/// Whether a text that begins with a brace is JSON, not YAML in braces (`{kind: Pod}`, or several documents of braces): in
/// JSON, a quote or the other brace follows, and no line can begin with three dashes.
fn is_json(text: &str) -> bool {
    let inside = text.trim_start_matches([' ', '\t', '\r', '\n', '{']).as_bytes().first();
    matches!(inside, None | Some(b'"' | b'}')) && !text.contains("\n---")
}

/// The place just after `before`.
fn place_of(before: &[u8]) -> Place {
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    Place { line: line as u32, column: column as u32 }
}

// ---------------------------------------------------------------------------------------------------------------- YAML

fn yaml(text: &str) -> Result<Vec<Node>, Box<Problem>> {
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_events: 3 * MAX_NODES,
            max_nodes: MAX_NODES,
            max_total_scalar_bytes: MAX_TEXT,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_recorded_anchor_events: MAX_NODES,
            max_recorded_anchor_bytes: MAX_TEXT,
            max_merge_keys: MAX_MERGES,
            max_documents: MAX_DOCUMENTS,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: MAX_NODES,
            max_replay_stack_depth: 32,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        // As kubectl reads them: `defaultMode: 0644` is 420, and so is `0o644`.
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    match serde_yaml::from_multiple_with_options::<Spanned<Raw>>(text, options) {
        Ok(documents) => Ok(documents.into_iter().map(node).collect()),
        Err(error) => {
            let place = error.location().filter(|location| location.line() > 0).map(place);
            Err(Box::new(document_error(place, format!("is not valid YAML: {}", yaml_reason(&error)))))
        }
    }
}

/// The parser's message without the place, which the problem has in fields of its own.
fn yaml_reason(error: &serde_yaml::Error) -> String {
    if let Some(reason) = excess(error.without_snippet()) {
        return reason;
    }
    if let Some(reason) = discreet(error.without_snippet()) {
        return reason.to_owned();
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let end =
        [" at line ", " (defined at ", ", set DuplicateKeyPolicy"].iter().filter_map(|tail| first.find(tail)).min();
    first[..end.unwrap_or(first.len())].to_owned()
}

/// The reason in words of ours where the parser's show a value: at this point it may still be one of a Secret.
fn discreet(error: &serde_yaml::Error) -> Option<&'static str> {
    match error {
        serde_yaml::Error::AliasError { error, .. } => discreet(error),
        serde_yaml::Error::NonFiniteFloat { .. } => Some("a number is out of range (put text in quotes)"),
        serde_yaml::Error::UnsupportedTag { .. } => {
            Some("a value has an unsupported tag (put text that begins with '!' in quotes)")
        }
        serde_yaml::Error::QuotingRequired { .. } => Some("a value must be quoted"),
        serde_yaml::Error::SerdeInvalidType { .. }
        | serde_yaml::Error::SerdeInvalidValue { .. }
        | serde_yaml::Error::ResolverError { .. }
        | serde_yaml::Error::TaggedEnumMismatch { .. } => Some("a value is none that JSON has"),
        _ => None,
    }
}

/// What there is too much of, when that is why the parser gave up.
fn excess(error: &serde_yaml::Error) -> Option<String> {
    let breach = match error {
        serde_yaml::Error::AliasError { error, .. } => return excess(error),
        serde_yaml::Error::Budget { breach, .. } => breach,
        _ => return None,
    };
    let text = format!("more than {} MiB of text", MAX_TEXT >> 20);
    let what = match breach {
        BudgetBreach::Depth { .. } => format!("more than {MAX_DEPTH} levels"),
        BudgetBreach::ScalarBytes { .. } | BudgetBreach::RecordedAnchorBytes { .. } => text,
        BudgetBreach::Documents { .. } => format!("more than {MAX_DOCUMENTS} documents"),
        BudgetBreach::MergeKeys { .. } => format!("more than {MAX_MERGES} merge keys"),
        BudgetBreach::Anchors { .. } | BudgetBreach::Aliases { .. } => {
            format!("more than {MAX_ALIASES} anchors or aliases")
        }
        BudgetBreach::AliasAnchorRatio { .. } => "far more aliases than anchors".to_owned(),
        _ => format!("more than {MAX_NODES} values"),
    };
    Some(format!("it has {what}, aliases expanded"))
}

fn place(location: serde_yaml::Location) -> Place {
    let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Place { line: short(location.line()), column: short(location.column()) }
}

fn node(raw: Spanned<Raw>) -> Node {
    Node { place: place(raw.referenced), value: raw.value.0 }
}

/// A value as the YAML parser hands it over, before its place is known.
struct Raw(Value);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor).map(Raw)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Raw>>()? {
            items.push(node(item));
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let value = map.next_value::<Spanned<Raw>>()?;
            entries.push(Entry { key: key.value, place: place(key.referenced), node: node(value) });
        }
        Ok(Value::Map(entries))
    }
}

// ---------------------------------------------------------------------------------------------------------------- JSON

fn json(text: &str) -> Result<Vec<Node>, Box<Problem>> {
    let mut reader = Json { text, offset: 0, place: Place { line: 1, column: 1 }, nodes: 0 };
    let mut documents = Vec::new();
    for document in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        match document {
            Ok(raw) => documents.push(reader.node(raw.get(), 0)?),
            Err(error) => {
                let place = Place { line: error.line() as u32, column: error.column() as u32 };
                return Err(Box::new(document_error(Some(place), json_reason(&error))));
            }
        }
    }
    Ok(documents)
}

fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    format!("is not valid JSON: {}", &text[..end])
}

/// Walks JSON level by level; the place of a value follows from where its text lies in the whole.
struct Json<'a> {
    text: &'a str,
    offset: usize,
    place: Place,
    nodes: usize,
}

impl<'a> Json<'a> {
    fn node(&mut self, raw: &'a str, depth: usize) -> Result<Node, Box<Problem>> {
        let place = self.advance(raw);
        let fail = |reason: String| Box::new(document_error(Some(place), reason));
        self.nodes += 1;
        if depth > MAX_DEPTH {
            return Err(fail(format!("is nested deeper than {MAX_DEPTH} levels")));
        }
        if self.nodes > MAX_NODES {
            return Err(fail(format!("has more than {MAX_NODES} values")));
        }
        let invalid = |error: serde_json::Error| Box::new(document_error(Some(place), json_reason(&error)));
        let value = match raw.as_bytes().first() {
            Some(b'{') => {
                let pairs: Pairs<'a> = serde_json::from_str(raw).map_err(invalid)?;
                let mut entries = Vec::with_capacity(pairs.0.len());
                let mut keys = HashSet::with_capacity(pairs.0.len());
                for (key, raw) in pairs.0 {
                    let node = self.node(raw.get(), depth + 1)?;
                    if !keys.insert(key.clone()) {
                        return Err(Box::new(document_error(
                            Some(node.place),
                            format!("is not valid: duplicate key {key:?}"),
                        )));
                    }
                    entries.push(Entry { key, place: node.place, node });
                }
                Value::Map(entries)
            }
            Some(b'[') => {
                let raws: Vec<&'a RawValue> = serde_json::from_str(raw).map_err(invalid)?;
                let items = raws.into_iter().map(|raw| self.node(raw.get(), depth + 1));
                Value::List(items.collect::<Result<_, _>>()?)
            }
            Some(b'"') => Value::String(serde_json::from_str(raw).map_err(invalid)?),
            Some(b't') => Value::Bool(true),
            Some(b'f') => Value::Bool(false),
            Some(b'n') => Value::Null,
            _ => match raw.parse::<i64>() {
                Ok(number) => Value::Integer(number.into()),
                Err(_) => Value::Float(serde_json::from_str(raw).map_err(invalid)?),
            },
        };
        Ok(Node { place, value })
    }

    /// The place of `raw`, a slice of the text that starts at or after the one asked for before.
    fn advance(&mut self, raw: &str) -> Place {
        let target = (raw.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        for character in self.text.get(self.offset..target).unwrap_or_default().chars() {
            if character == '\n' {
                self.place = Place { line: self.place.line + 1, column: 1 };
            } else {
                self.place.column += 1;
            }
        }
        self.offset = self.offset.max(target);
        self.place
    }
}

/// The keys and raw values of a JSON object, duplicates included.
struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs<'de>, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}
