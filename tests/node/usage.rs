//! What pods and the node use: real loads, read back in every form that others read them in.

use crate::harness::{Node, PodView, eventually, pod, secs};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// GET over the node's socket; it must work.
#[track_caller]
fn get(node: &Node, path: &str) -> String {
    let mut stream = UnixStream::connect(node.dir.join("run/coracle.sock")).expect("the socket");
    stream.set_read_timeout(Some(secs(30))).expect("a limit");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    body.to_owned()
}

#[track_caller]
fn get_json(node: &Node, path: &str) -> Value {
    serde_json::from_str(&get(node, path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A sample: labels, value, and its time in milliseconds.
type Sample = (BTreeMap<String, String>, f64, Option<i64>);

/// Metrics by name.
struct Metrics(BTreeMap<String, Vec<Sample>>);

impl Metrics {
    /// Reads the text format as strictly as it is described: each family in one piece, with HELP and TYPE before its samples,
    /// and no series twice.
    #[track_caller]
    fn parse(text: &str) -> Metrics {
        assert!(text.is_empty() || text.ends_with('\n'));
        let (mut all, mut series): (BTreeMap<String, Vec<Sample>>, _) = (BTreeMap::new(), BTreeSet::new());
        let (mut family, mut helped) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                helped = rest.split_once(' ').expect("a help").0.to_owned();
                assert!(!all.contains_key(&helped), "{helped} comes twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert_eq!(name, helped, "TYPE after HELP");
                assert!(["counter", "gauge"].contains(&kind), "{line}");
                family = name.to_owned();
                all.insert(family.clone(), Vec::new());
            } else {
                let (name, labels, rest) = Metrics::series(line);
                assert_eq!(name, family, "{line}");
                let mut words = rest.split(' ');
                let value = words.next().expect("a value").parse().unwrap_or_else(|e| panic!("{line}: {e}"));
                let time = words.next().map(|time| time.parse().unwrap_or_else(|e| panic!("{line}: {e}")));
                assert_eq!(words.next(), None, "{line}");
                assert!(series.insert((name, labels.clone())), "twice: {line}");
                all.get_mut(&family).expect("a family").push((labels, value, time));
            }
        }
        assert!(all.values().all(|samples| !samples.is_empty()), "families without samples");
        Metrics(all)
    }

    /// Name, labels and what follows.
    #[track_caller]
    fn series(line: &str) -> (String, BTreeMap<String, String>, &str) {
        let end = line.find(['{', ' ']).expect("a name");
        let (name, mut rest) = line.split_at(end);
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        assert!(!name.is_empty() && name.chars().all(legal) && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
        let mut labels = BTreeMap::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            loop {
                let (label, after) = rest.split_once("=\"").expect("a label");
                let mut value = String::new();
                let mut chars = after.char_indices();
                let end = loop {
                    match chars.next().expect("the end of a label") {
                        (at, '"') => break at,
                        (_, '\\') => value.push(match chars.next().expect("an escaped character").1 {
                            'n' => '\n',
                            c @ ('\\' | '"') => c,
                            c => panic!("\\{c} in {line}"),
                        }),
                        (_, c) => value.push(c),
                    }
                };
                assert!(labels.insert(label.to_owned(), value).is_none(), "{label} twice: {line}");
                rest = &after[end + 1..];
                match rest.strip_prefix(',') {
                    Some(next) => rest = next,
                    None => break rest = rest.strip_prefix('}').expect("the end of labels"),
                }
            }
        }
        (name.to_owned(), labels, rest.strip_prefix(' ').expect("a blank"))
    }

    /// The one sample that has these labels, among others.
    #[track_caller]
    fn one(&self, name: &str, wanted: &[(&str, &str)]) -> (f64, Option<i64>) {
        let all = self.0.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.0.keys()));
        let has = |labels: &BTreeMap<String, String>| wanted.iter().all(|(k, v)| labels.get(*k).is_some_and(|l| l == v));
        let found: Vec<&Sample> = all.iter().filter(|(labels, ..)| has(labels)).collect();
        assert_eq!(found.len(), 1, "{name}{wanted:?} in {all:?}");
        (found[0].1, found[0].2)
    }

    fn value(&self, name: &str, wanted: &[(&str, &str)]) -> f64 {
        self.one(name, wanted).0
    }
}

/// A number that the kernel has of a container, by its v1 or v2 name and what to multiply the latter with.
fn kernel(node: &Node, id: &str, v1: &str, v2: (&str, &str, f64)) -> f64 {
    if let Some(path) = node.container_cgroup(id, v1) {
        return fs::read_to_string(path).expect("a counter").trim().parse().expect("a number");
    }
    let path = node.container_cgroup(id, v2.0).unwrap_or_else(|| panic!("no {v1} or {} of {id}", v2.0));
    let text = fs::read_to_string(path).expect("a counter");
    let value = text.lines().find_map(|line| line.strip_prefix(v2.1)).expect("a key");
    value.trim().parse::<f64>().expect("a number") * v2.2
}

fn cpu_seconds(node: &Node, id: &str) -> f64 {
    kernel(node, id, "cpuacct.usage", ("cpu.stat", "usage_usec ", 1000.0)) / 1e9
}

/// A pod that burns as much CPU as it may, a fifth, beside a container that rests; and one that holds memory, has written to
/// its layer, to a volume on disk and to one in memory, and to its log.
fn loads(node: &Node) -> (PodView, PodView) {
    let rest = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    let mut burn = pod("burn", "trap 'exit 0' TERM; while :; do :; done");
    burn["metadata"]["labels"] = json!({ "load": "cpu" });
    let mut second = burn["spec"]["containers"][0].clone();
    second["name"] = json!("quiet");
    second["command"] = json!(["sh", "-c", rest]);
    second["readinessProbe"] = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1 });
    burn["spec"]["containers"][0]["resources"] = json!({ "limits": { "cpu": "200m", "memory": "64Mi" } });
    burn["spec"]["containers"].as_array_mut().expect("containers").push(second);
    let held = "x=$(head -c 30000000 /dev/zero | tr '\\0' a); head -c 5000000 /dev/zero > /layer; \
                head -c 3000000 /dev/zero > /disk/f; head -c 2000000 /dev/zero > /memory/f; head -c 100000 /dev/zero | tr '\\0' l; \
                echo; sync; touch /done; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";
    let mut hold = pod("hold", held);
    hold["metadata"]["labels"] = json!({ "load": "memory" });
    hold["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "disk", "mountPath": "/disk" }, { "name": "memory", "mountPath": "/memory" }]);
    hold["spec"]["volumes"] = json!([
        { "name": "disk", "emptyDir": {} },
        { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } },
    ]);
    let pods = (node.run(&burn), node.run(&hold));
    let name = pods.1.name().to_owned();
    eventually("the memory is held", secs(60), || node.cli(&["exec", &name, "--", "test", "-e", "/done"]).code == Some(0));
    pods
}

#[test]
fn what_pods_use_is_told_as_it_is_in_every_form() {
    let node = Node::up();
    let (burn, hold) = loads(&node);
    let of = |pod: &'static str, container: &'static str| -> [(&'static str, String); 3] {
        let name = if pod == "burn" { burn.name() } else { hold.name() };
        [("container", container.to_owned()), ("pod", name.to_owned()), ("namespace", "default".to_owned())]
    };
    let value = |metrics: &Metrics, name: &str, labels: &[(&str, String)]| {
        metrics.one(name, &labels.iter().map(|(k, v)| (*k, v.as_str())).collect::<Vec<_>>())
    };

    // As metrics-server reads it: two scrapes, all that counts above 0, times and CPU grow.
    let before = cpu_seconds(&node, &burn.id("main"));
    let first = Metrics::parse(&get(&node, "/metrics/resource"));
    let between = cpu_seconds(&node, &burn.id("main"));
    let mut second = Metrics(BTreeMap::new());
    let (cpu, memory) = ("container_cpu_usage_seconds_total", "container_memory_working_set_bytes");
    let (then, at) = value(&first, cpu, &of("burn", "main"));
    assert!(before <= then && then <= between, "{before} <= {then} <= {between}");
    eventually("another pass", secs(30), || {
        second = Metrics::parse(&get(&node, "/metrics/resource"));
        value(&second, cpu, &of("burn", "main")).1 > at
    });
    let now = value(&second, cpu, &of("burn", "main")).0;
    assert!(now > then && now <= cpu_seconds(&node, &burn.id("main")), "{then} < {now}");
    for (pod, container) in [("burn", "main"), ("burn", "quiet"), ("hold", "main")] {
        for metrics in [&first, &second] {
            for name in [cpu, memory] {
                let (value, time) = value(metrics, name, &of(pod, container));
                assert!(value > 0.0 && time.is_some(), "{name} of {pod}/{container}");
            }
        }
        let started = value(&second, "container_start_time_seconds", &of(pod, container)).0;
        assert!((started - at.expect("a time") as f64 / 1000.0).abs() < 3600.0, "{started}");
    }
    let held = value(&second, memory, &of("hold", "main")).0;
    assert!((30e6..120e6).contains(&held), "{held}");
    for (pod, containers) in [("burn", &["main", "quiet"][..]), ("hold", &["main"])] {
        let own = of(pod, "")[1..].to_vec();
        let sum: f64 = containers.iter().map(|c| value(&first, cpu, &of(pod, c)).0).sum();
        let whole = value(&second, "pod_cpu_usage_seconds_total", &own).0;
        assert!(whole >= sum, "{pod}: {whole} of its pod, {sum} of its containers");
        assert!(value(&second, "pod_memory_working_set_bytes", &own).0 > 0.0);
    }
    let node_cpu = |metrics: &Metrics| metrics.value("node_cpu_usage_seconds_total", &[]);
    assert!(node_cpu(&first) > 0.0 && node_cpu(&second) > node_cpu(&first));
    assert!(second.value("node_memory_working_set_bytes", &[]) > held);
    assert_eq!((second.value("scrape_error", &[]), second.value("resource_scrape_error", &[])), (0.0, 0.0));

    // Dashboards: the same numbers by cgroup, with limits, networks and disks.
    let limited = [("pod", burn.name()), ("container", "main")];
    eventually("files are counted, and the CPU limit was felt", secs(60), || {
        let metrics = Metrics::parse(&get(&node, "/metrics/cadvisor"));
        let of_layer = metrics.0.get("container_fs_usage_bytes");
        of_layer.is_some_and(|all| all.iter().any(|(labels, n, _)| labels["pod"] == hold.name() && *n >= 5e6))
            && metrics.value("container_cpu_cfs_throttled_periods_total", &limited) > 0.0
    });
    let metrics = Metrics::parse(&get(&node, "/metrics/cadvisor"));
    assert_eq!(metrics.value("container_spec_memory_limit_bytes", &limited), f64::from(64 << 20));
    let quota = metrics.value("container_spec_cpu_quota", &limited) / metrics.value("container_spec_cpu_period", &limited);
    assert!((quota - 0.2).abs() < 1e-9, "{quota}");
    assert!(metrics.value("container_memory_rss", &[("pod", hold.name()), ("container", "main")]) >= 30e6);
    let id = metrics.0[cpu].iter().find(|(l, ..)| l["pod"] == hold.name() && l["container"] == "main").expect("it");
    assert_eq!((id.0["name"].as_str(), id.0["cpu"].as_str()), (hold.id("main").as_str(), "total"));
    assert!(id.0["id"].ends_with(&format!("/pod{}/{}", hold.uid(), hold.id("main"))) && id.0["image"].contains("busybox"));
    let network = [("pod", hold.name()), ("interface", "eth0")];
    let sent = metrics.value("container_network_transmit_bytes_total", &network);
    node.sh(hold.name(), "echo hello | nc -u -w1 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') 9; true");
    eventually("what was sent is counted", secs(30), || {
        let metrics = Metrics::parse(&get(&node, "/metrics/cadvisor"));
        metrics.value("container_network_transmit_bytes_total", &network) > sent
    });
    assert!(metrics.value("machine_cpu_cores", &[]) >= 1.0 && metrics.value("machine_memory_bytes", &[]) > 30e6);
    assert!(metrics.value("container_memory_working_set_bytes", &[("id", "/")]) > held);

    // The summary.
    let summary = get_json(&node, "/stats/summary");
    let pods = summary["pods"].as_array().expect("pods");
    let found = |name: &str| pods.iter().find(|pod| pod["podRef"]["name"] == name).unwrap_or_else(|| panic!("{summary}"));
    let (of_burn, of_hold) = (found(burn.name()), found(hold.name()));
    assert_eq!(of_hold["podRef"], json!({ "name": hold.name(), "namespace": "default", "uid": hold.uid() }));
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value} in {summary}"));
    let container = &of_hold["containers"][0];
    assert!(number(&container["memory"]["workingSetBytes"]) >= 30_000_000);
    assert!((5_000_000..8_000_000).contains(&number(&container["rootfs"]["usedBytes"])), "{container}");
    assert!((100_000..1_000_000).contains(&number(&container["logs"]["usedBytes"])), "{container}");
    assert!(number(&container["rootfs"]["inodesUsed"]) >= 2);
    let volume = |name: &str| of_hold["volume"].as_array().expect("volumes").iter().find(|v| v["name"] == name).expect("it");
    assert!((3_000_000..4_000_000).contains(&number(&volume("disk")["usedBytes"])));
    assert!((2_000_000..3_000_000).contains(&number(&volume("memory")["usedBytes"])));
    assert_eq!(number(&volume("memory")["capacityBytes"]), 8 << 20);
    assert!((8_100_000..13_000_000).contains(&number(&of_hold["ephemeral-storage"]["usedBytes"])), "{of_hold}");
    assert_eq!(of_hold["network"]["name"], "eth0");
    let main = of_burn["containers"].as_array().expect("containers").iter().find(|c| c["name"] == "main").expect("main");
    // No more than it may; how much less is up to whoever else is on the machine.
    let rate = number(&main["cpu"]["usageNanoCores"]);
    assert!((1..300_000_000).contains(&rate), "{rate}");
    assert!(number(&main["memory"]["availableBytes"]) < 64 << 20, "what is left of its limit");
    assert!(container["memory"].get("availableBytes").is_none(), "it has no limit");
    let this = &summary["node"];
    assert_eq!(this["nodeName"], node.name);
    for path in ["/cpu/usageCoreNanoSeconds", "/memory/availableBytes", "/fs/capacityBytes", "/rlimit/maxpid", "/rlimit/curproc"]
    {
        assert!(number(this.pointer(path).unwrap_or_else(|| panic!("{path} in {this}"))) > 0, "{path}");
    }
    assert!(number(&this["runtime"]["imageFs"]["usedBytes"]) > 500_000, "busybox");
    let system: Vec<&str> =
        this["systemContainers"].as_array().expect("a list").iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(system, ["pods", "runtime", "kubelet"]);
    let brief = get_json(&node, "/stats/summary?only_cpu_and_memory=true");
    assert!(brief["node"]["fs"].is_null() && brief["pods"][0]["network"].is_null());
    assert!(number(&brief["pods"][0]["memory"]["workingSetBytes"]) > 0);

    // Probes.
    eventually("the probe is counted", secs(30), || {
        let labels = [("container", "quiet"), ("probe_type", "Readiness"), ("result", "successful"), ("pod_uid", burn.uid())];
        let all = Metrics::parse(&get(&node, "/metrics/probes"));
        all.0.contains_key("prober_probe_total") && all.value("prober_probe_total", &labels) >= 2.0
    });

    // The metrics API, and the command that reads it as kubectl does.
    let api = "/apis/metrics.k8s.io/v1beta1";
    let list = get_json(&node, &format!("{api}/pods?labelSelector=load%3Dmemory"));
    assert_eq!((&list["kind"], list["items"].as_array().map(Vec::len)), (&json!("PodMetricsList"), Some(1)));
    let one = get_json(&node, &format!("{api}/namespaces/default/pods/{}", burn.name()));
    assert_eq!((&one["kind"], &one["metadata"]["labels"]["load"]), (&json!("PodMetrics"), &json!("cpu")));
    assert_eq!(one["containers"].as_array().map(Vec::len), Some(2));
    let this = get_json(&node, &format!("{api}/nodes/{}", node.name));
    assert!(this["usage"]["cpu"].as_str().is_some_and(|cpu| cpu.ends_with('n')), "{this}");
    let table = node.cli(&["top", "pod", "hold", "--no-headers"]).ok();
    let cells: Vec<&str> = table.split_whitespace().collect();
    assert_eq!((cells[0], cells.len()), (hold.name(), 3), "{table}");
    let mebibytes: u64 = cells[2].strip_suffix("Mi").and_then(|n| n.parse().ok()).expect("Mi");
    assert!((28..120).contains(&mebibytes) && cells[1].ends_with('m'), "{table}");
    let table = node.cli(&["top", "pod", "-A", "--containers", "--sort-by", "memory", "--sum"]).ok();
    assert!(table.starts_with("NAMESPACE"), "{table}");
    assert_eq!(table.lines().count(), 1 + 3 + 2, "{table}");
    assert!(table.lines().nth(1).is_some_and(|line| line.contains(hold.name())), "{table}");
    let table = node.cli(&["top", "node"]).ok();
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(words[..6], ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)", node.name.as_str()]);
    assert!(words[7].ends_with('%') && words[9].ends_with('%') && words.len() == 10, "{table}");
    assert!(node.cli(&["top", "pod", "nobody"]).fails(1).contains("not found"));

    // What is gone is told of no more.
    node.remove("burn.yaml");
    node.wait_gone("burn");
    eventually("nothing is told of it", secs(30), || {
        let texts = ["/metrics/resource", "/metrics/cadvisor", "/metrics/probes"].map(|path| get(&node, path));
        texts.iter().all(|text| !text.contains(burn.name()) && text.is_empty() | text.ends_with('\n'))
    });
    node.finish();
}
