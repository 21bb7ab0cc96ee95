//! One HTTP request that can be given up, and its answer.
//!
//! Nothing of ureq's own comfort is used: redirects are followed and answers judged by [`client`](super::client), where
//! it is known which headers may go along. Whatever the other side does, every wait here has an end, and ends at once
//! when the pull is cancelled.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::HeaderMap;

use super::Error;
use super::tls;
use crate::causes::distinct;
use crate::http::place::show;

/// Longest pause between two tries. A `Retry-After` is obeyed up to it: who wants more gets what is left of the attempts.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a wait looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(50);
/// Pieces that bodies are read in; some wait for who reads them.
const PIECE: usize = 64 << 10;
const WAITING: usize = 4;
/// So much of an error's body is read for its message, in bytes.
const LARGEST_COMPLAINT: u64 = 8 << 10;

/// How long is waited for what.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// Tries of one request, or of one layer without progress in between.
    pub attempts: u32,
    /// Before the second try; doubled for each further one.
    pub pause: Duration,
    /// For a connection, by way of a proxy and with TLS.
    pub connect: Duration,
    /// For the head of an answer, and for the next byte of a body.
    pub stall: Duration,
    /// For [`PROGRESS`](super::download::PROGRESS) more bytes of a blob, over all connections and pauses.
    pub progress: Duration,
    /// For a whole document, and for all of one registry with their retries and pauses.
    pub document: Duration,
    pub documents: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            attempts: 5,
            pause: Duration::from_millis(500),
            connect: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            // As long as containerd waits for any progress (image_pull_progress_timeout).
            progress: Duration::from_secs(300),
            document: Duration::from_secs(120),
            documents: Duration::from_secs(600),
        }
    }
}

impl Patience {
    /// For the head of an answer, with the way there.
    pub fn answer(&self) -> Duration {
        self.connect + self.stall * 4
    }

    /// Before try `attempt`, the first being 1.
    pub fn pause_before(&self, attempt: u32) -> Duration {
        self.pause.saturating_mul(1 << attempt.saturating_sub(2).min(6)).min(LONGEST_PAUSE)
    }
}

/// Says that nobody wants the result any more: a person, or another part of the same pull that failed.
#[derive(Debug)]
pub(super) struct Halt<'a> {
    pub asked: &'a AtomicBool,
    pub failed: AtomicBool,
}

impl Halt<'_> {
    pub fn is_set(&self) -> bool {
        self.asked.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<(), Error> {
        if self.is_set() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// # Errors
    /// [`Error::Cancelled`], soon after that is so.
    pub fn sleep(&self, time: Duration) -> Result<(), Error> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(GLANCE)),
                _ => return Ok(()),
            }
        }
    }
}

/// The head of an answer, and its body.
pub(super) struct Answer<'a> {
    pub status: u16,
    pub headers: HeaderMap,
    /// Where it came from in the end, without what may be secret.
    pub url: String,
    pub body: Incoming<'a>,
    /// Whether another host than the asked one answers.
    pub elsewhere: bool,
    /// What was sent to it and must not be told, should it repeat that.
    pub secrets: Vec<String>,
}

impl Answer<'_> {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What a registry says about an error, short and of one line.
    pub fn complaint(&mut self) -> String {
        self.body.within(self.body.stall);
        let mut content = Vec::new();
        // What has come until an error counts.
        let _ = self.body.by_ref().take(LARGEST_COMPLAINT).read_to_end(&mut content);
        complaint(self.status, &content, &self.secrets)
    }

    /// The body, which must be short and come within `time`.
    ///
    /// # Errors
    /// [`Error::Image`] with its limit, [`Error::Unavailable`] when it breaks off.
    pub fn document(&mut self, limit: u64, time: Duration) -> Result<Vec<u8>, Error> {
        let too_large = || Error::Image(crate::image::Error::Limit { what: "bytes in a document", limit });
        if self.body.length.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        self.body.within(time);
        let mut content = Vec::new();
        let read = self.body.by_ref().take(limit + 1).read_to_end(&mut content);
        self.body.halt.check()?;
        match read {
            Ok(_) if content.len() as u64 > limit => Err(too_large()),
            Ok(_) => Ok(content),
            Err(error) => Err(Error::Unavailable { url: self.url.clone(), reason: error.to_string() }),
        }
    }
}

/// One line for a status and the registry's own words (`{"errors":[{"code":…,"message":…}]}`).
pub(super) fn complaint(status: u16, content: &[u8], secrets: &[String]) -> String {
    let value: serde_json::Value = serde_json::from_slice(content).unwrap_or_default();
    let first = &value["errors"][0];
    let words = [&first["code"], &first["message"], &value["details"], &value["error_description"]];
    let words: Vec<&str> = words.iter().filter_map(|word| word.as_str()).filter(|word| !word.is_empty()).collect();
    let name = ureq::http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
    let mut line = match words.is_empty() {
        true => format!("{status} {}", name.unwrap_or("(unknown status)")),
        false => format!("{status} {}", words.join(": ")),
    };
    for secret in secrets {
        line = line.replace(secret.as_str(), "***");
    }
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// A body on its way. Another thread reads it from the network, so that whoever waits for it can be told to stop.
pub(super) struct Incoming<'a> {
    pieces: Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
    /// As the head says; `None`: not said.
    pub length: Option<u64>,
    halt: &'a Halt<'a>,
    stall: Duration,
    /// After which nothing is waited for.
    end: Option<Instant>,
}

impl Incoming<'_> {
    /// Ends after `time` in any case.
    fn within(&mut self, time: Duration) {
        self.end = Some(Instant::now() + time);
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            let stalled = Instant::now() + self.stall + self.stall;
            let end = self.end.map_or(stalled, |end| end.min(stalled));
            loop {
                if self.halt.is_set() {
                    return Err(io::Error::other("cancelled"));
                }
                match self.pieces.recv_timeout(GLANCE) {
                    Ok(piece) => {
                        self.current = piece?;
                        self.at = 0;
                        break;
                    }
                    Err(RecvTimeoutError::Disconnected) => return Ok(0),
                    Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                    Err(RecvTimeoutError::Timeout) => {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "the rest does not come"));
                    }
                }
            }
        }
        if self.end.is_some_and(|end| Instant::now() >= end) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "takes too long"));
        }
        let count = (self.current.len() - self.at).min(buf.len());
        buf[..count].copy_from_slice(&self.current[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// A request, to be sent to one URL after the other.
#[derive(Clone, Default)]
pub(super) struct Ask {
    pub headers: Vec<(String, String)>,
    /// A form to post; `None`: GET.
    pub form: Option<String>,
}

/// Sends one request and waits for the head of its answer.
pub(super) fn exchange<'a>(
    agent: &Agent,
    url: &str,
    ask: &Ask,
    patience: &Patience,
    halt: &'a Halt<'a>,
) -> Result<Answer<'a>, Fault> {
    halt.check()?;
    let shown = show(url);
    let failed = |reason: String| Error::Unavailable { url: shown.clone(), reason };
    let (head, answered) = sync_channel(1);
    let (full, pieces) = sync_channel(WAITING);
    let (agent, address, ask) = (agent.clone(), url.to_owned(), ask.clone());
    let (connect, stall) = (patience.connect, patience.stall);
    thread::Builder::new()
        .name("registry".into())
        .spawn(move || transfer(&agent, &address, ask, (connect, stall), &head, &full))
        .map_err(|e| failed(format!("cannot start a thread: {e}")))?;
    // The other thread has time-outs for each step; this one is for what they forget.
    let end = Instant::now() + patience.answer();
    let answer = loop {
        halt.check()?;
        match answered.recv_timeout(GLANCE) {
            Ok(answer) => break answer,
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
            Err(_) => return Err(failed("no answer".into()).into()),
        }
    };
    let (status, headers, length) =
        answer.map_err(|e| Fault { no_tls: tls::may_be_plain(&e), error: failed(distinct(&e)) })?;
    let body = Incoming { pieces, current: Vec::new(), at: 0, length, halt, stall: patience.stall, end: None };
    Ok(Answer { status, headers, url: shown, body, elsewhere: false, secrets: Vec::new() })
}

/// Why there is no answer.
pub(super) struct Fault {
    pub error: Error,
    /// Whether it looks as if the other side spoke no TLS.
    pub no_tls: bool,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault { error, no_tls: false }
    }
}

type Head = Result<(u16, HeaderMap, Option<u64>), ureq::Error>;

/// Runs on a thread of its own until the body is complete, or nobody reads it any more.
fn transfer(
    agent: &Agent,
    url: &str,
    ask: Ask,
    (connect, stall): (Duration, Duration),
    head: &SyncSender<Head>,
    full: &SyncSender<io::Result<Vec<u8>>>,
) {
    macro_rules! prepared {
        ($request:expr) => {{
            let mut request = $request
                .config()
                .http_status_as_error(false)
                .max_redirects(0)
                .timeout_resolve(Some(stall))
                .timeout_connect(Some(connect))
                .timeout_send_request(Some(stall))
                .timeout_recv_response(Some(stall))
                .timeout_per_read(Some(stall))
                .timeout_per_write(Some(stall))
                .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
                // A proxy on the way must not pack what has a digest.
                .accept_encoding("identity")
                .build();
            for (name, value) in ask.headers {
                request = request.header(name, value);
            }
            request
        }};
    }
    let answer = match ask.form {
        Some(form) => prepared!(agent.post(url)).content_type("application/x-www-form-urlencoded").send(form.as_str()),
        None => prepared!(agent.get(url)).call(),
    };
    // Whoever asked may be gone: then there is nothing left to do.
    let response = match answer {
        Ok(response) => response,
        Err(error) => return drop(head.send(Err(error))),
    };
    let (parts, body) = response.into_parts();
    if head.send(Ok((parts.status.as_u16(), parts.headers, body.content_length()))).is_err() {
        return;
    }
    let mut reader = body.into_reader();
    loop {
        let mut piece = vec![0; PIECE];
        let piece = match reader.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                piece.truncate(count);
                Ok(piece)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let last = piece.is_err();
        if full.send(piece).is_err() || last {
            return;
        }
    }
}
