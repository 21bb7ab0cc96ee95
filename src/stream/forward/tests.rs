//! Clients of every kind against servers on the machine's own loopback.

use super::*;
use crate::stream::spdy::{Connection, Error, Headers, Reader, Writer};
use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::protocol::Message;

const LIMITS: Limits = Limits { buffer: 1 << 20, stall: None, streams: 256, idle: Duration::ZERO };

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time") })
}

fn place() -> Place {
    Place { network: None, pod: "web".to_owned() }
}

/// A server on a port of its own, for that many connections.
async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port on which nobody listens.
async fn nobody() -> u16 {
    listen().await.1
}

/// Says all back once all has come.
async fn echo(listener: TcpListener) {
    loop {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut all = Vec::new();
            tcp.read_to_end(&mut all).await.unwrap();
            tcp.write_all(&all).await.unwrap();
        });
    }
}

/// A client over SPDY.
fn client() -> Connection {
    let (near, far) = duplex(64 * 1024);
    tokio::spawn(pairs(far, place(), Duration::ZERO));
    spdy::start(near, Role::Client, LIMITS).0
}

struct Pair {
    data: (Reader, Writer),
    error: Reader,
}

/// Begins a connection as kubectl does.
async fn open(client: &Connection, port: u16, request: &str) -> Pair {
    let port = port.to_string();
    let headers = |kind| Headers::new([("streamType", kind), ("port", port.as_str()), ("requestID", request)]);
    let (error, mut unused) = client.open(headers("error")).await.unwrap();
    unused.finish().await.unwrap();
    Pair { data: client.open(headers("data")).await.unwrap(), error }
}

async fn all(mut reader: Reader) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    while let Some(bytes) = reader.read().await? {
        out.extend_from_slice(&bytes);
    }
    Ok(out)
}

#[test]
fn fifty_connections_at_once_end_one_way_at_a_time() {
    block_on(async {
        let (listener, port) = listen().await;
        tokio::spawn(echo(listener));
        let client = client();
        let mut running = Vec::new();
        for number in 0..50u32 {
            let client = client.clone();
            running.push(tokio::spawn(async move {
                let Pair { data: (reader, mut writer), error } = open(&client, port, &number.to_string()).await;
                let sent: Vec<u8> = (0..20_000u32).flat_map(|i| (i * 50 + number).to_be_bytes()).collect();
                writer.write(Bytes::from(sent.clone())).await.unwrap();
                writer.finish().await.unwrap();
                assert!(all(reader).await.unwrap() == sent);
                assert_eq!(all(error).await.unwrap(), b"");
            }));
        }
        for one in running {
            one.await.unwrap();
        }
    });
}

#[test]
fn a_port_that_nobody_listens_on_costs_no_other_connection() {
    block_on(async {
        let (listener, port) = listen().await;
        tokio::spawn(echo(listener));
        let client = client();
        let good = open(&client, port, "0").await;
        let nobody = nobody().await;
        let Pair { data, mut error } = open(&client, nobody, "1").await;
        let mut told = Vec::new();
        let end = loop {
            match error.read().await {
                Ok(Some(bytes)) => told.extend_from_slice(&bytes),
                end => break end,
            }
        };
        let told = String::from_utf8(told).unwrap();
        let begin = format!("error forwarding port {nobody} to pod web: failed to connect to localhost:{nobody}");
        assert!(told.starts_with(&begin) && told.contains("refused"), "{told}");
        assert_eq!((end, all(data.0).await), (Err(Error::Reset), Err(Error::Reset)));
        let (reader, mut writer) = good.data;
        writer.write(Bytes::from_static(b"still here")).await.unwrap();
        writer.finish().await.unwrap();
        assert_eq!(all(reader).await.unwrap(), b"still here");
    });
}

#[test]
fn streams_without_a_number_are_paired_and_those_without_sense_refused() {
    block_on(async {
        let (listener, port) = listen().await;
        tokio::spawn(echo(listener));
        let client = client();
        let port = port.to_string();
        let bad = [&[("streamType", "data")][..], &[("streamType", "data"), ("port", "0")], &[("port", "80")]];
        for headers in bad {
            let refused = client.open(Headers::new(headers.iter().copied())).await;
            assert_eq!(refused.unwrap_err(), Error::Reset);
        }
        let headers = |kind| Headers::new([("streamType", kind), ("port", port.as_str())]);
        let _error = client.open(headers("error")).await.unwrap();
        let (reader, mut writer) = client.open(headers("data")).await.unwrap();
        writer.write(Bytes::from_static(b"old")).await.unwrap();
        writer.finish().await.unwrap();
        assert_eq!(all(reader).await.unwrap(), b"old");
    });
}

#[test]
fn what_breaks_off_on_one_side_breaks_off_on_the_other() {
    block_on(async {
        let (listener, port) = listen().await;
        let client = client();
        // The server breaks off: no end, but a reset. kubectl goes on without a word on the error stream.
        let Pair { data: (reader, mut writer), error } = open(&client, port, "0").await;
        let (mut tcp, _) = listener.accept().await.unwrap();
        // A connection that breaks off before it is seen to be there is one that was refused.
        writer.write(Bytes::from_static(b"there?")).await.unwrap();
        tcp.read_exact(&mut [0; 6]).await.unwrap();
        tcp.write_all(b"half").await.unwrap();
        rustix::net::sockopt::set_socket_linger(&tcp, Some(Duration::ZERO)).unwrap();
        drop(tcp);
        assert_eq!(all(reader).await, Err(Error::Reset));
        assert_eq!(all(error).await.unwrap(), b"");
        // The client does, while the server sends and does not read.
        let Pair { data: (_reader, mut writer), .. } = open(&client, port, "1").await;
        let (mut tcp, _) = listener.accept().await.unwrap();
        writer.write(Bytes::from_static(b"unread")).await.unwrap();
        drop(writer);
        while tcp.write_all(&[1; 10_000]).await.is_ok() {}
        // The server has said all it had to say, and is still sent to.
        let Pair { data: (reader, mut writer), .. } = open(&client, port, "2").await;
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"enough").await.unwrap();
        rustix::net::shutdown(&tcp, rustix::net::Shutdown::Write).unwrap();
        assert_eq!(all(reader).await.unwrap(), b"enough");
        writer.write(Bytes::from(vec![1; 1_000_000])).await.unwrap();
        writer.finish().await.unwrap();
        let mut got = Vec::new();
        tcp.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 1_000_000);
        // All ends with the client.
        let pair = open(&client, port, "3").await;
        let (mut tcp, _) = listener.accept().await.unwrap();
        drop((pair, writer, client));
        let _ = tcp.read_to_end(&mut Vec::new()).await;
    });
}

async fn socket(config: protocol::WebSocketConfig) -> (WebSocketStream<DuplexStream>, WebSocketStream<DuplexStream>) {
    let (near, far) = duplex(64 * 1024);
    let server = WebSocketStream::from_raw_socket(far, protocol::Role::Server, Some(config)).await;
    (WebSocketStream::from_raw_socket(near, protocol::Role::Client, None).await, server)
}

#[test]
fn the_same_goes_through_a_websocket() {
    block_on(async {
        let (listener, port) = listen().await;
        tokio::spawn(echo(listener));
        let (near, far) = socket(tunnel::config()).await;
        tokio::spawn(pairs(Tunnel::new(far), place(), Duration::ZERO));
        let client = spdy::start(Tunnel::new(near), Role::Client, LIMITS).0;
        let Pair { data: (reader, mut writer), error } = open(&client, port, "0").await;
        let write = async {
            writer.write(Bytes::from(vec![7; 3_000_000])).await.unwrap();
            writer.finish().await.unwrap();
        };
        let (got, ()) = tokio::join!(all(reader), write);
        assert!(got.unwrap() == vec![7; 3_000_000]);
        assert_eq!(all(error).await.unwrap(), b"");
        client.close().await;
    });
}

#[test]
fn clients_of_old_have_two_channels_a_port() {
    block_on(async {
        let (listener, port) = listen().await;
        let nobody = nobody().await;
        for name in CHANNELS {
            let protocol = websocket::Protocol::named(Some(name)).unwrap();
            let (mut near, far) = socket(websocket::config()).await;
            let served = tokio::spawn(async move {
                channels::serve(far, protocol, &[port, nobody], place(), Duration::ZERO).await;
            });
            let server = async {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let mut got = [0; 5];
                tcp.read_exact(&mut got).await.unwrap();
                tcp.write_all(&got).await.unwrap();
            };
            let client = async {
                near.send(protocol.message(0, b"")).await.unwrap();
                near.send(protocol.message(0, b"hello")).await.unwrap();
                near.send(protocol.message(9, b"no such channel")).await.unwrap();
                let mut got = vec![Vec::new(); 4];
                while let Some(Ok(message)) = near.next().await {
                    if let Message::Close(frame) = &message {
                        assert_eq!(u16::from(frame.as_ref().unwrap().code), 1000);
                    } else if let Some((channel, bytes)) = protocol.content(message) {
                        got[usize::from(channel)].extend_from_slice(&bytes);
                    }
                }
                got
            };
            let ((), got) = tokio::join!(server, client);
            assert_eq!(got[0], [&port.to_le_bytes()[..], b"hello"].concat());
            assert_eq!(got[1], port.to_le_bytes());
            assert_eq!(got[2], nobody.to_le_bytes());
            let told = String::from_utf8_lossy(&got[3][2..]).into_owned();
            assert!(told.contains(&format!("failed to connect to localhost:{nobody}")), "{told}");
            served.await.unwrap();
        }
    });
}

#[test]
fn the_client_s_protocol_is_found() {
    let answer = |method: Method, uri: &'static str, pairs: &[(&'static str, &'static str)]| {
        let mut request = Request::new(());
        (*request.method_mut(), *request.uri_mut()) = (method, uri.parse().unwrap());
        for (name, value) in pairs {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        upgrade(&mut request, Duration::ZERO).map(|(answer, _)| answer).unwrap_or_else(|refused| refused.answer())
    };
    let spdy = |protocol| {
        let pairs = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", protocol)];
        answer(Method::POST, "/portForward/default/web", &pairs)
    };
    assert_eq!(spdy(PROTOCOL).headers()["x-stream-protocol-version"], PROTOCOL);
    assert_eq!(spdy("v4.channel.k8s.io").headers()["x-accepted-stream-protocol-versions"], PROTOCOL);
    let websocket = |uri, protocol| {
        let pairs = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "x3JJHMbDL1EzLkh9GBhXDw=="),
            ("sec-websocket-protocol", protocol),
        ];
        answer(Method::GET, uri, &pairs)
    };
    assert_eq!(websocket("/portForward/default/web", TUNNEL).headers()["sec-websocket-protocol"], TUNNEL);
    assert_eq!(websocket("/portForward/default/web", "v4.channel.k8s.io").status(), 400);
    assert_eq!(websocket("/portForward/default/web?port=80", "v4.channel.k8s.io").status(), 101);
    assert_eq!(websocket("/portForward/default/web", "v5.channel.k8s.io").status(), 400);
    assert_eq!(answer(Method::POST, "/portForward/default/web", &[]).status(), 400);
}
