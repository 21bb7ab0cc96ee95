//! One file or secret with credentials: `config.json`, `auth.json`, `.dockercfg`.
//!
//! Walked by hand over a JSON value: a deserializer's errors quote what they stumbled over, which may be a password.

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::{Login, glob};

/// Where keys of the hub end up.
const DOCKER_HUB: &str = "index.docker.io";

/// Most entries that are looked at.
const MOST: usize = 10_000;

/// Base 64, padded or not: both are found.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Logins by key, and the helpers that know more.
#[derive(Default)]
pub(super) struct Keyring {
    /// By `host[:port][/path]`.
    logins: BTreeMap<String, Vec<Login>>,
    /// Suffixes of helpers' programs by host.
    helpers: BTreeMap<String, String>,
    /// The helper for all other hosts.
    store: Option<String>,
    /// Entries that cannot be used.
    pub(super) problems: Vec<String>,
}

impl Keyring {
    /// All logins for `host/repository`, the most specific key first. As kubelet: the hub's are only asked when no key
    /// matches.
    pub(super) fn lookup(&self, image: &str) -> Vec<Login> {
        let matching = self.logins.iter().rev().filter(|(key, _)| glob::is_for(key, image));
        let found: Vec<Login> = matching.flat_map(|(_, logins)| logins.iter().cloned()).collect();
        let host = image.split('/').next().unwrap_or_default();
        if found.is_empty() && matches!(host, "docker.io" | DOCKER_HUB) {
            return self.logins.get(DOCKER_HUB).cloned().unwrap_or_default();
        }
        found
    }

    /// The helper to ask about a host.
    pub(super) fn helper(&self, host: &str) -> Option<&str> {
        let own = self.helpers.get(host).or_else(|| {
            let hub = ["docker.io", DOCKER_HUB].contains(&host);
            hub.then(|| ["docker.io", DOCKER_HUB].iter().find_map(|name| self.helpers.get(*name)))?
        });
        own.or(self.store.as_ref()).map(String::as_str)
    }

    fn add(&mut self, entries: &Map<String, Value>) {
        for (place, entry) in entries.iter().take(MOST) {
            match login(entry) {
                Ok(Some(login)) => self.logins.entry(key(place)).or_default().push(login),
                Ok(None) => {}
                Err(reason) => self.problems.push(format!("auths {:?}: {reason}", key(place))),
            }
        }
    }
}

/// docker's `config.json`, containers' `auth.json`.
pub(super) fn config_json(content: &[u8]) -> Result<Keyring, String> {
    let document = document(content)?;
    let mut ring = Keyring::default();
    match document.get("auths") {
        None | Some(Value::Null) => {}
        Some(Value::Object(entries)) => ring.add(entries),
        Some(_) => return Err("auths is not an object".into()),
    }
    match document.get("credHelpers") {
        None | Some(Value::Null) => {}
        Some(Value::Object(helpers)) => {
            for (place, name) in helpers.iter().take(MOST) {
                match name.as_str() {
                    // As containers: an empty one says that there is none for this host.
                    Some(name) => drop(ring.helpers.insert(key(place), name.to_owned())),
                    None => ring.problems.push(format!("credHelpers {place:?}: not a string")),
                }
            }
        }
        Some(_) => return Err("credHelpers is not an object".into()),
    }
    match document.get("credsStore") {
        None | Some(Value::Null) => {}
        Some(Value::String(name)) => ring.store = Some(name.clone()).filter(|name| !name.is_empty()),
        Some(_) => return Err("credsStore is not a string".into()),
    }
    Ok(ring)
}

/// The older `.dockercfg`: only the entries.
pub(super) fn dockercfg(content: &[u8]) -> Result<Keyring, String> {
    let mut ring = Keyring::default();
    ring.add(&document(content)?);
    Ok(ring)
}

/// A pull secret's content, of either format. Its helpers are not looked at: a pod does not choose the node's programs.
pub(super) fn secret(content: &[u8]) -> Result<Keyring, String> {
    let document = document(content)?;
    let mut ring = Keyring::default();
    match document.get("auths") {
        Some(Value::Object(entries)) => ring.add(entries),
        Some(_) => return Err("auths is not an object".into()),
        None => ring.add(&document),
    }
    Ok(ring)
}

fn document(content: &[u8]) -> Result<Map<String, Value>, String> {
    // The message of a syntax error has a line and a column, nothing of the content.
    match serde_json::from_slice(content) {
        Ok(Value::Object(document)) => Ok(document),
        Ok(_) => Err("not a JSON object".into()),
        Err(e) => Err(format!("line {}, column {}: not JSON", e.line(), e.column())),
    }
}

/// The login of an entry; `None` for one without, as docker leaves where a helper knows.
fn login(entry: &Value) -> Result<Option<Login>, &'static str> {
    let Value::Object(entry) = entry else { return Err("not an object") };
    let text = |name: &str, wrong: &'static str| match entry.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(wrong),
    };
    let token = text("identitytoken", "identitytoken is not a string")?;
    if !token.is_empty() {
        return Ok(Some(Login::IdentityToken(token.to_owned())));
    }
    let auth = text("auth", "auth is not a string")?.trim();
    if !auth.is_empty() {
        let decoded = BASE64.decode(auth).map_err(|_| "auth is not base 64")?;
        let decoded = String::from_utf8(decoded).map_err(|_| "auth does not decode to UTF-8")?;
        let (username, password) = decoded.split_once(':').ok_or("auth does not decode to user:password")?;
        // As docker, whose first versions padded with NUL.
        let password = password.trim_matches('\0').to_owned();
        return Ok(Some(Login::Password { username: username.to_owned(), password }));
    }
    let username = text("username", "username is not a string")?;
    let password = text("password", "password is not a string")?;
    if username.is_empty() && password.is_empty() {
        return Ok(None);
    }
    Ok(Some(Login::Password { username: username.to_owned(), password: password.to_owned() }))
}

/// As kubelet: without scheme, without `/v1` or `/v2` before the path, without user, query and fragment.
fn key(place: &str) -> String {
    let place = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
    let place = place.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = place.find('/').map_or((place, ""), |slash| place.split_at(slash));
    let host = host.rsplit('@').next().unwrap_or_default();
    let path = match path.get(..4) {
        Some("/v1/" | "/v2/") => &path[3..],
        _ => path,
    };
    let path = if path == "/" { "" } else { path };
    format!("{host}{path}")
}
