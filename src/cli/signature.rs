//! Signatures of manifests: what `apply` and `run` send along, and what `validate --key` checks.

use super::error::Error;
use super::manifests;
use crate::minisign::EXTENSION;
use crate::server::encode;
use crate::source::Verifier;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The signature that lies beside a manifest file, as a further part of the query of a request; nothing without one.
pub(super) fn sent(source: &str, query: &str) -> Result<String, Error> {
    // A pipe and a URL have nothing beside them.
    if source == "-" || manifests::is_url(source) {
        return Ok(String::new());
    }
    let beside = format!("{source}{EXTENSION}");
    match std::fs::read_to_string(&beside) {
        Ok(text) => {
            let separator = if query.is_empty() { '?' } else { '&' };
            Ok(format!("{separator}signature={}", encode(&text)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::new(format!("cannot read {beside}"), error)),
    }
}

/// A verifier with the keys of a command line: files, or keys in one line each. `None`: there are none.
pub(super) fn verifier(keys: &[String]) -> Result<Option<Arc<Verifier>>, Error> {
    let entry = |key: &String| match Path::new(key).exists() {
        true => Ok(std::path::absolute(key)?.to_string_lossy().into_owned()),
        false => Ok(key.clone()),
    };
    let unusable = |error: &dyn std::error::Error| Error::caused("cannot use --key", error);
    let keys: Vec<String> = keys.iter().map(entry).collect::<io::Result<_>>().map_err(|error| unusable(&error))?;
    let verifier = Verifier::new(&keys, None).map_err(|error| unusable(&error))?;
    match verifier.as_ref().map(|verifier| verifier.troubles().join("; ")) {
        Some(troubles) if !troubles.is_empty() => Err(Error::new("cannot use --key", troubles)),
        _ => Ok(verifier),
    }
}

/// Who has signed a manifest, in a line for people.
pub(super) async fn check(verifier: &Verifier, source: &str, bytes: &[u8]) -> Result<String, Error> {
    if source == "-" {
        return Err(Error::usage("standard input has no signature beside it: name a file"));
    }
    let refused = |error: &dyn std::error::Error| Error::caused(format!("{source} is refused"), error);
    let text = manifests::read(&format!("{source}{EXTENSION}")).await?;
    let signed = verifier.verify(bytes, &text).map_err(|error| refused(&error))?;
    let serial = signed.serial.map_or_else(|| "no serial".to_owned(), |serial| format!("serial {serial}"));
    Ok(format!("signed by key {}, {serial}, trusted comment: {}", signed.key, signed.comment))
}
