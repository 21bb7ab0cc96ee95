//! One look at the manifest directory.

use super::known::{Good, Known};
use super::look::{Outcome, Seen, look, whole_file};
use super::permissions::{self, Permissions};
use super::signature::{Revision, Verifier};
use super::{Desired, DesiredObject, Snapshot, SourceProblem};
use crate::manifest::{Loaded, Object, ObjectId, Places, Problem, Severity};
use crate::minisign::EXTENSION;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A file that fails to parse this soon after it was changed may be half-written, and one whose signature does not fit may
/// be about to get another: they are looked at again before they are reported.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a file that is gone keeps its pods.
const REMOVAL: Duration = Duration::from_millis(200);
/// This many files that are no manifests are named; the rest is counted.
const MAX_STRANGERS: usize = 20;

/// What a [`Directory`] is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// A directory of manifests, or one manifest file.
    pub path: PathBuf,
    /// Name of the node whose suffix the pods carry.
    pub node: String,
    /// A folder of its own for the last known good pods; it is made when it is first needed.
    pub state: PathBuf,
    /// Decides which texts are accepted; `None`: they need no signature.
    pub verifier: Option<Arc<Verifier>>,
    /// What comes of files that others may write.
    pub permissions: Permissions,
    /// What may be in them.
    pub takes: Takes,
}

/// Which kinds of documents a source takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Takes {
    /// Pods, ConfigMaps and Secrets.
    #[default]
    All,
    /// ConfigMaps and Secrets only.
    Objects,
}

impl Options {
    /// Of manifests without signatures.
    #[must_use]
    pub fn new(path: PathBuf, node: String, state: PathBuf) -> Options {
        let (verifier, permissions, takes) = (None, Permissions::default(), Takes::default());
        Options { path, node, state, verifier, permissions, takes }
    }
}

/// The manifests of a directory, or one manifest file.
#[derive(Debug)]
pub struct Directory {
    options: Options,
    known: Known,
    settle: Duration,
    /// Whether its files were looked at before.
    scanned: bool,
    /// Files of the first look that may be half-written: what they say has never been known since the agent was started.
    unknown: HashSet<String>,
    /// The keys that signatures were held against.
    keys: Revision,
    /// The file system that the directory was on when it was read last.
    device: Option<u64>,
    files: BTreeMap<String, Manifest>,
    /// Files that someone has begun to write and not closed since, as far as inotify told.
    writing: HashSet<String>,
    /// Which file runs a pod: it goes on doing so when another file comes to define a pod of that name.
    owners: HashMap<Key, String>,
    /// The same of ConfigMaps and Secrets.
    holders: HashMap<ObjectId, String>,
    /// Records to write or remove.
    unsaved: BTreeMap<String, Good>,
    saved: BTreeMap<String, Good>,
    retry: Option<Duration>,
}

/// Namespace and name.
type Key = (String, String);

/// What is known of one file.
#[derive(Debug, Default)]
struct Manifest {
    /// The state of the file that `pods` and `problems` are about; `None`: to be read.
    seen: Option<Seen>,
    /// Last known good.
    good: Good,
    /// Where fields of the pods stand that were loaded last.
    places: Arc<Places>,
    problems: Vec<Problem>,
    /// It is there, but cannot be read.
    unreadable: bool,
    /// Since when it is not there any more.
    missing: Option<Instant>,
}

impl Directory {
    /// A source with what it gave last, as far as there are records of it.
    pub fn new(mut options: Options) -> Directory {
        // The path is part of the pods' identity: the same one however it is written.
        options.path = std::path::absolute(&options.path).unwrap_or(options.path).components().collect();
        let known = Known::new(options.state.clone(), options.node.to_lowercase());
        let mut directory = Directory {
            options,
            known,
            settle: SETTLE,
            scanned: false,
            unknown: HashSet::new(),
            keys: Revision::default(),
            device: None,
            files: BTreeMap::new(),
            writing: HashSet::new(),
            owners: HashMap::new(),
            holders: HashMap::new(),
            unsaved: BTreeMap::new(),
            saved: BTreeMap::new(),
            retry: None,
        };
        let mut folders = vec![directory.options.path.clone()];
        folders.extend(directory.options.path.parent().map(Path::to_owned));
        for folder in folders {
            for (name, good) in directory.known.load(&folder) {
                // A record of the parent's other files belongs to another configuration.
                if folder.join(&name) != directory.options.path && folder != directory.options.path {
                    continue;
                }
                for pod in &good.pods {
                    directory.owners.insert(key(pod), name.clone());
                }
                directory.holders.extend(good.objects.iter().map(|object| (object.id(), name.clone())));
                directory.saved.insert(name.clone(), good.clone());
                directory.files.insert(name, Manifest { good, ..Manifest::default() });
            }
        }
        directory
    }

    /// Waits no time for files to settle: what is broken now is reported now.
    #[cfg(test)]
    pub(super) fn impatient(mut self) -> Directory {
        self.settle = Duration::ZERO;
        self
    }

    /// The path that it was made for.
    pub(super) fn path(&self) -> &Path {
        &self.options.path
    }

    /// How long a change waits for the writer to close the file.
    pub(super) fn settle(&self) -> Duration {
        self.settle
    }

    /// Someone writes to this file: it is not read before it is closed or has been left alone for a while.
    pub(super) fn begin_writing(&mut self, name: &str) {
        self.writing.insert(name.to_owned());
        self.forget(name);
    }

    /// This file is whole (closed by its writer, moved here) or gone.
    pub(super) fn end_writing(&mut self, name: &str) {
        self.writing.remove(name);
        self.forget(name);
    }

    /// The next scan reads this file, or the one that this is the signature of, whether or not it seems to have changed.
    pub(super) fn forget(&mut self, name: &str) {
        let name = name.strip_suffix(EXTENSION).filter(|signed| is_manifest(signed)).unwrap_or(name);
        if let Some(file) = self.files.get_mut(name) {
            file.seen = None;
        }
    }

    /// When to look again although nothing happens: a file may have been half-written.
    pub(super) fn retry_in(&self) -> Option<Duration> {
        self.retry
    }

    /// Looks at the directory: reads what changed, and says what should run. Blocking.
    ///
    /// What it learns becomes durable with [`Directory::save`].
    pub fn scan(&mut self) -> Snapshot {
        self.retry = None;
        let mut problems = Vec::new();
        let mut error = None;
        self.heed_keys();
        let objection = self.objection();
        let refused = objection.is_some() && self.options.permissions == Permissions::Refuse;
        if let Some(objection) = objection {
            let folder = self.folder().to_string_lossy().into_owned();
            if refused {
                error = Some(format!("{folder}: {objection}"));
            }
            let severity = if refused { Severity::Error } else { Severity::Warning };
            problems.push(SourceProblem { origin: folder, pod: None, problem: whole_file(objection, severity) });
        }
        match self.list() {
            // Nothing of it is taken, neither that a file is gone.
            Ok(_) if refused => {}
            Ok(names) => self.refresh(names, &mut problems, &mut error),
            Err(failure) => error = Some(format!("{}: {failure}", self.options.path.display())),
        }
        self.save_serials(&mut problems);
        for (name, file) in &self.files {
            let only = match &file.good.pods[..] {
                [pod] => Some(key(pod)),
                _ => None,
            };
            let origin = self.origin(name);
            problems.extend(file.problems.iter().map(|problem| SourceProblem {
                origin: origin.clone(),
                pod: problem.pod.clone().or_else(|| only.clone()),
                problem: problem.clone(),
            }));
        }
        let (pods, objects) = self.select(&mut problems);
        problems.sort_by(|a, b| (&a.origin, a.problem.line).cmp(&(&b.origin, b.problem.line)));
        let located = self.files.iter().filter(|(_, file)| !file.places.is_empty());
        let places = located.map(|(name, file)| (self.origin(name), Arc::clone(&file.places))).collect();
        Snapshot { pods, objects, problems, healthy: error.is_none(), error, places, ..Snapshot::default() }
    }

    /// Makes the pods of the last scan the last known good ones, durably. Does nothing when they are already.
    ///
    /// # Errors
    /// When a record cannot be written; the next call tries again.
    pub fn save(&mut self) -> io::Result<()> {
        if self.unsaved.is_empty() {
            return Ok(());
        }
        let mut failed = Ok(());
        let folder = self.folder();
        let (known, saved) = (&self.known, &mut self.saved);
        self.unsaved.retain(|name, good| match known.store(&folder.join(name), good) {
            Ok(()) => {
                if good.is_empty() {
                    saved.remove(name);
                } else {
                    saved.insert(name.clone(), std::mem::take(good));
                }
                false
            }
            Err(error) => {
                failed = Err(error);
                true
            }
        });
        failed.and(self.known.sync())
    }

    /// Other keys than before may judge all files in another way.
    fn heed_keys(&mut self) {
        let Some(verifier) = &self.options.verifier else { return };
        let keys = verifier.revision();
        if self.keys != keys {
            self.keys = keys;
            self.files.values_mut().for_each(|file| file.seen = None);
        }
    }

    /// Why others could change the directory.
    fn objection(&self) -> Option<String> {
        match self.options.permissions {
            Permissions::Ignore => None,
            Permissions::Warn | Permissions::Refuse => permissions::folder_objection(&self.folder()),
        }
    }

    /// Makes durable which serials were accepted, before anybody acts on it; tells of what hinders signatures.
    fn save_serials(&self, problems: &mut Vec<SourceProblem>) {
        let Some(verifier) = &self.options.verifier else { return };
        // That it failed is among the troubles; the next scan tries again. An update is not held up by a full disk.
        let _ = verifier.save();
        let origin = self.options.path.to_string_lossy();
        problems.extend(verifier.troubles().into_iter().map(|trouble| SourceProblem {
            origin: origin.clone().into_owned(),
            pod: None,
            problem: whole_file(trouble, Severity::Warning),
        }));
    }

    /// Whether [`Directory::save`] has something to do.
    pub(super) fn is_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// The folder that the files are in.
    pub(super) fn folder(&self) -> PathBuf {
        match self.is_single() {
            true => self.options.path.parent().unwrap_or(&self.options.path).to_owned(),
            false => self.options.path.clone(),
        }
    }

    /// Whether the path is that of one manifest file.
    fn is_single(&self) -> bool {
        match fs::metadata(&self.options.path) {
            Ok(metadata) => !metadata.is_dir(),
            Err(_) => is_manifest(&self.options.path.to_string_lossy()),
        }
    }

    fn origin(&self, name: &str) -> String {
        self.folder().join(name).to_string_lossy().into_owned()
    }

    /// The names to look at.
    fn list(&mut self) -> io::Result<Vec<OsString>> {
        if self.is_single() {
            // A file that is gone is gone when its folder can be read, as with a file of a directory.
            fs::metadata(self.folder())?;
            return Ok(self.options.path.file_name().map(OsString::from).into_iter().collect());
        }
        let mut names =
            fs::read_dir(&self.options.path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        let device = fs::metadata(&self.options.path)?.dev();
        let manifests = names.iter().any(|name| name.to_str().is_some_and(is_manifest));
        match self.device {
            // Its file system was unmounted, or another one mounted over it.
            Some(before) if before != device && !manifests && !self.files.is_empty() => {
                return Err(io::Error::other("another file system is there now, without manifests"));
            }
            _ => self.device = Some(device),
        }
        Ok(names)
    }

    fn refresh(&mut self, names: Vec<OsString>, problems: &mut Vec<SourceProblem>, error: &mut Option<String>) {
        let folder = self.folder();
        let single = self.is_single();
        let mut present = HashSet::new();
        let mut unsettled = HashSet::new();
        let mut strangers = 0;
        let mut stranger = |name: &str, reason: String| {
            strangers += 1;
            if strangers <= MAX_STRANGERS {
                let origin = folder.join(name).to_string_lossy().into_owned();
                problems.push(SourceProblem { origin, pod: None, problem: whole_file(reason, Severity::Warning) });
            }
        };
        for name in names {
            let Some(name) = name.to_str() else {
                stranger(&name.to_string_lossy(), "ignored: its name is not UTF-8".to_owned());
                continue;
            };
            if !single && (is_scratch(name) || is_signature(name)) {
                continue;
            }
            if !single && !is_manifest(name) {
                stranger(name, "ignored: manifests are named .yaml, .yml or .json".to_owned());
                continue;
            }
            let path = folder.join(name);
            let file = self.files.get(name);
            let writing = self.writing.contains(name)
                || (self.options.verifier.is_some() && self.writing.contains(&format!("{name}{EXTENSION}")));
            let outcome = look(&path, file.and_then(|file| file.seen), writing, self.settle, &self.options);
            if let Outcome::Gone = outcome {
                continue;
            }
            present.insert(name.to_owned());
            let file = self.files.entry(name.to_owned()).or_default();
            match outcome {
                Outcome::Same | Outcome::Gone => {}
                Outcome::Unsettled(wait) => {
                    file.seen = None;
                    if !self.scanned && file.good.is_empty() {
                        self.unknown.insert(name.to_owned());
                    }
                    unsettled.insert(name.to_owned());
                    self.retry = Some(self.retry.map_or(wait, |retry| retry.min(wait)));
                }
                Outcome::Unreadable(reason) => {
                    file.seen = None;
                    file.unreadable = true;
                    file.problems = vec![whole_file(reason, Severity::Error)];
                }
                Outcome::Dangling => {
                    file.seen = None;
                    file.unreadable = false;
                    let reason = "is a link to a file that does not exist".to_owned();
                    file.problems = vec![whole_file(reason, Severity::Error)];
                }
                Outcome::Stranger(reason) => {
                    file.seen = None;
                    file.unreadable = false;
                    // Pods that ran from a file of this name keep running.
                    file.problems = Vec::new();
                    stranger(name, reason);
                }
                Outcome::Read(seen, loaded) => {
                    file.seen = seen;
                    file.unreadable = false;
                    file.take(*loaded);
                }
            }
            if file.unreadable && error.is_none() {
                let reason = file.problems.first().map(|problem| problem.reason.as_str()).unwrap_or_default();
                *error = Some(format!("{}: {reason}", path.display()));
            }
        }
        if strangers > MAX_STRANGERS {
            let reason = format!("{} more files here are no manifests: ignored", strangers - MAX_STRANGERS);
            let origin = folder.to_string_lossy().into_owned();
            problems.push(SourceProblem { origin, pod: None, problem: whole_file(reason, Severity::Warning) });
        }
        self.drop_missing(&present);
        self.scanned = true;
        // A pod that runs since before may be one of theirs.
        self.unknown.retain(|name| unsettled.contains(name));
        if let Some(name) = self.unknown.iter().min().filter(|_| error.is_none()) {
            *error =
                Some(format!("{}: was changed a moment ago: waiting until it is whole", folder.join(name).display()));
        }
        self.writing.retain(|name| present.contains(name.strip_suffix(EXTENSION).unwrap_or(name)));
    }

    /// Forgets files that are gone: not at once, because many editors save by moving the old file away before the new one is
    /// there; but at once when another file has all their pods (a renamed file), or when they were gone before the agent was
    /// started.
    fn drop_missing(&mut self, present: &HashSet<String>) {
        let now = Instant::now();
        let grace = if self.scanned { self.settle.min(REMOVAL) } else { Duration::ZERO };
        let elsewhere: HashSet<Key> = self
            .files
            .iter()
            .filter(|(name, _)| present.contains(*name))
            .flat_map(|(_, file)| file.good.pods.iter().map(|pod| key(pod)))
            .collect();
        let mut retry = self.retry;
        self.files.retain(|name, file| {
            if present.contains(name) {
                file.missing = None;
                return true;
            }
            let since = *file.missing.get_or_insert(now);
            file.problems.clear();
            file.seen = None;
            let left = grace.saturating_sub(now - since);
            let moved = file.good.objects.is_empty() && file.good.pods.iter().all(|pod| elsewhere.contains(&key(pod)));
            if left.is_zero() || moved {
                return false;
            }
            retry = Some(retry.map_or(left, |retry| retry.min(left)));
            true
        });
        self.retry = retry;
    }

    /// One pod per name and per UID; of two, the one that ran already, else the first.
    fn select(&mut self, problems: &mut Vec<SourceProblem>) -> (Vec<Desired>, Vec<DesiredObject>) {
        let mut chosen: HashMap<Key, &str> = HashMap::new();
        let mut uids: HashMap<&str, &str> = HashMap::new();
        let mut conflicts: Vec<(&str, &str, Key, &str)> = Vec::new();
        for owned in [true, false] {
            for (name, file) in &self.files {
                for pod in &file.good.pods {
                    let key = key(pod);
                    if (self.owners.get(&key) == Some(name)) != owned {
                        continue;
                    }
                    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                    if let Some(other) = chosen.get(&key) {
                        conflicts.push((name, *other, key, "metadata.name"));
                    } else if let Some(other) = uids.get(uid) {
                        conflicts.push((name, *other, key, "metadata.uid"));
                    } else {
                        chosen.insert(key, name);
                        uids.insert(uid, name);
                    }
                }
            }
        }
        for (loser, winner, key, field) in conflicts {
            let value = if field == "metadata.name" { key.1.as_str() } else { "the same UID" };
            let mut report = |file: &str, severity, reason| {
                let problem = Problem { field: field.to_owned(), ..whole_file(reason, severity) };
                problems.push(SourceProblem { origin: self.origin(file), pod: Some(key.clone()), problem });
            };
            report(
                loser,
                Severity::Error,
                format!("Duplicate value: \"{value}\": {winner} has a pod with it, which keeps running"),
            );
            report(
                winner,
                Severity::Warning,
                format!("Duplicate value: \"{value}\": {loser} has a pod with it, too, which is ignored"),
            );
        }

        let (mut desired, mut objects) = (Vec::new(), Vec::new());
        let mut owners = HashMap::new();
        let mut records: BTreeMap<String, Good> = BTreeMap::new();
        let mut holders: HashMap<ObjectId, String> = HashMap::new();
        for owned in [true, false] {
            for (name, file) in &self.files {
                for id in file.good.objects.iter().map(Object::id) {
                    if (self.holders.get(&id) == Some(name)) == owned {
                        holders.entry(id).or_insert_with(|| name.clone());
                    }
                }
            }
        }
        for (name, file) in &self.files {
            for pod in &file.good.pods {
                let key = key(pod);
                if chosen.get(&key) == Some(&name.as_str()) {
                    desired.push(Desired { pod: pod.clone(), origin: self.origin(name) });
                    records.entry(name.clone()).or_default().pods.push(pod.clone());
                    owners.insert(key, name.clone());
                }
            }
            for object in &file.good.objects {
                let id = object.id();
                if let Some(other) = holders.get(&id).filter(|other| *other != name) {
                    let reason = format!("Duplicate value: \"{}\": {other} has it, too: this one is ignored", id);
                    let problem = Problem { field: "metadata.name".into(), ..whole_file(reason, Severity::Error) };
                    problems.push(SourceProblem { origin: self.origin(name), pod: None, problem });
                    continue;
                }
                objects.push(DesiredObject { object: object.clone(), origin: self.origin(name) });
                records.entry(name.clone()).or_default().objects.push(object.clone());
            }
        }
        (self.owners, self.holders) = (owners, holders);
        self.unsaved.clear();
        for name in self.saved.keys().chain(records.keys()) {
            let (saved, record) = (self.saved.get(name), records.get(name));
            let same = match (saved, record) {
                (Some(saved), Some(record)) => saved.is(record),
                _ => false,
            };
            if !same {
                self.unsaved.insert(name.clone(), record.cloned().unwrap_or_default());
            }
        }
        (desired, objects)
    }
}

impl Manifest {
    /// Takes over what a manifest says now. What is broken keeps the pods that it gave before.
    fn take(&mut self, loaded: Loaded) {
        let broken = loaded.has_errors();
        self.places = Arc::new(loaded.places_of_pods());
        self.good.take(loaded.pods, loaded.objects, broken);
        self.problems = loaded.problems;
    }
}

pub(super) fn key(pod: &Pod) -> Key {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

pub(super) fn is_manifest(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|extension| name.len() > extension.len() && name.ends_with(extension))
}

/// The signature of a manifest, whether or not signatures are asked for.
fn is_signature(name: &str) -> bool {
    name.strip_suffix(EXTENSION).is_some_and(is_manifest)
}

/// Hidden files, and what editors and copying programs leave for a moment: not worth a word.
fn is_scratch(name: &str) -> bool {
    name.starts_with('.')
        || name.ends_with('~')
        || (name.starts_with('#') && name.ends_with('#'))
        || [".swp", ".swx", ".tmp", ".part"].iter().any(|extension| name.ends_with(extension))
        // The file by which vim tries whether it may write here.
        || name == "4913"
}

#[cfg(test)]
#[path = "directory_tests.rs"]
pub(in crate::source) mod tests;
