//! Tree → Kubernetes types, with the path and line of everything that does not fit.
//!
//! A value of the wrong type is reported and stood in for by an empty one, so that one pass finds all of them. Types are
//! as strict as the API server's: `value: 8080` of an environment variable is refused, a quantity may be a number.
//! Null means unset, as in Go.

use super::Severity;
use super::report::{self, Report};
use super::suggest;
use super::tree::{Entry, Node, Place, Value};
use serde::de::value::StrDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::cell::RefCell;
use std::fmt;

/// Whether messages may show what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    Shown,
    /// They may be secret: a message says what is wrong with one and where, never what it is.
    Hidden,
}

/// The object of a document; `None` when a value could not even be stood in for (reported).
pub(super) fn read<'d, T: Deserialize<'d>>(document: &'d Node, values: Values, report: &mut Report<'_>) -> Option<T> {
    let findings = Findings { values, list: RefCell::new(Vec::new()) };
    let path = Path { parent: None, step: Step::Root };
    let object = T::deserialize(Reader { node: document, path: &path, findings: &findings });
    for Finding { place, field, reason, severity } in findings.list.into_inner() {
        match severity {
            Severity::Error => report.undecodable(place, field, reason),
            Severity::Warning => report.warning_at(place, field, reason),
        }
    }
    match object {
        Ok(object) => Some(object),
        Err(Error { reason, at }) => {
            let (field, place) = at.unwrap_or_default();
            let reason = match values {
                Values::Shown => reason,
                Values::Hidden => "Invalid value: does not fit the field's type".to_owned(),
            };
            report.undecodable(place, field, reason);
            None
        }
    }
}

struct Findings {
    values: Values,
    list: RefCell<Vec<Finding>>,
}

struct Finding {
    place: Place,
    field: String,
    reason: String,
    severity: Severity,
}

/// A value that no stand-in could be found for.
#[derive(Debug)]
struct Error {
    reason: String,
    at: Option<(String, Place)>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Error {
        Error { reason: format!("Invalid value: {message}"), at: None }
    }
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Field(&'p str),
    Key(&'p str),
    Index(usize),
}

/// A path as a chain of stack frames: only a problem pays for its text.
struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if self.parent.is_some_and(|parent| matches!(parent.step, Step::Root)) => {
                f.write_str(name)
            }
            Step::Field(name) => write!(f, ".{name}"),
            Step::Key(key) => write!(f, "[{key}]"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

struct Reader<'r, 'de> {
    node: &'de Node,
    path: &'r Path<'r>,
    findings: &'r Findings,
}

impl Reader<'_, '_> {
    fn mismatch(&self, expected: &str) {
        let shown = match &self.node.value {
            _ if self.findings.values == Values::Hidden => String::new(),
            Value::Integer(number) => format!("{number}: "),
            Value::Float(number) => format!("{number}: "),
            Value::Bool(value) => format!("{value}: "),
            Value::String(text) if text.len() <= 100 => format!("{text:?}: "),
            _ => String::new(),
        };
        let hint = match &self.node.value {
            Value::Integer(_) | Value::Float(_) if expected == "a string" => " (put it in quotes)",
            // As for kubectl: the booleans are those of YAML 1.1.
            Value::Bool(_) if expected == "a string" => {
                " (y, yes, on, n, no and off are booleans, too: put it in quotes)"
            }
            _ => "",
        };
        self.report(format!("Invalid value: {shown}must be {expected}, not {}{hint}", self.node.value.kind()));
    }

    fn report(&self, reason: String) {
        let (place, field) = (self.node.place, self.path.to_string());
        self.findings.list.borrow_mut().push(Finding { place, field, reason, severity: Severity::Error });
    }

    fn locate(&self, error: Error) -> Error {
        let Error { reason, at } = error;
        Error { reason, at: at.or_else(|| Some((self.path.to_string(), self.node.place))) }
    }

    /// The value as an integer within `range`; a stand-in of 0 when it is none.
    fn integer(&self, min: i64, max: i64) -> i64 {
        let value = match self.node.value {
            Value::Null => return 0,
            Value::Integer(value) => value,
            // `5.0` is 5, as it is for kubectl; the cast is exact below 2^53.
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 9.0e15 => value as i128,
            _ => {
                self.mismatch("an integer");
                return 0;
            }
        };
        match i64::try_from(value) {
            Ok(value) if (min..=max).contains(&value) => value,
            _ => {
                let shown = match self.findings.values {
                    Values::Shown => format!("{value}: "),
                    Values::Hidden => String::new(),
                };
                self.report(format!("Invalid value: {shown}must be between {min} and {max}, inclusive"));
                0
            }
        }
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            // The range check makes the conversion lossless.
            let value = self.integer(i64::try_from(<$type>::MIN).unwrap_or(i64::MIN), i64::try_from(<$type>::MAX).unwrap_or(i64::MAX));
            visitor.$visit(value as $type)
        })*
    };
}

impl<'de> de::Deserializer<'de> for Reader<'_, 'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => match i64::try_from(*value) {
                Ok(value) => visitor.visit_i64(value),
                Err(_) => visitor.visit_f64(*value as f64),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Null => visitor.visit_bool(false),
            _ => {
                self.mismatch("a boolean");
                visitor.visit_bool(false)
            }
        }
    }

    integers! {
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Integer(value) => visitor.visit_f64(value as f64),
            Value::Float(value) => visitor.visit_f64(value),
            Value::Null => visitor.visit_f64(0.0),
            _ => {
                self.mismatch("a number");
                visitor.visit_f64(0.0)
            }
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) => {
                let located = visitor.visit_borrowed_str(text);
                located.map_err(|error| self.locate(error))
            }
            Value::Null => visitor.visit_borrowed_str(""),
            _ => {
                self.mismatch("a string");
                visitor.visit_borrowed_str("")
            }
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        let fits = match self.node.value {
            Value::Integer(_) | Value::Float(_) | Value::String(_) => true,
            _ => name != "Quantity",
        };
        if fits {
            return visitor.visit_newtype_struct(self);
        }
        if self.node.value != Value::Null {
            self.mismatch("a quantity");
        }
        visitor.visit_str("0")
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let items: &[Node] = match &self.node.value {
            Value::List(items) => items,
            Value::Null => &[],
            _ => {
                self.mismatch("a list");
                &[]
            }
        };
        visitor.visit_seq(Items { reader: self, items, index: 0 })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.entries(visitor, None)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.entries(visitor, Some(fields))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

impl<'de> Reader<'_, 'de> {
    /// A map (`fields` is `None`), or a struct with known fields.
    fn entries<V: Visitor<'de>>(self, visitor: V, fields: Option<&'static [&'static str]>) -> Result<V::Value, Error> {
        let entries: &[Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                self.mismatch("an object");
                &[]
            }
        };
        visitor.visit_map(Entries { reader: self, entries, next: 0, fields })
    }
}

struct Items<'r, 'de> {
    reader: Reader<'r, 'de>,
    items: &'de [Node],
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(node) = self.items.get(self.index) else { return Ok(None) };
        let path = Path { parent: Some(self.reader.path), step: Step::Index(self.index) };
        self.index += 1;
        let reader = Reader { node, path: &path, findings: self.reader.findings };
        seed.deserialize(reader).map(Some).map_err(|error| locate(error, &path, node.place))
    }
}

struct Entries<'r, 'de> {
    reader: Reader<'r, 'de>,
    entries: &'de [Entry],
    next: usize,
    fields: Option<&'static [&'static str]>,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(entry) = self.entries.get(self.next) else { return Ok(None) };
        self.next += 1;
        if let Some(fields) = self.fields
            && !fields.contains(&entry.key.as_str())
        {
            let path = Path { parent: Some(self.reader.path), step: Step::Field(&entry.key) };
            // To look for what was meant takes long, and of very many findings the later ones are not told.
            let told = self.reader.findings.list.borrow().len() < report::MOST;
            let reason = match told.then(|| suggest::closest(&entry.key, fields)).flatten() {
                Some(meant) => format!("unknown field, ignored; did you mean \"{meant}\"?"),
                None => "unknown field, ignored".to_owned(),
            };
            let (place, field) = (entry.place, path.to_string());
            let finding = Finding { place, field, reason, severity: Severity::Warning };
            self.reader.findings.list.borrow_mut().push(finding);
        }
        let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let entries = self.entries;
        let Some(entry) = self.next.checked_sub(1).and_then(|index| entries.get(index)) else {
            return Err(de::Error::custom("a value without a key"));
        };
        let step = if self.fields.is_some() { Step::Field(&entry.key) } else { Step::Key(&entry.key) };
        let path = Path { parent: Some(self.reader.path), step };
        let reader = Reader { node: &entry.node, path: &path, findings: self.reader.findings };
        seed.deserialize(reader).map_err(|error| locate(error, &path, entry.node.place))
    }
}

fn locate(error: Error, path: &Path<'_>, place: Place) -> Error {
    let Error { reason, at } = error;
    Error { reason, at: at.or_else(|| Some((path.to_string(), place))) }
}
