//! Agents that people run on every node, as DaemonSets: Debian's node exporter, and kube-proxy by kubeadm's own add-on.

use super::plane::{SERVER, program};
use super::{Plane, condition, images, on};
use crate::harness::{BUSYBOX, Node, Out, eventually, http, output, secs, where_mounts_spread};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// kube-proxy's objects, as `kubeadm init phase addon kube-proxy` applies them, for one node.
fn kube_proxy(node: &Node) -> Vec<Value> {
    let mut kubeadm = program("kubeadm");
    kubeadm.args(["init", "phase", "addon", "kube-proxy", "--print-manifest", "--kubernetes-version=v1.36.3"]);
    // Of a network for documentation: not in what is printed.
    kubeadm.arg("--apiserver-advertise-address=192.0.2.1");
    kubeadm.arg(format!("--control-plane-endpoint={}", SERVER.trim_start_matches("https://")));
    let text = output(&mut kubeadm, b"", secs(20)).ok();
    // nf_tables by `nft`; the conntrack table's size is the whole machine's, and stays.
    let text = text
        .replace("mode: \"\"", "mode: nftables")
        .replace("maxPerCore: null", "maxPerCore: 0")
        .replace("conntrack:\n      maxPerCore: 0\n      min: null", "conntrack:\n      maxPerCore: 0\n      min: 0");
    let documents = text.split("\n---\n").map(|text| text.trim().trim_start_matches("---"));
    let mut objects: Vec<Value> =
        documents.filter(|text| !text.is_empty()).map(|text| serde_yaml::from_str(text).expect("YAML")).collect();
    let set = objects.iter_mut().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    let spec = &mut set["spec"]["template"]["spec"];
    spec["nodeSelector"] = on(node);
    for volume in spec["volumes"].as_array_mut().expect("volumes") {
        // This machine's stays as it is.
        if volume["hostPath"]["path"] == "/run/xtables.lock" {
            volume["hostPath"]["path"] = json!(node.dir.join("share/xtables.lock"));
        }
    }
    objects
}

/// Everything of the machine that a node exporter looks at.
fn exporter(namespace: &str, node: &Node, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "node-exporter", "namespace": namespace },
        "spec": {
            "selector": { "matchLabels": { "app": "node-exporter" } },
            "template": {
                "metadata": { "labels": { "app": "node-exporter" } },
                "spec": {
                    "nodeSelector": on(node),
                    "hostNetwork": true,
                    "hostPID": true,
                    "tolerations": [{ "operator": "Exists" }],
                    "securityContext": { "runAsNonRoot": true, "runAsUser": 65534 },
                    "containers": [{
                        "name": "node-exporter", "image": image, "imagePullPolicy": "IfNotPresent",
                        "args": [
                            "--path.rootfs=/host/root", "--path.procfs=/host/proc", "--path.sysfs=/host/sys",
                            "--web.listen-address=$(HOST_IP):9100",
                        ],
                        "env": [{ "name": "HOST_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.hostIP" } } }],
                        "ports": [{ "name": "metrics", "containerPort": 9100, "hostPort": 9100 }],
                        "readinessProbe": { "httpGet": { "path": "/", "port": "metrics" }, "periodSeconds": 1 },
                        "securityContext": {
                            "readOnlyRootFilesystem": true,
                            "allowPrivilegeEscalation": false,
                            "capabilities": { "drop": ["ALL"] },
                        },
                        "volumeMounts": [
                            { "name": "root", "mountPath": "/host/root", "readOnly": true, "mountPropagation": "HostToContainer" },
                            { "name": "proc", "mountPath": "/host/proc", "readOnly": true },
                            { "name": "sys", "mountPath": "/host/sys", "readOnly": true },
                        ],
                    }],
                    "volumes": [
                        { "name": "root", "hostPath": { "path": "/" } },
                        { "name": "proc", "hostPath": { "path": "/proc" } },
                        { "name": "sys", "hostPath": { "path": "/sys" } },
                    ],
                },
            },
        },
    })
}

/// A pod on the node that serves one page on port 80, or only rests.
fn busybox(namespace: &str, node: &Node, name: &str, page: Option<&str>) -> Value {
    let script = match page {
        Some(page) => format!("mkdir /www && echo {page} > /www/index.html && exec httpd -f -p 80 -h /www"),
        None => crate::harness::REST.to_owned(),
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": { "app": if page.is_some() { "web" } else { "client" } } },
        "spec": {
            "nodeSelector": on(node),
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script] }],
        },
    })
}

#[test]
fn a_node_exporter_and_kube_proxy_run_as_daemonsets_and_services_work() {
    // Outside: it outlives this test, and would hold the test's mounts.
    Plane::shared();
    // The exporter wants to see mounts as they come.
    where_mounts_spread(agents_and_services);
}

fn agents_and_services() {
    let plane = Plane::shared();
    let mut node = plane.node();
    // As where br_netfilter is not loaded: what pods of one node say to each other passes no rules for IP.
    node.inside(|| {
        let bridged = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
        bridged.exists().then(|| std::fs::write(bridged, "0").expect("bridge-nf-call-iptables"))
    });
    // How full the disk of this machine is, is of no interest.
    node.configure(json!({
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%" },
    }));
    let (archive, exporter_image) = images::node_exporter();
    node.drop_image(&archive, "node-exporter.tar");
    node.drop_image(images::control_plane(), "controlplane.tar");
    node.start();
    node.wait_for_images();
    plane.wait_node_ready(&node);
    for object in kube_proxy(&node) {
        plane.apply(&object);
    }
    let space = plane.namespace("agents");
    plane.apply(&exporter(&space, &node, exporter_image));
    let all_ready = |set: &Value| {
        let status = &set["status"];
        status["desiredNumberScheduled"] == 1 && status["numberReady"] == 1 && status["numberMisscheduled"] == 0
    };

    // The node is cordoned: agents land all the same.
    plane.wait("DaemonSet", &space, "node-exporter", "ready", all_ready);
    plane.wait("DaemonSet", "kube-system", "kube-proxy", "ready", all_ready);
    let pods = plane.pods_of(&node);
    let proxy = pods.iter().find(|pod| pod["metadata"]["labels"]["k8s-app"] == "kube-proxy").expect("kube-proxy");
    assert_eq!(proxy["spec"]["priority"], 2_000_001_000, "{}", proxy["spec"]);
    let told = plane.get("Node", "", &node.name);
    let ip = told["status"]["addresses"].as_array().and_then(|all| all.iter().find(|a| a["type"] == "InternalIP"));
    let ip = ip.and_then(|address| address["address"].as_str()).expect("an address").to_owned();
    assert_eq!(proxy["status"]["hostIP"], ip, "{}", proxy["status"]);
    assert_eq!(proxy["status"]["podIP"], ip, "{}", proxy["status"]);
    // What the exporter sees is the machine: asked over the network, by another machine.
    let (code, metrics) = plane.inside(|| http(format!("{ip}:9100"), "/metrics")).expect("the exporter answers");
    assert_eq!(code, 200);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("kernel");
    for known in [
        format!("release=\"{}\"", kernel.trim()),
        "node_cpu_seconds_total{".into(),
        "node_memory_MemTotal_bytes".into(),
    ] {
        assert!(metrics.contains(&known), "{known}: {}", metrics.len());
    }
    let booted = |text: &str| text.lines().find_map(|l| l.strip_prefix("node_boot_time_seconds ")?.parse::<f64>().ok());
    assert!(booted(&metrics).is_some_and(|at| at > 0.0), "boot time");

    // A Service of pods, by kube-proxy's rules.
    plane.uncordon(&node);
    plane.apply(&busybox(&space, &node, "web-a", Some("first")));
    plane.apply(&busybox(&space, &node, "client", None));
    let service = plane.apply(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": &*space },
        "spec": { "type": "NodePort", "selector": { "app": "web" }, "ports": [{ "port": 8080, "targetPort": 80 }] },
    }));
    let cluster_ip = service["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    let node_port = service["spec"]["ports"][0]["nodePort"].as_u64().expect("a port");
    plane.wait_pod_ready(&space, "web-a");
    plane.wait_pod_ready(&space, "client");
    // By nc: wget of a static busybox looks for the C library's plugins, and crashes without them.
    let asked = |pod: &str, address: &str, port: &str| {
        let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} {port} | tail -n 1");
        node.cli(&["exec", "-n", &space, pod, "--", "sh", "-c", &script])
    };
    let limit = secs(60);
    let answers = |what: &str, page: &str| {
        let mut last = None;
        let end = Instant::now() + limit;
        while last.as_ref().is_none_or(|out: &Out| out.stdout != page) {
            if Instant::now() > end {
                node.fail(&format!("{what}: {last:?}"));
            }
            last = Some(asked("client", &cluster_ip, "8080"));
        }
    };
    answers("a pod reaches a pod through the Service", "first\n");
    let reached = plane.inside(|| http(format!("{ip}:{node_port}"), "/"));
    assert!(reached.is_ok_and(|(code, body)| code == 200 && body == "first\n"), "a machine reaches it by its port");
    assert_eq!(asked("web-a", &cluster_ip, "8080").stdout, "first\n", "a pod reaches itself by its Service");
    // The pod behind it is another one, and the API server is a Service, too.
    plane.apply(&busybox(&space, &node, "web-b", Some("second")));
    plane.delete("Pod", &space, "web-a");
    answers("the Service follows its pods", "second\n");
    let api = asked("client", "10.200.0.1", "443");
    assert!(api.stdout.contains("HTTP request to an HTTPS server"), "a pod reaches the API server: {api:?}");
    // Taken away again, it is refused: rules of a Service without pods.
    plane.delete("Pod", &space, "web-b");
    let refused = |out: Out| out.stdout.is_empty() && out.stderr.contains("Connection refused");
    eventually("nobody answers any more", limit, || refused(asked("client", &cluster_ip, "8080")));

    // The agents' own end: those of a deleted DaemonSet stop, and nobody else.
    plane.delete("DaemonSet", "kube-system", "kube-proxy");
    let name = proxy["metadata"]["name"].as_str().expect("a name").to_owned();
    plane.wait("Pod", "kube-system", &name, "gone", Value::is_null);
    let exporter = plane.list("Pod", &space, "labelSelector=app%3Dnode-exporter");
    assert!(exporter.iter().all(|pod| condition(pod, "Ready") == "True"), "{exporter:?}");
    // What is left of its rules goes with the machine.
    node.inside(|| output(Command::new("nft").args(["delete", "table", "ip", "kube-proxy"]), b"", secs(10))).ok();
    space.end();
    plane.finish(node);
}
