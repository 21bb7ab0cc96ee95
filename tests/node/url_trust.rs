//! What a URL may be trusted with: only what our keys signed; ConfigMaps and Secrets, for pods of its own and for those of
//! the manifest directory; and TLS on a node whose clock nobody has set yet.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::harness::{Node, PATIENCE, PodView, REST, eventually, mode, pod, resting, secs};
use super::power::Clock;
use super::signed::{key, line, says, sign};
use super::url::{NONE, body, configure, same, told, well};
use super::url_server::{Authority, Play, Server};

const PODS: &str = "/pods.yaml?site=7";
const SIGNATURE: &str = "/pods.yaml.minisig?site=7";

/// A document and its signature.
type Pair = (Vec<u8>, Vec<u8>);

fn signed(node: &Node, secret: &Path, content: impl ToString, comment: &str) -> Pair {
    let file = node.dir.join("signed.yaml");
    fs::write(&file, content.to_string()).expect("manifest");
    sign(secret, &file, comment, &[]);
    let signature = fs::read(node.dir.join("signed.yaml.minisig")).expect("signature");
    (fs::read(&file).expect("manifest"), signature)
}

/// As people should: the signature goes first, since nobody asks for it while the document is the same.
fn publish(server: &Server, (document, signature): &Pair) {
    server.play(SIGNATURE, Play::Body(signature.clone()));
    server.play(PODS, Play::Body(document.clone()));
}

fn version(node: &Node, n: u32) -> String {
    let wanted = format!("version {n}");
    eventually(&wanted, PATIENCE, || node.cli(&["logs", "web"]).stdout.contains(&wanted));
    node.wait_up("web").id("main")
}

#[test]
fn a_signed_url_gives_what_our_keys_signed_and_nothing_older() {
    let mut server = Server::plain();
    let mut node = Node::new();
    let (old, old_public) = key(&node.dir, "old");
    let (new, new_public) = key(&node.dir, "new");
    let (strange, _) = key(&node.dir, "strange");
    let headers = json!({ "X-Site": ["plant 7"] });
    configure(
        &mut node,
        "100ms",
        json!({
            "manifestURLs": [{ "url": server.url(PODS), "headers": headers }],
            "manifestVerification": { "publicKeys": [line(&old_public), new_public] },
        }),
    );
    let fourth = signed(&node, &old, says("web", 4), "serial=4");
    let seventh = signed(&node, &old, says("web", 7), "timestamp:1\tfile:pods.yaml\tserial=7");
    // Nothing that is not signed, not even the first.
    server.play(PODS, Play::Body(seventh.0.clone()));
    node.start();
    node.wait_for_images();
    told(&node, "is not signed: there is no http://");
    assert!(node.pods().is_empty());
    publish(&server, &seventh);
    let id = version(&node, 7);
    assert_eq!(server.asked(SIGNATURE)[0].headers["x-site"], "plant 7");
    well(&node);
    // What is known needs no signature again.
    let (before, asked) = (server.asked(SIGNATURE).len(), server.asked(PODS).len());
    eventually("it was asked twice more", PATIENCE, || server.asked(PODS).len() > asked + 1);
    assert_eq!(server.asked(SIGNATURE).len(), before);

    let eighth = signed(&node, &old, says("web", 8), "serial=8");
    let altered = |bytes: &[u8], from: &str, to: &str| {
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        assert!(text.contains(from), "{text}");
        text.replace(from, to).into_bytes()
    };
    let cases: [(Play, Vec<u8>, &str); 9] = [
        // One byte of the document, then of what is said of it.
        (Play::Body(eighth.1.clone()), altered(&eighth.0, "version 8", "version 9"), "does not fit its signature"),
        (Play::Body(altered(&eighth.1, "serial=8", "serial=9")), eighth.0.clone(), "does not fit its signature by key"),
        (Play::status("404 Not Found", ""), eighth.0.clone(), "is not signed: there is no http://"),
        (Play::status("500 Internal Server Error", ""), eighth.0.clone(), "signature cannot be read: status 500"),
        (body("<html>Welcome to the hotel</html>"), eighth.0.clone(), "its signature is not a minisign signature"),
        (Play::Body(vec![b'x'; 1 << 20]), eighth.0.clone(), "its signature cannot be read: is "),
        // The signature of before: people who forget it.
        (Play::Body(seventh.1.clone()), eighth.0.clone(), "does not fit its signature"),
        {
            let foreign = signed(&node, &strange, says("web", 9), "serial=9");
            (Play::Body(foreign.1), foreign.0, "which is not among manifestVerification.publicKeys")
        },
        (Play::Body(fourth.1.clone()), fourth.0.clone(), "serial 4 is older than 7, which this node accepted"),
    ];
    for (signature, document, reason) in cases {
        server.play(SIGNATURE, signature);
        server.play(PODS, Play::Body(document));
        told(&node, reason);
        same(&node, "web", &id);
        publish(&server, &seventh);
        well(&node);
    }
    same(&node, "web", &id);

    // An old pair is as old after a restart, and with nobody there what ran runs on.
    publish(&server, &fourth);
    node.stop();
    node.start();
    told(&node, "serial 4 is older than 7");
    same(&node, "web", &id);
    node.stop();
    server.stop();
    node.start();
    told(&node, "/pods.yaml: ");
    same(&node, "web", &id);

    // The next pair, with the document before its signature; by the other key; and a list without pods has to be signed, too.
    server.play(PODS, Play::Body(eighth.0.clone()));
    server.restart();
    told(&node, "does not fit its signature");
    same(&node, "web", &id);
    publish(&server, &eighth);
    assert_ne!(version(&node, 8), id);
    well(&node);
    publish(&server, &signed(&node, &new, says("web", 9), "serial=9"));
    let id = version(&node, 9);
    publish(&server, &signed(&node, &strange, NONE, "serial=10"));
    told(&node, "which is not among");
    same(&node, "web", &id);
    publish(&server, &signed(&node, &new, NONE, "serial=10"));
    node.wait_gone("web");
    node.finish();
}

/// A pod with both objects, as variables and as files.
fn user(name: &str) -> Value {
    let mut manifest = pod(name, REST);
    manifest["spec"]["volumes"] = json!([
        { "name": "settings", "configMap": { "name": "settings" } },
        { "name": "keys", "secret": { "secretName": "keys" } },
    ]);
    let container = &mut manifest["spec"]["containers"][0];
    container["envFrom"] = json!([{ "configMapRef": { "name": "settings" } }]);
    container["env"] =
        json!([{ "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "password" } } }]);
    container["volumeMounts"] =
        json!([{ "name": "settings", "mountPath": "/settings" }, { "name": "keys", "mountPath": "/keys" }]);
    manifest
}

#[test]
fn objects_of_a_url_serve_its_pods_and_those_of_the_directory() {
    let mut server = Server::plain();
    let mut node = Node::new();
    configure(&mut node, "100ms", json!({ "manifestURLs": [{ "url": server.url("/pods") }] }));
    let objects = |color: &str, password: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{color: {color}}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {{password: {password}}}\n"
        )
    };
    let all = |color: &str, password: &str| body(format!("{}---\n{}\n", objects(color, password), user("net")));
    // One that comes before its objects waits for them.
    node.apply("local.yaml", user("local"));
    node.start();
    node.wait_for_images();
    node.wait_event("it says what it waits for", |_, message| message.contains("settings"));
    server.play("/pods", all("blue", "hunter2-first"));
    let ids = ["net", "local"].map(|name| node.wait_up(name).id("main"));
    let script = "echo $color $PASSWORD $(cat /settings/color) $(cat /keys/password)";
    for name in ["net", "local"] {
        assert_eq!(node.sh(name, script), "blue hunter2-first blue hunter2-first", "{name}");
    }

    // Files follow, variables do not.
    server.play("/pods", all("green", "hunter2-second"));
    for (name, id) in ["net", "local"].iter().zip(&ids) {
        eventually(&format!("{name} sees the new files"), PATIENCE, || {
            node.sh(name, script) == "blue hunter2-first green hunter2-second"
        });
        same(&node, name, id);
    }
    let printed = node.cli(&["get", "pods", "-A", "-o", "yaml"]).ok() + &node.cli(&["get", "events", "-A"]).ok();
    let log = fs::read_to_string(node.dir.join("agent.log")).expect("log");
    assert!(!printed.contains("hunter2") && !log.contains("hunter2"));
    let records: Vec<_> = fs::read_dir(node.dir.join("root/manifests/urls")).expect("records").flatten().collect();
    assert_eq!(records.len(), 1);
    assert_eq!(mode(&records[0].path()) & 0o777, 0o600);

    // Objects that are not named any more stay while somebody needs them; a broken one keeps its last.
    server.play("/pods", body(format!("{}---\n{}\n", objects("red", "[1]"), user("net"))));
    node.wait_event("the broken one", |_, message| message.contains("/pods: ") && message.contains("stringData"));
    server.play("/pods", body(user("net")));
    let asked = server.asked("/pods").len();
    eventually("it was asked twice more", PATIENCE, || server.asked("/pods").len() > asked + 1);
    for (name, id) in ["net", "local"].iter().zip(&ids) {
        same(&node, name, id);
        assert!(node.sh(name, "cat /keys/password").starts_with("hunter2-"), "{name}");
    }

    // Nobody answers, and all that is left is on the disk: with the objects that the URL named last.
    server.play("/pods", all("white", "hunter2-third"));
    eventually("the third", PATIENCE, || node.sh("local", "cat /keys/password") == "hunter2-third");
    eventually("it is on the disk", PATIENCE, || {
        fs::read_to_string(records[0].path()).is_ok_and(|text| text.contains("white"))
    });
    node.kill9();
    server.stop();
    node.kill_everything();
    node.forget_kernel_state();
    node.start();
    for (name, id) in ["net", "local"].iter().zip(&ids) {
        node.wait_pod(name, "started anew", |pod| pod.up() && pod.id("main") != *id);
        assert_eq!(node.sh(name, script), "white hunter2-third white hunter2-third", "{name}");
    }
    server.play("/pods", body(NONE));
    server.restart();
    node.wait_gone("net");
    assert!(node.pod("local").is_some_and(|pod| pod.up()), "who needs the objects keeps them");
    node.remove("local.yaml");
    node.wait_gone("local");
    node.finish();
}

#[test]
fn tls_is_spoken_in_1970_and_commands_have_urls_asked_again() {
    let authority = Authority::new("right");
    let (fresh, stale) = (Server::tls(authority.server(None)), Server::tls(authority.expired_server()));
    fresh.play("/fresh", body(resting("fresh")));
    stale.play("/stale", body(resting("stale")));
    let mut node = Node::new();
    let ca = node.dir.join("ca.pem");
    authority.write(&ca);
    node.env.push(("CORACLE_TEST_CLOCK".into(), node.dir.join("clock").display().to_string()));
    Clock::of(&node).set(Timestamp::from_second(40).expect("1970"));
    // Once an hour: what happens sooner was asked for.
    let urls = [fresh.url("/fresh"), stale.url("/stale")].map(|url| json!({ "url": url, "caFile": ca }));
    configure(&mut node, "1h", json!({ "manifestURLs": urls }));
    node.start();
    node.wait_for_images();
    let id = node.wait_up("fresh").id("main");
    told(&node, "certificate expired");
    assert!(stale.asked("/stale").is_empty(), "nothing is said to who shows an expired certificate");

    // Somebody sets the clock.
    Clock::of(&node).set(Timestamp::now());
    let before = fresh.asked("/fresh").len();
    fresh.play("/fresh", body(format!("---\n{}\n---\n{}\n", resting("fresh"), resting("second"))));
    let file = node.dir.join("local.yaml");
    fs::write(&file, resting("local").to_string()).expect("manifest");
    node.cli(&["apply", "-f", &file.display().to_string()]).ok();
    node.wait_up("local");
    node.wait_up("second");
    assert!(fresh.asked("/fresh").len() > before);
    same(&node, "fresh", &id);
    told(&node, "certificate expired");
    assert!(node.pod("stale").is_none());

    let events = node.events();
    let unwell: Vec<&Value> = events.iter().filter(|event| event["reason"] == "SourceUnhealthy").collect();
    assert_eq!(unwell.len(), 1, "{unwell:?}");
    assert!(unwell[0]["count"].as_u64().is_none_or(|count| count <= 1), "it is told once: {unwell:?}");

    // The other URL has never spoken; what this one takes back goes all the same.
    fresh.play("/fresh", body(NONE));
    node.cli(&["delete", "local"]).ok();
    node.wait("all pods are gone", secs(60), |pods: &[PodView]| pods.is_empty());
    node.finish();
}
