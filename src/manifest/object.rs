//! ConfigMaps and Secrets that a source defines for the static pods of their namespace.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Annotation of a Secret whose values are systemd credentials: `KEY=CREDENTIAL`, separated by commas. The values stay
/// where the service manager keeps them (sealed at rest with `LoadCredentialEncrypted=`) and are in no record of ours.
pub const CREDENTIALS: &str = "coracle.dev/credentials";

/// Kinds of objects beside Pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `ConfigMap`.
    ConfigMap,
    /// `Secret`.
    Secret,
}

impl ObjectKind {
    /// The `kind` of a document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectKind::ConfigMap => "ConfigMap",
            ObjectKind::Secret => "Secret",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Kind.
    pub kind: ObjectKind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// A valid object: name and namespace are set, a Secret's `stringData` is merged into `data`. Never shows values.
#[derive(Clone)]
pub enum Object {
    /// A ConfigMap.
    ConfigMap(Arc<ConfigMap>),
    /// A Secret.
    Secret(Arc<Secret>),
}

/// Of a hundred pods that refer to one large object none compares it with itself.
impl PartialEq for Object {
    fn eq(&self, other: &Object) -> bool {
        match (self, other) {
            (Object::ConfigMap(a), Object::ConfigMap(b)) => Arc::ptr_eq(a, b) || a == b,
            (Object::Secret(a), Object::Secret(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        }
    }
}

impl Object {
    /// Which object it is.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        let (kind, meta) = match self {
            Object::ConfigMap(map) => (ObjectKind::ConfigMap, &map.metadata),
            Object::Secret(secret) => (ObjectKind::Secret, &secret.metadata),
        };
        ObjectId {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    /// Whether its values may never change (`immutable: true`).
    #[must_use]
    pub fn is_immutable(&self) -> bool {
        match self {
            Object::ConfigMap(map) => map.immutable == Some(true),
            Object::Secret(secret) => secret.immutable == Some(true),
        }
    }

    /// Its values by key: text and binary ones of a ConfigMap.
    #[must_use]
    pub fn data(&self) -> BTreeMap<String, Vec<u8>> {
        match self {
            Object::ConfigMap(map) => {
                let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
                let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
                text.chain(binary).collect()
            }
            Object::Secret(secret) => {
                secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
            }
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({})", self.id())
    }
}

/// All objects that pods may refer to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects(BTreeMap<ObjectId, Object>);

impl Objects {
    /// Adds an object, in place of an earlier one of its name.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        self.0.insert(object.id(), object)
    }

    /// Takes an object out.
    pub fn remove(&mut self, id: &ObjectId) -> Option<Object> {
        self.0.remove(id)
    }

    /// The object of that name.
    #[must_use]
    pub fn get(&self, id: &ObjectId) -> Option<&Object> {
        self.0.get(id)
    }

    /// All, by kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Object> {
        self.0.values()
    }

    /// A ConfigMap.
    #[must_use]
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<&ConfigMap> {
        let id = ObjectId { kind: ObjectKind::ConfigMap, namespace: namespace.to_owned(), name: name.to_owned() };
        match self.0.get(&id) {
            Some(Object::ConfigMap(map)) => Some(map),
            _ => None,
        }
    }

    /// A Secret.
    #[must_use]
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Secret> {
        let id = ObjectId { kind: ObjectKind::Secret, namespace: namespace.to_owned(), name: name.to_owned() };
        match self.0.get(&id) {
            Some(Object::Secret(secret)) => Some(secret),
            _ => None,
        }
    }

    /// The objects that are not the same in `other`: changed, new or gone.
    #[must_use]
    pub fn changed(&self, other: &Objects) -> BTreeSet<ObjectId> {
        let ids = self.0.keys().chain(other.0.keys());
        ids.filter(|id| self.0.get(*id) != other.0.get(*id)).cloned().collect()
    }
}

impl FromIterator<Object> for Objects {
    fn from_iter<T: IntoIterator<Item = Object>>(objects: T) -> Objects {
        let mut all = Objects::default();
        for object in objects {
            all.insert(object);
        }
        all
    }
}

/// How a field of a pod refers to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// One key is the value of a variable (`configMapKeyRef`, `secretKeyRef`).
    Variable,
    /// Its keys are variables (`envFrom`).
    Variables,
    /// Its keys are files of a volume.
    Volume,
    /// Its keys are files of a projected volume.
    Projection,
}

/// A field of a pod that refers to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Path of the field (`spec.containers[0].env[1].valueFrom.secretKeyRef`).
    pub field: String,
    /// What the field makes of the object.
    pub usage: Use,
    /// What it refers to, in the pod's namespace.
    pub object: ObjectId,
    /// Keys that it needs, in the order of the field's items; none: the object as a whole.
    pub keys: Vec<String>,
    /// Whether the pod may start without it.
    pub optional: bool,
}

impl Reference {
    /// Path of the field that names the object.
    #[must_use]
    pub fn name_field(&self) -> String {
        match (self.usage, self.object.kind) {
            (Use::Volume, ObjectKind::Secret) => format!("{}.secretName", self.field),
            _ => format!("{}.name", self.field),
        }
    }

    /// Path of the field that names the key of this number in `keys`.
    #[must_use]
    pub fn key_field(&self, index: usize) -> String {
        match self.usage {
            Use::Variable | Use::Variables => format!("{}.key", self.field),
            Use::Volume | Use::Projection => format!("{}.items[{index}].key", self.field),
        }
    }
}
