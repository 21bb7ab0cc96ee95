//! What the API server says of wrong fields, field by field.

use crate::manifest::{Loaded, Origin, load};
use expect_test::{Expect, expect};

/// A pod with these lines in its spec, of which `containers` may be one.
fn spec(lines: &str) -> Loaded {
    let lines: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    let containers = if lines.contains("containers:") { "" } else { "  containers: [{name: c, image: a}]\n" };
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n{lines}{containers}");
    load(text.as_bytes(), Origin::File("/p.yaml"), "edge")
}

/// A pod whose one container has these lines.
fn container(lines: &str) -> Loaded {
    let lines: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    spec(&format!(
        "volumes: [{{name: v}}, {{name: h, hostPath: {{path: /h}}}}, {{name: d, hostPath: {{path: /dev}}}}]\ncontainers:\n- name: c\n  image: a\n{lines}"
    ))
}

fn check(loaded: &Loaded, expected: &Expect) {
    let text: String =
        loaded.problems.iter().map(|problem| format!("{}: {}\n", problem.field, problem.reason)).collect();
    expected.assert_eq(&text);
    assert_eq!(loaded.pods.is_empty(), loaded.has_errors());
}

#[test]
fn init_containers_and_sidecars() {
    let loaded = spec(
        "initContainers:
- {name: a, image: i, lifecycle: {preStop: {sleep: {seconds: 1}}}, livenessProbe: {exec: {command: [x]}}, resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}]}
- {name: b, image: i, restartPolicy: Always, lifecycle: {preStop: {sleep: {seconds: 31}}}, readinessProbe: {exec: {}}}
- {name: b, image: i, restartPolicy: Sometimes}
- {name: c, image: i, startupProbe: {}}",
    );
    check(
        &loaded,
        &expect![[r#"
        spec.initContainers[0].lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always
        spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always
        spec.initContainers[0].resizePolicy: Forbidden: may not be set for init containers without restartPolicy=Always
        spec.initContainers[1].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)
        spec.initContainers[1].readinessProbe.exec.command: Required value
        spec.initContainers[2].name: Duplicate value: "b"
        spec.initContainers[2].restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"
        spec.initContainers[3].name: Duplicate value: "c"
        spec.initContainers[3].startupProbe: Forbidden: may not be set for init containers without restartPolicy=Always
    "#]],
    );
}

#[test]
fn what_is_odd_but_possible_is_warned_of() {
    let loaded = container(
        "ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}, {containerPort: 80, protocol: TCP}]
env: [{name: A, value: x}, {name: B}, {name: A, value: z}]
resources: {limits: {memory: 1500m}, requests: {ephemeral-storage: 100m, cpu: 100m}}",
    );
    let text: String =
        loaded.problems.iter().map(|problem| format!("{}: {}\n", problem.field, problem.reason)).collect();
    expect![[r#"
        spec.containers[0].ports[2]: duplicate port definition with spec.containers[0].ports[0]
        spec.containers[0].env[2]: hides previous definition of "A"
        spec.containers[0].resources.limits[memory]: fractional byte value "1500m" is invalid, must be an integer
        spec.containers[0].resources.requests[ephemeral-storage]: fractional byte value "100m" is invalid, must be an integer
    "#]]
    .assert_eq(&text);
    assert!(!loaded.has_errors() && loaded.pods.len() == 1);
}

#[test]
fn what_is_no_amount_is_told_once() {
    check(
        &spec("priorityClassName: Bad_\ncontainers: [{name: c, image: a, resources: {limits: {memory: 1Gb}}}]"),
        &expect![[r#"
            spec.priorityClassName: Invalid value: "Bad_": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.containers[0].resources.limits[memory]: Invalid value: "1Gb": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
        "#]],
    );
}

#[test]
fn restart_rules() {
    let many = |count: usize, what: &str| vec![what; count].join(", ");
    let rule = "{action: Restart, exitCodes: {operator: In, values: [1]}}";
    check(
        &container(&format!("restartPolicyRules: [{rule}]")),
        &expect![[r#"
        spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used
    "#]],
    );
    check(
        &container(&format!("restartPolicy: Never\nrestartPolicyRules: [{}]", many(21, rule))),
        &expect![[r#"
        spec.containers[0].restartPolicyRules: Too many: 21: must have at most 20 items
    "#]],
    );
    let codes = many(256, "1");
    check(
        &container(&format!(
            "restartPolicy: Never\nrestartPolicyRules: [{{action: Stop, exitCodes: {{operator: Is, values: [{codes}]}}}}, {{action: Restart}}, {{action: Restart, exitCodes: {{operator: In, values: [256, -1]}}}}, {{action: Restart, exitCodes: {{operator: NotIn}}}}]"
        )),
        &expect![[r#"
            spec.containers[0].restartPolicyRules[0].action: Unsupported value: "Stop": supported values: "Restart", "RestartAllContainers"
            spec.containers[0].restartPolicyRules[0].exitCodes.operator: Unsupported value: "Is": supported values: "In", "NotIn"
            spec.containers[0].restartPolicyRules[0].exitCodes.values: Too many: 256: must have at most 255 items
            spec.containers[0].restartPolicyRules[1].exitCodes: Required value: must be specified
            spec.containers[0].restartPolicyRules[2].exitCodes.values[0]: Invalid value: 256: must be between 0 and 255, inclusive
            spec.containers[0].restartPolicyRules[2].exitCodes.values[1]: Invalid value: -1: must be between 0 and 255, inclusive
            spec.containers[0].restartPolicyRules[3].exitCodes.values: Required value: must have at least one exit code
        "#]],
    );
}

#[test]
fn handlers() {
    check(
        &container(
            "lifecycle:
  postStart: {exec: {command: [x]}, httpGet: {port: 1}, sleep: {seconds: -1}}
  preStop: {}
livenessProbe: {exec: {command: []}, tcpSocket: {port: 70000}, grpc: {port: 0}}
readinessProbe: {httpGet: {port: 'a b', scheme: FTP, httpHeaders: [{name: 'X Y', value: \"a\\r\\nb\"}]}, terminationGracePeriodSeconds: 5}
startupProbe: {grpc: {port: 1}, successThreshold: 2, terminationGracePeriodSeconds: 0, failureThreshold: -1}",
        ),
        &expect![[r#"
            spec.containers[0].lifecycle.postStart.httpGet: Forbidden: may not specify more than 1 handler type
            spec.containers[0].lifecycle.postStart.sleep: Forbidden: may not specify more than 1 handler type
            spec.containers[0].lifecycle.postStart.sleep: Invalid value: -1: must be non-negative and less than terminationGracePeriodSeconds (30)
            spec.containers[0].lifecycle.preStop: Required value: must specify a handler type
            spec.containers[0].livenessProbe.exec.command: Required value
            spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type
            spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: 70000: must be between 1 and 65535, inclusive
            spec.containers[0].livenessProbe.grpc: Forbidden: may not specify more than 1 handler type
            spec.containers[0].livenessProbe.grpc.port: Invalid value: 0: must be between 1 and 65535, inclusive
            spec.containers[0].readinessProbe.httpGet.port: Invalid value: "a b": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
            spec.containers[0].readinessProbe.httpGet.scheme: Unsupported value: "FTP": supported values: "HTTP", "HTTPS"
            spec.containers[0].readinessProbe.httpGet.httpHeaders[0].name: Invalid value: "X Y": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')
            spec.containers[0].readinessProbe.httpGet.httpHeaders[0].value: Invalid value: "a\r\nb": must not contain control characters
            spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes
            spec.containers[0].startupProbe.successThreshold: Invalid value: 2: must be 1
            spec.containers[0].startupProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0
            spec.containers[0].startupProbe.failureThreshold: Invalid value: -1: must be greater than or equal to 0
        "#]],
    );
}

#[test]
fn mounts() {
    check(
        &container(
            "volumeMounts:
- {name: v, mountPath: /a, mountPropagation: Bidirectional, recursiveReadOnly: Enabled}
- {name: v, mountPath: /b, readOnly: true, mountPropagation: HostToContainer, recursiveReadOnly: IfPossible}
- {name: v, mountPath: /c, subPath: /abs, subPathExpr: a/../b, recursiveReadOnly: Yes}
- {name: v, mountPath: /c}
- {name: h, mountPath: /dev}
- {name: d, mountPath: /dev/.}",
        ),
        &expect![[r#"
            spec.containers[0].volumeMounts[0].mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers
            spec.containers[0].volumeMounts[0].recursiveReadOnly: Forbidden: may only be specified when readOnly is true
            spec.containers[0].volumeMounts[0].recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not specified
            spec.containers[0].volumeMounts[1].recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not specified
            spec.containers[0].volumeMounts[2].subPath: Invalid value: "/abs": must be a relative path
            spec.containers[0].volumeMounts[2].subPathExpr: Invalid value: "a/../b": subPathExpr and subPath are mutually exclusive
            spec.containers[0].volumeMounts[2].subPathExpr: Invalid value: "a/../b": must not contain '..'
            spec.containers[0].volumeMounts[2].recursiveReadOnly: Invalid value: true: must be a string, not a boolean (y, yes, on, n, no and off are booleans, too: put it in quotes)
            spec.containers[0].volumeMounts[3].mountPath: Invalid value: "/c": must be unique
            spec.containers[0].volumeMounts[4].mountPath: Invalid value: "/dev": must not be /dev, unless a hostPath of /dev is mounted there: mount what is needed below it
            spec.containers[0].volumeMounts[5].mountPath: Invalid value: "/dev/.": only a privileged container may have all devices: mount those that are needed below /dev
        "#]],
    );
    check(
        &container("securityContext: {privileged: true}\nvolumeMounts: [{name: d, mountPath: /dev}]"),
        &expect![[""]],
    );
}

#[test]
fn volumes() {
    check(
        &spec(
            "volumes:
- {name: a, downwardAPI: {defaultMode: 512, items: [{path: /x, fieldRef: {fieldPath: status.podIP}}, {path: a, mode: -1}, {path: a, fieldRef: {fieldPath: metadata.name}, resourceFieldRef: {resource: limits.cpu}}]}}
- {name: b, downwardAPI: {items: [{path: ..x, resourceFieldRef: {resource: limits.cpu}}, {path: a/../b, resourceFieldRef: {resource: limits.disk, containerName: z}}, {path: c, resourceFieldRef: {resource: limits.cpu, containerName: c, divisor: 5m}}]}}
- {name: c, projected: {defaultMode: 4096, sources: [{}, {downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name}}]}}, {downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.uid}}]}, secret: {name: s}}]}}
- {name: d, image: {pullPolicy: Sometimes}}
- {name: e, emptyDir: {medium: Disk}}
- {name: f, emptyDir: {medium: HugePages-2X, sizeLimit: 1x}}
- {name: g, emptyDir: {medium: HugePages-1Gi}}
- {name: h, emptyDir: {}, downwardAPI: {}}",
        ),
        &expect![[r#"
            spec.volumes[0].downwardAPI.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive
            spec.volumes[0].downwardAPI.items[0].path: Invalid value: "/x": must be a relative path
            spec.volumes[0].downwardAPI.items[0].fieldRef.fieldPath: Unsupported value: "status.podIP": supported values: "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"
            spec.volumes[0].downwardAPI.items[1]: Required value: one of fieldRef and resourceFieldRef is required
            spec.volumes[0].downwardAPI.items[1].mode: Invalid value: -1: must be a number between 0 and 0777 (octal), both inclusive
            spec.volumes[0].downwardAPI.items[2]: Invalid value: fieldRef and resourceFieldRef can not be specified simultaneously
            spec.volumes[0].downwardAPI.items[2].path: Duplicate value: "a"
            spec.volumes[1].downwardAPI.items[0].path: Invalid value: "..x": must not start with '..'
            spec.volumes[1].downwardAPI.items[0].resourceFieldRef.containerName: Required value
            spec.volumes[1].downwardAPI.items[1].path: Invalid value: "a/../b": must not contain '..'
            spec.volumes[1].downwardAPI.items[1].resourceFieldRef.resource: Unsupported value: "limits.disk": supported values: "limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"
            spec.volumes[1].downwardAPI.items[1].resourceFieldRef.containerName: Not found: "z"
            spec.volumes[1].downwardAPI.items[2].resourceFieldRef.divisor: Invalid value: "5m": only divisor's values 1m and 1 are supported with the cpu resource
            spec.volumes[2].projected.defaultMode: Invalid value: 4096: must be a number between 0 and 0777 (octal), both inclusive
            spec.volumes[2].projected.sources[0]: Required value: must specify a source
            spec.volumes[2].projected.sources[2].downwardAPI.items[0].path: Duplicate value: "a"
            spec.volumes[2].projected.sources[2].secret: Forbidden: may not specify more than 1 volume type per source
            spec.volumes[3].image.reference: Required value
            spec.volumes[3].image.pullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never"
            spec.volumes[4].emptyDir.medium: Unsupported value: "Disk": supported values: "", "HugePages", "HugePages-<size>", "Memory"
            spec.volumes[5].emptyDir.medium: Invalid value: "HugePages-2X": must name a page size, as in HugePages-2Mi
            spec.volumes[5].emptyDir.sizeLimit: Invalid value: "1x": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
            spec.volumes[7].downwardAPI: Forbidden: may not specify more than 1 volume type
        "#]],
    );
}

#[test]
fn environment() {
    check(
        &container(
            "env:
- {name: A, valueFrom: {fileKeyRef: {volumeName: h, path: ../x, key: 'a=b'}}}
- {name: B, valueFrom: {fileKeyRef: {volumeName: z, path: x, key: k}}}
- {name: C, valueFrom: {fileKeyRef: {path: /x}}}
- {name: D, valueFrom: {fileKeyRef: {volumeName: v, path: x, key: k}, fieldRef: {fieldPath: metadata.name}}}
- {name: E, valueFrom: {resourceFieldRef: {resource: limits.hugepages-2Mi, containerName: z}}}
- {name: F, valueFrom: {resourceFieldRef: {resource: cpu}}}",
        ),
        &expect![[r#"
            spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Invalid value: "h": referenced volume must be of type emptyDir
            spec.containers[0].env[0].valueFrom.fileKeyRef.path: Invalid value: "../x": must not contain '..'
            spec.containers[0].env[0].valueFrom.fileKeyRef.key: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='
            spec.containers[0].env[1].valueFrom.fileKeyRef.volumeName: Not found: "z"
            spec.containers[0].env[2].valueFrom.fileKeyRef.volumeName: Required value
            spec.containers[0].env[2].valueFrom.fileKeyRef.key: Required value
            spec.containers[0].env[2].valueFrom.fileKeyRef.path: Invalid value: "/x": must be a relative path
            spec.containers[0].env[3].valueFrom: Invalid value: "": may not have more than one field specified at a time
            spec.containers[0].env[4].valueFrom.resourceFieldRef.containerName: Not found: "z"
            spec.containers[0].env[5].valueFrom.resourceFieldRef.resource: Unsupported value: "cpu": supported values: "limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"
        "#]],
    );
}

#[test]
fn resources() {
    check(
        &container(
            "resources: {limits: {hugepages-2Mi: 3Mi, memory: 1.5}, requests: {hugepages-2Mi: 2Mi, hugepages-1Gi: 1Gi, bananas: 1}}",
        ),
        &expect![[r#"
            spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources
            spec.containers[0].resources.limits[hugepages-2Mi]: Invalid value: "3Mi": must be a multiple of the page size 2Mi
            spec.containers[0].resources.limits[memory]: fractional byte value "1500m" is invalid, must be an integer
            spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: "2Mi": must be equal to hugepages-2Mi limit of 3Mi
            spec.containers[0].resources.requests[bananas]: Invalid value: "bananas": must be a standard resource for containers
        "#]],
    );
    check(
        &container("resources: {limits: {hugepages-2Mi: 2Mi}}"),
        &expect![[r#"
        spec.containers[0].resources: Forbidden: HugePages require cpu or memory
    "#]],
    );
    check(
        &container("resources: {limits: {hugepages-x: 2Mi, cpu: 1}}"),
        &expect![[r#"
            spec.containers[0].resources.limits[hugepages-x]: Invalid value: "hugepages-x": must name a page size, as in hugepages-2Mi
        "#]],
    );
    check(
        &container(
            "resizePolicy: [{resourceName: cpu, restartPolicy: Never}, {resourceName: cpu, restartPolicy: NotRequired}, {resourceName: gpu, restartPolicy: NotRequired}]",
        ),
        &expect![[r#"
            spec.containers[0].resizePolicy[0].restartPolicy: Unsupported value: "Never": supported values: "NotRequired", "RestartContainer"
            spec.containers[0].resizePolicy[1]: Duplicate value: "cpu"
            spec.containers[0].resizePolicy[2].resourceName: Unsupported value: "gpu": supported values: "cpu", "memory"
        "#]],
    );
    check(
        &spec(
            "restartPolicy: Never
resources: {limits: {cpu: 1, ephemeral-storage: 1Gi}, requests: {cpu: 500m, memory: 1Mi}}
containers:
- {name: a, image: i, resources: {limits: {cpu: 2}, requests: {cpu: 400m, memory: 1Mi}}}
- {name: b, image: i, resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}], resources: {requests: {cpu: 400m}}}
initContainers:
- {name: s, image: i, restartPolicy: Always, resources: {requests: {memory: 1Ki}}}",
        ),
        &expect![[r#"
            spec.resources.limits[ephemeral-storage]: Unsupported value: "ephemeral-storage": supported values: "cpu", "hugepages-*", "memory"
            spec.resources.requests[cpu]: Invalid value: "500m": must be greater than or equal to aggregate container requests of 800m
            spec.resources.requests[memory]: Invalid value: "1Mi": must be greater than or equal to aggregate container requests of 1025Ki
            spec.containers[0].resources.limits[cpu]: Invalid value: "2": must be less than or equal to pod limits of 1
            spec.containers[1].resizePolicy[0].restartPolicy: Invalid value: "RestartContainer": must be 'NotRequired' when `restartPolicy` is 'Never'
        "#]],
    );
}

#[test]
fn pod_resources_are_defaulted() {
    let loaded = spec(
        "resources: {limits: {cpu: 4, memory: 1Gi}}
containers:
- {name: a, image: i, resources: {limits: {hugepages-2Mi: 2Mi}, requests: {cpu: 100m}}}
- {name: b, image: i, resources: {limits: {hugepages-2Mi: 4Mi, memory: 1Mi}, requests: {cpu: 100m}}}
initContainers:
- {name: s, image: i, restartPolicy: Always, resources: {requests: {cpu: 50m}}}
- {name: p, image: i, resources: {requests: {cpu: 300m}}}",
    );
    let resources = loaded.pods.first().and_then(|pod| pod.spec.as_ref()?.resources.as_ref());
    expect![[r#"{"limits":{"cpu":"4","hugepages-2Mi":"6Mi","memory":"1Gi"},"requests":{"cpu":"350m","hugepages-2Mi":"6Mi","memory":"1Mi"}}"#]].assert_eq(&serde_json::to_string(&resources).unwrap_or_default());
}

#[test]
fn security() {
    check(
        &spec(
            "hostUsers: false
hostPID: true
hostIPC: true
hostNetwork: true
shareProcessNamespace: true
securityContext:
  fsGroup: -1
  supplementalGroups: [-1]
  fsGroupChangePolicy: Sometimes
  supplementalGroupsPolicy: Some
  seLinuxChangePolicy: Some
  seLinuxOptions: {type: 'a b', user: 'a:b', level: 's0:c1'}
  seccompProfile: {type: Localhost, localhostProfile: ../x}
  appArmorProfile: {type: RuntimeDefault, localhostProfile: x}
  sysctls: [{name: net.ipv4.x, value: '1'}, {name: net/ipv4/x, value: '1'}, {name: kernel.shmmax, value: '1'}, {name: A, value: '1'}, {value: '1'}]",
        ),
        &expect![[r#"
            spec.hostPID: Forbidden: when `hostUsers` is false
            spec.hostIPC: Forbidden: when `hostUsers` is false
            spec.hostNetwork: Forbidden: when `hostUsers` is false
            spec.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled
            spec.securityContext.fsGroup: Invalid value: -1: must be between 0 and 2147483647, inclusive
            spec.securityContext.supplementalGroups[0]: Invalid value: -1: must be between 0 and 2147483647, inclusive
            spec.securityContext.fsGroupChangePolicy: Unsupported value: "Sometimes": supported values: "Always", "OnRootMismatch"
            spec.securityContext.supplementalGroupsPolicy: Unsupported value: "Some": supported values: "Merge", "Strict"
            spec.securityContext.seLinuxChangePolicy: Unsupported value: "Some": supported values: "MountOption", "Recursive"
            spec.securityContext.seLinuxOptions.type: Invalid value: "a b": is no part of an SELinux label
            spec.securityContext.seLinuxOptions.user: Invalid value: "a:b": is no part of an SELinux label
            spec.securityContext.seccompProfile.localhostProfile: Invalid value: "../x": must not contain '..'
            spec.securityContext.appArmorProfile.localhostProfile: Invalid value: "x": can only be set when AppArmor type is Localhost
            spec.securityContext.sysctls[0].name: Invalid value: "net.ipv4.x": may not be set when 'hostNetwork' is true
            spec.securityContext.sysctls[1].name: Invalid value: "net/ipv4/x": may not be set when 'hostNetwork' is true
            spec.securityContext.sysctls[1].name: Duplicate value: "net/ipv4/x"
            spec.securityContext.sysctls[2].name: Invalid value: "kernel.shmmax": may not be set when 'hostIPC' is true
            spec.securityContext.sysctls[3].name: Invalid value: "A": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$
            spec.securityContext.sysctls[4].name: Required value
        "#]],
    );
    check(
        &container(
            "securityContext: {procMount: Unmasked, seccompProfile: {type: Localhost, localhostProfile: /x}, appArmorProfile: {type: Localhost, localhostProfile: ' x'}}",
        ),
        &expect![[r#"
            spec.containers[0].securityContext.procMount: Invalid value: "Unmasked": `hostUsers` must be false to use `Unmasked`
            spec.containers[0].securityContext.seccompProfile.localhostProfile: Invalid value: "/x": must be a relative path
            spec.containers[0].securityContext.appArmorProfile.localhostProfile: Invalid value: " x": must not be padded with whitespace
        "#]],
    );
    check(
        &container("securityContext: {seccompProfile: {}, appArmorProfile: {type: Local}, procMount: Full}"),
        &expect![[r#"
            spec.containers[0].securityContext.seccompProfile.type: Required value
            spec.containers[0].securityContext.appArmorProfile.type: Unsupported value: "Local": supported values: "Localhost", "RuntimeDefault", "Unconfined"
            spec.containers[0].securityContext.procMount: Unsupported value: "Full": supported values: "Default", "Unmasked"
        "#]],
    );
}

#[test]
fn names() {
    check(
        &spec("hostname: x.y\nsubdomain: X\nhostnameOverride: A_b\nsetHostnameAsFQDN: true\nhostNetwork: true"),
        &expect![[r#"
            spec.hostname: Invalid value: "x.y": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.subdomain: Invalid value: "X": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.hostnameOverride: Invalid value: "A_b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.hostnameOverride: Forbidden: may not be set when `hostNetwork` is true
            spec.hostnameOverride: Forbidden: may not be set when `setHostnameAsFQDN` is true
        "#]],
    );
    check(
        &spec("os: {name: plan9}\nreadinessGates: [{conditionType: 'a b'}, {conditionType: ''}]"),
        &expect![[r#"
        spec.os.name: Unsupported value: "plan9": supported values: "linux", "windows"
        spec.readinessGates[0].conditionType: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        spec.readinessGates[1].conditionType: Invalid value: "": name part must be non-empty
    "#]],
    );
}

#[test]
fn scheduling() {
    check(
        &spec(
            "affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
      - matchExpressions: [{key: a b, operator: In}, {key: a, operator: Exists, values: [x]}, {key: a, operator: Gt, values: [x]}, {key: a, operator: Lt, values: ['1', '2']}, {key: a, operator: Is}, {key: a, operator: NotIn, values: ['a b']}]
        matchFields: [{key: metadata.uid, operator: Exists}, {key: metadata.name, operator: In}]
    preferredDuringSchedulingIgnoredDuringExecution: [{weight: 0, preference: {}}]
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: '', namespaces: [A]}]
    preferredDuringSchedulingIgnoredDuringExecution: [{weight: 101, podAffinityTerm: {topologyKey: x, labelSelector: {matchLabels: {a b: c}, matchExpressions: [{key: a, operator: In}, {key: a, operator: Exists, values: [x]}, {key: a, operator: Gt}]}}}]
topologySpreadConstraints:
- {maxSkew: 0, topologyKey: '', whenUnsatisfiable: Never}
- {maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway, minDomains: 0, nodeAffinityPolicy: Maybe}
- {maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway}
tolerations:
- {key: a b, operator: Exists, value: x}
- {key: a, operator: Near, effect: Never}
- {key: a, value: 'a b', tolerationSeconds: 5}",
        ),
        &expect![[r#"
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[2].values[0]: Invalid value: "x": must be an integer
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[3].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[4].operator: Invalid value: "Is": not a valid selector operator
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[5].values[0]: Invalid value: "a b": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].key: Invalid value: "metadata.uid": not a valid field selector key
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].operator: Invalid value: "Exists": not a valid selector operator
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[1].values: Required value: must be only one value when `operator` is 'In' or 'NotIn' for node field selector
            spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100
            spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty
            spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].namespaces[0]: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector.matchLabels[a b]: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector.matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'
            spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector.matchExpressions[2].operator: Invalid value: "Gt": not a valid selector operator
            spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero
            spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty
            spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "Never": supported values: "DoNotSchedule", "ScheduleAnyway"
            spec.topologySpreadConstraints[1].minDomains: Invalid value: 0: must be greater than 0
            spec.topologySpreadConstraints[1].minDomains: Invalid value: 0: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway
            spec.topologySpreadConstraints[1].nodeAffinityPolicy: Unsupported value: "Maybe": supported values: "Honor", "Ignore"
            spec.topologySpreadConstraints[2].{topologyKey, whenUnsatisfiable}: Duplicate value: "{z, ScheduleAnyway}"
            spec.tolerations[0].key: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.tolerations[0].operator: Invalid value: "x": value must be empty when `operator` is 'Exists'
            spec.tolerations[1].operator: Unsupported value: "Near": supported values: "Equal", "Exists"
            spec.tolerations[1].effect: Unsupported value: "Never": supported values: "NoExecute", "NoSchedule", "PreferNoSchedule"
            spec.tolerations[2].operator: Invalid value: "a b": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
            spec.tolerations[2].effect: Invalid value: "": effect must be 'NoExecute' when `tolerationSeconds` is set
        "#]],
    );
    check(
        &spec("affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}"),
        &expect![[r#"
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term
        "#]],
    );
}
