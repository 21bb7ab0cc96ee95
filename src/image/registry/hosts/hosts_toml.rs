//! containerd's `hosts.toml`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{Authority, Capabilities, ClientPair, TlsSettings};
use crate::config;
use crate::http::kept;

/// One place to ask, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// Scheme, authority, path; `None` for the server when the file does not name it.
    pub(super) url: Option<Url>,
    pub(super) capabilities: Capabilities,
    pub(super) tls: TlsSettings,
    /// Whether the file says anything of TLS.
    pub(super) own_tls: bool,
    pub(super) headers: Vec<(String, String)>,
    /// For a connection; `None`: the file says nothing, or zero.
    pub(super) dial_timeout: Option<Duration>,
}

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) plain: bool,
    pub(super) authority: Authority,
    /// `/v2`, or what `override_path` lets stand; empty or with a leading and without a trailing slash.
    pub(super) path: String,
}

#[derive(Debug, Deserialize)]
struct Document {
    server: Option<Spanned<String>>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Table>,
}

/// What the file says of a host, and at its top of the server.
#[derive(Debug, Default, Deserialize)]
struct Table {
    capabilities: Option<Vec<Spanned<String>>>,
    ca: Option<OneOrMany<String>>,
    client: Option<Clients>,
    skip_verify: Option<bool>,
    dial_timeout: Option<Spanned<String>>,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// `"both.pem"`, `["both.pem", …]` or `[["cert", "key"], …]`.
type Clients = OneOrMany<OneOrMany<String>>;

/// Parses the file; paths in it begin at its folder. The hosts are in the file's order, the server last.
pub(super) fn parse(path: &Path, content: &[u8]) -> Result<Vec<Host>, String> {
    let text = kept::text(content)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let at = |span: std::ops::Range<usize>| format!("line {}", kept::line(text, span.start));
    let document: Document = kept::toml(text)?;
    let own: Table = kept::toml(text)?;
    let mut tables: Vec<_> = document.host.into_iter().collect();
    tables.sort_by_key(|(name, _)| name.span().start);
    let mut hosts = Vec::new();
    for (name, table) in tables {
        let line = at(name.span());
        let url = url(name.get_ref(), table.override_path).map_err(|reason| format!("{line}: {reason}"))?;
        hosts.push(host(Some(url), table, folder, &line, at)?);
    }
    let (url, line) = match &document.server {
        Some(server) if !server.get_ref().is_empty() => {
            let line = at(server.span());
            (Some(url(server.get_ref(), own.override_path).map_err(|reason| format!("{line}: {reason}"))?), line)
        }
        _ => (None, "line 1".to_owned()),
    };
    hosts.push(host(url, own, folder, &line, at)?);
    Ok(hosts)
}

fn host(
    url: Option<Url>,
    table: Table,
    folder: &Path,
    line: &str,
    at: impl Fn(std::ops::Range<usize>) -> String,
) -> Result<Host, String> {
    // As containerd: none named are all.
    let mut capabilities = Capabilities { pull: true, resolve: true };
    if let Some(named) = table.capabilities.filter(|named| !named.is_empty()) {
        capabilities = Capabilities { pull: false, resolve: false };
        for name in named {
            match name.get_ref().to_ascii_lowercase().as_str() {
                "pull" => capabilities.pull = true,
                "resolve" => capabilities.resolve = true,
                // Nothing is pushed from here.
                "push" | "referrers" => {}
                other => return Err(format!("{}: unknown capability {other:?}", at(name.span()))),
            }
        }
    }
    let own_tls = table.ca.is_some() || table.client.is_some() || table.skip_verify.is_some();
    let mut tls = TlsSettings { skip_verify: table.skip_verify.unwrap_or(false), ..TlsSettings::default() };
    tls.ca = table.ca.map_or_else(Vec::new, OneOrMany::into_vec).into_iter().map(|ca| folder.join(ca)).collect();
    for pair in table.client.map_or_else(Vec::new, OneOrMany::into_vec) {
        let pair = pair.into_vec();
        let (certificate, key) = match pair.as_slice() {
            [both] => (both, both),
            [certificate, key] if key.is_empty() => (certificate, certificate),
            [certificate, key] => (certificate, key),
            _ => return Err(format!("{line}: client: a certificate and its key are expected")),
        };
        tls.clients.push(ClientPair { certificate: folder.join(certificate), key: folder.join(key) });
    }
    let mut headers = Vec::new();
    for (name, values) in table.header {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("{line}: header {name:?} is not a name of a header"));
        }
        for value in values.into_vec() {
            // The value may be a secret.
            if value.bytes().any(|b| (b < b' ' && b != b'\t') || b == 0x7f) {
                return Err(format!("{line}: the value of header {name} has a control character"));
            }
            headers.push((name.clone(), value));
        }
    }
    let dial_timeout = match table.dial_timeout {
        None => None,
        Some(given) => {
            let time = config::duration(given.get_ref());
            let time = time.map_err(|reason| format!("{}: dial_timeout: {reason}", at(given.span())))?;
            Some(time).filter(|time| !time.is_zero())
        }
    };
    Ok(Host { url, capabilities, tls, own_tls, headers, dial_timeout })
}

/// As containerd: `https` where no scheme is; `/v2` is added unless it is there or not wanted.
fn url(written: &str, override_path: bool) -> Result<Url, String> {
    let (plain, rest) = match written.split_once("://") {
        Some(("https", rest)) => (false, rest),
        Some(("http", rest)) => (true, rest),
        Some(_) => return Err(format!("{written:?} is neither http nor https")),
        None => (false, written),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(authority) = Authority::parse(authority) else {
        // It may be somebody's password that is before the @.
        let shown = authority.rsplit('@').next().unwrap_or_default();
        return Err(format!("{shown:?} is not host[:port]"));
    };
    if path.bytes().any(|b| b <= b' ' || b == 0x7f || b"?#\\\"".contains(&b)) || path.split('/').any(|p| p == "..") {
        return Err(format!("{path:?} is not a path"));
    }
    let mut clean: String = path.split('/').filter(|p| !matches!(*p, "" | ".")).flat_map(|p| ["/", p]).collect();
    if !override_path && !clean.ends_with("/v2") {
        clean.push_str("/v2");
    }
    Ok(Url { plain, authority, path: clean })
}
