//! A TCP connection to a port of a pod, from inside its network: it sees a client on its own loopback.

use crate::causes;
use crate::sys::namespace;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};

/// Loopback answers at once, unless the server's queue is full.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The pod has no network any more.
    #[error("the pod's network cannot be entered")]
    Network(#[source] io::Error),
    /// Nobody answers there.
    #[error(
        "failed to connect to localhost:{port} in the pod's network, IPv4: {}, IPv6: {}",
        causes::chain(.ipv4),
        causes::chain(.ipv6)
    )]
    Refused {
        /// Which port.
        port: u16,
        /// Why not by 127.0.0.1.
        ipv4: io::Error,
        /// Why not by ::1.
        ipv6: io::Error,
    },
}

/// Connects to the port on 127.0.0.1, else on ::1, in the network namespace; `None`: the machine's.
pub(super) async fn dial(network: Option<PathBuf>, port: u16) -> Result<TcpStream, Error> {
    // A socket belongs to the namespace it was made in, wherever it is used: only that takes a thread, and it never waits.
    let made = tokio::task::spawn_blocking(move || sockets(network.as_deref())).await;
    let [ipv4, ipv6] = made.map_err(|error| Error::Network(io::Error::other(error)))?.map_err(Error::Network)?;
    match connect(ipv4, IpAddr::V4(Ipv4Addr::LOCALHOST), port).await {
        Ok(connection) => Ok(connection),
        Err(ipv4) => match connect(ipv6, IpAddr::V6(Ipv6Addr::LOCALHOST), port).await {
            Ok(connection) => Ok(connection),
            Err(ipv6) => Err(Error::Refused { port, ipv4, ipv6 }),
        },
    }
}

/// A socket of each family; there may be none of one of them.
type Sockets = [io::Result<OwnedFd>; 2];

fn sockets(network: Option<&Path>) -> io::Result<Sockets> {
    let make = || {
        [AddressFamily::INET, AddressFamily::INET6].map(|family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?)
        })
    };
    match network {
        Some(path) => namespace::with_netns(path, make),
        None => Ok(make()),
    }
}

async fn connect(socket: io::Result<OwnedFd>, address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket?));
    let connected = tokio::time::timeout(PATIENCE, socket.connect(SocketAddr::new(address, port)));
    let stream = connected.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    // What comes in small pieces is typed, or asked and answered.
    stream.set_nodelay(true)?;
    Ok(stream)
}
