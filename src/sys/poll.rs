//! Waiting for descriptors on the event loop.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A non-blocking descriptor of which the event loop tells when it is readable.
///
/// # Errors
/// When the kernel cannot poll it. Must be called on a tokio runtime.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}

/// A non-blocking descriptor of which the event loop tells when it is readable or writable.
///
/// # Errors
/// As [`readable`].
pub fn both(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE | Interest::WRITABLE)
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor stays open and the same as long as the `AsyncFd` lives: it owns it, and nobody takes it
    // out or replaces it by dup2.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
