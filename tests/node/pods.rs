//! What containers of a pod see of each other, of the machine, and of their own names: asserted from inside.

use crate::harness::{BUSYBOX, Node, REST, alive, pod, resting, signal};
use rustix::process::Signal;
use serde_json::json;
use std::fs;

/// The host PIDs of this node's processes of that name.
fn named(node: &Node, name: &str) -> Vec<i32> {
    let is = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    node.cgroup_pids().into_iter().filter(is).collect()
}

fn status_line(status: &str, field: &str) -> String {
    let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn containers_of_a_pod_share_their_processes_under_our_pause() {
    let mut node = Node::new();
    // Back-off is another test's.
    node.configure(json!({ "crashLoopBackOff": { "maxContainerRestartPeriod": "1s" } }));
    node.start();
    node.wait_for_images();
    let mut manifest = resting("shared");
    manifest["spec"]["shareProcessNamespace"] = json!(true);
    manifest["spec"]["containers"][0]["securityContext"] = json!({"capabilities": {"add": ["SYS_PTRACE"]}});
    let side = "sleep 4001 & sleep 4002 & exec sleep 4003";
    manifest["spec"]["containers"].as_array_mut().expect("list").push(json!({
        "name": "side", "image": BUSYBOX, "command": ["sh", "-c", side],
    }));
    let view = node.run(&manifest);
    let sh = |node: &Node, script: &str| {
        node.cli(&["exec", "shared", "-c", "main", "--", "sh", "-c", script]).ok().trim_end().to_owned()
    };
    node.wait_pod("shared", "its side is up", |_| sh(&node, "ps -o args").contains("sleep 4002"));

    let processes = sh(&node, "ps -o pid,comm,args");
    assert!(
        processes.lines().any(|l| l.split_whitespace().collect::<Vec<_>>() == ["1", "pause", "pause"]),
        "{processes}"
    );
    let ids = (view.id("main"), view.id("side"));

    // The first process has nothing that would help whoever traces it.
    let status = sh(&node, "cat /proc/1/status");
    assert_eq!(status_line(&status, "Uid"), "65535 65535 65535 65535");
    assert_eq!(status_line(&status, "Gid"), "65535 65535 65535 65535");
    assert_eq!(status_line(&status, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status_line(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!((status_line(&status, "Seccomp"), status_line(&status, "NoNewPrivs")), ("1".into(), "1".into()));
    assert_eq!(sh(&node, "tr -d '\\0' < /proc/1/cmdline"), "pause");
    assert_eq!(sh(&node, "ls -a /proc/1/root/ /proc/1/root/../../ /proc/1/cwd/ | grep -v '^/proc\\|^\\.*$'; true"), "");
    assert_eq!(sh(&node, "ls /proc/1/fd"), "0");
    // It is in the pod's cgroup, and in no container's.
    let pause = named(&node, "pause");
    assert_eq!(pause.len(), 1, "{pause:?}");
    let pause = pause[0];
    let main = node.container_cgroup(&ids.0, "cgroup.procs").expect("the container's cgroup");
    let main = fs::read_to_string(main.join("cgroup.procs")).expect("its processes");
    let main = main.lines().next().expect("a process").to_owned();
    for kind in ["net", "ipc", "uts", "pid"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace");
        assert_eq!(of(&pause.to_string()), of(&main), "it is in the pod's namespaces");
        assert_ne!(of(&main), of("self"), "{kind}");
    }
    let cgroups = fs::read_to_string(format!("/proc/{pause}/cgroup")).expect("cgroup");
    assert!(cgroups.contains(&format!("pod{}/pause", view.uid())), "{cgroups}");
    assert!(!cgroups.contains(&ids.0) && !cgroups.contains(&ids.1), "{cgroups}");
    let rollup = fs::read_to_string(format!("/proc/{pause}/smaps_rollup")).unwrap_or_default();
    let private: u64 = ["Private_Clean", "Private_Dirty"]
        .iter()
        .filter_map(|f| status_line(&rollup, f).split(' ').next()?.parse::<u64>().ok())
        .sum();
    assert!(private < 160, "pause keeps {private} KiB for itself");

    // Signals from inside do nothing to it, and it takes in orphans.
    sh(&node, "kill -TERM 1; kill -KILL 1; kill -HUP 1; (sh -c 'sleep 0.1 & exit'); sleep 0.4");
    assert!(alive(pause));
    assert!(!sh(&node, "ps -o stat,args").lines().any(|l| l.trim_start().starts_with('Z')));

    // A container's end ends its own processes, and no others.
    sh(&node, "ps -o pid,args | grep '[s]leep 4003' | while read pid rest; do kill -9 $pid; done");
    let after = node.wait_pod("shared", "side ran again", |p| p.restarts("side") == 1 && p.up());
    assert_eq!((after.restarts("main"), after.id("main")), (0, ids.0));
    assert_eq!(sh(&node, "ps -o args | grep -c '[s]leep 4001'"), "1", "the first run's are gone");

    // Another agent finds it all again.
    node.kill9();
    node.start();
    assert_eq!(sh(&node, "ps -o comm | grep -c pause"), "1");

    // Without its first process the namespace is over, and so is the sandbox.
    signal(pause, Signal::KILL);
    node.wait_event("the sandbox is made anew", |reason, message| {
        reason == "SandboxChanged" && message.contains("PID namespace")
    });
    let again = node.wait_pod("shared", "up again", |p| p.up() && p.restarts("main") == 1);
    assert_eq!(again.uid(), view.uid());
    let pauses = named(&node, "pause");
    assert!(pauses.len() == 1 && pauses[0] != pause, "{pauses:?}");
    assert!(!alive(pause));
    node.finish();
}

#[test]
fn a_pod_in_the_machines_namespaces_sees_it_and_leaves_it_alone() {
    let node = Node::up();
    let mut bystander = std::process::Command::new("sleep").arg("977").spawn().expect("sleep");
    let shm = format!("/dev/shm/coracle-test-{}", std::process::id());
    fs::write(&shm, "shared").expect("/dev/shm");
    let mut manifest = pod("open", &format!("sleep 9771 & setsid sleep 9772 & {REST}"));
    for field in ["hostPID", "hostIPC", "hostNetwork"] {
        manifest["spec"][field] = json!(true);
    }
    node.run(&manifest);
    for kind in ["pid", "ipc", "net", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).expect("namespace");
        assert_eq!(node.sh("open", &format!("readlink /proc/self/ns/{kind}")), own.display().to_string());
    }
    assert_eq!(node.sh("open", &format!("cat {shm}; rm {shm}")), "shared");
    assert!(fs::metadata(&shm).is_err(), "one /dev/shm");
    let agent = node.agent_pid();
    assert!(node.sh("open", &format!("cat /proc/{agent}/comm")).contains("coracle"));
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(node.sh("open", "uname -n; echo $HOSTNAME; cat /etc/hostname"), [hostname.as_str(); 3].join("\n"));
    let hosts = fs::read_to_string("/etc/hosts").expect("/etc/hosts");
    let head = "# Kubernetes-managed hosts file (host network).\n";
    assert_eq!(node.sh("open", "cat /etc/hosts"), format!("{head}{hosts}").trim_end());
    let before = node.cgroup_pids();
    assert!(before.len() >= 3, "{before:?}");

    // Only the machine's processes are shared: network and IPC are the pod's own.
    let mut manifest = resting("half");
    manifest["spec"]["hostPID"] = json!(true);
    node.run(&manifest);
    for (kind, same) in [("pid", true), ("ipc", false), ("net", false), ("uts", false)] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).expect("namespace");
        assert_eq!(
            node.sh("half", &format!("readlink /proc/self/ns/{kind}")) == own.display().to_string(),
            same,
            "{kind}"
        );
    }

    node.remove("open.yaml");
    node.remove("half.yaml");
    node.wait_gone("open");
    node.wait_gone("half");
    assert!(before.iter().all(|pid| !alive(*pid)), "all of the container's processes ended");
    assert!(bystander.try_wait().expect("bystander").is_none(), "and none of the machine's");
    bystander.kill().expect("kill");
    bystander.wait().expect("reap");
    node.finish();
}

fn sysctl(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).expect(name).trim().replace('\t', " ")
}

#[test]
fn names_addresses_variables_groups_and_sysctls_are_as_the_manifest_says() {
    let mut node = Node::new();
    node.configure(json!({
        "clusterDomain": "cluster.test", "clusterDNS": ["10.96.0.10"], "allowedUnsafeSysctls": ["net.core.*", "kernel.msgmax"],
    }));
    node.start();
    node.wait_for_images();
    let machine: Vec<String> =
        ["net.ipv4.ip_local_port_range", "kernel.shm_rmid_forced", "net.core.somaxconn", "kernel.msgmax"]
            .map(sysctl)
            .into();
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let amount =
        |resource: &str, divisor: &str| json!({"resourceFieldRef": {"resource": resource, "divisor": divisor}});
    let mut manifest = resting("full");
    manifest["metadata"]["labels"] = json!({"app": "x"});
    manifest["metadata"]["annotations"] = json!({"example.com/note": "two words"});
    let spec = &mut manifest["spec"];
    spec["hostname"] = json!("web");
    spec["subdomain"] = json!("sub");
    spec["setHostnameAsFQDN"] = json!(true);
    spec["hostAliases"] = json!([{"ip": "192.0.2.7", "hostnames": ["db", "db.local"]}]);
    spec["dnsConfig"] = json!({
        "nameservers": ["192.0.2.53"], "searches": ["my.example"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
    });
    spec["securityContext"] = json!({
        "runAsUser": 1234, "supplementalGroups": [77], "fsGroup": 88,
        "sysctls": [
            {"name": "net/ipv4/ip_local_port_range", "value": "20000 30000"},
            {"name": "kernel.shm_rmid_forced", "value": "1"},
            {"name": "net.core.somaxconn", "value": "123"},
            {"name": "kernel.msgmax", "value": "4096"},
        ],
    });
    let container = &mut spec["containers"][0];
    container["resources"] = json!({"limits": {"memory": "66000000"}, "requests": {"cpu": "250m"}});
    container["workingDir"] = json!("/made/here");
    container["env"] = json!([
        {"name": "A", "value": "1"},
        {"name": "odd name.-#", "value": "$(A)$(LATE)$$(A)"},
        {"name": "LATE", "value": "x"},
        {"name": "NOTE", "valueFrom": field("metadata.annotations['example.com/note']")},
        {"name": "LABEL", "valueFrom": field("metadata.labels['app']")},
        {"name": "NODE", "valueFrom": field("spec.nodeName")},
        {"name": "ACCOUNT", "valueFrom": field("spec.serviceAccountName")},
        {"name": "IP", "valueFrom": field("status.podIPs")},
        {"name": "MEM", "valueFrom": amount("limits.memory", "1Mi")},
        {"name": "CPU", "valueFrom": amount("requests.cpu", "1")},
        {"name": "CPUM", "valueFrom": amount("requests.cpu", "1m")},
        {"name": "ALL", "valueFrom": amount("limits.cpu", "1")},
    ]);
    let view = node.run(&manifest);
    let host = "web.sub.default.svc.cluster.test";
    assert_eq!(node.sh("full", "uname -n; echo $HOSTNAME; cat /etc/hostname"), [host; 3].join("\n"));
    let hosts = format!(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
         {}\t{host}\tweb\n\n# Entries added by HostAliases.\n192.0.2.7\tdb\tdb.local",
        view.ip()
    );
    assert_eq!(node.sh("full", "cat /etc/hosts"), hosts);
    let resolv = node.sh("full", "cat /etc/resolv.conf");
    assert!(resolv.starts_with("search default.svc.cluster.test svc.cluster.test cluster.test"), "{resolv}");
    assert!(
        resolv.contains(" my.example\nnameserver 10.96.0.10\nnameserver 192.0.2.53\noptions ndots:2 edns0"),
        "{resolv}"
    );
    // A shell would drop variables whose names it cannot use.
    let env = node.cli(&["exec", "full", "--", "env"]).ok() + &node.sh("full", "echo cwd=$(pwd)");
    let cpus = std::thread::available_parallelism().expect("CPUs");
    for line in [
        "odd name.-#=1$(LATE)$(A)",
        "NOTE=two words",
        "LABEL=x",
        &format!("NODE={}", node.name),
        "ACCOUNT=",
        &format!("IP={}", view.ip()),
        "MEM=63",
        "CPU=1",
        "CPUM=250",
        &format!("ALL={cpus}"),
        "FROM_IMAGE=yes",
        "HOME=/home/app",
        "cwd=/made/here",
    ] {
        assert!(env.lines().any(|l| l == line), "{line:?} is not in\n{env}");
    }
    let status = node.sh("full", "cat /proc/1/status");
    assert_eq!(status_line(&status, "Uid"), "1234 1234 1234 1234");
    assert_eq!(status_line(&status, "Gid"), "1234 1234 1234 1234", "that of the image's /etc/passwd");
    assert_eq!(status_line(&status, "Groups"), "77 88 1234 4321", "the image's /etc/group counts");
    assert_eq!(status_line(&node.sh("full", "cat /proc/self/status"), "Groups"), "77 88 1234 4321", "exec too");
    let values = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced \
                  /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax | tr '\\t' ' '";
    assert_eq!(node.sh("full", values), "20000 30000\n1\n123\n4096");
    let after: Vec<String> =
        ["net.ipv4.ip_local_port_range", "kernel.shm_rmid_forced", "net.core.somaxconn", "kernel.msgmax"]
            .map(sysctl)
            .into();
    assert_eq!(after, machine, "the machine's own are as before");

    let mut strict = resting("strict");
    strict["spec"]["hostnameOverride"] = json!("outer.example");
    strict["spec"]["subdomain"] = json!("sub");
    strict["spec"]["securityContext"] =
        json!({"runAsUser": 1234, "supplementalGroups": [77], "supplementalGroupsPolicy": "Strict"});
    node.run(&strict);
    assert_eq!(status_line(&node.sh("strict", "cat /proc/1/status"), "Groups"), "77 1234");
    assert_eq!(node.sh("strict", "uname -n"), "outer.example");
    assert!(node.sh("strict", "cat /etc/hosts").ends_with("\touter.example"));

    // On the machine's network: its name, its file of hosts, and the cluster's DNS where the pod asks for it.
    let mut outside = resting("outside");
    for (field, value) in [
        ("hostNetwork", json!(true)),
        ("dnsPolicy", json!("ClusterFirstWithHostNet")),
        ("setHostnameAsFQDN", json!(true)),
        ("subdomain", json!("sub")),
        ("hostAliases", json!([{"ip": "192.0.2.7", "hostnames": ["db"]}])),
    ] {
        outside["spec"][field] = value;
    }
    outside["spec"]["containers"][0]["env"] = json!([
        {"name": "NAME", "valueFrom": field("metadata.name")},
        {"name": "WHO", "value": "$(NAME)@$(HOSTNAME)"},
    ]);
    outside["spec"]["containers"][0]["command"] = json!(["sh", "-c", format!("echo $0; {REST}"), "$(WHO) $$(WHO)"]);
    let outside = node.run(&outside);
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(node.sh("outside", "uname -n; cat /etc/hostname"), format!("{name}\n{name}"));
    let resolv = node.sh("outside", "cat /etc/resolv.conf");
    assert!(resolv.starts_with("search default.svc.cluster.test svc.cluster.test cluster.test"), "{resolv}");
    assert!(resolv.ends_with("nameserver 10.96.0.10\noptions ndots:5"), "{resolv}");
    assert!(node.sh("outside", "cat /etc/hosts").ends_with("\n# Entries added by HostAliases.\n192.0.2.7\tdb"));
    let who = outside.name();
    assert_eq!(node.cli(&["logs", "outside"]).ok(), format!("{who}@$(HOSTNAME) $(WHO)\n"), "HOSTNAME is the runtime's");

    // What cannot be is said.
    let mut forbidden = resting("forbidden");
    forbidden["spec"]["securityContext"] = json!({"sysctls": [{"name": "net.ipv4.tcp_mem", "value": "1"}]});
    node.apply("forbidden.yaml", &forbidden);
    node.wait_event("SysctlForbidden", |reason, message| {
        reason == "SysctlForbidden" && message.ends_with("forbidden sysctl: \"net.ipv4.tcp_mem\" not allowlisted")
    });
    let mut long = resting("long");
    long["spec"]["hostname"] = json!("h".repeat(50));
    long["spec"]["subdomain"] = json!("sub");
    long["spec"]["setHostnameAsFQDN"] = json!(true);
    node.apply("long.yaml", &long);
    node.wait_event("a name that is too long", |reason, message| {
        reason == "FailedCreatePodSandBox"
            && message.contains("setHostnameAsFQDN: hhh")
            && message.contains("79 characters")
    });
    node.finish();
}

#[test]
fn variables_come_from_a_file_that_another_container_wrote() {
    let node = Node::up();
    let mut manifest =
        pod("files", &format!("sleep 1; printf \"# c\\nKEY='two\\nlines'\\nEMPTY=''\\n\" > /data/env; {REST}"));
    manifest["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let from = |key: &str, optional: bool| json!({"fileKeyRef": {"volumeName": "data", "path": "env", "key": key, "optional": optional}});
    manifest["spec"]["containers"].as_array_mut().expect("list").push(json!({
        "name": "reader", "image": BUSYBOX, "command": ["sh", "-c", REST],
        "env": [
            {"name": "FROM_FILE", "valueFrom": from("KEY", false)},
            {"name": "ABSENT", "valueFrom": from("NONE", true)},
            {"name": "EMPTY", "valueFrom": from("EMPTY", true)},
        ],
    }));
    node.apply("files.yaml", &manifest);
    node.wait_pod("files", "the reader waits for the file", |p| {
        p.waiting("reader") == "CreateContainerConfigError"
            && p.waiting_message("reader").starts_with("couldn't parse env file \"env\" of volume \"data\": ")
    });
    node.wait_up("files");
    let env = node.cli(&["exec", "files", "-c", "reader", "--", "env"]).ok();
    assert!(env.contains("FROM_FILE=two\nlines\n") && !env.contains("ABSENT") && !env.contains("EMPTY"), "{env}");
    // It is read anew with each start.
    node.cli(&["exec", "files", "-c", "main", "--", "sh", "-c", "echo \"KEY='third'\" > /data/env"]).ok();
    // It may end before it is answered.
    node.cli(&["exec", "files", "-c", "reader", "--", "kill", "1"]);
    node.wait_pod("files", "the reader ran again", |p| p.restarts("reader") == 1 && p.up());
    let env = node.cli(&["exec", "files", "-c", "reader", "--", "env"]).ok();
    assert!(env.contains("FROM_FILE=third\n"), "{env}");
    node.finish();
}

#[test]
fn containers_tell_why_they_ended_and_why_they_cannot_start() {
    let node = Node::up();
    let fallback = "FallbackToLogsOnError";
    let mut manifest = pod("words", "");
    manifest["spec"]["restartPolicy"] = json!("Never");
    let container = |name: &str, policy: &str, script: &str| json!({"name": name, "image": BUSYBOX, "terminationMessagePolicy": policy, "command": ["sh", "-c", script]});
    manifest["spec"]["containers"] = json!([
        container("log", fallback, "for i in $(seq 100); do echo line $i; done; printf end >&2; sleep 0.2; exit 3"),
        container("file", fallback, "echo of the log; printf 'of the file' > /dev/termination-log; exit 3"),
        container("fine", fallback, "echo of the log"),
        container("plain", "File", "echo of the log; exit 3"),
        container(
            "long",
            fallback,
            "i=0; while [ $i -lt 100 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 3"
        ),
        container("much", "File", "head -c 5000 /dev/zero | tr '\\0' x > /dev/termination-log; exit 3"),
    ]);
    let view = node.run_to_end(&manifest);
    let message = |name: &str| view.terminated(name)["message"].as_str().unwrap_or_default().to_owned();
    let lines: String = (22..=100).map(|n| format!("line {n}\n")).collect();
    assert_eq!(message("log"), format!("{lines}end"), "the last 80 lines, with the one that never ended");
    assert_eq!(message("file"), "of the file");
    assert_eq!((message("fine"), message("plain")), (String::new(), String::new()));
    assert_eq!(message("long").len(), 2048);
    assert_eq!(message("much"), "x".repeat(2048), "a pod of six containers has 12 KiB for all messages");

    let mut root = resting("root");
    root["spec"]["containers"][0]["securityContext"] = json!({"runAsNonRoot": true});
    node.apply("root.yaml", &root);
    let view = node.wait_pod("root", "is refused", |p| p.waiting("main") == "CreateContainerConfigError");
    assert_eq!(
        view.waiting_message("main"),
        format!(
            "container has runAsNonRoot and image will run as root (pod: \"root-{}_default({})\", container: main)",
            node.name,
            view.uid()
        )
    );
    let mut user = resting("user");
    user["spec"]["containers"][0]["image"] = json!("user-named:1");
    node.run(&user);
    assert_eq!(node.sh("user", "id"), "uid=1234(app) gid=1234(app) groups=1234(app),4321(extra)");
    node.finish();
}
