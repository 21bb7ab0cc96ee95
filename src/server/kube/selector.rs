//! `fieldSelector` and `labelSelector`. Pure.

use super::super::reply::Failure;
use super::resource::Resource;
use std::collections::BTreeMap;

/// Which objects a list or watch is about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::server) struct Selector {
    fields: Vec<Requirement>,
    labels: Vec<Requirement>,
    /// The node's suffix, when pods may be named without it.
    suffix: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Requirement {
    /// `=`, `==`, `in`.
    In(String, Vec<String>),
    /// `!=`, `notin`.
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    /// `>`: both are numbers.
    Above(String, i64),
    /// `<`
    Below(String, i64),
}

/// The fields that can be selected by, of one object.
pub(in crate::server) trait Fields {
    /// Value of a field; `None`: the object's kind has no such field.
    fn field(&self, name: &str) -> Option<&str>;
    /// Labels.
    fn labels(&self) -> Option<&BTreeMap<String, String>>;
}

/// As the API server.
const POD_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "spec.hostNetwork",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.nominatedNodeName",
    "status.phase",
    "status.podIP",
];
const NODE_FIELDS: &[&str] = &["metadata.name", "spec.unschedulable"];
const NAMESPACE_FIELDS: &[&str] = &["metadata.name", "name", "status.phase"];
const CONFIG_MAP_FIELDS: &[&str] = &["metadata.name", "metadata.namespace"];
const SECRET_FIELDS: &[&str] = &["metadata.name", "metadata.namespace", "type"];
const EVENT_FIELDS: &[&str] = &[
    "involvedObject.apiVersion",
    "involvedObject.fieldPath",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.resourceVersion",
    "involvedObject.uid",
    "metadata.name",
    "metadata.namespace",
    "reason",
    "regarding.apiVersion",
    "regarding.fieldPath",
    "regarding.kind",
    "regarding.name",
    "regarding.namespace",
    "regarding.resourceVersion",
    "regarding.uid",
    "reportingComponent",
    "reportingController",
    "source",
    "type",
];

impl Selector {
    /// Reads both selectors of a query.
    ///
    /// # Errors
    /// 400 with what is wrong with them.
    pub(in crate::server) fn parse(
        resource: Resource,
        fields: Option<&str>,
        labels: Option<&str>,
    ) -> Result<Selector, Failure> {
        let known = match resource {
            Resource::Pods => POD_FIELDS,
            Resource::Nodes => NODE_FIELDS,
            Resource::Events => EVENT_FIELDS,
            Resource::Namespaces => NAMESPACE_FIELDS,
            Resource::ConfigMaps => CONFIG_MAP_FIELDS,
            Resource::Secrets => SECRET_FIELDS,
        };
        let fields = field_requirements(fields.unwrap_or_default(), known)?;
        Ok(Selector { fields, labels: label_requirements(labels.unwrap_or_default())?, suffix: None })
    }

    /// Has pods be named without the node's suffix, too.
    pub(super) fn without_suffix(&mut self, node: &str) {
        self.suffix = Some(format!("-{node}"));
    }

    /// The one name that is selected, if so.
    pub(super) fn name(&self) -> Option<&str> {
        self.fields.iter().find_map(|requirement| match requirement {
            Requirement::In(key, values) if key == "metadata.name" => values.first().map(String::as_str),
            _ => None,
        })
    }

    /// Whether an object is selected.
    pub(in crate::server) fn fits(&self, object: &dyn Fields) -> bool {
        let label = |key: &str| object.labels().and_then(|labels| labels.get(key)).map(String::as_str);
        let field = |requirement: &Requirement| {
            requirement.holds(|key| Some(object.field(key).unwrap_or_default()))
                || self.holds_in_full(requirement, object)
        };
        self.fields.iter().all(field) && self.labels.iter().all(|requirement| requirement.holds(label))
    }

    /// Whether the pod that is named is meant, without the suffix.
    fn holds_in_full(&self, requirement: &Requirement, object: &dyn Fields) -> bool {
        let (Some(suffix), Requirement::In(key, values)) = (&self.suffix, requirement) else { return false };
        if !matches!(key.as_str(), "metadata.name" | "involvedObject.name" | "regarding.name") {
            return false;
        }
        let short = object.field(key).and_then(|name| name.strip_suffix(suffix.as_str()));
        short.is_some_and(|short| values.iter().any(|value| value == short))
    }
}

impl Requirement {
    fn holds<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        let number = |key: &str| value(key).and_then(|value| value.parse::<i64>().ok());
        match self {
            Requirement::In(key, wanted) => value(key).is_some_and(|value| wanted.iter().any(|w| w == value)),
            // As Kubernetes: an absent label differs from everything.
            Requirement::NotIn(key, unwanted) => !value(key).is_some_and(|value| unwanted.iter().any(|u| u == value)),
            Requirement::Exists(key) => value(key).is_some(),
            Requirement::Absent(key) => value(key).is_none(),
            Requirement::Above(key, than) => number(key).is_some_and(|value| value > *than),
            Requirement::Below(key, than) => number(key).is_some_and(|value| value < *than),
        }
    }
}

fn field_requirements(text: &str, known: &[&str]) -> Result<Vec<Requirement>, Failure> {
    let mut requirements = Vec::new();
    for part in split_escaped(text, ',') {
        let part = part.trim();
        if part.is_empty() {
            continue;
        }
        let (key, value, differs) = match part.split_once("!=") {
            Some((key, value)) => (key, value, true),
            None => match part.split_once("==").or_else(|| part.split_once('=')) {
                Some((key, value)) => (key, value, false),
                None => {
                    let why = format!("invalid selector: '{part}'; can't understand '{part}'");
                    return Err(Failure::bad_request(why));
                }
            },
        };
        let key = if key == "name" { "metadata.name" } else { key };
        if !known.contains(&key) {
            return Err(Failure::bad_request(format!("field label not supported: {key}")));
        }
        let (key, values) = (key.to_owned(), vec![unescaped(value)]);
        requirements.push(if differs { Requirement::NotIn(key, values) } else { Requirement::In(key, values) });
    }
    Ok(requirements)
}

/// Splits where no backslash stands before.
fn split_escaped(text: &str, at: char) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (index, letter) in text.char_indices() {
        if letter == at && !escaped {
            parts.push(&text[start..index]);
            start = index + letter.len_utf8();
        }
        escaped = letter == '\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

/// A field's value: a backslash, a comma or an equals sign stands after a backslash.
fn unescaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        if letter == '\\' { out.extend(letters.next()) } else { out.push(letter) }
    }
    out
}

/// Reads what `labels.Parse` of apimachinery reads: `a`, `!a`, `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a>1`, `a<1`.
fn label_requirements(text: &str) -> Result<Vec<Requirement>, Failure> {
    let mut requirements = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (requirement, after) =
            requirement(rest).map_err(|why| Failure::bad_request(format!("unable to parse requirement: {why}")))?;
        requirements.push(requirement);
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None if rest.is_empty() => {}
            None => {
                let why = format!("unable to parse requirement: found {rest:?}, expected: ',' or end");
                return Err(Failure::bad_request(why));
            }
        }
    }
    Ok(requirements)
}

/// A word of a selector and what comes after it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let ends = |letter: char| letter.is_whitespace() || matches!(letter, '=' | '!' | '(' | ')' | ',' | '>' | '<');
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

fn requirement(text: &str) -> Result<(Requirement, &str), String> {
    if let Some(rest) = text.strip_prefix('!') {
        let (key, rest) = word(rest);
        return Ok((Requirement::Absent(checked_key(key)?), rest));
    }
    let (key, rest) = word(text);
    let key = checked_key(key)?;
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with(',') {
        return Ok((Requirement::Exists(key), rest));
    }
    let one = |rest| {
        let (value, rest) = word(rest);
        checked_value(value).map(|value| (vec![value], rest))
    };
    let number = |rest| {
        let (value, rest) = word(rest);
        let read = value.parse().map(|number| (number, rest));
        read.map_err(|_| format!("for '>' and '<' operators, the value must be an integer, not {value:?}"))
    };
    for (operator, differs) in [("!=", true), ("==", false), ("=", false)] {
        if let Some(rest) = rest.strip_prefix(operator) {
            let (values, rest) = one(rest)?;
            let made = if differs { Requirement::NotIn(key, values) } else { Requirement::In(key, values) };
            return Ok((made, rest));
        }
    }
    if let Some(rest) = rest.strip_prefix('>') {
        return number(rest).map(|(than, rest)| (Requirement::Above(key, than), rest));
    }
    if let Some(rest) = rest.strip_prefix('<') {
        return number(rest).map(|(than, rest)| (Requirement::Below(key, than), rest));
    }
    let (operator, rest) = word(rest);
    match operator {
        "in" => values(rest).map(|(values, rest)| (Requirement::In(key, values), rest)),
        "notin" => values(rest).map(|(values, rest)| (Requirement::NotIn(key, values), rest)),
        _ => Err(format!("found {operator:?}, expected: in, notin, =, ==, !=, gt, lt")),
    }
}

/// `(a, b)`; an empty value is one.
fn values(text: &str) -> Result<(Vec<String>, &str), String> {
    let inside = text.trim_start().strip_prefix('(').ok_or("found no '(' after in or notin")?;
    let (inside, rest) = inside.split_once(')').ok_or("found no ')'")?;
    let values: Result<Vec<String>, String> = inside.split(',').map(|value| checked_value(value.trim())).collect();
    values.map(|values| (values, rest))
}

fn is_name(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn checked_key(key: &str) -> Result<String, String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let fits = is_name(name) && prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_name));
    if fits { Ok(key.to_owned()) } else { Err(format!("{key:?} is no label's name")) }
}

fn checked_value(value: &str) -> Result<String, String> {
    let fits = value.is_empty() || is_name(value);
    if fits { Ok(value.to_owned()) } else { Err(format!("{value:?} is no label's value")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Object(BTreeMap<String, String>);

    impl Fields for Object {
        fn field(&self, name: &str) -> Option<&str> {
            (name == "metadata.name").then_some("web-n1")
        }
        fn labels(&self) -> Option<&BTreeMap<String, String>> {
            Some(&self.0)
        }
    }

    fn selector(fields: &str, labels: &str) -> Result<Selector, String> {
        Selector::parse(Resource::Pods, Some(fields), Some(labels)).map_err(|failure| failure.status().to_string())
    }

    fn fits(fields: &str, labels: &str) -> bool {
        let labels_of = [("app", "web"), ("n", "5"), ("empty", ""), ("a.io/b", "c")];
        let object = Object(labels_of.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        selector(fields, labels).unwrap().fits(&object)
    }

    #[test]
    fn requirements_hold_as_in_kubernetes() {
        assert!(fits("", ""));
        assert!(fits("metadata.name=web-n1", "app=web,app,!db,tier!=x"));
        assert!(!fits("metadata.name!=web-n1", ""));
        assert!(!fits("", "app!=web"));
        assert!(!fits("", "db"));
        assert!(!fits("status.phase=Running", ""));
        assert!(fits("", "app in (db, web),tier notin (x),a.io/b==c"));
        assert!(!fits("", "app notin (db,web)") && !fits("", "tier in (x)"));
        assert!(fits("", " app = web , n>4,n < 6") && !fits("", "n>5") && !fits("", "app>1"));
        assert!(fits("", "empty=") && fits("", "empty in ()") && !fits("", "app="));
    }

    #[test]
    fn a_pod_may_be_named_without_the_suffix() {
        let object = Object(BTreeMap::new());
        let mut short = selector("metadata.name=web", "").unwrap();
        assert!(!short.fits(&object));
        short.without_suffix("n1");
        assert!(short.fits(&object));
        assert_eq!(short.name(), Some("web"));
        let mut other = selector("metadata.name=we", "").unwrap();
        other.without_suffix("n1");
        assert!(!other.fits(&object));
    }

    #[test]
    fn what_cannot_be_selected_by_is_refused() {
        for (fields, labels) in [
            ("spec.color=red", ""),
            ("metadata.name", ""),
            ("", "app in a,b"),
            ("", "app in (a,b"),
            ("", "app ~ b"),
            ("", "app=b c"),
            ("", "n>x"),
            ("", "=x"),
            ("", "a/b/c"),
            ("", "app=_"),
        ] {
            assert!(selector(fields, labels).is_err(), "{fields} {labels}");
        }
    }

    #[test]
    fn values_of_fields_may_be_escaped() {
        let selector = selector("metadata.name=a\\,b\\=c,spec.nodeName=n", "").unwrap();
        assert_eq!(selector.name(), Some("a,b=c"));
        assert_eq!(selector.fields.len(), 2);
    }

    proptest! {
        #[test]
        fn no_selector_makes_it_panic(fields in "\\PC{0,60}", labels in "[a-c!=,() <>innot]{0,40}") {
            let _ = selector(&fields, &labels).map(|selector| selector.fits(&Object(BTreeMap::new())));
        }
    }
}
