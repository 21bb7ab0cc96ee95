//! `exec`: the command's streams over Kubernetes' WebSocket channels.

use super::client::Client;
use super::error::Error;
use super::logs::{default_container, pod_path};
use super::{print_bytes, terminal};
use crate::server::types::Status;
use crate::server::{CLOSE, RESIZE, RESULT, STDERR, STDIN, STDOUT, encode};
use futures_util::{SinkExt, StreamExt};
use std::io::{Read, Write};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::Message;

/// What to run where.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Container [default: the pod's default or first]
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Pod
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Command and arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Runs `exec`; returns the command's exit code.
pub(super) async fn exec(client: &Client, namespace: &str, options: &Options) -> Result<i32, Error> {
    let path = pod_path(namespace, &options.pod);
    let container = match &options.container {
        Some(container) => container.clone(),
        None => default_container(&client.get(&path).await?),
    };
    let mut tty = options.tty;
    if tty && options.stdin && !terminal::is_input() {
        // As kubectl: a pipe is no terminal, but the command can still run.
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        tty = false;
    }
    let mut query = format!("container={}&stdout=true", encode(&container));
    for (name, on) in [("stdin", options.stdin), ("tty", tty), ("stderr", !tty)] {
        if on {
            query.push_str(&format!("&{name}=true"));
        }
    }
    for word in &options.command {
        query.push_str(&format!("&command={}", encode(word)));
    }
    let socket = client.upgrade(&format!("{path}/exec?{query}")).await?;
    let broken = |error| Error::caused("the session broke off", &error);
    let raw = if tty && options.stdin {
        Some(terminal::Raw::enter().map_err(|error| Error::new("cannot use the terminal", error))?)
    } else {
        None
    };
    let mut input = options.stdin.then(read_input);
    let mut resized =
        signal(SignalKind::window_change()).map_err(|error| Error::new("cannot watch for signals", error))?;
    let (mut sink, mut stream) = socket.split();
    if tty && let Some(message) = resize_message() {
        sink.send(message).await.map_err(broken)?;
    }
    let status = loop {
        tokio::select! {
            message = stream.next() => match message {
                Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                    Some((&STDOUT, output)) => print_bytes(output)?,
                    Some((&STDERR, output)) => {
                        // Standard error may be closed; the command goes on all the same.
                        let _ = std::io::stderr().write_all(output);
                    }
                    Some((&RESULT, status)) => break serde_json::from_slice::<Status>(status)
                        .map_err(|error| Error::new("the agent's answer makes no sense", error))?,
                    _ => {}
                },
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(Error::new("the session broke off", "no result was sent")),
            },
            piece = next(&mut input) => match piece {
                Some(piece) => sink.send(Message::Binary(piece.into())).await.map_err(broken)?,
                None => {
                    input = None;
                    sink.send(Message::Binary(vec![CLOSE, STDIN].into())).await.map_err(broken)?;
                }
            },
            _ = resized.recv(), if tty => if let Some(message) = resize_message() {
                sink.send(message).await.map_err(broken)?;
            },
        }
    };
    drop(raw);
    exit_code(&status)
}

/// The next piece of input; never ready when there is no input.
async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads standard input on a thread of its own: it may be a file, a pipe or a terminal, and only blocking reads work
/// for all of them. The process ends without waiting for it.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    let mut message = Vec::with_capacity(count + 1);
                    message.push(STDIN);
                    message.extend_from_slice(&buffer[..count]);
                    if sender.blocking_send(message).is_err() {
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

/// The command's exit code, or why there is none.
fn exit_code(status: &Status) -> Result<i32, Error> {
    if status.status == "Success" {
        return Ok(0);
    }
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason == "ExitCode").and_then(|cause| cause.message.parse().ok());
    match code {
        Some(code) if status.reason == "NonZeroExitCode" => {
            eprintln!("command terminated with exit code {code}");
            Ok(code)
        }
        _ => {
            let why = status.message.strip_prefix("Internal error occurred: ").unwrap_or(&status.message);
            Err(Error::new("cannot exec", why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(json: &str) -> Result<i32, Error> {
        exit_code(&serde_json::from_str(json).unwrap())
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
