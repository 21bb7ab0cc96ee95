//! One document by GET: within limits of time and size, whatever the other side does.

use std::io::{self, BufReader, Read};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::bufread::MultiGzDecoder;
use jiff::fmt::rfc2822;
use tokio_rustls::rustls;
use ureq::http::HeaderMap;

use super::place::{Place, resolve, show};
use super::{Connections, TlsSettings, Unusable};
use crate::causes::distinct;

/// Longest `ETag` or `Last-Modified` that is remembered, in bytes.
const LONGEST_VALIDATOR: usize = 1024;
/// What the buffer before the decompressor holds, in bytes.
const BUFFER: usize = 16 << 10;

/// How much time and room an answer may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// For the connection: name, proxy and TLS.
    pub connect: Duration,
    /// For the head of the answer.
    pub head: Duration,
    /// Between two pieces of it.
    pub stall: Duration,
    /// For everything, redirects included.
    pub total: Duration,
    /// Redirects that are followed.
    pub redirects: u32,
    /// A body has fewer bytes than this, as it is sent and once it is unpacked.
    pub bytes: usize,
}

impl Limits {
    /// For manifests. The kubelet gives everything 10 s, which a link by satellite (name, connection, TLS and request are
    /// five round trips of 0.7 s) and 1 MB of manifests at 1 Mbit/s do not meet together. So 10 s are for each step in
    /// which a server that says nothing makes us wait, and 30 s for all of them: a server that drips a byte now and then
    /// holds one thread for that long, and nothing waits for this thread.
    pub const MANIFEST: Limits = Limits {
        connect: Duration::from_secs(10),
        head: Duration::from_secs(10),
        stall: Duration::from_secs(10),
        total: Duration::from_secs(30),
        redirects: 5,
        bytes: crate::manifest::MAX_BYTES,
    };
}

/// What a server said of a document's version, to ask it whether there is another one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conditions {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `http://` or `https://`; a user and password in it are sent as they are by browsers.
    pub url: &'a str,
    /// Sent to the URL's own scheme, host and port alone, not where it redirects to; so is the client certificate of
    /// `tls`.
    pub headers: &'a [(String, String)],
    pub tls: &'a TlsSettings,
    /// The version that is known, so that it need not be sent again.
    pub conditions: &'a Conditions,
    pub limits: &'a Limits,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    pub status: u16,
    /// The media type, without parameters, in lower case.
    pub media_type: Option<String>,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
    /// Of this version.
    pub conditions: Conditions,
    /// Unpacked; that of status 200 only, others are not read.
    pub body: Body,
}

/// A body that has arrived, as far as can be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Body {
    pub bytes: Vec<u8>,
    /// Whether the other side said where it ends, other than by hanging up.
    pub delimited: bool,
}

/// Why there is no answer. Says no URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Error {
    pub kind: Kind,
    pub reason: String,
}

/// What went wrong, roughly: two errors of a kind are the same story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Certificates, keys, proxies or the URL itself: nothing was sent.
    Settings,
    /// No such host, no route, nobody listens, or the connection broke before an answer.
    Unreachable,
    Tls,
    Timeout,
    /// It leads somewhere where nobody goes, or in circles.
    Redirect,
    TooLarge,
    /// The body broke off.
    Truncated,
    /// It is packed in a way that cannot be unpacked.
    Encoding,
    /// No HTTP.
    Protocol,
}

impl From<Unusable> for Error {
    fn from(unusable: Unusable) -> Error {
        Error { kind: Kind::Settings, reason: unusable.to_string() }
    }
}

fn error(kind: Kind, reason: impl Into<String>) -> Error {
    Error { kind, reason: reason.into() }
}

/// Asks for a document. Blocking. Each call makes a connection of its own, and nothing is left of it: a server that has
/// moved is found, and a process that sleeps between two calls holds nothing.
///
/// # Errors
/// When no whole answer came within the limits. An answer of any status is none.
pub fn fetch(connections: &Connections, request: &Request<'_>) -> Result<Answer, Error> {
    let limits = request.limits;
    let end = Instant::now() + limits.total;
    let (mut url, authorization) = without_user(request.url);
    let own = Place::of(&url).ok_or_else(|| error(Kind::Settings, "is not a URL that can be asked"))?;
    let mut place = own.clone();
    for _ in 0..=limits.redirects {
        let home = place == own;
        let mut tls = request.tls.clone();
        if !home {
            tls.clients.clear();
        }
        let agent = connections.agent(tls, !own.plain, place.plain, &place.authority())?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(error(Kind::Timeout, too_long(limits)));
        }
        let mut asked = agent
            .get(&url)
            .config()
            .timeout_global(Some(left))
            .timeout_resolve(Some(limits.connect))
            .timeout_connect(Some(limits.connect))
            .timeout_send_request(Some(limits.head))
            .timeout_recv_response(Some(limits.head))
            .timeout_per_read(Some(limits.stall))
            .timeout_per_write(Some(limits.stall))
            .accept_encoding("gzip")
            .build()
            .header("Connection", "close");
        if home {
            for (name, value) in request.headers {
                asked = asked.header(name, value);
            }
            let given = request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
            if let Some(authorization) = authorization.as_ref().filter(|_| !given) {
                asked = asked.header("Authorization", authorization);
            }
        }
        if let Some(etag) = &request.conditions.etag {
            asked = asked.header("If-None-Match", etag);
        }
        if let Some(date) = &request.conditions.last_modified {
            asked = asked.header("If-Modified-Since", date);
        }
        let answer = asked.call().map_err(|e| failed(&e, limits))?;
        let status = answer.status().as_u16();
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            return read(answer, limits);
        }
        let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
        let location =
            location.ok_or_else(|| error(Kind::Redirect, format!("status {status} without saying where to go")))?;
        let (target, next) = resolve(&url, location).map_err(|reason| error(Kind::Redirect, reason))?;
        if next.plain && !place.plain {
            return Err(error(Kind::Redirect, format!("redirects to a place without TLS: {}", show(&target))));
        }
        (url, place) = (target, next);
    }
    Err(error(Kind::Redirect, format!("redirects more than {} times", limits.redirects)))
}

/// The answer with its body, if that is of any use.
fn read(answer: ureq::http::Response<ureq::Body>, limits: &Limits) -> Result<Answer, Error> {
    let (head, body) = answer.into_parts();
    let headers = &head.headers;
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let validator = |name: &str| {
        text(name).filter(|value| !value.is_empty() && value.len() <= LONGEST_VALIDATOR).map(str::to_owned)
    };
    let media_type = text("content-type").map(|value| value.split(';').next().unwrap_or_default());
    let mut answer = Answer {
        status: head.status.as_u16(),
        media_type: media_type.map(|value| value.trim().to_ascii_lowercase()),
        retry_after: retry_after(headers),
        conditions: Conditions { etag: validator("etag"), last_modified: validator("last-modified") },
        body: Body::default(),
    };
    if answer.status != 200 {
        return Ok(answer);
    }
    let too_large = || error(Kind::TooLarge, too_large(limits.bytes));
    let length = body.content_length();
    if length.is_some_and(|length| length >= limits.bytes as u64) {
        return Err(too_large());
    }
    let chunked = text("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    let sent = Capped { reader: body.into_reader(), left: limits.bytes };
    let encoding = text("content-encoding").unwrap_or_default().to_ascii_lowercase();
    let packed = match encoding.as_str() {
        "" | "identity" => false,
        "gzip" | "x-gzip" => true,
        other => {
            let other: String = other.chars().take(40).collect();
            return Err(error(Kind::Encoding, format!("is encoded as {other:?}, which was not asked for")));
        }
    };
    let whole = match packed {
        true => unpack(BufReader::with_capacity(BUFFER, sent), limits.bytes),
        false => all(sent),
    };
    let bytes = whole.map_err(|e| match e.kind() {
        io::ErrorKind::FileTooLarge => too_large(),
        _ => broken(&e, packed, limits),
    })?;
    answer.body = Body { bytes, delimited: packed || chunked || length.is_some() };
    Ok(answer)
}

/// What a gzip stream holds: all members of it, and nothing behind them.
///
/// # Errors
/// `FileTooLarge` at `limit` bytes, `UnexpectedEof` where it breaks off, and what `packed` itself fails with.
pub fn unpack(packed: impl io::BufRead, limit: usize) -> io::Result<Vec<u8>> {
    all(Capped { reader: MultiGzDecoder::new(packed), left: limit })
}

/// Fails at so many bytes; does not take what ends just before for what ends there.
struct Capped<R> {
    reader: R,
    left: usize,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = buf.len().min(self.left);
        let count = self.reader.read(&mut buf[..room])?;
        self.left -= count;
        if self.left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(count)
    }
}

fn all(mut reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// "larger than …" for people.
fn too_large(limit: usize) -> String {
    format!("is {limit} bytes long or longer; the limit is {} bytes", limit - 1)
}

fn too_long(limits: &Limits) -> String {
    format!("took longer than {} s", limits.total.as_secs())
}

/// Why a request failed.
fn failed(e: &ureq::Error, limits: &Limits) -> Error {
    use ureq::Timeout;
    let after = |what: &str, limit: Duration| error(Kind::Timeout, format!("{what} within {} s", limit.as_secs()));
    match e {
        ureq::Error::Timeout(Timeout::Resolve) => after("the host's address was not found", limits.connect),
        ureq::Error::Timeout(Timeout::Connect) => after("no connection", limits.connect),
        ureq::Error::Timeout(Timeout::Global) => error(Kind::Timeout, too_long(limits)),
        ureq::Error::Timeout(_) => after("no answer", limits.head),
        ureq::Error::HostNotFound => error(Kind::Unreachable, "the host's address was not found"),
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => error(Kind::Tls, distinct(e)),
        ureq::Error::Io(io) if is_tls(io) => error(Kind::Tls, io.to_string()),
        ureq::Error::Io(io) if io.kind() == io::ErrorKind::TimedOut => after("no answer", limits.head),
        ureq::Error::Io(_) | ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_) => {
            error(Kind::Unreachable, distinct(e))
        }
        ureq::Error::RequireHttpsOnly(_) => error(Kind::Redirect, "redirects to a place without TLS"),
        ureq::Error::BadUri(_) => error(Kind::Settings, "is not a URL that can be asked"),
        ureq::Error::Http(_) => error(Kind::Settings, "has a header that cannot be sent"),
        _ => error(Kind::Protocol, distinct(e)),
    }
}

fn is_tls(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|cause| cause.is::<rustls::Error>())
}

/// Why a body broke off.
fn broken(e: &io::Error, packed: bool, limits: &Limits) -> Error {
    match e.get_ref().and_then(|cause| cause.downcast_ref::<ureq::Error>()) {
        Some(ureq::Error::Timeout(ureq::Timeout::PerRead)) => {
            error(Kind::Timeout, format!("nothing came for {} s before the end", limits.stall.as_secs()))
        }
        Some(ureq::Error::Timeout(_)) => error(Kind::Timeout, too_long(limits)),
        Some(ureq::Error::Io(inner)) if inner.kind() == io::ErrorKind::UnexpectedEof => {
            error(Kind::Truncated, "broke off before its end")
        }
        Some(ureq::Error::Protocol(inner)) => error(Kind::Truncated, format!("broke off: {inner}")),
        Some(other) => error(failed(other, limits).kind, format!("broke off: {}", distinct(other))),
        None if e.kind() == io::ErrorKind::UnexpectedEof => error(Kind::Truncated, "broke off before its end"),
        None if e.kind() == io::ErrorKind::TimedOut => error(Kind::Timeout, too_long(limits)),
        None if is_tls(e) => error(Kind::Tls, format!("broke off: {e}")),
        None if packed => error(Kind::Encoding, format!("is no whole gzip stream: {e}")),
        None => error(Kind::Truncated, format!("broke off: {e}")),
    }
}

/// A number of seconds, or a date, which counts from the server's own clock: ours may be anywhere.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let value = text("retry-after")?;
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are a long time.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let at = |text: &str| rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let wait = at(value)?.duration_since(at(text("date")?)?);
    Some(Duration::try_from(wait).unwrap_or_default())
}

/// A URL without user, password and fragment, and what the two are sent as.
fn without_user(url: &str) -> (String, Option<String>) {
    let url = url.split('#').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), None) };
    let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
    let Some((user, host)) = authority.rsplit_once('@') else { return (url.to_owned(), None) };
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let both = [&decoded(name)[..], b":", &decoded(password)].concat();
    (format!("{scheme}://{host}{path}"), Some(format!("Basic {}", STANDARD.encode(both))))
}

/// A text without its `%41`.
#[must_use]
pub fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn users_and_fragments_are_taken_out_of_urls() {
        let basic = |text: &str| Some(format!("Basic {}", STANDARD.encode(text)));
        for (url, bare, sent) in [
            ("https://host/a@b?c@d#e", "https://host/a@b?c@d", None),
            ("https://me:p%40ss@host:1/a", "https://host:1/a", basic("me:p@ss")),
            ("https://me@host?x=1", "https://host?x=1", basic("me:")),
            ("https://a%zz:b%4@host", "https://host", basic("a%zz:b%4")),
            ("nonsense", "nonsense", None),
        ] {
            assert_eq!(without_user(url), (bare.to_owned(), sent), "{url}");
        }
    }

    #[test]
    fn a_pause_is_read_by_the_servers_own_clock() {
        let wait = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, value.parse().unwrap());
            }
            retry_after(&headers)
        };
        let date = ("date", "Tue, 01 Jan 1980 00:00:00 GMT");
        assert_eq!(wait(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(wait(&[("retry-after", &"9".repeat(50))]), Some(Duration::MAX.min(Duration::from_secs(u64::MAX))));
        let at = |text: &'static str| wait(&[date, ("retry-after", text)]);
        assert_eq!(at("Tue, 01 Jan 1980 00:01:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(at("Mon, 31 Dec 1979 00:00:00 GMT"), Some(Duration::ZERO), "it is over");
        for nothing in ["", "-1", "soon", "1.5"] {
            assert_eq!(at(nothing), None, "{nothing}");
        }
        assert_eq!(wait(&[("retry-after", "Tue, 01 Jan 1980 00:01:30 GMT")]), None);
    }

    #[test]
    fn gzip_is_unpacked_to_its_end_and_no_further_than_the_limit() {
        let text = b"kind: Pod\n".repeat(100);
        let gz = packed(&text);
        assert_eq!(unpack(&gz[..], 2000).unwrap(), text);
        assert_eq!(unpack(&[&gz[..], &gz[..]].concat()[..], 4000).unwrap().len(), 2000, "two members");
        assert_eq!(unpack(&gz[..], 1001).unwrap().len(), 1000);
        assert_eq!(unpack(&gz[..], 1000).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        for cut in 1..gz.len() {
            assert!(unpack(&gz[..cut], 2000).is_err(), "cut at {cut}");
        }
        assert!(unpack(&[&gz[..], b"garbage"].concat()[..], 2000).is_err());
        // A bomb: a thousandth of what it becomes.
        let bomb = packed(&vec![0; 64 << 20]);
        assert!(bomb.len() < 128 << 10);
        assert_eq!(unpack(&bomb[..], 1 << 20).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    proptest! {
        #[test]
        fn any_bytes_are_unpacked_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), limit in 1_usize..500) {
            if let Ok(out) = unpack(&bytes[..], limit) {
                prop_assert!(out.len() < limit);
            }
            prop_assert_eq!(unpack(&packed(&bytes)[..], 1000).unwrap(), bytes);
        }

        #[test]
        fn any_url_is_split(url in "\\PC{0,60}|https?://\\PC{0,20}@?\\PC{0,20}") {
            let (bare, sent) = without_user(&url);
            prop_assert!(!bare.contains('#'));
            prop_assert!(sent.is_none_or(|sent| sent.bytes().all(|b| (b' '..=b'~').contains(&b))));
        }
    }
}
