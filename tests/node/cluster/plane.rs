//! Kubernetes' control plane, with nodes.
//!
//! The program is the one that `CORACLE_CONTROLPLANE` names, those in the folder that `KUBEBUILDER_ASSETS` names, or what
//! `cargo xtask cluster build` has made.

use super::api::{self, Client};
use super::arguments::{AUDIT, PARTS, Place, arguments};
use crate::harness::{Authority, Kubectl, Network, Node, Out, PATIENCE, output, secs, write_accounts_key, write_pair};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The address of the control plane's machine.
const ADDRESS: &str = "192.168.0.1";
/// Its hardware address. Without one of its own a bridge takes that of a port, and another one when a machine comes or
/// goes: then nodes talk to nobody for as long as their neighbour entry is good.
const HARDWARE: &str = "02:c0:7a:c1:e0:01";
pub const SERVER: &str = "https://192.168.0.1:6443";
/// Away from all pod networks of the harness.
const SERVICES: &str = "10.200.0.0/16";
const SERVICE: &str = "10.200.0.1";
/// A start on a machine that has a lot to do.
const START: Duration = Duration::from_secs(120);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Where a program of the control plane is, and whether it is one of several in one file.
pub fn found(name: &str) -> (PathBuf, bool) {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (path, in_one) = match (named("CORACLE_CONTROLPLANE"), named("KUBEBUILDER_ASSETS")) {
        (Some(path), _) => (path, true),
        // envtest brings no controllers and no scheduler: they have to be put beside the others.
        (None, Some(folder)) => (folder.join(name), false),
        (None, None) => (Path::new(env!("CARGO_MANIFEST_DIR")).join("target/controlplane/controlplane"), true),
    };
    assert!(path.is_file(), "{} is missing: cargo xtask cluster build", path.display());
    (path, in_one)
}

/// One of the control plane's programs, ready for its arguments.
pub fn program(name: &str) -> Command {
    let (path, in_one) = found(name);
    let mut command = Command::new(path);
    command.args(in_one.then_some(name));
    command
}

/// A control plane, which ends with this, or with the tests' process, whatever ends that.
pub struct Plane {
    pub dir: PathBuf,
    pub authority: Authority,
    network: Network,
    admin: Client,
    parts: Mutex<BTreeMap<&'static str, Child>>,
    machines: AtomicU32,
    names: AtomicU32,
    /// More arguments for a part.
    more: Vec<(&'static str, &'static str)>,
    /// When the API server was about to start, and when it was ready.
    starts: Mutex<Vec<(Timestamp, Timestamp)>>,
    /// Ends what is left when its input ends, even if nobody could say so any more.
    janitor: Child,
}

/// A namespace of a test's own, as its name. It is deleted with this.
pub struct Namespace<'a> {
    plane: &'a Plane,
    name: String,
}

impl std::ops::Deref for Namespace<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Display for Namespace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Namespace<'_> {
    /// Deletes it, and all that is in it; pods end in their own time.
    pub fn end(self) {}
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let path = api::path("Namespace", "", &self.name);
        let _ = self.plane.admin.ask(&self.plane.network, "DELETE", &path, "application/json", "");
    }
}

/// The `nodeSelector` for one node.
pub fn on(node: &Node) -> Value {
    json!({ "kubernetes.io/hostname": node.name })
}

impl Plane {
    /// The control plane of all tests that do not need one of their own.
    pub fn shared() -> &'static Plane {
        static SHARED: OnceLock<Plane> = OnceLock::new();
        SHARED.get_or_init(Plane::own)
    }

    /// One that may be stopped and killed.
    #[track_caller]
    pub fn own() -> Plane {
        Plane::own_with(&[])
    }

    /// One that may be stopped and killed, with more arguments for some of its parts.
    #[track_caller]
    pub fn own_with(more: &[(&'static str, &'static str)]) -> Plane {
        let mut plane = Plane::stopped();
        plane.more = more.to_vec();
        for part in PARTS {
            plane.start(part);
            if part == "kube-apiserver" {
                plane.wait_ready();
            }
        }
        plane.kubeadms_objects();
        plane
    }

    /// Network, certificates and folders; nothing runs yet.
    #[track_caller]
    fn stopped() -> Plane {
        // Fails before anything is made when it is not there.
        PARTS.iter().for_each(|part| drop(found(part)));
        let dir =
            PathBuf::from(format!("/tmp/coracle-p{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let janitor = Command::new("sh")
            .args(["-c", JANITOR])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let network = Network::new();
        network.ip(&format!(
            "link add machines address {HARDWARE} type bridge\naddress add {ADDRESS}/16 dev machines\nlink set machines up\nroute add default dev machines\n"
        ));
        network.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("ip_forward");

        let authority = Authority::new("kubernetes");
        authority.write(&dir, "ca");
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1"];
        let names = [&names[..], &[SERVICE, ADDRESS]].concat();
        write_pair(&dir, "apiserver", authority.issue("kube-apiserver", None, &names));
        write_pair(&dir, "apiserver-kubelet-client", authority.issue("kube-apiserver-kubelet-client", None, &[]));
        write_accounts_key(&dir);
        fs::write(dir.join("audit.yaml"), AUDIT).expect("audit policy");
        for user in ["controller-manager", "scheduler"] {
            let text = authority.kubeconfig(SERVER, &format!("system:kube-{user}"), None);
            fs::write(dir.join(format!("{user}.conf")), text).expect("kubeconfig");
        }
        let admin = authority.issue("kubernetes-admin", Some("system:masters"), &[]);
        let text = crate::harness::kubeconfig(SERVER, &authority.pem, "kubernetes-admin", admin.clone());
        fs::write(dir.join("admin.conf"), text).expect("kubeconfig");
        let address = format!("{ADDRESS}:6443").parse().expect("an address");
        Plane {
            admin: Client::new(address, &authority.pem, &admin),
            dir,
            authority,
            network,
            parts: Mutex::default(),
            machines: AtomicU32::new(0),
            names: AtomicU32::new(0),
            more: Vec::new(),
            starts: Mutex::default(),
            janitor,
        }
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<&'static str, Child>> {
        // A test that failed meanwhile is no reason to fail others.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- its programs

    fn arguments(&self, part: &str) -> Vec<String> {
        let place = Place {
            dir: &self.dir,
            bind: ADDRESS,
            advertise: ADDRESS,
            port: 6443,
            etcd: 2379,
            controllers: 10257,
            services: SERVICES,
        };
        let mut all = arguments(&place, part);
        all.extend(self.more.iter().filter(|(name, _)| *name == part).map(|(_, argument)| (*argument).to_owned()));
        all
    }

    fn pid_file(&self, part: &str) -> PathBuf {
        self.dir.join(format!("{part}.pid"))
    }

    /// Starts a part: `etcd`, `kube-apiserver`, `kube-controller-manager` or `kube-scheduler`.
    #[track_caller]
    pub fn start(&self, part: &'static str) {
        let log = self.dir.join(format!("{part}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("log");
        let mut command = program(part);
        command.args(self.arguments(part)).stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        let child = self.network.inside(|| command.spawn()).unwrap_or_else(|e| panic!("{part}: {e}"));
        fs::write(self.pid_file(part), child.id().to_string()).expect("PID");
        let before = self.parts().insert(part, child);
        assert!(before.is_none(), "{part} runs already");
    }

    fn take(&self, part: &str) -> Child {
        let _ = fs::remove_file(self.pid_file(part));
        self.parts().remove(part).unwrap_or_else(|| panic!("{part} does not run"))
    }

    /// Ends a part as a power cut does.
    #[track_caller]
    pub fn kill(&self, part: &str) {
        let mut child = self.take(part);
        child.kill().expect("kill");
        child.wait().expect("reap");
    }

    /// Waits until the API server says that it is ready.
    #[track_caller]
    pub fn wait_ready(&self) {
        let (began, end) = (Timestamp::now(), Instant::now() + START);
        while !matches!(self.ask("GET", "/readyz", "text/plain", ""), Ok((200, _))) {
            let ended: Vec<&str> = self
                .parts()
                .iter_mut()
                .filter_map(|(part, child)| child.try_wait().ok().flatten().map(|_| *part))
                .collect();
            if Instant::now() > end || !ended.is_empty() {
                self.fail(&format!("the API server is not ready; ended: {ended:?}"));
            }
            sleep(secs(1) / 10);
        }
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).push((began, Timestamp::now()));
    }

    /// Fails with what the programs said last.
    #[track_caller]
    pub fn fail(&self, what: &str) -> ! {
        let tail = |part: &&str| {
            let text = fs::read(self.dir.join(format!("{part}.log"))).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {part}\n{}", lines[lines.len().saturating_sub(8)..].join("\n"))
        };
        panic!("{what}\n{}", PARTS.iter().map(tail).collect::<Vec<_>>().join("\n"));
    }

    // --- what can be asked of it, as its administrator

    /// A request by path: status code and body; an error where there is no answer.
    pub fn ask(&self, method: &str, path: &str, content: &str, body: &str) -> std::io::Result<(u16, String)> {
        self.admin.ask(&self.network, method, path, content, body)
    }

    /// A request that must work; what it answers.
    #[track_caller]
    pub fn must(&self, method: &str, path: &str, content: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        match self.ask(method, path, content, &body) {
            Ok((200..=299, text)) => serde_json::from_str(&text).unwrap_or_default(),
            other => panic!("{method} {path}: {other:?}\n{body}"),
        }
    }

    /// An object, or `Null`; `kind` as `Pod` or `pods`.
    #[track_caller]
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let path = api::path(kind, namespace, name);
        match self.ask("GET", &path, "application/json", "") {
            Ok((200, text)) => serde_json::from_str(&text).expect("JSON"),
            Ok((404, _)) => Value::Null,
            other => panic!("GET {path}: {other:?}"),
        }
    }

    /// All objects of a kind in a namespace (empty: in all); `query` as `fieldSelector=…`, or empty.
    #[track_caller]
    pub fn list(&self, kind: &str, namespace: &str, query: &str) -> Vec<Value> {
        let path = format!("{}?{query}", api::path(kind, namespace, ""));
        let list = self.must("GET", &path, "application/json", &Value::Null);
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// All pods of a node, mirror pods included.
    #[track_caller]
    pub fn pods_of(&self, node: &Node) -> Vec<Value> {
        self.list("Pod", "", &format!("fieldSelector=spec.nodeName%3D{}", node.name))
    }

    /// Server-side apply, by force; what the object is now.
    #[track_caller]
    pub fn apply(&self, object: &Value) -> Value {
        let path = format!("{}?fieldManager=test&force=true", api::path_of(object));
        self.must("PATCH", &path, "application/apply-patch+yaml", object)
    }

    /// A JSON merge patch; what the object is now.
    #[track_caller]
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Value {
        self.must("PATCH", &api::path(kind, namespace, name), "application/merge-patch+json", patch)
    }

    /// Deletes an object, in its own time; one that is not there is no error.
    #[track_caller]
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let path = api::path(kind, namespace, name);
        match self.ask("DELETE", &path, "application/json", "") {
            Ok((200 | 202 | 404, _)) => {}
            other => panic!("DELETE {path}: {other:?}"),
        }
    }

    /// Waits for a state of an object (`Null`: there is none), and fails with what it is instead.
    #[track_caller]
    pub fn wait(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        what: &str,
        mut done: impl FnMut(&Value) -> bool,
    ) -> Value {
        let end = Instant::now() + 2 * PATIENCE;
        loop {
            let object = self.get(kind, namespace, name);
            if done(&object) {
                return object;
            }
            if Instant::now() > end {
                let events = self.kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"]).stdout;
                self.fail(&format!("not in time: {kind} {namespace}/{name}: {what}\n{object:#}\n--- events\n{events}"));
            }
            sleep(secs(1) / 20);
        }
    }

    /// Waits until the pod is Ready.
    #[track_caller]
    pub fn wait_pod_ready(&self, namespace: &str, name: &str) -> Value {
        self.wait("Pod", namespace, name, "Ready", |pod| condition(pod, "Ready") == "True")
    }

    /// `kubectl` as the administrator.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> Out {
        self.kubectl_with(args, "")
    }

    #[track_caller]
    pub fn kubectl_with(&self, args: &[&str], stdin: &str) -> Out {
        let mut command = program("kubectl");
        let config = self.dir.join("admin.conf");
        command.arg("--kubeconfig").arg(config).arg("--cache-dir").arg(self.dir.join("kubectl")).args(args);
        self.inside(|| output(&mut command, stdin.as_bytes(), secs(60)))
    }

    /// kubectl as it is published, as the administrator, on the control plane's machine.
    pub fn published_kubectl(&self) -> Kubectl<'_> {
        Kubectl::new(&self.dir.join("admin.conf"), &self.dir.join("published"), Some(&self.network))
    }

    /// Does something on the control plane's machine.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.network.inside(work)
    }

    /// A new namespace in which pods can be made.
    #[track_caller]
    pub fn namespace(&self, purpose: &str) -> Namespace<'_> {
        let name = format!("{purpose}-{}", self.names.fetch_add(1, Ordering::Relaxed));
        self.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
        self.wait("ServiceAccount", &name, "default", "there", |account| !account.is_null());
        self.wait("ConfigMap", &name, "kube-root-ca.crt", "there", |map| !map.is_null());
        Namespace { plane: self, name }
    }

    /// A new bootstrap token, as `kubeadm token create` makes it.
    #[track_caller]
    pub fn token(&self) -> String {
        let n = self.names.fetch_add(1, Ordering::Relaxed);
        let (id, secret) = (format!("t{n:05}"), format!("s{n:015}"));
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": { "name": format!("bootstrap-token-{id}"), "namespace": "kube-system" },
            "stringData": {
                "token-id": id,
                "token-secret": secret,
                "usage-bootstrap-authentication": "true",
                "usage-bootstrap-signing": "true",
                "auth-extra-groups": BOOTSTRAP_GROUP,
            },
        }));
        format!("{id}.{secret}")
    }

    /// All requests of nodes, of pods and of the administrator that were answered, as `audit.k8s.io/v1` Events.
    pub fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("audit.log")).expect("audit log");
        // The last line may be half a line.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What the node was refused: when, verb, path and why. That nothing new may come into a namespace that ends is no
    /// refusal of the node, and one that an API server says before it is ready is none either: it answers before it knows
    /// whose pods are whose.
    pub fn refused(&self, node: &str) -> Vec<String> {
        let user = format!("system:node:{node}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let begins = |event: &Value| {
            let at = event["requestReceivedTimestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
            at.is_some_and(|at| starts.iter().any(|(began, ready)| (*began..*ready).contains(&at)))
        };
        let all = self.audit().into_iter().filter(|event| event["user"]["username"] == *user);
        all.filter(|event| [401, 403].contains(&event["responseStatus"]["code"].as_u64().unwrap_or(0)))
            .filter(|event| !text(&event["responseStatus"]["message"]).contains("because it is being terminated"))
            .filter(|event| {
                let unknown = text(&event["responseStatus"]["message"]).contains("no relationship found between node");
                !(unknown && begins(event))
            })
            .map(|event| {
                let why = text(&event["responseStatus"]["message"]);
                let at = text(&event["requestReceivedTimestamp"]);
                format!("{at} {} {}: {why}", text(&event["verb"]), text(&event["requestURI"]))
            })
            .collect()
    }

    // --- its nodes

    /// A machine with a cable to this control plane; the node on it has no credentials and does not run yet.
    #[track_caller]
    pub fn machine(&self) -> Node {
        let mut node = Node::new();
        let n = self.machines.fetch_add(1, Ordering::Relaxed) + 1;
        let ip = format!("192.168.{}.{}", 1 + n / 200, 1 + n % 200);
        let network = Network::new();
        self.network.ip(&format!(
            "link add {} type veth peer name eth0 netns {}\nlink set {0} master machines up\nroute add {} via {ip}\n",
            port(&node),
            network.path(),
            node.cidr,
        ));
        network.ip(&format!("address add {ip}/16 dev eth0\nlink set eth0 up\nroute add default via {ADDRESS}\n"));
        node.network = Some(network);
        // A machine of its own has the usual ports.
        node.args.extend([format!("--node-ip={ip}"), "--cluster-domain=cluster.local".to_owned()]);
        node
    }

    /// A machine with a client certificate for `system:node:<name>`; its node does not run yet.
    #[track_caller]
    pub fn node(&self) -> Node {
        let node = self.machine();
        self.enrol(&node);
        node
    }

    /// Puts a kubeconfig with a client certificate where the node looks for it.
    pub fn enrol(&self, node: &Node) {
        let text = self.authority.kubeconfig(SERVER, &format!("system:node:{}", node.name), Some("system:nodes"));
        let staged = node.dir.join("root/kubeconfig.staged");
        fs::write(&staged, text).expect("kubeconfig");
        fs::rename(staged, node.dir.join("root/kubeconfig")).expect("kubeconfig");
    }

    /// A node that runs, is Ready in the cluster, and takes pods.
    #[track_caller]
    pub fn up(&self) -> Node {
        let mut node = self.node();
        node.start();
        node.wait_for_images();
        self.wait_node_ready(&node);
        self.uncordon(&node);
        node
    }

    /// Waits until the node is Ready in the cluster.
    #[track_caller]
    pub fn wait_node_ready(&self, node: &Node) -> Value {
        let end = Instant::now() + 2 * PATIENCE;
        loop {
            let object = self.get("Node", "", &node.name);
            if condition(&object, "Ready") == "True" {
                return object;
            }
            if Instant::now() > end {
                node.fail(&format!("the node is not Ready: {object:#}"));
            }
            sleep(secs(1) / 20);
        }
    }

    #[track_caller]
    pub fn cordon(&self, node: &Node) {
        self.patch("Node", "", &node.name, &json!({ "spec": { "unschedulable": true } }));
    }

    #[track_caller]
    pub fn uncordon(&self, node: &Node) {
        self.patch("Node", "", &node.name, &json!({ "spec": { "unschedulable": null } }));
    }

    /// Pulls the node's cable: nothing goes either way.
    pub fn unplug(&self, node: &Node) {
        self.network.ip(&format!("link set {} down\n", port(node)));
    }

    pub fn plug(&self, node: &Node) {
        self.network.ip(&format!("link set {} up\n", port(node)));
    }

    /// Loses so many of 100 packets between the node and the control plane, without a word; 0: none.
    pub fn lose(&self, node: &Node, percent: u32) {
        let ip = node.args.iter().find_map(|a| a.strip_prefix("--node-ip=")).expect("an address");
        let table = format!("lose-{}", node.name);
        let chance = if percent < 100 { format!("numgen random mod 100 < {percent}") } else { String::new() };
        let mut rules = format!("table inet {table} {{ }}\ndelete table inet {table}\n");
        if percent > 0 {
            rules += &format!(
                "table inet {table} {{\n\
                 chain i {{ type filter hook input priority 0; ip saddr {ip} {chance} drop; }}\n\
                 chain o {{ type filter hook output priority 0; ip daddr {ip} {chance} drop; }}\n}}\n"
            );
        }
        self.network.tool("nft", &["-f", "-"], &rules).ok();
    }

    /// Ends a node's test: what it still has of pods goes, the agent stops, nothing may be left on the machine, the cluster
    /// forgets the node, and nothing that it asked for may have been refused.
    #[track_caller]
    pub fn finish(&self, mut node: Node) {
        if !node.runs() {
            node.start();
        }
        let manifests = fs::read_dir(node.dir.join("manifests")).into_iter().flatten().flatten();
        for entry in manifests {
            let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
        }
        let end = Instant::now() + 2 * PATIENCE;
        loop {
            let pods = self.pods_of(&node);
            if pods.is_empty() {
                break;
            }
            let of_cluster = |pod: &&Value| pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null();
            for pod in pods.iter().filter(of_cluster).filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                self.delete("Pod", &text(&pod["metadata"]["namespace"]), &text(&pod["metadata"]["name"]));
            }
            if Instant::now() > end {
                let left: Vec<String> =
                    pods.iter().map(|pod| format!("{}\n{}", pod["metadata"], pod["status"])).collect();
                node.fail(&format!("the cluster still has pods of the node:\n{}", left.join("\n")));
            }
            sleep(secs(1) / 20);
        }
        let name = node.name.clone();
        node.finish();
        self.delete("Node", "", &name);
        assert_eq!(self.refused(&name), Vec::<String>::new(), "the API server refused the node something");
    }

    /// What `kubeadm init` puts into a cluster so that nodes can join.
    #[track_caller]
    fn kubeadms_objects(&self) {
        let bind = |name: &str, role: &str, group: &str| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
                "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group }],
            })
        };
        let requests = "system:certificates.k8s.io:certificatesigningrequests";
        let mut client = bind("kubeadm:apiserver-kubelet-client", "system:kubelet-api-admin", "");
        client["subjects"][0] = json!({
            "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "kube-apiserver-kubelet-client",
        });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "contexts": null, "current-context": "", "users": null,
            "clusters": [{ "name": "", "cluster": {
                "server": SERVER,
                "certificate-authority-data": base64::Engine::encode(
                    &base64::engine::general_purpose::STANDARD, &self.authority.pem),
            } }],
        });
        let objects = [
            bind("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", BOOTSTRAP_GROUP),
            bind("kubeadm:node-autoapprove-bootstrap", &format!("{requests}:nodeclient"), BOOTSTRAP_GROUP),
            bind(
                "kubeadm:node-autoapprove-certificate-rotation",
                &format!("{requests}:selfnodeclient"),
                "system:nodes",
            ),
            client,
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": "cluster-info", "namespace": "kube-public" },
                "data": { "kubeconfig": serde_yaml::to_string(&config).expect("YAML") },
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                "metadata": { "name": "kubeadm:bootstrap-signer-clusterinfo", "namespace": "kube-public" },
                "rules": [{
                    "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"], "verbs": ["get"],
                }],
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": { "name": "kubeadm:bootstrap-signer-clusterinfo", "namespace": "kube-public" },
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io", "kind": "Role",
                    "name": "kubeadm:bootstrap-signer-clusterinfo",
                },
                "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:anonymous" }],
            }),
        ];
        self.wait("Namespace", "", "kube-public", "there", |namespace| !namespace.is_null());
        for object in objects {
            self.apply(&object);
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        for (_, mut child) in std::mem::take(&mut *self.parts()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// The status of a condition of an object, or nothing.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let all = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|c| c["type"] == kind).and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// The end of a node's cable at the control plane's machine.
fn port(node: &Node) -> String {
    format!("v{}", node.bridge).chars().take(15).collect()
}

const BOOTSTRAP_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

/// Reads until whoever holds the other end is gone, then ends what is left. What is still being written may need a second
/// look.
const JANITOR: &str = r#"
trap '' INT TERM HUP
read -r _
for file in "$0"/*.pid; do [ -e "$file" ] && kill -9 "$(cat "$file")"; done
rm -rf "$0" || { sleep 1; rm -rf "$0"; }
"#;
