//! What bound pods are made from: ConfigMaps, Secrets, tokens of service accounts, services.
//!
//! ```text
//! Bound ─▶ wanted ─▶ objects   a watch for each ConfigMap and Secret that a pod refers to ─┐
//!                 ├▶ tokens    a request for each, again after most of its life            ├▶ desk ─▶ shelf (disk) ─▶ Supply
//!                    services  one watch ──────────────────────────────────────────────────┘
//! ```
//!
//! An API server that does not answer changes nothing: only what it says does, and what no pod refers to any more goes.

mod desk;
mod objects;
mod renewal;
mod schedule;
mod seal;
mod services;
mod shelf;
mod tokens;
mod wanted;

pub(super) use shelf::Shelf;

use super::context::Context;
use super::{Bound, Connection, Machine};
use crate::manifest::ObjectId;
use crate::pod::Supply;
use desk::Update;
use kube::runtime::watcher;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use wanted::Wanted;

/// Answers that wait to be written down; whoever has more of them waits.
const INBOX: usize = 64;

/// Until it is dropped.
pub(super) async fn run(context: &Arc<Context>, _machine: &Arc<dyn Machine>, connection: &Connection) {
    let shelf = Arc::clone(&context.shelf);
    // An error here means that the agent is shutting down.
    let Ok(loaded) = tokio::task::spawn_blocking(move || shelf.load()).await else { return };
    let (updates, mut inbox) = mpsc::channel(INBOX);
    let (claims, claimed) = watch::channel(BTreeMap::new());
    // Ends with this.
    let mut tasks = JoinSet::new();
    tasks.spawn(services::follow(connection.client.clone(), updates.clone()));
    tasks.spawn(tokens::follow(connection.client.clone(), claimed, loaded.held, updates.clone()));
    let (questions, asked) = mpsc::channel(INBOX);
    let node = context.node_name.clone();
    tasks.spawn(renewal::answer(connection.clone(), node, context.bound.subscribe(), asked));
    let mut session = Session {
        context: Arc::clone(context),
        connection: connection.clone(),
        supply: context.supply.borrow().as_deref().cloned().unwrap_or_default(),
        kept: loaded.names,
        wanted: Wanted::default(),
        watches: BTreeMap::new(),
        gates: Arc::default(),
        claims,
        updates,
        questions,
    };
    let mut bound = context.bound.subscribe();
    bound.mark_changed();
    let (mut known, mut listed) = (context.known.subscribe(), false);
    loop {
        // Cancel-safe: each arm waits on a channel, or for a task, and loses nothing that it has not handed out.
        tokio::select! {
            // What the disk says of pods may be old: of what no pod refers to any more the API server tells nothing.
            true = async { known.wait_for(|known| known.synced).await.is_ok() }, if !listed => listed = true,
            Ok(()) = bound.changed(), if listed => {
                let now = Arc::clone(&bound.borrow_and_update());
                session.want(&now, &mut tasks).await;
            }
            Some(update) = inbox.recv() => {
                let mut batch = vec![update];
                while let Ok(update) = inbox.try_recv() {
                    batch.push(update);
                }
                session.take(batch).await;
            }
            // That of an object which never changes.
            Some(_) = tasks.join_next() => {}
        }
    }
}

struct Session {
    context: Arc<Context>,
    connection: Connection,
    /// As it was published last.
    supply: Supply,
    /// Names of the records on disk that no pod may refer to.
    kept: BTreeSet<String>,
    wanted: Wanted,
    watches: BTreeMap<ObjectId, AbortHandle>,
    gates: Arc<objects::Gates>,
    claims: watch::Sender<BTreeMap<crate::pod::TokenId, wanted::Claim>>,
    updates: mpsc::Sender<Update>,
    questions: mpsc::Sender<renewal::Question>,
}

impl Session {
    /// These pods are bound now.
    async fn want(&mut self, bound: &Bound, tasks: &mut JoinSet<()>) {
        let mut wanted = Wanted::of(bound);
        if !bound.known {
            // Nothing follows from what is missing.
            wanted.objects.extend(std::mem::take(&mut self.wanted.objects));
            wanted.followed.extend(std::mem::take(&mut self.wanted.followed));
            wanted.tokens.extend(std::mem::take(&mut self.wanted.tokens));
        }
        let before: BTreeSet<ObjectId> = self.watches.keys().cloned().collect();
        let (new, gone) = wanted.changes(&before);
        for id in gone {
            if let Some(watch) = self.watches.remove(&id) {
                watch.abort();
            }
        }
        for id in new {
            let (client, gates) = (self.connection.client.clone(), Arc::clone(&self.gates));
            let (updates, questions) = (self.updates.clone(), self.questions.clone());
            let watch = tasks.spawn(objects::follow(client, id.clone(), gates, updates, questions));
            self.watches.insert(id, watch);
        }
        if wanted == self.wanted && self.kept.is_empty() {
            return;
        }
        self.claims.send_if_modified(|claims| std::mem::replace(claims, wanted.tokens.clone()) != wanted.tokens);
        self.wanted = wanted;
        if !bound.known {
            return;
        }
        let mut unwanted = shelf::unwanted(std::mem::take(&mut self.kept), &self.wanted);
        unwanted.extend(desk::release(&mut self.supply, &self.wanted));
        if !unwanted.is_empty() {
            let shelf = Arc::clone(&self.context.shelf);
            let _ = tokio::task::spawn_blocking(move || shelf.remove(&unwanted)).await;
            self.publish();
        }
    }

    /// The API server has answered: on the disk before it counts.
    async fn take(&mut self, mut batch: Vec<Update>) {
        batch.retain(|update| desk::is_wanted(update, &self.wanted) && desk::is_news(update, &self.supply));
        if batch.is_empty() {
            return;
        }
        let shelf = Arc::clone(&self.context.shelf);
        let written = tokio::task::spawn_blocking(move || {
            batch.iter().for_each(|update| shelf.keep(update));
            batch
        });
        let Ok(batch) = written.await else { return };
        for update in batch {
            desk::apply(&mut self.supply, update);
        }
        self.publish();
    }

    fn publish(&self) {
        self.context.supply.send_replace(Some(Arc::new(self.supply.clone())));
    }
}

/// Why the API server does not give something, where it says so: silence, and credentials that are not good any more, say
/// nothing.
fn refusal(error: &kube::Error) -> Option<String> {
    match error {
        kube::Error::Api(status) if matches!(status.code, 403 | 404) => Some(status.message.clone()),
        _ => None,
    }
}

fn refusal_of_watch(error: &watcher::Error) -> Option<String> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => refusal(error),
        watcher::Error::WatchError(status) if status.code == 403 => Some(status.message.clone()),
        _ => None,
    }
}
