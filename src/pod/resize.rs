//! Edits that need no new pod: cpu and memory of containers and of the pod (as kubelet's in-place resize; of static pods, for those with a
//! pinned uid).

use super::{Spec, resources, update};
use crate::manifest::{Quantity, REVISION};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use std::collections::BTreeMap;

const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Whether `want` is an edit of `have` that changes cpu and memory of containers, or of the pod as a whole, and nothing
/// else, and keeps the pod's QoS class (its place in the cgroup tree). What else changed of a bound pod is taken over
/// before, as an update.
#[must_use]
pub fn is_resize(have: &Spec, want: &Spec) -> bool {
    have.uid() == want.uid()
        && have.revision() != want.revision()
        && have.key() == want.key()
        && resources::qos(have.pod()).ok() == resources::qos(want.pod()).ok()
        && (update::is_one(have, want) || blank(have.pod()) == blank(want.pod()))
}

/// The containers whose `resizePolicy` asks for a restart by what `want` changes.
pub(super) fn restarts<'a>(have: &'a Spec, want: &'a Spec) -> impl Iterator<Item = &'a Container> {
    want.all_containers().filter(|new| {
        let Some(old) = have.container(&new.name) else { return false };
        let needs = |resource: &str| {
            let mut policies = new.resize_policy.iter().flatten();
            policies.any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
        };
        RESIZABLE.into_iter().any(|resource| needs(resource) && !same(old, new, resource))
    })
}

/// Whether two containers have the same limit and request of a resource.
fn same(old: &Container, new: &Container, resource: &str) -> bool {
    fn get<'a>(map: Option<&'a BTreeMap<String, Text>>, resource: &str) -> Option<&'a str> {
        map.and_then(|map| map.get(resource)).map(|q| q.0.as_str())
    }
    let equal = |a: Option<&str>, b: Option<&str>| match (a, b) {
        (Some(a), Some(b)) => a == b || matches!((Quantity::parse(a), Quantity::parse(b)), (Ok(a), Ok(b)) if a == b),
        (None, None) => true,
        _ => false,
    };
    let (old, new) = (old.resources.as_ref(), new.resources.as_ref());
    let limits =
        |r: Option<&'_ ResourceRequirements>| get(r.and_then(|r| r.limits.as_ref()), resource).map(str::to_owned);
    let requests =
        |r: Option<&'_ ResourceRequirements>| get(r.and_then(|r| r.requests.as_ref()), resource).map(str::to_owned);
    equal(limits(old).as_deref(), limits(new).as_deref()) && equal(requests(old).as_deref(), requests(new).as_deref())
}

/// The pod without what a resize may change and what the node itself writes.
fn blank(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.status = None;
    pod.metadata.creation_timestamp = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|key, _| key != REVISION && !key.starts_with("kubernetes.io/config."));
    }
    pod.metadata.annotations = pod.metadata.annotations.take().filter(|a| !a.is_empty());
    if let Some(spec) = &mut pod.spec {
        let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        let all = containers.map(|container| &mut container.resources).chain([&mut spec.resources]);
        all.for_each(forget_amounts);
    }
    pod
}

fn forget_amounts(all: &mut Option<ResourceRequirements>) {
    let Some(resources) = all else { return };
    for list in [&mut resources.limits, &mut resources.requests] {
        if let Some(map) = list {
            map.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
        }
        *list = list.take().filter(|map| !map.is_empty());
    }
    *all = all.take().filter(|resources| *resources != ResourceRequirements::default());
}
