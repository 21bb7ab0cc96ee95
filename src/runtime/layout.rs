//! Where things are (ARCHITECTURE.md, "Paths").

use k8s_openapi::api::core::v1::Pod;
use std::path::{Path, PathBuf};

/// The node's folders.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Persistent state (`--root-dir`).
    pub root: PathBuf,
    /// Volatile state (`--run-dir`).
    pub run: PathBuf,
    /// Logs (`podLogsDir`).
    pub pod_logs: PathBuf,
}

impl Layout {
    /// All pods' folders.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// A pod's folder.
    #[must_use]
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// A pod's record.
    #[must_use]
    pub fn record(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("pod.json")
    }

    /// The copy of a pod's record that lasts until the next boot.
    #[must_use]
    pub fn record_copy(&self, uid: &str) -> PathBuf {
        self.run_pod(uid).join("pod.json")
    }

    /// Which IDs of the machine a pod with `hostUsers: false` has (as kubelet).
    #[must_use]
    pub fn userns(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("userns")
    }

    /// A pod's volumes.
    #[must_use]
    pub fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// The records and writable layers of a container.
    #[must_use]
    pub fn container(&self, uid: &str, container: &str) -> PathBuf {
        self.pod(uid).join("containers").join(container)
    }

    /// The record of a run.
    #[must_use]
    pub fn instance(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.container(uid, container).join(format!("{attempt}.json"))
    }

    /// What was done with the runs of a pod ([`crate::pod::Progress`]).
    #[must_use]
    pub fn progress_dir(&self, uid: &str) -> PathBuf {
        self.run_pod(uid).join("progress")
    }

    /// What was done with a run.
    #[must_use]
    pub fn progress(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.progress_dir(uid).join(format!("{container}-{attempt}.json"))
    }

    /// What was last told of a pod's conditions ([`crate::pod::Told`]).
    #[must_use]
    pub fn told(&self, uid: &str) -> PathBuf {
        self.run_pod(uid).join("told.json")
    }

    /// Volatile state of a pod: the shim's folder.
    #[must_use]
    pub fn run_pod(&self, uid: &str) -> PathBuf {
        self.run.join("pods").join(uid)
    }

    /// Mount point of what the mounts of a starting container are made of ([`crate::volume::Stage`]).
    #[must_use]
    pub fn stage(&self, uid: &str) -> PathBuf {
        self.run_pod(uid).join("stage")
    }

    /// Bound namespaces.
    #[must_use]
    pub fn namespaces(&self, uid: &str) -> PathBuf {
        self.run_pod(uid).join("ns")
    }

    /// The OCI bundle of a run.
    #[must_use]
    pub fn bundle(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.run_pod(uid).join("bundles").join(format!("{container}-{attempt}"))
    }

    /// Where the shim mounts the root file system of a run.
    #[must_use]
    pub fn rootfs(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.run_pod(uid).join("rootfs").join(format!("{container}-{attempt}"))
    }

    /// libcontainer's state.
    #[must_use]
    pub fn state(&self, uid: &str) -> PathBuf {
        self.run_pod(uid).join("state")
    }

    /// A pod's logs (as kubelet: `<ns>_<pod>_<uid>`).
    #[must_use]
    pub fn pod_log_dir(&self, pod: &Pod) -> PathBuf {
        let meta = &pod.metadata;
        let part = |p: &Option<String>| p.clone().unwrap_or_default();
        self.pod_logs.join(format!("{}_{}_{}", part(&meta.namespace), part(&meta.name), part(&meta.uid)))
    }

    /// The log of a run.
    #[must_use]
    pub fn log(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.pod_log_dir(pod).join(container).join(format!("{attempt}.log"))
    }

    /// The folder of links to logs: `containers` beside the pods' logs (`/var/log/containers`).
    #[must_use]
    pub fn container_links(&self) -> PathBuf {
        self.pod_logs.parent().unwrap_or(Path::new("/")).join("containers")
    }

    /// The link to the log of a run (as kubelet: `<pod>_<ns>_<container>-<id>.log`, at most 255 bytes).
    #[must_use]
    pub fn container_link(&self, pod: &Pod, container: &str, id: &str) -> PathBuf {
        let meta = &pod.metadata;
        let part = |p: &Option<String>| p.clone().unwrap_or_default();
        let mut name = format!("{}_{}_{container}", part(&meta.name), part(&meta.namespace));
        let suffix = format!("-{id}.log");
        // Names are ASCII (validated), so any index is a character boundary.
        name.truncate(255 - suffix.len().min(255));
        self.container_links().join(name + &suffix)
    }
}
