use super::*;
use proptest::prelude::*;
use serde_json::json;

fn seen(phase: &str, ready: bool, restarts: i64) -> Pod {
    let value = json!({"metadata": {"name": "p"}, "status": {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        "containerStatuses": [{"name": "main", "image": "i", "imageID": "", "ready": ready, "restartCount": restarts,
            "state": if ready { json!({"running": {}}) } else { json!({"waiting": {"reason": "CrashLoopBackOff"}}) }}],
    }});
    serde_json::from_value(value).unwrap()
}

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// What is concluded at the end of 60 s from (time, ready, restarts), as it was seen.
fn story(steps: &[(f64, bool, i64)]) -> Judgement {
    let mut trial = Trial::begin(Some(s(60.0)), &seen("Pending", false, 0), s(100.0));
    let mut last = seen("Pending", false, 0);
    for (at, ready, restarts) in steps {
        last = seen("Running", *ready, *restarts);
        assert_eq!(trial.look(&last, s(100.0 + at)), Judgement::Open(Some(s(160.0))), "at {at}");
    }
    trial.look(&last, s(160.0))
}

#[test]
fn what_is_ready_and_stays_so_is_good() {
    assert_eq!(story(&[(2.0, true, 0)]), Judgement::Good);
    // It waited for something at first.
    assert_eq!(story(&[(1.0, false, 1), (5.0, false, 2), (20.0, true, 3)]), Judgement::Good);
    let mut trial = Trial::begin(Some(s(60.0)), &seen("Pending", false, 0), s(0.0));
    assert_eq!(trial.look(&seen("Succeeded", false, 0), s(1.0)), Judgement::Good);
}

#[test]
fn what_crashes_again_and_again_is_bad_however_long_it_runs_in_between() {
    for life in [0.1, 3.0, 8.0, 14.0, 20.0, 25.0, 29.0, 31.0, 45.0, 59.0] {
        let (mut steps, mut at, mut restarts, mut pause) = (Vec::new(), 0.5, 0, 10.0);
        while at < 60.0 {
            steps.push((at, true, restarts));
            if at + life < 60.0 {
                steps.push((at + life, false, restarts));
            }
            at += life + pause;
            pause *= 2.0;
            restarts += 1;
        }
        assert!(matches!(story(&steps), Judgement::Bad(_)), "{life}: {steps:?}");
    }
}

#[test]
fn reasons_tell_what_was_the_matter() {
    let Judgement::Bad(why) = story(&[(1.0, true, 0), (2.0, false, 0)]) else { panic!("good") };
    assert_eq!(why, "not Ready within 60s: container main waits: CrashLoopBackOff");
    let Judgement::Bad(why) = story(&[(50.0, true, 0)]) else { panic!("good") };
    assert_eq!(why, "Ready only for the last 10s of 60s; 15s are needed");
    let Judgement::Bad(why) = story(&[(31.0, true, 1)]) else { panic!("good") };
    assert!(why.starts_with("a container was restarted within the last half of 60s"), "{why}");
}

#[test]
fn a_pod_that_failed_is_judged_at_once_but_not_one_that_was_refused() {
    let mut trial = Trial::begin(Some(s(60.0)), &seen("Pending", false, 0), s(0.0));
    assert!(matches!(trial.look(&seen("Failed", false, 0), s(1.0)), Judgement::Bad(_)));
    let refused: Pod = serde_json::from_value(json!({"status": {"phase": "Failed", "reason": "OutOfcpu"}})).unwrap();
    assert_eq!(trial.look(&refused, s(2.0)), Judgement::Open(Some(s(60.0))));
}

#[test]
fn without_a_limit_a_pod_is_good_once_it_is_stable_and_never_late() {
    let mut trial = Trial::begin(None, &seen("Pending", false, 0), s(0.0));
    assert_eq!(trial.look(&seen("Running", false, 0), s(9000.0)), Judgement::Open(None));
    assert_eq!(trial.look(&seen("Running", true, 0), s(9001.0)), Judgement::Open(Some(s(9011.0))));
    assert_eq!(trial.look(&seen("Running", true, 1), s(9005.0)), Judgement::Open(Some(s(9015.0))));
    assert_eq!(trial.look(&seen("Running", true, 1), s(9015.0)), Judgement::Good);
}

proptest! {
    /// Whatever is seen: before its time nothing is concluded of a pod that runs, and afterwards something is.
    #[test]
    fn a_limit_is_kept(
        window in 1u64..100_000,
        steps in proptest::collection::vec((0u64..5_000, any::<bool>(), 0i64..5), 0..30),
    ) {
        let window = Duration::from_secs(window);
        let mut trial = Trial::begin(Some(window), &seen("Pending", false, 0), Duration::ZERO);
        let mut now = Duration::ZERO;
        for (later, ready, restarts) in steps {
            now += Duration::from_secs(later);
            let judged = trial.look(&seen("Running", ready, restarts), now);
            prop_assert_eq!(now < window, matches!(judged, Judgement::Open(_)), "{:?} at {:?}", judged, now);
            if !ready && now >= window {
                prop_assert!(matches!(judged, Judgement::Bad(_)));
            }
        }
        prop_assert!(!matches!(trial.look(&seen("Running", true, 0), window + now), Judgement::Open(_)));
    }
}

#[test]
fn what_failed_and_runs_on_is_good_once_it_was_ready_for_all_of_its_time() {
    let mut trial = Trial::second(Some(s(60.0)), &seen("Running", false, 3), s(0.0));
    assert_eq!(trial.look(&seen("Running", false, 3), s(1000.0)), Judgement::Open(None));
    assert_eq!(trial.look(&seen("Running", true, 3), s(1001.0)), Judgement::Open(Some(s(1061.0))));
    assert_eq!(trial.look(&seen("Running", true, 4), s(1050.0)), Judgement::Open(Some(s(1110.0))), "a restart");
    assert_eq!(trial.look(&seen("Running", true, 4), s(1110.0)), Judgement::Good);
    let mut trial = Trial::second(None, &seen("Running", true, 0), s(0.0));
    assert_eq!(trial.look(&seen("Running", true, 0), s(0.0)), Judgement::Open(Some(STABLE)));
}
