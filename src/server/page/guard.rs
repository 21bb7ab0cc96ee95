//! Who may see the page where it is served on 127.0.0.1: programs of this machine, and browsers that were pointed to it. No
//! page of another site, not even one whose name leads to this machine (DNS rebinding). Pure.

use super::super::reply::Failure;
use super::Part;
use hyper::header::{HOST, HeaderName};
use hyper::{Method, Request};

/// What of a request's head this goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    method: &'a Method,
    /// `Host`; nothing if there is none, several, or one that is no text.
    host: Option<&'a str>,
    /// `Sec-Fetch-Site`: where the page comes from that asks, says the browser.
    site: Option<&'a str>,
}

impl<'a> Head<'a> {
    pub(crate) fn of<B>(request: &'a Request<B>) -> Head<'a> {
        let only = |name: HeaderName| {
            let mut all = request.headers().get_all(name).iter();
            let first = all.next().and_then(|value| value.to_str().ok());
            first.filter(|_| all.next().is_none())
        };
        Head { method: request.method(), host: only(HOST), site: only(HeaderName::from_static("sec-fetch-site")) }
    }
}

/// Refuses what is not for this page; `None`: no part of it, which those who may ask are told elsewhere.
pub(crate) fn check(head: &Head<'_>, part: Option<Part>) -> Result<(), Failure> {
    if !head.host.is_some_and(is_loopback) {
        return Err(Failure::forbidden("the status page is served as 127.0.0.1 or localhost only"));
    }
    if head.method != Method::GET {
        return Err(Failure::method("the status page is read-only"));
    }
    // A link to the page is harmless; to have its content is not.
    if part != Some(Part::Page) && !matches!(head.site, None | Some("same-origin" | "none")) {
        return Err(Failure::forbidden("the status page is not for other sites"));
    }
    Ok(())
}

/// Whether a `Host` is a loopback name. The port does not count: it is another one behind a tunnel.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name == "127.0.0.1" || name == "[::1]" || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn passes(method: Method, host: &[&str], site: Option<&str>, part: Option<Part>) -> bool {
        let mut request = Request::builder().method(method).uri("/");
        for host in host {
            request = request.header(HOST, *host);
        }
        if let Some(site) = site {
            request = request.header("sec-fetch-site", site);
        }
        let request = request.body(()).expect("a request");
        check(&Head::of(&request), part).is_ok()
    }

    #[test]
    fn only_those_who_were_sent_here_see_the_page() {
        for (host, good) in [
            ("127.0.0.1:8080", true),
            ("127.0.0.1", true),
            ("localhost:80", true),
            ("LocalHost", true),
            ("[::1]:9", true),
            ("", false),
            ("evil.example:8080", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example:8080", false),
            ("evil.example:127.0.0.1", false),
            ("127.0.0.1:", false),
            ("127.0.0.1:8080:8080", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(passes(Method::GET, &[host], None, Some(Part::Feed)), good, "{host}");
        }
        assert!(!passes(Method::GET, &[], None, Some(Part::Page)), "no name");
        assert!(!passes(Method::GET, &["localhost", "evil.example"], None, Some(Part::Page)), "two names");
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS] {
            assert!(!passes(method.clone(), &["localhost"], None, Some(Part::Page)), "{method}");
        }
        for (site, page, rest) in [
            (None, true, true),
            (Some("none"), true, true),
            (Some("same-origin"), true, true),
            // Another port of this machine is the same site.
            (Some("same-site"), true, false),
            (Some("cross-site"), true, false),
        ] {
            assert_eq!(passes(Method::GET, &["localhost"], site, Some(Part::Page)), page, "{site:?}");
            for part in [Some(Part::Feed), Some(Part::Log), None] {
                assert_eq!(passes(Method::GET, &["localhost"], site, part), rest, "{site:?} {part:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_other_name_passes(host in "[a-z0-9.:\\[\\]]{0,24}") {
            let ours = ["127.0.0.1", "localhost", "[::1]"];
            let fits = ours.iter().any(|name| {
                host.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| {
                    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
                }))
            });
            prop_assert_eq!(is_loopback(&host), fits);
        }
    }
}
