//! `status --web`: the agent's status page in a browser. The agent serves it on its socket, which is root's; this serves it
//! on 127.0.0.1, to whoever has the address with its secret, for as long as it runs.

use super::client::Client;
use super::error::Error;
use super::print;
use crate::server::page::Part;
use crate::server::page::guard::{self, Head};
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::rand::SecureRandom;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Most connections at a time; a browser makes six.
const CONNECTIONS: usize = 32;
/// How long a browser may take to ask, and an idle connection may stay.
const HEADER_TIME: Duration = Duration::from_secs(15);
/// Largest request head, in bytes.
const MAX_HEAD: usize = 32 << 10;
/// Random bytes of the address.
const SECRET: usize = 16;

type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// Runs `status --web` until Ctrl-C.
pub(super) async fn serve(client: &Client, port: u16) -> Result<i32, Error> {
    // Where there is no agent, there is nothing to show.
    client.probe().await.map_err(|unreached| unreached.error)?;
    let cannot = |error: std::io::Error| Error::new(format!("cannot listen on 127.0.0.1:{port}"), error);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(cannot)?;
    let port = listener.local_addr().map_err(cannot)?.port();
    let secret: Arc<str> = secret()?.into();
    print(&format!(
        "http://127.0.0.1:{port}/{secret}/\nThe page is there until Ctrl-C. From another machine: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE\n"
    ))?;
    let mut connections = JoinSet::new();
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        // Cancel-safe: all of them only wait.
        tokio::select! {
            _ = &mut interrupt => return Ok(0),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(client.clone(), Arc::clone(&secret), stream))),
                // Out of file descriptors: trying at once again would spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
}

fn secret() -> Result<String, Error> {
    let mut bytes = [0; SECRET];
    let filled = ring::rand::SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Error::new("the system gives no random bytes", ""))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn connection(client: Client, secret: Arc<str>, stream: TcpStream) {
    let service = service_fn(|request| answer(&client, &secret, request));
    // How it ended is the browser's affair.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(client: &Client, secret: &str, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let part = part(request.uri().path(), secret);
    if let Err(refusal) = guard::check(&Head::of(&request), part) {
        let status = refusal.status();
        let code = status["code"].as_u64().and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
        return Ok(say(code.unwrap_or(StatusCode::FORBIDDEN), status["message"].as_str().unwrap_or_default()));
    }
    let Some(part) = part else {
        return Ok(say(StatusCode::NOT_FOUND, "want the whole address that coracle status --web has printed"));
    };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    Ok(match client.pass(&format!("/coracle/v1/page/{}{query}", part.path())).await {
        Ok(mut answer) => {
            // Of that connection, not of this one.
            answer.headers_mut().remove(CONNECTION);
            answer.headers_mut().remove(TRANSFER_ENCODING);
            answer.map(Either::Left)
        }
        Err(error) => say(StatusCode::BAD_GATEWAY, &error.to_string()),
    })
}

/// The part of the page that is at this path; none for whoever does not know the secret.
fn part(path: &str, secret: &str) -> Option<Part> {
    let (shown, rest) = path.strip_prefix('/')?.split_once('/')?;
    // Not sooner for what is wrong at the beginning.
    let same = shown.len() == secret.len() && shown.bytes().zip(secret.bytes()).fold(0, |d, (a, b)| d | (a ^ b)) == 0;
    Part::of(rest).filter(|_| same)
}

fn say(code: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Either::Right(Full::new(Bytes::from(format!("{text}\n")))));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_needed_for_each_part() {
        let secret = secret().expect("random bytes");
        assert_eq!(secret.len(), 2 * SECRET);
        assert_ne!(secret, super::secret().expect("random bytes"));
        for (path, found) in [
            (format!("/{secret}/"), Some(Part::Page)),
            (format!("/{secret}/feed"), Some(Part::Feed)),
            (format!("/{secret}/log"), Some(Part::Log)),
            (format!("/{secret}"), None),
            (format!("/{secret}/../cluster"), None),
            (format!("/{secret}/feed/"), None),
            (format!("/{}/feed", &secret[1..]), None),
            (format!("/{}/feed", "0".repeat(2 * SECRET)), None),
            ("//feed".to_owned(), None),
            ("/feed".to_owned(), None),
            ("/".to_owned(), None),
        ] {
            assert_eq!(part(&path, &secret), found, "{path}");
        }
    }
}
