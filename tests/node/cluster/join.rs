//! Into a cluster and out of it: tokens, certificates and their renewal, clocks that are wrong.

use super::Plane;
use super::plane::{SERVER, program};
use crate::harness::{Node, Out, PATIENCE, eventually, output, page, resting, secs};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use x509_parser::prelude::{FromDer, X509Certificate};

/// `coracle` with these arguments, from the node's machine.
fn on_machine(node: &Node, args: &[&str]) -> Out {
    node.inside(|| output(&mut node.command(args), b"", 2 * PATIENCE))
}

fn join(node: &Node, token: &str, hash: &str, timeout: &str) -> Out {
    let hash = format!("--discovery-token-ca-cert-hash={hash}");
    on_machine(node, &["join", "192.168.0.1:6443", "--token", token, &hash, "--timeout", timeout])
}

/// As `kubeadm token create --print-join-command` prints it.
fn hash(plane: &Plane) -> String {
    let der = CertificateDer::from_pem_slice(plane.authority.pem.as_bytes()).expect("PEM");
    let (_, read) = X509Certificate::from_der(&der).expect("a certificate");
    let digest = Sha256::digest(read.public_key().raw);
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// How the node stands to the cluster.
fn cluster(node: &Node) -> Value {
    let out = node.cli(&["status", "-o", "json"]);
    serde_json::from_str::<Value>(&out.stdout).expect("JSON")["cluster"].clone()
}

fn wait_state(node: &Node, what: &str, mut done: impl FnMut(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let end = std::time::Instant::now() + 3 * PATIENCE;
    while std::time::Instant::now() < end {
        last = cluster(node);
        if done(&last) {
            return last;
        }
        std::thread::sleep(secs(1) / 10);
    }
    node.fail(&format!("{what}: {last:#}"))
}

fn joined(node: &Node) -> Value {
    wait_state(node, "joined", |state| state["state"] == "Joined")
}

fn current(node: &Node) -> PathBuf {
    fs::read_link(node.dir.join("root/pki/kubelet-client-current.pem")).unwrap_or_default()
}

/// The requests for certificates that a user made.
fn requests(plane: &Plane, user: &str) -> Vec<Value> {
    let all = plane.list("CertificateSigningRequest", "", "");
    all.into_iter().filter(|request| request["spec"]["username"] == *user).collect()
}

#[test]
fn a_lone_node_joins_by_a_token_and_leaves_again_while_its_pod_runs_on() {
    let plane = Plane::shared();
    let mut node = plane.machine();
    node.start();
    node.wait_for_images();
    let id = node.run(&resting("web")).id("main");
    assert_eq!(cluster(&node)["state"], "Alone");
    assert!(node.cli(&["status"]).stdout.contains("Cluster:    none"));

    // What does not fit is named, and nothing is written.
    let (token, hash) = (plane.token(), hash(plane));
    let (token_id, _) = token.split_once('.').expect("a token");
    let other = format!("sha256:{}", "0".repeat(64));
    let refused = join(&node, &token, &other, "40s").fails(1);
    assert!(refused.contains(&format!("its key is {hash}")) && refused.contains("hint: "), "{refused}");
    let refused = join(&node, &format!("{token_id}.{}", "x".repeat(16)), &hash, "40s").fails(1);
    assert!(refused.contains("cluster-info is not signed with this token"), "{refused}");
    let refused = join(&node, "zzzzzz.0123456789abcdef", &hash, "1s").fails(1);
    assert!(refused.contains("does not know the token zzzzzz, or it has expired"), "{refused}");
    let refused = on_machine(&node, &["join", "192.168.0.1", "--token", &token]).fails(2);
    assert!(refused.contains("--discovery-token-ca-cert-hash is missing"), "{refused}");
    let pin = format!("--discovery-token-ca-cert-hash={hash}");
    let refused = on_machine(&node, &["join", "192.168.0.1:1", "--token", &token, "--timeout=1s", &pin]).fails(1);
    assert!(refused.contains("Connection refused"), "{refused}");
    assert!(!node.dir.join("root/bootstrap-kubeconfig").exists() && !node.dir.join("root/kubeconfig").exists());

    // One that signs, but may not ask: the agent says so, and goes on when there is a better one.
    let poor = plane.token();
    let secret = format!("bootstrap-token-{}", poor.split('.').next().expect("an ID"));
    let no = STANDARD.encode("false");
    plane.patch("Secret", "kube-system", &secret, &json!({ "data": { "usage-bootstrap-authentication": no } }));
    let waited = join(&node, &poor, &hash, "8s").fails(1);
    assert!(waited.contains("not registered yet") && waited.contains("401 Unauthorized"), "{waited}");
    assert_eq!(cluster(&node)["state"], "Waiting");
    assert_eq!(node.wait_up("web").id("main"), id);

    let said = join(&node, &token, &hash, "60s").ok();
    assert!(said.contains(&format!("Node {} is part of the cluster.", node.name)), "{said}");
    let state = joined(&node);
    assert_eq!((&state["server"], &state["registered"]), (&json!(SERVER), &json!(true)), "{state:#}");
    assert!(!plane.get("Node", "", &node.name).is_null());

    // The files are the kubelet's.
    let root = node.dir.join("root");
    let mode = |file: &str| fs::metadata(root.join(file)).expect("a file").permissions().mode() & 0o777;
    assert_eq!((mode("kubeconfig"), mode("pki"), mode("pki/kubelet-client-current.pem")), (0o600, 0o700, 0o600));
    assert!(!root.join("bootstrap-kubeconfig").exists(), "the token has done what it was for");
    let kubeconfig = fs::read_to_string(root.join("kubeconfig")).expect("kubeconfig");
    assert!(kubeconfig.contains("default-auth") && kubeconfig.contains("kubelet-client-current.pem"), "{kubeconfig}");
    let pem = fs::read_to_string(current(&node)).expect("the certificate");
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----") && pem.contains("-----BEGIN EC PRIVATE KEY-----"));
    let name = current(&node).file_name().expect("a name").to_string_lossy().into_owned();
    assert!(name.starts_with("kubelet-client-20") && name.len() == "kubelet-client-2026-01-31-23-59-59.pem".len());

    let asked = requests(plane, &format!("system:bootstrap:{token_id}"));
    let [request] = &asked[..] else { panic!("one request: {asked:#?}") };
    assert_eq!(request["metadata"]["generateName"], "csr-");
    assert_eq!(request["spec"]["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
    assert_eq!(request["spec"]["usages"], json!(["digital signature", "client auth"]));

    // kubectl on the node is the node.
    let mut whoami = program("kubectl");
    whoami.arg("--kubeconfig").arg(root.join("kubeconfig")).arg("--cache-dir").arg(node.dir.join("kubectl"));
    whoami.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]);
    let user = node.inside(|| output(&mut whoami, b"", PATIENCE)).ok();
    assert_eq!(user, format!("system:node:{}", node.name));
    let address = format!("127.0.0.1:{}", node.healthz);
    let metrics = node.inside(|| page(&address, "/metrics"));
    let ttl = metrics.lines().find_map(|line| line.strip_prefix("kubelet_certificate_manager_client_ttl_seconds "));
    let ttl: f64 = ttl.expect("the metric").parse().expect("a number");
    assert!((300.0 * 86400.0..366.0 * 86400.0).contains(&ttl), "{ttl}");
    assert!(metrics.lines().any(|line| line.starts_with("rest_client_requests_total{code=\"2")), "{metrics}");
    let again = join(&node, &token, &hash, "5s").fails(1);
    assert!(again.contains("in a cluster already") && again.contains("coracle reset"), "{again}");

    let said = on_machine(&node, &["reset"]).ok();
    assert!(said.contains(&format!("kubectl delete node {}", node.name)), "{said}");
    assert_eq!(cluster(&node)["state"], "Alone");
    assert!(
        current(&node).as_os_str().is_empty() && !root.join("kubeconfig").exists() && !root.join("cluster").exists()
    );
    eventually("the mirror pods are gone", PATIENCE, || plane.pods_of(&node).is_empty());
    assert_eq!(node.wait_up("web").id("main"), id, "the static pod was not touched");
    assert_eq!(plane.refused(&node.name), Vec::<String>::new());
    plane.delete("Node", "", &node.name);
    node.remove("web.yaml");
    node.wait_gone("web");
    node.finish();
}

#[test]
fn a_certificate_is_renewed_in_time_and_a_wrong_clock_is_told_and_survived() {
    let plane = Plane::shared();
    let mut node = plane.machine();
    let clock = node.dir.join("clock");
    let ahead = |seconds: i64| {
        let staged = clock.with_extension("staged");
        fs::write(&staged, seconds.to_string()).expect("clock");
        fs::rename(&staged, &clock).expect("clock");
    };
    ahead(0);
    node.env.push(("CORACLE_TEST_CLOCK".to_owned(), clock.display().to_string()));
    node.start();
    node.wait_for_images();
    let id = node.run(&resting("web")).id("main");

    // As kubeadm leaves it; the agent finds it by itself.
    let token = plane.token();
    let authority = STANDARD.encode(&plane.authority.pem);
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "clusters": [{ "name": "k", "cluster": { "server": SERVER, "certificate-authority-data": authority } }],
        "users": [{ "name": "u", "user": { "token": token } }],
    });
    fs::write(node.dir.join("root/bootstrap-kubeconfig"), text.to_string()).expect("bootstrap-kubeconfig");
    let state = joined(&node);
    let first = current(&node);
    // The agent that got it would not believe a clock by which it ends so soon.
    node.restart();
    joined(&node);
    let expires: jiff::Timestamp = state["certificateExpires"].as_str().expect("an end").parse().expect("a time");

    // An hour before the end it is due for certain; by that clock the next one is due at once, and yet not asked for.
    let left = expires.duration_since(jiff::Timestamp::now()).as_secs();
    ahead(left - 3600);
    eventually("there is another certificate", 2 * PATIENCE, || current(&node) != first);
    let user = format!("system:node:{}", node.name);
    node.wait_event("told", |reason, _| reason == "CertificateRenewed");
    joined(&node);
    let second = current(&node);
    let content = fs::read_to_string(&second).expect("the certificate");
    assert_ne!(content, fs::read_to_string(&first).unwrap_or_default());

    // Nobody there, the agent started again, and a clock by which the own certificate, and then the server's, has expired.
    plane.unplug(&node);
    node.restart();
    let state = wait_state(&node, "unreachable", |state| state["state"] == "Unreachable");
    assert!(state["since"].is_string() && state["message"].is_string(), "{state:#}");
    ahead(2200 * 365 * 86400);
    plane.plug(&node);
    let state = wait_state(&node, "the clock is named", |state| {
        state["message"].as_str().is_some_and(|why| why.contains("has expired by this machine's clock"))
    });
    assert!(state["message"].as_str().is_some_and(|why| why.contains("set the clock")), "{state:#}");
    assert_eq!(node.wait_up("web").id("main"), id);
    ahead(0);
    joined(&node);
    assert_eq!(current(&node), second);
    assert_eq!(requests(plane, &user).len(), 1, "a clock that is ahead has no certificate renewed again and again");
    assert_eq!(node.wait_up("web").id("main"), id);
    assert_eq!(plane.refused(&node.name), Vec::<String>::new());

    // Credentials that go: the node stands alone, and nothing else happens.
    fs::remove_file(node.dir.join("root/bootstrap-kubeconfig")).expect("remove");
    fs::remove_file(node.dir.join("root/kubeconfig")).expect("remove");
    wait_state(&node, "alone", |state| state["state"] == "Alone");
    assert_eq!(node.wait_up("web").id("main"), id);
    // And come back damaged, then whole.
    fs::write(node.dir.join("root/kubeconfig"), "current-context: nowhere").expect("kubeconfig");
    let state = wait_state(&node, "damaged", |state| state["state"] == "Waiting");
    assert!(state["message"].as_str().is_some_and(|why| why.contains("not among the contexts")), "{state:#}");
    plane.enrol(&node);
    joined(&node);
    plane.finish(node);
}

/// What `kubeadm init` leaves for `kubeadm join`, besides what the control plane has already.
fn kubeadms_configuration(plane: &Plane, healthz: u16) {
    let map = |name: &str, key: &str, value: Value| {
        let text = serde_yaml::to_string(&value).expect("YAML");
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "kube-system" },
            "data": { key: text },
        })
    };
    let group = "system:bootstrappers:kubeadm:default-node-token";
    let cluster = json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration", "kubernetesVersion": "v1.36.3",
        "clusterName": "kubernetes", "controlPlaneEndpoint": "192.168.0.1:6443",
        "networking": { "serviceSubnet": "10.200.0.0/16", "dnsDomain": "cluster.local" },
    });
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": { "anonymous": { "enabled": false }, "x509": { "clientCAFile": "/etc/kubernetes/pki/ca.crt" } },
        "authorization": { "mode": "Webhook" }, "cgroupDriver": "systemd", "clusterDNS": ["10.200.0.10"],
        "clusterDomain": "cluster.local", "healthzBindAddress": "127.0.0.1", "healthzPort": healthz,
        "rotateCertificates": true, "staticPodPath": "/etc/kubernetes/manifests",
    });
    let role = |kind: &str, namespace: Value, rules: Value| {
        let mut object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": { "name": "kubeadm:join" },
            "rules": [rules],
        });
        object["metadata"]["namespace"] = namespace;
        object
    };
    let binding = |kind: &str, of: &str, namespace: Value| {
        let mut object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": { "name": "kubeadm:join" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": of, "name": "kubeadm:join" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group }],
        });
        object["metadata"]["namespace"] = namespace;
        object
    };
    let maps = json!({ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"] });
    let nodes = json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get"] });
    for object in [
        map("kubeadm-config", "ClusterConfiguration", cluster),
        map("kubelet-config", "kubelet", kubelet),
        role("Role", json!("kube-system"), maps),
        binding("RoleBinding", "Role", json!("kube-system")),
        role("ClusterRole", Value::Null, nodes),
        binding("ClusterRoleBinding", "ClusterRole", Value::Null),
    ] {
        plane.apply(&object);
    }
}

/// kubeadm on a machine without a service manager: its part is played by what starts the kubelet when kubeadm would. The
/// folders that kubeadm knows are this process' own.
const KUBEADM: &str = r#"
set -e
cd "$DIR"
mount --make-rprivate /
mkdir machine
mount -t tmpfs machine machine
for folder in etc var/lib; do
    mkdir -p "machine/$folder/upper" "machine/$folder/work"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$DIR/machine/$folder/upper,workdir=$DIR/machine/$folder/work" "/$folder"
done
rm -rf /etc/kubernetes /var/lib/kubelet
mkdir -p /etc/kubernetes/manifests /var/lib/kubelet bin
ln -s "$CORACLE" bin/kubelet
export PATH="$DIR/bin:$PATH"
kubelet --version
(
    until [ -e /var/lib/kubelet/kubeadm-flags.env ]; do sleep 0.1; done
    . /var/lib/kubelet/kubeadm-flags.env
    exec kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
        --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS $ARGS >"$DIR/agent.log" 2>&1
) &
kubelet=$!
trap 'kill $kubelet; wait $kubelet' EXIT
"$@" join 192.168.0.1:6443 --token "$TOKEN" --discovery-token-ca-cert-hash "$HASH" --node-name "$NAME" \
    --skip-phases=preflight --cri-socket=unix:///run/none.sock
test ! -e /etc/kubernetes/bootstrap-kubelet.conf
until coracle_state | grep -q '"registered": *true'; do sleep 0.2; done
ls -l /var/lib/kubelet/pki
cat /etc/kubernetes/kubelet.conf
"#;

#[test]
fn kubeadm_joins_a_machine_whose_kubelet_is_coracle() {
    let plane = Plane::shared();
    let node = plane.machine();
    kubeadms_configuration(plane, node.healthz);
    let kubeadm = program("kubeadm");
    let skip = |arg: &String| {
        ["--hostname-override", "--healthz-port", "--pod-manifest-path"].iter().any(|flag| arg.starts_with(flag))
    };
    let agent = node.agent_command();
    let args = agent.get_args().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let args: Vec<String> = args.filter(|arg| !skip(arg)).collect();
    let state = "coracle_state() { \"$CORACLE\" status -o json; }\n";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c"]).arg(format!("{state}{KUBEADM}")).arg("sh").arg(kubeadm.get_program());
    command.args(kubeadm.get_args());
    command.env("DIR", &node.dir).env("CORACLE", crate::harness::binary()).env("ARGS", args.join(" "));
    command.env("CORACLE_RUN_DIR", node.dir.join("run")).env("NAME", &node.name);
    command.env("TOKEN", plane.token()).env("HASH", hash(plane));
    let out = node.inside(|| output(&mut command, b"", 4 * PATIENCE));
    let log = fs::read_to_string(node.dir.join("agent.log")).unwrap_or_default();
    assert_eq!(out.code, Some(0), "{}\n{}\n--- agent\n{log}", out.stdout, out.stderr);
    for text in
        ["Kubernetes v1.36.3\n", "This node has joined the cluster", "kubelet-client-current.pem -> ", "default-auth"]
    {
        assert!(out.stdout.contains(text), "{text}: {}\n{}", out.stdout, out.stderr);
    }
    assert!(!plane.get("Node", "", &node.name).is_null());
    assert_eq!(plane.refused(&node.name), Vec::<String>::new());
    plane.delete("Node", "", &node.name);
    node.finish();
}
