//! Manifest and image in, OCI runtime spec out: the whole of it, compared with files that a person can read.
//! `UPDATE_EXPECT=1 cargo test --lib bundle::` writes them anew.

use super::*;
use crate::pod::resources::{container_cgroup, pod_cgroup, qos};
use expect_test::{ExpectFile, expect_file};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/var/www:/bin/false\n";

/// JSON with everything in order that the types keep in hash tables.
fn render(spec: &Spec) -> String {
    let mut value = serde_json::to_value(spec).expect("JSON");
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        if let Some(Value::Array(list)) = value.pointer_mut(&format!("/process/capabilities/{set}")) {
            list.sort_by_key(|v| v.to_string());
        }
    }
    // The profile has tests of its own; that it is there is what matters here.
    if let Some(seccomp) = value.pointer_mut("/linux/seccomp").filter(|s| !s.is_null()) {
        *seccomp = json!("RuntimeDefault");
    }
    serde_json::to_string_pretty(&value).expect("JSON") + "\n"
}

fn image(config: Value) -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": []}
    }))
    .expect("image")
}

fn busybox() -> ImageConfiguration {
    image(json!({"Cmd": ["sh"], "Env": ["PATH=/bin", "VERSION=1.37"]}))
}

fn node() -> NodeFacts {
    NodeFacts {
        cpus: 2,
        memory: 4 << 30,
        allocatable: Allocatable { cpu_milli: 2000, memory: 4 << 30, ephemeral_storage: 1 << 30 },
        swap_limits: true,
        device_rules: true,
        capabilities: u64::MAX,
        min_oom_score_adj: -1000,
        nofile: Some(524_288),
        ..NodeFacts::default()
    }
}

struct Case {
    pod: Pod,
    image: ImageConfiguration,
    volumes: BTreeMap<String, Volume>,
    node: NodeFacts,
    joined: Namespaces,
    sources: Sources,
}

impl Case {
    fn new(spec: Value) -> Case {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p-node", "namespace": "default", "uid": "0f", "labels": {"app": "x"}},
            "spec": spec
        });
        let ns = |kind: &str| Some(PathBuf::from(format!("/run/coracle/pods/0f/ns/{kind}")));
        Case {
            pod: serde_json::from_value(pod).expect("pod"),
            image: busybox(),
            volumes: BTreeMap::new(),
            node: node(),
            joined: Namespaces { net: ns("net"), ipc: ns("ipc"), uts: ns("uts"), ..Namespaces::default() },
            sources: Sources::default(),
        }
    }

    fn build(&self) -> Result<Spec, Error> {
        self.with_input(build)
    }

    fn with_input<T>(&self, work: impl FnOnce(&Input<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let container = &self.pod.spec.as_ref().expect("spec").containers[0];
        let image_user = self.image.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default();
        let user = user::resolve(&self.pod, container, &image_user, PASSWD, "").expect("user");
        let mut mounts = of_container(container, &self.volumes)?;
        mounts.push(Mount {
            source: "/var/lib/coracle/pods/0f/etc-hosts".into(),
            destination: "/etc/hosts".into(),
            ..Mount::default()
        });
        let ip = |text: &str| vec![text.parse::<IpAddr>().expect("address")];
        work(&Input {
            pod: &self.pod,
            container,
            image: &self.image,
            user: &user,
            hostname: "p-node",
            ips: &ip("10.88.0.2"),
            host_ips: &ip("192.0.2.1"),
            node_name: "node",
            sources: &self.sources,
            mounts: &mounts,
            namespaces: &self.joined,
            cgroup_path: &container_cgroup(&pod_cgroup("", qos(&self.pod).expect("class"), "0f"), "c0ffee"),
            rootfs: Path::new("/run/coracle/pods/0f/rootfs/c-0"),
            node: &self.node,
        })
    }

    #[track_caller]
    fn check(&self, file: ExpectFile) {
        file.assert_eq(&render(&self.build().expect("spec")));
    }
}

#[test]
fn busybox_with_nothing_special() {
    Case::new(json!({"containers": [{"name": "c", "image": "busybox"}]}))
        .check(expect_file!["../../tests/golden/bundle/busybox.json"]);
}

#[test]
fn privileged() {
    let mut case = Case::new(json!({"containers": [{
        "name": "c", "command": ["sleep"], "args": ["1"], "tty": true, "securityContext": {"privileged": true}
    }]}));
    let fuse =
        json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0});
    case.node.devices = vec![serde_json::from_value(fuse).expect("device")];
    case.check(expect_file!["../../tests/golden/bundle/privileged.json"]);
}

#[test]
fn hardened_on_cgroup_v2() {
    let mut case = Case::new(json!({"containers": [{
        "name": "c",
        "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
        "securityContext": {
            "readOnlyRootFilesystem": true, "runAsNonRoot": true, "runAsUser": 33, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}
        }
    }]}));
    case.node.cgroups = CgroupFs::V2;
    case.check(expect_file!["../../tests/golden/bundle/hardened-v2.json"]);
}

/// As kubeadm writes it, but for the probes.
#[test]
fn kube_apiserver_on_the_host_network() {
    let path = |name: &str, path: &str, kind: &str| json!({"name": name, "hostPath": {"path": path, "type": kind}});
    let mut case = Case::new(json!({
        "hostNetwork": true,
        "priority": 2_000_001_000, "priorityClassName": "system-node-critical",
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "kube-apiserver",
            "image": "registry.k8s.io/kube-apiserver:v1.36.2",
            "command": ["kube-apiserver", "--advertise-address=192.0.2.1", "--secure-port=6443"],
            "resources": {"requests": {"cpu": "250m"}},
            "volumeMounts": [
                {"mountPath": "/etc/ssl/certs", "name": "ca-certs", "readOnly": true},
                {"mountPath": "/etc/kubernetes/pki", "name": "k8s-certs", "readOnly": true},
                {"mountPath": "/etc/kubernetes", "name": "etc", "readOnly": true, "recursiveReadOnly": "IfPossible"}
            ]
        }],
        "volumes": [
            path("ca-certs", "/etc/ssl/certs", "DirectoryOrCreate"),
            path("k8s-certs", "/etc/kubernetes/pki", "DirectoryOrCreate"),
            path("etc", "/etc/kubernetes", "")
        ]
    }));
    for volume in case.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let path = PathBuf::from(&volume.host_path.as_ref().expect("hostPath").path);
        case.volumes.insert(volume.name.clone(), Volume { path, read_only: false, image: None });
    }
    case.image = image(json!({"Entrypoint": ["/go-runner"], "WorkingDir": "/srv", "Env": ["SSL_CERT_FILE=/x"]}));
    case.joined = Namespaces { ipc: case.joined.ipc, ..Namespaces::default() };
    case.node.min_oom_score_adj = 0;
    case.node.cgroups = CgroupFs::V1(vec![("memory".into(), "/sys/fs/cgroup/memory".into())]);
    case.check(expect_file!["../../tests/golden/bundle/kube-apiserver.json"]);
}

/// A pod of a DaemonSet as an API server gives it, with the service account's volume that its admission adds.
#[test]
fn a_bound_daemon() {
    let mut case = Case::new(json!({"containers": []}));
    let bound = include_str!("../../tests/corpus/bound/node-exporter.json");
    let bound: Pod = serde_json::from_str(bound).expect("pod");
    case.pod = crate::manifest::from_api(&bound).expect("works");
    for volume in case.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let own = format!("/run/coracle/pods/0f/volumes/projected/{}", volume.name);
        let path = volume.host_path.as_ref().map_or(own, |host| host.path.clone());
        case.volumes.insert(volume.name.clone(), Volume { path: path.into(), read_only: false, image: None });
    }
    case.image = image(json!({"Entrypoint": ["/bin/node_exporter"], "User": "nobody"}));
    case.joined = Namespaces { ipc: case.joined.ipc, ..Namespaces::default() };
    case.check(expect_file!["../../tests/golden/bundle/bound-daemon.json"]);
}

#[test]
fn a_user_namespace_is_joined_with_its_ids() {
    let mut case = Case::new(json!({"containers": [{"name": "c"}]}));
    let linux = |case: &Case| serde_json::to_value(case.build().expect("spec").linux()).expect("JSON");
    let users = |linux: &Value| {
        let list = linux["namespaces"].as_array().expect("namespaces").clone();
        list.into_iter().filter(|n| n["type"] == "user").collect::<Vec<_>>()
    };
    let without = linux(&case);
    assert!(users(&without).is_empty() && without.get("uidMappings").is_none_or(Value::is_null), "{without}");
    case.joined.user = Some(UserNamespace { path: "/run/ns/user".into(), first_id: 131_072, ids: 65_536 });
    let with = linux(&case);
    assert_eq!(users(&with), [json!({"type": "user", "path": "/run/ns/user"})]);
    let ids = json!([{"containerID": 0, "hostID": 131_072, "size": 65_536}]);
    assert_eq!((&with["uidMappings"], &with["gidMappings"]), (&ids, &ids));
}

#[test]
fn environment_and_arguments() {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let case = Case::new(json!({"containers": [{
        "name": "c",
        "args": ["$(A)", "$(LATE)", "$(VERSION)", "$$(A)"],
        "resources": {"limits": {"memory": "64Mi"}},
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)-$(LATE)-$(VERSION)"},
            {"name": "LATE", "value": "x"},
            {"name": "A", "value": "$(A)2"},
            {"name": "PATH", "value": "/opt"},
            {"name": "NAME", "valueFrom": field("metadata.name")},
            {"name": "LABEL", "valueFrom": field("metadata.labels['app']")},
            {"name": "NODE", "valueFrom": field("spec.nodeName")},
            {"name": "IP", "valueFrom": field("status.podIP")},
            {"name": "HOST", "valueFrom": field("status.hostIPs")},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "EMPTY"}
        ]
    }]}));
    let spec = case.build().expect("spec");
    let process = spec.process().as_ref().expect("process");
    expect_test::expect![[r#"
        PATH=/opt
        VERSION=1.37
        HOSTNAME=p-node
        A=12
        B=1-$(LATE)-$(VERSION)
        LATE=x
        NAME=p-node
        LABEL=x
        NODE=node
        IP=10.88.0.2
        HOST=192.0.2.1
        MEM=64
        EMPTY=
        HOME=/root"#]]
    .assert_eq(&process.env().as_ref().expect("env").join("\n"));
    assert_eq!(process.args().as_deref().expect("args"), ["12", "x", "$(VERSION)", "$(A)"]);
}

#[test]
fn the_pods_own_mounts_come_first() {
    let mount = |path: &str| json!({"name": "v", "mountPath": path});
    let mut case = Case::new(json!({"containers": [{
        "name": "c", "volumeMounts": [mount("/etc/hosts"), mount("/dev/shm"), mount("/a/b"), mount("/a")]
    }]}));
    case.volumes.insert("v".into(), Volume { path: "/volume".into(), read_only: true, image: None });
    let spec = case.build().expect("spec");
    let show = |m: &oci_spec::runtime::Mount| {
        format!("{} {:?}", m.destination().display(), m.source().as_ref().expect("source"))
    };
    let bound = spec.mounts().iter().flatten().filter(|m| m.typ().as_deref() == Some("bind")).map(show);
    assert_eq!(
        bound.collect::<Vec<_>>(),
        [r#"/a "/volume""#, r#"/etc/hosts "/volume""#, r#"/dev/shm "/volume""#, r#"/a/b "/volume""#]
    );
    assert!(!spec.mounts().iter().flatten().any(|m| m.source().as_deref() == Some(Path::new("shm"))));
}

#[test]
fn sub_path_expressions_mean_the_containers_environment() {
    let expand = |expression: &str| {
        let mut case = Case::new(json!({"containers": [{
            "name": "c",
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}, {"name": "EMPTY"}],
            "volumeMounts": [{"name": "v", "mountPath": "/x", "subPathExpr": expression}]
        }]}));
        case.volumes.insert("v".into(), Volume { path: "/v".into(), read_only: false, image: None });
        case.with_input(expand_sub_paths)
            .map(|mounts| match &mounts[0].sub_path {
                SubPath::Path(path) => path.clone(),
                other => format!("{other:?}"),
            })
            .map_err(|e| e.to_string())
    };
    assert_eq!(expand("$(B)/$$(A)/x"), Ok("12/$(A)/x".into()));
    let missing = "subPathExpr \"$(NO)$(EMPTY)$(A)\": missing value for EMPTY, NO";
    assert_eq!(expand("$(NO)$(EMPTY)$(A)"), Err(missing.into()));
}

#[test]
fn what_confines_a_container_is_not_mounted_over() {
    let at = |place: &str, source: &str| {
        let mounts = json!([{"name": "v", "mountPath": place}]);
        let mut case = Case::new(json!({"containers": [{"name": "c", "volumeMounts": mounts}]}));
        case.volumes.insert("v".into(), Volume { path: source.into(), read_only: false, image: None });
        case.build().map(drop).map_err(|e| e.to_string())
    };
    for place in ["/proc", "/proc/self/attr", "/proc/sys", "/proc/../proc/kcore", "/proc//kcore", "/proc/sys/kernel"] {
        let error = at(place, "/srv").expect_err(place);
        assert!(error.contains("/proc") || error.contains(".."), "{place}: {error}");
    }
    assert!(at("/proc/1", "/proc").expect_err("below").contains("is the kernel's"));
    for (place, source) in
        [("/proc", "/proc"), ("/proc/meminfo", "/srv/x"), ("/process", "/srv"), ("/host/proc", "/proc")]
    {
        assert_eq!(at(place, source), Ok(()), "{place}");
    }
    for place in ["/dev/null", "/dev/fd", "/dev/stdin", "/dev/ptmx", "/dev/fd/3"] {
        assert!(at(place, "/srv").expect_err(place).contains("of its own"), "{place}");
    }
    for place in ["/dev/shm", "/dev/pts", "/dev/fuse", "/dev/nullx", "/dev/net/tun"] {
        assert_eq!(at(place, "/srv"), Ok(()), "{place}");
    }
}

#[test]
fn a_privileged_containers_own_dev_stands_for_the_machines() {
    let mut case = Case::new(json!({"containers": [{
        "name": "c", "securityContext": {"privileged": true}, "volumeMounts": [{"name": "v", "mountPath": "/dev"}]
    }]}));
    case.volumes.insert("v".into(), Volume { path: "/dev".into(), read_only: false, image: None });
    let spec = case.build().expect("spec");
    let kinds: Vec<_> = spec.mounts().iter().flatten().filter(|m| m.destination() == Path::new("/dev")).collect();
    assert!(matches!(kinds.as_slice(), [only] if only.typ().as_deref() == Some("tmpfs")), "{kinds:?}");
    case.volumes.insert("v".into(), Volume { path: "/srv".into(), read_only: false, image: None });
    assert!(matches!(case.build(), Err(Error::MountOverDev)));
}

#[test]
fn commands() {
    let argv = |container: Value, config: Value| {
        let mut case = Case::new(json!({"containers": [container]}));
        case.image = image(config);
        case.build().map(|s| s.process().as_ref().and_then(|p| p.args().clone()).unwrap_or_default().join(" "))
    };
    let both = || json!({"Entrypoint": ["e"], "Cmd": ["d"]});
    assert_eq!(argv(json!({"name": "c"}), both()).expect("argv"), "e d");
    assert_eq!(argv(json!({"name": "c", "args": ["a"]}), both()).expect("argv"), "e a");
    assert_eq!(argv(json!({"name": "c", "command": ["x"]}), both()).expect("argv"), "x");
    assert_eq!(argv(json!({"name": "c", "command": ["x"], "args": ["a"]}), both()).expect("argv"), "x a");
    assert!(matches!(argv(json!({"name": "c"}), json!({})), Err(Error::NoCommand)));
    assert!(matches!(argv(json!({"name": "c", "command": ["a\u{0}"]}), json!({})), Err(Error::Argument)));
}

#[test]
fn refusals() {
    let failure = |container: Value| {
        let mut case = Case::new(json!({"containers": [container]}));
        case.volumes.insert("v".into(), Volume { path: "/x".into(), read_only: true, image: None });
        case.build().expect_err("refused").to_string()
    };
    let mounting = |mount: Value| failure(json!({"name": "c", "volumeMounts": [mount]}));
    let text = [
        mounting(json!({"name": "none", "mountPath": "/x"})),
        mounting(json!({"name": "v", "mountPath": "/dev/"})),
        mounting(json!({"name": "v", "mountPath": "/a/../b"})),
        mounting(json!({"name": "v", "mountPath": "/x", "subPath": "y"})),
        mounting(json!({"name": "v", "mountPath": "/x", "mountPropagation": "Bidirectional"})),
        failure(json!({"name": "c", "env": [{"name": "A=B"}]})),
        failure(json!({"name": "c", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]})),
        failure(json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]})),
        failure(json!({"name": "c", "securityContext": {"capabilities": {"add": ["FLY"]}}})),
        failure(
            json!({"name": "c", "securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}}}),
        ),
    ];
    expect_test::expect![[r#"
        volumeMounts: the pod has no volume "none"
        mountPath /dev is not supported (mount single devices or folders below it; privileged containers have all)
        mountPath "/a/../b" must be a path below / without '..'
        what "/x" shows is not prepared
        mountPropagation Bidirectional of "/x" is available only to privileged containers
        env "A=B": a name is made of printable ASCII characters other than '=', and a value holds no NUL byte
        unsupported fieldPath: status.phase
        secret "s" not found
        unknown capability "FLY"
        Cannot enforce AppArmor: AppArmor is not enabled on the host"#]]
    .assert_eq(&text.join("\n"));
}

#[test]
fn variables_of_other_objects() {
    let mut case = Case::new(json!({"containers": [{
        "name": "c", "command": ["x"], "args": ["$(p_b c) $(A)"],
        "envFrom": [
            {"configMapRef": {"name": "one"}},
            {"prefix": "p_", "configMapRef": {"name": "two"}},
            {"secretRef": {"name": "keys"}},
            {"configMapRef": {"name": "none", "optional": true}},
            {"secretRef": {"name": "none", "optional": true}}
        ],
        "env": [
            {"name": "B", "value": "[$(A)]"},
            {"name": "A", "value": "own"},
            {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "one", "key": "A"}}},
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "S"}}},
            {"name": "NO1", "valueFrom": {"configMapKeyRef": {"name": "one", "key": "x", "optional": true}}},
            {"name": "NO2", "valueFrom": {"secretKeyRef": {"name": "x", "key": "x", "optional": true}}},
            {"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "f", "key": "K"}}},
            {"name": "NO3", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "f", "key": "E", "optional": true}}}
        ]
    }]}));
    let data = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    case.sources.config_maps.insert("one".into(), data(&[("A", "1"), ("B", "1")]));
    case.sources.config_maps.insert("two".into(), data(&[("b c", "2")]));
    case.sources
        .secrets
        .insert("keys".into(), BTreeMap::from([("S".into(), b"s3".to_vec()), ("A".into(), b"3".to_vec())]));
    case.sources.files.insert(("v".into(), "f".into()), Ok(b"K='old'\nE=''\nK='4'".to_vec()));
    let spec = case.build().expect("spec");
    let process = spec.process().as_ref().expect("process");
    expect_test::expect![[r#"
        PATH=/bin
        VERSION=1.37
        HOSTNAME=p-node
        A=own
        B=[3]
        p_b c=2
        S=s3
        KEY=1
        SECRET=s3
        FILE=4
        HOME=/root"#]]
    .assert_eq(&process.env().as_ref().expect("env").join("\n"));
    assert_eq!(process.args().as_deref().expect("args"), ["x", "2 own"]);
}

#[test]
fn variables_that_are_not_there() {
    let failure = |container: Value| {
        let mut case = Case::new(json!({"containers": [container]}));
        case.sources.config_maps.insert("here".into(), BTreeMap::new());
        case.sources.secrets.insert("here".into(), BTreeMap::from([("bin".into(), vec![0xff])]));
        let file = |name: &str| ("v".to_owned(), name.to_owned());
        case.sources.files.insert(file("bad"), Ok(b"A=1".to_vec()));
        case.sources.files.insert(file("gone"), Err("no such file".into()));
        case.sources.files.insert(file("good"), Ok(b"A='1'".to_vec()));
        case.build().expect_err("refused").to_string()
    };
    let from =
        |source: Value| failure(json!({"name": "c", "command": ["x"], "env": [{"name": "V", "valueFrom": source}]}));
    let all = |source: Value| failure(json!({"name": "c", "command": ["x"], "envFrom": [source]}));
    let file = |path: &str, key: &str, optional: bool| {
        from(json!({"fileKeyRef": {"volumeName": "v", "path": path, "key": key, "optional": optional}}))
    };
    let text = [
        all(json!({"configMapRef": {"name": "x"}})),
        all(json!({"secretRef": {"name": "x"}})),
        all(json!({"secretRef": {"name": "here"}})),
        from(json!({"configMapKeyRef": {"name": "x", "key": "k"}})),
        from(json!({"configMapKeyRef": {"name": "here", "key": "k"}})),
        from(json!({"secretKeyRef": {"name": "here", "key": "k"}})),
        file("bad", "A", true),
        file("gone", "A", true),
        file("unknown", "A", true),
        file("good", "B", false),
        failure(json!({"name": "c", "env": [{"name": "é"}]})),
    ];
    expect_test::expect![[r#"
        configmap "x" not found
        secret "x" not found
        key bin of secret "here" is not UTF-8, as a variable must be
        configmap "x" not found
        couldn't find key k in ConfigMap default/here
        couldn't find key k in Secret default/here
        couldn't parse env file "bad" of volume "v": line 1: want NAME='value'
        couldn't parse env file "gone" of volume "v": no such file
        couldn't parse env file "unknown" of volume "v": it was not read
        environment variable key "B" not found in file "good" of volume "v"
        env "é": a name is made of printable ASCII characters other than '=', and a value holds no NUL byte"#]]
    .assert_eq(&text.join("\n"));
}

#[test]
fn namespaces_that_are_shared() {
    let kinds = |pid: PidNamespace, joined: bool| {
        let mut case = Case::new(json!({"containers": [{"name": "c", "command": ["x"]}]}));
        case.joined =
            if joined { Namespaces { pid, ..case.joined } } else { Namespaces { pid, ..Namespaces::default() } };
        let spec = case.build().expect("spec");
        let list = spec.linux().as_ref().and_then(|l| l.namespaces().clone()).unwrap_or_default();
        let show = |n: &LinuxNamespace| match n.path() {
            Some(path) => format!("{}={}", n.typ(), path.file_name().unwrap_or_default().to_string_lossy()),
            None => n.typ().to_string(),
        };
        let shm = spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/dev/shm"));
        let shm = shm.and_then(|m| m.typ().clone()).unwrap_or_default();
        format!("{} shm={shm}", list.iter().map(show).collect::<Vec<_>>().join(" "))
    };
    let lines = [
        kinds(PidNamespace::Private, true),
        kinds(PidNamespace::Shared("/run/coracle/pods/0f/ns/pid".into()), true),
        kinds(PidNamespace::Host, true),
        kinds(PidNamespace::Host, false),
    ];
    expect_test::expect![[r#"
        mnt pid net=net ipc=ipc uts=uts shm=tmpfs
        mnt pid=pid net=net ipc=ipc uts=uts shm=tmpfs
        mnt net=net ipc=ipc uts=uts shm=tmpfs
        mnt shm=bind"#]]
    .assert_eq(&lines.join("\n"));
}
