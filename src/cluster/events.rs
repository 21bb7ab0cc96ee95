//! The agent's events, sent to the API server: coalesced, few, and none twice.

mod correlate;
mod ledger;
mod rate;

pub(super) use ledger::Ledger;

use super::context::Context;
use super::rate::Rate;
use super::request::{self, MERGE};
use super::{Connection, Machine};
use crate::sys::clock;
use ledger::{collection, object, patch, path};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// After a look, so that what happens together is told together.
const GATHER: Duration = Duration::from_millis(200);
/// Between attempts while the API server is not well: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long events wait for the Node, whose uid they may name.
const NODE: Duration = Duration::from_secs(10);

/// Until it is dropped.
pub(super) async fn run(context: &Arc<Context>, machine: &Arc<dyn Machine>, connection: &Connection) {
    let mut changes = machine.changes();
    let mut node = context.node.subscribe();
    // The session may begin with a node that is not registered, and never will be by itself.
    let _ = timeout(NODE, node.wait_for(|node| uid(node.as_deref()).is_some())).await;
    let (per_second, burst) = context.config.event_rate;
    let mut rate = Rate::new(per_second, burst);
    let mut pause = FIRST_PAUSE;
    loop {
        let next = {
            let mut ledger = context.events.lock().unwrap_or_else(PoisonError::into_inner);
            let new = machine.events_after(ledger.seen());
            ledger.take_in(new);
            ledger.next(clock::wall()).ok_or_else(|| ledger.next_try())
        };
        let next = match next {
            Ok(next) => next,
            Err(retry) => {
                let retry = async {
                    match retry {
                        Some(at) => sleep(Duration::try_from(at - clock::wall()).unwrap_or_default()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    Ok(()) = changes.changed() => sleep(GATHER).await,
                    () = retry => {}
                }
                continue;
            }
        };
        sleep(Duration::try_from(rate.take(clock::now())).unwrap_or_default()).await;
        node.mark_unchanged();
        let outcome = match next.is_known {
            true => request::patch(connection, &path(&next.event), MERGE, &patch(&next.event)).await,
            false => {
                let uid = uid(context.node.borrow().as_deref()).map(str::to_owned);
                let object = object(&next.event, &context.node_name, uid.as_deref());
                request::post(connection, &collection(&next.event), &object).await
            }
        };
        let outcome = outcome.map(drop);
        let is_well = {
            let mut ledger = context.events.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.done(&next, &outcome, clock::wall())
        };
        if is_well {
            pause = FIRST_PAUSE;
            continue;
        }
        let failure = outcome.err();
        let is_lost = failure.as_ref().is_some_and(|failure| failure.code() == 0);
        tokio::select! {
            () = sleep(failure.and_then(|failure| failure.after()).unwrap_or(pause)) => {}
            // There is an answer again, to somebody else.
            Ok(()) = node.changed(), if is_lost => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn uid(node: Option<&k8s_openapi::api::core::v1::Node>) -> Option<&str> {
    node?.metadata.uid.as_deref()
}
