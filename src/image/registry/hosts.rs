//! Where the images of a repository are: mirrors, then the registry itself, each with its TLS settings.
//!
//! Read are `registries.conf` (podman, CRI-O), `certs.d/<host>/hosts.toml` (containerd) and the certificates in
//! `certs.d/<host>/` (docker). Where two know the same registry:
//!
//! 1. `blocked` in `registries.conf` always wins;
//! 2. then `certs.d/<host>/hosts.toml`, which is about this one host;
//! 3. then the longest matching prefix of `registries.conf`;
//! 4. then `certs.d/_default/hosts.toml`, which is about hosts that nobody spoke of;
//! 5. else the registry itself, by TLS.

mod hosts_toml;
mod registries_conf;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use registries_conf::Registry;

use super::{Error, Settings};
use crate::http::kept::{self, Kept};
use crate::http::place::{is_loopback, split_port};
pub use crate::http::{ClientPair, TlsSettings};

/// Where docker.io is.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// What a place may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// Manifests by digest, and blobs.
    pub pull: bool,
    /// What a tag stands for now.
    pub resolve: bool,
}

/// One place to ask for an image.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// URL up to and with `/v2` (or what `override_path` has instead), without a slash at its end.
    pub base: String,
    /// Name of the repository there.
    pub repository: String,
    pub tls: TlsSettings,
    /// Whether plain HTTP may be spoken, see [`Endpoint::plain`].
    pub insecure: bool,
    /// For every request.
    pub headers: Vec<(String, String)>,
    /// `host[:port]` for which credentials are looked up: `docker.io` for the hub.
    pub host: String,
    /// The registry a mirror is asked for: containerd's mirrors expect it as `?ns=`.
    pub namespace: Option<String>,
    pub capabilities: Capabilities,
    /// How long a connection may take, TLS included; `None`: nothing said.
    pub dial_timeout: Option<Duration>,
}

impl Endpoint {
    /// The same place by plain HTTP, for when it speaks no TLS; `None` where that is not allowed, or asked already.
    pub fn plain(&self) -> Option<Endpoint> {
        let rest = self.base.strip_prefix("https://").filter(|_| self.insecure)?;
        Some(Endpoint { base: format!("http://{rest}"), ..self.clone() })
    }

    /// `host[:port]` of the URL.
    pub fn authority(&self) -> &str {
        let rest = self.base.split_once("://").map_or(self.base.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default()
    }
}

impl fmt::Debug for Endpoint {
    /// Without the values of headers, which are often tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("base", &self.base)
            .field("repository", &self.repository)
            .field("tls", &self.tls)
            .field("insecure", &self.insecure)
            .field("headers", &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("host", &self.host)
            .field("namespace", &self.namespace)
            .field("capabilities", &self.capabilities)
            .field("dial_timeout", &self.dial_timeout)
            .finish()
    }
}

/// `host[:port]` of a URL, with IPv6 addresses in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority(String);

impl Authority {
    fn parse(text: &str) -> Option<Authority> {
        let (host, port) = split_port(text);
        let number =
            |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
        if !port.is_none_or(number) {
            return None;
        }
        let valid = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let label = |label: &str| {
                    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                    !label.is_empty() && label.bytes().all(inner)
                };
                host.len() <= 253 && host.split('.').all(label)
            }
        };
        valid.then(|| Authority(text.to_owned()))
    }

    /// The name of docker.io is none of a registry.
    fn reachable(&self) -> &str {
        if is_docker_hub(&self.0) { DOCKER_HUB } else { &self.0 }
    }

    /// For which credentials are looked up.
    fn known_as(&self) -> &str {
        if is_docker_hub(&self.0) { "docker.io" } else { &self.0 }
    }

    /// Names of its folder in a `certs.d`. As containerd, which has another name for a port's colon.
    fn folders(&self) -> Vec<String> {
        let mut names = vec![self.0.clone()];
        if let (host, Some(port)) = split_port(&self.0) {
            names.insert(0, format!("{host}_{port}_"));
        }
        if is_docker_hub(&self.0) {
            names.extend(["docker.io", DOCKER_HUB].into_iter().filter(|n| *n != self.0).map(str::to_owned));
        }
        names
    }

    /// Whether it is this machine itself.
    fn is_loopback(&self) -> bool {
        is_loopback(split_port(&self.0).0)
    }
}

fn is_docker_hub(authority: &str) -> bool {
    matches!(authority, "docker.io" | "index.docker.io" | DOCKER_HUB)
}

/// Finds the places of images. Blocking; shared between threads. Files are read anew when they change.
#[derive(Debug)]
pub struct Hosts {
    registries_conf: PathBuf,
    certs_dirs: Vec<PathBuf>,
    registries: Kept<Vec<Registry>>,
    hosts: Kept<Vec<hosts_toml::Host>>,
}

impl Hosts {
    pub fn new(settings: &Settings) -> Hosts {
        Hosts {
            registries_conf: settings.registries_conf.clone(),
            certs_dirs: settings.certs_dirs.clone(),
            registries: Kept::new(registries_conf::parse),
            hosts: Kept::new(hosts_toml::parse),
        }
    }

    /// Where to ask for images of a repository (normalised: `docker.io/library/nginx`), in this order, at least one.
    /// `by_digest`: whether the image is named by its digest, for some mirrors are only asked then.
    ///
    /// # Errors
    /// [`Error::Settings`] when a file that says so cannot be used, or says that the registry is blocked.
    pub fn endpoints(&self, repository: &str, by_digest: bool) -> Result<Vec<Endpoint>, Error> {
        let (domain, path) = repository.split_once('/').unwrap_or((repository, ""));
        let Some(domain) = Authority::parse(domain).filter(|_| !path.is_empty()) else {
            let (name, reason) = (repository.to_owned(), "not the full name of a repository".to_owned());
            return Err(super::super::Error::InvalidImageName { name, reason }.into());
        };
        let found = self.registry(repository)?;
        if let Some((file, registry, _)) = found.as_ref().filter(|(_, registry, _)| registry.blocked) {
            let reason = format!("registry {} is blocked", registry.prefix);
            return Err(Error::Settings { path: file.clone(), reason });
        }
        if let Some(hosts) = self.hosts_file(&domain.folders())? {
            return self.of_hosts_file(&hosts, &domain, path);
        }
        match found {
            Some((file, registry, matched)) => self.of_registry(&file, &registry, repository, matched, by_digest),
            None => match self.hosts_file(&["_default".to_owned()])? {
                Some(hosts) => self.of_hosts_file(&hosts, &domain, path),
                None => Ok(vec![self.upstream(&domain, path)?]),
            },
        }
    }

    /// What the settings say of a place that a registry led to, as of a registry at that `host[:port]`; `None`: that
    /// there is none.
    pub fn named(&self, authority: &str) -> Option<Endpoint> {
        let mut endpoints = self.endpoints(&format!("{authority}/x"), true).ok()?;
        endpoints.pop().filter(|endpoint| endpoint.authority() == authority)
    }

    /// The registry with the longest prefix, the file that has it, and how much of the name it takes.
    fn registry(&self, repository: &str) -> Result<Option<(PathBuf, Registry, usize)>, Error> {
        let mut files = vec![self.registries_conf.clone()];
        files.extend(drop_ins(&self.registries_conf)?);
        let mut by_prefix = BTreeMap::new();
        for file in files {
            let Some(registries) = self.registries.get(&file)? else { continue };
            for registry in registries.iter() {
                // As containers: a later file replaces all that an earlier one says of a prefix.
                by_prefix.insert(registry.prefix.clone(), (file.clone(), registry.clone()));
            }
        }
        let matching = by_prefix.into_values().filter_map(|(file, registry)| {
            let matched = registry.matches(repository)?;
            Some((file, registry, matched))
        });
        // A wildcard takes the whole host, as its plain name does, which says more.
        Ok(matching
            .max_by_key(|(_, registry, matched)| (*matched, !registry.prefix.starts_with('*'), registry.prefix.len())))
    }

    /// The first `hosts.toml` in folders of these names.
    fn hosts_file(&self, names: &[String]) -> Result<Option<Arc<Vec<hosts_toml::Host>>>, Error> {
        for folder in &self.certs_dirs {
            for name in names {
                if let Some(hosts) = self.hosts.get(&folder.join(name).join("hosts.toml"))? {
                    return Ok(Some(hosts));
                }
            }
        }
        Ok(None)
    }

    fn of_registry(
        &self,
        file: &Path,
        registry: &Registry,
        repository: &str,
        matched: usize,
        by_digest: bool,
    ) -> Result<Vec<Endpoint>, Error> {
        let rest = &repository[matched..];
        let mirrors = registry.mirrors.iter().filter(|mirror| mirror.pull_from.serves(by_digest));
        let mut places: Vec<(String, bool)> =
            mirrors.map(|mirror| (format!("{}{rest}", mirror.location), mirror.insecure)).collect();
        let itself = match &registry.location {
            Some(location) => format!("{location}{rest}"),
            None => repository.to_owned(),
        };
        places.push((itself, registry.insecure));
        let mut endpoints = Vec::new();
        for (place, insecure) in places {
            let (authority, path) = place.split_once('/').unwrap_or((&place, ""));
            let Some(authority) = Authority::parse(authority).filter(|_| !path.is_empty()) else {
                let reason = format!("registry {}: {place:?} is not a place of a repository", registry.prefix);
                return Err(Error::Settings { path: file.to_owned(), reason });
            };
            let mut endpoint = self.upstream(&authority, path)?;
            if insecure {
                endpoint.insecure = true;
                endpoint.tls.skip_verify = true;
            }
            endpoints.push(endpoint);
        }
        Ok(endpoints)
    }

    fn of_hosts_file(
        &self,
        hosts: &[hosts_toml::Host],
        domain: &Authority,
        path: &str,
    ) -> Result<Vec<Endpoint>, Error> {
        let mut endpoints = Vec::new();
        for host in hosts {
            let mut endpoint = match &host.url {
                None => self.upstream(domain, path)?,
                Some(url) => {
                    let mut endpoint = self.upstream(&url.authority, path)?;
                    let scheme = if url.plain { "http" } else { "https" };
                    endpoint.base = format!("{scheme}://{}{}", url.authority.reachable(), url.path);
                    // The file says how to speak: nothing is guessed.
                    endpoint.insecure = url.plain;
                    endpoint.tls.skip_verify = false;
                    if url.authority.known_as() != domain.known_as() {
                        endpoint.namespace = Some(domain.known_as().to_owned());
                    }
                    endpoint
                }
            };
            if host.own_tls {
                endpoint.tls = host.tls.clone();
                endpoint.insecure &= endpoint.base.starts_with("http://") || host.tls.ca.is_empty();
            }
            endpoint.headers = host.headers.clone();
            endpoint.capabilities = host.capabilities;
            endpoint.dial_timeout = host.dial_timeout;
            endpoints.push(endpoint);
        }
        Ok(endpoints)
    }

    /// The registry itself, with the certificates of its folders.
    fn upstream(&self, authority: &Authority, path: &str) -> Result<Endpoint, Error> {
        let mut tls = TlsSettings::default();
        for folder in &self.certs_dirs {
            for name in authority.folders() {
                certificates(&folder.join(name), &mut tls)?;
            }
        }
        // As docker: what runs on this machine needs no certificate; but who gave one for it wants it to be looked at.
        let insecure = authority.is_loopback() && tls.ca.is_empty();
        tls.skip_verify = insecure;
        Ok(Endpoint {
            base: format!("https://{}/v2", authority.reachable()),
            repository: path.to_owned(),
            tls,
            insecure,
            headers: Vec::new(),
            host: authority.known_as().to_owned(),
            namespace: None,
            capabilities: Capabilities { pull: true, resolve: true },
            dial_timeout: None,
        })
    }
}

/// The files of `registries.conf.d` beside `registries.conf`, in their order.
fn drop_ins(registries_conf: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut folder = registries_conf.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let mut files = listed(&folder)?;
    files.retain(|file| file.extension().is_some_and(|e| e == "conf"));
    Ok(files)
}

/// Adds docker's `*.crt`, and `*.cert` with `*.key`. As containerd: a folder with a `hosts.toml` has none.
fn certificates(folder: &Path, tls: &mut TlsSettings) -> Result<(), Error> {
    let files = listed(folder)?;
    if files.iter().any(|file| file.file_name().is_some_and(|name| name == "hosts.toml")) {
        return Ok(());
    }
    let lone = |path: &Path, what: &str| {
        Err(Error::Settings { path: path.to_owned(), reason: format!("there is no {what} beside it") })
    };
    for file in &files {
        match file.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(file.clone()),
            Some("cert") => {
                let key = file.with_extension("key");
                if !files.contains(&key) {
                    return lone(file, ".key file");
                }
                tls.clients.push(ClientPair { certificate: file.clone(), key });
            }
            Some("key") if !files.contains(&file.with_extension("cert")) => return lone(file, ".cert file"),
            _ => {}
        }
    }
    Ok(())
}

/// The paths in a folder, sorted; none if there is no folder.
fn listed(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let mut paths =
            std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        Ok(paths)
    };
    match read() {
        Err(e) if kept::absent(&e) => Ok(Vec::new()),
        other => other.map_err(|e| kept::unreadable(folder, &e).into()),
    }
}
