//! The node API as a cluster uses it: kubectl through the API server, and metrics-server.
//!
//! What reaches the node depends on three: kubectl speaks WebSocket or SPDY; the API server passes WebSockets on to nodes
//! that declare `ExtendWebSocketsToKubelet`, if its feature gate is on, and translates them to SPDY else.

use super::{Namespace, Plane, on};
use crate::harness::{Kubectl, Node, PATIENCE, eventually, output, secs};
use crate::kubectl_list as list;
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::process::Command;

const POD: &str = "tools";

/// A node with the pod on which everything is tried.
fn ready<'a>(plane: &'a Plane, purpose: &str) -> (Node, Namespace<'a>) {
    let node = plane.up();
    let namespace = plane.namespace(purpose);
    let mut pod = list::tools(POD);
    pod["metadata"]["namespace"] = json!(&*namespace);
    pod["spec"]["nodeSelector"] = on(&node);
    plane.apply(&pod);
    plane.wait("Pod", &namespace, POD, "all of it runs", list::is_up);
    (node, namespace)
}

/// All that goes through streams; `bytes` through forwarded ports.
#[track_caller]
fn streams(kubectl: &Kubectl<'_>, node: &Node, round: u32, bytes: usize) {
    list::logs(kubectl, POD);
    list::exec(kubectl, POD);
    list::terminal(kubectl, POD);
    list::attach(kubectl, POD, round);
    list::copy(kubectl, POD, &node.dir);
    list::pipes(kubectl, POD);
    list::forward(kubectl, POD, bytes, |id| node.init_pid(id));
}

/// How often the API server sent a stream on as it was, and how often it translated one.
fn streamed(plane: &Plane) -> (f64, f64) {
    let text = plane.kubectl(&["get", "--raw", "/metrics"]).ok();
    let sum = |how: &str| -> f64 {
        let of = |line: &&str| line.starts_with("apiserver_websocket_streaming_requests_total{") && line.contains(how);
        text.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    (sum("proxied_to_kubelet"), sum("translated_at_apiserver"))
}

#[test]
fn kubectl_streams_by_web_sockets_that_reach_the_node() {
    let plane = Plane::shared();
    let (node, namespace) = ready(plane, "websocket");
    let object = plane.wait("Node", "", &node.name, "what it can is declared", |node| {
        let all = node["status"]["declaredFeatures"].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().any(|name| name == "ExtendWebSocketsToKubelet")
    });
    assert_eq!(object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250, "{object:#}");
    let kubectl = plane.published_kubectl().namespace(&namespace);
    streams(&kubectl, &node, 1, 1 << 30);
    assert!(streamed(plane).0 > 0.0);
    list::end(&kubectl, POD);
    plane.finish(node);
}

#[test]
fn kubectl_streams_by_spdy() {
    let plane = Plane::shared();
    let (node, namespace) = ready(plane, "spdy");
    let kubectl = plane.published_kubectl().namespace(&namespace).by_spdy();
    streams(&kubectl, &node, 1, 1 << 30);
    list::end(&kubectl, POD);
    plane.finish(node);
}

#[test]
fn kubectl_streams_through_an_api_server_that_translates_web_sockets_to_spdy() {
    let plane = Plane::own_with(&[("kube-apiserver", "--feature-gates=ExtendWebSocketsToKubelet=false")]);
    let (node, namespace) = ready(&plane, "translated");
    let kubectl = plane.published_kubectl().namespace(&namespace);
    streams(&kubectl, &node, 1, 1 << 28);
    let (passed, translated) = streamed(&plane);
    assert!(passed == 0.0 && translated > 0.0, "{passed} {translated}");
    list::end(&kubectl, POD);
    plane.finish(node);
}

/// A sample: value and time in milliseconds.
type Samples = BTreeMap<(String, BTreeMap<String, String>), (f64, i64)>;

#[test]
fn a_metrics_server_gets_what_it_needs_and_nobody_else_gets_it() {
    let plane = Plane::shared();
    let (node, namespace) = ready(plane, "metrics");
    let kubectl = plane.published_kubectl().namespace(&namespace);

    // As its published manifest has it: an account that may get nodes/metrics.
    let name = &*namespace;
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name },
        "rules": [{ "apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"] }],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": "metrics-server", "namespace": name }],
    });
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "metrics-server", "namespace": name },
    });
    for object in [&account, &role, &binding] {
        plane.apply(object);
    }
    let token = |account: &str| kubectl.run(&["create", "token", account]).ok().trim().to_owned();
    let ip = node.args.iter().find_map(|a| a.strip_prefix("--node-ip=")).expect("an address").to_owned();
    // kubectl as a client of nothing but HTTP.
    let direct = |credentials: &[String], path: &str| {
        let mut command = Command::new(crate::harness::kubectl());
        command.args(["--kubeconfig=/dev/null", "--insecure-skip-tls-verify"]).args(credentials);
        command.arg(format!("--server=https://{ip}:10250")).args(["get", "--raw", path]).env("HOME", &plane.dir);
        plane.inside(|| output(&mut command, b"", secs(30)))
    };
    let scraper = [format!("--token={}", token("metrics-server"))];
    let scrape = || parse(&direct(&scraper, "/metrics/resource").ok());

    let first = scrape();
    check(&first, &namespace);
    // The burning container has another figure each time, and no figure ever falls.
    let mut burner = kubectl.start(&["exec", "-i", POD, "-c", "main", "--", "sh", "-c", "while :; do :; done"]);
    let of = |name: &str| {
        let labels = [("container", "main"), ("namespace", name), ("pod", POD)];
        let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        ("container_cpu_usage_seconds_total".to_owned(), labels)
    };
    let key = of(name);
    let mut before = first;
    for _ in 0..2 {
        let mut after = scrape();
        eventually("the figures are new", PATIENCE, || {
            after = scrape();
            after[&key].0 > before[&key].0 + 0.3 && after[&key].1 > before[&key].1
        });
        check(&after, &namespace);
        for (key, (value, at)) in &before {
            let Some((now, later)) = after.get(key) else { continue };
            assert!(at <= later, "{key:?}: {at} {later}");
            let counts = key.0.ends_with("_total");
            assert!(!counts || value <= now, "{key:?}: {value} {now}");
        }
        before = after;
    }
    drop(burner.stdin.take());
    drop(burner);

    // It may have nothing else, others have nothing at all; the API server has everything, by its certificate.
    for path in ["/pods", "/exec/a/b/c", "/containerLogs/a/b/c", "/configz", "/stats/summary", "/metrics/cadvisor"] {
        let refused = direct(&scraper, path);
        let may = path.starts_with("/metrics");
        assert_eq!(refused.code == Some(0), may, "{path}: {refused:?}");
        assert!(may || refused.stderr.to_lowercase().contains("forbidden"), "{path}: {refused:?}");
    }
    let known = vec![format!("--token={}", token("default"))];
    // By a way that the node does not know: nobody.
    let unknown = vec!["--username=a".to_owned(), "--password=b".to_owned()];
    for (who, code) in [(known, "orbidden"), (unknown, "logged in to the server")] {
        let refused = direct(&who, "/metrics/resource").fails(1);
        assert!(refused.contains(code), "{refused}");
    }
    let file = |end: &str| format!("{}/apiserver-kubelet-client.{end}", plane.dir.display());
    let server = [format!("--client-certificate={}", file("crt")), format!("--client-key={}", file("key"))];
    check(&parse(&direct(&server, "/metrics/resource").ok()), &namespace);
    let through = format!("/api/v1/nodes/{}/proxy/metrics/resource", node.name);
    check(&parse(&kubectl.run(&["get", "--raw", &through]).ok()), &namespace);
    let summary = kubectl.run(&["get", "--raw", &through.replace("metrics/resource", "stats/summary")]).ok();
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
    let pods = summary["pods"].as_array().expect("pods");
    let pod = pods.iter().find(|pod| pod["podRef"]["namespace"] == *name).expect("the pod");
    assert!(pod["memory"]["workingSetBytes"].as_u64() > Some(0), "{pod:#}");
    assert!(summary["node"]["cpu"]["usageCoreNanoSeconds"].as_u64() > Some(0), "{summary:#}");

    for kind in ["ClusterRoleBinding", "ClusterRole"] {
        plane.delete(kind, "", name);
    }
    list::end(&kubectl, POD);
    plane.finish(node);
}

/// Prometheus' text format, strictly: every family has a type and comes once, every sample a time, no sample comes twice.
#[track_caller]
fn parse(text: &str) -> Samples {
    let mut samples = Samples::new();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut family = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(types.insert(name, kind).is_none(), "{name} comes twice");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            family = name;
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (series, rest) = match line.split_once('}') {
            Some((series, rest)) => (series, rest),
            None => line.split_at(line.find(' ').expect("a value")),
        };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        assert_eq!(name, family, "{line}");
        let label = |text: &str| {
            let (name, value) = text.split_once('=').unwrap_or_else(|| panic!("{line}"));
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            (name.to_owned(), value.unwrap_or_else(|| panic!("{line}")).to_owned())
        };
        let labels = labels.split(',').filter(|text| !text.is_empty()).map(label).collect();
        let numbers: Vec<&str> = rest.split_whitespace().collect();
        let at = numbers.get(1).map_or(0, |at| at.parse().unwrap_or_else(|e| panic!("{line}: {e}")));
        let value: f64 = numbers[0].parse().unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(samples.insert((name.to_owned(), labels), (value, at)).is_none(), "twice: {line}");
    }
    samples
}

/// What metrics-server asks of a scrape: it drops a node without CPU or memory, and a pod if one container has none.
#[track_caller]
fn check(samples: &Samples, namespace: &str) {
    let now = Timestamp::now().as_millisecond();
    let one = |name: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let found = samples.get(&(name.to_owned(), labels));
        *found.unwrap_or_else(|| panic!("no {name} of {namespace}: {samples:#?}"))
    };
    let positive = |name: &str, labels: &[(&str, &str)]| {
        let (value, at) = one(name, labels);
        assert!(value > 0.0, "{name} {labels:?}: {value}");
        assert!((now - 120_000..=now + 1000).contains(&at), "{name} {labels:?}: {at} is not the time");
        value
    };
    positive("node_cpu_usage_seconds_total", &[]);
    let node = positive("node_memory_working_set_bytes", &[]);
    assert_eq!(one("resource_scrape_error", &[]).0, 0.0);
    let of_pod = [("namespace", namespace), ("pod", POD)];
    let cpu = positive("pod_cpu_usage_seconds_total", &of_pod);
    let memory = positive("pod_memory_working_set_bytes", &of_pod);
    let (mut cpus, mut memories) = (0.0, 0.0);
    for container in ["main", "talk", "echo", "term", "once"] {
        let labels = [("container", container), ("namespace", namespace), ("pod", POD)];
        cpus += positive("container_cpu_usage_seconds_total", &labels);
        memories += positive("container_memory_working_set_bytes", &labels);
        let (start, _) = one("container_start_time_seconds", &labels);
        let started = now as f64 / 1000.0 - start;
        assert!((0.0..3600.0).contains(&started), "{container} started at {start}");
    }
    assert!(memories <= node && memory <= node, "{memories} {memory} {node}");
    // Containers that ended are of the pod's past: their time stays the pod's.
    assert!(cpus <= cpu * 1.05 + 0.05, "{cpus} of {cpu}");
}
