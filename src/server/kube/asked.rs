//! Method and path of a request to the Kubernetes API → what is asked. Pure.

use super::super::reply::Failure;
use super::resource::{Group, Resource};
use hyper::Method;

/// What is asked of the Kubernetes API, besides what is below a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) enum Asked {
    /// `/version`
    Version,
    /// `/api`: the versions of the core.
    Core,
    /// `/apis`: the other groups.
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`: what is served there.
    Resources {
        /// Empty: the core.
        group: String,
        version: String,
    },
    /// `/openapi/v2`
    OpenApi2,
    /// `/openapi/v3`, and a group's version below it.
    OpenApi3(Option<String>),
    /// Objects.
    Objects(Objects),
    /// Who somebody is, or what they may do.
    Review(Review),
}

/// Objects, and what is to be done with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) struct Objects {
    pub(super) verb: Verb,
    pub(super) group: Group,
    pub(super) resource: Resource,
    /// `None`: of all namespaces, or of none.
    pub(super) namespace: Option<String>,
    /// `None`: all that are selected.
    pub(super) name: Option<String>,
    /// `status`, which is there to be read.
    pub(super) subresource: Option<&'static str>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Verb {
    /// Get, list or watch.
    Read,
    Create,
    Update,
    Patch,
    Delete,
}

/// What `kubectl auth` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Review {
    /// Whether the asker may do something.
    Access,
    /// What the asker may do.
    Rules,
    /// Who the asker is.
    Subject,
}

impl Verb {
    /// Kubernetes' word for it; a list or a watch is judged as a get here.
    pub(super) fn word(self, has_name: bool) -> &'static str {
        match self {
            Verb::Read if has_name => "get",
            Verb::Read => "list",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete if has_name => "delete",
            Verb::Delete => "deletecollection",
        }
    }
}

/// Reads the segments of a path; `None`: it is none of the Kubernetes API.
///
/// # Errors
/// 404 for what is not served, 405 for what cannot be done there.
pub(in crate::server) fn asked(method: &Method, segments: &[&str]) -> Option<Result<Asked, Failure>> {
    let is_read = *method == Method::GET || *method == Method::HEAD;
    let read = |asked: Asked| if is_read { Ok(asked) } else { Err(not_allowed(method)) };
    Some(match segments {
        ["version"] => read(Asked::Version),
        ["api"] => read(Asked::Core),
        ["apis"] => read(Asked::Groups),
        ["openapi", "v2"] => read(Asked::OpenApi2),
        ["openapi", "v3"] => read(Asked::OpenApi3(None)),
        ["openapi", "v3", of @ ..] => read(Asked::OpenApi3(Some(of.join("/")))),
        ["api", version] => read(Asked::Resources { group: String::new(), version: (*version).to_owned() }),
        ["api", "v1", rest @ ..] => objects(method, Group::Core, rest),
        ["apis", group] => read(Asked::Group((*group).to_owned())),
        ["apis", group, version] => {
            read(Asked::Resources { group: (*group).to_owned(), version: (*version).to_owned() })
        }
        ["apis", "events.k8s.io", "v1", rest @ ..] => objects(method, Group::Events, rest),
        ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] => review(method, Review::Access),
        ["apis", "authorization.k8s.io", "v1", "selfsubjectrulesreviews"] => review(method, Review::Rules),
        ["apis", "authentication.k8s.io", "v1", "selfsubjectreviews"] => review(method, Review::Subject),
        ["api" | "apis" | "openapi", ..] => Err(not_found()),
        _ => return None,
    })
}

fn not_found() -> Failure {
    Failure::not_found("the server could not find the requested resource")
}

fn not_allowed(method: &Method) -> Failure {
    Failure::method(format!("the server does not allow this method on the requested resource: {method}"))
}

fn review(method: &Method, review: Review) -> Result<Asked, Failure> {
    if *method == Method::POST { Ok(Asked::Review(review)) } else { Err(not_allowed(method)) }
}

fn objects(method: &Method, group: Group, segments: &[&str]) -> Result<Asked, Failure> {
    let (namespace, rest) = match segments {
        // A namespace is an object itself.
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => (None, segments),
        ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (plural, None, None),
        [plural, name] => (plural, Some((*name).to_owned()), None),
        [plural, name, below] => (plural, Some((*name).to_owned()), Some(*below)),
        _ => return Err(not_found()),
    };
    let resource = Resource::parse(plural).ok_or_else(not_found)?;
    if (group == Group::Events && resource != Resource::Events) || (namespace.is_some() && !resource.is_namespaced()) {
        return Err(not_found());
    }
    // An object in a namespace is not to be had without it.
    if name.is_some() && namespace.is_none() && resource.is_namespaced() {
        return Err(not_found());
    }
    let subresource = match subresource {
        None => None,
        Some("status") if matches!(resource, Resource::Pods | Resource::Nodes) => Some("status"),
        Some(_) => return Err(not_found()),
    };
    let verb = match (method, &name) {
        (&Method::GET | &Method::HEAD, _) => Verb::Read,
        (&Method::POST, None) => Verb::Create,
        (&Method::PUT, Some(_)) => Verb::Update,
        (&Method::PATCH, Some(_)) => Verb::Patch,
        (&Method::DELETE, _) => Verb::Delete,
        _ => return Err(not_allowed(method)),
    };
    let is_allowed = verb == Verb::Read || (resource.is_written() && namespace.is_some() && subresource.is_none());
    if !is_allowed {
        return Err(not_allowed(method));
    }
    Ok(Asked::Objects(Objects { verb, group, resource, namespace, name, subresource }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, path: &str) -> Result<String, u16> {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let method = method.parse().unwrap();
        match asked(&method, &segments) {
            None => Ok("none".to_owned()),
            Some(Err(failure)) => Err(failure.into_reply().status().as_u16()),
            Some(Ok(Asked::Objects(of))) => {
                let word = of.verb.word(of.name.is_some());
                Ok(format!(
                    "{word} {}/{} {} {}",
                    of.group.api_version(),
                    of.resource.plural(),
                    of.namespace.as_deref().unwrap_or("*"),
                    of.name.as_deref().unwrap_or("*")
                ))
            }
            Some(Ok(other)) => Ok(format!("{other:?}")),
        }
    }

    #[test]
    fn paths_and_methods_are_read() {
        for (method, path, want) in [
            ("GET", "/api/v1/pods", Ok("list v1/pods * *")),
            ("GET", "/api/v1/namespaces/a/pods", Ok("list v1/pods a *")),
            ("GET", "/api/v1/namespaces/a/pods/p", Ok("get v1/pods a p")),
            ("GET", "/api/v1/namespaces/a/pods/p/status", Ok("get v1/pods a p")),
            ("GET", "/api/v1/pods/p", Err(404)),
            ("POST", "/api/v1/namespaces/a/pods", Ok("create v1/pods a *")),
            ("POST", "/api/v1/pods", Err(405)),
            ("DELETE", "/api/v1/namespaces/a/pods", Ok("deletecollection v1/pods a *")),
            ("DELETE", "/api/v1/namespaces/a/pods/p", Ok("delete v1/pods a p")),
            ("PATCH", "/api/v1/namespaces/a/pods/p", Ok("patch v1/pods a p")),
            ("PATCH", "/api/v1/namespaces/a/pods/p/status", Err(405)),
            ("PUT", "/api/v1/namespaces/a/configmaps/p", Ok("update v1/configmaps a p")),
            ("PATCH", "/api/v1/nodes/n", Err(405)),
            ("GET", "/api/v1/nodes/n", Ok("get v1/nodes * n")),
            ("GET", "/api/v1/namespaces/a/nodes", Err(404)),
            ("GET", "/api/v1/namespaces/a", Ok("get v1/namespaces * a")),
            ("GET", "/api/v1/namespaces", Ok("list v1/namespaces * *")),
            ("DELETE", "/api/v1/namespaces/a", Err(405)),
            ("GET", "/apis/events.k8s.io/v1/events", Ok("list events.k8s.io/v1/events * *")),
            ("GET", "/apis/events.k8s.io/v1/pods", Err(404)),
            ("GET", "/api/v1/services", Err(404)),
            ("GET", "/apis/apps/v1/deployments", Err(404)),
            ("POST", "/version", Err(405)),
            ("GET", "/version", Ok("Version")),
            ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", Ok("Review(Subject)")),
            ("GET", "/apis/authentication.k8s.io/v1/selfsubjectreviews", Err(405)),
            ("GET", "/coracle/v1/status", Ok("none")),
        ] {
            assert_eq!(read(method, path), want.map(str::to_owned), "{method} {path}");
        }
    }
}
