//! Options of sockets.

use rustix::net::sockopt;
use std::os::fd::AsFd;
use std::time::Duration;

/// How long a connection may be silent before the other side is asked whether it is there, and between such questions.
const ASK: Duration = Duration::from_secs(60);
/// How often it is asked.
const TIMES: u32 = 3;

/// Has the kernel find out when the other side of a TCP connection is gone, which silence alone does not tell. What the
/// kernel does not take is left as it is.
pub fn keep_alive(socket: impl AsFd) {
    let _ = sockopt::set_tcp_keepidle(&socket, ASK);
    let _ = sockopt::set_tcp_keepintvl(&socket, ASK / 4);
    let _ = sockopt::set_tcp_keepcnt(&socket, TIMES);
    let _ = sockopt::set_socket_keepalive(&socket, true);
}
