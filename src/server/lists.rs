//! `GET` of Kubernetes objects: lists, single objects, watches.

use super::objects::Shown;
use super::reply::{self, Failure, Reply};
use super::route::{Query, Resource};
use super::selector::{Fields, Selector};
use super::{Node, find_pod};
use crate::manifest::ObjectKind;
use hyper::StatusCode;
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::{Event, Node as ApiNode, Pod};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;

/// An object of any kind served here.
#[derive(Clone, PartialEq)]
enum Object {
    Pod(Arc<Pod>),
    Node(Box<ApiNode>),
    Event(Box<Event>),
    Data(Box<Shown>),
}

impl Serialize for Object {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Object::Pod(pod) => pod.as_ref().serialize(serializer),
            Object::Node(node) => node.serialize(serializer),
            Object::Event(event) => event.serialize(serializer),
            Object::Data(shown) => shown.serialize(serializer),
        }
    }
}

impl Object {
    fn metadata(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        match self {
            Object::Pod(pod) => &pod.metadata,
            Object::Node(node) => &node.metadata,
            Object::Event(event) => &event.metadata,
            Object::Data(shown) => &shown.metadata,
        }
    }

    /// What tells objects apart: a pod replaced under the same name is another object.
    fn key(&self) -> (String, String, String) {
        let metadata = self.metadata();
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        (text(&metadata.namespace), text(&metadata.name), text(&metadata.uid))
    }

    fn in_namespace(&self, namespace: Option<&str>) -> bool {
        namespace.is_none_or(|wanted| self.metadata().namespace.as_deref() == Some(wanted))
    }
}

impl Fields for Object {
    fn field(&self, name: &str) -> Option<&str> {
        let metadata = self.metadata();
        let field = match (name, self) {
            ("metadata.name", _) => &metadata.name,
            ("metadata.namespace", _) => &metadata.namespace,
            (_, Object::Node(_) | Object::Data(_)) => return None,
            ("spec.nodeName", Object::Pod(pod)) => &pod.spec.as_ref()?.node_name,
            ("spec.restartPolicy", Object::Pod(pod)) => &pod.spec.as_ref()?.restart_policy,
            ("status.phase", Object::Pod(pod)) => &pod.status.as_ref()?.phase,
            ("status.podIP", Object::Pod(pod)) => &pod.status.as_ref()?.pod_ip,
            (_, Object::Pod(_)) => return None,
            ("involvedObject.kind", Object::Event(event)) => &event.involved_object.kind,
            ("involvedObject.namespace", Object::Event(event)) => &event.involved_object.namespace,
            ("involvedObject.name", Object::Event(event)) => &event.involved_object.name,
            ("involvedObject.uid", Object::Event(event)) => &event.involved_object.uid,
            ("involvedObject.fieldPath", Object::Event(event)) => &event.involved_object.field_path,
            ("reason", Object::Event(event)) => &event.reason,
            ("type", Object::Event(event)) => &event.type_,
            (_, Object::Event(_)) => return None,
        };
        field.as_deref()
    }

    fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.metadata().labels.as_ref()
    }
}

/// The objects that a list or watch is about, as of now.
struct Scope {
    node: Arc<dyn Node>,
    resource: Resource,
    namespace: Option<String>,
    selector: Selector,
}

impl Scope {
    fn data(&self, kind: ObjectKind) -> Vec<Object> {
        let all = self.node.objects();
        let all = all.iter().filter(|object| object.id().kind == kind);
        all.map(|object| Object::Data(Box::new(Shown::of(object)))).collect()
    }

    fn objects(&self) -> Vec<Object> {
        let mut objects: Vec<Object> = match self.resource {
            Resource::Pods => self.node.pods().into_iter().map(Object::Pod).collect(),
            Resource::Nodes => vec![Object::Node(Box::new(self.node.node()))],
            Resource::Events => self.node.events().into_iter().map(|event| Object::Event(Box::new(event))).collect(),
            Resource::ConfigMaps => self.data(ObjectKind::ConfigMap),
            Resource::Secrets => self.data(ObjectKind::Secret),
        };
        objects.retain(|object| object.in_namespace(self.namespace.as_deref()) && self.selector.fits(object));
        objects
    }
}

/// A list, or a watch when the query asks for one.
pub(super) fn list(
    node: Arc<dyn Node>,
    resource: Resource,
    namespace: Option<String>,
    query: &Query,
) -> Result<Reply, Failure> {
    let selector = Selector::parse(resource, query.get("fieldSelector"), query.get("labelSelector"))?;
    let scope = Scope { node, resource, namespace, selector };
    if query.flag("watch")? {
        return watch(scope, query);
    }
    #[derive(Serialize)]
    struct List {
        kind: &'static str,
        #[serde(rename = "apiVersion")]
        api_version: &'static str,
        metadata: serde_json::Value,
        items: Vec<Object>,
    }
    let revision = *scope.node.changes().borrow();
    reply::json(&List {
        kind: resource.list_kind(),
        api_version: "v1",
        metadata: serde_json::json!({"resourceVersion": revision.to_string()}),
        items: scope.objects(),
    })
}

/// One object.
pub(super) fn get(
    node: &Arc<dyn Node>,
    resource: Resource,
    namespace: Option<&str>,
    name: &str,
) -> Result<Reply, Failure> {
    let missing = || Failure::not_found(format!("{} {name:?} not found", resource.plural()));
    if resource == Resource::Pods {
        let pod = find_pod(node.as_ref(), namespace.unwrap_or_default(), name).ok_or_else(missing)?;
        return reply::json(pod.as_ref());
    }
    let namespace = namespace.map(str::to_owned);
    let scope = Scope { node: node.clone(), resource, namespace, selector: Selector::default() };
    let found = scope.objects().into_iter().find(|object| object.metadata().name.as_deref() == Some(name));
    reply::json(&found.ok_or_else(missing)?)
}

/// Streams watch events, one JSON object a line. Without a resourceVersion everything there is comes first, as `ADDED`.
fn watch(scope: Scope, query: &Query) -> Result<Reply, Failure> {
    let mut changes = scope.node.changes();
    let revision = *changes.borrow_and_update();
    let mut known: BTreeMap<_, Object> = BTreeMap::new();
    match query.get("resourceVersion") {
        None | Some("0") => {}
        Some(version) if version == revision.to_string() => {
            known = scope.objects().into_iter().map(|object| (object.key(), object)).collect();
        }
        // No history is kept, so what happened since cannot be told; the client has to list again.
        Some(version) => return Err(Failure::gone(format!("too old resource version: {version} ({revision})"))),
    }
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            let lines = difference(&mut known, scope.objects());
            if !lines.is_empty() && sender.send(Ok(Bytes::from(lines))).await.is_err() {
                return;
            }
            tokio::select! {
                () = sender.closed() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    });
    Ok(reply::with_type(StatusCode::OK, "application/json", reply::stream(receiver)))
}

/// What makes `known` into `now`, as lines of watch events; `known` becomes `now`.
fn difference(known: &mut BTreeMap<(String, String, String), Object>, now: Vec<Object>) -> Vec<u8> {
    let mut lines = Vec::new();
    let now: BTreeMap<_, Object> = now.into_iter().map(|object| (object.key(), object)).collect();
    for (_, gone) in known.iter().filter(|(key, _)| !now.contains_key(*key)) {
        push_event(&mut lines, "DELETED", gone);
    }
    for (key, object) in &now {
        match known.get(key) {
            None => push_event(&mut lines, "ADDED", object),
            Some(Object::Pod(old)) if matches!(object, Object::Pod(new) if Arc::ptr_eq(old, new)) => {}
            Some(old) if old == object => {}
            Some(_) => push_event(&mut lines, "MODIFIED", object),
        }
    }
    *known = now;
    lines
}

fn push_event(lines: &mut Vec<u8>, kind: &str, object: &Object) {
    #[derive(Serialize)]
    struct Event<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        object: &'a Object,
    }
    let written: io::Result<()> = serde_json::to_writer(&mut *lines, &Event { kind, object }).map_err(Into::into);
    // Writing to memory and serialising plain data cannot fail; a half-written line would be worse than none.
    debug_assert!(written.is_ok());
    lines.push(b'\n');
}
