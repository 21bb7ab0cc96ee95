//! Privileged tests: they need root, and drive the kernel and the built binary for real.
//!
//! Every test makes its own private node ([`harness::Node`]) and ends with a leak check; a missing capability fails the
//! test with its name. `CORACLE_TEST_KEEP=1` keeps the folder of a failed test.

mod cli;
mod containers;
mod devices;
mod faults;
mod harness;
mod images;
mod lifecycle;
mod net;
mod probes;
mod published;
mod resources;
mod pods;
mod shim;
mod sources;
mod timeline;
mod userns;
mod volumes;
