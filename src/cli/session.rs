//! The near end of `exec` and `attach`: the command's streams over Kubernetes' WebSocket channels.

use super::client::Socket;
use super::error::Error;
use super::{print_bytes, terminal};
use crate::server::types::Status;
use crate::stream::websocket::{CLOSE, RESIZE, RESULT, STDERR, STDIN, STDOUT};
use futures_util::{SinkExt, StreamExt};
use std::io::{Read, Write};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::Message;

/// Bytes of a message.
const PIECE: usize = 32 * 1024;
/// Pieces of input that may wait.
const QUEUE: usize = 4;

/// Which of the caller's streams are passed on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams {
    /// Standard input.
    pub(super) stdin: bool,
    /// The terminal.
    pub(super) tty: bool,
}

impl Streams {
    /// As kubectl: without a terminal here there is none there, but the command can still run.
    pub(super) fn possible(self) -> Streams {
        if self.tty && self.stdin && !terminal::is_input() {
            eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
            return Streams { tty: false, ..self };
        }
        self
    }

    /// For the query.
    pub(super) fn query(self) -> String {
        let mut query = "stdout=true".to_owned();
        for (name, on) in [("stdin", self.stdin), ("tty", self.tty), ("stderr", !self.tty)] {
            if on {
                query.push_str(&format!("&{name}=true"));
            }
        }
        query
    }
}

/// Passes on this process' streams until the far side ends; returns how it ended.
pub(super) async fn interact(socket: Socket, streams: Streams) -> Result<Status, Error> {
    let raw = if streams.tty && streams.stdin {
        Some(terminal::Raw::enter().map_err(|error| Error::new("cannot use the terminal", error))?)
    } else {
        None
    };
    let input = streams.stdin.then(|| read_from(std::io::stdin()));
    let status = talk(socket, input, streams.tty, print_bytes).await;
    drop(raw);
    status
}

/// Sends `input` and takes what comes until the far side ends. Both at once: the far side may stop to read until somebody
/// reads what it writes. Its standard error goes to this process'.
pub(super) async fn talk(
    socket: Socket,
    input: Option<mpsc::Receiver<Vec<u8>>>,
    tty: bool,
    mut output: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<Status, Error> {
    let broken = |error| Error::caused("the session broke off", &error);
    let (mut sink, mut stream) = socket.split();
    let mut resized =
        signal(SignalKind::window_change()).map_err(|error| Error::new("cannot watch for signals", error))?;
    let send = async {
        let mut input = input;
        if tty && let Some(message) = resize_message() {
            sink.send(message).await?;
        }
        loop {
            let message = tokio::select! {
                piece = next(&mut input) => match piece {
                    Some(piece) => Message::Binary(piece.into()),
                    None => {
                        input = None;
                        Message::Binary(vec![CLOSE, STDIN].into())
                    }
                },
                _ = resized.recv(), if tty => match resize_message() {
                    Some(message) => message,
                    None => continue,
                },
            };
            sink.send(message).await?;
        }
    };
    let receive = async {
        loop {
            match stream.next().await {
                Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                    Some((&STDOUT, said)) => output(said)?,
                    Some((&STDERR, said)) => {
                        // Standard error may be closed; the command goes on all the same.
                        let _ = std::io::stderr().write_all(said);
                    }
                    Some((&RESULT, [])) => {}
                    Some((&RESULT, status)) => {
                        return serde_json::from_slice::<Status>(status)
                            .map_err(|error| Error::new("the agent's answer makes no sense", error));
                    }
                    _ => {}
                },
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(Error::new("the session broke off", "no result was sent")),
            }
        }
    };
    let mut receive = std::pin::pin!(receive);
    tokio::select! {
        status = &mut receive => status,
        // What it said before it hung up says more than that it did.
        Err::<std::convert::Infallible, _>(error) = send => match receive.await {
            Ok(status) => Ok(status),
            Err(_) => Err(broken(error)),
        },
    }
}

/// The next piece of input; never ready when there is no input.
async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads input on a thread of its own: it may be a file, a pipe or a terminal, and only blocking reads work for all of them.
/// The process ends without waiting for it.
pub(super) fn read_from(mut input: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut message = vec![STDIN; PIECE + 1];
        loop {
            match input.read(&mut message[1..]) {
                Ok(0) => return,
                Ok(count) => {
                    if sender.blocking_send(message[..=count].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

fn resize_message() -> Option<Message> {
    let (rows, columns) = terminal::size()?;
    let mut message = vec![RESIZE];
    message.extend_from_slice(format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes());
    Some(Message::Binary(message.into()))
}

/// The command's exit code, or why there is none; `what` was not possible.
pub(super) fn exit_code(what: &str, status: &Status) -> Result<i32, Error> {
    if status.status == "Success" {
        return Ok(0);
    }
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason == "ExitCode").and_then(|cause| cause.message.parse().ok());
    match code {
        Some(code) if status.reason == "NonZeroExitCode" => Ok(code),
        _ => {
            let why = status.message.strip_prefix("Internal error occurred: ").unwrap_or(&status.message);
            Err(Error::new(what, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(json: &str) -> Result<i32, Error> {
        exit_code("cannot exec", &serde_json::from_str(json).unwrap())
    }

    #[test]
    fn the_result_becomes_the_exit_code() {
        assert_eq!(code(r#"{"metadata":{},"status":"Success"}"#), Ok(0));
        let failed = r#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#;
        assert_eq!(code(failed), Ok(42));
        let broken =
            code(r#"{"status":"Failure","reason":"InternalError","message":"Internal error occurred: no sh"}"#);
        assert_eq!(broken.unwrap_err().to_string(), "error: cannot exec: no sh");
        assert!(code("{}").is_err());
    }
}
