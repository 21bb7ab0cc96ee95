//! Manifests from a URL: asked for now and then, and remembered whatever becomes of it.
//!
//! ```text
//! pace ─▶ fetch · local ─▶ judge ─▶ signature ─▶ contents ─▶ Said ─▶ Snapshot ─▶ merge
//!                            │                                ▲
//!                            └▶ Failure: told once            └ record: last known good, ETag
//! ```
//!
//! The URL's pods change only by a whole answer with status 200 that is a valid document: a Pod, a list, several
//! documents, or an archive of them. Whatever else comes (another status, nothing, less than was announced, a page of HTML,
//! broken YAML, no answer at all) leaves them as they are, also over a restart without network. **To remove the pods of
//! a URL, serve a valid list without them**: `kind: PodList` with `items: []` removes all.

mod answer;
mod content;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod local;
mod pace;
mod record;
mod said;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use answer::{Failure, Verdict, judge};
use local::{Local, Look};
use pace::Pace;
use record::{Place, Version, digest};
use said::Said;

use super::Snapshot;
use super::known::Good;
use super::permissions::Permissions;
use super::signature::{Revision, SignatureError, Text, Verifier};
use crate::config::{ManifestUrl, Sources};
use crate::http::{self, ClientPair, Conditions, Connections, Environment, Limits, TlsSettings};
use crate::manifest::Loaded;
use crate::minisign::{EXTENSION, LARGEST_SIGNATURE};

/// Whoever asks for it, a server is not asked sooner than this after the last time: for each of a thousand `coracle apply`
/// somebody asks.
const ASKED: Duration = Duration::from_secs(1);

/// Asks a running source to look again.
#[derive(Debug, Clone)]
pub struct Rescan(Sender<Wake>);

impl Rescan {
    /// Look now, or a second after the last time; returns at once.
    pub fn now(&self) {
        // It only fails when the source is gone, and then there is nothing to look at.
        let _ = self.0.send(Wake::Now);
    }
}

/// Why to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    /// The file's writer has closed it.
    Ended,
    /// Somebody asks.
    Now,
}

/// What a URL says, and how to have it asked again.
pub type Source = (tokio::sync::watch::Receiver<Arc<Snapshot>>, Rescan);

/// What a URL source is to be.
#[derive(Debug, Clone)]
pub struct Options {
    pub url: ManifestUrl,
    /// Name of the node whose suffix the pods carry.
    pub node: String,
    /// A folder for the records of URLs; it is made when it is first needed.
    pub state: PathBuf,
    /// Between two looks; at least 100 ms.
    pub frequency: Duration,
    /// Decides which documents are accepted; `None`: they need no signature.
    pub verifier: Option<Arc<Verifier>>,
    /// The keys of `verifier`, as configured: with other ones documents are read anew.
    pub keys: Vec<String>,
    /// What comes of a file of a `file://` URL that others may write.
    pub permissions: Permissions,
    pub connections: Arc<Connections>,
}

/// Watches all URLs of a configuration, see [`watch`]. Records of other URLs in the
/// folder `state` are removed.
///
/// # Errors
/// When a thread cannot be started.
pub fn watch_all(
    sources: &Sources,
    node: &str,
    state: PathBuf,
    verifier: Option<&Arc<Verifier>>,
) -> io::Result<Vec<Source>> {
    let identities: Vec<String> = sources.urls.iter().map(|url| identity(&url.url)).collect();
    record::forget_others(&state, &identities);
    let connections = Arc::new(Connections::new(Environment::of_process()));
    let one = |url: &ManifestUrl| {
        let options = Options {
            url: url.clone(),
            node: node.to_owned(),
            state: state.clone(),
            frequency: sources.http_check_frequency,
            verifier: verifier.cloned(),
            keys: sources.public_keys.clone(),
            permissions: Permissions::of(sources.strict_permissions),
            connections: Arc::clone(&connections),
        };
        watch(options)
    };
    sources.urls.iter().map(one).collect()
}

/// Watches a URL on a thread of its own, which does nothing while it sleeps and ends, at its next look, when all receivers
/// are dropped. What is known from before is in the first snapshot; the URL itself is first asked after this returned.
///
/// Until the URL has answered, a snapshot is not healthy, and has no error before the first failure.
///
/// # Errors
/// When no thread can be started. A URL that does not answer is no error.
pub fn watch(options: Options) -> io::Result<Source> {
    let (wake, wakes) = channel();
    let watching = Watching::new(options, wake.clone());
    let (publish, snapshots) = tokio::sync::watch::channel(Arc::new(watching.said.snapshot()));
    thread::Builder::new().name("source-url".to_owned()).spawn(move || watching.run(&wakes, &publish))?;
    Ok((snapshots, Rescan(wake)))
}

/// The manifest at an `http://` or `https://` URL, unpacked, for people who name one. Blocking, as [`watch`] asks: within
/// the same limits, and with the same answers refused.
///
/// # Errors
/// Why there is none, for people, without the URL.
pub fn download(url: &str) -> Result<Vec<u8>, String> {
    let connections = Connections::new(Environment::of_process());
    let (tls, conditions) = (TlsSettings::default(), Conditions::default());
    let request = http::Request { url, headers: &[], tls: &tls, conditions: &conditions, limits: &Limits::MANIFEST };
    let bytes = match judge(http::fetch(&connections, &request), false) {
        Verdict::Document(bytes, _) => bytes,
        Verdict::Failed(failure) => return Err(failure.reason),
        // Only what was known can be unchanged.
        Verdict::Unchanged => return Err("the server says that nothing changed".to_owned()),
    };
    let mut contents = content::contents(&bytes).map_err(|failure| failure.reason)?;
    contents.manifests.remove("").ok_or_else(|| "is an archive: unpack it, and name its files".to_owned())
}

/// The part of a URL that makes its pods what they are: not the user and password, which may change.
fn identity(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// Where the signature of a URL is: its path with an extension, so that a query stays one.
fn signature_url(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let (path, query) = url.find('?').map_or((url, ""), |at| url.split_at(at));
    format!("{path}{EXTENSION}{query}")
}

enum Way {
    /// `http://` and `https://`.
    Remote(TlsSettings),
    /// `file://`.
    Local(Local),
}

struct Watching {
    options: Options,
    way: Way,
    said: Said,
    pace: Pace,
    place: Place,
    /// Of the document that was read last, whether or not all of it could be used.
    version: Version,
    /// The keys of then.
    keys: Revision,
    /// What the record holds; `None`: there is none, or it is not sure.
    saved: Option<BTreeMap<String, Good>>,
    /// The record that has to be written.
    unsaved: Option<Version>,
    /// Whether people were told that the record cannot be written.
    warned: bool,
    wake: Sender<Wake>,
}

impl Watching {
    fn new(options: Options, wake: Sender<Wake>) -> Watching {
        let identity = identity(&options.url.url);
        let shown = http::place::show(&options.url.url);
        let place = Place::new(&options.state, &identity, &options.node, &options.keys);
        let known = place.load();
        let way = match options.url.url.starts_with("file://") {
            true => Way::Local(Local::new(&identity, options.permissions)),
            false => Way::Remote(TlsSettings {
                ca: options.url.ca_file.iter().cloned().collect(),
                ca_alone: true,
                clients: (options.url.client_cert.iter())
                    .map(|(certificate, key)| ClientPair { certificate: certificate.clone(), key: key.clone() })
                    .collect(),
                skip_verify: false,
            }),
        };
        let keys = options.verifier.as_ref().map(|verifier| verifier.revision()).unwrap_or_default();
        Watching {
            way,
            saved: known.spoken.then(|| known.manifests.clone()),
            said: Said::new(identity, shown, options.node.clone(), known.manifests).recorded(known.spoken),
            pace: Pace::new(options.frequency),
            place,
            version: known.version,
            keys,
            unsaved: None,
            warned: false,
            wake,
            options,
        }
    }

    fn run(mut self, wakes: &Receiver<Wake>, publish: &tokio::sync::watch::Sender<Arc<Snapshot>>) {
        let mut ended = false;
        while !publish.is_closed() {
            let wait = self.look(ended);
            let snapshot = self.said.snapshot();
            publish.send_if_modified(|current| {
                let changed = **current != snapshot;
                if changed {
                    *current = Arc::new(snapshot);
                }
                changed
            });
            self.save();
            ended = pause(wakes, wait);
        }
    }

    /// Looks once, and says how long to wait before the next time. `ended`: the file's writer has closed it.
    fn look(&mut self, ended: bool) -> Duration {
        let keys = self.options.verifier.as_ref().map(|verifier| verifier.revision()).unwrap_or_default();
        if keys != self.keys {
            // What was refused may be accepted now, and the other way round.
            self.version = Version::default();
            self.keys = keys;
            if let Way::Local(local) = &mut self.way {
                local.forget();
            }
        }
        let verdict = match &mut self.way {
            Way::Remote(tls) => {
                let conditions = &self.version.conditions;
                let request = http::Request {
                    url: &self.options.url.url,
                    headers: &self.options.url.headers,
                    tls,
                    conditions,
                    limits: &Limits::MANIFEST,
                };
                judge(http::fetch(&self.options.connections, &request), *conditions != Conditions::default())
            }
            Way::Local(local) => {
                local.follow(&self.wake);
                match local.look(ended) {
                    Look::Later(wait) => return wait,
                    Look::Told(verdict, warning) => {
                        self.said.warn(warning);
                        verdict
                    }
                }
            }
        };
        let heard = match verdict {
            Verdict::Unchanged => {
                self.answered();
                Ok(())
            }
            Verdict::Document(bytes, conditions) => self.take(&bytes, conditions),
            Verdict::Failed(failure) => Err(failure),
        };
        match heard {
            Ok(()) => self.pace.heard(),
            Err(failure) => {
                let retry_after = failure.retry_after;
                self.said.fail(failure);
                if let Way::Local(local) = &mut self.way {
                    // Its signature may come yet.
                    local.forget();
                }
                self.pace.failed(retry_after, random())
            }
        }
    }

    /// What was said last holds.
    fn answered(&mut self) {
        if self.said.is_failing() {
            tracing::info!(url = self.said.shown(), "manifests can be had again");
        }
        self.said.hold();
    }

    /// Takes a document, if it may be taken.
    fn take(&mut self, bytes: &[u8], conditions: Conditions) -> Result<(), Failure> {
        let digest = digest(bytes);
        if digest == self.version.digest {
            self.version.conditions = conditions;
            self.answered();
            return Ok(());
        }
        let signed = match &self.options.verifier {
            Some(verifier) => Some(verifier.verify(bytes, &self.signature()?)?),
            None => None,
        };
        let contents = content::contents(bytes)?;
        let manifests = self.said.read(&contents);
        if let (Some(verifier), Some(signed)) = (&self.options.verifier, signed) {
            let loaded = together(&manifests);
            let origin = self.said.identity();
            let text = Text { origin, bytes, loaded: &loaded, node: &self.options.node };
            verifier.check(&text, &signed)?;
            verifier.accept(&text, &signed);
            // Before what it allows: a serial that is newer than the record does no harm.
            if let Err(error) = verifier.save() {
                tracing::warn!(%error, "cannot record the serials of manifests: a restart may accept older ones");
            }
        }
        self.answered();
        self.said.hear(manifests, contents.ignored);
        self.version = Version { conditions, digest };
        let good = self.said.good();
        let same = |saved: &BTreeMap<String, Good>| {
            saved.len() == good.len() && saved.iter().zip(&good).all(|((a, saved), (b, good))| a == b && saved.is(good))
        };
        // A server that changes a comment or a date with every answer must not wear out a flash disk.
        if !self.saved.as_ref().is_some_and(same) {
            // What people are told of is read again after a restart, so that they are told again.
            let clean = self.said.is_clean();
            self.unsaved = Some(if clean { self.version.clone() } else { Version::default() });
        }
        crate::sys::process::release_memory();
        Ok(())
    }

    /// The signature of the document.
    fn signature(&self) -> Result<Vec<u8>, SignatureError> {
        let tls = match &self.way {
            Way::Local(local) => return local.signature(),
            Way::Remote(tls) => tls,
        };
        let url = signature_url(&self.options.url.url);
        let request = http::Request {
            url: &url,
            headers: &self.options.url.headers,
            tls,
            conditions: &Conditions::default(),
            limits: &Limits { bytes: LARGEST_SIGNATURE as usize, ..Limits::MANIFEST },
        };
        match http::fetch(&self.options.connections, &request) {
            Ok(answer) if answer.status == 200 => Ok(answer.body.bytes),
            Ok(answer) if matches!(answer.status, 404 | 410) => Err(SignatureError::Missing(http::place::show(&url))),
            Ok(answer) => Err(SignatureError::Unreadable(format!("status {}", answer.status))),
            Err(error) => Err(SignatureError::Unreadable(error.to_string())),
        }
    }

    /// Writes the record, if it has to be; what fails is tried again after the next look.
    fn save(&mut self) {
        let Some(version) = &self.unsaved else { return };
        let good = self.said.good();
        match self.place.store(self.said.shown(), &good, version) {
            Ok(()) => {
                self.saved = Some(good);
                self.unsaved = None;
                self.warned = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let url = self.said.shown();
                    tracing::warn!(url, %error, "cannot record what it said: a restart depends on the server");
                }
            }
        }
    }
}

/// Sleeps until it is time to look, and tells whether that is because the file was closed by its writer.
fn pause(wakes: &Receiver<Wake>, wait: Duration) -> bool {
    let begun = Instant::now();
    let mut wait = wait;
    // There is always a sender, the source's own: that nothing comes means that the time is over.
    while let Ok(wake) = wakes.recv_timeout(wait.saturating_sub(begun.elapsed())) {
        match wake {
            Wake::Ended => {
                // A file is written by several calls, and told of by several words.
                while wakes.try_recv().is_ok() {}
                return true;
            }
            Wake::Now => wait = wait.min(ASKED),
        }
    }
    false
}

/// What all manifests of a document say.
fn together(manifests: &BTreeMap<String, Loaded>) -> Loaded {
    let mut all = Loaded::default();
    for loaded in manifests.values() {
        all.pods.extend(loaded.pods.iter().cloned());
        all.objects.extend(loaded.objects.iter().cloned());
        all.problems.extend(loaded.problems.iter().cloned());
    }
    all
}

/// A number that no two nodes share: for chance, not for secrets.
fn random() -> u32 {
    RandomState::new().hash_one(std::process::id()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_its_pods_identity_without_user_and_password() {
        for (url, expected) in [
            ("https://user:pass@host/a@b?x=1#part", "https://host/a@b?x=1"),
            ("http://host", "http://host"),
            ("file:///etc/pods/a@b.yaml", "file:///etc/pods/a@b.yaml"),
        ] {
            assert_eq!(identity(url), expected);
        }
        assert_eq!(signature_url("https://h/x.yaml?node=a#y"), "https://h/x.yaml.minisig?node=a");
        assert_eq!(signature_url("https://h/x"), "https://h/x.minisig");
    }

    #[test]
    fn who_asks_shortens_the_wait_and_a_file_ends_it() {
        let (wake, wakes) = channel();
        let long = Duration::from_secs(3600);
        (0..100).for_each(|_| wake.send(Wake::Now).unwrap());
        let begun = Instant::now();
        assert!(!pause(&wakes, long));
        assert!(begun.elapsed() >= ASKED, "a hundred who ask are one");
        assert!(wakes.try_recv().is_err());
        for word in [Wake::Now, Wake::Ended, Wake::Ended, Wake::Now] {
            wake.send(word).unwrap();
        }
        assert!(pause(&wakes, long));
        assert!(wakes.try_recv().is_err(), "they are one word");
        assert!(!pause(&wakes, Duration::ZERO));
    }

    #[test]
    fn two_nodes_do_not_wait_in_step() {
        let numbers: std::collections::HashSet<u32> = (0..16).map(|_| random()).collect();
        assert!(numbers.len() > 8, "{numbers:?}");
    }
}
