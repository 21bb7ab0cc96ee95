//! What is worth a request (as client-go's correlator): similar events are told together, and no object has many.
//!
//! Decided by the events' own times, so that those of an outage are treated as they happened.

use super::super::rate::Bucket;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, BTreeSet};

/// How many different messages of one object and reason are told apart, less one.
const SIMILAR: usize = 10;
/// How long after the last one they count as similar.
const WINDOW: SignedDuration = SignedDuration::from_secs(600);
/// Events of one object and type at once, and how often one more.
const BURST: f64 = 25.0;
const SECONDS_PER_EVENT: f64 = 300.0;
/// Objects that are remembered.
const REMEMBERED: usize = 1000;
/// What a message that stands for several begins with.
const COMBINED: &str = "(combined from similar events): ";

/// Which object an event is about: kind, namespace, name, uid.
type Object = [String; 4];

/// Remembers what went out.
#[derive(Debug, Default)]
pub struct Correlator {
    similar: BTreeMap<(Object, String, String), Similar>,
    spam: BTreeMap<(Object, String), Bucket>,
}

#[derive(Debug)]
struct Similar {
    messages: BTreeSet<String>,
    last: Timestamp,
    combined: Option<Event>,
}

impl Correlator {
    /// What is to be sent of an event that happened, or happened again: itself, or the one that stands for all that are like
    /// it; `None`: there are too many of its object.
    pub fn judge(&mut self, event: Event) -> Option<Event> {
        let at = time(&event);
        let object = object(&event.involved_object);
        let type_ = event.type_.clone().unwrap_or_default();
        let event = self.combine(event, &object, &type_, at);
        make_room(&mut self.spam, Bucket::used);
        let bucket = self.spam.entry((object, type_));
        bucket.or_insert_with(|| Bucket::new(1.0 / SECONDS_PER_EVENT, BURST, at)).take(at).then_some(event)
    }

    fn combine(&mut self, event: Event, object: &Object, type_: &str, at: Timestamp) -> Event {
        make_room(&mut self.similar, |similar| similar.last);
        let message = event.message.clone().unwrap_or_default();
        let key = (object.clone(), type_.to_owned(), event.reason.clone().unwrap_or_default());
        let new = || Similar { messages: BTreeSet::new(), last: at, combined: None };
        let similar = self.similar.entry(key).or_insert_with(new);
        if at.duration_since(similar.last) > WINDOW {
            *similar = new();
        }
        similar.last = at;
        if similar.messages.contains(&message) {
            return event;
        }
        if similar.messages.len() + 1 < SIMILAR {
            similar.messages.insert(message);
            return event;
        }
        let combined = match similar.combined.take() {
            None => Event {
                message: Some(format!("{COMBINED}{message}")),
                first_timestamp: Some(Time(at)),
                last_timestamp: Some(Time(at)),
                count: Some(1),
                ..event
            },
            Some(known) => Event {
                message: Some(format!("{COMBINED}{message}")),
                last_timestamp: Some(Time(at)),
                count: Some(known.count.unwrap_or(1).saturating_add(1)),
                ..known
            },
        };
        similar.combined = Some(combined.clone());
        combined
    }
}

/// When an event happened last.
pub fn time(event: &Event) -> Timestamp {
    let last = event.last_timestamp.as_ref().or(event.first_timestamp.as_ref());
    last.map_or(Timestamp::UNIX_EPOCH, |at| at.0)
}

fn object(reference: &ObjectReference) -> Object {
    [&reference.kind, &reference.namespace, &reference.name, &reference.uid]
        .map(|text| text.clone().unwrap_or_default())
}

/// Forgets the oldest when there are too many.
fn make_room<K: Ord + Clone, V>(all: &mut BTreeMap<K, V>, used: impl Fn(&V) -> Timestamp) {
    if all.len() >= REMEMBERED
        && let Some(oldest) = all.iter().min_by_key(|(_, value)| used(value)).map(|(key, _)| key.clone())
    {
        all.remove(&oldest);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn event(pod: &str, reason: &str, message: &str, at: i64) -> Event {
        let mut event = Event::default();
        event.metadata.name = Some(format!("{pod}.{message}"));
        event.metadata.namespace = Some("ns".into());
        event.involved_object.kind = Some("Pod".into());
        event.involved_object.name = Some(pod.into());
        event.type_ = Some("Warning".into());
        event.reason = Some(reason.into());
        event.message = Some(message.into());
        event.count = Some(1);
        event.first_timestamp = Some(Time(Timestamp::from_second(at).unwrap()));
        event.last_timestamp.clone_from(&event.first_timestamp);
        event
    }

    #[test]
    fn the_tenth_different_message_stands_for_those_after_it() {
        let mut correlator = Correlator::default();
        for i in 0..9 {
            let sent = correlator.judge(event("p", "Failed", &format!("m{i}"), i)).unwrap();
            assert_eq!(sent.message, Some(format!("m{i}")));
        }
        let tenth = correlator.judge(event("p", "Failed", "m9", 9)).unwrap();
        assert_eq!(tenth.message.as_deref(), Some("(combined from similar events): m9"));
        let eleventh = correlator.judge(event("p", "Failed", "m10", 10)).unwrap();
        assert_eq!((eleventh.metadata.name, eleventh.count), (tenth.metadata.name, Some(2)));
        assert_eq!(eleventh.message.as_deref(), Some("(combined from similar events): m10"));
        // What was told by itself before goes on by itself; another reason, another object, and later: not similar.
        assert_eq!(correlator.judge(event("p", "Failed", "m3", 11)).unwrap().message.as_deref(), Some("m3"));
        assert_eq!(correlator.judge(event("p", "Other", "m11", 12)).unwrap().message.as_deref(), Some("m11"));
        assert_eq!(correlator.judge(event("q", "Failed", "m12", 13)).unwrap().message.as_deref(), Some("m12"));
        assert_eq!(correlator.judge(event("p", "Failed", "m13", 700)).unwrap().message.as_deref(), Some("m13"));
    }

    #[test]
    fn no_object_has_many() {
        let mut correlator = Correlator::default();
        let sent = (0..100).filter(|i| correlator.judge(event("p", "BackOff", "same", *i)).is_some()).count();
        assert_eq!(sent, 25);
        assert!(correlator.judge(event("other", "BackOff", "same", 100)).is_some());
        assert!(correlator.judge(event("p", "BackOff", "same", 500)).is_some(), "one more after five minutes");
        assert!(correlator.judge(event("p", "BackOff", "same", 501)).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let mut correlator = Correlator::default();
        for i in 0..2 * REMEMBERED {
            correlator.judge(event(&format!("p{i}"), "R", "m", i64::try_from(i).unwrap()));
        }
        assert!(correlator.similar.len() <= REMEMBERED && correlator.spam.len() <= REMEMBERED);
    }
}
