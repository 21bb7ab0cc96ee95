//! kubeadm's control plane from kubeadm's own manifests, for real: Debian's etcd here, all of it in `cluster::bootstrap`.
//!
//! Each test has a network of its own with the address that the manifests name, so that of a manifest only the images and
//! the folders on the machine are other ones. Debian's etcd is older than what kubeadm ships; what it does not know is
//! replaced by what it called the same thing, see [`as_known`].

use crate::cluster::images::layer;
use crate::harness::{Authority, Node, Out, docker_archive, output, secs, signal, write_accounts_key, write_pair};
use nix::sched::{CloneFlags, unshare};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Instant;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/kubeadm");
/// The address of the corpus' control plane.
pub const ADDRESS: &str = "192.168.10.11";

/// Runs `test` on a machine with no network but its own address.
pub fn in_a_network_of_its_own(test: fn()) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let address = format!("{ADDRESS}/24");
        for args in [
            &["link", "set", "lo", "up"][..],
            &["link", "add", "uplink", "type", "veth", "peer", "name", "nobody"],
            &["link", "set", "nobody", "up"],
            &["address", "add", &address, "dev", "uplink"],
            &["link", "set", "uplink", "up"],
            &["route", "add", "default", "dev", "uplink"],
        ] {
            output(Command::new("ip").args(args), b"", secs(10)).ok();
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// `<pki>/etcd`, with everything that signs and is signed there.
fn etcd_certificates(pki: &Path) -> Authority {
    let (authority, dir) = (Authority::new("etcd-ca"), pki.join("etcd"));
    authority.write(&dir, "ca");
    for name in ["server", "peer"] {
        write_pair(&dir, name, authority.issue("cp1", None, &["cp1", "localhost", ADDRESS, "127.0.0.1"]));
    }
    write_pair(&dir, "healthcheck-client", authority.issue("kube-etcd-healthcheck-client", None, &[]));
    authority
}

/// A manifest of the corpus.
pub fn manifest(name: &str) -> Value {
    let text = fs::read_to_string(format!("{CORPUS}/{name}.yaml")).expect("manifest");
    serde_yaml::from_str(&text).expect("YAML")
}

/// Puts the machine's folders below `machine`, and another image in place of kubeadm's.
pub fn placed(mut pod: Value, machine: &Path, image: &str) -> Value {
    for volume in pod["spec"]["volumes"].as_array_mut().expect("volumes") {
        let path = volume["hostPath"]["path"].as_str().expect("a path").trim_start_matches('/').to_owned();
        let path = machine.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        volume["hostPath"]["path"] = json!(path);
    }
    pod["spec"]["containers"][0]["image"] = json!(image);
    pod
}

/// What a program says of itself.
fn said(program: &Path, argument: &str) -> String {
    let out = output(Command::new(program).arg(argument), b"", secs(10));
    format!("{}{}", out.stdout, out.stderr)
}

/// What this etcd does not know of the manifest, in its own words:
///
/// - `--feature-gates=InitialCorruptCheck=true` (3.6) was `--experimental-initial-corrupt-check` (3.4, 3.5);
/// - `--watch-progress-notify-interval` (3.6) was `--experimental-watch-progress-notify-interval`;
/// - `/livez` and `/readyz` came with 3.4.29 and 3.5.11; before, there was `/health`.
fn as_known(mut pod: Value, etcd: &Path) -> Value {
    let (help, version) = (said(etcd, "--help"), said(etcd, "--version"));
    let knows = |flag: &str| help.split_whitespace().any(|word| word == flag);
    let container = &mut pod["spec"]["containers"][0];
    for word in container["command"].as_array_mut().expect("a command") {
        let text = word.as_str().expect("a word").to_owned();
        let (flag, value) = text.split_once('=').unwrap_or((&text, ""));
        if !flag.starts_with("--") || knows(flag) {
            continue;
        }
        *word = match flag {
            "--feature-gates" => json!("--experimental-initial-corrupt-check=true"),
            "--watch-progress-notify-interval" => {
                json!(format!("--experimental-watch-progress-notify-interval={value}"))
            }
            other => panic!("{other}: etcd does not know it, and this test knows no other word for it\n{help}"),
        };
    }
    let numbers: Vec<u32> = version
        .lines()
        .find_map(|line| line.strip_prefix("etcd Version: "))
        .unwrap_or_else(|| panic!("no version: {version}"))
        .split('.')
        .map(|part| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0))
        .collect();
    let first = if numbers.starts_with(&[3, 4]) { 29 } else { 11 };
    let is_old = matches!(numbers[..], [3, 4 | 5, patch] if patch < first);
    if is_old {
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            container[probe]["httpGet"]["path"] = json!("/health");
        }
    }
    pod
}

fn on_path(name: &str) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: apt-get install etcd-server etcd-client"))
}

/// An image of some of this machine's programs, with the libraries that they name.
fn image(file: &str, name: &str, programs: &[PathBuf]) -> PathBuf {
    let inside = |path: &PathBuf| format!("usr/local/bin/{}", path.file_name().expect("a name").display());
    let programs: Vec<(PathBuf, String)> = programs.iter().map(|path| (path.clone(), inside(path))).collect();
    docker_archive(file, &[(name, json!({ "Env": ["PATH=/usr/local/bin"] }))], &layer(&programs, &[]))
}

fn wait_for_image(node: &Node, name: &str) {
    let end = Instant::now() + secs(60);
    while !node.cli(&["image", "ls"]).stdout.contains(name) {
        if Instant::now() > end {
            node.fail(&format!("{name} was not imported"));
        }
        sleep(secs(1) / 10);
    }
}

/// A node that takes no notice of how full the disk is, and so keeps the record of a container's run before the present one.
pub fn roomy_node() -> Node {
    let mut node = Node::new();
    node.configure(json!({
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%" },
    }));
    node
}

/// Waits until all three probes of a pod's container are content.
fn wait_ready(node: &Node, name: &str, restarts: u64) -> String {
    let full = format!("{name}-{}", node.name);
    let pods = node.wait(&format!("{name} is ready"), secs(120), |pods| {
        pods.iter().any(|pod| {
            let container = pod.container(name);
            let started = container["started"] == true && container["ready"] == true;
            pod.name() == full && started && pod.condition("Ready") == "True" && pod.restarts(name) == restarts
        })
    });
    pods.iter().find(|pod| pod.name() == full).expect("just seen").id(name)
}

const ETCDCTL: [&str; 6] = ["exec", "-n", "kube-system", "etcd", "--", "etcdctl"];

/// etcdctl in etcd's pod, with a client's certificate.
fn etcdctl(node: &Node, address: &str, args: &[&str]) -> Out {
    let pki = "/etc/kubernetes/pki/etcd";
    let tls = [
        format!("--cacert={pki}/ca.crt"),
        format!("--cert={pki}/healthcheck-client.crt"),
        format!("--key={pki}/healthcheck-client.key"),
        format!("--endpoints=https://{address}:2379"),
    ];
    let tls: Vec<&str> = tls.iter().map(String::as_str).collect();
    node.cli(&[&ETCDCTL[..], &tls, args].concat())
}

#[test]
fn etcd_runs_from_kubeadms_manifest() {
    in_a_network_of_its_own(|| {
        let mut node = roomy_node();
        let programs = [on_path("etcd"), on_path("etcdctl")];
        node.drop_image(&image("etcd", "etcd:debian", &programs), "etcd.tar");
        let machine = node.dir.join("share/machine");
        etcd_certificates(&machine.join("etc/kubernetes/pki"));
        node.start();
        wait_for_image(&node, "etcd");
        let pod = as_known(placed(manifest("etcd"), &machine, "etcd:debian"), &programs[0]);
        node.apply("etcd.yaml", &pod);
        let id = wait_ready(&node, "etcd", 0);

        assert_eq!(etcdctl(&node, "127.0.0.1", &["put", "/registry/x", "kept"]).ok(), "OK\n");
        assert_eq!(etcdctl(&node, ADDRESS, &["get", "--print-value-only", "/registry/x"]).ok(), "kept\n");
        // Nobody gets in without a certificate.
        let open = format!("--endpoints=https://{ADDRESS}:2379");
        let stranger = ["--command-timeout=2s", "--insecure-skip-tls-verify", &open, "get", "/registry/x"];
        assert_ne!(node.cli(&[&ETCDCTL[..], &stranger].concat()).code, Some(0));
        assert!(machine.join("var/lib/etcd/member/wal").is_dir(), "the data is the machine's");

        node.restart();
        assert_eq!(wait_ready(&node, "etcd", 0), id, "an agent's restart is none of etcd's business");

        signal(node.init_pid(&id), Signal::KILL);
        let next = wait_ready(&node, "etcd", 1);
        assert_ne!(next, id);
        let seen = node.pod("etcd").expect("there");
        assert_eq!(seen.last("etcd")["exitCode"], 137, "{}", seen.container("etcd"));
        assert_eq!(etcdctl(&node, "127.0.0.1", &["get", "--print-value-only", "/registry/x"]).ok(), "kept\n");
        let unwell: Vec<Value> = node.events().into_iter().filter(|event| event["reason"] == "Killing").collect();
        assert_eq!(unwell, Vec::<Value>::new(), "no liveness probe ever failed for good");
        node.finish();
    });
}

/// Everything that `kubeadm init` puts below `/etc/kubernetes` but the manifests.
pub fn kubernetes_certificates(machine: &Path) -> Authority {
    let etc = machine.join("etc/kubernetes");
    let pki = etc.join("pki");
    let etcd = etcd_certificates(&pki);
    write_pair(&pki, "apiserver-etcd-client", etcd.issue("kube-apiserver-etcd-client", None, &[]));
    let front = Authority::new("front-proxy-ca");
    front.write(&pki, "front-proxy-ca");
    write_pair(&pki, "front-proxy-client", front.issue("front-proxy-client", None, &[]));
    let authority = Authority::new("kubernetes");
    authority.write(&pki, "ca");
    let names =
        ["cp1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "10.96.0.1", ADDRESS];
    write_pair(&pki, "apiserver", authority.issue("kube-apiserver", None, &names));
    let kubelet_client = authority.issue("kube-apiserver-kubelet-client", Some("kubeadm:cluster-admins"), &[]);
    write_pair(&pki, "apiserver-kubelet-client", kubelet_client);
    write_accounts_key(&pki);
    for (file, user) in
        [("controller-manager.conf", "system:kube-controller-manager"), ("scheduler.conf", "system:kube-scheduler")]
    {
        let text = authority.kubeconfig(&format!("https://{ADDRESS}:6443"), user, None);
        fs::write(etc.join(file), text).expect("kubeconfig");
    }
    authority
}
