//! The token that a request shows. Pure.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

/// Longest token, in bytes.
const LONGEST: usize = 16 * 1024;
/// Browsers can set no header of a WebSocket but its protocols.
const PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Why what is shown is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a bearer token: {0}")]
pub(super) struct Error(&'static str);

/// Takes the bearer token out of a request: what comes after authentication never sees it. `None`: it shows none (as kubelet,
/// other schemes count as none).
///
/// # Errors
/// [`Error`]: it shows something that cannot be one.
pub(super) fn take(headers: &mut HeaderMap) -> Result<Option<String>, Error> {
    if let Some(header) = headers.remove(AUTHORIZATION) {
        let text = std::str::from_utf8(header.as_bytes()).map_err(|_| Error("odd characters"))?;
        let mut words = text.trim().split(' ');
        let is_bearer = words.next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"));
        if let Some(token) = words.next().filter(|token| is_bearer && !token.is_empty()) {
            return sound(token.to_owned()).map(Some);
        }
    }
    let is_websocket = headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if is_websocket { of_protocols(headers) } else { Ok(None) }
}

/// A token among the protocols of a WebSocket.
fn of_protocols(headers: &mut HeaderMap) -> Result<Option<String>, Error> {
    let mut token = None;
    let mut others: Vec<String> = Vec::new();
    for header in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        let header = header.to_str().map_err(|_| Error("odd characters"))?;
        for protocol in header.split(',').map(str::trim) {
            match protocol.strip_prefix(PROTOCOL) {
                Some(_) if token.is_some() => return Err(Error("several of them")),
                Some(encoded) => {
                    let decoded = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Error("not base64url"))?;
                    token = Some(String::from_utf8(decoded).map_err(|_| Error("odd characters"))?);
                }
                None => others.push(protocol.to_owned()),
            }
        }
    }
    let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(None) };
    if others.is_empty() {
        return Err(Error("no other protocol beside it"));
    }
    let others = HeaderValue::try_from(others.join(", ")).map_err(|_| Error("odd characters"))?;
    headers.insert(SEC_WEBSOCKET_PROTOCOL, others);
    sound(token).map(Some)
}

fn sound(token: String) -> Result<String, Error> {
    if token.len() > LONGEST {
        return Err(Error("too long"));
    }
    if token.chars().any(char::is_control) {
        return Err(Error("odd characters"));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(pairs: &[(&'static str, &str)]) -> (Result<Option<String>, Error>, HeaderMap) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        (take(&mut headers), headers)
    }

    #[test]
    fn a_token_is_taken_from_where_the_kubelet_takes_it() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            (" bearer abc def", Some("abc")),
            ("Bearer  abc", None),
            ("Bearer", None),
            ("Basic abc", None),
            ("", None),
        ] {
            let (read, left) = taken(&[("authorization", header)]);
            assert_eq!(read, Ok(token.map(str::to_owned)), "{header}");
            assert!(left.is_empty());
        }
        assert_eq!(taken(&[("authorization", &format!("Bearer {}", "x".repeat(20_000)))]).0, Err(Error("too long")));
    }

    #[test]
    fn a_token_among_the_protocols_is_taken_and_the_others_stay() {
        let token = "base64url.bearer.authorization.k8s.io.YWJj";
        let websocket = |protocols: &[&str]| {
            let mut pairs = vec![("upgrade", "WebSocket")];
            pairs.extend(protocols.iter().map(|protocol| ("sec-websocket-protocol", *protocol)));
            let (read, left) = taken(&pairs);
            (read, left.get(SEC_WEBSOCKET_PROTOCOL).map(|value| value.to_str().unwrap().to_owned()))
        };
        let both = format!("v5.channel.k8s.io, {token}");
        assert_eq!(websocket(&[&both]), (Ok(Some("abc".to_owned())), Some("v5.channel.k8s.io".to_owned())));
        assert_eq!(websocket(&[token, "v4.channel.k8s.io"]).1.as_deref(), Some("v4.channel.k8s.io"));
        assert_eq!(websocket(&["v4.channel.k8s.io"]).0, Ok(None));
        assert_eq!(websocket(&[token]).0, Err(Error("no other protocol beside it")));
        assert_eq!(websocket(&[token, token, "x"]).0, Err(Error("several of them")));
        assert_eq!(websocket(&[&format!("{token}*"), "x"]).0, Err(Error("not base64url")));
        // Only of a WebSocket.
        assert_eq!(taken(&[("sec-websocket-protocol", &both)]).0, Ok(None));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(text in "[ -~]{0,60}", protocol in "[ -~]{0,60}") {
            let protocol = format!("{PROTOCOL}{protocol}");
            let _ = taken(&[("authorization", &text), ("upgrade", "websocket"), ("sec-websocket-protocol", &protocol)]);
        }
    }
}
