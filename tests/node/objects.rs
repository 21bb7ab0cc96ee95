//! ConfigMaps and Secrets in containers: as variables, as files that follow them, and nowhere else.

use super::harness::{BUSYBOX, Node, PATIENCE, REST, eventually, mode, pod};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn config_map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn secret(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

/// One manifest of several documents.
fn documents(all: &[&Value]) -> String {
    all.iter().map(|document| format!("---\n{document}\n")).collect()
}

/// The variables of a container's first process.
fn environment(node: &Node, pod: &str) -> BTreeSet<String> {
    node.sh(pod, "tr '\\0' '\\n' < /proc/1/environ").lines().map(str::to_owned).collect()
}

#[test]
fn a_config_map_and_a_secret_reach_their_pods() {
    let node = Node::up();
    let mut settings = config_map("settings", &json!({"color": "blue", "app.conf": "a=1\nb=2\n"}));
    settings["binaryData"] = json!({"logo": "AP8B"});
    let keys = secret("keys", &json!({"password": "hunter2", "user": "admin"}));
    // Of another namespace: a name alone is not enough.
    let mut elsewhere = config_map("elsewhere", &json!({"x": "1"}));
    elsewhere["metadata"]["namespace"] = json!("other");
    node.apply("objects.yaml", documents(&[&settings, &keys, &elsewhere]));
    let mut manifest = pod("user", REST);
    manifest["spec"]["securityContext"] = json!({"fsGroup": 4242});
    manifest["spec"]["volumes"] = json!([
        {"name": "all", "configMap": {"name": "settings"}},
        {"name": "some", "configMap": {"name": "settings", "defaultMode": 256, "items": [
            {"key": "app.conf", "path": "etc/app.conf"}, {"key": "color", "path": "color", "mode": 384}
        ]}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 256}},
        {"name": "none", "configMap": {"name": "nowhere", "optional": true}},
        {"name": "half", "secret": {"secretName": "keys", "optional": true, "items": [
            {"key": "user", "path": "user"}, {"key": "nothing", "path": "nothing"}
        ]}},
        {"name": "both", "projected": {"defaultMode": 288, "sources": [
            {"configMap": {"name": "settings"}},
            {"secret": {"name": "keys", "items": [{"key": "user", "path": "color"}, {"key": "password", "path": "p/w"}]}},
            {"secret": {"name": "nowhere", "optional": true}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}
        ]}}
    ]);
    manifest["spec"]["containers"][0]["envFrom"] = json!([
        {"configMapRef": {"name": "settings"}, "prefix": "S_"},
        {"secretRef": {"name": "keys"}},
        {"configMapRef": {"name": "nowhere", "optional": true}}
    ]);
    manifest["spec"]["containers"][0]["env"] = json!([
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
        {"name": "BOTH", "value": "$(user):$(PASSWORD)@$(S_color)"},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "x", "optional": true}}},
        {"name": "FAR", "valueFrom": {"configMapKeyRef": {"name": "elsewhere", "key": "x", "optional": true}}}
    ]);
    let names = ["all", "some", "keys", "none", "half", "both"];
    let mounts: Vec<Value> = names.iter().map(|v| json!({"name": v, "mountPath": format!("/v/{v}")})).collect();
    manifest["spec"]["containers"][0]["volumeMounts"] = json!(mounts);
    let seen = node.run(&manifest);

    let shown = node.cli(&["get", "configmap", "settings", "-o", "yaml"]).ok();
    assert!(shown.contains("color: blue") && shown.contains("logo: AP8B"), "{shown}");
    let table = node.cli(&["get", "cm", "-A"]).ok();
    assert!(table.lines().any(|line| line.split_whitespace().eq(["default", "settings", "3", "<unknown>"])), "{table}");
    let environment = environment(&node, "user");
    for line in
        ["S_color=blue", "S_app.conf=a=1", "user=admin", "COLOR=blue", "PASSWORD=hunter2", "BOTH=admin:hunter2@blue"]
    {
        assert!(environment.contains(line), "{line} in {environment:?}");
    }
    let absent = ["ABSENT=", "FAR=", "S_logo=", "logo="];
    assert!(!environment.iter().any(|line| absent.iter().any(|name| line.starts_with(name))), "{environment:?}");

    let tree = node.sh("user", "cd /v; for v in all some keys none half both; do (cd $v/..data && find . -type f -exec stat -c \"$v %n %a %g %s\" {} + | sort); done");
    let want = "all ./app.conf 644 4242 8\nall ./color 644 4242 4\nall ./logo 644 4242 3\n\
                some ./color 640 4242 4\nsome ./etc/app.conf 440 4242 8\n\
                keys ./password 440 4242 7\nkeys ./user 440 4242 5\n\
                half ./user 644 4242 5\n\
                both ./app.conf 440 4242 8\nboth ./color 440 4242 5\nboth ./logo 440 4242 3\nboth ./name 440 4242 10\nboth ./p/w 440 4242 7";
    assert_eq!(tree.replace(&format!("name 440 4242 {}", seen.name().len()), "name 440 4242 10"), want);
    assert_eq!(
        node.sh("user", "cat /v/some/etc/app.conf; hexdump -C /v/all/logo | head -1"),
        "a=1\nb=2\n00000000  00 ff 01                                          |...|"
    );
    assert_eq!(node.sh("user", "cat /v/both/color /v/both/p/w; readlink /v/both/color"), "adminhunter2..data/color");
    // As kubelet since 1.9, and whoever runs.
    for volume in names {
        node.cli(&["exec", "user", "--", "touch", &format!("/v/{volume}/x")]).fails(1);
    }
    // What was optional and not there is seen once it is.
    node.apply("late.yaml", config_map("nowhere", &json!({"now": "here"})));
    eventually("the files of the late one", PATIENCE, || node.sh("user", "cat /v/none/now 2>/dev/null || :") == "here");
    let volumes = node.dir.join("root/pods").join(seen.uid()).join("volumes");
    for (kind, volume) in [("configmap", "all"), ("secret", "keys"), ("projected", "both")] {
        let path = volumes.join(format!("kubernetes.io~{kind}")).join(volume);
        let kind = nix::sys::statfs::statfs(&path).expect("statfs").filesystem_type();
        assert_eq!(kind, nix::sys::statfs::TMPFS_MAGIC, "{}", path.display());
    }
    node.finish();
}

#[test]
fn a_pod_whose_objects_come_later_waits_for_them() {
    let node = Node::up();
    let mut variables = pod("variables", REST);
    variables["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "awaited"}}]);
    let mut files = pod("files", REST);
    files["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "awaited"}}]);
    files["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    node.apply("variables.yaml", variables);
    node.apply("files.yaml", files);
    for name in ["variables", "files"] {
        node.wait_event("it says what it waits for", |_, message| message.contains("awaited"));
        assert!(!node.pod(name).is_some_and(|pod| pod.up()), "{name} runs without its ConfigMap");
    }
    node.apply("objects.yaml", config_map("awaited", &json!({"A": "1"})));
    node.wait_up("variables");
    node.wait_up("files");
    assert!(environment(&node, "variables").contains("A=1"));
    assert_eq!(node.sh("files", "cat /v/A"), "1");
    node.finish();
}

/// Reads both keys of one version again and again; tells of versions that it saw, and of any mixture.
const READER: &str = "
trap 'exit 0' TERM
while :; do
    if cd -P /config/..data && both=$(cat one two 2>/dev/null); then
        set -- $both
        [ \"$1\" = \"$2\" ] || echo \"half: $both\" >> /out/halves
        [ \"$1\" = \"$last\" ] || echo \"$1\" >> /out/versions
        last=$1
    fi
done";

#[test]
fn an_edited_config_map_is_seen_by_who_reads_its_files_at_once_and_as_a_whole() {
    let mut node = Node::up();
    let padding = "x".repeat(100_000);
    let version =
        |n: u32| config_map("pair", &json!({"one": format!("v{n}\n"), "two": format!("v{n}\n"), "big": padding}));
    node.apply("objects.yaml", version(0));
    let mut manifest = pod("reader", READER);
    manifest["spec"]["volumes"] =
        json!([{"name": "config", "configMap": {"name": "pair"}}, {"name": "out", "emptyDir": {}}]);
    let container = &mut manifest["spec"]["containers"][0];
    container["env"] = json!([{"name": "ONE", "valueFrom": {"configMapKeyRef": {"name": "pair", "key": "one"}}}]);
    container["volumeMounts"] = json!([
        {"name": "config", "mountPath": "/config"}, {"name": "out", "mountPath": "/out"},
        {"name": "config", "mountPath": "/part", "subPath": "one"}
    ]);
    let seen = node.run(&manifest);
    let pod_dir = node.dir.join("root/pods").join(seen.uid());
    let volume = pod_dir.join("volumes/kubernetes.io~configmap/config");
    let out = pod_dir.join("volumes/kubernetes.io~empty-dir/out");
    let data = || fs::read_link(volume.join("..data")).expect("..data");
    let saw =
        |n: u32| fs::read_to_string(out.join("versions")).unwrap_or_default().lines().any(|v| v == format!("v{n}"));
    eventually("the container reads", PATIENCE, || saw(0));
    let mut fastest = Duration::MAX;
    for n in 1..=20 {
        let before = data();
        let edited = Instant::now();
        node.apply("objects.yaml", version(n));
        eventually("the container sees the edit", PATIENCE, || saw(n));
        fastest = fastest.min(edited.elapsed());
        assert_ne!(data(), before, "a new folder each time");
    }
    // Nothing waits for a clock; how long the slowest takes is a matter of the machine's load.
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    assert!(!out.join("halves").exists(), "{:?}", fs::read_to_string(out.join("halves")));

    // Who has started keeps its variables, and its part of a volume.
    let frozen = |node: &Node| (environment(node, "reader").contains("ONE=v0"), node.sh("reader", "cat /part"));
    assert_eq!(frozen(&node), (true, "v0".to_owned()));
    let now = node.pod("reader").expect("the pod");
    assert_eq!((now.restarts("main"), now.uid()), (0, seen.uid()), "an edit of an object starts nothing anew");
    // What has not changed is not written anew.
    let before = data();
    let mut other = version(20);
    other["metadata"]["labels"] = json!({"a": "b"});
    node.apply("objects.yaml", documents(&[&other, &config_map("another", &json!({"x": "1"}))]));

    // Down when it was edited: by a clean stop, and by a crash.
    node.stop();
    assert_eq!(data(), before);
    node.apply("objects.yaml", version(21));
    node.start();
    eventually("the edit is seen after the agent is back", PATIENCE, || saw(21));
    node.kill9();
    node.apply("objects.yaml", version(22));
    node.start();
    eventually("the edit is seen after a crash of the agent", PATIENCE, || saw(22));
    assert!(!out.join("halves").exists(), "{:?}", fs::read_to_string(out.join("halves")));
    assert_eq!(frozen(&node), (true, "v0".to_owned()));

    // The command may not outlive the container.
    node.cli(&["exec", "reader", "--", "kill", "-TERM", "1"]);
    node.wait_pod("reader", "started again", |p| p.restarts("main") == 1 && p.running("main"));
    assert!(environment(&node, "reader").iter().any(|line| line.starts_with("ONE=v22")));
    assert_eq!(node.sh("reader", "cat /part"), "v22");
    node.finish();
}

/// All regular files below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Files of the node, but for its manifests, that hold one of these texts, with their paths below the node's folder.
fn holders(node: &Node, texts: &[String]) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        texts.iter().any(|text| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    };
    let all = ["root", "run", "log"].iter().flat_map(|sub| files(&node.dir.join(sub)));
    let all = all.filter(|path| {
        !path.starts_with(node.dir.join("root/images")) && !path.starts_with(node.dir.join("root/store"))
    });
    let all = all.chain([node.dir.join("agent.log")]);
    all.filter(holds).map(|path| path.strip_prefix(&node.dir).expect("below").to_owned()).collect()
}

/// No file outside of the pod's own volumes is readable by others, and nobody else gets to those.
#[track_caller]
fn assert_private(node: &Node, holders: &[PathBuf]) {
    for path in holders {
        let full = node.dir.join(path);
        let in_volume = path.components().any(|part| part.as_os_str() == "volumes");
        if in_volume {
            let kind = nix::sys::statfs::statfs(&full).expect("statfs").filesystem_type();
            assert_eq!(kind, nix::sys::statfs::TMPFS_MAGIC, "{} is in memory", path.display());
        } else {
            assert_eq!(mode(&full) & 0o077, 0, "{} is for root alone", path.display());
        }
        let below: Vec<&Path> = path.ancestors().filter(|a| a.components().count() >= 1).collect();
        let closed = below.iter().any(|a| node.dir.join(a).is_dir() && mode(&node.dir.join(a)) & 0o077 == 0);
        assert!(closed, "{} is in a folder for root alone", path.display());
    }
}

#[test]
fn a_secret_is_nowhere_but_in_its_record_and_its_container() {
    let mut node = Node::new();
    node.args.push("--v=6".to_owned());
    node.start();
    node.wait_for_images();
    let (first, second) = ("wAlDo-7f3a9c-first", "wAlDo-7f3a9c-second");
    let texts: Vec<String> = [first, second].iter().flat_map(|t| [(*t).to_owned(), base64(t)]).collect();
    node.apply("secret.yaml", secret("keys", &json!({"password": first, "spare": "x"})));
    let using = |name: &str, script: &str| {
        let mut manifest = pod(name, script);
        manifest["spec"]["volumes"] = json!([
            {"name": "keys", "secret": {"secretName": "keys"}},
            {"name": "both", "projected": {"sources": [{"secret": {"name": "keys"}}]}}
        ]);
        let container = &mut manifest["spec"]["containers"][0];
        container["env"] = json!([{"name": "P", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}}]);
        container["envFrom"] = json!([{"secretRef": {"name": "keys"}, "prefix": "ALL_"}]);
        container["volumeMounts"] = json!([
            {"name": "keys", "mountPath": "/keys"}, {"name": "both", "mountPath": "/both"},
            {"name": "keys", "mountPath": "/one", "subPath": "password"}
        ]);
        manifest
    };
    node.run(&using("keeper", REST));
    // Failures are what tells most.
    let mut crashing = using("crashing", "exit 3");
    crashing["spec"]["restartPolicy"] = json!("Never");
    node.run_to_end(&crashing);
    let mut broken = using("broken", REST);
    broken["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    node.apply("broken.yaml", broken);
    node.wait_pod("broken", "fails", |p| {
        p.restarts("main") > 0 || p.last("main").is_object() || p.terminated("main").is_object()
    });
    let mut long = using("long", REST);
    long["spec"]["containers"][0]["env"] = json!([
        {"name": "P", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
        {"name": "LONG", "value": "$(P)".repeat(9000)}
    ]);
    node.apply("long.yaml", long);
    node.wait_pod("long", "is refused", |p| p.waiting("main") == "CreateContainerConfigError");
    let mut users = using("mapped", REST);
    users["spec"]["hostUsers"] = json!(false);
    node.run(&users);
    // A manifest that cannot be read, with the value in it.
    node.apply(
        "bad.yaml",
        format!("kind: Secret\napiVersion: v1\nmetadata: {{name: bad}}\nstringData: {{k: [{first}]}}\n"),
    );
    node.wait_event("the broken Secret is told", |reason, message| {
        reason == "FailedValidation" && message.contains("bad.yaml")
    });

    node.apply("secret.yaml", secret("keys", &json!({"password": second, "spare": "x"})));
    eventually("the files follow", PATIENCE, || {
        node.sh("keeper", "cat /keys/password /both/password") == second.repeat(2)
    });
    assert_eq!(node.sh("keeper", "cat /one; echo $P"), format!("{first}{first}"));
    assert_eq!(node.sh("mapped", "cat /keys/password"), second);
    node.restart();
    node.wait_up("keeper");

    let table = node.cli(&["get", "secrets"]).ok();
    assert!(table.lines().any(|line| line.split_whitespace().eq(["keys", "Opaque", "2", "<unknown>"])), "{table}");
    let shown = node.cli(&["get", "secret", "keys", "-o", "json"]).ok();
    assert!(shown.contains(&format!("\"password\": \"<{} bytes>\"", second.len())), "{shown}");
    let check = |node: &Node| {
        for args in [
            &["get", "pods", "-A", "-o", "yaml"][..],
            &["get", "pods", "-A", "-o", "json"],
            &["get", "pods", "-A", "-o", "wide"],
            &["get", "events", "-A", "-o", "yaml"],
            &["get", "events", "-A"],
            &["describe", "pod", "keeper"],
            &["describe", "pod", "broken"],
            &["describe", "pod", "long"],
            &["get", "secrets", "-o", "yaml"],
            &["get", "secret", "keys", "-o", "json"],
            &["logs", "keeper"],
            &["validate", node.manifest("bad.yaml").to_str().expect("path")],
        ] {
            let out = node.cli(args);
            let both = format!("{}{}", out.stdout, out.stderr);
            assert!(!texts.iter().any(|text| both.contains(text)), "{args:?} shows a secret:\n{both}");
        }
        let found = holders(node, &texts);
        assert_private(node, &found);
        found
    };
    let found = check(&node);
    // The test would find one: these have it.
    let has = |what: &str| found.iter().any(|path| path.to_string_lossy().contains(what));
    assert!(has("config.json") && has("kubernetes.io~secret") && has("root/manifests/"), "{found:?}");
    let known = |path: &PathBuf| {
        let text = path.to_string_lossy();
        [
            "/bundles/",
            "kubernetes.io~secret/",
            "kubernetes.io~projected/",
            "root/manifests/",
            "root/sources/",
            "root/history/",
        ]
        .iter()
        .any(|place| text.contains(place))
    };
    let strange: Vec<&PathBuf> = found.iter().filter(|path| !known(path)).collect();
    assert!(strange.is_empty(), "a secret where none should be: {strange:?}");
    // With its pods and its manifest, every trace of it goes.
    for file in ["keeper.yaml", "crashing.yaml", "broken.yaml", "long.yaml", "mapped.yaml"] {
        node.remove(file);
    }
    node.wait("all pods are gone", PATIENCE, |pods| pods.is_empty());
    let left = check(&node);
    assert!(!left.iter().any(|path| path.to_string_lossy().contains("pods/")), "{left:?}");
    node.finish();
}

#[test]
fn a_secret_may_be_a_credential_of_the_service() {
    let mut node = Node::new();
    let credentials = node.dir.join("credentials");
    fs::create_dir(&credentials).expect("folder");
    fs::write(credentials.join("db-password"), "wAlDo-sealed").expect("credential");
    node.env.push(("CREDENTIALS_DIRECTORY".to_owned(), credentials.display().to_string()));
    node.start();
    node.wait_for_images();
    let mut sealed = secret("sealed", &json!({"user": "admin"}));
    sealed["metadata"]["annotations"] = json!({"coracle.dev/credentials": "password=db-password"});
    let mut late = secret("late", &json!({}));
    late["metadata"]["annotations"] = json!({"coracle.dev/credentials": "token=not-yet"});
    node.apply("secrets.yaml", documents(&[&sealed, &late]));
    let using = |name: &str, secret: &str| {
        let mut manifest = pod(name, REST);
        manifest["spec"]["containers"][0]["image"] = json!(BUSYBOX);
        manifest["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": secret}}]);
        manifest
    };
    let mut both = using("both", "sealed");
    both["spec"]["volumes"] = json!([{"name": "keys", "secret": {"secretName": "sealed", "defaultMode": 256}}]);
    both["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "keys", "mountPath": "/keys"}]);
    node.run(&both);
    let environment = environment(&node, "both");
    assert!(environment.contains("user=admin") && environment.contains("password=wAlDo-sealed"), "{environment:?}");
    assert_eq!(node.sh("both", "cat /keys/password; stat -c ' %a' -L /keys/password"), "wAlDo-sealed 400");

    node.apply("waits.yaml", using("waits", "late"));
    let waits = node.wait_pod("waits", "says why", |p| p.waiting("main") == "CreateContainerConfigError");
    let message = waits.waiting_message("main");
    assert!(
        message.contains("key \"token\" of secret \"late\"") && message.contains("LoadCredentialEncrypted=not-yet"),
        "{message}"
    );
    let mut mounts = pod("mounts", REST);
    mounts["spec"]["volumes"] = json!([{"name": "keys", "secret": {"secretName": "late"}}]);
    mounts["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "keys", "mountPath": "/keys"}]);
    node.apply("mounts.yaml", mounts);
    node.wait_event("the volume's failure is told", |reason, message| {
        reason == "FailedMount" && message.contains("LoadCredentialEncrypted=not-yet")
    });
    fs::write(credentials.join("not-yet"), "wAlDo-late").expect("credential");
    node.wait_up("waits");
    node.wait_up("mounts");
    assert_eq!(node.sh("mounts", "cat /keys/token"), "wAlDo-late");

    let found = holders(&node, &["wAlDo-sealed".to_owned(), base64("wAlDo-sealed")]);
    assert_private(&node, &found);
    let on_disk =
        |path: &&PathBuf| path.starts_with("root") && !path.to_string_lossy().contains("kubernetes.io~secret");
    assert_eq!(found.iter().filter(on_disk).collect::<Vec<_>>(), Vec::<&PathBuf>::new(), "it is in no record");
    node.finish();
}
