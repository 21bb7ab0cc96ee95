//! Environment, command and arguments of a container (as kubelet: `kl/kubelet_pods.go`, `expansion/expand.go`).

use super::{Error, Input};
use crate::pod::resources;
use k8s_openapi::api::core::v1::{EnvVarSource, Pod};
use std::net::IpAddr;

/// What containerd gives a container whose image has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables in order; a name appears once.
#[derive(Debug, Default, Clone)]
pub(super) struct Vars(Vec<(String, String)>);

impl Vars {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, v)) => *v = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    fn set_default(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.0.push((name.to_owned(), value.to_owned()));
        }
    }

    /// `NAME=value` each.
    pub(super) fn lines(self) -> Vec<String> {
        self.0.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
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

/// The variables of the PodSpec: what `$(NAME)` in command and arguments may refer to.
pub(super) fn declared(input: &Input<'_>) -> Result<Vars, Error> {
    let mut vars = Vars::default();
    let mut total = 0;
    if input.container.env_from.as_ref().is_some_and(|from| !from.is_empty()) {
        return Err(Error::Unsupported("envFrom".into()));
    }
    for variable in input.container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(from)) => referred(input, &variable.name, from)?,
            (Some(value), None) => expand(value, |name| vars.get(name)),
            (None, None) => String::new(),
        };
        // The kernel takes no longer one; unchecked, a few lines of `$(A)$(A)` would fill the memory of the agent.
        total += value.len();
        if value.len() > MAX_VALUE || total > MAX_TOTAL {
            return Err(Error::TooLong(format!("env {:?}", variable.name)));
        }
        if variable.name.is_empty() || variable.name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::Variable(variable.name.clone()));
        }
        vars.set(&variable.name, value);
    }
    Ok(vars)
}

fn referred(input: &Input<'_>, name: &str, from: &EnvVarSource) -> Result<String, Error> {
    if let Some(field) = &from.field_ref {
        return field_value(input, &field.field_path);
    }
    if let Some(selector) = &from.resource_field_ref {
        return Ok(resources::field(input.pod, input.container, selector, &input.node.allocatable)?);
    }
    Err(Error::Unsupported(format!("valueFrom of variable {name}")))
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
    for (name, value) in &declared.0 {
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
            let argument = expand(text, |name| declared.get(name));
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
