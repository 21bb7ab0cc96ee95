//! Watches: what has changed since a list, and what changes from now on.
//!
//! No history is kept. A watch begins with what was listed, which is remembered for a minute, and tells the difference to
//! what is; then it follows. Who comes too late lists again (410), as with every API server.

use super::super::reply::{self, Failure, Reply};
use super::super::route::Query;
use super::list::Scope;
use super::object::{Key, Object};
use super::resource::Resource;
use crate::sys::clock;
use hyper::StatusCode;
use hyper::body::Bytes;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long a list is remembered. Clients watch at once after it.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How many lists are remembered.
const MOST: usize = 8;
/// Longest watch; the client begins another (as an API server: half an hour to an hour).
const LONGEST: Duration = Duration::from_secs(3600);

/// What was listed lately, for the watches that begin with it.
#[derive(Clone, Default)]
pub struct Lists(Arc<Mutex<VecDeque<Listed>>>);

impl std::fmt::Debug for Lists {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lists")
    }
}

struct Listed {
    at: Instant,
    revision: u64,
    resource: Resource,
    objects: Vec<Object>,
}

impl Lists {
    /// Remembers all objects of a kind as of a revision, for a while.
    pub(super) fn remember(&self, revision: u64, resource: Resource, objects: &[Object]) {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = lists.is_empty();
        lists.retain(|listed| (listed.revision, listed.resource) != (revision, resource));
        if lists.len() >= MOST {
            lists.pop_front();
        }
        lists.push_back(Listed { at: Instant::now(), revision, resource, objects: objects.to_vec() });
        drop(lists);
        // Somebody has to forget them, and only while there is something to forget.
        if is_first {
            tokio::spawn(self.clone().forget());
        }
    }

    async fn forget(self) {
        loop {
            let next = {
                let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                lists.retain(|listed| listed.at.elapsed() < REMEMBERED);
                let Some(oldest) = lists.front() else { return lists.shrink_to_fit() };
                oldest.at + REMEMBERED
            };
            tokio::time::sleep_until(next).await;
        }
    }

    fn recall(&self, revision: u64, resource: Resource) -> Option<Vec<Object>> {
        let lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = lists.iter().find(|listed| (listed.revision, listed.resource) == (revision, resource));
        listed.map(|listed| listed.objects.clone())
    }
}

/// What a watcher wants besides changes.
struct Wishes {
    /// Marks of how far it has come.
    bookmarks: bool,
    /// All there is comes first, and a mark after it (`sendInitialEvents`).
    initial: bool,
    /// When it ends.
    until: Instant,
}

/// Streams watch events, one JSON object a line. Without a resourceVersion everything there is comes first, as `ADDED`.
pub(super) fn watch(scope: Scope, query: &Query) -> Result<Reply, Failure> {
    let mut changes = scope.node.changes();
    let revision = *changes.borrow_and_update();
    let initial = query.flag("sendInitialEvents")?;
    let bookmarks = query.flag("allowWatchBookmarks")?;
    let length = query.number("timeoutSeconds")?.map_or(LONGEST, |n| Duration::from_secs(n.max(1)).min(LONGEST));
    let wishes = Wishes { bookmarks, initial: initial && bookmarks, until: Instant::now() + length };
    let mut known = Known::default();
    match query.get("resourceVersion") {
        None | Some("0") => {}
        _ if initial => {}
        Some(version) => {
            let asked: u64 = version
                .parse()
                .map_err(|_| Failure::bad_request(format!("invalid resource version {version:?}: not a number")))?;
            let before = if asked == revision {
                Some(scope.everything())
            } else {
                scope.node.lists().recall(asked, scope.view.resource)
            };
            let too_old = || Failure::gone(format!("too old resource version: {version} ({revision})"));
            known.take(scope.select(before.ok_or_else(too_old)?));
        }
    }
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut with_columns = true;
        let mut is_first = true;
        loop {
            let now = *changes.borrow_and_update();
            let mut lines = known.difference(&scope, scope.objects(), &mut with_columns);
            if std::mem::take(&mut is_first) && wishes.initial {
                push(&mut lines, "BOOKMARK", scope.view.bookmark(now, true));
            }
            if !lines.is_empty() && sender.send(Ok(Bytes::from(lines))).await.is_err() {
                return;
            }
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep_until(wishes.until) => break,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
        // Where it ends the next watch can begin.
        if wishes.bookmarks {
            let now = *changes.borrow();
            let everything = scope.everything();
            let mut lines = known.difference(&scope, scope.select(everything.clone()), &mut with_columns);
            scope.node.lists().remember(now, scope.view.resource, &everything);
            push(&mut lines, "BOOKMARK", scope.view.bookmark(now, false));
            // Who has left needs no mark.
            let _ = sender.send(Ok(Bytes::from(lines))).await;
        }
    });
    Ok(reply::with_type(StatusCode::OK, "application/json", reply::stream(receiver)))
}

/// What a watcher knows.
#[derive(Default)]
struct Known(BTreeMap<Key, Object>);

impl Known {
    fn take(&mut self, objects: Vec<Object>) {
        self.0 = objects.into_iter().map(|object| (object.key(), object)).collect();
    }

    /// What makes this into what is now, as lines of watch events; it is that then.
    fn difference(&mut self, scope: &Scope, now: Vec<Object>, with_columns: &mut bool) -> Vec<u8> {
        let at = clock::wall();
        let mut lines = Vec::new();
        let mut tell = |kind: &str, object: &Object| {
            push(&mut lines, kind, scope.view.one(object, std::mem::take(with_columns), at));
        };
        let mut now: BTreeMap<Key, Object> = now.into_iter().map(|object| (object.key(), object)).collect();
        for (_, gone) in self.0.iter().filter(|(key, _)| !now.contains_key(*key)) {
            tell("DELETED", gone);
        }
        for (key, object) in &mut now {
            match self.0.remove(key) {
                None => tell("ADDED", object),
                // What was told stays what changes are measured by.
                Some(old) if old.is_same(object) => *object = old,
                Some(_) => tell("MODIFIED", object),
            }
        }
        self.0 = now;
        lines
    }
}

fn push(lines: &mut Vec<u8>, kind: &str, object: Value) {
    lines.extend_from_slice(json!({"type": kind, "object": object}).to_string().as_bytes());
    lines.push(b'\n');
}
