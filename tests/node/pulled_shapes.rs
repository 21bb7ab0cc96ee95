//! Images of every shape out of registries of every kind: pulled by pods, run, and compared, as the running container has
//! them, with what `umoci` unpacks.

use super::harness::{Node, resting};
use super::registry_server::{Auth, PASSWORD, Registry, USER};
use super::shapes::{self, GZIP, Item, Members, PLAIN, ZSTD, dir, file, layer};
use coracle::image::architecture;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// What the runtime mounts over: not compared.
const MOUNTED: [&str; 6] = ["./dev", "./proc", "./sys", "./etc/hosts", "./etc/hostname", "./etc/resolv.conf"];

/// A node that knows the authority and the password of these registries.
fn node_for(registries: &[Registry]) -> Node {
    let mut node = Node::new();
    let mut auths = serde_json::Map::new();
    for registry in registries {
        auths.insert(registry.address(), json!({ "username": USER, "password": PASSWORD }));
        if registry.ca().exists() {
            let folder = node.dir.join("certs.d").join(registry.address());
            fs::create_dir_all(&folder).expect("certs.d");
            fs::copy(registry.ca(), folder.join("ca.crt")).expect("authority");
        }
    }
    fs::write(node.dir.join("auth.json"), json!({ "auths": auths }).to_string()).expect("credentials");
    let images = json!({ "certsDirs": [node.dir.join("certs.d")], "authFiles": [node.dir.join("auth.json")] });
    configure(&mut node, images);
    node
}

/// Gives the node a `CoracleConfiguration` with this section `images`.
pub fn configure(node: &mut Node, mut images: Value) {
    // Nothing of the machine's.
    for (field, file) in [("registriesConf", "registries.conf"), ("policy", "policy.json")] {
        if images[field].is_null() {
            images[field] = json!(node.dir.join(file));
        }
    }
    if images["certsDirs"].is_null() {
        images["certsDirs"] = json!([node.dir.join("certs.d")]);
    }
    let config = json!({ "apiVersion": "coracle.dev/v1alpha1", "kind": "CoracleConfiguration", "images": images });
    let path = node.dir.join("coracle.yaml");
    fs::write(&path, config.to_string()).expect("configuration");
    node.args.extend(["--config".to_owned(), path.display().to_string()]);
}

/// On top of every image: something to run, and what is mounted over.
fn top() -> Vec<u8> {
    let program = fs::read(super::harness::busybox().expect("busybox")).expect("busybox");
    let items: Vec<Item> = vec![
        dir("./").mode(0o751),
        file("busybox", program).mode(0o755),
        dir("dev/"),
        dir("proc/"),
        dir("sys/"),
        dir("etc/"),
        file("etc/hosts", ""),
        file("etc/hostname", ""),
        file("etc/resolv.conf", ""),
    ];
    layer(items)
}

/// A layout folder or an archive to push from, in another form for each number.
fn push(node: &Node, registry: &Registry, number: usize, name: &str, layers: &[Vec<u8>]) -> &'static str {
    let path = node.dir.join(format!("share/push-{number}"));
    let reference = format!("shapes/{name}:1");
    let layout = |members: Members, options: &[&str]| {
        shapes::write_members(&path, &members);
        registry.push_with(&format!("oci:{}:it", path.display()), &reference, options);
    };
    match number % 5 {
        0 => {
            fs::write(&path, shapes::docker_archive(&reference, layers)).expect("archive");
            registry.push_with(&format!("docker-archive:{}", path.display()), &reference, &["--format", "v2s2"]);
            "docker, gzip"
        }
        1 => {
            layout(shapes::oci_layout("it", layers, &[GZIP]), &["--format", "oci"]);
            "oci, gzip"
        }
        2 => {
            layout(shapes::oci_layout("it", layers, &[ZSTD]), &["--format", "oci"]);
            "oci, zstd"
        }
        3 => {
            layout(shapes::oci_layout("it", layers, &[PLAIN, ZSTD, GZIP]), &["--format", "oci"]);
            "oci, of every packing"
        }
        _ => {
            let foreign = [layer([file("foreign", "x")])];
            layout(index("it", &[("s390x", &foreign), (architecture(), layers), ("riscv64", &foreign)]), &["--all"]);
            "one of several machines"
        }
    }
}

/// An image for several machines.
fn index(name: &str, images: &[(&str, &[Vec<u8>])]) -> Members {
    let mut members = Members::new();
    let manifests: Vec<Value> =
        images.iter().map(|(machine, layers)| shapes::manifest(&mut members, layers, &[GZIP, ZSTD], machine)).collect();
    let media = "application/vnd.oci.image.index.v1+json";
    let content = json!({ "schemaVersion": 2, "mediaType": media, "manifests": manifests }).to_string();
    let top = shapes::blob(&mut members, content.into_bytes(), media);
    shapes::layout_of(members, top, name)
}

fn pod(name: &str, image: &str) -> Value {
    let mut pod = resting(name);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    pod["spec"]["containers"][0]["image"] = json!(image);
    pod["spec"]["containers"][0]["command"] = json!(["/busybox", "sleep", "3600"]);
    pod
}

/// The media types of a registry's layers, for the proof that they were what they are said to be.
fn packings(registry: &Registry) -> String {
    let mut found = String::new();
    let mut folders: Vec<PathBuf> = vec![registry.data()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("data of the registry").flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => folders.push(entry.path()),
                false => {
                    let content = fs::read(entry.path()).unwrap_or_default();
                    if content.starts_with(b"{") {
                        found += &String::from_utf8_lossy(&content);
                    }
                }
            }
        }
    }
    found
}

#[test]
fn images_of_every_shape_pull_and_run_as_umoci_unpacks_them() {
    let registries = [Auth::Tls, Auth::Basic, Auth::Token, Auth::Plain].map(Registry::start);
    let mut node = node_for(&registries);
    node.start();
    let top = top();
    let mut pushed = Vec::new();
    for (number, mut shape) in shapes::shapes().into_iter().enumerate() {
        shape.layers.push(top.clone());
        if let Some(layers) = &mut shape.for_umoci {
            layers.push(top.clone());
        }
        let registry = &registries[number % registries.len()];
        let form = push(&node, registry, number, shape.name, &shape.layers);
        let image = registry.reference(&format!("shapes/{}:1", shape.name));
        node.apply(&format!("{}.yaml", shape.name), pod(shape.name, &image));
        pushed.push((shape, form));
    }
    let media: String = registries.iter().map(packings).collect();
    for part in ["docker.image.rootfs.diff.tar.gzip", "layer.v1.tar+gzip", "layer.v1.tar+zstd", "image.index.v1+json"] {
        assert!(media.contains(part), "no {part} was pushed");
    }
    for (shape, form) in &pushed {
        let seen = node.wait_up(shape.name);
        let root = format!("/proc/{}/root/", node.init_pid(&seen.id("main")));
        let mut ours = shapes::tree(Path::new(&root));
        let mut right = shapes::unpacked(&node, shape.name, shape.for_umoci.as_ref().unwrap_or(&shape.layers));
        (shape.right)(&mut right);
        for path in MOUNTED {
            ours.remove(path);
            right.remove(path);
        }
        // Mount points are made in it.
        for tree in [&mut ours, &mut right] {
            tree.get_mut(".").expect("a root").modified = (0, 0);
        }
        assert!(ours.len() > 3 && right.len() > 3, "{}", shape.name);
        shapes::same(&format!("{} ({form})", shape.name), &ours, &right);
    }
    assert!(registries[2].tokens() > 0);

    // For other machines only.
    let foreign = [layer([file("foreign", "x")])];
    let path = node.dir.join("share/foreign");
    shapes::write_members(&path, &index("it", &[("s390x", &foreign), ("riscv64", &foreign)]));
    registries[0].push_with(&format!("oci:{}:it", path.display()), "shapes/foreign:1", &["--all"]);
    node.apply("foreign.yaml", pod("foreign", &registries[0].reference("shapes/foreign:1")));
    let why = format!("no image for linux/{}, only for linux/riscv64, linux/s390x", architecture());
    node.wait_event("the refusal", |reason, text| reason == "Failed" && text.contains(&why));
    node.wait_pod("foreign", "tells why it waits", |p| p.waiting_message("main").contains(&why));
    assert!(!node.cli(&["image", "ls"]).ok().contains("shapes/foreign"));
    node.finish();
}
