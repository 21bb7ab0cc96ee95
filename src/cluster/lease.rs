//! The node's sign of life: a Lease in `kube-node-lease`, renewed every ten seconds.

use super::context::Context;
use super::request::{self, Failure};
use super::{Connection, Machine};
use crate::sys::clock;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Where nodes' leases are.
const COLLECTION: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// How often a renewal is tried before the lease is looked at again.
const TRIES: u32 = 5;
/// Between attempts: at first, and at most (as kubelet).
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(7);

/// Until it is dropped.
pub(super) async fn run(context: &Arc<Context>, _machine: &Arc<dyn Machine>, connection: &Connection) {
    let mut node = context.node.subscribe();
    let seconds = context.config.lease_duration_seconds;
    // As kubelet: three renewals may be lost.
    let interval = Duration::from_secs(seconds.into()) / 4;
    let mut lease = None;
    loop {
        // A lease without an owner would outlive its Node.
        let uid = {
            let found = node.wait_for(|node| node.as_ref().is_some_and(|node| node.metadata.uid.is_some())).await;
            // The other end lives in the context.
            let Ok(found) = found else { return };
            found.as_ref().and_then(|node| node.metadata.uid.clone()).unwrap_or_default()
        };
        let begun = tokio::time::Instant::now();
        let wanted = Wanted { name: &context.node_name, uid: &uid, seconds };
        lease = Some(renewed(connection, &wanted, lease.take()).await);
        // As kubelet: up to a twenty-fifth longer, so that nodes that came up together do not stay together.
        let jitter = interval.mul_f64(f64::from(random() % 1000) / 25_000.0);
        tokio::select! {
            () = tokio::time::sleep_until(begun + interval + jitter) => {}
            // Another Node: the lease is to go with that one.
            Ok(_) = node.wait_for(|node| node.as_ref().is_some_and(|node| node.metadata.uid.as_ref() != Some(&uid))) => {}
        }
    }
}

/// What a lease is to say.
#[derive(Debug)]
struct Wanted<'a> {
    name: &'a str,
    uid: &'a str,
    seconds: u32,
}

/// The lease as the API server has it after it was renewed, or made; tries for ever.
async fn renewed(connection: &Connection, wanted: &Wanted<'_>, known: Option<Value>) -> Value {
    let path = format!("{COLLECTION}/{}", wanted.name);
    let mut known = known;
    let (mut tries, mut pause, mut told) = (0, FIRST_PAUSE, false);
    loop {
        let outcome = match known.take() {
            Some(lease) => {
                let outcome = request::put(connection, &path, &wanted.renew(lease.clone(), clock::wall())).await;
                tries += 1;
                // Whatever keeps a renewal from passing, the same lease may do next time; if not, a look at it tells.
                if outcome.as_ref().is_err_and(Failure::may_pass) && tries < TRIES {
                    known = Some(lease);
                }
                outcome
            }
            None => {
                tries = 0;
                match request::get(connection, &path).await {
                    Ok(found) => {
                        known = Some(found);
                        continue;
                    }
                    Err(failure) if failure.is_missing() => {
                        request::post(connection, COLLECTION, &wanted.renew(json!({}), clock::wall())).await
                    }
                    Err(failure) => Err(failure),
                }
            }
        };
        match outcome {
            Ok(lease) => return lease,
            // Somebody else wrote it, or removed it: look again.
            Err(failure) if failure.is_conflict() || (failure.is_missing() && tries > 0) => {}
            Err(failure) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("the node's lease cannot be renewed: {failure}");
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Wanted<'_> {
    /// What is to be sent of a lease; what others wrote into it stays.
    fn renew(&self, mut lease: Value, now: Timestamp) -> Value {
        if !lease.is_object() {
            lease = json!({});
        }
        lease["apiVersion"] = json!("coordination.k8s.io/v1");
        lease["kind"] = json!("Lease");
        for field in ["metadata", "spec"] {
            if !lease[field].is_object() {
                lease[field] = json!({});
            }
        }
        let metadata = &mut lease["metadata"];
        metadata["name"] = json!(self.name);
        metadata["namespace"] = json!("kube-node-lease");
        metadata["ownerReferences"] =
            json!([{ "apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self.uid }]);
        let spec = &mut lease["spec"];
        spec["holderIdentity"] = json!(self.name);
        spec["leaseDurationSeconds"] = json!(self.seconds);
        spec["renewTime"] = json!(now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string());
        lease
    }
}

/// Some number.
fn random() -> u32 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_lease_says_who_holds_it_and_keeps_what_others_wrote() {
        let wanted = Wanted { name: "n", uid: "u", seconds: 40 };
        let now = Timestamp::new(1_800_000_000, 123_456_789).unwrap();
        let made = wanted.renew(json!({}), now);
        assert_eq!(
            made,
            json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": { "name": "n", "namespace": "kube-node-lease",
                    "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u" }] },
                "spec": { "holderIdentity": "n", "leaseDurationSeconds": 40, "renewTime": "2027-01-15T08:00:00.123456Z" },
            })
        );
        let mut there = made;
        there["metadata"]["labels"] = json!({ "a": "b" });
        there["metadata"]["resourceVersion"] = json!("7");
        there["spec"]["leaseTransitions"] = json!(3);
        let after = Wanted { uid: "v", ..wanted }.renew(there, now);
        assert_eq!(
            (&after["metadata"]["labels"]["a"], &after["metadata"]["resourceVersion"]),
            (&json!("b"), &json!("7"))
        );
        assert_eq!(
            (&after["spec"]["leaseTransitions"], &after["metadata"]["ownerReferences"][0]["uid"]),
            (&json!(3), &json!("v"))
        );
        // Nothing that a server may answer makes it panic.
        for odd in [json!(null), json!([1]), json!({ "metadata": "x", "spec": [] })] {
            assert_eq!(wanted.renew(odd, now)["spec"]["holderIdentity"], "n");
        }
    }
}
