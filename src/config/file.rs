//! The configuration file: YAML documents of kind `KubeletConfiguration` and `CoracleConfiguration`.

use super::images;
use super::layers::Documents;
use super::node;
use super::reserve::{Maps, Reserved, thresholds};
use super::server;
use super::sources;
use super::value::quantity_bytes;
use super::{Config, Error, LogFormat, Warning};
use crate::manifest::duration;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `apiVersion` of a `KubeletConfiguration`.
pub const KUBELET_API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// `apiVersion` of a `CoracleConfiguration`.
pub const OWN_API_VERSION: &str = "coracle.dev/v1alpha1";

/// Fields of a `KubeletConfiguration` that are honoured.
const KUBELET_FIELDS: &[&str] = &[
    "allowedUnsafeSysctls",
    "cgroupRoot",
    "clusterDNS",
    "clusterDomain",
    "containerLogMaxFiles",
    "containerLogMaxSize",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "crashLoopBackOff",
    "enforceNodeAllocatable",
    "evictionHard",
    "evictionMaxPodGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "fileCheckFrequency",
    "healthzBindAddress",
    "healthzPort",
    "kubeReserved",
    "logging",
    "maxPods",
    "memorySwap",
    "mergeDefaultEvictionSettings",
    "podCIDR",
    "podLogsDir",
    "podPidsLimit",
    "resolvConf",
    "rotateCertificates",
    "seccompDefault",
    "singleProcessOOMKill",
    "staticPodPath",
    "systemReserved",
];

/// Fields of a `KubeletConfiguration` (1.36) that later work will honour, or that have no meaning here.
const KUBELET_IGNORED: &[&str] = &[
    "cgroupDriver",
    "cgroupsPerQOS",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "containerRuntimeEndpoint",
    "contentType",
    "cpuManagerPolicy",
    "cpuManagerPolicyOptions",
    "cpuManagerReconcilePeriod",
    "enableContentionProfiling",
    "enableControllerAttachDetach",
    "enableDebugFlagsHandler",
    "enableProfilingHandler",
    "enableSystemLogQuery",
    "failCgroupV1",
    "failSwapOn",
    "featureGates",
    "hairpinMode",
    "imageServiceEndpoint",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "localStorageCapacityIsolation",
    "makeIPTablesUtilChains",
    "maxOpenFiles",
    "memoryManagerPolicy",
    "memoryReservationPolicy",
    "memoryThrottlingFactor",
    "oomScoreAdj",
    "podsPerCore",
    "protectKernelDefaults",
    "qosReserved",
    "reservedMemory",
    "reservedSystemCPUs",
    "runOnce",
    "runtimeRequestTimeout",
    "showHiddenMetricsForVersion",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
    "syncFrequency",
    "systemCgroups",
    "systemReservedCgroup",
    "tlsCipherSuites",
    "tlsCurvePreferences",
    "tlsMinVersion",
    "topologyManagerPolicy",
    "topologyManagerPolicyOptions",
    "topologyManagerScope",
    "tracing",
    "userNamespaces",
    "volumePluginDir",
    "volumeStatsAggPeriod",
];

/// Fields of `KubeletConfiguration.logging` that have no meaning here.
const LOGGING_IGNORED: &[&str] = &["flushFrequency", "options", "vmodule"];

/// Fields of a `CoracleConfiguration`.
const OWN_FIELDS: &[&str] = &[
    "bridge",
    "cdiSpecDirs",
    "cluster",
    "criSocket",
    "images",
    "localAPI",
    "logFormat",
    "nodeIPs",
    "nodeLabels",
    "podCIDR",
    "rootDir",
    "runDir",
    "statusPagePort",
    "verbosity",
];

/// Reads the documents over `config`.
pub(super) fn apply(documents: &Documents, config: &mut Config, warnings: &mut Vec<Warning>) -> Result<(), Error> {
    if let Some(map) = &documents.kubelet {
        kubelet_document(map, config, warnings)?;
    }
    // After the kubelet's document, so that ours decides where both have a word for it (podCIDR).
    if let Some(map) = &documents.own {
        own_document(map, config)?;
    }
    Ok(())
}

/// Whether a kubelet takes a value for none at all: what kubeadm writes for what nobody set.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_unset),
        // `false` is often the opposite of a default.
        Value::Bool(_) => false,
    }
}

fn kubelet_document(map: &Map<String, Value>, config: &mut Config, warnings: &mut Vec<Warning>) -> Result<(), Error> {
    let document = Section { path: "KubeletConfiguration", map };
    document.reject_unknown(
        &[
            KUBELET_FIELDS,
            images::KUBELET_FIELDS,
            node::KUBELET_FIELDS,
            server::KUBELET_FIELDS,
            sources::KUBELET_FIELDS,
        ]
        .concat(),
        KUBELET_IGNORED,
    )?;
    let logging = document.section("logging")?;
    let is_set = |map: &Map<String, Value>, field: &str| map.get(field).is_some_and(|value| !is_unset(value));
    let mut unsupported: Vec<String> =
        KUBELET_IGNORED.iter().filter(|field| is_set(map, field)).map(|field| (*field).to_owned()).collect();
    let of_logging = LOGGING_IGNORED.iter().filter(|field| logging.is_some_and(|map| is_set(map, field)));
    unsupported.extend(of_logging.map(|field| format!("logging.{field}")));
    if !unsupported.is_empty() {
        // In one line: what a cluster's kubelets need is of no interest on a node without one.
        let reason = format!("these fields have no effect here: {}", unsupported.join(", "));
        warnings.push(Warning { field: document.path.to_owned(), reason });
    }
    if document.text("staticPodPath")? == Some("") {
        // A kubelet would read no manifests at all, which nobody wants of a node without a cluster.
        let reason = format!("empty, so manifests are read from {}", config.manifest_dir.display());
        warnings.push(Warning { field: document.at("staticPodPath"), reason });
    }
    document.path_into("staticPodPath", &mut config.manifest_dir)?;
    document.path_into("podLogsDir", &mut config.pod_logs_dir)?;
    document.duration_into("fileCheckFrequency", &mut config.file_check_frequency)?;
    if config.file_check_frequency < Duration::from_millis(100) {
        return Err(Error::invalid(document.at("fileCheckFrequency"), "shorter than 100ms would only burn CPU"));
    }
    document.addresses_into("clusterDNS", &mut config.cluster_dns)?;
    document.text_into("clusterDomain", &mut config.cluster_domain)?;
    if let Some(count) = document.integer("maxPods", 0, u32::MAX.into())? {
        config.max_pods = count as u32;
    }
    if let Some(port) = document.integer("healthzPort", 0, 65535)? {
        config.healthz_port = port as u16;
    }
    if let Some(address) = document.text("healthzBindAddress")? {
        config.healthz_bind_address = document.parsed("healthzBindAddress", address, "an IP address")?;
    }
    if let Some(size) = document.text("containerLogMaxSize")? {
        let bytes =
            quantity_bytes(size).map_err(|reason| Error::invalid(document.at("containerLogMaxSize"), reason))?;
        if bytes < 4096 {
            return Err(Error::invalid(document.at("containerLogMaxSize"), format!("{size} is less than 4Ki")));
        }
        config.container_log_max_size = bytes;
    }
    if let Some(count) = document.integer("containerLogMaxFiles", 2, 1000)? {
        config.container_log_max_files = count as u32;
    }
    if let Some(path) = document.text("resolvConf")? {
        config.resolv_conf = if path.is_empty() { None } else { Some(PathBuf::from(path)) };
    }
    if let Some(root) = document.text("cgroupRoot")? {
        // As kubelet: empty is the root.
        config.cgroup_root = if root.is_empty() { "/".to_owned() } else { root.to_owned() };
    }
    if let Some(limit) = document.integer("podPidsLimit", -1, i64::MAX)? {
        // As kubelet: -1 is no limit; 0 has always meant the same there.
        config.pod_pids_limit = u64::try_from(limit).ok().filter(|limit| *limit > 0);
    }
    if let Some(on) = document.boolean("rotateCertificates")? {
        config.cluster.rotate_certificates = on;
    }
    if let Some(on) = document.boolean("seccompDefault")? {
        config.seccomp_default = on;
    }
    resource_fields(&document, config, warnings)?;
    node::kubelet_fields(&document, &mut config.cluster)?;
    server::kubelet_fields(&document, config)?;
    if let Some(value) = document.get("allowedUnsafeSysctls") {
        config.allowed_unsafe_sysctls = sysctl_patterns(&document, value)?;
    }
    if let Some(cidr) = document.text("podCIDR")?.filter(|cidr| !cidr.is_empty()) {
        config.pod_cidr = cidr.parse().map_err(|reason: String| Error::invalid(document.at("podCIDR"), reason))?;
    }
    if let Some(back_off) = document.section("crashLoopBackOff")? {
        let section = Section { path: "KubeletConfiguration.crashLoopBackOff", map: back_off };
        section.reject_unknown(&["maxContainerRestartPeriod"], &[])?;
        section.duration_into("maxContainerRestartPeriod", &mut config.max_container_restart_period)?;
        let range = Duration::from_secs(1)..=Duration::from_secs(300);
        if !range.contains(&config.max_container_restart_period) {
            return Err(Error::invalid(section.at("maxContainerRestartPeriod"), "must be between 1s and 300s"));
        }
    }
    if let Some(logging) = logging {
        logging_section(logging, config)?;
    }
    Ok(())
}

/// What pods get, and when the node is short of it.
fn resource_fields(document: &Section<'_>, config: &mut Config, warnings: &mut Vec<Warning>) -> Result<(), Error> {
    for (field, into) in [("kubeReserved", &mut config.kube_reserved), ("systemReserved", &mut config.system_reserved)]
    {
        if document.get(field).is_none() {
            continue;
        }
        let mut reserved = Reserved::default();
        for (name, amount) in document.texts(field)? {
            reserved.add(name, amount).map_err(|reason| Error::invalid(document.at(field), reason))?;
        }
        *into = reserved;
    }
    if let Some(levels) = document.list("enforceNodeAllocatable")? {
        config.enforce_pods = levels.contains(&"pods");
        for level in levels.iter().filter(|level| !["pods", "none"].contains(level)) {
            let field = document.at("enforceNodeAllocatable");
            match *level {
                "system-reserved" | "kube-reserved" | "system-reserved-compressible" | "kube-reserved-compressible" => {
                    let reason = format!("{level}: cgroups outside of kubepods are not touched, ignored");
                    warnings.push(Warning { field, reason });
                }
                other => return Err(Error::invalid(field, format!("{other:?} is not a level of enforcement"))),
            }
        }
    }
    let maps = Maps {
        hard: document.get("evictionHard").map(|_| document.texts("evictionHard")).transpose()?,
        soft: document.texts("evictionSoft")?,
        soft_grace: document.texts("evictionSoftGracePeriod")?,
        reclaim: document.texts("evictionMinimumReclaim")?,
        merge_defaults: document.boolean("mergeDefaultEvictionSettings")?.unwrap_or(false),
    };
    config.eviction.thresholds =
        thresholds(&maps).map_err(|(field, reason)| Error::invalid(document.at(field), reason))?;
    document.duration_into("evictionPressureTransitionPeriod", &mut config.eviction.pressure_transition)?;
    if let Some(seconds) = document.integer("evictionMaxPodGracePeriod", 0, i64::from(i32::MAX))? {
        config.eviction.max_pod_grace_seconds = seconds as u64;
    }
    let mut period = Duration::from_millis(100);
    document.duration_into("cpuCFSQuotaPeriod", &mut period)?;
    if !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&period) {
        return Err(Error::invalid(document.at("cpuCFSQuotaPeriod"), "must be between 1ms and 1s"));
    }
    config.cfs_period = document.boolean("cpuCFSQuota")?.unwrap_or(true).then_some(period);
    if let Some(on) = document.boolean("singleProcessOOMKill")? {
        config.single_process_oom_kill = on;
    }
    images::kubelet_fields(document, &mut config.images)?;
    sources::kubelet_fields(document, &mut config.sources)?;
    if let Some(swap) = document.section("memorySwap")? {
        let section = Section { path: "KubeletConfiguration.memorySwap", map: swap };
        section.reject_unknown(&["swapBehavior"], &[])?;
        match section.text("swapBehavior")? {
            None | Some("" | "NoSwap") => {}
            Some("LimitedSwap") => warnings.push(Warning {
                field: section.at("swapBehavior"),
                reason: "LimitedSwap has no effect: this node gives no pod any swap".to_owned(),
            }),
            Some(other) => {
                let reason = format!("{other:?} is not NoSwap or LimitedSwap");
                return Err(Error::invalid(section.at("swapBehavior"), reason));
            }
        }
    }
    Ok(())
}

/// As kubelet: a pattern of what is not namespaced would let pods change the machine.
fn sysctl_patterns(document: &Section<'_>, value: &Value) -> Result<Vec<String>, Error> {
    let at = |index: usize| document.at(&format!("allowedUnsafeSysctls[{index}]"));
    let list =
        value.as_array().ok_or_else(|| Error::invalid(document.at("allowedUnsafeSysctls"), wants("a list", value)))?;
    let mut read = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let pattern = value.as_str().ok_or_else(|| Error::invalid(at(index), wants("the name of a sysctl", value)))?;
        let dotted = if pattern.find(['.', '/']).is_some_and(|first| pattern[first..].starts_with('/')) {
            pattern.replace('/', ".")
        } else {
            pattern.to_owned()
        };
        let name = dotted.strip_suffix('*').unwrap_or(&dotted);
        let sound = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:".contains(&b));
        if !sound || super::value::sysctl_group(name).is_none() {
            let reason = format!(
                "{pattern:?} is not known to be namespaced: want a name, or a prefix that ends in *, of net., kernel.shm, \
                 kernel.msg, kernel.sem or fs.mqueue."
            );
            return Err(Error::invalid(at(index), reason));
        }
        read.push(pattern.to_owned());
    }
    Ok(read)
}

fn logging_section(map: &Map<String, Value>, config: &mut Config) -> Result<(), Error> {
    let section = Section { path: "KubeletConfiguration.logging", map };
    section.reject_unknown(&["format", "verbosity"], LOGGING_IGNORED)?;
    section.log_format_into("format", &mut config.log_format)?;
    if let Some(verbosity) = section.integer("verbosity", 0, 255)? {
        config.verbosity = verbosity as u8;
    }
    Ok(())
}

fn own_document(map: &Map<String, Value>, config: &mut Config) -> Result<(), Error> {
    let document = Section { path: "CoracleConfiguration", map };
    document.reject_unknown(&[OWN_FIELDS, node::OWN_FIELDS, sources::OWN_FIELDS].concat(), &[])?;
    document.text_into("bridge", &mut config.bridge)?;
    document.paths_into("cdiSpecDirs", &mut config.cdi_spec_dirs)?;
    if let Some(map) = document.section("images")? {
        images::own_section(map, &mut config.images)?;
    }
    if let Some(map) = document.section("cluster")? {
        let section = Section { path: "CoracleConfiguration.cluster", map };
        section.reject_unknown(&["sealingKeyFile"], &[])?;
        if let Some(path) = section.text("sealingKeyFile")?.filter(|path| !path.is_empty()) {
            config.cluster.sealing_key_file = Some(PathBuf::from(path));
        }
    }
    if let Some(map) = document.section("localAPI")? {
        super::local::own_section(map, &mut config.server.local_api)?;
    }
    sources::own_fields(&document, &mut config.sources)?;
    node::own_fields(&document, &mut config.cluster)?;
    if let Some(served) = document.boolean("criSocket")? {
        config.server.cri_socket = served;
    }
    document.log_format_into("logFormat", &mut config.log_format)?;
    document.path_into("rootDir", &mut config.root_dir)?;
    document.path_into("runDir", &mut config.run_dir)?;
    document.addresses_into("nodeIPs", &mut config.node_ips)?;
    if let Some(port) = document.integer("statusPagePort", 0, 65535)? {
        config.server.status_page_port = port as u16;
    }
    if let Some(cidr) = document.text("podCIDR")? {
        config.pod_cidr = cidr.parse().map_err(|reason: String| Error::invalid(document.at("podCIDR"), reason))?;
    }
    if let Some(verbosity) = document.integer("verbosity", 0, 255)? {
        config.verbosity = verbosity as u8;
    }
    if let Some(labels) = document.section("nodeLabels")? {
        let mut read = BTreeMap::new();
        for (key, value) in labels {
            let path = format!("{}.{key}", document.at("nodeLabels"));
            let value = value.as_str().ok_or_else(|| Error::invalid(&path, wants("text", value)))?;
            let one =
                super::value::labels(&format!("{key}={value}")).map_err(|reason| Error::invalid(&path, reason))?;
            read.extend(one);
        }
        config.node_labels = read;
    }
    Ok(())
}

/// A mapping of the file and its path, for errors. `null` counts as absent everywhere, as in Kubernetes.
pub(super) struct Section<'a> {
    pub(super) path: &'a str,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    pub(super) fn at(&self, field: &str) -> String {
        format!("{}.{field}", self.path)
    }

    pub(super) fn reject_unknown(&self, known: &[&str], ignored: &[&str]) -> Result<(), Error> {
        for field in self.map.keys() {
            let field = field.as_str();
            if field == "apiVersion" || field == "kind" || known.contains(&field) || ignored.contains(&field) {
                continue;
            }
            let nearest = known.iter().chain(ignored).map(|name| (distance(field, name), *name)).min();
            let suggestion = nearest.filter(|(d, name)| *d <= 1 + name.len() / 4).map(|(_, name)| name.to_owned());
            return Err(Error::Unknown { field: self.at(field), suggestion });
        }
        Ok(())
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<&'a str>, Error> {
        let read =
            |value: &'a Value| value.as_str().ok_or_else(|| Error::invalid(self.at(field), wants("text", value)));
        self.get(field).map(read).transpose()
    }

    pub(super) fn boolean(&self, field: &str) -> Result<Option<bool>, Error> {
        let read = |value: &Value| {
            value.as_bool().ok_or_else(|| Error::invalid(self.at(field), wants("true or false", value)))
        };
        self.get(field).map(read).transpose()
    }

    pub(super) fn integer(&self, field: &str, least: i64, most: i64) -> Result<Option<i64>, Error> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_i64().ok_or_else(|| Error::invalid(self.at(field), wants("a whole number", value)))?;
        if number < least || number > most {
            return Err(Error::invalid(self.at(field), format!("{number} is not between {least} and {most}")));
        }
        Ok(Some(number))
    }

    pub(super) fn section(&self, field: &str) -> Result<Option<&'a Map<String, Value>>, Error> {
        let read = |value: &'a Value| {
            value.as_object().ok_or_else(|| Error::invalid(self.at(field), wants("a mapping", value)))
        };
        self.get(field).map(read).transpose()
    }

    /// A mapping of texts to texts; numbers and booleans are no texts. Empty when absent.
    pub(super) fn texts(&self, field: &str) -> Result<Vec<(&'a str, &'a str)>, Error> {
        let read = |(key, value): (&'a String, &'a Value)| match value.as_str() {
            Some(text) => Ok((key.as_str(), text)),
            None => Err(Error::invalid(format!("{}.{key}", self.at(field)), wants("text", value))),
        };
        self.section(field)?.into_iter().flatten().map(read).collect()
    }

    pub(super) fn list(&self, field: &str) -> Result<Option<Vec<&'a str>>, Error> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| Error::invalid(self.at(field), wants("a list", value)))?;
        let read = |(index, value): (usize, &'a Value)| {
            let path = || format!("{}[{index}]", self.at(field));
            value.as_str().ok_or_else(|| Error::invalid(path(), wants("text", value)))
        };
        list.iter().enumerate().map(read).collect::<Result<_, _>>().map(Some)
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, field: &str, text: &str, what: &str) -> Result<T, Error> {
        text.parse().map_err(|_| Error::invalid(self.at(field), format!("{text:?} is not {what}")))
    }

    fn text_into(&self, field: &str, into: &mut String) -> Result<(), Error> {
        if let Some(text) = self.text(field)? {
            *into = text.to_owned();
        }
        Ok(())
    }

    /// Empty text keeps the default, as an empty `staticPodPath` in a kubeadm file would otherwise turn pods off.
    pub(super) fn path_into(&self, field: &str, into: &mut PathBuf) -> Result<(), Error> {
        if let Some(text) = self.text(field)?.filter(|text| !text.is_empty()) {
            *into = PathBuf::from(text);
        }
        Ok(())
    }

    /// As kubelet: a zero duration is an unset one.
    pub(super) fn duration_into(&self, field: &str, into: &mut Duration) -> Result<(), Error> {
        if let Some(text) = self.text(field)? {
            let read = duration(text).map_err(|reason| Error::invalid(self.at(field), reason))?;
            if !read.is_zero() {
                *into = read;
            }
        }
        Ok(())
    }

    fn log_format_into(&self, field: &str, into: &mut LogFormat) -> Result<(), Error> {
        *into = match self.text(field)? {
            None | Some("") => return Ok(()),
            Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => return Err(Error::invalid(self.at(field), format!("{other:?} is not text or json"))),
        };
        Ok(())
    }

    pub(super) fn paths_into(&self, field: &str, into: &mut Vec<PathBuf>) -> Result<(), Error> {
        let Some(value) = self.get(field) else { return Ok(()) };
        let list = value.as_array().ok_or_else(|| Error::invalid(self.at(field), wants("a list", value)))?;
        let mut read = Vec::with_capacity(list.len());
        for (index, value) in list.iter().enumerate() {
            let path = value.as_str().map(PathBuf::from).filter(|path| path.is_absolute());
            let field = || self.at(&format!("{field}[{index}]"));
            read.push(path.ok_or_else(|| Error::invalid(field(), wants("an absolute path", value)))?);
        }
        *into = read;
        Ok(())
    }

    fn addresses_into(&self, field: &str, into: &mut Vec<IpAddr>) -> Result<(), Error> {
        let Some(value) = self.get(field) else { return Ok(()) };
        let list = value.as_array().ok_or_else(|| Error::invalid(self.at(field), wants("a list", value)))?;
        let mut read = Vec::with_capacity(list.len());
        for (index, value) in list.iter().enumerate() {
            let field = format!("{field}[{index}]");
            let text = value.as_str().ok_or_else(|| Error::invalid(self.at(&field), wants("an IP address", value)))?;
            read.push(self.parsed(&field, text, "an IP address")?);
        }
        *into = read;
        Ok(())
    }
}

pub(super) fn wants(what: &str, got: &Value) -> String {
    format!("want {what}, got {}", type_of(got))
}

pub(super) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// Levenshtein distance without regard to case: a field in the wrong case is its own nearest neighbour.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().take(64).collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
