//! Statuses of pods, and the ends of those that the API server wants gone.

use super::context::Context;
use super::{Connection, Machine};
use std::sync::Arc;

/// Until it is dropped.
pub(super) async fn run(_context: &Arc<Context>, _machine: &Arc<dyn Machine>, _connection: &Connection) {
    std::future::pending().await
}
