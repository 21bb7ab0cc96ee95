//! What somebody or something does to files of the image store by hand: found at the next use, told, and healed.

use super::harness::{BUSYBOX, Node, PATIENCE, alive, eventually, image_archive, resting, secs};
use super::registry_server::{Auth, Registry};
use super::shapes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The layer of busybox's image that has its programs.
fn layer(node: &Node) -> PathBuf {
    let layers = fs::read_dir(node.dir.join("root/store/layers")).expect("layers");
    let mut found = layers.map(|entry| entry.expect("entry").path()).filter(|path| path.join("bin/busybox").exists());
    found.next().unwrap_or_else(|| node.fail("no layer has bin/busybox"))
}

/// The record of busybox's image.
fn record(node: &Node) -> PathBuf {
    let records = fs::read_dir(node.dir.join("root/store/images")).expect("images");
    let mut paths = records.map(|entry| entry.expect("entry").path());
    let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let named = |path: &PathBuf| is_record(path) && fs::read_to_string(path).is_ok_and(|text| text.contains("busybox"));
    paths.find(named).unwrap_or_else(|| node.fail("no record names busybox"))
}

/// How often events of a reason were told of busybox's image.
fn told(node: &Node, reason: &str) -> u64 {
    let of_busybox = |event: &Value| event["message"].as_str().is_some_and(|message| message.contains(BUSYBOX));
    let of_reason =
        |event: &Value| (event["reason"] == reason && of_busybox(event)).then(|| event["count"].as_u64().unwrap_or(1));
    node.events().iter().filter_map(of_reason).sum()
}

/// Everything of a folder that the seal knows, to compare before and after.
fn listing(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut ahead = vec![dir.to_path_buf()];
    while let Some(path) = ahead.pop() {
        for entry in fs::read_dir(&path).expect("list") {
            let path = entry.expect("entry").path();
            let m = fs::symlink_metadata(&path).expect("lstat");
            let content = if m.is_file() { fs::read(&path).expect("read") } else { Vec::new() };
            let sum = content.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            let size = if m.is_dir() { 0 } else { m.size() };
            lines.push(format!("{name} {:o} {}:{} {size} {sum:x}", m.mode(), m.uid(), m.gid()));
            if m.is_dir() {
                ahead.push(path);
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn what_is_done_to_a_layer_is_found_at_use_told_and_healed() {
    let node = Node::up();
    let layer = layer(&node);
    let whole = listing(&layer);
    // It runs on the layer while that is damaged, quarantined and replaced.
    let steady = node.run(&resting("steady"));
    let pid = node.init_pid(&steady.id("main"));
    let (seal, recipe) = (layer.with_extension("seal"), layer.with_extension("recipe"));
    let programs = layer.join("bin/busybox");
    let content = || {
        // In place, and nothing about it but its content changes.
        let mut bytes = fs::read(&programs).expect("read");
        let modified = fs::metadata(&programs).and_then(|m| m.modified()).expect("mtime");
        // In the ELF identification's padding: it runs nevertheless.
        bytes[15] ^= 1;
        let other = layer.join("bin/.other");
        fs::copy(&programs, &other).expect("copy");
        fs::write(&other, &bytes).expect("write");
        fs::File::options().write(true).open(&other).and_then(|f| f.set_modified(modified)).expect("mtime");
        fs::rename(&other, &programs).expect("rename");
    };
    let truncate = |path: &Path| {
        let file = fs::File::options().write(true).open(path).expect("open");
        let length = file.metadata().expect("length").len();
        file.set_len(length / 2).expect("truncate");
    };
    let damages: [(&str, &dyn Fn()); 8] = [
        ("bin/busybox has other content", &content),
        ("bin/busybox is missing", &|| fs::remove_file(&programs).expect("remove")),
        ("added is not of the layer", &|| fs::write(layer.join("added"), "x").expect("add")),
        ("bin has mode 0777", &|| {
            fs::set_permissions(layer.join("bin"), PermissionsExt::from_mode(0o777)).expect("mode")
        }),
        ("bin belongs to 7:0", &|| std::os::unix::fs::chown(layer.join("bin"), Some(7), None).expect("owner")),
        ("wrong checksum", &|| truncate(&seal)),
        ("too short", &|| fs::write(&seal, "").expect("empty")),
        ("its recipe has", &|| truncate(&recipe)),
    ];
    for (i, (what, damage)) in damages.iter().enumerate() {
        let healed = told(&node, "ImageHealed");
        damage();
        let name = format!("after{i}");
        node.run(&resting(&name));
        let event = node.wait_event(what, |reason, message| {
            reason == "ImageDamaged" && message.contains(what) && message.contains(BUSYBOX)
        });
        let message = event["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.contains("sha256:"), "{message}");
        eventually("it is told that it is healed", secs(20), || told(&node, "ImageHealed") > healed);
        assert_eq!(listing(&layer), whole, "{what}");
        assert!(seal.exists() && recipe.exists(), "{what}");
        assert!(alive(pid), "{what}");
        node.remove(&format!("{name}.yaml"));
    }
    // The old folder is still under the container that runs on it.
    assert_eq!(node.sh("steady", "ls /bin/busybox").trim(), "/bin/busybox");
    assert!(fs::read_dir(node.dir.join("root/store/quarantine")).expect("quarantine").count() > 0);
    node.cli(&["image", "verify"]).ok();
    node.finish();
}

#[test]
fn records_that_are_damaged_cost_nothing_and_verification_finds_what_use_does_not() {
    let mut node = Node::up();
    let (layer, record) = (layer(&node), record(&node));
    let records = [record.clone(), layer.with_extension("json")];
    // While the agent runs, it knows what they said.
    for (i, path) in records.iter().enumerate() {
        let length = fs::metadata(path).expect("record").len() as usize;
        fs::write(path, vec![0; length]).expect("zeros");
        node.run(&resting(&format!("known{i}")));
        let text = fs::read(path).expect("record");
        assert!(text.starts_with(b"{"), "{} was not written anew", path.display());
    }
    node.wait_event("the record", |reason, message| reason == "ImageDamaged" && message.contains("its record"));

    // Nobody is there to know.
    for (i, path) in records.iter().enumerate() {
        for (j, content) in [&b""[..], &[0; 900]].into_iter().enumerate() {
            node.stop();
            fs::write(path, content).expect("damage");
            node.start();
            node.run(&resting(&format!("anew{i}{j}")));
            assert!(fs::read(path).expect("record").starts_with(b"{"));
        }
    }
    node.stop();
    fs::remove_dir_all(&layer).expect("remove the layer");
    node.start();
    node.run(&resting("gone"));
    node.wait_event("healed", |reason, message| reason == "ImageHealed" && message.contains("busybox"));

    // Verification reads everything, without a use.
    let lines = node.cli(&["image", "verify", BUSYBOX]).ok();
    assert!(lines.contains("good") && lines.contains("sha256:"), "{lines}");
    let programs = layer.join("bin/busybox");
    let mut bytes = fs::read(&programs).expect("read");
    bytes[15] ^= 1;
    let other = layer.join("bin/.other");
    fs::copy(&programs, &other).expect("copy");
    fs::write(&other, &bytes).expect("write");
    fs::rename(&other, &programs).expect("rename");
    let out = node.cli(&["image", "verify"]);
    assert_eq!(out.code, Some(1), "{}", out.stdout);
    assert!(
        out.stdout.contains("bin/busybox has other content") && out.stdout.contains("brought back"),
        "{}",
        out.stdout
    );
    eventually("it is brought back", secs(20), || node.cli(&["image", "verify"]).code == Some(0));
    assert_ne!(fs::read(&programs).expect("read"), bytes);
    node.cli(&["image", "verify", "no/such:image"]).fails(1);

    // A store that was copied elsewhere and back has other inodes and times, and is right.
    node.stop();
    let store = node.dir.join("root/store");
    let copied = std::process::Command::new("cp").arg("-a").arg(&store).arg(node.dir.join("copy")).status();
    assert!(copied.expect("cp").success());
    fs::remove_dir_all(&store).expect("remove");
    fs::rename(node.dir.join("copy"), &store).expect("rename");
    let before = fs::read(layer.with_extension("seal")).expect("seal");
    node.start();
    let damaged = told(&node, "ImageDamaged");
    node.run(&resting("moved"));
    assert_eq!(told(&node, "ImageDamaged"), damaged);
    assert_ne!(fs::read(layer.with_extension("seal")).expect("seal"), before);

    // An image that comes from nowhere any more: its container waits and says so; imported again, it starts.
    let archive = node.dir.join("root/images/images.tar");
    let away = node.dir.join("images.tar");
    fs::rename(&archive, &away).expect("move the archive away");
    // Nor is there an earlier copy.
    for entry in fs::read_dir(store.join("quarantine")).expect("quarantine") {
        fs::remove_dir_all(entry.expect("entry").path()).expect("remove");
    }
    fs::remove_file(&programs).expect("remove");
    let name = "patient";
    node.apply("patient.yaml", resting(name));
    node.wait_event("lost", |reason, message| reason == "ImageHealFailed" && message.contains("busybox"));
    assert!(!node.wait_pod(name, "it waits", |pod| !pod.waiting("main").is_empty()).up());
    fs::rename(&away, &archive).expect("move the archive back");
    node.wait_up(name);
    assert!(programs.exists());
    // It came in with its archive: who brings images back sees that at the next attempt.
    for metric in ["coracle_images_damaged_total", "coracle_images_healed_total"] {
        eventually(metric, secs(60), || {
            let metrics = super::harness::page(&format!("127.0.0.1:{}", node.healthz), "/metrics");
            let line = metrics.lines().find(|line| line.starts_with(metric)).unwrap_or_default();
            !line.is_empty() && !line.ends_with(" 0")
        });
    }
    node.finish();
}

/// What can become of a file.
const WAYS: [&str; 8] = ["empty", "zeros", "a bit", "half", "gone", "a folder", "a dead link", "a link to another"];

fn ruin(path: &Path, way: &str) {
    let content = fs::read(path).expect("a file of the store");
    let aside = path.with_extension("aside");
    // In place: the same inode, as a file system that was cut off leaves it.
    match way {
        "empty" => fs::write(path, "").expect("empty"),
        "zeros" => fs::write(path, vec![0; content.len()]).expect("zeros"),
        "half" => fs::write(path, &content[..content.len() / 2]).expect("half"),
        "a bit" => {
            let mut flipped = content.clone();
            flipped[content.len() / 2] ^= 4;
            fs::write(path, flipped).expect("a bit");
        }
        _ => {
            fs::remove_file(path).expect("gone");
            match way {
                "gone" => {}
                "a folder" => fs::create_dir_all(path.join("with/something")).expect("a folder"),
                "a dead link" => std::os::unix::fs::symlink(&aside, path).expect("a link"),
                _ => std::os::unix::fs::symlink("/proc/self/stat", path).expect("a link"),
            }
        }
    }
}

/// All files of a store but for its lock, with their content, as paths below it. What a seal says changes with inodes.
fn contents(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for sub in ["images", "copies", "layers", "pulled", "pulling", "staging"] {
        for entry in fs::read_dir(store.join(sub)).expect("a folder of the store") {
            let path = entry.expect("entry").path();
            let content = match path.is_dir() {
                true => listing(&path).join("\n").into_bytes(),
                false if path.extension().is_some_and(|kind| kind == "seal") => b"a seal".to_vec(),
                false => fs::read(&path).unwrap_or_else(|e| format!("{e}").into_bytes()),
            };
            found.insert(path.strip_prefix(store).expect("below").to_owned(), content);
        }
    }
    found
}

/// What a file says that must be as before. A layer's record that is made anew does not know how the layer came, and assumes
/// of its folders what costs only time.
fn told_by(path: &Path, content: &[u8]) -> String {
    if path.starts_with("layers") && path.extension().is_some_and(|kind| kind == "json") {
        let mut record: Value = serde_json::from_slice(content).expect("a record");
        let fields = record.as_object_mut().expect("an object");
        fields.retain(|field, _| !["unlisted", "blob", "xxh3"].contains(&field.as_str()));
        return record.to_string();
    }
    String::from_utf8_lossy(content).into_owned()
}

/// What a power cut leaves of a file, and what a person makes of it: every file beside the layers, in every way, while the
/// agent runs and while it does not. It is found by who looks, told, and healed; in between nothing stops.
#[test]
fn every_file_of_the_store_can_be_lost_in_every_way() {
    let registry = Registry::start(Auth::Plain);
    registry.push(&image_archive("pulled:1"), "team/app:1");
    let image = registry.reference("team/app:1");
    let mut node = Node::new();
    fs::remove_file(node.dir.join("root/images/images.tar")).expect("no test images");
    node.start();
    node.cli(&["image", "pull", &image]).ok();
    let store = node.dir.join("root/store");
    let clean = contents(&store);
    let files: Vec<PathBuf> = clean.keys().filter(|path| store.join(path).is_file()).cloned().collect();
    // Record, copy, configuration; record, seal and recipe of the layer; the pull's record.
    assert_eq!(files.len(), 7, "{files:?}");
    let all = std::env::var_os("CORACLE_LONG_TESTS").is_some_and(|v| v == "1");
    for (i, file) in files.iter().enumerate() {
        for (j, way) in WAYS.iter().enumerate() {
            if !all && (i + j) % 4 != 0 {
                continue;
            }
            let in_store = !file.starts_with("pulled");
            // One that may still make sense: of who may use the image, not of what it is.
            if !in_store && *way == "a bit" {
                continue;
            }
            let while_up = (i + j) % 8 < 4;
            let when =
                format!("{} of {}, the agent {}", way, file.display(), if while_up { "runs" } else { "is down" });
            let told = |node: &Node| {
                let events = node.events();
                let of_damage = events.iter().filter(|event| event["reason"] == "ImageDamaged");
                of_damage.map(|event| event["count"].as_u64().unwrap_or(1)).sum::<u64>()
            };
            if !while_up {
                node.stop();
            }
            let before = if while_up { told(&node) } else { 0 };
            ruin(&store.join(file), way);
            if !while_up {
                node.start();
            }
            let first = node.cli(&["image", "verify"]);
            if in_store && while_up {
                assert_eq!(first.code, Some(1), "{when}: {}", first.stdout);
            }
            // The pull's record is read once, at the start. What is not there is no news of it then, nor of a copy.
            let absent = *way == "gone" || *way == "a dead link";
            if (in_store && (while_up || !absent || !file.starts_with("copies"))) || (!while_up && !absent) {
                eventually(&format!("{when}: it is told"), PATIENCE, || first.code == Some(1) || told(&node) > before);
                eventually(&format!("{when}: there is an event"), PATIENCE, || told(&node) > before);
            }
            eventually(&format!("{when}: it is healed"), PATIENCE, || node.cli(&["image", "verify"]).code == Some(0));
            if !in_store {
                node.cli(&["image", "pull", &image]).ok();
                if while_up {
                    node.restart();
                    node.cli(&["image", "pull", &image]).ok();
                }
            }
            // What brought it back tidies up behind itself.
            eventually(&format!("{when}: nothing is staged"), PATIENCE, || {
                fs::read_dir(store.join("staging")).is_ok_and(|dir| dir.count() == 0)
            });
            let is = contents(&store);
            for (path, content) in &clean {
                let now = is.get(path).map(|now| told_by(path, now));
                assert_eq!(now, Some(told_by(path, content)), "{when}: {}", path.display());
            }
            assert_eq!(is.len(), clean.len(), "{when}: {:?}", is.keys());
        }
    }
    // What only remembers something: lost, it costs nothing.
    node.stop();
    for name in ["used.json", "dropin.json", "builtin.json"] {
        fs::create_dir_all(store.join(name).join("folder")).or_else(|_| fs::write(store.join(name), "")).expect("ruin");
    }
    node.start();
    node.cli(&["image", "verify"]).ok();
    let mut pod = resting("last");
    pod["spec"]["containers"][0]["image"] = json!(image);
    node.run(&pod);
    node.finish();
}

/// Without the registry a damaged image is refused by name, what is only beside it stops nobody, and it can be removed;
/// a quarantined layer stays as long as something runs on it, and no longer.
#[test]
fn without_its_registry_a_damaged_image_is_refused_with_the_reason_and_healed_when_it_is_back() {
    let mut registry = Registry::start(Auth::Plain);
    let node = Node::up();
    // A layer of its own: one that is mounted anywhere on the machine is not removed.
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok()).expect("busybox");
    let links = ["sh", "sleep", "ls"].map(|name| shapes::symlink(format!("bin/{name}"), "busybox"));
    let whose = shapes::file("own", node.dir.display().to_string());
    let items = [shapes::dir("bin/"), shapes::file("bin/busybox", busybox).mode(0o755), whose];
    let own = node.dir.join("share/own.tar");
    fs::write(&own, shapes::docker_archive("own:1", &[shapes::layer(items.into_iter().chain(links))]))
        .expect("archive");
    registry.push(&own, "team/app:1");
    let image = registry.reference("team/app:1");
    let with_image = |name: &str| {
        let mut pod = resting(name);
        pod["spec"]["containers"][0]["image"] = json!(image);
        pod
    };
    node.run(&with_image("steady"));
    let store = node.dir.join("root/store");
    let steady = node.pod("steady").expect("steady");
    let pid = node.init_pid(&steady.id("main"));
    let layer = shapes::layers_of(&node, &image).remove(0);
    registry.stop();

    // Only the recipe: containers start all the same.
    fs::write(layer.with_extension("recipe"), "").expect("empty");
    node.run(&with_image("second"));
    node.wait_event("the recipe", |reason, text| reason == "ImageDamaged" && text.contains("its recipe has 0 bytes"));
    let said = node.cli(&["image", "verify", &image]).fails(1);
    assert!(said.contains("its recipe has 0 bytes"), "{said}");
    node.wait_event("who was asked", |reason, text| reason == "ImageHealFailed" && text.contains("127.0.0.1"));
    registry.restart();
    eventually("the recipe is back", secs(60), || {
        fs::metadata(layer.with_extension("recipe")).is_ok_and(|recipe| recipe.len() > 0)
    });
    eventually("it is whole", PATIENCE, || node.cli(&["image", "verify", &image]).code == Some(0));
    registry.stop();

    // Content, and the recipe with it: it cannot be had from what is left.
    fs::write(layer.with_extension("recipe"), "").expect("empty");
    fs::write(layer.join("own"), "").expect("empty");
    node.apply("third.yaml", with_image("third"));
    node.wait_event("found", |reason, text| reason == "ImageDamaged" && text.contains("own has 0 bytes"));
    node.wait_event("refused", |reason, text| {
        reason == "ImageHealFailed" && text.contains(&image) && text.contains("127.0.0.1")
    });
    assert!(!node.wait_pod("third", "it waits", |pod| !pod.waiting("main").is_empty()).up());
    assert!(alive(pid), "what runs runs on");
    registry.restart();
    eventually("it is healed", secs(60), || node.cli(&["image", "verify"]).code == Some(0));
    node.wait_up("third");
    let quarantined = || fs::read_dir(store.join("quarantine")).expect("quarantine").count();
    assert!(quarantined() > 0);
    node.cli(&["image", "prune"]).ok();
    assert!(quarantined() > 0, "containers run on it");
    for name in ["steady", "second"] {
        assert_eq!(node.sh(name, "ls /bin/busybox"), "/bin/busybox");
    }
    for name in ["steady", "second", "third"] {
        node.remove(&format!("{name}.yaml"));
    }
    for name in ["steady", "second", "third"] {
        node.wait_gone(name);
    }
    eventually("quarantine is emptied", PATIENCE, || {
        node.cli(&["image", "prune"]).code == Some(0) && quarantined() == 0
    });
    node.finish();
}
