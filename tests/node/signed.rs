//! Manifests that have to be signed, with the real minisign: what is not, is altered, by somebody else or older than what
//! ran is refused, and the pod runs on. And manifests that others could write.

use super::harness::{Node, PATIENCE, PodView, REST, eventually, pod, resting, secs};
use super::trust::{run, text};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A key pair of the tool's; the second is the file of the public half.
pub(super) fn key(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (secret, public) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pub")));
    run("minisign", &["-G", "-W", "-f", "-p", text(&public), "-s", text(&secret)]);
    (secret, public)
}

/// The key alone, as it can be written into a configuration.
pub(super) fn line(public: &Path) -> String {
    fs::read_to_string(public).expect("public key").lines().nth(1).expect("two lines").to_owned()
}

pub(super) fn sign(secret: &Path, file: &Path, comment: &str, options: &[&str]) {
    let signature = format!("{}.minisig", file.display());
    let mut args = vec!["-S", "-s", text(secret), "-m", text(file), "-x", &signature, "-t", comment];
    args.extend(options);
    run("minisign", &args);
}

/// A file with its signature beside it, outside the manifest directory.
fn signed(node: &Node, secret: &Path, content: &Value, comment: &str, options: &[&str]) -> PathBuf {
    let file = node.dir.join("signed.yaml");
    fs::write(&file, content.to_string()).expect("manifest");
    sign(secret, &file, comment, options);
    file
}

/// Puts a pair into place under a name, as people do: one after the other.
fn put(node: &Node, pair: &Path, name: &str) {
    fs::copy(format!("{}.minisig", pair.display()), node.manifest(&format!("{name}.minisig"))).expect("signature");
    fs::copy(pair, node.manifest(name)).expect("manifest");
}

fn configure(node: &mut Node, fields: Value) {
    let path = node.dir.join("coracle.yaml");
    let mut config = json!({ "apiVersion": "coracle.dev/v1alpha1", "kind": "CoracleConfiguration" });
    let all = config.as_object_mut().expect("a mapping");
    all.extend(fields.as_object().expect("a mapping").clone());
    fs::write(&path, config.to_string()).expect("config");
    node.args = vec!["--config".to_owned(), path.display().to_string()];
}

pub(super) fn says(name: &str, n: u32) -> Value {
    pod(name, &format!("echo version {n}; {REST}"))
}

/// An event tells why, and the very same container runs on.
#[track_caller]
fn refused(node: &Node, file: &str, why: &str, before: &PodView) {
    node.wait_event(&format!("{file} and {why:?}"), |_, message| message.contains(file) && message.contains(why));
    same(node, before);
}

#[track_caller]
fn same(node: &Node, before: &PodView) {
    let now = node.pod("web").unwrap_or_else(|| node.fail("the pod is gone"));
    assert_eq!((now.id("main"), now.uid(), now.restarts("main")), (before.id("main"), before.uid(), 0));
    if !now.up() {
        node.fail(&format!("it does not run any more: {}", now.0));
    }
}

#[track_caller]
fn logs(node: &Node, wanted: &str) -> PodView {
    eventually(wanted, PATIENCE, || node.cli(&["logs", "web"]).stdout.contains(wanted));
    node.wait_up("web")
}

#[test]
fn only_what_our_keys_signed_runs_and_never_what_is_older() {
    let mut node = Node::new();
    let (old, old_public) = key(&node.dir, "old");
    let (new, new_public) = key(&node.dir, "new");
    let (strange, _) = key(&node.dir, "strange");
    // One in the configuration, one in a file of its own.
    configure(&mut node, json!({ "manifestVerification": { "publicKeys": [line(&old_public), new_public] } }));
    node.start();
    node.wait_for_images();

    let fourth = signed(&node, &old, &says("web", 4), "serial=4", &[]);
    let replay = node.dir.join("replay.yaml");
    fs::copy(&fourth, &replay).expect("copy");
    fs::copy(format!("{}.minisig", fourth.display()), format!("{}.minisig", replay.display())).expect("copy");
    put(&node, &signed(&node, &old, &says("web", 7), "timestamp:1\tfile:web.yaml\tserial=7", &[]), "web.yaml");
    let before = logs(&node, "version 7");

    // One byte of the content, then of the signature.
    let content = fs::read_to_string(node.manifest("web.yaml")).expect("manifest");
    fs::write(node.manifest("web.yaml"), content.replace("version 7", "version 8")).expect("edit");
    refused(&node, "web.yaml", "does not fit its signature by key", &before);
    put(&node, &signed(&node, &old, &says("web", 8), "serial=8", &[]).with_file_name("signed.yaml"), "other.txt");
    fs::remove_file(node.manifest("other.txt")).expect("remove");
    fs::remove_file(node.manifest("other.txt.minisig")).expect("remove");
    let signature = fs::read_to_string(node.dir.join("signed.yaml.minisig")).expect("signature");
    fs::write(node.manifest("web.yaml.minisig"), signature.replace("serial=8", "serial=9")).expect("edit");
    fs::copy(node.dir.join("signed.yaml"), node.manifest("web.yaml")).expect("manifest");
    same(&node, &before);
    // None at all, by nobody we know, older, and older under another name.
    fs::remove_file(node.manifest("web.yaml.minisig")).expect("remove");
    refused(&node, "web.yaml", "is not signed: there is no web.yaml.minisig", &before);
    put(&node, &signed(&node, &strange, &says("web", 9), "serial=9", &[]), "web.yaml");
    refused(&node, "web.yaml", "which is not among manifestVerification.publicKeys", &before);
    put(&node, &replay, "web.yaml");
    refused(&node, "web.yaml", "serial 4 is older than 7, which this node accepted", &before);
    put(&node, &replay, "again.yaml");
    refused(&node, "again.yaml", "serial 4 is older than 7, which this node accepted for Pod default/web", &before);
    node.restart();
    refused(&node, "again.yaml", "serial 4 is older than 7, which this node accepted for Pod default/web", &before);
    refused(&node, "web.yaml", "serial 4 is older than 7, which this node accepted for", &before);
    fs::remove_file(node.manifest("again.yaml")).expect("remove");
    same(&node, &before);
    let state = fs::metadata(node.dir.join("root/serials.json")).expect("serials").permissions().mode();
    assert_eq!(state & 0o777, 0o600);

    // The next key, the old kind of signature, and a key that is taken back while the agent runs.
    put(&node, &signed(&node, &new, &says("web", 10), "serial=10", &[]), "web.yaml");
    logs(&node, "version 10");
    put(&node, &signed(&node, &old, &says("web", 11), "serial=11", &["-l"]), "web.yaml");
    logs(&node, "version 11");
    put(&node, &signed(&node, &new, &says("web", 12), "serial=12", &[]), "web.yaml");
    let before = logs(&node, "version 12");
    let (newer, newer_public) = key(&node.dir, "newer");
    fs::rename(newer_public, &new_public).expect("rotate");
    put(&node, &signed(&node, &new, &says("web", 13), "serial=13", &[]), "web.yaml");
    refused(&node, "web.yaml", "which is not among manifestVerification.publicKeys", &before);
    put(&node, &signed(&node, &newer, &says("web", 13), "serial=13", &[]), "web.yaml");
    logs(&node, "version 13");
    node.remove("web.yaml");
    node.wait_gone("web");
    node.finish();
}

#[test]
fn commands_send_check_and_remove_signatures() {
    let mut node = Node::new();
    let (secret, public) = key(&node.dir, "key");
    let (strange, stranger) = key(&node.dir, "strange");
    configure(&mut node, json!({ "manifestVerification": { "publicKeys": [public] } }));
    node.start();
    node.wait_for_images();

    let file = signed(&node, &secret, &resting("web"), "serial=3", &[]);
    let id =
        fs::read_to_string(&public).expect("key").lines().next().and_then(|l| l.rsplit(' ').next()).map(str::to_owned);
    let id = id.expect("its number");
    for key in [text(&public), &line(&public)] {
        let said = node.cli(&["validate", "--key", key, text(&file)]).ok();
        assert!(said.contains(&format!("signed by key {id}, serial 3, trusted comment: serial=3")), "{said}");
        assert!(said.contains("valid: default/web"), "{said}");
    }
    let said = node.cli(&["validate", "--key", text(&stranger), text(&file)]).fails(1);
    assert!(said.contains(&format!("is signed by key {id}, which is not among")), "{said}");
    assert!(
        node.cli(&["validate", "--key", text(&secret), text(&file)]).fails(1).contains("a secret key does not belong")
    );

    let said = node.cli(&["apply", "-f", text(&file)]).ok();
    assert_eq!(said, format!("pod/web-{} created\n", node.name));
    node.wait_up("web");
    assert!(node.manifest("default_web.yaml").exists() && node.manifest("default_web.yaml.minisig").exists());
    assert!(node.cli(&["apply", "-f", text(&file)]).ok().contains("unchanged"));
    sign(&secret, &file, "serial=4", &[]);
    assert!(node.cli(&["apply", "-f", text(&file)]).ok().contains("configured"), "another signature is a change");
    let before = node.wait_up("web");
    eventually("serial 4 is remembered", PATIENCE, || {
        fs::read_to_string(node.dir.join("root/serials.json")).is_ok_and(|text| text.contains("\"serial\":4"))
    });

    let older = signed(&node, &secret, &says("web", 1), "serial=3", &[]);
    let said = node.cli(&["apply", "-f", text(&older)]).fails(1);
    assert!(said.contains("serial 3 is older than 4"), "{said}");
    let foreign = signed(&node, &strange, &says("web", 1), "serial=9", &[]);
    assert!(node.cli(&["apply", "-f", text(&foreign)]).fails(1).contains("which is not among"));
    fs::remove_file(format!("{}.minisig", foreign.display())).expect("remove");
    let said = node.cli(&["apply", "-f", text(&foreign)]).fails(1);
    assert!(said.contains("the manifest is not signed"), "{said}");
    assert!(node.cli(&["validate", "--key", text(&public), text(&foreign)]).fails(1).contains(".minisig"));
    same(&node, &before);
    node.cli(&["delete", "web"]).ok();
    assert_eq!(fs::read_dir(node.dir.join("manifests")).expect("manifests").count(), 0, "nothing is left behind");

    let job = signed(
        &node,
        &secret,
        &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "job" },
        "spec": { "restartPolicy": "Never", "containers": says("job", 5)["spec"]["containers"].as_array()
            .map(|all| all.iter().map(|c| { let mut c = c.clone(); c["command"] = json!(["echo", "signed", "job"]); c })
            .collect::<Vec<_>>()) } }),
        "serial=1",
        &[],
    );
    let said = node.cli(&["run", "--until-complete", text(&job)]).ok();
    assert!(said.contains("signed job"), "{said}");
    assert_eq!(fs::read_dir(node.dir.join("manifests")).expect("manifests").count(), 0);
    node.finish();
}

#[test]
fn asking_for_signatures_and_permissions_stops_nothing_that_runs() {
    let mut node = Node::up();
    fs::write(node.manifest("web.yaml.minisig"), "not looked at").expect("signature");
    let before = node.run(&says("web", 1));
    assert!(!node.events().iter().any(|e| e["message"].as_str().is_some_and(|m| m.contains("minisig"))));
    node.stop();
    fs::remove_file(node.manifest("web.yaml.minisig")).expect("remove");
    let (secret, public) = key(&node.dir, "key");

    // A wrong key in the configuration is an error like any other there.
    configure(&mut node, json!({ "manifestVerification": { "publicKeys": [line(&public), "RWno-key"] } }));
    let said = node.second_agent().fails(1);
    assert!(said.contains("manifestVerification.publicKeys[1]"), "{said}");

    let later = node.dir.join("later.pub");
    configure(
        &mut node,
        json!({ "manifestVerification": { "publicKeys": [later] }, "strictManifestPermissions": true }),
    );
    node.start();
    // It was the last thing that happened before the agent was stopped: no record of it need be there yet.
    refused(&node, "web.yaml", "is not signed: there is no web.yaml.minisig", &before);
    put(&node, &signed(&node, &secret, &says("web", 1), "", &[]), "web.yaml");
    refused(&node, "web.yaml", "cannot be verified: minisign key ", &before);
    fs::rename(&public, &later).expect("the key comes");
    put(&node, &signed(&node, &secret, &says("web", 2), "a comment without a serial", &[]), "web.yaml");
    let before = logs(&node, "version 2");

    // Others may write to the file, then to the folder.
    let pair = signed(&node, &secret, &says("web", 3), "", &[]);
    fs::set_permissions(&pair, fs::Permissions::from_mode(0o666)).expect("chmod");
    put(&node, &pair, "web.yaml");
    fs::set_permissions(node.manifest("web.yaml"), fs::Permissions::from_mode(0o666)).expect("chmod");
    refused(&node, "web.yaml", "can be written by everybody (mode 0666)", &before);
    let folder = node.dir.join("manifests");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("chmod");
    refused(&node, "manifests", "chmod go-w", &before);
    fs::set_permissions(node.manifest("web.yaml"), fs::Permissions::from_mode(0o644)).expect("chmod");
    node.remove("web.yaml");
    std::thread::sleep(secs(1));
    same(&node, &before);
    put(&node, &pair, "web.yaml");
    fs::set_permissions(node.manifest("web.yaml"), fs::Permissions::from_mode(0o644)).expect("chmod");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("chmod");
    logs(&node, "version 3");
    // Without strictness they are only told of.
    configure(&mut node, json!({ "manifestVerification": { "publicKeys": [later] } }));
    node.restart();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("chmod");
    node.wait_event("the mode", |_, message| message.contains("can be written by everybody (mode 0777)"));
    put(&node, &signed(&node, &secret, &says("web", 4), "", &[]), "web.yaml");
    logs(&node, "version 4");
    node.remove("web.yaml");
    node.wait_gone("web");
    node.finish();
}
