//! What is wanted: a validated, defaulted pod with its identity.

use super::{is_from_api, update};
use crate::manifest::REVISION;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use std::fmt;
use std::sync::Arc;

/// Namespace and name: what a pod worker serialises on, so that two pods of one name never overlap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Full pod name (with the node's suffix for static pods).
    pub name: String,
}

impl Key {
    /// The key of a pod; missing parts read as empty.
    #[must_use]
    pub fn of(pod: &Pod) -> Key {
        Key {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `restartPolicy` of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Restart after every exit.
    Always,
    /// Restart after a failure.
    OnFailure,
    /// Never restart.
    Never,
}

impl RestartPolicy {
    /// By its name in a manifest; anything else is the default, Always.
    #[must_use]
    pub fn named(name: &str) -> RestartPolicy {
        match name {
            "Never" => RestartPolicy::Never,
            "OnFailure" => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }
}

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// Listed with the init containers, with `restartPolicy: Always`: starts in its turn, and stays.
    Sidecar,
    /// All others.
    App,
}

impl Role {
    /// Of a container listed with the init containers.
    #[must_use]
    pub fn of_init(container: &Container) -> Role {
        match container.restart_policy.as_deref() {
            Some("Always") => Role::Sidecar,
            _ => Role::Init,
        }
    }
}

/// A pod that passed `manifest::load`: every default is filled in, name, namespace and uid are set.
#[derive(Debug, Clone)]
pub struct Spec {
    pod: Arc<Pod>,
    revision: String,
}

impl Spec {
    /// Wrap a loaded pod; `None` when it lacks a spec, name, namespace or uid (then it is not from `manifest::load`).
    #[must_use]
    pub fn new(pod: impl Into<Arc<Pod>>) -> Option<Spec> {
        let pod = pod.into();
        let meta = &pod.metadata;
        let named = [&meta.name, &meta.namespace, &meta.uid].iter().all(|f| f.as_ref().is_some_and(|v| !v.is_empty()));
        if !named || pod.spec.is_none() {
            return None;
        }
        let given = meta.annotations.as_ref().and_then(|a| a.get(REVISION));
        let revision = match given {
            // Whatever its author calls a revision.
            _ if is_from_api(&pod) => update::revision(&pod),
            Some(given) => given.clone(),
            None => revision(&pod),
        };
        Some(Spec { pod, revision })
    }

    /// The pod as admitted.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Its `spec`.
    #[must_use]
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
        self.pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
    }

    /// Namespace and name.
    #[must_use]
    pub fn key(&self) -> Key {
        Key::of(&self.pod)
    }

    /// UID.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// A digest of all that matters of the pod: it tells an edit even under a pinned uid. Of a bound pod only what the node
    /// has to make room for, as all other edits leave it what it is (see [`Spec::is`]).
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether there is no difference to another pod that anybody on the machine could see.
    #[must_use]
    pub fn is(&self, other: &Spec) -> bool {
        let both = is_from_api(&self.pod) && is_from_api(&other.pod);
        self.uid() == other.uid()
            && self.revision == other.revision
            && (Arc::ptr_eq(&self.pod, &other.pod) || !both || update::same(&self.pod, &other.pod))
    }

    /// App containers in the order of the spec.
    #[must_use]
    pub fn containers(&self) -> &[Container] {
        &self.spec().containers
    }

    /// Init containers (regular ones and sidecars) in the order of the spec.
    #[must_use]
    pub fn init_containers(&self) -> &[Container] {
        self.spec().init_containers.as_deref().unwrap_or_default()
    }

    /// Init containers, then app containers.
    pub fn all_containers(&self) -> impl DoubleEndedIterator<Item = &Container> {
        self.init_containers().iter().chain(self.containers())
    }

    /// A container of any role by name.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|c| c.name == name)
    }

    /// What a container is to its pod; `None` when there is none of that name.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<Role> {
        if self.containers().iter().any(|c| c.name == name) {
            return Some(Role::App);
        }
        self.init_containers().iter().find(|c| c.name == name).map(Role::of_init)
    }

    /// Restart policy (default Always).
    #[must_use]
    pub fn restart_policy(&self) -> RestartPolicy {
        RestartPolicy::named(self.spec().restart_policy.as_deref().unwrap_or_default())
    }

    /// Grace period in seconds; as kubelet: at least 1.
    #[must_use]
    pub fn grace_seconds(&self) -> u64 {
        u64::try_from(self.spec().termination_grace_period_seconds.unwrap_or(30)).unwrap_or(1).max(1)
    }

    /// Whether the pod uses the node's network.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.spec().host_network == Some(true)
    }
}

/// For a pod that does not say its revision: FNV-1a 64 over the JSON of labels, annotations and spec. Annotations of the
/// node itself (`kubernetes.io/config.*`) do not count.
fn revision(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let own = |k: &String| !k.starts_with("kubernetes.io/config.");
    let annotations: Vec<_> =
        meta.annotations.iter().flatten().filter(|(k, _)| own(k)).map(|(k, v)| (k.as_str(), v.as_str())).collect();
    fnv(&serde_json::to_string(&(&meta.labels, annotations, &pod.spec)).unwrap_or_default())
}

/// FNV-1a, 64 bits.
pub(super) fn fnv(text: &str) -> String {
    let hash =
        text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}
