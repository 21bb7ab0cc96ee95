//! Lists, and single objects.

use super::super::reply::{self, Failure, Reply};
use super::super::route::Query;
use super::super::{Node, find_pod};
use super::accept::Shape;
use super::asked::Objects;
use super::object::Object;
use super::resource::Resource;
use super::selector::Selector;
use super::table::{ListMeta, View};
use super::watch;
use crate::manifest::ObjectKind;
use crate::sys::clock;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The objects that a list or watch is about, as of now.
pub(super) struct Scope {
    pub(super) node: Arc<dyn Node>,
    pub(super) view: View,
    namespace: Option<String>,
    selector: Selector,
    for_kubectl: bool,
}

/// All objects of a kind, by namespace and name (events: oldest first).
fn all(node: &dyn Node, resource: Resource, for_kubectl: bool) -> Vec<Object> {
    let data = |kind: ObjectKind| {
        let all = node.objects();
        let all = all.iter().filter(|object| object.id().kind == kind);
        all.map(|object| Object::data(object, for_kubectl)).collect()
    };
    match resource {
        Resource::Pods => node.pods().into_iter().map(Object::Pod).collect(),
        Resource::Nodes => vec![Object::Node(Box::new(node.node()))],
        Resource::Events => node.events().into_iter().map(|event| Object::Event(Box::new(event))).collect(),
        Resource::Namespaces => namespaces(node),
        Resource::ConfigMaps => data(ObjectKind::ConfigMap),
        Resource::Secrets => data(ObjectKind::Secret),
    }
}

/// Those that something is in, and the one that is there in every cluster.
fn namespaces(node: &dyn Node) -> Vec<Object> {
    let pods = node.pods();
    let objects = node.objects();
    let of_pods = pods.iter().filter_map(|pod| pod.metadata.namespace.clone());
    let of_objects = objects.iter().map(|object| object.id().namespace);
    let names: BTreeSet<String> = of_pods.chain(of_objects).chain(["default".to_owned()]).collect();
    let since = node.node().metadata.creation_timestamp;
    names.iter().map(|name| Object::namespace(name, since.clone())).collect()
}

impl Scope {
    /// What a query selects. `for_kubectl`: pods may be named without the node's suffix, and are then told under the name
    /// that was asked for, as kubectl compares the two; and what is secret is masked in a way that it can read.
    pub(super) fn new(
        node: Arc<dyn Node>,
        asked: &Objects,
        shape: Shape,
        query: &Query,
        for_kubectl: bool,
    ) -> Result<Scope, Failure> {
        let mut selector = Selector::parse(asked.resource, query.get("fieldSelector"), query.get("labelSelector"))?;
        if for_kubectl {
            selector.without_suffix(node.name());
        }
        let view = View { resource: asked.resource, group: asked.group, shape };
        Ok(Scope { node, view, namespace: asked.namespace.clone(), selector, for_kubectl })
    }

    /// All that is selected.
    pub(super) fn objects(&self) -> Vec<Object> {
        self.select(self.everything())
    }

    /// All of the kind.
    pub(super) fn everything(&self) -> Vec<Object> {
        all(self.node.as_ref(), self.view.resource, self.for_kubectl)
    }

    /// What is selected of these.
    pub(super) fn select(&self, mut objects: Vec<Object>) -> Vec<Object> {
        objects.retain(|object| object.in_namespace(self.namespace.as_deref()) && self.selector.fits(object));
        let Some(name) = self.selector.name().filter(|_| self.view.resource == Resource::Pods) else { return objects };
        if objects.iter().any(|object| object.name() == name) {
            objects.retain(|object| object.name() == name);
        } else {
            objects.iter_mut().for_each(|object| rename(object, name));
        }
        objects
    }
}

/// Tells a pod under another name.
fn rename(object: &mut Object, name: &str) {
    if let Object::Pod(pod) = object {
        *pod = renamed(pod, name);
    }
}

/// A pod under the name by which it was asked for.
pub(super) fn renamed(pod: &Arc<Pod>, name: &str) -> Arc<Pod> {
    if pod.metadata.name.as_deref() == Some(name) {
        return Arc::clone(pod);
    }
    let mut pod = Pod::clone(pod);
    pod.metadata.name = Some(name.to_owned());
    Arc::new(pod)
}

/// A list, or a watch when the query asks for one.
pub(super) fn list(scope: Scope, query: &Query) -> Result<Reply, Failure> {
    if query.flag("watch")? {
        return watch::watch(scope, query);
    }
    let revision = *scope.node.changes().borrow();
    let everything = scope.everything();
    scope.node.lists().remember(revision, scope.view.resource, &everything);
    let mut objects = scope.select(everything);
    let limit = query.number("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
    let (mut next, mut remaining) = (None, None);
    if limit.is_some() || query.get("continue").is_some() {
        // The order must not depend on when it was asked.
        objects.sort_by_key(Object::key);
    }
    if let Some(token) = query.get("continue") {
        let after = read_token(token)?;
        objects.retain(|object| place(object) > after);
    }
    if let Some(limit) = limit.filter(|limit| *limit < objects.len()) {
        remaining = Some(objects.len() - limit);
        objects.truncate(limit);
        next = objects.last().map(|object| token(&place(object)));
    }
    reply::json(&scope.view.list(&objects, &ListMeta { revision, next, remaining }, clock::wall()))
}

/// Where an object stands in a list that is asked for in parts.
type Place = (String, String);

fn place(object: &Object) -> Place {
    let (namespace, name, _) = object.key();
    (namespace, name)
}

fn token((namespace, name): &Place) -> String {
    URL_SAFE_NO_PAD.encode(format!("{namespace}/{name}"))
}

fn read_token(token: &str) -> Result<Place, Failure> {
    let text = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let place = text.as_deref().and_then(|text| text.split_once('/'));
    let place = place.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    place.ok_or_else(|| Failure::bad_request("continue key is not valid: it is none of this server"))
}

/// One object.
pub(super) fn get(
    node: &Arc<dyn Node>,
    asked: &Objects,
    name: &str,
    shape: Shape,
    for_kubectl: bool,
) -> Result<Reply, Failure> {
    let object = find(node, asked, name, for_kubectl)?;
    let view = View { resource: asked.resource, group: asked.group, shape };
    reply::json(&view.one(&object, true, clock::wall()))
}

/// One object.
///
/// # Errors
/// 404.
pub(super) fn find(node: &Arc<dyn Node>, asked: &Objects, name: &str, for_kubectl: bool) -> Result<Object, Failure> {
    let missing = || Failure::not_found(format!("{} {name:?} not found", asked.resource.plural()));
    if asked.resource == Resource::Pods {
        let pod = find_pod(node.as_ref(), asked.namespace.as_deref().unwrap_or_default(), name).ok_or_else(missing)?;
        return Ok(Object::Pod(if for_kubectl { renamed(&pod, name) } else { pod }));
    }
    let is_it = |object: &Object| object.name() == name && object.in_namespace(asked.namespace.as_deref());
    all(node.as_ref(), asked.resource, for_kubectl).into_iter().find(is_it).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_goes_on_where_it_stopped() {
        let place = ("default".to_owned(), "web-n1".to_owned());
        assert_eq!(read_token(&token(&place)).ok(), Some(place));
        for bad in ["", "%", "bm9zbGFzaA", "_w"] {
            assert!(read_token(bad).is_err(), "{bad}");
        }
    }
}
