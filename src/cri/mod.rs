//! CRI v1 on `cri.sock`: what crictl and kubeadm's preflight ask of a container runtime. Read-only but for exec, attach,
//! port-forward, and images; what would create or remove containers is `Unimplemented`: manifests do that here.
//!
//! ```text
//! HTTP/2 ─▶ grpc (one call: bytes in, bytes out) ─▶ methods ─┬─ look    what is on the machine, and filters of it
//!                                                            ├─ details status of one, with what is told beyond it
//!                                                            ├─ images · usage · about
//!                                                            └─ command · streams (loopback, one-time addresses)
//! ```
//!
//! Nothing is kept here: each call looks at the records on the disk, as the agent does. Instants are the wall clock's, in
//! nanoseconds since 1970, as the CRI has them.

mod about;
mod command;
mod details;
mod grpc;
mod images;
mod look;
mod methods;
mod serve;
mod streams;
mod usage;
#[allow(missing_docs, clippy::all)]
mod v1;

pub use serve::serve;

use jiff::Timestamp;

/// An instant of the agent's time as the CRI has it.
fn instant(at: Timestamp) -> i64 {
    nanoseconds(crate::sys::clock::shown(at))
}

/// An instant of the wall clock as the CRI has it; what is beyond its range (the year 2262) is its end.
fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}
