//! The conditions of a pod.

use super::status::seconds;
use super::{Observed, Present, Role, Sandbox, Spec, order, rules};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What conditions are made from.
pub(super) struct Conditions<'a> {
    /// The pod.
    pub spec: &'a Spec,
    /// What is seen of it.
    pub seen: &'a Observed,
    /// Statuses of the init containers (regular ones and sidecars).
    pub init: &'a [ContainerStatus],
    /// Statuses of the app containers.
    pub app: &'a [ContainerStatus],
    /// The phase.
    pub phase: &'a str,
    /// Whether a resize waits.
    pub resizing: bool,
    /// The last report, for transition times.
    pub previous: Option<&'a PodStatus>,
    /// What the API server has, for what others say.
    pub copy: Option<&'a PodStatus>,
    /// When the pod was first seen.
    pub start: Timestamp,
    /// Now.
    pub now: Timestamp,
}

/// A condition's status with its reason and message.
#[derive(Clone)]
struct Finding {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Finding {
    fn new(holds: bool) -> Finding {
        Finding { holds, reason: None, message: None }
    }

    fn because(holds: bool, reason: &'static str) -> Finding {
        Finding { reason: Some(reason), ..Finding::new(holds) }
    }
}

impl Conditions<'_> {
    /// All of them, in kubelet's order.
    pub fn all(&self) -> Vec<PodCondition> {
        let present = self.seen.present.as_ref();
        let sandbox = present.is_some_and(|p| p.sandbox == Sandbox::Ready);
        let containers_ready = self.containers_ready();
        let ready = self.ready(&containers_ready);
        let running = |c: &ContainerStatus| c.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(|t| t.0);
        let ended = |c: &ContainerStatus| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0);
        // Of a pod that is over it is told since its end, by whichever agent.
        let over =
            matches!(self.phase, "Succeeded" | "Failed").then(|| self.app.iter().filter_map(ended).max()).flatten();
        let otherwise = over.unwrap_or(self.now);
        let up = self.app.iter().filter_map(running).max().filter(|_| containers_ready.holds).unwrap_or(otherwise);
        // What keeps ready containers from a ready pod has always done so; when it let go, its condition says.
        let let_go = self.gates().filter_map(|gate| self.said(gate)?.last_transition_time.as_ref().map(|t| t.0)).max();
        let changed = if containers_ready.holds && !ready.holds { self.start } else { let_go.unwrap_or(up).max(up) };
        let initialized = self.initialized();
        let init = self.init.iter().filter_map(|c| ended(c).or_else(|| running(c))).max();
        let since = init.filter(|_| initialized.holds).unwrap_or(self.start);
        let mut all = vec![
            self.make("PodReadyToStartContainers", Finding::new(sandbox), if sandbox { self.start } else { otherwise }),
            self.make("Initialized", initialized, since),
            self.make("Ready", ready, changed),
            self.make("ContainersReady", containers_ready, up),
            self.make("PodScheduled", Finding::new(true), self.start),
        ];
        if rules::may_restart_all(self.spec) {
            all.push(self.make("AllContainersRestarting", self.all_restarting(), self.now));
        }
        let refused = self.seen.refused_resize.as_ref().map(|r| (&r.reason, &r.message));
        let failed = self.seen.failure.as_ref().map(|f| (&f.reason, &f.message));
        if let Some((reason, message)) = refused.or(failed).filter(|_| self.resizing) {
            // As kubelet: what can never be is told from what may be later.
            let reason = if reason == "Infeasible" { "Infeasible" } else { "Deferred" };
            let finding = Finding { message: Some(message.clone()), ..Finding::because(true, reason) };
            all.push(self.make("PodResizePending", finding, self.now));
        }
        if present.is_some_and(resize_in_progress) {
            all.push(self.make("PodResizeInProgress", Finding::new(true), self.now));
        }
        let leaves = present.is_some_and(|p| p.record.deletion.is_some());
        let leaves_for = self.seen.evict.as_ref().filter(|_| leaves).map(|evict| evict.message.clone());
        let finished = present.and_then(|p| p.record.finished.as_ref());
        let left_for = finished
            .filter(|f| matches!(f.reason.as_deref(), Some("Evicted" | "Preempting")))
            .and_then(|f| f.message.clone());
        if let Some(message) = leaves_for.or(left_for) {
            let finding = Finding { message: Some(message), ..Finding::because(true, "TerminationByKubelet") };
            all.push(self.make("DisruptionTarget", finding, self.now));
        }
        let gates = self.gates().filter_map(|gate| self.said(gate)).cloned();
        all.extend(gates.filter(|gate| !all.iter().any(|c| c.type_ == gate.type_)).collect::<Vec<_>>());
        all
    }

    fn initialized(&self) -> Finding {
        if self.phase == "Succeeded" {
            return Finding::because(true, "PodCompleted");
        }
        let is_sidecar = |c: &ContainerStatus| self.spec.role(&c.name) == Some(Role::Sidecar);
        let done = |c: &ContainerStatus| if is_sidecar(c) { c.started == Some(true) } else { c.ready };
        let incomplete: Vec<&str> = self.init.iter().filter(|c| !done(c)).map(|c| c.name.as_str()).collect();
        let began =
            |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some());
        if incomplete.is_empty() || self.app.iter().any(began) {
            return Finding::new(true);
        }
        Finding {
            message: Some(format!("containers with incomplete status: [{}]", incomplete.join(" "))),
            ..Finding::because(false, "ContainersNotInitialized")
        }
    }

    fn containers_ready(&self) -> Finding {
        match self.phase {
            "Succeeded" => return Finding::because(false, "PodCompleted"),
            "Failed" => return Finding::because(false, "PodFailed"),
            _ => {}
        }
        let sidecars = self.init.iter().filter(|c| self.spec.role(&c.name) == Some(Role::Sidecar));
        let unready: Vec<&str> = sidecars.chain(self.app).filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
        if unready.is_empty() {
            return Finding::new(true);
        }
        Finding {
            message: Some(format!("containers with unready status: [{}]", unready.join(" "))),
            ..Finding::because(false, "ContainersNotReady")
        }
    }

    fn ready(&self, containers: &Finding) -> Finding {
        if !containers.holds {
            return containers.clone();
        }
        let complaint = |gate: &str| match self.said(gate) {
            None => Some(format!("corresponding condition of pod readiness gate {gate:?} does not exist.")),
            Some(c) if c.status != "True" => {
                Some(format!("the status of pod readiness gate {gate:?} is not \"True\", but {}", c.status))
            }
            Some(_) => None,
        };
        let complaints: Vec<String> = self.gates().filter_map(complaint).collect();
        if complaints.is_empty() {
            return Finding::new(true);
        }
        Finding { message: Some(complaints.join(", ")), ..Finding::because(false, "ReadinessGatesNotReady") }
    }

    fn all_restarting(&self) -> Finding {
        match self.phase {
            "Succeeded" => Finding::because(false, "PodCompleted"),
            "Failed" => Finding::because(false, "PodFailed"),
            _ => Finding::new(self.seen.present.as_ref().is_some_and(|have| {
                self.spec.all_containers().filter_map(|c| have.latest(&c.name)).any(|run| order::is_outdated(have, run))
            })),
        }
    }

    fn gates(&self) -> impl Iterator<Item = &str> {
        self.spec.spec().readiness_gates.iter().flatten().map(|gate| gate.condition_type.as_str())
    }

    fn old(&self, type_: &str) -> Option<&PodCondition> {
        self.previous.and_then(|s| s.conditions.as_ref()).into_iter().flatten().find(|c| c.type_ == type_)
    }

    /// What somebody says of a readiness gate.
    fn said(&self, type_: &str) -> Option<&PodCondition> {
        let Some(copy) = self.copy else { return self.old(type_) };
        copy.conditions.iter().flatten().find(|condition| condition.type_ == type_)
    }

    /// `first`: since when, if there is no earlier report to tell.
    fn make(&self, type_: &str, finding: Finding, first: Timestamp) -> PodCondition {
        let status = if finding.holds { "True" } else { "False" };
        let since = match self.old(type_) {
            Some(old) if old.status == status => old.last_transition_time.as_ref().map_or(first, |t| t.0),
            Some(_) => self.now,
            None => first,
        };
        PodCondition {
            type_: type_.into(),
            status: status.into(),
            reason: finding.reason.map(Into::into),
            message: finding.message,
            last_transition_time: Some(Time(seconds(since))),
            observed_generation: self.seen.generation,
            ..PodCondition::default()
        }
    }
}

/// Whether a container is on its way to its new resources.
fn resize_in_progress(have: &Present) -> bool {
    have.running().any(|run| have.record.resize_restarts.contains(&run.id))
}
