//! Pods with users of their own (`hostUsers: false`), and that a process exec'd into a container is in every respect one of
//! the container's.

use crate::harness::{BUSYBOX, Node, PATIENCE, PodView, REST, alive, eventually, secs, signal};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// What must be equal in the container's first process and in one that is exec'd. Files and links below `/proc/<pid>`; of
/// `status` these lines.
const FILES: &str = "limits oom_score_adj cgroup uid_map gid_map setgroups personality attr/current";
const LINKS: &str = "ns/user ns/mnt ns/pid ns/net ns/ipc ns/uts ns/cgroup root exe";
const STATUS: &str = "Uid|Gid|Groups|Umask|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters|\
                      SigBlk|SigIgn|Cpus_allowed|Mems_allowed";

/// What the process `process` of a container is, as that container sees it.
fn traits(node: &Node, pod: &str, container: &str, process: &str) -> String {
    let script = format!(
        "for f in {FILES}; do echo \"$f: $(cat /proc/{process}/$f 2>&1 | tr '\\n' ';')\"; done; \
         for l in {LINKS}; do echo \"$l: $(readlink /proc/{process}/$l)\"; done; \
         grep -E '^({STATUS}):' /proc/{process}/status"
    );
    let out = node.cli(&["exec", pod, "-c", container, "--", "sh", "-c", &script]).ok();
    out.replace(&format!("/proc/{process}/"), "/proc/PID/")
}

/// The kinds of containers that differ in what their processes may do.
fn containers() -> Value {
    let container = |name: &str, security: Value| json!({ "name": name, "image": BUSYBOX, "command": ["sh", "-c", REST], "securityContext": security });
    json!([
        container("main", json!({})),
        container("privileged", json!({ "privileged": true })),
        container("user", json!({ "runAsUser": 1000, "runAsGroup": 1001 })),
        container(
            "hardened",
            json!({
                "runAsUser": 7, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
            }),
        ),
    ])
}

fn pod(name: &str, host_users: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "hostUsers": host_users,
            "securityContext": { "supplementalGroups": [4000, 4001] },
            "containers": containers(),
        },
    })
}

fn assert_exec_is_one_of_the_containers(node: &Node, pod: &str) {
    for container in ["main", "privileged", "user", "hardened"] {
        let first = traits(node, pod, container, "1");
        let second = traits(node, pod, container, "self");
        assert!(first.contains("CapBnd:") && first.contains("Seccomp:") && first.contains("ns/mnt: mnt:["), "{first}");
        // The shell that the exec'd `cat` comes from is what runs as PID 1, too.
        assert_eq!(first, second.replace("\nexe: /bin/readlink", "\nexe: /bin/sh"), "{container}");
    }
}

#[test]
fn an_execd_process_has_all_traits_of_its_container() {
    let node = Node::up();
    node.run(&pod("web", true));
    assert_exec_is_one_of_the_containers(&node, "web");
    node.finish();
}

/// The first ID on the machine of a pod, from its record.
fn first_id(node: &Node, seen: &PodView) -> u32 {
    let text = fs::read_to_string(node.dir.join("root/pods").join(seen.uid()).join("userns")).expect("record");
    let record: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(record["uidMappings"], record["gidMappings"]);
    assert_eq!(record["uidMappings"][0]["containerId"], 0);
    assert_eq!(record["uidMappings"][0]["length"], 65536);
    u32::try_from(record["uidMappings"][0]["hostId"].as_u64().expect("number")).expect("ID")
}

#[test]
fn a_pod_with_its_own_users_is_root_inside_and_nobody_outside() {
    let mut node = Node::up();
    let share = node.dir.join("share");
    fs::write(share.join("given"), "from the machine").expect("file");
    let mut manifest = pod("own", false);
    manifest["spec"]["volumes"] = json!([
        { "name": "share", "hostPath": { "path": share } },
        { "name": "disk", "emptyDir": {} },
        { "name": "memory", "emptyDir": { "medium": "Memory" } },
        { "name": "image", "image": { "reference": BUSYBOX, "pullPolicy": "IfNotPresent" } },
        { "name": "name", "projected": { "defaultMode": 0o400, "sources": [
            { "downwardAPI": { "items": [{ "path": "in/name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
        ] } },
    ]);
    manifest["spec"]["securityContext"]["fsGroup"] = json!(4002);
    for container in manifest["spec"]["containers"].as_array_mut().expect("containers") {
        container["volumeMounts"] = json!([
            { "name": "share", "mountPath": "/share" },
            { "name": "disk", "mountPath": "/disk" },
            { "name": "memory", "mountPath": "/memory" },
            { "name": "disk", "mountPath": "/part", "subPath": "a/part" },
            { "name": "image", "mountPath": "/image" },
            { "name": "image", "mountPath": "/users", "subPath": "etc/passwd" },
            { "name": "name", "mountPath": "/name" },
            { "name": "name", "mountPath": "/one-name", "subPath": "in/name" },
        ]);
        if container["name"] == "main" {
            container["securityContext"]["procMount"] = json!("Unmasked");
        }
    }
    fs::set_permissions(&share, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
    let seen = node.run(&manifest);
    let first = first_id(&node, &seen);
    assert!(first >= 65_536 && first.is_multiple_of(65_536), "{first}");

    // Outside: the processes are those of IDs that nobody has.
    let owner = |container: &str| {
        let pid = node.init_pid(&seen.id(container));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let line = |name: &str| status.lines().find(|l| l.starts_with(name)).expect("line").to_owned();
        (line("Uid:"), line("Gid:"))
    };
    let ids = |name: &str, id: u32| format!("{name}:\t{id}\t{id}\t{id}\t{id}");
    assert_eq!(owner("main"), (ids("Uid", first), ids("Gid", first)));
    assert_eq!(owner("user"), (ids("Uid", first + 1000), ids("Gid", first + 1001)));

    // Inside: ordinary users, root with all rights over what is its own.
    let sh = |container: &str, script: &str| {
        node.cli(&["exec", "own", "-c", container, "--", "sh", "-c", script]).ok().trim_end().to_owned()
    };
    assert_eq!(sh("main", "id -u; id -g; id -G"), "0\n0\n0 4000 4001 4002");
    assert_eq!(sh("user", "id -u; id -g; id -G"), "1000\n1001\n1001 4000 4001 4002");
    let map: Vec<String> = sh("main", "cat /proc/self/uid_map").split_whitespace().map(str::to_owned).collect();
    assert_eq!(map, ["0".to_owned(), first.to_string(), "65536".to_owned()]);
    let namespaces = ["main", "privileged", "user", "hardened"].map(|c| sh(c, "readlink /proc/self/ns/user"));
    assert!(namespaces.iter().all(|n| *n == namespaces[0]), "one user namespace per pod: {namespaces:?}");
    assert_ne!(namespaces[0], fs::read_link("/proc/self/ns/user").expect("link").display().to_string());
    assert_exec_is_one_of_the_containers(&node, "own");

    // Files keep their owners in both directions, whatever they lie on.
    assert_eq!(sh("main", "stat -c '%u:%g' / /bin /etc/hosts /etc/resolv.conf /dev/shm /share/given | sort -u"), "0:0");
    sh("main", "touch /share/root /disk/root /memory/root /dev/shm/root; chown 33:44 /share/root; rm /etc/passwd");
    sh(
        "main",
        "mkdir /made && echo x > /made/file && mv /made/file /made/moved && rm -r /home; ls -ld /etc/passwd || true",
    );
    sh("user", "touch /share/user /disk/user /memory/user; test ! -w /etc/hosts");
    // So do parts of volumes, images, and files made from fields; what the group may read its members read.
    for container in ["main", "user"] {
        assert_eq!(
            sh(container, "stat -c '%u:%g %a' /part /image /image/bin/busybox /users"),
            "0:4002 2777\n0:0 755\n0:0 755\n0:0 644"
        );
        assert_eq!(sh(container, "stat -L -c '%u:%g %a' /name/in/name /one-name"), "0:4002 440\n0:4002 440");
        assert_eq!(
            sh(
                container,
                "cat /name/in/name /one-name; touch /image/x /name/x 2>/dev/null || grep -c app:x:1234 /users"
            ),
            format!("{0}{0}1", seen.name())
        );
        sh(container, &format!("touch /part/{container}"));
    }
    assert_eq!(sh("main", "grep -E ' (/image|/users) ' /proc/mounts | grep -c 'ro,nodev,noexec'"), "2");
    let on_disk = |path: std::path::PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (meta.uid(), meta.gid())
    };
    let pod_dir = node.dir.join("root/pods").join(seen.uid());
    assert_eq!(on_disk(share.join("root")), (33, 44));
    assert_eq!(on_disk(share.join("user")), (1000, 1001));
    assert_eq!(on_disk(pod_dir.join("volumes/kubernetes.io~empty-dir/disk/root")), (0, 4002));
    assert_eq!(on_disk(pod_dir.join("volumes/kubernetes.io~empty-dir/memory/user")), (1000, 4002));
    let upper = pod_dir.join("containers/main/0/upper");
    assert_eq!(on_disk(upper.join("made/moved")), (0, 0));
    assert_eq!(on_disk(upper.join("etc/passwd")), (0, 0), "a whiteout");

    // What its root may do with its own namespaces, and not with the machine.
    assert_eq!(sh("privileged", "mkdir /m && mount -t tmpfs x /m && echo mounted"), "mounted");
    assert_eq!(
        sh(
            "privileged",
            "echo 7 > /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
        ),
        "7"
    );
    assert_eq!(sh("privileged", "ip link add d0 type dummy 2>/dev/null; ip link set lo mtu 60000 && echo net"), "net");
    let refused = sh("privileged", "echo 0 > /proc/sys/kernel/panic 2>&1 || echo refused");
    assert!(refused.contains("refused"), "{refused}");
    let device = sh("privileged", "mknod /tmp/null c 1 3 2>&1 || echo refused");
    assert!(device.contains("refused"), "{device}");
    assert_eq!(sh("main", "grep -c ' /proc/' /proc/mounts || true"), "0", "unmasked");
    assert_ne!(sh("user", "grep -c ' /proc/' /proc/mounts || true"), "0", "masked");
    assert!(node.cli(&["logs", "own", "-c", "main"]).code == Some(0));

    // The agent may die; the pod stays as it is, and can still be entered.
    node.kill9();
    node.start();
    assert_eq!(sh_in(&node, "id -u; touch /share/after"), "0");
    assert_eq!(on_disk(share.join("after")), (0, 0));
    assert_eq!(first_id(&node, &node.wait_up("own")), first);

    // The shim may die: a new sandbox has the same IDs, and another pod others.
    let shims = node.shims();
    signal(shims[0], Signal::KILL);
    eventually("the shim is gone", PATIENCE, || !alive(shims[0]));
    let again = node.wait_pod("own", "running again", |p| p.up() && p.restarts("main") > 0);
    assert_eq!(first_id(&node, &again), first);
    assert_eq!(sh_in(&node, "id -u; cat /disk/root; stat -c %u /disk/user"), "0\n1000");
    let mut other = pod("other", false);
    other["spec"]["shareProcessNamespace"] = json!(true);
    other["spec"]["securityContext"]["sysctls"] = json!([
        { "name": "kernel.shm_rmid_forced", "value": "1" },
        { "name": "net.ipv4.ping_group_range", "value": "7 1000" },
        { "name": "net.ipv4.tcp_syncookies", "value": "2" },
    ]);
    other["spec"]["containers"] = json!([containers()[0], containers()[2]]);
    let other = node.run(&other);
    assert_ne!(first_id(&node, &other), first);
    assert_processes_are_shared(&node, &other);
    node.remove("own.yaml");
    node.wait_gone("own");
    eventually("its IDs are free", secs(5), || !pod_dir.exists());
    node.finish();
}

/// The PID namespace that the containers `main` and `user` share belongs to the pod's user namespace, and so does its first
/// process, which has no rights even there.
fn assert_processes_are_shared(node: &Node, seen: &PodView) {
    let sh = |container: &str, script: &str| {
        node.cli(&["exec", "other", "-c", container, "--", "sh", "-c", script]).ok().trim_end().to_owned()
    };
    for container in ["main", "user"] {
        let processes = sh(container, "ps -o pid,user,args");
        let all: Vec<Vec<&str>> = processes.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(all.contains(&vec!["1", "65535", "pause"]), "{processes}");
        let rests = |user: &str| all.iter().any(|fields| fields[1] == user && fields[2..] == ["sleep", "3600"]);
        assert!(rests("root") && rests("1000"), "{processes}");
    }
    // Groups in a value are the pod's.
    let sysctls =
        "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ping_group_range net/ipv4/tcp_syncookies | tr '\\t' ' '";
    assert_eq!(sh("main", sysctls), "1\n7 1000\n2");
    let status = sh("main", "cat /proc/1/status");
    let expected = ["CapInh", "CapPrm", "CapEff", "CapAmb"].map(|set| format!("{set}:\t0000000000000000"));
    for line in
        expected.iter().map(String::as_str).chain(["Uid:\t65535\t65535\t65535\t65535", "NoNewPrivs:\t1", "Seccomp:\t1"])
    {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert_eq!(sh("main", "kill -9 1; kill -9 1; echo still"), "still");
    let cgroup = node.container_cgroup(&seen.id("main"), "cgroup.procs").expect("its cgroup");
    let first = fs::read_to_string(cgroup.join("cgroup.procs")).expect("processes");
    let first = first.lines().next().and_then(|pid| pid.parse().ok()).expect("a process");
    let pids = node.cgroup_pids();
    let mut pauses =
        pids.iter().filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "pause\n"));
    let pause = pauses.next().expect("the first process");
    for kind in ["user", "pid", "net", "ipc", "uts"] {
        let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace");
        assert_eq!(of(*pause), of(first), "{kind}");
    }
    // With its end the sandbox is over, and another is as good.
    signal(*pause, Signal::KILL);
    node.wait_pod("other", "up again", |p| p.up() && p.restarts("main") == 1);
    assert!(sh("main", "ps -o user,args").contains("65535    pause"));
}

fn sh_in(node: &Node, script: &str) -> String {
    node.cli(&["exec", "own", "-c", "main", "--", "sh", "-c", script]).ok().trim_end().to_owned()
}

#[test]
fn what_cannot_be_shown_with_its_owners_is_refused_by_name() {
    let node = Node::up();
    let mut manifest = pod("proc", false);
    manifest["spec"]["containers"] = json!([containers()[0]]);
    manifest["spec"]["volumes"] = json!([{ "name": "p", "hostPath": { "path": "/proc/fs" } }]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "p", "mountPath": "/host" }]);
    node.apply("proc.yaml", &manifest);
    let seen = node.wait_pod("proc", "refused", |p| p.waiting("main") == "CreateContainerConfigError");
    let message = seen.waiting_message("main").to_owned();
    assert!(message.contains("/proc/fs is on a file system (proc) that cannot be idmapped"), "{message}");

    manifest["metadata"]["name"] = json!("high");
    manifest["spec"]["volumes"] = json!([]);
    manifest["spec"]["containers"][0]["volumeMounts"] = json!([]);
    manifest["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 70000 });
    node.apply("high.yaml", &manifest);
    let seen = node.wait_pod("high", "refused", |p| p.waiting("main") == "CreateContainerConfigError");
    assert!(seen.waiting_message("main").contains("user 70000 does not exist"), "{}", seen.waiting_message("main"));
    node.finish();
}
