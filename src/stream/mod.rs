//! Streaming: a command's or a port's bytes between a client and a container, over whatever the client speaks.
//!
//! ```text
//! SPDY/3.1 ──┐                        ┌─ exec helper (shim::exec)
//! WebSocket ─┼─▶ upgrade ─▶ Session ──┤
//! v4 · v5 ───┘                        └─ attach (shim)
//!
//! SPDY/3.1 · SPDY over WebSocket · WebSocket v4 ─▶ forward ─▶ TCP in the pod's network
//! ```
//!
//! A [`Session`] is what all transports come down to: bounded queues of bytes, one per stream, so that a slow reader costs
//! a queue's memory and holds up no other stream. Who talks to the process knows nothing of the transport, and the other
//! way round.

pub mod command;
pub mod forward;
mod idle;
mod outcome;
mod pipe;
mod size;
pub mod spdy;
mod spdy_command;
mod thread;
mod tunnel;
mod upgrade;
pub mod websocket;

pub use thread::spawn;
pub use upgrade::{Client, Lost, Refused, spdy_opening, upgrade, wants_websocket, websocket_answer};

use hyper::body::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

/// Pieces that may wait in one stream's queue.
pub const QUEUE: usize = 8;
/// Most bytes in a piece of output.
pub const PIECE: usize = 32 * 1024;

/// Which streams the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output, or the terminal.
    pub stdout: bool,
    /// Standard error; never with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// How a command ended, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ended, with this code; of a signal 128 and its number.
    Exited(i32),
    /// It could not be run, or was lost, and why.
    Failed(String),
}

/// The client's end of a command. The transport feeds and drains it; whoever runs the command holds it.
#[derive(Debug)]
pub struct Session {
    /// Input; its end is the input's end. `None`: none was asked for.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// Output, or the terminal's. Dropping it ends the stream. `None`: it is to be read and thrown away.
    pub stdout: Option<mpsc::Sender<Bytes>>,
    /// Error output.
    pub stderr: Option<mpsc::Sender<Bytes>>,
    /// The last size the client told; a closed channel tells nothing.
    pub size: watch::Receiver<Option<Size>>,
    /// To be sent after all output; the transport then closes as its protocol wants it. Its `closed()` tells that the client
    /// is gone.
    pub outcome: oneshot::Sender<Outcome>,
}
