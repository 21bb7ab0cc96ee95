//! What is done about bound pods: edits, ends, evictions, in the simulated machine of `world`.

use super::world::{World, at};
use super::*;
use jiff::SignedDuration;
use serde_json::{Value, json};

fn hooks() -> Value {
    json!({"preStop": {"exec": {"command": ["x"]}}})
}

/// A bound pod: whatever is edited of it, it stays the same pod.
pub(super) fn bound(label: &str, image: &str, cpu: &str) -> Spec {
    edited(|pod| {
        pod["metadata"]["labels"]["a"] = json!(label);
        pod["spec"]["containers"][0]["image"] = json!(image);
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(cpu);
    })
}

fn edited(edit: impl FnOnce(&mut Value)) -> Spec {
    let mut pod = json!({
        "metadata": {"name": "p-node", "namespace": "default", "uid": "bound", "labels": {},
            "annotations": {"kubernetes.io/config.source": "api"}},
        "spec": {
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "initContainers": [{"name": "i0", "image": "i"}, {"name": "s0", "image": "i", "restartPolicy": "Always"}],
            "containers": [
                {"name": "c0", "image": "i", "lifecycle": hooks(), "resources": {"requests": {"cpu": "1"}}},
                {"name": "c1", "image": "i", "resources": {"requests": {"cpu": "1"}}},
            ],
        },
    });
    edit(&mut pod);
    Spec::new(serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(pod).unwrap()).unwrap()
}

/// All of the pod runs.
fn running(spec: &Spec) -> World {
    let mut world = World::default();
    world.settle(Some(spec), at(0), None);
    world.end(at(1), "i0", 0);
    world.settle(Some(spec), at(2), None);
    assert_eq!(world.present().running().count(), 3, "{:?}", world.seen.present);
    world
}

fn runs(world: &World) -> Vec<String> {
    world.present().running().map(|run| run.id.clone()).collect()
}

#[test]
fn an_edit_of_labels_tolerations_or_deadline_is_written_down_and_restarts_nothing() {
    let edits: [fn(&mut Value); 3] = [
        |pod| pod["metadata"]["labels"]["b"] = json!("2"),
        |pod| pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]),
        |pod| pod["spec"]["activeDeadlineSeconds"] = json!(500),
    ];
    for edit in edits {
        let mut world = running(&edited(|_| ()));
        let (before, want) = (runs(&world), edited(edit));
        assert_eq!(world.plan(Some(&want), at(10)).actions, [Action::Update]);
        world.settle(Some(&want), at(10), None);
        assert_eq!(runs(&world), before);
        assert!(world.present().spec.is(&want));
    }
}

#[test]
fn another_image_restarts_its_container_only_whatever_the_restart_policy_and_at_once() {
    for policy in ["Always", "Never"] {
        let of = |image: &str, sidecar: &str, init: &str| {
            edited(|pod| {
                pod["spec"]["restartPolicy"] = json!(policy);
                pod["spec"]["containers"][0]["image"] = json!(image);
                pod["spec"]["initContainers"][1]["image"] = json!(sidecar);
                pod["spec"]["initContainers"][0]["image"] = json!(init);
            })
        };
        let mut world = running(&of("i", "i", "i"));
        let before = runs(&world);
        // An init container has done its work: another image of it changes nothing any more.
        let want = of("j", "i", "j");
        world.settle(Some(&want), at(100), None);
        let id = world.present().latest("c0").unwrap().id.clone();
        let stopping = world.present().progress(&id).stopping.clone().unwrap();
        assert_eq!((stopping.cause, stopping.grace_ms), (StopCause::Changed, 30_000));
        for (id, kind) in world.hooks() {
            assert_eq!(kind, HookKind::PreStop);
            world.end_hook(&id, kind, HookState::Done);
        }
        world.settle(Some(&want), at(200), None);
        world.end_signalled(at(300));
        world.settle(Some(&want), at(400), None);
        let run = world.present().latest("c0").unwrap();
        assert_eq!((run.is_running(), run.attempt, run.image.as_str()), (true, 1, "j"));
        assert_eq!(runs(&world).iter().filter(|id| before.contains(id)).count(), 2, "the others run on");
        // A sidecar's as well.
        let want = of("j", "k", "j");
        world.settle(Some(&want), at(500), None);
        world.end_signalled(at(600));
        world.settle(Some(&want), at(700), None);
        assert_eq!(world.present().latest("s0").unwrap().image, "k");
        assert_eq!(world.present().latest("c0").unwrap().attempt, 1);
    }
}

#[test]
fn a_better_image_does_not_wait_for_the_back_off_of_the_one_that_crashed() {
    let mut world = running(&bound("1", "bad", "1"));
    for now in [1000, 2000] {
        world.end(at(now), "c0", 1);
        world.settle(Some(&bound("1", "bad", "1")), at(now), None);
    }
    assert!(!world.present().latest("c0").unwrap().is_running());
    let want = bound("1", "good", "1");
    world.settle(Some(&want), at(3000), None);
    let run = world.present().latest("c0").unwrap();
    assert_eq!((run.is_running(), run.image.as_str()), (true, "good"));
}

#[test]
fn a_resize_that_has_to_wait_keeps_no_other_edit_from_being_seen() {
    let mut world = running(&bound("1", "i", "1"));
    let want = bound("2", "i", "2");
    assert_eq!(world.plan(Some(&want), at(10)).actions, [Action::Update]);
    world.execute(Some(&want), &Action::Update, at(10));
    assert_eq!(world.plan(Some(&want), at(10)).actions, [Action::Resize { restart: vec![] }]);
    let retry_at = at(1_000_000);
    world.seen.failure = Some(Failure { reason: "Deferred".into(), message: String::new(), count: 1, retry_at });
    assert_eq!(world.plan(Some(&want), at(20)).actions, []);
    assert_eq!(world.present().spec.pod().metadata.labels.as_ref().unwrap()["a"], "2");
    assert_eq!(world.plan(Some(&bound("3", "i", "2")), at(20)).actions, [Action::Update]);
}

#[test]
fn the_grace_of_an_end_is_the_api_servers_and_may_shrink() {
    let spec = edited(|_| ());
    let mut world = running(&spec);
    world.seen.removal = Some(20);
    assert_eq!(world.plan(None, at(1000)).actions, [Action::MarkDeleting { grace_seconds: 20 }]);
    world.settle(None, at(1000), None);
    let grace = |world: &World| {
        let run = world.present().running().find(|run| run.container == "c0").unwrap();
        world.present().progress(&run.id).stopping.clone().unwrap().grace_ms
    };
    assert_eq!(grace(&world), 20_000);
    // Somebody is in a hurry; it counts from the beginning of the end.
    world.seen.removal = Some(5);
    world.settle(None, at(2000), None);
    assert_eq!(grace(&world), 4_000);
    // Gone from the API server: what was said holds.
    world.seen.removal = None;
    world.settle(None, at(2500), None);
    assert_eq!(grace(&world), 4_000);
    let wake = world.plan(None, at(2600)).wake_at.unwrap();
    assert!(wake <= at(6_100), "{wake}");
}

#[test]
fn a_pod_that_is_forced_away_has_its_own_grace_and_none_is_shorter_than_a_second() {
    let spec = edited(|_| ());
    let world = running(&spec);
    assert_eq!(world.plan(None, at(1000)).actions, [Action::MarkDeleting { grace_seconds: 30 }]);
    let mut world = running(&spec);
    world.seen.removal = Some(0);
    assert_eq!(world.plan(None, at(1000)).actions, [Action::MarkDeleting { grace_seconds: 1 }]);
}

#[test]
fn a_pod_that_waits_for_its_image_or_volume_goes_at_once() {
    let spec = edited(|_| ());
    let mut world = World::default();
    world.settle(Some(&spec), at(0), None);
    let absent = ImageState::Absent { reason: "ErrImagePull".into(), message: String::new(), retry_at: None };
    world.end(at(1), "i0", 1);
    world.seen.images.insert("i0".into(), absent);
    world.settle(Some(&spec), at(2), None);
    world.seen.removal = Some(30);
    world.settle(None, at(3), None);
    assert!(world.seen.present.is_none(), "nothing of it ran");
}

#[test]
fn an_evicted_pod_has_failed_and_does_not_come_back() {
    let spec = edited(|_| ());
    let mut world = running(&spec);
    world.seen.evict = Some(Eviction { reason: "Evicted", message: "too much".into(), grace_seconds: 1 });
    world.settle(Some(&spec), at(1000), None);
    world.end_signalled(at(4000));
    for now in [5_000, 6_000, 900_000] {
        world.settle(Some(&spec), at(now), None);
        world.end_signalled(at(now));
    }
    let finished = world.present().record.finished.clone().unwrap();
    assert_eq!((finished.phase.as_str(), finished.reason.as_deref()), ("Failed", Some("Evicted")));
    assert_eq!(finished.message.as_deref(), Some("too much"));
    assert_eq!((world.present().running().count(), world.present().sandbox.clone()), (0, Sandbox::Absent));
}

#[test]
fn a_pod_that_may_not_stay_has_failed_however_it_ended() {
    let spec = edited(|_| ());
    let mut world = running(&spec);
    world.seen.displaced = Some(("UnexpectedAdmissionError", "its name is taken".into()));
    let report = |world: &World| {
        let pod = status::report(None, &world.seen, &status::NodeFacts::default(), None, at(20)).unwrap();
        serde_json::to_value(pod.status).unwrap()
    };
    world.settle(None, at(10), None);
    assert_eq!(report(&world)["phase"], "Running", "it still runs");
    world.end_all(at(20), 0);
    let told = report(&world);
    assert_eq!((&told["phase"], &told["reason"]), (&json!("Failed"), &json!("UnexpectedAdmissionError")));
    assert_eq!(told["message"], "its name is taken");
    let ready = told["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("PodFailed")));
}

#[test]
fn the_report_of_a_bound_pod_says_what_runs_and_why_it_had_to_leave() {
    let of = |image: &str| {
        edited(|pod| {
            pod["metadata"]["creationTimestamp"] = json!("2026-11-22T08:15:30Z");
            pod["spec"]["containers"][0]["image"] = json!(image);
            pod["spec"]["ephemeralContainers"] = json!([{"name": "debugger", "image": "busybox"}]);
        })
    };
    let mut world = running(&of("i"));
    let want = of("j");
    world.execute(Some(&want), &Action::Update, at(10));
    let report = |world: &World| {
        let pod = status::report(Some(&want), &world.seen, &status::NodeFacts::default(), None, at(20)).unwrap();
        serde_json::to_value(pod).unwrap()
    };
    let told = report(&world);
    assert_eq!(told["metadata"]["creationTimestamp"], "2026-11-22T08:15:30Z");
    assert_eq!(told["status"]["containerStatuses"][0]["image"], "i", "it runs until it is restarted");
    let debugger = &told["status"]["ephemeralContainerStatuses"][0];
    assert_eq!((&debugger["name"], &debugger["image"]), (&json!("debugger"), &json!("busybox")));
    assert_eq!(debugger["state"]["terminated"]["reason"], "PodFeatureUnsupported");
    assert!(report(&running(&edited(|_| ())))["status"]["ephemeralContainerStatuses"].is_null());

    world.seen.evict = Some(Eviction { reason: "Evicted", message: "too much".into(), grace_seconds: 1 });
    for now in [1000, 4000, 8000] {
        world.settle(Some(&want), at(now), None);
        world.end_signalled(at(now));
    }
    // The next agent knows of it, too.
    world.seen.evict = None;
    let told = report(&world);
    assert_eq!((&told["status"]["phase"], &told["status"]["reason"]), (&json!("Failed"), &json!("Evicted")));
    let all = told["status"]["conditions"].as_array().unwrap();
    let target = all.iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&target["reason"], &target["message"]), (&json!("TerminationByKubelet"), &json!("too much")));
}

#[test]
fn a_deadline_that_is_set_later_counts_from_the_start() {
    let mut world = running(&edited(|_| ()));
    let want = edited(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(60));
    let plan = world.settle(Some(&want), at(30_000), None);
    let start = world.present().record.start_time;
    assert_eq!(plan.wake_at, start.checked_add(SignedDuration::from_secs(60)).ok());
    world.settle(Some(&want), at(61_000), None);
    assert_eq!(world.present().record.finished.as_ref().unwrap().reason.as_deref(), Some("DeadlineExceeded"));
}
