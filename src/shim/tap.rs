//! What attached clients see of a container's output: a copy, beside the log.
//!
//! A client gets the read end of a pipe. While it does not read and the pipe is full, no more is read of that output, so that
//! nothing is lost to it; the container then waits in its own pipe, as it would for a slow terminal. That lasts no longer than
//! [`STALL`] without a byte taken: then the client is cut off.

use super::log::Stream;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long a client that reads nothing may hold up a container's output.
pub(super) const STALL: Duration = Duration::from_secs(5);
/// Most bytes kept for a client after the container has ended, when nothing can wait any more.
const MAX_PENDING: usize = 1 << 20;

/// A copy of one output for one client.
#[derive(Debug)]
pub(super) struct Tap {
    /// Which attach it belongs to.
    pub(super) session: u64,
    pub(super) stream: Stream,
    pub(super) fd: OwnedFd,
    pending: Vec<u8>,
    /// Since when nothing was taken of what is pending.
    since: Instant,
    /// There will be no more output.
    closing: bool,
}

impl Tap {
    /// A new one, and the end for the client.
    pub(super) fn new(session: u64, stream: Stream) -> io::Result<(Tap, OwnedFd)> {
        let (theirs, fd) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let tap = Tap { session, stream, fd, pending: Vec::new(), since: Instant::now(), closing: false };
        Ok((tap, theirs))
    }

    /// Whether the client has not taken all yet.
    pub(super) fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    /// When it is to be cut off.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.is_behind().then(|| self.since + STALL)
    }

    /// More output. False: the tap is of no more use.
    pub(super) fn give(&mut self, bytes: &[u8], now: Instant) -> bool {
        if self.is_behind() {
            self.pending.extend_from_slice(bytes);
            return self.pending.len() <= MAX_PENDING;
        }
        self.since = now;
        match self.write(bytes) {
            Ok(taken) => {
                self.pending.extend_from_slice(&bytes[taken..]);
                true
            }
            Err(_) => false,
        }
    }

    /// There is room, or the client is gone. False: the tap is of no more use.
    pub(super) fn resume(&mut self, now: Instant) -> bool {
        let pending = std::mem::take(&mut self.pending);
        match self.write(&pending) {
            Ok(0) => self.pending = pending,
            Ok(taken) => {
                self.pending = pending[taken..].to_vec();
                self.since = now;
            }
            Err(_) => return false,
        }
        self.is_behind() || !self.closing
    }

    /// There will be no more output. False: nothing is left for the client.
    pub(super) fn close(&mut self) -> bool {
        self.closing = true;
        self.is_behind()
    }

    /// Whether the client has read nothing for too long.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.ends_at().is_some_and(|end| end <= now)
    }

    /// Writes as much as there is room for.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            match rustix::io::write(&self.fd, &bytes[taken..]) {
                Ok(count) => taken += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(fd: &OwnedFd) -> usize {
        let (mut room, mut all) = ([0; 4096], 0);
        while let Ok(count @ 1..) = rustix::io::read(fd, &mut room) {
            all += count;
        }
        all
    }

    #[test]
    fn a_client_that_lags_loses_nothing_and_is_cut_off_when_it_stalls() {
        let now = Instant::now();
        let (mut tap, client) = Tap::new(1, Stream::Stdout).unwrap();
        assert!(tap.give(&[b'x'; 100_000], now) && tap.is_behind());
        assert!(!tap.is_stalled(now) && tap.is_stalled(now + STALL));
        let first = drain(&client);
        assert!(tap.resume(now + STALL / 2) && !tap.is_stalled(now + STALL));
        assert_eq!(first + drain(&client), 100_000);
        assert!(tap.resume(now) && !tap.is_behind() && tap.ends_at().is_none());
        assert!(!tap.close());
    }

    #[test]
    fn what_is_left_at_the_end_is_still_given() {
        let now = Instant::now();
        let (mut tap, client) = Tap::new(1, Stream::Stderr).unwrap();
        assert!(tap.give(&[b'x'; 70_000], now) && tap.give(b"last", now));
        assert!(tap.close());
        let first = drain(&client);
        assert!(!tap.resume(now), "nothing is left");
        assert_eq!(first + drain(&client), 70_004);
    }

    #[test]
    fn a_client_that_is_gone_or_hoards_costs_nothing() {
        let now = Instant::now();
        let (mut tap, client) = Tap::new(1, Stream::Stdout).unwrap();
        let big = vec![b'x'; 600_000];
        assert!(tap.give(&big, now) && tap.give(&big[..400_000], now));
        assert!(!tap.give(&big, now));
        drop(client);
        assert!(!tap.resume(now));
        let (mut tap, client) = Tap::new(1, Stream::Stdout).unwrap();
        drop(client);
        assert!(!tap.give(b"x", now));
    }
}
