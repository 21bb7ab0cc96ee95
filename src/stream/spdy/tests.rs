//! Connections against each other, and against peers that do what they like.

use super::connection::State;
use super::driver::{MAX_ORDERS, READ};
use super::frame::{self, Decoder, Encoder, Event};
use super::*;
use hyper::body::Bytes;
use proptest::prelude::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const LIMITS: Limits = Limits { buffer: 256 * 1024, stall: None, streams: 256, idle: Duration::ZERO };

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time") })
}

/// A client and a server.
fn pair(limits: Limits) -> (Connection, Connection, Incoming) {
    let (near, far) = duplex(16 * 1024);
    let (client, _) = start(near, Role::Client, LIMITS);
    let (server, incoming) = start(far, Role::Server, limits);
    (client, server, incoming)
}

fn named(name: &str) -> Headers {
    Headers::new([("streamType", name)])
}

async fn all(mut reader: Reader) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    while let Some(bytes) = reader.read().await? {
        out.extend_from_slice(&bytes);
    }
    Ok(out)
}

/// Waits until the state of a connection is so.
async fn until(connection: &Connection, is: impl Fn(&State) -> bool) {
    while !is(&connection.handle.shared.lock()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn streams_go_both_ways_and_end_one_way_at_a_time() {
    block_on(async {
        let (client, server, mut incoming) = pair(LIMITS);
        let served = tokio::spawn(async move {
            let offer = incoming.next().await.unwrap();
            assert_eq!((offer.id(), offer.headers().get("streamType")), (1, Some("data")));
            let (reader, mut writer) = offer.accept();
            writer.write(Bytes::from_static(b"first")).await.unwrap();
            // The peer's end is no end of ours.
            let got = all(reader).await.unwrap();
            writer.write(Bytes::from(got)).await.unwrap();
            writer.finish().await.unwrap();
            writer.finish().await.unwrap();
            assert_eq!(writer.write(Bytes::from_static(b"late")).await, Err(Error::Canceled));
        });
        let (reader, mut writer) = client.open(named("data")).await.unwrap();
        writer.write(Bytes::from_static(b" second")).await.unwrap();
        writer.finish().await.unwrap();
        assert_eq!(all(reader).await.unwrap(), b"first second");
        served.await.unwrap();
        drop(writer);
        until(&server, |state| state.streams.is_empty()).await;
        until(&client, |state| state.streams.is_empty()).await;
    });
}

#[test]
fn many_streams_at_once_keep_their_bytes_apart() {
    block_on(async {
        let (client, _server, mut incoming) = pair(LIMITS);
        let served = tokio::spawn(async move {
            while let Some(offer) = incoming.next().await {
                let (mut reader, mut writer) = offer.accept();
                tokio::spawn(async move {
                    while let Some(bytes) = reader.read().await.unwrap() {
                        writer.write(bytes).await.unwrap();
                    }
                    writer.finish().await.unwrap();
                });
            }
        });
        let mut all_of = Vec::new();
        for number in 0..50u32 {
            let client = client.clone();
            all_of.push(tokio::spawn(async move {
                let (reader, mut writer) = client.open(named(&number.to_string())).await.unwrap();
                let sent: Vec<u8> = (0..100_000u32).flat_map(|i| (i * 50 + number).to_be_bytes()).collect();
                let bytes = Bytes::from(sent.clone());
                let write = async {
                    writer.write(bytes).await.unwrap();
                    writer.finish().await.unwrap();
                };
                let (got, ()) = tokio::join!(all(reader), write);
                assert!(got.unwrap() == sent, "stream {number}");
            }));
        }
        for one in all_of {
            one.await.unwrap();
        }
        client.close().await;
        served.await.unwrap();
    });
}

#[test]
fn what_is_not_wanted_is_refused_and_what_is_reset_says_so() {
    block_on(async {
        let (client, server, mut incoming) = pair(Limits { streams: 2, ..LIMITS });
        let (refused, _) = tokio::join!(client.open(named("a")), async { drop(incoming.next().await.unwrap()) });
        assert_eq!(refused.unwrap_err(), Error::Reset);
        // Reset by the server, after its last words.
        let (halves, (reader, mut writer)) =
            tokio::join!(client.open(named("b")), async { incoming.next().await.unwrap().accept() });
        let (mut theirs, mut own) = halves.unwrap();
        writer.write(Bytes::from_static(b"no such port")).await.unwrap();
        writer.reset().await;
        assert_eq!(own.closed().await, Error::Reset);
        assert_eq!(own.write(Bytes::from_static(b"x")).await, Err(Error::Reset));
        assert_eq!(theirs.read().await.unwrap().unwrap(), "no such port");
        assert_eq!(theirs.read().await, Err(Error::Reset));
        drop((reader, theirs, own));
        // Reset by dropping the writer.
        let (halves, (mut reader, _writer)) =
            tokio::join!(client.open(named("c")), async { incoming.next().await.unwrap().accept() });
        drop(halves.unwrap().1);
        assert_eq!(reader.read().await, Err(Error::Reset));
        drop((reader, _writer));
        until(&server, |state| state.streams.is_empty()).await;
        // One more than may be.
        let (one, two) = (client.open(named("d")), client.open(named("e")));
        let accept = async { [incoming.next().await.unwrap().accept(), incoming.next().await.unwrap().accept()] };
        let (one, two, _kept) = tokio::join!(one, two, accept);
        assert_eq!(client.open(named("f")).await.unwrap_err(), Error::Reset);
        drop((one, two));
    });
}

#[test]
fn a_good_bye_comes_after_all_that_was_written() {
    block_on(async {
        let (client, server, mut incoming) = pair(LIMITS);
        let (halves, (_reader, mut writer)) =
            tokio::join!(client.open(named("a")), async { incoming.next().await.unwrap().accept() });
        let (reader, mut own) = halves.unwrap();
        // The client goes on sending what nobody reads: it must not cost it the answer.
        let noise = tokio::spawn(async move { while own.write(Bytes::from(vec![7; 20_000])).await.is_ok() {} });
        writer.write(Bytes::from(vec![1; 100_000])).await.unwrap();
        writer.finish().await.unwrap();
        let (got, ()) = tokio::join!(all(reader), server.close());
        assert_eq!(got.unwrap().len(), 100_000);
        client.closed().await;
        noise.await.unwrap();
        assert_eq!(client.open(named("b")).await.unwrap_err(), Error::Lost);
        assert!(incoming.next().await.is_none());
    });
}

#[test]
fn dropping_all_of_it_ends_it() {
    block_on(async {
        let (client, server, mut incoming) = pair(LIMITS);
        let (halves, theirs) = tokio::join!(client.open(named("a")), async { incoming.next().await.unwrap().accept() });
        drop((halves, client));
        assert!(incoming.next().await.is_none(), "the client said good-bye");
        drop(theirs);
        server.closed().await;
    });
}

#[test]
fn a_stream_that_nobody_reads_costs_the_buffer_and_no_more() {
    block_on(async {
        let (client, server, mut incoming) = pair(LIMITS);
        let (halves, (reader, _writer)) =
            tokio::join!(client.open(named("a")), async { incoming.next().await.unwrap().accept() });
        let (_reader, mut own) = halves.unwrap();
        const ALL: usize = 8 << 20;
        let sent = tokio::spawn(async move {
            own.write(Bytes::from(vec![5; ALL])).await.unwrap();
            own.finish().await.unwrap();
        });
        until(&server, |state| state.buffered >= LIMITS.buffer).await;
        // Everybody gets turns; nothing may come of them.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        let buffered = server.handle.shared.lock().buffered;
        assert!(buffered <= LIMITS.buffer + READ, "{buffered}");
        assert_eq!(all(reader).await.unwrap().len(), ALL);
        sent.await.unwrap();
        assert_eq!(server.handle.shared.lock().buffered, 0);
    });
}

#[test]
fn a_stream_that_nobody_reads_does_not_hold_up_the_others_for_ever() {
    block_on(async {
        let (client, server, mut incoming) = pair(Limits { stall: Some(Duration::from_millis(50)), ..LIMITS });
        let (stuck, (mut unread, _writer)) =
            tokio::join!(client.open(named("stuck")), async { incoming.next().await.unwrap().accept() });
        let (good, (reader, _writer)) =
            tokio::join!(client.open(named("good")), async { incoming.next().await.unwrap().accept() });
        let ((_stuck_reader, mut stuck), (_good_reader, mut good)) = (stuck.unwrap(), good.unwrap());
        let stuck = tokio::spawn(async move {
            let result = stuck.write(Bytes::from(vec![5; 8 << 20])).await;
            (result, stuck.closed().await)
        });
        until(&server, |state| state.buffered >= LIMITS.buffer).await;
        let write = async {
            good.write(Bytes::from(vec![6; 1 << 20])).await.unwrap();
            good.finish().await.unwrap();
        };
        let (got, ()) = tokio::join!(all(reader), write);
        assert_eq!(got.unwrap().len(), 1 << 20);
        assert_eq!(stuck.await.unwrap(), (Err(Error::Reset), Error::Reset));
        assert_eq!(unread.read().await, Err(Error::Canceled));
    });
}

#[test]
fn a_silent_connection_ends() {
    block_on(async {
        let (near, _far) = duplex(1024);
        let (server, mut incoming) = start(near, Role::Server, Limits { idle: Duration::from_millis(20), ..LIMITS });
        server.closed().await;
        assert!(incoming.next().await.is_none());
    });
}

/// A server, and the bytes of its peer.
fn raw(limits: Limits) -> (DuplexStream, Connection, Incoming) {
    let (near, far) = duplex(64 * 1024);
    let (server, incoming) = start(near, Role::Server, limits);
    (far, server, incoming)
}

/// What the server says until it has said that many things; pieces of data are told as their stream's number.
async fn said(io: &mut DuplexStream, decoder: &mut Decoder, count: usize) -> Vec<String> {
    let (mut seen, mut buffer) = (Vec::new(), [0; 1024]);
    while seen.len() < count {
        let read = io.read(&mut buffer).await.unwrap();
        assert!(read > 0, "the server ended after {seen:?}");
        let mut input = &buffer[..read];
        while let Some(event) = decoder.next(&mut input).unwrap() {
            seen.push(match event {
                Event::Reset { id, reason } => format!("reset {id} {reason:?}"),
                Event::Reply { id } => format!("reply {id}"),
                Event::Ping { id } => format!("ping {id}"),
                other => format!("{other:?}"),
            });
        }
    }
    seen
}

#[test]
fn a_peer_that_breaks_the_rules_is_told() {
    block_on(async {
        let (mut io, _server, mut incoming) = raw(Limits { streams: 1, ..LIMITS });
        let (mut encoder, mut decoder, mut out) = (Encoder::default(), Decoder::new(), Vec::new());
        encoder.open(&mut out, 2, &named("even"));
        encoder.open(&mut out, 5, &named("five"));
        encoder.open(&mut out, 3, &named("three, too late"));
        encoder.open(&mut out, 5, &named("five again"));
        encoder.open(&mut out, 7, &named("one too many"));
        frame::data(&mut out, 99, b"nobody opened this", true);
        frame::reset(&mut out, 99, Reason::Cancel);
        encoder.reply(&mut out, 5);
        frame::ping(&mut out, 1);
        frame::ping(&mut out, 2);
        frame::ping(&mut out, 3);
        io.write_all(&out).await.unwrap();
        let seen = said(&mut io, &mut decoder, 6).await;
        let expected =
            ["reset 2 Protocol", "reset 3 Protocol", "reset 5 Protocol", "reset 7 Refused", "ping 1", "ping 3"];
        assert_eq!(seen, expected);
        let (reader, _writer) = incoming.next().await.unwrap().accept();
        assert_eq!(said(&mut io, &mut decoder, 1).await, ["reply 5"]);
        let mut out = Vec::new();
        frame::data(&mut out, 5, b"still good", true);
        frame::data(&mut out, 5, b"after its end", true);
        frame::go_away(&mut out, 0);
        encoder.open(&mut out, 9, &named("after good-bye"));
        io.write_all(&out).await.unwrap();
        assert_eq!(all(reader).await.unwrap(), b"still good");
        assert_eq!(said(&mut io, &mut decoder, 1).await, ["reset 9 Refused"]);
        assert!(incoming.next().await.is_none());
    });
}

#[test]
fn who_opens_and_resets_streams_for_ever_fills_no_queue() {
    block_on(async {
        let (mut io, server, _incoming) = raw(Limits { streams: 8, ..LIMITS });
        let (mut encoder, mut out) = (Encoder::default(), Vec::new());
        for id in (1..2000).step_by(2) {
            encoder.open(&mut out, id, &named("x"));
            frame::reset(&mut out, id, Reason::Cancel);
        }
        let mut ignored = [0; 4096];
        let (mut reading, mut writing) = tokio::io::split(&mut io);
        tokio::select! {
            _ = async { while reading.read(&mut ignored).await.unwrap() > 0 {} } => panic!("the server ended"),
            result = writing.write_all(&out) => result.unwrap(),
            () = server.closed() => panic!("the server ended"),
        }
        until(&server, |state| state.peers_next == 2001).await;
        assert!(server.handle.shared.lock().streams.len() <= 8);
    });
}

#[test]
fn who_does_not_read_answers_is_not_read() {
    block_on(async {
        let (io, server, _incoming) = raw(LIMITS);
        let (_reading, mut writing) = tokio::io::split(io);
        let noise = tokio::spawn(async move {
            let mut out = Vec::new();
            (0..1000).for_each(|_| frame::ping(&mut out, 1));
            while writing.write_all(&out).await.is_ok() {}
        });
        until(&server, |state| state.orders.len() >= MAX_ORDERS).await;
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        let orders = server.handle.shared.lock().orders.len();
        assert!(orders <= MAX_ORDERS + READ / 12, "{orders}");
        noise.abort();
    });
}

#[test]
fn a_peer_that_speaks_something_else_is_dropped() {
    for bytes in [&b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01"[..], b"\x80\x03\0\x01\0\0\0\x0cbad headers!", b"\0\0"] {
        block_on(async {
            let (mut io, server, mut incoming) = raw(LIMITS);
            io.write_all(bytes).await.unwrap();
            io.shutdown().await.unwrap();
            server.closed().await;
            assert!(incoming.next().await.is_none());
        });
    }
}

/// Bytes that begin as frames.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let frame = (any::<bool>(), 0u16..12, any::<u8>(), 0u32..12, proptest::collection::vec(any::<u8>(), 0..60));
    let bytes = frame.prop_map(|(control, kind, flags, id, body)| {
        let mut out = Vec::new();
        match (control, kind) {
            (true, 1) => Encoder::default().open(&mut out, id, &named("x")),
            (true, _) => {
                out.extend_from_slice(&[0x80, 3]);
                out.extend_from_slice(&kind.to_be_bytes());
                out.extend_from_slice(&[flags, 0, 0, u8::try_from(body.len() + 4).unwrap()]);
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(&body);
            }
            (false, _) => frame::data(&mut out, id, &body, flags & 1 == 1),
        }
        out
    });
    proptest::collection::vec(bytes, 0..20).prop_map(|frames| frames.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_peer_sends_the_connection_ends_with_it(bytes in hostile(), role in any::<bool>()) {
        block_on(async {
            let (near, mut io) = duplex(64 * 1024);
            let role = if role { Role::Client } else { Role::Server };
            let (connection, mut incoming) = start(near, role, Limits { streams: 4, ..LIMITS });
            let served = tokio::spawn(async move {
                while let Some(offer) = incoming.next().await {
                    let (reader, mut writer) = offer.accept();
                    tokio::spawn(async move {
                        let _ = all(reader).await;
                        let _ = writer.write(Bytes::from_static(b"answer")).await;
                    });
                }
            });
            // The connection may be dropped in the middle.
            let _ = io.write_all(&bytes).await;
            let _ = io.shutdown().await;
            let mut answers = Vec::new();
            let _ = io.read_to_end(&mut answers).await;
            connection.closed().await;
            served.await.unwrap();
            assert!(connection.handle.shared.lock().streams.len() <= 4);
        });
    }
}
