//! What bound pods are made from: ConfigMaps, Secrets, tokens of service accounts, services.

use super::context::Context;
use super::{Connection, Machine};
use std::sync::Arc;

/// Until it is dropped.
pub(super) async fn run(_context: &Arc<Context>, _machine: &Arc<dyn Machine>, _connection: &Connection) {
    std::future::pending().await
}
