//! Volumes that need mounts. Each test works in a mount namespace of its own, so that nothing of it can stay behind.

use coracle::pod::resources::Allocatable;
use coracle::volume::{Error, refresh, set_up, tear_down};
use k8s_openapi::api::core::v1::Pod;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

fn node(memory: i64) -> Allocatable {
    Allocatable { cpu_milli: 2000, memory, ephemeral_storage: 0 }
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
        let path =
            set_up(&pod(volume, json!({"fsGroup": 4242})), &scratch.volumes(), &node(0)).expect("set up")["m"].path.clone();
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
