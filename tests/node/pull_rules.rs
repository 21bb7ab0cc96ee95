//! Pulls as pods and people see them: whose turn it is, what a tag means, what short names mean, what ends a pull or the
//! wait for one, and what a person reads at night.

use super::gate::Gate;
use super::harness::{Node, PATIENCE, eventually, free_port, http, image_archive, resting, secs, signal, wait_child};
use super::pulled_shapes::configure;
use super::registry_server::{Auth, PASSWORD, Registry, USER};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

/// A resting pod with this image and policy; no policy: none is written.
fn with_image(name: &str, image: &str, policy: &str) -> Value {
    let mut pod = resting(name);
    pod["spec"]["containers"][0]["image"] = json!(image);
    if !policy.is_empty() {
        pod["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
    }
    pod
}

/// An archive with an image of this name; its ID is its own.
fn archive(name: String) -> PathBuf {
    image_archive(Box::leak(name.into_boxed_str()))
}

/// Imports an image of this name, as a person does.
fn import(node: &Node, name: &str) {
    let path = archive(name.to_owned());
    node.cli(&["image", "import", &path.display().to_string()]).ok();
    fs::remove_file(path).expect("archive");
}

/// How many files a folder of the store holds.
fn count(node: &Node, folder: &str) -> usize {
    fs::read_dir(node.dir.join("root/store").join(folder)).map_or(0, |entries| entries.count())
}

fn image_id(node: &Node, pod: &str) -> String {
    let seen = node.pod(pod).expect("the pod");
    seen.container("main")["imageID"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn pulls_take_turns_and_as_many_are_under_way_as_configured() {
    let registry = Registry::start(Auth::Plain);
    let gate = Gate::before(&registry);
    let names = ["turn-a", "turn-b", "turn-c", "turn-d"];
    for name in names {
        registry.push(&archive(format!("{name}:1")), &format!("team/{name}:1"));
    }
    gate.shut("/blobs/", 0);
    let mut node = Node::new();
    node.configure(json!({}));
    node.start();
    node.wait_for_images();
    // A list is no way around the turns.
    fs::write(node.dir.join("root/images/all.txt"), gate.reference("team/turn-d:1")).expect("list");
    for name in &names[..3] {
        let image = gate.reference(&format!("team/{name}:1"));
        node.apply(&format!("{name}.yaml"), with_image(name, &image, "IfNotPresent"));
        node.wait_event("it is told before its turn", |reason, text| reason == "Pulling" && text.contains(name));
    }
    eventually("the first one is under way", PATIENCE, || gate.held() == 1);
    // What needs no pull does not wait for those that do.
    node.run(&resting("beside"));
    assert_eq!((gate.asked("/manifests/"), gate.held()), (1, 1), "serializeImagePulls is the default");
    node.stop();
    node.reconfigure(json!({ "maxParallelImagePulls": 2 }));
    eventually("the pull has ended with its agent", PATIENCE, || gate.held() == 0);
    node.start();
    eventually("two at a time", PATIENCE, || gate.held() == 2);
    node.run(&resting("beside-too"));
    assert_eq!((gate.asked("/manifests/"), gate.held()), (3, 2));
    node.stop();
    eventually("the pulls have ended with their agent", PATIENCE, || gate.held() == 0);
    node.reconfigure(json!({ "serializeImagePulls": false }));
    node.start();
    eventually("all at once", PATIENCE, || gate.held() == 4);
    gate.open();
    names[..3].iter().for_each(|name| drop(node.wait_up(name)));
    eventually("the image of the list", PATIENCE, || node.cli(&["image", "ls"]).stdout.contains("turn-d"));
    eventually("no pull is left open", PATIENCE, || count(&node, "pulling") + count(&node, "staging") == 0);
    node.finish();
}

#[test]
fn what_a_person_breaks_off_is_given_up_unless_a_pod_wants_it() {
    let registry = Registry::start(Auth::Plain);
    let gate = Gate::before(&registry);
    registry.push(&archive("broken-off:1".into()), "team/broken-off:1");
    let image = gate.reference("team/broken-off:1");
    let mut node = Node::new();
    fs::remove_file(node.dir.join("root/images/images.tar")).expect("images");
    node.start();
    let interrupted = || {
        let pull = node.command(&["image", "pull", &image]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut pull = pull.expect("image pull");
        eventually("the layer is on its way", PATIENCE, || gate.held() > 0 && count(&node, "staging") > 0);
        signal(pull.id() as i32, Signal::INT);
        let status = wait_child(&mut pull, secs(10)).expect("Ctrl-C ends it");
        assert!(!status.success(), "{status}");
    };
    // The configuration goes through, of the layer only the beginning.
    gate.shut("/blobs/", 100_000);
    interrupted();
    eventually("nothing is left of it", PATIENCE, || {
        ["staging", "pulling", "layers", "images"].iter().all(|folder| count(&node, folder) == 0)
    });
    // A pod that waits for the same pull keeps it.
    let begun = gate.asked("/manifests/");
    node.apply("web.yaml", with_image("web", &image, ""));
    eventually("the pod's pull", PATIENCE, || gate.asked("/manifests/") > begun && count(&node, "staging") > 0);
    let begun = gate.asked("/manifests/");
    interrupted();
    gate.open();
    node.wait_up("web");
    assert_eq!(gate.asked("/manifests/"), begun, "one pull for both");
    // A pod that goes gives up its pull, too.
    registry.push(&archive("not-wanted:1".into()), "team/not-wanted:1");
    gate.shut("/manifests/", 0);
    let other = gate.reference("team/not-wanted:1");
    node.apply("gone.yaml", with_image("gone", &other, ""));
    eventually("it is asked for", PATIENCE, || gate.held() == 1 && count(&node, "pulling") == 1);
    node.remove("gone.yaml");
    node.wait_gone("gone");
    eventually("its pull is given up", PATIENCE, || count(&node, "pulling") == 0);
    node.finish();
}

#[test]
fn an_image_that_comes_in_another_way_ends_the_wait_for_its_pull() {
    let registry = Registry::start(Auth::Plain);
    let gate = Gate::before(&registry);
    registry.push(&archive("slow:1".into()), "team/slow:1");
    let node = Node::up();
    let away = format!("127.0.0.1:{}/team", free_port());
    let slow = gate.reference("team/slow:1");
    // Each waits for another reason.
    gate.shut("/manifests/", 0);
    node.apply("pulling.yaml", with_image("pulling", &slow, "IfNotPresent"));
    let images = ["back-off", "always", "never", "dropped"].map(|name| format!("{away}/{name}:1"));
    for (image, (name, policy)) in
        images.iter().zip([("back-off", ""), ("always", "Always"), ("never", "Never"), ("dropped", "")])
    {
        node.apply(&format!("{name}.yaml"), with_image(name, image, policy));
    }
    eventually("the slow one is under way", PATIENCE, || gate.held() == 1 && count(&node, "pulling") > 0);
    // Serially: those behind it wait for their turn, or have failed.
    node.wait_pod("never", "never pulled", |p| p.waiting("main") == "ErrImageNeverPull");
    node.wait_event("all have asked", |reason, text| reason == "Pulling" && text.contains("dropped"));
    for image in images[..3].iter().chain([&slow]) {
        import(&node, image);
    }
    node.wait_up("pulling");
    let text = format!("Container image {slow:?} already present on machine and can be accessed by the pod");
    node.wait_event("it was not pulled", |reason, said| reason == "Pulled" && said == text);
    node.wait_up("never");
    node.wait_up("back-off");
    let dropped = archive(images[3].clone());
    node.drop_image(&dropped, "dropped.tar");
    fs::remove_file(dropped).expect("archive");
    node.wait_up("dropped");
    // Always means to ask, and the registry is away: what is here is used, and people are told.
    node.wait_up("always");
    node.wait_event("told", |reason, text| reason == "RegistryUnavailable" && text.contains("always"));
    eventually("no pull goes on", PATIENCE, || count(&node, "pulling") == 0);
    assert_eq!(gate.asked("/blobs/"), 0, "nothing was fetched");

    // The same after the pull has failed, in the middle of a long wait.
    let late = format!("{away}/late:1");
    node.apply("late.yaml", with_image("late", &late, "Always"));
    node.wait_pod("late", "backs off", |p| p.waiting("main") == "ImagePullBackOff");
    import(&node, &late);
    node.wait_up("late");
    node.finish();
}

#[test]
fn a_tag_means_what_it_means_now_to_always_and_what_is_here_to_the_others() {
    let registry = Registry::start(Auth::Plain);
    let push = |version: u32| {
        for tag in ["team/moved:1", "team/moved:latest"] {
            registry.push(&archive(format!("moved:{version}")), tag);
        }
    };
    push(1);
    let (tag, latest) = (registry.reference("team/moved:1"), registry.reference("team/moved"));
    let node = Node::up();
    let said = node.cli(&["image", "pull", &tag]).ok();
    let digest = said.rsplit_once("(sha256:").expect("digest").1.split(',').next().expect("digest").to_owned();
    let pinned = format!("{latest}@sha256:{digest}");
    // (pod, image, policy, whether it follows the tag)
    let pods = [
        ("always", &tag, "Always", true),
        ("latest", &latest, "", true),
        ("kept", &tag, "IfNotPresent", false),
        ("tagged", &tag, "", false),
        ("pinned", &pinned, "", false),
        ("pinned-always", &pinned, "Always", false),
    ];
    for (name, image, policy, _) in pods {
        node.apply(&format!("{name}.yaml"), with_image(name, image, policy));
    }
    pods.iter().for_each(|(name, ..)| drop(node.wait_up(name)));
    let old = image_id(&node, "always");
    assert!(pods.iter().all(|(name, ..)| image_id(&node, name) == old), "all run the same");
    push(2);
    for (name, ..) in pods {
        node.cli(&["exec", name, "--", "sh", "-c", "kill 1"]);
    }
    // Names that are here follow the tag too, as soon as somebody has pulled it: those that go by it run what is new.
    for (name, _, _, follows) in pods {
        node.wait_pod(name, "started again", |p| p.restarts("main") >= 1 && p.running("main"));
        if follows || name.starts_with("pinned") {
            assert_eq!(image_id(&node, name) != old, follows, "{name}");
        }
    }
    let new = image_id(&node, "always");
    // What the registry does not have.
    for (name, image, policy) in [
        ("no-tag", registry.reference("team/moved:none"), "Always"),
        ("no-name", registry.reference("team/none:1"), "IfNotPresent"),
        ("no-digest", format!("{latest}@sha256:{}", "0".repeat(64)), ""),
    ] {
        node.apply(&format!("{name}.yaml"), with_image(name, &image, policy));
        node.wait_event("why", |reason, text| {
            reason == "Failed" && text == format!("Failed to pull image {image:?}: {image}: not found")
        });
        node.wait_event("the state", |reason, text| reason == "Failed" && text == "Error: ErrImagePull");
        let seen = node.wait_pod(name, "backs off", |p| p.waiting("main") == "ImagePullBackOff");
        let message = format!("Back-off pulling image {image:?}: ErrImagePull: {image}: not found");
        assert_eq!(seen.waiting_message("main"), message);
        node.wait_event("the wait", |reason, text| {
            reason == "BackOff" && text == format!("Back-off pulling image {image:?}")
        });
        node.wait_event("the state", |reason, text| reason == "Failed" && text == "Error: ImagePullBackOff");
    }
    node.apply("invalid.yaml", with_image("invalid", "Team/App:1", "IfNotPresent"));
    let seen = node.wait_pod("invalid", "refused", |p| p.waiting("main") == "InvalidImageName");
    assert!(seen.waiting_message("main").contains("must be lower case"), "{}", seen.waiting_message("main"));
    node.wait_event("told", |reason, text| reason == "InspectFailed" && text.contains("Team/App:1"));

    // Volumes of images are pulled, too, by the same rules.
    let volume = |name: &str, image: &str| {
        let mut pod = resting(name);
        pod["spec"]["volumes"] = json!([{ "name": "v", "image": { "reference": image } }]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
        pod
    };
    registry.push(&archive("volume:1".into()), "team/volume:1");
    node.run(&volume("volume", &registry.reference("team/volume:1")));
    assert_eq!(node.sh("volume", "test -x /v/bin/busybox && echo it is there"), "it is there");
    let missing = registry.reference("team/no-volume:1");
    node.apply("volume-missing.yaml", volume("volume-missing", &missing));
    let seen = node.wait_pod("volume-missing", "waits", |p| p.waiting("main") == "ImagePullBackOff");
    assert!(seen.waiting_message("main").contains(&missing), "{}", seen.waiting_message("main"));
    assert_ne!(old, new);
    node.finish();
}

#[test]
fn short_names_are_of_docker_io_and_come_from_its_mirror() {
    let registry = Registry::start(Auth::Plain);
    registry.push(&archive("edge-app:1".into()), "library/edge-app:latest");
    registry.push(&archive("edge-team:1".into()), "team/edge-app:2");
    registry.push(&archive("edge-far:1".into()), "far/edge/app:3");
    let mut node = Node::new();
    let hosts = node.dir.join("certs.d/registry.example");
    fs::create_dir_all(&hosts).expect("certs.d");
    let toml = format!(
        "server = \"http://127.0.0.1:{}\"\n[host.\"http://{}/v2/far\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         override_path = true\n",
        free_port(),
        registry.address()
    );
    fs::write(hosts.join("hosts.toml"), toml).expect("hosts.toml");
    let conf = format!(
        "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"{}\"\n\
         insecure = true\n",
        registry.address()
    );
    fs::write(node.dir.join("registries.conf"), conf).expect("registries.conf");
    configure(&mut node, json!({}));
    node.start();
    for (name, image, full) in [
        ("short", "edge-app", "docker.io/library/edge-app:latest"),
        ("team", "team/edge-app:2", "docker.io/team/edge-app:2"),
        ("far", "registry.example/edge/app:3", "registry.example/edge/app:3"),
    ] {
        node.run(&with_image(name, image, ""));
        let list = node.cli(&["image", "ls"]).ok();
        let row = list.lines().find(|line| line.contains(full)).unwrap_or_default();
        assert!(row.contains(&format!("default/{name}-")), "{full}\n{list}");
    }
    let refreshed = registry.requests("/v2/library/edge-app/manifests/");
    node.cli(&["exec", "short", "--", "sh", "-c", "kill 1"]);
    node.wait_pod("short", "started again", |p| p.restarts("main") == 1 && p.running("main"));
    assert!(registry.requests("/v2/library/edge-app/manifests/") > refreshed, "no tag is latest, and latest is Always");
    node.finish();
}

#[test]
fn at_night_a_failed_pull_says_what_why_and_what_next() {
    let registries = [Auth::Basic, Auth::Token, Auth::Tls].map(Registry::start);
    let mut node = Node::new();
    let dir = node.dir.clone();
    configure(&mut node, json!({ "authFiles": [dir.join("auth.json")] }));
    let credentials = |password: &str| {
        let auths: serde_json::Map<String, Value> = registries
            .iter()
            .map(|registry| (registry.address(), json!({ "username": USER, "password": password })))
            .collect();
        fs::write(dir.join("auth.json"), json!({ "auths": auths }).to_string()).expect("credentials");
    };
    let authority = |registry: &Registry| {
        let folder = dir.join("certs.d").join(registries[2].address());
        fs::create_dir_all(&folder).expect("certs.d");
        fs::copy(registry.ca(), folder.join("ca.crt")).expect("authority");
    };
    let names = ["basic", "token", "tls"];
    let mut images = Vec::new();
    for (registry, name) in registries.iter().zip(names) {
        registry.push(&archive(format!("{name}:1")), &format!("team/{name}:1"));
        images.push(registry.reference(&format!("team/{name}:1")));
    }
    let stranger = Registry::start(Auth::Tls);
    authority(&stranger);
    node.start();
    let said = node.cli(&["image", "pull", &images[0]]).fails(1);
    for part in ["cannot pull", "there are no credentials for it", "hint: ", "auth"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    credentials("wrong-secret");
    for (image, name) in images.iter().zip(names) {
        node.apply(&format!("{name}.yaml"), with_image(name, image, "IfNotPresent"));
    }
    for (image, parts) in images.iter().zip([
        &["401", "tried the credentials of ", "auth.json", "hint: "][..],
        &["401", "tried the credentials of ", "auth.json", "hint: "],
        &["ertificate", "certs.d", "hint: "],
    ]) {
        let said = node.cli(&["image", "pull", image]).fails(1);
        assert!(parts.iter().all(|part| said.contains(part)) && !said.contains("wrong-secret"), "{said}");
    }
    let said = node.cli(&["image", "pull", &format!("127.0.0.1:{}/team/app:1", free_port())]).fails(1);
    assert!(said.contains("refused") && said.contains("hint: "), "{said}");
    for name in names {
        node.wait_pod(name, "backs off", |p| p.waiting("main") == "ImagePullBackOff");
    }
    // What a person sets right counts at once for a pull by hand, and that ends the wait of pods.
    credentials(PASSWORD);
    authority(&registries[2]);
    for (image, name) in images.iter().zip(names) {
        node.cli(&["image", "pull", image]).ok();
        node.wait_up(name);
    }
    let said = node.cli(&["image", "pull", &registries[0].reference("team/basic:none")]).fails(1);
    assert!(said.contains("not found") && said.contains("hint: "), "{said}");
    let metrics = http(("127.0.0.1", node.healthz), "/metrics").expect("metrics").1;
    assert!(!metrics.contains(PASSWORD));
    let log = fs::read_to_string(node.dir.join("agent.log")).expect("log");
    assert!(!log.contains("wrong-secret") && !log.contains(PASSWORD), "a password is in the log");
    node.finish();
}
