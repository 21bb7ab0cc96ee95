//! What of the Node's status is to be sent: the difference between what this node says and what the API server has. Others'
//! conditions, resources and fields are not touched.

use crate::manifest::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Conditions of ours that are not always there.
const PASSING: [&str; 1] = ["ManifestSourceHealthy"];

type Amounts = Option<BTreeMap<String, Text>>;

/// A status to be sent, and what follows from it.
#[derive(Debug, PartialEq)]
pub struct Report {
    /// A strategic merge patch of `nodes/status`.
    pub patch: Value,
    /// Whether it says anything but that the node is alive.
    pub changed: bool,
    /// Reasons of events: conditions that are not what the API server had, as kubelet names their changes.
    pub turns: Vec<&'static str>,
}

/// The status as the node itself has it, with the times that the API server's conditions give it: a condition has been what
/// it is since the API server was told so.
pub fn timed(mut own: NodeStatus, known: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
    for condition in own.conditions.iter_mut().flatten() {
        let before = known.and_then(|known| find(known, &condition.type_)).filter(|old| old.status == condition.status);
        let since = before.and_then(|old| old.last_transition_time.clone());
        condition.last_transition_time = since.or(Some(Time(now)));
        condition.last_heartbeat_time = Some(Time(now));
    }
    own
}

/// What to send of the node's own status, where the API server has `known`.
pub fn report(own: NodeStatus, known: Option<&NodeStatus>, now: Timestamp) -> Report {
    let own = timed(own, known, now);
    let none = NodeStatus::default();
    let known = known.unwrap_or(&none);
    let mut status = Map::new();
    let turns = turns(&own, known);
    let (conditions, mut changed) = conditions(&own, known);
    if own.addresses.as_deref().unwrap_or_default() != known.addresses.as_deref().unwrap_or_default() {
        // The list is merged by type, of which there may be two.
        let addresses = own.addresses.iter().flatten().map(|address| json!(address));
        status.insert("addresses".into(), addresses.chain([json!({ "$patch": "replace" })]).collect());
    }
    let capacity = amounts(&own.capacity, &known.capacity);
    let allocatable =
        amounts(&with_others(own.allocatable.clone(), &own.capacity, &known.capacity), &known.allocatable);
    for (field, change) in [("capacity", capacity), ("allocatable", allocatable)] {
        if !change.is_empty() {
            status.insert(field.into(), Value::Object(change));
        }
    }
    let mut differs = |field: &str, own: &dyn Same, known: &dyn Same| {
        let (own, known) = (own.json(), known.json());
        if own != known && !own.is_null() {
            status.insert(field.into(), own);
        }
    };
    differs("nodeInfo", &own.node_info, &known.node_info);
    differs("images", &own.images, &known.images);
    differs("runtimeHandlers", &own.runtime_handlers, &known.runtime_handlers);
    differs("features", &own.features, &known.features);
    differs("declaredFeatures", &own.declared_features, &known.declared_features);
    differs("daemonEndpoints", &own.daemon_endpoints, &known.daemon_endpoints);
    changed |= !status.is_empty();
    status.insert("conditions".into(), conditions.into());
    Report { patch: json!({ "status": status }), changed, turns }
}

/// A field that can be compared as it is sent.
trait Same {
    fn json(&self) -> Value;
}

impl<T: Serialize> Same for Option<T> {
    fn json(&self) -> Value {
        // An empty list is none: the API server leaves it out.
        match serde_json::to_value(self) {
            Ok(Value::Array(list)) if list.is_empty() => Value::Null,
            Ok(value) => value,
            Err(_) => Value::Null,
        }
    }
}

fn find<'a>(status: &'a NodeStatus, type_: &str) -> Option<&'a NodeCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// All of our conditions, as every report has them, and whether they say anything new.
fn conditions(own: &NodeStatus, known: &NodeStatus) -> (Vec<Value>, bool) {
    let says = |c: &NodeCondition| (c.status.clone(), c.reason.clone(), c.message.clone());
    let mut changed = false;
    let mut list = Vec::new();
    for condition in own.conditions.iter().flatten() {
        changed |= find(known, &condition.type_).map(says) != Some(says(condition));
        list.push(json!(condition));
    }
    for type_ in PASSING.into_iter().filter(|t| find(known, t).is_some() && find(own, t).is_none()) {
        changed = true;
        list.push(json!({ "type": type_, "$patch": "delete" }));
    }
    (list, changed)
}

/// As kubelet: of these conditions, changes are events.
fn turns(own: &NodeStatus, known: &NodeStatus) -> Vec<&'static str> {
    let new =
        |condition: &&NodeCondition| find(known, &condition.type_).is_none_or(|old| old.status != condition.status);
    let reason = |condition: &NodeCondition| {
        let reason = match (condition.type_.as_str(), condition.status == "True") {
            ("MemoryPressure", true) => "NodeHasInsufficientMemory",
            ("MemoryPressure", false) => "NodeHasSufficientMemory",
            ("DiskPressure", true) => "NodeHasDiskPressure",
            ("DiskPressure", false) => "NodeHasNoDiskPressure",
            ("PIDPressure", true) => "NodeHasInsufficientPID",
            ("PIDPressure", false) => "NodeHasSufficientPID",
            ("Ready", true) => "NodeReady",
            ("Ready", false) => "NodeNotReady",
            _ => return None,
        };
        Some(reason)
    };
    own.conditions.iter().flatten().filter(new).filter_map(reason).collect()
}

/// What differs in amount, and huge pages of sizes that the node has no more.
fn amounts(own: &Amounts, known: &Amounts) -> Map<String, Value> {
    let parsed = |text: &Text| Quantity::parse(&text.0).ok();
    let of = |list: &Amounts, key: &str| list.as_ref().and_then(|list| list.get(key)).and_then(parsed);
    let mut change = Map::new();
    for (key, amount) in own.iter().flatten() {
        // The API server writes the same amount in another way.
        if of(known, key) != parsed(amount) {
            change.insert(key.clone(), json!(amount));
        }
    }
    let gone = known.iter().flatten().map(|(key, _)| key).filter(|key| key.starts_with("hugepages-"));
    for key in gone.filter(|key| own.as_ref().is_none_or(|own| !own.contains_key(*key))) {
        change.insert(key.clone(), Value::Null);
    }
    change
}

/// As kubelet: of resources that somebody else gave the Node, pods may have all.
fn with_others(allocatable: Amounts, own: &Amounts, known: &Amounts) -> Amounts {
    let mut allocatable = allocatable.unwrap_or_default();
    for (key, amount) in known.iter().flatten() {
        let domain = key.split_once('/').map(|(domain, _)| domain);
        let is_extended = domain.is_some_and(|domain| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"));
        if is_extended && own.as_ref().is_none_or(|own| !own.contains_key(key)) {
            allocatable.insert(key.clone(), amount.clone());
        }
    }
    Some(allocatable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn status(json: Value) -> NodeStatus {
        serde_json::from_value(json).unwrap()
    }

    fn own() -> NodeStatus {
        status(json!({
            "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }, { "type": "Hostname", "address": "n" }],
            "capacity": { "cpu": "4", "memory": "16777216Ki", "pods": "110" },
            "allocatable": { "cpu": "3500m", "memory": "1024Mi", "pods": "110" },
            "conditions": [
                { "type": "MemoryPressure", "status": "False", "reason": "KubeletHasSufficientMemory", "message": "m" },
                { "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "r" },
            ],
            "images": [{ "names": ["a:1"], "sizeBytes": 5 }],
            "nodeInfo": { "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "", "kernelVersion": "6",
                "kubeProxyVersion": "", "kubeletVersion": "v1.36.0", "machineID": "", "operatingSystem": "linux",
                "osImage": "", "systemUUID": "" },
            "declaredFeatures": [],
        }))
    }

    /// What the API server has after a full report, in its own words.
    fn known() -> NodeStatus {
        let mut known = timed(own(), None, at(100));
        known.capacity.as_mut().unwrap().insert("memory".into(), Text("16Gi".into()));
        known.allocatable.as_mut().unwrap().insert("memory".into(), Text("1Gi".into()));
        known.declared_features = None;
        known
    }

    #[test]
    fn a_first_report_has_it_all() {
        let report = report(own(), None, at(100));
        assert!(report.changed);
        assert_eq!(report.turns, ["NodeHasSufficientMemory", "NodeReady"]);
        let fields: Vec<&String> = report.patch["status"].as_object().unwrap().keys().collect();
        assert_eq!(fields, ["addresses", "allocatable", "capacity", "conditions", "images", "nodeInfo"]);
        assert_eq!(report.patch["status"]["addresses"][2], json!({ "$patch": "replace" }));
    }

    #[test]
    fn what_is_known_is_not_said_again() {
        let report = report(own(), Some(&known()), at(400));
        assert_eq!((report.changed, report.turns), (false, vec![]));
        let conditions = report.patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(report.patch["status"].as_object().unwrap().len(), 1, "{}", report.patch);
        assert_eq!(conditions[1]["lastHeartbeatTime"], "1970-01-01T00:06:40Z");
        assert_eq!(conditions[1]["lastTransitionTime"], "1970-01-01T00:01:40Z", "it has been so since then");
    }

    #[test]
    fn a_condition_that_the_control_plane_took_for_unknown_is_told_again() {
        let mut unknown = known();
        unknown.conditions.as_mut().unwrap()[1].status = "Unknown".into();
        let report = report(own(), Some(&unknown), at(400));
        assert_eq!((report.changed, report.turns), (true, vec!["NodeReady"]));
        assert_eq!(report.patch["status"]["conditions"][1]["lastTransitionTime"], "1970-01-01T00:06:40Z");
    }

    #[test]
    fn what_others_say_of_the_node_stays() {
        let mut known = known();
        let theirs = json!({ "type": "example.com/Healthy", "status": "True" });
        known.conditions.as_mut().unwrap().push(serde_json::from_value(theirs).unwrap());
        known.capacity.as_mut().unwrap().insert("example.com/dongle".into(), Text("4".into()));
        let report = report(own(), Some(&known), at(400));
        assert!(!report.patch.to_string().contains("Healthy"), "{}", report.patch);
        assert_eq!(report.patch["status"]["capacity"], Value::Null);
        // As kubelet: what the Node has been given may be used.
        assert_eq!(report.patch["status"]["allocatable"], json!({ "example.com/dongle": "4" }));
    }

    #[test]
    fn what_is_over_is_taken_back() {
        let mut known = known();
        known.capacity.as_mut().unwrap().insert("hugepages-2Mi".into(), Text("4Mi".into()));
        let theirs = json!({ "type": "ManifestSourceHealthy", "status": "False" });
        known.conditions.as_mut().unwrap().push(serde_json::from_value(theirs).unwrap());
        let report = report(own(), Some(&known), at(400));
        assert!(report.changed);
        assert_eq!(report.patch["status"]["capacity"], json!({ "hugepages-2Mi": null }));
        let conditions = report.patch["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions[2], json!({ "type": "ManifestSourceHealthy", "$patch": "delete" }));
    }

    proptest! {
        #[test]
        fn the_same_again_says_nothing_and_a_change_says_itself(
            addresses in proptest::collection::vec("10\\.0\\.0\\.[1-9]", 0..3),
            cpu in 1_u32..5000,
            ready in any::<bool>(),
        ) {
            let mut own = own();
            let address = |a: &String| json!({ "type": "InternalIP", "address": a });
            own.addresses = serde_json::from_value(addresses.iter().map(address).collect()).unwrap();
            own.capacity.as_mut().unwrap().insert("cpu".into(), Text(format!("{cpu}m")));
            own.conditions.as_mut().unwrap()[1].status = if ready { "True" } else { "False" }.into();
            let told = timed(own.clone(), Some(&known()), at(200));
            prop_assert!(!report(own.clone(), Some(&told), at(300)).changed);
            let change = report(own.clone(), Some(&known()), at(300));
            prop_assert_eq!(change.changed, true, "three addresses at most are not the two known ones");
            prop_assert_eq!(change.turns, if ready { vec![] } else { vec!["NodeNotReady"] });
        }
    }
}
