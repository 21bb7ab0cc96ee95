//! What the configuration says of where manifests come from, and which are accepted.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use super::Error;
use super::file::{Section, wants};

/// Fields of a `KubeletConfiguration` that are read here.
pub(super) const KUBELET_FIELDS: &[&str] = &["httpCheckFrequency", "staticPodURL", "staticPodURLHeader"];
/// Fields of a `CoracleConfiguration` that are read here.
pub(super) const OWN_FIELDS: &[&str] = &["manifestURLs", "manifestVerification", "strictManifestPermissions"];

/// A header of requests for manifests: name and value.
pub type Header = (String, String);

/// A URL of manifests. Its `Debug` shows no header values: they may be credentials.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ManifestUrl {
    /// `http://`, `https://` or `file:///`.
    pub url: String,
    /// Sent with each request.
    pub headers: Vec<Header>,
    /// PEM file of the authorities that the server's certificate is checked against; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the certificate shown to the server, and its key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
}

impl std::fmt::Debug for ManifestUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ManifestUrl")
            .field("url", &self.url)
            .field("headers", &names)
            .field("ca_file", &self.ca_file)
            .field("client_cert", &self.client_cert)
            .finish()
    }
}

/// Where manifests come from besides the manifest directory, and which are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// URLs, in their order.
    pub urls: Vec<ManifestUrl>,
    /// Between two looks at a URL.
    pub http_check_frequency: Duration,
    /// minisign keys, one of which must have signed each manifest (their one-line form, or absolute paths of key files);
    /// empty: manifests need no signature.
    pub public_keys: Vec<String>,
    /// Whether manifests that others than their owner may write are refused.
    pub strict_permissions: bool,
}

impl Default for Sources {
    fn default() -> Sources {
        Sources {
            urls: Vec::new(),
            http_check_frequency: Duration::from_secs(20),
            public_keys: Vec::new(),
            strict_permissions: false,
        }
    }
}

/// The fields of a `KubeletConfiguration`: one URL, first of all.
pub(super) fn kubelet_fields(document: &Section<'_>, sources: &mut Sources) -> Result<(), Error> {
    document.duration_into("httpCheckFrequency", &mut sources.http_check_frequency)?;
    let headers = headers(document, "staticPodURLHeader")?;
    if let Some(url) = document.text("staticPodURL")?.filter(|url| !url.is_empty()) {
        let url = checked(url).map_err(|reason| Error::invalid(document.at("staticPodURL"), reason))?;
        sources.urls.insert(0, ManifestUrl { url, headers, ..ManifestUrl::default() });
    }
    Ok(())
}

/// A map of names to lists of values (as kubelet).
fn headers(document: &Section<'_>, field: &str) -> Result<Vec<Header>, Error> {
    let mut headers = Vec::new();
    for (name, values) in document.section(field)?.into_iter().flatten() {
        let at = format!("{}.{name}", document.at(field));
        let list = values.as_array().ok_or_else(|| Error::invalid(&at, wants("a list of texts", values)))?;
        for value in list {
            let text = value.as_str().ok_or_else(|| Error::invalid(&at, wants("text", value)))?;
            headers.push(header(name, text).map_err(|reason| Error::invalid(&at, reason))?);
        }
    }
    Ok(headers)
}

/// The fields of a `CoracleConfiguration`.
pub(super) fn own_fields(document: &Section<'_>, sources: &mut Sources) -> Result<(), Error> {
    if let Some(strict) = document.boolean("strictManifestPermissions")? {
        sources.strict_permissions = strict;
    }
    if let Some(map) = document.section("manifestVerification")? {
        let section = Section { path: "CoracleConfiguration.manifestVerification", map };
        section.reject_unknown(&["publicKeys"], &[])?;
        let keys = section.list("publicKeys")?.unwrap_or_default();
        if keys.is_empty() {
            let reason = "no key at all: leave manifestVerification out where manifests need no signature";
            return Err(Error::invalid(section.at("publicKeys"), reason));
        }
        sources.public_keys = keys.into_iter().map(str::to_owned).collect();
    }
    let Some(value) = document.get("manifestURLs") else { return Ok(()) };
    let at = document.at("manifestURLs");
    let list = value.as_array().ok_or_else(|| Error::invalid(&at, wants("a list", value)))?;
    for (index, value) in list.iter().enumerate() {
        let path = format!("{at}[{index}]");
        let map = value.as_object().ok_or_else(|| Error::invalid(&path, wants("a mapping", value)))?;
        sources.urls.push(entry(&path, map)?);
    }
    Ok(())
}

fn entry(path: &str, map: &Map<String, Value>) -> Result<ManifestUrl, Error> {
    let section = Section { path, map };
    section.reject_unknown(&["caFile", "clientCertFile", "clientKeyFile", "headers", "url"], &[])?;
    let url = section.text("url")?.ok_or_else(|| Error::invalid(section.at("url"), "required"))?;
    let file = |field: &str| -> Result<Option<PathBuf>, Error> {
        let Some(text) = section.text(field)? else { return Ok(None) };
        match text.starts_with('/') {
            true => Ok(Some(PathBuf::from(text))),
            false => Err(Error::invalid(section.at(field), format!("{text:?} is not an absolute path"))),
        }
    };
    let client_cert = match (file("clientCertFile")?, file("clientKeyFile")?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(Error::invalid(section.at("clientKeyFile"), "required with clientCertFile")),
        (None, Some(_)) => return Err(Error::invalid(section.at("clientCertFile"), "required with clientKeyFile")),
    };
    Ok(ManifestUrl {
        url: checked(url).map_err(|reason| Error::invalid(section.at("url"), reason))?,
        headers: headers(&section, "headers")?,
        ca_file: file("caFile")?,
        client_cert,
    })
}

/// A URL that manifests can come from.
pub(super) fn checked(url: &str) -> Result<String, String> {
    let rest = ["http://", "https://", "file:///"].iter().find_map(|scheme| url.strip_prefix(scheme));
    match rest {
        Some(rest) if !rest.is_empty() && !url.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            Ok(url.to_owned())
        }
        _ => Err(format!("{url:?} is not a URL that starts with http://, https:// or file:///")),
    }
}

/// A header that can be sent.
fn header(name: &str, value: &str) -> Result<Header, String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("{name:?} is not the name of a header"));
    }
    if value.bytes().any(|b| b != b'\t' && !(b' '..=b'~').contains(&b)) {
        return Err(format!("the value of header {name} holds characters that cannot be sent"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// `--manifest-url-header`: `NAME:VALUE`, separated by commas (as kubelet).
pub(super) fn header_flag(text: &str) -> Result<Vec<Header>, String> {
    let one = |part: &str| {
        // Never the text itself: its value may be a credential.
        let (name, value) = part.split_once(':').ok_or("want NAME:VALUE, separated by commas")?;
        header(name.trim(), value.trim())
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(one).collect()
}
