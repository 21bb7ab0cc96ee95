//! Sequenced-packet sockets: one packet is one message, end-of-file means that the other side is gone.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, recvmsg, sendmsg,
    socket_with, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Most descriptors in one message.
const MAX_FDS: usize = 4;

/// An address of `name` in `dir` that is short whatever the folder's path (socket addresses hold 108 bytes). The
/// descriptor must stay open while the address is used.
fn address(dir: &Path, name: &str) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))?;
    Ok((dir, address))
}

/// Listens at `dir/name` with mode 0600, replacing a socket file that was left there.
pub(super) fn listen_at(dir: &Path, name: &str, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // On Linux a socket's mode before bind is the mode that its file gets: there is no moment of a wider one.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let (_dir, address) = address(dir, name)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            std::fs::remove_file(dir.join(name))?;
            bind(&socket, &address)?;
        }
        other => other?,
    }
    listen(&socket, 128)?;
    Ok(socket)
}

/// Connects to `dir/name`; sending and receiving then wait for at most `timeout` each.
pub(super) fn connect_to(dir: &Path, name: &str, timeout: Duration) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_timeout(&socket, timeout)?;
    let (_dir, address) = address(dir, name)?;
    connect(&socket, &address)?;
    Ok(socket)
}

pub(super) fn set_timeout(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    // Zero would mean forever.
    let timeout = Some(timeout.max(Duration::from_millis(1)));
    set_socket_timeout(socket, Timeout::Send, timeout)?;
    set_socket_timeout(socket, Timeout::Recv, timeout)?;
    Ok(())
}

/// Two connected ends.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one packet, with descriptors.
pub(super) fn send(socket: impl AsFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, packet, fds, SendFlags::NOSIGNAL)
}

/// As [`send`], but fails with `WouldBlock` instead of waiting for room.
pub(super) fn try_send(socket: impl AsFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, packet, fds, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_with(socket: impl AsFd, packet: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(packet)], &mut ancillary, flags))?;
    Ok(())
}

/// Receives one packet of at most `max` bytes, with its descriptors. An empty packet means end-of-file.
///
/// # Errors
/// `WouldBlock` after the socket's timeout, `InvalidData` when it was longer.
pub(super) fn receive(socket: impl AsFd, max: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut packet = vec![0; max];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut parts = [IoSliceMut::new(&mut packet)];
        match recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let fds = ancillary
        .drain()
        .filter_map(|part| if let RecvAncillaryMessage::ScmRights(fds) = part { Some(fds) } else { None })
        .flatten()
        .collect();
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a packet of more than {max} bytes")));
    }
    packet.truncate(message.bytes);
    Ok((packet, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_keep_their_bounds_and_descriptors() {
        let (a, b) = pair().unwrap();
        send(&a, b"one", &[]).unwrap();
        send(&a, b"two", &[b.as_fd()]).unwrap();
        assert_eq!(receive(&b, 16).unwrap().0, b"one");
        let (packet, fds) = receive(&b, 16).unwrap();
        assert_eq!((packet.as_slice(), fds.len()), (&b"two"[..], 1));
        send(&a, b"too long", &[]).unwrap();
        assert_eq!(receive(&b, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
        set_timeout(&b, Duration::from_millis(5)).unwrap();
        assert_eq!(receive(&b, 4).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        drop(fds);
        assert!(receive(&b, 4).unwrap().0.is_empty());
    }
}
