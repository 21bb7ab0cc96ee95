//! The table itself.

use super::Support::{Refused, Works};
use super::When::{Apart, Present, Set, True};
use super::{Field, Group, proof};

/// Of a field that the scheduler of a cluster acts on.
const SCHEDULER: &str = "for schedulers: without effect, as in the kubelet, since the node takes the pod as given";
const SECRETS: &str = "static pods may not reference secrets";
const ACCOUNTS: &str = "static pods may not reference serviceaccounts";
const NEVER_SCHEDULED: &str = "Forbidden: a static pod is never scheduled";
const WINDOWS: &str = "this node runs linux";
const GONE: &str = "Kubernetes has removed the driver of this type of volume: use hostPath on what the node mounts";
/// Of a field that an API server acts on before a pod gets here.
const SERVER: &str = "the API server acts on it: nothing is left for a node to do, as in the kubelet";
const CLAIMS: &str = "needs a driver for dynamic resource allocation, and this node has none";
const VOLUME_CLAIM: &str = "this node does not mount PersistentVolumeClaims: use hostPath on what the node mounts, or emptyDir, image, configMap or secret";
const HELPER: &str = "needs programs on the node that coracle does not start: mount it on the node and use hostPath";

const fn works(name: &'static str, proof: &'static str) -> Field {
    Field { name, support: Works(proof), note: "", bound: None }
}

const fn noted(name: &'static str, proof: &'static str, note: &'static str) -> Field {
    Field { name, support: Works(proof), note, bound: None }
}

const fn refused(name: &'static str, reason: &'static str) -> Field {
    Field { name, support: Refused(Set, reason), note: "", bound: None }
}

/// Refused also when it is an empty object, which chooses it too.
const fn refused_kind(name: &'static str, reason: &'static str) -> Field {
    Field { name, support: Refused(Present, reason), note: "", bound: None }
}

const fn refused_true(name: &'static str, reason: &'static str) -> Field {
    Field { name, support: Refused(True, reason), note: "", bound: None }
}

/// What happens to every field of a PodSpec.
pub const GROUPS: &[Group] = &[
    Group {
        kind: "PodSpec",
        places: &["spec"],
        fields: &[
            works("activeDeadlineSeconds", "containers::a_pod_past_its_deadline_is_ended_for_good"),
            works("affinity", proof::AFFINITY),
            refused_true(
                "automountServiceAccountToken",
                "a static pod has no service account whose token could be mounted",
            )
            .bound_works(proof::BOUND, SERVER),
            works("containers", proof::LIFECYCLE),
            works("dnsConfig", proof::DNS),
            works("dnsPolicy", proof::DNS),
            noted("enableServiceLinks", proof::ENV, "without an API server there are no services, hence no variables")
                .bound_works(proof::SERVICES, ""),
            Field {
                bound: Some((
                    Refused(Apart, "each is reported as ended, with this reason; the pod goes on: use kubectl exec"),
                    "",
                )),
                ..refused("ephemeralContainers", "Forbidden: cannot be set on create")
            },
            works("hostAliases", proof::HOSTS),
            works("hostIPC", proof::HOST_NAMESPACES),
            works("hostNetwork", "lifecycle::host_network_is_the_nodes_network"),
            works("hostPID", proof::HOST_NAMESPACES),
            works("hostUsers", proof::HOST_USERS),
            works("hostname", proof::HOSTNAME),
            works("hostnameOverride", proof::HOSTNAME),
            refused("imagePullSecrets", SECRETS).bound_works(proof::PULL_SECRETS, ""),
            works("initContainers", proof::INIT),
            noted("nodeName", proof::LIFECYCLE, "always this node's, as in the kubelet"),
            works("nodeSelector", proof::AFFINITY),
            works("os", proof::VALIDATED),
            refused("overhead", "needs a RuntimeClass object, which only a cluster has")
                .bound_works(proof::BOUND_AMOUNTS, "counts as requested, and widens limits"),
            noted("preemptionPolicy", proof::ACCEPTED, SCHEDULER),
            noted("priority", proof::ACCEPTED, SCHEDULER).bound_works(
                proof::PRIORITIES,
                "from 2000000000 on the pod is critical; under pressure those of low priority leave first",
            ),
            noted("priorityClassName", proof::REQUESTS, "system-node-critical protects from the OOM killer"),
            works("readinessGates", proof::GATES),
            refused("resourceClaims", "static pods may not reference resourceclaims").bound_refused(CLAIMS),
            works("resources", proof::POD_RESOURCES),
            works("restartPolicy", proof::RESTART),
            refused(
                "runtimeClassName",
                "needs a RuntimeClass object, which only a cluster has; this node has one runtime",
            )
            .bound_refused("this node has one runtime, and no handlers that a RuntimeClass could choose from"),
            noted("schedulerName", proof::ACCEPTED, SCHEDULER),
            refused("schedulingGates", NEVER_SCHEDULED)
                .bound_works(proof::BOUND, "a bound pod has none left, as in the kubelet"),
            refused("schedulingGroup", NEVER_SCHEDULED).bound_works(proof::BOUND, SCHEDULER),
            works("securityContext", proof::IDENTITIES),
            refused("serviceAccount", ACCOUNTS).bound_works(proof::BOUND, "the old name of serviceAccountName"),
            refused("serviceAccountName", ACCOUNTS).bound_works(proof::TOKENS, ""),
            works("setHostnameAsFQDN", proof::HOSTNAME),
            works("shareProcessNamespace", "pods::containers_of_a_pod_share_their_processes_under_our_pause"),
            works("subdomain", proof::HOSTNAME),
            works("terminationGracePeriodSeconds", proof::TERMINATION),
            noted("tolerations", proof::ACCEPTED, "taints never refuse a static pod, as in the kubelet")
                .bound_works(proof::TAINTS, "a node refuses for taints of effect NoExecute only, as the kubelet"),
            noted("topologySpreadConstraints", proof::ACCEPTED, SCHEDULER),
            works("volumes", proof::EMPTY_DIR),
        ],
    },
    Group {
        kind: "Container",
        places: &["spec.containers[*]", "spec.initContainers[*]"],
        fields: &[
            works("args", proof::COMMAND),
            works("command", proof::COMMAND),
            works("env", proof::ENV),
            works("envFrom", proof::OBJECTS),
            works("image", proof::LIFECYCLE),
            works("imagePullPolicy", proof::PULL),
            noted("lifecycle", proof::HOOKS, "of init containers: sidecars only"),
            noted("livenessProbe", proof::PROBES, "of init containers: sidecars only"),
            works("name", proof::LIFECYCLE),
            works("ports", proof::HOST_PORTS),
            noted("readinessProbe", proof::PROBES, "of init containers: sidecars only"),
            noted("resizePolicy", proof::RESIZE, "of init containers: sidecars only"),
            works("resources", proof::REQUESTS),
            noted("restartPolicy", proof::RESTART_RULES, "Always makes a sidecar of an init container"),
            works("restartPolicyRules", proof::RESTART_RULES),
            works("securityContext", proof::CAPABILITIES),
            noted("startupProbe", proof::PROBES, "of init containers: sidecars only"),
            works("stdin", proof::TERMINAL),
            works("stdinOnce", proof::TERMINAL),
            works("terminationMessagePath", proof::MESSAGE),
            works("terminationMessagePolicy", proof::MESSAGE_POLICY),
            works("tty", proof::TERMINAL),
            refused(
                "volumeDevices",
                "needs a PersistentVolumeClaim, which only a cluster has: use a hostPath volume of type BlockDevice",
            )
            .bound_refused(
                "needs a PersistentVolumeClaim, which this node does not do: use a hostPath volume of type BlockDevice",
            ),
            works("volumeMounts", proof::EMPTY_DIR),
            works("workingDir", proof::HOSTNAME),
        ],
    },
    Group {
        kind: "EnvFromSource",
        places: &["spec.containers[*].envFrom[*]", "spec.initContainers[*].envFrom[*]"],
        fields: &[
            works("configMapRef", proof::OBJECTS),
            works("prefix", proof::OBJECTS),
            works("secretRef", proof::OBJECTS),
        ],
    },
    Group {
        kind: "ConfigMapEnvSource",
        places: &["spec.containers[*].envFrom[*].configMapRef", "spec.initContainers[*].envFrom[*].configMapRef"],
        fields: &[works("name", proof::OBJECTS), works("optional", proof::OBJECTS)],
    },
    Group {
        kind: "SecretEnvSource",
        places: &["spec.containers[*].envFrom[*].secretRef", "spec.initContainers[*].envFrom[*].secretRef"],
        fields: &[works("name", proof::OBJECTS), works("optional", proof::OBJECTS)],
    },
    Group {
        kind: "EnvVar",
        places: &["spec.containers[*].env[*]", "spec.initContainers[*].env[*]"],
        fields: &[works("name", proof::ENV), works("value", proof::ENV), works("valueFrom", proof::ENV)],
    },
    Group {
        kind: "EnvVarSource",
        places: &["spec.containers[*].env[*].valueFrom", "spec.initContainers[*].env[*].valueFrom"],
        fields: &[
            works("configMapKeyRef", proof::OBJECTS),
            works("fieldRef", proof::ENV),
            works("fileKeyRef", proof::ENV_FILE),
            works("resourceFieldRef", proof::ENV),
            works("secretKeyRef", proof::OBJECTS),
        ],
    },
    Group {
        kind: "ConfigMapKeySelector",
        places: &[
            "spec.containers[*].env[*].valueFrom.configMapKeyRef",
            "spec.initContainers[*].env[*].valueFrom.configMapKeyRef",
        ],
        fields: &[works("key", proof::OBJECTS), works("name", proof::OBJECTS), works("optional", proof::OBJECTS)],
    },
    Group {
        kind: "SecretKeySelector",
        places: &[
            "spec.containers[*].env[*].valueFrom.secretKeyRef",
            "spec.initContainers[*].env[*].valueFrom.secretKeyRef",
        ],
        fields: &[works("key", proof::OBJECTS), works("name", proof::OBJECTS), works("optional", proof::OBJECTS)],
    },
    Group {
        kind: "ObjectFieldSelector",
        places: &[
            "spec.containers[*].env[*].valueFrom.fieldRef",
            "spec.initContainers[*].env[*].valueFrom.fieldRef",
            "spec.volumes[*].downwardAPI.items[*].fieldRef",
            "spec.volumes[*].projected.sources[*].downwardAPI.items[*].fieldRef",
        ],
        fields: &[works("apiVersion", proof::ENV), works("fieldPath", proof::ENV)],
    },
    Group {
        kind: "ResourceFieldSelector",
        places: &[
            "spec.containers[*].env[*].valueFrom.resourceFieldRef",
            "spec.initContainers[*].env[*].valueFrom.resourceFieldRef",
            "spec.volumes[*].downwardAPI.items[*].resourceFieldRef",
            "spec.volumes[*].projected.sources[*].downwardAPI.items[*].resourceFieldRef",
        ],
        fields: &[works("containerName", proof::ENV), works("divisor", proof::ENV), works("resource", proof::ENV)],
    },
    Group {
        kind: "FileKeySelector",
        places: &[
            "spec.containers[*].env[*].valueFrom.fileKeyRef",
            "spec.initContainers[*].env[*].valueFrom.fileKeyRef",
        ],
        fields: &[
            works("key", proof::ENV_FILE),
            works("optional", proof::ENV_FILE),
            works("path", proof::ENV_FILE),
            works("volumeName", proof::ENV_FILE),
        ],
    },
    Group {
        kind: "ContainerPort",
        places: &["spec.containers[*].ports[*]", "spec.initContainers[*].ports[*]"],
        fields: &[
            works("containerPort", proof::HOST_PORTS),
            works("hostIP", proof::PORT),
            works("hostPort", proof::HOST_PORTS),
            works("name", "probes::health_outlives_the_agent"),
            works("protocol", proof::PORT),
        ],
    },
    Group {
        kind: "VolumeMount",
        places: &["spec.containers[*].volumeMounts[*]", "spec.initContainers[*].volumeMounts[*]"],
        fields: &[
            works("mountPath", proof::MOUNTS),
            works("mountPropagation", proof::MOUNTS),
            works("name", proof::MOUNTS),
            works("readOnly", proof::MOUNTS),
            works("recursiveReadOnly", proof::MOUNTS),
            works("subPath", proof::SUB_PATH),
            works("subPathExpr", proof::SUB_PATH),
        ],
    },
    Group {
        kind: "ContainerResizePolicy",
        places: &["spec.containers[*].resizePolicy[*]", "spec.initContainers[*].resizePolicy[*]"],
        fields: &[works("resourceName", proof::RESIZE), works("restartPolicy", proof::RESIZE)],
    },
    Group {
        kind: "ContainerRestartRule",
        places: &["spec.containers[*].restartPolicyRules[*]", "spec.initContainers[*].restartPolicyRules[*]"],
        fields: &[
            works("action", "containers::a_rule_can_restart_all_containers_of_a_pod"),
            works("exitCodes", proof::RESTART_RULES),
        ],
    },
    Group {
        kind: "ContainerRestartRuleOnExitCodes",
        places: &[
            "spec.containers[*].restartPolicyRules[*].exitCodes",
            "spec.initContainers[*].restartPolicyRules[*].exitCodes",
        ],
        fields: &[works("operator", proof::RESTART_RULES), works("values", proof::RESTART_RULES)],
    },
    Group {
        kind: "ResourceRequirements",
        places: &["spec.resources", "spec.containers[*].resources", "spec.initContainers[*].resources"],
        fields: &[
            refused("claims", "static pods may not reference resourceclaims").bound_refused(CLAIMS),
            works("limits", proof::REQUESTS),
            works("requests", proof::REQUESTS),
        ],
    },
    Group {
        kind: "ResourceList",
        places: &[
            "spec.containers[*].resources.limits",
            "spec.containers[*].resources.requests",
            "spec.initContainers[*].resources.limits",
            "spec.initContainers[*].resources.requests",
        ],
        fields: &[
            refused(
                "*/*",
                "no device plugin can offer this resource on a lone node: ask for devices by their CDI names",
            )
            .bound_works(
                proof::BOUND_AMOUNTS,
                "as in the kubelet: what this node does not offer the cluster as a whole does",
            ),
            works("cpu", proof::REQUESTS),
            works("ephemeral-storage", proof::STORAGE),
            works("hugepages-*", proof::HUGE_PAGES),
            works("memory", proof::REQUESTS),
        ],
    },
    Group {
        kind: "ResourceList of a pod",
        places: &["spec.resources.limits", "spec.resources.requests"],
        fields: &[
            works("cpu", proof::POD_RESOURCES),
            works("hugepages-*", proof::HUGE_PAGES),
            works("memory", proof::POD_RESOURCES),
        ],
    },
    Group {
        kind: "Lifecycle",
        places: &["spec.containers[*].lifecycle", "spec.initContainers[*].lifecycle"],
        fields: &[
            works("postStart", proof::HOOKS),
            works("preStop", "containers::the_pre_stop_hook_takes_from_the_grace"),
            refused("stopSignal", "Forbidden: the feature is off in Kubernetes 1.36: the image's STOPSIGNAL counts"),
        ],
    },
    Group {
        kind: "LifecycleHandler",
        places: &[
            "spec.containers[*].lifecycle.postStart",
            "spec.containers[*].lifecycle.preStop",
            "spec.initContainers[*].lifecycle.postStart",
            "spec.initContainers[*].lifecycle.preStop",
        ],
        fields: &[
            works("exec", proof::INIT),
            works("httpGet", proof::HOOKS),
            works("sleep", proof::HOOKS),
            noted("tcpSocket", proof::HOOKS, "fails when it runs, as in the kubelet"),
        ],
    },
    Group {
        kind: "SleepAction",
        places: &[
            "spec.containers[*].lifecycle.postStart.sleep",
            "spec.containers[*].lifecycle.preStop.sleep",
            "spec.initContainers[*].lifecycle.postStart.sleep",
            "spec.initContainers[*].lifecycle.preStop.sleep",
        ],
        fields: &[works("seconds", proof::HOOKS)],
    },
    Group {
        kind: "Probe",
        places: &[
            "spec.containers[*].livenessProbe",
            "spec.containers[*].readinessProbe",
            "spec.containers[*].startupProbe",
            "spec.initContainers[*].livenessProbe",
            "spec.initContainers[*].readinessProbe",
            "spec.initContainers[*].startupProbe",
        ],
        fields: &[
            works("exec", proof::PROBES),
            works("failureThreshold", proof::PROBES),
            works("grpc", proof::PROBE_GRPC),
            works("httpGet", proof::PROBE_HTTP),
            works("initialDelaySeconds", proof::PROBES),
            works("periodSeconds", proof::PROBES),
            works("successThreshold", proof::PROBES),
            works("tcpSocket", proof::PROBE_TCP),
            noted(
                "terminationGracePeriodSeconds",
                "probes::the_status_follows_the_probes_and_a_dead_container_starts_anew",
                "not of readiness probes",
            ),
            works("timeoutSeconds", proof::PROBES),
        ],
    },
    Group {
        kind: "ExecAction",
        places: &[
            "spec.containers[*].livenessProbe.exec",
            "spec.containers[*].readinessProbe.exec",
            "spec.containers[*].startupProbe.exec",
            "spec.containers[*].lifecycle.postStart.exec",
            "spec.containers[*].lifecycle.preStop.exec",
            "spec.initContainers[*].livenessProbe.exec",
            "spec.initContainers[*].readinessProbe.exec",
            "spec.initContainers[*].startupProbe.exec",
            "spec.initContainers[*].lifecycle.postStart.exec",
            "spec.initContainers[*].lifecycle.preStop.exec",
        ],
        fields: &[works("command", proof::PROBES)],
    },
    Group {
        kind: "HTTPGetAction",
        places: &[
            "spec.containers[*].livenessProbe.httpGet",
            "spec.containers[*].readinessProbe.httpGet",
            "spec.containers[*].startupProbe.httpGet",
            "spec.containers[*].lifecycle.postStart.httpGet",
            "spec.containers[*].lifecycle.preStop.httpGet",
            "spec.initContainers[*].livenessProbe.httpGet",
            "spec.initContainers[*].readinessProbe.httpGet",
            "spec.initContainers[*].startupProbe.httpGet",
            "spec.initContainers[*].lifecycle.postStart.httpGet",
            "spec.initContainers[*].lifecycle.preStop.httpGet",
        ],
        fields: &[
            works("host", proof::PROBE_HTTP),
            works("httpHeaders", proof::PROBE_HTTP),
            works("path", proof::PROBE_HTTP),
            works("port", proof::PROBE_HTTP),
            works("scheme", proof::PROBE_HTTP),
        ],
    },
    Group {
        kind: "HTTPHeader",
        places: &[
            "spec.containers[*].livenessProbe.httpGet.httpHeaders[*]",
            "spec.containers[*].readinessProbe.httpGet.httpHeaders[*]",
            "spec.containers[*].startupProbe.httpGet.httpHeaders[*]",
            "spec.containers[*].lifecycle.postStart.httpGet.httpHeaders[*]",
            "spec.containers[*].lifecycle.preStop.httpGet.httpHeaders[*]",
            "spec.initContainers[*].livenessProbe.httpGet.httpHeaders[*]",
            "spec.initContainers[*].readinessProbe.httpGet.httpHeaders[*]",
            "spec.initContainers[*].startupProbe.httpGet.httpHeaders[*]",
            "spec.initContainers[*].lifecycle.postStart.httpGet.httpHeaders[*]",
            "spec.initContainers[*].lifecycle.preStop.httpGet.httpHeaders[*]",
        ],
        fields: &[works("name", proof::PROBE_HTTP), works("value", proof::PROBE_HTTP)],
    },
    Group {
        kind: "TCPSocketAction",
        places: &[
            "spec.containers[*].livenessProbe.tcpSocket",
            "spec.containers[*].readinessProbe.tcpSocket",
            "spec.containers[*].startupProbe.tcpSocket",
            "spec.containers[*].lifecycle.postStart.tcpSocket",
            "spec.containers[*].lifecycle.preStop.tcpSocket",
            "spec.initContainers[*].livenessProbe.tcpSocket",
            "spec.initContainers[*].readinessProbe.tcpSocket",
            "spec.initContainers[*].startupProbe.tcpSocket",
            "spec.initContainers[*].lifecycle.postStart.tcpSocket",
            "spec.initContainers[*].lifecycle.preStop.tcpSocket",
        ],
        fields: &[works("host", proof::PROBE_TCP), works("port", proof::PROBE_TCP)],
    },
    Group {
        kind: "GRPCAction",
        places: &[
            "spec.containers[*].livenessProbe.grpc",
            "spec.containers[*].readinessProbe.grpc",
            "spec.containers[*].startupProbe.grpc",
            "spec.initContainers[*].livenessProbe.grpc",
            "spec.initContainers[*].readinessProbe.grpc",
            "spec.initContainers[*].startupProbe.grpc",
        ],
        fields: &[works("port", proof::PROBE_GRPC), works("service", proof::PROBE_GRPC)],
    },
    Group {
        kind: "SecurityContext",
        places: &["spec.containers[*].securityContext", "spec.initContainers[*].securityContext"],
        fields: &[
            works("allowPrivilegeEscalation", proof::CAPABILITIES),
            works("appArmorProfile", proof::APPARMOR),
            works("capabilities", proof::CAPABILITIES),
            works("privileged", proof::CAPABILITIES),
            works("procMount", proof::HOST_USERS),
            works("readOnlyRootFilesystem", proof::CAPABILITIES),
            works("runAsGroup", proof::IDENTITIES),
            works("runAsNonRoot", proof::NON_ROOT),
            works("runAsUser", proof::IDENTITIES),
            works("seLinuxOptions", proof::APPARMOR),
            works("seccompProfile", proof::SECCOMP),
            refused("windowsOptions", WINDOWS),
        ],
    },
    Group {
        kind: "Capabilities",
        places: &[
            "spec.containers[*].securityContext.capabilities",
            "spec.initContainers[*].securityContext.capabilities",
        ],
        fields: &[works("add", proof::CAPABILITIES), works("drop", proof::CAPABILITIES)],
    },
    Group {
        kind: "PodSecurityContext",
        places: &["spec.securityContext"],
        fields: &[
            works("appArmorProfile", proof::APPARMOR),
            works("fsGroup", proof::FS_GROUP),
            noted(
                "fsGroupChangePolicy",
                proof::FS_GROUP,
                "of volumes that may be older than the pod: there are none, as an emptyDir is always gone through",
            ),
            works("runAsGroup", proof::IDENTITIES),
            works("runAsNonRoot", proof::NON_ROOT),
            works("runAsUser", proof::IDENTITIES),
            noted(
                "seLinuxChangePolicy",
                proof::ACCEPTED,
                "of volumes that the node mounts with a label: there are none",
            ),
            works("seLinuxOptions", proof::APPARMOR),
            works("seccompProfile", proof::SECCOMP),
            works("supplementalGroups", proof::IDENTITIES),
            works("supplementalGroupsPolicy", proof::IDENTITIES),
            works("sysctls", proof::SYSCTLS),
            refused("windowsOptions", WINDOWS),
        ],
    },
    Group {
        kind: "AppArmorProfile",
        places: &[
            "spec.securityContext.appArmorProfile",
            "spec.containers[*].securityContext.appArmorProfile",
            "spec.initContainers[*].securityContext.appArmorProfile",
        ],
        fields: &[works("localhostProfile", proof::APPARMOR), works("type", proof::APPARMOR)],
    },
    Group {
        kind: "SeccompProfile",
        places: &[
            "spec.securityContext.seccompProfile",
            "spec.containers[*].securityContext.seccompProfile",
            "spec.initContainers[*].securityContext.seccompProfile",
        ],
        fields: &[works("localhostProfile", proof::SECCOMP), works("type", proof::SECCOMP)],
    },
    Group {
        kind: "SELinuxOptions",
        places: &[
            "spec.securityContext.seLinuxOptions",
            "spec.containers[*].securityContext.seLinuxOptions",
            "spec.initContainers[*].securityContext.seLinuxOptions",
        ],
        fields: &[
            works("level", proof::APPARMOR),
            works("role", proof::APPARMOR),
            works("type", proof::APPARMOR),
            works("user", proof::APPARMOR),
        ],
    },
    Group {
        kind: "Sysctl",
        places: &["spec.securityContext.sysctls[*]"],
        fields: &[works("name", proof::SYSCTLS), works("value", proof::SYSCTLS)],
    },
    Group {
        kind: "PodDNSConfig",
        places: &["spec.dnsConfig"],
        fields: &[works("nameservers", proof::DNS), works("options", proof::DNS), works("searches", proof::DNS)],
    },
    Group {
        kind: "PodDNSConfigOption",
        places: &["spec.dnsConfig.options[*]"],
        fields: &[works("name", proof::DNS), works("value", proof::DNS)],
    },
    Group {
        kind: "HostAlias",
        places: &["spec.hostAliases[*]"],
        fields: &[works("hostnames", proof::HOSTS), works("ip", proof::HOSTS)],
    },
    Group {
        kind: "PodOS",
        places: &["spec.os"],
        fields: &[noted("name", proof::VALIDATED, "linux; a pod for windows is refused")],
    },
    Group {
        kind: "PodReadinessGate",
        places: &["spec.readinessGates[*]"],
        fields: &[works("conditionType", proof::GATES)],
    },
    Group {
        kind: "Toleration",
        places: &["spec.tolerations[*]"],
        fields: &[
            works("effect", proof::ACCEPTED),
            works("key", proof::ACCEPTED),
            works("operator", proof::ACCEPTED),
            works("tolerationSeconds", proof::ACCEPTED),
            works("value", proof::ACCEPTED),
        ],
    },
    Group {
        kind: "TopologySpreadConstraint",
        places: &["spec.topologySpreadConstraints[*]"],
        fields: &[
            noted("labelSelector", proof::ACCEPTED, SCHEDULER),
            noted("matchLabelKeys", proof::ACCEPTED, SCHEDULER),
            noted("maxSkew", proof::ACCEPTED, SCHEDULER),
            noted("minDomains", proof::ACCEPTED, SCHEDULER),
            noted("nodeAffinityPolicy", proof::ACCEPTED, SCHEDULER),
            noted("nodeTaintsPolicy", proof::ACCEPTED, SCHEDULER),
            noted("topologyKey", proof::ACCEPTED, SCHEDULER),
            noted("whenUnsatisfiable", proof::ACCEPTED, SCHEDULER),
        ],
    },
    Group {
        kind: "Affinity",
        places: &["spec.affinity"],
        fields: &[
            works("nodeAffinity", proof::AFFINITY),
            noted("podAffinity", proof::ACCEPTED, SCHEDULER),
            noted("podAntiAffinity", proof::ACCEPTED, SCHEDULER),
        ],
    },
    Group {
        kind: "NodeAffinity",
        places: &["spec.affinity.nodeAffinity"],
        fields: &[
            noted("preferredDuringSchedulingIgnoredDuringExecution", proof::ACCEPTED, SCHEDULER),
            works("requiredDuringSchedulingIgnoredDuringExecution", proof::AFFINITY),
        ],
    },
    Group {
        kind: "NodeSelector",
        places: &["spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"],
        fields: &[works("nodeSelectorTerms", proof::AFFINITY)],
    },
    Group {
        kind: "PreferredSchedulingTerm",
        places: &["spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[*]"],
        fields: &[noted("preference", proof::ACCEPTED, SCHEDULER), noted("weight", proof::ACCEPTED, SCHEDULER)],
    },
    Group {
        kind: "NodeSelectorTerm",
        places: &[
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[*]",
            "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].preference",
        ],
        fields: &[works("matchExpressions", proof::AFFINITY), works("matchFields", proof::AFFINITY)],
    },
    Group {
        kind: "NodeSelectorRequirement",
        places: &[
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[*].matchExpressions[*]",
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[*].matchFields[*]",
            "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].preference.matchExpressions[*]",
            "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].preference.matchFields[*]",
        ],
        fields: &[works("key", proof::AFFINITY), works("operator", proof::AFFINITY), works("values", proof::AFFINITY)],
    },
    Group {
        kind: "PodAffinity, PodAntiAffinity",
        places: &["spec.affinity.podAffinity", "spec.affinity.podAntiAffinity"],
        fields: &[
            noted("preferredDuringSchedulingIgnoredDuringExecution", proof::ACCEPTED, SCHEDULER),
            noted("requiredDuringSchedulingIgnoredDuringExecution", proof::ACCEPTED, SCHEDULER),
        ],
    },
    Group {
        kind: "WeightedPodAffinityTerm",
        places: &[
            "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[*]",
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[*]",
        ],
        fields: &[noted("podAffinityTerm", proof::ACCEPTED, SCHEDULER), noted("weight", proof::ACCEPTED, SCHEDULER)],
    },
    Group {
        kind: "PodAffinityTerm",
        places: &[
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[*]",
            "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm",
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[*]",
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm",
        ],
        fields: &[
            noted("labelSelector", proof::ACCEPTED, SCHEDULER),
            noted("matchLabelKeys", proof::ACCEPTED, SCHEDULER),
            noted("mismatchLabelKeys", proof::ACCEPTED, SCHEDULER),
            noted("namespaceSelector", proof::ACCEPTED, SCHEDULER),
            noted("namespaces", proof::ACCEPTED, SCHEDULER),
            noted("topologyKey", proof::ACCEPTED, SCHEDULER),
        ],
    },
    Group {
        kind: "LabelSelector",
        places: &[
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].labelSelector",
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].namespaceSelector",
            "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm.labelSelector",
            "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm.namespaceSelector",
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].labelSelector",
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].namespaceSelector",
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm.labelSelector",
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm.namespaceSelector",
            "spec.topologySpreadConstraints[*].labelSelector",
        ],
        fields: &[
            noted("matchExpressions", proof::ACCEPTED, SCHEDULER),
            noted("matchLabels", proof::ACCEPTED, SCHEDULER),
        ],
    },
    Group {
        kind: "LabelSelectorRequirement",
        places: &[
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].labelSelector.matchExpressions[*]",
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].namespaceSelector.matchExpressions[*]",
            "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm.labelSelector.matchExpressions[*]",
            "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm.namespaceSelector.matchExpressions[*]",
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].labelSelector.matchExpressions[*]",
            "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[*].namespaceSelector.matchExpressions[*]",
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm.labelSelector.matchExpressions[*]",
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[*].podAffinityTerm.namespaceSelector.matchExpressions[*]",
            "spec.topologySpreadConstraints[*].labelSelector.matchExpressions[*]",
        ],
        fields: &[
            noted("key", proof::ACCEPTED, SCHEDULER),
            noted("operator", proof::ACCEPTED, SCHEDULER),
            noted("values", proof::ACCEPTED, SCHEDULER),
        ],
    },
    Group {
        kind: "Volume",
        places: &["spec.volumes[*]"],
        fields: &[
            refused_kind("awsElasticBlockStore", GONE),
            refused_kind("azureDisk", GONE),
            refused_kind("azureFile", GONE),
            refused_kind("cephfs", GONE),
            refused_kind("cinder", GONE),
            works("configMap", proof::OBJECTS),
            refused_kind("csi", "static pods may not reference csidrivers (via CSI volumes)").bound_refused(
                "needs a CSI driver on the node, which coracle does not talk to: use hostPath on what the node mounts",
            ),
            works("downwardAPI", proof::DOWNWARD),
            works("emptyDir", proof::EMPTY_DIR),
            refused_kind("ephemeral", "static pods may not reference persistentvolumeclaims (via ephemeral volumes)")
                .bound_refused(VOLUME_CLAIM),
            refused_kind("fc", HELPER),
            refused_kind("flexVolume", HELPER),
            refused_kind("flocker", GONE),
            refused_kind("gcePersistentDisk", GONE),
            refused_kind(
                "gitRepo",
                "Kubernetes has switched this type of volume off: use an init container that clones",
            ),
            refused_kind("glusterfs", "static pods may not reference endpoints (via glusterFS volumes)")
                .bound_refused(GONE),
            works("hostPath", proof::HOST_PATH),
            works("image", proof::IMAGE_VOLUME),
            refused_kind("iscsi", HELPER),
            works("name", proof::EMPTY_DIR),
            refused_kind("nfs", HELPER),
            refused_kind("persistentVolumeClaim", "static pods may not reference persistentvolumeclaims")
                .bound_refused(VOLUME_CLAIM),
            refused_kind("photonPersistentDisk", GONE),
            refused_kind("portworxVolume", GONE),
            works("projected", proof::DOWNWARD),
            refused_kind("quobyte", GONE),
            refused_kind("rbd", GONE),
            refused_kind("scaleIO", GONE),
            works("secret", proof::OBJECTS),
            refused_kind("storageos", GONE),
            refused_kind("vsphereVolume", GONE),
        ],
    },
    Group {
        kind: "EmptyDirVolumeSource",
        places: &["spec.volumes[*].emptyDir"],
        fields: &[works("medium", proof::EMPTY_DIR), works("sizeLimit", proof::STORAGE)],
    },
    Group {
        kind: "HostPathVolumeSource",
        places: &["spec.volumes[*].hostPath"],
        fields: &[works("path", proof::HOST_PATH), works("type", proof::HOST_PATH)],
    },
    Group {
        kind: "ImageVolumeSource",
        places: &["spec.volumes[*].image"],
        fields: &[
            works("pullPolicy", "volumes::an_expression_without_its_variable_and_an_image_that_is_not_there_are_told"),
            works("reference", proof::IMAGE_VOLUME),
        ],
    },
    Group {
        kind: "ConfigMapVolumeSource",
        places: &["spec.volumes[*].configMap"],
        fields: &[
            works("defaultMode", proof::OBJECTS),
            works("items", proof::OBJECTS),
            works("name", proof::OBJECTS),
            works("optional", proof::OBJECTS),
        ],
    },
    Group {
        kind: "SecretVolumeSource",
        places: &["spec.volumes[*].secret"],
        fields: &[
            works("defaultMode", proof::OBJECTS),
            works("items", proof::OBJECTS),
            works("optional", proof::OBJECTS),
            works("secretName", proof::OBJECTS),
        ],
    },
    Group {
        kind: "KeyToPath",
        places: &[
            "spec.volumes[*].configMap.items[*]",
            "spec.volumes[*].secret.items[*]",
            "spec.volumes[*].projected.sources[*].configMap.items[*]",
            "spec.volumes[*].projected.sources[*].secret.items[*]",
        ],
        fields: &[works("key", proof::OBJECTS), works("mode", proof::OBJECTS), works("path", proof::OBJECTS)],
    },
    Group {
        kind: "DownwardAPIVolumeSource",
        places: &["spec.volumes[*].downwardAPI"],
        fields: &[works("defaultMode", proof::DOWNWARD), works("items", proof::DOWNWARD)],
    },
    Group {
        kind: "DownwardAPIVolumeFile",
        places: &["spec.volumes[*].downwardAPI.items[*]", "spec.volumes[*].projected.sources[*].downwardAPI.items[*]"],
        fields: &[
            works("fieldRef", proof::DOWNWARD),
            works("mode", proof::DOWNWARD),
            works("path", proof::DOWNWARD),
            works("resourceFieldRef", proof::DOWNWARD),
        ],
    },
    Group {
        kind: "ProjectedVolumeSource",
        places: &["spec.volumes[*].projected"],
        fields: &[works("defaultMode", proof::DOWNWARD), works("sources", proof::DOWNWARD)],
    },
    Group {
        kind: "VolumeProjection",
        places: &["spec.volumes[*].projected.sources[*]"],
        fields: &[
            refused_kind("clusterTrustBundle", "static pods may not reference clustertrustbundles")
                .bound_refused("this node does not read ClusterTrustBundles: put the certificates into a ConfigMap"),
            works("configMap", proof::OBJECTS),
            works("downwardAPI", proof::DOWNWARD),
            refused_kind("podCertificate", "static pods may not reference podcertificates")
                .bound_refused("this node does not request certificates for pods: put one into a Secret"),
            works("secret", proof::OBJECTS),
            refused_kind(
                "serviceAccountToken",
                "static pods may not reference serviceaccounts (via projected volumes)",
            )
            .bound_works(proof::TOKENS, ""),
        ],
    },
    Group {
        kind: "ConfigMapProjection",
        places: &["spec.volumes[*].projected.sources[*].configMap"],
        fields: &[works("items", proof::OBJECTS), works("name", proof::OBJECTS), works("optional", proof::OBJECTS)],
    },
    Group {
        kind: "SecretProjection",
        places: &["spec.volumes[*].projected.sources[*].secret"],
        fields: &[works("items", proof::OBJECTS), works("name", proof::OBJECTS), works("optional", proof::OBJECTS)],
    },
    Group {
        kind: "DownwardAPIProjection",
        places: &["spec.volumes[*].projected.sources[*].downwardAPI"],
        fields: &[works("items", proof::DOWNWARD)],
    },
];
