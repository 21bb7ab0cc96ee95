//! Port-forward, for the local API and the node API alike.

use super::Node;
use super::exec::{Named, refuse};
use super::reply::{self, Failure, Reply};
use crate::stream::{self, forward};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use std::sync::Arc;

/// Answers a request to forward ports; the client is left to the streams' thread.
pub(super) fn forward(
    node: &Arc<dyn Node>,
    named: &Named<'_>,
    mut request: Request<Incoming>,
) -> Result<Reply, Failure> {
    let pod = named.pod(node.as_ref())?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if matches!(phase, "Succeeded" | "Failed") {
        // kubectl's words.
        let text = format!("unable to forward port because pod is not running. Current status={phase}");
        return Err(Failure::bad_request(text));
    }
    let network = node.network(named.namespace, &name).map_err(Failure::not_found)?;
    match forward::upgrade(&mut request, node.config().server.streaming_idle) {
        Ok((answer, client)) => {
            stream::spawn(client.serve(forward::Place { network, pod: name }));
            Ok(answer.map(|()| reply::bytes(Bytes::new())))
        }
        Err(refused) => refuse(&refused),
    }
}
