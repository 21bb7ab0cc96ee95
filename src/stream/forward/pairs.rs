//! `portforward.k8s.io`: every forwarded connection is a pair of streams, one for data and one for what went wrong.

use super::Place;
use super::copy::copy;
use super::dial::dial;
use crate::stream::spdy::{Connection, Headers, Incoming, Offer, Reader, Writer};
use hyper::body::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long the second stream of a pair may take (as kubelet).
const PAIR_TIME: Duration = Duration::from_secs(30);

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// What a stream's headers say.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    kind: Kind,
    port: u16,
    /// What the two streams of a connection have in common.
    request: String,
}

/// Reads a stream's headers; `None`: they are not those of a forwarded connection.
fn wanted(id: u32, headers: &Headers) -> Option<Wanted> {
    let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let kind = match headers.get("streamtype")? {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    let request = match headers.get("requestid") {
        Some(request) if !request.is_empty() => request.to_owned(),
        // Clients of old open the error stream, then the data stream, and do not say so (as kubelet).
        _ if kind == Kind::Error => id.to_string(),
        _ => id.checked_sub(2)?.to_string(),
    };
    Some(Wanted { kind, port, request })
}

/// One stream of a pair, while the other is awaited.
struct Half {
    kind: Kind,
    port: u16,
    streams: (Reader, Writer),
    since: Instant,
}

/// Serves a connection's pairs until the peer has gone.
pub(super) async fn serve(connection: Connection, mut incoming: Incoming, place: Arc<Place>) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut running = JoinSet::new();
    loop {
        let due = halves.values().map(|half| half.since + PAIR_TIME).min();
        tokio::select! {
            offer = incoming.next() => match offer {
                Some(offer) => pair(offer, &mut halves, &mut running, &place),
                None => break,
            },
            Some(_) = running.join_next(), if !running.is_empty() => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                // Dropped streams are reset.
                halves.retain(|_, half| half.since.elapsed() < PAIR_TIME);
            }
        }
    }
    // The peer opens no more, or is gone.
    drop(halves);
    tokio::select! {
        () = async { while running.join_next().await.is_some() {} } => connection.close().await,
        () = connection.closed() => {}
    }
}

/// Takes a stream; with its other half the connection begins. One that makes no sense is refused, by dropping it.
fn pair(offer: Offer, halves: &mut HashMap<String, Half>, running: &mut JoinSet<()>, place: &Arc<Place>) {
    let Some(Wanted { kind, port, request }) = wanted(offer.id(), offer.headers()) else { return };
    match halves.remove(&request) {
        None => {
            let half = Half { kind, port, streams: offer.accept(), since: Instant::now() };
            halves.insert(request, half);
        }
        Some(half) if half.kind == kind => {
            halves.insert(request, half);
        }
        Some(half) => {
            let streams = offer.accept();
            let (port, data, error) = match kind {
                Kind::Data => (port, streams, half.streams),
                Kind::Error => (half.port, half.streams, streams),
            };
            running.spawn(forward(port, data, error.1, Arc::clone(place)));
        }
    }
}

async fn forward(port: u16, (reader, writer): (Reader, Writer), mut error: Writer, place: Arc<Place>) {
    match dial(place.network.clone(), port).await {
        Ok(tcp) => {
            copy(tcp, reader, writer).await;
            let _ = error.finish().await;
        }
        Err(failed) => {
            // The other connections go on: this one is reset, but not the whole (as kubelet).
            let _ = error.write(Bytes::from(place.told(port, &failed))).await;
            writer.reset().await;
            error.reset().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        let read = |id, pairs: &[(&str, &str)]| wanted(id, &Headers::new(pairs.iter().copied()));
        let data = [("streamType", "data"), ("port", "80"), ("requestID", "7")];
        assert_eq!(read(5, &data), Some(Wanted { kind: Kind::Data, port: 80, request: "7".to_owned() }));
        // Without a number they are paired by the streams' own.
        let request = |id, kind| read(id, &[("streamtype", kind), ("port", "80")]).map(|wanted| wanted.request);
        assert_eq!((request(5, "error"), request(7, "data")), (Some("5".to_owned()), Some("5".to_owned())));
        assert_eq!(request(1, "data"), None);
        assert_eq!(request(1, "stdin"), None);
        for port in ["", "0", "65536", "-1", "http", "80 "] {
            assert_eq!(read(1, &[("streamtype", "error"), ("port", port)]), None, "{port}");
        }
        assert_eq!(read(1, &[("streamtype", "error")]), None);
        assert_eq!(read(1, &[("port", "80")]), None);
    }
}
