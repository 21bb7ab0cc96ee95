//! Both directions of one forwarded connection, each to its own end.

use crate::stream::PIECE;
use crate::stream::spdy;
use hyper::body::Bytes;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As it should, or only this direction is of no more use.
    Done,
    /// The other side is gone, and with it the other direction.
    Gone,
}

/// Copies between a TCP connection and a stream until both directions have ended, or one side is gone. A side that only
/// stops sending is still sent to; one that did not get all is told so by a reset.
pub(crate) async fn copy(mut tcp: TcpStream, reader: spdy::Reader, writer: spdy::Writer) {
    let mut up_ended = false;
    {
        let closed = writer.closed();
        let (from, to) = tcp.split();
        let mut up = std::pin::pin!(into_tcp(reader, to));
        let mut down = std::pin::pin!(out_of_tcp(from.as_ref(), writer));
        let mut closed = std::pin::pin!(closed);
        let mut down_ended = false;
        while !(up_ended && down_ended) {
            let end = tokio::select! {
                end = &mut up, if !up_ended => {
                    up_ended = end == End::Done;
                    end
                }
                end = &mut down, if !down_ended => {
                    down_ended = true;
                    end
                }
                _ = &mut closed => End::Gone,
            };
            if end == End::Gone {
                break;
            }
        }
    }
    if !up_ended {
        // Half of something must not look like all of it.
        let _ = rustix::net::sockopt::set_socket_linger(&tcp, Some(Duration::ZERO));
    }
}

async fn into_tcp(mut from: spdy::Reader, mut to: WriteHalf<'_>) -> End {
    loop {
        match from.read().await {
            // A server that takes no more may still have something to say.
            Ok(Some(bytes)) if to.write_all(&bytes).await.is_err() => return End::Done,
            Ok(Some(_)) => {}
            Ok(None) => {
                let _ = to.shutdown().await;
                return End::Done;
            }
            Err(_) => return End::Gone,
        }
    }
}

async fn out_of_tcp(from: &TcpStream, mut to: spdy::Writer) -> End {
    loop {
        match read(from).await {
            Ok(Some(bytes)) => {
                if to.write(bytes).await.is_err() {
                    return End::Gone;
                }
            }
            Ok(None) => return if to.finish().await.is_ok() { End::Done } else { End::Gone },
            // Not an end: the client must not take what came so far for all.
            Err(_) => {
                to.reset().await;
                return End::Gone;
            }
        }
    }
}

/// The next bytes; `None`: the end. No buffer is kept while there are none.
pub(super) async fn read(from: &TcpStream) -> io::Result<Option<Bytes>> {
    loop {
        from.readable().await?;
        let mut buffer = vec![0; PIECE];
        match from.try_read(&mut buffer) {
            Ok(0) => return Ok(None),
            // What waits in queues costs what it is, not what it might have been.
            Ok(count) if count < PIECE / 2 => return Ok(Some(Bytes::copy_from_slice(&buffer[..count]))),
            Ok(count) => {
                buffer.truncate(count);
                return Ok(Some(Bytes::from(buffer)));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
