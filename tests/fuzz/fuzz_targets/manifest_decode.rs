//! Any bytes in a manifest file give pods or problems, never a panic, and the same ones each time.
#![no_main]

use coracle::manifest::{Origin, load};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let first = load(bytes, Origin::File("/m.yaml"), "node");
    for pod in &first.pods {
        assert!(pod.metadata.uid.as_deref().is_some_and(|uid| !uid.is_empty()), "a pod without identity");
        assert!(pod.metadata.name.as_deref().is_some_and(|name| name.ends_with("-node")), "a pod without the suffix");
        assert!(pod.spec.as_ref().is_some_and(|spec| !spec.containers.is_empty()), "a pod without containers");
    }
    let again = load(bytes, Origin::File("/m.yaml"), "node");
    assert_eq!(first.pods, again.pods);
    assert_eq!(first.problems.len(), again.problems.len());
});
