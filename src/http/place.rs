//! The places that URLs name, and where a registry may lead its client.
//!
//! A registry names URLs (redirects, its token server, foreign layers) that this machine then asks, from inside its own
//! network. What comes back is checked by digest, and none of our secrets go along; but the request itself is made. So
//! no registry leads from TLS to plain HTTP, nor to what only this machine can reach: its own services and those of its
//! link, as clouds have their machines' credentials at 169.254.169.254. Names are not resolved for this: from a registry
//! with TLS they lead only to places with a certificate that is trusted.

use std::net::{IpAddr, Ipv4Addr};

use ureq::http::Uri;

/// Longest part of a URL that people are shown.
const LONGEST: usize = 200;

/// Scheme, host and port of a URL that can be asked. The same place is equal, however it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub plain: bool,
    /// Lower case; with brackets if it is an IPv6 address.
    pub host: String,
    pub port: u16,
}

impl Place {
    /// `None`: no URL that is asked. Users and passwords in URLs are none of ours to send.
    pub fn of(url: &str) -> Option<Place> {
        let uri: Uri = url.parse().ok()?;
        let plain = match uri.scheme_str()? {
            "https" => false,
            "http" => true,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let port = match authority.as_str().strip_prefix(authority.host())? {
            "" => {
                if plain {
                    80
                } else {
                    443
                }
            }
            port => port.strip_prefix(':')?.parse().ok()?,
        };
        Some(Place { plain, host, port })
    }

    /// `host[:port]`, as settings name it.
    pub fn authority(&self) -> String {
        let usual = if self.plain { 80 } else { 443 };
        if self.port == usual { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Whether a registry here may have another place asked.
    ///
    /// # Errors
    /// Why not.
    pub fn may_lead_to(&self, target: &Place) -> Result<(), &'static str> {
        if target.plain && !self.plain {
            return Err("a place without TLS");
        }
        if target.host == self.host {
            return Ok(());
        }
        match reach(&target.host) {
            Reach::World => Ok(()),
            Reach::Odd => Err("an address in an unusual form"),
            Reach::Link => Err("an address of this machine's link"),
            Reach::Machine if is_loopback(&self.host) => Ok(()),
            Reach::Machine => Err("this machine itself"),
        }
    }
}

/// Host, with brackets if it has them, and port.
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// A host that is this machine itself.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// From where a host can be asked.
enum Reach {
    World,
    /// Only from this machine.
    Machine,
    /// Only from this machine's link, or nobody knows from where.
    Link,
    /// A number that some resolvers take for an address.
    Odd,
}

fn reach(host: &str) -> Reach {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let Ok(address) = bare.parse::<IpAddr>() else {
        let last = bare.rsplit('.').next().unwrap_or_default();
        return match bare {
            _ if last == "localhost" => Reach::Machine,
            // 2852039166 and 0xa9.254.43518 are 169.254.169.254 to the C library.
            _ if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") => Reach::Odd,
            _ => Reach::World,
        };
    };
    match address.to_canonical() {
        address if address.is_loopback() || address.is_unspecified() => Reach::Machine,
        IpAddr::V4(v4) if v4.is_link_local() || v4.is_multicast() || v4 == Ipv4Addr::BROADCAST => Reach::Link,
        IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast() => Reach::Link,
        _ => Reach::World,
    }
}

/// A URL for people: without user, password and query, which may be secret, and of one short line.
pub fn show(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let separator = if scheme.is_empty() { "" } else { "://" };
    let whole = format!("{scheme}{separator}{authority}{path}");
    whole.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

/// The URL that a `Location` names, seen from the one that was asked, without its fragment; and its place. Whether to go
/// there is another question.
///
/// # Errors
/// Why it is no URL.
pub fn resolve(from: &str, location: &str) -> Result<(String, Place), &'static str> {
    let (scheme, rest) = from.split_once("://").ok_or("is no URL")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let whole = match location {
        _ if location.contains("://") && !location.starts_with(['/', '?', '.']) => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => {
            let path = from.split(['?', '#']).next().unwrap_or(from);
            let folder = path.rfind('/').filter(|at| *at > scheme.len() + 2).map_or(path, |at| &path[..at]);
            format!("{folder}/{location}")
        }
    };
    let whole = whole.split('#').next().unwrap_or_default().to_owned();
    // Not shown: there may be a password in it.
    let target = Place::of(&whole).ok_or("redirects to something that is no URL")?;
    Ok((whole, target))
}

/// Where a registry's redirect from `from` leads.
///
/// # Errors
/// Why it is not followed.
pub fn redirect(from: &str, location: &str) -> Result<String, String> {
    let place = Place::of(from).ok_or("is no URL")?;
    let (whole, target) = resolve(from, location)?;
    place.may_lead_to(&target).map_err(|what| format!("redirects to {what}: {}", show(&whole)))?;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_same_place_is_the_same_however_it_is_written() {
        let place = Place::of("https://host.example/v2/").unwrap();
        for same in ["https://HOST.example:443/token?x", "https://host.example./"] {
            assert_eq!(Place::of(same).as_ref(), Some(&place), "{same}");
        }
        for other in ["http://host.example/", "https://host.example:8443/", "https://host.example.evil/"] {
            assert_ne!(Place::of(other).as_ref(), Some(&place), "{other}");
        }
        assert_eq!(place.authority(), "host.example");
        assert_eq!(Place::of("http://[::1]:5000/").unwrap().authority(), "[::1]:5000");
        for bad in [
            "",
            "/v2/",
            "host",
            "http://",
            "https://a b/",
            "file:///etc/passwd",
            "https://user:password@host/",
            "https://good.example\\@evil.example/",
            "https://good.example%2f@evil.example/",
            "https://host:port/",
            "https://host:99999/",
        ] {
            assert_eq!(Place::of(bad), None, "{bad}");
        }
    }

    #[test]
    fn registries_lead_nobody_to_what_only_this_machine_reaches() {
        let from = "http://registry.example:5000/v2/app/blobs/x?y=z";
        for (location, reason) in [
            ("http://169.254.169.254/latest/meta-data", "an address of this machine's link"),
            ("http://[fe80::1]/", "an address of this machine's link"),
            ("http://[::ffff:169.254.169.254]/", "an address of this machine's link"),
            ("http://2852039166/", "an address in an unusual form"),
            ("http://0xa9fea9fe/", "an address in an unusual form"),
            ("http://169.254.43518/", "an address in an unusual form"),
            ("http://224.0.0.1/", "an address of this machine's link"),
            ("//localhost:10250/pods", "this machine itself"),
            ("http://a.localhost/", "this machine itself"),
            ("http://127.1.2.3/", "this machine itself"),
            ("http://[::1]:6443/", "this machine itself"),
            ("http://0.0.0.0/", "this machine itself"),
            ("http://[::]/", "this machine itself"),
        ] {
            let said = redirect(from, location).unwrap_err();
            assert!(said.starts_with(&format!("redirects to {reason}: ")), "{location}: {said}");
        }
        for (from, location, target) in [
            (from, "https://cdn.example/x?signature=1#part", "https://cdn.example/x?signature=1"),
            (from, "http://10.0.0.7:9000/x", "http://10.0.0.7:9000/x"),
            (from, "/v2/other", "http://registry.example:5000/v2/other"),
            (from, "//cdn.example/x", "http://cdn.example/x"),
            (from, "y", "http://registry.example:5000/v2/app/blobs/y"),
            (from, "http://127.example/", "http://127.example/"),
            // Who is on this machine may lead to what is.
            ("http://127.0.0.1:5000/v2/", "http://localhost:9000/x", "http://localhost:9000/x"),
            // And a registry to its own host, however odd.
            ("http://169.254.1.1:5000/v2/", "http://169.254.1.1:9000/x", "http://169.254.1.1:9000/x"),
        ] {
            assert_eq!(redirect(from, location).as_deref(), Ok(target));
        }
        let said = redirect("https://host.example/v2/", "http://host.example/x?signature=s3cret").unwrap_err();
        assert_eq!(said, "redirects to a place without TLS: http://host.example/x");
        for bad in ["file:///etc/passwd", "http://user:password@host/x", "gopher://x/", "http://a\\b/", "http://"] {
            assert_eq!(redirect(from, bad).unwrap_err(), "redirects to something that is no URL", "{bad}");
        }
    }

    #[test]
    fn people_see_no_secrets_of_urls() {
        assert_eq!(show("https://user:s3cret@host/a@b?sig=s3cret#s3cret"), "https://host/a@b");
        assert_eq!(show("user:s3cret@host"), "host");
        assert_eq!(show("https://host/\x1b[2J\r\nx"), "https://host/ [2J  x");
        assert_eq!(show(&format!("https://host/{}", "x".repeat(9000))).len(), LONGEST);
    }

    proptest! {
        #[test]
        fn redirects_never_lead_from_tls_or_to_the_link(
            location in "\\PC{0,60}|(https?:)?(//)?(169\\.254\\.169\\.254|localhost|\\[::1\\]|a\\.b)(:[0-9]{1,5})?[/?#@]?\\PC{0,9}",
        ) {
            if let Ok(target) = redirect("https://host.example/v2/x", &location) {
                let place = Place::of(&target).unwrap();
                prop_assert!(!place.plain);
                prop_assert!(place.host != "169.254.169.254" && place.host != "localhost" && place.host != "[::1]");
            }
            prop_assert!(!show(&location).contains(['\r', '\n', '?', '#']));
        }
    }
}
