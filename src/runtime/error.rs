//! Why an action failed.

use std::path::PathBuf;

/// Why an action failed. Display tells one level; [`Error::chain`] tells all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was tried, as a verb.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A record on disk.
    #[error("a record cannot be used")]
    Record(#[from] crate::store::Error),
    /// A volume.
    #[error("a volume cannot be set up")]
    Volume(#[from] crate::volume::Error),
    /// The pod network.
    #[error("the pod network cannot be set up")]
    Network(#[from] crate::net::Error),
    /// The pod's name.
    #[error("the pod cannot have its host name")]
    Hostname(#[from] crate::net::hostname::HostnameError),
    /// A namespace.
    #[error("the pod's namespaces cannot be made")]
    Namespace(#[source] std::io::Error),
    /// A sysctl that pods may not set.
    #[error(transparent)]
    Sysctl(#[from] crate::pod::admission::Rejection),
    /// The pod's user namespace, or a container's part in it.
    #[error("hostUsers: false is not possible")]
    Users(#[from] super::userns::Error),
    /// A cgroup.
    #[error("the cgroup {path} cannot be set up")]
    Cgroup {
        /// Which.
        path: String,
        /// Why.
        source: crate::sys::cgroup::Error,
    },
    /// The shim.
    #[error("the pod's shim failed")]
    Shim(#[from] crate::shim::Error),
    /// A container could not be created or started.
    #[error("{0}")]
    Start(String),
    /// The container's settings make no OCI spec.
    #[error(transparent)]
    Bundle(#[from] crate::bundle::Error),
    /// Another pod of the same uid.
    #[error("its uid is that of pod {0}, which is still there")]
    UidInUse(String),
    /// Who runs in the container.
    #[error(transparent)]
    User(#[from] crate::bundle::user::Error),
    /// A resource quantity.
    #[error("the pod's resources cannot be used")]
    Resources(#[from] crate::pod::resources::Error),
    /// A resize that cannot be done (now): the reason of `PodResizePending`, and the sentence.
    #[error("{message}")]
    Resize {
        /// `Deferred` or `Infeasible`.
        reason: &'static str,
        /// Why.
        message: String,
    },
    /// The image store.
    #[error("the image store failed")]
    Image(#[from] crate::image::Error),
    /// The image is not here.
    #[error("image {0} is not present")]
    NoImage(String),
    /// The image of a volume is not here, and must not be fetched.
    #[error("Container image {0:?} is not present with pull policy of Never")]
    NeverPull(String),
    /// A running container's devices could not be brought in line with the machine's.
    #[error("{0}")]
    Devices(String),
    /// The plan asked for something that is not there (any more).
    #[error("{0} is not there")]
    Missing(String),
}

impl Error {
    /// The whole story in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        crate::causes::chain(self)
    }

    /// Whether there is no space left for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::File { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// `reason` of a waiting container or pod.
    #[must_use]
    pub fn waiting_reason(&self) -> &'static str {
        match self {
            Error::Volume(e) => e.container_reason().unwrap_or("FailedMount"),
            Error::Resize { reason, .. } => reason,
            Error::Users(error) if error.is_of_sandbox() => "FailedCreatePodSandBox",
            Error::Bundle(_) | Error::User(_) | Error::Users(_) | Error::Resources(_) => "CreateContainerConfigError",
            Error::Start(_) => "RunContainerError",
            Error::NoImage(_) => "ErrImagePull",
            Error::NeverPull(_) => "ErrImageNeverPull",
            Error::Sysctl(_) => crate::pod::sysctl::REASON,
            Error::Image(_) => "ImageInspectError",
            Error::Network(_) | Error::Hostname(_) | Error::Namespace(_) | Error::Cgroup { .. } => {
                "FailedCreatePodSandBox"
            }
            _ => "CreateContainerError",
        }
    }

    /// `reason` of the event.
    #[must_use]
    pub fn event_reason(&self) -> &'static str {
        match self {
            Error::Volume(e) if e.container_reason().is_none() => "FailedMount",
            Error::Resize { reason: "Infeasible", .. } => "ResizeInfeasible",
            Error::Resize { .. } => "ResizeDeferred",
            Error::Sysctl(_) => crate::pod::sysctl::REASON,
            Error::Users(error) if error.is_of_sandbox() => "FailedCreatePodSandBox",
            Error::Network(_) | Error::Hostname(_) | Error::Namespace(_) | Error::Cgroup { .. } => {
                "FailedCreatePodSandBox"
            }
            _ => "Failed",
        }
    }
}
