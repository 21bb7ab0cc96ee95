//! Keeps a [`Directory`] up to date: inotify for speed, a rescan now and then for certainty.

use super::{Directory, Options, Snapshot};
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, INotifyWatcher, RecursiveMode, Watcher};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// While a directory cannot be watched (it does not exist yet) it is looked for this often.
const SEARCH: Duration = Duration::from_millis(500);
/// Rescans are no more frequent than this.
const MIN_RESCAN: Duration = Duration::from_millis(100);

/// Records are written this long after a change, when the burst of files that it may be part of is over: waiting for the
/// disk would hold up the next file, and until then the manifest itself is the record.
const SAVE_DELAY: Duration = Duration::from_millis(200);

/// Asks a running source to look again.
#[derive(Debug, Clone)]
pub struct Rescan(Sender<Wake>);

impl Rescan {
    /// Look now; returns at once.
    pub fn now(&self) {
        // It only fails when the source is gone, and then there is nothing to look at.
        let _ = self.0.send(Wake::Now);
    }
}

/// Watches a directory on a thread of its own, and looks at it every `rescan` besides. The first scan is done before this returns, and the thread
/// ends when all receivers are dropped. A change is in a new snapshot as soon as its file was closed or moved into place.
///
/// # Errors
/// When no thread can be started. A directory that does not exist is none: the source is unhealthy until it does.
pub fn watch(options: Options, rescan: Duration) -> io::Result<(tokio::sync::watch::Receiver<Arc<Snapshot>>, Rescan)> {
    let (wake, wakes) = channel();
    let mut watching = Watching {
        directory: Directory::new(options),
        armed: None,
        wake: wake.clone(),
        rescan: rescan.max(MIN_RESCAN),
        warned: false,
    };
    // Watched before it is read: what changes in between is seen twice rather than never.
    watching.arm();
    let (publish, snapshots) = tokio::sync::watch::channel(Arc::new(watching.directory.scan()));
    thread::Builder::new().name("source".to_owned()).spawn(move || watching.run(&wakes, &publish))?;
    Ok((snapshots, Rescan(wake)))
}

/// Why to look.
#[derive(Debug)]
enum Wake {
    /// This file is being written: not yet.
    Begun(String),
    /// This file was closed, moved or removed.
    Ended(String),
    /// Something else about this file changed.
    Touched(String),
    /// The directory itself was moved or removed.
    Lost,
    /// Someone asks, or events were lost.
    Now,
}

struct Watching {
    directory: Directory,
    armed: Option<Armed>,
    wake: Sender<Wake>,
    rescan: Duration,
    /// Whether the log says that the directory cannot be watched.
    warned: bool,
}

/// A watch on a folder, as long as it is that folder.
struct Armed {
    _watcher: INotifyWatcher,
    folder: PathBuf,
    identity: (u64, u64),
}

impl Watching {
    fn run(mut self, wakes: &Receiver<Wake>, publish: &tokio::sync::watch::Sender<Arc<Snapshot>>) {
        let mut look_at = Instant::now() + self.next();
        let mut save_at = self.directory.is_unsaved().then(|| Instant::now() + SAVE_DELAY);
        while !publish.is_closed() {
            let wait = save_at.map_or(look_at, |save| save.min(look_at)).saturating_duration_since(Instant::now());
            let mut look = false;
            match wakes.recv_timeout(wait) {
                Ok(wake) => {
                    look |= self.take(wake);
                    // Many files dropped at once are one scan.
                    while let Ok(wake) = wakes.try_recv() {
                        look |= self.take(wake);
                    }
                    if !look {
                        look_at = look_at.min(Instant::now() + self.directory.settle());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if look || Instant::now() >= look_at {
                self.arm();
                let snapshot = self.directory.scan();
                publish.send_if_modified(|current| {
                    let changed = **current != snapshot;
                    if changed {
                        *current = Arc::new(snapshot);
                    }
                    changed
                });
                look_at = Instant::now() + self.next();
            }
            if !self.directory.is_unsaved() {
                save_at = None;
            } else if save_at.is_some_and(|save| Instant::now() >= save) {
                // What fails is tried again after the next scan.
                self.save();
                save_at = None;
            } else {
                save_at = save_at.or_else(|| Some(Instant::now() + SAVE_DELAY));
            }
        }
    }

    /// How long to wait when nothing happens.
    fn next(&self) -> Duration {
        let search = if self.armed.is_none() { SEARCH } else { self.rescan };
        let retry = self.directory.retry_in().unwrap_or(self.rescan);
        search.min(retry).min(self.rescan)
    }

    /// Notes what happened; returns whether to look now.
    fn take(&mut self, wake: Wake) -> bool {
        match wake {
            Wake::Begun(name) => {
                self.directory.begin_writing(&name);
                return false;
            }
            Wake::Ended(name) => self.directory.end_writing(&name),
            Wake::Touched(name) => self.directory.forget(&name),
            Wake::Lost => self.armed = None,
            Wake::Now => {}
        }
        true
    }

    /// Watches the folder, also when another one has taken its place.
    fn arm(&mut self) {
        let folder = self.directory.folder();
        let identity = match fs::metadata(&folder) {
            Ok(metadata) if metadata.is_dir() => (metadata.dev(), metadata.ino()),
            _ => {
                self.armed = None;
                return;
            }
        };
        if self.armed.as_ref().is_some_and(|armed| armed.identity == identity && armed.folder == folder) {
            return;
        }
        self.armed = None;
        match watcher(&folder, self.wake.clone()) {
            Ok(watcher) => {
                self.armed = Some(Armed { _watcher: watcher, folder, identity });
                self.warned = false;
            }
            Err(error) if !self.warned => {
                self.warned = true;
                let path = self.directory.path();
                tracing::warn!(path = %path.display(), %error, "cannot watch the manifests: looking every half second");
            }
            Err(_) => {}
        }
    }

    fn save(&mut self) {
        if let Err(error) = self.directory.save() {
            tracing::warn!(%error, "cannot record the last known good pods: a restart depends on the manifests alone");
        }
    }
}

fn watcher(folder: &Path, wake: Sender<Wake>) -> notify::Result<INotifyWatcher> {
    let root = folder.to_owned();
    let handler = move |event: notify::Result<Event>| {
        let wakes = match event {
            Ok(event) => read(&event, &root),
            Err(_) => vec![Wake::Now],
        };
        for each in wakes {
            // It only fails when the source is gone.
            let _ = wake.send(each);
        }
    };
    let mut watcher = INotifyWatcher::new(handler, notify::Config::default())?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// What an event means. Mere reading, above all our own, means nothing.
fn read(event: &Event, root: &Path) -> Vec<Wake> {
    if event.need_rescan() {
        return vec![Wake::Now];
    }
    let of_file = |path: &PathBuf| -> Option<Wake> {
        if path == root {
            return match event.kind {
                EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => Some(Wake::Lost),
                // Who may write to it.
                EventKind::Modify(ModifyKind::Metadata(_)) => Some(Wake::Now),
                _ => None,
            };
        }
        let name = path.file_name()?.to_str()?.to_owned();
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Wake::Ended(name)),
            EventKind::Access(_) => None,
            // A link is whole as soon as it is there.
            EventKind::Create(_) => match fs::symlink_metadata(path) {
                Ok(metadata) if metadata.is_file() => Some(Wake::Begun(name)),
                _ => Some(Wake::Ended(name)),
            },
            EventKind::Modify(ModifyKind::Data(_)) => Some(Wake::Begun(name)),
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => Some(Wake::Ended(name)),
            _ => Some(Wake::Touched(name)),
        }
    };
    event.paths.iter().filter_map(of_file).collect()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
