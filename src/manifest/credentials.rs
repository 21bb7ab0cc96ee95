//! Values of a Secret that the service manager keeps: the annotation `coracle.dev/credentials`.

use super::object::CREDENTIALS;
use k8s_openapi::api::core::v1::Secret;
use std::collections::BTreeMap;

/// What is wrong with the annotation. Says nothing of what stands right of a `=`: it may be a value that someone took the
/// annotation to be for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// An entry has no `=`, or nothing on one side of it. Entries count from 1.
    #[error("entry {0} must be KEY=CREDENTIAL (entries are separated by commas)")]
    Form(usize),
    /// The name is none that the service manager could have given a file.
    #[error(
        "the credential of key {0:?} must be a plain name of at most 255 printable ASCII characters without '/' and ':'"
    )]
    Name(String),
    /// Two entries are for one key.
    #[error("key {0:?} has two credentials")]
    Twice(String),
}

/// The keys of a Secret whose values are systemd credentials, with the credentials' names.
///
/// # Errors
/// When the annotation [`CREDENTIALS`] is not of the form `KEY=CREDENTIAL,…`. [`super::load`] yields no such Secret.
pub fn credentials(secret: &Secret) -> Result<BTreeMap<String, String>, CredentialsError> {
    let text = secret.metadata.annotations.as_ref().and_then(|annotations| annotations.get(CREDENTIALS));
    let Some(text) = text else { return Ok(BTreeMap::new()) };
    let mut found = BTreeMap::new();
    for (index, entry) in text.split(',').enumerate() {
        let (key, name) = entry.trim().split_once('=').ok_or(CredentialsError::Form(index + 1))?;
        let (key, name) = (key.trim(), name.trim());
        if key.is_empty() || name.is_empty() {
            return Err(CredentialsError::Form(index + 1));
        }
        if !is_credential(name) {
            return Err(CredentialsError::Name(key.to_owned()));
        }
        if found.insert(key.to_owned(), name.to_owned()).is_some() {
            return Err(CredentialsError::Twice(key.to_owned()));
        }
    }
    Ok(found)
}

/// As systemd: what may be the name of a file and of a descriptor that is handed over.
fn is_credential(name: &str) -> bool {
    const LONGEST: usize = 255;
    let fits = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'/' && byte != b':';
    !name.is_empty() && name.len() <= LONGEST && name != "." && name != ".." && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        let mut secret = Secret::default();
        secret.metadata.annotations = Some(BTreeMap::from([(CREDENTIALS.to_owned(), text.to_owned())]));
        credentials(&secret).map(|found| found.into_iter().collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_have_credentials() {
        assert_eq!(credentials(&Secret::default()), Ok(BTreeMap::new()));
        let pairs = [("tls.crt", "web.crt"), ("tls.key", "web key=1")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(read("tls.crt=web.crt, tls.key = web key=1"), Ok(pairs.to_vec()));
    }

    #[test]
    fn what_is_no_name_of_a_credential_is_refused_without_showing_it() {
        for (text, part) in [
            ("", "entry 1 "),
            ("a=b,", "entry 2 "),
            ("a", "entry 1 "),
            ("=b", "entry 1 "),
            ("a=", "entry 1 "),
            ("a=.", "\"a\""),
            ("a=..", "\"a\""),
            ("a=b,b=../marker", "\"b\""),
            ("a=x:marker", "\"a\""),
            ("a=märker", "\"a\""),
            ("a=mar\nker", "\"a\""),
            ("a=b,a=marker", "two credentials"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part) && !error.contains("marker"), "{text:?}: {error}");
        }
        assert!(read(&format!("a={}", "x".repeat(255))).is_ok());
        assert!(read(&format!("a={}", "x".repeat(256))).is_err());
    }
}
