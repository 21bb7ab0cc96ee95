//! What bound pods need. Pure.

use crate::cluster::Bound;
use crate::manifest::ObjectId;
use crate::pod::supply::{self, TokenId};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};

/// What the pods of this node refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// ConfigMaps and Secrets.
    pub objects: BTreeSet<ObjectId>,
    /// Those of them whose changes matter: what only pods refer to that are to end stays as it is (as kubelet), so that nothing
    /// is asked for when the API server forgets such a pod.
    pub followed: BTreeSet<ObjectId>,
    /// Tokens, and whose they are.
    pub tokens: BTreeMap<TokenId, Claim>,
}

/// Whose a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Of the pod and its service account.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The service account's name.
    pub account: String,
}

impl Wanted {
    /// A pod that has ended needs nothing any more: the API server would refuse it.
    pub fn of(bound: &Bound) -> Wanted {
        let mut wanted = Wanted::default();
        for pod in bound.pods.iter().filter(|pod| !has_ended(pod)) {
            let objects = supply::objects(pod);
            if pod.metadata.deletion_timestamp.is_none() {
                wanted.followed.extend(objects.iter().cloned());
            }
            wanted.objects.extend(objects);
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let account = text(&pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()));
            let claim = || Claim {
                namespace: text(&pod.metadata.namespace),
                pod: text(&pod.metadata.name),
                account: account.clone(),
            };
            wanted.tokens.extend(supply::tokens(pod).into_iter().map(|id| (id, claim())));
        }
        wanted
    }

    /// The objects that were not followed `before`, and those that are not any more.
    pub fn changes(&self, before: &BTreeSet<ObjectId>) -> (Vec<ObjectId>, Vec<ObjectId>) {
        let new = self.followed.difference(before).cloned().collect();
        let gone = before.difference(&self.followed).cloned().collect();
        (new, gone)
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ObjectKind;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::Arc;

    fn pod(name: &str, phase: &str) -> Arc<Pod> {
        let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}});
        let pod = json!({
            "metadata": {"name": name, "namespace": "n", "uid": format!("u-{name}")},
            "spec": {
                "serviceAccountName": "sa",
                "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "shared"}}, {"secretRef": {"name": name}}]}],
                "volumes": [{"name": "v", "projected": {"sources": [token]}}],
            },
            "status": {"phase": phase},
        });
        Arc::new(serde_json::from_value(pod).expect("pod"))
    }

    #[test]
    fn what_ended_pods_had_is_not_wanted() {
        let bound =
            Bound { pods: vec![pod("a", "Running"), pod("b", "Failed"), pod("c", "Pending")], ..Bound::default() };
        let wanted = Wanted::of(&bound);
        let objects: Vec<String> = wanted.objects.iter().map(ToString::to_string).collect();
        assert_eq!(objects, ["ConfigMap n/shared", "Secret n/a", "Secret n/c"]);
        let tokens: Vec<(&str, &str, &str)> = wanted
            .tokens
            .iter()
            .map(|(id, claim)| (id.pod.as_str(), claim.pod.as_str(), claim.account.as_str()))
            .collect();
        assert_eq!(tokens, [("u-a", "a", "sa"), ("u-c", "c", "sa")]);
    }

    #[test]
    fn what_pods_have_that_are_to_end_is_kept_but_not_followed() {
        let mut ends = Pod::clone(&pod("b", "Running"));
        ends.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("time"));
        let wanted = Wanted::of(&Bound { pods: vec![pod("a", "Running"), Arc::new(ends)], ..Bound::default() });
        let names = |ids: &BTreeSet<ObjectId>| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&wanted.objects), ["ConfigMap n/shared", "Secret n/a", "Secret n/b"]);
        assert_eq!(names(&wanted.followed), ["ConfigMap n/shared", "Secret n/a"]);
        assert_eq!(wanted.tokens.len(), 2, "it may need a token until it has ended");
    }

    proptest! {
        #[test]
        fn changes_lead_from_before_to_now(
            before in proptest::collection::btree_set("[a-e]", 0..5), now in proptest::collection::btree_set("[a-e]", 0..5),
        ) {
            let ids = |names: &BTreeSet<String>| -> BTreeSet<ObjectId> {
                let id = |name: &String| ObjectId { kind: ObjectKind::Secret, namespace: "n".into(), name: name.clone() };
                names.iter().map(id).collect()
            };
            let (mut all, wanted) = (ids(&before), Wanted { followed: ids(&now), ..Wanted::default() });
            let (new, gone) = wanted.changes(&all);
            prop_assert!(new.iter().all(|id| !all.contains(id)));
            for id in &gone {
                prop_assert!(all.remove(id));
            }
            all.extend(new);
            prop_assert_eq!(all, wanted.followed);
        }
    }
}
