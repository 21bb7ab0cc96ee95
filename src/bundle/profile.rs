//! Which security profiles a container asks for: seccomp, AppArmor, SELinux. What the container says wins over what its
//! pod says.

use super::Error;
use crate::pod::admission::Rejection;
use k8s_openapi::api::core::v1::{Container, Pod, SELinuxOptions, SecurityContext};

/// Before the key's container name: AppArmor profiles of old manifests.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
/// What container engines call the profile that `RuntimeDefault` stands for; the first that is loaded counts.
const APPARMOR_DEFAULTS: [&str; 4] = ["coracle-default", "cri-containerd.apparmor.d", "crio-default", "docker-default"];

/// An AppArmor profile that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppArmor<'a> {
    /// None.
    Unconfined,
    /// That of the container engine.
    RuntimeDefault,
    /// One that the administrator has loaded.
    Localhost(&'a str),
}

/// What the node knows of AppArmor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppArmorFacts {
    /// Whether the kernel enforces it.
    pub enabled: bool,
    /// Names of the loaded profiles.
    pub loaded: Vec<String>,
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
}

/// The AppArmor profile of a container: its field, the annotation of old, the pod's field (as kubelet).
///
/// # Errors
/// [`Error::Profile`] for one of an unknown kind, or without a name.
pub fn apparmor_of<'a>(pod: &'a Pod, container: &'a Container) -> Result<Option<AppArmor<'a>>, Error> {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()?.app_armor_profile.as_ref());
    let own = container.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let annotation = || pod.metadata.annotations.as_ref()?.get(&format!("{APPARMOR_ANNOTATION}{}", container.name));
    if own.is_none()
        && let Some(text) = annotation()
    {
        return match (text.as_str(), text.strip_prefix("localhost/")) {
            ("" | "runtime/default", _) => Ok(Some(AppArmor::RuntimeDefault)),
            ("unconfined", _) => Ok(Some(AppArmor::Unconfined)),
            (_, Some(name)) if !name.is_empty() => Ok(Some(AppArmor::Localhost(name))),
            _ => Err(Error::Profile(format!(
                "{APPARMOR_ANNOTATION}{}: invalid AppArmor profile {text:?}",
                container.name
            ))),
        };
    }
    let Some(profile) = own.or(of_pod) else { return Ok(None) };
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Unconfined", _) => Ok(Some(AppArmor::Unconfined)),
        ("RuntimeDefault", _) => Ok(Some(AppArmor::RuntimeDefault)),
        ("Localhost", Some(name)) if !name.is_empty() => Ok(Some(AppArmor::Localhost(name))),
        ("Localhost", _) => Err(Error::Profile("appArmorProfile: Localhost needs a localhostProfile".into())),
        (other, _) => Err(Error::Profile(format!("appArmorProfile type {other} is not supported"))),
    }
}

/// Whether a node without AppArmor must turn the pod away: then a profile that was asked for would silently be none (as
/// kubelet, reason and words).
#[must_use]
pub fn apparmor_rejection(pod: &Pod, enabled: bool) -> Option<Rejection> {
    let reject = |why: String| Some(Rejection::new("AppArmor", format!("Cannot enforce AppArmor: {why}")));
    for container in containers(pod) {
        match apparmor_of(pod, container) {
            Ok(None | Some(AppArmor::Unconfined)) => {}
            Ok(Some(_)) if enabled => {}
            Ok(Some(_)) => return reject("AppArmor is not enabled on the host".to_owned()),
            Err(error) => return reject(error.to_string()),
        }
    }
    None
}

/// The AppArmor profile to run a container under; `None`: without one.
pub(super) fn apparmor(pod: &Pod, container: &Container, facts: &AppArmorFacts) -> Result<Option<String>, Error> {
    let wanted = match apparmor_of(pod, container)? {
        None | Some(AppArmor::Unconfined) => return Ok(None),
        Some(wanted) => wanted,
    };
    if !facts.enabled {
        return Err(Error::Profile("Cannot enforce AppArmor: AppArmor is not enabled on the host".into()));
    }
    let loaded = |name: &str| facts.loaded.iter().any(|l| l == name);
    match wanted {
        AppArmor::Localhost(name) if loaded(name) => Ok(Some(name.to_owned())),
        AppArmor::Localhost(name) => Err(Error::Profile(format!("the AppArmor profile {name:?} is not loaded"))),
        _ => match APPARMOR_DEFAULTS.iter().find(|name| loaded(name)) {
            Some(name) => Ok(Some((*name).to_owned())),
            None => Err(Error::Profile(format!(
                "AppArmor RuntimeDefault: none of the profiles {} is loaded",
                APPARMOR_DEFAULTS.join(", ")
            ))),
        },
    }
}

/// The SELinux label of a container's processes, for a host whose SELinux is `enabled`; `None`: what the policy says.
/// Parts that are not given are those of ordinary containers.
///
/// # Errors
/// [`Error::Profile`] when something is asked of SELinux and the host has none, or for text that no label can hold.
pub(super) fn selinux(pod: &Pod, container: &Container, enabled: bool) -> Result<Option<String>, Error> {
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref().and_then(|s| s.se_linux_options.as_ref());
    let options = own.or_else(|| of_pod?.se_linux_options.as_ref()).filter(|o| **o != SELinuxOptions::default());
    if !enabled {
        let field = match (options, of_pod.and_then(|s| s.se_linux_change_policy.as_ref())) {
            (Some(_), _) => "seLinuxOptions",
            (None, Some(_)) => "seLinuxChangePolicy",
            (None, None) => return Ok(None),
        };
        return Err(Error::Profile(format!("{field}: SELinux is not enabled on the host")));
    }
    let Some(options) = options else { return Ok(None) };
    let part = |name: &str, value: &Option<String>, default: &str, colons: bool| {
        let value = value.as_deref().filter(|v| !v.is_empty()).unwrap_or(default).to_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-,".contains(c) || (colons && c == ':');
        match value.chars().all(plain) {
            true => Ok(value),
            false => Err(Error::Profile(format!("seLinuxOptions.{name}: {value:?} cannot be part of a label"))),
        }
    };
    Ok(Some(format!(
        "{}:{}:{}:{}",
        part("user", &options.user, "system_u", false)?,
        part("role", &options.role, "system_r", false)?,
        part("type", &options.type_, "container_t", false)?,
        part("level", &options.level, "s0", true)?,
    )))
}

/// What a container asks for in seccomp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp<'a> {
    /// Nothing is said.
    Unset,
    /// No filter.
    Unconfined,
    /// Ours.
    RuntimeDefault,
    /// A file below the node's folder of profiles.
    Localhost(&'a str),
}

/// The seccomp profile of a container: its own, its pod's; none for a privileged one (as containerd).
///
/// # Errors
/// [`Error::Profile`] for one of an unknown kind, or without a name.
pub fn seccomp_of<'a>(pod: &'a Pod, container: &'a Container) -> Result<Seccomp<'a>, Error> {
    let own: Option<&SecurityContext> = container.security_context.as_ref();
    if own.and_then(|s| s.privileged) == Some(true) {
        return Ok(Seccomp::Unconfined);
    }
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()?.seccomp_profile.as_ref());
    let Some(profile) = own.and_then(|s| s.seccomp_profile.as_ref()).or(of_pod) else { return Ok(Seccomp::Unset) };
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Unconfined", _) => Ok(Seccomp::Unconfined),
        ("RuntimeDefault", _) => Ok(Seccomp::RuntimeDefault),
        ("Localhost", Some(name)) if !name.is_empty() => Ok(Seccomp::Localhost(name)),
        ("Localhost", _) => Err(Error::Profile("seccompProfile: Localhost needs a localhostProfile".into())),
        (other, _) => Err(Error::Profile(format!("seccompProfile type {other} is not supported"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(annotations: Value, pod: Value, container: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": annotations},
            "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": container}]}
        }))
        .expect("pod")
    }

    fn only(pod: &Pod) -> &Container {
        &pod.spec.as_ref().expect("spec").containers[0]
    }

    #[test]
    fn apparmor_is_taken_from_the_field_then_the_annotation_then_the_pod() {
        let local = |name: &str| json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": name}});
        let old = json!({"container.apparmor.security.beta.kubernetes.io/c": "localhost/b"});
        let of = |p: &Pod| format!("{:?}", apparmor_of(p, only(p)).expect("profile"));
        assert_eq!(of(&pod(old.clone(), local("p"), local("a"))), r#"Some(Localhost("a"))"#);
        assert_eq!(of(&pod(old, local("p"), json!({}))), r#"Some(Localhost("b"))"#);
        assert_eq!(of(&pod(json!({}), local("p"), json!({}))), r#"Some(Localhost("p"))"#);
        assert_eq!(of(&pod(json!({}), json!({}), json!({}))), "None");
    }

    #[test]
    fn a_host_without_apparmor_turns_away_who_asks_for_it() {
        let typed = |t: &str| json!({"appArmorProfile": {"type": t}});
        let refused = apparmor_rejection(&pod(json!({}), typed("RuntimeDefault"), json!({})), false).expect("refused");
        assert_eq!(refused.reason, "AppArmor");
        assert_eq!(refused.message, "Cannot enforce AppArmor: AppArmor is not enabled on the host");
        assert_eq!(apparmor_rejection(&pod(json!({}), typed("RuntimeDefault"), json!({})), true), None);
        assert_eq!(apparmor_rejection(&pod(json!({}), typed("RuntimeDefault"), typed("Unconfined")), false), None);
        assert_eq!(apparmor_rejection(&pod(json!({}), json!({}), json!({})), false), None);
    }

    #[test]
    fn apparmor_profiles_must_be_loaded() {
        let facts = AppArmorFacts { enabled: true, loaded: vec!["docker-default".into(), "mine".into()] };
        let find = |profile: Value| {
            let pod = pod(json!({}), json!({}), json!({"appArmorProfile": profile}));
            apparmor(&pod, only(&pod), &facts).map_err(|e| e.to_string())
        };
        assert_eq!(find(json!({"type": "RuntimeDefault"})), Ok(Some("docker-default".into())));
        assert_eq!(find(json!({"type": "Unconfined"})), Ok(None));
        assert_eq!(find(json!({"type": "Localhost", "localhostProfile": "mine"})), Ok(Some("mine".into())));
        let missing = find(json!({"type": "Localhost", "localhostProfile": "other"}));
        assert_eq!(missing, Err("the AppArmor profile \"other\" is not loaded".into()));
    }

    #[test]
    fn selinux_labels() {
        let find = |of_pod: Value, own: Value, enabled: bool| {
            let pod = pod(json!({}), of_pod, own);
            selinux(&pod, only(&pod), enabled).map_err(|e| e.to_string())
        };
        let level = json!({"seLinuxOptions": {"level": "s0:c1,c2"}});
        assert_eq!(find(level.clone(), json!({}), true), Ok(Some("system_u:system_r:container_t:s0:c1,c2".into())));
        let own = json!({"seLinuxOptions": {"type": "spc_t"}});
        assert_eq!(find(level.clone(), own, true), Ok(Some("system_u:system_r:spc_t:s0".into())), "as a whole");
        assert_eq!(find(json!({}), json!({}), true), Ok(None));
        assert_eq!(find(level, json!({}), false), Err("seLinuxOptions: SELinux is not enabled on the host".into()));
        let policy = json!({"seLinuxChangePolicy": "Recursive"});
        assert_eq!(find(policy.clone(), json!({}), true), Ok(None));
        assert_eq!(
            find(policy, json!({}), false),
            Err("seLinuxChangePolicy: SELinux is not enabled on the host".into())
        );
        assert!(find(json!({"seLinuxOptions": {"user": "a:b\n"}}), json!({}), true).is_err());
    }

    #[test]
    fn seccomp_of_the_container_wins() {
        let typed = |t: &str| json!({"seccompProfile": {"type": t, "localhostProfile": "x.json"}});
        let of = |p: &Pod| format!("{:?}", seccomp_of(p, only(p)));
        assert_eq!(of(&pod(json!({}), typed("Unconfined"), typed("Localhost"))), r#"Ok(Localhost("x.json"))"#);
        assert_eq!(of(&pod(json!({}), typed("RuntimeDefault"), json!({}))), "Ok(RuntimeDefault)");
        assert_eq!(of(&pod(json!({}), typed("Localhost"), json!({"privileged": true}))), "Ok(Unconfined)");
        assert_eq!(of(&pod(json!({}), json!({}), json!({}))), "Ok(Unset)");
        assert!(of(&pod(json!({}), typed("Other"), json!({}))).starts_with("Err"));
    }
}
