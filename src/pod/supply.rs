//! What a pod is made from besides its own document: objects, tokens and services.

use crate::manifest::{self, Object, ObjectId, ObjectKind, Objects};
use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// As one immutable value, of one of two kinds: of what the node's own sources define, for static pods; of what the API
/// server gave, for pods that it bound to this node. Neither ever sees what is in the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Supply {
    /// ConfigMaps and Secrets.
    pub objects: Arc<Objects>,
    /// Whether there are no others: nobody has to be asked about what is not among them.
    pub whole: bool,
    /// Objects that the API server does not have.
    pub absent: BTreeSet<ObjectId>,
    /// Why the API server does not give an object (`forbidden: …`).
    pub refused: BTreeMap<ObjectId, String>,
    /// Tokens of service accounts.
    pub tokens: BTreeMap<TokenId, Token>,
    /// Why there is no token.
    pub unissued: BTreeMap<TokenId, String>,
    /// The cluster's services that have an address of their own; `None` before they were read once: pods of the cluster
    /// wait for that (as kubelet), static pods have no such variables.
    pub services: Option<Arc<Vec<Service>>>,
}

/// What there is of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer<'a> {
    /// Itself.
    There(&'a Object),
    /// There is none.
    NotThere,
    /// It is not known whether there is one, or what is in it: not even who could do without it starts.
    Unread(String),
}

impl Supply {
    /// The object, or what is known of it.
    #[must_use]
    pub fn find(&self, id: &ObjectId) -> Answer<'_> {
        if let Some(object) = self.objects.get(id) {
            return Answer::There(object);
        }
        if self.whole || self.absent.contains(id) {
            return Answer::NotThere;
        }
        let why = self.refused.get(id).cloned();
        // As kubelet.
        Answer::Unread(why.unwrap_or_else(|| {
            format!("failed to sync {} cache: timed out waiting for the condition", id.kind.as_str().to_lowercase())
        }))
    }

    /// The token, or why there is none.
    ///
    /// # Errors
    /// Why, as kubelet.
    pub fn token(&self, id: &TokenId) -> Result<&Token, String> {
        let why = || self.unissued.get(id).cloned().unwrap_or_else(|| "it was not issued yet".to_owned());
        self.tokens.get(id).ok_or_else(|| format!("failed to fetch token: {}", why()))
    }

    /// Whether everything that the pod refers to was asked about, whatever the answer was.
    #[must_use]
    pub fn is_settled(&self, pod: &Pod) -> bool {
        let asked =
            |id: &ObjectId| self.objects.get(id).is_some() || self.absent.contains(id) || self.refused.contains_key(id);
        let issued = |id: &TokenId| self.tokens.contains_key(id) || self.unissued.contains_key(id);
        self.whole || (self.services.is_some() && objects(pod).iter().all(asked) && tokens(pod).iter().all(issued))
    }

    /// Whether something that `pod` is made from is not the same in `other`. Of the services only whether they are known:
    /// a container that runs keeps the variables it was started with.
    #[must_use]
    pub fn differs(&self, other: &Supply, pod: &Pod) -> bool {
        let object = |id: &ObjectId| {
            self.objects.get(id) != other.objects.get(id)
                || self.absent.contains(id) != other.absent.contains(id)
                || self.refused.get(id) != other.refused.get(id)
        };
        let token = |id: &TokenId| {
            self.tokens.get(id) != other.tokens.get(id) || self.unissued.get(id) != other.unissued.get(id)
        };
        self.services.is_some() != other.services.is_some()
            || objects(pod).iter().any(object)
            || tokens(pod).iter().any(token)
    }
}

/// A service that has an address of its own: what of it becomes variables.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Where it is.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// `spec.clusterIP`.
    pub cluster_ip: String,
    /// In the service's order.
    pub ports: Vec<ServicePort>,
}

/// A port of a [`Service`].
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServicePort {
    /// May be empty for a service's only one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its number.
    pub port: i32,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// Which token: one of a pod's projected sources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenId {
    /// UID of the pod that it is bound to.
    pub pod: String,
    /// For whom it is; empty: for the API server.
    pub audience: String,
    /// How long it should be good, in seconds.
    pub expiration_seconds: i64,
}

impl TokenId {
    /// The token of a projected source of the pod of this UID.
    #[must_use]
    pub fn of(pod: &str, source: &ServiceAccountTokenProjection) -> TokenId {
        TokenId {
            pod: pod.to_owned(),
            audience: source.audience.clone().unwrap_or_default(),
            // As the API server's default.
            expiration_seconds: source.expiration_seconds.unwrap_or(3600),
        }
    }
}

/// A token. Never shows what it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Whether the API server bound the pod to this node; all others are static.
#[must_use]
pub fn is_from_api(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|all| all.get("kubernetes.io/config.source"));
    source.is_some_and(|source| source == "api")
}

/// The objects that a pod of the cluster is made from, those with which its images are pulled among them.
#[must_use]
pub fn objects(pod: &Pod) -> BTreeSet<ObjectId> {
    let mut all: BTreeSet<ObjectId> = manifest::references(pod).into_iter().map(|reference| reference.object).collect();
    all.extend(pull_secrets(pod));
    // The API server lets some references have no name, which is nobody's.
    all.retain(|id| !id.name.is_empty());
    all
}

/// The Secrets with which the pod's images are pulled, in the pod's order.
#[must_use]
pub fn pull_secrets(pod: &Pod) -> Vec<ObjectId> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let references = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let id = |name: &String| ObjectId { kind: ObjectKind::Secret, namespace: namespace.clone(), name: name.clone() };
    let mut all: Vec<ObjectId> = Vec::new();
    for id in references.map(|reference| id(&reference.name)) {
        if !id.name.is_empty() && !all.contains(&id) {
            all.push(id);
        }
    }
    all
}

/// The tokens that a pod's volumes are made from.
#[must_use]
pub fn tokens(pod: &Pod) -> Vec<TokenId> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes.filter_map(|volume| volume.projected.as_ref()).flat_map(|p| p.sources.iter().flatten());
    let mut all: Vec<TokenId> = sources
        .filter_map(|source| source.service_account_token.as_ref())
        .map(|token| TokenId::of(&uid, token))
        .collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        let projected = json!([
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"serviceAccountToken": {"path": "vault", "audience": "vault"}},
            {"configMap": {"name": "root"}}]);
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {
                "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s"}}, {"configMapRef": {"name": ""}}]}],
                "imagePullSecrets": [{"name": "pull"}, {"name": "pull"}, {"name": ""}],
                "volumes": [{"name": "v", "projected": {"sources": projected}}],
            },
        }))
        .expect("pod")
    }

    fn map(name: &str, value: &str) -> Object {
        let map = json!({"metadata": {"name": name, "namespace": "n"}, "data": {"k": value}});
        Object::ConfigMap(Arc::new(serde_json::from_value(map).expect("ConfigMap")))
    }

    #[test]
    fn a_pod_refers_to_these() {
        let all: Vec<String> = objects(&pod()).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["ConfigMap n/root", "Secret n/pull", "Secret n/s"]);
        let id = |audience: &str, expiration_seconds| TokenId {
            pod: "u".into(),
            audience: audience.into(),
            expiration_seconds,
        };
        assert_eq!(tokens(&pod()), [id("", 3607), id("vault", 3600)]);
    }

    #[test]
    fn a_pod_is_settled_when_everything_was_asked_about() {
        let mut supply = Supply::default();
        let mut before = supply.clone();
        let mut step = |supply: &Supply| {
            let differs = supply.differs(&before, &pod());
            before = supply.clone();
            (supply.is_settled(&pod()), differs)
        };
        supply.services = Some(Arc::default());
        assert_eq!(step(&supply), (false, true));
        supply.objects = Arc::new([map("root", "1"), map("other", "1")].into_iter().collect());
        assert_eq!(step(&supply), (false, true));
        let secret = |name: &str| ObjectId { kind: ObjectKind::Secret, namespace: "n".into(), name: name.into() };
        supply.absent.insert(secret("s"));
        supply.refused.insert(secret("pull"), "no".into());
        assert_eq!(step(&supply), (false, true));
        let ids = tokens(&pod());
        supply.tokens.insert(ids[0].clone(), Token("secret".into()));
        assert_eq!(step(&supply), (false, true));
        supply.unissued.insert(ids[1].clone(), "no".into());
        assert_eq!(step(&supply), (true, true));
        supply.objects = Arc::new([map("root", "1"), map("other", "2")].into_iter().collect());
        supply.services = Some(Arc::new(vec![Service::default()]));
        assert_eq!(step(&supply), (true, false), "nothing of this pod");
        assert_eq!(supply.find(&secret("s")), Answer::NotThere);
        assert_eq!(supply.find(&secret("pull")), Answer::Unread("no".into()));
        assert!(
            matches!(supply.find(&secret("unknown")), Answer::Unread(why) if why.starts_with("failed to sync secret"))
        );
        assert_eq!(supply.token(&ids[0]), Ok(&Token("secret".into())));
        assert_eq!(supply.token(&ids[1]), Err("failed to fetch token: no".into()));
        assert!(!format!("{supply:?}").contains("\"secret\""), "{supply:?}");
    }
}
