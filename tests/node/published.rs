//! Manifests as others publish them really run: the corpus' DaemonSet pods and kubeadm's control plane, with their images
//! and commands replaced by a resting shell and without what they need a cluster for. What is left is what a kubelet's
//! user brings along: host folders with their propagation, namespaces of the machine, privileges, users, probes.

use crate::harness::{BUSYBOX, Node, REST, secs, where_mounts_spread};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");

/// The pods of a folder of the corpus, by their names.
fn published(folder: &str) -> Vec<Value> {
    let mut files: Vec<_> =
        fs::read_dir(format!("{CORPUS}/{folder}")).expect("corpus").flatten().map(|e| e.path()).collect();
    files.sort();
    let parse = |path| serde_yaml::from_str(&fs::read_to_string(path).expect("manifest")).expect("YAML");
    files.into_iter().map(parse).collect()
}

/// Calls `change` with every app and init container, and whether the pod waits for its end.
fn containers(pod: &mut Value, mut change: impl FnMut(&mut Value, bool)) {
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let ends = list == "initContainers" && container["restartPolicy"] != "Always";
            change(container, ends);
        }
    }
}

/// Takes out what `coracle validate` refuses or does not find: a volume becomes an empty one, anything else goes.
fn without_what_needs_a_cluster(node: &Node, pod: &mut Value) {
    let file = node.dir.join("candidate.yaml");
    fs::write(&file, pod.to_string()).expect("manifest");
    let said = node.cli(&["validate", &file.display().to_string()]);
    for line in said.stderr.lines().chain(said.stdout.lines()) {
        // <file>:<line>: [warning: ]<field>: <reason>
        let Some(field) = line.split(": ").take(3).find(|field| field.starts_with("spec.")) else { continue };
        let mut at = &mut *pod;
        let mut keys = field.split(['.', '[', ']']).filter(|key| !key.is_empty()).peekable();
        while let Some(key) = keys.next() {
            let volume = field.starts_with("spec.volumes[") && key.parse::<usize>().is_ok();
            let last = keys.peek().is_none() || ["envFrom", "valueFrom"].contains(&key);
            let next = match key.parse::<usize>() {
                Ok(index) => at.get_mut(index),
                Err(_) if last => {
                    at.as_object_mut().expect("an object").remove(key);
                    break;
                }
                Err(_) => at.get_mut(key),
            };
            let Some(next) = next else { break };
            at = next;
            if volume {
                *at = json!({ "name": at["name"], "emptyDir": {} });
                break;
            }
        }
    }
}

/// A resting shell in place of each program; host folders that this machine lacks are made below the node's.
fn at_rest(node: &Node, pod: &mut Value) {
    // Whether this machine can give a capability.
    let own = fs::read_to_string("/proc/self/status").expect("status");
    let own = u64::from_str_radix(&field(&own, "CapBnd"), 16).expect("capabilities");
    let held = |bit: u32| own & (1 << bit) != 0;
    let selinux = Path::new("/sys/fs/selinux/enforce").exists();
    containers(pod, |container, ends| {
        container["image"] = json!(BUSYBOX);
        container["command"] = if ends { json!(["true"]) } else { json!(["sh", "-c", REST]) };
        let fields = container.as_object_mut().expect("a container");
        fields.remove("args");
        fields.remove("imagePullPolicy");
        if !held(24)
            && let Some(add) = fields.get_mut("securityContext").and_then(|c| c.get_mut("capabilities")?.get_mut("add"))
        {
            add.as_array_mut().expect("a list").retain(|name| name != "SYS_RESOURCE");
        }
        if !selinux && let Some(context) = fields.get_mut("securityContext").and_then(Value::as_object_mut) {
            context.remove("seLinuxOptions");
        }
        for hook in ["postStart", "preStop"] {
            if let Some(exec) = fields.get_mut("lifecycle").and_then(|l| l.get_mut(hook)?.get_mut("exec")) {
                exec["command"] = json!(["true"]);
            }
        }
        for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
            let Some(probe) = fields.get_mut(kind).and_then(Value::as_object_mut) else { continue };
            // All of them fail; nothing is to be restarted for it while this test looks.
            probe.insert("failureThreshold".into(), json!(1000));
            probe.remove("initialDelaySeconds");
            if let Some(get) = probe.get_mut("httpGet").filter(|get| get.get("host").is_some()) {
                get["host"] = json!("127.0.0.1");
            }
        }
    });
    let ours = node.dir.join("share/host");
    for volume in pod["spec"]["volumes"].as_array_mut().into_iter().flatten() {
        let Some(host) = volume.get_mut("hostPath") else { continue };
        let path = host["path"].as_str().expect("a path").to_owned();
        if Path::new(&path).exists() {
            continue;
        }
        let own = ours.join(path.trim_start_matches('/'));
        fs::create_dir_all(own.parent().expect("a folder")).expect("folder");
        match host.get("type").and_then(Value::as_str) {
            Some("Directory") => fs::create_dir_all(&own).expect("folder"),
            Some("File") => fs::write(&own, "").expect("file"),
            _ => {}
        }
        host["path"] = json!(own);
    }
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// A container's process, as the kernel sees it, against what its manifest says.
fn check(node: &Node, pod: &Value, container: &Value, id: &str) {
    let what = format!("{} {}", pod["metadata"]["name"], container["name"]);
    let procs = node.container_cgroup(id, "cgroup.procs").expect("its cgroup").join("cgroup.procs");
    let pid = fs::read_to_string(procs).expect("its processes").lines().next().expect("a process").to_owned();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
    let mount = |point: &str| {
        let line = mounts.lines().rfind(|l| l.split(' ').nth(4) == Some(point));
        line.unwrap_or_else(|| panic!("{what}: nothing is mounted at {point}:\n{mounts}"))
    };
    let machine = fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
    let has = |line: &str, option: &str| line.split(' ').nth(5).is_some_and(|o| o.split(',').any(|o| o == option));
    for wanted in container["volumeMounts"].as_array().into_iter().flatten() {
        // A privileged container has the machine's devices in a /dev of its own.
        if wanted["mountPath"].as_str().is_some_and(|path| path.trim_end_matches('/') == "/dev") {
            assert!(mount("/dev").contains(" tmpfs "), "{what}");
            assert!(Path::new(&format!("/proc/{pid}/root/dev/kmsg")).exists(), "{what}");
            continue;
        }
        let line = mount(wanted["mountPath"].as_str().expect("a path").trim_end_matches('/'));
        assert_eq!(has(line, "ro"), wanted["readOnly"] == true, "{what}: {line}");
        // A peer group that only the container is in spreads nothing.
        let peers = line.split(' ').find(|tag| tag.starts_with("shared:"));
        let both = peers.is_some_and(|tag| machine.contains(&format!(" {tag} ")));
        let spread = match wanted["mountPropagation"].as_str() {
            Some("Bidirectional") => both,
            Some("HostToContainer") => line.contains(" master:") && !both,
            _ => !line.contains(" master:") && !both,
        };
        assert!(spread, "{what}: {wanted}: {line}");
    }
    for (setting, kind) in [("hostNetwork", "net"), ("hostPID", "pid"), ("hostIPC", "ipc")] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace");
        assert_eq!(of(&pid) == of("self"), pod["spec"][setting] == true, "{what}: {setting}");
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let context = &container["securityContext"];
    let user = [context, &pod["spec"]["securityContext"]].into_iter().find_map(|c| c["runAsUser"].as_u64());
    assert_eq!(field(&status, "Uid").split('\t').next(), Some(user.unwrap_or(0).to_string().as_str()), "{what}");
    assert_eq!(field(&status, "NoNewPrivs") == "1", context["allowPrivilegeEscalation"] == false, "{what}");
    let profile =
        [context, &pod["spec"]["securityContext"]].into_iter().find_map(|c| c["seccompProfile"]["type"].as_str());
    let unconfined = profile == Some("Unconfined");
    assert_eq!(field(&status, "Seccomp") == "0", context["privileged"] == true || unconfined, "{what}");
    assert_eq!(has(mount("/"), "ro"), context["readOnlyRootFilesystem"] == true, "{what}: its root");
    let bounding = u64::from_str_radix(&field(&status, "CapBnd"), 16).expect("capabilities");
    let added = context["capabilities"]["add"].as_array().cloned().unwrap_or_default();
    let dropped = context["capabilities"]["drop"].as_array().is_some_and(|d| d.contains(&json!("ALL")));
    for (bit, name) in [(12, "NET_ADMIN"), (13, "NET_RAW"), (18, "SYS_CHROOT"), (21, "SYS_ADMIN"), (25, "SYS_TIME")] {
        let default = [13, 18].contains(&bit) && !dropped;
        let wanted = context["privileged"] == true || default || added.contains(&json!(name));
        assert_eq!(bounding & (1 << bit) != 0, wanted, "{what}: {name} of {bounding:x}");
    }
}

#[test]
fn published_pods_run_with_all_their_mounts_and_privileges() {
    where_mounts_spread(run_them_all);
}

fn run_them_all() {
    let mut node = Node::new();
    node.args.push("--node-labels=storagenode=glusterfs".to_owned());
    let profiles = node.dir.join("root/seccomp");
    fs::create_dir(&profiles).expect("folder");
    fs::write(profiles.join("system-probe"), json!({ "defaultAction": "SCMP_ACT_ALLOW" }).to_string())
        .expect("profile");
    node.start();
    node.wait_for_images();
    let mut pods = published("daemonsets");
    pods.extend(published("kubeadm"));
    assert!(pods.len() >= 17, "{} pods", pods.len());
    for pod in &mut pods {
        without_what_needs_a_cluster(&node, pod);
        at_rest(&node, pod);
        // ceph's belongs to a node of another name.
        *pod =
            serde_json::from_str(&pod.to_string().replace("\"node1\"", &format!("\"{}\"", node.name))).expect("JSON");
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        node.apply(&format!("{name}.yaml"), &*pod);
    }
    let full = |pod: &Value| format!("{}-{}", pod["metadata"]["name"].as_str().unwrap_or_default(), node.name);
    let all = node.wait("all published pods run", secs(60), |seen| {
        pods.iter().all(|pod| seen.iter().any(|s| s.name() == full(pod) && s.up()))
    });
    for pod in &pods {
        let seen = all.iter().find(|s| s.name() == full(pod)).expect("just seen");
        for container in pod["spec"]["containers"].as_array().expect("containers") {
            let name = container["name"].as_str().expect("a name");
            check(&node, pod, container, &seen.id(name));
            assert_eq!(seen.restarts(name), 0, "{} {name}", seen.name());
        }
        for init in pod["spec"]["initContainers"].as_array().into_iter().flatten() {
            let name = init["name"].as_str().expect("a name");
            let done = seen.terminated(name)["reason"] == "Completed" || seen.running(name);
            assert!(done, "{} {name}: {}", seen.name(), seen.container(name));
        }
    }

    // The machine's root, as node-exporter sees it: what is mounted later is there, and nothing can be written.
    let late = node.dir.join("share/late");
    fs::create_dir(&late).expect("folder");
    let none: Option<&str> = None;
    mount(Some("late"), &late, Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs");
    fs::write(late.join("mark"), "later").expect("file");
    let look = format!(
        "cat /host/root{0}/mark; touch /host/root{0}/x 2>/dev/null && echo written",
        node.dir.join("share").display()
    );
    let look = look.replace("/share/mark", "/share/late/mark");
    let exporter = |script: &str| {
        node.cli(&["exec", "-n", "monitoring", "node-exporter", "-c", "node-exporter", "--", "sh", "-c", script])
    };
    assert_eq!(exporter(&format!("{look}; true")).ok(), "later");
    umount2(&late, MntFlags::MNT_DETACH).expect("unmount");

    // Nobody answers kubeadm's probes: the pods run, and are not ready.
    for name in ["etcd", "kube-apiserver"] {
        node.wait_event("the startup probe", |reason, message| {
            let (scheme, path) = if name == "etcd" { ("http", "2381/readyz") } else { ("https", "6443/livez") };
            let words = format!("Startup probe failed: Get \"{scheme}://127.0.0.1:{path}\": dial tcp 127.0.0.1");
            reason == "Unhealthy" && message.starts_with(&words) && message.ends_with("connect: connection refused")
        });
        let seen = node.pod(name).expect("there");
        let main = seen.container(name);
        assert_eq!((&main["started"], &main["ready"]), (&json!(false), &json!(false)), "{name}");
        assert_eq!(
            (seen.phase(), seen.condition("Initialized"), seen.condition("Ready")),
            ("Running", "True", "False")
        );
        assert_eq!(seen.0["metadata"]["namespace"], "kube-system");
    }
    node.finish();
}
