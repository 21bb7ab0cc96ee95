//! Which files a volume of the projected family holds. Pure: every source becomes part of one [`Payload`].

use super::downward;
use super::payload::{File, Payload};
use super::{Error, Given, Unavailable};
use crate::manifest::{Object, ObjectId, ObjectKind};
use crate::pod::TokenId;
use k8s_openapi::api::core::v1::{KeyToPath, Pod, ServiceAccountTokenProjection, Volume};
use std::collections::BTreeSet;

/// Where kubelet keeps volumes of a kind that is made from objects, below `volumes/`; `None` for other kinds.
pub(super) fn plugin(volume: &Volume) -> Option<&'static str> {
    match volume {
        Volume { downward_api: Some(_), config_map: None, secret: None, projected: None, .. } => {
            Some("kubernetes.io~downward-api")
        }
        Volume { downward_api: None, config_map: Some(_), secret: None, projected: None, .. } => {
            Some("kubernetes.io~configmap")
        }
        Volume { downward_api: None, config_map: None, secret: Some(_), projected: None, .. } => {
            Some("kubernetes.io~secret")
        }
        Volume { downward_api: None, config_map: None, secret: None, projected: Some(_), .. } => {
            Some("kubernetes.io~projected")
        }
        _ => None,
    }
}

/// The ConfigMaps and Secrets that the volumes of `pod` are made from, there or not.
#[must_use]
pub fn objects(pod: &Pod) -> BTreeSet<ObjectId> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.flat_map(parts).filter_map(|part| part.object(pod)).collect()
}

/// One source of a volume: a volume of a kind of its own has one, a projected one has any number.
enum Part<'a> {
    Downward(&'a [k8s_openapi::api::core::v1::DownwardAPIVolumeFile]),
    Object { kind: ObjectKind, name: &'a str, items: &'a [KeyToPath], optional: bool },
    Token(&'a ServiceAccountTokenProjection),
    Unknown,
}

impl Part<'_> {
    fn object(&self, pod: &Pod) -> Option<ObjectId> {
        let Part::Object { kind, name, .. } = self else { return None };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        Some(ObjectId { kind: *kind, namespace, name: (*name).to_owned() })
    }
}

fn parts(volume: &Volume) -> Vec<Part<'_>> {
    use ObjectKind::{ConfigMap, Secret};
    fn object<'a>(
        kind: ObjectKind,
        name: &'a str,
        items: Option<&'a Vec<KeyToPath>>,
        optional: Option<bool>,
    ) -> Part<'a> {
        let items = items.map(Vec::as_slice).unwrap_or_default();
        Part::Object { kind, name, items, optional: optional == Some(true) }
    }
    let mut parts = Vec::new();
    if let Some(source) = &volume.downward_api {
        parts.push(Part::Downward(source.items.as_deref().unwrap_or_default()));
    }
    if let Some(source) = &volume.config_map {
        parts.push(object(ConfigMap, &source.name, source.items.as_ref(), source.optional));
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        parts.push(object(Secret, name, source.items.as_ref(), source.optional));
    }
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        parts.push(match (&source.downward_api, &source.config_map, &source.secret, &source.service_account_token) {
            (Some(api), None, None, None) => Part::Downward(api.items.as_deref().unwrap_or_default()),
            (None, Some(map), None, None) => object(ConfigMap, &map.name, map.items.as_ref(), map.optional),
            (None, None, Some(secret), None) => object(Secret, &secret.name, secret.items.as_ref(), secret.optional),
            (None, None, None, Some(token)) => Part::Token(token),
            _ => Part::Unknown,
        });
    }
    parts
}

/// The content of `volume`, which has a [`plugin`]. Later sources override earlier ones.
///
/// # Errors
/// [`Error::Missing`], [`Error::Field`], [`Error::Resources`], [`Error::Payload`]; [`Error::Unsupported`] for a source that
/// this node does not have.
pub(super) fn payload(pod: &Pod, volume: &Volume, given: &Given) -> Result<Payload, Error> {
    let modes = [
        volume.downward_api.as_ref().and_then(|source| source.default_mode),
        volume.config_map.as_ref().and_then(|source| source.default_mode),
        volume.secret.as_ref().and_then(|source| source.default_mode),
        volume.projected.as_ref().and_then(|source| source.default_mode),
    ];
    let mode = modes.into_iter().flatten().next().unwrap_or(downward::DEFAULT_MODE);
    let mut payload = Payload::default();
    for part in parts(volume) {
        let missing = |what: String| Error::Missing { volume: volume.name.clone(), what };
        match &part {
            Part::Downward(items) => downward::add(&mut payload, pod, items, mode, &given.node)?,
            Part::Object { kind, name, items, optional } => {
                let id = part.object(pod);
                match id.as_ref().map(|id| given.find(id)) {
                    Some(Ok(Some(object))) => add(&mut payload, object, items, mode, *optional).map_err(missing)??,
                    Some(Err(Unavailable { why, for_all: true })) => return Err(missing(why.to_owned())),
                    // As kubelet: what is optional may be missing as a whole, or in part.
                    _ if *optional => {}
                    Some(Err(Unavailable { why, .. })) => return Err(missing(why.to_owned())),
                    _ => return Err(missing(format!("{} {name:?} not found", kind.as_str().to_lowercase()))),
                }
            }
            Part::Token(source) => {
                let id = TokenId::of(pod.metadata.uid.as_deref().unwrap_or_default(), source);
                let token = match given.tokens.get(&id) {
                    Some(Ok(token)) => token,
                    Some(Err(why)) => return Err(missing(why.clone())),
                    None => return Err(missing("failed to fetch token: it was not asked for".to_owned())),
                };
                let (mode, owner) = access(pod, mode);
                payload.add(&source.path, File { bytes: token.0.clone().into_bytes(), mode, owner })?;
            }
            Part::Unknown => {
                let what =
                    "a projected source other than configMap, secret, downwardAPI or serviceAccountToken".to_owned();
                return Err(Error::Unsupported { name: volume.name.clone(), what });
            }
        }
    }
    Ok(payload)
}

/// Mode and owner of a token's file (as kubelet, `projected.go`): a token that can be somebody's is nobody else's. With an
/// fsGroup the writer adds what the group may do.
fn access(pod: &Pod, default_mode: i32) -> (u32, Option<u32>) {
    let spec = pod.spec.as_ref();
    let of_pod = spec.and_then(|spec| spec.security_context.as_ref());
    let containers = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    // Whose it is where all containers are one user's; one of which nobody knows leaves it root's.
    let mut users = containers.map(|container| {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        own.or(of_pod.and_then(|context| context.run_as_user))
    });
    let first = users.next().flatten();
    let owner = first.filter(|_| users.all(|user| user == first)).and_then(|user| u32::try_from(user).ok());
    let grouped = of_pod.is_some_and(|context| context.fs_group.is_some());
    let mode = u32::try_from(default_mode).unwrap_or_default() & 0o777;
    (if owner.is_some() || grouped { 0o600 } else { mode }, owner)
}

/// Adds the values of `object`: those that `items` name, or all. The outer error is a key that is not there, in kubelet's
/// words.
fn add(
    payload: &mut Payload,
    object: &Object,
    items: &[KeyToPath],
    default_mode: i32,
    optional: bool,
) -> Result<Result<(), Error>, String> {
    let file =
        |bytes: Vec<u8>, mode: i32| File { bytes, mode: u32::try_from(mode).unwrap_or_default() & 0o777, owner: None };
    let mut put = |path: &str, bytes: Vec<u8>, mode: i32| payload.add(path, file(bytes, mode)).map_err(Error::from);
    let mut values = object.data();
    if items.is_empty() {
        return Ok(values.into_iter().try_for_each(|(key, bytes)| put(&key, bytes, default_mode)));
    }
    // One key may be at two paths: only its last use may take the value.
    let mut left: Vec<&KeyToPath> = items.iter().rev().collect();
    while let Some(item) = left.pop() {
        let again = left.iter().any(|other| other.key == item.key);
        let found = if again { values.get(&item.key).cloned() } else { values.remove(&item.key) };
        match found {
            Some(bytes) => {
                if let Err(error) = put(&item.path, bytes, item.mode.unwrap_or(default_mode)) {
                    return Ok(Err(error));
                }
            }
            None if optional => {}
            None => {
                return Err(match object {
                    Object::ConfigMap(_) => format!("configmap references non-existent config key: {}", item.key),
                    Object::Secret(_) => format!("references non-existent secret key: {}", item.key),
                });
            }
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Objects;
    use crate::pod::Token;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn given() -> Given {
        let map = |name: &str, data: Value, binary: Value| {
            let meta = json!({"name": name, "namespace": "d"});
            let map = json!({"metadata": meta, "data": data, "binaryData": binary});
            Object::ConfigMap(Arc::new(serde_json::from_value(map).expect("ConfigMap")))
        };
        let secret = json!({"metadata": {"name": "s", "namespace": "d"}, "data": {"a": "czE=", "b": "/w=="}});
        let objects: Objects = [
            map("m", json!({"a": "1", "b": "2"}), json!({"c": "AAE="})),
            map("empty", json!({}), json!({})),
            Object::Secret(Arc::new(serde_json::from_value(secret).expect("Secret"))),
        ]
        .into_iter()
        .collect();
        let sealed = ObjectId { kind: ObjectKind::Secret, namespace: "d".into(), name: "sealed".into() };
        let unread = ObjectId { kind: ObjectKind::ConfigMap, namespace: "d".into(), name: "unread".into() };
        let token = |audience: &str| TokenId { pod: "u".into(), audience: audience.into(), expiration_seconds: 3607 };
        Given {
            objects,
            unavailable: [(sealed, "no such credential".to_owned())].into(),
            unread: [(unread, "forbidden".to_owned())].into(),
            tokens: [
                (token(""), Ok(Token("t0".into()))),
                (token("vault"), Ok(Token("t1".into()))),
                (token("none"), Err("failed to fetch token: no".into())),
            ]
            .into(),
            ..Given::default()
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}})).expect("pod")
    }

    /// `path mode content` of each file, or the error.
    fn files(volume: Value) -> String {
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume: Volume = serde_json::from_value(volume).expect("volume");
        assert!(plugin(&volume).is_some());
        match payload(&pod(), &volume, &given()) {
            Ok(payload) => {
                let line = |(path, file): (&str, &File)| format!("{path} {:o} {:?}", file.mode, file.bytes);
                payload.files().map(line).collect::<Vec<_>>().join("\n")
            }
            Err(error) => crate::causes::chain(&error),
        }
    }

    #[test]
    fn all_keys_or_those_that_are_named() {
        assert_eq!(files(json!({"configMap": {"name": "m"}})), "a 644 [49]\nb 644 [50]\nc 644 [0, 1]");
        assert_eq!(files(json!({"configMap": {"name": "m", "items": []}})), "a 644 [49]\nb 644 [50]\nc 644 [0, 1]");
        assert_eq!(files(json!({"configMap": {"name": "empty"}})), "");
        assert_eq!(files(json!({"secret": {"secretName": "s", "defaultMode": 256}})), "a 400 [115, 49]\nb 400 [255]");
        let items = json!([
            {"key": "c", "path": "deep/c"}, {"key": "a", "path": "x", "mode": 288}, {"key": "a", "path": "y"}
        ]);
        assert_eq!(
            files(json!({"configMap": {"name": "m", "items": items, "defaultMode": 384}})),
            "deep/c 600 [0, 1]\nx 440 [49]\ny 600 [49]"
        );
    }

    #[test]
    fn what_is_missing_is_told_in_kubelets_words() {
        let item = json!([{"key": "k", "path": "k"}]);
        for (volume, want) in [
            (json!({"configMap": {"name": "x"}}), "configmap \"x\" not found"),
            (json!({"secret": {"secretName": "x"}}), "secret \"x\" not found"),
            (json!({"configMap": {"name": "s"}}), "configmap \"s\" not found"),
            (json!({"secret": {"secretName": "sealed"}}), "no such credential"),
            (json!({"configMap": {"name": "m", "items": item}}), "configmap references non-existent config key: k"),
            (json!({"secret": {"secretName": "s", "items": item}}), "references non-existent secret key: k"),
            (
                json!({"projected": {"sources": [{"configMap": {"name": "m", "items": item}}]}}),
                "configmap references non-existent config key: k",
            ),
            (json!({"projected": {"sources": [{"secret": {"name": "x"}}]}}), "secret \"x\" not found"),
        ] {
            assert_eq!(files(volume.clone()), format!("volume \"v\": {want}"), "{volume}");
            let mut optional = volume.clone();
            let source = match optional.get("projected").is_some() {
                true => &mut optional["projected"]["sources"][0],
                false => &mut optional,
            };
            for kind in ["configMap", "secret"] {
                if let Some(source) = source.get_mut(kind) {
                    source["optional"] = json!(true);
                }
            }
            assert_eq!(files(optional.clone()), "", "{optional}");
        }
        let half = json!([{"key": "k", "path": "k"}, {"key": "a", "path": "a"}]);
        assert_eq!(files(json!({"configMap": {"name": "m", "items": half, "optional": true}})), "a 644 [49]");
        let out = json!([{"key": "a", "path": "../a"}]);
        assert_eq!(
            files(json!({"configMap": {"name": "m", "items": out}})),
            "invalid path \"../a\": must not contain '..'"
        );
    }

    #[test]
    fn sources_are_joined_and_the_later_one_counts() {
        let downward = json!({"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]});
        let sources = json!([
            {"configMap": {"name": "m"}},
            {"secret": {"name": "s", "items": [{"key": "a", "path": "a", "mode": 256}]}},
            {"downwardAPI": downward},
        ]);
        assert_eq!(
            files(json!({"projected": {"defaultMode": 416, "sources": sources}})),
            "a 400 [115, 49]\nb 640 [50]\nc 640 [0, 1]\nname 640 [112]"
        );
    }

    #[test]
    fn what_is_not_known_stops_also_who_could_do_without() {
        for optional in [false, true] {
            let source = json!({"configMap": {"name": "unread", "optional": optional}});
            assert_eq!(files(source), "volume \"v\": forbidden");
        }
    }

    #[test]
    fn tokens_stand_beside_other_sources() {
        let token = |audience: &str| json!({"serviceAccountToken": {"path": "token", "audience": audience, "expirationSeconds": 3607}});
        let sources = json!([token(""), {"configMap": {"name": "m", "items": [{"key": "a", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]);
        assert_eq!(
            files(json!({"projected": {"defaultMode": 420, "sources": sources}})),
            "ca.crt 644 [49]\nnamespace 644 [100]\ntoken 644 [116, 48]"
        );
        assert_eq!(files(json!({"projected": {"sources": [token("vault")]}})), "token 644 [116, 49]");
        let none = "volume \"v\": failed to fetch token: ";
        assert_eq!(files(json!({"projected": {"sources": [token("none")]}})), format!("{none}no"));
        assert_eq!(files(json!({"projected": {"sources": [token("other")]}})), format!("{none}it was not asked for"));
    }

    #[test]
    fn a_token_is_for_the_user_of_all_containers_or_for_the_group() {
        let of = |spec: Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("pod");
            access(&pod, 0o644)
        };
        let user = |id: i64| json!({"name": "c", "securityContext": {"runAsUser": id}});
        assert_eq!(of(json!({"containers": [{"name": "c"}]})), (0o644, None));
        assert_eq!(of(json!({"containers": [user(7), user(7)]})), (0o600, Some(7)));
        assert_eq!(of(json!({"containers": [user(7), user(8)]})), (0o644, None));
        assert_eq!(of(json!({"containers": [user(7), {"name": "c"}]})), (0o644, None));
        assert_eq!(of(json!({"containers": [user(7)], "initContainers": [user(8)]})), (0o644, None));
        assert_eq!(
            of(json!({"securityContext": {"runAsUser": 7}, "containers": [{"name": "c"}, user(7)]})),
            (0o600, Some(7))
        );
        assert_eq!(of(json!({"securityContext": {"runAsUser": 7}, "containers": [user(8)]})), (0o600, Some(8)));
        assert_eq!(of(json!({"securityContext": {"fsGroup": 9}, "containers": [{"name": "c"}]})), (0o600, None));
    }

    #[test]
    fn what_volumes_are_made_from() {
        let volumes = json!([
            {"name": "a", "configMap": {"name": "m"}}, {"name": "b", "secret": {"secretName": "s", "optional": true}},
            {"name": "c", "projected": {"sources": [{"configMap": {"name": "x"}}, {"secret": {"name": "y"}}]}},
            {"name": "d", "emptyDir": {}}, {"name": "e", "downwardAPI": {"items": []}},
        ]);
        let mut pod = pod();
        pod.spec = Some(serde_json::from_value(json!({"containers": [], "volumes": volumes})).expect("spec"));
        let all: Vec<String> = objects(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["ConfigMap d/m", "ConfigMap d/x", "Secret d/s", "Secret d/y"]);
    }
}
