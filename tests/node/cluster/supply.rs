//! What bound pods are made from: objects, tokens and services of the API server.

use super::Plane;
use super::plane::program;
use crate::harness::{BUSYBOX, Node, PATIENCE, REST, eventually, image_archive, mode, output};
use crate::registry_server::{Auth, PASSWORD, Registry, USER};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A node that is Ready, with these fields of ours. That the machine's disk is nearly full is not what it is about.
#[track_caller]
fn up(plane: &Plane, own: &Value) -> Node {
    let mut node = plane.node();
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%" },
        "imageGCHighThresholdPercent": 99, "imageGCLowThresholdPercent": 98,
    });
    let mut ours = own.clone();
    ours["apiVersion"] = json!("coracle.dev/v1alpha1");
    ours["kind"] = json!("CoracleConfiguration");
    let path = node.dir.join("config.yaml");
    fs::write(&path, format!("{kubelet}\n---\n{ours}")).expect("config");
    node.args.extend(["--config".to_owned(), path.display().to_string()]);
    node.start();
    node.wait_for_images();
    plane.wait_node_ready(&node);
    plane.uncordon(&node);
    node
}

/// A pod that the test binds itself.
fn bound(node: &Node, namespace: &str, name: &str, mut spec: Value) -> Value {
    spec["nodeName"] = json!(node.name);
    spec["terminationGracePeriodSeconds"] = json!(1);
    let main = &mut spec["containers"][0];
    main["name"] = json!("main");
    if main["image"].is_null() {
        main["image"] = json!(BUSYBOX);
    }
    main["command"] = json!(["sh", "-c", REST]);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": namespace }, "spec": spec })
}

fn object(kind: &str, namespace: &str, name: &str, data: &Value) -> Value {
    let field = if kind == "Secret" { "stringData" } else { "data" };
    json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": namespace }, field: data })
}

/// What a shell in the pod says.
#[track_caller]
fn sh(node: &Node, namespace: &str, pod: &str, script: &str) -> String {
    node.cli(&["exec", "-n", namespace, pod, "--", "sh", "-c", script]).ok()
}

#[track_caller]
fn wait_up(node: &Node, namespace: &str, name: &str) {
    let up = |pods: &[crate::harness::PodView]| {
        pods.iter().any(|pod| pod.0["metadata"]["namespace"] == namespace && pod.name() == name && pod.up())
    };
    node.wait(&format!("{namespace}/{name} runs"), 2 * PATIENCE, up);
}

/// What its variables are, once it runs anew.
#[track_caller]
fn variables(node: &Node, namespace: &str, pod: &str) -> String {
    let mut env = String::new();
    eventually(&format!("{namespace}/{pod} runs"), 2 * PATIENCE, || {
        let out = node.cli(&["exec", "-n", namespace, pod, "--", "env"]);
        env = out.stdout;
        out.code == Some(0)
    });
    env
}

/// A line of what `env` says.
fn has(env: &str, line: &str) -> bool {
    env.lines().any(|other| other == line)
}

/// Goes with the test.
struct Scratch(std::path::PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// All that is on the disk of what pods are made from.
fn kept(node: &Node) -> String {
    let files = fs::read_dir(node.dir.join("root/cluster/objects")).into_iter().flatten().flatten();
    files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect()
}

#[test]
fn a_bound_pod_is_made_from_what_the_api_server_has() {
    let plane = Plane::shared();
    let ns = plane.namespace("supply");
    plane.apply(&object("ConfigMap", &ns, "settings", &json!({ "color": "blue", "shape": "round" })));
    plane.apply(&object("Secret", &ns, "login", &json!({ "password": "s3cret" })));
    plane.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "my-web", "namespace": &*ns },
        "spec": { "selector": { "app": "none" }, "ports": [{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }] },
    }));
    let ip = plane.get("Service", &ns, "my-web")["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    // After the service: what of it a pod sees is decided when its container starts.
    let node = up(plane, &json!({}));
    // A static pod of the same namespace sees nothing of it, and the bound one nothing of the node's own objects.
    node.apply(
        "local.yaml",
        format!("{}\n---\n{}", object("ConfigMap", &ns, "local", &json!({ "color": "red" })), {
            let mut pod = crate::harness::resting("lone");
            pod["metadata"]["namespace"] = json!(&*ns);
            pod["spec"]["containers"][0]["envFrom"] = json!([
            { "configMapRef": { "name": "settings", "optional": true } }, { "configMapRef": { "name": "local" } }]);
            pod
        }),
    );
    let user = json!({ "runAsUser": 1234, "fsGroup": 4242 });
    plane.apply(&bound(&node, &ns, "full", json!({
        "securityContext": user,
        "containers": [{
            "envFrom": [{ "configMapRef": { "name": "settings" }, "prefix": "MAP_" }, { "configMapRef": { "name": "local", "optional": true } }],
            "env": [
                { "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "login", "key": "password" } } },
                { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                { "name": "WEB", "value": "$(MY_WEB_SERVICE_HOST):$(MY_WEB_SERVICE_PORT_HTTP)" },
                { "name": "MY_WEB_PORT_80_TCP_PROTO", "value": "own" },
            ],
            "volumeMounts": [{ "name": "map", "mountPath": "/map" }, { "name": "secret", "mountPath": "/secret" }, { "name": "down", "mountPath": "/down" }],
        }],
        "volumes": [
            { "name": "map", "configMap": { "name": "settings", "items": [{ "key": "color", "path": "deep/color" }] } },
            { "name": "secret", "secret": { "secretName": "login", "defaultMode": 256 } },
            { "name": "down", "downwardAPI": { "items": [{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
        ],
    })));
    wait_up(&node, &ns, "full");
    let run = |script: &str| sh(&node, &ns, "full", script);
    let env = run("env");
    for line in [
        "MAP_color=blue",
        "MAP_shape=round",
        "PASSWORD=s3cret",
        &format!("NODE={}", node.name),
        &format!("WEB={ip}:80"),
        &format!("MY_WEB_SERVICE_HOST={ip}"),
        "MY_WEB_SERVICE_PORT=80",
        "MY_WEB_SERVICE_PORT_DNS=53",
        &format!("MY_WEB_PORT=tcp://{ip}:80"),
        &format!("MY_WEB_PORT_53_UDP=udp://{ip}:53"),
        "MY_WEB_PORT_80_TCP_PROTO=own",
        "KUBERNETES_SERVICE_HOST=10.200.0.1",
        "KUBERNETES_SERVICE_PORT_HTTPS=443",
    ] {
        assert!(has(&env, line), "{line} is not in\n{env}");
    }
    assert!(!env.contains("red"), "{env}");
    assert_eq!(run("cat /map/deep/color /secret/password /down/name"), "blues3cretfull");
    let lone = format!("lone-{}", node.name);
    wait_up(&node, &ns, &lone);
    let env = sh(&node, &ns, &lone, "env");
    assert!(has(&env, "color=red") && !env.contains("shape") && !env.contains("SERVICE"), "{env}");

    // The API's own projected volume: its token is good at the API server, is the pod's, and only its user's.
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(run(&format!("cat {folder}/namespace")), *ns);
    assert!(run(&format!("cat {folder}/ca.crt")).contains("BEGIN CERTIFICATE"));
    assert_eq!(run(&format!("stat -L -c '%a %u %g' {folder}/token {folder}/namespace")), "640 1234 4242\n644 0 4242\n");
    let token = run(&format!("cat {folder}/token"));
    // Without the administrator's certificate, which would come first.
    let bare = plane.dir.join(format!("{}-bare.conf", node.name));
    let text = fs::read_to_string(plane.dir.join("admin.conf")).expect("kubeconfig");
    let mut config: Value = serde_yaml::from_str(&text).expect("YAML");
    config["users"][0]["user"] = json!({ "token": token });
    fs::write(&bare, config.to_string()).expect("kubeconfig");
    let mut command = program("kubectl");
    command.arg("--kubeconfig").arg(&bare).args(["auth", "whoami", "-o", "json"]);
    let who = plane.inside(|| output(&mut command, b"", PATIENCE)).ok();
    assert!(who.contains(&format!("system:serviceaccount:{ns}:default")), "{who}");
    assert!(who.contains("\"full\""), "bound to the pod: {who}");

    // Files follow an edit, variables do not.
    plane.patch("ConfigMap", &ns, "settings", &json!({ "data": { "color": "green" } }));
    plane.patch("Secret", &ns, "login", &json!({ "stringData": { "password": "n3w" } }));
    eventually("the files follow", PATIENCE, || run("cat /map/deep/color /secret/password") == "greenn3w");
    assert!(run("env").contains("MAP_color=blue"));

    // What is not there yet: told in the kubelet's words, and the pod starts when it comes.
    plane.apply(&bound(
        &node,
        &ns,
        "early",
        json!({
            "enableServiceLinks": false,
            "containers": [{
                "envFrom": [{ "configMapRef": { "name": "later" } }],
                "volumeMounts": [{ "name": "v", "mountPath": "/v" }],
            }],
            "volumes": [{ "name": "v", "secret": { "secretName": "gone", "optional": true } }],
        }),
    ));
    node.wait("it waits", PATIENCE, |pods| {
        let early = pods.iter().find(|pod| pod.name() == "early");
        early.is_some_and(|pod| {
            pod.waiting("main") == "CreateContainerConfigError"
                && pod.waiting_message("main") == "configmap \"later\" not found"
        })
    });
    plane.apply(&object("ConfigMap", &ns, "later", &json!({ "when": "now" })));
    wait_up(&node, &ns, "early");
    let env = sh(&node, &ns, "early", "env");
    assert!(has(&env, "when=now") && has(&env, "KUBERNETES_SERVICE_PORT=443") && !env.contains("MY_WEB"), "{env}");
    plane.apply(&object("Secret", &ns, "gone", &json!({ "late": "yes" })));
    eventually("the optional one comes", PATIENCE, || sh(&node, &ns, "early", "cat /v/late; true") == "yes");

    let refusals = plane.refused(&node.name);
    assert!(refusals.is_empty(), "{refusals:#?}");
    // What no pod refers to any more does not stay on the disk.
    assert!(kept(&node).contains("\"when\":\"now\""));
    plane.delete("Pod", &ns, "early");
    eventually("it is forgotten", 2 * PATIENCE, || !kept(&node).contains("\"when\":\"now\""));
    assert!(kept(&node).contains("green"));
    node.remove("local.yaml");
    ns.end();
    plane.finish(node);
}

#[test]
fn a_pod_starts_again_without_an_api_server_from_secrets_that_are_sealed() {
    let plane = Plane::shared();
    let folder = Scratch(std::env::temp_dir().join(format!("coracle-seal-{}", std::process::id())));
    fs::create_dir_all(&folder.0).expect("folder");
    let key = folder.0.join("seal.key");
    let secret = |path: &Path, byte: u8| {
        let mut file =
            fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path).expect("key");
        std::io::Write::write_all(&mut file, &[byte; 32]).expect("key");
    };
    secret(&key, 7);
    let mut node = up(plane, &json!({ "cluster": { "sealingKeyFile": key } }));
    let ns = plane.namespace("sealed");
    plane.apply(&object("ConfigMap", &ns, "open", &json!({ "k": "in-the-open" })));
    plane.apply(&object("Secret", &ns, "login", &json!({ "password": "s3aled" })));
    plane.apply(&bound(&node, &ns, "app", json!({
        "containers": [{
            "env": [{ "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "login", "key": "password" } } }],
            "envFrom": [{ "configMapRef": { "name": "open" } }],
        }],
    })));
    wait_up(&node, &ns, "app");
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    let token = sh(&node, &ns, "app", &format!("cat {folder}/token"));
    let text = kept(&node);
    assert!(text.contains("in-the-open") && text.contains("sealed"), "{text}");
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, "s3aled");
    assert!(!text.contains("s3aled") && !text.contains(&encoded) && !text.contains(&token), "not in the open");
    let folder_of = node.dir.join("root/cluster/objects");
    assert_eq!(mode(&folder_of), 0o700);
    for file in fs::read_dir(&folder_of).expect("records").flatten() {
        assert_eq!(mode(&file.path()), 0o600, "{}", file.path().display());
    }

    // A machine that starts without its network: the pod is made anew from what is on the disk.
    plane.unplug(&node);
    node.stop();
    node.kill_everything();
    node.forget_kernel_state();
    node.start();
    let env = variables(&node, &ns, "app");
    assert!(has(&env, "PASSWORD=s3aled") && has(&env, "k=in-the-open"), "{env}");
    assert!(has(&env, "KUBERNETES_SERVICE_PORT=443"), "{env}");
    assert_eq!(sh(&node, &ns, "app", &format!("cat {folder}/token")), token);

    // Another key: sealed ones count as not there, and all is well again when the API server has told them anew.
    node.stop();
    node.kill_everything();
    node.forget_kernel_state();
    secret(&key, 8);
    node.start();
    node.wait_event("what is not there is told", |_, text| text.contains("failed to "));
    assert!(kept(&node).contains("in-the-open"));
    plane.plug(&node);
    assert!(has(&variables(&node, &ns, "app"), "PASSWORD=s3aled"));
    ns.end();
    plane.finish(node);
}

#[test]
fn images_are_pulled_with_the_secrets_of_the_pod_alone() {
    let plane = Plane::shared();
    let node = up(plane, &json!({}));
    // In the node's network.
    let registry = node.inside(|| Registry::start(Auth::Basic));
    let archive = image_archive("private:1");
    node.inside(|| registry.push(&archive, "team/private:1"));
    let image = registry.reference("team/private:1");
    let ns = plane.namespace("private");
    let docker = |password: &str| {
        let auths = json!({ "auths": { registry.address(): { "username": USER, "password": password } } });
        json!({ ".dockerconfigjson": auths.to_string() })
    };
    let secret = |name: &str, password: &str| {
        let mut secret = object("Secret", &ns, name, &docker(password));
        secret["type"] = json!("kubernetes.io/dockerconfigjson");
        plane.apply(&secret);
    };
    secret("good", PASSWORD);
    secret("bad", "guess");
    let pod = |name: &str, secrets: &[&str]| {
        let secrets: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
        plane.apply(&bound(
            &node,
            &ns,
            name,
            json!({
                "imagePullSecrets": secrets, "containers": [{ "image": image, "imagePullPolicy": "IfNotPresent" }],
            }),
        ));
    };
    let waits = |name: &str| {
        node.wait(&format!("{name} is refused"), 2 * PATIENCE, |pods| {
            let reason = pods.iter().find(|pod| pod.name() == name).map(|pod| pod.waiting("main").to_owned());
            matches!(reason.as_deref(), Some("ErrImagePull" | "ImagePullBackOff"))
        });
    };
    // At the same time: neither shares what becomes of the other.
    pod("with-bad", &["bad"]);
    pod("with-good", &["gone", "good"]);
    pod("with-none", &[]);
    wait_up(&node, &ns, "with-good");
    waits("with-bad");
    waits("with-none");
    node.wait_event("the missing one is told", |reason, text| {
        reason == "FailedToRetrieveImagePullSecret"
            && text
                == "Unable to retrieve some image pull secrets (gone); attempting to pull the image may not succeed."
    });
    // It is here, and still nobody's but of who shows the same.
    pod("after-none", &[]);
    waits("after-none");
    pod("after-good", &["good"]);
    wait_up(&node, &ns, "after-good");
    // Somebody corrects the secret: the next attempt has it.
    secret("bad", PASSWORD);
    wait_up(&node, &ns, "with-bad");
    let log = fs::read_to_string(node.dir.join("agent.log")).unwrap_or_default();
    assert!(!log.contains(PASSWORD), "a password is in the log");
    ns.end();
    plane.finish(node);
}

#[test]
fn many_pods_share_one_large_object() {
    let plane = Plane::shared();
    let node = up(plane, &json!({}));
    let ns = plane.namespace("shared");
    let large = "x".repeat(1_000_000);
    plane.apply(&object("ConfigMap", &ns, "large", &json!({ "version": "1", "ballast": large })));
    let names: Vec<String> = (0..12).map(|n| format!("p{n}")).collect();
    for name in &names {
        plane.apply(&bound(&node, &ns, name, json!({
            "automountServiceAccountToken": false,
            "containers": [{ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }],
            "volumes": [{ "name": "v", "configMap": { "name": "large", "items": [{ "key": "version", "path": "version" }] } }],
        })));
    }
    names.iter().for_each(|name| wait_up(&node, &ns, name));
    plane.patch("ConfigMap", &ns, "large", &json!({ "data": { "version": "2" } }));
    for name in &names {
        eventually("all follow", 2 * PATIENCE, || sh(&node, &ns, name, "cat /v/version") == "2");
    }
    let watches = plane.audit().into_iter().filter(|event| {
        event["user"]["username"] == format!("system:node:{}", node.name)
            && event["requestURI"].as_str().is_some_and(|uri| uri.contains("configmaps") && uri.contains("large"))
    });
    let count = watches.count();
    assert!((1..=3).contains(&count), "{count} requests for one object");
    ns.end();
    plane.finish(node);
}
