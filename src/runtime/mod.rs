//! Executes actions, reports observations. Blocking; used from worker threads, one action per pod at a time.

mod cdi;
mod container;
mod credentials;
mod devices;
mod error;
mod image_users;
mod layout;
mod logs;
mod machine;
mod message;
mod note;
mod objects;
mod observe;
mod progress;
mod told;
mod resize;
mod sandbox;
mod usage;
mod variables;
mod userns;
mod update;

use crate::bundle::CgroupFs;
pub use crate::causes::chain;
use crate::config::Config;
use crate::image::ImageStore;
use crate::image::registry::{self, Registries};
use crate::image::trust::{self, Trust};
use crate::manifest::Objects;
use crate::net::Network;
use crate::pod::{Action, Finished, Spec, Supply, is_from_api};
use crate::shim;
use crate::shim::exec::Target;
use crate::sys::cgroup::{Cgroups, Version};
use crate::sys::clock;
pub use devices::{device_nodes, device_paths};
pub use error::Error;
use k8s_openapi::api::core::v1::Pod;
pub use layout::Layout;
pub use machine::Machine;
pub use note::Note;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
pub use usage::{NodeResources, Tree, disk_usage};

/// Everything that actions need. Its state can be rebuilt from disk and shims.
pub struct Runtime {
    layout: Layout,
    machine: Machine,
    node_name: String,
    images: Arc<ImageStore>,
    trust: Arc<Trust>,
    registries: Arc<Registries>,
    net: Network,
    cgroups: Cgroups,
    cgroup_root: String,
    cluster_dns: Vec<std::net::IpAddr>,
    cluster_domain: String,
    resolv_conf: Option<PathBuf>,
    resources: usage::NodeResources,
    seccomp_default: bool,
    allowed_sysctls: Vec<String>,
    log_max_bytes: u64,
    log_max_files: u32,
    min_oom_score_adj: i32,
    container_cgroups: CgroupFs,
    device_rules: bool,
    selinux: bool,
    cdi_dirs: Vec<PathBuf>,
    shims: Mutex<HashMap<String, Arc<shim::Client>>>,
    /// Held while a [`crate::pod::Progress`] is read and written: a hook's task and its pod's worker both do.
    advancing: Mutex<()>,
    /// What static pods are made from; `None` before the sources have spoken.
    objects: RwLock<Option<Arc<Objects>>>,
    /// What the cluster's pods are made from; `None` before anything is known of it.
    supply: RwLock<Option<Arc<Supply>>>,
}

impl Runtime {
    /// Open the node's state. Changes nothing of what runs.
    ///
    /// # Errors
    /// When a folder cannot be made, or the image store or the network cannot be opened.
    pub fn open(config: &Config) -> Result<Runtime, Error> {
        let layout = Layout {
            root: config.root_dir.clone(),
            run: config.run_dir.clone(),
            pod_logs: config.pod_logs_dir.clone(),
        };
        for (path, mode) in [
            (layout.root.clone(), 0o700),
            (layout.pods(), 0o700),
            (layout.root.join("images"), 0o700),
            (layout.run.join("pods"), 0o700),
            (layout.pod_logs.clone(), 0o755),
            (layout.container_links(), 0o755),
        ] {
            make_dir(&path, mode)?;
        }
        let trust = Arc::new(Trust::new(trust::Settings::of(&config.images)));
        let images = Arc::new(ImageStore::open(&layout.root.join("store"))?.trusting(Arc::clone(&trust)));
        let registries = Arc::new(Registries::new(registry::Settings::of(config), Arc::clone(&trust)));
        let pod_cidr = config.pod_cidr.to_string().parse().map_err(|source| Error::File {
            what: "use the pod CIDR for",
            path: layout.root.join("net"),
            source: io::Error::other(source),
        })?;
        let net = Network::open(crate::net::Config {
            bridge: config.bridge.clone(),
            pod_cidr,
            state_dir: layout.root.join("net"),
        })?;
        let cgroups = Cgroups::detect().map_err(|source| Error::Cgroup { path: config.cgroup_root.clone(), source })?;
        let container_cgroups = match cgroups.version() {
            Version::V1 => CgroupFs::V1(cgroups.controllers()),
            Version::V2 => CgroupFs::V2,
        };
        let machine = Machine::read(&config.node_ips, &config.node_name);
        let resources = usage::NodeResources::read(config, &machine);
        Ok(Runtime {
            machine,
            node_name: config.node_name.clone(),
            images,
            trust,
            registries,
            net,
            cgroups,
            cgroup_root: config.cgroup_root.clone(),
            cluster_dns: config.cluster_dns.clone(),
            cluster_domain: config.cluster_domain.clone(),
            resolv_conf: config.resolv_conf.clone(),
            resources,
            seccomp_default: config.seccomp_default,
            allowed_sysctls: config.allowed_unsafe_sysctls.clone(),
            log_max_bytes: config.container_log_max_size,
            log_max_files: config.container_log_max_files,
            min_oom_score_adj: min_oom_score_adj(),
            device_rules: devices::rules_enforced(&container_cgroups),
            selinux: devices::selinux(),
            cdi_dirs: config.cdi_spec_dirs.clone(),
            container_cgroups,
            shims: Mutex::default(),
            advancing: Mutex::default(),
            objects: RwLock::default(),
            supply: RwLock::default(),
            layout,
        })
    }

    /// Take the lock of the run directory; `None` when another agent has it. Held until the file is dropped.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn lock_run_dir(&self) -> io::Result<Option<File>> {
        let file = File::options().create(true).truncate(false).write(true).open(self.layout.run.join("agent.lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Sysctls beyond the safe ones that pods may set.
    #[must_use]
    pub fn unsafe_sysctls(&self) -> &[String] {
        &self.allowed_sysctls
    }

    /// ConfigMaps and Secrets that pods may refer to from now on. What a started container has of them stays as it is;
    /// [`Runtime::refresh_volumes`] brings volumes up to date.
    pub fn set_objects(&self, objects: Arc<Objects>) {
        *self.objects.write().unwrap_or_else(PoisonError::into_inner) = Some(objects);
    }

    /// ConfigMaps and Secrets that pods may refer to: none before [`Runtime::set_objects`].
    #[must_use]
    pub fn objects(&self) -> Arc<Objects> {
        self.served_objects().unwrap_or_default()
    }

    /// The same; `None` before [`Runtime::set_objects`]: what is not there yet may be there in a moment.
    #[must_use]
    pub fn served_objects(&self) -> Option<Arc<Objects>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the pods of the cluster are made from, from now on.
    pub fn set_supply(&self, supply: Arc<Supply>) {
        *self.supply.write().unwrap_or_else(PoisonError::into_inner) = Some(supply);
    }

    /// What the pods of the cluster are made from, as it is now.
    #[must_use]
    pub fn served_supply(&self) -> Option<Arc<Supply>> {
        self.supply.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What this pod is made from, by where it came from; `None` while that is not known, which may change in a moment.
    #[must_use]
    pub fn supply(&self, pod: &Pod) -> Option<Arc<Supply>> {
        if is_from_api(pod) {
            return self.served_supply();
        }
        Some(Arc::new(Supply { objects: self.served_objects()?, whole: true, ..Supply::default() }))
    }

    /// What keeps all pods from the pod network, if anything did lately.
    #[must_use]
    pub fn network_problem(&self) -> Option<String> {
        self.net.problem()
    }

    /// Facts of the machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The image store.
    #[must_use]
    pub fn images(&self) -> Arc<ImageStore> {
        Arc::clone(&self.images)
    }

    /// The folder of the image store.
    #[must_use]
    pub fn store_dir(&self) -> PathBuf {
        self.layout.root.join("store")
    }

    /// Which images are accepted.
    #[must_use]
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// Where images are pulled from (its calls block).
    #[must_use]
    pub fn registries(&self) -> &Arc<Registries> {
        &self.registries
    }

    /// The log file of a run.
    #[must_use]
    pub fn log_file(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.layout.log(pod, container, attempt)
    }

    /// Where to exec into a run.
    #[must_use]
    pub fn exec_target(&self, uid: &str, container: &str, attempt: u32, id: &str) -> Target {
        Target {
            state_root: self.layout.state(uid),
            id: id.to_owned(),
            bundle: self.layout.bundle(uid, container, attempt),
        }
    }

    /// The network namespace of a pod that has a sandbox with a network of its own.
    #[must_use]
    pub fn network_namespace(&self, uid: &str) -> Option<PathBuf> {
        let path = self.layout.namespaces(uid).join("net");
        path.exists().then_some(path)
    }

    /// Execute one action on a pod: `spec` is the pod that is there, or the wanted one when nothing is there yet.
    /// Returns what is worth telling.
    ///
    /// # Errors
    /// Whatever was in the way; everything done so far is found by the next observation.
    pub fn execute(&self, spec: &Spec, action: &Action) -> Result<Vec<Note>, Error> {
        match action {
            Action::CreateSandbox => self.create_sandbox(spec),
            Action::Run { container, attempt, backoff_ms } => {
                self.run_container(spec, container, *attempt, *backoff_ms)
            }
            Action::Stop { container, id, grace_ms } => self.stop_container(spec, container, id, *grace_ms),
            Action::Forget { container, attempt } => self.forget(spec, container, *attempt),
            Action::MarkDeleting { grace_seconds } => self.mark_deleting(spec, *grace_seconds),
            Action::ResetSandbox { why } => self.reset_sandbox(spec, why),
            Action::StopSandbox => self.stop_sandbox(spec),
            Action::BeginStop { container, id, cause, grace_ms } => {
                self.begin_stop(spec, container, id, *cause, *grace_ms)
            }
            // The agent's: they go on while other things happen.
            Action::Hook { .. } | Action::Pull { .. } => Ok(Vec::new()),
            Action::RestartAll { trigger } => self.restart_all(spec, trigger),
            Action::Resize { restart } => self.resize(spec, restart),
            Action::Update => self.update(spec),
            Action::Finish { phase, reason, message, grace_seconds } => self.finish(
                spec,
                Finished {
                    phase: (*phase).to_owned(),
                    reason: reason.clone(),
                    message: message.clone(),
                    at: clock::now(),
                    grace_seconds: *grace_seconds,
                },
            ),
            Action::RemovePod => self.remove_pod(spec),
        }
    }

    /// Change notices of a pod's shim, as a descriptor to poll; `None` when it has none.
    #[must_use]
    pub fn subscribe(&self, uid: &str) -> Option<OwnedFd> {
        self.shim(uid)?.subscribe().ok()
    }

    /// A pod's shim was seen to be gone.
    pub fn lost(&self, uid: &str) {
        self.shims.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// The pod's shim, adopted when it is not known yet; `None` when there is none that answers.
    fn shim(&self, uid: &str) -> Option<Arc<shim::Client>> {
        {
            let mut shims = self.shims.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(client) = shims.get(uid) {
                if client.is_alive() {
                    return Some(Arc::clone(client));
                }
                shims.remove(uid);
            }
        }
        let client = Arc::new(shim::Client::connect(&self.layout.run_pod(uid)).ok()?);
        self.remember(uid, &client);
        Some(client)
    }

    fn remember(&self, uid: &str, client: &Arc<shim::Client>) {
        self.shims.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), Arc::clone(client));
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|source| Error::File {
        what: "make the folder",
        path: path.to_owned(),
        source,
    })
}

/// The lowest `oom_score_adj` that this process may give to others: its own, unless it may lower it.
fn min_oom_score_adj() -> i32 {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|v| u64::from_str_radix(v.trim(), 16).ok())
        .unwrap_or(0);
    if effective & (1 << CAP_SYS_RESOURCE) != 0 {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let own = own.trim().parse().unwrap_or(0);
    if own > -998 {
        tracing::warn!(
            lowest = own,
            "CAP_SYS_RESOURCE is missing: oom_score_adj of containers cannot go below this process' own"
        );
    }
    own
}
