use super::*;
use std::collections::BTreeMap;

fn user(name: &str, groups: &[&str]) -> User {
    User { name: name.to_owned(), groups: groups.iter().map(|group| (*group).to_owned()).collect(), ..User::default() }
}

fn keys() -> Keys {
    Keys(hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).unwrap())
}

#[test]
fn methods_mean_what_they_mean_to_the_kubelet() {
    for (method, verb_of) in [
        (Method::GET, "get"),
        (Method::POST, "create"),
        (Method::PUT, "update"),
        (Method::PATCH, "patch"),
        (Method::DELETE, "delete"),
        (Method::HEAD, ""),
        (Method::OPTIONS, ""),
    ] {
        assert_eq!(verb(&method), verb_of);
    }
}

#[test]
fn those_who_are_known_are_in_the_group_of_those() {
    assert_eq!(known(user("ann", &["g"])).groups, ["g", AUTHENTICATED]);
    assert_eq!(known(user("ann", &[AUTHENTICATED])).groups, [AUTHENTICATED]);
    assert_eq!(known(user("ann", &[UNAUTHENTICATED])).groups, [UNAUTHENTICATED]);
    assert!(known(user(ANONYMOUS, &[])).groups.is_empty());
}

#[test]
fn refusals_are_in_the_kubelets_words() {
    let refusal = Refusal::Forbidden { user: "ann".to_owned(), verb: "get", subresources: &["pods", "proxy"] };
    assert_eq!(refusal.to_string(), "Forbidden (user=ann, verb=get, resource=nodes, subresource(s)=[pods proxy])");
    let why = ReviewError::Alone;
    let refusal = Refusal::Unknown { user: "ann".to_owned(), verb: "get", subresource: "proxy", why };
    assert_eq!(refusal.to_string(), "Authorization error (user=ann, verb=get, resource=nodes, subresource=proxy)");
    // Why somebody is nobody is nobody's business.
    assert_eq!(Refusal::Unauthorized("the certificate has expired".to_owned()).to_string(), "Unauthorized");
}

#[test]
fn two_questions_never_have_one_key() {
    let keys = keys();
    let asked: Vec<(&[&str], &str)> = vec![
        (&["a", "bc"], "1"),
        (&["ab", "c"], "2"),
        (&["abc"], "3"),
        (&["abc", ""], "4"),
        (&["", "abc"], "5"),
        (&[], "6"),
    ];
    let mut seen = BTreeMap::new();
    for (parts, name) in asked {
        assert_eq!(seen.insert(keys.of(parts.iter().copied()), name), None, "{name}");
    }
    assert_eq!(keys.of(["a"]), keys.of(["a"]));
    // Nobody can make keys for another process.
    assert_ne!(keys.of(["a"]), self::keys().of(["a"]));
}

#[test]
fn answers_of_another_cluster_are_forgotten() {
    let mut answers = Answers::new();
    let (key, now, counts) = ([1; 32], Duration::ZERO, [Duration::from_secs(9), Duration::from_secs(3)]);
    assert_eq!(answers.get(&key, 1, now), None);
    answers.put(key, Some("yes"), 1, counts, now);
    assert_eq!(answers.get(&key, 1, Duration::from_secs(8)), Some(Some("yes")));
    assert_eq!(answers.get(&key, 2, now), None);
    assert_eq!(answers.get(&key, 1, now), None);
    // One that was asked for before the cluster changed comes too late.
    answers.put(key, Some("yes"), 2, counts, now);
    assert_eq!(answers.get(&key, 1, now), None);
    answers.put(key, None, 1, counts, now);
    assert_eq!(answers.get(&key, 1, now), Some(None));
    assert_eq!(answers.get(&key, 1, Duration::from_secs(3)), None);
}
