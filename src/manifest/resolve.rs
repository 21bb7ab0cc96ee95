//! What a pod refers to against what is there.

use super::object::{Object, ObjectId, Objects, Reference, Use};
use super::{Places, Problem, Severity, credentials, references, suggest};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;

/// This many keys of an object are named to who asked for one that it lacks.
const MOST_KEYS: usize = 10;

/// The references of a pod that lead nowhere: to an object that is not there, or to a key that it lacks. All are errors: the
/// pod could not start (as kubelet, where it waits for ever). What is optional may be missing.
///
/// Values of a Secret that are systemd credentials count as there. The problems are without places; see [`locate`].
#[must_use]
pub fn unresolved(pod: &Pod, objects: &Objects) -> Vec<Problem> {
    let mut problems = Vec::new();
    for reference in references::of(pod).into_iter().filter(|reference| !reference.optional) {
        let mut report = |field: String, reason: String| {
            let metadata = &pod.metadata;
            let name = (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
            let severity = Severity::Error;
            problems.push(Problem { line: None, column: None, field, reason, severity, pod: Some(name) });
        };
        match objects.get(&reference.object) {
            None => report(reference.name_field(), not_found(&reference.object, objects)),
            Some(object) => {
                for (index, key) in reference.keys.iter().enumerate() {
                    if let Some(reason) = lacking(object, key, &reference) {
                        report(reference.key_field(index), reason);
                    }
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

fn not_found(id: &ObjectId, objects: &Objects) -> String {
    let ObjectId { kind, namespace, name } = id;
    let of_kind = || objects.iter().map(Object::id).filter(|other| other.kind == *kind);
    let own: Vec<String> = of_kind().filter(|other| other.namespace == *namespace).map(|other| other.name).collect();
    let near = suggest::closest(name, &own.iter().map(String::as_str).collect::<Vec<_>>());
    let next = match (near, of_kind().find(|other| other.name == *name)) {
        (Some(near), _) => format!("did you mean {near:?}?"),
        (None, Some(other)) => {
            format!("the one of namespace {:?} serves the pods of that namespace only", other.namespace)
        }
        (None, None) => format!("add a {kind} document to a manifest or to the objects folder"),
    };
    format!("Not found: {name:?}: no source defines {id}; {next}")
}

/// Why an object cannot serve a key; `None` when it can.
fn lacking(object: &Object, key: &str, reference: &Reference) -> Option<String> {
    let id = object.id();
    let keys = match object {
        Object::ConfigMap(map) => {
            let mut keys: BTreeSet<&str> = map.data.iter().flatten().map(|(key, _)| key.as_str()).collect();
            let is_binary = map.binary_data.as_ref().is_some_and(|data| data.contains_key(key));
            if reference.usage == Use::Variable && is_binary {
                // As kubelet, which does not even look there.
                return Some(format!("Not found: {key:?}: {id} has it in binaryData, and a variable is text"));
            }
            keys.extend(map.binary_data.iter().flatten().map(|(key, _)| key.as_str()));
            keys.into_iter().map(str::to_owned).collect::<BTreeSet<String>>()
        }
        Object::Secret(secret) => {
            let kept = credentials(secret).unwrap_or_default().into_keys();
            secret.data.iter().flatten().map(|(key, _)| key.clone()).chain(kept).collect()
        }
    };
    if keys.contains(key) {
        return None;
    }
    let all: Vec<&str> = keys.iter().map(String::as_str).collect();
    let next = match suggest::closest(key, &all) {
        Some(near) => format!("did you mean {near:?}?"),
        None if all.is_empty() => "it has none".to_owned(),
        None => {
            let named: Vec<String> = all.iter().take(MOST_KEYS).map(|key| format!("{key:?}")).collect();
            let more = if all.len() > MOST_KEYS { " and others" } else { "" };
            format!("it has {}{more}", named.join(", "))
        }
    };
    Some(format!("Not found: {key:?}: {id} has no such key; {next}"))
}
