//! Devices of a pod's volumes that go and come back: their paths are watched, and what is found there is told to the pod's
//! shim. A pod without such volumes has no watch and costs nothing.

use super::events::Note;
use crate::pod::{Instance, Spec};
use crate::runtime::{self, Runtime};
use crate::shim::protocol::Node;
use crate::sys::{inotify, poll};
use crate::volume::devices::lookups;
use jiff::SignedDuration;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// After a change, wait until the others that belong to it have likely happened: the node, its links, their folders.
const SETTLE: Duration = Duration::from_millis(50);
/// Between two looks when a change failed, or the paths cannot be watched.
pub const AGAIN: SignedDuration = SignedDuration::from_secs(2);
/// How often a look is repeated because the path changed meanwhile.
const LOOKS: usize = 5;

/// What a worker knows of the devices of its pod.
#[derive(Default)]
pub struct Hotplug {
    watch: Option<AsyncFd<OwnedFd>>,
    watched: Watched,
    /// What each running container (by ID) has.
    given: BTreeMap<String, Vec<Node>>,
    /// The last complaint.
    told: Option<String>,
}

/// Names that matter, by folder.
type Watched = BTreeMap<inotify::Watch, BTreeSet<OsString>>;

/// What a look found.
struct Look {
    watched: io::Result<Watched>,
    /// Containers that now have this; what is worth telling; whether that went wrong.
    given: Vec<(String, Vec<Node>)>,
    notes: Vec<Note>,
    failed: Option<String>,
}

impl Hotplug {
    /// Whether anything is watched.
    #[cfg(test)]
    fn is_idle(&self) -> bool {
        self.watch.is_none() && self.watched.is_empty() && self.given.is_empty()
    }

    /// Look at the pod's devices, and give its running containers those that are there. Returns what is worth telling, and
    /// whether to look again after [`AGAIN`] without being asked to.
    pub async fn sync(&mut self, runtime: &Arc<Runtime>, spec: &Spec, running: Vec<Instance>) -> (Vec<Note>, bool) {
        let paths = runtime::device_paths(spec.pod());
        if paths.is_empty() {
            *self = Hotplug::default();
            return (Vec::new(), false);
        }
        let mut complaint = None;
        if self.watch.is_none() {
            match inotify::open().and_then(poll::readable) {
                Ok(watch) => self.watch = Some(watch),
                Err(e) => complaint = Some(format!("The paths of devices cannot be watched: {e}")),
            }
        }
        self.given.retain(|id, _| running.iter().any(|run| run.id == *id));
        let events = self.watch.as_ref().and_then(|watch| watch.get_ref().try_clone().ok());
        let (runtime, spec, given) = (Arc::clone(runtime), spec.clone(), self.given.clone());
        let look = tokio::task::spawn_blocking(move || {
            let watched = events.map_or_else(|| Ok(Watched::new()), |events| watch(&events, &paths));
            give(&runtime, &spec, &running, &given, watched)
        });
        // An error here means that the agent is shutting down.
        let Ok(look) = look.await else { return (Vec::new(), false) };
        self.given.extend(look.given);
        match look.watched {
            Ok(watched) => {
                if let Some(watch) = &self.watch {
                    for old in self.watched.keys().filter(|old| !watched.contains_key(old)) {
                        inotify::forget(watch.get_ref(), *old);
                    }
                }
                self.watched = watched;
            }
            Err(e) => complaint = Some(format!("The paths of devices cannot be watched: {e}")),
        }
        let complaint = look.failed.or(complaint);
        let mut notes = look.notes;
        if complaint != self.told {
            notes.extend(complaint.iter().map(|text| Note::warning("FailedDevice", text)));
        }
        self.told.clone_from(&complaint);
        (notes, complaint.is_some())
    }

    /// Until something happened to a path of a device; for ever when none is watched.
    pub async fn changed(&self) {
        let Some(watch) = &self.watch else { return std::future::pending().await };
        let matters = |event: &inotify::Event| match (self.watched.get(&event.folder), &event.name) {
            (Some(names), Some(name)) => names.contains(name),
            (Some(_), None) => true,
            (None, _) => event.folder < 0,
        };
        loop {
            let Ok(mut ready) = watch.readable().await else { return std::future::pending().await };
            // Nothing is lost when this is given up half-way: before the next wait everything is looked at again.
            let events = inotify::drain(watch.get_ref()).unwrap_or_default();
            ready.clear_ready();
            if events.iter().any(matters) {
                tokio::time::sleep(SETTLE).await;
                let _ = inotify::drain(watch.get_ref());
                return;
            }
        }
    }
}

/// Watches the folders on the way to `paths`, as far as they lead.
fn watch(events: &OwnedFd, paths: &[PathBuf]) -> io::Result<Watched> {
    let folders = || {
        let mut folders = BTreeMap::new();
        paths.iter().for_each(|path| lookups(path, &mut folders));
        folders
    };
    let mut seen = folders();
    for _ in 0..LOOKS {
        let mut watched = Watched::new();
        let mut gone = false;
        for (folder, names) in &seen {
            match inotify::watch(events, folder) {
                Ok(watch) => watched.entry(watch).or_default().extend(names.iter().cloned()),
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => gone = true,
                Err(e) => return Err(e),
            }
        }
        // What changed before its folder was watched.
        let now = folders();
        if now == seen && !gone {
            return Ok(watched);
        }
        seen = now;
    }
    Err(io::Error::other("they keep changing"))
}

/// After the watch has begun, so that no change is missed.
fn give(
    runtime: &Runtime,
    spec: &Spec,
    running: &[Instance],
    given: &BTreeMap<String, Vec<Node>>,
    watched: io::Result<Watched>,
) -> Look {
    let mut look = Look { watched, given: Vec::new(), notes: Vec::new(), failed: None };
    for run in running {
        let Some(container) = spec.container(&run.container) else { continue };
        let changed = runtime::device_nodes(spec.pod(), container).and_then(|nodes| {
            let same = given.get(&run.id).map_or(nodes.is_empty(), |before| *before == nodes);
            if same {
                Ok((nodes, Vec::new()))
            } else {
                runtime.change_devices(spec, run, &nodes).map(|notes| (nodes, notes))
            }
        });
        match changed {
            Ok((nodes, notes)) => {
                look.given.push((run.id.clone(), nodes));
                look.notes.extend(notes);
            }
            Err(e) => look.failed = Some(format!("Devices of container {}: {}", run.container, e.chain())),
        }
    }
    look
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[tokio::test]
    async fn changes_of_a_path_are_noticed_and_others_are_not() {
        let dir = std::env::temp_dir().join(format!("coracle-hotplug-{}", std::process::id()));
        fs::create_dir_all(dir.join("by-id")).expect("folder");
        let dir = fs::canonicalize(&dir).expect("folder");
        let path = dir.join("by-id/sensor");
        let events = poll::readable(inotify::open().expect("inotify")).expect("poll");
        let watched = watch(events.get_ref(), std::slice::from_ref(&path)).expect("watch");
        let hotplug = Hotplug { watch: Some(events), watched, ..Hotplug::default() };
        let noticed = async || tokio::time::timeout(Duration::from_millis(300), hotplug.changed()).await.is_ok();
        fs::write(dir.join("by-id/other"), "").expect("file");
        fs::write(dir.join("sensor"), "").expect("file");
        assert!(!noticed().await, "of no concern");
        symlink("../tty", &path).expect("link");
        assert!(noticed().await);
        assert!(!noticed().await, "once");
        fs::rename(dir.join("by-id"), dir.join("away")).expect("rename");
        assert!(noticed().await, "a folder on the way");
        fs::remove_dir_all(&dir).expect("remove");
    }

    #[tokio::test]
    async fn a_pod_without_devices_is_not_watched() {
        let config = serde_json::json!({
            "metadata": {"name": "plain", "namespace": "default", "uid": "u"},
            "spec": {"containers": [{"name": "main", "image": "x"}], "volumes": [
                {"name": "a", "hostPath": {"path": "/dev/serial", "type": "Directory"}},
                {"name": "b", "hostPath": {"path": "/dev/null"}},
                {"name": "c", "emptyDir": {}},
            ]},
        });
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(config).expect("pod");
        assert!(runtime::device_paths(&pod).is_empty());
        let idle = Hotplug::default();
        assert!(idle.is_idle());
        let wait = tokio::time::timeout(Duration::from_millis(20), idle.changed());
        assert!(wait.await.is_err(), "nothing to wait for");
    }
}
