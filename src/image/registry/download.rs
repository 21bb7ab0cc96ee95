//! A blob as a stream that outlives its connections.

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::client::Session;
use super::exchange::{Answer, Incoming};
use super::manifest::Descriptor;
use super::{Error, LayerState, Progress};

/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);
/// So many bytes are progress that earns new attempts, and so often that happens at most for one blob.
///
/// They also have to come within [`Patience::progress`](super::exchange::Patience::progress), or else the blob is given
/// up: a server that trickles would hold a pull, and all that wait behind it, for ever. With 64 KiB in five minutes that
/// is 218 bytes a second, a tenth of what the slowest radio link that carries images at all gives each of three layers.
/// Counted is the time spent on the network; a slow disk here is not the server's fault.
pub(super) const PROGRESS: u64 = 64 << 10;
const MOST_CONNECTIONS: u32 = 1000;
/// A server that cannot go on in the middle sends the beginning again; so many times the blob is listened to at most.
const MOST_REPEATED: u64 = 8;

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
    /// Bytes of the body that are here already, and all that were.
    skip: u64,
    repeated: u64,
    /// Time spent waiting, and what came, since there was progress of either kind.
    waited: Duration,
    came: u64,
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
            skip: 0,
            repeated: 0,
            waited: Duration::ZERO,
            came: 0,
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
        // Only strong ones name the very bytes.
        self.etag = answer.header("etag").filter(|etag| etag.starts_with('"')).map(str::to_owned);
        self.skip = self.start(&answer)?;
        self.repeated = self.repeated.saturating_add(self.skip);
        if self.repeated > self.blob.size.saturating_mul(MOST_REPEATED) {
            return Err(self.protocol(format!(
                "begins from the start again and again (at {} of {} bytes)",
                self.at, self.blob.size
            )));
        }
        self.body = Some(answer.body);
        Ok(())
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
            let begun = Instant::now();
            if self.body.is_none() {
                let opened = self.reconnect();
                self.waited += begun.elapsed();
                opened?;
            }
            let Some(body) = self.body.as_mut() else { continue };
            if self.at == self.blob.size && self.skip == 0 {
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
            let left = if self.skip > 0 { self.skip } else { self.blob.size - self.at };
            let wanted = left.min(buf.len() as u64) as usize;
            let begun = Instant::now();
            let read = body.read(&mut buf[..wanted]);
            self.waited += begun.elapsed();
            let reason = match read {
                Ok(0) => format!("ended after {} of {} bytes", self.at, self.blob.size),
                Ok(count) => {
                    self.count(count as u64)?;
                    if self.skip > 0 {
                        self.skip -= count as u64;
                        continue;
                    }
                    self.at += count as u64;
                    return Ok(count);
                }
                Err(error) => format!("{error} (after {} of {} bytes)", self.at, self.blob.size),
            };
            self.body = None;
            self.session.halt.check()?;
            self.count(0)?;
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

    /// So many bytes have come: whether that is enough for the time that it took.
    fn count(&mut self, bytes: u64) -> Result<(), Error> {
        self.came += bytes;
        if self.came >= PROGRESS {
            (self.came, self.waited) = (0, Duration::ZERO);
        }
        if self.waited <= self.session.patience.progress {
            return Ok(());
        }
        let (came, time) = (self.came, self.session.patience.progress);
        let reason = format!("too slow: {came} bytes in {time:?} (after {} of {} bytes)", self.at, self.blob.size);
        Err(Error::Unavailable { url: self.shown.clone(), reason })
    }

    /// Opens it, again and again if needed.
    fn reconnect(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            self.attempt += 1;
            self.connections += 1;
            if self.attempt > 1 {
                self.session.halt.sleep(self.session.patience.pause_before(self.attempt))?;
            }
            match self.open() {
                Err(Error::Unavailable { url, reason })
                    if self.attempt < self.session.patience.attempts
                        && self.connections < MOST_CONNECTIONS
                        && self.waited + begun.elapsed() < self.session.patience.progress =>
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
