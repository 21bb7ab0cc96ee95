//! Golden tests over the corpus of manifests in `tests/corpus`, and properties that hold for any bytes.

use super::*;
use expect_test::{Expect, expect, expect_file};
use proptest::prelude::*;

macro_rules! corpus {
    ($name:literal) => {
        include_str!(concat!("../../tests/corpus/", $name))
    };
}

const STATIC_WEB: &str = corpus!("static-web.yaml");
const FULL: &str = corpus!("full.yaml");
const SEVERAL: &str = corpus!("several.yaml");
const ETCD: &str = corpus!("kubeadm/etcd.yaml");
const API_SERVER: &str = corpus!("kubeadm/kube-apiserver.yaml");
const CONTROLLER_MANAGER: &str = corpus!("kubeadm/kube-controller-manager.yaml");
const SCHEDULER: &str = corpus!("kubeadm/kube-scheduler.yaml");

pub(super) fn read(text: &str) -> Loaded {
    load(text.as_bytes(), Origin::File("/etc/kubernetes/manifests/pod.yaml"), "Edge1")
}

pub(super) fn problems(loaded: &Loaded) -> String {
    loaded.problems.iter().map(|problem| format!("{problem}\n")).collect()
}

pub(super) fn check_problems(text: &str, expected: &Expect) {
    expected.assert_eq(&problems(&read(text)));
}

/// A pod with these lines in its one container.
pub(super) fn with_container(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers:\n    - name: c\n      image: app:1\n{lines}"
    )
}

/// A pod with these lines in its spec.
pub(super) fn with_spec(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers: [{{name: c, image: \"app:1\"}}]\n{lines}"
    )
}

fn pretty(pod: &Pod) -> String {
    let mut text = serde_json::to_string_pretty(pod).unwrap();
    text.push('\n');
    text
}

#[test]
fn static_web_is_a_whole_pod() {
    let loaded = read(STATIC_WEB);
    assert_eq!(problems(&loaded), "");
    expect_file!["../../tests/corpus/static-web.golden.json"].assert_eq(&pretty(&loaded.pods[0]));
}

#[test]
fn everything_that_works_is_accepted() {
    let loaded = read(FULL);
    assert_eq!(problems(&loaded), "");
    expect_file!["../../tests/corpus/full.golden.json"].assert_eq(&pretty(&loaded.pods[0]));
}

#[test]
fn kubeadm_manifests_are_accepted() {
    for (name, text, port) in [
        ("etcd", ETCD, 2381),
        ("kube-apiserver", API_SERVER, 6443),
        ("kube-controller-manager", CONTROLLER_MANAGER, 10257),
        ("kube-scheduler", SCHEDULER, 10259),
    ] {
        let loaded = read(text);
        assert_eq!(problems(&loaded), "", "{name}");
        let pod = &loaded.pods[0];
        assert_eq!(pod.metadata.name.as_deref(), Some(format!("{name}-edge1").as_str()));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("kube-system"));
        let ports = pod.spec.as_ref().unwrap().containers[0].ports.as_ref().unwrap();
        assert_eq!(ports[0].host_port, Some(port), "host port under hostNetwork");
    }
}

#[test]
fn each_document_stands_alone() {
    let loaded = read(SEVERAL);
    let names: Vec<_> = loaded.pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    assert_eq!(names, ["first-edge1", "second-edge1"]);
    expect![[r#"
        line 21: items[1].spec.containers[0].image: Required value
        line 26: apiVersion: Unsupported value: "apps/v1": a manifest holds Pods, ConfigMaps and Secrets of apiVersion "v1", not a Deployment
        line 32: metadata.name: Duplicate value: "first-edge1": this manifest has a pod of that name already
    "#]].assert_eq(&problems(&loaded));
    let bad = loaded.problems.iter().find(|problem| problem.field.ends_with("image")).unwrap();
    assert_eq!(bad.pod, Some(("default".to_owned(), "bad-edge1".to_owned())));
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    check_problems(
        corpus!("bad/everything.yaml"),
        &expect![[r#"
            line 4: metadata.name: Invalid value: "Bad_Name-edge1": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            line 5: metadata.namespace: Invalid value: "kube.system": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            line 6: metadata.uid: Invalid value: "../../etc": a UID must consist of at most 63 letters, digits, '-' or '_'
            line 8: metadata.labels[-x]: Invalid value: "-x": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            line 8: metadata.labels[-x]: Invalid value: "a b": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
            line 9: warning: metadata.generateName: is set by the API server only: ignored
            line 10: spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None
            line 11: spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"
            line 13: spec.hostname: Invalid value: "a.b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            line 16: spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys"
            line 19: spec.volumes[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity
            line 20: spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type
            line 21: spec.volumes[1].name: Duplicate value: "v"
            line 22: spec.volumes[1].hostPath.path: Invalid value: "/a/../b": must not contain '..'
            line 22: spec.volumes[1].hostPath.type: Unsupported value: "Folder": supported values: "", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"
            line 25: spec.containers[0].image: Invalid value: " nginx": must not have leading or trailing whitespace
            line 26: spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never"
            line 28: spec.containers[0].env[0].value: Invalid value: 8080: must be a string, not a number (put it in quotes)
            line 29: spec.containers[0].env[1].value: Invalid value: true: must be a string, not a boolean (y, yes, on, n, no and off are booleans, too: put it in quotes)
            line 30: spec.containers[0].env[2].name: Invalid value: "C=D": a valid environment variable name must consist only of printable ASCII characters other than '='
            line 31: spec.containers[0].env[3].valueFrom: Invalid value: "": may not be specified when `value` is not empty
            line 31: spec.containers[0].env[3].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.nope": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"
            line 32: spec.containers[0].env[4].valueFrom: Invalid value: "": must specify one of: fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef or fileKeyRef
            line 34: spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive
            line 35: spec.containers[0].ports[1].name: Duplicate value: "web"
            line 35: spec.containers[0].ports[1].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true
            line 35: spec.containers[0].ports[1].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
            line 36: spec.containers[0].ports[2].name: Invalid value: "UPPER": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
            line 38: spec.containers[0].ports[4].hostPort: Duplicate value: "TCP//80"
            line 40: spec.containers[0].resources.limits[memory]: Invalid value: "1gb": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
            line 41: spec.containers[0].resources.requests[cpu]: Invalid value: "2": must be less than or equal to cpu limit of 1
            line 41: spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0
            line 42: spec.containers[0].securityContext: Invalid value: cannot set `allowPrivilegeEscalation` to false and `privileged` to true
            line 45: spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive
            line 46: spec.containers[0].securityContext.capabilities.add[0]: Invalid value: "SYS_ADMIM": is no capability
            line 47: spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost
            line 50: spec.containers[0].volumeMounts[1].name: Not found: "w"
            line 50: spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/x": must be unique
            line 50: spec.containers[0].volumeMounts[1].subPath: Invalid value: "../y": must not contain '..'
            line 51: spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0
            line 51: spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive
            line 52: spec.containers[1].name: Duplicate value: "c"
            line 54: warning: spec.containers[1].imagePullpolicy: unknown field, ignored; did you mean "imagePullPolicy"?
        "#]],
    );
}

#[test]
fn references_to_the_api_are_refused() {
    check_problems(
        corpus!("bad/references.yaml"),
        &expect![[r#"
            line 6: spec.serviceAccountName: static pods may not reference serviceaccounts
            line 7: spec.imagePullSecrets: static pods may not reference secrets
            line 8: spec.resourceClaims: static pods may not reference resourceclaims
            line 22: spec.volumes[2].persistentVolumeClaim: static pods may not reference persistentvolumeclaims
            line 23: spec.volumes[3].csi: static pods may not reference csidrivers (via CSI volumes)
            line 23: spec.volumes[3].csi.nodePublishSecretRef: static pods may not reference secrets
            line 24: spec.volumes[4].glusterfs: static pods may not reference endpoints (via glusterFS volumes)
            line 25: spec.volumes[5].ephemeral: static pods may not reference persistentvolumeclaims (via ephemeral volumes)
            line 29: spec.volumes[6].projected.sources[0].serviceAccountToken: static pods may not reference serviceaccounts (via projected volumes)
            line 30: spec.volumes[6].projected.sources[1].clusterTrustBundle: static pods may not reference clustertrustbundles
            line 31: spec.volumes[7].nfs: needs programs on the node that coracle does not start: mount it on the node and use hostPath
        "#]],
    );
}

#[test]
fn what_cannot_work_is_refused() {
    check_problems(
        corpus!("bad/unsupported.yaml"),
        &expect![[r#"
            line 6: spec.automountServiceAccountToken: a static pod has no service account whose token could be mounted
            line 8: spec.ephemeralContainers: Forbidden: cannot be set on create
            line 9: spec.overhead: needs a RuntimeClass object, which only a cluster has
            line 10: spec.schedulingGates: Forbidden: a static pod is never scheduled
            line 12: spec.runtimeClassName: needs a RuntimeClass object, which only a cluster has; this node has one runtime
            line 13: spec.os.name: Invalid value: "windows": this node runs linux
            line 14: spec.securityContext.windowsOptions: this node runs linux
            line 15: spec.resources.claims: static pods may not reference resourceclaims
            line 20: spec.containers[0].lifecycle.stopSignal: Forbidden: the feature is off in Kubernetes 1.36: the image's STOPSIGNAL counts
            line 21: spec.containers[0].resources.limits[example.com/gpu]: no device plugin can offer this resource on a lone node: ask for devices by their CDI names
            line 24: spec.containers[0].volumeDevices: needs a PersistentVolumeClaim, which only a cluster has: use a hostPath volume of type BlockDevice
            line 26: spec.volumes[0].awsElasticBlockStore: Kubernetes has removed the driver of this type of volume: use hostPath on what the node mounts
            line 27: spec.volumes[1].nfs: needs programs on the node that coracle does not start: mount it on the node and use hostPath
            line 28: spec.volumes[2].iscsi: needs programs on the node that coracle does not start: mount it on the node and use hostPath
            line 29: spec.volumes[3].fc: needs programs on the node that coracle does not start: mount it on the node and use hostPath
            line 30: spec.volumes[4].gitRepo: Kubernetes has switched this type of volume off: use an init container that clones
            line 31: spec.volumes[5].flexVolume: needs programs on the node that coracle does not start: mount it on the node and use hostPath
            line 32: spec.volumes[6].cephfs: Kubernetes has removed the driver of this type of volume: use hostPath on what the node mounts
            line 32: spec.volumes[6].cephfs.secretRef: static pods may not reference secrets
        "#]],
    );
}

#[test]
fn what_only_a_scheduler_reads_is_accepted() {
    let loaded = read(&with_spec(
        "schedulerName: mine\npreemptionPolicy: Never\npriority: 5\npriorityClassName: high\n\
         securityContext: {seLinuxChangePolicy: Recursive}\n\
         tolerations: [{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 5}]\n\
         topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, minDomains: 2, \
         matchLabelKeys: [a], nodeAffinityPolicy: Honor, nodeTaintsPolicy: Ignore, \
         labelSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}}]\n\
         affinity: {podAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: \
         {topologyKey: zone, namespaces: [a], namespaceSelector: {}, matchLabelKeys: [a], mismatchLabelKeys: [b]}}]}}",
    ));
    assert_eq!(problems(&loaded), "");
    let spec = loaded.pods[0].spec.as_ref().unwrap();
    assert_eq!((spec.priority, spec.scheduler_name.as_deref()), (Some(5), Some("mine")), "kept for those who ask");
}

#[test]
fn unknown_fields_are_told_at_all_levels() {
    check_problems(
        &with_container(
            "livenessProbe: {httpGet: {port: 80, pth: /, httpHeaders: [{nam: a}]}, periodSecond: 1}\n\
             lifecycle: {prestop: {}, preStop: {sleep: {second: 1}}}\n\
             restartPolicyRules: [{acton: Restart}]\nresizePolicy: [{resource: cpu}]",
        ),
        &expect![[r#"
            line 6: spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used
            line 8: warning: spec.containers[0].livenessProbe.httpGet.pth: unknown field, ignored; did you mean "path"?
            line 8: spec.containers[0].livenessProbe.httpGet.httpHeaders[0].name: Invalid value: "": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')
            line 8: warning: spec.containers[0].livenessProbe.httpGet.httpHeaders[0].nam: unknown field, ignored; did you mean "name"?
            line 8: warning: spec.containers[0].livenessProbe.periodSecond: unknown field, ignored; did you mean "periodSeconds"?
            line 9: warning: spec.containers[0].lifecycle.prestop: unknown field, ignored; did you mean "preStop"?
            line 9: warning: spec.containers[0].lifecycle.preStop.sleep.second: unknown field, ignored; did you mean "seconds"?
            line 10: spec.containers[0].restartPolicyRules[0].action: Unsupported value: "": supported values: "Restart", "RestartAllContainers"
            line 10: spec.containers[0].restartPolicyRules[0].exitCodes: Required value: must be specified
            line 10: warning: spec.containers[0].restartPolicyRules[0].acton: unknown field, ignored; did you mean "action"?
            line 11: spec.containers[0].resizePolicy[0].resourceName: Unsupported value: "": supported values: "cpu", "memory"
            line 11: spec.containers[0].resizePolicy[0].restartPolicy: Unsupported value: "": supported values: "NotRequired", "RestartContainer"
            line 11: warning: spec.containers[0].resizePolicy[0].resource: unknown field, ignored
        "#]],
    );
    check_problems(
        &with_spec(
            "volumes: [{name: v, projected: {source: []}}, {name: w, downwardAPI: {items: [{fieldref: {}}]}}]\n\
             affinity: {nodeAffinity: {required: {}}}\ninitContainers: [{name: i, image: i, comand: [a]}]",
        ),
        &expect![[r#"
            line 6: warning: spec.volumes[0].projected.source: unknown field, ignored; did you mean "sources"?
            line 6: spec.volumes[1].downwardAPI.items[0].path: Required value
            line 6: spec.volumes[1].downwardAPI.items[0]: Required value: one of fieldRef and resourceFieldRef is required
            line 6: warning: spec.volumes[1].downwardAPI.items[0].fieldref: unknown field, ignored; did you mean "fieldRef"?
            line 7: warning: spec.affinity.nodeAffinity.required: unknown field, ignored
            line 8: warning: spec.initContainers[0].comand: unknown field, ignored; did you mean "command"?
        "#]],
    );
}

#[test]
fn no_pod_comes_of_a_document_with_an_error() {
    for text in [corpus!("bad/everything.yaml"), corpus!("bad/references.yaml"), corpus!("bad/unsupported.yaml")] {
        assert_eq!(read(text).pods, []);
    }
}

#[test]
fn yaml_and_json_are_the_same() {
    let json = r#"
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "static-web", "labels": {"role": "myrole"}},
         "spec": {"containers": [{"name": "web", "image": "docker.io/nginx",
            "ports": [{"name": "web", "containerPort": 80, "protocol": "TCP"}]}]}}"#;
    assert_eq!(read(json), read(STATIC_WEB));
    assert_eq!(read(&format!("\u{feff}{json}")), read(STATIC_WEB), "with a byte order mark");
}

#[test]
fn yaml_may_begin_with_a_brace() {
    let empty = read("{apiVersion: v1, kind: PodList, items: []}");
    assert!(empty.pods.is_empty() && empty.problems.is_empty(), "{:?}", empty.problems);
    let pod = |name: &str| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}},
            "spec": {{"containers": [{{"name": "c", "image": "app:1"}}]}}}}"#
        )
    };
    let several = read(&format!("{}\n---\n{}\n", pod("a"), pod("b")));
    assert_eq!((several.pods.len(), several.problems.as_slice()), (2, &[][..]));
    for cut in ["{apiVersion: v1, kind: PodList, items: [", "{apiVersion: v1", "{"] {
        assert!(read(cut).has_errors(), "{cut}");
    }
}

#[test]
fn json_problems_have_lines() {
    let json = "{\n \"apiVersion\": \"v1\",\n \"kind\": \"Pod\",\n \"metadata\": {\"name\": \"p\"},\n \"spec\": {\"containers\": [\n  \
                {\"name\": \"c\",\n   \"image\": 7}]}}";
    check_problems(
        json,
        &expect![[r#"
        line 7: spec.containers[0].image: Invalid value: 7: must be a string, not a number (put it in quotes)
    "#]],
    );
    check_problems(
        "{\"apiVersion\": \"v1\",\n \"kind\" \"Pod\"}",
        &expect![[r#"
        line 2: is not valid JSON: expected `:`
    "#]],
    );
    check_problems(
        "{\"a\": 1,\n\"a\": 2}",
        &expect![[r#"
        line 2: is not valid: duplicate key "a"
    "#]],
    );
    check_problems(
        "{\"a\": \"\\ud800\"}",
        &expect![[r#"
        line 1: is not valid JSON: unexpected end of hex escape
    "#]],
    );
    check_problems(
        &format!("{{\"a\": {}", "[".repeat(100_000)),
        &expect![[r#"
        line 1: is not valid JSON: EOF while parsing a list
    "#]],
    );
    check_problems(
        &format!("{{\"a\": {}{}}}", "[".repeat(1000), "]".repeat(1000)),
        &expect![[r#"
        line 1: is nested deeper than 32 levels
    "#]],
    );
}

#[test]
fn what_is_no_manifest_is_told_precisely() {
    check_problems(
        "",
        &expect![[r#"
        holds no object; a Pod is expected
    "#]],
    );
    check_problems(
        "# only a comment\n---\n",
        &expect![[r#"
        holds no object; a Pod is expected
    "#]],
    );
    check_problems(
        "- a\n",
        &expect![[r#"
        line 1: is a list, but an object with apiVersion and kind is expected
    "#]],
    );
    check_problems(
        "kind: Pod\n",
        &expect![[r#"
        line 1: apiVersion: Required value
    "#]],
    );
    check_problems(
        "apiVersion: v1\nkind: [Pod]\n",
        &expect![[r#"
        line 2: kind: Invalid value: must be a string, not a list
    "#]],
    );
    check_problems(
        "apiVersion: v1\nkind: Pod\nkind: Pod\n",
        &expect![[r#"
        line 3: is not valid YAML: duplicate mapping key: kind
    "#]],
    );
    check_problems(
        "apiVersion: v1\nkind: Pod\n  x: y\n",
        &expect![[r#"
        line 3: is not valid YAML: mapping values are not allowed in this context
    "#]],
    );
    check_problems(
        "a: *nowhere\n",
        &expect![[r#"
        line 1: is not valid YAML: alias references unknown anchor
    "#]],
    );
    check_problems(
        "a: \"unclosed\n",
        &expect![[r#"
        line 2: is not valid YAML: invalid indentation in multiline quoted scalar
    "#]],
    );
    check_problems(
        "apiVersion: v1\nkind: List\nitems: 5\n",
        &expect![[r#"
        line 3: items: Invalid value: must be a list, not a number
    "#]],
    );
    check_problems(
        "apiVersion: v1\nkind: Pod\nspec: nginx\n",
        &expect![[r#"
        line 1: metadata.name: Required value
        line 3: spec: Invalid value: "nginx": must be an object, not a string
    "#]],
    );
    let garbage = load(b"a: b\n\x7fELF\x02\xff\xfe", Origin::Url("http://x"), "n");
    expect![[r#"
        line 2: is not UTF-8 text: invalid byte 0xff at offset 10
    "#]]
    .assert_eq(&problems(&garbage));
    let long = load(&vec![b'#'; MAX_BYTES], Origin::File("x"), "n");
    expect![[r#"
        is 10485760 bytes long; the limit is 10485759 bytes
    "#]]
    .assert_eq(&problems(&long));
}

#[test]
fn bombs_are_defused() {
    let laughs = (1..10).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        format!("{text}a{level}: &a{level} [{aliases}]\n")
    });
    check_problems(
        &laughs,
        &expect![[r#"
            line 6: is not valid YAML: it has more than 200000 values, aliases expanded
        "#]],
    );
    let text = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 1000].join(","));
    check_problems(
        &text,
        &expect![[r#"
            line 2: is not valid YAML: it has more than 20 MiB of text, aliases expanded
        "#]],
    );
    check_problems(
        &format!("a: {}", "[".repeat(100_000)),
        &expect![[r#"
        line 1: is not valid YAML: recursion limit exceeded
    "#]],
    );
    let steps: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    check_problems(
        &steps,
        &expect![[r#"
        line 33: is not valid YAML: it has more than 32 levels, aliases expanded
    "#]],
    );
    check_problems(
        &format!("a: [{}]", "1,".repeat(300_000)),
        &expect![[r#"
        line 1: is not valid YAML: it has more than 200000 values, aliases expanded
    "#]],
    );
}

#[test]
fn scalars_read_as_kubectl_reads_them() {
    // Octals of YAML 1.1 and 1.2, booleans of YAML 1.1, numbers where a string is due, quantities as numbers.
    let loaded = read(&with_container(
        "stdin: yes\ntty: on\nresources: {limits: {cpu: 0.1, memory: 1e3}}\nsecurityContext: {runAsUser: 0644, runAsGroup: 0o644}",
    ));
    assert_eq!(problems(&loaded), "");
    let container = &loaded.pods[0].spec.as_ref().unwrap().containers[0];
    assert_eq!((container.stdin, container.tty), (Some(true), Some(true)));
    let context = container.security_context.as_ref().unwrap();
    assert_eq!((context.run_as_user, context.run_as_group), (Some(420), Some(420)));
    let limits = container.resources.as_ref().unwrap().limits.as_ref().unwrap();
    assert_eq!((limits["cpu"].0.as_str(), limits["memory"].0.as_str()), ("100m", "1k"));

    check_problems(
        &with_container(
            "env:\n  - {name: PORT, value: 8080}\n  - {name: SWITCH, value: on}\n  - {name: NIL, value: ~}\n  - {name: L, value: [a]}",
        ),
        &expect![[r#"
            line 9: spec.containers[0].env[0].value: Invalid value: 8080: must be a string, not a number (put it in quotes)
            line 10: spec.containers[0].env[1].value: Invalid value: true: must be a string, not a boolean (y, yes, on, n, no and off are booleans, too: put it in quotes)
            line 12: spec.containers[0].env[3].value: Invalid value: must be a string, not a list
        "#]],
    );
    check_problems(
        &with_container("args: [1, 2.5, true, x]\ntty: \"true\"\nports: {}"),
        &expect![[r#"
        line 8: spec.containers[0].args[0]: Invalid value: 1: must be a string, not a number (put it in quotes)
        line 8: spec.containers[0].args[1]: Invalid value: 2.5: must be a string, not a number (put it in quotes)
        line 8: spec.containers[0].args[2]: Invalid value: true: must be a string, not a boolean (y, yes, on, n, no and off are booleans, too: put it in quotes)
        line 9: spec.containers[0].tty: Invalid value: "true": must be a boolean, not a string
        line 10: spec.containers[0].ports: Invalid value: must be a list, not an object
    "#]],
    );
    check_problems(
        &with_container("ports: [{containerPort: \"80\"}, {containerPort: 4294967296}, {containerPort: 80.5}]"),
        &expect![[r#"
        line 8: spec.containers[0].ports[0].containerPort: Invalid value: "80": must be an integer, not a string
        line 8: spec.containers[0].ports[1].containerPort: Invalid value: 4294967296: must be between -2147483648 and 2147483647, inclusive
        line 8: spec.containers[0].ports[2].containerPort: Invalid value: 80.5: must be an integer, not a number
    "#]],
    );
    check_problems(
        &with_container("resources: {limits: {cpu: [1], memory: true}}"),
        &expect![[r#"
        line 8: spec.containers[0].resources.limits[cpu]: Invalid value: must be a quantity, not a list
        line 8: spec.containers[0].resources.limits[memory]: Invalid value: true: must be a quantity, not a boolean
    "#]],
    );
}

#[test]
fn unknown_fields_are_told_with_what_was_meant() {
    check_problems(
        &with_container("imagePullpolicy: Never\nvolumeMount: []\nxyz: 1\nenv: [{name: A, valeu: x}]"),
        &expect![[r#"
            line 8: warning: spec.containers[0].imagePullpolicy: unknown field, ignored; did you mean "imagePullPolicy"?
            line 9: warning: spec.containers[0].volumeMount: unknown field, ignored; did you mean "volumeMounts"?
            line 10: warning: spec.containers[0].xyz: unknown field, ignored
            line 11: warning: spec.containers[0].env[0].valeu: unknown field, ignored; did you mean "value"?
        "#]],
    );
    check_problems(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspce: {}\n",
        &expect![[r#"
        line 1: spec.containers: Required value
        line 4: warning: spce: unknown field, ignored; did you mean "spec"?
    "#]],
    );
}

#[test]
fn server_fields_are_told_and_dropped() {
    let text = STATIC_WEB.replace(
        "metadata:\n",
        "metadata:\n  creationTimestamp: null\n  resourceVersion: \"5\"\n  ownerReferences: [{apiVersion: v1, kind: Node, name: node, uid: u}]\n  \
         annotations: {kubernetes.io/config.mirror: abc, kubernetes.io/config.hash: abc}\n",
    );
    let loaded = read(&format!("{text}status: {{phase: Running}}\n"));
    expect![[r#"
        line 5: warning: metadata.resourceVersion: is set by the API server only: ignored
        line 6: warning: metadata.ownerReferences: is set by the API server only: ignored
        line 7: warning: metadata.annotations[kubernetes.io/config.mirror]: is set by the node only: ignored
        line 7: warning: metadata.annotations[kubernetes.io/config.hash]: is set by the node only: ignored
        line 19: warning: status: is set by the API server only: ignored
    "#]]
    .assert_eq(&problems(&loaded));
    assert_eq!(loaded.pods, read(STATIC_WEB).pods);
}

#[test]
fn specs_are_checked() {
    check_problems(
        &with_spec("dnsConfig: {nameservers: [x, 1.1.1.1, 1.1.1.1, 1.1.1.1]}\nhostAliases: [{ip: x, hostnames: [A]}]"),
        &expect![[r#"
        line 6: spec.dnsConfig.nameservers: Invalid value: must not have more than 3 nameservers
        line 6: spec.dnsConfig.nameservers[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
        line 7: spec.hostAliases[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
        line 7: spec.hostAliases[0].hostnames[0]: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
    "#]],
    );
    check_problems(
        &with_spec("activeDeadlineSeconds: 0\nrestartPolicy: never\ndnsPolicy: x"),
        &expect![[r#"
        line 6: spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive
        line 7: spec.restartPolicy: Unsupported value: "never": supported values: "Always", "Never", "OnFailure"
        line 8: spec.dnsPolicy: Unsupported value: "x": supported values: "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"
    "#]],
    );
    check_problems(
        &with_spec("volumes: [{name: A_b}, {hostPath: {}}, {name: r, hostPath: {path: srv}}]"),
        &expect![[r#"
        line 6: spec.volumes[0].name: Invalid value: "A_b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        line 6: spec.volumes[1].name: Required value
        line 6: spec.volumes[1].hostPath.path: Required value
        line 6: spec.volumes[2].hostPath.path: Invalid value: "srv": must be an absolute path
    "#]],
    );
    check_problems(
        "apiVersion: v1\nkind: Pod\nmetadata: {}\n",
        &expect![[r#"
        line 1: spec.containers: Required value
        line 3: metadata.name: Required value
    "#]],
    );
}

#[test]
fn the_uid_depends_on_content_and_origin_only() {
    let uid = |text: &str, origin, node| load(text.as_bytes(), origin, node).pods[0].metadata.uid.clone().unwrap();
    let (file, url) = (Origin::File("/m/a.yaml"), Origin::Url("http://x/a.yaml"));
    let base = uid(STATIC_WEB, file, "n1");
    assert_eq!(base.len(), 32);
    assert_eq!(
        base,
        uid(&STATIC_WEB.replace("          protocol: TCP\n", "          protocol:    TCP # as ever\n"), file, "N1")
    );
    assert_ne!(base, uid(STATIC_WEB, Origin::File("/m/b.yaml"), "n1"));
    assert_ne!(base, uid(STATIC_WEB, file, "n2"));
    assert_ne!(base, uid(&STATIC_WEB.replace("80", "81"), file, "n1"));
    assert_eq!(uid(STATIC_WEB, url, "n1"), uid(STATIC_WEB, url, "n2"), "the same pod on all nodes");
    let given = STATIC_WEB.replace("metadata:\n", "metadata:\n  uid: 5b5f8a1e-7a3c-4c3a-9f0e-2f6f3f1c9a77\n");
    assert_eq!(uid(&given, file, "n1"), "5b5f8a1e-7a3c-4c3a-9f0e-2f6f3f1c9a77");
}

#[test]
fn a_new_default_is_no_edit() {
    // What was written is hashed, not what a version of coracle makes of it: else an upgrade would restart pods.
    let pod = load(STATIC_WEB.as_bytes(), Origin::File("/m/a.yaml"), "n1").pods.remove(0);
    expect!["f7bb658d"].assert_eq(&pod.metadata.uid.unwrap()[..8]);
    expect!["1b1e6850"].assert_eq(&pod.metadata.annotations.unwrap()[crate::manifest::REVISION][..8]);
}

#[test]
fn only_file_pods_get_a_toleration() {
    let url = load(STATIC_WEB.as_bytes(), Origin::Url("http://x"), "n");
    assert_eq!(url.pods[0].spec.as_ref().unwrap().tolerations, None);
    assert_eq!(url.pods[0].metadata.annotations.as_ref().unwrap()["kubernetes.io/config.source"], "http");
}

const CORPUS: [&str; 16] = [
    corpus!("daemonsets/calico-node.yaml"),
    corpus!("daemonsets/ceph-osd.yaml"),
    corpus!("daemonsets/cilium.yaml"),
    corpus!("daemonsets/datadog-agent.yaml"),
    STATIC_WEB,
    FULL,
    SEVERAL,
    ETCD,
    API_SERVER,
    CONTROLLER_MANAGER,
    SCHEDULER,
    corpus!("bad/everything.yaml"),
    corpus!("bad/references.yaml"),
    corpus!("bad/unsupported.yaml"),
    corpus!("objects.yaml"),
    corpus!("bad/objects.yaml"),
];

/// One of these texts with pieces cut out, doubled, overwritten or moved.
pub(super) fn mutations(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let edit = (
        any::<prop::sample::Index>(),
        0usize..40,
        prop::collection::vec(any::<u8>(), 0..8),
        any::<prop::sample::Index>(),
    );
    (prop::sample::select(texts), prop::collection::vec(edit, 1..6)).prop_map(|(text, edits)| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, length, insert, from) in edits {
            let start = at.index(bytes.len() + 1);
            let end = (start + length).min(bytes.len());
            let insert = match insert.len() {
                0 => {
                    let from = from.index(bytes.len() + 1);
                    bytes[from..(from + length).min(bytes.len())].to_vec()
                }
                _ => insert,
            };
            bytes.splice(start..end, insert);
        }
        bytes
    })
}

proptest! {
    #[test]
    fn any_bytes_load(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let loaded = load(&bytes, Origin::File("f"), "n");
        prop_assert!(loaded.pods.is_empty());
        prop_assert!(loaded.has_errors(), "neither pod nor problem");
    }

    #[test]
    fn any_text_loads(text in "[-a-z:\\[\\]{}&*!|>'\"#%@ \n\t0-9~,?.<]{0,200}") {
        let loaded = read(&text);
        prop_assert!(!loaded.pods.is_empty() || !loaded.objects.is_empty() || loaded.has_errors());
    }

    #[test]
    fn mutated_manifests_load(bytes in mutations(&CORPUS)) {
        let first = load(&bytes, Origin::File("f"), "n");
        prop_assert_eq!(&first, &load(&bytes, Origin::File("f"), "n"), "not deterministic");
        prop_assert!(!first.pods.is_empty() || !first.objects.is_empty() || first.has_errors() || std::str::from_utf8(&bytes).is_ok_and(|text| text.contains("items")));
        for pod in &first.pods {
            let mut again = pod.clone();
            default::apply(&mut again);
            prop_assert_eq!(pod, &again, "defaults are not idempotent");
            prop_assert!(pod.metadata.uid.as_deref().is_some_and(|uid| !uid.is_empty() && !uid.contains(['/', '.'])));
            let text = serde_json::to_vec(pod).unwrap();
            prop_assert_eq!(pod, &serde_json::from_slice::<Pod>(&text).unwrap(), "does not survive a record");
        }
    }
}

#[test]
fn what_cannot_be_mounted_is_told() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  volumes: [{name: v, emptyDir: {}}]\n  containers:\n  - name: c\n    image: i\n    terminationMessagePath: /a/../..\n    volumeMounts:\n    - {name: v, mountPath: /dev/}\n    - {name: v, mountPath: //}\n    - {name: v, mountPath: relative}\n";
    check_problems(
        text,
        &expect![[r#"
            line 9: spec.containers[0].terminationMessagePath: Invalid value: "/a/../..": must not contain '..'
            line 11: spec.containers[0].volumeMounts[0].mountPath: Invalid value: "/dev/": must not be /dev, unless a hostPath of /dev is mounted there: mount what is needed below it
            line 12: spec.containers[0].volumeMounts[1].mountPath: Invalid value: "//": must not be the root of the container
        "#]],
    );
}

#[test]
fn a_document_of_nothing_but_mistakes_is_told_of_soon_and_in_part() {
    use std::fmt::Write as _;
    let mut fields = String::from("{");
    let mut resources = String::from("{");
    for n in 0..40_000 {
        let _ = write!(fields, "imagePulPolicy{n}: 1, ");
        let _ = write!(resources, "resource{n}: 1, ");
    }
    let mistakes =
        format!("{}      resources: {{limits: {resources}}}}}\n      env: [{fields}}}]\n", with_container(""));
    let at = std::time::Instant::now();
    let loaded = read(&mistakes);
    let took = at.elapsed();
    assert_eq!(loaded.problems.len(), 100);
    assert!(loaded.pods.is_empty());
    // Less than a second by itself; minutes, were each mistake looked up in the document.
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}
