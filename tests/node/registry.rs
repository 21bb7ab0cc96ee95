//! Images out of a real registry.

use std::process::Command;

use super::harness::{image_archive, output, secs};
use super::registry_server::{Auth, PASSWORD, Registry, USER};

#[test]
fn the_registries_of_these_tests_serve_what_was_pushed() {
    let archive = image_archive("served:1");
    for auth in [Auth::Plain, Auth::Tls, Auth::Basic, Auth::Token] {
        let registry = Registry::start(auth);
        registry.push(&archive, "team/served:1");
        let mut inspect = Command::new("skopeo");
        inspect.args(["inspect", "--tls-verify=false"]);
        if matches!(auth, Auth::Basic | Auth::Token) {
            inspect.arg(format!("--creds={USER}:{PASSWORD}"));
        }
        inspect.arg(format!("docker://{}", registry.reference("team/served:1")));
        let said = output(&mut inspect, b"", secs(60)).ok();
        assert!(said.contains("sha256:"), "{auth:?}: {said}");
        assert_eq!(registry.tokens() > 0, auth == Auth::Token);
    }
}
