//! Manifests from URLs: what servers do on bad days, and that pods run on through all of it.

use std::fs;
use std::io::Write;

use serde_json::{Value, json};

use super::harness::{Node, PATIENCE, PodView, eventually, resting, secs};
use super::url_server::{Authority, Play, Server};

/// A list without a pod: removes all.
pub(super) const NONE: &str = "apiVersion: v1\nkind: PodList\nitems: []\n";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

pub(super) fn body(text: impl ToString) -> Play {
    Play::Body(text.to_string().into_bytes())
}

/// A node that asks these URLs often.
fn node(urls: &[Value]) -> Node {
    let mut node = Node::new();
    configure(&mut node, "100ms", json!({ "manifestURLs": urls }));
    node
}

/// Configures a node that is not started yet.
pub(super) fn configure(node: &mut Node, frequency: &str, mut own: Value) {
    own["apiVersion"] = json!("coracle.dev/v1alpha1");
    own["kind"] = json!("CoracleConfiguration");
    let kubelet = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nhttpCheckFrequency: {frequency}\n"
    );
    let path = node.dir.join("config.yaml");
    fs::write(&path, format!("{kubelet}---\n{own}\n")).expect("config");
    node.args.extend(["--config".to_owned(), path.display().to_string()]);
}

/// What the node's status says is wrong with its sources now.
#[track_caller]
pub(super) fn trouble(node: &Node) -> Option<String> {
    let status = node.cli(&["status"]).ok();
    status.lines().find(|line| line.contains("SourceUnhealthy (now): ")).map(str::to_owned)
}

/// Waits until that holds a text.
#[track_caller]
pub(super) fn told(node: &Node, text: &str) {
    eventually(&format!("the status tells: {text}"), secs(60), || {
        trouble(node).is_some_and(|said| said.contains(text))
    });
}

#[track_caller]
pub(super) fn well(node: &Node) {
    eventually("all sources are well", PATIENCE, || trouble(node).is_none());
}

/// The container that runs, which must be the one that ran.
#[track_caller]
pub(super) fn same(node: &Node, name: &str, id: &str) {
    let pod = node.pod(name).unwrap_or_else(|| node.fail(&format!("{name} is gone")));
    assert!(pod.up(), "{name}: {pod:?}");
    assert_eq!((pod.id("main").as_str(), pod.restarts("main")), (id, 0), "{name}");
}

fn peak_kib(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.agent_pid())).expect("status of the agent");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn pods_of_a_url_run_on_through_all_that_its_server_does() {
    let mut server = Server::plain();
    let mut node = node(&[json!({ "url": server.url("/pods?token=s3cret"), "headers": { "X-Site": ["plant 7"] } })]);
    let path = "/pods?token=s3cret";
    let (web, db) = (resting("web"), resting("db"));
    // With a mark before the first: what begins with a brace is one document.
    let both = format!("---\n{web}\n---\n{db}\n");
    server.play(path, body(&both));
    node.start();
    node.wait_for_images();
    let ids = ["web", "db"].map(|name| node.wait_up(name).id("main"));
    let uid = node.pod("web").expect("web").uid().to_owned();
    // What is known is not sent again.
    eventually("it is asked for with its ETag", PATIENCE, || {
        server.asked(path).last().is_some_and(|asked| asked.headers.contains_key("if-none-match"))
    });
    let asked = server.asked(path).pop().expect("asked");
    assert_eq!(asked.headers["x-site"], "plant 7");
    assert!(asked.headers["user-agent"].starts_with("coracle/"), "{asked:?}");
    assert_eq!(asked.headers["accept-encoding"], "gzip");

    let raw = |text: String| Play::Raw(text.into_bytes());
    let member = gzip(&vec![b' '; 10 << 20]);
    let bomb: Vec<u8> = member.iter().copied().cycle().take(member.len() * 30).collect();
    let loop_to = |to: String| Play::status("302 Found", &format!("Location: {to}\r\n"));
    for (play, reason) in [
        (Play::status("404 Not Found", ""), "status 404 (Not Found)"),
        (Play::status("500 Internal Server Error", ""), "status 500 (Internal Server Error)"),
        (Play::status("204 No Content", ""), "status 204 (No Content)"),
        (Play::Body(Vec::new()), "the answer is empty; to remove all pods of it, serve a list without items"),
        (body(" \n\n\t"), "the answer is empty"),
        (body("<!DOCTYPE html><title>Welcome to the hotel</title>"), "is a page of HTML or XML"),
        (raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{web}", both.len())), "broke off"),
        (
            raw(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{web}\r\n",
                web.to_string().len()
            )),
            "broke off",
        ),
        (raw(format!("HTTP/1.1 200 OK\r\n\r\n--- {web}")), "neither Content-Length nor chunks"),
        (raw("hello".into()), path.split('?').next().unwrap_or_default()),
        (Play::With("Content-Encoding: gzip\r\n", gzip(both.as_bytes())[..80].to_vec()), "broke off"),
        (Play::With("Content-Encoding: br\r\n", b"x".to_vec()), "is encoded as \"br\""),
        (Play::With("Content-Encoding: gzip\r\n", bomb.clone()), "the limit is 10485759 bytes"),
        (Play::Body(bomb.clone()), "unpacked it is longer than the limit of 10485759 bytes"),
        (Play::Flood, "the limit is 10485759 bytes"),
        (raw("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".into()), "the limit is 10485759 bytes"),
        (loop_to(server.url(path)), "redirects more than 5 times"),
        (loop_to("file:///etc/passwd".into()), "redirects to something that is no URL"),
        (Play::Body(gzip(&gzip(both.as_bytes()))), "is compressed twice"),
        (Play::Body(vec![0; 1024]), "the archive holds no file named"),
    ] {
        server.play(path, play);
        told(&node, reason);
        let said = trouble(&node).unwrap_or_default();
        assert!(said.contains("/pods: ") && !said.contains("s3cret"), "{said}");
        for (name, id) in ["web", "db"].iter().zip(&ids) {
            same(&node, name, id);
        }
        server.play(path, body(&both));
        well(&node);
    }
    // People who name a URL get the same.
    let valid = node.cli(&["validate", &server.url(path)]).ok();
    assert!(valid.contains(": valid: default/web, default/db"), "{valid}");
    server.play("/html", body("<html>"));
    let refused = node.cli(&["validate", &server.url("/html")]).fails(1);
    assert!(refused.contains("is a page of HTML or XML"), "{refused}");
    // The bomb would have had 300 MB, the flood no end.
    assert!(peak_kib(&node) < 200 << 10, "{} KiB", peak_kib(&node));

    // A broken document keeps its last good, and holds up no other.
    server.play(
        path,
        body(format!("---\n{web}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: db}}\n---\n{}", resting("new"))),
    );
    node.wait_event("the broken one", |reason, message| reason == "FailedValidation" && message.contains("/pods: "));
    node.wait_up("new");
    for (name, id) in ["web", "db"].iter().zip(&ids) {
        same(&node, name, id);
    }
    for nothing in ["# nothing\n", "just text", "kind: PodList", "a: [b"] {
        server.play(path, body(nothing));
        let before = server.asked(path).len();
        eventually("it was asked twice more", PATIENCE, || server.asked(path).len() > before + 1);
        assert!(["web", "db", "new"].iter().all(|name| node.pod(name).is_some_and(|pod| pod.up())), "{nothing}");
    }

    // The agent starts again and nobody answers; then with another agent's pods gone from memory, too.
    server.play(path, body(&both));
    node.wait_gone("new");
    well(&node);
    node.stop();
    server.stop();
    node.start();
    told(&node, "/pods: ");
    for (name, id) in ["web", "db"].iter().zip(&ids) {
        same(&node, name, id);
    }
    node.kill9();
    node.kill_everything();
    node.forget_kernel_state();
    node.start();
    let restarted = node.wait_pod("web", "started anew", |pod| pod.up() && pod.id("main") != ids[0]);
    assert_eq!(restarted.uid(), uid);
    assert_ne!(restarted.id("main"), ids[0]);
    node.wait_up("db");

    // It is back, with something else: gzip by the server, JSON in a list, by way of a redirect.
    server.restart();
    well(&node);
    let mut other = web.clone();
    other["metadata"]["labels"] = json!({ "version": "2" });
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [other, db] }).to_string();
    server.play("/elsewhere", Play::With("Content-Encoding: gzip\r\n", gzip(list.as_bytes())));
    server.play(path, Play::status("307 Temporary Redirect", "Location: /elsewhere\r\n"));
    node.wait_pod("web", "the new version", |pod| pod.up() && pod.0["metadata"]["labels"]["version"] == "2");
    assert_eq!(server.asked("/elsewhere")[0].headers["x-site"], "plant 7");
    // A valid list without a pod removes it.
    server.play("/elsewhere", body(json!({ "apiVersion": "v1", "kind": "PodList", "items": [db] })));
    node.wait_gone("web");
    assert!(node.pod("db").is_some_and(|pod| pod.up()));
    server.play(path, body(NONE));
    node.wait_gone("db");
    node.finish();
}

#[test]
fn urls_are_asked_side_by_side_by_tls_and_from_files() {
    let (authority, wrong, clients) = (Authority::new("right"), Authority::new("wrong"), Authority::new("clients"));
    let secure = Server::tls(authority.server(Some(&clients)));
    let elsewhere = Server::plain();
    let plain = Server::plain();
    let folder = std::env::temp_dir().join(format!("coracle-urls-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("folder");
    let file = |name: &str| folder.join(name);
    // Of the wrong authority until it is told.
    wrong.write(&file("ca.pem"));
    let (certificate, key) = clients.issue(&["node"]);
    fs::write(file("client.pem"), certificate).expect("certificate");
    fs::write(file("client.key"), key).expect("key");
    let archive = |pods: &[&str]| {
        let mut builder = tar::Builder::new(Vec::new());
        for name in pods {
            let text = resting(name).to_string();
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, format!("pods/{name}.yaml"), text.as_bytes()).expect("memory");
        }
        gzip(&builder.into_inner().expect("memory"))
    };
    let local = file("pods.tar.gz");
    fs::write(&local, archive(&["file-a", "file-b"])).expect("archive");
    let mut node = node(&[
        json!({ "url": secure.url("/secure"), "caFile": file("ca.pem"), "clientCertFile": file("client.pem"),
                "clientKeyFile": file("client.key"), "headers": { "Authorization": ["Bearer t0ken"] } }),
        json!({ "url": plain.url("/loris") }),
        json!({ "url": plain.url("/drip") }),
        json!({ "url": plain.url("/archive.tar.gz").replace("http://", "http://edge:p%40ss@") }),
        json!({ "url": format!("file://{}", local.display()) }),
    ]);
    secure.play("/secure", body(resting("secure")));
    plain.play("/loris", body(resting("loris")));
    plain.play("/drip", body(resting("drip")));
    plain.play("/archive.tar.gz", Play::Body(archive(&["net-a", "net-b"])));
    node.start();
    node.wait_for_images();
    let names = ["loris", "drip", "net-a", "net-b", "file-a", "file-b"];
    let ids = names.map(|name| node.wait_up(name).id("main"));
    told(&node, "UnknownIssuer");
    assert!(node.pod("secure").is_none());
    assert_eq!(plain.asked("/archive.tar.gz")[0].headers["authorization"], "Basic ZWRnZTpwQHNz");
    authority.write(&file("ca.pem"));
    let id = node.wait_up("secure").id("main");
    assert_eq!(secure.asked("/secure")[0].headers["authorization"], "Bearer t0ken");
    well(&node);

    // Each is ended by a limit of its own while the others are served.
    plain.play("/loris", Play::Loris);
    plain.play("/drip", Play::Drip);
    // To another place, no secret goes along, and never from TLS to plain HTTP.
    secure.play("/secure", Play::status("302 Found", &format!("Location: {}\r\n", elsewhere.url("/stolen"))));
    told(&node, "redirects to a place without TLS");
    assert!(elsewhere.asked("/stolen").is_empty());
    elsewhere.play("/moved", Play::Body(archive(&["net-a", "net-b"])));
    plain.play("/archive.tar.gz", Play::status("302 Found", &format!("Location: {}\r\n", elsewhere.url("/moved"))));
    eventually("it is asked elsewhere", PATIENCE, || !elsewhere.asked("/moved").is_empty());
    assert!(!elsewhere.asked("/moved")[0].headers.contains_key("authorization"));
    // A file is followed by its change, and one that is gone takes nothing along.
    let staged = file("staged");
    fs::write(&staged, archive(&["file-a", "file-b", "file-c"])).expect("archive");
    fs::rename(&staged, &local).expect("rename");
    node.wait_up("file-c");
    fs::remove_file(&local).expect("remove");
    told(&node, "cannot be read: No such file");
    told(&node, "/loris: no answer within 10 s");
    told(&node, "/drip: took longer than 30 s");
    for (name, id) in names.iter().zip(&ids).chain([(&"secure", &id)]) {
        same(&node, name, id);
    }

    fs::write(&staged, NONE).expect("list");
    fs::rename(&staged, &local).expect("rename");
    for path in ["/loris", "/drip", "/archive.tar.gz"] {
        plain.play(path, body(NONE));
    }
    secure.play("/secure", body(NONE));
    node.wait("all pods are gone", secs(60), |pods: &[PodView]| pods.is_empty());
    node.finish();
    fs::remove_dir_all(&folder).expect("folder");
}
