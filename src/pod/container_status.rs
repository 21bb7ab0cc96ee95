//! What is reported of one container.

use super::rules::{self, Verdict};
use super::status::{NodeFacts, seconds};
use super::{HookState, Instance, Observed, Present, Role, Spec, User, order, start};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Most bytes that the termination messages of one pod may have together (as kubelet: 12 KiB).
const MESSAGES_MAX: usize = 12 * 1024;

/// All that the report of a pod's containers is made from.
pub(super) struct View<'a> {
    /// The pod whose containers they are.
    pub spec: &'a Spec,
    /// What is seen.
    pub seen: &'a Observed,
    /// The node.
    pub node: &'a NodeFacts,
    /// Now.
    pub now: Timestamp,
}

impl View<'_> {
    /// The status of a container.
    pub fn status(&self, container: &Container, role: Role) -> ContainerStatus {
        let have = self.seen.present.as_ref();
        let runs = have.and_then(|p| p.containers.get(&container.name)).map_or(&[][..], Vec::as_slice);
        let latest = runs.last();
        let before = runs.len().checked_sub(2).and_then(|i| runs.get(i)).and_then(|run| self.ended(run));
        let (state, last_state) = match (have, latest) {
            (Some(have), Some(run)) => self.state(have, container, role, run, before),
            (Some(have), None) if role == Role::Init && order::was_initialized(have) => (forgotten(), None),
            _ => (self.obstacle(container).unwrap_or_else(|| self.not_yet()), None),
        };
        let running = latest.filter(|_| state.running.is_some());
        let health = have.zip(running).map(|(have, run)| have.health(container, &run.id));
        let started = health.as_ref().is_some_and(|health| health.started);
        let ready = match role {
            Role::Init => state.terminated.as_ref().is_some_and(|end| end.exit_code == 0),
            Role::Sidecar | Role::App => started && health.is_some_and(|health| health.ready),
        };
        ContainerStatus {
            allocated_resources: container.resources.as_ref().and_then(|r| r.requests.clone()),
            container_id: latest.map(|r| format!("coracle://{}", r.id)),
            // What runs; that of its next run is in the spec.
            image: match latest.filter(|run| run.is_running()) {
                Some(run) => run.image.clone(),
                None => container.image.clone().unwrap_or_default(),
            },
            image_id: latest.map(|r| r.image_id.clone()).unwrap_or_default(),
            last_state: Some(last_state.unwrap_or_default()),
            name: container.name.clone(),
            ready,
            resources: container.resources.clone(),
            restart_count: latest.map_or(0, |r| i32::try_from(r.attempt).unwrap_or(i32::MAX)),
            started: Some(started),
            state: Some(state),
            user: latest.and_then(|run| run.user.as_ref()).map(identity),
            volume_mounts: latest.and_then(|_| mounts(container)),
            ..ContainerStatus::default()
        }
    }

    /// The present and the last state of a container that has a run.
    fn state(
        &self,
        have: &Present,
        container: &Container,
        role: Role,
        run: &Instance,
        before: Option<ContainerState>,
    ) -> (ContainerState, Option<ContainerState>) {
        let Some(end) = self.ended(run) else {
            let state = match run.started {
                Some(started) => ContainerState {
                    running: Some(ContainerStateRunning { started_at: Some(Time(seconds(started))) }),
                    ..ContainerState::default()
                },
                // As kubelet: created and not started has no reason.
                None => ContainerState { waiting: Some(ContainerStateWaiting::default()), ..ContainerState::default() },
            };
            return (state, before);
        };
        let leaving = have.record.deletion.is_some() || have.record.finished.is_some();
        let counts = order::counted(have, role, &container.name).is_some();
        let progress = have.progress(&run.id);
        let stays = counts && rules::after(&have.spec, container, run, progress) == Verdict::Done;
        if leaving || stays {
            return (end, before);
        }
        if let Some(state) = self.obstacle(container) {
            return (state, Some(end));
        }
        let hook = match &progress.post_start {
            HookState::Failed(error) if counts => Some(format!("PostStartHook failed: {error}")),
            _ => None,
        };
        let next = start::due(have, container, role, self.node.max_backoff, self.now);
        let backs_off = next.is_some_and(|next| next.not_before > self.now);
        if backs_off && (counts || order::is_reached(have, &container.name)) {
            // As kubelet, and why: what a hook failed of is in no other state.
            let message = self.back_off_message(container, run);
            let message = hook.map_or(message.clone(), |hook| format!("{message}: {hook}"));
            return (waiting("CrashLoopBackOff", Some(message)), Some(end));
        }
        if let Some(message) = hook {
            return (waiting("PostStartHookError", Some(message)), Some(end));
        }
        if order::is_outdated(have, run) {
            return (waiting("RestartingAllContainers", None), Some(end));
        }
        if counts { (end, before) } else { (self.not_yet(), Some(end)) }
    }

    /// As kubelet: a pod that has init containers is being initialized.
    fn not_yet(&self) -> ContainerState {
        let plain = self.spec.init_containers().is_empty();
        waiting(if plain { "ContainerCreating" } else { "PodInitializing" }, None)
    }

    /// Why a container that should be made is not, if something is in the way.
    fn obstacle(&self, container: &Container) -> Option<ContainerState> {
        if let Some(failure) = self.seen.container_failures.get(&container.name) {
            return Some(waiting(&failure.reason, Some(failure.message.clone())));
        }
        // Nobody asks for the image of a container before its turn.
        let waits = self.seen.present.as_ref().is_some_and(|have| {
            have.spec.init_containers().iter().any(|c| c.name != container.name)
                && !order::is_reached(have, &container.name)
        });
        let (reason, message) = start::missing_image(container, self.seen).filter(|_| !waits)?;
        Some(waiting(reason, Some(message.to_owned())))
    }

    fn ended(&self, run: &Instance) -> Option<ContainerState> {
        let end = run.terminated.as_ref()?;
        let most = MESSAGES_MAX / self.spec.all_containers().count().max(1);
        Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                container_id: Some(format!("coracle://{}", run.id)),
                exit_code: end.exit_code,
                finished_at: Some(Time(seconds(end.finished))),
                message: Some(cut(&end.message, most)).filter(|text| !text.is_empty()),
                reason: Some(end.reason.clone()),
                signal: end.signal,
                started_at: run.started.map(|t| Time(seconds(t))),
            }),
            ..ContainerState::default()
        })
    }

    /// As kubelet: `back-off 10s restarting failed container=web pod=web-node_default(uid)`.
    fn back_off_message(&self, container: &Container, run: &Instance) -> String {
        let key = self.spec.key();
        let seconds = run.backoff_ms / 1000;
        let delay = match (seconds / 60, seconds % 60) {
            (0, s) => format!("{s}s"),
            (m, s) => format!("{m}m{s}s"),
        };
        format!(
            "back-off {delay} restarting failed container={} pod={}_{}({})",
            container.name,
            key.name,
            key.namespace,
            self.spec.uid()
        )
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message }),
        ..ContainerState::default()
    }
}

/// As kubelet: an init container whose record is gone, under app containers that took its work for done.
fn forgotten() -> ContainerState {
    let end = ContainerStateTerminated { reason: Some("Completed".into()), ..ContainerStateTerminated::default() };
    ContainerState { terminated: Some(end), ..ContainerState::default() }
}

/// The first `most` bytes, no character cut in two.
fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}

fn identity(user: &User) -> ContainerUser {
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: Some(user.groups.iter().map(|group| i64::from(*group)).collect()),
        }),
    }
}

fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let status = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        let read_only = mount.read_only == Some(true);
        let recursive = match mount.recursive_read_only.as_deref() {
            Some("Enabled" | "IfPossible") => "Enabled",
            _ => "Disabled",
        };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| recursive.to_owned()),
            volume_status: None,
        }
    };
    Some(mounts.iter().map(status).collect())
}
