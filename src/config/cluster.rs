//! How the node stands to a cluster.

use k8s_openapi::api::core::v1::Taint;
use std::path::PathBuf;
use std::time::Duration;

/// What of the configuration is about the cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// How to reach the API server (`--kubeconfig`); while there is no such file the node stands alone.
    pub kubeconfig: PathBuf,
    /// Credentials that are good for asking for a certificate only (`--bootstrap-kubeconfig`).
    pub bootstrap_kubeconfig: PathBuf,
    /// Certificates that were issued (`--cert-dir`).
    pub cert_dir: PathBuf,
    /// Whether the node's certificate is renewed in time (`rotateCertificates`; ours: on).
    pub rotate_certificates: bool,
    /// Whether the Node object is created (`registerNode`).
    pub register_node: bool,
    /// Whether a new Node takes no pods but DaemonSets' (`registerUnschedulable`, ours; on).
    pub register_unschedulable: bool,
    /// Taints of a new Node (`registerWithTaints`).
    pub register_with_taints: Vec<Taint>,
    /// `spec.providerID` of a new Node; empty: none.
    pub provider_id: String,
    /// How long the node counts as alive after its last sign of life, in seconds (`nodeLeaseDurationSeconds`).
    pub lease_duration_seconds: u32,
    /// Between two looks at the node's status (`nodeStatusUpdateFrequency`).
    pub status_update_frequency: Duration,
    /// Between two reports of a status that did not change (`nodeStatusReportFrequency`).
    pub status_report_frequency: Duration,
    /// Most images in the Node's status; `None`: all (`nodeStatusMaxImages`).
    pub status_max_images: Option<usize>,
    /// Events a second, and how many at once (`eventRecordQPS`, `eventBurst`); 0: no limit.
    pub event_rate: (u32, u32),
    /// Requests a second, and how many at once (`kubeAPIQPS`, `kubeAPIBurst`).
    pub request_rate: (u32, u32),
    /// A file with a key of 32 bytes with which Secrets and tokens are sealed at rest (`sealingKeyFile`, ours).
    pub sealing_key_file: Option<PathBuf>,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            kubeconfig: "/var/lib/coracle/kubeconfig".into(),
            bootstrap_kubeconfig: "/var/lib/coracle/bootstrap-kubeconfig".into(),
            cert_dir: "/var/lib/coracle/pki".into(),
            rotate_certificates: true,
            register_node: true,
            register_unschedulable: true,
            register_with_taints: Vec::new(),
            provider_id: String::new(),
            lease_duration_seconds: 40,
            status_update_frequency: Duration::from_secs(10),
            status_report_frequency: Duration::from_secs(300),
            status_max_images: Some(50),
            event_rate: (50, 100),
            request_rate: (50, 100),
            sealing_key_file: None,
        }
    }
}
