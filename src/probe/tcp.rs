//! `tcpSocket`: success is a connection.

use super::connect::connect;
use super::{Answer, Target, address};
use k8s_openapi::api::core::v1::TCPSocketAction;
use std::time::Duration;

pub(super) async fn probe(action: &TCPSocketAction, target: &Target, timeout: Duration) -> Answer {
    let host = address::host(action.host.as_deref(), target);
    let port = match address::port(&action.port, target) {
        Ok(port) => port,
        Err(error) => return Answer::Error(error),
    };
    // Closed in peace: a reset would be an error in the server's log, once a period.
    match tokio::time::timeout(timeout, connect(&host, port)).await {
        Ok(Ok(_open)) => Answer::Success,
        Ok(Err(error)) => Answer::Failure(error),
        Err(_) => Answer::Failure(format!("dial tcp {}: i/o timeout", address::join(&host, port))),
    }
}
