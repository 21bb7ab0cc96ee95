//! The table against the API's types and against the tests that it names.

use super::*;
use expect_test::expect_file;
use k8s_openapi::api::core::v1::PodSpec;
use serde::de::value::{Error, StrDeserializer};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Walks through a type by giving it one of everything, and notes the path of every field that it asks for.
struct Walk<'w> {
    path: String,
    found: &'w RefCell<BTreeSet<String>>,
    enter: &'w dyn Fn(&str) -> bool,
}

impl<'w> Walk<'w> {
    fn at(&self, path: String) -> Walk<'w> {
        Walk { path, found: self.found, enter: self.enter }
    }
}

macro_rules! zero {
    ($($method:ident $visit:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(Default::default())
        })*
    };
}

impl<'de> Deserializer<'de> for Walk<'_> {
    type Error = Error;

    zero! {
        deserialize_bool visit_bool
        deserialize_i32 visit_i32
        deserialize_i64 visit_i64
        deserialize_any visit_i64
        deserialize_f64 visit_f64
        deserialize_str visit_str
        deserialize_string visit_str
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if (self.enter)(&self.path) { visitor.visit_some(self) } else { visitor.visit_none() }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(One(Some(self)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { walk: self, names: &[], next: 0 })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { walk: self, names, next: 0 })
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
        ignored_any
    }
}

struct One<'w>(Option<Walk<'w>>);

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(walk) = self.0.take() else { return Ok(None) };
        let path = format!("{}[*]", walk.path);
        seed.deserialize(walk.at(path)).map(Some)
    }
}

struct Fields<'w> {
    walk: Walk<'w>,
    names: &'static [&'static str],
    next: usize,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(name) = self.names.get(self.next) else { return Ok(None) };
        self.next += 1;
        let key: StrDeserializer<'_, Error> = name.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let path = format!("{}.{}", self.walk.path, self.names[self.next - 1]);
        self.walk.found.borrow_mut().insert(path.clone());
        seed.deserialize(self.walk.at(path))
    }
}

#[test]
fn every_field_of_the_api_has_a_row_and_every_row_a_field() {
    let refused: BTreeSet<String> =
        rows().filter(|row| !row.field.works() && !row.field.works_bound()).map(|row| row.path).collect();
    let found = RefCell::new(BTreeSet::new());
    let enter = |path: &str| !refused.contains(path);
    PodSpec::deserialize(Walk { path: "spec".to_owned(), found: &found, enter: &enter }).unwrap();
    let expected = found.into_inner();
    // Amounts are maps: their keys are no fields of a type.
    let is_amount = |path: &String| path.contains(".limits") || path.contains(".requests");
    let mut table = BTreeSet::new();
    for row in rows() {
        let amount = is_amount(&row.path) && !row.path.ends_with(".limits") && !row.path.ends_with(".requests");
        assert!(amount || table.insert(row.path.clone()), "{} has two rows", row.path);
    }
    let missing: Vec<_> = expected.difference(&table).collect();
    let unknown: Vec<_> = table.difference(&expected).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "without a row: {missing:#?}; without a field: {unknown:#?}");
    assert!(expected.len() > 500, "only {} fields found", expected.len());
}

#[test]
fn rows_are_in_order_and_refusals_have_final_reasons() {
    for group in GROUPS.iter().chain(CLUSTER_GROUPS) {
        let names: Vec<_> = group.fields.iter().map(|field| field.name).collect();
        assert!(names.is_sorted(), "{}: {names:?}", group.kind);
        for field in group.fields {
            if let Some((Support::Refused(_, reason), note)) = field.bound {
                assert!(!reason.contains("yet") && !reason.contains("static") && !reason.is_empty() && note.is_empty());
            }
            let Support::Refused(_, reason) = field.support else { continue };
            assert!(!reason.contains("yet") && !reason.is_empty(), "{}.{}: {reason}", group.kind, field.name);
            assert!(field.note.is_empty(), "{}.{}: a refused field has a reason, not a note", group.kind, field.name);
        }
    }
}

/// Every function of a file, by the path of its modules, as the table names tests.
fn functions(root: &Path, folder: &str, found: &mut BTreeSet<String>) {
    let mut folders: Vec<PathBuf> = vec![root.join(folder)];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inner = path.strip_prefix(root.join(folder)).unwrap().with_extension("");
                let module: Vec<_> =
                    inner.iter().map(|part| part.to_string_lossy()).filter(|part| part != "mod").collect();
                let text = std::fs::read_to_string(&path).unwrap();
                let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
                let names = names.filter_map(|rest| rest.split_once("()").map(|(name, _)| name));
                found.extend(names.map(|name| format!("{}::{name}", module.join("::"))));
            }
        }
    }
}

#[test]
fn every_proof_is_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    functions(root, "tests/node", &mut tests);
    functions(root, "src", &mut tests);
    let named: BTreeSet<&str> = GROUPS
        .iter()
        .chain(CLUSTER_GROUPS)
        .flat_map(|group| group.fields)
        .flat_map(|field| [field.support, field.bound_support()])
        .filter_map(|support| match support {
            Support::Works(test) => Some(test),
            Support::Refused(..) => None,
        })
        .collect();
    let missing: Vec<_> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(missing.is_empty(), "named in supported/table.rs, but nowhere written: {missing:#?}");
}

#[test]
fn the_document_is_what_the_table_says() {
    // `cargo xtask fields` writes it.
    expect_file!["../../../FIELDS.md"].assert_eq(&markdown());
}

#[test]
fn a_field_is_explained_with_all_inside_it() {
    let paths = |prefix: &str| explain(prefix).into_iter().map(|row| row.path).collect::<Vec<_>>();
    assert_eq!(paths("spec.hostAliases"), paths("spec.hostAliases[0]"));
    assert_eq!(
        paths("spec.hostAliases"),
        ["spec.hostAliases", "spec.hostAliases[*].hostnames", "spec.hostAliases[*].ip"]
    );
    assert_eq!(paths("spec.containers.image"), ["spec.containers[*].image", "spec.containers[*].imagePullPolicy"][..1]);
    assert_eq!(paths("").len(), rows().count());
    assert!(paths("readinessProbe").contains(&"spec.initContainers[*].readinessProbe.grpc.port".to_owned()));
    assert_eq!(paths("spec.nonsense"), Vec::<String>::new());
    assert_eq!(closest("spec.containers[0].readynessProbe"), Some("readinessProbe"));
}

#[test]
fn keys_fit_patterns() {
    assert!(is_like("hugepages-2Mi", "hugepages-*") && !is_like("memory", "hugepages-*"));
    assert!(is_like("example.com/gpu", "*/*") && !is_like("cpu", "*/*"));
}
