//! A container of a pod as an OCI runtime spec: pure data in, pure data out. What must be looked up (image, user,
//! volumes, addresses, the machine) is in [`Input`]; [`build`] decides, and touches nothing.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod capabilities;
pub mod cdi;
pub mod devices;
mod env;
pub mod envfile;
mod mounts;
pub mod profile;
mod seccomp;
pub mod seccomp_file;
pub mod user;

#[cfg(test)]
mod bound_tests;
#[cfg(test)]
mod golden;

pub use env::{Sources, expand};
pub use mounts::{Mount, Propagation, SubPath, Volume, destination, expand_sub_paths, of_container};
pub use user::ResolvedUser;

use crate::pod::resources::{self, Allocatable, Enforcement};
use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};
use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDevice, LinuxHugepageLimitBuilder,
    LinuxIdMappingBuilder, LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResources, LinuxResourcesBuilder, LinuxSeccomp, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Why a container cannot be described; it then waits with `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A resource quantity or a `resourceFieldRef`.
    #[error(transparent)]
    Resources(#[from] resources::Error),
    /// Neither the PodSpec nor the image says what to run.
    #[error("no command specified")]
    NoCommand,
    /// An argument with a NUL byte.
    #[error("command or args hold a NUL byte")]
    Argument,
    /// A variable that no process can have.
    #[error("env {0:?}: a name is made of printable ASCII characters other than '=', and a value holds no NUL byte")]
    Variable(String),
    /// A ConfigMap, Secret, file or key that is not there, in kubelet's words where it has some.
    #[error("{0}")]
    Reference(String),
    /// More than a process can be given.
    #[error("{0} is longer than a process can be given (127 KiB)")]
    TooLong(String),
    /// A `fieldRef` to a field that variables cannot have.
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    /// A capability that no kernel has.
    #[error("unknown capability {0:?}")]
    UnknownCapability(String),
    /// A capability that this node cannot give.
    #[error("capability {0:?} cannot be added: this node does not hold it itself")]
    CapabilityNotHeld(String),
    /// A volume mount without a volume.
    #[error("volumeMounts: the pod has no volume {0:?}")]
    NoVolume(String),
    /// A mount path that is none.
    #[error("mountPath {0:?} must be a path below / without '..'")]
    Destination(PathBuf),
    /// A mount at `/dev` itself.
    #[error(
        "mountPath /dev is not supported (mount single devices or folders below it; privileged containers have all)"
    )]
    MountOverDev,
    /// A mount at a place that is not free.
    #[error("mountPath {place:?} is not supported: {rule}")]
    Place { place: PathBuf, rule: &'static str },
    /// `Bidirectional` needs a privileged container.
    #[error("mountPropagation Bidirectional of {0:?} is available only to privileged containers")]
    BidirectionalUnprivileged(PathBuf),
    /// A part of a volume, or an image, of which nobody said where it is to be mounted from.
    #[error("what {0:?} shows is not prepared")]
    NotStaged(PathBuf),
    /// A mount that cannot be read-only all the way down.
    #[error("volume {volume:?} requested recursive read-only mode, but {why}")]
    RecursiveReadOnly { volume: String, why: &'static str },
    /// A variable in a `subPathExpr` that is missing or empty.
    #[error("subPathExpr {expression:?}: missing value for {missing}")]
    SubPathExpr { expression: String, missing: String },
    /// A profile that this node does not have.
    #[error("{0}")]
    Profile(String),
    /// A seccomp profile that cannot be used.
    #[error("the seccomp profile {} cannot be used: {reason}", .path.display())]
    Seccomp { path: PathBuf, reason: String },
    /// A device rule that no device can fit.
    #[error("the device rule {0:?} is not valid")]
    DeviceRule(String),
    /// A device that is not there, or not of the kind that is asked for.
    #[error("the device {} cannot be used: {reason}", .path.display())]
    Device { path: PathBuf, reason: String },
    /// A CDI device.
    #[error(transparent)]
    Cdi(#[from] cdi::Error),
    /// Something the manifest should not have let through.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The spec could not be put together.
    #[error("cannot build the OCI runtime spec")]
    Spec(#[from] OciSpecError),
}

/// All that a container's spec is made from.
#[derive(Debug)]
pub struct Input<'a> {
    /// The pod, defaulted.
    pub pod: &'a Pod,
    /// One of its app or init containers.
    pub container: &'a Container,
    /// Configuration of its image.
    pub image: &'a ImageConfiguration,
    /// Who runs ([`user::resolve`]).
    pub user: &'a ResolvedUser,
    /// Host name of the pod, the value of `HOSTNAME` (the name itself is set in the UTS namespace).
    pub hostname: &'a str,
    /// `status.podIPs`; the machine's own for hostNetwork.
    pub ips: &'a [IpAddr],
    /// `status.hostIPs`.
    pub host_ips: &'a [IpAddr],
    /// Name of the node.
    pub node_name: &'a str,
    /// What variables refer to.
    pub sources: &'a Sources,
    /// Volumes ([`of_container`]), then etc-hosts, resolv.conf, hostname, termination log, the pod's `/dev/shm`. Of two
    /// at one destination the first counts.
    pub mounts: &'a [Mount],
    /// Namespaces to join.
    pub namespaces: &'a Namespaces,
    /// Absolute name of the container's cgroup, the same in each hierarchy.
    pub cgroup_path: &'a str,
    /// Where the root file system is mounted (`Rootfs::target`).
    pub rootfs: &'a Path,
    /// The machine.
    pub node: &'a NodeFacts,
}

/// Namespaces of the pod, as files to join. `None` = the machine's own. The mount namespace is always the container's
/// own, and on cgroup v2 the cgroup namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Network; `None` for hostNetwork.
    pub net: Option<PathBuf>,
    /// System V IPC and POSIX queues; `None` for hostIPC.
    pub ipc: Option<PathBuf>,
    /// Host name; `None` for hostNetwork.
    pub uts: Option<PathBuf>,
    /// Processes.
    pub pid: PidNamespace,
    /// Users; `None` for the machine's own.
    pub user: Option<UserNamespace>,
}

/// The pod's user namespace (`hostUsers: false`), which owns its other namespaces. Its first `ids` users and groups are
/// those from `first_id` on of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespace {
    /// The namespace, as a file to join.
    pub path: PathBuf,
    /// The machine's ID for the container's 0.
    pub first_id: u32,
    /// How many IDs there are.
    pub ids: u32,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    #[default]
    Private,
    /// The machine's (hostPID).
    Host,
    /// The pod's (shareProcessNamespace).
    Shared(PathBuf),
}

/// What must be known of the machine.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// Number of CPUs.
    pub cpus: u32,
    /// Memory in bytes (the capacity).
    pub memory: i64,
    /// What pods may have.
    pub allocatable: Allocatable,
    /// How cgroups are mounted.
    pub cgroups: CgroupFs,
    /// Whether the kernel limits swap per cgroup (v2: `memory.swap.max`, v1: `memory.memsw.limit_in_bytes`).
    pub swap_limits: bool,
    /// How CPU limits are enforced.
    pub enforcement: Enforcement,
    /// Whether only one process is killed when a container runs out of memory (cgroup v2), not all of them.
    pub single_process_oom_kill: bool,
    /// Capabilities this process holds, a bit each (`CapPrm` of `/proc/self/status`).
    pub capabilities: u64,
    /// Least `oom_score_adj` this process may give (−1000 with CAP_SYS_RESOURCE, else its own value).
    pub min_oom_score_adj: i32,
    /// Hard limit of open files to give; `None` inherits.
    pub nofile: Option<u64>,
    /// AppArmor.
    pub apparmor: profile::AppArmorFacts,
    /// Whether SELinux is enabled.
    pub selinux: bool,
    /// Whether device rules are enforced: by the devices controller of cgroup v1, or by programs on v2.
    pub device_rules: bool,
    /// `Localhost` seccomp profiles by name: those that the container asks for.
    pub seccomp_profiles: BTreeMap<String, LinuxSeccomp>,
    /// Whether containers that name no seccomp profile run unconfined (`seccompDefault: false`).
    pub seccomp_unconfined: bool,
    /// Device nodes for privileged containers.
    pub devices: Vec<LinuxDevice>,
}

/// How cgroups are mounted on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupFs {
    /// One hierarchy; containers see theirs through a cgroup namespace.
    V2,
    /// One mount per controller (name, mount point): those a container gets to see. Empty: it sees none.
    V1(Vec<(String, PathBuf)>),
}

impl CgroupFs {
    fn limits_huge_pages(&self) -> bool {
        match self {
            CgroupFs::V2 => true,
            CgroupFs::V1(controllers) => controllers.iter().any(|(name, _)| name == "hugetlb"),
        }
    }
}

impl Default for CgroupFs {
    fn default() -> CgroupFs {
        CgroupFs::V1(Vec::new())
    }
}

/// Hidden from containers (as kubelet 1.36); per CPU, thermal_throttle comes on top.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Read-only to containers.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Most open files a container is given (as systemd's `nr_open` for services).
const MAX_NOFILE: u64 = 1_048_576;

/// The OCI runtime spec of a container.
///
/// # Errors
/// Any of [`Error`].
pub fn build(input: &Input<'_>) -> Result<Spec, Error> {
    let security = input.container.security_context.clone().unwrap_or_default();
    let privileged = security.privileged == Some(true);
    let caps = capabilities::resolve(
        security.capabilities.as_ref(),
        privileged,
        input.node.capabilities,
        input.node.device_rules,
    )?;
    let masked = security.proc_mount.as_deref() != Some("Unmasked") && !privileged;

    let mut linux = LinuxBuilder::default()
        .cgroups_path(input.cgroup_path)
        .namespaces(namespaces(input)?)
        .resources(limits(input, privileged)?)
        .devices(if privileged { input.node.devices.clone() } else { Vec::new() })
        .rootfs_propagation(mounts::root_propagation(input.mounts))
        .masked_paths(if masked { masked_paths(input.node.cpus) } else { Vec::new() })
        .readonly_paths(read_only_paths(input, privileged, masked))
        .build()?;
    linux.set_seccomp(seccomp_profile(input, caps)?);
    if let Some(user) = &input.namespaces.user {
        let ids = LinuxIdMappingBuilder::default().container_id(0_u32).host_id(user.first_id).size(user.ids).build()?;
        linux.set_uid_mappings(Some(vec![ids]));
        linux.set_gid_mappings(Some(vec![ids]));
    }

    let mut spec = SpecBuilder::default()
        .version("1.2.0")
        .root(
            RootBuilder::default()
                .path(input.rootfs)
                .readonly(security.read_only_root_filesystem == Some(true))
                .build()?,
        )
        .process(process(input, &security, caps)?)
        .mounts(mounts::all(input, privileged)?)
        .linux(linux)
        .annotations(annotations(input))
        .build()?;
    // The name belongs to the UTS namespace, which is joined.
    spec.set_hostname(None);
    Ok(spec)
}

/// `/proc`'s parts, and on cgroup v1 the folder that holds the controllers: it is a tmpfs of the container's own, which
/// can only be made read-only after the mounts in it.
fn read_only_paths(input: &Input<'_>, privileged: bool, masked: bool) -> Vec<String> {
    let mut paths: Vec<String> = if masked { READ_ONLY.map(str::to_owned).to_vec() } else { Vec::new() };
    if !privileged && matches!(&input.node.cgroups, CgroupFs::V1(controllers) if !controllers.is_empty()) {
        paths.push("/sys/fs/cgroup".into());
    }
    paths
}

fn process(
    input: &Input<'_>,
    security: &SecurityContext,
    caps: capabilities::Set,
) -> Result<oci_spec::runtime::Process, Error> {
    let declared = env::declared(input)?;
    let user = input.user;
    let held = caps.spec();
    let none = std::collections::HashSet::new();
    let adj = resources::oom_score_adj(input.pod, input.container, input.node.memory)?;
    let mut process = ProcessBuilder::default()
        .terminal(input.container.tty == Some(true))
        .user(UserBuilder::default().uid(user.uid).gid(user.gid).additional_gids(user.groups.clone()).build()?)
        .args(env::arguments(input, &declared)?)
        .env(env::environment(input, &declared).lines())
        .cwd(working_dir(input)?)
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(held.clone())
                .effective(held.clone())
                .permitted(held)
                // Inherited ones would survive execve for any user (CVE-2022-24769).
                .inheritable(none.clone())
                .ambient(none)
                .build()?,
        )
        .oom_score_adj(adj.max(input.node.min_oom_score_adj))
        .build()?;
    // `Some(false)` makes libcontainer load the filter after the privileges to do so are gone.
    process.set_no_new_privileges((security.allow_privilege_escalation == Some(false)).then_some(true));
    process.set_rlimits(None);
    if let Some(hard) = input.node.nofile {
        let limit = hard.min(MAX_NOFILE);
        let typ = PosixRlimitType::RlimitNofile;
        process.set_rlimits(Some(vec![PosixRlimitBuilder::default().typ(typ).soft(limit).hard(limit).build()?]));
    }
    process.set_apparmor_profile(profile::apparmor(input.pod, input.container, &input.node.apparmor)?);
    process.set_selinux_label(profile::selinux(input.pod, input.container, input.node.selinux)?);
    Ok(process)
}

fn working_dir(input: &Input<'_>) -> Result<PathBuf, Error> {
    let own = input.container.working_dir.clone();
    let image = input.image.config().as_ref().and_then(|c| c.working_dir().clone());
    let dir = own.filter(|d| !d.is_empty()).or(image).unwrap_or_default();
    if dir.contains('\0') {
        return Err(Error::Unsupported("workingDir with a NUL byte".into()));
    }
    Ok(Path::new("/").join(dir))
}

fn namespaces(input: &Input<'_>) -> Result<Vec<LinuxNamespace>, Error> {
    let of = |typ: LinuxNamespaceType, path: Option<&PathBuf>| {
        let builder = LinuxNamespaceBuilder::default().typ(typ);
        match path {
            Some(path) => builder.path(path.clone()).build(),
            None => builder.build(),
        }
    };
    let ns = input.namespaces;
    let mut list = vec![of(LinuxNamespaceType::Mount, None)?];
    if let Some(user) = &ns.user {
        list.push(of(LinuxNamespaceType::User, Some(&user.path))?);
    }
    match &ns.pid {
        PidNamespace::Private => list.push(of(LinuxNamespaceType::Pid, None)?),
        PidNamespace::Shared(path) => list.push(of(LinuxNamespaceType::Pid, Some(path))?),
        PidNamespace::Host => {}
    }
    let joined = [
        (LinuxNamespaceType::Network, &ns.net),
        (LinuxNamespaceType::Ipc, &ns.ipc),
        (LinuxNamespaceType::Uts, &ns.uts),
    ];
    for (typ, path) in joined {
        if path.is_some() {
            list.push(of(typ, path.as_ref())?);
        }
    }
    if input.node.cgroups == CgroupFs::V2 {
        list.push(of(LinuxNamespaceType::Cgroup, None)?);
    }
    Ok(list)
}

/// Limits of the container's cgroup. The process limit is the pod's, one level up.
fn limits(input: &Input<'_>, privileged: bool) -> Result<LinuxResources, Error> {
    let node = input.node;
    let settings = node.enforcement.container(input.pod, input.container)?;
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(shares) = settings.cpu_shares {
        cpu = cpu.shares(shares);
    }
    if let (Some(quota), Some(period)) = (settings.cpu_quota, settings.cpu_period) {
        cpu = cpu.quota(quota).period(period);
    }
    let mut builder = LinuxResourcesBuilder::default().cpu(cpu.build()?);
    // What is in the spec is enforced, or the container does not start: so nothing is where nothing can be.
    if input.node.device_rules {
        builder = builder.devices(devices::first(privileged)?);
    }
    let v2 = node.cgroups == CgroupFs::V2;
    if let Some(limit) = settings.memory_limit {
        let mut memory = LinuxMemoryBuilder::default().limit(limit);
        if node.swap_limits && !v2 {
            // Memory and swap together: no swap, as kubelet's default.
            memory = memory.swap(limit);
        }
        builder = builder.memory(memory.build()?);
    }
    if let Some(pages) = settings.hugetlb.filter(|_| node.cgroups.limits_huge_pages()) {
        let limit = |(size, limit): (u64, i64)| {
            LinuxHugepageLimitBuilder::default().page_size(resources::huge_page_name(size)).limit(limit).build()
        };
        builder = builder.hugepage_limits(pages.into_iter().map(limit).collect::<Result<Vec<_>, _>>()?);
    }
    let mut unified = HashMap::new();
    if v2 && !node.single_process_oom_kill {
        // The whole container goes when it runs out of memory, not one process of it (as kubelet).
        unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    if v2 && node.swap_limits {
        unified.insert("memory.swap.max".to_owned(), "0".to_owned());
    }
    if !unified.is_empty() {
        builder = builder.unified(unified);
    }
    Ok(builder.build()?)
}

fn masked_paths(cpus: u32) -> Vec<String> {
    let throttle = (0..cpus).map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
    MASKED.iter().map(|p| (*p).to_owned()).chain(throttle).collect()
}

fn seccomp_profile(input: &Input<'_>, caps: capabilities::Set) -> Result<Option<LinuxSeccomp>, Error> {
    match profile::seccomp_of(input.pod, input.container)? {
        profile::Seccomp::Unconfined => Ok(None),
        profile::Seccomp::Unset if input.node.seccomp_unconfined => Ok(None),
        profile::Seccomp::Unset | profile::Seccomp::RuntimeDefault => Ok(Some(seccomp::runtime_default(caps)?)),
        profile::Seccomp::Localhost(name) => match input.node.seccomp_profiles.get(name) {
            Some(profile) => Ok(Some(profile.clone())),
            None => Err(Error::Profile(format!("the seccomp profile {name:?} was not read"))),
        },
    }
}

/// What a person who looks at the runtime state wants to know; the same keys as the kubelet's labels.
fn annotations(input: &Input<'_>) -> HashMap<String, String> {
    let meta = &input.pod.metadata;
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    HashMap::from([
        ("io.kubernetes.pod.name".to_owned(), text(&meta.name)),
        ("io.kubernetes.pod.namespace".to_owned(), text(&meta.namespace)),
        ("io.kubernetes.pod.uid".to_owned(), text(&meta.uid)),
        ("io.kubernetes.container.name".to_owned(), input.container.name.clone()),
    ])
}
