//! Any bytes in a manifest file give pods, objects or problems, never a panic, and the same ones each time.
#![no_main]

use coracle::manifest::{Origin, load, unresolved};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let first = load(bytes, Origin::File("/m.yaml"), "node");
    for pod in &first.pods {
        assert!(pod.metadata.uid.as_deref().is_some_and(|uid| !uid.is_empty()), "a pod without identity");
        assert!(pod.metadata.name.as_deref().is_some_and(|name| name.ends_with("-node")), "a pod without the suffix");
        assert!(pod.spec.as_ref().is_some_and(|spec| !spec.containers.is_empty()), "a pod without containers");
    }
    let objects = first.objects.iter().cloned().collect();
    for pod in first.pods.iter().chain(&first.refused) {
        let _ = unresolved(pod, &objects);
    }
    for object in &first.objects {
        let id = object.id();
        assert!(!id.name.is_empty() && !id.namespace.is_empty(), "an object without identity");
        assert!(object.data().keys().all(|key| !key.contains('/') && !key.starts_with("..")), "a key that is no file");
    }
    let again = load(bytes, Origin::File("/m.yaml"), "node");
    assert_eq!(first.pods, again.pods);
    assert_eq!(first.objects, again.objects);
    assert_eq!(first.problems.len(), again.problems.len());
});
