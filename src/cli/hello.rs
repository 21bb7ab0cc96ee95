//! `hello`: the web server of the demo image, which is this very binary. It is PID 1 there, so it has to end by itself
//! when asked to.

use super::error::Error;
use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Largest request head read.
const MAX_HEAD: usize = 8 * 1024;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most clients served at once.
const MAX_CLIENTS: usize = 128;

/// Serves until SIGTERM or SIGINT.
pub(super) async fn hello(port: u16) -> Result<i32, Error> {
    let signals = |kind| signal(kind).map_err(|error| Error::new("cannot watch for signals", error));
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let listener = bind(port).await.map_err(|error| Error::new(format!("cannot listen on port {port}"), error))?;
    let name = ["POD_NAME", "HOSTNAME"].iter().find_map(|key| std::env::var(key).ok()).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| "a machine without a name".to_owned());
    say(&format!("{name} listens on port {port}"));
    let mut clients = JoinSet::new();
    let mut count: u64 = 0;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(_) = clients.join_next() => {}
            accepted = listener.accept(), if clients.len() < MAX_CLIENTS => match accepted {
                Ok((stream, peer)) => {
                    count += 1;
                    clients.spawn(tokio::time::timeout(PATIENCE, answer(stream, peer, name.clone(), count)));
                }
                Err(error) => {
                    say(&format!("cannot accept: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    say(&format!("{name} says goodbye after {count} requests"));
    Ok(0)
}

/// On both families where there is IPv6, else on IPv4.
async fn bind(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await,
    }
}

async fn answer(mut stream: TcpStream, peer: SocketAddr, name: String, count: u64) {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < MAX_HEAD {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => head.extend_from_slice(&buffer[..read]),
        }
    }
    let (status, body, request) = page(&head, &name, count);
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let sent = stream.write_all(answer.as_bytes()).await.and(stream.shutdown().await);
    let word = if sent.is_ok() { &status[..3] } else { "gone" };
    say(&format!("{} \"{request}\" {word} #{count}", peer.ip().to_canonical()));
}

/// Status line, body, and the request line as it may be logged.
fn page(head: &[u8], name: &str, count: u64) -> (&'static str, String, String) {
    let line = head.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let line: String =
        String::from_utf8_lossy(line).chars().take(200).filter(|c| !c.is_control() && *c != '"').collect();
    match line.split(' ').next() {
        Some("GET" | "HEAD") if line.contains(" HTTP/1.") => {
            ("200 OK", format!("Hello from {name}! You are visitor number {count}.\n"), line)
        }
        _ => ("400 Bad Request", "This is a web server.\n".to_owned(), line),
    }
}

/// A line of the log; a closed standard output is no reason to stop serving.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_says_hello_and_to_whom() {
        let (status, body, line) = page(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "web-n1", 3);
        assert_eq!((status, line.as_str()), ("200 OK", "GET / HTTP/1.1"));
        assert_eq!(body, "Hello from web-n1! You are visitor number 3.\n");
        assert_eq!(page(b"\x16\x03", "x", 1).0, "400 Bad Request");
    }

    proptest! {
        #[test]
        fn no_request_can_forge_a_log_line(head in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(!page(&head, "x", 1).2.chars().any(char::is_control));
        }
    }
}
