//! SPDY/3.1 as Kubernetes speaks it: framing, header blocks, and streams over one connection. Written for two peers: the
//! Kubernetes API server (moby/spdystream) and kubectl; the same code is the client in `coracle port-forward` and tests.
//!
//! ```text
//!         ┌─ read:  Decoder ─▶ a queue a stream ─▶ Reader ─┐
//! io ─────┤                                                ├─ whoever uses the stream
//!         └─ write: Encoder ◀─ one queue ◀──────── Writer ─┘
//! ```
//!
//! # Back-pressure
//!
//! The protocol as these peers speak it has no windows: what a peer sends has to go somewhere. All streams of a connection
//! share [`Limits::buffer`] bytes; only when these are full is nothing read any more, and TCP holds the peer up. A stream
//! whose reader has stopped for good would then hold up the others; [`Limits::stall`] says for how long it may.
//! Outwards, every stream waits for its turn in one short queue, in order.

mod connection;
mod driver;
mod frame;
mod headers;
mod stream;
#[cfg(test)]
mod tests;

pub use connection::{Connection, Error, Incoming, Limits, Offer, Role, start};
pub use frame::{Fault, Reason};
pub use headers::Headers;
pub use stream::{Reader, Writer};
