//! The probes of one pod: a task with a timer for each, as long as its container runs.
//!
//! What results mean is decided in [`crate::pod::probe`]; the worker hears of them only when a container's health changed.

use super::events::Note;
use super::probed::{Book, Page};
use crate::pod::Health;
use crate::pod::probe::{Checks, Kind, Outcome};
use crate::probe::{Answer, Target, check};
use crate::shim;
use crate::sys::clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::Instrument as _;

/// Takes a pod's events.
pub type Tell = Arc<dyn Fn(Note) + Send + Sync>;

/// A container that runs.
pub struct Run<'a> {
    /// Its pod.
    pub pod: &'a Pod,
    /// As the manifest has it.
    pub container: &'a Container,
    /// Container ID.
    pub id: &'a str,
    /// When it was started.
    pub started: Timestamp,
    /// Addresses of the pod; none under hostNetwork.
    pub ips: &'a [IpAddr],
    /// Where to exec.
    pub exec: shim::exec::Target,
    /// It is being stopped: only readiness is still asked for (as kubelet).
    pub stopping: bool,
    /// What an earlier agent knew of it; looked at once, when the run is new to this agent.
    pub last: Option<&'a Health>,
}

/// Whether a container has anything to probe.
#[must_use]
pub fn has_probes(container: &Container) -> bool {
    Kind::ALL.iter().any(|kind| kind.of(container).is_some())
}

/// The probes of a pod. Dropping it ends them.
pub struct Prober {
    wake: Arc<Notify>,
    book: Arc<Book>,
    runs: BTreeMap<String, Watched>,
}

impl Prober {
    /// No probes; `wake` is notified when a container's health changed. What comes out is counted in the book.
    #[must_use]
    pub fn new(wake: Arc<Notify>, book: Arc<Book>) -> Prober {
        Prober { wake, book, runs: BTreeMap::new() }
    }

    /// Takes note of all containers that run now: begins and ends probes, and asks at once whether a container that is not
    /// ready has become so (as kubelet). Events go to the `tell` that a run was first seen with. Must be called on a tokio
    /// runtime.
    pub fn sync<'a>(&mut self, tell: &Tell, runs: impl IntoIterator<Item = Run<'a>>) {
        let mut gone = std::mem::take(&mut self.runs);
        for run in runs {
            if !has_probes(run.container) {
                continue;
            }
            let watched = match gone.remove(run.id) {
                Some(watched) => {
                    let state = watched.0.state();
                    let waits = state.checks.is_on(Kind::Readiness) && !state.checks.health().ready;
                    drop(state);
                    if waits {
                        watched.0.kick.notify_one();
                    }
                    watched
                }
                None => {
                    let page = self.book.open(run.id, &run.container.name, run.pod);
                    Watched(Arc::new(Subject::new(&run, Arc::clone(&self.wake), Arc::clone(tell), page)))
                }
            };
            if run.stopping {
                watched.0.stop();
            } else {
                watched.0.begin();
            }
            self.runs.insert(run.id.to_owned(), watched);
        }
    }

    /// What the probes say, by container ID; containers without probes are not listed.
    #[must_use]
    pub fn health(&self) -> BTreeMap<String, Health> {
        self.runs.iter().map(|(id, watched)| (id.clone(), watched.0.state().checks.health())).collect()
    }
}

/// Its probes end with it.
struct Watched(Arc<Subject>);

impl Drop for Watched {
    fn drop(&mut self) {
        for task in self.0.state().tasks.iter().flatten() {
            task.abort();
        }
    }
}

/// One run that is probed.
struct Subject {
    target: Target,
    started: Timestamp,
    /// Where in its period a probe begins after a restart of the agent, of 2³²; `None` in the agent that started the run.
    phase: Option<u32>,
    state: Mutex<State>,
    /// Ask for readiness now.
    kick: Notify,
    wake: Arc<Notify>,
    tell: Tell,
    page: Page,
}

struct State {
    checks: Checks,
    /// In the order of [`Kind::ALL`].
    tasks: [Option<AbortHandle>; 3],
    stopping: bool,
}

/// A container that is not ready is asked out of turn at most this often.
const KICK: Duration = Duration::from_secs(1);

impl Subject {
    fn new(run: &Run<'_>, wake: Arc<Notify>, tell: Tell, page: Page) -> Subject {
        // IDs are digests: as good as dice, so the probes of many pods are spread evenly.
        let dice = run.id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
        Subject {
            target: Target {
                container: Arc::new(run.container.clone()),
                ips: run.ips.to_vec(),
                exec: run.exec.clone(),
            },
            started: run.started,
            phase: run.last.map(|_| dice),
            state: Mutex::new(State {
                checks: Checks::new(run.container, run.last),
                tasks: [None, None, None],
                stopping: false,
            }),
            kick: Notify::new(),
            wake,
            tell,
            page,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the probes that are on and have no task yet.
    fn begin(self: &Arc<Self>) {
        let mut state = self.state();
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            let may = kind == Kind::Readiness || !state.stopping;
            if may && state.tasks[index].is_none() && state.checks.is_on(kind) {
                let task = tokio::spawn(Arc::clone(self).watch(kind).in_current_span());
                state.tasks[index] = Some(task.abort_handle());
            }
        }
    }

    /// Ends the probes that could only bring about what is under way.
    fn stop(&self) {
        let mut state = self.state();
        state.stopping = true;
        for (kind, task) in Kind::ALL.iter().zip(&state.tasks) {
            if let Some(task) = task
                && *kind != Kind::Readiness
            {
                task.abort();
            }
        }
    }

    /// Probes until there is nothing more to find out.
    async fn watch(self: Arc<Self>, kind: Kind) {
        let Some(probe) = kind.of(&self.target.container) else { return };
        let mut told = Told::new();
        let mut earliest = Instant::now();
        if let Some(phase) = self.phase
            && let Some(period) = self.state().checks.counter(kind).map(|counter| counter.period())
        {
            // Each kind at a place of its own.
            let phase = phase.wrapping_add((kind as u32).wrapping_mul(0x5555_5555));
            earliest += period.mul_f64(f64::from(phase) / f64::from(u32::MAX));
        }
        let mut last: Option<Instant> = None;
        let mut asked: Option<Instant> = None;
        while let Some(wait) = self.wait(kind, last) {
            let due = (Instant::now() + wait).max(earliest);
            let due = if last.is_some() { together(due) } else { due };
            let kicked = tokio::select! {
                () = tokio::time::sleep_until(due) => false,
                () = self.kick.notified(), if kind == Kind::Readiness => true,
            };
            if kicked {
                let soon = asked.is_some_and(|asked| asked.elapsed() < KICK);
                if soon || self.wait(kind, None) != Some(Duration::ZERO) {
                    continue;
                }
            } else {
                last = Some(due);
            }
            asked = Some(Instant::now());
            // In a box, for the time that it takes: an idle probe is a timer and little else.
            let answer = Box::pin(check(probe, &self.target)).await;
            self.record(kind, answer, &mut told);
        }
        // The startup probe is over: those that it held back are on.
        self.begin();
    }

    /// How long until the next probing that is due; `None` when there is none to come.
    fn wait(&self, kind: Kind, last: Option<Instant>) -> Option<Duration> {
        let state = self.state();
        if !state.checks.is_on(kind) {
            return None;
        }
        let age = clock::now().duration_since(self.started);
        state.checks.counter(kind)?.next_due(age, last.map(|last| last.elapsed()))
    }

    fn record(&self, kind: Kind, answer: Answer, told: &mut Told) {
        let (outcome, note) = match answer {
            Answer::Success => (Outcome::Success, None),
            Answer::Warning(text) => {
                (Outcome::Success, Some(Note::warning("ProbeWarning", format!("{kind} probe warning: {text}"))))
            }
            Answer::Failure(text) => {
                (Outcome::Failure, Some(Note::warning("Unhealthy", format!("{kind} probe failed: {text}"))))
            }
            Answer::Error(text) => {
                let text = format!("{kind} probe errored and resulted in unknown state: {text}");
                (Outcome::Discard, Some(Note::warning("Unhealthy", text)))
            }
        };
        if let Some(note) = note
            && told.may()
        {
            (self.tell)(note.about(&self.target.container.name));
        }
        self.page.count(kind, outcome);
        if self.state().checks.record(kind, outcome) {
            self.wake.notify_one();
        }
    }
}

/// Probes of many pods are woken together, ten times a second: each wake-up of the event loop costs as much as a probe. The
/// first probe of a run comes when it is due, the second up to 100 ms late, all others in their period.
fn together(due: Instant) -> Instant {
    const SLOT_MS: u128 = 100;
    /// A slot that was just reached must not become the one after it.
    const EARLY_MS: u128 = 10;
    static BASE: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let base = *BASE.get_or_init(Instant::now);
    let slots = due.duration_since(base).as_millis().saturating_sub(EARLY_MS).div_ceil(SLOT_MS);
    u64::try_from(slots * SLOT_MS).map_or(due, |ms| base + Duration::from_millis(ms))
}

/// Keeps a probe that fails for days from filling the log: as the kubelet's events, a burst of 25, then one in five
/// minutes.
struct Told {
    left: u32,
    since: Instant,
}

impl Told {
    const BURST: u32 = 25;
    const PAUSE: Duration = Duration::from_secs(300);

    fn new() -> Told {
        Told { left: Told::BURST, since: Instant::now() }
    }

    fn may(&mut self) -> bool {
        let earned = self.since.elapsed().as_secs() / Told::PAUSE.as_secs();
        if earned > 0 {
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(Told::BURST)).min(Told::BURST);
            self.since = Instant::now();
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Probe, TCPSocketAction};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use tokio::net::TcpListener;

    struct Scene {
        prober: Prober,
        wake: Arc<Notify>,
        notes: Arc<Mutex<Vec<String>>>,
        tell: Tell,
    }

    impl Scene {
        fn new() -> Scene {
            let (wake, notes) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
            let list = Arc::clone(&notes);
            let tell: Tell = Arc::new(move |note: Note| list.lock().unwrap().push(note.message));
            Scene { prober: Prober::new(Arc::clone(&wake), Arc::default()), wake, notes, tell }
        }

        fn sync(&mut self, container: &Container, stopping: bool, last: Option<&Health>) {
            let exec = shim::exec::Target { state_root: "/".into(), id: "x".into(), bundle: "/".into() };
            let pod = &Pod::default();
            let run = Run { pod, container, id: "40000000ffff", started: clock::now(), ips: &[], exec, stopping, last };
            self.prober.sync(&self.tell, [run]);
        }

        fn health(&self) -> Health {
            self.prober.health()["40000000ffff"].clone()
        }

        async fn changed(&self) -> Health {
            tokio::time::timeout(Duration::from_secs(10), self.wake.notified()).await.expect("a change in time");
            self.health()
        }
    }

    fn tcp(port: u16) -> Probe {
        Probe {
            tcp_socket: Some(TCPSocketAction { host: None, port: IntOrString::Int(port.into()) }),
            period_seconds: Some(1),
            failure_threshold: Some(1),
            ..Probe::default()
        }
    }

    #[test]
    fn probes_share_their_wake_ups_and_keep_their_period() {
        let first = together(Instant::now() + Duration::from_millis(1030));
        let mut due = first;
        for _ in 0..50 {
            // A little late each time, as measuring is.
            due = together(due + Duration::from_secs(1) + Duration::from_micros(700));
        }
        assert_eq!(due - first, Duration::from_secs(50));
        let other = together(Instant::now() + Duration::from_millis(3077));
        assert_eq!(other.duration_since(first).as_millis() % 100, 0);
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time") })
    }

    /// A port where nobody listens, and whose it is as long as the test needs it.
    async fn closed() -> (tokio::net::TcpSocket, u16) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    #[test]
    fn readiness_and_liveness_wait_for_startup_and_then_begin_at_once() {
        block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let (socket, gate) = closed().await;
            let container = Container {
                name: "c".into(),
                startup_probe: Some(Probe { failure_threshold: Some(30), ..tcp(gate) }),
                readiness_probe: Some(tcp(port)),
                liveness_probe: Some(tcp(port)),
                ..Container::default()
            };
            let mut scene = Scene::new();
            scene.sync(&container, false, None);
            assert_eq!(scene.health(), Health::initial(&container));
            assert!(tokio::time::timeout(Duration::from_millis(500), listener.accept()).await.is_err(), "gated");
            assert!(scene.notes.lock().unwrap()[0].starts_with("Startup probe failed: dial tcp 127.0.0.1:"));
            let gate = socket.listen(8).unwrap();
            let started = scene.changed().await;
            assert!(started.started, "{started:?}");
            let at = Instant::now();
            listener.accept().await.unwrap();
            listener.accept().await.unwrap();
            assert!(at.elapsed() < Duration::from_millis(500), "both begin without waiting for the worker");
            if !scene.health().ready {
                assert!(scene.changed().await.ready);
            }
            // The startup probe is over.
            gate.accept().await.unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(1500), gate.accept()).await.is_err());
            scene.prober.sync(&scene.tell.clone(), []);
            while tokio::time::timeout(Duration::from_millis(100), listener.accept()).await.is_ok() {}
            let late = tokio::time::timeout(Duration::from_millis(1500), listener.accept()).await;
            assert!(late.is_err(), "probes of a container that is gone");
            assert!(scene.prober.health().is_empty());
        });
    }

    #[test]
    fn a_stopping_container_is_asked_for_readiness_only() {
        block_on(async {
            let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let ready = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = |l: &TcpListener| l.local_addr().unwrap().port();
            let container = Container {
                readiness_probe: Some(tcp(port(&ready))),
                liveness_probe: Some(tcp(port(&live))),
                ..Container::default()
            };
            let mut scene = Scene::new();
            scene.sync(&container, false, None);
            assert!(scene.changed().await.ready);
            live.accept().await.unwrap();
            scene.sync(&container, true, None);
            ready.accept().await.unwrap();
            ready.accept().await.unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(1200), live.accept()).await.is_err());
            drop(ready);
            let health = scene.changed().await;
            assert!(!health.ready && health.unhealthy.is_none(), "{health:?}");
        });
    }

    #[test]
    fn after_a_restart_of_the_agent_health_lasts_and_the_first_probe_has_its_place_in_the_period() {
        block_on(async {
            let (_socket, port) = closed().await;
            let container = Container {
                startup_probe: Some(tcp(port)),
                readiness_probe: Some(Probe { period_seconds: Some(2), failure_threshold: Some(2), ..tcp(port) }),
                ..Container::default()
            };
            let last = Health { started: true, ready: true, unhealthy: None };
            let mut scene = Scene::new();
            let at = Instant::now();
            scene.sync(&container, false, Some(&last));
            assert_eq!(scene.health(), last);
            let health = scene.changed().await;
            assert_eq!(health, Health { started: true, ready: false, unhealthy: None });
            let took = at.elapsed();
            assert!(took > Duration::from_millis(2100) && took < Duration::from_millis(3900), "{took:?}");
        });
    }

    #[test]
    fn a_container_that_is_not_ready_is_asked_out_of_turn() {
        block_on(async {
            let (socket, port) = closed().await;
            let container = Container {
                readiness_probe: Some(Probe { period_seconds: Some(600), ..tcp(port) }),
                ..Container::default()
            };
            let mut scene = Scene::new();
            scene.sync(&container, false, None);
            tokio::time::sleep(Duration::from_millis(200)).await;
            let _listener = socket.listen(8).unwrap();
            scene.sync(&container, false, None);
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(!scene.health().ready, "not that often");
            tokio::time::sleep(KICK).await;
            scene.sync(&container, false, None);
            assert!(scene.changed().await.ready);
        });
    }

    #[test]
    fn a_probe_that_fails_for_ever_does_not_fill_the_log() {
        block_on(async {
            let mut told = Told::new();
            assert_eq!((0..1000).filter(|_| told.may()).count(), 25);
        });
    }
}
