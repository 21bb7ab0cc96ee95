//! Properties of the plan, checked in a simulated world that executes actions, loses shims and reboots.

use super::{plan as plan_with, *};
use crate::pod::restart::MAX_BACKOFF;
use crate::pod::{Deletion, Finished, Record, SandboxRecord, Stopping, Termination};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn plan(desired: Option<&Spec>, seen: &Observed, now: Timestamp) -> Plan {
    plan_with(desired, seen, MAX_BACKOFF, now)
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + ms).unwrap()
}

fn spec(uid: &str, policy: &str, containers: usize, image: &str) -> Spec {
    let containers: Vec<_> =
        (0..containers).map(|i| serde_json::json!({"name": format!("c{i}"), "image": image})).collect();
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p-node", "namespace": "default", "uid": uid},
        "spec": {"containers": containers, "restartPolicy": policy, "terminationGracePeriodSeconds": 5},
    }))
    .unwrap();
    Spec::new(pod).unwrap()
}

/// What a machine would do with the actions.
#[derive(Default)]
struct World {
    seen: Observed,
    ids: u64,
    /// Pods that were ever made, to check that two never overlap.
    created: u32,
}

impl World {
    fn execute(&mut self, desired: Option<&Spec>, action: &Action, now: Timestamp) {
        match action {
            Action::CreateSandbox => {
                let want = desired.expect("only a wanted pod is created");
                let fresh = self.seen.present.is_none();
                let present = self.seen.present.get_or_insert_with(|| Present {
                    spec: want.clone(),
                    record: Record {
                        pod: want.pod().clone(),
                        start_time: now,
                        sandbox: None,
                        sandbox_attempts: 0,
                        finished: None,
                        deletion: None,
                        round: 0,
                        restart_all: 0,
                    },
                    sandbox: Sandbox::Absent,
                    containers: BTreeMap::new(),
                    progress: BTreeMap::new(),
                });
                assert_eq!(present.spec.uid(), want.uid(), "a pod of another uid is still there");
                assert_eq!(present.sandbox, Sandbox::Absent, "two sandboxes");
                assert_eq!(present.running().count(), 0);
                self.created += u32::from(fresh);
                present.sandbox = Sandbox::Ready;
                present.record.sandbox =
                    Some(SandboxRecord { created: now, boot_id: "b".into(), ips: vec![], cgroup: String::new() });
            }
            Action::Run { container, attempt, backoff_ms } => {
                self.ids += 1;
                let present = self.seen.present.as_mut().unwrap();
                assert_eq!(present.sandbox, Sandbox::Ready, "container before its sandbox");
                assert!(present.record.deletion.is_none() && present.record.finished.is_none());
                let runs = present.containers.entry(container.clone()).or_default();
                assert!(runs.iter().all(|r| !r.is_running()), "two instances of a container");
                assert_eq!(*attempt, runs.last().map_or(0, |r| r.attempt + 1));
                runs.push(Instance {
                    id: format!("id{}", self.ids),
                    container: container.clone(),
                    attempt: *attempt,
                    image: "i".into(),
                    image_id: "sha256:0".into(),
                    round: 0,
                    backoff_ms: *backoff_ms,
                    created: now,
                    pid: 7,
                    pid_start: 7,
                    boot_id: "b".into(),
                    started: Some(now),
                    terminated: None,
                });
            }
            Action::Stop { id, grace_ms, .. } => {
                let present = self.seen.present.as_mut().unwrap();
                let deadline = now.checked_add(SignedDuration::from_millis(*grace_ms as i64)).unwrap();
                let stopping =
                    Stopping { cause: StopCause::Pod, begun: now, grace_ms: *grace_ms, kill_at: Some(deadline) };
                present.progress.entry(id.clone()).or_default().stopping = Some(stopping);
            }
            Action::Forget { container, attempt } => {
                let runs = self.seen.present.as_mut().unwrap().containers.get_mut(container).unwrap();
                assert!(runs.len() > 2);
                runs.retain(|r| r.attempt != *attempt);
            }
            Action::MarkDeleting { grace_seconds } => {
                self.seen.present.as_mut().unwrap().record.deletion =
                    Some(Deletion { started: now, grace_seconds: *grace_seconds });
            }
            Action::ResetSandbox { .. } => {
                self.end_all(now, 137, "ContainerStatusUnknown");
                let present = self.seen.present.as_mut().unwrap();
                present.sandbox = Sandbox::Absent;
                present.progress.clear();
            }
            Action::StopSandbox => {
                let present = self.seen.present.as_mut().unwrap();
                assert_eq!(present.running().count(), 0, "sandbox stopped under a running container");
                present.sandbox = Sandbox::Absent;
            }
            Action::Finish { phase, reason, message, grace_seconds } => {
                self.seen.present.as_mut().unwrap().record.finished = Some(Finished {
                    phase: (*phase).into(),
                    reason: reason.clone(),
                    message: message.clone(),
                    at: now,
                    grace_seconds: *grace_seconds,
                });
            }
            Action::BeginStop { .. } | Action::Hook { .. } | Action::RestartAll { .. } | Action::Resize => {}
            Action::RemovePod => {
                let present = self.seen.present.take().unwrap();
                assert_eq!(present.sandbox, Sandbox::Absent);
                assert_eq!(present.running().count(), 0);
            }
        }
    }

    fn end_all(&mut self, now: Timestamp, code: i32, reason: &str) {
        for run in self.seen.present.iter_mut().flat_map(|p| p.containers.values_mut()).flatten() {
            if run.terminated.is_none() {
                run.terminated = Some(Termination {
                    finished: now,
                    exit_code: code,
                    signal: None,
                    reason: reason.into(),
                    message: String::new(),
                });
            }
        }
    }

    /// Plan and execute until nothing is left to do now; `fail_at`: that action is skipped (it failed) once.
    fn settle(&mut self, desired: Option<&Spec>, now: Timestamp, mut fail_at: Option<usize>) -> Plan {
        for _ in 0..200 {
            let plan = plan(desired, &self.seen, now);
            if plan.actions.is_empty() {
                return plan;
            }
            for action in &plan.actions {
                if let Some(n) = fail_at {
                    fail_at = n.checked_sub(1);
                    if n == 0 {
                        break;
                    }
                }
                self.execute(desired, action, now);
            }
        }
        panic!("the plan does not converge: {:?}", plan(desired, &self.seen, now));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Want(u8),
    Nothing,
    Exit(i32),
    ShimLost,
    Wait(u32),
    Fail(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u8..6).prop_map(Step::Want),
        1 => Just(Step::Nothing),
        3 => prop_oneof![Just(0), Just(1), Just(137)].prop_map(Step::Exit),
        1 => Just(Step::ShimLost),
        3 => (0u32..700_000).prop_map(Step::Wait),
        2 => (0u8..6).prop_map(Step::Fail),
    ];
    prop::collection::vec(step, 1..40)
}

fn variant(n: u8) -> Spec {
    let policy = ["Always", "OnFailure", "Never"][usize::from(n % 3)];
    spec(&format!("uid{}", n / 2), policy, 1 + usize::from(n % 2), &format!("image{n}"))
}

proptest! {
    #[test]
    fn whatever_happens_the_plan_converges_and_keeps_its_guarantees(steps in steps()) {
        let mut world = World::default();
        let mut desired: Option<Spec> = None;
        let mut now = 0i64;
        let mut fail = None;
        for step in steps {
            match step {
                Step::Want(n) => desired = Some(variant(n)),
                Step::Nothing => desired = None,
                Step::Exit(code) => world.end_all(at(now), code, if code == 0 { "Completed" } else { "Error" }),
                Step::ShimLost => {
                    if let Some(p) = world.seen.present.as_mut().filter(|p| p.sandbox == Sandbox::Ready) {
                        p.sandbox = Sandbox::Broken("shim killed".into());
                    }
                }
                Step::Wait(ms) => now += i64::from(ms),
                Step::Fail(n) => fail = Some(usize::from(n)),
            }
            let plan = world.settle(desired.as_ref(), at(now), fail.take());
            if let Some(wake) = plan.wake_at {
                prop_assert!(wake > at(now), "a plan without actions must not wake at once");
            }
        }
        // In the end nothing is wanted: everything goes, whatever state it was in.
        for _ in 0..5 {
            now += 10_000;
            world.settle(None, at(now), None);
            world.end_all(at(now), 137, "Error");
        }
        world.settle(None, at(now), None);
        prop_assert!(world.seen.present.is_none());
    }

    #[test]
    fn deterministic(n in 0u8..6, now in 0i64..1_000_000) {
        let want = variant(n);
        let seen = Observed::default();
        prop_assert_eq!(plan(Some(&want), &seen, at(now)), plan(Some(&want), &seen, at(now)));
    }
}

#[test]
fn a_new_pod_gets_a_sandbox_then_its_containers_in_order() {
    let want = spec("u", "Always", 2, "i");
    let mut world = World::default();
    assert_eq!(plan(Some(&want), &world.seen, at(0)).actions, [Action::CreateSandbox]);
    world.execute(Some(&want), &Action::CreateSandbox, at(0));
    let run = |c: &str| Action::Run { container: c.into(), attempt: 0, backoff_ms: 0 };
    assert_eq!(plan(Some(&want), &world.seen, at(0)).actions, [run("c0"), run("c1")]);
}

#[test]
fn an_edit_tears_the_old_pod_down_before_the_new_one_starts() {
    let (old, new) = (spec("u1", "Always", 1, "i"), spec("u2", "Always", 1, "j"));
    let mut world = World::default();
    world.settle(Some(&old), at(0), None);
    let plan = world.settle(Some(&new), at(10), None);
    assert!(world.seen.present.as_ref().unwrap().spec.uid() == "u1", "the old one is still stopping");
    assert_eq!(plan.wake_at, Some(at(10 + 5_000 + 1_000)));
    world.end_all(at(20), 0, "Completed");
    world.settle(Some(&new), at(20), None);
    assert_eq!(world.seen.present.as_ref().unwrap().spec.uid(), "u2");
}

#[test]
fn a_pinned_uid_does_not_hide_an_edit() {
    let (old, new) = (spec("u", "Always", 1, "i"), spec("u", "Always", 1, "j"));
    let mut world = World::default();
    world.settle(Some(&old), at(0), None);
    assert_eq!(plan(Some(&new), &world.seen, at(1)).actions, [Action::MarkDeleting { grace_seconds: 5 }]);
}

#[test]
fn an_absent_image_waits_without_polling() {
    let want = spec("u", "Always", 1, "i");
    let mut world = World::default();
    world.execute(Some(&want), &Action::CreateSandbox, at(0));
    world
        .seen
        .images
        .insert("i".into(), ImageState::Absent { reason: "ErrImagePull".into(), message: "not here".into() });
    assert_eq!(plan(Some(&want), &world.seen, at(0)), Plan::default());
}

#[test]
fn a_failed_step_is_tried_again_when_its_time_has_come() {
    let want = spec("u", "Always", 1, "i");
    let failure = Failure { reason: "FailedMount".into(), message: "x".into(), count: 1, retry_at: at(1000) };
    let seen = Observed { failure: Some(failure), ..Observed::default() };
    assert_eq!(plan(Some(&want), &seen, at(0)), Plan { actions: vec![], wake_at: Some(at(1000)) });
    assert_eq!(plan(Some(&want), &seen, at(1000)).actions, [Action::CreateSandbox]);
    // Removal of a pod that was never made has nothing to wait for.
    assert_eq!(plan(None, &seen, at(0)), Plan::default());
}

#[test]
fn a_finished_pod_gives_its_sandbox_back_and_stays_finished() {
    let want = spec("u", "Never", 1, "i");
    let mut world = World::default();
    world.settle(Some(&want), at(0), None);
    world.end_all(at(5), 0, "Completed");
    world.settle(Some(&want), at(5), None);
    let present = world.seen.present.as_ref().unwrap();
    assert_eq!(present.record.finished.as_ref().map(|f| f.phase.as_str()), Some("Succeeded"));
    assert_eq!(present.sandbox, Sandbox::Absent);
    assert_eq!(plan(Some(&want), &world.seen, at(99)), Plan::default());
}
