//! What a container's variables are taken from, besides its manifest.

use super::objects::{beside, whole};
use crate::bundle::{Sources, Volume, envfile, services};
use crate::manifest::{Object, ObjectKind};
use crate::pod::supply::{Answer, Supply};
use crate::sys::fs;
use k8s_openapi::api::core::v1::{Container, FileKeySelector, Pod};
use std::collections::BTreeMap;
use std::ffi::OsStr;

/// Reads what the variables of `container` refer to. What cannot be read is in the answer, with the reason: whether that
/// matters is for [`crate::bundle::build`] to say.
pub(super) fn sources(
    pod: &Pod,
    container: &Container,
    volumes: &BTreeMap<String, Volume>,
    supply: &Supply,
) -> Sources {
    let mut sources = Sources::default();
    if let Some(all) = &supply.services {
        let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
        sources.services = services::variables(all, pod.metadata.namespace.as_deref().unwrap_or_default(), links);
    }
    for source in container.env_from.iter().flatten() {
        if let Some(reference) = &source.config_map_ref {
            add_config_map(&mut sources, pod, &reference.name, supply);
        }
        if let Some(reference) = &source.secret_ref {
            add_secret(&mut sources, pod, &reference.name, supply);
        }
    }
    for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        if let Some(selector) = &from.config_map_key_ref {
            add_config_map(&mut sources, pod, &selector.name, supply);
        }
        if let Some(selector) = &from.secret_key_ref {
            add_secret(&mut sources, pod, &selector.name, supply);
        }
        if let Some(selector) = &from.file_key_ref {
            let key = (selector.volume_name.clone(), selector.path.clone());
            sources.files.entry(key).or_insert_with(|| read(pod, selector, volumes));
        }
    }
    sources
}

fn add_config_map(sources: &mut Sources, pod: &Pod, name: &str, supply: &Supply) {
    if sources.config_maps.contains_key(name) {
        return;
    }
    match supply.find(&beside(pod, ObjectKind::ConfigMap, name)) {
        Answer::There(Object::ConfigMap(map)) => {
            sources.config_maps.insert(name.to_owned(), map.data.clone().unwrap_or_default());
        }
        Answer::Unread(why) => drop(sources.unread.insert((ObjectKind::ConfigMap, name.to_owned()), why)),
        Answer::There(Object::Secret(_)) | Answer::NotThere => {}
    }
}

fn add_secret(sources: &mut Sources, pod: &Pod, name: &str, supply: &Supply) {
    if sources.secrets.contains_key(name) || sources.sealed.contains_key(name) {
        return;
    }
    let secret = match supply.find(&beside(pod, ObjectKind::Secret, name)) {
        Answer::There(Object::Secret(secret)) => secret,
        Answer::Unread(why) => return drop(sources.unread.insert((ObjectKind::Secret, name.to_owned()), why)),
        Answer::There(Object::ConfigMap(_)) | Answer::NotThere => return,
    };
    match whole(pod, secret) {
        Ok(whole) => {
            let data = whole.into_owned().data.unwrap_or_default();
            let data = data.into_iter().map(|(key, value)| (key, value.0)).collect();
            sources.secrets.insert(name.to_owned(), data);
        }
        Err(error) => drop(sources.sealed.insert(name.to_owned(), super::chain(&error))),
    }
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
    fn a_container_gets_the_objects_that_it_refers_to_from_its_namespace() {
        use crate::manifest::Object;
        use serde_json::json;
        use std::sync::Arc;
        let map = |namespace: &str, name: &str| {
            let map = json!({"metadata": {"name": name, "namespace": namespace}, "data": {"k": namespace}, "binaryData": {"b": "AA=="}});
            Object::ConfigMap(Arc::new(serde_json::from_value(map).unwrap()))
        };
        let secret = |name: &str, annotations: serde_json::Value| {
            let meta = json!({"name": name, "namespace": "n", "annotations": annotations});
            Object::Secret(Arc::new(
                serde_json::from_value(json!({"metadata": meta, "data": {"k": "c2VjcmV0"}})).unwrap(),
            ))
        };
        let objects: crate::manifest::Objects = [
            map("n", "one"),
            map("n", "two"),
            map("n", "three"),
            map("other", "one"),
            map("other", "elsewhere"),
            secret("s", json!({})),
            secret("unused", json!({})),
            secret("sealed", json!({crate::manifest::CREDENTIALS: "k=none-of-this-name"})),
        ]
        .into_iter()
        .collect();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}})).unwrap();
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "envFrom": [{"configMapRef": {"name": "one"}}, {"secretRef": {"name": "s"}}, {"configMapRef": {"name": "elsewhere"}}],
            "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "two", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "sealed", "key": "k"}}}
            ]
        }))
        .unwrap();
        let supply = Supply { objects: Arc::new(objects), whole: true, ..Supply::default() };
        let found = sources(&pod, &container, &BTreeMap::new(), &supply);
        let names: Vec<&String> = found.config_maps.keys().collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(found.config_maps["one"], [("k".to_owned(), "n".to_owned())].into());
        assert_eq!(found.secrets, [("s".to_owned(), [("k".to_owned(), b"secret".to_vec())].into())].into());
        let sealed: Vec<&String> = found.sealed.keys().collect();
        assert_eq!(sealed, ["sealed"]);
        assert!(!format!("{found:?}").contains("115"), "values are not for logs: {found:?}");

        // A pod of the cluster sees no credentials of the node, and waits for what nobody has read yet.
        let api = crate::manifest::marked(&pod);
        let mut supply = Supply { whole: false, ..supply };
        supply.absent.insert(beside(&pod, ObjectKind::ConfigMap, "elsewhere"));
        supply.services = Some(Arc::new(vec![crate::pod::supply::Service {
            namespace: "n".into(),
            name: "x".into(),
            cluster_ip: "10.0.0.1".into(),
            ports: Vec::new(),
        }]));
        let found = sources(&api, &container, &BTreeMap::new(), &supply);
        assert!(found.sealed.is_empty() && found.unread.is_empty());
        assert_eq!(found.secrets["sealed"], [("k".to_owned(), b"secret".to_vec())].into());
        assert_eq!(found.services, [("X_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned())].into());
        let found = sources(&api, &container, &BTreeMap::new(), &Supply::default());
        let unread: Vec<String> = found.unread.keys().map(|(kind, name)| format!("{kind} {name}")).collect();
        assert_eq!(unread, ["ConfigMap elsewhere", "ConfigMap one", "ConfigMap two", "Secret s", "Secret sealed"]);
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
