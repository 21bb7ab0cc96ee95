use super::*;
use Decision::{Pull, Use};
use proptest::prelude::*;
use serde_json::json;
use std::time::Duration;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn failure(delay: i64, failed: i64) -> Backoff {
    Backoff {
        delay: SignedDuration::from_secs(delay),
        failed: at(failed),
        reason: "ErrImagePull",
        message: "no such host".into(),
        shown: Vec::new(),
    }
}

fn wait(reason: &'static str, message: &str, until: Option<i64>) -> Decision {
    Decision::Wait(Waiting { reason, message: message.into(), until: until.map(at) })
}

#[test]
fn every_policy_meets_every_state_of_the_store() {
    let refused = Local::Refused("unsigned".into());
    let absent = "Container image \"x\" is not present with pull policy of Never";
    let closed =
        "Container image \"x\" was pulled with credentials that this pod does not have, with pull policy of Never";
    for (policy, local, decision) in [
        (Policy::Always, Local::Absent, Pull),
        (Policy::Always, Local::Usable, Pull),
        (Policy::Always, Local::Inaccessible, Pull),
        (Policy::Always, refused.clone(), Pull),
        (Policy::IfNotPresent, Local::Unverified("unsigned".into()), Pull),
        (Policy::IfNotPresent, Local::Absent, Pull),
        (Policy::IfNotPresent, Local::Usable, Use),
        (Policy::IfNotPresent, Local::Inaccessible, Pull),
        (Policy::IfNotPresent, refused.clone(), wait("SignatureValidationFailed", "unsigned", None)),
        (Policy::Never, Local::Absent, wait("ErrImageNeverPull", absent, None)),
        (Policy::Never, Local::Usable, Use),
        (Policy::Never, Local::Inaccessible, wait("ErrImageNeverPull", closed, None)),
        (Policy::Never, refused, wait("SignatureValidationFailed", "unsigned", None)),
        (Policy::Never, Local::Unverified("unsigned".into()), wait("SignatureValidationFailed", "unsigned", None)),
    ] {
        let question = Question { image: "x", invalid: None, policy, local: &local, backoff: None, shown: &[] };
        assert_eq!(decide(&question, at(0)), decision, "{policy:?} {local:?}");
        // What would be pulled waits for the back-off, nothing else does.
        let backoff = failure(10, 0);
        let question = Question { backoff: Some(&backoff), ..question };
        let message = "Back-off pulling image \"x\": ErrImagePull: no such host";
        let held = match (&decision, &local) {
            (Pull, Local::Unverified(why)) => wait("SignatureValidationFailed", &format!("{why}; {message}"), Some(10)),
            (Pull, _) => wait("ImagePullBackOff", message, Some(10)),
            _ => decision.clone(),
        };
        assert_eq!(decide(&question, at(5)), held, "{policy:?} {local:?}");
        assert_eq!(decide(&question, at(10)), decision, "{policy:?} {local:?}");
    }
}

#[test]
fn an_invalid_name_is_told_whatever_the_policy() {
    for policy in [Policy::Always, Policy::IfNotPresent, Policy::Never] {
        let question =
            Question { image: "X", invalid: Some("bad"), policy, local: &Local::Absent, backoff: None, shown: &[] };
        let message = "Failed to apply default image tag \"X\": couldn't parse image name \"X\": bad";
        assert_eq!(decide(&question, at(0)), wait("InvalidImageName", message, None));
    }
}

#[test]
fn the_failure_is_told_first_then_the_wait() {
    let backoff = failure(20, 100);
    assert_eq!(Decision::Wait(backoff.waiting("x", at(101))), wait("ErrImagePull", "no such host", Some(102)));
    assert_eq!(backoff.waiting("x", at(102)).reason, "ImagePullBackOff");
    assert_eq!(backoff.waiting("x", at(102)).until, Some(at(120)));
}

#[test]
fn pauses_double_up_to_five_minutes_and_are_forgotten_after_ten() {
    let (mut now, mut last, mut delays) = (at(0), None, Vec::new());
    for _ in 0..7 {
        let next = Backoff::after(last.as_ref(), "ErrImagePull", String::new(), Vec::new(), now);
        delays.push(next.delay.as_secs());
        now = next.until();
        last = Some(next);
    }
    assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    let failed = last.as_ref().unwrap().failed;
    let later = |seconds| failed.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    let next = |now| Backoff::after(last.as_ref(), "ErrImagePull", String::new(), Vec::new(), now).delay.as_secs();
    assert_eq!((next(later(600)), next(later(601))), (300, 10));
}

fn secret(name: &str, uid: &str, hash: &str) -> Secret {
    Secret { namespace: "n".into(), name: name.into(), uid: uid.into(), credential_hash: hash.into() }
}

#[test]
fn who_has_other_secrets_by_now_does_not_wait_for_what_was_wrong_with_the_old_ones() {
    let (wrong, right) = (secret("s", "1", "wrong"), secret("s", "1", "right"));
    let failed = Backoff { shown: vec![wrong.clone()], ..failure(300, 0) };
    let ask = |policy, local: &Local, shown: &[Secret]| {
        decide(&Question { image: "x", invalid: None, policy, local, backoff: Some(&failed), shown }, at(1))
    };
    for local in [Local::Absent, Local::Inaccessible] {
        let ask = |shown: &[Secret]| ask(Policy::IfNotPresent, &local, shown);
        assert!(matches!(ask(std::slice::from_ref(&wrong)), Decision::Wait(_)));
        assert_eq!(ask(std::slice::from_ref(&right)), Pull, "corrected");
        assert_eq!(ask(&[wrong.clone(), right.clone()]), Pull, "one more");
        assert_eq!(ask(&[]), Pull, "none any more");
    }
    assert!(matches!(ask(Policy::Never, &Local::Absent, &[right]), Decision::Wait(_)), "Never is never");
    // A registry that takes none of them is asked less and less all the same.
    let next = Backoff::after(Some(&failed), "ErrImagePull", String::new(), Vec::new(), at(1));
    assert_eq!(next.delay.as_secs(), 300);
}

#[test]
fn credentials_open_what_they_opened_before() {
    use CredentialsVerification as Verify;
    let record = |access: Access| Record { image: "i".into(), repositories: [("r/a".to_owned(), access)].into() };
    let known = secret("s", "1", "h");
    let open = record(Access { node: true, ..Access::default() });
    let by_secret = record(Access { node: false, secrets: [known.clone()].into() });
    let nobody = record(Access::default());
    let list = ["r/a".to_owned(), "q/*".to_owned()];
    // The object with other content, the content of another object, and what has only the name in common.
    let (edited, copied, anew) = (secret("s", "1", "other"), secret("t", "2", "h"), secret("s", "2", "other"));
    // (rule, repository, preloaded, record, secret) → allowed
    for (rule, repository, preloaded, record, secret, allowed) in [
        (Verify::NeverVerify, "r/b", false, Some(&nobody), None, true),
        (Verify::NeverVerifyPreloadedImages, "r/a", false, None, None, true),
        (Verify::NeverVerifyPreloadedImages, "r/a", false, Some(&open), None, true),
        (Verify::NeverVerifyPreloadedImages, "r/b", false, Some(&open), None, false),
        (Verify::NeverVerifyPreloadedImages, "r/b", true, Some(&open), None, true),
        (Verify::NeverVerifyPreloadedImages, "r/a", false, Some(&by_secret), None, false),
        (Verify::NeverVerifyPreloadedImages, "r/a", false, Some(&by_secret), Some(&anew), false),
        (Verify::NeverVerifyPreloadedImages, "r/a", false, Some(&by_secret), Some(&known), true),
        (Verify::NeverVerifyPreloadedImages, "r/a", false, Some(&by_secret), Some(&edited), true),
        (Verify::NeverVerifyPreloadedImages, "r/a", false, Some(&by_secret), Some(&copied), true),
        (Verify::NeverVerifyPreloadedImages, "r/b", false, Some(&by_secret), Some(&known), false),
        (Verify::NeverVerifyPreloadedImages, "r/a", false, Some(&nobody), Some(&known), false),
        (Verify::NeverVerifyAllowlistedImages, "r/a", false, Some(&nobody), None, true),
        (Verify::NeverVerifyAllowlistedImages, "q/x/y", false, None, None, true),
        (Verify::NeverVerifyAllowlistedImages, "qq/x", true, None, None, false),
        (Verify::NeverVerifyAllowlistedImages, "q", true, None, None, false),
        (Verify::AlwaysVerify, "r/a", true, None, None, false),
        (Verify::AlwaysVerify, "r/a", true, Some(&open), None, true),
    ] {
        let rules = Credentials { verification: rule, allowlist: &list };
        let secrets: Vec<Secret> = secret.into_iter().cloned().collect();
        let got = rules.allow(repository, preloaded, record, &secrets);
        assert_eq!(got, allowed, "{rule:?} {repository} preloaded={preloaded} {record:?} {secret:?}");
    }
    // A hash that could not be made opens nothing.
    assert!(!secret("t", "2", "").is_as_good_as(&secret("s", "1", "")));
}

#[test]
fn what_has_come_in_another_way_does_not_wait_for_a_registry_that_is_away() {
    let (away, refused) = (Backoff { reason: "RegistryUnavailable", ..failure(10, 0) }, failure(10, 0));
    let question = |policy, local, backoff| {
        decide(&Question { image: "x", invalid: None, policy, local, backoff: Some(backoff), shown: &[] }, at(5))
    };
    assert_eq!(question(Policy::Always, &Local::Usable, &away), Pull);
    assert_eq!(question(Policy::IfNotPresent, &Local::Usable, &away), Use);
    // Who was refused is refused, whatever is here.
    assert!(matches!(question(Policy::Always, &Local::Usable, &refused), Decision::Wait(_)));
    assert!(matches!(question(Policy::Always, &Local::Absent, &away), Decision::Wait(_)));
    assert!(matches!(question(Policy::Always, &Local::Inaccessible, &away), Decision::Wait(_)));
}

#[test]
fn a_container_needs_its_own_image_and_those_of_the_volumes_it_mounts() {
    let pod = serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {
            "containers": [
                {"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
                {"name": "b", "image": "j:latest", "imagePullPolicy": "Never"}],
            "volumes": [{"name": "v", "image": {"reference": "k:1", "pullPolicy": "Always"}},
                {"name": "w", "image": {"reference": "l:1"}}]}}));
    let spec = Spec::new(pod.unwrap()).unwrap();
    let of = |name| needs(&spec, spec.container(name).unwrap()).collect::<Vec<_>>();
    assert_eq!(of("a"), [("i", Policy::Always), ("k:1", Policy::Always)]);
    assert_eq!(of("b"), [("j:latest", Policy::Never)]);
}

#[test]
fn durations_are_go_s() {
    for (millis, text) in
        [(0, "0s"), (345, "345ms"), (1200, "1.2s"), (2000, "2s"), (61_050, "1m1.05s"), (3_600_000, "1h0m0s")]
    {
        assert_eq!(go_duration(Duration::from_millis(millis)), text);
    }
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Always), Just(Policy::IfNotPresent), Just(Policy::Never)]
}

fn local() -> impl Strategy<Value = Local> {
    prop_oneof![
        Just(Local::Absent),
        Just(Local::Usable),
        Just(Local::Inaccessible),
        Just(Local::Refused("unsigned".into()))
    ]
}

proptest! {
    /// Nothing is used that may not be, Never never pulls, and every wait for a time ends at that time.
    #[test]
    fn decisions_are_safe_and_waits_end(
        policy in policy(), local in local(), delay in 10i64..=300, failed in 0i64..1000, now in 0i64..2000, failed_once: bool,
    ) {
        let backoff = failure(delay, failed);
        let question = Question {
            image: "x", invalid: None, policy, local: &local, backoff: failed_once.then_some(&backoff), shown: &[],
        };
        match decide(&question, at(now)) {
            Decision::Use => prop_assert!(local == Local::Usable && policy != Policy::Always),
            Decision::Pull => prop_assert!(policy != Policy::Never),
            Decision::Wait(Waiting { until: Some(until), .. }) => {
                prop_assert!(failed_once && until > at(now) && until <= backoff.until());
                let mut then = decide(&question, until);
                if let Decision::Wait(Waiting { until: Some(until), .. }) = then {
                    then = decide(&question, until);
                }
                prop_assert_eq!(then, Decision::Pull);
            }
            Decision::Wait(Waiting { until: None, .. }) => {
                prop_assert!(policy == Policy::Never || policy != Policy::Always && matches!(local, Local::Refused(_)));
            }
        }
    }

    #[test]
    fn pauses_stay_between_ten_seconds_and_five_minutes(times in proptest::collection::vec(0i64..100_000, 1..20)) {
        let mut last: Option<Backoff> = None;
        for now in times {
            let next = Backoff::after(last.as_ref(), "ErrImagePull", String::new(), Vec::new(), at(now));
            prop_assert!(next.delay >= MIN_BACKOFF && next.delay <= MAX_BACKOFF);
            last = Some(next);
        }
    }
}
