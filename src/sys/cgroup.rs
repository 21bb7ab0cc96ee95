//! Control groups, v1 (one mount per controller, also hybrid) and v2 (one tree). A group is named by one absolute
//! path that counts from the mount point of each hierarchy, as libcontainer does.
//!
//! What is mounted where is read from `/proc/self/mountinfo`, once. A controller that this machine lacks is said once
//! and then done without.

use crate::pod::resources::{CgroupSettings, HugePages, huge_page_name, weight_linear, weight_quadratic};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Controllers that containers use; libcontainer makes its groups in these too.
const CONTROLLERS: [&str; 13] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "rdma",
];
/// Controllers that groups of a v2 tree hand down.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];
/// How long a group that is still busy is waited for when it is removed.
const REMOVE_PATIENCE: Duration = Duration::from_secs(1);

/// Why a control group could not be worked with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is mounted that this module can work with.
    #[error("no cgroup hierarchy is mounted")]
    NotMounted,
    /// A name that is not an absolute path below the root of the hierarchies, or has `..` in it.
    #[error("{0:?} is not the name of a cgroup")]
    Name(String),
    /// A file operation.
    #[error("cannot {action} {path:?}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// Processes that outlived SIGKILL until the deadline.
    #[error("processes {pids:?} of cgroup {path} are still there")]
    Survivors { path: String, pids: Vec<i32> },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// Which interface the kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy per controller, perhaps with an empty v2 tree beside them (hybrid).
    V1,
    /// One tree.
    V2,
}

/// What a group uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since the group was made, in nanoseconds.
    pub cpu_ns: u64,
    /// Working set in bytes: memory less what could be dropped at once (inactive file pages), as cAdvisor.
    pub memory_bytes: u64,
    /// Number of tasks.
    pub pids: u64,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// Controllers of a v1 hierarchy; empty for v2.
    controllers: Vec<String>,
    mount: PathBuf,
}

/// The machine's control groups.
#[derive(Debug)]
pub struct Cgroups {
    version: Version,
    hierarchies: Vec<Hierarchy>,
    /// What was already complained about.
    warned: Mutex<BTreeSet<String>>,
}

impl Cgroups {
    /// Finds out what is mounted.
    ///
    /// # Errors
    /// [`Error::NotMounted`], or [`Error::Io`] when `/proc` is missing.
    pub fn detect() -> Result<Cgroups, Error> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(io_error("read", path))?;
        Cgroups::from_mountinfo(&text, Path::new("/"))
    }

    /// As [`Cgroups::detect`], from the text of a `mountinfo` whose mount points lie below `root`.
    ///
    /// # Errors
    /// [`Error::NotMounted`].
    pub fn from_mountinfo(text: &str, root: &Path) -> Result<Cgroups, Error> {
        let (v1, v2) = parse_mountinfo(text);
        let (version, mut hierarchies) = match (v1.is_empty(), v2) {
            (false, _) => (Version::V1, v1),
            (true, Some(mount)) => (Version::V2, vec![Hierarchy { controllers: Vec::new(), mount }]),
            (true, None) => return Err(Error::NotMounted),
        };
        for hierarchy in &mut hierarchies {
            let below = hierarchy.mount.strip_prefix("/").unwrap_or(&hierarchy.mount);
            hierarchy.mount = root.join(below);
        }
        Ok(Cgroups { version, hierarchies, warned: Mutex::default() })
    }

    /// Which interface this machine has.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Controller and mount point of each v1 controller; empty on v2.
    pub fn controllers(&self) -> Vec<(String, PathBuf)> {
        let each = |h: &Hierarchy| h.controllers.iter().map(|c| (c.clone(), h.mount.clone())).collect::<Vec<_>>();
        self.hierarchies.iter().flat_map(each).collect()
    }

    /// Whether swap can be limited: asked of the group `path`, which must exist.
    pub fn limits_swap(&self, path: &str) -> bool {
        let file = match self.version {
            Version::V1 => "memory.memsw.limit_in_bytes",
            Version::V2 => "memory.swap.max",
        };
        self.dir("memory", path).is_ok_and(|d| d.is_some_and(|d| d.join(file).exists()))
    }

    /// Makes a group, its ancestors included, and gives it `settings`. Settings that already hold are not written:
    /// this may be called again and again. The group can have groups below it, but on v2 no processes of its own.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`]. A controller that is missing is logged once, and is no error.
    pub fn ensure(&self, path: &str, settings: &CgroupSettings) -> Result<(), Error> {
        let name = relative(path)?;
        for hierarchy in &self.hierarchies {
            match self.version {
                Version::V1 => make_v1(hierarchy, name)?,
                Version::V2 => self.make_v2(&hierarchy.mount, name)?,
            }
        }
        self.apply(path, settings, false)
    }

    /// Whether a group exists in the hierarchy of the cpu controller.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.dir("cpu", path).is_ok_and(|dir| dir.is_some_and(|dir| dir.is_dir()))
    }

    /// Changes the settings of a group that exists: a pod's, or with `container` that of one of its containers, whose CPU
    /// weight follows another formula (the container runtimes').
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`]. A controller that is missing is logged once, and is no error.
    pub fn update(&self, path: &str, settings: &CgroupSettings, container: bool) -> Result<(), Error> {
        self.apply(path, settings, container)
    }

    fn apply(&self, path: &str, settings: &CgroupSettings, container: bool) -> Result<(), Error> {
        let weight = if container { weight_quadratic } else { weight_linear };
        let or_max = |v: i64| if v < 0 { "max".to_owned() } else { v.to_string() };
        match self.version {
            Version::V1 => {
                if let Some(shares) = settings.cpu_shares {
                    self.write("cpu", path, "cpu.shares", &shares.to_string())?;
                }
                if let Some(period) = settings.cpu_period {
                    self.write("cpu", path, "cpu.cfs_period_us", &period.to_string())?;
                }
                if let Some(quota) = settings.cpu_quota {
                    self.write("cpu", path, "cpu.cfs_quota_us", &quota.max(-1).to_string())?;
                }
                if let Some(limit) = settings.memory_limit {
                    self.limit_memory_v1(path, page_down(limit), container)?;
                }
            }
            Version::V2 => {
                if let Some(shares) = settings.cpu_shares {
                    self.write("cpu", path, "cpu.weight", &weight(shares).to_string())?;
                }
                if settings.cpu_quota.is_some() || settings.cpu_period.is_some() {
                    let quota = or_max(settings.cpu_quota.unwrap_or(-1));
                    let period = settings.cpu_period.unwrap_or(crate::pod::resources::CFS_PERIOD_US);
                    self.write("cpu", path, "cpu.max", &format!("{quota} {period}"))?;
                }
                if let Some(limit) = settings.memory_limit {
                    self.write(
                        "memory",
                        path,
                        "memory.max",
                        &page_down(limit).map_or("max".into(), |l| l.to_string()),
                    )?;
                }
            }
        }
        if let Some(limit) = settings.pids_limit {
            self.write("pids", path, "pids.max", &or_max(limit))?;
        }
        match &settings.hugetlb {
            Some(pages) => self.limit_huge_pages(path, pages),
            None => Ok(()),
        }
    }

    /// Where memory and swap are limited together, that limit may at no time be below the one of memory alone. A container
    /// with a memory limit gets no swap.
    fn limit_memory_v1(&self, path: &str, limit: Option<u64>, container: bool) -> Result<(), Error> {
        const BOTH: &str = "memory.memsw.limit_in_bytes";
        let text = limit.map_or("-1".into(), |l| l.to_string());
        let both = self.dir("memory", path)?.and_then(|dir| fs::read_to_string(dir.join(BOTH)).ok());
        // A limit that nobody set is a huge number.
        let both = both.map(|text| number(&text)).filter(|n| container || *n < 1 << 62);
        match both {
            Some(present) if limit.is_none_or(|limit| limit > present) => {
                self.write("memory", path, BOTH, &text)?;
                self.write("memory", path, "memory.limit_in_bytes", &text)
            }
            Some(_) => {
                self.write("memory", path, "memory.limit_in_bytes", &text)?;
                self.write("memory", path, BOTH, &text)
            }
            None => self.write("memory", path, "memory.limit_in_bytes", &text),
        }
    }

    /// Every size that the group knows gets its limit, or none at all.
    fn limit_huge_pages(&self, path: &str, pages: &HugePages) -> Result<(), Error> {
        let Some(dir) = self.dir("hugetlb", path)? else { return Ok(()) };
        let suffix = match self.version {
            Version::V1 => ".limit_in_bytes",
            Version::V2 => ".max",
        };
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) => return Err(io_error("list", &dir)(e)),
        };
        for entry in entries {
            let name = entry.map_err(io_error("list", &dir))?.file_name();
            let Some(file) = name.to_str() else { continue };
            let size = file.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(suffix));
            let Some(size) = size.filter(|size| !size.contains('.')) else { continue };
            let limit = pages.iter().find(|(bytes, _)| huge_page_name(**bytes) == size).map_or(0, |(_, limit)| *limit);
            let text = limit.max(0).to_string();
            self.write("hugetlb", path, file, &text)?;
            // Also what is set aside and not touched yet (kernels from 5.7).
            let reserved = format!("hugetlb.{size}.rsvd{suffix}");
            if dir.join(&reserved).exists() {
                self.write("hugetlb", path, &reserved, &text)?;
            }
        }
        Ok(())
    }

    /// Bytes of memory a group uses now, what could be dropped at once included; 0 when it cannot be told.
    #[must_use]
    pub fn memory_in_use(&self, path: &str) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        };
        let dir = self.dir("memory", path).ok().flatten();
        dir.and_then(|dir| fs::read_to_string(dir.join(file)).ok()).map_or(0, |text| number(&text))
    }

    /// A file of a group, to be looked at; `None` when the group, its controller or the file is not there, or cannot be
    /// read. The group `/` is the machine.
    #[must_use]
    pub fn read(&self, controller: &str, path: &str, file: &str) -> Option<String> {
        let dir = match path {
            "/" => self.root(controller)?.to_owned(),
            path => self.dir(controller, path).ok()??,
        };
        fs::read_to_string(dir.join(file)).ok()
    }

    /// Where the hierarchy of a controller is mounted.
    fn root(&self, controller: &str) -> Option<&Path> {
        let found = match self.version {
            Version::V1 => self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == controller)),
            Version::V2 => self.hierarchies.first(),
        };
        found.map(|hierarchy| hierarchy.mount.as_path())
    }

    /// Writes a setting unless it already holds.
    fn write(&self, controller: &str, path: &str, file: &str, value: &str) -> Result<(), Error> {
        let Some(dir) = self.dir(controller, path)? else {
            self.warn_once(controller, &format!("cgroup controller {controller} is not available: {file} is not set"));
            return Ok(());
        };
        let target = dir.join(file);
        match fs::read_to_string(&target) {
            Ok(present) if present.trim_end() == value => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.warn_once(file, &format!("this kernel has no {file}: it is not set"));
                return Ok(());
            }
            Err(e) => return Err(io_error("read", &target)(e)),
        }
        fs::write(&target, value).map_err(io_error("write", &target))
    }

    fn warn_once(&self, key: &str, message: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if warned.insert(key.to_owned()) {
            tracing::warn!("{message}");
        }
    }

    /// The folder of group `path` in the hierarchy of `controller`.
    fn dir(&self, controller: &str, path: &str) -> Result<Option<PathBuf>, Error> {
        let name = relative(path)?;
        Ok(self.root(controller).map(|mount| mount.join(name)))
    }

    fn dirs(&self, path: &str) -> Result<Vec<PathBuf>, Error> {
        let name = relative(path)?;
        Ok(self.hierarchies.iter().map(|h| h.mount.join(name)).collect())
    }

    /// Makes a v2 group with all controllers on its own children, its ancestors first.
    fn make_v2(&self, mount: &Path, name: &Path) -> Result<(), Error> {
        let mut dir = mount.to_owned();
        self.hand_down(&dir)?;
        for part in name.components() {
            dir.push(part);
            make(&dir)?;
            self.hand_down(&dir)?;
        }
        Ok(())
    }

    /// Enables the controllers a group has for its children.
    fn hand_down(&self, dir: &Path) -> Result<(), Error> {
        let read = |file: &str| {
            let path = dir.join(file);
            fs::read_to_string(&path).map_err(io_error("read", &path))
        };
        let (has, given) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
        let wanted = missing(&has, &given);
        if wanted.is_empty() {
            return Ok(());
        }
        let target = dir.join("cgroup.subtree_control");
        if fs::write(&target, wanted.join(" ")).is_ok() {
            return Ok(());
        }
        // All or none is taken at a time: find out which one it is.
        for one in wanted {
            if let Err(e) = fs::write(&target, &one) {
                self.warn_once(&one, &format!("cannot write {one} to {}: {e}", target.display()));
            }
        }
        Ok(())
    }

    /// Processes of a group and all groups below it. A group that does not exist has none.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`].
    pub fn procs(&self, path: &str) -> Result<Vec<i32>, Error> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs(path)? {
            walk(&dir, &mut |group| {
                let file = group.join("cgroup.procs");
                match fs::read_to_string(&file) {
                    Ok(text) => pids.extend(parse_procs(&text)),
                    // ENODEV: the group went away between open and read.
                    Err(e) if gone(&e) => {}
                    Err(e) => return Err(io_error("read", &file)(e)),
                }
                Ok(())
            })?;
        }
        Ok(pids.into_iter().collect())
    }

    /// Kills all processes of a group and the groups below it with SIGKILL and waits until they are gone.
    ///
    /// # Errors
    /// [`Error::Survivors`] at the deadline; [`Error::Name`], [`Error::Io`].
    pub fn kill_all(&self, path: &str, deadline: Instant) -> Result<(), Error> {
        let mut pause = Duration::from_millis(1);
        loop {
            let pids = self.procs(path)?;
            if pids.is_empty() {
                return Ok(());
            }
            let at_once = self.version == Version::V2
                && self.dirs(path)?.iter().all(|dir| fs::write(dir.join("cgroup.kill"), "1").is_ok());
            if !at_once {
                let own = i32::try_from(std::process::id()).unwrap_or(0);
                // 0 stands for a process of another PID namespace, which cannot be named.
                for pid in pids.iter().filter(|pid| **pid > 1 && **pid != own) {
                    if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                        // It may be gone by now, which is what is wanted.
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::Survivors { path: path.to_owned(), pids });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes a group and all groups below it in every hierarchy, deepest first; one that still holds processes that
    /// are on their way out is waited for, up to a second. A group that does not exist is removed.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`].
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        let mut result = Ok(());
        for dir in self.dirs(path)? {
            let mut groups = Vec::new();
            walk(&dir, &mut |group| {
                groups.push(group.to_owned());
                Ok(())
            })?;
            // A group comes before the groups below it.
            for group in groups.iter().rev() {
                if let Err(e) = remove_one(group, deadline) {
                    result = result.and(Err(e));
                }
            }
        }
        result
    }

    /// What a group and the groups below it use now.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`] when the group does not exist. What a missing controller would say is 0.
    pub fn usage(&self, path: &str) -> Result<Usage, Error> {
        let read = |controller: &str, file: &str| -> Result<String, Error> {
            let Some(dir) = self.dir(controller, path)? else { return Ok(String::new()) };
            let file = dir.join(file);
            match fs::read_to_string(&file) {
                Err(e) if e.kind() == ErrorKind::NotFound && dir.exists() => Ok(String::new()),
                other => other.map_err(io_error("read", &file)),
            }
        };
        let (cpu_ns, memory, stat, inactive) = match self.version {
            Version::V1 => (
                number(&read("cpuacct", "cpuacct.usage")?),
                read("memory", "memory.usage_in_bytes")?,
                read("memory", "memory.stat")?,
                "total_inactive_file",
            ),
            Version::V2 => (
                keyed(&read("cpu", "cpu.stat")?, "usage_usec").saturating_mul(1000),
                read("memory", "memory.current")?,
                read("memory", "memory.stat")?,
                "inactive_file",
            ),
        };
        Ok(Usage {
            cpu_ns,
            memory_bytes: number(&memory).saturating_sub(keyed(&stat, inactive)),
            pids: number(&read("pids", "pids.current")?),
        })
    }

    /// How many processes of a group the kernel killed for lack of memory. A group that does not exist: 0.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`].
    pub fn oom_kills(&self, path: &str) -> Result<u64, Error> {
        let Some(dir) = self.dir("memory", path)? else { return Ok(0) };
        let file = match self.version {
            Version::V1 => dir.join("memory.oom_control"),
            Version::V2 => dir.join("memory.events"),
        };
        match fs::read_to_string(&file) {
            Ok(text) => Ok(keyed(&text, "oom_kill")),
            Err(e) if gone(&e) => Ok(0),
            Err(e) => Err(io_error("read", &file)(e)),
        }
    }

    /// Moves a process into a group, in every hierarchy in which the group exists. On v1 each write can wait for an
    /// RCU grace period (milliseconds): not for the path on which a container starts.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`]; also when the group exists nowhere.
    pub fn add_process(&self, path: &str, pid: i32) -> Result<(), Error> {
        let dirs = self.dirs(path)?;
        let mut missing = None;
        let mut added = false;
        for dir in dirs {
            let file = dir.join("cgroup.procs");
            match fs::write(&file, pid.to_string()) {
                Ok(()) => added = true,
                Err(e) if e.kind() == ErrorKind::NotFound => missing = Some(io_error("write", &file)(e)),
                Err(e) => return Err(io_error("write", &file)(e)),
            }
        }
        match missing {
            Some(e) if !added => Err(e),
            _ => Ok(()),
        }
    }
}

/// The name of a group without the leading `/`; never empty, never `..`: the root is not for us to change.
fn relative(path: &str) -> Result<&Path, Error> {
    let bad = || Error::Name(path.to_owned());
    let name = Path::new(path.strip_prefix('/').ok_or_else(bad)?);
    let normal = name.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if name.as_os_str().is_empty() || !normal || path.contains('\0') { Err(bad()) } else { Ok(name) }
}

/// v1 hierarchies and the v2 mount of a `mountinfo`; of several mounts of one hierarchy the first counts.
fn parse_mountinfo(text: &str) -> (Vec<Hierarchy>, Option<PathBuf>) {
    let mut v1: Vec<Hierarchy> = Vec::new();
    let mut v2 = None;
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount) = before.split(' ').nth(4).map(unescape) else { continue };
        let mut fields = after.split(' ');
        let (kind, options) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        match kind {
            "cgroup2" => v2 = v2.or(Some(mount)),
            "cgroup" => {
                let of = |o: &&str| CONTROLLERS.contains(o);
                let controllers: Vec<String> = options.split(',').filter(of).map(str::to_owned).collect();
                let known = v1.iter().any(|h| h.controllers == controllers);
                if !controllers.is_empty() && !known {
                    v1.push(Hierarchy { controllers, mount });
                }
            }
            _ => {}
        }
    }
    (v1, v2)
}

/// `\040` and its like, as the kernel writes blanks in paths.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).filter(|d| bytes[i] == b'\\' && d.iter().all(|b| (b'0'..b'8').contains(b)));
        let code = octal.map(|d| d.iter().fold(0_u32, |n, b| n * 8 + u32::from(b - b'0')));
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// `+name` for each controller that a group has and does not yet hand down.
fn missing(has: &str, given: &str) -> Vec<String> {
    let contains = |list: &str, name: &str| list.split_whitespace().any(|c| c == name);
    let wanted = V2_CONTROLLERS.iter().filter(|c| contains(has, c) && !contains(given, c));
    wanted.map(|c| format!("+{c}")).collect()
}

fn parse_procs(text: &str) -> impl Iterator<Item = i32> + '_ {
    text.lines().filter_map(|line| line.trim().parse().ok())
}

/// The number in a file of one value; 0 for none.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// The number after a key in a file of `key value` lines; 0 for none.
fn keyed(text: &str, key: &str) -> u64 {
    let value = |line: &str| line.split_once(' ').filter(|(k, _)| *k == key).map(|(_, v)| number(v));
    text.lines().find_map(value).unwrap_or(0)
}

/// Memory limits hold in whole pages: what is written must be what is read back, or it would be written again and
/// again. `None` = unlimited.
fn page_down(limit: i64) -> Option<u64> {
    let page = rustix::param::page_size() as u64;
    u64::try_from(limit).ok().map(|l| l / page * page)
}

fn gone(e: &io::Error) -> bool {
    e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn make(dir: &Path) -> Result<bool, Error> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(io_error("make", dir)(e)),
    }
}

/// Makes a group in one v1 hierarchy; in a hierarchy with cpuset, CPUs and memory nodes are copied down, as a group
/// without them cannot hold a process.
fn make_v1(hierarchy: &Hierarchy, name: &Path) -> Result<(), Error> {
    let cpuset = hierarchy.controllers.iter().any(|c| c == "cpuset");
    let mut dir = hierarchy.mount.join(name);
    if dir.is_dir() && !cpuset {
        return Ok(());
    }
    dir.clone_from(&hierarchy.mount);
    for part in name.components() {
        let parent = dir.clone();
        dir.push(part);
        make(&dir)?;
        if cpuset {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                copy_down(&parent, &dir, file)?;
            }
        }
    }
    Ok(())
}

fn copy_down(parent: &Path, dir: &Path, file: &str) -> Result<(), Error> {
    let (from, to) = (parent.join(file), dir.join(file));
    let present = fs::read_to_string(&to).map_err(io_error("read", &to))?;
    if !present.trim().is_empty() {
        return Ok(());
    }
    let value = fs::read_to_string(&from).map_err(io_error("read", &from))?;
    fs::write(&to, value.trim()).map_err(io_error("write", &to))
}

/// Calls `visit` for a group and all below it, a parent before its children.
fn walk(top: &Path, visit: &mut dyn FnMut(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let mut queue = vec![top.to_owned()];
    while let Some(dir) = queue.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if gone(&e) => continue,
            Err(e) => return Err(io_error("list", &dir)(e)),
        };
        visit(&dir)?;
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) if gone(&e) => break,
                Err(e) => return Err(io_error("list", &dir)(e)),
            };
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                queue.push(entry.path());
            }
        }
    }
    Ok(())
}

fn remove_one(dir: &Path, deadline: Instant) -> Result<(), Error> {
    let mut pause = Duration::from_millis(1);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if gone(&e) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(e) => return Err(io_error("remove", dir)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /elsewhere rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    /// A folder that poses as cgroup mounts, gone with the value.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str, files: &[(&str, &str)]) -> Fake {
            let root = std::env::temp_dir().join(format!("coracle-cgroup-{name}-{}", std::process::id()));
            for (path, content) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("parent")).expect("folder");
                fs::write(path, content).expect("file");
            }
            Fake(root)
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.join(path)).expect("file")
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn hybrid_is_v1() {
        let cgroups = Cgroups::from_mountinfo(HYBRID, Path::new("/")).expect("mounted");
        assert_eq!(cgroups.version(), Version::V1);
        let all: Vec<String> = cgroups.controllers().iter().map(|(c, m)| format!("{c} {}", m.display())).collect();
        assert_eq!(
            all,
            [
                "cpu /sys/fs/cgroup/cpu,cpuacct",
                "cpuacct /sys/fs/cgroup/cpu,cpuacct",
                "cpuset /sys/fs/cgroup/cpuset",
                "memory /sys/fs/cgroup/memory",
                "pids /sys/fs/cgroup/pids"
            ]
        );
        assert_eq!(Cgroups::from_mountinfo(UNIFIED, Path::new("/")).expect("mounted").version(), Version::V2);
        assert!(matches!(Cgroups::from_mountinfo("garbage", Path::new("/")), Err(Error::NotMounted)));
    }

    #[test]
    fn names_stay_below_the_root() {
        for bad in ["", "/", "kubepods", "/..", "/a/../..", "//", "/./", "/a\0"] {
            assert!(matches!(relative(bad), Err(Error::Name(_))), "{bad:?}");
        }
        assert_eq!(relative("/kubepods/podx").expect("name"), Path::new("kubepods/podx"));
    }

    #[test]
    fn blanks_in_mount_points() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape("/a\\04"), Path::new("/a\\04"));
        assert_eq!(unescape("/a\\777"), Path::new("/a\\777"));
    }

    #[test]
    fn v1_settings() {
        let base = "sys/fs/cgroup";
        let file = |path: &str| format!("{base}/{path}");
        let fake = Fake::new(
            "v1",
            &[
                (&file("cpu,cpuacct/k/p/cpu.shares"), "1024\n"),
                (&file("cpu,cpuacct/k/p/cpu.cfs_quota_us"), "-1\n"),
                (&file("cpu,cpuacct/k/p/cpu.cfs_period_us"), "100000\n"),
                (&file("cpuset/cpuset.cpus"), "0-1\n"),
                (&file("cpuset/cpuset.mems"), "0\n"),
                (&file("cpuset/k/cpuset.cpus"), "\n"),
                (&file("cpuset/k/cpuset.mems"), "\n"),
                (&file("cpuset/k/p/cpuset.cpus"), "1\n"),
                (&file("cpuset/k/p/cpuset.mems"), "\n"),
                (&file("memory/k/p/memory.limit_in_bytes"), "9223372036854771712\n"),
                (&file("memory/k/p/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
                (&file("memory/k/p/memory.usage_in_bytes"), "1000\n"),
                (&file("memory/k/p/memory.stat"), "inactive_file 1\ntotal_inactive_file 400\n"),
                (&file("cpu,cpuacct/k/p/cpuacct.usage"), "77\n"),
                (&file("cpu,cpuacct/k/p/cgroup.procs"), "12\n"),
                (&file("cpu,cpuacct/k/p/c/cgroup.procs"), "7\n12\n"),
                (&file("memory/k/p/cgroup.procs"), "13\n"),
                (&file("cpuset/k/p/cgroup.procs"), ""),
                (&file("pids/cgroup.procs"), ""),
            ],
        );
        let cgroups = Cgroups::from_mountinfo(HYBRID, &fake.0).expect("mounted");
        let settings = CgroupSettings {
            cpu_shares: Some(512),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_limit: Some(1 << 20),
            pids_limit: Some(9),
            hugetlb: Some(HugePages::new()),
        };
        // No pids.max in this folder: done without.
        cgroups.ensure("/k/p", &settings).expect("settings");
        assert_eq!(fake.read(&file("cpu,cpuacct/k/p/cpu.shares")), "512");
        assert_eq!(fake.read(&file("cpu,cpuacct/k/p/cpu.cfs_quota_us")), "50000");
        // Was right already, and so was not written (or the line end would be gone).
        assert_eq!(fake.read(&file("cpu,cpuacct/k/p/cpu.cfs_period_us")), "100000\n");
        assert_eq!(fake.read(&file("cpuset/k/cpuset.cpus")), "0-1");
        assert_eq!(fake.read(&file("cpuset/k/p/cpuset.cpus")), "1\n");
        assert_eq!(fake.read(&file("cpuset/k/p/cpuset.mems")), "0");
        assert_eq!(fake.read(&file("memory/k/p/memory.limit_in_bytes")), "1048576");
        assert!(fake.0.join(file("pids/k/p")).is_dir());
        assert_eq!(cgroups.oom_kills("/k/p").expect("count"), 3);
        assert_eq!(cgroups.oom_kills("/none").expect("count"), 0);
        assert_eq!(cgroups.usage("/k/p").expect("usage"), Usage { cpu_ns: 77, memory_bytes: 600, pids: 0 });
        assert!(matches!(cgroups.usage("/none"), Err(Error::Io { .. })));
        assert_eq!(cgroups.procs("/k/p").expect("pids"), [7, 12, 13]);
        assert_eq!(cgroups.procs("/none").expect("pids"), [0; 0]);
        assert!(!cgroups.limits_swap("/k/p"));
    }

    /// The kernel refuses a limit of memory above the one of memory and swap: the order of the two writes is what counts.
    /// Where the limit of memory alone cannot be written, it shows whether the other one was written before.
    #[test]
    fn memory_and_swap_are_limited_in_the_order_the_kernel_takes() {
        let group = "sys/fs/cgroup/memory/k/p";
        let of = |name: &str, present: &str, blocked: bool| {
            let both = format!("{group}/memory.memsw.limit_in_bytes");
            let alone = format!("{group}/memory.limit_in_bytes");
            let fake = Fake::new(name, &[(&both, present), (&alone, present)]);
            if blocked {
                fs::remove_file(fake.0.join(&alone)).expect("file");
                fs::create_dir(fake.0.join(&alone)).expect("folder");
            }
            (Cgroups::from_mountinfo(HYBRID, &fake.0).expect("mounted"), fake)
        };
        let limit = |bytes: i64| CgroupSettings { memory_limit: Some(bytes), ..CgroupSettings::default() };
        let both = |fake: &Fake| fake.read(&format!("{group}/memory.memsw.limit_in_bytes"));
        for (name, present, wanted, raised) in [
            ("memsw-up", "8192\n", 16384, "16384"),
            ("memsw-off", "8192\n", -1, "-1"),
            // Lowering begins with memory alone, and ends there.
            ("memsw-down", "8192\n", 4096, "8192\n"),
        ] {
            let (cgroups, fake) = of(name, present, true);
            cgroups.update("/k/p", &limit(wanted), true).expect_err("the limit of memory alone cannot be written");
            assert_eq!(both(&fake), raised, "{name}");
        }
        let alone = |fake: &Fake| fake.read(&format!("{group}/memory.limit_in_bytes"));
        for (name, present, container, expected) in [
            ("memsw-container", "9223372036854771712\n", true, ("4096", "4096")),
            // A pod's group has no limit for both unless somebody gave it one.
            ("memsw-pod", "9223372036854771712\n", false, ("4096", "9223372036854771712\n")),
            ("memsw-limited-pod", "8192\n", false, ("4096", "4096")),
        ] {
            let (cgroups, fake) = of(name, present, false);
            cgroups.update("/k/p", &limit(4096), container).expect("limits");
            assert_eq!((alone(&fake).as_str(), both(&fake).as_str()), expected, "{name}");
        }
    }

    #[test]
    fn v2_settings() {
        let fake = Fake::new(
            "v2",
            &[
                ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids misc\n"),
                ("sys/fs/cgroup/cgroup.subtree_control", "cpu\n"),
                ("sys/fs/cgroup/k/cgroup.controllers", "cpu memory pids\n"),
                ("sys/fs/cgroup/k/cgroup.subtree_control", "cpu memory pids\n"),
                ("sys/fs/cgroup/k/cpu.weight", "100\n"),
                ("sys/fs/cgroup/k/cpu.max", "max 100000\n"),
                ("sys/fs/cgroup/k/memory.max", "max\n"),
                ("sys/fs/cgroup/k/pids.max", "max\n"),
                ("sys/fs/cgroup/k/memory.events", "low 0\noom 2\noom_kill 1\noom_group_kill 1\n"),
                ("sys/fs/cgroup/k/cpu.stat", "usage_usec 5\nuser_usec 3\n"),
                ("sys/fs/cgroup/k/memory.swap.max", "max\n"),
                ("sys/fs/cgroup/k/hugetlb.2MB.max", "max\n"),
                ("sys/fs/cgroup/k/hugetlb.2MB.rsvd.max", "max\n"),
                ("sys/fs/cgroup/k/hugetlb.1GB.max", "max\n"),
            ],
        );
        let cgroups = Cgroups::from_mountinfo(UNIFIED, &fake.0).expect("mounted");
        let settings = CgroupSettings {
            cpu_shares: Some(1024),
            cpu_quota: Some(-1),
            cpu_period: Some(50_000),
            memory_limit: Some(4097),
            pids_limit: Some(-1),
            hugetlb: Some([(2 << 20, 8 << 20)].into()),
        };
        cgroups.ensure("/k", &settings).expect("settings");
        assert_eq!(fake.read("sys/fs/cgroup/cgroup.subtree_control"), "+memory +pids");
        assert_eq!(fake.read("sys/fs/cgroup/k/cgroup.subtree_control"), "cpu memory pids\n");
        assert_eq!(fake.read("sys/fs/cgroup/k/cpu.weight"), "39");
        assert_eq!(fake.read("sys/fs/cgroup/k/cpu.max"), "max 50000");
        assert_eq!(fake.read("sys/fs/cgroup/k/memory.max"), "4096");
        assert_eq!(fake.read("sys/fs/cgroup/k/pids.max"), "max\n");
        assert_eq!(fake.read("sys/fs/cgroup/k/hugetlb.2MB.max"), "8388608");
        assert_eq!(fake.read("sys/fs/cgroup/k/hugetlb.2MB.rsvd.max"), "8388608");
        assert_eq!(fake.read("sys/fs/cgroup/k/hugetlb.1GB.max"), "0");
        // A container's weight follows the runtimes' formula.
        let shares = CgroupSettings { cpu_shares: Some(1024), ..CgroupSettings::default() };
        cgroups.update("/k", &shares, true).expect("settings");
        assert_eq!(fake.read("sys/fs/cgroup/k/cpu.weight"), "100");
        assert_eq!(cgroups.oom_kills("/k").expect("count"), 1);
        assert_eq!(cgroups.usage("/k").expect("usage").cpu_ns, 5000);
        assert!(cgroups.limits_swap("/k"));
    }

    #[test]
    fn removal_goes_bottom_up_and_twice() {
        let fake = Fake::new("rm", &[("sys/fs/cgroup/other/keep", "")]);
        fs::create_dir_all(fake.0.join("sys/fs/cgroup/k/p/c")).expect("groups");
        fs::create_dir_all(fake.0.join("sys/fs/cgroup/k/q")).expect("groups");
        let cgroups = Cgroups::from_mountinfo(UNIFIED, &fake.0).expect("mounted");
        cgroups.remove("/k").expect("removed");
        cgroups.remove("/k").expect("removed again");
        assert!(!fake.0.join("sys/fs/cgroup/k").exists());
        assert!(fake.0.join("sys/fs/cgroup/other/keep").exists());
        // A group that cannot be removed is an error, not a silent leftover.
        assert!(matches!(cgroups.remove("/other"), Err(Error::Io { action: "remove", .. })));
        cgroups.kill_all("/none", Instant::now()).expect("nobody to kill");
    }

    proptest! {
        #[test]
        fn mountinfo_never_panics(text in "[a-z0-9/ \\\\,:=\n-]{0,200}") {
            let _ = parse_mountinfo(&text);
        }

        #[test]
        fn numbers_never_panic(text in "\\PC*", key in "[a-z]{0,3}") {
            let _ = (number(&text), keyed(&text, &key), parse_procs(&text).count(), unescape(&text));
        }
    }
}
