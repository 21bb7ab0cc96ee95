//! kubeconfig files: read, and written for what was issued. Pure. Only what a node's can hold; other ways of
//! authentication are refused, not ignored.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Why a kubeconfig cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// It is no kubeconfig.
    #[error("not a kubeconfig: {0}")]
    Yaml(String),
    /// Something that it names is missing.
    #[error("{0}")]
    Missing(String),
    /// It holds something that cannot be used.
    #[error("{field}: {why}")]
    Invalid { field: String, why: String },
}

fn invalid(field: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Invalid { field: field.into(), why: why.into() }
}

/// PEM that a kubeconfig holds or names.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Pem {
    Data(Vec<u8>),
    File(PathBuf),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // It may be a key.
            Pem::Data(_) => f.write_str("Data"),
            Pem::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// A bearer token that a kubeconfig holds or names.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Bearer {
    Text(String),
    File(PathBuf),
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bearer::Text(_) => f.write_str("Text"),
            Bearer::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// What the current context of a kubeconfig says: where the API server is, whom to believe, and who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// URL.
    pub(super) server: String,
    /// `None`: the authorities of the machine.
    pub(super) authority: Option<Pem>,
    /// Whether any server is believed.
    pub(super) insecure: bool,
    /// The name in the server's certificate, when it is not the host's.
    pub(super) server_name: Option<String>,
    /// Client certificate and its key.
    pub(super) certificate: Option<(Pem, Pem)>,
    /// Bearer token.
    pub(super) token: Option<Bearer>,
}

impl Access {
    /// Reads a kubeconfig; relative paths in it are meant from its folder.
    ///
    /// # Errors
    /// What is wrong with it, without its content.
    pub(super) fn read(text: &str, folder: &Path) -> Result<Access, Error> {
        let read: Kubeconfig = serde_yaml::from_str(text).map_err(|e| Error::Yaml(first_line(&e.to_string())))?;
        let missing = |what: &str| Error::Missing(what.to_owned());
        if read.current_context.is_empty() {
            return Err(missing("there is no current-context"));
        }
        let named = read.contexts.into_iter().find(|context| context.name == read.current_context);
        let context = named.ok_or_else(|| missing("the current-context is not among the contexts"))?.context;
        let cluster = read.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
        let cluster = cluster.ok_or_else(|| missing("the cluster of the current context is not among the clusters"))?;
        let user = match context.user.as_str() {
            "" => User::default(),
            name => {
                let user = read.users.into_iter().find(|user| user.name == name);
                user.ok_or_else(|| missing("the user of the current context is not among the users"))?.user
            }
        };
        access(cluster.cluster, user, folder)
    }
}

fn access(cluster: Cluster, user: User, folder: &Path) -> Result<Access, Error> {
    let refused = [
        ("user.exec", user.exec.is_some()),
        ("user.auth-provider", user.auth_provider.is_some()),
        ("user.username", user.username.is_some() || user.password.is_some()),
        ("user.as", user.impersonate.is_some()),
        ("cluster.proxy-url", cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty())),
    ];
    if let Some((field, _)) = refused.iter().find(|(_, given)| *given) {
        return Err(invalid(*field, "not supported for a node; use a client certificate or a token"));
    }
    if cluster.server.is_empty() {
        return Err(invalid("cluster.server", "missing"));
    }
    let pem = |field: &str, data: Option<String>, file: Option<String>| -> Result<Option<Pem>, Error> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(data) = given(data) {
            let data: String = data.split_ascii_whitespace().collect();
            let decoded = STANDARD.decode(data).map_err(|_| invalid(format!("{field}-data"), "not base64"))?;
            return Ok(Some(Pem::Data(decoded)));
        }
        Ok(given(file).map(|file| Pem::File(folder.join(file))))
    };
    let authority =
        pem("cluster.certificate-authority", cluster.certificate_authority_data, cluster.certificate_authority)?;
    if cluster.insecure_skip_tls_verify && authority.is_some() {
        let why = "cannot be together with a certificate-authority";
        return Err(invalid("cluster.insecure-skip-tls-verify", why));
    }
    let chain = pem("user.client-certificate", user.client_certificate_data, user.client_certificate)?;
    let key = pem("user.client-key", user.client_key_data, user.client_key)?;
    let certificate = match (chain, key) {
        (Some(chain), Some(key)) => Some((chain, key)),
        (None, None) => None,
        (Some(_), None) => return Err(invalid("user.client-key", "missing, but there is a client-certificate")),
        (None, Some(_)) => return Err(invalid("user.client-certificate", "missing, but there is a client-key")),
    };
    // As client-go: the file counts.
    let token = match (user.token_file, user.token) {
        (Some(file), _) if !file.is_empty() => Some(Bearer::File(folder.join(file))),
        (_, Some(token)) if !token.is_empty() => Some(Bearer::Text(token)),
        _ => None,
    };
    Ok(Access {
        server: cluster.server,
        authority,
        insecure: cluster.insecure_skip_tls_verify,
        server_name: cluster.tls_server_name.filter(|name| !name.is_empty()),
        certificate,
        token,
    })
}

/// YAML's errors quote what they did not understand; the first line says where.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// The kubeconfig of a node whose certificate and key are in the file `pem`, for the cluster of `access`: names as the
/// kubelet's.
///
/// # Errors
/// When it cannot be written as YAML, or a path is no text.
pub(super) fn issued(access: &Access, pem: &Path) -> Result<String, Error> {
    let pem = text_of(pem)?;
    let user = User { client_certificate: Some(pem.clone()), client_key: Some(pem), ..User::default() };
    compose(access, "default-cluster", "default-auth", "default-context", user)
}

/// A kubeconfig with which nothing can be done but to ask for a certificate: names as kubeadm's.
///
/// # Errors
/// As [`issued`].
pub(super) fn bootstrap(access: &Access, token: &str) -> Result<String, Error> {
    let user = User { token: Some(token.to_owned()), ..User::default() };
    let name = "tls-bootstrap-token-user";
    compose(access, "kubernetes", name, "tls-bootstrap-token-user@kubernetes", user)
}

fn compose(access: &Access, cluster: &str, user: &str, context: &str, of_user: User) -> Result<String, Error> {
    let mut of_cluster = Cluster {
        server: access.server.clone(),
        insecure_skip_tls_verify: access.insecure,
        tls_server_name: access.server_name.clone(),
        ..Cluster::default()
    };
    match &access.authority {
        Some(Pem::Data(data)) => of_cluster.certificate_authority_data = Some(STANDARD.encode(data)),
        Some(Pem::File(path)) => of_cluster.certificate_authority = Some(text_of(path)?),
        None => {}
    }
    let config = Kubeconfig {
        api_version: "v1".to_owned(),
        kind: "Config".to_owned(),
        clusters: vec![NamedCluster { name: cluster.to_owned(), cluster: of_cluster }],
        users: vec![NamedUser { name: user.to_owned(), user: of_user }],
        contexts: vec![NamedContext {
            name: context.to_owned(),
            context: Context {
                cluster: cluster.to_owned(),
                user: user.to_owned(),
                namespace: Some("default".to_owned()),
            },
        }],
        current_context: context.to_owned(),
    };
    serde_yaml::to_string(&config).map_err(|e| Error::Yaml(e.to_string()))
}

/// URL and authorities (PEM) of the first cluster of a kubeconfig that names no user: that of `cluster-info`.
///
/// # Errors
/// What is missing.
pub(super) fn cluster_of(text: &str) -> Result<(String, Vec<u8>), Error> {
    let read: Kubeconfig = serde_yaml::from_str(text).map_err(|e| Error::Yaml(first_line(&e.to_string())))?;
    let named = read.clusters.into_iter().next();
    let cluster = named.ok_or_else(|| Error::Missing("there is no cluster".to_owned()))?.cluster;
    let access = access(cluster, User::default(), Path::new("/"))?;
    match access.authority {
        Some(Pem::Data(authority)) => Ok((access.server, authority)),
        _ => Err(invalid("cluster.certificate-authority-data", "missing")),
    }
}

fn text_of(path: &Path) -> Result<String, Error> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::Missing(format!("{} is not UTF-8", path.display())))
}

/// As Kubernetes: `null` is as good as nothing at all. Go writes it for empty lists.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(deserialize_with = "nullable")]
    clusters: Vec<NamedCluster>,
    #[serde(deserialize_with = "nullable")]
    users: Vec<NamedUser>,
    #[serde(deserialize_with = "nullable")]
    contexts: Vec<NamedContext>,
    #[serde(deserialize_with = "nullable")]
    current_context: String,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_authority: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_authority_data: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure_skip_tls_verify: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct NamedUser {
    name: String,
    #[serde(deserialize_with = "nullable")]
    user: User,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(rename = "tokenFile", skip_serializing_if = "Option::is_none")]
    token_file: Option<String>,
    #[serde(skip_serializing)]
    exec: Option<IgnoredAny>,
    #[serde(skip_serializing)]
    auth_provider: Option<IgnoredAny>,
    #[serde(skip_serializing)]
    username: Option<IgnoredAny>,
    #[serde(skip_serializing)]
    password: Option<IgnoredAny>,
    #[serde(rename = "as", skip_serializing)]
    impersonate: Option<IgnoredAny>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: other, context: {{cluster: x, user: y}}}}, {{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    fn read(cluster: &str, user: &str) -> Result<Access, String> {
        Access::read(&config(cluster, user), Path::new("/etc/kubernetes")).map_err(|error| error.to_string())
    }

    #[test]
    fn paths_are_meant_from_the_folder_of_the_file_and_data_counts_more() {
        let access = read(
            "server: 'https://a:6443', certificate-authority: pki/ca.crt, tls-server-name: api",
            "client-certificate: /abs.pem, client-key: k.pem, client-key-data: a2V5, token: t, tokenFile: token",
        )
        .unwrap();
        assert_eq!(access.authority, Some(Pem::File("/etc/kubernetes/pki/ca.crt".into())));
        assert_eq!(access.certificate, Some((Pem::File("/abs.pem".into()), Pem::Data(b"key".to_vec()))));
        assert_eq!(access.token, Some(Bearer::File("/etc/kubernetes/token".into())));
        assert_eq!(access.server_name.as_deref(), Some("api"));
        assert!(!format!("{access:?}").contains("107"), "the key is not shown: {access:?}");
    }

    #[test]
    fn what_a_node_cannot_use_is_refused_by_name() {
        let server = "server: 'https://a'";
        for (cluster, user, why) in [
            (server, "exec: {command: aws}", "user.exec: not supported"),
            (server, "auth-provider: {name: gcp}", "user.auth-provider: not supported"),
            (server, "username: a, password: b", "user.username: not supported"),
            (server, "as: admin", "user.as: not supported"),
            (server, "client-certificate: a", "user.client-key: missing"),
            (server, "client-key-data: a2V5", "user.client-certificate: missing"),
            (server, "client-key-data: '*', client-certificate: a", "user.client-key-data: not base64"),
            ("server: ''", "token: t", "cluster.server: missing"),
            ("server: 'https://a', proxy-url: 'http://p'", "token: t", "cluster.proxy-url: not supported"),
            ("server: 'https://a', insecure-skip-tls-verify: true, certificate-authority: b", "", "cannot be together"),
        ] {
            let error = read(cluster, user).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        for (text, why) in [
            ("{}", "no current-context"),
            ("current-context: x", "not among the contexts"),
            ("current-context: c\ncontexts: [{name: c, context: {cluster: k}}]", "not among the clusters"),
            ("]", "not a kubeconfig"),
            ("clusters: 5", "not a kubeconfig"),
        ] {
            let error = Access::read(text, Path::new("/")).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_cluster_of_cluster_info_is_read() {
        let text = "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: Y2E=\n    \
                    server: https://10.0.0.1:6443\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\n\
                    preferences: {}\nusers: null\n";
        assert_eq!(cluster_of(text), Ok(("https://10.0.0.1:6443".to_owned(), b"ca".to_vec())));
        for text in ["clusters: null", "clusters: [{cluster: {server: 'https://a'}}]", "]"] {
            assert!(cluster_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let access = read("server: 'https://a:6443', certificate-authority-data: Y2E=", "token: t").unwrap();
        let issued = issued(&access, Path::new("/pki/kubelet-client-current.pem")).unwrap();
        for text in ["default-cluster", "default-auth", "default-context", "namespace: default"] {
            assert!(issued.contains(text), "{issued}");
        }
        let pem = Pem::File("/pki/kubelet-client-current.pem".into());
        let expected = Access { certificate: Some((pem.clone(), pem)), token: None, ..access.clone() };
        assert_eq!(Access::read(&issued, Path::new("/x")).unwrap(), expected);
        let token = "abcdef.0123456789abcdef";
        let text = bootstrap(&access, token).unwrap();
        let expected = Access { token: Some(Bearer::Text(token.to_owned())), ..access };
        assert_eq!(Access::read(&text, Path::new("/x")).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[ -~\n]{0,300}") {
            let _ = Access::read(&text, Path::new("/"));
            let _ = cluster_of(&text);
        }

        #[test]
        fn no_value_makes_the_reader_panic(field in "[a-z-]{1,24}", value in "[ -&(-~]{0,40}") {
            let _ = read(&format!("server: 'https://a', {field}: '{value}'"), &format!("{field}: '{value}'"));
        }
    }
}
