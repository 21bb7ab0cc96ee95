//! Objects as rows (`Table` of `meta.k8s.io/v1`), with the columns that kubectl knows. Pure.

use super::super::columns;
use super::accept::{Include, Shape};
use super::object::Object;
use super::resource::{Group, Resource};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The columns of a kind: all of them, those for `-o wide` with priority 1.
fn definitions(resource: Resource) -> Vec<Value> {
    let (narrow, wide) = match resource {
        Resource::Pods => (columns::pod_header(false), columns::pod_header(true)),
        Resource::Nodes => (columns::node_header(false), columns::node_header(true)),
        Resource::Events => (columns::event_header(false), columns::event_header(true)),
        Resource::Namespaces => (columns::namespace_header(), columns::namespace_header()),
        Resource::ConfigMaps => (columns::config_map_header(), columns::config_map_header()),
        Resource::Secrets => (columns::secret_header(), columns::secret_header()),
    };
    let definition = |name: &String| {
        let format = if name == "NAME" { "name" } else { "" };
        let priority = i32::from(!narrow.contains(name));
        json!({"name": title(name), "type": "string", "format": format, "description": "", "priority": priority})
    };
    wide.iter().map(definition).collect()
}

/// `LAST SEEN` → `Last Seen`, as the API server writes it; kubectl prints it in capitals again.
fn title(name: &str) -> String {
    // Those that are not words.
    if matches!(name, "IP" | "OS-IMAGE") {
        return if name == "IP" { name.to_owned() } else { "OS-Image".to_owned() };
    }
    let mut begins = true;
    let letter = |letter: char| {
        let shown = if begins { letter } else { letter.to_ascii_lowercase() };
        begins = matches!(letter, ' ' | '-');
        shown
    };
    let titled: String = name.chars().map(letter).collect();
    titled.replace("-Ip", "-IP")
}

fn cells(resource: Resource, object: &Object, now: Timestamp) -> Vec<String> {
    match object {
        Object::Pod(pod) => columns::pod_row(pod, true, now),
        Object::Node(node) => columns::node_row(node, true, now),
        Object::Event(event) => columns::event_row(event, true, now),
        Object::Data(shown) => match resource {
            Resource::Namespaces => columns::namespace_row(&shown.value, now),
            Resource::Secrets => columns::secret_row(&shown.value),
            _ => columns::config_map_row(&shown.value),
        },
    }
}

/// An object's metadata as an object of its own.
fn partial(object: &Object) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.metadata()})
}

fn row(resource: Resource, group: Group, object: &Object, include: Include, now: Timestamp) -> Value {
    let mut row = Map::new();
    row.insert("cells".to_owned(), cells(resource, object, now).into());
    match include {
        Include::Nothing => {}
        Include::Metadata => drop(row.insert("object".to_owned(), partial(object))),
        Include::Object => drop(row.insert("object".to_owned(), object.value(group))),
    }
    Value::Object(row)
}

/// How objects are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) resource: Resource,
    pub(super) group: Group,
    pub(super) shape: Shape,
}

/// The metadata of a list.
pub(super) struct ListMeta {
    pub(super) revision: u64,
    /// Where the next part begins.
    pub(super) next: Option<String>,
    /// How many are in the parts after this one, as far as that is known.
    pub(super) remaining: Option<usize>,
}

impl ListMeta {
    fn value(&self) -> Value {
        let mut value = json!({"resourceVersion": self.revision.to_string()});
        if let Some(next) = &self.next {
            value["continue"] = next.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            value["remainingItemCount"] = remaining.into();
        }
        value
    }
}

impl View {
    /// A list.
    pub(super) fn list(self, objects: &[Object], meta: &ListMeta, now: Timestamp) -> Value {
        let metadata = meta.value();
        let (kind, version) = match self.shape {
            Shape::Table(include) => return self.table(objects, include, metadata, true, now),
            Shape::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1"),
            Shape::Whole => (format!("{}List", self.resource.kind()), self.group.api_version()),
        };
        let items: Vec<Value> = objects.iter().map(|object| self.plain(object)).collect();
        json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": items})
    }

    /// One object. `with_columns`: whether a table's columns are told, which a watch does once.
    pub(super) fn one(self, object: &Object, with_columns: bool, now: Timestamp) -> Value {
        let Shape::Table(include) = self.shape else { return self.plain(object) };
        let version = object.metadata().resource_version.as_deref().unwrap_or_default();
        let metadata = json!({"resourceVersion": version});
        self.table(std::slice::from_ref(object), include, metadata, with_columns, now)
    }

    /// An object that says nothing but how far a watch has come.
    pub(super) fn bookmark(self, revision: u64, is_initial: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if is_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self.shape {
            Shape::Table(_) => {
                // The columns come with the first row; where the metadata belongs, as the API server has it.
                let row = json!({"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata}});
                let version = json!({"resourceVersion": revision.to_string()});
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": version, "columnDefinitions": null,
                    "rows": [row]})
            }
            Shape::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Whole => {
                json!({"kind": self.resource.kind(), "apiVersion": self.group.api_version(), "metadata": metadata})
            }
        }
    }

    fn plain(self, object: &Object) -> Value {
        if self.shape == Shape::Metadata { partial(object) } else { object.value(self.group) }
    }

    fn table(self, objects: &[Object], include: Include, metadata: Value, with_columns: bool, now: Timestamp) -> Value {
        let rows: Vec<Value> = objects.iter().map(|o| row(self.resource, self.group, o, include, now)).collect();
        let columns = if with_columns { definitions(self.resource).into() } else { Value::Null };
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "columnDefinitions": columns, "rows": rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn columns_and_cells_are_as_many() {
        let now = "2026-11-22T00:00:00Z".parse().unwrap();
        let pod = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"containers": [{"name": "c"}]}});
        let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "web"}});
        let all = [
            (Resource::Pods, Object::Pod(Arc::new(serde_json::from_value(pod).unwrap()))),
            (Resource::Nodes, Object::Node(Box::default())),
            (Resource::Events, Object::Event(Box::new(serde_json::from_value(event).unwrap()))),
            (Resource::Namespaces, Object::namespace("default", None)),
        ];
        for (resource, object) in all {
            let view = View { resource, group: Group::Core, shape: Shape::Table(Include::Metadata) };
            let table = view.one(&object, true, now);
            let columns = table["columnDefinitions"].as_array().unwrap();
            let row = &table["rows"][0];
            assert_eq!(columns.len(), row["cells"].as_array().unwrap().len(), "{resource:?}");
            assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
            assert!(view.one(&object, false, now)["columnDefinitions"].is_null());
        }
    }

    #[test]
    fn columns_are_named_as_the_api_server_names_them() {
        let names = |resource| {
            let names = definitions(resource);
            let name =
                |d: &Value| format!("{}{}", d["name"].as_str().unwrap(), if d["priority"] == 1 { "+" } else { "" });
            names.iter().map(name).collect::<Vec<_>>().join(",")
        };
        assert_eq!(names(Resource::Pods), "Name,Ready,Status,Restarts,Age,IP+,Node+,Nominated Node+,Readiness Gates+");
        assert_eq!(
            names(Resource::Nodes),
            "Name,Status,Roles,Age,Version,Internal-IP+,External-IP+,OS-Image+,Kernel-Version+,Container-Runtime+"
        );
        assert_eq!(
            names(Resource::Events),
            "Last Seen,Type,Reason,Object,Subobject+,Source+,Message,First Seen+,Count+,Name+"
        );
    }
}
