//! What the paths below `/coracle/v1` answer; the command line reads the same types.

use crate::image::Digest;
use crate::image::registry::Progress;
use crate::manifest::{Problem, Severity};
use serde::{Deserialize, Serialize};

/// Answer of `GET /coracle/v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSummary {
    /// Node name.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// PID of the agent.
    pub pid: u32,
    /// Whether the node's Ready condition is true.
    pub ready: bool,
    /// The Ready condition's message.
    pub message: String,
    /// Directory of the manifests.
    pub manifest_dir: String,
    /// Pods by phase.
    pub pods: std::collections::BTreeMap<String, usize>,
    /// Images in the store.
    pub images: usize,
    /// Their size on disk in bytes; layers that they share count once.
    pub image_bytes: u64,
    /// Last warnings, newest last.
    pub warnings: Vec<String>,
    /// How the node stands to a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterSummary>,
}

/// Answer of `GET /coracle/v1/cluster` and `POST /coracle/v1/cluster/look`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSummary {
    /// Node name.
    pub node: String,
    /// How the node stands to the cluster.
    pub state: ClusterState,
    /// URL of the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Why it is so, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Since when the API server cannot be used, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// When the node's certificate ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<String>,
    /// Whether the API server has a Node object of this node.
    pub registered: bool,
    /// Whether this node makes one.
    pub registers: bool,
    /// Where the agent looks for the node's kubeconfig.
    pub kubeconfig: std::path::PathBuf,
    /// Where it looks for one that is good for asking for a certificate.
    pub bootstrap_kubeconfig: std::path::PathBuf,
    /// Where it keeps certificates.
    pub cert_dir: std::path::PathBuf,
}

/// How a node stands to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterState {
    /// There are no credentials.
    Alone,
    /// There are, but nothing came of them yet.
    Waiting,
    /// The API server answers.
    Joined,
    /// It does not.
    Unreachable,
}

/// Answer of `POST /coracle/v1/cluster/leave`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftCluster {
    /// Node name.
    pub node: String,
    /// How many mirror pods were removed from the API server.
    pub mirrors: usize,
    /// Pods of the cluster that end now.
    pub pods: usize,
    /// What could not be done, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Answer of `GET /coracle/v1/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageList {
    /// Always `ImageList`.
    pub kind: String,
    /// Always `coracle.dev/v1alpha1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// Sorted by first name.
    pub items: Vec<ImageItem>,
}

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageItem {
    /// `sha256:…`, digest of the image configuration.
    pub id: String,
    /// Full references (`docker.io/library/nginx:latest`).
    pub names: Vec<String>,
    /// Size on disk in bytes.
    pub size: u64,
    /// Bytes in layers that no other image has: what becomes free without it.
    #[serde(default)]
    pub unique: u64,
    /// When it was built, RFC 3339; as the image claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When it came to this machine, seconds since 1970; 0: not known.
    #[serde(default)]
    pub added: i64,
    /// Whether it is kept though nothing uses it.
    #[serde(default)]
    pub pinned: bool,
    /// Whether a pod uses it.
    pub in_use: bool,
    /// Whether it is not as it came in, and not used before it has been brought back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
    /// Good signatures that it came with: what each calls it, and by which key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verified: Vec<crate::image::Verification>,
    /// The pods that use it: `namespace/name`, sorted.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// A line of the answer of `POST /coracle/v1/images/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyLine {
    /// Name of the image, or its ID.
    pub image: String,
    /// What was found, for people.
    pub message: String,
    /// Whether it is not as it should be.
    pub damaged: bool,
    /// Whether this tells that the image is being brought back.
    #[serde(default)]
    pub healing: bool,
}

/// Answer of `POST /coracle/v1/images/prune`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// Always `PrunedImages`.
    pub kind: String,
    /// Always `coracle.dev/v1alpha1`.
    pub api_version: String,
    /// In the order they went.
    pub items: Vec<PrunedImage>,
    /// Bytes that are free now, or would be.
    pub freed: u64,
    /// Whether nothing was removed.
    pub dry_run: bool,
}

/// An image that is not needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrunedImage {
    /// `sha256:…`.
    pub id: String,
    /// Full references.
    pub names: Vec<String>,
    /// Bytes of all its layers, shared ones too.
    pub size: u64,
}

/// Answer of `DELETE /coracle/v1/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemovedImage {
    /// Always `RemovedImage`.
    pub kind: String,
    /// Always `coracle.dev/v1alpha1`.
    pub api_version: String,
    /// `sha256:…`.
    pub id: String,
    /// The names that are gone.
    pub names: Vec<String>,
    /// The names that it still has; none: the image is gone.
    pub left: Vec<String>,
    /// Bytes that are free now.
    pub freed: u64,
}

/// Answer of `GET /coracle/v1/namespaces/NAMESPACE/pods/POD/history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodHistory {
    /// Always `PodHistory`.
    pub kind: String,
    /// Always `coracle.dev/v1alpha1`.
    pub api_version: String,
    /// Which pod.
    pub pod: PodName,
    /// What keeps the manifest from being accepted, while the revision before it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Oldest first.
    pub items: Vec<PodRevision>,
}

/// A pod as it was accepted once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRevision {
    /// Number, from 1.
    pub revision: u64,
    /// When it was accepted first, RFC 3339.
    pub accepted: String,
    /// Whether it is the one that runs.
    pub running: bool,
    /// Whether it is what the manifest said when it was accepted last.
    pub manifest: bool,
    /// `Good`, `Bad`, or `Unknown` while nothing is known of it.
    pub verdict: String,
    /// Why it is bad, or why it runs though the manifest says something newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Path or URL of the manifest.
    pub source: String,
    /// What tells its content.
    pub content: String,
    /// The pod; only where one revision is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<serde_json::Value>,
}

/// Answer of `POST /coracle/v1/namespaces/NAMESPACE/pods/POD/rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolledBack {
    /// Always `RolledBack`.
    pub kind: String,
    /// Always `coracle.dev/v1alpha1`.
    pub api_version: String,
    /// Which pod.
    pub pod: PodName,
    /// The revision that runs.
    pub revision: u64,
    /// Whether it ran before.
    pub unchanged: bool,
}

/// A line of the answer of `POST /coracle/v1/images/pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PullLine {
    /// How far it is.
    Progress(Progress),
    /// The last one.
    End(PullEnd),
}

/// How a pull ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum PullEnd {
    /// The image is here.
    Pulled {
        /// Full name.
        name: String,
        /// `sha256:…`, digest of the image configuration.
        id: String,
        /// Digest of what the name means in the registry.
        digest: Digest,
        /// Size on disk in bytes.
        size: u64,
        /// Whether anything but documents was fetched, or the image had not this name yet.
        fetched: bool,
    },
    /// It is not.
    Failed {
        /// Kubelet's word for why (`ErrImagePull`).
        reason: String,
        /// Why, for people.
        message: String,
        /// What to do about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// Answer of `POST /coracle/v1/apply` and `POST /coracle/v1/delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The file in the manifest directory.
    pub file: String,
    /// What happened to the file.
    pub action: Action,
    /// The pods it defines.
    pub pods: Vec<PodName>,
    /// The ConfigMaps and Secrets it defines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<ObjectName>,
    /// Warnings about the manifest.
    #[serde(default)]
    pub problems: Vec<Cause>,
}

/// What `apply` or `delete` did to a manifest; kubectl's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A new file.
    Created,
    /// A changed file.
    Configured,
    /// The file already said so.
    Unchanged,
    /// The file is gone.
    Deleted,
}

/// Name of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name with the node's suffix.
    pub name: String,
}

/// Name of a ConfigMap or Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectName {
    /// `ConfigMap` or `Secret`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Something wrong with a manifest: a v1 `StatusCause` plus where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// `FieldValueInvalid` or `Warning`.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// Path of the field.
    #[serde(default)]
    pub field: String,
    /// Line of the manifest, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column of the manifest, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

impl From<&Problem> for Cause {
    fn from(problem: &Problem) -> Cause {
        let reason = match problem.severity {
            Severity::Error => "FieldValueInvalid",
            Severity::Warning => "Warning",
        };
        Cause {
            reason: reason.to_owned(),
            message: problem.reason.clone(),
            field: problem.field.clone(),
            line: problem.line,
            column: problem.column,
        }
    }
}

/// A v1 `Status`, as far as anybody here reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `Success` or `Failure`.
    pub status: String,
    /// For people.
    pub message: String,
    /// For programs.
    pub reason: String,
    /// HTTP status.
    pub code: u16,
    /// Causes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
}

/// Details of a [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusDetails {
    /// What exactly.
    pub causes: Vec<Cause>,
}
