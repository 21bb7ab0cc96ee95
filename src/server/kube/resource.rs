//! The kinds that are served, and what can be done with them. Pure.

/// A kind of object that is listed and watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Resource {
    Pods,
    Nodes,
    Events,
    Namespaces,
    ConfigMaps,
    Secrets,
}

/// The API group that an object is asked for in: events are in two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Group {
    Core,
    Events,
}

impl Group {
    /// `v1`, `events.k8s.io/v1`.
    pub(super) fn api_version(self) -> &'static str {
        match self {
            Group::Core => "v1",
            Group::Events => "events.k8s.io/v1",
        }
    }

    /// Its name; the core has none.
    pub(super) fn name(self) -> &'static str {
        match self {
            Group::Core => "",
            Group::Events => "events.k8s.io",
        }
    }
}

/// All that is listed and watched.
pub(super) const RESOURCES: [Resource; 6] =
    [Resource::ConfigMaps, Resource::Events, Resource::Namespaces, Resource::Nodes, Resource::Pods, Resource::Secrets];

const READ: &[&str] = &["get", "list", "watch"];
const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Resource {
    pub(in crate::server) fn plural(self) -> &'static str {
        match self {
            Resource::Pods => "pods",
            Resource::Nodes => "nodes",
            Resource::Events => "events",
            Resource::Namespaces => "namespaces",
            Resource::ConfigMaps => "configmaps",
            Resource::Secrets => "secrets",
        }
    }

    pub(super) fn singular(self) -> &'static str {
        let plural = self.plural();
        plural.strip_suffix('s').unwrap_or(plural)
    }

    pub(in crate::server) fn kind(self) -> &'static str {
        match self {
            Resource::Pods => "Pod",
            Resource::Nodes => "Node",
            Resource::Events => "Event",
            Resource::Namespaces => "Namespace",
            Resource::ConfigMaps => "ConfigMap",
            Resource::Secrets => "Secret",
        }
    }

    pub(super) fn short_names(self) -> &'static [&'static str] {
        match self {
            Resource::Pods => &["po"],
            Resource::Nodes => &["no"],
            Resource::Events => &["ev"],
            Resource::Namespaces => &["ns"],
            Resource::ConfigMaps => &["cm"],
            Resource::Secrets => &[],
        }
    }

    /// What it is listed with: `kubectl get all`.
    pub(super) fn categories(self) -> &'static [&'static str] {
        if self == Resource::Pods { &["all"] } else { &[] }
    }

    pub(in crate::server) fn is_namespaced(self) -> bool {
        !matches!(self, Resource::Nodes | Resource::Namespaces)
    }

    /// Whether manifests define such: then they can be written through the API.
    pub(super) fn is_written(self) -> bool {
        matches!(self, Resource::Pods | Resource::ConfigMaps | Resource::Secrets)
    }

    pub(super) fn verbs(self) -> &'static [&'static str] {
        if self.is_written() { ALL } else { READ }
    }

    /// Names and verbs of what is below an object.
    pub(super) fn subresources(self) -> &'static [(&'static str, &'static [&'static str])] {
        match self {
            Resource::Pods => &[
                ("attach", &["create", "get"]),
                ("exec", &["create", "get"]),
                ("log", &["get"]),
                ("portforward", &["create", "get"]),
                ("status", &["get"]),
            ],
            Resource::Nodes => &[("status", &["get"])],
            _ => &[],
        }
    }

    pub(super) fn parse(plural: &str) -> Option<Resource> {
        RESOURCES.into_iter().find(|resource| resource.plural() == plural)
    }
}
