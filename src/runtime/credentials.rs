//! Values of Secrets that the service manager keeps, as systemd's credentials: sealed at rest, in memory while the service
//! runs. They are read when a container starts or a volume is written, and no record of ours has them.

use crate::manifest;
use crate::sys::fs::{self, Dir};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// A credential is not larger than a Secret may be, in bytes (systemd's own limit is the same).
const MAX: u64 = 1 << 20;

/// Why a value cannot be had. Never shows values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The annotation cannot be understood.
    #[error("secret {secret:?}: {why}")]
    Annotation {
        /// Which Secret.
        secret: String,
        /// What is wrong with its annotation.
        why: String,
    },
    /// The service has no such credential.
    #[error(
        "key {key:?} of secret {secret:?}: there is no credential {name:?}: the agent's unit needs \
         LoadCredentialEncrypted={name} (or LoadCredential={name}:PATH)"
    )]
    Missing {
        /// Which Secret.
        secret: String,
        /// Its key.
        key: String,
        /// The credential's name.
        name: String,
    },
    /// It is there, but cannot be read.
    #[error("key {key:?} of secret {secret:?}: the credential {name:?} cannot be read")]
    Unreadable {
        /// Which Secret.
        secret: String,
        /// Its key.
        key: String,
        /// The credential's name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Where the service manager put this service's credentials.
pub(super) fn directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The Secret with all of its values: those that its annotation takes from credentials are read from `directory`.
///
/// # Errors
/// The first credential that is not there, or cannot be read.
pub(super) fn unseal<'a>(secret: &'a Secret, directory: Option<&Path>) -> Result<Cow<'a, Secret>, Error> {
    let name = || secret.metadata.name.clone().unwrap_or_default();
    let wanted =
        manifest::credentials(secret).map_err(|why| Error::Annotation { secret: name(), why: why.to_string() })?;
    if wanted.is_empty() {
        return Ok(Cow::Borrowed(secret));
    }
    let mut whole = secret.clone();
    let data = whole.data.get_or_insert_default();
    for (key, credential) in wanted {
        let value = match directory.map(|dir| read(dir, &credential)) {
            Some(Ok(value)) => value,
            Some(Err(source)) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Unreadable { secret: name(), key, name: credential, source });
            }
            None | Some(Err(_)) => return Err(Error::Missing { secret: name(), key, name: credential }),
        };
        data.insert(key, ByteString(value));
    }
    Ok(Cow::Owned(whole))
}

/// A file of the directory itself: no link is followed, and nothing but a regular file is opened.
fn read(directory: &Path, credential: &str) -> io::Result<Vec<u8>> {
    if credential.is_empty() || credential.contains(['/', '\0']) || matches!(credential, "." | "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a credential"));
    }
    let file = Dir::open(directory)?.open_file(OsStr::new(credential))?;
    fs::read_file_limited(file, MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::CREDENTIALS;
    use serde_json::json;
    use std::os::unix::fs::symlink;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn values_come_from_files_of_the_directory_alone() {
        let scratch = Scratch(std::env::temp_dir().join(format!("coracle-credentials-{}", std::process::id())));
        let dir = scratch.0.join("agent.service");
        std::fs::create_dir_all(dir.join("folder")).unwrap();
        std::fs::write(dir.join("db"), b"p\xff\0").unwrap();
        std::fs::write(dir.join("big"), vec![b'x'; MAX as usize + 1]).unwrap();
        std::fs::write(scratch.0.join("outside"), "x").unwrap();
        symlink("../outside", dir.join("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
        let get = |credentials: &str, directory: Option<&Path>| {
            let meta = json!({"name": "s", "namespace": "d", "annotations": {CREDENTIALS: credentials}});
            let secret: Secret = serde_json::from_value(json!({"metadata": meta, "data": {"own": "MQ=="}})).unwrap();
            unseal(&secret, directory)
                .map(|whole| {
                    let data = whole.data.clone().unwrap_or_default();
                    data.into_iter().map(|(key, value)| (key, value.0)).collect::<Vec<_>>()
                })
                .map_err(|error| crate::causes::chain(&error))
        };
        let own = ("own".to_owned(), b"1".to_vec());
        assert_eq!(get("password=db", Some(&dir)), Ok(vec![own.clone(), ("password".into(), b"p\xff\0".to_vec())]));
        let missing = "key \"password\" of secret \"s\": there is no credential \"none\": the agent's unit needs \
                       LoadCredentialEncrypted=none (or LoadCredential=none:PATH)";
        assert_eq!(get("password=none", Some(&dir)), Err(missing.to_owned()));
        assert_eq!(get("password=none", None), Err(missing.to_owned()));
        assert_eq!(get("password=none", Some(&scratch.0.join("gone"))), Err(missing.to_owned()));
        for bad in ["big", "link", "pipe", "folder"] {
            let error = get(&format!("password={bad}"), Some(&dir)).unwrap_err();
            assert!(
                error.starts_with(&format!("key \"password\" of secret \"s\": the credential {bad:?} cannot")),
                "{error}"
            );
        }
        for bad in ["../outside", "..", "", "a/b"] {
            assert!(read(&dir, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_secret_of_its_own_is_not_copied() {
        let secret: Secret = serde_json::from_value(json!({"metadata": {"name": "s"}, "data": {"a": "MQ=="}})).unwrap();
        assert!(matches!(unseal(&secret, None), Ok(Cow::Borrowed(_))));
    }
}
