//! The pod as data: what is wanted ([`Spec`]), what is seen ([`Observed`]), what to do next ([`plan`]), what to report
//! ([`status`]). Pure: no clock, no files, no processes.

pub mod observed;
pub mod resources;

pub use observed::{Instance, Termination};
