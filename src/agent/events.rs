//! The node's recent events: what happened to pods, manifests and images, in the words that people know from kubectl.

pub use crate::runtime::Note;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// How many distinct events are kept.
const CAPACITY: usize = 500;

/// A bounded log; the same event again only raises its count.
#[derive(Debug)]
pub struct EventLog {
    node: String,
    events: Mutex<(u64, VecDeque<Event>)>,
}

impl EventLog {
    /// An empty log of the named node.
    #[must_use]
    pub fn new(node: &str) -> EventLog {
        EventLog { node: node.to_owned(), events: Mutex::new((0, VecDeque::new())) }
    }

    /// All events, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).1.iter().cloned().collect()
    }

    /// Those that were recorded, or happened again, after the one of this number (its resourceVersion), oldest first.
    #[must_use]
    pub fn after(&self, number: u64) -> Vec<Event> {
        let guard = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // Each goes to the end when it happens again.
        let new = guard.1.iter().rev().take_while(|event| sequence(event) > number);
        let mut new: Vec<Event> = new.cloned().collect();
        new.reverse();
        new
    }

    /// Record a note about an object.
    pub fn record(&self, object: ObjectReference, note: &Note, now: Timestamp) {
        let mut guard = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let (sequence, events) = &mut *guard;
        *sequence += 1;
        let same = |e: &Event| {
            e.involved_object == object
                && e.reason.as_deref() == Some(note.reason)
                && e.message.as_deref() == Some(note.message.as_str())
        };
        if let Some(mut event) = events.iter().position(same).and_then(|at| events.remove(at)) {
            event.count = Some(event.count.unwrap_or(1).saturating_add(1));
            event.last_timestamp = Some(Time(now));
            event.metadata.resource_version = Some(sequence.to_string());
            events.push_back(event);
            return;
        }
        if events.len() >= CAPACITY {
            events.pop_front();
        }
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".into());
        let name = object.name.clone().unwrap_or_default();
        events.push_back(Event {
            metadata: ObjectMeta {
                // As kubelet: object name, a dot, hex nanoseconds.
                name: Some(format!("{name}.{:x}{:02x}", now.as_nanosecond(), *sequence % 256)),
                namespace: Some(namespace),
                creation_timestamp: Some(Time(now)),
                resource_version: Some(sequence.to_string()),
                ..ObjectMeta::default()
            },
            involved_object: object,
            type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
            reason: Some(note.reason.into()),
            message: Some(note.message.clone()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some("coracle".into()), host: Some(self.node.clone()) }),
            reporting_component: Some("coracle".into()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        });
    }

    /// The node as an event's object.
    #[must_use]
    pub fn node_reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        }
    }
}

fn sequence(event: &Event) -> u64 {
    event.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A pod, or one of its containers, as an event's object.
#[must_use]
pub fn pod_reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        field_path: container.map(|c| format!("spec.{}{{{c}}}", list_of(pod, c))),
        ..ObjectReference::default()
    }
}

/// Which list of the spec a container is in.
fn list_of(pod: &Pod, container: &str) -> &'static str {
    let init = pod.spec.as_ref().and_then(|s| s.init_containers.as_ref());
    match init.is_some_and(|list| list.iter().any(|c| c.name == container)) {
        true => "initContainers",
        false => "containers",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_event_again_counts_up_and_moves_to_the_end() {
        let log = EventLog::new("n");
        let at = |s| Timestamp::from_second(s).unwrap();
        log.record(log.node_reference(), &Note::warning("A", "a"), at(1));
        log.record(log.node_reference(), &Note::normal("B", "b"), at(2));
        log.record(log.node_reference(), &Note::warning("A", "a"), at(3));
        let reasons: Vec<_> = log.list().iter().map(|e| (e.reason.clone().unwrap(), e.count.unwrap())).collect();
        assert_eq!(reasons, [("B".to_owned(), 1), ("A".to_owned(), 2)]);
        let after = |n| log.after(n).iter().filter_map(|e| e.reason.clone()).collect::<Vec<_>>().join(" ");
        assert_eq!(
            (after(0).as_str(), after(1).as_str(), after(2).as_str(), after(3).as_str()),
            ("B A", "B A", "A", "")
        );
    }

    #[test]
    fn the_log_is_bounded() {
        let log = EventLog::new("n");
        for i in 0..(CAPACITY + 50) {
            log.record(log.node_reference(), &Note::normal("R", i.to_string()), Timestamp::UNIX_EPOCH);
        }
        let events = log.list();
        assert_eq!(events.len(), CAPACITY);
        assert_eq!(events[0].message.as_deref(), Some("50"));
    }
}
