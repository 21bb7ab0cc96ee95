//! The address of an `httpGet`, and where its redirects lead. Pure.

use super::address;
use std::fmt;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) https: bool,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query, ready for the request line.
    pub(super) target: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

impl Url {
    /// As kubelet: what cannot stand in a request line is escaped, a fragment is dropped, and a path with a broken escape
    /// is taken letter by letter.
    pub(super) fn new(https: bool, host: String, port: u16, path: &str) -> Url {
        Url { https, host, port, target: target(path) }
    }

    /// `host:port`, an IPv6 address in brackets.
    pub(super) fn authority(&self) -> String {
        address::join(&self.host, self.port)
    }

    /// Where a redirect leads (RFC 3986, 5.2); `None` when it leads to nothing that can be asked.
    pub(super) fn join(&self, location: &str) -> Option<Url> {
        let location = location.split('#').next().unwrap_or_default();
        let scheme = location.split_once(':').filter(|(scheme, _)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        });
        let (https, rest) = match scheme {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => return None,
            None => (self.https, location),
        };
        if let Some(rest) = rest.strip_prefix("//") {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (host, port) = authority(&rest[..end], https)?;
            return Some(Url::new(https, host, port, &rest[end..]));
        }
        if scheme.is_some() {
            return None;
        }
        let (own_path, _) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let target = match rest.as_bytes().first() {
            None => self.target.clone(),
            Some(b'/') => target(&without_dots(rest)),
            Some(b'?') => target(&format!("{own_path}{rest}")),
            Some(_) => {
                let folder = own_path.rfind('/').map_or("/", |at| &own_path[..=at]);
                target(&without_dots(&format!("{folder}{rest}")))
            }
        };
        Some(Url { target, ..self.clone() })
    }
}

fn authority(text: &str, https: bool) -> Option<(String, u16)> {
    let text = text.rsplit_once('@').map_or(text, |(_, host)| host);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':').unwrap_or(rest))
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let port = match port {
        "" => Some(if https { 443 } else { 80 }),
        port => port.parse().ok().filter(|&port| port > 0),
    };
    (!host.is_empty()).then_some((host.to_owned(), port?))
}

/// Path and query without a fragment, beginning with a slash, of characters that may stand in a request line.
fn target(path: &str) -> String {
    let escape =
        |at: usize| path.as_bytes().get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    let literal = path.bytes().enumerate().any(|(at, byte)| byte == b'%' && !escape(at));
    let path = if literal { path } else { path.split('#').next().unwrap_or_default() };
    let mut out = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        out.push('/');
    }
    for byte in path.bytes() {
        match byte {
            b'%' | b'?' | b'#' if literal => push_escaped(&mut out, byte),
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => push_escaped(&mut out, byte),
            0x21..=0x7e => out.push(char::from(byte)),
            _ => push_escaped(&mut out, byte),
        }
    }
    out
}

fn push_escaped(out: &mut String, byte: u8) {
    use fmt::Write as _;
    // Writing to a string does not fail.
    let _ = write!(out, "%{byte:02X}");
}

/// A path without its `.` and `..` (RFC 3986, 5.2.4); the query stays.
fn without_dots(target: &str) -> String {
    let (path, query) = target.find('?').map_or((target, ""), |at| target.split_at(at));
    let mut parts: Vec<&str> = Vec::new();
    let mut folder = false;
    for part in path.split('/').skip(1) {
        folder = matches!(part, "." | "..");
        match part {
            "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let end = if folder && !parts.is_empty() { "/" } else { "" };
    format!("/{}{end}{query}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base() -> Url {
        Url::new(false, "10.0.0.1".into(), 8080, "/a/b?q=1")
    }

    #[test]
    fn paths_become_what_a_request_line_can_hold() {
        for (path, want) in [
            ("", "/"),
            ("healthz", "/healthz"),
            ("/healthz?full=1&x=a b", "/healthz?full=1&x=a%20b"),
            ("/a%20b", "/a%20b"),
            ("/100%?", "/100%25%3F"),
            ("/x#part", "/x"),
            ("/é\r\nX: y", "/%C3%A9%0D%0AX:%20y"),
            ("?a", "/?a"),
        ] {
            assert_eq!(target(path), want, "{path}");
        }
        assert_eq!(base().to_string(), "http://10.0.0.1:8080/a/b?q=1");
        assert_eq!(Url::new(true, "fd00::1".into(), 443, "x").to_string(), "https://[fd00::1]:443/x");
    }

    #[test]
    fn redirects_lead_where_browsers_go() {
        for (location, want) in [
            ("/c", Some("http://10.0.0.1:8080/c")),
            ("c?d", Some("http://10.0.0.1:8080/a/c?d")),
            ("../../c/.", Some("http://10.0.0.1:8080/c/")),
            ("?z", Some("http://10.0.0.1:8080/a/b?z")),
            ("", Some("http://10.0.0.1:8080/a/b?q=1")),
            ("#top", Some("http://10.0.0.1:8080/a/b?q=1")),
            ("//other/x", Some("http://other:80/x")),
            ("HTTPS://user:pw@other:8443?x", Some("https://other:8443/?x")),
            ("https://[fd00::2]/", Some("https://[fd00::2]:443/")),
            ("http:///x", None),
            ("http://h:0/", None),
            ("http://h:99999/", None),
            ("mailto:me", None),
        ] {
            assert_eq!(base().join(location).map(|url| url.to_string()).as_deref(), want, "{location}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_a_request_target(path in "\\PC*|[%/?#. a-f0-9\\r\\n]*", location in "\\PC*|[%/?#.:a-f0-9@\\[\\]]*") {
            let url = Url::new(false, "h".into(), 80, &path);
            for url in [Some(url.clone()), url.join(&location)].into_iter().flatten() {
                prop_assert!(url.target.starts_with('/') && url.target.bytes().all(|b| (0x21..=0x7e).contains(&b)));
                prop_assert!(url.target.parse::<hyper::Uri>().is_ok(), "{}", url.target);
            }
        }
    }
}
