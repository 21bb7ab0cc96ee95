//! Edits of a bound pod: what the API lets change of a pod that exists, and what follows on the machine. The pod stays;
//! labels, annotations, tolerations and the deadline are taken over as they are, and of its containers only those start
//! anew whose image is another one (as kubelet).

use super::{Instance, Present, Role, Spec, is_from_api};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use std::collections::BTreeMap;

/// Whether two pods are the same object of the API server, however it was edited. Its UIDs are never used again, and what
/// makes a pod what it is cannot be changed there.
pub(super) fn is_one(have: &Spec, want: &Spec) -> bool {
    have.uid() == want.uid() && is_from_api(have.pod()) && is_from_api(want.pod())
}

/// Whether `want` is a bound pod that was edited, in more than the resources that it asks for.
pub(super) fn is_update(have: &Spec, want: &Spec) -> bool {
    is_one(have, want) && !same_but_resources(have.pod(), want.pod())
}

/// The edited pod, as far as that takes nothing but writing it down: with the resources of the present one, which only a
/// resize changes.
#[must_use]
pub fn adopted(have: &Pod, want: &Pod) -> Pod {
    let mut pod = want.clone();
    if let (Some(old), Some(new)) = (&have.spec, &mut pod.spec) {
        keep_resources(old, new);
    }
    for (key, value) in have.metadata.annotations.iter().flatten().filter(|(key, _)| is_of_node(key)) {
        pod.metadata.annotations.get_or_insert_default().insert(key.clone(), value.clone());
    }
    pod
}

/// Whether a run was made from another image than its container has by now. Of init containers this matters to sidecars
/// only, as those that do their work once have it behind them (as kubelet).
pub(super) fn has_other_image(have: &Present, run: &Instance) -> bool {
    is_from_api(have.spec.pod())
        && have.spec.role(&run.container).is_some_and(|role| role != Role::Init)
        && have.spec.container(&run.container).is_some_and(|c| *c.image.as_deref().unwrap_or_default() != *run.image)
}

/// Whether two pods from the API differ in nothing that anybody on the machine could see.
pub(super) fn same(a: &Pod, b: &Pod) -> bool {
    same_metadata(a, b) && a.spec == b.spec
}

/// Written by the node, not by the author.
fn is_of_node(key: &str) -> bool {
    key.starts_with("kubernetes.io/config.")
}

fn same_metadata(a: &Pod, b: &Pod) -> bool {
    fn own(pod: &Pod) -> impl Iterator<Item = (&String, &String)> {
        pod.metadata.annotations.iter().flatten().filter(|(key, _)| !is_of_node(key))
    }
    let labels = |pod: &Pod| -> Option<BTreeMap<String, String>> {
        pod.metadata.labels.clone().filter(|labels| !labels.is_empty())
    };
    a.metadata.generation == b.metadata.generation && labels(a) == labels(b) && own(a).eq(own(b))
}

fn same_but_resources(a: &Pod, b: &Pod) -> bool {
    same_metadata(a, b)
        && (a.spec == b.spec
            || match (&a.spec, &b.spec) {
                (Some(old), Some(new)) => {
                    let mut new = new.clone();
                    keep_resources(old, &mut new);
                    *old == new
                }
                _ => false,
            })
}

fn keep_resources(old: &PodSpec, new: &mut PodSpec) {
    new.resources.clone_from(&old.resources);
    keep(&old.containers, &mut new.containers);
    keep(old.init_containers.as_deref().unwrap_or_default(), new.init_containers.as_deref_mut().unwrap_or_default());
}

fn keep(old: &[Container], new: &mut [Container]) {
    for container in new {
        if let Some(old) = old.iter().find(|old| old.name == container.name) {
            container.resources.clone_from(&old.resources);
        }
    }
}

/// What is told of a bound pod for admission: what it asks for, the only part of it that the node has to make room for
/// again when it changes. FNV-1a 64 over its JSON.
pub(super) fn revision(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let containers = spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let all: Vec<Option<&ResourceRequirements>> =
        containers.map(|c| c.resources.as_ref()).chain([spec.and_then(|s| s.resources.as_ref())]).collect();
    super::spec::fnv(&serde_json::to_string(&all).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn bound(edit: impl FnOnce(&mut Value)) -> Spec {
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {"a": "1"}, "generation": 1,
                "annotations": {"kubernetes.io/config.source": "api"}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}],
                "tolerations": [], "nodeName": "n"},
        });
        edit(&mut pod);
        Spec::new(serde_json::from_value::<Pod>(pod).unwrap()).unwrap()
    }

    #[test]
    fn edits_are_updates_and_never_another_pod() {
        let old = bound(|_| ());
        let edits: [fn(&mut Value); 6] = [
            |pod| pod["metadata"]["labels"]["a"] = json!("2"),
            |pod| pod["metadata"]["annotations"]["x/y"] = json!("2"),
            |pod| pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]),
            |pod| pod["spec"]["activeDeadlineSeconds"] = json!(5),
            |pod| pod["spec"]["containers"][0]["image"] = json!("j"),
            |pod| pod["metadata"]["generation"] = json!(2),
        ];
        for edit in edits {
            let new = bound(edit);
            assert!(is_one(&old, &new) && is_update(&old, &new) && !old.is(&new), "{:?}", new.pod());
            assert_eq!(old.revision(), new.revision(), "the node need not take it again");
            let adopted = Spec::new(adopted(old.pod(), new.pod())).unwrap();
            assert!(!is_update(&adopted, &new) && adopted.is(&new));
        }
    }

    #[test]
    fn what_the_node_and_the_server_write_is_no_edit() {
        let old = bound(|pod| pod["metadata"]["annotations"]["kubernetes.io/config.seen"] = json!("now"));
        for edit in [
            (|pod| pod["metadata"]["resourceVersion"] = json!("7")) as fn(&mut Value),
            |pod| pod["metadata"]["managedFields"] = json!([{"manager": "m"}]),
            |pod| pod["status"] = json!({"phase": "Running"}),
        ] {
            let new = bound(edit);
            assert!(!is_update(&old, &new) && old.is(&new));
        }
        let adopted = adopted(old.pod(), bound(|pod| pod["metadata"]["labels"]["a"] = json!("2")).pod());
        assert_eq!(adopted.metadata.annotations.unwrap()["kubernetes.io/config.seen"], "now");
    }

    #[test]
    fn resources_are_left_to_a_resize() {
        let old = bound(|_| ());
        let new = bound(|pod| {
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("2");
            pod["metadata"]["labels"]["a"] = json!("2");
        });
        assert_ne!(old.revision(), new.revision());
        let adopted = Spec::new(adopted(old.pod(), new.pod())).unwrap();
        assert_eq!(adopted.revision(), old.revision());
        assert_eq!(adopted.pod().metadata.labels, new.pod().metadata.labels);
        assert!(!is_update(&adopted, &new) && super::super::is_resize(&adopted, &new));
    }

    #[test]
    fn a_static_pod_is_never_updated() {
        let of = |label: &str| {
            let mut pod = bound(|pod| pod["metadata"]["labels"]["a"] = json!(label)).pod().clone();
            pod.metadata.annotations = Some([("kubernetes.io/config.source".to_owned(), "file".to_owned())].into());
            Spec::new(pod).unwrap()
        };
        let (old, new) = (of("1"), of("2"));
        assert!(!is_one(&old, &new) && !is_update(&old, &new) && !old.is(&new));
        assert_ne!(old.revision(), new.revision());
    }
}
