//! Create, update, patch, delete: changes of the manifest directory.
//!
//! What a client sends becomes a manifest of its own: without what only a server or a node says of an object, and a pod
//! without the node's suffix. It is checked as `coracle apply` checks it. What is changed is the manifest as its author wrote
//! it, not the pod with all its defaults; a file that defines other things, too, is a person's to edit.

use super::super::apply::{self, Change, Edited, Named};
use super::super::http::Sent;
use super::super::objects::is_mask;
use super::super::reply::{self, Failure, Reply, blocking};
use super::super::route::Query;
use super::super::types::{Action, Cause};
use super::super::{Node, find_pod};
use super::accept::Shape;
use super::asked::{Objects, Verb};
use super::list::{Scope, find, renamed};
use super::object::Object;
use super::patch::{self, Kind};
use super::resource::Resource;
use super::table::{ListMeta, View};
use super::{document, one_document};
use crate::manifest::{ObjectId, ObjectKind};
use crate::sys::clock;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{HeaderValue, WARNING};
use hyper::{HeaderMap, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long it is waited for a new pod to be seen, so that who created it can ask for it.
const SEEN: Duration = Duration::from_secs(5);
/// How long it is waited for a pod whose manifest is gone to be seen to end.
const GOING: Duration = Duration::from_secs(2);
/// Who has applied a manifest whole, by server-side apply: only they replace it whole without being told to.
const APPLIED_BY: &str = "coracle.dev/applied-by";

/// What is to be changed, and how it is answered.
pub(super) struct Request<'a> {
    pub(super) node: Arc<dyn Node>,
    pub(super) asked: Objects,
    pub(super) query: &'a Query,
    pub(super) shape: Shape,
    pub(super) for_kubectl: bool,
}

/// Of an object that may not be what the client thinks it is.
#[derive(Debug, Default, Clone)]
struct Preconditions {
    uid: Option<String>,
    version: Option<String>,
}

impl Request<'_> {
    fn namespace(&self) -> &str {
        self.asked.namespace.as_deref().unwrap_or_default()
    }

    fn plural(&self) -> &'static str {
        self.asked.resource.plural()
    }

    /// Whether nothing is to be changed.
    fn is_dry(&self) -> Result<bool, Failure> {
        match self.query.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(Failure::bad_request(format!("dryRun: Unsupported value: {other:?}: want All"))),
        }
    }

    /// What the file has it under: a pod's name is without the suffix there.
    fn named(&self, name: &str) -> Named {
        let namespace = self.namespace().to_owned();
        let kind = match self.asked.resource {
            Resource::ConfigMaps => ObjectKind::ConfigMap,
            Resource::Secrets => ObjectKind::Secret,
            _ => return Named::Pod(namespace, apply::base_name(name, self.node.name()).to_owned()),
        };
        Named::Object(ObjectId { kind, namespace, name: name.to_owned() })
    }

    fn object(&self, name: &str) -> Result<Object, Failure> {
        find(&self.node, &self.asked, name, self.for_kubectl)
    }

    fn check(&self, name: &str, wanted: &Preconditions) -> Result<(), Failure> {
        if wanted.uid.is_none() && wanted.version.is_none() {
            return Ok(());
        }
        let present = self.object(name)?;
        let present = present.metadata();
        let differs = |wanted: &Option<String>, present: &Option<String>| match (wanted, present) {
            (Some(wanted), Some(present)) => wanted != present,
            // What is not told cannot be known.
            _ => false,
        };
        let conflict = |why: String| {
            Failure::conflict(format!("Operation cannot be fulfilled on {} {name:?}: {why}", self.plural()))
        };
        if differs(&wanted.uid, &present.uid) {
            let (wanted, present) = (wanted.uid.as_deref(), present.uid.as_deref());
            let why = "Precondition failed: UID in precondition: ";
            let text = |uid: Option<&str>| uid.unwrap_or_default().to_owned();
            return Err(conflict(format!("{why}{}, UID in object meta: {}", text(wanted), text(present))));
        }
        if differs(&wanted.version, &present.resource_version) {
            let why = "the object has been modified; please apply your changes to the latest version and try again";
            return Err(conflict(why.to_owned()));
        }
        Ok(())
    }

    /// Changes the manifest that defines `named`, and answers with the object as it is then.
    async fn edit(&self, name: &str, change: Change, extra: Vec<String>) -> Result<Reply, Failure> {
        let (dry, named) = (self.is_dry()?, self.named(name));
        let strict = self.query.get("fieldValidation") == Some("Strict");
        let edited = {
            let node = Arc::clone(&self.node);
            blocking(move || apply::edit(node.as_ref(), &named, dry, strict, change)).await??
        };
        if !dry && edited.action != Action::Unchanged {
            self.node.rescan();
        }
        let object = self.result(name, dry, &edited).await?;
        let code = if edited.action == Action::Created { StatusCode::CREATED } else { StatusCode::OK };
        let mut reply = self.reply(&object)?;
        *reply.status_mut() = code;
        warn(reply.headers_mut(), edited.problems.iter().map(warning).chain(extra));
        Ok(reply)
    }

    fn reply(&self, object: &Object) -> Result<Reply, Failure> {
        let view = View { resource: self.asked.resource, group: self.asked.group, shape: self.shape };
        reply::json(&view.one(object, true, clock::wall()))
    }

    /// What became of a manifest: a pod that is new is waited for, one that is replaced ends first and is told as it will be.
    async fn result(&self, name: &str, dry: bool, edited: &Edited) -> Result<Object, Failure> {
        if let Some(object) = edited.objects.first() {
            return Ok(Object::data(object, self.for_kubectl));
        }
        let Some(wanted) = edited.pods.first() else {
            return Err(Failure::internal("the manifest defines nothing"));
        };
        let full = wanted.metadata.name.clone().unwrap_or_default();
        let found = match (dry, edited.action) {
            (false, Action::Created) => self.appears(&full, wanted.metadata.uid.as_deref()).await,
            (_, Action::Unchanged) => find_pod(self.node.as_ref(), self.namespace(), &full),
            _ => None,
        };
        let pod = found.unwrap_or_else(|| {
            let mut pod = wanted.clone();
            pod.metadata.creation_timestamp = Some(Time(clock::wall()));
            pod.status.get_or_insert_default().phase = Some("Pending".to_owned());
            Arc::new(pod)
        });
        Ok(Object::Pod(if self.for_kubectl { renamed(&pod, name) } else { pod }))
    }

    async fn appears(&self, name: &str, uid: Option<&str>) -> Option<Arc<Pod>> {
        let mut changes = self.node.changes();
        let seen = async {
            loop {
                changes.borrow_and_update();
                let pod = find_pod(self.node.as_ref(), self.namespace(), name);
                if let Some(pod) = pod.filter(|pod| pod.metadata.uid.as_deref() == uid) {
                    return Some(pod);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(SEEN, seen).await.ok().flatten()
    }

    /// Whether a pod without a manifest is about to go: its manifest may have gone a moment ago.
    async fn ends(&self, pod: &Pod) -> bool {
        let is_going = || {
            let pods = self.node.pods();
            let present = pods.iter().find(|present| present.metadata.uid == pod.metadata.uid);
            present.is_none_or(|present| present.metadata.deletion_timestamp.is_some())
        };
        let mut changes = self.node.changes();
        let ended = async {
            loop {
                changes.borrow_and_update();
                if is_going() {
                    return true;
                }
                if changes.changed().await.is_err() {
                    return false;
                }
            }
        };
        tokio::time::timeout(GOING, ended).await.unwrap_or(false)
    }

    /// The object that a client sent, as a manifest, and what it expects of the present one.
    fn manifest(&self, mut value: Value, name: Option<&str>) -> Result<(String, Value, Preconditions), Failure> {
        let kind = self.asked.resource.kind();
        if value["apiVersion"] != "v1" || value["kind"] != kind {
            let (version, given) = (&value["apiVersion"], &value["kind"]);
            let why = format!("the object provided is {version} {given}, but {kind:?} of \"v1\" belongs here");
            return Err(Failure::bad_request(why));
        }
        for field in ["/metadata", "/metadata/annotations"] {
            if value.pointer(field).is_some_and(|value| !value.is_object() && !value.is_null()) {
                return Err(Failure::bad_request(format!("{field}: want an object")));
            }
        }
        let wanted = strip(&mut value, self.node.name());
        let metadata = &mut value["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or(self.namespace());
        if namespace != self.namespace() {
            let why = format!(
                "the namespace of the provided object ({namespace}) does not match the namespace sent on the request"
            );
            return Err(Failure::bad_request(why));
        }
        let generate = metadata.as_object_mut().and_then(|map| map.remove("generateName"));
        let given = metadata["name"].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
        let given = match (given, generate.as_ref().and_then(Value::as_str), name) {
            (Some(given), ..) => given,
            (None, Some(prefix), None) => format!("{prefix}{}", random_name()),
            (None, None, None) => return Err(Failure::bad_request("metadata.name: Required value: name is required")),
            (None, _, Some(name)) => name.to_owned(),
        };
        let is_pod = self.asked.resource == Resource::Pods;
        let base = |name: &str| if is_pod { apply::base_name(name, self.node.name()) } else { name }.to_owned();
        if let Some(name) = name.filter(|name| base(name) != base(&given)) {
            let why = format!("the name of the object ({given}) does not match the name on the URL ({name})");
            return Err(Failure::bad_request(why));
        }
        metadata["name"] = base(&given).into();
        metadata["namespace"] = self.namespace().into();
        Ok((given, value, wanted))
    }
}

/// Five letters and digits that make no words (as the API server's).
fn random_name() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = ring::rand::SystemRandom::new();
    let mut bytes = [0; 5];
    // Without randomness the name is a poor one, and refused if it is taken.
    let _ = ring::rand::SecureRandom::fill(&random, &mut bytes);
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}

/// Takes out what only a server or a node says of an object.
fn strip(value: &mut Value, node: &str) -> Preconditions {
    const SERVERS: [&str; 9] = [
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
    ];
    let Some(map) = value.as_object_mut() else { return Preconditions::default() };
    map.remove("status");
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    let mut wanted = Preconditions::default();
    if let Some(metadata) = metadata.as_object_mut() {
        let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned));
        let text = |value| text(value).filter(|text| !text.is_empty());
        wanted = Preconditions {
            uid: text(metadata.remove("uid")),
            version: text(metadata.get("resourceVersion").cloned()),
        };
        SERVERS.iter().for_each(|field| drop(metadata.remove(*field)));
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            let is_nodes = |key: &str| key.starts_with("kubernetes.io/config.") || key == crate::manifest::REVISION;
            annotations.retain(|key, _| !is_nodes(key));
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
    }
    if let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut)
        && spec.get("nodeName").is_some_and(|name| name == node)
    {
        spec.remove("nodeName");
    }
    wanted
}

fn warning(cause: &Cause) -> String {
    if cause.field.is_empty() { cause.message.clone() } else { format!("{}: {}", cause.field, cause.message) }
}

/// Tells warnings in the header that kubectl prints.
fn warn(headers: &mut HeaderMap, warnings: impl Iterator<Item = String>) {
    for warning in warnings {
        let shown = |letter: char| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '?' };
        let text: String = warning.chars().map(shown).collect();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            headers.append(WARNING, value);
        }
    }
}

/// Answers a request that changes something.
pub(super) async fn write(request: Request<'_>, sent: Sent) -> Result<Reply, Failure> {
    let name = request.asked.name.clone();
    match (request.asked.verb, name) {
        (Verb::Create, _) => create(&request, sent).await,
        (Verb::Update, Some(name)) => update(&request, &name, sent).await,
        (Verb::Patch, Some(name)) => patch(&request, &name, sent).await,
        (Verb::Delete, Some(name)) => delete(&request, &name, sent).await,
        (Verb::Delete, None) => delete_all(request, sent).await,
        (Verb::Read | Verb::Update | Verb::Patch, _) => Err(Failure::internal("nothing is changed by this")),
    }
}

async fn create(request: &Request<'_>, sent: Sent) -> Result<Reply, Failure> {
    let (kind, body) = sent.body().await?;
    let (name, value, _) = request.manifest(document(&kind, &body)?, None)?;
    let taken = || Failure::already_exists(format!("{} {name:?} already exists", request.plural()));
    if request.object(&name).is_ok() {
        return Err(taken());
    }
    if request.asked.resource == Resource::Secrets {
        refuse_masks(&value, &Value::Null)?;
    }
    let exists = taken();
    let change: Change = Box::new(|present| if present.is_some() { Err(exists) } else { Ok(value) });
    request.edit(&name, change, Vec::new()).await
}

async fn update(request: &Request<'_>, name: &str, sent: Sent) -> Result<Reply, Failure> {
    let (kind, body) = sent.body().await?;
    let (_, value, wanted) = request.manifest(document(&kind, &body)?, Some(name))?;
    request.check(name, &wanted)?;
    let missing = not_in_a_file(request, name);
    let is_secret = request.asked.resource == Resource::Secrets;
    let change: Change = Box::new(move |present| {
        let present = present.ok_or(missing)?;
        let mut value = value;
        // A UID that the manifest pins stays.
        if let Some(uid) = present["metadata"].get("uid") {
            value["metadata"]["uid"] = uid.clone();
        }
        if is_secret {
            keep_secrets(&mut value, &present);
            refuse_masks(&value, &present)?;
        }
        Ok(value)
    });
    request.edit(name, change, Vec::new()).await
}

/// Refuses what is shown in place of a Secret's value where no value is known that it could stand for: under another key, in a
/// Secret of another name.
fn refuse_masks(value: &Value, present: &Value) -> Result<(), Failure> {
    // A single asterisk may be meant.
    let is_masked = |text: &str| STANDARD.decode(text).is_ok_and(|bytes| bytes.len() > 1 && is_mask(text, bytes.len()));
    let data = value["data"].as_object().into_iter().flatten();
    let is_new = |key: &str, value: &Value| present["data"].get(key) != Some(value);
    match data.into_iter().find(|(key, value)| value.as_str().is_some_and(is_masked) && is_new(key, value)) {
        Some((key, _)) => {
            let message = format!(
                "data.{key}: Invalid value: these asterisks are shown in place of a Secret's value; write the value itself"
            );
            Err(Failure::invalid(message, Vec::new()))
        }
        None => Ok(()),
    }
}

/// What a client was shown of a Secret are masks: where it sends those back, the value stays.
fn keep_secrets(value: &mut Value, present: &Value) {
    let length = |key: &str| {
        let text = present["stringData"][key].as_str().map(str::len);
        text.or_else(|| STANDARD.decode(present["data"][key].as_str()?).ok().map(|bytes| bytes.len()))
    };
    let Some(data) = value.get_mut("data").and_then(Value::as_object_mut) else { return };
    let (mut kept, mut text) = (Map::new(), Map::new());
    for (key, value) in std::mem::take(data) {
        let is_masked = length(&key).is_some_and(|length| value.as_str().is_some_and(|value| is_mask(value, length)));
        match (is_masked, present["stringData"].get(&key), present["data"].get(&key)) {
            (true, Some(value), _) => drop(text.insert(key, value.clone())),
            (true, None, Some(value)) => drop(kept.insert(key, value.clone())),
            _ => drop(kept.insert(key, value)),
        }
    }
    *data = kept;
    if !text.is_empty() {
        value["stringData"] = Value::Object(text);
    }
}

async fn patch(request: &Request<'_>, name: &str, sent: Sent) -> Result<Reply, Failure> {
    let (media_type, body) = sent.body().await?;
    let kind = Kind::of(&media_type).ok_or_else(|| {
        Failure::unsupported_type(format!(
            "the body is {media_type:?}: want application/json-patch+json, application/merge-patch+json, \
             application/strategic-merge-patch+json or application/apply-patch+yaml"
        ))
    })?;
    let mut patch = one_document(&body)?;
    if kind == Kind::Apply {
        return apply_whole(request, name, patch).await;
    }
    let wanted = if kind == Kind::Json { Preconditions::default() } else { expected(&mut patch) };
    request.check(name, &wanted)?;
    let missing = not_in_a_file(request, name);
    let node = request.node.name().to_owned();
    let (plural, shown) = (request.plural(), name.to_owned());
    let is_pod = request.asked.resource == Resource::Pods;
    let is_secret = request.asked.resource == Resource::Secrets;
    let change: Change = Box::new(move |present| {
        let present = present.ok_or(missing)?;
        let before = if is_secret { present.clone() } else { Value::Null };
        let (name, uid) = (present["metadata"]["name"].clone(), present["metadata"].get("uid").cloned());
        let mut value = patch::apply(kind, present, patch)
            .map_err(|why| Failure::invalid(format!("{plural} {shown:?} is invalid: patch: {why}"), Vec::new()))?;
        strip(&mut value, &node);
        if is_secret {
            refuse_masks(&value, &before)?;
        }
        let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else {
            return Err(Failure::invalid("the patch leaves no metadata", Vec::new()));
        };
        if let Some(uid) = uid {
            metadata.insert("uid".to_owned(), uid);
        }
        // kubectl writes the name that it knows the pod by.
        let base = metadata.get("name").and_then(Value::as_str).map(|name| apply::base_name(name, &node).to_owned());
        if is_pod && base.is_some_and(|base| name == base) {
            metadata.insert("name".to_owned(), name);
        }
        Ok(value)
    });
    request.edit(name, change, Vec::new()).await
}

/// Takes what a patch expects of the object out of it.
fn expected(patch: &mut Value) -> Preconditions {
    let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Preconditions::default();
    };
    let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned));
    Preconditions { uid: text(metadata.remove("uid")), version: text(metadata.remove("resourceVersion")) }
}

/// Server-side apply: the manifest becomes what is applied. What others have written stays unless that is forced.
async fn apply_whole(request: &Request<'_>, name: &str, applied: Value) -> Result<Reply, Failure> {
    let manager = request.query.get("fieldManager").map(str::to_owned);
    let manager =
        manager.ok_or_else(|| Failure::bad_request("fieldManager: Required value: is required for apply patch"))?;
    let force = request.query.flag("force")?;
    let (_, mut value, wanted) = request.manifest(applied, Some(name))?;
    value["metadata"]["annotations"][APPLIED_BY] = manager.as_str().into();
    let is_secret = request.asked.resource == Resource::Secrets;
    let exists = request.object(name).is_ok();
    if exists {
        request.check(name, &wanted)?;
    }
    let missing = not_in_a_file(request, name);
    let change: Change = Box::new(move |present| {
        if is_secret {
            refuse_masks(&value, present.as_ref().unwrap_or(&Value::Null))?;
        }
        let Some(present) = present else { return if exists { Err(missing) } else { Ok(value) } };
        let by = present["metadata"]["annotations"][APPLIED_BY].as_str();
        let is_own = by == Some(manager.as_str());
        let keeps_all = || patch::apply(Kind::Apply, present.clone(), value.clone()).is_ok_and(|both| both == value);
        if force || is_own || keeps_all() {
            return Ok(value);
        }
        let whom = by.map_or_else(|| "a person or another client".to_owned(), |by| format!("{by:?}"));
        Err(Failure::conflict(format!(
            "Apply failed with conflicts: the manifest was written by {whom}, and has what this one has not; \
             force replaces it (kubectl: --force-conflicts)"
        )))
    });
    request.edit(name, change, Vec::new()).await
}

/// That an object is there, or is not, but not by a manifest that could be changed.
fn not_in_a_file(request: &Request<'_>, name: &str) -> Failure {
    let Ok(object) = request.object(name) else {
        return Failure::not_found(format!("{} {name:?} not found", request.plural()));
    };
    let annotations = object.metadata().annotations.as_ref();
    let source = annotations.and_then(|all| all.get("kubernetes.io/config.source")).map(String::as_str);
    let origin = match source {
        Some("http") => "comes from a URL",
        Some("api") => "is the cluster's",
        _ => "is not defined by a manifest of its own",
    };
    let dir = request.node.manifest_dir();
    Failure::conflict(format!(
        "{} {name:?} {origin}: only what is defined in {} can be changed here",
        request.plural(),
        dir.display()
    ))
}

/// What a client says about a deletion.
struct Deletion {
    wanted: Preconditions,
    grace: Option<u64>,
    /// Whether nothing is to be deleted.
    dry: bool,
}

async fn deletion(request: &Request<'_>, sent: Sent) -> Result<Deletion, Failure> {
    let (kind, body) = sent.body().await?;
    let options = if body.is_empty() { Value::Null } else { document(&kind, &body)? };
    let text = |key: &str| options["preconditions"][key].as_str().map(str::to_owned);
    let wanted = Preconditions { uid: text("uid"), version: text("resourceVersion") };
    let grace = options["gracePeriodSeconds"].as_u64().or(request.query.number("gracePeriodSeconds")?);
    let dry = options["dryRun"].as_array().is_some_and(|all| all.iter().any(|stage| stage == "All"));
    Ok(Deletion { wanted, grace, dry: dry || request.is_dry()? })
}

/// How long a pod may take to end.
fn seconds_of_grace(pod: &Pod) -> i64 {
    pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30)
}

/// A pod as it is once it has to go.
fn going(pod: &Arc<Pod>) -> Arc<Pod> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Arc::clone(pod);
    }
    let mut pod = Pod::clone(pod);
    let grace = seconds_of_grace(&pod);
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    let ends = crate::pod::clock::later(clock::wall(), jiff::SignedDuration::from_secs(grace));
    pod.metadata.deletion_timestamp = Some(Time(ends));
    Arc::new(pod)
}

async fn delete(request: &Request<'_>, name: &str, sent: Sent) -> Result<Reply, Failure> {
    let Deletion { wanted, grace, dry } = deletion(request, sent).await?;
    request.check(name, &wanted)?;
    let present = request.object(name).ok();
    let mut warnings = Vec::new();
    if let Some(Object::Pod(pod)) = &present
        && grace.is_some_and(|grace| i64::try_from(grace) != Ok(seconds_of_grace(pod)))
    {
        warnings
            .push("a manifest that is removed ends its pod with the grace period that the pod itself has".to_owned());
    }
    if dry {
        let present = present.ok_or_else(|| not_in_a_file(request, name))?;
        return request.reply(&present);
    }
    let named = vec![request.named(name)];
    let node = Arc::clone(&request.node);
    let removed = blocking(move || apply::remove_these(node.as_ref(), &named)).await?;
    let removed = match removed {
        Err(failure) if failure.is_not_found() => {
            // One that ends without a manifest is deleted already. With one, it only makes room for what the manifest says.
            if let Some(Object::Pod(pod)) = &present
                && request.ends(pod).await
            {
                return request.reply(&Object::Pod(going(pod)));
            }
            return Err(not_in_a_file(request, name));
        }
        removed => removed?,
    };
    request.node.rescan();
    warnings.extend(removed.iter().flat_map(|applied| applied.problems.iter().map(warning)));
    let mut reply = match present {
        Some(Object::Pod(pod)) => request.reply(&Object::Pod(going(&pod)))?,
        present => {
            let uid = present.and_then(|object| object.metadata().uid.clone()).unwrap_or_default();
            let details = json!({"name": name, "kind": request.plural(), "uid": uid});
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            });
            reply::json(&status)?
        }
    };
    warn(reply.headers_mut(), warnings.into_iter());
    Ok(reply)
}

/// All that is selected and comes from the manifest directory, or nothing.
async fn delete_all(request: Request<'_>, sent: Sent) -> Result<Reply, Failure> {
    let Deletion { dry, .. } = deletion(&request, sent).await?;
    let revision = *request.node.changes().borrow();
    let node = Arc::clone(&request.node);
    let scope = Scope::new(node, &request.asked, request.shape, request.query, request.for_kubectl)?;
    let is_of_a_file = |object: &Object| match object {
        Object::Pod(pod) => {
            let annotations = pod.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get("kubernetes.io/config.source")).is_some_and(|source| source == "file")
        }
        _ => true,
    };
    let objects: Vec<Object> = scope.objects().into_iter().filter(is_of_a_file).collect();
    let stays = |object: &&Object| object.metadata().deletion_timestamp.is_none();
    let (named, ending): (Vec<&Object>, Vec<&Object>) = objects.iter().partition(stays);
    let [named, ending] =
        [named, ending].map(|objects| objects.iter().map(|o| request.named(o.name())).collect::<Vec<_>>());
    if !dry && !objects.is_empty() {
        let node = Arc::clone(&request.node);
        blocking(move || {
            if !named.is_empty() {
                apply::remove_these(node.as_ref(), &named)?;
            }
            for one in ending {
                // It may make room for what its manifest says now, or have none any more.
                match apply::remove_these(node.as_ref(), &[one]) {
                    Err(failure) if !failure.is_not_found() => return Err(failure),
                    _ => {}
                }
            }
            Ok(())
        })
        .await??;
        request.node.rescan();
    }
    let show = |object: Object| match object {
        Object::Pod(pod) if !dry => Object::Pod(going(&pod)),
        other => other,
    };
    let objects: Vec<Object> = objects.into_iter().map(show).collect();
    reply::json(&scope.view.list(&objects, &ListMeta { revision, next: None, remaining: None }, clock::wall()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

    #[test]
    fn what_only_servers_say_is_left_out() {
        let mut value = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "uid": "u", "resourceVersion": "7", "generation": 1, "labels": {"a": "b"},
                "annotations": {"kubernetes.io/config.hash": "x", "coracle.dev/revision": "y", LAST_APPLIED: "{}"}},
            "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running"},
        });
        let wanted = strip(&mut value, "n1");
        assert_eq!((wanted.uid.as_deref(), wanted.version.as_deref()), (Some("u"), Some("7")));
        assert_eq!(
            value,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "web", "labels": {"a": "b"}, "annotations": {LAST_APPLIED: "{}"}},
                "spec": {"containers": []},
            })
        );
        // Another node's name is for the manifest's checks to refuse.
        let mut value = json!({"spec": {"nodeName": "n2"}});
        strip(&mut value, "n1");
        assert_eq!(value["spec"]["nodeName"], "n2");
        strip(&mut json!([]), "n1");
    }

    #[test]
    fn masks_are_not_taken_for_secrets() {
        // Seven, one and two asterisks.
        let mut value = json!({"data": {"a": "KioqKioqKg==", "b": "eA==", "c": "Kg==", "d": "Kio="}});
        keep_secrets(&mut value, &json!({"data": {"a": "aHVudGVyMg=="}, "stringData": {"d": "ef", "e": "gone"}}));
        assert_eq!(value, json!({"data": {"a": "aHVudGVyMg==", "b": "eA==", "c": "Kg=="}, "stringData": {"d": "ef"}}));
    }

    #[test]
    fn masks_without_a_value_are_refused() {
        let present = json!({"data": {"real": "Kioq"}});
        let refused = |data: Value| refuse_masks(&json!({ "data": data }), &present).is_err();
        assert!(refused(json!({"a": "eA==", "renamed": "KioqKioqKg=="})));
        assert!(refused(json!({"real": "Kio="})));
        assert!(!refused(json!({"a": "eA==", "star": "Kg==", "none": "", "odd": 3, "text": "***", "real": "Kioq"})));
        assert!(refuse_masks(&json!({}), &present).is_ok());
    }

    #[test]
    fn warnings_fit_into_a_header() {
        let mut headers = HeaderMap::new();
        warn(&mut headers, ["a \"quoted\" \\ line\nand – more".to_owned()].into_iter());
        assert_eq!(headers[WARNING], "299 - \"a \\\"quoted\\\" \\\\ line?and ? more\"");
    }
}
