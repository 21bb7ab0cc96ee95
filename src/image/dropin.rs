//! The folder people drop archives and lists of images into.
//!
//! Every version of a file is imported once. What was imported is remembered over restarts; what failed is reported once,
//! and tried again when the file changes or at the next start; one that did not fit on the disk also when there is more
//! room. A file that is still being copied fails too, so a failure
//! only counts once the file has been left alone for a moment.
//!
//! Images stay, used or not, as long as a file here holds them. One that somebody removes stays away until its file
//! changes; one that was lost in any other way comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::archive::is_layout;
use super::ingest::{self, Manner};
use super::space::Space;
use super::trust::{self, Refusal};
use super::{Error, Image, ImageStore, reference};
use crate::store;
use crate::sys::fs::{self, Status};

/// How long a file must not have changed for its failure to count.
const SETTLED: Duration = Duration::from_secs(2);
/// Largest pull list, in bytes, and most references in it.
const LARGEST_LIST: u64 = 1 << 20;
const MOST_REFERENCES: usize = 4096;

/// What became of one file in a scan.
#[derive(Debug)]
pub struct Outcome {
    pub path: PathBuf,
    pub result: Result<Vec<Arc<Image>>, Error>,
}

/// An image that a list names and that is not here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// The list's file name.
    pub list: String,
    /// Normalised.
    pub image: String,
}

/// One version of a file: it changes when the content does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, u32),
    /// The same of the signature beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<(u64, u64, (i64, u32))>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Imported {
    version: Version,
    /// IDs of the images that were in it, or that came in for it.
    images: Vec<String>,
    /// Of a list: what it names (normalised), and the ID of what that was, once it is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    listed: BTreeMap<String, Option<String>>,
}

/// A file that could not be imported.
struct Failure {
    version: Version,
    full: Option<Full>,
}

/// What it was like when a file did not fit.
struct Full {
    /// Bytes that images might have taken then.
    free: u64,
    since: Instant,
    tried_twice: bool,
}

/// A file that did not fit is tried again after this long, once: what may go may not have been known before.
const SECOND_TRY: Duration = Duration::from_secs(10);
/// And when so many bytes more have become free: every attempt writes.
const WORTH_A_TRY: u64 = 4 << 20;

/// The drop-in folder. Call [`DropIn::scan`] when something in it changed, and now and then.
pub struct DropIn {
    dir: PathBuf,
    store: Arc<ImageStore>,
    /// By file name.
    imported: BTreeMap<String, Imported>,
    failed: BTreeMap<String, Failure>,
    /// Of the signature policy that failures are by.
    policy: trust::Revision,
    pending: bool,
    started: bool,
}

impl DropIn {
    /// The folder `dir`, which may not exist yet, of `store`.
    pub fn new(dir: &Path, store: Arc<ImageStore>) -> DropIn {
        let imported = store::read(&record(&store)).unwrap_or_else(|error| {
            tracing::warn!(%error, "drop-in archives will be looked at again");
            None
        });
        DropIn {
            dir: dir.into(),
            store,
            imported: imported.unwrap_or_default(),
            failed: BTreeMap::new(),
            policy: trust::Revision::default(),
            pending: false,
            started: false,
        }
    }

    /// Whether the last scan has met a file that is still being written, and the next should follow in a few seconds
    /// even if nothing is heard of the folder.
    pub fn pending(&self) -> bool {
        self.pending
    }

    /// Imports what is new, the oldest file first, so that a name in several belongs to the newest. Only what happened now
    /// is reported: nothing for an archive that was imported or has failed before. Images that were lost since, but not
    /// those that somebody removed, are imported again.
    pub fn scan(&mut self) -> Vec<Outcome> {
        let first = !std::mem::replace(&mut self.started, true);
        self.pending = false;
        let names = match self.names() {
            Ok(Some(names)) => names,
            // Perhaps its disk is not there yet: nothing is known to be gone.
            Ok(None) => return Vec::new(),
            Err(error) => return vec![Outcome { path: self.dir.clone(), result: Err(error) }],
        };
        let policy = self.store.trust().revision();
        let revised = self.policy != policy;
        if revised {
            // What it refused may be accepted now.
            self.policy = policy;
            self.failed.clear();
        }
        let before = self.imported.clone();
        self.imported.retain(|name, _| names.contains(name));
        self.failed.retain(|name, _| names.contains(name));
        let mut files: Vec<_> = names
            .into_iter()
            .filter_map(|name| look_at(&self.dir.join(&name)).map(|(version, settled)| (version, settled, name)))
            .collect();
        files.sort_by(|(a, _, one), (b, _, other)| (a.modified, one).cmp(&(b.modified, other)));
        let mut outcomes = Vec::new();
        for (version, settled, name) in files {
            if self.failed.get(&name).is_some_and(|failure| failure.version == version && !self.may_fit_now(failure)) {
                continue;
            }
            let same = self.imported.get(&name).is_some_and(|known| known.version == version);
            let due = |known: &Imported| self.has_lost(known, first) || (revised && self.lacks_signatures(known));
            if same && (self.imported.get(&name).is_none_or(|known| !due(known)) || is_list(&name)) {
                continue;
            }
            let path = self.dir.join(&name);
            let result = self.take(&name, &path, &version, same);
            match &result {
                Ok(_) => drop(self.failed.remove(&name)),
                Err(error) if !settled || look_at(&path).is_none_or(|(now, _)| now != version) => {
                    tracing::debug!(path = %path.display(), %error, "archive is not complete yet");
                    self.pending = true;
                    continue;
                }
                Err(error) => {
                    let again = self.failed.get(&name).is_some_and(|it| it.version == version && it.full.is_some());
                    let full = Full { free: self.room(), since: Instant::now(), tried_twice: again };
                    let full = error.is_no_space().then_some(full);
                    // That there is still no room for it need not be told again.
                    let known = again && full.is_some();
                    self.failed.insert(name, Failure { version, full });
                    if known {
                        continue;
                    }
                }
            }
            outcomes.push(Outcome { path, result });
        }
        self.settle(&before, first);
        outcomes
    }

    /// What images may take of the disk, in bytes.
    fn room(&self) -> u64 {
        Space::of(self.store.root()).map_or(0, |space| space.usable())
    }

    /// Whether a file that did not fit may do so by now.
    fn may_fit_now(&self, failure: &Failure) -> bool {
        match &failure.full {
            Some(full) if !full.tried_twice && full.since.elapsed() >= SECOND_TRY => true,
            Some(full) => self.room() >= full.free.saturating_add(WORTH_A_TRY),
            None => false,
        }
    }

    /// Imports an archive, or reads a list. `again`: it was imported before, and its images are lost.
    fn take(&mut self, name: &str, path: &Path, version: &Version, again: bool) -> Result<Vec<Arc<Image>>, Error> {
        let mut entry = Imported { version: version.clone(), images: Vec::new(), listed: BTreeMap::new() };
        let images = if is_list(name) {
            let earlier = self.imported.get(name).map(|known| known.listed.clone()).unwrap_or_default();
            for image in read_list(path)? {
                // Each once: what a line that stays has brought in is not asked for again.
                let known = earlier.get(&image).cloned().flatten();
                entry.listed.insert(image, known);
            }
            entry.images = entry.listed.values().flatten().cloned().collect();
            Vec::new()
        } else {
            // A file that came back may be older than the one that has its names now.
            let manner = Manner { pinned: true, modest: again };
            let import = || ingest::archive(&self.store, path, self.store.limits(), manner);
            let images = self.store.with_room(import)?;
            entry.images = images.iter().map(|image| image.id.clone()).collect();
            images
        };
        // Written to meanwhile, it is another version at the next scan.
        self.imported.insert(name.to_owned(), entry);
        Ok(images)
    }

    /// Whether an image of a file is gone that nobody has removed. Besides the first time, only what is known to be
    /// damaged counts.
    fn has_lost(&self, known: &Imported, first: bool) -> bool {
        known.images.iter().any(|id| {
            let gone = || self.store.resolve(id).is_none() && !self.store.was_removed(id);
            (first || self.store.is_damaged(id)) && gone()
        })
    }

    /// Whether an image of a file lacks signatures that are wanted now: they may be in the file, or beside it, and nobody
    /// looked for them when it came in.
    fn lacks_signatures(&self, known: &Imported) -> bool {
        let trust = self.store.trust();
        known.images.iter().filter_map(|id| self.store.resolve(id)).any(|image| {
            let unsigned = |name: &String| matches!(trust.admits_use(name, &image), Err(Refusal::Unsigned { .. }));
            image.names.iter().any(unsigned)
        })
    }

    /// What the lists name and the store does not have, in order. What has come in otherwise is taken as it is.
    pub fn wanted(&mut self) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        let mut present = Vec::new();
        for (list, known) in &self.imported {
            for (image, id) in &known.listed {
                let due = match id {
                    None => true,
                    Some(id) => self.store.resolve(id).is_none() && !self.store.was_removed(id),
                };
                if !due {
                    continue;
                }
                let item = Wanted { list: list.clone(), image: image.clone() };
                match self.store.resolve(image) {
                    Some(found) => present.push((item, found.id.clone())),
                    None => wanted.push(item),
                }
            }
        }
        for (item, id) in present {
            self.arrived(&item, &id);
        }
        wanted
    }

    /// Takes down that an image of a list is there: `id`. From now on it stays.
    pub fn arrived(&mut self, item: &Wanted, id: &str) {
        let before = self.imported.clone();
        let Some(known) = self.imported.get_mut(&item.list) else { return };
        let Some(listed) = known.listed.get_mut(&item.image) else { return };
        *listed = Some(id.to_owned());
        known.images = known.listed.values().flatten().cloned().collect();
        self.settle(&before, false);
    }

    /// Pins what files hold and did not before, and lets go of what none holds any more; then remembers it.
    fn settle(&self, before: &BTreeMap<String, Imported>, first: bool) {
        let held = |files: &BTreeMap<String, Imported>| -> BTreeSet<String> {
            files.values().flat_map(|known| known.images.iter().cloned()).collect()
        };
        let (old, new) = (held(before), held(&self.imported));
        let pin = |id: &String, pinned| {
            if let Err(error) = self.store.pin(id, pinned) {
                tracing::warn!(image = id, %error, "cannot record whether the image stays");
            }
        };
        for id in new.iter().filter(|id| first || !old.contains(*id)) {
            pin(id, true);
        }
        for id in old.difference(&new) {
            pin(id, false);
            if let Err(error) = self.store.forget_removed(id) {
                tracing::debug!(image = id, %error, "stays marked as removed");
            }
        }
        if *before != self.imported
            && let Err(error) = store::write(&record(&self.store), &self.imported, 0o600)
        {
            // Then archives are looked at again after a restart, which costs little.
            tracing::warn!(%error, "cannot remember which archives were imported");
        }
    }

    /// What is in the folder; `None` when there is no folder.
    fn names(&self) -> Result<Option<BTreeSet<String>>, Error> {
        let failed = |source| Error::Io { action: "list", path: self.dir.clone(), source };
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let mut names = BTreeSet::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            // Dot files are what copying programs write to before they rename.
            if name.as_bytes().starts_with(b".") {
                continue;
            }
            if let Some(name) = name.to_str()
                && (is_archive(name) || is_list(name) || is_layout(&self.dir.join(name)))
            {
                names.insert(name.to_owned());
            }
        }
        Ok(Some(names))
    }
}

/// Where it is remembered what was imported.
fn record(store: &ImageStore) -> PathBuf {
    store.root().join("dropin.json")
}

fn is_archive(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"].iter().any(|end| name.len() > end.len() && name.ends_with(end))
}

/// As k3s has them.
fn is_list(name: &str) -> bool {
    name.len() > ".txt".len() && name.ends_with(".txt")
}

fn read_list(path: &Path) -> Result<Vec<String>, Error> {
    let content = fs::read_limited(path, LARGEST_LIST).map_err(Error::io("read", path))?;
    references(&content).map_err(|reason| Error::Archive { archive: path.into(), reason })
}

/// The references in a list: one a line, `#` begins a comment. All must be good: half a list is worse than a message.
pub(super) fn references(content: &[u8]) -> Result<Vec<String>, String> {
    let text = std::str::from_utf8(content).map_err(|e| format!("not text: {e}"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split_once('#').map_or(line, |(before, _)| before).trim();
        if line.is_empty() {
            continue;
        }
        found.push(reference::normalise(line).map_err(|error| format!("line {number}: {error}"))?);
        if found.len() > MOST_REFERENCES {
            return Err(format!("more than {MOST_REFERENCES} images"));
        }
    }
    Ok(found)
}

/// The version of an archive and whether it has settled; `None` if it is gone, or never was one.
fn look_at(path: &Path) -> Option<(Version, bool)> {
    // A layout folder changes with its index.
    let index = path.join("index.json");
    let status = match fs::status(&index) {
        Ok(status) => status,
        Err(_) => fs::status(path).ok().filter(|status| status.kind == rustix::fs::FileType::RegularFile)?,
    };
    let modified = (status.modified.seconds, status.modified.nanoseconds);
    let signature = fs::status(&trust::signature_path(path))
        .ok()
        .map(|status| (status.inode, status.size, (status.modified.seconds, status.modified.nanoseconds)));
    let version = Version { inode: status.inode, size: status.size, modified, signature };
    Some((version, is_settled(&status, SystemTime::now())))
}

/// Whether nobody has touched the file lately. Changes from the future say nothing: the clock was set back.
fn is_settled(status: &Status, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let recent = |time: fs::Time| {
        let time = Duration::new(u64::try_from(time.seconds).unwrap_or_default(), time.nanoseconds);
        now.checked_sub(time).is_some_and(|age| age < SETTLED)
    };
    !recent(status.modified) && !recent(status.changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_by_name() {
        for name in ["a.tar", "a.tar.gz", "a.tgz", "a.tar.zst", "a.b.tzst"] {
            assert!(is_archive(name), "{name}");
        }
        for name in ["a.zip", "tar", ".tar", "a.tar.part", "a.tar~", "a.txt", "a.tar.minisig"] {
            assert!(!is_archive(name), "{name}");
        }
        assert!(is_list("images.txt") && !is_list(".txt") && !is_list("a.txt.bak"));
    }

    #[test]
    fn lists_of_images() {
        let list = "\u{feff}# edge images\n\nnginx\r\n  quay.io/team/app:1.2 # pinned\n\t\nnginx:latest\n";
        assert_eq!(
            references(list.as_bytes()).unwrap(),
            ["docker.io/library/nginx:latest", "quay.io/team/app:1.2", "docker.io/library/nginx:latest"]
        );
        assert!(references(b"").unwrap().is_empty());
        let bad = references(b"nginx\n\nnot a name\n").unwrap_err();
        assert!(bad.starts_with("line 3: invalid image name \"not a name\""), "{bad}");
        assert!(references(b"\xff\xfe").unwrap_err().starts_with("not text"));
        assert!(references("a\n".repeat(MOST_REFERENCES + 1).as_bytes()).unwrap_err().starts_with("more than"));
    }

    proptest::proptest! {
        #[test]
        fn any_list_is_read(content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = references(&content);
        }
    }

    #[test]
    fn settled_files() {
        let path = std::env::temp_dir().join(format!("coracle-settled-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let status = fs::status(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let at = |seconds: i64| UNIX_EPOCH + Duration::from_secs((status.changed.seconds + seconds) as u64);
        assert!(!is_settled(&status, at(1)));
        assert!(is_settled(&status, at(4)));
        assert!(is_settled(&status, at(-100)));
    }
}
