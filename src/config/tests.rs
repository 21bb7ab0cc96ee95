use super::*;
use expect_test::expect;
use proptest::prelude::*;

fn facts() -> Facts {
    Facts { hostname: "Edge-1".to_owned() }
}

fn resolve(file: &str) -> Result<(Config, Vec<Warning>), Error> {
    Config::resolve(&Flags::default(), &[File::main("config.yaml", file)], &facts())
}

/// What is said of a main file with these drop-ins that must be refused.
fn refused(flags: &Flags, files: &[File<'_>]) -> String {
    crate::causes::chain(&Config::resolve(flags, files, &facts()).expect_err("must be refused"))
}

fn refusal(body: &str) -> String {
    let file = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{body}");
    let said = refused(&Flags::default(), &[File::main("config.yaml", &file)]);
    said.strip_prefix("config.yaml: ").unwrap_or(&said).to_owned()
}

#[test]
fn nothing_given_is_the_design_s_defaults() {
    let (config, warnings) = Config::resolve(&Flags::default(), &[], &facts()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.node_name, "edge-1");
    assert_eq!(config.socket(), PathBuf::from("/run/coracle/coracle.sock"));
    assert_eq!(config, Config { node_name: "edge-1".to_owned(), ..Config::default() });
}

#[test]
fn unsafe_sysctls_are_allowed_by_namespaced_patterns_only() {
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    let list = "allowedUnsafeSysctls: [net.core.somaxconn, \"kernel.msg*\", \"net/ipv4/*\", kernel.sem]\n";
    let (config, warnings) = resolve(&format!("{head}{list}")).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.allowed_unsafe_sysctls, ["net.core.somaxconn", "kernel.msg*", "net/ipv4/*", "kernel.sem"]);
    let refused = ["[vm.swappiness]", "[\"*\"]", "[\"kernel.*\"]", "[net*]", "[\"net.*.x*\"]", "[1]", "text"];
    let text: Vec<String> = refused.iter().map(|list| refusal(&format!("allowedUnsafeSysctls: {list}\n"))).collect();
    expect![[r#"
        KubeletConfiguration.allowedUnsafeSysctls[0]: "vm.swappiness" is not known to be namespaced: want a name, or a prefix that ends in *, of net., kernel.shm, kernel.msg, kernel.sem or fs.mqueue.
        KubeletConfiguration.allowedUnsafeSysctls[0]: "*" is not known to be namespaced: want a name, or a prefix that ends in *, of net., kernel.shm, kernel.msg, kernel.sem or fs.mqueue.
        KubeletConfiguration.allowedUnsafeSysctls[0]: "kernel.*" is not known to be namespaced: want a name, or a prefix that ends in *, of net., kernel.shm, kernel.msg, kernel.sem or fs.mqueue.
        KubeletConfiguration.allowedUnsafeSysctls[0]: "net*" is not known to be namespaced: want a name, or a prefix that ends in *, of net., kernel.shm, kernel.msg, kernel.sem or fs.mqueue.
        KubeletConfiguration.allowedUnsafeSysctls[0]: "net.*.x*" is not known to be namespaced: want a name, or a prefix that ends in *, of net., kernel.shm, kernel.msg, kernel.sem or fs.mqueue.
        KubeletConfiguration.allowedUnsafeSysctls[0]: want the name of a sysctl, got a number
        KubeletConfiguration.allowedUnsafeSysctls: want a list, got text"#]].assert_eq(&text.join("\n"));
}

#[test]
fn a_kubeadm_file_is_taken_as_is_with_warnings() {
    let (config, warnings) = resolve(
        "apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous: {enabled: false}
cgroupDriver: systemd
clusterDNS:
- 10.96.0.10
clusterDomain: cluster.local.
containerLogMaxSize: 1Mi
crashLoopBackOff: {maxContainerRestartPeriod: 30s}
fileCheckFrequency: 0s
kind: KubeletConfiguration
logging: {format: json, verbosity: 3, flushFrequency: 0}
memorySwap: {}
podPidsLimit: -1
resolvConf: /run/systemd/resolve/resolv.conf
staticPodPath: /etc/kubernetes/manifests/
---
apiVersion: coracle.dev/v1alpha1
kind: CoracleConfiguration
podCIDR: 10.9.0.0/24
nodeLabels: {site: north}
criSocket: false
",
    )
    .unwrap();
    assert!(!config.server.cri_socket && Config::default().server.cri_socket);
    assert_eq!(config.cluster_dns, [IpAddr::from([10, 96, 0, 10])]);
    assert_eq!(config.cluster_domain, "cluster.local");
    assert_eq!(config.container_log_max_size, 1 << 20);
    assert_eq!(config.max_container_restart_period, Duration::from_secs(30));
    assert_eq!(config.file_check_frequency, Duration::from_secs(20));
    assert_eq!(config.manifest_dir, PathBuf::from("/etc/kubernetes/manifests"));
    assert_eq!((config.log_format, config.verbosity, config.pod_pids_limit), (LogFormat::Json, 3, None));
    assert_eq!(config.pod_cidr.to_string(), "10.9.0.0/24");
    assert_eq!(config.node_labels["site"], "north");
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    expect![[r#"
        [
            "KubeletConfiguration: these fields have no effect here: cgroupDriver",
        ]
    "#]]
    .assert_debug_eq(&warnings);
}

#[test]
fn flags_win_over_the_file() {
    let flags = Flags {
        max_pods: Some(7),
        healthz_port: Some(0),
        hostname_override: Some("Other".to_owned()),
        node_labels: Some("a=b,example.com/c=".to_owned()),
        ..Flags::default()
    };
    let file = "{apiVersion: kubelet.config.k8s.io/v1beta1, kind: KubeletConfiguration, maxPods: 9, port: 1}";
    let (config, _) = Config::resolve(&flags, &[File::main("config.yaml", file)], &facts()).unwrap();
    assert_eq!((config.max_pods, config.healthz_port, config.port), (7, 0, 1));
    assert_eq!(config.node_name, "other");
    assert_eq!(config.node_labels.len(), 2);
}

#[test]
fn refusals_name_the_field_and_the_reason() {
    let refusals: Vec<String> = [
        "maxpods: 3",
        "zzz: 3",
        "maxPods: many",
        "maxPods: -1",
        "maxPods: 0",
        "clusterDNS: [ten]",
        "fileCheckFrequency: 20",
        "fileCheckFrequency: 1ms",
        "containerLogMaxSize: 1",
        "containerLogMaxFiles: 1",
        "crashLoopBackOff: {maxContainerRestartPeriod: 10m}",
        "crashLoopBackOff: {maxRestart: 10m}",
        "staticPodPath: manifests",
        "staticPodPath: /etc/../x",
        "cgroupRoot: kube",
        "podCIDR: 10.1.2.3/16",
        "logging: {format: xml}",
        "clusterDomain: 'a b'",
        "- a",
    ]
    .iter()
    .map(|body| refusal(body).lines().next().unwrap_or_default().to_owned())
    .collect();
    expect![[r#"
        KubeletConfiguration.maxpods: unknown field (did you mean maxPods?)
        KubeletConfiguration.zzz: unknown field
        KubeletConfiguration.maxPods: want a whole number, got text
        KubeletConfiguration.maxPods: -1 is not between 0 and 4294967295
        maxPods: 0 leaves no room for any pod
        KubeletConfiguration.clusterDNS[0]: "ten" is not an IP address
        KubeletConfiguration.fileCheckFrequency: want text, got a number
        KubeletConfiguration.fileCheckFrequency: shorter than 100ms would only burn CPU
        KubeletConfiguration.containerLogMaxSize: want text, got a number
        KubeletConfiguration.containerLogMaxFiles: 1 is not between 2 and 1000
        KubeletConfiguration.crashLoopBackOff.maxContainerRestartPeriod: must be between 1s and 300s
        KubeletConfiguration.crashLoopBackOff.maxRestart: unknown field
        manifest directory (--pod-manifest-path, staticPodPath): manifests is not an absolute path
        manifest directory (--pod-manifest-path, staticPodPath): /etc/../x contains ..
        cgroup root (--cgroup-root, cgroupRoot): "kube" is not an absolute cgroup path
        KubeletConfiguration.podCIDR: 10.1.2.3/16 has host bits set: did you mean 10.1.0.0/16?
        KubeletConfiguration.logging.format: "xml" is not text or json
        cluster domain: "a b" is not a DNS subdomain (lower case letters, digits, '-' and '.')
        not valid YAML: error: line 3 column 3: while parsing a block mapping, did not find expected key"#]]
    .assert_eq(&refusals.join("\n"));
}

#[test]
fn documents_of_other_kinds_are_refused() {
    for (file, part) in [
        ("apiVersion: v1\nkind: Pod\n", "Pod of v1 is not known here"),
        ("kind: KubeletConfiguration\n", "apiVersion and kind are required"),
        ("hello", "text instead of a mapping"),
        (
            "{apiVersion: coracle.dev/v1alpha1, kind: CoracleConfiguration}\n---\n{apiVersion: coracle.dev/v1alpha1, kind: CoracleConfiguration}\n",
            "config.yaml: document 2: a second CoracleConfiguration",
        ),
    ] {
        let error = refused(&Flags::default(), &[File::main("config.yaml", file)]);
        assert!(error.contains(part), "{error}");
    }
    assert!(resolve("").is_ok());
}

const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

#[test]
fn what_kubeadm_writes_is_taken_as_it_is() {
    let text = include_str!("../../tests/corpus/kubelet/config.yaml");
    let (config, warnings) = resolve(text).unwrap();
    let defaults = Config {
        node_name: "edge-1".to_owned(),
        cluster_dns: vec![IpAddr::from([10, 96, 0, 10])],
        cluster_domain: "cluster.local".to_owned(),
        server: Server {
            standalone: true,
            client_ca_file: Some("/etc/kubernetes/pki/ca.crt".into()),
            ..Server::default()
        },
        ..Config::default()
    };
    assert_eq!(config, defaults, "zeros are what nobody set");
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    expect![[r#"
        KubeletConfiguration: these fields have no effect here: cgroupDriver"#]]
    .assert_eq(&warnings.join("\n"));
}

#[test]
fn the_example_of_all_sources_can_be_used() {
    let (config, warnings) = resolve(include_str!("../../examples/coracle.yaml")).unwrap();
    assert_eq!((warnings, config.sources.urls.len(), config.sources.public_keys.len()), (vec![], 2, 2));
    assert!(config.sources.strict_permissions);
}

#[test]
fn drop_ins_are_laid_over_the_file_and_flags_over_them() {
    let main = format!(
        "{KUBELET}maxPods: 9\nport: 1\nclusterDNS: [10.0.0.1, 10.0.0.2]\nstaticPodURL: http://main/\nhttpCheckFrequency: 5s
evictionHard: {{memory.available: 1Gi}}\nkubeReserved: {{cpu: 1m, memory: 1Mi}}\nhealthzPort: 7
---
apiVersion: coracle.dev/v1alpha1
kind: CoracleConfiguration
nodeLabels: {{site: north, rack: a}}
"
    );
    let site = format!(
        "{KUBELET}maxPods: 10\nclusterDNS: [10.0.0.3]\nstaticPodPath: /etc/site\nfileCheckFrequency: 3s
kubeReserved: {{memory: 2Mi}}\nhealthzPort: 0\nevictionHard: null
staticPodURLHeader: {{Metadata-Flavor: [Google], X: [a, b]}}
---
apiVersion: coracle.dev/v1alpha1
kind: CoracleConfiguration
nodeLabels: {{rack: null, floor: '2'}}
"
    );
    let late = format!("{KUBELET}maxPods: 11\nstaticPodURL: https://late/\nhttpCheckFrequency: 0s\n");
    let files =
        [File::main("config.yaml", &main), File::drop_in("10-site.conf", &site), File::drop_in("90-late.conf", &late)];
    let flags = Flags { port: Some(2), ..Flags::default() };
    let (config, warnings) = Config::resolve(&flags, &files, &facts()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!((config.max_pods, config.port, config.healthz_port), (11, 2, 0), "the last word, flags', and a zero");
    assert_eq!(config.cluster_dns, [IpAddr::from([10, 0, 0, 3])], "lists are replaced");
    assert_eq!((config.kube_reserved.cpu_milli, config.kube_reserved.memory), (1, 2 << 20), "mappings are merged");
    assert_eq!(config.eviction, reserve::Eviction::default(), "null brings the default back");
    assert_eq!(config.node_labels, BTreeMap::from([("site".into(), "north".into()), ("floor".into(), "2".into())]));
    assert_eq!(config.manifest_dir, PathBuf::from("/etc/site"));
    assert_eq!(config.file_check_frequency, Duration::from_secs(3));
    assert_eq!(config.sources.http_check_frequency, Duration::from_secs(20), "a zero counts, and means the default");
    let [url] = &config.sources.urls[..] else { panic!("{:?}", config.sources.urls) };
    assert_eq!(url.url, "https://late/");
    let headers: Vec<(&str, &str)> = url.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(headers, [("Metadata-Flavor", "Google"), ("X", "a"), ("X", "b")]);
    // Without a main file, they are all there is.
    let (config, _) = Config::resolve(&Flags::default(), &files[2..], &facts()).unwrap();
    assert_eq!((config.max_pods, config.port), (11, 10250));
}

#[test]
fn an_empty_manifest_path_keeps_the_one_before_and_says_so() {
    for value in ["''", "~"] {
        let (config, warnings) = resolve(&format!("{KUBELET}staticPodPath: {value}\n")).unwrap();
        assert_eq!(config.manifest_dir, PathBuf::from("/etc/kubernetes/manifests"));
        assert_eq!(warnings.len(), usize::from(value == "''"), "null is not there: {warnings:?}");
    }
}

#[test]
fn refusals_name_the_file_that_is_at_fault() {
    let main = format!("{KUBELET}maxPods: 9\nevictionHard: {{memory.available: 1Gi}}\nclusterDNS: [ten]\n");
    let said: Vec<String> = [
        ("maxpods: 3", None),
        ("clusterDNS: [10.0.0.1]\nevictionHard: {nodefs.available: lots}", None),
        ("clusterDNS: [10.0.0.1]\nevictionHard: {memory.free: 1Gi}", None),
        ("maxPods: 3", None),
        ("clusterDNS: null\nlogging: {format: xml}", None),
        ("clusterDNS: null\nstaticPodURL: ftp://x/", None),
        ("clusterDNS: null\nstaticPodURLHeader: {Authorization: Bearer secret}", None),
        ("clusterDNS: null\nstaticPodPath: x", None),
        ("", Some("")),
        ("", Some("# nothing\n---\n")),
        ("", Some("maxPods: 1\n")),
        ("", Some("apiVersion: kubelet.config.k8s.io/v1\nkind: KubeletConfiguration\n")),
        ("", Some("a: [")),
        ("", Some("apiVersion: coracle.dev/v1alpha1\nkind: CoracleConfiguration\nmanifestURLs: [{url: file}]\n")),
    ]
    .into_iter()
    .map(|(body, whole)| {
        let site = whole.map_or_else(|| format!("{KUBELET}{body}\n"), str::to_owned);
        let main = if whole.is_some() { "" } else { &main };
        refused(&Flags::default(), &[File::main("main.yaml", main), File::drop_in("site.conf", &site)])
    })
    .collect();
    expect![[r#"
        site.conf: KubeletConfiguration.maxpods: unknown field (did you mean maxPods?)
        site.conf: KubeletConfiguration.evictionHard: nodefs.available: "lots": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
        site.conf: KubeletConfiguration.evictionHard: "memory.free" is not an eviction signal
        main.yaml: KubeletConfiguration.clusterDNS[0]: "ten" is not an IP address
        site.conf: KubeletConfiguration.logging.format: "xml" is not text or json
        site.conf: KubeletConfiguration.staticPodURL: "ftp://x/" is not a URL that starts with http://, https:// or file:///
        site.conf: KubeletConfiguration.staticPodURLHeader.Authorization: want a list of texts, got text
        manifest directory (--pod-manifest-path, staticPodPath): x is not an absolute path
        site.conf: says nothing: apiVersion and kind are required
        site.conf: says nothing: apiVersion and kind are required
        site.conf: document 1: apiVersion and kind are required
        site.conf: document 1: KubeletConfiguration of kubelet.config.k8s.io/v1 is not known here: want KubeletConfiguration of kubelet.config.k8s.io/v1beta1 or CoracleConfiguration of coracle.dev/v1alpha1
        site.conf: not valid YAML: error: line 1 column 4: unclosed bracket '['
        site.conf: CoracleConfiguration.manifestURLs[0].url: "file" is not a URL that starts with http://, https:// or file:///"#]].assert_eq(&said.join("\n"));
}

#[test]
fn a_node_needs_a_usable_name() {
    for name in ["", "under_score", "-x", "a..b"] {
        let flags = Flags { hostname_override: Some(name.to_owned()), ..Flags::default() };
        assert!(Config::resolve(&flags, &[], &facts()).is_err(), "{name:?}");
    }
    assert!(Config::resolve(&Flags::default(), &[], &Facts { hostname: "(none)".into() }).is_err());
}

#[test]
fn a_run_dir_too_long_for_sockets_is_refused_now_and_not_when_a_pod_starts() {
    let flags = Flags { run_dir: Some(format!("/{}", "r".repeat(90)).into()), ..Flags::default() };
    let error = Config::resolve(&flags, &[], &facts()).unwrap_err().to_string();
    assert!(error.contains("too long for unix sockets"), "{error}");
}

#[test]
fn durations_and_sizes_read_as_go_reads_them() {
    assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
    assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
    assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
    assert_eq!(duration("0"), Ok(Duration::ZERO));
    for bad in ["", "5", "s", "-1s", "1d", "1s5", "1..5s", "99999999999h"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
    assert_eq!(quantity_bytes("10Mi"), Ok(10 << 20));
    assert_eq!(quantity_bytes("1.5k"), Ok(1500));
    for bad in ["", "Mi", "10MiB", "-1", "9999999Ti"] {
        assert!(quantity_bytes(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_pods_get_is_read_as_the_kubelet_reads_it() {
    let kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    let (config, warnings) = resolve(&format!(
        "{kubelet}
kubeReserved: {{cpu: 200m, memory: 256Mi}}
systemReserved: {{memory: 1Gi, pid: '500'}}
enforceNodeAllocatable: [none]
evictionHard: {{nodefs.available: 5%}}
evictionSoft: {{memory.available: 300Mi}}
evictionSoftGracePeriod: {{memory.available: 90s}}
evictionPressureTransitionPeriod: 30s
cpuCFSQuota: false
singleProcessOOMKill: true
memorySwap: {{swapBehavior: LimitedSwap}}
allowedUnsafeSysctls: [kernel.msg*]
"
    ))
    .unwrap();
    assert_eq!((config.kube_reserved.cpu_milli, config.system_reserved.pids), (200, 500));
    assert_eq!(config.kube_reserved.plus(config.system_reserved).memory, (1 << 30) + (256 << 20));
    assert!(!config.enforce_pods && config.single_process_oom_kill);
    assert_eq!(config.eviction.thresholds.len(), 2);
    assert_eq!(config.eviction.thresholds[1].grace, Some(Duration::from_secs(90)));
    assert_eq!(config.eviction.pressure_transition, Duration::from_secs(30));
    assert_eq!((config.cfs_period, config.allowed_unsafe_sysctls), (None, vec!["kernel.msg*".to_owned()]));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for (body, part) in [
        ("kubeReserved: {gpu: '1'}", "kubeReserved: cannot reserve \"gpu\""),
        ("kubeReserved: {cpu: 1}", "kubeReserved.cpu: want text, got a number"),
        ("evictionHard: {memory.free: 1Gi}", "evictionHard: \"memory.free\" is not an eviction signal"),
        (
            "evictionSoft: {memory.available: 1Gi}",
            "evictionSoft: memory.available: evictionSoftGracePeriod has no grace",
        ),
        ("enforceNodeAllocatable: [pod]", "enforceNodeAllocatable: \"pod\" is not a level"),
        ("cpuCFSQuotaPeriod: 2s", "cpuCFSQuotaPeriod: must be between 1ms and 1s"),
        ("imageGCHighThresholdPercent: 70", "imageGCLowThresholdPercent: must be less than"),
        ("memorySwap: {swapBehavior: All}", "memorySwap.swapBehavior: \"All\" is not"),
    ] {
        let error = refusal(body);
        assert!(error.contains(part), "{error}");
    }
}

proptest! {
    #[test]
    fn no_file_makes_resolve_panic(text in "\\PC{0,200}") {
        let _ = Config::resolve(&Flags::default(), &[File::main("a", &text), File::drop_in("b", &text)], &facts());
    }

    #[test]
    fn no_scalar_makes_a_parser_panic(text in "\\PC{0,20}") {
        let _ = (duration(&text), quantity_bytes(&text), text.parse::<PodCidr>(), value::labels(&text));
    }

    #[test]
    fn networks_read_back_as_written(bits in any::<u32>(), prefix in 1u8..=30) {
        let network = std::net::Ipv4Addr::from(bits & (u32::MAX << (32 - prefix)));
        let text = format!("{network}/{prefix}");
        prop_assert_eq!(text.parse::<PodCidr>().unwrap().to_string(), text);
    }
}

#[test]
fn manifest_urls_come_from_flags_and_both_documents() {
    let file = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodURL: http://first.example/pods
staticPodURLHeader: {X-Node: [a, b]}
httpCheckFrequency: 1m30s
---
apiVersion: coracle.dev/v1alpha1
kind: CoracleConfiguration
manifestURLs:
- url: https://second.example/x.tar.gz?site=7
  headers: {Authorization: [Bearer s3cret]}
  caFile: /etc/ca.pem
  clientCertFile: /etc/client.pem
  clientKeyFile: /etc/client.key
- url: file:///media/usb/pods.yaml
";
    let (config, warnings) = resolve(file).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.sources.http_check_frequency, Duration::from_secs(90));
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let [first, second, third] = &config.sources.urls[..] else { panic!("{:?}", config.sources.urls) };
    assert_eq!(first.url, "http://first.example/pods");
    assert_eq!(first.headers, [header("X-Node", "a"), header("X-Node", "b")]);
    assert_eq!(second.url, "https://second.example/x.tar.gz?site=7");
    assert_eq!(second.ca_file, Some(PathBuf::from("/etc/ca.pem")));
    assert_eq!(second.client_cert, Some((PathBuf::from("/etc/client.pem"), PathBuf::from("/etc/client.key"))));
    assert_eq!(*third, ManifestUrl { url: "file:///media/usb/pods.yaml".into(), ..ManifestUrl::default() });
    assert!(!format!("{config:?}").contains("s3cret"), "a header may be a credential");

    // Flags stand in the place of all of them.
    let flags = Flags {
        manifest_url: vec!["http://a.example/x".into(), "http://b.example/y".into()],
        manifest_url_header: vec!["X-A:1,X-B: 2".into(), "X-C:a:b".into()],
        ..Flags::default()
    };
    let (config, _) = Config::resolve(&flags, &[File::main("config.yaml", file)], &facts()).unwrap();
    let headers = [header("X-A", "1"), header("X-B", "2"), header("X-C", "a:b")];
    let urls: Vec<_> = config.sources.urls.iter().map(|url| (url.url.as_str(), &url.headers[..])).collect();
    assert_eq!(urls, [("http://a.example/x", &headers[..]), ("http://b.example/y", &headers[..])]);
}

#[test]
fn what_is_no_manifest_url_or_header_is_told_without_secrets() {
    let own = |body: &str| {
        let head = "apiVersion: coracle.dev/v1alpha1\nkind: CoracleConfiguration\n";
        let file = format!("{head}manifestURLs:\n- {body}\n");
        let said = refused(&Flags::default(), &[File::main("config.yaml", &file)]);
        said.strip_prefix("config.yaml: ").unwrap_or(&said).to_owned()
    };
    let flags = |urls: &[&str], headers: &[&str]| {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let flags = Flags { manifest_url: list(urls), manifest_url_header: list(headers), ..Flags::default() };
        refused(&flags, &[])
    };
    let text = [
        refusal("staticPodURL: ftp://host/x\n"),
        refusal("staticPodURLHeader: {X: text}\n"),
        refusal("staticPodURLHeader: {'X Y': [a]}\n"),
        own("{}"),
        own("{url: https://}"),
        own("{url: 'https://a b/'}"),
        own("{url: file://host/x}"),
        own("{url: http://h/x, caFile: ca.pem}"),
        own("{url: http://h/x, clientCertFile: /c.pem}"),
        own("{url: http://h/x, clientKeyFile: /c.key}"),
        own("{url: http://h/x, headers: {X: [\"s3cret\\n\"]}}"),
        flags(&["host/x"], &[]),
        flags(&[], &["X:s3cret"]),
        flags(&["http://h/x"], &["s3cret"]),
        flags(&["http://h/x"], &["X:s3cret\u{7f}"]),
    ]
    .join("\n");
    assert!(!text.contains("s3cret"), "{text}");
    expect![[r#"
        KubeletConfiguration.staticPodURL: "ftp://host/x" is not a URL that starts with http://, https:// or file:///
        KubeletConfiguration.staticPodURLHeader.X: want a list of texts, got text
        KubeletConfiguration.staticPodURLHeader.X Y: "X Y" is not the name of a header
        CoracleConfiguration.manifestURLs[0].url: required
        CoracleConfiguration.manifestURLs[0].url: "https://" is not a URL that starts with http://, https:// or file:///
        CoracleConfiguration.manifestURLs[0].url: "https://a b/" is not a URL that starts with http://, https:// or file:///
        CoracleConfiguration.manifestURLs[0].url: "file://host/x" is not a URL that starts with http://, https:// or file:///
        CoracleConfiguration.manifestURLs[0].caFile: "ca.pem" is not an absolute path
        CoracleConfiguration.manifestURLs[0].clientKeyFile: required with clientCertFile
        CoracleConfiguration.manifestURLs[0].clientCertFile: required with clientKeyFile
        CoracleConfiguration.manifestURLs[0].headers.X: the value of header X holds characters that cannot be sent
        --manifest-url: "host/x" is not a URL that starts with http://, https:// or file:///
        --manifest-url-header: goes with --manifest-url, which is not given
        --manifest-url-header: want NAME:VALUE, separated by commas
        --manifest-url-header: the value of header X holds characters that cannot be sent"#]]
    .assert_eq(&text);
}

#[test]
fn kubeadms_flags_are_taken_and_said_to_change_nothing() {
    let flags = Flags {
        rotate_certificates: Some(false),
        fail_swap_on: Some(true),
        container_runtime_endpoint: Some("unix:///run/none.sock".to_owned()),
        ..Flags::default()
    };
    let file = format!("{KUBELET}rotateCertificates: true\n");
    let facts = Facts { hostname: "edge-1".to_owned() };
    let (config, warnings) = Config::resolve(&flags, &[File::main("config.yaml", &file)], &facts).unwrap();
    assert!(!config.cluster.rotate_certificates, "flags count more");
    assert_eq!(warnings[0].field, "--container-runtime-endpoint, --fail-swap-on");
    assert!(
        resolve(&format!("{KUBELET}rotateCertificates: false\n")).is_ok_and(|(c, _)| !c.cluster.rotate_certificates)
    );
    assert!(resolve(KUBELET).is_ok_and(|(c, _)| c.cluster.rotate_certificates));
}

#[test]
fn who_may_use_the_node_is_read() {
    use server::Authorization;
    let read = |text: &str| resolve(&format!("apiVersion: {KUBELET_API_VERSION}\nkind: KubeletConfiguration\n{text}"));
    let (config, warnings) = read(
        "address: '::1'
port: 11250
readOnlyPort: 10255
authentication:
  anonymous: {enabled: true}
  webhook: {enabled: false, cacheTTL: 10s}
  x509: {clientCAFile: ''}
authorization: {mode: AlwaysAllow}
enableDebuggingHandlers: false
streamingConnectionIdleTimeout: 5m
tlsCertFile: /a
tlsPrivateKeyFile: /b
",
    )
    .unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.port, 11250);
    assert_eq!(
        config.server,
        Server {
            standalone: true,
            address: "::1".parse().unwrap(),
            tls_cert_file: Some("/a".into()),
            tls_private_key_file: Some("/b".into()),
            anonymous: true,
            token_webhook: None,
            authorization: Authorization::AlwaysAllow,
            read_only_port: 10255,
            debugging_handlers: false,
            streaming_idle: Duration::from_secs(300),
            ..Server::default()
        }
    );
    let server = |text: &str| read(text).unwrap().0.server;
    let (authorized, unauthorized) = (Duration::from_secs(60), Duration::from_secs(30));
    let webhook = server("authorization: {webhook: {cacheAuthorizedTTL: 1m, cacheUnauthorizedTTL: 0s}}\n");
    assert_eq!(webhook.authorization, Authorization::Webhook { authorized, unauthorized });
    assert_eq!(server("authentication: {webhook: {cacheTTL: 3s}}\n").token_webhook, Some(Duration::from_secs(3)));
    assert!(!server("address: 0.0.0.0\nserverTLSBootstrap: true\n").standalone);
    assert_eq!(read("enableServer: false\n").unwrap().0.port, 0);
    let flags = Flags {
        authorization_mode: Some(server::AuthorizationMode::Webhook),
        client_ca_file: Some("/ca".into()),
        ..Flags::default()
    };
    let flagged = Config::resolve(&flags, &[], &facts()).unwrap().0.server;
    assert_eq!(flagged, Server { standalone: true, client_ca_file: Some("/ca".into()), ..Server::default() });
}

#[test]
fn who_may_use_the_node_is_not_guessed() {
    let refused = [
        "authorization: {mode: RBAC}",
        "authentication: {anonymus: {}}",
        "authentication: {anonymous: {enabled: 'yes'}}",
        "authentication: {webhook: {cacheTTL: soon}}",
        "address: here",
        "port: 70000",
        "tlsCertFile: /a",
        "tlsCertFile: /a\ntlsPrivateKeyFile: /b\nserverTLSBootstrap: true",
        "readOnlyPort: 10250",
    ];
    let text: Vec<String> = refused.iter().map(|text| refusal(&format!("{text}\n"))).collect();
    expect![[r#"
        KubeletConfiguration.authorization.mode: "RBAC" is not Webhook or AlwaysAllow
        KubeletConfiguration.authentication.anonymus: unknown field (did you mean anonymous?)
        KubeletConfiguration.authentication.anonymous.enabled: want true or false, got text
        KubeletConfiguration.authentication.webhook.cacheTTL: "soon" is not a duration such as 300ms, 20s, 1h30m
        KubeletConfiguration.address: "here" is not an IP address
        KubeletConfiguration.port: 70000 is not between 0 and 65535
        tlsCertFile and tlsPrivateKeyFile: one is of no use without the other
        serverTLSBootstrap: tlsCertFile is set: which certificate is it to be?
        readOnlyPort: 10250 is the port already"#]]
    .assert_eq(&text.join("\n"));
}
