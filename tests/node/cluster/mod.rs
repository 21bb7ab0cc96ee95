//! Clusters: the built binary against Kubernetes' own control plane.
//!
//! [`Plane::shared`] is one control plane for all tests of a run, [`Plane::own`] one that a test may kill. A control plane
//! has a network of its own, and so has each of its nodes ([`Plane::node`]): machines with one cable each to the machine of
//! the control plane. The rules of the shared one:
//!
//! - a node's name is its own, so are the test's namespaces ([`Plane::namespace`]);
//! - what selects nodes names them: a DaemonSet has a `nodeSelector` by `kubernetes.io/hostname` (see [`on`]), or it is on
//!   other tests' nodes, too;
//! - before [`Plane::finish`] a test ends its namespaces, else DaemonSets make pods for ever.
//!
//! | Subject | Tests |
//! |---|---|
//! | the control plane itself | [`smoke`] |
//! | what bound pods may have, and edits of them | [`specs`] |
//! | what lands on a node, what leaves it, and how | [`daemonsets`] |
//! | no API server, no network, a reboot | [`offline`] |

mod api;
mod arguments;
mod daemonsets;
mod offline;
pub mod plane;
mod smoke;
mod specs;

pub use plane::{Namespace, Plane, condition, on};
