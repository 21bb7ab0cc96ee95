//! All that goes on over one connection.

use super::context::Context;
use super::{Connection, Machine, events, lease, mirror, node, pods, serving, status, supply};
use std::sync::Arc;

/// Until it is dropped: each of its tasks goes on through errors by itself.
pub(super) async fn run(context: &Arc<Context>, machine: &Arc<dyn Machine>, connection: &Connection) {
    tokio::join!(
        node::run(context, machine, connection),
        lease::run(context, machine, connection),
        pods::run(context, machine, connection),
        serving::run(context, machine, connection),
        supply::run(context, machine, connection),
        mirror::run(context, machine, connection),
        status::run(context, machine, connection),
        events::run(context, machine, connection),
    );
}
