//! An object of any kind that is served.

use super::super::objects::Shown;
use super::resource::Group;
use super::selector::Fields;
use crate::manifest;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An object of any kind that is served.
#[derive(Clone, PartialEq)]
pub(super) enum Object {
    Pod(Arc<Pod>),
    Node(Box<Node>),
    Event(Box<Event>),
    /// Namespaces, ConfigMaps and Secrets.
    Data(Box<Shown>),
}

/// What tells objects apart: a pod replaced under the same name is another object.
pub(super) type Key = (String, String, String);

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
    /// A ConfigMap or Secret, whose values nobody is shown.
    pub(super) fn data(object: &manifest::Object, for_kubectl: bool) -> Object {
        Object::Data(Box::new(if for_kubectl { Shown::masked(object) } else { Shown::of(object) }))
    }

    /// A namespace: there is one for as long as something is in it.
    pub(super) fn namespace(name: &str, since: Option<Time>) -> Object {
        let label = ("kubernetes.io/metadata.name".to_owned(), name.to_owned());
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            labels: Some(BTreeMap::from([label])),
            creation_timestamp: since,
            ..ObjectMeta::default()
        };
        let value = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": metadata,
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        Object::Data(Box::new(Shown { metadata, value }))
    }

    pub(super) fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::Pod(pod) => &pod.metadata,
            Object::Node(node) => &node.metadata,
            Object::Event(event) => &event.metadata,
            Object::Data(shown) => &shown.metadata,
        }
    }

    pub(super) fn key(&self) -> Key {
        let metadata = self.metadata();
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        (text(&metadata.namespace), text(&metadata.name), text(&metadata.uid))
    }

    pub(super) fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    pub(super) fn in_namespace(&self, namespace: Option<&str>) -> bool {
        namespace.is_none_or(|wanted| self.metadata().namespace.as_deref() == Some(wanted))
    }

    /// As the group has it.
    pub(super) fn value(&self, group: Group) -> Value {
        // Plain data serialises.
        let value = serde_json::to_value(self).unwrap_or_default();
        if group == Group::Events { events_v1(value) } else { value }
    }

    /// Whether a watcher has to be told of the difference. That a node is still alive is none.
    pub(super) fn is_same(&self, other: &Object) -> bool {
        match (self, other) {
            (Object::Pod(old), Object::Pod(new)) if Arc::ptr_eq(old, new) => true,
            (Object::Node(old), Object::Node(new)) => at_rest(old) == at_rest(new),
            _ => self == other,
        }
    }
}

/// A node without what changes all the time.
fn at_rest(node: &Node) -> Node {
    let mut node = node.clone();
    node.metadata.resource_version = None;
    for condition in node.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten()) {
        condition.last_heartbeat_time = None;
    }
    node
}

/// An event of the core as `events.k8s.io/v1` has it.
fn events_v1(mut event: Value) -> Value {
    const RENAMED: [(&str, &str); 8] = [
        ("count", "deprecatedCount"),
        ("firstTimestamp", "deprecatedFirstTimestamp"),
        ("involvedObject", "regarding"),
        ("lastTimestamp", "deprecatedLastTimestamp"),
        ("message", "note"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
        ("source", "deprecatedSource"),
    ];
    let Some(fields) = event.as_object_mut() else { return event };
    for (old, new) in RENAMED {
        if let Some(value) = fields.remove(old) {
            fields.insert(new.to_owned(), value);
        }
    }
    fields.insert("apiVersion".to_owned(), Group::Events.api_version().into());
    fields.entry("eventTime").or_insert(Value::Null);
    event
}

impl Fields for Object {
    fn field(&self, name: &str) -> Option<&str> {
        let metadata = self.metadata();
        let field = match (name, self) {
            ("metadata.name", _) => &metadata.name,
            ("metadata.namespace", _) => &metadata.namespace,
            ("status.phase", Object::Data(shown)) => return shown.value["status"]["phase"].as_str(),
            ("type", Object::Data(shown)) => return shown.value["type"].as_str(),
            ("spec.unschedulable", Object::Node(node)) => {
                let is_cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
                return Some(if is_cordoned { "true" } else { "false" });
            }
            (_, Object::Node(_) | Object::Data(_)) => return None,
            (_, Object::Pod(pod)) => return pod_field(pod, name),
            (name, Object::Event(event)) => return event_field(event, name),
        };
        field.as_deref()
    }

    fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.metadata().labels.as_ref()
    }
}

fn pod_field<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    match name {
        "spec.nodeName" => spec?.node_name.as_deref(),
        "spec.restartPolicy" => spec?.restart_policy.as_deref(),
        "spec.schedulerName" => spec?.scheduler_name.as_deref(),
        "spec.serviceAccountName" => spec?.service_account_name.as_deref(),
        "spec.hostNetwork" => Some(if spec?.host_network == Some(true) { "true" } else { "false" }),
        "status.phase" => status?.phase.as_deref(),
        "status.podIP" => status?.pod_ip.as_deref(),
        "status.nominatedNodeName" => status?.nominated_node_name.as_deref(),
        _ => None,
    }
}

fn event_field<'a>(event: &'a Event, name: &str) -> Option<&'a str> {
    let object = &event.involved_object;
    let field = match name.split_once('.') {
        Some(("involvedObject" | "regarding", of)) => match of {
            "apiVersion" => &object.api_version,
            "fieldPath" => &object.field_path,
            "kind" => &object.kind,
            "name" => &object.name,
            "namespace" => &object.namespace,
            "resourceVersion" => &object.resource_version,
            "uid" => &object.uid,
            _ => return None,
        },
        _ => match name {
            "reason" => &event.reason,
            "reportingComponent" | "reportingController" => &event.reporting_component,
            "source" => return event.source.as_ref()?.component.as_deref(),
            "type" => &event.type_,
            _ => return None,
        },
    };
    field.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_of_either_group() {
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"name": "web"},
            "message": "m", "count": 2, "firstTimestamp": "2026-11-22T00:00:00Z", "reportingComponent": "kubelet",
            "source": {"component": "kubelet"}, "type": "Normal", "reason": "Started",
        });
        let object = Object::Event(Box::new(serde_json::from_value(event).unwrap()));
        assert_eq!(object.field("involvedObject.name"), Some("web"));
        assert_eq!(object.field("regarding.name"), Some("web"));
        assert_eq!(object.field("source"), Some("kubelet"));
        let new = object.value(Group::Events);
        assert_eq!(new["regarding"]["name"], "web");
        assert_eq!(
            (&new["note"], &new["deprecatedCount"], &new["reportingController"]),
            (&json!("m"), &json!(2), &json!("kubelet"))
        );
        assert!(new.get("involvedObject").is_none() && new["eventTime"].is_null());
        assert_eq!(object.value(Group::Core)["message"], "m");
    }

    #[test]
    fn that_a_node_is_alive_is_no_change() {
        let node = |at: &str, status: &str| {
            let value = json!({"metadata": {"name": "n", "resourceVersion": at}, "status": {"conditions": [
                {"type": "Ready", "status": status, "lastHeartbeatTime": format!("2026-11-22T00:00:{at}Z")}]}});
            Object::Node(Box::new(serde_json::from_value(value).unwrap()))
        };
        assert!(node("01", "True").is_same(&node("02", "True")));
        assert!(!node("01", "True").is_same(&node("01", "False")));
    }
}
