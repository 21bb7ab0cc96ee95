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
//! | joining, leaving, certificates, clocks that are wrong, kubeadm | [`join`] |
//! | the Node object, its lease and its events | [`registration`] |
//! | static pods as the API server shows them | [`mirrors`] |
//! | what it is told of pods, and how they end | [`statuses`] |
//! | what bound pods may have, and edits of them | [`specs`] |
//! | what bound pods are made from | [`supply`] |
//! | a control plane of static pods, which its own node joins | [`bootstrap`] |
//! | a node exporter and kube-proxy; Services | [`agents`] |
//! | no request of a node is refused | [`audit`], and every [`Plane::finish`] |
//! | what lands on a node, what leaves it, and how | [`daemonsets`] |
//! | no API server, no network, a reboot | [`offline`] |
//! | the node API: kubectl's logs, exec, attach, port-forward and cp through the API server; metrics-server | [`nodeapi`] |

mod agents;
mod api;
mod arguments;
mod join;
mod mirrors;
mod nodeapi;
mod audit;
mod bootstrap;
pub mod images;
mod daemonsets;
mod offline;
pub mod plane;
mod registration;
mod smoke;
mod specs;
mod supply;
mod statuses;

pub use plane::{Namespace, Plane, condition, on};
