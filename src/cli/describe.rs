//! `describe pod`: kubectl's sections. Pure text building; `now` is passed in.

use super::age::{age, age_or_unknown};
use super::columns::{event_source, event_times};
use super::table::{align, printable};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStatus, EnvFromSource, EnvVar, Event, Pod, Probe, Toleration, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Writes a line; writing to a `String` cannot fail.
macro_rules! put {
    ($out:expr, $($argument:tt)*) => { let _ = writeln!($out, $($argument)*); };
}

/// The whole description of a pod and its events.
pub(super) fn pod(pod: &Pod, events: &[Event], zone: &TimeZone, now: Timestamp) -> String {
    let mut out = String::new();
    let (metadata, spec) = (&pod.metadata, pod.spec.clone().unwrap_or_default());
    let status = pod.status.clone().unwrap_or_default();
    let text = |field: &Option<String>| printable(field.as_deref().unwrap_or_default());
    put!(out, "Name:\t{}", text(&metadata.name));
    put!(out, "Namespace:\t{}", text(&metadata.namespace));
    if let Some(priority) = spec.priority {
        put!(out, "Priority:\t{priority}");
    }
    if let Some(class) = &spec.priority_class_name {
        put!(out, "Priority Class Name:\t{}", printable(class));
    }
    if let Some(account) = spec.service_account_name.as_ref().filter(|account| !account.is_empty()) {
        put!(out, "Service Account:\t{}", printable(account));
    }
    match (&spec.node_name, &status.host_ip) {
        (None, _) => {
            put!(out, "Node:\t<none>");
        }
        (Some(node), ip) => {
            put!(out, "Node:\t{}/{}", printable(node), text(ip));
        }
    }
    if let Some(start) = &status.start_time {
        put!(out, "Start Time:\t{}", time(start.0, zone));
    }
    map(&mut out, "Labels:", metadata.labels.as_ref(), "=");
    map(&mut out, "Annotations:", metadata.annotations.as_ref(), ": ");
    match &metadata.deletion_timestamp {
        Some(deleted) => {
            put!(out, "Status:\tTerminating (lasts {})", age(deleted.0, now));
            if let Some(grace) = metadata.deletion_grace_period_seconds {
                put!(out, "Termination Grace Period:\t{grace}s");
            }
        }
        None => {
            put!(out, "Status:\t{}", text(&status.phase));
        }
    }
    for (name, field) in [("Reason", &status.reason), ("Message", &status.message)] {
        if field.as_ref().is_some_and(|field| !field.is_empty()) {
            put!(out, "{name}:\t{}", text(field));
        }
    }
    let departure = status.conditions.iter().flatten().find(|c| c.type_ == "coracle.dev/ManifestApplied");
    if let Some(departure) = departure.filter(|condition| condition.status == "False") {
        put!(out, "Manifest:\t{}", text(&departure.message));
    }
    put!(out, "IP:\t{}", text(&status.pod_ip));
    match status.pod_ips.as_deref() {
        None | Some([]) => {
            put!(out, "IPs:\t<none>");
        }
        Some(ips) => {
            put!(out, "IPs:");
            for ip in ips {
                put!(out, "  IP:\t{}", printable(&ip.ip));
            }
        }
    }
    let statuses = |list: &Option<Vec<ContainerStatus>>| list.clone().unwrap_or_default();
    if let Some(init) = spec.init_containers.as_ref().filter(|init| !init.is_empty()) {
        put!(out, "Init Containers:");
        containers(&mut out, init, &statuses(&status.init_container_statuses), zone);
    }
    put!(out, "Containers:");
    containers(&mut out, &spec.containers, &statuses(&status.container_statuses), zone);
    if let Some(conditions) = status.conditions.as_ref().filter(|conditions| !conditions.is_empty()) {
        put!(out, "Conditions:\n  Type\tStatus");
        for condition in conditions {
            put!(out, "  {}\t{} ", printable(&condition.type_), printable(&condition.status));
        }
    }
    volumes(&mut out, spec.volumes.as_deref().unwrap_or_default());
    put!(out, "QoS Class:\t{}", text(&status.qos_class));
    map(&mut out, "Node-Selectors:", spec.node_selector.as_ref(), "=");
    tolerations(&mut out, spec.tolerations.as_deref().unwrap_or_default());
    event_list(&mut out, events, now);
    align(&out, 2)
}

/// RFC 1123 with a numeric zone, as Go's `time.RFC1123Z`.
fn time(timestamp: Timestamp, zone: &TimeZone) -> String {
    timestamp.to_zoned(zone.clone()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string()
}

fn map(out: &mut String, name: &str, map: Option<&BTreeMap<String, String>>, between: &str) {
    let mut first = name;
    for (key, value) in map.into_iter().flatten() {
        // As kubectl: what would fill the screen goes below its key, cut.
        let value = printable(value);
        let value: String =
            if value.chars().count() > 140 { value.chars().take(137).chain("...".chars()).collect() } else { value };
        put!(out, "{first}\t{}{between}{value}", printable(key));
        first = "";
    }
    if !first.is_empty() {
        put!(out, "{name}\t<none>");
    }
}

fn containers(out: &mut String, containers: &[Container], statuses: &[ContainerStatus], zone: &TimeZone) {
    for container in containers {
        let status = statuses.iter().find(|status| status.name == container.name);
        put!(out, "  {}:", printable(&container.name));
        if let Some(status) = status {
            put!(out, "    Container ID:\t{}", printable(status.container_id.as_deref().unwrap_or_default()));
        }
        put!(out, "    Image:\t{}", printable(container.image.as_deref().unwrap_or_default()));
        if let Some(status) = status {
            put!(out, "    Image ID:\t{}", printable(&status.image_id));
        }
        ports(out, container);
        for (name, words) in [("Command", &container.command), ("Args", &container.args)] {
            if let Some(words) = words.as_ref().filter(|words| !words.is_empty()) {
                put!(out, "    {name}:");
                for word in words.iter().flat_map(|word| word.split('\n')) {
                    put!(out, "      {}", printable(word));
                }
            }
        }
        if let Some(status) = status {
            state(out, "State", status.state.as_ref(), zone);
            if status.last_state.as_ref().is_some_and(|state| state.terminated.is_some()) {
                state(out, "Last State", status.last_state.as_ref(), zone);
            }
            put!(out, "    Ready:\t{}", if status.ready { "True" } else { "False" });
            put!(out, "    Restart Count:\t{}", status.restart_count);
        }
        // Where it is not the pod's: a sidecar is told by it.
        if let Some(policy) = &container.restart_policy {
            put!(out, "    Restart Policy:\t{}", printable(policy));
        }
        if let Some(resources) = &container.resources {
            for (name, list) in [("Limits", &resources.limits), ("Requests", &resources.requests)] {
                quantities(out, name, list.as_ref());
            }
        }
        for (name, probe) in [
            ("Liveness", &container.liveness_probe),
            ("Readiness", &container.readiness_probe),
            ("Startup", &container.startup_probe),
        ] {
            if let Some(probe) = probe {
                put!(out, "    {name}:\t{}", describe_probe(probe));
            }
        }
        environment_from(out, container.env_from.as_deref().unwrap_or_default());
        environment(out, container.env.as_deref().unwrap_or_default());
        mounts(out, container);
    }
}

fn ports(out: &mut String, container: &Container) {
    let ports = container.ports.as_deref().unwrap_or_default();
    let plural = if ports.len() > 1 { "s" } else { "" };
    let join = |number: &dyn Fn(&k8s_openapi::api::core::v1::ContainerPort) -> String| {
        let list: Vec<String> = ports.iter().map(number).collect();
        if list.is_empty() { "<none>".to_owned() } else { list.join(", ") }
    };
    let protocol =
        |port: &k8s_openapi::api::core::v1::ContainerPort| printable(port.protocol.as_deref().unwrap_or("TCP"));
    let inner = join(&|port| match &port.name {
        Some(name) if !name.is_empty() => {
            format!("{}/{} ({})", port.container_port, protocol(port), printable(name))
        }
        _ => format!("{}/{}", port.container_port, protocol(port)),
    });
    let outer = join(&|port| match &port.name {
        Some(name) if !name.is_empty() => {
            format!("{}/{} ({})", port.host_port.unwrap_or(0), protocol(port), printable(name))
        }
        _ => format!("{}/{}", port.host_port.unwrap_or(0), protocol(port)),
    });
    put!(out, "    Port{plural}:\t{inner}");
    put!(out, "    Host Port{plural}:\t{outer}");
}

fn state(out: &mut String, name: &str, state: Option<&ContainerState>, zone: &TimeZone) {
    let empty = ContainerState::default();
    let state = state.unwrap_or(&empty);
    if let Some(running) = &state.running {
        put!(out, "    {name}:\tRunning");
        if let Some(started) = &running.started_at {
            put!(out, "      Started:\t{}", time(started.0, zone));
        }
    } else if let Some(ended) = &state.terminated {
        put!(out, "    {name}:\tTerminated");
        for (name, field) in [("Reason", &ended.reason), ("Message", &ended.message)] {
            if let Some(text) = field.as_ref().filter(|text| !text.is_empty()) {
                put!(out, "      {name}:\t{}", printable(text));
            }
        }
        put!(out, "      Exit Code:\t{}", ended.exit_code);
        if let Some(signal) = ended.signal.filter(|signal| *signal > 0) {
            put!(out, "      Signal:\t{signal}");
        }
        for (name, field) in [("Started", &ended.started_at), ("Finished", &ended.finished_at)] {
            if let Some(when) = field {
                put!(out, "      {name}:\t{}", time(when.0, zone));
            }
        }
    } else {
        put!(out, "    {name}:\tWaiting");
        let waiting = state.waiting.clone().unwrap_or_default();
        for (name, field) in [("Reason", waiting.reason), ("Message", waiting.message)] {
            if let Some(text) = field.filter(|text| !text.is_empty()) {
                put!(out, "      {name}:\t{}", printable(&text));
            }
        }
    }
}

fn quantities(out: &mut String, name: &str, list: Option<&BTreeMap<String, Quantity>>) {
    let Some(list) = list.filter(|list| !list.is_empty()) else { return };
    put!(out, "    {name}:");
    for (resource, quantity) in list {
        put!(out, "      {}:\t{}", printable(resource), printable(&quantity.0));
    }
}

fn describe_probe(probe: &Probe) -> String {
    let port = |port: &IntOrString| match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => printable(name),
    };
    let action = if let Some(exec) = &probe.exec {
        // As Go prints a list of words.
        format!("exec [{}]", printable(&exec.command.clone().unwrap_or_default().join(" ")))
    } else if let Some(http) = &probe.http_get {
        let scheme = http.scheme.as_deref().unwrap_or("http").to_lowercase();
        let (host, path) = (http.host.as_deref().unwrap_or_default(), http.path.as_deref().unwrap_or("/"));
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("http-get {}://{}:{}{}", printable(&scheme), printable(&host), port(&http.port), printable(path))
    } else if let Some(tcp) = &probe.tcp_socket {
        format!("tcp-socket {}:{}", printable(tcp.host.as_deref().unwrap_or_default()), port(&tcp.port))
    } else if let Some(grpc) = &probe.grpc {
        format!("grpc <pod>:{} {}", grpc.port, printable(grpc.service.as_deref().unwrap_or_default()))
    } else {
        "unknown".to_owned()
    };
    format!(
        "{action} delay={}s timeout={}s period={}s #success={} #failure={}",
        probe.initial_delay_seconds.unwrap_or(0),
        probe.timeout_seconds.unwrap_or(1),
        probe.period_seconds.unwrap_or(10),
        probe.success_threshold.unwrap_or(1),
        probe.failure_threshold.unwrap_or(3)
    )
}

fn environment_from(out: &mut String, sources: &[EnvFromSource]) {
    if sources.is_empty() {
        return;
    }
    put!(out, "    Environment Variables from:");
    for source in sources {
        let (name, kind, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => (&map.name, "ConfigMap", map.optional),
            (None, Some(secret)) => (&secret.name, "Secret", secret.optional),
            (None, None) => continue,
        };
        let prefix = source.prefix.as_ref().filter(|prefix| !prefix.is_empty());
        let prefix = prefix.map(|prefix| format!(" with prefix '{}'", printable(prefix))).unwrap_or_default();
        put!(out, "      {}\t{kind}{prefix}\tOptional: {}", printable(name), optional == Some(true));
    }
}

fn environment(out: &mut String, variables: &[EnvVar]) {
    if variables.is_empty() {
        put!(out, "    Environment:\t<none>");
        return;
    }
    put!(out, "    Environment:");
    for variable in variables {
        let name = printable(&variable.name);
        let Some(source) = &variable.value_from else {
            put!(out, "      {name}:\t{}", printable(variable.value.as_deref().unwrap_or_default()));
            continue;
        };
        if let Some(field) = &source.field_ref {
            let version = field.api_version.as_deref().unwrap_or("v1");
            put!(out, "      {name}:\t ({}:{})", printable(version), printable(&field.field_path));
        } else if let Some(resource) = &source.resource_field_ref {
            let container = resource.container_name.as_deref().unwrap_or_default();
            put!(out, "      {name}:\t{} ({})", printable(container), printable(&resource.resource));
        } else if let Some(secret) = &source.secret_key_ref {
            put!(
                out,
                "      {name}:\t<set to the key '{}' in secret '{}'>\tOptional: {}",
                printable(&secret.key),
                printable(&secret.name),
                secret.optional == Some(true)
            );
        } else if let Some(map) = &source.config_map_key_ref {
            put!(
                out,
                "      {name}:\t<set to the key '{}' of config map '{}'>\tOptional: {}",
                printable(&map.key),
                printable(&map.name),
                map.optional == Some(true)
            );
        } else {
            put!(out, "      {name}:\t<unknown source>");
        }
    }
}

fn mounts(out: &mut String, container: &Container) {
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    if mounts.is_empty() {
        put!(out, "    Mounts:\t<none>");
        return;
    }
    put!(out, "    Mounts:");
    let mut mounts: Vec<_> = mounts.iter().collect();
    mounts.sort_by(|a, b| a.mount_path.cmp(&b.mount_path));
    for mount in mounts {
        let mode = if mount.read_only == Some(true) { "ro" } else { "rw" };
        let path = mount.sub_path.as_ref().map(|path| format!(",path=\"{}\"", printable(path))).unwrap_or_default();
        put!(out, "      {} from {} ({mode}{path})", printable(&mount.mount_path), printable(&mount.name));
    }
}

fn volumes(out: &mut String, volumes: &[Volume]) {
    if volumes.is_empty() {
        put!(out, "Volumes:\t<none>");
        return;
    }
    put!(out, "Volumes:");
    for volume in volumes {
        put!(out, "  {}:", printable(&volume.name));
        if let Some(source) = &volume.empty_dir {
            put!(out, "    Type:\tEmptyDir (a temporary directory that shares a pod's lifetime)");
            put!(out, "    Medium:\t{}", printable(source.medium.as_deref().unwrap_or_default()));
            let limit = source.size_limit.as_ref().map_or("<unset>", |limit| &limit.0);
            put!(out, "    SizeLimit:\t{}", printable(limit));
        } else if let Some(source) = &volume.host_path {
            put!(out, "    Type:\tHostPath (bare host directory volume)");
            put!(out, "    Path:\t{}", printable(&source.path));
            put!(out, "    HostPathType:\t{}", printable(source.type_.as_deref().unwrap_or_default()));
        } else if let Some(source) = &volume.downward_api {
            put!(out, "    Type:\tDownwardAPI (a volume populated by information about the pod)");
            put!(out, "    Items:");
            for item in source.items.iter().flatten() {
                let field = item.field_ref.as_ref().map(|field| field.field_path.as_str());
                let resource = item.resource_field_ref.as_ref().map(|resource| resource.resource.as_str());
                put!(out, "      {} -> {}", printable(field.or(resource).unwrap_or_default()), printable(&item.path));
            }
        } else if let Some(source) = &volume.projected {
            put!(out, "    Type:\tProjected (a volume that contains injected data from multiple sources)");
            for source in source.sources.iter().flatten() {
                if let Some(secret) = &source.secret {
                    put!(out, "    SecretName:\t{}", printable(&secret.name));
                    put!(out, "    Optional:\t{}", secret.optional == Some(true));
                }
                if source.downward_api.is_some() {
                    put!(out, "    DownwardAPI:\ttrue");
                }
                if let Some(map) = &source.config_map {
                    put!(out, "    ConfigMapName:\t{}", printable(&map.name));
                    put!(out, "    Optional:\t{}", map.optional == Some(true));
                }
                if let Some(token) = &source.service_account_token {
                    put!(out, "    TokenExpirationSeconds:\t{}", token.expiration_seconds.unwrap_or(3600));
                }
            }
        } else if let Some(source) = &volume.config_map {
            put!(out, "    Type:\tConfigMap (a volume populated by a ConfigMap)");
            put!(out, "    Name:\t{}", printable(&source.name));
            put!(out, "    Optional:\t{}", source.optional == Some(true));
        } else if let Some(source) = &volume.secret {
            put!(out, "    Type:\tSecret (a volume populated by a Secret)");
            put!(out, "    SecretName:\t{}", printable(source.secret_name.as_deref().unwrap_or_default()));
            put!(out, "    Optional:\t{}", source.optional == Some(true));
        } else if let Some(source) = &volume.image {
            put!(out, "    Type:\tImage (a container image or OCI artifact)");
            put!(out, "    Reference:\t{}", printable(source.reference.as_deref().unwrap_or_default()));
            put!(out, "    PullPolicy:\t{}", printable(source.pull_policy.as_deref().unwrap_or_default()));
        } else {
            // The name of the source as the manifest spells it says more than nothing.
            let value = serde_json::to_value(volume).unwrap_or_default();
            let kind = value.as_object().and_then(|map| map.keys().find(|key| *key != "name").cloned());
            put!(out, "    Type:\t{}", kind.unwrap_or_else(|| "<unknown>".to_owned()));
        }
    }
}

fn tolerations(out: &mut String, tolerations: &[Toleration]) {
    let mut first = "Tolerations:";
    for toleration in tolerations {
        let text = |field: &Option<String>| printable(field.as_deref().unwrap_or_default());
        let mut words = text(&toleration.key);
        if let Some(value) = toleration.value.as_ref().filter(|value| !value.is_empty()) {
            let _ = write!(words, "={}", printable(value));
        }
        if let Some(effect) = toleration.effect.as_ref().filter(|effect| !effect.is_empty()) {
            let _ = write!(words, ":{}", printable(effect));
        }
        if toleration.operator.as_deref() == Some("Exists")
            && toleration.value.as_deref().unwrap_or_default().is_empty()
        {
            words.push_str(if toleration.key.is_some() || toleration.effect.is_some() {
                " op=Exists"
            } else {
                "op=Exists"
            });
        }
        if let Some(seconds) = toleration.toleration_seconds {
            let _ = write!(words, " for {}", super::age::human(seconds));
        }
        put!(out, "{first}\t{words}");
        first = "";
    }
    if !first.is_empty() {
        put!(out, "Tolerations:\t<none>");
    }
}

fn event_list(out: &mut String, events: &[Event], now: Timestamp) {
    if events.is_empty() {
        put!(out, "Events:\t<none>");
        return;
    }
    let mut events: Vec<&Event> = events.iter().collect();
    events.sort_by_key(|event| event_times(event).1);
    put!(out, "Events:\n  Type\tReason\tAge\tFrom\tMessage\n  ----\t------\t----\t----\t-------");
    for event in events {
        let text = |field: &Option<String>| printable(field.as_deref().unwrap_or_default().trim());
        let (first, last) = event_times(event);
        let seen = match event.count {
            Some(count) if count > 1 => {
                format!("{} (x{count} over {})", age_or_unknown(last, now), age_or_unknown(first, now))
            }
            _ => age_or_unknown(last, now),
        };
        let source = event_source(event);
        let component = source.split(", ").next().unwrap_or_default();
        put!(
            out,
            "  {}\t{}\t{seen}\t{}\t{}",
            text(&event.type_),
            text(&event.reason),
            printable(component),
            text(&event.message)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn a_pod_reads_as_in_kubectl() {
        let object: Pod = serde_json::from_value(json!({
            "metadata": {"name": "static-web-n1", "namespace": "default", "labels": {"role": "web"},
                "annotations": {"kubernetes.io/config.source": "file", "note": "a\nb\u{1b}[2J"}},
            "spec": {
                "nodeName": "n1",
                "containers": [{
                    "name": "web", "image": "docker.io/nginx", "command": ["nginx"], "args": ["-g", "daemon off;"],
                    "ports": [{"name": "web", "containerPort": 80, "protocol": "TCP"}],
                    "env": [{"name": "A", "value": "b"},
                        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}},
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "etc", "mountPath": "/etc/x", "readOnly": true}]
                }],
                "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "etc", "hostPath": {"path": "/etc", "type": "Directory"}},
                    {"name": "odd", "nfs": {"server": "a", "path": "/"}}],
                "tolerations": [{"operator": "Exists", "effect": "NoExecute"}]
            },
            "status": {"phase": "Running", "hostIP": "10.0.0.1", "podIP": "10.88.0.2", "podIPs": [{"ip": "10.88.0.2"}],
                "startTime": "2026-11-21T10:00:00Z", "qosClass": "Burstable",
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "web", "image": "docker.io/nginx", "imageID": "sha256:12", "containerID": "coracle://ab",
                    "ready": true, "restartCount": 1, "state": {"running": {"startedAt": "2026-11-21T10:00:05Z"}},
                    "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "startedAt": "2026-11-21T10:00:00Z",
                        "finishedAt": "2026-11-21T10:00:04Z"}}}]}
        }))
        .unwrap();
        let event: Event = serde_json::from_value(json!({
            "metadata": {"name": "e"}, "type": "Warning", "reason": "BackOff", "message": "Back-off restarting", "count": 3,
            "firstTimestamp": "2026-11-21T10:00:00Z", "lastTimestamp": "2026-11-21T10:00:30Z",
            "source": {"component": "kubelet", "host": "n1"}, "involvedObject": {}
        }))
        .unwrap();
        let now = "2026-11-21T10:01:00Z".parse().unwrap();
        expect![[r#"
            Name:         static-web-n1
            Namespace:    default
            Node:         n1/10.0.0.1
            Start Time:   Sat, 21 Nov 2026 10:00:00 +0000
            Labels:       role=web
            Annotations:  kubernetes.io/config.source: file
                          note: a...
            Status:       Running
            IP:           10.88.0.2
            IPs:
              IP:  10.88.0.2
            Containers:
              web:
                Container ID:  coracle://ab
                Image:         docker.io/nginx
                Image ID:      sha256:12
                Port:          80/TCP (web)
                Host Port:     0/TCP (web)
                Command:
                  nginx
                Args:
                  -g
                  daemon off;
                State:          Running
                  Started:      Sat, 21 Nov 2026 10:00:05 +0000
                Last State:     Terminated
                  Reason:       Error
                  Exit Code:    1
                  Started:      Sat, 21 Nov 2026 10:00:00 +0000
                  Finished:     Sat, 21 Nov 2026 10:00:04 +0000
                Ready:          True
                Restart Count:  1
                Limits:
                  cpu:  1
                Requests:
                  cpu:     1
                Liveness:  http-get http://:80/ delay=0s timeout=1s period=10s #success=1 #failure=3
                Environment:
                  A:    b
                  POD:   (v1:metadata.name)
                Mounts:
                  /etc/x from etc (ro)
                  /tmp from tmp (rw)
            Conditions:
              Type         Status
              Initialized  True 
              Ready        True 
            Volumes:
              tmp:
                Type:       EmptyDir (a temporary directory that shares a pod's lifetime)
                Medium:     
                SizeLimit:  <unset>
              etc:
                Type:          HostPath (bare host directory volume)
                Path:          /etc
                HostPathType:  Directory
              odd:
                Type:        nfs
            QoS Class:       Burstable
            Node-Selectors:  <none>
            Tolerations:     :NoExecute op=Exists
            Events:
              Type     Reason   Age                From     Message
              ----     ------   ----               ----     -------
              Warning  BackOff  30s (x3 over 60s)  kubelet  Back-off restarting
        "#]]
        .assert_eq(&pod(&object, &[event], &TimeZone::UTC, now));
    }

    #[test]
    fn init_containers_sidecars_and_probes_read_as_in_kubectl() {
        let object: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {
                "initContainers": [
                    {"name": "set-up", "image": "i", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}]},
                    {"name": "proxy", "image": "i", "restartPolicy": "Always",
                        "startupProbe": {"tcpSocket": {"port": "admin"}, "failureThreshold": 30}}],
                "containers": [{"name": "web", "image": "i",
                    "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                    "livenessProbe": {"exec": {"command": ["cat", "/tmp/x"]}, "initialDelaySeconds": 5},
                    "readinessProbe": {"httpGet": {"host": "::1", "path": "/ok", "port": 8443, "scheme": "HTTPS"}},
                    "startupProbe": {"grpc": {"port": 9000, "service": "s"}, "timeoutSeconds": 2},
                    "volumeMounts": [{"name": "b", "mountPath": "/b"}, {"name": "a", "mountPath": "/a"}]}],
                "volumes": [
                    {"name": "a", "downwardAPI": {"items": [
                        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                        {"path": "cpu", "resourceFieldRef": {"containerName": "web", "resource": "limits.cpu"}}]}},
                    {"name": "b", "image": {"reference": "r", "pullPolicy": "IfNotPresent"}},
                    {"name": "c", "projected": {"sources": [{"downwardAPI": {}}, {"configMap": {"name": "m"}}]}}]
            },
            "status": {"phase": "Pending",
                "initContainerStatuses": [
                    {"name": "set-up", "image": "i", "imageID": "x", "ready": true, "restartCount": 0,
                        "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                    {"name": "proxy", "image": "i", "imageID": "x", "ready": false, "restartCount": 2,
                        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}}}],
                "containerStatuses": [{"name": "web", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": "PodInitializing"}}}]}
        }))
        .unwrap();
        let text = pod(&object, &[], &TimeZone::UTC, Timestamp::UNIX_EPOCH);
        let from = text.find("Init Containers:").unwrap();
        expect![[r#"
            Init Containers:
              set-up:
                Container ID:   
                Image:          i
                Image ID:       x
                Port:           <none>
                Host Port:      <none>
                State:          Terminated
                  Reason:       Completed
                  Exit Code:    0
                Ready:          True
                Restart Count:  0
                Environment Variables from:
                  m           ConfigMap with prefix 'P_'  Optional: false
                Environment:  <none>
                Mounts:       <none>
              proxy:
                Container ID:    
                Image:           i
                Image ID:        x
                Port:            <none>
                Host Port:       <none>
                State:           Waiting
                  Reason:        CrashLoopBackOff
                  Message:       back-off 20s
                Ready:           False
                Restart Count:   2
                Restart Policy:  Always
                Startup:         tcp-socket :admin delay=0s timeout=1s period=10s #success=1 #failure=30
                Environment:     <none>
                Mounts:          <none>
            Containers:
              web:
                Container ID:   
                Image:          i
                Image ID:       
                Port:           <none>
                Host Port:      <none>
                State:          Waiting
                  Reason:       PodInitializing
                Ready:          False
                Restart Count:  0
                Liveness:       exec [cat /tmp/x] delay=5s timeout=1s period=10s #success=1 #failure=3
                Readiness:      http-get https://[::1]:8443/ok delay=0s timeout=1s period=10s #success=1 #failure=3
                Startup:        grpc <pod>:9000 s delay=0s timeout=2s period=10s #success=1 #failure=3
                Environment:    <none>
                Mounts:
                  /a from a (rw)
                  /b from b (rw)
            Volumes:
              a:
                Type:  DownwardAPI (a volume populated by information about the pod)
                Items:
                  metadata.labels -> labels
                  limits.cpu -> cpu
              b:
                Type:        Image (a container image or OCI artifact)
                Reference:   r
                PullPolicy:  IfNotPresent
              c:
                Type:           Projected (a volume that contains injected data from multiple sources)
                DownwardAPI:    true
                ConfigMapName:  m
                Optional:       false
            QoS Class:          
            Node-Selectors:     <none>
            Tolerations:        <none>
            Events:             <none>
        "#]]
        .assert_eq(&text[from..]);
    }

    #[test]
    fn a_bare_pod_is_no_surprise() {
        let text = pod(&Pod::default(), &[], &TimeZone::UTC, Timestamp::UNIX_EPOCH);
        assert!(text.contains("Events:") && text.contains("Node:"), "{text}");
    }
}
