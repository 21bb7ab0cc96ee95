//! Which events the API server has, and which it is still to be told. Outlives sessions: nothing is told twice, and what
//! happened while nobody listened is told afterwards, as far as it still matters.

use super::super::request::Failure;
use super::correlate::{Correlator, time};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};

/// How many different events wait at most.
const WAITING: usize = 500;
/// How many of those that were sent are remembered, so that they are counted up there.
const SENT: usize = 1000;
/// As long as an API server keeps events by default: older ones of type Normal matter to nobody.
const NORMAL_AGE: SignedDuration = SignedDuration::from_hours(1);
/// Warnings of an outage may tell why a pod is what it is.
const WARNING_AGE: SignedDuration = SignedDuration::from_hours(24);
/// How long no event of a namespace is sent that does not exist, at first and at most: it may be made later, as that of a
/// static pod may.
const FIRST_WAIT: SignedDuration = SignedDuration::from_secs(5);
const LONGEST_WAIT: SignedDuration = SignedDuration::from_mins(5);
/// Longest name of an object.
const LONGEST_NAME: usize = 253;
/// Longest message that is sent, in bytes.
const LONGEST_MESSAGE: usize = 4096;

/// Namespace and name.
type Name = (String, String);

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The agent's number of the last event that was taken in.
    seen: u64,
    correlator: Correlator,
    /// Oldest first.
    waiting: VecDeque<Event>,
    sent: VecDeque<Name>,
    missing: BTreeMap<String, Missing>,
}

/// A namespace that does not exist.
#[derive(Debug)]
struct Missing {
    until: Timestamp,
    waited: SignedDuration,
}

/// A request to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    /// The event, as the agent has it.
    pub event: Event,
    /// Whether the API server has it, with a lower count.
    pub is_known: bool,
}

impl Ledger {
    /// The number after which the agent's events are new.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Takes in what happened since, oldest first.
    pub fn take_in(&mut self, events: Vec<Event>) {
        for event in events {
            self.seen = self.seen.max(sequence(&event));
            let Some(event) = self.correlator.judge(event) else { continue };
            let name = name(&event);
            match self.waiting.iter_mut().find(|waiting| self::name(waiting) == name) {
                Some(waiting) => *waiting = event,
                None => self.waiting.push_back(event),
            }
        }
        while self.waiting.len() > WAITING {
            let normal = self.waiting.iter().position(|event| !is_warning(event));
            self.waiting.remove(normal.unwrap_or(0));
        }
    }

    /// What is to be sent first. `now`, as all times here, is the wall clock's.
    pub fn next(&mut self, now: Timestamp) -> Option<Next> {
        self.waiting.retain(|event| {
            let age = now.duration_since(time(event));
            age <= if is_warning(event) { WARNING_AGE } else { NORMAL_AGE }
        });
        self.forget_namespaces();
        let exists = |event: &&Event| self.missing.get(&name(event).0).is_none_or(|missing| missing.until <= now);
        let event = self.waiting.iter().find(exists)?;
        Some(Next { event: event.clone(), is_known: self.sent.contains(&name(event)) })
    }

    /// When something that waits now for its namespace is to be tried again, if anything does.
    pub fn next_try(&self) -> Option<Timestamp> {
        self.missing.values().map(|missing| missing.until).min()
    }

    /// What came of a request. Tells whether the API server is well: after a failure that may pass the same is tried again,
    /// but not at once.
    pub fn done(&mut self, next: &Next, outcome: &Result<(), Failure>, now: Timestamp) -> bool {
        let name = name(&next.event);
        match outcome {
            Ok(()) => {
                self.remove(next);
                self.missing.remove(&name.0);
                self.remember(name);
            }
            // It expired there: it is new again.
            Err(failure) if failure.is_missing() && next.is_known => self.sent.retain(|sent| *sent != name),
            Err(failure) if failure.is_missing() || is_of_an_ending_namespace(failure) => {
                let waited = self.missing.get(&name.0).map_or(FIRST_WAIT, |known| (known.waited * 2).min(LONGEST_WAIT));
                let until = now.checked_add(waited).unwrap_or(now);
                self.missing.insert(name.0, Missing { until, waited });
            }
            // The answer of an earlier attempt was lost.
            Err(failure) if failure.is_conflict() && !next.is_known => self.remember(name),
            Err(failure) if failure.may_pass() => return false,
            Err(failure) => {
                tracing::debug!(event = name.1, "the API server refuses an event: {failure}");
                self.remove(next);
            }
        }
        true
    }

    /// Those that nothing waits for.
    fn forget_namespaces(&mut self) {
        let waiting = &self.waiting;
        self.missing.retain(|namespace, _| waiting.iter().any(|event| name(event).0 == *namespace));
    }

    fn remove(&mut self, next: &Next) {
        let name = name(&next.event);
        // It may have happened again in the meantime.
        self.waiting.retain(|event| self::name(event) != name || event.count != next.event.count);
    }

    fn remember(&mut self, name: Name) {
        if !self.sent.contains(&name) {
            self.sent.push_back(name);
        }
        if self.sent.len() > SENT {
            self.sent.pop_front();
        }
    }
}

fn is_warning(event: &Event) -> bool {
    event.type_.as_deref() == Some("Warning")
}

/// Whether nothing can be made in a namespace because it is being deleted.
fn is_of_an_ending_namespace(failure: &Failure) -> bool {
    failure.code() == 403 && failure.to_string().contains("is being terminated")
}

/// The agent's number of an event's last occurrence.
pub fn sequence(event: &Event) -> u64 {
    event.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn name(event: &Event) -> Name {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    (text(&event.metadata.namespace), text(&event.metadata.name))
}

/// Where events of a namespace are made.
pub fn collection(event: &Event) -> String {
    format!("/api/v1/namespaces/{}/events", name(event).0)
}

/// Where this one is.
pub fn path(event: &Event) -> String {
    format!("{}/{}", collection(event), api_name(&name(event).1))
}

/// The object's name may be as long as names can be, and what tells its events apart comes after it.
fn api_name(name: &str) -> String {
    let over = name.len().saturating_sub(LONGEST_NAME);
    match name.rsplit_once('.') {
        Some((object, number)) if over > 0 => {
            let object = cut(object, object.len().saturating_sub(over)).trim_end_matches(['.', '-']);
            format!("{object}.{number}")
        }
        _ => name.to_owned(),
    }
}

fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

/// An event as the API server is given it: as a kubelet's, about the Node that it knows.
pub fn object(event: &Event, node_name: &str, node_uid: Option<&str>) -> Value {
    let reference = match event.involved_object.kind.as_deref() {
        // With the uid that `kubectl describe node` looks for.
        Some("Node") => {
            ObjectReference { uid: Some(node_uid.unwrap_or(node_name).to_owned()), ..event.involved_object.clone() }
        }
        _ => event.involved_object.clone(),
    };
    let mut sent = Event {
        involved_object: reference,
        message: event.message.as_deref().map(|message| cut(message, LONGEST_MESSAGE).to_owned()),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(node_name.to_owned()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node_name.to_owned()),
        ..event.clone()
    };
    sent.metadata = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        name: Some(api_name(&name(event).1)),
        namespace: event.metadata.namespace.clone(),
        ..Default::default()
    };
    json!(sent)
}

/// That it happened again.
pub fn patch(event: &Event) -> Value {
    let message = event.message.as_deref().map(|message| cut(message, LONGEST_MESSAGE));
    json!({ "count": event.count, "lastTimestamp": event.last_timestamp, "message": message })
}

#[cfg(test)]
mod tests {
    use super::super::correlate::tests::event;
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn refused(code: u16) -> Result<(), Failure> {
        Err(Failure::Refused { code, message: "no".into() })
    }

    fn numbered(mut event: Event, number: u64) -> Event {
        event.metadata.resource_version = Some(number.to_string());
        event
    }

    fn of_type(type_: &str, mut event: Event) -> Event {
        event.type_ = Some(type_.into());
        event
    }

    #[test]
    fn an_event_is_made_once_and_counted_up_after_that() {
        let mut ledger = Ledger::default();
        ledger.take_in(vec![numbered(event("p", "R", "m", 1), 7)]);
        assert_eq!(ledger.seen(), 7);
        let next = ledger.next(at(2)).unwrap();
        assert!(!next.is_known);
        // No answer: the same again. Then there is one already: the answer was lost.
        assert!(!ledger.done(&next, &Err(Failure::Lost("gone".into())), at(2)));
        assert_eq!(ledger.next(at(2)), Some(next.clone()));
        assert!(ledger.done(&next, &refused(409), at(2)));
        let next = ledger.next(at(2)).unwrap();
        assert!(next.is_known);
        assert!(ledger.done(&next, &Ok(()), at(2)));
        assert_eq!(ledger.next(at(2)), None);
        let again = Event { count: Some(2), ..event("p", "R", "m", 3) };
        ledger.take_in(vec![numbered(again, 8)]);
        let next = ledger.next(at(3)).unwrap();
        assert_eq!((next.is_known, patch(&next.event)["count"].clone()), (true, json!(2)));
        // It expired there.
        assert!(ledger.done(&next, &refused(404), at(3)));
        assert!(!ledger.next(at(3)).unwrap().is_known);
    }

    #[test]
    fn what_happens_while_it_is_sent_is_not_lost() {
        let mut ledger = Ledger::default();
        ledger.take_in(vec![event("p", "R", "m", 1)]);
        let next = ledger.next(at(1)).unwrap();
        ledger.take_in(vec![Event { count: Some(2), ..event("p", "R", "m", 2) }]);
        ledger.done(&next, &Ok(()), at(2));
        let next = ledger.next(at(2)).unwrap();
        assert_eq!((next.is_known, next.event.count), (true, Some(2)));
    }

    #[test]
    fn a_namespace_that_does_not_exist_holds_nobody_up_and_is_tried_again() {
        let mut ledger = Ledger::default();
        let mut elsewhere = event("q", "R", "m", 1);
        elsewhere.metadata.namespace = Some("other".into());
        ledger.take_in(vec![event("p", "R", "m", 1), event("p", "R", "n", 1), elsewhere]);
        let next = ledger.next(at(1)).unwrap();
        assert!(ledger.done(&next, &refused(404), at(1)));
        let next = ledger.next(at(1)).unwrap();
        assert_eq!(next.event.metadata.namespace.as_deref(), Some("other"));
        ledger.done(&next, &Ok(()), at(1));
        assert_eq!((ledger.next(at(5)), ledger.next_try()), (None, Some(at(6))));
        let next = ledger.next(at(6)).expect("it may have been made");
        ledger.done(&next, &refused(404), at(6));
        assert_eq!(ledger.next_try(), Some(at(16)), "less often");
        // One that is being deleted will not exist.
        let next = ledger.next(at(16)).expect("once more");
        let message = "unable to create new content in namespace ns because it is being terminated".to_owned();
        ledger.done(&next, &Err(Failure::Refused { code: 403, message }), at(16));
        assert_eq!((ledger.next(at(16)), ledger.next_try()), (None, Some(at(36))));
        // In the end it matters to nobody.
        assert_eq!(ledger.next(at(2 * 86400)), None);
        assert_eq!(ledger.next_try(), None);
    }

    #[test]
    fn what_is_refused_for_good_is_dropped() {
        let mut ledger = Ledger::default();
        ledger.take_in(vec![event("p", "R", "m", 1)]);
        let next = ledger.next(at(1)).unwrap();
        assert!(ledger.done(&next, &refused(422), at(1)));
        assert_eq!(ledger.next(at(1)), None);
    }

    #[test]
    fn of_a_long_outage_the_newest_warnings_remain() {
        let mut ledger = Ledger::default();
        let normal = |i: i64| of_type("Normal", event(&format!("n{i}"), "R", "m", i));
        let warning = |i: i64| event(&format!("w{i}"), "R", "m", i);
        ledger.take_in((0..400).map(normal).chain((400..800).map(warning)).collect());
        assert_eq!(ledger.waiting.len(), WAITING);
        assert_eq!(ledger.waiting.iter().filter(|event| is_warning(event)).count(), 400);
        assert_eq!(ledger.waiting[0].involved_object.name.as_deref(), Some("n300"));
        assert!(ledger.next(at(5000)).unwrap().event.type_.as_deref() == Some("Warning"), "an hour later");
    }

    #[test]
    fn events_are_told_as_a_kubelet_s() {
        let mut of_node = event("n", "NodeReady", "m", 1);
        of_node.involved_object.kind = Some("Node".into());
        of_node.involved_object.uid = Some("n".into());
        let sent = object(&of_node, "n", Some("1234"));
        assert_eq!(sent["involvedObject"]["uid"], "1234");
        assert_eq!(sent["source"], json!({ "component": "kubelet", "host": "n" }));
        assert_eq!(sent["metadata"], json!({ "name": "n.m", "namespace": "ns" }));
        let mut of_pod = event("p", "Failed", &"é".repeat(3000), 1);
        of_pod.involved_object.uid = Some("static".into());
        of_pod.metadata.name = Some(format!("{}.abc", "x".repeat(252)));
        let sent = object(&of_pod, "n", Some("1234"));
        assert_eq!(sent["involvedObject"]["uid"], "static");
        assert_eq!(sent["message"].as_str().unwrap().len(), 4096);
        assert_eq!(sent["metadata"]["name"].as_str().unwrap().len(), 253);
        assert!(path(&of_pod).ends_with("x.abc"));
    }

    proptest! {
        #[test]
        fn whatever_is_answered_each_event_ends(codes in proptest::collection::vec(prop_oneof![
            Just(0_u16), Just(200), Just(403), Just(404), Just(409), Just(422), Just(429), Just(500)
        ], 0..200)) {
            let mut ledger = Ledger::default();
            ledger.take_in((0..5).map(|i| event(&format!("p{i}"), "R", "m", i)).collect());
            let mut now = 10;
            for code in codes {
                now += 100;
                let Some(next) = ledger.next(at(now)) else { break };
                let outcome = match code {
                    0 => Err(Failure::Lost("gone".into())),
                    200 => Ok(()),
                    code => refused(code),
                };
                ledger.done(&next, &outcome, at(now));
                prop_assert!(ledger.waiting.len() <= 5 && ledger.sent.len() <= 5);
            }
        }
    }
}
