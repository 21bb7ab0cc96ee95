//! Which proxy a URL is asked through: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`.
//!
//! As in Go programs, and so in kubelet, containerd and docker: domains of `NO_PROXY` cover what is below them, there
//! are networks in CIDR notation, and this machine itself is never asked through a proxy. `ALL_PROXY` is curl's.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::place::{is_loopback, split_port};
use super::{Environment, Unusable};

/// The proxies of this process.
#[derive(Clone, Default)]
pub struct Proxies {
    /// Variable and value.
    https: Option<(&'static str, String)>,
    http: Option<(&'static str, String)>,
    none: Vec<Exception>,
}

impl fmt::Debug for Proxies {
    /// Without the URLs, which may have passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |proxy: &Option<(&'static str, String)>| proxy.as_ref().map(|(name, _)| *name);
        f.debug_struct("Proxies").field("https", &name(&self.https)).field("http", &name(&self.http)).finish()
    }
}

/// An entry of `NO_PROXY`, with the port it is limited to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    what: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    Address(IpAddr),
    /// An address and how many of its bits count.
    Network(IpAddr, u8),
    /// Names below this one, and perhaps itself.
    Domain {
        name: String,
        itself: bool,
    },
}

impl Proxies {
    pub fn of(environment: &Environment) -> Proxies {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| Some((*name, environment.get(name)?.trim().to_owned())))
        };
        let none = environment.get("NO_PROXY").or_else(|| environment.get("no_proxy")).unwrap_or_default();
        Proxies {
            https: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            http: first(&["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
            none: none.split(',').filter_map(|entry| exception(entry.trim())).collect(),
        }
    }

    /// The variable and URL of the proxy for a URL with this scheme and authority; `None`: ask directly.
    pub fn choose(&self, plain: bool, authority: &str) -> Option<(&'static str, &str)> {
        let (host, port) = split_port(authority);
        if is_loopback(host) {
            return None;
        }
        let port = port.and_then(|port| port.parse().ok()).unwrap_or(if plain { 80 } else { 443 });
        if self.none.iter().any(|exception| exception.covers(host, port)) {
            return None;
        }
        let (name, url) = if plain { self.http.as_ref() } else { self.https.as_ref() }?;
        Some((name, url))
    }
}

/// A proxy for ureq.
pub fn parse(variable: &str, url: &str) -> Result<ureq::Proxy, Unusable> {
    // The URL may hold a password.
    let wrong = |reason: &str| Unusable { path: PathBuf::from(variable), reason: reason.to_owned() };
    if let Some((scheme, _)) = url.split_once("://")
        && !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str())
    {
        return Err(wrong("only http:// and https:// proxies can be used"));
    }
    ureq::Proxy::new(url).map_err(|_| wrong("not the URL of a proxy"))
}

fn exception(entry: &str) -> Option<Exception> {
    let entry = entry.to_ascii_lowercase();
    if entry.is_empty() {
        return None;
    }
    if entry == "*" {
        return Some(Exception { what: Hosts::All, port: None });
    }
    if let Some((address, bits)) = entry.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        let bits = bits.parse().ok().filter(|bits| *bits <= if address.is_ipv4() { 32 } else { 128 })?;
        return Some(Exception { what: Hosts::Network(address, bits), port: None });
    }
    if let Ok(address) = entry.parse() {
        return Some(Exception { what: Hosts::Address(address), port: None });
    }
    let (host, port) = split_port(&entry);
    let port = match port {
        Some(port) => Some(port.parse().ok()?),
        None => None,
    };
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse() {
        return Some(Exception { what: Hosts::Address(address), port });
    }
    let below = host.strip_prefix('*').unwrap_or(host);
    let (name, itself) = below.strip_prefix('.').map_or((below, true), |name| (name, false));
    (!name.is_empty()).then(|| Exception { what: Hosts::Domain { name: name.to_owned(), itself }, port })
}

impl Exception {
    fn covers(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|own| own != port) {
            return false;
        }
        let host = host.to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        let address = bare.parse::<IpAddr>().ok();
        match &self.what {
            Hosts::All => true,
            Hosts::Address(own) => address == Some(*own),
            Hosts::Network(network, bits) => address.is_some_and(|address| within(address, *network, *bits)),
            Hosts::Domain { name, itself } => {
                let host = bare.trim_end_matches('.');
                host.strip_suffix(name.as_str())
                    .is_some_and(|rest| if rest.is_empty() { *itself } else { rest.ends_with('.') })
            }
        }
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let ignored = width - u32::from(bits).min(width);
        a.checked_shr(ignored).unwrap_or(0) == b.checked_shr(ignored).unwrap_or(0)
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(none: &str, authority: &str) -> bool {
        let environment = Environment::from([("HTTPS_PROXY", "http://proxy.example:3128"), ("NO_PROXY", none)]);
        Proxies::of(&environment).choose(false, authority).is_some()
    }

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        let none = "10.0.0.0/8, .corp.example,lan.example ,host.example:5000,*.wild.example,192.0.2.7,fd00::/8,[::2]:5000,,bad/99";
        for direct in [
            "10.1.2.3",
            "10.1.2.3:5000",
            "a.corp.example",
            "lan.example",
            "LAN.example",
            "deep.lan.example:5000",
            "host.example:5000",
            "a.wild.example",
            "192.0.2.7:443",
            "[fd00::1]:5000",
            "[::2]:5000",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert!(!chosen(none, direct), "{direct}");
        }
        for proxied in [
            "11.0.0.1",
            "corp.example",
            "xlan.example",
            "host.example",
            "wild.example",
            "192.0.2.70",
            "[fe00::1]",
            "[::2]",
        ] {
            assert!(chosen(none, proxied), "{proxied}");
        }
        assert!(!chosen("*", "anything.example"));
        assert!(chosen("", "anything.example"));
        assert!(!chosen("0.0.0.0/0", "192.0.2.1"));
        assert!(chosen("0.0.0.0/0", "[2001:db8::1]"));
        assert!(!chosen("::/0", "[2001:db8::1]"));
    }

    #[test]
    fn each_scheme_has_its_proxy_and_lower_case_works() {
        let environment = Environment::from([
            ("https_proxy", "http://a.example"),
            ("HTTP_PROXY", "http://b.example"),
            ("all_proxy", "http://c.example"),
        ]);
        let proxies = Proxies::of(&environment);
        assert_eq!(proxies.choose(false, "r.example"), Some(("https_proxy", "http://a.example")));
        assert_eq!(proxies.choose(true, "r.example"), Some(("HTTP_PROXY", "http://b.example")));
        let proxies = Proxies::of(&Environment::from([("ALL_PROXY", "http://c.example")]));
        assert_eq!(proxies.choose(true, "r.example"), Some(("ALL_PROXY", "http://c.example")));
        assert_eq!(Proxies::of(&Environment::default()).choose(false, "r.example"), None);
    }

    #[test]
    fn a_bad_proxy_is_named_without_its_password() {
        for url in ["socks5://user:hunter2@proxy.example", "http://", "http://user:hunter2@pro xy"] {
            let error = parse("HTTPS_PROXY", url).unwrap_err().to_string();
            assert!(error.starts_with("HTTPS_PROXY: ") && !error.contains("hunter2"), "{error}");
        }
        assert_eq!(parse("HTTPS_PROXY", "proxy.example:3128").unwrap().port(), 3128);
        let debug = format!("{:?}", Proxies::of(&Environment::from([("HTTPS_PROXY", "http://u:hunter2@p")])));
        assert!(debug.contains("HTTPS_PROXY") && !debug.contains("hunter2"), "{debug}");
    }
}
