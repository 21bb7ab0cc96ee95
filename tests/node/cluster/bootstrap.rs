//! The chicken and the egg: a node runs the control plane of the cluster that it then joins.

use super::images;
use super::plane::{condition, program};
use crate::control_plane::{ADDRESS, in_a_network_of_its_own, kubernetes_certificates, manifest, placed, roomy_node};
use crate::harness::{Node, Out, PodView, output, secs};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Instant;

const NAMES: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

fn kubectl(config: &Path, args: &[&str]) -> Out {
    let mut command = program("kubectl");
    command.arg("--kubeconfig").arg(config).arg("--cache-dir").arg(config.with_extension("cache")).args(args);
    output(&mut command, b"", secs(60))
}

/// An object, once it is as it should be.
#[track_caller]
fn wait(node: &Node, config: &Path, what: &[&str], done: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + secs(120);
    loop {
        let out = kubectl(config, &[&["get", "-o", "json"], what].concat());
        let object: Value = serde_json::from_str(&out.stdout).unwrap_or_default();
        if done(&object) {
            return object;
        }
        if Instant::now() > end {
            node.fail(&format!("{what:?}: {object:#}\n{}", out.stderr));
        }
        std::thread::sleep(secs(1) / 5);
    }
}

/// Tells whoever looks on (`cargo xtask demo bootstrap`) how far it is.
struct Told(Instant);

impl Told {
    fn say(&self, what: &str) {
        println!("{:6.1} s  {what}", self.0.elapsed().as_secs_f64());
    }

    /// A command as a person would type it, and what it said.
    fn show(command: &str, out: Out) {
        let text = out.ok();
        println!("          $ {command}");
        text.lines().for_each(|line| println!("          {line}"));
        println!();
    }
}

#[test]
fn kubeadms_control_plane_runs_as_static_pods_and_its_node_joins_it() {
    in_a_network_of_its_own(|| {
        let told = Told(Instant::now());
        let mut node = roomy_node();
        let machine = node.dir.join("share/machine");
        let authority = kubernetes_certificates(&machine);
        let server = format!("https://{ADDRESS}:6443");
        let admin = node.dir.join("admin.conf");
        fs::write(&admin, authority.kubeconfig(&server, "kubernetes-admin", Some("system:masters"))).expect("admin");
        node.drop_image(images::control_plane(), "controlplane.tar");
        node.start();
        println!();
        told.say("coracle runs: a node of no cluster, and there is no API server anywhere");
        let imported = Instant::now() + secs(120);
        while !node.cli(&["image", "ls"]).stdout.contains("controlplane") {
            assert!(Instant::now() < imported, "the image was not imported");
            std::thread::sleep(secs(1) / 10);
        }
        told.say("the image of the control plane is imported from its archive");
        for name in NAMES {
            let pod = placed(manifest(name), &machine, images::CONTROL_PLANE);
            node.apply(&format!("{name}.yaml"), &pod);
        }
        told.say("kubeadm's four manifests are in the folder of static pods");
        // Ready is what their probes say: /livez and /readyz of the API server among them.
        let static_pod = |pods: &[PodView], name: &str| {
            pods.iter().find(|pod| pod.name() == format!("{name}-{}", node.name)).cloned()
        };
        let ready =
            |pods: &[PodView], name: &str| static_pod(pods, name).is_some_and(|pod| pod.condition("Ready") == "True");
        node.wait("the control plane is ready", secs(300), |pods| NAMES.iter().all(|name| ready(pods, name)));
        told.say("all four are Ready by their probes");
        Told::show("coracle ps -A", node.cli(&["ps", "-A"]));
        // They work together: who leads is in the API server, and that in etcd.
        for leader in ["kube-controller-manager", "kube-scheduler"] {
            let lease = ["lease", "-n", "kube-system", leader];
            wait(&node, &admin, &lease, |lease| lease["spec"]["holderIdentity"].is_string());
        }
        let nodes = kubectl(&admin, &["get", "nodes", "-o", "name"]).ok();
        assert_eq!(nodes, "", "the node that runs it stands alone");
        told.say("the API server answers; it knows of no node");

        // Credentials come while it runs.
        let user = format!("system:node:{}", node.name);
        let before = node.pods();
        let staged = node.dir.join("kubeconfig");
        fs::write(&staged, authority.kubeconfig(&server, &user, Some("system:nodes"))).expect("kubeconfig");
        fs::rename(staged, node.dir.join("root/kubeconfig")).expect("kubeconfig");
        let object = wait(&node, &admin, &["node", &node.name], |object| condition(object, "Ready") == "True");
        assert_eq!(object["spec"]["unschedulable"], true, "{object}");
        told.say("the same coracle got a kubeconfig, joined the cluster that it runs, and is Ready there");
        for name in NAMES {
            let full = format!("{name}-{}", node.name);
            let mirror =
                wait(&node, &admin, &["pod", "-n", "kube-system", &full], |pod| condition(pod, "Ready") == "True");
            let pod = static_pod(&before, name).expect("there");
            let mark = &mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"];
            assert_eq!(mark, pod.0["metadata"]["annotations"]["kubernetes.io/config.hash"].as_str().unwrap_or("?"));
            let told = &mirror["status"]["containerStatuses"][0];
            assert_eq!(told["containerID"], pod.container(name)["containerID"], "{told}");
            assert_eq!(told["restartCount"], 0, "{told}");
            assert_eq!(mirror["metadata"]["labels"]["component"], name);
        }
        told.say("it shows its pods as mirror pods: the same containers, none restarted");
        Told::show("kubectl get nodes", kubectl(&admin, &["get", "nodes"]));
        Told::show("kubectl get pods -A -o wide", kubectl(&admin, &["get", "pods", "-A", "-o", "wide"]));
        Told::show("coracle status", node.cli(&["status"]));
        told.say("the manifests go; the API server waits for its watchers, as long as it may");
        // Its own node watches what it serves: an API server waits for that when it stops, as long as it may.
        for name in NAMES {
            node.remove(&format!("{name}.yaml"));
        }
        node.wait("all are gone", secs(90), <[PodView]>::is_empty);
        node.finish();
        told.say("everything has ended, and nothing is left on the machine");
    });
}
