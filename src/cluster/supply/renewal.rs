//! Whether what broke off may be begun anew: an API server refuses what no pod of this node refers to any more, and what is
//! known here of the pods may be old when a connection was lost.
//!
//! So the API server is asked for the pods first, once for all that broke off together.

use super::wanted::Wanted;
use crate::cluster::{Bound, Connection, request};
use crate::manifest::ObjectId;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// May this object be asked for again?
#[derive(Debug)]
pub struct Question {
    /// Which one.
    pub object: ObjectId,
    /// Yes or no; nothing if nobody knows.
    pub answer: oneshot::Sender<bool>,
}

/// Answers, until it is dropped.
pub async fn answer(
    connection: Connection,
    node: String,
    bound: watch::Receiver<Arc<Bound>>,
    mut questions: mpsc::Receiver<Question>,
) {
    let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
    while let Some(question) = questions.recv().await {
        let mut batch = vec![question];
        while let Ok(question) = questions.try_recv() {
            batch.push(question);
        }
        let pods = match request::list_metadata(&connection, &path).await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::debug!(%error, "it is not known which pods there are");
                continue;
            }
        };
        let wanted = wanted(&bound.borrow(), &stay(&pods));
        for question in batch {
            // Who does not listen has ended meanwhile.
            let _ = question.answer.send(wanted.contains(&question.object));
        }
    }
}

/// UIDs of those that are not to end.
fn stay(pods: &Value) -> BTreeSet<&str> {
    let all = pods["items"].as_array().into_iter().flatten().map(|pod| &pod["metadata"]);
    all.filter(|meta| meta["deletionTimestamp"].is_null()).filter_map(|meta| meta["uid"].as_str()).collect()
}

/// What these pods refer to.
fn wanted(bound: &Bound, stay: &BTreeSet<&str>) -> BTreeSet<ObjectId> {
    let stays = |pod: &&Arc<Pod>| pod.metadata.uid.as_deref().is_some_and(|uid| stay.contains(uid));
    let pods = bound.pods.iter().filter(stays).cloned().collect();
    Wanted::of(&Bound { pods, ..Bound::default() }).followed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn bound(names: &[&str]) -> Bound {
        let pod = |name: &&str| -> Arc<Pod> {
            let pod = json!({
                "metadata": {"name": name, "namespace": "n", "uid": format!("u-{name}")},
                "spec": {"containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": name}}]}]},
            });
            Arc::new(serde_json::from_value(pod).expect("pod"))
        };
        Bound { pods: names.iter().map(pod).collect(), ..Bound::default() }
    }

    #[test]
    fn only_what_pods_refer_to_that_stay_is_asked_for_again() {
        let pods = json!({"items": [
            {"metadata": {"uid": "u-a"}},
            {"metadata": {"uid": "u-ends", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
            {"metadata": {"uid": "u-new"}},
        ]});
        let wanted = wanted(&bound(&["a", "ends", "gone"]), &stay(&pods));
        assert_eq!(wanted.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ConfigMap n/a"]);
    }

    proptest! {
        #[test]
        fn any_answer_is_read(text in "\\PC{0,20}", number in any::<i64>()) {
            for items in [json!(text), json!([number]), json!([{"metadata": text}]), json!([{"metadata": {"uid": number}}])] {
                let pods = json!({"items": items});
                prop_assert!(wanted(&bound(&["a"]), &stay(&pods)).is_empty());
            }
        }
    }
}
