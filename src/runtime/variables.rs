//! What a container's variables are taken from, besides its manifest.

use crate::bundle::{Sources, Volume, envfile};
use crate::sys::fs;
use k8s_openapi::api::core::v1::{Container, FileKeySelector, Pod};
use std::collections::BTreeMap;
use std::ffi::OsStr;

/// Reads what the variables of `container` refer to. What cannot be read is in the answer, with the reason: whether that
/// matters is for [`crate::bundle::build`] to say.
pub(super) fn sources(pod: &Pod, container: &Container, volumes: &BTreeMap<String, Volume>) -> Sources {
    let mut sources = Sources::default();
    for variable in container.env.iter().flatten() {
        let Some(selector) = variable.value_from.as_ref().and_then(|from| from.file_key_ref.as_ref()) else { continue };
        let key = (selector.volume_name.clone(), selector.path.clone());
        sources.files.entry(key).or_insert_with(|| read(pod, selector, volumes));
    }
    sources
}

/// Containers write to the volume while this reads: nothing but a regular file of the volume itself is opened.
fn read(pod: &Pod, selector: &FileKeySelector, volumes: &BTreeMap<String, Volume>) -> Result<Vec<u8>, String> {
    let declared = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).find(|v| v.name == selector.volume_name);
    let (Some(declared), Some(volume)) = (declared, volumes.get(&selector.volume_name)) else {
        return Err("the pod has no such volume".to_owned());
    };
    if declared.empty_dir.is_none() {
        return Err("the volume is no emptyDir".to_owned());
    }
    let file = fs::Dir::open(&volume.path).and_then(|dir| dir.open_beneath(OsStr::new(&selector.path)));
    file.and_then(|file| fs::read_file_limited(file, envfile::MAX_FILE)).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_files_of_the_volume_itself_are_read() {
        let scratch = Scratch(std::env::temp_dir().join(format!("coracle-variables-{}", std::process::id())));
        let dir = scratch.0.join("volume");
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        std::fs::write(dir.join("sub/env"), "A='1'").unwrap();
        std::fs::write(dir.join("big"), vec![b'#'; 64 * 1024 + 1]).unwrap();
        std::fs::write(scratch.0.join("outside"), "A='2'").unwrap();
        std::os::unix::fs::symlink("../outside", dir.join("up")).unwrap();
        std::os::unix::fs::symlink(scratch.0.join("outside"), dir.join("away")).unwrap();
        std::os::unix::fs::symlink("sub/env", dir.join("inside")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/"}}]}
        }))
        .unwrap();
        let volume = |path: &PathBuf| Volume { path: path.clone(), read_only: false, image: None };
        let volumes = BTreeMap::from([("v".to_owned(), volume(&dir)), ("h".to_owned(), volume(&scratch.0))]);
        let get = |volume: &str, path: &str| {
            let selector =
                FileKeySelector { key: "A".into(), optional: None, path: path.into(), volume_name: volume.into() };
            read(&pod, &selector, &volumes)
        };
        assert_eq!(get("v", "sub/env").as_deref(), Ok(&b"A='1'"[..]));
        assert_eq!(get("v", "inside").as_deref(), Ok(&b"A='1'"[..]));
        for path in ["up", "away", "../outside", "big", "pipe", "sub", "none", ""] {
            assert!(get("v", path).is_err(), "{path}");
        }
        assert_eq!(get("h", "outside"), Err("the volume is no emptyDir".to_owned()));
        assert_eq!(get("x", "env"), Err("the pod has no such volume".to_owned()));
    }
}
