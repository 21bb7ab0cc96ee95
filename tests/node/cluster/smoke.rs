//! The control plane that the other tests stand on.

use super::Plane;
use crate::harness::{PATIENCE, eventually, output};
use serde_json::json;
use std::net::{SocketAddr, TcpStream};

#[test]
fn the_control_plane_runs_and_knows_a_node_by_its_certificate() {
    let plane = Plane::shared();
    let listed = plane.kubectl(&["get", "namespaces", "-o", "name"]).ok();
    assert!(listed.contains("namespace/kube-system"), "{listed}");

    // The signer of cluster-info, by which nodes find their cluster.
    let token = plane.token();
    let id = token.split('.').next().expect("an ID");
    plane.wait("ConfigMap", "kube-public", "cluster-info", "signed", |map| {
        map["data"][format!("jws-kubeconfig-{id}")].is_string()
    });
    let node = plane.node();
    let config = node.dir.join("root/kubeconfig");
    let config = config.to_str().expect("a path");
    // From the node's machine, with the node's certificate: its own Node, no other.
    let run = |args: &[&str], stdin: &str| {
        let mut command = super::plane::program("kubectl");
        command.args(["--kubeconfig", config, "--cache-dir"]).arg(node.dir.join("kubectl")).args(args);
        node.inside(|| output(&mut command, stdin.as_bytes(), PATIENCE))
    };
    let object = |name: &str| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }).to_string();
    run(&["create", "-f", "-"], &object(&node.name)).ok();
    let refused = run(&["create", "-f", "-"], &object("another")).fails(1);
    assert!(refused.contains("is not allowed to modify node"), "{refused}");
    assert!(!plane.get("Node", "", &node.name).is_null());
    let refusals = plane.refused(&node.name);
    assert!(refusals.len() == 1 && refusals[0].contains("another"), "{refusals:?}");

    // A cable that can be pulled.
    let server: SocketAddr = "192.168.0.1:6443".parse().expect("an address");
    let reaches = || node.inside(|| TcpStream::connect_timeout(&server, PATIENCE / 30).is_ok());
    eventually("the cable is in", PATIENCE, reaches);
    plane.unplug(&node);
    assert!(!reaches());
    plane.plug(&node);
    eventually("the cable is in again", PATIENCE, reaches);
    plane.lose(&node, 100);
    assert!(!reaches());
    plane.lose(&node, 0);
    eventually("packets arrive again", PATIENCE, reaches);
    plane.delete("Node", "", &node.name);
    node.finish();
}
