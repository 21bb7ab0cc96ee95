//! What an answer of the API server changes. Pure.

use super::schedule::Life;
use super::shelf;
use super::wanted::Wanted;
use crate::manifest::{Object, ObjectId};
use crate::pod::supply::{Service, Supply, Token, TokenId};
use std::sync::Arc;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// An object, that there is none, or why it is not given.
    Object(ObjectId, Result<Option<Object>, String>),
    /// A token, or why there is none.
    Token(TokenId, Result<Held, String>),
    /// All services that have an address.
    Services(Vec<Service>),
}

/// A token, and how long it is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub token: Token,
    pub life: Life,
}

/// Whether a pod still refers to it: answers may be on their way when the last one leaves.
pub fn is_wanted(update: &Update, wanted: &Wanted) -> bool {
    match update {
        Update::Object(id, _) => wanted.objects.contains(id),
        Update::Token(id, _) => wanted.tokens.contains_key(id),
        Update::Services(_) => true,
    }
}

/// Whether it changes anything. A refusal takes away nothing that was given before.
pub fn is_news(update: &Update, supply: &Supply) -> bool {
    match update {
        Update::Object(id, Ok(Some(object))) => supply.objects.get(id) != Some(object),
        Update::Object(id, Ok(None)) => !supply.absent.contains(id),
        Update::Object(id, Err(why)) => supply.objects.get(id).is_none() && supply.refused.get(id) != Some(why),
        Update::Token(id, Ok(held)) => supply.tokens.get(id) != Some(&held.token),
        Update::Token(id, Err(why)) => !supply.tokens.contains_key(id) && supply.unissued.get(id) != Some(why),
        Update::Services(all) => supply.services.as_deref() != Some(all),
    }
}

/// Makes it count.
pub fn apply(supply: &mut Supply, update: Update) {
    if !is_news(&update, supply) {
        return;
    }
    match update {
        Update::Object(id, answer) => {
            supply.refused.remove(&id);
            if let Err(why) = answer {
                supply.refused.insert(id, why);
                return;
            }
            supply.absent.remove(&id);
            match answer {
                Ok(Some(object)) => drop(Arc::make_mut(&mut supply.objects).insert(object)),
                _ => {
                    Arc::make_mut(&mut supply.objects).remove(&id);
                    supply.absent.insert(id);
                }
            }
        }
        Update::Token(id, answer) => {
            supply.unissued.remove(&id);
            match answer {
                Ok(held) => drop(supply.tokens.insert(id, held.token)),
                Err(why) => drop(supply.unissued.insert(id, why)),
            }
        }
        Update::Services(all) => supply.services = Some(Arc::new(all)),
    }
}

/// Lets go of what is not wanted. Returns the names of its records.
pub fn release(supply: &mut Supply, wanted: &Wanted) -> Vec<String> {
    let objects = supply.objects.iter().map(Object::id).chain(supply.absent.iter().cloned());
    let objects: Vec<ObjectId> = objects.filter(|id| !wanted.objects.contains(id)).collect();
    let tokens: Vec<TokenId> = supply.tokens.keys().filter(|id| !wanted.tokens.contains_key(*id)).cloned().collect();
    if !objects.is_empty() {
        let all = Arc::make_mut(&mut supply.objects);
        objects.iter().for_each(|id| drop(all.remove(id)));
    }
    supply.absent.retain(|id| wanted.objects.contains(id));
    supply.refused.retain(|id, _| wanted.objects.contains(id));
    supply.tokens.retain(|id, _| wanted.tokens.contains_key(id));
    supply.unissued.retain(|id, _| wanted.tokens.contains_key(id));
    objects.iter().map(shelf::name_of).chain(tokens.iter().map(shelf::name_of_token)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ObjectKind;
    use serde_json::json;

    fn id(name: &str) -> ObjectId {
        ObjectId { kind: ObjectKind::ConfigMap, namespace: "n".into(), name: name.into() }
    }

    fn map(name: &str, value: &str) -> Object {
        let map = json!({"metadata": {"name": name, "namespace": "n"}, "data": {"k": value}});
        Object::ConfigMap(Arc::new(serde_json::from_value(map).expect("ConfigMap")))
    }

    fn token(pod: &str) -> TokenId {
        TokenId { pod: pod.into(), audience: String::new(), expiration_seconds: 3607 }
    }

    fn held(text: &str) -> Held {
        Held { token: Token(text.into()), life: Life { begun: jiff::Timestamp::UNIX_EPOCH, seconds: 3607 } }
    }

    #[test]
    fn only_what_the_api_server_says_changes_anything() {
        let mut supply = Supply::default();
        let mut say = |update: Update| {
            let news = is_news(&update, &supply);
            let before = supply.clone();
            apply(&mut supply, update.clone());
            assert_eq!(news, supply != before, "{update:?}");
            assert!(!is_news(&update, &supply));
            (supply.objects.get(&id("a")).is_some(), supply.absent.contains(&id("a")), supply.refused.len())
        };
        assert_eq!(say(Update::Object(id("a"), Err("forbidden".into()))), (false, false, 1));
        assert_eq!(say(Update::Object(id("a"), Ok(None))), (false, true, 0));
        assert_eq!(say(Update::Object(id("a"), Ok(Some(map("a", "1"))))), (true, false, 0));
        assert_eq!(say(Update::Object(id("a"), Err("forbidden".into()))), (true, false, 0), "what was given stays");
        assert_eq!(say(Update::Object(id("a"), Ok(Some(map("a", "2"))))), (true, false, 0));
        assert_eq!(say(Update::Object(id("a"), Ok(None))), (false, true, 0));
        say(Update::Token(token("u"), Err("no".into())));
        say(Update::Token(token("u"), Ok(held("t1"))));
        say(Update::Token(token("u"), Err("no".into())));
        say(Update::Token(token("u"), Ok(held("t2"))));
        say(Update::Services(Vec::new()));
        assert_eq!(supply.tokens[&token("u")], Token("t2".into()));
        assert!(supply.unissued.is_empty());
        assert_eq!(supply.services, Some(Arc::default()));
    }

    #[test]
    fn what_nobody_refers_to_goes() {
        let mut supply = Supply::default();
        for name in ["a", "b"] {
            apply(&mut supply, Update::Object(id(name), Ok(Some(map(name, "1")))));
            apply(&mut supply, Update::Object(id(&format!("no-{name}")), Ok(None)));
            apply(&mut supply, Update::Object(id(&format!("forbidden-{name}")), Err("no".into())));
            apply(&mut supply, Update::Token(token(name), Ok(held("t"))));
        }
        let claim = super::super::wanted::Claim { namespace: "n".into(), pod: "p".into(), account: "s".into() };
        let wanted = Wanted {
            objects: ["a", "no-a", "forbidden-a"].map(id).into(),
            tokens: [(token("a"), claim)].into(),
            ..Wanted::default()
        };
        let names = release(&mut supply, &wanted);
        assert_eq!(names, ["configmap.n.b", "configmap.n.no-b", "token.b.3607."]);
        assert_eq!(supply.objects.iter().count(), 1);
        assert_eq!((supply.absent.len(), supply.refused.len(), supply.tokens.len()), (1, 1, 1));
        assert!(release(&mut supply, &wanted).is_empty());
        assert!(is_wanted(&Update::Object(id("a"), Ok(None)), &wanted));
        assert!(!is_wanted(&Update::Object(id("b"), Ok(None)), &wanted));
        assert!(!is_wanted(&Update::Token(token("b"), Err("no".into())), &wanted));
    }
}
