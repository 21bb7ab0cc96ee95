//! Credentials for registries: of pods (`imagePullSecrets`) and of the node.
//!
//! Keys are matched as the kubelet matches them: host globs label by label, the same port, a prefix of the path; the
//! most specific first, and every match is a candidate. That includes containers' `auth.json`, whose keys are
//! `host[/namespace[/repository]]`. Unlike the kubelet, credential helpers and identity tokens work too.

mod glob;
mod helper;
mod keyring;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use keyring::Keyring;

use super::{PullSecret, Settings};
use crate::http::Environment;
use crate::http::kept::Kept;

/// How to log in.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    Password {
        username: String,
        password: String,
    },
    /// A refresh token for the registry's token server (OAuth 2).
    IdentityToken(String),
}

impl fmt::Debug for Login {
    /// Nothing that is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::Password { username, .. } => write!(f, "Password({username:?})"),
            Login::IdentityToken(_) => f.write_str("IdentityToken"),
        }
    }
}

/// Something that may open a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub login: Login,
    /// Name of the pull secret; `None`: the node's.
    pub secret: Option<String>,
}

/// What there is for a repository.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// In the order in which they are to be tried; without a credential is tried only if there is none (as kubelet).
    pub credentials: Vec<Credential>,
    /// Damaged files, secrets and helpers, for people: what is missing above may be in there.
    pub problems: Vec<String>,
}

/// Finds credentials. Blocking; shared between threads. Files are read anew when they change.
#[derive(Debug)]
pub struct Credentials {
    auth_files: Vec<PathBuf>,
    root_dir: PathBuf,
    environment: Environment,
    configs: Kept<Keyring>,
    old_configs: Kept<Keyring>,
}

impl Credentials {
    pub fn new(settings: &Settings) -> Credentials {
        Credentials {
            auth_files: settings.auth_files.clone(),
            root_dir: settings.root_dir.clone(),
            environment: settings.environment.clone(),
            configs: Kept::new(|_, content| keyring::config_json(content)),
            old_configs: Kept::new(|_, content| keyring::dockercfg(content)),
        }
    }

    /// For a repository at a host ([`Endpoint::host`](super::hosts::Endpoint), [`Endpoint::repository`]): those of the
    /// pod's secrets, then the node's. What is damaged is told and passed over, for the image may be open to all.
    ///
    /// [`Endpoint::repository`]: super::hosts::Endpoint::repository
    pub fn candidates(&self, host: &str, repository: &str, secrets: &[PullSecret]) -> Candidates {
        let target = format!("{host}/{repository}");
        let mut found = Candidates::default();
        for secret in secrets {
            match keyring::secret(&secret.content) {
                Ok(ring) => {
                    found.add(ring.lookup(&target), Some(&secret.name));
                    found.tell(&format!("secret {}", secret.name), &ring.problems);
                }
                Err(reason) => found.problems.push(format!("secret {}: {reason}", secret.name)),
            }
        }
        for (path, ring) in self.node(&mut found.problems) {
            found.tell(&path.display().to_string(), &ring.problems);
            if let Some(name) = ring.helper(host) {
                match helper::get(name, host, &self.environment) {
                    Ok(Some(login)) => found.add(vec![login], None),
                    Ok(None) => {}
                    Err(e) => found.problems.push(format!("{}: docker-credential-{name}: {e}", path.display())),
                }
            }
            found.add(ring.lookup(&target), None);
        }
        found
    }

    /// The node's files, in their order: those configured; kubelet's first `config.json`, or its first `.dockercfg`;
    /// containers' first `auth.json`.
    fn node(&self, problems: &mut Vec<String>) -> Vec<(PathBuf, Arc<Keyring>)> {
        let folder = |path: Option<&str>| path.map(PathBuf::from).filter(|path| path.is_absolute());
        let root_dir = Some(self.root_dir.clone()).filter(|path| path.is_absolute());
        let home = folder(self.environment.get("HOME"));
        let runtime_dir = folder(self.environment.get("XDG_RUNTIME_DIR"));
        let within = |folder: &Option<PathBuf>, name: &str| folder.as_ref().map(|folder| folder.join(name));
        // As kubelet, but for the working directory: which that is, is an accident.
        let configs = [
            within(&root_dir, "config.json"),
            within(&home, ".docker/config.json"),
            Some(PathBuf::from("/.docker/config.json")),
        ];
        let old_configs =
            [within(&root_dir, ".dockercfg"), within(&home, ".dockercfg"), Some(PathBuf::from("/.dockercfg"))];
        let containers =
            [within(&runtime_dir, "containers/auth.json"), Some(PathBuf::from("/run/containers/0/auth.json"))];

        let mut rings = Vec::new();
        let mut first = |kept: &Kept<Keyring>, places: &[Option<PathBuf>], all: bool| {
            let before = rings.len();
            for path in places.iter().flatten() {
                match kept.get(path) {
                    Ok(Some(ring)) => rings.push((path.clone(), ring)),
                    Ok(None) => {}
                    Err(e) => problems.push(e.to_string()),
                }
                if !all && rings.len() > before {
                    return true;
                }
            }
            false
        };
        let configured: Vec<_> = self.auth_files.iter().cloned().map(Some).collect();
        first(&self.configs, &configured, true);
        if !first(&self.configs, &configs, false) {
            first(&self.old_configs, &old_configs, false);
        }
        first(&self.configs, &containers, false);
        rings
    }
}

impl Candidates {
    /// Each once: the same login again would fail again.
    fn add(&mut self, logins: Vec<Login>, secret: Option<&String>) {
        for login in logins {
            if !self.credentials.iter().any(|known| known.login == login) {
                self.credentials.push(Credential { login, secret: secret.cloned() });
            }
        }
    }

    fn tell(&mut self, place: &str, problems: &[String]) {
        self.problems.extend(problems.iter().map(|problem| format!("{place}: {problem}")));
    }
}
