//! Container Device Interface: files of device vendors that say what of a container must be changed so that it can use
//! a device. Pods ask for devices by name, in annotations.

use super::Error as BundleError;
use super::devices::{self, Kind, Number, Rule};
use oci_spec::OciSpecError;
use oci_spec::runtime::{Hook, LinuxDeviceBuilder, LinuxDeviceType, MountBuilder, Spec as RuntimeSpec};
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

/// Prefix of the annotations that ask for devices.
pub const ANNOTATION: &str = "cdi.k8s.io/";
/// Largest file, in bytes.
pub const MAX_BYTES: u64 = 1024 * 1024;
/// Versions of the format.
const VERSIONS: [&str; 11] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "0.8.1", "1.0.0", "1.1.0"];
/// How long a hook that names no time may take, in seconds: less than the start of a container may.
const HOOK_SECONDS: i64 = 30;

/// Why a file or a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not of this form.
    #[error("it is not a CDI specification: {0}")]
    Form(String),
    /// A field.
    #[error("{field}: {reason}")]
    Field { field: String, reason: String },
    /// An annotation that names no devices.
    #[error("annotation {key}: {name:?} is not a CDI device name (vendor.com/class=name)")]
    Name { key: String, name: String },
    /// A device of no file.
    #[error("unresolvable CDI device {name}: no such device in {dirs}{problems}")]
    Unknown { name: String, dirs: String, problems: String },
    /// A device of two files of one folder.
    #[error("unresolvable CDI device {name}: both {} and {} define it", .one.display(), .other.display())]
    Conflict { name: String, one: PathBuf, other: PathBuf },
    /// What it asks for cannot be done.
    #[error("CDI device {name}: {reason}")]
    Device { name: String, reason: String },
    /// The runtime spec could not be put together.
    #[error("a CDI device cannot be given")]
    Spec(#[from] OciSpecError),
}

/// The content of a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    cdi_version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

/// What is changed of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<Node>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    hooks: Vec<NamedHook>,
    #[serde(default)]
    additional_gids: Vec<u32>,
    // Known, and refused for what asks for it: see `Edits::check`.
    #[serde(default)]
    net_devices: Vec<serde_json::Value>,
    intel_rdt: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NamedHook {
    hook_name: String,
    path: PathBuf,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    timeout: Option<i64>,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `*.json`
    Json,
    /// `*.yaml`
    Yaml,
}

impl Format {
    /// By the end of its name; `None`: not a file of ours.
    #[must_use]
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()? {
            "json" => Some(Format::Json),
            "yaml" => Some(Format::Yaml),
            _ => None,
        }
    }
}

/// Reads a file.
///
/// # Errors
/// [`Error::Form`], [`Error::Field`].
pub fn parse(text: &str, format: Format) -> Result<File, Error> {
    let file: File = match format {
        Format::Json => serde_json::from_str(text).map_err(|e| Error::Form(e.to_string()))?,
        Format::Yaml => {
            let options = serde_yaml::options! {
                budget: serde_yaml::budget! { max_depth: 32, max_events: 100_000, max_nodes: 50_000, max_aliases: 1_000 },
                with_snippet: false,
            };
            serde_yaml::from_str_with_options(text, options)
                .map_err(|e| Error::Form(e.to_string().lines().next().unwrap_or_default().to_owned()))?
        }
    };
    let field = |field: &str, reason: String| Err(Error::Field { field: field.to_owned(), reason });
    if !VERSIONS.contains(&file.cdi_version.as_str()) {
        return field("cdiVersion", format!("{:?} is not one of {}", file.cdi_version, VERSIONS.join(", ")));
    }
    match file.kind.split_once('/') {
        Some((vendor, class)) if is_name(vendor, "_-.") && is_name(class, "_-.") => {}
        _ => return field("kind", format!("{:?} is not of the form vendor.com/class", file.kind)),
    }
    if file.devices.is_empty() {
        return field("devices", "is empty".into());
    }
    let mut names = HashSet::new();
    for (i, device) in file.devices.iter().enumerate() {
        if !is_device_name(&device.name) {
            return field(&format!("devices[{i}].name"), format!("{:?} is not a device name", device.name));
        }
        if !names.insert(&device.name) {
            return field(&format!("devices[{i}].name"), format!("{:?} is there twice", device.name));
        }
        device.container_edits.check(&format!("devices[{i}].containerEdits"))?;
    }
    file.container_edits.check("containerEdits")?;
    Ok(file)
}

/// Letters and digits, begun by a letter, and in between `inner`.
fn is_name(text: &str, inner: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && is_plain(text, inner)
}

fn is_device_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_plain(text, "_-.:")
}

fn is_plain(text: &str, inner: &str) -> bool {
    text.len() <= 255
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || inner.contains(c))
}

/// Absolute, without `..`, and not the root.
fn is_plain_path(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    path.is_absolute()
        && !text.contains(&0)
        && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
        && path.components().count() > 1
}

impl Edits {
    fn check(&self, at: &str) -> Result<(), Error> {
        let fail = |field: String, reason: &str| {
            Err(Error::Field { field: format!("{at}.{field}"), reason: reason.to_owned() })
        };
        for (i, entry) in self.env.iter().enumerate() {
            if entry.split_once('=').is_none_or(|(name, _)| name.is_empty()) || entry.contains('\0') {
                return fail(format!("env[{i}]"), "must be NAME=value");
            }
        }
        for (i, node) in self.device_nodes.iter().enumerate() {
            let at = |name: &str| format!("deviceNodes[{i}].{name}");
            if !is_plain_path(&node.path) || !node.path.starts_with("/dev") || node.path == Path::new("/dev") {
                return fail(at("path"), "must be a path below /dev without '..'");
            }
            if node.host_path.as_deref().is_some_and(|path| !is_plain_path(path)) {
                return fail(at("hostPath"), "must be an absolute path without '..'");
            }
            if !matches!(node.kind.as_deref(), None | Some("" | "b" | "c" | "u")) {
                return fail(at("type"), "must be b, c or u");
            }
            if [node.major, node.minor].into_iter().flatten().any(|n| u32::try_from(n).is_err()) {
                return fail(at("major"), "and minor must be numbers of a device");
            }
            if node.permissions.as_deref().is_some_and(|p| !p.is_empty() && devices::access(p).is_none()) {
                return fail(at("permissions"), "must be letters of rwm");
            }
            if node.file_mode.is_some_and(|mode| mode > 0o7777) {
                return fail(at("fileMode"), "must be 0 to 07777");
            }
        }
        for (i, mount) in self.mounts.iter().enumerate() {
            let own = ["/dev", "/proc", "/sys"].iter().any(|own| mount.container_path == Path::new(own));
            if !is_plain_path(&mount.container_path) || own {
                return fail(
                    format!("mounts[{i}].containerPath"),
                    "must be a path below / without '..', and not /dev, /proc or /sys",
                );
            }
            if mount.host_path.as_os_str().is_empty() {
                return fail(format!("mounts[{i}].hostPath"), "is empty");
            }
        }
        for (i, hook) in self.hooks.iter().enumerate() {
            let at = |name: &str| format!("hooks[{i}].{name}");
            if !is_plain_path(&hook.path) {
                return fail(at("path"), "must be an absolute path without '..'");
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return fail(at("timeout"), "must be greater than 0");
            }
            let known = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
            if !known.contains(&hook.hook_name.as_str()) {
                return fail(at("hookName"), "is not the name of a hook");
            }
        }
        Ok(())
    }

    /// What of it cannot be done here; a device that asks for it is refused, the others of its file are not.
    fn unsupported(&self) -> Option<&'static str> {
        if !self.net_devices.is_empty() {
            return Some("netDevices are not supported");
        }
        if self.intel_rdt.is_some() {
            return Some("intelRdt is not supported");
        }
        // libcontainer runs these when it deletes a container; here the shim does that itself.
        self.hooks.iter().any(|hook| hook.hook_name == "poststop").then_some("poststop hooks are not run here")
    }
}

/// The devices that annotations ask for, without repetition, in the annotations' order.
///
/// # Errors
/// [`Error::Name`].
pub fn requested(annotations: &BTreeMap<String, String>) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = Vec::new();
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
        for name in value.split(',').map(str::trim) {
            let whole = name.split_once('=').and_then(|(kind, device)| Some((kind.split_once('/')?, device)));
            match whole {
                Some(((vendor, class), device))
                    if is_name(vendor, "_-.") && is_name(class, "_-.") && is_device_name(device) => {}
                _ => return Err(Error::Name { key: key.clone(), name: name.to_owned() }),
            }
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    Ok(names)
}

/// What the folders hold.
#[derive(Debug, Default)]
pub struct Registry {
    /// Folders, those that count more last.
    pub dirs: Vec<PathBuf>,
    /// The folder's index, the file, what is in it.
    pub files: Vec<(usize, PathBuf, File)>,
    /// What is wrong with others, a sentence each.
    pub problems: Vec<String>,
}

/// A device with a name, and all that it changes: of its file first, then its own.
#[derive(Debug)]
pub struct Found<'a> {
    name: String,
    edits: Vec<&'a Edits>,
}

impl Registry {
    /// The devices of these names.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Conflict`], [`Error::Device`].
    pub fn find(&self, names: &[String]) -> Result<Vec<Found<'_>>, Error> {
        let mut found = Vec::new();
        let mut shared: HashSet<&Path> = HashSet::new();
        for name in names {
            let (path, file, device) = self.find_one(name)?;
            let mut edits = Vec::new();
            if shared.insert(path) {
                edits.push(&file.container_edits);
            }
            edits.push(&device.container_edits);
            if let Some(reason) = edits.iter().find_map(|edits| edits.unsupported()) {
                return Err(Error::Device { name: name.clone(), reason: reason.to_owned() });
            }
            found.push(Found { name: name.clone(), edits });
        }
        Ok(found)
    }

    fn find_one(&self, name: &str) -> Result<(&Path, &File, &Device), Error> {
        let (kind, wanted) = name.split_once('=').unwrap_or((name, ""));
        let mut best: Option<(usize, &Path, &File, &Device)> = None;
        for (dir, path, file) in self.files.iter().filter(|(_, _, file)| file.kind == kind) {
            let Some(device) = file.devices.iter().find(|device| device.name == wanted) else { continue };
            match best {
                Some((of, other, ..)) if of == *dir => {
                    return Err(Error::Conflict { name: name.to_owned(), one: other.to_owned(), other: path.clone() });
                }
                Some((of, ..)) if of > *dir => {}
                _ => best = Some((*dir, path, file, device)),
            }
        }
        best.map(|(_, path, file, device)| (path, file, device)).ok_or_else(|| {
            let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
            let mut problems = String::new();
            for problem in &self.problems {
                let _ = write!(problems, "; {problem}");
            }
            Error::Unknown { name: name.to_owned(), dirs: dirs.join(", "), problems }
        })
    }
}

/// A device node of the machine.
#[derive(Debug, Clone, Copy)]
pub struct HostNode {
    /// Which device.
    pub number: Number,
    /// Permissions.
    pub mode: u32,
}

/// Changes a container so that it can use the devices. `look` tells what is at a path of the machine, or why nothing is.
///
/// # Errors
/// [`Error::Device`] for a device that is not there.
pub fn apply(
    spec: &mut RuntimeSpec,
    found: &[Found<'_>],
    look: &dyn Fn(&Path) -> Result<HostNode, String>,
) -> Result<(), BundleError> {
    for device in found {
        for edits in &device.edits {
            for node in &edits.device_nodes {
                give(spec, &device.name, node, look)?;
            }
            environment(spec, &edits.env);
            mounts(spec, &edits.mounts)?;
            hooks(spec, &edits.hooks)?;
            groups(spec, &edits.additional_gids);
        }
    }
    Ok(())
}

fn give(
    spec: &mut RuntimeSpec,
    name: &str,
    node: &Node,
    look: &dyn Fn(&Path) -> Result<HostNode, String>,
) -> Result<(), BundleError> {
    let refuse = |reason: String| Error::Device { name: name.to_owned(), reason };
    let asked = match node.kind.as_deref() {
        Some("b") => Some(Kind::Block),
        Some("c" | "u") => Some(Kind::Char),
        _ => None,
    };
    let number = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
    let path = node.host_path.as_deref().unwrap_or(&node.path);
    let (device, mode) = match (asked, number(node.major), number(node.minor)) {
        (Some(kind), Some(major), Some(minor)) => (Number { kind, major, minor }, None),
        (asked, major, minor) => {
            let host = look(path).map_err(|reason| refuse(format!("{}: {reason}", path.display())))?;
            if asked.is_some_and(|kind| kind != host.number.kind) {
                return Err(refuse(format!(
                    "{} is not of type {}",
                    path.display(),
                    node.kind.as_deref().unwrap_or("")
                ))
                .into());
            }
            let of = host.number;
            (
                Number { kind: of.kind, major: major.unwrap_or(of.major), minor: minor.unwrap_or(of.minor) },
                Some(host.mode),
            )
        }
    };
    let user = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    // As the reference implementation: a device belongs to who runs in the container, unless its file says otherwise.
    let (uid, gid) = user.unwrap_or_default();
    let kind = if device.kind == Kind::Block { LinuxDeviceType::B } else { LinuxDeviceType::C };
    let made = LinuxDeviceBuilder::default()
        .path(node.path.clone())
        .typ(kind)
        .major(i64::from(device.major))
        .minor(i64::from(device.minor))
        .file_mode(node.file_mode.or(mode).unwrap_or(0o666))
        .uid(node.uid.unwrap_or(uid))
        .gid(node.gid.unwrap_or(gid))
        .build()?;
    if let Some(linux) = spec.linux_mut() {
        let mut all = linux.devices().clone().unwrap_or_default();
        all.retain(|other| other.path() != made.path());
        all.push(made);
        linux.set_devices(Some(all));
    }
    let access = node.permissions.as_deref().and_then(devices::access).unwrap_or(devices::FULL);
    devices::allow(spec, Rule { access, ..Rule::device(device, false) })
}

fn environment(spec: &mut RuntimeSpec, entries: &[String]) {
    let Some(process) = spec.process_mut() else { return };
    let mut env = process.env().clone().unwrap_or_default();
    for entry in entries {
        let name = entry.split('=').next().unwrap_or_default();
        env.retain(|old| old.split('=').next() != Some(name));
        env.push(entry.clone());
    }
    process.set_env(Some(env));
}

fn mounts(spec: &mut RuntimeSpec, mounts: &[Mount]) -> Result<(), OciSpecError> {
    if mounts.is_empty() {
        return Ok(());
    }
    let mut all = spec.mounts().clone().unwrap_or_default();
    for mount in mounts {
        let mut options = mount.options.clone();
        let kind = mount.kind.clone().filter(|kind| !kind.is_empty()).unwrap_or_else(|| "bind".to_owned());
        if kind == "bind" && !options.iter().any(|o| o == "bind" || o == "rbind") {
            options.push("rbind".to_owned());
        }
        all.retain(|other| other.destination() != &mount.container_path);
        all.push(
            MountBuilder::default()
                .typ(kind)
                .source(mount.host_path.clone())
                .destination(mount.container_path.clone())
                .options(options)
                .build()?,
        );
    }
    // A folder is mounted before what lies in it.
    all.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(all));
    Ok(())
}

fn hooks(spec: &mut RuntimeSpec, hooks: &[NamedHook]) -> Result<(), OciSpecError> {
    for hook in hooks {
        let mut made = Hook::default();
        made.set_path(hook.path.clone());
        made.set_args(hook.args.clone());
        made.set_env(hook.env.clone());
        made.set_timeout(Some(hook.timeout.unwrap_or(HOOK_SECONDS)));
        let mut all = spec.hooks().clone().unwrap_or_default();
        let more = |list: &Option<Vec<Hook>>| Some(list.iter().flatten().cloned().chain([made.clone()]).collect());
        match hook.hook_name.as_str() {
            // The old name of the same moment.
            "prestart" | "createRuntime" => {
                let list = more(all.create_runtime());
                all.set_create_runtime(list);
            }
            "createContainer" => {
                let list = more(all.create_container());
                all.set_create_container(list);
            }
            "startContainer" => {
                let list = more(all.start_container());
                all.set_start_container(list);
            }
            _ => {
                let list = more(all.poststart());
                all.set_poststart(list);
            }
        }
        spec.set_hooks(Some(all));
    }
    Ok(())
}

fn groups(spec: &mut RuntimeSpec, gids: &[u32]) {
    let Some(process) = spec.process_mut() else { return };
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for gid in gids.iter().filter(|gid| **gid != 0) {
        if !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    user.set_additional_gids(Some(groups));
    process.set_user(user);
}

#[cfg(test)]
#[path = "cdi_tests.rs"]
mod tests;
