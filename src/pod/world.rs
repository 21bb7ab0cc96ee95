//! A simulated machine for tests of the plan: executes actions, and checks what must hold whenever one is executed.

use super::rules;
use super::*;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + ms).unwrap()
}

fn later(now: Timestamp, ms: u64) -> Timestamp {
    let ms = SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
    now.checked_add(ms).unwrap_or(Timestamp::MAX)
}

/// A pod of the given JSON `spec`.
pub(super) fn pod(uid: &str, spec: serde_json::Value) -> Spec {
    let pod = serde_json::json!({"metadata": {"name": "p-node", "namespace": "default", "uid": uid}, "spec": spec});
    Spec::new(serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(pod).unwrap()).unwrap()
}

/// What a machine would do with the actions.
#[derive(Default)]
pub(super) struct World {
    pub seen: Observed,
    ids: u64,
    /// Ends of containers since all of them were restarted.
    exits: u32,
}

impl World {
    pub fn present(&self) -> &Present {
        self.seen.present.as_ref().unwrap()
    }

    pub fn present_mut(&mut self) -> &mut Present {
        self.seen.present.as_mut().unwrap()
    }

    pub fn execute(&mut self, desired: Option<&Spec>, action: &Action, now: Timestamp) {
        match action {
            Action::CreateSandbox => self.create(desired.expect("only a wanted pod is created"), now),
            Action::Run { container, attempt, backoff_ms } => self.run(container, *attempt, *backoff_ms, now),
            Action::BeginStop { container, id, cause, grace_ms } => {
                assert!(self.present().latest(container).is_some_and(|run| run.is_running() && run.id == *id));
                let progress = self.present_mut().progress.entry(id.clone()).or_default();
                let old = progress.stopping.as_ref();
                if let Some(old) = old {
                    assert!(later(now, *grace_ms) <= later(old.begun.max(now), old.grace_ms), "a stop got longer");
                }
                let kill_at = old.and_then(|s| s.kill_at);
                progress.stopping = Some(Stopping { cause: *cause, begun: now, grace_ms: *grace_ms, kill_at });
            }
            Action::Pull { container, .. } => {
                self.seen.images.insert(container.clone(), super::ImageState::Present);
            }
            Action::Hook { container, id, kind, timeout_ms } => self.hook(container, id, *kind, *timeout_ms),
            Action::Stop { container, id, grace_ms } => self.stop(container, id, *grace_ms, now),
            Action::Forget { container, attempt } => {
                let least = if self.seen.short_of_disk { 1 } else { 2 };
                let runs = self.present_mut().containers.get_mut(container).unwrap();
                assert!(runs.len() > least);
                assert!(runs.last().is_some_and(|last| last.attempt != *attempt), "the newest run tells what is so");
                runs.retain(|r| r.attempt != *attempt);
            }
            Action::MarkDeleting { grace_seconds } => {
                let record = &mut self.present_mut().record;
                assert!(record.deletion.is_none());
                record.deletion = Some(Deletion { started: now, grace_seconds: *grace_seconds });
            }
            Action::ResetSandbox { .. } => {
                self.end_where(now, 137, "ContainerStatusUnknown", |_, _| true);
                let present = self.present_mut();
                present.sandbox = Sandbox::Absent;
                present.progress.clear();
            }
            Action::StopSandbox => {
                let present = self.present_mut();
                assert_eq!(present.running().count(), 0, "sandbox stopped under a running container");
                present.sandbox = Sandbox::Absent;
                present.progress.clear();
            }
            Action::RestartAll { trigger } => {
                assert!(
                    std::mem::take(&mut self.exits) > 0,
                    "all containers restart, and none ended since the last time"
                );
                let present = self.present_mut();
                assert!(present.latest(trigger).is_some_and(|run| run.terminated.is_some()));
                present.record.round += 1;
                present.record.restart_all = present.record.round;
            }
            Action::Resize { restart } => {
                let want = desired.unwrap();
                let present = self.present_mut();
                assert_eq!(present.spec.uid(), want.uid());
                assert!(restart.iter().all(|id| present.running().any(|run| run.id == *id)));
                present.record.resize_restarts.extend(restart.iter().cloned());
                present.spec = want.clone();
                present.record.pod = want.pod().clone();
            }
            Action::Update => {
                let want = desired.unwrap();
                let present = self.present_mut();
                assert_eq!(present.spec.uid(), want.uid());
                assert!(is_from_api(present.spec.pod()) && is_from_api(want.pod()));
                present.record.pod = adopted(&present.record.pod, want.pod());
                present.spec = Spec::new(present.record.pod.clone()).unwrap();
            }
            Action::Finish { phase, reason, message, grace_seconds } => {
                let record = &mut self.present_mut().record;
                assert!(record.finished.is_none() && record.deletion.is_none());
                record.finished = Some(Finished {
                    phase: (*phase).into(),
                    reason: reason.clone(),
                    message: message.clone(),
                    at: now,
                    grace_seconds: *grace_seconds,
                });
            }
            Action::RemovePod => {
                let present = self.seen.present.take().unwrap();
                assert_eq!(present.sandbox, Sandbox::Absent);
                assert_eq!(present.running().count(), 0);
                self.seen.evict = None;
            }
        }
    }

    fn create(&mut self, want: &Spec, now: Timestamp) {
        let fresh = || Present {
            spec: want.clone(),
            record: Record {
                pod: want.pod().clone(),
                start_time: now,
                seen: None,
                sandbox: None,
                sandbox_attempts: 0,
                finished: None,
                deletion: None,
                round: 0,
                restart_all: 0,
                resize_restarts: BTreeSet::new(),
                clock: None,
            },
            sandbox: Sandbox::Absent,
            containers: BTreeMap::new(),
            progress: BTreeMap::new(),
        };
        let present = self.seen.present.get_or_insert_with(fresh);
        assert_eq!(present.spec.uid(), want.uid(), "a pod of another uid is still there");
        assert_eq!(present.sandbox, Sandbox::Absent, "two sandboxes");
        assert_eq!(present.running().count(), 0);
        assert!(present.record.finished.is_none() && present.record.deletion.is_none());
        present.record.round += u32::from(present.record.sandbox_attempts > 0);
        present.record.sandbox_attempts += 1;
        present.spec = want.clone();
        present.record.pod = want.pod().clone();
        present.sandbox = Sandbox::Ready;
        present.record.sandbox =
            Some(SandboxRecord { created: now, boot_id: "b".into(), ips: vec![], cgroup: String::new() });
    }

    fn run(&mut self, container: &str, attempt: u32, backoff_ms: u64, now: Timestamp) {
        self.ids += 1;
        let id = format!("id{}", self.ids);
        self.may_run(container);
        let image = self.present().spec.container(container).and_then(|c| c.image.clone()).unwrap_or_default();
        let present = self.present_mut();
        let round = present.record.round;
        let runs = present.containers.entry(container.to_owned()).or_default();
        assert_eq!(attempt, runs.last().map_or(0, |r| r.attempt + 1));
        runs.push(Instance {
            id,
            container: container.to_owned(),
            attempt,
            image,
            image_id: "sha256:0".into(),
            volume_images: Vec::new(),
            round,
            backoff_ms,
            created: now,
            pid: 7,
            pid_start: 7,
            boot_id: "b".into(),
            started: Some(now),
            terminated: None,
            user: None,
            clock: None,
        });
    }

    /// What must hold when a container is started, told without the plan's own words.
    fn may_run(&self, name: &str) {
        let present = self.present();
        let (spec, record) = (&present.spec, &present.record);
        assert_eq!(present.sandbox, Sandbox::Ready, "container before its sandbox");
        assert!(record.deletion.is_none() && record.finished.is_none(), "{name} starts while the pod goes");
        assert!(present.running().all(|run| run.container != name), "two instances of {name}");
        assert!(
            present.running().all(|run| run.round >= record.restart_all),
            "{name} starts before the old round went"
        );
        let app_runs = present.running().any(|run| spec.role(&run.container) == Some(Role::App));
        let role = spec.role(name).unwrap();
        if role == Role::Init {
            assert!(!app_runs, "init container {name} runs beside app containers");
            assert!(!self.succeeded(name), "init container {name} runs twice in a round");
        }
        if app_runs {
            return;
        }
        for before in spec.init_containers().iter().take_while(|c| c.name != name) {
            match Role::of_init(before) {
                Role::Sidecar => assert!(self.started(before), "{name} starts before sidecar {}", before.name),
                _ => {
                    assert!(self.succeeded(&before.name), "{name} starts before init container {} is done", before.name)
                }
            }
        }
    }

    fn succeeded(&self, name: &str) -> bool {
        let present = self.present();
        let good = |run: &Instance| run.round == present.record.round && rules::succeeded(run);
        present.latest(name).is_some_and(good)
    }

    fn started(&self, sidecar: &Container) -> bool {
        let present = self.present();
        present.latest(&sidecar.name).is_some_and(|run| {
            let hooked = sidecar.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
            let progress = present.progress(&run.id);
            run.is_running()
                && (!hooked || progress.post_start == HookState::Done)
                && present.health(sidecar, &run.id).started
        })
    }

    fn hook(&mut self, container: &str, id: &str, kind: HookKind, timeout_ms: Option<u64>) {
        let present = self.present_mut();
        let run = present.latest(container).unwrap();
        assert!(run.is_running() && run.id == id, "a hook for a container that is not there");
        let lifecycle = present.spec.container(container).unwrap().lifecycle.clone().unwrap();
        let progress = present.progress.entry(id.to_owned()).or_default();
        let state = match kind {
            HookKind::PostStart => {
                assert!(lifecycle.post_start.is_some() && timeout_ms.is_none() && progress.stopping.is_none());
                &mut progress.post_start
            }
            HookKind::PreStop => {
                let stopping = progress.stopping.as_ref().expect("preStop of a container that stays");
                assert!(stopping.kill_at.is_none(), "preStop after the signal");
                assert!(lifecycle.pre_stop.is_some() && timeout_ms.is_some_and(|ms| ms > 0 && ms <= stopping.grace_ms));
                &mut progress.pre_stop
            }
        };
        assert_eq!(*state, HookState::Idle, "a hook is delivered twice");
        *state = HookState::Running;
    }

    fn stop(&mut self, container: &str, id: &str, grace_ms: u64, now: Timestamp) {
        let present = self.present();
        let stopping = present.progress(id).stopping.clone().expect("a signal out of the blue");
        let out_of_time = later(stopping.begun, stopping.grace_ms) <= now || stopping.cause == StopCause::RestartAll;
        let lone = present.record.deletion.is_none() && present.record.finished.is_none();
        if present.spec.role(container) == Some(Role::Sidecar) && !lone && !out_of_time && stopping.kill_at.is_none() {
            let behind = present.spec.init_containers().iter().skip_while(|c| c.name != container).skip(1);
            let behind = behind.filter(|c| Role::of_init(c) == Role::Sidecar);
            for other in behind.chain(present.spec.containers()) {
                let up = present.latest(&other.name).is_some_and(Instance::is_running);
                assert!(!up, "sidecar {container} is signalled before {}", other.name);
            }
        }
        assert!(grace_ms >= 2000 && grace_ms <= stopping.grace_ms.max(2000));
        let progress = self.present_mut().progress.get_mut(id).unwrap();
        progress.stopping.as_mut().unwrap().kill_at = Some(later(now, grace_ms));
    }

    /// End the running containers that `which` picks.
    pub fn end_where(&mut self, now: Timestamp, code: i32, reason: &str, which: impl Fn(&Present, &Instance) -> bool) {
        let Some(present) = &self.seen.present else { return };
        let ids: Vec<String> = present.running().filter(|run| which(present, run)).map(|run| run.id.clone()).collect();
        for run in self.present_mut().containers.values_mut().flatten().filter(|run| ids.contains(&run.id)) {
            run.terminated = Some(Termination {
                finished: now,
                exit_code: code,
                signal: None,
                reason: reason.into(),
                message: String::new(),
            });
        }
        self.exits += ids.len() as u32;
    }

    pub fn end(&mut self, now: Timestamp, container: &str, code: i32) {
        let reason = if code == 0 { "Completed" } else { "Error" };
        self.end_where(now, code, reason, |_, run| run.container == container);
    }

    pub fn end_all(&mut self, now: Timestamp, code: i32) {
        self.end_where(now, code, if code == 0 { "Completed" } else { "Error" }, |_, _| true);
    }

    /// End what was sent its stop signal.
    pub fn end_signalled(&mut self, now: Timestamp) {
        self.end_where(now, 143, "Error", |present, run| {
            present.progress(&run.id).stopping.as_ref().is_some_and(|s| s.kill_at.is_some())
        });
    }

    /// The hooks under way: container ID and kind.
    pub fn hooks(&self) -> Vec<(String, HookKind)> {
        let progress = self.seen.present.iter().flat_map(|p| &p.progress);
        let state =
            |p: &Progress| [(HookKind::PostStart, p.post_start.clone()), (HookKind::PreStop, p.pre_stop.clone())];
        let all = progress.flat_map(|(id, p)| state(p).map(|(kind, state)| (id.clone(), kind, state)));
        all.filter(|(_, _, state)| *state == HookState::Running).map(|(id, kind, _)| (id, kind)).collect()
    }

    pub fn end_hook(&mut self, id: &str, kind: HookKind, state: HookState) {
        let progress = self.present_mut().progress.get_mut(id).unwrap();
        match kind {
            HookKind::PostStart => progress.post_start = state,
            HookKind::PreStop => progress.pre_stop = state,
        }
    }

    /// Another agent takes over: it knows of no hook under way.
    pub fn restart_agent(&mut self) {
        for (id, kind) in self.hooks() {
            self.end_hook(&id, kind, HookState::Idle);
        }
    }

    pub fn health(&mut self, container: &str, health: Health) {
        let present = self.present_mut();
        let id = present.latest(container).filter(|run| run.is_running()).map(|run| run.id.clone());
        if let Some(id) = id {
            present.progress.entry(id).or_default().health = Some(health);
        }
    }

    pub fn plan(&self, desired: Option<&Spec>, now: Timestamp) -> Plan {
        plan(desired, &self.seen, restart::MAX_BACKOFF, now)
    }

    /// Plan and execute until nothing is left to do now; `fail_at`: that action is skipped (it failed) once.
    pub fn settle(&mut self, desired: Option<&Spec>, now: Timestamp, mut fail_at: Option<usize>) -> Plan {
        for _ in 0..200 {
            let plan = self.plan(desired, now);
            if plan.actions.is_empty() {
                assert!(plan.wake_at.is_none_or(|at| at > now), "a plan without actions must not wake at once");
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
        panic!("the plan does not converge: {:?}", self.plan(desired, now));
    }
}
