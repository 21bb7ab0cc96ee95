//! Ends of pipes and terminals on the event loop.

use crate::sys::poll;
use hyper::body::Bytes;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// A pipe's end or a terminal.
#[derive(Debug)]
pub(super) struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    /// Makes the descriptor non-blocking. Must be called on a tokio runtime.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Pipe> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Pipe(poll::both(fd)?))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// Reads what is there, with `room` as scratch; nothing at the end. Cancelling loses nothing.
    pub(super) async fn read(&self, room: &mut [u8]) -> io::Result<Bytes> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut *room)?)) {
                // A terminal whose other side is closed says EIO.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(Bytes::new()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // Copied: a piece in a queue holds no more memory than it has bytes.
                Ok(result) => return result.map(|count| Bytes::copy_from_slice(&room[..count])),
                Err(_not_ready) => {}
            }
        }
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => {}
            }
        }
        Ok(())
    }
}
