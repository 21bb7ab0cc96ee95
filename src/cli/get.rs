//! `get` and `describe`.

use super::client::{Client, decode};
use super::columns::{self, Row};
use super::error::Error;
use super::table::Table;
use super::{describe, print};
use crate::server::encode;
use crate::server::types::ImageItem;
use crate::sys::clock;
use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;

/// What `get` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Pods of this node.
    Pods,
    /// This node.
    Nodes,
    /// Recent events.
    Events,
    /// ConfigMaps that pods may refer to.
    ConfigMaps,
    /// Secrets that pods may refer to, without their values.
    Secrets,
    /// Images of the store.
    Images,
}

impl std::str::FromStr for Resource {
    type Err = String;

    fn from_str(word: &str) -> Result<Resource, String> {
        match word {
            "pods" | "pod" | "po" => Ok(Resource::Pods),
            "nodes" | "node" | "no" => Ok(Resource::Nodes),
            "events" | "event" | "ev" => Ok(Resource::Events),
            "configmaps" | "configmap" | "cm" => Ok(Resource::ConfigMaps),
            "secrets" | "secret" => Ok(Resource::Secrets),
            "images" | "image" => Ok(Resource::Images),
            _ => Err("want pods, nodes, events, configmaps, secrets or images".to_owned()),
        }
    }
}

impl Resource {
    fn plural(self) -> &'static str {
        match self {
            Resource::Pods => "pods",
            Resource::Nodes => "nodes",
            Resource::Events => "events",
            Resource::ConfigMaps => "configmaps",
            Resource::Secrets => "secrets",
            Resource::Images => "images",
        }
    }

    fn singular(self) -> &'static str {
        self.plural().trim_end_matches('s')
    }

    fn is_namespaced(self) -> bool {
        !matches!(self, Resource::Nodes | Resource::Images)
    }
}

/// How objects are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// kubectl's columns.
    #[default]
    #[value(skip)]
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Names only.
    Name,
}

/// What to get, and how to print it.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub resource: Resource,
    pub names: Vec<String>,
    pub namespace: String,
    pub all_namespaces: bool,
    pub output: Output,
    pub watch: bool,
    pub selector: Option<String>,
    pub no_headers: bool,
}

impl Request {
    /// For `image ls`: images have neither namespaces nor labels.
    pub(super) fn of_images(names: Vec<String>, output: Output, no_headers: bool) -> Request {
        Request {
            resource: Resource::Images,
            names,
            namespace: String::new(),
            all_namespaces: false,
            output,
            watch: false,
            selector: None,
            no_headers,
        }
    }

    fn path(&self) -> String {
        match self.resource {
            Resource::Images => "/coracle/v1/images".to_owned(),
            resource if resource.is_namespaced() && !self.all_namespaces => {
                format!("/api/v1/namespaces/{}/{}", encode(&self.namespace), resource.plural())
            }
            resource => format!("/api/v1/{}", resource.plural()),
        }
    }

    fn query(&self) -> String {
        self.selector.as_ref().map(|selector| format!("labelSelector={}&", encode(selector))).unwrap_or_default()
    }

    /// Whether an object is one of those named, if any are.
    fn names_it(&self, object: &Value, node: Option<&str>) -> bool {
        let Some(name) = object["metadata"]["name"].as_str() else { return true };
        let same = |wanted: &String| wanted == name || node.is_some_and(|node| format!("{wanted}-{node}") == name);
        self.names.is_empty() || self.names.iter().any(same)
    }
}

/// Runs `get`.
pub(super) async fn get(client: &Client, request: &Request) -> Result<i32, Error> {
    if request.watch && request.resource == Resource::Images {
        return Err(Error::usage("images cannot be watched"));
    }
    if request.selector.is_some() && request.resource == Resource::Images {
        return Err(Error::usage("images have no labels that could be selected by"));
    }
    let mut list = fetch(client, request).await?;
    let mut printer = Printer { request, table: Table::default(), with_header: !request.no_headers };
    let items = list["items"].as_array().cloned().unwrap_or_default();
    match request.output {
        Output::Table | Output::Wide | Output::Name => print(&printer.rows(&items)?)?,
        // As kubectl: one named object is printed by itself.
        Output::Json | Output::Yaml if request.names.len() == 1 => print(&printer.document(&items[0])?)?,
        Output::Json | Output::Yaml => {
            if request.resource != Resource::Images && !request.names.is_empty() {
                list["metadata"] = json!({});
            }
            print(&printer.document(&list)?)?;
        }
    }
    if request.watch {
        watch(client, &mut printer, items).await?;
    } else if items.is_empty() && matches!(request.output, Output::Table | Output::Wide) {
        if request.resource.is_namespaced() && !request.all_namespaces {
            eprintln!("No resources found in {} namespace.", request.namespace);
        } else {
            eprintln!("No resources found");
        }
    }
    Ok(0)
}

/// The list asked for, narrowed to the names given; a name that is not there is an error.
async fn fetch(client: &Client, request: &Request) -> Result<Value, Error> {
    let path = format!("{}?{}", request.path(), request.query());
    if request.names.is_empty() {
        return client.get(&path).await;
    }
    if request.all_namespaces {
        return Err(Error::usage("a resource cannot be retrieved by name across all namespaces"));
    }
    let mut items = Vec::new();
    let list: Value = if request.resource == Resource::Images { client.get(&path).await? } else { json!({}) };
    for name in &request.names {
        let item = match request.resource {
            Resource::Images => {
                let has_name = |item: &&Value| {
                    let names = item["names"].as_array().into_iter().flatten();
                    let mut names = names.filter_map(Value::as_str);
                    names.any(|full| {
                        full == name
                            || full.ends_with(&format!("/{name}"))
                            || full.ends_with(&format!("/{name}:latest"))
                    }) || item["id"]
                        .as_str()
                        .is_some_and(|id| id.trim_start_matches("sha256:").starts_with(name.as_str()))
                };
                let found = list["items"].as_array().into_iter().flatten().find(has_name);
                found.cloned().ok_or_else(|| Error::new(format!("image {name:?}"), "not found"))?
            }
            _ => client.get(&format!("{}/{}", request.path(), encode(name))).await?,
        };
        items.push(item);
    }
    Ok(json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}))
}

/// Prints what changes, until interrupted. What the list already showed is not printed again.
async fn watch(client: &Client, printer: &mut Printer<'_>, items: Vec<Value>) -> Result<(), Error> {
    let request = printer.request;
    let node = if request.names.is_empty() { None } else { Some(super::node_name(client).await?) };
    let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let mut known: HashMap<String, Value> = items.into_iter().map(|item| (uid(&item), item)).collect();
    let mut stream = client.stream(&format!("{}?{}watch=1", request.path(), request.query())).await?;
    while let Some(line) = stream.line().await? {
        let event: Value = decode(&line)?;
        let object = &event["object"];
        if !request.names_it(object, node.as_deref()) || known.remove(&uid(object)).is_some_and(|old| old == *object) {
            continue;
        }
        match request.output {
            Output::Json | Output::Yaml => print(&printer.document(object)?)?,
            _ => print(&printer.rows(std::slice::from_ref(object))?)?,
        }
    }
    Err(Error::new("the watch ended", "the agent closed the connection"))
}

struct Printer<'a> {
    request: &'a Request,
    table: Table,
    with_header: bool,
}

impl Printer<'_> {
    fn rows(&mut self, items: &[Value]) -> Result<String, Error> {
        let now = clock::wall();
        let wide = self.request.output == Output::Wide;
        if self.request.output == Output::Name {
            let kind = self.request.resource.singular();
            let name = |item: &Value| {
                let name = item["metadata"]["name"].as_str().or_else(|| item["names"][0].as_str());
                format!("{kind}/{}\n", super::table::printable(name.unwrap_or_default()))
            };
            return Ok(items.iter().map(name).collect());
        }
        if items.is_empty() {
            return Ok(String::new());
        }
        let mut rows: Vec<Row> = Vec::new();
        if std::mem::take(&mut self.with_header) {
            let mut header = match self.request.resource {
                Resource::Pods => columns::pod_header(wide),
                Resource::Nodes => columns::node_header(wide),
                Resource::Events => columns::event_header(wide),
                Resource::ConfigMaps => columns::config_map_header(),
                Resource::Secrets => columns::secret_header(),
                Resource::Images => columns::image_header(wide),
            };
            if self.with_namespace() {
                header.insert(0, "NAMESPACE".to_owned());
            }
            rows.push(header);
        }
        for item in items {
            let mut of_item = match self.request.resource {
                Resource::Pods => vec![columns::pod_row(&typed::<Pod>(item)?, wide, now)],
                Resource::Nodes => vec![columns::node_row(&typed::<Node>(item)?, wide, now)],
                Resource::Events => vec![columns::event_row(&typed::<Event>(item)?, wide, now)],
                Resource::ConfigMaps => vec![columns::config_map_row(item)],
                Resource::Secrets => vec![columns::secret_row(item)],
                Resource::Images => columns::image_rows(&typed::<ImageItem>(item)?, wide, now),
            };
            if self.with_namespace() {
                let namespace = item["metadata"]["namespace"].as_str().unwrap_or_default();
                of_item.iter_mut().for_each(|row| row.insert(0, namespace.to_owned()));
            }
            rows.append(&mut of_item);
        }
        Ok(self.table.rows(&rows))
    }

    fn with_namespace(&self) -> bool {
        self.request.all_namespaces && self.request.resource.is_namespaced()
    }

    fn document(&self, value: &Value) -> Result<String, Error> {
        if self.request.output == Output::Yaml { yaml(value) } else { pretty(value) }
    }
}

fn typed<T: DeserializeOwned>(item: &Value) -> Result<T, Error> {
    T::deserialize(item).map_err(|error| Error::new("the agent's answer makes no sense", error))
}

/// JSON with kubectl's indent of four.
pub(super) fn pretty(value: &impl Serialize) -> Result<String, Error> {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value.serialize(&mut serializer).map_err(|error| Error::new("cannot print JSON", error))?;
    out.push(b'\n');
    String::from_utf8(out).map_err(|error| Error::new("cannot print JSON", error))
}

pub(super) fn yaml(value: &Value) -> Result<String, Error> {
    // A long word stays in one line, for whoever reads lines: certificates, digests.
    let options = serde_yaml::ser_options! { folded_wrap_chars: usize::MAX };
    let mut text =
        serde_yaml::to_string_with_options(value, options).map_err(|error| Error::new("cannot print YAML", error))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Runs `describe pod`.
pub(super) async fn describe(client: &Client, namespace: &str, names: &[String]) -> Result<i32, Error> {
    let base = format!("/api/v1/namespaces/{}", encode(namespace));
    let mut names = names.to_vec();
    if names.is_empty() {
        let list: Value = client.get(&format!("{base}/pods")).await?;
        let name = |item: &Value| item["metadata"]["name"].as_str().map(str::to_owned);
        names = list["items"].as_array().into_iter().flatten().filter_map(name).collect();
        if names.is_empty() {
            eprintln!("No resources found in {namespace} namespace.");
        }
    }
    for (index, name) in names.iter().enumerate() {
        let pod: Pod = client.get(&format!("{base}/pods/{}", encode(name))).await?;
        let full = pod.metadata.name.as_deref().unwrap_or(name);
        let selector = encode(&format!("involvedObject.kind=Pod,involvedObject.name={full}"));
        let list: Value = client.get(&format!("{base}/events?fieldSelector={selector}")).await?;
        let mut events: Vec<Event> = Vec::new();
        for item in list["items"].as_array().into_iter().flatten() {
            events.push(typed(item)?);
        }
        let between = if index > 0 { "\n\n" } else { "" };
        print(&format!("{between}{}", describe::pod(&pod, &events, &TimeZone::system(), clock::wall())))?;
    }
    Ok(0)
}
