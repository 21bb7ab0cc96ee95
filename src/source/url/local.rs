//! `file://` URLs: a manifest or an archive in a file, with the promises of a URL: a file that is gone takes nothing along.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, INotifyWatcher, RecursiveMode, Watcher};

use super::super::permissions::{self, Permissions};
use super::super::signature::SignatureError;
use super::Wake;
use super::answer::{Content, Failure, Kind, Verdict, content};
use crate::http;
use crate::http::kept::Stamp;
use crate::manifest;
use crate::minisign::{EXTENSION, LARGEST_SIGNATURE};
use crate::sys;

/// A file that was changed this recently may be half-written, unless its writer is known to have closed it.
const SETTLE: Duration = Duration::from_secs(1);

/// A file that is followed.
#[derive(Debug)]
pub(super) struct Local {
    path: PathBuf,
    permissions: Permissions,
    /// Its state when it was read last.
    seen: Option<Stamp>,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    _watcher: INotifyWatcher,
    /// Of the folder that is watched.
    identity: (u64, u64),
}

/// What became of reading it.
pub(super) enum Look {
    /// It may be half-written: to be looked at again after this time.
    Later(Duration),
    /// With what people should know about it.
    Told(Verdict, Option<String>),
}

impl Local {
    /// For a `file://` URL.
    pub(super) fn new(url: &str, permissions: Permissions) -> Local {
        let path = http::decoded(url.strip_prefix("file://").unwrap_or(url));
        Local { path: PathBuf::from(OsString::from_vec(path)), permissions, seen: None, watch: None }
    }

    /// It has to be read again, whether or not it changes.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    /// Has `wake` told when it, or its signature, is closed by who wrote it, moved or removed.
    pub(super) fn follow(&mut self, wake: &Sender<Wake>) {
        let folder = self.path.parent().unwrap_or(&self.path);
        let identity = fs::metadata(folder).map(|folder| (folder.dev(), folder.ino())).ok();
        if self.watch.as_ref().map(|watch| watch.identity) == identity {
            return;
        }
        // Without a watch it is looked at as often as a server would be asked.
        self.watch = identity.and_then(|identity| {
            let watcher = watcher(folder, &self.path, wake.clone()).ok()?;
            Some(Watch { _watcher: watcher, identity })
        });
    }

    /// Reads it if it changed; `ended`: its writer has closed it.
    pub(super) fn look(&mut self, ended: bool) -> Look {
        let failed = |reason: String| Look::Told(Verdict::Failed(Failure::new(Kind::File, reason)), None);
        let meta = match fs::metadata(&self.path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return failed("is not a regular file".to_owned()),
            Err(error) => return failed(format!("cannot be read: {error}")),
        };
        let objection = match self.permissions {
            Permissions::Ignore => None,
            Permissions::Warn | Permissions::Refuse => permissions::file_objection(&self.path, &meta),
        };
        if let (Permissions::Refuse, Some(objection)) = (self.permissions, &objection) {
            return failed(objection.clone());
        }
        let stamp = || Stamp::of(&self.path).ok().flatten();
        let before = stamp();
        if !ended && before.is_some() && before == self.seen {
            return Look::Told(Verdict::Unchanged, objection);
        }
        if !ended && let Some(wait) = unsettled(&meta) {
            return Look::Later(wait);
        }
        let limit = manifest::MAX_BYTES as u64 - 1;
        let bytes = match sys::fs::read_limited(&self.path, limit) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return failed(format!("is longer than the limit of {limit} bytes"));
            }
            Err(error) => return failed(format!("cannot be read: {error}")),
        };
        if stamp() != before {
            return Look::Later(SETTLE);
        }
        let verdict = match content(&bytes) {
            Content::Empty => Verdict::Failed(Failure::new(
                Kind::Empty,
                "is empty; to remove all pods of it, write a list without items (kind: PodList, items: [])",
            )),
            Content::Html => Verdict::Failed(Failure::new(Kind::Html, "is a page of HTML or XML, not a manifest")),
            _ => {
                self.seen = before;
                Verdict::Document(bytes, http::Conditions::default())
            }
        };
        Look::Told(verdict, objection)
    }

    /// The signature beside it.
    pub(super) fn signature(&self) -> Result<Vec<u8>, SignatureError> {
        let mut path = self.path.clone().into_os_string();
        path.push(EXTENSION);
        let path = PathBuf::from(path);
        sys::fs::read_limited(&path, LARGEST_SIGNATURE).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SignatureError::Missing(path.display().to_string()),
            _ => SignatureError::Unreadable(error.to_string()),
        })
    }
}

/// How long until the last change is old enough. One in the future is: the clock was set back.
fn unsettled(meta: &fs::Metadata) -> Option<Duration> {
    let age = match SystemTime::now().duration_since(meta.modified().ok()?) {
        Ok(age) => age,
        Err(ahead) if ahead.duration() < SETTLE => Duration::ZERO,
        Err(_) => return None,
    };
    SETTLE.checked_sub(age).filter(|wait| !wait.is_zero())
}

fn watcher(folder: &Path, file: &Path, wake: Sender<Wake>) -> notify::Result<INotifyWatcher> {
    let name = file.file_name().map(OsString::from).unwrap_or_default();
    let mut signature = name.clone();
    signature.push(EXTENSION);
    let handler = move |event: notify::Result<Event>| {
        let told = match event {
            Err(_) => true,
            Ok(event) => {
                let ended = matches!(
                    event.kind,
                    EventKind::Access(AccessKind::Close(AccessMode::Write))
                        | EventKind::Modify(ModifyKind::Name(_))
                        | EventKind::Remove(_)
                );
                let ours = |path: &PathBuf| {
                    path.file_name().is_some_and(|other| other == name.as_os_str() || other == signature.as_os_str())
                };
                event.need_rescan() || (ended && event.paths.iter().any(ours))
            }
        };
        if told {
            // It only fails when the source is gone.
            let _ = wake.send(Wake::Ended);
        }
    };
    let mut watcher = INotifyWatcher::new(handler, notify::Config::default())?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
