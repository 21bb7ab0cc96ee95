//! Pull secrets of pods: Secrets of the API server, opened. A static pod cannot refer to any.

use crate::manifest::Object;
use crate::pod::pull::Secret;
use crate::pod::supply::{self, Answer, Supply};
use k8s_openapi::api::core::v1::{Pod, Secret as ApiSecret};
use sha2::{Digest, Sha256};
use std::fmt;

/// A pull secret of a pod, opened.
#[derive(Clone, PartialEq, Eq)]
pub struct PodSecret {
    /// What is recorded of it.
    pub secret: Secret,
    /// `.dockerconfigjson` or `.dockercfg`.
    pub content: Vec<u8>,
}

impl PodSecret {
    /// Whether two pods with these may share a pull, what it brings and how it fails. The order counts: what is tried first
    /// decides whose the image is.
    pub fn are_same(these: &[PodSecret], those: &[PodSecret]) -> bool {
        these.len() == those.len() && these.iter().zip(those).all(|(a, b)| a.secret == b.secret)
    }
}

/// Never shows what is secret.
impl fmt::Debug for PodSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodSecret({})", self.secret)
    }
}

/// The pull secrets of a pod, and the names of those that are not there, or are none.
pub fn of(pod: &Pod, supply: Option<&Supply>) -> (Vec<PodSecret>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    if !crate::pod::is_from_api(pod) {
        return (found, missing);
    }
    for id in supply::pull_secrets(pod) {
        match supply.map(|supply| supply.find(&id)) {
            Some(Answer::There(Object::Secret(secret))) if content(secret).is_some() => found.extend(open(secret)),
            _ => missing.push(id.name),
        }
    }
    (found, missing)
}

fn open(secret: &ApiSecret) -> Option<PodSecret> {
    let content = content(secret)?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    let secret = Secret {
        namespace: text(&secret.metadata.namespace),
        name: text(&secret.metadata.name),
        uid: text(&secret.metadata.uid),
        credential_hash: format!("sha256:{digest}"),
    };
    Some(PodSecret { secret, content: content.to_vec() })
}

/// As kubelet: by the type, and what is of another type is no pull secret.
fn content(secret: &ApiSecret) -> Option<&[u8]> {
    let key = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => ".dockerconfigjson",
        Some("kubernetes.io/dockercfg") => ".dockercfg",
        _ => return None,
    };
    secret.data.as_ref()?.get(key).map(|value| value.0.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Objects, marked};
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn secrets_are_opened_by_their_type() {
        let secret = |name: &str, kind: &str, key: &str| {
            let meta = json!({"name": name, "namespace": "n", "uid": format!("u-{name}")});
            let secret = json!({"metadata": meta, "type": kind, "data": {key: "e30="}});
            Object::Secret(Arc::new(serde_json::from_value(secret).unwrap()))
        };
        let objects: Objects = [
            secret("new", "kubernetes.io/dockerconfigjson", ".dockerconfigjson"),
            secret("old", "kubernetes.io/dockercfg", ".dockercfg"),
            secret("opaque", "Opaque", ".dockerconfigjson"),
            secret("empty", "kubernetes.io/dockerconfigjson", "else"),
        ]
        .into_iter()
        .collect();
        let names = ["new", "opaque", "old", "gone", "empty"].map(|name| json!({"name": name}));
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [], "imagePullSecrets": names}}))
        .unwrap();
        let supply = Supply { objects: Arc::new(objects), ..Supply::default() };
        let (found, missing) = of(&marked(&pod), Some(&supply));
        let names: Vec<String> = found.iter().map(|own| own.secret.to_string()).collect();
        assert_eq!(names, ["n/new", "n/old"]);
        assert_eq!(found[0].content, b"{}");
        assert_eq!(found[0].secret.uid, "u-new");
        let digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(found[0].secret.credential_hash, format!("sha256:{digest}"));
        assert_eq!(missing, ["opaque", "gone", "empty"]);
        assert!(!format!("{found:?}").contains("123"), "{found:?}");
        assert_eq!(of(&pod, Some(&supply)), (Vec::new(), Vec::new()), "a static pod has none");
        assert_eq!(of(&marked(&pod), None).1.len(), 5);

        assert!(PodSecret::are_same(&found, &found.clone()));
        assert!(!PodSecret::are_same(&found, &found[..1]));
        assert!(!PodSecret::are_same(&[], &found[..1]));
        let mut changed = found.clone();
        changed[0].secret.credential_hash = "sha256:00".into();
        assert!(!PodSecret::are_same(&found, &changed));
    }
}
