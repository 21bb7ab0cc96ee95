//! Volumes that need mounts. Tests without a node work in a mount namespace of their own, so that nothing of them can stay
//! behind.

use super::harness::{BUSYBOX, Node, REST, pod as script_pod, resting};
use coracle::manifest::Object;
use coracle::pod::resources::Allocatable;
use coracle::volume::{Error, Given, refresh, set_up, tear_down};
use k8s_openapi::api::core::v1::Pod;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder in a private mount namespace.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        assert!(nix::unistd::geteuid().is_root(), "this test mounts file systems: run it as root (CAP_SYS_ADMIN)");
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace needs CAP_SYS_ADMIN");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        let path = std::env::temp_dir().join(format!("coracle-volumes-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("folder");
        Scratch(path)
    }

    fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// How many mounts lie at or below `path`.
    fn mounts(&self, path: &Path) -> usize {
        let text = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
        let at = |line: &&str| line.split(' ').nth(4).is_some_and(|m| Path::new(m).starts_with(path));
        text.lines().filter(at).count()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The namespace ends with the thread; what a failed test left mounted must not be removed with the folder.
        if self.mounts(&self.0) == 0 {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

fn node(memory: i64) -> Given {
    Given { node: Allocatable { cpu_milli: 2000, memory, ephemeral_storage: 0 }, ..Given::default() }
}

fn pod(volume: Value, security: Value) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c"}], "volumes": [volume], "securityContext": security}
    }))
    .expect("pod")
}

#[test]
fn memory_volume_is_a_tmpfs_of_its_size_and_mounted_once() {
    let scratch = Scratch::new("memory");
    let pod = pod(json!({"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}), json!({}));
    let path = set_up(&pod, &scratch.volumes(), &node(1 << 30)).expect("set up")["m"].path.clone();
    fs::write(path.join("file"), "kept").expect("file");
    set_up(&pod, &scratch.volumes(), &node(1 << 30)).expect("set up again");
    assert_eq!(scratch.mounts(&path), 1);
    assert_eq!(fs::read_to_string(path.join("file")).expect("file"), "kept");
    assert_eq!(fs::metadata(&path).expect("metadata").mode() & 0o7777, 0o777);
    let stat = nix::sys::statvfs::statvfs(&path).expect("statvfs");
    assert_eq!(stat.blocks() * stat.fragment_size(), 1 << 20);
    assert!(fs::write(path.join("big"), vec![0; 2 << 20]).is_err(), "the size must be a limit");
    tear_down(&scratch.volumes()).expect("torn down");
    assert_eq!(scratch.mounts(&path), 0);
    assert!(!scratch.volumes().exists());
}

#[test]
fn fs_group_owns_the_volume() {
    let scratch = Scratch::new("group");
    for medium in ["", "Memory"] {
        let volume = json!({"name": "m", "emptyDir": {"medium": medium}});
        let path = set_up(&pod(volume, json!({"fsGroup": 4242})), &scratch.volumes(), &node(0)).expect("set up")["m"]
            .path
            .clone();
        let meta = fs::metadata(&path).expect("metadata");
        assert_eq!((meta.gid(), meta.mode() & 0o7777), (4242, 0o2777), "medium {medium:?}");
        tear_down(&scratch.volumes()).expect("torn down");
    }
}

#[test]
fn tear_down_never_enters_a_mount() {
    let scratch = Scratch::new("nested");
    let outside = scratch.0.join("outside");
    fs::create_dir_all(outside.join("sub")).expect("folder");
    fs::write(outside.join("sub/precious"), "").expect("file");
    let pod = pod(json!({"name": "d", "emptyDir": {}}), json!({}));
    let path = set_up(&pod, &scratch.volumes(), &node(0)).expect("set up")["d"].path.clone();
    let inner = path.join("a/b");
    fs::create_dir_all(&inner).expect("folder");
    let none: Option<&str> = None;
    mount(Some(&outside), &inner, none, MsFlags::MS_BIND, none).expect("bind mount");
    let refused = tear_down(&scratch.volumes());
    assert!(matches!(refused, Err(Error::MountPoint(_))), "{refused:?}");
    assert!(outside.join("sub/precious").exists());
    umount2(&inner, MntFlags::MNT_DETACH).expect("unmount");
    tear_down(&scratch.volumes()).expect("torn down");
    assert!(outside.join("sub/precious").exists());
}

#[test]
fn a_bind_mount_at_the_volume_itself_is_only_unmounted() {
    let scratch = Scratch::new("over");
    let outside = scratch.0.join("outside");
    fs::create_dir_all(&outside).expect("folder");
    fs::write(outside.join("precious"), "").expect("file");
    let pod = pod(json!({"name": "d", "emptyDir": {}}), json!({}));
    let path = set_up(&pod, &scratch.volumes(), &node(0)).expect("set up")["d"].path.clone();
    let none: Option<&str> = None;
    mount(Some(&outside), &path, none, MsFlags::MS_BIND, none).expect("bind mount");
    tear_down(&scratch.volumes()).expect("torn down");
    assert!(outside.join("precious").exists());
    assert!(!scratch.volumes().exists());
}

#[test]
fn what_the_pod_says_of_itself_is_in_memory_and_follows_it() {
    let scratch = Scratch::new("downward");
    let items = json!([
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "deep/cpu", "mode": 256,
            "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}
    ]);
    for (kind, source) in [
        ("downward-api", json!({"name": "d", "downwardAPI": {"items": items, "defaultMode": 288}})),
        (
            "projected",
            json!({"name": "d", "projected": {"defaultMode": 288, "sources": [{"downwardAPI": {"items": items}}]}}),
        ),
    ] {
        let mut pod = pod(source, json!({"fsGroup": 4242}));
        pod.metadata.labels = Some([("a".to_owned(), "1".to_owned())].into());
        let resolved = set_up(&pod, &scratch.volumes(), &node(0)).expect("set up");
        let path = &resolved["d"].path;
        assert_eq!(*path, scratch.volumes().join(format!("kubernetes.io~{kind}/d")));
        assert!(resolved["d"].read_only);
        assert_eq!(nix::sys::statfs::statfs(path).expect("statfs").filesystem_type(), nix::sys::statfs::TMPFS_MAGIC);
        let read = |file: &str| fs::read_to_string(path.join(file)).expect(file);
        let meta = |file: &str| {
            let meta = fs::metadata(path.join(file)).expect(file);
            (meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!((read("labels"), read("deep/cpu")), ("a=\"1\"".into(), "2000".into()));
        assert_eq!((meta("labels"), meta("deep/cpu")), ((4242, 0o440), (4242, 0o440)));
        assert_eq!((meta("."), meta("..data/deep")), ((4242, 0o2777), (4242, 0o2755)));

        let before = fs::read_link(path.join("..data")).expect("..data");
        assert_eq!(refresh(&pod, &scratch.volumes(), &node(0)).expect("refreshed"), 0);
        set_up(&pod, &scratch.volumes(), &node(0)).expect("set up again");
        assert_eq!(fs::read_link(path.join("..data")).expect("..data"), before);
        assert_eq!(scratch.mounts(path), 1);

        let spec = pod.spec.as_mut().expect("spec");
        let resources = json!({"limits": {"cpu": "250m"}});
        spec.containers[0].resources = serde_json::from_value(resources).expect("resources");
        pod.metadata.labels = Some([("a".to_owned(), "2\n".to_owned())].into());
        assert_eq!(refresh(&pod, &scratch.volumes(), &node(0)).expect("refreshed"), 1);
        assert_eq!((read("labels"), read("deep/cpu")), ("a=\"2\\n\"".into(), "250".into()));
        assert_eq!(meta("deep/cpu"), (4242, 0o440));
        tear_down(&scratch.volumes()).expect("torn down");
        assert_eq!(scratch.mounts(&scratch.0), 0);
        assert!(!scratch.volumes().exists());
        assert_eq!(refresh(&pod, &scratch.volumes(), &node(0)).expect("nothing to do"), 0);
    }
}

/// A node with ConfigMap `m` and Secret `s` of these values.
fn with_objects(map: &Value, secret: &Value) -> Given {
    let meta = |name: &str| json!({"name": name, "namespace": "d"});
    let map = json!({"metadata": meta("m"), "data": map});
    let secret = json!({"metadata": meta("s"), "data": secret});
    let objects = [
        Object::ConfigMap(Arc::new(serde_json::from_value(map).expect("ConfigMap"))),
        Object::Secret(Arc::new(serde_json::from_value(secret).expect("Secret"))),
    ];
    Given { objects: objects.into_iter().collect(), ..node(0) }
}

#[test]
fn files_made_from_objects_follow_them_and_stay_when_one_is_gone() {
    let scratch = Scratch::new("objects");
    let volumes = json!([
        {"name": "m", "configMap": {"name": "m", "items": [{"key": "a", "path": "x/a"}]}},
        {"name": "s", "secret": {"secretName": "s", "defaultMode": 256}},
        {"name": "o", "projected": {"sources": [{"configMap": {"name": "m", "optional": true}}]}},
    ]);
    let mut pod = pod(json!({"name": "none", "emptyDir": {}}), json!({}));
    pod.metadata.namespace = Some("d".to_owned());
    pod.spec.as_mut().expect("spec").volumes = serde_json::from_value(volumes).expect("volumes");
    let at = |path: &str| scratch.volumes().join(path);
    let read = |path: &str| fs::read_to_string(at(path)).ok();
    let state = || {
        let of = |path: &str| read(path).unwrap_or_else(|| "-".to_owned());
        let files = ["configmap/m/x/a", "secret/s/k", "projected/o/a", "projected/o/b"];
        files.map(|file| of(&format!("kubernetes.io~{file}"))).join(" ")
    };
    // Nothing is set up before everything is there.
    let error = set_up(&pod, &scratch.volumes(), &node(0)).expect_err("nothing is there");
    assert_eq!(error.to_string(), "volume \"m\": configmap \"m\" not found");
    assert_eq!(refresh(&pod, &scratch.volumes(), &node(0)).expect("nothing is set up"), 0);
    let error = set_up(&pod, &scratch.volumes(), &with_objects(&json!({"b": "1"}), &json!({}))).expect_err("no key");
    assert_eq!(error.to_string(), "volume \"m\": configmap references non-existent config key: a");

    let first = with_objects(&json!({"a": "1", "b": "2"}), &json!({"k": "czE="}));
    let resolved = set_up(&pod, &scratch.volumes(), &first).expect("set up");
    assert!(resolved.values().all(|volume| volume.read_only));
    assert_eq!(state(), "1 s1 1 2");
    assert_eq!(fs::metadata(at("kubernetes.io~secret/s/k")).expect("k").mode() & 0o7777, 0o400);
    for kind in ["configmap/m", "secret/s", "projected/o"] {
        let path = at(&format!("kubernetes.io~{kind}"));
        assert_eq!(nix::sys::statfs::statfs(&path).expect("statfs").filesystem_type(), nix::sys::statfs::TMPFS_MAGIC);
    }
    assert_eq!(refresh(&pod, &scratch.volumes(), &first).expect("refreshed"), 0);

    // One that cannot follow keeps its files; the others follow.
    let second = with_objects(&json!({"b": "3"}), &json!({"k": "czI="}));
    let error = refresh(&pod, &scratch.volumes(), &second).expect_err("a key is missing");
    assert!(error.is_missing(), "{error}");
    assert_eq!(state(), "1 s2 - 3");
    // A container that starts again finds what the running ones have.
    set_up(&pod, &scratch.volumes(), &second).expect("with the files from before");
    set_up(&pod, &scratch.volumes(), &node(0)).expect("with no object at all");
    assert_eq!(state(), "1 s2 - -");
    assert_eq!(refresh(&pod, &scratch.volumes(), &first).expect("refreshed"), 2);
    assert_eq!(state(), "1 s1 1 2");
    tear_down(&scratch.volumes()).expect("torn down");
    assert_eq!(scratch.mounts(&scratch.0), 0);
    assert!(!scratch.volumes().exists());
}

#[test]
fn a_volume_in_huge_pages_is_a_hugetlbfs() {
    let scratch = Scratch::new("huge");
    let volume = json!({"name": "h", "emptyDir": {"medium": "HugePages"}});
    let mut pod = pod(volume, json!({"fsGroup": 4242}));
    let resources = json!({"limits": {"hugepages-2Mi": "4Mi"}});
    let spec = pod.spec.as_mut().expect("spec");
    spec.containers[0].resources = serde_json::from_value(resources).expect("resources");
    let path = set_up(&pod, &scratch.volumes(), &node(0)).expect("set up")["h"].path.clone();
    let stat = nix::sys::statfs::statfs(&path).expect("statfs");
    assert_eq!((stat.filesystem_type(), stat.block_size()), (nix::sys::statfs::HUGETLBFS_MAGIC, 2 << 20));
    let meta = fs::metadata(&path).expect("metadata");
    assert_eq!((meta.gid(), meta.mode() & 0o7777), (4242, 0o2777));
    tear_down(&scratch.volumes()).expect("torn down");
    assert_eq!(scratch.mounts(&path), 0);
}

/// The line of `/proc/<pid>/mountinfo` for a mount point.
fn mount_line(pid: i32, point: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
    let line = text.lines().rfind(|l| l.split(' ').nth(4) == Some(point));
    line.unwrap_or_else(|| panic!("no mount at {point}:\n{text}")).to_owned()
}

#[test]
fn sub_paths_show_a_part_of_a_volume_and_leave_no_trace() {
    let mut node = Node::up();
    let share = node.dir.join("share");
    fs::create_dir_all(share.join("made/deep")).expect("folder");
    fs::write(share.join("made/file"), "of the host").expect("file");
    std::os::unix::fs::symlink("made", share.join("inside")).expect("link");
    fs::set_permissions(&share, fs::Permissions::from_mode(0o2751)).expect("mode");
    let mut manifest = resting("parts");
    manifest["metadata"]["labels"] = json!({"app": "x"});
    manifest["spec"]["securityContext"] = json!({"fsGroup": 4242});
    manifest["spec"]["volumes"] = json!([
        {"name": "share", "hostPath": {"path": share}},
        {"name": "data", "emptyDir": {}},
        {"name": "mem", "emptyDir": {"medium": "Memory"}},
        {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "image", "image": {"reference": BUSYBOX, "pullPolicy": "IfNotPresent"}}
    ]);
    manifest["spec"]["containers"][0]["env"] = json!([{"name": "WHERE", "value": "new/er"}]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "share", "mountPath": "/file", "subPath": "made/file"},
        {"name": "share", "mountPath": "/linked", "subPath": "inside/deep", "readOnly": true},
        {"name": "share", "mountPath": "/etc/passwd", "subPath": "made/file"},
        {"name": "share", "mountPath": "/expr", "subPathExpr": "$(WHERE)"},
        {"name": "data", "mountPath": "/data", "subPath": "a"},
        {"name": "data", "mountPath": "/data/below", "subPath": "b"},
        {"name": "mem", "mountPath": "/mem", "subPath": "m"},
        {"name": "down", "mountPath": "/down"},
        {"name": "down", "mountPath": "/label", "subPath": "labels"},
        {"name": "image", "mountPath": "/image"},
        {"name": "image", "mountPath": "/image-passwd", "subPath": "etc/passwd"}
    ]);
    let view = node.run(&manifest);
    let sh = |script: &str| node.sh("parts", script);
    assert_eq!(sh("cat /file /etc/passwd"), "of the hostof the host");
    assert_eq!(sh("echo more > /file; touch /linked/x 2>/dev/null || echo read-only"), "read-only");
    assert_eq!(fs::read_to_string(share.join("made/file")).expect("file"), "more\n");
    sh("touch /expr/e /data/d /data/below/b /mem/m");
    assert!(share.join("new/er/e").exists());
    let modes: Vec<u32> = ["new", "new/er"]
        .iter()
        .map(|p| fs::metadata(share.join(p)).expect("metadata").permissions().mode() & 0o7777)
        .collect();
    assert_eq!(modes, [0o2751, 0o2751]);
    let volumes = node.dir.join(format!("root/pods/{}/volumes/kubernetes.io~empty-dir", view.uid()));
    for file in ["data/a/d", "data/b/b", "mem/m/m"] {
        assert!(volumes.join(file).exists(), "{file}");
    }
    assert_eq!(fs::metadata(volumes.join("data/a")).expect("metadata").gid(), 4242);
    assert_eq!(
        sh("cat /down/labels /label; touch /down/x 2>/dev/null || echo read-only"),
        "app=\"x\"app=\"x\"read-only"
    );
    assert_eq!(sh("stat -L -c '%g %a' /down/labels /label"), "4242 644\n4242 644");
    assert!(sh("id -G").split(' ').any(|g| g == "4242"));
    assert!(sh("cat /image-passwd").contains("app:x:1234"));
    assert_eq!(sh("/image/bin/busybox true 2>/dev/null || echo noexec"), "noexec");
    assert_eq!(sh("touch /image/x 2>/dev/null || echo read-only; ls /image"), "read-only\nbin\netc\nhome\ntmp");
    let pid = node.init_pid(&view.id("main"));
    for (point, flag) in
        [("/image", "noexec"), ("/image", "nodev"), ("/image", "ro"), ("/linked", "ro"), ("/data", "rw")]
    {
        let line = mount_line(pid, point);
        let options = line.split(' ').nth(5).unwrap_or_default();
        assert!(options.split(',').any(|o| o == flag), "{point} lacks {flag}: {line}");
        assert!(!line.contains("shared:") && !line.contains("master:"), "{point} spreads: {line}");
    }
    // Neither the machine nor the shim has anything of it, also after the agent was killed.
    node.kill9();
    node.start();
    for pid in ["self".to_owned(), node.shims()[0].to_string()] {
        let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
        assert!(!text.contains(&format!("{}/stage", view.uid())), "{pid}:\n{text}");
    }
    assert_eq!(node.sh("parts", "cat /label"), "app=\"x\"");
    node.finish();
}

#[test]
fn a_sub_path_never_leads_out_of_its_volume() {
    let node = Node::up();
    let secret = node.dir.join("secret");
    fs::create_dir(&secret).expect("folder");
    fs::write(secret.join("key"), "secret").expect("file");
    let up = "../".repeat(30);
    let links = [
        ("absolute", secret.display().to_string()),
        ("relative", format!("{up}{}", secret.display())),
        ("indirect", "absolute".to_owned()),
        ("magic", "/proc/self/root".to_owned()),
        ("dir/up", up.clone()),
        ("dangling", "nowhere".to_owned()),
    ];
    // A victim may have found (or made) a plain folder already: the link takes its place.
    let plant = |(at, to): &(&str, String)| {
        format!("until [ -L /all/{at} ]; do rm -rf /all/{at}; mkdir -p /all/dir; ln -s {to} /all/{at}; done")
    };
    let plants: Vec<String> = links.iter().map(plant).collect();
    let mut manifest = script_pod("hostile", &format!("{}; touch /all/ready; {REST}", plants.join("; ")));
    manifest["spec"]["volumes"] = json!([{"name": "all", "emptyDir": {}}]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "all", "mountPath": "/all"}]);
    let mut victims = Vec::new();
    for (i, path) in
        ["absolute", "relative", "indirect/key", "magic/etc", "dir/up", "dangling", "dangling/x"].iter().enumerate()
    {
        let name = format!("v{i}");
        manifest["spec"]["containers"].as_array_mut().expect("list").push(json!({
            "name": name, "image": BUSYBOX,
            // If it starts before the links are there, it ends once they are, and must not start again.
            "command": ["sh", "-c", "while [ ! -e /all/ready ]; do sleep 0.1; done; exit 1"],
            "volumeMounts": [{"name": "all", "mountPath": "/all"}, {"name": "all", "mountPath": "/x", "subPath": path}]
        }));
        victims.push((name, *path));
    }
    node.apply("hostile.yaml", &manifest);
    for (name, path) in &victims {
        let seen = node
            .wait_pod("hostile", &format!("{path} is refused"), |p| p.waiting(name) == "CreateContainerConfigError");
        let message = seen.waiting_message(name);
        assert!(message.contains("subPath"), "{path}: {message}");
    }
    assert_eq!(fs::read_dir(&secret).expect("list").count(), 1);
    assert_eq!(fs::read_to_string(secret.join("key")).expect("file"), "secret");
    node.finish();
}

#[test]
fn an_expression_without_its_variable_and_an_image_that_is_not_there_are_told() {
    let node = Node::up();
    let mut manifest = resting("wanting");
    manifest["spec"]["volumes"] = json!([
        {"name": "data", "emptyDir": {}}, {"name": "none", "image": {"reference": "none:1", "pullPolicy": "Never"}}
    ]);
    let second = manifest["spec"]["containers"][0].clone();
    manifest["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/x", "subPathExpr": "$(NO)/x"}]);
    manifest["spec"]["containers"].as_array_mut().expect("list").push(second);
    manifest["spec"]["containers"][1]["name"] = json!("second");
    manifest["spec"]["containers"][1]["volumeMounts"] = json!([{"name": "none", "mountPath": "/x"}]);
    node.apply("wanting.yaml", &manifest);
    let seen = node.wait_pod("wanting", "both wait", |p| {
        p.waiting("main") == "CreateContainerConfigError" && p.waiting("second") == "ErrImageNeverPull"
    });
    assert!(seen.waiting_message("main").contains("missing value for NO"), "{}", seen.waiting_message("main"));
    assert!(seen.waiting_message("second").contains("none:1"), "{}", seen.waiting_message("second"));

    // Where a container has files and mounts of its own, the pod's come first, or are refused.
    let share = node.dir.join("share");
    fs::write(share.join("hosts"), "192.0.2.1 mine\n").expect("file");
    let mut manifest =
        script_pod("places", &format!("echo -n last words > /data/words; mkdir /data/seen && exit 3; {REST}"));
    manifest["spec"]["volumes"] = json!([
        {"name": "share", "hostPath": {"path": share}}, {"name": "data", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]);
    let container = &mut manifest["spec"]["containers"][0];
    container["securityContext"] = json!({"readOnlyRootFilesystem": true});
    container["terminationMessagePath"] = json!("/data/words");
    container["volumeMounts"] = json!([
        {"name": "share", "mountPath": "/etc/hosts", "subPath": "hosts"}, {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/tmp", "subPath": "tmp"},
    ]);
    node.apply("places.yaml", &manifest);
    let seen = node.wait_pod("places", "ended", |p| p.last("main")["exitCode"] == 3);
    assert_eq!(seen.last("main")["message"], "last words");
    node.wait_pod("places", "up", |p| p.up() && p.restarts("main") > 0);
    assert_eq!(
        node.sh("places", "cat /etc/hosts; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2"),
        "192.0.2.1 mine\n1024"
    );
    assert_eq!(node.sh("places", "touch /x 2>/dev/null || touch /tmp/x /dev/shm/x && echo as meant"), "as meant");
    for (index, (place, rule)) in
        [("/proc/sys", "what is in /proc"), ("/dev/null", "every container has")].iter().enumerate()
    {
        manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": place}]);
        let file = share.join(format!("{index}.yaml"));
        fs::write(&file, manifest.to_string()).expect("file");
        let told = node.cli(&["validate", &file.display().to_string()]).fails(1);
        let want = format!("spec.containers[0].volumeMounts[0].mountPath: Invalid value: {place:?}: {rule}");
        assert!(told.contains(&want), "{told}");
    }
    node.finish();
}

/// A shared mount of the test's own, unmounted in any case.
struct SharedMount(PathBuf);

impl SharedMount {
    fn at(path: PathBuf) -> SharedMount {
        fs::create_dir_all(&path).expect("folder");
        let none: Option<&str> = None;
        mount(Some("test"), &path, Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs");
        let shared = SharedMount(path);
        mount(none, &shared.0, none, MsFlags::MS_SHARED, none).expect("shared");
        shared
    }

    fn mount_inside(&self, name: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(&path).expect("folder");
        let none: Option<&str> = None;
        mount(Some("inner"), &path, Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs");
        fs::write(path.join("mark"), name).expect("file");
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn mounts_spread_as_far_as_the_manifest_says() {
    let node = Node::up();
    let shared = SharedMount::at(node.dir.join("share/shared"));
    shared.mount_inside("before");
    let mut manifest = resting("spread");
    let source = json!({"path": shared.0});
    manifest["spec"]["volumes"] = json!([
        {"name": "shared", "hostPath": source}, {"name": "plain", "hostPath": {"path": "/etc"}}
    ]);
    let plain = manifest["spec"]["containers"][0].clone();
    let containers: Vec<Value> = [("both", "Bidirectional"), ("receive", "HostToContainer"), ("none", "None")]
        .iter()
        .map(|(name, propagation)| {
            let mut container = plain.clone();
            container["name"] = json!(name);
            container["securityContext"] = json!({"privileged": true});
            container["volumeMounts"] = json!([
                {"name": "shared", "mountPath": "/shared", "mountPropagation": propagation},
                // Beside one that spreads, this one must not.
                {"name": "shared", "mountPath": "/alone"},
                {"name": "shared", "mountPath": "/locked", "readOnly": true, "recursiveReadOnly": "Enabled"},
                {"name": "shared", "mountPath": "/ro", "readOnly": true}
            ]);
            container
        })
        .collect();
    manifest["spec"]["containers"] = json!(containers);
    node.run(&manifest);
    let sh = |container: &str, script: &str| {
        node.cli(&["exec", "spread", "-c", container, "--", "sh", "-c", script]).ok().trim_end().to_owned()
    };
    let sees = |container: &str, path: &str| sh(container, &format!("[ -e {path} ] && echo yes || echo no")) == "yes";
    for container in ["both", "receive", "none"] {
        // What was there when it started is there in any case; what a read-only mount holds can be written to, unless it
        // is read-only all the way down.
        assert!(sees(container, "/shared/before/mark"), "{container}");
        let script = "for d in ro ro/before locked locked/before; do touch /$d/x 2>/dev/null && echo $d; done; true";
        assert_eq!(sh(container, script), "ro/before", "{container}");
    }
    shared.mount_inside("later");
    for (container, path, want) in [
        ("both", "/shared", true),
        ("both", "/alone", false),
        ("receive", "/shared", true),
        ("receive", "/alone", false),
        ("none", "/shared", false),
    ] {
        assert_eq!(sees(container, &format!("{path}/later/mark")), want, "{container} {path}");
    }
    let mount_in = "mkdir -p /shared/$1 && mount -t tmpfs inner /shared/$1 && touch /shared/$1/mark";
    for container in ["both", "receive", "none"] {
        sh(container, &mount_in.replace("$1", &format!("from-{container}")));
        let on_the_host = shared.0.join(format!("from-{container}/mark")).exists();
        assert_eq!(on_the_host, container == "both", "{container}");
    }
    assert!(sees("receive", "/shared/from-both/mark"));
    // What it mounted stays with the machine, what the machine mounted is not taken away.
    node.remove("spread.yaml");
    node.wait_gone("spread");
    assert!(shared.0.join("before/mark").exists() && shared.0.join("later/mark").exists());
    assert!(shared.0.join("from-both/mark").exists());

    // A place that cannot spread anything is refused in words.
    let private = node.dir.join("share/private");
    fs::create_dir(&private).expect("folder");
    let none: Option<&str> = None;
    mount(Some("test"), &private, Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs");
    mount(none, &private, none, MsFlags::MS_PRIVATE, none).expect("private");
    let mut manifest = resting("stuck");
    manifest["spec"]["volumes"] = json!([{"name": "v", "hostPath": {"path": private}}]);
    manifest["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "v", "mountPath": "/v", "mountPropagation": "HostToContainer"}]);
    node.apply("stuck.yaml", &manifest);
    let seen = node.wait_pod("stuck", "waiting", |p| p.waiting("main") == "CreateContainerError");
    umount2(&private, MntFlags::MNT_DETACH).expect("unmount");
    let message = seen.waiting_message("main");
    assert!(message.contains("but it is not a shared or slave mount"), "{message}");
    drop(shared);
    node.finish();
}
