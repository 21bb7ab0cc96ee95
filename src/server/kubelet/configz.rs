//! What the node was told, as a `KubeletConfiguration`: of the fields that it honours, with defaults filled in. Pure.

use crate::config::Config;
use crate::config::images::CredentialsVerification;
use crate::config::reserve::{Amount, Reserved, Signal};
use crate::config::server::Authorization;
use crate::config::{KUBELET_API_VERSION, LogFormat};
use crate::pod::pull::go_duration;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The configuration. No value in it is a secret: headers of URLs are left out.
pub(super) fn kubelet(config: &Config) -> Value {
    let mut all = Map::new();
    for part in [general(config), server(config), node(config), images(config), resources(config)] {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    Value::Object(all)
}

fn general(config: &Config) -> Value {
    json!({
        "kind": "KubeletConfiguration",
        "apiVersion": KUBELET_API_VERSION,
        "staticPodPath": text(&config.manifest_dir),
        "podLogsDir": text(&config.pod_logs_dir),
        "fileCheckFrequency": go_duration(config.file_check_frequency),
        "httpCheckFrequency": go_duration(config.sources.http_check_frequency),
        "healthzPort": config.healthz_port,
        "healthzBindAddress": config.healthz_bind_address.to_string(),
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "resolvConf": config.resolv_conf.as_deref().map(text).unwrap_or_default(),
        "containerLogMaxSize": config.container_log_max_size.to_string(),
        "containerLogMaxFiles": config.container_log_max_files,
        "crashLoopBackOff": { "maxContainerRestartPeriod": go_duration(config.max_container_restart_period) },
        "logging": {
            "format": match config.log_format { LogFormat::Text => "text", LogFormat::Json => "json" },
            "verbosity": config.verbosity,
        },
        "seccompDefault": config.seccomp_default,
        "allowedUnsafeSysctls": config.allowed_unsafe_sysctls,
    })
}

fn server(config: &Config) -> Value {
    let server = &config.server;
    let (mode, webhook) = match server.authorization {
        Authorization::AlwaysAllow => ("AlwaysAllow", json!({})),
        Authorization::Webhook { authorized, unauthorized } => {
            let counts = json!({
                "cacheAuthorizedTTL": go_duration(authorized),
                "cacheUnauthorizedTTL": go_duration(unauthorized),
            });
            ("Webhook", counts)
        }
    };
    let path = |path: &Option<std::path::PathBuf>| path.as_deref().map(text).unwrap_or_default();
    json!({
        "enableServer": config.port != 0,
        "address": server.address.to_string(),
        "port": config.port,
        "readOnlyPort": server.read_only_port,
        "tlsCertFile": path(&server.tls_cert_file),
        "tlsPrivateKeyFile": path(&server.tls_private_key_file),
        "serverTLSBootstrap": server.server_tls_bootstrap,
        "authentication": {
            "anonymous": { "enabled": server.anonymous },
            "webhook": {
                "enabled": server.token_webhook.is_some(),
                "cacheTTL": go_duration(server.token_webhook.unwrap_or_default()),
            },
            "x509": { "clientCAFile": path(&server.client_ca_file) },
        },
        "authorization": { "mode": mode, "webhook": webhook },
        "enableDebuggingHandlers": server.debugging_handlers,
        "enableSystemLogHandler": server.system_logs,
        "streamingConnectionIdleTimeout": go_duration(server.streaming_idle),
    })
}

fn node(config: &Config) -> Value {
    let cluster = &config.cluster;
    json!({
        "rotateCertificates": cluster.rotate_certificates,
        "registerNode": cluster.register_node,
        "registerWithTaints": cluster.register_with_taints,
        "providerID": cluster.provider_id,
        "nodeLeaseDurationSeconds": cluster.lease_duration_seconds,
        "nodeStatusUpdateFrequency": go_duration(cluster.status_update_frequency),
        "nodeStatusReportFrequency": go_duration(cluster.status_report_frequency),
        "nodeStatusMaxImages": cluster.status_max_images.and_then(|most| i32::try_from(most).ok()).unwrap_or(-1),
        "kubeAPIQPS": cluster.request_rate.0,
        "kubeAPIBurst": cluster.request_rate.1,
        "eventRecordQPS": cluster.event_rate.0,
        "eventBurst": cluster.event_rate.1,
        "maxPods": config.max_pods,
        "podPidsLimit": config.pod_pids_limit.and_then(|most| i64::try_from(most).ok()).unwrap_or(-1),
        "podCIDR": config.pod_cidr.to_string(),
    })
}

fn images(config: &Config) -> Value {
    let images = &config.images;
    json!({
        "imageGCHighThresholdPercent": images.gc_high_percent,
        "imageGCLowThresholdPercent": images.gc_low_percent,
        "imageMinimumGCAge": go_duration(images.minimum_gc_age),
        "imageMaximumGCAge": go_duration(images.maximum_gc_age),
        "serializeImagePulls": images.max_parallel_pulls == Some(1),
        "maxParallelImagePulls": images.max_parallel_pulls,
        "registryPullQPS": images.pull_qps,
        "registryBurst": images.pull_burst,
        "imagePullCredentialsVerificationPolicy": match images.credentials_verification {
            CredentialsVerification::NeverVerify => "NeverVerify",
            CredentialsVerification::NeverVerifyPreloadedImages => "NeverVerifyPreloadedImages",
            CredentialsVerification::NeverVerifyAllowlistedImages => "NeverVerifyAllowlistedImages",
            CredentialsVerification::AlwaysVerify => "AlwaysVerify",
        },
    })
}

fn resources(config: &Config) -> Value {
    let eviction = &config.eviction;
    let (mut hard, mut soft, mut grace, mut reclaim) = (Map::new(), Map::new(), Map::new(), Map::new());
    let named = eviction.thresholds.iter().filter(|of| of.signal != Signal::AllocatableMemoryAvailable);
    for threshold in named {
        let signal = threshold.signal.as_str();
        let into = if threshold.grace.is_some() { &mut soft } else { &mut hard };
        into.insert(signal.to_owned(), amount(threshold.least));
        grace.extend(threshold.grace.map(|grace| (signal.to_owned(), go_duration(grace).into())));
        reclaim.extend(threshold.reclaim.map(|reclaim| (signal.to_owned(), amount(reclaim))));
    }
    json!({
        "kubeReserved": reserved(&config.kube_reserved),
        "systemReserved": reserved(&config.system_reserved),
        "enforceNodeAllocatable": [if config.enforce_pods { "pods" } else { "none" }],
        "evictionHard": hard,
        "evictionSoft": soft,
        "evictionSoftGracePeriod": grace,
        "evictionMinimumReclaim": reclaim,
        "evictionPressureTransitionPeriod": go_duration(eviction.pressure_transition),
        "evictionMaxPodGracePeriod": eviction.max_pod_grace_seconds,
        "cpuCFSQuota": config.cfs_period.is_some(),
        "cpuCFSQuotaPeriod": config.cfs_period.map(go_duration),
        "singleProcessOOMKill": config.single_process_oom_kill,
        "cgroupRoot": config.cgroup_root,
    })
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn amount(amount: Amount) -> Value {
    match amount {
        Amount::Absolute(units) => units.to_string().into(),
        Amount::Share(share) => format!("{}%", (share * 1e6).round() / 1e4).into(),
    }
}

fn reserved(reserved: &Reserved) -> Value {
    let all = [
        ("cpu", reserved.cpu_milli, "m"),
        ("memory", reserved.memory, ""),
        ("ephemeral-storage", reserved.ephemeral_storage, ""),
        ("pid", reserved.pids, ""),
    ];
    let set = all.into_iter().filter(|(_, amount, _)| *amount != 0);
    set.map(|(name, amount, unit)| (name.to_owned(), Value::from(format!("{amount}{unit}"))))
        .collect::<Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Facts, File, Flags};

    #[test]
    fn what_is_shown_reads_back_as_what_it_was() {
        let flags = Flags { hostname_override: Some("edge-1".to_owned()), ..Flags::default() };
        let facts = Facts::default();
        let text = include_str!("../../../tests/corpus/kubelet/config.yaml");
        let more = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                    evictionSoft: {memory.available: 5%}\nevictionSoftGracePeriod: {memory.available: 1m30s}\n\
                    evictionMinimumReclaim: {nodefs.available: 1Gi}\nkubeReserved: {cpu: 250m, memory: 64Mi}\n\
                    registerWithTaints: [{key: a, effect: NoSchedule}]\ncpuCFSQuota: true\n\
                    authorization: {mode: AlwaysAllow}\nserializeImagePulls: false\nmaxParallelImagePulls: 3\n";
        let files = [File::main("config.yaml", text), File::drop_in("more.conf", more)];
        let (config, _) = Config::resolve(&flags, &files, &facts).unwrap();
        let shown = kubelet(&config).to_string();
        let (mut again, warnings) = Config::resolve(&flags, &[File::main("shown", &shown)], &facts).unwrap();
        assert_eq!(warnings, []);
        assert!(again.server.standalone);
        again.server.standalone = config.server.standalone;
        // What is looked at first is nobody's business.
        let mut config = config;
        for thresholds in [&mut again.eviction.thresholds, &mut config.eviction.thresholds] {
            thresholds.sort_by_key(|threshold| format!("{threshold:?}"));
        }
        assert_eq!(again, config);
    }
}
