//! One ConfigMap or Secret, followed for as long as a pod refers to it.

use super::desk::Update;
use super::renewal::Question;
use super::schedule;
use crate::causes::chain;
use crate::manifest::{Object, ObjectId, ObjectKind};
use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

/// Most watches at a time. An API server lets a connection have a hundred requests under way, and the lease and the statuses
/// need some, too; objects beyond these are asked for again and again.
const WATCHES: usize = 64;
/// Most objects that are asked for at the same moment.
const TURNS: usize = 8;
/// Between two questions about an object that is not watched (as kubelet's cache).
const LOOK: Duration = Duration::from_secs(60);
/// Longest pause after a watch broke off (as kubelet).
const LONGEST: Duration = Duration::from_secs(30);
/// After so long without a failure the next one is the first (as kubelet).
const RESET: Duration = Duration::from_secs(120);
/// How long an answer may take.
const REQUEST: Duration = Duration::from_secs(10);
/// A pod may be known here before it is where requests are authorised: the first refusals say nothing yet.
const REFUSALS: u32 = 3;

/// What keeps all of this within bounds.
#[derive(Debug)]
pub struct Gates {
    watches: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Default for Gates {
    fn default() -> Gates {
        Gates { watches: Arc::new(Semaphore::new(WATCHES)), turns: Arc::new(Semaphore::new(TURNS)) }
    }
}

/// Tells of the object and its changes, until it is dropped, or the object never changes again.
/// After a failure `questions` tells whether it may be asked for again.
pub async fn follow(
    client: Client,
    id: ObjectId,
    gates: Arc<Gates>,
    updates: mpsc::Sender<Update>,
    questions: mpsc::Sender<Question>,
) {
    let follow = Follow { api: api(client, &id), id, updates, questions, refusals: 0, failures: 0, failed: None };
    follow.run(&gates).await;
}

fn api(client: Client, id: &ObjectId) -> Api<DynamicObject> {
    Api::namespaced_with(client, &id.namespace, &resource(id.kind))
}

fn resource(kind: ObjectKind) -> ApiResource {
    let plural = match kind {
        ObjectKind::ConfigMap => "configmaps",
        ObjectKind::Secret => "secrets",
    };
    ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: kind.as_str().to_owned(),
        plural: plural.to_owned(),
    }
}

struct Follow {
    api: Api<DynamicObject>,
    id: ObjectId,
    updates: mpsc::Sender<Update>,
    questions: mpsc::Sender<Question>,
    /// In a row.
    refusals: u32,
    /// In a row, of whatever kind.
    failures: u32,
    /// The last one.
    failed: Option<Instant>,
}

impl Follow {
    async fn run(mut self, gates: &Gates) {
        loop {
            if let Ok(_place) = gates.watches.try_acquire() {
                return self.watch(gates).await;
            }
            let turn = gates.turns.acquire().await;
            let answer = tokio::time::timeout(REQUEST, self.api.get_opt(&self.id.name)).await;
            drop(turn);
            match answer {
                Ok(Ok(found)) => {
                    if self.tell(found).await {
                        return;
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Ok(Err(error)) => {
                    self.refused(super::refusal(&error)).await;
                    self.be_sure().await;
                }
                Err(_) => self.be_sure().await,
            }
        }
    }

    async fn watch(&mut self, gates: &Gates) {
        let fields = format!("metadata.name={}", self.id.name);
        let config = watcher::Config::default().fields(&fields).streaming_lists();
        // The pauses are ours, see `be_sure`.
        let mut events = std::pin::pin!(watcher(self.api.clone(), config));
        let mut turn = gates.turns.acquire().await.ok();
        let mut listed = None;
        loop {
            let event = match &turn {
                Some(_) => match tokio::time::timeout(REQUEST, events.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        // Nobody answers: others may have more luck.
                        turn = None;
                        continue;
                    }
                },
                None => events.next().await,
            };
            let over = match event {
                None => return,
                Some(Ok(watcher::Event::Init)) => {
                    listed = None;
                    false
                }
                Some(Ok(watcher::Event::InitApply(object))) => {
                    listed = Some(object);
                    false
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    turn = None;
                    self.tell(listed.take()).await
                }
                Some(Ok(watcher::Event::Apply(object))) => self.tell(Some(object)).await,
                Some(Ok(watcher::Event::Delete(_))) => self.tell(None).await,
                Some(Err(error)) => {
                    turn = None;
                    tracing::debug!(object = %self.id, error = chain(&error), "the watch broke off");
                    self.refused(super::refusal_of_watch(&error)).await;
                    self.be_sure().await;
                    false
                }
            };
            if over {
                return;
            }
        }
    }

    /// Whether nothing can change any more.
    async fn tell(&mut self, found: Option<DynamicObject>) -> bool {
        self.refusals = 0;
        let answer = found.map(|object| read(&self.id, object)).transpose();
        let over = matches!(&answer, Ok(Some(object)) if object.is_immutable());
        // Nobody listens: the session is over.
        self.updates.send(Update::Object(self.id.clone(), answer)).await.is_err() || over
    }

    /// After a failure: returns when it is time for another attempt and the API server says that a pod of this node refers to
    /// the object. If none does, this is about to be dropped.
    async fn be_sure(&mut self) {
        if self.failed.is_some_and(|failed| failed.elapsed() > RESET) {
            self.failures = 0;
        }
        loop {
            self.failures = self.failures.saturating_add(1);
            let pause = schedule::pause(self.failures, schedule::spread_of(self.id.to_string().as_bytes()));
            tokio::time::sleep(Duration::try_from(pause).unwrap_or(LONGEST).min(LONGEST)).await;
            self.failed = Some(Instant::now());
            let (answer, answered) = oneshot::channel();
            // Nobody is there to answer: the session is over.
            if self.questions.send(Question { object: self.id.clone(), answer }).await.is_err() {
                return;
            }
            if answered.await == Ok(true) {
                return;
            }
        }
    }

    async fn refused(&mut self, why: Option<String>) {
        let Some(why) = why else { return };
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= REFUSALS {
            let _ = self.updates.send(Update::Object(self.id.clone(), Err(why))).await;
        }
    }
}

/// The object without what no pod can see of it: the rest changes without a change, and may be as large as the object.
fn read(id: &ObjectId, object: DynamicObject) -> Result<Object, String> {
    let meta = object.metadata;
    if (meta.namespace.as_deref(), meta.name.as_deref()) != (Some(id.namespace.as_str()), Some(id.name.as_str())) {
        return Err(format!("the API server gave another object for {id}"));
    }
    let meta = ObjectMeta { name: meta.name, namespace: meta.namespace, uid: meta.uid, ..ObjectMeta::default() };
    let failed = |error: serde_json::Error| format!("{id} cannot be understood: {error}");
    let mut whole = object.data;
    let Value::Object(fields) = &mut whole else { return Err(format!("{id} cannot be understood: no object")) };
    fields.insert("metadata".to_owned(), serde_json::to_value(meta).map_err(failed)?);
    match id.kind {
        ObjectKind::ConfigMap => {
            serde_json::from_value(whole).map(|map| Object::ConfigMap(Arc::new(map))).map_err(failed)
        }
        // What is wrong with it may tell what is in it.
        ObjectKind::Secret => serde_json::from_value(whole)
            .map(|secret| Object::Secret(Arc::new(secret)))
            .map_err(|_| format!("{id} cannot be understood")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn id(kind: ObjectKind) -> ObjectId {
        ObjectId { kind, namespace: "n".into(), name: "x".into() }
    }

    fn read_json(kind: ObjectKind, object: Value) -> Result<Object, String> {
        let object = serde_json::from_value(object).map_err(|error| error.to_string())?;
        read(&id(kind), object)
    }

    #[test]
    fn only_what_pods_see_of_an_object_is_kept() {
        let object = |revision: &str, value: &str| {
            let meta = json!({
                "name": "x", "namespace": "n", "uid": "u", "resourceVersion": revision, "managedFields": [],
                "labels": {"a": revision}, "annotations": {"kubectl.kubernetes.io/last-applied-configuration": value},
            });
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "immutable": true,
                "type": "kubernetes.io/dockercfg", "data": {"k": value}})
        };
        let one = read_json(ObjectKind::Secret, object("1", "MQ==")).unwrap();
        assert_eq!(read_json(ObjectKind::Secret, object("2", "MQ==")).unwrap(), one);
        assert_ne!(read_json(ObjectKind::Secret, object("1", "Mg==")).unwrap(), one);
        let Object::Secret(secret) = &one else { panic!("a Secret") };
        assert_eq!(
            (secret.type_.as_deref(), secret.metadata.uid.as_deref()),
            (Some("kubernetes.io/dockercfg"), Some("u"))
        );
        assert!(one.is_immutable());
        assert_eq!(one.id(), id(ObjectKind::Secret));
    }

    #[test]
    fn what_cannot_be_understood_is_told_without_what_is_in_it() {
        let meta = json!({"name": "x", "namespace": "n"});
        let bad = |kind, data: Value| read_json(kind, json!({"metadata": meta, "data": data})).unwrap_err();
        assert_eq!(bad(ObjectKind::Secret, json!({"k": "p4ssw*rd"})), "Secret n/x cannot be understood");
        assert!(
            bad(ObjectKind::ConfigMap, json!({"k": 1})).starts_with("ConfigMap n/x cannot be understood: invalid type")
        );
        let other = json!({"metadata": {"name": "y", "namespace": "n"}});
        let why = "the API server gave another object for ConfigMap n/x";
        assert_eq!(read_json(ObjectKind::ConfigMap, other), Err(why.into()));
    }

    /// An API server that has no answer; tells what it was asked.
    fn failing(asked: mpsc::UnboundedSender<String>) -> Client {
        let service = tower::service_fn(move |request: hyper::Request<kube::client::Body>| {
            // Whoever counts has seen enough.
            let _ = asked.send(request.uri().to_string());
            std::future::ready(hyper::Response::builder().status(500).body(kube::client::Body::from(Vec::new())))
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn what_broke_off_is_not_begun_anew_before_a_pod_is_known_to_refer_to_it() {
        let ((to_server, mut requests), (ask, mut questions)) = (mpsc::unbounded_channel(), mpsc::channel(8));
        let (updates, _inbox) = mpsc::channel(8);
        let map = id(ObjectKind::ConfigMap);
        let task = tokio::spawn(follow(failing(to_server), map.clone(), Arc::default(), updates, ask));
        let mut next = async || -> Question { questions.recv().await.expect("a question") };
        let question = next().await;
        assert_eq!(question.object, map);
        let path = requests.recv().await.expect("the watch that failed");
        assert!(path.contains("/api/v1/namespaces/n/configmaps?"), "{path}");
        question.answer.send(false).expect("it waits");
        let question = next().await;
        assert!(requests.try_recv().is_err(), "begun anew though no pod refers to it");
        question.answer.send(true).expect("it waits");
        assert!(requests.recv().await.is_some(), "begun anew");
        task.abort();
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,20}", number in any::<i64>()) {
            let meta = json!({"name": "x", "namespace": "n"});
            for data in [json!(text), json!({text.clone(): number}), json!({"k": text}), json!([number]), json!(null)] {
                for kind in [ObjectKind::ConfigMap, ObjectKind::Secret] {
                    let _ = read_json(kind, json!({"metadata": meta, "data": data}));
                }
            }
        }
    }
}
