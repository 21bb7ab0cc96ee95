//! The pod as data: what is wanted ([`Spec`]), what is seen ([`Observed`]), what to do next ([`plan`]), what to report
//! ([`status`]). Pure: no clock, no files, no processes.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

#[cfg(test)]
mod bound_tests;
pub mod clock;
mod conditions;
mod container_status;
mod deadline;
pub mod admission;
pub mod affinity;
mod ephemeral;
pub mod eviction;
pub mod observed;
mod order;
mod phase;
mod plan;
pub mod preemption;
mod resize;
pub mod probe;
pub mod pull;
pub mod resources;
pub mod restart;
mod rules;
mod spec;
mod start;
pub mod status;
mod stop;
pub mod supply;
#[cfg(test)]
mod timeline_tests;
#[cfg(test)]
mod world;
pub mod sysctl;
pub mod trial;
mod update;

pub use observed::{
    Deletion, Eviction, Failure, Finished, Health, HookKind, HookState, ImageState, Instance, Observed, Present,
    Progress, Record, RefusedResize, Sandbox, SandboxRecord, StopCause, Stopping, Termination, Told, Unhealthy, User,
};
pub use plan::{Action, Plan, plan};
pub use resize::is_resize;
pub use rules::restarts_failed;
pub use spec::{Key, RestartPolicy, Role, Spec};
pub use supply::{Supply, Token, TokenId, is_from_api};
pub use update::adopted;
