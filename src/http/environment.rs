//! What the environment of the process says of homes, certificates and proxies.

use std::collections::BTreeMap;
use std::fmt;

/// All that is read of the environment by who speaks with servers.
const NAMES: &[&str] = &[
    "ALL_PROXY",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "PATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "XDG_RUNTIME_DIR",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Some variables, taken once: nothing else of those looks at the environment. Shows no values, for the URL of a
/// proxy may hold a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<&'static str, String>);

impl Environment {
    /// That of this process. What is not UTF-8 is left out.
    pub fn of_process() -> Environment {
        Environment(NAMES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))).collect())
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl<const N: usize> From<[(&'static str, &str); N]> for Environment {
    fn from(variables: [(&'static str, &str); N]) -> Environment {
        Environment(variables.into_iter().map(|(name, value)| (name, value.to_owned())).collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
