//! Probes as arithmetic: which one is due, and what its results mean for a container. One [`Checks`] per run.

use super::{Health, StopCause, Unhealthy};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, Probe};
use std::fmt;
use std::time::Duration;

/// Which probe of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `startupProbe`: until it passes, the others wait.
    Startup,
    /// `readinessProbe`
    Readiness,
    /// `livenessProbe`
    Liveness,
}

impl Kind {
    /// All of them, the one that gates the others first.
    pub const ALL: [Kind; 3] = [Kind::Startup, Kind::Readiness, Kind::Liveness];

    /// The probe of this kind that a container has.
    #[must_use]
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// As the kubelet's events begin: `Liveness`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        })
    }
}

/// How one probing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Success,
    /// It failed.
    Failure,
    /// It could not be made, which says nothing of the container.
    Discard,
}

/// What counts for the outside: changes only once enough results in a row agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A startup probe has not decided yet.
    Unknown,
    /// Passed.
    Success,
    /// Failed.
    Failure,
}

/// Results of one probe of one run against its thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct Counter {
    kind: Kind,
    initial_delay: Duration,
    period: Duration,
    success_threshold: u32,
    failure_threshold: u32,
    verdict: Verdict,
    /// The last result, and how many equal ones there were in a row.
    streak: (Option<Outcome>, u32),
    held: bool,
}

impl Counter {
    /// Nothing probed yet; as kubelet a container begins not ready and alive. What the manifest leaves open, or gives as
    /// zero, has the API's defaults.
    #[must_use]
    pub fn new(probe: &Probe, kind: Kind) -> Counter {
        let number = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|&value| value > 0).unwrap_or(default)
        };
        Counter {
            kind,
            initial_delay: Duration::from_secs(number(probe.initial_delay_seconds, 0).into()),
            period: Duration::from_secs(number(probe.period_seconds, 10).into()),
            success_threshold: number(probe.success_threshold, 1),
            failure_threshold: number(probe.failure_threshold, 3),
            verdict: match kind {
                Kind::Startup => Verdict::Unknown,
                Kind::Readiness => Verdict::Failure,
                Kind::Liveness => Verdict::Success,
            },
            streak: (None, 0),
            held: false,
        }
    }

    /// As an earlier agent left it, its unfinished streak forgotten.
    fn resumed(mut self, verdict: Verdict) -> Counter {
        self.verdict = verdict;
        self.held = self.decides(verdict);
        self
    }

    /// What counts now.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Between two probings.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.period
    }

    /// How long to wait for the next probing of a container that runs since `age`, when the last one was due `last` ago;
    /// `None` when there is none to come. The initial delay is that of the first probing: a clock that was set can make it
    /// shorter, but never longer than the manifest says.
    #[must_use]
    pub fn next_due(&self, age: SignedDuration, last: Option<Duration>) -> Option<Duration> {
        if self.held {
            return None;
        }
        let age = Duration::try_from(age).unwrap_or(Duration::ZERO);
        Some(match last {
            None => self.initial_delay.saturating_sub(age),
            Some(last) => self.period.saturating_sub(last),
        })
    }

    /// Counts a result; returns the verdict when it was reached (again) by it.
    pub fn record(&mut self, result: Outcome) -> Option<Verdict> {
        let (threshold, verdict) = match result {
            Outcome::Discard => return None,
            Outcome::Success => (self.success_threshold, Verdict::Success),
            Outcome::Failure => (self.failure_threshold, Verdict::Failure),
        };
        if self.held {
            return None;
        }
        self.streak = match self.streak {
            (Some(last), count) if last == result => (Some(result), count.saturating_add(1)),
            _ => (Some(result), 1),
        };
        if self.streak.1 < threshold {
            return None;
        }
        self.verdict = verdict;
        self.held = self.decides(verdict);
        Some(verdict)
    }

    /// Whether no later result of this run can matter: it will be restarted, or it has started.
    fn decides(&self, verdict: Verdict) -> bool {
        match self.kind {
            Kind::Startup => verdict != Verdict::Unknown,
            Kind::Liveness => verdict == Verdict::Failure,
            Kind::Readiness => false,
        }
    }
}

/// All probes of one run of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct Checks {
    startup: Option<Counter>,
    readiness: Option<Counter>,
    liveness: Option<Counter>,
    startup_grace: Option<i64>,
    liveness_grace: Option<i64>,
}

impl Checks {
    /// Of a run; `last` is what an earlier agent knew of it. A container that had started stays started, and readiness
    /// keeps its last value until a probe says otherwise: an upgrade of the agent takes no pod out of service.
    #[must_use]
    pub fn new(container: &Container, last: Option<&Health>) -> Checks {
        let counter = |kind: Kind, known: fn(&Health) -> Verdict| {
            let counter = Counter::new(kind.of(container)?, kind);
            Some(match last {
                Some(last) => counter.resumed(known(last)),
                None => counter,
            })
        };
        let grace = |probe: &Option<Probe>| probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
        Checks {
            startup: counter(Kind::Startup, |last| match last {
                Health { started: true, .. } => Verdict::Success,
                Health { unhealthy: Some(Unhealthy { probe: StopCause::Startup, .. }), .. } => Verdict::Failure,
                _ => Verdict::Unknown,
            }),
            readiness: counter(Kind::Readiness, |last| if last.ready { Verdict::Success } else { Verdict::Failure }),
            liveness: counter(Kind::Liveness, |last| match last.unhealthy {
                Some(Unhealthy { probe: StopCause::Liveness, .. }) => Verdict::Failure,
                _ => Verdict::Success,
            }),
            startup_grace: grace(&container.startup_probe),
            liveness_grace: grace(&container.liveness_probe),
        }
    }

    /// The counter of a kind.
    #[must_use]
    pub fn counter(&self, kind: Kind) -> Option<&Counter> {
        match kind {
            Kind::Startup => self.startup.as_ref(),
            Kind::Readiness => self.readiness.as_ref(),
            Kind::Liveness => self.liveness.as_ref(),
        }
    }

    /// Whether probes of this kind run now: until the container has started only the startup probe does.
    #[must_use]
    pub fn is_on(&self, kind: Kind) -> bool {
        self.counter(kind).is_some_and(|counter| !counter.held) && (kind == Kind::Startup || self.started())
    }

    /// Counts a result; true when [`Checks::health`] changed. A result of a probe that is not on (any more) is ignored.
    pub fn record(&mut self, kind: Kind, result: Outcome) -> bool {
        if !self.is_on(kind) {
            return false;
        }
        let before = self.health();
        let counter = match kind {
            Kind::Startup => &mut self.startup,
            Kind::Readiness => &mut self.readiness,
            Kind::Liveness => &mut self.liveness,
        };
        if let Some(counter) = counter {
            counter.record(result);
        }
        self.health() != before
    }

    /// What the results say of the container.
    #[must_use]
    pub fn health(&self) -> Health {
        let is = |counter: &Option<Counter>, verdict| counter.as_ref().is_some_and(|c| c.verdict == verdict);
        let started = self.started();
        let ready = started && self.readiness.as_ref().is_none_or(|c| c.verdict == Verdict::Success);
        let unhealthy = if is(&self.startup, Verdict::Failure) {
            Some((StopCause::Startup, self.startup_grace))
        } else if is(&self.liveness, Verdict::Failure) {
            Some((StopCause::Liveness, self.liveness_grace))
        } else {
            None
        };
        let unhealthy = unhealthy.map(|(probe, grace)| Unhealthy {
            probe,
            grace_seconds: grace.and_then(|grace| u64::try_from(grace).ok()),
        });
        Health { started, ready, unhealthy }
    }

    fn started(&self) -> bool {
        self.startup.as_ref().is_none_or(|counter| counter.verdict == Verdict::Success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn probe(success: i32, failure: i32) -> Probe {
        Probe { success_threshold: Some(success), failure_threshold: Some(failure), ..Probe::default() }
    }

    fn container(startup: bool, readiness: bool, liveness: bool) -> Container {
        Container {
            startup_probe: startup.then(|| probe(1, 2)),
            readiness_probe: readiness.then(|| probe(2, 2)),
            liveness_probe: liveness.then(|| Probe { termination_grace_period_seconds: Some(7), ..probe(1, 2) }),
            ..Container::default()
        }
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![Just(Outcome::Success), Just(Outcome::Failure), Just(Outcome::Discard)]
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop::sample::select(&Kind::ALL[..])
    }

    /// The definition, word by word, from the whole history.
    fn naive(kind: Kind, success: usize, failure: usize, history: &[Outcome]) -> (Verdict, bool) {
        let real: Vec<Outcome> = history.iter().copied().filter(|r| *r != Outcome::Discard).collect();
        let mut verdict = match kind {
            Kind::Startup => Verdict::Unknown,
            Kind::Readiness => Verdict::Failure,
            Kind::Liveness => Verdict::Success,
        };
        for end in 1..=real.len() {
            for (result, threshold, says) in
                [(Outcome::Success, success, Verdict::Success), (Outcome::Failure, failure, Verdict::Failure)]
            {
                if end >= threshold && real[end - threshold..end].iter().all(|r| *r == result) {
                    verdict = says;
                    if kind == Kind::Startup || (kind == Kind::Liveness && says == Verdict::Failure) {
                        return (verdict, true);
                    }
                }
            }
        }
        (verdict, false)
    }

    proptest! {
        #[test]
        fn a_counter_is_what_its_history_says(
            kind in kind(), success in 1..4_i32, failure in 1..4_i32, history in prop::collection::vec(outcome(), 0..20),
        ) {
            let mut counter = Counter::new(&probe(success, failure), kind);
            for (index, result) in history.iter().enumerate() {
                let before = counter.verdict();
                let reached = counter.record(*result);
                let (verdict, held) = naive(kind, success as usize, failure as usize, &history[..=index]);
                prop_assert_eq!(counter.verdict(), verdict);
                prop_assert_eq!(counter.next_due(SignedDuration::ZERO, None).is_none(), held);
                prop_assert!(reached.is_none_or(|reached| reached == verdict));
                prop_assert!(reached.is_some() || before == verdict);
            }
        }

        #[test]
        fn a_wait_is_never_longer_than_delay_and_period(
            delay in any::<i32>(), period in any::<i32>(), age in any::<i64>(), last in prop::option::of(any::<u64>()),
        ) {
            let probe = Probe {
                initial_delay_seconds: Some(delay),
                period_seconds: Some(period),
                ..Probe::default()
            };
            let counter = Counter::new(&probe, Kind::Readiness);
            let wait = counter.next_due(SignedDuration::from_millis(age), last.map(Duration::from_nanos)).unwrap();
            let longest = (delay.max(0) as u64).max(if period > 0 { period as u64 } else { 10 });
            prop_assert!(wait <= Duration::from_secs(longest));
            if last.is_none() && age >= i64::from(delay) * 1000 {
                prop_assert_eq!(wait, Duration::ZERO);
            }
        }

        #[test]
        fn whatever_comes_the_gates_hold(
            startup: bool, readiness: bool, liveness: bool, results in prop::collection::vec((kind(), outcome()), 0..40),
        ) {
            let container = container(startup, readiness, liveness);
            let mut checks = Checks::new(&container, None);
            prop_assert_eq!(checks.health(), Health::initial(&container));
            let mut before = checks.health();
            for (kind, result) in results {
                let changed = checks.record(kind, result);
                let health = checks.health();
                prop_assert_eq!(changed, health != before);
                prop_assert!(health.started || !health.ready, "ready before started");
                prop_assert!(health.started || !before.started, "a start taken back");
                prop_assert!(before.unhealthy.is_none() || before.unhealthy == health.unhealthy, "a sentence taken back");
                prop_assert_eq!(checks.is_on(Kind::Startup), startup && !health.started && health.unhealthy.is_none());
                prop_assert_eq!(checks.is_on(Kind::Readiness), readiness && health.started);
                prop_assert_eq!(checks.is_on(Kind::Liveness), liveness && health.started && health.unhealthy.is_none());
                // The next agent goes on with the same.
                prop_assert_eq!(Checks::new(&container, Some(&health)).health(), health.clone());
                before = health;
            }
        }
    }

    #[test]
    fn initial_delay_counts_from_the_start_of_the_container() {
        let probe = Probe { initial_delay_seconds: Some(5), period_seconds: Some(2), ..Probe::default() };
        let counter = Counter::new(&probe, Kind::Liveness);
        let due = |age_ms, last: Option<u64>| {
            counter.next_due(SignedDuration::from_millis(age_ms), last.map(Duration::from_millis)).unwrap().as_millis()
        };
        assert_eq!(due(0, None), 5000);
        assert_eq!(due(4999, None), 1);
        assert_eq!(due(5000, None), 0);
        assert_eq!(due(6500, Some(1500)), 500);
        assert_eq!(due(60_000, Some(9_000)), 0);
        assert_eq!(due(-1_000_000, None), 5000, "a clock set back does not stop probes");
        assert_eq!(due(-1_000_000, Some(500)), 1500);
    }

    #[test]
    fn the_grace_of_the_probe_comes_along() {
        let mut checks = Checks::new(&container(false, false, true), None);
        assert!(!checks.record(Kind::Liveness, Outcome::Failure));
        assert!(checks.record(Kind::Liveness, Outcome::Failure));
        let unhealthy = Unhealthy { probe: StopCause::Liveness, grace_seconds: Some(7) };
        assert_eq!(checks.health().unhealthy, Some(unhealthy));
        assert!(!checks.record(Kind::Liveness, Outcome::Success), "on hold until the next run");
    }
}
