//! kubectl without a cluster: a lone node serves what kubectl needs of an API server.

use crate::harness::{BUSYBOX, Kubectl, Node, PATIENCE, eventually, free_port, mode, pod, resting};
use crate::kubectl_list as list;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A kubeconfig of the node.
#[track_caller]
fn kubeconfig(node: &Node, args: &[&str]) -> PathBuf {
    let path = node.dir.join(format!("kubeconfig{}", args.join("")));
    fs::write(&path, node.cli(&[&["kubeconfig"], args].concat()).ok()).expect("kubeconfig");
    path
}

fn kubectl(node: &Node, config: &Path) -> Kubectl<'static> {
    Kubectl::new(config, &node.dir.join("kubectl"), None)
}

/// A node that kubectl talks to.
fn served() -> (Node, Kubectl<'static>, u16) {
    let node = Node::up();
    let port = free_port();
    let config = kubeconfig(&node, &["--port", &port.to_string()]);
    let kubectl = kubectl(&node, &config);
    (node, kubectl, port)
}

fn manifest(node: &Node, file: &str) -> String {
    fs::read_to_string(node.manifest(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn kubectl_does_on_a_lone_node_what_it_does_in_a_cluster() {
    let (node, kubectl, _) = served();
    kubectl.run_with(&["apply", "-f", "-"], list::tools("tools").to_string().as_bytes()).ok();
    let pod = format!("tools-{}", node.name);
    eventually("all of it runs", 2 * PATIENCE, || list::is_up(&kubectl.get("pod", &pod)));
    list::logs(&kubectl, &pod);
    for (round, kubectl) in [(1, kubectl.clone()), (2, kubectl.by_spdy())] {
        list::exec(&kubectl, &pod);
        list::terminal(&kubectl, &pod);
        list::attach(&kubectl, &pod, round);
        list::copy(&kubectl, &pod, &node.dir);
        list::pipes(&kubectl, &pod);
        list::forward(&kubectl, &pod, 1 << 28, |id| node.init_pid(id));
    }
    list::top(&kubectl, &node.name, &pod);
    let top = kubectl.run(&["top", "pod", "tools", "--no-headers"]).ok();
    assert!(top.starts_with(&pod), "{top}");
    list::end(&kubectl, &pod);
    assert!(!node.manifest("default_tools.yaml").exists());
    node.finish();
}

#[test]
fn what_the_node_has_is_shown_as_an_api_server_shows_it() {
    let (node, kubectl, _) = served();
    let name = node.name.clone();
    node.apply("web.yaml", resting("web"));
    node.apply("settings.yaml", json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "shop"}, "data": {"a": "b"},
    }));
    let pod = format!("web-{name}");
    kubectl.run(&["wait", "--for=create", "pod/web", "--timeout=30s"]).ok();
    kubectl.run(&["wait", "--for=condition=Ready", "pod/web", "--timeout=30s"]).ok();

    let table = kubectl.run(&["get", "pods"]).ok();
    assert!(table.starts_with("NAME") && table.contains("READY   STATUS    RESTARTS   AGE"), "{table}");
    let wide = kubectl.run(&["get", "pods", "-A", "-o", "wide", "--show-labels"]).ok();
    for word in ["NAMESPACE", "NOMINATED NODE", "READINESS GATES", "LABELS", &pod, &name] {
        assert!(wide.contains(word), "{word}: {wide}");
    }
    assert_eq!(kubectl.run(&["get", "pods", "-o", "name"]).ok(), format!("pod/{pod}\n"));
    // A pod is told under the name that was asked for.
    assert_eq!(kubectl.run(&["get", "pod", "web", "-o", "name"]).ok(), "pod/web\n");
    assert_eq!(kubectl.run(&["get", "pods", "--field-selector=metadata.name=web", "-o", "name"]).ok(), "pod/web\n");
    assert_eq!(kubectl.run(&["get", "pods", "-l", "app in (a,b),!c", "-o", "name"]).ok(), "");
    assert!(kubectl.run(&["get", "pods", "-l", "app ~ a"]).fails(1).contains("unable to parse requirement"));
    assert!(kubectl.run(&["get", "pods", "--field-selector=spec.color=red"]).fails(1).contains("not supported"));
    for (args, wanted) in [
        (&["get", "nodes"][..], "Ready"),
        (&["get", "ns"], "shop"),
        (&["get", "configmaps", "-n", "shop"], "settings"),
        (&["get", "all"], "web-"),
        (&["get", "events"], "Started"),
        (&["get", "events.events.k8s.io"], "Started"),
        (&["events", "--for", "pod/web"], "Started"),
        (&["describe", "pod", "web"], "Started"),
        (&["describe", "node"], "Non-terminated Pods:          (1 in total)"),
        (&["describe", "configmap", "settings", "-n", "shop"], "Data"),
        (&["api-resources"], "PodMetrics"),
        (&["api-versions"], "events.k8s.io/v1"),
        (&["version"], "Server Version: v1.36"),
        (&["auth", "whoami"], "coracle:admins"),
        (&["auth", "can-i", "create", "pods/exec"], "yes"),
        (&["auth", "can-i", "--list"], "pods/exec"),
        (&["get", "--raw", "/readyz"], "ok"),
    ] {
        let said = kubectl.run(args).ok();
        assert!(said.contains(wanted), "{args:?}: {said}");
    }
    // No object of a kind that is not there, no path that is not.
    assert!(kubectl.run(&["get", "deployments"]).fails(1).contains("doesn't have a resource type"));
    for path in ["/coracle/v1/status", "/metrics", "/api/v1/services", "/apis/apps/v1/deployments", "/else"] {
        assert!(kubectl.run(&["get", "--raw", path]).fails(1).contains("NotFound"), "{path}");
    }
    // In parts, too.
    let part: Value =
        serde_json::from_str(&kubectl.run(&["get", "--raw", "/api/v1/events?limit=1"]).ok()).expect("JSON");
    assert_eq!(part["items"].as_array().map(Vec::len), Some(1));
    let token = part["metadata"]["continue"].as_str().expect("more");
    let rest = kubectl.run(&["get", "--raw", &format!("/api/v1/events?continue={token}")]).ok();
    let rest: Value = serde_json::from_str(&rest).expect("JSON");
    assert_eq!(
        rest["items"].as_array().map(Vec::len).map(|n| n as u64),
        part["metadata"]["remainingItemCount"].as_u64()
    );

    // A watch tells what comes and goes.
    let watch = kubectl.start(&["get", "pods", "-w", "--output-watch-events"]);
    watch.until(&format!("ADDED      {pod}"));
    node.apply("more.yaml", resting("more"));
    watch.until(&format!("ADDED      more-{name}"));
    node.remove("more.yaml");
    watch.until(&format!("DELETED    more-{name}"));
    drop(watch);
    node.remove("web.yaml");
    node.remove("settings.yaml");
    node.wait_gone("web");
    node.finish();
}

#[test]
fn what_kubectl_writes_is_a_manifest() {
    let (node, kubectl, _) = served();
    let with = |args: &[&str], text: &Value| kubectl.run_with(args, text.to_string().as_bytes());
    let file = "default_web.yaml";
    let mut web = resting("web");
    web["metadata"]["labels"] = json!({"app": "web"});

    // Nothing is written by a dry run, and nothing that coracle would refuse.
    assert!(with(&["apply", "-f", "-", "--dry-run=server"], &web).ok().contains("created (server dry run)"));
    let mut bad = web.clone();
    bad["spec"]["containers"][0]["imgae"] = json!("x");
    let refused = with(&["create", "-f", "-"], &bad).fails(1);
    assert!(refused.contains("imgae"), "{refused}");
    assert!(fs::read_dir(node.manifest("x").parent().expect("folder")).expect("folder").next().is_none());

    assert_eq!(with(&["apply", "-f", "-"], &web).ok(), "pod/web created\n");
    assert_eq!(mode(&node.manifest(file)), 0o600);
    let up = node.wait_up("web");
    assert_eq!(with(&["apply", "-f", "-"], &web).ok(), "pod/web unchanged\n");
    assert!(with(&["create", "-f", "-"], &web).fails(1).contains("AlreadyExists"));
    assert_eq!(with(&["diff", "-f", "-"], &web).code, Some(0));

    kubectl.run(&["delete", "pod", "web", "--dry-run=server"]).ok();
    assert!(node.manifest(file).exists());

    // One that makes room for its next version is deleted like any other.
    let mut slow = pod("slow", "trap '' TERM; sleep 1000");
    slow["spec"]["terminationGracePeriodSeconds"] = json!(5);
    with(&["apply", "-f", "-"], &slow).ok();
    node.wait_up("slow");
    kubectl.run(&["label", "pod", "slow", "next=version"]).ok();
    kubectl.run(&["delete", "pod", "slow"]).ok();
    assert!(!node.manifest("default_slow.yaml").exists());
    node.wait("it is gone for good", PATIENCE, |pods| pods.iter().all(|pod| pod.name() != "slow"));

    // Another version of it replaces the one that runs.
    web["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "1"}]);
    assert_eq!(with(&["apply", "-f", "-"], &web).ok(), "pod/web configured\n");
    node.wait_pod("web", "the new version runs", |pod| pod.up() && pod.uid() != up.uid());
    assert!(manifest(&node, file).contains("env:"));
    for (args, wanted) in [
        (&["label", "pod", "web", "tier=front"][..], "tier: front"),
        (&["annotate", "pod", "web", "note=x"], "note: x"),
        (
            &[
                "patch",
                "pod",
                "web",
                "-p",
                r#"{"spec":{"containers":[{"name":"main","env":[{"name":"B","value":"2"}]}]}}"#,
            ],
            "name: B",
        ),
        (&["patch", "pod", "web", "--type=merge", "-p", r#"{"spec":{"hostname":"merged"}}"#], "hostname: merged"),
        (
            &[
                "patch",
                "pod",
                "web",
                "--type=json",
                "-p",
                r#"[{"op":"replace","path":"/spec/hostname","value":"patched"}]"#,
            ],
            "hostname: patched",
        ),
    ] {
        kubectl.run(args).ok();
        let text = manifest(&node, file);
        assert!(text.contains(wanted), "{args:?}: {text}");
    }
    assert!(manifest(&node, file).contains("name: A"), "the patch of a list merges it");
    let before = manifest(&node, file);
    kubectl.run(&["patch", "pod", "web", "-p", r#"{"spec":{"hostname":"-bad-"}}"#]).fails(1);
    kubectl.run(&["patch", "pod", "web", "--type=json", "-p", r#"[{"op":"remove","path":"/spec/none"}]"#]).fails(1);
    assert_eq!(manifest(&node, file), before, "what is refused changes nothing");
    // The whole of it, as it was shown.
    let mut shown = kubectl.get("pod", "web");
    shown["metadata"]["labels"]["tier"] = json!("back");
    shown["metadata"].as_object_mut().expect("map").remove("resourceVersion");
    shown["metadata"].as_object_mut().expect("map").remove("uid");
    with(&["replace", "-f", "-"], &shown).ok();
    let text = manifest(&node, file);
    assert!(text.contains("tier: back") && !text.contains("\nstatus:") && !text.contains("config.hash:"), "{text}");
    shown["metadata"]["resourceVersion"] = json!("1");
    assert!(with(&["replace", "-f", "-"], &shown).fails(1).contains("Conflict"));

    // Server-side apply does not take over what others wrote, unless it is told to.
    let own = resting("web");
    let conflict = with(&["apply", "--server-side", "-f", "-"], &own).fails(1);
    assert!(conflict.contains("conflict"), "{conflict}");
    with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &own).ok();
    assert!(!manifest(&node, file).contains("env:"), "{}", manifest(&node, file));
    with(&["apply", "--server-side", "-f", "-"], &own).ok();

    // A person's file is changed where it is, and left alone when it holds more.
    let both = format!("{}\n---\n{}\n", resting("one"), resting("two"));
    node.apply("people.yaml", &both);
    node.wait_up("one");
    assert!(kubectl.run(&["delete", "pod", "one"]).fails(1).contains("also defines"));
    assert!(kubectl.run(&["label", "pod", "one", "a=b"]).fails(1).contains("also defines"));
    node.remove("people.yaml");
    node.apply("people.json", resting("one"));
    node.wait_up("one");
    kubectl.run(&["label", "pod", "one", "a=b"]).ok();
    let text: Value = serde_json::from_str(&manifest(&node, "people.json")).expect("JSON stays JSON");
    assert_eq!(text["metadata"]["labels"], json!({"a": "b"}));

    // ConfigMaps and Secrets, whose values nobody is shown.
    let settings =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "b"}});
    with(&["apply", "-f", "-"], &settings).ok();
    let meta = json!({"name": "password"});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"p": "aHVudGVyMg=="}});
    with(&["create", "-f", "-"], &secret).ok();
    eventually("the secret is there", PATIENCE, || kubectl.run(&["get", "secret", "password"]).code == Some(0));
    assert_eq!(kubectl.get("secret", "password")["data"], json!({"p": "KioqKioqKg=="}));
    assert!(kubectl.run(&["describe", "secret", "password"]).ok().contains("7 bytes"));
    kubectl.run(&["label", "secret", "password", "a=b"]).ok();
    assert!(manifest(&node, "secret_default_password.yaml").contains("aHVudGVyMg=="));
    // What is shown in place of a value is none.
    let renamed = r#"{"data":{"p":null,"q":"KioqKioqKg=="}}"#;
    assert!(kubectl.run(&["patch", "secret", "password", "-p", renamed]).fails(1).contains("data.q"));
    assert!(manifest(&node, "secret_default_password.yaml").contains("aHVudGVyMg=="));
    kubectl.run(&["delete", "configmap/settings", "secret/password"]).ok();

    // A run of its own, to its end.
    let run = ["run", "once", "--image", BUSYBOX, "--restart=Never", "--stdin", "--rm", "--quiet", "--", "cat"];
    assert_eq!(kubectl.run_with(&run, b"hi\n").ok(), "hi\n");
    kubectl.run(&["delete", "pods", "--all", "--timeout=60s"]).ok();
    for name in ["web", "one", "once"] {
        node.wait_gone(name);
    }
    assert!(fs::read_dir(node.manifest("x").parent().expect("folder")).expect("folder").next().is_none());
    node.finish();
}

#[test]
fn nobody_is_served_without_a_certificate_of_the_node() {
    let (mut node, admin, port) = served();
    node.apply("web.yaml", resting("web"));
    node.wait_up("web");
    let reader = kubectl(&node, &kubeconfig(&node, &["--read-only"]));
    for args in [
        &["get", "pods,nodes,events,configmaps,secrets,ns"][..],
        &["logs", "web"],
        &["describe", "pod", "web"],
        &["top", "node"],
        &["auth", "whoami"],
    ] {
        reader.run(args).ok();
    }
    let forbidden = [
        &["exec", "web", "--", "true"][..],
        &["attach", "web"],
        &["port-forward", "web", ":80"],
        &["cp", "/etc/hostname", "web:/tmp/x"],
        &["delete", "pod", "web"],
        &["label", "pod", "web", "a=b"],
        &["run", "more", "--image", BUSYBOX],
    ];
    for args in forbidden {
        for kubectl in [reader.clone(), reader.by_spdy()] {
            let said = kubectl.run(args).fails(1);
            assert!(said.contains("Forbidden") || said.contains("forbidden"), "{args:?}: {said}");
        }
    }
    assert!(reader.run(&["auth", "can-i", "create", "pods/exec"]).fails(1).contains("no"));
    // Nor is anybody taken for somebody else.
    for who in [&["--as", "nobody"][..], &["--as", "nobody", "--as-group", "coracle:admins"]] {
        let said = admin.run(&[&["get", "pods"], who].concat()).fails(1);
        assert!(said.contains("cannot impersonate resource"), "{said}");
    }

    // Who shows no certificate, or one of another authority, is told nothing.
    let nobody = node.dir.join("nobody");
    fs::copy(node.dir.join("kubeconfig--read-only"), &nobody).expect("copy");
    let stranger = kubectl(&node, &nobody);
    let user = format!("users.{}-reader", node.name);
    stranger.run(&["config", "unset", &format!("{user}.client-certificate-data")]).ok();
    stranger.run(&["config", "unset", &format!("{user}.client-key-data")]).ok();
    for path in ["/api", "/version", "/healthz", "/api/v1/pods", "/else"] {
        // Without a token it would ask for a name.
        let said = stranger.run(&["--token", "nobody", "get", "--raw", path]).fails(1);
        assert!(said.contains("Unauthorized") || said.contains("provide credentials"), "{path}: {said}");
    }

    // It is served again after a restart, where it was, to whom it was.
    node.restart();
    eventually("the local API is served again", PATIENCE, || admin.run(&["get", "pods"]).code == Some(0));
    let again = kubectl(&node, &kubeconfig(&node, &[]));
    assert!(again.run(&["config", "view"]).ok().contains(&format!("127.0.0.1:{port}")));
    // Until that is taken back: what was issued counts no more, also when it is served again.
    let inside = [again.clone(), again.by_spdy()].map(|kubectl| {
        let running = kubectl.start(&["exec", "web", "--", "sh", "-c", "echo inside; sleep 1000"]);
        running.until("inside");
        running
    });
    node.cli(&["kubeconfig", "--revoke"]).ok();
    // With whatever code: kubectl takes the end of a SPDY connection for the command's.
    for running in inside {
        running.ends();
    }
    admin.run(&["get", "pods"]).fails(1);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    let anew = kubectl(&node, &kubeconfig(&node, &["--port", &port.to_string()]));
    anew.run(&["get", "pods"]).ok();
    let old = node.dir.join("kubeconfig");
    assert!(kubectl(&node, &old).run(&["get", "pods"]).code != Some(0), "{}", old.display());

    // A node can be configured to have nothing changed, whoever asks.
    node.stop();
    node.configure(json!({}));
    let own =
        json!({"apiVersion": "coracle.dev/v1alpha1", "kind": "CoracleConfiguration", "localAPI": {"readOnly": true}});
    fs::write(node.dir.join("config.yaml"), own.to_string()).expect("config");
    node.start();
    eventually("it is served", PATIENCE, || anew.run(&["get", "pods"]).code == Some(0));
    anew.run(&["exec", "web", "--", "true"]).ok();
    assert!(anew.run(&["delete", "pod", "web"]).fails(1).contains("forbidden"));
    node.remove("web.yaml");
    node.wait_gone("web");
    node.finish();
}
