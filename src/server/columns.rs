//! Objects → kubectl's columns. Pure; `now` is passed in.

use super::age::{age, age_or_unknown, size};
use super::types::ImageItem;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Event, Node, Pod, PodStatus};
use serde_json::Value;

/// A row of a table.
pub(crate) type Row = Vec<String>;

const NONE: &str = "<none>";
const UNKNOWN: &str = "<unknown>";

fn header(names: &[&str]) -> Row {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Header of the pod table.
pub(crate) fn pod_header(wide: bool) -> Row {
    let mut names = vec!["NAME", "READY", "STATUS", "RESTARTS", "AGE"];
    if wide {
        names.extend(["IP", "NODE", "NOMINATED NODE", "READINESS GATES"]);
    }
    header(&names)
}

/// A pod's row.
pub(crate) fn pod_row(pod: &Pod, wide: bool, now: Timestamp) -> Row {
    let summary = pod_summary(pod);
    let restarts = match summary.last_restart {
        Some(time) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, age(time, now)),
        _ => summary.restarts.to_string(),
    };
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut row = vec![
        pod.metadata.name.clone().unwrap_or_default(),
        format!("{}/{}", summary.ready, summary.total),
        departed(pod, summary.status),
        restarts,
        age_or_unknown(created, now),
    ];
    if wide {
        let text = |field: Option<&String>| field.filter(|text| !text.is_empty()).map_or(NONE, |text| text).to_owned();
        let status = pod.status.as_ref();
        let ip = status.and_then(|status| match status.pod_ips.as_deref() {
            Some([first, ..]) => Some(&first.ip),
            _ => status.pod_ip.as_ref(),
        });
        row.push(text(ip));
        row.push(text(pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref())));
        row.push(text(status.and_then(|status| status.nominated_node_name.as_ref())));
        row.push(readiness_gates(pod));
    }
    row
}

/// That a pod does not run what its manifest says, as nodes say `Ready,SchedulingDisabled`.
fn departed(pod: &Pod, status: String) -> String {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let departure = conditions.iter().find(|c| c.type_ == "coracle.dev/ManifestApplied" && c.status == "False");
    match departure.and_then(|condition| condition.reason.as_deref()) {
        Some(reason) => format!("{status},{reason}"),
        None => status,
    }
}

fn readiness_gates(pod: &Pod) -> String {
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let holds = |gate: &str| conditions.iter().any(|condition| condition.type_ == gate && condition.status == "True");
    let holding = gates.iter().filter(|gate| holds(&gate.condition_type)).count();
    format!("{holding}/{}", gates.len())
}

/// What the pod table says of a pod.
struct Summary {
    ready: usize,
    total: usize,
    status: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

/// Counts restarts and remembers the last.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &ContainerStatus) {
        self.count += i64::from(status.restart_count);
        let finished = || Some(status.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0);
        self.last = self.last.max(finished());
    }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// As kubectl (`printPod` of the API server): the first init container that is not done speaks for the pod, else the
/// first container that waits or ended.
fn pod_summary(pod: &Pod) -> Summary {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let init_containers = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let containers = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let total = containers + init_containers.iter().filter(|container| is_sidecar(container)).count();
    let sidecar = |name: &str| init_containers.iter().any(|container| container.name == name && is_sidecar(container));

    let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let mut reason = text(&status.reason).or_else(|| text(&status.phase)).unwrap_or_else(|| "Unknown".to_owned());
    let (mut all, mut of_sidecars) = (Restarts::default(), Restarts::default());
    let mut ready = 0;
    let mut initializing = false;
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        all.add(container);
        let is_sidecar = sidecar(&container.name);
        if is_sidecar {
            of_sidecars.add(container);
        }
        let state = container.state.clone().unwrap_or_default();
        let ended = state.terminated.as_ref();
        if ended.is_some_and(|ended| ended.exit_code == 0) {
            continue;
        }
        if is_sidecar && container.started == Some(true) {
            ready += usize::from(container.ready);
            continue;
        }
        let waits = state.waiting.as_ref().and_then(|waiting| text(&waiting.reason));
        reason = match (ended_word(&state), waits) {
            (Some(word), _) => format!("Init:{word}"),
            (None, Some(word)) if word != "PodInitializing" => format!("Init:{word}"),
            _ => format!("Init:{index}/{}", init_containers.len()),
        };
        initializing = true;
        break;
    }
    let condition = |name: &str| {
        status.conditions.iter().flatten().any(|condition| condition.type_ == name && condition.status == "True")
    };
    let mut restarts = all;
    if !initializing || condition("Initialized") {
        restarts = of_sidecars;
        let mut has_running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            restarts.add(container);
            let state = container.state.clone().unwrap_or_default();
            if let Some(word) = state.waiting.as_ref().and_then(|waiting| text(&waiting.reason)) {
                reason = word;
            } else if let Some(word) = ended_word(&state) {
                reason = word;
            } else if container.ready && state.running.is_some() {
                has_running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && has_running {
            reason = if condition("Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }
    let terminal = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if pod.metadata.deletion_timestamp.is_some() && !terminal {
        reason = "Terminating".to_owned();
    }
    Summary { ready, total, status: reason, restarts: restarts.count, last_restart: restarts.last }
}

/// The word for how a container ended.
fn ended_word(state: &ContainerState) -> Option<String> {
    let ended = state.terminated.as_ref()?;
    Some(match (&ended.reason, ended.signal) {
        (Some(reason), _) if !reason.is_empty() => reason.clone(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", ended.exit_code),
    })
}

/// Header of the ConfigMap table.
pub(crate) fn config_map_header() -> Row {
    header(&["NAME", "DATA", "AGE"])
}

/// A ConfigMap's row. What comes out of a manifest has no age.
pub(crate) fn config_map_row(map: &Value) -> Row {
    let keys = |field: &str| map[field].as_object().map_or(0, serde_json::Map::len);
    let name = map["metadata"]["name"].as_str().unwrap_or_default();
    vec![name.to_owned(), (keys("data") + keys("binaryData")).to_string(), UNKNOWN.to_owned()]
}

/// Header of the Secret table.
pub(crate) fn secret_header() -> Row {
    header(&["NAME", "TYPE", "DATA", "AGE"])
}

/// A Secret's row: as plain data, for the agent gives sizes in place of values.
pub(crate) fn secret_row(secret: &Value) -> Row {
    let keys = secret["data"].as_object().map_or(0, serde_json::Map::len);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    vec![text(&secret["metadata"]["name"]), text(&secret["type"]), keys.to_string(), UNKNOWN.to_owned()]
}

/// Header of the namespace table.
pub(crate) fn namespace_header() -> Row {
    header(&["NAME", "STATUS", "AGE"])
}

/// A namespace's row.
pub(crate) fn namespace_row(namespace: &Value, now: Timestamp) -> Row {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let created = namespace["metadata"]["creationTimestamp"].as_str().and_then(|time| time.parse().ok());
    vec![text(&namespace["metadata"]["name"]), text(&namespace["status"]["phase"]), age_or_unknown(created, now)]
}

/// Header of the node table.
pub(crate) fn node_header(wide: bool) -> Row {
    let mut names = vec!["NAME", "STATUS", "ROLES", "AGE", "VERSION"];
    if wide {
        names.extend(["INTERNAL-IP", "EXTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"]);
    }
    header(&names)
}

/// A node's row.
pub(crate) fn node_row(node: &Node, wide: bool, now: Timestamp) -> Row {
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let mut word = match ready.map(|condition| condition.status.as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        word.push_str(",SchedulingDisabled");
    }
    let labels = node.metadata.labels.iter().flatten();
    let role = |(key, value): (&String, &String)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()).filter(|role| !role.is_empty()),
        None if key == "kubernetes.io/role" && !value.is_empty() => Some(value.clone()),
        None => None,
    };
    let roles: Vec<String> = labels.filter_map(role).collect();
    let created = node.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let or_none = |text: String| if text.is_empty() { NONE.to_owned() } else { text };
    let mut row = vec![
        node.metadata.name.clone().unwrap_or_default(),
        word,
        or_none(roles.join(",")),
        age_or_unknown(created, now),
        info.kubelet_version,
    ];
    if wide {
        let address = |kind: &str| {
            let found = status.addresses.iter().flatten().find(|address| address.type_ == kind);
            found.map_or(NONE, |address| &address.address).to_owned()
        };
        row.extend([address("InternalIP"), address("ExternalIP")]);
        let or_unknown = |text: String| if text.is_empty() { "<unknown>".to_owned() } else { text };
        row.extend([info.os_image, info.kernel_version, info.container_runtime_version].map(or_unknown));
    }
    row
}

/// Header of the event table.
pub(crate) fn event_header(wide: bool) -> Row {
    header(if wide {
        &["LAST SEEN", "TYPE", "REASON", "OBJECT", "SUBOBJECT", "SOURCE", "MESSAGE", "FIRST SEEN", "COUNT", "NAME"]
    } else {
        &["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    })
}

/// First and last time of an event.
pub(crate) fn event_times(event: &Event) -> (Option<Timestamp>, Option<Timestamp>) {
    let first =
        event.first_timestamp.as_ref().map(|time| time.0).or_else(|| event.event_time.as_ref().map(|time| time.0));
    (first, event.last_timestamp.as_ref().map(|time| time.0).or(first))
}

/// Component and host of an event, as kubectl joins them.
pub(crate) fn event_source(event: &Event) -> String {
    let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let source = event.source.as_ref();
    let component = source.and_then(|source| text(&source.component)).or_else(|| text(&event.reporting_component));
    let host = source.and_then(|source| text(&source.host)).or_else(|| text(&event.reporting_instance));
    [component, host].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// An event's row.
pub(crate) fn event_row(event: &Event, wide: bool, now: Timestamp) -> Row {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (first, last) = event_times(event);
    let kind = text(&event.involved_object.kind).to_lowercase();
    let object = match text(&event.involved_object.name) {
        name if name.is_empty() => kind,
        name => format!("{kind}/{name}"),
    };
    let mut row = vec![age_or_unknown(last, now), text(&event.type_), text(&event.reason), object];
    let message = text(&event.message).trim().to_owned();
    if wide {
        row.extend([text(&event.involved_object.field_path), event_source(event), message]);
        let count = event.count.filter(|count| *count > 0).unwrap_or(1);
        row.extend([age_or_unknown(first, now), count.to_string(), text(&event.metadata.name)]);
    } else {
        row.push(message);
    }
    row
}

/// Header of the image table.
pub(crate) fn image_header(wide: bool) -> Row {
    header(if wide {
        &["NAME", "IMAGE ID", "SIZE", "UNIQUE", "ADDED", "PINNED", "USED BY", "CREATED"]
    } else {
        &["NAME", "IMAGE ID", "SIZE", "ADDED", "PINNED", "USED BY"]
    })
}

/// An image's rows: one a name.
pub(crate) fn image_rows(image: &ImageItem, wide: bool, now: Timestamp) -> Vec<Row> {
    let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    let id: String = if wide { id.to_owned() } else { id.chars().take(13).collect() };
    let nameless = [NONE.to_owned()];
    let names = if image.names.is_empty() { &nameless[..] } else { &image.names };
    let added = Some(image.added).filter(|added| *added > 0).and_then(|added| Timestamp::from_second(added).ok());
    // The whole list is in the wide table: a hundred pods may share one image.
    let users = match &image.used_by[..] {
        [] => NONE.to_owned(),
        [first, rest @ ..] if !rest.is_empty() && !wide => format!("{first} + {} more...", rest.len()),
        all => all.join(","),
    };
    let row = |name: &String| {
        let pinned = if image.pinned { "yes" } else { "no" };
        let name = if image.damaged { format!("{name} (damaged)") } else { name.clone() };
        let mut row = vec![name, id.clone(), size(image.size)];
        if wide {
            row.push(size(image.unique));
        }
        row.extend([age_or_unknown(added, now), pinned.to_owned(), users.clone()]);
        if wide {
            row.push(age_or_unknown(image.created.as_ref().and_then(|time| time.parse().ok()), now));
        }
        row
    };
    names.iter().map(row).collect()
}
