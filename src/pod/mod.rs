//! The pod as data: what is wanted ([`Spec`]), what is seen ([`Observed`]), what to do next ([`plan`]), what to report
//! ([`status`]). Pure: no clock, no files, no processes.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod observed;
mod plan;
pub mod resources;
pub mod restart;
mod spec;
pub mod status;
pub mod sysctl;

pub use observed::{
    Deletion, Eviction, Failure, Finished, Health, HookKind, HookState, ImageState, Instance, Observed, Present,
    Progress, Record, Sandbox, SandboxRecord, StopCause, Stopping, Termination, Unhealthy,
};
pub use plan::{Action, Plan, plan};
pub use spec::{Key, RestartPolicy, Role, Spec};
