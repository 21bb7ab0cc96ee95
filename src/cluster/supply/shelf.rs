//! What bound pods are made from, on disk: a start without an API server goes by it. Secrets and tokens are sealed where
//! there is a key; the names of records are not.

use super::desk::{Held, Update};
use super::schedule::Life;
use super::seal::{self, Key};
use super::wanted::Wanted;
use crate::causes::chain;
use crate::cluster::record::Records;
use crate::manifest::{Object, ObjectId, ObjectKind};
use crate::pod::supply::{Service, Supply, Token, TokenId};
use crate::sys::fs;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the service manager's credential that is the key, where no file is configured.
const CREDENTIAL: &str = "coracle-seal";
/// Longest file of a key that is read: a longer one is none.
const LARGEST_KEY: u64 = 4096;
/// Name of the record of all services.
const SERVICES: &str = "services";

/// Records of what pods are made from; its calls wait for the disk.
#[derive(Debug)]
pub struct Shelf {
    records: Records,
    key: Sealing,
}

/// How secrets are written.
#[derive(Debug)]
enum Sealing {
    /// As they are: nobody has asked for more.
    Open,
    /// With this key.
    With(Box<Key>),
    /// Not at all: there should be a key, but it cannot be used.
    Never,
}

/// What was kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// `None`: nothing.
    pub supply: Option<Supply>,
    /// Tokens, and how long they are good.
    pub held: BTreeMap<TokenId, Held>,
    /// Of all records.
    pub names: BTreeSet<String>,
}

/// The value of a record. What it is of is in it, too.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Entry {
    /// Without an object: the API server has none.
    ConfigMap {
        namespace: String,
        name: String,
        object: Option<Box<ConfigMap>>,
    },
    Secret {
        namespace: String,
        name: String,
        object: Option<Box<Secret>>,
    },
    Token {
        id: TokenId,
        token: Token,
        life: Life,
    },
    Services {
        services: Vec<Service>,
    },
    /// Another entry as JSON, sealed under the name of its record, in Base64.
    Sealed {
        sealed: String,
    },
}

/// The name of an object's record.
pub fn name_of(id: &ObjectId) -> String {
    format!("{}.{}.{}", id.kind.as_str().to_lowercase(), id.namespace, id.name)
}

/// The name of a token's record.
pub fn name_of_token(id: &TokenId) -> String {
    format!("token.{}.{}.{}", id.pod, id.expiration_seconds, id.audience)
}

/// Of these names of records those that nobody wants.
pub fn unwanted(names: BTreeSet<String>, wanted: &Wanted) -> Vec<String> {
    let mut all: BTreeSet<String> = wanted.objects.iter().map(name_of).collect();
    all.extend(wanted.tokens.keys().map(name_of_token));
    all.insert(SERVICES.to_owned());
    names.into_iter().filter(|name| !all.contains(name)).collect()
}

impl Shelf {
    /// The records in `folder`, and what they hold. The key is in `key_file`; without one, the service manager may have given
    /// one.
    pub fn open(folder: PathBuf, key_file: Option<&Path>) -> (Shelf, Option<Supply>) {
        let of_manager = || {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
            directory.map(|path| path.join(CREDENTIAL)).filter(|path| path.is_absolute() && path.exists())
        };
        let key = match key_file.map(Path::to_owned).or_else(of_manager) {
            None => Sealing::Open,
            Some(path) => match read_key(&path) {
                Ok(key) => Sealing::With(Box::new(key)),
                Err(why) => {
                    tracing::warn!(
                        key = %path.display(), why,
                        "the sealing key cannot be used: Secrets and tokens of the cluster are not kept for times without it"
                    );
                    Sealing::Never
                }
            },
        };
        let mut shelf = Shelf { records: Records::new(folder.clone()), key };
        let (kept, closed) = shelf.read();
        if let Some(why) = closed {
            let (folder, records) = (folder.display(), closed_records(&kept));
            tracing::warn!(
                %folder, records, why,
                "sealed Secrets and tokens of the cluster cannot be opened, as if there were none"
            );
            if matches!(shelf.key, Sealing::Open) {
                tracing::warn!(
                    %folder,
                    "no sealing key is configured any more: Secrets and tokens are not kept until there is one, or the folder \
                     is removed"
                );
                shelf.key = Sealing::Never;
            }
        }
        shelf.seal_open_ones(&kept);
        (shelf, kept.supply)
    }

    /// All that was kept.
    pub fn load(&self) -> Kept {
        self.read().0
    }

    /// And why some of it cannot be opened.
    fn read(&self) -> (Kept, Option<String>) {
        let (mut kept, mut closed) = (Kept::default(), None);
        let mut supply = Supply::default();
        for (name, entry) in self.records.load_all::<Entry>().values {
            let entry = match entry {
                Entry::Sealed { sealed } => self.unseal(&name, &sealed),
                open => Ok(open),
            };
            kept.names.insert(name);
            let update = match entry {
                Ok(entry) => entry.into_update(),
                Err(why) => {
                    closed.get_or_insert(why);
                    continue;
                }
            };
            if let Update::Token(id, Ok(held)) = &update {
                kept.held.insert(id.clone(), held.clone());
            }
            super::desk::apply(&mut supply, update);
        }
        kept.supply = Some(supply).filter(|_| !kept.names.is_empty());
        (kept, closed)
    }

    fn unseal(&self, name: &str, sealed: &str) -> Result<Entry, String> {
        let Sealing::With(key) = &self.key else { return Err("there is no key".to_owned()) };
        let sealed = STANDARD.decode(sealed).map_err(|_| seal::Error::Form.to_string())?;
        let content = key.open(name, &sealed).map_err(|error| error.to_string())?;
        // What was in it is for no log.
        serde_json::from_slice(&content).map_err(|_| seal::Error::Form.to_string())
    }

    /// Writes an answer down, so that it is there at the next start. What the disk does not take counts all the same: a full
    /// disk must not keep a pod from its new password.
    pub fn keep(&self, update: &Update) {
        let (name, secret, entry) = match update {
            Update::Object(id, Ok(object)) => {
                (name_of(id), id.kind == ObjectKind::Secret, Entry::of(id, object.as_ref()))
            }
            Update::Token(id, Ok(held)) => {
                (name_of_token(id), true, Entry::Token { id: id.clone(), token: held.token.clone(), life: held.life })
            }
            Update::Services(all) => (SERVICES.to_owned(), false, Entry::Services { services: all.clone() }),
            Update::Object(_, Err(_)) | Update::Token(_, Err(_)) => return,
        };
        self.write(&name, secret, entry);
    }

    fn write(&self, name: &str, secret: bool, entry: Entry) {
        let entry = match (&self.key, secret) {
            (Sealing::Never, true) => return,
            (Sealing::With(key), true) => match sealed(key, name, &entry) {
                Ok(entry) => entry,
                Err(error) => return tracing::warn!(record = name, %error, "a secret of the cluster cannot be sealed"),
            },
            _ => entry,
        };
        if let Err(error) = self.records.write(name, &entry) {
            tracing::warn!(error = chain(&error), "what the cluster's pods are made from cannot be written down");
        }
    }

    /// Secrets that were written before there was a key.
    fn seal_open_ones(&self, kept: &Kept) {
        let (Sealing::With(_), Some(supply)) = (&self.key, &kept.supply) else { return };
        let entries: BTreeMap<String, Entry> = self.records.load_all::<Entry>().values;
        let open = |name: &str| entries.get(name).is_some_and(|entry| !matches!(entry, Entry::Sealed { .. }));
        for object in supply.objects.iter().filter(|object| matches!(object, Object::Secret(_))) {
            let id = object.id();
            if open(&name_of(&id)) {
                self.keep(&Update::Object(id, Ok(Some(object.clone()))));
            }
        }
        for (id, held) in &kept.held {
            if open(&name_of_token(id)) {
                self.keep(&Update::Token(id.clone(), Ok(held.clone())));
            }
        }
    }

    /// Removes the records of these names.
    pub fn remove(&self, names: &[String]) {
        for name in names {
            if let Err(error) = self.records.remove(name) {
                tracing::warn!(error = chain(&error), "what no pod refers to any more cannot be removed");
            }
        }
    }
}

/// How many records are there that nothing came of.
fn closed_records(kept: &Kept) -> usize {
    let open = kept.supply.as_ref().map_or(0, |supply| {
        supply.objects.iter().count()
            + supply.absent.len()
            + supply.tokens.len()
            + usize::from(supply.services.is_some())
    });
    kept.names.len().saturating_sub(open)
}

fn read_key(path: &Path) -> Result<Key, String> {
    let bytes = fs::read_limited(path, LARGEST_KEY).map_err(|error| error.to_string())?;
    Key::new(&bytes).map_err(|error| error.to_string())
}

fn sealed(key: &Key, name: &str, entry: &Entry) -> Result<Entry, seal::Error> {
    let content = serde_json::to_vec(entry).map_err(|_| seal::Error::Form)?;
    Ok(Entry::Sealed { sealed: STANDARD.encode(key.seal(name, &content, seal::nonce()?)?) })
}

impl Entry {
    fn of(id: &ObjectId, object: Option<&Object>) -> Entry {
        let (namespace, name) = (id.namespace.clone(), id.name.clone());
        match (id.kind, object) {
            (_, Some(Object::ConfigMap(map))) => {
                Entry::ConfigMap { namespace, name, object: Some(Box::new(ConfigMap::clone(map))) }
            }
            (_, Some(Object::Secret(secret))) => {
                Entry::Secret { namespace, name, object: Some(Box::new(Secret::clone(secret))) }
            }
            (ObjectKind::ConfigMap, None) => Entry::ConfigMap { namespace, name, object: None },
            (ObjectKind::Secret, None) => Entry::Secret { namespace, name, object: None },
        }
    }

    fn into_update(self) -> Update {
        match self {
            Entry::ConfigMap { namespace, name, object } => {
                let id = ObjectId { kind: ObjectKind::ConfigMap, namespace, name };
                Update::Object(id, Ok(object.map(|map| Object::ConfigMap(Arc::new(*map)))))
            }
            Entry::Secret { namespace, name, object } => {
                let id = ObjectId { kind: ObjectKind::Secret, namespace, name };
                Update::Object(id, Ok(object.map(|secret| Object::Secret(Arc::new(*secret)))))
            }
            Entry::Token { id, token, life } => Update::Token(id, Ok(Held { token, life })),
            Entry::Services { services } => Update::Services(services),
            // Nobody seals twice.
            Entry::Sealed { .. } => Update::Services(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ObjectKind;
    use serde_json::json;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("coracle-shelf-{name}-{}", std::process::id()));
            fs::remove_tree(&path).expect("no folder");
            std::fs::create_dir(&path).expect("folder");
            Scratch(path)
        }

        fn key(&self, byte: u8, length: usize) -> PathBuf {
            let path = self.0.join(format!("key-{byte}-{length}"));
            std::fs::write(&path, vec![byte; length]).expect("key");
            path
        }

        fn text(&self) -> String {
            let files = std::fs::read_dir(self.0.join("objects")).expect("folder").flatten();
            files.map(|file| std::fs::read_to_string(file.path()).expect("text")).collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn updates() -> Vec<Update> {
        let id = |kind, name: &str| ObjectId { kind, namespace: "n".into(), name: name.into() };
        let map = json!({"metadata": {"name": "m", "namespace": "n"}, "data": {"k": "in-the-map"}});
        let map = Object::ConfigMap(Arc::new(serde_json::from_value(map).expect("ConfigMap")));
        let secret = json!({"metadata": {"name": "s", "namespace": "n"}, "data": {"k": "aW4tdGhlLXNlY3JldA=="}});
        let secret = Object::Secret(Arc::new(serde_json::from_value(secret).expect("Secret")));
        let token = TokenId { pod: "u".into(), audience: "https://vault".into(), expiration_seconds: 600 };
        let life = Life { begun: jiff::Timestamp::UNIX_EPOCH, seconds: 600 };
        let service =
            Service { namespace: "n".into(), name: "web".into(), cluster_ip: "10.0.0.1".into(), ports: vec![] };
        vec![
            Update::Object(id(ObjectKind::ConfigMap, "m"), Ok(Some(map))),
            Update::Object(id(ObjectKind::Secret, "s"), Ok(Some(secret))),
            Update::Object(id(ObjectKind::Secret, "none"), Ok(None)),
            Update::Object(id(ObjectKind::Secret, "forbidden"), Err("no".into())),
            Update::Token(token, Ok(Held { token: Token("the-token".into()), life })),
            Update::Services(vec![service]),
        ]
    }

    fn supply() -> Supply {
        let mut supply = Supply::default();
        updates().into_iter().filter(|u| !matches!(u, Update::Object(_, Err(_)))).for_each(|u| {
            super::super::desk::apply(&mut supply, u);
        });
        supply
    }

    #[test]
    fn what_was_kept_is_there_at_the_next_start() {
        let scratch = Scratch::new("plain");
        let folder = scratch.0.join("objects");
        let (shelf, found) = Shelf::open(folder.clone(), None);
        assert!(found.is_none() && !folder.exists(), "a node that stands alone writes nothing");
        updates().iter().for_each(|update| shelf.keep(update));
        let (shelf, found) = Shelf::open(folder.clone(), None);
        assert_eq!(found, Some(supply()));
        let kept = shelf.load();
        assert_eq!(kept.held.values().next().expect("a token").life.seconds, 600);
        assert_eq!(kept.names.len(), 5);
        let wanted =
            Wanted { objects: [supply().objects.iter().next().expect("one").id()].into(), ..Wanted::default() };
        let gone = unwanted(kept.names, &wanted);
        assert_eq!(gone, ["secret.n.none", "secret.n.s", "token.u.600.https://vault"]);
        shelf.remove(&gone);
        let left = shelf.load();
        assert_eq!(left.names.into_iter().collect::<Vec<_>>(), ["configmap.n.m", "services"]);
    }

    #[test]
    fn secrets_are_sealed_and_nothing_else_is_lost_with_the_key() {
        let scratch = Scratch::new("sealed");
        let folder = scratch.0.join("objects");
        let (key, other) = (scratch.key(1, 32), scratch.key(2, 32));
        let open = |key: Option<&Path>| Shelf::open(folder.clone(), key);
        // Written before there was a key, then sealed.
        let (shelf, _) = open(None);
        updates().iter().for_each(|update| shelf.keep(update));
        assert!(scratch.text().contains("the-token") && scratch.text().contains("aW4tdGhlLXNlY3JldA=="));
        assert_eq!(open(Some(&key)).1, Some(supply()));
        let text = scratch.text();
        assert!(!text.contains("the-token") && !text.contains("aW4tdGhlLXNlY3JldA==") && text.contains("in-the-map"));
        assert_eq!(open(Some(&key)).1, Some(supply()));
        let missing = scratch.0.join("none");
        let (short, long) = (scratch.key(1, 31), scratch.key(1, 33));
        for wrong in [Some(&other), Some(&missing), Some(&short), Some(&long), None] {
            let (shelf, found) = open(wrong.map(PathBuf::as_path));
            let found = found.expect("what is not secret");
            assert_eq!(found.objects.iter().map(|o| o.id().to_string()).collect::<Vec<_>>(), ["ConfigMap n/m"]);
            assert!(found.tokens.is_empty() && found.services.is_some(), "{wrong:?}");
            assert_eq!(shelf.load().names.len(), 5, "what cannot be opened is still there");
            if wrong != Some(&other) {
                // Nothing that was sealed once is written open, because a key got lost.
                updates().iter().for_each(|update| shelf.keep(update));
                assert!(!scratch.text().contains("the-token"), "{wrong:?}");
            }
        }
        assert_eq!(open(Some(&key)).1, Some(supply()), "the key is back");
    }

    #[test]
    fn a_sealed_record_is_good_for_nothing_else() {
        let scratch = Scratch::new("swapped");
        let folder = scratch.0.join("objects");
        let key = scratch.key(1, 32);
        let (shelf, _) = Shelf::open(folder.clone(), Some(&key));
        let secret = &updates()[1];
        shelf.keep(secret);
        let entry = shelf.records.load_all::<Entry>().values.remove("secret.n.s").expect("record");
        shelf.records.write("secret.n.other", &entry).expect("written");
        shelf.records.remove("secret.n.s").expect("removed");
        let (shelf, found) = Shelf::open(folder, Some(&key));
        assert_eq!(found.map(|supply| supply.objects.iter().count()), Some(0));
        assert_eq!(shelf.load().names.len(), 1);
    }
}
