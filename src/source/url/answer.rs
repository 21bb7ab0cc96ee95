//! What an answer means. Pure: every answer means one of three things, and only one of them can change a pod.

use std::mem::Discriminant;
use std::time::Duration;

use super::super::signature::SignatureError;
use crate::http::{self, Answer, Conditions};

/// What an answer means for what was said before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It still holds.
    Unchanged,
    /// This may take its place, once it is understood.
    Document(Vec<u8>, Conditions),
    /// It still holds, and something is wrong.
    Failed(Failure),
}

/// Why nothing was learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// For people; without URL.
    pub(super) reason: String,
    /// How long the server wants to be left alone.
    pub(super) retry_after: Option<Duration>,
}

/// Two failures of a kind are the same story, told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Http(http::Kind),
    Status(u16),
    /// Nothing, or nothing but spaces.
    Empty,
    Html,
    /// It may have been cut off without anybody noticing.
    Endless,
    /// An archive that cannot be read, or holds no manifest.
    Archive,
    /// Of a file: absent, unreadable, no file.
    File,
    Signature(Discriminant<SignatureError>),
}

impl Failure {
    pub(super) fn new(kind: Kind, reason: impl Into<String>) -> Failure {
        Failure { kind, reason: reason.into(), retry_after: None }
    }
}

impl From<SignatureError> for Failure {
    fn from(error: SignatureError) -> Failure {
        Failure::new(Kind::Signature(std::mem::discriminant(&error)), error.to_string())
    }
}

impl From<http::Error> for Failure {
    fn from(error: http::Error) -> Failure {
        Failure::new(Kind::Http(error.kind), error.reason)
    }
}

/// What an answer means; `asked` for another version than a known one, or for any.
pub(super) fn judge(answer: Result<Answer, http::Error>, asked: bool) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Verdict::Failed(error.into()),
    };
    let failed = |kind, reason: &str| Verdict::Failed(Failure::new(kind, reason));
    match answer.status {
        200 => {}
        304 if asked => return Verdict::Unchanged,
        status => {
            let retry_after = answer.retry_after;
            return Verdict::Failed(Failure { retry_after, ..Failure::new(Kind::Status(status), said(status)) });
        }
    }
    let body = answer.body;
    match content(&body.bytes) {
        Content::Empty => failed(
            Kind::Empty,
            "the answer is empty; to remove all pods of it, serve a list without items (kind: PodList, items: [])",
        ),
        Content::Html => failed(Kind::Html, "the answer is a page of HTML or XML, not a manifest"),
        content if !body.delimited && !content.shows_its_end(&body.bytes) => failed(
            Kind::Endless,
            "the answer has neither Content-Length nor chunks, so that nobody can tell whether it is whole; such answers are \
             taken when they are JSON, an archive, compressed, or YAML that ends with a line of three dots",
        ),
        _ => Verdict::Document(body.bytes, answer.conditions),
    }
}

/// What a status says, for people.
fn said(status: u16) -> String {
    let word = match status {
        204 => " (No Content)",
        206 => " (Partial Content)",
        304 => " (Not Modified), though nothing was known before",
        400 => " (Bad Request)",
        401 => " (Unauthorized)",
        403 => " (Forbidden)",
        404 => " (Not Found)",
        407 => " (Proxy Authentication Required)",
        410 => " (Gone)",
        429 => " (Too Many Requests)",
        500 => " (Internal Server Error)",
        502 => " (Bad Gateway)",
        503 => " (Service Unavailable)",
        504 => " (Gateway Timeout)",
        _ => "",
    };
    format!("the server answered with status {status}{word}")
}

/// What bytes seem to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Empty,
    Html,
    Gzip,
    Tar,
    Text,
}

/// Where the magic number of an archive is.
const MAGIC: std::ops::Range<usize> = 257..262;

/// What bytes seem to be, whatever the server calls them.
pub(super) fn content(bytes: &[u8]) -> Content {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Content::Gzip;
    }
    if bytes.get(MAGIC) == Some(b"ustar") || (bytes.len() >= 512 && bytes.iter().all(|&byte| byte == 0)) {
        return Content::Tar;
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    match text.first() {
        None => Content::Empty,
        // No manifest begins like this.
        Some(b'<') => Content::Html,
        Some(_) => Content::Text,
    }
}

impl Content {
    /// Whether these bytes, of this kind, would not be understood if some were missing at their end.
    fn shows_its_end(self, bytes: &[u8]) -> bool {
        match self {
            Content::Gzip | Content::Tar => true,
            Content::Empty | Content::Html => false,
            Content::Text => {
                let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii();
                text.starts_with(b"{") || text.ends_with(b"\n...")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Body;

    fn answer(status: u16, bytes: &[u8], delimited: bool) -> Result<Answer, http::Error> {
        Ok(Answer { status, body: Body { bytes: bytes.to_vec(), delimited }, ..Answer::default() })
    }

    fn kind(verdict: Verdict) -> Kind {
        match verdict {
            Verdict::Failed(failure) => failure.kind,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_whole_answer_of_status_200_with_something_in_it_is_a_document() {
        let pod = b"kind: Pod\n";
        assert_eq!(judge(answer(200, pod, true), true), Verdict::Document(pod.to_vec(), Conditions::default()));
        for status in (100..600).filter(|status| *status != 200) {
            let expected = if status == 304 { None } else { Some(Kind::Status(status)) };
            let verdict = judge(answer(status, pod, true), true);
            match expected {
                None => assert_eq!(verdict, Verdict::Unchanged),
                Some(expected) => assert_eq!(kind(verdict), expected),
            }
            assert_eq!(kind(judge(answer(status, pod, true), false)), Kind::Status(status), "nothing was known");
        }
        for empty in [&b""[..], b" \n\t\r\n", b"\xef\xbb\xbf\n"] {
            assert_eq!(kind(judge(answer(200, empty, true), true)), Kind::Empty);
        }
        for html in [&b"<html>"[..], b"\n  <!DOCTYPE html>", b"<?xml version='1.0'?>", b"\xef\xbb\xbf<!-- x -->"] {
            assert_eq!(kind(judge(answer(200, html, true), true)), Kind::Html);
        }
        let error = http::Error { kind: http::Kind::Timeout, reason: "no answer within 10 s".into() };
        assert_eq!(kind(judge(Err(error), true)), Kind::Http(http::Kind::Timeout));
    }

    #[test]
    fn what_ends_with_the_connection_must_show_its_own_end() {
        for whole in [&b"{\"kind\": \"Pod\"}"[..], b"kind: Pod\n...\n", b"\x1f\x8b\x08rest"] {
            assert!(matches!(judge(answer(200, whole, false), true), Verdict::Document(..)));
        }
        for unknown in [&b"kind: Pod\n"[..], b"kind: Pod\n---\n", b"- {a: b}", b"kind: Pod..."] {
            assert_eq!(kind(judge(answer(200, unknown, false), true)), Kind::Endless);
        }
    }

    #[test]
    fn a_pause_that_was_asked_for_is_passed_on() {
        let mut asked = answer(503, b"", true).unwrap();
        asked.retry_after = Some(Duration::from_secs(7));
        let Verdict::Failed(failure) = judge(Ok(asked), true) else { panic!() };
        assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(failure.reason, "the server answered with status 503 (Service Unavailable)");
    }
}
