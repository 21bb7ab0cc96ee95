//! Opening a connection, with errors in the words that people know from the kubelet's events.

use super::address;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Connects; the text of an error is `dial tcp 10.0.0.1:80: connect: connection refused`.
pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let fail = |error: &io::Error| format!("dial tcp {}: connect: {}", address::join(host, port), reason(error));
    match host.parse::<IpAddr>() {
        Ok(ip) => TcpStream::connect((ip, port)).await.map_err(|error| fail(&error)),
        Err(_) => {
            let found = lookup(host, port).await;
            let found = found.map_err(|error| format!("dial tcp: lookup {host}: {}", reason(&error)))?;
            let mut last = format!("dial tcp: lookup {host}: no such host");
            let mut open = None;
            for candidate in found {
                match TcpStream::connect(candidate).await {
                    Ok(stream) => {
                        open = Some(stream);
                        break;
                    }
                    Err(error) => last = fail(&error),
                }
            }
            open.ok_or(last)
        }
    }
}

/// Asks the resolver. A name server that does not answer holds a thread for longer than any probe waits: a few turns for
/// all probes, or one bad name would in time have all threads of the agent.
async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    static TURNS: Semaphore = Semaphore::const_new(4);
    let turn = TURNS.acquire().await.map_err(io::Error::other)?;
    let host = host.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        // Until the resolver is done, also when nobody waits for it any more.
        let _turn = turn;
        (host.as_str(), port).to_socket_addrs().map(Iterator::collect)
    });
    asked.await.map_err(io::Error::other)?
}

/// The system's text without its number, in lower case: `connection refused`.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}
