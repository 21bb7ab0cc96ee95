//! Terminals: the socket over which a container's init sends the master of its pseudo terminal.

use super::socket;
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, accept_with};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A listening console socket; its file goes with it.
#[derive(Debug)]
pub(super) struct Console {
    listener: OwnedFd,
    path: PathBuf,
}

impl Console {
    pub(super) fn listen(dir: &Path, name: &str) -> io::Result<Console> {
        Ok(Console { listener: socket::listen_at(dir, name, SocketType::STREAM)?, path: dir.join(name) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The master, which was sent before libcontainer's `build` returned.
    ///
    /// # Errors
    /// `WouldBlock` when nothing was sent.
    pub(super) fn master(&self) -> io::Result<OwnedFd> {
        let connection = loop {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        let (_, mut fds) = socket::receive(&connection, 4096)?;
        fds.pop().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no terminal came over the console socket"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
