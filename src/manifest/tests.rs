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

fn read(text: &str) -> Loaded {
    load(text.as_bytes(), Origin::File("/etc/kubernetes/manifests/pod.yaml"), "Edge1")
}

fn problems(loaded: &Loaded) -> String {
    loaded.problems.iter().map(|problem| format!("{problem}\n")).collect()
}

fn check_problems(text: &str, expected: &Expect) {
    expected.assert_eq(&problems(&read(text)));
}

/// A pod with these lines in its one container.
fn with_container(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("      {line}\n")).collect();
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers:\n    - name: c\n      image: app:1\n{lines}")
}

/// A pod with these lines in its spec.
fn with_spec(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers: [{{name: c, image: \"app:1\"}}]\n{lines}")
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
        assert!(!loaded.has_errors(), "{name}: {}", problems(&loaded));
        let pod = &loaded.pods[0];
        assert_eq!(pod.metadata.name.as_deref(), Some(format!("{name}-edge1").as_str()));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("kube-system"));
        let ports = pod.spec.as_ref().unwrap().containers[0].ports.as_ref().unwrap();
        assert_eq!(ports[0].host_port, Some(port), "host port under hostNetwork");
        assert!(loaded.problems.iter().all(|problem| problem.field.ends_with("Probe")), "{}", problems(&loaded));
    }
    check_problems(
        ETCD,
        &expect![[r#""#]],
    );
}

#[test]
fn each_document_stands_alone() {
    let loaded = read(SEVERAL);
    let names: Vec<_> = loaded.pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    assert_eq!(names, ["first-edge1", "second-edge1"]);
    expect![[r#""#]].assert_eq(&problems(&loaded));
    let bad = loaded.problems.iter().find(|problem| problem.field.ends_with("image")).unwrap();
    assert_eq!(bad.pod, Some(("default".to_owned(), "bad-edge1".to_owned())));
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    check_problems(corpus!("bad/everything.yaml"), &expect![[r#""#]]);
}

#[test]
fn references_to_the_api_are_refused() {
    check_problems(corpus!("bad/references.yaml"), &expect![[r#""#]]);
}

#[test]
fn what_is_not_implemented_is_refused() {
    check_problems(corpus!("bad/unsupported.yaml"), &expect![[r#""#]]);
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
fn json_problems_have_lines() {
    let json = "{\n \"apiVersion\": \"v1\",\n \"kind\": \"Pod\",\n \"metadata\": {\"name\": \"p\"},\n \"spec\": {\"containers\": [\n  \
                {\"name\": \"c\",\n   \"image\": 7}]}}";
    check_problems(json, &expect![[r#""#]]);
    check_problems("{\"apiVersion\": \"v1\",\n \"kind\" \"Pod\"}", &expect![[r#""#]]);
    check_problems("{\"a\": 1,\n\"a\": 2}", &expect![[r#""#]]);
    check_problems("{\"a\": \"\\ud800\"}", &expect![[r#""#]]);
    check_problems(&format!("{{\"a\": {}", "[".repeat(100_000)), &expect![[r#""#]]);
    check_problems(&format!("{{\"a\": {}{}}}", "[".repeat(1000), "]".repeat(1000)), &expect![[r#""#]]);
}

#[test]
fn what_is_no_manifest_is_told_precisely() {
    check_problems("", &expect![[r#""#]]);
    check_problems("# only a comment\n---\n", &expect![[r#""#]]);
    check_problems("- a\n", &expect![[r#""#]]);
    check_problems("kind: Pod\n", &expect![[r#""#]]);
    check_problems("apiVersion: v1\nkind: [Pod]\n", &expect![[r#""#]]);
    check_problems("apiVersion: v1\nkind: Pod\nkind: Pod\n", &expect![[r#""#]]);
    check_problems("apiVersion: v1\nkind: Pod\n  x: y\n", &expect![[r#""#]]);
    check_problems("a: *nowhere\n", &expect![[r#""#]]);
    check_problems("a: \"unclosed\n", &expect![[r#""#]]);
    check_problems("apiVersion: v1\nkind: List\nitems: 5\n", &expect![[r#""#]]);
    check_problems("apiVersion: v1\nkind: Pod\nspec: nginx\n", &expect![[r#""#]]);
    let garbage = load(b"a: b\n\x7fELF\x02\xff\xfe", Origin::Url("http://x"), "n");
    expect![[r#""#]].assert_eq(&problems(&garbage));
    let long = load(&vec![b'#'; MAX_BYTES], Origin::File("x"), "n");
    expect![[r#""#]].assert_eq(&problems(&long));
}

#[test]
fn bombs_are_defused() {
    let laughs = (1..10).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        format!("{text}a{level}: &a{level} [{aliases}]\n")
    });
    check_problems(&laughs, &expect![[r#""#]]);
    let text = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 1000].join(","));
    check_problems(&text, &expect![[r#""#]]);
    check_problems(&format!("a: {}", "[".repeat(100_000)), &expect![[r#""#]]);
    let steps: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    check_problems(&steps, &expect![[r#""#]]);
    check_problems(&format!("a: [{}]", "1,".repeat(300_000)), &expect![[r#""#]]);
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
        &with_container("env:\n  - {name: PORT, value: 8080}\n  - {name: ON, value: on}\n  - {name: NIL, value: ~}\n  - {name: L, value: [a]}"),
        &expect![[r#""#]],
    );
    check_problems(&with_container("args: [1, 2.5, true, x]\ntty: \"true\"\nports: {}"), &expect![[r#""#]]);
    check_problems(&with_container("ports: [{containerPort: \"80\"}, {containerPort: 4294967296}, {containerPort: 80.5}]"), &expect![[r#""#]]);
    check_problems(&with_container("resources: {limits: {cpu: [1], memory: true}}"), &expect![[r#""#]]);
}

#[test]
fn unknown_fields_are_told_with_what_was_meant() {
    check_problems(
        &with_container("imagePullpolicy: Never\nvolumeMount: []\nxyz: 1\nenv: [{name: A, valeu: x}]"),
        &expect![[r#""#]],
    );
    check_problems("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspce: {}\n", &expect![[r#""#]]);
}

#[test]
fn server_fields_are_told_and_dropped() {
    let text = STATIC_WEB.replace(
        "metadata:\n",
        "metadata:\n  creationTimestamp: null\n  resourceVersion: \"5\"\n  ownerReferences: [{apiVersion: v1, kind: Node, name: n, uid: u}]\n  \
         annotations: {kubernetes.io/config.mirror: abc, kubernetes.io/config.hash: abc}\n",
    );
    let loaded = read(&format!("{text}status: {{phase: Running}}\n"));
    expect![[r#""#]].assert_eq(&problems(&loaded));
    assert_eq!(loaded.pods, read(STATIC_WEB).pods);
}

#[test]
fn specs_are_checked() {
    check_problems(&with_spec("dnsConfig: {nameservers: [x, 1.1.1.1, 1.1.1.1, 1.1.1.1]}\nhostAliases: [{ip: y, hostnames: [A]}]"), &expect![[r#""#]]);
    check_problems(&with_spec("activeDeadlineSeconds: 0\nrestartPolicy: never\ndnsPolicy: x"), &expect![[r#""#]]);
    check_problems(&with_spec("volumes: [{name: A_b}, {hostPath: {}}, {name: r, hostPath: {path: srv}}]"), &expect![[r#""#]]);
    check_problems("apiVersion: v1\nkind: Pod\nmetadata: {}\n", &expect![[r#""#]]);
}

#[test]
fn the_uid_depends_on_content_and_origin_only() {
    let uid = |text: &str, origin, node| load(text.as_bytes(), origin, node).pods[0].metadata.uid.clone().unwrap();
    let (file, url) = (Origin::File("/m/a.yaml"), Origin::Url("http://x/a.yaml"));
    let base = uid(STATIC_WEB, file, "n1");
    assert_eq!(base.len(), 32);
    assert_eq!(base, uid(&STATIC_WEB.replace("          protocol: TCP\n", "# the default\n"), file, "N1"));
    assert_ne!(base, uid(STATIC_WEB, Origin::File("/m/b.yaml"), "n1"));
    assert_ne!(base, uid(STATIC_WEB, file, "n2"));
    assert_ne!(base, uid(&STATIC_WEB.replace("80", "81"), file, "n1"));
    assert_eq!(uid(STATIC_WEB, url, "n1"), uid(STATIC_WEB, url, "n2"), "the same pod on all nodes");
    let given = STATIC_WEB.replace("metadata:\n", "metadata:\n  uid: 5b5f8a1e-7a3c-4c3a-9f0e-2f6f3f1c9a77\n");
    assert_eq!(uid(&given, file, "n1"), "5b5f8a1e-7a3c-4c3a-9f0e-2f6f3f1c9a77");
}

#[test]
fn only_file_pods_get_a_toleration() {
    let url = load(STATIC_WEB.as_bytes(), Origin::Url("http://x"), "n");
    assert_eq!(url.pods[0].spec.as_ref().unwrap().tolerations, None);
    assert_eq!(url.pods[0].metadata.annotations.as_ref().unwrap()["kubernetes.io/config.source"], "http");
}

const CORPUS: [&str; 10] = [
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
];

/// A manifest of the corpus with pieces cut out, doubled, overwritten or moved.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), 0usize..40, prop::collection::vec(any::<u8>(), 0..8), any::<prop::sample::Index>());
    (prop::sample::select(&CORPUS[..]), prop::collection::vec(edit, 1..6)).prop_map(|(text, edits)| {
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
        prop_assert!(!loaded.pods.is_empty() || loaded.has_errors());
    }

    #[test]
    fn mutated_manifests_load(bytes in mutated()) {
        let first = load(&bytes, Origin::File("f"), "n");
        prop_assert_eq!(&first, &load(&bytes, Origin::File("f"), "n"), "not deterministic");
        prop_assert!(!first.pods.is_empty() || first.has_errors() || std::str::from_utf8(&bytes).is_ok_and(|text| text.contains("items")));
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
