//! Privileged tests: they need root, and drive the kernel and the built binary for real.

mod cli;
mod faults;
mod harness;
mod images;
mod lifecycle;
mod net;
mod shim;
mod sources;
