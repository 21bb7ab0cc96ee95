//! The cluster's services that have an address.

use super::desk::Update;
use crate::causes::chain;
use crate::pod::supply::{Service, ServicePort};
use futures_util::StreamExt;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Between two times that changes are told: only containers that start later see them.
const PAUSE: Duration = Duration::from_millis(500);

/// Tells of them and their changes, until it is dropped.
pub async fn follow(client: Client, updates: mpsc::Sender<Update>) {
    let resource = ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        plural: "services".to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    // As kubelet.
    let config = watcher::Config::default().fields("spec.clusterIP!=None").streaming_lists();
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let (mut all, mut listed) = (BTreeMap::new(), BTreeMap::new());
    let (mut due, mut told): (Option<Instant>, Option<Instant>) = (None, None);
    let soon = |told: Option<Instant>| told.map_or_else(Instant::now, |told| told + PAUSE);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                (due, told) = (None, Some(Instant::now()));
                let services: Vec<Service> = BTreeMap::values(&all).cloned().collect();
                if updates.send(Update::Services(services)).await.is_err() {
                    return;
                }
                continue;
            }
        };
        match event {
            None => return,
            Some(Ok(watcher::Event::Init)) => listed.clear(),
            Some(Ok(watcher::Event::InitApply(object))) => put(&mut listed, &object),
            Some(Ok(watcher::Event::InitDone)) => {
                all = std::mem::take(&mut listed);
                due = Some(Instant::now());
            }
            Some(Ok(watcher::Event::Apply(object))) => {
                put(&mut all, &object);
                due.get_or_insert_with(|| soon(told));
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                all.remove(&name(&object));
                due.get_or_insert_with(|| soon(told));
            }
            Some(Err(error)) => tracing::debug!(error = chain(&error), "the watch on services broke off"),
        }
    }
}

type Name = (String, String);

fn name(object: &DynamicObject) -> Name {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    (text(&object.metadata.namespace), text(&object.metadata.name))
}

/// A service that lost its address is none.
fn put(all: &mut BTreeMap<Name, Service>, object: &DynamicObject) {
    let name = name(object);
    match read(object) {
        Some(service) => drop(all.insert(name, service)),
        None => drop(all.remove(&name)),
    }
}

fn read(object: &DynamicObject) -> Option<Service> {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let spec = object.data.get("spec")?;
    let cluster_ip = text(spec, "clusterIP");
    let ports = spec.get("ports").and_then(Value::as_array).into_iter().flatten();
    let port = |port: &Value| {
        let number = port.get("port").and_then(Value::as_i64).and_then(|number| i32::try_from(number).ok())?;
        Some(ServicePort { name: text(port, "name"), port: number, protocol: text(port, "protocol") })
    };
    let (namespace, name) = name(object);
    // What a variable can hold.
    let sound = |text: &str| !text.contains('\0') && !text.contains('=');
    let service = Service { namespace, name, ports: ports.filter_map(port).collect(), cluster_ip };
    let ports_sound = service.ports.iter().all(|port| sound(&port.name) && sound(&port.protocol));
    let has_address = !matches!(service.cluster_ip.as_str(), "" | "None");
    (has_address && sound(&service.cluster_ip) && sound(&service.name) && ports_sound).then_some(service)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn object(spec: Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn what_of_a_service_becomes_variables() {
        let ports = json!([{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30000}, {"port": 53}]);
        let service =
            read(&object(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": ports}))).unwrap();
        let port =
            |name: &str, port, protocol: &str| ServicePort { name: name.into(), port, protocol: protocol.into() };
        assert_eq!(service.ports, [port("http", 80, "TCP"), port("", 53, "")]);
        assert_eq!(
            (service.namespace.as_str(), service.name.as_str(), service.cluster_ip.as_str()),
            ("n", "web", "10.0.0.1")
        );
        let mut all = BTreeMap::new();
        put(&mut all, &object(json!({"clusterIP": "10.0.0.1"})));
        assert_eq!(all.len(), 1);
        for spec in
            [json!({"type": "ExternalName"}), json!({"clusterIP": "None"}), json!(null), json!({"clusterIP": "a\u{0}"})]
        {
            put(&mut all, &object(json!({"clusterIP": "10.0.0.1"})));
            put(&mut all, &object(spec));
            assert!(all.is_empty());
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,10}", number in any::<i64>()) {
            for ports in [json!(text), json!([text]), json!([{"port": number, "name": text}]), json!([{"port": text}])] {
                let _ = read(&object(json!({"clusterIP": text, "ports": ports})));
            }
        }
    }
}
