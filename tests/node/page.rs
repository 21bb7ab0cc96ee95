//! The status page, in a browser.

use super::harness::browser::Browser;
use super::harness::{BUSYBOX, Node, PATIENCE, eventually, free_port, pod, resting, secs, signal, wait_child};
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;

/// Sends a request as it is written; the status, the head and what has come of the body so far.
fn raw(port: u16, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the page's port");
    stream.set_read_timeout(Some(secs(10))).expect("a time-out");
    stream.write_all(request.as_bytes()).expect("a request");
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    while !bytes.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut piece).expect("an answer") {
            0 => break,
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, text)
}

fn get(port: u16, path: &str, head: &str) -> u16 {
    raw(port, &format!("GET {path} HTTP/1.1\r\n{head}\r\n\r\n")).0
}

/// Where pictures go for people who want to see them.
fn picture(node: &Node, name: &str) -> PathBuf {
    let folder = std::env::var_os("CORACLE_PICTURES").map_or_else(|| node.dir.clone(), PathBuf::from);
    folder.join(format!("status-page-{name}.png"))
}

/// A node with all that a page can show: a pod that writes, one that fails, one of several containers, a broken edit.
fn busy(port: u16) -> Node {
    let mut node = Node::new();
    let path = node.dir.join("config.yaml");
    let own = json!({ "apiVersion": "coracle.dev/v1alpha1", "kind": "CoracleConfiguration", "statusPagePort": port });
    fs::write(&path, own.to_string()).expect("config");
    node.args.push(format!("--config={}", path.display()));
    node.start();
    node.wait_for_images();
    node.apply(
        "talker.yaml",
        pod("talker", "i=0; while :; do i=$((i+1)); echo \"line $i <img src=x onerror=alert(1)>\"; sleep 0.2; done"),
    );
    node.apply("crash.yaml", pod("crash", "echo '<b>going down</b>'; exit 3"));
    let mut many = resting("many");
    let rest = many["spec"]["containers"][0].clone();
    many["spec"]["initContainers"] = json!([{ "name": "setup", "image": BUSYBOX, "command": ["true"] }]);
    let mut second = rest;
    second["name"] = json!("a-container-with-quite-a-long-name");
    many["spec"]["containers"].as_array_mut().expect("containers").push(second);
    node.apply("many.yaml", &many);
    node.wait("all have begun", 2 * PATIENCE, |pods| {
        let up = |name: &str| pods.iter().any(|p| p.name().starts_with(name) && p.up());
        up("talker") && up("many") && pods.iter().any(|p| p.name().starts_with("crash") && p.restarts("main") > 0)
    });
    many["spec"]["containers"][0]["imagePullPolicy"] = json!("Sometimes");
    node.apply("many.yaml", &many);
    node
}

/// Whether the page shows a pod of this name.
fn has_pod(name: &str) -> String {
    format!("[...document.querySelectorAll('#pods summary b')].some(b => b.textContent.startsWith('{name}'))")
}

#[test]
fn the_status_page_shows_the_node_live_and_to_nobody_from_elsewhere() {
    let port = free_port();
    let node = busy(port);

    // Who may see it, and what there is besides.
    let (code, head) = raw(port, &format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"));
    assert_eq!(code, 200);
    for header in
        ["content-security-policy: default-src 'none';", "referrer-policy: no-referrer", "cache-control: no-store"]
    {
        assert!(head.to_lowercase().contains(header), "{header}: {head}");
    }
    let local = "Host: localhost";
    for (path, head, code) in [
        ("/", "Host: localhost:9", 200),
        ("/", "Host: rebound.example", 403),
        ("/feed", "Host: rebound.example", 403),
        ("/log?namespace=default&pod=talker&container=main", "Host: 127.0.0.1.example", 403),
        ("/", "Host:", 403),
        ("/", "X: no host", 403),
        ("/", "Host: localhost\r\nHost: rebound.example", 403),
        ("/feed", "Host: localhost\r\nSec-Fetch-Site: cross-site", 403),
        ("/feed", "Host: localhost\r\nSec-Fetch-Site: same-site", 403),
        ("/feed", local, 200),
        ("/log", local, 400),
        ("/log?namespace=default&pod=talker", local, 400),
        ("/log?namespace=default&pod=none&container=main", local, 404),
        ("/log?namespace=default&pod=talker&container=none", local, 400),
        ("/log?namespace=%ff&pod=talker&container=none", local, 400),
        ("/log?namespace=default&pod=..%2f..%2ftalker&container=main", local, 404),
        ("/log?namespace=default&pod=talker&container=main", local, 200),
        ("/metrics", local, 404),
        ("/coracle/v1/status", local, 404),
        ("/coracle/v1/page", local, 404),
        ("/api/v1/pods", local, 404),
        ("/api/v1/namespaces/default/pods/talker/exec?command=id", local, 404),
        ("//feed", local, 404),
        ("/feed/", local, 404),
    ] {
        assert_eq!(get(port, path, head), code, "{path} {head}");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"] {
        assert_eq!(raw(port, &format!("{method} / HTTP/1.1\r\n{local}\r\n\r\n")).0, 405, "{method}");
    }
    assert!(matches!(raw(port, "no HTTP at all\r\n\r\n").0, 0 | 400));

    let mut browser = Browser::start(&node.dir);
    browser.resize(1280, 900, false);
    browser.open(&format!("http://127.0.0.1:{port}/"));
    browser.wait(&format!("document.title.endsWith('{} – coracle')", node.name));
    for name in ["talker", "crash", "many"] {
        browser.wait(&has_pod(name));
    }
    browser.wait("document.getElementById('live').textContent.includes('live')");
    browser.wait("document.getElementById('problems').innerText.includes('crash')");
    browser.wait("document.getElementById('events').innerText.includes('Sometimes')");
    browser.wait("document.getElementById('images').innerText.includes('busybox')");
    browser.wait("document.getElementById('events').innerText.includes('BackOff')");
    browser.wait("document.getElementById('facts').innerText.includes('Clock')");

    // It follows what happens, and what is open stays open.
    browser.eval("[...document.querySelectorAll('#pods summary')].find(s => s.textContent.includes('talker')).click()");
    browser.wait("document.querySelector('#pods details[open]').innerText.includes('busybox')");
    node.apply("later.yaml", resting("later"));
    browser.wait(&has_pod("later"));
    browser.picture(&picture(&node, "desktop"));
    node.remove("later.yaml");
    browser.wait(&format!("!({})", has_pod("later")));
    browser.wait("document.querySelectorAll('#pods details[open]').length === 1");
    browser.eval(
        "{ const f = document.getElementById('filter'); f.value = 'MANY'; f.dispatchEvent(new Event('input')); }",
    );
    browser.wait(&format!("!({}) && {}", has_pod("talker"), has_pod("many")));
    browser.eval("{ const f = document.getElementById('filter'); f.value = ''; f.dispatchEvent(new Event('input')); }");
    // What the filter had taken away begins anew.
    browser.wait(&has_pod("talker"));
    browser.eval("[...document.querySelectorAll('#pods summary')].find(s => s.textContent.includes('talker')).click()");
    browser.wait("!!document.querySelector('#pods details[open] .box button')");

    // Logs follow, and are text whatever they say.
    browser.eval("document.querySelector('#pods details[open] .box button').click()");
    browser.wait("/line \\d+ <img src=x/.test(document.getElementById('lines').textContent)");
    browser.eval("window.before = document.getElementById('lines').textContent.length");
    browser.wait("document.getElementById('lines').textContent.length > window.before");
    assert_eq!(browser.eval("document.querySelectorAll('img, #lines *').length"), 0);
    browser.eval("document.getElementById('close').click()");
    browser.wait("!document.getElementById('log').open");
    browser.eval("[...document.querySelectorAll('#pods summary')].find(s => s.textContent.includes('crash')).click()");
    browser.wait(
        "[...document.querySelectorAll('#pods .box button')].some(b => b.textContent === 'Previous' && !b.hidden)",
    );
    browser.eval("[...document.querySelectorAll('#pods .box button')].find(b => b.textContent === 'Previous' && !b.hidden).click()");
    browser.wait("document.getElementById('lines').textContent === '<b>going down</b>\\n'");
    browser.wait("document.getElementById('logstate').textContent === 'The log ends here.'");
    browser.eval("document.getElementById('close').click()");

    // On a phone: nothing sticks out, fingers hit, everything has a name.
    browser.resize(375, 740, true);
    browser.wait("innerWidth === 375");
    let wide = "[...document.querySelectorAll('body *')].filter(e => e.offsetWidth && \
                e.getBoundingClientRect().right > 376 && !e.closest('.vh, thead')).map(e => e.outerHTML.slice(0, 200))";
    assert_eq!(browser.eval(wide), json!([]));
    assert_eq!(browser.eval("document.documentElement.scrollWidth"), 375);
    let small =
        "[...document.querySelectorAll('button, summary')].filter(e => e.offsetHeight && e.offsetHeight < 32).length";
    assert_eq!(browser.eval(small), 0);
    let nameless = "[...document.querySelectorAll('button, input, dialog, section')].filter(e => !(e.ariaLabel || \
                    e.textContent.trim() || (e.labels && e.labels.length))).length";
    assert_eq!(browser.eval(nameless), 0);
    browser.eval("scrollTo(0, 0)");
    browser.picture(&picture(&node, "phone"));
    browser.darken(true);
    browser.eval("document.querySelector('#pods details[open] .box button').click()");
    browser.wait("document.getElementById('lines').textContent.length > 0");
    browser.picture(&picture(&node, "phone-log"));
    browser.eval("document.getElementById('close').click()");
    browser.eval("document.querySelector('#pods').scrollIntoView()");
    browser.picture(&picture(&node, "phone-dark"));
    browser.eval("document.getElementById('images-title').scrollIntoView()");
    browser.picture(&picture(&node, "phone-images"));
    assert_eq!(browser.complaints(), Vec::<String>::new());

    by_command_line(&node, &mut browser);
    drop(browser);
    node.finish();
}

/// `coracle status --web`.
fn by_command_line(node: &Node, browser: &mut Browser) {
    let mut child = node.command(&["status", "--web"]).stdout(Stdio::piped()).spawn().expect("coracle");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let url = lines.next().expect("a line").expect("the address");
    let (port, secret) = url.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.split_once('/')).expect("a URL");
    let (port, secret): (u16, _) = (port.parse().expect("a port"), secret.trim_end_matches('/'));
    assert_eq!(secret.len(), 32, "{url}");
    let local = "Host: localhost";
    for (path, head, code) in [
        (&*format!("/{secret}/"), local, 200),
        (&*format!("/{secret}/feed"), local, 200),
        (&*format!("/{secret}/log?namespace=default&pod=talker&container=main"), local, 200),
        (&*format!("/{secret}/log?namespace=default&pod=none&container=main"), local, 404),
        (&*format!("/{secret}/"), "Host: rebound.example", 403),
        (&*format!("/{secret}/feed"), "Host: localhost\r\nSec-Fetch-Site: cross-site", 403),
        ("/", local, 404),
        ("/feed", local, 404),
        (&*format!("/{}/feed", "0".repeat(32)), local, 404),
        (&*format!("/{secret}/status"), local, 404),
        (&*format!("/{secret}/../status"), local, 404),
        (&*format!("/{secret}/feed/../../status"), local, 404),
        ("/coracle/v1/status", local, 404),
    ] {
        assert_eq!(get(port, path, head), code, "{path} {head}");
    }
    assert_eq!(raw(port, &format!("POST /{secret}/ HTTP/1.1\r\n{local}\r\n\r\n")).0, 405);

    browser.resize(1280, 900, false);
    browser.open(&url);
    browser.wait(&format!("document.title.endsWith('{} – coracle')", node.name));
    browser.wait(&has_pod("talker"));
    browser.eval("[...document.querySelectorAll('#pods summary')].find(s => s.textContent.includes('talker')).click()");
    browser.wait("!!document.querySelector('#pods details[open] .box button')");
    browser.eval("document.querySelector('#pods details[open] .box button').click()");
    browser.wait("/line \\d+ <img/.test(document.getElementById('lines').textContent)");
    assert_eq!(browser.complaints(), Vec::<String>::new());

    signal(i32::try_from(child.id()).expect("a PID"), Signal::INT);
    let ended = wait_child(&mut child, secs(10)).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    eventually("nobody listens", secs(5), || TcpStream::connect(("127.0.0.1", port)).is_err());
    browser.wait("document.getElementById('live').textContent.includes('no answer')");
}
