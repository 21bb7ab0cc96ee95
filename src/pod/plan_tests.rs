//! Properties and examples of the plan, in the simulated machine of `world`.

use super::*;
use crate::pod::bound_tests::bound;
use crate::pod::world::{World, at, pod};
use crate::pod::{Eviction, Failure, Health, HookState, ImageState, Unhealthy};
use proptest::prelude::*;
use serde_json::{Value, json};

fn spec(uid: &str, policy: &str, containers: usize, image: &str) -> Spec {
    let containers: Vec<_> = (0..containers).map(|i| json!({"name": format!("c{i}"), "image": image})).collect();
    pod(uid, json!({"containers": containers, "restartPolicy": policy, "terminationGracePeriodSeconds": 5}))
}

fn hooks() -> Value {
    json!({"postStart": {"exec": {"command": ["x"]}}, "preStop": {"exec": {"command": ["x"]}}})
}

fn restart_all_on_42() -> Value {
    json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}])
}

/// Init containers, a sidecar between them, two app containers; `cpu` is what a resize changes.
fn layered(uid: &str, policy: &str, cpu: &str) -> Spec {
    let resources = json!({"requests": {"cpu": cpu}});
    let restart = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
    pod(
        uid,
        json!({
            "restartPolicy": policy, "terminationGracePeriodSeconds": 5, "activeDeadlineSeconds": 2000,
            "initContainers": [
                {"name": "i0", "image": "i"},
                {"name": "s0", "image": "i", "restartPolicy": "Always", "lifecycle": hooks(),
                    "startupProbe": {"exec": {"command": ["x"]}}},
                {"name": "i1", "image": "i"},
                {"name": "s1", "image": "i", "restartPolicy": "Always"},
            ],
            "containers": [
                {"name": "c0", "image": "i", "lifecycle": hooks(), "resources": resources, "resizePolicy": restart},
                {"name": "c1", "image": "i", "resources": resources},
            ],
        }),
    )
}

/// All containers restart when one of them exits with 42.
fn ruled(uid: &str) -> Spec {
    let rules = restart_all_on_42();
    pod(
        uid,
        json!({
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
            "initContainers": [
                {"name": "i0", "image": "i", "restartPolicy": "OnFailure", "restartPolicyRules": rules},
                {"name": "s0", "image": "i", "restartPolicy": "Always"},
            ],
            "containers": [
                {"name": "c0", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules, "lifecycle": hooks()},
                {"name": "c1", "image": "i"},
            ],
        }),
    )
}

#[derive(Debug, Clone)]
enum Step {
    Want(u8),
    Nothing,
    Exit(usize, i32),
    ExitAll(i32),
    Signalled,
    Hook(usize, bool),
    Health(usize, u8),
    ShimLost,
    Agent,
    Evict,
    Wait(i64),
    Fail(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let code = || prop_oneof![3 => Just(0), 1 => Just(1), 1 => Just(42), 1 => Just(137)];
    let step = prop_oneof![
        3 => (0u8..15).prop_map(Step::Want),
        1 => Just(Step::Nothing),
        6 => (0usize..6, code()).prop_map(|(n, code)| Step::Exit(n, code)),
        1 => code().prop_map(Step::ExitAll),
        3 => Just(Step::Signalled),
        4 => (0usize..3, any::<bool>()).prop_map(|(n, good)| Step::Hook(n, good)),
        3 => (0usize..6, 0u8..4).prop_map(|(n, kind)| Step::Health(n, kind)),
        1 => Just(Step::ShimLost),
        1 => Just(Step::Agent),
        1 => Just(Step::Evict),
        4 => prop_oneof![0i64..3_000, 0i64..700_000, -20_000i64..0].prop_map(Step::Wait),
        2 => (0u8..6).prop_map(Step::Fail),
    ];
    prop::collection::vec(step, 1..60)
}

fn variant(n: u8) -> Spec {
    let policy = ["Always", "OnFailure", "Never"][usize::from(n % 3)];
    match n {
        0..=3 => spec(&format!("uid{}", n / 2), policy, 1 + usize::from(n % 2), &format!("image{n}")),
        4 => layered("layered", "Always", "1"),
        5 => layered("layered", "Always", "2"),
        6 => layered("once", "Never", "1"),
        7 => layered("retried", "OnFailure", "1"),
        8 | 9 => ruled(&format!("ruled{n}")),
        10 => bound("1", "i", "1"),
        11 => bound("2", "i", "1"),
        12 => bound("2", "j", "1"),
        13 => bound("2", "j", "2"),
        _ => bound("1", "i", "2"),
    }
}

/// The `n`th running container (round about).
fn pick(world: &World, n: usize) -> Option<String> {
    let running: Vec<String> =
        world.seen.present.iter().flat_map(|p| p.running()).map(|r| r.container.clone()).collect();
    running.get(n % running.len().max(1)).cloned()
}

fn happen(world: &mut World, step: &Step, now: Timestamp) {
    match step {
        Step::Exit(n, code) => {
            if let Some(container) = pick(world, *n) {
                world.end(now, &container, *code);
            }
        }
        Step::ExitAll(code) => world.end_all(now, *code),
        Step::Signalled => world.end_signalled(now),
        Step::Hook(n, good) => {
            let hooks = world.hooks();
            if let Some((id, kind)) = hooks.get(n % hooks.len().max(1)) {
                world.end_hook(id, *kind, if *good { HookState::Done } else { HookState::Failed("exit 1".into()) });
            }
        }
        Step::Health(n, kind) => {
            if let Some(container) = pick(world, *n) {
                let probe = if *kind == 1 { StopCause::Startup } else { StopCause::Liveness };
                let grace_seconds = (*kind == 2).then_some(12);
                let unhealthy = (*kind > 0).then_some(Unhealthy { probe, grace_seconds });
                world.health(&container, Health { started: *kind != 1, ready: *kind == 0, unhealthy });
            }
        }
        Step::ShimLost => {
            if let Some(p) = world.seen.present.as_mut().filter(|p| p.sandbox == Sandbox::Ready) {
                p.sandbox = Sandbox::Broken("shim killed".into());
            }
        }
        Step::Agent => world.restart_agent(),
        Step::Evict => {
            if world.seen.present.is_some() {
                world.seen.evict = Some(Eviction { reason: "Evicted", message: "full".into(), grace_seconds: 1 });
            }
        }
        Step::Want(_) | Step::Nothing | Step::Wait(_) | Step::Fail(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn whatever_happens_the_plan_converges_and_keeps_its_guarantees(steps in steps()) {
        let mut world = World::default();
        let mut desired: Option<Spec> = None;
        let mut now = 0i64;
        let mut fail = None;
        for step in steps {
            match &step {
                Step::Want(n) => desired = Some(variant(*n)),
                Step::Nothing => desired = None,
                Step::Wait(ms) => now += ms,
                Step::Fail(n) => fail = Some(usize::from(*n)),
                step => happen(&mut world, step, at(now)),
            }
            world.settle(desired.as_ref(), at(now), fail.take());
        }
        // In the end nothing is wanted: everything goes, whatever state it was in, also when no hook ever ends.
        for _ in 0..20 {
            now += 10_000;
            world.settle(None, at(now), None);
            world.end_signalled(at(now));
        }
        world.settle(None, at(now), None);
        prop_assert!(world.seen.present.is_none(), "{:?}", world.seen.present);
    }

    #[test]
    fn a_pod_comes_up_whatever_it_went_through(steps in steps(), n in 4u8..6) {
        let want = variant(n);
        let mut world = World::default();
        let mut now = 0i64;
        for step in steps {
            if let Step::Wait(ms) = &step {
                now += ms.rem_euclid(1000);
            }
            happen(&mut world, &step, at(now));
            world.settle(Some(&want), at(now), None);
        }
        world.seen.evict = None;
        let up = |world: &World| {
            let present = world.seen.present.as_ref();
            present.is_some_and(|p| p.record.deletion.is_none() && p.running().count() == 4
                && p.running().all(|r| p.progress(&r.id).stopping.is_none() && world.hooks().is_empty()))
        };
        for _ in 0..60 {
            // From now on everything does what it should.
            world.settle(Some(&want), at(now), None);
            for (id, kind) in world.hooks() {
                world.end_hook(&id, kind, HookState::Done);
            }
            world.end_signalled(at(now));
            if let Some(run) = world.seen.present.as_ref().and_then(|p| p.latest("s0")) {
                let stopping = world.present().progress(&run.id).stopping.is_some();
                let unhealthy = world.present().health(want.container("s0").unwrap(), &run.id).unhealthy.is_some();
                if !stopping && !unhealthy {
                    world.health("s0", Health { started: true, ready: true, unhealthy: None });
                }
            }
            for init in ["i0", "i1"] {
                world.end(at(now), init, 0);
            }
            world.settle(Some(&want), at(now), None);
            now += 20_000;
            if up(&world) {
                break;
            }
        }
        let finished = world.present().record.finished.as_ref().and_then(|f| f.reason.clone());
        prop_assert!(up(&world) || finished.as_deref() == Some("DeadlineExceeded"), "{:?}", world.plan(Some(&want), at(now)));
    }

    #[test]
    fn deterministic(n in 0u8..10, now in 0i64..1_000_000) {
        let want = variant(n);
        let world = World::default();
        prop_assert_eq!(world.plan(Some(&want), at(now)), world.plan(Some(&want), at(now)));
    }
}

fn run(c: &str) -> Action {
    Action::Run { container: c.into(), attempt: 0, backoff_ms: 0 }
}

#[test]
fn a_new_pod_gets_a_sandbox_then_its_containers_in_order() {
    let want = spec("u", "Always", 2, "i");
    let mut world = World::default();
    assert_eq!(world.plan(Some(&want), at(0)).actions, [Action::CreateSandbox]);
    world.execute(Some(&want), &Action::CreateSandbox, at(0));
    assert_eq!(world.plan(Some(&want), at(0)).actions, [run("c0"), run("c1")]);
}

#[test]
fn an_edit_tears_the_old_pod_down_before_the_new_one_starts() {
    let (old, new) = (spec("u1", "Always", 1, "i"), spec("u2", "Always", 1, "j"));
    let mut world = World::default();
    world.settle(Some(&old), at(0), None);
    let plan = world.settle(Some(&new), at(10), None);
    assert!(world.present().spec.uid() == "u1", "the old one is still stopping");
    assert_eq!(plan.wake_at, Some(at(10 + 5_000 + 1_000)));
    world.end_all(at(20), 0);
    world.settle(Some(&new), at(20), None);
    assert_eq!(world.present().spec.uid(), "u2");
}

#[test]
fn a_pinned_uid_does_not_hide_an_edit() {
    let (old, new) = (spec("u", "Always", 1, "i"), spec("u", "Always", 1, "j"));
    let mut world = World::default();
    world.settle(Some(&old), at(0), None);
    assert_eq!(world.plan(Some(&new), at(1)).actions, [Action::MarkDeleting { grace_seconds: 5 }]);
}

#[test]
fn an_absent_image_waits_without_polling_and_holds_back_only_who_needs_it() {
    let want = pod(
        "u",
        json!({"containers": [
            {"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}, {"name": "b", "image": "j"}],
            "volumes": [{"name": "v", "image": {"reference": "k"}}]}),
    );
    let absent = || ImageState::Absent { reason: "ErrImagePull".into(), message: "not here".into(), retry_at: None };
    let mut world = World::default();
    world.execute(Some(&want), &Action::CreateSandbox, at(0));
    world.seen.images.insert("a".into(), absent());
    assert_eq!(world.plan(Some(&want), at(0)), Plan { actions: vec![run("b")], wake_at: None });
    world.seen.images.insert("b".into(), absent());
    assert_eq!(world.plan(Some(&want), at(0)), Plan::default());
    let later = ImageState::Absent { reason: "ImagePullBackOff".into(), message: String::new(), retry_at: Some(at(9)) };
    world.seen.images.insert("b".into(), later);
    assert_eq!(world.plan(Some(&want), at(0)), Plan { actions: vec![], wake_at: Some(at(9)) });
}

#[test]
fn an_image_is_asked_for_when_its_container_is_due_and_holds_back_nobody_else() {
    let want = pod(
        "u",
        json!({"initContainers": [{"name": "first", "image": "i"}],
            "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "j"}]}),
    );
    let mut world = World::default();
    world.execute(Some(&want), &Action::CreateSandbox, at(0));
    for name in ["first", "a", "b"] {
        world.seen.images.insert(name.into(), ImageState::Wanted);
    }
    let pull = |name: &str| Action::Pull { container: name.into(), attempt: 0 };
    assert_eq!(world.plan(Some(&want), at(0)).actions, [pull("first")], "the others wait for their turn");
    world.seen.images.insert("first".into(), ImageState::Pulling);
    assert_eq!(world.plan(Some(&want), at(0)), Plan::default());
    world.seen.images.insert("first".into(), ImageState::Present);
    world.execute(Some(&want), &run("first"), at(0));
    world.end(at(1), "first", 0);
    world.seen.images.insert("b".into(), ImageState::Present);
    assert_eq!(world.plan(Some(&want), at(1)).actions, [pull("a"), run("b")]);
}

#[test]
fn a_failed_step_is_tried_again_when_its_time_has_come() {
    let want = spec("u", "Always", 1, "i");
    let failure = Failure { reason: "FailedMount".into(), message: "x".into(), count: 1, retry_at: at(1000) };
    let mut world = World::default();
    world.seen.failure = Some(failure);
    assert_eq!(world.plan(Some(&want), at(0)), Plan { actions: vec![], wake_at: Some(at(1000)) });
    assert_eq!(world.plan(Some(&want), at(1000)).actions, [Action::CreateSandbox]);
    // Removal of a pod that was never made has nothing to wait for.
    assert_eq!(world.plan(None, at(0)), Plan::default());
}

#[test]
fn a_finished_pod_gives_its_sandbox_back_and_stays_finished() {
    let want = spec("u", "Never", 1, "i");
    let mut world = World::default();
    world.settle(Some(&want), at(0), None);
    world.end_all(at(5), 0);
    world.settle(Some(&want), at(5), None);
    assert_eq!(world.present().record.finished.as_ref().map(|f| f.phase.as_str()), Some("Succeeded"));
    assert_eq!(world.present().sandbox, Sandbox::Absent);
    assert_eq!(world.plan(Some(&want), at(99)), Plan::default());
}

#[test]
fn an_init_container_that_fails_for_good_fails_the_pod() {
    let want = layered("u", "Never", "1");
    let mut world = World::default();
    world.settle(Some(&want), at(0), None);
    world.end(at(10), "i0", 3);
    world.settle(Some(&want), at(10), None);
    assert_eq!(world.present().record.finished.as_ref().map(|f| f.phase.as_str()), Some("Failed"));
}

#[test]
fn init_containers_run_again_in_a_new_sandbox_unless_nothing_is_left_to_start() {
    let want = pod(
        "u",
        json!({"restartPolicy": "OnFailure", "initContainers": [{"name": "i", "image": "i"}],
            "containers": [{"name": "c", "image": "i"}]}),
    );
    for (code, starts_anew) in [(1, true), (0, false)] {
        let mut world = World::default();
        world.settle(Some(&want), at(0), None);
        world.end(at(10), "i", 0);
        world.settle(Some(&want), at(10), None);
        assert!(world.present().latest("c").is_some());
        world.end(at(20), "c", code);
        world.present_mut().sandbox = Sandbox::Broken("rebooted".into());
        world.settle(Some(&want), at(20), None);
        assert_eq!(
            world.present().latest("i").map(|r| (r.attempt, r.round)),
            Some(if starts_anew { (1, 1) } else { (0, 0) })
        );
        assert_eq!(world.present().record.finished.is_none(), starts_anew);
    }
}

#[test]
fn a_rule_restarts_all_containers_and_the_one_that_asked_backs_off() {
    let want = ruled("u");
    let mut world = World::default();
    let settle = |world: &mut World, now: i64| {
        world.settle(Some(&want), at(now), None);
        for (id, kind) in world.hooks() {
            world.end_hook(&id, kind, HookState::Done);
        }
        world.settle(Some(&want), at(now), None)
    };
    let attempts = |world: &World| {
        ["i0", "s0", "c0", "c1"].map(|name| world.present().latest(name).filter(|r| r.is_running()).map(|r| r.attempt))
    };
    settle(&mut world, 0);
    world.end(at(10), "i0", 0);
    settle(&mut world, 10);
    assert_eq!(attempts(&world), [None, Some(0), Some(0), Some(0)]);
    world.end(at(20), "c0", 42);
    settle(&mut world, 20);
    // Everything else is asked to go, without a hook, and nothing starts before it is gone.
    assert_eq!(attempts(&world), [None, Some(0), None, Some(0)]);
    let grace = |world: &World| {
        world
            .present()
            .running()
            .map(|r| world.present().progress(&r.id).stopping.clone().map(|s| s.grace_ms))
            .collect::<Vec<_>>()
    };
    assert_eq!(grace(&world), [Some(2000), Some(2000)]);
    world.end_signalled(at(30));
    settle(&mut world, 30);
    assert_eq!(attempts(&world), [Some(1), None, None, None]);
    world.end(at(40), "i0", 0);
    settle(&mut world, 40);
    assert_eq!(attempts(&world), [None, Some(1), Some(1), Some(1)], "the first restart is immediate");
    world.end(at(50), "c0", 42);
    settle(&mut world, 50);
    world.end_signalled(at(60));
    settle(&mut world, 60);
    world.end(at(70), "i0", 0);
    let plan = settle(&mut world, 70);
    assert_eq!(attempts(&world), [None, Some(2), None, Some(2)], "the second one waits, its siblings do not");
    assert_eq!(plan.wake_at, Some(at(50 + 10_000)));
    settle(&mut world, 50 + 10_000);
    assert_eq!(attempts(&world), [None, Some(2), Some(2), Some(2)]);
}

#[test]
fn rules_come_before_the_containers_policy_and_that_before_the_pods() {
    let want = pod(
        "u",
        json!({"restartPolicy": "Never", "containers": [
            {"name": "a", "image": "i", "restartPolicy": "Always"},
            {"name": "b", "image": "i", "restartPolicy": "Never", "restartPolicyRules": [
                {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [0, 1]}}]},
            {"name": "c", "image": "i"}]}),
    );
    let mut world = World::default();
    for (code, restarted) in [(0, &["a"][..]), (1, &["a"]), (7, &["a", "b"])] {
        world.seen.present = None;
        world.settle(Some(&want), at(0), None);
        world.end_all(at(10), code);
        world.settle(Some(&want), at(10), None);
        assert_eq!(
            world.present().running().map(|r| r.container.as_str()).collect::<Vec<_>>(),
            restarted,
            "code {code}"
        );
    }
    // What a probe does to a container is judged by the policy alone.
    world.seen.present = None;
    world.settle(Some(&want), at(0), None);
    let unhealthy = Some(Unhealthy { probe: StopCause::Liveness, grace_seconds: None });
    world.health("b", Health { started: true, ready: false, unhealthy });
    world.settle(Some(&want), at(10), None);
    world.end_signalled(at(20));
    world.settle(Some(&want), at(20), None);
    assert_eq!(world.present().running().map(|r| r.container.as_str()).collect::<Vec<_>>(), ["a", "c"]);
}

#[test]
fn the_deadline_counts_from_the_start_and_ends_the_pod() {
    let want = pod(
        "u",
        json!({"activeDeadlineSeconds": 60, "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "c", "image": "i"}]}),
    );
    let mut world = World::default();
    assert_eq!(world.settle(Some(&want), at(0), None).wake_at, Some(at(60_000)));
    assert!(world.settle(Some(&want), at(-500_000), None).actions.is_empty(), "a clock that jumped back");
    let plan = world.settle(Some(&want), at(60_000), None);
    assert_eq!(plan.wake_at, Some(at(66_000)));
    let finished = world.present().record.finished.clone().unwrap();
    assert_eq!((finished.phase.as_str(), finished.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
}

#[test]
fn a_slow_post_start_delays_later_containers_and_a_failed_one_stops_its_own() {
    let want = pod(
        "u",
        json!({"terminationGracePeriodSeconds": 5, "containers": [
            {"name": "a", "image": "i", "lifecycle": hooks()}, {"name": "b", "image": "i"}]}),
    );
    let mut world = World::default();
    world.settle(Some(&want), at(0), None);
    assert_eq!((world.hooks().len(), world.present().latest("b").is_some()), (1, false));
    let (id, kind) = world.hooks().remove(0);
    world.end_hook(&id, kind, HookState::Failed("exit 1".into()));
    let actions = world.plan(Some(&want), at(10)).actions;
    let begin =
        Action::BeginStop { container: "a".into(), id: id.clone(), cause: StopCause::PostStart, grace_ms: 5000 };
    let pre_stop = Action::Hook { container: "a".into(), id, kind: HookKind::PreStop, timeout_ms: Some(5000) };
    assert_eq!(actions, [begin, pre_stop, run("b")]);
}

#[test]
fn what_is_left_of_earlier_runs_goes_when_the_disk_is_nearly_full() {
    let want = spec("u", "Always", 1, "i");
    let mut world = World::default();
    let mut attempts = |short: bool, minute: i64| {
        let now = minute * 60_000;
        world.seen.short_of_disk = short;
        world.settle(Some(&want), at(now), None);
        world.end(at(now), "c0", 1);
        // Beyond any back-off.
        world.settle(Some(&want), at(now + 600_000), None);
        let runs = &world.present().containers["c0"];
        runs.iter().map(|run| (run.attempt, run.is_running())).collect::<Vec<_>>()
    };
    assert_eq!(attempts(false, 0), [(0, false), (1, true)]);
    assert_eq!(attempts(false, 20), [(1, false), (2, true)]);
    assert_eq!(attempts(true, 40), [(3, true)]);
    assert_eq!(attempts(false, 60), [(3, false), (4, true)]);
}

#[test]
fn a_resize_keeps_the_pod_and_restarts_only_who_asks_for_it() {
    let (old, new) = (layered("u", "Always", "1"), layered("u", "Always", "2"));
    let mut world = World::default();
    world.settle(Some(&old), at(0), None);
    let resize = world.plan(Some(&new), at(1)).actions;
    assert_eq!(resize, [Action::Resize { restart: vec![] }], "nothing that restarts runs yet");
    for (now, container) in [(10, "i0"), (20, "i1")] {
        world.end(at(now), container, 0);
        world.settle(Some(&old), at(now), None);
        world.health("s0", Health { started: true, ready: true, unhealthy: None });
        for (id, kind) in world.hooks() {
            world.end_hook(&id, kind, HookState::Done);
        }
        world.settle(Some(&old), at(now), None);
    }
    for (id, kind) in world.hooks() {
        world.end_hook(&id, kind, HookState::Done);
    }
    world.settle(Some(&old), at(20), None);
    assert_eq!(world.present().running().count(), 4);
    // A node that cannot do it now goes on with everything else.
    world.seen.failure =
        Some(Failure { reason: "Deferred".into(), message: "full".into(), count: 1, retry_at: at(90_000) });
    world.end(at(30), "c1", 1);
    world.settle(Some(&new), at(30), None);
    assert_eq!(world.present().latest("c1").map(|r| r.attempt), Some(1));
    world.seen.failure = None;
    world.settle(Some(&new), at(40), None);
    let causes = ["c0", "c1"].map(|name| {
        let id = &world.present().latest(name).unwrap().id;
        world.present().progress(id).stopping.as_ref().map(|s| s.cause)
    });
    assert_eq!(causes, [Some(StopCause::Resize), None]);
    assert_eq!(world.present().spec.revision(), new.revision());
    // It has not crashed: it starts at once.
    world.settle(Some(&new), at(6_000), None);
    world.end_signalled(at(6_000));
    world.settle(Some(&new), at(6_000), None);
    assert_eq!(world.present().latest("c0").map(|r| (r.attempt, r.backoff_ms)), Some((1, 0)));
}

#[test]
fn an_agent_that_dies_right_after_a_resize_does_not_forget_the_restart() {
    let cpu = |cpu: &str| {
        let restart = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        let resources = json!({"requests": {"cpu": cpu}});
        pod("u", json!({"containers": [{"name": "c", "image": "i", "resources": resources, "resizePolicy": restart}]}))
    };
    let (old, new) = (cpu("1"), cpu("2"));
    let mut world = World::default();
    world.settle(Some(&old), at(0), None);
    let actions = world.plan(Some(&new), at(10)).actions;
    assert!(matches!(&actions[..], [Action::Resize { restart }] if restart.len() == 1), "{actions:?}");
    world.execute(Some(&new), &actions[0], at(10));
    world.restart_agent();
    // The next one sees a pod that is as it is wanted, but for this.
    world.settle(Some(&new), at(20), None);
    world.end_signalled(at(30));
    world.settle(Some(&new), at(30), None);
    assert_eq!(world.present().latest("c").map(|run| (run.attempt, run.is_running())), Some((1, true)));
    assert_eq!(world.plan(Some(&new), at(40)), Plan::default(), "once is enough");
}

#[test]
fn a_resize_that_can_never_be_does_not_keep_its_pod_from_going() {
    let (old, new) = (layered("u", "Always", "1"), layered("u", "Always", "2"));
    for reason in ["Deferred", "Infeasible"] {
        let mut world = World::default();
        world.settle(Some(&old), at(0), None);
        world.seen.failure =
            Some(Failure { reason: reason.into(), message: "no".into(), count: 1, retry_at: at(3_600_000) });
        world.seen.evict = Some(Eviction { reason: "Evicted", message: "full".into(), grace_seconds: 1 });
        for now in [10, 20, 30] {
            for _ in 0..20 {
                let Some(action) = world.plan(Some(&new), at(now)).actions.into_iter().next() else { break };
                if matches!(action, Action::CreateSandbox) {
                    break;
                }
                world.execute(Some(&new), &action, at(now));
            }
            world.end_signalled(at(now));
        }
        assert!(world.seen.present.is_none(), "{reason}");
    }
}

#[test]
fn amounts_of_the_pod_as_a_whole_are_resized_too() {
    let whole = |memory: &str, image: &str| {
        pod("u", json!({"resources": {"limits": {"memory": memory}}, "containers": [{"name": "c", "image": image}]}))
    };
    let old = whole("1Gi", "i");
    assert!(resize::is_resize(&old, &whole("2Gi", "i")));
    assert!(!resize::is_resize(&old, &whole("2Gi", "other")));
    assert!(!resize::is_resize(&old, &pod("u", json!({"containers": [{"name": "c", "image": "i"}]}))), "another QoS");
}

#[test]
fn what_its_probes_gave_up_runs_again_however_politely_it_ended_unless_its_policy_is_never() {
    for (policy, runs) in [("Always", 2), ("OnFailure", 2), ("Never", 1)] {
        let want = spec("u", policy, 1, "i");
        let mut world = World::default();
        world.settle(Some(&want), at(0), None);
        let unhealthy = Some(Unhealthy { probe: StopCause::Liveness, grace_seconds: None });
        world.health("c0", Health { started: true, ready: false, unhealthy });
        world.settle(Some(&want), at(10), None);
        world.end(at(20), "c0", 0);
        world.settle(Some(&want), at(20), None);
        assert_eq!(world.present().containers["c0"].len(), runs, "{policy}");
    }
}

#[test]
fn an_eviction_removes_the_pod_and_lets_it_start_anew() {
    let want = spec("u", "Always", 1, "i");
    let mut world = World::default();
    world.settle(Some(&want), at(0), None);
    world.seen.evict = Some(Eviction { reason: "Evicted", message: "full".into(), grace_seconds: 1 });
    world.settle(Some(&want), at(10), None);
    assert_eq!(world.present().record.deletion.as_ref().map(|d| d.grace_seconds), Some(1));
    world.end_signalled(at(20));
    world.settle(Some(&want), at(20), None);
    assert_eq!(world.present().latest("c0").map(|r| r.attempt), Some(0));
    assert!(world.present().record.deletion.is_none());
}

#[test]
fn a_pre_stop_hook_that_never_ends_is_given_up_and_a_clock_that_jumped_back_makes_nothing_longer() {
    let want = pod(
        "u",
        json!({"terminationGracePeriodSeconds": 5, "containers": [{"name": "a", "image": "i", "lifecycle": hooks()}]}),
    );
    let mut world = World::default();
    world.settle(Some(&want), at(0), None);
    let plan = world.settle(None, at(10_000), None);
    assert_eq!((world.hooks().len(), plan.wake_at), (2, Some(at(15_000))));
    assert_eq!(world.settle(None, at(-900_000), None).wake_at, Some(at(-895_000)));
    let id = world.present().latest("a").unwrap().id.clone();
    let stop = Action::Stop { container: "a".into(), id, grace_ms: 2000 };
    assert_eq!(world.plan(None, at(15_000)).actions, [stop]);
    world.settle(None, at(15_000), None);
    // The shim has not managed it: it is asked again.
    assert_eq!(world.plan(None, at(17_999)).actions, []);
    assert_eq!(world.plan(None, at(18_000)).actions.len(), 1);
}

#[test]
fn a_removal_shortens_a_stop_that_has_begun_and_never_makes_one_longer() {
    let want = spec("u", "Always", 1, "i");
    for (grace, shortened) in [(60, true), (2, false)] {
        let mut world = World::default();
        world.settle(Some(&want), at(0), None);
        let unhealthy = Some(Unhealthy { probe: StopCause::Liveness, grace_seconds: Some(grace) });
        world.health("c0", Health { started: true, ready: false, unhealthy });
        world.settle(Some(&want), at(10), None);
        let id = world.present().latest("c0").unwrap().id.clone();
        let kill_at = |world: &World| world.present().progress(&id).stopping.as_ref().and_then(|s| s.kill_at);
        assert_eq!(kill_at(&world), Some(at(10 + grace as i64 * 1000)));
        world.settle(None, at(20), None);
        assert_eq!(kill_at(&world), Some(at(if shortened { 20 + 5_000 } else { 10 + 2_000 })));
    }
}

#[test]
fn a_pod_with_the_longest_grace_there_is_stops_once() {
    let spec =
        pod("a", json!({"terminationGracePeriodSeconds": i64::MAX, "containers": [{"name": "c", "image": "i"}]}));
    let mut world = World::default();
    world.settle(Some(&spec), at(0), None);
    // Begins to stop, is signalled, and waits for as long as it takes.
    for now in [10, 11, 5000, i64::from(u32::MAX)] {
        world.settle(None, at(now), None);
    }
    assert_eq!(world.seen.present.as_ref().map(|p| p.running().count()), Some(1));
    world.end_all(at(i64::from(u32::MAX)), 0);
    world.settle(None, at(i64::from(u32::MAX)), None);
    assert!(world.seen.present.is_none());
}
