//! `cp`: files into containers and out of them.

use crate::harness::{Node, REST, pod, resting};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn write(path: &Path, content: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
    fs::write(path, content).expect("file");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
}

#[test]
fn files_and_folders_go_into_containers_and_out_again_without_tar() {
    let node = Node::up();
    node.run(&resting("web"));
    node.sh("web", "rm -f /bin/tar");
    let dir = node.dir.join("files");
    let path = |name: &str| dir.join(name).to_str().expect("path").to_owned();
    let big: Vec<u8> = (0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    write(&dir.join("tree/big"), &big, 0o640);
    write(&dir.join("tree/sub/run.sh"), b"echo ran\n", 0o755);
    symlink("sub/run.sh", dir.join("tree/alias")).expect("link");
    let pod_path = |name: &str| format!("web:{name}");
    // A new name, then into a folder that is there, then one file over another.
    node.cli(&["cp", &path("tree"), &pod_path("/tmp/copy")]).ok();
    assert_eq!(
        node.sh("web", "sh /tmp/copy/alias; stat -c %a /tmp/copy/big; wc -c < /tmp/copy/big"),
        "ran\n640\n5000000"
    );
    node.cli(&["cp", &path("tree"), &pod_path("/tmp")]).ok();
    assert_eq!(node.sh("web", "ls /tmp/tree/sub"), "run.sh");
    node.cli(&["cp", &path("tree/sub/run.sh"), &pod_path("/tmp/copy/big")]).ok();
    assert_eq!(node.sh("web", "cat /tmp/copy/big"), "echo ran");
    // A file that is mounted is written over.
    node.cli(&["cp", &path("tree/sub/run.sh"), &pod_path("/etc/hosts")]).ok();
    assert_eq!(node.sh("web", "cat /etc/hosts"), "echo ran");
    // Out again, from a path that is relative to the working directory.
    let said = node.cli(&["cp", "web:tmp/tree", &path("back")]);
    assert!(said.stderr.contains("alias is a link"), "{said:?}");
    said.ok();
    assert!(fs::read(dir.join("back/big")).expect("big") == big);
    assert_eq!(fs::metadata(dir.join("back/sub/run.sh")).expect("run.sh").mode() & 0o7777, 0o755);
    // What a container makes up leads nowhere, and gives nobody rights.
    node.sh("web", "mkdir -p /tmp/evil/d; ln -s /etc /tmp/evil/d/etc; cp /bin/busybox /tmp/evil/su; chmod 4755 /tmp/evil/su; mkfifo /tmp/evil/fifo");
    let said = node.cli(&["cp", "web:/tmp/evil", &path("evil")]);
    assert!(said.stderr.contains("fifo") && said.stderr.contains("link"), "{said:?}");
    said.ok();
    assert_eq!(fs::metadata(dir.join("evil/su")).expect("su").mode() & 0o7777, 0o755);
    assert!(!dir.join("evil/d/etc").exists());
    // What cannot be is said.
    assert!(node.cli(&["cp", "web:/no/such", &path("none")]).fails(1).contains("/no/such"));
    assert!(node.cli(&["cp", &path("absent"), "web:/tmp"]).fails(1).contains("absent"));
    assert!(node.cli(&["cp", &path("tree"), "web:/no/such/place"]).fails(1).contains("/no/such/place"));
    assert!(node.cli(&["cp", &path("tree"), "absent:/tmp"]).fails(1).contains("absent"));
    node.cli(&["cp", "a", "b"]).fails(2);
    node.cli(&["cp", "web:/a", "web:/b"]).fails(2);
    assert_eq!(node.pod("web").expect("runs").restarts("main"), 0);
    node.finish();
}

#[test]
fn a_copy_may_do_what_the_container_s_user_may_do() {
    let node = Node::up();
    let mut manifest = pod("user", REST);
    manifest["spec"]["securityContext"] = json!({ "runAsUser": 1234, "runAsGroup": 1234 });
    manifest["spec"]["containers"][0]["securityContext"] =
        json!({ "capabilities": { "drop": ["ALL"] }, "allowPrivilegeEscalation": false });
    node.run(&manifest);
    let file = node.dir.join("mine");
    write(&file, b"mine", 0o600);
    let file = file.to_str().expect("path");
    node.cli(&["cp", file, "user:/tmp/mine"]).ok();
    assert_eq!(node.sh("user", "stat -c %u:%a /tmp/mine; cat /tmp/mine"), "1234:600\nmine");
    assert!(node.cli(&["cp", file, "user:/etc/mine"]).fails(1).contains("/etc/mine"));
    node.finish();
}
