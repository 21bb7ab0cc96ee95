//! `registries.conf`, version 2: containers-registries.conf(5).

use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use crate::http::kept;

/// When a mirror is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

impl PullFrom {
    pub(super) fn serves(self, by_digest: bool) -> bool {
        match self {
            PullFrom::All => true,
            PullFrom::DigestOnly => by_digest,
            PullFrom::TagOnly => !by_digest,
        }
    }
}

/// Another place of the same images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) location: String,
    pub(super) insecure: bool,
    pub(super) pull_from: PullFrom,
}

/// A `[[registry]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registry {
    /// `host`, `host/path`, or `*.domain`.
    pub(super) prefix: String,
    /// What takes the prefix's place; `None`: nothing does.
    pub(super) location: Option<String>,
    pub(super) insecure: bool,
    pub(super) blocked: bool,
    pub(super) mirrors: Vec<Mirror>,
}

impl Registry {
    /// How much of a repository's name the prefix takes, if it matches: whole components only. As containers: a port
    /// may follow a host without one.
    pub(super) fn matches(&self, repository: &str) -> Option<usize> {
        let end = match self.prefix.strip_prefix('*') {
            None => repository.starts_with(&self.prefix).then_some(self.prefix.len())?,
            Some(domain) => {
                let host = repository.split('/').next().unwrap_or_default();
                let name = host.split(':').next().unwrap_or_default();
                // The rest of the prefix may have a port.
                let whole = if domain.contains(':') { host } else { name };
                (whole.len() > domain.len() && whole.ends_with(domain)).then_some(whole.len())?
            }
        };
        matches!(repository.as_bytes().get(end), None | Some(b'/' | b':')).then_some(end)
    }
}

#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    registry: Vec<Spanned<Table>>,
    /// Only version 1 has it.
    registries: Option<Spanned<toml::Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Table {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Spanned<MirrorTable>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorTable {
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Spanned<PullFrom>>,
}

/// Parses one file. What does not concern where images are (short names, credential helpers) is not looked at.
pub(super) fn parse(_path: &Path, content: &[u8]) -> Result<Vec<Registry>, String> {
    let text = kept::text(content)?;
    let at = |span: std::ops::Range<usize>| format!("line {}", kept::line(text, span.start));
    let document: Document = kept::toml(text)?;
    if let Some(old) = &document.registries {
        return Err(format!(
            "{}: [registries.*] is version 1 of the format; only version 2, with [[registry]], is understood",
            at(old.span())
        ));
    }
    let mut registries: Vec<Registry> = Vec::new();
    for table in document.registry {
        let line = at(table.span());
        let registry = registry(table.into_inner(), &line, at)?;
        // As containers: the same prefix twice in a file is a mistake.
        if registries.iter().any(|other| other.prefix == registry.prefix) {
            return Err(format!("{line}: a second registry with the prefix {:?}", registry.prefix));
        }
        registries.push(registry);
    }
    Ok(registries)
}

fn registry(table: Table, line: &str, at: impl Fn(std::ops::Range<usize>) -> String) -> Result<Registry, String> {
    let place = |what: &str, value: Option<String>| match value.filter(|v| !v.is_empty()) {
        Some(value) => location(&value).map(Some).map_err(|reason| format!("{line}: {what} {value:?} {reason}")),
        None => Ok(None),
    };
    let prefix = match table.prefix.filter(|prefix| !prefix.is_empty()) {
        Some(prefix) => match prefix.strip_prefix("*.") {
            Some(domain) if domain.contains(['/', '*']) || location(domain).is_err() => {
                return Err(format!("{line}: prefix {prefix:?}: a wildcard stands before a domain: *.example.com"));
            }
            Some(_) => Some(prefix),
            None => place("prefix", Some(prefix))?,
        },
        None => None,
    };
    let location = place("location", table.location)?;
    let Some(prefix) = prefix.or_else(|| location.clone()) else {
        return Err(format!("{line}: a registry needs a prefix or a location"));
    };
    let mut mirrors = Vec::new();
    for mirror in table.mirror {
        let line = at(mirror.span());
        let mirror = mirror.into_inner();
        let written = mirror.location.unwrap_or_default();
        let location =
            self::location(&written).map_err(|reason| format!("{line}: mirror location {written:?} {reason}"))?;
        let pull_from = match mirror.pull_from_mirror {
            Some(given) if table.mirror_by_digest_only => {
                return Err(format!(
                    "{}: pull-from-mirror cannot be set where mirror-by-digest-only is true",
                    at(given.span())
                ));
            }
            Some(given) => given.into_inner(),
            None if table.mirror_by_digest_only => PullFrom::DigestOnly,
            None => PullFrom::All,
        };
        mirrors.push(Mirror { location, insecure: mirror.insecure, pull_from });
    }
    Ok(Registry { prefix, location, insecure: table.insecure, blocked: table.blocked, mirrors })
}

/// `host[:port][/path]` without what people add to it.
fn location(written: &str) -> Result<String, &'static str> {
    let location = written.trim_end_matches('/');
    if location.is_empty() {
        return Err("is empty");
    }
    if location.contains("://") {
        return Err("has a URL scheme, which does not belong there");
    }
    if location.starts_with('/') || location.contains("//") {
        return Err("is not host[:port][/path]");
    }
    if location.bytes().any(|b| b <= b' ' || b == 0x7f || b"*@?#\\\"".contains(&b)) {
        return Err("has a character that no location has");
    }
    Ok(location.to_owned())
}
