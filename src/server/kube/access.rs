//! Who may do what through the local API: one rule for requests and for who asks what they may do. Pure.

use super::super::reply::Failure;
use super::super::route::Route;
use super::super::usage;
use super::asked::{Asked, Objects, Verb};
use hyper::HeaderMap;
use serde_json::{Value, json};

/// Who came through the door of the local API, by the group in their certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Who {
    /// May do everything; `changes`: unless nobody may change anything (`localAPI.readOnly`).
    Admin { changes: bool },
    /// May look.
    Reader,
}

/// Group of who may do everything, in certificates.
pub(in crate::server) const ADMINS: &str = "coracle:admins";
/// Group of who may look.
pub(in crate::server) const READERS: &str = "coracle:readers";

/// What is below a pod and enters it.
const ENTERED: [&str; 3] = ["attach", "exec", "portforward"];

impl Who {
    pub(in crate::server) fn group(self) -> &'static str {
        match self {
            Who::Admin { .. } => ADMINS,
            Who::Reader => READERS,
        }
    }

    /// The name that refusals and `kubectl auth whoami` tell.
    pub(in crate::server) fn name(self) -> &'static str {
        match self {
            Who::Admin { .. } => "coracle:admin",
            Who::Reader => "coracle:reader",
        }
    }

    /// Whether they may do this to a kind of object or what is below it.
    pub(super) fn may(self, verb: &str, subresource: &str) -> bool {
        let is_entered = ENTERED.contains(&subresource);
        match verb {
            "get" | "list" | "watch" if !is_entered => true,
            // As the API server: a WebSocket begins with GET, but to enter is to create.
            _ if is_entered => matches!(self, Who::Admin { .. }),
            _ => self == Who::Admin { changes: true },
        }
    }

    fn refuses(self, verb: &str, resource: &str, group: &str, namespace: Option<&str>) -> Failure {
        let place =
            namespace.map_or_else(|| " at the cluster scope".to_owned(), |ns| format!(" in the namespace {ns:?}"));
        let plural = resource.split('/').next().unwrap_or_default();
        Failure::forbidden(format!(
            "{plural} is forbidden: User {:?} cannot {verb} resource {resource:?} in API group {group:?}{place}",
            self.name()
        ))
    }
}

/// Nobody is anybody else here: what is asked with `--as` must not be answered as if it were not.
///
/// # Errors
/// 403 for a request that names another identity.
pub(in crate::server) fn check_identity(who: Who, headers: &HeaderMap) -> Result<(), Failure> {
    let Some(name) = headers.keys().find(|name| name.as_str().starts_with("impersonate-")) else { return Ok(()) };
    let (resource, group) = match name.as_str() {
        "impersonate-user" => ("users", ""),
        "impersonate-group" => ("groups", ""),
        "impersonate-uid" => ("uids", "authentication.k8s.io"),
        _ => ("userextras", "authentication.k8s.io"),
    };
    Err(who.refuses("impersonate", resource, group, None))
}

/// Whether somebody may ask this through the local API.
///
/// # Errors
/// 403; 404 for what is not served there to anybody.
pub(in crate::server) fn check(who: Who, asked: &Route) -> Result<(), Failure> {
    let below = |name: &str, namespace: &str| {
        let may = who.may(if name == "log" { "get" } else { "create" }, name);
        let verb = if name == "log" { "get" } else { "create" };
        if may { Ok(()) } else { Err(who.refuses(verb, &format!("pods/{name}"), "", Some(namespace))) }
    };
    match asked {
        Route::Health | Route::Ready => Ok(()),
        Route::Log { namespace, .. } => below("log", namespace),
        Route::Attach { namespace, .. } => below("attach", namespace),
        Route::Exec { namespace, .. } => below("exec", namespace),
        Route::PortForward { namespace, .. } => below("portforward", namespace),
        Route::Usage(usage::Asked::Nodes { .. } | usage::Asked::Pods { .. }) => Ok(()),
        Route::Kube(Asked::Objects(objects)) => objects_check(who, objects),
        Route::Kube(_) => Ok(()),
        _ => Err(Failure::not_found("the server could not find the requested resource")),
    }
}

fn objects_check(who: Who, objects: &Objects) -> Result<(), Failure> {
    let verb = objects.verb.word(objects.name.is_some());
    if objects.verb == Verb::Read || who.may(verb, "") {
        return Ok(());
    }
    Err(who.refuses(verb, objects.resource.plural(), objects.group.name(), objects.namespace.as_deref()))
}

/// The verbs that reading and writing are made of.
const READING: [&str; 3] = ["get", "list", "watch"];
const WRITING: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Answers a `SelfSubjectAccessReview`. What is not served is allowed to nobody.
pub(super) fn review(
    who: Who,
    review: &Value,
    is_served: impl Fn(&str, &str) -> Option<&'static [&'static str]>,
) -> Value {
    let spec = &review["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (allowed, reason) = match (spec["resourceAttributes"].as_object(), spec["nonResourceAttributes"].as_object()) {
        (Some(_), _) => {
            let of = &spec["resourceAttributes"];
            let (verb, group, resource) = (text(&of["verb"]), text(&of["group"]), text(&of["resource"]));
            let subresource = text(&of["subresource"]);
            let full = if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") };
            match is_served(&group, &full) {
                None => (false, format!("{full:?} of group {group:?} is not served here")),
                Some(verbs) if verb != "*" && !verbs.contains(&verb.as_str()) => {
                    (false, format!("nobody can {verb} {full}"))
                }
                Some(_) => (who.may(&verb, &subresource), String::new()),
            }
        }
        (None, Some(of)) => (of.get("verb").is_some_and(|verb| verb == "get"), String::new()),
        (None, None) => (false, "neither resourceAttributes nor nonResourceAttributes".to_owned()),
    };
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    json!({
        "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "metadata": {"creationTimestamp": null}, "spec": spec, "status": status,
    })
}

/// Answers a `SelfSubjectRulesReview`.
pub(super) fn rules(who: Who, review: &Value) -> Value {
    let rule = |verbs: &[&str], resources: &[&str]| json!({"verbs": verbs, "apiGroups": [""], "resources": resources});
    let (read, written) = (["nodes", "events", "namespaces", "pods/log"], ["pods", "configmaps", "secrets"]);
    let mut rules = vec![rule(&READING, &read)];
    rules.push(rule(if who.may("create", "") { &WRITING[..] } else { &READING[..] }, &written));
    if who.may("create", "exec") {
        rules.push(rule(&["create", "get"], &["pods/attach", "pods/exec", "pods/portforward"]));
    }
    json!({
        "kind": "SelfSubjectRulesReview", "apiVersion": "authorization.k8s.io/v1",
        "metadata": {"creationTimestamp": null}, "spec": review["spec"],
        "status": {
            "resourceRules": rules, "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        },
    })
}

/// Answers a `SelfSubjectReview`.
pub(super) fn subject(who: Who) -> Value {
    json!({
        "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"creationTimestamp": null},
        "status": {"userInfo": {"username": who.name(), "groups": [who.group(), "system:authenticated"]}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Who; 3] = [Who::Admin { changes: true }, Who::Admin { changes: false }, Who::Reader];

    #[test]
    fn who_may_do_what() {
        for (verb, subresource, want) in [
            ("get", "", [true, true, true]),
            ("watch", "", [true, true, true]),
            ("get", "log", [true, true, true]),
            ("get", "exec", [true, true, false]),
            ("create", "exec", [true, true, false]),
            ("create", "attach", [true, true, false]),
            ("create", "portforward", [true, true, false]),
            ("create", "", [true, false, false]),
            ("delete", "", [true, false, false]),
            ("patch", "", [true, false, false]),
            ("*", "", [true, false, false]),
        ] {
            assert_eq!(ALL.map(|who| who.may(verb, subresource)), want, "{verb} {subresource}");
        }
    }

    #[test]
    fn nobody_is_somebody_else() {
        let headers = |name: &'static str| {
            HeaderMap::from_iter([(hyper::header::HeaderName::from_static(name), "x".parse().unwrap())])
        };
        for who in ALL {
            assert!(check_identity(who, &headers("user-agent")).is_ok());
            for name in ["impersonate-user", "impersonate-group", "impersonate-uid", "impersonate-extra-scopes"] {
                let refusal = check_identity(who, &headers(name)).unwrap_err().status();
                assert_eq!(refusal["code"], 403, "{refusal}");
                assert!(refusal["message"].as_str().unwrap().contains("cannot impersonate resource"), "{refusal}");
            }
        }
    }

    #[test]
    fn only_the_kubernetes_api_is_behind_this_door() {
        for who in ALL {
            for route in [Route::Status, Route::Metrics, Route::Apply, Route::Images, Route::LeaveCluster] {
                assert!(check(who, &route).is_err(), "{route:?}");
            }
            assert!(check(who, &Route::Health).is_ok());
            let exec = Route::Exec { namespace: "a".into(), pod: "p".into() };
            assert_eq!(check(who, &exec).is_ok(), who != Who::Reader);
        }
    }

    #[test]
    fn what_is_not_served_is_allowed_to_nobody() {
        let ask = |resource: &str, verb: &str| {
            let asked = json!({"spec": {"resourceAttributes": {"resource": resource, "verb": verb}}});
            let served = |_: &str, name: &str| (name == "pods").then_some(&WRITING[..]);
            review(ALL[0], &asked, served)["status"]["allowed"] == true
        };
        assert!(ask("pods", "create") && ask("pods", "*"));
        assert!(!ask("pods", "escalate") && !ask("deployments", "get"));
    }
}
