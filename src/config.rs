//! What the node was told: flags, `KubeletConfiguration` and `CoracleConfiguration`, resolved into one [`Config`].
//!
//! Pure: the caller reads the files and the host name and passes them in. Precedence as kubelet: defaults, then the
//! file, then its drop-ins, then flags. Configuration fields that the kubelet knows and coracle does not do yet are
//! listed in a [`Warning`]; one that nobody knows is an [`Error`], because a typo in a configuration must not go
//! unnoticed for years.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod cluster;
mod file;
pub mod images;
mod layers;
mod local;
mod node;
pub mod reserve;
pub mod server;
pub mod sources;
mod value;

pub use crate::manifest::duration;
pub use cluster::Cluster;
pub use file::{KUBELET_API_VERSION, OWN_API_VERSION};
pub use images::{CredentialsVerification, Images};
pub use layers::File;
pub use server::Server;
pub use sources::{ManifestUrl, Sources};
pub use value::{PodCidr, SysctlGroup, quantity_bytes, sysctl_group};

use reserve::{Eviction, Reserved};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where the configuration is looked for when `--config` is not given; it may be missing then.
pub const DEFAULT_FILE: &str = "/etc/coracle/config.yaml";
/// Default of `--run-dir`.
pub const DEFAULT_RUN_DIR: &str = "/run/coracle";
/// Name of the socket below the run directory.
pub const SOCKET_NAME: &str = "coracle.sock";
/// Name of the CRI's socket below the run directory.
pub const CRI_SOCKET_NAME: &str = "cri.sock";

/// Flags of `coracle agent`, under the kubelet's names. Unset flags leave the decision to the file.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
#[command(rename_all = "kebab-case")]
pub struct Flags {
    /// Configuration file: KubeletConfiguration and CoracleConfiguration as YAML documents [default: /etc/coracle/config.yaml if present]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of drop-ins to the configuration file: *.conf, in the order of their paths
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Persistent state: images, pods, network leases [default: /var/lib/coracle]
    #[arg(long, value_name = "DIR")]
    pub root_dir: Option<PathBuf>,
    /// Volatile state and sockets [default: /run/coracle]
    #[arg(long, value_name = "DIR", env = "CORACLE_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// Directory of Pod manifests [default: /etc/kubernetes/manifests]
    #[arg(long, value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// URL of manifests; may be given several times
    #[arg(long, value_name = "URL")]
    pub manifest_url: Vec<String>,
    /// Headers of requests for --manifest-url, as NAME:VALUE,…; may be given several times
    #[arg(long, value_name = "HEADERS")]
    pub manifest_url_header: Vec<String>,
    /// Node name [default: the host name in lower case]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// IP address of the node, or an IPv4,IPv6 pair [default: that of the default route]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Labels of the Node object, as key=value,…
    #[arg(long, value_name = "LABELS")]
    pub node_labels: Option<String>,
    /// Whether the Node object is created where there is none [default: true]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub register_node: Option<bool>,
    /// Whether a new Node takes DaemonSets' pods only, until kubectl uncordon [default: true]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub register_unschedulable: Option<bool>,
    /// Taints of a new Node, as key=value:Effect,…
    #[arg(long, value_name = "TAINTS")]
    pub register_with_taints: Option<String>,
    /// How to reach a cluster's API server; the node stands alone while there is no such file [default: <root-dir>/kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Credentials that are good for asking for a certificate only [default: <root-dir>/bootstrap-kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Certificates that the cluster issued [default: <root-dir>/pki]
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Renew the client certificate in time [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rotate_certificates: Option<bool>,
    /// Taken for kubeadm's sake, as are the next ones: no container runtime is used
    #[arg(long, value_name = "URL", hide = true)]
    pub container_runtime_endpoint: Option<String>,
    /// Images are not in a container runtime either
    #[arg(long, value_name = "URL", hide = true)]
    pub image_service_endpoint: Option<String>,
    /// Cgroups are made directly
    #[arg(long, value_name = "DRIVER", hide = true)]
    pub cgroup_driver: Option<String>,
    /// There is no runtime that could have cgroups
    #[arg(long, value_name = "CGROUPS", hide = true)]
    pub runtime_cgroups: Option<String>,
    /// Swap is no reason to fail
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub fail_swap_on: Option<bool>,
    /// Port of the health endpoint, 0 to turn it off [default: 10248]
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,
    /// Address of the health endpoint [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub healthz_bind_address: Option<IpAddr>,
    /// Port of the kubelet API, 0 to turn it off [default: 10250, once the node is in a cluster]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Address of the kubelet API [default: 0.0.0.0]
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Port without authentication for health, pods and metrics, 0 to turn it off [default: 0]
    #[arg(long, value_name = "PORT")]
    pub read_only_port: Option<u16>,
    /// Authorities of the certificates of those who use the kubelet API [default: the cluster's]
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Whether requests of the kubelet API that show nothing are those of system:anonymous [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,
    /// Who may use the kubelet API [default: Webhook]
    #[arg(long, value_name = "MODE")]
    pub authorization_mode: Option<server::AuthorizationMode>,
    /// Certificate of the kubelet API [default: one signed by itself]
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Ask the cluster for the certificate of the kubelet API [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rotate_server_certificates: Option<bool>,
    /// DNS servers of pods with dnsPolicy ClusterFirst
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// Most pods this node runs [default: 110]
    #[arg(long, value_name = "N")]
    pub max_pods: Option<u32>,
    /// Log verbosity: 0 to 3 info, 4 and 5 debug, 6 and more trace [default: 0]
    #[arg(long, value_name = "N")]
    pub v: Option<u8>,
    /// Log format [default: text]
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<LogFormat>,
    /// Cgroup below which kubepods is made [default: /]
    #[arg(long, value_name = "CGROUP")]
    pub cgroup_root: Option<String>,
    /// Directory of the pods' logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    pub pod_logs_dir: Option<PathBuf>,
    /// Name of the pod network's bridge [default: coracle0]
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// Addresses of the pod network [default: 10.83.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<PodCidr>,
}

impl Flags {
    /// Flags that were given and change nothing.
    fn without_effect(&self) -> Option<Warning> {
        let flags = [
            ("--container-runtime-endpoint", self.container_runtime_endpoint.is_some()),
            ("--image-service-endpoint", self.image_service_endpoint.is_some()),
            ("--cgroup-driver", self.cgroup_driver.is_some()),
            ("--runtime-cgroups", self.runtime_cgroups.is_some()),
            ("--fail-swap-on", self.fail_swap_on.is_some()),
        ];
        let given: Vec<&str> = flags.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
        let reason = "no effect here: there is no container runtime, and swap is no reason to fail";
        (!given.is_empty()).then(|| Warning { field: given.join(", "), reason: reason.to_owned() })
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        })
    }
}

/// What only the machine knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Host name as the kernel reports it.
    pub hostname: String,
}

/// The resolved configuration of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Node name: lower case, a DNS subdomain.
    pub node_name: String,
    /// Addresses of the node; empty: found out at run time.
    pub node_ips: Vec<IpAddr>,
    /// Labels of the Node object besides the ones every node has.
    pub node_labels: BTreeMap<String, String>,
    /// Persistent state.
    pub root_dir: PathBuf,
    /// Volatile state and sockets.
    pub run_dir: PathBuf,
    /// Directory of Pod manifests.
    pub manifest_dir: PathBuf,
    /// Between two looks at the whole manifest directory (changes are seen at once besides).
    pub file_check_frequency: Duration,
    /// Address of the health endpoint.
    pub healthz_bind_address: IpAddr,
    /// Port of the health endpoint; 0: off.
    pub healthz_port: u16,
    /// Port of the kubelet API; 0: off.
    pub port: u16,
    /// DNS servers of pods with dnsPolicy ClusterFirst.
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster; empty: none.
    pub cluster_domain: String,
    /// Resolver file that pods inherit from; `None`: pods inherit nothing.
    pub resolv_conf: Option<PathBuf>,
    /// Most pods this node runs.
    pub max_pods: u32,
    /// Most processes of a pod; `None`: no limit.
    pub pod_pids_limit: Option<u64>,
    /// Set aside for Kubernetes' own processes.
    pub kube_reserved: Reserved,
    /// Set aside for the rest of the system.
    pub system_reserved: Reserved,
    /// Whether the cgroup of all pods is limited to what they may have (`enforceNodeAllocatable: [pods]`).
    pub enforce_pods: bool,
    /// When the node is short of something.
    pub eviction: Eviction,
    /// CFS period of CPU limits; `None`: CPU limits are not enforced (`cpuCFSQuota: false`).
    pub cfs_period: Option<Duration>,
    /// Whether only one process of a container is killed when it runs out of memory (cgroup v2), not all.
    pub single_process_oom_kill: bool,
    /// Pulling, keeping and trusting images.
    pub images: Images,
    /// Where manifests come from besides the manifest directory, and which are accepted.
    pub sources: Sources,
    /// How the node stands to a cluster.
    pub cluster: Cluster,
    /// Who is served what.
    pub server: Server,
    /// Sysctls beyond the safe ones that pods may set; a trailing `*` matches any rest.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Log verbosity, klog's scale.
    pub verbosity: u8,
    /// Log format.
    pub log_format: LogFormat,
    /// Cgroup below which `kubepods` is made, absolute.
    pub cgroup_root: String,
    /// Directory of the pods' logs.
    pub pod_logs_dir: PathBuf,
    /// Size at which a container's log is rotated, in bytes.
    pub container_log_max_size: u64,
    /// Log files kept of one container, the live one included; at least 2.
    pub container_log_max_files: u32,
    /// Longest delay before a crashing container is started again.
    pub max_container_restart_period: Duration,
    /// Seccomp `RuntimeDefault` for containers that ask for nothing (ours: on, the kubelet's default is off).
    pub seccomp_default: bool,
    /// Folders of CDI files; a later one counts more.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Name of the pod network's bridge.
    pub bridge: String,
    /// Addresses of the pod network.
    pub pod_cidr: PodCidr,
}

/// Something in the configuration that has no effect, or not the one it may be taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Flag, or path of the field (`KubeletConfiguration.evictionHard`).
    pub field: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// One of the files is at fault.
    #[error("{file}")]
    In {
        /// Its path.
        file: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The file is no YAML.
    #[error("not valid YAML: {0}")]
    Yaml(String),
    /// A drop-in without any document.
    #[error("says nothing: apiVersion and kind are required")]
    Empty,
    /// A document is of no known kind.
    #[error("document {document}: {reason}")]
    Document {
        /// Counted from 1.
        document: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A field that no version of the format has.
    #[error("{field}: unknown field{}", .suggestion.as_ref().map(|s| format!(" (did you mean {s}?)")).unwrap_or_default())]
    Unknown {
        /// Path of the field.
        field: String,
        /// The known field that is nearest in spelling.
        suggestion: Option<String>,
    },
    /// A field or flag with a value that cannot be used.
    #[error("{field}: {reason}")]
    Invalid {
        /// Flag or path of the field.
        field: String,
        /// What is wrong, with the value.
        reason: String,
    },
}

impl Error {
    fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid { field: field.into(), reason: reason.into() }
    }

    fn in_file(self, file: &str) -> Error {
        Error::In { file: file.to_owned(), source: Box::new(self) }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            node_name: String::new(),
            node_ips: Vec::new(),
            node_labels: BTreeMap::new(),
            root_dir: "/var/lib/coracle".into(),
            run_dir: DEFAULT_RUN_DIR.into(),
            manifest_dir: "/etc/kubernetes/manifests".into(),
            file_check_frequency: Duration::from_secs(20),
            healthz_bind_address: IpAddr::from([127, 0, 0, 1]),
            healthz_port: 10248,
            port: 10250,
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            resolv_conf: Some("/etc/resolv.conf".into()),
            max_pods: 110,
            pod_pids_limit: None,
            kube_reserved: Reserved::default(),
            system_reserved: Reserved::default(),
            enforce_pods: true,
            eviction: Eviction::default(),
            cfs_period: Some(Duration::from_millis(100)),
            single_process_oom_kill: false,
            images: Images::default(),
            sources: Sources::default(),
            cluster: Cluster::default(),
            server: Server::default(),
            allowed_unsafe_sysctls: Vec::new(),
            verbosity: 0,
            log_format: LogFormat::Text,
            cgroup_root: "/".to_owned(),
            pod_logs_dir: "/var/log/pods".into(),
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            max_container_restart_period: Duration::from_secs(300),
            seccomp_default: true,
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            bridge: "coracle0".to_owned(),
            pod_cidr: PodCidr::DEFAULT,
        }
    }
}

impl Config {
    /// Resolves flags over the configuration files (a later one over those before it) over defaults.
    ///
    /// # Errors
    /// The first thing that cannot be used, with its flag, or its file and field path.
    pub fn resolve(flags: &Flags, files: &[File<'_>], facts: &Facts) -> Result<(Config, Vec<Warning>), Error> {
        let mut config = Config::default();
        let mut warnings = Vec::new();
        let layers = layers::Layers::read(files)?;
        file::apply(&layers.merged, &mut config, &mut warnings).map_err(|error| layers.blame(error))?;
        config.apply_flags(flags)?;
        warnings.extend(flags.without_effect());
        config.node_name = match &flags.hostname_override {
            Some(name) => node_name(name).map_err(|reason| Error::invalid("--hostname-override", reason))?,
            None => node_name(&facts.hostname).map_err(|reason| {
                Error::invalid("host name", format!("{reason}; give the node a name with --hostname-override"))
            })?,
        };
        config.check()?;
        Ok((config, warnings))
    }

    /// Path of the node's API socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET_NAME)
    }

    fn apply_flags(&mut self, flags: &Flags) -> Result<(), Error> {
        /// Sets a field from a flag that was given.
        fn set<T: Clone>(field: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                *field = value.clone();
            }
        }
        set(&mut self.root_dir, &flags.root_dir);
        set(&mut self.run_dir, &flags.run_dir);
        set(&mut self.manifest_dir, &flags.pod_manifest_path);
        let root = self.root_dir.clone();
        let or_default = |flag: &Option<PathBuf>, name: &str| flag.clone().unwrap_or_else(|| root.join(name));
        self.cluster.kubeconfig = or_default(&flags.kubeconfig, "kubeconfig");
        self.cluster.bootstrap_kubeconfig = or_default(&flags.bootstrap_kubeconfig, "bootstrap-kubeconfig");
        self.cluster.cert_dir = or_default(&flags.cert_dir, "pki");
        set(&mut self.cluster.rotate_certificates, &flags.rotate_certificates);
        set(&mut self.healthz_port, &flags.healthz_port);
        set(&mut self.healthz_bind_address, &flags.healthz_bind_address);
        set(&mut self.cluster_domain, &flags.cluster_domain);
        set(&mut self.max_pods, &flags.max_pods);
        set(&mut self.verbosity, &flags.v);
        set(&mut self.log_format, &flags.log_format);
        set(&mut self.cgroup_root, &flags.cgroup_root);
        set(&mut self.pod_logs_dir, &flags.pod_logs_dir);
        set(&mut self.bridge, &flags.bridge);
        set(&mut self.pod_cidr, &flags.pod_cidr);
        if !flags.node_ip.is_empty() {
            self.node_ips = flags.node_ip.clone();
        }
        if !flags.cluster_dns.is_empty() {
            self.cluster_dns = flags.cluster_dns.clone();
        }
        let mut headers = Vec::new();
        for text in &flags.manifest_url_header {
            let read = sources::header_flag(text);
            headers.extend(read.map_err(|reason| Error::invalid("--manifest-url-header", reason))?);
        }
        if flags.manifest_url.is_empty() && !headers.is_empty() {
            return Err(Error::invalid("--manifest-url-header", "goes with --manifest-url, which is not given"));
        }
        if !flags.manifest_url.is_empty() {
            let one = |url: &String| {
                let url = sources::checked(url).map_err(|reason| Error::invalid("--manifest-url", reason))?;
                Ok(ManifestUrl { url, headers: headers.clone(), ..ManifestUrl::default() })
            };
            self.sources.urls = flags.manifest_url.iter().map(one).collect::<Result<_, Error>>()?;
        }
        if let Some(labels) = &flags.node_labels {
            self.node_labels = value::labels(labels).map_err(|reason| Error::invalid("--node-labels", reason))?;
        }
        server::flags(flags, self)?;
        node::flags(flags, &mut self.cluster)
    }

    /// Checks what a single value cannot tell, whichever way it came in.
    fn check(&mut self) -> Result<(), Error> {
        let folders = [
            ("root directory (--root-dir)", &mut self.root_dir),
            ("run directory (--run-dir)", &mut self.run_dir),
            ("manifest directory (--pod-manifest-path, staticPodPath)", &mut self.manifest_dir),
            ("pod log directory (--pod-logs-dir, podLogsDir)", &mut self.pod_logs_dir),
        ];
        for (name, path) in folders {
            value::absolute(path).map_err(|reason| Error::invalid(name, reason))?;
        }
        // A unix socket address holds 107 bytes; shims put `pods/<36 bytes uid>/shim.sock` below the run directory.
        let room = 107 - "/pods/".len() - 36 - "/shim.sock".len();
        if self.run_dir.as_os_str().len() > room {
            let reason =
                format!("{} is too long for unix sockets below it ({room} bytes at most)", self.run_dir.display());
            return Err(Error::invalid("run directory (--run-dir)", reason));
        }
        if !self.cgroup_root.starts_with('/') || self.cgroup_root.split('/').any(|part| part == ".." || part == ".") {
            let reason = format!("{:?} is not an absolute cgroup path", self.cgroup_root);
            return Err(Error::invalid("cgroup root (--cgroup-root, cgroupRoot)", reason));
        }
        value::interface_name(&self.bridge).map_err(|reason| Error::invalid("bridge (--bridge)", reason))?;
        let pair = matches!(self.node_ips[..], [a, b] if a.is_ipv4() != b.is_ipv4());
        if self.node_ips.len() > 1 && !pair {
            return Err(Error::invalid("--node-ip", "give one address, or one IPv4 and one IPv6 address"));
        }
        node::check_labels(&self.node_labels)
            .map_err(|reason| Error::invalid("node labels (--node-labels, nodeLabels)", reason))?;
        let domain = self.cluster_domain.trim_end_matches('.').to_owned();
        if !domain.is_empty() {
            value::dns_subdomain(&domain).map_err(|reason| Error::invalid("cluster domain", reason))?;
        }
        self.cluster_domain = domain;
        if self.max_pods == 0 {
            return Err(Error::invalid("maxPods", "0 leaves no room for any pod"));
        }
        server::check(self)
    }
}

/// As kubelet: trimmed, lower case; must be a DNS subdomain, as it becomes part of object names.
fn node_name(raw: &str) -> Result<String, String> {
    let name = raw.trim().to_lowercase();
    if name.is_empty() {
        return Err("empty".to_owned());
    }
    value::dns_subdomain(&name)?;
    Ok(name)
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
