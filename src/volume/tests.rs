//! What needs no privileges; mounts are tested with the built binary's tests (`tests/node/volumes.rs`).

use super::empty_dir::{Medium, medium, memory_size};
use super::*;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

/// No objects, on a node whose resources are not known.
static NODE: std::sync::LazyLock<Given> = std::sync::LazyLock::new(Given::default);

/// A folder of its own for a test, gone with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("coracle-volume-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("folder");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pod(volumes: Value) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c"}], "volumes": volumes}
    }))
    .expect("pod")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("metadata").permissions().mode() & 0o7777
}

#[test]
fn empty_dir_is_open_to_all_and_kept() {
    let scratch = Scratch::new("empty");
    let volumes = scratch.0.join("volumes");
    let pod = pod(json!([{"name": "data", "emptyDir": {}}]));
    let resolved = set_up(&pod, &volumes, &NODE).expect("set up");
    let path = volumes.join("kubernetes.io~empty-dir/data");
    assert_eq!(resolved["data"], Resolved { path: path.clone(), read_only: false, image: None });
    assert_eq!(mode(&path), 0o777);
    fs::write(path.join("file"), "kept").expect("file");
    // A data base that closed its folder must find it closed after a restart of the agent.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("mode");
    set_up(&pod, &volumes, &NODE).expect("set up again");
    assert_eq!(mode(&path), 0o700);
    assert_eq!(fs::read_to_string(path.join("file")).expect("file"), "kept");
    tear_down(&volumes).expect("torn down");
    assert!(!volumes.exists());
    tear_down(&volumes).expect("torn down again");
}

#[test]
fn an_interrupted_set_up_is_finished() {
    let scratch = Scratch::new("interrupted");
    let dir = scratch.0.join("kubernetes.io~empty-dir");
    fs::create_dir_all(dir.join(".data.new")).expect("draft");
    set_up(&pod(json!([{"name": "data", "emptyDir": {}}])), &scratch.0, &NODE).expect("set up");
    assert_eq!(mode(&dir.join("data")), 0o777);
    assert!(!dir.join(".data.new").exists());
}

#[test]
fn a_link_is_not_taken_for_the_volume() {
    let scratch = Scratch::new("link");
    let dir = scratch.0.join("kubernetes.io~empty-dir");
    fs::create_dir_all(&dir).expect("folder");
    symlink("/", dir.join("data")).expect("link");
    assert!(set_up(&pod(json!([{"name": "data", "emptyDir": {}}])), &scratch.0, &NODE).is_err());
}

#[test]
fn tear_down_removes_links_and_not_what_they_point_to() {
    let scratch = Scratch::new("links");
    let outside = scratch.0.join("outside");
    fs::create_dir(&outside).expect("folder");
    fs::write(outside.join("precious"), "").expect("file");
    let volumes = scratch.0.join("volumes");
    let resolved = set_up(&pod(json!([{"name": "data", "emptyDir": {}}])), &volumes, &NODE).expect("set up");
    let data = &resolved["data"].path;
    symlink(&outside, data.join("link")).expect("link");
    fs::create_dir(data.join("sub")).expect("folder");
    symlink(&outside, data.join("sub/link")).expect("link");
    fs::write(data.join("sub/.removing.1"), "in the way").expect("file");
    fs::create_dir_all(data.join(".removing.1/x/y")).expect("folder");
    symlink(&outside, volumes.join("kubernetes.io~empty-dir/whole")).expect("link");
    tear_down(&volumes).expect("torn down");
    assert!(outside.join("precious").exists());
    assert!(!volumes.exists());
}

#[test]
fn a_tree_deeper_than_any_path_is_removed() {
    let scratch = Scratch::new("deep");
    let volumes = scratch.0.join("volumes");
    let resolved = set_up(&pod(json!([{"name": "data", "emptyDir": {}}])), &volumes, &NODE).expect("set up");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(CWD, &resolved["data"].path, flags, Mode::empty()).expect("open");
    // 3000 levels of 3 bytes: beyond PATH_MAX, and beyond the usual limit of open files.
    for _ in 0..3000 {
        rustix::fs::mkdirat(&dir, "dd", Mode::RWXU).expect("folder");
        dir = rustix::fs::openat(&dir, "dd", flags, Mode::empty()).expect("open");
    }
    tear_down(&volumes).expect("torn down");
    assert!(!volumes.exists());
}

#[test]
fn host_path_types() {
    let scratch = Scratch::new("host");
    let at = |name: &str| scratch.0.join(name).to_string_lossy().into_owned();
    let get = |path: &str, kind: &str| {
        let source = json!([{"name": "h", "hostPath": {"path": path, "type": kind}}]);
        match set_up(&pod(source), &scratch.0.join("volumes"), &NODE) {
            Ok(resolved) => resolved["h"].path.to_string_lossy().into_owned(),
            Err(e) => e.to_string().replace(&*scratch.0.to_string_lossy(), ""),
        }
    };
    fs::write(at("file"), "").expect("file");
    fs::create_dir(at("dir")).expect("folder");
    symlink(at("dir"), at("link")).expect("link");
    let _socket = UnixListener::bind(at("socket")).expect("socket");
    assert!(fs::metadata(at("socket")).expect("socket").file_type().is_socket());
    let failed = |name: &str, what: &str| format!("hostPath type check failed: /{name} is not {what}");

    for (name, kind) in [
        ("file", "File"),
        ("file", "FileOrCreate"),
        ("file", ""),
        ("dir", "Directory"),
        ("dir", "DirectoryOrCreate"),
        ("link", "Directory"),
        ("socket", "Socket"),
        ("socket", "File"),
        ("new/dir", "DirectoryOrCreate"),
        ("new/file", "FileOrCreate"),
        ("made/by/default", ""),
    ] {
        assert_eq!(get(&at(name), kind), at(name), "{kind} {name}");
    }
    assert_eq!(get("/dev/null", "CharDevice"), "/dev/null");
    assert_eq!((mode(&scratch.0.join("new/dir")), mode(&scratch.0.join("new/file"))), (0o755, 0o644));
    assert_eq!(get(&at("file"), "Directory"), failed("file", "a directory"));
    assert_eq!(get(&at("none"), "Directory"), failed("none", "a directory"));
    assert_eq!(get(&at("file"), "DirectoryOrCreate"), failed("file", "a directory"));
    assert_eq!(get(&at("dir"), "File"), failed("dir", "a file"));
    assert_eq!(get(&at("none"), "File"), failed("none", "a file"));
    assert_eq!(get(&at("dir"), "FileOrCreate"), failed("dir", "a file"));
    assert_eq!(get(&at("file"), "Socket"), failed("file", "a socket file"));
    assert_eq!(get(&at("file"), "CharDevice"), failed("file", "a character device"));
    assert_eq!(get("/dev/null", "BlockDevice"), "hostPath type check failed: /dev/null is not a block device");
    assert!(!scratch.0.join("none").exists());
    assert_eq!(get(&at("no/parent"), "FileOrCreate"), "cannot create \"/no/parent\"");
    assert_eq!(get("/a/../b", ""), "hostPath \"/a/../b\" must be an absolute path without '..'");
    assert_eq!(get("a", ""), "hostPath \"a\" must be an absolute path without '..'");
}

#[test]
fn other_kinds_are_refused() {
    let scratch = Scratch::new("other");
    let text = |volumes: Value| set_up(&pod(volumes), &scratch.0, &NODE).expect_err("refused").to_string();
    assert_eq!(
        text(json!([{"name": "s", "nfs": {"server": "x", "path": "/"}}])),
        "volume s: this type of volume is not supported"
    );
    assert_eq!(
        text(json!([{"name": "h", "emptyDir": {"medium": "HugePages"}}])),
        "emptyDir medium \"HugePages\": no container requests huge pages"
    );
    assert_eq!(text(json!([{"name": "../x", "emptyDir": {}}])), "\"../x\" is not a volume name");
    assert_eq!(
        text(json!([{"name": "p", "projected": {"sources": [{"clusterTrustBundle": {"path": "x", "name": "y"}}]}}])),
        "volume p: a projected source other than configMap, secret, downwardAPI or serviceAccountToken is not supported"
    );
    assert_eq!(
        text(json!([{"name": "p", "projected": {"sources": [{"secret": {"name": "x"}}]}}])),
        "volume \"p\": secret \"x\" not found"
    );
}

#[test]
fn size_of_a_volume_in_memory() {
    let size = |limit: Option<&str>, pod_limit: Option<&str>, node: u64| {
        let mut pod = pod(json!([]));
        if let Some(limit) = pod_limit {
            let resources = json!({"limits": {"memory": limit}});
            let c = &mut pod.spec.as_mut().expect("spec").containers[0];
            c.resources = serde_json::from_value(resources).expect("resources");
        }
        let source = json!({"medium": "Memory", "sizeLimit": limit});
        memory_size(&pod, &serde_json::from_value(source).expect("source"), node).expect("size")
    };
    assert_eq!(size(None, None, 0), None);
    assert_eq!(size(None, None, 5), Some(5));
    assert_eq!(size(Some("1Ki"), None, 4096), Some(1024));
    assert_eq!(size(Some("0"), Some("2Ki"), 4096), Some(2048));
}

#[test]
fn mediums() {
    let of = |name: &str, sizes: &[&str]| {
        let requests: BTreeMap<String, &str> = sizes.iter().map(|s| (format!("hugepages-{s}"), "4Mi")).collect();
        let mut pod = pod(json!([]));
        let resources = serde_json::from_value(json!({"requests": requests})).expect("resources");
        pod.spec.as_mut().expect("spec").containers[0].resources = resources;
        let source = serde_json::from_value(json!({"medium": name})).expect("source");
        medium(&pod, &source).map_err(|e| e.to_string())
    };
    assert_eq!(of("", &[]), Ok(Medium::Disk));
    assert_eq!(of("Memory", &[]), Ok(Medium::Memory));
    assert_eq!(of("HugePages", &["2Mi"]), Ok(Medium::HugePages(2 << 20)));
    assert_eq!(of("HugePages-1Gi", &["2Mi", "1Gi"]), Ok(Medium::HugePages(1 << 30)));
    for (name, sizes, why) in [
        ("HugePages", &["2Mi", "1Gi"][..], "the containers request huge pages of more than one size"),
        ("HugePages", &[], "no container requests huge pages"),
        ("HugePages-1Gi", &["2Mi"], "no container requests huge pages of this size"),
        ("HugePages2Mi", &["2Mi"], "there is no such medium"),
        ("Disk", &[], "there is no such medium"),
    ] {
        assert_eq!(of(name, sizes), Err(format!("emptyDir medium {name:?}: {why}")));
    }
    assert_eq!(of("HugePages-x", &["2Mi"]), Err("\"x\" is not a resource quantity".to_owned()));
}
