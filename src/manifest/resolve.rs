//! What a pod refers to against what is there.

use super::object::{CREDENTIALS, Object, ObjectId, Objects, Reference, Use};
use super::{Places, Problem, Severity, credentials, references, suggest};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};

/// This many keys of an object are named to who asked for one that it lacks.
const MOST_KEYS: usize = 10;
/// So many problems of a pod say what may have been meant: to look for it takes long.
const MOST_HINTS: usize = 20;
/// Among so many names what was meant is looked for.
const MOST_NAMES: usize = 1000;

/// The references of a pod that lead nowhere: to an object that is not there, or to a key that it lacks. All are errors: the
/// pod could not start (as kubelet, where it waits for ever). What is optional may be missing.
///
/// Values of a Secret that are systemd credentials count as there. The problems are without places; see [`locate`].
#[must_use]
pub fn unresolved(pod: &Pod, objects: &Objects) -> Vec<Problem> {
    let metadata = &pod.metadata;
    let mut problems: Vec<Problem> = Vec::new();
    for reference in references::of(pod).into_iter().filter(|reference| !reference.optional) {
        let mut report = |field: String, reason: &str, hint: &dyn Fn() -> String| {
            let reason = match problems.len() < MOST_HINTS {
                true => format!("Not found: {reason}; {}", hint()),
                false => format!("Not found: {reason}"),
            };
            let name = (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
            let severity = Severity::Error;
            problems.push(Problem { line: None, column: None, field, reason, severity, pod: Some(name) });
        };
        let id = &reference.object;
        let Some(object) = objects.get(id) else {
            let reason = format!("{:?}: no source defines {id}", id.name);
            report(reference.name_field(), &reason, &|| instead(id, objects));
            continue;
        };
        for (index, key) in reference.keys.iter().enumerate() {
            match has(object, key, &reference) {
                Has::It => {}
                Has::Bytes => {
                    let reason = format!("{key:?}: no text of {id} has this key");
                    let hint = || "it is in binaryData, and a variable is text".to_owned();
                    report(reference.key_field(index), &reason, &hint);
                }
                Has::Not => {
                    let reason = format!("{key:?}: {id} has no such key");
                    report(reference.key_field(index), &reason, &|| instead_of_key(object, key));
                }
            }
        }
    }
    problems
}

/// Gives problems of pods the places of their fields, as far as they have none and these places are known.
pub fn locate(problems: &mut [Problem], places: &Places) {
    for problem in problems.iter_mut().filter(|problem| problem.line.is_none()) {
        let fields = problem.pod.as_ref().and_then(|pod| places.get(pod));
        if let Some((line, column)) = fields.and_then(|fields| fields.get(&problem.field)) {
            (problem.line, problem.column) = (Some(*line), Some(*column));
        }
    }
}

/// What may help who refers to an object that is not there.
fn instead(id: &ObjectId, objects: &Objects) -> String {
    let ObjectId { kind, namespace, name } = id;
    let of_kind = || objects.iter().map(Object::id).filter(|other| other.kind == *kind);
    let own = of_kind().filter(|other| other.namespace == *namespace).map(|other| other.name);
    if let Some(near) = closest(name, own) {
        return format!("did you mean {near:?}?");
    }
    match of_kind().find(|other| other.name == *name) {
        Some(other) => format!("the one of namespace {:?} serves the pods of that namespace only", other.namespace),
        None => format!("add a {kind} document to a manifest or to the objects folder"),
    }
}

/// Whether an object has a key.
enum Has {
    It,
    /// Not as text, which is asked for.
    Bytes,
    Not,
}

fn has(object: &Object, key: &str, reference: &Reference) -> Has {
    match object {
        Object::ConfigMap(map) => {
            let ConfigMap { data, binary_data, .. } = &**map;
            let bytes = binary_data.as_ref().is_some_and(|data| data.contains_key(key));
            match (data.as_ref().is_some_and(|data| data.contains_key(key)), bytes) {
                (true, _) => Has::It,
                // As kubelet, which does not even look there.
                (false, true) if reference.usage == Use::Variable => Has::Bytes,
                (false, true) => Has::It,
                (false, false) => Has::Not,
            }
        }
        Object::Secret(secret) => {
            let there = secret.data.as_ref().is_some_and(|data| data.contains_key(key));
            if there || kept(secret).any(|kept| kept == key) { Has::It } else { Has::Not }
        }
    }
}

/// The keys of a Secret whose values are systemd credentials.
fn kept(secret: &Secret) -> impl Iterator<Item = String> {
    let annotated =
        secret.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(CREDENTIALS));
    let kept = annotated.then(|| credentials(secret).unwrap_or_default());
    kept.into_iter().flatten().map(|(key, _)| key)
}

/// What may help who refers to a key that an object lacks. Keys are no secrets, also those of a Secret.
fn instead_of_key(object: &Object, key: &str) -> String {
    let mut keys: Vec<String> = match object {
        Object::ConfigMap(map) => {
            let bytes = map.binary_data.iter().flatten().map(|(key, _)| key);
            map.data.iter().flatten().map(|(key, _)| key).chain(bytes).cloned().collect()
        }
        Object::Secret(secret) => {
            secret.data.iter().flatten().map(|(key, _)| key.clone()).chain(kept(secret)).collect()
        }
    };
    if let Some(near) = closest(key, keys.iter().cloned()) {
        return format!("did you mean {near:?}?");
    }
    if keys.is_empty() {
        return "it has none".to_owned();
    }
    keys.sort();
    let named: Vec<String> = keys.iter().take(MOST_KEYS).map(|key| format!("{key:?}")).collect();
    let more = if keys.len() > MOST_KEYS { " and others" } else { "" };
    format!("it has {}{more}", named.join(", "))
}

fn closest(typed: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let names: Vec<String> = names.take(MOST_NAMES).collect();
    suggest::closest(typed, &names.iter().map(String::as_str).collect::<Vec<_>>()).map(str::to_owned)
}
