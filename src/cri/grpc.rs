//! gRPC without streams: one message in, one message out, a status. The framing is pure; what is of HTTP/2 is
//! hyper's.
//!
//! A message is preceded by a byte that tells whether it is compressed (never, here) and its length as a big-endian `u32`.

use hyper::body::{Body, Bytes, Frame};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use prost::Message;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Most bytes of a request's message: a long command has to fit.
pub(super) const MAX_REQUEST: usize = 1 << 20;
/// Most bytes of an answer's message (as the CRI's clients: 16 MiB).
pub(super) const MAX_ANSWER: usize = 16 << 20;
/// Most bytes of a status' text: it travels in a header.
const MAX_TEXT: usize = 4 * 1024;
/// Of the flag and the length.
const PREFIX: usize = 5;

/// Why a call failed, in gRPC's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Status {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Status {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Status {
        Status { code, message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Status {
        Status::new(Code::InvalidArgument, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Status {
        Status::new(Code::NotFound, message)
    }
}

/// The message of a request's body.
pub(super) fn unframe(body: &[u8]) -> Result<&[u8], Status> {
    let Some((prefix, message)) = body.split_first_chunk::<PREFIX>() else {
        return Err(Status::invalid("the request has no message"));
    };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Status::new(Code::Unimplemented, "compressed messages are not read here"));
    }
    match usize::try_from(u32::from_be_bytes(length)) {
        Ok(length) if length == message.len() => Ok(message),
        _ => Err(Status::invalid("the request is not one whole message")),
    }
}

/// A message as it travels.
pub(super) fn frame(message: &impl Message) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    if length > MAX_ANSWER {
        return Err(Status::new(Code::ResourceExhausted, "the answer is larger than the CRI's clients read"));
    }
    let mut bytes = Vec::with_capacity(PREFIX + length);
    bytes.push(0);
    // At most MAX_ANSWER.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut bytes);
    Ok(bytes.into())
}

/// `grpc-message` is printable ASCII; everything else, and `%`, is percent-encoded.
fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text[..text.floor_char_boundary(MAX_TEXT)].bytes() {
        match byte {
            b'%' | ..b' ' | 0x7f.. => {
                // Writing to a string does not fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

/// How long the client waits (`grpc-timeout`): digits and a unit.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number: u64 = number.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    parsed.map(Some).ok_or_else(|| Status::invalid("grpc-timeout is malformed"))
}

/// What is wrong with a request before its message is read, as an answer of plain HTTP.
pub(super) fn refusal<B>(request: &Request<B>) -> Option<StatusCode> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let grpc = matches!(kind, "application/grpc" | "application/grpc+proto");
    match *request.method() {
        Method::POST if grpc => None,
        Method::POST => Some(StatusCode::UNSUPPORTED_MEDIA_TYPE),
        _ => Some(StatusCode::METHOD_NOT_ALLOWED),
    }
}

/// The body of an answer: a message, then the status.
pub(super) struct Reply {
    message: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.message.take() {
            Some(message) => Some(Frame::data(message)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.trailers.is_none()
    }
}

/// `grpc-status`, and `grpc-message` where there is something to say.
fn status_headers(status: Option<&Status>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let code = status.map_or(0, |status| status.code as u16);
    headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(code));
    if let Some(status) = status
        && let Ok(message) = HeaderValue::try_from(percent(&status.message))
    {
        headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    headers
}

/// The answer to a call.
pub(super) fn response(answer: Result<Bytes, Status>) -> Response<Reply> {
    let mut response = match answer {
        Ok(message) => Response::new(Reply { message: Some(message), trailers: Some(status_headers(None)) }),
        // Without a message the status is in the head.
        Err(status) => {
            let mut response = Response::new(Reply { message: None, trailers: None });
            *response.headers_mut() = status_headers(Some(&status));
            response
        }
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// An answer of plain HTTP, without a body.
pub(super) fn plain(code: StatusCode) -> Response<Reply> {
    let mut response = Response::new(Reply { message: None, trailers: None });
    *response.status_mut() = code;
    response
}

#[cfg(test)]
mod tests {
    use super::super::v1::{ListContainersRequest, PullImageRequest, VersionRequest, VersionResponse};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_one_whole_uncompressed_message() {
        assert_eq!(unframe(&[0, 0, 0, 0, 2, 7, 8]).unwrap(), [7, 8]);
        assert!(unframe(&[0, 0, 0, 0, 0]).unwrap().is_empty());
        assert_eq!(unframe(&[1, 0, 0, 0, 0]).unwrap_err().code, Code::Unimplemented);
        for bad in [&[][..], &[0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 1, 2, 3], &[0, 255, 255, 255, 255, 1]] {
            assert_eq!(unframe(bad).unwrap_err().code, Code::InvalidArgument, "{bad:?}");
        }
        let version = VersionResponse { version: "0.1.0".into(), ..VersionResponse::default() };
        let framed = frame(&version).unwrap();
        assert_eq!(VersionResponse::decode(unframe(&framed).unwrap()).unwrap(), version);
        let long = VersionRequest { version: "x".repeat(MAX_ANSWER) };
        assert_eq!(frame(&long).unwrap_err().code, Code::ResourceExhausted);
    }

    #[test]
    fn a_status_travels_in_printable_ascii() {
        assert_eq!(percent("100 % of\n\"ü\""), "100 %25 of%0A\"%C3%BC\"");
        assert!(percent(&"ü".repeat(MAX_TEXT)).len() <= 3 * MAX_TEXT);
        let headers = status_headers(Some(&Status::not_found("no \u{1F6F6}")));
        assert_eq!(headers["grpc-status"], "5");
        assert_eq!(headers["grpc-message"], "no %F0%9F%9B%B6");
        assert_eq!(status_headers(None)["grpc-status"], "0");
    }

    #[test]
    fn a_client_tells_how_long_it_waits() {
        let read = |text: &'static str| {
            timeout(&HeaderMap::from_iter([(HeaderName::from_static("grpc-timeout"), HeaderValue::from_static(text))]))
        };
        assert_eq!(read("2S").unwrap(), Some(Duration::from_secs(2)));
        assert_eq!(read("99999999n").unwrap(), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(read("1H").unwrap(), Some(Duration::from_secs(3600)));
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
        for bad in ["", "S", "2", "-1S", "2s", "123456789S"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_disturb_what_reads_them(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = unframe(&body) {
                prop_assert_eq!(message.len() + PREFIX, body.len());
            }
            let _ = ListContainersRequest::decode(&body[..]);
            let _ = PullImageRequest::decode(&body[..]);
        }

        #[test]
        fn any_text_fits_a_header(text in ".{0,300}") {
            prop_assert!(HeaderValue::try_from(percent(&text)).is_ok());
        }
    }
}
