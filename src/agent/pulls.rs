//! Pulls images for pods' containers and for people: what is wanted is asked for, queued, pulled once for all who want
//! it, and given up when nobody does any more.
//!
//! A container's start is allowed once for each attempt, so that `Always` decides anew each time. What a worker sees of
//! all this is an [`ImageState`]; whoever asked is woken when it changes.

mod advice;
mod pace;
mod secrets;

use super::events::Note;
use super::metrics::PullMetrics;
use super::pulled::{Records, repository};
use crate::config;
use crate::image::registry::{self, LayerState, Progress, PullSecret, Registries};
use crate::image::trust::{Refusal, Trust};
use crate::image::{BUILTIN, Image, ImageStore, Origin, reference};
use crate::pod::pull::{self, Backoff, Credentials, Decision, Local, Policy, Question, Secret};
use crate::pod::{ImageState, Present, Spec};
use crate::runtime::{Runtime, chain};
use crate::server::types::{PullEnd, PullLine};
use crate::sys::clock;
use jiff::Timestamp;
use pace::Bucket;
use secrets::PodSecret;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

/// How long a container that has an image waits for the registry to say what the name means now.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a registry that did not answer is not asked about images that are here.
const UNREACHABLE: Duration = Duration::from_secs(60);

/// Tells of a pull on its pod.
pub type Tell = Box<dyn Fn(Note) + Send + Sync>;

/// The node's pulls.
pub struct Pulls {
    images: Arc<ImageStore>,
    registries: Arc<Registries>,
    trust: Arc<Trust>,
    /// Has what pods of the cluster are made from.
    runtime: Arc<Runtime>,
    rules: config::Images,
    /// The kubelet's folder.
    root_dir: PathBuf,
    records: Records,
    metrics: PullMetrics,
    /// One for each pull that may be under way.
    turns: Arc<Semaphore>,
    bucket: tokio::sync::Mutex<Bucket>,
    state: Mutex<State>,
    /// Told when an image came in.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    asked: HashMap<Container, Asked>,
    /// By pod UID and image as written.
    backoff: HashMap<(String, String), Backoff>,
    /// By serial.
    jobs: BTreeMap<u64, Job>,
    serial: u64,
    /// Registries that did not answer, and when.
    unreachable: HashMap<String, Instant>,
}

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Container {
    uid: String,
    name: String,
}

/// What was asked for a container's next start.
struct Asked {
    attempt: u32,
    /// By name as written.
    images: BTreeMap<String, Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Pulling,
    /// It may be used for this start.
    Granted,
}

/// A pull that is queued or under way. Who has other secrets has a pull of their own: neither a refusal nor what it brings is
/// for others.
struct Job {
    /// Full name.
    image: String,
    secrets: Vec<PodSecret>,
    cancel: Arc<Cancel>,
    starts: Vec<Start>,
    watchers: Vec<Watcher>,
    /// For those who come later: the resolution, and the last word on each layer.
    progress: Vec<Progress>,
    begun: Instant,
}

#[derive(Default)]
struct Cancel {
    flag: AtomicBool,
    notify: Notify,
}

impl Cancel {
    fn cancel(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }
}

/// A container's start that waits for a pull.
struct Start {
    container: Container,
    attempt: u32,
    /// As written.
    image: String,
    policy: Policy,
    asked: Instant,
    tell: Tell,
    wake: Arc<Notify>,
}

/// A person who watches a pull.
struct Watcher {
    serial: u64,
    lines: mpsc::UnboundedSender<PullLine>,
}

/// Who asks for a container's images.
pub struct Asker<'a> {
    /// The pod.
    pub spec: &'a Spec,
    /// The container.
    pub container: &'a str,
    /// Which start they are for.
    pub attempt: u32,
    /// Wakes the pod's worker.
    pub wake: &'a Arc<Notify>,
    /// Makes what tells of the pull.
    pub tell: &'a dyn Fn() -> Tell,
}

impl Pulls {
    /// Reads what earlier agents have pulled.
    pub fn open(runtime: &Arc<Runtime>, rules: config::Images, metrics: PullMetrics, changed: Arc<Notify>) -> Pulls {
        let images = runtime.images();
        let most = rules.max_parallel_pulls.map_or(Semaphore::MAX_PERMITS, |n| n.max(1) as usize);
        Pulls {
            records: Records::open(&runtime.store_dir(), &images),
            root_dir: runtime.store_dir().parent().map(Path::to_owned).unwrap_or_default(),
            registries: Arc::clone(runtime.registries()),
            trust: Arc::clone(runtime.trust()),
            runtime: Arc::clone(runtime),
            turns: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            bucket: tokio::sync::Mutex::new(Bucket::new(rules.pull_qps, rules.pull_burst)),
            state: Mutex::default(),
            images,
            rules,
            metrics,
            changed,
        }
    }

    /// The pod's pull secrets, opened, and the names of those that cannot be.
    fn secrets(&self, spec: &Spec) -> (Vec<PodSecret>, Vec<String>) {
        secrets::of(spec.pod(), self.runtime.supply(spec.pod()).as_deref())
    }

    /// What is known of the pod's pull secrets, without what is secret.
    fn shown(&self, spec: &Spec) -> Vec<Secret> {
        self.secrets(spec).0.into_iter().map(|own| own.secret).collect()
    }

    /// Whether the containers that do not run can start from their images. Blocking.
    pub fn states(&self, spec: &Spec, present: Option<&Present>, now: Timestamp) -> BTreeMap<String, ImageState> {
        let mut states = BTreeMap::new();
        for container in spec.all_containers() {
            let attempt = match present.and_then(|present| present.latest(&container.name)) {
                Some(run) if run.is_running() => continue,
                Some(run) => run.attempt.saturating_add(1),
                None => 0,
            };
            let of = Container { uid: spec.uid().to_owned(), name: container.name.clone() };
            let each =
                pull::needs(spec, container).map(|(image, policy)| self.look(spec, &of, attempt, image, policy, now));
            states.insert(of.name.clone(), each.reduce(worse).unwrap_or(ImageState::Present));
        }
        states
    }

    fn look(
        &self,
        spec: &Spec,
        container: &Container,
        attempt: u32,
        image: &str,
        policy: Policy,
        now: Timestamp,
    ) -> ImageState {
        let shown = self.shown(spec);
        let found = self.find(image, &shown);
        let mut state = self.lock();
        let mut step = state.step(container, attempt, image);
        if step == Some(Step::Pulling) && policy != Policy::Always && found.local == Local::Usable {
            // It came in another way meanwhile: nobody has to wait for the pull.
            step = state.withdraw(container, image);
        }
        let backoff = state.backoff.get(&(container.uid.clone(), image.to_owned()));
        match step {
            // But for a policy that was changed since.
            Some(Step::Granted) if !matches!(found.local, Local::Absent | Local::Refused(_) | Local::Unverified(_)) => {
                return ImageState::Present;
            }
            Some(Step::Pulling) => {
                // As kubelet: what was wrong is told until it works.
                return match backoff.filter(|backoff| !backoff.is_over(now)) {
                    Some(backoff) => ImageState::Absent {
                        reason: "ImagePullBackOff".into(),
                        message: backoff.back_off_message(image),
                        retry_at: None,
                    },
                    None => ImageState::Pulling,
                };
            }
            _ => {}
        }
        match found.decide(image, policy, backoff, &shown, now) {
            Decision::Use => ImageState::Present,
            Decision::Pull => ImageState::Wanted,
            Decision::Wait(waiting) => ImageState::Absent {
                reason: waiting.reason.to_owned(),
                message: waiting.message,
                retry_at: waiting.until,
            },
        }
    }

    /// Has the images pulled that a container needs for a start. Blocking, but for the pull.
    pub fn ask(self: &Arc<Self>, asker: &Asker<'_>, now: Timestamp) {
        let Some(container) = asker.spec.container(asker.container) else { return };
        let (secrets, missing) = self.secrets(asker.spec);
        let mut missing = Some(missing).filter(|missing| !missing.is_empty());
        let of = Container { uid: asker.spec.uid().to_owned(), name: asker.container.to_owned() };
        for (image, policy) in pull::needs(asker.spec, container) {
            let wanted = self.look(asker.spec, &of, asker.attempt, image, policy, now) == ImageState::Wanted;
            // A name that is none was refused by the decision.
            let Some(full) = reference::normalise(image).ok().filter(|_| wanted) else { continue };
            let start = Start {
                container: of.clone(),
                attempt: asker.attempt,
                image: image.to_owned(),
                policy,
                asked: Instant::now(),
                tell: (asker.tell)(),
                wake: Arc::clone(asker.wake),
            };
            if policy == Policy::Always
                && self.find(image, &self.shown(asker.spec)).local == Local::Usable
                && self.lock().is_unreachable(host(&full))
            {
                let why = format!("{} did not answer a moment ago", host(&full));
                self.lock().fall_back(start, &why);
                continue;
            }
            if let Some(missing) = missing.take() {
                // As kubelet.
                let text = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    missing.join(", ")
                );
                (start.tell)(Note::warning("FailedToRetrieveImagePullSecret", text));
            }
            (start.tell)(Note::normal("Pulling", format!("Pulling image {image:?}")));
            self.lock().asked_of(&start).insert(image.to_owned(), Step::Pulling);
            self.join(&full, secrets.clone(), |job| job.starts.push(start));
        }
    }

    /// The container starts with what is here: tells what the kubelet tells then.
    pub fn starts(&self, spec: &Spec, container: &str, attempt: u32) -> Vec<Note> {
        let Some(of) = spec.container(container) else { return Vec::new() };
        let key = Container { uid: spec.uid().to_owned(), name: container.to_owned() };
        let state = self.lock();
        let asked = state.asked.get(&key).filter(|asked| asked.attempt == attempt);
        let here = |image: &&str| asked.is_none_or(|asked| !asked.images.contains_key(*image));
        let images = pull::needs(spec, of).map(|(image, _)| image).filter(here);
        let text = |image: &str| {
            format!("Container image {image:?} already present on machine and can be accessed by the pod")
        };
        images.map(|image| Note::normal("Pulled", text(image)).about(container)).collect()
    }

    /// The pod of this UID does not want images any more. What nobody else wants is given up.
    pub fn forget(&self, uid: &str) {
        let mut state = self.lock();
        if !state.asked.keys().any(|container| container.uid == uid) {
            return;
        }
        state.asked.retain(|container, _| container.uid != uid);
        for job in state.jobs.values_mut() {
            job.starts.retain(|start| start.container.uid != uid);
        }
        state.give_up();
    }

    /// Pulls an image for a person, whatever is here. Dropping the receiver gives it up, unless a pod wants it too.
    pub fn by_hand(self: &Arc<Self>, image: &str) -> mpsc::UnboundedReceiver<PullLine> {
        let (lines, receiver) = mpsc::unbounded_channel();
        let full = match reference::normalise(image) {
            Ok(full) => full,
            Err(error) => {
                let error = registry::Error::from(error);
                let end = self.failed(image, &error);
                // Nobody listens when the person has left already.
                let _ = lines.send(PullLine::End(end));
                return receiver;
            }
        };
        let mut serial = 0;
        let watched = lines.clone();
        let job = self.join(&full, Vec::new(), |job| {
            for progress in &job.progress {
                let _ = watched.send(PullLine::Progress(progress.clone()));
            }
            serial = job.watchers.last().map_or(0, |last| last.serial + 1);
            job.watchers.push(Watcher { serial, lines: watched });
        });
        let pulls = Arc::clone(self);
        tokio::spawn(async move {
            lines.closed().await;
            let mut state = pulls.lock();
            if let Some(job) = state.jobs.get_mut(&job) {
                job.watchers.retain(|watcher| watcher.serial != serial || !watcher.lines.is_closed());
            }
            state.give_up();
        });
        receiver
    }

    /// Pulls an image that a list in the drop-in folder names: its ID, or why there is none. Takes its turn as all others.
    ///
    /// # Errors
    /// What people are told.
    pub async fn listed(self: &Arc<Self>, image: &str) -> Result<String, String> {
        let mut lines = self.by_hand(image);
        while let Some(line) = lines.recv().await {
            match line {
                PullLine::Progress(_) => {}
                PullLine::End(PullEnd::Pulled { id, .. }) => return Ok(id),
                PullLine::End(PullEnd::Failed { message, .. }) => return Err(message),
            }
        }
        Err("the pull broke off".to_owned())
    }

    /// Images came in by another way than a pull: whoever waits for one looks again.
    pub fn images_changed(&self) {
        self.changed.notify_one();
    }

    /// Another signature policy is in force: what it refused is tried again without waiting.
    pub fn policy_changed(&self) {
        self.lock().backoff.retain(|_, backoff| backoff.reason != "SignatureValidationFailed");
        self.images_changed();
    }

    /// An image was removed: nobody has to show credentials for what comes in another way under its ID. Blocking.
    pub fn removed(&self, id: &str) {
        self.records.removed(id, &self.images);
    }

    /// Adds somebody to the pull of this image with these secrets, which begins if it is not under way. Returns its serial.
    fn join(self: &Arc<Self>, full: &str, secrets: Vec<PodSecret>, add: impl FnOnce(&mut Job)) -> u64 {
        let mut state = self.lock();
        let same = |job: &Job| job.image == full && PodSecret::are_same(&job.secrets, &secrets);
        if let Some((serial, job)) = state.jobs.iter_mut().find(|(_, job)| same(job)) {
            add(job);
            return *serial;
        }
        state.serial += 1;
        let serial = state.serial;
        let mut job = Job {
            image: full.to_owned(),
            secrets: secrets.clone(),
            cancel: Arc::default(),
            starts: Vec::new(),
            watchers: Vec::new(),
            progress: Vec::new(),
            begun: Instant::now(),
        };
        add(&mut job);
        let cancel = Arc::clone(&job.cancel);
        state.jobs.insert(serial, job);
        drop(state);
        let (pulls, full) = (Arc::clone(self), full.to_owned());
        tokio::spawn(async move {
            let result = pulls.run(&full, serial, &secrets, &cancel).await;
            let ending = Arc::clone(&pulls);
            // It looks into the store.
            let _ = tokio::task::spawn_blocking(move || ending.end(&full, serial, result)).await;
        });
        serial
    }

    async fn run(
        self: &Arc<Self>,
        full: &str,
        serial: u64,
        secrets: &[PodSecret],
        cancel: &Arc<Cancel>,
    ) -> Result<registry::Pulled, registry::Error> {
        let turn = tokio::select! {
            turn = Arc::clone(&self.turns).acquire_owned() => turn,
            () = cancel.notify.notified() => return Err(registry::Error::Cancelled),
        };
        self.bucket.lock().await.take().await;
        if cancel.flag.load(Ordering::Relaxed) {
            return Err(registry::Error::Cancelled);
        }
        if let Some(job) = self.lock().jobs.get_mut(&serial) {
            job.begun = Instant::now();
        }
        let (sender, mut done) = oneshot::channel();
        let resolved = Arc::new(AtomicBool::new(false));
        let thread = {
            let (pulls, full, secrets) = (Arc::clone(self), full.to_owned(), secrets.to_vec());
            let (cancel, resolved) = (Arc::clone(cancel), Arc::clone(&resolved));
            // Not of the blocking pool: pulls take long, and looking at pods must not wait for them.
            std::thread::Builder::new().name("coracle-pull".into()).spawn(move || {
                let result = pulls.pull(&full, serial, &secrets, &cancel, &resolved);
                drop(turn);
                // Nobody waits any more for what was given up.
                let _ = sender.send(result);
            })
        };
        let gone = |reason: String| registry::Error::Unavailable { url: host(full).to_owned(), reason };
        if let Err(error) = thread {
            return Err(gone(format!("cannot start a thread: {error}")));
        }
        let ended = |result: Result<_, oneshot::error::RecvError>| {
            result.unwrap_or_else(|_| Err(gone("the pull broke off".to_owned())))
        };
        loop {
            tokio::select! {
                result = &mut done => return ended(result),
                () = cancel.notify.notified() => return Err(registry::Error::Cancelled),
                // Again and again: the image may come in another way, those who had none may leave.
                () = tokio::time::sleep(PATIENCE) => {}
            }
            if !resolved.load(Ordering::Relaxed) && self.only_refreshes(full, serial) {
                // The containers that wait have an image: a registry that does not answer must not keep them.
                cancel.cancel();
                return Err(gone(format!("no answer within {} seconds", PATIENCE.as_secs())));
            }
        }
    }

    /// Whether all who wait could start with what is here.
    fn only_refreshes(&self, full: &str, serial: u64) -> bool {
        let here = self.images.resolve(full).is_some();
        let mut state = self.lock();
        let waits = |job: &mut Job| job.watchers.is_empty() && job.starts.iter().all(|s| s.policy == Policy::Always);
        here && state.jobs.get_mut(&serial).is_some_and(waits)
    }

    /// On a thread of its own.
    fn pull(
        &self,
        full: &str,
        serial: u64,
        secrets: &[PodSecret],
        cancel: &Cancel,
        resolved: &AtomicBool,
    ) -> Result<registry::Pulled, registry::Error> {
        self.records.begin(full, !secrets.is_empty()).map_err(crate::image::Error::from)?;
        let shown: Vec<PullSecret> = secrets
            .iter()
            .map(|own| PullSecret { name: own.secret.to_string(), content: own.content.clone() })
            .collect();
        let request = registry::Request { image: full, secrets: &shown, cancelled: &cancel.flag };
        let progress = |progress: Progress| {
            if matches!(progress, Progress::Resolved { .. }) {
                resolved.store(true, Ordering::Relaxed);
            }
            if let Some(job) = self.lock().jobs.get_mut(&serial) {
                job.tell(progress);
            }
        };
        let result = self.registries.pull(&self.images, &request, &progress);
        match &result {
            Ok(pulled) => {
                let used =
                    |own: &&PodSecret| pulled.secret.as_ref().is_some_and(|name| *name == own.secret.to_string());
                let secret = secrets.iter().find(used).map(|own| &own.secret);
                self.records.done(full, &pulled.image.id, secret);
            }
            Err(_) => self.records.failed(full),
        }
        result
    }

    fn end(&self, full: &str, serial: u64, result: Result<registry::Pulled, registry::Error>) {
        let now = clock::now();
        let job = {
            let mut state = self.lock();
            let job = state.jobs.remove(&serial);
            match &result {
                Err(registry::Error::Unavailable { .. }) => {
                    state.unreachable.insert(host(full).to_owned(), Instant::now());
                }
                // Says nothing of the registry.
                Err(registry::Error::Cancelled) => {}
                _ => {
                    state.unreachable.remove(host(full));
                }
            }
            job
        };
        let Some(job) = job else { return };
        let took = job.begun.elapsed();
        match &result {
            Ok(pulled) => self.metrics.pulled(took, pulled.image.size),
            Err(error) => self.metrics.failed(error.reason()),
        }
        for watcher in &job.watchers {
            let end = match &result {
                Ok(pulled) => PullEnd::Pulled {
                    name: full.to_owned(),
                    id: pulled.image.id.clone(),
                    digest: pulled.digest.clone(),
                    size: pulled.image.size,
                    fetched: pulled.fetched || !pulled.known,
                },
                Err(error) => self.failed(full, error),
            };
            let _ = watcher.lines.send(PullLine::End(end));
        }
        let mut woken = Vec::new();
        for start in job.starts {
            woken.push(Arc::clone(&start.wake));
            match &result {
                Ok(pulled) => {
                    let text = format!(
                        "Successfully pulled image {:?} in {} ({} including waiting). Image size: {} bytes.",
                        start.image,
                        pull::go_duration(took),
                        pull::go_duration(start.asked.elapsed()),
                        pulled.image.size
                    );
                    let mut state = self.lock();
                    state.backoff.remove(&start.of_backoff());
                    state.asked_of(&start).insert(start.image.clone(), Step::Granted);
                    drop(state);
                    (start.tell)(Note::normal("Pulled", text));
                }
                Err(error @ registry::Error::Unavailable { .. })
                    if start.policy == Policy::Always && self.is_usable(full, &job.secrets) =>
                {
                    self.lock().fall_back(start, &chain(error));
                }
                Err(error) => self.lock().fail(&start, &job.secrets, error, now),
            }
        }
        if result.is_ok() {
            // Whatever was in the way of this image is over, for others who wait, too.
            self.lock().backoff.retain(|(_, image), _| reference::normalise(image).ok().as_deref() != Some(full));
            self.images_changed();
        }
        for wake in woken {
            wake.notify_one();
        }
    }

    /// What a person reads.
    fn failed(&self, full: &str, error: &registry::Error) -> PullEnd {
        let hint = advice::advice(error, full, &self.rules, &self.root_dir);
        PullEnd::Failed { reason: error.reason().to_owned(), message: chain(error), hint }
    }

    /// What the store has under a name for a pod that shows these secrets.
    fn find(&self, image: &str, shown: &[Secret]) -> Found {
        let found = self.images.resolve(image);
        let invalid = match reference::normalise(image) {
            Err(crate::image::Error::InvalidImageName { reason, .. }) if found.is_none() => Some(reason),
            _ => None,
        };
        let Some(found) = found else { return Found { local: Local::Absent, builtin: false, invalid } };
        let full = reference::normalise(image).unwrap_or_else(|_| image.to_owned());
        let builtin = full == BUILTIN && found.origins.contains(&Origin::BuiltIn);
        let local = if builtin { Local::Usable } else { self.judge(&full, &found, shown) };
        Found { local, builtin, invalid }
    }

    fn judge(&self, full: &str, image: &Image, secrets: &[Secret]) -> Local {
        if let Err(refusal) = self.trust.admits_use(full, image) {
            let pulled = image.origins.iter().any(|origin| matches!(origin, Origin::Registry { .. }));
            // What came in under another policy may be signed, where it is from.
            return match &refusal {
                Refusal::Unsigned { .. } if pulled => Local::Unverified(chain(&refusal)),
                _ => Local::Refused(chain(&refusal)),
            };
        }
        let rules = Credentials {
            verification: self.rules.credentials_verification,
            allowlist: &self.rules.preloaded_allowlist,
        };
        let preloaded = image.origins.iter().any(|origin| matches!(origin, Origin::Archive { .. } | Origin::BuiltIn));
        let record = self.records.of(&image.id);
        match rules.allow(&repository(full), preloaded, record.as_ref(), secrets) {
            true => Local::Usable,
            false => Local::Inaccessible,
        }
    }

    fn is_usable(&self, full: &str, secrets: &[PodSecret]) -> bool {
        let secrets: Vec<Secret> = secrets.iter().map(|own| own.secret.clone()).collect();
        self.images.resolve(full).is_some_and(|image| self.judge(full, &image, &secrets) == Local::Usable)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is here under a name.
struct Found {
    local: Local,
    /// It is this program's own image: no registry has it.
    builtin: bool,
    invalid: Option<String>,
}

impl Found {
    fn decide(
        &self,
        image: &str,
        policy: Policy,
        backoff: Option<&Backoff>,
        shown: &[Secret],
        now: Timestamp,
    ) -> Decision {
        let policy = if self.builtin { Policy::IfNotPresent } else { policy };
        let invalid = self.invalid.as_deref();
        pull::decide(&Question { image, invalid, policy, local: &self.local, backoff, shown }, now)
    }
}

impl Start {
    fn of_backoff(&self) -> (String, String) {
        (self.container.uid.clone(), self.image.clone())
    }
}

impl Job {
    fn tell(&mut self, progress: Progress) {
        for watcher in &self.watchers {
            let _ = watcher.lines.send(PullLine::Progress(progress.clone()));
        }
        let same = |known: &Progress| match (known, &progress) {
            (Progress::Layer { digest: a, .. }, Progress::Layer { digest: b, .. }) => a == b,
            (Progress::Resolved { .. }, Progress::Resolved { .. }) => true,
            _ => false,
        };
        match self.progress.iter_mut().find(|known| same(known)) {
            Some(known) => *known = progress,
            None if matches!(progress, Progress::Retry { .. }) => {}
            None => self.progress.push(progress),
        }
    }
}

impl Job {
    /// Whether all layers are here.
    fn has_all(&self) -> bool {
        let missing = |progress: &Progress| {
            matches!(progress, Progress::Layer { state: LayerState::Waiting | LayerState::Downloading, .. })
        };
        let resolved = self.progress.iter().any(|progress| matches!(progress, Progress::Resolved { .. }));
        resolved && !self.progress.iter().any(missing)
    }
}

impl State {
    fn asked_of(&mut self, start: &Start) -> &mut BTreeMap<String, Step> {
        let new = || Asked { attempt: start.attempt, images: BTreeMap::new() };
        let asked = self.asked.entry(start.container.clone()).or_insert_with(new);
        if asked.attempt != start.attempt {
            *asked = new();
        }
        &mut asked.images
    }

    /// What became of an image that was asked for.
    fn step(&self, container: &Container, attempt: u32, image: &str) -> Option<Step> {
        let asked = self.asked.get(container).filter(|asked| asked.attempt == attempt);
        asked.and_then(|asked| asked.images.get(image)).copied()
    }

    /// A container that is being pulled for does not need that any more; what became of it then. A pull that has fetched
    /// all it needs ends by itself in a moment, and tells of its success.
    fn withdraw(&mut self, container: &Container, image: &str) -> Option<Step> {
        let waits = |start: &Start| start.container == *container && start.image == image;
        let Some(job) = self.jobs.values_mut().find(|job| job.starts.iter().any(waits) && !job.has_all()) else {
            return Some(Step::Pulling);
        };
        job.starts.retain(|start| !waits(start));
        if let Some(asked) = self.asked.get_mut(container) {
            asked.images.remove(image);
        }
        self.give_up();
        None
    }

    /// Ends the pulls that nobody wants.
    fn give_up(&mut self) {
        self.jobs.retain(|_, job| {
            let wanted = !job.starts.is_empty() || !job.watchers.is_empty();
            if !wanted {
                tracing::debug!(image = job.image, "nobody wants this image any more; its pull ends");
                job.cancel.cancel();
            }
            wanted
        });
    }

    fn is_unreachable(&mut self, host: &str) -> bool {
        self.unreachable.retain(|_, since| since.elapsed() < UNREACHABLE);
        self.unreachable.contains_key(host)
    }

    /// The image that is here is used, though it may be old: a machine that starts without its network must work.
    fn fall_back(&mut self, start: Start, why: &str) {
        self.asked_of(&start).insert(start.image.clone(), Step::Granted);
        self.backoff.remove(&start.of_backoff());
        let text =
            format!("The registry of image {:?} is not available, what is on this machine is used: {why}", start.image);
        (start.tell)(Note::warning("RegistryUnavailable", text));
    }

    fn fail(&mut self, start: &Start, secrets: &[PodSecret], error: &registry::Error, now: Timestamp) {
        let (image, why) = (&start.image, chain(error));
        let message = match error.reason() {
            "RegistryUnavailable" => {
                format!("image pull failed for {image} because the registry is unavailable: {why}")
            }
            "SignatureValidationFailed" => {
                format!("image pull failed for {image} because the signature validation failed: {why}")
            }
            _ => why.clone(),
        };
        self.backoff.retain(|_, backoff| !backoff.is_over(now));
        let key = start.of_backoff();
        let asked = self.asked_of(start);
        asked.remove(image);
        // Two containers of a pod that waited for one pull have failed once.
        let told = self.backoff.get(&key).is_some_and(|known| known.failed == now);
        if !told {
            let shown = secrets.iter().map(|own| own.secret.clone()).collect();
            let next = Backoff::after(self.backoff.get(&key), error.reason(), message, shown, now);
            self.backoff.insert(key, next);
        }
        (start.tell)(Note::warning("Failed", format!("Failed to pull image {image:?}: {why}")));
    }
}

/// The host of a full name.
fn host(full: &str) -> &str {
    full.split_once('/').map_or(full, |(host, _)| host)
}

/// Of two images of a container, the one that says more of what is in its way.
fn worse(a: ImageState, b: ImageState) -> ImageState {
    let rank = |state: &ImageState| match state {
        ImageState::Wanted => 3,
        ImageState::Absent { .. } => 2,
        ImageState::Pulling => 1,
        ImageState::Present => 0,
    };
    if rank(&b) > rank(&a) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_has_to_know_wins() {
        let absent = || ImageState::Absent { reason: "r".into(), message: "m".into(), retry_at: None };
        assert_eq!(worse(ImageState::Present, ImageState::Pulling), ImageState::Pulling);
        assert_eq!(worse(absent(), ImageState::Pulling), absent());
        assert_eq!(worse(absent(), ImageState::Wanted), ImageState::Wanted);
    }
}
