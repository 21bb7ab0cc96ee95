//! Changes in folders: names that appear and vanish.

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Number of a watched folder.
pub type Watch = i32;

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// In this folder; -1 when more happened than the kernel remembers.
    pub folder: Watch,
    /// To this name; `None` when it is about the folder itself.
    pub name: Option<OsString>,
}

/// A non-blocking descriptor that is readable when there are events.
///
/// # Errors
/// `EMFILE` when this user has too many (`fs.inotify.max_user_instances`).
pub fn open() -> io::Result<OwnedFd> {
    Ok(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)
}

/// Watches `folder`, a directory and no link. One that is watched already keeps its number.
///
/// # Errors
/// When it is none, or `ENOSPC` when there are too many (`fs.inotify.max_user_watches`).
pub fn watch(events: impl AsFd, folder: &Path) -> io::Result<Watch> {
    let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
    let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
    Ok(inotify::add_watch(events, folder, flags | itself)?)
}

/// Ends a watch; none is no error, as it goes with its folder.
pub fn forget(events: impl AsFd, watch: Watch) {
    let _ = inotify::remove_watch(events, watch);
}

/// Takes all events that there are.
///
/// # Errors
/// When the descriptor is not one of [`open`].
pub fn drain(events: impl AsFd) -> io::Result<Vec<Event>> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(events, &mut buffer);
    let mut taken = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => taken.push(Event {
                folder: event.wd(),
                name: event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned()),
            }),
            Err(Errno::AGAIN) => return Ok(taken),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_that_appear_and_vanish_are_told() {
        let dir = std::env::temp_dir().join(format!("coracle-inotify-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("folder");
        let events = open().expect("inotify");
        let folder = watch(&events, &dir).expect("watch");
        assert_eq!(watch(&events, &dir).expect("again"), folder);
        assert_eq!(drain(&events).expect("nothing yet"), []);
        fs::write(dir.join("a"), "").expect("file");
        fs::remove_file(dir.join("a")).expect("remove");
        let named = Event { folder, name: Some("a".into()) };
        assert_eq!(drain(&events).expect("two"), [named.clone(), named]);
        forget(&events, folder);
        drain(&events).expect("the end of the watch");
        fs::remove_dir(&dir).expect("remove");
        assert_eq!(drain(&events).expect("nothing more"), []);
        assert!(watch(&events, &dir).is_err());
    }
}
