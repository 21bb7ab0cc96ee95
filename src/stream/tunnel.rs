//! Bytes over a WebSocket: binary messages, cut anywhere (`SPDY/3.1+portforward.k8s.io`).

use futures_util::{Sink, Stream};
use hyper::body::Bytes;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};

/// Most bytes of a message of ours.
const MESSAGE: usize = 64 * 1024;
/// Most bytes of a message of the peer's; clients send what they have read at once, which is much less.
const MAX_MESSAGE: usize = 1 << 20;

/// How large the buffers below a tunnel are.
pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// A WebSocket as a stream of bytes. Its end, in either direction, is a normal close.
#[derive(Debug)]
pub(super) struct Tunnel<S> {
    socket: WebSocketStream<S>,
    rest: Bytes,
    closing: bool,
}

impl<S> Tunnel<S> {
    pub(super) fn new(socket: WebSocketStream<S>) -> Tunnel<S> {
        Tunnel { socket, rest: Bytes::new(), closing: false }
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    let text = "a text message where bytes are expected";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                // Pings are answered below this.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(context)).map_err(broken)?;
        let bytes = bytes.get(..MESSAGE).unwrap_or(bytes);
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            ready!(Pin::new(&mut self.socket).poll_ready(context)).map_err(broken)?;
            self.closing = true;
            // 1000: clients take anything else for an error.
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            match Pin::new(&mut self.socket).start_send(Message::Close(Some(frame))) {
                Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => {}
                Err(error) => return Poll::Ready(Err(broken(error))),
            }
        }
        Pin::new(&mut self.socket).poll_flush(context).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{SinkExt, StreamExt};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio_tungstenite::tungstenite::protocol::Role;

    async fn pair() -> (Tunnel<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (near, far) = duplex(4096);
        let near = WebSocketStream::from_raw_socket(near, Role::Server, Some(config())).await;
        (Tunnel::new(near), WebSocketStream::from_raw_socket(far, Role::Client, None).await)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time") })
    }

    #[test]
    fn bytes_are_cut_anywhere_and_the_end_is_a_normal_close() {
        block_on(async {
            let (mut tunnel, mut socket) = pair().await;
            let client = async {
                socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
                for message in [&b"ab"[..], b"", b"c", b"def"] {
                    socket.send(Message::Binary(Bytes::from_static(message))).await.unwrap();
                }
                let (mut got, mut pong) = (Vec::new(), false);
                loop {
                    match socket.next().await.unwrap().unwrap() {
                        Message::Binary(bytes) => got.extend_from_slice(&bytes),
                        Message::Pong(_) => pong = true,
                        Message::Close(Some(frame)) => break assert_eq!(frame.code, CloseCode::Normal),
                        other => panic!("{other:?}"),
                    }
                }
                assert!(pong && got.len() == 200_000);
                // The close handshake ends the connection.
                assert!(socket.next().await.is_none());
            };
            // What is left of it goes with it: the client waits for that.
            let server = async move {
                let mut bytes = [0; 6];
                tunnel.read_exact(&mut bytes).await.unwrap();
                assert_eq!(&bytes, b"abcdef");
                tunnel.write_all(&vec![3; 200_000]).await.unwrap();
                tunnel.shutdown().await.unwrap();
                assert_eq!(tunnel.read(&mut bytes).await.unwrap(), 0);
            };
            tokio::join!(client, server);
        });
    }

    #[test]
    fn text_is_an_error() {
        block_on(async {
            let (mut tunnel, mut socket) = pair().await;
            socket.send(Message::Text("no".into())).await.unwrap();
            let error = tunnel.read(&mut [0; 9]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        });
    }
}
