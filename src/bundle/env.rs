//! Environment, command and arguments of a container (as kubelet: `kl/kubelet_pods.go`, `expansion/expand.go`).

use super::{Error, Input, envfile};
use crate::manifest::ObjectKind;
use crate::pod::resources;
use k8s_openapi::api::core::v1::{EnvFromSource, EnvVarSource, FileKeySelector, Pod};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

/// What containerd gives a container whose image has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What variables may be taken from, besides the manifest: read by the caller, judged here.
#[derive(Clone, Default)]
pub struct Sources {
    /// Data of the ConfigMaps of the pod's namespace, by name. (As kubelet: binary data is for volumes alone.)
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
    /// Data of the Secrets of the pod's namespace, by name.
    pub secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Secrets of the pod's namespace whose values cannot be had, by name, and why.
    pub sealed: BTreeMap<String, String>,
    /// ConfigMaps and Secrets of which it is not known whether they are there, by kind and name, and why: also a variable
    /// that could be left out waits for them.
    pub unread: BTreeMap<(ObjectKind, String), String>,
    /// Variables of the cluster's services ([`super::services`]).
    pub services: BTreeMap<String, String>,
    /// Files of variables by volume and path: the content, or why there is none.
    pub files: BTreeMap<(String, String), Result<Vec<u8>, String>>,
}

impl Sources {
    /// As kubelet: optional is what is not there, not what cannot be read.
    fn known(&self, kind: ObjectKind, name: &str) -> Result<(), Error> {
        match self.unread.get(&(kind, name.to_owned())) {
            Some(why) => Err(Error::Reference(why.clone())),
            None => Ok(()),
        }
    }

    fn config_map(&self, name: &str) -> Result<&BTreeMap<String, String>, Error> {
        self.config_maps.get(name).ok_or_else(|| Error::Reference(format!("configmap {name:?} not found")))
    }

    fn secret(&self, name: &str) -> Result<&BTreeMap<String, Vec<u8>>, Error> {
        if let Some(why) = self.sealed.get(name) {
            return Err(Error::Reference(why.clone()));
        }
        self.secrets.get(name).ok_or_else(|| Error::Reference(format!("secret {name:?} not found")))
    }
}

/// Names, never values: some of them are secret.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("config_maps", &self.config_maps.keys())
            .field("secrets", &self.secrets.keys())
            .field("sealed", &self.sealed)
            .field("unread", &self.unread)
            .field("files", &self.files.keys())
            .finish()
    }
}

/// Variables in order; a name appears once. Has no `Debug`: values may be secret.
#[derive(Default, Clone)]
pub(super) struct Vars {
    list: Vec<(String, String)>,
    /// Where each name is: a ConfigMap may have a hundred thousand keys.
    index: HashMap<String, usize>,
}

impl Vars {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|at| self.list[*at].1.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.index.get(name) {
            Some(at) => self.list[*at].1 = value,
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value));
            }
        }
    }

    fn set_default(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.set(name, value.to_owned());
        }
    }

    /// `NAME=value` each.
    pub(super) fn lines(self) -> Vec<String> {
        self.list.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// Longest value of a variable, or argument, in bytes (the kernel's MAX_ARG_STRLEN, less the name).
pub(super) const MAX_VALUE: usize = 128 * 1024 - 1024;
/// Most bytes of all variables, or of all arguments (the kernel's default limit of both together).
const MAX_TOTAL: usize = 2 * 1024 * 1024;

/// Replaces `$(NAME)` by its value in one pass; `$$` is a dollar sign; a name that is not known, an unclosed `$(` and
/// any other `$` stay as they are.
pub fn expand<'v>(text: &str, lookup: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        if out.len() > MAX_VALUE {
            return out; // too long already: for the caller to refuse
        }
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let closed = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match closed {
            Some((name, after)) => {
                match lookup(name) {
                    Some(value) => out.push_str(value),
                    None => {
                        out.push_str("$(");
                        out.push_str(name);
                        out.push(')');
                    }
                }
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

/// The variables of the PodSpec: what `$(NAME)` in command and arguments may refer to. Those of `envFrom` come first,
/// later ones replace earlier ones of their name.
pub(super) fn declared(input: &Input<'_>) -> Result<Vars, Error> {
    let mut vars = Vars::default();
    let mut total = 0;
    let mut set = |vars: &mut Vars, name: &str, value: String| {
        // The kernel takes no longer one; unchecked, a few lines of `$(A)$(A)` would fill the memory of the agent.
        total += name.len() + value.len();
        if name.len() + value.len() > MAX_VALUE || total > MAX_TOTAL {
            return Err(Error::TooLong(format!("env {name:?}")));
        }
        // As kubelet: any printable ASCII character but '='.
        let sound = name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=');
        if name.is_empty() || !sound || value.contains('\0') {
            return Err(Error::Variable(name.to_owned()));
        }
        vars.set(name, value);
        Ok(())
    };
    // As kubelet since 1.34: keys are not filtered, whatever a variable may be called is one.
    for source in input.container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        for (key, value) in all_of(input.sources, source)? {
            set(&mut vars, &format!("{prefix}{key}"), value)?;
        }
    }
    for variable in input.container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(from)) => match referred(input, &variable.name, from)? {
                Some(value) => value,
                None => continue,
            },
            (Some(value), None) => expand(value, |name| lookup(input, &vars, name)),
            (None, None) => String::new(),
        };
        set(&mut vars, &variable.name, value)?;
    }
    Ok(vars)
}

/// What `$(NAME)` stands for: variables of the PodSpec come before those of services.
pub(super) fn lookup<'v>(input: &'v Input<'_>, declared: &'v Vars, name: &str) -> Option<&'v str> {
    declared.get(name).or_else(|| input.sources.services.get(name).map(String::as_str))
}

/// All keys and values of a source; none of an optional one that is not there.
fn all_of(sources: &Sources, source: &EnvFromSource) -> Result<Vec<(String, String)>, Error> {
    if let Some(reference) = &source.config_map_ref {
        sources.known(ObjectKind::ConfigMap, &reference.name)?;
        return match sources.config_map(&reference.name) {
            Err(_) if reference.optional == Some(true) => Ok(Vec::new()),
            found => Ok(found?.iter().map(|(key, value)| (key.clone(), value.clone())).collect()),
        };
    }
    if let Some(reference) = &source.secret_ref {
        sources.known(ObjectKind::Secret, &reference.name)?;
        let found = match sources.secret(&reference.name) {
            Err(_) if reference.optional == Some(true) => return Ok(Vec::new()),
            found => found?,
        };
        return found.iter().map(|(key, bytes)| Ok((key.clone(), text_of(&reference.name, key, bytes)?))).collect();
    }
    Ok(Vec::new())
}

/// A secret's value as text: variables have no other.
fn text_of(secret: &str, key: &str, bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Error::Reference(format!("key {key} of secret {secret:?} is not UTF-8, as a variable must be")))
}

/// The value that a variable refers to; `None`: it is optional and not there, so the variable is not either.
fn referred(input: &Input<'_>, name: &str, from: &EnvVarSource) -> Result<Option<String>, Error> {
    if let Some(field) = &from.field_ref {
        return field_value(input, &field.field_path).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        return Ok(Some(resources::field(input.pod, input.container, selector, &input.node.allocatable)?));
    }
    let namespace = input.pod.metadata.namespace.as_deref().unwrap_or_default();
    let no_key = |kind: &str, object: &str, key: &str| {
        Error::Reference(format!("couldn't find key {key} in {kind} {namespace}/{object}"))
    };
    let (found, optional) = if let Some(selector) = &from.config_map_key_ref {
        input.sources.known(ObjectKind::ConfigMap, &selector.name)?;
        let found = input.sources.config_map(&selector.name).and_then(|data| {
            data.get(&selector.key).cloned().ok_or_else(|| no_key("ConfigMap", &selector.name, &selector.key))
        });
        (found, selector.optional)
    } else if let Some(selector) = &from.secret_key_ref {
        input.sources.known(ObjectKind::Secret, &selector.name)?;
        let found = input
            .sources
            .secret(&selector.name)
            .and_then(|data| data.get(&selector.key).ok_or_else(|| no_key("Secret", &selector.name, &selector.key)));
        match found {
            Ok(bytes) => (Ok(text_of(&selector.name, &selector.key, bytes)?), None),
            Err(e) => (Err(e), selector.optional),
        }
    } else if let Some(selector) = &from.file_key_ref {
        // As kubelet: a file that cannot be read is an error even if the key is optional.
        return match of_file(input.sources, selector)? {
            None if selector.optional != Some(true) => Err(Error::Reference(format!(
                "environment variable key {:?} not found in file {:?} of volume {:?}",
                selector.key, selector.path, selector.volume_name
            ))),
            found => Ok(found),
        };
    } else {
        return Err(Error::Unsupported(format!("valueFrom of variable {name}")));
    };
    match found {
        Err(_) if optional == Some(true) => Ok(None),
        found => found.map(Some),
    }
}

/// As kubelet: an empty value counts as missing.
fn of_file(sources: &Sources, selector: &FileKeySelector) -> Result<Option<String>, Error> {
    let unreadable = |why: &str| {
        Error::Reference(format!(
            "couldn't parse env file {:?} of volume {:?}: {why}",
            selector.path, selector.volume_name
        ))
    };
    let file = sources.files.get(&(selector.volume_name.clone(), selector.path.clone()));
    let bytes = match file {
        Some(Ok(bytes)) => bytes,
        Some(Err(why)) => return Err(unreadable(why)),
        None => return Err(unreadable("it was not read")),
    };
    let variables = envfile::parse(bytes).map_err(|e| unreadable(&e.to_string()))?;
    let last = variables.into_iter().rev().find(|(name, _)| *name == selector.key);
    Ok(last.map(|(_, value)| value).filter(|value| !value.is_empty()))
}

/// Value of a `fieldRef` of a variable.
fn field_value(input: &Input<'_>, path: &str) -> Result<String, Error> {
    let pod: &Pod = input.pod;
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    let list = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let head = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    if let Some((map, key)) = path.split_once("['").and_then(|(map, rest)| Some((map, rest.strip_suffix("']")?))) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(Error::FieldPath(path.to_owned())),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "spec.nodeName" => input.node_name.to_owned(),
        "spec.serviceAccountName" => spec.map(|s| text(&s.service_account_name)).unwrap_or_default(),
        "status.hostIP" => head(input.host_ips),
        "status.hostIPs" => list(input.host_ips),
        "status.podIP" => head(input.ips),
        "status.podIPs" => list(input.ips),
        _ => return Err(Error::FieldPath(path.to_owned())),
    })
}

/// The whole environment: the image's, what the runtime adds, and above all the PodSpec's.
pub(super) fn environment(input: &Input<'_>, declared: &Vars) -> Vars {
    let mut vars = Vars::default();
    let image = input.image.config().as_ref().and_then(|c| c.env().as_ref());
    for line in image.into_iter().flatten() {
        // Anything else would make `setenv` fail in the container's init.
        if let Some((name, value)) =
            line.split_once('=').filter(|(n, v)| !n.is_empty() && !n.contains('\0') && !v.contains('\0'))
        {
            vars.set(name, value.to_owned());
        }
    }
    vars.set_default("PATH", DEFAULT_PATH);
    if input.container.tty == Some(true) {
        vars.set_default("TERM", "xterm");
    }
    vars.set("HOSTNAME", input.hostname.to_owned());
    for (name, value) in &input.sources.services {
        vars.set(name, value.clone());
    }
    for (name, value) in &declared.list {
        vars.set(name, value.clone());
    }
    // Without it a static C library would read the user data base of the container.
    vars.set_default("HOME", &input.user.home);
    vars
}

/// The argument vector: `command` replaces the image's entrypoint and drops its arguments, `args` replaces them.
pub(super) fn arguments(input: &Input<'_>, declared: &Vars) -> Result<Vec<String>, Error> {
    let container = input.container;
    let config = input.image.config().as_ref();
    let mut total = 0;
    let mut expanded = |list: &Option<Vec<String>>| -> Result<Vec<String>, Error> {
        let mut out = Vec::new();
        for text in list.iter().flatten() {
            let argument = expand(text, |name| lookup(input, declared, name));
            total += argument.len();
            if argument.len() > MAX_VALUE || total > MAX_TOTAL {
                return Err(Error::TooLong("an argument".into()));
            }
            out.push(argument);
        }
        Ok(out)
    };
    let (command, args) = (expanded(&container.command)?, expanded(&container.args)?);
    let mut argv = match command.is_empty() {
        false => command.clone(),
        true => config.and_then(|c| c.entrypoint().clone()).unwrap_or_default(),
    };
    match (command.is_empty(), args.is_empty()) {
        (true, true) => argv.extend(config.and_then(|c| c.cmd().clone()).unwrap_or_default()),
        _ => argv.extend(args),
    }
    match argv.first() {
        None => Err(Error::NoCommand),
        Some(_) if argv.iter().any(|a| a.contains('\0')) => Err(Error::Argument),
        Some(_) => Ok(argv),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(text: &str) -> String {
        expand(text, |name| match name {
            "A" => Some("1"),
            "EMPTY" => Some(""),
            "DOLLAR" => Some("$(A)"),
            _ => None,
        })
    }

    #[test]
    fn expansion_is_bounded() {
        let long = "x".repeat(MAX_VALUE);
        let text = "$(A)".repeat(1000);
        let grown = expand(&text, |_| Some(long.as_str()));
        assert!(grown.len() > MAX_VALUE && grown.len() <= 2 * MAX_VALUE + text.len());
    }

    #[test]
    fn expansion() {
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(EMPTY)", ""),
            ("$(NOT)", "$(NOT)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$", "$$"),
            ("$A ${A}", "$A ${A}"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$(DOLLAR)", "$(A)"),
            ("$()", "$()"),
            ("$(A)$(", "1$("),
        ] {
            assert_eq!(with(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_dollars_is_kept(text in "[^$]*") {
            prop_assert_eq!(with(&text), text);
        }

        #[test]
        fn doubled_dollars_come_back(text in "[a-zA-Z$(){}é]{0,40}") {
            prop_assert_eq!(with(&text.replace('$', "$$")), text);
        }

        #[test]
        fn never_panics(text in "[A$()é\\PC]*") {
            let _ = with(&text);
        }
    }
}
