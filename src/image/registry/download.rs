//! A blob as a stream that outlives its connections.

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::client::{Answer, Incoming, Session};
use super::manifest::Descriptor;
use super::{Error, LayerState, Progress};

/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);
/// So many bytes are progress that earns new attempts, and so often that happens at most for one blob.
const PROGRESS: u64 = 64 << 10;
const MOST_CONNECTIONS: u32 = 1000;

/// The bytes of a blob, from the first to the last and no more. A connection that breaks is replaced by another one that
/// goes on where it ended.
///
/// Who reads it is told only that something failed; what that was is in [`Download::failure`].
pub(super) struct Download<'a> {
    session: &'a Session<'a>,
    blob: &'a Descriptor,
    /// Where it is instead of in the registry.
    url: Option<&'a str>,
    progress: &'a (dyn Fn(Progress) + Sync),
    told: Option<Instant>,
    at: u64,
    body: Option<Incoming<'a>>,
    shown: String,
    /// Of this content, as its first server named it.
    etag: Option<String>,
    /// Tries since there was progress, and how far it was then.
    attempt: u32,
    advanced: u64,
    connections: u32,
    failure: &'a Mutex<Option<Error>>,
}

impl<'a> Download<'a> {
    pub fn new(
        session: &'a Session<'a>,
        blob: &'a Descriptor,
        url: Option<&'a str>,
        progress: &'a (dyn Fn(Progress) + Sync),
        failure: &'a Mutex<Option<Error>>,
    ) -> Download<'a> {
        Download {
            session,
            blob,
            url,
            progress,
            told: None,
            at: 0,
            body: None,
            shown: String::new(),
            etag: None,
            attempt: 0,
            advanced: 0,
            connections: 0,
            failure,
        }
    }

    fn protocol(&self, reason: String) -> Error {
        Error::Protocol { url: self.shown.clone(), reason }
    }

    fn wrong_size(&self, actual: u64) -> Error {
        self.protocol(format!("has {actual} bytes, but the manifest says {}", self.blob.size))
    }

    /// Connects, so that the next byte of the body is the one at `at`.
    fn open(&mut self) -> Result<(), Error> {
        let mut headers = vec![("accept".to_owned(), "*/*".to_owned())];
        if self.at > 0 {
            headers.push(("range".into(), format!("bytes={}-", self.at)));
            // The digest is checked in the end anyway; this only saves the transfer of something else.
            headers.extend(self.etag.clone().map(|etag| ("if-range".to_owned(), etag)));
        }
        let answer = match self.url {
            Some(url) => self.session.get_foreign(url, &headers)?,
            None => self.session.get(&format!("blobs/{}", self.blob.digest), &headers)?,
        };
        self.shown.clone_from(&answer.url);
        if let Some(encoding) = answer.header("content-encoding").filter(|encoding| *encoding != "identity") {
            return Err(self.protocol(format!("is encoded ({encoding}), though that was not asked for")));
        }
        // Only strong ones name the very bytes.
        self.etag = answer.header("etag").filter(|etag| etag.starts_with('"')).map(str::to_owned);
        let skip = self.start(&answer)?;
        let mut body = answer.body;
        let skipped = io::copy(&mut body.by_ref().take(skip), &mut io::sink());
        match skipped {
            Ok(count) if count == skip => {
                self.body = Some(body);
                Ok(())
            }
            Ok(_) => Err(Error::Unavailable { url: self.shown.clone(), reason: "the connection ended".into() }),
            Err(error) => Err(Error::Unavailable { url: self.shown.clone(), reason: error.to_string() }),
        }
    }

    /// How much of the answer's body comes before the byte that is wanted.
    fn start(&self, answer: &Answer<'_>) -> Result<u64, Error> {
        if answer.status == 206 {
            let range = answer.header("content-range").and_then(parse_range);
            let Some((first, total)) = range else {
                return Err(self.protocol("a part of the content, but it does not say which".into()));
            };
            if let Some(total) = total.filter(|total| *total != self.blob.size) {
                return Err(self.wrong_size(total));
            }
            return match self.at.checked_sub(first) {
                Some(skip) => Ok(skip),
                None => Err(self.protocol(format!("the part from byte {first} instead of {}", self.at))),
            };
        }
        match answer.body.length {
            Some(length) if length != self.blob.size => Err(self.wrong_size(length)),
            // The whole: ranges are not understood there, or the content has changed.
            _ => Ok(self.at),
        }
    }

    /// Fills some of `buf`; 0 is the end.
    fn advance(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        loop {
            self.session.halt.check()?;
            if self.body.is_none() {
                self.reconnect()?;
            }
            let Some(body) = self.body.as_mut() else { continue };
            if self.at == self.blob.size {
                // Exactly this many, or the digest would be of something else than was announced.
                let mut more = [0];
                return match body.read(&mut more) {
                    Ok(1..) => {
                        Err(self.protocol(format!("has more than the {} bytes of the manifest", self.blob.size)))
                    }
                    // Whatever ends the connection now: the content is here.
                    _ => Ok(0),
                };
            }
            let wanted = (self.blob.size - self.at).min(buf.len() as u64) as usize;
            let reason = match body.read(&mut buf[..wanted]) {
                Ok(0) => format!("ended after {} of {} bytes", self.at, self.blob.size),
                Ok(count) => {
                    self.at += count as u64;
                    return Ok(count);
                }
                Err(error) => format!("{error} (after {} of {} bytes)", self.at, self.blob.size),
            };
            self.body = None;
            self.session.halt.check()?;
            (self.session.retrying)(format!("{}: {reason}", self.shown));
            if self.at >= self.advanced + PROGRESS {
                self.advanced = self.at;
                self.attempt = 0;
            }
            if self.attempt >= self.session.patience.attempts || self.connections >= MOST_CONNECTIONS {
                return Err(Error::Unavailable { url: self.shown.clone(), reason });
            }
        }
    }

    /// Opens it, again and again if needed.
    fn reconnect(&mut self) -> Result<(), Error> {
        loop {
            self.attempt += 1;
            self.connections += 1;
            if self.attempt > 1 {
                self.session.halt.sleep(self.session.patience.pause_before(self.attempt))?;
            }
            match self.open() {
                Err(Error::Unavailable { url, reason })
                    if self.attempt < self.session.patience.attempts && self.connections < MOST_CONNECTIONS =>
                {
                    (self.session.retrying)(format!("{url}: {reason}"));
                }
                other => return other,
            }
        }
    }

    fn tell(&mut self, state: LayerState) {
        let now = Instant::now();
        let last = state == LayerState::Done;
        if !last && self.told.is_some_and(|told| now.duration_since(told) < TELL) {
            return;
        }
        self.told = Some(now);
        let (digest, size) = (self.blob.digest.clone(), self.blob.size);
        (self.progress)(Progress::Layer { digest, size, done: self.at, state });
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        match self.advance(buf) {
            Ok(count) => {
                if count > 0 {
                    self.tell(LayerState::Downloading);
                }
                Ok(count)
            }
            Err(error) => {
                let told = io::Error::other(error.to_string());
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(told)
            }
        }
    }
}

/// First byte and total of a `Content-Range`; the total may be unknown.
pub(super) fn parse_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    let total = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_ranges() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_range(" bytes 0-0/* "), Some((0, None)));
        for bad in ["", "bytes", "bytes */10", "bytes 9-5/10", "bytes 5-10/10", "items 1-2/3", "bytes -1-2/3"] {
            assert_eq!(parse_range(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn content_ranges_never_panic(header in "\\PC{0,40}|bytes [0-9*]{0,30}-[0-9*]{0,30}/[0-9*]{0,30}") {
            let _ = parse_range(&header);
        }
    }
}
