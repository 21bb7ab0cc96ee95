//! Whether a new revision of a pod works: what is seen of it against the time that it has. Pure.
//!
//! Times are distances on a clock that nobody sets, from any fixed point.

use super::status::is_ready;
use crate::config;
use crate::manifest::{Problem, Severity};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use std::time::Duration;

/// Annotation of a pod: a new revision that is not Ready by then is rolled back (`60s`, as Go writes durations).
pub const ROLLBACK_AFTER: &str = "coracle.dev/rollback-after";

/// After this many starts of the agent within one trial the revision has failed: it may be what ends the agent.
pub const MAX_STARTS: u32 = 3;

/// A revision on which no limit is set is good once it has been Ready, without a restart, for so long.
const STABLE: Duration = Duration::from_secs(10);
/// Of a limit, a pod has to be Ready for the last quarter, but for no more than this.
const MAX_HOLD: Duration = Duration::from_secs(15);
/// The shortest limit: container starts take tenths of a second.
const MIN_WINDOW: Duration = Duration::from_secs(1);
/// The longest.
const MAX_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a new revision of this pod has to become Ready; `None`: it is not to be rolled back.
///
/// # Errors
/// Why the annotation [`ROLLBACK_AFTER`] cannot be followed.
pub fn window(pod: &Pod) -> Result<Option<Duration>, String> {
    let Some(text) = pod.metadata.annotations.as_ref().and_then(|all| all.get(ROLLBACK_AFTER)) else { return Ok(None) };
    let window = config::duration(text).map_err(|why| format!("Invalid value: {why}"))?;
    if window < MIN_WINDOW || window > MAX_WINDOW {
        return Err(format!("Invalid value: {text:?}: must be from 1s to 24h"));
    }
    Ok(Some(window))
}

/// What is wrong with the annotation [`ROLLBACK_AFTER`] of a pod: such a revision is not accepted.
#[must_use]
pub fn refusal(pod: &Pod) -> Option<Problem> {
    let reason = window(pod).err()?;
    let field = format!("metadata.annotations[{ROLLBACK_AFTER}]");
    let of = pod.metadata.namespace.clone().zip(pod.metadata.name.clone());
    Some(Problem { line: None, column: None, field, reason, severity: Severity::Error, pod: of })
}

/// What has been seen of a revision since it was first on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    window: Option<Duration>,
    begun: Duration,
    ready_since: Option<Duration>,
    restarted: Option<Duration>,
    restarts: i64,
}

/// What follows from what has been seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing yet; look again when something changes, at this time at the latest.
    Open(Option<Duration>),
    /// It works.
    Good,
    /// It does not: why.
    Bad(String),
}

impl Trial {
    /// Begins with the first report of a revision.
    #[must_use]
    pub fn begin(window: Option<Duration>, pod: &Pod, now: Duration) -> Trial {
        Trial { window, begun: now, ready_since: None, restarted: None, restarts: restarts(pod) }
    }

    /// Takes in what is reported now.
    ///
    /// A container that crashes again and again is Ready for moments. So at the end of its time a pod has to have been
    /// Ready for the last quarter of it (15 s at most), and no container may have been started again in the last half.
    pub fn look(&mut self, pod: &Pod, now: Duration) -> Judgement {
        let count = restarts(pod);
        if count != self.restarts {
            self.restarts = count;
            self.restarted = Some(now);
            self.ready_since = None;
        }
        match is_ready(pod) {
            true => self.ready_since = self.ready_since.or(Some(now)),
            false => self.ready_since = None,
        }
        match phase(pod) {
            "Succeeded" => return Judgement::Good,
            "Failed" if has_run(pod) => return Judgement::Bad(format!("the pod failed: {}", state(pod))),
            _ => {}
        }
        let Some(window) = self.window else {
            return match self.ready_since {
                Some(since) if now >= since + STABLE => Judgement::Good,
                since => Judgement::Open(since.map(|since| since + STABLE)),
            };
        };
        let deadline = self.begun.saturating_add(window);
        if now < deadline {
            return Judgement::Open(Some(deadline));
        }
        let hold = (window / 4).min(MAX_HOLD);
        match (self.ready_since, self.restarted) {
            (None, _) => Judgement::Bad(format!("not Ready within {window:?}: {}", state(pod))),
            (Some(since), _) if since > deadline - hold => {
                let (held, wanted) = (round(deadline.saturating_sub(since)), round(hold));
                Judgement::Bad(format!("Ready only for the last {held:?} of {window:?}; {wanted:?} are needed"))
            }
            (_, Some(at)) if at > deadline - window / 2 => {
                Judgement::Bad(format!("a container was restarted within the last half of {window:?}: {}", state(pod)))
            }
            _ => Judgement::Good,
        }
    }
}

/// For people: no nanoseconds.
fn round(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) / 100 * 100)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()))
}

/// Whether the pod was on the machine: one that was refused failed, too, but not by itself.
fn has_run(pod: &Pod) -> bool {
    containers(pod).next().is_some()
}

fn restarts(pod: &Pod) -> i64 {
    containers(pod).map(|container| i64::from(container.restart_count)).sum()
}

/// What is the matter with the first container that is not as it should be.
fn state(pod: &Pod) -> String {
    let ended_well = |c: &ContainerStatus| {
        c.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|ended| ended.exit_code == 0)
    };
    let Some(container) = containers(pod).find(|c| !c.ready && !ended_well(c)) else {
        let status = pod.status.as_ref();
        let message = status.and_then(|s| s.message.clone().or_else(|| s.reason.clone()));
        return message.unwrap_or_else(|| format!("the pod is {}", phase(pod)));
    };
    let (name, state) = (&container.name, container.state.clone().unwrap_or_default());
    let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let last = last.map(|ended| format!(", exited with code {} before", ended.exit_code)).unwrap_or_default();
    match (state.waiting, state.terminated) {
        (Some(waiting), _) => format!("container {name} waits: {}{last}", waiting.reason.unwrap_or_default()),
        (_, Some(ended)) => format!("container {name} exited with code {}", ended.exit_code),
        _ => format!("container {name} runs, but is not ready{last}"),
    }
}

#[cfg(test)]
#[path = "trial_tests.rs"]
mod tests;
