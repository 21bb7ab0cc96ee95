//! Tokens of service accounts: asked for, and asked for again in time. One that cannot be renewed stays as it is: a pod on a
//! node without its API server has no use for another.

use super::desk::{Held, Update};
use super::schedule::{self, Life};
use super::wanted::Claim;
use crate::causes::chain;
use crate::pod::supply::{Token, TokenId};
use crate::sys::clock;
use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Most requests at a time.
const TURNS: usize = 8;
/// How long an answer may take.
const REQUEST: Duration = Duration::from_secs(10);
/// The clock is looked at this often at least: somebody may set it.
const LOOK: Duration = Duration::from_secs(300);

/// A token that could not be had.
struct Failure {
    /// In a row.
    count: u32,
    /// By the agent's time.
    retry_at: Timestamp,
}

/// Tells of tokens, until it is dropped.
pub async fn follow(
    client: Client,
    mut claims: watch::Receiver<BTreeMap<TokenId, Claim>>,
    mut held: BTreeMap<TokenId, Held>,
    updates: mpsc::Sender<Update>,
) {
    let mut failures: BTreeMap<TokenId, Failure> = BTreeMap::new();
    let mut asked: BTreeSet<TokenId> = BTreeSet::new();
    let mut requests = JoinSet::new();
    loop {
        let wanted = claims.borrow_and_update().clone();
        failures.retain(|id, _| wanted.contains_key(id));
        let (now, wall) = (clock::now(), clock::wall());
        let mut pause = LOOK;
        for (id, claim) in &wanted {
            if asked.contains(id) {
                continue;
            }
            let wait = match (failures.get(id), held.get(id)) {
                (Some(failure), _) => clock::until(failure.retry_at),
                (None, Some(held)) if !held.life.is_due(spread(held), wall) => {
                    let wait = held.life.refresh_at(spread(held)).duration_since(wall);
                    Duration::try_from(wait).unwrap_or_default()
                }
                (None, _) => Duration::ZERO,
            };
            if !wait.is_zero() {
                pause = pause.min(wait);
            } else if asked.len() < TURNS {
                asked.insert(id.clone());
                requests.spawn(request(client.clone(), id.clone(), claim.clone()));
            }
        }
        let update = tokio::select! {
            changed = claims.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => continue,
            Some(ended) = requests.join_next() => {
                // A task that is no more was this one's.
                let Ok((id, result)) = ended else { continue };
                asked.remove(&id);
                match result {
                    Ok(new) => {
                        failures.remove(&id);
                        held.insert(id.clone(), new.clone());
                        Update::Token(id, Ok(new))
                    }
                    Err(why) => {
                        let count = failures.get(&id).map_or(0, |failure| failure.count).saturating_add(1);
                        let pause = schedule::pause(count, schedule::spread_of(id.pod.as_bytes()));
                        let retry_at = now.checked_add(pause).unwrap_or(now);
                        failures.insert(id.clone(), Failure { count, retry_at });
                        tracing::warn!(pod = id.pod, audience = id.audience, why, "there is no token");
                        Update::Token(id, Err(why))
                    }
                }
            }
        };
        held.retain(|id, _| wanted.contains_key(id));
        if updates.send(update).await.is_err() {
            return;
        }
    }
}

/// Another number for each token, the same at each look.
fn spread(held: &Held) -> u64 {
    schedule::spread_of(held.token.0.as_bytes())
}

async fn request(client: Client, id: TokenId, claim: Claim) -> (TokenId, Result<Held, String>) {
    let result = ask(client, &id, &claim).await;
    (id, result)
}

async fn ask(client: Client, id: &TokenId, claim: &Claim) -> Result<Held, String> {
    if claim.account.is_empty() {
        return Err("the pod has no service account".to_owned());
    }
    let resource = ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: "ServiceAccount".to_owned(),
        plural: "serviceaccounts".to_owned(),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(client, &claim.namespace, &resource);
    let (body, params) = (body(id, claim), PostParams::default());
    let begun = clock::wall();
    let answer = api.create_subresource::<Value, Value>("token", &claim.account, &params, &body);
    match tokio::time::timeout(REQUEST, answer).await {
        Ok(Ok(answer)) => read(&answer, id, begun),
        Ok(Err(error)) => Err(super::refusal(&error).unwrap_or_else(|| chain(&error))),
        Err(_) => Err(format!("no answer within {} seconds", REQUEST.as_secs())),
    }
}

/// Bound to the pod, so that it is worth nothing when the pod is gone.
fn body(id: &TokenId, claim: &Claim) -> Value {
    let audiences: Vec<&str> = [id.audience.as_str()].into_iter().filter(|audience| !audience.is_empty()).collect();
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": {"name": claim.account, "namespace": claim.namespace},
        "spec": {
            "audiences": audiences,
            "expirationSeconds": id.expiration_seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": claim.pod, "uid": id.pod},
        },
    })
}

/// Says nothing of the answer when it is none.
fn read(answer: &Value, id: &TokenId, begun: Timestamp) -> Result<Held, String> {
    let token = answer.pointer("/status/token").and_then(Value::as_str).filter(|token| !token.is_empty());
    let token = token.ok_or("the API server's answer holds no token")?;
    // It may have given less, or more, than was asked for.
    let seconds = answer.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(id.expiration_seconds);
    Ok(Held { token: Token(token.to_owned()), life: Life { begun, seconds } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_for_one_pod_and_one_audience() {
        let mut id = TokenId { pod: "u".into(), audience: "vault".into(), expiration_seconds: 600 };
        let claim = Claim { namespace: "n".into(), pod: "p".into(), account: "sa".into() };
        let spec = json!({
            "audiences": ["vault"], "expirationSeconds": 600,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"},
        });
        assert_eq!(body(&id, &claim)["spec"], spec);
        id.audience.clear();
        assert_eq!(body(&id, &claim)["spec"]["audiences"], json!([]));
    }

    #[test]
    fn the_answer_decides_how_long_it_is_good() {
        let id = TokenId { pod: "u".into(), audience: String::new(), expiration_seconds: 600 };
        let begun = Timestamp::UNIX_EPOCH;
        let answer = json!({"spec": {"expirationSeconds": 3607}, "status": {"token": "t"}});
        let held = read(&answer, &id, begun).unwrap();
        assert_eq!((held.token, held.life.seconds), (Token("t".into()), 3607));
        assert_eq!(read(&json!({"status": {"token": "t"}}), &id, begun).unwrap().life.seconds, 600);
        for bad in
            [json!(null), json!({}), json!({"status": {"token": ""}}), json!({"status": {"token": 7}}), json!([])]
        {
            assert_eq!(read(&bad, &id, begun).unwrap_err(), "the API server's answer holds no token");
        }
    }
}
