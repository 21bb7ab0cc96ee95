//! Types that only bound pods have: static pods are refused for the fields that hold them.

use super::Support::{Refused, Works};
use super::{Field, Group, When, proof};

const STATIC: &str = "as the field that it is in";

const fn bound(name: &'static str, proof: &'static str) -> Field {
    // The field around it is what a manifest is refused for: this one would only repeat it.
    Field { name, support: Refused(When::Apart, STATIC), note: "", bound: Some((Works(proof), "")) }
}

/// What happens to fields of these types.
pub const CLUSTER_GROUPS: &[Group] = &[
    Group {
        kind: "LocalObjectReference",
        places: &["spec.imagePullSecrets[*]"],
        fields: &[bound("name", proof::PULL_SECRETS)],
    },
    Group {
        kind: "ServiceAccountTokenProjection",
        places: &["spec.volumes[*].projected.sources[*].serviceAccountToken"],
        fields: &[
            bound("audience", proof::TOKENS),
            bound("expirationSeconds", proof::TOKENS),
            bound("path", proof::TOKENS),
        ],
    },
    Group { kind: "PodSchedulingGate", places: &["spec.schedulingGates[*]"], fields: &[bound("name", proof::BOUND)] },
    Group {
        kind: "PodSchedulingGroup",
        places: &["spec.schedulingGroup"],
        fields: &[bound("podGroupName", proof::BOUND)],
    },
];
